"""Adam for the one parameter vector of a policy: torch's, whose steps are rounded one by one, the same on all
processors; or, on a GPU, the two kernels of ``cuda/adam.h``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from rbc_warp.warpdrive import tables
from rbc_warp.warpdrive.kernels import Copy, Kernels, Moments, Words


class Adam(torch.optim.Adam):
    """torch's for one parameter."""

    def __init__(self, parameter: torch.Tensor, learning_rate: float):
        super().__init__([parameter], lr=learning_rate)
        self.parameter = parameter

    @property
    def learning_rate(self) -> float:
        return self.param_groups[0]["lr"]

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        self.param_groups[0]["lr"] = rate

    @torch.no_grad()
    def clipped_step(self, max_grad_norm: float | None) -> torch.Tensor:
        """Take a step by the gradient, scaled down to a norm; return its norm before that, a scalar."""
        gradient = self.parameter.grad
        assert gradient is not None
        norm = torch.linalg.vector_norm(gradient)
        if max_grad_norm is not None:
            gradient.mul_((max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        self.step()
        return norm


class KernelAdam(Adam):
    """Adam by a backend's kernels, which leave the gradient as it is; its state is torch's.

    words: where the kernels find the learning rate, in force from the next :meth:`Words.send` on.
    copy: what is to follow the parameters.
    """

    def __init__(
        self,
        parameter: torch.Tensor,
        learning_rate: float,
        kernels: Kernels,
        words: Words,
        copy: Copy | None,
    ):
        super().__init__(parameter, learning_rate)
        self._kernels, self._words, self._copy = kernels, words, copy
        self._rate = words.take(np.full((), learning_rate, np.float32))
        self._settings: dict[float | None, torch.Tensor] = {}  # by the largest norm
        self._norm = torch.zeros((), device=parameter.device)

    @Adam.learning_rate.setter  # type: ignore[attr-defined]
    def learning_rate(self, rate: float) -> None:
        self.param_groups[0]["lr"] = rate
        self._words.set(self._rate, np.full((), rate, np.float32))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.learning_rate = self.param_groups[0]["lr"]
        moments = self.state.get(self.parameter)
        if moments:
            moments["step"] = moments["step"].to(self.parameter.device)

    @torch.no_grad()
    def clipped_step(self, max_grad_norm: float | None) -> torch.Tensor:
        moments, gradient = self.state[self.parameter], self.parameter.grad
        assert gradient is not None
        if not moments:
            moments["step"] = torch.zeros((), device=self.parameter.device)
            moments["exp_avg"], moments["exp_avg_sq"] = (torch.zeros_like(self.parameter) for _ in range(2))
        if max_grad_norm not in self._settings:
            self._settings[max_grad_norm] = self._words.take(self._table(max_grad_norm))
        held = Moments(moments["step"], moments["exp_avg"], moments["exp_avg_sq"])
        settings = self._settings[max_grad_norm]
        self._kernels.adam(self.parameter.detach(), gradient, held, self._rate, settings, self._norm, self._copy)
        return self._norm

    def _table(self, max_grad_norm: float | None) -> np.ndarray:
        group = self.param_groups[0]
        settings = {"epsilon": group["eps"], "max_norm": max_grad_norm or 0.0}
        for number, beta in enumerate(group["betas"], start=1):
            settings |= {f"weight{number}": 1.0 - beta, f"log_beta{number}": math.log(beta)}
        return tables.filled("ADAM", settings, np.float32)
