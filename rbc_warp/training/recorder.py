"""Recorders: they keep a training's results while it goes on, and can end it early."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from warp_drive.training.trainers.trainer_a2c import TrainerA2C

Losses = Mapping[str, Mapping[str, torch.Tensor]]
"""Per type that learned: means of the loss's parts, the gradient's norm, the entropy coefficient; scalar tensors."""


class Recorder:
    """Keeps nothing, and lets training run to its end. The loop and hooks of an RbcTrainer, ``trainer``, end here."""

    def keeps_consumption(self, iteration: int) -> bool:
        """Return whether the rollout of an iteration keeps who consumed what."""
        return False

    def played(self, trainer: Any, iteration: int) -> None:
        """Keep the policies that played an iteration, or their rollout, before they learn from it."""

    def learned(self, trainer: Any, iteration: int, losses: Losses) -> None:
        """Keep what came of an iteration."""

    def save(self, trainer: Any, iteration: int) -> None:
        """Keep the policies after their updates."""

    def wants_to_stop(self) -> bool:
        """Return whether training ends after the iteration that was just recorded."""
        return False


class WarpDriveFiles(Recorder):
    """Keeps what WarpDrive's trainer keeps in its ``save_dir``: ``<policy>_<timestep>.state_dict`` and results.json.

    ``train.save_model_every`` and ``train.log_every`` say how often; the last iteration of a call of ``train`` is kept,
    too.
    """

    def learned(self, trainer: Any, iteration: int, losses: Losses) -> None:
        if iteration % trainer.config["saving"]["metrics_log_freq"] and iteration != trainer.num_iters - 1:
            return
        trainer.check_numbers()
        metrics: dict[str, dict[str, float]] = {}
        for agent in trainer.economy.agents:
            reward = trainer.rollout.rewards(agent).sum(0).mean()
            metrics[agent] = {"Mean episodic reward": float(reward)}
            metrics[agent] |= {name: float(value) for name, value in losses.get(agent, {}).items()}
        TrainerA2C._log_metrics(trainer, metrics)

    def save(self, trainer: Any, iteration: int) -> None:
        if iteration % trainer.config["saving"]["model_params_save_freq"] == 0 or iteration == trainer.num_iters - 1:
            trainer.check_numbers()
        TrainerA2C.save_model_checkpoint(trainer, iteration)
