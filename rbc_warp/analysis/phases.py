"""The phases of a run: the gain of each type in its own, and the changes when firms began to learn.

A type's phase lasts from its first update to the next type's, or to the end of the run. The policies of the phase's
last checkpoint play at that checkpoint's stage of the curriculum, once as they are and once with this type's policy
as it was before any training. Nothing else differs: masks, θ factor, opponents and random numbers are the same.

What pays each agent may hurt its type: consumers who buy more leave less for one another. So it is measured, too, what
training is worth to one agent alone, while its peers play as trained.
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from rbc_warp.analysis.picture import series
from rbc_warp.config import Config, load_config
from rbc_warp.economy import curriculum
from rbc_warp.economy.parameters import Economy
from rbc_warp.equilibrium.game import Estimate, Game, OwnPolicy, of_deviator, paired_gain, sample_of_agents
from rbc_warp.equilibrium.request import Checkpoint, last_iteration, open_checkpoint
from rbc_warp.errors import RunFileError
from rbc_warp.runs.console import number_text, range_text, text_table
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.run import load_policies
from rbc_warp.training.policy import Policy
from rbc_warp.training.trainer import RbcTrainer

# What the paper reports when firms begin to learn: path in a metrics record, name with unit, and direction.
PUBLISHED_SEQUENCE = (
    ("economy.price", "price [money per unit]", "up"),
    ("economy.wage", "wage [money per hour]", "down"),
    ("reward.firm", "profit [money per firm and period]", "up"),
    ("reward.consumer", "utility [per consumer and period]", "down"),
)
# A window's length as a share of the shorter of the two phases it lies in: 1 / this.
WINDOWS_PER_PHASE = 6


@dataclass(frozen=True)
class Phase:
    """Iterations in which a type learns before the next type joins: ``start`` to ``end``, where the next one begins."""

    agent: str
    start: int
    end: int


@dataclass(frozen=True)
class Learned:
    """The worth of its learning to a type. Rewards are means per agent and period."""

    phase: Phase
    checkpoint: str
    iteration: int
    untrained: float
    trained: float
    gain: Estimate
    alone: Estimate | None
    """The same for one agent alone, a mean over up to ten of them; None for a type of one agent."""
    episodes: int

    @property
    def is_clear(self) -> bool:
        """True if the whole 95 % interval is a gain."""
        return self.gain.low > 0.0


@dataclass(frozen=True)
class Shift:
    """Mean of one figure before and after firms begin to learn, and at the end of their phase."""

    figure: str
    before: float
    after: float
    end: float
    expected: str  #: 'up' or 'down', as in the paper.

    @property
    def holds(self) -> bool:
        """Whether it moves so at once."""
        return self._moves(self.after)

    @property
    def holds_at_end(self) -> bool:
        """Whether it has moved so by the end of the phase, in which taxes rise, too."""
        return self._moves(self.end)

    def _moves(self, to: float) -> bool:
        return to > self.before if self.expected == "up" else to < self.before


@dataclass(frozen=True)
class Sequence:
    """All figures when firms begin, means over windows (first, last iteration): the last of their phase is ``end``."""

    start: int
    before: tuple[int, int]
    after: tuple[int, int]
    end: tuple[int, int]
    shifts: list[Shift]


@dataclass
class Findings:
    """Everything that was measured of a run, and why the rest was not."""

    learned: list[Learned] = field(default_factory=list)
    sequence: Sequence | None = None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict:
        return {
            "learned": [{**asdict(each), "is_clear": each.is_clear} for each in self.learned],
            "sequence": self.sequence
            and {
                **asdict(self.sequence),
                "shifts": [
                    {**asdict(shift), "holds": shift.holds, "holds_at_end": shift.holds_at_end}
                    for shift in self.sequence.shifts
                ],
            },
            "notes": self.notes,
        }

    def __str__(self) -> str:
        parts = []
        if self.learned:
            parts.append(_learned_table(self.learned))
        if self.sequence:
            parts.append(_sequence_table(self.sequence))
        return "\n\n".join([*parts, *(f"note: {note}" for note in self.notes)])


def phases(config: Config, last: int, notes: list[str]) -> list[Phase]:
    """The phases of a run that has reached iteration ``last``; ``notes`` gets the types that have none."""
    starts = {}
    for agent, kind in Economy.from_config(config).agents.items():
        first = next((number for number in range(last) if curriculum.trains(config, kind, number)), None)
        if kind.is_frozen:
            notes.append(f"{agent}: frozen in this run, left out")
        elif first is None:
            notes.append(f"{agent}: not trained up to iteration {last}, left out")
        else:
            starts[agent] = first
    ends = {agent: min((s for s in starts.values() if s > start), default=last) for agent, start in starts.items()}
    return [Phase(agent, starts[agent], ends[agent]) for agent in starts]


def checkpoint_at_end(run: RunDir, config: Config, phase: Phase, notes: list[str]) -> Checkpoint:
    """The last checkpoint of a phase that its type's training has reached and that holds every type's policy.

    Raises:
        RunFileError: there is none.
    """
    learning = [name for name, agent in Economy.from_config(config).agents.items() if not agent.is_frozen]
    saved = set.intersection(*(set(run.labels(agent)) for agent in learning)) - {"best"}
    at = {label: int(label) if label.isdecimal() else last_iteration(run, config) for label in saved}
    within = [label for label in saved if phase.start < at[label] <= phase.end]
    if not within:
        problem = f"holds no checkpoint of iterations {phase.start + 1} to {phase.end}, where the {phase.agent} learns"
        remedy = f"train with a smaller train.save_model_every than {config.train.save_model_every}"
        raise RunFileError(run.saved_models_path, problem, remedy)
    return open_checkpoint(run, config, max(within, key=lambda label: (at[label], label == "latest")), notes)


def learned(
    trainer: RbcTrainer, phase: Phase, checkpoint: Checkpoint, untrained: Policy, episodes: int
) -> Learned | None:
    """Play the checkpoint with and without the type's training; None where the stage leaves the type no choice."""
    game = Game(trainer, checkpoint.policies, checkpoint.iteration, episodes, multipliers=checkpoint.multipliers)
    if not game.has_choice(phase.agent):
        return None
    after = of_deviator(game.baseline(), phase.agent, None)
    without = game.with_policies({**checkpoint.policies, phase.agent: untrained})
    before = of_deviator(without.values(game.num_episodes), phase.agent, None)
    gain = paired_gain(after, before, greedy=False)
    means = float(before.mean()), float(after.mean())
    alone = _gain_alone(game, phase.agent, untrained)
    return Learned(phase, checkpoint.label, checkpoint.iteration, *means, gain, alone, len(after))


def _gain_alone(game: Game, agent: str, untrained: Policy) -> Estimate | None:
    """The worth of its training to one agent, whose peers keep theirs."""
    count = game.economy.agents[agent].count
    if count == 1:
        return None
    gains = []
    for index in sample_of_agents(count):
        own = OwnPolicy(game.trainer, agent, index, copy.deepcopy(untrained))
        trained = of_deviator(game.baseline(), agent, index)
        game.restore()
        gains.append(trained - of_deviator(game.evaluate(own), agent, index))
    return Estimate.of(np.mean(gains, axis=0))


def published_sequence(run: RunDir, config: Config, found: list[Phase], notes: list[str]) -> Sequence | None:
    """Return the changes when firms began to learn, None where they did from the start or not at all.

    The windows touch the beginning on both sides, so that little else of the curriculum changes between them.

    Raises:
        RunFileError: there are no metrics of a window.
    """
    firms = next((phase for phase in found if phase.agent == "firm"), None)
    if firms is None or firms.start == 0:
        why = "learn from the start" if firms else "do not learn"
        notes.append(f"firms {why}: there is no before and after")
        return None
    previous = max((phase.start for phase in found if phase.start < firms.start), default=0)
    shorter = min(firms.start - previous, firms.end - firms.start)
    length = max(shorter // WINDOWS_PER_PHASE, config.train.log_every)
    before = max(firms.start - length, 0), firms.start - 1
    after = firms.start, firms.start + length - 1
    end = max(firms.end - length, firms.start), firms.end - 1
    records = run.read_metrics()
    shifts = [
        Shift(
            name,
            before=_mean(run, records, path, before),
            after=_mean(run, records, path, after),
            end=_mean(run, records, path, end),
            expected=expected,
        )
        for path, name, expected in PUBLISHED_SEQUENCE
    ]
    return Sequence(firms.start, before, after, end, shifts)


def _mean(run: RunDir, records: list[dict], path: str, window: tuple[int, int]) -> float:
    iterations, values = series(records, path)
    inside = values[(iterations >= window[0]) & (iterations <= window[1])]
    if not inside.size:
        problem = f"holds no {path} of iterations {window[0]} to {window[1]}"
        raise RunFileError(run.metrics_path, problem, "use a run with its metrics, or train one")
    return float(inside.mean())


def examine(run: RunDir, episodes: int, backend: str = "auto") -> Findings:
    """Measure a run; everything is opened before anything is played.

    Raises:
        RunFileError: a checkpoint or metrics are missing or damaged. ConfigError: so is hparams.yaml.
    """
    config, findings = load_config(run.hparams_path), Findings()
    found = phases(config, last_iteration(run, config), findings.notes)
    untrained: Mapping[str, Policy] = load_policies(run, config, 0)
    checkpoints = [checkpoint_at_end(run, config, phase, findings.notes) for phase in found]
    findings.sequence = published_sequence(run, config, found, findings.notes)
    trainer = RbcTrainer(config, backend)
    for phase, checkpoint in zip(found, checkpoints, strict=True):
        measured = learned(trainer, phase, checkpoint, untrained[phase.agent], episodes)
        if measured is None:
            where = f"checkpoint {checkpoint.label}"
            findings.notes.append(f"{phase.agent}: only one action is allowed at {where}, left out")
        else:
            findings.learned.append(measured)
    return findings


def _learned_table(rows: list[Learned]) -> str:
    title = (
        "Each type's policy at its phase's end against its untrained self, everything else equal: mean reward per\n"
        f"agent and period, {rows[0].episodes} episodes with common random numbers"
    )
    lines = []
    for row in rows:
        phase = range_text(row.phase.start, row.phase.end)
        figures = (number_text(row.untrained), number_text(row.trained), str(row.gain))
        alone = "" if row.alone is None else str(row.alone)
        lines.append((row.phase.agent, phase, row.checkpoint, *figures, "yes" if row.is_clear else "no", alone))
    head = (
        "type",
        "phase",
        "checkpoint",
        "untrained",
        "trained",
        "gain [95 %]",
        "clear of 0",
        "one agent alone [95 %]",
    )
    return f"{title}\n\n{text_table(head, lines)}"


def _sequence_table(sequence: Sequence) -> str:
    windows = [range_text(*window) for window in (sequence.before, sequence.after, sequence.end)]
    title = (
        f"Firms begin to learn at iteration {sequence.start}: means over iterations {windows[0]} before it,\n"
        f"{windows[1]} at once, and {windows[2]} at the end of their phase"
    )
    lines = []
    for shift in sequence.shifts:
        figures = map(number_text, (shift.before, shift.after, shift.end))
        holds = ("yes" if moves else "no" for moves in (shift.holds, shift.holds_at_end))
        lines.append((shift.figure, *figures, shift.expected, *holds))
    head = ("figure", "before", "at once", "at the end", "in the paper", "holds at once", "at the end")
    return f"{title}\n\n{text_table(head, lines)}"
