"""WarpDrive's trainer for the policies of one economy.

:meth:`RbcTrainer.train` is WarpDrive's loop, and its hooks do the work: ``_generate_rollout_batch`` plays an episode in
every environment, ``_update_model_params`` updates types that are due, ``_log_metrics`` and ``save_model_checkpoint``
let the recorder keep what it wants. Everything stays on the device meanwhile. docs/warpdrive.md says what is
WarpDrive's, what is ours, and why.
"""

import contextlib
import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from warp_drive.training.trainers.trainer_a2c import TrainerA2C

from rbc_warp.config import Config
from rbc_warp.config.reading import reading
from rbc_warp.config.temporary import own_name, sweep_folders
from rbc_warp.economy.parameters import Economy
from rbc_warp.economy.reference import Stage
from rbc_warp.errors import ConfigError, RunFileError
from rbc_warp.training.fused import FusedLearner
from rbc_warp.training.graphs import CudaCapture, Graphs
from rbc_warp.training.learner import AutogradLearner, Learner
from rbc_warp.training.numbers import Numbers
from rbc_warp.training.policy import Policy, make_policies
from rbc_warp.training.processes import Processes
from rbc_warp.training.recorder import Losses, Recorder, WarpDriveFiles
from rbc_warp.training.rollout import EVALUATION_STREAM, Draw, Intervention, Rollout
from rbc_warp.training.schedule import Schedule, Update
from rbc_warp.training.trials import Trials, places_of_trials
from rbc_warp.training.updates import TRIALS, Updates, seed_of, set_products
from rbc_warp.warpdrive import tables
from rbc_warp.warpdrive.env import RbcEnv, stage_table
from rbc_warp.warpdrive.kernels import DRAW_FROM_PROBABILITIES, DRAW_GREEDY, Heads, RbcSampler, aligned
from rbc_warp.warpdrive.wrapper import RbcEnvWrapper, check_rows, choose_backend

SCRATCH = "rbc_warp-"
UNRECORDED = -1
"""WarpDrive's batch index of a period that is played but not kept."""
HOOKS = ("forward", "draw_actions", "_evaluate_policies", "_sample_actions")
"""WarpDrive's, within what graphs replay: where a subclass has its own, all is called as it is."""


class _StayOnHost(TorchFunctionMode):
    """Lets WarpDrive's constructor, which moves its counters with ``.cuda()``, run where there is no GPU."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return args[0] if func is torch.Tensor.cuda else func(*args, **(kwargs or {}))


def choose_precision(config: Config, device: torch.device) -> torch.dtype:
    """Return the data type of the matrix products; 'auto' takes bfloat16 where the hardware multiplies it natively."""
    if config.train.precision != "auto":
        return torch.bfloat16 if config.train.precision == "bfloat16" else torch.float32
    if config.train.learner == "autograd":
        return torch.float32
    if device.type == "cuda":
        native = torch.cuda.get_device_capability() >= (8, 0)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


class RbcTrainer(TrainerA2C):
    """Trains the policies of one economy.

    Args:
        config: a validated configuration.
        backend: 'auto', 'host' or 'pycuda'.
        policies: per type, to start from; untrained ones by default.
        folder: WarpDrive's ``save_dir``; a temporary one by default, gone with the trainer.
        processes: those that share the batch.
        schedule: who learns what when; by default the configuration's curriculum.
        recorder: what is kept; by default what WarpDrive keeps.
    """

    def __init__(
        self,
        config: Config,
        backend: str = "auto",
        policies: Mapping[str, Policy] | None = None,
        folder: Path | None = None,
        processes: Processes | None = None,
        schedule: Schedule | None = None,
        recorder: Recorder | None = None,
    ):
        self.settings = config
        self.economy = Economy.from_config(config)
        self.processes = processes or Processes()
        self.curriculum = Schedule(config, self.economy)
        self.schedule = schedule or self.curriculum
        self.recorder = recorder or WarpDriveFiles()
        self.interventions: Sequence[Intervention] = ()
        self.iteration = 0  #: The iteration being trained, or trained last.
        self._trials: dict[str, Trials] = {}
        self._is_noted = True  # the last rollout, by the watch for numbers
        self._drawn_before: dict[tuple, dict[str, Trials]] = {}  # by their numbers
        agents = self.economy.agents
        self.multipliers = {name: agent.settings.noponzi_start for name, agent in agents.items() if agent.penalty_scale}
        """Per type with a budget, the no-Ponzi term's Lagrange multiplier."""

        self.backend = choose_backend(backend)
        check_rows(agents, self.backend)
        self.num_local_envs = config.train.batch_size // self.processes.world_size
        self.env = RbcEnv(self.economy)
        wrapper = RbcEnvWrapper(self.env, num_envs=self.num_local_envs, env_backend=self.backend)
        self.device = wrapper.device
        self.precision = choose_precision(config, self.device)
        self.words = wrapper.cuda_data_manager.words
        self.heads = {name: Heads(agent.head_sizes, self.device, self.words) for name, agent in agents.items()}
        self.learners: dict[str, Learner] = {}
        self.cuda_sample_controller = RbcSampler(wrapper.cuda_function_manager)
        self._policies = dict(policies) if policies is not None else make_policies(config, self.economy)
        sweep_folders(Path(tempfile.gettempdir()), SCRATCH)
        self._scratch = None if folder else tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{own_name()}-")
        with contextlib.nullcontext() if self.device.type == "cuda" else _StayOnHost():
            super().__init__(
                env_wrapper=wrapper,
                config=self._warpdrive_config(folder or Path(self._scratch.name)),  # type: ignore[union-attr]
                policy_tag_to_agent_id_map=self.env.agent_ids,
                create_separate_placeholders_for_each_policy=True,
                results_dir="",
                verbose=False,
            )
        self._keep_what_is_read()
        encoders = {name: self.models[name].encoder for name in agents}
        self.rollout = Rollout(self.economy, encoders, self.cuda_envs, self.precision, config.train.learner == "fused")
        is_rounded = config.train.learner == "fused" and wrapper.cuda_function_manager.draws_from_rounded
        dtype = self.precision if is_rounded else torch.float32  # their numbers are rounded either way
        self._logits = {}
        for name, agent in agents.items():
            rows, columns = self.num_local_envs * agent.count, agent.num_actions + 1
            whole = torch.zeros(rows, aligned(columns, self.device), dtype=dtype, device=self.device)
            self._logits[name] = whole[:, :columns]
        manager = self.cuda_envs.cuda_function_manager
        self.numbers = Numbers(list(agents), self.processes, self.device)
        self.graphs = Graphs(CudaCapture(manager.new_stream) if self._may_replay() else None)
        for learner in self.learners.values():
            learner.branches = self.graphs.capture.branches
        shared = (self.numbers, self.words, self.graphs, self.processes)
        self.updates = Updates(config, self.economy, self.learners, self.rollout, *shared)
        self.set_iteration(0)

    def _warpdrive_config(self, folder: Path) -> dict:
        """Return the entries that WarpDrive's constructor and hooks read; the rest stands in ``settings``."""
        train, periods = self.settings.train, self.economy.num_periods
        policy = {
            name: {
                "to_train": not agent.is_frozen,
                "lr": train.lr * agent.settings.lr_multiple,
                "model": {"model_ckpt_filepath": ""},
            }
            for name, agent in self.economy.agents.items()
        }
        trainer = {
            "num_envs": self.num_local_envs,
            "num_episodes": train.num_episodes * self.num_local_envs,
            "train_batch_size": periods * self.num_local_envs,
            "seed": train.base_seed % 2**31,
            "env_backend": self.backend,
        }
        saving = {
            "basedir": str(folder),
            "name": "",
            "tag": "",
            "metrics_log_freq": train.log_every,
            "model_params_save_freq": train.save_model_every,
        }
        return {"name": "rbc", "trainer": trainer, "policy": policy, "saving": saving}

    def _keep_what_is_read(self) -> None:
        """Drop the defaults that WarpDrive merges into its configuration and nothing here reads."""
        read = self._warpdrive_config(Path(self.save_dir))
        for section in ("trainer", "policy", "saving"):
            self.config[section] = read[section]
        path = Path(self.save_dir) / "run_config.json"
        path.write_text(json.dumps(self.config) + "\n")

    # What WarpDrive's constructor asks for.

    def _initialize_policy_model(self, policy: str) -> None:
        self.models[policy] = self._policies[policy]

    def _send_policy_model_to_device(self, policy: str) -> None:
        self.models[policy].to(self.device)
        self.ddp_mode[policy] = False

    def _initialize_optimizer(self, policy: str) -> None:
        rate = self.config["policy"][policy]["lr"]
        given = (self.models[policy], self.heads[policy], rate, self.precision, self.processes)
        if self.settings.train.learner == "autograd":
            self.learners[policy] = AutogradLearner(*given)
        else:
            self.learners[policy] = FusedLearner(*given, kernels=self.cuda_envs.cuda_function_manager, words=self.words)
        self.optimizers[policy] = self.learners[policy].optimizer

    def _initialize_policy_algorithm(self, policy: str) -> None:
        """The update rules are in ``losses.py``."""

    # Graphs.

    def _may_replay(self) -> bool:
        """Return whether rollouts and updates ask a GPU for the same in every iteration."""
        train, own = self.settings.train, type(self)
        is_fixed = train.learner == "fused" and self.processes.world_size == 1
        is_fixed &= all(getattr(own, name) is getattr(RbcTrainer, name) for name in HOOKS)
        return train.graphs == "auto" and self.device.type == "cuda" and is_fixed

    # WarpDrive's loop.

    @contextlib.contextmanager
    def under(self, schedule: Schedule, recorder: Recorder) -> Iterator[None]:
        """Train by another schedule, and keep something else, for a while."""
        before = self.schedule, self.recorder
        self.schedule, self.recorder = schedule, recorder
        try:
            yield
        finally:
            self.schedule, self.recorder = before

    def train(self, start: int = 0, stop: int | None = None) -> int:
        """Train iterations ``start`` to ``stop`` - 1; return how many iterations are done, counted from 0.

        ``stop`` None: the configured length, or without end where ``train.infinite_episodes`` says so. These are the
        lines of WarpDrive's loop; they stand here because a run can begin late and be told to stop. ``perf_stats``
        counts what this trainer has done.

        Raises:
            NumbersError: something was not finite; what was kept before is as it was.
        """
        if stop is None and not self.settings.train.infinite_episodes:
            stop = self.settings.train.num_episodes
        if stop is not None:
            self.num_iters = stop  # WarpDrive keeps what comes of iteration num_iters - 1
        done = start
        for self.iteration in itertools.count(start) if stop is None else range(start, stop):
            began = time.perf_counter()
            self._generate_rollout_batch()
            self.perf_stats.total_time += time.perf_counter() - began
            self.recorder.played(self, self.iteration)
            began = time.perf_counter()
            losses = self._update_model_params(self.iteration)
            seconds = time.perf_counter() - began
            done = self.iteration + 1
            self.perf_stats.iters += 1
            self.perf_stats.steps += self.training_batch_size * (2 if self._trials else 1)
            self.perf_stats.training_time += seconds
            self.perf_stats.total_time += seconds
            self._log_metrics(losses)
            self.save_model_checkpoint(self.iteration)
            if self.recorder.wants_to_stop():
                break
        self.check_numbers()
        return done

    def check_numbers(self) -> None:
        """Raise NumbersError where a number of the training was not finite since the last call.

        To be called, in all processes, before anything is kept. It waits for the device.
        """
        self._note_rollout()
        self.numbers.check(self.iteration)

    def _generate_rollout_batch(self) -> None:
        """Play the iteration's episodes into ``rollout``, at the schedule's stage; before it, its trials."""
        self._place_stage(self.schedule.stage(self.iteration, self.multipliers), self.schedule.allowed(self.iteration))
        for update in self.schedule.updates(self.iteration):  # one copy to the device brings all
            self.updates.expect(update, self.iteration)
        draw = self.schedule.draw(self.iteration)
        self._trials = self._drawn_trials()
        if self._trials:
            before, self.interventions = self.interventions, (*self.interventions, *self._trials.values())
            with self._timed("trials_time"):
                try:
                    self.play(draw)
                finally:
                    self.interventions = before
                self.graphs.run(("trials", *self._trials.values()), self._note_trials)
        self.play(draw, self.recorder.keeps_consumption(self.iteration))
        self._is_noted = False

    def _note_trials(self) -> None:
        for trials in self._trials.values():
            trials.note(self.rollout, self.settings.train.gamma)

    def _note_rollout(self) -> None:
        """Look at the rollout, if nothing has: beside its updates, or where something is kept before them."""
        if not self._is_noted:
            self.graphs.run("notes", self._look_at_rollout)
            self._is_noted = True

    def _look_at_rollout(self) -> None:
        with self.graphs.capture.branches() as branch:
            for name in self.economy.agents:
                with branch():  # states at the end: what is lost stays so
                    self.numbers.note("states", name, self._data(f"observations_{name}"))
                with branch():
                    self.numbers.note("rewards", name, self.rollout.rewards(name))

    def _drawn_trials(self) -> dict[str, Trials]:
        """Draw the iteration's trials, in this process's environments."""
        numbers, periods = self.schedule.trials(self.iteration), self.economy.num_periods
        key = tuple(numbers.items())
        if key not in self._drawn_before:
            agents, places = self.economy.agents, places_of_trials(numbers, self.num_local_envs, periods)
            self._drawn_before[key] = {
                name: Trials(agents[name], periods, where, self.learners[name], self.words)
                for name, where in places.items()
            }
        for order, trials in enumerate(self._drawn_before[key].values()):
            purpose = TRIALS + len(self.learners) * self.processes.rank + order
            trials.draw(seed_of(self.settings, self.iteration, purpose))
        return self._drawn_before[key]

    def _update_model_params(self, iteration: int) -> dict[str, dict[str, torch.Tensor]]:
        """Update every type that is due and is to be trained; return its loss statistics as scalar tensors."""
        due = [u for u in self.schedule.updates(iteration) if self.config["policy"][u.agent]["to_train"]]
        figures = {}
        orders = [self.updates.expect(update, iteration) for update in due]
        self.words.send()
        with self.graphs.capture.beside():
            self._note_rollout()
            for update, order in zip(due, orders, strict=True):
                with self._timed(f"{update.agent}_update_time"):
                    figures[update.agent] = self.updates.make(update, iteration, order, self._trials)
        for update in due:
            self.current_timestep[update.agent] += self.training_batch_size
            if self.schedule.raises_multipliers(iteration):
                self._raise_multiplier(update.agent)
        self.numbers.advance(iteration)
        return {update.agent: self.updates.losses(update, figures[update.agent]) for update in due}

    def _log_metrics(self, metrics: Losses, sample_params: Mapping[str, Any] | None = None) -> None:
        """Let the recorder keep what came of the iteration."""
        self.recorder.learned(self, self.iteration, metrics)

    def save_model_checkpoint(self, iteration: int = 0) -> None:
        """Let the recorder keep the policies as they are now, after the update of ``iteration``."""
        self.recorder.save(self, iteration)

    # Playing.

    def _data(self, name: str) -> torch.Tensor:
        return self.cuda_envs.cuda_data_manager.data_on_device_via_torch(name)

    def set_stage(self, stage: Stage, allowed: Mapping[str, np.ndarray]) -> None:
        """Put in force, from the next reset on, what the curriculum lets agents feel and do."""
        self._place_stage(stage, allowed)
        self.words.send()

    def _place_stage(self, stage: Stage, allowed: Mapping[str, np.ndarray]) -> None:
        self.words.set(self._data("stage"), stage_table(stage))
        for agent, mask in allowed.items():
            self.words.set(self.heads[agent].allowed, mask.astype(np.uint8))

    def set_iteration(self, iteration: int) -> None:
        """Put the curriculum's values of an iteration in force, for playing without training; a new trainer is at 0."""
        self.iteration = iteration
        self.set_stage(self.curriculum.stage(iteration, self.multipliers), self.curriculum.allowed(iteration))

    @torch.no_grad()
    def play(self, draw: Draw, keep_consumption: bool = False) -> None:
        """Play one episode in every environment into ``rollout``, at the stage that is set."""
        self._set_draw(draw)
        for learner in self.learners.values():
            learner.refresh()
        for intervention in self.interventions:
            intervention.prepare()
        if all(intervention.repeats for intervention in self.interventions):
            key = ("play", keep_consumption, *self.interventions)
            self.graphs.run(key, lambda: self._play(keep_consumption), self._flat_addresses)
        else:
            self._play(keep_consumption)

    def _flat_addresses(self) -> tuple[int, ...]:
        return tuple(policy.flat.data_ptr() for policy in self.models.values())

    def _play(self, keep_consumption: bool) -> None:
        """Play from the words that are on the device."""
        set_products(self.settings)
        self.cuda_envs.reset_all_envs()
        for period in range(self.economy.num_periods):
            with self._timed("policy_eval_time"):
                logits = self._evaluate_policies(period)  # WarpDrive's hooks, which a subclass may change
                if self.interventions:  # they compute in float32
                    dense = torch.contiguous_format
                    logits = {name: rows.float(memory_format=dense) for name, rows in logits.items()}
                for intervention in self.interventions:
                    intervention.change_logits(period, logits)
            with self._timed("action_sample_time"):
                self._sample_actions(logits, period)
            with self._timed("env_step_time"), self.rollout.noting_outcome(period, keep_consumption):
                self.cuda_envs.step_all_envs()

    @contextlib.contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        """Add to one of WarpDrive's performance figures, or to one more beside them.

        On a GPU, whose calls return before the work is done, it is the time to issue the work, and to wait where a
        part reads a result: figures of parts say where the host's time goes, not which kernels take it. What is
        replayed as a graph does not count.
        """
        began = time.perf_counter()
        yield
        setattr(self.perf_stats, part, getattr(self.perf_stats, part, 0.0) + time.perf_counter() - began)

    def _set_draw(self, draw: Draw, flags: int = 0) -> None:
        seed = self.settings.train.base_seed
        seed -= (seed >> 31) << 32  # all 32 bits, as a signed word
        first = draw.first_environment + self.processes.rank * self.num_local_envs
        flags |= DRAW_GREEDY if draw.greedy else 0
        words = {"seed": seed, "iteration": draw.iteration, "first_environment": first, "repeat": draw.repeat}
        words |= {"stream": draw.stream, "flags": flags}
        self.words.set(self._data("draw_words"), tables.filled("DRAW", words, np.int32))
        self.words.send()

    @torch.no_grad()
    def forward(self, period: int) -> dict[str, torch.Tensor]:
        """Keep what agents see in ``rollout``; return logits and values (E·n, actions+1) per type."""
        self.rollout.note_observations(period)
        private = {name: rows[period] for name, rows in self.rollout.private.items()}
        return self._forward(self.rollout.public[period], private)

    def _forward(self, public: torch.Tensor, private: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with self.graphs.capture.branches() as branch:
            for name, agent in self.economy.agents.items():
                if not agent.is_frozen:
                    with branch():
                        self.learners[name].logits(public, private[name], self._logits[name])
        return self._logits

    def draw_actions(self, logits: Mapping[str, torch.Tensor], period: int) -> None:
        """Draw all actions into ``rollout``, and let the interventions change them."""
        self.cuda_sample_controller.sample(self.cuda_envs.cuda_data_manager, logits, heads=self.heads)
        if not self.interventions:
            return
        drawn = {name: self._data(f"sampled_actions_{name}") for name in self.economy.agents}
        for intervention in self.interventions:
            intervention.change_actions(period, drawn)
        for name, actions in drawn.items():
            self._data(f"sampled_actions_batch_{name}")[period].copy_(actions)

    @torch.no_grad()
    def _evaluate_policies(self, batch_index: int = 0) -> dict[str, Any]:
        """Return :meth:`forward` of a period, or for UNRECORDED, as WarpDrive has it, probabilities: per type a list of
        (E, n, actions of a head)."""
        if batch_index != UNRECORDED:
            return self.forward(batch_index)
        public = torch.empty_like(self.rollout.public[0])
        private = {name: torch.empty_like(rows[0]) for name, rows in self.rollout.private.items()}
        self.rollout.encode(public, private)
        return {name: self._probabilities(name, rows) for name, rows in self._forward(public, private).items()}

    def _probabilities(self, agent: str, logits: torch.Tensor) -> list[torch.Tensor]:
        """Return what a type's logits mean under its mask, one tensor (E, n, actions) per head."""
        heads = self.heads[agent]
        masked = logits[:, : heads.num_actions].float().masked_fill(~heads.allowed.bool(), -torch.inf)
        probabilities = [head.softmax(-1) for head in masked.split(heads.sizes, -1)]
        return [head.view(self.num_local_envs, -1, head.shape[-1]) for head in probabilities]

    def _sample_actions(self, probabilities: dict[str, Any], batch_index: int = 0, **sample_params: Any) -> None:
        """Draw all actions from what :meth:`_evaluate_policies` returned.

        Outside a rollout, ``use_argmax=True`` takes the most likely actions, as in WarpDrive.
        """
        if batch_index != UNRECORDED:
            self.draw_actions(probabilities, batch_index)
            return
        draw = Draw(self.iteration, EVALUATION_STREAM, greedy=bool(sample_params.get("use_argmax")))
        self._set_draw(draw, DRAW_FROM_PROBABILITIES)
        rows = {
            name: torch.cat([*heads, heads[0][..., :1]], dim=-1).flatten(0, 1)  # a column in place of the value
            for name, heads in probabilities.items()
        }
        manager = self.cuda_envs.cuda_data_manager
        self.cuda_sample_controller.sample(manager, rows, heads=self.heads, record=False)

    def agent_logits(self, learner: Learner, agent: str, index: int, period: int) -> torch.Tensor:
        """Return what another policy answers to what one agent sees in the period being played, (E, actions+1)."""
        rows = self.rollout.private[agent][period].view(self.num_local_envs, self.economy.agents[agent].count, -1)
        answer = torch.empty(self.num_local_envs, learner.policy.num_actions + 1, device=self.device)
        learner.logits(self.rollout.public[period], rows[:, index].contiguous(), answer)
        return answer

    # Learning.

    def update(self, update: Update, iteration: int) -> dict[str, torch.Tensor]:
        """Take all passes over the last rollout for one type, or for one agent with a learner of its own."""
        orders = self.updates.expect(update, iteration)
        self.words.send()
        return self.updates.losses(update, self.updates.make(update, iteration, orders, self._trials))

    def _raise_multiplier(self, name: str) -> None:
        """Add eta · mean(debt / scale) at the end of the episode to a type's multiplier."""
        agent = self.economy.agents[name]
        if agent.penalty_scale is None or agent.settings.noponzi_eta == 0.0:
            return
        budget = self._data(f"observations_{name}")[..., agent.budget]
        debt = (-budget).clamp_min(0.0).mean() / agent.penalty_scale
        mean_debt = float(self.processes.sum(debt)) / self.processes.world_size
        self.multipliers[name] += agent.settings.noponzi_eta * mean_debt

    # Looking, as WarpDrive documents it.

    def evaluate_episodes(self, **sample_params: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Play one episode in every environment at the stage that is set; return sums of rewards and of steps.

        Per type: rewards (E, n) and steps (E,), over the whole episode. Random numbers are those of evaluation at the
        current iteration, so equal policies give equal results. The rollout and the policies stay as they are.
        """
        rewards = {
            name: np.zeros((self.num_envs, agent.count), dtype=np.float32)
            for name, agent in self.economy.agents.items()
        }
        self.cuda_envs.reset_all_envs()
        for _ in range(self.economy.num_periods):
            self._sample_actions(self._evaluate_policies(UNRECORDED), UNRECORDED, **sample_params)
            self.cuda_envs.step_all_envs()
            for name, total in rewards.items():
                total += self._data(f"rewards_{name}").cpu().numpy()
        self.cuda_envs.reset_all_envs()
        steps = np.full(self.num_envs, self.economy.num_periods, dtype=np.int32)
        return rewards, {name: steps.copy() for name in rewards}

    def fetch_episode_states(self, *args: Any, **kwargs: Any) -> Any:
        """Return arrays of one environment over an episode, as WarpDrive's method does; nothing of it is kept."""
        fetched = super().fetch_episode_states(*args, **kwargs)
        self.cuda_envs.reset_all_envs()
        return fetched

    def load_model_checkpoint(self, ckpts_dict: Mapping[str, str] | None = None) -> None:
        """Load policies from files, by type; None: from those that ``config["policy"]`` names. The stage stays."""
        for name in ckpts_dict or ():
            if name not in self.models:
                raise ConfigError(f"no policy is called {name!r}; there are: {', '.join(self.models)}")
        super().load_model_checkpoint(ckpts_dict)

    def _load_model_checkpoint_helper(self, policy: str, ckpt_filepath: str) -> None:
        """Load a policy file, of WarpDrive or of a run; the policy keeps its place, its optimizer starts anew."""
        if not ckpt_filepath:
            return
        path = Path(ckpt_filepath)
        with reading(path, "a policy", "give a file that save_model_checkpoint or a run wrote", show_reason=False):
            state = torch.load(path, map_location="cpu", weights_only=True)
            if not all(torch.isfinite(weights).all() for weights in state.values()):
                raise RunFileError(path, "holds NaN or infinity", "use an earlier checkpoint")
            self.models[policy].load_state_dict(state)
            timestep = path.stem.rpartition("_")[2]
            if path.suffix == ".state_dict" and timestep.isdecimal():
                self.current_timestep[policy] = int(timestep)
        if policy in self.optimizers:
            self.optimizers[policy].state.clear()

    def graceful_close(self) -> None:
        """Let go of the sampler and of the temporary folder; a second time, do nothing."""
        if hasattr(self, "graphs"):
            self.graphs.clear()
        if hasattr(self, "cuda_sample_controller"):
            super().graceful_close()
        if self._scratch:
            self._scratch.cleanup()

    # Resuming.

    def state(self) -> dict:
        """Return all that decides how training goes on, besides the configuration and the iteration."""
        return {
            "policies": {name: self.models[name].flat.detach().cpu().clone() for name in self.economy.agents},
            "optimizers": {name: self.optimizers[name].state_dict() for name in self.economy.agents},
            "noponzi": dict(self.multipliers),
        }

    @torch.no_grad()
    def load_state(self, state: dict) -> None:
        """Continue from :meth:`state`."""
        for name in self.economy.agents:
            self.models[name].flat.copy_(state["policies"][name])
            self.optimizers[name].load_state_dict(state["optimizers"][name])
        self.multipliers = dict(state["noponzi"])
