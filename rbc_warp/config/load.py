"""Loading a configuration: layered YAML files, overrides, and the hparams.yaml of public runs."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from rbc_warp.config.action_arrays import read_action_arrays
from rbc_warp.config.manifest import MANIFEST
from rbc_warp.config.messages import (
    MAPPING_LABEL,
    OVERRIDE_LABEL,
    Fault,
    KeyPath,
    explain,
    explain_faults,
    kind_of,
    show,
)
from rbc_warp.config.schema import Config
from rbc_warp.config.shipped import find_config
from rbc_warp.config.types import FIRM_CHOICE, GOVERNMENT_CHOICE
from rbc_warp.config.yaml_files import HPARAMS, MAX_DEPTH, parse, read_mapping
from rbc_warp.errors import ConfigError

MAX_BASES = 10


def read_layered(path: str | os.PathLike[str], above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read the mapping in a YAML file, on top of the file that its key ``base`` names, relative to it,
    or a shipped one.

    A section changes only the keys it gives; null switches an optional key off. A base may have a base itself; each is
    checked alone first, so that a fault in it names it. ``above``: the files that led here.
    """
    data = read_mapping(path)
    base = data.pop("base", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise ConfigError(f"{os.fspath(path)}: base is {kind_of(base)}; name a YAML file, relative to this one")
    chain = (*above, Path(path))
    below = find_config(base, Path(path).parent)
    if any(below.resolve() == file.resolve() for file in chain) or len(chain) > MAX_BASES:
        names = " → ".join(map(str, [*chain, below]))
        raise ConfigError(f"{os.fspath(path)}: base leads round in a circle or too far: {names}; remove one base")
    lower = read_layered(below, chain)
    validated(split_public_keys(lower, frozenset())[0], os.fspath(below), set())
    return _merged(lower, data)


def _merged(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """``lower`` with the values of ``upper``; mappings in both are merged in turn."""
    merged = dict(lower)
    for key, value in upper.items():
        below = lower.get(key)
        merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], set[KeyPath]]:
    """``data`` with "section.key=value" strings applied in order, and the paths they set. ``data`` is left alone."""
    result, paths = copied(data), set()
    if isinstance(overrides, str) or not isinstance(overrides, Iterable):
        raise ConfigError(f"{OVERRIDE_LABEL}: {overrides!r} is no list; give a list of section.key=value strings")
    for override in overrides:
        name, equals, text = str(override).partition("=")
        path = tuple(part.strip() for part in name.split("."))
        if not equals or len(path) < 2 or not all(path) or not text.strip():
            raise ConfigError(
                f"{OVERRIDE_LABEL}: {override!r} is not of the form section.key=value; "
                "write for example world.interest_rate=0.1"
            )
        target = result
        for depth, part in enumerate(path[:-1]):
            if target.get(part) is None:
                target[part] = {}
                paths |= {path[: depth + 1]} if depth else set()
            target = target[part]
            if not isinstance(target, dict):
                raise ConfigError(f"{OVERRIDE_LABEL}: {name} = {text}: {part} is no mapping; set {part} itself")
        target[path[-1]] = parse(text, f"{OVERRIDE_LABEL}: {name}")
        paths.add(path)
    return result, paths


def copied(value: Any, label: str = MAPPING_LABEL, depth: int = 0) -> Any:
    """Copy nested mappings as dicts, and tuples as lists."""
    if depth > MAX_DEPTH:
        raise ConfigError(f"{label}: nested deeper than {MAX_DEPTH} levels; write plain sections of keys")
    if isinstance(value, Mapping):
        return {key: copied(item, label, depth + 1) for key, item in value.items()}
    return [copied(item, label, depth + 1) for item in value] if isinstance(value, (list, tuple)) else value


_TABLES = {
    "consumption_choices": ("consumption_choices",),
    "work_choices": ("work_choices",),
    "price_and_wage": tuple(f"{column}_choices" for column in FIRM_CHOICE),
    "tax_choices": tuple(f"{column}_choices" for column in GOVERNMENT_CHOICE),
}


def fill_grids(agents: dict[str, Any], table_file: Path) -> None:
    """Put the grids that ``agents`` lacks into it, recovered from the action tables of a run.

    Each table is the product of its grids, first grid outermost; a table that is not is refused.
    """
    wanted = {table: grids for table, grids in _TABLES.items() if any(agents.get(grid) is None for grid in grids)}
    if not wanted:
        return
    try:
        tables = read_action_arrays(table_file)
    except (OSError, ValueError) as error:
        named = str(error) if str(table_file) in str(error) else f"{table_file}: {error}"
        raise ConfigError(f"{named}; or give the grids in the YAML") from None
    for name, grids in wanted.items():
        table = np.asarray(tables.get(name, ()), dtype=np.float32)
        axes = [np.unique(column) for column in table.T] if table.ndim == 2 and table.shape[1] == len(grids) else []
        product = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(grids)) if axes else None
        if product is None or not len(product) or not np.array_equal(product, table):
            raise ConfigError(
                f"{table_file}: {name} is not the product of {len(grids)} increasing grid(s); "
                f"give agents.{', agents.'.join(grids)} in the YAML instead"
            )
        for grid, axis in zip(grids, axes, strict=True):
            if agents.get(grid) is None:
                agents[grid] = [float(str(choice)) for choice in axis]  # 0.2, not 0.20000000298


def split_public_keys(
    data: Mapping[str, Any], derived_keys: frozenset[str], label: str = MAPPING_LABEL
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A copy of ``data`` without the keys that only the public implementation writes, and those of them it derived."""
    data = copied(data, label)
    agents, train = ({} if data.get(key) is None else data[key] for key in ("agents", "train"))
    derived: dict[str, Any] = {}
    if isinstance(agents, dict):
        derived = {key: agents.pop(key) for key in derived_keys & agents.keys()}
    if isinstance(train, dict):
        train.pop("seed", None)
        train.pop("save_dir", None)
        if isinstance(agents, dict) and "should_boost_firm_reward" in agents:
            train.setdefault("should_boost_firm_reward", agents.pop("should_boost_firm_reward"))
    return {**data, "agents": agents, "train": train}, derived


def derived_faults(derived: Mapping[str, Any], expected: Mapping[str, Any]) -> list[Fault]:
    """Derived keys of a file that disagree with what its sizes and grids give."""
    problem, remedy = (
        "disagrees with the sizes and grids",
        "remove this derived key, or correct num_firms and the grids",
    )
    return [
        Fault(("agents", key), derived[key], problem, show(value), remedy)
        for key, value in expected.items()
        if key in derived and (derived[key] != value or isinstance(derived[key], bool))
    ]


def _check_whole(data: Mapping[str, Any], label: str) -> None:
    """Raise ConfigError where hparams.yaml of a run made here, which no manifest verifies, lacks a key of every run."""
    missing = [
        f"{name}.{key}"
        for name, section in _DEFAULTS.to_dict().items()
        for key in section or [""]
        if not isinstance(data.get(name), dict) or (key and key not in data[name])
    ]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        remedy = "copy it again from the run that wrote it, or, if an older version did, add them with their defaults"
        raise ConfigError(f"{label}: is not whole, it lacks {shown}; {remedy}")


_DEFAULTS = Config()
STATUS = "status.json"
"""Beside hparams.yaml, this file marks a run made here."""
_ORIGIN = "_origin"


def load_config(
    source: str | os.PathLike[str] | Mapping[str, Any] | Config,
    overrides: Sequence[str] | None = None,
    name: str | None = None,
) -> Config:
    """The configuration in a YAML file, a mapping or another Config, with "section.key=value" overrides applied.

    The hparams.yaml of a public run loads too: the keys it derives are checked and dropped, and grids it does not
    give come from the action_arrays.pickle beside it; that of a run made here must be whole. A file with ``base:
    OTHER.yaml`` says only what differs from that one, whose path is relative to it. Where no such file is, ``rbc``,
    ``rbc.yaml`` and ``configs/rbc.yaml`` name the shipped configuration. Raises :class:`ConfigError`, one line per
    fault; they call a mapping ``name``, and a Config by where it is from.
    """
    label, data, tables, is_own = name or MAPPING_LABEL, {}, None, False
    if isinstance(source, Config):
        if not overrides:
            return source
        label, data = source.__dict__.get(_ORIGIN, label), source.model_dump(exclude_unset=True)
    elif isinstance(source, Mapping):
        data = copied(source, label)
    elif isinstance(source, (str, os.PathLike)):
        path = find_config(source)
        label, data = os.fspath(path), read_layered(path)
        tables = path.with_name("action_arrays.pickle")
        is_own = path.name == HPARAMS and path.with_name(STATUS).is_file() and not path.with_name(MANIFEST).exists()
    else:
        raise ConfigError(f"{show(source)} is {kind_of(source)}; give the path of a YAML file, a mapping or a Config")
    data, derived = split_public_keys(data, frozenset(_DEFAULTS.derived()), label)
    if is_own:
        _check_whole(data, label)
    agents = data["agents"]
    if tables is not None and tables.is_file() and isinstance(agents, dict):
        fill_grids(agents, tables)
    config = None
    if derived or not overrides:
        config = validated(data, label, set())
        faults = derived_faults(derived, config.derived())
        if faults:
            raise explain_faults(faults, Config, label, set())
    if overrides or config is None:
        data, paths = apply_overrides(data, overrides or [])
        config = validated(data, label, paths)
    return config


def validated(data: dict[str, Any], label: str, overridden: set[tuple[Any, ...]]) -> Config:
    try:
        config = Config.model_validate(data)
        config.__dict__[_ORIGIN] = label  # no field: it is not compared, nor written
        return config
    except ValidationError as error:
        raise explain(error, Config, label, overridden) from None
