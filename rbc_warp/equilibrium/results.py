"""Results of best-response measurements: one record each, kept in best_response.json, shown as tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from rbc_warp.config.messages import show
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.equilibrium.game import Estimate, Gained
from rbc_warp.errors import RunFileError
from rbc_warp.runs.console import text_table
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.locks import locked

PATIENCE = 60.0
"""With another process that writes its results, which takes it a moment [seconds]."""
FINE_TUNED = ("fine-tuned", "trained afresh")
METHODS = (*FINE_TUNED, "fixed", "planned", "rule")
# Best-response gain as a share of the training gain in the paper, worst of 10 seeds [%].
PUBLISHED_BARS = {"consumer": 3.0, "firm": 10.0, "government": 1.0}


@dataclass(frozen=True)
class Record:
    """The gain of one deviator by one method. Rewards and gains are means per agent and period."""

    checkpoint: str
    iteration: int
    agent: str
    method: str
    found: str  #: The update, action or plan that was found.
    before: float
    after: float
    gain: float
    low: float
    high: float  #: 95 % interval of the gain, over episodes.
    index: int | None = None  #: The agent who deviates alone, None for the whole type.
    repeat: int = 0
    greedy: bool = False
    before_std: float | None = None
    after_std: float | None = None  #: Over episodes.
    training_gain: float | None = None
    """The type's gain over training: this checkpoint's self-play against checkpoint 0's."""
    percent: float | None = None  #: The gain as a share of that, None where it is unknown or not positive [%].
    learning_gain: float | None = None
    """The worth of its own learning to the type: against these others, its policy here less that of checkpoint 0."""
    learning_percent: float | None = None  #: The gain as a share of that [%].
    seconds_per_iteration: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def without_choice(cls, rewards: np.ndarray, **common: Any) -> Record:
        """A type whose stage leaves it one action: it cannot gain."""
        reward = float(rewards.mean())
        found = "only one action is allowed"
        return cls(**common, found=found, before=reward, after=reward, gain=0.0, low=0.0, high=0.0)

    @property
    def place(self) -> tuple[str, int, str, bool]:
        """Its subject: checkpoint, iteration, type, and whether others take the most likely action."""
        return self.checkpoint, self.iteration, self.agent, self.greedy

    @property
    def deviator(self) -> str:
        if self.index is not None:
            return f"{self.agent} {self.index}"
        return "government" if self.agent == "government" else f"all {self.agent}s"

    @property
    def how(self) -> str:
        seed = f", seed {self.repeat}" if self.method in FINE_TUNED else ""
        return f"{self.deviator}: {self.method}, {self.found}{seed}"

    def compared_with(self, gained: Gained | None) -> Record:
        """With the gain as a share of what the type gained before, None where that is unknown."""
        if gained is None:
            return self
        training_gain, learning_gain = float(gained.training.mean()), float(gained.learning.mean())
        return replace(
            self,
            training_gain=training_gain,
            percent=percent_of(self.gain, training_gain),
            learning_gain=learning_gain,
            learning_percent=percent_of(self.gain, learning_gain),
        )

    def line(self) -> str:
        interval = _gain_text(self.gain, self.low, self.high)
        return f"checkpoint {self.checkpoint}, {self.how}: {self.before:.5g} -> {self.after:.5g}, gain {interval}"


def percent_of(gain: float, base: float | None) -> float | None:
    """Return a gain as a share of another [%], None where that is unknown or not positive."""
    return 100.0 * gain / base if base is not None and base > 0.0 else None


@dataclass
class Results:
    """All that was measured of one run."""

    records: list[Record] = field(default_factory=list)
    verdicts: list[dict[str, Any]] = field(
        default_factory=list
    )  #: One for each iteration, in order; see ``verdict.py``. The file keeps the details of the last one only.
    scans: list[dict[str, Any]] = field(default_factory=list)
    """Every fixed action tried: its deviator's gain, with an interval for itself, and each type's reward, on the
    selection draws."""
    latest: int | None = None
    """The iteration of checkpoint 'latest'. Verdicts on an earlier one are left out: the run went on since."""

    @classmethod
    def read(cls, run: RunDir, latest: int | None = None) -> Results:
        """Read the results of earlier measurements; RunFileError where they cannot be used."""
        content = run.read_best_response()
        names = {entry.name for entry in fields(Record)}
        try:
            records = []
            for row in content.get("records", []):
                record = Record(**{name: value for name, value in row.items() if name in names})
                _check_record(record)
                records.append(record)
            scans = [dict(row) for row in content.get("scans", [])]
            for row in scans:
                _check_scan(row)
            last = [content["verdict"]] if "verdict" in content else []
            verdicts = [dict(row) for row in [*content.get("verdicts", last)[:-1], *last]]
            for row in verdicts:
                _check_verdict(row)
            if latest is not None:
                verdicts = [row for row in verdicts if row["checkpoint"] != "latest" or row["iteration"] == latest]
            return cls(records, verdicts, scans, latest)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            problem = f"does not hold results of best responses ({reason})"
            raise RunFileError(run.best_response_path, problem, "move it away to measure anew") from None

    def write(self, run: RunDir) -> None:
        """best_response.json, and br_<type>_output.txt for each type measured; :meth:`updating` keeps others'."""
        run.write_best_response(self._content())
        for agent in AGENT_TYPES:
            lines = [text for record in self.ordered() if record.agent == agent for text in [_output_line(record)]]
            if lines:
                run.write_best_response_output(agent, "\n".join([OUTPUT_HEADER, *lines]) + "\n")

    def _content(self) -> dict[str, Any]:
        records = [asdict(record) for record in self.records]
        tables = {"exploitability": self.exploitability(), "records": records, "scans": self.scans}
        latest: dict[str, Any] = {}
        if self.verdicts:
            latest = {"verdict": self.verdicts[-1], "verdicts": [without_details(row) for row in self.verdicts]}
        return {**latest, **tables}

    @contextmanager
    def updating(self, run: RunDir) -> Iterator[None]:
        """Add to the run's results in this block: what other processes wrote meanwhile is kept, and all is written."""
        remedy = "wait until it ends, or stop it"
        with locked(run.path / "lock", run.path, "another process writes its results", remedy, PATIENCE):
            self.refresh(run)
            yield
            self.write(run)

    def refresh(self, run: RunDir) -> None:
        """Take what is written now."""
        found = Results.read(run, self.latest)
        self.records, self.verdicts, self.scans = found.records, found.verdicts, found.scans

    def hold(self, what: Mapping[str, Any]) -> bool:
        """Return whether there is a record with these fields."""
        return any(all(getattr(record, name) == value for name, value in what.items()) for record in self.records)

    def add(self, new: Record) -> None:
        """Take the place of the same measurement made before, and of those that the run or the settings outdate."""

        def outdated(old: Record) -> bool:
            if (old.checkpoint, old.agent) != (new.checkpoint, new.agent):
                return False
            same = (old.method, old.index, old.greedy) == (new.method, new.index, new.greedy)
            return old.iteration != new.iteration or (
                same and (old.repeat == new.repeat or old.settings != new.settings)
            )

        self.records = [old for old in self.records if not outdated(old)] + [new]

    def add_verdict(self, new: dict[str, Any]) -> None:
        """Take the place of an earlier verdict of the same iteration, unless that one searched further."""
        before = [old for old in self.verdicts if old["iteration"] == new["iteration"]]
        if new.get("effort") == "quick" and any(old.get("effort") == "full" for old in before):
            return
        others = [old for old in self.verdicts if old not in before]
        self.verdicts = sorted([*others, new], key=lambda verdict: int(verdict["iteration"]))

    def add_scan(self, scan: Mapping[str, Any]) -> None:
        """Take the place of the same scan made before."""
        self.scans = [old for old in self.scans if _scan_key(old) != _scan_key(scan)] + [dict(scan)]

    def ordered(self) -> list[Record]:
        """By iteration, type, method and deviator."""

        def key(record: Record) -> tuple:
            return (
                *(record.iteration, record.checkpoint, AGENT_TYPES.index(record.agent), record.greedy),
                *(METHODS.index(record.method), -1 if record.index is None else record.index, record.repeat),
            )

        return sorted(self.records, key=key)

    def groups(self) -> list[list[Record]]:
        """Records of one place, in order."""
        places: dict[tuple, list[Record]] = {}
        for record in self.ordered():
            places.setdefault(record.place, []).append(record)
        return list(places.values())

    def exploitability(self) -> list[dict[str, Any]]:
        """Per checkpoint and type, the largest gain found in any way, and how it was found; 0 where none was."""
        rows = []
        for group in self.groups():
            best = max(group, key=lambda record: record.gain)
            rows.append(
                {
                    **dict(zip(("checkpoint", "iteration", "agent", "greedy"), best.place, strict=True)),
                    "gain": max(best.gain, 0.0),
                    "low": max(best.low, 0.0),
                    "high": max(best.high, 0.0),
                    "percent": None if best.percent is None else max(best.percent, 0.0),
                    "learning_percent": None if best.learning_percent is None else max(best.learning_percent, 0.0),
                    "how": best.how if best.gain > 0.0 else "nothing tried gained anything",
                }
            )
        return rows

    def summary(self) -> str:
        """Both tables, and the best fixed taxes where they were scanned."""
        bars = ", ".join(f"{agent} < {bar:g} %" for agent, bar in PUBLISHED_BARS.items())
        paper = f"paper: fine-tuning of a whole type, worst of 10 seeds, of the training gain: {bars}"
        tables = [_gains_table(self.groups()), paper, _exploitability_table(self.exploitability())]
        return "\n\n".join([*tables, *self._fixed_taxes()])

    def _fixed_taxes(self) -> list[str]:
        lines = []
        for scan in self.scans:
            if scan["agent"] == "government":
                gains = scan["gains"]
                best, worst = max(gains, key=gains.__getitem__), min(gains, key=gains.__getitem__)
                lines.append(
                    f"fixed taxes at checkpoint {scan['checkpoint']}, welfare against the learned policy: "
                    f"best {best} {gains[best]:+.4g}, worst {worst} {gains[worst]:+.4g}, {len(gains)} pairs tried"
                )
        return ["\n".join(lines)] if lines else []


OUTPUT_HEADER = "reward per agent and period: mean (std over episodes)"


def without_details(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Return a verdict without its figures of single agents and actions."""
    return {name: value for name, value in verdict.items() if name not in ("agents", "screening")}


def _check_record(record: Record) -> None:
    """Raise TypeError or ValueError where a record's fields are not of their types."""
    for name, kind in get_type_hints(Record).items():
        value = getattr(record, name)
        kinds = get_args(kind) if isinstance(kind, UnionType) else (get_origin(kind) or kind,)
        if type(value) not in kinds and not (float in kinds and type(value) is int):
            expected = " or ".join(each.__name__ for each in kinds)
            raise TypeError(f"{name}: expected {expected}, found {show(value)}")
    if record.agent not in AGENT_TYPES or record.method not in METHODS:
        raise ValueError(f"{record.agent} {record.method}")
    if not all(math.isfinite(value) for value in vars(record).values() if isinstance(value, float)):
        raise ValueError(f"{record.how}: a number is not finite")


def _check_verdict(verdict: Mapping[str, Any]) -> None:
    """Raise TypeError, ValueError or KeyError where a verdict cannot be used."""
    for name, kind in (("checkpoint", str), ("iteration", int), ("passed", bool), ("largest", dict)):
        if type(verdict[name]) is not kind:
            raise TypeError(f"{name} of a verdict: expected {kind.__name__}, found {show(verdict[name])}")
    _check_details(verdict)


def _check_details(verdict: Mapping[str, Any]) -> None:
    """Raise ValueError or KeyError where the figures of single agents or actions cannot be used."""
    for found in (one for of_type in verdict.get("agents", {}).values() for one in of_type):
        if not found["low"] <= found["gain"] <= found["high"]:
            raise ValueError(f"{found['how']}: the gain is not in its interval")
    for agent, table in verdict.get("screening", {}).items():
        shape = tuple(len(table["coords"][name]["data"]) for name in ("action", "way"))
        for name in ("mean", "largest"):
            found = np.array(table["data_vars"][name]["data"], dtype=float).shape
            if found != shape:
                raise ValueError(f"screening of {agent}: {name} has the shape {found}, not {shape}")


def _check_scan(scan: Mapping[str, Any]) -> None:
    """Raise ValueError or KeyError where a scan cannot be used. Those of earlier versions have no intervals."""
    _scan_key(scan)
    for name in ("gains", "rewards", "low", "high"):
        for value in scan.get(name, {}).values():
            numbers = value.values() if name == "rewards" and isinstance(value, Mapping) else [value]
            if not all(isinstance(number, float | int) for number in numbers):
                raise TypeError(f"{name} of a scan: expected numbers, found {show(value)}")
    for name in ("rewards", "low", "high"):
        if name in scan and scan[name].keys() != scan["gains"].keys():
            raise ValueError(f"a scan's {name} are not of the same actions as its gains")


def _scan_key(scan: Mapping[str, Any]) -> tuple:
    return tuple(scan[name] for name in ("checkpoint", "agent", "index", "greedy"))


def _output_line(record: Record) -> str:
    def with_std(mean: float, std: float | None) -> str:
        return f"{mean:.6g}" if std is None else f"{mean:.6g} ({std:.3g})"

    percent = "" if record.percent is None else f", {record.percent:.3g} % of the training gain"
    others = ", others most likely" if record.greedy else ""
    return (
        f"checkpoint {record.checkpoint} (iteration {record.iteration}{others}) {record.how}: "
        f"before {with_std(record.before, record.before_std)}, after {with_std(record.after, record.after_std)}, "
        f"improvement {_gain_text(record.gain, record.low, record.high)}{percent}"
    )


def _gain_text(gain: float, low: float, high: float) -> str:
    return f"{gain:+.3g} [{low:+.3g}, {high:+.3g}]"


def _percent_text(percent: float | None) -> str:
    return "-" if percent is None else f"{percent:.3g} %"


def _gains_table(groups: Iterable[Sequence[Record]]) -> str:
    """One row per checkpoint, type, method, and kind of deviator."""
    rows = []
    for group in groups:
        for method in METHODS:
            of_type = [record for record in group if record.method == method and record.index is None]
            alone = [record for record in group if record.method == method and record.index is not None]
            if of_type:
                rows.append(_type_row(of_type))
            if alone:
                rows.append(_alone_row(alone))
    head = ("checkpoint", "who deviates", "how", "before", "after", "gain [95 %]")
    return text_table((*head, "of training gain", "of own learning", "paper", "s/update"), rows)


def _type_row(repeats: Sequence[Record]) -> tuple[str, ...]:
    """The mean over repeats; with several, its interval is over them, and the worst is named."""
    first = repeats[0]
    gains = np.array([record.gain for record in repeats])
    estimate = Estimate.of(gains) if len(gains) > 1 else Estimate(first.gain, first.low, first.high)
    worst = max(repeats, key=lambda record: record.gain)
    percents = [_percent_text(percent_of(estimate.mean, base)) for base in (first.training_gain, first.learning_gain)]
    if len(repeats) > 1:
        for column, worst_percent in enumerate((worst.percent, worst.learning_percent)):
            percents[column] += "" if worst_percent is None else f", worst {_percent_text(worst_percent)}"
    how = first.found if len(repeats) == 1 else f"{len(repeats)} seeds"
    after = float(np.mean([record.after for record in repeats]))
    before = float(np.mean([record.before for record in repeats]))
    return _row(first, f"{first.method}, {how}", before, after, estimate, percents)


def _alone_row(records: Sequence[Record]) -> tuple[str, ...]:
    """The agent who gains most."""
    worst = max(records, key=lambda record: record.gain)
    tried = len({record.index for record in records})
    how = f"{worst.method}, {worst.found}; largest of {tried}"
    percents = [_percent_text(percent) for percent in (worst.percent, worst.learning_percent)]
    return _row(worst, how, worst.before, worst.after, Estimate(worst.gain, worst.low, worst.high), percents)


def _row(
    record: Record, how: str, before: float, after: float, gain: Estimate, percents: Sequence[str]
) -> tuple[str, ...]:
    fine_tuned = record.method in FINE_TUNED and record.index is None
    speed = record.seconds_per_iteration
    return (
        record.checkpoint + (" (most likely)" if record.greedy else ""),
        record.deviator,
        how,
        f"{before:.5g}",
        f"{after:.5g}",
        _gain_text(gain.mean, gain.low, gain.high),
        *percents,
        f"< {PUBLISHED_BARS[record.agent]:g} %" if fine_tuned else "",
        "" if speed is None else f"{speed:.3g}",
    )


def _exploitability_table(rows: Iterable[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        checkpoint = row["checkpoint"] + (" (most likely)" if row["greedy"] else "")
        gain = f"{row['gain']:.4g} [{row['low']:.3g}, {row['high']:.3g}]"
        percents = [_percent_text(row[name]) for name in ("percent", "learning_percent")]
        lines.append((checkpoint, row["agent"], gain, *percents, row["how"]))
    return text_table(
        ("checkpoint", "type", "exploitability", "of training gain", "of own learning", "found by"), lines
    )
