"""``python -m rbc_warp COMMAND``: tools that look at the machine or at a run; the launchers start runs."""

import sys
from importlib import import_module

from rbc_warp.commands.launch import clean_errors

COMMANDS = {
    "doctor": "what this machine can run, and the remedy for what is missing",
    "bench": "how fast it does so",
    "scaling": "how that grows with the number of processes",
    "power": "how much the search for deviations finds of gains that are known exactly",
    "report": "a page of interactive figures of a run or an experiment, or a picture",
    "gaps": "how far runs were from equilibrium, checkpoint by checkpoint",
    "audit": "whether its rollouts add up, were allowed, and drawn as its policies say",
    "compare": "two runs, or one under other taxes, with paired differences",
    "phases": "what each type of a run learned, and what changed when firms began to learn",
}


def usage() -> str:
    lines = [f"  {name:<8}{meaning}" for name, meaning in COMMANDS.items()]
    return "\n".join(["usage: python -m rbc_warp COMMAND …", *lines, "To train: python run_training.py --help"])


def main(arguments: list[str] | None = None) -> int:
    """Run a command with the arguments after its name; 2 where there is no such command."""
    given = sys.argv[1:] if arguments is None else arguments
    command = given[0] if given else ""
    if command in ("-h", "--help"):
        print(usage())
        return 0
    if command in COMMANDS:
        with clean_errors():
            return import_module(f"rbc_warp.commands.{command}").main(given[1:])
    print(f"{f'unknown command {command!r}' if command else 'no command given'}\n{usage()}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
