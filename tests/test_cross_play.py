"""Cross-play: mixtures of runs, what their values are, when runs are interchangeable, and what cannot be mixed."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from test_best_response import TINY, changed, files, launch

from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.equilibrium.cross_play import CrossPlay, all_mixtures, play
from rbc_warp.equilibrium.entrants import enter
from rbc_warp.equilibrium.game import REPORT_STREAM, Game
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.run import load_policies, prepare_run, train_run
from rbc_warp.training.recorder import Recorder
from rbc_warp.training.trainer import RbcTrainer

EPISODES = 24


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs that differ in their seeds only."""
    folder = tmp_path_factory.mktemp("experiment")
    for seed in (5, 6):
        config, run = changed(TINY, base_seed=seed), RunDir(folder / f"run-{seed}", must_exist=False)
        prepare_run(run, config)
        train_run(run, config, "host", quiet=True)
    return sorted(folder.iterdir())


@pytest.fixture
def runs(trained: list[Path], tmp_path: Path) -> list[Path]:
    """The same, free to be changed."""
    return [Path(shutil.copytree(run, tmp_path / "experiment" / run.name)) for run in trained]


def always(run: Path, agent: str, action: int) -> None:
    """Make a run's type play one action whatever it sees."""
    policy = load_policies(RunDir(run), changed(TINY))[agent]
    policy.flat.data.zero_()
    policy.layers(policy.flat.data).bias3[action] = 50.0
    RunDir(run).save_policy(agent, "latest", policy.state_dict())


def edit(run: Path, section: str, **values: object) -> None:
    content = yaml.safe_load((run / "hparams.yaml").read_text())
    content[section] |= values
    RunDir(run).write_hparams(content)


def test_every_mixture_is_worth_what_its_policies_are_when_played(trained: list[Path]) -> None:
    """All mixtures on the same episodes, a run mixed with itself among them."""
    found = play(enter(trained), EPISODES, "host", quiet=True)
    assert found.mixtures == list(itertools.product(range(2), repeat=len(AGENT_TYPES)))
    policies = [load_policies(RunDir(run), changed(TINY)) for run in trained]
    trainer = RbcTrainer(changed(TINY, batch_size=EPISODES), "host", recorder=Recorder())
    for k, mixture in enumerate(found.mixtures):
        mixed = {agent: policies[run][agent] for agent, run in zip(AGENT_TYPES, mixture, strict=True)}
        rewards = Game(trainer, mixed, 4, episodes=EPISODES).evaluate(stream=REPORT_STREAM)
        for agent in AGENT_TYPES:
            np.testing.assert_array_equal(found.values[agent][k], rewards[agent].mean(axis=1))

    for gain in found.gains:
        column = AGENT_TYPES.index(gain.agent)
        other = (*gain.mixture[:column], gain.run - 1, *gain.mixture[column + 1 :])
        before, after = (found.values[gain.agent][found.mixtures.index(each)] for each in (gain.mixture, other))
        assert gain.mean == pytest.approx((after - before).mean()) and gain.low <= gain.mean <= gain.high
    assert len(found.gains) == 3 * 8 and found.num_pairs == 12

    # Training gains are against all three untrained policies, own learning against that of the type alone.
    untrained = load_policies(RunDir(trained[1]), changed(TINY), 0)
    for name, before in (("training gain", untrained), ("own learning", policies[1] | {"firm": untrained["firm"]})):
        rewards = Game(trainer, before, 4, episodes=EPISODES).evaluate()["firm"].mean()
        assert found.gained[1]["firm"][name] == pytest.approx(found.values["firm"][-1].mean() - rewards)


def test_copies_are_interchangeable_and_a_worse_policy_is_not(trained: list[Path], runs: list[Path]) -> None:
    shutil.rmtree(runs[1])
    shutil.copytree(runs[0], runs[1])
    found = play(enter(runs), EPISODES, "host", quiet=True)
    assert found.interchangeable is True and found.equivalent is True
    assert found.sentence().startswith("The 2 runs are interchangeable and equivalent, ")
    assert all((gain.low, gain.high) == (0.0, 0.0) for gain in found.gains)

    price_and_wage = [(500, 0), (500, 22), (1000, 0), (1000, 22)]
    for run, choice in zip(runs, ((1000, 0), (500, 22)), strict=True):
        always(run, "firm", price_and_wage.index(choice))
    found = play(enter(runs), EPISODES, "host", quiet=True)
    assert found.interchangeable is False and found.equivalent is False
    largest = found.largest["firm"]
    assert largest.low > found.bars["firm"].bar and largest.run == 1 and largest.mixture[1] == 1
    assert found.sentence().startswith("The 2 runs are not interchangeable and not equivalent, ")
    assert "for firm by the policy of run 1 in the mixture consumer" in found.sentence()


def constructed(
    effect: float, noise: float = 0.0, num_runs: int = 2, types: tuple[str, ...] = AGENT_TYPES
) -> CrossPlay:
    """Runs whose types all gained 100 in training; the firm's policy of run 2 is better by ``effect``."""
    mixtures = np.array(all_mixtures(num_runs, len(types)))
    draws = np.random.default_rng(0).normal(size=(len(types), len(mixtures), 50))
    values = {agent: 100.0 + noise * each for agent, each in zip(types, draws, strict=True)}
    values["firm"] = values["firm"] + effect * (mixtures[:, types.index("firm")] == 1)[:, None]
    gained = {agent: {"training gain": 100.0, "own learning": 50.0} for agent in types}
    return CrossPlay(types, values, [gained] * num_runs)


@pytest.mark.parametrize(
    ("effect", "noise", "holds"), [(9.9, 0.0, True), (10.1, 0.0, False), (12.0, 0.01, False), (9.9, 5.0, None)]
)
def test_bars_and_intervals_decide(effect: float, noise: float, holds: bool | None) -> None:
    """A firm's bar is 10 % of its training gain; where intervals reach across a bar it stays open."""
    found = constructed(effect, noise)
    assert found.interchangeable is holds and found.equivalent is holds
    assert found.bars["firm"].bar == pytest.approx(10.0) and found.bars["firm"].of == "training gain"
    largest = found.largest["firm"]
    assert largest.mixture[1] == 0 and largest.run == 2 and largest.low <= largest.mean <= largest.high
    assert ("not shown to be interchangeable" in found.sentence()) == (holds is None)


def test_bars_are_those_of_the_run_that_gained_least() -> None:
    values = {"firm": np.zeros((2, 5))}

    def bar(*gained: dict[str, float]) -> tuple[float, str]:
        found = CrossPlay(["firm"], values, [{"firm": each} if each else {} for each in gained])
        return found.bars["firm"].base, found.bars["firm"].of

    one = {"training gain": 8.0, "own learning": 1.0}
    assert bar(one, {"training gain": 9.0, "own learning": 9.0}) == (8.0, "training gain")
    assert bar(one, {"training gain": -1.0, "own learning": 3.0}) == (3.0, "own learning")
    assert bar(one, {}) == (8.0, "training gain")
    assert bar(one, {"training gain": -1.0, "own learning": 0.0}) == (0.0, "")
    assert bar({}, {}) == (0.0, "")


def test_tables_show_all_mixtures_of_two_runs_and_the_extremes_of_more() -> None:
    assert constructed(9.0, 1.0).summary().count(" ± ") == 3 * 8
    many = constructed(9.0, 1.0, num_runs=4).summary()
    assert 3 * 4 < many.count(" ± ") <= 3 * (4 + 6) and "highest firm" in many and "lowest firm" in many
    assert all(f"run {number}\n" in many or f"run {number}, " in many for number in (1, 2, 3, 4))
    assert constructed(9.0, types=("consumer", "firm")).mixtures == list(itertools.product(range(2), repeat=2))


def test_the_launcher_writes_what_it_prints(runs: list[Path], tmp_path: Path, monkeypatch, capsys) -> None:
    edit(runs[1], "train", lr=0.5, num_episodes=7)  # how a run learned may differ
    edit(runs[1], "agents", firm_reward_scale=7)
    monkeypatch.chdir(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    assert launch("--cross-play", *runs, "--eval-episodes", EPISODES, "-q") == 0
    said = capsys.readouterr()
    content = json.loads((tmp_path / "cross_play.json").read_text())
    assert said.out.splitlines()[0] == content["sentence"] and not said.err
    assert [run["path"] for run in content["runs"]] == list(map(str, runs))
    assert {run["iteration"] for run in content["runs"]} == {4} and content["episodes"] == EPISODES
    assert content["mixtures"][1]["mixture"] == dict(zip(AGENT_TYPES, (1, 1, 2), strict=True))
    assert len(content["mixtures"]) == 8 and len(content["gains"]) == 24
    written = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    assert written.pop("cross_play.json") and written == before

    output = tmp_path / "new" / "found.json"
    arguments = ("--cross-play", *runs, "--ep-strs", 2, "-o", output)
    assert launch(*arguments) == 0
    assert json.loads(output.read_text())["runs"][0]["checkpoint"] == "2"
    assert json.loads(output.read_text())["episodes"] == 128
    said = capsys.readouterr()
    assert said.out.rstrip().endswith(f"file: {output}") and "512/2304" in said.err


def test_a_run_of_the_public_implementation_takes_part(runs: list[Path]) -> None:
    for name in ("metrics.jsonl", "status.json", "manifest.json"):
        (runs[1] / name).unlink()
    shutil.rmtree(runs[1] / "state", ignore_errors=True)
    content = yaml.safe_load((runs[1] / "hparams.yaml").read_text())
    content["agents"] = {key: value for key, value in content["agents"].items() if not key.endswith("_choices")}
    content["world"] = {
        key: content["world"][key] for key in content["world"] if key not in ("technology", "budget_drip")
    }
    (runs[1] / "hparams.yaml").write_text(yaml.safe_dump(content))
    assert [entrant.checkpoint.iteration for entrant in enter(runs)] == [4, 4]


def test_types_frozen_alike_are_not_mixed(runs: list[Path]) -> None:
    for run in runs:
        edit(run, "agents", frozen_government_action=3)
        for path in RunDir(run).saved_models_path.glob("government_*"):
            path.unlink()
    found = play(enter(runs), 4, "host", quiet=True)
    assert found.types == ("consumer", "firm") and len(found.mixtures) == 4


def remove(agent: str) -> Callable[[Path], None]:
    return lambda run: RunDir(run).policy_path(agent, "latest").unlink()


def change(section: str, **values: object) -> Callable[[Path], None]:
    return lambda run: edit(run, section, **values)


def multiply(run: Path) -> None:
    """The run is at another of its no-Ponzi multipliers."""
    edit(run, "agents", consumer_noponzi_start=2.0)


def another_alpha(run: Path) -> None:
    edit(run, "agents", num_firms=3)
    content = yaml.safe_load((run / "hparams.yaml").read_text())
    derived = [key for key in content["agents"] if key.endswith(("_dim", "_dims", "_actions"))]
    content["agents"] = {key: value for key, value in content["agents"].items() if key not in derived}
    content["world"]["production_alpha"] = [0.2, 0.3, 0.4]
    RunDir(run).write_hparams(content)


def break_policy(run: Path) -> None:
    path = RunDir(run).policy_path("firm", "latest")
    state = torch.load(path, weights_only=True)
    RunDir(run).save_policy("firm", "latest", {key: value[:1] for key, value in state.items()})


def nothing(run: Path) -> None:
    """The second run is as sound as the first."""


@pytest.mark.parametrize(
    ("spoil", "arguments", "says"),
    [
        (nothing, ["{0}"], "needs two runs or more"),
        (nothing, ["{0}", "{1}", "{0}/../run-5"], "is the same run twice"),
        (nothing, ["{0}", "{1}/none"], "is not a folder"),
        (nothing, ["{0}", "{1}", "--ep-strs", "0", "latest"], "takes one checkpoint of every run"),
        (nothing, ["{0}", "{1}", "--ep-strs", "../x"], "'../x' is no checkpoint"),
        (nothing, ["{0}", "{1}", "--ep-strs", "77"], "consumer_policy_77.pt: is not there"),
        (nothing, ["{0}", "{1}", "--eval-episodes", "-3"], "--eval-episodes -3 is too few"),
        (nothing, ["{0}", "{1}", "--set", "train.lrr=1"], "lrr"),
        (nothing, ["{0}", "{1}", "-o", "{1}"], "is a folder"),
        (nothing, ["{0}", "{1}", "--verdict"], "--verdict does not go with --cross-play"),
        (nothing, ["{0}", "{1}", "--exact", "9"], "--exact does not go with --cross-play"),
        (nothing, ["{0}", "{1}", "--deviator", "individual"], "--deviator does not go with --cross-play"),
        (nothing, ["{0}", "{1}", "--experiment-dir", "x"], "--experiment-dir does not go with --cross-play"),
        (remove("firm"), ["{0}", "{1}"], "firm_policy_latest.pt: is not there"),
        (break_policy, ["{0}", "{1}"], "firm_policy_latest.pt"),
        (change("world", importer_quantity=6.0), ["{0}", "{1}"], "world.importer_quantity is 5.0 and 6.0"),
        (
            change("agents", corporate_tax_choices=[0, 0.4, 0.7]),
            ["{0}", "{1}"],
            "agents.corporate_tax_choices is [0.0, 0.4, 0.8] and [0.0, 0.4, 0.7]",
        ),
        (
            change("agents", government_counts_firm_reward=0),
            ["{0}", "{1}"],
            "agents.government_counts_firm_reward is 1",
        ),
        (change("agents", frozen_firm_action=1), ["{0}", "{1}"], "agents.frozen_firm_action is null and 1"),
        (change("train", should_boost_firm_reward=True), ["{0}", "{1}"], "train.should_boost_firm_reward is false"),
        (change("train", hidden_size=64), ["{0}", "{1}"], "cannot be mixed: train.hidden_size is 128 and 64"),
        (change("train", digit_representation_size=3), ["{0}", "{1}"], "train.digit_representation_size is 10 and 3"),
        (another_alpha, ["{0}", "{1}"], "agents.num_firms is 2 and 3"),
        (multiply, ["{0}", "{1}"], "consumer multiplier is 0 and 2"),
        (
            change("agents", government_anneal_taxes={"anneal_on": True, "start": 0.0, "increase_const": 0.1}),
            ["{0}", "{1}"],
            "government may take 6 actions and 4",
        ),
    ],
)
def test_bad_calls_get_one_line_and_play_nothing(
    runs: list[Path], tmp_path: Path, monkeypatch, capsys, spoil, arguments: list[str], says: str
) -> None:
    spoil(runs[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(RbcTrainer, "play", None)
    before = files(tmp_path)
    assert launch("--cross-play", *(argument.format(*runs) for argument in arguments)) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and not said.out
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{0}", "--cross-play", "{0}", "{1}"], "does not go with --cross-play"),
        (["{0}", "-o", "x.json"], "-o/--output belongs to --cross-play"),
    ],
)
def test_options_that_do_not_go_together_get_one_line(
    runs: list[Path], capsys, arguments: list[str], says: str
) -> None:
    assert launch(*(argument.format(*runs) for argument in arguments)) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and not said.out
