"""All environments of an economy at once, as the tensors that its kernels read and write.

For those who write their own training loop: nothing is copied, nothing is learned here. E environments, n agents of a
type, I consumers, J firms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from rbc_warp.config import Config
from rbc_warp.economy.curriculum import allowed_actions, theta_factor
from rbc_warp.economy.parameters import Economy
from rbc_warp.economy.reference import Stage
from rbc_warp.errors import ActionError, ConfigError
from rbc_warp.training.policy import Encoder
from rbc_warp.warpdrive.simulation import make_envs, set_stage
from rbc_warp.warpdrive.wrapper import choose_backend

PUBLIC = "public"
"""Key of the public state among the observations."""


class VectorEnv:
    """All environments of an economy at once.

    Every tensor that it returns is the economy's own memory, on the backend's device: the next step overwrites it, so
    ``clone()`` what is to be kept. Episodes have T periods and begin alike; all environments end together, and
    :meth:`reset` begins the next ones.

    Args:
        config: a validated configuration.
        num_envs: number of environments; by default ``train.batch_size``.
        backend: 'auto', 'host' or 'pycuda'.
        iteration: of the curriculum, whose stage is played; None: the stage after it, in which all is allowed.
        checks: whether the actions of every step are checked; on a GPU that waits for it.

    Raises:
        ConfigError: ``num_envs`` or ``iteration`` is out of range. BackendError: the backend cannot run here.
    """

    def __init__(
        self,
        config: Config,
        num_envs: int | None = None,
        backend: str = "auto",
        iteration: int | None = None,
        checks: bool = True,
    ):
        self.num_envs = whole("num_envs", config.train.batch_size if num_envs is None else num_envs, least=1)
        self.config, self.checks = config, checks
        self.economy = Economy.from_config(config)
        self.types = self.economy.agents  #: Agent types by name.
        self.num_periods = self.economy.num_periods
        self.backend = choose_backend(backend)
        self._envs = make_envs(self.economy, self.num_envs, self.backend)
        self.device = self._envs.device
        self.actions = {name: self._data(f"sampled_actions_{name}") for name in self.types}
        """Per type (E, n, heads) int32: the indices that the next step takes, in the order of the action arrays."""
        self.rewards = {name: self._data(f"rewards_{name}") for name in self.types}
        """Per type (E, n) float32: rewards of the last period."""
        self.observations = {PUBLIC: self._data("public_state")}
        """``public`` (E, 4J+3), which all agents see, and per type with a private state (E, n, its size), float32."""
        self.observations |= {
            name: self._data(f"observations_{name}") for name, agent in self.types.items() if agent.private.size
        }
        self.encoders = {
            name: Encoder(name, self.economy.public, agent.private, config.train.digit_representation_size)
            for name, agent in self.types.items()
        }
        self.allowed = {
            name: torch.ones(agent.num_actions, dtype=torch.bool, device=self.device)
            for name, agent in self.types.items()
        }
        """Per type (actions of all heads, one after the other), bool: what the stage allows."""
        self._tables = {name: _Heads(agent.head_sizes, self.device) for name, agent in self.types.items()}
        self._ends = torch.zeros(2, self.num_envs, dtype=torch.bool, device=self.device)
        self.set_iteration(iteration)
        self.period = self.num_periods  #: Periods played of the episode; T before the first reset.

    def _data(self, name: str) -> torch.Tensor:
        return self._envs.cuda_data_manager.data_on_device_via_torch(name)

    def set_iteration(self, iteration: int | None, multipliers: Mapping[str, float] | None = None) -> None:
        """Take the stage of an iteration of the curriculum, or the one after it: θ from the next reset on, and masks.

        Lagrange multipliers on final debt, by type, are those of a run's start where none are given.
        """
        last = self.config.train.num_episodes if iteration is None else whole("iteration", iteration, least=0)
        start = {name: agent.settings.noponzi_start for name, agent in self.types.items() if agent.penalty_scale}
        charged = {f"{name}_multiplier": value for name, value in (start | dict(multipliers or {})).items()}
        factor = 1.0 if iteration is None else theta_factor(self.config, last)
        set_stage(self._envs, Stage(factor, **charged))
        for name, agent in self.types.items():
            if iteration is not None or agent.is_frozen:
                self.allowed[name].copy_(torch.from_numpy(allowed_actions(self.config, self.economy, last)[name]))
            else:
                self.allowed[name].fill_(True)

    def reset(self) -> dict[str, torch.Tensor]:
        """Begin an episode in every environment; return ``observations``."""
        self._envs.reset_all_envs()
        self.period = 0
        self._ends.zero_()
        return self.observations

    def step(
        self, actions: Mapping[str, torch.Tensor | np.ndarray] | None = None
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Play one period in every environment.

        Args:
            actions: per type (E, n, heads), or (E, n) for a type with a single head, integers; None: what stands in
                ``self.actions``.

        Returns:
            ``observations``; ``rewards``; ``terminated`` and ``truncated`` (E,) bool, the latter always false; and
            ``consumption`` (E, I, J) and ``exports`` (E, J) in units.

        Raises:
            ActionError: an array is missing, of another shape or type, or holds indices out of range or not allowed;
                or the episodes have ended.
        """
        if self.period >= self.num_periods:
            what = "has not begun" if self.period == self.num_periods and not self._ends.any() else "has ended"
            raise ActionError(f"the episode {what}: call reset() first; an episode has {self.num_periods} periods")
        if actions is not None:
            self._take(actions)
        elif self.checks:
            for name, heads in self._tables.items():
                heads.check(name, self.actions[name], self.allowed[name])
        self._envs.step_all_envs()
        self.period += 1
        if self.period == self.num_periods:
            self._ends[0].fill_(True)
        info = {"consumption": self._data("consumption").transpose(1, 2), "exports": self._data("exports")}
        return self.observations, self.rewards, self._ends[0], self._ends[1], info

    def _take(self, actions: Mapping[str, torch.Tensor | np.ndarray]) -> None:
        """Copy given actions to where the step reads them."""
        if set(actions) != set(self.types):
            raise ActionError(f"actions has keys {sorted(map(str, actions))}; give exactly {', '.join(self.types)}")
        given: dict[str, torch.Tensor] = {}
        for name, slot in self.actions.items():
            try:
                value = torch.as_tensor(actions[name])
            except (TypeError, ValueError, RuntimeError) as error:
                raise ActionError(f"actions[{name!r}] is no array of numbers: {error}") from error
            if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
                raise ActionError(f"actions[{name!r}] is {value.dtype}; give integer indices into the grids")
            shapes = [tuple(slot.shape)] + ([tuple(slot.shape[:2])] if slot.shape[2] == 1 else [])
            if tuple(value.shape) not in shapes:
                raise ActionError(f"actions[{name!r}] has shape {tuple(value.shape)}; this economy needs {shapes[0]}")
            if self.checks:  # before 64-bit numbers are cut to 32
                self._tables[name].check(name, value.to(self.device).reshape(slot.shape), self.allowed[name])
            given[name] = value.reshape(slot.shape)
        for name, value in given.items():
            self.actions[name].copy_(value)

    def states(self, agent: str) -> torch.Tensor:
        """Return what a type sees, (E, n, d), public state first: a copy, in the layout of the dense rollouts."""
        kind = self.types[agent]
        public = self.observations[PUBLIC].unsqueeze(1).expand(-1, kind.count, -1)
        return torch.cat([public, self.observations[agent]], dim=-1) if kind.private.size else public.clone()

    def encoded(self, agent: str) -> torch.Tensor:
        """Return what a type's network sees, (E, n, inputs): a copy, scaled, with money and inventories as digits."""
        encoder, kind = self.encoders[agent], self.types[agent]
        public = encoder.encode_public(self.observations[PUBLIC]).unsqueeze(1).expand(-1, kind.count, -1)
        if not kind.private.size:
            return public
        return torch.cat([public, encoder.encode_private(self.observations[agent])], dim=-1)


class _Heads:
    """The action heads of a type, to check indices against."""

    def __init__(self, sizes: list[int], device: torch.device):
        self.sizes = torch.tensor(sizes, device=device)
        self.offsets = torch.tensor([0, *np.cumsum(sizes)[:-1]], device=device)

    def check(self, name: str, actions: torch.Tensor, allowed: torch.Tensor) -> None:
        """Raise an ActionError where an index (E, n, heads) is out of range or not allowed."""
        least, most = torch.aminmax(actions.flatten(0, 1), dim=0)
        if bool(((least < 0) | (most >= self.sizes)).any()):
            place = ((actions < 0) | (actions >= self.sizes)).nonzero()[0].tolist()
            limit = int(self.sizes[place[2]]) - 1
            raise ActionError(f"{_where(name, place)} is {int(actions[tuple(place)])}; allowed: 0 to {limit}")
        if bool(allowed.all()):
            return
        barred = ~allowed[self.offsets + actions]
        if bool(barred.any()):
            place = barred.nonzero()[0].tolist()
            first = int(self.offsets[place[2]])
            some = allowed[first : first + int(self.sizes[place[2]])].nonzero().flatten().tolist()
            raise ActionError(f"{_where(name, place)} is {int(actions[tuple(place)])}; the stage allows {some}")


def _where(name: str, place: list[int]) -> str:
    return f"actions[{name!r}][{', '.join(map(str, place))}]"


def whole(name: str, value: Any, least: int) -> int:
    """The value as an integer of at least so much."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ConfigError(f"{name} {value!r}: give a whole number of {least} or more")
    return int(value)
