"""The launcher of many runs: ``python run_training.py --config configs/sweeps/….yaml``."""

import argparse
import math
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rbc_warp.commands.launch import experiment_folder, num_cores
from rbc_warp.config import Config, load_config
from rbc_warp.config.shipped import launcher_words
from rbc_warp.config.temporary import sweep
from rbc_warp.errors import DONE, FAILED, ConfigError, printable
from rbc_warp.runs.executors import Engine, LocalEngine, RayEngine
from rbc_warp.runs.folder import find_runs
from rbc_warp.runs.footprint import check, files, memory, together, told
from rbc_warp.runs.interrupt import stop_signals
from rbc_warp.runs.locks import locked
from rbc_warp.runs.sweep import LOG_NAME, Display, Task, damaged, execute, expand, plan, present, write_index
from rbc_warp.runs.tracking import check_trackers
from rbc_warp.training.processes import under_torchrun
from rbc_warp.warpdrive.wrapper import choose_backend, missing_for_pycuda


def is_sweep(options: argparse.Namespace) -> bool:
    """Return whether options or their configuration ask for several runs."""
    return options.many or bool(load_config(options.config, options.overrides).sweep)


def run_sweep(
    options: argparse.Namespace,
    make_display: Callable[[Path, Sequence[Task]], Display] = Display,
    launcher: Sequence[str] | None = None,
) -> int:
    """Make and train the runs of a sweep; return 0, or 1 if one failed.

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
        _check_number(config, options.max_runs)
        print(f"needs {_check_needs(options, expand(config, options.overrides), folder)}", flush=True)
    lock = folder / ".launcher.lock"
    remedy = "wait until it ends, or choose another --experiment-dir"
    with locked(lock, folder, "another launcher is at work here", remedy):
        sweep(folder)
        lost = damaged(folder)
        tasks = (
            present(folder) if config is None else plan(folder, config, options.seed_from_timestamp, options.overrides)
        )
        display = make_display(folder, tasks)
        counts = Counter("new" if task.is_new else task.state for task in tasks)
        number = f"{len(tasks)} run{'s' if len(tasks) > 1 else ''}"
        print(f"{folder}: {number} ({', '.join(f'{n} {state}' for state, n in counts.items())})", flush=True)
        if options.dry_run:
            print("\n".join(display.line(task, number) for number, task in enumerate(tasks)))
        elif any(task.state == "waiting" for task in tasks):
            _train(options, tasks, display, launcher or launcher_words("train"))
        print(f"index: {write_index(folder)}")
    failed = [f"{task.run.path}: {task.message}; see {LOG_NAME} there" for task in tasks if task.state == "failed"]
    failed += [f"{folder / name}: {reason}; move it away" for name, reason in lost.items()]
    for line in failed:
        print(f"failed: {printable(line)}", file=sys.stderr)
    return FAILED if failed else DONE


def _check_number(config: Config, most: int) -> None:
    """Count the combinations before any is made."""
    number = math.prod(len(values) for lists in config.sweep.values() for values in lists.values())
    if number > most:
        lists = {
            f"{section}.{key}": len(values) for section, part in config.sweep.items() for key, values in part.items()
        }
        longest = max(lists, key=lists.__getitem__)
        raise ConfigError(
            f"sweep: its lists combine to {number:,} runs, and --max-runs is {most:,}; shorten a list, the longest is "
            f"sweep.{longest} with {lists[longest]:,} values, or give --max-runs {number}"
        )


def _check_needs(options: argparse.Namespace, runs: Sequence[Config], folder: Path) -> str:
    """Return one line on what the runs need: memory, of those that run at once here, and disk."""
    disk = together([files(run) for run in runs])
    backend = options.backend if options.dry_run else choose_backend(options.backend)
    if backend == "auto":
        backend = "host" if missing_for_pycuda() else "pycuda"
    largest = max((memory(run, backend) for run in runs), key=lambda needs: sum(need.total for need in needs))
    at_once = [need.times(min(options.jobs or 1, len(runs))) for need in largest]
    if options.executor == "local" and not options.dry_run:
        return check([*at_once, disk], folder)
    check([disk], folder)
    return told([*at_once, disk])


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
    """Let SIGTERM, and the end of the terminal, do what Ctrl-C does."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in stop_signals() if number != signal.SIGINT}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
