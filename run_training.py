#!/usr/bin/env python
"""Trains the agents of an economy, or of a sweep of economies: ``python run_training.py --config configs/rbc.yaml``."""

import sys

from rbc_warp.commands.launch import clean_errors
from rbc_warp.commands.train import main

if __name__ == "__main__":
    with clean_errors():
        sys.exit(main(name="run_training.py"))
