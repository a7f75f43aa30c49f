"""``python -m rbc_warp COMMAND``: tools that look at the machine. The launchers beside the package start runs."""

from __future__ import annotations

import sys

COMMANDS = {
    "doctor": "what this machine can run, and the remedy for what is missing",
    "bench": "how fast it does so",
}


def usage() -> str:
    lines = [f"  {name:<8}{meaning}" for name, meaning in COMMANDS.items()]
    return "\n".join(["usage: python -m rbc_warp COMMAND …", *lines, "To train: python run_training.py --help"])


def main(arguments: list[str] | None = None) -> int:
    """Runs a command with the arguments after its name; 2 where there is no such command."""
    given = sys.argv[1:] if arguments is None else arguments
    command = given[0] if given else ""
    if command in ("-h", "--help"):
        print(usage())
        return 0
    if command == "doctor":
        from rbc_warp.doctor import main as doctor

        return doctor(given[1:])
    if command == "bench":
        from rbc_warp.bench import main as bench

        return bench(given[1:])
    print(f"{f'unknown command {command!r}' if command else 'no command given'}\n{usage()}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
