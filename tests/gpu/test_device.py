"""What every device must give. On a CPU these are run with the others, on a GPU with `-m gpu`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from marks import slow
from train.tiny import text_corpus, tiny_config
from unitscale import apply_recipe, unit_scale
from unitscale.formats import FORMATS, round_to
from unitscale.gemm.executor import fp8_products
from unitscale.recipes import RECIPES
from unitscale.train import train
from unitscale.train.run_log import read_log

# These plain models take a recipe of units as one written unit-scaled would: cast as it is.
pytestmark = pytest.mark.filterwarnings("ignore:.*rounds tensors at their units")

CPU = torch.device("cpu")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, or the first GPU where there is one."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return torch.device(request.param)


def numbers() -> Tensor:
    """Float32 values over all exponents, halves between neighbours, zeros, infinities and NaN."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(20_000, generator=generator) * 2.0 ** torch.randint(
        -60, 40, (20_000,), generator=generator
    )
    halves = torch.arange(-2048, 2048) / 64.0
    return torch.cat([spread, halves, torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan])])


def bits(x: Tensor) -> Tensor:
    """The bits of float32 values on the CPU, all NaNs alike."""
    return torch.where(x.isnan(), torch.nan, x).cpu().view(torch.int32)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_rounding_gives_the_bits_of_the_cpu(name: str, device: torch.device) -> None:
    x, fmt = numbers(), FORMATS[name]
    for options in ({}, {"rounding": "stochastic", "seed": 3}, {"saturate": False}):
        expected = round_to(x, fmt, **options)  # type: ignore[arg-type]
        found = round_to(x.to(device), fmt, **options)  # type: ignore[arg-type]
        assert torch.equal(bits(found), bits(expected)), options
    if fmt.mantissa_bits < 23:
        assert not torch.equal(bits(round_to(x, fmt)), bits(x))


def product(executor: str, device: torch.device) -> tuple[Tensor, nn.Linear, Tensor]:
    """The output of an FP8 linear layer by this executor, the layer and its input."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 32, bias=False).to(device, torch.bfloat16)
    x = torch.randn(48, 64).to(device, torch.bfloat16)
    model = apply_recipe(layer, replace(RECIPES["fp8"], executor=executor), inner="eager")  # type: ignore[arg-type]
    return model(x), layer, x


def test_scaled_mm_equals_the_emulated_product(device: torch.device) -> None:
    if device.type == "cuda" and not (ability := fp8_products(device)).has:
        pytest.skip(ability.why)
    mine, layer, x = product("scaled_mm", device)
    reference, _, _ = product("emulated", device)
    # Both multiply the same FP8 values. A Hopper GPU aligns the 32 products that it adds at a time
    # to the largest and keeps 13 bits below it; the result is rounded to BF16 in both, to half of
    # 2^-7 of it.
    left, right = (round_to(t.float(), FORMATS["E4M3FN"]).abs() for t in (x, layer.weight))
    bound = (64 / 32 + 1) * 2.0**-13 * (left @ right.T) + 2.0**-7 * reference.float().abs()
    assert ((mine - reference).float().abs() <= bound).all()
    plain = x @ layer.weight.T
    assert not ((mine - plain).float().abs() <= bound).all()


def gradients(device: torch.device, recipe: str | None) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of one training step of a small model, at units or plain."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 8))
    model = model.to(device)
    if recipe is not None:
        unit_scale(model, recipe, inner="eager")
    x = torch.randn(16, 32).to(device)
    loss = model(x).square().mean()
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


def test_units_alone_change_no_bit_of_a_step(device: torch.device) -> None:
    plain_loss, plain = gradients(device, None)
    loss, found = gradients(device, "fp32-units")
    assert loss.device.type == device.type
    assert torch.equal(loss, plain_loss)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


@pytest.mark.parametrize("dtype", [slow("fp32"), "bf16"])
def test_a_run_trains_and_resumes_on_the_device(
    dtype: str, device: torch.device, tmp_path: Path
) -> None:
    config = tiny_config(
        recipe="fp8", dtype=dtype, device=str(device), steps=30, checkpoint_every=7, batch_size=8
    )
    corpus = text_corpus(tmp_path)

    def stop(record: dict[str, Any]) -> None:
        if record["step"] == 16:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(config, corpus, tmp_path / "run", on_record=stop)
    result = train(config, corpus, tmp_path / "run", resume=True)
    losses = [r["loss"] for r in read_log(tmp_path / "run" / "log.jsonl") if "loss" in r]
    assert len(losses) == 30
    # Six words carry at most log(7) nats a byte, and log(256) = 5.5 is where a run begins.
    assert result.final_train_loss is not None
    assert result.final_train_loss < 4.5
