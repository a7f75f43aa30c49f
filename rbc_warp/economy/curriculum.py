"""Who may do what when: pure functions of the configuration and the iteration, counted from 0."""

from __future__ import annotations

import math

import numpy as np

from rbc_warp.config import Config
from rbc_warp.economy.parameters import AGENT_TYPES, FIRM_PRICE, FIRM_WAGE, Economy

# A bound reached exactly counts as open, whatever the rounding of start + increase·n.
TOLERANCE = 1e-6


def theta_factor(config: Config, iteration: int) -> float:
    """Share of the disutility of work that consumers see and feel: 1 − exp(−iteration / length)."""
    anneal = config.agents.consumer_anneal_theta
    if anneal is None or not anneal.anneal_on:
        return 1.0
    return -math.expm1(-iteration / anneal.exp_decay_length_in_steps)


def entropy_coefficient(config: Config, agent: str, iteration: int) -> float:
    """Weight of the entropy in a type's loss: ``train.entropy`` · max(exp(−n/length), floor), n since it began.

    Where a type learns before its start (by a list, or in a best response), n is 0: the factor never exceeds 1.
    """
    agents = config.agents
    anneal = {
        "consumer": agents.consumer_anneal_entropy,
        "firm": agents.firm_anneal_entropy,
        "government": agents.govt_anneal_entropy,
    }[agent]
    if anneal is None or not anneal.anneal_on:
        return config.train.entropy
    n = max(iteration - getattr(agents, f"{agent}_training_start"), 0)
    return config.train.entropy * max(math.exp(-n / anneal.exp_decay_length_in_steps), anneal.coef_floor)


def frozen_action(config: Config, agent: str) -> int | None:
    """The one action that a frozen type always plays, None for a type that learns."""
    return {"firm": config.agents.frozen_firm_action, "government": config.agents.frozen_government_action}.get(agent)


def trains(config: Config, agent: str, iteration: int) -> bool:
    """Whether a type's policy is updated after this iteration's episode."""
    agents = config.agents
    if frozen_action(config, agent) is not None:
        return False
    mod, threshold = agents.training_schedule_mod, agents.consumer_mod_threshold
    if mod is not None and threshold is not None and agent != "government":
        consumers_turn = iteration % mod <= threshold
        return consumers_turn == (agent == "consumer")
    intervals = getattr(agents, f"{agent}_training_list")
    if intervals is not None:
        return any(start <= iteration < end for start, end in intervals)
    every = {
        "consumer": agents.train_consumers_every,
        "firm": agents.train_firms_every,
        "government": agents.train_government_every,
    }[agent]
    return iteration >= getattr(agents, f"{agent}_training_start") and iteration % every == 0


def allowed_actions(config: Config, economy: Economy, iteration: int) -> dict[str, np.ndarray]:
    """Per type, which entries of its heads' action lists may be drawn: bool, one per action of all heads."""
    allowed = {
        "consumer": np.ones(sum(economy.head_sizes["consumer"]), dtype=bool),
        "firm": _allowed_firm_actions(config, economy, iteration),
        "government": _allowed_taxes(config, economy, iteration),
    }
    for agent in AGENT_TYPES:
        frozen = frozen_action(config, agent)
        if frozen is not None:
            allowed[agent] = np.arange(len(allowed[agent])) == frozen
    return allowed


def _allowed_firm_actions(config: Config, economy: Economy, iteration: int) -> np.ndarray:
    agents = config.agents
    n = max(iteration - agents.firm_begin_anneal_action, 0)
    allowed = np.ones(len(economy.firm_choices), dtype=bool)
    for column, anneal in ((FIRM_PRICE, agents.firm_anneal_prices), (FIRM_WAGE, agents.firm_anneal_wages)):
        if anneal is not None and anneal.anneal_on:
            choice = economy.firm_choices[:, column]
            slack = TOLERANCE * max(1.0, abs(anneal.start))
            allowed &= choice >= anneal.start - anneal.decrease_const * n - slack
            allowed &= choice <= anneal.start + anneal.increase_const * n + slack
    return allowed


def _allowed_taxes(config: Config, economy: Economy, iteration: int) -> np.ndarray:
    anneal = config.agents.government_anneal_taxes
    if anneal is None or not anneal.anneal_on:
        return np.ones(len(economy.government_choices), dtype=bool)
    n = max(iteration - config.agents.government_begin_anneal_action, 0)
    cap = anneal.start + anneal.increase_const * n + TOLERANCE
    return np.all(economy.government_choices <= cap, axis=1)
