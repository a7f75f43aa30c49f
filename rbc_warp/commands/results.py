"""``python -m rbc_warp results [PART …]``: train, test and play all that docs/results.md rests on, and write it.

A part is a sweep of configs/results/ with its tests. What is there already is not made again: finished runs, tests,
cross-play. The page is written anew after each part, from all runs that are finished by then; a ``note.txt`` in the
folder of a part is told on it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rbc_warp.analysis.findings import questions
from rbc_warp.analysis.outcomes import CROSS_PLAY_NAME, PHASES_NAME, UPDATES, is_finished, outcomes, read_cross_play
from rbc_warp.analysis.results_page import write_page
from rbc_warp.commands.launch import num_cores, positive
from rbc_warp.commands.sweep import run_sweep, terminated_as_interrupted
from rbc_warp.commands.train import parse as parse_training
from rbc_warp.config import Config, load_config
from rbc_warp.config.reading import reading
from rbc_warp.config.shipped import CONFIGS, launcher_words
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.economy.curriculum import env_steps
from rbc_warp.economy.parameters import Economy
from rbc_warp.equilibrium.request import last_iteration
from rbc_warp.equilibrium.results import Results
from rbc_warp.errors import ConfigError
from rbc_warp.runs.console import text_table
from rbc_warp.runs.files import write_text
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.sweep import Display, Task, expand, last_record, matches

CROSS_PLAYED = 5
"""Most runs whose policies are mixed, by seed: n³ mixtures."""
LOG_NAME, LEDGER_NAME = "tests.txt", "seconds.json"
NOTE_NAME = "note.txt"
"""In the folder of a part, by hand: what the page is to say of its runs."""
POLL_SECONDS = 0.2
TRAINING = "training"


# The parts


@dataclass(frozen=True)
class Test:
    """A test of a run: what a user types for it, with RUN and CHECKPOINTS to be filled in, and whether it is done."""

    name: str
    command: str
    is_done: Callable[[RunDir], bool]

    def words(self, run: RunDir) -> list[str]:
        """Return the words that start it."""
        program, *rest = self.command.split()[1:]
        start = launcher_words("best-response") if program.endswith(".py") else [sys.executable, program]
        filled = []
        for word in rest:
            filled += _numbered(run) if word == "CHECKPOINTS" else [word.replace("RUN", str(run.path))]
        return [*start, *filled]


def _numbered(run: RunDir) -> list[str]:
    """Checkpoints before the latest, which may be saved by its number, too."""
    learned = next(filter(None, map(run.labels, AGENT_TYPES)), [])
    last = last_iteration(run, load_config(run.hparams_path))
    return [label for label in learned if label.isdecimal() and int(label) < last]


def _is_tuned(run: RunDir, checkpoint: str) -> bool:
    """Whether every type that has a choice was fine-tuned at a checkpoint, for as long as it counts."""
    of_types: dict[str, bool] = {}
    for record in Results.read(run).records:
        if record.checkpoint == checkpoint and record.index is None and not record.greedy:
            without_choice = record.method == "fixed" and record.low == record.high == 0.0
            counts = record.settings.get("iterations") == UPDATES or without_choice
            of_types[record.agent] = of_types.get(record.agent, False) or counts
    return bool(of_types) and all(of_types.values())


def _has_verdict(run: RunDir) -> bool:
    last = last_iteration(run, load_config(run.hparams_path))
    judged = any((v["iteration"], v["effort"]) == (last, "full") for v in Results.read(run).verdicts)
    return judged and _is_tuned(run, "latest")


def _has_checkpoints(run: RunDir) -> bool:
    known = {verdict["iteration"] for verdict in Results.read(run).verdicts}
    return all(int(label) in known and _is_tuned(run, label) for label in _numbered(run))


def _has_scan(run: RunDir) -> bool:
    return any(scan["agent"] == "government" for scan in Results.read(run).scans)


BEST_RESPONSE = f"python run_best_response.py RUN {UPDATES} --ep-strs"
VERDICT = Test("verdict", f"{BEST_RESPONSE} latest --verdict full", _has_verdict)
CHECKPOINTS = Test("checkpoints", f"{BEST_RESPONSE} CHECKPOINTS --verdict quick", _has_checkpoints)
SCAN = Test("scan", f"{BEST_RESPONSE} latest --agent-type government --scan", _has_scan)
PHASES = Test(
    "phases",
    f"python -m rbc_warp phases RUN --json RUN/{PHASES_NAME}",
    lambda run: (run.path / PHASES_NAME).exists(),
)


@dataclass(frozen=True)
class Part:
    """A sweep of configs/results/ and what is done with its runs."""

    name: str
    about: str
    tests: tuple[Test, ...] = (VERDICT,)
    cross_play: bool = False
    program: str | None = None  #: Trains the runs, in place of the training launcher: a file of the source tree.

    @property
    def config_path(self) -> Path:
        return CONFIGS / "results" / f"{self.name}.yaml"

    def commands(self, folder: Path) -> list[str]:
        """Return what a user types to make it."""
        options = f"--experiment-dir {folder / self.name}"
        train = f"python run_training.py --config configs/results/{self.name}.yaml {options}"
        if self.program:
            train = f"{train} --dry-run; python {self.program} --resume RUN"
        mix = f"python run_best_response.py --cross-play RUN RUN … -o {folder / self.name / CROSS_PLAY_NAME}"
        return [train, *(test.command for test in self.tests), *([mix] if self.cross_play else [])]


FAULTY_DRAWS = "tests/faulty_draws.py"
PARTS = (
    Part("open", "the open economy", (VERDICT, PHASES, SCAN, CHECKPOINTS), cross_play=True),
    Part("unseen", "the open economy at seeds that no setting was chosen by"),
    Part("closed", "the closed economy"),
    Part("no_curriculum", "open and closed, without a curriculum"),
    Part("fixed_taxes", "fixed taxes, the others learning under them"),
    Part("exports", "what the importer pays and buys"),
    Part("draws_forever", "the public code's draws", program=FAULTY_DRAWS),
    Part("draws_shared", "one draw for all firms and the government", program=FAULTY_DRAWS),
    Part("precision", "float32 against bfloat16"),
    Part("environments", "128 environments instead of 32"),
    Part("consumers", "10, 30 and 300 consumers"),
    Part("firms", "2 and 5 firms"),
)


@dataclass
class Work:
    """A part and its folder: what is wanted and what is there."""

    part: Part
    folder: Path
    configs: list[Config]

    @classmethod
    def of(cls, part: Part, folder: Path) -> Work:
        return cls(part, folder / part.name, expand(load_config(part.config_path)))

    @property
    def finished(self) -> list[RunDir]:
        """The finished runs that are of the part's settings; others in its folder do not count."""
        found = matches(self.folder, self.configs)
        return [run for run, _ in filter(None, found) if is_finished(run)]

    @property
    def tests_left(self) -> list[tuple[RunDir, Test]]:
        """Tests of finished runs that are not done."""
        return [(run, test) for run in self.finished for test in self.part.tests if not test.is_done(run)]

    def mixed(self) -> list[RunDir]:
        """The runs of cross-play, by seed; none where it was played with these, or there are too few."""
        if not self.part.cross_play:
            return []
        by_seed = {load_config(run.hparams_path).train.base_seed: run for run in self.finished}
        chosen = [by_seed[seed] for seed in sorted(by_seed)[:CROSS_PLAYED]]
        content = read_cross_play(self.folder)
        known = [Path(run["path"]).name for run in content["runs"]] if content else []
        return [] if len(chosen) < 2 or known == [run.path.name for run in chosen] else chosen


def agents_of(config: Config) -> int:
    return sum(agent.count for agent in Economy.from_config(config).agents.values())


def size_of(config: Config) -> int:
    """The size of a training run, in agent-steps."""
    return env_steps(config, Economy.from_config(config), config.train.num_episodes) * agents_of(config)


# Time left


@dataclass
class Outlook:
    """How much is done of all that was asked for, and how long the rest takes, by what finished runs took.

    ``seconds.json`` keeps, per kind of work, its amount and the seconds that it took: agent-steps of training, agents
    of tests.
    """

    folder: Path
    jobs: int
    trained: int = 0
    wanted: int = 0
    tested: int = 0
    tests: int = 0
    left: dict[str, float] = field(default_factory=dict)  #: Work per kind.
    took: dict[str, list[list[float]]] = field(default_factory=dict)
    running: float = 0.0  #: Work that running processes have done.

    @classmethod
    def of(cls, folder: Path, works: Sequence[Work], jobs: int) -> Outlook:
        found = cls(folder, jobs)
        path = folder / LEDGER_NAME
        if path.exists():
            with reading(path, "seconds per kind of work", "remove it; only the estimate of time is lost"):
                known = json.loads(path.read_text())
                found.took = {kind: [[float(x) for x in pair] for pair in pairs] for kind, pairs in known.items()}
        for work in works:
            finished, total = len(work.finished), len(work.configs)
            open_tests, size = work.tests_left, sum(map(size_of, work.configs)) / total
            found.trained += min(finished, total)
            found.wanted += total
            found.tests += total * len(work.part.tests)
            found.tested += finished * len(work.part.tests) - len(open_tests)
            found.left[TRAINING] = found.left.get(TRAINING, 0.0) + max(0, total - finished) * size
            agents = sum(map(agents_of, work.configs)) / total
            for test in work.part.tests:
                number = total - finished + sum(each is test for _, each in open_tests)
                found.left[test.name] = found.left.get(test.name, 0.0) + max(0, number) * agents
        return found

    def note(self, kind: str, amount: float, seconds: float) -> None:
        """Count what was done, and keep how long it took."""
        self.took.setdefault(kind, []).append([amount, seconds])
        self.left[kind] = max(0.0, self.left.get(kind, 0.0) - amount)
        if kind == TRAINING:
            self.trained += 1
        else:
            self.tested += 1
        write_text(self.folder / LEDGER_NAME, json.dumps(self.took) + "\n")

    def seconds(self) -> tuple[float, bool]:
        """Seconds left, as many processes at a time as jobs, and whether every kind that is left was timed before."""
        total, all_known = 0.0, True
        for kind, amount in self.left.items():
            amount -= self.running if kind == TRAINING else 0.0
            if amount > 0.0 and kind in self.took:
                done, took = map(sum, zip(*self.took[kind], strict=True))
                total += amount * took / done
            elif amount > 0.0:
                all_known = False
        return total / self.jobs, all_known

    def __str__(self) -> str:
        seconds, all_known = self.seconds()
        time_text = f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"
        left = f"{'about' if all_known else 'more than'} {time_text} left"
        if not self.took and not all_known:
            left = "time left not known before some are done"
        return f"all parts: {self.trained} of {self.wanted} runs trained, {self.tested} of {self.tests} tested; {left}"


def beside(outlook: Outlook) -> Callable[[Sequence[Task]], str]:
    """Return what a sweep's display says of all parts; it times the runs that end."""
    timed: set[str] = set()

    def say(tasks: Sequence[Task]) -> str:
        outlook.running = 0.0
        for task in tasks:
            if task.began is None or task.name in timed:
                continue
            began, before = task.began
            whole, length = size_of(task.config), task.config.train.num_episodes
            if task.state == "finished":
                timed.add(task.name)
                outlook.note(TRAINING, whole * (1.0 - before / length), time.monotonic() - began)
            elif task.state == "running":
                outlook.running += whole * (last_record(task.run).get("iteration", -1) + 1) / length
        return str(outlook)

    return say


# The work


def train(work: Work, outlook: Outlook) -> bool:
    """Train what is not finished of a part; return whether all of it is."""
    words = ["--config", str(work.part.config_path), "--experiment-dir", str(work.folder)]
    options = parse_training([*words, "--jobs", str(outlook.jobs), "--threads", "1", "--quiet"])
    program = CONFIGS.parent / work.part.program if work.part.program else None
    if program and not program.exists():
        print(f"{work.part.name}: needs {program}, which is in the source tree only; left out", file=sys.stderr)
        return True
    launcher = [sys.executable, str(program)] if program else None
    return run_sweep(options, lambda folder, tasks: Display(folder, tasks, beside=beside(outlook)), launcher) == 0


def run_tests(work: Work, outlook: Outlook) -> bool:
    """Run the tests that are left of a part's finished runs, as many at a time as jobs; return whether all went well.

    Tests of one run come one after another.
    """
    waiting, well = deque(work.tests_left), True
    active: list[tuple[RunDir, Test, subprocess.Popen, float]] = []
    try:
        while waiting or active:
            busy = {run.path for run, *_ in active}
            free = next((each for each in waiting if each[0].path not in busy), None)
            if free is not None and len(active) < outlook.jobs:
                waiting.remove(free)
                run, test = free
                with open(run.path / LOG_NAME, "ab") as log:
                    process = subprocess.Popen(
                        [*test.words(run), "--threads", "1"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
                    )
                active.append((run, test, process, time.monotonic()))
                continue
            time.sleep(POLL_SECONDS)
            for each in list(active):
                run, test, process, began = each
                if process.poll() is None:
                    continue
                active.remove(each)
                seconds = time.monotonic() - began
                if process.returncode == 0:
                    outlook.note(test.name, agents_of(load_config(run.hparams_path)), seconds)
                    print(f"{run.path}: {test.name} in {seconds:.0f} s; {outlook}", flush=True)
                else:
                    well = False
                    print(f"{run.path}: {test.name} failed; see {LOG_NAME} there", file=sys.stderr)
    finally:
        for _, _, process, _ in active:
            process.terminate()
            process.wait()
    return well


def mix(work: Work) -> bool:
    """Play the runs' mixtures; return whether it went well."""
    runs = [str(run.path) for run in work.mixed()]
    if not runs:
        return True
    words = [*launcher_words("best-response"), "--cross-play", *runs, "-o", str(work.folder / CROSS_PLAY_NAME)]
    print(f"{work.folder}: cross-play of {len(runs)} runs", flush=True)
    with open(work.folder / LOG_NAME, "ab") as log:
        return subprocess.run([*words, "--quiet"], stdin=subprocess.DEVNULL, stdout=log, stderr=log).returncode == 0


def write(page: Path, folder: Path) -> None:
    """Write the page from all runs that are finished, of all parts."""
    works = {part.name: Work.of(part, folder) for part in PARTS}
    runs = {name: outcomes(work.finished) for name, work in works.items()}
    wanted = {name: len(work.configs) for name, work in works.items()}
    cross_play = read_cross_play(folder / "open")
    commands = [line for part in PARTS for line in part.commands(Path("experiment/results"))]
    notes = {}
    for name in works:
        path = folder / name / NOTE_NAME
        if path.exists():
            with reading(path, "a note, text in UTF-8", "write it anew, or remove it"):
                notes[name] = " ".join(path.read_text(encoding="utf-8").split())
    print(*write_page(page, questions(runs, cross_play), runs, wanted, cross_play, commands, notes), sep="\n")


def overview(works: Sequence[Work], folder: Path) -> str:
    """Return what is wanted and what is there, and the commands."""
    rows = []
    for work in works:
        finished, wanted, tests = len(work.finished), len(work.configs), len(work.part.tests)
        tested = f"{tests * finished - len(work.tests_left)} of {tests * wanted}"
        rows.append((work.part.name, work.part.about, f"{finished} of {wanted}", tested))
    table = text_table(("part", "what it is", "trained", "tested"), rows)
    return "\n".join([table, "", *(line for work in works for line in work.part.commands(folder))])


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m rbc_warp results", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"{', '.join(part.name for part in PARTS)} (default: all)")
    add("--experiment-dir", type=Path, default=Path("experiment/results"), metavar="DIR", help="folder of the parts")
    add("--jobs", type=positive, metavar="N", help="runs or tests at a time, a thread each (default: all cores)")
    add("-o", "--output", type=Path, default=Path("docs/results.md"), metavar="PAGE", help="default: docs/results.md")
    add("--no-training", action="store_true", help="test the runs that are finished, and write the page")
    add("--page", action="store_true", help="write the page only, from what is there")
    add("--dry-run", action="store_true", help="say what is there and what would be made")
    options = parser.parse_args(arguments)
    names = [part.name for part in PARTS]
    for name in options.parts:
        if name not in names:
            raise ConfigError(f"{name} is no part of the results; give some of {', '.join(names)}, or none for all")
    if options.output.suffix != ".md":
        raise ConfigError(f"--output {options.output}: give a file that ends in .md")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Make the results; return 1 where a run or a test failed."""
    options = parse(arguments)
    chosen = [part for part in PARTS if part.name in (options.parts or [part.name])]
    folder = options.experiment_dir
    works = [Work.of(part, folder) for part in chosen]
    outlook = Outlook.of(folder, works, options.jobs or num_cores())
    if options.dry_run:
        print(f"{overview(works, folder)}\n\n{outlook}")
        return 0
    well = True
    if not options.page:
        print(outlook, flush=True)
        for work in works:
            done = outlook.trained, outlook.tested
            if not options.no_training:
                well &= train(work, outlook)
            with terminated_as_interrupted():
                well &= run_tests(work, outlook) and mix(work)
            if done != (outlook.trained, outlook.tested) and work is not works[-1]:
                write(options.output, folder)
    write(options.output, folder)
    return int(not well)
