"""Where a recipe was left out, or broke a run, although the model itself works."""

import copy

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import unitscale as us
from unitscale.record import record

# torch's own, where Dynamo looks at what a graph break left, and in forward-mode derivatives.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))


def batch() -> Tensor:
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(1))


class Beside(nn.Module):
    """Uses its second matrix in a function that no compiler looks into."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Parameter(torch.randn(16, 16))
        self.unseen = nn.Parameter(torch.randn(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden(x @ self.seen)

    @torch.compiler.disable
    def hidden(self, x: Tensor) -> Tensor:
        return x @ self.unseen


def test_parameter_that_is_used_after_a_graph_break_is_named():
    model = us.unit_scale(nn.Sequential(nn.Linear(16, 16), Beside()), "fp8")
    model(batch()).sum().backward()
    with pytest.warns(UserWarning, match=r"not in force in 1 \(a parameter of it is used outside"):
        model(batch())
    assert us.coverage(model) < 1.0
    assert "not covered: 1" in str(us.summary(model))


def test_parameter_that_nothing_uses_is_not_named():
    model = us.unit_scale(nn.Sequential(nn.Linear(16, 16), Beside()), "fp8")
    model[1].hidden = lambda x: x
    for _ in range(3):
        model(batch()).sum().backward()
    assert us.summary(model).plain == {}


def test_encoder_of_torch_has_the_same_numerics_in_evaluation():
    """torch computes the whole layer in one op there, in which nothing would be rounded."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    us.unit_scale(layer, "fp8")
    x = batch().view(2, 4, 16)
    layer(x).square().mean().backward()
    layer.eval()
    expected = layer(x)
    with torch.no_grad():
        assert torch.equal(layer(x), expected)
    assert torch.backends.mha.get_fastpath_enabled()
    assert us.coverage(layer) == 1.0


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        torch._dynamo.graph_break()
        return self.b(x).relu()


@pytest.mark.parametrize("recipe", ["fp32-units", "fp8"])
def test_checkpoint_around_a_graph_break(recipe):
    """Measuring steps and others; the gradients are those without the checkpoint."""
    torch.manual_seed(0)
    model = us.unit_scale(Broken(), recipe)
    other = copy.deepcopy(model)
    for _ in range(5):
        checkpoint(model, batch(), use_reentrant=False).sum().backward()
        other(batch()).sum().backward()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_backward_pass_inside_of_a_compiled_function():
    model = us.unit_scale(mlp(), "fp8")

    @torch.compile(backend="eager")
    def step(x: Tensor) -> Tensor:
        loss = model(x).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        step(batch())
    assert all(p.grad is not None for p in model.parameters())
    assert us.coverage(model) == 1.0


def test_hook_on_all_modules_runs_from_the_call_on_in_which_it_is_there():
    model = us.unit_scale(nn.Sequential(nn.Linear(16, 4)), "fp32-units")
    before = model(batch())
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: out * 2)
    try:
        assert torch.equal(model(batch()), before * 4)  # the layer's, and the model's
    finally:
        handle.remove()
    assert torch.equal(model(batch()), before)


def test_forward_mode_derivative_is_that_of_the_plain_model_with_a_warning():
    model = us.unit_scale(nn.Linear(16, 4), "fp8")
    x = batch()
    with forward_ad.dual_level(), torch.no_grad():
        with pytest.warns(UserWarning, match="runs without its recipe in this call"):
            y = model(forward_ad.make_dual(x, x))
        tangent = forward_ad.unpack_dual(y).tangent
    assert torch.allclose(tangent, x @ model.weight.detach().T, atol=1e-5)


def test_recipe_is_not_switched_inside_of_full_precision():
    model = us.unit_scale(mlp(), "fp8")
    with us.full_precision(model), pytest.raises(ValueError, match="runs in full precision now"):
        us.set_recipe(model, "fp8-e4m3")
    assert us.summary(model).recipe == "fp8"


def test_model_that_is_given_back_while_it_is_recorded_is_plain():
    model = mlp()
    plain = copy.deepcopy(model)
    us.unit_scale(model, "fp8")
    model(batch()).sum().backward()
    with record(model, every=1) as recorder:
        us.unscale(model)
        assert torch.equal(model(batch()), plain(batch()))
    assert {"0.linear", "2.linear"} <= {row["name"] for row in recorder.rows}


def test_module_that_is_called_before_its_model_is_rounded():
    model = mlp()
    plain = copy.deepcopy(model)
    us.unit_scale(model, "fp8")
    assert not torch.equal(model[0](batch()), plain[0](batch()))


def test_one_pattern_to_skip_is_not_taken_for_a_list_of_letters():
    with pytest.raises(TypeError, match=r"skip is the string '0'; expected a list, \['0'\]"):
        us.unit_scale(mlp(), "fp8", skip="0")


def test_loss_scale_that_no_model_applies_is_told():
    with pytest.warns(
        UserWarning, match=r"apply_recipe: recipe 'fp16-loss' expects the loss times"
    ):
        us.apply_recipe(mlp(), "fp16-loss")
