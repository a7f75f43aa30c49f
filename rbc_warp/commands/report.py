"""``python -m rbc_warp report RUN_OR_EXPERIMENT``: one HTML page of a run or of several, or a picture of one."""

import argparse
from pathlib import Path

from rbc_warp.analysis.picture import draw
from rbc_warp.analysis.report.page import write_report
from rbc_warp.runs.folder import RunDir

PICTURES = (".png", ".pdf", ".svg")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rbc_warp report", description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=Path, metavar="RUN_OR_EXPERIMENT", help="a rollout-… folder, or one that holds them"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="HTML page, or PNG, PDF or SVG of a run's training "
        "(default: report.html in the folder)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    target = options.output or options.folder / "report.html"
    kind = target.suffix.lower()
    if kind not in (".html", *PICTURES):
        parser.error(f"--output {target}: its ending names the format; use .html, .png, .pdf or .svg")
    if kind == ".html":
        write_report(options.folder, target)
    else:
        draw(RunDir(options.folder), target)
    print(target)
    return 0
