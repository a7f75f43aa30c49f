"""How kernels are built: for every GPU, once, under a lock, and with a clear word where something is missing."""

from __future__ import annotations

import multiprocessing
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rbc_warp.warpdrive import build, host
from rbc_warp.warpdrive.kernels import SHARED_BYTES

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
MOST_REGISTERS = 128
"""Of a thread, so that four blocks of THREADS_PER_BLOCK fit into a multiprocessor's 65,536."""


@pytest.mark.skipif(build.find_nvcc() is None, reason="there is no nvcc")
@pytest.mark.parametrize(
    "architecture", [name if name == "sm_90" else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]
)
def test_kernels_fit_the_gpu_without_spills(architecture: str, tmp_path: Path) -> None:
    """nvcc builds them, and ptxas reports no spilled register and no more than a block has."""
    nvcc, output = build.find_nvcc(), tmp_path / "kernels.fatbin"
    assert nvcc is not None
    offered = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    if architecture not in offered:
        pytest.skip(f"this nvcc does not know {architecture}")
    command = [nvcc, *build.DEVICE_FLAGS, f"-arch={architecture}", "-Xptxas", "-v", "-o", str(output)]
    built = subprocess.run([*command, str(build.SOURCES / "kernels.cu")], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert int.from_bytes(output.read_bytes()[:4], "little") == 0xBA55ED50  # a fatbin's magic number
    report = built.stdout + built.stderr
    kernels = set(
        re.findall(r"__global__ void (?:__launch_bounds__\(.*?\)\s+)?(\w+)", (build.SOURCES / "kernels.cu").read_text())
    )
    assert set(re.findall(r"Compiling entry function '(\w+)'", report)) == kernels
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(spills) >= len(kernels) and set(spills) == {("0", "0")}, report
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", report)]
    assert len(registers) == len(kernels) and max(registers) <= MOST_REGISTERS, report
    assert all(int(size) <= SHARED_BYTES for size in re.findall(r"(\d+) bytes smem", report)), report


def test_a_device_build_depends_on_the_variables_of_nvcc(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = fake_compiler(tmp_path, 'echo built > "$out"\n')
    monkeypatch.setattr(build, "find_nvcc", lambda: str(compiler))
    paths = {build.build_device("sm_90"), build.build_device("sm_90")}
    for name in ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"):
        monkeypatch.setenv(name, "--maxrregcount=32")
        paths.add(build.build_device("sm_90"))
        monkeypatch.delenv(name)
    assert len(paths) == 3


def fake_compiler(folder: Path, body: str) -> Path:
    """A compiler that counts its calls in ``calls`` and then runs ``body``, where $out is what it should write."""
    path = folder / "compiler"
    path.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo 1.0 && exit\n'
        f'echo "$@" >> "{folder}/calls"\n'
        'while [ $# -gt 0 ]; do [ "$1" = -o ] && out=$2; shift; done\n' + body
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RBC_WARP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def build_and_check(queue: Any) -> None:
    path = build.build_host()
    queue.put((str(path), path.read_text()))


def test_processes_that_build_at_once_build_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "CXX", str(fake_compiler(tmp_path, 'sleep 0.3; echo half > "$out"; sleep 0.3; echo >> "$out"\n'))
    )
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=build_and_check, args=(queue,)) for _ in range(3)]
    for process in processes:
        process.start()
    built = {queue.get(timeout=20) for _ in processes}
    for process in processes:
        process.join()
    assert len(built) == 1 and built.pop()[1] == "half\n\n"
    assert len((tmp_path / "calls").read_text().splitlines()) == 1
    assert sorted(path.suffix for path in cache.iterdir()) == ["", ".sha256", ".so"]  # the lock, and no left-overs


def test_a_build_depends_on_source_compiler_and_flags(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = fake_compiler(tmp_path, 'echo built > "$out"\n')
    monkeypatch.setenv("CXX", str(compiler))
    paths = [build.build_host(), build.build_host(), build.build_host(debug=True)]
    compiler.write_text(compiler.read_text().replace("echo 1.0", "echo 2.0"))
    paths.append(build.build_host())
    sources = tmp_path / "sources"
    shutil.copytree(build.SOURCES, sources)
    monkeypatch.setattr(build, "SOURCES", sources)
    paths.append(build.build_host())
    with open(sources / "economy.h", "a") as header:
        header.write("\n")
    paths.append(build.build_host())
    assert paths[0] == paths[1] and paths[3] == paths[4] and len(set(paths)) == 4
    flags = (tmp_path / "calls").read_text()
    assert "-ffp-contract=off" in flags and "fast-math" not in flags


@pytest.mark.parametrize("damage", [b"", b"built\n"[:3], b"\x7fELF of another machine", None], ids=str)
def test_a_broken_cache_is_built_again_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | None
) -> None:
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path, 'echo built > "$out"\n')))
    path = build.build_host()
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    assert [build.build_host().read_bytes() for _ in range(3)] == [b"built\n"] * 3
    assert len((tmp_path / "calls").read_text().splitlines()) == 2
    path.with_name(f"{path.name}.sha256").write_bytes(b"\xff\x00")
    assert build.build_host() == path and len((tmp_path / "calls").read_text().splitlines()) == 3


def test_a_library_that_does_not_load_is_built_again_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole.so"
    source = tmp_path / "whole.cpp"
    source.write_text('extern "C" int answer() { return 42; }\n')
    subprocess.run([build.find_host_compiler(), "-shared", "-fPIC", str(source), "-o", str(whole)], check=True)
    body = f'[ $(wc -l < "{tmp_path}/calls") -lt 2 ] && echo foreign > "$out" || cp "{whole}" "$out"\n'
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path, body)))
    assert host.load_library().answer() == 42
    assert len((tmp_path / "calls").read_text().splitlines()) == 2
    compiler = fake_compiler(tmp_path, 'echo foreign > "$out"\n')
    compiler.write_text(
        compiler.read_text().replace("echo 1.0", "echo 2.0")
    )  # another file, for dlopen keeps the first
    with pytest.raises(build.BuildError, match="the kernels are built but do not load"):
        host.load_library()


def test_a_warm_cache_needs_no_compiler(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path, 'echo built > "$out"\n')))
    path = build.build_host()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert build.build_host() == path
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler found"):
        build.build_host(debug=True)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match="CXX = 'no-such-compiler' is no program here; set CXX to a"):
        build.build_host()


def test_what_killed_builds_left_is_swept(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "building-killed").mkdir(parents=True)
    (cache / "building-killed" / "host.so").write_text("half")
    (cache / "mine").mkdir()
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path, 'echo built > "$out"\n')))
    build.build_host()
    assert sorted(path.name for path in cache.iterdir() if path.is_dir()) == ["mine"]


def test_a_failed_build_is_reported_and_leaves_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = 'echo partial > "$out"; echo "economy.h:1: error: no such thing" >&2; exit 1\n'
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path, body)))
    with pytest.raises(build.BuildError, match=r"building host\.cpp failed: (?s:.*)no such thing"):
        build.build_host()
    assert [path.name for path in cache.iterdir()] == ["lock"]


def test_a_kernel_that_was_built_needs_no_nvcc(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = str(fake_compiler(tmp_path, 'echo built > "$out"\n'))
    monkeypatch.setattr(build, "find_nvcc", lambda: nvcc)
    built = build.build_device("sm_90")
    monkeypatch.setattr(build, "find_nvcc", lambda: None)
    assert build.build_device("sm_90") == built
    with pytest.raises(build.BuildError, match="nvcc not found"):
        build.build_device("sm_80")


def test_what_is_missing_for_a_build_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    not_a_folder = tmp_path / "file"
    not_a_folder.write_text("")
    monkeypatch.setenv("RBC_WARP_CACHE", str(not_a_folder))
    with pytest.raises(build.BuildError, match=f"cannot write built kernels to {not_a_folder}.* set RBC_WARP_CACHE"):
        build.build_host()
    monkeypatch.setattr(build, "find_nvcc", lambda: None)
    with pytest.raises(build.BuildError, match="nvcc not found; install the CUDA toolkit"):
        build.build_device("sm_90")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler found; install g\+\+ 11 or newer"):
        build.build_host()


def test_the_cache_folder_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RBC_WARP_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert build.cache_folder() == tmp_path / "xdg" / "rbc_warp"
    monkeypatch.setenv("RBC_WARP_CACHE", str(tmp_path / "own"))
    assert build.cache_folder() == tmp_path / "own"


def test_a_user_without_a_home_folder_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("RBC_WARP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(build.BuildError, match="no home folder to keep built kernels in; set RBC_WARP_CACHE"):
        build.build_host()
