"""The real pycuda over the stand-in driver: equal to the host, in order, in any thread, and quiet at the end.

``make test-pycuda`` builds pycuda for it, and runs these tests and those of the GPU; ``standin.py`` says what stands in
for what.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import standin
import torch
from test_pycuda import config, trained
from trainers import trained_run

import run_best_response
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.runs.folder import find_runs
from rbc_warp.training.device_path import DevicePath, count_iteration
from rbc_warp.training.recorder import Recorder
from rbc_warp.training.rollout import Draw
from rbc_warp.training.trainer import RbcTrainer
from rbc_warp.warpdrive import host
from rbc_warp.warpdrive.wrapper import choose_backend

pytestmark = [pytest.mark.standin, pytest.mark.skipif(not standin.IS_HERE, reason="run by make test-pycuda")]
ROOT = Path(__file__).parents[1]
# autograd: the same torch on both backends, so that whole runs can be compared bit by bit.
RUN = ["agents.firm_training_start=0", "agents.government_training_start=0", "agents.num_consumers=5"]
RUN += ["agents.num_firms=2", "train.num_episodes=4", "train.learner=autograd", "train.precision=float32"]
RUN += ["train.save_model_every=2", "train.save_state_every=2", "world.maxtime=3", "train.batch_size=4"]


@pytest.fixture(autouse=True)
def products_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network in one kernel on the host: on a GPU torch multiplies, and adds rows up in another order than that."""
    monkeypatch.setattr(host.HostFunctionManager, "network", lambda *unused: None)


def launches(name: str) -> int:
    return standin.driver().standin_count(name.encode())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_equals_the_host(precision: str) -> None:
    (first, on_host), (second, on_gpu) = (trained(backend, precision, 3) for backend in ("host", "pycuda"))
    assert second.backend == "pycuda" and type(second.cuda_envs.cuda_data_manager).__name__ == "DeviceDataManager"
    for agent in AGENT_TYPES:
        for array in ("actions", "states", "rewards", "aux"):
            assert torch.equal(getattr(second.rollout, array)(agent), getattr(first.rollout, array)(agent)), array
        # but for the order in which torch adds up the gradients of columns that fill no vector
        torch.testing.assert_close(second.models[agent].flat, first.models[agent].flat, rtol=0.0, atol=2e-6)
    for expected, got in zip(on_host, on_gpu, strict=True):
        assert got["reward"] == expected["reward"] and got["economy"] == expected["economy"]
    assert launches("CudaRbcStep") > 0
    assert launches("cuMemAlloc_v2") == launches("cuMemcpyHtoD_v2") == launches("cuMemcpyDtoH_v2") == 0


# Order and capture


@pytest.fixture
def path() -> Iterator[DevicePath]:
    """Entered, it counts, and the stand-in learns what memory torch's operations use."""
    path = DevicePath()
    standin.driver().standin_knows_memory(1)
    yield path
    standin.driver().standin_knows_memory(0)


@pytest.mark.parametrize("precision, operations", [("float32", 362), ("bfloat16", 400)])
def test_a_published_iteration_asks_no_more_of_the_device(precision: str, operations: int) -> None:
    counts = standin.published_counts(precision)
    assert counts["operations"] <= operations, "fewer is better: lower the figure here and in docs/gpu.md"
    assert (counts["launches"], counts["uploads"], counts["readbacks"]) == (134, 1, 0)


def test_torch_s_operations_and_launches_are_in_order(path: DevicePath) -> None:
    from rbc_warp.warpdrive.pycuda import GPU

    with path:
        trainer = RbcTrainer(config(), "pycuda", recorder=Recorder())
    counted = count_iteration(trainer, path)
    periods, passes = trainer.economy.num_periods, trainer.settings.train.ppo_num_updates
    assert counted["launches"] >= 1 + 2 * periods + passes and counted["operations"] > 100
    assert counted["uploads"] == 1 and counted["readbacks"] == 0
    side = standin.SideStream()
    with path:
        side.wait_stream(GPU.stream)
        with standin.on_stream(side):  # torch's current stream is another one: events order what is ours
            trainer.set_iteration(1)
            trainer.play(Draw(1))
        GPU.stream.wait_stream(side)
        assert torch.isfinite(trainer.rollout.rewards("firm")).all()


def test_rollout_and_update_are_legal_under_capture(path: DevicePath) -> None:
    """Once an iteration's words are on the device, nothing waits, allocates by the driver or leaves the stream."""
    from rbc_warp.warpdrive.pycuda import GPU

    library = standin.driver()
    with path:
        trainer = RbcTrainer(config(), "pycuda", recorder=Recorder())
    count_iteration(trainer, path)
    ours, graph = ctypes.c_void_p(GPU.stream.cuda_stream), ctypes.c_void_p()
    with path:
        with GPU.current_here():
            library.cuStreamBeginCapture_v2(ours, 0)
        trainer.play(trainer.schedule.draw(1))
        for update in trainer.schedule.updates(1):
            trainer.update(update, 1)
        captured = library.standin_captured()
        with GPU.current_here():
            library.cuStreamEndCapture(ours, ctypes.byref(graph))
    assert standin.errors() == "" and captured > 3 * trainer.economy.num_periods


def test_the_stand_in_sees_what_is_wrong(path: DevicePath) -> None:
    from rbc_warp.warpdrive.pycuda import GPU

    library, faults = standin.driver(), []

    def fault() -> str:
        faults.append(standin.errors())
        library.standin_forget_errors()
        return faults[-1]

    with path:
        trainer = RbcTrainer(config(), "pycuda")
        trainer.play(Draw(0))
        assert standin.errors() == ""
        with standin.on_stream(standin.SideStream()):  # torch's own, and nobody waits for it
            trainer._data("values_batch_firm").zero_()
            assert "zero_ reaches a buffer that another stream may still use" in fault()
        GPU.stream.wait_stream(standin._current_stream())
        wait, GPU.stream.wait_stream = GPU.stream.wait_stream, lambda stream: None
        with standin.on_stream(standin.SideStream()):
            trainer._data("values_batch_firm").add_(0)  # which no step uses
            trainer.cuda_envs.step_all_envs()
            assert "CudaRbcStep launched on another stream than the one in use" in fault()
        GPU.stream.wait_stream = wait
        ours = ctypes.c_void_p(GPU.stream.cuda_stream)
        with GPU.current_here():
            library.cuStreamBeginCapture_v2(ours, 0)
            trainer.cuda_envs.step_all_envs()
            assert library.standin_captured() == 1 and fault() == ""
            trainer._data("draw_words").copy_(torch.zeros(6, dtype=torch.int32))
            assert "copy_ with main memory under capture" in fault()
            float(trainer._data("draw_words").sum())
            assert "_local_scalar_dense with main memory under capture" in fault()
            pointer, graph = ctypes.c_void_p(), ctypes.c_void_p()
            library.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(4))
            library.cuCtxSynchronize()
            assert "cuMemAlloc_v2 under capture" in standin.errors() and "cuCtxSynchronize under" in fault()
            library.cuStreamEndCapture(ours, ctypes.byref(graph))
        with pytest.raises(Exception, match="cuLaunchKernel"):
            GPU.launch("CudaRbcStep", (np.int32(1),), (128, 1, 1), (1, 1), 0)
        assert "CudaRbcStep got 4 bytes of parameters" in fault()


# Processes and threads


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import standin\n" + code]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


THREADS = """
import threading, numpy as np, torch
from economies import make_economy, random_actions
from rbc_warp.warpdrive.simulation import play
economy = make_economy(3, 2, num_periods=2)
actions = random_actions(economy, num_envs=2, num_periods=2, seed=0)
found = {}
def work(name):
    found[name] = play(economy, actions, "pycuda")["consumer"]["rewards"]
def in_a_thread(name):
    thread = threading.Thread(target=work, args=(name,))
    thread.start(); thread.join()
"""


TRAINER = """
from rbc_warp.training.trainer import RbcTrainer
from test_pycuda import config
left = RbcTrainer(config(), "pycuda")
left.train(0, 1)
"""


@pytest.mark.parametrize("order", ["in_a_thread('a'); work('b'); in_a_thread('c')", TRAINER + "in_a_thread('b')"])
def test_any_thread_may_come_first_and_the_end_is_quiet(order: str) -> None:
    """Also while a trainer with its kernels is left at the end."""
    result = python(THREADS + order + "\nassert len({rows.tobytes() for rows in found.values()}) == 1")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_another_gpu_than_torch_s_is_refused() -> None:
    code = "from rbc_warp.warpdrive.wrapper import choose_backend\nprint(choose_backend('auto'))\n"
    code += "try: choose_backend('pycuda')\nexcept Exception as error: print(error)"
    result = python(code, STANDIN_GPUS="2", CUDA_DEVICE="1")
    why = "pycuda cannot run here: WarpDrive chose the GPU 0000:01:00.0 (by CUDA_DEVICE or ~/.cuda_device), torch uses "
    why += "0000:00:00.0; unset the first, and choose a GPU by CUDA_VISIBLE_DEVICES"
    assert result.stdout == f"host\n--backend {why}\n" and result.returncode == 0
    assert result.stderr == f"backend auto takes host, for {why}\n"


def test_each_rank_counts_gpus_before_it_asks_for_its_own() -> None:
    code = "import os, torch\nfrom rbc_warp.training.processes import claim_gpu\nclaim_gpu()\n"
    code += "print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['RBC_WARP_OWN_GPU'], torch.cuda.device_count())"
    ranks = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "STANDIN_GPUS": "3"}
    assert python(code, **ranks).stdout == "1 True 1\n"


def test_two_ranks_equal_two_ranks_of_the_host(tmp_path: Path) -> None:
    found = []
    for backend in ("pycuda", "host"):
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", standin.__file__]
        words += ["run_training.py", "--config", "configs/smoke.yaml", "--experiment-dir", str(tmp_path / backend)]
        words += ["--backend", backend, "--threads", "1", "--quiet"]
        words += [part for value in RUN for part in ("--set", value)]
        result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert "stand-in" not in result.stderr and "PyCUDA" not in result.stderr, result.stderr
        (run,) = find_runs(tmp_path / backend)
        found.append({agent: torch.load(run.policy_path(agent, "latest"), weights_only=True) for agent in AGENT_TYPES})
    for agent in AGENT_TYPES:
        for name, weights in found[0][agent].items():
            assert torch.equal(weights, found[1][agent][name]), (agent, name)


def test_best_responses_equal_the_host_s(tmp_path: Path) -> None:
    run, found = trained_run(tmp_path / "host", *RUN), []
    shutil.copytree(tmp_path / "host", tmp_path / "pycuda")
    for backend in ("pycuda", "host"):
        folder = tmp_path / backend / run.path.name
        options = ["--backend", backend, "--threads", "1", "--quiet", "--verdict", "none", "--eval-episodes", "16"]
        options += ["--ep-strs", "latest"]
        assert run_best_response.main([str(folder), "3", *options]) == 0
        records = json.loads((folder / "best_response.json").read_text())["records"]
        found.append([record | {"seconds_per_iteration": None} for record in records])
    assert found[0] and found[0] == found[1]


def test_auto_takes_the_gpu() -> None:
    assert choose_backend("auto") == "pycuda"
