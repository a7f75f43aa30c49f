"""Welfare in consumption: the permanent change of consumption that is worth a change of utility."""

from __future__ import annotations

import numpy as np

from rbc_warp.economy.reference import utility

LARGEST_RISE = 1e6


def consumption_equivalent(units: np.ndarray, gain: float, crra: float) -> float | None:
    """Return by how much all consumption must change, for good, to change utility by ``gain``, hours as they are [%].

    Args:
        units: (…, J) units consumed of each good; utility is the sum over goods, meaned over all other axes.
        gain: of utility per period.
        crra: relative risk aversion, η.

    u takes 1 + c, so there is no closed form. None where no change would do: more than −100 %, or too little consumed.
    """
    now = float(utility(units, crra).sum(axis=-1).mean())

    def missing(rise: float) -> float:
        return float(utility((1.0 + rise) * units, crra).sum(axis=-1).mean()) - now - gain

    if gain == 0.0:
        return 0.0
    low, high = (0.0, LARGEST_RISE) if gain > 0.0 else (-1.0, 0.0)
    if missing(low) * missing(high) > 0.0:
        return None
    from scipy.optimize import brentq  # here, so that training needs no SciPy

    return 100.0 * float(brentq(missing, low, high))
