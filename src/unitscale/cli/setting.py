"""What `--set` can set, for the end of `--help`: fields without an option of their own."""

FIELDS = {
    "warmup_fraction": ("0.05", "share of the steps over which the learning rate rises from zero"),
    "final_lr_fraction": ("0.1", "share of the peak learning rate where the cosine ends"),
    "optimizer": ("adamw", "or sgd with momentum, which needs --lr"),
    "weight_decay": ("0.0", "of the optimizer"),
    "betas": ("[0.9, 0.99]", "of AdamW; of sgd the first is its momentum"),
    "clip_norm": ("none", "largest norm of the gradient of all parameters"),
    "eval_windows": ("256", "fixed validation windows"),
    "eval_every": ("none", "steps between validations; without it the last step is validated"),
    "record_every": ("none", "steps between recordings of every tensor, which `report` shows"),
    "checkpoint_every": ("500", "steps between checkpoints"),
    "remeasure": ("geometric", "when units are measured: geometric, drift, once or never"),
    "existing": ("none", "an existing model, as --model names it"),
}
"""Fields of `TrainConfig`: default and meaning."""

MODEL_FIELDS = {
    "heads": ("2", "attention heads"),
    "expansion": ("4", "hidden width of the MLP over the width"),
    "tau": ("none", "of the residual schemes fixed and ratio"),
    "activation": ("gelu", "of the MLP and the convolution: gelu, relu or silu"),
    "bias": ("false", "biases on linear layers and convolutions"),
    "dropout": ("0.0", "on the output of each branch"),
    "ffn_act_mult": ("1.0", "u-μP, unit-scaled models: multiplier in the MLP's activation"),
    "attn_softmax_mult": ("1.0", "u-μP, unit-scaled models: of the attention's logits"),
    "residual_mult": ("1.0", "u-μP, unit-scaled models: of all branches over the embedding"),
    "residual_attn_ratio": ("1.0", "u-μP, unit-scaled models: of attention's branches over MLPs'"),
    "loss_softmax_mult": ("1.0", "u-μP, unit-scaled models: of the logits in the loss"),
}
"""Options of the built-in model, set as `model.NAME`."""


def lines(fields: dict[str, tuple[str, str]], prefix: str = "") -> str:
    """A line of a Markdown list for each."""
    return "".join(
        f"- `{prefix}{name}`: {meaning} (default {default})\n\n"
        for name, (default, meaning) in fields.items()
    )


EPILOG = (
    "Settings for `--set`:\n\n"
    + lines(FIELDS)
    + lines(MODEL_FIELDS, "model.")
    + "- `model.NAME`: of gpt2 and llama width, depth and heads; of MODULE:FACTORY any argument\n"
)
"""The end of the help of `train` and `compare`."""
