"""The record of one iteration's episodes: the arrays that learning, metrics and files read.

T periods, E environments, n agents of a type, I consumers, J firms.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from warp_drive.managers.data_manager import CUDADataManager
from warp_drive.utils.data_feed import DataFeed

from rbc_warp.economy.parameters import Economy
from rbc_warp.training.losses import Batch, advantages_and_targets, standardize
from rbc_warp.training.policy import Encoder
from rbc_warp.training.processes import Processes

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

    def change_logits(self, period: int, logits: Mapping[str, torch.Tensor]) -> None:
        """Work on logits and values in place, per type (E·n, actions+1)."""

    def change_actions(self, period: int, actions: Mapping[str, torch.Tensor]) -> None:
        """Work on the drawn indices in place, per type (E, n, heads)."""


class Rollout:
    """The arrays of the last rollout: WarpDrive's own ``*_batch_<type>`` and, beside them, encoded states and flows.

    Args:
        economy: what is played.
        encoders: per type.
        manager: of the environments; gets the arrays that the sampler writes.
        num_envs: E.
        dtype: of encoded private states.
    """

    def __init__(
        self,
        economy: Economy,
        encoders: Mapping[str, Encoder],
        manager: CUDADataManager,
        num_envs: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.economy, self.encoders, self.num_envs = economy, encoders, num_envs
        self._array = manager.data_on_device_via_torch
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
        self.private = {
            name: zeros(periods, num_envs * agent.count, encoders[name].num_private, dtype=dtype)
            for name, agent in economy.agents.items()
        }
        """Per type (T, E·n, num_private) encoded private states."""
        self._exports, self._sales = zeros(periods, num_envs, firms), zeros(periods, num_envs, firms)
        self._consumption = zeros(0)

    def encode(self, public: torch.Tensor, private: Mapping[str, torch.Tensor]) -> None:
        """Put what agents see now into ``public`` (E, num_public) and, per type, ``private`` (E·n, num_private)."""
        public.copy_(self._encoder.encode_public(self._array("public_state")))
        for name, rows in private.items():
            if rows.shape[1]:
                rows.copy_(self.encoders[name].encode_private(self._array(f"observations_{name}").flatten(0, 1)))

    def note_observations(self, period: int) -> None:
        """Keep what agents see before a period, encoded and as it is."""
        self.encode(self.public[period], {name: rows[period] for name, rows in self.private.items()})
        for name in self.economy.agents:
            self._array(f"processed_observations_batch_{name}")[period].copy_(self._array(f"observations_{name}"))

    def note_outcome(self, period: int, keep_consumption: bool) -> None:
        """Keep what a period brought."""
        for name in self.economy.agents:
            self._array(f"rewards_batch_{name}")[period].copy_(self._array(f"rewards_{name}"))
        consumption = self._array("consumption")
        self._exports[period].copy_(self._array("exports"))
        torch.sum(consumption, dim=-1, out=self._sales[period])
        if keep_consumption:
            if not self._consumption.numel():
                self._consumption = consumption.new_zeros(self.economy.num_periods, *consumption.shape)
            self._consumption[period].copy_(consumption)

    @property
    def _encoder(self) -> Encoder:
        return next(iter(self.encoders.values()))

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
        scaled = rewards / self.economy.agents[agent].settings.reward_scale
        advantage, target = advantages_and_targets(scaled, value, gamma, gae_lambda)
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
