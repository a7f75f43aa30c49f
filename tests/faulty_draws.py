#!/usr/bin/env python
"""The public code's defect of draws, behind a switch: what does it change?

There the draws of firms and government never advance their random state, so that each of them reuses one uniform number
for ever (``forever``). ``shared`` is the other way to read "one uniform number": all firms of an environment and the
government share one, a new one each period. Consumers draw as ever.

``python tests/faulty_draws.py --resume RUN`` trains a run as ``run_training.py`` does, by the kind that stands in
``metadata.draws`` of its hparams.yaml. The package has no such switch.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rbc_warp.commands.launch import clean_errors  # noqa: E402
from rbc_warp.runs import run as runs  # noqa: E402
from rbc_warp.training.trainer import RbcTrainer  # noqa: E402
from rbc_warp.warpdrive import tables  # noqa: E402
from rbc_warp.warpdrive.kernels import Heads, RbcSampler  # noqa: E402

KINDS = ("forever", "shared")
FAULTY = ("firm", "government")


class FaultySampler(RbcSampler):
    """The sampler, with firms and government drawn anew by uniform numbers that they reuse or share.

    As in the sampler itself nothing is stored: equal draws are equal again, in trials and after a resume.
    """

    kind = "shared"

    def sample(
        self,
        data_manager: Any,
        distribution: Mapping[str, torch.Tensor],
        action_name: str = "",
        *,
        heads: dict[str, Heads],
        record: bool = True,
        **sample_params: Any,
    ) -> None:
        words = data_manager.data_on_device_via_torch("draw_words").tolist()
        draw = dict(zip((name.lower() for name in tables.names("DRAW")), words, strict=True))
        given = {name: distribution[name][:, :-1].clone() for name in FAULTY}  # the kernel works on them in place
        super().sample(data_manager, distribution, action_name, heads=heads, record=record, **sample_params)
        if draw["flags"]:  # the most likely actions, or probabilities in place of logits: not in training
            return
        period = int(data_manager.pull_data_from_device("_timestep_")[0])
        for number, (name, logits) in enumerate(given.items()):
            actions = data_manager.data_on_device_via_torch(f"sampled_actions_{name}")  # (E, n, 1)
            allowed = heads[name].allowed.bool()
            log_probabilities = logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)
            uniform = self.uniform(draw, period, number, *actions.shape[:2]).to(logits)
            chosen = inverse(log_probabilities.exp(), uniform.reshape(-1, 1))
            actions.copy_(chosen.view_as(actions))
            if record:
                batch = data_manager.data_on_device_via_torch
                batch(f"sampled_actions_batch_{name}")[period].copy_(actions)
                likely = log_probabilities.gather(1, chosen)
                batch(f"log_probabilities_batch_{name}")[period].copy_(likely.view(actions.shape[:2]))

    def uniform(self, draw: Mapping[str, int], period: int, number: int, envs: int, agents: int) -> torch.Tensor:
        """Return the numbers by which a type's agents draw, (E, n); ``number``: of the type."""
        total = draw["first_environment"] + envs
        place = torch.arange(draw["first_environment"], total)
        if draw["repeat"]:
            place = place % draw["repeat"]
        generator = torch.Generator()
        if self.kind == "forever":
            generator.manual_seed(draw["seed"] * 1000003 + (draw["stream"] << 8) + number)
            return torch.rand(total, agents, generator=generator)[place]
        words = (draw["iteration"], period, draw["stream"])
        generator.manual_seed(hash((draw["seed"], *words)) % 2**63)  # of integers: the same in every process
        return torch.rand(total, 1, generator=generator)[place].expand(envs, agents)


def inverse(probabilities: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Return the index where the cumulated probabilities exceed ``uniform``, (rows, 1); never one of probability 0."""
    cumulated = probabilities.double().cumsum(-1)
    chosen = (cumulated <= uniform.double() * cumulated[:, -1:]).sum(-1, keepdim=True)
    last = probabilities.shape[-1] - 1 - (probabilities.flip(-1) > 0.0).int().argmax(-1, keepdim=True)
    return torch.minimum(chosen, last)


class FaultyTrainer(RbcTrainer):
    """The trainer with that sampler, of the kind that the configuration's metadata name."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        kind = config.metadata.get("draws")
        if kind not in KINDS:
            raise SystemExit(f"error: metadata.draws = {kind!r}; give one of {', '.join(KINDS)}")
        self.cuda_sample_controller.__class__ = FaultySampler
        self.cuda_sample_controller.kind = kind


if __name__ == "__main__":
    from rbc_warp.commands.train import main

    runs.RbcTrainer = FaultyTrainer  # type: ignore[misc]
    with clean_errors():
        sys.exit(main(name="tests/faulty_draws.py"))
