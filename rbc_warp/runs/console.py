"""Output on a terminal: tables as text, and the progress of a long computation."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

LINES = 10
"""Number of lines that tell of a progress where there is no terminal."""


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as plain text: columns as wide as their widest entry, under a ruled head."""
    table = Table(*head, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for row in rows:
        table.add_row(*row)
    console = Console(width=10_000, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(table, markup=False, highlight=False)
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


def number_text(value: float) -> str:
    """Return a number for a table: four digits, or all of a large one's with separators."""
    return f"{value:,.0f}" if abs(value) >= 1000.0 else f"{value:.4g}"


def range_text(first: int, last: int) -> str:
    """Return "3–5", or "3" where that is all."""
    return f"{first}–{last}" if first < last else str(first)


def ranges(numbers: Sequence[int], of: Iterable[int]) -> list[str]:
    """Name ascending numbers, those that follow each other in ``of`` as a range: 3, 10–40."""
    place = {number: index for index, number in enumerate(of)}
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and place[number] == place[found[-1][1]] + 1:
            found[-1] = found[-1][0], number
        else:
            found.append((number, number))
    return [range_text(*each) for each in found]


class ProgressBar:
    """Shows how far a computation is: a bar on a terminal, now and then a line elsewhere, nothing when ``quiet``."""

    def __init__(self, total: int | None, start: int = 0, quiet: bool = False):
        self._total, self._done, self._quiet = total, start, quiet
        self._start, self._began, self._text = start, time.monotonic(), ""
        console = Console(stderr=True)
        self._bar = Progress(
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            disable=quiet or not console.is_terminal,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("", total=total, completed=start, text="", speed="")
        self._every = None if quiet or console.is_terminal or not total else max(1, (total - start) // LINES)

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def show(self, text: str) -> None:
        """Show a text beside the bar from now on."""
        self._text = text

    def advance(self, count: int = 1) -> None:
        """Count more iterations."""
        before, self._done = self._done, self._done + count
        if not self._bar.disable:
            speed = f"{(self._done - self._start) / max(time.monotonic() - self._began, 1e-9):.3g} it/s"
            self._bar.update(self._task, completed=self._done, text=self._text, speed=speed)
        elif self._every and (self._done - self._start) // self._every > (before - self._start) // self._every:
            seconds = time.monotonic() - self._began
            left = seconds / (self._done - self._start) * ((self._total or 0) - self._done)
            print(f"{self._done}/{self._total} in {seconds:.0f} s, {left:.0f} s left  {self._text}", file=sys.stderr)
