"""What would quietly not be quantized is refused by name, and the model stays as it was."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune, spectral_norm, weight_norm

import unitscale as us
from deploy.small import inputs
from unitscale.deploy.quantized import quantized_layers

X = inputs()


class Held(nn.Module):
    """Two layers that are called by what `hold` makes of them."""

    def __init__(self, hold):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
        self.order = hold(self.a, self.b)

    def forward(self, x):
        order = self.order.values() if isinstance(self.order, dict) else self.order
        for layer in order:
            x = layer(x)
        return x


HOLDERS = {
    "list": lambda a, b: [a, b],
    "dict": lambda a, b: {"a": a, "b": b},
    "partial": lambda a, b: (partial(a), partial(b)),
    "call": lambda a, b: [a.__call__, b.__call__],
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
@pytest.mark.parametrize("recipe", ["int8", "fp8-dynamic"])
def test_layers_that_are_called_from_elsewhere_are_refused(hold, recipe):
    model = Held(hold)
    before = model(X)
    with pytest.raises(ValueError, match="'a' is called by another reference than its place"):
        us.deploy.quantize(model, recipe, [X])
    with pytest.raises(ValueError, match=r"'a' is also held by 'order'.*or skip=\['a'\]"):
        us.deploy.quantize(model, "fp8-weight")
    assert not quantized_layers(model)
    assert torch.equal(model(X), before)
    assert "forward" not in vars(model.a)


def test_layers_in_a_module_list_are_not():
    model = Held(lambda a, b: nn.ModuleList([a, b]))
    before = model(X)
    us.deploy.quantize(model, "int8", [X])
    assert not torch.equal(model(X), before)


def test_a_reference_that_nobody_calls_is_no_fault():
    model = nn.Sequential(nn.Linear(16, 16))
    model.known = [model[0]]
    us.deploy.quantize(model, "fp8-dynamic", [X])
    assert list(quantized_layers(model)) == ["0"]


def test_batches_are_run_until_each_replacement_was_called():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    runs = []
    model.register_forward_pre_hook(lambda *_: runs.append(1))
    us.deploy.quantize(model, "fp8", [X] * 5)
    assert len(runs) == 5 + 1
    with pytest.raises(ValueError, match="'0' is also held by 'bound'"):
        us.deploy.quantize(Bound(), "fp8-dynamic", [X])


class Bound(nn.Sequential):
    """Goes around the hooks of its layer."""

    def __init__(self):
        super().__init__(nn.Linear(16, 16))
        self.bound = self[0].forward

    def forward(self, x):
        return self.bound(x)


def scaled(layer):
    own = layer.forward
    layer.forward = lambda x: 3 * own(x)
    return layer


def pruned(layer):
    return prune.random_unstructured(layer, "weight", 0.5)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (scaled, "it has a forward of its own, which a replacement would not have"),
        (weight_norm, "a hook makes its weight of weight_g, weight_v"),
        (spectral_norm, "a hook makes its weight of weight_orig"),
        (
            pruned,
            "its weight is masked (torch.nn.utils.prune): us.compress.make_permanent(model) first",
        ),
    ],
)
def test_a_layer_that_is_more_than_its_class_keeps_full_precision(change, why):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), change(nn.Linear(16, 16))).eval()
    expected = model[1](X)
    us.deploy.quantize(model, "fp8", [X])
    assert us.deploy.quantization(model).kept == {"1": why}
    assert torch.equal(model[1](X), expected)


def test_a_layer_that_is_asked_for_what_only_a_plain_one_has():
    model = nn.Sequential(nn.Linear(16, 16))
    model[0].register_buffer("gain", torch.ones(1))
    model[0].register_forward_pre_hook(lambda module, args: (args[0] * module.gain,))
    with pytest.raises(ValueError, match=r"with its layers replaced .* AttributeError: .*'gain'"):
        us.deploy.quantize(model, "fp8", [X])
    assert type(model[0]) is nn.Linear


def test_hooks_are_removed_by_their_handles():
    model = nn.Sequential(nn.Linear(16, 16))
    calls = []
    handles = [
        model[0].register_forward_hook(lambda *_: calls.append("forward")),
        model[0].register_full_backward_hook(lambda *_: calls.append("backward")),
    ]
    us.deploy.quantize(model, "fp8", [X])
    calls.clear()
    model(X.clone().requires_grad_()).sum().backward()
    assert calls == ["forward", "backward"]
    for handle in handles:
        handle.remove()
    model(X)
    assert len(calls) == 2


def test_the_input_may_be_named():
    class Named(nn.Sequential):
        def forward(self, x):
            return self[0](input=x)

    model = us.deploy.quantize(Named(nn.Linear(16, 16)), "fp8", [X])
    assert torch.equal(model(X), model[0](X))


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 16)

    def forward(self, x, mask=None):
        q = self.layer(x)[None]
        return F.scaled_dot_product_attention(q, q, q, attn_mask=mask)


@pytest.mark.parametrize("part", ["attention", "softmax"])
def test_a_row_that_is_masked_whole_is_zero_as_in_torch(part):
    mask = torch.ones(1, 4, 4, dtype=torch.bool).tril()
    mask[0, 1] = False
    model = Attending()
    plain = model(X, mask)
    assert not plain[0, 1].any()
    us.deploy.quantize(model, "fp8", [X], also=(part,))
    found = model(X, mask)
    assert found.isfinite().all()
    assert not found[0, 1].any()
    # Two roundings of at most 2**-4 each, of values and of probabilities.
    assert (found - plain).norm() < 0.125 * plain.norm()


def test_a_part_that_the_model_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"also=\('gelu',\) met nothing on the calibration"):
        us.deploy.quantize(Attending(), "fp8", [X], also=("gelu", "softmax"))


def test_without_batches_the_first_call_tells():
    model = us.deploy.quantize(Attending(), "fp8-dynamic", also=("gelu",))
    with pytest.warns(UserWarning, match=r"also=\('gelu',\) rounded nothing in the first call"):
        model(X)
    model(X)


class Wide(nn.Module):
    """A layer whose output leaves float16 once its weight is rounded up."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16, bias=False)
        nn.init.constant_(self.layer.weight, 1.07)

    def forward(self, x):
        return self.layer(x)


def test_an_output_that_is_no_longer_finite_is_refused():
    """E4M3 at a power of two rounds 1.07 to 1.125: 3,760 x 16 x 1.125 is beyond 65,504."""
    model = Wide().half()
    x = torch.full((1, 16), 3760.0).half()
    assert model(x).isfinite().all()
    with pytest.raises(ValueError, match="output for calibration batch 0 holds NaN or infinity"):
        us.deploy.quantize(model, "fp8-weight", [x], power_of_two=True)
    assert type(model.layer) is nn.Linear
    us.deploy.quantize(model, "fp8-weight", [x / 2], power_of_two=True)
    assert model(x / 2).isfinite().all()


def test_a_model_that_is_not_finite_itself_is_quantized():
    model = nn.Sequential(nn.Linear(16, 16), Endless())
    us.deploy.quantize(model, "fp8-weight", [X])
    assert list(quantized_layers(model)) == ["0"]


class Endless(nn.Module):
    """Gives infinity, as of what is masked."""

    def forward(self, x):
        return x.masked_fill(x > 0, torch.inf)
