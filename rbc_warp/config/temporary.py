"""Names of temporary files that tell whose they are, so that those of killed processes can be swept."""

import os
import platform
import re
import secrets
import shutil
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

OLD = 24 * 3600.0
"""Seconds after which a temporary file of another machine is nobody's any more."""


def _machine() -> str:
    """What process numbers are unique in: a machine, or a container on it."""
    with suppress(OSError):
        return f"{zlib.crc32((platform.node() + os.readlink('/proc/self/ns/pid')).encode()):08x}"
    return f"{zlib.crc32(platform.node().encode()):08x}"


def own_name() -> str:
    """Return a part of a name that no other process gives: its number, its machine, and chance."""
    return f"{os.getpid()}-{_machine()}-{secrets.token_hex(4)}"


def beside(path: Path) -> Path:
    """Return a new name for what is to be renamed to ``path``."""
    return path.with_name(f".{path.name}.{own_name()}.tmp")


def sweep(folder: Path) -> None:
    """Remove temporary files of ended processes from a folder and its subfolders; links are not followed."""
    for place, _, names in os.walk(folder):
        _remove((Path(place) / name for name in names if name.endswith(".tmp")), r"\..+\.{}\.tmp")


def sweep_folders(folder: Path, prefix: str) -> None:
    """Remove temporary folders ``<prefix><own name>-…`` of ended processes, directly in a folder."""
    with suppress(OSError):
        _remove(folder.iterdir(), re.escape(prefix) + "{}-.+")


def _remove(paths: Iterable[Path], pattern: str) -> None:
    named = re.compile(pattern.replace("{}", r"([0-9]+)-([0-9a-f]{8})-[0-9a-f]{8}"))
    for path in paths:
        match = named.fullmatch(path.name)
        with suppress(OSError):
            if match and path.lstat().st_uid == os.getuid() and _is_over(int(match[1]), match[2], path):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _is_over(process: int, machine: str, path: Path) -> bool:
    """Return whether the process is known to have ended, or, where that cannot be known, the file is old."""
    if machine == _machine():
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        except OSError:  # it is another user's now
            return True
        return False
    return time.time() - path.lstat().st_mtime > OLD
