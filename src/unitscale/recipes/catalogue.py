"""The recipes by name. A suffix says where the scale comes from: none = unit-scaled."""

import re
from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches

from unitscale.formats import (
    BF16,
    E4M3FN,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    FP16,
    MX_E2M1FN,
    MX_E3M2FN,
    MX_E4M3FN,
    NVFP4,
    BlockFormat,
    FloatFormat,
)
from unitscale.formats.granularity import PerAxis, PerBlock, PerTile
from unitscale.recipes.operand import (
    Constant,
    Current,
    Delayed,
    Operand,
    PowerOfTwo,
    RandomHadamard,
    Unit,
)
from unitscale.recipes.recipe import Recipe, uniform
from unitscale.recipes.rule import Gemm, Rule
from unitscale.recipes.true_fp16 import TRUE_FP16, scaled_loss

STATIC_LOSS_SCALE = 2048.0
"""The static loss scale of the paper's FP16 baselines (Blake et al. 2023, character LM)."""

GRADIENT_MARGIN = 3
"""Binades that Perez et al. leave free above the amax of a gradient."""

UNIT_SCALING = "Unit Scaling (Blake et al.)"
BLAKE = "Blake, Orr, Luschi, Unit Scaling, arXiv 2303.11257; units of any model: docs/units.md"
PEREZ = "Perez et al., Training and inference of LLMs using 8-bit floating point, arXiv 2309.17224"
TRANSFORMER_ENGINE = "NVIDIA Transformer Engine, common/recipe"


def full() -> list[Recipe]:
    """Baselines, and casts without a scale."""
    bf16, fp16 = uniform(BF16, BF16, BF16), uniform(FP16, FP16, FP16)
    micikevicius = "Micikevicius et al., Mixed Precision Training, ICLR 2018"
    return [
        Recipe(name="fp32", users="every comparison's baseline"),
        Recipe(
            name="bf16",
            rules=bf16,
            users="most large models",
            source="Kalamkar et al., arXiv 1905.12322",
        ),
        Recipe(name="fp16-none", rules=fp16, users="nobody: what FP16 loses so"),
        Recipe(
            name="fp16-loss",
            rules=fp16,
            loss_scale=STATIC_LOSS_SCALE,
            users="Micikevicius et al. 2018",
            source=micikevicius,
        ),
        Recipe(
            name="fp16-loss-dynamic",
            rules=fp16,
            loss_scale="dynamic",
            users="torch.amp.GradScaler, Apex",
            source=f"{micikevicius}; torch.amp.GradScaler",
        ),
        Recipe(
            name="fp8-none",
            rules=uniform(E4M3FN, E5M2),
            users="nobody: what FP8 loses so",
        ),
        Recipe(
            name="fp8-bf16-none",
            rules=uniform(E4M3FN, E5M2, BF16),
            users="nobody: fp8-none, BF16 out",
        ),
        Recipe(
            name="fp8-e4m3-none",
            rules=uniform(E4M3FN, E4M3FN),
            users="nobody: what E4M3 loses so",
        ),
    ]


def tensorwise() -> list[Recipe]:
    """One scale for each tensor, found from its values of now or of earlier steps."""
    current = Current(power_of_two="rceil")
    return [
        Recipe(
            name="fp8-current",
            rules=uniform(E4M3FN, E5M2, scale=Current()),
            users="torchao, Transformer Engine",
            source=f"torchao.float8 'tensorwise'; {TRANSFORMER_ENGINE}: Float8CurrentScaling",
        ),
        Recipe(
            name="fp8-e4m3-current",
            rules=uniform(E4M3FN, E4M3FN, scale=Current()),
            users="nobody: fp8-current in E4M3",
        ),
        Recipe(
            name="fp8-current-pow2",
            rules=uniform(E4M3FN, E5M2, scale=current),
            users="Transformer Engine's option",
            source=f"{TRANSFORMER_ENGINE}: Float8CurrentScaling with power-of-two scales",
        ),
        Recipe(
            name="fp8-delayed",
            rules=uniform(E4M3FN, E5M2, scale=Delayed()),
            users="Transformer Engine, first",
            source=f"{TRANSFORMER_ENGINE}: DelayedScaling; Micikevicius et al., arXiv 2209.05433",
        ),
        coat(),
        amax("fp8-amax", E4M3FN, E5M2),
        amax("fp8-amax-fnuz", E4M3FNUZ, E5M2FNUZ),
        cscale(),
        replace(cscale(0, E4M3FNUZ, E5M2FNUZ), name="fp8-cscale-fnuz"),
        Recipe(
            name="fp8-fog",
            rules=uniform(E4M3FN, E5M2, scale=Delayed()),
            users="FOG; attention too",
            source="Hernandez-Cano et al., Towards Fully FP8 GEMM LLM Training at Scale, arXiv "
            "2505.20524; its architecture (norms of queries and keys, no gated units) is the "
            "model's part",
        ),
    ]


def amax(name: str, value: FloatFormat, gradient: FloatFormat) -> Recipe:
    """FP8-AMAX of Perez et al., section 3: a power of two that brings the amax just below the end.

    Gradients keep three binades free. In linear layers alone, the read-out too.
    """
    scale = Current(power_of_two="rceil")
    below = replace(scale, margin=GRADIENT_MARGIN)
    return Recipe(
        name=name,
        rules=linear_alone(Gemm.of(Operand(value, scale), Operand(gradient, below))),
        users="Graphcore: FP8-AMAX",
        source=f"{PEREZ}: FP8-AMAX",
    )


def coat() -> Recipe:
    """COAT's activation flow: what is held between forward and backward is in 8 bits.

    Linear layers by one scale for each tensor; the inputs of norms, activations and gates in groups
    of 16 along the features; attention in the dtype of the model, because its kernel reads q, k, v
    and its output again.
    """
    return Recipe(
        name="coat",
        rules=linear_alone(Gemm.of(Operand(E4M3FN, Current()), Operand(E5M2, Current()))),
        saved=Operand(E4M3FN, Current(), PerBlock(16)),
        optimizer="coat",
        users="NVIDIA: COAT",
        source="Xi et al., COAT: Compressing Optimizer States and Activation for "
        "Memory-Efficient FP8 Training, arXiv 2410.19313, section 5",
    )


def cscale(bias: int = 0, value: FloatFormat = E4M3FN, gradient: FloatFormat = E5M2) -> Recipe:
    """FP8-CSCALE of Perez et al.: one constant for all tensors, three binades less for gradients.

    Args:
        bias: data is `x * 2**bias`. It has to be searched: the losses are those of FP16 over a
            range of it, and collapse outside.
    """
    return Recipe(
        name="fp8-cscale" if bias == 0 else f"fp8-cscale({bias})",
        rules=linear_alone(
            Gemm.of(
                Operand(value, Constant(-bias)),
                Operand(gradient, Constant(GRADIENT_MARGIN - bias)),
            )
        ),
        users="Graphcore: FP8-CSCALE",
        source=f"{PEREZ}: FP8-CSCALE",
    )


def linear_alone(gemm: Gemm) -> tuple[Rule, ...]:
    """A rule for every matrix product with a weight; attention and others keep full precision."""
    return (Rule(op="linear", gemm=gemm),)


def blockwise() -> list[Recipe]:
    """Scales for rows, blocks and tiles, in linear layers alone."""
    row = Operand(E4M3FN, Current(power_of_two="rceil"), PerAxis())
    tensor = Operand(E4M3FN, Current(power_of_two="rceil"))
    bf16 = Operand(BF16)
    block = Operand(E4M3FN, Current(), PerBlock(128))
    tile = Operand(E4M3FN, Current(), PerTile(128, 128))
    return [
        Recipe(
            name="fp8-rowwise",
            rules=linear_alone(Gemm.of(row)),
            users="torchao rowwise, Llama 3",
            source="torchao.float8 'rowwise'; scales are powers of two",
        ),
        Recipe(
            name="fp8-rowwise-hp",
            rules=linear_alone(Gemm((row, row), (row, tensor), (bf16, bf16))),
            users="torchao rowwise_with_gw_hp",
            source="torchao.float8 'rowwise_with_gw_hp': grad_weight in BF16",
        ),
        Recipe(
            name="fp8-block",
            rules=linear_alone(Gemm.of(block, weight=tile)),
            users="DeepSeek-V3",
            source="DeepSeek-V3 Technical Report, arXiv 2412.19437, section 3.3",
        ),
        *(
            microscaling(f"{name}{suffix}", fmt, rule)
            for name, fmt in (("mxfp8", MX_E4M3FN), ("mxfp6", MX_E3M2FN), ("mxfp4", MX_E2M1FN))
            for rule, suffix in MX_RULES.items()
        ),
        nvfp4(),
    ]


MX_RULES: dict[PowerOfTwo, str] = {"floor": "", "rceil": "-rceil", "ceil": "-ceil", "even": "-even"}


def microscaling(name: str, fmt: BlockFormat, rule: PowerOfTwo) -> Recipe:
    """All six operands in blocks of 32 along the contraction."""
    used = {"mxfp8": "OCP MX; Blackwell, MI350", "mxfp6": "OCP MX", "mxfp4": "OCP MX; MI350"}
    base = name.split("-")[0]
    users = used[base] if rule == "floor" else f"{base}, scale rule {rule}"
    return Recipe(
        name=name,
        rules=linear_alone(Gemm.of(Operand(fmt, Current(rule)))),
        users=users,
        source="OCP Microscaling Formats v1.0, section 6.3; Rouhani et al., arXiv 2310.10537"
        + ("; Transformer Engine, cuBLAS" if rule == "rceil" else ""),
    )


def nvfp4(name: str = "nvfp4", scale: Current | Unit | None = None) -> Recipe:
    """NVFP4 whole: weights in tiles of 16 by 16, Hadamard transforms on grad_weight's operands,
    and stochastic rounding of gradients alone.

    Which layers keep BF16 is the model's matter: pass `skip=[...]`.
    """
    scale = Current() if scale is None else scale
    x = Operand(NVFP4, scale)
    weight = replace(x, granularity=PerTile(16, 16))
    g = replace(x, rounding="stochastic")
    turn = RandomHadamard(16)
    grad_weight = (replace(g, transform=turn), replace(x, transform=turn))
    is_unit = isinstance(scale, Unit)
    return Recipe(
        name=name,
        rules=linear_alone(Gemm((x, weight), (g, weight), grad_weight)),
        users="nvfp4 at units" if is_unit else "NVIDIA; Blackwell",
        source="NVIDIA, Pretraining Large Language Models with NVFP4, arXiv 2509.25149"
        + ("; the tensor scale is the unit, so that no amax runs over a tensor" * is_unit),
    )


def units() -> list[Recipe]:
    """The unit-scaled recipes."""
    unit = Unit()
    return [
        Recipe(
            name="fp32-units",
            rules=uniform(None, None, scale=unit),
            users="the control of unit scaling",
            source=BLAKE,
        ),
        Recipe(
            name="bf16-units",
            rules=uniform(BF16, BF16, BF16, scale=unit),
            users="a unit-scaled model in BF16",
            source=BLAKE,
        ),
        Recipe(
            name="fp16",
            rules=uniform(FP16, FP16, FP16, scale=unit),
            users=UNIT_SCALING,
            source=BLAKE,
        ),
        Recipe(
            name="fp8", rules=uniform(E4M3FN, E5M2, scale=unit), users=UNIT_SCALING, source=BLAKE
        ),
        Recipe(
            name="fp8-bf16",
            rules=uniform(E4M3FN, E5M2, BF16, scale=unit),
            users="fp8 with BF16 results",
            source=BLAKE,
        ),
        Recipe(
            name="fp8-e4m3",
            rules=uniform(E4M3FN, E4M3FN, scale=unit),
            users="Unit Scaling, all E4M3",
            source=BLAKE,
        ),
        serve(),
        nvfp4("nvfp4-units", Unit()),
        Recipe(
            name="mus",
            rules=(
                Rule(op="readout", gemm=uniform(BF16, BF16)[0].gemm),
                Rule(op="linear", gemm=Gemm.of(Operand(E4M3FN, Unit()), Operand(E5M2, Unit()))),
            ),
            users="Databricks: mu-nit Scaling",
            source="Narayan et al., mu-nit Scaling: Simple and Scalable FP8 LLM Training, arXiv "
            "2502.05967; for a model written unit-scaled, with norms after its branches",
        ),
    ]


HEADS = (
    *("*lm_head", "*embed_out", "*proj_out", "*vocab_projector", "*predictions", "*cls"),
    *("head", "*.head"),
    *("*score", "*classifier", "*classification_head", "*qa_outputs", "*pooler"),
)
ROUTERS = ("*.gate", "*router", "*shared_expert_gate", "*.experts")
JOINED = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
)
"""Layers of one input that servers join into one: their weights have one scale there."""


def serve() -> Recipe:
    """The forward numerics of servers: the inputs and weights of linear layers, at static scales.

    Attention, heads and routers keep full precision, and so do experts, whose weights are no
    layers. Gradients are those of "fp8".
    """
    return Recipe(
        name="fp8-serve",
        rules=(Rule(op="layer", gemm=Gemm.of(Operand(E4M3FN, Unit()), Operand(E5M2, Unit()))),),
        spare=(*HEADS, *ROUTERS),
        fused=JOINED,
        users="Unit Scaling, for servers",
        source=f"{BLAKE}; what vLLM and compressed-tensors round: docs/serving.md",
    )


def by_name(recipes: Iterable[Recipe]) -> dict[str, Recipe]:
    """Recipes by their names."""
    return {recipe.name: recipe for recipe in recipes}


RECIPES: dict[str, Recipe] = by_name([*full(), *tensorwise(), *blockwise(), *units()])


RIVALS: tuple[str, ...] = (
    *("fp32", "bf16", "fp8", "fp8-e4m3", "fp8-current", "fp8-delayed", "fp8-amax", "fp8-cscale"),
    *("fp8-rowwise", "fp8-rowwise-hp", "fp8-block", "mxfp8", "mxfp8-rceil", "mxfp6", "mxfp4"),
    *("nvfp4", "nvfp4-units"),
)
"""What a person would choose between today: one of each kind, after the baselines and units."""


def without_loss_scale(recipe: Recipe) -> Recipe:
    """The products of a recipe alone: for a caller that multiplies the loss itself."""
    return recipe if recipe.loss_scale is None else replace(recipe, loss_scale=None)


def parse(recipe: str | Recipe) -> Recipe:
    """The recipe of that name; a `Recipe` is returned as it is.

    `fp8-cscale(3)` is `fp8-cscale` with another constant, `fp16-true(11)` has the loss times 2^11.

    Raises:
        TypeError: neither a name nor a Recipe.
        ValueError: no recipe has that name; lists the legal names and suggests the nearest.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if not isinstance(recipe, str):
        raise TypeError(f"recipe is {recipe!r}; expected a Recipe or a name such as 'fp8'")
    if recipe in RECIPES:
        return RECIPES[recipe]
    if match := re.fullmatch(r"fp8-cscale\((-?[0-9]{1,2})\)", recipe):
        return cscale(int(match[1]))
    known = RECIPES | TRUE_FP16
    if (found := known.get(recipe) or scaled_loss(recipe, known)) is not None:
        return found
    near = get_close_matches(recipe, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown recipe {recipe!r}; the recipes are {', '.join(known)}.{hint}")
