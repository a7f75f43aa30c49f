"""Faults that a user can mend. The launchers turn a :class:`UserError` into one message and its exit code."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WARPDRIVE = "pip install --no-deps rl-warp-drive==2.7.1"
"""What installs WarpDrive: its wheel demands pycuda and numba, which nothing on a processor needs."""


class UserError(Exception):
    """A fault that the user can mend; its message names what is wrong, what is allowed and the remedy.

    Characters that a terminal would obey, which may come from a stranger's file, are shown escaped.
    """

    exit_code = 2

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: str) -> str:
    """Return the text with control characters, but for line ends, as escape sequences."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


class ConfigError(UserError, ValueError):
    """A configuration or a command line that cannot be used; one line per fault."""


class ActionError(UserError, ValueError):
    """Actions that do not fit the economy; the message names the array, what it holds and what fits."""


class RunFileError(UserError, ValueError):
    """A file or folder of a run cannot be used: which, what is wrong, and what to do about it."""

    def __init__(self, path: Path | str, problem: str, remedy: str) -> None:
        super().__init__(str(path), problem, remedy)
        self.path, self.problem, self.remedy = Path(path), problem, remedy

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.problem}; {self.remedy}")


class ResumeError(UserError, ValueError):
    """A run cannot be continued; the message says what differs."""


class BackendError(UserError, RuntimeError):
    """The chosen backend cannot run here; the message names the remedy."""


class BuildError(UserError, RuntimeError):
    """The kernels cannot be built here; the message says what is missing and how to get it."""


@contextmanager
def needs_warpdrive() -> Iterator[None]:
    """Name the remedy where an import fails for want of WarpDrive. Raises BackendError."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "warp_drive":
            raise
        raise BackendError(f"WarpDrive is not installed; run `{WARPDRIVE}`") from error
