"""Faults that a user can mend. The launchers turn a :class:`UserError` into one message and its exit code."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Exit codes of all commands; docs/running.md has them in words.
DONE, FAILED, USER, NUMBERS, MACHINE, INTERRUPTED, PIPE = 0, 1, 2, 3, 4, 130, 141
MACHINE_FAULTS = {
    errno.ENOSPC: "free some space there, or choose another folder",
    errno.EDQUOT: "free some of your quota there, or choose another folder",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EIO: "the disk or its connection fails: check it, or choose another folder",
    errno.EMFILE: "raise the limit on open files (ulimit -n), or run less at once",
    errno.ENFILE: "this machine has too many open files: run less at once",
    errno.ENOMEM: "this machine has too little memory left: run less at once",
    errno.EAGAIN: "this machine has too many processes: run less at once",
    errno.ENOLCK: "this folder cannot be locked: choose one on a local disk",
    errno.ESTALE: "the disk's connection was lost: mount it again",
}
"""Faults of the operating system that are the machine's rather than the user's, with the remedy."""
USER_FAULTS = {
    errno.EACCES: "choose one that you have the rights to, or change them (chmod)",
    errno.EPERM: "choose one that you have the rights to, or change them (chmod)",
    errno.EROFS: "that file system is read-only: choose a folder on another",
    errno.ENAMETOOLONG: "use a shorter name or path",
    errno.ELOOP: "put the file or folder itself in the place of the symbolic link",
    errno.ENOTDIR: "choose another path: a part of this one is a file, not a folder",
    errno.EEXIST: "choose another path: a file is there, not a folder",
    errno.EISDIR: "name a file: this is a folder",
    errno.ENXIO: "name a regular file",
}
"""Those that are the user's, where a better remedy is known than the caller's."""

WARPDRIVE = "pip install --no-deps rl-warp-drive==2.7.1"
"""What installs WarpDrive: its wheel demands pycuda and numba, which nothing on a processor needs."""


class UserError(Exception):
    """A fault that the user can mend; its message names what is wrong, what is allowed and the remedy.

    Characters that a terminal would obey, which may come from a stranger's file, are shown escaped.
    """

    exit_code = USER

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


class FileFault(RunFileError):
    """The operating system refused to read or write: the user's fault (a missing right, say) or the machine's."""

    def __init__(self, path: Path | str, verb: str, error: OSError, remedy: str) -> None:
        number = error.errno or 0
        remedy = (MACHINE_FAULTS | USER_FAULTS).get(number, remedy)
        super().__init__(path, f"cannot be {verb}: {error.strerror or error}", remedy)
        self.exit_code = MACHINE if number in MACHINE_FAULTS else USER


class NumbersError(UserError, ArithmeticError):
    """Numbers left what floating point can hold: whose, which array, in which iteration, and what to change."""

    exit_code = NUMBERS


class MachineError(UserError, RuntimeError):
    """This machine lacks what was asked of it: memory, or a GPU that works."""

    exit_code = MACHINE


class ResumeError(UserError, ValueError):
    """A run cannot be continued; the message says what differs."""


class BackendError(UserError, RuntimeError):
    """The chosen backend cannot run here; the message names the remedy."""


class BuildError(UserError, RuntimeError):
    """The kernels cannot be built here; the message says what is missing and how to get it."""


def machine_fault(error: BaseException) -> MachineError | None:
    """Return what to say of an error that is the machine's, as a library raises it; None where it is not."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    is_gpu = type(error).__module__.startswith("pycuda") or "CUDA" in text
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in text:
        where = "the GPU" if is_gpu else "this machine"
        return MachineError(f"{where} has too little memory: {text}; lower train.batch_size, or run less at once")
    if is_gpu and isinstance(error, RuntimeError | OSError) or type(error).__module__.startswith("pycuda"):
        return MachineError(f"the GPU failed: {text}; see `python -m rbc_warp doctor`, or use --backend host")
    return None


@contextmanager
def needs_warpdrive() -> Iterator[None]:
    """Name the remedy where an import fails for want of WarpDrive. Raises BackendError."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "warp_drive":
            raise
        raise BackendError(f"WarpDrive is not installed; run `{WARPDRIVE}`") from error
