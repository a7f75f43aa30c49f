"""Builds the kernels from ``rbc_warp/cuda`` into a cache, once per source, compiler and flags, under a lock."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from rbc_warp.errors import BuildError

SOURCES = Path(__file__).resolve().parents[1] / "cuda"
# Products and sums may not be fused behind the source's back: host and device must round alike.
# Vectors wider than the processor's are only passed within one library: -Wno-psabi.
HOST_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-ffp-contract=off", "-Wno-psabi")
DEBUG_FLAGS = ("-O1", "-g", "-DRBC_CHECK", "-fsanitize=undefined", "-fno-sanitize-recover")
DEVICE_FLAGS = ("--fatbin", "-O3", "-std=c++17", "--fmad=false")


def cache_folder() -> Path:
    """Return the folder of built kernels: ``$RBC_WARP_CACHE``, else the user's cache folder."""
    chosen = os.environ.get("RBC_WARP_CACHE")
    if chosen:
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rbc_warp"
    except RuntimeError:
        raise BuildError("no home folder to keep built kernels in; set RBC_WARP_CACHE to a folder you own") from None


def find_host_compiler() -> str:
    """The C++ compiler: ``$CXX``, else g++ or c++."""
    for name in (os.environ.get("CXX"), "g++", "c++"):
        if name and shutil.which(name):
            return name
    raise BuildError("no C++ compiler found; install g++ 11 or newer (Debian: apt-get install g++) or set CXX to one")


def find_nvcc() -> str | None:
    """The CUDA compiler on PATH, else in ``$CUDA_HOME`` or /usr/local/cuda; None where there is none."""
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_ROOT"), "/usr/local/cuda"]
    found = [shutil.which("nvcc")] + [str(Path(root) / "bin" / "nvcc") for root in roots if root]
    return next((path for path in found if path and os.access(path, os.X_OK)), None)


def build_host(debug: bool = False) -> Path:
    """The shared library of ``host.cpp`` for this machine's processor; built if the cache lacks it."""
    compiler = find_host_compiler()
    flags = (*HOST_FLAGS, *DEBUG_FLAGS) if debug else HOST_FLAGS
    return _build(compiler, flags, SOURCES / "cpu" / "host.cpp", ".so", _processor())


def build_device(architecture: str) -> Path:
    """The fatbin of ``kernels.cu`` for an architecture such as ``sm_90``; built if the cache lacks it.

    Where there is no nvcc, one that any nvcc built before will do.
    """
    flags, source = (*DEVICE_FLAGS, f"-arch={architecture}"), SOURCES / "kernels.cu"
    nvcc = find_nvcc()
    if nvcc is not None:
        return _build(nvcc, flags, source, ".fatbin", architecture)
    built = cache_folder().glob(f"{source.stem}-{_key(architecture, *flags)}-*.fatbin")
    newest = max(built, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise BuildError("nvcc not found; install the CUDA toolkit (conda: cuda-nvcc) and put its bin folder on PATH")
    return newest


def _key(*words: str) -> str:
    """Return what tells apart builds of these sources for something."""
    key = hashlib.sha256("\0".join(words).encode())
    for file in sorted(path for path in SOURCES.rglob("*") if path.is_file()):
        key.update(str(file.relative_to(SOURCES)).encode() + b"\0" + file.read_bytes())
    return key.hexdigest()[:20]


def _build(compiler: str, flags: Sequence[str], source: Path, suffix: str, machine: str) -> Path:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    builder = hashlib.sha256(f"{compiler}\0{version}".encode()).hexdigest()[:8]
    folder = cache_folder()
    target = folder / f"{source.stem}-{_key(machine, *flags)}-{builder}{suffix}"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            if not target.exists():
                _compile(compiler, flags, source, target)
    except OSError as error:
        remedy = "set RBC_WARP_CACHE to a folder you own"
        raise BuildError(f"cannot write built kernels to {folder} ({error}); {remedy}") from error
    return target


def _compile(compiler: str, flags: Sequence[str], source: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / target.name
        command = [compiler, *flags, str(source), "-o", str(built)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise BuildError(f"building {source.name} failed: {' '.join(command)}\n{result.stderr.strip()[-4000:]}")
        os.replace(built, target)


def _processor() -> str:
    """Return what -march=native depends on, so that a cache shared between machines keeps their builds apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return os.uname().machine
    return next((line for line in lines if line.startswith(("flags", "Features"))), os.uname().machine)
