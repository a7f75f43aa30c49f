"""``python -m rbc_warp phases RUN``: what each type learned, and what changed when firms began to."""

import argparse
import json
from pathlib import Path

from rbc_warp.analysis.phases import examine
from rbc_warp.commands.launch import add_machine_arguments, prepare_process
from rbc_warp.runs.files import write_text
from rbc_warp.runs.folder import RunDir


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rbc_warp phases", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="a rollout-… folder")
    parser.add_argument("--episodes", type=int, default=128, metavar="N", help="of each evaluation (default: 128)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    add_machine_arguments(parser)
    options = parser.parse_args(arguments)
    if options.episodes < 2:
        parser.error(f"--episodes {options.episodes}: an interval needs 2 or more")
    prepare_process(options)
    findings = examine(RunDir(options.run), options.episodes, options.backend)
    print(findings)
    if options.json:
        write_text(options.json, json.dumps(findings.to_dict(), indent=2) + "\n")
    return 0
