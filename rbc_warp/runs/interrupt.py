"""Requests to stop: signals, and the end of a parent process."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupt:
    """Turns Ctrl-C into a request to stop after the current iteration; a second Ctrl-C stops at once.

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
            if self._signalled:
                raise KeyboardInterrupt
            self._signalled = True

        try:
            before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: whoever runs this thread interrupts it
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
