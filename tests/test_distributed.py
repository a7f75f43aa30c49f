"""One run over several processes equals one over one process, up to the order of sums."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import run_training
from rbc_warp.commands.scaling import efficiency
from rbc_warp.config import load_config
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.errors import ConfigError
from rbc_warp.runs.episodes import read_episode
from rbc_warp.runs.folder import RunDir, find_runs
from rbc_warp.training.processes import Processes, claim_gpu, joined, visible_gpus

ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "configs" / "smoke.yaml"
SETTINGS = [
    "agents.num_consumers=6",
    "agents.num_firms=2",
    "agents.firm_training_start=0",
    "agents.government_training_start=0",
    "agents.consumer_noponzi_eta=0.1",
    "train.precision=float32",
    "train.save_model_every=3",
    "train.save_dense_every=4",
    "train.save_state_every=5",
]


def options(folder: Path, length: int) -> list[str]:
    words = ["--config", SMOKE, "--experiment-dir", folder, "--backend", "host", "--threads", 1, "--quiet"]
    sets = [*SETTINGS, f"train.num_episodes={length}"]
    return [str(word) for word in (*words, *(part for value in sets for part in ("--set", value)))]


def torchrun(*words: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *words]


def only_run(folder: Path) -> RunDir:
    (run,) = find_runs(folder)
    return run


def assert_close(run: RunDir, expected: RunDir, label: str) -> None:
    for agent in AGENT_TYPES:
        weights, others = (torch.load(each.policy_path(agent, label)) for each in (run, expected))
        for name in others:
            torch.testing.assert_close(weights[name], others[name], rtol=1e-4, atol=1e-5)


def flat(record: dict, prefix: str = "") -> dict[str, float]:
    leaves = {}
    for key, value in record.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves


# Parts of a batch and trials are of each process's own environments: with them two processes learn alike, not the same.
WHOLE = [
    part
    for key in ("consumer_minibatches", "firm_minibatches", "firm_trials", "government_trials")
    for part in ("--set", f"agents.{key}={int('minibatches' in key)}")
]


def test_two_processes_play_the_same_episodes_and_learn_the_same(tmp_path):
    words = torchrun("run_training.py", *options(tmp_path / "two", 4), *WHOLE)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished after 4 iterations") == 1  # the first process speaks for both
    assert run_training.main([*options(tmp_path / "one", 4), *WHOLE]) == 0
    two, one = only_run(tmp_path / "two"), only_run(tmp_path / "one")
    assert {path.name for path in two.path.glob("*.npz")} == {path.name for path in one.path.glob("*.npz")}
    for agent in AGENT_TYPES:
        for label, exact in (("0", True), ("final", False)):
            episode, expected = (read_episode(run.episode_path(label, agent)) for run in (two, one))
            np.testing.assert_array_equal(episode.actions, expected.actions)
            np.testing.assert_allclose(episode.states, expected.states, rtol=0 if exact else 1e-5)
            np.testing.assert_allclose(episode.rewards, expected.rewards, rtol=0 if exact else 1e-5)
            assert episode.aux_array.shape == expected.aux_array.shape
    assert_close(two, one, "3")
    for record, expected in zip(two.read_metrics(), one.read_metrics(), strict=True):
        assert flat(record) == pytest.approx(flat(expected), rel=2e-3, abs=1e-5)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted as Linux shows them")
def test_the_group_ends_with_the_run():
    """A thread of gloo's that outlives it can abort the process while the interpreter ends."""
    program = """
import torch
from pathlib import Path
from rbc_warp.config import load_config
from rbc_warp.training.processes import joined

def gloo():
    return [name for name in (p.read_text() for p in Path("/proc/self/task").glob("*/comm")) if "gloo" in name]

with joined(load_config({}), "host") as processes:
    torch.optim.Adam([torch.nn.Parameter(torch.ones(3))])
    assert processes.any(True) and gloo()
assert not gloo(), gloo()
"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    places = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, **places}, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr


def test_alone_every_exchange_is_the_identity():
    alone, tensor = Processes(), torch.ones(3)
    assert alone.sum(tensor) is tensor and alone.share("x") == "x" and alone.any(True) and not alone.any(False)
    assert torch.equal(alone.gather(tensor), tensor)
    assert alone.average({"iteration": 3, "reward": {"firm": 1.5}}) == {"iteration": 3, "reward": {"firm": 1.5}}


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with (
        pytest.raises(ConfigError, match="batch_size = 8 cannot be shared by 3 processes"),
        joined(load_config(SMOKE), "host"),
    ):
        pass


def test_each_process_of_a_machine_sees_its_own_gpu(monkeypatch):
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RBC_WARP_OWN_GPU", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    claim_gpu()
    assert visible_gpus() == ["6"] and os.environ["RBC_WARP_OWN_GPU"] == "True"
    claim_gpu()  # one GPU for two processes: nccl would refuse
    assert visible_gpus() == ["6"] and os.environ["RBC_WARP_OWN_GPU"] == "False"


@pytest.mark.slow
def test_a_shared_run_that_was_stopped_resumes_exactly(tmp_path):
    length = 200
    process = subprocess.Popen(torchrun("run_training.py", *options(tmp_path / "stopped", length)), cwd=ROOT)
    deadline = time.monotonic() + 120
    while not (tmp_path / "stopped").is_dir() or not any(run.has_state for run in find_runs(tmp_path / "stopped")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    stopped = only_run(tmp_path / "stopped")
    status = stopped.read_status()
    assert status.status == "interrupted" and 5 <= status.iteration < length
    words = ["run_training.py", "--resume", str(stopped.path), "--backend=host", "--threads=1", "--quiet"]
    subprocess.run(torchrun(*words), cwd=ROOT, check=True, capture_output=True)
    subprocess.run(torchrun("run_training.py", *options(tmp_path / "whole", length)), cwd=ROOT, check=True)
    whole = only_run(tmp_path / "whole")
    assert stopped.metrics_path.read_bytes() == whole.metrics_path.read_bytes()
    for agent in AGENT_TYPES:
        latest = [run.policy_path(agent, "latest").read_bytes() for run in (stopped, whole)]
        assert latest[0] == latest[1]


@pytest.mark.slow
def test_the_benchmark_reports_speed_and_efficiency():
    worker = ["--config", str(SMOKE), "--iterations=5", "--threads=1", "--backend", "host"]
    rows = efficiency((1, 2), worker)
    assert [row["processes"] for row in rows] == [1, 2]
    assert rows[0]["speedup"] == rows[0]["efficiency"] == 1.0
    assert rows[1]["efficiency"] == pytest.approx(
        rows[1]["iterations_per_second"] / rows[0]["iterations_per_second"] / 2
    )
