"""Trains the agents of an economy, or of a sweep of economies: ``python run_training.py --config configs/rbc.yaml``."""

from __future__ import annotations

import argparse

from rbc_warp.commands.launch import add_training_arguments, check_training_arguments
from rbc_warp.errors import DONE, INTERRUPTED


def parse(arguments: list[str] | None = None, name: str = "python -m rbc_warp train") -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=name, description=__doc__.splitlines()[0])
    add_training_arguments(parser)
    options, others = parser.parse_known_args(arguments)
    if others:
        hint = f"; a configuration is named by --config {others[0]}" if others[0].endswith((".yaml", ".yml")) else ""
        parser.error(f"unrecognized arguments: {' '.join(others)}{hint}")
    check_training_arguments(parser, options)
    return options


def main(arguments: list[str] | None = None, **name: str) -> int:
    """Train; ``name``: of the command, in its usage. Return 130 after an interruption, 1 where a sweep's run failed."""
    options = parse(arguments, **name)
    from rbc_warp.commands.launch import resume, start  # torch loads only after the arguments are known to be sound
    from rbc_warp.commands.sweep import is_sweep, run_sweep

    if options.resume:
        result = resume(options)
    elif is_sweep(options):
        return run_sweep(options)
    else:
        result = start(options)
    return DONE if result.status == "finished" else INTERRUPTED
