"""Trials of single firms in training: what they change, and what is learned from them."""

from __future__ import annotations

import math

import pytest
import torch
from trainers import as_a_gpu_multiplies

from rbc_warp.config import load_config
from rbc_warp.economy.agents import FIRM_PRICE, FIRM_WAGE
from rbc_warp.training.recorder import Recorder
from rbc_warp.training.rollout import Draw
from rbc_warp.training.trainer import RbcTrainer
from rbc_warp.training.trials import LARGEST_ADVANTAGE, REACH, Trials, places_of_trials
from rbc_warp.warpdrive.host import HostFunctionManager

SETTINGS = {
    "agents": {"num_consumers": 5, "num_firms": 3, "firm_trials": 12, "firm_training_start": 1, "trials_end": 3},
    "world": {"maxtime": 4, "initial_wages": 22},
    "train": {"batch_size": 16, "num_episodes": 5, "precision": "float32"},
}
GAMMA = 0.9999


@pytest.fixture
def trainer() -> RbcTrainer:
    return RbcTrainer(load_config(SETTINGS), "host", recorder=Recorder())


def trials_of(trainer: RbcTrainer, seed: int = 0) -> Trials:
    economy = trainer.economy
    where = torch.arange(2, 14)
    trials = Trials(economy.agents["firm"], economy.num_periods, where, trainer.learners["firm"], trainer.words)
    trials.draw(seed)
    return trials


def test_a_trial_is_one_action_of_one_firm_in_one_period(trainer: RbcTrainer) -> None:
    trainer.play(Draw(7))
    plain, rewards = trainer.rollout.actions("firm").clone(), trainer.rollout.rewards("firm").clone()
    trials = trials_of(trainer)
    trainer.interventions = (trials,)
    trainer.play(Draw(7))
    changed = trainer.rollout.actions("firm")
    assert torch.equal(changed[:, :2], plain[:, :2])
    for k, e in enumerate(range(2, 14)):
        t, firm = int(trials.when[k]), int(trials.who[k])
        assert changed[t, e, firm] == trials.action[k]
        others = [j for j in range(3) if j != firm]
        assert torch.equal(changed[: t + 1, e][:, others], plain[: t + 1, e][:, others])
        assert torch.equal(changed[:t, e], plain[:t, e])  # until then the same episode
        assert torch.equal(trainer.rollout.rewards("firm")[:t, e], rewards[:t, e])


def test_trials_that_paid_replace_what_was_drawn_and_others_nothing(trainer: RbcTrainer) -> None:
    trials = trials_of(trainer)
    trainer.interventions = (trials,)
    trainer.play(Draw(7))
    trials.note(trainer.rollout, GAMMA)
    tried = trainer.rollout.rewards("firm").clone()
    trainer.interventions = ()
    trainer.play(Draw(7))
    batch = trainer.rollout.batch("firm", GAMMA, 1.0, trainer.processes)
    got = trials.learned_from(batch, trainer.rollout, GAMMA, weight=2.0, reach=REACH)
    spread = (batch.target - batch.value).double().std()
    probabilities = trainer.models["firm"].probabilities(trainer.rollout.states("firm"))
    untouched = torch.ones(len(batch.actions), dtype=torch.bool)
    paid = 0
    for k, e in enumerate(range(2, 14)):
        t, firm = int(trials.when[k]), int(trials.who[k])
        after = (tried[t:, e, firm] - trainer.rollout.rewards("firm")[t:, e, firm]).double()
        gain = sum(GAMMA**n * float(r) for n, r in enumerate(after))
        if gain <= 0.0:
            continue
        paid += 1
        row = (t * 16 + e) * 3 + firm
        untouched[row] = False
        assert got.actions[row, 0] == trials.action[k] and got.target[row] == batch.value[row]
        expected = math.exp(REACH) * min(2.0 * gain / float(spread), LARGEST_ADVANTAGE)
        assert float(got.advantage[row]) == pytest.approx(expected, rel=1e-3)
        p = float(probabilities[t, e, firm, trials.action[k]])
        assert float(got.log_probability[row]) == pytest.approx(math.log(p) + REACH, abs=1e-4)
    assert 0 < paid < 12
    for name in ("public", "private", "value"):
        assert torch.equal(getattr(got, name), getattr(batch, name))
    for name in ("actions", "log_probability", "advantage", "target"):
        assert torch.equal(getattr(got, name)[untouched], getattr(batch, name)[untouched])


def test_trials_come_in_their_iterations_only_and_leave_the_episodes_as_they_are(trainer: RbcTrainer) -> None:
    """The rollout that everybody learns from is the same with and without them."""
    plain = RbcTrainer(load_config(SETTINGS, ["agents.firm_trials=0"]), "host", recorder=Recorder())
    for iteration in range(5):
        trainer.iteration = plain.iteration = iteration
        plays = []
        play = trainer.play
        trainer.play = lambda *given, play=play, plays=plays: plays.append(play(*given))  # type: ignore[method-assign]
        trainer._generate_rollout_batch()
        trainer.play = play  # type: ignore[method-assign]
        assert len(plays) == (2 if 1 <= iteration < 3 else 1)
        plain._generate_rollout_batch()
        for agent in trainer.economy.agents:
            assert torch.equal(trainer.rollout.rewards(agent), plain.rollout.rewards(agent))


def test_a_trial_changes_one_part_of_the_draw_to_what_is_allowed(trainer: RbcTrainer) -> None:
    choices = trainer.economy.firm_choices
    trainer.heads["firm"].allowed.copy_(torch.from_numpy((choices[:, FIRM_PRICE] >= 1500).astype("uint8")))
    seen = set()
    for seed in range(20):
        trainer.interventions = ()
        trainer.play(Draw(7))
        plain = trainer.rollout.actions("firm").clone()
        trials = trials_of(trainer, seed)
        trainer.interventions = (trials,)
        trainer.play(Draw(7))
        for k, e in enumerate(range(2, 14)):
            before, after = (choices[int(a)] for a in (plain[trials.when[k], e, trials.who[k]], trials.action[k]))
            (changed,) = (before != after).nonzero()
            assert len(changed) <= 1 and after[FIRM_PRICE] >= 1500
            seen |= {(int(column), float(after[column])) for column in changed}
    prices, wages = {1500.0, 2000.0, 2500.0}, {0.0, 11.0, 22.0, 33.0, 44.0}
    assert seen == {(FIRM_PRICE, p) for p in prices} | {(FIRM_WAGE, w) for w in wages}


def test_several_trials_in_an_environment_are_in_different_periods(trainer: RbcTrainer) -> None:
    where = torch.arange(10) % 4
    trials = Trials(trainer.economy.agents["firm"], 4, where, trainer.learners["firm"], trainer.words)
    trials.draw(0)
    assert len(set(zip(where.tolist(), trials.when.tolist(), strict=True))) == 10
    trainer.interventions = (trials,)
    trainer.play(Draw(7))
    played = trainer.rollout.actions("firm")[trials.when, where, trials.who]
    assert torch.equal(played.long(), trials.action)


def test_every_type_tries_in_environments_of_its_own(trainer: RbcTrainer) -> None:
    given = ["agents.firm_trials=30", "agents.government_trials=5", "agents.firm_training_start=0"]
    trainer = RbcTrainer(load_config(SETTINGS, given), "host", recorder=Recorder())
    trials = trainer._drawn_trials()
    assert sorted(trials["government"].where.tolist()) == list(range(11, 16))
    assert sorted(set(trials["firm"].where.tolist())) == list(range(11)) and len(trials["firm"].where) == 30


@pytest.mark.parametrize(
    ("numbers", "envs", "expected"),
    [
        ({"firm": 3}, 1, {"firm": [0, 0, 0]}),
        ({"firm": 6, "government": 2}, 1, {"firm": [0, 0, 0, 0]}),  # one each period; none is left for the government
        ({"firm": 6, "government": 2}, 2, {"government": [1], "firm": [0, 0, 0, 0]}),
        ({"firm": 2, "government": 3}, 8, {"firm": [7, 6], "government": [5, 4, 3]}),
        ({"firm": 5, "government": 1}, 4, {"government": [3], "firm": [2, 1, 0, 2, 1]}),
        ({}, 4, {}),
    ],
)
def test_trials_find_places_in_any_number_of_environments(numbers: dict, envs: int, expected: dict) -> None:
    places = places_of_trials(numbers, envs, num_periods=4)
    assert {name: where.tolist() for name, where in places.items()} == expected


@pytest.mark.parametrize("more", ["train.use_ppo=false", "train.batch_size=1"])
def test_trials_train_by_either_rule_and_in_a_single_environment(more: str) -> None:
    settings = [more, "agents.government_trials=2", "agents.firm_training_start=0", "train.num_episodes=2"]
    trainer = RbcTrainer(load_config(SETTINGS, settings), "host", recorder=Recorder())
    before = trainer.models["firm"].flat.detach().clone()
    trainer.train()
    after = trainer.models["firm"].flat.detach()
    assert torch.isfinite(after).all() and not torch.equal(before, after)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_trials_change_the_padded_logits_of_a_gpu_in_a_single_environment(
    monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    as_a_gpu_multiplies(monkeypatch)
    monkeypatch.setattr(HostFunctionManager, "draws_from_rounded", True)
    config = load_config(SETTINGS, ["train.batch_size=1", f"train.precision={precision}"])
    trainer = RbcTrainer(config, "host", recorder=Recorder())
    assert trainer.train(0, 3) == 3 and trainer._trials


def test_firms_learn_from_a_trial_what_pays_alone() -> None:
    """Firms who all post one price and never draw another find the better one by trials, and not without them."""
    agents = {"num_consumers": 5, "num_firms": 2, "price_choices": [100, 1000], "wage_choices": [0, 11]}
    world = {"maxtime": 3, "initial_wages": 11, "initial_stocks": 30, "use_importer": 0}
    settings = {"agents": agents | {"firm_reward_scale": 3e4}, "world": world}
    train = {"batch_size": 32, "num_episodes": 20, "entropy": 0.0, "precision": "float32", "lr": 0.003}
    shares = {}
    for number in (0, 32):
        config = load_config({**settings, "train": train}, [f"agents.firm_trials={number}"])
        trainer = RbcTrainer(config, "host", recorder=Recorder())
        policy = trainer.models["firm"]
        policy.layers(policy.flat.data).bias3[:2] += 12.0  # the low price
        trainer.train()
        trainer.play(Draw(100))
        shares[number] = float((trainer.rollout.actions("firm") >= 2).float().mean())
    assert shares[0] < 0.02 and shares[32] > 0.5
