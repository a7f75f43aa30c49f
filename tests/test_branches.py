"""What may run side by side in a graph: every two accesses to the same memory, one of them a write, have an order, and
memory that one stream frees is not taken while another may still read it. Seen by vector clocks over streams."""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from trainers import as_a_gpu_multiplies, as_a_gpu_steps

from rbc_warp.config import load_config
from rbc_warp.equilibrium.game import Game, OwnPolicy
from rbc_warp.training import fused
from rbc_warp.training.fused import FusedLearner
from rbc_warp.training.graphs import CudaCapture, Graphs
from rbc_warp.training.recorder import Recorder
from rbc_warp.training.trainer import RbcTrainer
from rbc_warp.warpdrive.host import HostFunctionManager
from rbc_warp.warpdrive.kernels import Loss

SETTINGS = {
    "agents": {
        "num_consumers": 5,
        "num_firms": 3,
        "firm_trials": 2,
        "firm_training_start": 1,
        "government_training_start": 1,
        "consumer_minibatches": 2,
        "firm_passes": 2,
    },
    "world": {"maxtime": 6},
    "train": {"batch_size": 8, "num_episodes": 10},
}


class Stream:
    """Stands for one of torch's: what it has done, and of every stream what it has waited for."""

    number = itertools.count()
    waits = True  # a test lets streams not wait, to see that this is found

    def __init__(self) -> None:
        self.cuda_stream = next(self.number)
        self.seen: dict[int, int] = defaultdict(int)

    def wait_stream(self, other: Stream) -> None:
        for stream, time in other.seen.items() if self.waits else ():
            self.seen[stream] = max(self.seen[stream], time)


class Access(NamedTuple):
    stream: int
    time: int
    first: int  # byte, and the one after the last
    stop: int
    is_write: bool
    name: str


class Watch(TorchDispatchMode):
    """Notes every operation on the stream that is torch's current one, and what goes wrong."""

    def __init__(self, current: Callable[[], Stream]):
        super().__init__()
        self.current = current
        self.accesses: dict[int, list[Access]] = defaultdict(list)  # by storage
        self.alive: dict[int, StorageWeakRef] = {}
        self.made_on: dict[int, int] = {}
        self.freed: dict[int, list[list[Access]]] = defaultdict(list)  # by the stream that may take the memory again
        self.faults: list[str] = []
        self.operations, self.streams = 0, set[int]()

    def note(self, name: str, tensors: list[tuple[torch.Tensor, bool]]) -> None:
        """Note an operation: what it reads and, True, what it writes."""
        here = self.current()
        here.seen[here.cuda_stream] += 1
        self.streams.add(here.cuda_stream)
        for tensor, is_write in tensors:
            if not tensor.numel():
                continue
            storage = tensor.untyped_storage()
            self.alive.setdefault(storage._cdata, StorageWeakRef(storage))
            last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            first, stop = tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
            for other in self.accesses[storage._cdata]:
                is_unordered = other.stream != here.cuda_stream and here.seen[other.stream] < other.time
                if is_unordered and (is_write or other.is_write) and first < other.stop and other.first < stop:
                    self.faults.append(f"{name} has no order with {other.name}")
            now = Access(here.cuda_stream, here.seen[here.cuda_stream], first, stop, is_write, name)
            self.accesses[storage._cdata].append(now)

    def _note_freed(self) -> None:
        for storage in [storage for storage, reference in self.alive.items() if reference.expired()]:
            del self.alive[storage]
            accesses = self.accesses.pop(storage, [])
            if storage in self.made_on:
                self.freed[self.made_on.pop(storage)].append(accesses)

    def _note_made(self, tensor: torch.Tensor, name: str) -> None:
        """It may lie where anything lay that its stream had before."""
        here, storage = self.current(), tensor.untyped_storage()
        self.alive[storage._cdata], self.made_on[storage._cdata] = StorageWeakRef(storage), here.cuda_stream
        for other in itertools.chain(*self.freed[here.cuda_stream]):
            if other.stream != here.cuda_stream and here.seen[other.stream] < other.time:
                self.faults.append(f"{name} may take memory that {other.name} still reads")

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, name = kwargs or {}, func._schema.name
        self._note_freed()
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        result = func(*args, **kwargs)
        if func.is_view:
            return result
        before = {tensor.untyped_storage()._cdata for tensor in given}
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor) and leaf.numel()]
        made = [tensor for tensor in made if tensor.untyped_storage()._cdata not in before]
        for tensor in made:
            if tensor.untyped_storage()._cdata not in self.alive:
                self._note_made(tensor, name)
        if "empty" in name:
            return result
        arguments = [*zip(func._schema.arguments, args, strict=False)]
        arguments += [
            (argument, kwargs[argument.name]) for argument in func._schema.arguments if argument.name in kwargs
        ]
        changed = [value for argument, value in arguments if argument.alias_info and argument.alias_info.is_write]
        written = {id(tensor) for tensor in tree_leaves(changed)}
        self.operations += 1
        self.note(name, [(tensor, id(tensor) in written) for tensor in given] + [(tensor, True) for tensor in made])
        return result


class Watched(CudaCapture):
    """Watches what would be recorded, as it is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.made: list[Stream] = []
        self.stack = [Stream()]
        self.watches: list[Watch] = []
        super().__init__(self._stream_like_torch_s)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.stack[-1])
        monkeypatch.setattr(torch.cuda, "stream", self._within)

    def _stream_like_torch_s(self) -> Any:
        self.made.append(Stream())
        return self.made[-1]

    @contextmanager
    def _within(self, stream: Stream) -> Iterator[None]:
        self.stack.append(stream)
        yield
        self.stack.pop()

    @contextmanager
    def beside(self) -> Iterator[None]:
        yield

    def record(self, call: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        self._is_recording = True
        self.watches.append(Watch(lambda: self.stack[-1]))
        with self._within(self._stream), self.watches[-1]:
            result = call()
        self._is_recording = False
        return lambda: None, result


def watched(monkeypatch: pytest.MonkeyPatch, precision: str, block_bytes: int) -> Watched:
    """Train and play best responses; return what was seen of it."""
    as_a_gpu_multiplies(monkeypatch)
    as_a_gpu_steps(monkeypatch)
    monkeypatch.setitem(fused.BLOCK_BYTES, "cpu", block_bytes)
    capture, plain = Watched(monkeypatch), HostFunctionManager.loss

    def loss(self: HostFunctionManager, logits: torch.Tensor, of: Loss) -> None:
        reads = [(column, False) for column in of.sample.values()]
        if capture._is_recording:
            capture.watches[-1].note("the loss", [(logits, True), (of.statistics, True), *reads])
        with _disable_current_modes():
            plain(self, logits, of)

    def fresh(self: FusedLearner, name: str, rows: int, columns: int | None = None) -> torch.Tensor:
        return torch.empty(rows, columns or self.policy.hidden, dtype=self.dtype)

    monkeypatch.setattr(HostFunctionManager, "loss", loss)
    monkeypatch.setattr(FusedLearner, "_buffer", fresh)
    trainer = RbcTrainer(load_config(SETTINGS, [f"train.precision={precision}"]), "host", recorder=Recorder())
    trainer.graphs = trainer.updates.graphs = Graphs(capture)
    for learner in trainer.learners.values():
        learner.branches = capture.branches
    trainer.train(0, 4)
    game = Game(trainer, copy.deepcopy(dict(trainer.models)), 3, episodes=8)
    own = OwnPolicy(trainer, "firm", 1, copy.deepcopy(trainer.models["firm"]))
    for _ in range(2):
        game.evaluate(own)
    return capture


@pytest.mark.parametrize("precision, block_bytes", [("float32", 1 << 30), ("bfloat16", 128 * 4 * 20)])
def test_branches_have_an_order_where_they_share_memory(
    monkeypatch: pytest.MonkeyPatch, precision: str, block_bytes: int
) -> None:
    """In one block of rows, and in several."""
    capture = watched(monkeypatch, precision, block_bytes)
    assert sum(watch.operations for watch in capture.watches) > 1000
    for watch in capture.watches:
        assert watch.faults == []
    assert max(len(watch.streams) for watch in capture.watches) >= 6  # three networks, each with a branch
    assert len(capture.made) <= 16  # they are used again, in the next period and the next recording


def test_a_missing_wait_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "waits", False)
    assert any(watch.faults for watch in watched(monkeypatch, "float32", 1 << 30).watches)
