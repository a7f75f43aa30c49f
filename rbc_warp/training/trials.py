"""Trials: what one firm alone would have gained by another action, learned from where it paid.

A policy that all firms share learns what pays when all of them do it. So, beside each iteration's episodes, the same
episodes are played again with the same random numbers, but in each of them one random firm takes one random action in
one random period. What it gains is the difference of two returns that share all other chance: its own, alone. Where the
trial gained, it takes the place of what the firm had drawn in the batch that firms learn from; where not, nothing
changes. (Learning from losses as well drives the logits of rare actions down without bound.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from rbc_warp.training.losses import MASKED, Batch, discounted_returns, mean_and_std
from rbc_warp.training.rollout import Draw, Intervention

if TYPE_CHECKING:
    from rbc_warp.training.trainer import RbcTrainer

LARGEST_ADVANTAGE = 10.0
"""Bound on a trial's advantage, in standard deviations of those that are drawn."""
TYPE = "firm"


@dataclass
class Trials(Intervention):
    """One iteration's trials, one per environment: firm ``who`` takes ``action`` in period ``when``, (E,) each."""

    when: torch.Tensor
    who: torch.Tensor
    action: torch.Tensor
    returns: torch.Tensor | None = None  #: (E,) discounted rewards of each deviator from its period on.

    @classmethod
    def drawn(cls, trainer: RbcTrainer, seed: int) -> Trials:
        """Draw all trials of an iteration on the host."""
        generator = torch.Generator().manual_seed(seed)
        envs, economy = trainer.num_local_envs, trainer.economy
        allowed = torch.nonzero(trainer.heads[TYPE].allowed.cpu()).squeeze(1)
        draws = [
            torch.randint(limit, (envs,), generator=generator)
            for limit in (economy.num_periods, economy.num_firms, len(allowed))
        ]
        when, who, action = (draw.to(trainer.device) for draw in draws)
        return cls(when, who, allowed.to(trainer.device)[action].int())

    def change_actions(self, period: int, actions: Mapping[str, torch.Tensor]) -> None:
        (tried,) = torch.nonzero(self.when == period, as_tuple=True)
        actions[TYPE][tried, self.who[tried], 0] = self.action[tried]

    def play(self, trainer: RbcTrainer, draw: Draw) -> None:
        """Play the episodes of ``draw`` with the trials in them; keep what the deviators got."""
        before, trainer.interventions = trainer.interventions, (*trainer.interventions, self)
        trainer.play(draw)
        trainer.interventions = before
        self.returns = self._returns(trainer)

    def _returns(self, trainer: RbcTrainer) -> torch.Tensor:
        """The deviators' discounted rewards in the last rollout."""
        returns = discounted_returns(trainer.rollout.rewards(TYPE), trainer.settings.train.gamma)
        return returns[self.when, torch.arange(len(self.who), device=returns.device), self.who]

    def learned_from(self, trainer: RbcTrainer, batch: Batch, weight: float) -> Batch:
        """Return the firms' batch of the same episodes without trials, in which trials that paid replace draws.

        Such a row has the policy's own probability of the action that was tried, teaches the value nothing, and has the
        gain times ``weight`` for its advantage, in standard deviations of the batch's.
        """
        assert self.returns is not None
        scale = trainer.economy.agents[TYPE].settings.reward_scale
        gains = (self.returns - self._returns(trainer)) / scale
        (paid,) = torch.nonzero(gains > 0.0, as_tuple=True)
        if not len(paid):
            return batch
        observations = self.when[paid] * trainer.num_local_envs + paid
        rows = observations * trainer.economy.num_firms + self.who[paid]
        actions, log_probability = batch.actions.clone(), batch.log_probability.clone()
        actions[rows, 0] = self.action[paid]
        heads, learner = trainer.heads[TYPE], trainer.learners[TYPE]
        outputs = torch.empty(len(paid), heads.num_actions + 1, device=trainer.device)
        learner.logits(batch.public[observations], batch.private[rows].contiguous(), outputs)
        logits = outputs[:, : heads.num_actions].masked_fill(~heads.allowed.bool(), MASKED)
        log_probability[rows] = logits.log_softmax(-1).gather(1, actions[rows].long()).squeeze(1)
        _, spread = mean_and_std(batch.target - batch.value, trainer.processes)
        advantage, target = batch.advantage.clone(), batch.target.clone()
        advantage[rows] = (gains[paid] / spread * weight).clamp(max=LARGEST_ADVANTAGE).to(advantage.dtype)
        target[rows] = batch.value[rows]
        return replace(batch, actions=actions, log_probability=log_probability, advantage=advantage, target=target)
