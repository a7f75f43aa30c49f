"""What tests of training share: one iteration, in its two halves, and a whole small run."""

from __future__ import annotations

from pathlib import Path

import torch

from rbc_warp.config import Config, load_config
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.run import prepare_run, train_run
from rbc_warp.training.rollout import Draw
from rbc_warp.training.trainer import RbcTrainer


def play_iteration(trainer: RbcTrainer, iteration: int, keep_consumption: bool = False) -> None:
    """Play an iteration's episodes at its stage."""
    trainer.set_iteration(iteration)
    trainer.play(Draw(iteration), keep_consumption)


def learn(trainer: RbcTrainer, iteration: int) -> dict[str, dict[str, torch.Tensor]]:
    """Update every type that is due, from the last rollout."""
    return trainer._update_model_params(iteration)


def new_run(folder: Path, config: Config) -> RunDir:
    """Make a run below ``folder`` that nothing has trained yet."""
    run = RunDir.create(folder)
    prepare_run(run, config)
    return run


def trained_run(folder: Path, *overrides: str) -> RunDir:
    """Train configs/smoke.yaml in a new run below ``folder``."""
    config = load_config(Path(__file__).parents[1] / "configs" / "smoke.yaml", list(overrides))
    run = new_run(folder, config)
    train_run(run, config, "host", quiet=True)
    return run
