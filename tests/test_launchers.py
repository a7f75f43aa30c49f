"""The commands as a user runs them: each in a process of its own, with what it prints, writes and returns."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import rbc_warp
import run_training
from rbc_warp import __main__
from rbc_warp.commands import doctor
from rbc_warp.commands.launch import clean_errors
from rbc_warp.config import load_config
from rbc_warp.config.action_arrays import read_action_arrays
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.economy.parameters import Economy
from rbc_warp.errors import ConfigError
from rbc_warp.runs.episodes import read_episode
from rbc_warp.runs.folder import RunDir
from rbc_warp.warpdrive import build
from rbc_warp.warpdrive import wrapper as backends

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ROOT / "configs" / "smoke.yaml"
QUICK = [
    "train.num_episodes=3",
    "train.batch_size=2",
    "world.maxtime=2",
    "agents.num_consumers=3",
    "agents.num_firms=2",
]


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}


def run(*arguments: str | Path, cwd: Path = ROOT, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environment() | more, capture_output=True, text=True, timeout=120
    )


def train(*arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    return run("run_training.py", *arguments, **more)


def overrides(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def the_run(folder: Path) -> RunDir:
    (path,) = folder.iterdir()
    return RunDir(path)


# A whole run


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], RunDir]:
    """configs/smoke.yaml, trained once."""
    folder = tmp_path_factory.mktemp("experiment")
    result = train("--config", SMOKE, "--experiment-dir", folder)
    assert result.returncode == 0, result.stderr
    return result, the_run(folder)


def test_smoke_leaves_every_file_of_the_format(smoke: tuple[subprocess.CompletedProcess[str], RunDir]) -> None:
    _, run_dir = smoke
    assert re.fullmatch(r"rollout-\d+-\d+", run_dir.path.name)
    names = {path.name for path in run_dir.path.iterdir()}
    labels = ["0", "20", "final"]
    episodes = {f"episode_{label}_{agent}.npz" for label in labels for agent in AGENT_TYPES}
    assert episodes | {"hparams.yaml", "action_arrays.pickle", "saved_models", "metrics.jsonl"} <= names
    checkpoints = {f"{agent}_policy_{n}.pt" for n in (0, 10, 20, 30, 39, "latest") for agent in AGENT_TYPES}
    assert {path.name for path in run_dir.saved_models_path.iterdir()} == checkpoints
    assert run_dir.read_status().status == "finished"
    assert [record["iteration"] for record in run_dir.read_metrics()] == list(range(40))


def test_smoke_s_files_load_as_the_format_says(smoke: tuple[subprocess.CompletedProcess[str], RunDir]) -> None:
    _, run_dir = smoke
    batch, periods, consumers, firms = 8, 10, 12, 4
    shapes = {
        "consumer": [(consumers, 4 * firms + 5), (consumers, firms + 2), (consumers,), (consumers, firms)],
        "firm": [(firms, 4 * firms + 6 + firms), (firms,), (firms,), (firms,)],
        "government": [(1, 4 * firms + 3), (1,), (1,), None],
    }
    for path in run_dir.path.glob("episode_*.npz"):
        agent = path.stem.split("_")[-1]
        with np.load(path, allow_pickle=False) as file:
            assert set(file) == {"states", "actions", "rewards", "action_array", "aux_array"}
            arrays = dict(file)
        for key, shape in zip(("states", "actions", "rewards", "aux_array"), shapes[agent], strict=True):
            assert arrays[key].shape == ((batch, periods, *shape) if shape else (0,)), (path.name, key)
            assert arrays[key].dtype == (np.int32 if key == "actions" else np.float32)
        assert np.isfinite(arrays["rewards"]).all()
        read_episode(path)
    tables = read_action_arrays(run_dir.action_arrays_path)
    with open(run_dir.action_arrays_path, "rb") as file:  # our own file: here it may be unpickled
        plain = pickle.load(file)
    assert {key: table.shape for key, table in plain.items()} == {
        "consumption_choices": (11, 1),
        "work_choices": (5, 1),
        "price_and_wage": (30, 3),
        "tax_choices": (36, 2),
    }
    assert all(table.dtype == np.float32 and np.array_equal(table, tables[key]) for key, table in plain.items())
    state = torch.load(run_dir.policy_path("consumer", "latest"), weights_only=True)
    assert state["fc1.weight"].shape == (128, 4 * 13 + 3 + 11)
    assert set(yaml.safe_load(run_dir.hparams_path.read_text())) == {"agents", "world", "train", "metadata"}


def test_smoke_tells_what_it_did_and_nothing_else(smoke: tuple[subprocess.CompletedProcess[str], RunDir]) -> None:
    result, run_dir = smoke
    assert result.stdout.startswith("finished after 40 iterations")
    assert str(run_dir.path) in result.stdout and "run_best_response.py" in result.stdout
    assert "\naudit: goods, money, hours and taxes add up in the last rollout, and nothing" in result.stdout
    noise = re.compile("gym|casts the data|warning|traceback", re.IGNORECASE)
    assert not noise.search(result.stdout + result.stderr), result.stderr


def test_a_run_s_policies_load_in_the_library(smoke: tuple[subprocess.CompletedProcess[str], RunDir]) -> None:
    _, run_dir = smoke
    episode = read_episode(run_dir.episode_path(20, "firm"))
    first, latest = (rbc_warp.load_policies(run_dir.path, label) for label in (0, "latest"))
    assert set(latest) == set(AGENT_TYPES)
    probabilities = latest["firm"].probabilities(episode.states)
    assert probabilities.shape == (8, 10, 4, 30)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(8, 10, 4))
    assert not torch.allclose(first["firm"].probabilities(episode.states), probabilities)


def test_a_run_s_actions_replay_to_its_states(smoke: tuple[subprocess.CompletedProcess[str], RunDir]) -> None:
    """hparams.yaml describes the economy that was played; the final episode was played at θ's full value, nearly."""
    _, run_dir = smoke
    played = {agent: read_episode(run_dir.episode_path("final", agent)) for agent in AGENT_TYPES}
    actions = {agent: episode.actions for agent, episode in played.items()}
    for backend in ("reference", "host"):
        replayed = rbc_warp.simulate(run_dir.hparams_path, actions, backend=backend)
        for agent in ("firm", "government"):  # consumers' private state shows θ at the curriculum's factor
            np.testing.assert_allclose(replayed[agent]["states"], played[agent].states, rtol=1e-4, atol=1.0)


# Faults of the user


def test_the_package_is_imported_quietly_and_lightly() -> None:
    result = run("-c", "import rbc_warp, sys; print('torch' in sys.modules); rbc_warp.simulate; rbc_warp.load_policies")
    assert (result.returncode, result.stdout, result.stderr) == (0, "False\n", "")


BAD_CALLS = {
    "missing file": (["--config", "missing.yaml"], "missing.yaml: no such file"),
    "unknown key": (["--config", SMOKE, *overrides("agents.num_consumer=3")], "did you mean num_consumers?"),
    "bad value": (["--config", SMOKE, *overrides("train.lr=-1")], "train.lr = -1 is out of range; allowed: > 0"),
    "no pair": (["--config", SMOKE, *overrides("nonsense")], "is not of the form section.key=value"),
    "no run": (["--resume", "nowhere"], "nowhere"),
}


def test_a_configuration_without_its_option_is_told_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_training.main([str(SMOKE)])
    assert f"a configuration is named by --config {SMOKE}" in capsys.readouterr().err


@pytest.mark.parametrize("fault", BAD_CALLS)
def test_a_fault_of_the_user_is_one_clear_line(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, as run_training.py does it: so many processes would take long."""
    arguments, expected = BAD_CALLS[fault]
    where = [] if "--resume" in arguments else ["--experiment-dir", tmp_path / "runs"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped, clean_errors():
        run_training.main([str(argument) for argument in [*arguments, *where]])
    shown = capsys.readouterr()
    result = subprocess.CompletedProcess(arguments, stopped.value.code, shown.out, shown.err)
    assert_refused(result, expected, tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


def assert_refused(result: subprocess.CompletedProcess[str], expected: str, unwritten: Path | None = None) -> None:
    lines = result.stderr.strip().splitlines()
    assert result.returncode == 2 and result.stdout == "", result
    assert len(lines) == 1 and lines[0].startswith("error: ") and expected in lines[0], result.stderr
    assert unwritten is None or not unwritten.exists()


def test_a_bad_key_in_a_file_names_file_and_key(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("world: {interest_rates: 0.1}\n")
    result = train("--config", config, "--experiment-dir", tmp_path / "runs")
    assert_refused(result, f"{config}: world.interest_rates", tmp_path / "runs")


@pytest.mark.skipif(backends.missing_for_pycuda() is None, reason="pycuda can run here")
def test_pycuda_without_a_gpu_is_refused(tmp_path: Path) -> None:
    result = train("--config", SMOKE, "--experiment-dir", tmp_path / "runs", "--backend", "pycuda")
    assert_refused(result, "--backend pycuda cannot run here: ", tmp_path / "runs")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = train("--config", SMOKE, *overrides(*QUICK), "--experiment-dir", tmp_path / "file" / "runs")
    assert_refused(result, str(tmp_path / "file"))


def test_a_missing_compiler_is_named(tmp_path: Path) -> None:
    nothing = {"PATH": str(tmp_path), "CXX": "", "RBC_WARP_CACHE": str(tmp_path / "cache")}
    result = train("--config", SMOKE, *overrides(*QUICK), "--experiment-dir", tmp_path / "runs", **nothing)
    assert_refused(result, "no C++ compiler found; install g++", tmp_path / "runs")


@pytest.mark.parametrize("arguments", ["", "--config a --backend gpu", "--config a --threads 0"])
def test_wrong_options_show_the_usage(arguments: str) -> None:
    result = train(*arguments.split())
    assert result.returncode == 2 and result.stderr.startswith("usage: ") and "Traceback" not in result.stderr


# Interruption


def test_ctrl_c_saves_and_the_run_goes_on_from_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [*QUICK, "train.num_episodes=100000", "train.log_every=1", "train.save_dense_every=100000"]
    process = subprocess.Popen(
        command("run_training.py", "--config", SMOKE, *overrides(*settings), "--experiment-dir", tmp_path),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: any(tmp_path.glob("*/metrics.jsonl")) and len(the_run(tmp_path).read_metrics()) > 5, process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in stderr, stderr
    run_dir = the_run(tmp_path)
    status, records = run_dir.read_status(), run_dir.read_metrics()
    assert status.status == "interrupted" and status.iteration == len(records)
    assert stdout.startswith(f"interrupted after {status.iteration} iterations")
    assert f"run_training.py --resume {run_dir.path}" in stdout
    assert all((run_dir.saved_models_path / f"{agent}_policy_latest.pt").exists() for agent in AGENT_TYPES)

    end = status.iteration + 3
    more = ["--resume", str(run_dir.path), "--set", f"train.num_episodes={end}"]
    assert run_training.main(more) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"finished after {end} iterations")
    assert f"{run_dir.path}: goes on after {status.iteration} of {end} iterations" in shown.err
    whole = run_dir.read_metrics()
    assert [record["iteration"] for record in whole] == list(range(end))
    assert whole[: len(records)] == records and run_dir.read_status().status == "finished"


def wait_for(happened, process: subprocess.Popen, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


# Doctor


def test_doctor_reports_this_machine() -> None:
    result = run("-m", "rbc_warp", "doctor")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    for name in (
        "python",
        "torch",
        "numpy",
        "rl-warp-drive",
        "C++ compiler",
        "kernel cache",
        "bfloat16",
        "nvcc",
        "GPU",
    ):
        assert re.search(rf"^(ok|-|MISS) +{re.escape(name)}", result.stdout, re.MULTILINE), name
    assert re.search(r"^ok +rl-warp-drive +2\.7\.1$", result.stdout, re.MULTILINE)
    assert re.search(r"^ok +backend host +runs", result.stdout, re.MULTILINE)
    assert result.stdout.endswith("This machine can train: python run_training.py --config configs/smoke.yaml\n")


def test_doctor_names_what_is_missing_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build, "find_nvcc", lambda: None)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RBC_WARP_CACHE", str(tmp_path / "file"))
    monkeypatch.setitem(sys.modules, "warp_drive", None)
    assert doctor.main([]) == 1
    shown = capsys.readouterr().out
    for missing, remedy in {
        "rl-warp-drive": "run `make setup`",
        "C\\+\\+ compiler": "install g\\+\\+ 11 or newer",
        "kernel cache": "set RBC_WARP_CACHE to a folder you can write to",
    }.items():
        assert re.search(rf"^MISS {missing} .*\n +→ {remedy}", shown, re.MULTILINE), shown
    assert re.search(r"^- +nvcc +none\n +→ for a GPU, install the CUDA toolkit", shown, re.MULTILINE)
    assert shown.splitlines()[-1].startswith("This machine cannot train yet: rl-warp-drive, C++ compiler, kernel cache")


def test_doctor_survives_what_it_cannot_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> doctor.Finding:
        raise RuntimeError("half installed\nand more")

    for check in ("_compiler", "_gpu"):
        monkeypatch.setattr(doctor, check, broken)
    findings = {finding.name: finding for finding in doctor.examine()}
    assert findings["C++ compiler"].found == "not checked: half installed" and findings["C++ compiler"].required
    assert findings["GPU"].is_missing and not findings["GPU"].required


def test_doctor_knows_a_machine_with_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA X")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(backends, "missing_for_pycuda", lambda: None)
    monkeypatch.setattr(build, "find_nvcc", lambda: sys.executable)
    findings = {finding.name: finding for finding in doctor.examine()}
    assert findings["GPU"].found == "NVIDIA X, sm_90" and not findings["GPU"].is_missing
    assert findings["backend pycuda"].found.startswith("runs") and not findings["backend pycuda"].is_missing


@pytest.mark.skipif(importlib.util.find_spec("pycuda") is not None, reason="there is a real one")
def test_pycuda_needs_a_gpu_and_a_pycuda_that_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch sees no CUDA GPU" in str(backends.missing_for_pycuda())
    assert backends.choose_backend("auto") == "host" and capsys.readouterr().err == ""
    with pytest.raises(backends.BackendError, match="--backend pycuda cannot run here: torch sees no CUDA GPU; run on"):
        backends.choose_backend("pycuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with monkeypatch.context() as without:
        without.setattr(importlib.util, "find_spec", lambda name: None)
        assert backends.missing_for_pycuda() == "pycuda is not installed; run `make setup-gpu`"

    (tmp_path / "pycuda").mkdir()
    (tmp_path / "pycuda" / "__init__.py").write_text("")
    (tmp_path / "pycuda" / "driver.py").write_text("raise ImportError('libcuda.so.1: undefined symbol\\nand more')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("pycuda", "pycuda.driver"):  # gone again afterwards
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]
    backends._fault_of_pycuda.cache_clear()
    backends._say_once.cache_clear()
    why = (
        "pycuda cannot run here: pycuda or its driver does not work (libcuda.so.1: undefined symbol); build pycuda anew"
    )
    with pytest.raises(backends.BackendError, match=re.escape(f"--backend {why}")):
        backends.choose_backend("pycuda")
    assert backends.choose_backend("auto") == backends.choose_backend("auto") == "host"
    said = capsys.readouterr().err
    assert said.startswith(f"backend auto takes host, for {why}") and len(said.splitlines()) == 1
    findings = {finding.name: finding for finding in doctor.examine()}
    assert "does not work (libcuda" in findings["backend pycuda"].found and findings["backend pycuda"].is_missing
    backends._fault_of_pycuda.cache_clear()
    assert backends.choose_backend("host") == "host"
    with pytest.raises(backends.BackendError, match="'cuda' is not known; choose one of auto, host, pycuda"):
        backends.choose_backend("cuda")


def test_rows_too_long_for_a_gpu_are_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A row with its gradient and its heads fills the 227 KB that a block can have: 58,112 words."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(backends, "choose_backend", lambda name: "pycuda")
    # 38 firms: 38 c + 1 + 38 logits and the value, twice, five words for each of 40 heads and five more; 760 fits.
    fitting, too_many = (
        {"num_firms": 38, "work_choices": [1], "consumption_choices": list(range(c))} for c in (760, 761)
    )
    backends.check_rows(Economy.from_config(load_config({"agents": fitting})).agents, "pycuda")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"agents": too_many}))
    refused = (
        r"28957 logits of a consumer need 232652 bytes .* at most 232448; shorten agents.consumption_choices \(761\)"
    )
    with pytest.raises(ConfigError, match=refused):
        run_training.main(["--config", str(config), "--experiment-dir", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()
    backends.check_rows(Economy.from_config(load_config(config)).agents, "host")


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["nonsense"], 2), (["--help"], 0), (["-h"], 0)])
def test_the_package_lists_its_commands(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(arguments) == code
    shown = capsys.readouterr()
    assert all(name in (shown.out if code == 0 else shown.err) for name in ("doctor", "bench"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["scaling", "--config", "configs/smoke.yaml", "--processes", "3"], "cannot be shared by 3 processes; --set a"),
        (["scaling", "--processes", "0"], "argument --processes: 0 is not a positive number"),
        (["phases", "nowhere", "--threads", "-1"], "argument --threads: -1 is not a positive number"),
        (["bench", "--threads", "0"], "argument --threads: 0 is not a positive number"),
    ],
)
def test_bad_numbers_of_the_commands_get_one_line(arguments: list[str], says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rbc_warp", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr


def test_metrics_are_json_that_any_reader_takes(smoke: tuple[subprocess.CompletedProcess[str], RunDir]) -> None:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    for line in smoke[1].metrics_path.read_text().splitlines():
        assert set(json.loads(line, parse_constant=refuse)) >= {"iteration", "reward", "economy", "loss"}
