"""A policy with its optimizer: acting, and passes over a batch.

:class:`AutogradLearner` takes gradients of ``losses.py`` by autograd; ``fused.py`` has the learner that computes the
same in fused kernels. ``train.learner`` chooses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from rbc_warp.training import losses
from rbc_warp.training.losses import Batch, LossWeights
from rbc_warp.training.policy import Policy
from rbc_warp.training.processes import Processes
from rbc_warp.warpdrive.kernels import LOSS_STATISTICS, Heads

AUTOGRAD_BLOCK_ROWS = 1 << 16
FUSED_ADAM = ["cuda"]
"""Types of device where Adam is one kernel. Elsewhere its steps are rounded one by one, the same on all processors."""


class Adam(torch.optim.Adam):
    """torch's, fused on a GPU; its state is the same everywhere."""

    def __init__(self, parameter: torch.Tensor, learning_rate: float):
        self._is_fused = parameter.device.type in FUSED_ADAM
        options: dict[str, Any] = {"fused": True, "capturable": True} if self._is_fused else {}
        super().__init__([parameter], lr=learning_rate, **options)

    def state_dict(self) -> dict[str, Any]:
        return _with_options(super().state_dict(), fused=None, capturable=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(_with_options(state_dict, fused=self._is_fused or None, capturable=self._is_fused))


def _with_options(state: dict[str, Any], **options: bool | None) -> dict[str, Any]:
    """Return an optimizer's state with other options."""
    return state | {"param_groups": [group | options for group in state["param_groups"]]}


class Learner(ABC):
    """A policy and its optimizer.

    Args:
        policy: on its device.
        heads: the head table and mask, shared with the sampler.
        learning_rate: of Adam.
        dtype: of the matrix products, float32 or bfloat16; parameters, optimizer and losses stay float32.
        processes: those that share a batch.
    """

    def __init__(
        self,
        policy: Policy,
        heads: Heads,
        learning_rate: float,
        dtype: torch.dtype = torch.float32,
        processes: Processes | None = None,
    ):
        self.policy, self.heads, self.dtype = policy, heads, dtype
        self.processes = processes or Processes()
        self.optimizer = Adam(policy.flat, learning_rate)
        self.device = policy.flat.device
        self.statistics = torch.zeros(len(LOSS_STATISTICS), device=self.device)
        """Means of the loss's parts over the rows of the last update, in the order of LOSS_STATISTICS."""
        self.sums = self.statistics.new_zeros(1, len(LOSS_STATISTICS))
        """Their sums so far, in parts that are to be added up."""
        policy.flat.grad = torch.zeros_like(policy.flat)

    @abstractmethod
    def logits(self, public: torch.Tensor, private: torch.Tensor, out: torch.Tensor) -> None:
        """Put logits and values of encoded states into ``out`` (rows, actions+1) float32."""

    @abstractmethod
    def take_gradient(self, batch: Batch, weights: LossWeights) -> None:
        """Put the gradient of the mean loss into ``policy.flat.grad``; add the sums of its parts to ``sums``."""

    def expect(self, weights: LossWeights) -> None:  # noqa: B027
        """Prepare, where it helps, for updates with other weights, on batches like the last."""

    def copy(self, policy: Policy) -> Learner:
        """Make a learner of the same kind and learning rate for another policy."""
        rate = self.optimizer.param_groups[0]["lr"]
        return type(self)(policy, self.heads, rate, self.dtype)

    def update(self, batches: Iterable[Batch], weights: LossWeights, max_grad_norm: float | None) -> torch.Tensor:
        """Take an optimizer step on each batch; return the last gradient's norm before clipping, a scalar."""
        self.sums.zero_()
        norm, rows = torch.zeros((), device=self.device), 0
        for batch in batches:
            gradient = self.policy.flat.grad
            assert gradient is not None
            self.take_gradient(batch, weights)
            self.processes.sum(gradient)
            norm = torch.linalg.vector_norm(gradient)
            if max_grad_norm is not None:
                gradient.mul_((max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
            self.optimizer.step()
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
