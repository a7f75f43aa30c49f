"""Parts of the benchmark that only a GPU has: single kernels of an iteration, many times in a graph, as training asks
for them, so that neither the host's time nor an event's is in them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from rbc_warp.training.trainer import RbcTrainer
from rbc_warp.warpdrive import tables
from rbc_warp.warpdrive.kernels import SAMPLE_COLUMNS, Loss, aligned

REPEATS = 20


def kernel_parts(trainer: RbcTrainer) -> dict[str, Callable[[], object]]:
    """Return, by name, what launches a kernel REPEATS times, from the second call on by a replay: for a period of all
    types, for a pass of the consumers, and a step of the firms' Adam (two kernels).

    A rollout must have been played. What they work on is theirs, but for the rollout's and the optimizer's.
    """
    kernels, device, dtype = trainer.cuda_envs.cuda_function_manager, trainer.device, trainer.precision
    learner, agent = trainer.learners["consumer"], trainer.economy.agents["consumer"]
    logits = trainer.forward(0)
    batch = trainer.rollout.batch("consumer", 0.99, 0.95, trainer.processes)
    rows, groups, width = len(batch.actions), len(batch.public), agent.num_actions + 1

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    given = {"clip": 0.1, "entropy_weight": 0.5, "last_head_entropy_weight": 0.5, "value_weight": 1.0}
    table = tables.filled("LOSS", given | {"row_weight": 1.0 / rows, "use_ppo": 1.0}, np.float32)
    sample = {name: getattr(batch, name) for name in SAMPLE_COLUMNS}
    statistics = torch.zeros_like(learner.sums)
    loss = Loss(learner.heads, sample, torch.from_numpy(table).to(device), statistics)
    outputs = normal(rows, aligned(width, device))[:, :width]
    hidden, activation = normal(rows, learner.policy.hidden), normal(rows, learner.policy.hidden)
    shared, sums = (torch.randn(groups, learner.policy.hidden, device=device) for _ in range(2))
    calls: dict[str, Callable[[], object]] = {
        "encode": lambda: trainer.rollout.note_observations(0),
        "sample": lambda: trainer.draw_actions(logits, 0),
        "step": trainer.cuda_envs.step_all_envs,
        "loss": lambda: kernels.loss(outputs, loss),
        "add_relu": lambda: kernels.add_relu(hidden, shared),
        "mask_and_sum": lambda: kernels.mask_and_sum(hidden, activation, sums),
        "adam": lambda: trainer.learners["firm"].optimizer.clipped_step(0.5),
    }

    def repeated(name: str, call: Callable[[], object]) -> Callable[[], object]:
        return lambda: trainer.graphs.run(("kernel", name), lambda: [call() for _ in range(REPEATS)])

    return {name: repeated(name, call) for name, call in calls.items()}
