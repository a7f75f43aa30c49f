"""Claims and how they are decided: an answer follows from an interval over seeds, by a rule stated beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from rbc_warp.analysis.outcomes import Outcome
from rbc_warp.equilibrium.game import Estimate

REPRODUCED, NOT_REPRODUCED, CANNOT_TELL = "reproduced", "not reproduced", "cannot tell"
ANSWERS = (NOT_REPRODUCED, CANNOT_TELL, REPRODUCED)
"""In the order in which they are told."""
FEWEST = 3
"""Runs that a mean over seeds needs."""
MUCH_MORE_OFTEN = 0.5
"""Least difference of two shares that is "much more often"."""


@dataclass(frozen=True)
class Claim:
    """One statement that is tested."""

    text: str
    rule: str
    answer: str
    number: Estimate | None  #: With its 95 % interval; None: not known.
    unit: str
    seeds: tuple[int, ...]
    runs: int  #: Finished runs that it rests on.
    parts: tuple[str, ...]  #: What makes them.
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Table:
    """Figures beside the claims."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Question:
    """A numbered question of the results, its claims, and tables."""

    number: int
    title: str
    parts: tuple[str, ...]
    claims: list[Claim]
    tables: list[Table] = field(default_factory=list)
    words: str = ""


def claim(
    text: str,
    rule: str,
    number: Estimate | None,
    unit: str,
    judge: Callable[[Estimate], str],
    runs: Sequence[Outcome],
    parts: tuple[str, ...],
    note: str = "",
) -> Claim:
    """Make a claim that ``judge`` decides from its number; without one it cannot tell."""
    answer = CANNOT_TELL if number is None or not np.isfinite([number.low, number.high]).all() else judge(number)
    seeds = tuple(sorted({run.seed for run in runs}))
    return Claim(text, rule, answer, number, unit, seeds, len(runs), parts, note)


# Rules


def above(bar: float) -> Callable[[Estimate], str]:
    """Return the rule: reproduced where the whole interval lies above ``bar``, not where all of it lies below."""
    return lambda each: REPRODUCED if each.low > bar else NOT_REPRODUCED if each.high < bar else CANNOT_TELL


def below(bar: float) -> Callable[[Estimate], str]:
    return lambda each: REPRODUCED if each.high < bar else NOT_REPRODUCED if each.low > bar else CANNOT_TELL


def much_more_often(each: Estimate) -> str:
    """Reproduced where the interval of a difference of shares lies above 0; not where it stays below one half."""
    return REPRODUCED if each.low > 0.0 else NOT_REPRODUCED if each.high < MUCH_MORE_OFTEN else CANNOT_TELL


ABOVE_0 = "reproduced if the interval lies above 0, not if below"
BELOW_0 = "reproduced if the interval lies below 0, not if above"
MOSTLY = "reproduced if the share's interval lies above one half, not if below"


# Numbers over seeds


def mean(values: Iterable[float | None]) -> Estimate | None:
    """Return the mean with Student's interval; None of fewer than FEWEST."""
    known = np.array([value for value in values if value is not None], dtype=float)
    return Estimate.of(known) if len(known) >= FEWEST else None


def share(hits: Iterable[bool]) -> Estimate | None:
    """Return a share with Wilson's interval; None of none."""
    known = list(hits)
    if not known:
        return None
    ends = stats.binomtest(sum(known), len(known)).proportion_ci(method="wilson")
    return Estimate(sum(known) / len(known), float(ends.low), float(ends.high))


def difference_of_shares(first: Iterable[bool], second: Iterable[bool]) -> Estimate | None:
    """Return the first share less the second, with Newcombe's interval, from Wilson's of each."""
    one, two = share(first), share(second)
    if one is None or two is None:
        return None
    gap = one.mean - two.mean
    down = float(np.hypot(one.mean - one.low, two.high - two.mean))
    up = float(np.hypot(one.high - one.mean, two.mean - two.low))
    return Estimate(gap, gap - down, gap + up)


def difference(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> Estimate | None:
    """Return the first mean less the second, with Welch's interval; None where either has fewer than FEWEST."""
    if min(len(first), len(second)) < FEWEST:
        return None
    gap = float(np.mean(first) - np.mean(second))
    parts = [float(np.var(values, ddof=1)) / len(values) for values in (first, second)]
    half = 0.0
    if sum(parts) > 0.0:
        numbers = (len(values) - 1 for values in (first, second))
        freedom = sum(parts) ** 2 / sum(part**2 / number for part, number in zip(parts, numbers, strict=True))
        half = float(stats.t.ppf(0.5 + level / 2, freedom)) * sum(parts) ** 0.5
    return Estimate(gap, gap - half, gap + half)


def correlation(x: Sequence[float], y: Sequence[float]) -> Estimate | None:
    """Return Pearson's r with Fisher's interval; None of fewer than four runs, or where either is constant."""
    if len(x) < 4 or np.ptp(x) == 0.0 or np.ptp(y) == 0.0:
        return None
    found = stats.pearsonr(x, y)
    ends = found.confidence_interval(0.95)
    return Estimate(float(found.statistic), float(ends.low), float(ends.high))
