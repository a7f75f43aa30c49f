"""Sweeps: which runs there are, what becomes of them when one or all die, and what is told of them."""

from __future__ import annotations

import csv
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import run_training
from rbc_warp.commands.launch import clean_errors
from rbc_warp.config import load_config
from rbc_warp.economy.parameters import Economy
from rbc_warp.errors import ConfigError
from rbc_warp.runs.executors import LocalEngine, RayEngine
from rbc_warp.runs.folder import RunDir, find_runs
from rbc_warp.runs.locks import locked
from rbc_warp.runs.sweep import Display, execute, expand, last_record, plan, present, varied, write_index

ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "configs" / "sweeps" / "tiny.yaml"
SMALL = ["agents.num_consumers=6", "agents.num_firms=2", "world.maxtime=4", "train.batch_size=4"]
SWEEP = load_config(SMOKE, SMALL)


def statuses(folder: Path) -> list[str]:
    found = [run.read_status() for run in find_runs(folder)]
    return [status.status for status in found if status]


def index(folder: Path) -> list[dict[str, str]]:
    with open(folder / "index.csv", newline="") as file:
        return list(csv.DictReader(file))


# Which runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "base"),
    [("open", 96, "paper_open"), ("closed", 12, "paper_closed"), ("fixed_taxes", 12, "paper_open"),
     ("tiny", 4, "smoke")],
)  # fmt: skip
def test_shipped_sweeps_vary_only_what_they_name(name, count, base):
    config = load_config(ROOT / "configs" / "sweeps" / f"{name}.yaml")
    runs = expand(config)
    swept = {f"{section}.{key}" for section, keys in config.sweep.items() for key in keys}
    assert len(runs) == len({str(run.to_dict()) for run in runs}) == count
    assert set(varied([*runs, load_config(ROOT / "configs" / f"{base}.yaml")])) == swept
    assert all(not run.sweep and run.metadata["name"] == name for run in runs)


def test_published_grid():
    world, train = (load_config(ROOT / "configs/sweeps/open.yaml").sweep[name] for name in ("world", "train"))
    assert world == {"importer_price": (500.0, 1000.0), "importer_quantity": (10.0, 50.0, 100.0, 1000.0)}
    assert train["ppo_num_updates"] == (2, 4) and len(train["base_seed"]) == 3


def test_fixed_taxes_are_equal_taxes_of_20_to_80_percent():
    runs = expand(load_config(ROOT / "configs/sweeps/fixed_taxes.yaml"))
    taxes = {tuple(Economy.from_config(run).government_choices[run.agents.frozen_government_action]) for run in runs}
    np.testing.assert_allclose(sorted(taxes), [(0.2, 0.2), (0.4, 0.4), (0.6, 0.6), (0.8, 0.8)], rtol=1e-6)


def test_the_last_list_varies_fastest_and_what_follows_follows():
    config = load_config({"sweep": {"agents": {"num_consumers": [5, 6]}, "train": {"base_seed": [1, 2]}}})
    found = [
        (run.agents.num_consumers, run.train.base_seed, run.world.initial_firm_endowment) for run in expand(config)
    ]
    assert found == [(5, 1, 110000.0), (5, 2, 110000.0), (6, 1, 132000.0), (6, 2, 132000.0)]


def test_blocks_and_nothing_can_be_swept():
    anneal = {"anneal_on": True, "start": 0.2, "increase_const": 0.1}
    config = load_config({"sweep": {"agents": {"government_anneal_taxes": [None, anneal]}}})
    assert [run.agents.government_anneal_taxes is None for run in expand(config)] == [True, False]


def test_an_invalid_combination_is_named_before_anything_is_written(tmp_path):
    config = load_config({"sweep": {"agents": {"frozen_government_action": [3, 50]}}})
    with pytest.raises(ConfigError, match=r"sweep: agents.frozen_government_action=50 is no valid run:\n.*0 to 35"):
        plan(tmp_path / "new", config)
    assert not (tmp_path / "new").exists()


def test_an_override_of_a_swept_key_is_refused():
    with pytest.raises(ConfigError, match=r"world.importer_price is swept; write --set sweep.world.importer_price="):
        expand(SWEEP, ["world.importer_price=100"])
    narrowed = ["sweep.world.importer_price=[100]"]
    assert len(expand(load_config(SMOKE, narrowed), narrowed)) == 2


# Folders -------------------------------------------------------------------------------------------------------------


def test_a_second_start_finds_the_runs_of_the_first(tmp_path):
    first = plan(tmp_path, SWEEP)
    assert [task.is_new for task in first] == [True] * 4 and statuses(tmp_path) == ["created"] * 4
    assert load_config(first[0].run.hparams_path) == expand(SWEEP)[0]
    first[1].run.write_status("finished", 40)
    first[2].run.write_status("failed", 7)
    again = plan(tmp_path, SWEEP)
    assert [task.run.path for task in again] == [task.run.path for task in first]
    assert [task.state for task in again] == ["waiting", "finished", "waiting", "waiting"]
    assert [task.state for task in present(tmp_path)] == [task.state for task in again]


def test_a_longer_sweep_extends_its_runs(tmp_path):
    first = plan(tmp_path, SWEEP)
    first[0].run.write_status("finished", 40)
    longer = load_config(SMOKE, [*SMALL, "train.num_episodes=50"])
    again = plan(tmp_path, longer)
    assert [task.run.path for task in again] == [task.run.path for task in first]
    assert {task.overrides for task in again} == {("train.num_episodes=50",)}
    again[0].run.write_hparams(again[0].config.to_dict())
    again[0].run.write_status("finished", 50)
    assert plan(tmp_path, SWEEP)[0].state == "finished"  # longer than wanted is long enough


def test_seeds_from_timestamps_differ_and_are_found_again(tmp_path):
    once = load_config(SMOKE, [*SMALL, "sweep.train.base_seed=[1]"])
    seeded = plan(tmp_path, once, seed_from_timestamp=True)
    seeds = {task.config.train.base_seed for task in seeded}
    assert len(seeds) == 2 and 1 not in seeds
    again = plan(tmp_path, once, seed_from_timestamp=True)
    assert [task.run.path for task in again] == [task.run.path for task in seeded]
    assert all(task.is_new for task in plan(tmp_path, once))


def launch(*words: object) -> int:
    return run_training.main([str(word) for word in words])


def test_dry_run_makes_folders_and_an_index_only(tmp_path, capsys):
    options = ["--config", SMOKE, "--experiment-dir", tmp_path, "--dry-run", "--num-consumers", 7, "--num-firms", 3]
    assert launch(*options, "--group-name", "first: try") == 0
    assert launch(*options) == 0
    assert re.findall(r": 4 runs \((.*)\)", capsys.readouterr().out) == ["4 new", "4 waiting"]
    configs = [load_config(run.hparams_path) for run in find_runs(tmp_path)]
    sizes = Counter((config.agents.num_consumers, config.agents.num_firms) for config in configs)
    assert sizes == {(7, 3): 4}
    rows = index(tmp_path)
    assert [(row["world.importer_price"], row["train.base_seed"]) for row in rows] == [
        ("500.0", "2345"), ("500.0", "2346"), ("1000.0", "2345"), ("1000.0", "2346")
    ]  # fmt: skip
    assert {(row["status"], row["iterations"], row["group_name"]) for row in rows} == {("created", "0", "first: try")}
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {
        ".csv",
        ".yaml",
        ".json",
        ".pickle",
        ".lock",
    }


@pytest.mark.parametrize(
    "words",
    ["", "--config a --resume b --jobs 2", "--resume b --jobs 2", "--run-only", "--ray-address auto --config a",
     "--run-only --experiment-dir x --set train.lr=1", "--resume b --dry-run"],
)  # fmt: skip
def test_options_that_do_not_fit_together_end_with_usage(words, capsys):
    with pytest.raises(SystemExit) as exit_:
        launch(*words.split())
    assert exit_.value.code == 2 and "usage: " in capsys.readouterr().err


def test_one_launcher_at_a_time(tmp_path, capsys):
    with locked(tmp_path / ".launcher.lock", tmp_path, "", ""), pytest.raises(SystemExit) as exit_, clean_errors():
        launch("--config", SMOKE, "--experiment-dir", tmp_path, "--dry-run")
    assert exit_.value.code == 2
    assert re.search(r"another launcher is at work here \(process .*\); wait until it ends", capsys.readouterr().err)


# Carrying them out ---------------------------------------------------------------------------------------------------


class FakeEngine:
    """Plays the processes: each ends at its second poll with the next of the given codes."""

    def __init__(self, codes, capacity: float = 2) -> None:
        self.codes, self.capacity = iter(codes), capacity
        self.active: set[str] = set()
        self.most = 0
        self.polled: Counter[str] = Counter()

    def start(self, command, log) -> str:
        self.active.add(str(log))
        self.most = max(self.most, len(self.active))
        return str(log)

    def poll(self, handle):
        self.polled[handle] += 1
        if self.polled[handle] < 2:
            return None
        code = next(self.codes)
        if code is KeyboardInterrupt:
            raise KeyboardInterrupt
        self.active.remove(handle)
        run = RunDir(Path(handle).parent)
        if code == 0:
            run.append_metrics([{"iteration": 39, "reward": {"consumer": 1.0, "firm": 2.0, "government": 3.0}}])
            run.write_status("finished", 40)
        elif code > 0:
            Path(handle).write_text("noise\nerror: the disk is full\nmore noise\n")
        return code

    def stop(self, handles) -> list[int]:
        return [130 for _ in handles]

    def close(self) -> None: ...


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr("rbc_warp.runs.sweep.POLL_SECONDS", 0.0)


def test_a_failing_run_is_reported_and_does_not_stop_the_others(tmp_path, no_waiting):
    tasks, said = plan(tmp_path, SWEEP), io.StringIO()
    engine = FakeEngine([0, 2, -9, 0])
    display = Display(tmp_path, tasks, Console(file=said, soft_wrap=True))
    with display.shown():
        execute(tasks, engine, ["train"], display)
    assert [task.state for task in tasks] == ["finished", "failed", "failed", "finished"] and engine.most == 2
    assert [task.message for task in tasks] == ["", "the disk is full", "killed by signal 9", ""]
    assert statuses(tmp_path) == ["finished", "failed", "failed", "finished"]
    assert [(row["status"], row["reward.firm"], row["message"]) for row in index(tmp_path)] == [
        ("finished", "2.0", ""), ("failed", "", "the disk is full"),
        ("failed", "", "killed by signal 9"), ("finished", "2.0", ""),
    ]  # fmt: skip
    changes = re.findall(r"\[(\d)/4\] rollout-\S+  .*base_seed=\d+  (\w+)", said.getvalue())
    assert Counter(state for _, state in changes) == {"running": 4, "finished": 2, "failed": 2}
    assert [task.state for task in plan(tmp_path, SWEEP)] == ["finished", "waiting", "waiting", "finished"]


def test_an_interruption_stops_what_runs_and_leaves_the_rest(tmp_path, no_waiting):
    tasks = plan(tmp_path, SWEEP)
    with pytest.raises(KeyboardInterrupt):
        execute(tasks, FakeEngine([0, KeyboardInterrupt]), [], Display(tmp_path, tasks, Console(file=io.StringIO())))
    assert Counter(task.state for task in tasks) == {"finished": 1, "interrupted": 1, "waiting": 2}


@pytest.mark.parametrize("height", [40, 8])
def test_the_live_table_shows_every_run_busy_ones_first_where_not_all_fit(height, tmp_path):
    tasks, screen = plan(tmp_path, SWEEP), io.StringIO()
    tasks[3].state, tasks[3].began = "running", (time.monotonic() - 60, 0)
    record = {"iteration": 19, "reward": {"consumer": 1.5, "firm": 2.0, "government": 3.0}}
    tasks[3].run.append_metrics([record])
    console = Console(file=screen, force_terminal=True, width=140, height=height)
    display = Display(tmp_path, tasks, console)
    with display.shown():
        display.show()
    table = screen.getvalue()
    assert all(task.name.removeprefix("rollout-") in table for task in (tasks if height == 40 else tasks[3:]))
    row = next(line for line in table.splitlines() if "running" in line and "/40" in line)
    assert re.search(r"1000.0\s+2346\s+running\s+20/40\s+1.0 min\s+1.5\s+2\s+3", row)
    assert "4 runs: 1 running, 3 waiting" in table


def test_the_last_record_of_a_file_being_written(tmp_path):
    run = plan(tmp_path, SWEEP)[0].run
    assert last_record(run) == {}
    run.append_metrics({"iteration": i, "text": "x" * 1000} for i in range(100))
    with open(run.metrics_path, "a") as file:
        file.write('{"iteration": 1')
    assert last_record(run)["iteration"] == 99
    assert write_index(tmp_path).name == "index.csv"


def test_local_processes_tell_how_they_ended(tmp_path):
    engine = LocalEngine(3)
    script = "import sys, os, signal, time; print('said'); {}"
    scripts = ["sys.exit(3)", "os.kill(os.getpid(), signal.SIGKILL)", "time.sleep(60)"]
    handles = [
        engine.start([sys.executable, "-c", script.format(line)], tmp_path / f"{number}.txt")
        for number, line in enumerate(scripts)
    ]
    codes: list[int | None] = [None, None]
    while None in codes:
        codes = [codes[n] if codes[n] is not None else engine.poll(handles[n]) for n in range(2)]
        time.sleep(0.02)
    assert codes == [3, -signal.SIGKILL]
    assert engine.stop(handles[2:]) == [-signal.SIGTERM]
    assert (tmp_path / "0.txt").read_text() == "said\n"


def test_ray_is_asked_for_by_name_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="pip install -r requirements-ray.txt"):
        RayEngine(None, 2, 1, None)


# As a user runs them -------------------------------------------------------------------------------------------------


def sweep(folder: Path, *options: object, length: int = 6, narrow: bool = True) -> list[str]:
    words = [sys.executable, ROOT / "run_training.py", "--config", SMOKE, "--experiment-dir", folder]
    words += ["--backend", "host", "--threads", 1, *options]
    sets = [*SMALL, f"train.num_episodes={length}", "train.save_state_every=5"]
    sets += ["sweep.train.base_seed=[2345]"] if narrow else []
    return [str(word) for word in (*words, *(part for value in sets for part in ("--set", value)))]


def results(folder: Path) -> dict[tuple[str, str], tuple[bytes, ...]]:
    """Metrics and final policies by parameters."""
    found = {}
    for run in find_runs(folder):
        config = load_config(run.hparams_path)
        policies = (run.policy_path(agent, "latest").read_bytes() for agent in ("consumer", "firm", "government"))
        found[config.world.importer_price, config.train.base_seed] = (run.metrics_path.read_bytes(), *policies)
    return found


def run_to_the_end(*words: object, **options) -> None:
    done = subprocess.run(sweep(*words, **options), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_real_sweep_with_a_failing_run(tmp_path):
    subprocess.run(sweep(tmp_path, "--dry-run"), check=True, capture_output=True)
    broken = find_runs(tmp_path)[0]
    broken.state_path.parent.mkdir()
    broken.state_path.write_bytes(b"no state")
    words = [sys.executable, ROOT / "run_training.py", "--run-only", "--experiment-dir", tmp_path, "--backend", "host"]
    done = subprocess.run([*map(str, words), "--threads=1", "--jobs=2"], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"failed: {broken.path}: {broken.state_path}: cannot be read as a dict of tensors" in done.stderr
    assert statuses(tmp_path) == ["failed", "finished"]


def wait_for(condition, seconds: float = 120.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def all_under_way(folder: Path, count: int) -> bool:
    """Whether so many runs have a state but no end."""
    return folder.is_dir() and sum(run.has_state for run in find_runs(folder)) >= count


@pytest.mark.slow
def test_a_killed_sweep_started_again_ends_as_if_nothing_had_been(tmp_path):
    length = 300
    launcher = subprocess.Popen(sweep(tmp_path / "killed", "--jobs", 2, length=length, narrow=False))
    wait_for(lambda: all_under_way(tmp_path / "killed", 2))
    launcher.kill()
    launcher.wait()
    assert "finished" not in statuses(tmp_path / "killed")
    run_to_the_end(tmp_path / "killed", "--jobs", 2, length=length, narrow=False)
    assert statuses(tmp_path / "killed") == ["finished"] * 4
    run_to_the_end(tmp_path / "whole", length=length, narrow=False)
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_saves_its_runs_and_says_so(engine, number, tmp_path):
    if engine == "ray":
        pytest.importorskip("ray")
    words = sweep(tmp_path, "--executor", engine, "--jobs", 2, length=100000)
    # Where the tests run in a shell's background, SIGINT is ignored, and children inherit that.
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    launcher = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    wait_for(lambda: all_under_way(tmp_path, 2))
    launcher.send_signal(number)
    assert "interrupted" in launcher.communicate(timeout=120)[1] and launcher.returncode == 130
    assert statuses(tmp_path) == ["interrupted"] * 2
    assert {row["status"] for row in index(tmp_path)} == {"interrupted"}


@pytest.mark.slow
def test_every_engine_gives_the_same_runs(tmp_path):
    pytest.importorskip("ray")
    engines = {"local": [], "jobs": ["--jobs", 2], "ray": ["--executor", "ray", "--jobs", 2]}
    for name, options in engines.items():
        run_to_the_end(tmp_path / name, *options, length=40, narrow=False)
        assert len(results(tmp_path / name)) == 4
    assert results(tmp_path / "local") == results(tmp_path / "jobs") == results(tmp_path / "ray")


def trainers_of(run: RunDir) -> list[tuple[int, int]]:
    """The processes that train a run and those that started them, by /proc."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.fspath(run.path).encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                found.append((int(folder.name), int((folder / "stat").read_text().rpartition(")")[2].split()[1])))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["worker", "run", "both"])
def test_a_run_whose_ray_worker_is_killed_goes_on_from_its_last_state(killed, tmp_path):
    pytest.importorskip("ray")
    length = 400
    launcher = subprocess.Popen(sweep(tmp_path / "ray", "--executor", "ray", "--jobs", 2, length=length))
    wait_for(lambda: all_under_way(tmp_path / "ray", 2))
    victim = find_runs(tmp_path / "ray")[0]
    ((process, worker),) = trainers_of(victim)
    for number in {"worker": [worker], "run": [process], "both": [process, worker]}[killed]:
        os.kill(number, signal.SIGKILL)
    assert launcher.wait(timeout=300) == 0
    assert ("interrupted after" in (victim.path / "log.txt").read_text()) == (killed == "worker")
    assert len(list(victim.path.glob("events.out.tfevents.*"))) == 2
    run_to_the_end(tmp_path / "local", length=length)
    assert results(tmp_path / "ray") == results(tmp_path / "local")
