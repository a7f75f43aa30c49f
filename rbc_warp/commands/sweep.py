"""The launcher of many runs: ``python run_training.py --config configs/sweeps/….yaml``."""

import argparse
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rbc_warp.commands.launch import experiment_folder, num_cores
from rbc_warp.config import load_config
from rbc_warp.config.shipped import launcher_words
from rbc_warp.errors import ConfigError
from rbc_warp.runs.executors import Engine, LocalEngine, RayEngine
from rbc_warp.runs.folder import find_runs
from rbc_warp.runs.locks import locked
from rbc_warp.runs.sweep import LOG_NAME, Display, Task, execute, expand, plan, present, write_index
from rbc_warp.runs.tracking import check_trackers
from rbc_warp.training.processes import under_torchrun


def is_sweep(options: argparse.Namespace) -> bool:
    """Return whether options or their configuration ask for several runs."""
    return options.many or bool(load_config(options.config, options.overrides).sweep)


def run_sweep(
    options: argparse.Namespace,
    make_display: Callable[[Path, Sequence[Task]], Display] = Display,
    launcher: Sequence[str] | None = None,
) -> int:
    """Make and train the runs of a sweep; returns 0, or 1 if one failed.

    ``make_display``: of what is shown; ``launcher``: the words that start a run, by default the training launcher.
    """
    if under_torchrun():
        raise ConfigError("torchrun shares one run among processes, not a sweep; use --jobs N without torchrun")
    if options.stretch is not None:
        raise ConfigError("--stretch is for one run; stretch the file that the sweep varies, or leave --stretch out")
    check_trackers(options.track)
    folder = experiment_folder(options)
    if options.run_only:
        find_runs(folder)  # must be there
        config = None
    else:
        config = load_config(options.config, options.overrides)
        expand(config, options.overrides)
    lock = folder / ".launcher.lock"
    remedy = "wait until it ends, or choose another --experiment-dir"
    with locked(lock, folder, "another launcher is at work here", remedy):
        tasks = (
            present(folder) if config is None else plan(folder, config, options.seed_from_timestamp, options.overrides)
        )
        display = make_display(folder, tasks)
        counts = Counter("new" if task.is_new else task.state for task in tasks)
        print(f"{folder}: {len(tasks)} runs ({', '.join(f'{n} {state}' for state, n in counts.items())})", flush=True)
        if options.dry_run:
            print("\n".join(display.line(task, number) for number, task in enumerate(tasks)))
        elif any(task.state == "waiting" for task in tasks):
            _train(options, tasks, display, launcher or launcher_words("train"))
        print(f"index: {write_index(folder)}")
    failed = [task for task in tasks if task.state == "failed"]
    for task in failed:
        print(f"failed: {task.run.path}: {task.message}; see {LOG_NAME} there", file=sys.stderr)
    return int(bool(failed))


def _train(options: argparse.Namespace, tasks: Sequence[Task], display: Display, launcher: Sequence[str]) -> None:
    threads = options.threads or (max(1, num_cores() // (options.jobs or 1)) if options.executor == "local" else 1)
    command = [*launcher, "--backend", options.backend, "--threads", str(threads), "--quiet"]
    command += [word for name in options.track for word in ("--track", name)]
    engine: Engine
    if options.executor == "ray":
        engine = RayEngine(options.ray_address, options.jobs, threads, options.gpus_per_run)
    else:
        engine = LocalEngine(options.jobs or 1)
    with terminated_as_interrupted(), display.shown():
        try:
            execute(tasks, engine, command, display)
        finally:
            engine.close()


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
