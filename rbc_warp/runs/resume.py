"""Exact resume: :func:`read_state` and :func:`continue_from` undo :func:`save_state`. Best responses use them, too."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rbc_warp.config import Config, load_config
from rbc_warp.config.messages import show
from rbc_warp.config.reading import reading
from rbc_warp.errors import ResumeError, printable
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.state import REMEDY, STATE_VERSION, Checker, check_head, check_trainer
from rbc_warp.training.trainer import RbcTrainer

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
    state = {"version": STATE_VERSION, "iteration": iteration, "precision": str(trainer.precision)}
    run.save_state({**state, "config": trainer.settings.to_dict(), "trainer": trainer.state(), **more})


def read_state(
    run: RunDir, config: Config, check: Callable[[Checker, dict[str, Any]], None] = lambda checker, state: None
) -> dict[str, Any] | None:
    """Return the run's last state, None where it has reached none; the one before where the last cannot be used.

    ``check`` looks at more than what every state holds.

    Raises:
        ResumeError: ``config`` cannot continue it. RunFileError: neither can be used.
    """
    if not run.has_state:
        return None

    def check_all(path: Path, state: dict[str, Any]) -> None:
        checker = Checker(path)
        with reading(path, "a state", REMEDY):
            check_head(checker, state)
            before = load_config(state["config"], name=str(path))
        check_unchanged(run, before, config)
        with reading(path, "a state", REMEDY):
            check_trainer(checker, state["trainer"], config)
            check(checker, state)

    state, warning = run.load_state(check_all)
    if warning:
        print(f"warning: {printable(warning)}", file=sys.stderr)
    return state


def resumable_state(run: RunDir, config: Config) -> dict[str, Any] | None:
    """Return :func:`read_state`, after checking that a run without one is not changed either, nor overwritten."""
    state = read_state(run, config)
    if state is None:
        check_unchanged(run, load_config(run.hparams_path), config)
        status = run.read_status()
        if status.status == "finished" if status else run.saved_models_path.exists():  # without: of the public code
            raise ResumeError(
                f"{run.path}: has no state/last.pt to go on from, and training anew would replace its checkpoints; "
                f"copy state/ from the run that wrote it, or start a new run with --config {run.hparams_path}"
            )
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


def restore_metrics(run: RunDir, state: Mapping[str, Any] | None) -> int:
    """Keep the metrics of the iterations before a state, warn of what is damaged; return how many iterations stay.

    The line of a planned end off the schedule goes.
    """
    if state is None:
        run.truncate_metrics(0)
        return 0
    train, done = state["config"]["train"], state["iteration"]
    ended = done == train["num_episodes"] and not train["infinite_episodes"]
    kept = done - 1 if ended and (done - 1) % train["log_every"] else done
    if warning := run.truncate_metrics(kept, range(0, kept, train["log_every"])):
        print(f"warning: {warning}", file=sys.stderr)
    return kept
