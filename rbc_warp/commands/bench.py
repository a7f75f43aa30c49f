"""``python -m rbc_warp bench``: how fast this machine runs the economy and the published training iteration.

Every figure is the fastest of several rounds in one process; a round takes each figure once, so that figures to be
compared are taken side by side, whatever else the machine does meanwhile.
"""

import argparse
import json
import math
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from rbc_warp.commands.kernel_times import REPEATS, kernel_parts
from rbc_warp.commands.launch import add_machine_arguments, positive, prepare_process
from rbc_warp.commands.time_to_equilibrium import time_to_equilibrium
from rbc_warp.config import Agents, Config, load_config
from rbc_warp.config.shipped import CONFIGS
from rbc_warp.economy import reference
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.economy.parameters import Economy
from rbc_warp.interfaces.vector import VectorEnv
from rbc_warp.runs.console import text_table
from rbc_warp.runs.files import write_text
from rbc_warp.training.device_path import count_iteration
from rbc_warp.training.recorder import Recorder
from rbc_warp.training.rollout import Draw
from rbc_warp.training.trainer import RbcTrainer
from rbc_warp.warpdrive.env import STEP_ARGUMENTS
from rbc_warp.warpdrive.simulation import make_envs
from rbc_warp.warpdrive.wrapper import choose_backend

# The published open economy, with all types learning and everything allowed from the start.
PUBLISHED = CONFIGS / "paper_open.yaml"
PRECISIONS = ("float32", "bfloat16")
CALLED = "iteration, not replayed"
KERNEL = "kernel "
ROLLOUT_PARTS = ("forward", "sampling", "step")
PARTS = ("iteration", "rollout", *ROLLOUT_PARTS, *(f"update {agent}" for agent in AGENT_TYPES))
GPU_ITERATIONS = 10
MOST_ENVS = 16_384
COPY_BYTES = 1 << 30


def published_config(
    num_envs: int = 128, precision: str = "auto", num_consumers: int = 100, graphs: str = "auto"
) -> Config:
    """Return the published settings at another size or precision."""
    blocks = [name for name in Agents.model_fields if "_anneal_" in name and "begin" not in name]
    settings: dict[str, object] = {f"agents.{name}": "null" for name in blocks}
    settings |= {f"agents.{agent}_training_start": 0 for agent in AGENT_TYPES}
    settings |= {"agents.num_consumers": num_consumers, "train.batch_size": num_envs}
    settings |= {"train.precision": precision, "train.graphs": graphs}
    return load_config(PUBLISHED, [f"{key}={value}" for key, value in settings.items()])


Part = tuple[Callable[[], object], int]
"""Something to time, and how many of its kind it does."""


def fastest(parts: Mapping[str, Part], rounds: int, device: torch.device) -> dict[str, float]:
    """Seconds of one of each part, the least over the rounds; a first round does not count."""
    least = dict.fromkeys(parts, math.inf)
    for number in range(rounds + 1):
        for name, (run, count) in parts.items():
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            if number:
                least[name] = min(least[name], (time.perf_counter() - start) / count)
    return least


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def random_actions(economy: Economy, num_envs: int, seed: int = 0) -> dict[str, np.ndarray]:
    """One period's uniformly drawn indices, (E, n, heads) per type."""
    generator = np.random.default_rng(seed)
    return {
        name: generator.integers(0, agent.head_sizes, (num_envs, agent.count, len(agent.head_sizes)))
        for name, agent in economy.agents.items()
    }


def step_part(economy: Economy, num_envs: int, backend: str) -> Part:
    """Env-steps of the economy alone, at random actions."""
    envs = make_envs(economy, num_envs, backend)
    data = envs.cuda_data_manager.data_on_device_via_torch
    for agent, indices in random_actions(economy, num_envs).items():
        placeholder = data(f"sampled_actions_{agent}")
        placeholder.copy_(torch.from_numpy(indices).reshape(placeholder.shape))
    steps = max(10, 8192 // num_envs)

    def run() -> None:
        envs.reset_all_envs()
        for _ in range(steps):
            envs.step_all_envs()

    return run, steps * num_envs


def step_bandwidth(economy: Economy, num_envs: int, rounds: int) -> dict[str, float]:
    """How much of a GPU's memory bandwidth the step uses, in bytes per second: what it has to move at least, each array
    once or both ways, against a copy of COPY_BYTES."""
    envs = make_envs(economy, num_envs, "pycuda")
    shapes = {name: envs.cuda_data_manager.get_shape(name) for name in STEP_ARGUMENTS}
    moved = 0  # by one environment
    for name, shape in shapes.items():
        if shape[0] == num_envs:
            one_way = name.startswith(("sampled_actions", "rewards")) or name in ("consumption", "exports", "sales")
            moved += 4 * math.prod(shape[1:]) * (1 if one_way else 2)
    step = step_part(economy, num_envs, "pycuda")
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=envs.device)
    target = torch.empty_like(source)
    seconds = fastest({"step": step, "copy": (lambda: target.copy_(source), 1)}, rounds, envs.device)
    rate = 1 / seconds["step"]
    return {
        "environments": num_envs,
        "env_steps_per_second": rate,
        "bytes_per_env_step": moved,
        "bytes_per_second": rate * moved,
        "copy_bytes_per_second": 2 * COPY_BYTES / seconds["copy"],
    }


def interface_part(economy_config: Config, num_envs: int, backend: str) -> Part:
    """The same through ``rbc_warp.vector_env``, every step's actions handed over and checked."""
    env = VectorEnv(economy_config, num_envs, backend)
    actions = {name: torch.from_numpy(rows) for name, rows in random_actions(env.economy, num_envs).items()}
    actions = {name: rows.to(env.device, torch.int32) for name, rows in actions.items()}

    def run() -> None:
        env.reset()
        for _ in range(env.num_periods):
            env.step(actions)

    return run, env.num_periods * num_envs


def reference_part(economy: Economy, num_envs: int) -> Part:
    """The NumPy reference, its environments in one array operation each."""
    actions = random_actions(economy, num_envs)
    state = reference.initial_state(economy, num_envs)
    steps = max(1, 128 // num_envs)

    def run() -> None:
        for _ in range(steps):
            reference.step(economy, state, actions["consumer"], actions["firm"][..., 0], actions["government"])

    return run, steps * num_envs


def iteration_parts(config: Config, backend: str) -> tuple[RbcTrainer, dict[str, Part]]:
    """Whole training iterations in which every type learns, and the parts of one.

    ``forward``, ``sampling`` and ``step`` are those of the T periods. A GPU is waited for after GPU_ITERATIONS,
    as a run waits when it writes a line.
    """
    iterations = GPU_ITERATIONS if backend == "pycuda" else 1
    trainer = RbcTrainer(config, backend, recorder=Recorder())
    periods = trainer.economy.num_periods
    trainer.set_iteration(0)
    logits = trainer.forward(0)

    def iteration() -> None:
        trainer.train(0, iterations)

    def forward() -> None:
        for t in range(periods):
            trainer.forward(t)

    def sampling() -> None:
        trainer.cuda_envs.reset_all_envs()
        for t in range(periods):
            trainer.draw_actions(logits, t)

    def step() -> None:
        trainer.cuda_envs.reset_all_envs()
        for _ in range(periods):
            trainer.cuda_envs.step_all_envs()

    due = {update.agent: update for update in trainer.curriculum.updates(0)}

    def update(agent: str) -> Callable[[], object]:
        return lambda: trainer.update(due[agent], 0)

    once: dict[str, Callable[[], object]] = {f"update {agent}": update(agent) for agent in AGENT_TYPES}
    once |= {"rollout": lambda: trainer.play(Draw(0)), "forward": forward, "step": step, "sampling": sampling}
    return trainer, {"iteration": (iteration, iterations), **{name: (run, 1) for name, run in once.items()}}


def peak_memory(device: torch.device) -> int:
    """Bytes: the process's largest resident size, or on a GPU the largest allocation of torch."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine(backend: str) -> dict[str, object]:
    """Return the machine that the figures were taken on."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    described = {"processor": name, "threads": torch.get_num_threads(), "torch": torch.__version__, "backend": backend}
    if backend == "pycuda":
        described["gpu"] = torch.cuda.get_device_name()
    return described


def run_benchmark(backend: str, quick: bool, published_only: bool, show: Callable[[str], None]) -> dict:
    """All figures; ``show`` gets each table as it is ready."""
    rounds = 3 if quick else 8
    device = torch.device("cuda" if backend == "pycuda" else "cpu")
    result: dict = {"machine": machine(backend)}
    show("  ".join(f"{name} {value}" for name, value in result["machine"].items()))

    parts: dict[str, Part] = {}
    for precision in PRECISIONS:
        trainer, timed = iteration_parts(published_config(precision=precision), backend)
        if backend == "pycuda":
            asked = result.setdefault("device_path", {})[precision] = count_iteration(trainer)
            show(f"{precision}, one iteration: " + ", ".join(f"{number} {name}" for name, number in asked.items()))
            as_called = published_config(precision=precision, graphs="off")
            timed[CALLED] = iteration_parts(as_called, backend)[1]["iteration"]
            timed |= {f"{KERNEL}{name}": (run, REPEATS) for name, run in kernel_parts(trainer).items()}
        parts |= {f"{precision} {name}": run for name, run in timed.items()}
    economy = Economy.from_config(published_config())
    parts["step alone"] = step_part(economy, 128, backend)
    parts["interface"] = interface_part(published_config(), 128, backend)
    parts["reference"] = reference_part(economy, 1)
    parts["batched reference"] = reference_part(economy, 128)
    seconds = fastest(parts, rounds, device)

    result["parts_seconds"] = {
        precision: {name: seconds[f"{precision} {name}"] for name in timed if not name.startswith(KERNEL)}
        for precision in PRECISIONS
    }
    if backend == "pycuda":
        result["kernels_seconds"] = {
            precision: {
                name.removeprefix(KERNEL): seconds[f"{precision} {name}"] for name in timed if name.startswith(KERNEL)
            }
            for precision in PRECISIONS
        }
    result["iteration_seconds"] = {name: result["parts_seconds"][name]["iteration"] for name in PRECISIONS}
    env_steps = 128 * economy.num_periods
    best = min(result["iteration_seconds"].values())
    result["training_env_steps_per_second"] = env_steps / best
    result["training_agent_steps_per_second"] = env_steps * sum(agent.count for agent in economy.agents.values()) / best
    result["peak_memory_bytes"] = peak_memory(device)
    for name, key in (
        ("step alone", ""),
        ("interface", "vector_env_"),
        ("reference", "reference_"),
        ("batched reference", "batched_reference_"),
    ):
        result[f"{key}env_steps_per_second"] = 1 / seconds[name]
    result["step_over_reference"] = result["env_steps_per_second"] / result["reference_env_steps_per_second"]
    show(_iteration_table(result))
    if backend == "pycuda":
        show(_kernel_table(result))
    show(
        f"economy step alone, 128 environments: {result['env_steps_per_second']:,.0f} env-steps/s; "
        f"through vector_env, actions checked:\n{result['vector_env_env_steps_per_second']:,.0f}; "
        f"NumPy reference, one environment at a time: {result['reference_env_steps_per_second']:,.0f} "
        f"(ratio {result['step_over_reference']:.0f}),\n"
        f"128 at a time: {result['batched_reference_env_steps_per_second']:,.0f}"
    )
    if backend == "pycuda":
        figures = result["step_bandwidth"] = step_bandwidth(economy, MOST_ENVS, rounds)
        share = figures["bytes_per_second"] / figures["copy_bytes_per_second"]
        show(
            f"{MOST_ENVS:,} environments: {figures['env_steps_per_second']:,.0f} env-steps/s of at least "
            f"{figures['bytes_per_env_step']:,} bytes each:\n{figures['bytes_per_second'] / 1e9:,.0f} GB/s, "
            f"{share:.0%} of a copy's {figures['copy_bytes_per_second'] / 1e9:,.0f} GB/s"
        )
    if not published_only:
        result["scaling"] = scaling(backend, quick, show)
    return result


def _iteration_table(result: Mapping) -> str:
    rows = []
    for part in [name for name in (PARTS[0], CALLED, *PARTS[1:]) if name in result["parts_seconds"][PRECISIONS[0]]]:
        indent = "" if part.startswith("iteration") else "    " if part in ROLLOUT_PARTS else "  "
        figures = (f"{1e3 * result['parts_seconds'][name][part]:.1f}" for name in PRECISIONS)
        rows.append((indent + part, *figures))
    return text_table(("one published iteration (128 × 10 × 111, 4 passes), ms", *PRECISIONS), rows) + (
        f"\ntraining: {result['training_env_steps_per_second']:,.0f} env-steps/s, "
        f"{result['training_agent_steps_per_second']:,.0f} agent-steps/s; "
        f"peak memory {result['peak_memory_bytes'] / 2**20:,.0f} MiB"
    )


def _kernel_table(result: Mapping) -> str:
    times = result["kernels_seconds"]
    rows = [
        (name, *(f"{1e6 * times[precision][name]:.1f}" for precision in PRECISIONS)) for name in times[PRECISIONS[0]]
    ]
    return text_table(("one launch, µs", *PRECISIONS), rows)


def scaling(backend: str, quick: bool, show: Callable[[str], None]) -> dict:
    """Microseconds per env-step of the step alone and of a whole iteration, over environments and over consumers."""
    on_gpu = int(backend == "pycuda")
    sizes = {
        "environments": (8, 128, 1024) if quick else (8, 32, 128, 512, 2048, 4096) + on_gpu * (MOST_ENVS,),
        "consumers": (25, 100, 400) if quick else (25, 50, 100, 200, 400, 800),
    }
    table: dict[str, list[dict]] = {}
    for what, numbers in sizes.items():
        table[what] = []
        for number in numbers:
            num_envs = number if what == "environments" else 64
            config = published_config(num_envs, num_consumers=100 if what == "environments" else number)
            table[what].append({what: number, **_scaling_row(config, num_envs, backend, quick)})
        rows = [(str(row[what]), f"{row['step_us']:.2f}", f"{row['iteration_us']:.1f}") for row in table[what]]
        others = "100 consumers" if what == "environments" else "64 environments"
        show(text_table((what, "step, µs", f"iteration, µs per env-step; {others}, 10 firms"), rows))
    return table


def _scaling_row(config: Config, num_envs: int, backend: str, quick: bool) -> dict[str, float]:
    trainer, parts = iteration_parts(config, backend)
    step = step_part(trainer.economy, num_envs, backend)
    rounds = 1 if quick or num_envs > 512 else 3
    seconds = fastest({"iteration": parts["iteration"], "step": step}, rounds, trainer.device)
    iteration_us = 1e6 * seconds["iteration"] / (num_envs * trainer.economy.num_periods)
    return {"step_us": 1e6 * seconds["step"], "iteration_us": iteration_us}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rbc_warp bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions and sizes, about a minute")
    parser.add_argument("--published", action="store_true", help="the published iteration only, no scaling table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--equilibrium", action="store_true", help="time until an equilibrium's verdict passes instead")
    parser.add_argument("--seeds", type=positive, default=1, metavar="N", help="with --equilibrium: seeds (default: 1)")
    add_machine_arguments(parser)
    options = parser.parse_args(arguments)
    prepare_process(options)
    backend = choose_backend(options.backend)
    if options.equilibrium:
        result = time_to_equilibrium(backend, options.seeds, print)
    else:
        result = run_benchmark(backend, options.quick, options.published, print)
    if options.json:
        write_text(options.json, json.dumps(result, indent=2) + "\n")
    return 0
