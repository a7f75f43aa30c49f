"""``python -m rbc_warp COMMAND``, where the package is installed also ``rbc-warp COMMAND``."""

import sys
from importlib import import_module

from rbc_warp import __version__
from rbc_warp.commands.launch import clean_errors
from rbc_warp.errors import DONE, USER

COMMANDS = {
    "train": "train the agents of an economy, or of a sweep of economies, as run_training.py does",
    "best-response": "how far a run is from an equilibrium, as run_best_response.py does",
    "doctor": "what this machine can run, and the remedy for what is missing",
    "bench": "how fast it does so",
    "scaling": "how that grows with the number of processes",
    "power": "how much the search for deviations finds of gains that are known exactly",
    "report": "a page of interactive figures of a run or an experiment, or a picture",
    "gaps": "how far runs were from equilibrium, checkpoint by checkpoint",
    "audit": "whether its rollouts add up, were allowed, and drawn as its policies say",
    "compare": "two runs, or one under other taxes, with paired differences",
    "results": "docs/results.md: all its runs, tests and figures",
    "phases": "what each type of a run learned, and what changed when firms began to learn",
}


def usage() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{meaning}" for name, meaning in COMMANDS.items()]
    start = ["usage: python -m rbc_warp COMMAND …", "       rbc-warp COMMAND …    where the package is installed"]
    return "\n".join([*start, *lines, "What a command takes: python -m rbc_warp COMMAND --help"])


def main(arguments: list[str] | None = None) -> int:
    """Run a command with the arguments after its name; 2 where there is no such command."""
    with clean_errors():
        return _run(sys.argv[1:] if arguments is None else arguments)


def _run(given: list[str]) -> int:
    command = given[0] if given else ""
    if command in ("-h", "--help"):
        print(usage())
        return DONE
    if command == "--version":
        print(f"rbc-warp {__version__}")
        return DONE
    if command in COMMANDS:
        return import_module(f"rbc_warp.commands.{command.replace('-', '_')}").main(given[1:])
    print(f"{f'unknown command {command!r}' if command else 'no command given'}\n{usage()}", file=sys.stderr)
    return USER


if __name__ == "__main__":
    sys.exit(main())
