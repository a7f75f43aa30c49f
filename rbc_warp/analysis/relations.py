"""How final figures of runs go together: least squares with 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from rbc_warp.equilibrium.game import Estimate

PAIRS = (
    ("price", "wage"),
    ("price", "firm reward"),
    ("wage", "hours"),
    ("income tax", "government reward"),
    ("corporate tax", "firm reward"),
    ("price", "consumer reward"),
)
FEWEST = 3
"""Runs that a line needs: with two it would have no interval."""


@dataclass(frozen=True)
class Line:
    """A regression line of y on x over n runs."""

    x: str
    y: str
    slope: float
    low: float
    high: float  #: 95 % interval of the slope.
    intercept: float
    r_squared: float
    n: int
    mean_x: float
    spread_x: float  #: Sum of squared deviations of x.
    residual: float  #: Standard deviation of the residuals, n − 2 degrees of freedom.

    def predict(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the line at some x and half the width of its 95 % interval there."""
        width = self.residual * np.sqrt(1.0 / self.n + (at - self.mean_x) ** 2 / self.spread_x)
        return self.intercept + self.slope * at, stats.t.ppf(0.975, self.n - 2) * width


def regress(table: pd.DataFrame, x: str, y: str) -> Line | None:
    """Fit y on x; None with fewer than FEWEST runs, or where either is the same in all."""
    known = table[[x, y]].dropna().to_numpy(dtype=float)
    if len(known) < FEWEST or np.ptp(known[:, 0]) == 0.0 or np.ptp(known[:, 1]) == 0.0:
        return None
    fit = stats.linregress(known[:, 0], known[:, 1])
    n, mean = len(known), float(known[:, 0].mean())
    half = stats.t.ppf(0.975, n - 2) * fit.stderr
    rest = known[:, 1] - fit.intercept - fit.slope * known[:, 0]
    residual = float(np.sqrt((rest**2).sum() / (n - 2)))
    return Line(
        x, y, float(fit.slope), float(fit.slope - half), float(fit.slope + half), float(fit.intercept),
        float(fit.rvalue**2), n, mean, float(((known[:, 0] - mean) ** 2).sum()), residual,
    )  # fmt: skip


def within_groups(x: Sequence[float], y: Sequence[float], groups: Sequence[Any]) -> Estimate | None:
    """Return the slope of y on x, both less the mean of their group, with Student's interval; None of too few runs."""
    table = pd.DataFrame({"x": x, "y": y}, dtype=float)
    table -= table.groupby(list(groups)).transform("mean")
    freedom = len(table) - len(set(groups)) - 1
    spread = float((table.x**2).sum())
    if freedom < 1 or spread == 0.0:
        return None
    slope = float((table.x * table.y).sum()) / spread
    error = float(((table.y - slope * table.x) ** 2).sum()) / freedom / spread
    half = float(stats.t.ppf(0.975, freedom)) * error**0.5
    return Estimate(slope, slope - half, slope + half)


def relations(table: pd.DataFrame) -> list[Line]:
    """Fit all PAIRS that the table has numbers for."""
    return [line for x, y in PAIRS if x in table and y in table and (line := regress(table, x, y)) is not None]
