"""The manifest of a run's folder: size and SHA-256 of each file in it, by which what is read back is verified.

A writer notes a file's new hash here before it renames the file into place, beside the hash of what it replaces, and
drops the old one with the next file; so a process may be killed at any point. ``metrics.jsonl`` grows: of it the hash
of its first bytes is noted with each state. The files of a best response lie in a folder with a manifest of its own.
"""

import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from rbc_warp.config.reading import MAX_TEXT_BYTES, open_regular, read_bytes, reading
from rbc_warp.errors import RunFileError, printable

MANIFEST = "manifest.json"
GROWING = "metrics.jsonl"
VERSION = 1
MAX_BYTES = 64 * 2**20
_UNLISTED: set[Path] = set()

Hash = tuple[int, str]
"""Size in bytes and SHA-256 of a content."""
Files = dict[str, list[Hash]]
"""By name, the contents that a file may have; the last one is the newest."""


def parse_manifest(content: bytes, path: Path) -> Files:
    """Return what a manifest lists. Raises RunFileError where it is not as it was written."""
    remedy = "copy it again from the run that wrote it, or move it away to read the files without it"
    with reading(path, "a manifest", remedy):
        found = json.loads(content)
        if found["version"] != VERSION or found["sha256"] != _digest(found["files"]):
            raise ValueError("it is damaged, or of another version")
        return {name: [(int(size), str(sha)) for size, sha in hashes] for name, hashes in found["files"].items()}


def manifest_text(files: Mapping[str, Any]) -> str:
    plain = {name: [list(entry) for entry in files[name]] for name in sorted(files)}
    return json.dumps({"version": VERSION, "files": plain, "sha256": _digest(plain)}, indent=1) + "\n"


def _digest(files: Any) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def hash_of(file: BinaryIO, size: int | None = None) -> Hash:
    """Return size and SHA-256 of a file's first ``size`` bytes, by default of all."""
    file.seek(0)
    digest, done = hashlib.sha256(), 0
    while block := file.read(1 << 20 if size is None else min(size - done, 1 << 20)):
        digest.update(block)
        done += len(block)
    return done, digest.hexdigest()


def is_listed(folder: Path, name: str, file: BinaryIO) -> bool | None:
    """Return whether an open file is one that the manifest of ``folder`` lists; None where it lists none of the name.

    Raises:
        RunFileError: the manifest is damaged.
    """
    path = folder / MANIFEST
    hashes = parse_manifest(read_bytes(path, MAX_BYTES), path).get(name) if os.path.lexists(path) else None
    if hashes is None:
        return None
    if name == GROWING:
        return any(hash_of(file, size) == (size, sha) for size, sha in hashes)
    return hash_of(file) in hashes


@contextmanager
def open_verified(path: Path, folder: Path | None = None) -> Iterator[BinaryIO]:
    """Open a regular file of a run to read, verified against the manifest of ``folder``, by default its own.

    A zip file that no manifest lists is checked by its own checksums.

    Raises:
        RunFileError: it is not what the run wrote. OSError: it cannot be opened.
    """
    folder = folder or path.parent
    name = path.relative_to(folder).as_posix()
    for attempt in range(3):  # a run at work may have replaced the file and noted the next in between
        with open_regular(path) as file:
            listed = is_listed(folder, name, file)
            if listed is False and attempt < 2:
                continue
            if listed is False:
                raise RunFileError(
                    path,
                    f"is not what the run wrote: its SHA-256 is not that in {MANIFEST}",
                    f"copy it again from the run that wrote it; if you changed it yourself, move {MANIFEST} away",
                )
            if listed is None:
                _check_zip(path, file)
                _note(folder)
            file.seek(0)
            yield file
            return


def read_verified(path: Path, folder: Path | None = None, limit: int | None = MAX_TEXT_BYTES) -> bytes:
    """Return the bytes of a file of a run, verified as by :func:`open_verified`."""
    with reading(path, "a file", "give the folder of a whole run"), open_verified(path, folder) as file:
        return read_bytes(path, limit, file)


def _check_zip(path: Path, file: BinaryIO) -> None:
    if path.suffix in (".pt", ".npz") and zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {damaged} does not fit")


def _note(folder: Path) -> None:
    """Say of a folder that its files are not verified, once of all that lie side by side."""
    if folder.parent not in _UNLISTED:
        _UNLISTED.add(folder.parent)
        text = f"note: {folder}: not all files are listed in a {MANIFEST} (public runs and older ones have none); "
        text += "those are read with no more than their own checksums, also in folders beside it"
        print(printable(text), file=sys.stderr)
