"""An economy as numbers: sizes, grids, parameters, starting values and the layout of its state.

Everything that runs an economy (``reference.py``, the CUDA and C++ kernels through ``env.py``) is built from one
:class:`Economy`; nothing in this file knows a framework.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from rbc_warp.config import AgentSettings, Config
from rbc_warp.economy.agents import (
    AGENT_TYPES,
    FIRM_CHOICE,
    GOVERNMENT_CHOICE,
    AgentType,
    Layout,
    agent_types,
    public_layout,
)

# Parameters that have the name of their key.
SAME_NAMES = ("technology", "budget_drip", "interest_rate", "labor_floor", "importer_price", "importer_quantity")
FIXED_ALPHAS = (0.2, 0.3, 0.4, 0.6, 0.8)


@dataclass(frozen=True)
class Economy:
    """One economy. Money in currency units, hours per quarter, goods in units; all arrays float64.

    Shapes: I consumers, J firms. ``consumption_choices`` (n,), ``work_choices`` (m,), ``firm_choices`` (k, 3) as
    price, wage, investment share; ``government_choices`` (g, 2) as income tax, corporate tax.
    """

    num_consumers: int
    num_firms: int
    num_periods: int
    consumption_choices: np.ndarray
    work_choices: np.ndarray
    firm_choices: np.ndarray
    government_choices: np.ndarray
    technology: float
    budget_drip: float
    interest_rate: float
    crra: float
    labor_floor: float
    use_importer: bool
    importer_price: float
    importer_quantity: float
    boost_firm_reward_factor: float  #: Weight of revenue added to a solvent firm's reward; 0 where the option is off.
    firm_reward_for_government_factor: float
    """Weight of the firms' rewards in the government's; 0 where the government counts consumers only."""
    consumer_penalty_scale: float
    initial_price: float
    initial_wage: float
    initial_inventory: float
    initial_consumer_budget: float
    initial_firm_budget: float
    theta: np.ndarray  #: (I,) disutility of an hour's work, before the curriculum's factor.
    capital: np.ndarray  #: (J,) starting capital.
    alpha: np.ndarray  #: (J,) labor's exponent in production.
    firm_one_hot_scale: float = 1.0  #: Size of the 1 in a firm's one-hot number where its network sees it.
    settings: Mapping[str, AgentSettings] = field(default_factory=dict)  #: Settings of each type's learning.

    @cached_property
    def agents(self) -> dict[str, AgentType]:
        """The agent types by name, in the order in which agents are numbered."""
        return agent_types(self)

    @cached_property
    def public(self) -> Layout:
        """The public state, which every agent sees."""
        return public_layout(self)

    def initial_public(self) -> np.ndarray:
        """Public state at the start of an episode, (4J+3,)."""
        state = np.zeros(self.public.size)
        state[self.public.prices] = self.initial_price
        state[self.public.wages] = self.initial_wage
        state[self.public.inventories] = self.initial_inventory
        return state

    def initial_private(self) -> dict[str, np.ndarray]:
        """Private states at the start, θ before the curriculum's factor: consumer (I, 2), firm (J, 3+J)."""
        consumer = np.stack([np.full(self.num_consumers, self.initial_consumer_budget), self.theta], axis=1)
        firm = np.column_stack(
            [np.full(self.num_firms, self.initial_firm_budget), self.capital, self.alpha, np.eye(self.num_firms)]
        )
        return {"consumer": consumer, "firm": firm}

    @classmethod
    def from_config(cls, config: Config) -> Economy:
        """The economy that a validated configuration describes."""
        agents, world, train = config.agents, config.world, config.train
        num_firms, num_consumers = agents.num_firms, agents.num_consumers
        return cls(
            num_consumers=num_consumers,
            num_firms=num_firms,
            num_periods=world.maxtime,
            consumption_choices=np.asarray(agents.consumption_choices, dtype=np.float64),
            work_choices=np.asarray(agents.work_choices, dtype=np.float64),
            firm_choices=_product(*agents.grids(FIRM_CHOICE)),
            government_choices=_product(*agents.grids(GOVERNMENT_CHOICE)),
            **{name: getattr(world, name) for name in SAME_NAMES},
            crra=world.crra_param,
            use_importer=bool(world.use_importer),
            boost_firm_reward_factor=train.boost_firm_reward_factor if train.should_boost_firm_reward else 0.0,
            firm_reward_for_government_factor=(
                agents.firm_reward_for_government_factor if agents.government_counts_firm_reward else 0.0
            ),
            consumer_penalty_scale=agents.consumer_penalty_scale,
            initial_price=world.initial_prices,
            initial_wage=world.initial_wages,
            initial_inventory=world.initial_stocks,
            initial_consumer_budget=world.initial_consumer_endowment,
            initial_firm_budget=world.initial_firm_endowment,
            theta=_theta(world.consumer_theta, world.paretoscaletheta, num_consumers),
            capital=_capital(world.initial_capital, num_firms),
            alpha=_alpha(world.production_alpha, num_firms),
            firm_one_hot_scale=agents.firm_one_hot_scale,
            settings={agent: agents.of(agent) for agent in AGENT_TYPES},
        )


def _product(*choices: Sequence[float]) -> np.ndarray:
    """All combinations, (n, len(choices)), the first choice outermost."""
    grids = np.meshgrid(*(np.asarray(c, dtype=np.float64) for c in choices), indexing="ij")
    return np.stack([g.ravel() for g in grids], axis=1)


def _theta(theta: float, pareto_scale: float | None, num_consumers: int) -> np.ndarray:
    """θ_i = θ (1 − i/I)^(1/s), the inverse of a Pareto quantile; the constant θ without a scale."""
    if pareto_scale is None:
        return np.full(num_consumers, theta)
    return theta * (1.0 - np.arange(num_consumers) / num_consumers) ** (1.0 / pareto_scale)


def _capital(rule: str | None, num_firms: int) -> np.ndarray:
    firm = np.arange(num_firms)
    if rule == "twolevel":
        return np.where(firm < num_firms // 2, 5000.0, 10000.0)
    if rule == "proportional":
        return 0.2 * (firm + 1)
    return np.ones(num_firms)


def _alpha(rule: str | float | Sequence[float], num_firms: int) -> np.ndarray:
    firm = np.arange(num_firms)
    if rule == "fixed_array":
        return np.asarray(FIXED_ALPHAS)[firm % len(FIXED_ALPHAS)]
    if rule == "proportional":
        return (firm % max(num_firms // 2, 1) + 1) * 0.2
    return np.broadcast_to(np.asarray(rule, dtype=np.float64), (num_firms,)).copy()
