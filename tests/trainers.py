"""What tests of training share: one iteration, in its two halves, and a whole small run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rbc_warp.config import Config, load_config
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.run import prepare_run, train_run
from rbc_warp.training.rollout import Draw
from rbc_warp.training.trainer import RbcTrainer
from rbc_warp.warpdrive.host import HostFunctionManager
from rbc_warp.warpdrive.kernels import ALIGNED, Copy, Loss, Moments

TINY = [
    "agents.num_consumers=6",
    "agents.num_firms=2",
    "agents.firm_training_start=2",
    "agents.government_training_start=4",
    "agents.consumer_noponzi_eta=0.1",
    "agents.firm_noponzi_eta=0.1",
    "world.maxtime=4",
    "train.batch_size=4",
]
"""Settings of a run of moments in which every type learns."""


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


def adam_by_torch(
    _self: object,
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    moments: Moments,
    rate: torch.Tensor,
    settings: torch.Tensor,
    norm: torch.Tensor,
    copy: Copy | None,
) -> None:
    """The plain statement of ``cuda/adam.h`` and its two kernels, in place of ``Kernels.adam``."""
    weight1, weight2, log_beta1, log_beta2, epsilon, most = settings.unbind()
    norm.copy_(torch.linalg.vector_norm(gradient))
    steps = moments.steps.add_(1.0)
    scaled = gradient / torch.where(most > 0.0, ((norm + 1e-6) / most).clamp(min=1.0), 1.0)
    moments.mean.lerp_(scaled, weight1)
    moments.square.mul_(1.0 - weight2).addcmul_(weight2 * scaled, scaled)
    root = moments.square.sqrt() / (-torch.expm1(steps * log_beta2)).sqrt() + epsilon
    parameter.sub_(rate / -torch.expm1(steps * log_beta1) * (moments.mean / root))
    if copy is not None:
        copy.follow(parameter)


def as_a_gpu_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let learners on the host take their steps as on a GPU: the rate lies in the words."""
    monkeypatch.setattr(HostFunctionManager, "has_adam", True)
    monkeypatch.setattr(HostFunctionManager, "adam", adam_by_torch)


def as_a_gpu_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch multiply on the host, by factors that are filled up with zeros."""
    plain = HostFunctionManager.loss

    def loss(self: HostFunctionManager, logits: torch.Tensor, of: Loss) -> None:
        dense = logits.contiguous()
        plain(self, dense, of)
        outputs = logits.as_strided((len(logits), logits.stride(0)), (logits.stride(0), 1))
        outputs.copy_(torch.nn.functional.pad(dense, (0, outputs.shape[1] - dense.shape[1])))

    monkeypatch.setattr(HostFunctionManager, "network", lambda *unused: None)
    monkeypatch.setattr(HostFunctionManager, "loss", loss)
    monkeypatch.setitem(ALIGNED, "cpu", 8)
