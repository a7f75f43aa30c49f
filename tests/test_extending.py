"""The walkthroughs of docs/extending.md, carried out on a copy of the tree."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "extending.md").read_text()
DIFFS = {
    title: diff.group(1)
    for title, section in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    if (diff := re.search(r"^```diff\n(.*?)^```", section, re.MULTILINE | re.DOTALL))
}

# Random play of the smoke economy: the kernels do what the reference does, and say what a consumer's utility is.
PLAY = """
import json, numpy as np
from rbc_warp import load_config, simulate
from rbc_warp.economy.parameters import Economy
config = load_config("configs/smoke.yaml", ["world.initial_stocks=50", "world.initial_wages=11"])
draw, agents = np.random.default_rng(0), Economy.from_config(config).agents
actions = {
    name: draw.integers(0, agent.head_sizes, (4, config.world.maxtime, agent.count, len(agent.head_sizes)))
    for name, agent in agents.items()
}
actions |= {name: actions[name][..., 0] for name in ("firm", "government")}
kernels, truth = (simulate(config, actions, backend=backend) for backend in ("host", "reference"))
for name in truth:
    for key in ("states", "rewards", "final_states"):
        np.testing.assert_allclose(kernels[name][key], truth[name][key], rtol=1e-4, atol=0.5, err_msg=f"{name} {key}")
print(json.dumps({"consumer": truth["consumer"]["rewards"].mean(), "public": truth["government"]["states"].shape[-1]}))
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What a user has: the package, the configurations and the launchers."""
    for name in ("rbc_warp", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run_training.py", tmp_path)
    return tmp_path


def run(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def apply(folder: Path, title: str) -> list[str]:
    """Apply a walkthrough's diff as its reader would; returns the files it changes."""
    (folder / "change.diff").write_text(DIFFS[title])
    subprocess.run(
        ["git", "apply", "change.diff"], cwd=folder, check=True, env={**os.environ, "GIT_DIR": "/nonexistent"}
    )
    return re.findall(r"^\+\+\+ b/(.+)$", DIFFS[title], re.MULTILINE)


def train(folder: Path, *overrides: str) -> tuple[list[dict], str]:
    """Train the smoke configuration; returns its metrics and its hparams.yaml."""
    sets = [word for override in overrides for word in ("--set", override)]
    arguments = ["--config", "configs/smoke.yaml", "--quiet", "--experiment-dir", "out", *sets]
    shown = run(folder, "run_training.py", *arguments)
    assert "audit: goods, money, hours and taxes add up" in shown, shown
    (made,) = (folder / "out").iterdir()
    records = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    text = (made / "hparams.yaml").read_text()
    shutil.rmtree(made)
    return records, text


def test_every_walkthrough_is_tried() -> None:
    assert list(DIFFS) == ["Another utility", "A third choice of the government", "Another loss"]


def test_another_utility(copy: Path) -> None:
    before = json.loads(run(copy, "-c", PLAY))["consumer"]
    assert len(apply(copy, "Another utility")) == 2
    after = json.loads(run(copy, "-c", PLAY))["consumer"]
    assert after != pytest.approx(before, rel=0.01)
    records, _ = train(copy)
    assert len(records) == 40


def test_a_third_choice_of_the_government(copy: Path) -> None:
    files = apply(copy, "A third choice of the government")
    assert len(files) <= 8
    assert json.loads(run(copy, "-c", PLAY))["public"] == 4 * 4 + 4
    records, hparams = train(copy)
    assert "consumption_tax_choices:" in hparams and "government_num_actions: 108" in hparams
    assert records[0]["economy"]["consumption_tax"] == 0.0  # the curriculum's cap holds for it, too
    assert 0.0 < records[-1]["economy"]["consumption_tax"] <= 0.2


def test_another_loss(copy: Path) -> None:
    before, _ = train(copy, "train.learner=autograd")
    assert apply(copy, "Another loss") == ["rbc_warp/training/losses.py"]
    after, _ = train(copy, "train.learner=autograd")
    assert len(after) == len(before) and after[0]["reward"] == before[0]["reward"]  # the first draws are the same
    assert after[0]["loss"]["consumer"]["policy_loss"] != before[0]["loss"]["consumer"]["policy_loss"]
    assert after[-1]["reward"] != before[-1]["reward"]
