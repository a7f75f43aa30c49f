#!/usr/bin/env python
"""Measures how far a run is from an equilibrium: ``python run_best_response.py RUN 200 --ep-strs 0 latest``."""

import sys

from rbc_warp.commands.best_response import main, parse
from rbc_warp.commands.launch import clean_errors

__all__ = ["main", "parse"]

if __name__ == "__main__":
    with clean_errors():
        sys.exit(main(name="run_best_response.py"))
