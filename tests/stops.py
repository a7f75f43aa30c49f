"""Ends a measurement or a training in the middle, and compares what is left."""

from __future__ import annotations

import re

import torch

from rbc_warp.runs.folder import RunDir

# What may differ between equal runs: times and notes of how it went.
NOTES = re.compile(r"status\.json|manifest\.json|log\.txt|events\..*|lock|previous\.pt|damaged\.pt")


class Killed(BaseException):
    """Stands in for the end of the process."""


def kill_at(monkeypatch, method: str, call: int, done: bool) -> None:
    """Ends the process in the n-th call of a method that writes, before or after it did."""
    original, calls = getattr(RunDir, method), iter(range(1, 1000))

    def dying(self, *arguments, **options):
        last = next(calls) == call
        if not last or done:
            original(self, *arguments, **options)
        if last:
            raise Killed

    monkeypatch.setattr(RunDir, method, dying)


def values(state: object) -> object:
    """Nested dicts and lists with the bytes of their tensors."""
    if isinstance(state, torch.Tensor):
        return str(state.dtype), tuple(state.shape), state.numpy().tobytes()
    if isinstance(state, dict):
        return {key: values(value) for key, value in state.items()}
    return [values(value) for value in state] if isinstance(state, list) else state


def content(run: RunDir) -> dict[str, object]:
    """All files of a run that must not depend on how it went: their bytes, and of the state its values."""
    files = (path for path in run.path.rglob("*") if path.is_file() and not NOTES.fullmatch(path.name))
    return {
        str(path.relative_to(run.path)): (
            values(torch.load(path, map_location="cpu")) if path.name == "last.pt" else path.read_bytes()
        )
        for path in files
    }


def assert_equal(run: RunDir, expected: dict[str, object], besides: str = "") -> None:
    found = {name: data for name, data in content(run).items() if not (besides and re.fullmatch(besides, name))}
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
