"""Welfare, rewards and revenue under constant taxes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from rbc_warp.analysis.fiscal import LEARNED, Premium, premium, revenues, trained_under
from rbc_warp.analysis.report.drawing import COLORS, COLUMNS, cell, grid
from rbc_warp.analysis.report.parts import Section, Source, with_dashes
from rbc_warp.config.shipped import launcher
from rbc_warp.config.types import GOVERNMENT_CHOICE
from rbc_warp.economy import curriculum
from rbc_warp.economy.reference import Stage
from rbc_warp.equilibrium.game import Estimate
from rbc_warp.runs.console import number_text
from rbc_warp.runs.run import load_policies
from rbc_warp.runs.sweep import varied

PAIR, OTHERS = list(GOVERNMENT_CHOICE)[:2], list(GOVERNMENT_CHOICE)[2:]
"""The rates that figures are drawn over, and any others, of which the best is taken."""
REVENUES = {"revenue": "Revenue", "income_revenue": "from income", "corporate_revenue": "from profits"}


def fill(source: Source, section: Section) -> None:
    scan = next((scan for scan in reversed(source.results.scans) if scan["agent"] == "government"), None)
    pairs = None if scan is None else tax_pairs(scan)
    if scan is None or pairs is None or pairs.empty:
        text = "No tax pairs have been tried; this scans them all:"
        section.missing(text, f"{launcher('best-response')} {source.run.path} --ep-strs latest --scan")
        return
    factor = source.economy.firm_reward_for_government_factor
    others = [name.replace("_", " ") for name in OTHERS]
    best = f" For each pair, the largest value over {' and '.join(others)} is shown." if others else ""
    section.figure(
        f"What each constant pair of taxes brings at checkpoint {scan['checkpoint']}, consumers and firms playing on "
        f"as they learned: welfare (consumers' rewards plus {factor:g} of the firms'), and mean rewards per agent and "
        "period. Stars: the largest value. A star at the taxes that the government chose means it cannot "
        f"gain.{best}" + told_apart(pairs),
        surface(pairs, {"government": "Welfare", "consumer": "Consumer's reward", "firm": "Firm's reward"}),
    )
    if source.has_policies and scan["checkpoint"] == "latest":
        stage = Stage(theta_factor=curriculum.theta_factor(source.config, source.iteration))
        allowed = curriculum.allowed_actions(source.config, source.economy, source.iteration)
        policies = load_policies(source.run, source.config)
        table = best_over_others(revenues(source.economy, policies, allowed, stage))
        section.figure(
            "Tax revenue per period under the same pairs, the saved policies played again in 8 episodes: a Laffer "
            f"curve would rise and fall with the rate. All revenue goes back to the consumers in equal parts.{best}",
            laffer(table, REVENUES),
        )
        section.figure("The same revenue over both rates, as a surface; stars: the largest.", surface(table, REVENUES))


def tax_pairs(scan: Mapping[str, Any]) -> pd.DataFrame:
    """Return a scan of constant taxes as a table: the first two rates and each type's reward, the best over others."""
    pattern = ", ".join(rf"{name.replace('_', ' ')} ([\d.e-]+)" for name in GOVERNMENT_CHOICE)
    rows = []
    for name, rewards in scan["rewards"].items():
        rates = re.fullmatch(pattern, name)
        if rates:
            ends = (scan[end][name] if end in scan else math.nan for end in ("low", "high"))
            rows.append((*map(float, rates.groups()), *rewards.values(), scan["gains"][name], *ends))
    some = next(iter(scan["rewards"].values()))
    table = pd.DataFrame(rows, columns=[*GOVERNMENT_CHOICE, *some, "gain", "low", "high"])
    return best_over_others(table.drop(columns=["low", "high"]) if OTHERS else table)


def best_over_others(table: pd.DataFrame) -> pd.DataFrame:
    """Return the largest of each column for every pair of the first two rates."""
    return table.drop(columns=OTHERS).groupby(PAIR, as_index=False).max()


def told_apart(pairs: pd.DataFrame) -> str:
    """Return how many tax pairs' gains over the learned taxes have intervals that hold 0; nothing without intervals."""
    if "low" not in pairs or pairs["low"].isna().any():
        return ""
    same = int(((pairs["low"] <= 0.0) & (pairs["high"] >= 0.0)).sum())
    return (
        f" Welfare under {same} of the {len(pairs)} pairs cannot be told from that under the learned taxes: the paired "
        "difference's own 95 % interval, shown at each point, holds 0."
    )


def against_learned(pairs: pd.DataFrame) -> np.ndarray | None:
    """Return the gain over the learned taxes in words, at each point of a surface; None without intervals."""
    if "low" not in pairs or pairs["low"].isna().any():
        return None
    words = "<br>against the learned taxes " + pairs.apply(
        lambda row: f"{row['gain']:+.3g} [{row['low']:+.3g}, {row['high']:+.3g}]", axis=1
    )
    return pairs.assign(words=words).pivot(index="corporate_tax", columns="income_tax", values="words").values


def surface(pairs: pd.DataFrame, columns: Mapping[str, str]) -> go.Figure:
    """Draw columns of a table of tax pairs as heat maps over both rates, the largest value marked."""
    figure = grid(list(columns.values()), row_height=330)
    for number, name in enumerate(columns):
        table = pairs.pivot(index="corporate_tax", columns="income_tax", values=name)
        heat = go.Heatmap(
            x=table.columns, y=table.index, z=table.values, colorscale="Viridis",
            hovertemplate="income tax %{x}, corporate tax %{y}: %{z:.5g}%{text}<extra></extra>",
            text=against_learned(pairs) if name == "government" else None,
        )  # fmt: skip
        figure.add_trace(heat, **cell(number))
        best = pairs.loc[pairs[name].idxmax()]
        marker = {"symbol": "star", "size": 14, "color": "white", "line": {"color": "black", "width": 1}}
        star = go.Scatter(x=[best["income_tax"]], y=[best["corporate_tax"]], mode="markers", marker=marker)
        figure.add_trace(star.update(showlegend=False, hoverinfo="skip"), **cell(number))
        figure.update_xaxes(title_text="income tax", **cell(number))
        figure.update_yaxes(title_text="corporate tax" if number % COLUMNS == 0 else None, **cell(number))
    return figure


def laffer(pairs: pd.DataFrame, values: Mapping[str, str]) -> go.Figure:
    """Draw columns of a table of tax pairs against the income tax, a line for each corporate tax."""
    figure = grid(list(values.values()), columns=len(values), row_height=290)
    rates = sorted(pairs["corporate_tax"].unique())
    for number, name in enumerate(values):
        for order, rate in enumerate(rates):
            line = pairs[pairs["corporate_tax"] == rate].sort_values("income_tax")
            color = (
                f"rgb({36 + 160 * order // max(1, len(rates) - 1)},85,{166 - 100 * order // max(1, len(rates) - 1)})"
            )
            trace = go.Scatter(x=line["income_tax"], y=line[name], name=f"corporate tax {rate:g}", line_color=color)
            figure.add_trace(trace.update(showlegend=number == 0), **cell(number, len(values)))
    return figure.update_xaxes(title_text="income tax")


def has_fixed(sources: Sequence[Source]) -> bool:
    """Return whether a run's government played fixed taxes for the whole of its training."""
    return any(source.config.agents.frozen_government_action is not None for source in sources)


def retrained(sources: list[Source], section: Section, folder: Path) -> None:
    """Runs that learned under fixed taxes, beside those whose government learned."""
    table = trained_under([(source.run, source.config) for source in sources])
    if not has_fixed([sources[number] for number in table["run"]]):
        section.text("The runs with fixed taxes hold no dense rollouts (episode_….npz) yet.")
        return
    # Runs compare where they differ in taxes and seed alone.
    known = varied([source.config for source in sources])
    keys = [key for key in known if key not in ("train.base_seed", "agents.frozen_government_action")]
    table["setting"] = [", ".join(f"{key} {known[key][number]}" for key in keys) for number in table["run"]]
    section.figure(
        "Runs whose consumers and firms learned under fixed taxes (income / corporate), and those whose government "
        "learned, too: welfare, mean rewards and revenue per period in the last dense rollouts. Faint points are runs; "
        "bars are 95 % intervals of the mean over seeds.",
        by_taxes(table),
    )
    rows = []
    for setting, runs in table.groupby("setting", sort=False):
        for taxes, alike in runs.groupby("taxes", sort=False):
            estimates = [_over_seeds(alike[name]) for name in ("welfare", "consumer", "firm", "revenue")]
            figures = [number for mean, half in estimates for number in (mean, half)]
            rows.append([*([setting] if keys else []), taxes, len(alike), *figures])
    head = ["welfare", "±", "consumer's reward", "±", "firm's reward", "±", "revenue", "±"]
    section.table([*(["setting"] if keys else []), "taxes", "runs", *head], with_dashes(rows), sortable=True)
    for setting, runs in table.groupby("setting", sort=False):
        if (runs["taxes"] != LEARNED).any():
            section.text((f"{setting}: " if keys else "") + _verdict(premium(runs), LEARNED in set(runs["taxes"])))
    if LEARNED not in set(table["taxes"]):
        section.missing(
            "No government of this folder learned; this adds runs whose government does, of the same sweep:",
            f"python run_training.py --config configs/sweeps/fixed_taxes.yaml --experiment-dir {folder} "
            "--set sweep.agents.frozen_government_action=[null]",
        )


def _verdict(found: Premium, has_learned: bool) -> str:
    best = f"The best of the fixed taxes are {found.best}"
    if not has_learned:
        return f"{best}."
    if np.isnan(found.percent):
        return f"{best}; welfare under them is not positive, so that the difference is no percentage."
    interval = (
        f"a 95 % interval over seeds from {number_text(found.low)} to {number_text(found.high)} %"
        if np.isfinite(found.low)
        else "no interval with a single run"
    )
    return (
        f"{best}; welfare under learned taxes differs from that under these by {number_text(found.percent)} %, with "
        f"{interval} (published: 15 % more). The best were picked by these same runs, which flatters fixed taxes a "
        "little."
    )


def _over_seeds(values: pd.Series) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval; NaN for a single run."""
    found = Estimate.of(values.to_numpy())
    return found.mean, found.high - found.mean if len(values) > 1 else np.nan


def by_taxes(table: pd.DataFrame) -> go.Figure:
    """Draw what runs reached by their taxes: a point for each run, and means with intervals."""
    panels = {"welfare": "Welfare", "consumer": "Consumer's reward", "firm": "Firm's reward", "revenue": "Revenue"}
    figure = grid(list(panels.values()), columns=2, row_height=260)
    settings = list(dict.fromkeys(table["setting"]))
    for number, name in enumerate(panels):
        for order, (setting, runs) in enumerate(table.groupby("setting", sort=False)):
            color = COLORS[order % len(COLORS)]
            dots = {"size": 5, "color": color, "opacity": 0.35}
            points = go.Scatter(x=runs["taxes"], y=runs[name], mode="markers", marker=dots, showlegend=False)
            figure.add_trace(points, **cell(number, 2))
            means = {taxes: _over_seeds(alike[name]) for taxes, alike in runs.groupby("taxes", sort=False)}
            mean = go.Scatter(
                x=list(means), y=[mean for mean, _ in means.values()], mode="markers",
                error_y={"array": [half for _, half in means.values()]},
                marker={"size": 9, "color": color, "symbol": "diamond"}, name=str(setting),
            )  # fmt: skip
            figure.add_trace(mean.update(showlegend=number == 0 and len(settings) > 1), **cell(number, 2))
    fixed = set(table["taxes"]) - {LEARNED}
    by_rates = sorted(fixed, key=lambda taxes: [float(rate) for rate in re.findall(r"[\d.]+", taxes)])
    return figure.update_xaxes(type="category", categoryorder="array", categoryarray=[*by_rates, LEARNED])
