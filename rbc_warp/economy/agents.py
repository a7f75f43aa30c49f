"""The table of agent types: who there is, what each type sees and chooses, and how it learns.

:func:`agent_types` makes one :class:`AgentType` per type; what treats the types alike iterates over them. A column of a
table of choices is a grid of the configuration, ``agents.<column>_choices``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rbc_warp.config import AgentSettings
from rbc_warp.config.types import FIRM_CHOICE, GOVERNMENT_CHOICE

AGENT_TYPES = ("consumer", "firm", "government")

# Private states, appended to the public state in an agent's observation. A firm's one-hot number has J columns.
CONSUMER_BUDGET, CONSUMER_THETA = range(2)
FIRM_BUDGET, FIRM_CAPITAL, FIRM_ALPHA, FIRM_ONE_HOT = range(4)
# The firm's and the government's tables of joint choices.
FIRM_PRICE, FIRM_WAGE, FIRM_INVESTMENT = range(len(FIRM_CHOICE))
GOVERNMENT_INCOME_TAX, GOVERNMENT_CORPORATE_TAX = range(len(GOVERNMENT_CHOICE))

DIGITS = None
"""Scale of a column that a network sees as digits: money and inventories have no natural scale."""
CAPITAL_SCALE = 10000.0
FIRM_PENALTY_SCALE = 100.0


@dataclass(frozen=True)
class Column:
    """One quantity in a state vector, divided by ``scale`` where a network sees it."""

    name: str
    scale: float | None = 1.0
    width: int | None = None  #: Number of entries, one per firm; None for a single one.


class Layout:
    """The columns of a state vector: ``layout.prices`` is a slice, ``layout.time``, a single number's, an index."""

    def __init__(self, *columns: Column):
        self.columns = columns
        self.size = 0
        self._at: dict[str, int | slice] = {}
        for column in columns:
            end = self.size + (column.width or 1)
            self._at[column.name] = self.size if column.width is None else slice(self.size, end)
            self.size = end

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_at"][name]
        except KeyError:
            raise AttributeError(f"a state has no column {name!r}") from None

    def spans(self) -> Iterator[tuple[Column, slice]]:
        """The columns with the slices where they lie, also of single numbers."""
        for column in self.columns:
            at = self._at[column.name]
            yield column, slice(at, at + 1) if isinstance(at, int) else at


@dataclass(frozen=True)
class AgentType:
    """One type of agents, who share a policy network."""

    name: str
    count: int
    private: Layout  #: Columns of the private state; empty for a type that sees the public state only.
    head_sizes: list[int]  #: Number of actions of each independent action head, in the order of the action arrays.
    choices: np.ndarray
    """(k, columns) what the indices mean: hours for consumers, the table of joint choices for the others."""
    choice_names: tuple[str, ...]  #: Names of the columns of ``choices``.
    penalty_scale: float | None
    """Divisor of final debt in the no-Ponzi term [money]; None where the type has no budget."""
    settings: AgentSettings  #: Settings of the type's learning.

    @property
    def num_actions(self) -> int:
        """Actions of all heads together: the length of its rows of logits, and of its mask."""
        return sum(self.head_sizes)

    @property
    def num_joint_actions(self) -> int:
        """Combinations of one action per head."""
        return math.prod(self.head_sizes)

    @cached_property
    def one_changed(self) -> list[np.ndarray]:
        """For each column in which joint choices differ, (k, values): what a choice becomes with another value.

        Of a type with a single head. Entry (a, v) is the index of choice a with the column's value number v.
        """
        tables = []
        index_of = {tuple(row): index for index, row in enumerate(self.choices)}
        for column in range(self.choices.shape[1]):
            values = np.unique(self.choices[:, column])
            if len(values) > 1:
                changed = np.repeat(self.choices[:, None], len(values), axis=1)
                changed[:, :, column] = values
                tables.append(np.array([[index_of[tuple(row)] for row in rows] for rows in changed]))
        return tables

    @property
    def budget(self) -> int:
        """Column of the budget in the private state; of a type with ``penalty_scale``."""
        return int(self.private.budget)

    @property
    def is_frozen(self) -> bool:
        """True if the type plays one given action for the whole run, without a policy."""
        return self.settings.frozen_action is not None


def public_layout(economy: Any) -> Layout:
    """Return the public state's columns, for an Economy: 4J+3 numbers that every agent sees."""
    firms = economy.num_firms
    return Layout(
        Column("prices", float(economy.firm_choices[:, FIRM_PRICE].max()) or 1.0, firms),
        Column("wages", float(economy.firm_choices[:, FIRM_WAGE].max()) or 1.0, firms),
        Column("inventories", DIGITS, firms),
        Column("overdemanded", 1.0, firms),
        *(Column(name) for name in GOVERNMENT_CHOICE),
        Column("time", float(economy.num_periods)),
    )


def agent_types(economy: Any) -> dict[str, AgentType]:
    """Return the types of an Economy, by name, in the order in which agents are numbered."""
    firms = economy.num_firms
    types = (
        AgentType(
            name="consumer",
            count=economy.num_consumers,
            private=Layout(Column("budget", DIGITS), Column("theta", float(economy.theta.max()) or 1.0)),
            head_sizes=[len(economy.consumption_choices)] * firms + [len(economy.work_choices), firms],
            choices=economy.work_choices[:, None],
            choice_names=("hours",),
            penalty_scale=economy.consumer_penalty_scale,
            settings=economy.settings.get("consumer", AgentSettings()),
        ),
        AgentType(
            name="firm",
            count=firms,
            private=Layout(
                Column("budget", DIGITS),
                Column("capital", CAPITAL_SCALE),
                Column("alpha"),
                Column("one_hot", 1.0 / economy.firm_one_hot_scale, firms),
            ),
            head_sizes=[len(economy.firm_choices)],
            choices=economy.firm_choices,
            choice_names=FIRM_CHOICE,
            penalty_scale=FIRM_PENALTY_SCALE,
            settings=economy.settings.get("firm", AgentSettings()),
        ),
        AgentType(
            name="government",
            count=1,
            private=Layout(),
            head_sizes=[len(economy.government_choices)],
            choices=economy.government_choices,
            choice_names=GOVERNMENT_CHOICE,
            penalty_scale=None,
            settings=economy.settings.get("government", AgentSettings()),
        ),
    )
    return {agent.name: agent for agent in types}
