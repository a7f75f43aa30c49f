"""The schema of a resume state: keys, types, shapes and ranges, against the run's own configuration."""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rbc_warp.config import Config
from rbc_warp.economy.parameters import Economy
from rbc_warp.errors import RunFileError
from rbc_warp.training.policy import make_policies

STATE_VERSION = 1
MAX_ITERATIONS = 2**31
REMEDY = "start the run anew: only one with a whole state/last.pt or state/previous.pt can be resumed"


@dataclass(frozen=True)
class Checker:
    """Looks at the parts of a state; what does not fit raises RunFileError, which names the file and the part."""

    path: Path

    def __call__(self, holds: Any, name: str, expected: str) -> None:
        if not holds:
            raise RunFileError(self.path, f"{name}: expected {expected}", REMEDY)

    def keys(self, value: Any, name: str, expected: Iterable[Any], more: Iterable[Any] = ()) -> None:
        """A dict with all the keys that are expected, and perhaps ``more``."""
        known = [*expected]
        fits = isinstance(value, dict) and set(known) <= set(value) <= {*known, *more}
        self(fits, name, f"the keys {', '.join(map(str, known))}")

    def number(self, value: Any, name: str, low: float, high: float, whole: bool = False) -> None:
        fits = type(value) in ((int,) if whole else (int, float)) and low <= value <= high
        self(fits, name, f"a {'whole ' if whole else ''}number from {low:g} to {high:g}")

    def vector(self, value: Any, name: str, shape: tuple[int, ...], low: float = -math.inf) -> None:
        """A dense float32 tensor of finite numbers, at least ``low``."""
        dense = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        fits = dense and value.dtype == torch.float32 and tuple(value.shape) == shape
        self(fits, name, f"float32 of shape {shape}")
        self(bool(torch.isfinite(value).all()) and bool((value >= low).all()), name, f"finite numbers from {low:g}")

    def adam(self, value: Any, name: str, size: int, rate: float) -> None:
        """What Adam keeps of one vector of so many parameters, at a learning rate of at most ``rate``."""
        fresh = torch.optim.Adam([torch.zeros(1)]).state_dict()["param_groups"][0]
        self.keys(value, name, ("state", "param_groups"))
        groups, moments = value["param_groups"], value["state"]
        self(isinstance(groups, list) and len(groups) == 1, f"{name}.param_groups", "one group")
        self(isinstance(groups[0], dict) and "lr" in groups[0], f"{name}.param_groups[0]", "what Adam keeps")
        self.number(groups[0]["lr"], f"{name}.lr", 0.0, rate * (1.0 + 1e-6))
        for key in groups[0].keys() - {"lr"}:  # each version of torch has a few more
            self(key not in fresh or groups[0][key] == fresh[key], f"{name}.{key}", str(fresh.get(key)))
        self.keys(moments, f"{name}.state", (), (0,))
        for one in moments.values():
            self.keys(one, f"{name}.state[0]", ("step", "exp_avg", "exp_avg_sq"))
            self.vector(one["step"], f"{name}.step", (), low=1.0)
            self.vector(one["exp_avg"], f"{name}.exp_avg", (size,))
            self.vector(one["exp_avg_sq"], f"{name}.exp_avg_sq", (size,), low=0.0)


def check_head(checker: Checker, state: dict[str, Any]) -> None:
    """Raise RunFileError where a state has not the parts that every state has."""
    version = state.get("version")
    if version != STATE_VERSION:
        remedy = "resume with the version of the lab that wrote it"
        raise RunFileError(checker.path, f"its version is {version!r}, version {STATE_VERSION} is known", remedy)
    checker.keys(state, "state", ("version", "iteration", "precision", "config", "trainer"), ("settings", "progress"))
    checker.number(state["iteration"], "iteration", 0, MAX_ITERATIONS, whole=True)
    checker(state["precision"] in ("torch.float32", "torch.bfloat16"), "precision", "torch.float32 or torch.bfloat16")
    checker(isinstance(state["config"], dict), "config", "a configuration")


def check_trainer(checker: Checker, trainer: Any, config: Config) -> None:
    """Raise RunFileError where a trainer's state does not fit the run's configuration."""
    agents, policies = Economy.from_config(config).agents, sizes_of_policies(config)
    checker.keys(trainer, "trainer", ("policies", "optimizers", "noponzi"))
    checker.keys(trainer["policies"], "policies", agents)
    checker.keys(trainer["optimizers"], "optimizers", agents)
    checker.keys(trainer["noponzi"], "noponzi", [name for name, agent in agents.items() if agent.penalty_scale])
    for name, size in policies.items():
        rate = config.train.lr * max(1.0, agents[name].settings.lr_multiple)
        checker.vector(trainer["policies"][name], f"policies.{name}", (size,))
        checker.adam(trainer["optimizers"][name], f"optimizers.{name}", size, rate)
    for name, multiplier in trainer["noponzi"].items():
        checker.number(multiplier, f"noponzi.{name}", 0.0, sys.float_info.max)


def sizes_of_policies(config: Config) -> dict[str, int]:
    """Return how many parameters each type's policy has."""
    return {name: policy.flat.numel() for name, policy in make_policies(config, Economy.from_config(config)).items()}
