"""Train all three types in plain torch, without rbc_warp's trainer: a policy gradient with a learned baseline.

    python examples/train_in_torch.py --config configs/smoke.yaml --iterations 200

One network per agent type, on the tensors of ``rbc_warp.vector_env``. Consumers learn alone for a third of the time,
then firms, too, then the government: so the phases of the paper can be seen. PPO, the widening ranges and trials of
``run_training.py`` are left out, so what it finds is no equilibrium.
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import nn

import rbc_warp

SCALES = {"consumer": 5.0, "firm": 30_000.0, "government": 1_000.0}
"""Divisors of rewards, so that all types learn from numbers of about one."""
STARTS = {"consumer": 0.0, "firm": 1 / 3, "government": 2 / 3}
"""Shares of the iterations after which a type begins to learn."""


class Network(nn.Module):
    """Logits of all action heads, one after the other, and a value."""

    def __init__(self, inputs: int, heads: list[int]):
        super().__init__()
        self.heads = heads
        self.body = nn.Sequential(nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        self.out = nn.Linear(128, sum(heads) + 1)

    def forward(self, seen: torch.Tensor) -> tuple[list[torch.distributions.Categorical], torch.Tensor]:
        """Distributions by head, each (E, n), and values (E, n) of inputs (E, n, inputs)."""
        *logits, value = self.out(self.body(seen)).split([*self.heads, 1], dim=-1)
        return [torch.distributions.Categorical(logits=head) for head in logits], value.squeeze(-1)


def play(env, networks):
    """Play one episode in every environment: by type, what was seen and done, (T, E, n, …), and rewards (T, E, n)."""
    history = {name: {"seen": [], "actions": [], "rewards": []} for name in networks}
    env.reset()
    for _ in range(env.num_periods):
        for name, network in networks.items():
            seen = env.encoded(name)
            with torch.no_grad():
                heads, _ = network(seen)
                actions = torch.stack([head.sample() for head in heads], dim=-1)
            env.actions[name].copy_(actions)  # straight into the memory that the step reads
            history[name]["seen"].append(seen)
            history[name]["actions"].append(actions)
        _, rewards, *_ = env.step()
        for name in networks:
            history[name]["rewards"].append(rewards[name].clone())  # the next step overwrites it
    return {name: {key: torch.stack(rows) for key, rows in kept.items()} for name, kept in history.items()}


def learn(network, optimizer, kept, scale, entropy=0.01):
    """Take one policy-gradient step."""
    returns = kept["rewards"].flip(0).cumsum(0).flip(0) / scale
    heads, values = network(kept["seen"])
    log_probability = sum(head.log_prob(kept["actions"][..., n]) for n, head in enumerate(heads))
    advantage = (returns - values).detach()
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    bonus = sum(head.entropy().mean() for head in heads)
    loss = -(advantage * log_probability).mean() + 0.5 * (returns - values).pow(2).mean() - entropy * bonus
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 2.0)
    optimizer.step()


def main(arguments: list[str] | None = None) -> list[dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/smoke.yaml", metavar="FILE")
    parser.add_argument("--iterations", type=int, default=200, metavar="N")
    parser.add_argument("--envs", type=int, default=32, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    options = parser.parse_args(arguments)
    if options.iterations < 1:
        parser.error(f"--iterations {options.iterations}: give 1 or more")
    torch.manual_seed(options.seed)
    env = rbc_warp.vector_env(options.config, num_envs=options.envs)
    env.reset()
    networks = {
        name: Network(env.encoded(name).shape[-1], kind.head_sizes).to(env.device) for name, kind in env.types.items()
    }
    optimizers = {name: torch.optim.Adam(network.parameters(), lr=1e-3) for name, network in networks.items()}
    means = []
    for iteration in range(options.iterations):
        history = play(env, networks)
        for name, network in networks.items():
            if iteration >= STARTS[name] * options.iterations:
                learn(network, optimizers[name], history[name], SCALES[name])
        means.append({name: float(kept["rewards"].mean()) for name, kept in history.items()})
        if iteration % max(1, options.iterations // 10) == 0 or iteration == options.iterations - 1:
            print(f"{iteration:5d}  " + "  ".join(f"{name} {mean:.4g}" for name, mean in means[-1].items()))
    return means


if __name__ == "__main__":
    try:
        main()
    except rbc_warp.UserError as error:
        sys.exit(f"error: {error}")
