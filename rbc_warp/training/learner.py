"""The update rules: returns, advantages, and the passes of PPO or plain policy gradient over one batch.

:class:`Learner` computes logits and gradients in blocks that stay in the processor's cache. Where the backend has the
whole network as one kernel (``cuda/network.h``) it calls that; elsewhere torch multiplies the matrices and the fused
kernel of ``cuda/heads.h`` does everything between the logits and their gradient. ``tests/test_ppo.py`` replays both
against :meth:`Policy.outputs` and autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from rbc_warp.training.policy import HIDDEN, Policy
from rbc_warp.warpdrive.kernels import LOSS_PARAMETERS, LOSS_STATISTICS, SAMPLE_COLUMNS, Heads, Kernels, Layers, Loss

# Bytes of one layer's activations in a block: a processor core's cache, or a part of a GPU's memory.
BLOCK_BYTES = {"cpu": 800 * 1024, "cuda": 128 * 1024 * 1024}
STD_FLOOR = 1e-6


def block_rows(device: torch.device, dtype: torch.dtype) -> int:
    """How many rows a block of the forward and backward passes has."""
    return BLOCK_BYTES[device.type] // (HIDDEN * dtype.itemsize)


def discounted_returns(rewards: torch.Tensor, gamma: float) -> torch.Tensor:
    """Reward-to-go G_t = r_t + γ G_{t+1} over the first axis, (T, …) → (T, …); nothing is added at the end."""
    returns = rewards.clone()
    for t in range(len(rewards) - 2, -1, -1):
        returns[t] += gamma * returns[t + 1]
    return returns


@dataclass
class Batch:
    """What an update reads. N = T·E observations of a type with n agents each, rows = N·n in that order."""

    public: torch.Tensor
    """(N, num_public) encoded public states, float32."""
    private: torch.Tensor
    """(rows, num_private) encoded private states, in the learner's precision."""
    actions: torch.Tensor
    """(rows, heads) int32."""
    log_probability: torch.Tensor
    """(rows,) of the joint action when it was drawn."""
    value: torch.Tensor
    """(rows,) predicted when it was drawn."""
    target: torch.Tensor
    """(rows,) discounted return of reward / scale."""
    advantage: torch.Tensor
    """(rows,) target − value, standardised."""


@dataclass(frozen=True)
class LossWeights:
    """The update rule and its weights. With ``use_ppo`` off, ``clip`` is unused."""

    use_ppo: bool
    clip: float
    entropy: float
    value: float


class Learner:
    """A policy with its optimizer, buffers and blockwise forward and backward passes.

    Args:
        policy: on its device. heads: the head table and mask, shared with the sampler. kernels: the backend's.
        dtype: of the matrix products, float32 or bfloat16; parameters, optimizer and losses stay float32.
        reduce: adds a tensor up over processes, in place; the identity in a single process.
        world_size: how many processes share a batch.
    """

    def __init__(
        self,
        policy: Policy,
        heads: Heads,
        kernels: Kernels,
        learning_rate: float,
        dtype: torch.dtype = torch.float32,
        reduce: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
        world_size: int = 1,
    ):
        self.policy, self.heads, self.kernels, self.dtype = policy, heads, kernels, dtype
        self.optimizer = torch.optim.Adam([policy.flat], lr=learning_rate)
        self.reduce, self.world_size = reduce, world_size
        self.device = policy.flat.device
        self.network = kernels.network(dtype)
        self.statistics = torch.zeros(len(LOSS_STATISTICS), device=self.device)
        policy.flat.grad = torch.zeros_like(policy.flat)
        self._buffers: dict[tuple[str, int], torch.Tensor] = {}

    def _buffer(self, name: str, rows: int, columns: int = HIDDEN) -> torch.Tensor:
        """A block's working memory, kept between calls."""
        key = (name, columns)
        held = self._buffers.get(key)
        if held is None or len(held) < rows:
            held = self._buffers[key] = torch.empty(rows, columns, dtype=self.dtype, device=self.device)
        return held[:rows]

    def _rounded_layers(self) -> Layers:
        """The parameters in the products' precision."""
        return self.policy.layers(self.policy.flat.detach().to(self.dtype))

    def _blocks(self, num_observations: int, agents: int) -> Iterator[tuple[slice, slice]]:
        """Observations and rows of each block."""
        step = max(1, block_rows(self.device, self.dtype) // agents)
        for start in range(0, num_observations, step):
            stop = min(start + step, num_observations)
            yield slice(start, stop), slice(start * agents, stop * agents)

    def _hidden(self, shared: torch.Tensor, private: torch.Tensor, layers: Layers) -> tuple[torch.Tensor, torch.Tensor]:
        """Both hidden layers of one block. shared: (observations, 128), the first layer's public part."""
        rows = max(len(private), len(shared))
        first, second = self._buffer("first", rows), self._buffer("second", rows)
        if private.shape[1]:
            torch.mm(private, layers.private.T, out=first)
            self.kernels.add_relu(first, shared)
        else:
            torch.clamp_min(shared, 0.0, out=first)
        torch.mm(first, layers.weight2.T, out=second)
        self.kernels.add_relu(second, layers.bias2.unsqueeze(0))
        return first, second

    @torch.no_grad()
    def logits(self, public: torch.Tensor, private: torch.Tensor, out: torch.Tensor) -> None:
        """Logits and value of encoded states into ``out`` (rows, actions+1) float32."""
        exact = self.policy.layers(self.policy.flat.detach())
        agents = len(out) // len(public)
        shared = torch.addmm(exact.bias1, public, exact.public.T)
        if self.network is not None:
            self.network.network_logits(exact, shared, private, out)
            return
        layers, shared = self._rounded_layers(), shared.to(self.dtype)
        for observations, rows in self._blocks(len(public), agents):
            _, second = self._hidden(shared[observations], private[rows], layers)
            if self.dtype == torch.float32:
                torch.addmm(layers.bias3, second, layers.weight3.T, out=out[rows])
            else:
                out[rows] = torch.addmm(layers.bias3, second, layers.weight3.T)

    def loss(self, batch: Batch, weights: LossWeights) -> Loss:
        """The loss of a batch; its statistics are added to ``statistics``."""
        figures = {
            "CLIP": weights.clip,
            "ENTROPY_WEIGHT": weights.entropy,
            "VALUE_WEIGHT": weights.value,
            "ROW_WEIGHT": 1.0 / (len(batch.actions) * self.world_size),
            "USE_PPO": float(weights.use_ppo),
        }
        words = torch.tensor([figures[name] for name in LOSS_PARAMETERS], device=self.device)
        return Loss(self.heads, {name: getattr(batch, name) for name in SAMPLE_COLUMNS}, words, self.statistics)

    @torch.no_grad()
    def gradient(self, batch: Batch, loss: Loss) -> None:
        """Adds the loss gradient to ``policy.flat.grad`` and the loss statistics to ``statistics``."""
        exact = self.policy.layers(self.policy.flat.detach())
        grad = self.policy.layers(self.policy.flat.grad)
        shared = torch.addmm(exact.bias1, batch.public, exact.public.T)
        shared_grad = torch.empty_like(shared)
        if self.network is not None:
            self.network.network_gradient(exact, shared, batch.private, loss, grad, shared_grad)
        else:
            self._gradient_by_blocks(batch, shared.to(self.dtype), loss, grad, shared_grad)
        grad.public.add_(shared_grad.T @ batch.public)
        grad.bias1.add_(shared_grad.sum(0))

    def _gradient_by_blocks(
        self, batch: Batch, shared: torch.Tensor, loss: Loss, grad: Layers, shared_grad: torch.Tensor
    ) -> None:
        """Adds to ``grad`` all but the first layer's public part, whose gradient goes to ``shared_grad``."""
        layers, agents = self._rounded_layers(), len(batch.actions) // len(batch.public)
        for observations, rows in self._blocks(len(batch.public), agents):
            private = batch.private[rows]
            first, second = self._hidden(shared[observations], private, layers)
            logits = self._buffer("logits", len(second), self.policy.num_actions + 1)
            torch.addmm(layers.bias3, second, layers.weight3.T, out=logits)
            self.kernels.loss(logits, loss.of(rows))  # logits now hold their gradient
            grad.weight3.add_(logits.T @ second)
            grad.bias3.add_(self._masked_sum(logits, None, agents))
            second_grad, first_grad = self._buffer("second_grad", len(second)), self._buffer("first_grad", len(first))
            torch.mm(logits, layers.weight3, out=second_grad)
            grad.bias2.add_(self._masked_sum(second_grad, second, agents))
            grad.weight2.add_(second_grad.T @ first)
            torch.mm(second_grad, layers.weight2, out=first_grad)
            self.kernels.mask_and_sum(first_grad, first, shared_grad[observations])
            if private.shape[1]:
                grad.private.add_((private.T @ first_grad).T)  # this way round the narrow product is four times faster

    def _masked_sum(self, gradient: torch.Tensor, activation: torch.Tensor | None, agents: int) -> torch.Tensor:
        """The sum of a gradient's rows (columns,), after masking it in place by the activation it belongs to."""
        sums = torch.empty(len(gradient) // agents, gradient.shape[1], device=self.device)
        self.kernels.mask_and_sum(gradient, activation, sums)
        return sums.sum(0)

    def standardise(self, advantage: torch.Tensor) -> torch.Tensor:
        """(x − mean) / std over the batch of all processes."""
        moments = torch.stack([advantage.sum(dtype=torch.float64), advantage.square().sum(dtype=torch.float64)])
        total, squares = self.reduce(moments)
        count = advantage.numel() * self.world_size
        mean = total / count
        variance = (squares - count * mean * mean).clamp_min(0.0) / max(count - 1, 1)
        return ((advantage - mean) / (variance.sqrt() + STD_FLOOR)).to(advantage.dtype)

    def update(self, batch: Batch, weights: LossWeights, passes: int, max_grad_norm: float | None) -> torch.Tensor:
        """Optimizer steps on one batch, ``passes`` of them; returns the gradient's norm before clipping (a scalar)."""
        self.statistics.zero_()
        norm = torch.zeros((), device=self.device)
        loss = self.loss(batch, weights)
        for _ in range(passes):
            gradient = self.policy.flat.grad
            assert gradient is not None
            gradient.zero_()
            self.gradient(batch, loss)
            self.reduce(gradient)
            norm = torch.linalg.vector_norm(gradient)
            if max_grad_norm is not None:
                gradient.mul_((max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
            self.optimizer.step()
        self.statistics /= passes * len(batch.actions)
        return norm
