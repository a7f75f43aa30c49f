"""Playing given actions: :func:`simulate`, on the reference, the host or the GPU."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from warp_drive.training.utils.data_loader import create_and_push_data_placeholders

from rbc_warp.config import Config, load_config
from rbc_warp.economy import reference
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.economy.parameters import Economy
from rbc_warp.errors import ActionError
from rbc_warp.warpdrive.env import RbcEnv, stage_table
from rbc_warp.warpdrive.wrapper import RbcEnvWrapper, choose_backend


def simulate(
    config: Config | Mapping[str, Any] | str | os.PathLike[str],
    actions: Mapping[str, np.ndarray],
    backend: str = "auto",
) -> dict[str, dict[str, np.ndarray]]:
    """Play given actions for whole episodes.

    Args:
        config: a :class:`~rbc_warp.config.schema.Config`, a mapping or the path of a YAML file.
        actions: index arrays, integers: ``consumer`` (E, T, I, J+2): units of each good, hours, employer;
            ``firm`` (E, T, J); ``government`` (E, T, 1). E episodes of T periods, I consumers, J firms.
        backend: 'auto', 'host', 'pycuda', or 'reference' (NumPy float64).

    Returns:
        Per type ``states`` (E, T, n, d) seen before each period, ``rewards`` (E, T, n), ``aux_array`` (consumers:
        (E, T, I, J) units consumed; firms: (E, T, J) units exported; government: empty) and ``final_states``
        (E, n, d). Money in currency units. float32, from the reference float64.

    Raises:
        ConfigError: the configuration is invalid. ActionError: arrays of another shape, or indices out of range.
        BackendError: the backend cannot run here.
    """
    config = config if isinstance(config, Config) else load_config(config)
    economy = Economy.from_config(config)
    checked = check_actions(economy, actions)
    if backend == "reference":
        return reference.rollout(economy, checked)
    return play(economy, checked, choose_backend(backend))


def check_actions(economy: Economy, actions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The actions as int32 arrays of the documented shapes."""
    if set(actions) != set(AGENT_TYPES):
        raise ActionError(f"actions has keys {sorted(actions)}; give exactly {', '.join(AGENT_TYPES)}")
    num_envs = len(np.atleast_1d(actions["consumer"]))
    periods = economy.num_periods
    checked = {}
    for agent in AGENT_TYPES:
        given, kind = np.asarray(actions[agent]), economy.agents[agent]
        shape = (num_envs, periods, kind.count, *([len(kind.head_sizes)] if len(kind.head_sizes) > 1 else []))
        if given.shape != shape or num_envs == 0:
            raise ActionError(f"actions[{agent!r}] has shape {given.shape}; this economy needs {shape}, E >= 1")
        if not np.issubdtype(given.dtype, np.integer):
            raise ActionError(f"actions[{agent!r}] is {given.dtype}; give integer indices into the grids")
        limits = np.asarray(kind.head_sizes)
        if (given < 0).any() or (given >= (limits if len(limits) > 1 else limits[0])).any():
            allowed = (limits - 1).tolist()
            raise ActionError(f"actions[{agent!r}] has indices outside its grids; allowed: 0 to {allowed}")
        checked[agent] = np.ascontiguousarray(given, dtype=np.int32)
    return checked


def make_envs(economy: Economy, num_envs: int, backend: str) -> RbcEnvWrapper:
    """Environments on a backend, reset, with WarpDrive's arrays for observations, actions and rewards."""
    env = RbcEnv(economy)
    wrapper = RbcEnvWrapper(env, num_envs=num_envs, env_backend=backend)
    wrapper.reset_all_envs()
    create_and_push_data_placeholders(
        env_wrapper=wrapper,
        action_sampler=None,
        policy_tag_to_agent_id_map=env.agent_ids,
        create_separate_placeholders_for_each_policy=True,
        push_data_batch_placeholders=False,
    )
    return wrapper


def set_stage(wrapper: RbcEnvWrapper, stage: reference.Stage) -> None:
    """Put the curriculum's values where the kernels read them."""
    data = wrapper.cuda_data_manager
    data.words.set(data.data_on_device_via_torch("stage"), stage_table(stage))
    data.words.send()


def observations(wrapper: RbcEnvWrapper) -> dict[str, torch.Tensor]:
    """Return the present observations of each type, (E, n, d): the public state, then the private one."""
    data = wrapper.cuda_data_manager.data_on_device_via_torch
    seen = {}
    for name, agent in wrapper.env.economy.agents.items():
        public = data("public_state").unsqueeze(1).expand(-1, agent.count, -1)
        private = [data(f"observations_{name}")] if agent.private.size else []
        seen[name] = torch.cat([public, *private], dim=-1)
    return seen


def play(
    economy: Economy, actions: Mapping[str, np.ndarray], backend: str, stage: reference.Stage = reference.DEFAULT_STAGE
) -> dict[str, dict[str, np.ndarray]]:
    """:func:`simulate` after its checks, at one stage of the curriculum."""
    wrapper = make_envs(economy, len(actions["firm"]), backend)
    set_stage(wrapper, stage)
    wrapper.reset_all_envs()
    data = wrapper.cuda_data_manager.data_on_device_via_torch
    history: dict[str, dict[str, list[torch.Tensor]]] = {
        agent: {"states": [], "rewards": [], "aux_array": []} for agent in AGENT_TYPES
    }
    for t in range(economy.num_periods):
        for agent, seen in observations(wrapper).items():
            history[agent]["states"].append(seen)
            placeholder = data(f"sampled_actions_{agent}")
            placeholder.copy_(torch.from_numpy(actions[agent][:, t]).reshape(placeholder.shape))
        wrapper.step_all_envs()
        for agent in AGENT_TYPES:
            history[agent]["rewards"].append(data(f"rewards_{agent}").clone())
        history["consumer"]["aux_array"].append(data("consumption").transpose(1, 2).clone())
        history["firm"]["aux_array"].append(data("exports").clone())
    result = {}
    for agent, final in observations(wrapper).items():
        stacked = {key: torch.stack(rows, dim=1).cpu().numpy() for key, rows in history[agent].items() if rows}
        result[agent] = {"aux_array": np.zeros(0, dtype=np.float32), **stacked, "final_states": final.cpu().numpy()}
    return result
