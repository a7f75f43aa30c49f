"""What a run is told to need, against sizes computed by hand, what runs leave, and what this machine has."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from trainers import trained_run

from rbc_warp.commands.sweep import run_sweep
from rbc_warp.commands.train import main, parse
from rbc_warp.config import load_config
from rbc_warp.errors import ConfigError, MachineError
from rbc_warp.runs import footprint
from rbc_warp.runs.footprint import MIB, Item, Need

SMALL = {
    "agents": {"num_consumers": 3, "num_firms": 2},
    "world": {"maxtime": 5},
    "train": {"batch_size": 4, "num_episodes": 10, "save_dense_every": 4, "save_model_every": 5, "log_every": 3},
}


def test_files_are_those_computed_by_hand() -> None:
    sizes = {item.name: item.size for item in footprint.files(load_config(SMALL)).items}
    # Public state: 4 * 2 + 3 = 11. Consumers: state 11 + 2, actions 4, reward 1, flows 2; firms: 11 + 5, 1, 1, 1.
    rows = 3 * (13 + 4 + 1 + 2) + 2 * (16 + 1 + 1 + 1) + 1 * (11 + 1 + 1)
    assert sizes["dense rollouts"] == (3 + 1) * 4 * 4 * 5 * rows
    # Networks: inputs 2 + 2 + 2 * 10 + 2 + 3 public; private 10 + 1 and 10 + 2 + 2; actions 11 + 11 + 5 + 2, 30, 36.
    weights = [128 * (29 + private + 128 + k + 3) + k + 1 for private, k in ((11, 29), (14, 30), (0, 36))]
    assert sizes["checkpoints"] == (2 + 2) * sum(4 * number + 3072 for number in weights)
    assert sizes["states to resume from"] == 2 * (12 * sum(weights) + 8192)
    assert sizes["metrics"] == (4 + 1) * footprint.RECORD_BYTES


def test_files_are_those_that_a_run_leaves(tmp_path: Path) -> None:
    settings = [
        "train.save_dense_every=4",
        "train.save_model_every=3",
        "train.num_episodes=8",
        "train.save_state_every=4",
    ]
    starts = [f"agents.{name}_training_start=0" for name in ("firm", "government")]  # all optimizers have a state
    run = trained_run(tmp_path, *settings, *starts)
    config = load_config(run.hparams_path)
    expected = {item.name: item.size for item in footprint.files(config).items}
    patterns = {
        "dense rollouts": "episode_*",
        "checkpoints": "saved_models/*.pt",
        "states to resume from": "state/*.pt",
    }
    for name, pattern in patterns.items():
        left = sum(path.stat().st_size for path in run.path.glob(pattern))
        assert left == pytest.approx(expected[name], rel=0.03), name


def test_memory_follows_the_sizes() -> None:
    def total(**train: object) -> int:
        return footprint.memory(load_config(SMALL, [f"train.{key}={value}" for key, value in train.items()]), "host")[
            0
        ].total

    few, many, more = total(batch_size=1000), total(batch_size=2000), total(batch_size=3000)
    assert more - many == pytest.approx(many - few, rel=0.01)  # a constant, and so much for each environment
    # A consumer's row: 2 + 4 + 3 numbers kept and 12 while learning, beside its inputs; the others' come on top.
    per_env = (many - few) / 1000
    assert 5 * 4 * (3 * (9 + 12)) < per_env < 5 * 4 * 6 * 150
    assert footprint.memory(load_config(SMALL), "host", processes=4)[0].total < total()
    assert [need.what for need in footprint.memory(load_config(SMALL, ["train.precision=float32"]), "pycuda")] == [
        "memory",
        "GPU memory",
    ]


def test_more_than_there_is_is_refused_with_the_key_to_lower(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(footprint, "available_memory", lambda: 100 * MIB)
    need = Need("memory", (Item("a", 60 * MIB, "lower a.b"), Item("b", 50 * MIB, "lower c.d")))
    with pytest.raises(
        MachineError, match=r"about 110 MiB of memory \(most for a, 60 MiB\), and 100 MiB is free; lower a.b"
    ):
        footprint.check([need])
    assert footprint.check([Need("memory", need.items[:1])]) == "about 60 MiB of memory (most for a, 60 MiB)"
    with pytest.raises(MachineError, match=f"TiB is|GiB is free at {tmp_path}|free at {tmp_path}"):
        footprint.check([Need("disk", (Item("a", 1 << 60, "lower a.b"),))], tmp_path / "runs" / "more")


@pytest.mark.parametrize("key", ["train.batch_size=1000000", "world.maxtime=100000", "agents.num_consumers=100000"])
def test_a_run_that_is_too_large_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setattr(footprint, "available_memory", lambda: 500 * MIB)
    config = Path(__file__).parents[1] / "configs" / "rbc.yaml"
    with pytest.raises(MachineError, match="of memory .* lower train.batch_size"):
        main(["--config", str(config), "--backend", "host", "--set", key, "--experiment-dir", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists() and MachineError.exit_code == 4


def sweep(tmp_path: Path, *arguments: str) -> argparse.Namespace:
    config = Path(__file__).parents[1] / "configs" / "sweeps" / "tiny.yaml"
    return parse(["--config", str(config), "--dry-run", "--experiment-dir", str(tmp_path / "runs"), *arguments])


def test_a_sweep_counts_its_runs_before_it_makes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = f"sweep.train.base_seed={list(range(2000))}"
    lists = [f"sweep.world.{key}={[n / 1000 for n in range(1000)]}" for key in ("budget_drip", "technology")]
    words = [word for text in (seeds, *lists) for word in ("--set", text)]
    with pytest.raises(
        ConfigError, match=r"4,000,000,000 runs, and --max-runs is 1,000; .*base_seed with 2,000 values"
    ):
        run_sweep(sweep(tmp_path, *words))
    with pytest.raises(ConfigError, match="4 runs, and --max-runs is 3"):
        run_sweep(sweep(tmp_path, "--max-runs", "3"))
    assert not (tmp_path / "runs").exists()
    run_sweep(sweep(tmp_path, "--max-runs", "4"))
    assert "of memory" in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize("version", [1, 2])
def test_limits_of_control_groups_count(tmp_path: Path, version: int) -> None:
    group = tmp_path / ("memory/a/b" if version == 1 else "a/b")
    group.mkdir(parents=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    names = names if version == 1 else ("memory.max", "memory.current", "inactive_file")
    for folder, limit in ((group, 1000), (group.parent, 700)):
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text("600\n")
        (folder / "memory.stat").write_text(f"anon 1\n{names[2]} 50\n")
    groups = tmp_path / "cgroup"
    groups.write_text("5:cpu:/x\n4:memory:/a/b\n" if version == 1 else "0::/a/b\n")
    assert list(footprint._groups_memory(tmp_path, groups)) == [450, 150]
