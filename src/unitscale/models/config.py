"""The settings of the character language model."""

from dataclasses import dataclass

CHOICES = {
    "layer": ("attention", "conv", "rnn"),
    "norm": ("pre", "post", "none", "res-post"),
    "residual": ("default", "fixed", "running-mean", "ratio"),
    "activation": ("gelu", "relu", "silu"),
}
TAU = {"fixed": 0.5, "ratio": 1.0}  # where tau is None; the others have no tau
DEFAULT_RATIO = 0.5  # the plain sums of the standard model start at 0.17 to 0.48
MULTIPLIERS = (
    *("ffn_act_mult", "attn_softmax_mult", "residual_mult", "residual_attn_ratio"),
    "loss_softmax_mult",
)
CONV_KERNEL = 7
CONV_GROUPS = 8


@dataclass(frozen=True, kw_only=True)
class CharLMConfig:
    """Settings of a `CharLM`; the same settings serve the standard and the unit-scaled model.

    Args:
        vocab_size: number of symbols; 256 for bytes.
        width: size of the residual stream.
        depth: number of pairs of sequence layer and MLP, so of `2 * depth` residual branches.
        heads: attention heads.
        context: longest sequence the model takes.
        expansion: hidden width of the MLP over `width`.
        layer: the sequence layer: "attention" (rotary positions), "conv" (causal, kernel 7,
            8 groups) or "rnn" (recurrent highway).
        norm: LayerNorm "pre" each branch, "post" each sum, "res-post" each branch's output before
            the sum, or "none". The embedding and the read-out's input are normalized in all four.
        residual: "fixed": the branch has the share `tau` of the variance; "running-mean": all
            branches and the embedding have equal shares; "ratio": branch over skip is `tau`;
            "default": the plain sum `x + f(x)`, which the unit-scaled model holds at unit scale,
            with a branch half as large as the skip (`DEFAULT_RATIO`).
        tau: for "fixed" (None: 0.5) and "ratio" (None: 1).
        activation: of the MLP and of the convolution.
        bias: biases on linear layers and convolutions.
        dropout: on each branch's output.
        unit_scaled: the unit-scaled parametrization instead of the standard one.
        ffn_act_mult, attn_softmax_mult, residual_mult, residual_attn_ratio, loss_softmax_mult:
            u-muP's multipliers, of the unit-scaled model alone: of the MLP's activation, the
            attention's logits, all branches (`unn.Multipliers`), those of the sequence layers over
            those of the MLPs, and the logits in the loss. At 1 they change no bit.
    Raises:
        TypeError, ValueError: a field is not of its type or outside its range.
    """

    vocab_size: int = 256
    width: int = 128
    depth: int = 4
    heads: int = 2
    context: int = 128
    expansion: int = 4
    layer: str = "attention"
    norm: str = "pre"
    residual: str = "default"
    tau: float | None = None
    activation: str = "gelu"
    bias: bool = False
    dropout: float = 0.0
    unit_scaled: bool = False
    ffn_act_mult: float = 1.0
    attn_softmax_mult: float = 1.0
    residual_mult: float = 1.0
    residual_attn_ratio: float = 1.0
    loss_softmax_mult: float = 1.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "depth", "heads", "context", "expansion"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"CharLMConfig: {name}={value!r} must be an int.")
            if value < 1:
                raise ValueError(f"CharLMConfig: {name}={value} must be at least 1.")
        for name in ("bias", "unit_scaled"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"CharLMConfig: {name}={getattr(self, name)!r} must be a bool.")
        for name, legal in CHOICES.items():
            if getattr(self, name) not in legal:
                raise ValueError(
                    f"CharLMConfig: unknown {name} {getattr(self, name)!r}; use {', '.join(legal)}."
                )
        if self.layer == "attention" and self.width % (2 * self.heads):
            raise ValueError(
                f"CharLMConfig: width={self.width} is not a multiple of 2 * heads="
                f"{2 * self.heads}; rotary positions turn pairs of elements of each head."
            )
        if self.layer == "conv" and self.width % CONV_GROUPS:
            raise ValueError(
                f"CharLMConfig: width={self.width} is not a multiple of {CONV_GROUPS}, "
                "the groups of the convolution."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"CharLMConfig: dropout={self.dropout} is not in [0, 1).")
        self.check_tau()
        self.check_multipliers()

    def check_multipliers(self) -> None:
        """Raise TypeError or ValueError unless each is a positive number that has an effect."""
        for name in MULTIPLIERS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"CharLMConfig: {name}={value!r} must be a number.")
            if not 0 < value < float("inf"):
                raise ValueError(f"CharLMConfig: {name}={value} is not a positive number.")
            if value != 1 and not self.unit_scaled:
                raise ValueError(
                    f"CharLMConfig: {name}={value} has no meaning in the standard model; leave it "
                    "out, or use a recipe of the unit-scaled one."
                )
        if self.attn_softmax_mult != 1 and self.layer != "attention":
            raise ValueError(
                f"CharLMConfig: attn_softmax_mult={self.attn_softmax_mult} has no meaning for "
                f"layer={self.layer!r}; leave it out."
            )

    def check_tau(self) -> None:
        """Raise ValueError unless `tau` suits `residual`."""
        if self.tau is None:
            return
        if self.residual not in TAU:
            raise ValueError(
                f"CharLMConfig: tau={self.tau} has no meaning for residual={self.residual!r}; "
                f"leave it out, or use residual {' or '.join(map(repr, TAU))}."
            )
        upper = 1.0 if self.residual == "fixed" else float("inf")
        if not 0 < self.tau < upper:
            raise ValueError(
                f"CharLMConfig: tau={self.tau} is not between 0 and {upper} (both excluded), as "
                f"residual={self.residual!r} needs."
            )
