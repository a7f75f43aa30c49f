"""The results command: its plan, what it makes of a small part, and that it makes nothing twice."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rbc_warp import __main__
from rbc_warp.commands import results
from rbc_warp.commands.results import PARTS, TRAINING, VERDICT, Outlook, Part, Work, size_of
from rbc_warp.config import load_config
from rbc_warp.economy.curriculum import env_steps
from rbc_warp.economy.parameters import Economy
from rbc_warp.errors import ConfigError
from rbc_warp.runs.sweep import expand

SMALL = """
base: {root}/configs/smoke.yaml
agents: {{num_consumers: 3, num_firms: 2, firm_trials: 0, government_trials: 0}}
world: {{maxtime: 3}}
train: {{num_episodes: 12, batch_size: 4, save_model_every: 10, save_dense_every: 10, lr_decay_start: 10}}
sweep: {{train: {{base_seed: {seeds}}}}}
"""


@pytest.fixture
def small(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: int) -> Path:
    """The folder of the results, of which there is one small part, of so many seeds."""
    (tmp_path / "configs" / "results").mkdir(parents=True)
    (tmp_path / "configs" / "results" / "open.yaml").write_text(SMALL.format(root=root, seeds=list(range(seeds))))
    monkeypatch.setattr(results, "CONFIGS", tmp_path / "configs")
    monkeypatch.setattr(results, "PARTS", (Part("open", "the open economy", cross_play=True),))
    return tmp_path / "results"


def make(folder: Path, *arguments: str) -> int:
    words = ["--experiment-dir", str(folder), "-o", str(folder.parent / "results.md"), *arguments]
    return __main__.main(["results", *words])


@pytest.mark.parametrize("seeds", [1, pytest.param(2, marks=pytest.mark.slow)])  # two: with cross-play
def test_a_part_is_trained_tested_and_told_and_made_only_once(
    seeds: int, small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make(small, "--dry-run") == 0 and not small.exists()
    assert f"all parts: 0 of {seeds} runs trained, 0 of {seeds} tested; time left not known" in capsys.readouterr().out
    assert make(small, "--no-training") == 0
    assert f"**0 of {seeds} runs are finished**" in (small.parent / "results.md").read_text()

    short = Part("open", "", (results.Test("verdict", VERDICT.command.replace("100", "2"), VERDICT.is_done),), True)
    monkeypatch.setattr(results, "PARTS", (short,))
    monkeypatch.setattr(results, "UPDATES", 2)
    capsys.readouterr()
    assert make(small, "--jobs", "2") == 0
    shown = capsys.readouterr().out
    assert f"all parts: {seeds} of {seeds} runs trained, {seeds} of {seeds} tested; about 0 min left" in shown
    page = (small.parent / "results.md").read_text()
    assert "runs are finished**" not in page and f"({seeds} run" in page
    raw = json.loads((small.parent / "results.json").read_text())
    assert [run["seed"] for run in raw["outcomes"]["open"]] == list(range(seeds))
    assert {run["verdicts"][-1]["effort"] for run in raw["outcomes"]["open"]} == {"full"}
    assert (raw["cross_play"] is None) == (seeds == 1)

    started = subprocess.Popen

    def never(words: list[str], **options: Any) -> subprocess.Popen:
        assert "--version" in words, "a process was started"  # the compiler's
        return started(words, **options)

    monkeypatch.setattr(subprocess, "Popen", never)
    assert make(small) == 0
    assert (small.parent / "results.md").read_text() == page

    note = small / "open" / results.NOTE_NAME
    note.write_text("made\nelsewhere.\n")
    assert make(small, "--page") == 0
    assert "Runs of `open`: made elsewhere.\n" in (small.parent / "results.md").read_text()
    note.write_bytes(b"\xff")
    with pytest.raises(SystemExit):
        make(small, "--page")
    assert "note.txt: cannot be read as a note" in capsys.readouterr().err
    note.unlink()

    sweep = results.CONFIGS / "results" / "open.yaml"
    sweep.write_text(sweep.read_text().replace("num_firms: 2", "num_firms: 3"))
    assert make(small, "--page") == 0  # runs of other settings do not count
    assert f"**0 of {seeds} runs are finished**" in (small.parent / "results.md").read_text()


def test_every_part_has_its_sweep(root: Path) -> None:
    assert {part.name for part in PARTS} == {path.stem for path in (root / "configs" / "results").glob("*.yaml")}
    total = 0
    for part in PARTS:
        configs = expand(load_config(part.config_path))
        total += len(configs)
        assert part.program is None or (root / part.program).exists()
    assert total == 107


def test_without_a_curriculum_a_run_has_as_many_steps() -> None:
    bare, usual = (expand(load_config(f"results/{name}"))[0] for name in ("no_curriculum", "open"))
    steps = [env_steps(config, Economy.from_config(config), config.train.num_episodes) for config in (bare, usual)]
    assert steps[0] == steps[1]


def test_time_left_follows_from_what_was_done(tmp_path: Path) -> None:
    configs = expand(load_config("results/precision"))
    work = Work(Part("precision", ""), tmp_path / "precision", configs)
    outlook = Outlook.of(tmp_path, [work], jobs=2)
    assert outlook.seconds() == (0.0, False)
    outlook.note(TRAINING, size_of(configs[0]), 200.0)
    assert outlook.seconds() == (pytest.approx(9 * 200 / 2), False) and "more than 15 min left" in str(outlook)
    outlook.note("verdict", 111, 60.0)
    assert outlook.seconds() == (pytest.approx(9 * (200 + 60) / 2), True)
    again = Outlook.of(tmp_path, [work], jobs=1)  # no run is there: only the times are known from before
    assert again.seconds() == (pytest.approx(10 * 260), True)
    assert "0 of 10 runs trained, 0 of 10 tested; about 43 min left" in str(again)


def test_faults_of_the_user_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="opne is no part of the results; give some of open, unseen, closed"):
        results.parse(["opne"])
    with pytest.raises(ConfigError, match="page.html: give a file that ends in .md"):
        results.parse(["-o", "page.html"])
