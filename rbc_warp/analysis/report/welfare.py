"""Welfare: who gains and who loses between checkpoints, and between runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from rbc_warp.analysis.report.drawing import COLORS, add_buttons, cell, grid
from rbc_warp.analysis.report.parts import Section, Source, with_dashes
from rbc_warp.analysis.rollouts import load_rollout
from rbc_warp.analysis.welfare import Gains, Lives, by_theta, by_utility, gains
from rbc_warp.economy.parameters import Economy
from rbc_warp.runs.sweep import varied

VERDICTS = {"gain": COLORS[2], "lose": COLORS[1], "cannot be told": "#999"}


def fill(source: Source, section: Section) -> None:
    if source.no_rollout(section):
        return
    if len(source.checkpoints) < 2:
        section.text("The run holds one dense rollout; a change of welfare needs two.")
        return
    economy = source.economy
    lives = {label: Lives.of(economy, rollout) for label, rollout in source.checkpoints.items()}
    last = lives.pop(str(source.last))
    each = [np.array([consumer]) for consumer in range(economy.num_consumers)]
    changes = {
        label: (
            gains(base, last, economy.crra, each),
            gains(base, last, economy.crra, by_theta(economy)),
            by_utility(base, last, economy.crra),
        )
        for label, base in lives.items()
    }
    section.figure(
        "What consumers gain from an earlier checkpoint (buttons) to the last, as the permanent change of the earlier "
        "checkpoint's consumption that is worth it to them: below zero they lose. Left: every consumer by disutility "
        "of work θ; then means of tenths of the consumers, by θ and by utility at the earlier checkpoint (half of its "
        "episodes rank consumers, the other half measure). Bars: 95 % intervals; the episodes of two checkpoints are "
        "different draws, so these are unpaired. Utility is that of goods and hours in the saved episodes at the full "
        "θ: rewards felt while the curriculum showed a part of θ would not compare. The charge on final debt is left "
        "out.",
        between_checkpoints(economy, changes),
    )
    rows = []
    for label, base in lives.items():
        whole = gains(base, last, economy.crra, [np.arange(economy.num_consumers)])
        rows.append([label, float(base.utility.mean()), *_figures(whole, changes[label][0])])
    section.table(["from checkpoint", "utility there", *HEAD], with_dashes(rows))


HEAD = ["change to the last", "low", "high", "in consumption [%]", "low", "high", "gain [%]", "lose [%]"]


def _figures(whole: Gains, each: Gains) -> list[float]:
    """The mean consumer's change with its interval, what it is worth, and how many gain and lose."""
    means = (
        *(whole.change, whole.low, whole.high),
        *(whole.equivalent, whole.equivalent_low, whole.equivalent_high),
    )
    shares = [100 * each.winners, 100 * each.losers] if np.isfinite(each.low).all() else [np.nan, np.nan]
    return [*(float(values[0]) for values in means), *shares]


def between_checkpoints(economy: Economy, changes: Mapping[str, tuple[Gains, Gains, Gains | None]]) -> go.Figure:
    """Draw the gains of consumers, of tenths by θ and of tenths by utility; a button for each earlier checkpoint."""
    figure = grid(["Consumers, by θ", "Tenths, by falling θ", "Tenths, by rising utility before"], row_height=330)
    shown_at: list[str] = []
    first = next(iter(changes))
    for label, (each, by_disutility, by_rank) in changes.items():
        verdicts = np.select([each.low > 0.0, each.high < 0.0], list(VERDICTS)[:2], list(VERDICTS)[2])
        for verdict, color in VERDICTS.items():
            some = verdicts == verdict
            if not some.any():
                continue
            marker = {"size": 6, "color": color}
            points = _bars(go.Scatter, economy.theta, each, some, mode="markers", name=verdict, marker=marker)
            points.update(showlegend=True, error_y_thickness=1, error_y_width=0)
            figure.add_trace(points, **cell(0))
            shown_at.append(label)
        for number, group in ((1, by_disutility), (2, by_rank)):
            if group is not None:
                told = np.select([group.low > 0.0, group.high < 0.0], list(VERDICTS)[:2], list(VERDICTS)[2])
                colors = [VERDICTS[verdict] for verdict in told]
                tenths = 1 + np.arange(len(group.change))
                bars = _bars(go.Bar, tenths, group, slice(None), marker_color=colors, showlegend=False)
                figure.add_trace(bars, **cell(number))
                shown_at.append(label)
    for trace, label in zip(figure.data, shown_at, strict=True):
        trace.visible = label == first
    add_buttons(figure, {f"since {label}": {"visible": [at == label for at in shown_at]} for label in changes})
    figure.update_xaxes(title_text="θ", **cell(0))
    for number, ends in ((1, "1 minds work most"), (2, "1 has least")):
        figure.update_xaxes(title_text=f"tenth; {ends}", dtick=1, **cell(number))
    figure.update_yaxes(title_text="change [% of consumption]", **cell(0))
    return figure.update_yaxes(rangemode="tozero")


def _bars(kind: Any, x: np.ndarray, group: Gains, some: Any, **look: Any) -> Any:
    """A trace of what gains are worth, with the intervals."""
    y = group.equivalent[some]
    high, low = group.equivalent_high[some] - y, y - group.equivalent_low[some]
    return kind(x=x[some], y=y, error_y={"array": high, "arrayminus": low, "color": "#777"}, **look)


def between_runs(sources: list[Source], section: Section) -> None:
    """A table of what consumers gain from the first run to each, at the ends of training."""
    known = [source for source in sources if source.last is not None]
    if len(known) < 2:
        section.text("A change of welfare between runs needs dense rollouts (episode_….npz) of two runs.")
        return
    economy = known[0].economy
    keys = {key: values for key, values in varied([s.config for s in known]).items() if key != "train.base_seed"}
    base = _lives(economy, known[0])
    consumers = np.arange(economy.num_consumers)
    rows = []
    for number, source in enumerate(known):
        rollout = load_rollout(source.run.episode_path(str(source.last), "government"))
        same = all(getattr(source.economy, n) == getattr(economy, n) for n in ("num_consumers", "num_firms"))
        told = [np.nan] * (1 + len(HEAD))
        if same:
            other = _lives(economy, source)
            told[0] = float(other.utility.mean())
            if number:
                whole, each = (
                    gains(base, other, economy.crra, groups) for groups in ([consumers], list(consumers[:, None]))
                )
                told[1:] = _figures(whole, each)
        varying = [str(values[number]) for values in keys.values()]
        welfare = float(rollout["government_reward"].mean())
        rows.append([source.run.path.name, *varying, source.config.train.base_seed, *told, welfare])
    section.text(
        f"What consumers would gain from {known[0].run.path.name}, the first run, to each other, between their last "
        "dense rollouts: the change of utility per period, and the permanent change of the first run's consumption "
        "that is worth it to the mean consumer; then the shares of consumers of whom a gain and a loss can be told, "
        "with unpaired 95 % intervals. Utility is that of goods and hours, without the charge on final debt, by the "
        "first run's tastes at the full θ. Welfare is the government's own reward per period. Dashes: the first run "
        "itself, or an economy of another size."
    )
    head = ["run", *keys, "seed", "utility", HEAD[0].replace("to the last", "of utility"), *HEAD[1:], "welfare"]
    section.table(head, with_dashes(rows), sortable=True)


def _lives(economy: Economy, source: Source) -> Lives:
    return Lives.of(economy, load_rollout(source.run.episode_path(str(source.last), "consumer")))
