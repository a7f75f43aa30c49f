"""An upper end for what one consumer could gain: it takes prices as given, knows them all, and is never rationed.

Every constraint of the true problem but one is dropped: money spent over the episode is at most money had and earned in
time to be spent. Whatever a consumer of the game can do, this one can, too, apart from what prices, wages, taxes and
others' incomes would do in answer to one consumer among many. So its value bounds that of a price-taking best response.
By Lagrangian duality any price λ of money gives a bound; the least over a grid is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rbc_warp.economy.agents import CONSUMER_BUDGET
from rbc_warp.economy.parameters import Economy
from rbc_warp.economy.reference import utility
from rbc_warp.training.rollout import Rollout

PRICES_OF_MONEY = 200
"""Size of the grid of λ."""


@dataclass(frozen=True)
class Markets:
    """What a single consumer takes as given in each episode."""

    prices: np.ndarray  #: (T, E, J) money per unit.
    wages: np.ndarray  #: (T, E, J) money per hour.
    income_tax: np.ndarray  #: (T, E) share of wages.
    transfers: np.ndarray  #: (T, E) money from taxes that others pay, and gifts; received after spending.


def markets_of(economy: Economy, rollout: Rollout) -> Markets:
    """Read the markets off a rollout whose consumption was kept, by the accounts of consumer 0."""
    layout = economy.public
    public = rollout.public_states()[:, :, 0].double().cpu().numpy()
    budget = rollout.private_states("consumer")[:, :, 0, CONSUMER_BUDGET].double().cpu().numpy()
    actions = rollout.actions("consumer")[:, :, 0].cpu().numpy()
    prices, wages, tax = (public[..., layout.prices], public[..., layout.wages], public[..., layout.income_tax])
    spent = (prices * rollout.aux("consumer")[:, :, 0].double().cpu().numpy()).sum(axis=-1)
    employer, hours = actions[..., -1:], economy.work_choices[actions[..., -2]]
    earned = np.take_along_axis(wages, employer, axis=-1)[..., 0] * hours * _kept(economy, tax)
    received = np.zeros_like(spent)  # what comes in the last period cannot be spent
    received[:-1] = budget[1:] / (1.0 + economy.interest_rate) - budget[:-1] + (spent - earned)[:-1]
    return Markets(prices, wages, tax, received)


def _kept(economy: Economy, income_tax: np.ndarray) -> np.ndarray:
    """Share of a wage that is kept: an equal part of the tax on it comes back."""
    return 1.0 - income_tax * (1.0 - 1.0 / economy.num_consumers)


def upper_values(economy: Economy, markets: Markets, theta: np.ndarray) -> np.ndarray:
    """Return bounds on consumers' rewards per period, (E, I), each for its own disutility of work ``theta`` (I,)."""
    periods, episodes = markets.income_tax.shape
    growth = (1.0 + economy.interest_rate) ** -np.arange(periods)  # money of period t, in that of period 0
    most, hours = economy.consumption_choices.max(), economy.work_choices.max()
    kept = _kept(economy, markets.income_tax)
    wage = (growth[:, None] * kept * markets.wages.max(axis=-1))[:-1]  # the last wages come too late to be spent
    wealth = economy.initial_consumer_budget + (growth[:, None] * markets.transfers)[:-1].sum(axis=0)  # (E,)
    cost = growth[:, None, None] * markets.prices
    best = np.full((episodes, len(theta)), np.inf)
    largest = 1.0 / max(float(cost[cost > 0.0].min(initial=1.0)), 1e-12)  # nothing is bought beyond it
    for price in np.concatenate([[0.0], np.geomspace(1e-6, 1.0, PRICES_OF_MONEY) * largest]):
        units = np.clip(_demand(price * cost, economy.crra), 0.0, most)
        goods = (utility(units, economy.crra) - price * cost * units).sum(axis=(0, 2))  # (E,)
        work = (np.maximum(price * wage[..., None] - 0.5 * theta, 0.0) * hours).sum(axis=0)  # (E, I)
        best = np.minimum(best, price * wealth[:, None] + goods[:, None] + work)
    return best / periods


def _demand(cost: np.ndarray, crra: float) -> np.ndarray:
    """Units at which marginal utility (1 + c)^−η is the cost of a unit; at η = 0 all or nothing."""
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(cost < 1.0, np.inf, 0.0) if crra == 0.0 else cost ** (-1.0 / crra) - 1.0
