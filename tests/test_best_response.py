"""Deviations from a checkpoint: random numbers, fine-tuning, fixed actions, exact best responses, the launcher."""

from __future__ import annotations

import copy
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from consumer_program import Market, best_consumer_plan
from stops import Killed, kill_at

from rbc_warp.commands.launch import clean_errors
from rbc_warp.config import Config, load_config
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.economy.parameters import Economy
from rbc_warp.equilibrium import exact
from rbc_warp.equilibrium.best_response import fine_tune
from rbc_warp.equilibrium.deviations import (
    constant_deviations,
    scan,
)
from rbc_warp.equilibrium.fine_tuning import FineTuningSchedule
from rbc_warp.equilibrium.game import (
    FREE,
    SELECTION_STREAM,
    Estimate,
    Forced,
    Game,
    MostLikely,
    OwnPolicy,
    sample_of_agents,
)
from rbc_warp.equilibrium.relaxation import Markets, markets_of, upper_values
from rbc_warp.equilibrium.results import Record, Results
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.run import prepare_run, train_run
from rbc_warp.training.rollout import Draw
from rbc_warp.training.schedule import Update
from rbc_warp.training.trainer import RbcTrainer
from rbc_warp.warpdrive.simulation import simulate
from run_best_response import main

ROOT = Path(__file__).parents[1]

# Two consumers, two firms, three periods: small enough to try every plan.
TINY = {
    "agents": {
        "num_consumers": 2,
        "num_firms": 2,
        "consumption_choices": [0, 3],
        "work_choices": [0, 520],
        "price_choices": [500, 1000],
        "wage_choices": [0, 22],
        "income_tax_choices": [0, 0.4],
        "corporate_tax_choices": [0, 0.4, 0.8],
        "government_counts_firm_reward": 1,
        "consumer_reward_scale": 5,
        "firm_reward_scale": 5000,
        "government_reward_scale": 10,
    },
    "world": {"maxtime": 3, "initial_stocks": 10, "importer_quantity": 5, "initial_wages": 11, "paretoscaletheta": 4},
    "train": {
        "num_episodes": 5,
        "batch_size": 16,
        "base_seed": 5,
        "lr": 0.01,
        "entropy": 0.01,
        "precision": "float32",
        "save_dense_every": 100,
        "save_model_every": 2,
        "log_every": 1,
    },
}
# One consumer who is never rationed, whose taxes come back to it, and for whom nothing else changes.
ALONE = {
    "agents": {
        **TINY["agents"],
        "num_consumers": 1,
        "consumption_choices": [0, 2],
        "price_choices": [400],
        "wage_choices": [11],
        "income_tax_choices": [0.2],
        "corporate_tax_choices": [0],
    },
    "world": {**TINY["world"], "initial_stocks": 1000, "initial_prices": 500, "initial_consumer_endowment": 600},
    "train": TINY["train"],
}


LEARN_SOON = {"batch_size": 32, "base_seed": 3, "lr": 0.005, "entropy": 0.2}


def changed(settings: dict, **train: object) -> Config:
    return load_config({**settings, "train": {**settings["train"], **train}})


def make_game(config: Config, **options: object) -> Game:
    trainer = RbcTrainer(config, "host")
    policies = {agent: copy.deepcopy(trainer.models[agent]) for agent in AGENT_TYPES}
    return Game(trainer, policies, iteration=0, **options)


@pytest.fixture(scope="module")
def game() -> Game:
    return make_game(load_config(TINY))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with checkpoints 0, 2, 4 and latest."""
    run = RunDir.create(tmp_path_factory.mktemp("experiment"))
    config = load_config(TINY)
    prepare_run(run, config)
    train_run(run, config, "host", quiet=True)
    return run.path


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "experiment" / trained.name))


def launch(*arguments: object) -> int:
    """The launcher's exit code, as a shell sees it."""
    try:
        with clean_errors():
            return main([*map(str, arguments), "--backend", "host"])
    except SystemExit as stop:
        return int(stop.code or 0)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def content(run_dir: Path) -> dict[str, object]:
    """What a measurement leaves, besides the seconds it took."""
    found: dict[str, object] = {
        name: (run_dir / name).read_bytes()
        for name in files(run_dir)
        if not name.endswith((".tmp", "lock", "manifest.json"))
    }
    results = json.loads(found["best_response.json"])
    for record in results["records"]:
        record["seconds_per_iteration"] = None
    return found | {"best_response.json": results}


def assert_equal(run_dir: Path, expected: dict[str, object]) -> None:
    found = content(run_dir)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


def test_intervals_are_students() -> None:
    estimate = Estimate.of(np.array([1.0, 2.0, 3.0]))
    assert estimate.mean == 2.0
    assert estimate.high - 2.0 == pytest.approx(4.302653 / 3**0.5) and 2.0 - estimate.low == estimate.high - 2.0
    assert sample_of_agents(3) == [0, 1, 2]
    assert sample_of_agents(100)[0] == 0 and sample_of_agents(100)[-1] == 99 and len(sample_of_agents(100)) == 10


def test_evaluations_draw_common_random_numbers(game: Game) -> None:
    first, again = game.evaluate(), game.evaluate()
    other = game.evaluate(stream=SELECTION_STREAM)
    repeated = game.evaluate(repeat=1)
    assert game.num_episodes == 64
    for agent in AGENT_TYPES:
        assert first[agent].shape == (64, game.economy.agents[agent].count)
        np.testing.assert_array_equal(first[agent], again[agent])
        assert not np.array_equal(first[agent], other[agent])
        assert not np.array_equal(first[agent], repeated[agent])


def test_a_forced_action_changes_nobody_elses_draw(game: Game) -> None:
    trainer = game.trainer
    trainer.play(Draw(0))
    before = {agent: trainer.rollout.actions(agent).clone() for agent in AGENT_TYPES}
    with game.changed(Forced("firm", [1], np.array([[[2]]]))):
        trainer.play(Draw(0))
    assert (trainer.rollout.actions("firm")[:, :, 1] == 2).all()
    # In the first period all have seen the same, so all others draw the same.
    assert torch.equal(trainer.rollout.actions("firm")[0, :, 0], before["firm"][0, :, 0])
    for agent in ("consumer", "government"):
        assert torch.equal(trainer.rollout.actions(agent)[0], before[agent][0])
    pair = np.array([[[FREE, FREE, 1, 0]]])
    with game.changed(Forced("consumer", None, pair)):
        trainer.play(Draw(0))
    assert (trainer.rollout.actions("consumer")[..., 2] == 1).all() and (
        trainer.rollout.actions("consumer")[..., 3] == 0
    ).all()
    assert torch.equal(trainer.rollout.actions("consumer")[0, ..., :2], before["consumer"][0, ..., :2])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_most_likely_actions_are_the_greedy_draw(precision: str) -> None:
    game = make_game(changed(TINY, precision=precision))
    trainer = game.trainer
    trainer.play(Draw(0, greedy=True))
    greedy = {agent: trainer.rollout.actions(agent).clone() for agent in AGENT_TYPES}
    with game.changed(MostLikely(trainer, AGENT_TYPES)):
        trainer.play(Draw(0))
    for agent in AGENT_TYPES:
        assert torch.equal(trainer.rollout.actions(agent), greedy[agent])


def test_an_own_policy_is_one_agents_alone(game: Game) -> None:
    game.restore()
    trainer, before = game.trainer, game.evaluate()
    shared = trainer.models["consumer"].flat.detach().clone()
    own = OwnPolicy(trainer, "consumer", 1, copy.deepcopy(trainer.models["consumer"]))
    same = game.evaluate(own)
    for agent in AGENT_TYPES:
        np.testing.assert_array_equal(same[agent], before[agent])
    with game.changed(own):
        trainer.play(Draw(0))
    trainer.update(Update("consumer", 0.0, 0.0, 1e-3, own.learner, 1), 0)
    assert torch.equal(trainer.models["consumer"].flat, shared)
    assert not torch.equal(own.learner.policy.flat, shared)


def test_one_agents_update_is_that_of_a_type_of_one() -> None:
    """The government is one agent: its own policy learns what the type's policy learns, but for the entropy weight."""
    game = make_game(changed(TINY, entropy=0.0))
    as_type = fine_tune(game, "government", 3, 3)
    alone = fine_tune(game, "government", 3, 3, index=0)
    assert torch.equal(as_type.policy.flat, alone.policy.flat) and as_type.selection == alone.selection


def test_one_agents_entropy_weight_falls_to_zero(game: Game) -> None:
    for index, weights in ((0, [0.3, 0.2, 0.1, 0.0]), (None, [0.4] * 4)):
        schedule = FineTuningSchedule(game, Update("firm", 0.4, 0.4, 1e-3, index=index), repeat=0, iterations=4)
        found = [update.entropy for done in range(1, 5) for update in schedule.updates(game.iteration + done)]
        assert found == pytest.approx(weights)


def test_fine_tuning_keeps_the_best_and_leaves_the_others(game: Game) -> None:
    saved: list[int | str] = []
    tuned = fine_tune(game, "firm", 6, 2, save=lambda label, policy: saved.append(label))
    assert saved == [2, 4, 6, "best"] and list(tuned.selection) == [0, 2, 4, 6]
    assert tuned.selection[tuned.best_iteration] == max(tuned.selection.values())
    for agent in ("consumer", "government"):
        assert torch.equal(game.trainer.models[agent].flat, game.policies[agent].flat)
    again = fine_tune(game, "firm", 6, 2)
    np.testing.assert_array_equal(again.after, tuned.after)
    other_seed = fine_tune(game, "firm", 6, 2, repeat=1)
    assert not np.array_equal(other_seed.after, tuned.after)


def test_a_scan_finds_the_best_fixed_action(game: Game) -> None:
    game.restore()
    found = scan(game, "government", None)
    best = found.found.deviation
    assert len(found.rewards) == 6 and found.gains[best.name].mean == max(gain.mean for gain in found.gains.values())
    before = game.baseline(SELECTION_STREAM)["government"][:, 0]
    for tried in constant_deviations(game, "government", None):
        paired = game.evaluate(Forced("government", None, tried.actions), stream=SELECTION_STREAM)["government"][:, 0]
        assert found.gains[tried.name] == Estimate.of(paired - before)
    after = game.evaluate(Forced("government", None, best.actions))["government"]
    np.testing.assert_allclose(after.mean() - found.found.before, found.found.gain.mean)
    assert len(constant_deviations(game, "consumer", 0)) == 4 and len(constant_deviations(game, "firm", 0)) == 4


@pytest.mark.parametrize(("agent", "index"), [("firm", 0), ("firm", 1), ("government", None), ("consumer", 0)])
def test_the_best_plan_is_the_best_of_all(agent: str, index: int | None) -> None:
    """Played again through the reference it earns what it promises, and no other plan earns more."""
    game = make_game(changed(TINY, batch_size=24))
    trainer, economy = game.trainer, game.economy
    best = exact.best_plan(game, agent, index, max_plans=5000)
    assert best.is_exact and best.reward >= best.before
    choices = exact.joint_actions(game, agent)
    random = np.random.default_rng(0)
    plans = choices[random.integers(0, len(choices), (24, economy.num_periods))]
    plans[0] = np.where(best.actions == FREE, choices[0], best.actions)
    with game.changed(Forced(agent, None if index is None else [index], plans)):
        trainer.play(Draw(0, greedy=True))
    played = {name: trainer.rollout.actions(name).transpose(0, 1).numpy() for name in AGENT_TYPES}
    rewards = simulate(trainer.settings, played, backend="reference")[agent]["rewards"][:, :, index or 0].mean(axis=1)
    assert rewards[0] == pytest.approx(best.reward, rel=1e-5)
    assert (rewards <= best.reward + 1e-5 * abs(best.reward)).all()


def test_a_consumers_dynamic_program_agrees_with_all_plans() -> None:
    config = changed(ALONE, batch_size=32)
    game = make_game(config)
    plan = best_consumer_plan(game.economy, market_of(game.economy), game.economy.theta[0])
    best = exact.best_plan(game, "consumer", 0, max_plans=10**6)
    assert best.is_exact and best.num_plans == 16**3
    assert plan.reward == pytest.approx(best.reward, rel=1e-5)
    played = {
        "consumer": np.repeat(plan.actions[None, :, None], 2, axis=0),
        "firm": np.zeros((2, 3, 2), dtype=np.int32),
        "government": np.zeros((2, 3, 1), dtype=np.int32),
    }
    outcome = simulate(config, played, backend="reference")["consumer"]
    assert outcome["rewards"].mean(axis=1)[0, 0] == pytest.approx(plan.reward, rel=1e-9)
    np.testing.assert_allclose(outcome["states"][0, :, 0, -2], plan.budgets[:-1], atol=1e-5)


@pytest.mark.parametrize(("money", "room"), [(600, 0.6), (100_000, 0.01)])
def test_the_relaxation_bounds_what_a_consumer_can_get(money: float, room: float) -> None:
    """Above the best plan of a consumer who is alone, and hardly above it where money does not bind."""
    world = {**ALONE["world"], "initial_consumer_endowment": money}
    game = make_game(changed({**ALONE, "world": world}, batch_size=32))
    plan = best_consumer_plan(game.economy, market := market_of(game.economy), game.economy.theta[0])
    given = Markets(*(getattr(market, name)[:, None] for name in ("prices", "wages", "income_tax", "transfers")))
    given.transfers[:] = game.economy.budget_drip
    (bound,) = upper_values(game.economy, given, game.economy.theta)[0]
    assert plan.reward - 1e-9 <= bound <= plan.reward + room * abs(plan.reward)

    # Of what is played, the markets are read back: all that a consumer gets but its wages.
    game.trainer.play(Draw(0), keep_consumption=True)
    read = markets_of(game.economy, game.trainer.rollout)
    np.testing.assert_allclose(read.transfers[:-1], game.economy.budget_drip, atol=1e-2)
    bounds = upper_values(game.economy, read, game.economy.theta)
    rewards = game.trainer.rollout.rewards("consumer").double().mean(dim=0).numpy()
    assert (bounds >= rewards - 1e-6).all() and bounds.shape == rewards.shape == (32, 1)


def market_of(economy: Economy) -> Market:
    """What the consumer of ALONE is offered: the starting values, then the only ones there are."""
    periods, firms = economy.num_periods, economy.num_firms
    prices, wages = np.full((periods, firms), economy.firm_choices[0, 0]), np.full((periods, firms), 11.0)
    tax = np.full(periods, economy.government_choices[0, 0])
    prices[0], wages[0], tax[0] = economy.initial_price, economy.initial_wage, 0.0
    return Market(prices, wages, tax, np.zeros(periods))


def test_training_afresh_leaves_a_policy_that_fine_tuning_cannot(tmp_path: Path) -> None:
    """A firm that never draws but one bad action: its own gradient is nothing there."""
    config = changed(TINY, **LEARN_SOON)
    game = make_game(config)
    untrained = copy.deepcopy(game.policies["firm"])
    best = scan(game, "firm", 0).found.deviation.actions[0, 0]
    stuck = game.policies["firm"]
    worst = int(np.argmin([gain.mean for gain in scan(game, "firm", 0).gains.values()]))
    with torch.no_grad():
        stuck.flat.zero_()
        stuck.layers(stuck.flat).bias3[worst] = 200.0
    assert best != worst
    game = Game(game.trainer, game.policies, 0)
    warm = fine_tune(game, "firm", 40, 10, index=0)
    fresh = fine_tune(game, "firm", 40, 10, index=0, first=untrained)
    assert warm.gain.mean == pytest.approx(0.0, abs=1e-6) and fresh.gain.low > 0.0
    assert fresh.before.mean() == pytest.approx(warm.before.mean())


def test_trained_afresh_is_a_record_of_its_own(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [run_dir, 3, "--ep-strs", "latest", "--agent-type", "firm"]
    assert launch(*arguments) == launch(*arguments, "--fresh") == 0
    records = json.loads((run_dir / "best_response.json").read_text())["records"]
    assert [record["method"] for record in records] == ["fine-tuned", "trained afresh"]
    assert "trained afresh" in capsys.readouterr().out
    for path in (run_dir / "saved_models").glob("*_policy_0.pt"):
        path.unlink()
    assert launch(*arguments, "--fresh") == 2 and "--fresh" in capsys.readouterr().err


def test_rules_are_searched_for_single_agents(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(run_dir, 1, "--ep-strs", "latest", "--agent-type", "firm", "--agents", "1", "--rules", "64") == 0
    records = json.loads((run_dir / "best_response.json").read_text())["records"]
    (rule,) = [record for record in records if record["method"] == "rule"]
    assert rule["index"] == 1 and rule["settings"]["rules"] == 64 and rule["low"] <= rule["gain"] <= rule["high"]
    assert "firm 1" in capsys.readouterr().out
    assert launch(run_dir, 1, "--ep-strs", "latest", "--rules", "0") == 2
    assert launch(run_dir, 1, "--ep-strs", "latest", "--rules", "64", "--greedy") == 2


def test_too_many_plans_are_refused(game: Game) -> None:
    with pytest.raises(ValueError, match="--exact 3: a firm has 4 joint actions"):
        exact.best_plan(game, "firm", 0, max_plans=3)
    short = exact.best_plan(game, "firm", 0, max_plans=15)
    assert short.num_plans == 4 and short.num_periods == 1 and not short.is_exact
    with pytest.raises(ValueError, match="transitions"):
        best_consumer_plan(game.economy, market_of(game.economy), 0.01, max_transitions=10)


@pytest.mark.parametrize(
    ("settings", "agent", "index"),
    [
        (TINY, "firm", 0),
        (TINY, "firm", 1),
        (TINY, "government", None),
        (TINY, "consumer", 1),
        (ALONE, "consumer", None),
    ],
)
def test_the_learned_response_nears_the_exact_one(settings: dict, agent: str, index: int | None) -> None:
    """At least 95 % of the exact gain, and never more."""
    game = make_game(changed(settings, **LEARN_SOON), greedy=True)
    best = exact.best_plan(game, agent, index, max_plans=50_000)
    tuned = fine_tune(game, agent, 80, 5, index=index)
    assert tuned.before[0] == pytest.approx(best.before, rel=1e-6)
    assert best.gain > 0.0
    tolerance = 1e-5 * abs(best.reward)
    assert 0.95 * best.gain <= tuned.gain.mean <= best.gain + tolerance


def test_the_launcher_keeps_every_result(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--agent-type", "firm", "--repeat-runs", 2, "--checkpoint-model", 2]
    assert launch(run_dir, 4, "--ep-strs", "2", "7", "latest", *common) == 0
    said = capsys.readouterr()
    assert "checkpoint 7: left out, there is no consumer_policy_7.pt" in said.err
    assert "< 10 %" in said.out and "exploitability" in said.out
    models = {f"saved_models/firm_policy_{label}.pt" for label in ("2", "4", "best", "latest")}
    written = files(run_dir / "brfirm")
    assert {"episode_final_firm.npz", *models} <= written
    for folder in ("ep_latest/seed_1", "ep_2/seed_0", "ep_2/seed_1"):
        assert {f"{folder}/{name}" for name in models} <= written
    assert (run_dir / "br_firm_output.txt").read_text().count("improvement") == 4
    kept = (run_dir / "brfirm/saved_models/firm_policy_best.pt").read_bytes()

    assert launch(run_dir, 2, "--ep-strs", "0", "--agent-type", "firm") == 0
    assert (
        launch(run_dir, 2, "--ep-strs", "2", "--deviator", "individual", "--agents", 0, 1, "--scan", "--exact", 100)
        == 0
    )
    content = json.loads((run_dir / "best_response.json").read_text())
    records = content["records"]
    fine_tuned = [
        (r["checkpoint"], r["agent"], r["index"], r["repeat"]) for r in records if r["method"] == "fine-tuned"
    ]
    assert len(set(fine_tuned)) == len(fine_tuned)
    assert {
        ("2", "firm", None, 1),
        ("latest", "firm", None, 1),
        ("0", "firm", None, 0),
        ("2", "consumer", 1, 0),
    } <= set(fine_tuned)
    assert {record["method"] for record in records} == {"fine-tuned", "fixed", "planned"}
    assert (run_dir / "brfirm/saved_models/firm_policy_best.pt").read_bytes() == kept
    largest = {(row["checkpoint"], row["agent"]): row["gain"] for row in content["exploitability"]}
    assert largest["2", "firm"] == max(
        0.0, *(r["gain"] for r in records if (r["checkpoint"], r["agent"]) == ("2", "firm"))
    )
    scans = {(row["agent"], row["index"]) for row in content["scans"]}
    assert {("firm", None), ("firm", 0), ("firm", 1), ("consumer", 0), ("government", None)} <= scans
    for row in content["scans"]:
        assert all(row["low"][name] <= gain <= row["high"][name] for name, gain in row["gains"].items())


def test_a_public_rollout_is_measured(run_dir: Path) -> None:
    for name in ("metrics.jsonl", "status.json", "manifest.json"):
        (run_dir / name).unlink()
    shutil.rmtree(run_dir / "state", ignore_errors=True)
    hparams = yaml.safe_load((run_dir / "hparams.yaml").read_text())
    for name in [key for key in hparams["agents"] if key.endswith("_choices")]:
        del hparams["agents"][name]
    for name in ("technology", "budget_drip"):
        del hparams["world"][name]
    for name in ("precision", "log_every", "save_state_every", "best_response_episodes"):
        del hparams["train"][name]
    (run_dir / "hparams.yaml").write_text(yaml.safe_dump(hparams))
    assert launch(run_dir, 2, "--ep-strs", "latest", "--agent-type", "government", "--quiet") == 0
    record = json.loads((run_dir / "best_response.json").read_text())["records"][0]
    assert record["iteration"] == 4 and record["training_gain"] is not None


def test_without_arguments_the_newest_finished_run_is_taken(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run_dir.parents[1])
    config = load_config(run_dir / "hparams.yaml", ["train.best_response_episodes=1"])
    RunDir(run_dir).write_hparams(config.to_dict())
    assert launch("--eval-episodes", 16) == 0
    assert "at checkpoints 0, 2, latest, 1 iterations" in capsys.readouterr().err
    assert launch("--experiment-dir", "experiment", 2, "--ep-strs", "0", "--agent-type", "firm") == 0
    settings = [r["settings"] for r in json.loads((run_dir / "best_response.json").read_text())["records"]]
    assert {entry.get("iterations") for entry in settings} == {1, 2}


# Intervals that share no rhythm. A fine-tuning writes 5 states; 5 policies of its own and, of the type, 3 episodes.
TYPES = ["7", "--ep-strs", "2", "latest", "--agent-type", "firm", "--repeat-runs", "2"]
ALONE_AND_ALL = ["7", "--ep-strs", "latest", "--deviator", "individual", "--agents", "0", "--scan", "--exact", "300"]
EVERY = ["--checkpoint-model", "3", "--set", "train.save_state_every=2"]
REQUESTS = {"types": [*TYPES, *EVERY], "alone": [*ALONE_AND_ALL, *EVERY], "greedy": [*TYPES, *EVERY, "--greedy"]}


@pytest.fixture(scope="module")
def uninterrupted(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What each request leaves when nothing stops it."""
    left, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)
    for name, request in REQUESTS.items():
        run_dir = Path(shutil.copytree(trained, tmp_path_factory.mktemp("whole") / trained.name))
        assert launch(run_dir, *request) == 0
        left[name] = content(run_dir)
        assert not [file for file in left[name] if file.startswith("br") and "state" in file]
    torch.set_num_threads(threads)
    return left


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("name", "method", "call"),
    [
        ("types", "save_state", 1), ("types", "save_state", 5), ("types", "save_state", 14),
        ("types", "save_policy", 5), ("types", "write_episode", 2), ("types", "write_best_response", 3),
        ("types", "remove_state", 2), ("alone", "save_state", 3), ("alone", "save_state", 9),
        ("alone", "write_best_response", 5),
        ("greedy", "save_state", 4),
    ],
)  # fmt: skip
def test_a_measurement_killed_anywhere_and_started_again_equals_an_uninterrupted_one(
    name, method, call, done, uninterrupted, run_dir, monkeypatch
) -> None:
    with monkeypatch.context() as patched:
        kill_at(patched, method, call, done)
        with pytest.raises(Killed):
            launch(run_dir, *REQUESTS[name])
    updates = []
    with monkeypatch.context() as patched:
        update = RbcTrainer.update
        patched.setattr(RbcTrainer, "update", lambda *given: (updates.append(given), update(*given))[1])
        assert launch(run_dir, *REQUESTS[name]) == 0
    assert_equal(run_dir, uninterrupted[name])
    fine_tunings = {"types": 4, "alone": 3, "greedy": 4}[name]
    if (method, call, done) != ("save_state", 1, False):
        assert len(updates) < 7 * fine_tunings


@pytest.mark.usefixtures("one_thread")
def test_a_measurement_stopped_again_and_again_equals_an_uninterrupted_one(uninterrupted, run_dir, monkeypatch) -> None:
    with monkeypatch.context() as patched:
        for _ in range(8):
            kill_at(patched, "save_state", 3, done=False)  # two states further each time
            with pytest.raises(Killed):
                launch(run_dir, *REQUESTS["types"])
            patched.undo()
    assert launch(run_dir, *REQUESTS["types"]) == 0
    assert_equal(run_dir, uninterrupted["types"])


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_process_killed_and_started_again_equals_an_uninterrupted_one(trained, run_dir, tmp_path) -> None:
    request = ["120", "--ep-strs", "latest", "--agent-type", "firm", "--deviator", "individual", "--agents", "1"]
    request += ["--checkpoint-model", "60", "--set", "train.save_state_every=2"]
    command = [sys.executable, "run_best_response.py", run_dir, *request, "--backend=host", "--threads=1", "--quiet"]
    folder = RunDir(run_dir / "brfirm" / "ep_latest" / "seed_0" / "agent_1", must_exist=False)
    process = subprocess.Popen(command, cwd=ROOT)
    deadline = time.monotonic() + 120
    while not folder.previous_state_path.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 2 <= folder.load_state()[0]["iteration"] < 120 and not (run_dir / "best_response.json").exists()
    assert launch(run_dir, *request) == 0
    whole = Path(shutil.copytree(trained, tmp_path / "whole" / trained.name))
    assert launch(whole, *request) == 0
    assert_equal(run_dir, content(whole))


def test_what_is_known_is_not_measured_again(run_dir, monkeypatch, capsys) -> None:
    request = [run_dir, 2, "--ep-strs", "2", "--agent-type", "firm", "--scan"]
    assert launch(*request) == 0
    before = (run_dir / "best_response.json").read_bytes()
    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr(RbcTrainer, "play", lambda *given, **options: pytest.fail("plays again"))
        assert launch(*request) == 0
    said = capsys.readouterr()
    assert "4 known from before; --restart measures them again" in said.err and "fine-tuned" in said.out
    assert (run_dir / "best_response.json").read_bytes() == before

    plays = []
    play = RbcTrainer.play
    monkeypatch.setattr(RbcTrainer, "play", lambda *given, **options: (plays.append(1), play(*given, **options))[1])
    for more, known in (
        (["--restart"], 0),
        (["--checkpoint-model", 2], 3),  # only fine-tuning depends on it
        (["--eval-episodes", 80], 0),
        (["--set", "train.lr=0.02"], 0),
        (["--set", "train.precision=bfloat16"], 0),
    ):
        plays.clear()
        assert launch(*request, *more) == 0
        assert plays and ("known from before" in (said := capsys.readouterr().err)) == (known > 0)
        assert not known or f": {known} known" in said
    other = torch.load(run_dir / "saved_models/government_policy_4.pt", weights_only=True)
    RunDir(run_dir).save_policy("government", 2, other)
    assert launch(*request, *more) == 0  # the government now plays otherwise
    assert "known from before" not in capsys.readouterr().err


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("spoil", ["another request", "another economy", "damaged", "restart"])
def test_a_state_of_something_else_is_not_continued(spoil, uninterrupted, run_dir, monkeypatch, capsys) -> None:
    first = list(REQUESTS["types"])
    if spoil == "another request":
        first[0] = "9"
    if spoil == "another economy":
        first += ["--set", "world.interest_rate=0.1"]
    with monkeypatch.context() as patched:
        kill_at(patched, "save_state", 3, done=True)
        with pytest.raises(Killed):
            launch(run_dir, *first)
    folder = RunDir(run_dir / "brfirm/ep_2/seed_0")
    if spoil == "damaged":
        folder.state_path.write_bytes(b"")
        folder.previous_state_path.write_bytes(b"")
    assert launch(run_dir, *REQUESTS["types"], *(["--restart"] if spoil == "restart" else [])) == 0
    assert ("begun anew" in capsys.readouterr().err) == (spoil != "restart")
    assert_equal(run_dir, uninterrupted["types"])


def damage(run_dir: Path) -> None:
    (run_dir / "saved_models/firm_policy_latest.pt").write_bytes(b"not a policy")


def other_economy(run_dir: Path) -> None:
    content = yaml.safe_load((run_dir / "hparams.yaml").read_text())
    content["agents"] = {**TINY["agents"], "num_firms": 3}
    RunDir(run_dir).write_hparams(content)


def damage_results(run_dir: Path) -> None:
    RunDir(run_dir).write_best_response({"records": [{"agent": "bank"}]})


def nothing(run_dir: Path) -> None:
    """The run is sound."""


@pytest.mark.parametrize(
    ("spoil", "arguments", "says"),
    [
        (nothing, ["{run}/none", "3"], "is not a folder"),
        (nothing, ["{run}", "0"], "NUM_EPISODES 0"),
        (nothing, ["{run}", "3", "--ep-strs", "../x"], "'../x' is no checkpoint"),
        (nothing, ["{run}", "3", "--ep-strs", "77"], "holds none of the checkpoints 77"),
        (nothing, ["{run}", "3", "--agents", "2", "--agent-type", "firm"], "--agents 2: the run has firm 0 to 1"),
        (nothing, ["{run}", "3", "--repeat-runs", "0"], "--repeat-runs 0"),
        (nothing, ["{run}", "3", "--set", "train.lrr=1"], "lrr"),
        (nothing, ["{run}", "3", "--verdict", "--greedy"], "give one of them"),
        (nothing, ["{run}", "3", "--agent-type", "firm", "--exact", "2"], "a firm has 4 joint actions"),
        (nothing, ["--experiment-dir", "{run}"], "holds no runs"),
        (damage, ["{run}", "3", "--ep-strs", "0", "latest"], "firm_policy_latest.pt"),
        (other_economy, ["{run}", "3"], "consumer_policy_0.pt"),
        (damage_results, ["{run}", "3"], "best_response.json"),
    ],
)
def test_bad_input_gets_one_line_and_writes_nothing(
    run_dir: Path, capsys: pytest.CaptureFixture[str], spoil, arguments: list[str], says: str
) -> None:
    spoil(run_dir)
    before = files(run_dir)
    assert launch(*(argument.format(run=run_dir) for argument in arguments)) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and not said.out
    assert files(run_dir) == before


def test_results_of_other_settings_are_replaced() -> None:
    record = Record("latest", 9, "firm", "fine-tuned", "update 1", 1.0, 2.0, 1.0, 0.5, 1.5, settings={"iterations": 1})
    results = Results()
    for repeat in range(3):
        results.add(Record(**{**vars(record), "repeat": repeat}))
    assert len(results.records) == 3
    results.add(Record(**{**vars(record), "repeat": 1, "settings": {"iterations": 2}}))
    assert [entry.settings["iterations"] for entry in results.records] == [2]
    results.add(Record(**{**vars(record), "agent": "consumer", "gain": -1.0}))
    rows = {row["agent"]: row for row in results.exploitability()}
    assert rows["consumer"]["gain"] == 0.0 and rows["consumer"]["how"] == "nothing tried gained anything"
    results.add(Record(**{**vars(record), "iteration": 20}))  # the run went on: 'latest' is another policy
    assert [entry.iteration for entry in results.records if entry.agent == "firm"] == [20]
