"""Locks between processes: one that ends lets go, however it ends.

filelock takes every fault of the operating system for a lock that somebody holds, and cannot say who does; so these are
flock's, and the file names the holder.
"""

import fcntl
import os
import platform
import re
import shlex
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rbc_warp.errors import FileFault, RunFileError, printable

POLL_SECONDS = 0.1
LONGEST_NAME = 300
LONG = 24 * 3600.0
"""Patience with another process that does the same, which may take hours [seconds]."""


@contextmanager
def locked(path: Path, owner: Path, problem: str, remedy: str, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock at ``path``; wait up to ``patience`` seconds for another process, after saying for which one.

    Raises:
        RunFileError: another process holds it for longer; ``owner``, the folder that it guards, is named. Or the file
            cannot be locked.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise FileFault(path, "locked", error, "choose a folder that you may write to") from error
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise RunFileError(path, "is not a plain file", "remove it: it stands where a lock of ours belongs")
        if not _is_taken(file, path):
            problem = f"{problem}{_holder(file)}"
            if patience:
                text = f"{owner}: {problem}; waiting up to {_duration(patience)}"
                print(printable(text), file=sys.stderr, flush=True)
            end = time.monotonic() + patience
            while not _is_taken(file, path):
                if time.monotonic() >= end:
                    raise RunFileError(owner, problem, remedy)
                time.sleep(POLL_SECONDS)
        with suppress(OSError):  # a full disk holds a lock, too
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()} {platform.node()} {shlex.join(sys.argv)}\n".encode(errors="replace"), 0)
        yield
    finally:
        os.close(file)


def _is_taken(file: int, path: Path) -> bool:
    """Take the lock if nobody has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise FileFault(path, "locked", error, "choose a folder on a disk that knows locks") from error
    return True


def _holder(file: int) -> str:
    """Name who holds a lock, as far as it is known."""
    match = re.match(r"([0-9]+) (\S+) (.+)", os.pread(file, LONGEST_NAME, 0).decode(errors="replace"))
    if match is None:
        return ""
    there = "" if match[2] == platform.node() else f" on {match[2]}"
    return f" (process {match[1]}{there}: {match[3]})"


def _duration(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 3600 else f"{seconds / 3600:g} h"
