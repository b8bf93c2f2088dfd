"""Do low-precision optimizer states train as float32 does, and do wrong ones show?

A byte-level transformer (2 layers of width 64) on source text, AdamW, the same data in each arm.
The arms named `not ...` are known to be wrong, so that the comparison is known to tell.

    python experiments/optimizer_states.py --out runs/optimizer_states
"""

import argparse
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pool import Result, mean_and_spread, run_all, setting
from unitscale import optim
from unitscale.data import fixed_windows, open_corpus, sample_windows
from unitscale.formats import E4M3FN
from unitscale.formats.kernel import Bits
from unitscale.optim.held import held
from unitscale.optim.moments import Field, TensorScaled, in_blocks, out_of_blocks
from unitscale.optim.states import STATES, States
from unitscale.optim.weights import Master, Own, Stochastic, Written

WIDTH, HEADS, LAYERS, CONTEXT, BATCH = 64, 2, 2, 48, 12
RATE, WARM_UP = 2e-3, 50


class Nearest(Stochastic):
    """BF16 to nearest: most steps are lost."""

    def write(self, x: Tensor, dtype: torch.dtype, amax: Tensor | None, bits: Bits) -> Written:
        """Without chance."""
        return Written(x.to(torch.bfloat16), ())


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Eight bits in even steps of a block's amax, and zero where they are too coarse."""

    is_positive: bool = False
    block: int = 32
    is_whole: bool = False

    @property
    def fields(self) -> tuple[Field, ...]:
        """Codes and amaxes."""
        dtype = torch.uint8 if self.is_positive else torch.int8
        return Field("", dtype, "element"), Field("_amax", torch.float32, "block")

    def encode(self, x: Tensor, amax: Tensor | None) -> Sequence[Tensor]:
        """To nearest."""
        blocks, (field, _) = in_blocks(x, self.block), self.fields
        largest = blocks.abs().amax(-1, keepdim=True)
        steps = blocks / largest.clamp(min=1e-38) * torch.iinfo(field.dtype).max
        return out_of_blocks(steps.round().to(field.dtype), x), largest.squeeze(-1)

    def decode(self, stored: Sequence[Tensor]) -> Tensor:
        """Code times step."""
        codes, largest = stored
        steps = in_blocks(codes.float(), self.block) / torch.iinfo(codes.dtype).max
        return out_of_blocks(steps * largest.unsqueeze(-1), codes)


FLOAT32_OWN = {torch.float32: Own()}
WRONG: Mapping[str, States] = {
    "not: BF16 to nearest": States(weight={torch.bfloat16: Nearest()}),
    "not: v E4M3 of the tensor": States(weight=FLOAT32_OWN, second=TensorScaled(format=E4M3FN)),
    "not: master E4M3": States(weight={torch.float32: Master(codec=TensorScaled(format=E4M3FN))}),
    "not: even steps": States(weight=FLOAT32_OWN, first=Linear(), second=Linear(is_positive=True)),
}
ARMS = ("fp32", "fp8-lm", "coat", "bf16-stochastic", "master24", *WRONG)
BF16_ARMS = ("bf16-stochastic", "master24", "not: BF16 to nearest")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run."""

    states: str
    seed: int
    steps: int


class Block(nn.Module):
    """Attention and a feed-forward layer, each on a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, context, width)."""
        batch, context, _ = x.shape
        shape = (batch, context, 3, HEADS, WIDTH // HEADS)
        q, k, v = self.qkv(self.norms[0](x)).view(shape).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Bytes(nn.Module):
    """A language model of bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256)
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """The loss, of windows of one byte more than the context."""
        x = self.tokens(ids[:, :-1]) + self.places.weight
        logits = self.head(self.norm(self.blocks(x)))
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


@contextmanager
def wrong_states() -> Iterator[None]:
    """The wrong ones too are names of states here."""
    STATES.update(WRONG)
    try:
        yield
    finally:
        for name in WRONG:
            del STATES[name]
        held.cache_clear()


def loss_of(model: Bytes, ids: Tensor) -> Tensor:
    """In float32, whatever the weights are held in."""
    named = {name: parameter.float() for name, parameter in model.named_parameters()}
    loss: Tensor = torch.func.functional_call(model, named, (ids,))
    return loss


def run(point: Point) -> Result:
    """Losses at the end, bytes of a parameter and the time of an optimizer's step."""
    torch.manual_seed(point.seed)
    model = Bytes().to(torch.bfloat16 if point.states in BF16_ARMS else torch.float32)
    corpus = open_corpus()
    with wrong_states():
        optimizer = optim.AdamW(
            model.named_parameters(),
            RATE,
            rules=None,
            states=point.states,  # type: ignore[arg-type]
            seed=point.seed,
            betas=(0.9, 0.95),
            weight_decay=0.1,
        )
        losses, seconds = [], 0.0
        for step in range(point.steps):
            windows = sample_windows(
                corpus.train, seed=point.seed, step=step, batch_size=BATCH, length=CONTEXT + 1
            )
            loss = loss_of(model, torch.tensor(windows, dtype=torch.int64))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            warm = min(1.0, (step + 1) / WARM_UP)
            cosine = 0.5 * (1 + math.cos(math.pi * step / point.steps))
            optimizer.param_groups[0]["lr"] = RATE * warm * cosine
            start = time.perf_counter()
            optimizer.step()
            seconds += time.perf_counter() - start
            losses.append(loss.item())
    windows = fixed_windows(corpus.valid, count=256, length=CONTEXT + 1)
    with torch.no_grad():
        valid = loss_of(model, torch.tensor(windows, dtype=torch.int64)).item()
    count = sum(parameter.numel() for parameter in model.parameters())
    own = sum(parameter.nbytes for parameter in model.parameters())
    return {
        "train_loss": sum(losses[-20:]) / len(losses[-20:]),
        "valid_loss": valid,
        "bytes": (own + optimizer.state_bytes()) / count,
        "ms": 1e3 * seconds / point.steps,
    }


def report(results: Mapping[Point, Result]) -> str:
    """A table: one row for each arm."""
    points = list(results)
    seeds, steps = sorted({p.seed for p in points}), points[0].steps
    lines = [
        f"{steps} steps, {len(seeds)} seeds. " + setting(),
        "",
        "| states | validation loss | minus fp32 | bytes a parameter, with it | ms a step |",
        "|---|---|---|---|---|",
    ]
    for arm in dict.fromkeys(p.states for p in points):
        pairs = [[Point(states=one, seed=s, steps=steps) for one in (arm, "fp32")] for s in seeds]
        pairs = [pair for pair in pairs if all(point in results for point in pair)]
        found, plain = ([results[pair[i]] for pair in pairs] for i in range(2))
        losses = [one["valid_loss"] for one in found]
        apart = [a - one["valid_loss"] for a, one in zip(losses, plain, strict=True)]
        lines.append(
            f"| {arm} | {mean_and_spread(losses)} | {', '.join(f'{a:+.4f}' for a in apart)} | "
            f"{found[0]['bytes']:.2f} | {min(one['ms'] for one in found):.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """All arms and seeds; what is done is kept."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/optimizer_states"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    args = parser.parse_args()
    points = [
        Point(states=arm, seed=seed, steps=args.steps) for arm in ARMS for seed in range(args.seeds)
    ]
    results = run_all(points, run, args.out / "runs.jsonl", workers=args.workers)
    text = report(results)
    (args.out / "optimizer_states.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
