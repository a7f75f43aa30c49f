"""How close to an equilibrium: gaps, verdicts, exploitability."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from rbc_warp.analysis.gaps import Point, points_of
from rbc_warp.analysis.report import deviations
from rbc_warp.analysis.report.drawing import COLORS, cell, grid
from rbc_warp.analysis.report.parts import Section, Source, with_dashes
from rbc_warp.equilibrium.results import PUBLISHED_BARS


def fill(sources: list[Source], section: Section, command: str) -> None:
    points = [point for source in sources if source.results.verdicts for point in points_of(source.run)]
    if points:
        section.figure(
            "The largest gain that a tried deviation of one agent brings, as a share of what its type gained by "
            "learning, with the upper end of its 95 % interval. Below the dashed bar, the checkpoint passes.",
            gaps(points),
        )
        rows = [
            [point.run.path.name, point.seed, point.iteration, "passes" if point.passed else "fails", agent, gap.share,
             gap.high, PUBLISHED_BARS[agent], gap.found]
            for point in points for agent, gap in point.gaps.items()
        ]  # fmt: skip
        head = ["run", "seed", "iteration", "verdict", "type", "gain [%]", "upper end [%]", "bar [%]", "best deviation"]
        section.table(head, with_dashes(rows), sortable=True)
        if len(sources) == 1:
            deviations.fill(sources[0], section, command)
    else:
        section.missing("There is no verdict on an equilibrium; this searches all deviations for one:", command)
    rows = [
        [source.run.path.name, row["checkpoint"], row["agent"], row["gain"], row["low"], row["high"], row["percent"],
         row["learning_percent"], row["how"]]
        for source in sources for row in source.results.exploitability()
    ]  # fmt: skip
    if rows:
        section.text(
            "Exploitability: the largest gain found in any way, per agent and period, with its 95 % interval. 0 would "
            "be a best response; what was not tried may gain more."
        )
        head = [
            "run",
            "checkpoint",
            "type",
            "gain",
            "low",
            "high",
            "of training gain [%]",
            "of own learning [%]",
            "how",
        ]
        section.table(head, with_dashes(rows), sortable=True)


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
