"""Look for equilibrium gaps with Stable-Baselines3: its PPO against a run's policies, one agent at a time.

    python examples/independent_searcher.py RUN --agents firm_0 consumer_0 government_0 --steps 300000

Each agent gets a network of its own, untrained, which knows nothing of the saved one. Ten times on the way its most
likely actions are played on selection seeds; the best of the ten is reported, on fresh seeds, against what the agent's
saved policy draws on the same. Stable-Baselines3 comes with `make setup-extras` or `pip install -r
requirements-extras.txt`.
"""

from __future__ import annotations

import argparse
import io
import time
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, MultiDiscrete

import rbc_warp  # noqa: F401 - before Stable-Baselines3, whose import of gym would print a notice

# isort: split
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from rbc_warp.equilibrium.game import Estimate
from rbc_warp.errors import UserError
from rbc_warp.interfaces.deviator import Deviators
from rbc_warp.runs.folder import RunDir

CANDIDATES, SELECTION_EPISODES = 10, 256
SELECTION_SEED, REPORT_SEED = 1_000_000, 2_000_000
"""Training draws from the searcher's own seed on, so that nothing is chosen or reported on what it has learned from."""


class DeviatorVecEnv(VecEnv):
    """All environments of a deviator for Stable-Baselines3, which acts by numbers of the actions that are allowed."""

    render_mode = None

    def __init__(self, deviators: Deviators, seed: int):
        self.deviators = deviators
        heads = deviators.allowed.cpu().split(deviators.kind.head_sizes)
        self.choices = [head.nonzero().flatten().numpy() for head in heads]
        seen = deviators.reset(seed)
        space = Box(-np.inf, np.inf, (seen.shape[1],), np.float32)
        super().__init__(deviators.num_envs, space, MultiDiscrete([len(head) for head in self.choices]))

    def indices(self, actions: np.ndarray) -> np.ndarray:
        """From numbers of allowed actions to indices into the grids, (E, heads)."""
        return np.stack([head[column] for head, column in zip(self.choices, actions.T, strict=True)], axis=1)

    def reset(self) -> np.ndarray:
        return self.deviators.reset().cpu().numpy()

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = self.indices(actions)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        seen, rewards, ended = self.deviators.step(self.actions)
        observed: np.ndarray = seen.cpu().numpy()
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if ended:  # all end together, and Stable-Baselines3 wants the next episode's first observation
            infos = [{"terminal_observation": last} for last in observed]
            observed = self.reset()
        return observed, rewards.cpu().numpy(), np.full(self.num_envs, ended), infos

    def close(self) -> None:
        self.deviators.vector.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError(method_name)

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


def play(env: DeviatorVecEnv, first_seed: int, episodes: int, model: PPO | None) -> np.ndarray:
    """Return the agent's reward per period in each episode, by a model's most likely actions or as its policy draws."""
    deviators, found = env.deviators, []
    for batch in range(-(-episodes // deviators.num_envs)):
        seen, total = deviators.reset(first_seed + batch), torch.zeros(deviators.num_envs, dtype=torch.float64)
        while not deviators.ended:
            if model is None:
                actions: Any = deviators.saved_actions()
            else:
                actions = env.indices(model.predict(seen.cpu().numpy(), deterministic=True)[0])
            seen, rewards, _ = deviators.step(actions)
            total += rewards.cpu()
        found.append(total.numpy() / deviators.vector.num_periods)
    return np.concatenate(found)


def search(
    run: str, agent: str, steps: int, episode: str = "latest", num_envs: int = 32, seed: int = 0, episodes: int = 4096
) -> tuple[Estimate, float, int]:
    """Train PPO; return its gain over the saved policy per period, 95 %, that policy's value, and its iteration."""
    env, judge = (
        DeviatorVecEnv(Deviators(run, agent, episode, num_envs=num_envs, encoded=True), seed) for _ in range(2)
    )
    periods = env.deviators.vector.num_periods
    model = PPO(
        "MlpPolicy",
        VecNormalize(env, norm_obs=False, gamma=1.0),
        n_steps=4 * periods,
        batch_size=8 * periods * max(1, num_envs // 16),
        gamma=1.0,  # rewards of all periods count alike
        learning_rate=1e-3,
        policy_kwargs={"net_arch": [128, 128], "activation_fn": torch.nn.ReLU},
        seed=seed,
        device=env.deviators.device,
    )
    best, kept = -np.inf, io.BytesIO()
    for part in range(CANDIDATES):
        model.learn(steps // CANDIDATES, reset_num_timesteps=part == 0)
        value = play(judge, SELECTION_SEED, SELECTION_EPISODES, model).mean()
        if value > best:
            best, kept = value, io.BytesIO()
            model.policy.save(kept)
    kept.seek(0)
    model.policy.load_state_dict(torch.load(kept, weights_only=False)["state_dict"])
    saved = play(judge, REPORT_SEED, episodes, None)
    return Estimate.of(play(judge, REPORT_SEED, episodes, model) - saved), float(saved.mean()), env.deviators.iteration


def ours(run: str, agent: str, iteration: int) -> str:
    """The largest gain that best_response.json holds for one agent of a checkpoint, and how it was found."""
    name, _, number = agent.rpartition("_")
    wanted = (None, 0) if name == "government" else (int(number),)
    records = [
        record
        for record in RunDir(run).read_best_response().get("records", [])
        if record["agent"] == name
        and record["index"] in wanted
        and record["iteration"] == iteration
        and not record["greedy"]
    ]
    if not records:
        return "not measured"
    best = max(records, key=lambda record: record["gain"])
    return f"{Estimate(best['gain'], best['low'], best['high'])} ({best['method']}: {best['found']})"


def main(arguments: list[str] | None = None) -> dict[str, Estimate]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--agents", nargs="+", default=["firm_0", "consumer_0", "government_0"], metavar="AGENT")
    parser.add_argument("--episode", default="latest", metavar="CHECKPOINT")
    parser.add_argument("--steps", type=int, default=300_000, metavar="N", help="environment steps of training")
    parser.add_argument("--envs", type=int, default=32, metavar="N")
    parser.add_argument("--episodes", type=int, default=4096, metavar="N", help="paired episodes of the report")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    options = parser.parse_args(arguments)
    for name in ("steps", "envs", "episodes"):
        if (value := getattr(options, name)) < 1:
            parser.error(f"--{name} {value}: give 1 or more")
    torch.set_num_threads(1)
    found = {}
    for agent in options.agents:
        began = time.monotonic()
        try:
            gain, value, iteration = search(
                options.run, agent, options.steps, options.episode, options.envs, options.seed, options.episodes
            )
            known = ours(options.run, agent, iteration)
        except UserError as error:
            raise SystemExit(f"error: {error}") from None
        found[agent] = gain
        seconds = time.monotonic() - began
        print(f"{agent}: value {value:.6g}, PPO gains {gain} in {seconds:.0f} s, ours {known}", flush=True)
    return found


if __name__ == "__main__":
    main()
