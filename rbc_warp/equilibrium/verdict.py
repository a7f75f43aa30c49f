"""One checkpoint's verdict: the largest gain that a tried deviation of one agent brings, against its type's bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from rbc_warp.economy.agents import CONSUMER_THETA
from rbc_warp.economy.welfare import consumption_equivalent
from rbc_warp.equilibrium.deviations import (
    SEARCHERS,
    Deviation,
    Found,
    by_action,
    search,
    single_agents,
    size_of_search,
    values_of,
)
from rbc_warp.equilibrium.game import REPORT_STREAM, Estimate, Gained, Game, of_deviator, sample_of_agents
from rbc_warp.equilibrium.relaxation import markets_of, upper_values
from rbc_warp.equilibrium.results import PUBLISHED_BARS, percent_of
from rbc_warp.runs.console import ProgressBar
from rbc_warp.training.policy import Policy
from rbc_warp.training.rollout import Draw

LEVEL = 0.95
LOOKS = 2
"""How often an agent's best deviation may be scored: again, on more episodes, where the bar lies in its interval."""
AGENTS_PER_DEVIATOR = 10
"""While deviations are screened, one agent of so many of its type deviates in an environment, at least one."""
ROWS = 1 << 16
"""About how many agents are played side by side."""


@dataclass(frozen=True)
class Effort:
    """The extent of a search."""

    name: str
    screening: Mapping[str, int]  #: By searcher, episodes of each deviation while finalists are chosen.
    scoring: int  #: Episodes of each agent's best.
    rescoring: int  #: Episodes of those that the first look leaves undecided.
    agents: int | None = None  #: Single agents tried of each type, spread evenly; None: all.


FULL = Effort("full", {"constant": 8, "one-step": 2}, 128, 1024)
QUICK = Effort("quick", {"constant": 4, "one-step": 1}, 64, 512, agents=20)
EFFORTS = {effort.name: effort for effort in (FULL, QUICK)}


@dataclass(frozen=True)
class Largest:
    """The largest gain found for a type. The interval holds for all agents and searchers of the verdict at once."""

    gain: float
    low: float
    high: float
    of_training_gain: float | None  #: [%]
    of_own_learning: float | None  #: [%]
    who: str
    how: str
    passed: bool
    bar: float | None  #: Largest upper end that passes; None where nothing was learned, so that nothing passes.
    nash_conv: float  #: Sum over the type's agents of the largest gain found for each.
    exploitability: float  #: The same per agent.
    consumption_equivalent: float | None = None
    """For a consumer, the permanent rise of all its consumption that is worth the gain [%]."""
    upper_end: float | None = None
    """For consumers, what no price-taking deviation of any of them can exceed; see ``relaxation.py``."""


@dataclass(frozen=True)
class Alone:
    """The gain of one agent's best deviation: of each searcher's best, scored, the one with the highest upper end.

    The interval holds for all agents of the type at once.
    """

    index: int | None  #: None for the one agent that is its type.
    gain: float
    low: float
    high: float
    how: str


@dataclass(frozen=True)
class Verdict:
    """Whether no tried deviation of any single agent gains more than its type's bar, intervals included."""

    checkpoint: str
    iteration: int
    passed: bool
    num_agents: int
    num_deviations: int
    effort: str
    largest: dict[str, Largest]
    agents: dict[str, list[Alone]] = field(default_factory=dict)  #: Of each type that was searched, by number.
    screening: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Gains by action and way, per type, while finalists were chosen; see ``by_action``, with ``attrs``: ``agents`` in
    the figures, ``episodes`` of each deviation."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def sentence(self) -> str:
        """Return the verdict in one sentence."""
        if not self.num_deviations:
            return "No agent has a choice at this stage, so none can gain."
        bars = ", ".join(f"{agent} {PUBLISHED_BARS[agent]:g} %" for agent in self.largest)
        parts = []
        for agent, found in self.largest.items():
            share = found.of_training_gain if found.of_training_gain is not None else found.of_own_learning
            of = "training gain" if found.of_training_gain is not None else "own learning"
            parts.append(f"{agent} {'?' if share is None else f'{share:.2g} %'} of its {of} ({found.who}: {found.how})")
        start = "No tried deviation" if self.passed else "A tried deviation"
        gains = "gains more" if self.passed else "may gain more"
        return (
            f"{start} of any of {self.num_agents} agents {gains} than the bar ({bars}; {LEVEL:.0%}, "
            f"{self.num_deviations} deviations tried). Largest: {'; '.join(parts)}."
        )


@dataclass(frozen=True)
class Candidate:
    """One tried deviation's gain for its deviator, with an interval at LEVEL for itself, over so many episodes."""

    gain: Estimate
    episodes: int
    who: str
    how: str


def environments_for(num_agents: int) -> int:
    """Return how many environments to play side by side: a power of two, 512 for 111 agents."""
    return 1 << max(3, min(10, (ROWS // num_agents).bit_length() - 1))


def judge(
    game: Game,
    untrained: Mapping[str, Policy] | None,
    types: Sequence[str],
    checkpoint: str,
    effort: Effort = FULL,
    more: Mapping[str, Sequence[Candidate]] | None = None,
    quiet: bool = False,
) -> Verdict:
    """Search every agent's deviations and compare the largest gains with their types' bars.

    Args:
        untrained: policies of checkpoint 0, by which training gains and own learning are measured at this stage; None
            where they are unknown, so that nothing passes.
        types: that are judged; one that the stage leaves no choice gains nothing.
        more: per type, deviations measured elsewhere, such as fine-tuned policies.
        quiet: shows no progress.
    """
    more = more or {}
    searched = [agent for agent in types if game.has_choice(agent)]
    families = len(searched) * len(effort.screening) + sum(1 for agent in types if more.get(agent))
    level = 1.0 - (1.0 - LEVEL) / max(1, families)
    gained = {} if untrained is None else game.gained(untrained, types, effort.rescoring)
    bases = {agent: _Bases.of(agent, gained.get(agent)) for agent in types}
    tasks = []
    for agent in searched:
        count = game.economy.agents[agent].count
        indices = single_agents(game, agent, None if effort.agents is None else sample_of_agents(count, effort.agents))
        for name in effort.screening:
            tried = [deviation for index in indices for deviation in SEARCHERS[name](game, agent, index)]
            tasks.append((agent, name, len(indices), tried, max(1, count // AGENTS_PER_DEVIATOR)))
    found: dict[str, list[tuple[str, Found]]] = {agent: [] for agent in types}
    screened: dict[str, dict[str, np.ndarray]] = {agent: {} for agent in searched}
    look = 1.0 - (1.0 - level) / LOOKS
    sizes = (size_of_search(tried, effort.screening[name], effort.scoring, few) for _, name, _, tried, few in tasks)
    with ProgressBar(sum(sizes), quiet=quiet) as bar:
        for agent, name, many, tried, company in tasks:
            bar.show(f"{name} deviations of {many} {agent}{'s' if many > 1 else ''}")
            first = search(game, tried, effort.screening[name], effort.scoring, look, bar.advance, company)
            screened[agent][name] = first.screened.reshape(many, -1)
            decided = _decided(game, first.found, bases[agent].bar, effort.rescoring, look)
            found[agent] += [(name, each) for each in decided]
    largest = {agent: _largest(game, agent, found[agent], more.get(agent, ()), bases[agent], level) for agent in types}
    agents = sum(many for _, name, many, *_ in tasks if name == next(iter(effort.screening)))
    count = sum(len(tried) for *_, tried, _ in tasks) + sum(map(len, more.values()))
    passed = all(each.passed for each in largest.values())
    alone = {agent: _alone(found[agent]) for agent in searched}
    screening = {
        agent: {
            **by_action(game, agent, of_type),
            "attrs": {"agents": len(alone[agent]), "episodes": dict(effort.screening)},
        }
        for agent, of_type in screened.items()
    }
    return Verdict(checkpoint, game.iteration, passed, agents, count, effort.name, largest, alone, screening)


@dataclass(frozen=True)
class _Bases:
    """What a type has gained, and the bar that comes of it."""

    training: float | None  #: By training, where that is more than nothing.
    learning: float | None  #: By its own learning.
    bar: float | None

    @classmethod
    def of(cls, agent: str, gained: Gained | None) -> _Bases:
        """Take what was gained; the bar takes the lower end of the gain that it is a share of."""
        if gained is None:
            return cls(None, None, None)
        gains = [Estimate.of(gained.training), Estimate.of(gained.learning)]
        training, learning = (gain.mean if gain.low > 0.0 else None for gain in gains)
        base = next((gain.low for gain in gains if gain.low > 0.0), None)
        return cls(training, learning, None if base is None else PUBLISHED_BARS[agent] / 100.0 * base)


def _decided(game: Game, found: Sequence[Found], bar: float | None, episodes: int, level: float) -> list[Found]:
    """Score again, on more episodes, those whose interval has the bar in it."""
    open_ones = [each.deviation for each in found if bar is not None and each.gain.low <= bar < each.gain.high]
    if not open_ones:
        return list(found)
    own, after = game.values(episodes), values_of(game, open_ones, episodes, REPORT_STREAM)
    again: dict[int, Estimate] = {}
    for deviation, values in zip(open_ones, after, strict=True):
        gain = values - of_deviator(own, deviation.agent, deviation.index)
        again[id(deviation)] = Estimate.of(gain, 1.0 - (1.0 - level) / len(found))
    return [replace(each, gain=again.get(id(each.deviation), each.gain)) for each in found]


def _largest(
    game: Game,
    agent: str,
    found: Sequence[tuple[str, Found]],
    more: Sequence[Candidate],
    bases: _Bases,
    level: float,
) -> Largest:
    """The deviation whose gain may be largest, and whether it stays below the type's bar."""
    candidates: list[tuple[Estimate, str, str, int | None]] = []
    gaps: dict[int | None, float] = {}
    for name, each in found:
        index = each.deviation.index
        candidates.append((each.gain, _who(each.deviation), f"{name}, {each.deviation.name}", index))
        gaps[index] = max(gaps.get(index, 0.0), each.gain.mean)
    for other in more:
        wider = other.gain.at(1.0 - (1.0 - level) / len(more), LEVEL, other.episodes)
        candidates.append((wider, other.who, other.how, None))
    if not candidates:
        return Largest(0.0, 0.0, 0.0, 0.0, 0.0, agent, "only one action is allowed", True, bases.bar, 0.0, 0.0)
    gain, who, how, index = max(candidates, key=lambda candidate: candidate[0].high)
    conv, worth, upper_end = sum(gaps.values()), None, None
    if agent == "consumer":
        game.restore()
        game.trainer.play(Draw(game.iteration, REPORT_STREAM, game.greedy), keep_consumption=True)
        worth = None if index is None else _worth(game, index, gain.mean)
        upper_end = _upper_end(game, level)
    return Largest(
        gain=gain.mean,
        low=gain.low,
        high=gain.high,
        of_training_gain=percent_of(gain.mean, bases.training),
        of_own_learning=percent_of(gain.mean, bases.learning),
        who=who,
        how=how,
        passed=bases.bar is not None and gain.high <= bases.bar,
        bar=bases.bar,
        nash_conv=conv,
        exploitability=conv / max(1, len(gaps)),
        consumption_equivalent=worth,
        upper_end=upper_end,
    )


def _alone(found: Sequence[tuple[str, Found]]) -> list[Alone]:
    """Each agent's deviation whose gain may be largest."""
    best: dict[int | None, Alone] = {}
    for name, each in found:
        index, gain = each.deviation.index, each.gain
        if index not in best or gain.high > best[index].high:
            best[index] = Alone(index, gain.mean, gain.low, gain.high, f"{name}, {each.deviation.name}")
    return list(best.values())


def _who(deviation: Deviation) -> str:
    return deviation.agent if deviation.index is None else f"{deviation.agent} {deviation.index}"


def _upper_end(game: Game, level: float) -> float:
    """The largest upper end, over consumers, of what knowing all prices and never being rationed would bring.

    Of the episodes that were just played, with their consumption.
    """
    rollout, economy = game.trainer.rollout, game.economy
    theta = rollout.private_states("consumer")[0, 0, :, CONSUMER_THETA].double().cpu().numpy()  # as it is felt now
    bounds = upper_values(economy, markets_of(economy, rollout), theta)
    gains = bounds - rollout.rewards("consumer").double().mean(dim=0).cpu().numpy()  # (E, I)
    level = 1.0 - (1.0 - level) / gains.shape[1]
    return max(Estimate.of(gains[:, consumer], level).high for consumer in range(gains.shape[1]))


def _worth(game: Game, consumer: int, gain: float) -> float | None:
    """What a gain is worth to a consumer in its consumption just played [%]; 0 where there is none."""
    if gain <= 0.0:
        return 0.0
    units = game.trainer.rollout.aux("consumer")[:, :, consumer].double().cpu().numpy()  # (T, E, J)
    return consumption_equivalent(units, gain, game.economy.crra)
