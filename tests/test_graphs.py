"""Replaying iterations: what is recorded once must bring every later iteration as if it were called anew.

On a GPU CUDA records (``test_pycuda.py``). Here a stand-in does: it keeps torch's operations and the calls of our
kernels with their arguments as they were, so that a number that changes, but is not in the words, shows.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trainers import as_a_gpu_multiplies, as_a_gpu_steps

from rbc_warp.config import load_config
from rbc_warp.equilibrium.fine_tuning import fine_tune
from rbc_warp.equilibrium.game import Game
from rbc_warp.errors import NumbersError
from rbc_warp.training.graphs import Capture, Graphs
from rbc_warp.training.recorder import Recorder
from rbc_warp.training.trainer import RbcTrainer

SETTINGS = {
    "agents": {
        "num_consumers": 5,
        "num_firms": 3,
        "firm_training_start": 3,
        "government_training_start": 7,
        "consumer_minibatches": 3,
        "consumer_own_scale": True,
        "firm_minibatches": 2,
        "firm_passes": 2,
        "firm_trials": 9,
        "government_trials": 2,
        "consumer_noponzi_start": 0.5,
        "consumer_noponzi_eta": 0.1,
        "consumer_anneal_theta": {"anneal_on": True, "exp_decay_length_in_steps": 4},
        "consumer_anneal_entropy": {"anneal_on": True, "exp_decay_length_in_steps": 4},
        "firm_anneal_prices": {"anneal_on": True, "start": 1000, "increase_const": 250, "decrease_const": 250},
    },
    "world": {"maxtime": 3, "initial_wages": 22},
    "train": {"batch_size": 8, "num_episodes": 14, "lr_decay_start": 5, "clip_grad_norm": 2, "ppo_num_updates": 2},
}


class Calls(TorchDispatchMode):
    """A record of operations and kernels, which can be made again."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Callable[[], None]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))

        def again() -> None:
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **(kwargs or {}))), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)  # where a graph would have put it

        self.made.append(again)
        return result


class Kept(Capture):
    """In place of CUDA's. A recording is also made, so the first replay, which follows at once, does nothing."""

    def __init__(self, trainer: RbcTrainer):
        self.recording: Calls | None = None
        self.replays = self.recordings = 0
        manager = trainer.cuda_envs.cuda_function_manager
        for function in manager._functions.values():
            function._function = self._kept(function._function)
        manager.library = _Library(manager.library, self._kept)

    def _kept(self, kernel: Callable) -> Callable:
        def call(*arguments: Any) -> Any:
            if self.recording:
                self.recording.made.append(lambda: kernel(*arguments))
            return kernel(*arguments)

        return call

    def record(self, call: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        self.recordings += 1
        assert not gc.isenabled()  # another trainer's graphs would be let go of
        self.recording = Calls()
        with self.recording:
            result = call()
        calls, self.recording = self.recording.made, None
        times = iter(range(1 << 30))

        def replay() -> None:
            if next(times):
                self.replays += 1
                for again in calls:
                    again()

        return replay, result


class _Library:
    def __init__(self, library: Any, kept: Callable[[Callable], Callable]):
        self._library, self._kept = library, kept

    def __getattr__(self, name: str) -> Any:
        return self._kept(getattr(self._library, name))


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The learning rate lies in the words, and torch multiplies, by weights that are copied beforehand."""
    as_a_gpu_steps(monkeypatch)
    as_a_gpu_multiplies(monkeypatch)


def trainers(*overrides: str) -> tuple[RbcTrainer, RbcTrainer, Kept]:
    called, replayed = (RbcTrainer(load_config(SETTINGS, list(overrides)), "host", recorder=Losses()) for _ in range(2))
    capture = Kept(replayed)
    replayed.graphs = replayed.updates.graphs = Graphs(capture)
    return called, replayed, capture


class Losses(Recorder):
    def __init__(self) -> None:
        self.kept: list[dict] = []

    def learned(self, trainer: RbcTrainer, iteration: int, losses: Any) -> None:
        self.kept.append({agent: {name: float(x) for name, x in row.items()} for agent, row in losses.items()})
        self.kept.append({agent: float(trainer.rollout.rewards(agent).sum()) for agent in trainer.economy.agents})


def assert_equal(called: RbcTrainer, replayed: RbcTrainer) -> None:
    for agent in called.economy.agents:
        assert torch.equal(called.models[agent].flat, replayed.models[agent].flat), agent
    assert called.recorder.kept == replayed.recorder.kept and called.multipliers == replayed.multipliers


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_replayed_training_equals_called_training(precision: str) -> None:
    called, replayed, capture = trainers(f"train.precision={precision}")
    for trainer in (called, replayed):
        trainer.train(0, 14)
    assert_equal(called, replayed)
    # a rollout, its notes, three updates; rollouts with firms' trials and with both, their notes, firms' update anew
    assert capture.recordings == 10 and capture.replays > 50


def test_a_loaded_state_is_what_is_replayed_on() -> None:
    called, replayed, capture = trainers()
    for trainer in (called, replayed):
        trainer.train(0, 2)
        trainer.load_state(trainer.state())  # before firms have learned
        assert trainer.state()["optimizers"]["firm"]["state"] == {}
        trainer.train(2, 6)
        kept = copy.deepcopy(trainer.state())
        trainer.train(6, 9)
        trainer.load_state(kept)
        assert trainer.optimizers["firm"].state_dict()["param_groups"][0]["lr"] == pytest.approx(1e-3)  # of iteration 5
        trainer.train(6, 9)
        trainer.models["firm"].load_state_dict(trainer.models["firm"].state_dict())
        trainer.train(9, 14)
    assert_equal(called, replayed)
    assert gc.isenabled()
    assert capture.recordings > 10  # what a loaded state moved


def test_what_is_not_finite_is_found_in_a_replay() -> None:
    _, replayed, _ = trainers()
    replayed.train(0, 9)
    with torch.no_grad():
        replayed.models["consumer"].flat[0] = torch.nan
    with pytest.raises(NumbersError, match="iteration 9: the consumer's"):
        replayed.train(9, 12)


def test_where_recording_fails_calls_are_made(capsys: pytest.CaptureFixture) -> None:
    called, replayed, _ = trainers()

    class Failing(Capture):
        def record(self, call: Callable) -> Any:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    replayed.graphs = replayed.updates.graphs = Graphs(Failing())
    for trainer in (called, replayed):
        trainer.train(0, 6)
    assert_equal(called, replayed)
    assert not replayed.graphs.are_used
    assert capsys.readouterr().err == (
        "note: not replayed as CUDA graphs: CUDA error: operation not permitted when stream is capturing\n"
    )


def test_one_agent_s_own_policy_is_replayed_too() -> None:
    called, replayed, capture = trainers("train.precision=bfloat16")
    found = []
    for trainer in (called, replayed):
        trainer.train(0, 8)
        before = capture.replays
        game = Game(trainer, copy.deepcopy(dict(trainer.models)), 7, episodes=16)
        tuned = fine_tune(game, "firm", iterations=6, every=2, index=1)
        found.append((tuned.before, tuned.after, tuned.selection, tuned.policy.flat))
    assert capture.replays - before > 20
    (before, after, selection, flat), again = found
    np.testing.assert_array_equal(again[0], before)
    np.testing.assert_array_equal(again[1], after)
    assert again[2] == selection and torch.equal(again[3], flat)


def test_weights_and_words_that_change_between_rollout_and_update_are_used() -> None:
    called, replayed, _ = trainers("train.precision=bfloat16")
    for trainer in (called, replayed):
        trainer.train(0, 8)
        trainer.iteration = 8
        trainer._generate_rollout_batch()
        with torch.no_grad():
            trainer.models["firm"].flat.mul_(1.5)
        trainer._update_model_params(11)  # at another learning rate
    assert_equal(called, replayed)


def test_a_finished_trainer_is_let_go_of_with_its_graphs() -> None:
    _, replayed, _ = trainers()
    replayed.train(0, 5)
    gc.collect()
    gone, learner_gone = weakref.ref(replayed), weakref.ref(replayed.learners["firm"])
    gc.disable()
    try:
        replayed.graceful_close()
        del replayed, _
        assert gone() is None and learner_gone() is None
    finally:
        gc.enable()
