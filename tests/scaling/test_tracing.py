"""What Dynamo, AOTAutograd, Inductor and export make of the primitive and of factors."""

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

import unitscale
from unitscale.scaling import constraints, factors, scaled

# Inductor imports code that is still compiled with torch.jit.script (torch 2.13, 2026-01).
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


class Capture:
    """A backend that keeps the graph and runs it as it is."""

    def __call__(self, module, example_inputs):
        self.graph = module.graph
        return module.forward

    def calls(self):
        return [node for node in self.graph.nodes if node.op == "call_function"]


def linear(x, weight):
    scales = factors.linear_factors(x.shape[-1], weight.shape[0], x.shape[0])
    y = F.linear(
        scaled(x, bwd=scales.grad_input_scale), scaled(weight, bwd=scales.grad_weight_scale)
    )
    return scaled(y, scales.output_scale)


def assert_compiles(fn, make_args, sizes, *, backend, dynamic, graphs):
    """Same values and gradients as eager for every size, in one graph each, `graphs` in all."""
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(fn, backend=backend, fullgraph=True, dynamic=dynamic)
    for size in sizes:
        args = make_args(size)
        outputs = [call(*args) for call in (compiled, fn)]
        grad = torch.randn_like(outputs[0])
        grads = [torch.autograd.grad(y, args, grad) for y in outputs]
        # Fused kernels may round differently in the last bits of float32.
        torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == graphs


def linear_args(rows):
    return torch.randn(rows, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)


def test_dynamo_shows_one_node_per_call():
    capture = Capture()
    torch.compile(linear, backend=capture, fullgraph=True)(*linear_args(5))
    targets = [node.target for node in capture.calls()]
    assert targets == [scaled, scaled, F.linear, scaled]
    assert scaled is unitscale.scaled is unitscale.scaling.scaled
    factors_seen = [node.args[1:] for node in capture.calls() if node.target is scaled]
    assert factors_seen[-1] == (3**-0.5,)
    assert all(isinstance(f, float) for args in factors_seen for f in args)


def test_dynamo_sees_the_public_name_and_identity():
    capture = Capture()
    x = torch.randn(3)
    y = torch.compile(lambda x: unitscale.scaled(x, 2.0) + 1, backend=capture, fullgraph=True)(x)
    assert torch.equal(y, x * 2 + 1)
    assert capture.calls()[0].target is scaled
    same = torch.compile(lambda x: scaled(x), backend="aot_eager", fullgraph=True)(x)
    assert torch.equal(same, x)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(("dynamic", "graphs"), [(False, 3), (None, 2), (True, 1)])
def test_linear_compiles_with_static_and_dynamic_shapes(backend, dynamic, graphs):
    assert_compiles(linear, linear_args, (5, 6, 7), backend=backend, dynamic=dynamic, graphs=graphs)


def test_linear_compiles_with_inductor():
    assert_compiles(linear, linear_args, (5, 7), backend="inductor", dynamic=True, graphs=1)


def test_assert_compiles_fails_when_shapes_are_made_constant():
    fixed = lambda x, weight: linear(x, weight) * len(range(x.shape[0]))
    with pytest.raises(AssertionError):
        assert_compiles(fixed, linear_args, (5, 6, 7), backend="eager", dynamic=True, graphs=1)


def activations(x):
    scales = factors.activation_factors("leaky_relu", negative_slope=0.2, mult=1.5)
    alpha, beta = constraints.apply_constraint(
        "gmean", scales.output_scale, scales.grad_input_scale
    )
    gate = factors.gated_factors("silu", mult=0.5)
    return scaled(F.leaky_relu(1.5 * scaled(x, bwd=beta), 0.2), alpha * gate.grad_gate_scale)


def softmax(x):
    scales = factors.softmax_factors(x.shape[-1])
    lse = factors.logsumexp_factors(x.shape[-1])
    y = scaled(torch.softmax(scaled(x, bwd=scales.grad_input_scale), -1), scales.output_scale)
    return y + scaled(torch.logsumexp(x, -1, keepdim=True), lse.output_scale)


def attention(x):
    q = x[..., None].expand(*x.shape, 8)
    scales = factors.attention_factors(q.shape[-2], q.shape[-1], is_causal=True, mult=2.0)
    y = torch.softmax(scales.logit_scale * q @ q.mT, -1) @ q
    return scaled(y, scales.output_scale).sum(-1)


def recurrence_and_pooling(x):
    cell = factors.recurrent_factors("lstm", 4, 8, x.shape[0], bias=1.0)
    pool = factors.max_pool_factors(9, 4)
    product = factors.einsum_factors("...i,...i->...", x.shape, x.shape)
    loss = factors.soft_cross_entropy_factors(x.shape[-1], divisor=x.shape[0])
    return scaled(x, cell.emit_scale * pool.output_scale, product.output_scale) * (
        loss.grad_input_scale * factors.bce_with_logits_factors(logit_std=1.0).grad_input_scale
    )


@pytest.mark.parametrize("fn", [activations, softmax, attention, recurrence_and_pooling])
def test_factors_trace_with_symbolic_sizes(fn):
    make_args = lambda size: (torch.randn(4, size, requires_grad=True),)
    assert_compiles(fn, make_args, (5, 7), backend="eager", dynamic=True, graphs=1)


def test_bfloat16_survives_compilation():
    x = torch.randn(64, 64, dtype=torch.bfloat16)
    compiled = torch.compile(lambda x: scaled(x, 0.018257, 3.0), fullgraph=True)
    assert torch.equal(compiled(x), scaled(x, 0.018257, 3.0))


def test_export_keeps_the_value():
    class Model(torch.nn.Module):
        def forward(self, x):
            return scaled(x, 0.5, 3.0)

    x = torch.randn(3, 4)
    program = torch.export.export(Model(), (x,))
    assert torch.equal(program.module()(x), x * 0.5)
