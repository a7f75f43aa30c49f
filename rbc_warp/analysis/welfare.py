"""Who gains and who loses between two rollouts: changes of utility, and what they are worth in consumption.

Utility is that of what was consumed and worked, at one disutility of work, whatever the curriculum showed of it; the
charge on final debt, a device of training, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy import stats

from rbc_warp.economy.parameters import Economy
from rbc_warp.economy.reference import reward_consumers
from rbc_warp.economy.welfare import consumption_equivalent

GROUPS = 10


@dataclass(frozen=True)
class Lives:
    """What consumers got in episodes. E episodes, T periods, I consumers, J goods."""

    units: np.ndarray  #: (E, T, I, J) consumed, float64.
    utility: np.ndarray  #: (E, I) per period.

    @classmethod
    def of(cls, economy: Economy, rollout: xr.Dataset) -> Lives:
        """Cut them out of a dense rollout, with the tastes of ``economy``: its θ before the curriculum, and its η."""
        units, hours = (rollout[name].values.astype(np.float64) for name in ("consumption", "hours"))
        felt = reward_consumers(
            units.reshape(-1, *units.shape[2:]), hours.reshape(-1, hours.shape[2]), economy.theta, economy.crra
        )
        return cls(units, felt.reshape(hours.shape).mean(axis=1))

    def some(self, episodes: slice) -> Lives:
        return Lives(self.units[episodes], self.utility[episodes])


@dataclass(frozen=True)
class Gains:
    """Changes from one rollout to another, of each of n groups of consumers, with 95 % intervals, (n,) each."""

    change: np.ndarray  #: Of utility per period.
    low: np.ndarray
    high: np.ndarray
    equivalent: np.ndarray  #: Worth this change of the base's consumption, for good [%]; NaN where no change would do.
    equivalent_low: np.ndarray
    equivalent_high: np.ndarray

    @property
    def winners(self) -> float:
        """Share of the groups whose whole interval is a gain."""
        return float((self.low > 0.0).mean())

    @property
    def losers(self) -> float:
        return float((self.high < 0.0).mean())


def gains(base: Lives, other: Lives, crra: float, groups: Sequence[np.ndarray]) -> Gains:
    """Return what each group of consumers (their indices) gains from ``base`` to ``other``.

    The episodes are different draws, so intervals are unpaired. What a change is worth is measured in the base's units.
    """
    means = ([lives.utility[:, members].mean(axis=1) for members in groups] for lives in (base, other))
    change, low, high = unpaired(*(np.stack(each, axis=1) for each in means))
    worth = np.array(
        [
            [_equivalent(base.units[:, :, members], gain, crra) for gain in ends]
            for members, ends in zip(groups, zip(change, low, high, strict=True), strict=True)
        ]
    )
    return Gains(change, low, high, *worth.T)


def unpaired(old: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean differences of independent samples (m, n) and (m', n), and Welch's 95 % intervals.

    A single episode has no interval: it is NaN.
    """
    change = new.mean(axis=0) - old.mean(axis=0)
    if min(len(old), len(new)) < 2:
        return change, np.full_like(change, np.nan), np.full_like(change, np.nan)
    parts = np.stack([values.var(axis=0, ddof=1) / len(values) for values in (old, new)])
    variance = parts.sum(axis=0)
    below = (parts**2 / np.array([[len(old) - 1], [len(new) - 1]])).sum(axis=0)
    freedom = np.divide(variance**2, below, out=np.full_like(variance, np.inf), where=below > 0.0)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    return change, change - half, change + half


def by_theta(economy: Economy) -> list[np.ndarray]:
    """Consumers in groups of equal size, by falling θ."""
    order = np.argsort(-economy.theta, kind="stable")
    return np.array_split(order, min(GROUPS, len(order)))


def by_utility(base: Lives, other: Lives, crra: float) -> Gains | None:
    """Return the gains of groups of equal size by utility in the base, lowest first; None with too few episodes.

    Half of the base's episodes tell who is where, the other half what changed: of the same episodes, those who had bad
    luck would come out below and seem to gain.
    """
    ranking, measured = base.some(slice(0, None, 2)), base.some(slice(1, None, 2))
    if len(measured.utility) < 2:
        return None
    order = np.argsort(ranking.utility.mean(axis=0), kind="stable")
    return gains(measured, other, crra, np.array_split(order, min(GROUPS, len(order))))


def _equivalent(units: np.ndarray, gain: float, crra: float) -> float:
    worth = None if np.isnan(gain) else consumption_equivalent(units, float(gain), crra)
    return np.nan if worth is None else worth
