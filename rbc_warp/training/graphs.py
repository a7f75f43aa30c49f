"""Graphs: what a training asks of a GPU again and again, recorded once and then asked by a single call.

The host then no longer limits the GPU. A graph repeats the same operations on the same memory: whatever changes from
one iteration to the next must lie in :class:`~rbc_warp.warpdrive.kernels.Words`, and nothing in it may depend on what
was read back.
"""

from __future__ import annotations

import gc
import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

MOST_GRAPHS = 32
Branches = Callable[[], AbstractContextManager[Callable[[], AbstractContextManager]]]
Replay = Callable[[], object]


class Capture:
    """How calls are recorded; this one does not. ``CudaCapture`` does."""

    def record(self, call: Callable[[], Any]) -> tuple[Replay, Any]:
        """Record what a call asks of a device, without doing it; return what does it, and the call's result, whose
        tensors every replay fills."""
        raise NotImplementedError

    def beside(self) -> AbstractContextManager:
        """Within it replays run side by side, after what was asked before; what is asked after it comes after them."""
        return nullcontext()

    @contextmanager
    def branches(self) -> Iterator[Callable[[], AbstractContextManager]]:
        """Within it, what is recorded in a branch, ``with branch():``, runs beside the other branches."""
        yield nullcontext


class CudaCapture(Capture):
    """Records by CUDA's stream capture.

    Graphs may run side by side: each has its own memory, and its own stream, by which cuBLAS chooses its own.
    ``new_stream``: makes one that our kernels can be launched on, too.
    """

    def __init__(self, new_stream: Callable[[], torch.cuda.Stream]):
        self._new_stream = new_stream
        self._branches: list[torch.cuda.Stream] | None = None  # while a call is recorded
        self._used = 0  # of the branches, also of those around these
        self._start: torch.cuda.Event | None = None  # while replays run side by side
        self._busy: list[torch.cuda.Stream] = []

    def record(self, call: Callable[[], Any]) -> tuple[Replay, Any]:
        graph, stream = torch.cuda.CUDAGraph(), self._new_stream()
        self._branches, self._used = [], 0
        try:
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                result = call()
        finally:
            self._branches = None

        def replay() -> None:
            if self._start is None:
                graph.replay()
                return
            stream.wait_event(self._start)
            with torch.cuda.stream(stream):
                graph.replay()
            self._busy.append(stream)

        return replay, result

    @contextmanager
    def beside(self) -> Iterator[None]:
        self._start = torch.cuda.current_stream().record_event()
        try:
            yield
        finally:
            self._start = None
            for stream in self._busy:
                torch.cuda.current_stream().wait_stream(stream)
            self._busy.clear()

    @contextmanager
    def branches(self) -> Iterator[Callable[[], AbstractContextManager]]:
        if self._branches is None:
            yield nullcontext
            return
        main, streams, first = torch.cuda.current_stream(), self._branches, self._used

        def branch() -> AbstractContextManager:
            if self._used == len(streams):
                streams.append(self._new_stream())
            stream = streams[self._used]
            stream.wait_stream(main)
            self._used += 1
            return torch.cuda.stream(stream)

        yield branch
        for stream in streams[first : self._used]:
            main.wait_stream(stream)
        self._used = first


@contextmanager
def _nothing_is_collected() -> Iterator[None]:
    """Keep Python from collecting garbage: a graph that is let go of while another is recorded breaks that."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@dataclass
class _Recorded:
    addresses: tuple[int, ...]
    replay: Replay | None = None
    result: Any = None


class Graphs:
    """Runs calls, and from the second time on replays them.

    The first time, a call makes what is made once; the second time it is recorded. Where recording fails, all calls are
    made as they are from then on, and a line on stderr says why. MOST_GRAPHS are kept, those replayed last.
    ``capture``: how to record; None: never.
    """

    def __init__(self, capture: Capture | None):
        self._capture = capture
        self._never = Capture()
        self._recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()

    @property
    def are_used(self) -> bool:
        """Whether calls are recorded."""
        return self._capture is not None

    def beside(self) -> AbstractContextManager:
        """See :meth:`Capture.beside`."""
        return (self._capture or self._never).beside()

    def branches(self) -> AbstractContextManager[Callable[[], AbstractContextManager]]:
        """See :meth:`Capture.branches`."""
        return (self._capture or self._never).branches()

    def run(self, key: Hashable, call: Callable[[], Any], addresses: Callable[[], tuple[int, ...]] = tuple) -> Any:
        """Make a call, or replay it; calls of equal keys ask the same of the device.

        The next replay of a call changes the tensors that this one returned. ``addresses``: of arrays that may come to
        lie elsewhere; the call is then recorded anew.
        """
        if self._capture is None:
            return call()
        recorded = self._recorded.get(key)
        if recorded is None or recorded.addresses != addresses():
            self._recorded.pop(key, None)
            result = call()
            self._recorded[key] = _Recorded(addresses())
            if len(self._recorded) > MOST_GRAPHS:
                self._recorded.popitem(last=False)
            return result
        self._recorded.move_to_end(key)
        if recorded.replay is None:
            try:
                with _nothing_is_collected():
                    recorded.replay, recorded.result = self._capture.record(call)
            except RuntimeError as error:
                self._capture = None
                self._recorded.clear()
                print(f"note: not replayed as CUDA graphs: {str(error).splitlines()[0]}", file=sys.stderr)
                return call()
        recorded.replay()
        return recorded.result
