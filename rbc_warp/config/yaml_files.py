"""YAML by strict rules: 1e-3 is a number, a key is given once, tags are refused, files are small."""

import os
import re
from pathlib import Path
from typing import Any

import yaml

from rbc_warp.config.manifest import open_verified
from rbc_warp.config.messages import kind_of
from rbc_warp.config.reading import open_regular
from rbc_warp.config.shipped import shipped_names
from rbc_warp.errors import ConfigError, FileFault, RunFileError

HPARAMS = "hparams.yaml"

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
    """Return whether a node holds scalars only, so that repeating it cannot grow without bound."""
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


def parse(text: str, label: str) -> Any:
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
        if Path(path).name == HPARAMS:  # of a run
            with open_verified(Path(path)) as file:
                data = file.read(MAX_FILE_BYTES + 1)
        else:
            with open_regular(Path(path)) as file:
                data = file.read(MAX_FILE_BYTES + 1)
        text = data.decode("utf-8-sig")
    except RunFileError as error:
        raise ConfigError(str(error)) from None
    except FileNotFoundError:
        if Path(path).name == HPARAMS:
            raise ConfigError(f"{label}: no such file; give the rollout-… folder of a run") from None
        shipped = ", ".join(shipped_names())
        raise ConfigError(f"{label}: no such file; check the path, or name a shipped one: {shipped}") from None
    except IsADirectoryError:
        raise ConfigError(f"{label}: is a directory; name the YAML file in it") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{label}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        fault = FileFault(label, "read", error, "check the path and its permissions")
        raise ConfigError(str(fault)) from None
    except ValueError as error:  # a path with a null character
        raise ConfigError(f"{label}: cannot be read: {error}; check the path") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{label}: larger than {MAX_FILE_BYTES} bytes; a configuration is a few kilobytes")
    loaded = parse(text, label)
    if loaded is None:
        raise ConfigError(f"{label}: is empty; write sections agents, world, train, or start from configs/rbc.yaml")
    if not isinstance(loaded, dict):
        raise ConfigError(
            f"{label}: top level is {kind_of(loaded)}; allowed: a mapping of sections such as agents, world"
        )
    return loaded
