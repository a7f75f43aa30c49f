"""``python -m rbc_warp audit RUN``: do a run's rollouts add up, were actions allowed, drawn as the policies say?"""

import argparse
from pathlib import Path

from rbc_warp.analysis.audit import audit
from rbc_warp.commands.launch import positive, prepare_process
from rbc_warp.runs.folder import RunDir


def main(arguments: list[str] | None = None) -> int:
    """Print what an audit finds; 1 where something does not add up or was not allowed."""
    parser = argparse.ArgumentParser(prog="python -m rbc_warp audit", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="a rollout-… folder")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: all cores)")
    options = parser.parse_args(arguments)
    prepare_process(options)
    findings = audit(RunDir(options.run))
    print(findings)
    return 0 if findings.is_sound else 1
