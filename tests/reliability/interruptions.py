"""Kills at random points, and every write, fsync, rename, open and mkdir that fails."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rbc_warp.warpdrive.build import find_host_compiler
from reliability.forks import Child, command, room, spread
from reliability.runs import content, difference, the_runs, trained, words

KINDS = ("open", "write", "fsync", "rename", "mkdir")
CODES = {"open": errno.EMFILE, "write": errno.ENOSPC, "fsync": errno.EIO, "rename": errno.EACCES, "mkdir": errno.ENOSPC}


def kills(count: int) -> list[str]:
    """Kill a run at a random point, resume it, kill it again, until it ends; compare it with one left in peace."""
    length = 12
    with room() as folder:
        Child(lambda: bool(trained(folder / "whole", length)) - 1).wait()
        whole = the_runs(folder / "whole")[0]
        expected = content(whole)
        began = time.monotonic()
        Child(command(*words(length), "--experiment-dir", folder / "timed")).wait()
        duration = time.monotonic() - began

        def work(case: int) -> str | None:
            place, chance = folder / str(case), random.Random(case)
            again: list[object] = [*words(length), "--experiment-dir", place]
            for _ in range(1 + case % 3):
                child = Child(command(*again))
                time.sleep(chance.uniform(0.0, duration))
                child.kill()
                ended = child.wait()
                if ended.code not in (-9, 0):
                    return ended.fault() or f"code {ended.code}"
                if runs := the_runs(place):
                    again = ["train", "--backend", "host", "--quiet", "--resume", runs[0].path]
                    runs[0].read_metrics(), runs[0].read_status()
                    if runs[0].has_state:
                        runs[0].load_state()
                else:  # killed before it was one: those folders are of no use to anybody
                    shutil.rmtree(place, ignore_errors=True)
            fault = Child(command(*again)).wait().fault({0})
            fault = fault or difference(the_runs(place)[0], expected)
            left = [path.name for path in place.rglob("*.tmp")]
            shutil.rmtree(place, ignore_errors=True)
            return fault or (f"left {left}" if left else None)

        return spread(range(-(-count // 2)), work)  # twice killed on average


def with_faults() -> None:
    """Start this program again under the library of faults, unless it is there."""
    if "RBC_WARP_FAULTS" in os.environ:
        return
    with room() as folder:
        library = folder / "faults.so"
        source = Path(__file__).with_name("faults.c")
        words = [find_host_compiler(), "-x", "c", "-O1", "-shared", "-fPIC", str(source), "-o", str(library), "-ldl"]
        subprocess.run(words, check=True)
        environment = {**os.environ, "LD_PRELOAD": str(library), "RBC_WARP_FAULTS": "1"}
        sys.exit(subprocess.run([sys.executable, "-m", "reliability", *sys.argv[1:]], env=environment).returncode)


def _arm(kind: str, number: int, code: int, lasting: bool, below: Path) -> None:
    library = ctypes.CDLL(None)
    library.fault_arm(KINDS.index(kind), number, code, int(lasting), str(below).encode())


def writes(count: int) -> list[str]:
    """Let the n-th call fail, for all n, of a run that starts and of one that goes on; then finish it in peace."""
    with room() as folder:
        Child(lambda: bool(trained(folder / "half", 2)) - 1).wait()
        half = the_runs(folder / "half")[0].path
        longer = ["--set", "train.num_episodes=4"]
        starts = {False: lambda place: [*words(4), "--experiment-dir", place]}
        starts[True] = lambda place: ["train", "--backend", "host", "--quiet", "--resume", place / half.name, *longer]

        def counted(resumes: bool) -> dict[str, int]:
            place = folder / "counted" / str(resumes)
            if resumes:
                shutil.copytree(half, place / half.name)

            def run() -> None:
                _arm("open", 0, 0, False, place)
                command(*starts[resumes](place))()
                numbers = [ctypes.CDLL(None).fault_count(kind) for kind in range(len(KINDS))]
                (folder / f"counts{resumes}").write_text(" ".join(map(str, numbers)))

            ended = Child(run).wait()
            assert ended.code == 0, ended.text
            return dict(zip(KINDS, map(int, (folder / f"counts{resumes}").read_text().split()), strict=True))

        calls = {resumes: counted(resumes) for resumes in (True, False)}
        whole = {resumes: content(the_runs(folder / "counted" / str(resumes))[0]) for resumes in calls}
        cases = [
            (resumes, kind, number, CODES[kind], lasting)
            for resumes, of_kind in calls.items()
            for kind, number_of_calls in of_kind.items()
            for lasting in ((False, True) if kind == "fsync" else (kind == "write",))
            for number in range(1, number_of_calls + 1)
        ]
        chosen = cases if count >= len(cases) else random.Random(1).sample(cases, count)
        print(f"  {len(chosen)} of {len(cases)} faults", flush=True)

        def work(case: tuple[bool, str, int, int, bool]) -> str | None:
            resumes, kind, number, code, lasting = case
            place = folder / "-".join(map(str, case))
            place.mkdir()
            if resumes:
                shutil.copytree(half, place / half.name)

            def run() -> int:
                _arm(kind, number, code, lasting, place)
                return command(*starts[resumes](place))()

            fault = Child(run).wait().fault()
            runs = [run for run in the_runs(place) if run.status_path.exists()]
            if not fault and (resumes or runs):
                again = ["train", "--backend", "host", "--quiet", "--resume", runs[0].path, *longer]
                ended = Child(command(*again)).wait()
                fault = ended.fault({0}) or difference(runs[0], whole[resumes])
                fault = fault and f"afterwards: {fault}"
            shutil.rmtree(place, ignore_errors=True)
            return fault

        return spread(chosen, work)
