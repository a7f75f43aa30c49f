"""The look of all figures of the report."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

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
