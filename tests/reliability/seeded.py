"""Faults put into economy and learning, one at a time: do the tests that should catch each do so?"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from reliability.forks import spread

ROOT = Path(__file__).parents[2]
TELL = os.dup(1)  # past the files that the workers write into
HOST, DEVICE, ECONOMY = "rbc_warp/cuda/cpu/host.cpp", "rbc_warp/cuda/heads.h", "rbc_warp/cuda/economy.h"
REFERENCE, LOSSES = "rbc_warp/economy/reference.py", "rbc_warp/training/losses.py"


@dataclass(frozen=True)
class Seed:
    """A fault: what stands in a file, what is put there instead, and the tests that look at it first."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return self.name


KERNELS, EMULATED = ("tests/test_kernels.py",), ("tests/test_emulation.py", "tests/test_kernels.py")
LEARNING, SAMPLING = ("tests/test_learning.py",), ("tests/test_sampling.py",)
SEEDS = (
    Seed(
        "reference: the income tax is not paid",
        REFERENCE,
        "net_income = wage_income - income_tax",
        "net_income = wage_income",
        ("tests/test_reference.py",),
    ),
    Seed(
        "reference: wage and price swapped",
        REFERENCE,
        "posted[:, layout.prices] = firm_choice[:, :, FIRM_PRICE]",
        "posted[:, layout.prices] = firm_choice[:, :, FIRM_WAGE]",
        ("tests/test_reference.py",),
    ),
    Seed(
        "reference: no rationing",
        REFERENCE,
        "consumption = affordable * share[:, None, :]",
        "consumption = affordable",
        ("tests/test_reference.py",),
    ),
    Seed(
        "kernel: the corporate tax is dropped",
        ECONOMY,
        "const auto change = accounts.profit - accounts.corporate_tax;",
        "const auto change = accounts.profit;",
        KERNELS,
    ),
    Seed("kernel: rationing is skipped", ECONOMY, "rationed ? inventory / total.demand : 1.0f", "1.0f", KERNELS),
    Seed(
        "kernel: the employer is one off",
        ECONOMY,
        "lanes.load(env.actions + J + 1, width)",
        "lanes.load(env.actions + J, width)",
        KERNELS,
    ),
    Seed(
        "kernel: interest on debt",
        ECONOMY,
        "return select(balance > 0.0f, balance * (1.0f + interest_rate), balance);",
        "return balance * (1.0f + interest_rate);",
        KERNELS,
    ),
    Seed(
        "sampler: heads repeat one random word",
        "rbc_warp/cuda/cpu/host.cpp",
        "flags, random.word[h % 4], chosen",
        "flags, random.word[0], chosen",
        SAMPLING,
    ),
    Seed(
        "sampler: the mask is ignored",
        DEVICE,
        "weight[k] = head.allows(k) ? w : splat<V>(0.0f);",
        "weight[k] = w;",
        SAMPLING,
    ),
    Seed("sampler: equal draws in each period", DEVICE, "U{} + key.period, lane", "U{}, lane", SAMPLING),
    Seed(
        "fused loss: the clip is one-sided",
        DEVICE,
        "select(plain <= bounded, -plain, splat<V>(0.0f))",
        "-plain",
        LEARNING,
    ),
    Seed(
        "fused loss: the entropy's sign",
        DEVICE,
        "fma(splat<V>(entropy_weight), log_p + entropy, -policy_gradient)",
        "fma(splat<V>(-entropy_weight), log_p + entropy, -policy_gradient)",
        LEARNING,
    ),
    Seed(
        "losses: the advantage's sign",
        LOSSES,
        "return returns - values, returns",
        "return values - returns, returns",
        LEARNING,
    ),
    Seed(
        "losses: generalized advantages one step late",
        LOSSES,
        "errors[:-1] += gamma * values[1:]",
        "errors[:-1] += gamma * values[:-1]",
        LEARNING,
    ),
    Seed(
        "losses: advantages are not centered",
        LOSSES,
        "return ((advantage - mean) / std).to(advantage.dtype)",
        "return (advantage / std).to(advantage.dtype)",
        LEARNING,
    ),
    Seed(
        "trainer: the learning rate never falls",
        "rbc_warp/training/updates.py",
        "learner.optimizer.learning_rate = update.learning_rate",
        "pass",
        (
            "tests/test_training.py",
            "tests/test_warpdrive_loop.py",
            "tests/test_curriculum.py",
            "tests/test_learning.py",
        ),
    ),
    Seed(
        "trainer: rewards are not scaled",
        "rbc_warp/training/rollout.py",
        "scale = self.economy.agents[agent].settings.reward_scale",
        "scale = 1.0",
        ("tests/test_training.py", "tests/test_learning.py", "tests/test_warpdrive_loop.py"),
    ),
    Seed(
        "trials: what did not pay is learned, too",
        "rbc_warp/training/trials.py",
        "paid = gains > 0.0",
        "paid = gains == gains",
        ("tests/test_trials.py",),
    ),
    Seed(
        "curriculum: the tax cap is ignored",
        "rbc_warp/economy/curriculum.py",
        "return np.all(economy.government_choices <= cap, axis=1)",
        "return np.any(economy.government_choices <= cap, axis=1)",
        ("tests/test_curriculum.py",),
    ),
    Seed(
        "deviations: gains of the wrong sign",
        "rbc_warp/equilibrium/deviations.py",
        "Estimate.of(new - old, level)",
        "Estimate.of(old - new, level)",
        ("tests/test_deviations.py",),
    ),
)


def seeded(count: int) -> list[str]:
    """Apply each fault to a copy of the tree and run its tests until the first that fails; tell what none catches."""
    seeds = SEEDS[:count]
    from reliability.forks import room

    with room() as folder:

        def work(seed: Seed) -> str | None:
            copy = folder / str(os.getpid())
            if not copy.exists():
                tracked = subprocess.run(
                    ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
                )
                for name in filter(None, tracked.stdout.split("\0")):
                    (copy / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / name, copy / name)
            path = copy / seed.file
            whole = path.read_text()
            if whole.count(seed.before) != 1:
                return f"stands {whole.count(seed.before)} times in {seed.file}: {seed.before}"
            path.write_text(whole.replace(seed.before, seed.after))
            environment = {
                k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "PYTHONPATH", "RBC_WARP_FAULTS")
            }
            try:
                words = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *seed.tests]
                result = subprocess.run(words, cwd=copy, env=environment, capture_output=True, text=True)
            finally:
                path.write_text(whole)
            caught = [
                line.removeprefix("FAILED ")
                for line in result.stdout.splitlines()
                if line.startswith(("FAILED", "ERROR"))
            ]
            told = caught[0].split(" - ")[0] if caught else "NOT CAUGHT"
            os.write(TELL, f"  {seed.name}: {told}\n".encode())
            return None if result.returncode == 1 and caught else f"not caught by {' '.join(seed.tests)}"

        return spread(seeds, work)
