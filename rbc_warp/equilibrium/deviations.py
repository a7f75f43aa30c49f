"""Deviations of single agents, many side by side: each environment of a batch has a deviator of its own.

A :class:`Deviation` is a plan of one agent, or of a whole type: given actions in some periods, else its policy.
:func:`values_of` plays any number of them on the same episodes (common random numbers). A searcher lists deviations and
:func:`search` chooses each agent's best on one stream of draws and scores it on another, so that the best is not the
luckiest, with intervals that hold for all agents at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from rbc_warp.economy.agents import AgentType
from rbc_warp.equilibrium.game import (
    FINAL_STREAM,
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
from rbc_warp.training.trainer import RbcTrainer


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
    """In every environment, plans of some agents of one type, which :meth:`follow` sets."""

    repeats = True

    def __init__(self, agent: str, trainer: RbcTrainer):
        self.agent, kind = agent, trainer.economy.agents[agent]
        shape = (trainer.economy.num_periods, trainer.num_local_envs, kind.count, len(kind.head_sizes))
        self._given = np.empty(shape, dtype=np.int32)
        self._plans = torch.empty(shape, dtype=torch.int32, device=trainer.device)

    @classmethod
    def of(cls, agent: str, trainer: RbcTrainer) -> ForcedEach:
        """Return the one of this type and trainer: graphs replay it with other plans."""
        held = _FORCED.setdefault(trainer, {})
        if agent not in held:
            held[agent] = cls(agent, trainer)
        return held[agent]

    def follow(self, groups: Sequence[Sequence[Deviation]]) -> None:
        """In environment e, set the plans of ``groups[e]``, each of another agent; others play on."""
        self._given.fill(FREE)
        for e, group in enumerate(groups):
            for deviation in group:
                who = slice(None) if deviation.index is None else slice(deviation.index, deviation.index + 1)
                self._given[:, e, who] = deviation.actions[:, None]
        self._plans.copy_(torch.from_numpy(self._given))

    def change_actions(self, period: int, actions: Mapping[str, torch.Tensor]) -> None:
        drawn, given = actions[self.agent], self._plans[period]
        drawn.copy_(torch.where(given != FREE, given, drawn))


_FORCED: WeakKeyDictionary[RbcTrainer, dict[str, ForcedEach]] = WeakKeyDictionary()


def played(
    game: Game, groups: Sequence[Sequence[Deviation]], episodes: int, stream: int = SELECTION_STREAM
) -> Iterator[tuple[int, slice, dict[str, np.ndarray]]]:
    """Play groups of deviations on the same ``episodes``, those of :meth:`Game.values` on this stream, side by side.

    All deviations of a group are played at once, in the same environments. Yield the number of a group, a slice of its
    episodes, and every type's rewards there (episodes, n), means over periods.
    """
    trainer = game.trainer
    together = min(episodes, trainer.num_local_envs)
    side_by_side = trainer.num_local_envs // together
    forced = [ForcedEach.of(agent, trainer) for agent in dict.fromkeys(d.agent for g in groups for d in g)]
    game.restore()
    for first_episode in range(0, episodes, together):
        wanted = min(together, episodes - first_episode)
        for first in range(0, len(groups), side_by_side):
            chosen = groups[first : first + side_by_side]
            each = [group for group in chosen for _ in range(together)]
            for one in forced:
                one.follow([[deviation for deviation in group if deviation.agent == one.agent] for group in each])
            with game.changed(*forced):
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
    company: int = 1,
) -> np.ndarray:
    """Return the deviators' rewards per episode, (deviations, episodes); ``advance`` is told of episodes played.

    With ``company`` > 1, so many agents deviate in each environment, and the values of each are only nearly its own:
    enough to choose by, not to report.
    """
    return _values_in(game, deviations, _in_company(deviations, company), episodes, stream, advance)[0]


def _values_in(
    game: Game,
    deviations: Sequence[Deviation],
    groups: Sequence[Sequence[int]],
    episodes: int,
    stream: int,
    advance: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray]:
    """The same, with the deviations in these groups, and the mean rewards of all the first's type, (groups, n)."""
    values = np.empty((len(deviations), episodes))
    agent = deviations[0].agent
    everybody = np.zeros((len(groups), game.economy.agents[agent].count))
    for k, here, rewards in played(game, [[deviations[i] for i in group] for group in groups], episodes, stream):
        for i in groups[k]:
            values[i, here] = of_deviator(rewards, deviations[i].agent, deviations[i].index)
        everybody[k] += rewards[agent].sum(axis=0) / episodes
        advance(here.stop - here.start)
    return values, everybody


def _in_company(deviations: Sequence[Deviation], company: int) -> list[list[int]]:
    """Numbers of the deviations, in groups of up to ``company`` different agents who each do something else."""
    if company == 1:
        return [[i] for i in range(len(deviations))]
    of_agent: dict[tuple, list[int]] = {}
    for i, deviation in enumerate(deviations):
        of_agent.setdefault((deviation.agent, deviation.index), []).append(i)
    groups = []
    agents = list(of_agent.values())
    for first in range(0, len(agents), company):
        members = agents[first : first + company]
        for k in range(max(map(len, members))):
            shifted = [(own, (k + n * len(own) // company) % len(own)) for n, own in enumerate(members) if k < len(own)]
            groups.append([own[at] for own, at in shifted])
    return groups


FINALISTS, FINAL = 8, 4
"""How many deviations of each agent are played again before the best is chosen, on how many times the episodes."""


@dataclass(frozen=True)
class Found:
    """The best deviation that a searcher found for one agent, scored on draws that had no part in choosing it."""

    deviation: Deviation
    before: float
    gain: Estimate  #: With an interval that holds for all agents of the search at once.


@dataclass(frozen=True)
class Searched:
    """What a search found, and what it chose by."""

    found: list[Found]  #: Each agent's best.
    screened: np.ndarray
    """(deviations,) gains of all while finalists were chosen: noisy, and in company less what it brings bystanders."""


def search(
    game: Game,
    deviations: Sequence[Deviation],
    screening: int,
    scoring: int,
    level: float = 0.95,
    advance: Callable[[int], None] = lambda episodes: None,
    company: int = 1,
) -> Searched:
    """Find each agent's best deviation, chosen on other episodes than the ``scoring`` ones that it is scored on.

    All are played for ``screening`` episodes, with ``company`` in each environment; each agent's best FINALISTS for
    FINAL times as many others; the best of these, alone, is scored. Intervals are simultaneous (Bonferroni over the
    agents): with probability ``level`` all of them hold.
    """
    # One more group, in which nobody deviates, tells what all get as they are, without a batch of its own.
    groups = [*_in_company(deviations, company), []]
    values, everybody = _values_in(game, deviations, groups, screening, SELECTION_STREAM, advance)
    screened = values.mean(axis=1)
    finalists = _best(deviations, screened, FINALISTS)
    final = values_of(game, finalists, FINAL * screening, FINAL_STREAM, advance, company).mean(axis=1)
    chosen = _best(finalists, final, 1)
    after = values_of(game, chosen, scoring, REPORT_STREAM, advance)
    own = game.values(scoring, REPORT_STREAM)
    level = 1.0 - (1.0 - level) / len(chosen)
    found = []
    for deviation, new in zip(chosen, after, strict=True):
        old = of_deviator(own, deviation.agent, deviation.index)
        found.append(Found(deviation, float(old.mean()), Estimate.of(new - old, level)))
    before = np.array(
        [everybody[-1].mean() if each.index is None else everybody[-1, each.index] for each in deviations]
    )
    return Searched(found, screened - before - _by_company(deviations, groups, everybody))


def _by_company(deviations: Sequence[Deviation], groups: Sequence[Sequence[int]], everybody: np.ndarray) -> np.ndarray:
    """What the company brings each deviator (deviations,), by what the same groups bring those who do not deviate.

    ``everybody``: mean rewards of a type's agents in each group, (groups, n); nobody deviates in the last group.
    """
    brought = np.zeros(len(deviations))
    for group, change in zip(groups, everybody - everybody[-1], strict=True):
        if 1 < len(group) < len(change):
            brought[list(group)] = np.delete(change, [deviations[i].index or 0 for i in group]).mean()
    return brought


def size_of_search(deviations: Sequence[Deviation], screening: int, scoring: int, company: int = 1) -> int:
    """Return how many episodes :func:`search` plays, where all agents have as many deviations."""
    agents = len({(deviation.agent, deviation.index) for deviation in deviations})
    each = len(deviations) // max(1, agents)
    return -(-agents // company) * (each + min(each, FINALISTS) * FINAL) * screening + screening + agents * scoring


def _best(deviations: Sequence[Deviation], values: np.ndarray, at_most: int) -> list[Deviation]:
    """The best ``at_most`` deviations of each agent, agents in their order."""
    kept: dict[tuple, list[int]] = {}
    for k in np.argsort(-values, kind="stable"):
        kept.setdefault((deviations[k].agent, deviations[k].index), []).append(int(k))
    agents = dict.fromkeys((deviation.agent, deviation.index) for deviation in deviations)
    return [deviations[k] for agent in agents for k in kept[agent][:at_most]]


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


def by_action(game: Game, agent: str, screened: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return gains (agents, deviations) of the SEARCHERS as a table by action and way, over a type's agents.

    In the form of ``xarray.Dataset.to_dict``, with four digits. Ways are "constant" and the periods of one-step
    deviations; NaN where an action was not tried in this way.
    """
    actions = [name for name, _ in partial_actions(game, agent, goods="one-step" in screened)]
    ways, tables = [], []
    for searcher, gains in screened.items():
        steps = [f"period {period}" for period in range(game.economy.num_periods)] if searcher == "one-step" else []
        ways += steps or [searcher]
        tried = gains.reshape(len(gains), -1, max(1, len(steps)))  # (agents, actions, periods): a searcher's order
        table = np.full((len(gains), len(actions), tried.shape[2]), np.nan)
        table[:, : tried.shape[1]] = tried
        tables.append(table)
    gains = np.concatenate(tables, axis=2)

    def variable(values: np.ndarray) -> dict[str, Any]:
        return {"dims": ["action", "way"], "data": [[float(f"{value:.4g}") for value in row] for row in values]}

    return {
        "dims": {"action": len(actions), "way": len(ways)},
        "coords": {"action": {"dims": ["action"], "data": actions}, "way": {"dims": ["way"], "data": ways}},
        "data_vars": {"mean": variable(gains.mean(axis=0)), "largest": variable(gains.max(axis=0))},
    }


@dataclass(frozen=True)
class Scan:
    """Every constant action of one deviator."""

    rewards: dict[str, dict[str, float]]  #: Per action, the mean reward of each type with it, on the selection draws.
    gains: dict[str, Estimate]  #: Per action, the deviator's gain there, with an interval for itself.
    found: Found  #: The best action, scored on the report draws.


def scan(game: Game, agent: str, index: int | None) -> Scan:
    """Try every constant action of one agent, or of all agents of a type at once."""
    deviations, episodes = constant_deviations(game, agent, index), game.num_episodes
    start = of_deviator(game.values(episodes, SELECTION_STREAM), agent, index)
    totals: list[dict[str, float]] = [dict.fromkeys(game.economy.agents, 0.0) for _ in deviations]
    values = np.empty((len(deviations), episodes))
    for k, here, rewards in played(game, [[deviation] for deviation in deviations], episodes):
        share = (here.stop - here.start) / episodes
        for name, of_type in rewards.items():
            totals[k][name] += share * float(of_type.mean())
        values[k, here] = of_deviator(rewards, agent, index)
    gains = [paired_gain(own, start, game.greedy) for own in values]
    best = deviations[int(np.argmax([gain.mean for gain in gains]))]
    before = of_deviator(game.values(episodes), agent, index)
    (after,) = values_of(game, [best], episodes, REPORT_STREAM)
    found = Found(best, float(before.mean()), paired_gain(after, before, game.greedy))
    names = [deviation.name for deviation in deviations]
    return Scan(dict(zip(names, totals, strict=True)), dict(zip(names, gains, strict=True)), found)
