"""Tiny economies in full: every joint action in every period, as a tree that is stepped level by level.

The tree depends on the economy alone. :meth:`GameTree.values` weighs its branches with policies, and
:meth:`GameTree.best_responses` gives each agent the most that it can get against them: the exact best-response gap, by
which the searchers of ``deviations.py``, ``rules.py`` and ``fine_tuning.py`` are tested.

Shapes: n agents of all types, T periods; level t has N_t nodes, and A_t joint actions lead on from each of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rbc_warp.economy import reference
from rbc_warp.economy.reference import State
from rbc_warp.equilibrium.exact import joint_actions, useful_periods
from rbc_warp.equilibrium.game import Game
from rbc_warp.errors import ConfigError

Change = Callable[[str, int, np.ndarray], np.ndarray]
"""Of a type, an agent's number and the probabilities of all its heads (nodes, actions): what it plays instead."""


@dataclass(frozen=True)
class Agent:
    """One agent of a tree."""

    agent: str
    index: int
    choices: np.ndarray  #: (K, heads) joint actions that the stage allows.


@dataclass(frozen=True)
class Level:
    """One period of all histories."""

    observed: dict[str, np.ndarray]  #: Per type, what each node shows its agents, (N, agents of the type, d) float32.
    actions: np.ndarray  #: (A, n) which of its choices each agent takes in each joint action.
    sizes: tuple[int, ...]  #: Choices of each agent in this period, with product A.
    rewards: np.ndarray  #: (n, N, A) of each agent.


class GameTree:
    """All histories of a game's economy at its stage. Node k·A + a of a level follows joint action a at node k.

    In the last period, agents whose actions bind from the next one on have a single action.
    Raises :class:`ConfigError` where the tree has more than ``max_leaves`` leaves.
    """

    def __init__(self, game: Game, max_leaves: int = 4_000_000):
        economy = self.economy = game.economy
        self.agents = [
            Agent(name, index, joint_actions(game, name))
            for name, kind in economy.agents.items()
            for index in range(kind.count)
        ]
        sizes = []
        for t in range(economy.num_periods):
            matters = (t < useful_periods(economy, agent.agent) for agent in self.agents)
            sizes.append(
                tuple(len(agent.choices) if acts else 1 for agent, acts in zip(self.agents, matters, strict=True))
            )
        self.num_leaves = int(np.prod(np.array(list(itertools.chain(*sizes)), dtype=object)))
        if self.num_leaves > max_leaves:
            raise ConfigError(
                f"the economy has {self.num_leaves} histories, {max_leaves} are allowed; "
                "take fewer agents, periods or choices"
            )
        stage = game.trainer.curriculum.stage(game.iteration, game.trainer.multipliers)
        state = reference.initial_state(economy, 1, stage)
        self.levels: list[Level] = []
        for of_agents in sizes:
            actions = np.indices(of_agents).reshape(len(of_agents), -1).T
            observed = {name: seen.astype(np.float32) for name, seen in reference.observations(state).items()}
            nodes = len(state.public)
            parents = State(*(np.repeat(part, len(actions), axis=0) for part in vars(state).values()))
            state, outcome = reference.step(economy, parents, *self._indices(np.tile(actions, (nodes, 1))), stage)
            government = outcome.government_reward[:, None]
            rewards = np.concatenate([outcome.consumer_reward, outcome.firm_reward, government], axis=1)
            shape = (len(self.agents), nodes, len(actions))
            self.levels.append(Level(observed, actions, of_agents, rewards.T.reshape(shape)))
        self.information_sets = [_information_sets(self.levels, agent, who) for who, agent in enumerate(self.agents)]

    def _indices(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the choices of all agents (rows, n), the indices that a step of the reference takes."""
        of_type: dict[str, list[np.ndarray]] = {name: [] for name in self.economy.agents}
        for column, agent in enumerate(self.agents):
            of_type[agent.agent].append(agent.choices[actions[:, column]])
        consumer, firm, government = (np.stack(rows, axis=1) for rows in of_type.values())
        return consumer, firm[..., 0], government[:, 0, 0]

    def probabilities(
        self, game: Game, change: Change = lambda agent, index, chances: chances
    ) -> list[list[np.ndarray]]:
        """Return the probabilities of each agent's choices, per level and agent (N, choices), by a game's policies.

        ``game``: one of the tree's economy and stage.
        ``change``: of some agents, what they play instead of their policy.
        """
        found = []
        for level in self.levels:
            found.append([np.ones((level.rewards.shape[1], 1)) for _ in self.agents])
            for column, agent in enumerate(self.agents):
                if level.sizes[column] > 1:
                    states = level.observed[agent.agent][:, agent.index]
                    allowed = game.trainer.heads[agent.agent].allowed
                    of_heads = game.policies[agent.agent].probabilities(states, allowed).cpu().double().numpy()
                    of_heads = change(agent.agent, agent.index, of_heads)
                    first = np.cumsum([0, *game.economy.agents[agent.agent].head_sizes[:-1]])
                    found[-1][column] = of_heads[:, agent.choices + first].prod(axis=-1)
        return found

    def values(self, probabilities: list[list[np.ndarray]]) -> np.ndarray:
        """Return each agent's expected reward per period, (n,)."""
        reach, value = np.ones(1), np.zeros(len(self.agents))
        for level, of_agents in zip(self.levels, probabilities, strict=True):
            joint = self._joint(level, of_agents) * reach[:, None]
            value += np.einsum("nka,ka->n", level.rewards, joint)
            reach = joint.ravel()
        return value / len(self.levels)

    def _joint(self, level: Level, of_agents: list[np.ndarray], but: int | None = None) -> np.ndarray:
        """The probability of each joint action at each node, (N, A); of all agents ``but`` one."""
        joint = np.ones(level.rewards.shape[1:])
        for column, chances in enumerate(of_agents):
            if column != but:
                joint *= chances[:, level.actions[:, column]]
        return joint

    def best_responses(self, probabilities: list[list[np.ndarray]]) -> np.ndarray:
        """Return each agent's largest expected reward per period against the others as they play, (n,).

        The deviator remembers all that it saw and did, and conditions on nothing else: histories in which it saw and
        did the same are one information set. So this is the exact best closed-loop response, and no less than what a
        rule of the present observation can get. Others' probabilities alone weigh the nodes of an information set.
        """
        return np.array([self.best_response(who, probabilities) for who in range(len(self.agents))])

    def best_response(self, who: int, probabilities: list[list[np.ndarray]]) -> float:
        """Return :meth:`best_responses` of one agent, by its place in ``agents``."""
        reach = np.ones(1)
        gains: list[np.ndarray] = []  # (information sets, choices) per level: rewards of the period, weighted
        for level, of_agents, sets in zip(self.levels, probabilities, self.information_sets[who], strict=True):
            joint = self._joint(level, of_agents, but=who) * reach[:, None]
            taken = sets.of_node[:, None] * level.sizes[who] + level.actions[:, who]
            weighted = np.bincount(taken.ravel(), (joint * level.rewards[who]).ravel(), sets.count * level.sizes[who])
            gains.append(weighted.reshape(sets.count, -1))
            reach = joint.ravel()
        best = np.zeros(1)
        for t in reversed(range(len(gains))):
            if t + 1 < len(gains):
                gains[t] += np.bincount(self.information_sets[who][t + 1].after, best, gains[t].size).reshape(
                    gains[t].shape
                )
            best = gains[t].max(axis=1)
        return float(best[0]) / len(gains)


@dataclass(frozen=True)
class InformationSets:
    """What one agent can tell apart in a period, by all that it saw and did."""

    of_node: np.ndarray  #: (N,) the set that a node belongs to.
    after: np.ndarray  #: Per set, number of the set before it times choices there, plus the choice taken.

    @property
    def count(self) -> int:
        return len(self.after)


def _information_sets(levels: Sequence[Level], agent: Agent, who: int) -> list[InformationSets]:
    """One agent's information sets per level."""
    found, history = [], np.zeros(1, dtype=np.int64)
    for level in levels:
        seen = np.ascontiguousarray(level.observed[agent.agent][:, agent.index] + 0.0)  # no negative zero
        rows = seen.view(np.dtype((np.void, seen.dtype.itemsize * seen.shape[1]))).ravel()
        different, now = np.unique(rows, return_inverse=True)
        both, of_node = np.unique(history * len(different) + now, return_inverse=True)
        found.append(InformationSets(of_node, both // len(different)))
        history = (of_node[:, None] * level.sizes[who] + level.actions[:, who]).ravel()
    return found
