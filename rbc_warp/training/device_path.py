"""Counts of what a training iteration asks of a device: the host's time on a GPU goes there."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rbc_warp.training.trainer import RbcTrainer

ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "detach")


class DevicePath(TorchDispatchMode):
    """Counts, while it is entered, torch's operations on a device, and its copies to and from it.

    Views and allocations give the device nothing to do and do not count; copies are no operations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.uploads = self.readbacks = 0

    def is_on_device(self, tensor: torch.Tensor) -> bool:
        return tensor.device.type == "cuda"

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        before = [self.is_on_device(tensor) for tensor in given]
        result = func(*args, **kwargs)
        self.note(func, given, before, [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)])
        return result

    def note(self, func: Any, given: list[torch.Tensor], before: list[bool], made: list[torch.Tensor]) -> None:
        """Count one operation: what it was given, which of that lay on the device, and what it made."""
        name = func._schema.name.removeprefix("aten::")
        after = [self.is_on_device(tensor) for tensor in made]
        if name == "_local_scalar_dense":
            self.readbacks += any(before)
        elif name in ("copy_", "_to_copy") and not all(before + after):
            source = before[1] if name == "copy_" else before[0]
            self.readbacks += source
            self.uploads += after[0] and not source
        elif (any(before) or any(after)) and not func.is_view and name not in ALLOCATIONS:
            self.operations += 1


def count_iteration(trainer: RbcTrainer, path: DevicePath | None = None) -> dict[str, int]:
    """Return operations, launches, uploads and readbacks of an iteration's rollout and update, after a first one."""
    from rbc_warp.warpdrive.pycuda import GPU

    def iteration(number: int) -> int:
        trainer.iteration = number
        counted.operations = counted.uploads = counted.readbacks = 0
        launches = GPU.launches
        trainer._generate_rollout_batch()
        trainer._update_model_params(number)
        return GPU.launches - launches

    with path or DevicePath() as counted:
        iteration(0)
        launches = iteration(1)
    return {
        "operations": counted.operations,
        "launches": launches,
        "uploads": counted.uploads,
        "readbacks": counted.readbacks,
    }
