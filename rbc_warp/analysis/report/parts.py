"""A section of the report, and the run's files that sections are made of."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.utils import PlotlyJSONEncoder

from rbc_warp.analysis.national import national_accounts
from rbc_warp.analysis.report.drawing import arrange
from rbc_warp.analysis.rollouts import load_metrics, load_rollout
from rbc_warp.config import Config, load_config
from rbc_warp.config.shipped import launcher
from rbc_warp.economy.parameters import Economy
from rbc_warp.equilibrium.request import last_iteration
from rbc_warp.equilibrium.results import Results
from rbc_warp.runs.folder import RunDir

CHECKPOINTS = 5
"""Dense rollouts that are shown, spread evenly, the last among them."""
LAST_SHARE = 0.05
"""Share of the logged iterations, the last ones, over which final figures are means."""


@dataclass
class Section:
    """A heading and what stands below it, in order."""

    key: str
    title: str
    blocks: list[dict[str, Any]] = field(default_factory=list)
    figures: list[go.Figure] = field(default_factory=list)

    def text(self, text: str) -> None:
        self.blocks.append({"kind": "text", "text": text})

    def figure(self, sentence: str, figure: go.Figure) -> None:
        """A figure, below the sentence that says what to see."""
        self.text(sentence)
        self.figures.append(figure)
        wide, narrow = arrange(figure), arrange(figure, narrow=True)
        bars = [trace.colorbar if "colorbar" in trace else None for trace in narrow.data]
        moved = {"layout": narrow.layout.update(template=None), "colorbars": bars}
        self.blocks.append({"kind": "figure", "wide": _json(wide), "narrow": _json(moved)})

    def table(self, head: list[str], rows: list[list[Any]], sortable: bool = False) -> None:
        self.blocks.append({"kind": "table", "head": head, "rows": rows, "sortable": sortable})

    def missing(self, text: str, command: str) -> None:
        """What is not there, and the command that makes it."""
        self.blocks.append({"kind": "missing", "text": text, "command": command})

    def code(self, text: str) -> None:
        self.blocks.append({"kind": "code", "text": text})


class Source:
    """A run's files, each read once, when it is first asked for."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.config: Config = load_config(run.hparams_path)
        self.economy = Economy.from_config(self.config)

    @cached_property
    def last(self) -> str | None:
        """Label of the last dense rollout."""
        labels = self.run.episode_labels()
        return labels[-1] if labels else None

    @cached_property
    def rollout(self) -> xr.Dataset:
        """The last dense rollout."""
        return load_rollout(self.run.path, self.last)

    @cached_property
    def checkpoints(self) -> dict[str, xr.Dataset]:
        """Label → dense rollout of those that are shown; empty where there is none."""
        labels = self.run.episode_labels()
        chosen = np.unique(np.linspace(0, len(labels) - 1, min(CHECKPOINTS, len(labels))).astype(int))
        return {
            labels[n]: self.rollout if labels[n] == self.last else load_rollout(self.run.path, labels[n])
            for n in chosen
        }

    @cached_property
    def final(self) -> dict[str, float]:
        """Means of metrics over the last logged iterations; {} where there are none."""
        if not self.run.metrics_path.exists():
            return {}
        metrics = load_metrics(self.run.path)
        return {name: float(x) for name, x in metrics.tail(max(1, round(LAST_SHARE * len(metrics)))).mean().items()}

    @cached_property
    def accounts(self) -> xr.Dataset:
        return national_accounts(self.economy, self.rollout)

    @cached_property
    def results(self) -> Results:
        return Results.read(self.run)

    @cached_property
    def iteration(self) -> int:
        """The iteration of the latest checkpoint."""
        return last_iteration(self.run, self.config)

    @cached_property
    def learning(self) -> list[str]:
        return [name for name, agent in self.economy.agents.items() if not agent.is_frozen]

    @cached_property
    def has_policies(self) -> bool:
        return all(self.run.policy_path(agent, "latest").exists() for agent in self.learning)

    def no_rollout(self, section: Section) -> bool:
        """Say that there is no dense rollout, where there is none."""
        if self.last is None:
            text = "The run holds no dense rollout (episode_….npz) yet; training on to its end writes one:"
            section.missing(text, f"{launcher('train')} --resume {self.run.path}")
        return self.last is None


def _json(value: Any) -> str:
    """JSON that may stand in a page's script."""
    return json.dumps(value, cls=PlotlyJSONEncoder).replace("</", "<\\/")


def with_dashes(rows: list[list[Any]]) -> list[list[Any]]:
    """With dashes for what is not known."""
    return [["–" if value is None or value != value else value for value in row] for row in rows]
