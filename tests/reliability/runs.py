"""The short run that the rows break, and what is left of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from stops import values
from trainers import TINY

from rbc_warp.config import load_config
from rbc_warp.errors import RunFileError
from rbc_warp.runs.episodes import parse_name, read_episode
from rbc_warp.runs.folder import RunDir, find_runs
from rbc_warp.runs.run import prepare_run, train_run

LENGTH = 8
# Intervals that share no rhythm, so that stops fall between them in every way.
SETTINGS = [
    *TINY,
    "train.log_every=2",
    "train.save_model_every=3",
    "train.save_dense_every=4",
    "train.save_state_every=2",
    "train.best_response_episodes=1",
]
CONFIG = Path(__file__).parents[2] / "configs" / "smoke.yaml"


def settings(length: int = LENGTH) -> list[str]:
    return [*SETTINGS, f"train.num_episodes={length}"]


def words(length: int = LENGTH) -> list[str]:
    """The words of the command that trains the short run."""
    return ["train", "--config", str(CONFIG), "--backend", "host", "--quiet"] + [
        word for setting in settings(length) for word in ("--set", setting)
    ]


def trained(folder: Path, length: int = LENGTH) -> RunDir:
    """Train a whole run here."""
    config = load_config(CONFIG, settings(length))
    run = RunDir.create(folder)
    prepare_run(run, config)
    train_run(run, config, "host", quiet=True)
    return run


def the_runs(folder: Path) -> list[RunDir]:
    return find_runs(folder) if folder.is_dir() else []


def content(run: RunDir) -> dict[str, object]:
    """All that a run says, by file: read by the lab's own readers, comparable by value."""
    config = load_config(run.hparams_path)
    found: dict[str, object] = {"hparams.yaml": config.to_dict(), "metrics.jsonl": run.read_metrics()}
    state, warning = run.load_state()
    found["state"] = values({key: state[key] for key in ("iteration", "trainer")}), warning
    for agent in ("consumer", "firm", "government"):
        for label in run.labels(agent):
            path = run.policy_path(agent, label)
            found[path.name] = values(run.load_policy_state(agent, label, shapes(run, agent)))
    for path in sorted(run.path.glob("episode_*.npz")):
        if parse_name(path):
            found[path.name] = [np.asarray(array).tobytes() for array in vars(read_episode(path)).values()]
    return found


def shapes(run: RunDir, agent: str) -> dict[str, tuple[int, ...]]:
    from rbc_warp.economy.parameters import Economy
    from rbc_warp.training.policy import make_policies

    config = load_config(run.hparams_path)
    return make_policies(config, Economy.from_config(config))[agent].file_shapes()


def difference(run: RunDir, expected: dict[str, object]) -> str | None:
    """Return what differs between a run and what another one said; None where nothing does."""
    try:
        found = content(run)
    except RunFileError as error:
        return f"unreadable: {error}"
    names = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    return f"differs in {', '.join(names)}" if names else None
