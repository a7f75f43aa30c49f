"""Cross-play: runs of one economy exchange their policies, to see whether they found interchangeable equilibria.

A mixture takes each type's policy from one of the runs. After Nash, equilibria are interchangeable if every mixture of
them is an equilibrium again, and equivalent if it gives everybody the same. Here both are tested as far as the runs'
own policies can, on the same episodes for all mixtures. ``docs/equilibrium.md`` has the definition.
"""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rbc_warp.config import load_config
from rbc_warp.equilibrium.entrants import Entrant, enter
from rbc_warp.equilibrium.game import Estimate, Game
from rbc_warp.equilibrium.results import PUBLISHED_BARS
from rbc_warp.errors import ConfigError, RunFileError
from rbc_warp.runs.console import ProgressBar, text_table
from rbc_warp.runs.files import write_text
from rbc_warp.training.policy import Policy
from rbc_warp.training.recorder import Recorder
from rbc_warp.training.trainer import RbcTrainer

LEVEL = 0.95
EPISODES = 128
ENVIRONMENTS = 512
"""Most environments side by side in which a mixture is played."""
DEFINITION = (
    "Interchangeable: in no mixture does another run's policy for a type gain that type more than its bar, the others "
    "of the mixture unchanged. Equivalent: no two mixtures' values of a type differ by more than its bar. Intervals "
    "included, simultaneous over all pairs compared. A type's bar is a share of its training gain, or of own learning "
    "where that is not positive, in the run where that is smallest. Only these runs' policies are tried: other "
    "deviations may gain."
)

Mixture = tuple[int, ...]
"""Per type that has a policy, in order, the place of the run that it is from."""


@dataclass(frozen=True)
class Bar:
    """What a type may gain; 0 where no run is known to have gained anything."""

    bar: float  #: [reward per period]
    percent: float  #: The bar as a share of ``base`` [%].
    base: float
    of: str  #: Name of the base.


@dataclass(frozen=True)
class Gain:
    """What a type gains in a mixture by the policy of another run. The interval holds for all pairs at once."""

    mixture: Mixture
    agent: str
    run: int  #: The other run, counted from 1.
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """By how much one mixture's value of a type exceeds another's. The interval holds for all pairs at once."""

    higher: Mixture
    lower: Mixture
    mean: float
    low: float
    high: float


class CrossPlay:
    """What all mixtures of runs are worth, and what follows from it.

    Args:
        types: those that are mixed.
        values: per type (mixtures, episodes), the mean over its agents and periods; mixtures as in :attr:`mixtures`,
            all on the same episodes, at least two.
        gained: per run and type, its training gain and own learning, by name; empty where they are unknown.
    """

    def __init__(
        self,
        types: Sequence[str],
        values: Mapping[str, np.ndarray],
        gained: Sequence[Mapping[str, Mapping[str, float]]],
    ):
        self.types, self.values, self.gained = tuple(types), dict(values), list(gained)
        self.num_runs = len(gained)
        self.mixtures = all_mixtures(self.num_runs, len(types))
        self.bars = {agent: _bar(agent, [run.get(agent, {}) for run in gained]) for agent in types}
        self.gains = self._all_gains()
        self.largest = {agent: max(self.gains_of(agent), key=lambda gain: gain.high) for agent in types}
        self.differences = {agent: self._all_differences(agent) for agent in types}
        self.interchangeable = self._holds({agent: self.gains_of(agent) for agent in types})
        self.equivalent = self._holds(self.differences)

    def _holds(self, found: Mapping[str, Sequence[Gain | Difference]]) -> bool | None:
        """Whether all that was found stays below the types' bars; None where intervals leave it open."""
        if all(each.high <= self.bars[agent].bar for agent, some in found.items() for each in some):
            return True
        return False if any(each.low > self.bars[agent].bar for agent, some in found.items() for each in some) else None

    @property
    def num_pairs(self) -> int:
        """Pairs of mixtures that differ in one type's run, for that type: what the test of interchangeability compares.

        An interval with two ends covers both directions.
        """
        return len(self.gains) // 2

    def _all_gains(self) -> list[Gain]:
        place = {mixture: k for k, mixture in enumerate(self.mixtures)}
        pairs = [
            (mixture, column, run)
            for mixture in self.mixtures
            for column in range(len(self.types))
            for run in range(self.num_runs)
            if run != mixture[column]
        ]
        level = 1.0 - (1.0 - LEVEL) / (len(pairs) // 2)
        gains = []
        for mixture, column, run in pairs:
            agent = self.types[column]
            other = (*mixture[:column], run, *mixture[column + 1 :])
            gain = Estimate.of(self.values[agent][place[other]] - self.values[agent][place[mixture]], level)
            gains.append(Gain(mixture, agent, run + 1, gain.mean, gain.low, gain.high))
        return gains

    def gains_of(self, agent: str) -> list[Gain]:
        """Return the gains of one type, in all mixtures by all other runs' policies."""
        return [gain for gain in self.gains if gain.agent == agent]

    def _all_differences(self, agent: str) -> list[Difference]:
        """Per mixture, its value less that of the one which it may exceed most."""
        from scipy.special import stdtrit

        values = self.values[agent]
        count, episodes = values.shape
        level = 1.0 - (1.0 - LEVEL) / (len(self.types) * count * (count - 1) // 2)
        width = float(stdtrit(episodes - 1, 0.5 + level / 2)) / episodes**0.5
        found = []
        for mixture, row in zip(self.mixtures, values, strict=True):
            differences = row - values
            means = differences.mean(axis=1)
            halves = width * differences.std(axis=1, ddof=1)
            k = int((means + halves).argmax())
            mean, half = float(means[k]), float(halves[k])
            found.append(Difference(mixture, self.mixtures[k], mean, mean - half, mean + half))
        return found

    def sentence(self) -> str:
        """Return what was found in one sentence."""
        words = {True: "", False: "not ", None: "not shown to be "}
        verdicts = [f"{words[holds]}{name}" for name, holds in self._verdicts().items()]
        gain = max(self.largest.values(), key=self._share_of_bar)
        return (
            f"The {self.num_runs} runs are {' and '.join(verdicts)}, as far as their own policies test it; largest "
            f"gain: {self._text(gain.agent, gain)} for {gain.agent} by the policy of run {gain.run} in the mixture "
            f"{', '.join(f'{agent} {run}' for agent, run in self._runs_of(gain.mixture).items())} "
            f"(bar {self._bar_text(gain.agent)}; {LEVEL:.0%}, {self.num_pairs} pairs compared)."
        )

    def _verdicts(self) -> dict[str, bool | None]:
        return {"interchangeable": self.interchangeable, "equivalent": self.equivalent}

    def _share_of_bar(self, gain: Gain) -> tuple[float, float]:
        """How near a gain's upper end comes to its bar; the second decides among bars of 0."""
        bar = self.bars[gain.agent].bar
        return (gain.high / bar if bar else np.inf if gain.high > 0 else 0.0), gain.high

    def _runs_of(self, mixture: Mixture) -> dict[str, int]:
        """Each type's run, counted from 1."""
        return {agent: run + 1 for agent, run in zip(self.types, mixture, strict=True)}

    def summary(self) -> str:
        """Return a table of mixtures (all of two runs; of more, the runs themselves and the extremes), and of types."""
        return f"{self._mixtures_table()}\n\n{self._types_table()}\n\n{textwrap.fill(DEFINITION, 120)}"

    def _mixtures_table(self) -> str:
        rows = []
        for k, reason in self._shown().items():
            mixture = self.mixtures[k]
            values = [Estimate.of(self.values[agent][k]) for agent in self.types]
            gain = max((gain for gain in self.gains if gain.mixture == mixture), key=self._share_of_bar)
            cells = [f"{value.mean:.5g} ± {value.high - value.mean:.4g}" for value in values]
            found = f"{gain.agent} by run {gain.run}: {self._text(gain.agent, gain)}"
            rows.append([*map(str, self._runs_of(mixture).values()), *cells, found, reason])
        return text_table([*self.types, *(f"{agent}'s value" for agent in self.types), "largest gain", ""], rows)

    def _shown(self) -> dict[int, str]:
        """Places of the mixtures that are shown, in order, and why."""
        reasons: dict[int, list[str]] = {}
        for k, mixture in enumerate(self.mixtures):
            if len(set(mixture)) == 1:
                reasons[k] = [f"run {mixture[0] + 1}"]
            elif self.num_runs == 2:
                reasons[k] = []
        for agent in self.types:
            means = self.values[agent].mean(axis=1)
            for word, k in (("lowest", int(means.argmin())), ("highest", int(means.argmax()))):
                reasons.setdefault(k, []).append(f"{word} {agent}")
        return {k: ", ".join(reasons[k]) for k in sorted(reasons)}

    def _types_table(self) -> str:
        def name(mixture: Mixture) -> str:
            return " ".join(map(str, self._runs_of(mixture).values()))

        rows = []
        for agent, gain in self.largest.items():
            difference = max(self.differences[agent], key=lambda difference: difference.high)
            found = f"{self._text(gain.agent, gain)} by run {gain.run} in {name(gain.mixture)}"
            between = f"{self._text(agent, difference)}, {name(difference.higher)} over {name(difference.lower)}"
            rows.append((agent, self._bar_text(agent), found, between))
        return text_table(("type", "bar", "largest gain", "largest difference"), rows)

    def _text(self, agent: str, found: Gain | Difference) -> str:
        base = self.bars[agent].base
        share = f" = {100.0 * found.mean / base:.3g} %" if base else ""
        return f"{found.mean:+.4g} [{found.low:+.4g}, {found.high:+.4g}]{share}"

    def _bar_text(self, agent: str) -> str:
        bar = self.bars[agent]
        return f"{bar.bar:.4g} = {bar.percent:g} % of {bar.of}" if bar.base else "0"

    def to_dict(self) -> dict[str, Any]:
        """Return all of it in plain Python types; ``docs/equilibrium.md`` says what each field is."""

        def plain(found: Gain | Difference) -> dict[str, Any]:
            return {
                name: self._runs_of(value) if isinstance(value, tuple) else value
                for name, value in asdict(found).items()
            }

        return {
            "sentence": self.sentence(),
            **self._verdicts(),
            "definition": DEFINITION,
            "level": LEVEL,
            "pairs": self.num_pairs,
            "bars": {agent: asdict(bar) for agent, bar in self.bars.items()},
            "largest_gains": {agent: plain(gain) for agent, gain in self.largest.items()},
            "mixtures": [
                {
                    "mixture": self._runs_of(mixture),
                    "values": {agent: asdict(Estimate.of(self.values[agent][k])) for agent in self.types},
                }
                for k, mixture in enumerate(self.mixtures)
            ],
            "gains": [plain(gain) for gain in self.gains],
            "differences": {agent: list(map(plain, some)) for agent, some in self.differences.items()},
        }


def all_mixtures(num_runs: int, num_types: int) -> list[Mixture]:
    """Return every mixture, the last type's run changing fastest."""
    return list(itertools.product(range(num_runs), repeat=num_types))


def _bar(agent: str, gained: Sequence[Mapping[str, float]]) -> Bar:
    bases = []
    for run in filter(None, gained):
        name = next((name for name, gain in run.items() if gain > 0.0), "")
        bases.append((run.get(name, 0.0), name))
    base, name = min(bases, default=(0.0, ""))
    return Bar(PUBLISHED_BARS[agent] / 100.0 * base, PUBLISHED_BARS[agent], base, name)


def run_cross_play(
    runs: Sequence[Path],
    labels: Sequence[str] | None = None,
    episodes: int = EPISODES,
    backend: str = "auto",
    overrides: Sequence[str] = (),
    output: Path = Path("cross_play.json"),
    quiet: bool = False,
) -> CrossPlay:
    """Play every mixture of the runs, write what was found to ``output``, and print it.

    Args:
        runs: two or more folders of runs of one economy.
        labels: of the one checkpoint that is taken of every run; None takes 'latest'.
        episodes: of each mixture, the same ones for all.
        overrides: "section.key=value" strings, applied to every run's configuration.
        quiet: shows no progress.

    Raises:
        ConfigError: the runs cannot be compared. RunFileError: a file cannot be used. Nothing is played before.
    """
    if episodes < 2:
        raise ConfigError(f"--eval-episodes {episodes} is too few; give 2 or more, an interval needs them")
    if output.is_dir():
        raise RunFileError(output, "is a folder", "give -o the file to write")
    entrants = enter(runs, labels, overrides)
    found = play(entrants, episodes, backend, quiet)
    names = [
        f"run {k}: {entrant.run.path}, checkpoint {entrant.checkpoint.label} "
        f"(iteration {entrant.checkpoint.iteration})"
        + ("" if entrant.untrained else "; it has no checkpoint 0, so its training gain is not known")
        for k, entrant in enumerate(entrants, start=1)
    ]
    content = found.to_dict()
    content["episodes"] = episodes
    content["runs"] = [
        {
            "path": str(entrant.run.path),
            "checkpoint": entrant.checkpoint.label,
            "iteration": entrant.checkpoint.iteration,
            "gains": gained,
        }
        for entrant, gained in zip(entrants, found.gained, strict=True)
    ]
    write_text(output, json.dumps(content, indent=1, allow_nan=False) + "\n")
    print("\n\n".join([found.sentence(), "\n".join(names), found.summary(), f"file: {output}"]))
    return found


def play(
    entrants: Sequence[Entrant], episodes: int = EPISODES, backend: str = "auto", quiet: bool = False
) -> CrossPlay:
    """Play every mixture, and every run's untrained policies, on the same episodes.

    Stage, precision and draws are those of the first run.
    """
    first = entrants[0]
    config = load_config(first.config, [f"train.batch_size={min(episodes, ENVIRONMENTS)}"])
    trainer = RbcTrainer(config, backend, recorder=Recorder())
    checkpoint = first.checkpoint
    game = Game(trainer, checkpoint.policies, checkpoint.iteration, multipliers=checkpoint.multipliers)
    types = [name for name, agent in game.economy.agents.items() if not agent.is_frozen]
    mixtures = all_mixtures(len(entrants), len(types))

    def mixed(mixture: Mixture) -> dict[str, Policy]:
        chosen = zip(types, mixture, strict=True)
        return game.policies | {agent: entrants[k].checkpoint.policies[agent] for agent, k in chosen}

    with_start = sum(entrant.untrained is not None for entrant in entrants)
    with ProgressBar((len(mixtures) + with_start * (2 + len(types))) * episodes, quiet=quiet) as bar:

        def values(policies: Mapping[str, Policy]) -> dict[str, np.ndarray]:
            """Per type (episodes,), the mean over its agents and periods."""
            rewards = game.with_policies(policies).values(episodes)
            bar.advance(episodes)
            return {agent: rewards[agent].mean(axis=1) for agent in types}

        bar.show(f"mixtures of {len(entrants)} runs")
        played = [values(mixed(mixture)) for mixture in mixtures]
        bar.show("untrained policies")
        gained: list[dict[str, dict[str, float]]] = []
        for entrant in entrants:
            gained.append({})
            if entrant.untrained is not None:
                found = game.with_policies(entrant.checkpoint.policies).gained(entrant.untrained, types, episodes)
                bar.advance((2 + len(types)) * episodes)
                gained[-1] = {
                    agent: {"training gain": float(each.training.mean()), "own learning": float(each.learning.mean())}
                    for agent, each in found.items()
                }
    game.restore()
    return CrossPlay(types, {agent: np.stack([each[agent] for each in played]) for agent in types}, gained)
