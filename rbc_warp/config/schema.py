"""The schema of a run: agents, world, train, metadata, and optionally the values of a sweep.

Key names are the public implementation's. Every number is finite and has a range; a boolean is not a number; an unknown
key is an error. ``load.py`` has the way in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, create_model, model_validator

from rbc_warp.config.checks import agent_faults, alpha_faults
from rbc_warp.config.messages import Faults
from rbc_warp.config.types import (
    ALPHA,
    FIRM_CHOICE,
    GOVERNMENT_CHOICE,
    GRID,
    INTERVALS,
    LARGEST,
    MAX_ITERATIONS,
    MAX_JOINT_ACTIONS,
    POSITIVE_GRID,
    SHARES,
    Alpha,
    Bool,
    Float,
    Grid,
    Int,
    Intervals,
    Metadata,
    PositiveGrid,
    Shares,
    Switch,
    amount,
    every,
    iteration,
    key,
    off,
    scale,
)

ENDOWMENT_PER_CONSUMER = 22.0 * 1000


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TaxAnneal(_Section):
    """Allowed taxes: at most start + increase_const·n."""

    anneal_on: Bool = key(..., "Whether the cap applies")
    start: Float = key(..., "Highest tax allowed at first [share]", ge=0, le=1)
    increase_const: Float = key(..., "Rise of the cap per iteration [share]", ge=0, le=LARGEST)


class RangeAnneal(_Section):
    """Allowed prices or wages: within [start − decrease_const·n, start + increase_const·n]."""

    anneal_on: Bool = key(..., "Whether the range applies")
    start: Float = key(..., "The one value allowed at first [money]", ge=0, le=LARGEST)
    increase_const: Float = key(..., "Rise of the upper end per iteration [money]", ge=0, le=LARGEST)
    decrease_const: Float = key(..., "Fall of the lower end per iteration [money]", ge=0, le=LARGEST)


class ThetaAnneal(_Section):
    """θ is multiplied by 1 − exp(−n/length)."""

    anneal_on: Bool = key(..., "Whether θ rises from 0")
    exp_decay_length_in_steps: Float = key(..., "Time constant [iterations]", gt=0, le=LARGEST)


class EntropyAnneal(_Section):
    """The entropy weight is multiplied by max(exp(−n/length), coef_floor), which may fall to 0 at the end."""

    anneal_on: Bool = key(..., "Whether the weight decays")
    exp_decay_length_in_steps: Float = key(..., "Time constant [iterations]", gt=0, le=LARGEST)
    coef_floor: Float = key(0.0, "Smallest factor [1]", ge=0, le=1)
    fall_start: Int | None = off("When the factor begins to fall to 0 in a line", ge=0, le=MAX_ITERATIONS)
    fall_end: Int | None = off("When it is 0", ge=1, le=MAX_ITERATIONS)


@dataclass(frozen=True)
class AgentSettings:
    """Settings of one agent type's learning; see the keys of :class:`Agents` with the type's name in them."""

    reward_scale: float = 1.0
    lr_multiple: float = 1.0
    training_start: int = 0
    train_every: int = 1
    training_list: tuple[tuple[int, int], ...] | None = None
    frozen_action: int | None = None
    entropy_anneal: EntropyAnneal | None = None
    last_head_entropy_floor: float = 0.0
    minibatches: int = 1
    passes: int | None = None
    trials: int = 0
    own_scale: bool = False
    noponzi_start: float = 0.0
    noponzi_eta: float = 0.0


class Agents(_Section):
    """The agents: their number, their choices, and the times at which they learn."""

    num_consumers: Int = key(100, "Consumers, I [count]", ge=1, le=100_000)
    num_firms: Int = key(10, "Firms, J, one good each [count]", ge=1, le=1000)
    num_governments: Int = key(1, "Governments [count]", "1", ge=1, le=1)

    consumption_choices: Grid = key(tuple(map(float, range(11))), "Demand for one good [units]", GRID)
    work_choices: Grid = key((0.0, 260.0, 520.0, 780.0, 1040.0), "Work [hours per period]", GRID)
    price_choices: PositiveGrid = key((0.0, 500.0, 1000.0, 1500.0, 2000.0, 2500.0), "Price [money]", POSITIVE_GRID)
    wage_choices: PositiveGrid = key((0.0, 11.0, 22.0, 33.0, 44.0), "Wage [money per hour]", POSITIVE_GRID)
    investment_choices: Shares = key((0.1,), "Share of operating profit invested [share]", SHARES)
    income_tax_choices: Shares = key((0.0, 0.2, 0.4, 0.6, 0.8, 1.0), "Tax on wages [share]", SHARES)
    corporate_tax_choices: Shares = key((0.0, 0.2, 0.4, 0.6, 0.8, 1.0), "Tax on profits [share]", SHARES)

    consumer_reward_scale: Float = scale(1.0, "Divisor of consumers' rewards when learning [utility]")
    firm_reward_scale: Float = scale(1.0, "Divisor of firms' rewards when learning [money]")
    government_reward_scale: Float = scale(1.0, "Divisor of its reward when learning [utility]")
    government_counts_firm_reward: Switch = key(0, "Whether welfare includes firms", "0 or 1", ge=0, le=1)
    firm_reward_for_government_factor: Float = amount(0.0025, "Weight of firms' rewards in welfare [utility/money]")
    consumer_lr_multiple: Float = key(1.0, "Consumers' learning rate, times train.lr [1]", ge=0, le=1000)
    firm_lr_multiple: Float = key(1.0, "Firms' learning rate, times train.lr [1]", ge=0, le=1000)
    government_lr_multiple: Float = key(1.0, "Government's learning rate, times train.lr [1]", ge=0, le=1000)

    consumer_minibatches: Int = key(1, "Parts of a batch, one optimizer step each [count]", ge=1, le=1000)
    firm_minibatches: Int = key(1, "Parts of a batch, one optimizer step each [count]", ge=1, le=1000)
    government_minibatches: Int = key(1, "Parts of a batch, one optimizer step each [count]", ge=1, le=1000)
    consumer_passes: Int | None = off("Passes over a batch, absent: train.ppo_num_updates [count]", ge=1, le=1000)
    firm_passes: Int | None = off("Passes over a batch, absent: train.ppo_num_updates [count]", ge=1, le=1000)
    government_passes: Int | None = off("Passes over a batch, absent: train.ppo_num_updates [count]", ge=1, le=1000)
    firm_trials: Int = key(0, "Trials of single firms per iteration [count]", ge=0, le=1_000_000)
    government_trials: Int = key(0, "Trials of the government per iteration [count]", ge=0, le=1_000_000)
    trials_end: Int | None = off("When trials end, absent: with the run", ge=1, le=MAX_ITERATIONS)
    trials_weight: Float = amount(1.0, "Weight of a trial that paid [1]")
    consumer_own_scale: Bool = key(False, "Whether each consumer's advantages are standardized alone")
    firm_one_hot_scale: Float = scale(1.0, "Size of a firm's one-hot number where its network sees it [1]")

    consumer_training_start: Int = iteration(0, "First update of consumers")
    firm_training_start: Int = iteration(0, "First update of firms")
    government_training_start: Int = iteration(0, "First update of the government")
    train_consumers_every: Int = every(1, "Between updates of consumers")
    train_firms_every: Int = every(1, "Between updates of firms")
    train_government_every: Int = every(1, "Between updates of the government")
    consumer_training_list: Intervals | None = off("When consumers learn, instead of start and every", INTERVALS)
    firm_training_list: Intervals | None = off("When firms learn, instead of start and every", INTERVALS)
    government_training_list: Intervals | None = off("When government learns, instead of start and every", INTERVALS)
    training_schedule_mod: Int | None = off("Cycle in which consumers and firms alternate", ge=1, le=MAX_ITERATIONS)
    consumer_mod_threshold: Int | None = off("Last iteration of the cycle for consumers", ge=0, le=MAX_ITERATIONS)
    frozen_firm_action: Int | None = off("Action index that firms always play", ge=0, le=MAX_JOINT_ACTIONS)
    frozen_government_action: Int | None = off("Action index always played", ge=0, le=MAX_JOINT_ACTIONS)

    firm_begin_anneal_action: Int = iteration(0, "When prices and wages begin to widen")
    firm_anneal_prices: RangeAnneal | None = off("Widening range of prices")
    firm_anneal_wages: RangeAnneal | None = off("Widening range of wages")
    government_begin_anneal_action: Int = iteration(0, "When the tax cap begins to rise")
    government_anneal_taxes: TaxAnneal | None = off("Rising cap on both taxes")
    consumer_anneal_theta: ThetaAnneal | None = off("Rise of the disutility of work")
    consumer_anneal_entropy: EntropyAnneal | None = off("Decay of consumers' entropy weight")
    firm_anneal_entropy: EntropyAnneal | None = off("Decay of firms' entropy weight")
    govt_anneal_entropy: EntropyAnneal | None = off("Decay of the government's entropy weight")
    employer_entropy_floor: Float = amount(0.0, "Least entropy weight on the choice of an employer [1]")

    consumer_noponzi_start: Float = amount(0.0, "Multiplier on a consumer's final debt at first [utility]")
    consumer_noponzi_eta: Float = amount(0.0, "Its rise per unit of mean scaled debt [utility]")
    consumer_penalty_scale: Float = scale(1.0, "Divisor of a consumer's final debt [money]")
    firm_noponzi_start: Float = amount(0.0, "Multiplier on a firm's final debt at first [money]")
    firm_noponzi_eta: Float = amount(0.0, "Its rise per unit of mean scaled debt [money]")

    def of(self, agent: str) -> AgentSettings:
        """Return how a type learns, whatever the public names of its keys."""
        every = {"consumer": "train_consumers_every", "firm": "train_firms_every"}
        entropy = {"government": "govt_anneal_entropy"}
        return AgentSettings(
            reward_scale=getattr(self, f"{agent}_reward_scale"),
            lr_multiple=getattr(self, f"{agent}_lr_multiple"),
            training_start=getattr(self, f"{agent}_training_start"),
            train_every=getattr(self, every.get(agent, f"train_{agent}_every")),
            training_list=getattr(self, f"{agent}_training_list"),
            frozen_action=getattr(self, f"frozen_{agent}_action", None),
            entropy_anneal=getattr(self, entropy.get(agent, f"{agent}_anneal_entropy")),
            last_head_entropy_floor=self.employer_entropy_floor if agent == "consumer" else 0.0,
            minibatches=getattr(self, f"{agent}_minibatches"),
            passes=getattr(self, f"{agent}_passes"),
            trials=getattr(self, f"{agent}_trials", 0),
            own_scale=getattr(self, f"{agent}_own_scale", False),
            noponzi_start=getattr(self, f"{agent}_noponzi_start", 0.0),
            noponzi_eta=getattr(self, f"{agent}_noponzi_eta", 0.0),
        )

    @property
    def num_firm_actions(self) -> int:
        """Joint choices of price, wage and investment share."""
        return math.prod(len(grid) for grid in self.grids(FIRM_CHOICE))

    @property
    def num_government_actions(self) -> int:
        """Joint choices of all taxes."""
        return math.prod(len(grid) for grid in self.grids(GOVERNMENT_CHOICE))

    def grids(self, columns: tuple[str, ...]) -> list[tuple[float, ...]]:
        """Return the grids of a table of joint choices."""
        return [getattr(self, f"{column}_choices") for column in columns]


class World(_Section):
    """The economy's constants and starting values."""

    maxtime: Int = key(10, "Periods per episode, T [quarters]", ge=1, le=100_000)
    initial_consumer_endowment: Float = amount(2000.0, "A consumer's first budget [money]")
    initial_firm_endowment: Float = amount(2_200_000.0, "A firm's first budget, absent: 22000 per consumer [money]")
    initial_stocks: Float = amount(0.0, "First inventory [units]")
    initial_prices: Float = amount(1000.0, "First posted price [money]")
    initial_wages: Float = amount(0.0, "First posted wage [money per hour]")
    interest_rate: Float = key(0.0, "Interest on positive budgets [share per period]", ge=0)
    consumer_theta: Float = amount(0.01, "Disutility of work, θ [utility per hour]")
    paretoscaletheta: Float | None = off("Pareto shape of θ, absent: equal θ [1]", gt=0, le=LARGEST)
    crra_param: Float = key(0.1, "Relative risk aversion, η [1]", ge=0, le=100)
    technology: Float = amount(0.01, "Productivity, A [1]")
    production_alpha: Alpha = key("fixed_array", "Labor's exponent, α [1]", ALPHA)
    initial_capital: Literal["twolevel", "proportional"] | None = off("First capital, absent: 1 [units]")
    labor_floor: Float = amount(0.0, "Hours below which a firm produces nothing [hours]")
    use_importer: Switch = key(1, "Whether firms can export", "0 or 1", ge=0, le=1)
    importer_price: Float = amount(500.0, "Lowest price the importer pays [money]")
    importer_quantity: Float = amount(100.0, "Most it buys of each firm [units per period]")
    budget_drip: Float = amount(0.01, "Gift to each consumer [money per period]")

    @model_validator(mode="before")
    @classmethod
    def _null_endowment_is_absent(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("initial_firm_endowment", 0) is None:
            return {key: value for key, value in data.items() if key != "initial_firm_endowment"}
        return data


class Train(_Section):
    """Learning, and the files it leaves."""

    num_episodes: Int = every(200_000, "Length of the run")
    infinite_episodes: Bool = key(False, "Whether to run until stopped")
    batch_size: Int = key(128, "Environments in parallel [count]", ge=1, le=1_000_000)
    base_seed: Int = key(2345, "Seed of every random number", ge=0, le=2**32 - 1)
    lr: Float = key(0.001, "Learning rate of Adam [1]", gt=0, le=100)
    lr_decay_start: Int | None = off("When learning rates begin to fall to 0 at the end", ge=0, le=MAX_ITERATIONS)
    gamma: Float = key(0.9999, "Discount factor [per period]", ge=0, le=1)
    gae_lambda: Float = key(1.0, "Weight of later errors in an advantage, 1: whole returns [1]", ge=0, le=1)
    entropy: Float = amount(0.5, "Entropy weight before annealing [1]")
    value_loss_weight: Float = amount(1.0, "Weight of the value loss [1]")
    clip_grad_norm: Float | None = scale(2.0, "Largest gradient norm, null: no limit [1]")
    use_ppo: Bool = key(True, "PPO, or plain policy gradient")
    ppo_num_updates: Int = key(4, "Passes over a batch [count]", ge=1, le=1000)
    ppo_clip_param: Float = key(0.1, "Clip of the probability ratio [1]", gt=0, lt=1)
    consumer_update_fraction: Float = key(1.0, "Consumer samples per update [share]", gt=0, le=1)
    digit_representation_size: Int = key(10, "Digits per inventory or budget [count]", ge=1, le=10)
    hidden_size: Int = key(128, "Width of both hidden layers [count]", ge=8, le=1024)
    learner: Literal["fused", "autograd"] = key("fused", "Who computes losses and gradients")
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = key("auto", "Arithmetic of the networks")
    graphs: Literal["auto", "off"] = key("auto", "Whether a GPU replays an iteration as CUDA graphs")
    should_boost_firm_reward: Bool = key(False, "Whether solvent firms' rewards include revenue")
    boost_firm_reward_factor: Float = amount(1.0, "Weight of that revenue [1]")
    lagr_num_steps: Int = every(1, "Between updates of the multipliers")
    log_every: Int = every(10, "Between lines of metrics")
    save_dense_every: Int = every(2000, "Between dense rollouts")
    save_model_every: Int = every(10_000, "Between checkpoints")
    save_state_every: Int = every(500, "Between resume states")
    best_response_episodes: Int = every(200, "Length of best-response training")


def _swept(name: str, section: type[BaseModel]) -> Any:
    """The section's keys, each with a list of the values it takes."""
    fields: dict[str, Any] = {}
    for swept, field in section.model_fields.items():
        value = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        fields[swept] = (Annotated[tuple[value, ...], Field(min_length=1)], ())  # type: ignore[valid-type]
    return create_model(name, __base__=_Section, **fields)


_Sweep = create_model(
    "_Sweep",
    __base__=_Section,
    **{
        name: (_swept(f"_Swept{section.__name__}", section), None)
        for name, section in (("agents", Agents), ("world", World), ("train", Train))
    },  # type: ignore[call-overload]
)


def _sweep(value: Any) -> dict[str, dict[str, tuple[Any, ...]]]:
    sweep = _Sweep.model_validate({} if value is None else value)
    return sweep.model_dump(exclude_unset=True, exclude_none=True)


class Config(_Section):
    """A whole run, validated and immutable."""

    agents: Agents = Field(default_factory=Agents)
    world: World = Field(default_factory=World)
    train: Train = Field(default_factory=Train)
    metadata: Metadata = Field(default_factory=dict, json_schema_extra={"allowed": "a mapping of names to scalars"})
    sweep: Annotated[dict[str, dict[str, tuple[Any, ...]]], PlainValidator(_sweep)] = Field(
        default_factory=dict, json_schema_extra={"allowed": "a mapping of sections to keys to lists of values"}
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_section_is_absent(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _resolve_and_cross_check(self) -> Config:
        if "initial_firm_endowment" not in self.world.model_fields_set:
            world = self.world.model_copy()
            world.__dict__["initial_firm_endowment"] = ENDOWMENT_PER_CONSUMER * self.agents.num_consumers
            self.__dict__["world"] = world
        faults = [*agent_faults(self.agents), *alpha_faults(self.world.production_alpha, self.agents.num_firms)]
        if faults:
            raise Faults(faults)
        return self

    def derived(self) -> dict[str, Any]:
        """The keys that the public implementation derives and keeps under ``agents``."""
        agents, num_firms = self.agents, self.agents.num_firms
        public = 4 * num_firms + 3
        inventories = list(range(2 * num_firms, 3 * num_firms))
        return {
            "global_state_dim": public,
            "consumer_state_dim": public + 2,
            "firm_state_dim": public + 3 + num_firms,
            "government_state_dim": public,
            "consumer_action_dim": num_firms + 2,
            "firm_action_dim": len(FIRM_CHOICE),
            "government_action_dim": len(GOVERNMENT_CHOICE),
            "consumer_num_consume_actions": len(agents.consumption_choices),
            "consumer_num_work_actions": len(agents.work_choices),
            "consumer_num_whichfirm_actions": num_firms,
            "firm_num_actions": agents.num_firm_actions,
            "government_num_actions": agents.num_government_actions,
            "max_possible_consumption": max(agents.consumption_choices),
            "max_possible_hours_worked": max(agents.work_choices),
            "max_possible_wage": max(agents.wage_choices),
            "max_possible_price": max(agents.price_choices),
            "consumer_digit_dims": [*inventories, public],
            "firm_digit_dims": [*inventories, public],
            "government_digit_dims": inventories,
        }

    def to_dict(self, with_derived: bool = False) -> dict[str, Any]:
        """Plain Python types in section order, for ``yaml.safe_dump``; loading them gives an equal Config.

        Values are the effective ones; an optional key that is off is left out. ``with_derived`` adds :meth:`derived`
        under ``agents``, which makes it the hparams.yaml of the public implementation.
        """
        result: dict[str, Any] = {}
        for name, section in (("agents", self.agents), ("world", self.world), ("train", self.train)):
            result[name] = _plain(section)
        if with_derived:
            result["agents"] |= self.derived()
        result["metadata"] = _plain(self.metadata)
        if self.sweep:
            result["sweep"] = _plain(self.sweep)
        return result


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        held = {key: getattr(value, key) for key in type(value).model_fields}
        off = {key for key, field in type(value).model_fields.items() if field.default is None and held[key] is None}
        return {key: _plain(item) for key, item in held.items() if key not in off}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
