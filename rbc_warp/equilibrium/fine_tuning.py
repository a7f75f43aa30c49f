"""Best responses by learning: one type, or one agent of it, trains further while everybody else stays as they are.

:func:`fine_tune` trains by the trainer's own loop, with a schedule that lets the deviator alone learn and a recorder
that keeps the best policy on the way.
"""

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from rbc_warp.config import Config
from rbc_warp.economy import curriculum
from rbc_warp.economy.reference import Stage
from rbc_warp.equilibrium.game import (
    ENVIRONMENTS_PER_REPEAT,
    FINE_TUNING_STREAM,
    SELECTION_STREAM,
    Estimate,
    Game,
    Intervention,
    MostLikely,
    OwnPolicy,
    of_deviator,
    paired_gain,
)
from rbc_warp.errors import ResumeError, RunFileError, printable
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.resume import continue_from, read_state, save_state
from rbc_warp.runs.state import Checker, sizes_of_policies
from rbc_warp.training.learner import Learner
from rbc_warp.training.policy import Policy
from rbc_warp.training.recorder import Losses, Recorder
from rbc_warp.training.rollout import Draw
from rbc_warp.training.schedule import Schedule, Update
from rbc_warp.training.trainer import RbcTrainer

SELECTION_SHARE = 4
"""A candidate is played on the reported number of episodes divided by this."""


@dataclass(frozen=True)
class FineTuned:
    """The result of further training of one type, or of one agent. Rewards are per episode, (episodes,)."""

    before: np.ndarray
    after: np.ndarray
    gain: Estimate
    best_iteration: int
    """Updates after which the best policy was found; 0 where none was better than the checkpoint's."""
    selection: dict[int, float]  #: Mean reward of every candidate on the selection draws, by the number of updates.
    seconds_per_iteration: float
    policy: Policy


@dataclass(frozen=True)
class ResumeState:
    """Keeps a fine-tuning's last state in its folder, and takes up only one that ``settings`` describe, too."""

    folder: RunDir
    config: Config
    settings: Mapping[str, Any]

    def save(self, trainer: RbcTrainer, done: int, progress: Mapping[str, Any]) -> None:
        save_state(self.folder, trainer, done, settings=dict(self.settings), progress=dict(progress))

    def read(self, agent: str, index: int | None, iterations: int) -> dict[str, Any] | None:
        def check(checker: Checker, state: dict[str, Any]) -> None:
            if state.get("settings") == self.settings:
                checker.number(state["iteration"], "iteration", 0, iterations, whole=True)
                check_progress(checker, state.get("progress"), self.config, agent, index, iterations)

        try:
            state = read_state(self.folder, self.config, check)
        except (ResumeError, RunFileError):
            state = {}
        if state is None or state.get("settings") == self.settings:
            return state
        print(
            f"note: {printable(str(self.folder.path))}: its state is of another request, or damaged; begun anew",
            file=sys.stderr,
        )
        return None


def check_progress(
    checker: Checker, progress: Any, config: Config, agent: str, index: int | None, iterations: int
) -> None:
    """Raise RunFileError where the progress of a fine-tuning is not what :class:`Candidates` keeps."""
    size, own = sizes_of_policies(config)[agent], () if index is None else ("own",)
    checker.keys(progress, "progress", ("selection", "best", "best_flat", "seconds", *own))
    checker(isinstance(progress["selection"], dict), "selection", "rewards by the number of updates")
    for done, reward in progress["selection"].items():
        checker.number(done, "selection", 0, iterations, whole=True)
        checker.number(reward, f"selection[{done}]", -sys.float_info.max, sys.float_info.max)
    checker(
        type(progress["best"]) is int and {0, progress["best"]} <= set(progress["selection"]), "best", "one of them"
    )
    checker.number(progress["seconds"], "seconds", 0.0, sys.float_info.max)
    checker.vector(progress["best_flat"], "best_flat", (size,))
    if own:
        settings = config.agents.of(agent)
        rate = config.train.lr * max(1.0, settings.lr_multiple)
        checker.keys(progress["own"], "own", ("policy", "optimizer"))
        checker.vector(progress["own"]["policy"], "own.policy", (size,))
        checker.adam(progress["own"]["optimizer"], "own.optimizer", size, rate)


class FineTuningSchedule(Schedule):
    """The deviator learns at the checkpoint's stage; iterations go on from the checkpoint's.

    The entropy weight of one agent falls linearly to 0, which it is in the last of ``iterations`` updates; that of a
    type stays.
    """

    def __init__(self, game: Game, update: Update, repeat: int, iterations: int):
        super().__init__(game.trainer.settings, game.economy)
        self.game, self.update, self.repeat, self.iterations = game, update, repeat, iterations

    def stage(self, iteration: int, multipliers: Mapping[str, float]) -> Stage:
        return super().stage(self.game.iteration, multipliers)

    def allowed(self, iteration: int) -> dict[str, np.ndarray]:
        return super().allowed(self.game.iteration)

    def draw(self, iteration: int) -> Draw:
        return Draw(iteration, FINE_TUNING_STREAM, first_environment=self.repeat * ENVIRONMENTS_PER_REPEAT)

    def updates(self, iteration: int) -> list[Update]:
        if self.update.index is None:
            return [self.update]
        left = self.game.iteration + self.iterations - iteration  # updates after this one
        entropy = self.update.entropy * left / self.iterations
        return [replace(self.update, entropy=entropy, last_head_entropy=entropy)]

    def trials(self, iteration: int) -> dict[str, int]:
        return {}

    def raises_multipliers(self, iteration: int) -> bool:
        return False


class Candidates(Recorder):
    """Every ``every`` updates the policy becomes a candidate; the best so far is kept, and with it a resume state."""

    def __init__(
        self,
        game: Game,
        learner: Learner,
        iterations: int,
        every: int,
        value: Callable[[], float],
        keep: Callable[[int | str, Policy], None],
        resume: ResumeState | None,
        progress: dict[str, Any],
        advance: Callable[[int], None],
    ):
        self.game, self.learner, self.iterations, self.every = game, learner, iterations, every
        self.value, self.keep, self.resume, self.progress, self.advance = value, keep, resume, progress, advance
        self._seconds_before = progress["seconds"] - game.trainer.perf_stats.total_time

    def learned(self, trainer: RbcTrainer, iteration: int, losses: Losses) -> None:
        done, policy, progress = iteration - self.game.iteration, self.learner.policy, self.progress
        progress["seconds"] = self._seconds_before + trainer.perf_stats.total_time
        self.advance(1)
        is_candidate = done % self.every == 0 or done == self.iterations
        is_due = is_candidate or done % trainer.settings.train.save_state_every == 0
        if is_due:
            trainer.check_numbers()
        if is_candidate:
            selection = progress["selection"]
            selection[done] = self.value()
            self.keep(done, policy)
            if selection[done] > selection[progress["best"]]:
                progress |= {"best": done, "best_flat": policy.flat.detach().clone()}
        if self.resume and is_due:
            own = {"policy": policy.flat.detach(), "optimizer": self.learner.optimizer.state_dict()}
            alone = self.learner not in trainer.learners.values()
            self.resume.save(trainer, done, progress | ({"own": own} if alone else {}))


def fine_tune(
    game: Game,
    agent: str,
    iterations: int,
    every: int,
    repeat: int = 0,
    index: int | None = None,
    save: Callable[[int | str, Policy], None] = lambda label, policy: None,
    resume: ResumeState | None = None,
    advance: Callable[[int], None] = lambda updates: None,
    first: Policy | None = None,
) -> FineTuned:
    """Train one type further, or one agent of it (``index``), while everybody else stays as in the checkpoint.

    Algorithm and entropy weight are those of the run at this iteration, but for the least weight on a consumer's choice
    of employer, and one agent's weight falls to 0; the learning rate is the run's before it decays; the stage stays.
    Every ``every`` updates the policy becomes a candidate; the checkpoint's own policy is one too. The best on a
    quarter as many selection episodes is compared with the checkpoint's policy on the report draws. ``save`` gets each
    candidate, then the best. With a ``resume`` it goes on from the state there, and leaves one with each candidate and
    when one is due. ``advance`` is told of updates made. ``first``: the policy that training
    starts from, the checkpoint's by default.
    """
    game.restore()
    trainer, kind = game.trainer, game.economy.agents[agent]
    entropy = curriculum.entropy_coefficient(trainer.settings, kind, max(game.iteration, kind.settings.training_start))
    rate = trainer.settings.train.lr * kind.settings.lr_multiple
    before = of_deviator(game.baseline(repeat=repeat), agent, index)
    own: list[Intervention] = []
    if index is None:
        learner = trainer.learners[agent]
    else:
        deviator = OwnPolicy(trainer, agent, index, copy.deepcopy(trainer.models[agent]))
        learner, own = deviator.learner, [deviator]
    policy = learner.policy

    few = game.in_batches(game.num_episodes / SELECTION_SHARE)

    def selected() -> float:
        with game.changed(*own):
            return float(of_deviator(game.play(few, SELECTION_STREAM, repeat), agent, index).mean())

    progress: dict[str, Any] = {
        "selection": {0: float(of_deviator(game.values(few, SELECTION_STREAM, repeat), agent, index).mean())},
        "best": 0,
        "best_flat": policy.flat.detach().clone(),
        "seconds": 0.0,
    }
    start = 0
    if first is not None:
        with torch.no_grad():
            policy.flat.copy_(first.flat)
    if resume and (state := resume.read(agent, index, iterations)):
        start, progress = continue_from(trainer, state), state["progress"]
        advance(start)
        if index is not None:
            _put(learner, progress["own"])
    peers = [other for other in game.economy.agents if other != agent or index is not None] if game.greedy else []
    fixed = [MostLikely(trainer, peers)] if peers else []
    update = Update(agent, entropy, entropy, rate, learner if index is not None else None, index)
    candidates = Candidates(game, learner, iterations, every, selected, save, resume, progress, advance)
    with game.changed(*fixed, *own), trainer.under(FineTuningSchedule(game, update, repeat, iterations), candidates):
        trainer.train(game.iteration + start + 1, game.iteration + iterations + 1)
    with torch.no_grad():
        policy.flat.copy_(progress["best_flat"])
    save("best", policy)
    after = of_deviator(game.evaluate(*own, repeat=repeat), agent, index)
    gain = paired_gain(after, before, game.greedy)
    seconds = progress["seconds"] / iterations
    return FineTuned(before, after, gain, progress["best"], progress["selection"], seconds, copy.deepcopy(policy))


@torch.no_grad()
def _put(learner: Learner, kept: Mapping[str, Any]) -> None:
    """Put back one agent's own policy and optimizer, which the trainer's state does not know."""
    learner.policy.flat.copy_(kept["policy"])
    learner.optimizer.load_state_dict(kept["optimizer"])
