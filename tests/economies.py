"""What tests share: economies to try, actions to take, recorded trajectories, and the identities that must hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rbc_warp.economy import parameters as rules
from rbc_warp.economy import reference
from rbc_warp.economy.agents import AGENT_TYPES, CONSUMER_BUDGET, FIRM_ALPHA, FIRM_BUDGET, FIRM_CAPITAL
from rbc_warp.economy.parameters import Economy
from rbc_warp.economy.reference import Outcome, State

DATA = Path(__file__).parent / "data"
GOLDEN = ("open_default", "closed_boost", "small")


def product(*choices: Any) -> np.ndarray:
    """All combinations of the choices, the first outermost, (n, len(choices))."""
    return np.stack([g.ravel() for g in np.meshgrid(*choices, indexing="ij")], axis=1).astype(np.float64)


def make_economy(num_consumers: int = 100, num_firms: int = 10, open_: bool = True, **overrides: Any) -> Economy:
    """An economy with the published parameters, except wages that start at 22; ``overrides`` are Economy's fields."""
    economy = Economy(
        num_consumers=num_consumers,
        num_firms=num_firms,
        num_periods=10,
        consumption_choices=np.arange(11.0),
        work_choices=np.arange(5) * 260.0,
        firm_choices=product(np.arange(6) * 500.0, np.arange(5) * 11.0, [0.1]),
        government_choices=product(np.arange(6) / 5.0, np.arange(6) / 5.0),
        technology=0.01,
        budget_drip=0.01,
        interest_rate=0.0,
        crra=0.1,
        labor_floor=0.0,
        use_importer=open_,
        importer_price=500.0,
        importer_quantity=100.0,
        boost_firm_reward_factor=0.0,
        firm_reward_for_government_factor=0.0,
        consumer_penalty_scale=100.0,
        initial_price=1000.0,
        initial_wage=22.0,
        initial_inventory=0.0,
        initial_consumer_budget=2000.0,
        initial_firm_budget=22000.0 * num_consumers,
        theta=0.01 * (1.0 - np.arange(num_consumers) / num_consumers) ** 0.25,
        capital=np.where(np.arange(num_firms) < num_firms // 2, 5000.0, 10000.0),
        alpha=np.resize([0.2, 0.3, 0.4, 0.6, 0.8], num_firms),
    )
    return replace(economy, **overrides)


def random_actions(economy: Economy, num_envs: int, num_periods: int, seed: int) -> dict[str, np.ndarray]:
    """Uniform independent indices: consumer (E, T, I, J+2), firm (E, T, J), government (E, T, 1), int32."""
    random = np.random.default_rng(seed)
    actions = {}
    for agent in AGENT_TYPES:
        heads = economy.agents[agent].head_sizes
        shape = (num_envs, num_periods, economy.agents[agent].count, len(heads))
        actions[agent] = random.integers(0, heads, size=shape, dtype=np.int32)
    actions["firm"] = actions["firm"][..., 0]
    actions["government"] = actions["government"][..., 0]
    return actions


def actions_at(actions: dict[str, np.ndarray], t: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The consumers', firms' and government's actions of period t, as ``reference.step`` takes them."""
    return actions["consumer"][:, t], actions["firm"][:, t], actions["government"][:, t]


def random_state(economy: Economy, num_envs: int, seed: int) -> State:
    """A state in general position: posted values from the grids; inventories and budgets at random, some in debt."""
    random = np.random.default_rng(seed)
    layout, firms = economy.public, (num_envs, economy.num_firms)
    state = reference.initial_state(economy, num_envs)
    posted = random.choice(economy.firm_choices, size=firms)
    state.public[:, layout.prices], state.public[:, layout.wages] = posted[..., 0], posted[..., 1]
    state.public[:, layout.inventories] = random.exponential(100.0, firms) * random.integers(0, 2, firms)
    taxes = random.choice(economy.government_choices, size=num_envs)
    state.public[:, layout.income_tax], state.public[:, layout.corporate_tax] = taxes.T
    state.consumer[:, :, CONSUMER_BUDGET] = random.normal(5000.0, 10000.0, (num_envs, economy.num_consumers))
    state.firm[:, :, FIRM_BUDGET] = random.normal(1e5, 1e6, firms)
    return state


def golden(name: str) -> tuple[Economy, dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """A recorded trajectory: its economy, its actions, and its arrays under the keys of ``reference.rollout``.

    The government's rewards were not recorded.
    """
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as file:
        arrays = dict(file)
    config = json.loads(str(arrays["config"]))
    num_consumers, num_firms = config["NC"], config["NF"]
    economy = make_economy(
        num_consumers,
        num_firms,
        open_=bool(config["imp"]),
        num_periods=config["T"],
        consumption_choices=arrays["consumption_table"].astype(np.float64),
        work_choices=arrays["work_table"].astype(np.float64),
        firm_choices=arrays["firm_table"].astype(np.float64),
        government_choices=arrays["government_table"].astype(np.float64),
        interest_rate=config["r"],
        crra=config["crra"],
        labor_floor=config["lf"],
        importer_price=config["ip"],
        importer_quantity=config["iq"],
        boost_firm_reward_factor=config["boostf"] if config["boost"] else 0.0,
        initial_price=config["p0"],
        initial_wage=config["w0"],
        initial_inventory=config["s0"],
        initial_consumer_budget=config["cb0"],
        initial_firm_budget=config["fb0"],
        theta=rules._theta(config["theta"], config["pareto"], num_consumers) * config.get("anneal", 1.0),
        capital=rules._capital(config["cap"], num_firms),
        alpha=rules._alpha("fixed_array" if config["alpha"] == "fixed" else config["alpha"], num_firms),
    )
    actions = {agent: arrays[f"{agent}_actions"] for agent in AGENT_TYPES}
    names = {"states": "states", "rewards": "rewards", "aux_array": "aux", "final_states": "final"}
    recorded = {
        agent: {key: arrays[f"{agent}_{name}"] for key, name in names.items() if f"{agent}_{name}" in arrays}
        for agent in AGENT_TYPES
    }
    return economy, actions, recorded


def state_from_observations(economy: Economy, observed: dict[str, np.ndarray]) -> State:
    """The state behind one period's observations, type → (E, n, dim), of any float type."""
    size = economy.public.size
    return State(
        observed["government"][:, 0].astype(np.float64),
        observed["consumer"][:, :, size:].astype(np.float64),
        observed["firm"][:, :, size:].astype(np.float64),
    )


def observed_outcome(
    economy: Economy,
    before: State,
    actions: dict[str, np.ndarray],
    consumption: np.ndarray,
    exports: np.ndarray,
    after: State,
    rewards: dict[str, np.ndarray],
) -> Outcome:
    """The outcome of one period as an outsider infers it from what a kernel stores, for ``check_identities``.

    Actions, consumption (E, I, J), exports (E, J) and rewards (E, n) of the period are given. Budget changes, interest
    and investment are read off the two states; flows that nobody stores follow from actions and posted values.
    """
    layout, num_firms, rate = economy.public, economy.num_firms, economy.interest_rate
    consumption, exports = consumption.astype(np.float64), exports.astype(np.float64)
    prices, wages = before.public[:, layout.prices], before.public[:, layout.wages]
    demand = economy.consumption_choices[actions["consumer"][:, :, :num_firms]]
    hours = economy.work_choices[actions["consumer"][:, :, num_firms]]
    employer = actions["consumer"][:, :, num_firms + 1]
    affordable = reference.affordable_demand(prices, demand, before.consumer[:, :, CONSUMER_BUDGET])
    total_demand, firm_hours = reference.total_by_firm(affordable, hours, employer)
    wage_income, income_tax = reference.pay_wages(wages, hours, employer, before.public[:, layout.income_tax])
    sales = consumption.sum(axis=1)
    revenue, wage_bill = prices * (sales + exports), wages * firm_hours
    investment = after.firm[:, :, FIRM_CAPITAL] - before.firm[:, :, FIRM_CAPITAL]
    profit = revenue - wage_bill - investment
    corporate_tax = before.public[:, layout.corporate_tax, None] * np.maximum(profit, 0.0)

    def interest(budget: np.ndarray) -> np.ndarray:
        return np.maximum(budget, 0.0) * rate / (1.0 + rate)

    consumer_interest = interest(after.consumer[:, :, CONSUMER_BUDGET])
    firm_interest = interest(after.firm[:, :, FIRM_BUDGET])
    consumer_gain = (after.consumer - before.consumer)[:, :, CONSUMER_BUDGET]
    firm_gain = (after.firm - before.firm)[:, :, FIRM_BUDGET]
    capital, alpha = before.firm[:, :, FIRM_CAPITAL], before.firm[:, :, FIRM_ALPHA]
    return Outcome(
        consumer_reward=rewards["consumer"],
        firm_reward=rewards["firm"],
        government_reward=rewards.get("government", np.full((len(prices), 1), np.nan))[:, 0],
        demand=demand,
        affordable=affordable,
        consumption=consumption,
        hours=hours,
        wage_income=wage_income,
        income_tax=income_tax,
        total_demand=total_demand,
        firm_hours=firm_hours,
        rationed=after.public[:, layout.overdemanded] > 0.0,
        sales=sales,
        exports=exports,
        revenue=revenue,
        wage_bill=wage_bill,
        investment=investment,
        profit=profit,
        corporate_tax=corporate_tax,
        production=reference.produce(economy, capital, alpha, firm_hours),
        redistribution=income_tax.sum(axis=1) + corporate_tax.sum(axis=1),
        consumer_budget_change=consumer_gain - consumer_interest,
        firm_budget_change=firm_gain - firm_interest,
        consumer_interest=consumer_interest,
        firm_interest=firm_interest,
    )


def check_identities(
    economy: Economy,
    before: State,
    outcome: Outcome,
    after: State,
    *,
    rtol: float = 1e-12,
    money_atol: float = 1e-9,
    goods_atol: float = 1e-9,
) -> None:
    """Raise AssertionError unless the period keeps every identity; the message begins with the first one broken.

    From particular to general: finite, goods, hours, taxes, accounts, money.

    ``rtol`` is relative to the sum of the absolute terms of an identity, so that it suits any size of economy; the
    defaults suit float64, 1e-6 and an absolute 1e-3 suit float32.
    """
    layout = economy.public
    prices = before.public[:, layout.prices]

    def require_zero(identity: str, residual: np.ndarray, gross: np.ndarray, atol: float) -> None:
        excess = np.abs(residual) - (rtol * gross + atol)
        assert np.all(excess <= 0.0), f"{identity}: residual {np.abs(residual).max():.3g} of {np.max(gross):.3g}"

    def balance(identity: str, terms: list[np.ndarray], atol: float, *sizes: np.ndarray) -> None:
        """Agent by agent, the terms (E, n) sum to 0. ``sizes`` are numbers that a term is a rounded difference of."""
        require_zero(identity, np.sum(terms, axis=0), np.abs([*terms, *sizes]).sum(axis=0), atol)

    def balance_all(identity: str, terms: list[np.ndarray], atol: float) -> None:
        """Over all agents, the terms (E, any) sum to 0."""
        every = np.concatenate(terms, axis=1)
        require_zero(identity, every.sum(axis=1), np.abs(every).sum(axis=1), atol)

    def at_most(identity: str, low: np.ndarray, high: np.ndarray) -> None:
        excess = low - high - (rtol * np.abs(high) + goods_atol)
        assert np.all(excess <= 0.0), f"{identity}: exceeded by up to {np.max(low - high):.3g}"

    for name in ("public", "consumer", "firm"):
        assert np.all(np.isfinite(getattr(after, name))), f"finite: {name} state is not"

    consumer_before, consumer_after = (s.consumer[:, :, CONSUMER_BUDGET] for s in (before, after))
    firm_before, firm_after = (s.firm[:, :, FIRM_BUDGET] for s in (before, after))
    capital_before, capital_after = (s.firm[:, :, FIRM_CAPITAL] for s in (before, after))
    spending = outcome.consumption * prices[:, None, :]

    # Goods: nothing is consumed, sold or stored that was not there.
    inventory, next_inventory = before.public[:, layout.inventories], after.public[:, layout.inventories]
    balance("goods", [next_inventory, -inventory, outcome.sales, outcome.exports, -outcome.production], goods_atol)
    assert np.all(next_inventory >= -goods_atol), f"goods: inventory {next_inventory.min():.3g} is negative"
    for name in ("demand", "consumption", "exports", "production"):
        assert np.all(getattr(outcome, name) >= 0.0), f"goods: {name} is negative"
    at_most("goods: consumption ≤ affordable", outcome.consumption, outcome.affordable)
    at_most("goods: affordable ≤ asked", outcome.affordable, outcome.demand)
    at_most("goods: consumption ≤ inventory", outcome.consumption.sum(axis=1), inventory)
    balance("goods: sales", [outcome.sales, -outcome.consumption.sum(axis=1)], goods_atol)

    # Hours paid are hours worked, in hours and in money.
    balance_all("hours", [outcome.hours, -outcome.firm_hours], 0.0)
    balance_all("hours: wages", [outcome.wage_income, -outcome.wage_bill], money_atol)

    # Taxes paid are taxes redistributed, and reach the consumers.
    balance_all("taxes", [outcome.income_tax, outcome.corporate_tax, -outcome.redistribution[:, None]], money_atol)
    received = [outcome.consumer_budget_change, outcome.income_tax, -outcome.wage_income, spending.sum(axis=2)]
    share = np.broadcast_to(outcome.redistribution[:, None] / economy.num_consumers, consumer_before.shape)
    given = np.full_like(share, economy.budget_drip)
    balance("taxes: equal shares", [*received, -share, -given], money_atol, consumer_before, consumer_after)

    # Accounts: each agent's budget and capital change by what it earned and paid, and by its interest.
    balance(
        "consumer accounts",
        [consumer_after, -consumer_before, -outcome.consumer_budget_change, -outcome.consumer_interest],
        money_atol,
    )
    balance(
        "firm accounts",
        [firm_after, -firm_before, -outcome.firm_budget_change, -outcome.firm_interest],
        money_atol,
    )
    balance("capital accounts", [capital_after, -capital_before, -outcome.investment], money_atol)
    firm_flows = [outcome.revenue, -outcome.wage_bill, -outcome.investment, -outcome.corporate_tax]
    balance("firm accounts", [*firm_flows, -outcome.firm_budget_change], money_atol, firm_before, firm_after)

    # Money: all that is held after a period was held before, given, earned abroad, or paid as interest.
    flows = [consumer_after, -consumer_before, firm_after, -firm_before, capital_after, -capital_before]
    flows += [-prices * outcome.exports, -outcome.consumer_interest, -outcome.firm_interest]
    gift = np.full((len(prices), 1), -economy.budget_drip * economy.num_consumers)
    balance_all("money", [*flows, gift], money_atol)


def assert_recorded(name: str, played: dict[str, dict[str, np.ndarray]]) -> None:
    """The actions of a recorded trajectory led where they led, in single precision; what is not rounded, exactly."""
    economy, _, recorded = golden(name)
    for agent in AGENT_TYPES:
        for key, expected in recorded[agent].items():
            found = played[agent][key]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3, err_msg=f"{name}: {agent} {key}")
    for key in ("states", "final_states"):
        for exact in (economy.public.overdemanded, economy.public.time):
            found, expected = (result["government"][key][..., exact] for result in (played, recorded))
            np.testing.assert_array_equal(found, expected)
