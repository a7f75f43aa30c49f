"""WarpDrive's trainer for the three policies: one iteration plays a whole episode in every environment, then updates
each type that is due. Everything stays on the device during a rollout.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from warp_drive.training.trainers.trainer_a2c import TrainerA2C
from warp_drive.utils.data_feed import DataFeed

from rbc_warp.config import Config
from rbc_warp.economy import curriculum
from rbc_warp.economy.parameters import AGENT_TYPES, CONSUMER_BUDGET, FIRM_BUDGET, FIRM_PENALTY_SCALE, Economy
from rbc_warp.economy.reference import Stage
from rbc_warp.training.learner import Batch, Learner, LossWeights, discounted_returns
from rbc_warp.training.policy import Policy, make_policies
from rbc_warp.warpdrive.env import RbcEnv
from rbc_warp.warpdrive.kernels import DRAW_GREEDY, LOSS_STATISTICS, Heads, RbcSampler
from rbc_warp.warpdrive.simulation import set_stage
from rbc_warp.warpdrive.wrapper import RbcEnvWrapper, choose_backend

# Streams of random numbers: training and evaluation never share a draw.
TRAINING_STREAM, EVALUATION_STREAM = 0, 1


class _StayOnHost(TorchFunctionMode):
    """Lets WarpDrive's constructor, which moves its counters with ``.cuda()``, run where there is no GPU."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return args[0] if func is torch.Tensor.cuda else func(*args, **(kwargs or {}))


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """Data type of the matrix products; 'auto' takes bfloat16 where the hardware multiplies it natively."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        native = torch.cuda.get_device_capability() >= (8, 0)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


@dataclass(frozen=True)
class Draw:
    """Where a rollout's random numbers lie. Equal draws of equal policies give equal episodes."""

    iteration: int
    stream: int = TRAINING_STREAM
    greedy: bool = False
    first_environment: int = 0


class Intervention:
    """Changes what some agents do during :meth:`RbcTrainer.play`: their logits before the draw, or what was drawn."""

    def change_logits(self, period: int, logits: Mapping[str, torch.Tensor]) -> None:
        """Works on logits and values in place, per type (E·n, actions+1)."""

    def change_actions(self, period: int, actions: Mapping[str, torch.Tensor]) -> None:
        """Works on the drawn indices in place, per type (E, n, heads)."""


class RbcTrainer(TrainerA2C):
    """Trains consumer, firm and government policies of one economy.

    Args:
        config: a validated configuration.
        backend: 'auto', 'host' or 'pycuda'.
        policies: per type, to start from; untrained ones by default.
        folder: where WarpDrive notes its own configuration; a temporary one by default.
        reduce, world_size, rank: how gradients are added up over processes that share the batch.
    """

    def __init__(
        self,
        config: Config,
        backend: str = "auto",
        policies: Mapping[str, Policy] | None = None,
        folder: Path | None = None,
        reduce: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
        world_size: int = 1,
        rank: int = 0,
    ):
        self.settings = config
        self.economy = Economy.from_config(config)
        self.backend = choose_backend(backend)
        self.num_local_envs = config.train.batch_size // world_size
        self.first_environment = rank * self.num_local_envs
        self.env = RbcEnv(self.economy)
        wrapper = RbcEnvWrapper(self.env, num_envs=self.num_local_envs, env_backend=self.backend)
        self.device = wrapper.device
        self.precision = choose_precision(config.train.precision, self.device)
        self._reduce, self._world_size = reduce, world_size
        self._policies = dict(policies) if policies is not None else make_policies(config, self.economy)
        self.heads = {agent: Heads(self.economy.head_sizes[agent], self.device) for agent in AGENT_TYPES}
        self.learners: dict[str, Learner] = {}
        self.cuda_sample_controller = RbcSampler(wrapper.cuda_function_manager)
        stay = contextlib.nullcontext() if self.device.type == "cuda" else _StayOnHost()
        with tempfile.TemporaryDirectory() as scratch, stay:
            super().__init__(
                env_wrapper=wrapper,
                config=self._warpdrive_config(folder or Path(scratch)),
                policy_tag_to_agent_id_map=self.env.agent_ids,
                create_separate_placeholders_for_each_policy=True,
                results_dir="",
                verbose=False,
            )
        self.noponzi = {
            "consumer": config.agents.consumer_noponzi_start,
            "firm": config.agents.firm_noponzi_start,
        }
        self.interventions: Sequence[Intervention] = ()
        self._make_rollout_arrays()

    def _warpdrive_config(self, folder: Path) -> dict:
        train, agents = self.settings.train, self.settings.agents
        policy = {
            agent: {
                "to_train": curriculum.frozen_action(self.settings, agent) is None,
                "algorithm": "PPO" if train.use_ppo else "A2C",
                "gamma": train.gamma,
                "lr": train.lr * getattr(agents, f"{agent}_lr_multiple"),
                "vf_loss_coeff": train.value_loss_weight,
                "entropy_coeff": train.entropy,
                "clip_grad_norm": train.clip_grad_norm is not None,
                "max_grad_norm": train.clip_grad_norm or 0.0,
                "clip_param": train.ppo_clip_param,
                "model": {"type": "rbc_warp.training.policy.Policy", "fc_dims": [128, 128], "model_ckpt_filepath": ""},
            }
            for agent in AGENT_TYPES
        }
        periods, envs = self.economy.num_periods, self.num_local_envs
        trainer = {
            "num_envs": envs,
            "num_episodes": train.num_episodes * envs,
            "train_batch_size": periods * envs,
            "seed": train.base_seed % 2**31,
            "env_backend": self.backend,
        }
        saving = {"basedir": str(folder), "name": "", "tag": ""}
        return {"name": "rbc", "trainer": trainer, "policy": policy, "saving": saving}

    # What WarpDrive's constructor asks for.

    def _initialize_policy_model(self, policy: str) -> None:
        self.models[policy] = self._policies[policy]

    def _send_policy_model_to_device(self, policy: str) -> None:
        self.models[policy].to(self.device)
        self.ddp_mode[policy] = False

    def _initialize_optimizer(self, policy: str) -> None:
        self.learners[policy] = Learner(
            self.models[policy],
            self.heads[policy],
            self.cuda_envs.cuda_function_manager,
            learning_rate=self.config["policy"][policy]["lr"],
            dtype=self.precision,
            reduce=self._reduce,
            world_size=self._world_size,
        )
        self.optimizers[policy] = self.learners[policy].optimizer

    def _initialize_policy_algorithm(self, policy: str) -> None:
        """The update rules are in ``ppo.py``."""

    def _load_model_checkpoint_helper(self, policy: str, ckpt_filepath: str) -> None:
        """Policies are given to the constructor; ``rundir.py`` opens their files."""

    def save_model_checkpoint(self, iteration: int = 0) -> None:
        """``run.py`` saves policies."""

    # Rollouts.

    def _data(self, name: str) -> torch.Tensor:
        return self.cuda_envs.cuda_data_manager.data_on_device_via_torch(name)

    def _make_rollout_arrays(self) -> None:
        """Arrays of a whole rollout beside WarpDrive's own. T periods, E environments, n agents of a type."""
        periods, envs = self.economy.num_periods, self.num_local_envs
        feed = DataFeed()
        self._logits, self._private = {}, {}
        for agent, count in self.economy.num_agents.items():
            for name in ("log_probabilities", "values"):
                feed.add_data(f"{name}_batch_{agent}", np.zeros((periods, envs, count), dtype=np.float32))
            if periods == 1:  # WarpDrive makes these for longer rollouts only
                seen = self._data(f"observations_{agent}").shape
                feed.add_data(f"processed_observations_batch_{agent}", np.zeros((1, *seen), dtype=np.float32))
            encoder, width = self.models[agent].encoder, self.heads[agent].num_actions + 1
            self._private[agent] = torch.zeros(
                periods, envs * count, encoder.num_private, dtype=self.precision, device=self.device
            )
            self._logits[agent] = torch.zeros(envs * count, width, device=self.device)
        self.cuda_envs.cuda_data_manager.push_data_to_device(feed, torch_accessible=True)
        num_public = self.models["consumer"].encoder.num_public
        self._public = torch.zeros(periods, envs, num_public, device=self.device)
        self._frozen = [agent for agent in AGENT_TYPES if curriculum.frozen_action(self.settings, agent) is not None]
        consumers, firms = self.economy.num_consumers, self.economy.num_firms
        self._exports = torch.zeros(periods, envs, firms, device=self.device)
        self._sales = torch.zeros(periods, envs, firms, device=self.device)
        self._consumption = torch.zeros(0, device=self.device)
        self._consumption_shape = (periods, envs, firms, consumers)

    def set_stage(self, stage: Stage, allowed: Mapping[str, np.ndarray]) -> None:
        """What the curriculum lets agents feel and do from the next reset on."""
        set_stage(self.cuda_envs, stage)
        for agent, mask in allowed.items():
            self.heads[agent].allowed.copy_(torch.from_numpy(mask.astype(np.uint8)))

    def stage_at(self, iteration: int) -> Stage:
        return Stage(curriculum.theta_factor(self.settings, iteration), self.noponzi["consumer"], self.noponzi["firm"])

    def set_iteration(self, iteration: int) -> None:
        """Puts the curriculum's values of an iteration in force."""
        self.set_stage(self.stage_at(iteration), curriculum.allowed_actions(self.settings, self.economy, iteration))

    @torch.no_grad()
    def play(self, draw: Draw, keep_consumption: bool = False) -> None:
        """One episode in every environment, into the rollout arrays; at the stage that is set."""
        flags = DRAW_GREEDY if draw.greedy else 0
        seed = self.settings.train.base_seed
        seed -= (seed >> 31) << 32  # all 32 bits, as a signed word
        first = draw.first_environment + self.first_environment
        words = torch.tensor([seed, draw.iteration, first, draw.stream, flags], dtype=torch.int32)
        self._data("draw_words").copy_(words)
        if keep_consumption and not self._consumption.numel():
            self._consumption = torch.zeros(self._consumption_shape, device=self.device)
        self.cuda_envs.reset_all_envs()
        for t in range(self.economy.num_periods):
            logits = self._evaluate_policies(t)
            for intervention in self.interventions:
                intervention.change_logits(t, logits)
            self._sample_actions(logits, t)
            if self.interventions:
                self._change_actions(t)
            self.cuda_envs.step_all_envs()
            for agent in AGENT_TYPES:
                self._data(f"rewards_batch_{agent}")[t].copy_(self._data(f"rewards_{agent}"))
            self._exports[t].copy_(self._data("exports"))
            torch.sum(self._data("consumption"), dim=-1, out=self._sales[t])
            if keep_consumption:
                self._consumption[t].copy_(self._data("consumption"))

    def _change_actions(self, period: int) -> None:
        """Lets the interventions change what was drawn, and its record."""
        drawn = {agent: self._data(f"sampled_actions_{agent}") for agent in AGENT_TYPES}
        for intervention in self.interventions:
            intervention.change_actions(period, drawn)
        for agent, actions in drawn.items():
            self._data(f"sampled_actions_batch_{agent}")[period].copy_(actions)

    def _evaluate_policies(self, batch_index: int = 0) -> dict[str, torch.Tensor]:
        """Logits and values of all types, (E·n, actions+1), from what they see now; notes both for the update."""
        encoder = self.models["consumer"].encoder
        public = self._public[batch_index]
        public.copy_(encoder.encode_public(self._data("observations_government").squeeze(1)))
        for agent in AGENT_TYPES:
            seen = self._data(f"observations_{agent}")
            self._data(f"processed_observations_batch_{agent}")[batch_index].copy_(seen)
            if agent in self._frozen:
                continue
            learner, private = self.learners[agent], self._private[agent][batch_index]
            if private.shape[1]:
                private.copy_(learner.policy.encoder.encode_private(seen.flatten(0, 1)))
            learner.logits(public, private, self._logits[agent])
        return self._logits

    def agent_logits(self, learner: Learner, agent: str, index: int, period: int) -> torch.Tensor:
        """What another policy answers to what one agent of a type sees in the period being played, (E, actions+1)."""
        rows = self._private[agent][period].view(self.num_local_envs, self.economy.num_agents[agent], -1)
        answer = torch.empty(self.num_local_envs, learner.policy.num_actions + 1, device=self.device)
        learner.logits(self._public[period], rows[:, index].contiguous(), answer)
        return answer

    def _sample_actions(
        self, probabilities: dict[str, torch.Tensor], batch_index: int = 0, **sample_params: object
    ) -> None:
        manager = self.cuda_envs.cuda_data_manager
        self.cuda_sample_controller.sample(manager, probabilities, heads=self.heads)

    def rewards(self, agent: str) -> torch.Tensor:
        """Rewards of the last rollout, (T, E, n)."""
        return self._data(f"rewards_batch_{agent}")

    def states(self, agent: str) -> torch.Tensor:
        """What a type saw in the last rollout, (T, E, n, d), public state first."""
        public = self._data("processed_observations_batch_government")
        if agent == "government":
            return public
        private = self.private_states(agent)
        return torch.cat([public.expand(-1, -1, private.shape[2], -1), private], dim=-1)

    def private_states(self, agent: str) -> torch.Tensor:
        """The private part of what consumers or firms saw in the last rollout, (T, E, n, d)."""
        return self._data(f"processed_observations_batch_{agent}")

    def actions(self, agent: str) -> torch.Tensor:
        """Indices drawn in the last rollout: (T, E, I, J+2), (T, E, J) or (T, E, 1)."""
        drawn = self._data(f"sampled_actions_batch_{agent}")
        return drawn if agent == "consumer" else drawn.squeeze(-1)

    def aux(self, agent: str) -> torch.Tensor:
        """Units consumed (T, E, I, J), if the rollout kept them; units exported (T, E, J); nothing for government."""
        if agent == "consumer":
            return self._consumption.transpose(2, 3)
        return self._exports if agent == "firm" else torch.zeros(0)

    def sales(self) -> torch.Tensor:
        """Units that consumers bought of each firm in the last rollout, (T, E, J)."""
        return self._sales

    # Updates.

    def train_iteration(self, iteration: int, keep_consumption: bool = False) -> None:
        """Plays one iteration's episode; :meth:`update` learns from it."""
        self.set_iteration(iteration)
        self.play(Draw(iteration), keep_consumption)

    def update(self, iteration: int) -> dict[str, dict[str, torch.Tensor]]:
        """Updates every type that is due. Returns its loss statistics as scalar tensors."""
        return self._update_model_params(iteration)

    def _update_model_params(self, iteration: int) -> dict[str, dict[str, torch.Tensor]]:
        metrics = {}
        for agent in AGENT_TYPES:
            if not curriculum.trains(self.settings, agent, iteration):
                continue
            entropy = curriculum.entropy_coefficient(self.settings, agent, iteration)
            learner = self.learners[agent]
            norm = self.update_type(agent, entropy, iteration)
            metrics[agent] = dict(zip(LOSS_STATISTICS, learner.statistics.clone(), strict=True))
            metrics[agent] |= {"gradient_norm": norm, "entropy_coefficient": torch.tensor(entropy)}
            self._raise_noponzi(agent, iteration)
        return metrics

    @torch.no_grad()
    def update_type(
        self, agent: str, entropy: float, iteration: int, learner: Learner | None = None, index: int | None = None
    ) -> torch.Tensor:
        """The passes over the last rollout for one type; returns the gradient's norm.

        With ``learner`` and ``index``, one agent of the type updates a policy of its own from what it alone did.
        """
        train = self.settings.train
        learner = learner or self.learners[agent]
        reward_scale = getattr(self.settings.agents, f"{agent}_reward_scale")
        rewards, value = self.rewards(agent), self._data(f"values_batch_{agent}")
        target = discounted_returns(rewards / reward_scale, train.gamma)
        columns = {
            "private": self._private[agent].view(*rewards.shape, -1),
            "actions": self._data(f"sampled_actions_batch_{agent}"),
            "log_probability": self._data(f"log_probabilities_batch_{agent}"),
            "value": value,
            "target": target,
        }
        if index is not None:
            columns = {name: column.narrow(2, index, 1).contiguous() for name, column in columns.items()}
        columns["advantage"] = learner.standardise(columns["target"] - columns["value"])
        if index is None and agent == "consumer" and train.consumer_update_fraction < 1.0:
            chosen = self._some_consumers(iteration)
            columns = {name: column.index_select(2, chosen) for name, column in columns.items()}
        rows = {name: column.flatten(0, 2) for name, column in columns.items()}
        batch = Batch(public=self._public.flatten(0, 1), **rows)
        weights = LossWeights(train.use_ppo, train.ppo_clip_param, entropy, train.value_loss_weight)
        passes = train.ppo_num_updates if train.use_ppo else 1
        return learner.update(batch, weights, passes, train.clip_grad_norm)

    def _some_consumers(self, iteration: int) -> torch.Tensor:
        """This iteration's random share of the consumers, the same in every environment and process."""
        count = self.economy.num_consumers
        generator = torch.Generator().manual_seed(self.settings.train.base_seed * 1000003 + iteration)
        keep = max(1, round(self.settings.train.consumer_update_fraction * count))
        return torch.randperm(count, generator=generator)[:keep].sort().values.to(self.device)

    def _raise_noponzi(self, agent: str, iteration: int) -> None:
        """Adds eta · mean(debt / scale) at the end of the episode to a type's no-Ponzi coefficient."""
        agents = self.settings.agents
        eta = {"consumer": agents.consumer_noponzi_eta, "firm": agents.firm_noponzi_eta}.get(agent, 0.0)
        if eta == 0.0 or iteration % self.settings.train.lagr_num_steps:
            return
        column = CONSUMER_BUDGET if agent == "consumer" else FIRM_BUDGET
        scale = agents.consumer_penalty_scale if agent == "consumer" else FIRM_PENALTY_SCALE
        debt = (-self._data(f"observations_{agent}")[..., column]).clamp_min(0.0).mean() / scale
        self.noponzi[agent] += eta * float(self._reduce(debt)) / self._world_size

    # Resuming.

    def state(self) -> dict:
        """All that decides how training goes on, besides the configuration and the iteration."""
        return {
            "policies": {agent: self.models[agent].flat.detach().cpu().clone() for agent in AGENT_TYPES},
            "optimizers": {agent: self.optimizers[agent].state_dict() for agent in AGENT_TYPES},
            "noponzi": dict(self.noponzi),
        }

    @torch.no_grad()
    def load_state(self, state: dict) -> None:
        """Continues from :meth:`state`."""
        for agent in AGENT_TYPES:
            self.models[agent].flat.copy_(state["policies"][agent])
            self.optimizers[agent].load_state_dict(state["optimizers"][agent])
        self.noponzi = dict(state["noponzi"])
