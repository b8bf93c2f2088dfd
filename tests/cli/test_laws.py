"""`unitscale laws`: files in, files and answers out, one line for what is wrong."""

import json
import subprocess
import sys

import pytest

from laws.synthetic import recipe_rows
from unitscale.cli import main


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """What a command prints, and its exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["unitscale", "laws", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return run


def write_table(path, rows=None):
    lines = [f"{r.size},{r.tokens},{r.loss},{r.recipe}" for r in rows or recipe_rows()]
    path.write_text("\n".join(["N,D,loss,recipe", *lines]) + "\n")


@pytest.fixture
def fitted(command, tmp_path):
    write_table(tmp_path / "runs.csv")
    code, out, _ = command("fit", "runs.csv", "--draws", 5, "--figure", "fit.svg")
    assert code == 0
    assert "sizes left out" in out
    return command


def test_fit_writes_a_law_and_a_figure(fitted, tmp_path):
    assert (tmp_path / "law.json").is_file()
    assert (tmp_path / "fit.svg").is_file()


def test_answers_are_printed(fitted):
    code, out, err = fitted("predict", "--N", 5e4, "--D", 2e5, "--recipe", "mxfp4")
    assert (code, err) == (0, "")
    assert out.startswith("loss ")
    code, out, _ = fitted("plan", "--flops", 1e11, "--hardware", "fp8,fp4", "--figure", "p.svg")
    assert code == 0
    assert "fp8-e4m3" in out
    assert "fp32" not in out


def test_answers_as_json_are_json_alone_and_notes_are_on_stderr(fitted):
    code, out, err = fitted("plan", "--flops", 1e20, "--fix", "P=fp8", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["precision"] == "fp8-e4m3"
    assert found["low"] < found["loss"] < found["high"]
    assert len(err.splitlines()) == len(found["notes"]) > 0
    code, out, _ = fitted("fit", "runs.csv", "--draws", 0, "--json")
    assert json.loads(out)["kind"] == "unitscale law of precision"


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "--flops", 1e21),
        ("predict", "--N", 1e8, "--D", 1e10, "--P", 8),
        ("predict", "--N", 1e8, "--D", 1e10, "--P", "w=4", "--P", "a=8", "--P-post", 3),
        ("dcrit", "--N", 3e7, "--P-post", 3),
    ],
)
@pytest.mark.parametrize("json_flag", [(), ("--json",)])
def test_published_law_is_marked_in_every_output(command, arguments, json_flag):
    code, out, _ = command(*arguments, "--law", "published", *json_flag)
    assert code == 0
    assert "demo: published constants of other models" in out.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fit", "none.csv"), "none.csv"),
        (("fit", "empty"), "no runs.csv and no results.json"),
        (("fit", "runs.csv", "--out", "none/law.json"), "the folder of none/law.json"),
        (("fit", "runs.csv", "--figure", "fit.gif"), "fit.gif ends in .gif"),
        (("fit", "runs.csv", "--reference", "bf16"), "the reference is 'bf16'"),
        (("fit", "two.csv"), "2 different sizes N (4000, 16000)"),
        (("fit", "nan.csv"), "row 1: loss is 'nan'"),
        (("predict", "--N", 1e4, "--D", 1e5, "--recipe", "fp8"), "law.json"),
        (("predict", "--N", 1e8, "--D", 1e10, "--P", "x", "--law", "published"), "--P x: expected"),
        (("plan", "--flops", 0, "--law", "published"), "flops is 0.0"),
        (("plan", "--flops", 1e20, "--fix", "N", "--law", "published"), "--fix N: expected"),
        (
            ("plan", "--flops", 1e20, "--fix", "N=1", "--fix", "N=2", "--law", "published"),
            "--fix N=2: N is given twice",
        ),
        (("plan", "--flops", 1e20, "--hardware", "fp8", "--law", "published"), "never saw 'fp8'"),
        (("dcrit", "--N", 3e7, "--P-post", 0, "--law", "published"), "post_bits is 0"),
        (("dcrit", "--N", 3e7), "--P-post"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(command, tmp_path, arguments, words):
    write_table(tmp_path / "runs.csv")
    write_table(tmp_path / "two.csv", [row for row in recipe_rows() if row.size < 2e4])
    (tmp_path / "empty").mkdir()
    (tmp_path / "nan.csv").write_text("N,D,loss,recipe\n1,2,nan,fp8\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert words in err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


# Two layers of 12 w^2, the read-out of 256 w, and five norms and two positions of 12 w in all.
SIZE = {width: 24 * width**2 + 268 * width for width in (16, 32, 48)}


def test_comparison_is_read_without_conversion(command, tmp_path):
    """Its parameters are counted: results.json has none."""
    for width in (16, 32, 48):
        for steps in (10, 20, 40):
            folder = tmp_path / f"{width}-{steps}"
            folder.mkdir()
            size = SIZE[width]
            runs = [
                {
                    "recipe": recipe,
                    "seed": 0,
                    "lr": 0.01,
                    "valid_loss": 40 * (factor * size) ** -0.4 + 20 * (steps * 64) ** -0.4 + 1,
                    "steps_done": steps,
                    "diverged": False,
                    "unit_scaled": False,
                }
                for recipe, factor in (("fp32", 1.0), ("fp8-e4m3-none", 0.5))
            ]
            config = {
                "batch_size": 4,
                "sequence_length": 16,
                "steps": steps,
                "model": {"width": width, "depth": 2},
            }
            content = {"model": "attention", "config": config, "runs": runs}
            (folder / "results.json").write_text(json.dumps(content))
    code, out, err = command("fit", *sorted(tmp_path.glob("*-*")), "--draws", 0, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["values"]["f_fp8-e4m3-none"] == pytest.approx(0.5, rel=0.02)
    assert found["scope"]["sizes"] == [SIZE[16], SIZE[48]]


def test_answers_need_no_torch():
    code = (
        "import sys\nfrom unitscale.cli import main\n"
        "sys.argv = 'unitscale laws plan --flops 1e21 --law published'.split()\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
