"""Training by phase."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from rbc_warp.analysis.picture import PANELS
from rbc_warp.analysis.report.drawing import COLORS, COLUMNS, cell, grid
from rbc_warp.analysis.report.parts import Section, Source
from rbc_warp.analysis.rollouts import load_metrics
from rbc_warp.config.shipped import launcher
from rbc_warp.economy import curriculum
from rbc_warp.economy.parameters import Economy


def fill(source: Source, section: Section) -> None:
    if not source.run.metrics_path.exists():
        text = "There are no metrics of training (metrics.jsonl), as in a run of the public implementation; train one:"
        section.missing(text, f"{launcher('train')} --config configs/rbc.yaml")
        return
    starts = curriculum.phases(source.config, Economy.from_config(source.config))
    section.figure(
        "Rewards, prices, wages, hours, taxes and entropy by iteration. Dotted lines: where firms and the government "
        "begin to learn. See what jumps there, and whether the curves are flat at the end.",
        curves(load_metrics(source.run.path), starts),
    )


def curves(metrics: pd.DataFrame, starts: Sequence[tuple[int, str]]) -> go.Figure:
    """Draw metrics against iterations, with the beginnings of phases."""
    figure = grid([f"{title} [{unit}]" for title, unit, _ in PANELS])
    for number, (_, _, lines) in enumerate(PANELS):
        for color, (name, label) in zip(COLORS, lines, strict=False):
            if name in metrics:
                known = metrics[name].dropna()
                line = go.Scatter(x=known.index, y=known, name=label, mode="lines", line={"color": color, "width": 1.5})
                figure.add_trace(line.update(showlegend=len(lines) > 1), **cell(number))
        for start, name in starts:
            text = (
                {"annotation_text": name, "annotation_font_size": 10, "annotation_bgcolor": "rgba(255,255,255,0.75)"}
                if number < COLUMNS
                else {}
            )
            figure.add_vline(x=start, line={"dash": "dot", "color": "#777", "width": 1}, **text, **cell(number))
    return figure.update_xaxes(title_text="iteration", row=len(PANELS) // COLUMNS)
