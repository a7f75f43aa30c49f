"""A picture of a run, from its metrics.jsonl alone."""

from pathlib import Path

import numpy as np

from rbc_warp.config import load_config
from rbc_warp.economy import curriculum
from rbc_warp.economy.parameters import Economy
from rbc_warp.errors import RunFileError
from rbc_warp.runs.files import write_atomically
from rbc_warp.runs.folder import RunDir

# Panels: title, unit, and the series as (path in a metrics record, label).
PANELS = (
    ("Consumers' reward", "utility per period", [("reward.consumer", "mean per consumer")]),
    ("Firms' reward", "money per period", [("reward.firm", "mean per firm")]),
    ("Government's reward", "welfare per period", [("reward.government", "welfare")]),
    ("Prices", "money per unit", [("economy.price", "posted price")]),
    ("Wages", "money per hour", [("economy.wage", "posted wage")]),
    ("Work", "hours per quarter", [("economy.hours", "per consumer")]),
    ("Goods", "units per firm and period", [("economy.sales", "sold to consumers"), ("economy.exports", "exported")]),
    ("Taxes", "rate", [("economy.income_tax", "income"), ("economy.corporate_tax", "corporate")]),
    ("Entropy", "nats per agent", [(f"loss.{agent}.entropy", agent) for agent in ("consumer", "firm", "government")]),
)
COLORS = ("#2458a6", "#c8553d", "#5a8f3c")


def series(records: list[dict], path: str) -> tuple[np.ndarray, np.ndarray]:
    """Iterations and values of one figure, where it was recorded."""
    points = []
    for record in records:
        value: object = record
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, int | float):
            points.append((record["iteration"], value))
    return tuple(np.array(points, dtype=float).reshape(-1, 2).T)  # type: ignore[return-value]


def draw(run: RunDir, target: Path) -> None:
    """Draw all panels of a run into a PNG, PDF or SVG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    config = load_config(run.hparams_path)
    phases = curriculum.phases(config, Economy.from_config(config))
    records = run.read_metrics()
    if not records:
        raise RunFileError(run.metrics_path, "holds no metrics", "draw a run that trained for at least one iteration")
    pyplot.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = pyplot.subplots(3, 3, figsize=(12, 7.5), sharex=True, layout="constrained")
    for axis, (title, unit, lines) in zip(axes.flat, PANELS, strict=True):
        for color, (path, label) in zip(COLORS, lines, strict=False):
            axis.plot(*series(records, path), color=color, linewidth=1.2, label=label)
        for start, _ in phases:
            axis.axvline(start, color="0.6", linestyle=":", linewidth=1)
        axis.set_title(f"{title} [{unit}]", loc="left", fontsize=9)
        axis.grid(axis="y", color="0.92")
        if len(lines) > 1:
            axis.legend(frameon=False, fontsize=8)
    low, high = axes[0, 0].get_ylim()
    for row, (start, name) in enumerate(phases):
        axes[0, 0].text(start, high - 0.07 * row * (high - low), f" {name}", fontsize=7, color="0.4", va="top")
    for axis in axes[-1]:
        axis.set_xlabel("iteration")
    economy = f"{config.agents.num_consumers} consumers, {config.agents.num_firms} firms, 1 government"
    figure.suptitle(f"{run.path.name}: {economy}", fontsize=10)
    kind = target.suffix.lstrip(".").lower()
    write_atomically(target, lambda file: figure.savefig(file, format=kind, dpi=110))
    pyplot.close(figure)
