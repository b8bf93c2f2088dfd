"""The kernels of `scaled_mm` on real devices: what they give is what is emulated."""

import pytest
import torch

from unitscale import gemm
from unitscale.gemm import ProductFormats
from unitscale.gemm.executor import obstacle, plan
from unitscale.recipes import RECIPES

EVERYWHERE = ("fp8", "fp8-current", "fp8-delayed", "fp8-rowwise", "fp8-rowwise-hp")
ON_GPUS = (*EVERYWHERE, "fp8-block", "mxfp8", "mxfp8-rceil", "nvfp4", "nvfp4-units")
CASES = [("cpu", name) for name in EVERYWHERE] + [
    pytest.param("cuda", name, marks=pytest.mark.gpu) for name in ON_GPUS
]


@pytest.mark.parametrize(("device", "name"), CASES)
@pytest.mark.parametrize(("m", "n", "k"), [(256, 384, 512), (31, 40, 60), (1, 16, 17)])
def test_kernels_give_what_is_emulated(device, name, m, n, k):
    """In a BF16 model. A result is rounded to BF16 once, by 2**-9 of itself; fast accumulation on
    Hopper keeps 14 bits of a sum. Both are far below 2**-6, and one misplaced scale far above."""
    where = torch.device(device)
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    formats = ProductFormats.from_gemm(RECIPES[name].main, "scaled_mm")
    if reason := obstacle("scaled_mm", formats, torch.bfloat16, where):
        pytest.skip(reason)
    assert set(plan(formats, torch.bfloat16, where)) - {"emulated", "bf16"}
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    rows = torch.logspace(-3, 3, m).unsqueeze(1)  # so that a scale in the wrong place is seen
    x, weight, g = draw(m, k) * rows, draw(n, k), draw(m, n) / rows
    found = []
    for by in ("scaled_mm", "emulated"):
        torch.manual_seed(3)
        leaves = [t.to(where, torch.bfloat16).requires_grad_() for t in (x, weight)]
        output = gemm.linear(*leaves, formats=formats._replace(executor=by))
        output.backward(g.to(where, torch.bfloat16))
        found.append([output.detach(), *(leaf.grad for leaf in leaves)])
    for one, other in zip(*found, strict=True):
        rowwise = (one - other).float().norm(dim=1)
        assert (rowwise <= 2.0**-6 * other.float().norm(dim=1) + 1e-30).all()
