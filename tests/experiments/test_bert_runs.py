"""The BERT experiments at a tiny size, from a text to the tables."""

import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

import bert_finetune
import bert_pretrain
import bert_report
from bert_arms import (
    ARMS,
    CONTROL,
    DOUBLING,
    RECIPES,
    Size,
    build,
    give,
    make_optimizer,
    make_schedule,
)
from bert_tasks import Examples, read_glosses, sentences, span_examples
from bert_text import END, FIRST, IGNORED, MASK, PAD, SPECIAL, Stream, load_tokenizer
from unitscale.data import open_corpus

# 2026-11-24: torch 2.13's Dynamo reads `.grad` of what crosses a graph break.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

WORDS = "the old grey cat and dog saw big red trees near warm blue water under tall white hills"
TINY = ["--vocab-size", "80", "--width", "16", "--depth", "1", "--length", "32"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    draw = torch.Generator().manual_seed(0)
    words = WORDS.split()
    path = tmp_path_factory.mktemp("text") / "text.txt"
    lines = []
    for _ in range(300):
        picks = torch.randint(len(words), (3, 8), generator=draw).tolist()
        lines.append(" ".join(" ".join(words[i] for i in row) + " ." for row in picks))
    path.write_text("= Heading of the text =\n" + "\n".join(lines))
    glosses = [f'{i:08d} {3 + i % 26:02d} n 01 x 0 | {line}; "no"' for i, line in enumerate(lines)]
    (path.parent / "data.noun").write_text("  1 A licence | of it\n" + "\n".join(glosses))
    corpus = open_corpus(path)
    return SimpleNamespace(
        path=path, corpus=corpus, tokenizer=load_tokenizer(corpus, 80, path.parent)
    )


def test_a_batch_depends_on_seed_and_step_only_and_asks_about_15_percent(text):
    stream = Stream.of(text.corpus.train, text.tokenizer)
    batch = stream.batch(batch_size=64, length=32, seed=3, step=5)
    again = stream.batch(batch_size=64, length=32, seed=3, step=5)
    assert torch.equal(batch.ids, again.ids)
    assert not torch.equal(batch.ids, stream.batch(batch_size=64, length=32, seed=3, step=6).ids)
    asked = batch.targets != IGNORED
    # 64 * 29 draws: 0.15 +- 4 standard errors of 0.0083.
    assert 0.117 < asked.sum().item() / (64 * 29) < 0.183
    assert torch.equal(batch.ids[~asked], restored(batch)[~asked])
    assert 0.6 < (batch.ids[asked] == MASK).float().mean() < 0.95
    assert (batch.ids[:, 0] == FIRST).all()
    assert (batch.ids[:, -1] == END).all()
    assert (batch.segments.sum(1) == 16).all()
    assert (batch.targets[asked] >= len(SPECIAL)).all()


def restored(batch):
    return torch.where(batch.targets == IGNORED, batch.ids, batch.targets)


def test_what_wikitext_writes_for_rare_words_is_one_unknown_piece(text, tmp_path):
    path = tmp_path / "wiki.txt"
    path.write_text("a well @-@ known <unk> of 1 @,@ 000 men\n" * 20)
    line = Stream.of(open_corpus(path).train, text.tokenizer).ids[:40].tolist()
    assert line.count(SPECIAL.index("[UNK]")) >= 1
    assert "@" not in text.tokenizer.decode(line)


def test_sentences_of_a_heading_are_left_out_and_runs_are_in_order(text):
    runs = sentences(text.corpus.train)
    assert all(not sentence.startswith("=") for run in runs for sentence in run)
    assert {len(run) for run in runs} <= {2, 3}  # the last line of a split may be cut


def test_a_span_is_where_its_words_are_and_not_in_the_question(text):
    found = list(span_examples(text.corpus.valid, text.tokenizer))
    assert len(found) > 20
    examples = Examples.of(found, 64)
    for (question, passage, (first, last)), row, span in zip(
        found, examples.ids, examples.targets, strict=True
    ):
        answer = passage[first : last + 1]
        assert row[span[0] : span[1] + 1].tolist() == answer
        assert question.count(MASK) == 1
        position = question.index(MASK)
        assert question[:position] == passage[first - position : first]


def test_examples_are_cut_and_padded_to_one_length():
    examples = Examples.of([([7] * 9, [8] * 9, [1]), ([7], [8], [0]), ([9] * 30, [], [1])], 12)
    assert examples.ids.shape == (3, 12)
    assert examples.ids[1].tolist() == [FIRST, 7, END, 8, END] + [PAD] * 7
    assert examples.segments[1].tolist() == [0, 0, 0, 1, 1] + [0] * 7
    assert examples.ids[0].tolist() == [FIRST, *[7] * 4, END, *[8] * 5, END]
    assert examples.ids[2].tolist() == [FIRST, *[9] * 10, END]
    assert examples.mask.sum(1).tolist() == [12, 5, 12]
    assert examples.targets.tolist() == [1, 0, 1]


def test_glosses_are_read_without_their_examples(text):
    found = list(read_glosses(text.path.parent))
    assert len(found) == 300
    assert [group for group, _ in found[:27]] == [*range(26), 0]
    assert not any(";" in gloss or '"' in gloss for _, gloss in found)
    with pytest.raises(FileNotFoundError, match=r"no data\.noun"):
        list(read_glosses(text.path.parent / "none"))


def test_spans_are_scored_by_their_common_tokens():
    found = torch.tensor([[2, 3], [2, 3], [2, 3], [5, 8]])
    wanted = torch.tensor([[2, 3], [3, 4], [7, 9], [5, 5]])
    f1, exact = bert_finetune.span_scores(found, wanted)
    assert f1 == pytest.approx((1 + 0.5 + 0 + 2 / 5) / 4)
    assert exact == 0.25
    logits = torch.zeros(1, 5, 2)
    logits[0, 3, 0], logits[0, 1, 1] = 5.0, 4.0  # the best end comes before the best start
    first, last = bert_finetune.best_spans(logits)[0].tolist()
    assert (first, last) == (3, 3)


def test_the_rate_rises_over_a_tenth_of_the_steps_and_falls_to_almost_nothing():
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    schedule, rates = make_schedule(optimizer, 100), []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates.index(max(rates)) in (9, 10)
    assert 0.95 < max(rates) <= 1.0
    assert 0 < rates[-1] < 0.02
    assert rates[0] == pytest.approx(0.1)


def test_all_recipes_of_a_model_start_with_the_same_weights():
    size = Size(vocab_size=80, width=16, depth=1, length=32)
    for name in ("transformers", "written"):
        weights = []
        for recipe in (RECIPES[0], RECIPES[2], DOUBLING):
            if (name, recipe) not in ARMS:
                continue
            model = build(name, size, "masked", recipe, 4)
            give(model, recipe)
            weights.append([p.detach().clone() for p in model.parameters()])
            assert make_optimizer(model, 0.5).param_groups
        assert all(all(map(torch.equal, weights[0], other)) for other in weights[1:])


def call(monkeypatch, main, *line):
    monkeypatch.setattr(sys, "argv", ["script", *line])
    main()


def test_runs_are_made_once_and_come_out_as_tables(text, tmp_path, monkeypatch, capsys):
    chosen = ["--out", str(tmp_path), "--data", str(text.path), "--seeds", "0", *TINY]
    chosen += ["--recipes", "fp32", "--steps", "3"]
    more = ["--wordnet", str(text.path.parent), "--finetune-steps", "2", "--examples", "40"]
    monkeypatch.setattr(bert_pretrain, "EVALUATED", 16)
    call(monkeypatch, bert_pretrain.main, *chosen)
    first = capsys.readouterr().out
    assert [line.split(":")[0] for line in first.splitlines()] == [
        "transformers-fp32-0",
        "written-fp32-0",
    ]
    call(monkeypatch, bert_pretrain.main, *chosen)
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit, match=r"other settings \(steps\); use another --out"):
        call(monkeypatch, bert_pretrain.main, *chosen[:-1], "4")
    call(monkeypatch, bert_finetune.main, *chosen, *more)
    assert len(list(tmp_path.glob("finetune/*.json"))) == 4
    page = tmp_path / "page.md"
    page.write_text("before\n" + "\nold\n".join(bert_report.MARKS) + "\nafter\n")
    monkeypatch.setattr(sys, "argv", ["script", "--out", str(tmp_path), "--page", str(page)])
    bert_report.main()
    made = page.read_text()
    assert made.startswith("before\n")
    assert made.endswith("after\n")
    assert "old" not in made
    assert "| written | `fp32` |" in made
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="lacks the lines"):
        bert_report.main()


def test_weights_of_another_size_are_refused(text):
    size = Size(vocab_size=80, width=16, depth=1, length=32)
    for name in ("transformers", "written"):
        weights = bert_pretrain.unique(build(name, size, "masked", "fp32", 0))
        model = build(name, size, "span", "fp32", 1)
        bert_finetune.load_encoder(model, weights)
        own = dict(model.named_parameters())
        assert all(torch.equal(own[key], value) for key, value in weights.items() if "bert." in key)
        deeper = build(name, Size(vocab_size=80, width=16, depth=2, length=32), 5, "fp32", 0)
        with pytest.raises(ValueError, match=r"is missing; expected .*pre-trained with this size"):
            bert_finetune.load_encoder(deeper, weights)


def test_a_run_that_diverges_ends_there_and_is_worse(text):
    size = Size(vocab_size=80, width=16, depth=1, length=32)
    stream = Stream.of(text.corpus.train, text.tokenizer)
    arguments = ("written", "fp32", 0, size, 5, 1e30, lambda name: stream)
    result, _ = bert_pretrain.pretrain(*arguments)
    assert result["loss"] is None
    assert 0 < result["diverged_at"] < 5
    key = ("mlm", "written", "fp16")
    values = {key: {0: math.inf, 1: 5.0}, ("mlm", "written", "fp32"): {0: 5.0, 1: 5.0}}
    assert bert_report.value_cell(values, *key) == "1 of 2 diverged"
    assert bert_report.verdict_cell(values, *key) == "+inf: worse"


def test_verdicts_pair_the_seeds_that_both_have(tmp_path):
    for model, recipe in ARMS:
        if (model, recipe) == ("written", "fp16"):
            continue
        for seed in range(3 if recipe != "fp8" else 2):
            loss = 5.0 + 0.1 * seed + 0.002 * (recipe != "fp32") * seed + (recipe == CONTROL)
            run = {
                "setting": {"data": "x", "steps": 1, "batch_size": 1, "length": 1}
                | {"vocab_size": 1, "depth": 1, "width": 1},
                "result": {"loss": loss, "cpu_s": 60.0},
            }
            path = tmp_path / "pretrain" / f"{model}-{recipe}-{seed}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(run))
    made = bert_report.report(list(bert_report.read(tmp_path)))
    assert "| transformers | `fp8-none` (control) | +1.002 ± 0.003: worse |" in made
    assert "| transformers | `fp8` | +0.001 ± 0.006: equivalent |" in made
    assert "| written | `fp16` | - |" in made
    assert "masked-LM loss (± 0.05)" in made
    assert "| written | `fp32` | 5.1" in made
