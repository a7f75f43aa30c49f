"""Graphs: what a training asks of a GPU again and again, recorded once and then asked by a single call.

The host then no longer limits the GPU. A graph repeats the same operations on the same memory: whatever changes from
one iteration to the next must lie in :class:`~rbc_warp.warpdrive.kernels.Words`, and nothing in it may depend on what
was read back.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

MOST_GRAPHS = 32
Replay = Callable[[], object]
Capture = Callable[[Callable[[], Any]], tuple[Replay, Any]]
"""Records what a call asks of a device, without doing it; returns what does it, and the call's result, whose tensors
every replay fills."""


class CudaCapture:
    """Records by CUDA's stream capture, on torch's current stream. All graphs share one pool of memory: they never run
    side by side, and what one leaves to be read is held."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, call: Callable[[], Any]) -> tuple[Replay, Any]:
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            result = call()
        return graph.replay, result


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
        self._recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()

    @property
    def are_used(self) -> bool:
        """Whether calls are recorded."""
        return self._capture is not None

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
                recorded.replay, recorded.result = self._capture(call)
            except RuntimeError as error:
                self._capture = None
                self._recorded.clear()
                print(f"note: not replayed as CUDA graphs: {str(error).splitlines()[0]}", file=sys.stderr)
                return call()
        recorded.replay()
        return recorded.result
