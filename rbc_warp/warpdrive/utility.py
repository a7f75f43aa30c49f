"""CRRA utility as the kernels evaluate it: a few table entries and one short polynomial, fitted once per economy.

With 1 + c = m (1 + f), u(c) = ((1 + c)^p − 1) / p, p = 1 − η, is u(m − 1) + m^p g(f) with g(f) = ((1 + f)^p − 1) / p
(log(1 + f) at p = 0). m is the nearest of sixteen points, two or four to a doubling, so that f stays small and
g(f) = f + f² q(f) needs few terms. Near c = 0, m is 1 and the result is as exact as c itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rbc_warp.economy.reference import utility

ENTRIES, COEFFICIENTS = 16, 6
MANTISSA_BITS = 23
LARGEST_ERROR = 1e-7


@dataclass(frozen=True)
class UtilityFit:
    """What a kernel needs to evaluate u: entry k stands at the place that the rounded bits of 1 + c give modulo 16."""

    shift: int
    """How far the bits of 1 + c are shifted to the entry's number; 0 where no fit is exact enough."""
    tables: np.ndarray
    """(54,) float32: sixteen 1/m, sixteen m^p, sixteen u(m − 1), then the coefficients of q, highest power first."""

    def evaluate(self, units: np.ndarray) -> np.ndarray:
        """u(units) in double precision from the float32 tables, as the kernels' formula states it."""
        reciprocal, factor, offset = self.tables[: 3 * ENTRIES].astype(np.float64).reshape(3, ENTRIES)
        bits = (1.0 + units).astype(np.float32).view(np.int32)
        entry = ((bits + (1 << (self.shift - 1))) >> self.shift) % ENTRIES
        f = (1.0 + units) * reciprocal[entry] - 1.0
        return offset[entry] + factor[entry] * (
            f + f * f * np.polyval(self.tables[3 * ENTRIES :].astype(np.float64), f)
        )


def fit_utility(crra: float, most_units: float) -> UtilityFit:
    """The fit for 0 ≤ c ≤ ``most_units``, with the finer division that reaches so far.

    A fit whose relative error exceeds 1e-7 (strong curvature, or more units than sixteen entries span) is given up:
    its ``shift`` is 0 and kernels then compute u from exp and log.
    """
    for bits in (2, 1):
        reach = 2.0 ** (ENTRIES >> bits) * (1.0 - 0.25 / (1 << bits))  # where the seventeenth entry would begin
        if 1.0 + most_units >= reach:
            continue
        fit = _fit(crra, bits)
        units = np.concatenate([np.geomspace(1e-6, 1.0, 4000), np.linspace(0.0, most_units, 20000)[1:]])
        units = units[(units > 0.0) & (units <= most_units)].astype(np.float32).astype(np.float64)
        error = np.abs(fit.evaluate(units) / utility(units, crra) - 1.0)
        if error.max(initial=0.0) <= LARGEST_ERROR:
            return fit
    return UtilityFit(0, np.zeros(3 * ENTRIES + COEFFICIENTS, dtype=np.float32))


def _fit(crra: float, bits: int) -> UtilityFit:
    shift = MANTISSA_BITS - bits
    number = (np.float32(1.0).view(np.int32) >> shift) + np.arange(ENTRIES)  # of the entries, from m = 1 upwards
    reciprocal = (1.0 / (number << shift).astype(np.int32).view(np.float32)).astype(np.float32)
    m = 1.0 / reciprocal.astype(np.float64)  # rounded with it, so that its other entries are exact
    widest = 0.5 / (1 << bits)
    f = widest * np.cos(np.pi * (np.arange(200) + 0.5) / 200)
    q = np.polynomial.chebyshev.Chebyshev.fit(f, (utility(f, crra) - f) / f**2, COEFFICIENTS - 1)
    tables = np.zeros((3, ENTRIES))
    tables[:, number % ENTRIES] = reciprocal, m ** (1.0 - crra), utility(m - 1.0, crra)
    highest_first = q.convert(kind=np.polynomial.Polynomial).coef[::-1]
    return UtilityFit(shift, np.concatenate([tables.ravel(), highest_first]).astype(np.float32))
