"""Updates after a rollout: what each brings to the device, its passes over the rollout, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rbc_warp.config import Config
from rbc_warp.economy.parameters import Economy
from rbc_warp.training.graphs import Graphs
from rbc_warp.training.learner import Learner
from rbc_warp.training.losses import LossWeights, minibatches, random_orders
from rbc_warp.training.numbers import Numbers
from rbc_warp.training.processes import Processes
from rbc_warp.training.rollout import Rollout
from rbc_warp.training.schedule import Update
from rbc_warp.training.trials import REACH, Trials
from rbc_warp.warpdrive.kernels import LOSS_STATISTICS, Words

# Purposes of an iteration's seeds on the host: which consumers learn, then minibatches by type, then trials by rank.
SOME_CONSUMERS, MINIBATCHES, TRIALS = 0, 1, 1 << 4
LOSSES = LOSS_STATISTICS[:3]
"""Means that are finite where learning goes well: policy loss, value loss, entropy."""


def seed_of(config: Config, iteration: int, purpose: int) -> int:
    """Return the seed of an iteration's random choices on the host."""
    return config.train.base_seed * 1000003 + iteration + (purpose << 48)


def set_products(config: Config) -> None:
    """Let torch multiply float32 on a GPU as the configuration says; the switch is the whole process's."""
    torch.backends.cuda.matmul.allow_tf32 = config.train.precision == "tf32"


class Updates:
    """Makes updates of the learners of a trainer, from its rollout."""

    def __init__(
        self,
        config: Config,
        economy: Economy,
        learners: Mapping[str, Learner],
        rollout: Rollout,
        numbers: Numbers,
        words: Words,
        graphs: Graphs,
        processes: Processes,
    ):
        self.config, self.economy, self.learners, self.rollout = config, economy, learners, rollout
        self.numbers, self.words, self.graphs, self.processes = numbers, words, graphs, processes
        self._orders: dict[tuple, torch.Tensor] = {}  # of minibatches, by type and shape

    def expect(self, update: Update, iteration: int) -> torch.Tensor | None:
        """Set the words of an update, in force from the next send on; return the minibatches' orders among them."""
        learner, settings = self._learner(update), self.economy.agents[update.agent].settings
        learner.refresh()
        learner.optimizer.learning_rate = update.learning_rate
        learner.expect(self._weights(update))
        if settings.minibatches == 1:
            return None
        count = 1 if update.index is not None else self.economy.agents[update.agent].count
        if self._takes_some(update):
            count = self._num_chosen()
        purpose = MINIBATCHES + list(self.learners).index(update.agent)
        generator = torch.Generator().manual_seed(seed_of(self.config, iteration, purpose))  # in all processes
        orders = random_orders(count, self.rollout.num_envs, self._passes(update), generator).numpy()
        key = update.agent, *orders.shape
        if key not in self._orders:
            self._orders[key] = self.words.take(orders)
        self.words.set(self._orders[key], orders)
        return self._orders[key]

    @torch.no_grad()
    def make(
        self, update: Update, iteration: int, orders: torch.Tensor | None, trials: Mapping[str, Trials]
    ) -> torch.Tensor:
        """Make an update that was expected and sent; return what :meth:`losses` names, in memory that the next one of
        the type may change."""
        own = trials.get(update.agent)
        if self._takes_some(update):
            return self._learn(update, orders, own, self._some_consumers(iteration))
        learner = self._learner(update)
        key = ("update", update.agent, update.index, learner, own)
        return self.graphs.run(key, lambda: self._learn(update, orders, own), learner.addresses)

    @staticmethod
    def losses(update: Update, figures: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the means of the loss's parts, the gradient's norm and the entropy weight, scalar tensors."""
        names = (*LOSSES, "gradient_norm", *LOSS_STATISTICS[len(LOSSES) :])
        losses = dict(zip(names, figures.clone(), strict=True))
        return losses | {"entropy_coefficient": torch.tensor(update.entropy)}

    def _learn(
        self, update: Update, orders: torch.Tensor | None, trials: Trials | None, chosen: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Take all passes, by the words that are on the device; return LOSSES, the gradient's norm, the other means."""
        set_products(self.config)
        train, learner = self.config.train, self._learner(update)
        discounts = train.gamma, train.gae_lambda
        batch = self.rollout.batch(update.agent, *discounts, self.processes, update.index, chosen)
        if trials is not None:
            weight, reach = self.config.agents.trials_weight, REACH if train.use_ppo else 0.0
            batch = trials.learned_from(batch, self.rollout, train.gamma, weight, reach)
        parts = self.economy.agents[update.agent].settings.minibatches
        steps = minibatches(batch, self.rollout.num_envs, self._passes(update), parts, orders)
        with self.graphs.capture.branches() as branch:
            with branch():
                self.numbers.note("log-probabilities", update.agent, batch.log_probability)
            norm = learner.update(steps, self._weights(update), train.clip_grad_norm)
            with branch():
                self.numbers.note("parameters", update.agent, learner.policy.flat)
            means = learner.statistics.split([len(LOSSES), len(LOSS_STATISTICS) - len(LOSSES)])
            figures = torch.cat([means[0], norm.view(1), means[1]])
            self.numbers.note("losses", update.agent, figures[: len(LOSSES) + 1])  # kl may be infinite without harm
        return figures

    def _learner(self, update: Update) -> Learner:
        return update.learner or self.learners[update.agent]

    def _weights(self, update: Update) -> LossWeights:
        train = self.config.train
        entropy = update.entropy, update.last_head_entropy
        return LossWeights(train.use_ppo, train.ppo_clip_param, *entropy, train.value_loss_weight)

    def _passes(self, update: Update) -> int:
        train, settings = self.config.train, self.economy.agents[update.agent].settings
        return (settings.passes or train.ppo_num_updates) if train.use_ppo else 1

    def _takes_some(self, update: Update) -> bool:
        is_part = self.config.train.consumer_update_fraction < 1.0
        return is_part and update.agent == "consumer" and update.index is None

    def _num_chosen(self) -> int:
        return max(1, round(self.config.train.consumer_update_fraction * self.economy.num_consumers))

    def _some_consumers(self, iteration: int) -> torch.Tensor:
        """Return this iteration's random share of the consumers, the same in every environment and process."""
        generator = torch.Generator().manual_seed(seed_of(self.config, iteration, SOME_CONSUMERS))
        order = torch.randperm(self.economy.num_consumers, generator=generator)
        return order[: self._num_chosen()].sort().values.to(self.rollout.public.device)
