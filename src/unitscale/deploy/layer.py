"""The layers of a scaled model that a server rounds as its evaluation does, or why there are none.

Everything is checked here, before a file is written.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from unitscale.deploy.code import INPUT_LOG2, WEIGHT_LOG2, encode, unit_fault, values
from unitscale.deploy.pretrained import Exported
from unitscale.deploy.quantized import QuantizedLayer
from unitscale.deploy.scheme import Scheme
from unitscale.formats import E4M3FN
from unitscale.recipes import RECIPES, Operand, Recipe, Unit
from unitscale.units import LayerUnit, fused_weights, layer_units, summary
from unitscale.units.layer_unit import evaluated_parameters

__all__ = ["Layer", "Plan", "plan_of"]

SERVED = Operand(E4M3FN, Unit())
TRAIN_SERVE = "train with 'fp8-serve', which rounds what servers round"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One `nn.Linear` that a server rounds.

    Args:
        path: in the model that is exported.
        module: the layer.
        input: the tensor that comes in, by name.
        weight_log2, input_log2: its weight is held as `w / 2**weight_log2`, its input likewise.
    """

    path: str
    module: nn.Linear
    input: str
    weight_log2: int
    input_log2: int


@dataclass(frozen=True, kw_only=True)
class StoredLayer:
    """One quantized layer, which holds its codes already.

    Args:
        path: in the model that is exported.
        module: the layer.
    """

    path: str
    module: QuantizedLayer


@dataclass(kw_only=True)
class Plan:
    """What an export will hold.

    Args:
        layers: what is stored in eight bits.
        ignored: paths of the linear layers that are not.
        differences: what a server computes otherwise than the model's evaluation, in words.
        scheme: of a quantized model, how; of one with units None.
        also: what else a quantized model rounds.
    """

    layers: Sequence[Layer | StoredLayer]
    ignored: Sequence[str]
    differences: list[str] = field(default_factory=list)
    scheme: Scheme | None = None
    also: tuple[str, ...] = ()


def check_masks(model: nn.Module) -> None:
    """Refuse weights under masks: a server has none, and would load what is behind them.

    Raises:
        ValueError: names one, and says how to make zeros of masks.
    """
    buffers = {name for name, _ in model.named_buffers()}
    for name, _ in model.named_parameters():
        path = name.removesuffix("_orig")
        if path != name and f"{path}_mask" in buffers:
            raise ValueError(
                f"export: {path} is masked (torch.nn.utils.prune), and no server has masks; make "
                "zeros of them by us.compress.make_permanent(model), which keeps the units, and "
                "run a batch before the export"
            )


def plan_of(model: nn.Module, recipe: Recipe, exported: Exported) -> Plan:
    """What an export of a model will hold.

    Args:
        recipe: that of the model.
        exported: the part of it that is written, and where that is.
    Raises:
        ValueError: nothing that a server could load would compute the same; says what.
    """
    check_recipe(recipe)
    check_masks(exported.module)
    rows = evaluated(model)
    differences = list(other_products(model, rows, exported.dtype))
    if recipe.activations is not None:
        differences.append(f"every tensor between products is rounded to {recipe.activations.name}")
    taken: dict[str, Layer] = {}
    for row in rows:
        module = model.get_submodule(row.path)
        if row.weight and type(module) is nn.Linear:
            layer = layer_of(row, module, exported)
            check_unit(layer, taken.setdefault(layer.path, layer))
    layers, changed = joined(exported.module, list(taken.values()))
    if not layers:
        raise ValueError(
            "export: the recipe rounds no nn.Linear of this model, so that nothing would be stored "
            f"in FP8{of_conv1d(model)}"
        )
    for layer in layers:
        check_weight(layer)
    check_shared(exported.module, layers)
    paths = {layer.path for layer in layers}
    ignored = [
        path
        for path, module in exported.module.named_modules()
        if isinstance(module, nn.Linear) and path not in paths
    ]
    differences += uncalled(model, recipe, exported, ignored)
    return Plan(layers=layers, ignored=ignored, differences=[*differences, *changed])


def check_recipe(recipe: Recipe) -> None:
    """Refuse a recipe whose forward products no server has."""
    for gemm in recipe.gemms:
        for what, operand in zip(("inputs", "weights"), gemm.output, strict=True):
            if operand != SERVED:
                raise ValueError(
                    f"export: recipe {recipe.name!r} rounds {what} as '{operand}'; a server has "
                    f"one static scale for each tensor, '{SERVED}': {TRAIN_SERVE}"
                )
    if not recipe.rounds:
        raise ValueError(f"export: recipe {recipe.name!r} rounds nothing; {TRAIN_SERVE}")


def evaluated(model: nn.Module) -> list[LayerUnit]:
    """The rounded products of evaluation: there is no dropout between a layer and its input."""
    rows = layer_units(model)
    found = [row for row in rows if not row.is_training]
    if not found and (rows or not summary(model).products):
        state = "was only trained" if rows else "has not run"
        raise ValueError(
            f"export: this {type(model).__name__} {state} since it was scaled, so its evaluation "
            "is not known; call it once on a batch, in eval() and under torch.no_grad(). Its units "
            "should come from training, or from a batch that is like what it will serve."
        )
    taken = [((r.weight, r.weight_log2), (r.input, r.input_log2)) for r in found]
    missing = [name for pair in taken for name, unit in pair if name and unit is None]
    if missing:
        names = list(dict.fromkeys(missing))
        raise ValueError(
            f"export: {len(names)} tensors have no unit: {listed(names)}; train a step, or "
            "evaluate once more after training, with remeasure= other than 'never'"
        )
    return found


def uncalled(
    model: nn.Module, recipe: Recipe, exported: Exported, ignored: Sequence[str]
) -> Iterator[str]:
    """The layers that nobody asked to keep in full precision, and that evaluation never called.

    Args:
        ignored: the layers that are not rounded, by their paths in the exported part.
    """
    seen = evaluated_parameters(model)
    known = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if name in seen}
    found = [
        path
        for path in ignored
        if id(exported.module.get_submodule(path).weight) not in known
        and not is_skipped(recipe, exported.outside(path))
    ]
    if found:
        yield (
            f"evaluation never called {listed(found)}, so how it rounds them is not known; "
            "evaluate a batch that reaches them, or name them in skip= to keep full precision"
        )


def is_skipped(recipe: Recipe, path: str) -> bool:
    """Whether a recipe keeps a module, or one around it, in full precision."""
    names = path.split(".")
    around = [".".join(names[: count + 1]) for count in range(len(names))]
    return any(fnmatchcase(outer, pattern) for outer in around for pattern in recipe.skip)


def other_products(
    model: nn.Module, rows: Sequence[LayerUnit], dtype: torch.dtype
) -> Iterator[str]:
    """What evaluation rounds and a server does not."""
    kinds: Counter[str] = Counter()
    for row in rows:
        name = type(model.get_submodule(row.path)).__name__
        if name == "Conv1D":
            kinds["Conv1D layers, which the loader would take for plain weights"] += 1
        elif not (row.weight and type(model.get_submodule(row.path)) is nn.Linear):
            kinds[f"{row.op} products in {name}"] += 1
        results = row.gemm.results
        if results is not None and results.name.lower() not in (DTYPE_NAMES.get(dtype),):
            kinds[f"results in {results.name}"] += 1
    for what, count in kinds.items():
        yield f"the recipe rounds {count} {what}, and no server does"


DTYPE_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def layer_of(row: LayerUnit, module: nn.Linear, exported: Exported) -> Layer:
    """The layer of a rounded product."""
    assert row.input is not None
    assert row.weight_log2 is not None
    assert row.input_log2 is not None
    return Layer(
        path=exported.within(row.path),
        module=module,
        input=row.input,
        weight_log2=row.weight_log2,
        input_log2=row.input_log2,
    )


def check_unit(layer: Layer, first: Layer) -> None:
    """Refuse a layer that has two units."""
    units = (layer.weight_log2, layer.input_log2)
    if units != (first.weight_log2, first.input_log2):
        raise ValueError(
            f"export: {layer.path!r} is used at several places, with inputs at "
            f"2^{first.input_log2} and 2^{layer.input_log2}; a server has one input scale for a "
            f"layer: skip={[layer.path]!r} keeps it in full precision"
        )


def joined(model: nn.Module, layers: Sequence[Layer]) -> tuple[list[Layer], list[str]]:
    """The layers, those that servers join at one weight unit; and what that changes.

    A unit is a choice: where the codes at the largest unit of a group are those of the same
    values, the export takes it. Layers of different inputs, as in cross-attention, are not joined.

    Raises:
        ValueError: of a group that servers join some layers are rounded and others are not.
    """
    by_weight = {f"{layer.path}.weight": layer for layer in layers}
    changed: list[str] = []
    for names in fused_weights(model, RECIPES["fp8-serve"].fused):
        paths = {name: name.removesuffix(".weight") for name in names}
        if not all(isinstance(model.get_submodule(path), nn.Linear) for path in paths.values()):
            continue
        known = [by_weight[name] for name in sorted(names) if name in by_weight]
        if known and len(known) < len(names):
            out = listed(sorted(paths[name] for name in names - by_weight.keys()))
            raise ValueError(
                f"export: servers join {listed(layer.path for layer in known)} with {out}, which "
                "keep full precision; skip all of them, or none"
            )
        for source in dict.fromkeys(layer.input for layer in known):
            group = [layer for layer in known if layer.input == source]
            largest = max(layer.weight_log2 for layer in group)
            for layer in group:
                changed += moved(layer, largest)
                by_weight[f"{layer.path}.weight"] = replace(layer, weight_log2=largest)
    return list(by_weight.values()), changed


def moved(layer: Layer, log2: int) -> Iterator[str]:
    """What another unit makes of the values of a weight, in words; nothing if they stay."""
    weight = layer.module.weight
    before, after = (values(weight, unit) for unit in (layer.weight_log2, log2))
    if count := int((before != after).sum()):
        yield (
            f"the weight of {layer.path!r} at 2^{layer.weight_log2} is joined with others at "
            f"2^{log2}, which moves {count / weight.numel():.1%} of it"
        )


def check_weight(layer: Layer) -> None:
    """Refuse a weight that FP8 does not hold at its unit."""
    weight = layer.module.weight.detach()
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(
            f"export: the weight of {layer.path!r} holds NaN or infinity; restore an earlier "
            "checkpoint"
        )
    amax, limit = float(weight.abs().max()), E4M3FN.max * 2.0**layer.weight_log2
    if amax > limit:
        raise ValueError(
            f"export: the weight of {layer.path!r} reaches {amax:.3g}, beyond {limit:.3g}, the "
            f"largest at its unit 2^{layer.weight_log2}; it has grown since it was measured: call "
            "us.recalibrate(model), then train a step"
        )
    for what, log2, limits, why in (
        ("weight", layer.weight_log2, WEIGHT_LOG2, ", as servers that join weights use float16"),
        ("input", layer.input_log2, INPUT_LOG2, ""),
    ):
        if fault := unit_fault(log2, limits):
            raise ValueError(
                f"export: the {what} of {layer.path!r} has the unit {fault}{why}: "
                f"skip={[layer.path]!r} keeps it in full precision"
            )
    assert not bool(torch.isnan(encode(weight, layer.weight_log2).float()).any())


def check_shared(model: nn.Module, layers: Sequence[Layer]) -> None:
    """Refuse a rounded weight that another module has too, a tied embedding say."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for layer in layers:
        own = f"{layer.path}.weight"
        if others := [name for name in owners[id(layer.module.weight)] if name != own]:
            raise ValueError(
                f"export: the weight of {layer.path!r} is rounded and is {others[0]!r} too, which "
                f"a file has once; skip={[layer.path]!r} keeps it in full precision, or untie them "
                "before training"
            )


def of_conv1d(model: nn.Module) -> str:
    """That a model has layers which no loader knows."""
    found = [path for path, m in model.named_modules() if type(m).__name__ == "Conv1D"]
    if not found:
        return ""
    return f"; {found[0]!r} and {len(found) - 1} others are Conv1D, which no loader rounds"


def listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - 3} more" if len(every) > 3 else ""
    return ", ".join(map(repr, every[:3])) + more


def tensors_of(layer: Layer | StoredLayer) -> dict[str, Tensor]:
    """The tensors that stand for a layer in a file: codes, and scales that recover.

    A scale of no dimension would fail to load.
    """
    if isinstance(layer, StoredLayer):
        module = layer.module
        scale = module.weight_scale
        found = {
            "weight": module.weight_codes,
            "weight_scale": scale if scale.dim() else scale[None],
        }
        if module.input_scale is not None:
            found["input_scale"] = module.input_scale
        return {f"{layer.path}.{name}": x for name, x in found.items()}
    return {
        f"{layer.path}.weight": encode(layer.module.weight, layer.weight_log2),
        f"{layer.path}.weight_scale": torch.tensor([2.0**layer.weight_log2], dtype=torch.float32),
        f"{layer.path}.input_scale": torch.tensor([2.0**layer.input_log2], dtype=torch.float32),
    }
