"""COAT's flow on models of transformers, and on several processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import unitscale as us
from processes import work_together
from units.flow_models import Block, Model, RMSNorm, batch
from unitscale.units.forward import require_session

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 64,
    "max_position_embeddings": 32,
}


T5 = {
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 1,
    "num_heads": 2,
    "vocab_size": 64,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
}


@pytest.mark.parametrize(
    ("kind", "config", "regions_of_each"),
    [
        # two norms of a layer, the last one, and the gate
        ("llama", TINY, 4),
        pytest.param("qwen3", TINY | {"head_dim": 16}, 6, marks=pytest.mark.slow),
        # encoder: 2 norms, a last one, a gate; decoder: 3 norms, a last one, a gate
        pytest.param("t5", T5, 9, marks=pytest.mark.slow),
    ],
)
def test_models_of_transformers(kind: str, config: dict[str, Any], regions_of_each: int) -> None:
    """Norms by hand, gates, `gelu_new`: held as one region each, and nothing else is in the way."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    given = transformers.AutoConfig.for_model(kind, **config)
    is_causal = kind != "t5"
    auto = transformers.AutoModelForCausalLM if is_causal else transformers.AutoModelForSeq2SeqLM
    model = auto.from_config(given, dtype=torch.bfloat16)
    ids = torch.randint(64, (2, 16))
    options = {"use_cache": False} if is_causal else {}

    def held_by() -> us.units.SavedTensors:
        torch.manual_seed(1)
        with us.saved_tensors(model) as held:
            loss = model(input_ids=ids, labels=ids, **options).loss
        loss.backward()
        return held

    before = held_by()
    us.apply_recipe(model, "coat", inner="eager")
    held = held_by()
    assert held.bytes < 0.62 * before.bytes
    graphs = require_session(model, "test").executables
    programs = [program for graph in graphs for program in graph.programs.values()]
    assert sum(program.holds for program in programs) == regions_of_each
    left = {row.why for row in held.rows if row.dtype.itemsize > 1 and row.bytes > 1024}
    kept = (
        "attention",
        "matmul",
        "softmax",
        "loss",
        "dropout",
        "scales of",
        "no gradient",
        "indices",
    )
    assert [why for why in left if not any(word in (why or "") for word in kept)] == []


def work(rank: int, folder: Path) -> None:
    """Two steps of a data-parallel process, each on its own batch."""
    torch.manual_seed(0)
    model = us.apply_recipe(Model(Block(RMSNorm())), "coat", inner="eager")
    wrapped = nn.parallel.DistributedDataParallel(model)
    for _ in range(2):
        model.zero_grad()
        wrapped(batch() * (1 + rank)).backward()
    torch.save({n: p.grad for n, p in model.named_parameters()}, folder / f"{rank}.pt")


@pytest.mark.slow
def test_data_parallel_processes_average_it(tmp_path: Path) -> None:
    work_together(work, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.manual_seed(0)
    model = us.apply_recipe(Model(Block(RMSNorm())), "coat", inner="eager")
    for rank in range(2):
        (model(batch() * (1 + rank)) / 2).backward()
    alone = {n: p.grad for n, p in model.named_parameters()}
    torch.testing.assert_close(first, alone, rtol=1e-5, atol=1e-6)
