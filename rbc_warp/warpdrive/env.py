"""The economy as a WarpDrive environment: spaces, the data it keeps on the device, and its step.

Agents are numbered consumers first, then firms, then the government. The public state that everybody sees stands once
per environment, as the government's observation; a consumer's and a firm's observation is its private state. Policies
join the two (``policies.py``).
"""

from __future__ import annotations

import numpy as np
from gym.spaces import Discrete, MultiDiscrete
from warp_drive.utils.data_feed import DataFeed
from warp_drive.utils.gpu_environment_context import CUDAEnvironmentContext

from rbc_warp.economy import reference
from rbc_warp.economy.agents import FIRM_PENALTY_SCALE
from rbc_warp.economy.parameters import Economy
from rbc_warp.warpdrive.kernels import DRAW_WORDS

# The order in which the kernels index their tables (a test compares it with the built library).
SIZES = (
    "NUM_CONSUMERS",
    "NUM_FIRMS",
    "NUM_PERIODS",
    "NUM_CONSUMPTION_CHOICES",
    "NUM_WORK_CHOICES",
    "NUM_FIRM_ACTIONS",
    "NUM_GOVERNMENT_ACTIONS",
)
PARAMETERS = (
    "TECHNOLOGY",
    "BUDGET_DRIP",
    "INTEREST_RATE",
    "CRRA",
    "LABOR_FLOOR",
    "USE_IMPORTER",
    "IMPORTER_PRICE",
    "IMPORTER_QUANTITY",
    "BOOST_FIRM_REWARD_FACTOR",
    "FIRM_REWARD_FOR_GOVERNMENT_FACTOR",
    "CONSUMER_PENALTY_SCALE",
    "FIRM_PENALTY_SCALE",
)
STAGE = ("THETA_FACTOR", "CONSUMER_NOPONZI", "FIRM_NOPONZI")

STEP_ARGUMENTS = [
    "sizes",
    "parameters",
    "stage",
    "consumption_choices",
    "work_choices",
    "firm_choices",
    "government_choices",
    "observations_government",
    "observations_consumer",
    "observations_firm",
    "sampled_actions_consumer",
    "sampled_actions_firm",
    "sampled_actions_government",
    "rewards_consumer",
    "rewards_firm",
    "rewards_government",
    "consumption",
    "exports",
    "hours",
    "employer",
    "spending",
    "_done_",
    "_timestep_",
]


class RbcEnv(CUDAEnvironmentContext):
    """One economy for WarpDrive. On the ``cpu`` backend, a step is one of ``reference.py``."""

    name = "Rbc"

    def __init__(self, economy: Economy, num_envs: int = 1):
        super().__init__()
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
        private = economy.initial_private()
        self._start = self._by_agent(
            {"consumer": private["consumer"], "firm": private["firm"], "government": economy.initial_public()[None]}
        )
        self._state: reference.State | None = None

    def _by_agent(self, arrays: dict[str, np.ndarray]) -> dict[int, np.ndarray]:
        rows = {agent: zip(ids, arrays[agent].astype(np.float32), strict=True) for agent, ids in self.agent_ids.items()}
        return {i: row for pairs in rows.values() for i, row in pairs}

    def reset(self) -> dict[int, np.ndarray]:
        """Starting observations by agent number."""
        self.timestep = 0
        self._state = None
        return self._start

    def get_data_dictionary(self) -> DataFeed:
        """Constants and working arrays that only kernels read. E environments, I consumers, J firms."""
        economy, num_envs = self.economy, self.num_envs
        num_consumers, num_firms = economy.num_consumers, economy.num_firms
        feed = DataFeed()
        sizes = [num_consumers, num_firms, economy.num_periods]
        sizes += [len(table) for table in (economy.consumption_choices, economy.work_choices)]
        sizes += [len(table) for table in (economy.firm_choices, economy.government_choices)]
        feed.add_data("sizes", np.array(sizes, dtype=np.int32))
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
        feed.add_data("stage", np.array([1.0, 0.0, 0.0], dtype=np.float32))
        feed.add_data("draw_words", np.zeros(len(DRAW_WORDS), dtype=np.int32))
        shape = (self.num_envs, economy.num_firms, economy.num_consumers)
        feed.add_data("consumption", np.zeros(shape, dtype=np.float32))
        feed.add_data("exports", np.zeros(shape[:2], dtype=np.float32))
        return feed

    def _parameters(self) -> np.ndarray:
        economy = self.economy
        values = {
            "TECHNOLOGY": economy.technology,
            "BUDGET_DRIP": economy.budget_drip,
            "INTEREST_RATE": economy.interest_rate,
            "CRRA": economy.crra,
            "LABOR_FLOOR": economy.labor_floor,
            "USE_IMPORTER": float(economy.use_importer),
            "IMPORTER_PRICE": economy.importer_price,
            "IMPORTER_QUANTITY": economy.importer_quantity,
            "BOOST_FIRM_REWARD_FACTOR": economy.boost_firm_reward_factor,
            "FIRM_REWARD_FOR_GOVERNMENT_FACTOR": economy.firm_reward_for_government_factor,
            "CONSUMER_PENALTY_SCALE": economy.consumer_penalty_scale,
            "FIRM_PENALTY_SCALE": FIRM_PENALTY_SCALE,
        }
        return np.array([values[name] for name in PARAMETERS], dtype=np.float32)

    def step(
        self, actions: dict[int, np.ndarray] | None = None
    ) -> tuple[dict[int, np.ndarray], dict[int, float], dict[str, bool], dict] | None:
        """Advances every environment by one period on the device; with ``actions``, one in NumPy."""
        if actions is None:
            self.cuda_step(
                *self.cuda_step_function_feed(STEP_ARGUMENTS),
                block=self.cuda_function_manager.block,
                grid=self.cuda_function_manager.grid,
            )
            return None
        state = reference.initial_state(self.economy, 1) if self._state is None else self._state
        consumer, firm, government = (np.stack([actions[i] for i in ids])[None] for ids in self.agent_ids.values())
        state, outcome = reference.step(self.economy, state, consumer, firm, government)
        self._state = state
        self.timestep += 1
        observations = self._by_agent(
            {"consumer": state.consumer[0], "firm": state.firm[0], "government": state.public}
        )
        rewards = np.concatenate([outcome.consumer_reward[0], outcome.firm_reward[0], outcome.government_reward])
        done = {"__all__": self.timestep >= self.episode_length}
        return observations, dict(enumerate(rewards)), done, {}
