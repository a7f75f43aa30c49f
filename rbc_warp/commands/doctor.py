"""``python -m rbc_warp doctor``: what this machine can run, and the remedy for what is missing."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

MINIMUM_PYTHON = (3, 11)
WARPDRIVE = "rl-warp-drive"


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``required``: training on the CPU needs it; the rest is for a GPU."""

    name: str
    found: str
    remedy: str = ""
    required: bool = False

    @property
    def is_missing(self) -> bool:
        return bool(self.remedy)


def examine() -> list[Finding]:
    """Looks at everything, in the order of the report. Nothing is installed and only the kernel cache is written."""
    checks: list[tuple[str, Callable[[], Finding], bool]] = [
        ("python", _python, True),
        ("torch", lambda: _package("torch", "torch"), True),
        ("numpy", lambda: _package("numpy", "numpy"), True),
        (WARPDRIVE, lambda: _package("warp_drive", WARPDRIVE), True),
        ("C++ compiler", _compiler, True),
        ("kernel cache", _cache, True),
        ("backend host", _host, True),
        ("bfloat16 (CPU)", _bfloat16, False),
        ("nvcc", _nvcc, False),
        ("GPU", _gpu, False),
        ("backend pycuda", _pycuda, False),
    ]
    findings = []
    for name, check, required in checks:
        try:
            findings.append(check())
        except Exception as error:  # a report is wanted most where much is broken
            findings.append(Finding(name, f"not checked: {_first_line(error)}", "repair what is above first", required))
    return findings


def _python() -> Finding:
    name = f"{platform.python_version()} ({sys.executable})"
    enough = sys.version_info >= MINIMUM_PYTHON
    return Finding("python", name, "" if enough else "use Python 3.11 or newer: make setup PYTHON=python3.12", True)


def _package(module: str, distribution: str, remedy: str = "run `make setup`", required: bool = True) -> Finding:
    """A package's version, after importing it: a broken one is as good as none."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            __import__(module)
        return Finding(distribution, importlib.metadata.version(distribution), "", required)
    except importlib.metadata.PackageNotFoundError:
        return Finding(distribution, "of unknown version", "", required)
    except Exception as error:
        return Finding(distribution, f"not usable: {_first_line(error)}", remedy, required)


def _compiler() -> Finding:
    from rbc_warp.errors import BuildError
    from rbc_warp.warpdrive.build import find_host_compiler

    try:
        compiler = find_host_compiler()
    except BuildError as error:
        problem, _, remedy = str(error).partition("; ")
        return Finding("C++ compiler", problem, remedy, True)
    return Finding("C++ compiler", _version(compiler), required=True)


def _cache() -> Finding:
    from rbc_warp.warpdrive.build import cache_folder

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return Finding("kernel cache", str(folder), required=True)
    except OSError as error:
        return Finding("kernel cache", f"{folder}: {error}", "set RBC_WARP_CACHE to a folder you can write to", True)


def _host() -> Finding:
    """Builds and loads the host's kernels, unless the cache has them."""
    from rbc_warp.errors import BuildError

    try:
        from rbc_warp.warpdrive.host import load_library

        load_library()
    except (BuildError, OSError, ImportError) as error:
        return Finding("backend host", f"cannot run: {_first_line(error)}", "repair what is missing above", True)
    import torch

    return Finding("backend host", f"runs on {torch.get_num_threads()} of {_cores()} threads", required=True)


def _bfloat16() -> Finding:
    import torch

    from rbc_warp.config import Config
    from rbc_warp.training.trainer import choose_precision

    native = choose_precision(Config(), torch.device("cpu")) == torch.bfloat16
    explained = "native: train.precision auto takes it" if native else "not native: train.precision auto is float32"
    return Finding("bfloat16 (CPU)", explained)


def _nvcc() -> Finding:
    from rbc_warp.warpdrive.build import find_nvcc

    nvcc = find_nvcc()
    if nvcc is None:
        return Finding("nvcc", "none", "for a GPU, install the CUDA toolkit and put its bin folder on PATH")
    return Finding("nvcc", _version(nvcc))


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = (
            "torch is a CPU build" if built is None else f"torch is built for CUDA {built}, but finds no GPU or driver"
        )
        return Finding("GPU", f"none ({why})", "use the host backend, or a machine with an NVIDIA GPU and a CUDA torch")
    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    return Finding("GPU", f"{name}, sm_{major}{minor}")


def _pycuda() -> Finding:
    from rbc_warp.warpdrive.wrapper import missing_for_pycuda

    version = _package("pycuda", "pycuda", "run `make setup-gpu`", required=False)
    installed = "not installed" if version.is_missing else f"pycuda {version.found}"
    missing = missing_for_pycuda()
    if missing is None:
        return Finding("backend pycuda", f"runs ({installed})")
    problem, _, remedy = missing.partition("; ")
    return Finding("backend pycuda", f"cannot run ({installed}): {problem}", remedy)


def _version(program: str) -> str:
    """A program's path and the line of its --version that holds a number."""
    try:
        shown = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError as error:
        shown = str(error)
    lines = [line.strip() for line in shown.splitlines() if any(character.isdigit() for character in line)]
    lines = [line for line in lines if "Copyright" not in line and "Built on" not in line]
    return f"{program}: {lines[0] if lines else 'of unknown version'}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def report(findings: list[Finding]) -> str:
    """The findings, one line each, remedies below the lines that need one."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        mark = "ok  " if not finding.is_missing else "MISS" if finding.required else "-   "
        lines.append(f"{mark} {finding.name:<{width}}  {finding.found}")
        if finding.is_missing:
            lines.append(f"     {'':<{width}}  → {finding.remedy}")
    broken = [finding.name for finding in findings if finding.required and finding.is_missing]
    if broken:
        lines.append(f"This machine cannot train yet: {', '.join(broken)}.")
    else:
        lines.append("This machine can train: python run_training.py --config configs/smoke.yaml")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Prints the report; 0 where the host backend can run, else 1."""
    argparse.ArgumentParser(prog="python -m rbc_warp doctor", description=__doc__).parse_args(arguments)
    findings = examine()
    print(report(findings))
    return int(any(finding.required and finding.is_missing for finding in findings))
