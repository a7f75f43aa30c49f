"""Dense rollouts and metrics as labeled data: values against the files, attributes, netCDF, runs of others, errors."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from trainers import trained_run

import rbc_warp
from rbc_warp.analysis.rollouts import VARIABLES
from rbc_warp.config import load_config
from rbc_warp.economy import reference
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.economy.parameters import Economy
from rbc_warp.errors import RunFileError
from rbc_warp.runs.folder import EPISODE_KEYS, RunDir

E, T, J = 4, 3, 2
CONSUMERS = 5
QUICK = [
    "train.num_episodes=12",
    f"train.batch_size={E}",
    "train.save_dense_every=10",
    f"world.maxtime={T}",
    f"agents.num_consumers={CONSUMERS}",
    f"agents.num_firms={J}",
    "world.initial_stocks=20",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return trained_run(tmp_path_factory.mktemp("experiment"), *QUICK)


@pytest.fixture
def run(trained: RunDir, tmp_path: Path) -> RunDir:
    """A copy, to change files of."""
    return RunDir(shutil.copytree(trained.path, tmp_path / "rollout"))


def raw(run: RunDir, agent: str, label: str = "final") -> dict[str, np.ndarray]:
    with np.load(run.episode_path(label, agent)) as file:
        return dict(file)


def test_variables_are_what_the_files_hold(trained: RunDir) -> None:
    found = rbc_warp.load_rollout(trained.path)
    assert list(found.data_vars) == list(VARIABLES) and found.attrs["label"] == "final"
    assert dict(found.sizes) == {"episode": E, "period": T, "consumer": CONSUMERS, "firm": J, "good": J}
    files = {agent: raw(trained, agent) for agent in AGENT_TYPES}
    public = files["government"]["states"][:, :, 0]
    private = {agent: files[agent]["states"][..., 4 * J + 3 :] for agent in AGENT_TYPES}
    asked, taxes = files["consumer"]["actions"], files["government"]["action_array"]
    chosen = files["firm"]["action_array"][files["firm"]["actions"]]
    expected = {
        **{name: public[..., n * J : (n + 1) * J] for n, name in enumerate(list(VARIABLES)[:4])},
        "income_tax": public[..., 4 * J],
        "corporate_tax": public[..., 4 * J + 1],
        "consumer_budget": private["consumer"][..., 0],
        "theta": private["consumer"][..., 1],
        "demand": asked[..., :J],  # the grid is 0, 1, …, 10
        "hours": files["consumer"]["action_array"][asked[..., J], 0],
        "employer": asked[..., J + 1],
        "consumption": files["consumer"]["aux_array"],
        "consumer_reward": files["consumer"]["rewards"],
        **{name: private["firm"][..., n] for n, name in enumerate(("firm_budget", "capital", "alpha"))},
        **{f"chosen_{name}": chosen[..., n] for n, name in enumerate(("price", "wage", "investment"))},
        "exports": files["firm"]["aux_array"],
        "firm_reward": files["firm"]["rewards"],
        "chosen_income_tax": taxes[files["government"]["actions"][..., 0], 0],
        "chosen_corporate_tax": taxes[files["government"]["actions"][..., 0], 1],
        "government_reward": files["government"]["rewards"][..., 0],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert set(VARIABLES) - set(expected) == {"wage_income", "sales", "labor", "production"}


def test_what_follows_is_what_the_reference_says(trained: RunDir) -> None:
    found = rbc_warp.load_rollout(trained.path)
    economy = Economy.from_config(load_config(trained.hparams_path))
    for t in range(T):
        files = {agent: {key: raw(trained, agent)[key][:, t] for key in ("states", "actions")} for agent in AGENT_TYPES}
        states = {agent: file["states"].astype(float)[..., 4 * J + 3 :] for agent, file in files.items()}
        public = files["government"]["states"][:, 0].astype(float)
        state = reference.State(public, states["consumer"], states["firm"])
        _, outcome = reference.step(economy, state, *(files[agent]["actions"] for agent in AGENT_TYPES))
        here = found.isel(period=t)
        for name, value in (
            ("wage_income", outcome.wage_income),
            ("sales", outcome.sales),
            ("labor", outcome.firm_hours),
            ("production", outcome.production),
        ):
            np.testing.assert_allclose(here[name], value, rtol=1e-5, atol=1e-4, err_msg=name)
    left = found.inventories - found.sales - found.exports + found.production
    np.testing.assert_allclose(left[:, :-1], found.inventories[:, 1:], rtol=1e-5, atol=1e-3)
    assert float(found.labor.max()) > 0 and float(found.sales.max()) > 0


def test_every_variable_says_what_it_is_and_survives_netcdf(trained: RunDir, tmp_path: Path) -> None:
    found = rbc_warp.load_rollout(str(trained.path), 10)
    assert all(set(variable.attrs) == {"units", "description"} for variable in found.data_vars.values())
    found.to_netcdf(tmp_path / "rollout.nc")
    with xr.open_dataset(tmp_path / "rollout.nc") as loaded:
        xr.testing.assert_identical(loaded, found)


@pytest.mark.parametrize("agent", AGENT_TYPES)
def test_one_file_gives_its_type(trained: RunDir, agent: str) -> None:
    whole = rbc_warp.load_rollout(trained.path, "final")
    part = rbc_warp.load_rollout(trained.episode_path("final", agent))
    for name, variable in part.data_vars.items():
        xr.testing.assert_identical(variable, whole[name])
    assert f"{agent}_reward" in part and "prices" in part and len(part.data_vars) < len(whole.data_vars)


def test_a_run_of_the_public_code_loads(run: RunDir) -> None:
    expected = rbc_warp.load_rollout(run.path)
    for agent in AGENT_TYPES:
        arrays = {key: raw(run, agent)[key] for key in EPISODE_KEYS}
        arrays["actions"] = arrays["actions"].astype(np.int64)
        np.savez(run.episode_path("final", agent), **arrays | ({"aux_array": None} if agent == "government" else {}))
    run.status_path.unlink()
    (run.path / "manifest.json").unlink()
    run.metrics_path.unlink()
    xr.testing.assert_equal(rbc_warp.load_rollout(run.path), expected)
    with pytest.raises(RunFileError, match="metrics.jsonl: holds no metrics"):
        rbc_warp.load_metrics(run.path)


def test_a_best_response_s_folder_takes_the_run_s_configuration(run: RunDir) -> None:
    inner = run.best_response("firm")
    inner.path.mkdir()
    for agent in AGENT_TYPES:
        shutil.copy(run.episode_path("final", agent), inner.path)
    xr.testing.assert_equal(rbc_warp.load_rollout(inner.path), rbc_warp.load_rollout(run.path))


def test_metrics_are_a_table(trained: RunDir) -> None:
    found = rbc_warp.load_metrics(trained.path)
    assert list(found.index) == list(range(12)) and found.index.name == "iteration"
    records = trained.read_metrics()
    assert found["reward.consumer"].tolist() == [record["reward"]["consumer"] for record in records]
    assert found["economy.price"].iloc[-1] == records[-1]["economy"]["price"]
    firm = [column for column in found if column.startswith("loss.firm.")]
    assert firm and found[firm].iloc[0].isna().all() and found[firm].iloc[-1].notna().all()


def test_faults_name_the_file_and_the_remedy(run: RunDir, tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="is no dense rollout of that label"):
        rbc_warp.load_rollout(run.hparams_path)
    with pytest.raises(RunFileError, match="holds no dense rollout 3; it has: "):
        rbc_warp.load_rollout(run.path, 3)
    arrays = raw(run, "firm")
    (run.path / "manifest.json").unlink()
    np.savez(run.episode_path("final", "firm"), **arrays | {"actions": arrays["actions"] + 30})
    with pytest.raises(RunFileError, match="actions: holds one that the run's economy does not have"):
        rbc_warp.load_rollout(run.path)
    np.savez(run.episode_path("final", "firm"), **arrays | {"states": arrays["states"][..., 1:]})
    with pytest.raises(RunFileError, match=r"states: expected shape \(4, 3, 2, 16\) of its run"):
        rbc_warp.load_rollout(run.path)
    with pytest.raises(RunFileError, match="holds no dense rollout"):
        rbc_warp.load_rollout(tmp_path)


def test_the_tour_of_the_document_runs(trained: RunDir, root: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (root / "docs" / "data.md").read_text()
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    found: dict[str, Any] = {}
    exec(code.replace("experiment/rbc/rollout-…", str(trained.path)), found)
    assert found["gini"].shape == (E, T) and np.abs(found["gini"][:, 0]).max() < 1e-6  # all start with the same
    assert (found["gini"][:, 2] > 0.1).all() and float(found["wage"][1]) > 0.0
    for name in re.findall(r"`(\w+)`", text.partition("## Variables")[2].partition("States are")[0]):
        assert name in VARIABLES or name == "rollout", name
