"""Feedback rules of one agent, found by search: what it does depends on the period and on what it sees.

A :class:`Rule` is a small decision tree per period. :func:`search_rule` grows the trees backwards from the last period:
in the episodes that lead to a period, it plays every action there, and after it the rule so far, against everybody
else's drawn play; then it divides the states by what pays best in them. A tree of depth 0 is a plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rbc_warp.equilibrium.deviations import partial_actions
from rbc_warp.equilibrium.exact import count_joint_actions, joint_actions, useful_periods
from rbc_warp.equilibrium.game import (
    FINE_TUNING_STREAM,
    FREE,
    REPORT_STREAM,
    SELECTION_STREAM,
    Estimate,
    Forced,
    Game,
    Intervention,
    of_deviator,
)
from rbc_warp.training.rollout import Draw

MAX_JOINT_ACTIONS = 100
"""An agent with more joint actions chooses its heads one after the other, not together."""
LEAST_EPISODES = 16
"""A tree divides no fewer episodes than twice these."""


@dataclass(frozen=True)
class Tree:
    """A complete binary tree; node k leads to 2k+1, and where its feature exceeds its threshold to 2k+2."""

    features: torch.Tensor  #: (nodes,) columns of what the agent sees.
    thresholds: torch.Tensor  #: (nodes,) infinite where all go one way.
    actions: torch.Tensor  #: (nodes + 1, heads) of the leaves: indices, FREE where the policy goes on choosing.

    def answer(self, seen: torch.Tensor) -> torch.Tensor:
        """Return the actions (E, heads) to what an agent sees (E, d)."""
        node = torch.zeros(len(seen), dtype=torch.int64, device=seen.device)
        for _ in range(int(np.log2(len(self.actions)))):
            exceeds = seen.gather(1, self.features[node, None])[:, 0] > self.thresholds[node]
            node = 2 * node + 1 + exceeds
        return self.actions[node - len(self.features)]


def grow(seen: np.ndarray, rewards: np.ndarray, choices: np.ndarray, depth: int, device: torch.device) -> Tree:
    """Return the tree whose leaves get most reward, divided greedily.

    Args:
        seen: (episodes, d) by the agent in a period.
        rewards: (choices, episodes) with each choice there.
        choices: (choices, heads).
    """
    nodes = (1 << depth) - 1
    features, thresholds = np.zeros(nodes, dtype=np.int64), np.full(nodes, np.inf, dtype=np.float32)
    best = np.zeros(nodes + 1, dtype=np.int64)

    def divide(node: int, rows: np.ndarray) -> None:
        if node >= nodes:
            best[node - nodes] = rewards[:, rows].mean(axis=1).argmax()
            return
        split = _best_split(seen[rows], rewards[:, rows])
        if split is None:
            divide(2 * node + 1, rows)
            divide(2 * node + 2, rows)
            return
        features[node], thresholds[node] = split
        exceeds = seen[rows, split[0]] > split[1]
        divide(2 * node + 1, rows[~exceeds])
        divide(2 * node + 2, rows[exceeds])

    divide(0, np.arange(len(seen)))
    parts = (features, thresholds, choices[best].astype(np.int32))
    return Tree(*(torch.as_tensor(part, device=device) for part in parts))


def _best_split(seen: np.ndarray, rewards: np.ndarray) -> tuple[int, float] | None:
    """The column and the threshold that raise the reward most; None where no division raises it."""
    best, found = float(rewards.sum(axis=1).max()), None
    for column in np.flatnonzero(seen.min(axis=0) < seen.max(axis=0)):
        order = seen[:, column].argsort(kind="stable")
        values, left = seen[order, column], rewards[:, order].cumsum(axis=1)
        cuts = np.flatnonzero(values[:-1] < values[1:])
        cuts = cuts[(cuts >= LEAST_EPISODES - 1) & (cuts < len(seen) - LEAST_EPISODES)]
        if len(cuts):
            total = left[:, cuts].max(axis=0) + (left[:, -1:] - left[:, cuts]).max(axis=0)
            top = int(total.argmax())
            if total[top] > best + 1e-6 * abs(best):
                best, found = float(total[top]), (int(column), float(values[cuts[top]]))
    return found


class Rule(Intervention):
    """What one agent does instead of following its policy: trees per period, each of other heads."""

    def __init__(self, game: Game, agent: str, index: int | None, name: str, trees: Sequence[Mapping[int, Tree]]):
        self.game, self.agent, self.index, self.name = game, agent, index, name
        self.trees = [dict(of_period) for of_period in trees]

    def seen(self, period: int) -> torch.Tensor:
        """Return what the agent sees in a period of the rollout, (E, d)."""
        rollout = self.game.trainer.rollout
        public = rollout.public_states()[period, :, 0]
        if not self.game.economy.agents[self.agent].private.size:
            return public
        return torch.cat([public, rollout.private_states(self.agent)[period, :, self.index or 0]], dim=1)

    def change_actions(self, period: int, actions: Mapping[str, torch.Tensor]) -> None:
        if self.trees[period]:
            drawn, seen = actions[self.agent][:, self.index or 0], self.seen(period)
            for tree in self.trees[period].values():
                given = tree.answer(seen)
                drawn.copy_(torch.where(given == FREE, drawn, given))


def choices_of(game: Game, agent: str) -> list[np.ndarray]:
    """Return groups of actions (K, heads) that a rule chooses from, FREE in heads of other groups.

    All joint actions, or where they are many: hours with employer, then the units of each good.
    """
    if count_joint_actions(game, agent) <= MAX_JOINT_ACTIONS:
        return [joint_actions(game, agent)]
    groups: dict[tuple, list] = {}
    for _, indices in partial_actions(game, agent, goods=True):
        groups.setdefault(tuple(index == FREE for index in indices), []).append(indices)
    return [np.array(rows, dtype=np.int32) for rows in groups.values()]


def search_rule(game: Game, agent: str, index: int | None, sweeps: int, episodes: int, depth: int) -> list[Rule]:
    """Return the rules found after each sweep over the periods, for one agent; None is the one agent of its type.

    In the first sweep the agent acts at random before the period that is searched, so that the rule knows states which
    the policy never leads to; afterwards it follows the rule so far.
    """
    groups, periods = choices_of(game, agent), game.economy.num_periods
    random = np.random.default_rng(0)
    rule = Rule(game, agent, index, "", [{} for _ in range(periods)])
    found = []
    for sweep in range(sweeps):
        for period in reversed(range(useful_periods(game.economy, agent))):
            for number, choices in enumerate(groups):
                rule.trees[period].pop(number, None)
                explore = random if sweep == 0 else None
                options = np.concatenate([np.full_like(choices[:1], FREE), choices])
                seen, rewards = _try(game, rule, period, options, groups, episodes, sweep * episodes, explore)
                rule.trees[period][number] = grow(seen, rewards, options, depth, game.trainer.device)
        found.append(Rule(game, agent, index, f"rule of depth {depth} after {sweep + 1} sweeps", rule.trees))
    return found


def _try(
    game: Game,
    rule: Rule,
    period: int,
    options: np.ndarray,
    groups: Sequence[np.ndarray],
    episodes: int,
    first_episode: int,
    random: np.random.Generator | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Play every option in one period; what the agent saw (episodes, d) and its rewards (options, episodes)."""
    trainer, who = game.trainer, [rule.index or 0]
    together = trainer.num_local_envs
    seen, rewards = [], []
    game.restore()
    for first in range(first_episode, first_episode + episodes, together):
        plan = np.full((together, game.economy.num_periods, options.shape[1]), FREE, dtype=np.int32)
        if random is not None:
            for choices in groups:
                drawn = choices[random.integers(0, len(choices), (together, period))]
                plan[:, :period] = np.where(drawn == FREE, plan[:, :period], drawn)
        of_options = []
        for option in options:
            plan[:, period] = option
            with game.changed(rule, Forced(rule.agent, who, plan)):
                trainer.play(Draw(game.iteration, FINE_TUNING_STREAM, game.greedy, first))
            values = trainer.rollout.rewards(rule.agent)[..., who[0]]
            of_options.append(values.double().mean(dim=0).cpu().numpy())
        seen.append(rule.seen(period).cpu().numpy())
        rewards.append(of_options)
    return np.concatenate(seen), np.concatenate(rewards, axis=1)


@dataclass(frozen=True)
class FoundRule:
    """The best rule that was found for one agent, scored on draws that had no part in finding it."""

    rule: Rule
    before: float
    gain: Estimate


def best_rule(
    game: Game,
    agent: str,
    index: int | None,
    screening: int,
    scoring: int,
    level: float = 0.95,
    depth: int = 3,
    sweeps: int = 2,
) -> FoundRule:
    """Return the best of :func:`search_rule`: searched and chosen on ``screening`` episodes each, scored on others."""
    rules = search_rule(game, agent, index, sweeps, screening, depth)
    chosen = max(rules, key=lambda rule: float(_values(game, rule, screening, SELECTION_STREAM).mean()))
    before = of_deviator(game.values(scoring), agent, index)
    after = _values(game, chosen, scoring, REPORT_STREAM)
    return FoundRule(chosen, float(before.mean()), Estimate.of(after - before, level))


def _values(game: Game, rule: Rule, episodes: int, stream: int) -> np.ndarray:
    game.restore()
    with game.changed(rule):
        return of_deviator(game.play(episodes, stream), rule.agent, rule.index)
