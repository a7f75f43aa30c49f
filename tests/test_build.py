"""How kernels are built: for every GPU, once, under a lock, and with a clear word where something is missing."""

from __future__ import annotations

import multiprocessing
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rbc_warp.warpdrive import build


def device_architectures() -> list[str]:
    nvcc = build.find_nvcc()
    if nvcc is None:
        return []
    offered = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    return ["sm_75", "sm_80", "sm_90", *(new for new in ("sm_100", "sm_120") if new in offered)]


@pytest.mark.skipif(build.find_nvcc() is None, reason="there is no nvcc")
@pytest.mark.parametrize("architecture", device_architectures())
def test_nvcc_builds(architecture: str) -> None:
    binary = build.build_device(architecture).read_bytes()
    assert len(binary) > 1000 and int.from_bytes(binary[:4], "little") == 0xBA55ED50  # a fatbin's magic number


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
    assert sorted(path.suffix for path in cache.iterdir()) == ["", ".so"]  # the lock, and no left-overs


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
