"""The metrics of an iteration: rewards per type, the economy in a few figures, and the losses."""

from collections.abc import Mapping

import torch

from rbc_warp.economy.agents import (
    CONSUMER_BUDGET,
    FIRM_BUDGET,
    FIRM_CAPITAL,
    FIRM_PRICE,
    FIRM_WAGE,
    GOVERNMENT_CHOICE,
)
from rbc_warp.training.recorder import Losses
from rbc_warp.training.rollout import Rollout

SHOWN = ("price", "wage", "hours", "sales", "exports", "income_tax", "corporate_tax")
"""Those indicators that a person is shown on a terminal."""


def rewards(rollout: Rollout) -> dict[str, float]:
    """Return the mean reward per agent and period; the government's is welfare."""
    return {name: float(rollout.rewards(name).double().mean()) for name in rollout.economy.agents}


def indicators(rollout: Rollout) -> dict[str, float]:
    """Return means of what was chosen (price, wage, taxes, hours) and of what came of it.

    ``sales``, ``exports``, ``inventory``, ``capital``: units per firm and period; ``hours``: per consumer and period;
    ``overdemanded``: share of firms and periods; budgets: money per agent at the start of the last period.
    """
    economy = rollout.economy
    chosen = {name: _chosen(rollout, name) for name in ("firm", "government")}
    work = torch.as_tensor(economy.work_choices, dtype=torch.float32, device=rollout.public.device)
    public = rollout.public_states()
    last = {name: rollout.private_states(name)[-1] for name in ("consumer", "firm")}
    figures = {
        "price": chosen["firm"][..., FIRM_PRICE],
        "wage": chosen["firm"][..., FIRM_WAGE],
        **{name: chosen["government"][..., column] for column, name in enumerate(GOVERNMENT_CHOICE)},
        "hours": work[rollout.actions("consumer")[..., economy.num_firms].long()],
        "sales": rollout.sales(),
        "exports": rollout.aux("firm"),
        "inventory": public[..., economy.public.inventories],
        "overdemanded": public[..., economy.public.overdemanded],
        "consumer_budget": last["consumer"][..., CONSUMER_BUDGET],
        "firm_budget": last["firm"][..., FIRM_BUDGET],
        "capital": last["firm"][..., FIRM_CAPITAL],
    }
    return {name: float(values.double().mean()) for name, values in figures.items()}


def _chosen(rollout: Rollout, agent: str) -> torch.Tensor:
    """The joint choices behind a type's actions, (T, E, n, columns)."""
    table = torch.as_tensor(rollout.economy.agents[agent].choices, dtype=torch.float32, device=rollout.public.device)
    return table[rollout.actions(agent).long()]


def record(rollout: Rollout, iteration: int, losses: Losses) -> dict:
    """Return one line of metrics.jsonl. It holds no times, so equal runs write equal lines."""
    return {
        "iteration": iteration,
        "reward": rewards(rollout),
        "economy": indicators(rollout),
        "loss": {agent: {name: float(value) for name, value in values.items()} for agent, values in losses.items()},
    }


def rewards_text(record: Mapping) -> str:
    """Return a line of metrics as one line of text: the mean rewards."""
    return "  ".join(f"{agent} {reward:.4g}" for agent, reward in record["reward"].items())
