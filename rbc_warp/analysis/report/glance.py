"""What a stranger needs first: what this economy is, where it ended, and whether that is an equilibrium."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rbc_warp.analysis.report.parts import Source
from rbc_warp.economy.curriculum import env_steps
from rbc_warp.runs.console import number_text


@dataclass(frozen=True)
class Fact:
    """A number of the first row, what it is, its unit, and of several runs the range."""

    name: str
    value: str
    unit: str
    between: str


def sentence(source: Source) -> str:
    """Say what the economy is, and how long its agents learned."""
    config, agents = source.config, source.config.agents
    steps = env_steps(config, source.economy, config.train.num_episodes)
    names = ["the government" if name == "government" else f"{name}s" for name in source.learning]
    learners = " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part) or "no one"
    return (
        f"A simulated economy of {agents.num_consumers} consumers, who work and buy, {agents.num_firms} firms, who set "
        f"prices and wages and turn money into capital, and a government, which sets an income and a corporate tax; it "
        f"is {'open: firms export' if source.economy.use_importer else 'closed'}. An episode has "
        f"{source.economy.num_periods} quarters. What to do, {learners} learned by reinforcement, in "
        f"{config.train.num_episodes:,} iterations or {steps:,} environment steps."
    )


def verdict(sources: list[Source]) -> str:
    """Say in one sentence whether the runs ended in an equilibrium, as far as it was searched."""
    last = [source.results.verdicts[-1] for source in sources if source.results.verdicts]
    if not last:
        return "Whether this is an equilibrium has not been asked yet."
    passed = sum(bool(each["passed"]) for each in last)
    bar = "the most that a tried deviation gains stays below the bar for every type"
    if len(sources) == 1:
        at = f"at iteration {last[0]['iteration']}"
        if passed:
            return f"Passes as an approximate equilibrium {at}: {bar}."
        failing = [agent for agent, found in last[0]["largest"].items() if not found["passed"]]
        return (
            f"Fails as an approximate equilibrium {at}: a deviation gains too much for the {' and the '.join(failing)}."
        )
    rest = len(sources) - len(last)
    return f"{passed} of {len(last)} runs pass as approximate equilibria: {bar}." + f" Not searched: {rest}." * (
        rest > 0
    )


def facts(sources: list[Source]) -> list[Fact]:
    """Return final figures, of several runs their mean and range; those that no file tells are left out."""
    found = []
    for name, unit, measure in MEASURES:
        values = [
            value for source in sources for value in [measure(source)] if value is not None and np.isfinite(value)
        ]
        if values:
            between = f"{number_text(min(values))} to {number_text(max(values))}" if len(values) > 1 else ""
            found.append(Fact(name, number_text(float(np.mean(values))), unit, between))
    return found


def _mean(metric: str, variable: str, scale: float = 1.0) -> Callable[[Source], float | None]:
    """A metric's final mean, or its mean over the last rollout where there are no metrics."""

    def measure(source: Source) -> float | None:
        if metric in source.final:
            return scale * source.final[metric]
        return None if source.last is None else scale * float(source.rollout[variable].mean())

    return measure


def _gdp(source: Source) -> float | None:
    return None if source.last is None else float(source.accounts["gdp_production"].mean())


MEASURES: tuple[tuple[str, str, Callable[[Source], float | None]], ...] = (
    ("Welfare", "reward of the government", _mean("reward.government", "government_reward")),
    ("Consumers' reward", "utility per quarter", _mean("reward.consumer", "consumer_reward")),
    ("Firms' reward", "money per quarter", _mean("reward.firm", "firm_reward")),
    ("GDP", "money per quarter", _gdp),
    ("Price", "money per unit", _mean("economy.price", "prices")),
    ("Wage", "money per hour", _mean("economy.wage", "wages")),
    ("Work", "hours per quarter", _mean("economy.hours", "hours")),
    ("Income tax", "% of wages", _mean("economy.income_tax", "income_tax", 100.0)),
    ("Corporate tax", "% of profits", _mean("economy.corporate_tax", "corporate_tax", 100.0)),
)
