"""Checkpoints: what comes back is what went in, bit by bit, or nothing changes."""

import json
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from unitscale.train import CheckpointError
from unitscale.train.checkpoint import TrainState, checksum, load_checkpoint, save_checkpoint
from unitscale.train.loss_scale import LossScale


def new_state(width: int = 4) -> TrainState:
    """A model with tied weights and an optimizer that has made no step."""
    model = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.5), nn.Linear(width, width))
    model[2].weight = model[0].weight
    return TrainState(model, torch.optim.AdamW(model.parameters(), lr=0.1), LossScale())


def advance(state: TrainState) -> list[torch.Tensor]:
    """One step on random data; the parameters after it."""
    state.optimizer.zero_grad()
    state.model(torch.randn(8, state.model[0].in_features)).square().mean().backward()
    state.optimizer.step()
    state.step += 1
    return [p.detach().clone() for p in state.model.parameters()]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint after two steps."""
    state = new_state()
    advance(state)
    advance(state)
    state.loss_scale = LossScale(scale=8.0, is_dynamic=True, clean_steps=5)
    save_checkpoint(state, tmp_path / "checkpoint.safetensors")
    return tmp_path / "checkpoint.safetensors"


def test_loaded_state_goes_on_bit_identically(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    state = new_state()
    advance(state)
    save_checkpoint(state, path)
    expected = [
        advance(state),
        advance(state),
    ]  # on random data and dropout, from torch's generator
    torch.manual_seed(99)
    other = new_state()
    load_checkpoint(other, path)
    assert other.step == 1
    for tensors in expected:
        for a, b in zip(advance(other), tensors, strict=True):
            assert torch.equal(a, b)


def test_loss_scale_comes_back(saved: Path) -> None:
    state = new_state()
    load_checkpoint(state, saved)
    assert state.loss_scale == LossScale(scale=8.0, is_dynamic=True, clean_steps=5)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def overwrite(path: Path) -> None:
    path.write_bytes(b"not a checkpoint")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, overwrite, empty, flip_a_bit])
def test_damaged_checkpoint_changes_nothing(saved: Path, damage: Callable[[Path], None]) -> None:
    damage(saved)
    content = saved.read_bytes()
    state = new_state()
    before = [p.detach().clone() for p in state.model.parameters()]
    with pytest.raises(
        CheckpointError, match=r"checkpoint\.safetensors is not a checkpoint of this"
    ):
        load_checkpoint(state, saved)
    assert saved.read_bytes() == content
    assert state.step == 0
    assert not state.optimizer.state
    assert all(torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True))


def test_checkpoint_of_another_shape_says_which(saved: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"0\.weight has the shape \[4, 4\], and not \[8, 8\]"
    ):
        load_checkpoint(new_state(width=8), saved)


def test_checkpoint_of_another_model_says_what_differs(saved: Path) -> None:
    model = nn.Linear(4, 4)
    state = TrainState(model, torch.optim.AdamW(model.parameters()), LossScale())
    with pytest.raises(CheckpointError, match=r"lacks or adds 0\.bias"):
        load_checkpoint(state, saved)


def test_every_region_of_the_file_is_covered(saved: Path) -> None:
    """A bit in the length of the header, in each of its bytes, and here and there in the data."""
    content = saved.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    own = new_state()
    load_checkpoint(own, saved)
    for place in [*range(header), *range(header, len(content), 37)]:
        broken = bytearray(content)
        broken[place] ^= 1 << place % 8
        saved.unlink()  # a file system may write out at once what a file is overwritten with
        saved.write_bytes(broken)
        try:
            load_checkpoint(new_state(), saved)
        except CheckpointError:
            continue
        pytest.fail(f"byte {place} of {len(content)} was changed, and nothing said so")


def rewritten(path: Path, change: Callable[[dict], None], *, checksummed: bool) -> None:
    """The checkpoint with another state in its metadata."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    rest = json.loads(metadata["state"])
    change(rest)
    metadata["state"] = json.dumps(rest)
    if checksummed:
        metadata["crc32"] = str(checksum(tensors, metadata["state"]))
    save_file(tensors, path, metadata)


@pytest.mark.parametrize("key", ["step", "loss_scale", "units", "log", "run"])
def test_checksum_covers_the_state(saved: Path, key: str) -> None:
    rewritten(saved, lambda rest: rest.update({key: [7]}), checksummed=False)
    with pytest.raises(CheckpointError, match="its checksum does not match"):
        load_checkpoint(new_state(), saved)


def test_checkpoint_of_another_run_is_refused(saved: Path) -> None:
    rewritten(saved, lambda rest: rest.update(run="another"), checksummed=True)
    with pytest.raises(CheckpointError, match="of another configuration or another text"):
        load_checkpoint(new_state(), saved)


def test_checkpoint_of_an_earlier_version_is_named(saved: Path) -> None:
    save_file({"rng": torch.zeros(3)}, saved, {"step": "1", "crc32": "0"})
    with pytest.raises(CheckpointError, match="or is of an earlier version"):
        load_checkpoint(new_state(), saved)


def test_full_disk_is_an_error_of_the_system(saved: Path, tmp_path: Path) -> None:
    """safetensors has its own error for it. A limit on the size of files stands for the disk."""
    content = saved.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    state = new_state()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*checkpoint"):
            save_checkpoint(state, saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == [saved.name]
