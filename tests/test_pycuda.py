"""The pycuda backend on a GPU, equal to the host. ``test_standin.py`` is for machines without one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from economies import make_economy, random_actions
from trainers import learn, play_iteration

from rbc_warp.config import Config, load_config
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.economy.reference import Stage
from rbc_warp.runs import metrics
from rbc_warp.training.rollout import Draw
from rbc_warp.training.trainer import RbcTrainer
from rbc_warp.warpdrive.simulation import play
from rbc_warp.warpdrive.wrapper import choose_backend, missing_for_pycuda

SETTINGS = {
    "agents": {
        "num_consumers": 17,
        "num_firms": 4,
        "consumer_reward_scale": 5,
        "firm_reward_scale": 30000,
        "government_reward_scale": 1000,
        "consumer_anneal_theta": {"anneal_on": True, "exp_decay_length_in_steps": 3},
        "firm_anneal_prices": {"anneal_on": True, "start": 1000, "increase_const": 250, "decrease_const": 250},
    },
    "world": {"maxtime": 5, "initial_wages": 22, "initial_stocks": 5, "interest_rate": 0.1},
    "train": {"batch_size": 6},
}
STAGE = Stage(theta_factor=0.25, consumer_multiplier=0.5, firm_multiplier=2.0)


def config(precision: str = "float32") -> Config:
    return load_config(SETTINGS, [f"train.precision={precision}"])


def trained(backend: str, precision: str, iterations: int) -> tuple[RbcTrainer, list[dict]]:
    trainer, records = RbcTrainer(config(precision), backend), []
    for iteration in range(iterations):
        play_iteration(trainer, iteration, keep_consumption=True)
        records.append(metrics.record(trainer.rollout, iteration, learn(trainer, iteration)))
    return trainer, records


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(100, 10), (17, 4), (1, 1), (1500, 33)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_gpu_steps_equal_the_host_s_bit_for_bit(size: tuple[int, int]) -> None:
    """The same operations in the same order, without contraction: not one bit differs."""
    economy = make_economy(*size, interest_rate=0.01, firm_reward_for_government_factor=0.0025)
    actions = random_actions(economy, num_envs=20, num_periods=economy.num_periods, seed=0)
    on_host, on_gpu = (play(economy, actions, backend, STAGE) for backend in ("host", "pycuda"))
    for agent in AGENT_TYPES:
        for key, expected in on_host[agent].items():
            np.testing.assert_array_equal(on_gpu[agent][key], expected, err_msg=f"{agent} {key}")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_draws_equal_the_host_s(dtype: torch.dtype) -> None:
    """From equal logits; those of two machines' matrix products differ in the last bits, and so may a draw in 10^5."""
    trainers = [RbcTrainer(config(), backend) for backend in ("host", "pycuda")]
    generator = torch.Generator().manual_seed(0)
    for iteration in range(3):
        drawn = []
        logits = {agent: torch.randn(trainers[0]._logits[agent].shape, generator=generator) for agent in AGENT_TYPES}
        for trainer in trainers:
            trainer.set_iteration(iteration)
            words = torch.tensor([7, iteration, 0, 0, 0, 0], dtype=torch.int32)
            trainer._data("draw_words").copy_(words)
            trainer.cuda_envs.reset_all_envs()
            trainer._sample_actions({agent: rows.to(trainer.device, dtype) for agent, rows in logits.items()})
            drawn.append(
                {agent: trainer._data(f"sampled_actions_{agent}").cpu() for agent in AGENT_TYPES}
                | {f"log {agent}": trainer._data(f"log_probabilities_batch_{agent}")[0].cpu() for agent in AGENT_TYPES}
            )
        for name, expected in drawn[0].items():
            assert torch.equal(drawn[1][name], expected), name


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gpu_rollouts_agree_with_the_host_s(precision: str) -> None:
    trainers = [RbcTrainer(config(precision), backend) for backend in ("host", "pycuda")]
    for trainer in trainers:
        trainer.set_iteration(4)
        trainer.play(Draw(4))
    first, second = trainers
    for agent in AGENT_TYPES:  # the first period's logits are of one state; later ones follow the draws
        differ = (first.rollout.actions(agent)[0] != second.rollout.actions(agent)[0].cpu()).float().mean()
        assert differ < (0.001 if precision == "float32" else 0.05), agent
        expected, got = (t._data(f"values_batch_{agent}")[0].cpu() for t in trainers)
        tolerance = 1e-4 if precision == "float32" else 0.03
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.gpu
def test_a_short_training_run_on_the_gpu() -> None:
    (first, on_host), (second, on_gpu) = (trained(backend, "float32", 3) for backend in ("host", "pycuda"))
    for losses in zip(*(record[0]["loss"].values() for record in (on_host, on_gpu)), strict=True):
        for name in ("policy_loss", "value_loss", "entropy", "gradient_norm"):
            assert losses[1][name] == pytest.approx(losses[0][name], rel=0.02, abs=1e-3), name
    repeated, again = trained("pycuda", "float32", 3)
    assert again == on_gpu  # the same seed on the same device
    for agent in AGENT_TYPES:
        assert torch.equal(repeated.models[agent].flat, second.models[agent].flat)
        assert torch.isfinite(second.models[agent].flat).all()
        assert not torch.equal(first.models[agent].flat, RbcTrainer(config(), "host").models[agent].flat)


@pytest.mark.gpu
def test_auto_takes_the_gpu_where_there_is_one() -> None:
    assert missing_for_pycuda() is None and choose_backend("auto") == "pycuda"


def test_long_rows_take_smaller_blocks() -> None:
    from rbc_warp.warpdrive.kernels import MOST_BLOCK_ROWS, SHARED_BYTES, RowBlock, loss_block

    assert loss_block(125, 12) == RowBlock(MOST_BLOCK_ROWS, MOST_BLOCK_ROWS * 12, 32 * 4 * (2 * 126 + 5 * 12 + 5))
    assert loss_block(30, 1).threads == 256  # more than one thread loads a row
    for num_actions in (30, 36, 125, 299, 1015, 4999, 20_000):
        block = loss_block(num_actions, 12)
        assert block.shared == block.rows * 4 * ((2 * (num_actions + 1) + 5 * 12 + 5) | 1)
        assert block.rows == 1 or block.shared <= SHARED_BYTES
        assert block.rows == MOST_BLOCK_ROWS or 2 * block.shared > SHARED_BYTES
        assert block.threads % 32 == block.threads % block.rows == 0 and block.threads >= block.rows
