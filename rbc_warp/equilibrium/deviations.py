"""Deviations of single agents, many side by side: each environment of a batch has a deviator of its own.

A :class:`Deviation` is a plan of one agent, or of a whole type: given actions in some periods, else its policy.
:func:`values_of` plays any number of them on the same episodes (common random numbers). A searcher lists deviations and
:func:`search` chooses each agent's best on one stream of draws and scores it on another, so that the best is not the
luckiest, with intervals that hold for all agents at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rbc_warp.economy.agents import AgentType
from rbc_warp.equilibrium.game import (
    FREE,
    REPORT_STREAM,
    SELECTION_STREAM,
    Estimate,
    Game,
    Intervention,
    choice_name,
    of_deviator,
    paired_gain,
)
from rbc_warp.training.rollout import Draw


@dataclass(frozen=True)
class Deviation:
    """What one agent does instead of following its policy."""

    agent: str
    index: int | None  #: The agent, None for the whole type.
    actions: (
        np.ndarray
    )  #: (T or 1, heads) indices, FREE where the policy goes on choosing; one row holds in every period.
    name: str


class ForcedEach(Intervention):
    """In every environment e, the plan of ``deviations[e]``; environments beyond them play as they are."""

    def __init__(self, deviations: Sequence[Deviation], device: torch.device):
        self._plans = {}
        for agent in dict.fromkeys(deviation.agent for deviation in deviations):
            rows = [e for e, deviation in enumerate(deviations) if deviation.agent == agent]
            length = max(len(deviations[e].actions) for e in rows)
            plans = np.stack(
                [np.broadcast_to(deviations[e].actions, (length, deviations[e].actions.shape[1])) for e in rows]
            )
            who = [-1 if deviations[e].index is None else deviations[e].index for e in rows]
            self._plans[agent] = [
                torch.as_tensor(array, device=device) for array in (rows, who, plans.astype(np.int32))
            ]

    def change_actions(self, period: int, actions: Mapping[str, torch.Tensor]) -> None:
        for agent, (rows, who, plans) in self._plans.items():
            drawn = actions[agent]
            given = plans[:, min(period, plans.shape[1] - 1), None]  # (rows, 1, heads)
            everyone = torch.arange(drawn.shape[1], device=drawn.device)
            deviates = (who[:, None] == everyone) | (who[:, None] < 0)
            drawn[rows] = torch.where(deviates[..., None] & (given != FREE), given, drawn[rows])


def played(
    game: Game, deviations: Sequence[Deviation], episodes: int, stream: int = SELECTION_STREAM
) -> Iterator[tuple[int, slice, dict[str, np.ndarray]]]:
    """Play each deviation on the same ``episodes``, those of :meth:`Game.values` on this stream, many side by side.

    Yield the number of a deviation, a slice of its episodes, and every type's rewards there (episodes, n), means over
    periods.
    """
    trainer = game.trainer
    together = min(episodes, trainer.num_local_envs)
    side_by_side = trainer.num_local_envs // together
    game.restore()
    for first_episode in range(0, episodes, together):
        wanted = min(together, episodes - first_episode)
        for first in range(0, len(deviations), side_by_side):
            chosen = deviations[first : first + side_by_side]
            each = [deviation for deviation in chosen for _ in range(together)]
            with game.changed(ForcedEach(each, trainer.device)):
                trainer.play(Draw(game.iteration, stream, game.greedy, first_episode, repeat=together))
            rewards = {
                agent: trainer.rollout.rewards(agent).double().mean(dim=0).cpu().numpy()
                for agent in game.economy.agents
            }
            for k in range(len(chosen)):
                rows = slice(k * together, k * together + wanted)
                here = slice(first_episode, first_episode + wanted)
                yield first + k, here, {agent: values[rows] for agent, values in rewards.items()}


def values_of(
    game: Game,
    deviations: Sequence[Deviation],
    episodes: int,
    stream: int = SELECTION_STREAM,
    advance: Callable[[int], None] = lambda episodes: None,
) -> np.ndarray:
    """Return the deviators' rewards per episode, (deviations, episodes); ``advance`` is told of episodes played."""
    values = np.empty((len(deviations), episodes))
    for k, here, rewards in played(game, deviations, episodes, stream):
        values[k, here] = of_deviator(rewards, deviations[k].agent, deviations[k].index)
        advance(here.stop - here.start)
    return values


@dataclass(frozen=True)
class Found:
    """The best deviation that a searcher found for one agent, scored on draws that had no part in choosing it."""

    deviation: Deviation
    before: float
    gain: Estimate  #: With an interval that holds for all agents of the search at once.


def search(
    game: Game,
    deviations: Sequence[Deviation],
    screening: int,
    scoring: int,
    level: float = 0.95,
    advance: Callable[[int], None] = lambda episodes: None,
) -> list[Found]:
    """Return each agent's best deviation: chosen on ``screening`` episodes, scored on ``scoring`` others.

    Intervals are simultaneous (Bonferroni over the agents): with probability ``level`` all of them hold.
    """
    screened = values_of(game, deviations, screening, SELECTION_STREAM, advance).mean(axis=1)
    best: dict[tuple, int] = {}
    for k, deviation in enumerate(deviations):
        key = (deviation.agent, deviation.index)
        if key not in best or screened[k] > screened[best[key]]:
            best[key] = k
    chosen = [deviations[k] for k in best.values()]
    after = values_of(game, chosen, scoring, REPORT_STREAM, advance)
    own = game.values(scoring, REPORT_STREAM)
    before = [of_deviator(own, *key) for key in best]
    level = 1.0 - (1.0 - level) / len(best)
    return [
        Found(deviation, float(old.mean()), Estimate.of(new - old, level))
        for deviation, new, old in zip(chosen, after, before, strict=True)
    ]


# Searchers: which deviations of an agent are tried.


def single_agents(game: Game, agent: str, indices: Sequence[int] | None = None) -> list[int | None]:
    """Return the agents of a type that deviate alone; None for the one agent that is its type."""
    count = game.economy.agents[agent].count
    return [None] if count == 1 else list(range(count) if indices is None else indices)


def constant_deviations(game: Game, agent: str, index: int | None) -> list[Deviation]:
    """Return every constant action that the stage allows: joint choices, or hours and employer of a consumer."""
    return [
        Deviation(agent, index, np.array([indices], dtype=np.int32), name)
        for name, indices in partial_actions(game, agent, goods=False)
    ]


def one_step_deviations(game: Game, agent: str, index: int | None) -> list[Deviation]:
    """Return every action in every single period: also the units of each good, for a consumer."""
    periods, heads = game.economy.num_periods, len(game.economy.agents[agent].head_sizes)
    found = []
    for name, indices in partial_actions(game, agent, goods=True):
        for period in range(periods):
            plan = np.full((periods, heads), FREE, dtype=np.int32)
            plan[period] = indices
            found.append(Deviation(agent, index, plan, f"{name} in period {period}"))
    return found


SEARCHERS: dict[str, Callable[[Game, str, int | None], list[Deviation]]] = {
    "constant": constant_deviations,
    "one-step": one_step_deviations,
}


def partial_actions(game: Game, agent: str, goods: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and indices of the actions that the stage allows a type, FREE in heads that it leaves to the policy."""
    kind: AgentType = game.economy.agents[agent]
    allowed = game.allowed(agent)
    if len(kind.head_sizes) == 1:
        for index in np.flatnonzero(allowed):
            yield choice_name(kind, int(index)), (int(index),)
        return
    economy = game.economy
    firms, free = economy.num_firms, (FREE,) * economy.num_firms
    for hours, units in enumerate(economy.work_choices):
        for firm in range(firms):
            yield f"{units:g} hours at firm {firm}", (*free, hours, firm)
    for good in range(firms if goods else 0):
        for demand, units in enumerate(economy.consumption_choices):
            wanted = [FREE] * (firms + 2)
            wanted[good] = demand
            yield f"{units:g} units of good {good}", tuple(wanted)


@dataclass(frozen=True)
class Scan:
    """Every constant action of one deviator."""

    rewards: dict[str, dict[str, float]]  #: Per action, the mean reward of each type with it, on the selection draws.
    gains: dict[str, float]  #: Per action, the deviator's gain there.
    found: Found  #: The best action, scored on the report draws.


def scan(game: Game, agent: str, index: int | None) -> Scan:
    """Try every constant action of one agent, or of all agents of a type at once."""
    deviations, episodes = constant_deviations(game, agent, index), game.num_episodes
    start = of_deviator(game.values(episodes, SELECTION_STREAM), agent, index).mean()
    totals: list[dict[str, float]] = [dict.fromkeys(game.economy.agents, 0.0) for _ in deviations]
    gains = np.zeros(len(deviations))
    for k, here, rewards in played(game, deviations, episodes):
        share = (here.stop - here.start) / episodes
        for name, values in rewards.items():
            totals[k][name] += share * float(values.mean())
        gains[k] += share * (of_deviator(rewards, agent, index).mean())
    best = deviations[int(gains.argmax())]
    before = of_deviator(game.values(episodes), agent, index)
    (after,) = values_of(game, [best], episodes, REPORT_STREAM)
    found = Found(best, float(before.mean()), paired_gain(after, before, game.greedy))
    names = [deviation.name for deviation in deviations]
    return Scan(dict(zip(names, totals, strict=True)), dict(zip(names, map(float, gains - start), strict=True)), found)
