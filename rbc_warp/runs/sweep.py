"""Many runs: the combinations of a sweep, each in a folder and a process of its own, here or on a Ray cluster.

A sweep keeps no records beside its runs. Started again, it finds the run of each combination by its configuration,
continues the unfinished ones from their last states and leaves the finished ones alone.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from rbc_warp.config import Config, load_config
from rbc_warp.config.load import copied
from rbc_warp.config.messages import show
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.errors import INTERRUPTED, ConfigError, RunFileError, UserError, printable
from rbc_warp.runs.executors import Engine
from rbc_warp.runs.files import write_text
from rbc_warp.runs.folder import RunDir, RunStatus, find_runs
from rbc_warp.runs.resume import RESUMABLE
from rbc_warp.runs.run import prepare_run
from rbc_warp.runs.tracking import flat

LOG_NAME = "log.txt"
POLL_SECONDS = 0.2
TAIL_BYTES = 1 << 16
PARTS = ("reward", "economy")  # of a line of metrics, in index.csv


# The runs of a sweep.


def expand(config: Config, overrides: Sequence[str] = ()) -> list[Config]:
    """A configuration without ``sweep`` for every combination of its lists, the last list fastest; itself without any.

    Raises :class:`ConfigError` naming the combination that is invalid, or the override that a list would undo.
    """
    keys = [(section, key) for section, lists in config.sweep.items() for key in lists]
    for override in overrides:
        path = tuple(part.strip() for part in override.partition("=")[0].split("."))[:2]
        if path in keys:
            name = ".".join(path)
            raise ConfigError(f"--set {override}: {name} is swept; write --set sweep.{name}=[…] instead")
    base = config.model_dump(exclude_unset=True)
    base.pop("sweep", None)
    runs = []
    for values in itertools.product(*(config.sweep[section][key] for section, key in keys)):
        data = copied(base)
        for (section, key), value in zip(keys, values, strict=True):
            data.setdefault(section, {})[key] = copied(value)
        try:
            runs.append(load_config(data))
        except ConfigError as error:
            combination = " ".join(f"{'.'.join(key)}={show(value)}" for key, value in zip(keys, values, strict=True))
            raise ConfigError(f"sweep: {combination} is no valid run:\n{error}") from None
    return runs


@dataclass
class Task:
    """One run of a sweep, and what it is to become."""

    run: RunDir
    config: Config
    overrides: tuple[str, ...] = ()  #: Overrides that extend the run on resume.
    state: str = "waiting"  #: waiting, running, finished, interrupted or failed
    message: str = ""
    is_new: bool = False
    began: tuple[float, int] | None = None  #: Time of its start, and the iterations done before.

    @property
    def name(self) -> str:
        return self.run.path.name


def plan(folder: Path, config: Config, seed_from_timestamp: bool = False, overrides: Sequence[str] = ()) -> list[Task]:
    """The runs of a sweep in ``folder``: those found there, and new folders for the combinations that have none."""
    configs = expand(config, overrides)  # all are checked before anything is written
    free = set(RESUMABLE) - set(config.sweep.get("train", ())) | ({"base_seed"} if seed_from_timestamp else set())
    if seed_from_timestamp:
        configs = [_with_metadata(wanted, {"seed_from_timestamp": True}) for wanted in configs]
    return [
        _new_task(folder, wanted, seed_from_timestamp) if match is None else _continued(*match, wanted, free)
        for wanted, match in zip(configs, matches(folder, configs, free), strict=True)
    ]


def matches(
    folder: Path, configs: Sequence[Config], free: Collection[str] = RESUMABLE
) -> list[tuple[RunDir, Config] | None]:
    """Return for each configuration the run of a folder that is its, with the one it has; None where there is none.

    ``free``: keys of ``train`` in which they may differ.
    """
    there = _configs(folder)[0] if folder.is_dir() else []
    found: list[tuple[RunDir, Config] | None] = []
    for wanted in configs:
        found.append(next((pair for pair in there if _identity(pair[1], free) == _identity(wanted, free)), None))
        if found[-1] is not None:
            there.remove(found[-1])
    return found


def _identity(config: Config, free: Collection[str]) -> dict[str, Any]:
    """Return the part of a configuration that makes it the same run as another: all but names, length and files."""
    data = config.to_dict()
    train = {key: value for key, value in data["train"].items() if key not in free}
    seeded = data["metadata"].get("seed_from_timestamp", False)
    return {"agents": data["agents"], "world": data["world"], "train": train, "seeded": seeded}


def _with_metadata(config: Config, metadata: Mapping[str, Any]) -> Config:
    data = config.model_dump(exclude_unset=True)
    return load_config({**data, "metadata": {**data.get("metadata", {}), **metadata}})


def _new_task(folder: Path, config: Config, seed_from_timestamp: bool) -> Task:
    run = RunDir.create(folder)
    if seed_from_timestamp:
        seconds, fraction = map(int, run.path.name.rsplit("-", 2)[1:])
        config = load_config(config, [f"train.base_seed={(seconds * 10**9 + fraction) % 2**32}"])
    prepare_run(run, config)
    return Task(run, config, is_new=True)


def _continued(run: RunDir, config: Config, wanted: Config, free: set[str]) -> Task:
    """A run that is there already, extended if more iterations are wanted now."""
    status = _status(run)[0]
    long_enough = config.train.num_episodes >= wanted.train.num_episodes and not wanted.train.infinite_episodes
    if long_enough and status is not None and status.status == "finished":
        return Task(run, config, state="finished")
    changed = {key: getattr(wanted.train, key) for key in RESUMABLE if key in free}
    changed = {key: value for key, value in changed.items() if value != getattr(config.train, key)}
    if long_enough:
        changed.pop("num_episodes", None)
    overrides = tuple(f"train.{key}={json.dumps(value)}" for key, value in changed.items())
    return Task(run, load_config(config, overrides), overrides)


def present(folder: Path) -> list[Task]:
    """The runs that are in ``folder``, as they are."""
    return [_continued(run, config, config, set()) for run, config in _configs(folder)[0]]


def damaged(folder: Path) -> dict[str, str]:
    """Return the runs in ``folder`` whose hparams.yaml cannot be used, by name, with the reason."""
    return {run.path.name: reason for run, reason in _configs(folder)[1]}


def _configs(folder: Path) -> tuple[list[tuple[RunDir, Config]], list[tuple[RunDir, str]]]:
    """Runs with their configurations, and those that have none that can be used, with the reason."""
    sound, others = [], []
    for run in find_runs(folder):
        try:
            sound.append((run, load_config(run.hparams_path)))
        except UserError as error:
            others.append((run, " ".join(str(error).split())))
    return sound, others


def _status(run: RunDir) -> tuple[RunStatus | None, str]:
    """A run's status, None where there is none that can be read, with the reason."""
    try:
        return run.read_status(), ""
    except RunFileError as error:
        return None, str(error)


# What is known of runs.


def last_record(run: RunDir) -> dict[str, Any]:
    """The last whole line of a run's metrics; {} if there is none yet, or none that can be used."""
    try:
        with open(run.metrics_path, "rb") as file:
            file.seek(max(0, file.seek(0, io.SEEK_END) - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
        record = json.loads(lines[-1]) if lines else {}
    except (OSError, ValueError, RecursionError):  # not there yet, or being replaced: the next look will tell
        return {}
    sound = isinstance(record, dict) and type(record.get("iteration")) is int
    return record if sound and all(isinstance(record.get(part, {}), dict) for part in PARTS) else {}


def varied(configs: Sequence[Config]) -> dict[str, list[Any]]:
    """The keys in which configurations differ, "section.key", with the value of each; null where a key is off."""
    sections = [{name: part for name, part in config.to_dict().items() if name != "metadata"} for config in configs]
    keys = dict.fromkeys((name, key) for whole in sections for name, part in whole.items() for key in part)
    columns = {f"{name}.{key}": [whole[name].get(key) for whole in sections] for name, key in keys}
    return {key: values for key, values in columns.items() if any(value != values[0] for value in values)}


def write_index(folder: Path) -> Path:
    """``index.csv``: every run of a folder with its status, the keys in which the runs differ, and its last metrics."""
    runs, others = _configs(folder)
    parameters = varied([config for _, config in runs])
    rows: list[dict[str, Any]] = []
    for number, (run, config) in enumerate(runs):
        record, (status, reason) = last_record(run), _status(run)
        unknown = "failed" if reason else "created"
        row: dict[str, Any] = {"run": run.path.name, "status": status.status if status else unknown}
        row |= {"iterations": record.get("iteration", -1) + 1, "group_name": config.metadata.get("group_name")}
        row |= {key: _cell(values[number]) for key, values in parameters.items()}
        results = {part: record.get(part, {}) for part in PARTS}
        row |= {name.replace("/", "."): value for name, value in flat(results)}
        rows.append({**row, "message": status.message if status else reason})
    rows += [{"run": run.path.name, "status": "failed", "message": reason} for run, reason in others]
    text = io.StringIO()
    columns = dict.fromkeys(key for row in sorted(rows, key=len, reverse=True) for key in row)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "index.csv", text.getvalue())
    return folder / "index.csv"


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (dict, list, bool)) else value


# Running them.


def execute(tasks: Sequence[Task], engine: Engine, command: Sequence[str], display: Display) -> None:
    """Run what is waiting; an interruption stops what is running, lets it save its state, and is raised again."""
    waiting = deque(task for task in tasks if task.state == "waiting")
    active: list[tuple[Task, Any]] = []
    try:
        while waiting or active:
            while waiting and len(active) < engine.capacity:
                task = waiting.popleft()
                task.state, task.began = "running", (time.monotonic(), last_record(task.run).get("iteration", -1) + 1)
                words = [*command, "--resume", str(task.run.path.absolute())]
                words += [word for override in task.overrides for word in ("--set", override)]
                try:
                    active.append((task, engine.start(words, task.run.path.absolute() / LOG_NAME)))
                except OSError as error:  # its folder, or the machine for now
                    task.state, task.message = "failed", f"cannot be started: {error}"
                    display.changed()
            display.show()
            time.sleep(POLL_SECONDS)
            for task, handle in list(active):
                code = engine.poll(handle)
                if code is not None:
                    active.remove((task, handle))
                    _conclude(task, code)
                    display.changed()
    except KeyboardInterrupt:
        for (task, _), code in zip(active, engine.stop([handle for _, handle in active]), strict=True):
            _conclude(task, code)
        raise
    finally:
        display.changed()


def _conclude(task: Task, code: int) -> None:
    """Note how a run's process ended, also in the run's folder if it could not do so itself."""
    task.state = {0: "finished", INTERRUPTED: "interrupted"}.get(code, "failed")
    if task.state == "failed":
        task.message = f"killed by signal {-code}" if code < 0 else _last_words(task.run.path / LOG_NAME)
        with suppress(RunFileError):  # its folder may be what failed
            task.run.write_status("failed", last_record(task.run).get("iteration", -1) + 1, task.message)


def _last_words(log: Path) -> str:
    lines: list[str] = []
    with suppress(OSError):
        lines = log.read_text(errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ")] or [line for line in lines if line.strip()]
    return errors[-1].removeprefix("error: ") if errors else "it left no message"


class Display:
    """The display of a sweep: a live table on a terminal, a line per change elsewhere. Keeps index.csv up to date.

    ``beside`` tells, of the tasks as they are, what else there is to say: under the table, or a line per end of a run.
    """

    def __init__(
        self,
        folder: Path,
        tasks: Sequence[Task],
        console: Console | None = None,
        beside: Callable[[Sequence[Task]], str] | None = None,
    ) -> None:
        self._folder, self._tasks, self._beside = folder, tasks, beside
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._parameters = varied([task.config for task in tasks])
        self._live: Live | None = None
        self._seen = {task.name: task.state for task in tasks}
        self._next_look = 0.0
        self._warned = False

    @contextmanager
    def shown(self) -> Iterator[Display]:
        if not self._console.is_terminal:
            yield self
            return
        with Live(console=self._console, auto_refresh=False, vertical_overflow="ellipsis") as self._live:
            yield self

    def changed(self) -> None:
        """Something ended: writes index.csv and shows it."""
        try:
            write_index(self._folder)
        except RunFileError as error:  # no reason to stop the runs
            if not self._warned:
                self._console.print(f"warning: {error}", markup=False)
            self._warned = True
        self._next_look = 0.0
        self.show()
        if self._beside and self._live is None:
            self._console.print(self._beside(self._tasks), markup=False)

    def show(self) -> None:
        for number, task in enumerate(self._tasks, start=1):
            if self._live is None and task.state != self._seen[task.name]:
                self._seen[task.name] = task.state
                self._console.print(f"[{number}/{len(self._tasks)}] {self.line(task, number - 1)}", markup=False)
        if self._live is not None and time.monotonic() >= self._next_look:
            self._live.update(self.table(), refresh=True)
            self._next_look = time.monotonic() + 1.0

    def line(self, task: Task, number: int) -> str:
        settings = " ".join(f"{key}={_cell(values[number])}" for key, values in self._parameters.items())
        return printable("  ".join(filter(None, [task.name, settings, task.state, task.message])))

    def table(self) -> Table:
        """Every run's settings, state, progress and rewards; what is at work first where not all fit."""
        counts = Counter(task.state for task in self._tasks)
        caption = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        lines = [f"{len(self._tasks)} runs: {caption}", *([self._beside(self._tasks)] if self._beside else [])]
        table = Table(title=str(self._folder), caption="\n".join(lines), box=None)
        names = [key.partition(".")[2] for key in self._parameters]
        for heading in ("run", *names, "state", "iterations", "left", "consumer", "firm", "government"):
            table.add_column(
                heading, justify="left" if heading in ("run", "state") else "right", no_wrap=heading == "run"
            )
        order = list(range(len(self._tasks)))
        if len(order) > self._console.height - 6:
            first = ["running", "failed", "interrupted", "waiting", "finished"]
            order.sort(key=lambda number: first.index(self._tasks[number].state))
        for number in order:
            task = self._tasks[number]
            settings = [str(_cell(values[number])) for values in self._parameters.values()]
            table.add_row(task.name.removeprefix("rollout-"), *settings, *self._progress(task))
        return table

    @staticmethod
    def _progress(task: Task) -> list[str]:
        record, train = last_record(task.run), task.config.train
        done, end = record.get("iteration", -1) + 1, train.num_episodes
        left = ""
        if task.state == "running" and task.began and done > task.began[1] and not train.infinite_episodes:
            seconds = (time.monotonic() - task.began[0]) / (done - task.began[1]) * (end - done)
            left = f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
        of = "" if train.infinite_episodes else f"/{end}"
        numbers = [record.get("reward", {}).get(agent) for agent in AGENT_TYPES]
        rewards = [f"{number:.4g}" if isinstance(number, float | int) else "" for number in numbers]
        return [task.state, f"{done}{of}", left, *rewards]
