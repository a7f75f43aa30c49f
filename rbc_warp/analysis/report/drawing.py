"""The look of all figures of the report, and the places of their panels on a wide and on a narrow page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

COLORS = ("#2458a6", "#c8553d", "#5a8f3c", "#8a5aa6", "#c29a2b", "#3b9aa0")
FAINT = "rgba(90,90,90,0.35)"
BAND = "rgba(36,88,166,0.14)"
COLUMNS = 3
WIDE, NARROW = 1100, 358
"""Widths for which figures are laid out: a page on a screen and on paper, and on a phone [pixels]."""
TITLE, TICKS, AXIS_TITLE, BUTTONS, LINE, BAR = 30, 26, 20, 54, 19, 62
"""Space for a panel's title, ticks and axis title, for buttons, a line of a legend, and a color bar [pixels]."""
LOOK = go.layout.Template(
    layout={
        "colorway": COLORS,
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#222"},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "xaxis": {
            "title": {"standoff": 4, "font": {"size": 12}},
            "gridcolor": "#eee",
            "linecolor": "#999",
            "zeroline": False,
            "automargin": True,
        },
        "yaxis": {
            "title": {"standoff": 4, "font": {"size": 12}},
            "gridcolor": "#eee",
            "linecolor": "#999",
            "zerolinecolor": "#bbb",
            "automargin": True,
        },
        "hovermode": "closest",
        "legend": {"orientation": "h", "x": 0, "yanchor": "top", "groupclick": "toggleitem", "font": {"size": 11}},
    }
)


def grid(titles: Sequence[str], columns: int = COLUMNS, row_height: int = 240) -> go.Figure:
    """Make an empty figure of panels with these titles; a row's height holds titles and ticks, too [pixels]."""
    figure = make_subplots(-(-len(titles) // columns), columns, subplot_titles=titles)
    meta = {"columns": columns, "row_height": row_height, "titles": list(titles)}
    return figure.update_layout(template=LOOK, meta=meta)


def cell(number: int, columns: int = COLUMNS) -> dict[str, int]:
    """Row and column of a panel."""
    return {"row": number // columns + 1, "col": number % columns + 1}


def add_buttons(figure: go.Figure, changes: Mapping[str, Mapping[str, Any]], active: int = 0) -> None:
    """Add a row of buttons above a figure: by label, what each changes of the traces."""
    buttons = [{"label": label, "method": "restyle", "args": [dict(change)]} for label, change in changes.items()]
    figure.update_layout(updatemenus=[{"type": "buttons", "direction": "right", "active": active, "buttons": buttons}])


def arrange(figure: go.Figure, narrow: bool = False) -> go.Figure:
    """Return a copy of a figure of :func:`grid` with its panels, titles, color bars and legend in their places.

    On a narrow page, panels flow into one column, or two where there are four or more.
    """
    figure = go.Figure(figure)
    meta = figure.layout.meta
    if not meta or "row_height" not in meta:
        return figure
    panels = [name.replace("xaxis", "") for name in figure.to_dict()["layout"] if name.startswith("xaxis")]
    panels.sort(key=lambda panel: int(panel or 1))
    for panel in panels[len(meta["titles"]) :]:  # a last row that is not full
        figure.update_layout({f"xaxis{panel}.visible": False, f"yaxis{panel}.visible": False})
    panels = panels[: len(meta["titles"])]
    _head_legend(figure, panels, meta)
    columns = min(1 + (meta["columns"] > 3), len(panels)) if narrow else meta["columns"]
    rows = -(-len(panels) // columns)
    width = (NARROW if narrow else WIDE) - (margins := {"l": 50, "r": 14})["l"] - margins["r"]
    titled = any(figure.layout[f"yaxis{panel}"].title.text for panel in panels)
    gap = (48 if narrow else 84 if titled and columns > 1 else 62) / width
    slot = (1.0 - (columns - 1) * gap) / columns
    below = TICKS + AXIS_TITLE * any(figure.layout[f"xaxis{panel}"].title.text for panel in panels)
    title = TITLE + 14 * any(narrow and columns > 1 and " [" in name for name in meta["titles"])
    panel_height = min(meta["row_height"], 280 if narrow else 1000) - TITLE - AXIS_TITLE - TICKS
    pitch = panel_height + title + below
    height = rows * panel_height + (rows - 1) * (title + below)
    tops = {}
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        left, top = column * (slot + gap), 1.0 - row * pitch / height
        bars = [trace for trace in figure.data if "colorbar" in trace and _panel(trace) == panel]
        right = left + slot - (BAR / width if bars else 0.0)
        figure.layout[f"xaxis{panel}"].domain = (left, min(right, 1.0))
        if narrow and not bars:
            figure.layout[f"xaxis{panel}"].update(tickangle=0, tickfont_size=10, nticks=4 if columns > 1 else 6)
        figure.layout[f"yaxis{panel}"].domain = (max(top - panel_height / height, 0.0), top)
        for trace in bars:
            place = {"x": right + 6 / width, "xanchor": "left", "xpad": 0, "y": top, "yanchor": "top", "ypad": 0}
            trace.colorbar.update(len=panel_height, lenmode="pixels", thickness=8, tickfont_size=10, **place)
        tops[panel] = left, right, top
    for note, panel in zip(figure.layout.annotations, _titled(panels, meta), strict=False):
        left, right, top = tops[panel]
        text = note.text.replace(" [", "<br>[") if narrow and columns > 1 else note.text
        note.update(x=left, y=top, xanchor="left", yanchor="bottom", yshift=5, align="left", text=text)
        note.font = {"size": 12 if columns < 5 and not narrow else 11, "color": "#333"}
    head = title + BUTTONS * len(figure.layout.updatemenus)
    for menu in figure.layout.updatemenus:
        menu.update(y=1.0 + (title + 12) / height, yanchor="bottom", x=0, xanchor="left", pad={"l": 0, "t": 0})
        for button in menu.buttons if narrow else ():
            button.label = button.label.split()[-1]
    foot = below + _legend_height(figure, width)
    figure.update_layout(height=height + head + foot, margin={**margins, "t": head, "b": foot, "pad": 0})
    return figure.update_layout(legend={"y": -(below + 4) / height, "yanchor": "top", "x": 0, "orientation": "h"})


def for_paper(figure: go.Figure) -> go.Figure:
    """Return a copy without its buttons, as it stands when the page opens."""
    return arrange(go.Figure(figure).update_layout(updatemenus=[]))


def _panel(trace: Any) -> str:
    return (trace.xaxis or "x").removeprefix("x")


def _titled(panels: Sequence[str], meta: dict[str, Any]) -> list[str]:
    """Panels with a title: make_subplots puts the titles' annotations first, one for each that is not empty."""
    return [panel for panel, title in zip(panels, meta["titles"], strict=False) if title]


def _head_legend(figure: go.Figure, panels: Sequence[str], meta: dict[str, Any]) -> None:
    """Put entries into groups below their panel's title where they belong to several panels, else into one line."""
    shown = [trace for trace in figure.data if _in_legend(trace)]
    for trace in shown:
        trace.legendgroup = None
    if len({_panel(trace) for trace in shown}) > 1:
        titles = dict(zip(panels, meta["titles"], strict=False))
        for trace in shown:
            panel = _panel(trace)
            title = titles[panel].split(" [")[0]
            trace.update(
                legendrank=1000 + int(panel or 1),
                legendgroup=title,
                legendgrouptitle={"text": title, "font": {"size": 11}},
            )


def _in_legend(trace: Any) -> bool:
    return trace.showlegend is not False and trace.type != "heatmap" and trace.visible is not False and bool(trace.name)


def _legend_height(figure: go.Figure, width: float) -> int:
    """The space that the legend takes, by the length of its entries [pixels]."""
    groups: dict[str, list[int]] = {}
    for trace in figure.data:
        if _in_legend(trace):
            key = trace.legendgrouptitle.text or ""
            groups.setdefault(key, [] if not key else [6 * len(key)]).append(46 + 6 * len(trace.name))
    if not groups:
        return 8
    if "" in groups:
        widest = max(groups[""])
        across = max(1, int(width // widest))
        return LINE * -(-len(groups[""]) // across) + 14
    lines, used, tallest = 0, 0.0, 0
    for entries in groups.values():
        if used and used + max(entries) > width:
            lines, used, tallest = lines + tallest, 0.0, 0
        used, tallest = used + max(entries), max(tallest, len(entries))
    return LINE * (lines + tallest) + 18
