"""Trackers of metrics beside metrics.jsonl: TensorBoard event files where it is installed, Weights & Biases or MLflow
on request."""

import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from rbc_warp.config import Config
from rbc_warp.errors import ConfigError, UserError, printable
from rbc_warp.runs.files import write_text
from rbc_warp.runs.folder import RunDir


class Tracker(Protocol):
    """One destination of metrics."""

    def log(self, iteration: int, values: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def check_trackers(names: Iterable[str]) -> None:
    """:class:`ConfigError` where the package of a tracker is missing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"--track {name}: the package {name} is not installed; run `pip install {name}`")


def open_trackers(names: Iterable[str], run: RunDir, config: Config, start: int) -> list[Tracker]:
    """TensorBoard and those named, to be given the metrics of iterations from ``start`` on."""
    makers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(run, start),
        "wandb": lambda: WeightsAndBiases(run, config),
        "mlflow": lambda: MLflow(run, config),
    }
    if importlib.util.find_spec("tensorboard") is None:
        print("TensorBoard is not installed: no event files; metrics.jsonl has it all", file=sys.stderr)
        del makers["tensorboard"]
    return [Harmless(name, makers[name]) for name in dict.fromkeys(["tensorboard", *names]) if name in makers]


class Harmless:
    """A tracker that never ends a run: its first fault turns it off, with a warning.

    A :class:`UserError` in its making, before anything is trained, is raised as it is.
    """

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self._name = name
        self._tracker: Tracker | None = None
        with self._guarded():
            self._tracker = make()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # whatever a package raises
            self._tracker = None
            reason = " ".join(str(error).split()) or type(error).__name__
            text = f"warning: {self._name} is off from here on: {reason}; metrics.jsonl has all metrics"
            with suppress(OSError, ValueError):
                print(printable(text), file=sys.stderr)

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        with self._guarded():
            if self._tracker:
                self._tracker.log(iteration, values)

    def flush(self) -> None:
        with self._guarded():
            if self._tracker:
                self._tracker.flush()

    def close(self) -> None:
        with self._guarded():
            if self._tracker:
                self._tracker.close()


def flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a line of metrics by path, reward/firm; the iteration is not among them."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}/")
        elif f"{prefix}{key}" != "iteration" and isinstance(value, float | int):  # not null, which stands for NaN
            yield f"{prefix}{key}", float(value)


class TensorBoard:
    """Event files in the run's folder. A resumed run begins a new one, which voids what the old say of later steps.

    Written here and now: torch's writer has a thread of its own, whose faults come late and as tracebacks.
    """

    def __init__(self, run: RunDir, start: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        name = f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{platform.node()}.{os.getpid()}.0"
        self._file = open(run.path / name, "xb")  # noqa: SIM115
        self._writer = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        self._write(step=start, session_log=SessionLog(status=SessionLog.START))

    def _write(self, **event: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **event).SerializeToString())
        self._file.flush()

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        pairs = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step=iteration, summary=self._summary(value=pairs))

    def flush(self) -> None:
        """It writes at once."""

    def close(self) -> None:
        self._file.close()


class WeightsAndBiases:
    """A run of Weights & Biases; the run's folder names it, so a resumed run goes on there."""

    def __init__(self, run: RunDir, config: Config) -> None:
        import wandb

        group = config.metadata.get("group_name")
        self._run = wandb.init(
            project="rbc_warp",
            id=run.path.name,
            group=None if group is None else str(group),
            dir=str(run.path),
            config=config.to_dict(),
            resume="allow",
        )

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=iteration)

    def flush(self) -> None:
        """It writes on its own."""

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow; its id is kept in the run's folder, so a resumed run goes on there."""

    def __init__(self, run: RunDir, config: Config) -> None:
        import mlflow

        self._mlflow = mlflow
        try:
            self._start(run, config)
        except mlflow.exceptions.MlflowException as error:
            reason = " ".join(str(error).split())
            remedy = "`pip install mlflow` whole, or set MLFLOW_TRACKING_URI to a server that answers"
            raise ConfigError(f"--track mlflow: {reason}; {remedy}") from error

    def _start(self, run: RunDir, config: Config) -> None:
        mlflow, note = self._mlflow, run.path / "mlflow.json"
        if note.exists():
            mlflow.start_run(run_id=json.loads(note.read_text())["run_id"])
            return
        mlflow.set_experiment(str(config.metadata.get("group_name") or run.path.absolute().parent.name))
        started = mlflow.start_run(run_name=run.path.name)
        mlflow.log_dict(config.to_dict(), "config.json")
        write_text(note, json.dumps({"run_id": started.info.run_id}))

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(values), step=iteration)

    def flush(self) -> None:
        """It writes at once."""

    def close(self) -> None:
        self._mlflow.end_run()
