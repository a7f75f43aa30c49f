"""Policy functions: choices against what an agent sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from rbc_warp.analysis.report.drawing import COLORS, cell, grid
from rbc_warp.analysis.report.parts import Section, Source, with_dashes
from rbc_warp.analysis.responses import GOOD, Curves, Elasticity, elasticities, responses
from rbc_warp.config.shipped import launcher
from rbc_warp.economy import curriculum
from rbc_warp.runs.episodes import read_rollout
from rbc_warp.runs.run import load_policies


def fill(source: Source, section: Section) -> None:
    if source.no_rollout(section):
        return
    if not source.has_policies:
        text = "The run holds no policies labeled 'latest'; training on writes them:"
        section.missing(text, f"{launcher('train')} --resume {source.run.path}")
        return
    config, model = source.config, source.economy
    for agent in [name for name in model.agents if name not in source.learning]:
        section.text(f"The {agent} plays one given action for the whole run.")
    if not source.learning:
        return
    assert source.last is not None
    episodes = read_rollout(source.run, model, source.last, source.learning)
    section.text(
        "Choices of saved policies, halfway through the checkpoints and at the end, while one number that the agent "
        "sees is varied and all others stay as in states of the middle of the last dense rollout's episodes; curves "
        "are means over 64 of these. Money and inventories reach a network as decimal digits, so its answers to them "
        "are jagged. A flat curve: the choice does not depend on that number. A curve at 1: it is always chosen."
    )
    whose = {"consumer": f"good and firm {GOOD} as an example", "firm": "against its own numbers"}
    saved = set.intersection(*(set(source.run.labels(agent)) for agent in source.learning))
    numbers = sorted(int(label) for label in saved if label.isdecimal())
    for label in [*map(str, numbers[len(numbers) // 2 :][:1]), "latest"]:
        iteration = source.iteration if label == "latest" else int(label)
        allowed = curriculum.allowed_actions(config, model, iteration)
        loaded = load_policies(source.run, config, label)
        for agent in source.learning:
            states = episodes[agent].states[:, model.num_periods // 2]
            curves = responses(model, loaded[agent], agent, states, allowed[agent])
            if curves:
                sentence = f"Checkpoint {label}, {agent}: {whose.get(agent, f'firm {GOOD} as an example')}."
                section.figure(sentence, curves_of(curves))
    if "consumer" in source.learning:
        states = episodes["consumer"].states[:, model.num_periods // 2]
        found = elasticities(model, loaded["consumer"], states, allowed["consumer"])
        if found:
            section.figure(
                "Elasticities of what consumers choose at the last checkpoint: by how many percent a quantity changes "
                "with 1 % more of a price or wage, between neighboring values of its grid (midpoint formula; from 0 on "
                "it lies within −1 and 1 by construction). Points are medians over firms, bars reach from the lowest "
                "to the highest; |ε| < 1, between the dashed lines, is inelastic. Demand is what is asked for: where "
                "budgets bind, what is bought falls with the price even if what is asked does not. Labor at a firm "
                "is expected hours times the probability to choose that firm.",
                arcs_of(found),
            )
            rows = [[e.quantity, f"{e.low:g}–{e.high:g}", *_spread(e)] for e in found]
            section.table(["quantity and what changes", "from–to", "median", "lowest", "highest"], with_dashes(rows))


def curves_of(choices: Curves) -> go.Figure:
    """Draw probabilities or means of choices against what an agent sees.

    ``choices``: choice → quantity seen → its values (n,) and, by action, the curve (n,). A row of panels per choice.
    """
    seen = list(next(iter(choices.values())))
    titles = [choice for choice in choices for _ in seen]
    figure = grid(titles, columns=len(seen), row_height=250)
    for row, curves in enumerate(choices.values(), start=1):
        for column, (name, (x, by_action)) in enumerate(curves.items(), start=1):
            for order, (action, y) in enumerate(by_action.items()):
                line = {"color": COLORS[order % len(COLORS)], "width": 1.5}
                trace = go.Scatter(x=x, y=y, mode="lines", name=action, line=line, legendgroup=f"{row}")
                figure.add_trace(trace.update(showlegend=column == 1 and len(by_action) > 1), row=row, col=column)
            figure.update_xaxes(title_text=name, row=row, col=column)
    return figure.update_yaxes(rangemode="tozero")


def _spread(elasticity: Elasticity) -> tuple[float, float, float]:
    """Median over firms, lowest and highest; NaN where nothing is chosen."""
    known = elasticity.each[np.isfinite(elasticity.each)]
    return (float(np.median(known)), float(known.min()), float(known.max())) if len(known) else (np.nan,) * 3


def arcs_of(found: Sequence[Elasticity]) -> go.Figure:
    """Draw medians over firms by interval of the grid, with the lowest and highest; a panel per quantity."""
    panels = list(dict.fromkeys(e.quantity for e in found))
    figure = grid([panel.capitalize() for panel in panels], columns=2, row_height=250)
    for number, panel in enumerate(panels):
        some = [e for e in found if e.quantity == panel]
        middle, low, high = np.array([_spread(e) for e in some]).T
        bars = {"array": high - middle, "arrayminus": middle - low, "color": COLORS[0], "thickness": 1.5}
        points = go.Scatter(
            x=[f"{e.low:g}–{e.high:g}" for e in some], y=middle, mode="markers", error_y=bars,
            marker={"size": 8, "color": COLORS[0]}, showlegend=False,
        )  # fmt: skip
        figure.add_trace(points, **cell(number, 2))
        for bound in (-1, 1):
            figure.add_hline(y=bound, line_dash="dash", line_color="#999", **cell(number, 2))
        unit = "money per unit" if number == 0 else "money per hour"
        figure.update_xaxes(title_text=unit, type="category", **cell(number, 2))
    return figure.update_yaxes(zeroline=True)
