"""A policy with its optimizer: acting, and passes over a batch.

:class:`AutogradLearner` takes gradients of ``losses.py`` by autograd; ``fused.py`` has the learner that computes the
same in fused kernels. ``train.learner`` chooses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import torch

from rbc_warp.training import losses
from rbc_warp.training.adam import Adam
from rbc_warp.training.graphs import Capture
from rbc_warp.training.losses import Batch, LossWeights
from rbc_warp.training.policy import Policy
from rbc_warp.training.processes import Processes
from rbc_warp.warpdrive.kernels import LOSS_STATISTICS, Heads

AUTOGRAD_BLOCK_ROWS = 1 << 16


class Learner(ABC):
    """A policy and its optimizer.

    Args:
        policy: on its device.
        heads: the head table and mask, shared with the sampler.
        learning_rate: of Adam.
        dtype: of the matrix products, float32 or bfloat16; parameters, optimizer and losses stay float32.
        processes: those that share a batch.
        optimizer: Adam, to be given if it is not torch's.
    """

    def __init__(
        self,
        policy: Policy,
        heads: Heads,
        learning_rate: float,
        dtype: torch.dtype = torch.float32,
        processes: Processes | None = None,
        optimizer: Adam | None = None,
    ):
        self.policy, self.heads, self.dtype = policy, heads, dtype
        self.processes = processes or Processes()
        self.optimizer = optimizer or Adam(policy.flat, learning_rate)
        self.device = policy.flat.device
        self.statistics = torch.zeros(len(LOSS_STATISTICS), device=self.device)
        """Means of the loss's parts over the rows of the last update, in the order of LOSS_STATISTICS."""
        self.sums = self.statistics.new_zeros(1, len(LOSS_STATISTICS))
        """Their sums so far, in parts that are to be added up."""
        self.branches = Capture().branches
        """For what may run side by side in a graph."""
        policy.flat.grad = torch.zeros_like(policy.flat)

    @abstractmethod
    def logits(self, public: torch.Tensor, private: torch.Tensor, out: torch.Tensor) -> None:
        """Put logits and values of encoded states into ``out`` (rows, actions+1), float32 or rounded as products. Rows
        may lie further apart; what is between them, and behind the last, may change."""

    @abstractmethod
    def take_gradient(self, batch: Batch, weights: LossWeights) -> None:
        """Put the gradient of the mean loss into ``policy.flat.grad``; add the sums of its parts to ``sums``."""

    def expect(self, weights: LossWeights) -> None:  # noqa: B027
        """Prepare, where it helps, for updates with other weights, on batches like those before."""

    def refresh(self) -> None:  # noqa: B027
        """Take note of parameters that were changed otherwise than by :meth:`update`; :meth:`logits` does, too."""

    def addresses(self) -> tuple[int, ...]:
        """Return where the arrays lie that an update works on."""
        moments = self.optimizer.state.get(self.policy.flat, {})
        arrays = [self.policy.flat, self.policy.flat.grad, *moments.values()]
        return tuple(array.data_ptr() for array in arrays if array is not None)

    def copy(self, policy: Policy) -> Learner:
        """Make a learner of the same kind and learning rate for another policy."""
        return type(self)(policy, self.heads, self.optimizer.learning_rate, self.dtype)

    def update(self, batches: Iterable[Batch], weights: LossWeights, max_grad_norm: float | None) -> torch.Tensor:
        """Take an optimizer step on each batch; return the last gradient's norm before clipping, a scalar."""
        self.sums.zero_()
        norm, rows = torch.zeros((), device=self.device), 0
        for batch in batches:
            gradient = self.policy.flat.grad
            assert gradient is not None
            self.take_gradient(batch, weights)
            self.processes.sum(gradient)
            norm = self.optimizer.clipped_step(max_grad_norm)
            rows += len(batch.actions)
        torch.sum(self.sums, 0, out=self.statistics).div_(rows)
        return norm


class AutogradLearner(Learner):
    """Gradients of ``losses.py`` by autograd."""

    def logits(self, public: torch.Tensor, private: torch.Tensor, out: torch.Tensor) -> None:
        with torch.no_grad(), self._precision():
            out.copy_(self._outputs(public, private))

    def take_gradient(self, batch: Batch, weights: LossWeights) -> None:
        assert self.policy.flat.grad is not None
        self.policy.flat.grad.zero_()
        allowed = self.heads.allowed.bool()
        total_rows = len(batch.actions) * self.processes.world_size
        for part in _parts(batch):
            with torch.enable_grad():
                with self._precision():
                    outputs = self._outputs(part.public, part.private)
                loss, parts = losses.loss(outputs.float(), part, weights, allowed, self.heads.sizes)
                (loss.sum() / total_rows).backward()
            self.sums[0] += torch.stack([parts[name].sum() for name in LOSS_STATISTICS])

    def _outputs(self, public: torch.Tensor, private: torch.Tensor) -> torch.Tensor:
        agents = len(private) // len(public)
        return self.policy.encoded_outputs(public.repeat_interleave(agents, 0), private.float())

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def _parts(batch: Batch) -> Iterator[Batch]:
    """Yield the batch in parts of whole observations, so that activations fit into memory."""
    agents = len(batch.actions) // len(batch.public)
    step = max(1, AUTOGRAD_BLOCK_ROWS // agents)
    for start in range(0, len(batch.public), step):
        rows = slice(start * agents, (start + step) * agents)
        columns = {name: column[rows] for name, column in vars(batch).items() if name != "public"}
        yield Batch(public=batch.public[start : start + step], **columns)
