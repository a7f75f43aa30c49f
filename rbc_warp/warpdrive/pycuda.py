"""The pycuda backend: WarpDrive's PyCUDA managers with our kernels, built into our cache instead of the package.

Importing this module creates a CUDA context, so it is imported only when the backend is chosen.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pycuda import driver
from warp_drive.managers.pycuda_managers.pycuda_data_manager import CudaTensorHolder, PyCUDADataManager
from warp_drive.managers.pycuda_managers.pycuda_function_manager import PyCUDAFunctionManager

from rbc_warp.warpdrive import tables
from rbc_warp.warpdrive.build import build_device
from rbc_warp.warpdrive.kernels import (
    DEFAULT_KERNELS,
    LOSS_KERNEL,
    LOSS_STATISTICS,
    SAMPLE_COLUMNS,
    SHARED_BYTES,
    THREADS_PER_BLOCK,
    Loss,
    loss_block,
    shared_array,
)

FIRM_SCRATCH_BYTES = 4 * len(tables.names("SCRATCH"))


class DeviceDataManager(PyCUDADataManager):
    """WarpDrive's, without its notes on casts, and with arrays under two names."""

    def __init__(self, shared: Mapping[str, str] | None = None, **sizes: int):
        self.shared = dict(shared or {})
        super().__init__(**sizes)

    def _to_device(self, name: str, name_on_device: str | None = None, torch_accessible: bool = False) -> None:
        tensor = shared_array(self, name_on_device or name)
        if tensor is None:
            super()._to_device(name, name_on_device, torch_accessible)
            return
        self._device_data_via_torch[name] = tensor
        self._device_data_pointer[name] = CudaTensorHolder(tensor)

    def _type_warning_helper(self, *unused: Any, **unused_too: Any) -> None:
        """Say nothing: 64-bit values become 32-bit ones on purpose."""


class RbcFunctionManager(PyCUDAFunctionManager):
    """Loads our fatbin; blocks have a fixed number of threads that loop over an environment's agents."""

    device = torch.device("cuda")

    def __init__(self, *, num_firms: int, **sizes: int):
        super().__init__(**sizes)
        self._block = (THREADS_PER_BLOCK, 1, 1)
        self._scratch_bytes = FIRM_SCRATCH_BYTES * num_firms
        self.load_cuda_from_binary_file(str(build_device(self.arch)), default_functions_included=True)

    def initialize_default_functions(self) -> None:
        self.initialize_functions(DEFAULT_KERNELS)
        self._default_functions_initialized = True

    def _get_function(self, fname: str) -> Any:
        kernel = super()._get_function(fname)
        if fname != "CudaRbcStep":
            return kernel

        def step(*arguments: Any, block: tuple[int, int, int], grid: tuple[int, int]) -> None:
            kernel(*arguments, block=block, grid=grid, shared=self._scratch_bytes)

        return step

    @staticmethod
    def pointer(tensor: torch.Tensor) -> CudaTensorHolder:
        assert tensor.is_contiguous()
        return CudaTensorHolder(tensor)

    def network(self, dtype: torch.dtype, hidden: int) -> None:
        """There is no kernel that does all."""

    def loss(self, logits: torch.Tensor, loss: Loss) -> None:
        rows, width = logits.shape
        heads = loss.heads
        rows_per_block, shared = loss_block(width, len(heads.sizes))
        blocks = (rows + rows_per_block - 1) // rows_per_block
        kernel = self._cuda_functions[LOSS_KERNEL]
        if shared > SHARED_BYTES:
            kernel.set_attribute(driver.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
        partial = torch.empty(blocks, len(LOSS_STATISTICS), device=logits.device)
        gradient = logits if logits.dtype == torch.float32 else logits.float()
        kernel(
            np.int32(rows),
            np.int32(len(heads.sizes)),
            self.pointer(heads.offsets),
            self.pointer(heads.allowed),
            self.pointer(gradient),
            *(self.pointer(loss.sample[name]) for name in SAMPLE_COLUMNS),
            self.pointer(loss.weights),
            self.pointer(partial),
            block=(rows_per_block, 1, 1),
            grid=(blocks, 1),
            shared=shared,
        )
        if gradient is not logits:
            logits.copy_(gradient)
        loss.statistics.add_(partial.sum(0))
