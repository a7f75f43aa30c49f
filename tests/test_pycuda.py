"""The pycuda backend: on a GPU, equal to the host; without one, everything up to the call of the driver.

Without a GPU a stand-in for pycuda keeps "device memory" in main memory and runs the host's build of each kernel when
ours is launched. What it cannot show is the device code itself; ``test_emulation.py`` and ``nvcc`` see to that.
"""

from __future__ import annotations

import ctypes
import importlib
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
from rbc_warp.warpdrive import build, host, tables
from rbc_warp.warpdrive import wrapper as backends
from rbc_warp.warpdrive.env import STEP_ARGUMENTS
from rbc_warp.warpdrive.kernels import (
    LOSS_KERNEL,
    LOSS_STATISTICS,
    THREADS_PER_BLOCK,
)
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


# With a GPU


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
def test_gpu_draws_equal_the_host_s() -> None:
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
            trainer._sample_actions({agent: rows.to(trainer.device) for agent, rows in logits.items()})
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


# Without a GPU


class Holder:
    """Something with an address, as pycuda's PointerHolderBase."""

    gpudata: int


class Launch(dict):
    """What a kernel was launched with."""


class FakeDriver:
    """Stands for ``pycuda.driver``: memory is main memory, and a kernel is the host's function of the same name."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.loaded: list[str] = []
        self.memory: dict[int, ctypes.Array] = {}
        self.library = host.load_library()

    def module(self) -> types.ModuleType:
        driver = types.ModuleType("pycuda.driver")
        device = types.SimpleNamespace(
            compute_capability=lambda: (9, 0),
            max_blocks_per_multiprocessor=32,
            max_threads_per_multiprocessor=2048,
            multiprocessor_count=132,
            max_threads_per_block=1024,
        )
        context = types.SimpleNamespace(push=lambda: None, pop=lambda: None, get_device=lambda: device)
        device.retain_primary_context = lambda: context
        names = {
            "init": lambda: None,
            "Device": type("Device", (), {"__new__": lambda cls, number: device, "count": staticmethod(lambda: 1)}),
            "Context": types.SimpleNamespace(get_device=lambda: device),
            "Error": RuntimeError,
            "PointerHolderBase": Holder,
            "mem_alloc": self.allocate,
            "memcpy_htod": lambda target, source: ctypes.memmove(target, source.ctypes.data, source.nbytes),
            "memcpy_dtoh": lambda target, source: ctypes.memmove(target.ctypes.data, source, target.nbytes),
            "module_from_file": self.load,
            "function_attribute": types.SimpleNamespace(MAX_DYNAMIC_SHARED_SIZE_BYTES="max_dynamic_shared"),
        }
        vars(driver).update(names)
        return driver

    def allocate(self, size: int) -> int:
        block = (ctypes.c_char * size)()
        self.memory[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def load(self, path: str) -> Any:
        self.loaded.append(path)
        return types.SimpleNamespace(get_function=self.kernel)

    def kernel(self, name: str) -> Callable[..., None]:
        function = getattr(self.library, name)

        def launch(*arguments: Any, block: tuple, grid: tuple, shared: int = 0) -> None:
            assert all(isinstance(a, np.int32 | int | Holder) for a in arguments), name
            assert all(type(number) is int for number in (*block, *grid, shared))
            self.launches.append(Launch(name=name, block=block, grid=grid, shared=shared, count=len(arguments)))
            converted = [
                ctypes.c_int32(int(a)) if isinstance(a, np.int32) else ctypes.c_void_p(getattr(a, "gpudata", a))
                for a in arguments
            ]
            if name == LOSS_KERNEL:  # the host's adds all rows up itself; the device's leaves a row for each block
                rows, heads, offsets, allowed, logits, *sample, loss, statistics = converted
                ctypes.memset(statistics, 0, 4 * len(LOSS_STATISTICS) * grid[0])
                function(rows, 1, logits, 0, heads, offsets, allowed, *sample, loss, statistics)
                return
            function(grid[0], 1, *converted)

        launch.set_attribute = lambda *_: self.launches.append(Launch(name="set_attribute"))  # type: ignore[attr-defined]
        return launch


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeDriver]:
    """The stand-in in place of pycuda, and our module on top of it; all gone afterwards."""
    if missing_for_pycuda() is None:
        pytest.skip("the real one is here")
    fake = FakeDriver()
    package = types.ModuleType("pycuda")
    package.__path__ = []  # type: ignore[attr-defined]
    compiler = types.ModuleType("pycuda.compiler")
    compiler.SourceModule = None  # type: ignore[attr-defined]
    package.driver = fake.module()  # type: ignore[attr-defined]
    for name, module in (("", package), (".driver", package.driver), (".compiler", compiler)):
        monkeypatch.setitem(sys.modules, f"pycuda{name}", module)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor, *_, **__: tensor.clone())
    monkeypatch.setattr(build, "build_device", lambda architecture: tmp_path / f"kernels-{architecture}.fatbin")
    monkeypatch.setattr(backends, "missing_for_pycuda", lambda: None)
    ours = importlib.import_module("rbc_warp.warpdrive.pycuda")
    monkeypatch.setattr(ours.RbcFunctionManager, "device", torch.device("cpu"))
    yield fake
    on_pycuda = "rbc_warp.warpdrive.pycuda|warp_drive.managers.pycuda_managers.*"
    on_pycuda += "|warp_drive.utils.(autoinit_pycuda|device_context|architecture_validate)"
    for name in [name for name in sys.modules if re.fullmatch(on_pycuda, name)]:
        del sys.modules[name]
    if hasattr(backends, "pycuda"):
        del backends.pycuda  # type: ignore[attr-defined]


def test_the_pycuda_path_plays_as_the_host_does(driver: FakeDriver) -> None:
    economy = make_economy(17, 4, interest_rate=0.01)
    actions = random_actions(economy, num_envs=5, num_periods=economy.num_periods, seed=0)
    got, expected = (play(economy, actions, backend, STAGE) for backend in ("pycuda", "host"))
    for agent in AGENT_TYPES:
        for key, array in expected[agent].items():
            np.testing.assert_array_equal(got[agent][key], array, err_msg=f"{agent} {key}")
    assert [Path(path).name for path in driver.loaded] == ["kernels-sm_90.fatbin"]
    steps = [launch for launch in driver.launches if launch["name"] == "CudaRbcStep"]
    assert len(steps) == 10
    for launch in steps:
        assert launch["grid"] == (5, 1) and launch["block"] == (THREADS_PER_BLOCK, 1, 1)
        assert launch["count"] == len(STEP_ARGUMENTS) and launch["shared"] == 4 * 4 * 4
    assert {launch["name"] for launch in driver.launches} == {"CudaRbcStep", "CudaRbcReset"}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_pycuda_path_trains_as_the_host_does(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    # On the GPU torch multiplies the matrices, and adds rows up in another order than the host's kernels.
    monkeypatch.setattr(host.HostFunctionManager, "network", lambda *unused: None)
    (first, on_host), (second, on_fake) = (trained(backend, precision, 3) for backend in ("host", "pycuda"))
    assert second.backend == "pycuda" and type(second.cuda_envs.cuda_data_manager).__name__ == "DeviceDataManager"
    for agent in AGENT_TYPES:
        for array in ("actions", "states", "rewards", "aux"):
            assert torch.equal(getattr(second.rollout, array)(agent), getattr(first.rollout, array)(agent)), (
                agent,
                array,
            )
        assert torch.equal(second.models[agent].flat, first.models[agent].flat), agent
    for expected, got in zip(on_host, on_fake, strict=True):
        assert got["reward"] == expected["reward"] and got["economy"] == expected["economy"]
    names = [launch["name"] for launch in driver.launches]
    assert names.count("CudaRbcSample") == 3 * 5 and names.count(LOSS_KERNEL) >= 3 * 3
    for launch in (launch for launch in driver.launches if launch["name"] == LOSS_KERNEL):
        assert launch["block"][0] in (1, 2, 4, 8, 16, 32) and launch["shared"] <= 48 * 1024


def test_more_agents_than_threads_fit_a_block(driver: FakeDriver) -> None:
    economy = make_economy(2000, 3, num_periods=1)
    actions = random_actions(economy, num_envs=1, num_periods=1, seed=0)
    got, expected = (play(economy, actions, backend) for backend in ("pycuda", "host"))
    np.testing.assert_array_equal(got["consumer"]["rewards"], expected["consumer"]["rewards"])
    assert all(launch["block"] == (THREADS_PER_BLOCK, 1, 1) for launch in driver.launches)


def test_long_rows_take_smaller_blocks(driver: FakeDriver) -> None:
    from rbc_warp.warpdrive.kernels import LOSS_ROWS_PER_BLOCK, SHARED_BYTES, loss_block

    assert loss_block(126, 12) == (LOSS_ROWS_PER_BLOCK, 32 * 4 * (2 * 126 + 12))
    for width in (31, 37, 126, 300, 1016, 5000, 20_000):
        rows, shared = loss_block(width, 12)
        assert shared == rows * 4 * (2 * width + 12)
        assert rows == 1 or shared <= SHARED_BYTES
        assert rows == LOSS_ROWS_PER_BLOCK or 2 * shared > SHARED_BYTES


def test_the_device_s_kernels_take_what_python_passes() -> None:
    """Counted in the source: the launches above go to the host's functions, which take two arguments more."""
    headers = {name: (build.SOURCES / name).read_text().replace("\\\n", " ") for name in ("economy.h", "heads.h")}
    kernels = (build.SOURCES / "kernels.cu").read_text()

    def count(declaration: str) -> int:
        return declaration.count(",") + 1

    one_type = re.search(r"#define RBC_SAMPLE_TYPE\(type\)(.*)", headers["heads.h"])[1]
    assert count(one_type) == 9 and tables.names("AGENT_TYPES") == list(AGENT_TYPES)
    loss = re.search(r"void CudaRbcLoss\(([^)]*)\)", kernels)[1]
    names = re.findall(r"(\w+)(?:,|$)", loss)
    expected = ["num_rows", "num_heads", "offsets", "allowed", "logits", "actions", "old_log_probability"]
    assert names == [*expected, "advantage", "target", "old_value", "loss", "block_statistics"]
    for name, macro in (("Step", "STEP"), ("Reset", "RESET"), ("Sample", "SAMPLE")):
        assert f"void CudaRbc{name}(RBC_{macro}_ARGUMENTS)" in kernels
