"""The economy in NumPy float64: one small function per step, then :func:`step`, which lists them in order.

Read this file first: the kernels in ``cuda/economy.h`` do the same, and ``docs/model.md`` ties each equation to its
function and its test. Shapes: E environments, T periods, I consumers, J firms. Units: money in currency units, goods
in units, labor in hours per quarter; rewards have no unit. There are no shocks: a step is a deterministic function of
state and actions. The model is that of Curry, Trott, Phade, Bai and Zheng (2022), arXiv 2201.01163.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rbc_warp.economy.agents import (
    AGENT_TYPES,
    CONSUMER_BUDGET,
    CONSUMER_THETA,
    FIRM_ALPHA,
    FIRM_BUDGET,
    FIRM_CAPITAL,
    FIRM_INVESTMENT,
    FIRM_PENALTY_SCALE,
    FIRM_PRICE,
    FIRM_WAGE,
    GOVERNMENT_CORPORATE_TAX,
    GOVERNMENT_INCOME_TAX,
)
from rbc_warp.economy.parameters import Economy


@dataclass(frozen=True)
class Stage:
    """The values that the curriculum gives the economy in one iteration."""

    theta_factor: float = 1.0
    """Share of each consumer's disutility of work that is shown and felt; acts when an episode starts."""
    consumer_multiplier: float = 0.0  #: Reward that a consumer loses per unit of scaled debt at the end of the episode.
    firm_multiplier: float = 0.0  #: The same for a firm.


DEFAULT_STAGE = Stage()


@dataclass(frozen=True)
class State:
    """The state before a period, float64. Columns as in ``Economy.public`` and the types' private layouts."""

    public: np.ndarray  #: (E, 4J+3) prices, wages, inventories, overdemanded, income tax, corporate tax, time.
    consumer: np.ndarray  #: (E, I, 2) budget, theta.
    firm: np.ndarray  #: (E, J, 3+J) budget, capital, alpha, one-hot index.


@dataclass(frozen=True)
class Outcome:
    """The outcome of one period: rewards, and every flow that the identities in ``docs/model.md`` balance."""

    consumer_reward: np.ndarray  #: (E, I) after the no-Ponzi term.
    firm_reward: np.ndarray  #: (E, J) after the no-Ponzi term.
    government_reward: np.ndarray  #: (E,)
    demand: np.ndarray  #: (E, I, J) units asked.
    affordable: np.ndarray  #: (E, I, J) units that the budget pays for.
    consumption: np.ndarray  #: (E, I, J) units really consumed.
    hours: np.ndarray  #: (E, I) hours worked.
    wage_income: np.ndarray  #: (E, I) before tax.
    income_tax: np.ndarray  #: (E, I) money paid, not the rate.
    total_demand: np.ndarray  #: (E, J) affordable units asked of each firm.
    firm_hours: np.ndarray  #: (E, J) hours worked at each firm.
    rationed: np.ndarray  #: (E, J) bool: more was demanded than stood in the inventory.
    sales: np.ndarray  #: (E, J) units sold to consumers.
    exports: np.ndarray  #: (E, J) units sold to the importer.
    revenue: np.ndarray  #: (E, J)
    wage_bill: np.ndarray  #: (E, J)
    investment: np.ndarray  #: (E, J) money turned into capital.
    profit: np.ndarray  #: (E, J) after investment, before tax.
    corporate_tax: np.ndarray  #: (E, J) money paid, not the rate.
    production: np.ndarray  #: (E, J) units, sellable from the next period.
    redistribution: np.ndarray  #: (E,) all taxes, handed back to the consumers in equal parts.
    consumer_budget_change: np.ndarray  #: (E, I) before interest.
    firm_budget_change: np.ndarray  #: (E, J) before interest.
    consumer_interest: np.ndarray  #: (E, I)
    firm_interest: np.ndarray  #: (E, J)


class FirmAccounts(NamedTuple):
    """A firm's period in money, each (E, J)."""

    revenue: np.ndarray
    wage_bill: np.ndarray
    investment: np.ndarray
    profit: np.ndarray
    corporate_tax: np.ndarray


def initial_state(economy: Economy, num_envs: int, stage: Stage = DEFAULT_STAGE) -> State:
    """``num_envs`` equal economies at time 0, with θ · ``stage.theta_factor`` as the disutility of work."""
    private = economy.initial_private()
    private["consumer"][:, CONSUMER_THETA] *= stage.theta_factor

    def repeat(array: np.ndarray) -> np.ndarray:
        return np.repeat(array[None].astype(np.float64), num_envs, axis=0)

    return State(repeat(economy.initial_public()), repeat(private["consumer"]), repeat(private["firm"]))


# 1. Affordable demand


def affordable_demand(prices: np.ndarray, demand: np.ndarray, budget: np.ndarray) -> np.ndarray:
    """Scale each consumer's basket d_ij (E, I, J) down by B_i / Σ_j p_j d_ij where it costs more than the budget.

    prices (E, J), budget (E, I), both in money. Deviation: the factor is clamped at 0, so that a consumer in debt buys
    nothing (unclamped it would buy negative units). A basket that costs nothing is never scaled, debt or not.
    Identity: affordable ≤ demand.
    """
    cost = (demand * prices[:, None, :]).sum(axis=2)
    purse = np.maximum(budget, 0.0)
    factor = np.divide(purse, cost, out=np.ones_like(cost), where=cost > purse)
    return demand * factor[:, :, None]


# 2. Totals


def total_by_firm(affordable: np.ndarray, hours: np.ndarray, employer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """D_j = Σ_i d_ij in units and H_j = Σ of the hours of those who chose firm j, each (E, J).

    affordable (E, I, J), hours (E, I), employer (E, I) int in 0…J-1. Firms accept all labor.
    Identity: hours paid = hours worked.
    """
    num_firms = affordable.shape[2]
    works_here = employer[:, :, None] == np.arange(num_firms)
    return affordable.sum(axis=1), (hours[:, :, None] * works_here).sum(axis=1)


# 3. Rationing


def ration(
    affordable: np.ndarray, total_demand: np.ndarray, inventory: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Consumption c_ij (E, I, J), sales C_j = Σ_i c_ij (E, J) and who was rationed (E, J) bool.

    A firm asked for more than it has serves every consumer the same share y_j / D_j of what he asked. Sales are capped
    by the inventory, against rounding only: what a rationed firm serves sums to its inventory.
    Identity: consumption ≤ affordable, sales ≤ inventory.
    """
    rationed = (total_demand > 0.0) & (total_demand > inventory)
    share = np.divide(inventory, total_demand, out=np.ones_like(inventory), where=rationed)
    consumption = affordable * share[:, None, :]
    return consumption, np.minimum(consumption.sum(axis=1), inventory), rationed


# 4. Consumers


def utility(consumption: np.ndarray, crra: float) -> np.ndarray:
    """u(c) = ((c+1)^(1−η) − 1) / (1−η), log(1+c) at η = 1; any shape, c ≥ 0 in units.

    Written with expm1 and log1p: the power form loses all digits at small c and near η = 1.
    """
    log_consumption = np.log1p(consumption)
    if crra == 1.0:
        return log_consumption
    return np.expm1((1.0 - crra) * log_consumption) / (1.0 - crra)


def reward_consumers(consumption: np.ndarray, hours: np.ndarray, theta: np.ndarray, crra: float) -> np.ndarray:
    """Σ_j u(c_ij) − (θ_i / 2) h_i, (E, I)."""
    return utility(consumption, crra).sum(axis=2) - 0.5 * theta * hours


def pay_wages(
    wages: np.ndarray, hours: np.ndarray, employer: np.ndarray, income_tax_rate: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Wage income z_i = w · h_i at the chosen employer and the income tax τ z_i on it, each (E, I) in money.

    wages (E, J) per hour, income_tax_rate (E,). Identity: wage incomes = wage bills of the firms.
    """
    wage_income = np.take_along_axis(wages, employer, axis=1) * hours
    return wage_income, income_tax_rate[:, None] * wage_income


# 5. Exports


def export_goods(economy: Economy, prices: np.ndarray, inventory: np.ndarray, sales: np.ndarray) -> np.ndarray:
    """Units sold abroad (E, J), at the firm's own price: what is left, at most ``importer_quantity``.

    Only firms with price ≥ ``importer_price`` sell abroad, and only in an open economy.
    """
    if not economy.use_importer:
        return np.zeros_like(prices)
    left = np.clip(inventory - sales, 0.0, economy.importer_quantity)
    return np.where(prices >= economy.importer_price, left, 0.0)


# 6. Firms


def close_firm_accounts(
    prices: np.ndarray,
    wages: np.ndarray,
    sales: np.ndarray,
    exports: np.ndarray,
    firm_hours: np.ndarray,
    investment_share: np.ndarray,
    corporate_tax_rate: np.ndarray,
) -> FirmAccounts:
    """Revenue p (C + x), gross G = revenue − w H, investment max(ν G, 0), profit P = G − investment, tax σ max(P, 0).

    Inputs and results (E, J), except corporate_tax_rate (E,), σ. Losses are neither taxed nor refunded. The budget
    changes by P − tax. Identity: money, Σ P + Σ investment + Σ wage bills = Σ revenue.
    """
    revenue = prices * (sales + exports)
    wage_bill = wages * firm_hours
    gross_profit = revenue - wage_bill
    investment = np.maximum(investment_share * gross_profit, 0.0)
    profit = gross_profit - investment
    corporate_tax = corporate_tax_rate[:, None] * np.maximum(profit, 0.0)
    return FirmAccounts(revenue, wage_bill, investment, profit, corporate_tax)


def reward_firms(budget: np.ndarray, budget_change: np.ndarray, revenue: np.ndarray, boost_factor: float) -> np.ndarray:
    """The change of the budget, (E, J), plus ``boost_factor`` · revenue where B + ΔB > 0; the boost moves no money."""
    return budget_change + np.where(budget + budget_change > 0.0, boost_factor * revenue, 0.0)


# 7. Production


def produce(economy: Economy, capital: np.ndarray, alpha: np.ndarray, firm_hours: np.ndarray) -> np.ndarray:
    """Y_j = A k_j^(1−α_j) L_j^(α_j) in units, (E, J); capital is that before this period's investment.

    L_j = H_j, or 0 where H_j < ``labor_floor``. 0^0 = 1, so a firm with α = 0 needs no labor.
    """
    labor = np.where(firm_hours < economy.labor_floor, 0.0, firm_hours)
    return economy.technology * capital ** (1.0 - alpha) * labor**alpha


def restock(inventory: np.ndarray, sales: np.ndarray, exports: np.ndarray, production: np.ndarray) -> np.ndarray:
    """Next period's inventory in units, (E, J). Identity: goods, y' = y − C − x + Y ≥ 0."""
    return inventory - sales - exports + production


# 8. Redistribution


def redistribute(income_tax: np.ndarray, corporate_tax: np.ndarray) -> np.ndarray:
    """All taxes of the period, (E,) in money; each consumer gets an equal part. Identity: paid = redistributed."""
    return income_tax.sum(axis=1) + corporate_tax.sum(axis=1)


def change_consumer_budgets(
    economy: Economy,
    prices: np.ndarray,
    consumption: np.ndarray,
    wage_income: np.ndarray,
    income_tax: np.ndarray,
    redistribution: np.ndarray,
) -> np.ndarray:
    """ΔB_i = gift − Σ_j p_j c_ij + z_i − τ z_i + R/I, (E, I) in money, before interest.

    The gift (``budget_drip``) keeps rounding from leaving budgets a hair below 0.
    """
    spending = (consumption * prices[:, None, :]).sum(axis=2)
    net_income = wage_income - income_tax
    return economy.budget_drip - spending + net_income + redistribution[:, None] / economy.num_consumers


# 9. Public state


def post(
    economy: Economy,
    public: np.ndarray,
    firm_choice: np.ndarray,
    government_choice: np.ndarray,
    inventory: np.ndarray,
    rationed: np.ndarray,
) -> np.ndarray:
    """Next period's public state (E, 4J+3): what firms (E, J, 3) and the government (E, 2) chose binds from then."""
    layout = economy.public
    posted = np.empty_like(public)
    posted[:, layout.prices] = firm_choice[:, :, FIRM_PRICE]
    posted[:, layout.wages] = firm_choice[:, :, FIRM_WAGE]
    posted[:, layout.inventories] = inventory
    posted[:, layout.overdemanded] = rationed
    posted[:, layout.income_tax] = government_choice[:, GOVERNMENT_INCOME_TAX]
    posted[:, layout.corporate_tax] = government_choice[:, GOVERNMENT_CORPORATE_TAX]
    posted[:, layout.time] = public[:, layout.time] + 1.0
    return posted


# 10. Budgets


def settle_budgets(
    budget: np.ndarray, budget_change: np.ndarray, interest_rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """Next period's budget and the interest in it, of the same shape; only a positive balance earns interest."""
    balance = budget + budget_change
    interest = interest_rate * np.maximum(balance, 0.0)
    return balance + interest, interest


def charge_debt(reward: np.ndarray, budget: np.ndarray, is_last: np.ndarray, coef: float, scale: float) -> np.ndarray:
    """No-Ponzi term: in the last period (is_last (E,) bool) rewards lose coef · max(0, −B_final) / scale, (E, n)."""
    violation = np.maximum(-budget, 0.0) / scale
    return reward - np.where(is_last[:, None], coef * violation, 0.0)


# 11. Government reward


def reward_government(economy: Economy, consumer_reward: np.ndarray, firm_reward: np.ndarray) -> np.ndarray:
    """Σ_i reward_i + factor · Σ_j reward_j, (E,), of the rewards after the no-Ponzi term."""
    return consumer_reward.sum(axis=1) + economy.firm_reward_for_government_factor * firm_reward.sum(axis=1)


def step(
    economy: Economy,
    state: State,
    consumer_actions: np.ndarray,
    firm_actions: np.ndarray,
    government_actions: np.ndarray,
    stage: Stage = DEFAULT_STAGE,
) -> tuple[State, Outcome]:
    """One period of every environment: the next state and what happened.

    Actions are indices into the economy's grids: consumers (E, I, J+2), in the order goods 0…J-1, hours, employer;
    firms (E, J); the government (E,) or (E, 1).
    """
    layout = economy.public
    public = state.public
    prices, wages, inventory = public[:, layout.prices], public[:, layout.wages], public[:, layout.inventories]
    income_tax_rate, corporate_tax_rate = public[:, layout.income_tax], public[:, layout.corporate_tax]
    consumer_budget, theta = state.consumer[:, :, CONSUMER_BUDGET], state.consumer[:, :, CONSUMER_THETA]
    firm_budget, capital, alpha = (state.firm[:, :, column] for column in (FIRM_BUDGET, FIRM_CAPITAL, FIRM_ALPHA))

    demand = economy.consumption_choices[consumer_actions[:, :, : economy.num_firms]]
    hours = economy.work_choices[consumer_actions[:, :, economy.num_firms]]
    employer = consumer_actions[:, :, economy.num_firms + 1]
    firm_choice = economy.firm_choices[firm_actions]
    government_choice = economy.government_choices[np.reshape(government_actions, -1)]

    # 1 to 3: who gets what
    affordable = affordable_demand(prices, demand, consumer_budget)
    total_demand, firm_hours = total_by_firm(affordable, hours, employer)
    consumption, sales, rationed = ration(affordable, total_demand, inventory)
    # 4: consumers
    consumer_reward = reward_consumers(consumption, hours, theta, economy.crra)
    wage_income, income_tax = pay_wages(wages, hours, employer, income_tax_rate)
    # 5 to 7: firms
    exports = export_goods(economy, prices, inventory, sales)
    accounts = close_firm_accounts(
        prices, wages, sales, exports, firm_hours, firm_choice[:, :, FIRM_INVESTMENT], corporate_tax_rate
    )
    firm_change = accounts.profit - accounts.corporate_tax
    firm_reward = reward_firms(firm_budget, firm_change, accounts.revenue, economy.boost_firm_reward_factor)
    production = produce(economy, capital, alpha, firm_hours)
    # 8: redistribution
    redistribution = redistribute(income_tax, accounts.corporate_tax)
    consumer_change = change_consumer_budgets(economy, prices, consumption, wage_income, income_tax, redistribution)
    # 9: public state
    next_inventory = restock(inventory, sales, exports, production)
    next_public = post(economy, public, firm_choice, government_choice, next_inventory, rationed)
    # 10: budgets and capital
    next_consumer, next_firm = state.consumer.copy(), state.firm.copy()
    consumer_final, consumer_interest = settle_budgets(consumer_budget, consumer_change, economy.interest_rate)
    firm_final, firm_interest = settle_budgets(firm_budget, firm_change, economy.interest_rate)
    next_consumer[:, :, CONSUMER_BUDGET] = consumer_final
    next_firm[:, :, FIRM_BUDGET] = firm_final
    next_firm[:, :, FIRM_CAPITAL] = capital + accounts.investment
    is_last = next_public[:, layout.time] == economy.num_periods
    consumer_reward = charge_debt(
        consumer_reward, consumer_final, is_last, stage.consumer_multiplier, economy.consumer_penalty_scale
    )
    firm_reward = charge_debt(firm_reward, firm_final, is_last, stage.firm_multiplier, FIRM_PENALTY_SCALE)
    # 11: government
    government_reward = reward_government(economy, consumer_reward, firm_reward)

    outcome = Outcome(
        consumer_reward=consumer_reward,
        firm_reward=firm_reward,
        government_reward=government_reward,
        demand=demand,
        affordable=affordable,
        consumption=consumption,
        hours=hours,
        wage_income=wage_income,
        income_tax=income_tax,
        total_demand=total_demand,
        firm_hours=firm_hours,
        rationed=rationed,
        sales=sales,
        exports=exports,
        revenue=accounts.revenue,
        wage_bill=accounts.wage_bill,
        investment=accounts.investment,
        profit=accounts.profit,
        corporate_tax=accounts.corporate_tax,
        production=production,
        redistribution=redistribution,
        consumer_budget_change=consumer_change,
        firm_budget_change=firm_change,
        consumer_interest=consumer_interest,
        firm_interest=firm_interest,
    )
    return State(next_public, next_consumer, next_firm), outcome


def observations(state: State) -> dict[str, np.ndarray]:
    """Return observations, public part first: type → (E, n, dim), n the number of agents of that type."""
    public = state.public[:, None, :]

    def see(private: np.ndarray) -> np.ndarray:
        return np.concatenate([np.repeat(public, private.shape[1], axis=1), private], axis=2)

    return {"consumer": see(state.consumer), "firm": see(state.firm), "government": public.copy()}


def rollout(
    economy: Economy,
    actions: Mapping[str, np.ndarray],
    stage: Stage = DEFAULT_STAGE,
    initial: State | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Replay given actions: consumer (E, T, I, J+2), firm (E, T, J), government (E, T, 1), all indices.

    Returns per type, float64: ``states`` (E, T, n, dim) before each period, ``rewards`` (E, T, n), ``aux_array`` (units
    consumed (E, T, I, J); units exported (E, T, J); empty for the government) and ``final_states`` (E, n, dim).
    """
    num_envs, num_periods = actions["firm"].shape[:2]
    state = initial_state(economy, num_envs, stage) if initial is None else initial
    seen: list[dict[str, np.ndarray]] = []
    outcomes: list[Outcome] = []
    for t in range(num_periods):
        seen.append(observations(state))
        consumer, firm, government = (actions[agent][:, t] for agent in AGENT_TYPES)
        state, outcome = step(economy, state, consumer, firm, government, stage)
        outcomes.append(outcome)
    rewards = {
        "consumer": [o.consumer_reward for o in outcomes],
        "firm": [o.firm_reward for o in outcomes],
        "government": [o.government_reward[:, None] for o in outcomes],
    }
    aux = {
        "consumer": np.stack([o.consumption for o in outcomes], axis=1),
        "firm": np.stack([o.exports for o in outcomes], axis=1),
        "government": np.zeros(0),
    }
    final = observations(state)
    return {
        agent: {
            "states": np.stack([s[agent] for s in seen], axis=1),
            "rewards": np.stack(rewards[agent], axis=1),
            "aux_array": aux[agent],
            "final_states": final[agent],
        }
        for agent in AGENT_TYPES
    }
