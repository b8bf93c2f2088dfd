"""The models and number formats of the BERT experiments, behind one call for both models.

`transformers` is its own BERT, unchanged, with units by `unit_scale`; `written` is the unit-scaled
model of `unitscale.models.bert`, whose operands are cast as they are by `apply_recipe`.
"""

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

import unitscale as us
from unitscale.models import bert
from unitscale.models.bert_config import BertConfig
from unitscale.optim.rules import Kind

RECIPES = ("fp32", "fp16", "fp8", "fp8-e4m3")
DOUBLING = "fp16-doubling"
"""FP16 with units measured at steps 0, 1, 2, 4, 8 and so on alone, which were once the default."""
CONTROL = "fp8-none"
"""FP8 without units and without a loss scale: what the test must find worse."""
ARMS = (
    *(("transformers", recipe) for recipe in (*RECIPES, DOUBLING, CONTROL)),
    *(("written", recipe) for recipe in RECIPES),
)
RATES = {"transformers": 2.0**-9, "written": 2.0**-2}
"""Peak rates of pre-training, each the best in FP32 of a small sweep: see docs/bert.md."""
RATIO = 0.15
"""Of branch to skip in the written model. In a model so narrow the plain sum starts at 0.05."""
TABLE_RATE = 4.0
"""Of the written model's tables of embeddings, over u-muP's: a short run learns sooner with it."""
FINETUNE_RATES = {"transformers": 2.0**-10, "written": 2.0**-3}


@dataclass(frozen=True, kw_only=True)
class Size:
    """The size of both models; `hidden` is 4 * width, dropout is 0."""

    vocab_size: int = 1024
    width: int = 128
    depth: int = 2
    heads: int = 2
    length: int = 64


class Foreign(nn.Module):
    """A model of `transformers` behind the arguments of our own.

    Args:
        head: "masked", "span", or a number of classes.
    """

    def __init__(self, size: Size, head: str | int) -> None:
        super().__init__()
        config = transformers.BertConfig(
            vocab_size=size.vocab_size,
            hidden_size=size.width,
            num_hidden_layers=size.depth,
            num_attention_heads=size.heads,
            intermediate_size=4 * size.width,
            max_position_embeddings=size.length,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=head if isinstance(head, int) else 2,
        )
        make = {
            "masked": transformers.BertForMaskedLM,
            "span": transformers.BertForQuestionAnswering,
        }.get(str(head), transformers.BertForSequenceClassification)
        self.model = make(config)
        self.head = head

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        segments: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Logits, or the mean cross-entropy."""
        shown = None if mask is None else mask.long()
        output = self.model(ids, attention_mask=shown, token_type_ids=segments)
        if self.head == "span":
            logits = torch.stack((output.start_logits, output.end_logits), -1)
            if mask is not None:
                logits = logits.masked_fill(~mask[..., None], torch.finfo(logits.dtype).min)
            if targets is None:
                return logits
            return (
                F.cross_entropy(logits[..., 0], targets[:, 0])
                + F.cross_entropy(logits[..., 1], targets[:, 1])
            ) / 2
        if targets is None:
            return output.logits
        return F.cross_entropy(output.logits.flatten(0, -2), targets.flatten())


def build(model: str, size: Size, head: str | int, recipe: str, seed: int) -> nn.Module:
    """A model under a recipe, drawn from a seed that all recipes share."""
    torch.manual_seed(seed)
    if model == "transformers":
        return Foreign(size, head)
    config = BertConfig(
        vocab_size=size.vocab_size,
        width=size.width,
        depth=size.depth,
        heads=size.heads,
        hidden=4 * size.width,
        context=size.length,
        dropout=0.0,
        ratio=RATIO,
        unit_scaled=True,
    )
    if head == "masked":
        return bert.MaskedLM(config)
    return bert.SpanFinder(config) if head == "span" else bert.Classifier(config, int(head))


def give(model: nn.Module, recipe: str) -> None:
    """Put a model under a recipe: with units where the recipe has them and the model has not."""
    if recipe == "fp32":
        return
    if recipe == DOUBLING:
        steps = [0, *(2**i for i in range(20))]
        us.unit_scale(model, "fp16", inner="eager", remeasure=steps)
    elif isinstance(model, Foreign) and us.recipe(recipe).unit_scaled:
        us.unit_scale(model, recipe, inner="eager")
    else:
        us.apply_recipe(model, recipe, inner="eager")


def encoder_of(model: nn.Module) -> nn.Module:
    """The part that fine-tuning keeps."""
    found: Any = model.model.bert if isinstance(model, Foreign) else model.bert
    return found


def make_optimizer(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """AdamW in place of the paper's LAMB; u-muP's rates for the written model, no decay."""
    if isinstance(model, Foreign):
        return torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.999), weight_decay=0.0)
    rates: dict[Kind, float] = {"input": TABLE_RATE}
    return us.optim.AdamW(model, rate, betas=(0.9, 0.999), weight_decay=0.0, rates=rates)


def make_schedule(
    optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """A linear warm-up over a tenth of the steps, then linearly to 0, as the paper's."""
    warmup = max(1, steps // 10)

    def factor(step: int) -> float:
        return min((step + 1) / warmup, (steps - step) / (steps - warmup + 1))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
