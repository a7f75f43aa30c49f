"""float32 and bfloat16 training reach the same rewards within noise: the same seeds, paired."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rbc_warp.config import load_config
from rbc_warp.economy import AGENT_TYPES
from rbc_warp.trainer import RbcTrainer

SMOKE = Path(__file__).parent.parent / "configs" / "smoke.yaml"
SEEDS = 12
T_95 = 2.82  # Student's quantile for 11 degrees of freedom, two-sided 95 % for three types together (Bonferroni)


def final_rewards(seed: int, precision: str) -> list[float]:
    """Mean rewards per type over the last ten iterations of smoke.yaml, twice as long."""
    overrides = [f"train.base_seed={seed}", f"train.precision={precision}", "train.num_episodes=80"]
    config = load_config(SMOKE, overrides)
    trainer = RbcTrainer(config, "host")
    rewards = []
    for iteration in range(config.train.num_episodes):
        trainer.train_iteration(iteration)
        trainer.update(iteration)
        if iteration >= config.train.num_episodes - 10:
            rewards.append([float(trainer.rewards(agent).mean()) for agent in AGENT_TYPES])
    return list(np.mean(rewards, axis=0))


@pytest.mark.slow
@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="this CPU has no bfloat16 products")
def test_precisions_reach_the_same_reward() -> None:
    single, half = (np.array([final_rewards(seed, p) for seed in range(SEEDS)]) for p in ("float32", "bfloat16"))
    difference = half - single
    mean, error = difference.mean(0), difference.std(0, ddof=1) / np.sqrt(SEEDS)
    for n, agent in enumerate(AGENT_TYPES):
        low, high = mean[n] - T_95 * error[n], mean[n] + T_95 * error[n]
        print(f"{agent}: float32 {single[:, n].mean():.5g}, bfloat16 minus float32 [{low:.3g}, {high:.3g}]")
        assert low <= 0.0 <= high, f"{agent}: the joint 95 % interval of the difference is [{low:.4g}, {high:.4g}]"
