"""Reading dense rollouts: nothing in them is unpickled."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rbc_warp.config.manifest import open_verified
from rbc_warp.config.reading import reading
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.economy.parameters import Economy
from rbc_warp.errors import RunFileError
from rbc_warp.runs.files import COPY_AGAIN
from rbc_warp.runs.folder import EPISODE_KEYS, RunDir, check_episode


@dataclass(frozen=True)
class Episode:
    """One dense rollout of one agent type. E environments, T periods, A agents of the type."""

    states: np.ndarray  #: (E, T, A, observation) float32
    actions: np.ndarray  #: (E, T, A) indices; (E, T, I, J+2) for consumers
    rewards: np.ndarray  #: (E, T, A) float32
    action_array: np.ndarray  #: (n, columns) float32, the action behind each index
    aux_array: np.ndarray  #: float32: units consumed (E, T, I, J), units exported (E, T, J), empty for the government


def parse_name(path: Path) -> tuple[str, str] | None:
    """Return the label and the agent type in the name of a dense rollout's file, None if it has another name."""
    match = re.fullmatch(rf"episode_([0-9]+|final)_({'|'.join(AGENT_TYPES)})\.npz", path.name)
    return (match[1], match[2]) if match else None


def read_episode(path: Path | str) -> Episode:
    """A dense rollout, checked against the agent type in the file's name; an aux_array that is None reads as empty.

    Raises:
        RunFileError: the file is missing or damaged, or holds something else.
    """
    if not isinstance(path, str | os.PathLike):
        raise RunFileError(repr(path)[:60], "is no path", "give a file episode_<N>_<type>.npz of a run")
    path = Path(path)
    name = parse_name(path)
    with (
        reading(path, "a dense rollout (.npz of number arrays)", COPY_AGAIN),
        open_verified(path) as opened,
        np.load(opened, allow_pickle=False) as file,
    ):
        if missing := [key for key in EPISODE_KEYS if f"{key}.npy" not in file.zip.namelist()]:
            raise RunFileError(path, f"expected {', '.join(EPISODE_KEYS)}; missing: {', '.join(missing)}", COPY_AGAIN)
        # The public code pickles None for the government; the header tells so without unpickling.
        keys = EPISODE_KEYS[:-1] if _holds_objects(file, "aux_array") else EPISODE_KEYS
        arrays = {"aux_array": np.empty(0, np.float32)} | {key: file[key] for key in keys}
    check_episode(path, arrays, name[1] if name else None)
    return Episode(**arrays)


def read_rollout(run: RunDir, economy: Economy, label: int | str, types: Sequence[str]) -> dict[str, Episode]:
    """Read one dense rollout of some types. Raises RunFileError where it is not of this economy."""
    episodes = {agent: read_episode(run.episode_path(label, agent)) for agent in types}
    batch = episodes[types[0]].rewards.shape[:2]
    flows = {"consumer": (economy.num_consumers, economy.num_firms), "firm": (economy.num_firms,)}
    for agent, episode in episodes.items():
        path, kind = run.episode_path(label, agent), economy.agents[agent]
        heads = (len(kind.head_sizes),) if len(kind.head_sizes) > 1 else ()
        expected = {
            "states": (*batch, kind.count, economy.public.size + kind.private.size),
            "actions": (*batch, kind.count, *heads),
            "rewards": (*batch, kind.count),
            "aux_array": (*batch, *flows[agent]) if agent in flows else (0,),
        }
        found = {name: getattr(episode, name).shape for name in expected}
        if wrong := [name for name in expected if found[name] != expected[name]]:
            problem = f"{wrong[0]}: expected shape {expected[wrong[0]]} of its run, found {found[wrong[0]]}"
            raise RunFileError(path, problem, COPY_AGAIN)
        limits = kind.head_sizes if heads else kind.head_sizes[0]
        if np.any(episode.actions < 0) or np.any(episode.actions >= limits):
            raise RunFileError(path, "actions: holds one that the run's economy does not have", COPY_AGAIN)
    return episodes


def _holds_objects(file: Any, key: str) -> bool:
    """Return whether an array of an open .npz would have to be unpickled."""
    with file.zip.open(f"{key}.npy") as stream:
        read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        return bool(read_header[np.lib.format.read_magic(stream)[0]](stream)[2].hasobject)
