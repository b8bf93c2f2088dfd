"""The layers of a quantized model as files hold them, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unitscale.deploy.layer import Plan, StoredLayer, listed
from unitscale.deploy.pretrained import Exported
from unitscale.deploy.quantized import QuantizedLayer, quantized_layers
from unitscale.deploy.replacement import replace_layers
from unitscale.deploy.scheme import SCHEMES, Scheme
from unitscale.deploy.summary import of_model, remember
from unitscale.deploy.switch import check_parts, install
from unitscale.formats import BLOCK_FORMATS, Codec, parse
from unitscale.formats.granularity import parse_granularity
from unitscale.recipes import RECIPES

__all__ = ["described", "plan_of_quantized", "quantized_as_described", "restored"]


def plan_of_quantized(model: nn.Module, exported: Exported, format: str) -> Plan:
    """What an export of a quantized model will hold.

    Raises:
        ValueError: no server has its numerics; says which part.
    """
    layers = {exported.within(path): layer for path, layer in quantized_layers(model).items()}
    scheme = next(iter(layers.values())).scheme
    also = of_model(model).also
    differences: list[str] = []
    if format != "safetensors":
        check_scheme(scheme, format)
        check_kinds(layers)
        check_joined(exported.module, layers)
        check_tied(exported.module, layers)
        differences = list(served_otherwise(layers, scheme, exported.dtype, also))
    ignored = [
        path for path, module in exported.module.named_modules() if isinstance(module, nn.Linear)
    ]
    return Plan(
        layers=[StoredLayer(path=path, module=layer) for path, layer in layers.items()],
        ignored=ignored,
        differences=differences,
        scheme=scheme,
        also=also,
    )


SERVED = {
    "compressed-tensors": (
        *("fp8", "fp8-tensor", "fp8-dynamic", "fp8-weight"),
        *("int8", "int8-tensor", "int8-dynamic"),
    ),
    "modelopt": ("fp8-tensor",),
}
"""The schemes that servers have, in each description of them."""


def check_scheme(scheme: Scheme, format: str) -> None:
    """Refuse a scheme that a description has no words for."""
    known = [name for name in SERVED[format] if has_same_numbers(scheme, SCHEMES[name])]
    if not known:
        raise ValueError(
            f"export: recipe {scheme.name!r} has {scheme}; format {format!r} is written for "
            f"{', '.join(SERVED[format])}: format='safetensors' writes any, for deploy.load"
        )


def has_same_numbers(one: Scheme, other: Scheme) -> bool:
    """Whether two schemes have the same formats and granularities; a file has any scales."""

    def key(scheme: Scheme) -> tuple[Any, ...]:
        pairs = (c and (c.format, c.groups) for c in (scheme.weight, scheme.input))
        return (*pairs, scheme.is_static)

    # A dynamic scale is computed by the server, so its rule counts too.
    rules = [None if s.is_static or s.input is None else s.input.rule for s in (one, other)]
    return key(one) == key(other) and rules[0] == rules[1]


def check_kinds(layers: Mapping[str, QuantizedLayer]) -> None:
    """Refuse layers that loaders do not know."""
    others = {path: layer.kind for path, layer in layers.items() if layer.kind != "Linear"}
    if others:
        first = next(iter(others))
        named = ", ".join(map(repr, [*others][:3])) + (", ..." if len(others) > 3 else "")
        raise ValueError(
            f"export: {first!r} is a {others[first]} ({len(others)} layers are no nn.Linear), and "
            'servers load quantized nn.Linear alone; export with format="safetensors" (--format), '
            f"which deploy.load reads, or quantize with skip=[{named}] (--skip)"
        )


def check_joined(model: nn.Module, layers: Mapping[str, QuantizedLayer]) -> None:
    """Refuse a group of layers that servers join and of which only some are quantized."""
    for path, module in model.named_modules():
        start = f"{path}." if path else ""
        for names in RECIPES["fp8-serve"].fused:
            children = dict(module.named_children())
            group = [f"{start}{n}" for n in names if isinstance(children.get(n), LAYERS)]
            inside = [name for name in group if name in layers]
            if inside and len(inside) < len(group):
                out = listed(name for name in group if name not in layers)
                raise ValueError(
                    f"export: servers join {listed(inside)} with {out}, which keep full "
                    "precision; quantize all of them, or none (skip=)"
                )


def check_tied(model: Any, layers: Mapping[str, QuantizedLayer]) -> None:
    """Refuse a quantized head of a model whose configuration ties it to the embedding.

    It has codes of its own, and a loader would put the embedding in their place.
    """
    if not getattr(getattr(model, "config", None), "tie_word_embeddings", False):
        return
    head = model.get_output_embeddings()
    for path, layer in layers.items():
        if layer is head or f"{path}.weight" in (getattr(model, "_tied_weights_keys", None) or ()):
            raise ValueError(
                f"export: {path!r} is quantized, and tie_word_embeddings says that it is the "
                f"embedding, which keeps full precision; quantize with skip={[path]!r}, or untie "
                "them and set config.tie_word_embeddings to False"
            )


LAYERS = (nn.Linear, QuantizedLayer)


def served_otherwise(
    layers: Mapping[str, QuantizedLayer],
    scheme: Scheme,
    dtype: torch.dtype,
    also: Sequence[str],
) -> list[str]:
    """What a server computes otherwise than the model does."""
    found = [f"the model rounds {part}, and no server does" for part in also]
    if scheme.weight.element.is_uniform and scheme.is_static:
        found.append("inputs below -127 scales saturate at -127 here and at -128 there")
    if scheme.weight.element.is_uniform and scheme.input is not None and not scheme.is_static:
        found.append("a token's scale is its amax / 127 here and amax / 127.5 there")
    scales = [x for layer in layers.values() for x in (layer.weight_scale, layer.input_scale)]
    is_exact = all(x is None or bool((torch.frexp(x)[0] == 0.5).all()) for x in scales)
    if dtype != torch.float32 and not (is_exact and (scheme.is_static or scheme.input is None)):
        found.append(
            f"loaders hold scales in {dtype}, which rounds those of this model; quantize it with "
            "power_of_two=True and static scales"
        )
    return found


def described(plan: Plan) -> dict[str, Any]:
    """What unitscale.json says of a quantized model."""
    scheme = plan.scheme
    assert scheme is not None
    return {
        "recipe": scheme.name,
        "weight": codec_words(scheme.weight),
        "input": None if scheme.input is None else codec_words(scheme.input),
        "static": scheme.is_static,
        "also": list(plan.also),
        "layers": [layer.path for layer in plan.layers],
        "dtypes": [
            str(layer.module.dtype).removeprefix("torch.")
            for layer in plan.layers
            if isinstance(layer, StoredLayer)
        ],
    }


def codec_words(codec: Codec) -> dict[str, Any]:
    """A codec as JSON holds it."""
    return {
        "format": codec.format.name,
        "granularity": str(codec.granularity),
        "power_of_two": codec.power_of_two,
        "margin": codec.margin,
    }


def codec_of_words(words: Any) -> Codec:
    """The codec of its words.

    Raises:
        ValueError, TypeError, KeyError: they are none.
    """
    fmt = BLOCK_FORMATS.get(words["format"]) or parse(words["format"])
    granularity = parse_granularity(words["granularity"])
    if granularity is None:
        raise ValueError(f"granularity is {words['granularity']!r}")
    return Codec(
        format=fmt,
        granularity=granularity,
        power_of_two=words["power_of_two"],
        margin=words["margin"],
    )


def restored(model: nn.Module, words: Any, values: Mapping[str, Tensor], file: object) -> None:
    """Give a plain model quantized layers as a description says; their numbers are yet to come.

    Args:
        values: the tensors of the export, which are checked here and not loaded.
        file: that has the description.
    Raises:
        ValueError: the description is damaged, the model has no such layers or is in another
            dtype, or a scale is none; the model is unchanged.
    """
    try:
        x = None if words["input"] is None else codec_of_words(words["input"])
        weight = codec_of_words(words["weight"])
        scheme = Scheme(
            name=str(words["recipe"]), weight=weight, input=x, is_static=bool(words["static"])
        )
        also = tuple(words["also"])
        paths = [str(path) for path in words["layers"]]
        dtypes = dict(zip(paths, map(str, words["dtypes"]), strict=True))
        check_parts(also, scheme)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{file}: its description of quantized layers is damaged: {error}"
        ) from None
    layers = {path: layer_at(model, path) for path in paths}
    check_values(model, layers, dtypes, values)
    scale = torch.ones(1) if scheme.is_static else None
    made = {
        path: QuantizedLayer(layer, scheme, input_scale=None if scale is None else scale.clone())
        for path, layer in layers.items()
    }
    replace_layers(model, layers, made)
    install(model, also, scheme)
    remember(model, scheme, {}, also)


def check_values(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    dtypes: Mapping[str, str],
    values: Mapping[str, Tensor],
) -> None:
    """Refuse scales that no export has, and a model in another dtype than the export's.

    Raises:
        ValueError: names the first tensor.
    """
    for path in layers:
        for name in SCALES:
            scale = values.get(f"{path}.{name}")
            if scale is None:
                continue
            # The scales of blocks of zeros may be the smallest code, which is 0 in some formats.
            wide, is_code = scale.float(), scale.element_size() == 1
            if not bool((torch.isfinite(wide) & ((wide > 0) | (is_code & (wide == 0)))).all()):
                raise ValueError(
                    f"load: {path + '.' + name!r} has a scale that is not positive and finite; "
                    "the file is damaged: export the model again"
                )
    here = {
        name: str(value.dtype).removeprefix("torch.")
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor)
    }
    stored = {name: str(value.dtype).removeprefix("torch.") for name, value in values.items()}
    stored |= {f"{path}.weight": dtype for path, dtype in dtypes.items()}
    for name, dtype in stored.items():
        if here.get(name, dtype) != dtype:
            raise ValueError(
                f"load: {name!r} is in {here[name]}, and was exported in {dtype}; make the model "
                f"in the dtype of the export, as model.to(torch.{dtype})"
            )


SCALES = ("weight_scale", "weight_tensor_scale", "input_scale")


def layer_at(model: nn.Module, path: str) -> nn.Module:
    """A layer of a plain model.

    Raises:
        ValueError: there is none with a weight.
    """
    try:
        found = model.get_submodule(path)
    except AttributeError:
        found = None
    if found is None or not isinstance(getattr(found, "weight", None), Tensor):
        raise ValueError(f"load: the export has a quantized layer {path!r}, and the model has none")
    return found


def quantized_as_described(
    model: nn.Module, scheme: Scheme, tensors: Mapping[str, Tensor], paths: Sequence[str]
) -> nn.Module:
    """A plain model, whose weights are worth what codes say, with the layers of a folder."""
    layers, made = {}, {}
    for path in paths:
        layer = layers[path] = model.get_submodule(path)
        scale = tensors[f"{path}.weight_scale"].float()
        is_whole = scheme.weight.groups.scale_shape((2, 2)) == ()
        made[path] = QuantizedLayer(
            layer,
            scheme,
            weight_scale=scale.reshape(()) if is_whole else scale,
            input_scale=tensors[f"{path}.input_scale"].float() if scheme.is_static else None,
        )
    replace_layers(model, layers, made)
    remember(model, scheme, {}, ())
    return model.eval()
