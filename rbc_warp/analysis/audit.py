"""The audit of a run: do its dense rollouts add up, were actions allowed, and drawn as the policies say?

Every period is played again by ``economy/reference.py`` from the state and the actions that the files hold, and the
accounts are balanced from those numbers alone. The files are float32, so sums may differ by rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from scipy.stats import norm

from rbc_warp.config import Config, load_config
from rbc_warp.economy import curriculum, reference
from rbc_warp.economy.agents import (
    AGENT_TYPES,
    CONSUMER_BUDGET,
    CONSUMER_THETA,
    FIRM_ALPHA,
    FIRM_BUDGET,
    FIRM_CAPITAL,
    AgentType,
    Layout,
)
from rbc_warp.economy.parameters import Economy
from rbc_warp.economy.reference import Outcome, Stage, State
from rbc_warp.equilibrium.game import choice_name
from rbc_warp.runs.episodes import Episode, read_rollout
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.run import load_policies
from rbc_warp.training.policy import Policy

# Rounding allowed in what the kernels compute in float32: relative to the absolute terms of a sum, and absolute.
RELATIVE, MONEY, UNITS, SHOWN = 1e-6, 1e-3, 1e-5, 1e-6
POWERS = 1e-5
"""Relative rounding of powers, in utility and production, and of units that are shared."""
LEVEL = 0.001
"""Chance that a sound run's frequencies are told to differ, all tests together."""
RARE = 25.0
"""Variance that is taken for that of an action's count where its own is smaller: the tail of such a count is longer."""
BFLOAT16 = 0.02
"""Share of that variance by which counts may differ more where policies were computed in bfloat16."""
NO_WORK, NO_TRADE, ONE_ACTION = 0.01, 0.01, 0.999
"""Collapse: hours as a share of the most, units per firm and period, share of the commonest joint action."""


@dataclass(frozen=True)
class Fault:
    """A check that failed: the first number that is not what it must be, and in how many places that is so."""

    check: str
    rollout: str
    where: str
    found: float
    expected: float
    count: int
    total: int

    def __str__(self) -> str:
        return (
            f"FAILS: {self.check}: rollout {self.rollout}, {self.where}: {_number(self.found)} where "
            f"{_number(self.expected)} is due; {self.count:,} of {self.total:,} such numbers are off"
        )


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


@dataclass
class Checks:
    """Compares numbers of one rollout, all of them (E, T, …), and keeps what is wrong."""

    rollout: str
    faults: list[Fault] = field(default_factory=list)
    count: int = 0

    def equal(
        self,
        check: str,
        found: Any,
        expected: Any,
        dims: tuple[str, ...] = (),
        *,
        gross: Any = 0.0,
        relative: float = RELATIVE,
        absolute: float = MONEY,
        where: Any = True,
        first: int = 0,
    ) -> None:
        """Demand that two arrays agree up to ``relative · gross + absolute``, ``where`` that is asked.

        ``dims`` names the dimensions after episodes and periods; ``first`` is the period of the first column.
        """
        off = ~(np.abs(found - expected) <= relative * (np.abs(gross) + np.abs(expected)) + absolute)  # also of NaN
        self._note(check, found, expected, off, dims, where, first)

    def at_most(
        self, check: str, found: Any, limit: Any, dims: tuple[str, ...], where: Any, absolute: float = UNITS
    ) -> None:
        """Demand that no number is above its limit, up to rounding."""
        off = ~(found <= limit + POWERS * np.abs(limit) + absolute)
        self._note(check, found, limit, off, dims, where, 0)

    def _note(
        self, check: str, found: Any, expected: Any, off: Any, dims: tuple[str, ...], where: Any, first: int
    ) -> None:
        asked = np.broadcast_to(where, off.shape)
        wrong = np.argwhere(off & asked)
        self.count += int(asked.sum())
        if len(wrong):
            at = tuple(wrong[np.argmin(wrong[:, 1])])
            names = ("episode", "period", *dims)
            place = ", ".join(f"{n} {i + first * (n == 'period')}" for n, i in zip(names, at, strict=True))
            value, due = (float(np.broadcast_to(array, off.shape)[at]) for array in (found, expected))
            self.faults.append(Fault(check, self.rollout, place, value, due, len(wrong), int(asked.sum())))


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
            choices += _check_actions(config, economy, label, iteration, episodes, findings)
            policies = _policies(run, config, label, iteration, findings)
            for agent, policy in policies.items():
                allowed = curriculum.allowed_actions(config, economy, iteration)[agent]
                tests += counts(label, economy.agents[agent], episodes[agent], policy, allowed)
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


# What follows from states and actions


def _balance(
    run: RunDir, config: Config, economy: Economy, label: str, episodes: Mapping[str, Episode], findings: Findings
) -> int:
    """Play a rollout again and balance its accounts; return how many numbers were compared."""
    economy, checks = _in_float32(economy), Checks(label)
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
        start = reference.initial_state(economy, 1, Stage(curriculum.theta_factor(config, iteration)))
        for agent, observed in reference.observations(start).items():
            private = economy.agents[agent].private
            found, due = (array[..., -private.size :] for array in (episodes[agent].states[:, :1], observed[:, None]))
            for name, dims, each, value in _columns(private, found, due):
                checks.equal(f"start: the {agent}'s {name}", each, value, (agent, *dims), absolute=SHOWN)
        found, due = episodes["government"].states[:, :1, 0], start.public[:, None]
        for name, dims, each, value in _columns(economy.public, found, due):
            checks.equal(f"start: {name}", each, value, dims, absolute=SHOWN)
    findings.faults += checks.faults
    return checks.count


def _columns(
    layout: Layout, found: np.ndarray, due: np.ndarray
) -> Iterator[tuple[str, tuple[str, ...], np.ndarray, np.ndarray]]:
    """Each column's name, the dimension of its entries if it has several, and that part of two states."""
    for column, span in layout.spans():
        at: Any = span if column.width else span.start
        yield column.name, ("firm",) if column.width else (), found[..., at], due[..., at]


def _in_float32(economy: Economy) -> Economy:
    """The economy with the numbers that the kernels know."""
    rounded: dict[str, Any] = {}
    for each in fields(economy):
        value = getattr(economy, each.name)
        if isinstance(value, float | np.ndarray):
            rounded[each.name] = np.float64(np.float32(value))
    return replace(economy, **rounded)


def play_again(
    economy: Economy, stage: Stage, episodes: Mapping[str, Episode]
) -> tuple[State, dict[str, np.ndarray], State]:
    """Play every period from its saved state: the states before (E, T, …), the outcome, and the states after."""
    shape, size = episodes["firm"].rewards.shape[:2], economy.public.size

    def rows(array: np.ndarray) -> np.ndarray:
        return array.reshape(-1, *array.shape[2:])

    def periods(array: np.ndarray) -> np.ndarray:
        return array.reshape(*shape, *array.shape[1:])

    states = {agent: rows(episode.states).astype(np.float64) for agent, episode in episodes.items()}
    before = State(states["government"][:, 0], states["consumer"][:, :, size:], states["firm"][:, :, size:])
    consumer, firm, government = (rows(episodes[agent].actions) for agent in AGENT_TYPES)
    after, outcome = reference.step(economy, before, consumer, firm, government, stage)
    flows = {each.name: periods(getattr(outcome, each.name)) for each in fields(Outcome)}
    before, after = (State(*(periods(getattr(s, each.name)) for each in fields(State))) for s in (before, after))
    return before, flows, after


def replay(
    checks: Checks,
    economy: Economy,
    episodes: Mapping[str, Episode],
    before: State,
    outcome: Mapping[str, np.ndarray],
    after: State,
    knows_multiplier: list[bool],
    kept: np.ndarray,
) -> None:
    """Compare the saved states, flows and rewards with those of the reference.

    Where a type's charge on final debt is not known, rewards that have one are not compared.
    """
    layout, size = economy.public, economy.public.size
    consumers, firms, government = (episodes[agent] for agent in AGENT_TYPES)
    stock = before.public[..., layout.inventories]
    posted, due = government.states[:, 1:, 0].astype(np.float64), after.public[:, :-1]
    rounding: dict[str, Any] = {"relative": POWERS, "absolute": UNITS}
    tie = np.abs(outcome["total_demand"] - stock) <= POWERS * outcome["total_demand"]
    for name, dims, found, value in _columns(layout, posted, due):
        seen = kept[:, :-1, None] if dims else kept[:, :-1]
        if name == "inventories":
            gross = (stock + outcome["production"])[:, :-1]
            checks.equal(f"replay of {name}", found, value, dims, gross=gross, where=seen, first=1, **rounding)
        else:
            seen = seen & ~tie[:, :-1] if name == "overdemanded" else seen
            checks.equal(f"replay of {name}", found, value, dims, absolute=SHOWN, where=seen, first=1)
    for agent, episode in episodes.items():
        public = np.broadcast_to(government.states, (*episode.states.shape[:-1], size))
        for name, dims, found, value in _columns(layout, episode.states[..., :size], public):
            checks.equal(f"{name} as a {agent} sees it", found, value, (agent, *dims), absolute=0.0)
    turnover = {
        "consumer": (outcome["consumption"] * before.public[:, :, None, layout.prices]).sum(axis=3)
        + outcome["wage_income"],
        "firm": outcome["revenue"] + outcome["wage_bill"],
    }
    for agent in ("consumer", "firm"):
        saved, value = episodes[agent].states[:, 1:, :, size:], getattr(after, agent)[:, :-1]
        for name, dims, found, due in _columns(economy.agents[agent].private, saved, value):
            gross = turnover[agent][:, :-1] if name in ("budget", "capital") else 0.0
            absolute = MONEY if name in ("budget", "capital") else SHOWN
            seen = kept[:, :-1, None, None] if dims else kept[:, :-1, None]
            checks.equal(
                f"replay of the {agent}'s {name}", found, due, (agent, *dims), gross=gross, absolute=absolute,
                where=seen, first=1,
            )  # fmt: skip
    checks.equal(
        "replay of consumption", consumers.aux_array, outcome["consumption"], ("consumer", "good"),
        where=kept[..., None, None], **rounding,
    )  # fmt: skip
    checks.equal(
        "replay of exports", firms.aux_array, outcome["exports"], ("firm",), gross=stock, where=kept[..., None],
        **rounding,
    )  # fmt: skip
    effort = 0.5 * before.consumer[..., CONSUMER_THETA] * outcome["hours"]
    gross = {"consumer": np.abs(outcome["consumer_reward"]) + 2.0 * effort, "firm": turnover["firm"]}
    for agent, is_known in zip(gross, knows_multiplier, strict=True):
        known = np.ones(gross[agent].shape, dtype=bool)
        known[:, -1] = is_known | (getattr(after, agent)[:, -1, :, economy.agents[agent].budget] >= 0.0)
        checks.equal(
            f"replay of the {agent}'s reward", episodes[agent].rewards, outcome[f"{agent}_reward"], (agent,),
            gross=gross[agent], where=kept[..., None] & known, **(rounding if agent == "consumer" else {}),
        )  # fmt: skip
    rewards = [
        episode.rewards.astype(np.float64).reshape(-1, episode.rewards.shape[2]) for episode in (consumers, firms)
    ]
    welfare = reference.reward_government(economy, *rewards).reshape(kept.shape)
    factor = economy.firm_reward_for_government_factor
    sizes = np.abs(consumers.rewards).sum(axis=2) + factor * np.abs(firms.rewards).sum(axis=2)
    checks.equal(
        "welfare = sum of rewards", government.rewards[..., 0], welfare, gross=sizes, absolute=UNITS, where=kept
    )


# The accounts, from what the files hold


def identities(
    checks: Checks, economy: Economy, episodes: Mapping[str, Episode], before: State, kept: np.ndarray
) -> None:
    """Balance goods, money, hours and taxes, from saved states, flows and actions alone."""
    layout, firms, rate = economy.public, economy.num_firms, economy.interest_rate
    asked = episodes["consumer"].actions
    consumption, exports = (episodes[agent].aux_array.astype(np.float64) for agent in ("consumer", "firm"))
    prices, wages, stock = (before.public[..., getattr(layout, n)] for n in ("prices", "wages", "inventories"))
    income_tax, corporate_tax = before.public[..., layout.income_tax], before.public[..., layout.corporate_tax]
    budgets, firm_budgets = before.consumer[..., CONSUMER_BUDGET], before.firm[..., FIRM_BUDGET]
    capital, alpha = before.firm[..., FIRM_CAPITAL], before.firm[..., FIRM_ALPHA]

    demand = economy.consumption_choices[asked[..., :firms]]
    hours, employer = economy.work_choices[asked[..., firms]], asked[..., firms + 1]
    works_here = employer[..., None] == np.arange(firms)
    labor = (hours[..., None] * works_here).sum(axis=2)
    wage_income = np.take_along_axis(wages, employer, axis=2) * hours
    sales = consumption.sum(axis=2)
    spending = (consumption * prices[:, :, None]).sum(axis=3)
    revenue = prices * (sales + exports)

    # Goods: nothing is consumed, sold or stored that was not there.
    each = kept[..., None]
    checks.at_most("goods: units got ≤ units asked", consumption, demand, ("consumer", "good"), each[..., None])
    checks.at_most("goods: units sold + exported ≤ inventory", sales + exports, stock, ("firm",), each)
    purse = np.maximum(budgets, 0.0)
    checks.at_most("goods: spending ≤ budget", spending, purse, ("consumer",), each, absolute=MONEY)
    made = reference.produce(economy, capital, alpha, labor)
    left, gross = (stock - sales - exports + made)[:, :-1], (stock + made)[:, :-1]
    later: dict[str, Any] = {"where": each[:, :-1], "first": 1}
    checks.equal(
        "goods: inventory = inventory before − sales − exports + production", stock[:, 1:], left, ("firm",),
        gross=gross, relative=POWERS, absolute=UNITS, **later,
    )  # fmt: skip
    checks.at_most("goods: inventory ≥ 0", -stock, np.zeros_like(stock), ("firm",), each)

    # What each budget changed by, before interest. The flows belong to the period before the budget was saved.
    def earned(balance: np.ndarray) -> np.ndarray:
        """The change of budgets (E, T, n) in all periods but the last, without the interest in it."""
        return balance[:, 1:] - balance[:, :-1] - np.maximum(balance[:, 1:], 0.0) * rate / (1.0 + rate)

    def total(*terms: np.ndarray) -> np.ndarray:
        return np.sum([np.abs(term).sum(axis=2) for term in terms], axis=0)

    consumer_change, firm_change = earned(budgets), earned(firm_budgets)
    investment = capital[:, 1:] - capital[:, :-1]
    past: Any = np.s_[:, :-1]
    wealth = total(budgets[past], firm_budgets[past], capital[past]) + total(revenue[past], wage_income[past])
    periods: dict[str, Any] = {"where": kept[past], "first": 1}

    # Hours: what firms' books show as wages is what consumers earned.
    profit = revenue[past] - (wages * labor)[past] - investment
    tax_paid = corporate_tax[past][..., None] * np.maximum(profit, 0.0)
    wage_bill = revenue[past] - investment - tax_paid - firm_change
    earnings = wage_income[past].sum(axis=2)
    checks.equal("hours: wages that firms paid = wages for hours worked", wage_bill.sum(axis=2), earnings,
                 gross=wealth, **periods)  # fmt: skip

    # Taxes: what consumers received is what was paid.
    gift, taxed = economy.budget_drip, income_tax[..., None] * wage_income
    received = consumer_change - gift + spending[past] - (wage_income - taxed)[past]
    paid = taxed[past].sum(axis=2) + tax_paid.sum(axis=2)
    checks.equal("taxes: handed back to consumers = paid", received.sum(axis=2), paid, gross=wealth, **periods)

    # Money: only gifts, exports and interest bring it in.
    change = consumer_change.sum(axis=2) + firm_change.sum(axis=2) + investment.sum(axis=2)
    brought = gift * economy.num_consumers + (prices * exports)[past].sum(axis=2)
    checks.equal("money: change of budgets and capital, without interest = gifts + exports", change, brought,
                 gross=wealth, **periods)  # fmt: skip


# Masks


def _iteration(run: RunDir, config: Config, label: str) -> int | None:
    """The iteration a rollout was played in; None of a last one whose run was not finished as it is configured."""
    if label != "final":
        return int(label)
    status = run.read_status()
    return status.iteration - 1 if status is not None and status.status == "finished" else None


def _check_actions(
    config: Config, economy: Economy, label: str, iteration: int, episodes: Mapping[str, Episode], findings: Findings
) -> int:
    """Find actions that the stage of the curriculum did not allow; return how many were looked at."""
    number = 0
    for name, allowed in curriculum.allowed_actions(config, economy, iteration).items():
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
    bound = float(norm.isf(LEVEL / 2 / len(tests)))

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


def _tell_collapse(
    run: RunDir, config: Config, economy: Economy, label: str, episodes: Mapping[str, Episode], findings: Findings
) -> None:
    """Say whether work, trade or choice has ceased in a rollout. Whoever is allowed one action only has no choice."""
    iteration = _iteration(run, config, label)
    every = {name: np.ones(agent.num_actions, dtype=bool) for name, agent in economy.agents.items()}
    allowed = every if iteration is None else curriculum.allowed_actions(config, economy, iteration)
    asked, most = episodes["consumer"].actions, economy.work_choices.max()
    hours = float(economy.work_choices[asked[..., economy.num_firms]].mean())
    sold, abroad = (float(episodes[agent].aux_array.mean(dtype=np.float64)) for agent in ("consumer", "firm"))
    units = sold * economy.num_consumers + abroad
    found = []
    if hours < NO_WORK * most:
        found.append(f"no work: {hours:.3g} hours per consumer and period, of at most {most:g}")
    if units < NO_TRADE:
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


def _number(value: float) -> str:
    return f"{value:,.6g}"
