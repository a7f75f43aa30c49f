"""The curriculum: pure functions of the configuration and the iteration, counted from 0."""

import math
from collections.abc import Sequence

import numpy as np

from rbc_warp.config import Config
from rbc_warp.economy.agents import FIRM_PRICE, FIRM_WAGE, AgentType
from rbc_warp.economy.parameters import Economy

# A bound reached exactly counts as open, whatever the rounding of start + increase·n.
TOLERANCE = 1e-6


def theta_factor(config: Config, iteration: int) -> float:
    """Share of the disutility of work that consumers see and feel: 1 − exp(−iteration / length)."""
    anneal = config.agents.consumer_anneal_theta
    if anneal is None or not anneal.anneal_on:
        return 1.0
    return -math.expm1(-iteration / anneal.exp_decay_length_in_steps)


def entropy_coefficient(config: Config, agent: AgentType, iteration: int) -> float:
    """Weight of the entropy in a type's loss: ``train.entropy`` · max(exp(−n/length), floor), n since it began.

    From ``fall_start`` on the factor falls in a line, to 0 at ``fall_end``. Where a type learns before its start (by a
    list, or in a best response), n is 0: the factor never exceeds 1.
    """
    anneal = agent.settings.entropy_anneal
    if anneal is None or not anneal.anneal_on:
        return config.train.entropy
    n = max(iteration - agent.settings.training_start, 0)
    factor = max(math.exp(-n / anneal.exp_decay_length_in_steps), anneal.coef_floor)
    if anneal.fall_start is not None and anneal.fall_end is not None:
        factor *= _line(iteration, anneal.fall_start, anneal.fall_end)
    return config.train.entropy * factor


def learning_rate(config: Config, agent: AgentType, iteration: int) -> float:
    """A type's learning rate: constant, then from ``lr_decay_start`` on a line to 0 at the run's end, if it has one."""
    return config.train.lr * agent.settings.lr_multiple * learning_rate_factor(config, iteration)


def learning_rate_factor(config: Config, iteration: int) -> float:
    """Share of their first value that all learning rates have."""
    start, end = config.train.lr_decay_start, config.train.num_episodes
    if start is None or start >= end or config.train.infinite_episodes:
        return 1.0
    return _line(iteration, start, end)


def _line(iteration: int, start: int, end: int) -> float:
    """1 until ``start``, 0 from ``end`` on, a line between them."""
    return min(max((end - iteration) / (end - start), 0.0), 1.0)


def in_training(config: Config, agent: AgentType, iteration: int) -> bool:
    """Return whether a type learns in the phase of an iteration, be it its turn in this very one or not."""
    if agent.is_frozen:
        return False
    if _alternates(config, agent):
        return True
    settings = agent.settings
    if settings.training_list is not None:
        return any(start <= iteration < end for start, end in settings.training_list)
    return iteration >= settings.training_start


def trains(config: Config, agent: AgentType, iteration: int) -> bool:
    """Return whether a type's policy is updated after this iteration's episode."""
    if not in_training(config, agent, iteration):
        return False
    mod, threshold = config.agents.training_schedule_mod, config.agents.consumer_mod_threshold
    if mod is not None and threshold is not None and _alternates(config, agent):
        consumers_turn = iteration % mod <= threshold
        return consumers_turn == (agent.name == "consumer")
    return agent.settings.training_list is not None or iteration % agent.settings.train_every == 0


def _alternates(config: Config, agent: AgentType) -> bool:
    """Whether a type learns in turns with another."""
    return config.agents.training_schedule_mod is not None and agent.name in ("consumer", "firm")


def phase(config: Config, economy: Economy, iteration: int) -> str:
    """The phase of an iteration in words: "consumers and firms learn"."""
    return _learn(_learners(config, economy, iteration))


def phases(config: Config, economy: Economy) -> list[tuple[int, str]]:
    """The beginning of each later phase, and who joins in it: (780, "firms learn"); who goes on, where some leave."""
    borders = set()
    for agent in economy.agents.values():
        spans = agent.settings.training_list
        borders |= {agent.settings.training_start} if spans is None else {border for span in spans for border in span}
    found = []
    for border in sorted(borders - {0}):
        before, now = (_learners(config, economy, iteration) for iteration in (border - 1, border))
        if before != now:
            found.append((border, _learn([agent for agent in now if agent not in before] or now)))
    return found


def _learners(config: Config, economy: Economy, iteration: int) -> list[AgentType]:
    return [agent for agent in economy.agents.values() if in_training(config, agent, iteration)]


def _learn(agents: Sequence[AgentType]) -> str:
    names = [agent.name if agent.count == 1 else f"{agent.name}s" for agent in agents] or ["nobody"]
    verb = "learn" if len(names) > 1 or (agents and agents[0].count > 1) else "learns"
    return f"{' and '.join(filter(None, [', '.join(names[:-1]), names[-1]]))} {verb}"


def trials(config: Config, economy: Economy, iteration: int) -> dict[str, int]:
    """How many trials of single agents each type makes beside an iteration's episodes, where it makes any."""
    end = config.agents.trials_end
    if end is not None and iteration >= end:
        return {}
    return {
        name: agent.settings.trials
        for name, agent in economy.agents.items()
        if agent.settings.trials and agent.num_actions > 1 and trains(config, agent, iteration)
    }


def env_steps(config: Config, economy: Economy, iterations: int) -> int:
    """Environment steps of so many iterations: of their episodes, and of those that are played again with trials."""
    again = 0
    if any(agent.settings.trials for agent in economy.agents.values()):
        again = sum(1 for iteration in range(iterations) if trials(config, economy, iteration))
    return (iterations + again) * config.train.batch_size * economy.num_periods


def allowed_actions(config: Config, economy: Economy, iteration: int) -> dict[str, np.ndarray]:
    """Per type, which entries of its heads' action lists may be drawn: bool, one per action of all heads."""
    allowed = {name: np.ones(agent.num_actions, dtype=bool) for name, agent in economy.agents.items()}
    allowed["firm"] = _allowed_firm_actions(config, economy, iteration)
    allowed["government"] = _allowed_taxes(config, economy, iteration)
    for name, agent in economy.agents.items():
        if agent.is_frozen:
            allowed[name] = np.arange(agent.num_actions) == agent.settings.frozen_action
    return allowed


def _allowed_firm_actions(config: Config, economy: Economy, iteration: int) -> np.ndarray:
    agents = config.agents
    n = max(iteration - agents.firm_begin_anneal_action, 0)
    allowed = np.ones(len(economy.firm_choices), dtype=bool)
    for column, anneal in ((FIRM_PRICE, agents.firm_anneal_prices), (FIRM_WAGE, agents.firm_anneal_wages)):
        if anneal is not None and anneal.anneal_on:
            choice = economy.firm_choices[:, column]
            slack = TOLERANCE * max(1.0, abs(anneal.start))
            allowed &= choice >= anneal.start - anneal.decrease_const * n - slack
            allowed &= choice <= anneal.start + anneal.increase_const * n + slack
    return allowed


def _allowed_taxes(config: Config, economy: Economy, iteration: int) -> np.ndarray:
    anneal = config.agents.government_anneal_taxes
    if anneal is None or not anneal.anneal_on:
        return np.ones(len(economy.government_choices), dtype=bool)
    n = max(iteration - config.agents.government_begin_anneal_action, 0)
    cap = anneal.start + anneal.increase_const * n + TOLERANCE
    return np.all(economy.government_choices <= cap, axis=1)


def narrowed(config: Config, economy: Economy, iteration: int) -> dict[str, tuple[float, float]]:
    """The lowest and highest value that may be drawn of each quantity whose actions are not all open yet."""
    ranges = {}
    for name, mask in allowed_actions(config, economy, iteration).items():
        agent = economy.agents[name]
        if agent.is_frozen or len(mask) != len(agent.choices) or mask.all():
            continue
        for column, quantity in enumerate(agent.choice_names):
            values, open_values = agent.choices[:, column], agent.choices[mask, column]
            if len(np.unique(open_values)) < len(np.unique(values)):
                ranges[quantity] = (float(open_values.min()), float(open_values.max()))
    return ranges
