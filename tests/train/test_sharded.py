"""Checkpoints of several ranks, by one: what is whole, what is damaged, what is left over."""

import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import filesystem

from train.test_checkpoint import advance, new_state
from unitscale.train import CheckpointError, Spread
from unitscale.train.checkpoint import TrainState
from unitscale.train.sharded import load_sharded, newest_sound, save_sharded

ALONE = Spread()


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    """One process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[TrainState, Path]:
    """Checkpoints after steps 1 and 2."""
    state = new_state()
    state.run = "mine"
    for _ in range(2):
        advance(state)
        save_sharded(state, tmp_path, ALONE)
    return state, tmp_path


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: list[tuple[str, Callable[[Path], None], str]] = [
    ("__0_0.distcp", flip, r"the checksum of __0_0.distcp does not match"),
    (".metadata", flip, r"the checksum of .metadata does not match"),
    ("__0_0.distcp", Path.unlink, r"it lacks __0_0.distcp"),
    ("state.json", Path.unlink, r"No such file"),
    ("state.json", flip, r"state.json|JSON|Invalid|Expecting|Unterminated|decode"),
]


@pytest.mark.parametrize(("name", "damage", "reason"), DAMAGES)
def test_a_damaged_one_is_passed_over_for_the_one_before(saved, name, damage, reason) -> None:
    _, folder = saved
    damage(folder / "checkpoints" / "step-000000002" / name)
    found = newest_sound(folder, "mine")
    assert found is not None
    assert (found.path.name, found.rest.step) == ("step-000000001", 1)
    assert found.passed_over.startswith("step-000000002 (")
    assert re.search(reason, found.passed_over)


def test_none_that_is_sound_is_an_error(saved) -> None:
    _, folder = saved
    with pytest.raises(CheckpointError, match="another configuration or another text"):
        newest_sound(folder, "another")
    for path in (folder / "checkpoints").glob("*/state.json"):
        path.write_text("{}")
    with pytest.raises(CheckpointError, match=r"no sound checkpoint .*step-000000002.*nothing was"):
        newest_sound(folder, "mine")


def test_where_there_is_none_there_is_none(tmp_path: Path) -> None:
    assert newest_sound(tmp_path, "mine") is None


def test_what_was_saved_comes_back_bit_by_bit(saved) -> None:
    state, folder = saved
    found = newest_sound(folder, "mine")
    assert found is not None
    assert found.passed_over == ""
    other = new_state()
    load_sharded(other, found, ALONE)
    assert other.step == 2
    for a, b in zip(state.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
        for name, value in state.optimizer.state[a].items():
            assert torch.equal(value, other.optimizer.state[b][name])


def test_one_of_another_model_is_refused_and_changes_nothing(saved) -> None:
    _, folder = saved
    found = newest_sound(folder, "mine")
    assert found is not None
    other = new_state(width=8)
    before = [p.detach().clone() for p in other.model.parameters()]
    with pytest.raises(CheckpointError, match=r"has the shape \[4, 4\], and not \[8, 8\]"):
        load_sharded(other, found, ALONE)
    assert all(map(torch.equal, before, other.model.parameters()))
    assert not other.optimizer.state


def test_what_a_kill_leaves_is_removed_and_never_read(saved) -> None:
    state, folder = saved
    left = folder / "checkpoints" / "step-000000003.tmp"
    left.mkdir()
    (left / "__0_0.distcp").write_bytes(b"half")
    found = newest_sound(folder, "mine")
    assert found is not None
    assert found.rest.step == 2
    advance(state)
    save_sharded(state, folder, ALONE)
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["step-000000002", "step-000000003"]


def test_a_disk_that_is_full_leaves_the_one_before(saved, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    state, folder = saved
    advance(state)
    monkeypatch.setattr(filesystem.FileSystemWriter, "write_data", full)
    with pytest.raises(OSError, match=r"cannot write .*step-000000003 on rank 0: .*No space left"):
        save_sharded(state, folder, ALONE)
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["step-000000001", "step-000000002"]


def test_the_rest_of_the_state_has_a_checksum(saved) -> None:
    _, folder = saved
    path = folder / "checkpoints" / "step-000000002" / "state.json"
    outer = json.loads(path.read_text())
    outer["body"] = outer["body"].replace('"step": 2', '"step": 9')
    path.write_text(json.dumps(outer))
    found = newest_sound(folder, "mine")
    assert found is not None
    assert "the checksum of state.json does not match" in found.passed_over
    assert zlib.crc32(outer["body"].encode()) != outer["crc32"]
