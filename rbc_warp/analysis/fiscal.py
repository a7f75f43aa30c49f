"""Constant taxes: revenue while consumers and firms play their saved policies, and runs that learned under them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from rbc_warp.analysis.national import national_accounts
from rbc_warp.analysis.rollouts import load_rollout
from rbc_warp.analysis.welfare import unpaired
from rbc_warp.config import Config
from rbc_warp.config.types import GOVERNMENT_CHOICE
from rbc_warp.economy import reference
from rbc_warp.economy.parameters import Economy
from rbc_warp.economy.reference import Stage
from rbc_warp.runs.folder import RunDir
from rbc_warp.training.policy import Policy

LEARNED = "learned"
MEASURES = ("welfare", "consumer", "firm", "revenue")


def revenues(
    economy: Economy,
    policies: Mapping[str, Policy],
    allowed: Mapping[str, np.ndarray],
    stage: Stage,
    episodes: int = 8,
    seed: int = 0,
) -> pd.DataFrame:
    """Play all allowed taxes, by ``economy/reference.py``: their rates and the revenue of each, per period."""
    pairs = np.flatnonzero(allowed["government"])
    government = np.repeat(pairs, episodes)
    state = reference.initial_state(economy, len(government), stage)
    taxes = np.zeros((3, len(government)))
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
        taxes += outcome.redistribution, outcome.income_tax.sum(axis=1), outcome.corporate_tax.sum(axis=1)
    means = taxes.reshape(len(taxes), len(pairs), episodes).mean(axis=2) / economy.num_periods
    columns = dict(zip(GOVERNMENT_CHOICE, economy.government_choices[pairs].T, strict=True))
    revenue = dict(zip(("revenue", "income_revenue", "corporate_revenue"), means, strict=True))
    return pd.DataFrame(columns | revenue)


def trained_under(runs: Sequence[tuple[RunDir, Config]]) -> pd.DataFrame:
    """Return a row of means per period of each run's last dense rollout, and the taxes that its government plays.

    Columns: the ``MEASURES``, revenue being that of income and corporate tax; ``taxes``, the fixed rates or
    ``LEARNED``; ``run``, the number in ``runs``. Runs without a dense rollout are left out.
    """
    rows = []
    for number, (run, config) in enumerate(runs):
        if not run.episode_labels():
            continue
        economy = Economy.from_config(config)
        rollout = load_rollout(run.path)
        accounts = national_accounts(economy, rollout)
        action = config.agents.frozen_government_action
        rates = None if action is None else economy.government_choices[action]
        rows.append(
            {
                "run": number,
                "taxes": LEARNED if rates is None else " / ".join(f"{100 * rate:g} %" for rate in rates),
                "welfare": float(rollout["government_reward"].mean()),
                "consumer": float(rollout["consumer_reward"].mean()),
                "firm": float(rollout["firm_reward"].mean()),
                "revenue": float((accounts["income_tax"] + accounts["corporate_tax"]).mean()),
            }
        )
    return pd.DataFrame(rows, columns=["run", "taxes", *MEASURES])


@dataclass(frozen=True)
class Premium:
    """By how much welfare under learned taxes exceeds that under the best fixed ones [%]; NaN: not known."""

    best: str  #: The fixed taxes with the largest mean welfare.
    percent: float
    low: float
    high: float


def premium(table: pd.DataFrame) -> Premium:
    """Compare learned with the best fixed taxes, of runs that differ in taxes and seed alone.

    The interval is Welch's over seeds, of the ratio of means by the delta method.
    """
    welfare = {taxes: rows["welfare"].to_numpy() for taxes, rows in table.groupby("taxes", sort=False)}
    learned = welfare.pop(LEARNED, None)
    best = max(welfare, key=lambda taxes: float(welfare[taxes].mean()))
    fixed = welfare[best]
    if learned is None or fixed.mean() <= 0.0:
        return Premium(best, np.nan, np.nan, np.nan)
    ratio = learned.mean() / fixed.mean()
    _, low, high = unpaired(ratio * fixed[:, None], learned[:, None])  # around 0, by the choice of the ratio
    percent, half = 100.0 * (ratio - 1.0), 50.0 * float(high[0] - low[0]) / fixed.mean()
    return Premium(best, float(percent), float(percent - half), float(percent + half))


def _draw(chances: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Indices drawn from the last axis's probabilities."""
    return np.minimum((chances.cumsum(axis=-1) < uniform[..., None]).sum(axis=-1), chances.shape[-1] - 1)
