"""The economy as a WarpDrive environment: spaces, the data it keeps on the device, and its step.

Agents are numbered type by type. The public state, which everybody sees, stands once per environment; a consumer's and
a firm's WarpDrive observation is its private state, and a type without one observes the public state. Policies join the
two (``training/policy.py``).
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from gym.spaces import Discrete, MultiDiscrete
from warp_drive.utils.data_feed import DataFeed
from warp_drive.utils.gpu_environment_context import CUDAEnvironmentContext

from rbc_warp.economy import reference
from rbc_warp.economy.agents import FIRM_PENALTY_SCALE
from rbc_warp.economy.parameters import Economy
from rbc_warp.warpdrive import tables

STEP_ARGUMENTS = tables.names("STEP_ARRAYS")


class RbcEnv(CUDAEnvironmentContext):
    """One economy for WarpDrive. On the ``cpu`` backend, a step is one of ``reference.py``."""

    name = "Rbc"

    def __init__(self, economy: Economy, num_envs: int = 1):
        super().__init__()
        tables.check_layout(economy)
        self.economy = economy
        self.num_envs = num_envs
        self.episode_length = economy.num_periods
        self.timestep = 0
        first = np.cumsum([0, *(agent.count for agent in economy.agents.values())])
        self.num_agents = int(first[-1])
        self.agent_ids = {name: list(range(first[n], first[n + 1])) for n, name in enumerate(economy.agents)}
        spaces = {
            name: MultiDiscrete(agent.head_sizes) if len(agent.head_sizes) > 1 else Discrete(agent.head_sizes[0])
            for name, agent in economy.agents.items()
        }
        self.action_space = {i: spaces[name] for name, ids in self.agent_ids.items() for i in ids}
        self.observation_space = None  # set by EnvWrapper
        self.shared_arrays = {
            f"observations_{name}": "public_state" for name, agent in economy.agents.items() if not agent.private.size
        }
        """Second names of arrays: what a type without private state observes is the public state."""
        self._start = self._observations(economy.initial_public(), economy.initial_private())
        self._state: reference.State | None = None
        self.outcome: Mapping[str, Any] = {}
        """Pointers to which the step kernel writes, in place of the arrays of these names."""

    def _observations(self, public: np.ndarray, private: Mapping[str, np.ndarray]) -> dict[int, np.ndarray]:
        """Return observations by agent number."""
        seen: dict[int, np.ndarray] = {}
        for name, ids in self.agent_ids.items():
            rows = np.asarray(private.get(name, np.broadcast_to(public, (len(ids), len(public)))), dtype=np.float32)
            seen |= dict(zip(ids, rows, strict=True))
        return seen

    def reset(self) -> dict[int, np.ndarray]:
        """Starting observations by agent number."""
        self.timestep = 0
        self._state = None
        return self._start

    def get_data_dictionary(self) -> DataFeed:
        """Constants and working arrays that only kernels read. E environments, I consumers, J firms."""
        economy, num_envs = self.economy, self.num_envs
        num_consumers = economy.num_consumers
        feed = DataFeed()
        sizes = {name: getattr(economy, name) for name in ("num_consumers", "num_firms", "num_periods")}
        feed.add_data("sizes", tables.filled("SIZES", sizes, np.int32))
        feed.add_data("parameters", self._parameters())
        for name in ("consumption_choices", "work_choices", "firm_choices", "government_choices"):
            feed.add_data(name, np.ascontiguousarray(getattr(economy, name), dtype=np.float32))
        feed.add_data("hours", np.zeros((num_envs, num_consumers), dtype=np.float32))
        feed.add_data("employer", np.zeros((num_envs, num_consumers), dtype=np.int32))
        feed.add_data("spending", np.zeros((num_envs, num_consumers), dtype=np.float32))
        return feed

    def get_tensor_dictionary(self) -> DataFeed:
        """Arrays that torch reads or writes: the curriculum's values, where draws come from, and what happened."""
        economy = self.economy
        feed = DataFeed()
        start = economy.initial_public().astype(np.float32)
        feed.add_data("public_state", start, save_copy_and_apply_at_reset=True)
        feed.add_data("stage", stage_table(reference.DEFAULT_STAGE))
        feed.add_data("draw_words", np.zeros(len(tables.names("DRAW")), dtype=np.int32))
        shape = (self.num_envs, economy.num_firms, economy.num_consumers)
        feed.add_data("consumption", np.zeros(shape, dtype=np.float32))
        feed.add_data("exports", np.zeros(shape[:2], dtype=np.float32))
        feed.add_data("sales", np.zeros(shape[:2], dtype=np.float32))
        return feed

    def _parameters(self) -> np.ndarray:
        """The economy's parameters, under the names that they have there."""
        given = {"firm_penalty_scale": FIRM_PENALTY_SCALE}
        wanted = [name.lower() for name in tables.names("PARAMETERS")]
        given |= {name: float(getattr(self.economy, name)) for name in wanted if name not in given}
        return tables.filled("PARAMETERS", given, np.float32)

    def step(
        self, actions: dict[int, np.ndarray] | None = None
    ) -> tuple[dict[int, np.ndarray], dict[int, float], dict[str, bool], dict] | None:
        """Advances every environment by one period on the device; with ``actions``, one in NumPy."""
        if actions is None:
            feed = zip(STEP_ARGUMENTS, self.cuda_step_function_feed(STEP_ARGUMENTS), strict=True)
            self.cuda_step(
                *(self.outcome.get(name, pointer) for name, pointer in feed),
                block=self.cuda_function_manager.block,
                grid=self.cuda_function_manager.grid,
            )
            return None
        state = reference.initial_state(self.economy, 1) if self._state is None else self._state
        consumer, firm, government = (np.stack([actions[i] for i in ids])[None] for ids in self.agent_ids.values())
        state, outcome = reference.step(self.economy, state, consumer, firm, government)
        self._state = state
        self.timestep += 1
        observations = self._observations(state.public[0], {"consumer": state.consumer[0], "firm": state.firm[0]})
        rewards = np.concatenate([outcome.consumer_reward[0], outcome.firm_reward[0], outcome.government_reward])
        done = {"__all__": self.timestep >= self.episode_length}
        return observations, dict(enumerate(rewards)), done, {}


def stage_table(stage: reference.Stage) -> np.ndarray:
    """Return the curriculum's values as the kernels read them."""
    return tables.filled("STAGE", asdict(stage), np.float32)
