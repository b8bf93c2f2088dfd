"""Is a number format without loss of quality? Margins stated beforehand, and the test.

"No degradation" is a claim that two things are the same, so a test that finds no difference says
nothing: with few runs it finds none in anything. Here a difference has to be shown to be smaller
than a margin (two one-sided t-tests, TOST; Schuirmann 1987). The margins were written down, and
committed, before any run in low precision.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from unitscale.sweep.interval import t_quantile

LEVEL = 0.05
"""Of each of the two one-sided tests; so the interval that decides is that of 90 %."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number of a run.

    Args:
        margin: a difference below it counts as none.
        higher_is_better: an accuracy, not a loss.
        why: where the margin comes from.
    """

    name: str
    unit: str
    margin: float
    higher_is_better: bool
    why: str


MEASURES = {
    "mlm": Measure(
        name="masked-LM loss",
        unit="nats",
        margin=0.05,
        higher_is_better=False,
        why="1 % of a loss of about 5",
    ),
    "gloss": Measure(
        name="glosses, accuracy",
        unit="points",
        margin=2.0,
        higher_is_better=True,
        why="test sets of about 1,000 have a standard error of 1.5 points; less shows nothing",
    ),
    "next": Measure(
        name="next sentence, accuracy",
        unit="points",
        margin=2.0,
        higher_is_better=True,
        why="as above",
    ),
    "order": Measure(
        name="sentence order, accuracy",
        unit="points",
        margin=2.0,
        higher_is_better=True,
        why="as above",
    ),
    "span": Measure(
        name="cloze span, F1",
        unit="points",
        margin=2.0,
        higher_is_better=True,
        why="as above",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Differences from the baseline of the same seed, and what they show.

    Args:
        mean, half: of the differences, and half their 90 % interval; None for fewer than two.
        word: "equivalent" (the interval is within the margins), "worse" or "better" (it is beyond
            one of them), or "cannot tell".
    """

    n: int
    mean: float | None
    half: float | None
    word: str

    def __str__(self) -> str:
        if self.mean is None:
            return "no run"
        spread = "" if self.half is None else f" ± {self.half:.3f}"
        return f"{self.mean:+.3f}{spread}: {self.word}"


def judge(differences: Sequence[float], measure: Measure) -> Verdict:
    """The verdict on paired differences, low precision minus FP32."""
    n = len(differences)
    if not all(map(math.isfinite, differences)):  # a run that diverged is worse than any margin
        return Verdict(n=n, mean=math.inf, half=None, word="worse")
    if n < 2:
        return Verdict(n=n, mean=differences[0] if n else None, half=None, word="cannot tell")
    middle = mean(differences)
    half = t_quantile(n - 1, 1 - 2 * LEVEL) * stdev(differences) / math.sqrt(n)
    gain = middle if measure.higher_is_better else -middle
    if abs(middle) + half < measure.margin:
        word = "equivalent"
    elif gain + half < -measure.margin:
        word = "worse"
    elif gain - half > measure.margin:
        word = "better"
    else:
        word = "cannot tell"
    return Verdict(n=n, mean=middle, half=half, word=word)
