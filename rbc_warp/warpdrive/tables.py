"""The lists of the kernels' headers: what each table holds and which arrays each kernel takes, in order.

The headers state an order once, as lists ``#define RBC_NAME(X) X(first) X(second) …``; Python reads them here, fills
tables by name, and compares the columns of states and choices with the economy's own.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from rbc_warp.economy.agents import Layout
from rbc_warp.economy.parameters import Economy
from rbc_warp.warpdrive.build import SOURCES

HEADERS = ("adam.h", "economy.h", "heads.h", "kernels.cu")


@cache
def _lists() -> dict[str, list[list[str]]]:
    """Every list of the headers by its name: its entries, each as its arguments."""
    found: dict[str, list[list[str]]] = {}
    for header in HEADERS:
        text = (SOURCES / header).read_text().replace("\\\n", " ")
        for name, entries in re.findall(r"^#define RBC_(\w+)\(X(?:, AND)?\)(.*)$", text, re.MULTILINE):
            assert name not in found, f"{header}: RBC_{name} is defined twice"
            found[name] = [re.split(r",\s*", entry) for entry in re.findall(r"X\(([^()]*)\)", entries)]
    return found


def names(table: str) -> list[str]:
    """Return the names in a list, in order: the last word of an array's type and name, else the first argument."""
    entries = _lists()[table]
    return [entry[-1] if table.endswith("_ARRAYS") else entry[0] for entry in entries]


def values(table: str) -> dict[str, int]:
    """Return a list of names with numbers."""
    return {name: int(number) for name, number in _lists()[table]}


def filled(table: str, given: Mapping[str, float], dtype: type) -> np.ndarray:
    """Return the table that a kernel indexes by name; ``given`` has the names in lower case, and no others."""
    order = [name.lower() for name in names(table)]
    assert set(order) == set(given), f"RBC_{table}: expected {order}, given {sorted(given)}"
    return np.array([given[name] for name in order], dtype=dtype)


def check_layout(economy: Economy) -> None:
    """Compare the columns of the kernels' states and choices, and the agent types, with the economy's.

    Raises:
        AssertionError: one side was changed without the other; the message shows both.
    """
    agents, firms = economy.agents, economy.num_firms
    widths = {"1": None, "J": firms}
    _check("PUBLIC", [(name, widths[width]) for name, width in _lists()["PUBLIC"]], _columns(economy.public))
    for name in ("consumer", "firm"):
        private = [column.name for column in agents[name].private.columns]
        _check(name.upper(), [column.lower() for column in names(name.upper())], private)
    for name in ("firm", "government"):
        table = f"{name.upper()}_CHOICE"
        _check(table, [column.lower() for column in names(table)], list(agents[name].choice_names))
    _check("AGENT_TYPES", names("AGENT_TYPES"), list(agents))


def _columns(layout: Layout) -> list[tuple[str, int | None]]:
    return [(column.name, column.width) for column in layout.columns]


def _check(table: str, kernels: Sequence[object], python: Sequence[object]) -> None:
    assert list(kernels) == list(python), f"cuda/: RBC_{table} has {kernels}, economy/agents.py has {python}"
