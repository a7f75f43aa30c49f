"""The view of a training that goes on, and the phases of the curriculum in words."""

from __future__ import annotations

import gc
import io
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from trainers import new_run

from rbc_warp.config import Config, load_config
from rbc_warp.economy import curriculum
from rbc_warp.economy.parameters import Economy
from rbc_warp.runs import live
from rbc_warp.runs.live import LiveView, Status, plain_line, sparkline, view
from rbc_warp.runs.run import train_run
from rbc_warp.training.trainer import RbcTrainer

CONFIGS = Path(__file__).parents[1] / "configs"
RECORD = {
    "reward": {"consumer": 4.1234, "firm": -61234.5, "government": 2713.0},
    "economy": {
        **{"price": 1432.1, "wage": 21.34, "hours": 412.3, "sales": 55.1, "exports": 54.2},
        **{"income_tax": 0.123, "corporate_tax": 0.0},
    },
}
SHARES = {"rollout": 0.31, "trials": 0.2, "update consumer": 0.41, "update firm": 0.07, "writing": 0.001}


@pytest.fixture(scope="module")
def rbc() -> Config:
    return load_config(CONFIGS / "rbc.yaml")


@pytest.fixture(scope="module")
def status(rbc: Config) -> Status:
    """A run of rbc.yaml 400 iterations after firms began to learn."""
    history = {"consumer": [5.0, 4.5, 4.0], "firm": np.linspace(0, 1, 500), "government": [np.nan, 0.0, 1.0]}
    given = (rbc, Economy.from_config(rbc), 1180, 3120, 100.0, RECORD, history)
    return Status(*given, speed=8000.0, left=3725.0, shares=SHARES)


# Phases in words


@pytest.mark.parametrize(
    ("iteration", "words"),
    [
        (0, "consumers learn"),
        (779, "consumers learn"),
        (780, "consumers and firms learn"),
        (1559, "consumers and firms learn"),
        (1560, "consumers, firms and government learn"),
        (3119, "consumers, firms and government learn"),
    ],
)
def test_phases_change_their_words_where_a_type_joins(rbc: Config, iteration: int, words: str) -> None:
    economy = Economy.from_config(rbc)
    assert curriculum.phase(rbc, economy, iteration) == words
    assert curriculum.phases(rbc, economy) == [(780, "firms learn"), (1560, "government learns")]


@pytest.mark.parametrize(
    ("agents", "expected"),
    [
        ({"frozen_firm_action": 0, "government_training_start": 5}, [(5, "government learns")]),
        # Turns within a cycle, and every third iteration, are no phases.
        ({"training_schedule_mod": 4, "consumer_mod_threshold": 1, "train_government_every": 3}, []),
        (
            {"consumer_training_list": [[2, 4], [4, 6]], "government_training_start": 4},
            [(2, "consumers learn"), (4, "government learns"), (6, "firms and government learn")],
        ),
        (
            {f"{name}_training_list": [[0, 3]] for name in ("consumer", "firm", "government")},
            [(3, "nobody learns")],
        ),
    ],
)
def test_phases_of_other_schedules(agents: dict, expected: list[tuple[int, str]]) -> None:
    config = load_config({"agents": agents})
    assert curriculum.phases(config, Economy.from_config(config)) == expected


# The view


@pytest.mark.parametrize("width", [60, 80])
def test_the_view_fits_a_terminal_and_breaks_no_figure(status: Status, width: int) -> None:
    lines = view(status, width).plain.split("\n")
    assert len(lines) <= 12 and max(map(len, lines)) == width
    assert lines[0] == "consumers and firms learn"
    assert lines[1:3] == ["allowed: income tax 0–0.4 · corporate tax 0–0.4", f"{'':16}reward  entropy  over the run"]
    assert lines[3] == "consumer         4.123    0.050  █▅▁"
    assert lines[4].startswith("firm           -61,234    0.050  ▁▁") and len(lines[4]) == width
    assert lines[5] == "government       2,713        –   ▁█"
    figures = "price 1,432 · wage 21.34 · hours 412.3 · sales 55.1 · exports 54.2 · income tax 0.123 · corporate tax 0"
    assert " · ".join(lines[6:8]) == figures
    assert lines[8] == "8,000 env-steps/s · 888,000 agent-steps/s"
    assert " · ".join(lines[9:-1]) == "rollout 31 % · trials 20 % · update consumer 41 % · update firm 7 %"
    assert lines[-1].endswith("━ 1180/3120  0:01:40, 1:02:05 left")


def test_the_view_of_a_run_without_end_or_records(status: Status) -> None:
    bare = Status(status.config, status.economy, 100, None, 7.0)
    lines = view(bare, 80).plain.split("\n")
    assert lines[1:3] == ["θ at 47 %", "allowed: price 1,000 · wage 22 · income tax 0 · corporate tax 0"]
    assert lines[-1] == "iteration 100  0:00:07"
    assert view(replace(status, done=3120), 60).plain.endswith("━ 3120/3120  0:01:40, 1:02:05 left")


def test_a_plain_line_tells_phase_rewards_speed_and_time(status: Status) -> None:
    assert plain_line(status) == (
        "1180/3120  consumers and firms learn  consumer 4.123  firm -6.123e+04  government 2713  "
        "8,000 env-steps/s  100 s, 3725 s left"
    )


def test_a_sparkline_shows_means_between_lowest_and_highest() -> None:
    assert sparkline([0, 0, 7, 7, 3.4, 3.6], 3) == "▁█▅"
    assert sparkline([2.0, 2.0], 10) == "▁▁" and sparkline([], 10) == "" and sparkline([1.0], 0) == ""


@pytest.mark.parametrize(("end", "at"), [(40, list(range(4, 41, 4))), (None, [1, 2, 4, 8, 16, 32])])
def test_without_a_terminal_lines_come_now_and_then(
    end: int | None, at: list[int], capsys: pytest.CaptureFixture
) -> None:
    trainer = RbcTrainer(load_config(CONFIGS / "smoke.yaml"), "host")
    console = Console(file=io.StringIO())
    for quiet in (True, False):
        with LiveView(trainer, 0, end, quiet, console=console) as shown:
            for done in range(1, 41):
                shown.advance(done)
        lines = capsys.readouterr().err.splitlines()
        assert [int(line.split()[0].split("/")[0]) for line in lines] == ([] if quiet else at)


def test_the_times_of_parts_add_up_to_the_time_that_has_passed(capsys: pytest.CaptureFixture) -> None:
    trainer = RbcTrainer(load_config(CONFIGS / "smoke.yaml"), "host")
    terminal = Console(file=(drawn := io.StringIO()), force_terminal=True, width=80, _environ={"TERM": "xterm"})
    with LiveView(trainer, 10, 40, console=terminal) as shown:
        done = trainer.train(10, 13)
        shown.note(RECORD)
        shown.advance(done)
        look = shown.looks[-1]
    assert sum(look.parts[f"update {name}"] for name in trainer.economy.agents) <= trainer.perf_stats.training_time
    assert min(look.parts[part] for part in ("rollout", "trials", "update consumer", "update firm")) > 0.0
    assert look.parts["update government"] == 0.0
    assert sum(look.parts.values()) == pytest.approx(look.seconds, rel=0.05)
    assert look.env_steps == 2 * 3 * 8 * 10  # of episodes and trials
    assert "13/40" in drawn.getvalue() and "trials" in drawn.getvalue()
    assert not capsys.readouterr().err


@pytest.mark.parametrize("quiet", [True, False])
def test_a_training_lets_go_of_its_trainer(quiet: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = []
    look = LiveView._look
    monkeypatch.setattr(LiveView, "_look", lambda self: (trainers.append(weakref.ref(self._trainer)), look(self))[1])
    terminal = Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=80)
    monkeypatch.setattr(live, "Console", lambda **_: terminal)
    config = load_config(CONFIGS / "smoke.yaml", ["train.num_episodes=2"])
    RbcTrainer(config, "host")  # the first one of a process imports a part of torch that keeps its frames for a while
    run = new_run(tmp_path, config)
    gc.disable()
    try:
        train_run(run, config, "host", quiet=quiet)
        assert trainers and not any(trainer() for trainer in trainers), "its arrays stay until a full collection"
    finally:
        gc.enable()
    assert bool(terminal.file.getvalue()) is not quiet
