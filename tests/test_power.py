"""The tester tested: enumeration against brute force, searchers against enumeration, damage that is known."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from consumer_program import best_consumer_plan
from test_best_response import ALONE, make_game, market_of

from rbc_warp.commands.power import statement
from rbc_warp.config import load_config
from rbc_warp.economy import reference
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.equilibrium import rules
from rbc_warp.equilibrium.deviations import constant_deviations
from rbc_warp.equilibrium.enumeration import GameTree
from rbc_warp.equilibrium.exact import joint_actions
from rbc_warp.equilibrium.game import FREE, Estimate, Game
from rbc_warp.equilibrium.power import Damage, Extent, Row, Task
from rbc_warp.equilibrium.rules import best_rule, choices_of, grow

SMALL = {
    "agents": {
        "num_consumers": 2,
        "num_firms": 1,
        "consumption_choices": [0, 3],
        "work_choices": [0, 520],
        "price_choices": [500, 1000],
        "wage_choices": [0, 22],
        "income_tax_choices": [0, 0.4],
        "corporate_tax_choices": [0],
        "government_counts_firm_reward": 1,
        "firm_reward_for_government_factor": 0.001,
        "firm_reward_scale": 5000,
    },
    "world": {
        "maxtime": 2,
        "initial_stocks": 5,
        "initial_wages": 11,
        "initial_prices": 500,
        "initial_consumer_endowment": 1500,
        "initial_capital": "twolevel",
        "production_alpha": 0.5,
        "paretoscaletheta": 4,
    },
    "train": {"batch_size": 512, "base_seed": 7, "lr": 0.01, "entropy": 0.05, "precision": "float32"},
}
SOLO = {
    **SMALL,
    "agents": {**SMALL["agents"], "num_consumers": 1},
    "world": {**SMALL["world"], "maxtime": 3},
}


@pytest.fixture(scope="module")
def game() -> Game:
    return make_game(load_config(SMALL))


@pytest.fixture(scope="module")
def solo() -> Game:
    """One consumer, one firm, three periods: 8192 histories."""
    return make_game(load_config(SOLO))


def brute_force(game: Game, who: int, choose: Callable[[tuple], int | None]) -> np.ndarray:
    """All agents' rewards per period, by a walk through all histories one at a time, where ``who`` deviates.

    ``choose``: its action by all that it saw and did; None where it draws from its policy.
    """
    economy, names = game.economy, list(AGENT_TYPES)
    agents = [(name, index) for name in names for index in range(economy.agents[name].count)]
    choices = [joint_actions(game, name) for name, _ in agents]

    def walk(state: reference.State, period: int, history: tuple) -> np.ndarray:
        total = np.zeros(len(agents))
        if period == economy.num_periods:
            return total
        seen = reference.observations(state)
        chances = []
        for (name, index), options in zip(agents, choices, strict=True):
            probabilities = game.policies[name](torch.tensor(seen[name][0, index], dtype=torch.float32))[0]
            of_option = [
                np.prod([float(head.detach()[k]) for head, k in zip(probabilities, row, strict=True)])
                for row in options
            ]
            chances.append(of_option)
        known = (*history, tuple(np.float32(seen[agents[who][0]][0, agents[who][1]])))
        chosen = choose(known)
        if chosen is not None:
            chances[who] = list(np.eye(len(choices[who]))[chosen])
        for joint in itertools.product(*(range(len(options)) for options in choices)):
            chance = np.prod([chances[n][k] for n, k in enumerate(joint)])
            if chance == 0.0:
                continue
            rows = {name: [] for name in names}
            for n, k in enumerate(joint):
                rows[agents[n][0]].append(choices[n][k])
            consumer, firm, government = (np.array(rows[name])[None] for name in names)
            after, outcome = reference.step(economy, state, consumer, firm[..., 0], government[:, 0])
            rewards = np.array([*outcome.consumer_reward[0], *outcome.firm_reward[0], outcome.government_reward[0]])
            total += chance * (rewards + walk(after, period + 1, (*known, joint[who])))
        return total

    return walk(reference.initial_state(economy, 1), 0, ()) / economy.num_periods


def test_values_are_those_of_a_walk_through_all_histories() -> None:
    game = make_game(load_config({**SMALL, "agents": {**SMALL["agents"], "consumption_choices": [3]}}))
    tree = GameTree(game)
    assert tree.num_leaves == 2 * 2 * 4 * 2 * 2 * 2  # what firm and government post in the last period binds nobody
    values = tree.values(tree.probabilities(game))
    np.testing.assert_allclose(values, brute_force(game, 0, lambda known: None), rtol=1e-5)


@pytest.mark.parametrize("who", [1, 2])
def test_best_responses_are_the_best_of_all_strategies(who: int) -> None:
    """Consumer 1 and the firm: every map from what it saw and did to what it does."""
    agents = {**SMALL["agents"], "consumption_choices": [3], "wage_choices": [11], "income_tax_choices": [0.4]}
    game = make_game(load_config({**SMALL, "agents": agents}))
    tree = GameTree(game)
    probabilities = tree.probabilities(game)
    first, sets = 2, {}  # its first action and, after each, the information sets that follow

    def note(action: int) -> Callable[[tuple], int | None]:
        def choose(known: tuple) -> int | None:
            if len(known) == 1:
                return action
            sets.setdefault(action, {})[known] = None
            return 0

        return choose

    for action in range(first):
        brute_force(game, who, note(action))
    best = -np.inf
    for action in range(first):
        later = list(sets[action]) if who < 2 else []  # in the last period only a consumer's action matters
        for answers in itertools.product(range(2), repeat=len(later)):
            strategy = dict(zip(later, answers, strict=True))

            def choose(known: tuple, action: int = action, strategy: dict = strategy) -> int:
                return action if len(known) == 1 else strategy.get(known, 0)

            best = max(best, brute_force(game, who, choose)[who])
    assert tree.best_responses(probabilities)[who] == pytest.approx(best, rel=1e-5)


def test_a_lone_consumers_best_response_is_its_dynamic_program() -> None:
    game = make_game(load_config(ALONE))
    tree = GameTree(game)
    assert tree.num_leaves == 16**3
    plan = best_consumer_plan(game.economy, market_of(game.economy), game.economy.theta[0])
    assert tree.best_responses(tree.probabilities(game))[0] == pytest.approx(plan.reward, rel=1e-9)


def test_a_tree_that_is_too_large_is_refused(game: Game) -> None:
    with pytest.raises(ValueError, match="histories, 10 are allowed"):
        GameTree(game, max_leaves=10)


def test_trees_divide_states_by_what_pays() -> None:
    random = np.random.default_rng(0)
    seen = random.random((400, 3)).astype(np.float32)
    rewards = np.stack([np.zeros(400), np.where(seen[:, 1] > 0.6, 1.0, -1.0)])
    choices = np.array([[FREE], [4]])
    for depth, expected in ((0, "nobody"), (1, "those who gain"), (3, "those who gain")):
        given = grow(seen, rewards, choices, depth, torch.device("cpu")).answer(torch.from_numpy(seen))[:, 0].numpy()
        np.testing.assert_array_equal(given == 4, seen[:, 1] > (0.6 if expected == "those who gain" else 1.0))


@pytest.mark.parametrize("agent", ["consumer", "firm"])
def test_rules_recover_the_exact_gap_and_no_more(solo: Game, agent: str) -> None:
    """Untrained others draw: a consumer who sees prices and wages gains by looking at them."""
    tree = GameTree(solo)
    chances = tree.probabilities(solo)
    values, best = tree.values(chances), tree.best_responses(chances)
    who = AGENT_TYPES.index(agent)
    found = best_rule(solo, agent, None, 1024, 8192, level=0.999)
    assert abs(found.before - values[who]) < 0.05 * (best[who] - values[who])
    assert 0.95 * (best[who] - values[who]) <= found.gain.high and found.gain.low <= best[who] - values[who]
    assert found.gain.mean > 0.9 * (best[who] - values[who])
    again = best_rule(solo, agent, None, 1024, 8192, level=0.999)
    assert again.gain == found.gain and again.rule.name == found.rule.name


def test_rules_of_many_actions_choose_heads_one_after_the_other(solo: Game, monkeypatch) -> None:
    together = best_rule(solo, "consumer", None, 512, 2048)
    monkeypatch.setattr(rules, "MAX_JOINT_ACTIONS", 1)
    groups = choices_of(solo, "consumer")
    assert [group.tolist() for group in groups] == [[[FREE, 0, 0], [FREE, 1, 0]], [[0, FREE, FREE], [1, FREE, FREE]]]
    found = best_rule(solo, "consumer", None, 512, 2048)
    assert found.gain.mean == pytest.approx(together.gain.mean, rel=0.05)


def test_damage_is_what_the_tree_says(solo: Game) -> None:
    tree = GameTree(solo)
    for agent, k in (("consumer", 0), ("firm", 1)):
        action = constant_deviations(solo, agent, None)[0]
        damage = Damage(solo, action, 0.5)
        spoiled = tree.values(tree.probabilities(solo, damage.change))
        game = Game(solo.trainer, solo.policies, 0, always=[damage])
        measured = Estimate.of(game.values(8192)[agent][:, 0], 0.999)
        assert measured.low < spoiled[k] < measured.high
        assert abs(spoiled[k] - tree.values(tree.probabilities(solo))[k]) > 1e-3 * abs(spoiled[k])
    solo.restore()


def test_every_agent_gets_a_row_and_misses_are_counted(solo: Game) -> None:
    extent = Extent(screening=64, scoring=1024, updates=2, damages=(0.5,))
    tree = GameTree(solo)
    learner = make_game(load_config({**SOLO, "train": {**SOLO["train"], "batch_size": 16}}), episodes=16)
    task = Task(extent, "solo", "untrained", 7, tree, np.ones(3))
    policies = {agent: copy.deepcopy(policy) for agent, policy in solo.policies.items()}
    found = [*task.rows(solo, learner), *task.damaged_rows(solo)]
    assert [(row.agent, row.damage) for row in found] == [(a, 0.0) for a in AGENT_TYPES] + [
        (a, 0.5) for a in AGENT_TYPES
    ]
    assert all(torch.equal(policies[agent].flat, solo.trainer.models[agent].flat) for agent in AGENT_TYPES)
    assert set(found[0].gains) == {"rule", "constant", "one-step", "fine-tuned"}
    for row in found:
        assert not row.over_reports and not row.astray
        assert row.gap <= row.bound + 1e-9 and row.recovered == row.gains[row.best].mean / row.gap

    nothing = Estimate(0.0, -1.0, 1.0)
    short = Row("x", "trained", 1, "firm", 0, 1.0, Estimate(3.0, 2.0, 4.0), 0.5, 0.5, 1.0, {"rule": nothing})
    above = Row("x", "trained", 1, "firm", 0, 1.0, nothing, 0.5, 0.5, 1.0, {"rule": Estimate(1.0, 0.8, 1.2)}, 0.1)
    said = statement([short, above])
    assert "Below 95% of the exact gap: 1 of 1 that matter" in said and "is sure of: 0 of 1" in said
    assert "outside measured intervals: 1 of 2 (the farthest by 1 of value)" in said
    assert "beyond their intervals: 1 of 2" in said
