"""Guarded reading of files that may come from a stranger: regular files only, and every fault is one message."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rbc_warp.errors import FileFault, RunFileError

MAX_TEXT_BYTES = 4 * 2**20


@contextmanager
def reading(path: Path, kind: str, remedy: str, show_reason: bool = True) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read as a ``kind`` into a :class:`RunFileError`."""
    try:
        yield
    except RunFileError:
        raise
    except FileNotFoundError:
        raise RunFileError(path, "does not exist", remedy) from None
    except OSError as error:
        raise FileFault(path, "read", error, remedy) from error
    except Exception as error:  # what a damaged or hostile file makes a parser raise is anyone's guess
        reason = f" ({type(error).__name__}{f': {error}' if str(error) else ''})" if show_reason else ""
        raise RunFileError(path, f"cannot be read as {kind}{reason}", remedy) from error


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read, without waiting for a writer; RunFileError where it is a pipe, a device or a folder."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise RunFileError(path, "is no regular file but a pipe, a device or a socket", "name a file on a disk")
        yield file


def read_bytes(path: Path, limit: int | None = MAX_TEXT_BYTES, file: BinaryIO | None = None) -> bytes:
    """Return the bytes of a regular file, of ``file`` if it is open; RunFileError where it is larger than ``limit``."""
    with reading(path, "a file", "give the folder of a whole run"):
        if file is None:
            with open_regular(path) as opened:
                return read_bytes(path, limit, opened)
        content = file.read() if limit is None else file.read(limit + 1)
        if limit is not None and len(content) > limit:
            raise RunFileError(path, f"is larger than {limit} bytes", "a run does not write such a file: use another")
        return content
