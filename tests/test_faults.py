"""What a fault ends, and what it leaves alone: numbers, locks, results, trackers, standard files, exit codes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from trainers import new_run

from rbc_warp import errors
from rbc_warp.__main__ import main as command
from rbc_warp.commands.launch import clean_errors
from rbc_warp.config import Config, load_config
from rbc_warp.config.temporary import beside, sweep
from rbc_warp.equilibrium.results import Record, Results
from rbc_warp.errors import ConfigError, NumbersError, RunFileError, UserError
from rbc_warp.runs.folder import RunDir, find_runs
from rbc_warp.runs.locks import locked
from rbc_warp.runs.run import train_run
from rbc_warp.runs.sweep import damaged, last_record, plan, present, write_index
from rbc_warp.runs.tracking import Harmless
from rbc_warp.training.learner import Learner
from rbc_warp.training.rollout import Rollout

ROOT = Path(__file__).parents[1]
TINY = [
    "agents.num_consumers=4",
    "agents.num_firms=2",
    "agents.firm_training_start=0",
    "agents.government_training_start=0",
    "world.maxtime=3",
    "train.batch_size=4",
    "train.num_episodes=8",
    "train.save_state_every=2",
    "train.save_model_every=3",
    "train.save_dense_every=5",
    "train.best_response_episodes=4",
]


def tiny(*more: str) -> Config:
    return load_config(ROOT / "configs" / "smoke.yaml", [*TINY, *more])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = new_run(tmp_path_factory.mktemp("experiment"), tiny())
    train_run(run, tiny(), "host", quiet=True)
    return run


@pytest.fixture
def run(trained: RunDir, tmp_path: Path) -> RunDir:
    return RunDir(shutil.copytree(trained.path, tmp_path / trained.path.name))


def launch(*words: object) -> int:
    """A command's exit code, as a shell sees it."""
    try:
        return command([*map(str, words)])
    except SystemExit as stop:
        return int(stop.code or 0)


def started(*words: object, **options: object) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "rbc_warp", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(line, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, **pipes)


def assert_finite(run: RunDir) -> None:
    for path in run.path.rglob("*.pt"):
        stack = [torch.load(path)]
        while stack:
            part = stack.pop()
            stack += part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
            assert not isinstance(part, torch.Tensor) or part.isfinite().all(), path
    for path in run.path.rglob("*.npz"):
        assert np.isfinite(np.load(path)["rewards"]).all() and np.isfinite(np.load(path)["states"]).all(), path
    assert "null" not in run.metrics_path.read_text()


# Numbers


def poisoned_update(monkeypatch: pytest.MonkeyPatch, call: int, value: float) -> None:
    """Put a number into the parameters in the n-th update of any type."""
    original, calls = Learner.update, iter(range(1, 1000))

    def update(self: Learner, *arguments: object) -> torch.Tensor:
        norm = original(self, *arguments)
        if next(calls) == call:
            self.policy.flat.data[-1] = value
        return norm

    monkeypatch.setattr(Learner, "update", update)


def poisoned_outcome(monkeypatch: pytest.MonkeyPatch, array: str, call: int, value: float) -> None:
    """Put a number into an array of the economy in the n-th period that is played."""
    original, calls = Rollout.noting_outcome, iter(range(1, 1000))

    @contextmanager
    def note(self: Rollout, period: int, *arguments: object) -> Iterator[None]:
        with original(self, period, *arguments):
            yield
        if next(calls) == call:
            slot = self._array(array.replace("rewards_", "rewards_batch_"))
            (slot[period] if array.startswith("rewards_") else slot)[0, 0] = value

    monkeypatch.setattr(Rollout, "noting_outcome", note)


@pytest.mark.parametrize("learner", ["fused", "autograd"])
@pytest.mark.parametrize("trials", [0, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_parameters_that_are_not_finite_end_the_run_and_are_not_kept(learner, trials, value, tmp_path, monkeypatch):
    config = tiny(f"train.learner={learner}", f"agents.firm_trials={trials}", "train.log_every=100")
    run = new_run(tmp_path, config)
    poisoned_update(monkeypatch, 4 * 3 + 2, value)  # the firm's in iteration 4
    with pytest.raises(NumbersError, match=r"iteration 4: the firm's parameters are not finite.*\nThe state after 4 "):
        train_run(run, config, "host", quiet=True)
    assert run.load_state()[0]["iteration"] == 4 and run.read_status().status == "failed"
    assert "iteration 4" in run.read_status().message
    assert_finite(run)
    monkeypatch.undo()
    assert train_run(run, config, "host", quiet=True, resume=True).status == "finished"
    assert_finite(run)


@pytest.mark.parametrize(
    ("array", "says"),
    [("rewards_consumer", "consumer's rewards"), ("observations_firm", "firm's states")],
)
def test_an_economy_that_is_not_finite_ends_the_run_and_is_not_kept(array, says, tmp_path, monkeypatch):
    config = tiny("agents.firm_trials=0", "agents.government_trials=0", "train.save_dense_every=1")
    run = new_run(tmp_path, config)
    poisoned_outcome(monkeypatch, array, 3 * 5 + 3, float("nan"))  # the last period of iteration 5
    with pytest.raises(NumbersError, match=f"iteration 5: the {says} are not finite"):
        train_run(run, config, "host", quiet=True)
    assert run.episode_labels()[-1] == "4"
    assert_finite(run)


def test_amounts_that_outgrow_32_bits_end_with_exit_code_3(tmp_path, capsys):
    settings = [word for key in (*TINY, "world.interest_rate=1", "world.maxtime=150") for word in ("--set", key)]
    assert launch("train", "--config", "smoke", *settings, "--experiment-dir", tmp_path, "-q") == errors.NUMBERS
    said = capsys.readouterr().err
    assert "iteration 0: the consumer's states are not finite" in said and "lower world.interest_rate" in said
    assert not list(tmp_path.rglob("*.pt"))


def test_nothing_that_is_not_finite_is_written(tmp_path):
    run = RunDir.create(tmp_path)
    run.save_state({"a": [1.0, torch.zeros(2)]})
    before = run.state_path.read_bytes()
    for bad in (torch.tensor([0.0, float("inf")]), float("nan")):
        with pytest.raises(NumbersError, match=r"a\.1 is not finite"):
            run.save_state({"a": [1.0, bad]})
    assert run.state_path.read_bytes() == before


def test_a_fine_tuning_that_is_not_finite_leaves_the_results_as_they_were(run, monkeypatch, capsys):
    words = ("best-response", run.path, "--ep-strs", "latest", "--verdict", "none", "--eval-episodes", 4, "-q")
    assert launch(*words, "--agent-type", "firm") == 0
    before = run.best_response_path.read_bytes()
    poisoned_update(monkeypatch, 2, float("nan"))
    assert launch(*words, "--agent-type", "consumer") == errors.NUMBERS
    assert "the consumer's parameters are not finite" in capsys.readouterr().err
    assert run.best_response_path.read_bytes() == before
    assert_finite(run)


# Two at once


@pytest.mark.parametrize("types", [("consumer", "firm"), ("firm", "firm")])
def test_best_responses_started_together_leave_all_results(types, run):
    common = ("best-response", run.path, "--ep-strs", "latest", "--verdict", "none", "--eval-episodes", 4, "--scan")
    both = [started(*common, "--threads", 1, "--agent-type", agent) for agent in types]
    for process in both:
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0 and "Traceback" not in said, said
    found = Results.read(run)
    assert {(record.agent, record.method) for record in found.records} == {
        (agent, method) for agent in types for method in ("fine-tuned", "fixed")
    }
    tuned = [record for record in found.records if record.method == "fine-tuned"]
    assert len(tuned) == len(set(types)) and {scan["agent"] for scan in found.scans} == set(types)


def test_a_lock_says_at_once_who_holds_it_and_gives_up(tmp_path, capsys):
    holder = f"is held \\(process {os.getpid()}: .*\\)"
    lock = tmp_path / "state" / "lock"
    with locked(lock, tmp_path, "is held", "wait"):
        with (
            pytest.raises(RunFileError, match=f"{tmp_path}: {holder}; wait"),
            locked(lock, tmp_path, "is held", "wait", 0.2),
        ):
            pass
        assert re.search(f"{tmp_path}: {holder}; waiting up to 0.2 s", capsys.readouterr().err)
    with locked(lock, tmp_path, "is held", "wait"):
        pass
    assert capsys.readouterr().err == ""


def test_a_lock_that_cannot_be_is_no_lock_that_another_holds(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "pipe")
    for name, says in (("link", "cannot be locked: Too many"), ("pipe", "is not a plain file")):
        with pytest.raises(RunFileError, match=says), locked(tmp_path / name, tmp_path, "is held", "wait"):
            pass
    assert (tmp_path / "elsewhere").read_text() == "mine"

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fails)
    with (
        pytest.raises(RunFileError, match="cannot be locked: Input/output error; the disk") as caught,
        locked(tmp_path / "lock", tmp_path, "is held", "wait", 60.0),
    ):
        pass
    assert caught.value.exit_code == errors.MACHINE


# A sweep's runs


def test_a_damaged_run_of_a_sweep_stops_no_other(tmp_path):
    small = TINY[:2] + TINY[4:6]
    config = load_config(ROOT / "configs" / "sweeps" / "tiny.yaml", small)
    tasks = plan(tmp_path, config)
    runs = [task.run for task in tasks]
    rewards = {"consumer": None, "firm": 2.0, "government": float("nan")}
    runs[0].append_metrics([{"iteration": 39, "reward": rewards, "economy": {"price": None}}])
    runs[0].write_status("finished", 40)
    runs[1].status_path.write_text('{"status": 3')
    runs[2].hparams_path.write_text("agents: [")
    runs[3].metrics_path.write_text("[1]\n")
    write_index(tmp_path)
    rows = (tmp_path / "index.csv").read_text().splitlines()
    assert len(rows) == 5 and rows[-1].startswith(f"{runs[2].path.name},failed")
    assert "status.json" in rows[2] and "not what the run wrote" in rows[2] and last_record(runs[3]) == {}
    assert list(damaged(tmp_path)) == [runs[2].path.name]
    assert [task.state for task in present(tmp_path)] == ["finished", "waiting", "waiting"]
    again = plan(tmp_path, config)
    assert [task.is_new for task in again] == [False, False, True, False]
    assert len(find_runs(tmp_path)) == 5


# Trackers


class Broken:
    """A tracker whose every call fails."""

    calls = 0

    def log(self, iteration: int, values: object) -> None:
        Broken.calls += 1
        raise ConnectionError("no\nnet\x1b")

    flush = close = log


def test_a_tracker_s_first_fault_turns_it_off(capsys):
    tracker = Harmless("wandb", Broken)
    for _ in range(3):
        tracker.log(0, {})
    tracker.flush()
    tracker.close()
    said = capsys.readouterr().err
    assert Broken.calls == 1 and said.count("\n") == 1
    assert said.startswith("warning: wandb is off from here on: no net\\x1b;")
    Harmless("mlflow", lambda: 1 / 0).log(0, {})
    with pytest.raises(ConfigError):
        Harmless("mlflow", lambda: tiny("world.maxtime=0"))


# Standard files, signals, what is left over


@pytest.mark.parametrize(
    ("redirection", "code", "says"),
    [(">&-", 0, ""), (">/dev/full", errors.MACHINE, "error: standard output"), ("| true", errors.PIPE, "")],
)
def test_standard_output_that_is_closed_full_or_unread(redirection, code, says):
    line = f"sleep 0; {sys.executable} -m rbc_warp --help {redirection}; echo ${{PIPESTATUS[0]}}"
    line = line.replace("-m rbc_warp", "-c 'import time; time.sleep(0.3); from rbc_warp.__main__ import main; main()'")
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == str(code), done
    assert done.stderr.startswith(says) and len(done.stderr.splitlines()) == bool(says)


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_end_of_the_terminal_saves_a_state_as_sigterm_does(tmp_path):
    settings = [word for key in (*TINY, "train.num_episodes=100000", "train.save_state_every=100000")
                for word in ("--set", key)]  # fmt: skip
    process = started("train", "--config", "smoke", *settings, "--experiment-dir", tmp_path, "-q")
    wait_for(lambda: any(tmp_path.glob("*/metrics.jsonl")), process)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)  # a shell passes it on, too
    assert process.wait(60) == errors.INTERRUPTED, process.communicate()
    (run,) = find_runs(tmp_path)
    assert run.has_state and run.read_status().status == "interrupted"


def test_temporary_files_of_ended_processes_are_swept(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    mine = beside(tmp_path / "metrics.jsonl")
    theirs = tmp_path / "state" / mine.name.replace(f".{os.getpid()}-", f".{ended.pid}-")
    other = tmp_path / ".notes.tmp"
    elsewhere = tmp_path / re.sub(r"-[0-9a-f]{8}-", "-00000000-", theirs.name)
    theirs.parent.mkdir()
    for path in (mine, theirs, other, elsewhere):
        path.write_text("")
    sweep(tmp_path)
    assert [path.exists() for path in (mine, theirs, other, elsewhere)] == [True, False, True, True]
    os.utime(elsewhere, (0, 0))
    sweep(tmp_path)
    assert not elsewhere.exists()


def test_a_run_that_never_began_is_started_anew(tmp_path, capsys):
    run = RunDir.create(tmp_path)
    assert launch("train", "--resume", run.path, "-q") == errors.USER
    assert "has no hparams.yaml, so it never began; --config FILE starts it" in capsys.readouterr().err
    settings = [word for key in TINY for word in ("--set", key)]
    assert launch("train", "--resume", run.path, "--config", "smoke", *settings, "-q") == 0
    assert run.read_status().status == "finished" and len(find_runs(tmp_path)) == 1
    assert launch("train", "--resume", run.path, "--config", "smoke", "-q") == errors.USER


# Best responses: what is refused before anything is measured


GOOD = Record("latest", 7, "firm", "fixed", "price", 1.0, 2.0, 1.0, 0.5, 1.5)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [("gain", None, "gain: expected float, found null"), ("iteration", "7", "iteration: expected int"),
     ("index", 1.5, "index: expected int or NoneType"), ("greedy", 1, "greedy: expected bool"),
     ("settings", [], "settings: expected dict"), ("checkpoint", 7, "checkpoint: expected str")],
)  # fmt: skip
def test_results_of_wrong_types_are_refused(key, value, says, run):
    Results([GOOD]).write(run)
    assert Results.read(run).records == [GOOD]
    content = json.loads(run.best_response_path.read_text())
    content["records"][0][key] = value
    run.write_best_response(content)
    with pytest.raises(RunFileError, match=re.escape(says)):
        Results.read(run)


@pytest.mark.parametrize("option", ["--exact", "--rules", "--eval-episodes", "--repeat-runs", "--checkpoint-model"])
def test_numbers_of_a_best_response_have_bounds(option, run, capsys):
    assert launch("best-response", run.path, option, "99999999999") == errors.USER
    assert f"{option} 99999999999 is too many; give 1 to" in capsys.readouterr().err


# Exit codes


def test_exit_codes_stand_in_the_docs():
    rows = dict(re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / "docs" / "running.md").read_text(), re.MULTILINE))
    names = ("DONE", "FAILED", "USER", "NUMBERS", "MACHINE", "INTERRUPTED", "PIPE")
    assert set(map(int, rows)) == {getattr(errors, name) for name in names}


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 4, "error: /x: cannot be used: No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "error: /x: cannot be used: Permission"),
        (MemoryError("Unable to allocate 9 TiB"), 4, "error: this machine has too little memory: Unable"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 4, "error: the GPU has too little memory: CUDA"),
        (RuntimeError("CUDA error: an illegal address"), 4, "error: the GPU failed: CUDA error"),
        (UserError("a\x1b[31mb"), 2, "error: a\\x1b[31mb\n"),
        (NumbersError("NaN"), 3, "error: NaN\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_a_fault_ends_in_one_message_and_its_exit_code(error, code, says, capsys):
    with pytest.raises(SystemExit) as stopped, clean_errors():
        raise error
    assert stopped.value.code == code
    said = capsys.readouterr().err
    assert said.startswith(says) and len(said.splitlines()) == bool(says)
