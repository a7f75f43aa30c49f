"""The runs of an experiment, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from rbc_warp.analysis.relations import FEWEST, Line, relations
from rbc_warp.analysis.report.drawing import COLORS, cell, grid
from rbc_warp.analysis.report.parts import LAST_SHARE, Section, Source, with_dashes
from rbc_warp.runs.sweep import varied


def index(sources: list[Source]) -> tuple[pd.DataFrame, dict[str, list[Any]]]:
    """Return final figures of runs, a row each, and the keys in which they differ."""
    rows = []
    for source in sources:
        verdicts = source.results.verdicts
        row: dict[str, Any] = {"run": source.run.path.name, "seed": source.config.train.base_seed}
        for name, value in source.final.items():
            part, _, figure = name.partition(".")
            if part == "reward":
                row[f"{figure} reward"] = value
            elif part == "economy":
                row[figure.replace("_", " ")] = value
        row["verdict"] = ("passes" if verdicts[-1]["passed"] else "fails") if verdicts else "none"
        rows.append(row)
    keys = {key: values for key, values in varied([s.config for s in sources]).items() if key != "train.base_seed"}
    return pd.DataFrame(rows), keys


def fill(sources: list[Source], section: Section) -> None:
    table, keys = index(sources)
    rewards = [name for name in table if name.endswith(" reward")]
    shown = ["price", "wage", "hours", "income tax", "corporate tax"]
    columns = ["run", "seed", *rewards, *(name for name in shown if name in table), "verdict"]
    rows = [
        [*(str(values[number]) for values in keys.values()), *row]
        for number, row in enumerate(table[columns].itertuples(index=False))
    ]
    section.text(
        f"Every run with the keys in which they differ, means over the last {LAST_SHARE:.0%} of its logged iterations, "
        "and its last verdict. A click on a heading sorts."
    )
    section.table([*keys, *columns], with_dashes(rows), sortable=True)
    lines = relations(table)
    if not lines:
        section.text(f"Relations between final figures need at least {FEWEST} runs with metrics that differ.")
        return
    section.figure(
        "How final figures go together over runs: points are runs, with the least-squares line and its 95 % interval. "
        "Few runs make wide intervals; a relation over seeds or settings is no causal effect.",
        regressions(table, lines),
    )
    head = ["y", "x", "slope", "95 % from", "to", "r²", "runs"]
    section.table(head, [[each.y, each.x, each.slope, each.low, each.high, each.r_squared, each.n] for each in lines])


def regressions(table: pd.DataFrame, lines: Sequence[Line]) -> go.Figure:
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
