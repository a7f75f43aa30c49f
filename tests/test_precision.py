"""float32 and bfloat16 training reach the same rewards within noise: the same seeds, paired."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from trainers import learn, play_iteration

from rbc_warp.config import load_config
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.training.trainer import RbcTrainer

SMOKE = Path(__file__).parent.parent / "configs" / "smoke.yaml"
SEEDS = range(100, 148)
STANDARD_ERRORS = 3.0  # a difference of 0 strays further once in 120 runs of this test


def final_rewards(seed: int, precision: str) -> list[float]:
    """Mean rewards per type over the last ten iterations of smoke.yaml, twice as long."""
    overrides = [f"train.base_seed={seed}", f"train.precision={precision}", "train.num_episodes=80"]
    config = load_config(SMOKE, overrides)
    trainer = RbcTrainer(config, "host")
    rewards = []
    for iteration in range(config.train.num_episodes):
        play_iteration(trainer, iteration)
        learn(trainer, iteration)
        if iteration >= config.train.num_episodes - 10:
            rewards.append([float(trainer.rollout.rewards(agent).mean()) for agent in AGENT_TYPES])
    return list(np.mean(rewards, axis=0))


@pytest.mark.slow
@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="this CPU has no bfloat16 products")
def test_precisions_reach_the_same_reward() -> None:
    single, half = (np.array([final_rewards(seed, p) for seed in SEEDS]) for p in ("float32", "bfloat16"))
    difference = half - single
    mean, error = difference.mean(0), difference.std(0, ddof=1) / np.sqrt(len(SEEDS))
    for n, agent in enumerate(AGENT_TYPES):
        shown = f"{agent}: bfloat16 minus float32 is {mean[n]:.4g} ± {error[n]:.4g} of {single[:, n].mean():.5g}"
        print(shown)
        assert abs(mean[n]) <= STANDARD_ERRORS * error[n], shown
