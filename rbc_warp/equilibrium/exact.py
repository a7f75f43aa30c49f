"""Exact best responses against deterministic play.

With everybody else playing the most likely action, an economy is deterministic: the best open-loop plan of one deviator
is found by playing all plans, as environments side by side.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from rbc_warp.economy.agents import FIRM_INVESTMENT
from rbc_warp.economy.parameters import Economy
from rbc_warp.equilibrium.game import FREE, Forced, Game, of_deviator
from rbc_warp.errors import ConfigError
from rbc_warp.training.rollout import EVALUATION_STREAM, Draw


@dataclass(frozen=True)
class BestPlan:
    """The best open-loop plan of one deviator against the most likely actions of everybody else."""

    agent: str
    index: int | None
    actions: np.ndarray  #: (T, heads) indices; FREE from the period on where the deviator goes back to its policy.
    reward: float  #: Mean per period.
    before: float  #: Of the deviator's own most likely actions.
    num_plans: int
    is_exact: bool  #: True if it covers every period in which an action can matter.

    @property
    def gain(self) -> float:
        return self.reward - self.before

    @property
    def num_periods(self) -> int:
        """Periods that the plan covers."""
        return int((self.actions[:, 0] != FREE).sum())


def useful_periods(economy: Economy, agent: str) -> int:
    """Periods in which a type's action can matter: what is posted in the last one binds nobody."""
    invests = len(np.unique(economy.firm_choices[:, FIRM_INVESTMENT])) > 1
    return economy.num_periods if agent == "consumer" or (agent == "firm" and invests) else economy.num_periods - 1


def joint_actions(game: Game, agent: str) -> np.ndarray:
    """All allowed joint actions of a type, (K, heads)."""
    sizes = game.economy.agents[agent].head_sizes
    allowed = np.split(game.allowed(agent), np.cumsum(sizes)[:-1])
    return np.array(list(itertools.product(*(np.flatnonzero(mask) for mask in allowed))), dtype=np.int32)


def count_joint_actions(game: Game, agent: str) -> int:
    """Return the number of :func:`joint_actions`, without making them."""
    sizes = game.economy.agents[agent].head_sizes
    counts = [int(mask.sum()) for mask in np.split(game.allowed(agent), np.cumsum(sizes)[:-1])]
    return int(np.prod(np.array(counts, dtype=object)))


def plan_horizon(game: Game, agent: str, max_plans: int) -> int:
    """The longest plan, in periods, that ``max_plans`` allows to enumerate; :class:`ConfigError` where it is none."""
    choices = count_joint_actions(game, agent)
    if choices > max_plans:
        raise ConfigError(
            f"--exact {max_plans}: a {agent} has {choices} joint actions, so a plan of one period takes {choices} "
            f"environments; allow that many, or leave the {agent} out"
        )
    horizon, last = 1, max(useful_periods(game.economy, agent), 1)
    while horizon < last and choices ** (horizon + 1) <= max_plans:
        horizon += 1
    return horizon


def best_plan(game: Game, agent: str, index: int | None, max_plans: int) -> BestPlan:
    """Play every plan of as many periods as ``max_plans`` allows; then the deviator follows its policy.

    ``index``: the agent who deviates, None for all of its type. Everybody else, and the deviator after its plan,
    takes the most likely action and reacts to the state that the plan leads to.
    """
    horizon = plan_horizon(game, agent, max_plans)
    choices = joint_actions(game, agent)
    economy, trainer = game.economy, game.trainer
    num_plans, num_envs = len(choices) ** horizon, trainer.num_local_envs
    agents = None if index is None else [index]
    before = _play_plans(game, agent, index, None)[0]
    best_reward, best_actions = -np.inf, np.empty(0)
    for first in range(0, num_plans, num_envs):
        numbers = np.minimum(np.arange(first, first + num_envs), num_plans - 1)
        digits = np.stack(np.unravel_index(numbers, (len(choices),) * horizon), axis=1)  # (E, horizon)
        actions = np.full((num_envs, economy.num_periods, choices.shape[1]), FREE, dtype=np.int32)
        actions[:, :horizon] = choices[digits]
        rewards = _play_plans(game, agent, index, Forced(agent, agents, actions))
        top = int(rewards.argmax())
        if rewards[top] > best_reward:
            best_reward, best_actions = float(rewards[top]), actions[top]
    is_exact = horizon >= useful_periods(economy, agent)
    return BestPlan(agent, index, best_actions, best_reward, float(before), num_plans, is_exact)


def _play_plans(game: Game, agent: str, index: int | None, plans: Forced | None) -> np.ndarray:
    """The deviator's reward per environment (E,), everybody else taking the most likely action."""
    with game.changed(*([plans] if plans else [])):
        game.trainer.play(Draw(game.iteration, EVALUATION_STREAM, greedy=True))
    rewards = {agent: game.trainer.rollout.rewards(agent).double().mean(dim=0).cpu().numpy()}
    return of_deviator(rewards, agent, index)
