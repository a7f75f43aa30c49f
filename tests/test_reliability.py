"""The scoreboard: its page says what its record says, and its faults still stand where they are to be put in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reliability.__main__ import PAGE, page, rows
from reliability.forks import Child
from reliability.memory import BAR, growth
from reliability.seeded import SEEDS


def test_the_page_shows_the_record() -> None:
    assert PAGE.read_text() == page(rows()), "run make reliability ROW=…, which writes both"


def test_each_fault_has_its_place(root: Path) -> None:
    assert len(SEEDS) == 20
    for seed in SEEDS:
        assert (root / seed.file).read_text().count(seed.before) == 1, seed.name
        assert all((root / test).exists() for test in seed.tests), seed.name


def test_a_child_is_told_from_another() -> None:
    def failing() -> int:
        raise ValueError("on purpose")

    assert Child(lambda: 3).wait().fault() is None
    assert "traceback: ValueError: on purpose" in str(Child(failing).wait().fault())
    assert "hung" in str(Child(lambda: __import__("time").sleep(60)).wait(timeout=0.2).fault())


@pytest.mark.parametrize(("kept", "noise", "is_growth"), [(0, 0.01, False), (500, 0.01, True), (0, 20.0, True)])
def test_memory_that_grows_or_cannot_be_told_is_found(kept: int, noise: float, is_growth: bool) -> None:
    """``kept``: bytes per run, at 2,800 runs an hour; ``noise``: of a sample [MiB]."""
    hours = np.arange(1 / 3, 1.0, 1 / 2800)
    sizes = 250.0 + kept * 2800 * hours / 2**20 + noise * np.random.default_rng(5).normal(size=len(hours))
    slope, low, high = growth(hours, sizes)
    assert (high < BAR and high - low < BAR) is not is_growth
    assert low < kept * 2800 / 2**20 < high
