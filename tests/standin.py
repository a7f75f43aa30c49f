"""pycuda over the stand-in driver of ``cuda_standin.cpp``, and a torch that takes main memory for a GPU's.

``make test-pycuda`` builds pycuda against it, about two minutes, and runs the tests that need it and those of the GPU.
In that environment importing this module is enough, and ``python tests/standin.py PROGRAM …`` or ``-m MODULE …`` runs
something of ours; with STANDIN_KERNELS=0 kernels are launched, but do nothing.

torch here is a CPU build: its tensors are main memory, its operations run at once. What of ``torch.cuda`` the backend
asks for stands below, on the stand-in's own streams and events.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import runpy
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PYCUDA = ("pycuda==2026.1", "Mako==1.4.3", "pytools==2026.1.1", "siphash24==1.9")


# Building


def build(folder: Path) -> None:
    """Build pycuda and the stand-in into ``folder``, unless pycuda is there; the stand-in always."""
    from rbc_warp.warpdrive.build import HOST_FLAGS, SOURCES, find_host_compiler, find_nvcc

    nvcc = find_nvcc()
    if nvcc is None:
        sys.exit("no nvcc: install the CUDA toolkit, whose headers pycuda is built with; it needs no GPU")
    shown = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False)
    here = [line.split("=", 1)[1] for line in shown.stderr.splitlines() if "_HERE_=" in line]
    binaries = Path(here[0] if here else nvcc).resolve()
    include = next(path for path in (binaries.parent / "include", binaries.parents[1] / "include") if path.is_dir())
    compiler, site, library = find_host_compiler(), folder / "site", folder / "libcuda.so.1"
    folder.mkdir(parents=True, exist_ok=True)
    if not list(site.glob("pycuda/_driver*.so")):
        first = [compiler, "-shared", "-x", "c++", "-", "-Wl,-soname,libcuda.so.1", "-o", folder / "libcuda.so"]
        used = 'extern "C" int cuInit(unsigned) { return 0; }'  # a library of which nothing is used is not linked
        subprocess.run(first, input=used, text=True, check=True)
        options = {"CUDA_ENABLE_CURAND": False, "CUDA_INC_DIR": [str(include)], "CUDADRV_LIB_DIR": [str(folder)]}
        options["CXXFLAGS"] = ["-O1"]
        lines = [f"{name} = {value!r}\n" for name, value in options.items()]
        (folder / ".aksetup-defaults.py").write_text("".join(lines))
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-cache-dir", "--target", site]
        environment = os.environ | {"HOME": str(folder), "PATH": f"{binaries}:{os.environ['PATH']}"}
        subprocess.run([*install, *PYCUDA], check=True, env=environment)
    names = subprocess.run(
        ["nm", "-D", "--undefined-only", *site.glob("pycuda/_driver*.so")], capture_output=True, text=True, check=True
    ).stdout.split()
    flags = [flag for flag in HOST_FLAGS if flag not in ("-O3", "-std=c++17", "-fopenmp")]
    command = [compiler, "-O1", "-std=c++20", "-pthread", "-fvisibility=hidden", *flags, f"-I{SOURCES}", f"-I{include}"]
    source = HERE / "cuda_standin.cpp"
    subprocess.run([*command, "-c", source, "-o", folder / "driver.o"], check=True)
    shown = subprocess.run(["nm", folder / "driver.o"], capture_output=True, text=True, check=True).stdout.split()
    lacking = sorted({name for name in names if name.startswith("cu") and name[2].isupper()} - set(shown))
    lines = [f'int {name}() {{ return standin_lacks("{name}"); }}\n' for name in lacking]
    (folder / "lacking.cpp").write_text('extern "C" {\nint standin_lacks(const char*);\n' + "".join(lines) + "}\n")
    linked = [folder / "driver.o", folder / "lacking.cpp", "-Wl,-soname,libcuda.so.1", "-o", library]
    subprocess.run([compiler, "-shared", "-fPIC", "-pthread", *linked], check=True)


# torch


class Stream:
    """A stream of torch's, on a handle of the stand-in's."""

    def __init__(self, handle: int = 0):
        self.cuda_stream = handle

    def wait_stream(self, other: Stream) -> None:
        with _bound():
            event = ctypes.c_void_p()
            _check(driver().cuEventCreate(ctypes.byref(event), 0))
            _check(driver().cuEventRecord(event, ctypes.c_void_p(other.cuda_stream)))
            _check(driver().cuStreamWaitEvent(ctypes.c_void_p(self.cuda_stream), event, 0))
            _check(driver().cuEventDestroy_v2(event))


class SideStream(Stream):
    """A stream of torch's own, which does not wait for the legacy one."""

    def __init__(self) -> None:
        handle = ctypes.c_void_p()
        with _bound():
            _check(driver().cuStreamCreate(ctypes.byref(handle), 1))
        super().__init__(handle.value)


_of_thread = threading.local()
_library: list[ctypes.CDLL] = []


def driver() -> ctypes.CDLL:
    """Return the stand-in."""
    if not _library:
        _library.append(ctypes.CDLL("libcuda.so.1"))
        _library[0].standin_errors.restype = ctypes.c_char_p
    return _library[0]


def errors() -> str:
    """Return the faults that the stand-in has found so far."""
    return driver().standin_errors().decode()


def _check(result: int) -> None:
    if result:
        raise RuntimeError(f"CUDA error {result}: {errors()}")


@contextlib.contextmanager
def _bound() -> Iterator[None]:
    """The primary context, which torch's runtime binds to any thread that calls it."""
    context = ctypes.c_void_p()
    _check(driver().cuInit(0))
    _check(driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), 0))
    driver().cuCtxPushCurrent_v2(context)
    yield
    driver().cuCtxPopCurrent_v2(ctypes.byref(context))
    _check(driver().cuDevicePrimaryCtxRelease_v2(0))


def _current_stream() -> Stream:
    if not hasattr(_of_thread, "stream"):
        _set_stream(Stream())
    return _of_thread.stream


def _set_stream(stream: Stream) -> None:
    _of_thread.stream = stream
    driver().standin_use(ctypes.c_void_p(stream.cuda_stream), 1)


@contextlib.contextmanager
def on_stream(stream: Stream) -> Iterator[None]:
    """As ``torch.cuda.stream``."""
    before = _current_stream()
    _set_stream(stream)
    yield
    _set_stream(before)


def _count() -> int:
    number = ctypes.c_int()
    driver().cuInit(0)
    return number.value if driver().cuDeviceGetCount(ctypes.byref(number)) == 0 else 0


def _synchronize() -> None:
    with _bound():
        _check(driver().cuCtxSynchronize())


def pretend() -> None:
    """Make torch say that there is a GPU, and speak of its streams to the stand-in."""
    answers = {
        "is_available": lambda: _count() > 0,
        "device_count": _count,
        "init": lambda: _check(driver().cuInit(0)),
        "current_device": lambda: 0,
        "get_device_capability": lambda: (9, 0),
        "get_device_name": lambda: "stand-in",
        "get_device_properties": types.SimpleNamespace,
        "synchronize": _synchronize,
        "current_stream": _current_stream,
        "default_stream": Stream,
        "set_stream": _set_stream,
        "stream": on_stream,
        "ExternalStream": Stream,
        "max_memory_allocated": lambda: 0,
        "mem_get_info": lambda: (1 << 40, 1 << 40),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch.backends.cuda.is_built = lambda: True
    sys.meta_path.insert(0, _InMainMemory())


class _InMainMemory:
    """Lets the backend's module keep its arrays where this torch can, and counts tell them apart, once imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in ("rbc_warp.warpdrive.pycuda", "rbc_warp.training.device_path"):
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        run = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            if name.endswith("device_path"):
                module.DevicePath = in_main_memory(module.DevicePath)
            else:
                module.DeviceDataManager.device = module.RbcFunctionManager.device = torch.device("cpu")
                module.RbcFunctionManager.has_adam = False  # whose steps would not be the host's, bit for bit

        spec.loader.exec_module = exec_module
        return spec


class OnDevice(TorchFunctionMode):
    """Marks what is asked for on a ``torch.device``, so that :class:`Path` can tell it from main memory's own.

    A device is passed on as ``cpu:0``, which to torch is the same as ``cpu``.
    """

    def __init__(self, path: Any):
        super().__init__()
        self.path = path

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        mark = torch.device("cpu", 0)
        device = kwargs.get("device")
        if func is torch.tensor and isinstance(device, torch.device):
            return func(*args, **kwargs | {"device": None}).to(mark, copy=True)
        if isinstance(device, torch.device):
            kwargs = kwargs | {"device": mark}
        if args and isinstance(args[0], torch.Tensor) and func in (torch.Tensor.to, torch.Tensor.cpu):
            to_device = any(isinstance(a, torch.device) for a in args[1:])
            there = self.path.is_on_device(args[0])
            if to_device and not there:
                args = tuple(mark if isinstance(a, torch.device) else a for a in args)
                kwargs = kwargs | {"copy": True}
            elif there and (func is torch.Tensor.cpu or "cpu" in args[1:]):
                self.path.read_back()
                with torch._C.DisableTorchFunctionSubclass(), torch.utils._python_dispatch._disable_current_modes():
                    return args[0].clone()
        if func in (torch.Tensor.tolist, torch.Tensor.numpy) and self.path.is_on_device(args[0]):
            self.path.read_back()
        return func(*args, **kwargs)


def in_main_memory(base: Any) -> Any:
    """Return ``DevicePath`` for tensors in main memory, which also tells the stand-in what torch reads and writes.

    What came from NumPy, or was made without naming a device, is main memory's own; all else is the device's.
    """

    class Path(base):
        def __init__(self) -> None:
            super().__init__()
            self.of_main_memory: dict[int, StorageWeakRef] = {}
            self.functions = OnDevice(self)
            self.mark: bool | None = None

        def __enter__(self) -> Path:
            self.functions.__enter__()
            return super().__enter__()

        def __exit__(self, *error: Any) -> None:
            super().__exit__(*error)
            self.functions.__exit__(*error)

        def is_on_device(self, tensor: torch.Tensor) -> bool:
            known = self.of_main_memory.get(tensor.untyped_storage()._cdata)
            return known is None or known.expired()

        def read_back(self) -> None:
            self.readbacks += 1
            driver().standin_refuses(b"a read-back")

        def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
            device = (kwargs or {}).get("device")
            self.mark = None if device is None else device.index == 0
            return super().__torch_dispatch__(func, types, args, kwargs)

        def note(self, func: Any, given: list, before: list[bool], made: list) -> None:
            name = func._schema.name.removeprefix("aten::")
            if name == "lift_fresh" or not (any(before) if self.mark is None else self.mark):
                for storage in [tensor.untyped_storage() for tensor in made]:
                    self.of_main_memory[storage._cdata] = StorageWeakRef(storage)
            counted = self.uploads, self.readbacks
            super().note(func, given, before, made)
            if counted != (self.uploads, self.readbacks):
                driver().standin_refuses(f"{name} with main memory".encode())
            if func.is_view:
                return
            stream = ctypes.c_void_p(_current_stream().cuda_stream)
            driver().standin_operation(stream)
            written = {id(tensor) for tensor in made}
            for tensor in [tensor for tensor in given if id(tensor) not in written] + made:
                storage = tensor.untyped_storage()
                if self.is_on_device(tensor) and storage.nbytes():
                    place, size = ctypes.c_size_t(storage.data_ptr()), ctypes.c_size_t(storage.nbytes())
                    driver().standin_access(stream, place, size, id(tensor) in written, name.encode())

    return Path


def published_counts(precision: str) -> dict[str, int]:
    """Return what a published iteration asks of the device; kernels are launched, but do nothing."""
    from rbc_warp.commands.bench import published_config
    from rbc_warp.training import fused
    from rbc_warp.training.device_path import count_iteration
    from rbc_warp.training.recorder import Recorder
    from rbc_warp.training.trainer import RbcTrainer
    from rbc_warp.warpdrive import pycuda

    blocks = fused.BLOCK_BYTES["cpu"]
    fused.BLOCK_BYTES["cpu"] = fused.BLOCK_BYTES["cuda"]
    pycuda.RbcFunctionManager.has_adam = True
    driver().standin_run_kernels(0)
    trainer = RbcTrainer(published_config(precision=precision), "pycuda", recorder=Recorder())
    counts = count_iteration(trainer)
    driver().standin_run_kernels(1)
    pycuda.RbcFunctionManager.has_adam = False
    fused.BLOCK_BYTES["cpu"] = blocks
    return counts


IS_HERE = bool(os.environ.get("RBC_WARP_STANDIN"))  # make test-pycuda says so
if IS_HERE:
    pretend()


@pytest.fixture(autouse=True)
def no_faults() -> Iterator[None]:
    """With ``-p standin``: after each test, the stand-in must have found no fault."""
    yield
    if IS_HERE:
        found = errors()
        driver().standin_forget_errors()
        assert found == ""


if __name__ == "__main__":
    if sys.argv[1] == "build":
        build(Path(sys.argv[2]).resolve())
    else:
        driver().standin_run_kernels(int(os.environ.get("STANDIN_KERNELS", "1")))
        sys.path[0] = str(ROOT)
        del sys.argv[0]
        if sys.argv[0] == "-m":
            del sys.argv[0]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
