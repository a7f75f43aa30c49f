#!/usr/bin/env python
"""Trains the agents of an economy, or of a sweep of economies: ``python run_training.py --config configs/rbc.yaml``."""

from __future__ import annotations

import argparse
import sys

from rbc_warp.commands.launch import add_training_arguments, check_training_arguments, clean_errors


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_training_arguments(parser)
    options = parser.parse_args(arguments)
    check_training_arguments(parser, options)
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    from rbc_warp.commands.launch import resume, start  # torch loads only after the arguments are known to be sound
    from rbc_warp.commands.sweep import is_sweep, run_sweep

    if options.resume:
        result = resume(options)
    elif is_sweep(options):
        return run_sweep(options)
    else:
        result = start(options)
    return 0 if result.status == "finished" else 130


if __name__ == "__main__":
    with clean_errors():
        sys.exit(main())
