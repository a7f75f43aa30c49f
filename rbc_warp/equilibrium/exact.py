"""Exact best responses, where they can be had.

With everybody else playing the most likely action, an economy is deterministic: the best open-loop plan of one deviator
is found by playing all plans, as environments side by side (:func:`best_plan`). A single consumer who faces given
prices, wages and taxes and is never rationed solves a small dynamic program (:func:`best_consumer_plan`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from rbc_warp.economy.agents import FIRM_INVESTMENT
from rbc_warp.economy.parameters import Economy
from rbc_warp.economy.reference import affordable_demand, settle_budgets, utility
from rbc_warp.equilibrium.game import FREE, Forced, Game, of_deviator
from rbc_warp.errors import ConfigError
from rbc_warp.training.rollout import EVALUATION_STREAM, Draw

# Budgets that differ by less than this are one state of the dynamic program [money].
BUDGET_RESOLUTION_DIGITS = 6


@dataclass(frozen=True)
class BestPlan:
    """The best open-loop plan of one deviator against the most likely actions of everybody else."""

    agent: str
    index: int | None
    actions: np.ndarray
    """(T, heads) indices; FREE from the period on where the deviator goes back to its policy."""
    reward: float
    """Mean per period."""
    before: float
    """Of the deviator's own most likely actions."""
    num_plans: int
    is_exact: bool
    """Whether the plan covers every period in which an action can matter."""

    @property
    def gain(self) -> float:
        return self.reward - self.before

    @property
    def num_periods(self) -> int:
        """Periods that the plan covers."""
        return int((self.actions[:, 0] != FREE).sum())


def useful_periods(economy: Economy, agent: str) -> int:
    """Periods in which a type's action can matter: what is posted in the last one binds nobody."""
    invests = len(np.unique(economy.firm_choices[:, FIRM_INVESTMENT])) > 1
    return economy.num_periods if agent == "consumer" or (agent == "firm" and invests) else economy.num_periods - 1


def joint_actions(game: Game, agent: str) -> np.ndarray:
    """All allowed joint actions of a type, (K, heads)."""
    sizes = game.economy.agents[agent].head_sizes
    allowed = np.split(game.allowed(agent), np.cumsum(sizes)[:-1])
    return np.array(list(itertools.product(*(np.flatnonzero(mask) for mask in allowed))), dtype=np.int32)


def count_joint_actions(game: Game, agent: str) -> int:
    """How many :func:`joint_actions` there are, without making them."""
    sizes = game.economy.agents[agent].head_sizes
    counts = [int(mask.sum()) for mask in np.split(game.allowed(agent), np.cumsum(sizes)[:-1])]
    return int(np.prod(np.array(counts, dtype=object)))


def plan_horizon(game: Game, agent: str, max_plans: int) -> int:
    """The longest plan, in periods, that ``max_plans`` allows to enumerate; :class:`ConfigError` where it is none."""
    choices = count_joint_actions(game, agent)
    if choices > max_plans:
        raise ConfigError(
            f"--exact {max_plans}: a {agent} has {choices} joint actions, so a plan of one period takes {choices} "
            f"environments; allow that many, or leave the {agent} out"
        )
    horizon, last = 1, max(useful_periods(game.economy, agent), 1)
    while horizon < last and choices ** (horizon + 1) <= max_plans:
        horizon += 1
    return horizon


def best_plan(game: Game, agent: str, index: int | None, max_plans: int) -> BestPlan:
    """Plays every plan of as many periods as ``max_plans`` allows; from then on the deviator follows its policy.

    ``index``: the agent who departs, None for all of its type at once. Everybody else, and the deviator after its plan,
    takes the most likely action and reacts to the state that the plan leads to.
    """
    horizon = plan_horizon(game, agent, max_plans)
    choices = joint_actions(game, agent)
    economy, trainer = game.economy, game.trainer
    num_plans, num_envs = len(choices) ** horizon, trainer.num_local_envs
    agents = None if index is None else [index]
    before = _play_plans(game, agent, index, None)[0]
    best_reward, best_actions = -np.inf, np.empty(0)
    for first in range(0, num_plans, num_envs):
        numbers = np.minimum(np.arange(first, first + num_envs), num_plans - 1)
        digits = np.stack(np.unravel_index(numbers, (len(choices),) * horizon), axis=1)  # (E, horizon)
        actions = np.full((num_envs, economy.num_periods, choices.shape[1]), FREE, dtype=np.int32)
        actions[:, :horizon] = choices[digits]
        rewards = _play_plans(game, agent, index, Forced(agent, agents, actions))
        top = int(rewards.argmax())
        if rewards[top] > best_reward:
            best_reward, best_actions = float(rewards[top]), actions[top]
    is_exact = horizon >= useful_periods(economy, agent)
    return BestPlan(agent, index, best_actions, best_reward, float(before), num_plans, is_exact)


def _play_plans(game: Game, agent: str, index: int | None, plans: Forced | None) -> np.ndarray:
    """The deviator's reward per environment (E,), everybody else taking the most likely action."""
    with game.changed(*([plans] if plans else [])):
        game.trainer.play(Draw(game.iteration, EVALUATION_STREAM, greedy=True))
    rewards = {agent: game.trainer.rollout.rewards(agent).double().mean(dim=0).cpu().numpy()}
    return of_deviator(rewards, agent, index)


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
