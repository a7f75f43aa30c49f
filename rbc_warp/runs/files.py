"""Guarded writing, and reading of tensors: nothing read can run code, and nothing written can be left half done.

Tensors load with ``weights_only=True``. Every file is written beside its target and renamed over it. A fault is a
:class:`RunFileError`.
"""

import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from rbc_warp.config.reading import reading
from rbc_warp.config.temporary import beside
from rbc_warp.errors import FileFault, NumbersError, RunFileError
from rbc_warp.training.numbers import not_finite

COPY_AGAIN = "copy it again from the run that wrote it, or use another checkpoint or run"


def write_atomically(path: Path, write: Callable[[BinaryIO], object], keep_as: Path | None = None) -> None:
    """Replace ``path`` by what ``write`` puts into a file, whole or not at all; its content moves to ``keep_as``."""
    temporary = beside(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            if keep_as is not None and path.exists():
                os.replace(path, keep_as)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a UTF-8 text file, whole or not at all."""
    write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FileFault(path, "written", error, "choose a folder that you may write to") from error


def save_torch(path: Path, content: object, keep_as: Path | None = None) -> None:
    if place := not_finite(content):
        raise NumbersError(f"{path}: {place} is not finite (NaN or infinity); what was there stays")
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    torch.load(buffer, map_location="cpu", weights_only=True)  # what could not be read back is not written
    write_atomically(path, lambda file: file.write(buffer.getbuffer()), keep_as)


def load_torch(path: Path, remedy: str) -> dict[str, Any]:
    # torch's own message advises to load without weights_only, so it is not shown
    with reading(path, "a dict of tensors", remedy, show_reason=False):
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping):
        raise RunFileError(path, f"expected a dict of tensors, found {type(content).__name__}", remedy)
    return dict(content)
