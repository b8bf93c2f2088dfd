"""Several ranks make the run of one process: `two_ranks` trains, and here it is looked at."""

import shutil
import signal
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load

from processes import work_together
from train.tiny import text_corpus
from train.two_ranks import MORE, RUNS, SHARES, STATES, Watched, config, work
from unitscale.data import open_corpus
from unitscale.train import RankError, Spread, train
from unitscale.train.ranks import ending_together
from unitscale.train.run_log import losses, read_log

# Sums over parts of a batch are taken in another order: each has an error of some 2^-24, and four
# steps at a learning rate of Adam's carry it on.
ROUNDING = 1e-5


def alone(folder: Path, *names: str) -> None:
    """The runs of one process, in as many micro-batches as the ranks have shares."""
    corpus, found = open_corpus(folder / "text.txt"), {}
    for name in names:
        spread = Spread(micro_batches=2 if name == "fp8" else SHARES)
        with Watched() as seen:
            train(config(name), corpus, folder / f"{name}-1", spread=spread)
        found[name] = seen.norms
    torch.save(found, folder / "norms.pt")


def stop(record: dict[str, Any]) -> None:
    """Press Ctrl-C in the second step."""
    if record["step"] == 2 and "loss" in record:
        signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process, and those of two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    corpus = text_corpus(folder)
    alone(folder, "fp32", "fp32-units", "own", "fp8")
    with pytest.raises(KeyboardInterrupt):
        train(
            config("own"),
            corpus,
            folder / "one",
            on_record=stop,
            spread=Spread(micro_batches=SHARES),
        )
    work_together(work, folder, 2, RUNS)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"2-{rank}.pt", weights_only=False) for rank in range(2)]


def losses_of(folder: Path) -> list[float]:
    return losses(read_log(folder / "log.jsonl"))


def assert_same_losses(a: list[float], b: list[float], *, within: float) -> None:
    assert len(a) == len(b)
    assert max(abs(x - y) for x, y in zip(a, b, strict=True)) <= within


def test_assert_same_losses_sees_a_difference_and_a_missing_step() -> None:
    with pytest.raises(AssertionError):
        assert_same_losses([1.0, 2.0], [1.0, 2.1], within=0.05)
    with pytest.raises(AssertionError):
        assert_same_losses([1.0], [1.0, 2.0], within=0.05)


def assert_is_one_process(folder: Path, name: str, parallel: str, count: int) -> None:
    one, many = folder / f"{name}-1", folder / f"{name}-{parallel}-{count}"
    assert_same_losses(losses_of(one), losses_of(many), within=ROUNDING)
    valid = [read_log(place / "log.jsonl")[-1]["valid_loss"] for place in (one, many)]
    assert valid[0] == pytest.approx(valid[1], abs=ROUNDING)
    norms = torch.load(folder / "norms.pt")[name]
    for rank in range(count):
        one = torch.load(folder / f"{count}-{rank}.pt", weights_only=False)
        assert one[many.name]["norms"] == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize(("name", "parallel"), RUNS[:3])
def test_two_ranks_by_four_are_one_by_eight(folder: Path, found, name: str, parallel: str) -> None:
    assert_is_one_process(folder, name, parallel, 2)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_any_ranks_are_one_by_eight(tmp_path: Path, count: int) -> None:
    text_corpus(tmp_path)
    names = ("fp32", "fp32-units", "own", "dynamic", "fp8-lm", "master24", "stochastic")
    alone(tmp_path, *names)
    exact = MORE if count == 2 else [*RUNS[:3], *MORE]
    runs = [*exact, *STATES]
    work_together(work, tmp_path, count, runs, count=count)
    for name, parallel in exact:
        assert_is_one_process(tmp_path, name, parallel, count)
    for name, parallel in STATES:  # the last bit of a gradient moves a code to the next one
        one, many = tmp_path / f"{name}-1", tmp_path / f"{name}-{parallel}-{count}"
        assert_same_losses(losses_of(one), losses_of(many), within=0.02)
    found = [
        torch.load(tmp_path / f"{count}-{rank}.pt", weights_only=False) for rank in range(count)
    ]
    for name, parallel in runs:
        assert len({tuple(one[f"{name}-{parallel}-{count}"]["units"]) for one in found}) == 1


@pytest.mark.parametrize(
    ("name", "factor", "wanted"),
    [("fp32", "loss_factor", SHARES), ("fp32-units", "gradient_factor", SHARES**0.5)],
)
def test_gradients_are_those_of_the_whole_batch(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    factor: str,
    wanted: float,
) -> None:
    """Without its factor the norm is that of a sum: 8 times, or unit-scaled the root of it."""
    corpus, run = open_corpus(folder / "text.txt"), replace(config(name), steps=1)
    with Watched() as whole:
        train(run, corpus, tmp_path / "whole")
    monkeypatch.setattr(Spread, factor, lambda self, is_unit_scaled: 1.0)
    with Watched() as wrong:
        train(run, corpus, tmp_path / "wrong", spread=Spread(micro_batches=SHARES))
    assert torch.load(folder / "norms.pt")[name][0] == pytest.approx(whole.norms[0], rel=1e-4)
    assert wrong.norms[0] == pytest.approx(wanted * whole.norms[0], rel=1e-4)


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """All of a checkpoint of several ranks, whole."""
    reader = FileSystemReader(path)
    entries = reader.read_metadata().state_dict_metadata
    found = {k: torch.empty(v.size, dtype=v.properties.dtype) for k, v in entries.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        load(found, storage_reader=reader, no_dist=True)
    return found


def test_fp8_on_two_ranks_is_one_process_within_its_rounding(folder: Path) -> None:
    """A bit of the last place moves an element to the next value of a format, 2^-3 of it, and
    COAT's codes likewise: the losses differ by less than the step that learns least."""
    one, two = losses_of(folder / "fp8-1"), losses_of(folder / "fp8-fsdp2-2")
    assert_same_losses(one, two, within=0.02)
    assert max(one) - min(one) > 0.1


def test_units_are_equal_on_all_ranks_at_every_step(found) -> None:
    for name in ("own-ddp-2", "fp8-fsdp2-2", "fell back", "from one"):
        first, second = (one[name]["units"] for one in found)
        assert first == second
        assert all(first), name
    assert len(set(found[0]["fp8-fsdp2-2"]["units"])) > 1


def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(folder: Path, found) -> None:
    done, again = folder / "fp8-fsdp2-2", folder / "fell back"
    newest = Path("checkpoints", "step-000000004")
    expected, resumed = tensors_of(done / newest), tensors_of(again / newest)
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    assert losses_of(again) == losses_of(done)
    assert found[0]["fell back"]["units"] == found[0]["fp8-fsdp2-2"]["units"][3:]


def test_a_damaged_newest_checkpoint_is_passed_over_and_said(folder: Path) -> None:
    said = [
        r["passed_over"] for r in read_log(folder / "fell back" / "log.jsonl") if "passed_over" in r
    ]
    assert said == ["step-000000004 (the checksum of __1_0.distcp does not match)"]


def test_two_checkpoints_are_kept(folder: Path) -> None:
    kept = sorted(path.name for path in (folder / "own-ddp-2" / "checkpoints").iterdir())
    assert kept == ["step-000000003", "step-000000004"]


def test_one_process_goes_on_from_two_ranks(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    shutil.copytree(folder / "own-ddp-2", place)
    (place / "result.json").unlink()
    shutil.rmtree(place / "checkpoints" / "step-000000004")
    corpus = open_corpus(folder / "text.txt")
    train(config("own"), corpus, place, resume=True, spread=Spread(micro_batches=SHARES))
    assert_same_losses(losses_of(place), losses_of(folder / "own-1"), within=ROUNDING)
    assert (place / "checkpoint.safetensors").exists()
    assert not (place / "checkpoints").exists()


def test_two_ranks_go_on_from_one_process(folder: Path, found) -> None:
    place = folder / "from one"
    assert_same_losses(losses_of(place), losses_of(folder / "own-1"), within=ROUNDING)
    assert [r.get("ranks") for r in read_log(place / "log.jsonl") if "loss" in r] == [
        1,
        None,
        2,
        None,
    ]
    assert not (place / "checkpoint.safetensors").exists()


def test_a_loss_that_is_not_finite_on_one_rank_ends_all(folder: Path, found) -> None:
    assert [one["breaks-ddp-2"]["diverged"] for one in found] == [True, True]
    last = read_log(folder / "breaks-ddp-2" / "log.jsonl")[-1]
    assert (last["loss"], last["not_finite_on"]) == (None, [1])
    assert 1 < last["step"] < 4


def test_ranks_that_are_asked_for_different_things_say_so(found) -> None:
    wanted = [
        "train: seed differs between ranks: 0 on rank 0, 3 on rank 1; pass the same on every rank",
        "train: recipe differs between ranks: 'fp32' on rank 0, 'fp8' on rank 1",
        "steps is -1; expected an integer",
        "train: --out differs between ranks: 'run0' on rank 0, 'run1' on rank 1",
        "cannot write to the folder /dev/null/run",
    ]
    for one in found:
        assert len(one["refused"]) == len(wanted)
        for text, message in zip(wanted, one["refused"], strict=True):
            assert text in message
            assert "\n" not in message
    assert "rank 1 refused" in found[0]["refused"][2]


@pytest.mark.parametrize(
    "message",
    [
        "[.../gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer",
        "Timed out waiting 5000ms for recv operation to complete",
        "could not agree on its units. torch.distributed says: it has ended",
    ],
)
def test_what_a_collective_raises_is_one_line(message: str) -> None:
    error = RuntimeError("in the backward pass")
    error.__cause__ = RuntimeError(message)
    wanted = "another of the 2 ranks has ended or did not answer"
    with pytest.raises(RankError, match=wanted) as caught, ending_together(Spread(ranks=2)):
        raise error
    assert "\n" not in str(caught.value)


def test_another_error_stays_itself() -> None:
    with pytest.raises(RuntimeError, match="a bug"), ending_together(Spread(ranks=2)):
        raise RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="gloo"), ending_together(Spread()):
        raise RuntimeError("gloo, in one process")
