"""One checkpoint's verdict: the largest gain that a tried deviation of one agent brings, against its type's bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rbc_warp.equilibrium.deviations import SEARCHERS, search, single_agents
from rbc_warp.equilibrium.game import Estimate, Game, sample_of_agents
from rbc_warp.equilibrium.results import PUBLISHED_BARS
from rbc_warp.runs.console import ProgressBar
from rbc_warp.training.policy import Policy

LEVEL = 0.95


@dataclass(frozen=True)
class Effort:
    """The extent of a search."""

    searchers: Sequence[str]
    screening: Mapping[str, int]  #: By searcher, episodes of each deviation while the best is chosen.
    scoring: int  #: Episodes of each agent's best.
    agents: int | None = None  #: Single agents tried of each type; None: all.


FULL = Effort(("constant", "one-step"), {"constant": 8, "one-step": 2}, 512)
ENVIRONMENTS = 512
"""Environments side by side in which deviations are played."""


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


@dataclass(frozen=True)
class Verdict:
    """Whether no tried deviation of any single agent gains more than its type's bar, intervals included."""

    checkpoint: str
    iteration: int
    passed: bool
    num_agents: int
    num_deviations: int
    largest: dict[str, Largest]

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
    """One tried deviation's gain for its deviator."""

    gain: Estimate
    who: str
    how: str


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
    searched = [agent for agent in types if game.has_choice(agent)]
    level = 1.0 - (1.0 - LEVEL) / max(1, len(searched) * len(effort.searchers))
    tasks = []
    for agent in searched:
        count = game.economy.agents[agent].count
        indices = single_agents(game, agent, None if effort.agents is None else sample_of_agents(count, effort.agents))
        for name in effort.searchers:
            deviations = [deviation for index in indices for deviation in SEARCHERS[name](game, agent, index)]
            tasks.append((agent, name, len(indices), deviations))
    candidates = {agent: list((more or {}).get(agent, ())) for agent in types}
    total = sum(len(tried) * effort.screening[name] + many * effort.scoring for _, name, many, tried in tasks)
    with ProgressBar(total, quiet=quiet) as bar:
        for agent, name, many, tried in tasks:
            bar.show(f"{name} deviations of {many} {agent}s")
            for best in search(game, tried, effort.screening[name], effort.scoring, level, bar.advance):
                index = best.deviation.index
                who = agent if index is None else f"{agent} {index}"
                candidates[agent].append(Candidate(best.gain, who, f"{name}, {best.deviation.name}"))
    largest = {agent: _largest(game, untrained, agent, candidates[agent], effort.scoring) for agent in types}
    agents = sum(many for _, name, many, _ in tasks if name == effort.searchers[0])
    count = sum(len(tried) for *_, tried in tasks) + sum(map(len, (more or {}).values()))
    return Verdict(checkpoint, game.iteration, all(each.passed for each in largest.values()), agents, count, largest)


def _largest(
    game: Game, untrained: Mapping[str, Policy] | None, agent: str, candidates: Sequence[Candidate], episodes: int
) -> Largest:
    """The deviation whose gain may be largest, and whether it stays below the type's bar."""
    if not candidates:
        return Largest(0.0, 0.0, 0.0, 0.0, 0.0, agent, "only one action is allowed", True)
    best = max(candidates, key=lambda candidate: candidate.gain.high)
    bases: list[float | None] = [None, None]
    if untrained is not None:
        value = float(game.values(episodes)[agent].mean())
        others = (untrained, {**game.policies, agent: untrained[agent]})
        gains = [value - float(game.with_policies(policies).values(episodes)[agent].mean()) for policies in others]
        bases = [gain if gain > 0.0 else None for gain in gains]
        game.restore()
    base = bases[0] or bases[1]  # of the training gain; of own learning where that is not positive
    passed = base is not None and best.gain.high <= PUBLISHED_BARS[agent] / 100.0 * base
    training, learning = (base and 100.0 * best.gain.mean / base for base in bases)
    return Largest(best.gain.mean, best.gain.low, best.gain.high, training, learning, best.who, best.how, passed)
