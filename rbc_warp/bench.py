"""``python -m rbc_warp bench``: how fast this machine runs the economy and the published training iteration.

Every figure is the fastest of several repetitions in one process, so that another load on the machine disturbs it
least. Figures to be compared are taken side by side in one run.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from rbc_warp import curriculum, reference
from rbc_warp.backends import choose_backend
from rbc_warp.config import Config, load_config
from rbc_warp.economy import AGENT_TYPES, Economy
from rbc_warp.policies import HIDDEN
from rbc_warp.ppo import block_rows
from rbc_warp.simulation import make_envs
from rbc_warp.trainer import Draw, RbcTrainer

# The published open economy with all three types learning; see configs/paper_open.yaml.
PUBLISHED: dict[str, dict[str, object]] = {
    "agents": {
        "consumer_reward_scale": 5.0,
        "firm_reward_scale": 30000.0,
        "government_reward_scale": 1000.0,
        "government_counts_firm_reward": 1,
        "government_lr_multiple": 0.05,
    },
    "world": {"initial_capital": "twolevel", "paretoscaletheta": 4.0},
    "train": {"batch_size": 128, "ppo_num_updates": 4},
}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def published_config(num_envs: int = 128, precision: str = "auto", **agents: int) -> Config:
    """The published settings at another size or precision."""
    settings = {section: dict(values) for section, values in PUBLISHED.items()}
    settings["agents"] |= agents
    settings["train"] |= {"batch_size": num_envs, "precision": precision}
    return load_config(settings)


def fastest(run: Callable[[], object], repetitions: int, device: torch.device) -> float:
    """Seconds of the fastest of several calls, after one that does not count."""
    times = []
    for _ in range(repetitions + 1):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def random_actions(economy: Economy, num_envs: int, seed: int = 0) -> dict[str, np.ndarray]:
    """One period's uniformly drawn indices: (E, I, J+2), (E, J), (E, 1)."""
    generator = np.random.default_rng(seed)
    heads = economy.head_sizes
    return {
        "consumer": generator.integers(0, heads["consumer"], (num_envs, economy.num_consumers, len(heads["consumer"]))),
        "firm": generator.integers(0, heads["firm"][0], (num_envs, economy.num_firms)),
        "government": generator.integers(0, heads["government"][0], (num_envs, 1)),
    }


def time_step(economy: Economy, num_envs: int, backend: str, repetitions: int) -> float:
    """Seconds per env-step of the economy alone, at random actions."""
    envs = make_envs(economy, num_envs, backend)
    data = envs.cuda_data_manager.data_on_device_via_torch
    for agent, indices in random_actions(economy, num_envs).items():
        placeholder = data(f"sampled_actions_{agent}")
        placeholder.copy_(torch.from_numpy(indices).reshape(placeholder.shape))
    steps = max(1, 2048 // num_envs)

    def run() -> None:
        envs.reset_all_envs()
        for _ in range(steps):
            envs.step_all_envs()

    return fastest(run, repetitions, envs.device) / (steps * num_envs)


def time_reference(economy: Economy, num_envs: int, repetitions: int) -> float:
    """Seconds per env-step of the NumPy reference, its environments in one array operation each."""
    actions = random_actions(economy, num_envs)
    state = reference.initial_state(economy, num_envs)
    run = lambda: reference.step(economy, state, actions["consumer"], actions["firm"], actions["government"])  # noqa: E731
    return fastest(run, repetitions, torch.device("cpu")) / num_envs


def time_iteration(config: Config, backend: str, repetitions: int) -> dict[str, float]:
    """Seconds of one whole training iteration and of its parts; every type learns.

    ``forward``, ``sampling`` and ``step`` are those of the rollout's T periods; ``other`` is its copies and reset.
    """
    trainer = RbcTrainer(config, backend)
    device, periods = trainer.device, trainer.economy.num_periods
    trainer.set_iteration(0)
    parts = {"rollout": fastest(lambda: trainer.play(Draw(0)), repetitions, device)}

    def each_period(part: Callable[[int], object]) -> Callable[[], None]:
        def run() -> None:
            for t in range(periods):
                part(t)

        return run

    def sample(t: int) -> None:
        trainer._sample_actions(trainer._logits, t)

    parts["forward"] = fastest(each_period(trainer._evaluate_policies), repetitions, device)
    trainer.cuda_envs.reset_all_envs()
    parts["sampling"] = fastest(each_period(sample), repetitions, device)
    parts["step"] = fastest(each_period(lambda t: trainer.cuda_envs.step_all_envs()), repetitions, device)
    parts["other"] = parts["rollout"] - parts["forward"] - parts["sampling"] - parts["step"]
    trainer.play(Draw(0))
    for agent in AGENT_TYPES:
        entropy = curriculum.entropy_coefficient(config, agent, 0)
        update = lambda agent=agent, entropy=entropy: trainer.update_type(agent, entropy, 0)  # noqa: E731
        parts[f"update {agent}"] = fastest(update, repetitions, device)

    def iteration() -> None:
        trainer.train_iteration(0)
        trainer.update(0)

    parts["iteration"] = fastest(iteration, repetitions, device)
    return parts


def time_products(config: Config, precision: torch.dtype, device: torch.device, repetitions: int) -> float:
    """Seconds of the bare matrix products of one iteration, in the same blocks: the floor that hardware sets."""
    economy, passes = Economy.from_config(config), config.train.ppo_num_updates
    total = 0.0
    observations = economy.num_periods * config.train.batch_size
    for agent, count in economy.num_agents.items():
        block = max(1, block_rows(device, precision) // count) * count
        rows = min(block, observations * count)
        outputs = sum(economy.head_sizes[agent]) + 1
        inputs = {"consumer": 11, "firm": 12 + economy.num_firms, "government": 0}[agent]
        forward, backward = 0.0, 0.0
        for k, n, needs_input_gradient in ((inputs, HIDDEN, False), (HIDDEN, HIDDEN, True), (HIDDEN, outputs, True)):
            if k:
                once, back = _time_layer(rows, k, n, needs_input_gradient, precision, device, repetitions)
                forward, backward = forward + once, backward + back
        total += (forward * (1 + passes) + backward * passes) * observations * count / rows
    return total


def _time_layer(
    rows: int,
    k: int,
    n: int,
    needs_input_gradient: bool,
    precision: torch.dtype,
    device: torch.device,
    repetitions: int,
) -> tuple[float, float]:
    """Seconds of a layer's product on (rows, k) → (rows, n), and of the products of its backward pass."""
    x = torch.randn(rows, k, dtype=precision, device=device)
    weight = torch.randn(n, k, dtype=precision, device=device)
    out, gradient = x.new_empty(rows, n), torch.empty_like(x)
    calls = 10

    def forward() -> None:
        for _ in range(calls):
            torch.mm(x, weight.T, out=out)

    def backward() -> None:
        for _ in range(calls):
            _ = x.T @ out if k < n else out.T @ x
            if needs_input_gradient:
                torch.mm(out, weight, out=gradient)

    return fastest(forward, repetitions, device) / calls, fastest(backward, repetitions, device) / calls


def peak_memory(device: torch.device) -> int:
    """Bytes: the process's largest resident size, or on a GPU the largest allocation of torch."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine(backend: str) -> dict[str, object]:
    """What the figures were taken on."""
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
    repetitions = 2 if quick else 5
    device = torch.device("cuda" if backend == "pycuda" else "cpu")
    result: dict = {"machine": machine(backend)}
    show("  ".join(f"{name} {value}" for name, value in result["machine"].items()))

    result["iteration_parts"], result["iteration_seconds"], result["matrix_products_seconds"] = {}, {}, {}
    for precision, dtype in PRECISIONS.items():
        config = published_config(precision=precision)
        parts = time_iteration(config, backend, repetitions)
        result["iteration_parts"][precision] = parts
        result["iteration_seconds"][precision] = parts["iteration"]
        result["matrix_products_seconds"][precision] = time_products(config, dtype, device, repetitions)
    economy = Economy.from_config(published_config())
    env_steps = 128 * economy.num_periods
    best = min(result["iteration_seconds"].values())
    result["training_env_steps_per_second"] = env_steps / best
    result["training_agent_steps_per_second"] = env_steps * sum(economy.num_agents.values()) / best
    result["peak_memory_bytes"] = peak_memory(device)
    show(_iteration_table(result))
    result["env_steps_per_second"] = 1.0 / time_step(economy, 128, backend, 4 * repetitions)
    result["reference_env_steps_per_second"] = 1.0 / time_reference(economy, 1, repetitions)
    result["batched_reference_env_steps_per_second"] = 1.0 / time_reference(economy, 128, repetitions)
    result["step_over_reference"] = result["env_steps_per_second"] / result["reference_env_steps_per_second"]
    show(
        f"economy step alone, 128 environments: {result['env_steps_per_second']:,.0f} env-steps/s; NumPy reference, one "
        f"environment at a time: {result['reference_env_steps_per_second']:,.0f} (ratio "
        f"{result['step_over_reference']:.0f}), 128 at a time: {result['batched_reference_env_steps_per_second']:,.0f}"
    )
    if not published_only:
        result["scaling"] = scaling(backend, quick, show)
    return result


def _iteration_table(result: Mapping) -> str:
    names = list(PRECISIONS)
    title = "one published iteration (128 × 10 × 111, 4 passes), ms"
    rows = [f"{title:56}" + "".join(f"{name:>12}" for name in names)]
    for part in result["iteration_parts"]["float32"]:
        figures = (1e3 * result["iteration_parts"][name][part] for name in names)
        rows.append(f"{'  ' + part:56}" + "".join(f"{figure:12.1f}" for figure in figures))
    products = result["matrix_products_seconds"]
    rows.append(f"{'bare matrix products of it':56}" + "".join(f"{1e3 * products[n]:12.1f}" for n in names))
    ratios = [result["iteration_seconds"][n] / products[n] for n in names]
    rows.append(f"{'iteration over its products':56}" + "".join(f"{ratio:12.2f}" for ratio in ratios))
    rows.append(
        f"training: {result['training_env_steps_per_second']:,.0f} env-steps/s, "
        f"{result['training_agent_steps_per_second']:,.0f} agent-steps/s; "
        f"peak memory {result['peak_memory_bytes'] / 2**20:,.0f} MiB"
    )
    return "\n".join(rows)


def scaling(backend: str, quick: bool, show: Callable[[str], None]) -> dict:
    """Microseconds per env-step of the step alone and of a whole iteration, over environments and over consumers."""
    table: dict[str, list[dict]] = {"environments": [], "consumers": []}
    sizes = (8, 128, 1024) if quick else (8, 32, 128, 512, 2048, 4096)
    show(f"{'environments':>14}{'step, µs':>12}{'iteration, µs':>16}   per env-step, 100 consumers and 10 firms")
    for num_envs in sizes:
        row = _scaling_row(published_config(num_envs), num_envs, backend, quick)
        table["environments"].append({"environments": num_envs, **row})
        show(f"{num_envs:14d}{row['step_us']:12.2f}{row['iteration_us']:16.1f}")
    show(f"{'consumers':>14}{'step, µs':>12}{'iteration, µs':>16}   per env-step, 64 environments and 10 firms")
    for consumers in (25, 100, 400) if quick else (25, 50, 100, 200, 400, 800):
        row = _scaling_row(published_config(64, num_consumers=consumers), 64, backend, quick)
        table["consumers"].append({"consumers": consumers, **row})
        show(f"{consumers:14d}{row['step_us']:12.2f}{row['iteration_us']:16.1f}")
    return table


def _scaling_row(config: Config, num_envs: int, backend: str, quick: bool) -> dict[str, float]:
    economy = Economy.from_config(config)
    trainer = RbcTrainer(config, backend)

    def iteration() -> None:
        trainer.train_iteration(0)
        trainer.update(0)

    repetitions = 1 if quick or num_envs > 512 else 3
    seconds = fastest(iteration, repetitions, trainer.device) / (num_envs * economy.num_periods)
    step = time_step(economy, num_envs, backend, 4 * repetitions)
    return {"step_us": 1e6 * step, "iteration_us": 1e6 * seconds}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rbc_warp bench", description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=["auto", "host", "pycuda"], default="auto", help="where kernels run")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions and sizes, about a minute")
    parser.add_argument("--published", action="store_true", help="the published iteration only, no scaling table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    options = parser.parse_args(arguments)
    from rbc_warp.launch import prepare_process
    from rbc_warp.rundir import write_text

    prepare_process(options)
    result = run_benchmark(choose_backend(options.backend), options.quick, options.published, print)
    if options.json:
        write_text(options.json, json.dumps(result, indent=2) + "\n")
    return 0
