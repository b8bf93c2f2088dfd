"""How the batch of a step is spread: over ranks, and over micro-batches one after another on each.

A batch of B windows is cut into `ranks * micro_batches` equal shares. Rank r has the shares
`r * micro_batches` and on, so the same shares make the same batch however many ranks there are:

    1 rank x 8     0 1 2 3 4 5 6 7
    2 ranks x 4    0 1 2 3 | 4 5 6 7
    4 ranks x 2    0 1 | 2 3 | 4 5 | 6 7

Factors are those of the whole batch. A model of torch's has a loss that is a mean, so the loss of
a share is divided by the number of shares before backward, and gradients of shares are summed. A
model written unit-scaled divides the gradient of a parameter by the root of the rows that it saw,
so the sum is divided by the root of the number of shares. Either way the backward pass of a share
has the numbers that its windows have in the whole batch, and rounds as they do.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

from unitscale.train.config import TrainConfig

__all__ = ["PARALLEL", "WHOLE", "Parallel", "RankError", "Spread"]

Parallel = Literal["ddp", "fsdp2"]
PARALLEL: tuple[Parallel, ...] = ("ddp", "fsdp2")

MOST_MICRO_BATCHES = 2**20


class RankError(RuntimeError):
    """Another rank of the run has ended, or does not answer."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Where this process stands among those of a run.

    Args:
        ranks: processes that train together; with more than one, torch's default process group.
        rank: the number of this one.
        micro_batches: passes that this process makes for a step.
        parallel: how the ranks share the model; means nothing for one.
    Raises:
        ValueError: a number out of range, another word.
    """

    ranks: int = 1
    rank: int = 0
    micro_batches: int = 1
    parallel: Parallel = "ddp"

    def __post_init__(self) -> None:
        if self.parallel not in PARALLEL:
            raise ValueError(
                f"parallel is {self.parallel!r}; expected one of {', '.join(PARALLEL)}"
            )
        count = self.micro_batches
        if type(count) is not int or not 1 <= count <= MOST_MICRO_BATCHES:
            raise ValueError(
                f"accumulate is {count!r}; expected an integer from 1 to {MOST_MICRO_BATCHES}"
            )
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"rank is {self.rank}; expected one from 0 to {self.ranks - 1}")

    @property
    def shares(self) -> int:
        """Parts that a batch is cut into."""
        return self.ranks * self.micro_batches

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process."""
        return self.ranks == 1

    @property
    def leads(self) -> bool:
        """Whether this process writes what a run leaves behind."""
        return self.rank == 0

    @property
    def is_sharded(self) -> bool:
        """Whether each rank holds a part of every parameter."""
        return not self.is_alone and self.parallel == "fsdp2"

    def check(self, config: TrainConfig) -> None:
        """Raise ValueError for a run that cannot be cut into these shares."""
        if config.batch_size % self.shares:
            raise ValueError(
                f"the batch has {config.batch_size} windows, which {self.ranks} ranks x "
                f"{self.micro_batches} micro-batches do not divide; use a --batch-size that is a "
                f"multiple of {self.shares}"
            )
        if config.numerics.throughout is not None and not self.is_alone:
            raise ValueError(
                f"recipe {config.recipe_name!r} is for one process, because sums between processes "
                f"would not be rounded, and there are {self.ranks}; use --accumulate, or one rank"
            )
        if config.record_every is not None and self.shares > 1:
            raise ValueError(
                f"record_every is {config.record_every}, and tensors are recorded of a whole "
                f"batch, not of {self.ranks} ranks x {self.micro_batches} micro-batches; leave it "
                "out, or train in one process without --accumulate"
            )

    def rows(self, batch_size: int, micro: int) -> slice:
        """The windows of one of this process's shares."""
        size = batch_size // self.shares
        share = self.rank * self.micro_batches + micro
        return slice(share * size, (share + 1) * size)

    def loss_factor(self, *, is_unit_scaled: bool) -> float:
        """What the loss of a share is multiplied by before backward; exactly 1 for one share."""
        return 1.0 if is_unit_scaled else 1.0 / self.shares

    def gradient_factor(self, *, is_unit_scaled: bool) -> float:
        """What makes the gradient of the batch of a sum over shares and a mean over ranks.

        Exactly 1 for one share.
        """
        return self.ranks * (float(self.shares) ** -0.5 if is_unit_scaled else 1.0)

    def seed(self, seed: int, step: int, micro: int) -> int:
        """The seed of torch's generators for one share of one step, on whichever rank it is."""
        share = self.rank * self.micro_batches + micro
        return int.from_bytes(sha256(f"{seed} {step} {share}".encode()).digest()[:8], "little")

    def described(self) -> dict[str, int | str]:
        """What the log says; nothing of a whole batch in one process."""
        if self.shares == 1:
            return {}
        found: dict[str, int | str] = {"ranks": self.ranks, "micro_batches": self.micro_batches}
        return found if self.is_alone else found | {"parallel": self.parallel}


WHOLE = Spread()
"""One process, the whole batch at once."""
