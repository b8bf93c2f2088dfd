"""A run as TensorBoard shows it: its log as scalars, exponent histograms of what was recorded.

`tensorboard --logdir RUN` finds the event files in the run's folder `tensorboard`.
"""

from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]

FOLDER = "tensorboard"

SCALARS = {
    "loss": "loss/train",
    "valid_loss": "loss/valid",
    "lr": "lr",
    "loss_scale": "loss_scale",
    "tokens_per_s": "tokens_per_s",
}
NUMERICS = {
    "worst_lost_fraction": "numerics/worst_lost_fraction",
    "losing_fraction": "numerics/losing_fraction",
}
KINDS = {"value": "values", "gradient": "gradients", "state": "moments"}


def writer_class() -> type[Any]:
    """`torch.utils.tensorboard.SummaryWriter`.

    Raises:
        ValueError: the package tensorboard is not installed.
    """
    try:
        found: type[Any] = import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError as error:
        raise ValueError(
            "--tensorboard needs the package tensorboard; run: pip install 'unitscale[tensorboard]'"
        ) from error
    return found


class Board:
    """The event files of one run.

    Args:
        folder: the run's folder.
        first_step: what an earlier part of the run wrote from this step on is hidden.
    Raises:
        ValueError: the package tensorboard is not installed.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        # An event file of a process that was killed stays; TensorBoard drops its later steps.
        purge = first_step if (folder / FOLDER).exists() else None
        self.writer = writer_class()(str(folder / FOLDER), purge_step=purge)

    def scalars(self, record: Record) -> None:
        """One record of the log: what is a finite or infinite number, at the record's step."""
        found = {tag: record.get(key) for key, tag in SCALARS.items()}
        found |= {tag: (record.get("numerics") or {}).get(key) for key, tag in NUMERICS.items()}
        for tag, value in found.items():
            if value is not None:
                self.writer.add_scalar(tag, value, record["step"])

    def histograms(self, rows: Iterable[Record]) -> None:
        """The rows of one sampled step: log2 of the magnitudes, as held, a bucket an octave."""
        for row in rows:
            low, counts = row["histogram"]
            if not counts:
                continue
            lows = [low + row["held_log2"] + i for i in range(len(counts))]
            middles = [(x + 0.5, count) for x, count in zip(lows, counts, strict=True)]
            self.writer.add_histogram_raw(
                f"{KINDS[row['direction']]}/{row['name']}",
                min=lows[0],
                max=lows[-1] + 1,
                num=sum(counts),
                sum=sum(x * count for x, count in middles),
                sum_squares=sum(x * x * count for x, count in middles),
                bucket_limits=[x + 1 for x in lows],
                bucket_counts=counts,
                global_step=row["step"],
            )

    def close(self) -> None:
        """Write what is pending and close the file."""
        self.writer.close()
