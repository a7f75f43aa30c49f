"""Requests to stop: signals, and the end of a parent process."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


def stop_signals() -> list[signal.Signals]:
    """Return the signals that ask to stop; SIGHUP is not one of them under nohup, which has it ignored."""
    hangs_up = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hangs_up else [])]


class Interrupt:
    """Turns Ctrl-C, SIGTERM and the end of the terminal (SIGHUP) into a request to stop after the current iteration.

    A second Ctrl-C or SIGTERM stops at once; SIGHUP, which a shell passes on once more, does not.

    The end of the process ``parent``, if one is given that started this one, is such a request too.
    """

    def __init__(self, parent: int | None = None) -> None:
        self._signalled = False
        self._parent = parent

    @property
    def requested(self) -> bool:
        return self._signalled or (self._parent is not None and os.getppid() != self._parent)

    @contextmanager
    def watching(self) -> Iterator[None]:
        def request(signum: int, frame: object) -> None:
            if self._signalled and signum != signal.SIGHUP:
                raise KeyboardInterrupt
            self._signalled = True

        try:
            before = {number: signal.signal(number, request) for number in stop_signals()}
        except ValueError:  # not the main thread: whoever runs this thread interrupts it
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
