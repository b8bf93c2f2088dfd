"""Which kernels devices have, by what their drivers say of them."""

import pytest
import torch

from unitscale.gemm import ProductFormats, capability, choose, executor
from unitscale.gemm.capability import Machine, kernel_of, machine_of, shortfall
from unitscale.gemm.executor import explain, explain_products, plan
from unitscale.recipes import RECIPES

GPU = torch.device("cuda", 0)
FP32, BF16 = torch.float32, torch.bfloat16
FN = ("E4M3FN", "E4M3FN")
FNUZ = ("E4M3FNUZ", "E5M2FNUZ")
L40 = Machine("L40", "cuda", (8, 9), cuda=(12, 8))
H100 = Machine("H100", "cuda", (9, 0), cuda=(12, 9))
OLD_CUDA = H100._replace(cuda=(12, 8))
B200 = Machine("B200", "cuda", (10, 0), cuda=(13, 0))
A100 = Machine("A100", "cuda", (8, 0), cuda=(12, 9))
MI300 = Machine("MI300X", "rocm", chip="gfx942")
MI350 = Machine("MI350X", "rocm", chip="gfx950")
CPU = Machine("cpu", "cpu")
LONG = "1x128 @ 128x128"


@pytest.mark.parametrize(
    ("machine", "kernel", "names", "out", "reason"),
    [
        (L40, "tensor", FN, FP32, None),
        (A100, "tensor", FN, FP32, "A100 has compute capability 8.0; FP8 products need 8.9"),
        (L40, "row", FN, BF16, None),
        (L40, "row", FN, FP32, "results are BF16 here, and the recipe's are torch.float32"),
        (OLD_CUDA, "row", FN, FP32, "results are BF16 here"),
        (H100, "row", FN, FP32, None),
        (B200, "row", FN, BF16, None),
        (B200, "row", FN, FP32, "results are BF16 here"),
        (H100, LONG, FN, BF16, None),
        (OLD_CUDA, LONG, FN, BF16, "need CUDA 12.9; torch is built with 12.8"),
        (L40, LONG, FN, BF16, "8.9; products with scales for 1x128 @ 128x128 need 9.0"),
        (B200, LONG, FN, BF16, "are for 9.x alone"),
        (H100, "1x32", FN, BF16, "MX products need 10.0"),
        (H100, "1x16", FN, BF16, "NVFP4 products need 10.0"),
        (B200, "1x32", FN, FP32, None),
        (B200, "1x16", ("E2M1FN", "E2M1FN"), BF16, None),
        (B200._replace(cuda=(12, 6)), "1x16", FN, BF16, "need CUDA 12.8; torch is built with 12.6"),
        (H100, "tensor", FNUZ, BF16, "no FNUZ formats; MI300 has"),
        (MI300, "tensor", FNUZ, BF16, None),
        (MI300, "tensor", FN, BF16, "gfx942; E4M3FN need gfx95 or gfx12"),
        (MI350, "tensor", FNUZ, BF16, "gfx950; E4M3FNUZ and E5M2FNUZ need gfx94"),
        (MI350, "row", FN, BF16, None),
        (MI350, "row", FN, FP32, "results are BF16 here"),
        (MI350, "1x32", FN, BF16, "is not tried"),
        (MI350, LONG, FN, BF16, "torch has no products with scales"),
        (CPU, "tensor", FN, FP32, None),
        (CPU, "row", FN, FP32, None),
        (CPU, "1x32", FN, FP32, "a CPU has scales for tensors and rows alone"),
        (Machine("mps", "mps"), "tensor", FN, BF16, "mps has no FP8 products"),
        (Machine("cuda:0", "absent"), "row", FN, BF16, "torch sees no cuda:0"),
    ],
)
def test_machines_have_the_kernels_that_are_documented(machine, kernel, names, out, reason):
    found = shortfall(kernel, names, out, machine)
    assert (found is None) if reason is None else (reason in str(found))


@pytest.fixture
def with_gpu(monkeypatch):
    """A function that puts a GPU into this machine, as far as `executor` can see."""

    def put(machine: Machine) -> None:
        monkeypatch.setattr(executor, "machine_of", lambda device: machine)
        has = machine.capability >= (8, 9) or machine.chip == "gfx950"
        monkeypatch.setattr(
            executor, "fp8_products", lambda d: executor.Ability(has, f"{machine.name} says so")
        )
        monkeypatch.setattr(
            executor, "quick_bf16_products", lambda d: executor.Ability(True, "BF16 is quick")
        )

    return put


@pytest.mark.parametrize(
    ("machine", "recipe", "dtype", "ways"),
    [
        (H100, "fp8-rowwise", BF16, ("row", "row", "row")),
        # In a BF16 model a product that is emulated is a BF16 product.
        (H100, "fp8-rowwise-hp", BF16, ("row", "row", "emulated")),
        (H100, "fp8-rowwise", FP32, ("row", "row", "row")),
        (H100, "fp8-block", BF16, (LONG, LONG, "1x128 @ 1x128")),
        (B200, "mxfp8", BF16, ("1x32", "1x32", "1x32")),
        (B200, "nvfp4", BF16, ("1x16", "1x16", "1x16")),
        (MI300, "fp8-amax-fnuz", BF16, ("tensor", "tensor", "tensor")),
        (L40, "fp8", FP32, ("tensor", "tensor", "tensor")),
    ],
)
def test_auto_takes_the_kernels_of_a_gpu(with_gpu, machine, recipe, dtype, ways):
    with_gpu(machine)
    formats = ProductFormats.from_gemm(RECIPES[recipe].main, "auto")
    settled = choose(formats, dtype, GPU)
    assert settled.executor == "scaled_mm"
    assert plan(settled, dtype, GPU) == ways
    found = explain_products(formats, dtype, GPU)
    assert [one.by.removeprefix("scaled_mm ") for one in found] == list(ways)
    assert explain(formats, dtype, GPU).has


@pytest.mark.parametrize(
    ("machine", "recipe", "reason"),
    [
        (H100, "mxfp8", "MX products need 10.0"),
        (H100, "nvfp4", "NVFP4 products need 10.0"),
        (H100, "fp8-amax-fnuz", "no FNUZ formats"),
        (MI300, "fp8", "MI300X says so"),
        (B200, "fp8-block", "9.x alone"),
        (B200, "mxfp4", "cuBLAS has no MXFP4"),
        (B200, "mxfp6", "six bits"),
        (L40, "fp8-rowwise", "results are BF16 here"),
    ],
)
def test_auto_goes_without_what_a_gpu_has_not(with_gpu, machine, recipe, reason):
    """FNUZ formats were sent to GPUs that do not have them."""
    with_gpu(machine)
    formats = ProductFormats.from_gemm(RECIPES[recipe].main, "auto")
    assert choose(formats, FP32, GPU).executor == "emulated"
    assert reason in explain(formats, FP32, GPU).why
    for one in explain_products(formats, FP32, GPU):
        assert one.by == "emulated"
    with pytest.raises(ValueError, match=f"'scaled_mm' cannot run.*{reason}.*use 'auto'"):
        choose(formats._replace(executor="scaled_mm"), FP32, GPU)


def test_one_product_alone_may_have_a_kernel(with_gpu):
    """The others say why not: nothing is emulated in silence."""
    with_gpu(H100)
    formats = ProductFormats.of("E4M3FN", None, "BF16", executor="auto")
    assert choose(formats, FP32, GPU).executor == "scaled_mm"
    found = explain_products(formats, FP32, GPU)
    assert [one.by for one in found] == ["scaled_mm tensor", "emulated", "emulated"]
    assert "as is by E4M3FN" in found[1].why
    assert "grad_input emulated: " in explain(formats, FP32, GPU).why


def test_product_in_bf16_beside_kernels(with_gpu):
    """Of the recipe that keeps grad_weight in BF16, in a float32 model with BF16 results."""
    with_gpu(H100)
    formats = ProductFormats.from_gemm(RECIPES["fp8-rowwise-hp"].main, "auto")
    formats = formats._replace(result="BF16")
    assert plan(choose(formats, FP32, GPU), FP32, GPU) == ("row", "row", "bf16")


def test_tensors_without_data_are_asked_for_the_rules_alone():
    if torch.cuda.is_available():
        pytest.skip("for a machine without CUDA")
    assert machine_of(GPU).kind == "absent"
    formats = ProductFormats.from_gemm(RECIPES["mxfp8"].main, "scaled_mm")
    assert plan(formats, BF16, GPU) == ("1x32", "1x32", "1x32")


@pytest.mark.parametrize("hip", [None, "7.0"])
def test_machine_is_read_from_the_driver(monkeypatch, hip):
    class Properties:
        gcnArchName = "gfx950:sramecc+"  # noqa: N815  (torch's name)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.version, "cuda", "12.9")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    capability.gpu.cache_clear()
    try:
        found = machine_of(GPU)
    finally:
        capability.gpu.cache_clear()
    if hip:
        assert found == Machine("some GPU", "rocm", chip="gfx950")
    else:
        assert found == Machine("some GPU", "cuda", (9, 0), cuda=(12, 9))


@pytest.mark.parametrize(
    ("recipe", "words"), [("fp8", "in BF16 as it is"), ("fp8-current", "not exact in BF16")]
)
def test_model_in_bf16_without_fp8(recipe, words):
    """Operands with scales of their own are multiplied in float32 there, which is not BF16."""
    formats = ProductFormats.from_gemm(RECIPES[recipe].main, "auto")
    found = explain(formats, BF16, torch.device("cpu"))
    assert not found.has
    assert words in found.why


def test_every_recipe_has_a_kernel_or_a_reason():
    for recipe in RECIPES.values():
        for _, (left, right) in recipe.main.pairs():
            texts = (str(x) if x.rounds else None for x in (left, right))
            found = kernel_of(*texts)
            assert (found.kernel is None) == bool(found.why)
