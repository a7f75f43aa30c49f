"""Files that are damaged, hostile or nonsense, and configurations that nobody should be able to run."""

from __future__ import annotations

import math
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import yaml

from rbc_warp.config import load_config
from rbc_warp.config.action_arrays import read_action_arrays
from rbc_warp.config.schema import Agents, Train, World
from rbc_warp.errors import ConfigError, UserError
from reliability.forks import Child, command, room, spread
from reliability.runs import content, the_runs, trained

SUFFIXES = (".pt", ".npz", ".yaml", ".jsonl", ".pickle")


def _files(run: Path) -> list[Path]:
    """What a run keeps and the lab reads back."""
    found = sorted(path for path in run.rglob("*") if path.suffix in SUFFIXES and "manifest" not in path.name)
    return [path for path in found if path.name != "previous.pt"]


def damaged(count: int) -> list[str]:
    """Flip a bit, cut, blank or swap a file: whoever reads it says so, or reads what was there before."""
    with room() as folder:
        Child(lambda: bool(trained(folder / "runs")) - 1).wait()
        run = the_runs(folder / "runs")[0]
        names = [str(path.relative_to(run.path)) for path in _files(run.path)]
        whole = _read(run.path)

        def work(case: int) -> str | None:
            chance = random.Random(case)
            place = folder / str(case) / run.path.name
            shutil.copytree(run.path, place)
            path = place / names[case % len(names)]
            before = path.read_bytes()
            how = ("bit", "cut", "blank", "swap", "longer")[case // len(names) % 5]
            after = _damage(how, before, chance, [place / name for name in names if name.endswith(path.suffix)])
            path.write_bytes(after)
            try:
                found = _read(place)
            except UserError:
                found = None  # told
            finally:
                shutil.rmtree(place.parent)
            same = found is None or found == whole or after == before
            return None if same else f"{how} in {path.name}: read without a word"

        return spread(range(count), work)


def _read(path: Path) -> dict[str, object]:
    from rbc_warp.runs.folder import RunDir

    run = RunDir(path)
    found = content(run)
    state, warning = found["state"]  # type: ignore[misc]
    if warning:
        raise UserError(warning)
    tables = {name: table.tobytes() for name, table in read_action_arrays(run.action_arrays_path).items()}
    return {**found, "state": state, "tables": tables}


def _damage(how: str, data: bytes, chance: random.Random, alike: list[Path]) -> bytes:
    at = chance.randrange(len(data))
    if how == "bit":
        return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
    if how == "cut":
        return data[:at]
    if how == "blank":
        return data[:at] + bytes(len(data[at : at + 512])) + data[at + 512 :]
    if how == "swap":
        return chance.choice(alike).read_bytes()
    return data + chance.randbytes(64)


class _Runs:
    """What unpickles into a call."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (self.marker,)


def _payloads(marker: Path, outside: Path, run: Path) -> dict[str, Callable[[Path], None]]:
    """Ways to make a path hostile."""

    def zipped(path: Path, inner: str) -> None:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(f"{inner}/data.pkl" if inner else "states.npy", pickle.dumps(_Runs(marker)))
            file.writestr(f"{inner}/version" if inner else "actions.npy", "3\n")

    def objects(path: Path) -> None:
        import numpy as np

        with open(path, "wb") as file:
            keys = ("states", "actions", "rewards", "action_array", "aux_array")
            np.savez(file, **{key: np.array([_Runs(marker)], dtype=object) for key in keys})

    def linked(target: Path) -> Callable[[Path], None]:
        return lambda path: path.symlink_to(target)

    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
    )
    tag = f"world: !!python/object/apply:os.mkdir ['{marker}']\n"
    return {
        "pickle": lambda path: path.write_bytes(pickle.dumps(_Runs(marker))),
        "old pickle": lambda path: path.write_bytes(pickle.dumps(_Runs(marker), protocol=0)),
        "torch zip": lambda path: zipped(path, "archive"),
        "numpy zip": lambda path: zipped(path, ""),
        "objects": objects,
        "yaml bomb": lambda path: path.write_text(bomb),
        "yaml tag": lambda path: path.write_text(tag),
        "deep yaml": lambda path: path.write_text("[" * 100_000),
        "deep json": lambda path: path.write_text('{"iteration":' * 50_000 + "\n"),
        "huge number": lambda path: path.write_text(f'{{"iteration": {"9" * 5000}}}\n'),
        "escape": lambda path: path.write_text('"\\u001b]0;owned\\u0007": 1\n'),
        "link outside": linked(outside / "file"),
        "link to a folder": linked(outside),
        "link to itself": lambda path: path.symlink_to(path.name),
        "link to zeros": linked(Path("/dev/zero")),
        "fifo": lambda path: os.mkfifo(path),
        "link to a terminal": linked(Path("/dev/tty")),
        "folder": lambda path: path.mkdir(),
    }


def hostile(count: int) -> list[str]:
    """Put what a stranger may have made in the place of each file and folder of a run, and give it to each command."""
    with room() as folder:
        Child(lambda: bool(trained(folder / "runs")) - 1).wait()
        run = the_runs(folder / "runs")[0]
        places = [
            "hparams.yaml",
            "metrics.jsonl",
            "status.json",
            "action_arrays.pickle",
            "state/last.pt",
            "state",
            "state/lock",
        ]
        places += ["saved_models/consumer_policy_latest.pt", "saved_models", "episode_final_consumer.npz", "brconsumer"]
        places += ["best_response.json", "index.csv"]
        commands = {
            "train": lambda path: (
                "train",
                "--backend",
                "host",
                "--quiet",
                "--resume",
                path,
                "--set",
                "train.num_episodes=9",
            ),
            "audit": lambda path: ("audit", path),
            "phases": lambda path: ("phases", path),
        }
        names = list(_payloads(Path(), Path(), Path()))
        cases = [(name, place, verb) for verb in commands for place in places for name in names]
        random.Random(1).shuffle(cases)

        def work(case: tuple[str, str, str]) -> str | None:
            name, place, verb = case
            box = folder / "-".join(case).replace("/", "_").replace(" ", "_")
            marker, outside, copy = box / "marker", box / "outside", box / "runs" / run.path.name
            outside.mkdir(parents=True)
            (outside / "file").write_text("mine")
            shutil.copytree(run.path, copy)
            target = copy / place
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
            _payloads(marker, outside, copy)[name](target)
            ended = Child(command(*commands[verb](copy))).wait(timeout=20.0)
            fault = ended.fault({0, 1, 2, 3, 4})
            if not fault and ended.seconds > 15.0:
                fault = f"took {ended.seconds:.0f} s"
            if marker.exists():
                fault = "EXECUTED"
            elif (
                sorted(path.name for path in outside.iterdir()) != ["file"] or (outside / "file").read_text() != "mine"
            ):
                fault = "WROTE OUTSIDE"
            elif "\x1b" in ended.text:
                fault = "terminal escape printed"
            shutil.rmtree(box)
            return fault

        return spread(cases[:count], work)


BAD = ("nonsense", {"a": 1}, math.nan, math.inf, -math.inf, -1.5, 1e300, [[[1]]], [None], ["x"], [-1.0], "")
"""Values that no key takes."""


def configurations(count: int) -> list[str]:
    """Write each bad value at each key of the schema, and misspell the key; the command must name it."""
    keys = [
        (name, key)
        for name, part in (("agents", Agents), ("world", World), ("train", Train))
        for key in part.model_fields
    ]
    cases: list[tuple[str, str, object]] = [(section, key, value) for value in BAD for section, key in keys]
    cases += [(section, f"{key}_", 1) for section, key in keys]
    with room() as folder:

        def work(case: tuple[str, str, object]) -> str | None:
            section, key, value = case
            path, runs = folder / f"{section}-{key}-{abs(hash(repr(value)))}.yaml", folder / f"runs-{os.getpid()}"
            path.write_text(yaml.safe_dump({section: {key: value}}))
            try:
                load_config(path)
                return "accepted"
            except ConfigError:
                pass
            ended = Child(command("train", "--config", path, "--experiment-dir", runs)).wait()
            fault = ended.fault({2})
            if not fault and f"{section}.{key}" not in ended.text:
                fault = f"does not name the key: {ended.text.strip()[:200]}"
            return fault or ("made a folder" if runs.exists() else None)

        return spread(cases[:count], work)
