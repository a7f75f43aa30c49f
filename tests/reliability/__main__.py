"""``make reliability``, or a row of it by name: run the rows, and write docs/reliability.json and .md."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch

import rbc_warp  # noqa: F401  before WarpDrive, which imports gym: keeps gym from printing its notice
from reliability.forks import TRIED

ROOT = Path(__file__).parents[2]
RECORD, PAGE = ROOT / "docs" / "reliability.json", ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- rows: written by make reliability -->", "<!-- end of rows -->"


@dataclass(frozen=True)
class Row:
    """One row of the scoreboard. ``count``: of the full row; ``allowed``: how many may fail."""

    bar: str
    count: int
    run: Callable[[int], list[str]]
    allowed: int = 0
    make: str = "make reliability ROW={name}"


def rows() -> dict[str, Row]:
    from reliability import interruptions, memory, numbers, seeded, strangers, together

    return {
        "kills": Row(
            "runs killed at random points: none unreadable, none lost, resumed bit for bit", 400, interruptions.kills
        ),
        "writes": Row(
            "each open, write, fsync, rename, mkdir failing: one message, a documented exit code, the old state whole",
            10_000,
            interruptions.writes,
        ),
        "damaged": Row("damaged files: each told, or read as it was", 1000, strangers.damaged),
        "hostile": Row("hostile files: nothing run, nothing written outside, none hangs", 400, strangers.hostile),
        "configurations": Row("bad configurations: refused by key, before a folder", 10_000, strangers.configurations),
        "numbers": Row("12 places × NaN, ∞, −∞: exit code 3, all files finite", 36, numbers.not_finite),
        "together": Row("two of everything at once, starts of each of 6 pairs: none lost", 20, together.together),
        "sanitizers": Row("kernels under ASan and UBSan, odd sizes: silent", 150, numbers.sanitized),
        "identities": Row(
            "identities ≤ 1e-6, 20 seeds × 500 periods × open, closed × 3 sizes", 120, numbers.identities
        ),
        "seeded": Row("faults put into economy and learning: caught by the tests", 20, seeded.seeded, allowed=1),
        "soak": Row(
            "run after run in one process, after a third of the seconds: live heap and resident memory, without "
            "garbage and free pages, each grow by < 1 MiB per hour at 95 %; no more open files or threads",
            3600,
            memory.soak,
            make="make soak",
        ),
    }


def warm() -> None:
    """Import what the cases use, once for all forks of this process."""
    for name in ("train", "sweep", "audit", "phases", "best_response"):
        import_module(f"rbc_warp.commands.{name}")
    for name in ("torch.utils.tensorboard", "torch._dynamo", "rbc_warp.analysis.audit", "rbc_warp.runs.run"):
        import_module(name)
    import_module("rbc_warp.equilibrium.best_response")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m reliability", description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows by name (default: all but soak)")
    parser.add_argument("--count", type=int, metavar="N", help="cases of each row, fewer than it has; not recorded")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = rows()
    names = options.rows or [name for name in known if name != "soak"]
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no row is called {unknown[0]!r}; there are: {', '.join(known)}")
    if "writes" in names:
        from reliability.interruptions import with_faults

        with_faults()
    warm()
    failed = [name for name in names if not play(name, known[name], options.count)]
    PAGE.write_text(page(known))
    return int(bool(failed))


def play(name: str, row: Row, count: int | None) -> bool:
    """Run a row, print what failed, and record it if it was run whole."""
    print(f"{name}: {row.bar}", flush=True)
    began = time.monotonic()
    TRIED[0] = 0
    failures = row.run(count or row.count)
    tried = TRIED[0] or count or row.count
    seconds = time.monotonic() - began
    for failure in failures[:20]:
        print(f"  FAILED {failure}")
    passed = len(failures) <= row.allowed
    print(f"  {'passed' if passed else 'FAILED'}: {len(failures)} failures of {tried:,}, {seconds:.0f} s", flush=True)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if count is None:
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        record[name] = {
            "count": tried,
            "failures": len(failures),
            "seconds": round(seconds),
        }
        record[name] |= {"passed": passed, "date": date}
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    return passed


def page(known: dict[str, Row]) -> str:
    """Return the page with the rows as they are recorded."""
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    lines = ["| row | bar | cases | failed | | seconds | date | command |", "|---|---|---|---|---|---|---|---|"]
    for name, row in known.items():
        made = row.make.format(name=name)
        if name in record:
            one = record[name]
            cells = [f"{one['count']:,}", str(one["failures"]), "passed" if one["passed"] else "**failed**"]
            cells += [str(one["seconds"]), one["date"]]
        else:
            cells = ["", "", "not run", "", ""]
        lines.append(f"| {name} | {row.bar} | {' | '.join(cells)} | `{made}` |")
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
