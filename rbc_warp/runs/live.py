"""The view of a training that goes on: who learns, what comes of it, how fast, and how long yet."""

from __future__ import annotations

import sys
import time
from array import array
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from types import TracebackType

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text

from rbc_warp.config import Config
from rbc_warp.economy import curriculum
from rbc_warp.economy.parameters import Economy
from rbc_warp.runs.console import LINES, number_text
from rbc_warp.runs.metrics import SHOWN, rewards_text
from rbc_warp.training.trainer import RbcTrainer

PAUSE = 1.0
"""Least time between two drawings [seconds]: the training draws between two iterations, in no thread of its own."""
MEMORY = 30
"""Number of drawings over which speed and shares of time are means: half a minute where iterations are short."""
WIDTH = 40, 100
"""Least and greatest width [columns]."""
BLOCKS = "▁▂▃▄▅▆▇█"
DARK = "dim"


@dataclass(frozen=True)
class Look:
    """What a training has done since it was started or resumed, and took for it."""

    done: int  #: Iterations, from the start of the run.
    seconds: float
    env_steps: int
    parts: Mapping[str, float]  #: Seconds by part.


@dataclass(frozen=True)
class Status:
    """What is shown."""

    config: Config
    economy: Economy
    done: int  #: Iterations, from the start of the run.
    end: int | None  #: None: a run without end.
    seconds: float = 0.0  #: Since it was started or resumed.
    record: Mapping | None = None  #: The last line of metrics.
    history: Mapping[str, Sequence[float]] | None = None  #: Rewards by type in all lines of metrics.
    speed: float = 0.0  #: Environment steps per second.
    left: float | None = None  #: Seconds.
    shares: Mapping[str, float] | None = None  #: Of the time, by part.

    @property
    def iteration(self) -> int:
        """The iteration at work, or the last one."""
        return self.done if self.end is None else min(self.done, self.end - 1)

    @property
    def phase(self) -> str:
        return curriculum.phase(self.config, self.economy, self.iteration)

    @property
    def agent_steps(self) -> float:
        """Steps of agents per second."""
        return self.speed * sum(agent.count for agent in self.economy.agents.values())


def plain_line(status: Status) -> str:
    """Return the status in a line."""
    of = "" if status.end is None else f"/{status.end}"
    rewards = rewards_text(status.record) if status.record else ""
    left = "" if status.left is None else f", {status.left:.0f} s left"
    parts = (f"{status.done}{of}", status.phase, rewards, f"{status.speed:,.0f} env-steps/s")
    return "  ".join([*filter(None, parts), f"{status.seconds:.0f} s{left}"])


def view(status: Status, width: int) -> Text:
    """Return the status in some ten lines of at most ``width`` columns, or 40 in a terminal that is narrower."""
    width = min(max(width, WIDTH[0]), WIDTH[1])
    lines = [Text(status.phase, "bold"), *_changing(status, width), *_rewards(status, width)]
    if status.record:
        economy = status.record["economy"]
        lines += _flowing([f"{name.replace('_', ' ')} {number_text(economy[name])}" for name in SHOWN], width)
    if status.shares:
        speeds = [f"{status.speed:,.0f} env-steps/s", f"{status.agent_steps:,.0f} agent-steps/s"]
        shares = [f"{part} {100 * share:.0f} %" for part, share in status.shares.items() if share >= 0.005]
        lines += [*_flowing(speeds, width), *_flowing(shares, width, DARK)]
    lines.append(_progress(status, width))
    return Text("\n").join(lines)


def _changing(status: Status, width: int) -> list[Text]:
    """What the curriculum is still changing, besides the entropy weights."""
    theta = curriculum.theta_factor(status.config, status.iteration)
    rate = curriculum.learning_rate_factor(status.config, status.iteration)
    shares = [("θ", theta)] * (theta < 0.995) + [("learning rates", rate)] * (rate < 1.0)
    allowed = []
    for quantity, (low, high) in curriculum.narrowed(status.config, status.economy, status.iteration).items():
        span = number_text(low) if low == high else f"{number_text(low)}–{number_text(high)}"
        allowed.append(f"{quantity.replace('_', ' ')} {span}")
    if allowed:
        allowed[0] = f"allowed: {allowed[0]}"
    return [*_flowing([f"{name} at {100 * share:.0f} %" for name, share in shares], width), *_flowing(allowed, width)]


def _rewards(status: Status, width: int) -> list[Text]:
    """Per type: reward, entropy weight, and the reward over the run; dimmed where it does not learn."""
    lines = [Text(f"{'':10}  {'reward':>10}  {'entropy':>7}  over the run"[:width], DARK)]
    for name, agent in status.economy.agents.items():
        learns = curriculum.in_training(status.config, agent, status.iteration)
        weight = curriculum.entropy_coefficient(status.config, agent, status.iteration)
        reward = number_text(status.record["reward"][name]) if status.record else "–"
        entropy = f"{weight:.3f}" if learns else "–"
        line = f"{name:10}  {reward:>10}  {entropy:>7}  "
        curve = sparkline(status.history[name], width - len(line)) if status.history else ""
        lines.append(Text.assemble((line, "" if learns else DARK), (curve, "cyan")))
    return lines


def _progress(status: Status, width: int) -> Text:
    """The bar, with iterations and times."""
    gone = _clock(status.seconds)
    if status.end is None:
        return Text(f"iteration {status.done:,}  {gone}")
    left = "" if status.left is None else f", {_clock(status.left)} left"
    text = f" {status.done}/{status.end}  {gone}{left}"
    room = max(width - len(text), 0)
    full = room * status.done // status.end
    return Text.assemble(("━" * full, "green"), ("━" * (room - full), DARK), text)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _flowing(items: Iterable[str], width: int, style: str = "") -> list[Text]:
    """Return items on as many lines as they need, none of them broken."""
    lines: list[str] = []
    for item in items:
        if lines and len(lines[-1]) + 3 + len(item) <= width:
            lines[-1] += f" · {item}"
        else:
            lines.append(item)
    return [Text(line, style) for line in lines]


def sparkline(values: Sequence[float], width: int) -> str:
    """Return a curve of at most ``width`` characters, from its lowest to its highest point, of means over stretches."""
    points = np.array(values, dtype=float)
    if len(points) > width:
        points = np.array([part.mean() for part in np.array_split(points, width)]) if width > 0 else points[:0]
    known = points[np.isfinite(points)]
    if not len(known):
        return " " * len(points)
    low, high = known.min(), known.max()
    level = (points - low) / ((high - low) or 1.0) * (len(BLOCKS) - 1)
    return "".join(BLOCKS[round(at)] if np.isfinite(at) else " " for at in level)


class LiveView:
    """Shows a training: a view on a terminal, now and then a line elsewhere, nothing when ``quiet``.

    Lines come ten times in a run with an end, otherwise when the number of iterations has doubled. ``records`` are the
    lines of metrics of before, where a run is resumed.
    """

    def __init__(
        self,
        trainer: RbcTrainer,
        start: int,
        end: int | None,
        quiet: bool = False,
        records: Iterable[dict] = (),
        console: Console | None = None,
    ):
        self._trainer, self._start, self._end, self._done = trainer, start, end, start
        console = console or Console(stderr=True, highlight=False)
        draws = not quiet and console.is_interactive and not console.options.ascii_only
        self._next_line = None if quiet or draws else self._line_after(start)
        self._next_drawing = 0.0
        self._record: dict | None = None
        self._history = {name: array("d") for name in trainer.economy.agents}
        self._began = time.perf_counter()
        self.looks: deque[Look] = deque([self._look()], maxlen=MEMORY if draws else 2)
        self._env_steps: int | None = None  #: From the start or resume to the end.
        if end is not None:
            until_start, until_end = (
                curriculum.env_steps(trainer.settings, trainer.economy, iteration) for iteration in (start, end)
            )
            self._env_steps = until_end - until_start
        for record in records:
            self.note(record)
        self._live: Live | None = None
        if draws:
            drawn = lambda: view(self._status(), console.width)  # noqa: E731
            self._live = Live(console=console, auto_refresh=False, get_renderable=drawn)

    def __enter__(self) -> LiveView:
        if self._live:
            self._live.start(refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live:
            self.looks.append(self._look())
            self._live.stop()
            self._live = None  # it draws by this view: a cycle, by which the trainer would outlive the training

    def note(self, record: dict) -> None:
        """Show a line of metrics from now on."""
        self._record = record
        for name, rewards in self._history.items():
            rewards.append(record["reward"][name])

    def advance(self, done: int) -> None:
        """Show that so many iterations are done, from the start of the run."""
        self._done = done
        if self._live:
            if time.perf_counter() >= self._next_drawing:
                self.looks.append(self._look())
                self._live.refresh()
                self._next_drawing = time.perf_counter() + PAUSE
        elif self._next_line is not None and done >= self._next_line:
            self.looks.append(self._look())
            print(plain_line(self._status()), file=sys.stderr)
            self._next_line = self._line_after(done)

    def _line_after(self, done: int) -> int:
        since = done - self._start
        return done + (max(1, since) if self._end is None else max(1, (self._end - self._start) // LINES))

    def _look(self) -> Look:
        """Read the trainer's clocks. What it does neither in rollouts nor in updates is the recorder's: writing.

        They are the host's. A GPU works on while the host goes ahead; the host waits for it in the part that reads a
        result first, which is mostly the recorder's metrics. So on a GPU shares tell where the host stood, and only
        speeds, which no such wait distorts, tell how fast the training is.
        """
        stats = self._trainer.perf_stats
        seconds, times = time.perf_counter() - self._began, vars(stats)
        updates = {f"update {name}": times.get(f"{name}_update_time", 0.0) for name in self._trainer.economy.agents}
        trials = times.get("trials_time", 0.0)
        rollout = stats.total_time - stats.training_time - trials
        parts = {"rollout": rollout, "trials": trials, **updates, "writing": seconds - stats.total_time}
        return Look(self._done, seconds, stats.steps * self._trainer.processes.world_size, parts)

    def _status(self) -> Status:
        trainer, first, last = self._trainer, self.looks[0], self.looks[-1]
        history = self._history if self._record else None
        status = Status(trainer.settings, trainer.economy, last.done, self._end, last.seconds, self._record, history)
        if last.env_steps == first.env_steps:
            return status
        seconds = last.seconds - first.seconds
        speed = (last.env_steps - first.env_steps) / seconds
        shares = {part: (last.parts[part] - first.parts[part]) / seconds for part in last.parts}
        # By environment steps: an iteration with trials has twice as many as one without.
        left = None if self._env_steps is None else max(self._env_steps - last.env_steps, 0) / speed
        return replace(status, speed=speed, left=left, shares=shares)
