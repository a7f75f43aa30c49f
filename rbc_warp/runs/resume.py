"""Exact resume: :func:`read_state` and :func:`continue_from` undo :func:`save_state`. Best responses use them, too."""

import os
import sys
from collections.abc import Mapping
from typing import Any

from rbc_warp.config import Config, load_config
from rbc_warp.config.messages import show
from rbc_warp.errors import ResumeError, RunFileError, printable
from rbc_warp.runs.files import writing
from rbc_warp.runs.folder import RunDir
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


def save_state(run: RunDir, trainer: RbcTrainer, iteration: int, **more: Any) -> None:
    """Save all that continues the run at ``iteration``, and ``more``; the metrics before it are on disk then."""
    with writing(run.metrics_path):
        if run.metrics_path.exists():
            with open(run.metrics_path, "rb") as file:
                os.fsync(file.fileno())
    state = {"version": STATE_VERSION, "iteration": iteration, "precision": str(trainer.precision)}
    run.save_state({**state, "config": trainer.settings.to_dict(), "trainer": trainer.state(), **more})


def read_state(run: RunDir, config: Config) -> dict[str, Any] | None:
    """Return the run's last state, None where it has reached none.

    Raises:
        ResumeError: ``config`` cannot continue it. RunFileError: it cannot be read.
    """
    if not run.has_state:
        return None
    state, warning = run.load_state()
    if warning:
        print(f"warning: {printable(warning)}", file=sys.stderr)
    if state.get("version") != STATE_VERSION:
        problem = f"its version is {state.get('version')!r}, version {STATE_VERSION} is known"
        raise RunFileError(run.state_path, problem, "resume with the version of the lab that wrote it")
    check_unchanged(run, load_config(state["config"]), config)
    return state


def resumable_state(run: RunDir, config: Config) -> dict[str, Any] | None:
    """Return :func:`read_state`, after checking that a run without one is not changed either, nor made too short."""
    state = read_state(run, config)
    if state is None:
        check_unchanged(run, load_config(run.hparams_path), config)
        return None
    end, done = config.train.num_episodes, state["iteration"]
    if done > end and not config.train.infinite_episodes:
        raise ResumeError(f"{run.path}: has run {done} iterations; --set train.num_episodes={done} or more, not {end}")
    return state


def check_unchanged(run: RunDir, before: Config, after: Config) -> None:
    """Raise :class:`ResumeError` with the differences if more than RESUMABLE keys changed.

    ``train.precision`` is not compared: what it comes to on this machine is, by :func:`continue_from`.
    """
    free = {("train", key) for key in (*RESUMABLE, "precision")}
    changes = []
    olds, news = before.to_dict(), after.to_dict()
    for section in ("agents", "world", "train"):
        old, new = olds[section], news[section]
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
    """Put a state into a new trainer; return the iteration to go on with."""
    if state["precision"] != str(trainer.precision):
        wanted, here = (str(dtype).removeprefix("torch.") for dtype in (state["precision"], trainer.precision))
        raise ResumeError(f"the run computes in {wanted}, not in {here} as here; --set train.precision={wanted}")
    trainer.load_state(dict(state["trainer"]))
    return int(state["iteration"])


def metrics_to_keep(state: Mapping[str, Any]) -> int:
    """Return the iterations whose metrics stay when a run goes on. The line of a planned end off the schedule goes."""
    train, done = state["config"]["train"], state["iteration"]
    ended = done == train["num_episodes"] and not train["infinite_episodes"]
    return done - 1 if ended and (done - 1) % train["log_every"] else done
