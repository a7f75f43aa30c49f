"""One run over several processes: environments are split over them, gradients are added up.

``torchrun --nproc-per-node N run_training.py …`` starts N processes, numbered by rank. Environment e of the run is the
same in any number of processes: random numbers are keyed by its number, and rank r plays batch_size/N of them from
r·batch_size/N on. Rank 0 alone writes files. ``python -m rbc_warp.distributed --bench`` measures the efficiency.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rbc_warp.config import Config, ConfigError, load_config


class Processes:
    """The processes that share a run, as one of them sees them; alone, every exchange is the identity."""

    def __init__(self, rank: int = 0, world_size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.world_size = rank, world_size
        self.is_first = rank == 0
        self._device = device
        """Where exchanged values must lie; None outside torchrun."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Adds a tensor up over the processes, in place."""
        if self._device is not None:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
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


def _parts(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield record
    for value in record.values():
        if isinstance(value, dict):
            yield from _parts(value)


def under_torchrun() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them. Does not touch them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name for name in named.split(",") if name] if named is not None else _all_gpus()


def _all_gpus() -> list[str]:
    return [str(index) for index in range(torch.cuda.device_count())]


def claim_gpu() -> None:
    """Under torchrun, hides all GPUs but this process's own. To be called before anything touches a GPU."""
    gpus = visible_gpus()
    if under_torchrun() and gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(os.environ["LOCAL_RANK"]) % len(gpus)]
        os.environ["RBC_WARP_OWN_GPU"] = str(int(os.environ["LOCAL_WORLD_SIZE"]) <= len(gpus))


@contextmanager
def joined(config: Config, backend: str) -> Iterator[Processes]:
    """Meets the other processes of torchrun: nccl where each has a GPU of its own, gloo otherwise."""
    if not under_torchrun():
        yield Processes()
        return
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if config.train.batch_size % world_size:
        raise ConfigError(
            f"train.batch_size = {config.train.batch_size} cannot be shared by {world_size} processes; "
            f"--set a multiple of {world_size}, or start another number of processes"
        )
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


# The efficiency of several processes.


def efficiency(
    config_path: Path | str,
    counts: Sequence[int] = (1, 2),
    iterations: int = 20,
    threads: int = 1,
    backend: str = "auto",
    overrides: Sequence[str] = (),
) -> list[dict[str, float]]:
    """Speed with each number of processes, of ``threads`` threads each, that share the configured batch.

    Per count: ``processes``, ``iterations_per_second``, ``speedup`` over the first count, and ``efficiency``, the
    speedup divided by the growth in processes (1: perfect).
    """
    rows: list[dict[str, float]] = []
    for count in counts:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        command += ["-m", "rbc_warp.distributed", "--worker", "--config", str(config_path), "--backend", backend]
        command += [f"--iterations={iterations}", f"--threads={threads}"]
        command += [word for override in overrides for word in ("--set", override)]
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
        if done.returncode:
            raise RuntimeError(f"{count} processes failed: {' '.join(command)}")
        speed = float(json.loads(done.stdout.splitlines()[-1]))
        first = rows[0] if rows else {"processes": count, "iterations_per_second": speed}
        speedup = speed / first["iterations_per_second"]
        row = {"processes": count, "iterations_per_second": speed, "speedup": speedup}
        rows.append({**row, "efficiency": speedup * first["processes"] / count})
    return rows


def _measure(config: Config, backend: str, iterations: int) -> None:
    """One process of a measurement; rank 0 prints iterations per second."""
    from rbc_warp.backends import choose_backend
    from rbc_warp.trainer import RbcTrainer

    backend = choose_backend(backend)
    with joined(config, backend) as processes:
        trainer = RbcTrainer(
            config, backend, reduce=processes.sum, world_size=processes.world_size, rank=processes.rank
        )
        began = 0.0
        for iteration in range(-2, iterations):  # two to warm up
            if iteration == 0:
                processes.any(False)  # all together
                began = time.perf_counter()
            trainer.train_iteration(max(iteration, 0))
            trainer.update(max(iteration, 0))
        processes.any(False)
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()
        if processes.is_first:
            print(json.dumps(iterations / (time.perf_counter() - began)))


def main(arguments: list[str] | None = None) -> None:
    from rbc_warp.launch import add_common_arguments, prepare_process

    parser = argparse.ArgumentParser(description="Measures how the speed of a run grows with the number of processes.")
    parser.add_argument("--bench", action="store_true", help="measure and print a table; the only thing to do here")
    parser.add_argument(
        "--config", type=Path, default=Path("configs/rbc.yaml"), help="YAML file that describes the run"
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], metavar="N", help="numbers to compare")
    parser.add_argument("--iterations", type=int, default=20, metavar="N", help="how many to time")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    add_common_arguments(parser)
    options = parser.parse_args(arguments)
    config = load_config(options.config, options.overrides)
    if options.worker:
        claim_gpu()
        prepare_process(options)
        _measure(config, options.backend, options.iterations)
        return
    if not options.bench:
        parser.error("give --bench")
    rows = efficiency(
        options.config, options.processes, options.iterations, options.threads or 1, options.backend, options.overrides
    )
    for row in rows:
        figures = "  ".join(f"{name} {value:.4g}" for name, value in row.items())
        print(figures)


if __name__ == "__main__":
    from rbc_warp.launch import clean_errors

    with clean_errors():
        main()
