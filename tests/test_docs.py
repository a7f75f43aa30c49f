"""Every block of README.md and docs/: commands are parsed by their own parsers, and run with Python, page by page.

A page is carried out from top to bottom in a folder of its own, where

- ``configs/`` holds the shipped files: ``rbc.yaml`` and ``paper_*.yaml`` shortened in proportion to four iterations of
  four environments with 20 consumers, sweeps with one value of each list, two of the last;
- ``experiment/rbc`` holds two finished runs of that ``rbc.yaml``, the first with a quick verdict of its firms;
- ``experiment/NAME/rollout-…`` and ``RUN`` stand for the runs of that folder, one after the other in a command; a
  folder that no command of the page has made is ``experiment/rbc``;
- words of commands are replaced by ``SMALL``, so that checkpoints are those of the shortened runs;
- verdicts try two agents of each type, and evaluations of a best response play eight episodes.

``python`` blocks of a page share their names. A fence without a language is a block of commands if it begins with one
of ``PROGRAMS``, else output. What is not run is named in ``NOT_RUN``, with the reason; it is parsed all the same.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from rbc_warp import __main__, load_config
from rbc_warp.config.schema import Config
from rbc_warp.config.stretch import stretched
from rbc_warp.equilibrium import request, verdict

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = ("python", "rbc-warp", "make", "pip", "torchrun", "source")
LAUNCHERS = {"run_training.py": "train", "run_best_response.py": "best-response"}
FEWEST = {"python": 13, "commands": 80}
SMALL = {
    **{"780": "1", "1560": "2", "2340": "3"},  # checkpoints
    **{"100": "2", "200": "2", "300": "2"},  # updates of a fine-tuning
    **{"train.num_episodes=400000": "train.num_episodes=6"},
    **{"0.5": "1"},  # --stretch: the shortened runs are short enough
}
NOT_RUN = {
    r"make ": "installs into .venv from a package index; the target and its variables are there",
    r"source ": "changes the shell; the tests run in that environment",
    r"pip ": "installs from a package index; the files, pins and extras that it names are there",
    r"torchrun ": "several processes: tests/test_distributed.py and tests/test_resume.py",
    r".* scaling": "several processes: tests/test_distributed.py",
    r".* --executor ray": "needs Ray: tests/test_sweep.py",
    r".* --png": "needs Chromium: tests/test_browser.py",
    r".* rbc_warp results": "hours: tests/test_results.py",
    r".* power": "minutes: tests/test_power.py",
    r".* bench": "minutes, and only the clock: its parts are run by tests/test_kernels.py and tests/test_training.py",
}
QUICK = re.compile(r"python -m rbc_warp (audit|doctor)\b")
"""What of the commands the fast test runs: those that only read."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, what it is, and its text."""

    page: Path
    line: int
    kind: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Its commands, a line each, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines() if self.kind == "commands" else []
        return [shlex.join(words) for line in lines if (words := shlex.split(line, comments=True))]

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def kind_of(language: str, text: str) -> str:
    if language in ("", "sh", "console"):
        return "commands" if text.split(maxsplit=1)[:1] and text.split()[0] in PROGRAMS else "output"
    return "directive" if language.startswith("{") else language


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = re.finditer(r"^```(?P<language>[^\n`]*)\n(?P<text>.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [
        Block(page, text.count("\n", 0, at.start()) + 1, kind_of(at["language"].split(" ")[0], at["text"]), at["text"])
        for at in found
    ]


BLOCKS = {page: blocks(page) for page in PAGES}
COMMANDS = sorted({(command, block.place) for page in PAGES for block in BLOCKS[page] for command in block.commands})


def reason_not_to_run(command: str) -> str | None:
    return next((reason for pattern, reason in NOT_RUN.items() if re.match(pattern, f"{command} ")), None)


# Parsing


class Parsed(Exception):
    """Raised in place of a command's work, once its parser has accepted the arguments."""


def accept(name: str, words: Sequence[str]) -> None:
    """Let a command of ours parse its arguments; SystemExit or a UserError where it does not accept them."""
    if name in ("--help", "--version"):
        return
    assert name in __main__.COMMANDS, f"there is no command {name}"
    module = importlib.import_module(f"rbc_warp.commands.{name.replace('-', '_')}")
    real = argparse.ArgumentParser.parse_args

    def only_parse(self: argparse.ArgumentParser, *given: Any) -> None:
        real(self, *given)
        raise Parsed

    if hasattr(module, "parse"):
        module.parse(list(words))
        return
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Parsed):
        patch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
        module.main(list(words))


def ours(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """Return the command and the arguments of a line that starts one of ours."""
    if words[:3] == ["python", "-m", "rbc_warp"]:
        return words[3], list(words[4:])
    if words[0] == "rbc-warp":
        return words[1], list(words[2:])
    if words[0] == "python" and words[1] in LAUNCHERS:
        return LAUNCHERS[words[1]], list(words[2:])
    return None


def check(command: str) -> None:
    """Check that whatever the command calls accepts its arguments."""
    words = [word for word in shlex.split(command) if word != "…"]
    if found := ours(words):
        accept(*found)
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    elif words[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        targets = re.search(r"^\.PHONY:(.*)", makefile, re.MULTILINE)[1].split()
        for word in words[1:]:
            name, is_set, _ = word.partition("=")
            known = re.search(rf"^{name} \?=|\$\({name}\)", makefile, re.MULTILINE) if is_set else word in targets
            assert known, f"the Makefile has no {name}"
    elif words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        options = get_args_parser().parse_args(words[1:])
        accept(LAUNCHERS[options.training_script], options.training_script_args)
    elif words[0] == "source":
        assert words[1:] == [".venv/bin/activate"]
    else:
        assert words[:2] == ["pip", "install"]
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        pins = {line for file in ROOT.glob("requirements*.txt") for line in file.read_text().splitlines()}
        for word in (word for word in words[2:] if not word.startswith("-")):
            local = re.fullmatch(r"\.(?:\[([\w,]+)\])?", word)
            known = set((local[1] or "").split(",")) - {""} <= extras.keys() if local else word in pins
            assert known or (ROOT / word).is_file() or word.startswith("dist/"), word


@pytest.mark.parametrize(("command", "place"), COMMANDS, ids=[place for _, place in COMMANDS])
def test_every_command_is_accepted(command: str, place: str) -> None:
    check(command)


def test_a_renamed_option_is_noticed() -> None:
    for command in ("python -m rbc_warp gaps RUN --picture x", "python run_training.py --confg a", "make trian"):
        with pytest.raises((SystemExit, AssertionError)):
            check(command)


# What there is


def test_every_block_is_known_and_none_is_skipped() -> None:
    kinds = Counter(block.kind for page in PAGES for block in BLOCKS[page])
    # "text": what another command does, step by step, as that one wrote it.
    assert set(kinds) <= {"python", "commands", "output", "diff", "directive", "text", "yaml"}
    commands = [command for command, _ in COMMANDS]
    not_run = {command: reason for command in commands if (reason := reason_not_to_run(command))}
    print(dict(kinds), f"{len(commands)} commands, {len(not_run)} of them not run")
    assert kinds["python"] >= FEWEST["python"] and len(commands) >= FEWEST["commands"]
    assert set(not_run.values()) == set(NOT_RUN.values())  # none is left over
    assert len(not_run) < len(commands) / 2
    for page in PAGES:
        fences = re.findall(r"^ *(?:```|~~~)", page.read_text(), re.MULTILINE)
        assert len(fences) == 2 * len(BLOCKS[page]), f"{page}: a fence that is indented or not closed"
        outside = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        indented = re.findall(rf"^ {{4,}}(?:{'|'.join(PROGRAMS)}) .*", outside, re.MULTILINE)
        assert not indented, f"{page}: put commands between fences: {indented}"
        output = "".join(block.text for block in BLOCKS[page] if block.kind == "output")
        assert not re.search(r"^(?:python|rbc-warp) ", output, re.MULTILINE), f"{page}: a command in a block of output"


def test_yaml_blocks_are_configurations(tmp_path: Path) -> None:
    for page in PAGES:
        for block in BLOCKS[page]:
            if block.kind == "yaml":
                (tmp_path / "block.yaml").write_text(block.text)
                load_config(tmp_path / "block.yaml")


def test_pictures_stay_small_and_are_shown() -> None:
    pictures = list((ROOT / "docs").rglob("*.png"))
    assert sum(path.stat().st_size for path in pictures) < 1.5e6
    text = "".join(page.read_text() for page in PAGES)
    assert [path.name for path in pictures if f"{path.name})" not in text] == []


# Carrying them out


def shortened(config: Config) -> Config:
    """Return the same schedule in four iterations of four environments with 20 consumers, all of them kept."""
    short = stretched(config, 4 / config.train.num_episodes)
    every = [f"train.{key}=1" for key in ("log_every", "save_dense_every", "save_model_every", "save_state_every")]
    sizes = ["train.batch_size=4", "agents.num_consumers=20", "agents.firm_trials=4", "agents.government_trials=4"]
    return load_config(short, [*every, *sizes])


def write_configs(folder: Path) -> None:
    for path in (ROOT / "configs").rglob("*.yaml"):
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.name == "sweeps":
            sweep = yaml.safe_load(path.read_text())
            lists = [(section, key) for section, keys in sweep["sweep"].items() for key in keys]
            for section, key in lists:
                sweep["sweep"][section][key] = sweep["sweep"][section][key][: 2 if (section, key) == lists[-1] else 1]
            target.write_text(yaml.safe_dump(sweep))
        else:
            config = load_config(path)
            target.write_text(yaml.safe_dump((config if path.stem == "smoke" else shortened(config)).to_dict()))


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Be in a folder, with the package's tree to import from."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def call(name: str, words: Sequence[str]) -> None:
    """Run a command of ours in this process."""
    code = __main__.main([name, *words])
    assert not code, f"{name} {shlex.join(words)} ended with {code}"


@pytest.fixture(scope="module", autouse=True)
def few_deviations() -> Iterator[None]:
    """Verdicts try two agents of each type on a few episodes."""
    with pytest.MonkeyPatch.context() as patch:
        for effort in (verdict.FULL, verdict.QUICK):
            searched = {"constant": 1, "one-step": 1}
            few = dataclasses.replace(effort, screening=searched, scoring=4, rescoring=4, agents=2)
            patch.setitem(verdict.EFFORTS, effort.name, few)
            patch.setattr(request, effort.name.upper(), few)
        yield


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    write_configs(folder)
    with inside(folder):
        for seed in (2345, 1):
            call("train", ["--config", "configs/rbc.yaml", "--set", f"train.base_seed={seed}", "--quiet"])
        run = str(sorted(Path("experiment/rbc").glob("rollout-*"))[0])
        quick = ["--ep-strs", "latest", "--verdict", "quick", "--agent-type", "firm", "--eval-episodes", "8"]
        call("best-response", [run, "1", *quick, "--quiet"])
    return folder


def runs_for(text: str, number: Callable[[], int]) -> str:
    """Replace ``experiment/NAME/rollout-…`` by a run of that folder: the first, then the second, and so on."""

    def run(match: re.Match[str]) -> str:
        named = sorted(Path(match[1]).glob("rollout-*")) or sorted(Path("experiment/rbc").glob("rollout-*"))
        return str(named[number() % len(named)])

    return re.sub(r"(experiment/\w+)/rollout-…", run, text)


def words_of(command: str) -> list[str]:
    """Return the words of a command as they are run here."""
    count = iter(range(100))
    words = []
    for word in shlex.split(command):
        word = re.sub(r"^RUN$", "experiment/rbc/rollout-…", SMALL.get(word, word))
        word = runs_for(word, lambda: next(count))
        if re.fullmatch(r"experiment/\w+", word) and not Path(word).is_dir() and "--experiment-dir" not in words[-1:]:
            word = "experiment/rbc"
        words.append(word)
    return [word for word in words if word != "…"]


def carry_out(page: Path, folder: Path, runs: Callable[[str], bool]) -> Counter[str]:
    """Carry out a page's Python blocks, and the commands that ``runs`` accepts; return how many of each."""
    names: dict[str, Any] = {"__name__": "__main__"}
    done: Counter[str] = Counter()
    (folder / page.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
    (folder / "docs").mkdir(exist_ok=True)
    with inside(folder):
        for block in BLOCKS[page]:
            if block.kind == "python":
                code = runs_for(block.text, lambda: 0)
                exec(compile("\n" * block.line + code, str(page), "exec"), names)  # errors name the page's line
                done["python"] += 1
            for command in filter(runs, block.commands):
                words = words_of(command)
                found = ours(words)
                if found:
                    print(block.place, shlex.join(words))
                    few = ["--eval-episodes", "8"] if found[0] == "best-response" else []
                    call(found[0], [*found[1], *few])
                else:
                    subprocess.run(
                        [sys.executable, *words[1:]], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
                    )
                done["commands"] += 1
    return done


def with_blocks(kind: str) -> list[Any]:
    pages = [page for page in PAGES if any(block.kind == kind for block in BLOCKS[page])]
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages]


@pytest.mark.parametrize("page", with_blocks("python"))
def test_python_blocks_run_and_so_do_quick_commands(page: Path, workspace: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(workspace, tmp_path / "page")
    done = carry_out(page, folder, lambda command: bool(QUICK.match(command)) and not reason_not_to_run(command))
    assert done["python"] == sum(block.kind == "python" for block in BLOCKS[page])


@pytest.mark.slow
@pytest.mark.parametrize("page", with_blocks("commands"))
def test_every_command_runs(page: Path, workspace: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(workspace, tmp_path / "page")
    done = carry_out(page, folder, lambda command: reason_not_to_run(command) is None)
    commands = [command for block in BLOCKS[page] for command in block.commands]
    assert done["commands"] + sum(reason_not_to_run(command) is not None for command in commands) == len(commands)
