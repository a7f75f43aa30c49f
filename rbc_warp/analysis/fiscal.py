"""Tax revenue under taxes that stay as they are, while consumers and firms play their saved policies."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from rbc_warp.economy import reference
from rbc_warp.economy.parameters import Economy
from rbc_warp.economy.reference import Stage
from rbc_warp.training.policy import Policy


def revenues(
    economy: Economy,
    policies: Mapping[str, Policy],
    allowed: Mapping[str, np.ndarray],
    stage: Stage,
    episodes: int = 8,
    seed: int = 0,
) -> pd.DataFrame:
    """Play every allowed tax pair, by ``economy/reference.py``: both rates and the revenue of each, per period."""
    pairs = np.flatnonzero(allowed["government"])
    government = np.repeat(pairs, episodes)
    state = reference.initial_state(economy, len(government), stage)
    taxes = np.zeros((2, len(government)))
    # The same uniform numbers for all pairs, so that these alone make the difference.
    draw = np.random.default_rng(seed).random
    for _ in range(economy.num_periods):
        actions = {}
        for name in ("consumer", "firm"):
            kind = economy.agents[name]
            mask = torch.as_tensor(allowed[name])
            with torch.inference_mode():
                chances = policies[name].probabilities(reference.observations(state)[name], mask).numpy()
            heads = np.split(chances, np.cumsum(kind.head_sizes)[:-1], axis=-1)
            uniform = np.tile(draw((episodes, kind.count, len(heads))), (len(pairs), 1, 1))
            drawn = [_draw(head, uniform[..., number]) for number, head in enumerate(heads)]
            actions[name] = np.stack(drawn, axis=-1) if len(heads) > 1 else drawn[0]
        state, outcome = reference.step(economy, state, actions["consumer"], actions["firm"], government, stage)
        taxes += outcome.income_tax.sum(axis=1), outcome.corporate_tax.sum(axis=1)
    means = taxes.reshape(2, len(pairs), episodes).mean(axis=2) / economy.num_periods
    rates = economy.government_choices[pairs]
    columns = {"income_tax": rates[:, 0], "corporate_tax": rates[:, 1]}
    revenue = {"revenue": means.sum(axis=0), "income_revenue": means[0], "corporate_revenue": means[1]}
    return pd.DataFrame(columns | revenue)


def _draw(chances: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Indices drawn from the last axis's probabilities."""
    return np.minimum((chances.cumsum(axis=-1) < uniform[..., None]).sum(axis=-1), chances.shape[-1] - 1)
