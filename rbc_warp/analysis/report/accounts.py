"""National accounts and what follows from them."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
import xarray as xr

from rbc_warp.analysis.national import EXPENDITURE, INCOME, residuals
from rbc_warp.analysis.report.drawing import COLORS, cell, grid
from rbc_warp.analysis.report.parts import Section, Source


def fill(source: Source, section: Section) -> None:
    if source.no_rollout(section):
        return
    accounts, rest = source.accounts, residuals(source.accounts)
    section.figure(
        f"GDP of dense rollout '{source.last}' in three ways, means over episodes: bars are components, the black line "
        "is GDP by production, prices times units made. Each side comes from other saved numbers (hours and capital; "
        "baskets, exports and inventories; wages and firms' budgets). Bars sum to the line, so the difference is zero: "
        f"at most {rest['expenditure']:.0e} by expenditure and {rest['income']:.0e} by income of the terms summed, "
        "the rounding of 32-bit files. Firms turn money into capital that nobody in the economy sells, so it counts as "
        "imported; inventories change at current prices, holding gains stand apart.",
        gdp(accounts),
    )
    mean = accounts[["gdp_production", "gdp_expenditure", "gdp_income"]].mean("episode")
    rows: list[list[Any]] = [[int(period)] for period in mean["period"].values]
    for name in mean:
        for row, value in zip(rows, mean[name].values, strict=True):
            row.append(float(value))
    section.table(["period", "GDP by production", "by expenditure", "by income"], rows)
    section.figure(
        "Labor's share of GDP; the markup α p Y / (w L) of price over the marginal cost of labor, median over firms "
        "and episodes; the Herfindahl index of firms' revenues (1 is a monopoly); the mean hourly wage over the price "
        "level; and gains from holding inventories while prices change. Gaps: nothing was made, sold or paid.",
        indicators(accounts),
    )


def gdp(accounts: xr.Dataset) -> go.Figure:
    """Stack the components of GDP by expenditure and by income beside GDP by production, means over episodes."""
    figure = grid(["By expenditure", "By income", "Difference from production"], row_height=330)
    mean = accounts.mean("episode")
    for number, (side, parts) in enumerate((("expenditure", EXPENDITURE), ("income", INCOME))):
        for color, (name, label) in zip(COLORS, parts.items(), strict=False):
            bar = go.Bar(x=mean["period"], y=mean[name], name=label, marker_color=color, legendgroup=side)
            figure.add_trace(bar, **cell(number))
        line = {"color": "#111", "width": 2}
        total = go.Scatter(x=mean["period"], y=mean["gdp_production"], name="GDP by production", line=line)
        figure.add_trace(total.update(showlegend=number == 0), **cell(number))
        rest = (mean[f"gdp_{side}"] - mean["gdp_production"]) / mean["gdp_production"].max()
        figure.add_trace(go.Scatter(x=mean["period"], y=rest, name=f"by {side}", line_color=COLORS[number]), **cell(2))
    figure.update_yaxes(range=[-0.01, 0.01], tickformat=".1%", title_text="share of the largest GDP", **cell(2))
    return figure.update_layout(barmode="relative").update_xaxes(title_text="period")


def indicators(accounts: xr.Dataset) -> go.Figure:
    """Draw what follows from the accounts by period, means over episodes."""
    panels = {
        "labor_share": "Labor share of GDP",
        "markup": "Markup: price / marginal cost of labor",
        "concentration": "Concentration of revenue (HHI)",
        "real_wage": "Real wage [units per hour]",
        "price_level": "Price level [money per unit sold]",
        "holding_gains": "Holding gains on inventories [money]",
    }
    figure = grid(list(panels.values()))
    for number, name in enumerate(panels):
        values = accounts[name]
        middle = values.median(["episode", "firm"]) if name == "markup" else values.mean("episode")
        line = go.Scatter(x=accounts["period"], y=middle, line={"color": COLORS[0], "width": 2}, showlegend=False)
        figure.add_trace(line, **cell(number))
    even = 1.0 / accounts.sizes["firm"]
    figure.add_hline(y=even, line_dash="dash", line_color="#777", annotation_text="all firms equal", **cell(2))
    return figure.update_xaxes(title_text="period", row=2)
