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
    """Records by CUDA's stream capture. Every graph has memory of its own, also for cuBLAS: they may run side by side.

    ``new_stream``: makes one that our kernels can be launched on, too.
    """

    def __init__(self, new_stream: Callable[[], torch.cuda.Stream]):
        self._new_stream = new_stream
        self._stream = new_stream()  # of recordings
        self._is_recording = False
        self._idle: dict[int, list[torch.cuda.Stream]] = {}  # of branches, by the only stream that waits for them
        self._sides: list[torch.cuda.Stream] = []  # of replays side by side
        self._start: torch.cuda.Event | None = None  # while there are any
        self._busy = 0  # of the sides

    def record(self, call: Callable[[], Any]) -> tuple[Replay, Any]:
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        self._is_recording = True
        torch._C._cuda_clearCublasWorkspaces()  # what cuBLAS works in shall lie in the graph's memory, and stay there
        try:
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                result = call()
        finally:
            self._is_recording = False
            torch._C._cuda_clearCublasWorkspaces()
            torch.cuda.set_stream(before)  # which torch leaves where recording failed

        def replay() -> None:
            if self._start is None:
                graph.replay()
                return
            if self._busy == len(self._sides):
                self._sides.append(torch.cuda.Stream())
            stream = self._sides[self._busy]
            self._busy += 1
            stream.wait_event(self._start)
            with torch.cuda.stream(stream):
                graph.replay()

        return replay, result

    @contextmanager
    def beside(self) -> Iterator[None]:
        self._start, self._busy = torch.cuda.current_stream().record_event(), 0
        try:
            yield
        finally:
            self._start = None
            for stream in self._sides[: self._busy]:
                torch.cuda.current_stream().wait_stream(stream)

    @contextmanager
    def branches(self) -> Iterator[Callable[[], AbstractContextManager]]:
        if not self._is_recording:
            yield nullcontext
            return
        main = torch.cuda.current_stream()
        idle, used = self._idle.setdefault(main.cuda_stream, []), []

        def branch() -> AbstractContextManager:
            used.append(idle.pop() if idle else self._new_stream())
            used[-1].wait_stream(main)
            return torch.cuda.stream(used[-1])

        try:
            yield branch
        finally:
            for stream in used:
                main.wait_stream(stream)
            idle.extend(used)


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

    def __init__(self, capture: Capture | None = None):
        self.are_used = capture is not None  #: Whether calls are recorded.
        self.capture = capture or Capture()
        self._recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()

    def clear(self) -> None:
        """Let go of what is recorded."""
        self._recorded.clear()

    def run(self, key: Hashable, call: Callable[[], Any], addresses: Callable[[], tuple[int, ...]] = tuple) -> Any:
        """Make a call, or replay it; calls of equal keys ask the same of the device.

        The next replay of a call changes the tensors that this one returned. ``addresses``: of arrays that may come to
        lie elsewhere; the call is then recorded anew.
        """
        if not self.are_used:
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
                    recorded.replay, recorded.result = self.capture.record(call)
            except Exception as error:  # of torch or pycuda; where the call itself fails, it does so again below
                if isinstance(error.__context__, KeyboardInterrupt):
                    raise error.__context__ from None
                self.are_used = False
                self._recorded.clear()
                print(f"note: not replayed as CUDA graphs: {str(error).partition(chr(10))[0]}", file=sys.stderr)
                return call()
        recorded.replay()
        return recorded.result
