"""What comes with the package, in the source tree or installed: the configurations, and the launchers' names."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
# A wheel holds the top folder configs/ as rbc_warp/configs/, and no run_*.py: there rbc-warp starts runs.
IS_INSTALLED = (_PACKAGE / "configs").is_dir()
CONFIGS = (_PACKAGE if IS_INSTALLED else _PACKAGE.parent) / "configs"
_SCRIPTS = {"train": "run_training.py", "best-response": "run_best_response.py"}


def shipped_names() -> list[str]:
    """Return the names of the shipped configurations, such as ``rbc`` and ``sweeps/seeds``."""
    return sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml"))


def find_config(path: str | os.PathLike[str], folder: Path = Path()) -> Path:
    """Return the file that ``path`` names: one that exists, relative to ``folder``, else the shipped one of that name.

    ``rbc``, ``rbc.yaml`` and ``configs/rbc.yaml`` name the same shipped file. Where there is neither, the path comes
    back as it is.
    """
    given = folder / path
    name = os.fspath(path).removeprefix("configs/").removesuffix(".yaml")
    return CONFIGS / f"{name}.yaml" if not os.path.isfile(given) and name in shipped_names() else given


def launcher(command: str) -> str:
    """Return what a user types to run ``train`` or ``best-response``."""
    return f"rbc-warp {command}" if IS_INSTALLED else f"python {_SCRIPTS[command]}"


def launcher_words(command: str) -> list[str]:
    """Return the words that start ``train`` or ``best-response`` of this very package in a process of its own."""
    if IS_INSTALLED:  # -P: not what the current folder may hold by that name
        return [sys.executable, "-P", "-m", "rbc_warp", command]
    return [sys.executable, str(_PACKAGE.parent / _SCRIPTS[command])]
