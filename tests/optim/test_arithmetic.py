"""`states="fp32"` is torch's step to the bit, in pieces of any size."""

import pytest
import torch
from torch import nn

from unitscale import optim

STEPS = 50
CHUNKS = [7, 4096, None]
SHAPES = {"matrix": (7, 30), "vector": (23,), "number": (), "filter": (3, 2, 3, 3), "none": (0, 4)}


def parameters(dtype=torch.float32, chunk_size=7):
    """Parameters of all kinds of shape, one whose memory is not in order among them.

    The largest has more than one piece, however large the pieces are.
    """
    generator = torch.Generator().manual_seed(0)
    made = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    made["turned"] = torch.randn(6, 11, generator=generator).t()
    made["channels"] = torch.randn(2, 4, 3, 3, generator=generator).to(
        memory_format=torch.channels_last
    )
    if chunk_size != 7:
        made["large"] = torch.randn(70, 130, generator=generator)
        made["wide"] = torch.randn(2, 5000, generator=generator)
    return [(name, nn.Parameter(value.to(dtype))) for name, value in made.items()]


def fill_gradients(named, step, dtype=None):
    """The same gradients for every set of parameters; some steps leave one out."""
    generator = torch.Generator().manual_seed(step)
    for position, (_, parameter) in enumerate(named):
        grad = torch.randn(parameter.shape, generator=generator) * 10.0 ** (position % 5 - 3)
        parameter.grad = None if (step + position) % 11 == 10 else grad.to(parameter.dtype)


def assert_same_run(ours, theirs, *, steps=STEPS, named=None):
    """Step both, and compare parameters and moments in every bit after each step."""
    mine, other = named
    for step in range(steps):
        for side in (mine, other):
            fill_gradients(side, step)
        ours.step()
        theirs.step()
        for (name, left), (_, right) in zip(mine, other, strict=True):
            assert torch.equal(left, right), f"{name} differs after step {step + 1}"
            for key, value in theirs.state[right].items():
                if key != "step" and value is not None:
                    assert torch.equal(ours.state[left][key], value), f"{key} of {name}"


ADAM = [
    {},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "maximize": True, "betas": (0.8, 0.95), "eps": 1e-6},
]
SGD = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    {"momentum": 0.9, "dampening": 0.5, "maximize": True},
]
RUNS = [
    *[("AdamW", options) for options in ADAM],
    *[("Adam", options) for options in ADAM],
    *[("SGD", options) for options in SGD],
]


@pytest.mark.parametrize("chunk_size", CHUNKS)
@pytest.mark.parametrize(("kind", "options"), RUNS)
def test_fp32_is_torchs_step_to_the_bit(kind, options, chunk_size):
    mine, other = (parameters(chunk_size=chunk_size) for _ in range(2))
    options = {"weight_decay": 0.0, **options}
    ours = getattr(optim, kind)(
        mine, 0.01, rules=None, states="fp32", chunk_size=chunk_size, **options
    )
    theirs = getattr(torch.optim, kind)(other, lr=0.01, foreach=False, **options)
    assert_same_run(ours, theirs, named=(mine, other))


def test_assert_same_run_sees_the_other_order_of_operations():
    mine, other = parameters(), parameters()
    ours = optim.AdamW(mine, 0.01, rules=None, states="fp32")
    ours.update = other_order
    with pytest.raises(AssertionError, match=r"differs after step|exp_avg"):
        assert_same_run(ours, torch.optim.AdamW(other, lr=0.01), named=(mine, other))


def other_order(values, grad, group, step):
    """`b1 m + (1 - b1) g` in the place of `lerp_`."""
    weight, (first, second) = values
    beta1, beta2 = group["betas"]
    weight.mul_(1 - group["lr"] * group["weight_decay"])
    first.mul_(beta1).add_(grad, alpha=1 - beta1)
    second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = (second.sqrt() / (1 - beta2**step) ** 0.5).add_(group["eps"])
    weight.addcdiv_(first, denominator, value=-(group["lr"] / (1 - beta1**step)))


def test_defaults_without_rules_are_torchs():
    mine, other = parameters(), parameters()
    ours = optim.AdamW(mine, 1e-3, rules=None, states="fp32")
    assert_same_run(ours, torch.optim.AdamW(other), named=(mine, other), steps=3)


def test_a_model_by_rules_and_in_fp32_states_is_the_same_without_states():
    model, twin = (nn.Linear(8, 4) for _ in range(2))
    twin.load_state_dict(model.state_dict())
    kinds = {"weight": "hidden", "bias": "bias"}
    ours = optim.AdamW(model, 0.1, kinds=kinds, weight_decay=0.1, states="fp32")
    plain = optim.AdamW(twin, 0.1, kinds=kinds, weight_decay=0.1)
    named = list(model.named_parameters()), list(twin.named_parameters())
    assert_same_run(ours, plain, named=named, steps=10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_fp32_of_a_narrow_parameter_is_a_float32_run_seen_in_its_dtype(dtype, chunk_size):
    """BF16 beside the other half of its float32, FP16 beside a float32 master."""
    mine = parameters(dtype, chunk_size)
    masters = [(name, nn.Parameter(value.detach().float())) for name, value in mine]
    ours = optim.AdamW(mine, 0.01, rules=None, states="fp32", chunk_size=chunk_size)
    theirs = torch.optim.AdamW(masters, lr=0.01)
    for step in range(10):
        fill_gradients(mine, step)
        for (_, narrow), (_, master) in zip(mine, masters, strict=True):
            master.grad = None if narrow.grad is None else narrow.grad.float()
        ours.step()
        theirs.step()
    for (name, narrow), (_, master) in zip(mine, masters, strict=True):
        if dtype == torch.float16:
            assert torch.equal(narrow, master.to(dtype)), name
            assert torch.equal(ours.state[narrow]["master"], master), name
        else:
            state = ours.state[narrow]
            whole = joined(narrow, state["remainder"], state["remainder_high"])
            assert torch.equal(whole, master), name


def joined(upper, low, high):
    """The float32 of two halves, of which the lower is signed and in two bytes."""
    lower = low.to(torch.int32) + 256 * high.to(torch.int32)
    return ((upper.view(torch.int16).to(torch.int32) << 16) + lower).view(torch.float32)
