"""What finished runs came to, a few numbers each: what findings over seeds are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rbc_warp.analysis.audit import Activity, last_activity
from rbc_warp.analysis.gaps import Point, points_of
from rbc_warp.analysis.phases import phases, published_sequence
from rbc_warp.analysis.rollouts import load_metrics
from rbc_warp.config import Config, load_config
from rbc_warp.config.reading import reading
from rbc_warp.equilibrium.request import last_iteration
from rbc_warp.equilibrium.results import Results
from rbc_warp.errors import RunFileError
from rbc_warp.runs.folder import RunDir

PHASES_NAME, CROSS_PLAY_NAME = "phases.json", "cross_play.json"
"""Files of ``python -m rbc_warp phases RUN --json`` in a run, and of cross-play beside the runs."""
UPDATES = 100
"""Length of the fine-tuning that counts [iterations]: shorter and longer ones do not compare."""
LAST_SHARE = 0.05
"""Share of the logged iterations, the last ones, over which figures are means."""
KEYS = (
    "agents.num_consumers",
    "agents.num_firms",
    "agents.frozen_government_action",
    "world.use_importer",
    "world.importer_price",
    "world.importer_quantity",
    "train.precision",
    "train.batch_size",
)
"""Settings in which the runs of an experiment differ, beside the seed."""
FIGURES = {
    "welfare": "reward.government",
    "consumer reward": "reward.consumer",
    "firm reward": "reward.firm",
    "price": "economy.price",
    "wage": "economy.wage",
    "hours": "economy.hours",
    "sales": "economy.sales",
    "exports": "economy.exports",
    "income tax": "economy.income_tax",
    "corporate tax": "economy.corporate_tax",
}
"""Name of each figure, with its place in the metrics."""


@dataclass(frozen=True)
class Tuned:
    """What a type gained by fine-tuning, all its agents together, at one checkpoint."""

    agent: str
    iteration: int
    gain: float
    low: float
    high: float  #: 95 % interval over episodes.
    base: float | None
    """What the bar is a share of: the training gain, or own learning where that is not positive; None: unknown."""

    def share(self, value: float) -> float | None:
        """Return a gain as a share of the base [%]."""
        return None if self.base is None else 100.0 * value / self.base


@dataclass(frozen=True)
class Shift:
    """Mean of a figure before and just after firms begin to learn, and at the end of their phase."""

    figure: str
    before: float
    after: float
    end: float
    expected: str  #: 'up' or 'down', as published.


@dataclass(frozen=True)
class Outcome:
    """One finished run."""

    name: str
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)  #: Of KEYS.
    figures: Mapping[str, float] = field(default_factory=dict)  #: Of FIGURES, means over the last iterations.
    activity: Activity | None = None
    points: tuple[Point, ...] = ()  #: Its verdicts, by iteration.
    last: int = 0  #: The iteration of its latest checkpoint.
    tuned: tuple[Tuned, ...] = ()
    scan: Mapping[str, float] = field(default_factory=dict)
    """Welfare by constant taxes, consumers and firms as they are, over that by the learned ones [share]."""
    shifts: tuple[Shift, ...] = ()
    learned: Mapping[str, float] = field(default_factory=dict)  #: Per type, its gain in its own phase.

    @classmethod
    def read(cls, run: RunDir) -> Outcome:
        """Read a run's files; what is not there stays empty.

        Raises:
            RunFileError: a file is damaged. ConfigError: so is hparams.yaml.
        """
        config = load_config(run.hparams_path)
        metrics, last = load_metrics(run.path), last_iteration(run, config)
        means = metrics.tail(max(1, round(LAST_SHARE * len(metrics)))).mean()
        results = Results.read(run)
        return cls(
            run.path.name,
            config.train.base_seed,
            _settings(config),
            {name: float(means[path]) for name, path in FIGURES.items()},
            last_activity(run) if run.episode_labels() else None,
            tuple(points_of(run)) if results.verdicts else (),
            last,
            tuple(_tuned(results)),
            _scan(results, last),
            tuple(_shifts(run, config, last)),
            _learned(run),
        )

    @property
    def verdict(self) -> Point | None:
        """The full verdict on the latest checkpoint."""
        return next((point for point in self.points if point.iteration == self.last and point.effort == "full"), None)

    def tuned_at(self, agent: str, iteration: int) -> Tuned | None:
        return next((each for each in self.tuned if (each.agent, each.iteration) == (agent, iteration)), None)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it in plain Python types."""
        verdicts = [
            {
                **{name: getattr(point, name) for name in ("iteration", "env_steps", "effort", "passed")},
                "gaps": {agent: asdict(gap) for agent, gap in point.gaps.items()},
            }
            for point in self.points
        ]
        kept = {name: value for name, value in vars(self).items() if name not in ("points", "activity")}
        kept |= {name: [asdict(each) for each in kept[name]] for name in ("tuned", "shifts")}
        activity = self.activity and {**asdict(self.activity), "has_collapsed": self.activity.has_collapsed}
        return {**kept, "activity": activity, "verdicts": verdicts}


def outcomes(runs: Sequence[RunDir]) -> list[Outcome]:
    """Read runs, by settings and seed."""
    found = [Outcome.read(run) for run in runs]
    return sorted(found, key=lambda each: ([str(value) for value in each.settings.values()], each.seed))


def is_finished(run: RunDir) -> bool:
    status = run.read_status()
    return status is not None and status.status == "finished"


def read_cross_play(folder: Path) -> dict[str, Any] | None:
    """Read what cross-play of a folder's runs found; None where it was not played."""
    return _read_json(folder / CROSS_PLAY_NAME)


def _settings(config: Config) -> dict[str, Any]:
    sections = config.to_dict()
    return {key: sections[section].get(name) for key in KEYS for section, name in [key.split(".")]}


def _tuned(results: Results) -> list[Tuned]:
    found = []
    for record in results.records:
        counts = record.index is None and not record.greedy and record.settings.get("iterations") == UPDATES
        if record.method == "fine-tuned" and counts:
            bases = (record.training_gain, record.learning_gain)
            base = next((base for base in bases if base is not None and base > 0.0), None)
            found.append(Tuned(record.agent, record.iteration, record.gain, record.low, record.high, base))
    return found


def _scan(results: Results, last: int) -> dict[str, float]:
    """Welfare by constant taxes over learned ones, of the latest checkpoint's scan."""
    for scan in results.scans:
        if scan["agent"] == "government" and scan["checkpoint"] == "latest" and not scan["greedy"]:
            rewards = scan.get("rewards")
            if rewards:
                welfare = {taxes: float(each["government"]) for taxes, each in rewards.items()}
                learned = [welfare[taxes] - float(gain) for taxes, gain in scan["gains"].items()]
                return {taxes: value / learned[0] for taxes, value in welfare.items()}
    return {}


def _shifts(run: RunDir, config: Config, last: int) -> list[Shift]:
    found = phases(config, last, [])
    sequence = published_sequence(run, config, found, []) if len(found) > 1 else None
    shifts = sequence.shifts if sequence else []
    return [Shift(each.figure, each.before, each.after, each.end, each.expected) for each in shifts]


def _learned(run: RunDir) -> dict[str, float]:
    content = _read_json(run.path / PHASES_NAME) or {"learned": []}
    with reading(run.path / PHASES_NAME, "what each type learned", "remove it, and make it again"):
        return {each["phase"]["agent"]: float(each["gain"]["mean"]) for each in content["learned"]}


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    with reading(path, "an object in JSON", "remove it, and make it again"):
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise RunFileError(path, "is no object in JSON", "remove it, and make it again")
        return content


def figure(run: Outcome, name: str) -> float:
    """A figure of a run; welfare, which is a sum over agents, also per consumer."""
    if name == "welfare per consumer":
        return run.figures["welfare"] / run.settings["agents.num_consumers"]
    if name == "production":
        return run.figures["sales"] + run.figures["exports"]
    return run.figures[name]


def passes(runs: Sequence[Outcome]) -> list[bool]:
    return [run.verdict.passed for run in runs if run.verdict is not None]
