"""The pycuda backend: WarpDrive's PyCUDA managers with our kernels, built into our cache instead of the package.

Importing this module takes hold of the GPU, builds the kernels if the cache lacks them and loads them; whatever stands
against it is raised here. It is imported only when the backend is chosen.
"""

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from pycuda import driver
from warp_drive.managers.pycuda_managers.pycuda_data_manager import CudaTensorHolder, PyCUDADataManager
from warp_drive.managers.pycuda_managers.pycuda_function_manager import PyCUDAFunctionManager
from warp_drive.utils import autoinit_pycuda

from rbc_warp.errors import BackendError
from rbc_warp.warpdrive import tables
from rbc_warp.warpdrive.build import build_device
from rbc_warp.warpdrive.kernels import (
    ADAM_KERNEL,
    ADD_RELU_KERNEL,
    DEFAULT_KERNELS,
    LEARNING_KERNELS,
    LOSS_BLOCKS,
    LOSS_KERNEL,
    MASK_KERNEL,
    NORM_KERNEL,
    NULL,
    PORTIONS,
    SAMPLE_COLUMNS,
    THREADS,
    THREADS_PER_BLOCK,
    Copy,
    Loss,
    Moments,
    TensorData,
    loss_block,
    whole_rows,
)

FIRM_SCRATCH_BYTES = 4 * len(tables.names("SCRATCH"))


class Gpu:
    """torch's GPU as pycuda sees it: the primary context, which torch uses too, streams, and our kernels.

    Everything of pycuda's is held here alone, so that it can be let go in order when the interpreter ends.
    """

    def __init__(self) -> None:
        self.context = autoinit_pycuda.context
        self.functions: dict[str, Any] = {}
        self.launches = 0  #: How many kernels were launched so far.
        self._module: Any = None
        self._streams: dict[int, Any] = {}  # by handle
        # WarpDrive leaves the context on the importing thread's stack until the interpreter ends; a thread that ends
        # with one on its stack ends the process. Here, each call puts it there and takes it away again.
        atexit.unregister(autoinit_pycuda.context.pop)
        if driver.Context.get_current() == self.context:
            self.context.pop()
        atexit.register(self._release)
        theirs, torchs = (d.pci_bus_id() for d in (autoinit_pycuda.device, driver.Device(torch.cuda.current_device())))
        if theirs != torchs:
            raise BackendError(
                f"WarpDrive chose the GPU {theirs} (by CUDA_DEVICE or ~/.cuda_device), torch uses {torchs}; "
                "unset the first, and choose a GPU by CUDA_VISIBLE_DEVICES"
            )
        with self.current_here():
            major, minor = autoinit_pycuda.device.compute_capability()
            self._module = driver.module_from_file(str(build_device(f"sm_{major}{minor}")))
        self.stream = self.new_stream()
        """Where kernels run that are launched from a stream which is not of pycuda's making."""

    @contextmanager
    def current_here(self) -> Iterator[None]:
        """Make the context this thread's, as pycuda wants it, for a moment."""
        self.context.push()
        try:
            yield
        finally:
            self.context.pop()

    def new_stream(self) -> torch.cuda.Stream:
        """Return another stream of pycuda's, as torch knows it; it lives as long as the interpreter."""
        with self.current_here():
            stream = driver.Stream()
        self._streams[stream.handle] = stream
        return torch.cuda.ExternalStream(stream.handle)

    def load(self, name: str) -> None:
        """Find a kernel; its name is then known to :meth:`launch`. Its blocks may have all shared memory there is."""
        if name not in self.functions:
            with self.current_here():
                most = autoinit_pycuda.device.get_attribute(driver.device_attribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
                self.functions[name] = function = self._module.get_function(name)
                function.set_attribute(driver.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, most)

    def launch(self, name: str, arguments: tuple[Any, ...], block: tuple, grid: tuple, shared: int) -> None:
        """Launch a kernel after what torch's current stream was given before, and before what it is given after."""
        self.launches += 1
        current = torch.cuda.current_stream()
        stream = current if current.cuda_stream in self._streams else self.stream
        if stream is not current:
            stream.wait_stream(current)
        with self.current_here():
            ours = self._streams[stream.cuda_stream]
            self.functions[name](*arguments, block=block, grid=grid, shared=shared, stream=ours)
        if stream is not current:
            current.wait_stream(stream)

    def _release(self) -> None:
        """Let go of kernels, streams and context, in this order: pycuda's destructors take the wrong one."""
        torch.cuda.synchronize()
        torch.cuda.set_stream(torch.cuda.default_stream())
        self.context.push()
        self.functions.clear()
        self._module = None
        self._streams.clear()
        self.context.detach()


GPU = Gpu()


class DeviceDataManager(TensorData, PyCUDADataManager):
    """WarpDrive's, with every array a tensor: its own copies would go to another stream than all else."""

    device = torch.device("cuda")
    is_apart = True
    pointer = staticmethod(CudaTensorHolder)


class RbcFunctionManager(PyCUDAFunctionManager):
    """Launches our kernels; their blocks have a fixed number of threads that loop over an environment's agents.

    torch's current stream of the thread that makes one becomes ours, so that nothing has to wait for another stream.
    """

    device = torch.device("cuda")
    loss_parts = LOSS_BLOCKS
    draws_from_rounded = has_adam = True

    def __init__(self, *, num_firms: int, **sizes: int):
        with GPU.current_here():
            super().__init__(**sizes)
        self._block = (THREADS_PER_BLOCK, 1, 1)
        self._scratch_bytes = FIRM_SCRATCH_BYTES * num_firms
        torch.cuda.set_stream(GPU.stream)
        self.initialize_default_functions()

    def initialize_default_functions(self) -> None:
        self.initialize_functions([*DEFAULT_KERNELS, *LEARNING_KERNELS])
        self._default_functions_initialized = True

    def initialize_functions(self, func_names: list[str] | None = None) -> None:
        for name in func_names or []:
            GPU.load(name)
            self._cuda_function_names.append(name)

    def _get_function(self, fname: str) -> Any:
        memory = self._scratch_bytes if fname == "CudaRbcStep" else 0

        def kernel(*arguments: Any, block: tuple, grid: tuple, shared: int = memory) -> None:
            GPU.launch(fname, arguments, block, grid, shared)

        return kernel

    new_stream = staticmethod(GPU.new_stream)

    @staticmethod
    def pointer(tensor: torch.Tensor) -> CudaTensorHolder:
        assert tensor.is_contiguous()
        return CudaTensorHolder(tensor)

    def network(self, dtype: torch.dtype, hidden: int) -> None:
        """There is no kernel that does all."""

    def loss(self, logits: torch.Tensor, loss: Loss) -> None:
        rows, width = logits.shape
        heads = loss.heads
        shape = loss_block(width - 1, len(heads.sizes), logits.stride(0))
        self.get_function(LOSS_KERNEL)(
            np.int32(rows),
            np.int32(shape.rows),
            np.int32(len(heads.sizes)),
            self.pointer(heads.offsets),
            self.pointer(heads.allowed),
            self.pointer(whole_rows(logits)),
            np.int32(logits.stride(0)),
            np.int32(logits.dtype == torch.bfloat16),
            *(self.pointer(loss.sample[name]) for name in SAMPLE_COLUMNS),
            self.pointer(loss.weights),
            self.pointer(loss.statistics),
            block=(THREADS["LOSS"], 1, 1),
            grid=(min(-(-rows // shape.rows), self.loss_parts), 1),
            shared=shape.shared,
        )

    def add_relu(self, x: torch.Tensor, shared: torch.Tensor) -> None:
        rows, columns = x.shape
        self.get_function(ADD_RELU_KERNEL)(
            np.int32(rows),
            np.int32(rows // len(shared)),
            np.int32(columns),
            self.pointer(x),
            np.int32(x.dtype == torch.bfloat16),
            self.pointer(shared),
            block=(THREADS["LAYER"], 1, 1),
            grid=(-(-rows // (THREADS["LAYER"] // 32 * PORTIONS["AT_ONCE"])), 1),
        )

    def mask_and_sum(self, gradient: torch.Tensor, activation: torch.Tensor | None, sums: torch.Tensor) -> None:
        (groups, columns), pitch = sums.shape, gradient.stride(0)
        is_wide = columns % PORTIONS["WIDEST"] == pitch % PORTIONS["WIDEST"] == 0
        taken = 32 * (PORTIONS["WIDEST"] if is_wide else 1)
        self.get_function(MASK_KERNEL)(
            np.int32(len(gradient) // groups),
            np.int32(columns),
            np.int32(pitch),
            np.int32(is_wide),
            CudaTensorHolder(gradient),
            NULL if activation is None else self.pointer(activation),
            np.int32(gradient.dtype == torch.bfloat16),
            self.pointer(sums),
            block=(THREADS["LAYER"], 1, 1),
            grid=(groups, -(-columns // taken)),
            shared=4 * 16 * taken,
        )

    def adam(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        moments: Moments,
        rate: torch.Tensor,
        settings: torch.Tensor,
        norm: torch.Tensor,
        copy: Copy | None,
    ) -> None:
        size, at = np.int32(len(parameter)), self.pointer
        squares = torch.empty(PORTIONS["NORM_BLOCKS"], device=parameter.device)
        self.get_function(NORM_KERNEL)(
            *(size, at(gradient), at(squares), at(moments.steps)),
            block=(THREADS["NORM"], 1, 1),
            grid=(PORTIONS["NORM_BLOCKS"], 1),
            shared=4 * PORTIONS["NORM_BLOCKS"],
        )
        lies: tuple[Any, ...] = (*[np.int32(0)] * 6, NULL, np.int32(0))
        if copy is not None:
            sizes = (copy.first, copy.num_private, copy.inputs, copy.hidden, copy.outputs, copy.gap)
            lies = (*map(np.int32, sizes), at(copy.numbers), np.int32(copy.numbers.dtype == torch.bfloat16))
        vectors = (parameter, gradient, moments.mean, moments.square, squares, moments.steps, rate, settings, norm)
        self.get_function(ADAM_KERNEL)(
            size,
            *map(at, vectors),
            *lies,
            block=(THREADS_PER_BLOCK, 1, 1),
            grid=(-(-len(parameter) // THREADS_PER_BLOCK), 1),
        )
