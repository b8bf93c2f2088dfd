"""What works without the extras, and the one line that says which extra is missing."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from unitscale.cli import main
from unitscale.report.extra import EXTRAS, imported

OPTIONAL = (
    *("accelerate", "matplotlib", "plotly", "pyarrow", "rich", "tensorboard", "transformers"),
    "typer",
)

WITHOUT = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""

TRAIN = """
import torch
import unitscale as us
for name in us.__all__:
    getattr(us, name)
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)
    def forward(self, x):
        return self.down(torch.relu(self.up(x)))
model = Model()
us.unit_scale(model, "fp8", inner="eager")
with us.record.record(model, every=1) as recorder:
    for _ in range(3):
        model(torch.ones(2, 4)).sum().backward()
print(us.report.judge(us.report.group([recorder.sink.header, *recorder.rows])).paragraph)
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Python code, in a process in which no optional package is installed."""
    line = [sys.executable, "-c", WITHOUT + code]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_library_trains_and_records_with_torch_numpy_and_safetensors_alone() -> None:
    done = run(TRAIN)
    assert done.returncode == 0, done.stderr
    assert "operands" in done.stdout


def test_command_line_says_what_to_install() -> None:
    done = run("from unitscale.cli import main; main()")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"unitscale: the command line needs (typer|rich), which is not installed; run: "
        r"pip install 'unitscale\[cli\]'\n",
        done.stderr,
    )


def test_page_without_charts_says_what_to_install(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    done = run(
        "from unitscale.report import Curve, write_html\n"
        "curve = Curve(recipe='fp8', losses=[1.0], diverged=False, unit_scaled=True)\n"
        f"write_html([], {str(path)!r}, curves=[curve])"
    )
    assert done.returncode == 0, done.stderr
    line = (
        "The charts are left out: this needs plotly, which is not installed; run: pip install "
        "&#x27;unitscale[report]&#x27;"
    )
    assert line in path.read_text("utf-8")


def test_report_that_is_asked_for_needs_charts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setattr(sys, "argv", ["unitscale", "report", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert "needs plotly" in line


def test_package_that_lacks_another_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(ValueError, match=r"needs plotly.* 'unitscale\[report\]', or draw it by"):
        imported("plotly", instead=", or draw it by hand")
    monkeypatch.setattr(
        "unitscale.report.extra.import_module",
        lambda name: (_ for _ in ()).throw(ModuleNotFoundError("no retrying", name="retrying")),
    )
    with pytest.raises(ModuleNotFoundError, match="no retrying"):
        imported("plotly")


def test_extras_are_those_of_the_distribution() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    extras = project["optional-dependencies"]
    base = {re.split(r"\W", line)[0] for line in project["dependencies"]}
    assert base == {"torch", "numpy", "safetensors"}
    for package, extra in EXTRAS.items():
        assert package in {line.partition("[")[0] for line in extras[extra]}
    (everything,) = extras["all"]
    hosts = {"ray", "submitit", "lightning"}  # large, and for people who run them already
    developers = {"dev", "docs", "release", "measure"}
    own = extras.keys() - {"all", "lifecycle"} - hosts - developers
    assert set(everything.partition("[")[2].strip("]").split(",")) == own
    named = {re.split(r"\W", line)[0] for extra in own for line in extras[extra]}
    assert named == set(OPTIONAL)
