#!/usr/bin/env python
"""Trains the agents of an economy: ``python run_training.py --config configs/rbc.yaml``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rbc_warp.launch import add_common_arguments, clean_errors


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, help="YAML file that describes the run")
    parser.add_argument("--experiment-dir", type=Path, help="folder for the run (default: experiment/<config's name>)")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="continue this rollout-… folder instead")
    add_common_arguments(parser)
    options = parser.parse_args(arguments)
    if (options.config is None) == (options.resume is None):
        parser.error("give either --config FILE or --resume RUN")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    from rbc_warp.launch import resume, start  # torch loads only after the arguments are known to be sound

    result = resume(options) if options.resume else start(options)
    return 0 if result.status == "finished" else 130


if __name__ == "__main__":
    with clean_errors():
        sys.exit(main())
