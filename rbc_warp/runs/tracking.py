"""Trackers of metrics beside metrics.jsonl: TensorBoard event files where it is installed, Weights & Biases or MLflow
on request."""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from rbc_warp.config import Config
from rbc_warp.errors import ConfigError
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
    makers: dict[str, Callable[[RunDir, Config], Tracker]] = {"wandb": WeightsAndBiases, "mlflow": MLflow}
    trackers: list[Tracker] = [makers[name](run, config) for name in names]
    if importlib.util.find_spec("tensorboard") is None:
        print("TensorBoard is not installed: no event files; metrics.jsonl has it all", file=sys.stderr)
        return trackers
    return [TensorBoard(run, start), *trackers]


def flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a line of metrics by path, reward/firm; the iteration is not among them."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}/")
        elif f"{prefix}{key}" != "iteration":
            yield f"{prefix}{key}", float(value)


class TensorBoard:
    """Event files in the run's folder. A resumed run begins a new one, which voids what the old say of later steps."""

    def __init__(self, run: RunDir, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.path), purge_step=start)

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, iteration)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


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
