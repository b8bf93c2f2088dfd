"""How a finished model is quantized: a format for weights, one for inputs, and who has a scale.

A training recipe has six operands for each layer; of a model that only predicts two are left, the
input and the weight. Both are a `Codec`, the one that training rounds with.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches

from unitscale.formats import (
    E4M3FN,
    E5M2,
    INT8,
    MX_E2M1FN,
    MX_E4M3FN,
    NVFP4,
    BlockFormat,
    Codec,
    PerAxis,
    PerTensor,
)
from unitscale.recipes import RECIPES, Current, Operand, Recipe, Rule, Unit
from unitscale.recipes import parse as parse_recipe

__all__ = ["SCHEMES", "Scheme", "scheme_of"]

ROW = PerAxis()
"""Of a weight [out, in] one scale for each output channel; of inputs one for each token."""


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """The numerics of a quantized layer.

    Args:
        name: as `quantize` takes it.
        weight: of the weight, as a matrix [out, in].
        input: of what comes in; None leaves it as it is.
        is_static: whether the scale of inputs is a number of the model, from units or calibration.
            Of NVFP4 that is its second scale; those of its blocks follow each input. Else each
            input has its own.
        skip: patterns of module paths that keep full precision.
        spare: likewise, of modules that a model need not have.
    """

    name: str
    weight: Codec
    input: Codec | None = None
    is_static: bool = False
    skip: tuple[str, ...] = ()
    spare: tuple[str, ...] = RECIPES["fp8-serve"].spare

    def __str__(self) -> str:
        if self.input is None:
            return f"weights {self.weight}"
        return (
            f"weights {self.weight}, inputs {self.input} {'static' * self.is_static or 'dynamic'}"
        )

    @property
    def numbers(self) -> str:
        """What codes and scales mean: a state of other numbers is no state of such a layer.

        The name does not count, nor the rule of scales that the state holds.
        """
        weight = f"weights {self.weight.format} {self.weight.groups}"
        if self.input is None:
            return weight
        if self.is_static:
            return f"{weight}, inputs {self.input.format} {self.input.groups} static"
        return f"{weight}, inputs {self.input} dynamic"

    def at_powers_of_two(self) -> "Scheme":
        """The same with every scale a power of two; block formats stay as they are."""
        weight, x = (
            codec
            if codec is None or isinstance(codec.format, BlockFormat)
            else replace(codec, power_of_two="rceil")
            for codec in (self.weight, self.input)
        )
        assert weight is not None
        return replace(self, weight=weight, input=x)


def family(
    name: str, weight: Codec, *, tensor: bool = True, dynamic: bool = True
) -> Iterable[Scheme]:
    """One format for both operands, in the forms that servers have."""
    x = replace(weight, granularity=PerTensor())
    yield Scheme(name=name, weight=weight, input=x, is_static=True)
    if tensor:
        yield Scheme(name=f"{name}-tensor", weight=x, input=x, is_static=True)
    if dynamic:
        yield Scheme(name=f"{name}-dynamic", weight=weight, input=weight)
    yield Scheme(name=f"{name}-weight", weight=weight)


def blocks(name: str, fmt: BlockFormat) -> Iterable[Scheme]:
    """A block format: its scales follow each input, but for the second one of NVFP4."""
    codec = Codec(format=fmt)
    yield Scheme(name=name, weight=codec, input=codec, is_static=fmt.has_tensor_scale)
    yield Scheme(name=f"{name}-weight", weight=codec)


def every() -> Iterable[Scheme]:
    """All schemes that have a name."""
    int8 = Codec(format=INT8, granularity=ROW)
    yield from family("fp8", Codec(format=E4M3FN, granularity=ROW))
    yield from family("fp8-e5m2", Codec(format=E5M2, granularity=ROW), dynamic=False)
    yield from family("int8", int8)
    yield Scheme(name="int8-fp8", weight=int8, input=Codec(format=E4M3FN), is_static=True)
    yield from blocks("mxfp8", MX_E4M3FN)
    yield from blocks("mxfp4", MX_E2M1FN)
    yield from blocks("nvfp4", NVFP4)


SCHEMES: dict[str, Scheme] = {scheme.name: scheme for scheme in every()}
"""What `quantize` takes by name, beside the recipes of training."""

ALIASES = {"w8a8": "int8", "w8a16": "int8-weight"}


def scheme_of(recipe: str | Recipe | Scheme) -> Scheme:
    """The scheme of a name, or of a training recipe: the forward operands of its linear layers.

    A name of `SCHEMES` is meant before one of the training recipes.

    Raises:
        TypeError: none of these. ValueError: an unknown name; a recipe that no quantized layer can
            follow, says which part of it.
    """
    if isinstance(recipe, Scheme):
        return recipe
    if isinstance(recipe, Recipe):
        return of_recipe(recipe)
    if not isinstance(recipe, str):
        raise TypeError(
            f"quantize: recipe is {recipe!r}; expected a name such as 'fp8', a Scheme or a Recipe"
        )
    name = ALIASES.get(recipe, recipe)
    if name in SCHEMES:
        return SCHEMES[name]
    try:
        found = parse_recipe(name)
    except ValueError:
        names = (*SCHEMES, *ALIASES)
        near = get_close_matches(recipe, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"quantize: unknown recipe {recipe!r}; expected one of {', '.join(names)}, or a "
            f"training recipe.{hint}"
        ) from None
    return of_recipe(found)


def of_recipe(recipe: Recipe) -> Scheme:
    """The forward numerics of a training recipe's linear layers."""
    rules = [rule for rule in recipe.rules if rule.covers("layer")]
    kept = [rule.path for rule in rules if rule.gemm is None]
    rounding = [rule for rule in rules if rule.gemm is not None]
    if any(rule.path != "*" for rule in rounding):
        raise ValueError(
            f"quantize: recipe {recipe.name!r} rounds {rounding[0].path!r} in its own way; a "
            "quantized model has one way for all layers: skip= keeps some in full precision"
        )
    gemm = next((rule.gemm for rule in rounding), Rule().gemm)
    if gemm is None or not gemm.output[1].rounds:
        raise ValueError(
            f"quantize: recipe {recipe.name!r} rounds no weight of a linear layer; "
            f"choose one of {', '.join(SCHEMES)}"
        )
    x, weight = gemm.output
    return Scheme(
        name=recipe.name,
        weight=codec_of(recipe.name, "weights", weight),
        input=codec_of(recipe.name, "inputs", x) if x.rounds else None,
        is_static=x.rounds and isinstance(x.scale, Unit),
        skip=(*recipe.skip, *kept),
        spare=recipe.spare or Scheme.spare,
    )


def codec_of(name: str, what: str, operand: Operand) -> Codec:
    """The codec of an operand.

    Raises:
        ValueError: it rounds by chance, turns the operand, has scales of earlier steps or none.
    """
    scale = operand.scale
    is_plain = operand.rounding == "nearest" and operand.transform is None
    if not (is_plain and isinstance(scale, Unit | Current)) or operand.format is None:
        raise ValueError(
            f"quantize: recipe {name!r} takes {what} as '{operand}', which no quantized layer has; "
            f"choose one of {', '.join(SCHEMES)}"
        )
    options = (
        {"power_of_two": scale.power_of_two, "margin": scale.margin}
        if isinstance(scale, Current)
        else {}
    )
    return Codec(format=operand.format, granularity=operand.granularity, **options)  # type: ignore[arg-type]
