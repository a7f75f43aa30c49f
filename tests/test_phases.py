"""What a run learned in each phase: which checkpoints are compared, two known gains, the published sequence, errors."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch

from rbc_warp import __main__
from rbc_warp.analysis.phases import Learned, Phase, checkpoint_at_end, examine, learned, phases, published_sequence
from rbc_warp.config import Config, load_config
from rbc_warp.equilibrium.request import Checkpoint, open_checkpoint
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.run import load_policies, prepare_run, train_run
from rbc_warp.training.trainer import RbcTrainer

# Consumers learn in 0-3, firms in 3-5, the government in 5-7; all have a choice at their phase's end.
QUICK = [
    "train.num_episodes=8",
    "train.batch_size=4",
    "train.save_model_every=1",
    "world.maxtime=4",
    "agents.num_consumers=5",
    "agents.num_firms=2",
    "agents.firm_training_start=3",
    "agents.government_training_start=5",
    "agents.firm_anneal_prices.increase_const=300",
    "agents.government_begin_anneal_action=0",
]
CONSUMERS, FIRMS, GOVERNMENT = Phase("consumer", 0, 3), Phase("firm", 3, 5), Phase("government", 5, 7)


def smoke(*overrides: str) -> Config:
    return load_config(Path(__file__).resolve().parents[1] / "configs" / "smoke.yaml", [*QUICK, *overrides])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = RunDir.create(tmp_path_factory.mktemp("experiment"))
    prepare_run(run, smoke())
    train_run(run, smoke(), "host", quiet=True)
    return run


@pytest.fixture
def run(trained: RunDir, tmp_path: Path) -> RunDir:
    """A copy, to take files from."""
    return RunDir(shutil.copytree(trained.path, tmp_path / "rollout"))


def stop(*arguments: str | Path) -> None:
    """A command that must end with exit code 2."""
    with pytest.raises(SystemExit) as error:
        __main__.main(["phases", *map(str, arguments)])
    assert error.value.code == 2


# Which phases and checkpoints


@pytest.mark.parametrize(
    ("overrides", "expected", "left_out"),
    [
        ([], [CONSUMERS, FIRMS, GOVERNMENT], []),
        (["agents.firm_training_start=0"], [Phase("consumer", 0, 5), Phase("firm", 0, 5), GOVERNMENT], []),
        (["agents.frozen_firm_action=3"], [Phase("consumer", 0, 5), GOVERNMENT], ["firm: frozen"]),
        (["agents.government_training_start=9"], [CONSUMERS, Phase("firm", 3, 7)], ["government: not trained up to"]),
        (["agents.firm_training_list=[[4, 6]]"], [Phase("consumer", 0, 4), Phase("firm", 4, 5), GOVERNMENT], []),
        (
            ["agents.training_schedule_mod=4", "agents.consumer_mod_threshold=1"],
            [Phase("consumer", 0, 2), Phase("firm", 2, 5), GOVERNMENT],
            [],
        ),
    ],
    ids=["in-turn", "together", "frozen", "not-reached", "list", "alternating"],
)
def test_a_phase_lasts_until_the_next_type_begins(
    overrides: list[str], expected: list[Phase], left_out: list[str]
) -> None:
    notes: list[str] = []
    assert phases(smoke(*overrides), 7, notes) == expected
    assert len(notes) == len(left_out) and all(map(str.startswith, notes, left_out))


def test_the_checkpoint_is_the_last_of_the_phase(run: RunDir) -> None:
    def found(phase: Phase) -> tuple[str, int]:
        checkpoint = checkpoint_at_end(run, smoke(), phase, [])
        return checkpoint.label, checkpoint.iteration

    assert [found(phase) for phase in (CONSUMERS, FIRMS, GOVERNMENT)] == [("3", 3), ("5", 5), ("latest", 7)]
    run.policy_path("firm", 3).unlink()  # the opponents are needed too
    assert found(CONSUMERS) == ("2", 2)


# What is measured


def test_a_run_is_measured_and_printed(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "phases.json"
    assert __main__.main(["phases", str(run.path), "--episodes", "6", "--backend", "host", "--json", str(target)]) == 0
    shown, found = capsys.readouterr().out, json.loads(target.read_text())
    assert [(row["phase"]["agent"], row["checkpoint"]) for row in found["learned"]] == [
        ("consumer", "3"),
        ("firm", "5"),
        ("government", "latest"),
    ]
    for row in found["learned"]:
        gain = row["gain"]
        assert row["episodes"] == 8  # whole batches
        assert gain["mean"] == pytest.approx(row["trained"] - row["untrained"], rel=1e-9, abs=1e-9)
        assert gain["low"] <= gain["mean"] <= gain["high"] and row["is_clear"] == (gain["low"] > 0)
        assert f"{row['phase']['agent']} " in shown
        assert (row["alone"] is None) == (row["phase"]["agent"] == "government")
    assert [shift["expected"] for shift in found["sequence"]["shifts"]] == ["up", "down", "up", "down"]
    assert "iterations 2 before it" in shown and "\n3 at once" in shown and "8 episodes" in shown
    assert all(shift["holds"] == (shift["after"] > shift["before"]) for shift in found["sequence"]["shifts"][::2])
    assert all(shift["holds_at_end"] == (shift["end"] < shift["before"]) for shift in found["sequence"]["shifts"][1::2])
    assert found["notes"] == [] and "note:" not in shown


def test_identical_policies_gain_exactly_nothing_and_a_bad_one_loses(run: RunDir) -> None:
    trainer = RbcTrainer(smoke(), "host")
    checkpoint = open_checkpoint(run, smoke(), "3", [])
    untrained = load_policies(run, smoke(), 0)

    def gain(policy: torch.nn.Module) -> Learned:
        other = Checkpoint("3", 3, {**checkpoint.policies, "consumer": policy}, checkpoint.multipliers)
        found = learned(trainer, CONSUMERS, other, untrained["consumer"], 16)
        assert found is not None
        return found

    same = gain(copy.deepcopy(untrained["consumer"]))
    assert (same.gain.mean, same.gain.low, same.gain.high) == (0.0, 0.0, 0.0) and not same.is_clear
    assert same.alone is not None and (same.alone.mean, same.alone.low, same.alone.high) == (0.0, 0.0, 0.0)

    idle = copy.deepcopy(untrained["consumer"])  # works as long as it can and consumes nothing
    with torch.no_grad():
        consume, hours, _ = idle.layers().bias3[:-1].split([22, 5, 2])
        consume.view(2, 11)[:, 0] += 100.0
        hours[-1] += 100.0
    bad = gain(idle)
    assert bad.gain.high < 0.0 and not bad.is_clear
    assert bad.alone is not None and bad.alone.high < 0.0
    assert bad.untrained == same.untrained == same.trained


def test_a_type_without_a_choice_is_left_out(run: RunDir) -> None:
    config = smoke("agents.government_begin_anneal_action=7")
    run.write_hparams(config.to_dict())
    found = examine(run, 4, "host")
    assert [row.phase.agent for row in found.learned] == ["consumer", "firm"]
    assert found.notes == ["government: only one action is allowed at checkpoint latest, left out"]


def test_the_published_sequence_is_judged_by_its_directions(run: RunDir) -> None:
    config = smoke("train.log_every=2", "agents.firm_training_start=4")
    run.truncate_metrics(0)
    for iteration in range(0, 8, 2):
        late = iteration >= 4
        economy = {"price": 2000.0 if late else 1000.0, "wage": 30.0 if late else 20.0 + iteration}
        reward = {"firm": 5.0 * iteration, "consumer": -float(iteration)}
        run.append_metrics([{"iteration": iteration, "economy": economy, "reward": reward}])
    notes: list[str] = []
    found = published_sequence(run, config, phases(config, 7, []), notes)
    assert found is not None and not notes
    assert (found.start, found.before, found.after) == (4, (2, 3), (4, 5))
    assert [(s.before, s.after) for s in found.shifts] == [(1000, 2000), (22, 30), (10, 20), (-2, -4)]
    assert [s.holds for s in found.shifts] == [True, False, True, True]


@pytest.mark.parametrize("override", ["agents.firm_training_start=0", "agents.frozen_firm_action=3"])
def test_without_a_beginning_there_is_no_sequence(run: RunDir, override: str) -> None:
    notes: list[str] = []
    assert published_sequence(run, smoke(override), phases(smoke(override), 7, []), notes) is None
    assert notes[-1].startswith("firms ") and notes[-1].endswith("there is no before and after")


# Errors


def test_a_missing_start_is_named(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    run.policy_path("firm", 0).unlink()
    stop(run.path)
    shown = capsys.readouterr().err
    assert "firm_policy_0.pt: does not exist" in shown and "saved firm checkpoints: 1, 2" in shown


def test_a_phase_without_a_checkpoint_is_named(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    for label in (4, 5):
        run.policy_path("consumer", label).unlink()
    stop(run.path)
    shown = capsys.readouterr().err
    assert "holds no checkpoint of iterations 4 to 5, where the firm learns" in shown
    assert "train.save_model_every" in shown


def test_missing_metrics_are_named(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    run.truncate_metrics(3)
    stop(run.path)
    assert "metrics.jsonl: holds no economy.price of iterations 3 to 3" in capsys.readouterr().err


def test_a_folder_that_is_no_run_and_too_few_episodes_are_refused(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop(tmp_path / "nowhere")
    assert "is not a folder; give the rollout-… folder of a run" in capsys.readouterr().err
    stop(run.path, "--episodes", "1")
    assert "--episodes 1: an interval needs 2 or more" in capsys.readouterr().err
