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
        seed: of who, when and what.

    Where the change is not allowed, the agent does what it draws.
    """

    def __init__(self, agent: AgentType, num_periods: int, where: torch.Tensor, learner: Learner, seed: int):
        self.agent, self.learner, self.where = agent, learner, where.to(learner.device)
        generator = torch.Generator().manual_seed(seed)
        when, who = (torch.randint(size, where.shape, generator=generator) for size in (num_periods, agent.count))
        envs = len(where.unique())
        copy = torch.arange(len(where)) // envs
        when = (when[torch.arange(len(where)) % envs] + copy) % num_periods  # so that no two trials are of one action
        tables = agent.one_changed
        part = torch.randint(len(tables), where.shape, generator=generator).tolist()
        value = torch.rand(where.shape, generator=generator).tolist()
        becomes = [tables[p][:, int(v * tables[p].shape[1])] for p, v in zip(part, value, strict=True)]
        self._becomes = torch.as_tensor(np.stack(becomes), device=learner.device)  # (k, actions)
        self.when, self.who = when.to(learner.device), who.to(learner.device)
        self.action = torch.zeros_like(self.when)
        self._tried = torch.zeros(len(where), device=learner.device)

    def change_actions(self, period: int, actions: Mapping[str, torch.Tensor]) -> None:
        (now,) = torch.nonzero(self.when == period, as_tuple=True)
        drawn = actions[self.agent.name][self.where[now], self.who[now], 0].long()
        changed = self._becomes[now, drawn]
        self.action[now] = torch.where(self.learner.heads.allowed[changed].bool(), changed, drawn)
        actions[self.agent.name][self.where[now], self.who[now], 0] = self.action[now].int()

    def note(self, rollout: Rollout, gamma: float) -> None:
        """Keep what the deviators got in the rollout that was played with the trials."""
        self._tried = self._returns(rollout, gamma)

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
        (paid,) = torch.nonzero(gains > 0.0, as_tuple=True)
        if not len(paid):
            return batch
        observations = self.when[paid] * rollout.num_envs + self.where[paid]
        rows = observations * self.agent.count + self.who[paid]
        actions, log_probability = batch.actions.clone(), batch.log_probability.clone()
        actions[rows, 0] = self.action[paid].int()
        outputs = batch.advantage.new_empty(len(paid), self.agent.num_actions + 1)
        self.learner.logits(batch.public[observations], batch.private[rows], outputs)
        logits = outputs[:, :-1].masked_fill(~self.learner.heads.allowed.bool(), MASKED)
        log_probability[rows] = reach + logits.log_softmax(-1).gather(1, self.action[paid].unsqueeze(1)).squeeze(1)
        advantage, target = batch.advantage.clone(), batch.target.clone()
        advantage[rows] = math.exp(reach) * (weight * gains[paid] / spread).clamp(max=LARGEST_ADVANTAGE).float()
        target[rows] = batch.value[rows]
        return replace(batch, actions=actions, log_probability=log_probability, advantage=advantage, target=target)
