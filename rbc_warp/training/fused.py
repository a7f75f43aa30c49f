"""The fused learner: what ``losses.py`` states, in blocks that stay in the processor's cache.

Where the backend has the whole network as one kernel (``cuda/cpu/network.h``) it calls that; elsewhere torch multiplies
the matrices and the kernel of ``cuda/heads.h`` does everything between the logits and their gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from rbc_warp.training.adam import KernelAdam
from rbc_warp.training.learner import Learner
from rbc_warp.training.losses import Batch, LossWeights
from rbc_warp.training.policy import Policy
from rbc_warp.training.processes import Processes
from rbc_warp.warpdrive import tables
from rbc_warp.warpdrive.kernels import SAMPLE_COLUMNS, Copy, Heads, Kernels, Layers, Loss, Words, aligned, whole_rows

# Bytes of one layer's activations in a block: a processor core's cache, or a part of a GPU's memory.
BLOCK_BYTES = {"cpu": 800 * 1024, "cuda": 128 * 1024 * 1024}


def block_rows(device: torch.device, dtype: torch.dtype, hidden: int) -> int:
    """Return how many rows a block of the forward and backward passes has."""
    return BLOCK_BYTES[device.type] // (hidden * dtype.itemsize)


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return left @ right; on a GPU in float32 also where the factors are bfloat16, as the host's kernel has it."""
    if left.device.type != "cuda" or left.dtype == torch.float32:
        return left @ right
    if "dtype" in torch.ops.aten.mm.overloads():  # torch 2.8
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def take_product(left: torch.Tensor, right: torch.Tensor, total: torch.Tensor, is_first: bool) -> None:
    """Put :func:`product` into a float32 total, or add it."""
    if not is_first:
        total.add_(product(left, right))
    elif left.dtype == torch.float32:
        torch.mm(left, right, out=total)
    elif left.device.type == "cuda" and "dtype_out" in torch.ops.aten.mm.overloads():  # torch 2.8
        torch.ops.aten.mm.dtype_out(left, right, torch.float32, out=total)
    else:
        total.copy_(product(left, right))


def take_sum(rows: torch.Tensor, total: torch.Tensor, is_first: bool) -> None:
    """Put the sum of rows into a float32 total, or add it."""
    if is_first:
        torch.sum(rows, 0, dtype=torch.float32, out=total)
    else:
        total.add_(rows.sum(0, dtype=torch.float32))


class FusedLearner(Learner):
    """A learner on a backend's kernels; see :class:`Learner`."""

    def __init__(
        self,
        policy: Policy,
        heads: Heads,
        learning_rate: float,
        dtype: torch.dtype = torch.float32,
        processes: Processes | None = None,
        *,
        kernels: Kernels,
        words: Words | None = None,
    ):
        device = policy.flat.device
        self._words = words or Words(device, is_apart=device.type == "cuda")
        self.kernels, self.network = kernels, kernels.network(dtype, policy.hidden)
        self._copy = self._copy_for_products(policy, dtype)
        optimizer = None
        if kernels.has_adam:
            optimizer = KernelAdam(policy.flat, learning_rate, kernels, self._words, self._copy)
        super().__init__(policy, heads, learning_rate, dtype, processes, optimizer)
        self.sums = self.statistics.new_zeros(kernels.loss_parts, len(self.statistics))
        self._buffers: dict[tuple[str, int], torch.Tensor] = {}
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        self._tables: dict[int, torch.Tensor] = {}  # by the rows of a batch, its loss's figures on the device
        self._figures: dict[int, dict[str, float]] = {}
        self._layers = self._layers_for_products()
        self._version = -1  # of the parameters that were copied last

    def copy(self, policy: Policy) -> FusedLearner:
        rate = self.optimizer.learning_rate
        copy = FusedLearner(policy, self.heads, rate, self.dtype, kernels=self.kernels, words=self._words)
        copy.branches = self.branches
        return copy

    def _buffer(self, name: str, rows: int, columns: int | None = None) -> torch.Tensor:
        """A block's working memory; on the host it is kept between calls, on a GPU torch does that."""
        columns = columns or self.policy.hidden
        if self.device.type == "cuda":
            return torch.empty(rows, columns, dtype=self.dtype, device=self.device)
        key = (name, columns)
        held = self._buffers.get(key)
        if held is None or len(held) < rows:
            held = self._buffers[key] = torch.empty(rows, columns, dtype=self.dtype, device=self.device)
        return held[:rows]

    def _copy_for_products(self, policy: Policy, dtype: torch.dtype) -> Copy | None:
        """The parameters in the products' precision and filled up with zeros, where they are not so themselves."""
        exact, hidden, device = policy.layers(policy.flat.detach()), policy.hidden, policy.flat.device
        width, num_private = len(exact.bias3), exact.private.shape[1]
        outputs, inputs = aligned(width, device), aligned(num_private, device)
        is_filled_up = (outputs, inputs) != (width, num_private)
        if self.network is not None or (dtype == torch.float32 and not is_filled_up):
            return None
        first, gap = exact.public.numel(), (outputs - width) * hidden
        size = len(policy.flat) - first + (inputs - num_private) * hidden + gap + outputs - width
        numbers = torch.zeros(size, dtype=dtype, device=device)
        return Copy(numbers, first, hidden, num_private, inputs, width, gap)

    def _layers_for_products(self) -> Layers:
        """The parameters, or where need be their copy."""
        exact, copy = self.policy.layers(self.policy.flat.detach()), self._copy
        if copy is None:
            return exact
        hidden, outputs = copy.hidden, copy.outputs + copy.gap // copy.hidden
        shapes = [(hidden, copy.inputs), (hidden,), (hidden, hidden), (hidden,), (outputs, hidden), (outputs,)]
        parts = copy.numbers.split([math.prod(shape) for shape in shapes])
        return Layers(exact.public, *(part.view(shape) for part, shape in zip(parts, shapes, strict=True)))

    @torch.no_grad()
    def refresh(self) -> None:
        if self._version != self.policy.flat._version:
            if self._copy is not None:
                self._copy.follow(self.policy.flat)
            self._version = self.policy.flat._version

    def _blocks(self, num_observations: int, agents: int) -> Iterator[tuple[slice, slice]]:
        """Observations and rows of each block."""
        step = max(1, block_rows(self.device, self.dtype, self.policy.hidden) // agents)
        for start in range(0, num_observations, step):
            stop = min(start + step, num_observations)
            yield slice(start, stop), slice(start * agents, stop * agents)

    def _shared(self, public: torch.Tensor) -> torch.Tensor:
        """The first layer's public part, (observations, hidden) float32."""
        exact = self.policy.layers(self.policy.flat.detach())
        return torch.addmm(exact.bias1, public, exact.public.T)

    def _hidden(self, public: torch.Tensor, private: torch.Tensor, layers: Layers) -> tuple[torch.Tensor, torch.Tensor]:
        """Both hidden layers of one block of observations and rows."""
        rows = max(len(private), len(public))
        first, second = self._buffer("first", rows), self._buffer("second", rows)
        with self.branches() as branch:
            with branch():
                shared = self._shared(public)
            if private.shape[1]:
                torch.mm(private, layers.private.T, out=first)
        if private.shape[1]:
            self.kernels.add_relu(first, shared)
        else:
            torch.clamp_min(shared.to(self.dtype), 0.0, out=first)
        torch._addmm_activation(layers.bias2, first, layers.weight2.T, out=second)  # ReLU: one kernel on a GPU
        return first, second

    @torch.no_grad()
    def logits(self, public: torch.Tensor, private: torch.Tensor, out: torch.Tensor) -> None:
        agents = len(out) // len(public)
        if self.network is not None:
            self.network.network_logits(self._layers, self._shared(public), private, out)
            return
        self.refresh()
        layers = self._layers
        if out.stride(0) == len(layers.bias3):
            out = whole_rows(out)
        width = out.shape[1]
        bias3, weight3 = layers.bias3[:width], layers.weight3[:width]
        for observations, rows in self._blocks(len(public), agents):
            _, second = self._hidden(public[observations], private[rows], layers)
            if out.dtype == self.dtype:
                torch.addmm(bias3, second, weight3.T, out=out[rows])
            else:
                out[rows] = torch.addmm(bias3, second, weight3.T)

    def expect(self, weights: LossWeights) -> None:
        for rows in self._tables:
            self._set_table(rows, weights)

    def _set_table(self, rows: int, weights: LossWeights) -> None:
        """Set the figures of the loss of a batch with so many rows, in force from the next :meth:`Words.send` on."""
        figures = self._loss_figures(weights, 1.0 / (rows * self.processes.world_size))
        if figures == self._figures.get(rows):
            return
        self._figures[rows] = figures
        table = tables.filled("LOSS", figures, np.float32)
        if rows not in self._tables:
            self._tables[rows] = self._words.take(table)
        else:
            self._words.set(self._tables[rows], table)

    @staticmethod
    def _loss_figures(weights: LossWeights, row_weight: float) -> dict[str, float]:
        return {
            "clip": weights.clip,
            "entropy_weight": weights.entropy,
            "last_head_entropy_weight": weights.last_head_entropy,
            "value_weight": weights.value,
            "row_weight": row_weight,
            "use_ppo": float(weights.use_ppo),
        }

    def _loss(self, batch: Batch, weights: LossWeights) -> Loss:
        """Return the arguments from which the kernels compute the loss of a batch."""
        rows = len(batch.actions)
        self._set_table(rows, weights)
        self._words.send()
        sample = {name: getattr(batch, name) for name in SAMPLE_COLUMNS}
        return Loss(self.heads, sample, self._tables[rows], self.sums)

    @torch.no_grad()
    def take_gradient(self, batch: Batch, weights: LossWeights) -> None:
        loss = self._loss(batch, weights)
        grad = self.policy.layers(self.policy.flat.grad)
        if self.network is None:
            self._gradient_by_blocks(batch, loss, grad)
            return
        self.policy.flat.grad.zero_()  # type: ignore[union-attr]
        shared = self._shared(batch.public)
        shared_grad = torch.empty_like(shared)
        self.network.network_gradient(self._layers, shared, batch.private, loss, grad, shared_grad)
        torch.sum(shared_grad, 0, out=grad.bias1)
        torch.mm(shared_grad.T, batch.public, out=grad.public)

    def _masked_sums(self, rows: torch.Tensor, activation: torch.Tensor | None, agents: int) -> torch.Tensor:
        """Mask rows, and return their sums over each group, as ``Kernels.mask_and_sum`` does."""
        sums = torch.empty(len(rows) // agents, rows.shape[1], device=self.device)
        self.kernels.mask_and_sum(rows, activation, sums)
        return sums

    def _gradient_by_blocks(self, batch: Batch, loss: Loss, grad: Layers) -> None:
        self.refresh()
        layers, agents = self._layers, len(batch.actions) // len(batch.public)
        width, num_private = self.policy.num_actions + 1, grad.private.shape[1]
        for observations, rows in self._blocks(len(batch.public), agents):
            private, is_first = batch.private[rows], rows.start == 0
            first, second = self._hidden(batch.public[observations], private, layers)
            outputs = self._buffer("logits", len(second), len(layers.bias3))
            logits = outputs[:, :width]
            torch.addmm(layers.bias3, second, layers.weight3.T, out=outputs)
            self.kernels.loss(logits, loss.of(rows))  # logits now hold their gradient
            second_grad, first_grad = self._buffer("second_grad", len(second)), self._buffer("first_grad", len(first))
            with self.branches() as branch:
                with branch():
                    take_product(logits.T, second, grad.weight3, is_first)
                with branch():
                    take_sum(self._masked_sums(outputs, None, agents)[:, :width], grad.bias3, is_first)
                torch.mm(outputs, layers.weight3, out=second_grad)
                sums = self._masked_sums(second_grad, second, agents)
                with branch():
                    take_sum(sums, grad.bias2, is_first)
                    take_product(second_grad.T, first, grad.weight2, is_first)
                torch.mm(second_grad, layers.weight2, out=first_grad)
                shared_grad = self._masked_sums(first_grad, first, agents)
                if private.shape[1]:
                    with branch():  # this way round the narrow product is four times faster
                        narrow = product(private.T, first_grad).T[:, :num_private]
                        (grad.private.copy_ if is_first else grad.private.add_)(narrow)
                with branch():
                    take_sum(shared_grad, grad.bias1, is_first)
                take_product(shared_grad.T, batch.public[observations], grad.public, is_first)
