"""Damaged and hostile files of a run, and deaths between two system calls: what tests and the scoreboard count.

Each ``count_…`` function returns how many cases it tried and what went wrong in words, which is nothing.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stops import Killed, values

from rbc_warp.config import Config, load_config
from rbc_warp.config.action_arrays import read_action_arrays
from rbc_warp.config.manifest import MANIFEST
from rbc_warp.equilibrium.results import Record, Results
from rbc_warp.errors import UserError
from rbc_warp.runs import files
from rbc_warp.runs.episodes import parse_name, read_episode
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.resume import read_state
from rbc_warp.runs.run import load_policies, prepare_run, train_run

SMALL = [
    "agents.num_consumers=3",
    "agents.num_firms=2",
    "agents.firm_training_start=1",
    "agents.government_training_start=2",
    "agents.consumer_noponzi_eta=0.1",
    "world.maxtime=3",
    "train.batch_size=2",
    "train.num_episodes=6",
    "train.log_every=1",
    "train.save_state_every=2",
    "train.save_model_every=3",
    "train.save_dense_every=3",
]
RECORD = Record("latest", 5, "firm", "fixed", "price 1", 1.0, 2.0, 1.0, 0.5, 1.5)


def small_run(folder: Path) -> RunDir:
    """A finished run of seconds, with files of each kind."""
    config = load_config("smoke", SMALL)
    run = RunDir.create(folder)
    prepare_run(run, config)
    train_run(run, config, "host", quiet=True)
    Results([RECORD]).write(run)
    policies = load_policies(run, config)
    run.best_response("firm").save_policy("firm", "latest", policies["firm"].state_dict())
    return run


# Damage --------------------------------------------------------------------------------------------------------------


def content_of(run: RunDir, name: str) -> object:
    """What the lab makes of one file of a run, to compare."""
    path = run.path / name
    if name == "hparams.yaml":
        return load_config(path).to_dict()
    if name == "action_arrays.pickle":
        return {key: (table.shape, table.tobytes()) for key, table in read_action_arrays(path).items()}
    if name == "metrics.jsonl":
        return run.read_metrics()
    if name == "best_response.json":
        return run.read_best_response()
    if name == "status.json":
        return run.read_status()
    if parse_name(path):
        return {key: (array.shape, array.tobytes()) for key, array in vars(read_episode(path)).items()}
    config = load_config(run.hparams_path)
    if path.parent.name == "state":
        return values(read_state(run, config))
    owner = RunDir(path.parents[1], root=run.path)
    agent, _, label = path.stem.split("_")
    policy = load_policies_shapes(config)[agent]
    return values(owner.load_policy_state(agent, label, policy))


def load_policies_shapes(config: Config) -> dict[str, dict[str, tuple[int, ...]]]:
    from rbc_warp.economy.parameters import Economy
    from rbc_warp.training.policy import make_policies

    return {name: policy.file_shapes() for name, policy in make_policies(config, Economy.from_config(config)).items()}


def files_read(run: RunDir) -> list[str]:
    """Files of a run that are read back."""
    left_out = ("events.", "lock", "previous", "br_")
    found = (path for path in run.path.rglob("*") if path.is_file() and not path.name.startswith(left_out))
    return sorted(path.relative_to(run.path).as_posix() for path in found)


def damaged(content: bytes, another: bytes, chance: random.Random) -> bytes:
    """One way in which a disk or a hand damages a file."""
    at = chance.randrange(len(content))
    size = min(len(content) - at, chance.choice([1, 16, 512, 4096]))
    way = chance.randrange(6)
    if way <= 1:
        return content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]
    if way == 2:
        return content[:at] + bytes(size) + content[at + size :]
    if way == 3:
        return content[:at]
    if way == 4:
        return another
    return content[:at] + content[at + size :] + content[at : at + size]


def count_damage(folder: Path, number: int, seed: int = 0, public: bool = False) -> tuple[int, list[str]]:
    """Damage files of a small run, each in turn: every fault is one message, or the content is the same.

    ``public``: without a manifest, the files that have checksums of their own.
    """
    run, chance, wrong = small_run(folder), random.Random(seed), []
    names = files_read(run)
    if public:
        (run.path / MANIFEST).unlink()
        names = [name for name in names if name.endswith((".pt", ".npz")) and "br" not in name]
    whole = {name: (run.path / name).read_bytes() for name in names}
    content = {name: content_of(run, name) for name in names if name.rpartition("/")[2] != MANIFEST}
    kept = RunDir(shutil.copytree(run.path, folder / "kept"))
    kept.previous_state_path.unlink()  # it would take the place of a damaged one
    for case in range(number):
        name = names[case % len(names)]
        # Without a manifest nothing tells a whole file of the same kind from the one that was here.
        others = [other for other in names if other != name and not public] or [name]
        (kept.path / name).write_bytes(damaged(whole[name], whole[chance.choice(others)], chance))
        read = name if name in content else chance.choice([each for each in content if "br" not in each])
        try:
            if values_of(content_of(kept, read)) != values_of(content[read]):
                wrong.append(f"case {case}: {name}, silently different")
        except UserError as error:
            if "\n" in str(error) or "RuntimeError" in str(error):
                wrong.append(f"case {case}: {name}: {error}")
        except Exception as error:
            wrong.append(f"case {case}: {name}: {error!r}")
        (kept.path / name).write_bytes(whole[name])
    return number, wrong


def values_of(content: object) -> object:
    return repr(content) if isinstance(content, (list, dict)) else content


# Hostile states ------------------------------------------------------------------------------------------------------


def hostile_states(state: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """States that are whole files and yet none that the lab writes."""

    def changed(*path: Any, to: Any) -> dict[str, Any]:
        other = copy.deepcopy(state)
        at: Any = other
        for key in path[:-1]:
            at = at[key]
        if to is KeyError:
            del at[path[-1]]
        else:
            at[path[-1]] = to(at[path[-1]]) if callable(to) else to
        return other

    def with_first(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda tensor: torch.cat([torch.full((1,), value), tensor[1:]])

    adam = ("trainer", "optimizers", "firm")
    group, moments = (*adam, "param_groups", 0), (*adam, "state", 0)
    flat = ("trainer", "policies", "firm")
    for value in (-5, 2**40, 1.5, True, None, "3", torch.tensor(3)):
        yield f"iteration {value!r}", changed("iteration", to=value)
    for key in ("iteration", "precision", "config", "trainer", "version"):
        yield f"no {key}", changed(key, to=KeyError)
    yield "precision", changed("precision", to="torch.int8")
    yield "version", changed("version", to=99)
    for value in (None, [], {}, "x"):
        yield f"trainer {value!r}", changed("trainer", to=value)
        yield f"config {value!r}", changed("config", to=value)
        yield f"optimizer {value!r}", changed(*adam, to=value)
        yield f"groups {value!r}", changed(*adam, "param_groups", to=value)
    for name, make in {
        "scalar": lambda tensor: tensor[0],
        "one element": lambda tensor: tensor[:1],
        "longer": lambda tensor: torch.cat([tensor, tensor[:1]]),
        "double": lambda tensor: tensor.double(),
        "integers": lambda tensor: tensor.int(),
        "NaN": with_first(torch.nan),
        "infinity": with_first(torch.inf),
        "sparse": lambda tensor: tensor.to_sparse(),
        "meta": lambda tensor: tensor.to("meta"),
        "list": lambda tensor: tensor.tolist()[:3],
    }.items():
        yield f"policy {name}", changed(*flat, to=make)
        yield f"moment {name}", changed(*moments, "exp_avg", to=make)
    yield "second moment below 0", changed(*moments, "exp_avg_sq", to=with_first(-1.0))
    yield "step below 0", changed(*moments, "step", to=torch.tensor(-1.0))
    for value in (123.0, -0.1, float("nan"), "0.1", None, torch.tensor(0.1)):
        yield f"lr {value!r}", changed(*group, "lr", to=value)
    yield "betas", changed(*group, "betas", to=(0.9, 2.0))
    yield "weight decay", changed(*group, "weight_decay", to=1e9)
    yield "amsgrad", changed(*group, "amsgrad", to=True)
    yield "another parameter", changed(*group, "params", to=[7])
    for value in (-1.0, float("inf"), "x", None):
        yield f"multiplier {value!r}", changed("trainer", "noponzi", "firm", to=value)
    yield "no multiplier", changed("trainer", "noponzi", "firm", to=KeyError)
    yield "no policy", changed(*flat, to=KeyError)
    yield "one policy more", changed("trainer", "policies", to=lambda kept: {**kept, "bank": torch.zeros(3)})


def count_hostile_states(folder: Path) -> tuple[int, list[str]]:
    """Put each in place of the last state, alone and before a good one: one message, or the good one with a warning."""
    run, wrong, number = small_run(folder), [], 0
    config = load_config(run.hparams_path)
    last, good = torch.load(run.state_path, weights_only=True), run.previous_state_path.read_bytes()
    (run.path / MANIFEST).unlink()  # its author would have written a fitting one
    for name, state in hostile_states(last):
        for before in (None, good):
            number += 1
            shutil.rmtree(run.state_path.parent)
            run.state_path.parent.mkdir()
            torch.save(state, run.state_path)
            if before:
                run.previous_state_path.write_bytes(before)
            try:
                found = read_state(run, config)
                if not before or found is None or found["iteration"] != 4:
                    wrong.append(f"{name}: accepted")
            except UserError as error:
                if before and not name.startswith("config"):
                    wrong.append(f"{name}: {error}")
                if str(run.path) not in str(error):
                    wrong.append(f"{name}: no file is named: {error}")
            except Exception as error:
                wrong.append(f"{name}: {error!r}")
    return number, wrong


# Hostile files -------------------------------------------------------------------------------------------------------


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, victim: Path):
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.fspath(self.victim),)


def _hostile(path: Path, victim: Path) -> dict[str, Callable[[], object]]:
    """What may lie where a file of a run is expected."""
    bomb = Bomb(victim)

    def bind() -> None:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path is short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
        os.chdir(here)

    def archive(write: Callable[[Any], object]) -> None:
        with open(path, "wb") as file:
            write(file)

    deep = 100_000
    return {
        "pipe": lambda: os.mkfifo(path),
        "socket": bind,
        "folder": lambda: path.mkdir(),
        "endless": lambda: path.symlink_to("/dev/zero"),
        "link to itself": lambda: path.symlink_to(path),
        "link to nothing": lambda: path.symlink_to(victim),
        "pickle": lambda: path.write_bytes(pickle.dumps({"a": bomb})),
        "pickle of old": lambda: path.write_bytes(pickle.dumps(bomb, protocol=0)),
        "torch": lambda: torch.save({"a": bomb}, path),
        "torch of old": lambda: torch.save(bomb, path, _use_new_zipfile_serialization=False),
        "arrays": lambda: archive(lambda file: np.savez(file, states=np.array([bomb], object))),
        "tag": lambda: path.write_text(f"agents: !!python/object/apply:os.mkdir ['{victim}']"),
        "deep list": lambda: path.write_text("[" * deep),
        "deep mapping": lambda: path.write_text('{"a":' * deep),
        "many aliases": lambda: path.write_text(
            "a: &a [1,1]\n" + "".join(f"{b}: &{b} [*{a},*{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
        ),
        "numbers": lambda: path.write_text('{"iteration": ' + "9" * 5000 + "}\n"),
        "nothing": lambda: path.write_bytes(b""),
        "null": lambda: path.write_text("null\n"),
        "zeros": lambda: path.write_bytes(bytes(10_000)),
        "not UTF-8": lambda: path.write_bytes(b"\xff\xfe\x00\xd8" * 100),
        "escapes": lambda: path.write_text('{"\x1b]0;owned\x07": 1}'),
        "wrong types": lambda: path.write_text(json.dumps({"records": [1], "verdict": [], "iteration": [], "a": {}})),
    }


def count_hostile_files(folder: Path, patience: float = 20.0) -> tuple[int, list[str]]:
    """Put each hostile thing in place of each file: one message, nothing executed, nothing waited for."""
    run, victim, wrong, number = small_run(folder), folder / "executed", [], 0
    of_manifest = {MANIFEST: "status.json", f"brfirm/{MANIFEST}": "brfirm/saved_models/firm_policy_latest.pt"}
    for manifest in (True, False):
        if not manifest:
            (run.path / MANIFEST).unlink()
        for name in files_read(run):
            path = run.path / name
            for kind, make in _hostile(path, victim).items():
                whole = path.read_bytes()
                path.unlink()
                make()
                began, number = time.monotonic(), number + 1
                try:
                    content_of(run, of_manifest.get(name, name))
                    # A state gives way to the one before; without a manifest, some things are as good as another.
                    if manifest and kind not in ("link to nothing", "link to itself") and path.parent.name != "state":
                        wrong.append(f"{name}, {kind}: accepted")
                except UserError as error:
                    if not str(error).replace("\n", " ").isprintable():
                        wrong.append(f"{name}, {kind}: {error!r}")
                except Exception as error:
                    wrong.append(f"{name}, {kind}: {error!r}")
                if time.monotonic() - began > patience:
                    wrong.append(f"{name}, {kind}: took {time.monotonic() - began:.0f} s")
                for left in (path, path.with_name("damaged.pt")):
                    shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink(missing_ok=True)
                path.write_bytes(whole)
    if victim.exists():
        wrong.append("something was executed")
    return number, wrong


def count_links(folder: Path) -> tuple[int, list[str]]:
    """Links in place of what a run writes lead nothing outside: one message each."""
    run, wrong, number = small_run(folder), [], 0
    outside = folder / "outside"
    policy = {"weight": torch.zeros(3)}
    br = run.best_response("firm")
    writers: dict[str, Callable[[], object]] = {
        "saved_models": lambda: run.save_policy("firm", 0, policy),
        "state": lambda: run.save_state({"iteration": 1}),
        "brfirm": lambda: br.save_policy("firm", "best", policy),
        "brfirm/saved_models": lambda: br.save_policy("firm", "best", policy),
        "brfirm/ep_0": lambda: br.inside("ep_0", "seed_0").save_policy("firm", "best", policy),
        "metrics.jsonl": lambda: run.append_metrics([{"iteration": 99}]),
    }
    for name, write in writers.items():
        for target in ("folder", "file", "nothing"):
            number += 1
            shutil.rmtree(outside, ignore_errors=True)
            outside.mkdir()
            to = outside / target
            if target == "folder":
                to.mkdir()
            elif target == "file":
                to.write_bytes(b"kept")
            place, aside = run.path / name, folder / "aside"
            there = os.path.lexists(place)
            if there:
                place.rename(aside)
            place.symlink_to(to)
            try:
                write()
                wrong.append(f"{name} to a {target}: written")
            except UserError as error:
                if "link" not in str(error):
                    wrong.append(f"{name} to a {target}: {error}")
            except Exception as error:
                wrong.append(f"{name} to a {target}: {error!r}")
            left = {path.name: path.is_file() and path.read_bytes() for path in outside.rglob("*")}
            if left != {"folder": {"folder": False}, "file": {"file": b"kept"}, "nothing": {}}[target]:
                wrong.append(f"{name} to a {target}: left {left} outside")
            place.unlink()
            if there:
                aside.rename(place)
    return number, wrong


# Death between two system calls --------------------------------------------------------------------------------------


class Dying:
    """Stands in for ``os`` in ``files.py``: from the n-th call that changes or syncs something on, none happens."""

    CALLS = ("replace", "fsync", "unlink", "mkdir")

    def __init__(self, calls: int, after: bool):
        self.left, self.after = calls, after

    def __getattr__(self, name: str) -> Any:
        call = getattr(os, name)
        if name not in self.CALLS:
            return call

        def counted(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left < 0 or (self.left == 0 and not self.after):
                raise Killed
            done = call(*arguments, **options)
            if self.left == 0:
                raise Killed
            return done

        return counted


def count_deaths(folder: Path, monkeypatch: Any, deaths: int = 2) -> tuple[int, list[str]]:
    """Die at each call of a series of writes, some times in a row; all stays readable, and the next write succeeds."""
    number, wrong = 0, []
    shapes = {"weight": (1,)}

    def write(run: RunDir, value: int) -> None:
        run.save_policy("firm", "latest", {"weight": torch.tensor([float(value)])})
        run.append_metrics([{"iteration": value}])
        run.save_state({"iteration": value})

    for after in (False, True):
        call = 0
        while call := call + 1:
            run = RunDir(folder / f"{after}-{call}", must_exist=False)
            for value in range(2):
                write(run, value)
            oldest = alive = 1
            for death in range(deaths):
                value = 2 + death
                with monkeypatch.context() as patched:
                    patched.setattr(files, "os", dying := Dying(call, after))
                    number += 1
                    try:
                        write(RunDir(run.path), value)
                        oldest = value
                    except Killed:
                        pass
                alive = value
                again = RunDir(run.path)
                try:
                    policy = again.load_policy_state("firm", "latest", shapes)["weight"].item()
                    state, _ = again.load_state()
                    metrics = [record["iteration"] for record in again.read_metrics()]
                    if not oldest <= policy <= alive or not oldest <= state["iteration"] <= policy:
                        wrong.append(f"{after} {call}: policy {policy}, state {state['iteration']}, not {oldest} on")
                    if again.truncate_metrics(state["iteration"] + 1, range(state["iteration"] + 1)) and death == 0:
                        wrong.append(f"{after} {call}: metrics {metrics} for state {state['iteration']}")
                except UserError as error:
                    wrong.append(f"{after} {call}: {error}")
            write(RunDir(run.path), 9)
            if RunDir(run.path).load_state()[0]["iteration"] != 9:
                wrong.append(f"{after} {call}: cannot go on")
            if dying.left > 0:
                break  # it ran to its end
    return number, wrong
