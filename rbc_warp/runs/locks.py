"""Locks between processes: one that ends lets go, however it ends."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rbc_warp.errors import RunFileError
from rbc_warp.runs.files import writing


@contextmanager
def locked(path: Path, owner: Path, problem: str, remedy: str, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock at ``path``; wait up to ``patience`` seconds for another process, after saying so.

    Raises:
        RunFileError: another process holds it for longer; ``owner``, the folder that it guards, is named.
    """
    lock = FileLock(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if patience:
                print(f"{owner}: {problem}; waiting up to {patience:g} s", file=sys.stderr)
            try:
                lock.acquire(timeout=patience, poll_interval=0.1)
            except Timeout:
                raise RunFileError(owner, problem, remedy) from None
    try:
        yield
    finally:
        lock.release()
