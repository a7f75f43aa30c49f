"""``python -m rbc_warp scaling``: how the speed of one run grows with the number of processes that share it."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from rbc_warp.commands.launch import add_common_arguments, clean_errors, positive, prepare_process
from rbc_warp.config import Config, load_config
from rbc_warp.training.processes import check_shares, claim_gpu, joined
from rbc_warp.training.recorder import Recorder
from rbc_warp.training.trainer import RbcTrainer
from rbc_warp.warpdrive.wrapper import choose_backend


def efficiency(counts: Sequence[int], arguments: Sequence[str]) -> list[dict[str, float]]:
    """Return the speed with each number of processes that share the configured batch.

    Per count: ``processes``, ``iterations_per_second``, ``speedup`` over the first count, and ``efficiency``, the
    speedup divided by the growth in processes (1: perfect). ``arguments`` are those of a worker.
    """
    rows: list[dict[str, float]] = []
    for count in counts:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        command += ["-m", "rbc_warp.commands.scaling", "--worker", *arguments]
        path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
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
    """Train as one process of a measurement; rank 0 prints iterations per second."""
    backend = choose_backend(backend)
    with joined(config, backend) as processes:
        trainer = RbcTrainer(config, backend, processes=processes, recorder=Recorder())
        trainer.train(0, 2)  # to warm up
        processes.any(False)  # all together
        began = time.perf_counter()
        trainer.train(2, 2 + iterations)
        processes.any(False)
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()
        if processes.is_first:
            print(json.dumps(iterations / (time.perf_counter() - began)))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rbc_warp scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/rbc.yaml", help="YAML file that describes the run")
    parser.add_argument("--processes", type=positive, nargs="+", default=[1, 2], metavar="N", help="numbers to compare")
    parser.add_argument("--iterations", type=positive, default=20, metavar="N", help="how many to time")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    add_common_arguments(parser)
    options = parser.parse_args(arguments)
    config = load_config(options.config, options.overrides)
    if options.worker:
        claim_gpu()
        prepare_process(options)
        _measure(config, options.backend, options.iterations)
        return 0
    for count in options.processes:
        check_shares(config, count)
    worker = ["--config", options.config, "--backend", options.backend, f"--iterations={options.iterations}"]
    worker += [f"--threads={options.threads or 1}"]
    worker += [word for override in options.overrides for word in ("--set", override)]
    for row in efficiency(options.processes, worker):
        print("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
    return 0


if __name__ == "__main__":  # a process of torch.distributed.run
    with clean_errors():
        main()
