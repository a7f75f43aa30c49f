"""The record of one iteration's episodes: the arrays that learning, metrics and files read.

T periods, E environments, n agents of a type, I consumers, J firms.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from warp_drive.utils.data_feed import DataFeed

from rbc_warp.economy.parameters import Economy
from rbc_warp.training import losses
from rbc_warp.training.losses import Batch, standardize
from rbc_warp.training.policy import Encoder
from rbc_warp.training.processes import Processes
from rbc_warp.warpdrive.kernels import Encoding, RbcEncoder, advantages_and_targets, aligned
from rbc_warp.warpdrive.wrapper import RbcEnvWrapper

# Streams of random numbers: training and evaluation never share a draw.
TRAINING_STREAM, EVALUATION_STREAM = 0, 1


@dataclass(frozen=True)
class Draw:
    """The place of a rollout's random numbers. Equal draws of equal policies give equal episodes."""

    iteration: int
    stream: int = TRAINING_STREAM
    greedy: bool = False
    first_environment: int = 0
    repeat: int = 0  #: Environments after which the draws begin again, so that the same episodes go on; 0: never.


class Intervention:
    """Change what some agents do while a rollout is played: their logits before the draw, or what was drawn."""

    repeats = False
    """Whether it asks the device for the same every time, in the same arrays, so that graphs can replay it."""

    def prepare(self) -> None:
        """Do what a replay cannot, before each rollout."""

    def change_logits(self, period: int, logits: Mapping[str, torch.Tensor]) -> None:
        """Work on logits and values in place, per type (E·n, actions+1)."""

    def change_actions(self, period: int, actions: Mapping[str, torch.Tensor]) -> None:
        """Work on the drawn indices in place, per type (E, n, heads)."""


class Rollout:
    """The arrays of the last rollout: WarpDrive's own ``*_batch_<type>`` and, beside them, encoded states and flows.

    Args:
        economy: what is played.
        encoders: per type.
        wrapper: the environments, E of them; its data manager gets the arrays that the sampler writes.
        dtype: of encoded private states.
        by_kernel: whether a kernel computes advantages, or ``losses.py`` itself.
    """

    def __init__(
        self,
        economy: Economy,
        encoders: Mapping[str, Encoder],
        wrapper: RbcEnvWrapper,
        dtype: torch.dtype,
        by_kernel: bool,
    ):
        self._kernels = wrapper.cuda_function_manager if by_kernel else None
        self.economy, self.num_envs, self._env = economy, wrapper.n_envs, wrapper.env
        num_envs, device, manager = wrapper.n_envs, wrapper.device, wrapper.cuda_data_manager
        self._pointer, self._array = manager.pointer, manager.data_on_device_via_torch
        periods, firms = economy.num_periods, economy.num_firms
        feed = DataFeed()
        for name, agent in economy.agents.items():
            for array in ("log_probabilities", "values"):
                feed.add_data(f"{array}_batch_{name}", np.zeros((periods, num_envs, agent.count), dtype=np.float32))
            if periods == 1:  # WarpDrive makes these for longer rollouts only
                seen = self._array(f"observations_{name}").shape
                feed.add_data(f"processed_observations_batch_{name}", np.zeros((1, *seen), dtype=np.float32))
        manager.push_data_to_device(feed, torch_accessible=True)

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.public = zeros(periods, num_envs, next(iter(encoders.values())).num_public)
        """(T, E, num_public) encoded public states."""
        widths = {name: encoder.num_private for name, encoder in encoders.items()}
        if by_kernel:
            widths = {name: aligned(width, device) for name, width in widths.items()}
        self.private = {
            name: zeros(periods, num_envs * agent.count, widths[name], dtype=dtype)
            for name, agent in economy.agents.items()
        }
        """Per type (T, E·n, num_private) encoded private states, for kernels filled up with zeros."""
        self._exports, self._sales = zeros(periods, num_envs, firms), zeros(periods, num_envs, firms)
        self._consumption = zeros(0)
        encoder = next(iter(encoders.values()))
        parts = [Encoding(self._array("public_state"), encoder.inputs(encoder.public))]
        self._private_types = [name for name, agent in economy.agents.items() if agent.private.size]
        for name in self._private_types:
            inputs = encoders[name].inputs(encoders[name].private)
            parts.append(Encoding(self._array(f"observations_{name}"), inputs))
        self._encoder = RbcEncoder(wrapper.cuda_function_manager, parts)

    def encode(self, public: torch.Tensor, private: Mapping[str, torch.Tensor]) -> None:
        """Put what agents see now into ``public`` (E, num_public) and, per type, ``private`` (E·n, num_private)."""
        encoded = [public, *(private[name] for name in self._private_types)]
        self._encoder.encode(encoded, [None] * len(encoded))

    def note_observations(self, period: int) -> None:
        """Keep what agents see before a period, encoded and as it is."""
        encoded = [self.public, *(self.private[name] for name in self._private_types)]
        copies = [self.public_states(), *(self.private_states(name) for name in self._private_types)]
        self._encoder.encode([rows[period] for rows in encoded], [rows[period] for rows in copies])

    @contextmanager
    def noting_outcome(self, period: int, keep_consumption: bool) -> Iterator[None]:
        """Let the step kernel write what a period brings into the period's slot."""
        slots = {f"rewards_{name}": self.rewards(name) for name in self.economy.agents}
        slots |= {"exports": self._exports, "sales": self._sales}
        if keep_consumption:
            if not self._consumption.numel():
                consumption = self._array("consumption")
                self._consumption = consumption.new_zeros(self.economy.num_periods, *consumption.shape)
            slots["consumption"] = self._consumption
        self._env.outcome = {name: self._pointer(slot[period]) for name, slot in slots.items()}
        yield
        self._env.outcome = {}

    # What there is to read.

    def rewards(self, agent: str) -> torch.Tensor:
        """Return rewards (T, E, n)."""
        return self._array(f"rewards_batch_{agent}")

    def private_states(self, agent: str) -> torch.Tensor:
        """Return the private part of what consumers or firms saw, (T, E, n, d)."""
        return self._array(f"processed_observations_batch_{agent}")

    def public_states(self) -> torch.Tensor:
        """Return the public state, (T, E, 1, d)."""
        return self._array("processed_observations_batch_government")

    def states(self, agent: str) -> torch.Tensor:
        """Return what a type saw, (T, E, n, d), public state first."""
        public = self.public_states()
        if not self.economy.agents[agent].private.size:
            return public
        private = self.private_states(agent)
        return torch.cat([public.expand(-1, -1, private.shape[2], -1), private], dim=-1)

    def actions(self, agent: str) -> torch.Tensor:
        """Return the indices drawn: (T, E, n, heads), or (T, E, n) for a type with a single head."""
        drawn = self._array(f"sampled_actions_batch_{agent}")
        return drawn if len(self.economy.agents[agent].head_sizes) > 1 else drawn.squeeze(-1)

    def aux(self, agent: str) -> torch.Tensor:
        """Return units consumed (T, E, I, J), if they were kept; units exported (T, E, J); else nothing."""
        if agent == "consumer":
            return self._consumption.transpose(2, 3)
        return self._exports if agent == "firm" else torch.zeros(0)

    def sales(self) -> torch.Tensor:
        """Return units that consumers bought of each firm, (T, E, J)."""
        return self._sales

    def batch(
        self,
        agent: str,
        gamma: float,
        gae_lambda: float,
        processes: Processes,
        index: int | None = None,
        chosen: torch.Tensor | None = None,
    ) -> Batch:
        """Return what an update of a type reads: of all its agents, of one (``index``), or of those ``chosen``.

        Advantages are standardized over all that are read, or for each agent, before some are chosen.
        """
        own_scale = self.economy.agents[agent].settings.own_scale
        rewards, value = self.rewards(agent), self._array(f"values_batch_{agent}")
        scale = self.economy.agents[agent].settings.reward_scale
        if self._kernels:
            advantage, target = advantages_and_targets(self._kernels, rewards, value, scale, gamma, gae_lambda)
        else:
            advantage, target = losses.advantages_and_targets(rewards / scale, value, gamma, gae_lambda)
        columns = {
            "private": self.private[agent].view(*rewards.shape, -1),
            "actions": self._array(f"sampled_actions_batch_{agent}"),
            "log_probability": self._array(f"log_probabilities_batch_{agent}"),
            "value": value,
            "target": target,
            "advantage": advantage,
        }
        if index is not None:
            columns = {name: column.narrow(2, index, 1).contiguous() for name, column in columns.items()}
        columns["advantage"] = standardize(columns["advantage"], processes, own_scale)
        if chosen is not None:
            columns = {name: column.index_select(2, chosen) for name, column in columns.items()}
        rows = {name: column.flatten(0, 2) for name, column in columns.items()}
        return Batch(public=self.public.flatten(0, 1), **rows)
