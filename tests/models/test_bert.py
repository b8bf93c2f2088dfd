"""BERT: one definition, two parametrizations, three heads; scales at the start, and memory."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import unitscale as us
from unitscale.memory.plan import kept_at, plan_memory, sizes_at
from unitscale.memory.source import Source
from unitscale.models.bert import Classifier, MaskedLM, SpanFinder, masked_lm
from unitscale.models.bert_config import BERT_BASE, BERT_LARGE, PHASES, SIZES, BertConfig
from unitscale.models.parts import SumResidual
from unitscale.recipes import parse
from validity import assert_valid_gradients

SMALL = BertConfig(
    vocab_size=97, width=32, depth=2, heads=2, hidden=64, context=16, dropout=0.0, unit_scaled=True
)
MIDDLE = replace(SMALL, vocab_size=512, width=128, depth=4, heads=4, hidden=512, context=64)
HEADS = ("masked", "classes", "span")


def make(head: str, config: BertConfig) -> nn.Module:
    if head == "masked":
        return MaskedLM(config)
    return Classifier(config, 8) if head == "classes" else SpanFinder(config)


def batch(head: str, config: BertConfig, rows: int = 16) -> tuple[Tensor, Tensor]:
    ids = torch.randint(config.vocab_size, (rows, config.context))
    if head == "masked":
        asked = torch.rand(ids.shape) < config.masked_fraction
        return ids, torch.where(asked, ids, -100)
    if head == "classes":
        return ids, torch.randint(8, (rows,))
    return ids, torch.randint(config.context, (rows, 2))


def rms(x: Tensor) -> float:
    return x.detach().square().mean().sqrt().item()


def measure(head: str, config: BertConfig) -> tuple[dict[str, float], ...]:
    """Rms of outputs, of their gradients and of parameter gradients, by name."""
    outputs: dict[str, float] = {}
    grads: dict[str, float] = {}

    def watch(name: str) -> object:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            outputs[name] = rms(output)
            output.register_hook(lambda grad: grads.__setitem__(name, rms(grad)))

        return hook

    model = make(head, config)
    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(watch(name))
    model(*batch(head, config)).backward()
    return outputs, grads, {name: rms(p.grad) for name, p in model.named_parameters()}


def assert_within(values: dict[str, float], low: float, high: float) -> None:
    outside = {name: value for name, value in values.items() if not low < value < high}
    assert not outside, f"outside [{low}, {high}]: {outside}"


def test_assert_within_names_what_is_outside() -> None:
    with pytest.raises(AssertionError, match="b"):
        assert_within({"a": 1.0, "b": 3.0, "c": 1.0}, 0.5, 2.0)


# Query, key and value have a smaller gradient: one factor for all three, and the average over a
# sequence shrinks the gradient of each value. Bands are the measured ranges widened by a third.
ATTENTION = ("query", "key", "value")
# Mathematical zeros: a softmax does not change when all its logits move.
ZERO = {"span": ("key.bias", "layers.3.mlp_norm.bias", "readout.bias")}


@pytest.mark.parametrize("head", HEADS)
def test_unit_scaled_bert_starts_in_range(head: str) -> None:
    outputs, grads, weight_grads = measure(head, MIDDLE)
    logits = outputs.pop("readout")
    # Columns of the read-out are few (2 of a span's) and the stream's rows much alike.
    assert 0.5 < logits * MIDDLE.width**0.5 < 1.5
    inner = {name: g for name, g in grads.items() if name.endswith(ATTENTION)}
    assert_within(outputs, 0.4, 1.5)
    assert_within(inner, 0.06, 0.4)
    assert_within({name: g for name, g in grads.items() if name not in inner}, 0.7, 1.8)
    zero = ZERO.get(head, ("key.bias",))
    assert_within({n: g for n, g in weight_grads.items() if not n.endswith(zero)}, 0.03, 2.6)


@pytest.mark.parametrize("head", HEADS)
def test_standard_bert_does_not(head: str) -> None:
    outputs, grads, _ = measure(head, replace(MIDDLE, unit_scaled=False))
    assert min(outputs.values()) < 0.1
    assert max(grads.values()) < 0.05


@pytest.mark.parametrize("head", HEADS)
def test_gradients_are_the_true_ones_up_to_a_constant_for_each_parameter(head: str) -> None:
    config = replace(SMALL, dropout=0.1)
    model = make(head, config).double()
    ids, targets = batch(head, config, rows=3)
    mask = torch.arange(16) < torch.tensor([16, 9, 12])[:, None]
    segments = (torch.arange(16) > 5).long().expand_as(ids)
    if head == "span":
        targets = targets.clamp(max=8)
    assert_valid_gradients(model, ids, targets, segments, mask)


def test_the_default_ratio_is_that_of_plain_sums_at_the_start_of_bert_base(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []

    def add(branch: Tensor, skip: Tensor, tau: float = 1.0) -> Tensor:
        found.append(rms(branch) / rms(skip))
        return skip + branch

    monkeypatch.setattr(SumResidual, "add", staticmethod(add))
    config = replace(BERT_BASE, depth=1, vocab_size=64, dropout=0.0)
    MaskedLM(config).bert(torch.randint(64, (2, 64)))
    assert len(found) == 2
    assert 0.1 < min(found) < config.ratio < max(found) < 0.5


def test_standard_and_unit_scaled_have_the_same_parameters() -> None:
    for head in HEADS:
        shapes = [
            {name: p.shape for name, p in make(head, config).named_parameters()}
            for config in (SMALL, replace(SMALL, unit_scaled=False))
        ]
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize("unit_scaled", [False, True])
def test_padding_changes_nothing_before_it(unit_scaled: bool) -> None:
    model = SpanFinder(replace(SMALL, unit_scaled=unit_scaled))
    ids = torch.randint(97, (2, 16))
    mask = (torch.arange(16) < 10).expand_as(ids)
    logits = model(ids, mask=mask)
    other = torch.where(mask, ids, 3)
    assert torch.equal(model(other, mask=mask)[:, :10], logits[:, :10])
    assert not torch.equal(model(other)[:, :10], model(ids)[:, :10])
    assert (logits[:, 10:] < -1e30).all()


@pytest.mark.parametrize("recipe", ["fp16", "fp8-e4m3"])
def test_recipes_without_a_loss_scale_keep_the_gradients_of_the_unit_scaled_model(
    recipe: str,
) -> None:
    """Of E4M3's rounding, 3 % each, about a tenth is left in the gradient of a small model."""
    config = replace(SMALL, depth=1)
    ids, targets = batch("masked", config)
    torch.manual_seed(1)
    plain = MaskedLM(config)
    plain(ids, targets).backward()
    torch.manual_seed(1)
    rounded = us.apply_recipe(MaskedLM(config), recipe)
    rounded(ids, targets).backward()
    for (name, p), q in zip(plain.named_parameters(), rounded.parameters(), strict=True):
        if not name.endswith("key.bias"):  # a mathematical zero
            error = (p.grad - q.grad).norm() / p.grad.norm()
            assert error < (0.01 if recipe == "fp16" else 0.35), name
            assert error > 0 or "readout.bias" in name


def test_bert_learns_which_token_was_there() -> None:
    """Pairs of equal neighbors: a masked one is known from the other, and from nothing else."""
    model = MaskedLM(replace(SMALL, vocab_size=17, depth=1))
    optimizer = us.optim.AdamW(model, 0.25)
    losses = []
    for _ in range(80):
        ids = torch.randint(16, (32, 8)).repeat_interleave(2, 1)
        asked = torch.zeros_like(ids, dtype=torch.bool)
        asked[:, ::6] = True
        loss = model(torch.where(asked, 16, ids), torch.where(asked, ids, -100))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert 2.6 < losses[0] < 3.1  # ln 17 = 2.83
    assert sum(losses[-10:]) / 10 < 1.8  # ln 16 = 2.77 without the neighbor


def test_sizes_are_those_of_the_paper() -> None:
    base, large = SIZES["bert-base"], SIZES["bert-large"]
    assert (base.width, base.depth, base.heads, base.hidden) == (768, 12, 12, 3072)
    assert (large.width, large.depth, large.heads, large.hidden) == (1024, 24, 16, 4096)
    assert base.vocab_size == large.vocab_size == 30400
    for phase in PHASES:
        parts = phase.micro_batch * phase.data_parallel * phase.accumulation
        assert phase.batch_size == parts
        assert phase.sequence_length <= BERT_BASE.context == BERT_LARGE.context


def test_memory_by_kind_is_planned_from_the_shapes_alone() -> None:
    changes = {"depth": 2, "width": 64, "heads": 1, "hidden": 128, "vocab_size": 320}
    options = {"size": "bert-base", "unit_scaled": True, **changes}
    source = Source(
        name="bert", dtype="fp32", factory="unitscale.models.bert:masked_lm", options=options
    )
    sizes = sizes_at(source)
    model = masked_lm(**options)
    assert sizes.total == sum(p.numel() for p in model.parameters())
    kept = kept_at(source, parse("fp32"), length=32, total=sizes.total)
    plan = plan_memory(
        sizes, kept, recipe="fp32", states="fp32", dtype="fp32", ranks=1, micro_batch=4
    )
    assert plan.weights == plan.gradients == 4 * sizes.total
    assert plan.moments == 8 * sizes.total
    assert plan.activations > 4 * 4 * 32 * 320  # the logits alone


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"depth": 2.0}, TypeError, r"depth=2\.0"),
        ({"depth": 0}, ValueError, "depth=0"),
        ({"unit_scaled": 1}, TypeError, "unit_scaled=1"),
        ({"heads": 3}, ValueError, "width=32 is not a multiple of heads=3"),
        ({"dropout": 1.0}, ValueError, r"dropout=1\.0"),
        ({"ratio": 0.0}, ValueError, r"ratio=0\.0"),
        ({"masked_fraction": 0.0}, ValueError, r"masked_fraction=0\.0"),
    ],
)
def test_bad_settings_are_refused(change: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        replace(SMALL, **change)


def test_bad_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="ids has 17 positions"):
        MaskedLM(SMALL)(torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(ValueError, match="num_classes=1"):
        Classifier(SMALL, 1)
    with pytest.raises(ValueError, match="unknown size 'bert-huge'; use bert-base or bert-large"):
        masked_lm("bert-huge")
