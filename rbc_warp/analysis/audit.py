"""The audit of a run: do its dense rollouts add up, were actions allowed, and drawn as the policies say?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from rbc_warp.analysis.accounts import Checks, Fault, compare_start, identities, in_float32, play_again, replay
from rbc_warp.config import Config, load_config
from rbc_warp.economy import curriculum
from rbc_warp.economy.agents import AGENT_TYPES, AgentType
from rbc_warp.economy.parameters import Economy
from rbc_warp.economy.reference import Stage
from rbc_warp.equilibrium.game import choice_name
from rbc_warp.runs.episodes import Episode, read_rollout
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.run import load_policies
from rbc_warp.training.policy import Policy

LEVEL = 0.001
"""Chance that a sound run's frequencies are told to differ, all tests together."""
RARE = 25.0
"""Variance that is taken for that of an action's count where its own is smaller: the tail of such a count is longer."""
BFLOAT16 = 0.02
"""Share of that variance by which counts may differ more where policies were computed in bfloat16."""
NO_WORK, NO_TRADE, ONE_ACTION = 0.01, 0.01, 0.999
"""Collapse: hours as a share of the most, units per firm and period, share of the commonest joint action."""


@dataclass
class Findings:
    """What an audit found. Faults are errors of the economy; warnings are told, and fail nothing."""

    faults: list[Fault] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        return not self.faults

    def __str__(self) -> str:
        lines = [*map(str, self.faults), *self.passed, *self.warnings, *(f"note: {note}" for note in self.notes)]
        return "\n".join(lines)


def audit(run: RunDir) -> Findings:
    """Audit all dense rollouts of a run.

    Raises:
        RunFileError: a file is missing, damaged or of another economy. ConfigError: so is hparams.yaml.
    """
    config, findings = load_config(run.hparams_path), Findings()
    economy, last = Economy.from_config(config), run.last_episode()
    labels = run.episode_labels()
    numbers = choices = 0
    tests: list[Count] = []
    for label in labels:
        episodes = read_rollout(run, economy, label, AGENT_TYPES)
        numbers += _balance(run, config, economy, label, episodes, findings)
        iteration = _iteration(run, config, label)
        if iteration is None:
            findings.notes.append(f"rollout {label}: its iteration is not known, so nothing is said of what it allowed")
        else:
            allowed = curriculum.allowed_actions(config, economy, iteration)
            choices += _check_actions(economy, label, iteration, episodes, allowed, findings)
            for agent, policy in _policies(run, config, label, iteration, findings).items():
                tests += counts(label, economy.agents[agent], episodes[agent], policy, allowed[agent])
        if label == last:
            _tell_collapse(run, config, economy, label, episodes, findings)
    if findings.is_sound:
        findings.passed[:0] = [
            f"{len(labels)} rollouts ({', '.join(labels)}), {numbers:,} numbers: states and rewards follow from states "
            "and actions, and goods, money, hours and taxes add up",
            f"all {choices:,} actions were allowed",
        ]
    _judge_counts(tests, config.train.precision != "float32", findings)
    return findings


def quick_audit(run: RunDir) -> str:
    """Balance the accounts of the last rollout and look for collapse; one line where all is well.

    Raises:
        RunFileError: a file is missing, damaged or of another economy.
    """
    config, findings = load_config(run.hparams_path), Findings()
    economy, label = Economy.from_config(config), run.last_episode()
    episodes = read_rollout(run, economy, label, AGENT_TYPES)
    _balance(run, config, economy, label, episodes, findings)
    _tell_collapse(run, config, economy, label, episodes, findings)
    told = [*map(str, findings.faults), *findings.warnings]
    if not told:
        return "goods, money, hours and taxes add up in the last rollout, and nothing has collapsed"
    return "\n".join([*told, f"more: python -m rbc_warp audit {run.path}"])


# Accounts


def _balance(
    run: RunDir, config: Config, economy: Economy, label: str, episodes: Mapping[str, Episode], findings: Findings
) -> int:
    """Play a rollout again and balance its accounts; return how many numbers were compared."""
    economy, checks = in_float32(economy), Checks(label)
    payers = [economy.agents[name].settings for name in ("consumer", "firm")]
    stage = Stage(1.0, *(payer.noponzi_start for payer in payers))
    kept: Any = np.ones(episodes["firm"].rewards.shape[:2], dtype=bool)
    if run.read_status() is None:  # of the published code, where a consumer in debt gets negative units
        kept = ~(episodes["consumer"].aux_array < 0.0).any(axis=(2, 3))
        if not kept.all():
            findings.notes.append(
                f"rollout {label}: left out {(~kept).sum():,} of {kept.size:,} periods, in which consumers in debt get "
                "negative units, as in the published code"
            )
    state, outcome, after = play_again(economy, stage, episodes)
    replay(checks, economy, episodes, state, outcome, after, [not payer.noponzi_eta for payer in payers], kept)
    identities(checks, economy, episodes, state, kept)
    iteration = _iteration(run, config, label)
    if iteration is not None:
        compare_start(checks, economy, episodes, Stage(curriculum.theta_factor(config, iteration)))
    findings.faults += checks.faults
    return checks.count


# Masks


def _iteration(run: RunDir, config: Config, label: str) -> int | None:
    """The iteration a rollout was played in; None of a last one whose run was not finished as it is configured."""
    if label != "final":
        return int(label)
    status = run.read_status()
    return status.iteration - 1 if status is not None and status.status == "finished" else None


def _check_actions(
    economy: Economy,
    label: str,
    iteration: int,
    episodes: Mapping[str, Episode],
    masks: Mapping[str, np.ndarray],
    findings: Findings,
) -> int:
    """Find actions that the stage of the curriculum did not allow; return how many were looked at."""
    number = 0
    for name, allowed in masks.items():
        agent = economy.agents[name]
        for head, taken, mask in _heads(agent, episodes[name], allowed):
            checks = Checks(label)
            text = f"masks: {name}: {head} allowed at iteration {iteration} (index)"
            nearest = np.flatnonzero(mask)[0]
            checks.equal(text, taken, np.where(mask[taken], taken, nearest), (name,), relative=0.0, absolute=0.0)
            findings.faults += checks.faults
            number += taken.size
    return number


def _heads(agent: AgentType, episode: Episode, rows: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Name, actions taken (E, T, n) and part of ``rows`` (…, actions) of each head."""
    joint = len(agent.head_sizes) == 1
    names = ["choice"] if joint else [f"good {j}" for j in range(len(agent.head_sizes) - 2)] + ["hours", "employer"]
    actions = episode.actions[..., None] if joint else episode.actions
    parts = np.split(rows, np.cumsum(agent.head_sizes)[:-1], axis=-1)
    return [(name, actions[..., head], part) for head, (name, part) in enumerate(zip(names, parts, strict=True))]


# Frequencies


@dataclass(frozen=True)
class Count:
    """How often an action was drawn, and how often the policy would: mean and variance."""

    rollout: str
    agent: str
    head: str
    action: int
    drawn: int
    expected: float
    variance: float


def _policies(run: RunDir, config: Config, label: str, iteration: int, findings: Findings) -> dict[str, Policy]:
    """The policies that played a rollout, without frozen ones; none where they are not saved."""
    agents = Economy.from_config(config).agents
    learning = [name for name, agent in agents.items() if not agent.is_frozen]
    saved = all(run.policy_path(name, iteration).exists() for name in learning)
    if not saved or iteration % config.train.save_model_every:
        findings.notes.append(
            f"rollout {label}: the policies that played it are not saved, so frequencies are not tested"
        )
        return {}
    policies = load_policies(run, config, iteration)
    return {name: policies[name] for name in learning}


def counts(label: str, agent: AgentType, episode: Episode, policy: Policy, allowed: np.ndarray) -> list[Count]:
    """Count each action of each head, beside what the policy's probabilities say."""
    mask = torch.from_numpy(allowed)
    mean, variance = np.zeros(len(allowed)), np.zeros(len(allowed))
    for period in range(episode.rewards.shape[1]):
        p = policy.probabilities(episode.states[:, period], mask).numpy().astype(np.float64).reshape(-1, len(allowed))
        mean += p.sum(axis=0)
        variance += (p * (1.0 - p)).sum(axis=0)
    found = []
    expected = _heads(agent, episode, np.stack([mean, variance]))
    for head, taken, moments in expected:
        drawn = np.bincount(taken.ravel(), minlength=moments.shape[1])
        found += [
            Count(label, agent.name, head, action, int(number), *map(float, moments[:, action]))
            for action, number in enumerate(drawn)
        ]
    return found


def _judge_counts(tests: list[Count], is_rounded: bool, findings: Findings) -> None:
    """Compare frequencies with probabilities, by z tests at a level that holds for all of them together."""
    tests = [test for test in tests if test.expected > 0.0]
    if not tests:
        return
    bound = -NormalDist().inv_cdf(LEVEL / 2 / len(tests))

    def z(test: Count) -> float:
        slack = BFLOAT16 * test.variance if is_rounded else 0.0
        return max(abs(test.drawn - test.expected) - slack, 0.0) / max(test.variance, RARE) ** 0.5

    worst = max(tests, key=z)
    text = (
        f"{worst.agent}, {worst.head}, action {worst.action} in rollout {worst.rollout}: drawn {worst.drawn:,} times, "
        f"{worst.expected:,.1f} expected, {z(worst):.1f} standard deviations"
    )
    off = sum(z(test) > bound for test in tests)
    many = f"{len(tests):,} actions' frequencies"
    if off:
        findings.warnings.append(f"DIFFER: {off:,} of {many} are further than {bound:.1f} from the policies'; {text}")
    else:
        findings.passed.append(
            f"{many} agree with the policies' probabilities ({LEVEL:g}, Bonferroni); furthest: {text}"
        )


# Collapse


@dataclass(frozen=True)
class Activity:
    """How much is worked and traded in a rollout."""

    hours: float  #: Per consumer and period.
    most_hours: float  #: The most that a consumer can work.
    units: float  #: Sold and exported per firm and period.

    @classmethod
    def of(cls, economy: Economy, episodes: Mapping[str, Episode]) -> Activity:
        hours = economy.work_choices[episodes["consumer"].actions[..., economy.num_firms]].mean()
        sold, abroad = (float(episodes[agent].aux_array.mean(dtype=np.float64)) for agent in ("consumer", "firm"))
        return cls(float(hours), float(economy.work_choices.max()), sold * economy.num_consumers + abroad)

    @property
    def worked(self) -> float:
        """The share of the most hours that is worked."""
        return self.hours / self.most_hours

    @property
    def has_no_work(self) -> bool:
        return self.worked < NO_WORK

    @property
    def has_no_trade(self) -> bool:
        return self.units < NO_TRADE

    @property
    def has_collapsed(self) -> bool:
        return self.has_no_work or self.has_no_trade


def last_activity(run: RunDir) -> Activity:
    """Return that of a run's last rollout. Raises RunFileError where there is none, or it is damaged."""
    economy = Economy.from_config(load_config(run.hparams_path))
    return Activity.of(economy, read_rollout(run, economy, run.last_episode(), ("consumer", "firm")))


def _tell_collapse(
    run: RunDir, config: Config, economy: Economy, label: str, episodes: Mapping[str, Episode], findings: Findings
) -> None:
    """Say whether work, trade or choice has ceased in a rollout. Whoever is allowed one action only has no choice."""
    iteration = _iteration(run, config, label)
    every = {name: np.ones(agent.num_actions, dtype=bool) for name, agent in economy.agents.items()}
    allowed = every if iteration is None else curriculum.allowed_actions(config, economy, iteration)
    activity, found = Activity.of(economy, episodes), []
    hours, most, units = activity.hours, activity.most_hours, activity.units
    if activity.has_no_work:
        found.append(f"no work: {hours:.3g} hours per consumer and period, of at most {most:g}")
    if activity.has_no_trade:
        found.append(f"no trade: {units:.3g} units sold and exported per firm and period")
    for name, agent in economy.agents.items():
        drawn = episodes[name].actions.reshape(-1, len(agent.head_sizes))
        actions, number = np.unique(drawn, axis=0, return_counts=True)
        has_choice = any(mask.sum() > 1 for _, _, mask in _heads(agent, episodes[name], allowed[name]))
        if has_choice and number.max() > ONE_ACTION * len(drawn):
            action = _action_text(economy, agent, actions[number.argmax()])
            found.append(f"one action: {number.max() / len(drawn):.2%} of the draws of the {name} type are {action}")
    findings.warnings += [f"COLLAPSE in rollout {label}: {text}" for text in found]
    if not found:
        findings.passed.append(
            f"no collapse in rollout {label}: {hours:.3g} hours per consumer and period of at most {most:g}, "
            f"{units:.3g} units sold and exported per firm and period, and no type takes one action only"
        )


def _action_text(economy: Economy, agent: AgentType, action: np.ndarray) -> str:
    if len(agent.head_sizes) == 1:
        return choice_name(agent, int(action[0]))
    *goods, hours, employer = action
    units = " ".join(f"{economy.consumption_choices[good]:g}" for good in goods)
    return f"units {units}, hours {economy.work_choices[hours]:g}, employer {employer}"
