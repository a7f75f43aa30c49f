"""Runs that are to meet in one economy: opened, and refused where their policies cannot be mixed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from rbc_warp.config import Config, load_config
from rbc_warp.config.messages import show
from rbc_warp.economy.parameters import Economy
from rbc_warp.equilibrium.request import Checkpoint, open_checkpoint
from rbc_warp.errors import ConfigError, RunFileError
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.run import load_policies
from rbc_warp.training.policy import Policy
from rbc_warp.training.schedule import Schedule

NETWORK_KEYS = ("hidden_size", "digit_representation_size")
"""Keys of ``train`` that give the networks their shape and inputs."""
SAME_STAGE = 0.01
"""Largest relative difference of two stages' numbers that still make one game."""


@dataclass(frozen=True)
class Entrant:
    """A run that takes part."""

    run: RunDir
    config: Config
    checkpoint: Checkpoint
    untrained: dict[str, Policy] | None  #: Policies of checkpoint 0, None where the run does not have it.


def enter(runs: Sequence[Path], labels: Sequence[str] | None = None, overrides: Sequence[str] = ()) -> list[Entrant]:
    """Open the runs and check that their policies can meet: one economy, networks of one shape, one stage.

    Raises:
        ConfigError: they cannot; RunFileError: a run or its checkpoint cannot be read.
    """
    if len(runs) < 2:
        raise ConfigError("--cross-play needs two runs or more; name another run of the same economy")
    if labels is not None and len(labels) != 1:
        raise ConfigError(f"--ep-strs {' '.join(labels)}: --cross-play takes one checkpoint of every run; give one")
    label = labels[0] if labels else "latest"
    if not label.isdecimal() and label != "latest":
        raise ConfigError(f"--ep-strs {label!r} is no checkpoint; give an iteration (digits) or 'latest'")
    for first, second in itertools.combinations(runs, 2):
        if first.resolve() == second.resolve():
            raise ConfigError(f"--cross-play {first} {second} is the same run twice; name each run once")
    opened = [(run, load_config(run.hparams_path, list(overrides))) for run in map(RunDir, runs)]
    for run, config in opened[1:]:
        _check_economies(*opened[0], run, config)
    entrants = [_entrant(run, config, label) for run, config in opened]
    for entrant in entrants[1:]:
        _check_stages(entrants[0], entrant)
    return entrants


def _entrant(run: RunDir, config: Config, label: str) -> Entrant:
    learning = [name for name, agent in Economy.from_config(config).agents.items() if not agent.is_frozen]
    for agent in learning:
        path = run.policy_path(agent, label)
        if not path.exists():
            saved = ", ".join(run.labels(agent)) or "none"
            raise RunFileError(path, "is not there", f"choose with --ep-strs what every run has; this one has: {saved}")
    has_start = all(run.policy_path(agent, 0).exists() for agent in learning)
    untrained = load_policies(run, config, 0) if has_start else None
    return Entrant(run, config, open_checkpoint(run, config, label, []), untrained)


def _check_economies(first: RunDir, config: Config, second: RunDir, other: Config) -> None:
    """Raise ConfigError at the first key that makes two economies, or networks of two shapes."""
    shapes = [("train", key) for key in NETWORK_KEYS if getattr(config.train, key) != getattr(other.train, key)]
    found = _economic_key(config, other) or next(iter(shapes), None)
    if found is not None:
        section, key = found
        here, there = (show(getattr(getattr(each, section), key)) for each in (config, other))
        raise ConfigError(
            f"{first.path} and {second.path} cannot be mixed: {section}.{key} is {here} and {there}; "
            "name runs of one economy, with networks of one size and the same inputs"
        )


def _economic_key(config: Config, other: Config) -> tuple[str, str] | None:
    """Return section and name of the first key that makes another economy of ``config``; None if both are the same.

    The values of ``other`` are taken over one by one. A key that leaves the economy as it is may differ.
    """
    for section in ("agents", "world", "train"):
        given = getattr(other, section)
        for key in type(given).model_fields:
            before, value = getattr(config, section), getattr(given, key)
            if getattr(before, key) != value:
                changed = config.model_copy(update={section: before.model_copy(update={key: value})})
                if not _same_economy(config, changed):
                    return section, key
                config = changed
    return None


def _same_economy(config: Config, other: Config) -> bool:
    """Return whether two configurations describe one economy, however agents learn in it."""
    here = Economy.from_config(config)
    try:
        there = Economy.from_config(other)
    except ValueError:  # another number of firms, to which their other parameters do not fit
        return False
    frozen = [[agent.settings.frozen_action for agent in each.agents.values()] for each in (here, there)]
    names = [field.name for field in fields(Economy) if field.name != "settings"]
    same = (np.array_equal(getattr(here, name), getattr(there, name)) for name in names)
    return frozen[0] == frozen[1] and all(same)


def _check_stages(first: Entrant, second: Entrant) -> None:
    """Raise ConfigError if the curriculum lets agents feel or do different things at two checkpoints."""
    (stage, allowed), (other, other_allowed) = map(_stage, (first, second))
    differences = [
        f"{name.replace('_', ' ')} is {here:g} and {other[name]:g}"
        for name, here in stage.items()
        if abs(here - other[name]) > SAME_STAGE * max(abs(here), abs(other[name]))
    ] + [
        f"{agent} may take {mask.sum()} actions and {other_allowed[agent].sum()}, not the same"
        for agent, mask in allowed.items()
        if not np.array_equal(mask, other_allowed[agent])
    ]
    if differences:
        raise ConfigError(
            f"{first.run.path} and {second.run.path} are at different stages of the curriculum at checkpoint "
            f"{first.checkpoint.label}: {differences[0]}; name another with --ep-strs, or give all runs one stage "
            "with --set (agents.consumer_anneal_theta=null, for example)"
        )


def _stage(entrant: Entrant) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    checkpoint = entrant.checkpoint
    schedule = Schedule(entrant.config, Economy.from_config(entrant.config))
    stage = schedule.stage(checkpoint.iteration, checkpoint.multipliers)
    return asdict(stage), schedule.allowed(checkpoint.iteration)
