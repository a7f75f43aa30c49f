"""What is damaged, hostile or half done is told in one message, and never read as something else."""

from __future__ import annotations

import os

import pytest
from damage import (
    RECORD,
    count_damage,
    count_deaths,
    count_hostile_files,
    count_hostile_states,
    count_links,
    small_run,
)

from rbc_warp.config import load_config
from rbc_warp.config.manifest import MANIFEST
from rbc_warp.equilibrium.results import Results
from rbc_warp.errors import ConfigError, RunFileError
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.run import train_run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("public", [False, True], ids=["own", "public"])
def test_damaged_files_are_detected(public, tmp_path):
    assert count_damage(tmp_path, 80, seed=1, public=public) == (80, [])


@pytest.mark.slow
@pytest.mark.parametrize("public", [False, True], ids=["own", "public"])
def test_a_thousand_damaged_files_are_detected(public, tmp_path):
    assert count_damage(tmp_path, 1000, seed=2, public=public) == (1000, [])


def test_hostile_states_are_refused(tmp_path):
    number, wrong = count_hostile_states(tmp_path)
    assert wrong == [] and number >= 100


@pytest.mark.slow
def test_hostile_files_are_refused(tmp_path):
    number, wrong = count_hostile_files(tmp_path)
    assert wrong == [] and number >= 300


def test_links_lead_nothing_outside(tmp_path):
    assert count_links(tmp_path) == (18, [])


def test_a_death_between_any_two_calls_leaves_all_readable(tmp_path, monkeypatch):
    number, wrong = count_deaths(tmp_path, monkeypatch)
    assert wrong == [] and number >= 40


def test_pipes_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "config.yaml")
    for path in (tmp_path / "config.yaml", "/dev/zero"):
        with pytest.raises(ConfigError, match="is no regular file"):
            load_config(path)


# hparams.yaml and the manifest


def test_a_runs_own_hparams_must_be_whole(tmp_path):
    run = small_run(tmp_path)
    text = run.hparams_path.read_text()
    cut = text[: text.index("  crra_param")]
    run.hparams_path.write_text(cut)
    with pytest.raises(ConfigError, match=r"is not what the run wrote.*; copy it again"):
        load_config(run.hparams_path)
    (run.path / MANIFEST).unlink()  # as an older version left it
    with pytest.raises(ConfigError, match=r"hparams\.yaml: is not whole, it lacks world.crra_param.*; copy it again"):
        load_config(run.hparams_path)
    run.status_path.unlink()  # as of a public run, in which keys of ours are missing
    assert load_config(run.hparams_path).world.crra_param == 0.1


def test_a_run_without_a_manifest_is_read_with_one_note(tmp_path, capsys):
    run = small_run(tmp_path)
    (run.path / MANIFEST).unlink()
    capsys.readouterr()
    for _ in range(2):
        load_config(run.hparams_path)
        run.read_status()
    assert capsys.readouterr().err.count(f"note: {run.path}: not all files are listed") == 1


def test_a_file_that_a_version_without_manifests_left_is_replaced_in_peace(tmp_path, monkeypatch):
    run = RunDir(tmp_path)
    run.save_state({"iteration": 1})
    (run.path / MANIFEST).unlink()
    with monkeypatch.context() as patched:
        patched.setattr("rbc_warp.runs.files._rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run.save_state({"iteration": 2})
    assert RunDir(tmp_path).load_state()[0] == {"iteration": 1}
    run.save_state({"iteration": 2})
    assert RunDir(tmp_path).load_state()[0] == {"iteration": 2}


# metrics.jsonl


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda lines: lines[:2] + lines[4:], "missing: iteration 2–3"),
        (lambda lines: lines[:1], "missing: iteration 1–5"),
        (lambda lines: lines[:3] + lines[2:], "iteration 2 is doubled"),
        (lambda lines: [*lines[:2], b"{\n", *lines[3:]], "line 3 is damaged; missing: iteration 2;"),
        (lambda lines: [lines[0].replace(b"1", b"2"), *lines[1:]], "its lines are not those that were written"),
        (lambda lines: [], "is empty, though the run has made 6 iterations"),
    ],
)
def test_a_resume_names_what_is_wrong_with_the_metrics(damage, told, tmp_path, capsys):
    run = small_run(tmp_path)
    before = run.metrics_path.read_bytes()
    torn = b"".join(damage(before.splitlines(keepends=True)))
    run.metrics_path.write_bytes(torn)
    with pytest.raises(RunFileError, match=r"metrics\.jsonl: is not what the run wrote"):
        run.read_metrics()
    longer = load_config(run.hparams_path, ["train.num_episodes=8"])
    assert train_run(run, longer, "host", resume=True, quiet=True).status == "finished"
    assert told in capsys.readouterr().err
    assert [record["iteration"] for record in run.read_metrics()][-2:] == [6, 7]
    if "doubled" in told or "line 3" in told:  # whole lines only are in the new file anyway
        assert (run.path / "metrics.damaged.jsonl").read_bytes() == torn


# best_response.json


SCAN = {
    "checkpoint": "latest", "agent": "firm", "index": 0, "greedy": False, "gains": {"a": 1.0},
    "rewards": {"a": {"consumer": 1.0, "firm": 1.0, "government": 1.0}},
}  # fmt: skip


def test_a_quick_verdict_does_not_take_the_place_of_a_full_one():
    results = Results()
    for iteration, effort in ((5, "quick"), (5, "full"), (5, "quick"), (7, "quick")):
        results.add_verdict({"iteration": iteration, "effort": effort, "passed": True, "largest": {}})
    assert [(row["iteration"], row["effort"]) for row in results.verdicts] == [(5, "full"), (7, "quick")]


def test_results_of_two_measurements_at_once_merge(tmp_path):
    from dataclasses import replace

    run = RunDir(tmp_path)
    Results([RECORD]).write(run)
    first, second = Results.read(run), Results.read(run)
    with second.updating(run):
        second.add(replace(RECORD, method="rule"))
        second.add_scan(SCAN)
    with first.updating(run):
        first.add(replace(RECORD, agent="government", method="rule"))
    found = Results.read(run)
    assert sorted((one.agent, one.method) for one in found.records) == [
        ("firm", "fixed"), ("firm", "rule"), ("government", "rule"),
    ]  # fmt: skip
    assert found.scans == [SCAN]
