"""What is not finite stays so in every operand, or a GradScaler would miss an overflow."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unitscale as us
from gemm.edges import values_and_gradients
from unitscale import gemm
from unitscale.formats import E2M1FN, E4M3FN, FORMATS
from unitscale.gemm import ProductFormats
from unitscale.gemm.operand import Given, Use, amax_of, encode, pack, take
from unitscale.gemm.rounded import round_value
from unitscale.recipes import Recipe, uniform

WITH_NAN = ("E4M3FN", "E5M2", "E4M3FNUZ", "E5M2FNUZ")
WITHOUT = ("E2M1FN", "E2M3FN", "E3M2FN")
GIVEN = ("cast", "unit", "constant log2=-2", "delayed")
COMPUTED = ("current", "current row", "current rceil 1x16", "current 16x16")
BLOCKS = ("MX_E4M3FN current floor 1x32", "MX_E2M1FN current floor 1x32", "NVFP4 current 1x16")
TEXTS = [f"{fmt} {scale}" for fmt in WITH_NAN + WITHOUT for scale in GIVEN + COMPUTED[:1]]
TEXTS += [f"E4M3FN {scale}" for scale in COMPUTED[1:]] + list(BLOCKS)
TEXTS += ["E5M2 cast stochastic", "E4M3FN constant log2=1 hadamard=16", "E2M1FN unit stochastic"]
each_text = pytest.mark.parametrize("text", TEXTS)
each_value = pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan], ids=str)


def with_one(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(24, 32)
    x[3, 5] = value
    return x.to(dtype)


def scale_of_before(x: Tensor, text: str) -> Given | None:
    """What earlier steps gave, for delayed scales: of a step in which all was finite."""
    return Given(amax_of(x), torch.tensor(0.5)) if "delayed" in text else None


@each_text
@each_value
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_it_stays_in_the_values_and_in_what_is_packed(text, value, dtype):
    use, x = Use(text), with_one(value, dtype)
    encoded = encode(x, use, scale_of_before(x, text))
    for held in (encoded, pack(encoded, use)):
        for work in (torch.float32, dtype):
            assert not take(held, use, work)[3, 5].isfinite()


@pytest.mark.parametrize("fmt", WITH_NAN)
@pytest.mark.parametrize("scale", GIVEN)
def test_others_at_a_given_scale_are_as_they_were(fmt, scale):
    use, x = Use(f"{fmt} {scale}"), with_one(torch.inf)
    found = take(encode(x, use, scale_of_before(x, scale)), use, torch.float32)
    x[3, 5] = 0.0
    want = take(encode(x, use, scale_of_before(x, scale)), use, torch.float32)
    found[3, 5] = 0.0
    assert torch.equal(found, want)


@pytest.mark.parametrize("fmt", WITH_NAN + WITHOUT)
@pytest.mark.parametrize("scale", GIVEN)
def test_what_is_finite_saturates(fmt, scale):
    use, x = Use(f"{fmt} {scale}"), with_one(3e38)
    encoded = encode(x, use, scale_of_before(x, scale))
    top = FORMATS[fmt].max * (1.0 if encoded.scale is None else encoded.scale.item())
    for held in (encoded, pack(encoded, use)):
        assert take(held, use, torch.float32)[3, 5] == top


def formats_of(text: str, executor: str) -> ProductFormats:
    result = "BF16" if executor == "bf16" else None
    return ProductFormats.of(text, text, result, executor=executor)


def lost(product, plain, operands: list[Tensor], grad: Tensor) -> list[Tensor]:
    """Where plain products are not finite and these are: of the output and each gradient."""
    got = values_and_gradients(product, operands, grad)
    want = values_and_gradients(plain, operands, grad)
    return [a.isfinite() & ~b.isfinite() for a, b in zip(got, want, strict=True)]


LINEAR = [(text, "emulated") for text in TEXTS]
LINEAR += [("E4M3FN cast", "bf16"), ("E2M1FN unit", "bf16")]
LINEAR += [("E4M3FN unit", "scaled_mm"), ("E4M3FN current", "scaled_mm")]


@pytest.mark.parametrize(("text", "executor"), LINEAR, ids=str)
@pytest.mark.parametrize("place", ["input", "weight", "gradient"])
def test_no_product_of_a_layer_loses_it(text, executor, place):
    x, weight, grad = torch.randn(24, 32), torch.randn(24, 32), torch.randn(24, 24)
    bad = with_one(torch.inf)
    x, weight = (bad if place == "input" else x), (bad if place == "weight" else weight)
    grad = bad[:, :24] if place == "gradient" else grad
    product = partial(gemm.linear, formats=formats_of(text, executor))
    assert not any(map(torch.any, lost(product, F.linear, [x, weight], grad)))


@pytest.mark.parametrize("text", ["E4M3FN cast", "E2M1FN cast", "E5M2 constant log2=3"])
def test_convolutions_attention_and_other_ops_do_not_lose_it_either(text):
    formats, bad = formats_of(text, "emulated"), with_one(torch.inf)
    conv = partial(gemm.conv1d, formats=formats)
    operands = [bad.T[None], torch.randn(6, 32, 3)]
    assert not any(map(torch.any, lost(conv, F.conv1d, operands, torch.randn(1, 6, 22))))
    attend = partial(gemm.scaled_dot_product_attention, formats=formats)
    plain, q = F.scaled_dot_product_attention, torch.randn(1, 24, 32)
    for operands in ([bad[None], q, q], [q, q, bad[None]]):
        assert not any(map(torch.any, lost(attend, plain, operands, torch.randn(1, 24, 32))))
    assert not round_value(bad, text)[3, 5].isfinite()  # at the edges of what `gemm` lacks


@pytest.mark.parametrize("text", ["E4M3FN unit", "E2M1FN cast", "E4M3FN constant log2=2"])
def test_compiled_as_in_eager_code(text):
    use = Use(text)

    def packed(x: Tensor) -> Tensor:
        return take(pack(encode(x, use), use), use, torch.float32)

    torch._dynamo.reset()
    compiled = torch.compile(packed, backend="aot_eager")
    for x in (with_one(torch.inf), with_one(3e38), with_one(torch.nan)):
        torch.testing.assert_close(compiled(x), packed(x), rtol=0, atol=0, equal_nan=True)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # 2026-11-29
def test_inductor_keeps_it():
    """One compiled loop reads, compares and rounds."""
    torch._dynamo.reset()
    product = partial(gemm.linear, formats=formats_of("E4M3FN unit", "emulated"))
    operands = [torch.randn(24, 32), torch.randn(24, 32)]
    grad = with_one(torch.inf)[:, :24]
    assert not any(map(torch.any, lost(torch.compile(product), F.linear, operands, grad)))


def test_under_vmap():
    use, x = Use("E4M3FN unit"), torch.stack([with_one(torch.inf), with_one(1.0)])
    found = torch.vmap(lambda lane: take(encode(lane, use), use, torch.float32))(x)
    assert not found[0, 3, 5].isfinite()
    assert found[1].isfinite().all()


def test_an_activation_is_no_operand_and_saturates():
    """-Inf of a mask is no overflow; a softmax of scores held in eight bits must not be NaN."""
    scores = torch.tensor([1.0, -torch.inf, 2.0])
    assert round_value(scores, "E4M3FN").tolist() == [1.0, -448.0, 2.0]


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


OWN = {
    "E2M1FN cast": Recipe(name="four bits", rules=uniform(E2M1FN, E2M1FN)),
    "FP8 cast": Recipe(name="cast", rules=uniform(E4M3FN, E4M3FN)),
}


@pytest.mark.filterwarnings("ignore:units were not measured")
@pytest.mark.parametrize("name", ["fp8-none", "fp8-delayed", "fp8-cscale", "fp8", "mxfp8", *OWN])
def test_a_grad_scaler_sees_an_overflow(name):
    """At a loss scale of 2^20 the gradient of a float16 output is Inf."""
    torch._dynamo.reset()
    scale = us.unit_scale if name == "fp8" else us.apply_recipe
    model = scale(Two(), OWN.get(name, name))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = model(torch.randn(4, 32)).float().sum()
        if step == 0:  # a history for what is delayed
            (loss * 1e-3).backward()
            continue
        before = [p.detach().clone() for p in model.parameters()]
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert all(map(torch.equal, before, model.parameters()))
    assert scaler.get_scale() == 2.0**18
