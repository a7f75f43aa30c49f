"""Each kernel, called as the lab calls it, on numbers that depend on the size alone: for ``test_pycuda.py`` on two
backends; as a program, on a GPU, for ``test_sanitizer.py``.

What a kernel is to write is fresh memory: :func:`poisoned` fills it, and without that initcheck watches it. All that
kernels read comes from main memory, so that torch has nothing to compute here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from economies import actions_at, make_economy, random_actions, random_state
from trainers import adam_by_torch
from warp_drive.utils.data_feed import DataFeed

from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.economy.reference import Stage
from rbc_warp.warpdrive import tables
from rbc_warp.warpdrive.kernels import (
    DRAW_FROM_PROBABILITIES,
    DRAW_GREEDY,
    LOSS_STATISTICS,
    Copy,
    Encoding,
    Heads,
    Loss,
    Moments,
    RbcEncoder,
    RbcSampler,
    advantages_and_targets,
)
from rbc_warp.warpdrive.simulation import make_envs, set_stage
from rbc_warp.warpdrive.wrapper import RbcEnvWrapper

NUM_ENVS, PERIODS = 3, 3
STAGE = Stage(theta_factor=0.25, consumer_multiplier=0.5, firm_multiplier=2.0)
# The published one, odd ones, and one with more agents and heads than a block has threads, and long rows of logits.
SIZES = [(100, 10), (17, 4), (3, 2), (1, 1), (300, 500)]
STATE = ("public_state", "observations_consumer", "observations_firm", "_timestep_")
OUTCOME = ("rewards_consumer", "rewards_firm", "rewards_government", "consumption", "exports", "sales")
SCRATCH = ("hours", "employer", "spending", "_done_")
Left = dict[str, np.ndarray]


@contextmanager
def poisoned() -> Iterator[None]:
    """Let torch hand out memory full of NaN and of the largest integers."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1).isnan()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


class Setting:
    """Environments in general position on a backend, and numbers for its kernels."""

    def __init__(self, backend: str, size: tuple[int, int]):
        self.economy = make_economy(
            *size, num_periods=PERIODS, interest_rate=0.01, firm_reward_for_government_factor=0.0025
        )
        self.wrapper: RbcEnvWrapper = make_envs(self.economy, NUM_ENVS, backend)
        self.data, self.functions = self.wrapper.cuda_data_manager, self.wrapper.cuda_function_manager
        self.random = np.random.default_rng(size)
        set_stage(self.wrapper, STAGE)
        state = random_state(self.economy, NUM_ENVS, seed=5)
        for name, values in zip(STATE, (state.public, state.consumer, state.firm), strict=False):
            self.put(name, values)

    def tensor(self, name: str) -> torch.Tensor:
        return self.data._tensors[name]

    def put(self, name: str, values: Any) -> None:
        tensor = self.tensor(name)
        given = np.broadcast_to(np.asarray(values), tensor.shape) if np.ndim(values) == 0 else np.asarray(values)
        tensor.copy_(torch.from_numpy(np.ascontiguousarray(given)).to(tensor.dtype).view(tensor.shape))

    def given(self, values: np.ndarray, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.from_numpy(values).to(dtype).to(self.functions.device)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return self.given(self.random.normal(0.0, 1.5, shape).astype(np.float32), dtype)

    def allowed(self, heads: Heads, masked: bool) -> Heads:
        """Forbid about half of the actions of each head, never all."""
        if masked:
            mask = self.random.random(heads.num_actions) < 0.5
            mask[np.cumsum(heads.sizes) - 1] = True
            heads.allowed.copy_(torch.from_numpy(mask.astype(np.uint8)))
        return heads


def read(tensors: dict[str, torch.Tensor]) -> Left:
    """In main memory, bit by bit where NumPy lacks the type."""
    on_host = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
    return {n: (t.view(torch.int16) if t.dtype == torch.bfloat16 else t).numpy() for n, t in on_host.items()}


def step(backend: str, size: tuple[int, int]) -> Left:
    setting = Setting(backend, size)
    actions, left = random_actions(setting.economy, NUM_ENVS, PERIODS, seed=0), {}
    for t in range(PERIODS):
        for agent, drawn in zip(AGENT_TYPES, actions_at(actions, t), strict=True):
            setting.put(f"sampled_actions_{agent}", drawn)
        made = {name: torch.empty_like(setting.tensor(name)) for name in OUTCOME + SCRATCH}
        setting.wrapper.env.outcome = {name: setting.data.pointer(tensor) for name, tensor in made.items()}
        setting.wrapper.step_all_envs()
        left |= {f"{name} {t}": array for name, array in read(made).items()}
    return left | read({name: setting.tensor(name) for name in STATE})


def reset(backend: str, size: tuple[int, int]) -> Left:
    """One environment alone, then all."""
    setting, left = Setting(backend, size), {}
    for which in ("done", "all"):
        for name in STATE:
            setting.put(name, 10**9)
        setting.put("_done_", np.arange(NUM_ENVS) == 1)
        if which == "done":
            setting.wrapper.reset_only_done_envs()
        else:
            setting.wrapper.reset_all_envs()
        found = read({name: setting.tensor(name) for name in (*STATE, "_done_")})
        for name in STATE:
            kept = [(rows == 10**9).any() for rows in found[name]]
            assert kept == [which == "done", False, which == "done"], name
        left |= {f"{name} {which}": array for name, array in found.items()}
    return left


def encode(backend: str, size: tuple[int, int], dtype: torch.dtype) -> Left:
    """Columns over their divisors, and digits; a part without copies and one that is copied alone."""
    setting, parts, encoded, copies = Setting(backend, size), [], [], []
    for name in STATE[:3]:
        state = setting.tensor(name)
        inputs = [(column, divisor) for column in range(state.shape[-1]) for divisor in (7.0, -10.0, -1e6)]
        parts.append(Encoding(state, inputs))
        rows = state.numel() // state.shape[-1]
        encoded.append(torch.empty(rows, len(inputs), dtype=dtype, device=state.device))
        copies.append(torch.empty_like(state))
    encoder = RbcEncoder(setting.functions, parts)
    encoder.encode(encoded, [copies[0], None, copies[2]])
    encoder.encode([None] * 3, [None, copies[1], None])
    both = [*zip(STATE, encoded, strict=False), *zip(("a", "b", "c"), copies, strict=True)]
    return read(dict(both))


def returns(backend: str, size: tuple[int, int], gae_lambda: float) -> Left:
    setting = Setting(backend, size)
    rewards, values = (setting.normal(PERIODS, NUM_ENVS, size[0]) for _ in range(2))
    left = advantages_and_targets(setting.functions, rewards, values, 3.0, 0.99, gae_lambda)
    return read(dict(zip(("advantages", "targets"), left, strict=True)))


def sample(backend: str, size: tuple[int, int], flags: int = 0, masked: bool = True, is_rounded: bool = False) -> Left:
    """Into the middle one of three periods; the slots of the others must stay as they are. Logits that are numbers of
    bfloat16 are given to a GPU as such."""
    setting, heads, logits, feed = Setting(backend, size), {}, {}, DataFeed()
    draw = {name.lower(): 0 for name in tables.names("DRAW")} | {"seed": 7, "iteration": 2, "flags": flags}
    setting.data.words.set(setting.tensor("draw_words"), tables.filled("DRAW", draw, np.int32))
    setting.data.words.send()
    setting.put("_timestep_", 1)
    for agent, kind in setting.economy.agents.items():
        heads[agent] = setting.allowed(Heads(kind.head_sizes, setting.functions.device), masked)
        rows = setting.random.normal(0.0, 1.5, (NUM_ENVS * kind.count, kind.num_actions + 1)).astype(np.float32)
        given = torch.from_numpy(np.exp(rows) if flags & DRAW_FROM_PROBABILITIES else rows)
        if is_rounded:
            given = given.bfloat16() if setting.functions.draws_from_rounded else given.bfloat16().float()
        wide = torch.full((len(rows), rows.shape[1] + 3), torch.nan, dtype=given.dtype, device=setting.functions.device)
        logits[agent] = wide[:, :-3].copy_(given)  # rows lie further apart
        shape = (PERIODS, *setting.tensor(f"sampled_actions_{agent}").shape)
        setting.put(f"sampled_actions_{agent}", -7)
        feed.add_data(f"sampled_actions_batch_{agent}", np.full(shape, -7, np.int32))
        for name in ("log_probabilities", "values"):
            feed.add_data(f"{name}_batch_{agent}", np.full(shape[:3], np.nan, np.float32))
    setting.data.push_data_to_device(feed)
    RbcSampler(setting.functions).sample(setting.data, logits, heads=heads)
    left = read({name: setting.tensor(name) for name in feed})
    for name, array in left.items():
        untouched = array < -6 if array.dtype == np.int32 else np.isnan(array)
        assert untouched[[0, 2]].all() and not untouched[1].any(), name
    now = read({f"sampled_actions_{agent}": setting.tensor(f"sampled_actions_{agent}") for agent in AGENT_TYPES})
    return {name: array[1] for name, array in left.items()} | now


def loss(backend: str, size: tuple[int, int], dtype: torch.dtype, use_ppo: bool) -> Left:
    """Of each type, one head or many, with masked actions: the gradient, and the statistics."""
    setting, left = Setting(backend, size), {}
    for agent, kind in setting.economy.agents.items():
        heads = setting.allowed(Heads(kind.head_sizes, setting.functions.device), masked=True)
        rows = NUM_ENVS * kind.count
        x = setting.random.normal(0.0, 1.5, (rows, kind.num_actions + 1)).astype(np.float32)
        masked = torch.from_numpy(x)[:, :-1].masked_fill(heads.allowed.cpu() == 0, -torch.inf)
        likely = [head.log_softmax(-1) for head in masked.split(heads.sizes, -1)]
        taken = [torch.from_numpy(setting.random.gumbel(size=head.shape)).add(head).argmax(-1) for head in likely]
        now = sum(head.gather(1, drawn[:, None]) for head, drawn in zip(likely, taken, strict=True))
        then = now.numpy()[:, 0] + setting.random.normal(0.0, 0.2, rows)
        logits = setting.given(x, dtype)
        if setting.functions.draws_from_rounded:  # a GPU: rows lie further apart
            wide = torch.full((rows, x.shape[1] + 3), torch.nan, dtype=dtype, device=logits.device)
            logits = wide[:, :-3].copy_(logits)
        given = {name: setting.normal(rows) for name in ("advantage", "target", "value")}
        given |= {"log_probability": setting.given(then.astype(np.float32))}
        given |= {"actions": setting.given(torch.stack(taken, -1).int().numpy())}
        weights = setting.given(np.array([0.1, 0.5, 0.25, 1.0, 1.0 / rows, use_ppo], np.float32))
        statistics = setting.given(np.zeros((setting.functions.loss_parts, len(LOSS_STATISTICS)), np.float32))
        setting.functions.loss(logits, Loss(heads, given, weights, statistics))
        left |= {f"{agent} gradient": logits, f"{agent} statistics": statistics.cpu().sum(0)}
    return read(left)


def layer(backend: str, size: tuple[int, int], dtype: torch.dtype) -> Left:
    """A hidden layer's rows with what their group has in common, and its gradient under the mask, summed by group."""
    setting, columns = Setting(backend, size), 96 + size[1]
    rows, shared = setting.normal(NUM_ENVS * size[0], columns, dtype=dtype), setting.normal(NUM_ENVS, columns)
    setting.functions.add_relu(rows, shared)
    gradient, sums = setting.normal(*rows.shape, dtype=dtype), torch.empty_like(shared)
    setting.functions.mask_and_sum(gradient, rows, sums)
    plain = torch.empty_like(sums)
    setting.functions.mask_and_sum(gradient, None, plain)
    assert torch.equal(plain, sums)
    return read({"rows": rows, "gradient": gradient, "sums": sums})


def adam(backend: str, size: tuple[int, int], dtype: torch.dtype, max_norm: float) -> Left:
    """Three steps of parameters of which the last are copied, rows filled up with zeros."""
    setting, (hidden, outputs) = Setting(backend, size), size
    first, num_private, inputs, gap = 5, 3, 8, 2 * hidden
    count = first + hidden * num_private + hidden + outputs
    parameter, mean, square = (setting.given(scale * setting.random.random(count, np.float32)) for scale in (1, 0, 0))
    numbers = setting.given(np.zeros(hidden * inputs + hidden + gap + outputs, np.float32), dtype)
    copy = Copy(numbers, first, hidden, num_private, inputs, outputs, gap)
    table = {"weight1": 0.1, "weight2": 0.001, "log_beta1": np.log(0.9), "log_beta2": np.log(0.999)}
    settings = setting.given(tables.filled("ADAM", table | {"epsilon": 1e-8, "max_norm": max_norm}, np.float32))
    steps, rate, norm = (setting.given(np.full((), x, np.float32)) for x in (0.0, 0.01, np.nan))
    left = {}
    for step in range(3):
        gradient, moments = setting.normal(count), Moments(steps, mean, square)
        given = parameter, gradient, moments, rate, settings, norm, copy
        setting.functions.adam(*given) if backend == "pycuda" else adam_by_torch(None, *given)
        left[f"norm {step}"] = norm.clone()
        expected = replace(copy, numbers=torch.zeros_like(numbers))
        expected.follow(parameter)
        assert torch.equal(numbers, expected.numbers)
    return read(left | {"parameter": parameter, "mean": mean, "square": square, "steps": steps})


KERNELS: dict[str, Callable[[str, tuple[int, int]], Left]] = {
    "step": step,
    "reset": reset,
    "encode": partial(encode, dtype=torch.float32),
    "encode bfloat16": partial(encode, dtype=torch.bfloat16),
    "returns": partial(returns, gae_lambda=1.0),
    "returns GAE": partial(returns, gae_lambda=0.9),
    "sample": partial(sample, masked=False),
    "sample masked": sample,
    "sample bfloat16": partial(sample, is_rounded=True),
    "sample greedy": partial(sample, flags=DRAW_GREEDY),
    "sample probabilities": partial(sample, flags=DRAW_FROM_PROBABILITIES),
    "loss": partial(loss, dtype=torch.float32, use_ppo=False),
    "loss PPO": partial(loss, dtype=torch.float32, use_ppo=True),
    "loss bfloat16": partial(loss, dtype=torch.bfloat16, use_ppo=False),
    "loss PPO bfloat16": partial(loss, dtype=torch.bfloat16, use_ppo=True),
    "layer": partial(layer, dtype=torch.float32),
    "layer bfloat16": partial(layer, dtype=torch.bfloat16),
    "adam": partial(adam, dtype=torch.float32, max_norm=0.0),
    "adam clipped": partial(adam, dtype=torch.bfloat16, max_norm=0.5),
}


def fault() -> None:
    """Let a kernel read what nothing has written, and one number beyond."""
    setting = Setting("pycuda", (3, 2))
    values = setting.normal(PERIODS, NUM_ENVS, 3)
    rewards = torch.empty(values.numel() - 1, device=values.device)
    advantages_and_targets(setting.functions, rewards, values, 3.0, 0.99, 0.9)
    torch.cuda.synchronize()


if __name__ == "__main__":
    if sys.argv[1:] == ["fault"]:
        sys.exit(fault())
    for size_ in [(17, 4), (1, 1), (140, 34)]:
        for name_, kernel in KERNELS.items():
            kernel("pycuda", size_)
            print(size_, name_, flush=True)
