"""compute-sanitizer has nothing to say of our kernels; it needs a GPU: ``make sanitize-gpu``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rbc_warp.warpdrive.wrapper import choose_backend

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
TESTS = Path(__file__).parent


def sanitized(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``gpu_kernels.py`` under a tool, every tensor in an allocation of its own, so that bounds are exact.

    initcheck watches torch's kernels too: memory that they write would otherwise count as never written. Errors of API
    calls are not ours: torch asks the driver for what it may lack.
    """
    folder = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    program = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:{folder}/bin:{folder}/compute-sanitizer")
    if program is None:
        pytest.skip("no compute-sanitizer on PATH or in CUDA_HOME/bin; it comes with the CUDA toolkit")
    choose_backend("pycuda")  # builds the kernels, not under the tool
    options = ["--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
    options += [] if tool == "initcheck" else ["--kernel-name", "kns=CudaRbc"]
    options += ["--report-api-errors", "no"] if tool == "memcheck" else []
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": str(TESTS.parent)}
    command = [program, *options, sys.executable, str(TESTS / "gpu_kernels.py"), *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    if "Device not supported" in result.stdout:
        pytest.skip("compute-sanitizer does not support this device, or this virtual machine")
    return result


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_a_tool_finds_nothing(tool: str) -> None:
    result = sanitized(tool)
    assert result.returncode == 0 and "SUMMARY: 0 " in result.stdout, (result.stdout + result.stderr)[-8000:]


@pytest.mark.parametrize(
    "tool, says", [("memcheck", "Invalid __global__ read"), ("initcheck", "Uninitialized __global__")]
)
def test_a_tool_finds_what_is_wrong(tool: str, says: str) -> None:
    result = sanitized(tool, "fault")
    assert result.returncode != 0 and says in result.stdout, (result.stdout + result.stderr)[-8000:]
