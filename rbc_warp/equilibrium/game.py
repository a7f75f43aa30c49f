"""One checkpoint as a game: what its agents get as they are, and what they get when some of them deviate.

A :class:`Game` holds the three policies of a checkpoint at the stage of the curriculum that the checkpoint was played
at. Every evaluation of a game draws the same random numbers (common random numbers), so the difference between two of
them is paired episode by episode. Rewards are means per agent and period.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from rbc_warp.economy.agents import AgentType
from rbc_warp.economy.parameters import Economy
from rbc_warp.runs.console import number_text
from rbc_warp.training.numbers import fault
from rbc_warp.training.policy import Policy
from rbc_warp.training.rollout import EVALUATION_STREAM, Draw, Intervention
from rbc_warp.training.trainer import RbcTrainer

# Candidates are compared on one stream of random numbers and reported on another, so the best is not the luckiest.
REPORT_STREAM, FINE_TUNING_STREAM, SELECTION_STREAM, FINAL_STREAM = range(EVALUATION_STREAM, EVALUATION_STREAM + 4)
# Each repeat has its own block of environment numbers, larger than any batch.
ENVIRONMENTS_PER_REPEAT = 1 << 20
NEVER = -1.0e30
FREE = -1


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: np.ndarray, level: float = 0.95) -> Estimate:
        """Estimate from independent values, with Student's interval; that of a single one has no width."""
        mean, count = float(np.mean(values)), len(values)
        spread = float(np.std(values, ddof=1)) if count > 1 else 0.0
        half = _student(count, level) * spread / count**0.5
        return cls(mean, mean - half, mean + half)

    def __str__(self) -> str:
        return f"{number_text(self.mean)} [{number_text(self.low)}, {number_text(self.high)}]"

    def at(self, level: float, was: float, count: int) -> Estimate:
        """Return the estimate at another level than it ``was`` made at from ``count`` values."""
        factor = _student(count, level) / _student(count, was) if count > 1 else 0.0
        half = factor * (self.high - self.low) / 2
        return Estimate(self.mean, self.mean - half, self.mean + half)


def _student(count: int, level: float) -> float:
    """Student's two-sided quantile for the mean of ``count`` values; 0 for a single one."""
    from scipy.special import stdtrit  # here, so that training needs no SciPy

    return float(stdtrit(count - 1, 0.5 + level / 2)) if count > 1 else 0.0


@dataclass(frozen=True)
class Gained:
    """What a type has gained, per episode (episodes,), a mean over its agents and periods."""

    training: np.ndarray  #: Its value in self-play, less that where all policies are untrained.
    learning: np.ndarray  #: The same, less that of its own untrained policy among the others as they are.


class Forced(Intervention):
    """Given actions instead of a policy's. ``actions`` (E or 1, T or 1, heads) are indices; FREE leaves a head alone.

    ``agents``: those of the type who deviate, None for all of them.
    """

    def __init__(self, agent: str, agents: Sequence[int] | None, actions: np.ndarray):
        self.agent, self.actions = agent, torch.from_numpy(np.asarray(actions, dtype=np.int32))
        self.who = slice(None) if agents is None else torch.tensor(list(agents))

    def change_actions(self, period: int, actions: Mapping[str, torch.Tensor]) -> None:
        drawn = actions[self.agent]
        given = self.actions[:, min(period, self.actions.shape[1] - 1), None].to(drawn.device)
        drawn[:, self.who] = torch.where(given == FREE, drawn[:, self.who], given)


class OwnPolicy(Intervention):
    """One agent answers with a policy of its own, which starts as a copy of its type's."""

    repeats = True

    def __init__(self, trainer: RbcTrainer, agent: str, index: int, policy: Policy):
        self.trainer, self.agent, self.index = trainer, agent, index
        self.learner = trainer.learners[agent].copy(policy)

    def prepare(self) -> None:
        self.learner.refresh()

    def change_logits(self, period: int, logits: Mapping[str, torch.Tensor]) -> None:
        own = self.trainer.agent_logits(self.learner, self.agent, self.index, period)
        logits[self.agent].view(len(own), -1, own.shape[1])[:, self.index] = own


class MostLikely(Intervention):
    """Agents of some types always take their most likely action, while others draw."""

    def __init__(self, trainer: RbcTrainer, agents: Sequence[str]):
        self.trainer, self.agents = trainer, tuple(agents)

    def change_logits(self, period: int, logits: Mapping[str, torch.Tensor]) -> None:
        for agent in self.agents:
            heads = self.trainer.heads[agent]
            allowed = heads.allowed.bool().split(heads.sizes)
            rows = logits[agent][:, : heads.num_actions].split(heads.sizes, dim=1)
            for row, mask in zip(rows, allowed, strict=True):
                best = row.masked_fill(~mask, -torch.inf).argmax(dim=1, keepdim=True)
                row.fill_(NEVER).scatter_(1, best, 0.0)


class Game:
    """The policies of one checkpoint, played at their stage of the curriculum.

    Args:
        trainer: of the run's configuration; its policies are replaced.
        policies: the checkpoint's. iteration: what the checkpoint is the policy of.
        episodes: evaluated each time, rounded up to whole batches.
        greedy: everybody takes the most likely action, except who is being trained: the game is deterministic.
        always: changes in force in every play, also where nobody deviates.
    """

    def __init__(
        self,
        trainer: RbcTrainer,
        policies: Mapping[str, Policy],
        iteration: int,
        episodes: int = 64,
        greedy: bool = False,
        multipliers: Mapping[str, float] | None = None,
        always: Sequence[Intervention] = (),
    ):
        self.trainer, self.iteration, self.greedy, self.always = trainer, iteration, greedy, tuple(always)
        self.economy: Economy = trainer.economy
        self.policies = dict(policies)
        trainer.multipliers.update(multipliers or {})
        trainer.set_iteration(iteration)
        self.num_episodes = self.in_batches(episodes)
        self._values: dict[tuple[int, int, int], dict[str, np.ndarray]] = {}
        self.restore()

    def in_batches(self, episodes: float) -> int:
        """Return a number of episodes rounded up to whole batches; where all is determined, one batch."""
        envs = self.trainer.num_local_envs
        return envs if self.greedy else envs * math.ceil(episodes / envs)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the checkpoint's policies back, with fresh optimizers."""
        for agent, policy in self.policies.items():
            self.trainer.models[agent].flat.copy_(policy.flat)
            self.trainer.optimizers[agent].state.clear()
        self.trainer.interventions = self.always

    def allowed(self, agent: str) -> np.ndarray:
        """Which of a type's actions the stage allows, bool, one per action of all heads."""
        return self.trainer.heads[agent].allowed.bool().cpu().numpy()

    def has_choice(self, agent: str) -> bool:
        """Return whether a type's policy is in use and its stage leaves it more than one action."""
        kind = self.economy.agents[agent]
        heads = np.split(self.allowed(agent), np.cumsum(kind.head_sizes)[:-1])
        return not kind.is_frozen and any(mask.sum() > 1 for mask in heads)

    @contextmanager
    def changed(self, *interventions: Intervention) -> Iterator[None]:
        """The game in which some agents deviate."""
        before, self.trainer.interventions = self.trainer.interventions, (*self.always, *interventions)
        try:
            yield
        finally:
            self.trainer.interventions = before

    def baseline(self, stream: int = REPORT_STREAM, repeat: int = 0) -> dict[str, np.ndarray]:
        """Return :meth:`values` of the game's own number of episodes."""
        return self.values(self.num_episodes, stream, repeat)

    def evaluate(
        self, *interventions: Intervention, stream: int = REPORT_STREAM, repeat: int = 0
    ) -> dict[str, np.ndarray]:
        """Return rewards per type (episodes, n), means over periods, with the policies that the trainer now holds.

        They are the same for the same stream and repeat, but for who deviates.
        """
        with self.changed(*interventions):
            return self.play(self.num_episodes, stream, repeat)

    def play(self, episodes: int, stream: int, repeat: int = 0) -> dict[str, np.ndarray]:
        """Return rewards per type (episodes, n), with the policies and interventions that the trainer now holds."""
        rewards: dict[str, list[np.ndarray]] = {agent: [] for agent in self.economy.agents}
        for first in range(0, episodes, self.trainer.num_local_envs):
            place = repeat * ENVIRONMENTS_PER_REPEAT + first
            self.trainer.play(Draw(self.iteration, stream, self.greedy, place))
            for agent, parts in rewards.items():
                parts.append(self.trainer.rollout.rewards(agent).double().mean(dim=0).cpu().numpy())
                if not np.isfinite(parts[-1]).all():
                    raise fault(f"played at iteration {self.iteration}", agent, "rewards")
        return {agent: np.concatenate(parts)[:episodes] for agent, parts in rewards.items()}

    def with_policies(self, policies: Mapping[str, Policy]) -> Game:
        """Return the game of other policies at the same stage; the trainer now holds theirs, until :meth:`restore`."""
        return Game(self.trainer, policies, self.iteration, greedy=self.greedy)

    def gained(self, untrained: Mapping[str, Policy], types: Sequence[str], episodes: int) -> dict[str, Gained]:
        """Return what training and its own learning have brought each of some types, at this game's stage."""
        values = {agent: self.values(episodes)[agent].mean(axis=1) for agent in types}
        start = self.with_policies(untrained).values(episodes)
        found = {}
        for agent, value in values.items():
            alone = self.with_policies({**self.policies, agent: untrained[agent]}).values(episodes)
            found[agent] = Gained(value - start[agent].mean(axis=1), value - alone[agent].mean(axis=1))
        self.restore()
        return found

    def values(self, episodes: int, stream: int = REPORT_STREAM, repeat: int = 0) -> dict[str, np.ndarray]:
        """Return rewards per type, (episodes, n), means over periods, where nobody deviates; played once."""
        key = (stream, repeat, episodes)
        if key not in self._values:
            self.restore()
            self._values[key] = self.play(episodes, stream, repeat)
        return self._values[key]


def of_deviator(rewards: Mapping[str, np.ndarray], agent: str, index: int | None) -> np.ndarray:
    """Per episode (episodes,), the reward of one agent, or the mean of its type."""
    return rewards[agent].mean(axis=1) if index is None else rewards[agent][:, index]


def paired_gain(after: np.ndarray, before: np.ndarray, greedy: bool) -> Estimate:
    """Gain per episode; in a deterministic game one episode tells all."""
    return Estimate.of((after - before)[:1] if greedy else after - before)


def choice_name(agent: AgentType, index: int) -> str:
    """Return a joint choice in words: the columns in which choices differ."""
    varied = [column for column in range(len(agent.choice_names)) if len(np.unique(agent.choices[:, column])) > 1]
    varied = varied or list(range(len(agent.choice_names)))
    names = [agent.choice_names[column].replace("_", " ") for column in varied]
    return ", ".join(f"{name} {agent.choices[index, column]:g}" for name, column in zip(names, varied, strict=True))


def sample_of_agents(count: int, at_most: int = 10) -> list[int]:
    """All agents of a type, or ``at_most`` of them spread evenly over their numbers (for consumers: over θ)."""
    return sorted({round(float(position)) for position in np.linspace(0, count - 1, min(count, at_most))})
