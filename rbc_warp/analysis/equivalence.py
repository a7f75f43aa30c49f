"""Whether two sets of runs come to the same conclusions: equivalence of figures and verdicts over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rbc_warp.analysis.claims import (
    CANNOT_TELL,
    FEWEST,
    NOT_REPRODUCED,
    REPRODUCED,
    Claim,
    Table,
    claim,
    difference,
    difference_of_shares,
)
from rbc_warp.analysis.outcomes import Outcome, figure, passes
from rbc_warp.equilibrium.game import Estimate
from rbc_warp.runs.console import number_text

SAME, SAME_TAX = 0.05, 0.02
"""Equivalence: figures differ by at most this share of the base's, tax rates by at most so much."""
COMPARED = ("welfare per consumer", "price", "wage", "hours", "income tax", "corporate tax")
"""Figures by which two sets of runs come to the same conclusions, beside their verdicts."""
EQUIVALENCE = (
    f"**Same conclusions**: each of {', '.join(COMPARED)} differs by at most {100 * SAME:g} % of its value (tax rates: "
    f"{100 * SAME_TAX:g} percentage points), and verdicts agree. A figure is the same if Welch's 95 % interval of the "
    "difference lies within that tolerance, and different if the interval that holds for all figures at once "
    "(Bonferroni) lies outside it. Verdicts are the same if in both sets all runs pass or none does, and different if "
    "the interval of the difference of shares excludes 0. Reproduced: all are the same; not reproduced: one is "
    "different; else cannot tell. The number is the figure that differs most, against its tolerance."
)


def same_conclusions(
    text: str, base: Sequence[Outcome], other: Sequence[Outcome], parts: tuple[str, ...]
) -> tuple[Claim, list[Table]]:
    """Compare two sets of runs; return the claim that they are equivalent, and the figures that it rests on."""
    answers: list[str] = []
    rows: list[tuple[str, ...]] = []
    worst: tuple[float, str, Estimate] | None = None
    for name in COMPARED if base and other else ():
        old, new = ([figure(run, name) for run in runs] for runs in (base, other))
        is_tax = name.endswith("tax")
        scale = 1.0 if is_tax else abs(float(np.mean(old)))
        tolerance = SAME_TAX if is_tax else SAME * scale
        gap, sure = difference(new, old), difference(new, old, 1.0 - 0.05 / len(COMPARED))
        answer = _is_same(gap, sure, tolerance)
        answers.append(answer)
        shown = ""
        if gap is not None and scale > 0.0:
            percent = Estimate(*(100.0 * end / scale for end in (gap.mean, gap.low, gap.high)))
            shown = f"{percent} {'points' if is_tax else '%'}"
            if worst is None or abs(gap.mean) / tolerance > worst[0]:
                worst = abs(gap.mean) / tolerance, name, percent
        rows.append((name, number_text(float(np.mean(old))), number_text(float(np.mean(new))), shown, answer))
    if base and other:
        old_passes, new_passes = passes(base), passes(other)
        gap = difference_of_shares(new_passes, old_passes)
        if gap is None:
            answer = "cannot tell"
        elif len({*old_passes, *new_passes}) == 1 and min(len(old_passes), len(new_passes)) >= FEWEST:
            answer = "same"
        else:
            answer = "different" if gap.low > 0.0 or gap.high < 0.0 else "cannot tell"
        answers.append(answer)
        of = (f"{sum(each)} of {len(each)} pass" for each in (old_passes, new_passes))
        rows.append(("verdict", *of, "" if gap is None else str(gap), answer))
    if "different" in answers:
        answer = NOT_REPRODUCED
    else:
        answer = REPRODUCED if answers and set(answers) == {"same"} else CANNOT_TELL
    found = claim(
        text,
        "same conclusions, as defined above",
        worst[2] if worst else None,
        f"{'points' if worst and worst[1].endswith('tax') else '%'}{f', {worst[1]}' if worst else ''}",
        lambda _: answer,
        [*base, *other],
        parts,
        _told(rows, "different"),
    )
    head = ("figure", f"base ({len(base)} runs)", f"other ({len(other)} runs)", "difference [95 %]", "answer")
    return found, [Table(text, head, rows)] if rows else []


def _is_same(gap: Estimate | None, sure: Estimate | None, tolerance: float) -> str:
    if gap is None or sure is None:
        return "cannot tell"
    if -tolerance <= gap.low and gap.high <= tolerance:
        return "same"
    return "different" if sure.low > tolerance or sure.high < -tolerance else "cannot tell"


def _told(rows: Sequence[tuple[str, ...]], answer: str) -> str:
    names = [row[0] for row in rows if row[-1] == answer]
    return f"{answer}: {', '.join(names)}" if names else ""
