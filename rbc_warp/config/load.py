"""Reading a configuration: YAML files, overrides, and the hparams.yaml of public runs.

The YAML is read by strict rules: 1e-3 is a number, a key is given once, tags are refused, files are small.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rbc_warp.config.messages import OVERRIDE_LABEL, Fault, KeyPath, kind_of, show
from rbc_warp.config.reading import read_action_arrays
from rbc_warp.errors import ConfigError

MAX_FILE_BYTES = 1 << 20
MAX_DEPTH = 20
MAX_ALIASES = 100


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars (1e-3 is a number, 010 is ten, yes is text), unique text keys and no tags."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    depth = 0
    aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise _marked(f"the tag {event.tag} is refused; write plain numbers, text, lists and mappings", event)
        if self.depth >= MAX_DEPTH:
            raise _marked(f"nested deeper than {MAX_DEPTH} levels", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(event, yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_ALIASES or not _is_flat(node):
                raise _marked("the alias (*name) stands for too much; write the value out", event)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                raise _marked("a key must be text", key_node)
            key = key_node.value
            if key in mapping:
                raise _marked(f"the key {key} is given twice; keep one of them", key_node)
            if node is self.root and key == "metadata":
                _keep_doubtful_text(value_node)
            mapping[key] = self.construct_object(value_node, deep=True)
        return mapping

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node))

    def construct_document(self, node: yaml.Node) -> Any:
        self.root = node
        return super().construct_document(node)


_YAML_1_2 = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+0123456789."),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
)
for _tag, _pattern, _first in _YAML_1_2:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole)
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_mapping)


def _is_flat(node: yaml.Node | None) -> bool:
    """Whether a node holds scalars only, so that repeating it cannot grow without bound."""
    if not isinstance(node, yaml.CollectionNode):
        return True
    parts = [part for child in node.value for part in (child if isinstance(child, tuple) else (child,))]
    return all(isinstance(part, yaml.ScalarNode) for part in parts)


def _keep_doubtful_text(node: yaml.Node) -> None:
    """Make text of the values in ``node`` that YAML 1.1, the version PyYAML writes, reads otherwise than 1.2 does.

    Without this the hash 1234e567 of a run would come back as a number.
    """
    if isinstance(node, yaml.MappingNode):
        yaml_1_1 = yaml.SafeLoader("")
        for _, value in node.value:
            if isinstance(value, yaml.ScalarNode) and value.style is None:
                agreed = yaml_1_1.resolve(yaml.ScalarNode, value.value, (True, False)) == value.tag
                value.tag = value.tag if agreed else "tag:yaml.org,2002:str"


def _marked(problem: str, where: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


def _parse(text: str, label: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        problem = error.problem or error.context
        raise ConfigError(f"{label}: {line}{problem}; correct the YAML there") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{label}: not readable as YAML: {first_line}; correct the file") from None


def read_mapping(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping in a YAML file; :class:`ConfigError` where there is none to be had."""
    label = os.fspath(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{label}: no such file; check the path") from None
    except IsADirectoryError:
        raise ConfigError(f"{label}: is a directory; name the YAML file in it") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{label}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{label}: cannot be read: {error}; check the path and its permissions") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{label}: larger than {MAX_FILE_BYTES} bytes; a configuration is a few kilobytes")
    loaded = _parse(text, label)
    if loaded is None:
        raise ConfigError(f"{label}: is empty; write sections agents, world, train, or start from configs/rbc.yaml")
    if not isinstance(loaded, dict):
        raise ConfigError(
            f"{label}: top level is {kind_of(loaded)}; allowed: a mapping of sections such as agents, world"
        )
    return loaded


def read_layered(path: str | os.PathLike[str], check: Callable[[str], object]) -> dict[str, Any]:
    """The mapping in a YAML file, on top of the file that its key ``base`` names, relative to it.

    A section changes only the keys it gives; null switches an optional key off. ``check`` loads the base alone first,
    so that a fault in it names it. A base has no base itself.
    """
    data = read_mapping(path)
    base = data.pop("base", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise ConfigError(f"{os.fspath(path)}: base is {kind_of(base)}; name a YAML file, relative to this one")
    below = Path(path).parent / base
    lower = read_mapping(below)
    if "base" in lower:
        raise ConfigError(f"{below}: is the base of {os.fspath(path)} and has a base itself; name that one instead")
    check(os.fspath(below))
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
    if isinstance(overrides, str):
        raise ConfigError(f"{OVERRIDE_LABEL}: {overrides!r} is text; give a list of section.key=value strings")
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
        target[path[-1]] = _parse(text, f"{OVERRIDE_LABEL}: {name}")
        paths.add(path)
    return result, paths


def copied(value: Any) -> Any:
    """Nested mappings as new dicts, tuples as lists."""
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, (list, tuple)) else value


_TABLES = {
    "consumption_choices": ("consumption_choices",),
    "work_choices": ("work_choices",),
    "price_and_wage": ("price_choices", "wage_choices", "investment_choices"),
    "tax_choices": ("income_tax_choices", "corporate_tax_choices"),
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


def split_public_keys(data: Mapping[str, Any], derived_keys: frozenset[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A copy of ``data`` without the keys that only the public implementation writes, and those of them it derived."""
    data = copied(data)
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
