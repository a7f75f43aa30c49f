"""One checkpoint's verdict: the largest gain that a tried deviation of one agent brings, against its type's bar."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rbc_warp.equilibrium.deviations import SEARCHERS, Found, search, single_agents
from rbc_warp.equilibrium.game import Game, sample_of_agents
from rbc_warp.equilibrium.results import PUBLISHED_BARS
from rbc_warp.training.policy import Policy

LEVEL = 0.95


@dataclass(frozen=True)
class Effort:
    """How hard is searched. Episodes per deviation while choosing, by searcher and type; and while scoring."""

    searchers: Sequence[str] = ("constant", "one-step")
    screening: Mapping[str, int] = field(default_factory=lambda: {"constant": 8, "one-step": 2})
    scoring: int = 512
    agents: int | None = None  #: Single agents tried of each type; None: all.


QUICK = Effort(searchers=("constant",), screening={"constant": 4}, scoring=128, agents=20)


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
    passed: bool
    num_agents: int
    num_deviations: int
    largest: dict[str, Largest]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def sentence(self) -> str:
        """Return the verdict in one sentence."""
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


def judge(
    game: Game,
    untrained: Mapping[str, Policy] | None,
    types: Sequence[str],
    checkpoint: str,
    effort: Effort = Effort(),
    progress: Callable[[str], None] = lambda what: None,
) -> Verdict:
    """Search every agent's deviations and compare the best with the type's training gain.

    ``untrained``: policies of checkpoint 0, by which training gains and own learning are measured at this stage; None
    where they are unknown, so that nothing passes. Types that the stage leaves no choice gain nothing.
    """
    bases = {agent: _bases(game, untrained, agent, effort.scoring) for agent in types}
    game.restore()
    found: dict[str, list[tuple[str, Found]]] = {agent: [] for agent in types}
    tried, agents = 0, 0
    searched = [agent for agent in types if game.has_choice(agent)]
    level = 1.0 - (1.0 - LEVEL) / max(1, len(searched) * len(effort.searchers))
    for agent in searched:
        count = game.economy.agents[agent].count
        some = None if effort.agents is None else sample_of_agents(count, effort.agents)
        indices = single_agents(game, agent, some)
        agents += len(indices)
        for name in effort.searchers:
            progress(f"{agent}: {name} deviations of {len(indices)} agents")
            deviations = [deviation for index in indices for deviation in SEARCHERS[name](game, agent, index)]
            tried += len(deviations)
            best = search(game, deviations, effort.screening[name], effort.scoring, level)
            found[agent] += [(name, each) for each in best]
    largest = {agent: _largest(agent, found[agent], *bases[agent]) for agent in types}
    return Verdict(checkpoint, all(each.passed for each in largest.values()), agents, tried, largest)


def _bases(game: Game, untrained: Mapping[str, Policy] | None, agent: str, episodes: int) -> tuple[float | None, ...]:
    """A type's training gain and what its own learning is worth, in reward per agent and period."""
    if untrained is None:
        return None, None
    value = float(game.values(episodes)[agent].mean())
    others = ({**untrained}, {**game.policies, agent: untrained[agent]})
    return tuple(value - float(game.with_policies(policies).values(episodes)[agent].mean()) for policies in others)


def _largest(agent: str, found: list[tuple[str, Found]], training: float | None, learning: float | None) -> Largest:
    """The deviation whose gain may be largest, and whether all stay below the type's bar."""
    name = "government" if agent == "government" else f"any {agent}"
    if not found:
        return Largest(0.0, 0.0, 0.0, 0.0, 0.0, name, "only one action is allowed", True)
    how, best = max(found, key=lambda each: each[1].gain.high)
    base = next((base for base in (training, learning) if base is not None and base > 0.0), None)
    high = max(0.0, best.gain.high)
    passed = base is not None and high <= PUBLISHED_BARS[agent] / 100.0 * base
    index = best.deviation.index
    return Largest(
        gain=best.gain.mean,
        low=best.gain.low,
        high=best.gain.high,
        of_training_gain=100.0 * best.gain.mean / training if training is not None and training > 0.0 else None,
        of_own_learning=100.0 * best.gain.mean / learning if learning is not None and learning > 0.0 else None,
        who=agent if index is None else f"{agent} {index}",
        how=f"{how}, {best.deviation.name}",
        passed=passed,
    )
