from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class AgentSettings:
    reward_scale: float = 1.0
    lr_multiple: float = 1.0
    training_start: int = 0
    train_every: int = 1
    training_list: tuple[tuple[int, int], ...] | None = None
    frozen_action: int | None = None
    entropy_anneal: Any = None
    noponzi_start: float = 0.0
    noponzi_eta: float = 0.0


def of(agents: Any, agent: str) -> AgentSettings:
    every = {"consumer": "train_consumers_every", "firm": "train_firms_every", "government": "train_government_every"}
    anneal = "govt_anneal_entropy" if agent == "government" else f"{agent}_anneal_entropy"
    return AgentSettings(
        getattr(agents, f"{agent}_reward_scale"),
        getattr(agents, f"{agent}_lr_multiple"),
        getattr(agents, f"{agent}_training_start"),
        getattr(agents, every[agent]),
        getattr(agents, f"{agent}_training_list"),
        getattr(agents, f"frozen_{agent}_action", None),
        getattr(agents, anneal),
        getattr(agents, f"{agent}_noponzi_start", 0.0),
        getattr(agents, f"{agent}_noponzi_eta", 0.0),
    )
