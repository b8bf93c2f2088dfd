"""Quantized layers: what they store, what they compute, and what becomes of them."""

import copy
import io
import pickle

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

import unitscale as us
from deploy.small import Gated, inputs
from unitscale import nn as unn
from unitscale.deploy import SCHEMES, QuantizedLayer
from unitscale.formats import E4M3FN, E5M2, INT8, Codec

VALUES = torch.randn(100, 1000, generator=torch.Generator().manual_seed(0))


def quantized(recipe, model=None, **options):
    torch.manual_seed(0)
    model = model or Gated()
    return us.deploy.quantize(model, recipe, [inputs()], **options)


@pytest.mark.parametrize("recipe", ["fp8-weight", "fp8-tensor", "fp8-e5m2-weight"])
def test_stored_weights_are_the_clamped_cast(recipe):
    """Against ml_dtypes: 0 mismatches of 100,000 values, among them every code and its ties."""
    fmt, dtype = (
        (E5M2, ml_dtypes.float8_e5m2) if "e5m2" in recipe else (E4M3FN, ml_dtypes.float8_e4m3fn)
    )
    layer = nn.Linear(1000, 100)
    values = torch.tensor(sorted({v for v in fmt.values() if np.isfinite(v)}))
    ties = (values[1:] + values[:-1]) / 2
    with torch.no_grad():
        layer.weight.copy_(VALUES)
        layer.weight[0, : len(values)] = values / 64
        layer.weight[1, : len(ties)] = ties / 64
    found = QuantizedLayer(layer, SCHEMES[recipe], input_scale=torch.ones(1))
    steps = (layer.weight / found.weight_scale).detach().clamp(-fmt.max, fmt.max).numpy()
    expected = steps.astype(dtype).view(np.uint8)
    assert np.array_equal(found.weight_codes.view(torch.uint8).numpy(), expected)
    assert len(np.unique(expected)) > 200


@pytest.mark.parametrize("recipe", ["fp8-tensor", "int8-weight", "mxfp8", "nvfp4"])
def test_a_quantized_model_is_copied_and_pickled(recipe):
    """To the bit, with the dtypes of its codes and scales; in a file too."""
    model, x = quantized(recipe), inputs()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    ways = (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    )
    for found in ways:
        assert found(x).equal(model(x))
        for name, buffer in model.named_buffers():
            assert found.get_buffer(name).dtype == buffer.dtype
            assert found.get_buffer(name).data_ptr() != buffer.data_ptr()


def test_stored_integers_are_rounded_to_even_and_clamped():
    layer = nn.Linear(1000, 100)
    with torch.no_grad():
        layer.weight.copy_(VALUES)
    found = QuantizedLayer(layer, SCHEMES["int8-weight"])
    assert found.weight_codes.dtype == torch.int8
    steps = np.rint((layer.weight / found.weight_scale).detach().numpy()).clip(-127, 127)
    assert np.array_equal(found.weight_codes.numpy(), steps)
    assert found.weight_codes.abs().amax(1).eq(127).all()


@pytest.mark.parametrize(
    ("fmt", "expected"),
    [(E4M3FN, (31.5, 31.5, 31.5)), (E5M2, (25.6, 25.6, 25.6)), (INT8, (39.5, 21.4, 3.5))],
    ids=str,
)
def test_an_outlier_costs_integers_and_not_floats(fmt, expected):
    """SQNR of a Gaussian with one outlier at 1, 8 and 64 times its amax, within 0.5 dB.

    The table's amax is 4.6 RMS, so its outliers are set by that, which a sample need not have.
    """
    for factor, wanted in zip((1, 8, 64), expected, strict=True):
        x = VALUES.flatten().clamp(-4.6, 4.6).clone()
        rest = x[1:].clone()
        x[0] = 4.6 * factor
        error = (Codec(format=fmt).round(x) - x)[1:]
        db = 20 * torch.log10(rest.norm() / error.norm()).item()
        assert abs(db - wanted) <= 0.5, (factor, db)


@pytest.mark.parametrize("recipe", SCHEMES)
def test_a_layer_computes_with_what_it_stores(recipe):
    layer = nn.Linear(64, 24)
    x = torch.randn(5, 64)
    scale = torch.tensor([0.01]) if SCHEMES[recipe].is_static else None
    found = QuantizedLayer(layer, SCHEMES[recipe], input_scale=scale)
    weight = Codec.round(SCHEMES[recipe].weight, layer.weight)
    assert torch.equal(found.weight, weight)
    assert not torch.equal(found.weight, layer.weight)
    given = found.rounded(x)
    assert torch.equal(given, x) == (SCHEMES[recipe].input is None)
    assert torch.equal(found(x), nn.functional.linear(given, weight, layer.bias))


def test_sizes():
    """3.9 times smaller and more, scales included, at the widths of real layers."""
    layer = nn.Linear(384, 384, bias=False)
    before = layer.weight.numel() * 4
    for recipe, least in (("fp8", 3.9), ("int8", 3.9), ("mxfp8", 3.87), ("nvfp4", 7.1)):
        scale = torch.ones(1) if SCHEMES[recipe].is_static else None
        found = QuantizedLayer(layer, SCHEMES[recipe], input_scale=scale)
        state = found.state_dict()
        state = [x for name, x in state.items() if name != "_extra_state"]
        assert sum(x.numel() * x.element_size() for x in state) == found.nbytes
        assert before / found.nbytes >= least, recipe


@pytest.mark.parametrize("recipe", ["fp8", "int8", "mxfp8", "nvfp4"])
def test_saved_and_loaded_to_the_bit(recipe):
    model = quantized(recipe)
    expected = model(inputs())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(inputs()), expected)
    assert torch.equal(copy.deepcopy(model)(inputs()), expected)
    torch.manual_seed(1)
    other = us.deploy.quantize(Gated(), recipe, [inputs() * 3])
    assert not torch.equal(other(inputs()), expected)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(inputs()), expected)


def test_a_change_of_dtype_leaves_codes_and_scales():
    model = quantized("fp8").bfloat16()
    layer = model.down_proj
    assert layer.weight_codes.dtype == torch.float8_e4m3fn
    assert layer.weight_scale.dtype == layer.input_scale.dtype == torch.float32
    assert layer.bias.dtype == layer.weight.dtype == torch.bfloat16
    assert model(inputs().bfloat16()).dtype == torch.bfloat16
    same = quantized("fp8")
    assert torch.equal(same.down_proj.weight_codes.float(), layer.weight_codes.float())


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.Conv1d(4, 6, 3, dilation=2, bias=False),
        nn.Conv3d(4, 6, (1, 3, 3), padding="same"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_convolutions_keep_their_arguments(layer):
    x = torch.randn(2, 4, *[7] * (layer.weight.dim() - 2))
    found = QuantizedLayer(layer, SCHEMES["int8-weight"])
    plain = copy.deepcopy(layer)
    with torch.no_grad():
        plain.weight.copy_(found.weight)
    assert torch.equal(found(x), plain(x))


def test_a_layer_written_unit_scaled_keeps_its_factor():
    torch.manual_seed(0)
    layer = unn.Linear(64, 8, constraint=None)
    x = torch.randn(5, 64)
    found = QuantizedLayer(layer, SCHEMES["fp8-weight"])
    plain = copy.deepcopy(layer)
    with torch.no_grad():
        plain.weight.copy_(found.weight)
    assert torch.equal(found(x), plain(x))
    assert not torch.equal(found(x), layer(x))
    assert found.kind == "unitscale.nn.Linear"


def test_the_weight_of_gpt2s_layer_is_turned():
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(6, 4)
    x = torch.randn(3, 4)
    found = QuantizedLayer(layer, SCHEMES["fp8-weight"])
    assert found.weight_codes.shape == (6, 4)
    assert found.weight_scale.shape == (6, 1)
    expected = x @ found.weight.t() + layer.bias
    assert torch.allclose(found(x), expected, rtol=0, atol=1e-6)
    assert (found(x) - layer(x)).abs().max() < 0.01


def test_gradients_pass_to_the_input():
    layer = quantized("fp8").down_proj
    x = torch.randn(3, 32, requires_grad=True)
    layer(x).sum().backward()
    assert torch.equal(x.grad, layer.weight.sum(0).expand(3, 32))
    assert layer.bias.grad is not None


def test_compiled_as_in_eager_code():
    model = quantized("fp8")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(inputs()), model(inputs()))
    assert "E4M3FN row" in str(model)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("saved", "here"),
    [
        ("fp8-e5m2", "fp8"),
        ("fp8", "int8"),
        ("int8", "int8-fp8"),
        ("fp8", "fp8-weight"),
        ("fp8-tensor", "fp8"),
        ("mxfp8-weight", "mxfp8"),
    ],
)
def test_a_state_of_another_scheme_is_refused(saved, here, strict, assign):
    model, state = quantized(here), quantized(saved).state_dict()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"state of 'gate_proj' has weights .*expected weights"):
        model.load_state_dict(state, strict=strict, assign=assign)
    after = model.state_dict()
    assert all(torch.equal(after[name].float(), x.float()) for name, x in before.items())


def test_a_state_without_a_scheme_is_refused():
    model, state = quantized("fp8"), quantized("fp8").state_dict()
    model.load_state_dict(state, assign=True)
    del state["gate_proj._extra_state"]
    with pytest.raises(ValueError, match="'gate_proj' has no known ones; expected weights E4M3FN"):
        model.load_state_dict(state, strict=False)


def test_a_state_of_scales_that_are_powers_of_two_is_of_the_same_scheme():
    model, other = quantized("fp8"), quantized("fp8", power_of_two=True)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(inputs()), other(inputs()))
