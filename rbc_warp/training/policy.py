"""One network per agent type: input encoding, two ReLU layers, softmax heads and a value, on one trunk.

The first layer is split into a public part, computed once per environment and shared by its agents, and a private
part. All parameters of a type lie in one contiguous vector; ``state_dict`` speaks the file format's layer names.
"""

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
from rbc_warp.economy.agents import DIGITS, Layout
from rbc_warp.economy.parameters import Economy
from rbc_warp.warpdrive.kernels import Layers


@cache
def _moduli(num_digits: int, device: torch.device) -> torch.Tensor:
    """10, 100, … (num_digits,), made once per device: a rollout copies nothing there."""
    return torch.tensor([10.0 ** (k + 1) for k in range(num_digits)], device=device)


@dataclass(frozen=True)
class Encoder:
    """Turns states into network inputs, for one agent type.

    A column of the state is divided by its scale; one without a scale becomes ``num_digits`` numbers
    (x mod 10^(k+1)) / 10^(k+1), k = 0, 1, …, in the place of the number that they encode.
    """

    agent: str
    public: Layout
    private: Layout
    num_digits: int

    @property
    def num_public(self) -> int:
        """Inputs that encode the public state."""
        return self._num_inputs(self.public)

    @property
    def num_private(self) -> int:
        """Inputs that encode the private state."""
        return self._num_inputs(self.private)

    def _num_inputs(self, layout: Layout) -> int:
        return sum(
            (column.width or 1) * (self.num_digits if column.scale is DIGITS else 1) for column in layout.columns
        )

    def inputs(self, layout: Layout) -> list[tuple[int, float]]:
        """Return what :class:`~rbc_warp.warpdrive.kernels.Encoding` computes each input of a layout from."""
        moduli = [-(10.0 ** (k + 1)) for k in range(self.num_digits)]
        return [
            (column, divisor)
            for entry, span in layout.spans()
            for column in range(span.start, span.stop)
            for divisor in (moduli if entry.scale is DIGITS else [entry.scale])
        ]

    def digits(self, x: torch.Tensor) -> torch.Tensor:
        """(…) → (…, num_digits)."""
        modulus = _moduli(self.num_digits, x.device)
        return torch.remainder(x.unsqueeze(-1), modulus) / modulus

    def encode_public(self, public: torch.Tensor) -> torch.Tensor:
        """(…, 4J+3) → (…, num_public)."""
        return self._encode(self.public, public)

    def encode_private(self, private: torch.Tensor) -> torch.Tensor:
        """(…, size of the private state) → (…, num_private)."""
        return self._encode(self.private, private)

    def _encode(self, layout: Layout, state: torch.Tensor) -> torch.Tensor:
        parts = []
        for column, span in layout.spans():
            values = state[..., span]
            if column.scale is DIGITS:
                values = self.digits(values).flatten(-2)
            elif column.scale != 1.0:
                values = values / column.scale
            parts.append(values)
        return torch.cat(parts, dim=-1)


class Policy(nn.Module):
    """The policy and value function of one agent type."""

    def __init__(self, encoder: Encoder, head_sizes: list[int], seed: int = 0, hidden: int = 128):
        super().__init__()
        self.encoder, self.hidden = encoder, hidden
        self.head_sizes = list(head_sizes)
        self.num_actions = sum(head_sizes)
        self._shapes = [
            (hidden, encoder.num_public),
            (hidden, encoder.num_private),
            (hidden,),
            (hidden, hidden),
            (hidden,),
            (self.num_actions + 1, hidden),
            (self.num_actions + 1,),
        ]
        self.flat = nn.Parameter(torch.empty(sum(math.prod(shape) for shape in self._shapes)))
        self._initialize(seed)

    def _initialize(self, seed: int) -> None:
        """Uniform on ±1/sqrt(inputs), torch's default for linear layers, from this type's own seed."""
        generator = torch.Generator().manual_seed(seed)
        layers = self.layers(self.flat.data)
        first = 1.0 / math.sqrt(self.encoder.num_public + self.encoder.num_private)
        later = 1.0 / math.sqrt(self.hidden)
        for tensor, bound in zip(vars(layers).values(), (first,) * 3 + (later,) * 4, strict=True):
            tensor.copy_((2.0 * torch.rand(tensor.shape, generator=generator) - 1.0) * bound)

    def layers(self, flat: torch.Tensor | None = None) -> Layers:
        """Views into the parameters, or into any vector laid out like them."""
        flat = self.flat if flat is None else flat
        pieces = flat.split([math.prod(shape) for shape in self._shapes])
        return Layers(*(piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)))

    def outputs(self, states: torch.Tensor) -> torch.Tensor:
        """Return logits of all heads and the value (…, actions+1) of raw states (…, d), public part first."""
        public, private = states.split([self.encoder.public.size, self.encoder.private.size], dim=-1)
        private = self.encoder.encode_private(private) if self.encoder.num_private else private
        return self.encoded_outputs(self.encoder.encode_public(public), private)

    def encoded_outputs(self, public: torch.Tensor, private: torch.Tensor) -> torch.Tensor:
        """Return logits and values of encoded states, (…, num_public) and (…, num_private), with autograd.

        This is the plain statement of the network; ``fused.py`` computes the same in blocks.
        """
        layers = self.layers(self.flat)
        hidden = functional.linear(public, layers.public, layers.bias1)
        if self.encoder.num_private:
            hidden = hidden + functional.linear(private, layers.private)
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
        expected = self.encoder.public.size + self.encoder.private.size
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

    @torch.no_grad()
    def load_state_dict(
        self, state_dict: Mapping[str, torch.Tensor], strict: bool = True, assign: bool = False
    ) -> None:
        """Take parameters under the file format's names; shapes and names must fit exactly."""
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
        for own, given in zip(vars(self.layers()).values(), vars(layers).values(), strict=True):
            own.copy_(given)

    def _head_names(self) -> list[str]:
        if len(self.head_sizes) == 1:
            return ["fc3", "fc4"]
        return [*(f"action_heads.{n}" for n in range(len(self.head_sizes))), "fc4"]


def make_policies(config: Config, economy: Economy) -> dict[str, Policy]:
    """Make untrained policies for all types, reproducible from ``train.base_seed``."""
    return {
        agent.name: Policy(
            Encoder(agent.name, economy.public, agent.private, config.train.digit_representation_size),
            agent.head_sizes,
            seed=len(economy.agents) * config.train.base_seed + n,
            hidden=config.train.hidden_size,
        )
        for n, agent in enumerate(economy.agents.values())
    }
