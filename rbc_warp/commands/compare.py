"""``python -m rbc_warp compare BASE REFORM``: two runs, or one under other taxes, on the same random numbers."""

import argparse
import json
from pathlib import Path

from rbc_warp.analysis.compare import compare
from rbc_warp.analysis.report.page import write_comparison
from rbc_warp.analysis.report.paper import check_png, write_png
from rbc_warp.commands.launch import add_machine_arguments, prepare_process
from rbc_warp.runs.files import write_text
from rbc_warp.runs.folder import RunDir


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rbc_warp compare", description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path, metavar="BASE", help="a rollout-… folder")
    parser.add_argument("reform", type=Path, nargs="?", metavar="REFORM", help="another (default: BASE again)")
    parser.add_argument(
        "--taxes", type=float, nargs=2, metavar=("INCOME", "CORPORATE"), help="taxes that are fixed in the reform"
    )
    parser.add_argument("--episodes", type=int, default=256, metavar="N", help="of each (default: 256)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write an HTML page there, too")
    parser.add_argument("--png", type=Path, metavar="DIR", help="write the page's figures there as PNG files, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    add_machine_arguments(parser)
    options = parser.parse_args(arguments)
    if options.reform is None and options.taxes is None:
        parser.error("name a REFORM, or give --taxes INCOME CORPORATE for BASE under other taxes")
    if options.output and options.output.suffix.lower() != ".html":
        parser.error(f"--output {options.output}: give a file that ends in .html")
    if options.png and not options.output:
        parser.error(f"--png {options.png}: the figures are those of the page; name it with --output FILE.html")
    if options.png:
        check_png(options.png)
    prepare_process(options)
    reform = RunDir(options.reform or options.base)
    found = compare(RunDir(options.base), reform, options.taxes, options.episodes, options.backend)
    print(found)
    if options.output:
        sections = write_comparison(found, options.output)
        print(options.output)
        if options.png:
            print(*write_png(sections, options.png), sep="\n")
    if options.json:
        write_text(options.json, json.dumps(found.to_dict(), indent=2) + "\n")
    return 0
