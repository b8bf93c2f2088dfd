"""What a stranger gets by `pip install unitscale`: built, installed and used in clean environments.

    make release-check

1. The sdist is built from the sources, and the wheel from the sdist, into dist/.
2. The wheel alone, with torch, numpy and safetensors: everything is imported, a model is trained
   under a recipe, and each thing that needs an extra is one line that names the extra.
3. With the extra `cli`: the commands that need no other extra run.

Exit code 1, and what went wrong, for the first failure. With `--torch-from DIR` a clean environment
takes torch and what it needs from the site-packages of another one instead of installing them.
"""

import argparse
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"

TRAIN = """
import torch
import unitscale as us

for name in us.__all__:
    getattr(us, name)
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 4))
us.unit_scale(model, "fp8")
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
x, target = torch.randn(64, 16), torch.randint(4, (64,))
losses = []
for _ in range(30):
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(x), target)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < losses[0], losses
assert us.coverage(model) == 1.0
print(us.summary(model))
"""

IMPORTED_ONLY_IF_THERE = """
import sys
found = sorted({name.partition(".")[0] for name in sys.modules} & set(EXTRAS))
assert not found, f"imported without being asked for: {found}"
"""

EXTRAS = ("typer", "rich", "matplotlib", "plotly", "transformers", "pyarrow", "tensorboard")

# (extra, what needs it): each fails in one line that says how to install it.
MISSING = (
    ("cli", "import unitscale.cli; unitscale.cli.main()"),
    ("report", "from unitscale.report.html import packed_plotly as f; f()"),
    ("report", "import unitscale as us; us.report.draw_losses([], 'x.png', title='')"),
    (
        "parquet",
        "from pathlib import Path; from unitscale.report.parquet import read_parquet as f; "
        "list(f(Path('x.parquet')))",
    ),
    (
        "tensorboard",
        "from pathlib import Path; from unitscale.train.tensorboard import writer_class as f; f()",
    ),
    ("hf", "from unitscale.models.existing import find_factory; find_factory('llama')"),
)

COMMANDS = (
    ["--help"],
    ["formats"],
    ["recipes", "fp8"],
    ["doctor", "--shapes", "4096x4096x4096"],
    ["train", "--steps", "2", "--width", "16", "--depth", "1", "--batch-size", "2",
     "--sequence-length", "16", "--out", "run"],
)  # fmt: skip


def main() -> None:
    """Build, install, try."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--torch-from", type=Path, help="site-packages that have torch")
    torch_from = parser.parse_args().torch_from
    wheel = build()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bare = Environment(folder / "bare", torch_from)
        bare.pip("install", "-q", "-c", str(ROOT / "constraints.txt"), str(wheel))
        check_bare(bare, folder)
        bare.pip("install", "-q", "-c", str(ROOT / "constraints.txt"), f"{wheel}[cli]")
        check_commands(bare, folder)
    print(f"release-check: {wheel.name} and its sdist are sound")


class Environment:
    """A virtual environment of its own, and what is run in it."""

    def __init__(self, place: Path, torch_from: Path | None) -> None:
        venv.create(place, with_pip=True)
        self.bin = place / "bin"
        if torch_from:
            # Only what the library needs: a .pth file would bring the extras with it.
            (site,) = place.glob("lib/python*/site-packages")
            for name in needed_by_torch(torch_from):
                (site / name).symlink_to(torch_from / name)
        else:
            self.pip("install", "-q", "-c", str(ROOT / "constraints.txt"), "torch")

    def pip(self, *arguments: str) -> None:
        """Its pip; fails as pip does."""
        subprocess.run([self.bin / "pip", *arguments], check=True)

    def python(self, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """A program in its Python."""
        return self.run([str(self.bin / "python"), "-c", code], folder)

    def run(self, command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
        """A command in a folder, whatever its exit code."""
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def needed_by_torch(site: Path) -> list[str]:
    """Folders and files of site-packages that torch, numpy and safetensors consist of."""
    wanted = (
        "torch", "torchgen", "functorch", "numpy", "numpy.libs", "safetensors", "filelock",
        "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "sympy", "typing_extensions.py",
        "setuptools", "_distutils_hack", "pkg_resources",
    )  # fmt: skip
    metadata = ("torch-", "numpy-", "safetensors-", "filelock-", "fsspec-", "jinja2-",
                "markupsafe-", "mpmath-", "networkx-", "sympy-", "typing_extensions-")  # fmt: skip
    return [
        path.name
        for path in site.iterdir()
        if (path.name in wanted and not path.name.startswith(("setuptools", "_dist", "pkg")))
        or (path.name.lower().startswith(metadata) and path.suffix == ".dist-info")
    ]


def build() -> Path:
    """The sdist and, from it, the wheel; what must and must not be in them."""
    for old in DIST.glob("*"):
        old.unlink()
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(DIST), str(ROOT)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (sdist,), (wheel,) = DIST.glob("*.tar.gz"), DIST.glob("*.whl")
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as opened:
        in_sdist = {name.partition("/")[2] for name in opened.getnames()}
    sources = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    if missing := sources - in_wheel:
        fail(f"the wheel lacks {sorted(missing)[:5]}")
    if strange := {n for n in in_wheel if not n.startswith("unitscale")}:
        fail(f"the wheel has what is not the package: {sorted(strange)[:5]}")
    if missing := {"LICENSE", "README.md", "CHANGELOG.md", "tests/conftest.py"} - in_sdist:
        fail(f"the sdist lacks {sorted(missing)}")
    return wheel


def check_bare(bare: Environment, folder: Path) -> None:
    """Imports, training, and one line for each missing extra."""
    done = bare.python(TRAIN + IMPORTED_ONLY_IF_THERE.replace("EXTRAS", repr(EXTRAS)), folder)
    if done.returncode:
        fail(f"training without extras: {done.stdout}{done.stderr}")
    print(done.stdout, end="")
    for extra, code in MISSING:
        done = bare.python(code, folder)
        last = (done.stderr.strip().splitlines() or [""])[-1]
        if not done.returncode or f"unitscale[{extra}]" not in last:
            fail(f"without [{extra}], {code!r} ended with: {last!r}")
        print(f"without [{extra}]: {last}")


def check_commands(environment: Environment, folder: Path) -> None:
    """With `cli` alone, the commands that need no other extra."""
    for command in COMMANDS:
        done = environment.run([str(environment.bin / "unitscale"), *command], folder)
        if done.returncode:
            fail(f"unitscale {' '.join(command)}: {done.stdout}{done.stderr}")
    print(f"with [cli]: {', '.join(command[0] for command in COMMANDS)} run")


def fail(what: str) -> None:
    """Say what is wrong, and end."""
    sys.exit(f"release-check: {what}")


if __name__ == "__main__":
    main()
