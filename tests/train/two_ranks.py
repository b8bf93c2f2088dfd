"""What two ranks do for `test_ranks`: one pair of processes for all of it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from train.tiny import tiny_config
from unitscale.cli.launch import agreed
from unitscale.data import open_corpus
from unitscale.train import Spread, TrainConfig, train
from unitscale.train.run import Run
from unitscale.train.units import units_to_keep

HERE = Path(__file__).parent
SHARES = 8
OWN = f"{HERE / 'rank_model.py'}:Model"


def config(name: str) -> TrainConfig:
    """The run of that name."""
    options: dict[str, Any] = {
        "batch_size": SHARES,
        "steps": 4,
        "clip_norm": 0.5,
        "model": {"width": 32, "depth": 1, "heads": 2},
    }
    own = {"existing": OWN, "model": {}}
    return tiny_config(
        **options
        | {
            "fp32": {"recipe": "fp32"},
            "fp32-units": {"recipe": "fp32-units"},
            "own": own | {"recipe": "fp32-units", "checkpoint_every": 1},
            "fp8": own | {"recipe": "fp8", "checkpoint_every": 1, "states": "coat"},
            "dynamic": {"recipe": "fp16-loss-dynamic"},
            "fp8-lm": own | {"recipe": "fp32", "states": "fp8-lm"},
            "master24": own | {"recipe": "fp32", "states": "master24", "dtype": "bf16"},
            "stochastic": {"recipe": "fp32-units", "states": "bf16-stochastic", "dtype": "bf16"},
            "breaks": own | {"recipe": "fp32", "model": {"breaks_at": 8}},
        }[name]
    )


RUNS = [
    ("fp32", "ddp"),
    ("fp32-units", "fsdp2"),
    ("own", "ddp"),
    ("fp8", "fsdp2"),
    ("breaks", "ddp"),
]
MORE = [
    ("fp32", "fsdp2"),
    ("fp32-units", "ddp"),
    ("own", "fsdp2"),
    ("dynamic", "fsdp2"),
]
STATES = [("fp8-lm", "ddp"), ("fp8-lm", "fsdp2"), ("master24", "fsdp2"), ("stochastic", "fsdp2")]
"""What there is time for where tests may be slow."""


def work(rank: int, folder: Path, count: int, names: list[tuple[str, str]]) -> None:
    """Make the runs; then those that go on from a checkpoint, and what is refused."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count)}
    corpus = open_corpus(folder / "text.txt")
    found: dict[str, Any] = {}

    def make(name: str, parallel: str, place: str) -> None:
        spread = Spread(
            ranks=count,
            rank=rank,
            micro_batches=1 if name == "fp8" else SHARES // count,
            parallel=parallel,  # type: ignore[arg-type]
        )
        with Watched() as seen:
            result = train(config(name), corpus, folder / place, resume=True, spread=spread)
        found[place] = {
            "units": seen.units,
            "norms": seen.norms,
            "diverged": result.diverged,
        }

    for name, parallel in names:
        make(name, parallel, f"{name}-{parallel}-{count}")
    if ("fp8", "fsdp2") in names:
        if rank == 0:
            rewind(folder / f"fp8-fsdp2-{count}", folder / "fell back")
            shutil.copytree(folder / "one", folder / "from one")
        dist.barrier()
        make("fp8", "fsdp2", "fell back")
        make("own", "fsdp2", "from one")
        found["refused"] = refusals(rank, corpus)
    torch.save(found, folder / f"{count}-{rank}.pt")


class Watched:
    """Gather the units that this rank has after every step, and the norm of every gradient."""

    def __enter__(self) -> "Watched":
        self.step, self.clip = Run.step, torch.nn.utils.clip_grad_norm_
        self.units: list[str | None] = []
        self.norms: list[float] = []

        def step(run: Run) -> None:
            self.step(run)
            kept = units_to_keep(run.state.model)
            self.units.append(kept and json.dumps([kept["units"], kept["step"]], sort_keys=True))

        def clip(parameters: Any, limit: float) -> Any:
            norm = self.clip(parameters, limit)
            whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
            self.norms.append(whole.item())
            return norm

        Run.step = step  # type: ignore[method-assign]
        torch.nn.utils.clip_grad_norm_ = clip
        return self

    def __exit__(self, *error: object) -> None:
        Run.step = self.step  # type: ignore[method-assign]
        torch.nn.utils.clip_grad_norm_ = self.clip


def rewind(done: Path, place: Path) -> None:
    """A copy of a run of four steps that has no result, and whose newest checkpoint is damaged."""
    shutil.copytree(done, place)
    (place / "result.json").unlink()
    file = place / "checkpoints" / "step-000000004" / "__1_0.distcp"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def refusals(rank: int, corpus: Any) -> list[str]:
    """What is said where ranks were asked for different things."""
    spread = Spread(ranks=2, rank=rank)
    base = config("fp32").to_json()

    def asked(change: dict[str, Any]) -> Any:
        return TrainConfig.from_json(base | (change if rank == 1 else {})), corpus

    messages = []
    for change in ({"seed": 3}, {"recipe": "fp8"}, {"steps": -1}):
        try:
            agreed("train", spread, lambda change=change: asked(change), {"out": "run"})
        except ValueError as error:
            messages.append(str(error))
    try:
        agreed("train", spread, lambda: asked({}), {"out": f"run{rank}"})
    except ValueError as error:
        messages.append(str(error))
    try:
        train(config("fp32"), corpus, Path("/dev/null/run"), spread=spread)
    except (OSError, ValueError) as error:
        messages.append(str(error))
    return messages
