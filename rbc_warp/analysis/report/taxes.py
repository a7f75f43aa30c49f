"""Welfare, rewards and revenue under constant taxes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from rbc_warp.analysis.fiscal import revenues
from rbc_warp.analysis.report.drawing import COLUMNS, cell, grid
from rbc_warp.analysis.report.parts import Section, Source
from rbc_warp.config.shipped import launcher
from rbc_warp.economy import curriculum
from rbc_warp.economy.reference import Stage
from rbc_warp.runs.run import load_policies

REVENUES = {"revenue": "Revenue", "income_revenue": "from income", "corporate_revenue": "from profits"}


def fill(source: Source, section: Section) -> None:
    scan = next((scan for scan in reversed(source.results.scans) if scan["agent"] == "government"), None)
    pairs = None if scan is None else tax_pairs(scan)
    if scan is None or pairs is None or pairs.empty:
        text = "No tax pairs have been tried; this scans them all:"
        section.missing(text, f"{launcher('best-response')} {source.run.path} --ep-strs latest --scan")
        return
    factor = source.economy.firm_reward_for_government_factor
    section.figure(
        f"What each constant pair of taxes brings at checkpoint {scan['checkpoint']}, consumers and firms playing on "
        f"as they learned: welfare (consumers' rewards plus {factor:g} of the firms'), and mean rewards per agent and "
        "period. Stars: the largest value. A star at the taxes that the government chose means it cannot gain.",
        surface(
            pairs, {"government": "Welfare", "consumer": "Consumer's reward", "firm": "Firm's reward"}
        ),
    )  # fmt: skip
    if source.has_policies and scan["checkpoint"] == "latest":
        stage = Stage(theta_factor=curriculum.theta_factor(source.config, source.iteration))
        allowed = curriculum.allowed_actions(source.config, source.economy, source.iteration)
        policies = load_policies(source.run, source.config)
        table = revenues(source.economy, policies, allowed, stage)
        section.figure(
            "Tax revenue per period under the same pairs, the saved policies played again in 8 episodes: a Laffer "
            "curve would rise and fall with the rate. All revenue goes back to the consumers in equal parts.",
            laffer(
                table,
                REVENUES,
            ),
        )
        section.figure(
            "The same revenue over both rates, as a surface; stars: the largest.",
            surface(table, REVENUES),
        )


def tax_pairs(scan: Mapping[str, Any]) -> pd.DataFrame:
    """Return a scan of constant taxes as a table: both rates, each type's reward, and the government's gain."""
    rows = []
    for name, rewards in scan["rewards"].items():
        rates = re.fullmatch(r"income tax ([\d.e-]+), corporate tax ([\d.e-]+)", name)
        if rates:
            rows.append((float(rates[1]), float(rates[2]), *rewards.values(), scan["gains"][name]))
    some = next(iter(scan["rewards"].values()))
    return pd.DataFrame(rows, columns=["income_tax", "corporate_tax", *some, "gain"])


def surface(pairs: pd.DataFrame, columns: Mapping[str, str]) -> go.Figure:
    """Draw columns of a table of tax pairs as heat maps over both rates, the largest value marked."""
    figure = grid(list(columns.values()), row_height=330)
    width = 1.0 / COLUMNS
    for number, name in enumerate(columns):
        table = pairs.pivot(index="corporate_tax", columns="income_tax", values=name)
        bar = {"len": 0.9, "x": (number % COLUMNS + 0.76) * width, "thickness": 8, "y": 0.5}
        heat = go.Heatmap(
            x=table.columns, y=table.index, z=table.values, colorscale="Viridis", colorbar=bar,
            hovertemplate="income tax %{x}, corporate tax %{y}: %{z:.5g}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(heat, **cell(number))
        best = pairs.loc[pairs[name].idxmax()]
        marker = {"symbol": "star", "size": 14, "color": "white", "line": {"color": "black", "width": 1}}
        star = go.Scatter(x=[best["income_tax"]], y=[best["corporate_tax"]], mode="markers", marker=marker)
        figure.add_trace(star.update(showlegend=False, hoverinfo="skip"), **cell(number))
        domain = [(number % COLUMNS + 0.06) * width, (number % COLUMNS + 0.75) * width]
        figure.update_xaxes(title_text="income tax", domain=domain, **cell(number))
        figure.update_yaxes(title_text="corporate tax" if number % COLUMNS == 0 else None, **cell(number))
    for number, note in enumerate(figure.layout.annotations):
        note.x = (number % COLUMNS + 0.4) * width
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
