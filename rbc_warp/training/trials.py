"""Trials: what one agent alone would have gained by another action, learned from where it paid.

A policy that all firms share learns what pays when all of them do it. So, beside each iteration's episodes, the same
episodes are played again with the same random numbers, but in each of them a random agent, or a few in different
periods, changes one part of one action at random. What it gains is the difference of two returns that share all other
chance: its own, alone. Where the trial gained, it takes the place of what the agent had drawn in the batch that its
type learns from; where not, nothing changes. (Learning from losses as well drives the logits of rare actions down
without bound.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from rbc_warp.economy.agents import AgentType
from rbc_warp.training.learner import Learner
from rbc_warp.training.losses import MASKED, Batch, discounted_returns, mean_and_std
from rbc_warp.training.rollout import Intervention, Rollout
from rbc_warp.warpdrive.kernels import Words

LARGEST_ADVANTAGE = 10.0
"""Bound on a trial's advantage, in standard deviations of those of the batch."""
REACH = 1.0
"""How far an update may raise the log-probability of a trial that paid before PPO's clip holds it: an action that is
hardly ever drawn would otherwise rise by a tenth of nothing."""


def places_of_trials(numbers: Mapping[str, int], num_envs: int, num_periods: int) -> dict[str, torch.Tensor]:
    """Return in which environments each type makes its trials, (k,); a type for which none is left has no place.

    Each type has environments of its own, half of those that are left at most: one for each trial. The type that makes
    most has all that the others leave, with several trials in each where need be, at most one per period.
    """
    left, places = num_envs, {}
    names = sorted(numbers, key=numbers.__getitem__)
    for name in names:
        is_last = name == names[-1]
        number = min(numbers[name], left * num_periods if is_last else left // 2)
        envs = min(number, left)
        if envs:
            places[name] = left - 1 - torch.arange(number) % envs
        left -= envs
    return places


class Trials(Intervention):
    """A type's trials of one iteration, one in each of some environments.

    ``where``, ``when``, ``who`` and ``action``, (k,) each: the environment, the period, the agent, and what it tries:
    what it draws with one part changed to another value, a firm's price, say, or its wage.

    Args:
        agent: the type, one with a single head.
        num_periods: T.
        where: environments; those that repeat, in the same order, have their trials in different periods, up to T.
        learner: of the type; its mask says which actions may be tried.
        words: a place for what is drawn.

    Where the change is not allowed, the agent does what it draws.
    """

    repeats = True

    def __init__(self, agent: AgentType, num_periods: int, where: torch.Tensor, learner: Learner, words: Words):
        self.agent, self.learner, self.num_periods = agent, learner, num_periods
        self.where = where.to(learner.device)
        self._words, self._envs = words, len(where.unique())
        self._drawn = words.take(np.zeros((3, len(where)), dtype=np.int64))
        self.when, self.who, self._change = self._drawn.unbind()
        # A row for each value of each part: what a draw becomes with it, (values of all parts, actions).
        changes = np.concatenate([table.T for table in agent.one_changed])
        self._changes = torch.from_numpy(changes).to(learner.device)
        self.action = torch.zeros_like(self.when)
        self._tried = torch.zeros(len(where), device=learner.device)

    def draw(self, seed: int) -> None:
        """Draw anew who tries what when; in force from the next :meth:`Words.send` on."""
        generator = torch.Generator().manual_seed(seed)
        number = self.where.shape
        when, who = (torch.randint(size, number, generator=generator) for size in (self.num_periods, self.agent.count))
        places = torch.arange(*number)
        when = (when[places % self._envs] + places // self._envs) % self.num_periods  # no two trials are of one action
        sizes = [table.shape[1] for table in self.agent.one_changed]
        part = torch.randint(len(sizes), number, generator=generator).numpy()
        value = torch.rand(number, generator=generator).double().numpy()
        change = np.cumsum([0, *sizes])[part] + (value * np.array(sizes)[part]).astype(np.int64)
        self._words.set(self._drawn, np.stack([when.numpy(), who.numpy(), change]))

    def change_actions(self, period: int, actions: Mapping[str, torch.Tensor]) -> None:
        rows = self.where * self.agent.count + self.who
        indices = actions[self.agent.name].view(-1)
        drawn, is_now = indices[rows].long(), self.when == period
        changed = self._changes[self._change, drawn]
        chosen = torch.where(is_now & self.learner.heads.allowed[changed].bool(), changed, drawn)
        torch.where(is_now, chosen, self.action, out=self.action)
        indices.index_add_(0, rows, (chosen - drawn).int())  # of several trials of one agent, one is now

    def note(self, rollout: Rollout, gamma: float) -> None:
        """Keep what the deviators got in the rollout that was played with the trials."""
        self._tried.copy_(self._returns(rollout, gamma))

    def _returns(self, rollout: Rollout, gamma: float) -> torch.Tensor:
        """The deviators' scaled, discounted rewards from their periods on, (k,)."""
        scaled = rollout.rewards(self.agent.name) / self.agent.settings.reward_scale
        return discounted_returns(scaled, gamma)[self.when, self.where, self.who]

    def learned_from(self, batch: Batch, rollout: Rollout, gamma: float, weight: float, reach: float) -> Batch:
        """Return the type's batch of the rollout without trials, in which trials that paid replace what was drawn.

        Such a row teaches the value nothing. Its advantage is the gain times ``weight``, in standard deviations of the
        batch's; its probability is the policy's own of the action that was tried, times exp(``reach``), which leaves
        the gradient of PPO as it is and moves its clip.
        """
        _, spread = mean_and_std(batch.target - batch.value, self.learner.processes)
        gains = self._tried - self._returns(rollout, gamma)
        paid = gains > 0.0
        observations = self.when * rollout.num_envs + self.where
        rows = observations * self.agent.count + self.who
        outputs = batch.advantage.new_empty(len(rows), self.agent.num_actions + 1)
        self.learner.logits(batch.public[observations], batch.private[rows], outputs)
        logits = outputs[:, :-1].masked_fill(~self.learner.heads.allowed.bool(), MASKED)
        tried = {
            "actions": self.action.int().unsqueeze(1),
            "log_probability": reach + logits.log_softmax(-1).gather(1, self.action.unsqueeze(1)).squeeze(1),
            "advantage": math.exp(reach) * (weight * gains / spread).clamp(max=LARGEST_ADVANTAGE).float(),
            "target": batch.value[rows],
        }
        columns = {name: getattr(batch, name).clone() for name in tried}
        for name, column in columns.items():
            is_taken = paid.unsqueeze(1) if column.dim() > 1 else paid
            column[rows] = torch.where(is_taken, tried[name], column[rows])
        return replace(batch, **columns)
