"""Trials: what one firm alone would have gained by another action, learned from where it paid.

A policy that all firms share learns what pays when all of them do it. So, beside each iteration's episodes, the same
episodes are played again with the same random numbers, but in each of them one random firm takes one random action in
one random period. What it gains is the difference of two returns that share all other chance: its own, alone. Where the
trial gained, it takes the place of what the firm had drawn in the batch that firms learn from; where not, nothing
changes. (Learning from losses as well drives the logits of rare actions down without bound.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

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


class Trials(Intervention):
    """One iteration's trials, one per environment: agent ``who`` takes ``action`` in period ``when``, (E,) each.

    Args:
        agent: the type, one with a single head.
        num_periods, num_envs: T and E.
        learner: of the type; its mask says which actions may be tried.
        seed: of who, when and what.
    """

    def __init__(self, agent: AgentType, num_periods: int, num_envs: int, learner: Learner, seed: int):
        self.agent, self.learner, self.num_envs = agent, learner, num_envs
        generator = torch.Generator().manual_seed(seed)
        allowed = torch.nonzero(learner.heads.allowed.cpu()).squeeze(1)
        draws = [torch.randint(n, (num_envs,), generator=generator) for n in (num_periods, agent.count, len(allowed))]
        self.when, self.who = draws[0].to(learner.device), draws[1].to(learner.device)
        self.action = allowed[draws[2]].to(learner.device)
        self._environments = torch.arange(num_envs, device=learner.device)
        self._tried = torch.zeros(num_envs, device=learner.device)

    def change_actions(self, period: int, actions: Mapping[str, torch.Tensor]) -> None:
        (here,) = torch.nonzero(self.when == period, as_tuple=True)
        actions[self.agent.name][here, self.who[here], 0] = self.action[here].int()

    def note(self, rollout: Rollout, gamma: float) -> None:
        """Keep what the deviators got in the rollout that was played with the trials."""
        self._tried = self._returns(rollout, gamma)

    def _returns(self, rollout: Rollout, gamma: float) -> torch.Tensor:
        """The deviators' scaled, discounted rewards from their periods on, (E,)."""
        scaled = rollout.rewards(self.agent.name) / self.agent.settings.reward_scale
        return discounted_returns(scaled, gamma)[self.when, self._environments, self.who]

    def learned_from(self, batch: Batch, rollout: Rollout, gamma: float, weight: float) -> Batch:
        """Return the type's batch of the rollout without trials, in which trials that paid replace what was drawn.

        Such a row teaches the value nothing. Its advantage is the gain times ``weight``, in standard deviations of the
        batch's; its probability is the policy's own of the action that was tried, times exp(REACH), which leaves the
        gradient as it is and moves the clip.
        """
        _, spread = mean_and_std(batch.target - batch.value, self.learner.processes)
        gains = self._tried - self._returns(rollout, gamma)
        (paid,) = torch.nonzero(gains > 0.0, as_tuple=True)
        if not len(paid):
            return batch
        observations = self.when[paid] * self.num_envs + paid
        rows = observations * self.agent.count + self.who[paid]
        actions, log_probability = batch.actions.clone(), batch.log_probability.clone()
        actions[rows, 0] = self.action[paid].int()
        outputs = batch.advantage.new_empty(len(paid), self.agent.num_actions + 1)
        self.learner.logits(batch.public[observations], batch.private[rows], outputs)
        logits = outputs[:, :-1].masked_fill(~self.learner.heads.allowed.bool(), MASKED)
        log_probability[rows] = REACH + logits.log_softmax(-1).gather(1, self.action[paid].unsqueeze(1)).squeeze(1)
        advantage, target = batch.advantage.clone(), batch.target.clone()
        advantage[rows] = math.exp(REACH) * (weight * gains[paid] / spread).clamp(max=LARGEST_ADVANTAGE).float()
        target[rows] = batch.value[rows]
        return replace(batch, actions=actions, log_probability=log_probability, advantage=advantage, target=target)
