"""Which executor multiplies: by formats, dtype and device."""

import pytest
import torch

from gemm.edges import PRODUCT_FORMATS
from unitscale import gemm
from unitscale.gemm import ProductFormats, choose, executor
from unitscale.gemm.executor import Ability

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
FP8, BF16 = PRODUCT_FORMATS["fp8"], PRODUCT_FORMATS["bf16"]
FP8_TO_BF16 = FP8._replace(result="BF16")


@pytest.fixture
def machine(monkeypatch):
    """A function that says what the machine can do."""

    def able(*, quick_bf16: bool, fp8: bool) -> None:
        monkeypatch.setattr(executor, "quick_bf16_products", lambda d: Ability(quick_bf16, ""))
        monkeypatch.setattr(executor, "fp8_products", lambda d: Ability(fp8, "an old device"))

    return able


@pytest.mark.parametrize(
    ("formats", "dtype", "without", "with_bf16", "with_fp8"),
    [
        # The results of `fp8` in a float32 model are float32: no BF16 product may round them.
        (FP8, torch.float32, "emulated", "emulated", "scaled_mm"),
        (FP8_TO_BF16, torch.float32, "emulated", "bf16", "scaled_mm"),
        # In a BF16 model the emulated products are BF16 products.
        (FP8, torch.bfloat16, "emulated", "emulated", "scaled_mm"),
        (FP8, torch.float64, "emulated", "emulated", "emulated"),
        (FP8_TO_BF16, torch.float64, "emulated", "emulated", "emulated"),
        (BF16, torch.float32, "emulated", "bf16", "bf16"),
        (PRODUCT_FORMATS["fp16"], torch.float32, "emulated", "emulated", "emulated"),
        (PRODUCT_FORMATS["backward only"], torch.float32, "emulated", "emulated", "emulated"),
        (PRODUCT_FORMATS["fp8-current"], torch.float32, "emulated", "emulated", "scaled_mm"),
        (ProductFormats.of("E5M2", "E5M2", "BF16"), torch.float32, "emulated", "bf16", "bf16"),
        (ProductFormats.of("E4M3", "E4M3", "BF16"), torch.float32, "emulated", "bf16", "bf16"),
    ],
)
def test_auto_is_the_fastest_that_keeps_the_promise(
    machine, formats, dtype, without, with_bf16, with_fp8
):
    formats = formats._replace(executor="auto")
    for expected, quick_bf16, fp8 in (
        (without, False, False),
        (with_bf16, True, False),
        (with_fp8, True, True),
    ):
        machine(quick_bf16=quick_bf16, fp8=fp8)
        assert choose(formats, dtype, GPU) == formats._replace(executor=expected)


@pytest.mark.parametrize(
    ("formats", "dtype", "device", "message"),
    [
        (FP8._replace(executor="scaled_mm"), torch.float32, GPU, "on cuda:0: an old device"),
        (BF16._replace(executor="scaled_mm"), torch.float32, CPU, "8-bit formats, not BF16"),
        (FP8._replace(executor="scaled_mm"), torch.float64, CPU, "the model is torch.float64"),
        (
            ProductFormats.of("E5M2", "E5M2", executor="scaled_mm"),
            torch.float32,
            CPU,
            "E5M2 by E5M2",
        ),
        (
            FP8._replace(result="TF32", executor="scaled_mm"),
            torch.float32,
            CPU,
            "no results in TF32",
        ),
        (
            FP8._replace(executor="bf16"),
            torch.float32,
            CPU,
            "results are BF16, and the recipe's are torch.float32",
        ),
        (
            PRODUCT_FORMATS["fp16"]._replace(executor="bf16"),
            torch.float32,
            CPU,
            "does not hold every value of FP16, gradients FP16",
        ),
        (
            PRODUCT_FORMATS["forward only"]._replace(executor="bf16"),
            torch.float32,
            CPU,
            "of E4M3FN, gradients as is",
        ),
        (FP8_TO_BF16._replace(executor="bf16"), torch.float16, CPU, "the model is torch.float16"),
        (
            PRODUCT_FORMATS["fp8-current"]._replace(executor="bf16", result="BF16"),
            torch.float32,
            CPU,
            "a scale of their own",
        ),
    ],
)
def test_executor_that_cannot_run_is_refused(machine, formats, dtype, device, message):
    machine(quick_bf16=False, fp8=False)
    with pytest.raises(ValueError, match=f"{formats.executor}.*{message}.*; use 'auto'"):
        choose(formats, dtype, device)


def test_named_executor_stays(machine):
    machine(quick_bf16=False, fp8=False)
    for name in ("bf16", "emulated"):
        formats = FP8_TO_BF16._replace(executor=name)
        assert choose(formats, torch.float32, CPU) == formats
    assert choose(FP8._replace(executor="scaled_mm"), torch.float32, CPU).executor == "scaled_mm"


@pytest.mark.parametrize(
    ("capability", "fp8", "bf16"),
    [((7, 5), False, False), ((8, 6), False, True), ((8, 9), True, True), ((9, 0), True, True)],
)
def test_cuda_is_judged_by_its_compute_capability(monkeypatch, capability, fp8, bf16):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    for cached in (executor.cuda_fp8_products, executor.cuda_bf16_products):
        cached.cache_clear()
    try:
        assert executor.fp8_products(GPU).has == fp8
        assert executor.quick_bf16_products(GPU).has == bf16
        dotted = ".".join(map(str, capability))
        assert f"some GPU has compute capability {dotted}" in executor.fp8_products(GPU).why
    finally:
        for cached in (executor.cuda_fp8_products, executor.cuda_bf16_products):
            cached.cache_clear()


@pytest.mark.parametrize(("chip", "fp8"), [("gfx942:sramecc+", False), ("gfx950:xnack-", True)])
def test_rocm_is_judged_by_its_chip(monkeypatch, chip, fp8):
    class Properties:
        gcnArchName = chip  # noqa: N815  (torch's name)

    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    executor.cuda_fp8_products.cache_clear()
    try:
        assert executor.fp8_products(GPU).has == fp8
    finally:
        executor.cuda_fp8_products.cache_clear()


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "quick"),
    [(False, False, False), (True, False, True), (False, True, True)],
)
def test_cpu_is_judged_by_its_instructions(monkeypatch, avx512_bf16, amx, quick):
    """AVX-512 alone is not enough: there BF16 products take twice as long as FP32 ones."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    executor.cpu_bf16_products.cache_clear()
    try:
        assert executor.quick_bf16_products(CPU).has == quick
    finally:
        executor.cpu_bf16_products.cache_clear()


def test_other_devices_are_emulated():
    for device in ("mps", "xpu", "meta"):
        assert not executor.fp8_products(torch.device(device)).has
        formats = FP8_TO_BF16._replace(executor="auto")
        assert choose(formats, torch.float32, torch.device(device)).executor == "emulated"


def test_products_without_an_fp8_kernel_get_the_next_best(machine):
    """Batched products and convolutions."""
    machine(quick_bf16=True, fp8=True)
    assert executor.without_fp8(FP8_TO_BF16, torch.float32, GPU) == "bf16"
    assert executor.without_fp8(FP8, torch.float32, GPU) == "emulated"
    a, b = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    forced = FP8._replace(executor="scaled_mm")
    assert torch.equal(gemm.matmul(a, b, formats=forced), gemm.matmul(a, b, formats=FP8))


def test_autocast_decides_the_dtype_that_counts():
    """Inside a BF16 region the results are BF16, so the executor may be."""
    x, weight = torch.randn(4, 8), torch.randn(5, 8)
    formats = FP8._replace(executor="bf16")
    with pytest.raises(ValueError, match=r"the recipe's are torch\.float32"):
        gemm.linear(x, weight, formats=formats)
    with torch.autocast("cpu", torch.bfloat16):
        assert gemm.linear(x, weight, formats=formats).dtype == torch.bfloat16
        scaled = gemm.linear(x, weight, formats=FP8._replace(executor="scaled_mm"))
        assert scaled.dtype == torch.bfloat16
