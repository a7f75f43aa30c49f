"""The networks: their files are the published ones, and mean the same as there."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

import rbc_warp
from rbc_warp.config import Config, load_config
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.economy.parameters import Economy
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.run import prepare_run
from rbc_warp.training.policy import Policy, make_policies
from rbc_warp.training.trainer import RbcTrainer

DEFAULT_INPUTS = {"consumer": 144, "firm": 155, "government": 133}
WORLD = {"paretoscaletheta": 4.0, "initial_capital": "twolevel"}
SMALL = {"agents": {"num_consumers": 5, "num_firms": 3}, "world": WORLD, "train": {"digit_representation_size": 4}}


def economy_and_policies(settings: dict) -> tuple[Config, Economy, dict[str, Policy]]:
    config = load_config(settings)
    economy = Economy.from_config(config)
    return config, economy, make_policies(config, economy)


class PublishedNetwork(nn.Module):
    """The published network, written down from the description of its files: linear layers over an encoded state.

    Every entry of the raw state is divided by its scale, except inventories and the own budget (``digit_dims``), which
    give way to (x mod 10^(k+1)) / 10^(k+1), k = 0, 1, …
    """

    def __init__(self, agent: str, config: Config) -> None:
        super().__init__()
        derived, firms = config.derived(), config.agents.num_firms
        self.digits = config.train.digit_representation_size
        self.digit_dims = set(derived[f"{agent}_digit_dims"])
        self.scale = [1.0] * derived[f"{agent}_state_dim"]
        for j in range(firms):
            self.scale[j] = derived["max_possible_price"]
            self.scale[firms + j] = derived["max_possible_wage"]
        time = 4 * firms + 2
        self.scale[time] = config.world.maxtime
        if agent == "consumer":
            self.scale[time + 2] = config.world.consumer_theta
        if agent == "firm":
            self.scale[time + 2] = 10000.0
        inputs = len(self.scale) + (self.digits - 1) * len(self.digit_dims)
        self.fc1, self.fc2 = nn.Linear(inputs, 128), nn.Linear(128, 128)
        if agent == "consumer":
            heads = [len(config.agents.consumption_choices)] * firms + [len(config.agents.work_choices), firms]
            self.action_heads = nn.ModuleList(nn.Linear(128, size) for size in heads)
        else:
            self.fc3 = nn.Linear(128, derived[f"{agent}_num_actions"])
        self.fc4 = nn.Linear(128, 1)

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        columns = []
        for n, scale in enumerate(self.scale):
            x = states[..., n]
            if n in self.digit_dims:
                for k in range(self.digits):
                    power = 10.0 ** (k + 1)
                    columns.append(torch.remainder(x, power) / power)
            else:
                columns.append(x / scale)
        hidden = torch.relu(self.fc2(torch.relu(self.fc1(torch.stack(columns, dim=-1)))))
        heads = self.action_heads if hasattr(self, "action_heads") else [self.fc3]
        return torch.cat([head(hidden).softmax(-1) for head in heads], dim=-1), self.fc4(hidden).squeeze(-1)


def raw_states(agent: str, economy: Economy, rows: int = 200) -> torch.Tensor:
    """States in general position, debts and large inventories among them, (rows, d)."""
    random = np.random.default_rng(3)
    layout = economy.public
    state = np.zeros((rows, layout.size + economy.agents[agent].private.size))
    choices = random.integers(0, len(economy.firm_choices), (rows, economy.num_firms))
    state[:, layout.prices], state[:, layout.wages] = economy.firm_choices[choices, 0], economy.firm_choices[choices, 1]
    state[:, layout.inventories] = random.exponential(3000.0, (rows, economy.num_firms))
    state[:, layout.overdemanded] = random.integers(0, 2, (rows, economy.num_firms))
    state[:, [layout.income_tax, layout.corporate_tax]] = random.random((rows, 2))
    state[:, layout.time] = random.integers(0, economy.num_periods, rows)
    if agent == "consumer":
        state[:, layout.size :] = np.stack([random.normal(0, 9e4, rows), random.uniform(0, 0.01, rows)], axis=1)
    if agent == "firm":
        private = economy.initial_private()["firm"][random.integers(0, economy.num_firms, rows)]
        private[:, :2] += np.stack([random.normal(0, 9e6, rows), random.exponential(1e4, rows)], axis=1)
        state[:, layout.size :] = private
    return torch.tensor(state, dtype=torch.float32)


@pytest.mark.parametrize("settings", [{"world": WORLD}, SMALL], ids=["default", "small"])
@pytest.mark.parametrize("agent", AGENT_TYPES)
def test_a_published_checkpoint_means_the_same_here(agent: str, settings: dict) -> None:
    config, economy, policies = economy_and_policies(settings)
    torch.manual_seed(0)
    published, policy = PublishedNetwork(agent, config), policies[agent]
    states = raw_states(agent, economy)
    with torch.no_grad():
        before = policy.probabilities(states)
        policy.load_state_dict(published.state_dict())
        probabilities, value = published(states)
        got_heads, got_value = policy(states)
    assert not torch.allclose(before, probabilities, rtol=1e-2)
    torch.testing.assert_close(policy.probabilities(states), probabilities, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(torch.cat(got_heads, -1), probabilities, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(got_value, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("agent", AGENT_TYPES)
def test_files_have_the_published_names_shapes_and_order(agent: str) -> None:
    config, economy, policies = economy_and_policies(SMALL)
    expected = OrderedDict(
        (name, tuple(tensor.shape)) for name, tensor in PublishedNetwork(agent, config).state_dict().items()
    )
    policy = policies[agent]
    assert list(policy.file_shapes().items()) == list(expected.items())
    state = policy.state_dict()
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in state.values())
    for tensor in state.values():
        tensor.zero_()
    assert policy.flat.abs().min() >= 0 and policy.flat.any()  # copies: changing them leaves the policy alone


@pytest.mark.parametrize("agent", AGENT_TYPES)
def test_a_policy_goes_through_its_file_unchanged(agent: str) -> None:
    _, _, policies = economy_and_policies(SMALL)
    _, _, others = economy_and_policies({**SMALL, "train": {**SMALL["train"], "base_seed": 7}})
    assert not torch.equal(policies[agent].flat, others[agent].flat)
    others[agent].load_state_dict(policies[agent].state_dict())
    assert torch.equal(policies[agent].flat, others[agent].flat)


@pytest.mark.parametrize("agent", AGENT_TYPES)
def test_default_inputs(agent: str) -> None:
    _, _, policies = economy_and_policies({})
    shapes = policies[agent].file_shapes()
    assert shapes["fc1.weight"] == (128, DEFAULT_INPUTS[agent]) and shapes["fc4.weight"] == (1, 128)
    assert shapes["fc2.weight"] == (128, 128)
    if agent == "consumer":
        heads = [shapes[f"action_heads.{n}.weight"] for n in range(12)]
        assert heads == [(11, 128)] * 10 + [(5, 128), (10, 128)] and "fc3.weight" not in shapes
    else:
        assert shapes["fc3.weight"] == ({"firm": 30, "government": 36}[agent], 128)


def test_digits_are_remainders_also_of_debts() -> None:
    _, _, policies = economy_and_policies({"train": {"digit_representation_size": 4}})
    encoder = policies["consumer"].encoder
    x = torch.tensor([0.0, 7.25, 12345.0, -3.0, -12345.5])
    expected = [
        [0.0, 0.0, 0.0, 0.0],
        [0.725, 0.0725, 0.00725, 0.000725],
        [0.5, 0.45, 0.345, 0.2345],
        [0.7, 0.97, 0.997, 0.9997],  # the remainder of a debt is positive, as in the published code
        [0.45, 0.545, 0.6545, 0.76545],
    ]
    torch.testing.assert_close(encoder.digits(x), torch.tensor(expected), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("spoil", ["missing", "extra", "shape"])
def test_a_file_of_another_network_is_refused(spoil: str) -> None:
    _, _, policies = economy_and_policies(SMALL)
    state = policies["firm"].state_dict()
    if spoil == "missing":
        del state["fc4.bias"]
    elif spoil == "extra":
        state["fc5.bias"] = torch.zeros(1)
    else:
        state["fc3.weight"] = torch.zeros(31, 128)
    before = policies["firm"].flat.detach().clone()
    with pytest.raises(ValueError, match="a firm policy needs tensors"):
        policies["firm"].load_state_dict(state)
    assert torch.equal(policies["firm"].flat, before)


@pytest.mark.parametrize("agent", AGENT_TYPES)
def test_probabilities_are_those_of_each_head(agent: str) -> None:
    _, economy, policies = economy_and_policies(SMALL)
    policy, states = policies[agent], raw_states(agent, economy, rows=6).numpy()
    probabilities = policy.probabilities(states.reshape(2, 3, -1).astype(np.float64))
    sizes = economy.agents[agent].head_sizes
    assert probabilities.shape == (2, 3, sum(sizes)) and not probabilities.requires_grad
    for head in probabilities.split(sizes, dim=-1):
        torch.testing.assert_close(head.sum(-1), torch.ones(2, 3))
    allowed = torch.ones(sum(sizes), dtype=torch.uint8)
    allowed[0] = 0
    masked = policy.probabilities(states, allowed)
    assert not masked[:, 0].any()
    torch.testing.assert_close(masked[:, : sizes[0]].sum(-1), torch.ones(6))
    with pytest.raises(ValueError, match=f"a {agent} sees {states.shape[-1]}"):
        policy.probabilities(states[:, :-1])


def test_untrained_policies_follow_the_seed() -> None:
    first, again, other = (economy_and_policies({**SMALL, "train": {"base_seed": seed}})[2] for seed in (5, 5, 6))
    for agent in AGENT_TYPES:
        assert torch.equal(first[agent].flat, again[agent].flat)
        assert not torch.equal(first[agent].flat, other[agent].flat)
    assert not torch.equal(first["firm"].layers().weight2, first["government"].layers().weight2)
    bounds = first["consumer"].layers()
    assert bounds.weight2.abs().max() <= 128**-0.5 and bounds.weight2.abs().max() > 0.99 * 128**-0.5


def test_load_policies_gives_the_modules_of_a_run(tmp_path) -> None:
    config, economy, policies = economy_and_policies(SMALL)
    run = RunDir.create(tmp_path)
    prepare_run(run, config)
    for agent, policy in policies.items():
        run.save_policy(agent, "latest", policy.state_dict())
        with torch.no_grad():
            policy.flat.mul_(1.5)
        run.save_policy(agent, 40, policy.state_dict())
    loaded, earlier = rbc_warp.load_policies(run.path, episode=40), rbc_warp.load_policies(str(run.path))
    for agent in AGENT_TYPES:
        states = raw_states(agent, economy)
        torch.testing.assert_close(loaded[agent].probabilities(states), policies[agent].probabilities(states))
        assert not torch.equal(earlier[agent].probabilities(states), loaded[agent].probabilities(states))
        assert isinstance(loaded[agent], nn.Module)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_encoding_kernel_is_the_encoder_bit_for_bit(precision: str) -> None:
    """Of any number: negative, with a fraction, at the borders of the digits, huge, not finite."""
    trainer = RbcTrainer(load_config(SMALL, [f"train.precision={precision}", "train.batch_size=64"]), "host")
    generator = torch.Generator().manual_seed(0)
    borders = torch.tensor([0.0, -0.0, 10.0, -10.0, 9999.999, 1e4, 123456.7, -7e15, 3e38, torch.inf, torch.nan])
    names = {"consumer": "observations_consumer", "firm": "observations_firm", "open": "public_state"}
    for name in names.values():
        state = trainer._data(name)
        size = 10.0 ** (torch.rand(state.shape, generator=generator) * 18 - 3)
        state.copy_(torch.randn(state.shape, generator=generator) * size)
        flat = state.view(-1)
        flat[: 11 * 17 : 17] = borders
    trainer.rollout.note_observations(0)
    encoders = {name: policy.encoder for name, policy in trainer.models.items()}
    expected = {"open": encoders["firm"].encode_public(trainer._data("public_state"))}
    found = {"open": trainer.rollout.public[0]}
    for name in ("consumer", "firm"):
        expected[name] = encoders[name].encode_private(trainer._data(names[name])).flatten(0, 1)
        expected[name] = expected[name].to(trainer.precision)
        found[name] = trainer.rollout.private[name][0]
    for name, inputs in expected.items():
        words = torch.int16 if inputs.dtype == torch.bfloat16 else torch.int32
        number = ~inputs.isnan()
        assert torch.equal(found[name].isnan(), ~number), name
        assert torch.equal(found[name].view(words)[number], inputs.view(words)[number]), name
