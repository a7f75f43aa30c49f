"""The device code of kernels.cu against the host's, bit for bit, under an emulation of CUDA blocks on CPU threads."""

from __future__ import annotations

import ctypes
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from trainers import adam_by_torch

from rbc_warp.config import load_config
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.training import losses
from rbc_warp.training.rollout import Draw
from rbc_warp.training.trainer import RbcTrainer
from rbc_warp.warpdrive import tables
from rbc_warp.warpdrive.build import HOST_FLAGS, SOURCES, find_host_compiler
from rbc_warp.warpdrive.host import HostFunction, HostFunctionManager
from rbc_warp.warpdrive.kernels import (
    LOSS_STATISTICS,
    SAMPLE_COLUMNS,
    Copy,
    Heads,
    Loss,
    Moments,
    advantages_and_targets,
)

EMULATION = Path(__file__).with_name("cuda_emulation.cpp")
THREADS = 64


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    target = tmp_path_factory.mktemp("emulation") / "kernels.so"
    flags = [flag for flag in HOST_FLAGS if flag not in ("-O3", "-std=c++17", "-fopenmp")]
    command = [find_host_compiler(), "-O1", "-std=c++20", "-pthread", *flags, f"-I{SOURCES}", str(EMULATION)]
    subprocess.run([*command, "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


class Emulated(HostFunction):
    """A kernel of kernels.cu behind the call that WarpDrive makes."""

    def __init__(self, emulator: ctypes.CDLL, name: str):
        address = ctypes.c_void_p.in_dll(emulator, f"emulate_{name}").value
        super().__init__(ctypes.CFUNCTYPE(None)(address), num_agents=0)

    def __call__(self, *arguments, block=None, grid=(1, 1), shared=0):
        converted = [self._CONVERSIONS[type(a)](a) if type(a) in self._CONVERSIONS else a for a in arguments]
        threads = block[0] if shared else THREADS  # WarpDrive's blocks on the host are no multiple of 32
        self._function(int(grid[0]), int(grid[1]), int(threads), *converted)


def rollout(trainer: RbcTrainer) -> dict[str, torch.Tensor]:
    """Everything that a rollout of the trainer leaves, poisoned beforehand."""
    names = [f"{name}_batch_{agent}" for agent in AGENT_TYPES for name in ("log_probabilities", "values", "rewards")]
    for name in names:
        trainer._data(name).fill_(torch.nan)
    trainer.set_iteration(3)
    trainer.play(Draw(3), keep_consumption=True)
    left = {name: trainer._data(name).clone() for name in names}
    left |= {f"{agent} actions": trainer.rollout.actions(agent).clone() for agent in AGENT_TYPES}
    left |= {f"{agent} states": trainer.rollout.states(agent).clone() for agent in AGENT_TYPES}
    left |= {f"{agent} inputs": trainer.rollout.private[agent].float() for agent in AGENT_TYPES}
    return left | {
        "consumption": trainer.rollout.aux("consumer").clone(),
        "exports": trainer.rollout.aux("firm").clone(),
        "sales": trainer.rollout.sales().clone(),
        "public inputs": trainer.rollout.public.clone(),
    }


@pytest.mark.parametrize("num_consumers, num_firms, precision", [(3, 2, "bfloat16"), (17, 4, None), (70, 33, None)])
def test_device_rollout_equals_host(
    emulator: ctypes.CDLL, num_consumers: int, num_firms: int, precision: str | None
) -> None:
    settings = {
        "agents": {
            "num_consumers": num_consumers,
            "num_firms": num_firms,
            "consumer_noponzi_start": 0.5,
            "firm_noponzi_start": 0.5,
            "government_counts_firm_reward": 1,
            "consumer_anneal_theta": {"anneal_on": True, "exp_decay_length_in_steps": 5},
            "firm_anneal_prices": {"anneal_on": True, "start": 1000, "increase_const": 200, "decrease_const": 200},
        },
        "world": {"maxtime": 3, "initial_stocks": 5, "interest_rate": 0.1, "initial_wages": 22},
        "train": {"batch_size": 2, "precision": precision or "float32"},
    }
    host, device = (RbcTrainer(load_config(settings), "host") for _ in range(2))
    device.env.cuda_step = Emulated(emulator, "CudaRbcStep")
    device.cuda_sample_controller._kernel = Emulated(emulator, "CudaRbcSample")
    device.rollout._encoder._kernel = Emulated(emulator, "CudaRbcEncode")
    device.cuda_envs.env_resetter._cuda_custom_reset = Emulated(emulator, "CudaRbcReset")
    expected, found = rollout(host), rollout(device)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize("gae_lambda", [1.0, 0.9])
@pytest.mark.parametrize("periods, num_envs, agents", [(5, 3, 70), (1, 2, 1)])
def test_returns_by_kernel_equal_the_plain_statement(
    emulator: ctypes.CDLL, periods: int, num_envs: int, agents: int, gae_lambda: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(periods, num_envs, agents, generator=generator) for _ in range(2))
    expected = losses.advantages_and_targets(rewards / 3.0, values, 0.99, gae_lambda)
    manager = HostFunctionManager(num_agents=agents, num_envs=num_envs)
    manager.initialize_default_functions()
    for _ in range(2):
        found = advantages_and_targets(manager, rewards, values, 3.0, 0.99, gae_lambda)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
        manager._functions["CudaRbcReturns"] = Emulated(emulator, "CudaRbcReturns")


@pytest.mark.parametrize("use_ppo", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_device_loss_equals_host(emulator: ctypes.CDLL, use_ppo: float, dtype: torch.dtype) -> None:
    heads = Heads([4, 17, 3], "cpu")  # two with numbers in registers, one without
    heads.allowed[5] = 0
    rows, generator = 45, torch.Generator().manual_seed(0)
    logits = torch.randn(rows, heads.num_actions + 1, generator=generator).to(dtype)
    sample = {
        "actions": torch.tensor([[0, 2, 1], [3, 0, 2], [1, 6, 0]]).repeat(rows // 3, 1).int(),
        "log_probability": -4.0 + torch.randn(rows, generator=generator),
        "advantage": torch.randn(rows, generator=generator),
        "target": torch.randn(rows, generator=generator),
        "value": torch.randn(rows, generator=generator),
    }
    weights = torch.tensor([0.1, 0.5, 0.25, 1.0, 1.0 / rows, use_ppo])
    manager = HostFunctionManager(num_agents=1, num_envs=1)
    expected, statistics = logits.clone(), torch.zeros(1, len(LOSS_STATISTICS))
    manager.loss(expected, Loss(heads, sample, weights, statistics))

    # In two passes, by two blocks that take several times as many rows as fit at once.
    pitch = logits.shape[1] + 3
    wide, parts = torch.full((rows, pitch), 7.0, dtype=dtype), torch.zeros(2, len(LOSS_STATISTICS))
    found = wide[:, :-3].copy_(logits)
    kernel = Emulated(emulator, "CudaRbcLoss")
    for part in (slice(0, 40), slice(40, rows)):
        arrays = [wide[part], *(sample[name][part] for name in SAMPLE_COLUMNS), weights, parts]
        logits_at, *rest = map(manager.pointer, arrays)
        sizes = [np.int32(size) for size in (part.stop - part.start, 8, len(heads.sizes))]
        heads_at = map(manager.pointer, (heads.offsets, heads.allowed))
        lie = np.int32(pitch), np.int32(dtype == torch.bfloat16)
        kernel(*sizes, *heads_at, logits_at, *lie, *rest, block=(64, 1, 1), grid=(2, 1), shared=1)
    assert torch.equal(found, expected) and (wide[:, -3:] == 0.0).all()
    np.testing.assert_allclose(parts.sum(0), statistics[0], rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups, agents, columns", [(3, 1, 128), (5, 17, 64), (1, 3900, 64), (2, 300, 37)])
def test_device_layers_equal_host(
    emulator: ctypes.CDLL, groups: int, agents: int, columns: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(groups * agents, columns, generator=generator).to(dtype) for _ in range(2))
    shared = torch.randn(groups, columns, generator=generator)
    x[0, 0], shared[0, 1], gradient[0, 2] = torch.nan, -x[0, 1], torch.inf  # the second: a sum that is 0
    manager, sizes = HostFunctionManager(num_agents=1, num_envs=1), [np.int32(agents), np.int32(columns)]
    is_rounded, sums = np.int32(dtype == torch.bfloat16), [torch.full((groups, columns), torch.nan) for _ in range(2)]
    active, masked = [x, x.clone()], [gradient, gradient.clone()]
    manager.add_relu(active[0], shared)
    manager.mask_and_sum(masked[0], active[0], sums[0])

    at = manager.pointer
    arguments = [np.int32(len(x)), *sizes, at(active[1]), is_rounded, at(shared)]
    Emulated(emulator, "CudaRbcAddRelu")(*arguments, grid=(-(-len(x) // (THREADS // 8)), 1))
    is_wide = columns % 4 == 0
    arguments = [*sizes, *map(np.int32, (columns, is_wide)), at(masked[1]), at(active[1]), is_rounded, at(sums[1])]
    Emulated(emulator, "CudaRbcMaskAndSum")(*arguments, grid=(groups, -(-columns // (128 if is_wide else 32))))
    for expected, found in (active, masked):
        np.testing.assert_array_equal(found.float(), expected.float())
    # torch adds up columns that fill no vector in another order.
    np.testing.assert_allclose(sums[1], sums[0], rtol=1e-4 if columns == 37 else 0, atol=0)


@pytest.mark.parametrize("size, max_norm, dtype", [((100, 10), 0.5, torch.bfloat16), ((1, 1), 0.0, torch.float32)])
def test_device_adam_takes_the_host_s_steps(
    emulator: ctypes.CDLL, size: tuple[int, int], max_norm: float, dtype: torch.dtype
) -> None:
    """Up to the order in which the gradient's norm is added up."""
    (hidden, outputs), first, num_private, inputs = size, 5, 3, 8
    gap = 2 * hidden
    count, generator = first + hidden * num_private + hidden + outputs, torch.Generator().manual_seed(0)
    start, manager = torch.randn(count, generator=generator), HostFunctionManager(num_agents=1, num_envs=1)
    table = {"weight1": 0.1, "weight2": 0.001, "log_beta1": np.log(0.9), "log_beta2": np.log(0.999)}
    settings = torch.from_numpy(tables.filled("ADAM", table | {"epsilon": 1e-8, "max_norm": max_norm}, np.float32))
    rate, left = torch.tensor(0.01), []
    for is_device in (False, True):
        numbers = torch.zeros(hidden * inputs + hidden + gap + outputs, dtype=dtype)
        copy = Copy(numbers, first, hidden, num_private, inputs, outputs, gap)
        parameter, mean, square, steps, norm = start.clone(), *torch.zeros(2, count), torch.zeros(()), torch.zeros(())
        for step in range(3):
            gradient = torch.randn(count, generator=torch.Generator().manual_seed(step))
            if not is_device:
                moments = Moments(steps, mean, square)
                adam_by_torch(manager, parameter, gradient, moments, rate, settings, norm, copy)
                continue
            squares = torch.full((32,), torch.nan)
            at, length = manager.pointer, np.int32(count)
            arguments = length, at(gradient), at(squares), at(steps)
            Emulated(emulator, "CudaRbcNorm")(*arguments, grid=(32, 1), block=(256, 1, 1), shared=1)
            vectors = map(at, (parameter, gradient, mean, square, squares, steps, rate, settings, norm))
            lies = map(np.int32, (first, num_private, inputs, hidden, outputs, gap))
            copied = at(numbers), np.int32(dtype == torch.bfloat16)
            Emulated(emulator, "CudaRbcAdam")(length, *vectors, *lies, *copied, grid=(-(-count // THREADS), 1))
        left.append((parameter, mean, square, steps, norm))
        expected = replace(copy, numbers=torch.zeros_like(numbers))
        expected.follow(parameter)
        assert torch.equal(numbers, expected.numbers)
    torch.testing.assert_close(left[1], left[0], rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("defines, races", [([], False), (["-DWITHOUT_BARRIERS"], True)])
def test_device_code_has_no_races(tmp_path: Path, defines: list[str], races: bool) -> None:
    program = tmp_path / "races"
    flags = [
        "-O1",
        "-g",
        "-std=c++20",
        "-pthread",
        "-ffp-contract=off",
        "-fsanitize=thread",
        "-DTHREADS",
        f"-I{SOURCES}",
    ]
    source = EMULATION.with_name("cuda_races.cpp")
    built = subprocess.run(
        [find_host_compiler(), *flags, *defines, str(source), "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "cannot find" in built.stderr:
        pytest.skip("the compiler has no thread sanitizer")
    assert built.returncode == 0, built.stderr
    result = subprocess.run([str(program)], capture_output=True, text=True, timeout=120, check=False)
    if "unexpected memory mapping" in result.stderr:
        pytest.skip("the thread sanitizer does not run under this kernel's address layout")
    assert ("data race" in result.stderr) == races, result.stderr[-2000:]
    assert (result.returncode != 0) == races
