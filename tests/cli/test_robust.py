"""What a person, a shell or a system may do to the command: one line, never a traceback."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

from cli.test_bad_input import assert_refused
from train.tiny import text_corpus, tiny_config
from unitscale.cli import main
from unitscale.cli.exit import running
from unitscale.cli.setting import EPILOG, FIELDS, MODEL_FIELDS
from unitscale.data import open_corpus
from unitscale.deploy.calibration import is_out_of_memory
from unitscale.models import CharLMConfig
from unitscale.train import TrainConfig
from unitscale.train.config import FOLLOWING
from unitscale.train.run_folder import claimed

TINY = ["--width", "32", "--depth", "1", "--batch-size", "4", "--sequence-length", "16"]
TINY += ["--steps", "2", "--set", "eval_windows=8"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return text_corpus(tmp_path).train.pieces[0].path


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["unitscale", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code or 0, *capsys.readouterr()


@pytest.mark.parametrize("command", ["compare", "train"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", ""], "Invalid value for '--out': it is empty"),
        (["--data", ""], "Invalid value for '--data': it is empty"),
        (["--depth", "9" * 23], f"depth is {'9' * 23}; expected at most 10000"),
        (["--width", "9" * 23], f"width is {'9' * 23}; expected"),
        (["--steps", "9" * 23], f"steps is {'9' * 23}; expected an integer from 1 to"),
        (["--threads", "100000"], "--threads is 100000; expected from 1 to 1024"),
        (["--device", "tpu"], "device is 'tpu'; expected 'cpu', 'cuda' or 'cuda:NUMBER'"),
        (["--device", "cuda:99"], "device is 'cuda:99', and torch sees"),
        (["--dtype", "fp16"], "dtype is 'fp16'; expected 'fp32' or 'bf16'"),
        (["--set", "betas=" + "[" * 100_000], "too many brackets"),
        (["--set", "steps=" + "9" * 5000], "digits"),
        (["--set", "model=5"], "use --model, and --set model.NAME=VALUE"),
        (["--set", "device=cpu"], "use --device"),
    ],
)
def test_value_that_nobody_means_is_one_line(
    command: str,
    arguments: list[str],
    message: str,
    text: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(text.parent)
    line = assert_refused(capsys, monkeypatch, command, "--data", text, *arguments)
    assert message in line
    assert list(Path.cwd().iterdir()) == [text]


def test_seed_beyond_64_bits_is_one_line(
    text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = assert_refused(capsys, monkeypatch, "train", "--data", text, "--seed", 2**64)
    assert f"seed is {2**64}; expected an integer from 0 to {2**64 - 1}" in line


def test_pipe_as_text_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    line = assert_refused(capsys, monkeypatch, "train", "--data", tmp_path / "pipe")
    assert "pipe is no file on a disk" in line
    assert "save it to a file first" in line


def test_name_that_is_no_utf8_is_shown_and_trained_on(
    text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = Path(os.fsdecode(os.fsencode(text.parent) + b"/\xfftext"))
    text.rename(strange)
    assert open_corpus(strange).name == "\\xfftext"
    out = text.parent / "out"
    line = ["compare", "--recipes", "fp32", "--data", strange, *TINY, "--out", out]
    code, _, err = run(capsys, monkeypatch, *line)
    assert code == 0, err
    assert json.loads((out / "results.json").read_text())["data"] == "\\xfftext"
    assert "\\xfftext" in (out / "report.html").read_text()


@pytest.mark.parametrize("command", ["compare", "train"])
def test_folder_that_another_process_uses_is_exit_code_2(
    command: str,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with claimed(tmp_path / "run", tiny_config(), open_corpus(text), resume=False):
        line = assert_refused(
            capsys, monkeypatch, command, "--data", text, "--out", tmp_path / "run", "--resume"
        )
    assert "run is in use by another process; wait until it has ended" in line


def test_train_into_a_comparison_is_refused(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out" / "runs").mkdir(parents=True)
    line = assert_refused(
        capsys, monkeypatch, "train", "--data", text, "--out", tmp_path / "out", "--resume"
    )
    assert "holds a comparison (runs exists); choose another folder for a run" in line


def test_factory_that_fails_is_one_line_and_exit_code_1(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_model_of_test.py").write_text("def build():\n    raise KeyError('x')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    line = ["train", "--data", text, "--model", "failing_model_of_test:build", "--out", "out"]
    code, out, err = run(capsys, monkeypatch, *line)
    assert (code, out, err.count("\n")) == (1, "", 1), err
    assert "failing_model_of_test:build failed with {}: KeyError: 'x'" in err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] can't allocate memory: you tried"),
        RuntimeError("Storage size calculation overflowed with sizes=[9, 9]"),
    ],
)
def test_too_little_memory_is_one_line(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    assert is_out_of_memory(error)
    with pytest.raises(SystemExit) as stopped, running():
        raise error
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("unitscale: not enough memory; a smaller model")


def test_bug_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="a bug"), running():
        raise RuntimeError("a bug")


def heed_interrupts() -> None:
    """A shell ignores SIGINT in what it runs in the background, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


START = """
import sys
from unitscale import cli
load = cli.load
def ready():  # the first thing that `main` does once its handler is in place
    print("ready", flush=True)
    return load()
cli.load = ready
sys.argv = ["unitscale", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.4, 1.0])
def test_ctrl_c_in_the_first_second_is_one_line(delay: float, text: Path, tmp_path: Path) -> None:
    line = ["train", "--data", text, "--out", tmp_path / "run", "--steps", "1000000"]
    process = subprocess.Popen(
        [sys.executable, "-c", START, *map(str, line)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("unitscale: stopped")


INTERRUPTED = """
import os, signal, sys
class Interrupts:
    @staticmethod
    def find_spec(name, *rest):
        if name == WHERE:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts)
sys.argv = ["unitscale", "formats"]
from unitscale.cli import main
main()
"""


@pytest.mark.parametrize("module", ["unitscale.cli.exit", "unitscale.cli.app", "typer"])
def test_ctrl_c_while_something_is_imported_is_no_traceback(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.replace("WHERE", repr(module))],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=heed_interrupts,
    )
    assert done.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in done.stderr


WRITING = """
import os, signal
from pathlib import Path
from unitscale.cli.exit import stopping_at_once
from unitscale.deploy.export import new_folder
from unitscale.report.atomic import replacing
with stopping_at_once(), new_folder(Path("model")) as folder, replacing(Path("a.json")) as file:
    (folder / "weights").write_text("half")
    file.write_text("half")
    os.kill(os.getpid(), signal.SIGINT)
"""


def test_ctrl_c_leaves_nothing_of_what_is_being_written(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITING],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=heed_interrupts,
    )
    assert (done.returncode, done.stderr.strip()) == (130, "unitscale: stopped")
    assert list(tmp_path.iterdir()) == []


def test_little_is_imported_before_ctrl_c_is_heard() -> None:
    """What is imported then can be counted on one hand: an interrupt there is a traceback."""
    code = (
        "import sys; before = set(sys.modules); import unitscale.cli; "
        "print(*sorted(set(sys.modules) - before))"
    )
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["unitscale", "unitscale.cli"]


def test_reader_that_leaves_is_no_traceback() -> None:
    line = [sys.executable, "-m", "unitscale", "formats"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.wait()
    process.stderr.close()
    assert process.returncode == 1
    assert err == ""


def test_help_lists_every_setting_with_its_meaning_and_default() -> None:
    own = {"recipe", "model", "steps", "batch_size", "sequence_length", "lr", "seed", "inner"}
    own |= {"device", "dtype", "states"}
    known = {field.name: field.default for field in fields(TrainConfig)}
    assert FIELDS.keys() == known.keys() - own
    options = {field.name: field.default for field in fields(CharLMConfig)}
    flags = {"layer", "norm", "residual", "width", "depth"}
    assert MODEL_FIELDS.keys() == options.keys() - flags - FOLLOWING
    for table, defaults in ((FIELDS, known), (MODEL_FIELDS, options)):
        for name, (default, meaning) in table.items():
            value = defaults[name]
            shown = "none" if value is None else value
            shown = shown if isinstance(shown, str) else json.dumps(shown)
            assert default == shown, name
            assert f"`{name}`: {meaning}" in EPILOG or f"`model.{name}`: {meaning}" in EPILOG


@pytest.mark.parametrize("command", ["compare", "train"])
def test_help_shows_them(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out, _ = run(capsys, monkeypatch, command, "--help")
    assert "clip_norm: largest norm of the gradient" in out


def test_bf16_run_holds_a_bf16_model(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    line = ["train", "--recipe", "fp8", "--data", text, *TINY, "--dtype", "bf16", "--device", "cpu"]
    code, _, err = run(capsys, monkeypatch, *line, "--out", tmp_path / "run")
    assert code == 0, err
    tensors = load_file(tmp_path / "run" / "checkpoint.safetensors")
    dtypes = {str(t.dtype) for name, t in tensors.items() if name.startswith("model.")}
    assert dtypes == {"torch.bfloat16"}


@pytest.mark.parametrize(
    ("words", "completion"), [(["tr"], "train"), (["train", "--devi"], "--device")]
)
def test_shell_completes_commands_and_options(words: list[str], completion: str) -> None:
    code = "import sys; sys.argv[0] = 'unitscale'; from unitscale.cli import main; main()"
    asked = {"_UNITSCALE_COMPLETE": "complete_bash", "COMP_CWORD": str(len(words))}
    asked["COMP_WORDS"] = " ".join(["unitscale", *words])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | asked,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, [completion]), done.stderr
