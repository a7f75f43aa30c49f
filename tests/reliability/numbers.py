"""NaN and infinity from twelve places; the identities of the model; sanitizers."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import torch
from economies import check_identities, make_economy, observed_outcome, random_actions

from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.training.trainer import RbcTrainer
from rbc_warp.warpdrive.build import find_host_compiler
from reliability.forks import TRIED, Child, command, room, spread
from reliability.runs import CONFIG, content, settings, the_runs

AT = 5
"""The iteration in which a number goes wrong; the states of iterations 2 and 4 are on disk then."""


def _weights(agent: str) -> Callable[[RbcTrainer, float], None]:
    def spoil(trainer: RbcTrainer, value: float) -> None:
        trainer.models[agent].flat.data[7] = value

    return spoil


def _array(name: str) -> Callable[[RbcTrainer, float], None]:
    def spoil(trainer: RbcTrainer, value: float) -> None:
        trainer._data(name).view(-1)[0] = value

    return spoil


def _moment(agent: str) -> Callable[[RbcTrainer, float], None]:
    def spoil(trainer: RbcTrainer, value: float) -> None:
        for state in trainer.optimizers[agent].state.values():
            state["exp_avg"].view(-1)[3] = value

    return spoil


def _multiplier(trainer: RbcTrainer, value: float) -> None:
    trainer.multipliers["consumer"] = value


PLACES: dict[str, tuple[str, Callable[[RbcTrainer, float], None]]] = {
    **{f"{agent} weights": ("_update_model_params", _weights(agent)) for agent in AGENT_TYPES},
    **{f"{agent} rewards": ("_update_model_params", _array(f"rewards_batch_{agent}")) for agent in AGENT_TYPES},
    "consumer values": ("_update_model_params", _array("values_batch_consumer")),
    "firm log-probabilities": ("_update_model_params", _array("log_probabilities_batch_firm")),
    "consumer moments": ("_update_model_params", _moment("consumer")),
    "firm moments": ("_update_model_params", _moment("firm")),
    "consumer multiplier": ("save_model_checkpoint", _multiplier),
    "consumer weights, after the update": ("save_model_checkpoint", _weights("consumer")),
}


def not_finite(count: int) -> list[str]:
    """Spoil one number while a run trains: it stops with code 3, and all that it leaves is finite and can go on."""
    cases = list(itertools.product(PLACES, (math.nan, math.inf, -math.inf)))
    with room() as folder:

        def work(case: tuple[str, float]) -> str | None:
            place, value = case
            hook, spoil = PLACES[place]
            box = folder / f"{place}-{value}".replace(" ", "_")

            def run() -> int:
                original = getattr(RbcTrainer, hook)

                def spoiled(trainer: RbcTrainer, iteration: int = 0) -> object:
                    if iteration == AT:
                        with torch.no_grad():
                            spoil(trainer, value)
                    return original(trainer, iteration)

                setattr(RbcTrainer, hook, spoiled)
                sets = [word for setting in settings() for word in ("--set", setting)]
                start = ["train", "--config", CONFIG, "--backend", "host", "--quiet", "--experiment-dir", box]
                return command(*start, *sets)()

            ended = Child(run).wait()
            left = the_runs(box)[0]
            fault = ended.fault({3})
            if not fault and (place.split()[0] not in ended.text or str(AT) not in ended.text):
                fault = f"names neither agent nor iteration: {ended.text.strip()[:200]}"
            if not fault:
                content(left)  # readers refuse what is not finite
                state, warning = left.load_state()
                flat = [state["trainer"]["policies"][agent] for agent in AGENT_TYPES]
                moments = [
                    m
                    for agent in AGENT_TYPES
                    for s in state["trainer"]["optimizers"][agent]["state"].values()
                    for m in s.values()
                ]
                numbers = [*flat, *moments, torch.tensor(list(state["trainer"]["noponzi"].values()))]
                if warning or not all(torch.isfinite(number).all() for number in numbers):
                    fault = "the last state is not finite"
            return fault

        return spread(cases[:count], work)


def identities(count: int) -> list[str]:
    """Play random actions for 500 periods on the host, and check the identities of each to 1e-6 of what they sum."""
    from test_kernels import Envs

    sizes, periods = ((3, 2), (17, 5), (100, 10)), 500
    cases = list(itertools.product(range(20), (True, False), sizes))

    def work(case: tuple[int, bool, tuple[int, int]]) -> str | None:
        seed, open_, size = case
        economy = make_economy(*size, open_=open_, num_periods=periods, interest_rate=0.001, initial_inventory=3.0)
        envs, actions = Envs(economy, num_envs=1), random_actions(economy, 1, periods, seed)
        after = envs.state
        for t in range(periods):
            now = {agent: actions[agent][:, t] for agent in AGENT_TYPES}
            before = after
            envs.step(now)
            after = envs.state
            outcome = observed_outcome(
                economy, before, now, envs.consumption, envs.array("exports"), after, envs.rewards()
            )
            turnover = float(outcome.revenue.sum() + outcome.wage_bill.sum())  # taxes are rounded differences of it
            money = 2e-3 + 1e-6 * turnover / economy.num_consumers
            check_identities(economy, before, outcome, after, rtol=1e-6, money_atol=money, goods_atol=2e-4)
        return None

    return spread(cases[:count], work)


SANITIZED = """
import sys
from rbc_warp.warpdrive import build, host
build.DEBUG_FLAGS = (*build.DEBUG_FLAGS, "-fsanitize=address")
built = build.build_host
host.build_host = lambda: built(debug=True)
from rbc_warp.config import load_config
from rbc_warp.training.trainer import RbcTrainer
for line in sys.stdin:
    consumers, firms, envs, precision, ppo = line.split()
    print(line.strip(), flush=True)
    settings = {"agents": {"num_consumers": int(consumers), "num_firms": int(firms), "firm_trials": 2},
                "world": {"maxtime": 2},
                "train": {"batch_size": int(envs), "precision": precision, "use_ppo": ppo == "1"}}
    RbcTrainer(load_config(settings), "host").train(0, 2)
print("sound")
"""


def sanitized(count: int) -> list[str]:
    """Train two iterations of odd sizes on kernels built with ASan and UBSan; the first fault ends the program."""
    cases = list(
        itertools.product((1, 2, 15, 16, 17, 33, 47), (1, 2, 3, 15, 17, 33), (1, 3), ("float32", "bfloat16"), (0, 1))
    )
    random_order = np.random.default_rng(1).permutation(len(cases))
    lines = [" ".join(map(str, cases[n])) for n in random_order[:count]]
    library = subprocess.run(
        [find_host_compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True
    ).stdout
    environment = {k: v for k, v in os.environ.items() if k != "RBC_WARP_FAULTS"}
    environment |= {
        "LD_PRELOAD": library.strip(),
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
        "OMP_NUM_THREADS": "2",
    }
    TRIED[0] += len(lines)
    given = "\n".join(lines)
    words = [sys.executable, "-c", SANITIZED]
    result = subprocess.run(words, input=given, env=environment, capture_output=True, text=True)
    done = result.stdout.splitlines()
    if done[-1:] == ["sound"] and "runtime error" not in result.stderr:
        return []
    return [f"{done[-1] if done else 'at the start'}: {result.stderr.strip()[-600:]}"]
