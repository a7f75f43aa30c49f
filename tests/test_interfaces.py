"""Interfaces: the same economy as the trainer's, checked input, and PettingZoo's own tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from economies import random_actions
from pettingzoo.test import max_cycles_test, parallel_api_test, parallel_seed_test
from pettingzoo.utils.conversions import parallel_to_aec
from trainers import play_iteration

import rbc_warp
from rbc_warp.config import Config, load_config
from rbc_warp.economy.curriculum import allowed_actions
from rbc_warp.errors import ActionError, ConfigError
from rbc_warp.training.recorder import Recorder
from rbc_warp.training.trainer import RbcTrainer

ROOT = Path(__file__).parents[1]
SMALL = ["agents.num_consumers=4", "agents.num_firms=2", "world.maxtime=3", "world.initial_stocks=20"]


def small(*more: str) -> Config:
    return load_config(ROOT / "configs" / "smoke.yaml", [*SMALL, *more])


@pytest.mark.parametrize("iteration", [0, 7, 1000])
def test_equal_actions_bring_what_they_bring_the_trainer(iteration: int) -> None:
    config = load_config(ROOT / "configs" / "rbc.yaml", ["train.batch_size=3"])
    trainer = RbcTrainer(config, "host", recorder=Recorder())
    play_iteration(trainer, iteration, keep_consumption=True)
    env = rbc_warp.vector_env(config, backend="host", iteration=iteration)
    env.reset()
    for period in range(env.num_periods):
        for name in env.types:
            torch.testing.assert_close(env.states(name), trainer.rollout.states(name)[period], rtol=0, atol=0)
        taken = {name: trainer.rollout.actions(name)[period] for name in env.types}
        _, rewards, terminated, truncated, info = env.step(taken)
        for name in env.types:
            torch.testing.assert_close(rewards[name], trainer.rollout.rewards(name)[period], rtol=0, atol=0)
        torch.testing.assert_close(info["consumption"], trainer.rollout.aux("consumer")[period], rtol=0, atol=0)
        torch.testing.assert_close(info["exports"], trainer.rollout.aux("firm")[period], rtol=0, atol=0)
        assert terminated.tolist() == [period == env.num_periods - 1] * 3 and not truncated.any()


def test_what_a_network_sees_is_what_the_trainer_gives_it() -> None:
    config = small("train.batch_size=2")
    trainer = RbcTrainer(config, "host", recorder=Recorder())
    trainer.set_iteration(0)
    trainer.cuda_envs.reset_all_envs()
    trainer.forward(0)
    env = rbc_warp.vector_env(config, iteration=0)
    env.reset()
    for name, policy in trainer.models.items():
        states = env.states(name)
        given = policy.encoded_outputs(
            *env.encoded(name).split([policy.encoder.num_public, policy.encoder.num_private], -1)
        )
        torch.testing.assert_close(given, policy.outputs(states))


def test_tensors_are_the_economys_own() -> None:
    env = rbc_warp.vector_env(small(), num_envs=2)
    seen = env.reset()
    before = {name: tensor.data_ptr() for name, tensor in seen.items()}
    env.actions["firm"].fill_(1)  # no array is handed over
    after, rewards, *_ = env.step()
    assert {name: tensor.data_ptr() for name, tensor in after.items()} == before
    assert rewards is env.rewards and env.period == 1
    assert (after["public"][:, -1] == 1).all(), "the clock has moved in what was returned by reset, too"
    assert seen["public"] is after["public"]


def given(env: rbc_warp.interfaces.vector.VectorEnv, **changes: object) -> dict[str, object]:
    actions = random_actions(env.economy, env.num_envs, 1, 0)
    return {name: changes.get(name, value[:, 0]) for name, value in actions.items()}


@pytest.mark.parametrize(
    ("agent", "value", "words"),
    [
        ("firm", np.full((2, 3), 0), r"shape \(2, 3\).*needs \(2, 2, 1\)"),
        ("firm", np.array([[0.0, np.nan], [0, 0]]), "float64; give integer"),
        ("firm", np.array([[0, 30], [0, 0]]), r"actions\['firm'\]\[0, 1, 0\] is 30; allowed: 0 to 29"),
        ("firm", np.array([[0, 0], [2**32, 0]]), r"\[1, 0, 0\] is 4294967296"),
        ("consumer", torch.full((2, 4, 4), -1), r"actions\['consumer'\]\[0, 0, 0\] is -1; allowed: 0 to 10"),
        ("government", "x", "no array of numbers"),
        ("government", np.ones((2, 1), dtype=bool), "bool; give integer"),
    ],
)
def test_bad_actions_are_named_and_nothing_is_played(agent: str, value: object, words: str) -> None:
    env = rbc_warp.vector_env(small(), num_envs=2)
    env.reset()
    env.step(given(env))
    kept = {name: tensor.clone() for name, tensor in (env.observations | env.actions).items()}
    with pytest.raises(ActionError, match=words):
        env.step(given(env, **{agent: value}))
    assert env.period == 1
    for name, tensor in (env.observations | env.actions).items():
        assert torch.equal(tensor, kept[name])


def test_an_episode_is_begun_and_not_played_beyond_its_end() -> None:
    env = rbc_warp.vector_env(small(), num_envs=2)
    with pytest.raises(ActionError, match="has not begun"):
        env.step(given(env))
    first = {name: tensor.clone() for name, tensor in env.reset().items()}
    for _ in range(3):
        env.step(given(env))
    with pytest.raises(ActionError, match="has ended.*3 periods"):
        env.step(given(env))
    for name, tensor in env.reset().items():
        assert torch.equal(tensor, first[name])
    with pytest.raises(ActionError, match="keys"):
        env.step({"firm": np.zeros((2, 2), dtype=int)})


def test_a_stage_allows_what_the_curriculum_allows() -> None:
    config = load_config(ROOT / "configs" / "rbc.yaml")
    env = rbc_warp.vector_env(config, num_envs=1, iteration=100)
    allowed = allowed_actions(config, env.economy, 100)
    for name, mask in allowed.items():
        assert env.allowed[name].tolist() == mask.tolist()
    assert not allowed["government"].all()
    env.reset()
    fine = {name: mask.int().argmax() * torch.ones_like(env.actions[name]) for name, mask in env.allowed.items()}
    with pytest.raises(ActionError, match=r"actions\['government'\]\[0, 0, 0\] is 1; the stage allows \[0\]"):
        env.step(fine | {"government": torch.tensor([[1]])})
    env.step(fine)
    env.set_iteration(None)
    assert all(mask.all() for mask in env.allowed.values())
    frozen = rbc_warp.vector_env(small("agents.frozen_government_action=7"), num_envs=1)
    assert frozen.allowed["government"].nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_envs": 0}, "num_envs 0"),
        ({"num_envs": 2.5}, "num_envs 2.5"),
        ({"iteration": -1}, "iteration -1"),
        ({"iteration": True}, "iteration True"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        rbc_warp.vector_env(small(), **arguments)  # type: ignore[arg-type]


def test_pettingzoos_own_tests_pass() -> None:
    def make(max_cycles: int | None = None) -> rbc_warp.interfaces.parallel.RbcParallelEnv:
        return rbc_warp.parallel_env(small(), max_cycles=max_cycles)

    parallel_api_test(make(), num_cycles=50)
    parallel_seed_test(make)
    aec = lambda max_cycles: parallel_to_aec(make(max_cycles))  # noqa: E731
    long = SimpleNamespace(
        parallel_env=lambda max_cycles: rbc_warp.parallel_env(small("world.maxtime=9"), max_cycles=max_cycles),
        env=lambda max_cycles: parallel_to_aec(rbc_warp.parallel_env(small("world.maxtime=9"), max_cycles=max_cycles)),
    )
    max_cycles_test(long)
    assert aec(3).possible_agents == [*(f"consumer_{n}" for n in range(4)), "firm_0", "firm_1", "government_0"]


def test_agents_one_by_one_are_the_same_economy() -> None:
    config = small()
    env, vector = rbc_warp.parallel_env(config), rbc_warp.vector_env(config, num_envs=1)
    observations, infos = env.reset(seed=5)
    vector.reset()
    assert infos["firm_1"]["action_mask"].shape == (30,) and len(infos["consumer_0"]["action_mask"]) == 4
    for _ in range(3):
        actions = {agent: env.action_space(agent).sample(mask=infos[agent]["action_mask"]) for agent in env.agents}
        observations, rewards, ended, cut, infos = env.step(actions)
        joined = {name: np.array([[np.atleast_1d(actions[f"{name}_{n}"]) for n in range(kind.count)]])
                  for name, kind in vector.types.items()}  # fmt: skip
        vector.step(joined)
        for name, kind in vector.types.items():
            for n in range(kind.count):
                assert rewards[f"{name}_{n}"] == float(vector.rewards[name][0, n])
                assert np.array_equal(observations[f"{name}_{n}"], vector.states(name)[0, n].numpy())
    assert all(ended.values()) and not any(cut.values()) and env.agents == []
    with pytest.raises(ActionError, match="reset"):
        env.step(actions)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"firm_9": 0}, "no agent is named 'firm_9'; there are consumer_0 to consumer_3"),
        ({"firm_1": None}, "none for firm_1"),
        ({"firm_1": 0.5}, r"actions\['firm_1'\] is float64.*Discrete\(30\)"),
        ({"consumer_2": [0, 0]}, r"actions\['consumer_2'\] is int64 of shape \(2,\)"),
        ({"firm_1": 30}, "is 30; allowed: 0 to 29"),
    ],
)
def test_bad_actions_of_one_agent_are_named(change: dict[str, object], words: str) -> None:
    env = rbc_warp.parallel_env(small())
    env.reset()
    actions = {agent: env.action_space(agent).sample() for agent in env.agents} | change
    with pytest.raises(ActionError, match=words):
        env.step({agent: action for agent, action in actions.items() if action is not None})


def test_the_example_learns() -> None:
    path = ROOT / "examples" / "train_in_torch.py"
    assert len(path.read_text().splitlines()) < 120
    spec = importlib.util.spec_from_file_location("train_in_torch", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    means = example.main(["--config", str(ROOT / "configs" / "smoke.yaml"), "--iterations", "60"])

    def mean(agent: str, first: int, last: int) -> float:
        return float(np.mean([each[agent] for each in means[first:last]]))

    assert mean("consumer", 15, 20) > mean("consumer", 0, 5) + 0.2  # alone
    assert mean("firm", 35, 40) > 2 * mean("firm", 15, 20)
