"""``python -m rbc_warp bench --equilibrium``: how much training it takes until an equilibrium's verdict passes.

A schedule ends in an equilibrium or does not: what is measured is the shortest of a ladder of lengths at whose end the
full verdict passes. ``rbc.yaml`` and the published settings climb the same ladder, with the same number of
environments, seeds and test.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rbc_warp.config import Config, load_config
from rbc_warp.config.shipped import CONFIGS
from rbc_warp.config.stretch import stretched
from rbc_warp.economy.curriculum import env_steps
from rbc_warp.economy.parameters import Economy
from rbc_warp.equilibrium.best_response import judged, measure
from rbc_warp.equilibrium.request import Request, prepare
from rbc_warp.equilibrium.results import without_details
from rbc_warp.equilibrium.verdict import FULL
from rbc_warp.runs.console import text_table
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.run import prepare_run, train_run

SETTINGS = {"rbc.yaml": "rbc.yaml", "published": "paper_open.yaml"}
LADDER = (0.5, 1.0, 2.0)
"""Lengths that are tried, as shares of the length of ``rbc.yaml``."""


def of_length(setting: str, iterations: int, seed: int) -> Config:
    """Return a setting stretched to so many iterations, with the environments of ``rbc.yaml``."""
    envs = load_config(CONFIGS / SETTINGS["rbc.yaml"]).train.batch_size
    config = load_config(CONFIGS / SETTINGS[setting])
    config = stretched(config, iterations / config.train.num_episodes)
    every = max(1, iterations // 4)
    saving = [f"train.{key}={every}" for key in ("save_dense_every", "save_model_every", "save_state_every")]
    return load_config(config, [f"train.batch_size={envs}", f"train.base_seed={seed}", *saving])


def attempt(config: Config, updates: int, backend: str) -> dict[str, Any]:
    """Train, then judge; return what it took and the verdict."""
    with tempfile.TemporaryDirectory(prefix="rbc_warp-") as folder:
        run = RunDir.create(Path(folder))
        prepare_run(run, config)
        trained = train_run(run, config, backend, quiet=True)
        began = time.monotonic()
        request = Request(
            run.path, iterations=updates, labels=("latest",), verdict=FULL.name, backend=backend, quiet=True
        )
        (plan,) = prepare(request)
        measure(plan, request)
        verdict = judged(plan, plan.checkpoints[0], FULL, request)
    return {
        "env_steps": env_steps(config, Economy.from_config(config), config.train.num_episodes),
        "training_seconds": trained.seconds,
        "test_seconds": time.monotonic() - began,
        "seed": config.train.base_seed,
        "verdict": without_details(verdict.to_dict()),
    }


def time_to_equilibrium(backend: str, seeds: int, show: Callable[[str], None], updates: int = 100) -> dict[str, Any]:
    """Climb the ladder with each setting and seed until a verdict passes; return all attempts and the ratios.

    ``updates``: of each type's fine-tuning, which counts as a deviation. A ratio is None where rbc.yaml does not pass;
    where the published settings do not pass, it is the least that it can be.
    """
    length = load_config(CONFIGS / SETTINGS["rbc.yaml"]).train.num_episodes
    attempts: dict[str, list[dict[str, Any]]] = {setting: [] for setting in SETTINGS}
    ratios = []
    for seed in range(seeds):
        last = {}
        for setting in SETTINGS:
            for share in LADDER:
                done = attempt(of_length(setting, max(4, round(share * length)), seed), updates, backend)
                attempts[setting].append(last_one := {"length": share, **done})
                show(_line(setting, last_one))
                if done["verdict"]["passed"]:
                    break
            last[setting] = last_one
        ratios.append(_ratio(last["rbc.yaml"], last["published"], seed))
    show(_table(attempts))
    return {"attempts": attempts, "ratios": ratios}


def _ratio(ours: dict[str, Any], published: dict[str, Any], seed: int) -> dict[str, Any]:
    """How many times the training of ``rbc.yaml`` the published settings take."""
    if not ours["verdict"]["passed"]:
        return {"seed": seed, "env_steps": None, "seconds": None, "at_least": False}
    return {
        "seed": seed,
        "env_steps": published["env_steps"] / ours["env_steps"],
        "seconds": published["training_seconds"] / ours["training_seconds"],
        "at_least": not published["verdict"]["passed"],
    }


def _shares(done: dict[str, Any]) -> str:
    """The largest gain of each type, as a share of what its bar is a share of."""
    parts = []
    for agent, found in done["verdict"]["largest"].items():
        share = found["of_training_gain"] if found["of_training_gain"] is not None else found["of_own_learning"]
        parts.append(f"{agent} {'?' if share is None else f'{share:.2g} %'}")
    return ", ".join(parts)


def _line(setting: str, done: dict[str, Any]) -> str:
    passed = "passes" if done["verdict"]["passed"] else "fails"
    return (
        f"{setting}, seed {done['seed']}, {done['env_steps']:,} env-steps: {passed} ({_shares(done)}); "
        f"training {done['training_seconds']:.0f} s, test {done['test_seconds']:.0f} s"
    )


def _table(attempts: dict[str, list[dict[str, Any]]]) -> str:
    rows = []
    for setting, done in attempts.items():
        for seed in dict.fromkeys(one["seed"] for one in done):
            last = [one for one in done if one["seed"] == seed][-1]
            reached = last["verdict"]["passed"]
            more = "" if reached else "> "
            figures = (f"{more}{last['env_steps']:,}", f"{more}{last['training_seconds']:.0f}")
            rows.append((setting, str(seed), *figures, "passes" if reached else "not reached", _shares(last)))
    return text_table(("settings", "seed", "env-steps", "training, s", "verdict", "largest gains"), rows)
