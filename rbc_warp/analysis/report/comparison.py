"""Baseline against reform."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from rbc_warp.analysis.compare import Comparison, Group
from rbc_warp.analysis.report.drawing import COLORS, grid
from rbc_warp.analysis.report.parts import Section, with_dashes
from rbc_warp.runs.console import range_text


def changes(groups: Sequence[Group]) -> go.Figure:
    """Bars: the change of utility of each group of consumers, with its interval."""
    means = [group.change.mean for group in groups]
    bars = go.Bar(
        x=[range_text(group.first, group.last) for group in groups],
        y=means,
        error_y={"type": "data", "array": [group.change.high - group.change.mean for group in groups]},
        marker_color=[COLORS[2] if mean > 0.0 else COLORS[1] for mean in means],
    )
    figure = grid([""], columns=1, row_height=380).add_trace(bars)
    return figure.update_layout(xaxis_title="consumers, by falling θ", yaxis_title="change of utility")


def sections_of(found: Comparison) -> list[Section]:
    """Return the page's sections: the figures of both sides, and who gains."""
    section = Section("comparison", "Baseline and reform")
    section.text(f"Base: {found.base}. Reform: {found.reform}. Means over periods, and paired changes, 95 %.")
    rows = [[d.figure, d.unit, d.base, d.reform, d.change.mean, d.change.low, d.change.high] for d in found.differences]
    section.table(["figure", "unit", "base", "reform", "change", "low", "high"], rows)
    consumers = Section("consumers", "Who gains and who loses")
    consumers.figure(
        f"{found.winners:.0%} of the consumers gain and {found.losers:.0%} lose; bars above 0 are groups that gain. "
        "The table says what permanent change of consumption is worth the change to them.",
        changes(found.groups),
    )
    rows = [
        [range_text(g.first, g.last), g.theta, g.change.mean, g.change.low, g.change.high, g.equivalent,
         100 * g.winners, 100 * g.losers]
        for g in found.groups
    ]  # fmt: skip
    head = ["consumers", "θ", "change", "low", "high", "in consumption [%]", "gain [%]", "lose [%]"]
    consumers.table(head, with_dashes(rows))
    return [section, consumers]
