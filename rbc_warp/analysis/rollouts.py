"""Dense rollouts and metrics as labeled data: xarray and pandas.

A variable is what the files hold, cut out of states and actions and given a name, a unit and a description; the few
that no file holds follow from the others.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from rbc_warp.config import load_config
from rbc_warp.config.types import FIRM_CHOICE, GOVERNMENT_CHOICE
from rbc_warp.economy import reference
from rbc_warp.economy.agents import AGENT_TYPES, CONSUMER_BUDGET, CONSUMER_THETA, FIRM_ALPHA, FIRM_BUDGET, FIRM_CAPITAL
from rbc_warp.economy.parameters import Economy
from rbc_warp.errors import RunFileError
from rbc_warp.runs.episodes import Episode, parse_name, read_rollout
from rbc_warp.runs.folder import RunDir

PUBLIC, FIRM, GOOD = ("episode", "period"), ("episode", "period", "firm"), ("episode", "period", "good")
CONSUMER, BASKET = ("episode", "period", "consumer"), ("episode", "period", "consumer", "good")
VARIABLES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "prices": (FIRM, "money per unit", "posted price of the firm's good, binding in the period"),
    "wages": (FIRM, "money per hour", "posted wage, binding in the period"),
    "inventories": (FIRM, "units", "inventory before the period"),
    "overdemanded": (FIRM, "1", "1 if more was demanded in the period before than stood in the inventory, else 0"),
    **{name: (PUBLIC, "1", f"posted rate of the {name.replace('_', ' ')}") for name in GOVERNMENT_CHOICE},
    "consumer_budget": (CONSUMER, "money", "budget before the period"),
    "theta": (CONSUMER, "utility per hour", "disutility of work at the iteration's stage of the curriculum"),
    "demand": (BASKET, "units", "units asked"),
    "hours": (CONSUMER, "hours", "hours worked"),
    "employer": (CONSUMER, "1", "index of the firm worked for"),
    "consumption": (BASKET, "units", "units got"),
    "consumer_reward": (CONSUMER, "utility", "reward, after the charge on final debt in the last period"),
    "wage_income": (CONSUMER, "money", "wage at the employer times hours, before tax"),
    "firm_budget": (FIRM, "money", "budget before the period"),
    "capital": (FIRM, "money", "capital before the period"),
    "alpha": (FIRM, "1", "labor's exponent in production"),
    "chosen_price": (FIRM, "money per unit", "price chosen, posted for the next period"),
    "chosen_wage": (FIRM, "money per hour", "wage chosen, posted for the next period"),
    "chosen_investment": (FIRM, "1", "share of a positive gross profit that is invested in the period"),
    "sales": (FIRM, "units", "units sold to consumers"),
    "exports": (FIRM, "units", "units sold abroad"),
    "labor": (FIRM, "hours", "hours worked at the firm"),
    "production": (FIRM, "units", "units made in the period, sellable from the next one"),
    "firm_reward": (FIRM, "money", "reward, after the charge on final debt in the last period"),
    **{f"chosen_{name}": (PUBLIC, "1", "rate chosen, posted for the next period") for name in GOVERNMENT_CHOICE},
    "government_reward": (PUBLIC, "utility", "welfare: the consumers' rewards, and the firms' if they count"),
}
"""Name of each variable, with its dimensions, its unit ('1': none) and its description."""


def load_rollout(path: str | os.PathLike[str], label: int | str | None = None) -> xr.Dataset:
    """Load a dense rollout with names, units and descriptions.

    Dimensions: episode, period, consumer, firm, good; good j is that of firm j. ``VARIABLES`` lists what there may be.
    What the files hold is as they hold it, float32; wage incomes, sales, labor and production follow from it.

    Args:
        path: a run's folder; or one file, ``episode_<N>_<type>.npz`` in such a folder: that type's variables and the
            posted ones alone.
        label: of a folder, which rollout: an iteration or 'final'; by default 'final', or the last iteration saved.

    Raises:
        RunFileError: a file is missing, damaged, or of another economy. ConfigError: so is hparams.yaml.
    """
    path = Path(path)
    if path.is_dir():
        run = RunDir(path)
        label = run.last_episode() if label is None else label
        there = run.episode_labels()
        if str(label) not in there:
            raise RunFileError(run.path, f"holds no dense rollout {label!r}", f"it has: {', '.join(there) or 'none'}")
        types: tuple[str, ...] = AGENT_TYPES
    else:
        name = parse_name(path)
        if name is None or label not in (None, name[0]):
            remedy = "give the rollout-… folder of a run, or a file episode_<N>_<type>.npz in it, without a label"
            raise RunFileError(path, "is no dense rollout of that label", remedy)
        run, label, types = RunDir(path.parent), name[0], (name[1],)
    # The folder of a best response has no hparams.yaml: it is that of the run around it.
    hparams = next((p for p in (run.hparams_path, run.path.parent / "hparams.yaml") if p.exists()), run.hparams_path)
    economy = Economy.from_config(load_config(hparams))
    episodes = read_rollout(run, economy, label, types)
    values = variables(economy, episodes)
    num_periods = next(iter(episodes.values())).rewards.shape[1]
    return xr.Dataset(
        {
            name: xr.Variable(dims, values[name], {"units": units, "description": description})
            for name, (dims, units, description) in VARIABLES.items()
            if name in values
        },
        coords={
            "episode": np.arange(len(values["income_tax"])),
            "period": ("period", np.arange(num_periods), {"units": "quarters"}),
            "consumer": np.arange(economy.num_consumers),
            "firm": np.arange(economy.num_firms),
            "good": ("good", np.arange(economy.num_firms), {"description": "good j is that of firm j"}),
        },
        attrs={"title": "dense rollout of rbc_warp", "run": run.path.resolve().name, "label": str(label)},
    )


def variables(economy: Economy, episodes: Mapping[str, Episode]) -> dict[str, np.ndarray]:
    """Cut the variables out of one rollout's episodes, of some types or all."""
    size, layout = economy.public.size, economy.public
    public = next(iter(episodes.values())).states[:, :, 0, :size]
    found = {column.name: public[..., getattr(layout, column.name)] for column in layout.columns}
    del found["time"]
    if "consumer" in episodes:
        private, actions = episodes["consumer"].states[..., size:], episodes["consumer"].actions
        found["consumer_budget"], found["theta"] = private[..., CONSUMER_BUDGET], private[..., CONSUMER_THETA]
        found["demand"] = economy.consumption_choices.astype(np.float32)[actions[..., : economy.num_firms]]
        found["hours"] = economy.work_choices.astype(np.float32)[actions[..., economy.num_firms]]
        found["employer"] = actions[..., economy.num_firms + 1]
        found["consumption"], found["consumer_reward"] = episodes["consumer"].aux_array, episodes["consumer"].rewards
        found["sales"] = found["consumption"].sum(axis=2, dtype=np.float64)
        found["wage_income"] = np.take_along_axis(found["wages"], found["employer"], axis=2) * found["hours"].astype(
            float
        )
        works_here = found["employer"][..., None] == np.arange(economy.num_firms)
        found["labor"] = (found["hours"][..., None] * works_here).sum(axis=2, dtype=np.float64)
    if "firm" in episodes:
        private = episodes["firm"].states[..., size:]
        found |= {
            name: private[..., column]
            for name, column in (("firm_budget", FIRM_BUDGET), ("capital", FIRM_CAPITAL), ("alpha", FIRM_ALPHA))
        }
        chosen = economy.firm_choices.astype(np.float32)[episodes["firm"].actions]
        found |= {f"chosen_{name}": chosen[..., column] for column, name in enumerate(FIRM_CHOICE)}
        found["exports"], found["firm_reward"] = episodes["firm"].aux_array, episodes["firm"].rewards
    if "government" in episodes:
        chosen = economy.government_choices.astype(np.float32)[episodes["government"].actions[:, :, 0]]
        found |= {f"chosen_{name}": chosen[..., column] for column, name in enumerate(GOVERNMENT_CHOICE)}
        found["government_reward"] = episodes["government"].rewards[..., 0]
    if "capital" in found and "labor" in found:
        capital, alpha = found["capital"].astype(np.float64), found["alpha"].astype(np.float64)
        found["production"] = reference.produce(economy, capital, alpha, found["labor"])
    return found


def load_metrics(run: str | os.PathLike[str]) -> pd.DataFrame:
    """Load a run's metrics, a row for each iteration that was logged; columns are ``reward.consumer`` and the like.

    What an iteration did not have, such as the loss of a type that did not learn, is NaN.

    Raises:
        RunFileError: metrics.jsonl holds none, or is damaged.
    """
    folder = RunDir(Path(run))
    records = folder.read_metrics()
    if not records:
        raise RunFileError(folder.metrics_path, "holds no metrics", "use a run of rbc_warp, or train one")
    return pd.json_normalize(records).set_index("iteration").astype(np.float64)
