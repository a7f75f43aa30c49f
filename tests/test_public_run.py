"""A run as the public implementation leaves it: data load, the audit passes, the report says what is missing."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from test_config import public_hparams
from test_report import SECTIONS, Outline, missing, report

import rbc_warp
from rbc_warp.__main__ import main
from rbc_warp.config import load_config
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.runs.folder import EPISODE_KEYS, RunDir
from rbc_warp.runs.run import prepare_run, train_run

LABELS = ("0", "10", "final")


def public_copy(ours: RunDir, hparams: dict, folder: Path) -> RunDir:
    """Write what the public code writes of this run, with the libraries' own functions."""
    (folder / "saved_models").mkdir(parents=True)
    (folder / "hparams.yaml").write_text(yaml.dump(hparams))
    with open(ours.action_arrays_path, "rb") as file:
        tables = pickle.load(file)
    with open(folder / "action_arrays.pickle", "wb") as file:
        pickle.dump(tables, file)
    for agent in AGENT_TYPES:
        for label in LABELS:
            with np.load(ours.episode_path(label, agent)) as file:
                arrays = {key: file[key] for key in EPISODE_KEYS}
            if agent == "government":
                arrays["aux_array"] = np.array(None)  # saved as a pickle
            np.savez(folder / f"episode_{label}_{agent}.npz", **arrays)
        for label in (10, "latest"):
            state = torch.load(ours.policy_path(agent, label), weights_only=True)
            torch.save(OrderedDict(state), folder / "saved_models" / f"{agent}_policy_{label}.pt")
    return RunDir(folder)


def test_a_run_of_the_public_implementation_is_shown_audited_and_loaded(tmp_path: Path, capsys) -> None:
    hparams = public_hparams()
    hparams["train"] |= {"num_episodes": 12, "batch_size": 4, "save_dense_every": 10, "save_model_every": 10}
    config = load_config(hparams)
    ours = RunDir.create(tmp_path / "ours")
    prepare_run(ours, config)
    train_run(ours, config, "host", quiet=True)
    public = public_copy(ours, hparams, tmp_path / "rollout-1-2")
    assert {path.name for path in public.path.iterdir()} == {
        "action_arrays.pickle", "hparams.yaml", "saved_models",
        *(f"episode_{label}_{agent}.npz" for label in LABELS for agent in AGENT_TYPES),
    }  # fmt: skip

    for label in LABELS:
        xr.testing.assert_equal(rbc_warp.load_rollout(public.path, label), rbc_warp.load_rollout(ours.path, label))

    capsys.readouterr()
    assert main(["audit", str(public.path)]) == 0
    shown = capsys.readouterr().out
    assert "goods, money, hours and taxes add up" in shown and "FAILS" not in shown

    page = report(public.path, tmp_path / "page.html")
    outline = Outline(page)
    assert tuple(outline.sections) == SECTIONS and len(outline.figures) >= 6
    absent = missing(page)
    assert len(absent) == 3 and "metrics" in absent[0] and "--scan" in absent[1] and "--verdict" in absent[2]
    assert ">GDP<" in page and ">Welfare<" in page  # from the last rollout, where there are no metrics

    with np.load(public.episode_path("final", "government"), allow_pickle=False) as file, pytest.raises(ValueError):
        file["aux_array"]
