"""Paths and files of a run, in one place.

``files.py`` reads and writes them: nothing read can run code, a full disk or a killed process leaves what was there
before, and what is read back is verified against the run's manifest.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import pickle
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from rbc_warp.config.manifest import GROWING, Files, is_listed, read_verified
from rbc_warp.config.reading import MAX_TEXT_BYTES, open_regular, reading
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.errors import RunFileError
from rbc_warp.runs.console import ranges
from rbc_warp.runs.files import COPY_AGAIN, Ledger, check_no_link, folder_of, load_torch, torch_bytes, writing
from rbc_warp.runs.state import REMEDY

STATUSES = ("created", "running", "interrupted", "finished", "failed")
EPISODE_KEYS = ("states", "actions", "rewards", "action_array", "aux_array")
EPISODE_RANKS = {"consumer": (4, 4, 3, 2, 4), "firm": (4, 3, 3, 2, 3), "government": (4, 3, 3, 2, 1)}


@dataclass(frozen=True)
class RunStatus:
    """The progress of a run: ``status`` is one of STATUSES, ``time`` in seconds since 1970."""

    status: str
    iteration: int
    time: float
    message: str


class RunDir:
    """One run's folder, or the folder of a best response inside it.

    Args:
        path: the folder.
        must_exist: whether it is an error that there is none.
        root: the run's folder, where ``path`` lies inside one.
    """

    def __init__(self, path: Path | str, must_exist: bool = True, root: Path | None = None) -> None:
        if not isinstance(path, str | os.PathLike):
            raise RunFileError(repr(path)[:60], "is no path", "give the rollout-… folder of a run")
        self.path = Path(path)
        self._root = root or self.path
        self._ledger = Ledger(self._root, self.path)
        self._metrics_hashed, self._metrics_size = hashlib.sha256(), 0
        self.hparams_path = self.path / "hparams.yaml"
        self.action_arrays_path = self.path / "action_arrays.pickle"
        self.metrics_path = self.path / "metrics.jsonl"
        self.status_path = self.path / "status.json"
        self.saved_models_path = self.path / "saved_models"
        self.state_path = self.path / "state" / "last.pt"
        self.previous_state_path = self.path / "state" / "previous.pt"
        with reading(self.path, "a folder", "give the rollout-… folder of a run"):
            if must_exist and not self.path.is_dir():
                raise RunFileError(self.path, "is not a folder", "give the rollout-… folder of a run")

    @classmethod
    def create(cls, experiment_dir: Path | str, name: str = "rollout") -> RunDir:
        """Make ``<name>-<seconds>-<fraction>``, new even where several processes create runs at the same time."""
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise RunFileError(experiment_dir, f"no folder name can start with {name!r}", "use letters, digits, _ or -")
        with writing(Path(experiment_dir)):
            Path(experiment_dir).mkdir(parents=True, exist_ok=True)
            while True:
                seconds, fraction = divmod(time.time_ns(), 10**9)
                path = Path(experiment_dir) / f"{name}-{seconds}-{fraction:09d}"
                with suppress(FileExistsError):
                    path.mkdir()
                    return cls(path)

    def best_response(self, agent_type: str) -> RunDir:
        """``br<type>/``: the same files, from training that type alone. The folder appears with its first file."""
        return self.inside(f"br{_agent_type(agent_type)}")

    def inside(self, *parts: str) -> RunDir:
        """A folder of more files of the same kinds inside this one. It appears with its first file."""
        return RunDir(self.path.joinpath(*parts), must_exist=False, root=self._root)

    def check_links(self) -> None:
        """Raise RunFileError where a folder or file that a run writes to is a link, which would lead out of it."""
        with reading(self.path, "a run's folder", "give the rollout-… folder of a run"):
            for path in (*self.path.iterdir(), self.state_path.with_name("lock")):
                if path.name in ("saved_models", "state", "lock", GROWING) or path.name.startswith("br"):
                    check_no_link(path)

    def _write(self, path: Path, content: bytes | memoryview, **options: Any) -> None:
        self._ledger.write(path, lambda file: file.write(content), **options)

    def _read(self, path: Path, limit: int | None) -> bytes:
        return read_verified(path, self.path, limit)

    def best_response_output_path(self, agent_type: str) -> Path:
        return self.path / f"br_{_agent_type(agent_type)}_output.txt"

    @property
    def best_response_path(self) -> Path:
        return self.path / "best_response.json"

    def read_best_response(self) -> dict[str, Any]:
        """Read the measurements so far in best_response.json; an empty dict where there is no file."""
        if not self.best_response_path.exists():
            return {}
        with reading(self.best_response_path, "results of best responses", "move it away to measure anew"):
            content = json.loads(self._read(self.best_response_path, limit=None))
            if not isinstance(content, dict) or not all(isinstance(part, list | dict) for part in content.values()):
                raise TypeError("expected an object of lists and objects")
            return content

    def write_best_response(self, results: Mapping[str, Any]) -> None:
        """Replace best_response.json; NaN and infinity become null."""
        content = json.dumps(jsonable(results), indent=1, allow_nan=False) + "\n"
        self._write(self.best_response_path, content.encode())

    def write_best_response_output(self, agent_type: str, text: str) -> None:
        """Replace br_<type>_output.txt."""
        self._write(self.best_response_output_path(agent_type), text.encode())

    def policy_path(self, agent_type: str, label: int | str) -> Path:
        """A type's network; ``label`` is an iteration, 'best' or 'latest'."""
        path = self.saved_models_path / f"{_agent_type(agent_type)}_policy_{label}.pt"
        return _checked_label(path, label, ("best", "latest"))

    def episode_path(self, label: int | str, agent_type: str) -> Path:
        """A type's dense rollout; ``label`` is an iteration or 'final'."""
        return _checked_label(self.path / f"episode_{label}_{_agent_type(agent_type)}.npz", label, ("final",))

    def episode_labels(self) -> list[str]:
        """Labels of dense rollouts: iterations ascending, then 'final' where it exists."""
        return _labels(self.path, rf"episode_([0-9]+|final)_{AGENT_TYPES[0]}\.npz")

    def last_episode(self) -> str:
        """The label of the last dense rollout. Raises RunFileError where there is none."""
        labels = self.episode_labels()
        if not labels:
            raise RunFileError(self.path, "holds no dense rollout", "give the rollout-… folder of a run that has one")
        return labels[-1]

    def labels(self, agent_type: str) -> list[str]:
        """Checkpoints of a type: iterations ascending, then 'best' and 'latest' where they exist."""
        return _labels(self.saved_models_path, rf"{_agent_type(agent_type)}_policy_([0-9]+|best|latest)\.pt")

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Write the effective configuration (plain Python values) in the order given."""
        self._write(self.hparams_path, yaml.safe_dump(dict(hparams), sort_keys=False, allow_unicode=True).encode())

    def write_action_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the tables from action index to action, as float32."""
        tables = {key: np.ascontiguousarray(value, dtype=np.float32) for key, value in arrays.items()}
        self._write(self.action_arrays_path, pickle.dumps(tables, protocol=4))

    def write_episode(
        self,
        label: int | str,
        agent_type: str,
        states: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        action_array: np.ndarray,
        aux_array: np.ndarray | None = None,
    ) -> Path:
        """Write one type's rollout; states, actions (E, T, n, …), rewards (E, T, n); aux_array: None is empty."""
        path = self.episode_path(label, agent_type)
        aux = np.empty(0) if aux_array is None or agent_type == "government" else aux_array
        given = zip(EPISODE_KEYS, (states, actions, rewards, action_array, aux), strict=True)
        arrays: Any = {key: np.asarray(array, np.int32 if key == "actions" else np.float32) for key, array in given}
        check_episode(path, arrays, agent_type)
        self._ledger.write(path, lambda file: np.savez(file, **arrays))
        return path

    def save_policy(self, agent_type: str, label: int | str, state_dict: Mapping[str, torch.Tensor]) -> Path:
        """Write one type's network as a plain state dict, names and order as given, tensors on the CPU."""
        path = self.policy_path(agent_type, label)
        self._write(path, torch_bytes(path, {key: value.detach().cpu().clone() for key, value in state_dict.items()}))
        return path

    def load_policy_state(
        self, agent_type: str, label: int | str, expected: Mapping[str, Sequence[int]]
    ) -> dict[str, torch.Tensor]:
        """Weights of a checkpoint, in the order of ``expected`` (name to shape): float32, finite, on the CPU."""
        path = self.policy_path(agent_type, label)
        saved = f"saved {agent_type} checkpoints: {', '.join(self.labels(agent_type)) or 'none'}"
        state = load_torch(path, f"{COPY_AGAIN} ({saved})", self.path)
        if set(state) != set(expected):
            missing = ", ".join(sorted(set(expected) - set(state))) or "none"
            extra = ", ".join(sorted(map(str, set(state) - set(expected)))[:10]) or "none"
            problem = f"expected the weights {', '.join(expected)}; missing: {missing}; not expected: {extra}"
            raise RunFileError(path, problem, "load it with the hparams.yaml of the run that wrote it")
        for key, shape in expected.items():
            _check_weight(path, key, state[key], tuple(shape))
        return {key: state[key].detach().clone() for key in expected}

    @property
    def has_state(self) -> bool:
        return self.state_path.exists() or self.previous_state_path.exists()

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Save what a resume needs: nested dicts and lists of tensors, numbers, strings. Keeps the state before.

        The metrics so far are on disk then, and listed in the manifest.
        """
        content = torch_bytes(self.state_path, dict(state))
        self._write(self.state_path, content, keep_as=self.previous_state_path, also=self._listed_metrics())

    def load_state(
        self, check: Callable[[Path, dict[str, Any]], None] = lambda path, state: None
    ) -> tuple[dict[str, Any], str | None]:
        """The last state and None; where that is damaged or missing, the one before and a warning to show.

        ``check`` raises RunFileError where a state cannot be used.
        """

        def load(path: Path) -> dict[str, Any]:
            state = load_torch(path, REMEDY, self.path)
            check(path, state)
            return state

        try:
            return load(self.state_path), None
        except RunFileError as error:
            if not self.previous_state_path.exists():
                raise
            try:
                state = load(self.previous_state_path)
            except RunFileError as other:
                problem = f"{error.problem}; and {other.path.name}: {other.problem}"
                raise RunFileError(error.path, problem, REMEDY) from error
            with suppress(OSError):  # out of the way: the next save must not put it over the good one
                os.replace(self.state_path, self.state_path.with_name("damaged.pt"))
            return state, f"{error.path}: {error.problem}; resuming from {self.previous_state_path} instead"

    def remove_state(self) -> None:
        """Remove what a resume would need, when there is nothing left to resume."""
        shutil.rmtree(self.state_path.parent, ignore_errors=True)

    def append_metrics(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append one JSON line per record, each with an integer ``iteration``; NaN and infinity become null."""
        records = list(records)
        assert all(isinstance(record.get("iteration"), int | np.integer) for record in records), records
        lines = "".join(map(_json_line, records)).encode()
        with writing(self.metrics_path), self._open_metrics() as file:
            end = _end_of_whole_lines(file)
            file.truncate(end)
            try:
                if file.write(lines) != len(lines):
                    raise OSError(errno.ENOSPC, "no space left for a whole record")
            except OSError:
                file.truncate(end)
                raise

    @contextmanager
    def _open_metrics(self) -> Iterator[FileIO]:
        """Open metrics.jsonl, made where it is missing, to append."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        with (
            folder_of(self._root, self.path) as folder,
            open(GROWING, "a+b", 0, opener=lambda name, _: os.open(name, flags, 0o666, dir_fd=folder)) as file,
        ):
            yield file

    def _listed_metrics(self) -> Files:
        """What the manifest is to list of the metrics, which are on disk now."""
        if not self.metrics_path.exists():
            return {}
        with writing(self.metrics_path), self._open_metrics() as file:
            os.fsync(file.fileno())
            file.seek(self._metrics_size)
            new = file.read()
        self._metrics_hashed.update(new)
        self._metrics_size += len(new)
        return {GROWING: [(self._metrics_size, self._metrics_hashed.hexdigest())]}

    def read_metrics(self) -> list[dict[str, Any]]:
        """All records, [] where there is no file; a last line torn by a crash is left out."""
        content = self._read(self.metrics_path, limit=None) if self.metrics_path.exists() else b""
        records: list[dict[str, Any]] = []
        for number, line in enumerate(content[: content.rfind(b"\n") + 1].split(b"\n")[:-1], start=1):
            kind = f"line {number} as an object with an integer 'iteration'"
            with reading(self.metrics_path, kind, "remove that line"):
                records.append(_record(line))
            if len(records) > 1 and records[-1]["iteration"] <= records[-2]["iteration"]:
                problem = f"line {number} repeats or goes back to iteration {records[-1]['iteration']}"
                raise RunFileError(self.metrics_path, problem, "remove that line")
        return records

    def truncate_metrics(self, iteration: int, due: Iterable[int] = ()) -> str | None:
        """Drop what was recorded at ``iteration`` and later, before a resume from there.

        Lines before it that are damaged, doubled or missing (of the iterations ``due``) are left out, too; then the
        file as it was is kept as metrics.damaged.jsonl, and a warning is returned that names them.
        """
        content, listed = b"", None
        if os.path.lexists(self.metrics_path) or iteration:
            with reading(self.metrics_path, "metrics", "move it away"), suppress(FileNotFoundError):
                listed = False
                with open_regular(self.metrics_path) as file:
                    content = file.read()
                    listed = is_listed(self.path, GROWING, file)
        kept: dict[int, bytes] = {}
        faults: list[str] = []
        for number, line in enumerate(content[: content.rfind(b"\n") + 1].split(b"\n")[:-1], start=1):
            try:
                at = _record(line)["iteration"]
            except Exception:
                faults += [f"line {number} is damaged"] if listed is not True else []
                continue
            if at in kept:
                faults.append(f"iteration {at} is doubled")
            elif at < iteration:
                kept[at] = line
        if not content:
            faults = [f"does not exist or is empty, though the run has made {iteration} iterations"]
        elif listed is False:
            missing = [at for at in due if at not in kept]
            faults += [f"missing: iteration {', '.join(ranges(missing, due))}"] if missing else []
            faults = faults or ["its lines are not those that were written"]
        whole = b"".join(kept[at] + b"\n" for at in sorted(kept))
        if whole != content or listed is False:  # then the manifest is to list it as it is now
            if whole != content and faults and iteration and content:
                self._write(self.metrics_path.with_name("metrics.damaged.jsonl"), content)
            self._write(self.metrics_path, whole)
        self._metrics_hashed, self._metrics_size = hashlib.sha256(), 0
        if not faults or not iteration:
            return None
        named = "; ".join(faults[:10]) + (f"; and {len(faults) - 10} more" if len(faults) > 10 else "")
        kept_as = "; the file as it was: metrics.damaged.jsonl" if content and whole != content else ""
        return f"{self.metrics_path}: {named}; going on without{kept_as}"

    def write_status(self, status: str, iteration: int, message: str = "") -> None:
        assert status in STATUSES, status
        record = asdict(RunStatus(status, int(iteration), time.time(), message))
        self._write(self.status_path, _json_line(record).encode())

    def read_status(self) -> RunStatus | None:
        """The run's status; None where there is none, as in a run of the public code."""
        if not self.status_path.exists():
            return None
        with reading(self.status_path, "a run's status", "delete it if the run is over"):
            record = json.loads(self._read(self.status_path, MAX_TEXT_BYTES))
            status = RunStatus(
                record["status"], int(record["iteration"]), float(record["time"]), str(record["message"])
            )
            if status.status not in STATUSES:
                raise ValueError
            return status


def find_runs(experiment_dir: Path | str) -> list[RunDir]:
    """Runs directly inside a folder, oldest first: ``…-<seconds>-<fraction>`` with an hparams.yaml."""
    found = []
    with reading(Path(experiment_dir), "a folder of runs", "give the folder that holds rollout-… folders"):
        for path in Path(experiment_dir).iterdir():
            match = re.fullmatch(r".+-([0-9]+)-([0-9]+)", path.name)
            if match and _may_hold_run(path):
                found.append(((int(match[1]), match[2]), path))
    return [RunDir(path) for _, path in sorted(found)]


def _may_hold_run(path: Path) -> bool:
    """Return whether there is an hparams.yaml, or a folder that cannot be looked into: reading it will tell why."""
    try:
        return (path / "hparams.yaml").is_file()
    except OSError:
        return True


def newest_finished_run(root: Path | str) -> RunDir:
    """The finished run created last in ``root`` or one of its subfolders (experiment/NAME or experiment)."""
    runs = find_runs(root)
    for folder in Path(root).iterdir():
        runs += find_runs(folder) if folder.is_dir() else []
    for run in sorted(runs, key=lambda run: run.path.name.rsplit("-", 2)[1:], reverse=True):
        with suppress(RunFileError):
            status = run.read_status()
            if status is not None and status.status == "finished":
                return run
    raise RunFileError(root, "holds no finished run", "train one first, or name the rollout-… folder of a run")


def _check_weight(path: Path, key: str, value: Any, shape: tuple[int, ...]) -> None:
    wanted = f"{key}: expected float32 of shape {shape}"
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        raise RunFileError(path, f"{wanted}, found no dense tensor", COPY_AGAIN)
    if value.dtype != torch.float32 or tuple(value.shape) != shape:
        found = f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
        raise RunFileError(path, f"{wanted}, found {found}", "load it with the hparams.yaml of the run that wrote it")
    if not torch.isfinite(value).all():
        raise RunFileError(path, f"{key}: expected finite numbers, found NaN or infinity", "use an earlier checkpoint")


def check_episode(path: Path, arrays: Mapping[str, np.ndarray], agent_type: str | None) -> None:
    for index, key in enumerate(EPISODE_KEYS):
        array, kinds = arrays[key], "iu" if key == "actions" else "f"
        ranks = [EPISODE_RANKS[agent_type][index]] if agent_type else sorted({r[index] for r in EPISODE_RANKS.values()})
        if array.dtype.kind not in kinds or array.ndim not in ranks:
            number, rank = "integers" if kinds == "iu" else "floats", " or ".join(map(str, ranks))
            problem = f"{key}: expected {number} of rank {rank}, found {array.dtype} of shape {array.shape}"
            raise RunFileError(path, problem, COPY_AGAIN)
        per_agent = key in ("states", "actions", "rewards") or (key == "aux_array" and array.size)
        if per_agent and array.shape[:3] != arrays["rewards"].shape:
            problem = f"{key}: expected shape {arrays['rewards'].shape}… as of rewards, found {array.shape}"
            raise RunFileError(path, problem, COPY_AGAIN)


def _agent_type(agent_type: str) -> str:
    if agent_type not in AGENT_TYPES:
        raise RunFileError(agent_type, "is not an agent type", f"use one of {', '.join(AGENT_TYPES)}")
    return agent_type


def _checked_label(path: Path, label: int | str, words: tuple[str, ...]) -> Path:
    if not re.fullmatch(rf"[0-9]+|{'|'.join(words)}", str(label)):
        raise RunFileError(
            path, f"label {str(label)!r} is not valid", f"use an iteration (digits) or {', '.join(words)}"
        )
    return path


def _labels(folder: Path, pattern: str) -> list[str]:
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    labels = [match[1] for name in names if (match := re.fullmatch(pattern, name))]
    return sorted(labels, key=lambda label: (0, int(label), "") if label.isdigit() else (1, 0, label))


def _json_line(record: Mapping[str, Any]) -> str:
    return json.dumps(jsonable(record), allow_nan=False) + "\n"


def jsonable(value: Any) -> Any:
    """Return a value as JSON takes it, with NaN and infinity as null."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [jsonable(entry) for entry in value]
    if isinstance(value, np.generic | torch.Tensor):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _record(line: bytes) -> dict[str, Any]:
    """A line of metrics.jsonl. Whatever is wrong with it is some exception."""
    record = json.loads(line)
    if type(record["iteration"]) is not int:
        raise TypeError
    return record


def _end_of_whole_lines(file: FileIO) -> int:
    """Offset behind the last newline: what follows was torn by a crash."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if file.read() == b"\n":
        return size
    file.seek(0)
    return file.read().rfind(b"\n") + 1
