"""What a run reports of an iteration: rewards per type, the economy in a few figures, and the losses."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from rbc_warp.economy.parameters import (
    AGENT_TYPES,
    CONSUMER_BUDGET,
    FIRM_BUDGET,
    FIRM_CAPITAL,
    FIRM_PRICE,
    FIRM_WAGE,
    GOVERNMENT_CORPORATE_TAX,
    GOVERNMENT_INCOME_TAX,
)
from rbc_warp.training.trainer import RbcTrainer


def rewards(trainer: RbcTrainer) -> dict[str, float]:
    """Mean reward per agent and period of the last rollout; the government's is welfare."""
    return {agent: float(trainer.rewards(agent).double().mean()) for agent in AGENT_TYPES}


def indicators(trainer: RbcTrainer) -> dict[str, float]:
    """Means over the last rollout: of what was chosen (price, wage, taxes, hours) and of what came of it.

    ``sales``, ``exports``, ``inventory``, ``capital``: units per firm and period; ``hours``: per consumer and period;
    ``overdemanded``: share of firms and periods; budgets: money per agent at the start of the last period.
    """
    economy = trainer.economy
    firm_choice = _table(trainer, economy.firm_choices)[trainer.actions("firm").long()]
    tax = _table(trainer, economy.government_choices)[trainer.actions("government").long()]
    hours = _table(trainer, economy.work_choices)[trainer.actions("consumer")[..., economy.num_firms].long()]
    public = trainer.states("government")
    last = {agent: trainer.private_states(agent)[-1] for agent in ("consumer", "firm")}
    figures = {
        "price": firm_choice[..., FIRM_PRICE],
        "wage": firm_choice[..., FIRM_WAGE],
        "income_tax": tax[..., GOVERNMENT_INCOME_TAX],
        "corporate_tax": tax[..., GOVERNMENT_CORPORATE_TAX],
        "hours": hours,
        "sales": trainer.sales(),
        "exports": trainer.aux("firm"),
        "inventory": public[..., economy.public.inventories],
        "overdemanded": public[..., economy.public.overdemanded],
        "consumer_budget": last["consumer"][..., CONSUMER_BUDGET],
        "firm_budget": last["firm"][..., FIRM_BUDGET],
        "capital": last["firm"][..., FIRM_CAPITAL],
    }
    return {name: float(values.double().mean()) for name, values in figures.items()}


def _table(trainer: RbcTrainer, values: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float32, device=trainer.device)


def record(trainer: RbcTrainer, iteration: int, losses: Mapping[str, Mapping[str, torch.Tensor]]) -> dict:
    """One line of metrics.jsonl. It holds no times, so equal runs write equal lines."""
    return {
        "iteration": iteration,
        "reward": rewards(trainer),
        "economy": indicators(trainer),
        "loss": {agent: {name: float(value) for name, value in values.items()} for agent, values in losses.items()},
    }
