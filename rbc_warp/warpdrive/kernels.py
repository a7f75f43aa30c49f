"""The parts that both backends share: WarpDrive's reset and sampler, run by our own kernels, and the fused loss.

A kernel is called as WarpDrive calls its own, ``kernel(*arguments, block=…, grid=(environments, 1))``; pointers come
from the data manager or from :meth:`Kernels.pointer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from warp_drive.managers.data_manager import CUDADataManager
from warp_drive.managers.function_manager import CUDAEnvironmentReset, CUDAFunctionManager, CUDASampler

from rbc_warp.warpdrive import tables

THREADS_PER_BLOCK = 128
RESET_KERNEL, ENCODE_KERNEL, SAMPLE_KERNEL = "CudaRbcReset", "CudaRbcEncode", "CudaRbcSample"
RETURNS_KERNEL, LOSS_KERNEL = "CudaRbcReturns", "CudaRbcLoss"
DEFAULT_KERNELS = [RESET_KERNEL, ENCODE_KERNEL, SAMPLE_KERNEL, RETURNS_KERNEL, LOSS_KERNEL]
ADD_RELU_KERNEL, MASK_KERNEL = "CudaRbcAddRelu", "CudaRbcMaskAndSum"
NORM_KERNEL, ADAM_KERNEL = "CudaRbcNorm", "CudaRbcAdam"
LEARNING_KERNELS = [ADD_RELU_KERNEL, MASK_KERNEL, NORM_KERNEL, ADAM_KERNEL]  # the host has torch's instead

LOSS_STATISTICS = tuple(name.lower() for name in tables.names("LOSS_STATISTICS"))
DRAW_GREEDY, DRAW_FROM_PROBABILITIES = (tables.values("DRAW_FLAGS")[name] for name in ("GREEDY", "FROM_PROBABILITIES"))
LOSS_BLOCKS = 4096  # at most, of the loss kernel; each adds to statistics of its own
MOST_BLOCK_ROWS = 32  # of a kernel that works on rows of logits; a power of 2
THREADS, PORTIONS = tables.values("THREADS"), tables.values("PORTIONS")
"""Of a block, by kernels that say so; and what their launches have to fit."""
ALIGNED = {"cpu": 1, "cuda": 8}  # numbers: a GPU's fast products want rows to begin at multiples of it
MOST_WORD_BYTES = 1 << 20
WORD_ARRAYS = ("stage", "draw_words")
SHARED_BYTES = 48 * 1024  # of a block on a GPU, without asking
MOST_SHARED_BYTES = 227 * 1024  # with asking, on sm_90 and sm_100; other GPUs have less
NULL = np.uintp(0)  # in place of an array that a kernel is to leave out
SAMPLE_COLUMNS = ("actions", "log_probability", "advantage", "target", "value")


@dataclass(frozen=True)
class Loss:
    """The data of a batch's loss, besides the network's outputs, and the place where its parts are added up."""

    heads: Heads
    sample: Mapping[str, torch.Tensor]
    """By SAMPLE_COLUMNS: ``actions`` (rows, heads) int32, the others (rows,) float32."""
    weights: torch.Tensor  #: (6,) float32, in the order of RBC_LOSS.
    statistics: torch.Tensor
    """(``Kernels.loss_parts``, 5) float32, in the order of LOSS_STATISTICS: a kernel adds the sums over its rows,
    always the same rows to the same part."""

    def of(self, rows: slice) -> Loss:
        """Return the loss of some of the rows."""
        return replace(self, sample={name: column[rows] for name, column in self.sample.items()})


@dataclass(frozen=True)
class Layers:
    """Views of a parameter vector (or of its gradient): weights (out, in) and biases (out,)."""

    public: torch.Tensor
    private: torch.Tensor
    bias1: torch.Tensor
    weight2: torch.Tensor
    bias2: torch.Tensor
    weight3: torch.Tensor  #: (actions + 1, hidden): all heads one after the other, then the value.
    bias3: torch.Tensor


@dataclass(frozen=True)
class Moments:
    """Adam's state, of n parameters."""

    steps: torch.Tensor  #: A scalar.
    mean: torch.Tensor  #: (n,) of the gradients.
    square: torch.Tensor  #: (n,) mean of their squares.


@dataclass(frozen=True)
class Copy:
    """The parameters from one of them on, as products read them, filled up with numbers that stay as they are."""

    numbers: torch.Tensor  #: float32 or bfloat16, all one after the other.
    first: int  #: The parameter that is copied first.
    hidden: int
    num_private: int
    inputs: int  #: So far apart lie the first ``hidden`` rows of ``num_private`` numbers.
    outputs: int
    gap: int  #: How many numbers more come before the last ``outputs``.

    def follow(self, parameters: torch.Tensor) -> None:
        """Take the parameters (n,) as they are."""
        start, stop = self.first + self.hidden * self.num_private, len(parameters) - self.outputs
        begin = self.hidden * self.inputs
        rows = self.numbers[:begin].view(self.hidden, self.inputs)[:, : self.num_private]
        rows.copy_(parameters[self.first : start].view(self.hidden, self.num_private))
        self.numbers[begin:].narrow(0, 0, stop - start).copy_(parameters[start:stop])
        self.numbers[begin:].narrow(0, stop - start + self.gap, self.outputs).copy_(parameters[stop:])


class Kernels(Protocol):
    """What a backend's function manager adds to WarpDrive's."""

    loss_parts: int  #: Rows of a loss's statistics.
    has_adam: bool  #: Whether it takes steps of Adam; else torch does.
    draws_from_rounded: bool  #: Whether the sampler is to be given logits in the products' precision, else float32.

    def pointer(self, tensor: torch.Tensor) -> Any: ...
    def loss(self, logits: torch.Tensor, loss: Loss) -> None:
        """Replace ``logits`` (rows, actions+1) by the loss gradient; add to the loss statistics. On a GPU rows may lie
        further apart; what is between them becomes 0."""

    def add_relu(self, x: torch.Tensor, shared: torch.Tensor) -> None:
        """Make x (rows, columns) max(x + shared, 0), rounded after the sum.

        shared: (groups, columns) float32, a row to each group of rows; rounded to x's precision before.
        """

    def mask_and_sum(self, gradient: torch.Tensor, activation: torch.Tensor | None, sums: torch.Tensor) -> None:
        """Set the gradient (rows, columns) to 0 where there is an activation that is not positive; put its sums over
        each group of rows into ``sums`` (groups, columns) float32."""

    def adam(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        moments: Moments,
        rate: torch.Tensor,
        settings: torch.Tensor,
        norm: torch.Tensor,
        copy: Copy | None,
    ) -> None:
        """Take a step of Adam, by a scalar rate and settings in the order of RBC_ADAM; put the gradient's norm into
        ``norm``, and the parameters into their copy."""

    def network(self, dtype: torch.dtype, hidden: int) -> Any:
        """Return what runs a whole network with such products and hidden layers as one kernel (``host.py``); None."""


class Words:
    """Small arrays that the host sets and kernels read, in one block of memory: one copy brings a device all of them.

    Args:
        is_apart: whether the device has memory of its own.
    """

    def __init__(self, device: torch.device, is_apart: bool):
        self._host = np.zeros(MOST_WORD_BYTES, dtype=np.uint8)
        shared = torch.from_numpy(self._host)
        self._device = torch.zeros_like(shared, device=device) if is_apart else shared
        self._is_apart, self._is_stale, self._used = is_apart, False, 0

    def take(self, start: np.ndarray) -> torch.Tensor:
        """Return an array on the device for :meth:`set`, which is to start like this: a view of the block, or where
        that has no room left, an array of its own."""
        first, stop = self._used, self._used + start.nbytes
        if stop > MOST_WORD_BYTES:
            return torch.from_numpy(start).to(self._device.device, copy=True)
        self._used = (stop + 15) // 16 * 16
        view = self._device[first:stop].view(torch.from_numpy(start).dtype).view(start.shape)
        self.set(view, start)
        self.send()
        return view

    def set(self, view: torch.Tensor, values: np.ndarray) -> None:
        """Give an array other values, from the next :meth:`send` on."""
        if view.untyped_storage().data_ptr() != self._device.untyped_storage().data_ptr():
            view.copy_(torch.from_numpy(values))
            return
        first = view.storage_offset() * view.element_size()
        held, new = self._host[first : first + values.nbytes].view(values.dtype), values.reshape(-1)
        if not np.array_equal(held, new):
            held[:] = new
            self._is_stale = True

    def send(self) -> None:
        """Bring the device what was set; where nothing changed, do nothing. The host does not wait."""
        if self._is_apart and self._is_stale:
            block = torch.from_numpy(self._host[: self._used])
            if self._device.is_cuda:
                block = block.pin_memory()  # torch keeps it until the copy is done
            self._device[: self._used].copy_(block, non_blocking=True)
        self._is_stale = False


class Heads:
    """The action heads of one agent type on a device: ``offsets`` (heads+1,) int32, ``allowed`` (actions,) uint8.

    words: a place for ``allowed``.
    """

    def __init__(self, sizes: list[int], device: torch.device | str, words: Words | None = None):
        self.sizes = list(sizes)
        self.num_actions = sum(sizes)
        self.offsets = torch.tensor([0, *np.cumsum(sizes)], dtype=torch.int32, device=device)
        everything = np.ones(self.num_actions, dtype=np.uint8)
        self.allowed = words.take(everything) if words else torch.from_numpy(everything).to(device)


@dataclass(frozen=True)
class RowBlock:
    """A block of a kernel that works on rows of logits: how many rows, and shared memory in bytes.

    A thread takes one head of a row after the other; where there are few heads, the others load rows.
    """

    rows: int
    shared: int

    @classmethod
    def of(cls, numbers: int, num_heads: int) -> RowBlock:
        """Return the block that keeps so many numbers of each row; fewer rows where they are very long."""
        rows = MOST_BLOCK_ROWS
        while rows > 1 and cls._bytes(rows, numbers, num_heads) > SHARED_BYTES:
            rows //= 2
        return cls(rows, cls._bytes(rows, numbers, num_heads))

    @staticmethod
    def _bytes(rows: int, numbers: int, num_heads: int) -> int:
        """Rows an odd number of words apart, in another bank each; then a word for each head."""
        return 4 * (rows * (numbers | 1) + num_heads)


def aligned(number: int, device: torch.device) -> int:
    """Return to how many private inputs, or outputs, a network's are filled up with zeros on a device."""
    return -(-number // ALIGNED[device.type]) * ALIGNED[device.type]


def whole_rows(rows: torch.Tensor) -> torch.Tensor:
    """Return rows (n, columns) with what lies between them, (n, numbers from row to row)."""
    assert rows.stride(0) >= rows.shape[1]
    return rows.as_strided((len(rows), rows.stride(0)), rows.stride())


def loss_block(num_actions: int, num_heads: int, pitch: int) -> RowBlock:
    """A block of the loss kernel: logits and value, ``pitch`` numbers from row to row, then weights and a gradient,
    each head's softmax terms, statistics."""
    terms = len(tables.names("SOFTMAX")) * num_heads + len(LOSS_STATISTICS)
    return RowBlock.of(pitch + num_actions + 1 + terms, num_heads)


def sample_block(rows: Iterable[torch.Tensor], heads: Iterable[Heads]) -> RowBlock:
    """A block of the sampler, which takes rows of any type: logits and value, then a draw of each head."""
    counts = [len(each.sizes) for each in heads]
    return RowBlock.of(max(each.stride(0) + 2 * n for each, n in zip(rows, counts, strict=True)), max(counts))


class TensorData(CUDADataManager):
    """Keeps every array of WarpDrive's as a torch tensor on ``device``, torch-accessible or not, so that copies take
    the same stream as all else. An array may have a second name.

    What a type without private state observes, (E, n, d), is the public state (E, d): ``shared`` says so.
    """

    device: torch.device
    is_apart: bool  #: Whether the device has memory of its own.
    pointer: Callable[[torch.Tensor], Any]  #: A tensor's address as the backend's kernels take it.

    def __init__(self, shared: Mapping[str, str] | None = None, **sizes: int):
        self._tensors: dict[str, torch.Tensor] = {}
        self.shared = dict(shared or {})
        self.words = Words(self.device, self.is_apart)
        """Where arrays lie that the host sets again and again."""
        super().__init__(**sizes)

    def _type_warning_helper(self, *unused: Any, **unused_too: Any) -> None:
        """Say nothing: 64-bit values become 32-bit ones on purpose."""

    def _to_device(self, name: str, name_on_device: str | None = None, torch_accessible: bool = False) -> None:
        target = name if name_on_device is None else name_on_device
        assert target not in self._device_data_pointer
        if target in self.shared:
            first = self._tensors[self.shared[target]]
            tensor = first.unsqueeze(1).expand(self._host_data[target].shape)
        elif target in WORD_ARRAYS:
            tensor = self.words.take(self._host_data[name])
        else:  # copied: a start value and its copy are two arrays
            tensor = torch.from_numpy(self._host_data[name]).to(self.device, copy=True)
        self._tensors[target] = tensor
        self._device_data_pointer[target] = self.pointer(tensor)
        if torch_accessible:
            self._device_data_via_torch[target] = tensor

    def pull_data_from_device(self, name: str) -> Any:
        if name in self._scalar_data_list:
            return self._host_data[name]
        return self._tensors[name].to("cpu", copy=True).numpy()

    def reset_device(self, name: str | None = None) -> None:
        for key in self._host_data if name is None else [name]:
            if key in WORD_ARRAYS:
                self.words.set(self._tensors[key], self._host_data[key])
                self.words.send()
            elif key in self._tensors:
                self._tensors[key].copy_(torch.from_numpy(self._host_data[key]))


class RbcReset(CUDAEnvironmentReset):
    """Resets environments in one kernel, which also applies the curriculum's factor to θ."""

    def register_custom_reset_function(
        self, data_manager: CUDADataManager, reset_function_name: str | None = None
    ) -> None:
        self._cuda_custom_reset = self._function_manager.get_function(RESET_KERNEL)

    def init_reset_pool(self, data_manager: CUDADataManager, seed: int | None = None) -> None:
        """There is no pool: every episode starts alike."""

    def reset_when_done(
        self, data_manager: CUDADataManager, mode: str = "if_done", undo_done_after_reset: bool = True
    ) -> None:
        if mode not in ("if_done", "force_reset"):
            raise ValueError(f"unknown reset mode {mode!r}; use 'if_done' or 'force_reset'")
        pointers = [data_manager.device_data(name) for name in tables.names("RESET_ARRAYS")]
        force = np.int32(mode == "force_reset")
        self._cuda_custom_reset(*pointers, force, block=self._block, grid=self._grid)


class Encoding:
    """Turns a part of the state, (E, n, columns) or (E, columns), into a network's inputs, on a device.

    inputs: of each the column that it is computed from, and its divisor; for digits −10^(k+1): the column's number
    mod 10^(k+1), over it.
    """

    def __init__(self, state: torch.Tensor, inputs: Sequence[tuple[int, float]]):
        self.state = state
        self.sources = torch.tensor([column for column, _ in inputs], dtype=torch.int32, device=state.device)
        self.divisors = torch.tensor([divisor for _, divisor in inputs], dtype=torch.float32, device=state.device)


class RbcEncoder:
    """Encodes what all agents see, and copies it, in one kernel; ``parts``: of RBC_SEEN, in its order."""

    def __init__(self, function_manager: CUDAFunctionManager, parts: Sequence[Encoding]):
        self._manager, self.parts = function_manager, tuple(parts)
        self._kernel = function_manager.get_function(ENCODE_KERNEL)

    def encode(self, encoded: Sequence[torch.Tensor | None], copies: Sequence[torch.Tensor | None]) -> None:
        """Put the inputs of each part into ``encoded``, float32 or bfloat16, whose rows may be longer, and its numbers
        into ``copies``."""
        arguments: list[Any] = []
        for part, inputs, copy in zip(self.parts, encoded, copies, strict=True):
            columns = part.state.shape[-1]
            rows = part.state.numel() // (columns * self._manager._num_envs)
            is_rounded = inputs is not None and inputs.dtype == torch.bfloat16
            pitch = 0 if inputs is None else inputs.shape[-1]
            arguments += [np.int32(number) for number in (rows, columns, len(part.sources), pitch, is_rounded)]
            given = (part.state, part.sources, part.divisors, inputs, copy)
            arguments += [NULL if tensor is None else self._manager.pointer(tensor) for tensor in given]
        self._kernel(*arguments, block=self._manager.block, grid=self._manager.grid)


def advantages_and_targets(
    function_manager: CUDAFunctionManager,
    rewards: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    gamma: float,
    gae_lambda: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what ``losses.advantages_and_targets`` returns of rewards / scale, bit for bit, from one kernel.

    rewards, values: (T, E, n).
    """
    advantages, targets = torch.empty_like(values), torch.empty_like(values)
    sizes = np.int32(values.shape[2]), np.int32(len(values)), np.int32(gae_lambda == 1.0)
    numbers = np.float32(scale), np.float32(gamma), np.float32(gamma * gae_lambda)
    arrays = [function_manager.pointer(array) for array in (rewards, values, advantages, targets)]
    kernel = function_manager.get_function(RETURNS_KERNEL)
    kernel(*sizes, *numbers, *arrays, block=function_manager.block, grid=function_manager.grid)
    return advantages, targets


class RbcSampler(CUDASampler):
    """Draws the actions of all agents and heads in one kernel. Nothing is stored: a draw depends on its coordinates
    (seed, iteration, period, environment, agent, head) only."""

    def __init__(self, function_manager: CUDAFunctionManager):
        super().__init__(function_manager)
        self._kernel = function_manager.get_function(SAMPLE_KERNEL)
        self.seed = 0

    def init_random(self, seed: int | None = None) -> None:
        self.seed = int(seed or 0)
        self._random_initialized = True

    def register_actions(self, *unused: Any, **unused_too: Any) -> None:
        """The kernel keeps no cumulative distributions, so there is nothing to register."""

    def sample(
        self,
        data_manager: CUDADataManager,
        distribution: Mapping[str, torch.Tensor],
        action_name: str = "",
        *,
        heads: dict[str, Heads],
        record: bool = True,
        **sample_params: Any,
    ) -> None:
        """Draw into ``sampled_actions_<type>`` and, if ``record``, into the period's slot of ``*_batch_<type>``.

        distribution: per type (E·n, actions+1) logits of all heads, then the value, float32 or all bfloat16; rows may
            lie further apart.
        heads: per type the head table and mask. The other coordinates stand in the array ``draw_words``.
        """
        manager = self._function_manager
        shape = sample_block([distribution[agent] for agent in heads], heads.values())
        (is_rounded,) = {rows.dtype == torch.bfloat16 for rows in distribution.values()}
        arguments = [data_manager.device_data(name) for name in ("sizes", "draw_words", "_timestep_")]
        arguments += [np.int32(is_rounded), np.int32(shape.rows)]
        blocks = 0
        for agent in heads:
            blocks += -(-len(distribution[agent]) // shape.rows)
            arguments += [
                np.int32(len(distribution[agent]) // self._num_envs),
                np.int32(len(heads[agent].sizes)),
                manager.pointer(heads[agent].offsets),
                manager.pointer(heads[agent].allowed),
                manager.pointer(whole_rows(distribution[agent])),
                np.int32(distribution[agent].stride(0)),
                data_manager.device_data(f"sampled_actions_{agent}"),
                *(
                    data_manager.device_data(f"{name}_batch_{agent}") if record else NULL
                    for name in ("sampled_actions", "log_probabilities", "values")
                ),
            ]
        grid = self._num_envs, -(-blocks // self._num_envs)
        self._kernel(*arguments, block=(THREADS["SAMPLE"], 1, 1), grid=grid, shared=shape.shared)
