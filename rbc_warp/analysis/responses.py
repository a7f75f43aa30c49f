"""Policy functions: how saved policies' choices change with one number that an agent sees, all others as they were."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rbc_warp.economy.agents import CONSUMER_BUDGET, FIRM_BUDGET, FIRM_PRICE, FIRM_WAGE
from rbc_warp.economy.parameters import Economy
from rbc_warp.training.policy import Policy

GRID = 41
STATES = 64
"""About how many saved states the curves are means over."""
Curves = dict[str, dict[str, tuple[np.ndarray, dict[str, np.ndarray]]]]
"""Choice → what is varied → its values (n,) and, by action, the mean over states (n,)."""
GOOD = 0
"""The good, and its firm, whose price, wage and inventory are varied for consumers."""
ELASTICITY_STATES = 512
"""About how many saved states elasticities are means over."""
LONGEST_GRID = 9
"""Grids with more values are thinned to as many."""


@dataclass(frozen=True)
class Elasticity:
    """Arc elasticities of one quantity over one interval of a grid."""

    quantity: str
    low: float
    high: float  #: The interval, of prices or wages.
    each: np.ndarray  #: (n,) one per firm, or a single one; NaN where the quantity is 0 at both ends.


def responses(
    economy: Economy, policy: Policy, agent: str, states: np.ndarray, allowed: np.ndarray | None = None
) -> Curves:
    """Vary own budget, inventory, price and wage (for consumers those of one firm) in saved states (E, n, d).

    Ranges are those of the grids, and for money and goods the middle 90 % of the states.
    """
    count, layout = states.shape[1], economy.public
    rows = states.reshape(-1, states.shape[-1])
    pick = np.linspace(0, len(rows) - 1, min(STATES, len(rows))).astype(int)
    base, own = rows[pick], pick % count if agent == "firm" else np.full(len(pick), GOOD)
    ranges = {
        "price": (layout.prices.start + own, _ends(economy.firm_choices[:, FIRM_PRICE])),
        "wage": (layout.wages.start + own, _ends(economy.firm_choices[:, FIRM_WAGE])),
        "inventory": (layout.inventories.start + own, _ends(rows[:, layout.inventories])),
    }
    if agent != "government":
        column = layout.size + (CONSUMER_BUDGET if agent == "consumer" else FIRM_BUDGET)
        ranges = {"budget": (np.full(len(pick), column), _ends(rows[:, column])), **ranges}
    whose = "own " if agent == "firm" else f"firm {GOOD}'s "
    choices_of = _consumer if agent == "consumer" else _marginals
    found: Curves = {}
    for name, (columns, (low, high)) in ranges.items():
        values = np.linspace(low, high, GRID)
        varied = np.repeat(base[:, None], GRID, axis=1)
        varied[np.arange(len(base)), :, columns] = values
        with torch.inference_mode():
            mask = None if allowed is None else torch.as_tensor(allowed)
            chances = policy.probabilities(varied, mask).numpy().mean(axis=0)
        shown = "own budget" if name == "budget" else whose + name
        for choice, curves in choices_of(economy, agent, chances).items():
            found.setdefault(choice, {})[shown] = values, curves
    return found


def elasticities(
    economy: Economy, policy: Policy, states: np.ndarray, allowed: np.ndarray | None = None
) -> list[Elasticity]:
    """Return how consumers' expected demand and labor answer to prices and wages in saved states (E, I, d).

    Of each firm's good the elasticity to its price, of labor at each firm and of all hours that to its wage, and of all
    hours that to all wages at once. One price or wage, or all wages, take the values of the grid while all else in the
    states stays; quantities are means over states and consumers before they are compared.
    """
    rows = states.reshape(-1, states.shape[-1])
    base = rows[np.linspace(0, len(rows) - 1, min(ELASTICITY_STATES, len(rows))).astype(int)]
    mask = None if allowed is None else torch.as_tensor(allowed)
    ends = np.cumsum(economy.agents["consumer"].head_sizes)[:-1]

    def chosen(columns: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Demand of each good (n, J), hours at each firm (n, J) and all hours (n,) at each of the values."""
        varied = np.repeat(base[None], len(values), axis=0)
        varied[:, :, columns] = values[:, None, None]
        *goods, hours, employer = np.split(policy.probabilities(varied, mask).double().numpy(), ends, axis=-1)
        units = np.stack([good @ economy.consumption_choices for good in goods], axis=-1)
        worked = hours @ economy.work_choices
        # Hours and employer are drawn independently of each other in a state.
        return units.mean(axis=1), (worked[..., None] * employer).mean(axis=1), worked.mean(axis=1)

    prices, wages = (_thinned(economy.firm_choices[:, column]) for column in (FIRM_PRICE, FIRM_WAGE))
    price_columns, wage_columns = (
        np.arange(economy.public.size)[columns] for columns in (economy.public.prices, economy.public.wages)
    )
    demand, labor, hours = [], [], []
    for firm in range(economy.num_firms):
        demand.append(_arcs(prices, chosen(price_columns[[firm]], prices)[0][:, firm]))
        _, at_firm, all_hours = chosen(wage_columns[[firm]], wages)
        labor.append(_arcs(wages, at_firm[:, firm]))
        hours.append(_arcs(wages, all_hours))
    together = [_arcs(wages, chosen(wage_columns, wages)[2])]
    measured = {
        "demand of a good, its price": (prices, demand),
        "labor at a firm, its wage": (wages, labor),
        "all hours, one firm's wage": (wages, hours),
        "all hours, all wages": (wages, together),
    }
    return [
        Elasticity(quantity, float(low), float(high), each)
        for quantity, (grid, found) in measured.items()
        for low, high, each in zip(grid, grid[1:], np.transpose(found), strict=False)
    ]


def _arcs(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Midpoint elasticities of y between neighboring x, (n-1,)."""
    total = y[1:] + y[:-1]
    change = np.divide(np.diff(y), total, out=np.full(len(total), np.nan), where=total > 0.0)
    return change * (x[1:] + x[:-1]) / np.diff(x)


def _thinned(values: np.ndarray) -> np.ndarray:
    grid = np.unique(values)
    return grid[np.linspace(0, len(grid) - 1, min(LONGEST_GRID, len(grid))).astype(int)]


def _ends(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, (0.05, 0.95))
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1.0)


def _consumer(economy: Economy, agent: str, chances: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    heads = np.split(chances, np.cumsum(economy.agents[agent].head_sizes)[:-1], axis=-1)
    hours = {f"{hours:g} hours": heads[-2][:, n] for n, hours in enumerate(economy.work_choices)}
    return {
        "P(hours)": hours,
        f"E(units of good {GOOD})": {"units": heads[GOOD] @ economy.consumption_choices},
        f"P(employer is firm {GOOD})": {"employer": heads[-1][:, GOOD]},
    }


def _marginals(economy: Economy, agent: str, chances: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Of a table of joint choices, the probabilities of each column's values."""
    kind = economy.agents[agent]
    found = {}
    for column, name in enumerate(kind.choice_names):
        values = np.unique(kind.choices[:, column])
        if len(values) > 1:
            shown = name.replace("_", " ")
            found[f"P({shown})"] = {
                f"{shown} {value:g}": chances[:, kind.choices[:, column] == value].sum(axis=1) for value in values
            }
    return found
