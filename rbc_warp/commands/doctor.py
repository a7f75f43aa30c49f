"""``python -m rbc_warp doctor``: what this machine can run, and the remedy for what is missing."""

import argparse
import contextlib
import importlib.metadata
import io
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rbc_warp.commands.launch import num_cores
from rbc_warp.config.shipped import IS_INSTALLED, launcher
from rbc_warp.errors import WARPDRIVE

MINIMUM_PYTHON = (3, 11)
SETUP = "" if IS_INSTALLED else "`make setup`, or "


class Missing(Exception):
    """A check that failed: what was found instead, and the remedy."""


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``required``: training on the CPU needs it; the rest is for a GPU."""

    name: str
    required: bool
    found: str
    remedy: str = ""

    @property
    def is_missing(self) -> bool:
        return bool(self.remedy)


def examine() -> list[Finding]:
    """Look at everything, in the order of the report. Nothing is installed and only the kernel cache is written."""
    checks = [
        ("python", True, _python),
        ("torch", True, lambda: _package("torch", "torch")),
        ("numpy", True, lambda: _package("numpy", "numpy")),
        ("rl-warp-drive", True, lambda: _package("warp_drive", "rl-warp-drive", f"run {SETUP}`{WARPDRIVE}`")),
        ("C++ compiler", True, lambda: _compiler()),
        ("kernel cache", True, _cache),
        ("backend host", True, _host),
        ("memory and disk", True, _room),
        ("bfloat16 (CPU)", False, _bfloat16),
        ("nvcc", False, _nvcc),
        ("GPU", False, lambda: _gpu()),
        ("backend pycuda", False, _pycuda),
    ]
    findings = []
    for name, required, check in checks:
        try:
            findings.append(Finding(name, required, check()))
        except Missing as missing:
            findings.append(Finding(name, required, *missing.args))
        except Exception as error:  # a report is wanted most where much is broken
            problem = f"not checked: {_first_line(error)}"
            findings.append(Finding(name, required, problem, "repair what is above first"))
    return findings


def _python() -> str:
    name = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info < MINIMUM_PYTHON:
        raise Missing(name, "use Python 3.11 or newer: make setup PYTHON=python3.12")
    return name


def _package(module: str, distribution: str, remedy: str = f"run {SETUP}`pip install` for it") -> str:
    """A package's version, after importing it: a broken one is as good as none."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            __import__(module)
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"
    except Exception as error:
        raise Missing(f"not usable: {_first_line(error)}", remedy) from error


def _compiler() -> str:
    from rbc_warp.errors import BuildError
    from rbc_warp.warpdrive.build import find_host_compiler

    try:
        return _version(find_host_compiler())
    except BuildError as error:
        raise Missing(*str(error).split("; ", 1)) from error


def _cache() -> str:
    from rbc_warp.errors import BuildError
    from rbc_warp.warpdrive.build import cache_folder

    try:
        folder = cache_folder()
    except BuildError as error:
        raise Missing(*str(error).split("; ", 1)) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return str(folder)
    except OSError as error:
        raise Missing(f"{folder}: {error}", "set RBC_WARP_CACHE to a folder you can write to") from error


def _host() -> str:
    """Build and load the host's kernels, unless the cache has them."""
    try:
        import torch

        from rbc_warp.warpdrive.host import load_library

        load_library()
    except Exception as error:
        raise Missing(f"cannot run: {_first_line(error)}", "repair what is missing above") from error
    return f"runs on {torch.get_num_threads()} of {num_cores()} threads"


def _room() -> str:
    """What the shipped configuration needs, against what there is."""
    from rbc_warp.config import load_config
    from rbc_warp.errors import MachineError
    from rbc_warp.runs.footprint import available_memory, check, files, memory, size_text

    config = load_config("rbc")
    try:
        needed = check([*memory(config, "host"), files(config)], Path("experiment"))
    except MachineError as error:
        raise Missing(*str(error).rsplit("; ", 1)) from error
    there = available_memory()
    return f"{size_text(there) if there else 'unknown'} of memory free; configs/rbc.yaml needs {needed}"


def _bfloat16() -> str:
    import torch

    from rbc_warp.config import Config
    from rbc_warp.training.trainer import choose_precision

    native = choose_precision(Config(), torch.device("cpu")) == torch.bfloat16
    return "native: train.precision auto takes it" if native else "not native: train.precision auto is float32"


def _nvcc() -> str:
    from rbc_warp.warpdrive.build import find_nvcc

    nvcc = find_nvcc()
    if nvcc is None:
        raise Missing("none", "for a GPU, install the CUDA toolkit and put its bin folder on PATH")
    return _version(nvcc)


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"torch is built for CUDA {built}, but finds no GPU or driver" if built else "torch is a CPU build"
        raise Missing(f"none ({why})", "use the host backend, or a machine with an NVIDIA GPU and a CUDA torch")
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, sm_{major}{minor}"


def _pycuda() -> str:
    from rbc_warp.warpdrive.wrapper import missing_for_pycuda

    try:
        installed = f"pycuda {_package('pycuda', 'pycuda')}"
    except Missing:
        installed = "not installed"
    if missing := missing_for_pycuda():
        problem, _, remedy = missing.partition("; ")
        raise Missing(f"cannot run ({installed}): {problem}", remedy)
    return f"runs ({installed})"


def _version(program: str) -> str:
    """A program's path and the line of its --version that holds a number."""
    shown = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    lines = [line.strip() for line in shown.splitlines() if any(character.isdigit() for character in line)]
    lines = [line for line in lines if "Copyright" not in line and "Built on" not in line]
    return f"{program}: {lines[0] if lines else 'of unknown version'}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def main(arguments: list[str] | None = None) -> int:
    """Print the findings, remedies below the lines that need one; return 0 where the host backend can run, else 1."""
    argparse.ArgumentParser(prog="python -m rbc_warp doctor", description=__doc__).parse_args(arguments)
    findings = examine()
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = "ok" if not finding.is_missing else "MISS" if finding.required else "-"
        print(f"{mark:<4} {finding.name:<{width}}  {finding.found}")
        if finding.is_missing:
            print(f"     {'':<{width}}  → {finding.remedy}")
    broken = [finding.name for finding in findings if finding.required and finding.is_missing]
    if broken:
        print(f"This machine cannot train yet: {', '.join(broken)}.")
    else:
        print(f"This machine can train: {launcher('train')} --config configs/smoke.yaml")
    return int(bool(broken))
