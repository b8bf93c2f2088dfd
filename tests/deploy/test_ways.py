"""A model as people have it: compiled, of few bits, masked, frozen, tied, copied, pickled.

Each is quantized as the plain model is, to the bit, or refused in one line and left as it was.
"""

import copy
import os
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import unitscale as us
from deploy.small import inputs
from unitscale.deploy.quantized import quantized_layers
from unitscale.units.forward import session_of


class Model(nn.Module):
    """Layers alone, one that is called twice, and a read-out that is tied to its table."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last = (nn.Linear(16, 16) for _ in range(3))
        self.again = self.twice
        self.table = nn.Embedding(16, 16)
        self.lm_head = nn.Linear(16, 16, bias=False)
        self.lm_head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.twice(self.first(x).relu()).relu())
        return self.lm_head(self.last(x))


def plain() -> Model:
    torch.manual_seed(0)
    return Model().eval()


def quantized(model, recipe="int8", x=None):
    return us.deploy.quantize(model, recipe, [inputs() if x is None else x])


def output(model, x=None):
    with torch.no_grad():
        return model(inputs() if x is None else x)


def compiled_before(model):
    model.compile(backend="eager")
    output(model)
    return model


def compiled_by_layers(model):
    model.first.compile(backend="eager")
    model.twice.compile(backend="eager")
    output(model)
    return model


def unscaled(model):
    output(us.unit_scale(model, "fp8"))
    return us.unscale(model)


def copied(model):
    return copy.deepcopy(model)


def copied_after_a_call(model):
    output(model)
    return copy.deepcopy(model)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def frozen(model):
    return model.requires_grad_(False)


def partly_frozen(model):
    model.first.weight.requires_grad_(False)
    return model


def in_training(model):
    return model.train()


def permanently_masked(model):
    prune.l1_unstructured(model.first, "weight", amount=0)
    output(model)
    return us.compress.make_permanent(model)


def hooked(model):
    model.last.register_forward_hook(lambda module, args, out: out)
    return model


WAYS = [
    compiled_before,
    compiled_by_layers,
    unscaled,
    copied,
    copied_after_a_call,
    pickled,
    frozen,
    partly_frozen,
    in_training,
    permanently_masked,
    hooked,
]


@pytest.fixture(scope="module")
def expected():
    return quantized(plain())


def assert_same_codes(one, other):
    """Fail unless two models have the same layers, codes and scales."""
    found, wanted = quantized_layers(one), quantized_layers(other)
    assert found.keys() == wanted.keys()
    for path, layer in wanted.items():
        for name, buffer in layer.named_buffers():
            assert found[path].get_buffer(name).equal(buffer), (path, name)


def test_assert_same_codes_fails_for_other_weights_and_other_layers(expected):
    torch.manual_seed(1)
    for other in (Model(), plain()):
        other = quantized(other, x=2 * inputs())
        with pytest.raises(AssertionError):
            assert_same_codes(other, expected)
    with pytest.raises(AssertionError):
        assert_same_codes(us.deploy.quantize(plain(), "int8", [inputs()], skip="last"), expected)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_each_is_quantized_as_the_plain_model(way, expected):
    model = way(plain())
    training = model.training
    trains = {name: p.requires_grad for name, p in model.named_parameters()}
    assert quantized(model) is model
    assert_same_codes(model, expected)
    assert output(model).equal(output(expected))
    assert model.training == training
    assert model.lm_head.weight is model.table.weight
    assert model.again is model.twice
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == trains[name]


@pytest.mark.parametrize(
    "after",
    [copied, pickled, in_training, compiled_before, lambda m: torch.compile(m, backend="eager")],
)
def test_what_is_done_to_a_quantized_model_changes_no_bit(after, expected):
    model = after(copy.deepcopy(expected))
    assert output(model).equal(output(expected))
    assert_same_codes(getattr(model, "_orig_mod", model), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_few_bits_are_those_of_the_same_values(dtype):
    model = plain().to(dtype)
    wide = copy.deepcopy(model).float()
    quantized(model, x=inputs().to(dtype))
    quantized(wide, x=inputs().to(dtype).float())
    for path, layer in quantized_layers(wide).items():
        found = quantized_layers(model)[path]
        assert found.weight_codes.equal(layer.weight_codes)
        assert found.weight_scale.equal(layer.weight_scale)
        assert found.weight.dtype == found.bias.dtype == dtype
    assert output(model, inputs().to(dtype)).dtype == dtype


def test_units_of_a_scaled_model_stand_for_a_calibration():
    model = us.unit_scale(plain(), "fp8-serve")
    output(model)
    us.deploy.quantize(model, "fp8-tensor")
    assert session_of(model) is None
    assert set(quantized_layers(model)) == {"first", "twice", "last"}
    assert output(model).isfinite().all()


def test_a_wrapped_model_is_quantized_inside_of_it(expected):
    model = torch.compile(plain(), backend="eager")
    output(model)
    assert output(quantized(model)).equal(output(expected))
    assert_same_codes(model._orig_mod, expected)


def test_a_layer_that_is_wrapped_alone_is_refused_without_a_calibration_too():
    with pytest.raises(ValueError, match=r"wrapped alone by torch\.compile"):
        us.deploy.quantize(wrapped_inside(plain()), "int8-weight")


def scaled(model):
    output(us.unit_scale(model, "fp8"))
    return model


def wrapped_inside(model):
    model.first = torch.compile(model.first, backend="eager")
    return model


def scaled_inside(model):
    us.unit_scale(model.first, "fp8")
    output(model)
    return model


def masked(model):
    for layer in (model.first, model.twice, model.last):
        prune.l1_unstructured(layer, "weight", amount=0.5)
    return model


def parametrized(model):
    for layer in (model.first, model.twice, model.last):
        parametrizations.weight_norm(layer)
    return model


def already(model):
    return quantized(model)


def on_meta(model):
    return model.to("meta")


REFUSED = [
    (scaled, "call us.unscale"),
    (wrapped_inside, "'first._orig_mod' is wrapped alone by torch.compile, which would go on"),
    (scaled_inside, "'first' is scaled alone; call us.unscale on it first"),
    (masked, r"first: its weight is masked .*us.compress.make_permanent\(model\) first"),
    (parametrized, r"a parametrization makes its weight: torch.nn.utils.parametrize.remove_"),
    (already, "quantized already"),
    (on_meta, "has no memory yet"),
]


@pytest.mark.parametrize(
    ("way", "message"), REFUSED, ids=lambda part: getattr(part, "__name__", "")
)
def test_what_cannot_be_quantized_is_refused_and_stays(way, message):
    model = way(plain())
    before = None if way is on_meta else output(model)
    modules = list(model.modules())
    with pytest.raises(ValueError, match=message) as caught:
        quantized(model)
    assert "\n" not in str(caught.value)
    assert len(modules) == len(list(model.modules()))
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    assert before is None or output(model).equal(before)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda m: prune.l1_unstructured(m.first, "weight", amount=0.5),
            "its weight is masked (torch.nn.utils.prune): us.compress.make_permanent(model) first",
        ),
        (
            lambda m: prune.l1_unstructured(m.first, "bias", amount=0.5),
            "its bias is masked (torch.nn.utils.prune): torch.nn.utils.prune.remove(module, "
            "'bias') first",
        ),
        (
            lambda m: parametrizations.weight_norm(m.first),
            "a parametrization makes its weight: torch.nn.utils.parametrize."
            "remove_parametrizations(module, 'weight') first",
        ),
    ],
)
def test_one_layer_that_keeps_full_precision_says_what_to_do(change, why):
    model = plain()
    change(model)
    quantized(model)
    assert us.deploy.quantization(model).kept["first"] == why
    assert set(quantized_layers(model)) == {"twice", "last"}


@pytest.mark.slow
def test_a_quantized_model_computes_the_same_in_another_process(tmp_path, expected):
    (tmp_path / "in.pickle").write_bytes(pickle.dumps((expected.state_dict(), inputs())))
    code = """
        import pickle, sys, pathlib
        import torch
        import unitscale as us
        from deploy.test_ways import output, plain, quantized
        folder = pathlib.Path(sys.argv[1])
        state, x = pickle.loads((folder / "in.pickle").read_bytes())
        model = quantized(plain(), x=3 * x)
        model.load_state_dict(state)
        (folder / "out.pickle").write_bytes(pickle.dumps(output(model, x)))
    """
    line = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    subprocess.run(line, check=True, env=environment)
    assert pickle.loads((tmp_path / "out.pickle").read_bytes()).equal(output(expected))
