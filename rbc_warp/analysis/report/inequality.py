"""Inequality: Lorenz curves, and by disutility of work."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

from rbc_warp.analysis.inequality import gini, lorenz
from rbc_warp.analysis.report.drawing import BAND, COLORS, cell, grid
from rbc_warp.analysis.report.parts import Section, Source, with_dashes


def fill(source: Source, section: Section) -> None:
    if source.no_rollout(section):
        return
    rollout, accounts = source.rollout, source.accounts
    measures = {
        "disposable income": accounts["disposable_income"].sum("period").values,
        "consumption": rollout["consumption"].sum(["good", "period"]).values.astype(float),
        "final wealth": accounts["final_wealth"].values,
        "utility": rollout["consumer_reward"].sum("period").values.astype(float),
    }
    ginis = {name: gini(values) for name, values in measures.items()}
    section.figure(
        "Lorenz curves of what consumers got in an episode, all episodes together. The further below the diagonal, the "
        "more unequal. Debts and negative utilities count as they are: the curve then dips below zero and the "
        "coefficient may exceed 1; neither is defined where the sum is not positive. Utility has no natural zero, so "
        "its coefficient says little by itself.",
        lorenz_curves(measures, ginis),
    )
    rows = [
        [name, ginis[name], *map(float, np.quantile(values, (0.1, 0.5, 0.9))), f"{(values < 0).mean():.1%}"]
        for name, values in measures.items()
    ]
    section.table(["per consumer and episode", "Gini", "10 %", "median", "90 %", "below zero"], with_dashes(rows))
    theta = rollout["theta"].isel(episode=0, period=0).values.astype(float)
    section.figure(
        "The same by disutility of work θ: points are consumers, means over episodes, with the band of 90 % of "
        "episodes. See who works more, and whether that pays.",
        by_theta(theta, {"hours": rollout["hours"].sum("period").values.astype(float), **measures}),
    )


def lorenz_curves(measures: Mapping[str, np.ndarray], ginis: Mapping[str, float]) -> go.Figure:
    """Draw the Lorenz curve and Gini of each measure of (E, I), all consumers of all episodes together."""
    figure = grid(["Lorenz curves", "Gini coefficients"], columns=2, row_height=440)
    equal = go.Scatter(x=[0, 1], y=[0, 1], name="equality", mode="lines", line={"dash": "dash", "color": "#999"})
    figure.add_trace(equal, **cell(0, 2))
    for color, (name, values) in zip(COLORS, measures.items(), strict=False):
        people, share = lorenz(values)
        if np.isfinite(share).all():
            at = np.unique(np.linspace(0, len(people) - 1, 101).astype(int))
            curve = go.Scatter(x=people[at], y=share[at], name=name, mode="lines", line_color=color)
            figure.add_trace(curve, **cell(0, 2))
        text = {"texttemplate": "%{y} %{x:.3f}", "insidetextanchor": "start", "showlegend": False}
        figure.add_trace(go.Bar(x=[ginis[name]], y=[name], orientation="h", marker_color=color, **text), **cell(1, 2))
    figure.update_yaxes(autorange="reversed", showticklabels=False, **cell(1, 2))
    figure.update_xaxes(title_text="share of consumers, poorest first", **cell(0, 2))
    return figure.update_yaxes(title_text="share of the total", **cell(0, 2))


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
