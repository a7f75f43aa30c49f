"""The pycuda backend: WarpDrive's PyCUDA managers with our kernels, built into our cache instead of the package.

Importing this module creates a CUDA context, so it is imported only when the backend is chosen.
"""

from __future__ import annotations

import numpy as np
import torch
from pycuda import driver
from warp_drive.managers.pycuda_managers.pycuda_data_manager import CudaTensorHolder, PyCUDADataManager
from warp_drive.managers.pycuda_managers.pycuda_function_manager import PyCUDAFunctionManager

from rbc_warp.backends.build import build_device
from rbc_warp.backends.kernels import DEFAULT_KERNELS, LOSS_KERNEL, LOSS_STATISTICS, THREADS_PER_BLOCK, Heads

__all__ = ["RbcFunctionManager", "PyCUDADataManager"]

FIRM_SCRATCH_BYTES = 4 * 4  # kScratchPerFirm floats
LOSS_ROWS_PER_BLOCK = 32


class RbcFunctionManager(PyCUDAFunctionManager):
    """Loads our fatbin; blocks have a fixed number of threads that loop over an environment's agents."""

    device = torch.device("cuda")

    def __init__(self, *, num_firms: int, **sizes):
        super().__init__(**sizes)
        self._block = (THREADS_PER_BLOCK, 1, 1)
        self._scratch_bytes = FIRM_SCRATCH_BYTES * num_firms
        self.load_cuda_from_binary_file(str(build_device(self.arch)), default_functions_included=True)

    def initialize_default_functions(self):
        self.initialize_functions(DEFAULT_KERNELS)
        self._default_functions_initialized = True

    def _get_function(self, fname: str):
        kernel = super()._get_function(fname)
        if fname != "CudaRbcStep":
            return kernel

        def step(*arguments, block, grid):
            kernel(*arguments, block=block, grid=grid, shared=self._scratch_bytes)

        return step

    @staticmethod
    def pointer(tensor: torch.Tensor) -> CudaTensorHolder:
        assert tensor.is_contiguous()
        return CudaTensorHolder(tensor)

    def loss(self, heads: Heads, logits, sample, weights, statistics) -> None:
        """Replaces ``logits`` (rows, actions+1) by the loss gradient; adds the loss statistics to ``statistics``."""
        rows, width = logits.shape
        blocks = (rows + LOSS_ROWS_PER_BLOCK - 1) // LOSS_ROWS_PER_BLOCK
        shared = 4 * LOSS_ROWS_PER_BLOCK * (2 * width + len(heads.sizes))
        kernel = self._cuda_functions[LOSS_KERNEL]
        if shared > 48 * 1024:
            kernel.set_attribute(driver.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
        partial = torch.empty(blocks, len(LOSS_STATISTICS), device=logits.device)
        gradient = logits if logits.dtype == torch.float32 else logits.float()
        kernel(
            np.int32(rows),
            np.int32(len(heads.sizes)),
            self.pointer(heads.offsets),
            self.pointer(heads.allowed),
            self.pointer(gradient),
            *(self.pointer(sample[name]) for name in ("actions", "log_probability", "advantage", "target", "value")),
            self.pointer(weights),
            self.pointer(partial),
            block=(LOSS_ROWS_PER_BLOCK, 1, 1),
            grid=(blocks, 1),
            shared=shared,
        )
        if gradient is not logits:
            logits.copy_(gradient)
        statistics += partial.sum(0)
