"""The best plan of one consumer who faces given prices, wages and taxes and is never rationed, by dynamic programming.

An independent optimum for tests: it shares no code with the deviations that it is compared with.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from rbc_warp.economy.parameters import Economy
from rbc_warp.economy.reference import affordable_demand, settle_budgets, utility
from rbc_warp.errors import ConfigError

# Budgets that differ by less than this are one state of the dynamic program [money].
BUDGET_RESOLUTION_DIGITS = 6


@dataclass(frozen=True)
class Market:
    """What a single consumer takes as given, per period."""

    prices: np.ndarray
    """(T, J) money per unit."""
    wages: np.ndarray
    """(T, J) money per hour."""
    income_tax: np.ndarray
    """(T,) share of wages; a 1/I part of what the consumer pays comes back to it."""
    transfers: np.ndarray
    """(T,) money that it gets from the taxes of others."""


@dataclass(frozen=True)
class ConsumerPlan:
    """The best that a consumer can do."""

    actions: np.ndarray
    """(T, J+2) indices."""
    reward: float
    """Mean per period."""
    budgets: np.ndarray
    """(T+1,) on its way [money]."""


def best_consumer_plan(
    economy: Economy, market: Market, theta: float, noponzi: float = 0.0, max_transitions: int = 20_000_000
) -> ConsumerPlan:
    """The best plan of one consumer who is never rationed, by dynamic programming over the budgets it can reach.

    ``theta``: its disutility of work as felt; ``noponzi``: the price of final debt. Exact but for budgets that differ
    by less than 10^-6, which count as one. Raises ConfigError where a period has more than ``max_transitions`` pairs of
    budget and action.
    """
    periods = economy.num_periods
    heads = [range(size) for size in economy.agents["consumer"].head_sizes]
    num_actions = economy.agents["consumer"].num_joint_actions
    reachable = [np.array([economy.initial_consumer_budget])]
    follows: list[np.ndarray] = []
    gains: list[np.ndarray] = []
    if num_actions <= max_transitions:
        actions = np.array(list(itertools.product(*heads)))
    for t in range(periods):
        size = len(reachable[t]) * num_actions
        if size > max_transitions:
            raise ConfigError(
                f"a consumer's dynamic program needs {size} transitions in period {t}, {max_transitions} are allowed; "
                "take fewer goods, periods or choices"
            )
        gain, budget = _consumer_period(economy, market, theta, t, reachable[t], actions)
        following, where = np.unique(np.round(budget, BUDGET_RESOLUTION_DIGITS), return_inverse=True)
        reachable.append(following)
        follows.append(where.reshape(budget.shape))
        gains.append(gain)
    value = -noponzi * np.maximum(-reachable[periods], 0.0) / economy.consumer_penalty_scale
    choice: list[np.ndarray] = []
    for t in reversed(range(periods)):
        total = gains[t] + value[follows[t]]
        choice.insert(0, total.argmax(axis=1))
        value = total.max(axis=1)
    state, path, budgets = 0, [], [float(reachable[0][0])]
    for t in range(periods):
        path.append(actions[choice[t][state]])
        state = follows[t][state, choice[t][state]]
        budgets.append(float(reachable[t + 1][state]))
    return ConsumerPlan(np.array(path, dtype=np.int32), float(value[0]) / periods, np.array(budgets))


def _consumer_period(
    economy: Economy, market: Market, theta: float, t: int, budgets: np.ndarray, actions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Utility and next budget for every budget and action, each (budgets, actions)."""
    num_firms = economy.num_firms
    demand = economy.consumption_choices[actions[:, :num_firms]]
    hours = economy.work_choices[actions[:, num_firms]]
    earned = market.wages[t][actions[:, num_firms + 1]] * hours
    prices = np.broadcast_to(market.prices[t], (len(budgets), num_firms))
    asked = np.broadcast_to(demand, (len(budgets), *demand.shape))
    # Each budget is an environment, each action one of its consumers.
    bought = affordable_demand(prices, asked, np.broadcast_to(budgets[:, None], asked.shape[:2]))
    gain = utility(bought, economy.crra).sum(axis=2) - 0.5 * theta * hours
    tax = market.income_tax[t] * earned
    income = earned - tax + tax / economy.num_consumers + market.transfers[t] + economy.budget_drip
    balance, _ = settle_budgets(budgets[:, None], income - bought @ market.prices[t], economy.interest_rate)
    return gain, balance
