"""Batches that a model does not take: one line that names the batch, and the model as it was."""

import pytest
import torch
from torch import nn

import unitscale as us
from growth import tiny
from unitscale.anatomy.output import called

LONG = "\n".join(f"line {number} of a long story" for number in range(50))


class Refusing(nn.Module):
    """A model that raises what it is given."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error, self.weight = error, nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise self.error


@pytest.fixture(scope="module")
def pair():
    small = tiny.llama(num_hidden_layers=1)
    return small, us.growth.apply(small, us.growth.plan(small, width=24))


@pytest.mark.parametrize("in_float32", [False, True])
def test_a_long_error_of_the_model_is_one_line_that_names_the_batch(in_float32):
    model = Refusing(RuntimeError(LONG)).to(torch.bfloat16)
    with pytest.raises(ValueError, match="growth: the batch") as caught:
        called(model, torch.ones(3, 2), "growth", in_float32=in_float32)
    assert str(caught.value) == (
        "growth: the batch (argument 0 (3, 2)) does not fit the model, which raised RuntimeError: "
        "line 0 of a long story"
    )
    with pytest.raises(ValueError, match=r"compress: batch 4 \(x \(3, 2\)\) does not fit"):
        called(model, {"x": torch.ones(3, 2)}, "compress", number=4)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("alloc_cpu.cpp:1: no memory")])
def test_too_little_memory_is_no_fault_of_the_batch(error):
    with pytest.raises(type(error)) as caught:
        called(Refusing(error), torch.ones(3, 2), "growth")
    assert caught.value is error


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"input_ids": torch.zeros(0, 7).long()}, r"is empty in input_ids \(0, 7\)"),
        ({"input_ids": torch.zeros(2, 0).long()}, r"is empty in input_ids \(2, 0\)"),
        (torch.zeros(0, 7).long(), r"is empty in argument 0 \(0, 7\)"),
        ({"input_ids": torch.full((1, 3), 10**6)}, r"\(input_ids \(1, 3\)\) does not fit .*Index"),
        ({"ids": torch.zeros(1, 3).long()}, r"\(ids \(1, 3\)\) does not fit the model, .*"),
        ({}, r"\(dict\) does not fit the model, which raised ValueError"),
    ],
)
def test_verify_refuses_what_the_models_do_not_take(batch, message, pair):
    training = [module.training for model in pair for module in model.modules()]
    for verify, who in ((us.growth.verify, "growth"), (us.compress.verify, "compress")):
        with pytest.raises(ValueError, match=f"{who}: the batch {message}") as caught:
            verify(*pair, batch)
        assert "\n" not in str(caught.value)
    assert [module.training for model in pair for module in model.modules()] == training


def test_a_batch_among_several_is_named_by_its_number(pair):
    small = pair[0]
    good = {"input_ids": tiny.batch_for(small)["input_ids"]}
    bad = {"input_ids": torch.full((1, 3), 10**6)}
    for measure in (us.compress.measure, us.compress.layer_losses):
        with pytest.raises(ValueError, match=r"compress: batch 1 \(input_ids \(1, 3\)\) does not"):
            measure(small, [good, bad])
