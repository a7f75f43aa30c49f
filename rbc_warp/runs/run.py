"""One training run from start to end: its files, progress, interruption, exact resume and summary."""

from __future__ import annotations

import fcntl
import itertools
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from rbc_warp.config import Config, load_config
from rbc_warp.config.messages import show
from rbc_warp.economy import curriculum
from rbc_warp.economy.parameters import AGENT_TYPES, Economy
from rbc_warp.errors import ResumeError, RunFileError
from rbc_warp.runs import metrics
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.tracking import flat, open_trackers
from rbc_warp.training.policy import Policy, make_policies
from rbc_warp.training.processes import Processes
from rbc_warp.training.trainer import RbcTrainer

STATE_VERSION = 1
# Keys of ``train`` that may change on resume: they say how far a run goes and what it leaves, not how it learns.
RESUMABLE = (
    "num_episodes",
    "infinite_episodes",
    "log_every",
    "save_dense_every",
    "save_model_every",
    "save_state_every",
)
# How long a resume waits for the process that still trains the run, such as one that saves before it stops [seconds].
PATIENCE = 60.0


@dataclass(frozen=True)
class RunResult:
    """How a run ended. ``iterations``: completed, from the start of the run; ``start``: those completed before."""

    run: RunDir
    status: str
    start: int
    iterations: int
    seconds: float
    record: dict


def prepare_run(run: RunDir, config: Config) -> None:
    """Writes what describes a run before it starts: hparams.yaml and action_arrays.pickle."""
    economy = Economy.from_config(config)
    run.write_action_arrays(
        {
            "consumption_choices": economy.consumption_choices[:, None],
            "work_choices": economy.work_choices[:, None],
            "price_and_wage": economy.firm_choices,
            "tax_choices": economy.government_choices,
        }
    )
    run.write_hparams(config.to_dict(with_derived=True))
    run.write_status("created", 0)


def load_policies(run: RunDir, config: Config, label: int | str = "latest") -> dict[str, Policy]:
    """The policies of a checkpoint. A frozen type, which has no file, keeps its untrained network."""
    policies = make_policies(config, Economy.from_config(config))
    for agent, policy in policies.items():
        if curriculum.frozen_action(config, agent) is None:
            policy.load_state_dict(run.load_policy_state(agent, label, policy.file_shapes()))
    return policies


@contextmanager
def locked(path: Path, problem: str, remedy: str, patience: float = 0.0) -> Iterator[None]:
    """Holds the lock at ``path``; the system lets go of it when this process ends, however it ends.

    Raises :class:`RunFileError` if another process holds it for longer than ``patience`` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with open(path, "a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise RunFileError(path.parent, problem, remedy) from None
                time.sleep(0.1)
        yield


class Interrupt:
    """Turns Ctrl-C into a request to stop after the current iteration; a second Ctrl-C stops at once.

    The end of the process ``parent``, if one is given that started this one, is such a request too.
    """

    def __init__(self, parent: int | None = None) -> None:
        self._signalled = False
        self._parent = parent

    @property
    def requested(self) -> bool:
        return self._signalled or (self._parent is not None and os.getppid() != self._parent)

    @contextmanager
    def watching(self) -> Iterator[None]:
        def request(signum: int, frame: object) -> None:
            if self._signalled:
                raise KeyboardInterrupt
            self._signalled = True

        try:
            before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: whoever runs this thread interrupts it
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass
class _Session:
    """One run in the hands of this process, one of those that share it; only the first writes files."""

    run: RunDir
    config: Config
    trainer: RbcTrainer
    processes: Processes


def train_run(
    run: RunDir,
    config: Config,
    backend: str = "auto",
    *,
    resume: bool = False,
    quiet: bool = False,
    processes: Processes | None = None,
    track: Sequence[str] = (),
    parent: int | None = None,
) -> RunResult:
    """Trains in ``run``, writing checkpoints, dense rollouts, metrics and states as it goes.

    With ``resume``, continues from the run's last state, or from the start where there is none yet. Returns after the
    last iteration or an interruption: by a signal, or by the end of the process ``parent`` that started this one.
    ``track`` names trackers beside TensorBoard.

    Raises:
        ResumeError: ``config`` is not the run's. RunFileError: another process trains it, or a file cannot be used.
    """
    processes = processes or Processes()
    with ExitStack() as stack:
        if processes.is_first:
            remedy = "wait until it ends, or stop it"
            stack.enter_context(
                locked(run.state_path.with_name("lock"), "is trained by another process", remedy, PATIENCE)
            )
        state = processes.share(_resumable_state(run, config) if resume and processes.is_first else None)
        if state and state["iteration"] == config.train.num_episodes and not config.train.infinite_episodes:
            if processes.is_first:
                run.write_status("finished", state["iteration"])
            return RunResult(run, "finished", state["iteration"], state["iteration"], 0.0, {})
        trainer = RbcTrainer(
            config, backend, reduce=processes.sum, world_size=processes.world_size, rank=processes.rank
        )
        start = continue_from(trainer, state) if state else 0
        session = _Session(run, config, trainer, processes)
        if processes.is_first:
            kept = _metrics_to_keep(state) if state else 0
            run.truncate_metrics(kept)
            if resume:
                run.write_hparams(config.to_dict(with_derived=True))
            trackers = open_trackers(track, run, config, kept)
            for tracker in trackers:
                stack.callback(tracker.close)
        else:
            trackers = []
        return _train(session, start, trackers, Interrupt(parent), quiet or not processes.is_first)


def _train(session: _Session, start: int, trackers: list, interrupt: Interrupt, quiet: bool) -> RunResult:
    run, train, processes = session.run, session.config.train, session.processes
    end = None if train.infinite_episodes else train.num_episodes
    began = time.monotonic()
    record: dict = {}
    done = start
    _write_status(session, "running", start)
    iterations = itertools.count(start) if end is None else range(start, end)
    bar = tqdm(
        iterations, initial=start, total=end, unit="it", disable=quiet or None, dynamic_ncols=True, file=sys.stderr
    )
    try:
        with interrupt.watching(), bar:
            for iteration in bar:
                last = end is not None and iteration == end - 1
                new = _run_iteration(session, iteration, last)
                if new and processes.is_first:
                    run.append_metrics([new])
                    for tracker in trackers:
                        tracker.log(iteration, dict(flat(new)))
                    bar.set_postfix_str(_rewards_text(new), refresh=False)
                record = new or record
                done = iteration + 1
                stop = processes.any(interrupt.requested)
                if last:
                    save_episode(run, session.trainer, "final", processes)
                if last or stop:
                    _save_policies(session, ["latest"])
                # The state comes last: what belongs to an iteration before it is on disk, what comes after is replayed.
                if done % train.save_state_every == 0 or last or stop:
                    for tracker in trackers:
                        tracker.flush()
                    if processes.is_first:
                        save_state(run, session.trainer, session.config, done)
                if stop:
                    break
    except BaseException as error:
        with suppress(RunFileError):  # a full disk, say, must not hide the error
            _write_status(
                session, "interrupted" if isinstance(error, KeyboardInterrupt) else "failed", done, repr(error)
            )
        raise
    status = "finished" if end is not None and done >= end else "interrupted"
    _write_status(session, status, done)
    return RunResult(run, status, start, done, time.monotonic() - began, record)


def _write_status(session: _Session, status: str, iteration: int, message: str = "") -> None:
    if session.processes.is_first:
        session.run.write_status(status, iteration, message)


def _run_iteration(session: _Session, iteration: int, last: bool) -> dict | None:
    """Plays, saves what is due, updates; returns the metrics if they were due."""
    trainer, train = session.trainer, session.config.train
    dense, checkpoint = iteration % train.save_dense_every == 0, iteration % train.save_model_every == 0
    trainer.train_iteration(iteration, keep_consumption=dense or last)
    if checkpoint:
        _save_policies(session, [str(iteration), "latest"])
    if dense:
        save_episode(session.run, trainer, str(iteration), session.processes)
    losses = trainer.update(iteration)
    if last and not checkpoint:
        _save_policies(session, [str(iteration)])
    if iteration % train.log_every and not last:
        return None
    return session.processes.average(metrics.record(trainer, iteration, losses))


def _save_policies(session: _Session, labels: list[str]) -> None:
    trainer = session.trainer
    for agent in AGENT_TYPES:
        if session.processes.is_first and curriculum.frozen_action(trainer.settings, agent) is None:
            for label in labels:
                session.run.save_policy(agent, label, trainer.models[agent].state_dict())


def save_episode(run: RunDir, trainer: RbcTrainer, label: str, processes: Processes | None = None) -> None:
    """The last rollout of all processes as dense files, environments first; consumption must have been kept."""
    processes = processes or Processes()
    economy = trainer.economy
    tables = {
        "consumer": economy.work_choices[:, None],
        "firm": economy.firm_choices,
        "government": economy.government_choices,
    }
    for agent in AGENT_TYPES:
        arrays = [trainer.states(agent), trainer.actions(agent), trainer.rewards(agent)]
        if agent != "government":
            arrays.append(trainer.aux(agent))
        states, actions, rewards, *aux = (processes.gather(array.transpose(0, 1)).numpy() for array in arrays)
        if processes.is_first:
            run.write_episode(label, agent, states, actions, rewards, tables[agent], aux[0] if aux else None)


# Exact resume. ``read_state`` and ``continue_from`` undo ``save_state``; best response uses them too.


def save_state(run: RunDir, trainer: RbcTrainer, config: Config, iteration: int, **more: Any) -> None:
    """All that continues the run at ``iteration``, and ``more``; the metrics before it are on disk when it is."""
    if run.metrics_path.exists():
        with open(run.metrics_path, "rb") as file:
            os.fsync(file.fileno())
    state = {"version": STATE_VERSION, "iteration": iteration, "precision": str(trainer.precision)}
    run.save_state({**state, "config": config.to_dict(), "trainer": trainer.state(), **more})


def read_state(run: RunDir, config: Config) -> dict[str, Any] | None:
    """The run's last state, None where it has reached none; :class:`ResumeError` if ``config`` cannot continue it."""
    if not run.has_state:
        return None
    state, warning = run.load_state()
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    if state.get("version") != STATE_VERSION:
        problem = f"its version is {state.get('version')!r}, version {STATE_VERSION} is known"
        raise RunFileError(run.state_path, problem, "resume with the version of the lab that wrote it")
    check_unchanged(run, state["config"], config)
    return state


def check_unchanged(run: RunDir, before: Mapping[str, Any], config: Config) -> None:
    """:class:`ResumeError` with the differences if more than RESUMABLE keys changed since ``before`` was written.

    ``train.precision`` is not compared: what it comes to on this machine is, by :func:`continue_from`.
    """
    free = {("train", key) for key in (*RESUMABLE, "precision")}
    changes = []
    after = config.to_dict()
    for section in ("agents", "world", "train"):
        old, new = before[section], after[section]
        for key in {**old, **new}:
            if (section, key) not in free and old.get(key) != new.get(key):
                changes.append(f"  {section}.{key}: {show(old.get(key))} → {show(new.get(key))}")
    if changes:
        allowed = ", ".join(RESUMABLE)
        raise ResumeError(
            f"{run.path}: cannot be continued with another configuration:\n"
            + "\n".join(changes)
            + f"\ntake back these changes (on resume only train.{{{allowed}}} may change), or start a new run"
        )


def continue_from(trainer: RbcTrainer, state: Mapping[str, Any]) -> int:
    """Puts a state into a new trainer; returns the iteration to go on with."""
    if state["precision"] != str(trainer.precision):
        wanted, here = (str(dtype).removeprefix("torch.") for dtype in (state["precision"], trainer.precision))
        raise ResumeError(f"the run computes in {wanted}, not in {here} as here; --set train.precision={wanted}")
    trainer.load_state(state["trainer"])
    return int(state["iteration"])


def _resumable_state(run: RunDir, config: Config) -> dict[str, Any] | None:
    """:func:`read_state`, after checking that a run without one is not changed either, nor made too short."""
    state = read_state(run, config)
    if state is None:
        check_unchanged(run, load_config(run.hparams_path).to_dict(), config)
        return None
    end, done = config.train.num_episodes, state["iteration"]
    if done > end and not config.train.infinite_episodes:
        raise ResumeError(f"{run.path}: has run {done} iterations; --set train.num_episodes={done} or more, not {end}")
    return state


def _metrics_to_keep(state: Mapping[str, Any]) -> int:
    """Iterations whose metrics stay when a run goes on. The line of a planned end that was off the schedule goes."""
    train, done = state["config"]["train"], state["iteration"]
    ended = done == train["num_episodes"] and not train["infinite_episodes"]
    return done - 1 if ended and (done - 1) % train["log_every"] else done


def _rewards_text(record: dict) -> str:
    reward = record["reward"]
    return f"consumer {reward['consumer']:.3g}  firm {reward['firm']:.4g}  government {reward['government']:.4g}"


def summary(result: RunResult, threads: int | None = None) -> str:
    """What to tell the user at the end: rewards, where the files are, what to do next."""
    run = result.run
    if result.status == "finished" and result.start == result.iterations:
        longer = f"python run_training.py --resume {run.path} --set train.num_episodes={2 * result.iterations}"
        return f"{run.path} is finished after {result.iterations} iterations\nto extend it:  {longer}"
    threads = threads or torch.get_num_threads()
    lines = [f"{result.status} after {result.iterations} iterations, {result.seconds:.0f} s on {threads} threads"]
    if result.record:
        economy = result.record["economy"]
        shown = ("price", "wage", "hours", "sales", "exports", "income_tax", "corporate_tax")
        lines.append(f"rewards per agent and period: {_rewards_text(result.record)}")
        lines.append("means: " + "  ".join(f"{name} {economy[name]:.4g}" for name in shown))
    lines.append(f"files: {run.path}  (metrics.jsonl, saved_models/, episode_*.npz, hparams.yaml)")
    if result.status == "finished":
        lines.append(f"next:  python run_best_response.py {run.path}")
    else:
        lines.append(f"next:  python run_training.py --resume {run.path}")
    return "\n".join(lines)
