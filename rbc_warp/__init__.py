"""rbc_warp: real-business-cycle economies with many strategic agents, on WarpDrive.

>>> config = load_config("configs/rbc.yaml")
>>> outcome = simulate(config, actions, backend="host")
>>> trainer = make_trainer(config)
>>> trainer.train()
>>> policies = load_policies("experiment/rbc/rollout-…", episode="latest")
>>> rollout, metrics = load_rollout("experiment/rbc/rollout-…"), load_metrics("experiment/rbc/rollout-…")
>>> env = vector_env(config, num_envs=128)  # tensors, for a training loop of one's own
>>> env = parallel_env(config)  # PettingZoo
>>> env = deviator_env("experiment/rbc/rollout-…", agent="firm_4")  # Gymnasium
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbc_warp.config import Config, load_config
from rbc_warp.errors import ConfigError, UserError, needs_warpdrive

if TYPE_CHECKING:
    from rbc_warp.interfaces.deviator import DeviatorEnv
    from rbc_warp.interfaces.parallel import RbcParallelEnv
    from rbc_warp.interfaces.vector import VectorEnv
    from rbc_warp.training.policy import Policy
    from rbc_warp.training.trainer import RbcTrainer

__all__ = [
    "Config",
    "ConfigError",
    "UserError",
    "__version__",
    "deviator_env",
    "load_config",
    "load_metrics",
    "load_policies",
    "load_rollout",
    "make_trainer",
    "parallel_env",
    "simulate",
    "vector_env",
]

__version__ = "0.1.0"

with contextlib.suppress(ImportError):  # WarpDrive imports gym, which would print that users should move on
    import gym_notices.notices

    gym_notices.notices.notices.clear()


def make_trainer(
    config: Config | Mapping[str, Any] | str | os.PathLike[str],
    backend: str = "auto",
    folder: str | os.PathLike[str] | None = None,
) -> RbcTrainer:
    """Make a WarpDrive trainer for an economy, ready for ``train()``.

    Args:
        config: a :class:`Config`, a mapping, the path of a YAML file, or a shipped one's name, such as "rbc".
        backend: 'auto', 'host' or 'pycuda'.
        folder: WarpDrive's ``save_dir`` for checkpoints and results.json; a temporary folder, gone with the trainer, by
            default. A run with all its files, which can be resumed and tested, is what ``run_training.py`` makes.

    Raises:
        ConfigError: the configuration is invalid.
        BackendError: the backend cannot run here.
    """
    with needs_warpdrive():
        from rbc_warp.training.trainer import RbcTrainer

    return RbcTrainer(load_config(config), backend, folder=None if folder is None else Path(folder))


def load_policies(run_dir: str | os.PathLike, episode: int | str = "latest") -> dict[str, Policy]:
    """Load the policies of a checkpoint, by type.

    ``policy.probabilities(states)`` takes raw states (…, d) and returns the probabilities of all heads, one after the
    other (…, actions).

    Raises:
        RunFileError: the folder or a policy file is missing, damaged, or of another economy.
        ConfigError: so is its hparams.yaml.
    """
    from rbc_warp.runs.folder import RunDir

    with needs_warpdrive():
        from rbc_warp.runs.run import load_policies as load

    run = RunDir(Path(run_dir))
    return load(run, load_config(run.hparams_path), episode)


def vector_env(
    config: Config | Mapping[str, Any] | str | os.PathLike[str],
    num_envs: int | None = None,
    backend: str = "auto",
    iteration: int | None = None,
    checks: bool = True,
) -> VectorEnv:
    """Make all environments of an economy at once, as torch tensors without copies, for a training loop of one's own.

    Args:
        config: a :class:`Config`, a mapping or the path of a YAML file.
        num_envs: environments; by default ``train.batch_size``.
        backend: 'auto', 'host' or 'pycuda'.
        iteration: of the curriculum, whose stage is played; by default all is allowed and felt.
        checks: whether the actions of every step are checked; on a GPU that waits for it.

    Raises:
        ConfigError: the configuration or an argument is invalid.
        BackendError: the backend cannot run here.
    """
    with needs_warpdrive():
        from rbc_warp.interfaces.vector import VectorEnv

    return VectorEnv(load_config(config), num_envs, backend, iteration, checks)


def parallel_env(
    config: Config | Mapping[str, Any] | str | os.PathLike[str],
    backend: str = "auto",
    iteration: int | None = None,
    max_cycles: int | None = None,
) -> RbcParallelEnv:
    """Make one economy as a PettingZoo ``ParallelEnv`` with agents ``consumer_0`` …, ``firm_0`` …, ``government_0``.

    Args:
        config, backend, iteration: as for :func:`vector_env`.
        max_cycles: periods after which an episode is cut; by default it has its own ``world.maxtime``.

    Raises:
        ConfigError: the configuration or an argument is invalid.
        BackendError: the backend cannot run here.
    """
    with needs_warpdrive():
        from rbc_warp.interfaces.parallel import RbcParallelEnv

    return RbcParallelEnv(load_config(config), backend, iteration, max_cycles)


def deviator_env(
    run: str | os.PathLike[str],
    agent: str,
    episode: int | str = "latest",
    backend: str = "auto",
    encoded: bool = False,
) -> DeviatorEnv:
    """Make a Gymnasium environment in which one agent of a saved run deviates, and all others keep playing as saved.

    Args:
        run: folder of a run.
        agent: ``consumer_0`` …, ``firm_0`` …, ``government_0``.
        episode: the checkpoint, whose policies and stage of the curriculum are played: an iteration or 'latest'.
        backend: 'auto', 'host' or 'pycuda'.
        encoded: whether the agent observes what its network sees, instead of its raw state.

    Raises:
        ConfigError: an argument names nothing in the run, or the agent's type is frozen. RunFileError: a file is
        missing or damaged. BackendError: the backend cannot run here.
    """
    with needs_warpdrive():
        from rbc_warp.interfaces.deviator import DeviatorEnv

    return DeviatorEnv(run, agent, episode, backend, encoded)


def __getattr__(name: str) -> object:
    # torch and WarpDrive, xarray and pandas load on first use
    if name == "simulate":
        with needs_warpdrive():
            from rbc_warp.warpdrive.simulation import simulate

        return simulate
    if name in ("load_metrics", "load_rollout"):
        from rbc_warp.analysis import rollouts

        return getattr(rollouts, name)
    raise AttributeError(f"module 'rbc_warp' has no attribute {name!r}")
