"""What the launchers share: their common options, clean errors, and starting or continuing a run."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rbc_warp.run import RunResult

USER_ERROR = 2


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that every launcher has."""
    parser.add_argument("--backend", choices=["auto", "host", "pycuda"], default="auto", help="where kernels run")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides", help="override a config key"
    )
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


@contextmanager
def clean_errors() -> Iterator[None]:
    """Faults of the user end in one message on stderr and exit code 2; faults of ours keep their traceback."""
    from rbc_warp.config import ConfigError

    # gym's notice about its successor is not for our users.
    os.environ.setdefault("GYM_DISABLE_WARNINGS", "1")
    warnings.filterwarnings("ignore", module="gym")
    try:
        yield
    except ConfigError as error:
        _stop(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, RuntimeError) as error:
        from rbc_warp.backends import BackendError
        from rbc_warp.backends.build import BuildError
        from rbc_warp.run import ResumeError
        from rbc_warp.rundir import RunFileError

        if not isinstance(error, BackendError | BuildError | ResumeError | RunFileError):
            raise
        _stop(error)


def _stop(error: Exception) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(USER_ERROR)


def prepare_process(options: argparse.Namespace) -> None:
    """Threads and log level of this process."""
    import logging

    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    logging.getLogger().setLevel(logging.ERROR)  # WarpDrive's notes on casts


def start(options: argparse.Namespace) -> RunResult:
    """A new run from ``options.config``; everything is checked before anything is written."""
    from rbc_warp.config import load_config

    config = load_config(options.config, options.overrides)
    prepare_process(options)
    from rbc_warp.backends import choose_backend
    from rbc_warp.run import prepare_run, summary, train_run
    from rbc_warp.rundir import RunDir

    backend = choose_backend(options.backend)
    folder = options.experiment_dir or f"experiment/{options.config.stem}"
    run = RunDir.create(folder)
    prepare_run(run, config)
    print(f"{run.path}: training on {backend}", file=sys.stderr)
    result = train_run(run, config, backend, quiet=options.quiet)
    print(summary(result))
    return result


def resume(options: argparse.Namespace) -> RunResult:
    """Continues a run from its last state."""
    from rbc_warp.config import load_config

    prepare_process(options)
    from rbc_warp.backends import choose_backend
    from rbc_warp.run import summary, train_run
    from rbc_warp.rundir import RunDir

    run = RunDir(options.resume)
    config = load_config(run.hparams_path, options.overrides)
    backend = choose_backend(options.backend)
    result = train_run(run, config, backend, resume=True, quiet=options.quiet)
    print(summary(result))
    return result
