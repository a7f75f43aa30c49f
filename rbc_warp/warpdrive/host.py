"""The host backend: WarpDrive's managers on the CPU. "Device memory" is torch tensors; kernels are C++ functions."""

import ctypes
from typing import Any

import numpy as np
import torch
from warp_drive.managers.function_manager import CUDAFunctionManager

from rbc_warp.errors import BuildError
from rbc_warp.warpdrive.build import build_host, discard
from rbc_warp.warpdrive.kernels import (
    DEFAULT_KERNELS,
    LOSS_KERNEL,
    SAMPLE_COLUMNS,
    Layers,
    Loss,
    TensorData,
)

# Below so many agents in all environments, waking a second thread costs more than it saves.
SMALL_WORK = 4096
FUSED_LAYERS = ("private", "weight2", "bias2", "weight3", "bias3")


class HostDataManager(TensorData):
    """WarpDrive's, in main memory."""

    device = torch.device("cpu")
    is_apart = False

    @staticmethod
    def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
        return ctypes.c_void_p(tensor.data_ptr())


class HostFunction:
    """A C++ function behind the call that WarpDrive makes to a CUDA kernel."""

    _CONVERSIONS: dict[type, Any] = {
        np.int32: ctypes.c_int32,
        np.float32: ctypes.c_float,
        np.uintp: ctypes.c_void_p,
    }

    def __init__(self, function: Any, num_agents: int):
        self._function = function
        self._function.restype = None
        self._num_agents = num_agents

    def __call__(self, *arguments: Any, block: Any = None, grid: tuple[int, int] = (1, 1), shared: int = 0) -> None:
        num_envs = int(grid[0])
        converted = [self._CONVERSIONS[type(a)](a.item()) if type(a) in self._CONVERSIONS else a for a in arguments]
        self._function(num_envs, threads_for(num_envs * self._num_agents), *converted)


def threads_for(work: int) -> int:
    """torch's number of threads, or one where the work is too small to share."""
    return torch.get_num_threads() if work >= SMALL_WORK else 1


class HostFunctionManager(CUDAFunctionManager):
    """Loads the C++ library; one call serves all environments of a "grid"."""

    device = torch.device("cpu")
    loss_parts = 1
    draws_from_rounded = False
    has_adam = False

    def __init__(self, **sizes: int):
        super().__init__(**sizes)
        self._functions: dict[str, HostFunction] = {}
        self.library = load_library()

    def initialize_default_functions(self) -> None:
        self.initialize_functions(DEFAULT_KERNELS)
        self._default_functions_initialized = True

    def initialize_functions(self, func_names: list[str] | None = None) -> None:
        for name in func_names or []:
            self._functions[name] = HostFunction(getattr(self.library, name), self._num_agents)

    def initialize_shared_constants(self, *unused: Any, **unused_too: Any) -> None:
        """Constants are ordinary arrays here."""

    def _get_function(self, fname: str) -> HostFunction:
        return self._functions[fname]

    @staticmethod
    def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
        assert tensor.is_contiguous()
        return ctypes.c_void_p(tensor.data_ptr())

    def loss(self, logits: torch.Tensor, loss: Loss) -> None:
        rows, bfloat16 = logits.shape[0], int(logits.dtype == torch.bfloat16)
        kernel = getattr(self.library, LOSS_KERNEL)
        kernel(rows, threads_for(rows * 16), self.pointer(logits), bfloat16, *self._loss_arguments(loss))

    def add_relu(self, x: torch.Tensor, shared: torch.Tensor) -> None:
        x.view(len(shared), -1, x.shape[1]).add_(shared.to(x.dtype).unsqueeze(1)).relu_()

    def mask_and_sum(self, gradient: torch.Tensor, activation: torch.Tensor | None, sums: torch.Tensor) -> None:
        if activation is not None:
            torch.ops.aten.threshold_backward.grad_input(gradient, activation, 0.0, grad_input=gradient)
        groups = gradient.view(len(sums), -1, gradient.shape[1])
        torch.sum(groups, dim=1, dtype=torch.float32, out=sums)

    def adam(self, *unused: Any) -> None:
        raise NotImplementedError("torch takes the steps: has_adam is False")

    def _loss_arguments(self, loss: Loss) -> tuple[Any, ...]:
        return (
            len(loss.heads.sizes),
            self.pointer(loss.heads.offsets),
            self.pointer(loss.heads.allowed),
            *(self.pointer(loss.sample[name]) for name in SAMPLE_COLUMNS),
            self.pointer(loss.weights),
            self.pointer(loss.statistics),
        )

    def network(self, dtype: torch.dtype, hidden: int) -> Any:
        """Return this manager for its ``network_*``, if the processor has what it takes for products like these."""
        return self if self.library.RbcFusesNetwork(int(dtype == torch.bfloat16), hidden) else None

    def network_logits(self, layers: Layers, shared: torch.Tensor, private: torch.Tensor, out: torch.Tensor) -> None:
        """Logits and values ``out`` (rows, actions+1) float32. shared: (groups, hidden) float32, the first layer's part
        that the rows of a group have in common; private: (rows, num_private) in the products' precision."""
        assert out.dtype == torch.float32
        rows = len(out)
        network = self._network_arguments(layers, shared, private, rows)
        self.library.RbcNetworkLogits(rows, threads_for(rows * 16), *network, self.pointer(out))

    def network_gradient(
        self,
        layers: Layers,
        shared: torch.Tensor,
        private: torch.Tensor,
        loss: Loss,
        gradient: Layers,
        shared_gradient: torch.Tensor,
    ) -> None:
        """Add the loss gradient to ``gradient``, but for the first layer's public part and bias: their
        gradients follow from that of ``shared``, which ``shared_gradient`` becomes. Adds the loss statistics."""
        rows = len(private)
        self.library.RbcNetworkGradient(
            len(shared),
            threads_for(rows * 16),
            *self._network_arguments(layers, shared, private, rows),
            *self._loss_arguments(loss),
            *(self.pointer(getattr(gradient, name)) for name in FUSED_LAYERS),
            self.pointer(shared_gradient),
        )

    def _network_arguments(
        self, layers: Layers, shared: torch.Tensor, private: torch.Tensor, rows: int
    ) -> tuple[Any, ...]:
        return (
            int(private.dtype == torch.bfloat16),
            private.shape[1],
            len(layers.bias3),
            *(self.pointer(getattr(layers, name)) for name in FUSED_LAYERS),
            rows // len(shared),
            self.pointer(shared),
            self.pointer(private),
        )


def load_library() -> ctypes.CDLL:
    """Return the built library; one that does not load is built again, once. torch is loaded before it, so both use
    one pool of threads."""
    built = build_host()
    try:
        return ctypes.CDLL(str(built))
    except OSError:
        discard(built)
    try:
        return ctypes.CDLL(str(build_host()))
    except OSError as error:
        raise BuildError(f"the kernels are built but do not load ({error}); set CXX to another C++ compiler") from error
