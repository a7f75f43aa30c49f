"""Types of configuration values, with their checks, and the statement of a key's range.

A boolean is not a number, an integer is fine where a float is expected, and so is 100.0 for an integer.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, Strict

from rbc_warp.config.messages import show

LARGEST = 1e12
"""Bound on money, quantities and scales: far from overflow in float32, products included."""
MAX_ITERATIONS = 10**9
# Columns of the tables of joint choices, first outermost; each has a grid in the section agents, <column>_choices.
FIRM_CHOICE = ("price", "wage", "investment")
GOVERNMENT_CHOICE = ("income_tax", "corporate_tax")
MAX_GRID = 1000
MAX_JOINT_ACTIONS = 100_000


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _switch(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else _whole(value)


def _float32(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 3e38 < abs(value) < math.inf:
        raise ValueError("is out of range for float32")
    return value


def _increasing(grid: tuple[float, ...]) -> tuple[float, ...]:
    if any(low >= high for low, high in zip(grid, grid[1:], strict=False)):
        raise ValueError("is not strictly increasing")
    return grid


def _positive_maximum(grid: tuple[float, ...]) -> tuple[float, ...]:
    if max(grid) <= 0:
        raise ValueError("has no positive entry")
    return grid


def _alpha(value: Any) -> Any:
    entries = value if isinstance(value, (list, tuple)) else [value]
    if isinstance(value, str) and value in ("fixed_array", "proportional"):
        return value
    if not entries or any(isinstance(a, bool) or not isinstance(a, (int, float)) or not 0 < a <= 1 for a in entries):
        raise ValueError("is not a production exponent")
    return tuple(float(a) for a in value) if isinstance(value, (list, tuple)) else float(value)


def _scalars(value: Any) -> dict[str, str | int | float | bool | None]:
    for key, item in value.items() if isinstance(value, Mapping) else [("", value)]:
        if not isinstance(value, Mapping) or not isinstance(key, str):
            raise ValueError("is not a mapping with text keys")
        if not (item is None or isinstance(item, (str, bool, int, float))) or (
            isinstance(item, float) and not math.isfinite(item)
        ):
            raise ValueError(f"has {show(key)}: {show(item)}, which is no text, finite number or true/false")
    return dict(value)


Int = Annotated[int, Strict(), BeforeValidator(_whole)]
Switch = Annotated[int, Strict(), BeforeValidator(_switch)]
Bool = Annotated[bool, Strict()]
Float = Annotated[float, Strict(), BeforeValidator(_float32)]
Amounts = Annotated[tuple[Annotated[Float, Field(ge=0, le=LARGEST)], ...], Field(min_length=1, max_length=MAX_GRID)]
Grid = Annotated[Amounts, AfterValidator(_increasing)]
PositiveGrid = Annotated[Amounts, AfterValidator(_increasing), AfterValidator(_positive_maximum)]
Shares = Annotated[
    tuple[Annotated[Float, Field(ge=0, le=1)], ...],
    Field(min_length=1, max_length=MAX_GRID),
    AfterValidator(_increasing),
]
Iteration = Annotated[Int, Field(ge=0, le=MAX_ITERATIONS)]
Intervals = tuple[tuple[Iteration, Iteration], ...]
Alpha = Annotated[str | float | tuple[float, ...], PlainValidator(_alpha)]
Metadata = Annotated[dict[str, str | int | float | bool | None], PlainValidator(_scalars)]

GRID = "a list of strictly increasing numbers >= 0"
POSITIVE_GRID = f"{GRID}, the last > 0"
SHARES = "a list of strictly increasing numbers, 0 to 1"
INTERVALS = "a list of [from, to) pairs with 0 <= from < to"
ALPHA = "fixed_array, proportional, a number > 0 and <= 1, or a list of num_firms such numbers"


def key(default: Any, description: str, allowed: str = "", **bounds: Any) -> Any:
    """A field: its meaning and unit, its default, its range."""
    stated = "" if default is ... else f"; default {show(default)}"
    return Field(default, description=description + stated, json_schema_extra={"allowed": allowed}, **bounds)


def iteration(default: Any, description: str) -> Any:
    return key(default, f"{description} [iteration]", ge=0, le=MAX_ITERATIONS)


def every(default: Any, description: str) -> Any:
    return key(default, f"{description} [iterations]", ge=1, le=MAX_ITERATIONS)


def amount(default: Any, description: str) -> Any:
    return key(default, description, ge=0, le=LARGEST)


def scale(default: Any, description: str) -> Any:
    return key(default, description, gt=0, le=LARGEST)


def off(description: str, allowed: str = "", **bounds: Any) -> Any:
    return key(None, description, allowed, **bounds)
