"""A scaled model whose `forward` another library wraps stays scaled, is copied and given back."""

import copy
import functools
import inspect
import pickle
import types
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import unitscale as us
from unitscale.formats import E4M3FN, round_to
from unitscale.units.forward import session_of
from unitscale.units.wrapped import reaches

accelerate = pytest.importorskip("accelerate")
from accelerate.hooks import (  # noqa: E402  (after the skip)
    ModelHook,
    add_hook_to_module,
    remove_hook_from_module,
)
from accelerate.utils import extract_model_from_parallel  # noqa: E402
from accelerate.utils.operations import convert_outputs_to_fp32  # noqa: E402


class Small(nn.Module):
    """One product and a function, so that its rounded result can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 8, bias=False)
        with torch.no_grad():  # from 1/20 to 1/4, see `rounded`
            self.layer.weight.copy_(self.layer.weight.sign() * (self.layer.weight.abs() + 0.05))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x))


def with_wraps(model: nn.Module) -> None:
    run = model.forward

    @functools.wraps(run)
    def forward(*args: object, **kwargs: object) -> object:
        return run(*args, **kwargs)

    model.forward = forward


def as_method(model: nn.Module) -> None:
    run = model.forward
    model.forward = types.MethodType(lambda self, *args: run(*args), model)


def as_partial(model: nn.Module) -> None:
    model.forward = functools.partial(model.forward)


def for_autocast(model: nn.Module) -> None:
    """What Accelerate does to a model with mixed_precision; the cast itself is off here."""
    model._original_forward = model.forward
    casting = torch.autocast("cpu", enabled=False)
    model.forward = convert_outputs_to_fp32(casting(model.forward))


def for_autocast_and_back(model: nn.Module) -> None:
    """What `accelerator.unwrap_model(model, keep_fp32_wrapper=False)` leaves."""
    for_autocast(model)
    extract_model_from_parallel(model, keep_fp32_wrapper=False)


def with_a_hook(model: nn.Module) -> None:
    add_hook_to_module(model, ModelHook())


def twice(model: nn.Module) -> None:
    with_a_hook(model)
    for_autocast(model)


WAYS = (
    with_wraps,
    as_method,
    as_partial,
    for_autocast,
    for_autocast_and_back,
    with_a_hook,
    twice,
)


def batch() -> Tensor:
    x = torch.rand(4, 16, generator=torch.Generator().manual_seed(1)) * 4 - 2
    return x.sign() * (x.abs() + 0.25)


def rounded(model: Small, x: Tensor) -> Tensor:
    """What the model gives with operands in E4M3.

    At any power of two as the scale: none here saturates, and none is subnormal (below 1/64 RMS).
    """
    x, w = (round_to(t * 16, E4M3FN) / 16 for t in (x, model.layer.weight.detach()))
    return torch.relu(x @ w.T)


def assert_in_force(model: nn.Module, x: Tensor) -> None:
    """The model gives the product of rounded operands, and is known to."""
    found = model(x).detach()
    plain = torch.relu(x @ model.layer.weight.detach().T)
    # A sum of sixteen float32 products below 0.75 in any order: 16 * 16 * 0.75 * 2^-24.
    assert torch.allclose(found, rounded(model, x), rtol=0, atol=2e-5), "operands are not rounded"
    assert not torch.allclose(found, plain, rtol=0, atol=2e-3)
    assert session_of(model) is not None
    assert us.coverage(model) == 1.0


def assert_plain(model: nn.Module, x: Tensor) -> None:
    """The model gives the plain product to the bit, and is known as plain."""
    assert torch.equal(model(x), nn.functional.relu(x @ model.layer.weight.T))
    assert session_of(model) is None


def test_the_checks_fail_on_the_other_kind_of_model() -> None:
    with pytest.raises(AssertionError, match="not rounded"):
        assert_in_force(Small(), batch())
    with pytest.raises(AssertionError):
        assert_plain(us.unit_scale(Small(), "fp8"), batch())


@pytest.mark.parametrize(
    ("wrap", "has_run"), [*((wrap, False) for wrap in WAYS), (for_autocast, True), (twice, True)]
)
def test_a_wrapped_model_stays_scaled_and_is_given_back(
    wrap: Callable[[nn.Module], None], has_run: bool
) -> None:
    model, x = us.unit_scale(Small(), "fp8"), batch()
    if has_run:
        model(x)
    wrap(model)
    assert_in_force(model, x)
    with us.full_precision(model):
        assert torch.equal(model(x), nn.functional.relu(x @ model.layer.weight.T))
    us.set_recipe(model, "fp32-units")
    assert torch.equal(model(x), nn.functional.relu(x @ model.layer.weight.T))
    us.set_recipe(model, "fp8")
    assert_in_force(model, x)
    us.unscale(model)
    assert_plain(model, x)
    us.unit_scale(model, "fp8")
    assert_in_force(model, x)


@pytest.mark.parametrize("wrap", WAYS)
def test_a_copy_of_a_wrapped_model_has_its_own_weights_and_session(
    wrap: Callable[[nn.Module], None],
) -> None:
    model, x = us.unit_scale(Small(), "fp8"), batch()
    wrap(model)
    model(x)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.layer.weight.mul_(-1)
    assert_in_force(copied, x)
    assert session_of(copied) is not session_of(model)
    us.unscale(model)
    assert_plain(model, x)
    assert_in_force(copied, x)
    again = copy.deepcopy(model)
    with torch.no_grad():
        again.layer.weight.mul_(-1)
    assert_plain(again, x)
    us.unscale(copied)
    assert_plain(copied, x)


def test_a_shallow_copy_of_a_wrapped_model_is_given_back_alone() -> None:
    model, x = us.unit_scale(Small(), "fp8"), batch()
    for_autocast(model)
    model(x)
    copied = copy.copy(model)
    us.unscale(copied)
    assert session_of(copied) is None
    assert_in_force(model, x)


def test_a_hook_of_accelerate_comes_and_goes() -> None:
    model, x = us.unit_scale(Small(), "fp8"), batch()
    with_a_hook(model)
    model(x)
    remove_hook_from_module(model)
    assert_in_force(model, x)
    with_a_hook(model)
    us.unscale(model)
    remove_hook_from_module(model)
    assert_plain(model, x)


def test_a_wrapper_sees_the_signature_of_the_plain_forward() -> None:
    model = us.unit_scale(Small(), "fp8")
    with_wraps(model)
    assert list(inspect.signature(model.forward).parameters) == ["x"]


def test_a_pickle_of_a_wrapped_model_is_plain_and_says_so() -> None:
    model, x = us.unit_scale(Small(), "fp8"), batch()
    as_partial(model)
    with pytest.warns(UserWarning, match="pickled without its recipe 'fp8'"):
        content = pickle.dumps(model)
    assert_plain(pickle.loads(content), x)
    us.unscale(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_plain(pickle.loads(pickle.dumps(model)), x)


def test_a_forward_that_has_nothing_to_do_with_ours_is_scaled_as_the_models_own() -> None:
    model, x = us.unit_scale(Small(), "fp8"), batch()
    as_partial(model)
    us.unscale(model)
    model.forward = lambda x: Small.forward(model, x)
    us.unit_scale(model, "fp8")
    assert_in_force(model, x)


def test_what_a_function_may_call_is_seen_through_wrappers() -> None:
    def target() -> None: ...

    def closing() -> None:
        target()

    assert reaches(closing, target)
    assert reaches(functools.partial(closing), target)
    assert not reaches(lambda: None, target)
