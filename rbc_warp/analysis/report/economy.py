"""The economy by period, at checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go
import xarray as xr

from rbc_warp.analysis.report.drawing import BAND, COLORS, FAINT, add_buttons, cell, grid
from rbc_warp.analysis.report.parts import Section, Source

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


def fill(source: Source, section: Section) -> None:
    if source.no_rollout(section):
        return
    section.figure(
        f"The {source.economy.num_periods} quarters of an episode at checkpoints (buttons: iterations, 'final' the end "
        "of training). Thin gray lines: firms, means over episodes; blue: the mean over agents and episodes, with the "
        "band that holds 90 % of them. See how prices and wages settle, who is rationed, and where goods and money "
        "pile up.",
        by_period(source.checkpoints),
    )


def by_period(rollouts: Mapping[str, xr.Dataset]) -> go.Figure:
    """Draw every firm and the mean by period, with the band of 90 % of agents and episodes; a button per checkpoint."""
    panels = (*FIRM_PANELS, *CONSUMER_PANELS, *TAX_PANELS)
    figure = grid([f"{title} [{unit}]" for _, title, unit in panels], columns=4, row_height=220)
    shown_at: list[str] = []
    last = list(rollouts)[-1]
    for label, rollout in rollouts.items():
        data = rollout.assign(eaten=rollout["consumption"].sum("good"))
        for number, (name, _, _) in enumerate(panels):
            traces = _traces(data[name])
            for trace in traces:
                trace.update(visible=label == last, showlegend=number == 0 and trace.name not in (None, "firm"))
                figure.add_trace(trace, **cell(number, 4))
            shown_at += [label] * len(traces)
    visible = {f"checkpoint {label}": {"visible": [at == label for at in shown_at]} for label in rollouts}
    add_buttons(figure, visible, active=len(rollouts) - 1)
    for number in range(len(panels) - len(TAX_PANELS), len(panels)):
        figure.update_yaxes(rangemode="nonnegative", **cell(number, 4))
    return figure.update_xaxes(title_text="period", row=-(-len(panels) // 4))


def _traces(values: xr.DataArray) -> list[go.Scatter]:
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
