"""Saying clearly what is wrong with a configuration.

Every fault of the user's becomes a :class:`ConfigError` whose lines name file, key, value, what is allowed and the
remedy. Nothing here knows the schema: its models are handed in.
"""

import difflib
import math
import re
import reprlib
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from rbc_warp.errors import ConfigError

MAX_LINES = 50
UNKNOWN_KEY = "is not a known key"
MAPPING_LABEL, OVERRIDE_LABEL = "<mapping>", "--set"

KeyPath = tuple[Any, ...]
"""The place of a value: section, key, then deeper keys and list indices."""


@dataclass
class Fault(ValueError):
    """One thing wrong with one key, in the words that follow its value."""

    path: KeyPath
    value: Any
    problem: str
    allowed: str = ""
    remedy: str = ""


class Faults(ValueError):
    """Several faults that only a look at more than one key can find."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("; ".join(fault.problem for fault in faults))
        self.faults = list(faults)


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60
_REPR.maxlong, _REPR.maxlist, _REPR.maxtuple, _REPR.maxdict, _REPR.maxlevel = 30, 8, 8, 4, 3
_OUT_OF_RANGE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


def show(value: Any) -> str:
    """Return a value as the user may have written it, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        value = list(value)
    return _REPR.repr(value)


def kind_of(value: Any) -> str:
    """ "is a string", without the "is"."""
    if isinstance(value, bool):
        return "a boolean"
    names: dict[type, str] = {str: "a string", int: "a number", float: "a number", type(None): "empty"}
    names |= {list: "a list", tuple: "a list", dict: "a mapping"}
    return names.get(type(value), f"of type {type(value).__name__}")


def dotted(path: KeyPath) -> str:
    """agents.price_choices[2]"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def explain(error: ValidationError, model: type[BaseModel], label: str, overridden: set[KeyPath]) -> ConfigError:
    """Turn a failed validation into the user's view of it: one line per fault."""
    lines = list(dict.fromkeys(_lines(error, model, label, overridden, ())))
    more = [f"{label}: and {len(lines) - MAX_LINES} more; correct these first"] if len(lines) > MAX_LINES else []
    return ConfigError("\n".join(lines[:MAX_LINES] + more))


def explain_faults(
    faults: Sequence[Fault], model: type[BaseModel], label: str, overridden: set[KeyPath]
) -> ConfigError:
    """The same for faults that need no validation to be found."""
    return ConfigError("\n".join(_line(fault, model, label, overridden) for fault in faults))


def _lines(
    error: ValidationError, model: type[BaseModel], label: str, overridden: set[KeyPath], prefix: KeyPath
) -> Iterator[str]:
    for item in error.errors(include_url=False):
        path, value, kind = prefix + item["loc"], item["input"], item["type"]
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, ValidationError):  # the sweep's own models
            yield from _lines(cause, model, label, overridden, path)
        elif isinstance(cause, Faults):
            yield from (_line(fault, model, label, overridden) for fault in cause.faults)
        else:
            fault = Fault(path, value, _problem(kind, value, cause, item["msg"]))
            if kind == "extra_forbidden":
                fault.problem, fault.allowed, fault.remedy = UNKNOWN_KEY, "-", _suggestion(model, path)
            elif kind == "missing":
                fault.remedy = "add the key"
            yield _line(fault, model, label, overridden)


def _problem(kind: str, value: Any, cause: Exception | None, message: str) -> str:
    if isinstance(cause, ValueError):
        return str(cause)
    if kind in _OUT_OF_RANGE or (kind == "float_type" and type(value) is int):
        return "is out of range"
    if kind == "missing":
        return "is missing"
    if kind == "literal_error":
        return f"is {kind_of(value)}" if not isinstance(value, str) else "is not one of the choices"
    if kind == "int_type" and isinstance(value, float):
        return "is not a whole number" if math.isfinite(value) else "is not finite"
    fixed = {"finite_number": "is not finite", "too_short": "is empty", "too_long": "is too long"}
    return fixed.get(kind) or (f"is {kind_of(value)}" if kind.endswith(("_type", "_instance")) else message.lower())


def _line(fault: Fault, model: type[BaseModel], label: str, overridden: set[KeyPath]) -> str:
    field = field_at(model, fault.path)
    is_override = any(fault.path[: len(path)] == path or path[: len(fault.path)] == fault.path for path in overridden)
    what = dotted(fault.path) if fault.problem == "is missing" else f"{dotted(fault.path)} = {show(fault.value)}"
    allowed = fault.allowed or allowed_text(field)
    if fault.problem != UNKNOWN_KEY and fault.path[:1] == ("sweep",) and len(fault.path) == 3:
        allowed = f"a list of values, each {allowed}"
    remedy = fault.remedy or _remedy(fault, field, is_override)
    parts = [f"{OVERRIDE_LABEL if is_override else label}: {what} {fault.problem}"]
    if allowed not in ("", "-"):
        parts.append(f"allowed: {allowed}")
    return "; ".join([*parts, remedy])


def _remedy(fault: Fault, field: FieldInfo | None, is_override: bool) -> str:
    number = _number_in(fault.value)
    if number is not None and fault.problem.startswith("is a string"):
        return f"write {number} without quotes"
    if is_override:
        return f"correct or drop this {OVERRIDE_LABEL}"
    if field is None or field.is_required() or len(fault.path) != 2:
        return "correct the value"
    default = field.get_default(call_default_factory=True, validated_data={})
    return "remove the key to leave it off" if default is None else f"remove the key to use the default {show(default)}"


def _number_in(value: Any) -> str | None:
    """The number that a quoted value was meant to be, written so that every YAML reader takes it for one."""
    text = value.strip() if isinstance(value, str) else ""
    if len(text) > 40 or not re.fullmatch(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", text):
        return None
    if re.fullmatch(r"[-+]?[0-9]+", text):
        return str(int(text))
    number = str(float(text))
    return number if "." in number else number.replace("e", ".0e")


def field_at(model: type[BaseModel], path: KeyPath) -> FieldInfo | None:
    """The schema's field for a path of keys; list indices and the sweep's outer level are passed over."""
    names = [part for part in path if isinstance(part, str)]
    names = names[1:] if names[:1] == ["sweep"] and len(names) > 2 else names
    field: FieldInfo | None = None
    at: type[BaseModel] | None = model
    for name in names:
        field = at.model_fields.get(name) if at else None
        if field is None:
            return None
        at = model_in(field.annotation)
    return field


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in ``Model`` or ``Model | None``."""
    options = get_args(annotation) or (annotation,)
    return next((option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), None)


def allowed_text(field: FieldInfo | None) -> str:
    """Return the values a field takes, in words."""
    if field is None:
        return ""
    annotation = field.annotation
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    suffix = " or null" if type(None) in options else ""
    extra = field.json_schema_extra
    if isinstance(extra, dict) and extra.get("allowed"):
        return f"{extra['allowed']}{suffix}"
    for option in options:
        if get_origin(option) is Literal:
            return ", ".join(get_args(option)) + suffix
        block = model_in(option)
        if block is not None:
            names = list(block.model_fields)
            return f"a mapping of {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}{suffix}"
        if option is bool:
            return f"true or false{suffix}"
    bounds = {name: getattr(m, name) for m in field.metadata for name in ("ge", "gt", "le", "lt") if hasattr(m, name)}
    if "ge" in bounds and "le" in bounds:
        text = f"{_brief(bounds['ge'])} to {_brief(bounds['le'])}"
    else:
        signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
        text = " and ".join(f"{signs[name]} {_brief(bound)}" for name, bound in bounds.items())
    whole = "whole number " if any(option is int for option in options) else ""
    return f"{whole}{text}{suffix}"


def _brief(bound: float | int) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _suggestion(model: type[BaseModel], path: KeyPath) -> str:
    """Suggest where an unknown key may have been meant to go."""
    name = str(path[-1])
    sections = {key: model_in(field.annotation) for key, field in model.model_fields.items()}
    keys = {section: list(block.model_fields) for section, block in sections.items() if block is not None}
    if len(path) == 1:
        here = list(model.model_fields)
    elif path[0] == "sweep":
        here = keys.get(str(path[1]), []) if len(path) == 3 else list(keys)
    else:
        parent = field_at(model, path[:-1])
        block = model_in(parent.annotation) if parent else None
        here = list(block.model_fields) if block else []
    nearest = difflib.get_close_matches(name, here, n=1)
    owner = next((section for section, names in keys.items() if name in names), None)
    if owner is not None:
        return f"it belongs to section {owner}"
    if nearest:
        return f"did you mean {nearest[0]}?"
    elsewhere = difflib.get_close_matches(name, [key for names in keys.values() for key in names], n=1)
    if elsewhere:
        owner = next(section for section, names in keys.items() if elsewhere[0] in names)
        return f"did you mean {elsewhere[0]} in section {owner}?"
    return "remove it"
