"""One run over several processes: environments are split over them, gradients are added up.

``torchrun --nproc-per-node N run_training.py …`` starts N processes, numbered by rank. Environment e of the run is the
same in any number of processes: random numbers are keyed by its number, and rank r plays batch_size/N of them from
r·batch_size/N on. Rank 0 alone writes files.
"""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from rbc_warp.config import Config
from rbc_warp.errors import ConfigError, UserError


class Processes:
    """The processes that share a run, as one of them sees them; alone, every exchange is the identity."""

    def __init__(self, rank: int = 0, world_size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.world_size = rank, world_size
        self.is_first = rank == 0
        self._device = device  #: Device of exchanged values; None outside torchrun.

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add a tensor up over the processes, in place."""
        if self._device is not None:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Return whether the flag is up in any process."""
        if self._device is None:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self._device)) > 0)

    def average(self, record: dict[str, Any]) -> dict[str, Any]:
        """The means over processes of the numbers in a record of nested dicts; integers, equal in all, stay."""
        if self._device is None:
            return record
        leaves = [(part, key) for part in _parts(record) for key, value in part.items() if isinstance(value, float)]
        numbers = torch.tensor([part[key] for part, key in leaves], dtype=torch.float64, device=self._device)
        for (part, key), mean in zip(leaves, (self.sum(numbers) / self.world_size).tolist(), strict=True):
            part[key] = mean
        return record

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all processes, one after the other along the first axis, on the CPU."""
        if self._device is None:
            return tensor.cpu()
        mine = tensor.to(self._device).contiguous()
        pieces = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(pieces, mine)
        return torch.cat(pieces).cpu()

    def share(self, value: Any) -> Any:
        """Rank 0's value."""
        if self._device is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=self._device)
        return values[0]

    def shared(self, find: Callable[[], Any]) -> Any:
        """Rank 0 finds a value for all; where that is the user's fault, the error is everybody's."""
        found: Any = None
        if self.is_first:
            try:
                found = find()
            except UserError as error:
                found = error
        found = self.share(found)
        if isinstance(found, UserError):
            raise found
        return found


def _parts(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield record
    for value in record.values():
        if isinstance(value, dict):
            yield from _parts(value)


COUNT_GPUS = """
import ctypes
cuda, number = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(number)) == 0:
    print(number.value)
"""


def under_torchrun() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them. Does not touch them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name for name in named.split(",") if name] if named is not None else _all_gpus()


def _all_gpus() -> list[str]:
    """Count them in another process: a driver that was asked once no longer heeds CUDA_VISIBLE_DEVICES."""
    if not torch.backends.cuda.is_built():
        return []
    answer = subprocess.run([sys.executable, "-c", COUNT_GPUS], capture_output=True, text=True, check=False)
    return [str(index) for index in range(int(answer.stdout or 0))]


def claim_gpu() -> None:
    """Under torchrun, hides all GPUs but this process's own. To be called before anything touches a GPU."""
    gpus = visible_gpus()
    if under_torchrun() and gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(os.environ["LOCAL_RANK"]) % len(gpus)]
        os.environ["RBC_WARP_OWN_GPU"] = str(int(os.environ["LOCAL_WORLD_SIZE"]) <= len(gpus))


def check_shares(config: Config, world_size: int) -> None:
    """:class:`ConfigError` where so many processes cannot share the batch equally."""
    if config.train.batch_size % world_size:
        raise ConfigError(
            f"train.batch_size = {config.train.batch_size} cannot be shared by {world_size} processes; "
            f"--set a multiple of {world_size}, or start another number of processes"
        )


@contextmanager
def joined(config: Config, backend: str) -> Iterator[Processes]:
    """Meets the other processes of torchrun: nccl where each has a GPU of its own, gloo otherwise."""
    if not under_torchrun():
        yield Processes()
        return
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    check_shares(config, world_size)
    # torch.optim imports this module, whose functions take the group of that moment as a default: imported after the
    # group exists, it would keep the group and gloo's threads alive into the interpreter's end, where they can abort.
    importlib.import_module("torch.distributed.nn.functional")
    own_gpu = backend == "pycuda" and os.environ.get("RBC_WARP_OWN_GPU") == "True"
    device = torch.device("cuda", 0) if own_gpu else torch.device("cpu")
    if own_gpu:
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    try:
        yield Processes(rank, world_size, device)
    finally:
        dist.destroy_process_group()
