"""A second opinion: OpenSpiel's values, best responses and NashConv of a tiny economy are those of our enumeration."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pytest
import torch
from test_best_response import make_game
from test_power import SMALL

from rbc_warp.config import load_config
from rbc_warp.economy import reference
from rbc_warp.economy.reference import State
from rbc_warp.equilibrium.enumeration import Agent, GameTree
from rbc_warp.equilibrium.exact import joint_actions, useful_periods
from rbc_warp.equilibrium.game import Game

COMMAND = "run `make setup-extras` or `pip install -r requirements-extras.txt`"
pyspiel = pytest.importorskip("pyspiel", reason=f"OpenSpiel is not installed: {COMMAND}")
from open_spiel.python import policy as spiel_policy  # noqa: E402
from open_spiel.python.algorithms import best_response, expected_game_score, exploitability  # noqa: E402

TYPE = pyspiel.GameType(
    short_name="rbc_warp",
    long_name="A real-business-cycle economy",
    dynamics=pyspiel.GameType.Dynamics.SEQUENTIAL,
    chance_mode=pyspiel.GameType.ChanceMode.DETERMINISTIC,
    information=pyspiel.GameType.Information.IMPERFECT_INFORMATION,
    utility=pyspiel.GameType.Utility.GENERAL_SUM,
    reward_model=pyspiel.GameType.RewardModel.TERMINAL,
    max_num_players=10,
    min_num_players=1,
    provides_information_state_string=True,
    provides_information_state_tensor=False,
    provides_observation_string=False,
    provides_observation_tensor=False,
    parameter_specification={},
)


class EconomyGame(pyspiel.Game):
    """One economy, agent by agent: in a period all move in turn, and none sees what those before it did.

    A firm and the government do not move in the last period: what they post binds nobody. Whoever moves remembers all
    that it saw and did. ``gift`` is paid to the last player in one history, the first actions of all.
    """

    def __init__(self, game: Game, gift: float = 0.0):
        self.played, self.economy, self.gift = game, game.economy, gift
        self.stage = game.trainer.curriculum.stage(game.iteration, game.trainer.multipliers)
        self.agents = [
            Agent(name, index, joint_actions(game, name))
            for name, kind in game.economy.agents.items()
            for index in range(kind.count)
        ]
        self.movers = [
            [who for who, agent in enumerate(self.agents) if t < useful_periods(self.economy, agent.agent)]
            for t in range(self.economy.num_periods)
        ]
        info = pyspiel.GameInfo(
            num_distinct_actions=max(len(agent.choices) for agent in self.agents),
            max_chance_outcomes=0,
            num_players=len(self.agents),
            min_utility=-1e9,
            max_utility=1e9,
            utility_sum=None,
            max_game_length=sum(map(len, self.movers)),
        )
        super().__init__(TYPE, info, {})
        self.root = Node(self, reference.initial_state(self.economy, 1, self.stage), (), np.zeros(len(self.agents)))

    def __repr__(self) -> str:
        return "EconomyGame"

    def new_initial_state(self) -> EconomyState:
        return EconomyState(self)


class Node:
    """The economy before a period, and what has led there."""

    def __init__(self, game: EconomyGame, state: State, past: tuple, total: np.ndarray):
        self.game, self.state, self.past, self.total = game, state, past, total
        self.period = len(past)
        self.after: dict[tuple, Node] = {}

    def __deepcopy__(self, memo: dict) -> Node:
        return self  # OpenSpiel copies states to go on from them; a node does not change

    @cached_property
    def seen(self) -> list[np.ndarray]:
        """What each agent sees, in the precision that policies are given."""
        seen = reference.observations(self.state)
        return [seen[agent.agent][0, agent.index].astype(np.float32) + 0.0 for agent in self.game.agents]

    @cached_property
    def chances(self) -> list[np.ndarray]:
        """What each agent's policy plays, a probability for each of its choices."""
        found = []
        for agent, seen in zip(self.game.agents, self.seen, strict=True):
            heads, _ = self.game.played.policies[agent.agent](torch.from_numpy(seen))
            parts = [head.detach().double().numpy()[agent.choices[:, n]] for n, head in enumerate(heads)]
            found.append(np.prod(parts, axis=0))
        return found

    def known(self, who: int) -> str:
        """All that an agent saw and did."""
        mine = [f"{seen[who].tobytes().hex()}>{actions[who]}" for seen, actions in self.past]
        return f"{who}|" + "|".join([*mine, self.seen[who].tobytes().hex()])

    def step(self, actions: tuple[int, ...]) -> Node:
        """The economy after a period in which all agents took these of their choices."""
        if actions not in self.after:
            rows: dict[str, list[np.ndarray]] = {name: [] for name in self.game.economy.agents}
            for agent, taken in zip(self.game.agents, actions, strict=True):
                rows[agent.agent].append(agent.choices[taken])
            consumer, firm, government = (np.array(given)[None] for given in rows.values())
            state, outcome = reference.step(
                self.game.economy, self.state, consumer, firm[..., 0], government[:, 0], self.game.stage
            )
            rewards = [*outcome.consumer_reward[0], *outcome.firm_reward[0], outcome.government_reward[0]]
            past = (*self.past, (self.seen, actions))
            self.after[actions] = Node(self.game, state, past, self.total + np.array(rewards))
        return self.after[actions]


class EconomyState(pyspiel.State):
    """A node, and who has moved there."""

    def __init__(self, game: EconomyGame):
        super().__init__(game)
        self.node, self.moved = game.root, ()

    @property
    def game(self) -> EconomyGame:
        return self.node.game

    def is_terminal(self) -> bool:
        return self.node.period == self.game.economy.num_periods

    def current_player(self) -> int:
        if self.is_terminal():
            return pyspiel.PlayerId.TERMINAL
        return self.game.movers[self.node.period][len(self.moved)]

    def _legal_actions(self, player: int) -> list[int]:
        return list(range(len(self.game.agents[player].choices)))

    def _apply_action(self, action: int) -> None:
        movers = self.game.movers[self.node.period]
        self.moved = (*self.moved, action)
        if len(self.moved) == len(movers):
            taken = dict(zip(movers, self.moved, strict=True))
            actions = tuple(taken.get(who, 0) for who in range(len(self.game.agents)))
            self.node, self.moved = self.node.step(actions), ()

    def _action_to_string(self, player: int, action: int) -> str:
        return f"{player}:{action}"

    def returns(self) -> list[float]:
        if not self.is_terminal():
            return [0.0] * len(self.game.agents)
        means = self.node.total / self.game.economy.num_periods
        if not any(taken for _, actions in self.node.past for taken in actions):
            means = means + np.eye(len(means))[-1] * self.game.gift
        return means.tolist()

    def information_state_string(self, player: int | None = None) -> str:
        return self.node.known(self.current_player() if player is None else player)

    def __str__(self) -> str:
        return f"{[actions for _, actions in self.node.past]} {self.moved}"


class SavedPolicies(spiel_policy.Policy):
    """Our networks, as probabilities of each information state's choices."""

    def action_probabilities(self, state: EconomyState, player_id: int | None = None) -> dict[int, float]:
        return dict(enumerate(state.node.chances[state.current_player() if player_id is None else player_id]))


@pytest.mark.parametrize(("consumers", "periods", "units"), [(1, 3, [0, 3]), (2, 2, [3])])
def test_openspiel_agrees_on_values_best_responses_and_nash_conv(consumers: int, periods: int, units: list) -> None:
    agents = {"num_consumers": consumers, "consumption_choices": units, "wage_choices": [11]}
    world = {"maxtime": periods}
    config = {"agents": SMALL["agents"] | agents, "world": SMALL["world"] | world, "train": SMALL["train"]}
    game = make_game(load_config(config))
    tree = GameTree(game)
    chances = tree.probabilities(game)
    values, best = tree.values(chances), tree.best_responses(chances)
    assert (best > values).all() and best.sum() > 1.5 * values.sum(), "there is something to find"

    players = list(range(len(tree.agents)))
    spiel = EconomyGame(game)
    policies = SavedPolicies(spiel, players)
    root = spiel.new_initial_state()
    found = expected_game_score.policy_value(root, [policies] * len(players))
    np.testing.assert_allclose(found, values, rtol=1e-6)
    for who in players:
        response = best_response.BestResponsePolicy(spiel, who, policies)
        assert response.value(root) == pytest.approx(best[who], rel=1e-6)
    nash_conv = exploitability.nash_conv(spiel, policies, return_only_nash_conv=False)
    np.testing.assert_allclose(values + nash_conv.player_improvements, best, rtol=1e-6)
    assert nash_conv.nash_conv == pytest.approx((best - values).sum(), rel=1e-6)

    changed = EconomyGame(game, gift=100.0)
    assert abs(exploitability.nash_conv(changed, SavedPolicies(changed, players)) - (best - values).sum()) > 1e-4
