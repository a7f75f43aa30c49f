"""``python -m rbc_warp gaps RUN_OR_EXPERIMENT``: how gaps shrink with training, from the verdicts of runs."""

import argparse
from pathlib import Path

from rbc_warp.analysis.gaps import draw, points_of, table
from rbc_warp.runs.folder import RunDir, find_runs


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rbc_warp gaps", description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=Path, metavar="RUN_OR_EXPERIMENT", help="a rollout-… folder, or one that holds them"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="draw a PNG, PDF or SVG there, too")
    options = parser.parse_args(arguments)
    if options.output and options.output.suffix.lower() not in (".png", ".pdf", ".svg"):
        parser.error(f"--output {options.output}: its ending names the format; use .png, .pdf or .svg")
    runs = find_runs(options.folder) or [RunDir(options.folder)]
    points = sorted(
        (point for run in runs for point in points_of(run)), key=lambda point: (point.seed, point.iteration)
    )
    print(table(points))
    last = {point.run.path: point for point in points}.values()
    print(f"\n{sum(point.passed for point in last)} of {len(last)} runs pass at their last checkpoint with a verdict")
    if options.output:
        draw(points, options.output)
        print(options.output)
    return 0
