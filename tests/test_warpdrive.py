"""WarpDrive is what runs here: its checker passes, its classes are subclassed, and nothing of it is changed."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from economies import actions_at, make_economy, random_actions
from trainers import learn, play_iteration
from warp_drive.env_cpu_gpu_consistency_checker import EnvironmentCPUvsGPU
from warp_drive.env_wrapper import EnvWrapper
from warp_drive.managers.data_manager import CUDADataManager
from warp_drive.managers.function_manager import CUDAEnvironmentReset, CUDAFunctionManager, CUDASampler
from warp_drive.training.trainers.trainer_a2c import TrainerA2C
from warp_drive.utils.gpu_environment_context import CUDAEnvironmentContext

from rbc_warp.config import load_config
from rbc_warp.economy import reference
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.training.trainer import RbcTrainer
from rbc_warp.warpdrive.env import STEP_ARGUMENTS, RbcEnv
from rbc_warp.warpdrive.host import HostDataManager
from rbc_warp.warpdrive.kernels import RbcReset
from rbc_warp.warpdrive.simulation import make_envs
from rbc_warp.warpdrive.wrapper import RbcEnvWrapper

WARPDRIVE_MODULES = (
    "warp_drive.env_wrapper",
    "warp_drive.managers.data_manager",
    "warp_drive.managers.function_manager",
    "warp_drive.training.trainers.trainer_a2c",
    "warp_drive.training.trainers.trainer_base",
    "warp_drive.training.utils.data_loader",
    "warp_drive.utils.gpu_environment_context",
)
CONFIG = {
    "agents": {"num_consumers": 6, "num_firms": 3},
    "world": {"maxtime": 3},
    "train": {"batch_size": 5, "precision": "float32"},
}


@pytest.mark.parametrize("size", [(12, 4), (1, 1)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_warpdrive_s_consistency_checker_passes(size: tuple[int, int]) -> None:
    economy = make_economy(*size, num_periods=7, interest_rate=0.1, firm_reward_for_government_factor=0.0025)
    checker = EnvironmentCPUvsGPU(
        dual_mode_env_class=RbcEnv,
        env_configs={"an open economy": {"economy": economy}},
        num_envs=3,
        num_episodes=2,
        gpu_env_backend="host",
        env_wrapper=RbcEnvWrapper,
        policy_tag_to_agent_id_map=RbcEnv(economy).agent_ids,
        create_separate_placeholders_for_each_policy=True,
    )
    checker.test_env_reset_and_step(consistency_threshold_pct=0.1, seed=None)


def test_the_consistency_checker_notices_another_economy() -> None:
    economy, other = (make_economy(5, 3, num_periods=4, budget_drip=drip) for drip in (0.01, 10.0))
    checker = EnvironmentCPUvsGPU(
        cpu_env_class=RbcEnv,
        cuda_env_class=type("OtherEnv", (RbcEnv,), {"__init__": lambda self, economy: RbcEnv.__init__(self, other)}),
        env_configs={"two economies": {"economy": economy}},
        num_envs=2,
        num_episodes=1,
        gpu_env_backend="host",
        env_wrapper=RbcEnvWrapper,
        policy_tag_to_agent_id_map=RbcEnv(economy).agent_ids,
        create_separate_placeholders_for_each_policy=True,
    )
    with pytest.raises(AssertionError, match="inconsistencies"):
        checker.test_env_reset_and_step(consistency_threshold_pct=0.1)


def test_everything_is_a_warpdrive_class() -> None:
    trainer = RbcTrainer(load_config(CONFIG), "host")
    wrapper = trainer.cuda_envs
    assert isinstance(trainer, TrainerA2C) and isinstance(wrapper, EnvWrapper)
    assert isinstance(wrapper.env, CUDAEnvironmentContext)
    assert isinstance(wrapper.cuda_data_manager, CUDADataManager)
    assert isinstance(wrapper.cuda_function_manager, CUDAFunctionManager)
    assert isinstance(wrapper.env_resetter, CUDAEnvironmentReset) and isinstance(wrapper.env_resetter, RbcReset)
    assert isinstance(trainer.cuda_sample_controller, CUDASampler)
    assert set(trainer.policies) == set(AGENT_TYPES)
    for agent in AGENT_TYPES:
        assert trainer.models[agent] is trainer.learners[agent].policy


def test_all_state_lives_in_the_data_manager() -> None:
    """What the step reads and writes is WarpDrive's arrays: setting them is setting the economy."""
    economy = make_economy(5, 3)
    wrapper = make_envs(economy, 4, "host")
    manager = wrapper.cuda_data_manager
    assert all(manager.device_data(name) is not None for name in STEP_ARGUMENTS)
    actions = dict(zip(AGENT_TYPES, actions_at(random_actions(economy, 4, 1, seed=0), 0), strict=True))
    public = manager.data_on_device_via_torch("observations_government")
    public[..., economy.public.prices] = 123.0
    for agent in AGENT_TYPES:
        array = manager.data_on_device_via_torch(f"sampled_actions_{agent}")
        array.copy_(torch.from_numpy(actions[agent]).reshape(array.shape))
    wrapper.step_all_envs()
    state = reference.initial_state(economy, 4)
    state.public[:, economy.public.prices] = 123.0
    after, outcome = reference.step(economy, state, *(actions[agent] for agent in AGENT_TYPES))
    pull = manager.pull_data_from_device
    np.testing.assert_allclose(pull("rewards_consumer"), outcome.consumer_reward, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pull("observations_firm"), after.firm, rtol=1e-5, atol=1.0)
    assert pull("_timestep_").tolist() == [1] * 4


def test_pulled_data_are_copies_and_device_can_be_reset() -> None:
    wrapper = make_envs(make_economy(5, 3), 2, "host")
    manager = wrapper.cuda_data_manager
    pulled = manager.pull_data_from_device("stage")
    pulled[:] = 77.0
    assert manager.pull_data_from_device("stage").tolist() == [1.0, 0.0, 0.0]
    manager.data_on_device_via_torch("stage").fill_(5.0)
    manager.data_on_device_via_torch("exports").fill_(5.0)
    manager.reset_device("stage")
    assert manager.pull_data_from_device("stage").tolist() == [1.0, 0.0, 0.0]
    manager.reset_device()
    assert not manager.pull_data_from_device("exports").any()


def test_start_values_and_their_copies_are_separate() -> None:
    wrapper = make_envs(make_economy(5, 3), 2, "host")
    manager = wrapper.cuda_data_manager
    start = manager._tensors["observations_firm_at_reset"].clone()
    manager.data_on_device_via_torch("observations_firm").fill_(-1.0)
    assert torch.equal(manager._tensors["observations_firm_at_reset"], start)


def test_nothing_is_copied_off_the_device_during_a_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = RbcTrainer(load_config(CONFIG), "host")
    play_iteration(trainer, 0)  # the first reset may be on the host, as in WarpDrive

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("data left the device")

    monkeypatch.setattr(HostDataManager, "pull_data_from_device", refuse)
    for name in ("numpy", "cpu", "item", "tolist"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    play_iteration(trainer, 1)


def test_reset_modes_are_warpdrive_s() -> None:
    wrapper = make_envs(make_economy(5, 3), 2, "host")
    with pytest.raises(ValueError, match="unknown reset mode 'sometimes'"):
        wrapper.env_resetter.reset_when_done(wrapper.cuda_data_manager, mode="sometimes")


def fingerprint() -> dict[str, Any]:
    """Every attribute of WarpDrive's modules and of the classes defined in them, by identity."""
    found: dict[str, Any] = {}
    for name in WARPDRIVE_MODULES:
        for key, value in vars(importlib.import_module(name)).items():
            found[f"{name}.{key}"] = value
            if inspect.isclass(value) and value.__module__.startswith("warp_drive"):
                found |= {f"{name}.{key}.{k}": v for k, v in vars(value).items() if not k.startswith("__")}
    return found


def test_nothing_is_patched_globally() -> None:
    before, cuda = fingerprint(), torch.Tensor.cuda
    trainer = RbcTrainer(load_config(CONFIG), "host")
    play_iteration(trainer, 0)
    learn(trainer, 0)
    after = fingerprint()
    assert before.keys() == after.keys()
    assert [name for name, value in before.items() if after[name] is not value] == []
    assert torch.Tensor.cuda is cuda
    if not torch.cuda.is_available():
        with pytest.raises((RuntimeError, AssertionError)):
            torch.zeros(1).cuda()  # the constructor's detour ends with the constructor


def test_importing_us_patches_nothing() -> None:
    """In a process of its own: WarpDrive before and after ours is imported."""
    script = (
        "import importlib, contextlib, io, torch\n"
        f"modules = {WARPDRIVE_MODULES!r}\n"
        "with contextlib.redirect_stderr(io.StringIO()):\n"
        "    loaded = [importlib.import_module(name) for name in modules]\n"
        "def look():\n"
        "    flat = {}\n"
        "    for module in loaded:\n"
        "        for key, value in vars(module).items():\n"
        "            flat[module.__name__, key] = value\n"
        "            if isinstance(value, type):\n"
        "                flat |= {(module.__name__, key, k): v for k, v in vars(value).items()}\n"
        "    return flat\n"
        "before, cuda = look(), torch.Tensor.cuda\n"
        "import rbc_warp.training.trainer, rbc_warp.warpdrive.simulation\n"
        "after = look()\n"
        "assert before.keys() == after.keys() and all(after[k] is v for k, v in before.items())\n"
        "assert torch.Tensor.cuda is cuda\n"
        "print('untouched')\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout == "untouched\n", result.stderr


def test_the_cpu_backend_is_the_reference() -> None:
    economy = make_economy(5, 3, num_periods=2)
    wrapper = RbcEnvWrapper(RbcEnv(economy), env_backend="cpu")
    wrapper.reset()
    drawn = random_actions(economy, 1, 2, seed=1)
    for t in range(2):
        consumer, firm, government = (rows[0] for rows in actions_at(drawn, t))
        given = dict(enumerate([*consumer, *firm, *government]))
        seen, rewards, done, _ = wrapper.step(given)
    assert done == {"__all__": True}
    expected = reference.rollout(economy, drawn)
    np.testing.assert_allclose(seen[0], expected["consumer"]["final_states"][0, 0, -2:], rtol=1e-6)
    np.testing.assert_allclose(seen[8], expected["government"]["final_states"][0, 0], rtol=1e-6)
    np.testing.assert_allclose(rewards[8], expected["government"]["rewards"][0, 1, 0], rtol=1e-9)


def test_an_unknown_reset_pool_or_constant_is_harmless() -> None:
    """Calls that WarpDrive makes of every manager, which our kernels do not need."""
    wrapper = make_envs(make_economy(5, 3), 2, "host")
    wrapper.init_reset_pool(seed=1)
    wrapper.cuda_function_manager.initialize_shared_constants(wrapper.cuda_data_manager, constant_names=["k"])
    assert callable(wrapper.cuda_function_manager.get_function("CudaRbcStep"))


def test_the_trainer_can_be_imported_first_without_the_notice_of_gym() -> None:
    code = "import sys, rbc_warp; assert 'torch' not in sys.modules; import rbc_warp.training.trainer"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
