"""The figures of the report: pure functions from data to a Plotly figure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from rbc_warp.analysis.compare import Group
from rbc_warp.analysis.gaps import Point
from rbc_warp.analysis.inequality import lorenz
from rbc_warp.analysis.national import EXPENDITURE, INCOME
from rbc_warp.analysis.picture import PANELS
from rbc_warp.analysis.relations import Line
from rbc_warp.equilibrium.results import PUBLISHED_BARS

COLORS = ("#2458a6", "#c8553d", "#5a8f3c", "#8a5aa6", "#c29a2b", "#3b9aa0")
MARGINS = 150  # Above and below the panels [pixels].
FAINT = "rgba(90,90,90,0.35)"
BAND = "rgba(36,88,166,0.14)"
COLUMNS = 3
LOOK = go.layout.Template(
    layout={
        "colorway": COLORS,
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#222"},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "xaxis": {
            "title": {"standoff": 4},
            "gridcolor": "#eee",
            "linecolor": "#999",
            "zeroline": False,
            "automargin": True,
        },
        "yaxis": {"gridcolor": "#eee", "linecolor": "#999", "zerolinecolor": "#bbb", "automargin": True},
        "margin": {"l": 50, "r": 20, "t": 60, "b": 90},
        "hovermode": "closest",
    }
)
# Panels of the economy by period: variable, title, unit.
FIRM_PANELS = (
    ("prices", "Prices", "money per unit"),
    ("wages", "Wages", "money per hour"),
    ("inventories", "Inventories", "units"),
    ("overdemanded", "Rationed before", "share of episodes"),
    ("labor", "Labor", "hours"),
    ("production", "Production", "units"),
    ("sales", "Sales to consumers", "units"),
    ("exports", "Exports", "units"),
    ("firm_budget", "Firms' budgets", "money"),
    ("capital", "Capital", "money"),
)
CONSUMER_PANELS = (
    ("hours", "Hours worked", "hours"),
    ("eaten", "Consumption, all goods", "units"),
    ("consumer_budget", "Consumers' budgets", "money"),
    ("consumer_reward", "Consumers' rewards", "utility"),
)
TAX_PANELS = (("income_tax", "Income tax", "rate"), ("corporate_tax", "Corporate tax", "rate"))
LORENZ = ("disposable income", "consumption", "final wealth", "utility")


def grid(titles: Sequence[str], columns: int = COLUMNS, row_height: int = 240) -> go.Figure:
    """Make an empty figure of panels with these titles."""
    rows = -(-len(titles) // columns)
    height = row_height * rows + MARGINS
    gap = min(0.35 / rows, 0.2) if rows > 1 else 0.0
    figure = make_subplots(rows, columns, subplot_titles=titles, vertical_spacing=gap, horizontal_spacing=0.09)
    figure.update_layout(
        template=LOOK, height=height, legend={"orientation": "h", "y": -50 / (row_height * rows), "yanchor": "top"}
    )
    figure.update_annotations(font_size=12)
    return figure


def cell(number: int, columns: int = COLUMNS) -> dict[str, int]:
    """Row and column of a panel."""
    return {"row": number // columns + 1, "col": number % columns + 1}


def training(metrics: pd.DataFrame, starts: Sequence[tuple[int, str]]) -> go.Figure:
    """Draw metrics against iterations, with the beginnings of phases."""
    figure = grid([f"{title} [{unit}]" for title, unit, _ in PANELS])
    for number, (_, _, lines) in enumerate(PANELS):
        for color, (name, label) in zip(COLORS, lines, strict=False):
            if name in metrics:
                known = metrics[name].dropna()
                line = go.Scatter(x=known.index, y=known, name=label, mode="lines", line={"color": color, "width": 1.5})
                figure.add_trace(line.update(showlegend=len(lines) > 1), **cell(number))
        for start, name in starts:
            text = {"annotation_text": name, "annotation_font_size": 10} if number < COLUMNS else {}
            figure.add_vline(x=start, line={"dash": "dot", "color": "#777", "width": 1}, **text, **cell(number))
    return figure.update_xaxes(title_text="iteration", row=len(PANELS) // COLUMNS)


def economy(rollouts: Mapping[str, xr.Dataset]) -> go.Figure:
    """Draw every firm and the mean by period, with the band of 90 % of agents and episodes; a button per checkpoint."""
    panels = (*FIRM_PANELS, *CONSUMER_PANELS, *TAX_PANELS)
    figure = grid([f"{title} [{unit}]" for _, title, unit in panels], columns=4, row_height=220)
    shown_at: list[str] = []
    last = list(rollouts)[-1]
    for label, rollout in rollouts.items():
        data = rollout.assign(eaten=rollout["consumption"].sum("good"))
        for number, (name, _, _) in enumerate(panels):
            traces = _by_period(data[name])
            for trace in traces:
                trace.update(visible=label == last, showlegend=number == 0 and trace.name not in (None, "firm"))
                figure.add_trace(trace, **cell(number, 4))
            shown_at += [label] * len(traces)
    buttons = [
        {"label": f"checkpoint {label}", "method": "restyle", "args": [{"visible": [at == label for at in shown_at]}]}
        for label in rollouts
    ]
    menu = {"type": "buttons", "direction": "right", "x": 0, "xanchor": "left", "y": 1.06, "yanchor": "bottom"}
    figure.update_layout(updatemenus=[{**menu, "active": len(rollouts) - 1, "buttons": buttons}], margin_t=110)
    return figure.update_xaxes(title_text="period", row=-(-len(panels) // 4))


def _by_period(values: xr.DataArray) -> list[go.Scatter]:
    """A faint line for each firm, the band that holds 90 % of agents and episodes, and the mean."""
    others = [dim for dim in values.dims if dim != "period"]
    period = values["period"].values
    low, high = (values.quantile(q, others).values for q in (0.05, 0.95))
    band = {"line": {"width": 0}, "hoverinfo": "skip", "mode": "lines"}
    traces = [
        go.Scatter(x=period, y=high, **band),
        go.Scatter(x=period, y=low, fill="tonexty", fillcolor=BAND, name="90 % of agents and episodes", **band),
    ]  # fmt: skip
    if "firm" in values.dims:
        for firm in values["firm"].values:
            mean = values.sel(firm=firm).mean("episode").values
            hover = f"firm {firm}: %{{y:.4g}}<extra></extra>"
            line = {"width": 1, "color": FAINT}
            traces.append(go.Scatter(x=period, y=mean, mode="lines", line=line, name="firm", hovertemplate=hover))
    mean = values.mean(others).values
    traces.append(go.Scatter(x=period, y=mean, mode="lines", line={"width": 2.5, "color": COLORS[0]}, name="mean"))
    return traces


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


def lorenz_curves(measures: Mapping[str, np.ndarray], ginis: Mapping[str, float]) -> go.Figure:
    """Draw the Lorenz curve of each measure of (E, I), all consumers of all episodes together."""
    figure = grid([""], columns=1, row_height=360)
    figure.add_trace(
        go.Scatter(x=[0, 1], y=[0, 1], name="equality", mode="lines", line={"dash": "dash", "color": "#999"})
    )
    for name, values in measures.items():
        people, share = lorenz(values)
        if np.isfinite(share).all():
            at = np.unique(np.linspace(0, len(people) - 1, 101).astype(int))
            label = f"{name}, Gini {ginis[name]:.3f}"
            figure.add_trace(go.Scatter(x=people[at], y=share[at], name=label, mode="lines"))
    figure.update_xaxes(title_text="share of consumers, poorest first")
    return figure.update_yaxes(title_text="share of the total")


def by_theta(theta: np.ndarray, measures: Mapping[str, np.ndarray]) -> go.Figure:
    """Draw each measure (E, I) against consumers' disutility of work (I,): mean and the band of 90 % of episodes."""
    figure = grid([name.capitalize() for name in measures], columns=5, row_height=250)
    order = np.argsort(theta)
    for number, values in enumerate(measures.values()):
        low, high = (np.quantile(values, q, axis=0)[order] for q in (0.05, 0.95))
        band = {"line": {"width": 0}, "hoverinfo": "skip", "mode": "lines", "showlegend": False}
        figure.add_trace(go.Scatter(x=theta[order], y=high, **band), **cell(number, 5))
        filled = go.Scatter(x=theta[order], y=low, fill="tonexty", fillcolor=BAND, **band)
        figure.add_trace(filled, **cell(number, 5))
        points = {"size": 4, "color": COLORS[0]}
        mean = go.Scatter(x=theta[order], y=values.mean(axis=0)[order], mode="markers", marker=points, showlegend=False)
        figure.add_trace(mean, **cell(number, 5))
    return figure.update_xaxes(title_text="θ")


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


def policy(responses: Mapping[str, Mapping[str, tuple[np.ndarray, Mapping[str, np.ndarray]]]]) -> go.Figure:
    """Draw probabilities or means of choices against what an agent sees.

    ``responses``: choice → quantity seen → its values (n,) and, by action, the curve (n,). A row of panels per choice.
    """
    seen = list(next(iter(responses.values())))
    titles = [choice for choice in responses for _ in seen]
    figure = grid(titles, columns=len(seen), row_height=250)
    for row, curves in enumerate(responses.values(), start=1):
        for column, (name, (x, by_action)) in enumerate(curves.items(), start=1):
            for order, (action, y) in enumerate(by_action.items()):
                line = {"color": COLORS[order % len(COLORS)], "width": 1.5}
                trace = go.Scatter(x=x, y=y, mode="lines", name=action, line=line, legendgroup=f"{row}")
                figure.add_trace(trace.update(showlegend=column == 1 and len(by_action) > 1), row=row, col=column)
            figure.update_xaxes(title_text=name, row=row, col=column)
    return figure.update_yaxes(rangemode="tozero")


def gaps(points: Sequence[Point]) -> go.Figure:
    """Draw each type's largest gain, as a share of what its bar is a share of, against environment steps."""
    figure = grid([f"{agent}: largest gain [%]" for agent in PUBLISHED_BARS])
    for number, (agent, bar) in enumerate(PUBLISHED_BARS.items()):
        for order, seed in enumerate(dict.fromkeys((point.run.path, point.seed) for point in points)):
            known = [p for p in points if p.run.path == seed[0] and agent in p.gaps and p.gaps[agent].share is not None]
            shares = np.array([p.gaps[agent].share for p in known], dtype=float)
            high = np.array([p.gaps[agent].high for p in known], dtype=float)
            trace = go.Scatter(
                x=[p.env_steps for p in known], y=shares, mode="lines+markers", name=f"seed {seed[1]}",
                line_color=COLORS[order % len(COLORS)], error_y={"array": high - shares, "arrayminus": 0 * shares},
            )  # fmt: skip
            figure.add_trace(trace.update(showlegend=number == 0), **cell(number))
        figure.add_hline(
            y=bar, line_dash="dash", line_color=COLORS[1], annotation_text=f"bar {bar:g} %", **cell(number)
        )
    return figure.update_xaxes(title_text="environment steps", nticks=4, tickformat=".3s", rangemode="tozero")


def relations(table: pd.DataFrame, lines: Sequence[Line]) -> go.Figure:
    """Draw one quantity against another over runs, with the regression line and its 95 % band."""
    figure = grid([f"{line.y} on {line.x}: r² {line.r_squared:.2f}" for line in lines], row_height=280)
    for number, line in enumerate(lines):
        at = np.linspace(table[line.x].min(), table[line.x].max(), 40)
        middle, half = line.predict(at)
        band = {"line": {"width": 0}, "hoverinfo": "skip", "mode": "lines", "showlegend": False}
        figure.add_trace(go.Scatter(x=at, y=middle + half, **band), **cell(number))
        filled = go.Scatter(x=at, y=middle - half, fill="tonexty", fillcolor="rgba(200,85,61,0.15)", **band)
        figure.add_trace(filled, **cell(number))
        fit = go.Scatter(x=at, y=middle, mode="lines", line_color=COLORS[1], showlegend=False)
        figure.add_trace(fit, **cell(number))
        dots = go.Scatter(x=table[line.x], y=table[line.y], mode="markers", text=table["run"], marker_color=COLORS[0])
        figure.add_trace(dots.update(showlegend=False), **cell(number))
        figure.update_xaxes(title_text=line.x, **cell(number))
    return figure.update_xaxes(exponentformat="none")


def changes(groups: Sequence[Group]) -> go.Figure:
    """Bars: the change of utility of each group of consumers, with its interval."""
    means = [group.change.mean for group in groups]
    bars = go.Bar(
        x=[f"{group.first}–{group.last}" for group in groups],
        y=means,
        error_y={"type": "data", "array": [group.change.high - group.change.mean for group in groups]},
        marker_color=[COLORS[2] if mean > 0.0 else COLORS[1] for mean in means],
    )
    figure = go.Figure(bars)
    axes = {"xaxis_title": "consumers, by falling θ", "yaxis_title": "change of utility"}
    figure.update_layout(template=LOOK, height=380, **axes)
    return figure
