"""Who may do what when."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rbc_warp.config import Config, load_config
from rbc_warp.economy import curriculum
from rbc_warp.economy.agents import AGENT_TYPES, FIRM_PRICE, FIRM_WAGE
from rbc_warp.economy.parameters import Economy
from rbc_warp.training.schedule import Schedule

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="module")
def published() -> Config:
    return load_config(CONFIGS / "paper_open.yaml")


def config_with(**agents: Any) -> Config:
    return load_config({"agents": agents})


def trains(config: Config, agent: str, iteration: int) -> bool:
    return curriculum.trains(config, Economy.from_config(config).agents[agent], iteration)


def entropy(config: Config, agent: str, iteration: int) -> float:
    return curriculum.entropy_coefficient(config, Economy.from_config(config).agents[agent], iteration)


def allowed_values(config: Config, iteration: int) -> dict[str, set[float]]:
    """The prices, wages and taxes that some allowed action has."""
    economy = Economy.from_config(config)
    allowed = curriculum.allowed_actions(config, economy, iteration)
    firm, tax = economy.firm_choices[allowed["firm"]], economy.government_choices[allowed["government"]]
    return {
        "price": set(firm[:, FIRM_PRICE]),
        "wage": set(firm[:, FIRM_WAGE]),
        "income_tax": set(tax[:, 0].round(6)),
        "corporate_tax": set(tax[:, 1].round(6)),
    }


# The published schedule


@pytest.mark.parametrize(
    ("iteration", "prices", "wages"),
    [
        (0, {1000}, {22}),
        (9_999, {1000}, {22}),
        (10_000, {1000, 1500}, {22}),
        (14_999, {1000, 1500}, {22}),
        (15_000, {500, 1000, 1500}, {11, 22, 33}),
        (20_000, {500, 1000, 1500, 2000}, {11, 22, 33}),
        (29_999, {500, 1000, 1500, 2000}, {11, 22, 33}),
        (30_000, {0, 500, 1000, 1500, 2000, 2500}, {0, 11, 22, 33, 44}),
        (200_000, {0, 500, 1000, 1500, 2000, 2500}, {0, 11, 22, 33, 44}),
    ],
)
def test_prices_and_wages_open_as_published(published: Config, iteration: int, prices: set, wages: set) -> None:
    values = allowed_values(published, iteration)
    assert values["price"] == prices and values["wage"] == wages


@pytest.mark.parametrize(
    ("iteration", "highest"),
    [(0, 0.0), (30_000, 0.0), (35_999, 0.0), (36_000, 0.2), (48_000, 0.6), (59_999, 0.8), (60_000, 1.0), (10**6, 1.0)],
)
def test_the_tax_cap_rises_as_published(published: Config, iteration: int, highest: float) -> None:
    values = allowed_values(published, iteration)
    expected = {rate for rate in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0) if rate <= highest}
    assert values["income_tax"] == values["corporate_tax"] == expected


def test_a_joint_tax_needs_both_rates_under_the_cap(published: Config) -> None:
    economy = Economy.from_config(published)
    allowed = curriculum.allowed_actions(published, economy, 48_000)["government"]
    assert allowed.sum() == 16
    np.testing.assert_array_equal(allowed, economy.government_choices.max(axis=1) < 0.61)


def test_types_begin_to_learn_as_published(published: Config) -> None:
    begins = {"consumer": 0, "firm": 30_000, "government": 60_000}
    for agent, start in begins.items():
        assert trains(published, agent, start) and trains(published, agent, 199_999)
        assert start == 0 or not trains(published, agent, start - 1)


def test_theta_and_entropy_decay_as_published(published: Config) -> None:
    assert curriculum.theta_factor(published, 0) == 0.0
    assert curriculum.theta_factor(published, 10_000) == pytest.approx(1.0 - math.exp(-1.0))
    assert curriculum.theta_factor(published, 10**6) == 1.0
    for agent, start in {"consumer": 0, "firm": 30_000, "government": 60_000}.items():
        assert entropy(published, agent, start) == 0.5
        assert entropy(published, agent, start + 10_000) == pytest.approx(0.5 * math.exp(-1.0))
        assert entropy(published, agent, start + 23_000) == pytest.approx(0.5 * math.exp(-2.3))
        assert entropy(published, agent, start + 24_000) == pytest.approx(0.05)


def test_the_entropy_weight_never_exceeds_the_configured_one(published: Config) -> None:
    assert entropy(published, "government", 0) == 0.5


# Each key


def test_without_annealing_everything_is_open() -> None:
    config = load_config({})
    economy = Economy.from_config(config)
    for agent, mask in curriculum.allowed_actions(config, economy, 0).items():
        assert mask.all() and mask.dtype == bool and len(mask) == sum(economy.agents[agent].head_sizes)
    assert curriculum.theta_factor(config, 0) == 1.0
    assert all(entropy(config, agent, 0) == 0.5 for agent in AGENT_TYPES)
    assert all(trains(config, agent, iteration) for agent in AGENT_TYPES for iteration in (0, 1))


def test_annealing_can_be_switched_off(published: Config) -> None:
    blocks = [name for name in type(published.agents).model_fields if "_anneal_" in name and "begin" not in name]
    assert len(blocks) == 7
    config = load_config(published, [f"agents.{name}.anneal_on=false" for name in blocks])
    economy = Economy.from_config(config)
    assert all(mask.all() for mask in curriculum.allowed_actions(config, economy, 0).values())
    assert curriculum.theta_factor(config, 0) == 1.0
    assert all(entropy(config, agent, 10**6) == 0.5 for agent in AGENT_TYPES)


def test_a_range_waits_for_its_beginning(published: Config) -> None:
    late = load_config(published, ["agents.firm_begin_anneal_action=100000"])
    assert allowed_values(late, 100_000) == allowed_values(published, 0) | {
        key: allowed_values(late, 100_000)[key] for key in ("income_tax", "corporate_tax")
    }
    assert allowed_values(late, 115_000)["price"] == allowed_values(published, 15_000)["price"]


def test_a_bound_that_is_reached_counts_as_open() -> None:
    """0.1 ten times over is not 1.0 in floating point."""
    anneal = {"anneal_on": True, "start": 0.0, "increase_const": 0.1}
    config = config_with(government_anneal_taxes=anneal)
    assert [max(allowed_values(config, n)["income_tax"]) for n in (0, 2, 3, 6, 9, 10)] == [0.0, 0.2, 0.2, 0.6, 0.8, 1.0]


def test_consumers_are_never_masked(published: Config) -> None:
    economy = Economy.from_config(published)
    assert curriculum.allowed_actions(published, economy, 0)["consumer"].all()


@pytest.mark.parametrize(("agent", "key"), [("consumer", "consumers"), ("firm", "firms"), ("government", "government")])
def test_types_learn_every_so_often_from_their_start(agent: str, key: str) -> None:
    config = config_with(**{f"train_{key}_every": 3, f"{agent}_training_start": 4})
    assert [n for n in range(14) if trains(config, agent, n)] == [6, 9, 12]
    others = [other for other in AGENT_TYPES if other != agent]
    assert all(trains(config, other, n) for other in others for n in range(4))


@pytest.mark.parametrize("agent", AGENT_TYPES)
def test_a_training_list_replaces_start_and_every(agent: str) -> None:
    config = config_with(**{f"{agent}_training_list": [[2, 4], [7, 8]], f"{agent}_training_start": 100})
    assert [n for n in range(12) if trains(config, agent, n)] == [2, 3, 7]


def test_consumers_and_firms_take_turns_in_a_cycle() -> None:
    config = config_with(training_schedule_mod=5, consumer_mod_threshold=1, government_training_start=3)
    turns = {agent: [n for n in range(10) if trains(config, agent, n)] for agent in AGENT_TYPES}
    assert turns == {"consumer": [0, 1, 5, 6], "firm": [2, 3, 4, 7, 8, 9], "government": [3, 4, 5, 6, 7, 8, 9]}


@pytest.mark.parametrize(("agent", "index"), [("firm", 13), ("government", 21)])
def test_a_frozen_type_has_one_action_and_never_learns(published: Config, agent: str, index: int) -> None:
    config = load_config(published, [f"agents.frozen_{agent}_action={index}"])
    economy = Economy.from_config(config)
    for iteration in (0, 50_000, 199_999):
        allowed = curriculum.allowed_actions(config, economy, iteration)[agent]
        assert np.flatnonzero(allowed).tolist() == [index]  # also where the curriculum would not allow it yet
        assert not trains(config, agent, iteration)
    assert economy.agents[agent].is_frozen and not economy.agents["consumer"].is_frozen


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_schedule_always_allows_something_and_ends_open(path: Path) -> None:
    config = load_config(path)
    economy = Economy.from_config(config)
    last = config.train.num_episodes - 1
    for iteration in np.linspace(0, last, 60).astype(int):
        assert all(mask.any() for mask in curriculum.allowed_actions(config, economy, int(iteration)).values())
    assert all(mask.all() for mask in curriculum.allowed_actions(config, economy, last).values())
    assert all(trains(config, agent, last) for agent in AGENT_TYPES)


# Ends that are not published


def test_the_entropy_weight_may_fall_to_nothing():
    anneal = {"anneal_on": True, "exp_decay_length_in_steps": 10, "coef_floor": 0.2}
    config = load_config(
        {"agents": {"firm_anneal_entropy": anneal | {"fall_start": 100, "fall_end": 200}}, "train": {"entropy": 0.5}}
    )
    plain = load_config({"agents": {"firm_anneal_entropy": anneal}, "train": {"entropy": 0.5}})
    for n in (0, 5, 100):
        assert entropy(config, "firm", n) == entropy(plain, "firm", n)
    assert entropy(config, "firm", 150) == pytest.approx(0.05) and entropy(config, "firm", 175) == pytest.approx(0.025)
    assert entropy(config, "firm", 200) == entropy(config, "firm", 9999) == 0.0


def test_the_choice_of_an_employer_keeps_an_entropy_weight():
    config = load_config({"agents": {"employer_entropy_floor": 0.1}, "train": {"entropy": 0.02}})
    updates = {update.agent: update for update in Schedule(config, Economy.from_config(config)).updates(0)}
    assert (updates["consumer"].entropy, updates["consumer"].last_head_entropy) == (0.02, 0.1)
    assert updates["firm"].last_head_entropy == 0.02


def test_learning_rates_fall_to_nothing_at_the_end():
    config = load_config(
        {"agents": {"firm_lr_multiple": 0.5}, "train": {"lr": 0.01, "num_episodes": 100, "lr_decay_start": 60}}
    )
    firm = Economy.from_config(config).agents["firm"]
    rates = [curriculum.learning_rate(config, firm, n) for n in (0, 60, 80, 99, 100)]
    assert rates == pytest.approx([0.005, 0.005, 0.0025, 0.005 / 40, 0.0])
    endless = load_config(config, ["train.infinite_episodes=true"])
    assert curriculum.learning_rate(endless, firm, 1000) == 0.005  # no end, no fall
    updates = Schedule(config, Economy.from_config(config)).updates(80)
    assert {update.agent: update.learning_rate for update in updates}["firm"] == pytest.approx(0.0025)
