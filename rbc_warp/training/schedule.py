"""The schedule of a training: each iteration's stage, allowed actions, draws and updates."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rbc_warp.config import Config
from rbc_warp.economy import curriculum
from rbc_warp.economy.agents import AgentType
from rbc_warp.economy.parameters import Economy
from rbc_warp.economy.reference import Stage
from rbc_warp.training.learner import Learner
from rbc_warp.training.rollout import Draw


@dataclass(frozen=True)
class Update:
    """One type's update after a rollout. With ``learner`` and ``index``, one agent updates a policy of its own."""

    agent: str
    entropy: float  #: Weight on all heads but the last.
    last_head_entropy: float
    learning_rate: float
    learner: Learner | None = None
    index: int | None = None


class Schedule:
    """The curriculum of a configuration."""

    def __init__(self, config: Config, economy: Economy):
        self.config, self.economy = config, economy

    def stage(self, iteration: int, multipliers: Mapping[str, float]) -> Stage:
        """Return the values that the economy takes, with the no-Ponzi multipliers as they are."""
        factor = curriculum.theta_factor(self.config, iteration)
        return Stage(factor, multipliers["consumer"], multipliers["firm"])

    def allowed(self, iteration: int) -> dict[str, np.ndarray]:
        """Return per type which actions of all heads may be drawn, bool."""
        return curriculum.allowed_actions(self.config, self.economy, iteration)

    def draw(self, iteration: int) -> Draw:
        """Return where the rollout's random numbers lie."""
        return Draw(iteration)

    def updates(self, iteration: int) -> list[Update]:
        """Return who learns after the rollout, in order."""
        return [
            self.update_of(agent, iteration)
            for agent in self.economy.agents.values()
            if curriculum.trains(self.config, agent, iteration)
        ]

    def update_of(self, agent: AgentType, iteration: int) -> Update:
        """Return a type's update after an iteration."""
        entropy = curriculum.entropy_coefficient(self.config, agent, iteration)
        rate = curriculum.learning_rate(self.config, agent, iteration)
        return Update(agent.name, entropy, max(entropy, agent.settings.last_head_entropy_floor), rate)

    def trials(self, iteration: int) -> dict[str, int]:
        """Return how many trials of single agents each type makes beside the rollout, where it makes any."""
        return curriculum.trials(self.config, self.economy, iteration)

    def raises_multipliers(self, iteration: int) -> bool:
        """Return whether the no-Ponzi multipliers of the types that learned rise after this iteration."""
        return iteration % self.config.train.lagr_num_steps == 0
