"""Gaps of runs over training: environment steps, the table and the picture; and how long it takes to pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_best_response import launch, run_dir, trained  # noqa: F401 (fixtures)

import run_training
from rbc_warp.__main__ import main
from rbc_warp.analysis.gaps import points_of, table
from rbc_warp.commands import time_to_equilibrium
from rbc_warp.config import Agents, Train, load_config
from rbc_warp.config.schema import EntropyAnneal, RangeAnneal, TaxAnneal, ThetaAnneal
from rbc_warp.config.stretch import BLOCKS, INTERVALS, RATES, TIMES, WHOLE, stretched
from rbc_warp.economy.curriculum import env_steps
from rbc_warp.economy.parameters import Economy
from rbc_warp.equilibrium.results import PUBLISHED_BARS
from rbc_warp.runs.folder import RunDir
from rbc_warp.training.recorder import Recorder
from rbc_warp.training.trainer import RbcTrainer

CONFIGS = Path(__file__).parents[1] / "configs"


def test_verdicts_of_all_checkpoints_become_a_table_and_a_picture(run_dir, tmp_path, capsys) -> None:  # noqa: F811
    with pytest.raises(SystemExit) as ended:
        main(["gaps", str(run_dir)])
    assert ended.value.code == 2 and "run_best_response.py" in capsys.readouterr().err

    assert launch(run_dir, 1, "--ep-strs", "0", "2", "latest", "--verdict", "quick", "--eval-episodes", 8) == 0
    assert capsys.readouterr().out.count("any of ") == 3
    points = points_of(RunDir(run_dir))
    content = json.loads((run_dir / "best_response.json").read_text())
    assert [point.iteration for point in points] == [v["iteration"] for v in content["verdicts"]] and len(points) == 3
    assert content["verdict"] == content["verdict"] | content["verdicts"][-1]
    assert content["verdict"]["checkpoint"] == "latest"
    config = load_config(run_dir / "hparams.yaml")
    assert points[1].env_steps == 3 * config.train.batch_size * config.world.maxtime
    for agent, found in content["verdict"]["largest"].items():
        gap = points[-1].gaps[agent]
        if found["bar"]:
            assert gap.passed == (gap.high <= PUBLISHED_BARS[agent] * (1 + 1e-9))
            assert gap.share == pytest.approx(PUBLISHED_BARS[agent] * found["gain"] / found["bar"])

    assert table(points).count("\n") == 4
    picture = tmp_path / "gaps.png"
    assert main(["gaps", str(run_dir.parent), "-o", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG") and "of 1 runs pass" in capsys.readouterr().out


def test_env_steps_count_what_is_played_again_with_trials() -> None:
    config = load_config(CONFIGS / "smoke.yaml")
    trainer = RbcTrainer(config, "host", recorder=Recorder())
    trainer.train()
    assert trainer.perf_stats.steps == env_steps(config, trainer.economy, 40)
    # 40 iterations of 8 episodes of 10 periods, and 30 of them again: firms learn, and try, from 10 on.
    assert trainer.perf_stats.steps == (40 + 30) * 8 * 10
    published = load_config(CONFIGS / "paper_open.yaml")
    assert env_steps(published, Economy.from_config(published), 200_000) == 256_000_000


@pytest.mark.parametrize("name", ["rbc", "smoke", "paper_open"])
def test_a_stretched_schedule_is_the_same_in_another_time(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    assert stretched(config, 1.0) == config
    longer = stretched(config, 2.0)
    assert stretched(longer, 0.5) == config
    assert longer.train.num_episodes == 2 * config.train.num_episodes
    assert longer.agents.firm_training_start == 2 * config.agents.firm_training_start
    before, after = config.agents.firm_anneal_prices, longer.agents.firm_anneal_prices
    assert before is not None and after is not None and after.increase_const == before.increase_const / 2
    assert longer.world == config.world and longer.agents.consumer_minibatches == config.agents.consumer_minibatches


def test_every_time_of_the_schema_is_stretched_or_stays_for_a_reason() -> None:
    """A new key that counts iterations has to say which."""
    stays = {  # cycles of a few iterations, and what is done beside training
        *("train_consumers_every", "train_firms_every", "train_government_every", "training_schedule_mod"),
        *("consumer_mod_threshold", "lagr_num_steps", "log_every", "best_response_episodes"),
    }
    times = {*TIMES["agents"], *TIMES["train"], *INTERVALS, *BLOCKS}
    counted = {
        key
        for section in (Agents, Train)
        for key, field in section.model_fields.items()
        if "[iteration" in field.description
        or field.description.startswith(("When ", "Widening", "Rising", "Rise of the disutility", "Decay", "Cycle"))
        or key.endswith("_mod_threshold")
    }
    assert counted == times | stays and not times & stays
    blocks = {EntropyAnneal: {"coef_floor"}, RangeAnneal: {"start"}, TaxAnneal: {"start"}, ThetaAnneal: set()}
    for block, levels in blocks.items():
        assert set(block.model_fields) == {"anneal_on", *levels} | (
            set(block.model_fields) & {*RATES, *WHOLE, "exp_decay_length_in_steps"}
        )


@pytest.mark.parametrize("factor", ["0", "-1", "nan", "inf", "x"])
def test_a_factor_that_stretches_nothing_is_refused(factor: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        run_training.main(["--config", str(CONFIGS / "smoke.yaml"), "--stretch", factor])
    assert ended.value.code == 2 and "--stretch" in capsys.readouterr().err


def test_the_launcher_stretches_before_it_overrides(tmp_path: Path) -> None:
    words = ["--config", str(CONFIGS / "smoke.yaml"), "--stretch", "0.5", "--set", "train.num_episodes=3", "--quiet"]
    assert run_training.main([*words, "--experiment-dir", str(tmp_path)]) == 0
    config = load_config(next(tmp_path.iterdir()) / "hparams.yaml")
    assert config.train.num_episodes == 3 and config.agents.firm_training_start == 5


def test_the_ladder_is_climbed_until_a_verdict_passes(monkeypatch) -> None:
    """With attempts that pass at a given length: each setting stops there, and the ratio compares what it took."""
    needed = {32: 100, 64: 400}  # by environments: what tells the settings apart here

    def fake(config: Any, updates: int, backend: str) -> dict[str, Any]:
        envs, length = config.train.batch_size, config.train.num_episodes
        found = {"of_training_gain": 1.0, "of_own_learning": None}
        verdict = {"passed": length >= needed[envs], "largest": {"firm": found}}
        steps = length * envs * config.world.maxtime
        return {"env_steps": steps, "training_seconds": length, "test_seconds": 1.0, "seed": 0, "verdict": verdict}

    def of_length(setting: str, iterations: int, seed: int) -> Any:
        config = stretched(load_config(CONFIGS / "smoke.yaml"), iterations / 40)
        return load_config(config, [f"train.batch_size={32 if setting == 'rbc.yaml' else 64}"])

    monkeypatch.setattr(time_to_equilibrium, "attempt", fake)
    monkeypatch.setattr(time_to_equilibrium, "of_length", of_length)
    length = load_config(CONFIGS / "rbc.yaml").train.num_episodes
    needed[32], needed[64] = length // 2, length
    said: list[str] = []
    result = time_to_equilibrium.time_to_equilibrium("host", 1, said.append)
    assert [one["length"] for one in result["attempts"]["rbc.yaml"]] == [0.5]
    assert [one["length"] for one in result["attempts"]["published"]] == [0.5, 1.0]
    assert result["ratios"] == [{"seed": 0, "env_steps": 4.0, "seconds": 2.0, "at_least": False}]
    needed[64] = 10**9
    result = time_to_equilibrium.time_to_equilibrium("host", 1, said.append)
    assert result["ratios"][0]["at_least"] and "not reached" in said[-1]


def test_the_published_settings_climb_with_the_same_environments() -> None:
    ours, published = (time_to_equilibrium.of_length(setting, 100, 3) for setting in ("rbc.yaml", "published"))
    assert ours.train.num_episodes == published.train.num_episodes == 100
    assert ours.train.batch_size == published.train.batch_size and published.train.base_seed == 3
    assert published.agents.firm_training_start == 15 and published.agents.firm_trials == 0
