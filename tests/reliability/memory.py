"""Memory over time: run after run in one process, which allocates by malloc alone, so that the heap can be counted."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.stats import theilslopes

import rbc_warp  # noqa: F401  before WarpDrive, which imports gym: keeps gym from printing its notice
from reliability.forks import room
from reliability.runs import trained

BAR = 1.0
"""Growth that is a leak, and widest interval that tells it [MiB per hour]."""
BLOCKS = 20
"""Stretches of time whose medians the slope is taken of: samples side by side depend on each other."""
SIZES = {"heap": "live heap", "resident": "resident memory"}
COUNTS = {"files": "open files", "threads": "threads"}


class _MallInfo(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


def soak(seconds: float, kept: int = 0) -> list[str]:
    """Train, save and start anew for so long, and judge memory after a third of the time: see :func:`growth`.

    ``kept``: bytes that every run leaves behind on purpose, to see that they are found.
    """
    words = [sys.executable, "-m", "reliability.memory", str(seconds), str(kept)]
    result = subprocess.run(words, env=os.environ | {"PYTHONMALLOC": "malloc"}, stdout=subprocess.PIPE, text=True)
    samples = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    late = [sample for sample in samples if sample["hours"] * 3600.0 > seconds / 3]
    if result.returncode or len(late) < BLOCKS:
        return [f"the process ended with code {result.returncode} after {len(samples)} runs"]
    hours, faults = np.array([sample["hours"] for sample in late]), []
    print(f"  {len(samples)} runs, {len(late)} of them judged", flush=True)
    for key, name in SIZES.items():
        sizes = np.array([sample[key] for sample in late])
        slope, low, high = growth(hours, sizes)
        text = f"{name} {sizes[0]:.2f} to {sizes[-1]:.2f} MiB, {slope:+.3f} MiB per hour ({low:+.3f} to {high:+.3f})"
        print(f"  {text}", flush=True)
        if not (high < BAR and high - low < BAR):
            faults.append(text)
    for key, name in COUNTS.items():
        if late[-1][key] > late[0][key]:
            faults.append(f"{name}: {late[0][key]} to {late[-1][key]}")
    return faults


def growth(hours: np.ndarray, sizes: np.ndarray) -> tuple[float, float, float]:
    """Return Theil and Sen's slope of the medians of BLOCKS stretches, and its interval of 95 %."""
    middle_hours, middle_sizes = ([np.median(block) for block in np.array_split(z, BLOCKS)] for z in (hours, sizes))
    slope, _, low, high = theilslopes(middle_sizes, middle_hours, alpha=0.95)
    return float(slope), float(low), float(high)


def _samples(seconds: float, kept: int) -> Iterator[dict[str, float]]:
    """Train runs; after each, count this process's memory. Keeps nothing of them but the ``kept`` bytes of each."""
    libc = ctypes.CDLL("libc.so.6")
    libc.mallinfo2.restype = _MallInfo
    began, leak = time.monotonic(), []
    with room() as folder:
        while (now := time.monotonic() - began) < seconds:
            trained(folder / "run", length=40)
            subprocess.run(["rm", "-rf", str(folder / "run")], check=True)
            if kept:
                leak.append(bytes(kept))
            gc.collect()
            info = libc.mallinfo2()
            libc.malloc_trim(0)
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            yield {
                "hours": now / 3600.0,
                "heap": (info.uordblks + info.hblkhd) / 2**20,
                "resident": int(status["RssAnon"].split()[0]) / 2**10,
                "files": len(os.listdir("/proc/self/fd")),
                "threads": int(status["Threads"]),
            }


if __name__ == "__main__":
    torch.set_num_threads(1)
    for sample in _samples(float(sys.argv[1]), int(sys.argv[2])):
        print(json.dumps(sample), flush=True)
