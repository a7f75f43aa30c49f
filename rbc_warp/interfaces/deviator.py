"""One agent of a saved run deviates while all others draw from a checkpoint's policies: Gymnasium, and in batches.

The others play at the checkpoint's stage of the curriculum. Draws come from the seed of a reset alone, as many in each
period whatever the deviator does (common random numbers): what two ways to act bring on equal seeds is paired.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from rbc_warp.config import load_config
from rbc_warp.economy.agents import AgentType
from rbc_warp.economy.parameters import Economy
from rbc_warp.equilibrium.request import open_checkpoint
from rbc_warp.errors import ActionError, ConfigError
from rbc_warp.interfaces.parallel import action_mask, agent_names
from rbc_warp.interfaces.vector import PUBLIC, VectorEnv
from rbc_warp.runs.folder import RunDir
from rbc_warp.training.policy import Policy


class Deviators:
    """E environments, as tensors on the backend's device, in each of which the same agent of a run deviates.

    Args:
        run: folder of a run.
        agent: who deviates: ``consumer_0`` …, ``firm_0`` …, ``government_0``.
        episode: the checkpoint that all others play: an iteration or 'latest'.
        backend: 'auto', 'host' or 'pycuda'.
        num_envs: E.
        encoded: whether the deviator observes what its type's network sees, instead of raw states.

    Raises:
        ConfigError: an argument names nothing in the run, or the agent's type is frozen. RunFileError: a file is
        missing or damaged. BackendError: the backend cannot run here.
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        agent: str,
        episode: int | str = "latest",
        backend: str = "auto",
        num_envs: int = 1,
        encoded: bool = False,
    ):
        folder = RunDir(Path(run))
        config = load_config(folder.hparams_path)
        self.agent, self.encoded = agent, encoded
        self.name, self.index = _place(Economy.from_config(config).agents, agent)
        if not re.fullmatch(r"[0-9]+|latest", label := str(episode)):
            raise ConfigError(f"episode {episode!r} is no checkpoint; give an iteration or 'latest'")
        notes: list[str] = []
        checkpoint = open_checkpoint(folder, config, label, notes)
        for note in notes:
            warnings.warn(note, stacklevel=2)
        self.iteration = checkpoint.iteration  #: Of the curriculum.
        self.vector = VectorEnv(config, num_envs, backend, checks=False)
        self.vector.set_iteration(checkpoint.iteration, checkpoint.multipliers)
        self.num_envs, self.device, self.kind = num_envs, self.vector.device, self.vector.types[self.name]
        self.allowed = self.vector.allowed[self.name]
        """(actions of all heads, one after the other) bool: what the stage allows the deviator."""
        self.policies = {name: policy.to(self.device) for name, policy in checkpoint.policies.items()}
        """By type, what all draw from."""
        self._generator = torch.Generator(self.device)
        self._generator.seed()

    @property
    def ended(self) -> bool:
        """Whether the episodes have ended, all at once, after T periods."""
        return self.vector.period >= self.vector.num_periods

    def reset(self, seed: int | None = None) -> torch.Tensor:
        """Begin the next episodes; return :meth:`observe`. Equal seeds, for equal E, bring equal draws."""
        if seed is not None:
            self._generator.manual_seed(seed)
        self.vector.reset()
        self._draw()
        return self.observe()

    def step(self, actions: np.ndarray | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, bool]:
        """Play one period.

        Args:
            actions: indices into the deviator's grids, (E, heads), or (E,) where it has a single head.

        Returns:
            :meth:`observe`, the deviator's rewards (E,), and whether the episodes have ended.

        Raises:
            ActionError: ``actions`` is of another shape or type, or out of range; or the episodes have ended.
        """
        if self.ended:
            raise ActionError(f"the episode has not begun or has ended (T = {self.vector.num_periods}): reset() first")
        self.vector.actions[self.name][:, self.index] = self._checked(actions)
        _, rewards, *_ = self.vector.step()
        if not self.ended:
            self._draw()
        return self.observe(), rewards[self.name][:, self.index].clone(), self.ended

    def observe(self) -> torch.Tensor:
        """Return what the deviator sees, (E, d), public part first: a copy, raw or encoded."""
        public, private = self.vector.observations[PUBLIC], None
        if self.kind.private.size:
            private = self.vector.observations[self.name][:, self.index]
        if self.encoded:
            encoder = self.vector.encoders[self.name]
            public = encoder.encode_public(public)
            private = None if private is None else encoder.encode_private(private)
        return public.clone() if private is None else torch.cat([public, private], dim=-1)

    def saved_actions(self) -> torch.Tensor:
        """Return what the deviator's own saved policy draws in this period, (E, heads): a copy."""
        return self.vector.actions[self.name][:, self.index].clone()

    @torch.no_grad()
    def _draw(self) -> None:
        """Draw all agents' actions of the coming period, the deviator's among them, to where the step reads them."""
        for name, policy in self.policies.items():
            kind, slot = self.vector.types[name], self.vector.actions[name]
            uniform = torch.rand(slot.shape, generator=self._generator, device=self.device)
            logits = self._logits(policy, kind).masked_fill(~self.vector.allowed[name], -torch.inf)
            for head, rows in enumerate(logits.split(kind.head_sizes, dim=-1)):
                upper = (rows - rows.amax(dim=-1, keepdim=True)).exp().cumsum(dim=-1)  # of chances, to a factor
                slot[..., head] = (upper <= uniform[..., head, None] * upper[..., -1:]).sum(dim=-1)

    def _logits(self, policy: Policy, kind: AgentType) -> torch.Tensor:
        """Return the logits of all agents of a type, (E, n, actions)."""
        public = policy.encoder.encode_public(self.vector.observations[PUBLIC]).unsqueeze(1)
        private = policy.encoder.encode_private(self.vector.observations[kind.name]) if kind.private.size else public
        outputs = policy.encoded_outputs(public, private)
        return outputs[..., : policy.num_actions].expand(-1, kind.count, -1)

    def _checked(self, actions: np.ndarray | torch.Tensor) -> torch.Tensor:
        """The deviator's actions as a tensor (E, heads)."""
        try:
            given = torch.as_tensor(actions, device=self.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ActionError(f"{self.agent}: actions are no array of numbers: {error}") from error
        sizes = self.kind.head_sizes
        if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
            raise ActionError(f"{self.agent}: actions are {given.dtype}; give integer indices into the grids")
        if given.numel() != self.num_envs * len(sizes) or given.shape[:1] != (self.num_envs,):
            needed = (self.num_envs, len(sizes))
            raise ActionError(f"{self.agent}: actions have shape {tuple(given.shape)}; this environment needs {needed}")
        given = given.reshape(self.num_envs, len(sizes))
        for head, (allowed, column) in enumerate(zip(self.allowed.split(sizes), given.unbind(dim=1), strict=True)):
            fits = (column >= 0) & (column < len(allowed))
            fits &= allowed[column.clamp(0, len(allowed) - 1).long()]
            if not bool(fits.all()):
                env = int((~fits).nonzero()[0])
                some = f"0 to {len(allowed) - 1}" if allowed.all() else allowed.nonzero().flatten().tolist()
                raise ActionError(f"{self.agent}: actions[{env}, {head}] is {int(column[env])}; allowed: {some}")
        return given


class DeviatorEnv(gymnasium.Env):
    """One agent of a saved run as a Gymnasium environment; arguments and errors are those of :class:`Deviators`.

    It observes its own state, float32, and acts by indices into its grids, as in PettingZoo's form. The action space
    holds and samples what the stage allows, which ``action_mask`` in every info says, too. The reward is its own, per
    period; an episode is terminated after T periods. The seed of a reset seeds the others' draws: same seed, same
    actions, same trajectory.
    """

    metadata = {"render_modes": []}

    def __init__(
        self,
        run: str | os.PathLike[str],
        agent: str,
        episode: int | str = "latest",
        backend: str = "auto",
        encoded: bool = False,
    ):
        self.deviators = Deviators(run, agent, episode, backend, 1, encoded)
        self.action_space = _allowed_space(self.deviators.kind, self._info()["action_mask"])
        size = self.deviators.observe().shape[1]
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        seen = self.deviators.reset(int(self.np_random.integers(2**63)))
        return seen[0].cpu().numpy(), self._info()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Play one period.

        Raises:
            ActionError: the action is none of its space, or the stage does not allow it; or the episode has ended.
        """
        seen, rewards, ended = self.deviators.step(np.asarray(action)[None])
        return seen[0].cpu().numpy(), float(rewards[0]), ended, False, self._info()

    def _info(self) -> dict[str, Any]:
        return {"action_mask": action_mask(self.deviators.kind, self.deviators.allowed.cpu().numpy())}

    def saved_actions(self) -> np.ndarray | np.integer:
        """Return what the agent's own saved policy draws in this period, as ``step`` takes it."""
        drawn = self.deviators.saved_actions()[0].cpu().numpy().astype(np.int64)
        return drawn if len(drawn) > 1 else drawn[0]


class _Allowed:
    """What makes a space one of allowed actions."""

    mask: Any

    def sample(self, mask: Any = None, probability: Any = None) -> Any:
        return super().sample(self.mask if mask is None and probability is None else mask, probability)  # type: ignore[misc]

    def contains(self, x: Any) -> bool:
        heads = self.mask if isinstance(self.mask, tuple) else (self.mask,)
        return super().contains(x) and all(head[k] for head, k in zip(heads, np.atleast_1d(x), strict=True))  # type: ignore[misc]


class AllowedDiscrete(_Allowed, spaces.Discrete):
    """A ``Discrete`` of allowed actions."""


class AllowedMultiDiscrete(_Allowed, spaces.MultiDiscrete):
    """A ``MultiDiscrete`` of allowed actions."""


def _allowed_space(kind: AgentType, mask: Any) -> AllowedDiscrete | AllowedMultiDiscrete:
    """The action space of a type at a stage."""
    several = len(kind.head_sizes) > 1
    space = AllowedMultiDiscrete(kind.head_sizes) if several else AllowedDiscrete(kind.head_sizes[0])
    space.mask = mask
    return space


def _place(types: Mapping[str, AgentType], agent: str) -> tuple[str, int]:
    """An agent's type and its number there."""
    name, _, number = str(agent).rpartition("_")
    if name not in types or not re.fullmatch("0|[1-9][0-9]{0,8}", number) or int(number) >= types[name].count:
        raise ConfigError(f"agent {agent!r}: no agent has this name; there are {agent_names(types)}")
    if types[name].is_frozen:
        raise ConfigError(f"agent {agent!r}: the type is frozen in this run; choose one of another type")
    return name, int(number)
