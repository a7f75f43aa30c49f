"""Cases in forked children of one warm process: torch loads once, and each case costs what it does itself."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORKERS = 2
TRIED = [0]
"""Cases that :func:`spread` has tried."""
DOCUMENTED = {0, 2, 3, 4, 130}
"""Exit codes that docs/running.md has in words, but for 1: a sweep in which a run failed."""


@dataclass(frozen=True)
class Ended:
    """How a child ended. ``code``: its exit code, minus the signal, or None where it hung and was killed."""

    code: int | None
    text: str  #: What it wrote on stdout and stderr.
    seconds: float

    def fault(self, codes: set[int] = DOCUMENTED, messages: int = 1) -> str | None:
        """Return what is wrong with how it ended; None where it ended as the documents say."""
        if self.code is None:
            return f"hung for {self.seconds:.0f} s"
        if "Traceback" in self.text:
            return f"traceback: {self.text.strip().splitlines()[-1][:200]}"
        if self.code not in codes:
            return f"exit code {self.code}: {self.text.strip()[-200:]}"
        if (number := self.text.count("error: ")) > messages:
            return f"{number} messages: {self.text.strip()[-300:]}"
        return None


class Child:
    """A function in a forked process, in a session of its own."""

    def __init__(self, function: Callable[[], Any]):
        self._out = tempfile.TemporaryFile()  # noqa: SIM115  closed in wait
        self._began = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(function)

    def _run(self, function: Callable[[], Any]) -> None:
        code = 1
        try:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for descriptor in (1, 2):
                os.dup2(self._out.fileno(), descriptor)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            code = int(function() or 0)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except Exception:
                    code = code or 1
            os._exit(code)

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = 120.0) -> Ended:
        """Wait for its end; after ``timeout`` seconds kill it."""
        status = None
        while time.monotonic() < self._began + timeout:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(0.002)
        else:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            status = None
        self._out.seek(0)
        text = self._out.read().decode(errors="replace")
        self._out.close()
        return Ended(
            None if status is None else os.waitstatus_to_exitcode(status), text, time.monotonic() - self._began
        )


def command(*words: object) -> Callable[[], int]:
    """Return a function that runs ``python -m rbc_warp WORDS``."""

    def run() -> int:
        from rbc_warp.__main__ import main

        return main([str(word) for word in words])

    return run


def spread(cases: Sequence[Any], work: Callable[[Any], str | None]) -> list[str]:
    """Do the cases in WORKERS processes; return what each that failed says."""

    def some(first: int, path: Path) -> None:
        said = []
        for case in cases[first::WORKERS]:
            try:
                fault = work(case)
            except Exception as error:
                fault = f"{type(error).__name__}: {str(error)[:300]}"
            if fault:
                said.append(f"{case}: {fault}")
        path.write_bytes(pickle.dumps(said))

    TRIED[0] += len(cases)
    with room() as folder:
        children = [(Child(lambda n=n: some(n, folder / str(n))), folder / str(n)) for n in range(WORKERS)]
        said: list[str] = []
        for child, path in children:
            ended = child.wait(timeout=3600.0)
            said += pickle.loads(path.read_bytes()) if path.exists() else [f"a worker ended: {ended}"]
    return said


@contextmanager
def room() -> Iterator[Path]:
    """A folder for a while, in memory where there is such a place."""
    fast = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="rbc_warp-", dir=fast if os.access(fast, os.W_OK) else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
