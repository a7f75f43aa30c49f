"""Gaps of runs against environment steps: what verdicts found, checkpoint by checkpoint, as a table and a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbc_warp.config import load_config
from rbc_warp.config.shipped import launcher
from rbc_warp.economy.curriculum import env_steps
from rbc_warp.economy.parameters import Economy
from rbc_warp.equilibrium.results import PUBLISHED_BARS, Results
from rbc_warp.errors import RunFileError
from rbc_warp.runs.console import text_table
from rbc_warp.runs.files import write_atomically
from rbc_warp.runs.folder import RunDir

LEAST = 0.01
"""Smallest share that the picture tells apart from none [%]."""


@dataclass(frozen=True)
class Gap:
    """A type's largest gain at a checkpoint, as a share of what its bar is a share of; None where that is unknown."""

    share: float | None  #: [%]
    high: float | None  #: Upper end [%].
    passed: bool
    found: str


@dataclass(frozen=True)
class Point:
    """One run's verdict at one checkpoint."""

    run: RunDir
    seed: int
    iteration: int
    env_steps: int
    effort: str
    passed: bool
    gaps: dict[str, Gap]


def points_of(run: RunDir) -> list[Point]:
    """Read a run's verdicts. Raises RunFileError where there is none."""
    verdicts = Results.read(run).verdicts
    if not verdicts:
        remedy = f"make it: {launcher('best-response')} {run.path} --verdict"
        raise RunFileError(run.best_response_path, "holds no verdict", remedy)
    config = load_config(run.hparams_path)
    economy = Economy.from_config(config)
    return [
        Point(
            run,
            config.train.base_seed,
            int(verdict["iteration"]),
            env_steps(config, economy, int(verdict["iteration"]) + 1),
            str(verdict["effort"]),
            bool(verdict["passed"]),
            {agent: _gap(agent, found) for agent, found in verdict["largest"].items()},
        )
        for verdict in verdicts
    ]


def _gap(agent: str, found: dict[str, Any]) -> Gap:
    bar = found.get("bar")
    scale = PUBLISHED_BARS[agent] / bar if bar else None
    share, high = (None if scale is None else scale * found[end] for end in ("gain", "high"))
    return Gap(share, high, bool(found["passed"]), f"{found['who']}: {found['how']}")


def table(points: Sequence[Point]) -> str:
    """Return one row per run and checkpoint: each type's largest gain and its upper end."""

    def cell(gap: Gap | None) -> str:
        if gap is None or gap.share is None:
            return "-" if gap is None or not gap.passed else "no choice"
        return f"{gap.share:.2g} (≤ {gap.high:.2g}) %{'' if gap.passed else ' !'}"

    rows = [
        (
            point.run.path.name,
            str(point.seed),
            f"{point.env_steps:,}",
            point.effort,
            "passes" if point.passed else "fails",
            *(cell(point.gaps.get(agent)) for agent in PUBLISHED_BARS),
        )
        for point in points
    ]
    bars = (f"{agent} (bar {bar:g} %)" for agent, bar in PUBLISHED_BARS.items())
    return text_table(("run", "seed", "env-steps", "search", "verdict", *bars), rows)


def draw(points: Sequence[Point], target: Path) -> None:
    """Draw each type's gap against environment steps, a line for each run, into a PNG, PDF or SVG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = {point.run.path: point.seed for point in points}
    figure, axes = pyplot.subplots(1, len(PUBLISHED_BARS), figsize=(12, 4), sharex=True, layout="constrained")
    for axis, (agent, bar) in zip(axes, PUBLISHED_BARS.items(), strict=True):
        for order, (path, seed) in enumerate(runs.items()):
            shown = [point for point in points if point.run.path == path and agent in point.gaps]
            steps = [point.env_steps / 1e6 for point in shown]
            gaps = [point.gaps[agent] for point in shown]
            color = pyplot.get_cmap("viridis")(order / max(1, len(runs) - 1) * 0.9)
            middle = [_positive(gap.share) for gap in gaps]
            upper = [_positive(gap.high) for gap in gaps]
            axis.plot(steps, middle, color=color, marker="o", markersize=3, linewidth=1, label=f"seed {seed}")
            axis.vlines(steps, middle, upper, color=color, linewidth=1)
        axis.axhline(bar, color="#c8553d", linestyle="--", linewidth=1)
        axis.text(0.99, bar, f"bar {bar:g} %", color="#c8553d", fontsize=8, ha="right", va="bottom",
                  transform=axis.get_yaxis_transform())  # fmt: skip
        axis.set_yscale("log")
        axis.set_title(f"{agent}: largest gain of one deviator [%]", loc="left", fontsize=9)
        axis.set_xlabel("million environment steps")
        axis.grid(axis="y", color="0.92")
    axes[-1].legend(frameon=False, fontsize=7, ncols=2)
    kind = target.suffix.lstrip(".").lower()
    write_atomically(target, lambda file: figure.savefig(file, format=kind, dpi=110))
    pyplot.close(figure)


def _positive(share: float | None) -> float:
    return math.nan if share is None else max(share, LEAST)
