"""What must be known of an architecture to change its sizes: one row of data for each.

A parameter is named with `*` for the number of its layer, and each of its axes says which space it
is of and what it does there:

    write   makes values of the space: the rows of a matrix, its bias, a table of embeddings
    read    takes them: the columns of a matrix
    gain    the gain of a norm over the space
    shift   its bias
    None    stays as it is

Source: the models of `transformers` 5 (models/gpt2, llama, bert, vit).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from unitscale.anatomy.whole import check_whole, refuse_wrapped

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Use",
    "architecture_of",
    "in_layer",
    "names_at_depth",
    "starred",
]

Role = Literal["write", "read", "gain", "shift"]


class Use(NamedTuple):
    """What an axis is of: spaces, one after another, and what it does there."""

    role: Role
    spaces: tuple[str, ...]


Uses = tuple[Use | None, ...]


def write(*spaces: str) -> Use:
    """An axis that makes values of spaces."""
    return Use("write", spaces)


def read(space: str) -> Use:
    """An axis that takes the values of a space."""
    return Use("read", (space,))


RESIDUAL, Q, KV, FFN = "residual", "q", "kv", "ffn"
GAIN, SHIFT = Use("gain", (RESIDUAL,)), Use("shift", (RESIDUAL,))
TO, FROM = write(RESIDUAL), read(RESIDUAL)


def layer_norm(name: str) -> dict[str, Uses]:
    """The parameters of a norm over the residual stream."""
    return {f"{name}.weight": (GAIN,), f"{name}.bias": (SHIFT,)}


def linear(name: str, out: Use | None, of: Use | None) -> dict[str, Uses]:
    """The parameters of an `nn.Linear`."""
    return {f"{name}.weight": (out, of), f"{name}.bias": (out,)}


def conv1d(name: str, out: Use, of: Use) -> dict[str, Uses]:
    """The parameters of GPT-2's layer, whose weight is [in, out]."""
    return {f"{name}.weight": (of, out), f"{name}.bias": (out,)}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One architecture.

    Attributes:
        fields: the names in the configuration of width, depth, heads, kv_heads, ffn, head_dim and
            eps. "" is one that it does not have.
        norm: what norms over the residual stream subtract: a mean ("layer") or nothing ("rms").
        is_post: a block ends with a norm, so that there is no block that changes nothing.
        layers: the path of the list of layers.
        mlp: of the MLP in a layer.
        tensors: parameters by starred name.
        ends: what a block adds to the residual stream with; zero, it adds nothing.
        last_norm: what a tied read-out reads.
        activations: the space of tensors between ops, by starred name, as in `fnmatch`; the first
        refused: settings of the configuration that nobody here knows, and their harmless value.
    """

    name: str
    fields: Mapping[str, str]
    norm: Literal["layer", "rms"]
    is_post: bool = False
    layers: str
    mlp: str
    tensors: Mapping[str, Uses]
    ends: tuple[str, ...]
    last_norm: str
    activations: tuple[tuple[str, str], ...]
    read_out: tuple[str, ...] = ()
    refused: Mapping[str, Any]


def fields(width: str, depth: str, heads: str, ffn: str, eps: str, **more: str) -> dict[str, str]:
    """Names in a configuration."""
    common = {"width": width, "depth": depth, "heads": heads, "ffn": ffn, "eps": eps}
    return {"kv_heads": "", "head_dim": "", **common, **more}


BERT_FIELDS = fields(
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "layer_norm_eps"
)

H = "transformer.h.*"
GPT2 = Architecture(
    name="gpt2",
    fields=fields("n_embd", "n_layer", "n_head", "n_inner", "layer_norm_epsilon"),
    norm="layer",
    layers="transformer.h",
    mlp="mlp",
    tensors={
        "transformer.wte.weight": (None, TO),
        "transformer.wpe.weight": (None, TO),
        **layer_norm(f"{H}.ln_1"),
        **conv1d(f"{H}.attn.c_attn", write(Q, Q, Q), FROM),
        **conv1d(f"{H}.attn.c_proj", TO, read(Q)),
        **layer_norm(f"{H}.ln_2"),
        **conv1d(f"{H}.mlp.c_fc", write(FFN), FROM),
        **conv1d(f"{H}.mlp.c_proj", TO, read(FFN)),
        **layer_norm("transformer.ln_f"),
        **linear("lm_head", None, FROM),
    },
    ends=(f"{H}.attn.c_proj", f"{H}.mlp.c_proj"),
    last_norm="transformer.ln_f",
    activations=(
        (f"{H}.attn.c_proj.view", Q),
        (f"{H}.attn.c_proj.*", RESIDUAL),
        (f"{H}.attn.c_attn.view", RESIDUAL),
        (f"{H}.attn.tensor*", ""),
        (f"{H}.attn.*", Q),
        (f"{H}.mlp.c_fc.view", RESIDUAL),
        (f"{H}.mlp.c_proj.view", FFN),
        (f"{H}.mlp.c_proj.*", RESIDUAL),
        (f"{H}.mlp.*", FFN),
        ("transformer.*", RESIDUAL),
        ("getitem*", RESIDUAL),
    ),
    read_out=("transformer.ln_f.*", "transformer.view*", "getitem*"),
    refused={"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
)

L = "model.layers.*"
SUMS = ("mean", "add", "rsqrt")
"""Ops of an RMSNorm that give one number a token."""
LLAMA = Architecture(
    name="llama",
    fields=fields(
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "rms_norm_eps",
        kv_heads="num_key_value_heads",
        head_dim="head_dim",
    ),
    norm="rms",
    layers="model.layers",
    mlp="mlp",
    tensors={
        "model.embed_tokens.weight": (None, TO),
        f"{L}.input_layernorm.weight": (GAIN,),
        **linear(f"{L}.self_attn.q_proj", write(Q), FROM),
        **linear(f"{L}.self_attn.k_proj", write(KV), FROM),
        **linear(f"{L}.self_attn.v_proj", write(KV), FROM),
        **linear(f"{L}.self_attn.o_proj", TO, read(Q)),
        f"{L}.post_attention_layernorm.weight": (GAIN,),
        **linear(f"{L}.mlp.gate_proj", write(FFN), FROM),
        **linear(f"{L}.mlp.up_proj", write(FFN), FROM),
        **linear(f"{L}.mlp.down_proj", TO, read(FFN)),
        "model.norm.weight": (GAIN,),
        **linear("lm_head", None, FROM),
    },
    ends=(f"{L}.self_attn.o_proj", f"{L}.mlp.down_proj"),
    last_norm="model.norm",
    activations=(
        *((f"{L}.*_layernorm.{op}", "") for op in SUMS),
        *((f"{L}.input_layernorm.{op}", "") for op in SUMS),
        *((f"model.norm.{op}", "") for op in SUMS),
        (f"{L}.self_attn.o_proj.*", RESIDUAL),
        *((f"{L}.self_attn.{op}", "") for op in ("unsqueeze*", "tensor*")),
        *(
            (f"{L}.self_attn.{op}", KV)
            for op in (
                *("k_proj.*", "v_proj.*", "view#1", "view#2", "transpose#1", "transpose#2"),
                *("mul#2", "mul#3", "getitem#2", "getitem#3", "neg#1", "add#1"),
                *("getitem#4", "getitem#5"),
                *("cat#1", "cat#2", "cat#3"),
            )
        ),
        (f"{L}.self_attn.*", Q),
        (f"{L}.mlp.down_proj.*", RESIDUAL),
        (f"{L}.mlp.*", FFN),
        ("model.rotary_emb.*", ""),
        ("model.*", RESIDUAL),
        ("getitem*", RESIDUAL),
    ),
    read_out=("model.norm.mul#1", "getitem*"),
    refused={},
)

B = "bert.encoder.layer.*"
BERT = Architecture(
    name="bert",
    fields=BERT_FIELDS,
    norm="layer",
    is_post=True,
    layers="bert.encoder.layer",
    mlp="",  # it is spread over two modules
    tensors={
        "bert.embeddings.word_embeddings.weight": (None, TO),
        "bert.embeddings.position_embeddings.weight": (None, TO),
        "bert.embeddings.token_type_embeddings.weight": (None, TO),
        **layer_norm("bert.embeddings.LayerNorm"),
        **linear(f"{B}.attention.self.query", write(Q), FROM),
        **linear(f"{B}.attention.self.key", write(Q), FROM),
        **linear(f"{B}.attention.self.value", write(Q), FROM),
        **linear(f"{B}.attention.output.dense", TO, read(Q)),
        **layer_norm(f"{B}.attention.output.LayerNorm"),
        **linear(f"{B}.intermediate.dense", write(FFN), FROM),
        **linear(f"{B}.output.dense", TO, read(FFN)),
        **layer_norm(f"{B}.output.LayerNorm"),
        **linear("bert.pooler.dense", TO, FROM),
        **linear("classifier", None, FROM),
        **linear("qa_outputs", None, FROM),
        **linear("cls.seq_relationship", None, FROM),
        **linear("cls.predictions.transform.dense", TO, FROM),
        **layer_norm("cls.predictions.transform.LayerNorm"),
        **linear("cls.predictions.decoder", None, FROM),
        "cls.predictions.bias": (None,),
    },
    ends=(f"{B}.attention.output.dense", f"{B}.output.dense"),
    last_norm="cls.predictions.transform.LayerNorm",
    activations=(
        (f"{B}.attention.self.*", Q),
        (f"{B}.attention.*", RESIDUAL),
        (f"{B}.intermediate.*", FFN),
        ("cls.predictions.decoder.*", ""),
        ("cls.predictions.*", RESIDUAL),
        ("bert.*", RESIDUAL),
        ("dropout*", RESIDUAL),
    ),
    read_out=("cls.predictions.transform.LayerNorm.*",),
    refused={"is_decoder": False, "add_cross_attention": False},
)

V = "vit.layers.*"
VIT = Architecture(
    name="vit",
    fields=BERT_FIELDS,
    norm="layer",
    layers="vit.layers",
    mlp="mlp",
    tensors={
        "vit.embeddings.cls_token": (None, None, TO),
        "vit.embeddings.mask_token": (None, None, TO),
        "vit.embeddings.position_embeddings": (None, None, TO),
        "vit.embeddings.patch_embeddings.projection.weight": (TO, None, None, None),
        "vit.embeddings.patch_embeddings.projection.bias": (TO,),
        **layer_norm(f"{V}.layernorm_before"),
        **linear(f"{V}.attention.q_proj", write(Q), FROM),
        **linear(f"{V}.attention.k_proj", write(Q), FROM),
        **linear(f"{V}.attention.v_proj", write(Q), FROM),
        **linear(f"{V}.attention.o_proj", TO, read(Q)),
        **layer_norm(f"{V}.layernorm_after"),
        **linear(f"{V}.mlp.fc1", write(FFN), FROM),
        **linear(f"{V}.mlp.fc2", TO, read(FFN)),
        **layer_norm("vit.layernorm"),
        **linear("classifier", None, FROM),
    },
    ends=(f"{V}.attention.o_proj", f"{V}.mlp.fc2"),
    last_norm="vit.layernorm",
    activations=(
        (f"{V}.attention.o_proj.*", RESIDUAL),
        (f"{V}.attention.*", Q),
        (f"{V}.mlp.fc2.*", RESIDUAL),
        (f"{V}.mlp.*", FFN),
        ("vit.*", RESIDUAL),
        ("getitem*", RESIDUAL),
    ),
    refused={},
)

ARCHITECTURES = {known.name: known for known in (GPT2, LLAMA, BERT, VIT)}
"""By `model_type` of the configuration."""


def architecture_of(model: Any, who: str) -> Architecture:
    """The architecture of a model of `transformers`.

    Args:
        who: asks, for the errors: "growth" or "compress".
    Raises:
        ValueError: it is none that is known, or has a parameter or a setting that it does not,
            or it is wrapped, or its parameters are not whole (see `check_whole`).
    """
    refuse_wrapped(model, who)
    name, config = type(model).__name__, getattr(model, "config", None)
    found = ARCHITECTURES.get(getattr(config, "model_type", ""))
    if found is None:
        kind = getattr(config, "model_type", None)
        of = f" of model_type {kind!r}" if kind else ""
        raise ValueError(
            f"{who}: {name}{of} is no architecture that {who} knows; expected a model of "
            f"transformers of model_type {', '.join(ARCHITECTURES)}"
        )
    check_whole(model, who)
    for setting, harmless in found.refused.items():
        if getattr(config, setting, harmless) != harmless:
            raise ValueError(
                f"{who}: {name} has {setting}={getattr(config, setting)!r}, which {who} does not "
                f"know; expected {harmless!r}"
            )
    for parameter, _ in model.named_parameters():
        if starred(parameter, found.layers)[0] not in found.tensors:
            raise ValueError(
                f"{who}: {name} has a parameter {parameter!r}, which {who} does not know of a "
                f"{found.name}; expected {expected_classes(found)}"
            )
    own = dict(model.named_parameters())
    for parameter, _ in model.named_parameters(remove_duplicate=False):
        if parameter not in own and starred(parameter, found.layers)[1] is not None:
            raise ValueError(
                f"{who}: {parameter!r} of this {name} is shared with another layer; {who} knows "
                "layers with weights of their own: give each a copy of its module"
            )
    return found


def expected_classes(architecture: Architecture) -> str:
    """Classes of `transformers` that have no other parameters."""
    return {
        "gpt2": "GPT2LMHeadModel",
        "llama": "LlamaForCausalLM",
        "bert": "BertForMaskedLM, or a Bert model with a classifier",
        "vit": "ViTForImageClassification",
    }[architecture.name]


def starred(name: str, layers: str) -> tuple[str, int | None]:
    """A name with `*` for the number of its layer, and that number; None outside of layers."""
    start = f"{layers}."
    if name.startswith(start):
        number, _, rest = name.removeprefix(start).partition(".")
        if number.isdecimal() and rest:
            return f"{start}*.{rest}", int(number)
    return name, None


def in_layer(star: str, number: int) -> str:
    """The inverse of `starred`."""
    return star.replace(".*.", f".{number}.", 1)


def names_at_depth(names: Iterable[str], layers: str, depth: int) -> list[str]:
    """The names of the parameters of a model with another number of layers."""
    inner: dict[str, None] = {}
    outer = []
    for name in names:
        star, layer = starred(name, layers)
        if layer is None:
            outer.append(name)
        else:
            inner[star] = None
    return outer + [in_layer(star, layer) for layer in range(depth) for star in inner]
