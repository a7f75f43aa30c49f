"""The power of the searchers: how much they find of gains that are known exactly, in economies small enough.

:func:`measure` compares each searcher with the exact best response of :mod:`enumeration`; :func:`measure_damage` spoils
one agent of a trained policy by a known amount and looks whether that is found.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rbc_warp.config import Config, load_config
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.equilibrium.deviations import SEARCHERS, Deviation, constant_deviations, search, values_of
from rbc_warp.equilibrium.enumeration import Agent, GameTree
from rbc_warp.equilibrium.fine_tuning import fine_tune
from rbc_warp.equilibrium.game import FREE, NEVER, REPORT_STREAM, Estimate, Game, Intervention, OwnPolicy
from rbc_warp.equilibrium.rules import best_rule
from rbc_warp.training.policy import Policy
from rbc_warp.training.recorder import Recorder
from rbc_warp.training.trainer import RbcTrainer

RECOVERED, MATTERS = 0.95, 0.01
"""The share of a gap that a tester should find; a gap matters if it is a larger share of value or training gain."""
ROUNDING = 1e-5
"""Share of a value; episodes are played in float32."""

_AGENTS = {
    "government_counts_firm_reward": 1,
    "firm_reward_for_government_factor": 0.001,
    "consumer_reward_scale": 5,
    "firm_reward_scale": 5000,
    "government_reward_scale": 10,
    "wage_choices": [0, 22],
    "work_choices": [0, 520],
    "corporate_tax_choices": [0],
}
_WORLD = {
    "maxtime": 3,
    "initial_wages": 11,
    "initial_prices": 500,
    "initial_capital": "twolevel",
    "production_alpha": 0.5,
    "paretoscaletheta": 4,
}
ECONOMIES: dict[str, dict[str, dict]] = {
    "2 consumers, 1 firm": {
        "agents": {
            "num_consumers": 2,
            "num_firms": 1,
            "consumption_choices": [0, 4],
            "price_choices": [500, 1000, 1500],
            "income_tax_choices": [0, 0.5],
        },
        "world": {
            "initial_stocks": 5,
            "initial_consumer_endowment": 1500,
            "importer_price": 1500,
            "importer_quantity": 3,
        },
    },
    "1 consumer, 2 firms": {
        "agents": {
            "num_consumers": 1,
            "num_firms": 2,
            "consumption_choices": [0, 4],
            "price_choices": [500, 1000],
            "income_tax_choices": [0.2],
        },
        "world": {
            "initial_stocks": 6,
            "initial_consumer_endowment": 2000,
            "importer_price": 1000,
            "importer_quantity": 2,
        },
    },
    "1 consumer, 1 firm, 4 periods": {
        "agents": {
            "num_consumers": 1,
            "num_firms": 1,
            "consumption_choices": [0, 2, 5],
            "price_choices": [500, 1000],
            "income_tax_choices": [0, 0.5],
        },
        "world": {
            "maxtime": 4,
            "initial_stocks": 4,
            "initial_consumer_endowment": 1500,
            "importer_price": 1000,
            "importer_quantity": 2,
        },
    },
}
STAGES = {"untrained": 0, "half-trained": 10, "trained": 150}
"""Iterations of training after which policies are looked at."""


@dataclass(frozen=True)
class Extent:
    """How much is tried."""

    economies: Sequence[str] = tuple(ECONOMIES)
    seeds: Sequence[int] = (1, 2, 3)
    damages: Sequence[float] = (0.03, 0.1, 0.3)
    screening: int = 1024  #: Episodes of each deviation while the best is chosen.
    scoring: int = 8192  #: Episodes of each searcher's best.
    updates: int = 60  #: Of fine-tuning.
    level: float = 0.9999  #: Of each interval; there are hundreds.


QUICK = Extent(("2 consumers, 1 firm",), (1,), (0.1,), 256, 2048, 20)


@dataclass(frozen=True)
class Row:
    """One agent of one set of policies, measured and known. Rewards are means per period."""

    economy: str
    policies: str
    seed: int
    agent: str
    index: int
    value: float  #: Exact.
    measured: Estimate  #: The value as the tester measures it.
    gap: float  #: What is known: the exact best-response gap, or by how much damage lowered the value.
    bound: float  #: The exact best-response gap.
    scale: float  #: The value's size or the training gain, whichever is larger.
    gains: dict[str, Estimate]  #: By searcher.
    damage: float = 0.0  #: Probability with which the agent plays a constant action instead.

    @property
    def matters(self) -> bool:
        return self.gap > MATTERS * self.scale

    @property
    def best(self) -> str:
        """The searcher that found most."""
        return max(self.gains, key=lambda name: self.gains[name].mean)

    @property
    def recovered(self) -> float:
        """Share of the known gap that the best searcher found."""
        return self.gains[self.best].mean / self.gap

    @property
    def is_missed(self) -> bool:
        """True if no searcher is sure of any gain."""
        return max(gain.low for gain in self.gains.values()) <= 0.0

    @property
    def astray(self) -> float:
        """How far the exact value lies outside the measured interval, as a share of the scale; rounding is none."""
        outside = max(self.measured.low - self.value, self.value - self.measured.high, 0.0) / self.scale
        return outside if outside > ROUNDING else 0.0

    @property
    def over_reports(self) -> list[str]:
        """Searchers whose whole interval lies above the exact gap."""
        return [name for name, gain in self.gains.items() if gain.low > self.bound + ROUNDING * self.scale]


class Damage(Intervention):
    """One agent plays a constant action with a probability, else its policy; heads that are FREE stay its policy's."""

    def __init__(self, game: Game, action: Deviation, probability: float):
        self.agent, self.index = action.agent, action.index or 0
        self.count, self.sizes = game.economy.agents[self.agent].count, game.economy.agents[self.agent].head_sizes
        self.action, self.probability = action.actions[0], probability
        self.allowed = torch.from_numpy(game.allowed(self.agent))

    def _spoil(self, chances: torch.Tensor) -> None:
        """Work in place on the agent's probabilities, (rows, actions of all heads)."""
        for chosen, head in zip(self.action, chances.split(self.sizes, dim=1), strict=True):
            if chosen != FREE:
                head.mul_(1.0 - self.probability)
                head[:, chosen] += self.probability

    def change(self, agent: str, index: int, chances: np.ndarray) -> np.ndarray:
        """Return what an agent's probabilities (rows, actions of all heads) become, for a :class:`GameTree`."""
        spoiled = torch.from_numpy(chances.copy())
        if (agent, index) == (self.agent, self.index):
            self._spoil(spoiled)
        return spoiled.numpy()

    def change_logits(self, period: int, logits: Mapping[str, torch.Tensor]) -> None:
        given = logits[self.agent]
        rows = given.view(-1, self.count, given.shape[1])[:, self.index, : sum(self.sizes)]
        allowed = rows.masked_fill(~self.allowed.to(rows.device), -torch.inf)
        chances = torch.cat([head.softmax(dim=1) for head in allowed.split(self.sizes, dim=1)], dim=1)
        self._spoil(chances)
        rows.copy_(chances.log().clamp_min(NEVER))


def economy_config(economy: str, seed: int, batch_size: int) -> Config:
    """Return the configuration of one of the ECONOMIES."""
    given = ECONOMIES[economy]
    train = {"num_episodes": max(STAGES.values()), "lr": 0.003, "entropy": 0.05, "precision": "float32"}
    return load_config(
        {
            "agents": _AGENTS | given["agents"],
            "world": _WORLD | given["world"],
            "train": train | {"base_seed": seed, "batch_size": batch_size},
        }
    )


def checkpoints(trainer: RbcTrainer, stages: Mapping[str, int]) -> dict[str, dict[str, Policy]]:
    """Train and return the policies at each stage."""
    found, done = {}, 0
    for stage, iterations in stages.items():
        trainer.train(done, iterations)
        done = iterations
        found[stage] = {agent: copy.deepcopy(trainer.models[agent]) for agent in AGENT_TYPES}
    return found


def measure(extent: Extent, backend: str = "host") -> Iterator[Row]:
    """Measure every agent of untrained, half-trained and trained policies, and every damaged agent of trained ones."""
    for economy in extent.economies:
        tree: GameTree | None = None
        for seed in extent.seeds:
            learner = RbcTrainer(economy_config(economy, seed, 128), backend, recorder=Recorder())
            player = RbcTrainer(economy_config(economy, seed, 1024), backend, recorder=Recorder())
            untrained: np.ndarray | None = None
            for stage, policies in checkpoints(learner, STAGES).items():
                game = Game(player, policies, 0)
                tree = tree or GameTree(game)
                values = tree.values(tree.probabilities(game))
                untrained = values if untrained is None else untrained
                scale = np.maximum(np.abs(values), values - untrained)
                task = Task(extent, economy, stage, seed, tree, scale)
                yield from task.rows(game, Game(learner, policies, 0, episodes=512))
                if stage == "trained":
                    yield from task.damaged_rows(game)


@dataclass(frozen=True)
class Task:
    """One set of policies."""

    extent: Extent
    economy: str
    policies: str
    seed: int
    tree: GameTree
    scale: np.ndarray

    def rows(self, game: Game, learner: Game) -> Iterator[Row]:
        """Measure all agents that have a choice; ``learner`` is the same game, to train in."""
        chances = self.tree.probabilities(game)
        values = self.tree.values(chances)
        gaps = self.tree.best_responses(chances) - values
        for k, agent in self._agents(game):
            gains = self._searched(game, agent) | {"fine-tuned": self._fine_tuned(game, learner, agent)}
            yield self._row(game, k, values[k], gaps[k], gaps[k], gains)

    def damaged_rows(self, game: Game) -> Iterator[Row]:
        """Damage every agent that has a choice, by its worst constant action, and measure it."""
        unspoiled = self.tree.values(self.tree.probabilities(game))
        for k, agent in self._agents(game):
            actions = constant_deviations(game, agent.agent, _number(game, agent))
            worst = actions[int(values_of(game, actions, 1024).mean(axis=1).argmin())]
            for probability in self.extent.damages:
                damage = Damage(game, worst, probability)
                damaged = Game(game.trainer, game.policies, game.iteration, always=[damage])
                chances = self.tree.probabilities(game, damage.change)
                value, best = self.tree.values(chances)[k], self.tree.best_response(k, chances)
                gains = self._searched(damaged, agent)
                yield self._row(damaged, k, value, unspoiled[k] - value, best - value, gains, probability)

    def _agents(self, game: Game) -> list[tuple[int, Agent]]:
        return [(k, agent) for k, agent in enumerate(self.tree.agents) if game.has_choice(agent.agent)]

    def _searched(self, game: Game, agent: Agent) -> dict[str, Estimate]:
        """The gain that each searcher finds."""
        who, number = agent.agent, _number(game, agent)
        screening, scoring, level = self.extent.screening, self.extent.scoring, self.extent.level
        gains = {"rule": best_rule(game, who, number, screening, scoring, level).gain}
        for name, searcher in SEARCHERS.items():
            (found,) = search(game, searcher(game, who, number), screening, scoring, level).found
            gains[name] = found.gain
        return gains

    def _fine_tuned(self, game: Game, learner: Game, agent: Agent) -> Estimate:
        """The gain of the agent's own network, trained in ``learner`` and scored as the others are."""
        tuned = fine_tune(
            learner, agent.agent, self.extent.updates, max(1, self.extent.updates // 10), index=agent.index
        )
        before = game.values(self.extent.scoring)[agent.agent][:, agent.index]
        game.restore()
        with game.changed(OwnPolicy(game.trainer, agent.agent, agent.index, tuned.policy)):
            after = game.play(self.extent.scoring, REPORT_STREAM)[agent.agent][:, agent.index]
        return Estimate.of(after - before, self.extent.level)

    def _row(
        self,
        game: Game,
        k: int,
        value: float,
        gap: float,
        bound: float,
        gains: dict[str, Estimate],
        damage: float = 0.0,
    ) -> Row:
        agent = self.tree.agents[k]
        measured = game.values(self.extent.scoring)[agent.agent][:, agent.index]
        return Row(
            *(self.economy, self.policies, self.seed, agent.agent, agent.index),
            value=float(value),
            measured=Estimate.of(measured, self.extent.level),
            gap=float(gap),
            bound=float(bound),
            scale=float(self.scale[k]),
            gains=gains,
            damage=damage,
        )


def _number(game: Game, agent: Agent) -> int | None:
    """An agent's number among others of its type; None where it is the type."""
    return agent.index if game.economy.agents[agent.agent].count > 1 else None
