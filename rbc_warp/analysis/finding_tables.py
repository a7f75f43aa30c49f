"""Tables beside the claims of the results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rbc_warp.analysis.claims import Table, mean
from rbc_warp.analysis.outcomes import Outcome, figure, passes
from rbc_warp.equilibrium.results import PUBLISHED_BARS
from rbc_warp.runs.console import number_text

REWARDS = ("welfare", "consumer reward", "firm reward")
TAXES = ("income tax", "corporate tax")
PUBLISHED_TYPICAL = {"consumer": 0.2, "firm": 5.0, "government": 0.1}
"""What fine-tuning a type gains in a typical seed, as published [% of its training gain]: less than this."""


def mean_of(runs: Sequence[Outcome], name: str) -> float:
    """Return the mean of a figure over runs."""
    return float(np.mean([figure(run, name) for run in runs]))


def mean_text(values: Sequence[float]) -> str:
    """Return a mean with its interval, where there are runs enough."""
    if not values:
        return "–"
    each = mean(values)
    return number_text(float(np.mean(values))) if each is None else str(each)


def passed_text(runs: Sequence[Outcome]) -> str:
    """Return how many of the runs that have a full verdict pass."""
    return f"{sum(passes(runs))} of {len(passes(runs))}"


def gap_table(runs: Sequence[Outcome]) -> Table:
    """Types fine-tuned, and single agents beside them, at each checkpoint: median and worst seed, in % of the base."""
    rows = []
    for iteration in sorted({each.iteration for run in runs for each in run.tuned}):
        for agent, bar in PUBLISHED_BARS.items():
            records = [each for run in runs if (each := run.tuned_at(agent, iteration)) is not None]
            points = [point for run in runs for point in run.points if point.iteration == iteration]
            gaps = [point.gaps[agent] for point in points if agent in point.gaps]
            gain = f"{np.median([each.gain for each in records]):.3g}" if records else "–"
            cells = (
                *_median_and_worst([each.share(each.gain) for each in records]),
                *_median_and_worst([gap.share for gap in gaps]),
                _median_and_worst([gap.high for gap in gaps])[1],
            )
            paper = f"{PUBLISHED_TYPICAL[agent]:g} / {bar:g}" if iteration == max(run.last for run in runs) else ""
            rows.append((f"{iteration:,}", agent, gain, *cells, str(len(records)), paper))
    whole = ("whole type: median gain", "median %", "worst %")
    head = ("iteration", "type", *whole, "any: median %", "worst %", "upper end %", "seeds", "paper %")
    title = (
        "Gains of a type that is fine-tuned as a whole, as in Table 3, in reward per period and in % of its training "
        "gain, or of own learning where that is not positive (–: no choice yet, or nothing learned); and the largest "
        "of any single agent or whole type. Paper: typical / worst of ten seeds, whole types"
    )
    return Table(title, head, rows)


def _median_and_worst(shares: Sequence[float | None]) -> tuple[str, str]:
    known = [value for value in shares if value is not None]
    return (f"{np.median(known):.2g}", f"{max(known):.2g}") if known else ("–", "–")


def final_table(name: str, runs: Sequence[Outcome]) -> Table:
    """The runs' figures, whether each collapsed, by the share of the most hours that is worked, and its verdict."""
    names = (*REWARDS, "price", "wage", "hours", "sales", "exports", *TAXES)
    rows = []
    for run in runs:
        activity, figures = run.activity, (number_text(figure(run, each)) for each in names)
        worked = "–" if activity is None else f"{100.0 * activity.worked:.3g}"
        fell = "–" if activity is None else "yes" if activity.has_collapsed else "no"
        passed = "–" if run.verdict is None else "passes" if run.verdict.passed else "fails"
        rows.append((str(run.seed), *figures, worked, fell, passed))
    title = f"Runs, {name}: means over the last 5 % of iterations; work in % of the most, in the last rollout"
    return Table(title, ("seed", *names, "work", "collapsed", "verdict"), rows)
