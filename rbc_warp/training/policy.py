"""One network per agent type: input encoding, two ReLU layers, softmax heads and a value, on one trunk.

The first layer is split into a public part, computed once per environment and shared by its agents, and a private
part. All parameters of a type lie in one contiguous vector; ``state_dict`` speaks the file format's layer names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from rbc_warp.config import Config
from rbc_warp.economy.parameters import AGENT_TYPES, CONSUMER_BUDGET, CONSUMER_THETA, FIRM_BUDGET, FIRM_CAPITAL, Economy
from rbc_warp.warpdrive.kernels import Layers

HIDDEN = 128
CAPITAL_SCALE = 10000.0


@cache
def _moduli(num_digits: int, device: torch.device) -> torch.Tensor:
    """10, 100, … (num_digits,), made once per device: a rollout copies nothing there."""
    return torch.tensor([10.0 ** (k + 1) for k in range(num_digits)], device=device)


@dataclass(frozen=True)
class Encoder:
    """Turns states into network inputs, for one agent type. d digits; J firms.

    Prices, wages, time, θ and capital are divided by their scales; each inventory and the agent's budget become d
    numbers (x mod 10^(k+1)) / 10^(k+1), k = 0…d−1, in the place of the number they encode.
    """

    num_firms: int
    num_digits: int
    max_price: float
    max_wage: float
    num_periods: int
    agent: str
    theta_scale: float
    private_size: int

    @property
    def num_public(self) -> int:
        """Inputs that encode the public state: J prices, J wages, J·d digits, J flags, 2 taxes, time."""
        return self.num_firms * (3 + self.num_digits) + 3

    @property
    def num_private(self) -> int:
        """Inputs that encode the private state: the budget's d digits and the rest of it."""
        return self.num_digits - 1 + self.private_size if self.private_size else 0

    def digits(self, x: torch.Tensor) -> torch.Tensor:
        """(…) → (…, d)."""
        modulus = _moduli(self.num_digits, x.device)
        return torch.remainder(x.unsqueeze(-1), modulus) / modulus

    def encode_public(self, public: torch.Tensor) -> torch.Tensor:
        """(N, 4J+3) → (N, num_public)."""
        j = self.num_firms
        prices, wages, inventories, rest = public.split([j, j, j, j + 3], dim=-1)
        rest = rest.clone()
        rest[..., -1] /= self.num_periods
        return torch.cat(
            [prices / self.max_price, wages / self.max_wage, self.digits(inventories).flatten(-2), rest], dim=-1
        )

    def encode_private(self, private: torch.Tensor) -> torch.Tensor:
        """(…, private_size) → (…, num_private)."""
        if self.agent == "consumer":
            theta = private[..., CONSUMER_THETA:] / self.theta_scale
            return torch.cat([self.digits(private[..., CONSUMER_BUDGET]), theta], dim=-1)
        rest = private[..., FIRM_CAPITAL:].clone()
        rest[..., 0] /= CAPITAL_SCALE
        return torch.cat([self.digits(private[..., FIRM_BUDGET]), rest], dim=-1)


class Policy(nn.Module):
    """The policy and value function of one agent type."""

    def __init__(self, encoder: Encoder, head_sizes: list[int], seed: int = 0):
        super().__init__()
        self.encoder = encoder
        self.head_sizes = list(head_sizes)
        self.num_actions = sum(head_sizes)
        self._shapes = [
            (HIDDEN, encoder.num_public),
            (HIDDEN, encoder.num_private),
            (HIDDEN,),
            (HIDDEN, HIDDEN),
            (HIDDEN,),
            (self.num_actions + 1, HIDDEN),
            (self.num_actions + 1,),
        ]
        self.flat = nn.Parameter(torch.empty(sum(math.prod(shape) for shape in self._shapes)))
        self._initialise(seed)

    def _initialise(self, seed: int) -> None:
        """Uniform on ±1/sqrt(inputs), torch's default for linear layers, from this type's own seed."""
        generator = torch.Generator().manual_seed(seed)
        layers = self.layers(self.flat.data)
        first = 1.0 / math.sqrt(self.encoder.num_public + self.encoder.num_private)
        later = 1.0 / math.sqrt(HIDDEN)
        for tensor, bound in zip(vars(layers).values(), (first,) * 3 + (later,) * 4, strict=True):
            tensor.copy_((2.0 * torch.rand(tensor.shape, generator=generator) - 1.0) * bound)

    def layers(self, flat: torch.Tensor | None = None) -> Layers:
        """Views into the parameters, or into any vector laid out like them."""
        flat = self.flat if flat is None else flat
        pieces = flat.split([math.prod(shape) for shape in self._shapes])
        return Layers(*(piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)))

    def outputs(self, states: torch.Tensor) -> torch.Tensor:
        """Raw states (…, d), public part first, to logits of all heads and the value (…, actions+1), with autograd.

        This is the plain statement of the network; ``ppo.py`` computes the same in blocks.
        """
        layers, size = self.layers(), 4 * self.encoder.num_firms + 3
        hidden = self.encoder.encode_public(states[..., :size]) @ layers.public.T + layers.bias1
        if self.encoder.num_private:
            hidden = hidden + self.encoder.encode_private(states[..., size:]) @ layers.private.T
        hidden = functional.linear(functional.relu(hidden), layers.weight2, layers.bias2)
        return functional.linear(functional.relu(hidden), layers.weight3, layers.bias3)

    def forward(
        self, states: torch.Tensor, allowed: torch.Tensor | None = None
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Raw states (…, d) to a list of probabilities per head, (…, n_h) each, and values (…)."""
        logits, value = self.outputs(states).split([self.num_actions, 1], dim=-1)
        if allowed is not None:
            logits = logits.masked_fill(~allowed.bool(), -torch.inf)
        return [head.softmax(-1) for head in logits.split(self.head_sizes, dim=-1)], value.squeeze(-1)

    @torch.no_grad()
    def probabilities(self, states: np.ndarray | torch.Tensor, allowed: torch.Tensor | None = None) -> torch.Tensor:
        """Raw states (…, d), array or tensor, to the probabilities of all heads one after the other (…, actions)."""
        states = torch.as_tensor(states, dtype=torch.float32, device=self.flat.device)
        expected = 4 * self.encoder.num_firms + 3 + self.encoder.private_size
        if states.shape[-1] != expected:
            raise ValueError(f"states end in {states.shape[-1]} numbers; a {self.encoder.agent} sees {expected}")
        return torch.cat(self.forward(states, allowed)[0], dim=-1)

    def file_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors in a policy file."""
        return {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """The parameters under the file format's names: fc1, fc2, fc3 or action_heads.<n>, fc4 (the value)."""
        layers = self.layers(self.flat.detach())
        state = {
            "fc1.weight": torch.cat([layers.public, layers.private], dim=1),
            "fc1.bias": layers.bias1,
            "fc2.weight": layers.weight2,
            "fc2.bias": layers.bias2,
        }
        names = self._head_names()
        weights = layers.weight3.split([*self.head_sizes, 1])
        biases = layers.bias3.split([*self.head_sizes, 1])
        for name, weight, bias in zip(names, weights, biases, strict=True):
            state[f"{name}.weight"], state[f"{name}.bias"] = weight, bias
        return {name: tensor.clone() for name, tensor in state.items()}

    def load_state_dict(
        self, state_dict: Mapping[str, torch.Tensor], strict: bool = True, assign: bool = False
    ) -> None:
        """Takes parameters under the file format's names; shapes and names must fit exactly."""
        expected = self.file_shapes()
        found = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
        if found != expected:
            raise ValueError(f"a {self.encoder.agent} policy needs tensors {expected}; found {found}")
        names = self._head_names()
        first = state_dict["fc1.weight"]
        layers = Layers(
            first[:, : self.encoder.num_public],
            first[:, self.encoder.num_public :],
            state_dict["fc1.bias"],
            state_dict["fc2.weight"],
            state_dict["fc2.bias"],
            torch.cat([state_dict[f"{name}.weight"] for name in names]),
            torch.cat([state_dict[f"{name}.bias"] for name in names]),
        )
        for own, given in zip(vars(self.layers(self.flat.data)).values(), vars(layers).values(), strict=True):
            own.copy_(given)

    def _head_names(self) -> list[str]:
        if self.encoder.agent != "consumer":
            return ["fc3", "fc4"]
        return [*(f"action_heads.{n}" for n in range(len(self.head_sizes))), "fc4"]


def make_policies(config: Config, economy: Economy) -> dict[str, Policy]:
    """Untrained policies for the three types, reproducible from ``train.base_seed``."""
    policies = {}
    for n, agent in enumerate(AGENT_TYPES):
        encoder = Encoder(
            num_firms=economy.num_firms,
            num_digits=config.train.digit_representation_size,
            max_price=float(economy.firm_choices[:, 0].max()) or 1.0,
            max_wage=float(economy.firm_choices[:, 1].max()) or 1.0,
            num_periods=economy.num_periods,
            agent=agent,
            theta_scale=config.world.consumer_theta or 1.0,
            private_size=economy.private_size[agent],
        )
        policies[agent] = Policy(encoder, economy.head_sizes[agent], seed=3 * config.train.base_seed + n)
    return policies
