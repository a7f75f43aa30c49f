"""Executors of a sweep's runs: in processes on this machine, or as tasks of Ray.

Either way a run is one process of ``run_training.py --resume RUN``, which can die without harm to another, and which
stops by itself, saving its state, when the process that started it is gone.
"""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from rbc_warp.errors import ConfigError
from rbc_warp.training.processes import visible_gpus

# How often Ray starts a run again whose worker or machine was lost; each time it goes on from its last state.
RAY_RETRIES = 10


class Engine(Protocol):
    """Starts commands, ``capacity`` at a time, and tells how they ended: exit codes, negative for a signal."""

    capacity: float

    def start(self, command: Sequence[str], log: Path) -> Any: ...  # its output is appended to the log
    def poll(self, handle: Any) -> int | None: ...  # None while it runs or may still be retried
    def stop(self, handles: Sequence[Any]) -> list[int]: ...  # asks them to, and waits until they have
    def close(self) -> None: ...  # nothing more will be started


class LocalEngine:
    """``jobs`` processes at a time; with several GPUs, each takes the next."""

    def __init__(self, jobs: int) -> None:
        self.capacity: float = jobs
        self._gpus = visible_gpus()
        self._free = list(range(jobs))
        self._places: dict[int, int] = {}

    def start(self, command: Sequence[str], log: Path) -> subprocess.Popen:
        place = self._free[0]
        environment = dict(os.environ)
        if len(self._gpus) > 1:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[place % len(self._gpus)]
        with open(log, "ab") as file:
            process = subprocess.Popen(
                [*command, "--parent", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches us alone: we pass it on once
            )
        self._places[process.pid] = self._free.pop(0)
        return process

    def poll(self, handle: subprocess.Popen) -> int | None:
        code = handle.poll()
        if code is not None:
            self._free.append(self._places.pop(handle.pid))
        return code

    def stop(self, handles: Sequence[subprocess.Popen]) -> list[int]:
        for process in handles:
            process.terminate()
        try:
            return [process.wait() for process in handles]
        except KeyboardInterrupt:  # once more: at once
            for process in handles:
                process.kill()
            return [process.wait() for process in handles]

    def close(self) -> None:
        """The processes have ended."""


class RayEngine:
    """Ray tasks, on this machine or a cluster whose machines share the experiment's folder and the lab's.

    ``threads`` CPUs and ``gpus`` GPUs are asked for each; on this machine, as many CPUs are offered as ``jobs`` need.
    """

    def __init__(self, address: str | None, jobs: int | None, threads: int, gpus: float | None) -> None:
        try:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            import ray
        except ImportError:
            raise ConfigError(
                "--executor ray: Ray is not installed; run `pip install -r requirements-ray.txt`"
            ) from None
        self._ray = ray
        self.capacity: float = jobs or float("inf")
        offered = None if address or not jobs else jobs * threads
        try:
            ray.init(
                address or "local", num_cpus=offered, log_to_driver=False, logging_level="ERROR", include_dashboard=None
            )
        except ConnectionError as error:
            raise ConfigError(f"--ray-address {address}: {error}; check that the cluster runs (ray status)") from None
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0

        # By value, not by name: the workers then need none of our modules.
        def run(command: list[str], log: str) -> int:
            import os
            import signal
            import subprocess
            import time

            signal.signal(signal.SIGINT, signal.default_int_handler)  # Ray cancels by it; a shell may have it ignored
            with open(log, "ab") as file:
                process = subprocess.Popen(
                    [*command, "--parent", str(os.getpid())], stdout=file, stderr=file, start_new_session=True
                )
                try:
                    while (code := process.poll()) is None:
                        time.sleep(0.2)
                except BaseException:
                    process.terminate()
                    process.wait()
                    raise
            if code < 0:
                raise ChildProcessError(f"killed by signal {-code}")
            return code

        self._task = ray.remote(
            num_cpus=threads, num_gpus=gpus, max_retries=RAY_RETRIES, retry_exceptions=[ChildProcessError]
        )(run)

    def start(self, command: Sequence[str], log: Path) -> Any:
        return self._task.remote(list(command), str(log))

    def poll(self, handle: Any) -> int | None:
        return self._result(handle) if self._ray.wait([handle], timeout=0)[0] else None

    def _result(self, handle: Any) -> int:
        try:
            return int(self._ray.get(handle))
        except (self._ray.exceptions.TaskCancelledError, KeyboardInterrupt):
            return 130
        except self._ray.exceptions.RayError:
            return -9  # lost more often than it is retried

    def stop(self, handles: Sequence[Any]) -> list[int]:
        for handle in handles:
            self._ray.cancel(handle, recursive=False)
        return [self._result(handle) for handle in handles]

    def close(self) -> None:
        self._ray.shutdown()
