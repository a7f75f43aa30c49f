"""Guarded writing, and reading of tensors: nothing read can run code, and nothing written can be left half done.

Tensors load with ``weights_only=True``. Every file is written beside its target, synced and renamed over it, and then
its folder is synced. A run's files are listed in its manifest before that. Folders below a run's are opened one after
another without following links, so that nothing is written outside of it. A fault is a :class:`RunFileError`.
"""

import errno
import fcntl
import io
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from rbc_warp.config.manifest import (
    MANIFEST,
    MAX_BYTES,
    Files,
    Hash,
    hash_of,
    manifest_text,
    open_verified,
    parse_manifest,
)
from rbc_warp.config.reading import open_regular, read_bytes, reading
from rbc_warp.config.temporary import beside
from rbc_warp.errors import FileFault, NumbersError, RunFileError
from rbc_warp.training.numbers import not_finite

COPY_AGAIN = "copy it again from the run that wrote it, or use another checkpoint or run"

Write = Callable[[BinaryIO], object]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError into a :class:`FileFault` with its cause and what to do about it."""
    try:
        yield
    except OSError as error:
        raise FileFault(path, "written", error, "choose a folder that you may write to") from error


def write_atomically(path: Path, write: Write) -> None:
    """Replace ``path`` by what ``write`` puts into a file, whole or not at all."""
    with writing(path), folder_of(path.parent, path.parent) as folder, _written(path.name, write, folder) as temporary:
        _rename(temporary, path.name, folder)


def write_text(path: Path, text: str) -> None:
    """Replace a UTF-8 text file, whole or not at all."""
    write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))


@contextmanager
def folder_of(root: Path, path: Path) -> Iterator[int]:
    """Open the folder ``path``, made where it is missing, from ``root`` on without following links."""
    root.mkdir(parents=True, exist_ok=True)
    opened = [os.open(root, os.O_RDONLY | os.O_DIRECTORY)]
    try:
        at = root
        for part in path.relative_to(root).parts:
            at /= part
            try:
                os.mkdir(part, dir_fd=opened[-1])
                _sync(opened[-1])
            except FileExistsError:
                check_no_link(at)
            opened.append(os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=opened[-1]))
        yield opened[-1]
    finally:
        for folder in opened:
            os.close(folder)


def check_no_link(path: Path) -> None:
    """Raise RunFileError where ``path``, below a run's folder, is a link that would lead writing out of it."""
    if path.is_symlink():
        remedy = "put the file or folder itself in its place"
        raise RunFileError(path, "is a symbolic link, through which nothing is written", remedy)


@contextmanager
def _written(name: str, write: Write, folder: int) -> Iterator[str]:
    """Write and sync a temporary file for ``name``; give its name, and remove it in the end where it still is."""
    temporary = beside(Path(name)).name
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW
    try:
        with open(temporary, "x+b", opener=lambda *_: os.open(temporary, flags, 0o666, dir_fd=folder)) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)


def _rename(source: str, target: str, folder: int) -> None:
    os.replace(source, target, src_dir_fd=folder, dst_dir_fd=folder)
    _sync(folder)


def _sync(folder: int) -> None:
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems sync no folders
            raise


class Ledger:
    """Writes the files of one folder of a run, each listed in its manifest before it appears.

    Args:
        root: the run's folder, from which on no link is followed.
        path: the folder that the manifest describes, ``root`` or one below it.
    """

    def __init__(self, root: Path, path: Path):
        self.root, self.path = root, path
        self._done: dict[str, list[Hash]] = {}  #: What files are known to be since their renames.

    def write(self, path: Path, write: Write, keep_as: Path | None = None, also: Files | None = None) -> None:
        """Replace ``path`` by what ``write`` puts into a file, whole or not at all; its content moves to ``keep_as``.

        ``also`` is listed with it: of files that are what it says already.
        """
        with (
            writing(path),
            folder_of(self.root, self.path) as own,
            folder_of(self.root, path.parent) as folder,
            _locked(own),
            _written(path.name, write, folder) as temporary,
        ):
            with open(temporary, "rb", opener=lambda name, flags: os.open(name, flags, dir_fd=folder)) as file:
                new = hash_of(file)
            files = self._read(own)
            for name, hashes in self._done.items():
                if files.get(name, [None])[-1] == hashes[-1]:
                    files[name] = hashes
            before = self._known(files, path, folder)
            files[self._name(path)] = _merged(before, [new])
            moves = keep_as is not None and _is_there(path.name, folder)
            if keep_as is not None and moves:
                files[self._name(keep_as)] = _merged(self._known(files, keep_as, folder), before)
            files |= also or {}
            content = manifest_text(files).encode()
            with _written(MANIFEST, lambda file: file.write(content), own) as listed:
                _rename(listed, MANIFEST, own)
            if keep_as is not None and moves:
                os.replace(path.name, keep_as.name, src_dir_fd=folder, dst_dir_fd=folder)
                self._done[self._name(keep_as)] = before
            _rename(temporary, path.name, folder)
            self._done[self._name(path)] = [new]

    def _name(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()

    def _read(self, own: int) -> Files:
        if not _is_there(MANIFEST, own):
            return {}
        path = self.path / MANIFEST
        return parse_manifest(read_bytes(path, MAX_BYTES), path)

    def _known(self, files: Files, path: Path, folder: int) -> list[Hash]:
        """What a file may be now: what is listed, or, of one that an older version left, what it is."""
        name = self._name(path)
        if name not in files and _is_there(path.name, folder):
            with open_regular(path) as file:
                return [hash_of(file)]
        return files.get(name, [])


def _merged(old: list[Hash], new: list[Hash]) -> list[Hash]:
    return [entry for entry in old if entry not in new] + new


def _is_there(name: str, folder: int) -> bool:
    with suppress(FileNotFoundError):
        return not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    return False


@contextmanager
def _locked(folder: int) -> Iterator[None]:
    """Keep other writers of a folder waiting, where the file system can."""
    with suppress(OSError):
        fcntl.flock(folder, fcntl.LOCK_EX)  # let go of when the folder is closed
    yield


def torch_bytes(path: Path, content: object) -> memoryview:
    """Return what the tensor file ``path`` of ``content`` holds.

    Raises:
        NumbersError: a number is not finite. pickle.UnpicklingError: it could not be read back.
    """
    if place := not_finite(content):
        raise NumbersError(f"{path}: {place} is not finite (NaN or infinity); what was there stays")
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    torch.load(buffer, map_location="cpu", weights_only=True)
    return buffer.getbuffer()


def load_torch(path: Path, remedy: str, folder: Path | None = None) -> dict[str, Any]:
    """Load a dict of tensors, verified against the manifest of ``folder``."""
    # torch's own message advises to load without weights_only, so it is not shown
    with reading(path, "a dict of tensors", remedy, show_reason=False), open_verified(path, folder) as file:
        content = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping):
        raise RunFileError(path, f"expected a dict of tensors, found {type(content).__name__}", remedy)
    return dict(content)
