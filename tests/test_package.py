"""The package as a stranger gets it: what the wheel holds, its command, and configurations by name."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import rbc_warp
from rbc_warp import __main__
from rbc_warp.config import load_config
from rbc_warp.config.shipped import CONFIGS, find_config, shipped_names
from rbc_warp.errors import WARPDRIVE, BackendError, ConfigError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the tree, built by its backend, without a package index."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    (path,) = folder.glob("*.whl")
    return path


def files_below(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in found}


def test_the_wheel_holds_every_file_of_the_package_and_every_configuration(wheel: Path) -> None:
    wanted = {f"rbc_warp/{name}" for name in files_below(ROOT / "rbc_warp")}
    wanted |= {f"rbc_warp/configs/{name}" for name in files_below(ROOT / "configs")}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == wanted
    assert {"rbc_warp/cuda/kernels.cu", "rbc_warp/cuda/cpu/host.cpp", "rbc_warp/configs/sweeps/seeds.yaml"} <= held


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    assert wheel.name == f"rbc_warp-{rbc_warp.__version__}-py3-none-any.whl"
    texts = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in texts.namelist() if name.endswith("/METADATA"))
    text = texts.read(metadata).decode()
    for line in ("License-Expression: BSD-3-Clause", "Requires-Python: >=3.11", "Provides-Extra: ray", "# rbc_warp"):
        assert f"\n{line}\n" in text, line


# Configurations by name


@pytest.mark.parametrize("name", ["rbc", "rbc.yaml", "configs/rbc.yaml", "configs/rbc", Path("configs") / "rbc.yaml"])
def test_a_shipped_configuration_is_found_by_name_from_anywhere(
    name: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rbc").mkdir()  # a folder is no configuration
    assert find_config(name) == CONFIGS / "rbc.yaml"
    assert load_config(name) == load_config(ROOT / "configs" / "rbc.yaml")


def test_a_file_that_exists_comes_before_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smoke.yaml").write_text("base: configs/rbc.yaml\ntrain: {num_episodes: 7}\n")  # a shipped base
    assert load_config("smoke.yaml").train.num_episodes == 7
    assert load_config("smoke.yaml").train.batch_size == load_config("rbc").train.batch_size
    assert load_config("smoke").train.num_episodes == 40  # smoke.yaml is not what this names
    (tmp_path / "smoke").write_text("train: {num_episodes: 9}\n")
    assert load_config("smoke").train.num_episodes == 9


def test_shipped_names_are_all_and_only_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"rbc", "smoke", "paper_open", "sweeps/seeds"} <= set(shipped_names())
    for name in shipped_names():
        load_config(name)
    monkeypatch.chdir(tmp_path)
    for wrong in ("sweeps/../rbc", "/rbc", "configs/configs/rbc.yaml", "", "rbc.yaml.yaml"):
        assert find_config(wrong) == Path(wrong)
    with pytest.raises(ConfigError, match=r"^mine: no such file; check the path, or name a shipped one: .*sweeps/open"):
        load_config("mine")


# The command


@pytest.mark.parametrize("command", __main__.COMMANDS)
def test_every_command_has_a_line_and_a_usage(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"\n  {command} " in __main__.usage()
    with pytest.raises(SystemExit) as stopped:
        __main__.main([command, "--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m rbc_warp {command} ")


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["--version"]) == 0
    assert capsys.readouterr().out == f"rbc-warp {rbc_warp.__version__}\n"


WITHOUT_WARPDRIVE = """
import sys
sys.modules["warp_drive"] = None  # what an import then finds
from rbc_warp.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("words", ["train --config smoke", "report RUN"])
def test_a_missing_warpdrive_is_one_line_with_the_remedy(words: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_WARPDRIVE, *words.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"error: WarpDrive is not installed; run `{WARPDRIVE}`\n"
    assert not list(tmp_path.iterdir())


def test_the_library_names_the_remedy_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "warp_drive"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "warp_drive", None)
    for name in [name for name in sys.modules if name.startswith("rbc_warp.training.trainer")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(BackendError, match=WARPDRIVE):
        rbc_warp.make_trainer("smoke")


# Installed


class Installed:
    """A virtual environment with the wheel and what it needs, but for rl-warp-drive, and a folder far from the tree."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.cwd, self.venv, self.linked = folder / "elsewhere", folder / "venv", folder / "linked"
        self.cwd.mkdir()
        self.linked.mkdir()
        self.link(lambda name: not name.startswith(("warp_drive", "rl_warp_drive", "rbc_warp")))
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.venv], check=True)
        paths = {"base": str(self.venv), "platbase": str(self.venv)}
        self.packages = Path(sysconfig.get_path("purelib", "venv", vars=paths))
        (self.packages / "linked.pth").write_text(f"{self.linked}\n")
        # --no-index: the bounds must hold for what is here.
        pip = [sys.executable, "-m", "pip", "--python", self.venv / "bin" / "python", "install", "--no-index", "-q"]
        subprocess.run([*pip, wheel], check=True)
        for path in (self.packages / "rbc_warp").rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)

    def link(self, wanted) -> None:
        """Link packages of this interpreter, which would take long to install again."""
        for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for path in Path(place).iterdir():
                if wanted(path.name) and path.suffix != ".pth" and not (self.linked / path.name).exists():
                    (self.linked / path.name).symlink_to(path)

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        environment.pop("PYTHONPATH", None)
        return subprocess.run(
            [self.venv / "bin" / words[0], *words[1:]], cwd=self.cwd, env=environment, capture_output=True, text=True
        )


@pytest.mark.slow
def test_the_wheel_installs_and_trains_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    """A minute or two: ``make slow``, or ``pytest -m slow tests/test_package.py``."""
    installed = Installed(tmp_path, wheel)

    def works(*words: str | Path) -> str:
        done = installed.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = works("python", "-c", "import rbc_warp; print(rbc_warp.__file__)").strip()
    assert Path(where) == installed.packages / "rbc_warp" / "__init__.py"
    assert works("rbc-warp", "--version") == f"rbc-warp {rbc_warp.__version__}\n"
    assert works("rbc-warp", "--help") == works("python", "-m", "rbc_warp", "--help")
    missing = installed.run("rbc-warp", "train", "--config", "smoke")
    assert (missing.returncode, missing.stderr) == (2, f"error: WarpDrive is not installed; run `{WARPDRIVE}`\n")
    assert f"→ run `{WARPDRIVE}`\n" in installed.run("rbc-warp", "doctor").stdout

    installed.link(lambda name: name.startswith(("warp_drive", "rl_warp_drive")))  # what the remedy does
    assert works("rbc-warp", "doctor").endswith("This machine can train: rbc-warp train --config configs/smoke.yaml\n")
    shown = works("rbc-warp", "train", "--config", "smoke", "--threads", "1")
    (run,) = (installed.cwd / "experiment" / "smoke").iterdir()
    assert f"next:  rbc-warp best-response {run.relative_to(installed.cwd)}\n" in shown
    works("rbc-warp", "best-response", run, "2", "--ep-strs", "latest", "--eval-episodes", "8", "--threads", "1")
    assert works("rbc-warp", "report", run) == f"{run / 'report.html'}\n"
    assert "<html" in (run / "report.html").read_text()
    works("rbc-warp", "train", "--config", "sweeps/tiny", "--experiment-dir", "many", "--set", "train.num_episodes=2")
    assert (installed.cwd / "many" / "index.csv").read_text().count(",finished,2,") == 4
