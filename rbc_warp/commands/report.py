"""``python -m rbc_warp report RUN``: a picture of a run, from its metrics.jsonl alone."""

import argparse
from pathlib import Path

from rbc_warp.analysis.picture import draw
from rbc_warp.runs.folder import RunDir


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rbc_warp report", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="a rollout-… folder")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="PNG, PDF or SVG (default: RUN/report.png)")
    options = parser.parse_args(arguments)
    run = RunDir(options.run)
    target = options.output or run.path / "report.png"
    if target.suffix.lower() not in (".png", ".pdf", ".svg"):
        parser.error(f"--output {target}: its ending names the format; use .png, .pdf or .svg")
    draw(run, target)
    print(target)
    return 0
