"""The learning, stated plainly: returns, advantages, and the losses of PPO and of plain policy gradient, for autograd.

To change how agents learn, change this file and set ``train.learner: autograd``; no C++ is involved. The fused learner
(``fused.py``) computes the same faster, and ``tests/test_learning.py`` holds it to what stands here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch.nn.functional import huber_loss

from rbc_warp.training.processes import Processes

STD_FLOOR = 1e-6
MASKED = -1.0e30
"""Logit of an action that is not allowed: its probability is 0, and so is its gradient."""


@dataclass
class Batch:
    """The data of an update. N = T·E observations of a type with n agents each, rows = N·n in that order."""

    public: torch.Tensor  #: (N, num_public) encoded public states, float32.
    private: torch.Tensor
    """(rows, num_private) encoded private states, in the learner's precision; on a GPU filled up with zeros."""
    actions: torch.Tensor  #: (rows, heads) int32.
    log_probability: torch.Tensor  #: (rows,) of the joint action when it was drawn.
    value: torch.Tensor  #: (rows,) predicted when it was drawn.
    target: torch.Tensor  #: (rows,) discounted return of reward / scale.
    advantage: torch.Tensor  #: (rows,) standardized.

    def of_environments(self, chosen: torch.Tensor, num_envs: int) -> Batch:
        """Return the rows of some of the E environments."""
        return self._chosen(1, chosen, num_envs, self.public.unflatten(0, (-1, num_envs))[:, chosen].flatten(0, 1))

    def of_agents(self, chosen: torch.Tensor, num_envs: int) -> Batch:
        """Return the rows of some of the n agents, in every environment."""
        return self._chosen(2, chosen, num_envs, self.public)

    def _chosen(self, axis: int, chosen: torch.Tensor, num_envs: int, public: torch.Tensor) -> Batch:
        shape = (len(self.public) // num_envs, num_envs, len(self.actions) // len(self.public))
        columns = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "public"}
        rows = {name: column.unflatten(0, shape).index_select(axis, chosen) for name, column in columns.items()}
        return Batch(public=public, **{name: column.flatten(0, 2) for name, column in rows.items()})


@dataclass(frozen=True)
class LossWeights:
    """The update rule and its weights. With ``use_ppo`` off, ``clip`` is unused."""

    use_ppo: bool
    clip: float
    entropy: float  #: Of all heads but the last.
    last_head_entropy: float
    value: float


def random_orders(num_agents: int, num_envs: int, passes: int, generator: torch.Generator) -> torch.Tensor:
    """Return for each pass over a batch the order in which :func:`minibatches` takes its parts: (passes, E) of
    environments, or (passes, n) of agents where the batch has more agents than environments."""
    count = max(num_agents, num_envs)
    return torch.stack([torch.randperm(count, generator=generator) for _ in range(passes)])


def minibatches(batch: Batch, num_envs: int, passes: int, parts: int, orders: torch.Tensor | None) -> Iterator[Batch]:
    """Yield what each optimizer step reads: in every pass all of a batch, in parts, of environments or of agents.

    orders: of :func:`random_orders`, on the batch's device; None where there is one part.
    """
    if orders is None:
        yield from itertools.repeat(batch, passes)
        return
    agents = len(batch.actions) // len(batch.public)
    part_of = batch.of_agents if agents > num_envs else batch.of_environments
    for order in orders:
        for part in order.chunk(parts):
            yield part_of(part, num_envs)


def discounted_returns(rewards: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return the reward-to-go G_t = r_t + γ G_{t+1} over the first axis, (T, …); nothing is added at the end."""
    returns = rewards.clone()
    for t in range(len(rewards) - 2, -1, -1):
        returns[t].add_(gamma * returns[t + 1])
    return returns


def advantages_and_targets(
    rewards: torch.Tensor, values: torch.Tensor, gamma: float, gae_lambda: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return advantages and the value's targets over the first axis, (T, …) each; nothing is added at the end.

    With δ_t = r_t + γ V_{t+1} − V_t, A_t = Σ_k (γλ)^k δ_{t+k} (Schulman et al. 2016); targets are A + V, with λ = 1 the
    returns.
    """
    if gae_lambda == 1.0:
        returns = discounted_returns(rewards, gamma)
        return returns - values, returns
    errors = rewards - values
    errors[:-1] += gamma * values[1:]
    advantages = discounted_returns(errors, gamma * gae_lambda)
    return advantages, advantages + values


def mean_and_std(
    advantage: torch.Tensor, processes: Processes, each_agent: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both over the batch of all processes, float64; the second is at least STD_FLOOR.

    They are scalars, or with ``each_agent`` one number for each entry of the last axis of (T, E, n).
    """
    over = tuple(range(advantage.dim() - each_agent))
    moments = torch.stack([x.sum(over, dtype=torch.float64) for x in (advantage, advantage.square())])
    total, squares = processes.sum(moments)
    count = advantage.numel() // total.numel() * processes.world_size
    mean = total / count
    variance = (squares - count * mean * mean).clamp_min(0.0) / max(count - 1, 1)
    return mean, variance.sqrt() + STD_FLOOR


def standardize(advantage: torch.Tensor, processes: Processes, each_agent: bool = False) -> torch.Tensor:
    """Return (x − mean) / std over the batch of all processes, or over each agent's part of it."""
    mean, std = mean_and_std(advantage, processes, each_agent)
    return ((advantage - mean) / std).to(advantage.dtype)


def evaluate_actions(
    logits: torch.Tensor, actions: torch.Tensor, allowed: torch.Tensor, head_sizes: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities of joint actions (rows,), sums over the independent heads, and entropies (rows, heads).

    logits (rows, actions) and allowed (actions,) bool hold all heads one after the other; actions (rows, heads).
    """
    log_probability, entropies = logits.new_zeros(len(logits)), []
    heads = logits.masked_fill(~allowed, MASKED).split(list(head_sizes), dim=-1)
    for head, chosen in zip(heads, actions.long().unbind(-1), strict=True):
        log_p = head.log_softmax(-1)
        log_probability = log_probability + log_p.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        entropies.append(-(log_p.exp() * log_p).sum(-1))
    return log_probability, torch.stack(entropies, dim=-1)


def loss(
    outputs: torch.Tensor, batch: Batch, weights: LossWeights, allowed: torch.Tensor, head_sizes: Sequence[int]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss of each row (rows,) and its parts, each (rows,).

    ``outputs`` (rows, actions+1): logits of all heads, then the value. PPO (Schulman et al. 2017): the smaller of the
    plain and the clipped surrogate, and the larger of the plain and the clipped value error. Otherwise −log π · A.
    """
    logits, value = outputs[:, :-1], outputs[:, -1]
    log_probability, entropies = evaluate_actions(logits, batch.actions, allowed, head_sizes)
    entropy = entropies.sum(-1)
    value_loss = huber_loss(value, batch.target, reduction="none")
    if weights.use_ppo:
        log_ratio = log_probability - batch.log_probability
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1.0 - weights.clip, 1.0 + weights.clip)
        policy_loss = -torch.minimum(ratio * batch.advantage, clipped * batch.advantage)
        held = batch.value + (value - batch.value).clamp(-weights.clip, weights.clip)
        value_loss = torch.maximum(value_loss, huber_loss(held, batch.target, reduction="none"))
        kl, outside = ratio - 1.0 - log_ratio, (clipped != ratio).to(value.dtype)
    else:
        policy_loss = -log_probability * batch.advantage
        kl, outside = torch.zeros_like(value), torch.zeros_like(value)
    last = entropies[:, -1]
    bonus = weights.entropy * (entropy - last) + weights.last_head_entropy * last
    total = policy_loss - bonus + weights.value * value_loss
    parts = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy, "kl": kl, "clipped": outside}
    return total, {name: part.detach() for name, part in parts.items()}
