"""``python -m rbc_warp report RUN_OR_EXPERIMENT``: one HTML page of a run or of several, or a picture of one."""

import argparse
from pathlib import Path

from rbc_warp.analysis.picture import draw
from rbc_warp.analysis.report.page import write_report
from rbc_warp.analysis.report.paper import check_png, write_png
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
    parser.add_argument(
        "--png", type=Path, metavar="DIR", help="write every figure of the page as a PNG file, too (needs Chromium)"
    )
    options = parser.parse_args(arguments)
    target = options.output or options.folder / "report.html"
    kind = target.suffix.lower()
    if kind not in (".html", *PICTURES):
        parser.error(f"--output {target}: its ending names the format; use .html, .png, .pdf or .svg")
    if options.png and kind != ".html":
        parser.error(f"--png {options.png}: the figures are those of the page; give an --output that ends in .html")
    if options.png:
        check_png(options.png)
    if kind == ".html":
        sections = write_report(options.folder, target)
    else:
        draw(RunDir(options.folder), target)
    print(target)
    if options.png:
        print(*write_png(sections, options.png), sep="\n")
    return 0
