"""``python -m rbc_warp power``: how much the search for deviations finds of gains that are known exactly.

In economies small enough to enumerate, it compares what each searcher finds with the exact best response, and spoils
trained policies by known amounts. docs/equilibrium.md says what the figures mean.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rbc_warp.commands.launch import add_machine_arguments, prepare_process
from rbc_warp.equilibrium.power import MATTERS, QUICK, RECOVERED, Extent, Row, measure
from rbc_warp.runs.console import ProgressBar, text_table
from rbc_warp.runs.files import write_text
from rbc_warp.warpdrive.wrapper import choose_backend


def gaps_table(rows: Sequence[Row]) -> str:
    """Return a table of the undamaged rows that matter: the exact gap, and each searcher's share of it."""
    names = list(dict.fromkeys(name for row in rows for name in row.gains))
    lines = []
    for row in rows:
        shares = (f"{100 * row.gains[name].mean / row.gap:.0f}" for name in names)
        low, high = (100 * bound / row.gap for bound in (row.gains[row.best].low, row.gains[row.best].high))
        gap = f"{row.gap:.4g} ({100 * row.gap / row.scale:.3g} %)"
        best = f"{100 * row.recovered:.1f} [{low:.1f}, {high:.1f}]{'' if row.recovered >= RECOVERED else ' *'}"
        lines.append((row.economy, row.policies, str(row.seed), f"{row.agent} {row.index}", gap, *shares, best))
    heads = [f"{name}, %" for name in names]
    return text_table(("economy", "policies", "seed", "agent", "exact gap", *heads, "best [interval], %"), lines)


def damage_table(rows: Sequence[Row]) -> str:
    """Return a table of damaged agents by type and probability of the bad action."""
    lines = []
    for damage, agent in dict.fromkeys((row.damage, row.agent) for row in rows):
        group = [row for row in rows if (row.damage, row.agent) == (damage, agent)]
        known = [100 * row.gap / row.scale for row in group]
        found = sum(not row.is_missed for row in group)
        enough = sum(row.recovered >= RECOVERED for row in group)
        worst = f"{100 * min(row.recovered for row in group):.0f}"
        lines.append(
            (
                f"{damage:g}",
                agent,
                f"{min(known):.2g} to {max(known):.2g}",
                str(len(group)),
                str(found),
                str(enough),
                worst,
            )
        )
    heads = ("q", "agent", "known gain, % of value", "damaged", "found", f"≥ {RECOVERED:.0%} of it", "least, %")
    return text_table(heads, lines)


def statement(rows: Sequence[Row]) -> str:
    """Return in words what fell short, first."""
    known = [row for row in rows if not row.damage and row.matters]
    short = [row for row in known if row.recovered < RECOVERED]
    damaged = [row for row in rows if row.damage and row.matters]
    missed = [row for row in damaged if row.is_missed]
    astray = [row.astray for row in rows if row.astray]
    farthest = f" (the farthest by {max(astray):.2g} of value)" if astray else ""
    over = sum(len(row.over_reports) for row in rows)
    tried = sum(len(row.gains) for row in rows)
    return (
        f"Below {RECOVERED:.0%} of the exact gap: {len(short)} of {len(known)} that matter (gap above {MATTERS:.0%} of "
        f"value or training gain, whichever is larger). Damage that no searcher is sure of: {len(missed)} of "
        f"{len(damaged)} that matter. Exact values outside measured intervals: {len(astray)} of {len(rows)}{farthest}. "
        f"Gains above the exact gap, beyond their intervals: {over} of {tried}."
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rbc_warp power", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one economy, one seed and few episodes, about a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_machine_arguments(parser)
    options = parser.parse_args(arguments)
    prepare_process(options)
    extent, began = QUICK if options.quick else Extent(), time.monotonic()
    rows = []
    with ProgressBar(None, quiet=options.quiet) as bar:
        for row in measure(extent, choose_backend(options.backend)):
            rows.append(row)
            bar.show(f"{row.economy}, {row.policies}, seed {row.seed}")
            bar.advance()
    seconds = time.monotonic() - began
    print(gaps_table([row for row in rows if not row.damage and row.matters]))
    print("", damage_table([row for row in rows if row.damage and row.matters]), "", sep="\n")
    print(statement(rows), f"{seconds:.0f} s.")
    if options.json:
        figures = [
            asdict(row) | {"matters": row.matters, "recovered": row.recovered, "over_reports": row.over_reports}
            for row in rows
        ]
        write_text(options.json, json.dumps({"extent": asdict(extent), "seconds": seconds, "rows": figures}, indent=2))
    return 0
