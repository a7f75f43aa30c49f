"""What tests of training share: one iteration, in its two halves."""

from __future__ import annotations

import torch

from rbc_warp.training.rollout import Draw
from rbc_warp.training.trainer import RbcTrainer


def play_iteration(trainer: RbcTrainer, iteration: int, keep_consumption: bool = False) -> None:
    """Play an iteration's episodes at its stage."""
    trainer.set_iteration(iteration)
    trainer.play(Draw(iteration), keep_consumption)


def learn(trainer: RbcTrainer, iteration: int) -> dict[str, dict[str, torch.Tensor]]:
    """Update every type that is due, from the last rollout."""
    return trainer._update_model_params(iteration)
