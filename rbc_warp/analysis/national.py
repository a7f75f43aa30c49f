"""National accounts of a dense rollout: GDP by production, expenditure and income, and what follows from them.

Each side is measured from other saved numbers: production from hours and capital, expenditure from baskets, exports and
inventories, income from wages and the firms' budgets. Firms turn money into capital that nobody in the economy sells,
so capital goods count as imported. Inventories change at current prices; gains from holding them are no part of GDP.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from rbc_warp.economy.parameters import Economy

EXPENDITURE = {
    "consumption": "consumption",
    "investment": "fixed investment",
    "inventory_change": "change of inventories",
    "exports": "exports",
    "imports": "imports of capital goods",
}
INCOME = {
    "compensation": "wages",
    "corporate_tax": "corporate tax",
    "reinvested": "profits turned into capital",
    "retained": "profits kept as money",
    "stocked": "profits kept as inventories",
}
FLOW = ("episode", "period")


def national_accounts(economy: Economy, rollout: xr.Dataset) -> xr.Dataset:
    """Return money flows by episode and period, GDP in three ways, and labor share, markup, concentration, real wage.

    Args:
        economy: that of the rollout.
        rollout: variables of ``load_rollout`` for all types.
    """
    data = rollout.astype(np.float64)
    price, wage, stock, production = (data[name].values for name in ("prices", "wages", "inventories", "production"))
    sales, exports, labor = (data[name].values for name in ("sales", "exports", "labor"))
    revenue = price * (sales + exports)
    gross_profit = revenue - wage * labor
    # What the next saved state shows; after the last period there is none, so the model's rules close the accounts.
    invested = np.maximum(data["chosen_investment"].values * gross_profit, 0.0)
    capital = data["capital"].values
    invested[:, :-1] = capital[:, 1:] - capital[:, :-1]
    profit = gross_profit - invested
    tax = data["corporate_tax"].values[..., None] * np.maximum(profit, 0.0)
    budget = data["firm_budget"].values
    retained = profit - tax
    rate = economy.interest_rate
    interest = np.maximum(budget[:, 1:], 0.0) * rate / (1.0 + rate)
    retained[:, :-1] = budget[:, 1:] - interest - budget[:, :-1]
    stored = production - sales - exports
    stored[:, :-1] = stock[:, 1:] - stock[:, :-1]
    holding = np.zeros_like(price)
    holding[:, :-1] = (price[:, 1:] - price[:, :-1]) * stock[:, 1:]

    def total(array: np.ndarray) -> tuple[tuple[str, str], np.ndarray]:
        return FLOW, array.sum(axis=2)

    basket_cost = (data["consumption"].values * price[:, :, None]).sum(axis=3)
    flows = {
        "consumption": total(basket_cost),
        "investment": total(invested),
        "inventory_change": total(price * stored),
        "exports": total(price * exports),
        "imports": total(-invested),
        "compensation": total(data["wage_income"].values),
        "corporate_tax": total(tax),
        "reinvested": total(invested),
        "retained": total(retained),
        "stocked": total(price * stored),
        "gdp_production": total(price * production),
        "holding_gains": total(holding),
    }
    accounts = xr.Dataset(flows, coords={name: rollout[name] for name in ("episode", "period", "firm")})
    accounts["gdp_expenditure"] = sum(accounts[name] for name in EXPENDITURE)
    accounts["gdp_income"] = sum(accounts[name] for name in INCOME)
    # Terms of the sums, by which rounding is judged: budgets are saved in float32 and far larger than their changes.
    accounts["gross"] = total(np.abs(budget) + price * stock + revenue + price * production + wage * labor)
    accounts["labor_share"] = FLOW, _ratio(accounts["compensation"].values, accounts["gdp_production"].values)
    weight = _ratio(revenue, revenue.sum(axis=2, keepdims=True))
    accounts["concentration"] = FLOW, (weight**2).sum(axis=2)
    accounts["markup"] = (*FLOW, "firm"), _ratio(data["alpha"].values * price * production, wage * labor)
    accounts["price_level"] = FLOW, _ratio((price * sales).sum(axis=2), sales.sum(axis=2))
    mean_wage = _ratio((wage * labor).sum(axis=2), labor.sum(axis=2))
    accounts["real_wage"] = FLOW, _ratio(mean_wage, accounts["price_level"].values)
    # What a consumer has to spend of a period: wages after tax, its part of all taxes, and the gift.
    earned = data["wage_income"].values
    income_tax = data["income_tax"].values[..., None] * earned
    handed_back = (income_tax.sum(axis=2) + tax.sum(axis=2)) / economy.num_consumers
    income = earned - income_tax + handed_back[..., None] + economy.budget_drip
    accounts["disposable_income"] = (*FLOW, "consumer"), income
    accounts["final_wealth"] = (
        ("episode", "consumer"),
        (data["consumer_budget"].values[:, -1] + income[:, -1] - basket_cost[:, -1]),
    )
    accounts["income_tax"] = total(income_tax)
    return accounts


def residuals(accounts: xr.Dataset) -> dict[str, float]:
    """Largest differences of GDP by expenditure and by income from production, as shares of the terms summed."""
    return {
        side: float((np.abs(accounts[f"gdp_{side}"] - accounts["gdp_production"]) / accounts["gross"]).max())
        for side in ("expenditure", "income")
    }


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Quotient; NaN where there is nothing to divide by."""
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=np.asarray(below) != 0)
