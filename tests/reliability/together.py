"""Two of everything at once, on one run or in one folder."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from reliability.forks import DOCUMENTED, Child, command, room, spread
from reliability.runs import content, difference, the_runs, trained, words

ONE = ("--backend", "host", "--quiet")


def _resumed(run: Path) -> tuple[object, ...]:
    return ("train", *ONE, "--resume", run, "--set", "train.num_episodes=8")


def _best(run: Path, agent: str) -> tuple[object, ...]:
    return ("best-response", run, *ONE, "--agent-type", agent)


def _sweep(folder: Path) -> tuple[object, ...]:
    lists = ["--set", "sweep.train.base_seed=[1,2]"]
    return (*words(2), *lists, "--dry-run", "--experiment-dir", folder)


PAIRS: dict[str, Callable[[Path, Path], tuple[tuple[object, ...], tuple[object, ...]]]] = {
    "two trainings of one run": lambda folder, run: (_resumed(run), _resumed(run)),
    "two best responses": lambda folder, run: (_best(run, "firm"), _best(run, "government")),
    "a training and a best response": lambda folder, run: (_resumed(run), _best(run, "firm")),
    "two sweeps in one folder": lambda folder, run: (_sweep(folder / "sweep"), _sweep(folder / "sweep")),
    "two new runs in one folder": lambda folder, run: (
        (*words(2), "--experiment-dir", folder / "new"),
        (*words(2), "--experiment-dir", folder / "new"),
    ),
    "a training and an audit": lambda folder, run: (_resumed(run), ("audit", run)),
}


def together(count: int) -> list[str]:
    """Start both within a moment; neither may fail but with a message, and what both did must be there."""
    cases = [(name, start) for start in range(count) for name in PAIRS]
    with room() as folder:
        Child(lambda: bool(trained(folder / "whole")) - 1).wait()
        Child(lambda: bool(trained(folder / "half", 4)) - 1).wait()
        expected, half = content(the_runs(folder / "whole")[0]), the_runs(folder / "half")[0].path

        def work(case: tuple[str, int]) -> str | None:
            name, start = case
            box = folder / f"{name}-{start}".replace(" ", "_")
            run = box / "runs" / half.name
            shutil.copytree(half, run)
            children = []
            for number, part in enumerate(PAIRS[name](box, run)):
                time.sleep(0.03 * start * number)
                children.append(Child(command(*part)))
            ends = [child.wait() for child in children]
            faults = [end.fault(DOCUMENTED | {1} if name.endswith("audit") else DOCUMENTED) for end in ends]
            fault = next(filter(None, faults), None)
            if not fault and all(end.code for end in ends):
                fault = f"both refused: {[end.text.strip()[-200:] for end in ends]}"
            if not fault and name == "two trainings of one run":
                fault = difference(the_runs(box / "runs")[0], expected)
            if not fault and name == "two best responses":
                results = json.loads((run / "best_response.json").read_text())
                done = {agent for agent, end in zip(("firm", "government"), ends, strict=True) if end.code == 0}
                missing = [agent for agent in done if agent not in json.dumps(results.get("checkpoints", results))]
                fault = f"lost the results of {missing}" if missing else None
            if not fault and name == "two new runs in one folder" and len(the_runs(box / "new")) != 2:
                fault = "not two runs"
            if not fault and name == "two sweeps in one folder" and len(the_runs(box / "sweep")) != 2:
                fault = f"{len(the_runs(box / 'sweep'))} runs instead of 2"
            shutil.rmtree(box)
            return fault

        return spread(cases, work)
