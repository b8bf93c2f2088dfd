"""Recording a run: which rows, what it leaves untouched, and that faults are found."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from unitscale.formats import E4M3FN, E5M2, FP16
from unitscale.record import record
from unitscale.report import judge, read_recording, write_html


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)

    def forward(self, x, factor=None):
        y = self.outer(torch.relu(self.inner(x)))
        return x + (y if factor is None else dim(y, factor))


class Model(nn.Module):
    """Three residual blocks and a loss."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x.square().mean()


def train(model, steps=5, lr=1e-2):
    """Losses of some steps of AdamW on fixed data."""
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(2))
    losses = []
    for _ in range(steps):
        loss = model(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def keys(rows):
    return {(row["name"], row["direction"]) for row in rows}


def test_rows_hold_every_tensor_forward_and_backward():
    model = Model()
    with record(model, every=2) as recorder:
        train(model, 5)
    assert sorted({row["step"] for row in recorder.rows}) == [0, 2, 4]
    found = keys(recorder.rows)
    for name, _ in model.named_parameters():
        assert {(name, "value"), (name, "gradient")} <= found
    assert {("blocks.1.inner.linear", "value"), ("blocks.1.inner.linear", "gradient")} <= found
    assert {("blocks.1.add", "value"), ("blocks.1.add", "gradient")} <= found
    row = next(r for r in recorder.rows if r["name"] == "blocks.0.inner.weight")
    assert row["drift"] == 1.0
    assert set(row["formats"]) == {"E4M3FN", "E5M2"}


def test_recorded_numbers_are_those_of_hooks():
    model = Model()
    seen = {}
    model.blocks[1].inner.register_forward_hook(
        lambda module, args, out: seen.update(value=out.detach().square().mean().sqrt().item())
    )
    model(torch.ones(8, 16))
    plain = Model()
    plain(torch.ones(8, 16)).backward()
    model = Model()
    with record(model) as recorder:
        model(torch.ones(8, 16)).backward()
    rows = {(r["name"], r["direction"]): r for r in recorder.rows}
    assert rows["blocks.1.inner.linear", "value"]["rms"] == pytest.approx(seen["value"], rel=1e-5)
    grad = plain.blocks[2].outer.weight.grad
    assert rows["blocks.2.outer.weight", "gradient"]["rms"] == pytest.approx(
        grad.square().mean().sqrt().item(), rel=1e-5
    )


def test_recording_a_plain_run_changes_no_bit():
    model, other = Model(), Model()
    with record(model, every=2):
        losses = train(model, 6)
    assert losses == train(other, 6)
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_sparse_gradient_is_recorded_as_the_dense_one():
    class Lookup(nn.Module):
        def __init__(self, sparse):
            super().__init__()
            torch.manual_seed(0)
            self.table = nn.Embedding(10, 4, sparse=sparse)

        def forward(self, ids):
            return self.table(ids).square().sum()

    found = []
    for sparse in (True, False):
        model = Lookup(sparse)
        with record(model) as recorder:
            model(torch.tensor([1, 2, 2])).backward()
        found.append(recorder.rows)
    assert found[0] == found[1]
    assert ("table.weight", "gradient") in keys(found[0])


def test_model_is_as_before_afterwards():
    model = Model()
    with record(model):
        train(model, 1)
    assert model._compiled_call_impl is None
    model.compile(backend="eager")
    compiled = model._compiled_call_impl
    with pytest.raises(RuntimeError, match="inside"), record(model):
        raise RuntimeError("inside")
    assert model._compiled_call_impl is compiled


def test_evaluation_is_neither_recorded_nor_counted():
    model = Model()
    with record(model, every=2) as recorder:
        with torch.no_grad():
            model(torch.ones(8, 16))
        assert recorder.rows == []
        train(model, 1)
    assert {row["step"] for row in recorder.rows} == {0}


@pytest.mark.parametrize("kind", ["compile in place", "torch.compile"])
def test_compiled_model_runs_compiled_between_samples(kind):
    calls = []

    def backend(module, inputs):
        def run(*args):
            calls.append(1)
            return module.forward(*args)

        return run

    model = Model()
    if kind == "torch.compile":
        outer = torch.compile(model, backend=backend)
    else:
        outer = model
        model.compile(backend=backend)
    with record(outer, every=3) as recorder:
        losses = train(outer, 6)
    assert losses == train(Model(), 6)
    assert len(calls) == 4
    assert {row["step"] for row in recorder.rows} == {0, 3}
    assert ("blocks.1.inner.linear", "gradient") in keys(recorder.rows)


def test_optimizer_moments_are_rows():
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters())
    with record(model, optimizer=optimizer) as recorder:
        model(torch.ones(8, 16)).backward()
        optimizer.step()
        recorder.collect()
    moments = [row for row in recorder.rows if row["direction"] == "state"]
    assert len(moments) == 2 * len(list(model.parameters()))
    assert {r["name"] for r in moments} >= {"blocks.0.inner.weight:exp_avg_sq"}


def test_scaled_model_is_judged_as_it_is_held():
    from unitscale.units import unit_scale

    model = Model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0**-6)
    unit_scale(model, "fp8", inner="eager")
    with record(model, every=4) as recorder:
        train(model, 6, lr=1e-6)
    rows = [r for r in recorder.rows if r["name"].startswith("blocks.1")]
    assert {r["step"] for r in rows} == {0, 4}
    assert any(r["held_log2"] for r in rows if r["direction"] == "value")
    assert any(r["held_log2"] for r in rows if r["direction"] == "gradient")
    values = [
        r["rms"] * 2.0 ** r["held_log2"]
        for r in rows
        if r["step"] == 0 and r["op"] in ("linear", "relu")
    ]
    assert len(values) == 6
    assert all(0.7 < value < 1.42 for value in values)


def test_recipe_applied_is_recorded_at_no_units():
    from unitscale.units import apply_recipe

    model = apply_recipe(Model(), "fp8-none", inner="eager")
    with record(model, every=2) as recorder:
        train(model, 3)
    assert {row["step"] for row in recorder.rows} == {0, 2}
    assert {row["held_log2"] for row in recorder.rows} == {0}


def test_file_holds_all_rows_and_memory_one_step(tmp_path: Path):
    path = tmp_path / "numerics.jsonl"
    model = Model()
    with record(model, [E4M3FN, FP16], every=2, path=path) as recorder:
        train(model, 5)
    header, *rows = map(json.loads, path.read_text().splitlines())
    assert all(row.pop("crc") for row in rows)
    assert list(header["formats"]) == ["E4M3FN", "FP16"]
    assert header["formats"]["E4M3FN"]["max"] == 448
    assert recorder.rows == rows
    assert not recorder.sink.rows
    assert {row["step"] for row in recorder.latest} == {4}
    assert [r for r in rows if r["step"] == 4] == recorder.latest
    assert read_recording(path).steps == [0, 2, 4]


def test_resumed_file_replaces_what_is_beyond_the_checkpoint(tmp_path: Path):
    path = tmp_path / "numerics.jsonl"
    model = Model()
    with record(model, every=2, path=path):
        train(model, 5)
    with path.open("a") as file:
        file.write('{"half a li')
    with record(model, every=2, path=path, first_step=3):
        train(model, 4)
    assert read_recording(path).steps == [0, 2, 4, 6]
    assert path.read_text().count('"every"') == 1
    before = path.read_text().replace('"rms":', '"rms":1', 1)
    path.write_text(before)
    with pytest.raises(ValueError, match=r"damaged in line 2"):
        record(model, path=path, first_step=9).__enter__()
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_drift_of_a_resumed_recording_is_from_the_first_sample(tmp_path: Path):
    path, model = tmp_path / "numerics.jsonl", Model()
    with record(model, path=path):
        model(torch.ones(8, 16)).backward()
    with torch.no_grad():
        model.blocks[0].inner.weight.mul_(4)
    with record(model, every=1, path=path, first_step=1) as recorder:
        model(torch.ones(8, 16)).backward()
    row = next(r for r in recorder.latest if r["name"] == "blocks.0.inner.weight")
    assert row["drift"] == 4.0


def test_parquet_file_holds_the_rows_of_the_jsonl_file(tmp_path: Path):
    for name in ("numerics.jsonl", "numerics.parquet"):
        model = Model()
        optimizer = torch.optim.AdamW(model.parameters())
        with record(model, every=2, path=tmp_path / name, optimizer=optimizer) as recorder:
            for _ in range(5):
                optimizer.zero_grad()
                model(torch.ones(8, 16)).backward()
                optimizer.step()
        assert recorder.latest
    expected, found = (read_recording(tmp_path / f"numerics.{end}") for end in ("jsonl", "parquet"))
    assert found == expected
    assert found.steps == [0, 2, 4]
    assert any(row["kurtosis"] is None for series in found.series for row in series.rows)


def test_parquet_file_is_not_continued(tmp_path: Path):
    path, model = tmp_path / "numerics.parquet", Model()
    with record(model, path=path):
        train(model, 1)
    with (
        pytest.raises(ValueError, match="first_step is 3 and") as refused,
        record(model, path=path, first_step=3),
    ):
        pass
    assert "cannot be continued" in str(refused.value)


def test_half_a_parquet_file_is_refused(tmp_path: Path):
    path, model = tmp_path / "numerics.parquet", Model()
    with record(model, path=path):
        train(model, 1)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"numerics\.parquet is not a whole Parquet recording"):
        read_recording(path)


def test_missing_pyarrow_is_named_before_anything_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "numerics.parquet"
    with (
        pytest.raises(ValueError, match=r"pip install 'unitscale\[parquet\]'"),
        record(Model(), path=path),
    ):
        pass
    with pytest.raises(ValueError, match=r"pip install 'unitscale\[parquet\]'"):
        read_recording(path)


def test_memory_is_bounded_and_says_so():
    model = Model()
    with record(model, every=1, limit=100) as recorder, pytest.warns(match="more than 100 rows"):
        train(model, 4)
    assert len(recorder.rows) == 100
    assert {row["step"] for row in recorder.rows[-20:]} == {3}


# Dynamo looks at the gradient of what crosses the break.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_graph_breaks_give_distinct_names():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            y = torch.tanh(x @ self.weight)
            torch._dynamo.graph_break()
            return torch.tanh(y * 2).sum()

    model = Broken()
    with record(model) as recorder:
        model(torch.ones(2, 4)).backward()
    names = [row["name"] for row in recorder.rows if row["op"] == "tanh"]
    assert len(names) == len(set(names)) * 2 == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [({"every": 0}, "every is 0"), ({"formats": ()}, "formats is empty")],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message), record(Model(), **options):
        pass


def test_second_recording_is_refused():
    model = Model()
    with record(model), pytest.raises(ValueError, match="being recorded already"), record(model):
        pass


def dim(x, factor):
    """`x`, whose gradient is multiplied by a tensor: the injected fault."""
    return x * factor + (x - x * factor).detach()


def test_injected_fault_is_named_with_layer_and_step_in_the_first_paragraph(tmp_path: Path):
    class Faulty(Model):
        def __init__(self):
            super().__init__()
            self.register_buffer("factor", torch.ones(()))

        def forward(self, x):
            for i, block in enumerate(self.blocks):
                x = block(x, self.factor if i == 1 else None)
            return x.square().mean()

    model = Faulty()
    x = torch.randn(8, 16)
    with record(model, every=25) as recorder:
        for step in range(151):
            if step == 100:
                model.factor.fill_(2.0**-20)
            model.zero_grad()
            model(x).backward()
    from unitscale.report import group

    rows = [recorder.sink.header, *recorder.rows]
    first = judge(group(rows)).sentences[0]
    assert "At step 100 the gradients of blocks.1 fell by 2^20" in first
    assert "blocks.0" not in first
    assert "blocks.2" not in first
    write_html(rows, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.index("<p>" + first.replace("'", "&#x27;")) == page.index("<p>")


def test_formats_are_judged_by_direction():
    model = Model()
    with record(model, [E4M3FN, E5M2]) as recorder:
        (model(torch.ones(8, 16)) * 2.0**-30).backward()
    from unitscale.report import group

    verdict = judge(group([recorder.sink.header, *recorder.rows]))
    found = {(loss.series.direction, loss.format) for loss in verdict.losses}
    assert ("gradient", "E5M2") in found
    assert found <= {("gradient", "E5M2"), ("value", "E4M3FN")}
    assert "lose more than 1 % of their values in E5M2; worst: " in verdict.paragraph
    assert "100 % flushed to zero" in verdict.paragraph
