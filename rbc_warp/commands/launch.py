"""The launchers' common parts: options, clean errors, and starting or continuing a run."""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rbc_warp.errors import (
    INTERRUPTED,
    PIPE,
    ConfigError,
    FileFault,
    UserError,
    machine_fault,
    needs_warpdrive,
    printable,
)

if TYPE_CHECKING:
    from rbc_warp.config import Config
    from rbc_warp.runs.folder import RunDir
    from rbc_warp.runs.run import RunResult


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that every launcher has."""
    add_machine_arguments(parser)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="overrides",
        help="override a config key",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say what of this machine is used."""
    parser.add_argument("--backend", choices=["auto", "host", "pycuda"], default="auto", help="where kernels run")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: all cores)")


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that name a training run, or several, and how to run them."""
    parser.add_argument("--config", type=Path, help="YAML file of a run or a sweep, or the name of a shipped one")
    parser.add_argument("--experiment-dir", type=Path, help="folder for the runs (default: experiment/<config's name>)")
    parser.add_argument(
        "--stretch", type=factor, metavar="FACTOR", help="multiply all times of the schedule; --set comes after it"
    )
    parser.add_argument("--resume", type=Path, metavar="RUN", help="continue this rollout-… folder instead")
    parser.add_argument("--num-consumers", type=positive, metavar="N", help="same as --set agents.num_consumers=N")
    parser.add_argument("--num-firms", type=positive, metavar="N", help="same as --set agents.num_firms=N")
    parser.add_argument("--group-name", metavar="NAME", help="same as --set metadata.group_name=NAME")
    parser.add_argument("--track", action="append", default=[], choices=["wandb", "mlflow"], help="report there too")
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)  # a sweep: stop when this process is gone
    add_common_arguments(parser)
    sweep = parser.add_argument_group("sweeps", "a config with a section sweep, or any with one of these options")
    sweep.add_argument("--dry-run", action="store_true", help="make the runs' folders only")
    sweep.add_argument("--run-only", action="store_true", help="train what is in the folder and unfinished")
    sweep.add_argument("--seed-from-timestamp", action="store_true", help="seed each run by its folder's time")
    sweep.add_argument(
        "--jobs", type=positive, metavar="N", help="runs at the same time (default: 1; ray: as many as fit)"
    )
    sweep.add_argument(
        "--max-runs", type=positive, default=1000, metavar="N", help="most runs of a sweep (default: %(default)s)"
    )
    sweep.add_argument("--executor", choices=["local", "ray"], default="local", help="what runs them")
    sweep.add_argument("--ray-address", metavar="ADDRESS", help="a Ray cluster, or auto (default: Ray on this machine)")
    sweep.add_argument(
        "--gpus-per-run", type=float, metavar="SHARE", help="GPUs asked of Ray (default: 1 if it has any)"
    )


def check_training_arguments(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Stop with usage where options do not fit together; turn the shorthands into overrides."""
    shorthands = {"agents.num_consumers": options.num_consumers, "agents.num_firms": options.num_firms}
    shorthands["metadata.group_name"] = None if options.group_name is None else json.dumps(options.group_name)
    options.overrides += [f"{key}={value}" for key, value in shorthands.items() if value is not None]
    many = (
        options.dry_run or options.run_only or options.seed_from_timestamp or options.jobs or options.executor == "ray"
    )
    if options.resume and (options.experiment_dir or many):
        parser.error("--resume RUN continues one run: leave --experiment-dir and the options of sweeps away")
    if options.stretch and (options.resume or many):
        parser.error("--stretch is for one new run: leave --resume and the options of sweeps away")
    if options.run_only and (options.overrides or options.dry_run or options.seed_from_timestamp):
        parser.error("--run-only trains runs as they are: leave the options that describe runs away")
    if not (options.config or options.resume or (options.run_only and options.experiment_dir)):
        parser.error("give --config FILE, --resume RUN, or --run-only --experiment-dir FOLDER")
    if options.ray_address and options.executor != "ray":
        parser.error("--ray-address needs --executor ray")
    options.many = many


def factor(text: str) -> float:
    number = float(text)
    if not 0.0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


@contextmanager
def clean_errors() -> Iterator[None]:
    """Faults of the user and of the machine end in one message on stderr and their exit code (errors.py).

    Faults of ours keep their traceback. Where nobody reads what is printed, the end is as silent as SIGPIPE's.
    """
    warnings.filterwarnings("ignore", module="gym")  # not for our users
    _open_standard_files()
    try:
        try:
            with needs_warpdrive():
                yield
        except SystemExit:
            _flush()
            raise
        _flush()
    except KeyboardInterrupt:
        _end("interrupted", INTERRUPTED)
    except BrokenPipeError:
        _end("", PIPE)
    except UserError as error:
        _end(f"error: {error}", error.exit_code)
    except Exception as error:
        fault: UserError | None = machine_fault(error)
        if fault is None and isinstance(error, OSError):
            where = error.filename if isinstance(error.filename, str) else "standard output"
            fault = FileFault(where, "used", error, "check that it exists and that you may use it")
        if fault is None:
            raise
        _end(f"error: {fault}", fault.exit_code)


def _open_standard_files() -> None:
    """Give a process whose standard files are closed the null device: else the next file it opens takes their place."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path need not be text


def _flush() -> None:
    """Write what was printed: a full disk or a reader that is gone shows now, not while the interpreter ends."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _end(message: str, code: int) -> NoReturn:
    """End the process with a message and a code, whatever is the matter with its standard files."""
    with suppress(OSError, ValueError):
        _flush()
    with suppress(OSError, ValueError):
        if message:
            print(message, file=sys.stderr, flush=True)
    with suppress(OSError, ValueError):  # what could not be written must not be tried again by the interpreter
        _flush()
        sys.exit(code)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    sys.exit(code)


def prepare_process(options: argparse.Namespace) -> None:
    """Threads and log level of this process. Under torchrun the processes of a machine share its cores."""
    import torch

    neighbors = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if options.threads:
        torch.set_num_threads(options.threads)
    elif neighbors > 1:
        torch.set_num_threads(max(1, num_cores() // neighbors))
    logging.getLogger().setLevel(logging.ERROR)  # WarpDrive's notes on casts


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def experiment_folder(options: argparse.Namespace) -> Path:
    return options.experiment_dir or Path("experiment") / options.config.stem


def start(options: argparse.Namespace) -> RunResult:
    """A new run from ``options.config``; everything is checked before anything is written."""
    from rbc_warp.config import load_config

    if options.stretch is None:
        return _train(options, load_config(options.config, options.overrides))
    from rbc_warp.config.stretch import stretched

    return _train(options, load_config(stretched(load_config(options.config), options.stretch), options.overrides))


def resume(options: argparse.Namespace) -> RunResult:
    """Continue the run ``options.resume`` from its last state; one that never began, by ``options.config``."""
    from rbc_warp.config import load_config
    from rbc_warp.runs.folder import RunDir

    run = RunDir(options.resume)
    if run.hparams_path.exists() and options.config:
        raise ConfigError(f"{run.path}: has its own hparams.yaml: leave --config {options.config} out")
    if not run.hparams_path.exists() and not options.config:
        raise ConfigError(f"{run.path}: has no hparams.yaml, so it never began; --config FILE starts it anew there")
    return _train(options, load_config(options.config or run.hparams_path, options.overrides), run)


def _train(options: argparse.Namespace, config: Config, run: RunDir | None = None) -> RunResult:
    """Train a run, a new one where none is given, alone or with the other processes of torchrun.

    A run that has no hparams.yaml yet is as new.
    """
    from rbc_warp.analysis.audit import quick_audit
    from rbc_warp.economy.parameters import Economy
    from rbc_warp.runs.folder import RunDir
    from rbc_warp.runs.footprint import check, files, memory
    from rbc_warp.runs.run import prepare_run, summary, train_run
    from rbc_warp.runs.tracking import check_trackers
    from rbc_warp.training.processes import claim_gpu, joined
    from rbc_warp.warpdrive.wrapper import check_rows, choose_backend

    claim_gpu()
    prepare_process(options)
    backend = choose_backend(options.backend)
    check_rows(Economy.from_config(config).agents, backend)
    check_trackers(options.track)
    is_new = run is None or not run.hparams_path.exists()
    with joined(config, backend) as processes:
        needs = memory(config, backend, processes.world_size)
        folder = experiment_folder(options) if is_new else None
        needed = check([*needs, *([files(config)] if folder else [])], folder)
        if folder and processes.is_first:
            run = run or RunDir.create(folder)
            prepare_run(run, config)
            print(f"{printable(str(run.path))}: training on {backend}, which needs {needed}", file=sys.stderr)
        run = RunDir(processes.share(run and run.path))
        result = train_run(
            run,
            config,
            backend,
            resume=not is_new,
            quiet=options.quiet,
            processes=processes,
            track=options.track,
            parent=options.parent,
        )
        if processes.is_first:
            print(summary(result))
    if processes.is_first and result.status == "finished" and result.start < result.iterations:
        print(f"audit: {quick_audit(run)}")
        _test_equilibrium(run, config, result.iterations, backend, options.quiet)
    return result


def _test_equilibrium(run: RunDir, config: Config, iterations: int, backend: str, quiet: bool) -> None:
    """Say whether a long run passes a quick test of its equilibrium."""
    from rbc_warp.equilibrium.best_response import quick_verdict
    from rbc_warp.equilibrium.request import is_long

    if is_long(config, iterations):
        if importlib.util.find_spec("scipy") is None:
            print("equilibrium: not tested, SciPy is not installed; run run_best_response.py where it is")
            return
        print(f"\nequilibrium, a quick test: {quick_verdict(run, backend, quiet)}")
