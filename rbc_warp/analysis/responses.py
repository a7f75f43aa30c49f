"""Policy functions: how saved policies' choices change with one number that an agent sees, all others as they were."""

from __future__ import annotations

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
