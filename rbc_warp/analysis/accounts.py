"""Do the numbers of a dense rollout follow from one another, and do its accounts balance?

Every period is played again by ``economy/reference.py`` from the state and the actions that the files hold, and goods,
money, hours and taxes are balanced from those numbers alone. The files are float32, so sums may differ by rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from rbc_warp.economy import reference
from rbc_warp.economy.agents import (
    AGENT_TYPES,
    CONSUMER_BUDGET,
    CONSUMER_THETA,
    FIRM_ALPHA,
    FIRM_BUDGET,
    FIRM_CAPITAL,
    Layout,
)
from rbc_warp.economy.parameters import Economy
from rbc_warp.economy.reference import Outcome, Stage, State
from rbc_warp.runs.episodes import Episode

# Rounding allowed in what the kernels compute in float32: relative to the absolute terms of a sum, and absolute.
RELATIVE, MONEY, UNITS, SHOWN = 1e-6, 1e-3, 1e-5, 1e-6
POWERS = 1e-5
"""Relative rounding of powers, in utility and production, and of units that are shared."""


@dataclass(frozen=True)
class Fault:
    """A check that failed: the first number that is not what it must be, and in how many places that is so."""

    check: str
    rollout: str
    where: str
    found: float
    expected: float
    count: int
    total: int

    def __str__(self) -> str:
        return (
            f"FAILS: {self.check}: rollout {self.rollout}, {self.where}: {_number(self.found)} where "
            f"{_number(self.expected)} is due; {self.count:,} of {self.total:,} such numbers are off"
        )


@dataclass
class Checks:
    """Compares numbers of one rollout, all of them (E, T, …), and keeps what is wrong."""

    rollout: str
    faults: list[Fault] = field(default_factory=list)
    count: int = 0

    def equal(
        self,
        check: str,
        found: Any,
        expected: Any,
        dims: tuple[str, ...] = (),
        *,
        gross: Any = 0.0,
        relative: float = RELATIVE,
        absolute: float = MONEY,
        where: Any = True,
        first: int = 0,
    ) -> None:
        """Demand that two arrays agree up to ``relative · gross + absolute``, ``where`` that is asked.

        ``dims`` names the dimensions after episodes and periods; ``first`` is the period of the first column.
        """
        off = ~(np.abs(found - expected) <= relative * (np.abs(gross) + np.abs(expected)) + absolute)  # also of NaN
        self._note(check, found, expected, off, dims, where, first)

    def at_most(
        self, check: str, found: Any, limit: Any, dims: tuple[str, ...], where: Any, absolute: float = UNITS
    ) -> None:
        """Demand that no number is above its limit, up to rounding."""
        off = ~(found <= limit + POWERS * np.abs(limit) + absolute)
        self._note(check, found, limit, off, dims, where, 0)

    def _note(
        self, check: str, found: Any, expected: Any, off: Any, dims: tuple[str, ...], where: Any, first: int
    ) -> None:
        asked = np.broadcast_to(where, off.shape)
        wrong = np.argwhere(off & asked)
        self.count += int(asked.sum())
        if len(wrong):
            at = tuple(wrong[np.argmin(wrong[:, 1])])
            names = ("episode", "period", *dims)
            place = ", ".join(f"{n} {i + first * (n == 'period')}" for n, i in zip(names, at, strict=True))
            value, due = (float(np.broadcast_to(array, off.shape)[at]) for array in (found, expected))
            self.faults.append(Fault(check, self.rollout, place, value, due, len(wrong), int(asked.sum())))


# What follows from states and actions


def _columns(
    layout: Layout, found: np.ndarray, due: np.ndarray
) -> Iterator[tuple[str, tuple[str, ...], np.ndarray, np.ndarray]]:
    """Each column's name, the dimension of its entries if it has several, and that part of two states."""
    for column, span in layout.spans():
        at: Any = span if column.width else span.start
        yield column.name, ("firm",) if column.width else (), found[..., at], due[..., at]


def in_float32(economy: Economy) -> Economy:
    """The economy with the numbers that the kernels know."""
    rounded: dict[str, Any] = {}
    for each in fields(economy):
        value = getattr(economy, each.name)
        if isinstance(value, float | np.ndarray):
            rounded[each.name] = np.float64(np.float32(value))
    return replace(economy, **rounded)


def play_again(
    economy: Economy, stage: Stage, episodes: Mapping[str, Episode]
) -> tuple[State, dict[str, np.ndarray], State]:
    """Play every period from its saved state: the states before (E, T, …), the outcome, and the states after."""
    shape, size = episodes["firm"].rewards.shape[:2], economy.public.size

    def rows(array: np.ndarray) -> np.ndarray:
        return array.reshape(-1, *array.shape[2:])

    def periods(array: np.ndarray) -> np.ndarray:
        return array.reshape(*shape, *array.shape[1:])

    states = {agent: rows(episode.states).astype(np.float64) for agent, episode in episodes.items()}
    before = State(states["government"][:, 0], states["consumer"][:, :, size:], states["firm"][:, :, size:])
    consumer, firm, government = (rows(episodes[agent].actions) for agent in AGENT_TYPES)
    after, outcome = reference.step(economy, before, consumer, firm, government, stage)
    flows = {each.name: periods(getattr(outcome, each.name)) for each in fields(Outcome)}
    before, after = (State(*(periods(getattr(s, each.name)) for each in fields(State))) for s in (before, after))
    return before, flows, after


def replay(
    checks: Checks,
    economy: Economy,
    episodes: Mapping[str, Episode],
    before: State,
    outcome: Mapping[str, np.ndarray],
    after: State,
    knows_multiplier: list[bool],
    kept: np.ndarray,
) -> None:
    """Compare the saved states, flows and rewards with those of the reference.

    Where a type's charge on final debt is not known, rewards that have one are not compared.
    """
    layout, size = economy.public, economy.public.size
    consumers, firms, government = (episodes[agent] for agent in AGENT_TYPES)
    stock = before.public[..., layout.inventories]
    posted, due = government.states[:, 1:, 0].astype(np.float64), after.public[:, :-1]
    rounding: dict[str, Any] = {"relative": POWERS, "absolute": UNITS}
    tie = np.abs(outcome["total_demand"] - stock) <= POWERS * outcome["total_demand"]
    for name, dims, found, value in _columns(layout, posted, due):
        seen = kept[:, :-1, None] if dims else kept[:, :-1]
        if name == "inventories":
            gross = (stock + outcome["production"])[:, :-1]
            checks.equal(f"replay of {name}", found, value, dims, gross=gross, where=seen, first=1, **rounding)
        else:
            seen = seen & ~tie[:, :-1] if name == "overdemanded" else seen
            checks.equal(f"replay of {name}", found, value, dims, absolute=SHOWN, where=seen, first=1)
    for agent, episode in episodes.items():
        public = np.broadcast_to(government.states, (*episode.states.shape[:-1], size))
        for name, dims, found, value in _columns(layout, episode.states[..., :size], public):
            checks.equal(f"{name} as a {agent} sees it", found, value, (agent, *dims), absolute=0.0)
    turnover = {
        "consumer": (outcome["consumption"] * before.public[:, :, None, layout.prices]).sum(axis=3)
        + outcome["wage_income"],
        "firm": outcome["revenue"] + outcome["wage_bill"],
    }
    for agent in ("consumer", "firm"):
        saved, value = episodes[agent].states[:, 1:, :, size:], getattr(after, agent)[:, :-1]
        for name, dims, found, due in _columns(economy.agents[agent].private, saved, value):
            gross = turnover[agent][:, :-1] if name in ("budget", "capital") else 0.0
            absolute = MONEY if name in ("budget", "capital") else SHOWN
            seen = kept[:, :-1, None, None] if dims else kept[:, :-1, None]
            checks.equal(
                f"replay of the {agent}'s {name}", found, due, (agent, *dims), gross=gross, absolute=absolute,
                where=seen, first=1,
            )  # fmt: skip
    checks.equal(
        "replay of consumption", consumers.aux_array, outcome["consumption"], ("consumer", "good"),
        where=kept[..., None, None], **rounding,
    )  # fmt: skip
    checks.equal(
        "replay of exports", firms.aux_array, outcome["exports"], ("firm",), gross=stock, where=kept[..., None],
        **rounding,
    )  # fmt: skip
    effort = 0.5 * before.consumer[..., CONSUMER_THETA] * outcome["hours"]
    gross = {"consumer": np.abs(outcome["consumer_reward"]) + 2.0 * effort, "firm": turnover["firm"]}
    for agent, is_known in zip(gross, knows_multiplier, strict=True):
        known = np.ones(gross[agent].shape, dtype=bool)
        known[:, -1] = is_known | (getattr(after, agent)[:, -1, :, economy.agents[agent].budget] >= 0.0)
        checks.equal(
            f"replay of the {agent}'s reward", episodes[agent].rewards, outcome[f"{agent}_reward"], (agent,),
            gross=gross[agent], where=kept[..., None] & known, **(rounding if agent == "consumer" else {}),
        )  # fmt: skip
    rewards = [
        episode.rewards.astype(np.float64).reshape(-1, episode.rewards.shape[2]) for episode in (consumers, firms)
    ]
    welfare = reference.reward_government(economy, *rewards).reshape(kept.shape)
    factor = economy.firm_reward_for_government_factor
    sizes = np.abs(consumers.rewards).sum(axis=2) + factor * np.abs(firms.rewards).sum(axis=2)
    checks.equal(
        "welfare = sum of rewards", government.rewards[..., 0], welfare, gross=sizes, absolute=UNITS, where=kept
    )


def compare_start(checks: Checks, economy: Economy, episodes: Mapping[str, Episode], stage: Stage) -> None:
    """Compare the states at the start with those that the configuration names, at a stage of the curriculum."""
    start = reference.initial_state(economy, 1, stage)
    for agent, observed in reference.observations(start).items():
        private = economy.agents[agent].private
        found, due = (array[..., economy.public.size :] for array in (episodes[agent].states[:, :1], observed[:, None]))
        for name, dims, each, value in _columns(private, found, due):
            checks.equal(f"start: the {agent}'s {name}", each, value, (agent, *dims), absolute=SHOWN)
    found, due = episodes["government"].states[:, :1, 0], start.public[:, None]
    for name, dims, each, value in _columns(economy.public, found, due):
        checks.equal(f"start: {name}", each, value, dims, absolute=SHOWN)


# The accounts, from what the files hold


def identities(
    checks: Checks, economy: Economy, episodes: Mapping[str, Episode], before: State, kept: np.ndarray
) -> None:
    """Balance goods, money, hours and taxes, from saved states, flows and actions alone."""
    layout, firms, rate = economy.public, economy.num_firms, economy.interest_rate
    asked = episodes["consumer"].actions
    consumption, exports = (episodes[agent].aux_array.astype(np.float64) for agent in ("consumer", "firm"))
    prices, wages, stock = (before.public[..., getattr(layout, n)] for n in ("prices", "wages", "inventories"))
    income_tax, corporate_tax = before.public[..., layout.income_tax], before.public[..., layout.corporate_tax]
    budgets, firm_budgets = before.consumer[..., CONSUMER_BUDGET], before.firm[..., FIRM_BUDGET]
    capital, alpha = before.firm[..., FIRM_CAPITAL], before.firm[..., FIRM_ALPHA]

    demand = economy.consumption_choices[asked[..., :firms]]
    hours, employer = economy.work_choices[asked[..., firms]], asked[..., firms + 1]
    works_here = employer[..., None] == np.arange(firms)
    labor = (hours[..., None] * works_here).sum(axis=2)
    wage_income = np.take_along_axis(wages, employer, axis=2) * hours
    sales = consumption.sum(axis=2)
    spending = (consumption * prices[:, :, None]).sum(axis=3)
    revenue = prices * (sales + exports)

    # Goods: nothing is consumed, sold or stored that was not there.
    each = kept[..., None]
    checks.at_most("goods: units got ≤ units asked", consumption, demand, ("consumer", "good"), each[..., None])
    checks.at_most("goods: units sold + exported ≤ inventory", sales + exports, stock, ("firm",), each)
    purse = np.maximum(budgets, 0.0)
    checks.at_most("goods: spending ≤ budget", spending, purse, ("consumer",), each, absolute=MONEY)
    made = reference.produce(economy, capital, alpha, labor)
    left, gross = (stock - sales - exports + made)[:, :-1], (stock + made)[:, :-1]
    later: dict[str, Any] = {"where": each[:, :-1], "first": 1}
    checks.equal(
        "goods: inventory = inventory before − sales − exports + production", stock[:, 1:], left, ("firm",),
        gross=gross, relative=POWERS, absolute=UNITS, **later,
    )  # fmt: skip
    checks.at_most("goods: inventory ≥ 0", -stock, np.zeros_like(stock), ("firm",), each)

    # What each budget changed by, before interest. The flows belong to the period before the budget was saved.
    def earned(balance: np.ndarray) -> np.ndarray:
        """The change of budgets (E, T, n) in all periods but the last, without the interest in it."""
        return balance[:, 1:] - balance[:, :-1] - np.maximum(balance[:, 1:], 0.0) * rate / (1.0 + rate)

    def total(*terms: np.ndarray) -> np.ndarray:
        return np.sum([np.abs(term).sum(axis=2) for term in terms], axis=0)

    consumer_change, firm_change = earned(budgets), earned(firm_budgets)
    investment = capital[:, 1:] - capital[:, :-1]
    past: Any = np.s_[:, :-1]
    wealth = total(budgets[past], firm_budgets[past], capital[past]) + total(revenue[past], wage_income[past])
    periods: dict[str, Any] = {"where": kept[past], "first": 1}

    # Hours: what firms' books show as wages is what consumers earned.
    profit = revenue[past] - (wages * labor)[past] - investment
    tax_paid = corporate_tax[past][..., None] * np.maximum(profit, 0.0)
    wage_bill = revenue[past] - investment - tax_paid - firm_change
    earnings = wage_income[past].sum(axis=2)
    checks.equal("hours: wages that firms paid = wages for hours worked", wage_bill.sum(axis=2), earnings,
                 gross=wealth, **periods)  # fmt: skip

    # Taxes: what consumers received is what was paid.
    gift, taxed = economy.budget_drip, income_tax[..., None] * wage_income
    received = consumer_change - gift + spending[past] - (wage_income - taxed)[past]
    paid = taxed[past].sum(axis=2) + tax_paid.sum(axis=2)
    checks.equal("taxes: handed back to consumers = paid", received.sum(axis=2), paid, gross=wealth, **periods)

    # Money: only gifts, exports and interest bring it in.
    change = consumer_change.sum(axis=2) + firm_change.sum(axis=2) + investment.sum(axis=2)
    brought = gift * economy.num_consumers + (prices * exports)[past].sum(axis=2)
    checks.equal("money: change of budgets and capital, without interest = gifts + exports", change, brought,
                 gross=wealth, **periods)  # fmt: skip


def _number(value: float) -> str:
    return f"{value:,.6g}"
