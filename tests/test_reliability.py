"""The scoreboard: its page says what its record says, and its faults still stand where they are to be put in."""

from __future__ import annotations

from pathlib import Path

from reliability.__main__ import PAGE, page, rows
from reliability.forks import Child
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
