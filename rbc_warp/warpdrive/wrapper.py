"""WarpDrive's environment wrapper, and the backends: ``host`` on CPU threads, ``pycuda`` on an NVIDIA GPU."""

import functools
import importlib.util
import sys
from collections.abc import Mapping
from typing import Any

import torch
from warp_drive.env_wrapper import EnvWrapper
from warp_drive.managers.function_manager import CUDAFunctionFeed

from rbc_warp.config.shipped import IS_INSTALLED
from rbc_warp.economy.agents import AgentType
from rbc_warp.errors import BackendError, ConfigError, UserError
from rbc_warp.warpdrive.build import build_host
from rbc_warp.warpdrive.kernels import MOST_SHARED_BYTES, RbcReset, aligned, loss_block

BACKENDS = ("auto", "host", "pycuda")


def missing_for_pycuda() -> str | None:
    """Return the reason why the pycuda backend cannot run here, with the remedy; None where it can.

    Where there is a GPU, this takes hold of it and loads the kernels: only what runs is known to run.
    """
    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU; run on a machine with an NVIDIA GPU and a CUDA build of torch, or use host"
    if importlib.util.find_spec("pycuda") is None:
        return f"pycuda is not installed; run `{'pip install pycuda' if IS_INSTALLED else 'make setup-gpu'}`"
    return _fault_of_pycuda()


@functools.cache
def _fault_of_pycuda() -> str | None:
    """Take hold of the GPU and load the kernels; return why that failed, with the remedy."""
    try:
        importlib.import_module("rbc_warp.warpdrive.pycuda")
    except UserError as error:
        return str(error)
    except Exception as error:  # a pycuda that is installed may still be broken in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        anew = "" if IS_INSTALLED else " (delete .venv/.installed-gpu, `make setup-gpu`)"
        return f"pycuda or its driver does not work ({reason}); build pycuda anew on this machine{anew}"
    return None


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)


def choose_backend(name: str) -> str:
    """'host' or 'pycuda' for a requested name; 'auto' takes pycuda where it can run.

    The kernels of 'host' are built here, so that a missing compiler shows before anything is written.

    Raises:
        BackendError: the name is unknown, or pycuda cannot run here. BuildError: the host's kernels cannot be built.
    """
    if name not in BACKENDS:
        raise BackendError(f"--backend {name!r} is not known; choose one of {', '.join(BACKENDS)}")
    missing = None if name == "host" else missing_for_pycuda()
    if name == "pycuda" and missing:
        raise BackendError(f"--backend pycuda cannot run here: {missing}")
    if name == "auto" and missing and torch.cuda.is_available():
        _say_once(f"backend auto takes host, for pycuda cannot run here: {missing}")
    if name == "host" or missing:
        build_host()
        return "host"
    return "pycuda"


def check_rows(agents: Mapping[str, AgentType], backend: str) -> None:
    """Refuse rows of logits that are too long for the loss kernel on this machine's GPU.

    Raises:
        ConfigError: a row does not fit into a block's shared memory.
    """
    if backend != "pycuda":
        return
    most = MOST_SHARED_BYTES
    if torch.cuda.is_available():
        most = getattr(torch.cuda.get_device_properties(), "shared_memory_per_block_optin", most)
    for agent in agents.values():
        pitch = aligned(agent.num_actions + 1, torch.device("cuda"))
        needed = loss_block(agent.num_actions, len(agent.head_sizes), pitch).shared
        if needed > most:
            grids = " or ".join(f"agents.{name}_choices" for name in agent.choice_names)
            if agent.name == "consumer":
                grids = f"agents.consumption_choices ({agent.head_sizes[0]}) or lower agents.num_firms"
            raise ConfigError(
                f"{agent.num_actions} logits of a {agent.name} need {needed} bytes of a GPU block's shared memory, "
                f"which has at most {most}; shorten {grids}, or use --backend host"
            )


class RbcEnvWrapper(EnvWrapper):
    """WarpDrive's wrapper with our managers. ``env_backend``: 'host', 'pycuda', or 'cpu' for one Python environment."""

    def __init__(self, env_obj: Any, num_envs: int = 1, env_backend: str = "host", **unused: Any):
        super().__init__(env_obj=env_obj, env_backend="cpu")  # builds spaces, touches no device
        self.backend = env_backend
        if env_backend == "cpu":
            return
        # Any name but WarpDrive's own keeps it from building the samplers that our kernels replace.
        self.env_backend = f"rbc_{env_backend}"
        self.n_envs = env_obj.num_envs = num_envs
        self.blocks_per_env = 1
        sizes = {"num_agents": self.n_agents, "num_envs": num_envs, "blocks_per_env": 1}
        held = {"episode_length": self.episode_length, "shared": env_obj.shared_arrays, **sizes}
        if env_backend == "pycuda":
            from rbc_warp.warpdrive.pycuda import DeviceDataManager, RbcFunctionManager

            self.cuda_data_manager = DeviceDataManager(**held)
            self.cuda_function_manager = RbcFunctionManager(num_firms=env_obj.economy.num_firms, **sizes)
        else:
            from rbc_warp.warpdrive.host import HostDataManager, HostFunctionManager

            self.cuda_data_manager = HostDataManager(**held)
            self.cuda_function_manager = HostFunctionManager(**sizes)
            self.cuda_function_manager.initialize_default_functions()
        self.cuda_function_feed = CUDAFunctionFeed(self.cuda_data_manager)
        if not env_obj.initialize_step_function_context(
            cuda_data_manager=self.cuda_data_manager,
            cuda_function_manager=self.cuda_function_manager,
            cuda_step_function_feed=self.cuda_function_feed,
            step_function_name=f"Cuda{self.name}Step",
        ):
            raise BackendError("the step kernel could not be initialized; the log says why")
        self.env_resetter = RbcReset(self.cuda_function_manager)
        self.env_resetter.register_custom_reset_function(self.cuda_data_manager)

    @property
    def device(self) -> torch.device:
        return self.cuda_function_manager.device
