"""Devices and dtypes of a run by name, and what is said where there is none."""

import pytest
import torch

from train.tiny import tiny_config
from unitscale.train.device import DTYPES, find_device, resolve
from unitscale.train.initial import initial_state


@pytest.fixture(params=[0, 1])
def gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many GPUs torch says it sees."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    return request.param


def test_auto_is_a_gpu_where_there_is_one(gpus: int) -> None:
    assert resolve("auto") == ("cuda" if gpus else "cpu")
    assert find_device("cpu") == torch.device("cpu")


def test_device_that_is_not_there_is_named(gpus: int) -> None:
    message = rf"'cuda:1', and torch sees {gpus or 'no'} CUDA device.*use --device cpu"
    with pytest.raises(ValueError, match=message):
        find_device("cuda:1")
    if gpus:
        assert find_device("cuda:0") == torch.device("cuda", 0)


@pytest.mark.parametrize("name", ["tpu", "meta", "mps", "", "cuda:x"])
def test_name_that_is_no_device_of_ours_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected cpu, cuda or cuda:NUMBER"):
        find_device(name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_model_and_optimizer_are_of_the_dtype_and_begin_at_the_same_values(dtype: str) -> None:
    model = initial_state(tiny_config(dtype=dtype)).model
    plain = initial_state(tiny_config()).model
    for parameter, start in zip(model.parameters(), plain.parameters(), strict=True):
        assert parameter.dtype == DTYPES[dtype]
        assert torch.equal(parameter, start.to(DTYPES[dtype]))


@pytest.mark.parametrize("recipe", ["fp32", "fp8"])
def test_loss_of_a_bf16_model_has_all_its_digits(recipe: str) -> None:
    ids = torch.randint(0, 256, (4, 16))
    losses = []
    for dtype in ("fp32", "bf16"):
        model = initial_state(tiny_config(recipe=recipe, dtype=dtype)).model
        losses.append(model(ids, ids))
    assert losses[1].dtype == torch.float32
    assert losses[1] != losses[1].bfloat16().float()
    # About 10 roundings to 2^-9 on the way to a logit of about 1, averaged over 64 positions.
    assert abs(losses[1] - losses[0]) < 10 * 2.0**-9
