"""The pycuda backend on a GPU, equal to the host. ``test_standin.py`` is for machines without one; there, ``make
test-pycuda`` runs these tests too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from economies import GOLDEN, assert_recorded, golden
from gpu_kernels import KERNELS, SIZES, poisoned
from stops import Killed, assert_equal, content, kill_at
from trainers import learn, new_run, play_iteration, trained_run

from rbc_warp.config import Config, load_config
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.runs import metrics
from rbc_warp.runs.run import train_run
from rbc_warp.training.recorder import Recorder
from rbc_warp.training.rollout import Draw
from rbc_warp.training.trainer import RbcTrainer
from rbc_warp.warpdrive.simulation import play
from rbc_warp.warpdrive.wrapper import choose_backend, missing_for_pycuda

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.gpu
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
TINY = ["agents.num_consumers=5", "agents.num_firms=2", "agents.firm_training_start=0", "world.maxtime=3"]
TINY += ["agents.government_training_start=0", "train.batch_size=8", "train.num_episodes=4", "train.save_model_every=2"]
TINY += ["train.save_state_every=2", "train.save_dense_every=2", "train.log_every=1"]
TINY += [f"agents.{what}.anneal_on=false" for what in ("firm_anneal_prices", "firm_anneal_wages")]
TINY += ["agents.government_anneal_taxes.anneal_on=false"]
SMALL_RBC = [*TINY, "agents.firm_trials=6", "agents.government_trials=2"]


def config(precision: str = "float32") -> Config:
    return load_config(SETTINGS, [f"train.precision={precision}"])


def trained(backend: str, precision: str, iterations: int) -> tuple[RbcTrainer, list[dict]]:
    trainer, records = RbcTrainer(config(precision), backend), []
    for iteration in range(iterations):
        play_iteration(trainer, iteration, keep_consumption=True)
        records.append(metrics.record(trainer.rollout, iteration, learn(trainer, iteration)))
    return trainer, records


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_leave_what_the_host_s_do(kernel: str, size: tuple[int, int]) -> None:
    """Bit for bit, in memory that was full of NaN: both do the same operations in the same order, without contraction,
    with an exponential and a logarithm of our own. Only sums are in another order: a loss's statistics, a gradient's
    norm and what follows from it, and of layers whose columns fill no vector of the host's."""
    with poisoned():
        expected, found = (KERNELS[kernel](backend, size) for backend in ("host", "pycuda"))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        if kernel.startswith("adam") or name.endswith(("statistics", "sums")):
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-4, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert array.dtype != np.float32 or np.isfinite(array).all(), name
        assert array.dtype != np.int32 or (array < 2**31 - 1).all(), name


@pytest.mark.parametrize("name", GOLDEN)
def test_recorded_trajectories_are_reproduced(name: str) -> None:
    economy, actions, _ = golden(name)
    played = play(economy, actions, "pycuda")
    assert_recorded(name, played)
    on_host = play(economy, actions, "host")
    for agent in AGENT_TYPES:
        for key, expected in on_host[agent].items():
            np.testing.assert_array_equal(played[agent][key], expected, err_msg=f"{agent} {key}")


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


def test_a_short_training_run_on_the_gpu() -> None:
    (first, on_host), (second, on_gpu) = (trained(backend, "float32", 3) for backend in ("host", "pycuda"))
    for losses in zip(*(record[0]["loss"].values() for record in (on_host, on_gpu)), strict=True):
        for name in ("policy_loss", "value_loss", "entropy", "gradient_norm"):
            assert losses[1][name] == pytest.approx(losses[0][name], rel=0.02, abs=1e-3), name
    for agent in AGENT_TYPES:
        assert torch.isfinite(second.models[agent].flat).all()
        assert not torch.equal(first.models[agent].flat, RbcTrainer(config(), "host").models[agent].flat)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_seed_says_all_also_where_a_run_was_stopped(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All types learn, two of them from trials, in minibatches: three runs leave the same bytes."""
    settings, runs = load_config(ROOT / "configs" / "rbc.yaml", [*SMALL_RBC, f"train.precision={precision}"]), []
    for name in ("first", "second", "stopped"):
        runs.append(new_run(tmp_path / name, settings))
        if name == "stopped":
            with monkeypatch.context() as patched, pytest.raises(Killed):
                kill_at(patched, "save_state", 1, done=True)
                train_run(runs[-1], settings, "pycuda", quiet=True)
        train_run(runs[-1], settings, "pycuda", quiet=True, resume=name == "stopped")
    expected = content(runs[0])
    started = {agent: torch.load(runs[0].policy_path(agent, 0), weights_only=True) for agent in AGENT_TYPES}
    for agent, weights in started.items():
        ended = torch.load(runs[0].policy_path(agent, "latest"), weights_only=True)
        assert all(not torch.equal(ended[name], layer) for name, layer in weights.items() if "weight" in name), agent
    for run in runs[1:]:
        assert_equal(run, expected)


def test_best_responses_agree_with_the_host_s(tmp_path: Path) -> None:
    """Of one trained run; the products' sums differ in the last bits, and a draw in many thousands with them."""
    pytest.importorskip("scipy", reason="best responses need SciPy: make setup-gpu with MORE=scipy")
    import run_best_response

    run, found = trained_run(tmp_path / "host", *TINY, "train.precision=float32"), []
    shutil.copytree(tmp_path / "host", tmp_path / "pycuda")
    for backend in ("host", "pycuda"):
        folder = tmp_path / backend / run.path.name
        options = ["--backend", backend, "--quiet", "--verdict", "none", "--eval-episodes", "64", "--ep-strs", "latest"]
        assert run_best_response.main([str(folder), "3", *options]) == 0
        found.append(json.loads((folder / "best_response.json").read_text())["records"])
    assert found[0] and len(found[0]) == len(found[1])
    for expected, got in zip(*found, strict=True):
        for name in ("checkpoint", "agent", "method", "index", "repeat", "greedy", "settings"):
            assert got[name] == expected[name], name
        for name in ("before", "after"):
            assert got[name] == pytest.approx(expected[name], rel=0.02, abs=0.01), (name, expected, got)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_graphs_bring_what_calls_bring(precision: str) -> None:
    trainers = []
    for graphs in ("off", "auto"):
        overrides = [*SMALL_RBC, f"train.precision={precision}", f"train.graphs={graphs}"]
        settings = load_config(ROOT / "configs" / "rbc.yaml", overrides)
        trainers.append(RbcTrainer(settings, "pycuda", recorder=Recorder()))
        trainers[-1].train(0, 12)
    called, replayed = trainers
    assert not called.graphs.are_used and replayed.graphs.are_used == (replayed.device.type == "cuda")
    for agent in AGENT_TYPES:
        assert torch.equal(replayed.models[agent].flat, called.models[agent].flat), agent


def test_auto_takes_the_gpu_where_there_is_one() -> None:
    assert missing_for_pycuda() is None and choose_backend("auto") == "pycuda"
