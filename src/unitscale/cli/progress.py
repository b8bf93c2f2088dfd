"""Progress on stderr: a bar on a terminal, a line now and then elsewhere."""

import sys
from collections.abc import Iterable, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

LINES_PER_RUN = 10


class Bar(Progress):
    """Bars, and under them a line on the numerics of the run in progress."""

    numerics = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars, then the line, cut where the terminal ends."""
        yield from super().get_renderables()
        if self.numerics:
            yield Text(self.numerics, no_wrap=True, overflow="ellipsis")


class WithBar:
    """A context in which a bar moves, where there is one."""

    bar: Bar | None

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar:
            self.bar.stop()


class RunProgress(WithBar):
    """The progress of runs that follow one another, fed with the records of their logs.

    Args:
        is_shown: off for all ranks of a run but one.

    Attributes:
        last: the record of the last step.
    """

    def __init__(self, *, steps: int, is_shown: bool = True) -> None:
        self.steps, self.is_shown = steps, is_shown
        self.last: dict[str, Any] = {}
        self.console = console = Console(stderr=True)
        self.bar = (
            Bar(
                TextColumn("{task.description:<20}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=console,
            )
            if console.is_terminal and is_shown
            else None
        )
        self.tasks: dict[str, TaskID] = {}
        self.numerics: dict[str, str] = {}

    def show(self, label: str, record: dict[str, Any]) -> None:
        """One record of the run with this label."""
        if record.get("rates") and self.is_shown:
            line = f"{label}: its parameters say their kinds; each has the rate of u-muP's rules"
            self.console.print(line, highlight=False, soft_wrap=True)
        if "loss" not in record:
            return
        self.last = record
        if not self.is_shown:
            return
        step = record["step"]
        note = f"loss {record['loss']:.3f}  {record['tokens_per_s']:,.0f} tokens/s"
        if numerics := record.get("numerics"):
            self.numerics[label] = numerics.get("not_judged") or (
                f"{numerics['losing_fraction']:.0%} of tensors lose over 1 %, "
                f"most {numerics['worst_lost_fraction']:.1%}: {numerics['worst']}"
            )
        known = self.numerics.get(label, "")
        if self.bar:
            self.bar.numerics = known and f"{label}: {known}"
            if label not in self.tasks:
                self.tasks[label] = self.bar.add_task(label, total=self.steps, note="")
            self.bar.update(self.tasks[label], completed=step, note=note)
        elif step == self.steps or step % max(self.steps // LINES_PER_RUN, 1) == 0:
            line = f"{label}: step {step}/{self.steps}  {note}  {known}".rstrip()
            print(line, file=sys.stderr, flush=True)
        if reason := record.get("passed_over"):
            line = f"{label}: the checkpoint before was used, for {reason}"
            self.console.print(line, highlight=False, soft_wrap=True)
        if lost := record.get("lost"):
            self.console.print(f"{label}: step {step}: {lost[0]}", highlight=False, soft_wrap=True)
            if len(lost) > 1:
                self.console.print(f"  and {len(lost) - 1} other tensors; log.jsonl has them all")


class SweepProgress(WithBar):
    """The progress of a sweep: a bar over its runs, and a line for each that ends.

    Args:
        swept: what the names of runs do not say of them, by name.
    """

    def __init__(self, *, runs: int, swept: Mapping[str, str] = MappingProxyType({})) -> None:
        self.runs, self.done, self.swept = runs, 0, swept
        self.console = console = Console(stderr=True)
        self.bar = (
            Bar(
                TextColumn("{task.description:<20}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=console,
            )
            if console.is_terminal
            else None
        )
        self.steps: dict[str, str] = {}

    def __enter__(self) -> Self:
        if self.bar:
            self.task = self.bar.add_task("runs", total=self.runs)
        return super().__enter__()

    def at(self, name: str, step: int, steps: int) -> None:
        """A run has come to a step."""
        self.steps[name] = f"{self.called(name)} {step}/{steps}"
        if self.bar:
            self.bar.numerics = "  ".join(self.steps.values())

    def called(self, name: str) -> str:
        """The name of a run, and the swept values that are not in it."""
        return f"{name} {self.swept[name]}" if self.swept.get(name) else name

    def ended(self, row: dict[str, Any]) -> None:
        """A run has ended, now or before."""
        self.done += 1
        self.steps.pop(row["name"], None)
        loss = row.get("loss")
        how = row["status"] if loss is None else f"loss {loss:.4f}"
        why = f": {row['reason']}" if row["reason"] else ""
        line = f"{self.done}/{self.runs} {self.called(row['name'])}: {how}{why}"
        if self.bar:
            self.bar.update(self.task, completed=self.done)
            self.console.print(line, highlight=False, soft_wrap=True, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)
