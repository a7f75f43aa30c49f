"""Inequality: Lorenz curves and Gini coefficients.

Negative values, as of consumers in debt, stay negative: the curve then dips below 0 and the coefficient may exceed 1.
Where values do not sum to something positive, neither is defined.
"""

from __future__ import annotations

import numpy as np


def lorenz(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return shares of the population, poorest first, and of the total, from 0 to 1, (n+1,); NaN where undefined."""
    ordered = np.sort(np.asarray(values, dtype=np.float64).ravel())
    people = np.linspace(0.0, 1.0, len(ordered) + 1)
    total = ordered.sum()
    if not total > 0.0:
        return people, np.full(len(people), np.nan)
    return people, np.concatenate([[0.0], np.cumsum(ordered) / total])


def gini(values: np.ndarray) -> float:
    """Return 1 − 2 · the area below the Lorenz curve; 0 where all are equal, NaN where undefined."""
    people, share = lorenz(values)
    return float(1.0 - np.trapezoid(share, people) * 2.0)
