"""A run that was stopped, however it was, and resumed leaves what an uninterrupted one leaves, bit for bit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from stops import Killed, assert_equal, content, kill_at
from trainers import TINY, new_run

from rbc_warp.config import Config, load_config
from rbc_warp.errors import ConfigError, ResumeError, RunFileError
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.locks import locked
from rbc_warp.runs.resume import read_state
from rbc_warp.runs.run import summary, train_run
from rbc_warp.runs.tracking import MLflow, WeightsAndBiases, check_trackers, flat

ROOT = Path(__file__).parents[1]
LENGTH = 12
# Intervals that share no rhythm, so that stops fall between them in every way.
SETTINGS = [
    *TINY,
    "train.consumer_update_fraction=0.5",
    f"train.num_episodes={LENGTH}",
    "train.log_every=2",
    "train.save_state_every=3",
    "train.save_model_every=4",
    "train.save_dense_every=5",
]


pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(*overrides: str) -> Config:
    return load_config(ROOT / "configs" / "smoke.yaml", [*SETTINGS, *overrides])


def train(run: RunDir, config: Config, **options):
    return train_run(run, config, "host", quiet=True, **options)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[str, object]:
    torch.set_num_threads(1)
    run = new_run(tmp_path_factory.mktemp("whole"), tiny())
    assert train(run, tiny()).status == "finished"
    files = content(run)
    assert {"state/last.pt", "metrics.jsonl", "episode_final_firm.npz", "saved_models/firm_policy_11.pt"} <= set(files)
    return files


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("method", "call"),
    [("save_state", 1), ("save_state", 4), ("append_metrics", 3), ("append_metrics", 7), ("save_policy", 8),
     ("write_episode", 5), ("write_episode", 12)],
)  # fmt: skip
def test_a_run_killed_anywhere_and_resumed_equals_an_uninterrupted_one(
    method, call, done, uninterrupted, tmp_path, monkeypatch
):
    run = new_run(tmp_path, tiny())
    with monkeypatch.context() as patched:
        kill_at(patched, method, call, done)
        with pytest.raises(Killed):
            train(run, tiny())
    assert train(run, tiny(), resume=True).status == "finished"
    assert_equal(run, uninterrupted)


def test_a_run_stopped_after_every_iteration_equals_an_uninterrupted_one(uninterrupted, tmp_path):
    run = new_run(tmp_path, tiny())
    for done in range(1, LENGTH + 1):
        result = train(run, tiny(), resume=True, parent=-1)  # a parent that is gone: stop at once
        assert (result.iterations, result.status) == (done, "finished" if done == LENGTH else "interrupted")
    assert_equal(run, uninterrupted)


def test_a_process_killed_and_resumed_equals_an_uninterrupted_one(tmp_path):
    constant = "train.lr_decay_start=null"  # the decay ends with the run, so that another length is another training
    config = tiny(constant, "train.num_episodes=2000", "train.save_state_every=25", "train.save_dense_every=500")
    run = new_run(tmp_path, config)
    command = [sys.executable, "run_training.py", "--resume", run.path, "--backend=host", "--threads=1", "--quiet"]
    process = subprocess.Popen(command, cwd=ROOT)
    deadline = time.monotonic() + 120
    while not run.previous_state_path.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    reached = read_state(run, config)["iteration"]
    assert 25 < reached < 2000
    longer = tiny(
        constant, f"train.num_episodes={reached + 20}", *(f"train.save_{what}_every=500" for what in ("dense", "state"))
    )
    assert train(run, longer, resume=True).start == reached
    whole = new_run(tmp_path / "whole", longer)
    train(whole, longer)
    assert_equal(run, content(whole))


def test_an_extended_run_equals_one_of_that_length(uninterrupted, tmp_path):
    short = tiny("train.num_episodes=8")  # ends off the schedule of metrics
    run = new_run(tmp_path, short)
    train(run, short)
    assert run.read_metrics()[-1]["iteration"] == 7
    assert "--set train.num_episodes=16" in summary(train(run, short, resume=True))
    assert train(run, tiny(), resume=True).start == 8
    assert_equal(run, uninterrupted, besides=r"saved_models/\w+_policy_7\.pt")
    assert load_config(run.hparams_path).train.num_episodes == LENGTH


def test_a_damaged_state_gives_way_to_the_one_before(uninterrupted, tmp_path, capsys):
    run = new_run(tmp_path, tiny())
    train(run, tiny())
    run.state_path.write_bytes(run.state_path.read_bytes()[:1000])
    assert train(run, tiny(), resume=True).start == 9
    assert "resuming from" in capsys.readouterr().err
    assert_equal(run, uninterrupted)


@pytest.mark.parametrize("length", [0, 5], ids=["without a state", "with a state"])
def test_another_economy_is_refused_with_the_difference(length, tmp_path):
    run = new_run(tmp_path, tiny())
    if length:
        train(run, tiny(f"train.num_episodes={length}"), resume=True)
    before = content(run)
    changed = tiny("world.interest_rate=0.1", "agents.num_firms=3", "train.lr=0.01", "train.log_every=1")
    with pytest.raises(ResumeError) as error:
        train(run, changed, resume=True)
    for difference in ("world.interest_rate: 0.0 → 0.1", "agents.num_firms: 2 → 3", "train.lr: 0.001 → 0.01"):
        assert difference in str(error.value)
    assert "  train.log_every" not in str(error.value)
    assert content(run) == before


def test_what_cannot_be_resumed_is_refused(tmp_path):
    config = tiny("train.precision=float32")
    run = new_run(tmp_path, config)
    train(run, config)
    with pytest.raises(ResumeError, match="has run 12 iterations; --set train.num_episodes=12 or more, not 5"):
        train(run, tiny("train.precision=float32", "train.num_episodes=5"), resume=True)
    with pytest.raises(ResumeError, match="computes in float32, not in bfloat16"):
        train(run, tiny("train.precision=bfloat16", "train.num_episodes=20"), resume=True)


@pytest.mark.parametrize("lost", [["state/last.pt", "state/previous.pt"], ["status.json"]], ids=["ours", "public"])
def test_a_run_whose_state_is_lost_keeps_its_checkpoints(tmp_path, lost):
    run = new_run(tmp_path, tiny())
    train(run, tiny())
    for name in {*lost, "state/last.pt"}:
        (run.path / name).unlink()
    run.previous_state_path.unlink(missing_ok=True)
    before = content(run)
    with pytest.raises(ResumeError, match="has no state/last.pt to go on from"):
        train(run, tiny("train.num_episodes=20"), resume=True)
    assert content(run) == before


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rbc_warp.runs.run.PATIENCE", 0.2)
    run = new_run(tmp_path, tiny())
    lock = run.path / "state" / "lock"
    expected = f"{re.escape(str(run.path))}: is trained by another process \\(process {os.getpid()}: .*\\); wait"
    with locked(lock, run.path, "", ""), pytest.raises(RunFileError, match=expected):
        train(run, tiny())
    assert re.search(r"is trained by another process \(process .*\); waiting up to 0.2 s\n", capsys.readouterr().err)
    assert train(run, tiny("train.num_episodes=1"), resume=True).status == "finished"


# Tracking ------------------------------------------------------------------------------------------------------------


def test_event_files_of_a_resumed_run_say_what_its_metrics_say(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = new_run(tmp_path, tiny())
    with monkeypatch.context() as patched:
        kill_at(patched, "append_metrics", 5, done=True)  # after the state of 6 iterations
        with pytest.raises(Killed):
            train(run, tiny())
    time.sleep(1.1)  # event files are ordered by the second of their names
    train(run, tiny(), resume=True)
    assert len(list(run.path.glob("events.out.tfevents.*"))) == 2
    events = EventAccumulator(str(run.path)).Reload()
    records = run.read_metrics()
    assert set(events.Tags()["scalars"]) == {name for record in records for name, _ in flat(record)}
    for name in ("reward/firm", "economy/price", "loss/consumer/entropy"):
        expected = [(record["iteration"], pytest.approx(dict(flat(record))[name], rel=1e-6)) for record in records]
        assert [(event.step, event.value) for event in events.Scalars(name)] == expected


class _Recorder:
    """Takes the place of a tracker's package: notes every call."""

    def __init__(self, calls: list, name: str = "") -> None:
        self._calls, self._name = calls, name

    def __getattr__(self, name: str):
        return _Recorder(self._calls, f"{self._name}.{name}".strip("."))

    def __call__(self, *arguments, **options):
        self._calls.append((self._name, arguments, options))
        return _Recorder(self._calls, self._name) if self._name != "start_run" else _Started


class _Started:
    class info:
        run_id = "abc"


@pytest.mark.parametrize("tracker", [WeightsAndBiases, MLflow])
def test_a_tracker_gets_the_metrics_and_finds_its_run_again(tracker, tmp_path, monkeypatch):
    calls: list = []
    name = {WeightsAndBiases: "wandb", MLflow: "mlflow"}[tracker]
    monkeypatch.setitem(sys.modules, name, _Recorder(calls))
    run = RunDir.create(tmp_path)
    for _ in range(2):
        made = tracker(run, tiny('metadata.group_name="first"'))
        made.log(3, {"reward/firm": 1.0})
        made.flush()
        made.close()
    logged = [(arguments, options) for called, arguments, options in calls if called in ("init.log", "log_metrics")]
    assert logged == [(({"reward/firm": 1.0},), {"step": 3})] * 2
    if tracker is MLflow:
        started = [options for called, _, options in calls if called == "start_run"]
        assert started == [{"run_name": run.path.name}, {"run_id": "abc"}]
    else:
        assert {(options["id"], options["resume"]) for called, _, options in calls if called == "init"} == {
            (run.path.name, "allow")
        }


def test_what_mlflow_cannot_do_is_said_in_one_line(tmp_path, monkeypatch):
    class MlflowException(Exception):
        """What mlflow raises."""

    def refuse(name: str) -> None:
        raise MlflowException("unsupported URI\n'sqlite:///mlflow.db'")

    package = SimpleNamespace(exceptions=SimpleNamespace(MlflowException=MlflowException), set_experiment=refuse)
    monkeypatch.setitem(sys.modules, "mlflow", package)
    with pytest.raises(ConfigError, match="--track mlflow: unsupported URI 'sqlite:.*; `pip install mlflow` whole"):
        MLflow(RunDir.create(tmp_path), tiny())


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_tracker_is_named(name, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"--track {name}: .*pip install {name}"):
        check_trackers([name])


def test_the_launcher_resumes_and_says_what_a_finished_run_needs(tmp_path, capsys):
    import run_training

    run = new_run(tmp_path, tiny("train.num_episodes=2"))
    options = ["--resume", os.fspath(run.path), "--backend", "host", "--quiet"]
    assert run_training.main(options) == 0
    assert run_training.main(options) == 0
    assert "is finished after 2 iterations\nto extend it:" in capsys.readouterr().out
    assert run_training.main([*options, "--set", "train.num_episodes=3"]) == 0
    assert run.read_status().iteration == 3
