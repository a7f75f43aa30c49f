"""Builds the kernels from ``rbc_warp/cuda`` into a cache, once per source, compiler and flags, under a lock.

A SHA-256 stands beside each built file, in the form of ``sha256sum``. A file that does not agree with it is built
again, so a broken cache mends itself; one that agrees needs no compiler.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock

from rbc_warp.errors import BuildError

SOURCES = Path(__file__).resolve().parents[1] / "cuda"
# Products and sums may not be fused behind the source's back: host and device must round alike.
# Vectors wider than the processor's are only passed within one library: -Wno-psabi.
HOST_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-ffp-contract=off", "-Wno-psabi")
DEBUG_FLAGS = ("-O1", "-g", "-DRBC_CHECK", "-fsanitize=undefined", "-fno-sanitize-recover")
NVCC_VARIABLES = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS")  # whose flags nvcc takes beside those it is given
DEVICE_FLAGS = ("--fatbin", "-O3", "-std=c++17", "--fmad=false")
BUILD_PREFIX = "building-"
OWN_CACHE = "set RBC_WARP_CACHE to a folder you own"


def cache_folder() -> Path:
    """Return the folder of built kernels: ``$RBC_WARP_CACHE``, else the user's cache folder."""
    chosen = os.environ.get("RBC_WARP_CACHE")
    if chosen:
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rbc_warp"
    except RuntimeError:
        raise BuildError(f"no home folder to keep built kernels in; {OWN_CACHE}") from None


class _NoCompiler(BuildError):
    """There is no compiler; what the cache holds may do without one."""


def find_host_compiler() -> str:
    """Return the C++ compiler: ``$CXX``, else g++ or c++. Raises BuildError where there is none."""
    chosen = os.environ.get("CXX")
    if chosen and not shutil.which(chosen):
        raise BuildError(f"CXX = {chosen!r} is no program here; set CXX to a C++ compiler, or unset it to use g++")
    for name in (chosen, "g++", "c++"):
        if name and shutil.which(name):
            return name
    raise _NoCompiler("no C++ compiler found; install g++ 11 or newer (Debian: apt-get install g++) or set CXX to one")


def find_nvcc() -> str | None:
    """The CUDA compiler on PATH, else in ``$CUDA_HOME`` or /usr/local/cuda; None where there is none."""
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_ROOT"), "/usr/local/cuda"]
    found = [shutil.which("nvcc")] + [str(Path(root) / "bin" / "nvcc") for root in roots if root]
    return next((path for path in found if path and os.access(path, os.X_OK)), None)


def build_host(debug: bool = False) -> Path:
    """The shared library of ``host.cpp`` for this machine's processor; built if the cache lacks it."""
    flags = (*HOST_FLAGS, *DEBUG_FLAGS) if debug else HOST_FLAGS
    return _build(find_host_compiler, flags, SOURCES / "cpu" / "host.cpp", ".so", _processor())


def build_device(architecture: str) -> Path:
    """The fatbin of ``kernels.cu`` for an architecture such as ``sm_90``; built if the cache lacks it."""
    flags = (*DEVICE_FLAGS, f"-arch={architecture}")
    machine = "\0".join([architecture, *(os.environ.get(name, "") for name in NVCC_VARIABLES)])
    return _build(_needed_nvcc, flags, SOURCES / "kernels.cu", ".fatbin", machine)


def discard(built: Path) -> None:
    """Let a built file count as broken: the next build makes it anew. To be called where it does not load."""
    try:
        _digest_path(built).unlink(missing_ok=True)
    except OSError as error:
        raise BuildError(f"{built} does not load, and cannot be replaced ({error}); {OWN_CACHE}") from error


def _needed_nvcc() -> str:
    nvcc = find_nvcc()
    if nvcc is None:
        raise _NoCompiler("nvcc not found; install the CUDA toolkit (conda: cuda-nvcc) and put its bin folder on PATH")
    return nvcc


def _build(find_compiler: Callable[[], str], flags: Sequence[str], source: Path, suffix: str, machine: str) -> Path:
    """Return the built file in the cache, ``<source>-<what is built>-<by what><suffix>``."""
    files = sorted(path for path in SOURCES.rglob("*") if path.is_file())
    content = [part for file in files for part in (str(file.relative_to(SOURCES)).encode(), file.read_bytes())]
    folder, name = cache_folder(), f"{source.stem}-{_hash(machine.encode(), *map(str.encode, flags), *content)}"
    try:
        compiler = find_compiler()
    except _NoCompiler:
        built = next((path for path in sorted(folder.glob(f"{name}-*{suffix}")) if _is_whole(path)), None)
        if built is None:
            raise
        return built
    target = folder / f"{name}-{_hash(compiler.encode(), _version(compiler))}{suffix}"
    try:
        if _is_whole(target):
            return target
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            if not _is_whole(target):
                _compile(compiler, flags, source, target)
    except OSError as error:
        raise BuildError(f"cannot write built kernels to {folder} ({error}); {OWN_CACHE}") from error
    return target


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _version(compiler: str) -> bytes:
    try:
        return subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    except OSError as error:
        raise BuildError(f"{compiler}: cannot be run ({error.strerror}); set CXX to a C++ compiler") from error


def _digest_path(built: Path) -> Path:
    return built.with_name(f"{built.name}.sha256")


def _digest(built: Path) -> str:
    return f"{hashlib.sha256(built.read_bytes()).hexdigest()}  {built.name}\n"


def _is_whole(built: Path) -> bool:
    """Return whether a built file is what its compiler wrote."""
    try:
        return built.is_file() and _digest_path(built).read_text(errors="replace") == _digest(built)
    except FileNotFoundError:
        return False


def _compile(compiler: str, flags: Sequence[str], source: Path, target: Path) -> None:
    """Build under the cache's lock, so a build folder that is there already is a killed build's."""
    for left in target.parent.glob(f"{BUILD_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=BUILD_PREFIX, dir=target.parent) as folder:
        built = Path(folder) / target.name
        command = [compiler, *flags, str(source), "-o", str(built)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise BuildError(f"building {source.name} failed: {' '.join(command)}\n{result.stderr.strip()[-4000:]}")
        _digest_path(built).write_text(_digest(built))
        for file in (built, _digest_path(built)):  # the hash last: a library without one is built anew
            _sync(file)
            os.replace(file, target.with_name(file.name))
        _sync(target.parent)


def _sync(path: Path) -> None:
    """Put a file's content, or a folder's entries, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _processor() -> str:
    """Return what -march=native depends on, so that a cache shared between machines keeps their builds apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return os.uname().machine
    return next((line for line in lines if line.startswith(("flags", "Features"))), os.uname().machine)
