"""One economy as a PettingZoo ``ParallelEnv``: every consumer, every firm and the government is an agent of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

from rbc_warp.config import Config
from rbc_warp.economy.agents import AgentType
from rbc_warp.errors import ActionError
from rbc_warp.interfaces.vector import VectorEnv, whole


class RbcParallelEnv(ParallelEnv):
    """One economy of :class:`~rbc_warp.interfaces.vector.VectorEnv`, agent by agent.

    Agents are ``consumer_0`` …, ``firm_0`` …, ``government_0``. An agent observes the public state, then its private
    one, raw: money in currency units, (4J+5,), (4J+6+J,), (4J+3,) float32. It acts by indices into its grids: consumers
    by units of each good, hours and employer (``MultiDiscrete``), the others by a joint choice (``Discrete``). Every
    info holds ``action_mask``, int8, for a ``MultiDiscrete`` a tuple with one mask for each head, as Gymnasium's
    ``sample(mask=…)`` takes them. The economy draws nothing at random: equal actions give equal episodes.
    """

    metadata = {"name": "rbc_warp", "render_modes": [], "is_parallelizable": True}
    render_mode = None

    def __init__(
        self,
        config: Config,
        backend: str = "auto",
        iteration: int | None = None,
        max_cycles: int | None = None,
    ):
        self.vector = VectorEnv(config, 1, backend, iteration)
        self.max_cycles = whole("max_cycles", self.vector.num_periods if max_cycles is None else max_cycles, least=1)
        self._places = {f"{name}_{n}": (name, n) for name, kind in self.vector.types.items() for n in range(kind.count)}
        self.possible_agents = list(self._places)
        self.agents: list[str] = []
        self._spaces = {name: action_space(kind) for name, kind in self.vector.types.items()}
        self.action_spaces = {agent: action_space(self.vector.types[name]) for agent, (name, _) in self._places.items()}
        self.observation_spaces = {agent: self._box(name) for agent, (name, _) in self._places.items()}

    def _box(self, name: str) -> spaces.Box:
        size = self.vector.economy.public.size + self.vector.types[name].private.size
        return spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def observation_space(self, agent: str) -> spaces.Box:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
        """Begin an episode. A seed seeds the action spaces, which alone draw."""
        if seed is not None:
            for number, space in enumerate(self.action_spaces.values()):
                space.seed(seed + number)
        self.vector.reset()
        self.agents = list(self.possible_agents)
        return self._observations(), self._infos()

    def step(
        self, actions: Mapping[str, Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]]:
        """Play one period; every living agent must act.

        Raises:
            ActionError: an agent is unknown or missing, an action is none of its space, or the episode has ended.
        """
        if not self.agents:
            raise ActionError("the episode has not begun or has ended: call reset() first")
        unknown = [agent for agent in actions if agent not in self._places]
        missing = [agent for agent in self.agents if agent not in actions]
        if unknown:
            raise ActionError(f"actions: no agent is named {unknown[0]!r}; there are {agent_names(self.vector.types)}")
        if missing:
            raise ActionError(f"actions: none for {missing[0]} and {len(missing) - 1} more; every agent acts")
        self.vector.step(self._joined(actions))
        rewards = {name: values[0].cpu().numpy() for name, values in self.vector.rewards.items()}
        ended = self.vector.period >= self.vector.num_periods
        cut = not ended and self.vector.period >= self.max_cycles
        acted = self.agents
        results = (
            self._observations(),
            {agent: float(rewards[name][n]) for agent, (name, n) in self._places.items()},
            dict.fromkeys(acted, ended),
            dict.fromkeys(acted, cut),
            self._infos(),
        )
        if ended or cut:
            self.agents = []
        return results

    def _joined(self, actions: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Actions by agent as arrays by type, (1, n, heads)."""
        joined = {}
        for name, kind in self.vector.types.items():
            rows = np.empty((1, kind.count, len(kind.head_sizes)), dtype=np.int64)
            for n in range(kind.count):
                row = np.asarray(actions[f"{name}_{n}"])
                if row.dtype.kind not in "iu" or row.size != rows.shape[2]:
                    raise ActionError(
                        f"actions['{name}_{n}'] is {row.dtype} of shape {row.shape}; its space is {self._spaces[name]}"
                    )
                rows[0, n] = row.reshape(-1)
            joined[name] = rows
        return joined

    def _observations(self) -> dict[str, np.ndarray]:
        seen = {name: self.vector.states(name)[0].cpu().numpy() for name in self.vector.types}
        return {agent: seen[name][n].copy() for agent, (name, n) in self._places.items()}

    def _infos(self) -> dict[str, dict[str, Any]]:
        masks = {name: action_mask(kind, self.vector.allowed[name].cpu().numpy())
                 for name, kind in self.vector.types.items()}  # fmt: skip
        return {agent: {"action_mask": masks[name]} for agent, (name, _) in self._places.items()}

    def render(self) -> None:
        """Nothing is drawn; ``python -m rbc_warp report`` draws runs."""

    def close(self) -> None:
        """Nothing is held that would have to be let go."""


def agent_names(types: Mapping[str, AgentType]) -> str:
    """Return the names of all agents in words, type by type."""
    return ", ".join(f"{name}_0 to {name}_{kind.count - 1}" for name, kind in types.items())


def action_space(kind: AgentType) -> spaces.Discrete | spaces.MultiDiscrete:
    """A fresh action space of a type."""
    return spaces.MultiDiscrete(kind.head_sizes) if len(kind.head_sizes) > 1 else spaces.Discrete(kind.head_sizes[0])


def action_mask(kind: AgentType, allowed: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
    """Return a mask of all heads, bool, as Gymnasium's spaces take it: int8, a tuple for several heads."""
    heads = tuple(np.split(allowed.astype(np.int8), np.cumsum(kind.head_sizes)[:-1]))
    return heads if len(heads) > 1 else heads[0]
