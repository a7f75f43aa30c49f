"""The reference economy: recorded trajectories, identities, and what economics says must or must not change."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from economies import (
    GOLDEN,
    actions_at,
    check_identities,
    golden,
    make_economy,
    observed_outcome,
    product,
    random_actions,
    random_state,
    state_from_observations,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from rbc_warp.economy import reference
from rbc_warp.economy.agents import AGENT_TYPES, CONSUMER_BUDGET, CONSUMER_THETA, FIRM_BUDGET, FIRM_CAPITAL
from rbc_warp.economy.parameters import Economy
from rbc_warp.economy.reference import Outcome, Stage, State, initial_state, observations, rollout, step

PER_CONSUMER = (
    "consumer_reward",
    "demand",
    "affordable",
    "consumption",
    "hours",
    "wage_income",
    "income_tax",
    "consumer_budget_change",
    "consumer_interest",
)
REAL = (
    "demand",
    "affordable",
    "consumption",
    "hours",
    "total_demand",
    "firm_hours",
    "rationed",
    "sales",
    "exports",
    "production",
    "consumer_reward",
    "government_reward",
)
NOMINAL = (
    "wage_income",
    "income_tax",
    "revenue",
    "wage_bill",
    "profit",
    "corporate_tax",
    "redistribution",
    "consumer_budget_change",
    "firm_budget_change",
    "consumer_interest",
    "firm_interest",
    "firm_reward",
)
SIZES = [(100, 10), (17, 4), (1, 1)]


def act(economy: Economy, state: State, seed: int = 0, stage: Stage = reference.DEFAULT_STAGE) -> tuple[State, Outcome]:
    """One step with random actions."""
    actions = random_actions(economy, len(state.public), 1, seed)
    return step(economy, state, *actions_at(actions, 0), stage)


# Recorded trajectories


@pytest.mark.parametrize("name", GOLDEN)
def test_recorded_trajectories_are_reproduced(name: str) -> None:
    economy, actions, recorded = golden(name)
    replayed = rollout(economy, actions)
    for agent in AGENT_TYPES:
        for key, expected in recorded[agent].items():
            np.testing.assert_allclose(
                replayed[agent][key], expected, rtol=1e-4, atol=1e-3, err_msg=f"{name}: {agent} {key}"
            )
    for key in ("rewards", "aux_array"):
        np.testing.assert_allclose(
            replayed["consumer"][key], recorded["consumer"][key], rtol=1e-4, atol=1e-5, err_msg=f"{name}: {key}"
        )
    for exact in (economy.public.overdemanded, economy.public.time):
        for key in ("states", "final_states"):
            np.testing.assert_array_equal(
                replayed["government"][key][..., exact], recorded["government"][key][..., exact]
            )


@pytest.mark.parametrize("name", GOLDEN)
def test_recorded_trajectories_keep_the_identities(name: str) -> None:
    economy, actions, recorded = golden(name)
    states = [{agent: recorded[agent]["states"][:, t] for agent in AGENT_TYPES} for t in range(economy.num_periods)]
    states.append({agent: recorded[agent]["final_states"] for agent in AGENT_TYPES})
    for t in range(economy.num_periods):
        before, after = (state_from_observations(economy, seen) for seen in states[t : t + 2])
        outcome = observed_outcome(
            economy,
            before,
            {agent: actions[agent][:, t] for agent in AGENT_TYPES},
            recorded["consumer"]["aux_array"][:, t],
            recorded["firm"]["aux_array"][:, t],
            after,
            {agent: recorded[agent]["rewards"][:, t] for agent in ("consumer", "firm")},
        )
        check_identities(economy, before, outcome, after, rtol=1e-6, money_atol=1e-3, goods_atol=1e-4)


# Identities

VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "interest": {"interest_rate": 0.01, "crra": 1.0, "initial_inventory": 3.0},
    "floor_and_boost": {
        "labor_floor": 520.0,
        "boost_firm_reward_factor": 2.5,
        "firm_reward_for_government_factor": 0.002,
        "importer_price": 1000.0,
        "importer_quantity": 7.0,
        "initial_consumer_budget": -5000.0,
        "initial_firm_budget": 0.0,
    },
}


@pytest.mark.parametrize("open_", [True, False], ids=["open", "closed"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("variant", VARIANTS)
def test_identities_hold_in_every_period(variant: str, size: tuple[int, int], open_: bool) -> None:
    economy = make_economy(*size, open_=open_, num_periods=500, **VARIANTS[variant])
    state = initial_state(economy, num_envs=20)
    actions = random_actions(economy, num_envs=20, num_periods=economy.num_periods, seed=1)
    stage = Stage(consumer_multiplier=0.5, firm_multiplier=0.5)
    for t in range(economy.num_periods):
        before = state
        state, outcome = step(economy, before, *actions_at(actions, t), stage)
        check_identities(economy, before, outcome, state)
        assert np.all(state.public[:, economy.public.inventories] >= 0.0)
    assert np.all(state.public[:, economy.public.time] == economy.num_periods)


@st.composite
def economies(draw: st.DrawFn, **overrides: Any) -> Economy:
    """Small economies of any size, grids and parameters within their ranges."""
    num_consumers, num_firms = draw(st.integers(1, 7)), draw(st.integers(1, 5))

    def number(low: float, high: float) -> st.SearchStrategy[float]:
        return st.floats(low, high).map(lambda value: round(value, 4))  # no denormals: doubling them is not exact

    def grid(high: float) -> list[float]:
        return draw(st.lists(number(0.0, high), min_size=1, max_size=3))

    def one_of(*values: float) -> float:
        return draw(st.sampled_from(values))

    def per(count: int, low: float, high: float) -> np.ndarray:
        return np.array(draw(st.lists(number(low, high), min_size=count, max_size=count)))

    return make_economy(
        num_consumers,
        num_firms,
        open_=draw(st.booleans()),
        **{
            "consumption_choices": np.array(grid(10.0)),
            "work_choices": np.array(grid(1040.0)),
            "firm_choices": product(grid(2500.0), grid(44.0), grid(1.0)),
            "government_choices": product(grid(1.0), grid(1.0)),
            "technology": one_of(0.01, 1.0),
            "budget_drip": one_of(0.0, 0.01, 100.0),
            "interest_rate": one_of(0.0, 0.1, 1.0),
            "crra": one_of(0.0, 0.1, 0.999999, 1.0, 3.0),
            "labor_floor": one_of(0.0, 300.0),
            "importer_price": one_of(0.0, 500.0),
            "importer_quantity": one_of(0.0, 7.0, 1000.0),
            "boost_firm_reward_factor": one_of(0.0, 2.5),
            "firm_reward_for_government_factor": one_of(0.0, 0.002),
            "initial_inventory": one_of(0.0, 3.0),
            "theta": per(num_consumers, 0.0, 0.02),
            "capital": per(num_firms, 0.0, 10000.0),
            "alpha": per(num_firms, 0.0, 1.0),
            **overrides,
        },
    )


random_cases = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


@random_cases
@given(economies(), seeds)
def test_identities_hold_in_any_economy(economy: Economy, seed: int) -> None:
    state = random_state(economy, num_envs=3, seed=seed)
    for t in range(5):
        before = state
        state, outcome = act(economy, before, seed + t)
        check_identities(economy, before, outcome, state)
        assert all(np.all(np.isfinite(getattr(outcome, field.name))) for field in fields(Outcome))


@random_cases
@given(economies(), seeds)
def test_permuting_consumers_permutes_their_results(economy: Economy, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(economy.num_consumers)
    state = random_state(economy, num_envs=3, seed=seed)
    consumer, firm, government = actions_at(random_actions(economy, 3, 1, seed), 0)
    stage = Stage(consumer_multiplier=1.0, firm_multiplier=1.0)
    economy = replace(economy, num_periods=1)
    after, outcome = step(economy, state, consumer, firm, government, stage)
    permuted_state = replace(state, consumer=state.consumer[:, order])
    permuted_after, permuted = step(economy, permuted_state, consumer[:, order], firm, government, stage)

    def same(actual: np.ndarray, expected: np.ndarray, name: str) -> None:
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-6, err_msg=name)

    for name in (field.name for field in fields(Outcome)):
        expected = getattr(outcome, name)
        same(getattr(permuted, name), expected[:, order] if name in PER_CONSUMER else expected, name)
    same(permuted_after.public, after.public, "public")
    same(permuted_after.consumer, after.consumer[:, order], "consumer")
    same(permuted_after.firm, after.firm, "firm")


@random_cases
@given(economies(firm_reward_for_government_factor=0.0), seeds)
def test_doubling_all_nominal_quantities_changes_no_real_one(economy: Economy, seed: int) -> None:
    """Exactly: doubling is exact in floating point. Without investment, since capital is bought with money."""
    economy = replace(economy, firm_choices=economy.firm_choices * [1.0, 1.0, 0.0])
    doubled = replace(
        economy,
        firm_choices=economy.firm_choices * 2.0,
        budget_drip=economy.budget_drip * 2.0,
        importer_price=economy.importer_price * 2.0,
        initial_price=economy.initial_price * 2.0,
        initial_wage=economy.initial_wage * 2.0,
        initial_consumer_budget=economy.initial_consumer_budget * 2.0,
        initial_firm_budget=economy.initial_firm_budget * 2.0,
    )
    state, twin = initial_state(economy, 3), initial_state(doubled, 3)
    for t in range(6):
        state, outcome = act(economy, state, seed + t)
        twin, twin_outcome = act(doubled, twin, seed + t)
        for name in REAL:
            np.testing.assert_array_equal(getattr(twin_outcome, name), getattr(outcome, name), err_msg=name)
        for name in NOMINAL:
            np.testing.assert_array_equal(getattr(twin_outcome, name), 2.0 * getattr(outcome, name), err_msg=name)
        for part in (economy.public.inventories, economy.public.overdemanded):
            np.testing.assert_array_equal(twin.public[:, part], state.public[:, part])
        np.testing.assert_array_equal(twin.consumer[:, :, CONSUMER_BUDGET], 2.0 * state.consumer[:, :, CONSUMER_BUDGET])
        np.testing.assert_array_equal(twin.firm[:, :, FIRM_CAPITAL], state.firm[:, :, FIRM_CAPITAL])


# The identities catch leaks


def scaled(index: int, factor: float) -> Callable[..., Any]:
    """Wrap a function so that the index-th array it returns is scaled."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def leaky(*arguments: Any) -> Any:
            result = function(*arguments)
            if isinstance(result, tuple):
                return (*result[:index], result[index] * factor, *result[index + 1 :])
            return result * factor

        return leaky

    return wrap


def overpriced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that it sees higher prices."""
    return lambda prices, *arguments: function(prices * 1.01, *arguments)


LEAKS = [
    ("affordable_demand", scaled(0, 1.01), "goods: affordable ≤ asked"),
    ("total_by_firm", scaled(1, 1.01), "hours"),
    ("ration", scaled(0, 1.01), "goods: consumption ≤ affordable"),
    ("ration", scaled(1, 0.99), "goods: sales"),
    ("pay_wages", scaled(0, 1.01), "hours: wages"),
    ("export_goods", scaled(0, -1.0), "goods: exports"),
    ("close_firm_accounts", overpriced, "money"),
    ("produce", scaled(0, -1.0), "goods: inventory"),
    ("restock", scaled(0, 0.999), "goods"),
    ("redistribute", scaled(0, 0.999), "taxes"),
    ("change_consumer_budgets", scaled(0, 1.001), "taxes: equal shares"),
    ("settle_budgets", scaled(0, 1.0001), "consumer accounts"),
    ("settle_budgets", scaled(1, 0.0), "consumer accounts"),
]


@pytest.mark.parametrize(("function", "leak", "identity"), LEAKS, ids=[f"{name}-{what}" for name, _, what in LEAKS])
def test_a_leak_in_a_step_is_caught(
    function: str, leak: Callable[..., Any], identity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    economy = make_economy(17, 4, interest_rate=0.01)
    state = random_state(economy, num_envs=8, seed=3)
    monkeypatch.setattr(reference, function, leak(getattr(reference, function)))
    after, outcome = act(economy, state)
    with pytest.raises(AssertionError, match=f"^{identity}"):
        check_identities(economy, state, outcome, after)


UPPER_BOUNDS = {"demand", "affordable"}
UNBALANCED = {"consumer_reward", "firm_reward", "government_reward", "total_demand", "rationed", "profit"}


@pytest.mark.parametrize("name", sorted({field.name for field in fields(Outcome)} - UNBALANCED))
def test_a_perturbed_flow_is_caught(name: str) -> None:
    economy = make_economy(17, 4, interest_rate=0.01)
    state = random_state(economy, num_envs=8, seed=3)
    after, outcome = act(economy, state)
    check_identities(economy, state, outcome, after)
    perturbed = getattr(outcome, name).copy()
    if name in UPPER_BOUNDS:
        perturbed *= 0.99
    else:
        perturbed.flat[np.argmax(perturbed)] += 0.01
    with pytest.raises(AssertionError):
        check_identities(economy, state, replace(outcome, **{name: perturbed}), after)


@pytest.mark.parametrize(
    ("part", "column", "identity"),
    [
        ("consumer", CONSUMER_BUDGET, "consumer accounts"),
        ("firm", FIRM_BUDGET, "firm accounts"),
        ("firm", FIRM_CAPITAL, "capital accounts"),
    ],
)
def test_money_from_nowhere_is_caught(part: str, column: int, identity: str) -> None:
    economy = make_economy(17, 4)
    state = random_state(economy, num_envs=8, seed=3)
    after, outcome = act(economy, state)
    getattr(after, part)[2, 0, column] += 0.01
    with pytest.raises(AssertionError, match=f"^{identity}"):
        check_identities(economy, state, outcome, after)


def test_float32_tolerances_still_catch_leaks() -> None:
    economy = make_economy(17, 4, interest_rate=0.01)
    state = random_state(economy, num_envs=8, seed=3)
    after, outcome = act(economy, state)
    after = State(*(part.astype(np.float32).astype(np.float64) for part in (after.public, after.consumer, after.firm)))
    loose = {"rtol": 1e-6, "money_atol": 1e-3, "goods_atol": 1e-4}
    check_identities(economy, state, outcome, after, **loose)
    after.consumer[1, 0, CONSUMER_BUDGET] += 1.0
    with pytest.raises(AssertionError, match="^consumer accounts"):
        check_identities(economy, state, outcome, after, **loose)


# Steps, one by one


def test_a_basket_is_scaled_to_the_budget() -> None:
    prices = np.array([[10.0, 20.0]])
    demand = np.array([[[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [0.0, 0.0]]])
    affordable = reference.affordable_demand(prices, demand, np.array([[50.0, 25.0, 0.0, 0.0]]))
    np.testing.assert_array_equal(affordable[0], [[1.0, 2.0], [0.5, 1.0], [0.0, 0.0], [0.0, 0.0]])


def test_a_consumer_in_debt_consumes_nothing_that_costs() -> None:
    economy = make_economy(5, 3, initial_inventory=50.0, initial_consumer_budget=-1.0)
    state = initial_state(economy, 4)
    _, outcome = act(economy, state)
    assert outcome.demand.sum() > 0.0
    np.testing.assert_array_equal(outcome.consumption, 0.0)
    free = replace(economy, initial_price=0.0)
    _, outcome = act(free, initial_state(free, 4))
    np.testing.assert_array_equal(outcome.affordable, outcome.demand)


def test_rationing_serves_all_in_proportion() -> None:
    affordable = np.array([[[1.0, 1.0], [3.0, 1.0]]])
    consumption, sales, rationed = reference.ration(affordable, np.array([[4.0, 2.0]]), np.array([[2.0, 2.0]]))
    np.testing.assert_array_equal(consumption[0], [[0.5, 1.0], [1.5, 1.0]])
    np.testing.assert_array_equal(sales[0], [2.0, 2.0])
    np.testing.assert_array_equal(rationed[0], [True, False])


def test_no_demand_is_not_overdemand() -> None:
    _, _, rationed = reference.ration(np.zeros((1, 2, 1)), np.zeros((1, 1)), np.zeros((1, 1)))
    assert not rationed.any()


@pytest.mark.parametrize("crra", [0.0, 0.1, 0.5, 2.0])
def test_utility_is_the_power_form(crra: float) -> None:
    units = np.linspace(0.0, 10.0, 21)
    expected = ((units + 1.0) ** (1.0 - crra) - 1.0) / (1.0 - crra)
    np.testing.assert_allclose(reference.utility(units, crra), expected, rtol=1e-12, atol=1e-14)


def test_utility_is_logarithmic_at_one() -> None:
    units = np.array([0.0, 1e-12, 1.0, 10.0])
    np.testing.assert_array_equal(reference.utility(units, 1.0), np.log1p(units))
    np.testing.assert_allclose(reference.utility(units, 1.0 - 1e-9), np.log1p(units), rtol=1e-8)


def test_exports_need_an_open_economy_and_the_price() -> None:
    prices, left = np.array([[499.0, 500.0, 1000.0]]), np.array([[50.0, 50.0, 500.0]])
    economy = make_economy(2, 3)
    np.testing.assert_array_equal(reference.export_goods(economy, prices, left, np.zeros((1, 3))), [[0.0, 50.0, 100.0]])
    closed = make_economy(2, 3, open_=False)
    np.testing.assert_array_equal(reference.export_goods(closed, prices, left, np.zeros((1, 3))), np.zeros((1, 3)))


def test_a_loss_is_neither_taxed_nor_invested() -> None:
    one = np.ones((1, 1))
    loss = reference.close_firm_accounts(one, 3 * one, one, one, one, 0.5 * one, np.array([0.5]))
    assert (loss.profit, loss.investment, loss.corporate_tax) == (-1.0, 0.0, 0.0)
    gain = reference.close_firm_accounts(5 * one, 2 * one, one, one, one, 0.5 * one, np.array([0.5]))
    assert (gain.revenue, gain.investment, gain.profit, gain.corporate_tax) == (10.0, 4.0, 4.0, 2.0)


def test_only_solvent_firms_are_boosted_and_only_in_reward() -> None:
    economy = make_economy(17, 4, initial_inventory=50.0)
    boosted = replace(economy, boost_firm_reward_factor=2.5)
    state = random_state(economy, num_envs=8, seed=5)
    (plain_after, plain), (after, outcome) = act(economy, state), act(boosted, state)
    solvent = state.firm[:, :, FIRM_BUDGET] + outcome.firm_budget_change > 0.0
    assert solvent.any() and not solvent.all()
    np.testing.assert_allclose(outcome.firm_reward - plain.firm_reward, np.where(solvent, 2.5 * outcome.revenue, 0.0))
    np.testing.assert_array_equal(after.firm, plain_after.firm)


def test_labor_below_the_floor_produces_nothing() -> None:
    economy = make_economy(2, 3, labor_floor=260.0)
    hours = np.array([[0.0, 259.0, 260.0]])
    production = reference.produce(economy, np.full((1, 3), 5000.0), np.full((1, 3), 0.5), hours)
    np.testing.assert_allclose(production, [[0.0, 0.0, 0.01 * np.sqrt(5000.0 * 260.0)]])


def test_choices_bind_from_the_next_period() -> None:
    economy = make_economy(17, 4, firm_choices=product([0.0, 700.0], [3.0, 33.0], [0.1]))
    state = random_state(economy, num_envs=2, seed=0)
    consumer = random_actions(economy, 2, 1, 0)["consumer"][:, 0]
    zeros, lasts = np.zeros((2, 4), int), np.full((2, 4), 3)
    cheap, low = step(economy, state, consumer, zeros, np.zeros(2, int))
    dear, high = step(economy, state, consumer, lasts, np.full((2, 1), 35))
    for field in fields(Outcome):
        np.testing.assert_array_equal(getattr(low, field.name), getattr(high, field.name), err_msg=field.name)
    layout = economy.public
    assert np.all(cheap.public[:, layout.prices] == 0.0) and np.all(dear.public[:, layout.prices] == 700.0)
    assert np.all(cheap.public[:, layout.wages] == 3.0) and np.all(dear.public[:, layout.wages] == 33.0)
    assert np.all(dear.public[:, [layout.income_tax, layout.corporate_tax]] == 1.0)


def test_goods_produced_are_sold_from_the_next_period() -> None:
    economy = make_economy(3, 2, initial_inventory=0.0)
    state, outcome = act(economy, initial_state(economy, 4))
    assert outcome.production.sum() > 0.0
    assert outcome.sales.sum() == outcome.exports.sum() == 0.0
    np.testing.assert_array_equal(state.public[:, economy.public.inventories], outcome.production)


def test_only_positive_balances_earn_interest() -> None:
    budget, interest = reference.settle_budgets(np.array([100.0, -100.0, 5.0]), np.array([10.0, 10.0, -5.0]), 0.1)
    np.testing.assert_allclose(interest, [11.0, 0.0, 0.0])
    np.testing.assert_allclose(budget, [121.0, -90.0, 0.0])


@pytest.mark.parametrize("factor", [0.0, 0.002])
def test_the_government_counts_what_the_agents_get(factor: float) -> None:
    economy = make_economy(17, 4, firm_reward_for_government_factor=factor, num_periods=1)
    stage = Stage(consumer_multiplier=0.3, firm_multiplier=0.7)
    _, outcome = act(economy, random_state(economy, num_envs=4, seed=2), stage=stage)
    expected = outcome.consumer_reward.sum(axis=1) + factor * outcome.firm_reward.sum(axis=1)
    np.testing.assert_allclose(outcome.government_reward, expected, rtol=1e-12)


def test_debt_is_charged_in_the_last_period_only() -> None:
    economy = make_economy(17, 4, num_periods=2, consumer_penalty_scale=50.0)
    stage = Stage(consumer_multiplier=0.3, firm_multiplier=0.7)
    state = random_state(economy, num_envs=4, seed=2)
    for is_last in (False, True):
        _, plain = act(economy, state)
        after, charged = act(economy, state, stage=stage)
        consumer_debt = np.maximum(-after.consumer[:, :, CONSUMER_BUDGET], 0.0)
        firm_debt = np.maximum(-after.firm[:, :, FIRM_BUDGET], 0.0)
        assert consumer_debt.any() and firm_debt.any()
        consumer_loss, firm_loss = 0.3 * consumer_debt / 50.0 * is_last, 0.7 * firm_debt / 100.0 * is_last
        np.testing.assert_allclose(plain.consumer_reward - charged.consumer_reward, consumer_loss, atol=1e-9)
        np.testing.assert_allclose(plain.firm_reward - charged.firm_reward, firm_loss, atol=1e-6)
        state = after


# Starting values, observations, rollouts


def test_the_start_shows_the_stage() -> None:
    economy = make_economy(17, 4)
    state = initial_state(economy, 3, Stage(theta_factor=0.25))
    np.testing.assert_allclose(state.consumer[:, :, CONSUMER_THETA], np.tile(0.25 * economy.theta, (3, 1)))
    _, outcome = act(economy, state)
    disutility = reference.utility(outcome.consumption, economy.crra).sum(axis=2) - outcome.consumer_reward
    np.testing.assert_allclose(disutility, 0.125 * economy.theta * outcome.hours, atol=1e-12)


def test_a_step_changes_neither_its_state_nor_the_economy() -> None:
    economy = make_economy(17, 4)
    state, copy = (random_state(economy, num_envs=2, seed=0) for _ in range(2))
    after, _ = act(economy, state)
    for name in ("public", "consumer", "firm"):
        np.testing.assert_array_equal(getattr(state, name), getattr(copy, name))
        assert not np.shares_memory(getattr(after, name), getattr(state, name))
    np.testing.assert_array_equal(initial_state(economy, 1).consumer[0, :, CONSUMER_THETA], economy.theta)


@pytest.mark.parametrize("size", SIZES)
def test_rollouts_have_the_shapes_of_the_format(size: tuple[int, int]) -> None:
    num_consumers, num_firms = size
    economy = make_economy(num_consumers, num_firms)
    actions = random_actions(economy, 3, 4, seed=0)
    result = rollout(economy, actions)
    dims = {"consumer": 4 * num_firms + 5, "firm": 5 * num_firms + 6, "government": 4 * num_firms + 3}
    for agent, number in ((name, kind.count) for name, kind in economy.agents.items()):
        assert result[agent]["states"].shape == (3, 4, number, dims[agent])
        assert result[agent]["final_states"].shape == (3, number, dims[agent])
        assert result[agent]["rewards"].shape == (3, 4, number)
        assert all(array.dtype == np.float64 for array in result[agent].values())
    assert result["consumer"]["aux_array"].shape == (3, 4, num_consumers, num_firms)
    assert result["firm"]["aux_array"].shape == (3, 4, num_firms)
    assert result["government"]["aux_array"].size == 0


def test_a_rollout_goes_on_from_any_state() -> None:
    economy = make_economy(17, 4, interest_rate=0.1)
    actions = random_actions(economy, 3, 10, seed=0)
    whole = rollout(economy, actions)
    first = rollout(economy, {agent: a[:, :6] for agent, a in actions.items()})
    middle = state_from_observations(economy, {agent: first[agent]["final_states"] for agent in AGENT_TYPES})
    second = rollout(economy, {agent: a[:, 6:] for agent, a in actions.items()}, initial=middle)
    for agent in AGENT_TYPES:
        np.testing.assert_array_equal(second[agent]["states"], whole[agent]["states"][:, 6:])
        np.testing.assert_array_equal(second[agent]["final_states"], whole[agent]["final_states"])


def test_observations_show_the_public_state_first() -> None:
    economy = make_economy(5, 3)
    state = random_state(economy, num_envs=2, seed=0)
    seen = observations(state)
    for agent in AGENT_TYPES:
        for n in range(economy.agents[agent].count):
            np.testing.assert_array_equal(seen[agent][:, n, : economy.public.size], state.public)
    np.testing.assert_array_equal(seen["firm"][:, :, -3:], np.broadcast_to(np.eye(3), (2, 3, 3)))


def test_environments_do_not_touch_each_other() -> None:
    economy = make_economy(17, 4)
    actions = random_actions(economy, 3, 5, seed=0)
    together = rollout(economy, actions)
    alone = rollout(economy, {agent: a[1:2] for agent, a in actions.items()})
    for agent in AGENT_TYPES:
        np.testing.assert_allclose(alone[agent]["final_states"][0], together[agent]["final_states"][1], rtol=1e-12)


# The model document


def test_the_model_document_names_what_exists() -> None:
    root = Path(__file__).parents[1]
    document = (root / "docs" / "model.md").read_text(encoding="utf-8")
    kernel = (root / "rbc_warp" / "cuda" / "economy.h").read_text(encoding="utf-8")
    header = next(line for line in document.splitlines() if line.startswith("| step |"))
    rows = document.split(header)[1].split("\n\n")[0].splitlines()[2:]
    assert len(rows) == 17
    for row in rows:
        functions, kernel_functions, tests = (re.findall(r"`(\w+)`", cell) for cell in row.split("|")[3:6])
        assert functions and kernel_functions and tests, row
        for function in functions:
            assert callable(getattr(reference, function, None)), f"reference.py has no {function}"
        for function in kernel_functions:
            assert re.search(rf"RBC_FN [\w<>]+ {function}\(", kernel), f"economy.h has no {function}"
        for test in tests:
            assert callable(globals().get(test)), f"no {test}"
