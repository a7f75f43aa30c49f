"""The trainer in WarpDrive's own terms: what a user of WarpDrive calls does what WarpDrive documents."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import rbc_warp
from rbc_warp.config import load_config
from rbc_warp.economy.agents import AGENT_TYPES, FIRM_BUDGET
from rbc_warp.errors import ConfigError, RunFileError
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.run import prepare_run, train_run
from rbc_warp.training.rollout import EVALUATION_STREAM, Draw
from rbc_warp.training.trainer import RbcTrainer

CONFIG = {
    "agents": {"num_consumers": 6, "num_firms": 3, "consumer_reward_scale": 5},
    "world": {"maxtime": 4, "initial_stocks": 20, "initial_wages": 11},
    "train": {"batch_size": 5, "num_episodes": 7, "log_every": 3, "save_model_every": 3, "precision": "float32"},
}


@pytest.fixture
def trainer(tmp_path: Path) -> RbcTrainer:
    return rbc_warp.make_trainer(CONFIG, "host", folder=tmp_path / "warpdrive")


def weights(trainer: RbcTrainer) -> dict[str, torch.Tensor]:
    return {agent: trainer.models[agent].flat.detach().clone() for agent in AGENT_TYPES}


def batches(trainer: RbcTrainer) -> dict[str, torch.Tensor]:
    """Copies of all that an update reads."""
    held = {
        name: array.clone() for name, array in trainer.cuda_envs.cuda_data_manager._tensors.items() if "_batch" in name
    }
    held |= {f"private {name}": rows.clone() for name, rows in trainer.rollout.private.items()}
    return held | {"public": trainer.rollout.public.clone(), "sales": trainer.rollout.sales().clone()}


def test_train_does_what_the_launcher_does(trainer: RbcTrainer, tmp_path: Path) -> None:
    assert trainer.train() == 7 and trainer.perf_stats.iters == 7
    config = load_config(CONFIG)
    run = RunDir.create(tmp_path)
    prepare_run(run, config)
    train_run(run, config, "host", quiet=True)
    policies = rbc_warp.load_policies(run.path)
    for agent, mine in weights(trainer).items():
        assert torch.equal(mine, policies[agent].flat), agent
    stats = trainer.perf_stats.get_perf_stats()
    assert all(np.isfinite(value) and value > 0.0 for value in stats.values()), stats


def test_evaluation_sums_whole_episodes_and_changes_nothing(trainer: RbcTrainer) -> None:
    trainer.train(0, 2)
    before, kept = batches(trainer), weights(trainer)
    rewards, steps = trainer.evaluate_episodes()
    again, _ = trainer.evaluate_episodes()
    likely, _ = trainer.evaluate_episodes(use_argmax=True)
    for name, array in batches(trainer).items():
        assert torch.equal(array, before[name]), name
    assert all(torch.equal(kept[agent], now) for agent, now in weights(trainer).items())
    assert {agent: array.shape for agent, array in rewards.items()} == {
        "consumer": (5, 6),
        "firm": (5, 3),
        "government": (5, 1),
    }
    assert all((count == 4).all() and count.shape == (5,) for count in steps.values())
    trainer.play(Draw(trainer.iteration, EVALUATION_STREAM, greedy=True))
    for agent in AGENT_TYPES:
        np.testing.assert_array_equal(rewards[agent], again[agent])
        expected = trainer.rollout.rewards(agent).sum(0).numpy()  # the last period's reward is in it
        np.testing.assert_allclose(likely[agent], expected, rtol=1e-6, atol=1e-2)
    assert not np.array_equal(rewards["consumer"], likely["consumer"])


def test_training_goes_on_as_if_nobody_had_looked() -> None:
    looked, plain = (rbc_warp.make_trainer(CONFIG, "host") for _ in range(2))
    for iteration in range(4):
        looked.train(iteration, iteration + 1)
        looked.evaluate_episodes()
        looked.fetch_episode_states(["consumption"], env_id=iteration)
    plain.train(0, 4)
    for agent, expected in weights(plain).items():
        assert torch.equal(weights(looked)[agent], expected), agent


def test_states_of_an_episode_can_be_fetched(trainer: RbcTrainer) -> None:
    trainer.train(0, 1)
    before = batches(trainer)
    states, actions, rewards, probabilities = trainer.fetch_episode_states(
        ["observations_firm", "observations_government", "_timestep_"],
        env_id=2,
        include_rewards_actions=True,
        include_probabilities=True,
        policy="firm",
    )
    assert states["observations_firm"].shape == (5, 3, 6) and actions.shape == (4, 3, 1) and rewards.shape == (4, 3)
    assert states["_timestep_"].tolist() == [0, 1, 2, 3, 4]
    budgets = states["observations_firm"][..., FIRM_BUDGET]
    np.testing.assert_allclose(np.diff(budgets, axis=0), rewards, rtol=1e-5, atol=1.0)  # a firm's reward is its gain
    choices = trainer.economy.firm_choices
    posted = states["observations_government"][1:, 0, :3]
    np.testing.assert_allclose(posted, choices[actions[..., 0]][..., 0])  # posted a period later
    for period in range(4):
        (p,) = probabilities[period]["firm"]
        assert p.shape == (3, 30) and np.allclose(p.sum(-1), 1.0) and (p[range(3), actions[period, :, 0]] > 0.0).all()
    assert all(torch.equal(array, before[name]) for name, array in batches(trainer).items())


def test_checkpoints_are_saved_and_loaded(trainer: RbcTrainer, tmp_path: Path) -> None:
    trainer.train()
    folder = Path(trainer.save_dir)
    saved = {path.name for path in folder.glob("firm_*.state_dict")}
    assert saved == {f"firm_{20 * done}.state_dict" for done in (1, 4, 7)}  # by env-steps: a batch has 20
    logged = [json.loads(line) for line in (folder / "results.json").read_text().splitlines()]
    assert [line["Iterations Completed"] for line in logged] == [1, 4, 7]
    assert set(logged[0]["firm"]) >= {"Mean episodic reward", "policy_loss", "value_loss", "entropy"}

    other = rbc_warp.make_trainer({**CONFIG, "train": {**CONFIG["train"], "base_seed": 9}}, "host")
    latest = {agent: str(folder / f"{agent}_140.state_dict") for agent in AGENT_TYPES}
    other.load_model_checkpoint(latest)
    assert all(torch.equal(weights(other)[agent], now) for agent, now in weights(trainer).items())
    assert set(other.current_timestep.values()) == {140}
    with pytest.raises(RunFileError, match="nowhere.state_dict: does not exist; give a file that"):
        other.load_model_checkpoint({"firm": str(tmp_path / "nowhere.state_dict")})
    with pytest.raises(RunFileError, match="cannot be read as a policy"):
        other.load_model_checkpoint({"firm": latest["consumer"]})
    with pytest.raises(ConfigError, match="no policy is called 'bank'; there are: consumer, firm, government"):
        other.load_model_checkpoint({"bank": latest["firm"]})
    spoiled = torch.load(latest["firm"])
    spoiled["fc4.bias"] += torch.nan
    torch.save(spoiled, tmp_path / "firm_1.state_dict")
    with pytest.raises(RunFileError, match="firm_1.state_dict: holds NaN or infinity; use an earlier checkpoint"):
        other.load_model_checkpoint({"firm": str(tmp_path / "firm_1.state_dict")})


def test_a_part_of_a_training_is_kept_and_counted(trainer: RbcTrainer) -> None:
    assert trainer.train(4, 6) == 6  # iteration 5 is neither a third one nor the configured last
    folder = Path(trainer.save_dir)
    assert {path.name for path in folder.glob("firm_*.state_dict")} == {"firm_40.state_dict"}
    (line,) = (json.loads(text) for text in (folder / "results.json").read_text().splitlines())
    assert trainer.perf_stats.iters == line["Iterations Completed"] == 2 and trainer.perf_stats.steps == 40
    assert trainer.train() == 7  # as configured, whatever was trained before


def test_a_trainer_that_never_trained_plays_the_curriculum() -> None:
    frozen = {**CONFIG, "agents": {**CONFIG["agents"], "frozen_government_action": 7}}
    trainer = rbc_warp.make_trainer(frozen, "host")
    fetch = {"include_rewards_actions": True, "policy": "government"}
    assert (trainer.fetch_episode_states(["_timestep_"], **fetch)[1] == 7).all()
    trained = rbc_warp.make_trainer(CONFIG, "host")
    trained.train(0, 3)
    loaded = rbc_warp.make_trainer(CONFIG, "host")
    loaded.load_model_checkpoint({name: f"{trained.save_dir}/{name}_60.state_dict" for name in AGENT_TYPES})
    loaded.set_iteration(2)
    for agent, rewards in trained.evaluate_episodes(use_argmax=True)[0].items():
        np.testing.assert_array_equal(loaded.evaluate_episodes(use_argmax=True)[0][agent], rewards)


def test_a_policy_that_is_not_to_be_trained_stays(trainer: RbcTrainer) -> None:
    trainer.config["policy"]["consumer"]["to_train"] = False
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    assert torch.equal(before["consumer"], after["consumer"]) and not torch.equal(before["firm"], after["firm"])


def test_the_configuration_holds_what_is_read_and_no_more(trainer: RbcTrainer) -> None:
    """WarpDrive merges defaults (a learning rate, a discount factor, an entropy weight) that nothing here follows."""
    for policy in trainer.config["policy"].values():
        assert set(policy) == {"to_train", "lr", "model"}
    written = json.loads((Path(trainer.save_dir) / "run_config.json").read_text())
    assert written["policy"] == trainer.config["policy"] and written["saving"]["model_params_save_freq"] == 3


def test_the_example_in_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[1]
    (example,) = re.findall(r"^```python\n(.*?)^```", (root / "docs" / "warpdrive.md").read_text(), re.M | re.S)
    (tmp_path / "configs").symlink_to(root / "configs")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(example, names)  # noqa: S102
    assert names["rewards"]["firm"].shape == (8, 4) and names["states"]["public_state"].shape == (11, 19)


def test_the_temporary_folder_goes_with_the_trainer() -> None:
    trainer = rbc_warp.make_trainer(CONFIG, "host")
    folder = Path(trainer.save_dir)
    trainer.train(0, 1)
    assert (folder / "firm_20.state_dict").exists()
    trainer.graceful_close()
    assert not folder.exists()
    trainer.graceful_close()


def test_a_run_s_checkpoint_loads_into_a_trainer(tmp_path: Path) -> None:
    config = load_config(CONFIG)
    run = RunDir.create(tmp_path)
    prepare_run(run, config)
    train_run(run, config, "host", quiet=True)
    trainer = rbc_warp.make_trainer(config, "host")
    trainer.load_model_checkpoint({agent: str(run.policy_path(agent, "latest")) for agent in AGENT_TYPES})
    policies = rbc_warp.load_policies(run.path)
    assert all(torch.equal(mine, policies[agent].flat) for agent, mine in weights(trainer).items())
