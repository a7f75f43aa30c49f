"""The files that a run leaves while it trains: policies, dense rollouts, metrics and states."""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from rbc_warp.runs import metrics
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.interrupt import Interrupt
from rbc_warp.runs.live import LiveView
from rbc_warp.runs.resume import save_state
from rbc_warp.runs.tracking import Tracker, flat
from rbc_warp.training.numbers import fault
from rbc_warp.training.processes import Processes
from rbc_warp.training.recorder import Losses, Recorder
from rbc_warp.training.trainer import RbcTrainer


class RunRecorder(Recorder):
    """Writes a run's files as the trainer's hooks come by; of several processes, the first one writes.

    A checkpoint or dense rollout of an iteration is what played it; ``latest`` and ``final`` are what came of the last.
    """

    def __init__(
        self,
        run: RunDir,
        trainer: RbcTrainer,
        end: int | None,
        interrupt: Interrupt,
        trackers: Sequence[Tracker],
        view: LiveView,
    ):
        self.run, self.end, self.interrupt, self.trackers, self.view = run, end, interrupt, trackers, view
        self.processes = trainer.processes
        self.train = trainer.settings.train
        self.record: dict = {}  #: The last line of metrics.
        self.saved = 0  #: Iterations after which a state was saved last, here; 0: none yet.
        self._stops = False

    def _is_last(self, iteration: int) -> bool:
        return self.end is not None and iteration == self.end - 1

    def keeps_consumption(self, iteration: int) -> bool:
        return iteration % self.train.save_dense_every == 0 or self._is_last(iteration)

    def played(self, trainer: RbcTrainer, iteration: int) -> None:
        saves_models = iteration % self.train.save_model_every == 0
        saves_episode = iteration % self.train.save_dense_every == 0
        if saves_models or saves_episode:
            trainer.check_numbers()
        if saves_models:
            self._save_policies(trainer, str(iteration), "latest")
        if saves_episode:
            save_episode(self.run, trainer, str(iteration))

    def learned(self, trainer: RbcTrainer, iteration: int, losses: Losses) -> None:
        last = self._is_last(iteration)
        logs = iteration % self.train.log_every == 0 or last
        if logs:
            trainer.check_numbers()
        if last and iteration % self.train.save_model_every:
            self._save_policies(trainer, str(iteration))
        if logs:
            self._log(self.processes.average(metrics.record(trainer.rollout, iteration, losses)))

    def save(self, trainer: RbcTrainer, iteration: int) -> None:
        last = self._is_last(iteration)
        self._stops = self.processes.any(self.interrupt.requested)
        saves_state = (iteration + 1) % self.train.save_state_every == 0 or last or self._stops
        if saves_state:
            trainer.check_numbers()
        if last:
            save_episode(self.run, trainer, "final")
        if last or self._stops:
            self._save_policies(trainer, "latest")
        # The state comes last: what belongs to an iteration before it is on disk, what comes after is replayed.
        if saves_state:
            for tracker in self.trackers:
                tracker.flush()
            if self.processes.is_first:
                save_state(self.run, trainer, iteration + 1)
            self.saved = iteration + 1
        with suppress(OSError):  # a terminal that is gone ends no run
            self.view.advance(iteration + 1)

    def wants_to_stop(self) -> bool:
        return self._stops

    def _log(self, record: dict) -> None:
        self.record = record
        if self.processes.is_first:
            self.run.append_metrics([record])
            for tracker in self.trackers:
                tracker.log(record["iteration"], dict(flat(record)))
            self.view.note(record)

    def _save_policies(self, trainer: RbcTrainer, *labels: str) -> None:
        if self.processes.is_first:
            for name, agent in trainer.economy.agents.items():
                for label in labels if not agent.is_frozen else ():
                    self.run.save_policy(name, label, trainer.models[name].state_dict())


def save_episode(run: RunDir, trainer: RbcTrainer, label: str, processes: Processes | None = None) -> None:
    """Save the last rollout of all processes as dense files, environments first; consumption must have been kept."""
    processes = processes or trainer.processes
    rollout = trainer.rollout
    for name, agent in trainer.economy.agents.items():
        arrays = [rollout.states(name), rollout.actions(name), rollout.rewards(name)]
        if agent.private.size:
            arrays.append(rollout.aux(name))
        states, actions, rewards, *aux = (processes.gather(array.transpose(0, 1)).numpy() for array in arrays)
        for array, numbers in (("states", states), ("rewards", rewards)):
            if not np.isfinite(numbers).all():
                raise fault(f"rollout {label}", name, array)
        if processes.is_first:
            run.write_episode(label, name, states, actions, rewards, agent.choices, aux[0] if aux else None)
