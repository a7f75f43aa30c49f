"""Training on the host: the same run from the same seed, a known optimum, and what each setting does."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trainers import learn, play_iteration

from rbc_warp.config import Config, load_config
from rbc_warp.economy import reference
from rbc_warp.economy.agents import AGENT_TYPES, CONSUMER_BUDGET, CONSUMER_THETA, FIRM_BUDGET
from rbc_warp.economy.parameters import Economy
from rbc_warp.runs import metrics
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.run import prepare_run, train_run
from rbc_warp.training.losses import discounted_returns
from rbc_warp.training.rollout import EVALUATION_STREAM, Draw
from rbc_warp.training.schedule import Update
from rbc_warp.training.trainer import RbcTrainer, choose_precision
from rbc_warp.warpdrive import host

SMALL = {
    "agents": {
        "num_consumers": 5,
        "num_firms": 3,
        "consumer_reward_scale": 5,
        "firm_reward_scale": 30000,
        "government_reward_scale": 1000,
        "firm_training_start": 2,
        "consumer_anneal_theta": {"anneal_on": True, "exp_decay_length_in_steps": 3},
        "firm_anneal_prices": {"anneal_on": True, "start": 1000, "increase_const": 500, "decrease_const": 500},
    },
    "world": {"maxtime": 4, "initial_wages": 22, "paretoscaletheta": 4},
    "train": {"batch_size": 8, "num_episodes": 6, "log_every": 1, "save_model_every": 3, "save_dense_every": 3},
}


def small(*overrides: str) -> Config:
    return load_config(SMALL, list(overrides))


def train(config: Config, iterations: int | None = None) -> tuple[RbcTrainer, list[dict]]:
    """A trained trainer and its metrics."""
    trainer, records = RbcTrainer(config, "host"), []
    for iteration in range(config.train.num_episodes if iterations is None else iterations):
        play_iteration(trainer, iteration)
        records.append(metrics.record(trainer.rollout, iteration, learn(trainer, iteration)))
    return trainer, records


def weights(trainer: RbcTrainer) -> dict[str, torch.Tensor]:
    return {agent: trainer.models[agent].flat.detach().clone() for agent in AGENT_TYPES}


# The same seed, the same run


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_seed_gives_the_same_run_bit_for_bit(precision: str, tmp_path: Path) -> None:
    config = small(f"train.precision={precision}")
    runs = []
    for name in ("first", "second"):
        run = RunDir.create(tmp_path / name)
        prepare_run(run, config)
        torch.rand(3)  # no global generator has a say
        np.random.random()
        train_run(run, config, "host", quiet=True)
        runs.append(run)
    first, second = (run.metrics_path.read_bytes() for run in runs)
    assert first == second and len(first.splitlines()) == 6
    files = sorted(path.name for path in runs[0].saved_models_path.iterdir())
    assert files == sorted(path.name for path in runs[1].saved_models_path.iterdir()) and len(files) == 12
    for name in files:
        states = [torch.load(run.saved_models_path / name, weights_only=True) for run in runs]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0]), name


def test_another_seed_gives_another_run() -> None:
    (first, records), (second, others) = train(small(), 2), train(small("train.base_seed=1"), 2)
    assert records != others
    assert not torch.equal(first.rollout.actions("consumer"), second.rollout.actions("consumer"))


def test_every_bit_of_the_seed_counts() -> None:
    trainers = [RbcTrainer(small(f"train.base_seed={seed}"), "host") for seed in (5, 5 + 2**31, 2**32 - 1)]
    for trainer in trainers:
        trainer.load_state(trainers[0].state())
        play_iteration(trainer, 0)
    first, *others = (trainer.rollout.actions("consumer") for trainer in trainers)
    assert all(not torch.equal(first, other) for other in others)


def test_the_number_of_threads_does_not_change_what_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollout is the same bit for bit. Gradients are so up to rounding: torch splits its matrix products by threads,
    so that whole runs are bit-equal at equal numbers of threads only.
    """
    monkeypatch.setattr(host, "SMALL_WORK", 1)
    trainers, gradients = [], []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert host.threads_for(1) == threads
        trainer, _ = train(small("train.precision=float32", "agents.firm_training_start=0"), 1)
        trainers.append(trainer)
        gradients.append({agent: trainer.models[agent].flat.grad for agent in AGENT_TYPES})
    first, second = trainers
    for agent in AGENT_TYPES:
        for array in ("actions", "states", "rewards"):
            mine, other = (getattr(trainer.rollout, array)(agent) for trainer in trainers)
            assert torch.equal(mine, other), (agent, array)
        for array in ("values", "log_probabilities"):
            name = f"{array}_batch_{agent}"
            assert torch.equal(first._data(name), second._data(name)), name
        scale = float(gradients[0][agent].abs().max())
        torch.testing.assert_close(gradients[1][agent], gradients[0][agent], rtol=1e-5, atol=1e-6 * scale)


def test_draws_are_new_in_every_iteration_and_repeatable() -> None:
    trainer = RbcTrainer(small(), "host")
    trainer.set_iteration(0)

    def played(draw: Draw) -> torch.Tensor:
        trainer.play(draw)
        return trainer.rollout.actions("consumer").clone()

    first = played(Draw(0))
    assert torch.equal(played(Draw(0)), first)
    for other in (Draw(1), Draw(0, EVALUATION_STREAM), Draw(0, first_environment=8), Draw(0, greedy=True)):
        assert not torch.equal(played(other), first), other
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[:, 0], first[:, 1])
    shifted = played(Draw(0, first_environment=3))
    assert torch.equal(shifted[0, :5], first[0, 3:])


def test_a_rollout_is_what_the_reference_makes_of_its_actions() -> None:
    trainer = RbcTrainer(small(), "host")
    trainer.multipliers = {"consumer": 0.5, "firm": 2.0}
    play_iteration(trainer, 4, keep_consumption=True)
    actions = {agent: trainer.rollout.actions(agent).transpose(0, 1).numpy() for agent in AGENT_TYPES}
    expected = reference.rollout(trainer.economy, actions, trainer.curriculum.stage(4, trainer.multipliers))
    for agent in AGENT_TYPES:
        got = {
            "states": trainer.rollout.states(agent),
            "rewards": trainer.rollout.rewards(agent),
            "aux_array": trainer.rollout.aux(agent),
        }
        for key, tensor in got.items():
            if tensor.numel():
                np.testing.assert_allclose(
                    tensor.transpose(0, 1), expected[agent][key], rtol=1e-4, atol=1e-2, err_msg=f"{agent} {key}"
                )
    sold = torch.from_numpy(expected["consumer"]["aux_array"]).sum(2).transpose(0, 1).float()
    torch.testing.assert_close(trainer.rollout.sales(), sold, rtol=1e-4, atol=1e-3)


# A known optimum: one consumer, four periods, prices and wages fixed. It may save, at interest, and work.

PLAN = {
    "agents": {
        "num_consumers": 1,
        "num_firms": 1,
        "consumption_choices": [0, 1, 2, 3],
        "work_choices": [0, 300],
        "price_choices": [100],
        "wage_choices": [0.5],
        "investment_choices": [0],
        "income_tax_choices": [0],
        "corporate_tax_choices": [0],
        "frozen_firm_action": 0,
        "frozen_government_action": 0,
    },
    "world": {
        "maxtime": 4,
        "initial_prices": 100,
        "initial_wages": 0.5,
        "initial_stocks": 100,
        "initial_consumer_endowment": 300,
        "consumer_theta": 0.003,
        "crra_param": 1.0,
        "interest_rate": 0.05,
        "use_importer": 0,
    },
    "train": {"batch_size": 64, "gamma": 1.0, "lr": 0.005, "entropy": 0.02, "num_episodes": 160},
}


def returns_of_all_plans(config: Config) -> np.ndarray:
    """The consumer's return from each of its open-loop plans; nothing is random, so the best one is the optimum."""
    economy = Economy.from_config(config)
    units, hours = len(economy.consumption_choices), len(economy.work_choices)
    plans = np.array(list(itertools.product(range(units * hours), repeat=economy.num_periods)))
    consumer = np.stack([plans // hours, plans % hours, np.zeros_like(plans)], axis=-1)[:, :, None]
    fixed = np.zeros((len(plans), economy.num_periods, 1), int)
    played = reference.rollout(economy, {"consumer": consumer, "firm": fixed, "government": fixed})
    return played["consumer"]["rewards"].sum(axis=(1, 2))


@pytest.mark.parametrize("learner, precision", [("fused", "float32"), ("fused", "bfloat16"), ("autograd", "float32")])
@pytest.mark.parametrize("use_ppo", ["true", "false"], ids=["ppo", "policy-gradient"])
def test_a_known_optimum_is_learned(use_ppo: str, learner: str, precision: str) -> None:
    settings = {"use_ppo": use_ppo, "learner": learner, "precision": precision}
    config = load_config(PLAN, [f"train.{key}={value}" for key, value in settings.items()])
    returns = returns_of_all_plans(config)
    optimum = returns.max()
    assert len(returns) == 4096 and 0 < (returns >= 0.99 * optimum).sum() < 10
    trainer, _ = train(config)
    for greedy in (True, False):
        trainer.play(Draw(0, EVALUATION_STREAM, greedy=greedy))
        reached = float(trainer.rollout.rewards("consumer").sum(0).mean())
        assert 0.99 * optimum <= reached <= optimum + 1e-4, f"greedy {greedy}: {reached / optimum:.4f} of the optimum"


# What each setting does


def test_reward_scales_divide_what_is_learned_from_only() -> None:
    config = small("agents.consumer_reward_scale=50")
    trainer, plain = RbcTrainer(config, "host"), RbcTrainer(small(), "host")
    seen = []
    for each in (trainer, plain):
        play_iteration(each, 0)
        learner = each.learners["consumer"]
        learner.update = lambda given, *_: seen.append(next(iter(given))) or torch.zeros(())
        each.update(Update("consumer", 0.0, 0.0, 1e-3), 0)
    assert torch.equal(trainer.rollout.rewards("consumer"), plain.rollout.rewards("consumer"))
    torch.testing.assert_close(seen[0].target * 10.0, seen[1].target)
    expected = discounted_returns(plain.rollout.rewards("consumer") / 5.0, 0.9999).flatten()
    torch.testing.assert_close(seen[1].target, expected)


@pytest.mark.parametrize(("agent", "parts", "passes"), [("consumer", 2, 1), ("consumer", 3, 4), ("firm", 4, 2)])
def test_minibatches_are_random_parts_of_the_batch(agent: str, parts: int, passes: int) -> None:
    """Every pass takes each row once: in parts of the environments, or of the agents where there are more of them."""
    envs = 2 if agent == "consumer" else 8
    given = (f"agents.{agent}_minibatches={parts}", f"agents.{agent}_passes={passes}", f"train.batch_size={envs}")
    trainer = RbcTrainer(small(*given), "host")
    play_iteration(trainer, 0)
    seen: list[list] = []
    trainer.learners[agent].update = lambda given, *_: seen.append(list(given)) or torch.zeros(())
    for iteration in (0, 0, 1):
        trainer.update(trainer.schedule.update_of(trainer.economy.agents[agent], 0), iteration)
    whole = trainer.rollout.batch(agent, 0.9999, 1.0, trainer.processes)
    count = trainer.economy.agents[agent].count
    assert all(len(steps) == parts * passes for steps in seen)
    assert all(torch.equal(a.target, b.target) for a, b in zip(seen[0], seen[1], strict=True))
    assert not all(torch.equal(a.target, b.target) for a, b in zip(seen[0], seen[2], strict=True))
    for one in range(passes):
        steps = seen[0][one * parts : (one + 1) * parts]
        targets = torch.cat([step.target for step in steps])
        torch.testing.assert_close(targets.sort().values, whole.target.sort().values)
        for step in steps:
            agents = len(step.actions) // len(step.public)
            assert agents == count if agent == "firm" else len(step.public) == len(whole.public)
            # Each row keeps its own columns and its observation.
            for row in range(0, len(step.actions), 7):
                (at,) = torch.nonzero((whole.target == step.target[row]) & (whole.value == step.value[row]))[0]
                assert torch.equal(whole.private[at], step.private[row])
                assert torch.equal(whole.public[at // count], step.public[row // agents])


def test_an_update_takes_the_learning_rate_of_its_iteration() -> None:
    trainer, _ = train(small("train.lr_decay_start=2"), 5)  # iteration 4 of 6
    assert trainer.optimizers["consumer"].param_groups[0]["lr"] == pytest.approx(0.001 * 0.5)


def test_each_type_has_its_learning_rate() -> None:
    config = small("train.lr=0.01", "agents.firm_lr_multiple=0.5", "agents.government_lr_multiple=0")
    trainer, _ = train(config, 0)
    rates = {agent: trainer.optimizers[agent].param_groups[0]["lr"] for agent in AGENT_TYPES}
    assert rates == {"consumer": 0.01, "firm": 0.005, "government": 0.0}
    before = weights(trainer)
    play_iteration(trainer, 3)
    learn(trainer, 3)
    after = weights(trainer)
    assert torch.equal(before["government"], after["government"])
    ratio = (after["firm"] - before["firm"]).abs().max() / (after["consumer"] - before["consumer"]).abs().max()
    assert float(ratio) == pytest.approx(0.5, abs=0.05)


def test_only_types_that_are_due_are_updated() -> None:
    trainer, _ = train(small(), 0)
    for iteration in range(4):
        before = weights(trainer)
        play_iteration(trainer, iteration)
        losses = learn(trainer, iteration)
        due = {"consumer", "government"} | ({"firm"} if iteration >= 2 else set())
        assert set(losses) == due
        assert {agent for agent in AGENT_TYPES if not torch.equal(before[agent], weights(trainer)[agent])} == due


def test_frozen_types_play_one_action_and_keep_their_weights() -> None:
    config = small("agents.frozen_firm_action=17", "agents.frozen_government_action=14")
    trainer, _ = train(config, 0)
    before = weights(trainer)
    for iteration in range(3):
        play_iteration(trainer, iteration)
        assert torch.all(trainer.rollout.actions("firm") == 17) and torch.all(
            trainer.rollout.actions("government") == 14
        )
        assert set(learn(trainer, iteration)) == {"consumer"}
    after = weights(trainer)
    assert torch.equal(before["firm"], after["firm"]) and torch.equal(before["government"], after["government"])
    assert not torch.equal(before["consumer"], after["consumer"])
    posted = trainer.rollout.states("government")[1:, ..., : 2 * 3]
    price, wage = trainer.economy.firm_choices[17, :2]
    assert torch.all(posted[..., :3] == price) and torch.all(posted[..., 3:] == wage)


def test_masks_hold_in_sampling_and_in_the_update() -> None:
    trainer = RbcTrainer(small(), "host")
    play_iteration(trainer, 0)
    choices = torch.as_tensor(trainer.economy.firm_choices)
    assert torch.all(choices[trainer.rollout.actions("firm").long()][..., 0] == 1000.0)
    before = trainer.models["firm"].layers().weight3.detach().clone()
    trainer.update(Update("firm", 0.5, 0.5, 1e-3), 0)
    changed = (trainer.models["firm"].layers().weight3 != before).any(dim=1)
    assert changed[:-1].tolist() == (choices[:, 0] == 1000.0).tolist() and changed[-1]


def test_theta_is_shown_and_felt_at_the_stage() -> None:
    trainer = RbcTrainer(small(), "host")
    for iteration, factor in ((0, 0.0), (3, 1.0 - np.exp(-1.0))):
        play_iteration(trainer, iteration)
        seen = trainer.rollout.private_states("consumer")[..., CONSUMER_THETA]
        torch.testing.assert_close(seen[0, 0], torch.tensor(factor * trainer.economy.theta, dtype=torch.float32))


def test_no_ponzi_coefficients_rise_with_debt() -> None:
    config = small(
        "world.initial_firm_endowment=0",
        "world.initial_wages=44",
        "agents.firm_noponzi_eta=0.01",
        "agents.firm_noponzi_start=0.5",
        "train.lagr_num_steps=2",
        "agents.firm_training_start=0",
        "agents.consumer_anneal_theta=null",
    )
    trainer = RbcTrainer(config, "host")
    expected = 0.5
    for iteration in range(4):
        assert (
            trainer.curriculum.stage(iteration, trainer.multipliers).firm_multiplier
            == trainer.multipliers["firm"]
            == pytest.approx(expected, rel=1e-5)
        )
        play_iteration(trainer, iteration)
        debt = (-trainer._data("observations_firm")[..., FIRM_BUDGET]).clamp_min(0.0).mean() / 100.0
        assert debt > 0.0
        learn(trainer, iteration)
        expected += 0.01 * float(debt) * (iteration % 2 == 0)
    assert trainer.multipliers["consumer"] == 0.0
    # The reward of the last period is short of the coefficient times the debt; others are as without it.
    trainer.set_stage(replace(trainer.curriculum.stage(0, trainer.multipliers), firm_multiplier=3.0), {})
    trainer.play(Draw(9))
    charged, final = (
        trainer.rollout.rewards("firm").clone(),
        trainer._data("observations_firm")[..., FIRM_BUDGET].clone(),
    )
    trainer.set_stage(replace(trainer.curriculum.stage(0, trainer.multipliers), firm_multiplier=0.0), {})
    trainer.play(Draw(9))
    expected_loss = 3.0 * (-final).clamp_min(0.0) / 100.0
    torch.testing.assert_close(trainer.rollout.rewards("firm")[-1] - charged[-1], expected_loss, rtol=1e-3, atol=1.0)
    assert torch.equal(trainer.rollout.rewards("firm")[:-1], charged[:-1])


@pytest.mark.parametrize("use_ppo", ["true", "false"])
def test_one_period_and_one_environment_suffice(use_ppo: str, tmp_path: Path) -> None:
    overrides = ["world.maxtime=1", "train.batch_size=1", "train.num_episodes=2", f"train.use_ppo={use_ppo}"]
    config = small(*overrides, "agents.num_firms=1", "agents.num_consumers=1")
    run = RunDir.create(tmp_path)
    prepare_run(run, config)
    result = train_run(run, config, "host", quiet=True)
    assert result.status == "finished" and result.iterations == 2
    values = [value for section in ("reward", "economy") for value in result.record[section].values()]
    assert np.isfinite(values).all()


def test_there_is_one_government() -> None:
    trainer, _ = train(small("agents.num_governments=1"), 1)
    assert trainer.env.agent_ids == {"consumer": [0, 1, 2, 3, 4], "firm": [5, 6, 7], "government": [8]}
    assert trainer.rollout.rewards("government").shape == (4, 8, 1)


def test_losses_and_weights_stay_finite_at_extreme_scales() -> None:
    config = small("world.initial_prices=0", "train.lr=1", "agents.consumer_reward_scale=0.000001", "train.entropy=0")
    trainer, records = train(config, 4)
    assert all(np.isfinite(list(losses.values())).all() for r in records for losses in r["loss"].values())
    assert all(torch.isfinite(w).all() for w in weights(trainer).values())
    assert trainer.rollout.private_states("consumer")[..., CONSUMER_BUDGET].isfinite().all()


def test_precision_follows_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for name in ("float32", "bfloat16"):
        assert choose_precision(small(f"train.precision={name}"), cpu) == getattr(torch, name)
    for native in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert choose_precision(small(), cpu) == (torch.bfloat16 if native else torch.float32)


def test_metrics_are_the_means_of_the_rollout() -> None:
    trainer, records = train(small(), 1)
    record: dict[str, Any] = records[0]
    economy, choices = trainer.economy, trainer.economy.firm_choices
    assert record["reward"] == {agent: float(trainer.rollout.rewards(agent).double().mean()) for agent in AGENT_TYPES}
    assert record["economy"]["price"] == pytest.approx(choices[trainer.rollout.actions("firm").numpy(), 0].mean())
    hours = economy.work_choices[trainer.rollout.actions("consumer")[..., economy.num_firms].numpy()]
    assert record["economy"]["hours"] == pytest.approx(hours.mean())
    assert record["economy"]["exports"] == pytest.approx(float(trainer.rollout.aux("firm").double().mean()))
