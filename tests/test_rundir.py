"""Files of a run: whole or not at all when written, harmless when read."""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from rbc_warp.config.action_arrays import read_action_arrays
from rbc_warp.config.manifest import MANIFEST
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.errors import RunFileError
from rbc_warp.runs.episodes import read_episode
from rbc_warp.runs.files import write_atomically, write_text
from rbc_warp.runs.folder import EPISODE_KEYS, RunDir, find_runs, newest_finished_run

TABLES = {
    "consumption_choices": np.arange(11, dtype=np.float32)[:, None],
    "work_choices": np.arange(0, 1040, 260, dtype=np.float32)[:, None],
    "price_and_wage": np.arange(90, dtype=np.float32).reshape(30, 3),
    "tax_choices": np.arange(72, dtype=np.float32).reshape(36, 2),
}
EXPECTED = {"fc1.weight": (4, 3), "fc1.bias": (4,)}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "experiment")


def files_below(folder: Path) -> list[str]:
    """Without manifests."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return sorted(str(path.relative_to(folder)) for path in files)


def policy() -> dict[str, torch.Tensor]:
    return {key: torch.randn(shape) for key, shape in EXPECTED.items()}


def episode_arrays(agent_type: str, num_periods: int = 3) -> dict[str, np.ndarray]:
    """Arrays of two environments with I=4 consumers and J=2 firms, in double precision."""
    agents = {"consumer": 4, "firm": 2, "government": 1}[agent_type]
    rows = (2, num_periods, agents)
    return {
        "states": np.ones((*rows, 13)),
        "actions": np.ones((*rows, 4) if agent_type == "consumer" else rows),
        "rewards": np.ones(rows),
        "action_array": np.ones((5, 2)),
        "aux_array": np.ones((*rows, 2) if agent_type == "consumer" else rows),
    }


@contextmanager
def disk_full_after(num_bytes: int):
    """No file of this process may grow beyond ``num_bytes``: a real write error in the middle of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Creating and finding runs


def test_concurrent_creators_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("rbc_warp.runs.folder.time.time_ns", iter(n // 4 for n in range(10**6)).__next__)
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: RunDir.create(tmp_path), range(64)))
    assert len({run.path for run in runs}) == 64


def test_folder_name_has_seconds_and_fraction(run):
    assert re.fullmatch(r"rollout-\d+-\d{9}", run.path.name)


def test_missing_folder_and_unwritable_place_are_told(tmp_path):
    with pytest.raises(RunFileError, match="is not a folder; give the rollout-"):
        RunDir(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFileError, match="cannot be written: Not a directory; choose another path: a part of this"):
        RunDir.create(tmp_path / "file" / "experiment")
    with pytest.raises(RunFileError, match="does not exist"):
        find_runs(tmp_path / "absent")


def test_find_runs_is_in_order_of_creation(tmp_path):
    for name in ("rollout-20-5", "rollout-3-9", "rollout-20-10", "notes", "rollout-1-1"):
        (tmp_path / name).mkdir()
        if name != "rollout-1-1":
            (tmp_path / name / "hparams.yaml").write_text("{}")
    assert [run.path.name for run in find_runs(tmp_path)] == ["rollout-3-9", "rollout-20-10", "rollout-20-5"]


@pytest.mark.parametrize("below", ["", "name"])
def test_newest_finished_run(tmp_path, below):
    with pytest.raises(RunFileError, match="holds no finished run; train one first"):
        newest_finished_run(tmp_path)
    runs = [RunDir.create(tmp_path / below) for _ in range(5)]
    for run, status in zip(runs, ("finished", "finished", "running", "failed", "finished"), strict=True):
        run.write_hparams({"agents": {}})
        run.write_status(status, 7)
    runs[-1].status_path.write_text('{"status": "fin')
    assert newest_finished_run(tmp_path).path == runs[1].path


def test_best_response_folder_appears_with_its_first_file(run):
    folder = run.best_response("firm")
    assert not folder.path.exists() and folder.labels("firm") == []
    folder.save_policy("firm", "latest", policy())
    assert files_below(run.path) == ["brfirm/saved_models/firm_policy_latest.pt"]
    assert run.best_response_output_path("firm") == run.path / "br_firm_output.txt"
    with pytest.raises(RunFileError, match="bank: is not an agent type; use one of consumer"):
        run.best_response("bank")


# Whole or not at all


def test_full_disk_keeps_the_old_file_and_leaves_no_temporary(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with disk_full_after(4096), pytest.raises(RunFileError, match="cannot be written: File too large"):
        write_text(path, "new" * 10**5)
    assert path.read_text() == "old"
    assert files_below(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_failure_in_the_middle_of_writing_keeps_the_old_file(tmp_path, failure):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def write(file):
        file.write(b"ne")
        raise failure

    with pytest.raises(failure):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert files_below(tmp_path) == ["file.txt"]


@pytest.mark.parametrize(
    "write",
    [
        lambda run, n: run.write_episode(0, "firm", **episode_arrays("firm", num_periods=n)),
        lambda run, n: run.save_policy("firm", 0, {"weight": torch.zeros(n)}),
        lambda run, n: run.write_action_arrays({"table": np.zeros((n, 1))}),
        lambda run, n: run.write_hparams({"agents": {"text": "x" * n}}),
    ],
)
def test_every_writer_survives_a_full_disk(run, write):
    write(run, 3)
    (name,) = files_below(run.path)
    before = (run.path / name).read_bytes()
    with disk_full_after(8192), pytest.raises(RunFileError):
        write(run, 20000)
    assert files_below(run.path) == [name]
    assert (run.path / name).read_bytes() == before


# hparams.yaml and action_arrays.pickle


def test_hparams_keep_their_order(run):
    run.write_hparams({"world": {"maxtime": 10}, "agents": {"name": "Ä", "prices": [0.5, 1e-5]}})
    assert (
        run.hparams_path.read_text() == "world:\n  maxtime: 10\nagents:\n  name: Ä\n  prices:\n  - 0.5\n  - 1.0e-05\n"
    )


def test_action_arrays_round_trip(run):
    run.write_action_arrays({key: table.astype(np.float64) for key, table in TABLES.items()})
    found = read_action_arrays(run.action_arrays_path)
    assert list(found) == list(TABLES)
    for key, table in TABLES.items():
        assert found[key].dtype == np.float32
        np.testing.assert_array_equal(found[key], table)
    with open(run.action_arrays_path, "rb") as file:
        np.testing.assert_array_equal(pickle.load(file)["tax_choices"], TABLES["tax_choices"])


@pytest.mark.parametrize("numpy_major", [1, 2])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_either_numpy_are_read(tmp_path, protocol, numpy_major):
    """NumPy 1 names its modules numpy.core, NumPy 2 numpy._core."""
    path = tmp_path / "action_arrays.pickle"
    tables = TABLES | {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "strided": np.arange(20, dtype=np.uint8)[::2],
    }
    content = pickle.dumps(tables, protocol=protocol)
    assert b"numpy._core" in content
    if numpy_major == 1:
        # Lengths stand before the text: one byte in protocol 4 and 5, none (a line) before. Frames hold a length, too.
        for name in (b"numpy._core.multiarray", b"numpy._core.numeric"):
            old = name.replace(b"_core", b"core")
            content = content.replace(bytes([len(name)]) + name, bytes([len(old)]) + old).replace(name, old)
        if protocol >= 4:
            content = content[:2] + content[11:]
    path.write_bytes(content)
    found = read_action_arrays(path)
    assert list(found) == list(tables)
    for key, table in tables.items():
        assert found[key].dtype == table.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found[key], table)


class Runs:
    """Unpickles by calling a function with arguments."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_malicious_pickle_is_refused_and_not_run(tmp_path, protocol):
    path, victim = tmp_path / "action_arrays.pickle", tmp_path / "executed"
    for payload in (
        Runs(os.system, f"touch {victim}"),
        Runs(os.mkdir, str(victim)),
        Runs(eval, f"open({str(victim)!r})"),
    ):
        for content in (payload, {"tax_choices": payload}, {payload: 1}):
            path.write_bytes(pickle.dumps(content, protocol=protocol))
            with pytest.raises(RunFileError, match=r"action_arrays\.pickle: .*it names .*; use the action_arrays"):
                read_action_arrays(path)
    assert not victim.exists()


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"a": np.array([{}, []], dtype=object)}),
        pickle.dumps({"a": np.array(["text"])}),
        pickle.dumps({"a": np.zeros(2, dtype="f4,i4")}),
        pickle.dumps({"a": np.zeros(2, dtype="M8[s]")}),
        pickle.dumps({"a": np.zeros(2, dtype=complex)}),
        pickle.dumps({"a": [1, 2]}),
        pickle.dumps({1: np.zeros(2)}),
        pickle.dumps([np.zeros(2)]),
        pickle.dumps(np.zeros(2)),
        pickle.dumps({"a": np.dtype("f4")}),
        pickle.dumps({"a": np.ndarray}),
        pickle.dumps({"a": Runs(np._core.multiarray._reconstruct, np.ndarray, (10**12,), b"b")}),
        pickle.dumps({"a": np.zeros(8)})[:-20],
        pickle.dumps(TABLES, protocol=2).replace(b"cnumpy\ndtype\n", b"cnumpy\nload\n"),
        b"\x80\x04r\xff\xff\xff\x7f.",
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\x00\x00.",
        b"not a pickle",
        b"",
    ],
)
def test_pickle_of_anything_but_number_arrays_is_refused(tmp_path, content):
    path = tmp_path / "action_arrays.pickle"
    path.write_bytes(content)
    with pytest.raises(RunFileError, match="cannot be read as a pickled dict of name to array of numbers"):
        read_action_arrays(path)


def test_oversized_and_missing_pickle(tmp_path):
    path = tmp_path / "action_arrays.pickle"
    with pytest.raises(RunFileError, match="does not exist"):
        read_action_arrays(path)
    path.write_bytes(b"")
    os.truncate(path, 16 * 2**20 + 1)
    with pytest.raises(RunFileError, match="is larger than 16777216 bytes"):
        read_action_arrays(path)


# Dense rollouts


@pytest.mark.parametrize("agent_type", AGENT_TYPES)
def test_episode_opens_with_plain_numpy(run, agent_type):
    arrays = episode_arrays(agent_type)
    path = run.write_episode(12, agent_type, **arrays)
    assert path == run.path / f"episode_12_{agent_type}.npz"
    with np.load(path) as file:
        found = {key: file[key] for key in file.files}
    assert tuple(found) == EPISODE_KEYS
    assert {key: array.dtype for key, array in found.items()} == {
        key: np.int32 if key == "actions" else np.float32 for key in EPISODE_KEYS
    }
    if agent_type == "government":
        arrays["aux_array"] = np.empty(0)
    assert {key: array.shape for key, array in found.items()} == {key: array.shape for key, array in arrays.items()}
    np.testing.assert_array_equal(read_episode(path).states, arrays["states"])
    run.write_episode("final", agent_type, **arrays)
    run.write_episode(2, agent_type, **arrays)


def test_public_governments_pickled_none_reads_as_empty(run):
    path = run.episode_path(0, "government")
    np.savez(path, **episode_arrays("government") | {"actions": np.ones((2, 3, 1), int), "aux_array": None})
    assert read_episode(path).aux_array.shape == (0,)


def test_object_array_in_an_episode_is_not_unpickled(run, tmp_path):
    path, victim = run.episode_path(0, "firm"), tmp_path / "executed"
    bomb = np.array(Runs(os.mkdir, str(victim)), dtype=object)
    for key in EPISODE_KEYS:
        np.savez(path, **episode_arrays("firm") | {"actions": np.ones((2, 3, 2), int), key: bomb})
        with pytest.raises(RunFileError):
            read_episode(path)
    assert not victim.exists()


def test_wrong_episodes_are_refused(run):
    arrays = episode_arrays("firm") | {"actions": np.ones((2, 3, 2), int)}
    path = run.episode_path(0, "firm")
    faults = [
        ({"states": np.ones((2, 3))}, r"states: expected floats of rank 4, found float64 of shape \(2, 3\)"),
        ({"actions": np.ones((2, 3, 2))}, "actions: expected integers of rank 3, found float64"),
        ({"states": np.ones((2, 4, 2, 13))}, r"states: expected shape \(2, 3, 2\)"),
    ]
    for fault, message in faults:
        np.savez(path, **arrays | fault)
        with pytest.raises(RunFileError, match=message):
            read_episode(path)
    np.savez(path, states=arrays["states"])
    with pytest.raises(RunFileError, match="missing: actions, rewards, action_array, aux_array"):
        read_episode(path)
    with pytest.raises(RunFileError, match=r"states: expected shape \(2,\)"):
        run.write_episode(0, "firm", **episode_arrays("firm") | {"rewards": np.ones(2)})
    np.savez(path, **arrays)
    for content in (path.read_bytes()[:-200], pickle.dumps(1), b"", b"\x93NUMPY\x01\x00"):
        path.write_bytes(content)
        with pytest.raises(RunFileError, match="cannot be read as a dense rollout"):
            read_episode(path)


# Networks and state


def test_policy_round_trip_and_labels(run):
    state = policy()
    for label in (100, "latest", 20, "best", 3):
        run.save_policy("consumer", label, state)
    run.save_policy("firm", 7, state)
    (run.saved_models_path / "consumer_policy_x.pt").touch()
    assert run.labels("consumer") == ["3", "20", "100", "best", "latest"]
    assert run.labels("government") == []
    loaded = run.load_policy_state("consumer", "latest", EXPECTED)
    assert all(torch.equal(loaded[key], state[key]) for key in EXPECTED)
    plain = torch.load(run.policy_path("consumer", 3), weights_only=True)
    assert type(plain) is dict and list(plain) == list(EXPECTED)


@pytest.mark.parametrize("label", ["../x", "", "1.5", "-1", -1, "latest/../x", "LATEST", "1\n", "²", None])
def test_label_is_digits_or_a_word(run, label):
    for use in (
        lambda: run.save_policy("firm", label, policy()),
        lambda: run.load_policy_state("firm", label, EXPECTED),
        lambda: run.write_episode(label, "firm", **episode_arrays("firm")),
    ):
        with pytest.raises(RunFileError, match="is not valid; use an iteration"):
            use()
    assert files_below(run.path.parent) == []


def test_missing_checkpoint_names_those_saved(run):
    run.save_policy("firm", 20, policy())
    with pytest.raises(RunFileError, match="firm_policy_30.pt: does not exist.*saved firm checkpoints: 20"):
        run.load_policy_state("firm", 30, EXPECTED)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"fc1.weight": torch.zeros(4, 3)}, "expected the weights fc1.weight, fc1.bias; missing: fc1.bias"),
        (policy() | {"fc9.bias": torch.zeros(1)}, "missing: none; not expected: fc9.bias"),
        (
            policy() | {"fc1.bias": torch.zeros(5)},
            r"fc1.bias: expected float32 of shape \(4,\), found float32 .*\(5,\)",
        ),
        (policy() | {"fc1.bias": torch.zeros(4).double()}, "found float64 of shape"),
        (policy() | {"fc1.bias": torch.tensor([0, 1, 2, torch.nan])}, "fc1.bias: expected finite numbers"),
        (policy() | {"fc1.bias": torch.zeros(4).to_sparse()}, "fc1.bias.* found no dense tensor"),
        (policy() | {"fc1.bias": torch.zeros(4, device="meta")}, "fc1.bias.* found no dense tensor"),
        (policy() | {"fc1.bias": 3}, "fc1.bias.* found no dense tensor"),
        ([torch.zeros(4)], "expected a dict of tensors, found list"),
        (Runs(os.mkdir, "executed"), "cannot be read as a dict of tensors; copy it again"),
    ],
)
def test_wrong_checkpoints_are_refused(run, monkeypatch, content, message):
    monkeypatch.chdir(run.path)
    run.saved_models_path.mkdir()
    torch.save(content, run.policy_path("firm", 0))
    with pytest.raises(RunFileError, match=message):
        run.load_policy_state("firm", 0, EXPECTED)
    assert not Path("executed").exists()


def test_damaged_checkpoints_are_refused(run):
    path = run.save_policy("firm", 0, policy())
    (run.path / MANIFEST).unlink()  # as of a public run
    whole = path.read_bytes()
    for content in (whole[:-100], whole[: len(whole) // 2], b"", b"text", pickle.dumps({"fc1.bias": 1}, protocol=2)):
        path.write_bytes(content)
        with pytest.raises(RunFileError, match=r"firm_policy_0\.pt: .*; (copy it again|load it with)"):
            run.load_policy_state("firm", 0, EXPECTED)


def test_state_falls_back_to_the_one_before(run):
    with pytest.raises(RunFileError, match="does not exist; start the run anew"):
        run.load_state()
    assert not run.has_state
    for iteration in range(3):
        run.save_state({"iteration": iteration, "lr": 0.1, "nested": {0: [torch.ones(2), None, "text", (True, 2)]}})
    state, warning = run.load_state()
    assert (state["iteration"], warning) == (2, None)
    assert torch.equal(state["nested"][0][0], torch.ones(2))
    run.state_path.write_bytes(run.state_path.read_bytes()[:-50])
    state, warning = run.load_state()
    assert state["iteration"] == 1
    assert warning is not None and "last.pt: is not what the run wrote" in warning and "previous.pt" in warning
    run.save_state({"iteration": 5})
    run.state_path.unlink()
    assert run.load_state()[0]["iteration"] == 1, "a damaged state must not replace the good one before it"


def test_state_that_could_not_be_read_back_is_not_written(run):
    run.save_state({"iteration": 1})
    with pytest.raises(pickle.UnpicklingError):
        run.save_state({"iteration": Path("x")})
    assert run.load_state()[0] == {"iteration": 1}
    with disk_full_after(4096), pytest.raises(RunFileError):
        run.save_state({"iteration": torch.zeros(10000)})
    assert run.load_state() == ({"iteration": 1}, None)


# Metrics and status


def test_metrics_append_read_truncate(run):
    assert run.read_metrics() == []
    run.append_metrics([{"iteration": 0, "loss": np.float32(0.5)}, {"iteration": np.int64(1), "loss": float("nan")}])
    run.append_metrics([{"iteration": 2, "loss": torch.tensor(1.0), "by_type": {"firm": [1, 2]}}])
    lines = run.metrics_path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == run.read_metrics()
    assert run.read_metrics() == [
        {"iteration": 0, "loss": 0.5},
        {"iteration": 1, "loss": None},
        {"iteration": 2, "loss": 1.0, "by_type": {"firm": [1, 2]}},
    ]
    run.truncate_metrics(1)
    assert [record["iteration"] for record in run.read_metrics()] == [0]


def test_torn_last_line_is_ignored_and_then_overwritten(run):
    run.append_metrics([{"iteration": 0}, {"iteration": 1}])
    with open(run.metrics_path, "a") as file:
        file.write('{"iteration": 2, "lo')
    assert [record["iteration"] for record in run.read_metrics()] == [0, 1]
    run.append_metrics([{"iteration": 2}])
    assert [record["iteration"] for record in run.read_metrics()] == [0, 1, 2]


def test_metrics_on_a_full_disk_stay_whole(run):
    run.append_metrics([{"iteration": 0}])
    with disk_full_after(1000), pytest.raises(RunFileError, match="no space left|File too large"):
        run.append_metrics([{"iteration": 1, "text": "x" * 5000}])
    assert run.metrics_path.read_text() == '{"iteration": 0}\n'


def test_damaged_metrics_line_is_named(run):
    run.metrics_path.write_text('{"iteration": 0}\n[]\n{"iteration": 1}\n')
    with pytest.raises(RunFileError, match=r"metrics\.jsonl: cannot be read as line 2 .*; remove that line"):
        run.read_metrics()


def test_status(run):
    assert run.read_status() is None
    run.write_status("interrupted", 17, "Ctrl-C")
    status = run.read_status()
    assert status is not None
    assert (status.status, status.iteration, status.message) == ("interrupted", 17, "Ctrl-C")
    (run.path / MANIFEST).unlink()
    for damaged in ('{"status": "done", "iteration": 1, "time": 0, "message": ""}', "[]", "{"):
        run.status_path.write_text(damaged)
        with pytest.raises(RunFileError, match="cannot be read as a run's status"):
            run.read_status()


def test_errors_survive_a_process_pool():
    error = RunFileError("file", "is bad", "mend it")
    assert str(pickle.loads(pickle.dumps(error))) == "file: is bad; mend it"
