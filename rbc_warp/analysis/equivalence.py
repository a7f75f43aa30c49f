"""Whether two sets of runs come to the same conclusions: equivalence of figures and distances over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rbc_warp.analysis.claims import (
    CANNOT_TELL,
    NOT_REPRODUCED,
    REPRODUCED,
    Claim,
    Table,
    claim,
    difference,
)
from rbc_warp.analysis.finding_tables import passed_text
from rbc_warp.analysis.gaps import Point
from rbc_warp.analysis.outcomes import Outcome, figure
from rbc_warp.equilibrium.game import Estimate
from rbc_warp.equilibrium.results import PUBLISHED_BARS
from rbc_warp.runs.console import number_text

SAME, SAME_TAX = 0.05, 0.02
"""Equivalence: figures differ by at most this share of the base's, tax rates by at most so much."""
SAME_DISTANCE = 2.0
"""Equivalence: distances from an equilibrium differ by at most this factor."""
FARTHEST, NEAREST = 100.0, 0.01
"""Largest and smallest distance that are told apart, in bars; where nothing was learned, no bar is known."""
COMPARED = ("welfare per consumer", "price", "wage", "hours", "income tax", "corporate tax")
"""Figures by which two sets of runs come to the same conclusions, beside their distance from an equilibrium."""
SAME_TOLD, DIFFERENT = "same", "different"
SURE = 1.0 - 0.05 / (len(COMPARED) + 1)
"""Level of intervals that hold for all figures at once."""
EQUIVALENCE = (
    f"**Same conclusions**: each of {', '.join(COMPARED)} differs by at most {100 * SAME:g} % of its value (tax rates: "
    f"{100 * SAME_TAX:g} percentage points), and the distance from an equilibrium by at most a factor of "
    f"{SAME_DISTANCE:g}: the largest upper end of a gain, in bars, {NEAREST:g} to {FARTHEST:g}, geometric means over "
    "seeds. A figure is the same if Welch's 95 % interval of the difference lies within that tolerance, and different "
    "if the interval that holds for all figures at once (Bonferroni) lies outside it. Reproduced: all are the same; "
    "not reproduced: one is different; else cannot tell. The number is the figure that differs most, against its "
    "tolerance."
)


def distance(point: Point) -> float:
    """The distance from an equilibrium, in bars: the largest upper end of a type's gain as a share of its bar."""
    shares = [
        FARTHEST if gap.high is None else gap.high / PUBLISHED_BARS[agent]
        for agent, gap in point.gaps.items()
        if gap.high is not None or not gap.passed
    ]
    return float(np.clip(max(shares, default=0.0), NEAREST, FARTHEST))


def log_distances(runs: Sequence[Outcome]) -> list[float]:
    """Return the common logarithm of the distance of each run that has a full verdict."""
    return [float(np.log10(distance(run.verdict))) for run in runs if run.verdict]


def ratio(logarithms: Estimate) -> Estimate:
    """Return what a difference of common logarithms is as a factor."""
    return Estimate(*(10.0**end for end in (logarithms.mean, logarithms.low, logarithms.high)))


@dataclass(frozen=True)
class Comparison:
    """One figure of two sets of runs."""

    name: str
    base: str
    other: str
    number: Estimate | None  #: Of the difference, as shown.
    unit: str
    answer: str
    excess: float  #: The difference in tolerances.

    @property
    def row(self) -> tuple[str, ...]:
        shown = f"{self.number} {self.unit}" if self.number else ""
        return self.name, self.base, self.other, shown, self.answer


def _compare(name: str, base: Sequence[Outcome], other: Sequence[Outcome]) -> Comparison:
    """Compare a figure: in points for tax rates, else in % of the base's mean."""
    old, new = ([figure(run, name) for run in runs] for runs in (base, other))
    is_tax = name.endswith("tax")
    scale = 1.0 if is_tax else abs(float(np.mean(old)))
    tolerance = SAME_TAX if is_tax else SAME * scale
    gap, sure = difference(new, old), difference(new, old, SURE)
    percent, excess = None, 0.0
    if gap is not None and scale > 0.0:
        percent = Estimate(*(100.0 * end / scale for end in (gap.mean, gap.low, gap.high)))
        excess = abs(gap.mean) / tolerance
    first, second = (number_text(float(np.mean(values))) for values in (old, new))
    unit = "points" if is_tax else "%"
    return Comparison(name, first, second, percent, unit, _is_same(gap, sure, tolerance), excess)


def _compare_distances(base: Sequence[Outcome], other: Sequence[Outcome]) -> Comparison:
    old, new = log_distances(base), log_distances(other)
    tolerance = float(np.log10(SAME_DISTANCE))
    gap, sure = difference(new, old), difference(new, old, SURE)
    first, second = (f"{10.0 ** np.mean(values):.3g}" if values else "–" for values in (old, new))
    factor = None if gap is None else ratio(gap)
    excess = 0.0 if gap is None else abs(gap.mean) / tolerance
    return Comparison("distance [bars]", first, second, factor, "times", _is_same(gap, sure, tolerance), excess)


def same_conclusions(
    text: str, base: Sequence[Outcome], other: Sequence[Outcome], parts: tuple[str, ...]
) -> tuple[Claim, list[Table]]:
    """Compare two sets of runs; return the claim that they are equivalent, and the figures that it rests on."""
    found: list[Comparison] = []
    if base and other:
        found = [*(_compare(name, base, other) for name in COMPARED), _compare_distances(base, other)]
    answers = {each.answer for each in found}
    worst = max((each for each in found if each.number), key=lambda each: each.excess, default=None)
    answer = NOT_REPRODUCED if DIFFERENT in answers else REPRODUCED if answers == {SAME_TOLD} else CANNOT_TELL
    names = [each.name for each in found if each.answer == DIFFERENT]
    stated = claim(
        text,
        "same conclusions, as defined above",
        worst.number if worst else None,
        f"{worst.unit}, {worst.name.partition(' [')[0]}" if worst else "",
        lambda _: answer,
        [*base, *other],
        parts,
        f"{DIFFERENT}: {', '.join(name.partition(' [')[0] for name in names)}" if names else "",
    )
    if not found:
        return stated, []
    rows = [*(each.row for each in found), ("verdicts that pass", passed_text(base), passed_text(other), "", "")]
    head = ("figure", f"base ({len(base)} runs)", f"other ({len(other)} runs)", "difference [95 %]", "answer")
    return stated, [Table(text, head, rows)]


def _is_same(gap: Estimate | None, sure: Estimate | None, tolerance: float) -> str:
    if gap is None or sure is None:
        return CANNOT_TELL
    if -tolerance <= gap.low and gap.high <= tolerance:
        return SAME_TOLD
    return DIFFERENT if sure.low > tolerance or sure.high < -tolerance else CANNOT_TELL
