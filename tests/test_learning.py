"""Every learner against the plain statement of network and loss, ``Policy.outputs`` and ``losses.py``, in double."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn.functional import huber_loss
from trainers import as_a_gpu_multiplies, as_a_gpu_steps, play_iteration

from rbc_warp.config import load_config
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.economy.parameters import Economy
from rbc_warp.training import fused, learner, losses
from rbc_warp.training.adam import KernelAdam
from rbc_warp.training.fused import FusedLearner
from rbc_warp.training.learner import AutogradLearner, Learner
from rbc_warp.training.losses import Batch, LossWeights, advantages_and_targets, discounted_returns, standardize
from rbc_warp.training.policy import Policy, make_policies
from rbc_warp.training.processes import Processes
from rbc_warp.training.schedule import Update
from rbc_warp.training.trainer import RbcTrainer
from rbc_warp.warpdrive.host import HostFunctionManager
from rbc_warp.warpdrive.kernels import LOSS_STATISTICS, Heads, Words

SETTINGS = {"agents": {"num_consumers": 7, "num_firms": 3}, "world": {"paretoscaletheta": 4.0}}
PPO = LossWeights(use_ppo=True, clip=0.1, entropy=0.3, last_head_entropy=0.4, value=0.7)
POLICY_GRADIENT = LossWeights(use_ppo=False, clip=0.1, entropy=0.3, last_head_entropy=0.4, value=0.7)
RULES = {"ppo": PPO, "policy gradient": POLICY_GRADIENT}
OBSERVATIONS = 61  # so that blocks and groups of sixteen rows end inside a batch


def test_products_of_bfloat16_are_float32_on_a_gpu() -> None:
    with FakeTensorMode():  # shapes and types alone; torch refuses what a GPU could not do
        left, right = (torch.empty(40, n, dtype=torch.bfloat16, device="cuda") for n in (16, 8))
        gradient = fused.product(left.T, right)
    assert (gradient.dtype, gradient.shape) == (torch.float32, (16, 8))


class Unfused(HostFunctionManager):
    """The host's kernels where the processor cannot run the network as one: torch multiplies the matrices."""

    def network(self, *unused: object) -> None:
        return None


LEARNERS = {"fused": HostFunctionManager, "blocks": Unfused, "autograd": None}
Maker = Callable[..., Learner]


@pytest.fixture(scope="module", params=LEARNERS)
def make(request: pytest.FixtureRequest) -> Maker:
    """Makes learners of one kind: the network as one kernel, products by torch, or autograd."""
    kernels = LEARNERS[request.param]
    if kernels is None:
        return AutogradLearner
    made = kernels(num_agents=1, num_envs=1, blocks_per_env=1)
    learner = partial(FusedLearner, kernels=made)
    policy = make_policies(load_config(SETTINGS), Economy.from_config(load_config(SETTINGS)))["government"]
    if request.param == "fused" and learner(policy, Heads(policy.head_sizes, "cpu"), 0.0).network is None:
        pytest.skip("the network is one kernel on processors with AVX-512 only")
    return learner


class Case:
    """One agent type's learner, a batch that takes every branch of the loss, and the states behind it."""

    def __init__(self, agent: str, make: Maker, dtype: torch.dtype = torch.float32, hidden: int = 128) -> None:
        train = {"hidden_size": hidden}
        config = load_config({**SETTINGS, "train": train})
        self.economy = Economy.from_config(config)
        self.policy = make_policies(config, self.economy)[agent]
        self.heads = Heads(self.economy.agents[agent].head_sizes, "cpu")
        if agent == "firm":  # masks, as in the curriculum
            self.heads.allowed.copy_(torch.arange(self.heads.num_actions) % 3 != 1)
        self.learner = make(self.policy, self.heads, 0.01, dtype)
        self.states = self._states(agent)
        self.batch = self._batch()

    def _states(self, agent: str) -> torch.Tensor:
        """(observations, agents, d) float32."""
        random = np.random.default_rng(1)
        economy, count = self.economy, self.economy.agents[agent].count
        firms = economy.num_firms
        public = np.zeros((OBSERVATIONS, 1, economy.public.size))
        public[..., economy.public.prices] = random.choice(economy.firm_choices[:, 0], (OBSERVATIONS, 1, firms))
        public[..., economy.public.wages] = random.choice(economy.firm_choices[:, 1], (OBSERVATIONS, 1, firms))
        public[..., economy.public.inventories] = random.exponential(200.0, (OBSERVATIONS, 1, firms))
        public[..., economy.public.overdemanded] = random.integers(0, 2, (OBSERVATIONS, 1, firms))
        public[..., economy.public.income_tax] = random.random((OBSERVATIONS, 1))
        public[..., economy.public.time] = random.integers(0, 10, (OBSERVATIONS, 1))
        rows = np.repeat(public, count, axis=1)
        if agent != "government":
            private = np.broadcast_to(
                economy.initial_private()[agent], (OBSERVATIONS, count, economy.agents[agent].private.size)
            )
            private = private.copy()
            private[..., 0] = random.normal(3e3, 1e4, (OBSERVATIONS, count))
            rows = np.concatenate([rows, private], axis=-1)
        return torch.tensor(rows, dtype=torch.float32)

    def _batch(self) -> Batch:
        random = torch.Generator().manual_seed(2)
        size = self.economy.public.size
        public, private = self.states[:, 0, :size], self.states[..., size:].flatten(0, 1)
        encoder = self.policy.encoder
        inputs = encoder.encode_private(private) if private.shape[1] else private
        rows = self.states.shape[0] * self.states.shape[1]
        logits = self.policy.outputs(self.states).detach().flatten(0, 1)
        actions, log_probability = [], torch.zeros(rows)
        allowed = self.heads.allowed.bool().split(self.heads.sizes)
        for head, mask in zip(logits[:, :-1].split(self.heads.sizes, dim=-1), allowed, strict=True):
            p = head.masked_fill(~mask, -torch.inf).log_softmax(-1)
            drawn = torch.multinomial(p.exp(), 1, generator=random)
            log_probability += p.gather(1, drawn).squeeze(1)
            actions.append(drawn)

        def normal(scale: float) -> torch.Tensor:
            return scale * torch.randn(rows, generator=random)

        value = logits[:, -1]
        return Batch(
            public=encoder.encode_public(public),
            private=inputs.to(self.learner.dtype),
            actions=torch.cat(actions, dim=1).int(),
            log_probability=log_probability + normal(0.2),  # ratios inside and outside 1 ± clip
            value=value + normal(0.2),
            target=value + normal(1.5),  # errors on both sides of Huber's 1
            advantage=normal(1.0),
        )

    def learner_gradient(self, weights: LossWeights, batch: Batch | None = None) -> torch.Tensor:
        self.policy.flat.grad.fill_(torch.nan)
        self.learner.sums.zero_()
        batch = self.batch if batch is None else batch
        self.learner.take_gradient(batch, weights)
        return self.policy.flat.grad.clone()


def plain_loss(
    policy: Policy, states: torch.Tensor, heads: Heads, batch: Batch, weights: LossWeights
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss as ``losses.py`` states it, in double precision, and its parts, as means over the batch."""
    outputs = policy.outputs(states.double()).flatten(0, 1)
    columns = {name: column.double() if column.is_floating_point() else column for name, column in vars(batch).items()}
    total, parts = losses.loss(outputs, Batch(**columns), weights, heads.allowed.bool(), heads.sizes)
    return total.mean(), {name: part.mean() for name, part in parts.items()}


def in_double(policy: Policy) -> Policy:
    return copy.deepcopy(policy).double()


def plain_gradient(case: Case, weights: LossWeights, batch: Batch | None = None) -> torch.Tensor:
    policy = in_double(case.policy)
    policy.flat.grad = None
    plain_loss(policy, case.states, case.heads, case.batch if batch is None else batch, weights)[0].backward()
    assert policy.flat.grad is not None
    return policy.flat.grad


def assert_same_gradient(case: Case, got: torch.Tensor, expected: torch.Tensor) -> None:
    """Layer by layer, relative to the layer's largest entry."""
    for (name, mine), plain in zip(
        vars(case.policy.layers(got.double())).items(), vars(case.policy.layers(expected)).values(), strict=True
    ):
        if plain.numel():
            error = (mine - plain).abs().max() / plain.abs().max()
            assert error < 2e-5, f"{name}: relative error {error:.2e}"


# Gradients


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("agent", AGENT_TYPES)
def test_the_gradient_is_that_of_the_plain_statement(make: Maker, agent: str, rule: str) -> None:
    case = Case(agent, make)
    assert_same_gradient(case, case.learner_gradient(RULES[rule]), plain_gradient(case, RULES[rule]))


def test_the_batch_takes_every_branch(make: Maker) -> None:
    """What the comparison above rests on."""
    case = Case("consumer", make)
    batch, policy = case.batch, in_double(case.policy)
    value = policy.outputs(case.states.double()).flatten(0, 1)[:, -1].detach()
    log_ratio = sum_log_probability(case) - batch.log_probability
    for high in (True, False):
        outside = log_ratio.exp() > 1.1 if high else log_ratio.exp() < 0.9
        for positive in (True, False):
            assert ((batch.advantage > 0.0) == positive).logical_and(outside).sum() > 10
    assert (log_ratio.exp() - 1.0).abs().lt(0.1).sum() > 10
    held = batch.value + (value - batch.value).clamp(-0.1, 0.1)
    free_loss, held_loss = (huber_loss(v, batch.target.double(), reduction="none") for v in (value, held))
    assert (held_loss > free_loss).sum() > 10 and (held_loss < free_loss).sum() > 10 and (held == value).sum() > 10
    error = (value - batch.target).abs()
    assert (error < 1.0).sum() > 10 and (error > 1.0).sum() > 10


def sum_log_probability(case: Case) -> torch.Tensor:
    logits = case.policy.outputs(case.states).detach().flatten(0, 1)[:, :-1]
    total = torch.zeros(len(logits))
    for h, head in enumerate(logits.split(case.heads.sizes, dim=-1)):
        total += head.log_softmax(-1).gather(1, case.batch.actions[:, h : h + 1].long()).squeeze(1)
    return total


@pytest.mark.parametrize("rule", RULES)
def test_the_gradient_is_the_slope_of_the_loss(make: Maker, rule: str) -> None:
    """Central differences in random directions: independent of autograd and of how the gradient is derived."""
    case = Case("consumer", make)
    gradient = case.learner_gradient(RULES[rule]).double()
    policy = in_double(case.policy)
    start = policy.flat.detach().clone()
    random = torch.Generator().manual_seed(0)

    def loss_at(point: torch.Tensor) -> float:
        with torch.no_grad():
            policy.flat.copy_(point)
            return float(plain_loss(policy, case.states, case.heads, case.batch, RULES[rule])[0])

    for _ in range(4):
        direction = torch.randn(len(start), generator=random, dtype=torch.float64)
        direction += 30.0 * gradient / gradient.norm()  # not orthogonal to the gradient
        direction /= direction.norm()
        step = 1e-6
        slope = (loss_at(start + step * direction) - loss_at(start - step * direction)) / (2.0 * step)
        assert slope == pytest.approx(float(gradient @ direction), rel=2e-3)


@pytest.mark.parametrize("weights", [PPO, POLICY_GRADIENT], ids=list(RULES))
@pytest.mark.parametrize("agent", AGENT_TYPES)
def test_statistics_are_the_means_of_the_loss_s_parts(make: Maker, agent: str, weights: LossWeights) -> None:
    case = Case(agent, make)
    case.learner_gradient(weights)
    with torch.no_grad():
        _, means = plain_loss(in_double(case.policy), case.states, case.heads, case.batch, weights)
    got = case.learner.sums.sum(0) / len(case.batch.actions)
    for name, value in zip(LOSS_STATISTICS, got, strict=True):
        assert float(value) == pytest.approx(float(means[name]), rel=2e-5, abs=2e-6), name


def test_masked_actions_get_no_gradient(make: Maker) -> None:
    case = Case("firm", make)
    gradient = case.policy.layers(case.learner_gradient(PPO))
    masked = ~case.heads.allowed.bool()
    assert masked.any()
    assert not gradient.weight3[:-1][masked].any() and gradient.weight3[:-1][~masked].any(dim=1).all()
    assert not gradient.bias3[:-1][masked].any()


@pytest.mark.parametrize("rows", [1, 16, 100])
def test_blocks_only_divide_the_work(make: Maker, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("consumer", make)
    whole = case.learner_gradient(PPO)
    monkeypatch.setattr(fused, "block_rows", lambda device, dtype, hidden: rows)
    monkeypatch.setattr(learner, "AUTOGRAD_BLOCK_ROWS", rows)
    torch.testing.assert_close(case.learner_gradient(PPO), whole, rtol=1e-4, atol=2e-7)
    out = torch.empty(len(case.batch.actions), case.policy.num_actions + 1)
    case.learner.logits(case.batch.public, case.batch.private, out)
    expected = case.policy.outputs(case.states).detach().flatten(0, 1)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("agents, observations", [(1, 1), (1, 65), (3, 50), (100, 3), (130, 2)])
def test_groups_of_any_size_fill_the_blocks(make: Maker, agents: int, observations: int, dtype: torch.dtype) -> None:
    """Against the whole batch's rows one by one, and with another number of threads."""
    case = Case("consumer", make, dtype)
    learner, batch = case.learner, case.batch
    some = torch.arange(agents * observations) % len(batch.actions)
    rows = {name: getattr(batch, name)[some] for name in vars(batch) if name != "public"}
    chosen = Batch(public=batch.public[torch.arange(observations) % OBSERVATIONS], **rows)
    apart = Batch(public=chosen.public.repeat_interleave(agents, 0), **rows)  # every row a group of its own
    gradients = [case.learner_gradient(PPO, b) for b in (chosen, apart)]
    scale = float(gradients[1].abs().max())
    torch.testing.assert_close(
        gradients[0], gradients[1], rtol=0, atol=(1e-5 if dtype == torch.float32 else 5e-3) * scale
    )
    logits = [torch.full((len(some), case.policy.num_actions + 1), torch.nan) for _ in range(3)]
    learner.logits(chosen.public, chosen.private, logits[0])
    learner.logits(apart.public, apart.private, logits[1])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        learner.logits(chosen.public, chosen.private, logits[2])
        again = case.learner_gradient(PPO, chosen)
    finally:
        torch.set_num_threads(threads)
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=0, atol=1e-6 if dtype == torch.float32 else 2e-2)
    torch.testing.assert_close(again, gradients[0], rtol=0, atol=(1e-5 if dtype == torch.float32 else 5e-3) * scale)


@pytest.mark.parametrize("agent", AGENT_TYPES)
def test_bfloat16_is_close_to_float32(make: Maker, agent: str) -> None:
    exact, coarse = (Case(agent, make, dtype) for dtype in (torch.float32, torch.bfloat16))
    logits = [torch.empty(len(c.batch.actions), c.policy.num_actions + 1) for c in (exact, coarse)]
    for case, out in zip((exact, coarse), logits, strict=True):
        case.learner.logits(case.batch.public, case.batch.private, out)
    assert (logits[0] - logits[1]).abs().max() < 0.02
    # Without the clip's jumps, at which a rounded ratio can fall on the other side.
    first, second = exact.learner_gradient(POLICY_GRADIENT), coarse.learner_gradient(POLICY_GRADIENT)
    assert torch.cosine_similarity(first, second, dim=0) > 0.999
    assert float(second.norm() / first.norm()) == pytest.approx(1.0, abs=0.02)
    assert coarse.policy.flat.dtype == second.dtype == torch.float32


# Updates


def test_the_first_update_is_adam_s(make: Maker) -> None:
    case = Case("government", make)
    before, gradient = case.policy.flat.detach().clone(), case.learner_gradient(PPO)
    norm = case.learner.update([case.batch], PPO, max_grad_norm=None)
    assert float(norm) == pytest.approx(float(gradient.norm()), rel=1e-5)
    step = case.policy.flat.detach() - before
    torch.testing.assert_close(step, -0.01 * gradient / (gradient.abs() + 1e-8), rtol=1e-4, atol=1e-6)


def test_long_gradients_are_shortened_and_short_ones_left(make: Maker) -> None:
    norms = []
    for limit in (1e-3, 1e3):
        case = Case("firm", make)
        norm = float(case.learner.update([case.batch], PPO, max_grad_norm=limit))
        used = case.policy.flat.grad.norm()
        norms.append(norm)
        assert float(used) == pytest.approx(min(norm, limit), rel=1e-3)
    assert norms[0] == norms[1]  # what is reported is the norm before


def test_passes_repeat_the_update_against_the_same_old_policy(make: Maker) -> None:
    cases = [Case("firm", make) for _ in range(2)]
    cases[0].learner.update([cases[0].batch] * 3, PPO, max_grad_norm=2.0)
    for _ in range(3):
        cases[1].learner.update([cases[1].batch], PPO, max_grad_norm=2.0)
    torch.testing.assert_close(cases[0].policy.flat, cases[1].policy.flat, rtol=0, atol=0)
    mean = cases[0].learner.statistics[LOSS_STATISTICS.index("entropy")]
    assert 0.0 < float(mean) <= float(np.log(20))


def test_processes_that_share_a_batch_update_like_one(make: Maker) -> None:
    """The sum of the gradients of two halves, each told of two processes, is the gradient of the whole batch."""
    case = Case("government", make)
    whole = case.learner_gradient(PPO)
    rows = {name: getattr(case.batch, name) for name in vars(case.batch)}
    case.learner.processes.world_size = 2
    half = len(case.batch.actions) // 2
    even = {name: tensor[: 2 * half] for name, tensor in rows.items()}
    parts = [Batch(**{n: t[s] for n, t in even.items()}) for s in (slice(0, half), slice(half, 2 * half))]
    total = sum(case.learner_gradient(PPO, part) for part in parts)
    case.learner.processes.world_size = 1
    torch.testing.assert_close(total, case.learner_gradient(PPO, Batch(**even)), rtol=1e-4, atol=1e-7)
    assert not torch.equal(total, whole)  # the whole batch has one row more


# Returns and advantages


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9999, 1.0])
def test_returns_are_discounted_period_by_period(gamma: float) -> None:
    rewards = torch.tensor(np.random.default_rng(0).normal(size=(6, 3, 4)), dtype=torch.float32)
    got = discounted_returns(rewards, gamma)
    for t in range(6):
        expected = sum(gamma**k * rewards[t + k].double() for k in range(6 - t))
        torch.testing.assert_close(got[t].double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(discounted_returns(rewards[:1], gamma), rewards[:1])


@pytest.mark.parametrize("weight", [0.0, 0.6, 0.9, 1.0])
def test_advantages_weigh_later_errors(weight: float) -> None:
    """GAE by its sum: A_t = Σ_k (γλ)^k δ_{t+k}, with nothing after the end; λ = 1 gives returns less values."""
    random, gamma = np.random.default_rng(0), 0.9
    rewards, values = (torch.tensor(random.normal(size=(5, 3, 2)), dtype=torch.float32) for _ in range(2))
    advantages, targets = advantages_and_targets(rewards, values, gamma, weight)
    following = torch.cat([values[1:], torch.zeros(1, 3, 2)])
    errors = rewards + gamma * following - values
    for t in range(5):
        expected = sum((gamma * weight) ** k * errors[t + k].double() for k in range(5 - t))
        torch.testing.assert_close(advantages[t].double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(targets, advantages + values)
    if weight == 1.0:
        torch.testing.assert_close(advantages, discounted_returns(rewards, gamma) - values)


def test_advantages_are_standardized_over_the_batch() -> None:
    raw = torch.tensor(np.random.default_rng(0).normal(50.0, 7.0, (5, 8, 3)), dtype=torch.float32)
    got = standardize(raw, Processes())
    expected = (raw.double() - raw.double().mean()) / raw.double().std()
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    alone = standardize(raw, Processes(), each_agent=True).double()
    for agent in range(3):
        own = raw[..., agent].double()
        torch.testing.assert_close(alone[..., agent], (own - own.mean()) / own.std(), rtol=1e-5, atol=1e-5)
    assert not standardize(torch.full((4, 2, 1), 3.0), Processes()).abs().gt(1e-3).any()  # nothing to tell apart
    moments = [torch.stack([h.sum(dtype=torch.float64), h.square().sum(dtype=torch.float64)]) for h in raw.split(4, 1)]
    two = Processes(world_size=2)
    two.sum = lambda tensor: sum(moments)
    torch.testing.assert_close(standardize(raw[:, :4], two).double(), expected[:, :4], rtol=1e-5, atol=1e-5)


def test_the_losses_by_hand() -> None:
    """One head of two actions, p = 3/4 and 1/4, drawn at 1/2: the ratio 3/2 is clipped for a good action only."""
    outputs = torch.tensor([[np.log(3.0), 0.0, 2.0], [np.log(3.0), 0.0, 2.0]], dtype=torch.float64)
    column = torch.tensor([1.0, 1.0], dtype=torch.float64)
    batch = Batch(
        *(torch.zeros(2, 0), torch.zeros(2, 0), torch.zeros(2, 1, dtype=torch.int32)),
        log_probability=-np.log(2.0) * column,
        value=1.5 * column,
        target=torch.tensor([1.8, 0.0], dtype=torch.float64),
        advantage=torch.tensor([2.0, -2.0], dtype=torch.float64),
    )
    allowed = torch.ones(2, dtype=torch.bool)
    total, parts = losses.loss(outputs, batch, LossWeights(True, 0.2, 0.5, 0.5, 0.1), allowed, [2])
    entropy = np.log(4.0) - 0.75 * np.log(3.0)
    policy, value = np.array([-1.2 * 2.0, 1.5 * 2.0]), np.array([max(0.02, 0.005), max(1.5, 1.2)])
    np.testing.assert_allclose(total, policy - 0.5 * entropy + 0.1 * value)
    np.testing.assert_allclose(parts["kl"], 0.5 - np.log(1.5))
    assert parts["clipped"].tolist() == [1.0, 1.0]
    total, _ = losses.loss(outputs, batch, LossWeights(False, 0.2, 0.0, 0.0, 0.0), allowed, [2])
    np.testing.assert_allclose(total, [-np.log(0.75) * 2.0, np.log(0.75) * 2.0])


@pytest.mark.parametrize("agent", AGENT_TYPES)
def test_a_hidden_width_of_another_size_works(make: Maker, agent: str) -> None:
    case = Case(agent, make, hidden=96)
    assert case.policy.layers().weight2.shape == (96, 96)
    assert_same_gradient(case, case.learner_gradient(PPO), plain_gradient(case, PPO))
    out = torch.empty(len(case.batch.actions), case.policy.num_actions + 1)
    case.learner.logits(case.batch.public, case.batch.private, out)
    torch.testing.assert_close(out, case.policy.outputs(case.states).detach().flatten(0, 1), rtol=1e-5, atol=1e-5)


# What an update is given


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("learner", ["fused", "autograd"])
def test_the_first_pass_finds_the_policy_that_drew(precision: str, learner: str) -> None:
    """What the rollout and the update each say of the same states agrees: all ratios are 1, nothing is clipped."""
    train = {"batch_size": 4, "ppo_num_updates": 1, "ppo_clip_param": 1e-3, "precision": precision}
    train["learner"] = learner
    trainer = RbcTrainer(load_config({**SETTINGS, "world": {"maxtime": 5}, "train": train}), "host")
    play_iteration(trainer, 0)
    for agent in AGENT_TYPES:
        trainer.update(Update(agent, 0.0, 0.0, 1e-3), 0)
        statistics = dict(zip(LOSS_STATISTICS, trainer.learners[agent].statistics.tolist(), strict=True))
        assert abs(statistics["kl"]) < 1e-6 and statistics["clipped"] == 0.0, (agent, statistics)


@pytest.mark.parametrize("fraction", [0.3, 1.0])
def test_a_fraction_of_the_consumers_is_learned_from(fraction: float, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        **SETTINGS,
        "agents": {**SETTINGS["agents"], "consumer_reward_scale": 5.0},
        "world": {"maxtime": 3},
        "train": {"batch_size": 4, "consumer_update_fraction": fraction, "precision": "float32", "gamma": 0.9},
    }
    trainer = RbcTrainer(load_config(settings), "host")
    play_iteration(trainer, 0)
    batches: list[Batch] = []
    monkeypatch.setattr(
        trainer.learners["consumer"], "update", lambda given, *_: batches.append(next(iter(given))) or torch.zeros(())
    )
    for iteration in (0, 0, 1, 2):
        trainer.update(Update("consumer", 0.0, 0.0, 1e-3), iteration)
    kept = round(7 * fraction)
    assert [len(batch.actions) for batch in batches] == [3 * 4 * kept] * 4
    chosen = [
        trainer.updates._some_consumers(iteration).tolist() if fraction < 1 else list(range(7))
        for iteration in range(3)
    ]
    assert all(len(set(c)) == kept for c in chosen)
    assert fraction == 1.0 or len({tuple(c) for c in chosen}) > 1
    value = trainer._data("values_batch_consumer")
    target = discounted_returns(trainer.rollout.rewards("consumer") / 5.0, 0.9)
    everybody = standardize(target - value, Processes())
    for batch, consumers in zip(batches, [chosen[0], *chosen], strict=True):
        torch.testing.assert_close(batch.target, target[:, :, consumers].flatten())
        torch.testing.assert_close(batch.advantage, everybody[:, :, consumers].flatten())
        assert torch.equal(batch.actions, trainer.rollout.actions("consumer")[:, :, consumers].flatten(0, 2))
        assert len(batch.public) == 12 and len(batch.private) == 12 * kept


def test_loss_weights_do_what_they_say(make: Maker) -> None:
    case = Case("firm", make)
    value_only = case.policy.layers(case.learner_gradient(replace(PPO, entropy=0.0)))
    no_value = case.policy.layers(case.learner_gradient(replace(PPO, entropy=0.0, value=0.0)))
    assert value_only.bias3[-1].abs() > 0.0 and no_value.bias3[-1] == 0.0
    torch.testing.assert_close(value_only.bias3[:-1], no_value.bias3[:-1])


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_the_adam_of_gpus_takes_the_steps_of_torch_s(
    monkeypatch: pytest.MonkeyPatch, max_grad_norm: float | None
) -> None:
    as_a_gpu_steps(monkeypatch)

    def kernel_adam(rate: float) -> KernelAdam:
        manager = HostFunctionManager(num_agents=1, num_envs=1)
        return KernelAdam(parameters[1], rate, manager, Words(torch.device("cpu"), is_apart=False), None)

    generator, size = torch.Generator().manual_seed(0), 3000
    parameters = [torch.nn.Parameter(torch.ones(size)) for _ in range(2)]
    expected = torch.optim.Adam([parameters[0]], lr=0.01)
    fused = kernel_adam(0.01)
    for step in range(6):
        gradient = torch.randn(size, generator=generator) * 0.1 ** (step % 3)
        for parameter in parameters:
            parameter.grad = gradient.clone()
        norm = gradient.norm()
        if max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_([parameters[0]], max_grad_norm)
        expected.param_groups[0]["lr"] = fused.learning_rate = 0.01 / (step + 1)
        expected.step()
        torch.testing.assert_close(fused.clipped_step(max_grad_norm), norm)
        torch.testing.assert_close(parameters[1], parameters[0], rtol=0.0, atol=2e-6)
        if step == 3:  # as a run that is resumed
            kept = fused.state_dict()
            assert kept["param_groups"] == expected.state_dict()["param_groups"]
            fused = kernel_adam(1.0)
            fused.load_state_dict(kept)


def test_factors_that_are_filled_up_with_zeros_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for is_filled_up in (False, True):
        with monkeypatch.context() as patched:
            patched.setattr(HostFunctionManager, "network", lambda *unused: None)
            if is_filled_up:
                as_a_gpu_multiplies(patched)
            trainer = RbcTrainer(load_config(SETTINGS, ["train.precision=float32"]), "host")
            play_iteration(trainer, 0)
            trainer.update(trainer.schedule.update_of(trainer.economy.agents["consumer"], 0), 0)
            trainer.update(trainer.schedule.update_of(trainer.economy.agents["firm"], 0), 0)
            found.append((trainer, trainer.rollout.private["consumer"].shape[-1]))
    (plain, width), (filled, wider) = found
    assert width % 8 and wider == -(-width // 8) * 8
    for agent in AGENT_TYPES:
        assert torch.equal(plain.rollout.actions(agent), filled.rollout.actions(agent))
        torch.testing.assert_close(filled.models[agent].flat, plain.models[agent].flat, rtol=0.0, atol=1e-5)
