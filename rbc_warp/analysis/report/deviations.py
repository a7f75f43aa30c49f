"""What single agents could gain: every agent's best deviation, and every action that was tried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from rbc_warp.analysis.report.drawing import COLORS, add_buttons, cell, grid
from rbc_warp.analysis.report.parts import Section, Source
from rbc_warp.economy.agents import AgentType
from rbc_warp.economy.parameters import Economy
from rbc_warp.equilibrium.game import choice_name
from rbc_warp.equilibrium.results import PUBLISHED_BARS
from rbc_warp.equilibrium.verdict import AGENTS_PER_DEVIATOR

ROW, LOWEST, TALLEST = 16, 180, 900
"""Height of an action's row in a heat map, and of the whole [pixels]."""
VIEWS = {"mean": "mean of agents", "largest": "largest"}


def fill(source: Source, section: Section, command: str) -> None:
    """Draw the details of the last verdict, where it has any."""
    verdict = source.results.verdicts[-1]
    if "agents" not in verdict:
        section.missing("The verdict was made before single agents and actions were kept; this makes it anew:", command)
        return
    if not verdict["agents"]:
        return  # nobody had a choice
    section.figure(
        f"Every agent that was tried at checkpoint {verdict['checkpoint']}, alone: the gain of its best deviation, "
        "with an interval that holds for all agents of its type at once. An agent whose interval ends below the dashed "
        "bar could not gain more by anything that was tried; one that reaches above it may, whatever the others' mean.",
        every_agent(source.economy, verdict),
    )
    screening = verdict["screening"]
    episodes = " and ".join(
        f"{count} of each {name} deviation"
        for name, count in next(iter(screening.values()))["attrs"]["episodes"].items()
    )
    section.text(
        "What each action would bring, played in all periods ('constant') or in a single one while the policies choose "
        f"the rest. These figures are from the screening, on few episodes ({episodes}): noisy, the largest most of "
        "all. They chose the finalists and are not the verdict, which scored these on other draws. Red: a gain; blue: "
        "a loss; colors go by magnitude, and losses beyond the end of the scale look alike."
    )
    for agent, screened in screening.items():
        count = screened["attrs"]["agents"]
        over = f", over {count} agents" if count > 1 else ""
        many = source.economy.agents[agent].count // AGENTS_PER_DEVIATOR
        company = f" {many} deviated at once; the mean effect on bystanders is taken off: small figures mean little."
        section.figure(
            f"{agent.capitalize()}: gain of one agent, {_unit(verdict, agent)[1]}{over}.{company if many > 1 else ''}",
            by_action(verdict, agent),
        )
        constants = over_choices(source.economy.agents[agent], verdict)
        if constants is not None:
            names, figure = constants
            section.figure(f"The same constant actions over {names}.", figure)


def _unit(verdict: Mapping[str, Any], agent: str) -> tuple[float, str]:
    """The factor that gains are shown by, and what they are then: a share of the bar's base, where there is one."""
    found = verdict["largest"][agent]
    if not found["bar"]:
        return 1.0, "reward per period"
    base = "training gain" if found["of_training_gain"] is not None else "own learning"
    return PUBLISHED_BARS[agent] / found["bar"], f"% of {base}"


def _bar(verdict: Mapping[str, Any], agent: str) -> float:
    """The bar as it is shown; where there is none, a tenth of the largest figure."""
    if verdict["largest"][agent]["bar"]:
        return PUBLISHED_BARS[agent]
    return float(np.nanmax(np.abs(_values(verdict, agent)["largest"]))) / 10 or 1.0


def every_agent(economy: Economy, verdict: Mapping[str, Any]) -> go.Figure:
    """Draw each agent's largest scored gain with its interval, by number, and the bar."""
    titles = {agent: f"{agent.capitalize()} [{_unit(verdict, agent)[1]}]" for agent in verdict["agents"]}
    figure = grid(list(titles.values()), columns=1, row_height=230)
    for number, (agent, found) in enumerate(verdict["agents"].items()):
        scale, _ = _unit(verdict, agent)
        x = [one["index"] or 0 for one in found]
        gain, low, high = (scale * np.array([one[end] for one in found]) for end in ("gain", "low", "high"))
        who = [
            f"{agent} {one['index']}, θ {economy.theta[one['index']]:.4g}" if agent == "consumer"
            else agent if one["index"] is None else f"{agent} {one['index']}"
            for one in found
        ]  # fmt: skip
        bar = verdict["largest"][agent]["bar"]
        over = high > scale * bar if bar else np.full(len(high), True)
        trace = go.Scatter(
            x=x, y=gain, mode="markers", showlegend=False,
            marker={"size": 6, "color": [COLORS[1] if above else COLORS[0] for above in over]},
            error_y={"array": high - gain, "arrayminus": gain - low, "thickness": 1, "width": 2, "color": "#999"},
            customdata=list(zip(who, [one["how"] for one in found], low, high, strict=True)),
            hovertemplate="%{customdata[0]}: %{y:.3g} [%{customdata[2]:.3g}, %{customdata[3]:.3g}]"
            "<br>%{customdata[1]}<extra></extra>",
        )  # fmt: skip
        figure.add_trace(trace, **cell(number, 1))
        if bar:
            percent = PUBLISHED_BARS[agent]
            figure.add_hline(
                y=percent,
                line_dash="dash",
                line_color=COLORS[1],
                annotation_text=f"bar {percent:g} %",
                **cell(number, 1),
            )
        axis = "consumer, by θ" if agent == "consumer" else agent
        several = len(x) > 1
        figure.update_xaxes(
            title_text=axis if several else None,
            showticklabels=several,
            dtick=1 if len(x) < 12 else None,
            **cell(number, 1),
        )
    return figure


def by_action(verdict: Mapping[str, Any], agent: str) -> go.Figure:
    """Draw what the screening found for each action in each way; buttons choose between mean and largest."""
    coords = verdict["screening"][agent]["coords"]
    values = _values(verdict, agent)
    height = min(TALLEST, max(LOWEST, ROW * len(coords["action"]["data"])))
    figure = grid([""], columns=1, row_height=height)
    heat = _heat(values["mean"], verdict, agent, "%{y}, %{x}", x=coords["way"]["data"], y=coords["action"]["data"])
    figure.add_trace(heat, **cell(0))
    figure.update_yaxes(autorange="reversed", ticks="", tickfont_size=10)
    if len(verdict["agents"][agent]) > 1:
        bar = _bar(verdict, agent)
        shown = {label: _colors(values[name], bar) for name, label in VIEWS.items()}
        add_buttons(figure, {label: {key: [a] for key, a in colors.items()} for label, colors in shown.items()})
    return figure


def over_choices(kind: AgentType, verdict: Mapping[str, Any]) -> tuple[str, go.Figure] | None:
    """Draw constant joint choices over the first two columns in which they differ, the best of any others.

    Returns the columns in words, and the figure; None where choices differ in fewer.
    """
    varied = [column for column in range(kind.choices.shape[1]) if len(np.unique(kind.choices[:, column])) > 1]
    if len(varied) < 2:
        return None
    across, at = varied[:2]
    names = [kind.choice_names[column].replace("_", " ") for column in (across, at)]
    coords = verdict["screening"][kind.name]["coords"]
    choice = {choice_name(kind, index): kind.choices[index] for index in range(len(kind.choices))}
    rows = [choice[action] for action in coords["action"]["data"]]
    table = pd.DataFrame({"y": [row[at] for row in rows], "x": [row[across] for row in rows]})
    views = VIEWS if len(verdict["agents"][kind.name]) > 1 else {"mean": ""}
    figure = grid(list(views.values()), columns=2, row_height=280)
    constant = coords["way"]["data"].index("constant")
    for number, name in enumerate(views):
        gains = table.assign(z=_values(verdict, kind.name)[name][:, constant])
        best = gains.pivot_table(index="y", columns="x", values="z", aggfunc="max")
        where = f"{names[0]} %{{x}}, {names[1]} %{{y}}"
        heat = _heat(
            best.values, verdict, kind.name, where, x=best.columns.map("{:g}".format), y=best.index.map("{:g}".format)
        )
        figure.add_trace(heat, **cell(number, 2))
        figure.update_xaxes(title_text=names[0], type="category", **cell(number, 2))
    figure.update_yaxes(title_text=names[1], row=1, col=1)
    return " and ".join(names), figure.update_yaxes(type="category")


def _values(verdict: Mapping[str, Any], agent: str) -> dict[str, np.ndarray]:
    """Mean and largest over agents, (actions, ways), in the unit that is shown."""
    scale, _ = _unit(verdict, agent)
    data = verdict["screening"][agent]["data_vars"]
    return {name: scale * np.array(data[name]["data"], dtype=float) for name in VIEWS}


def _colors(values: np.ndarray, unit: float) -> dict[str, np.ndarray]:
    """Colors, and the values for the hover: in proportion near 0, by magnitude beyond ``unit``."""
    return {"z": np.arcsinh(3 * values / unit), "customdata": values}


def _heat(values: np.ndarray, verdict: Mapping[str, Any], agent: str, where: str, **axes: Any) -> go.Heatmap:
    """A heat map of gains on a scale that is even about 0 and ends at ten bars."""
    unit = _bar(verdict, agent)
    ticks = unit * np.array([-10, -3, -1, 0, 1, 3, 10])
    colors = _colors(ticks, unit)["z"]
    scale = {"tickvals": colors, "ticktext": [f"{tick:.3g}" for tick in ticks]}
    return go.Heatmap(
        **_colors(values, unit), **axes, zmin=colors[0], zmax=colors[-1], colorscale="RdBu_r", hoverongaps=False,
        colorbar=scale,
        hovertemplate=f"{where}: %{{customdata:.3g}} {_unit(verdict, agent)[1]}<extra></extra>",
    )  # fmt: skip
