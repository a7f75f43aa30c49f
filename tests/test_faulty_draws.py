"""The sampler with the public code's defect: who shares a number, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from faulty_draws import KINDS, FaultyTrainer, inverse
from trainers import trained_run

from rbc_warp.analysis.outcomes import Outcome
from rbc_warp.config import load_config
from rbc_warp.runs import run as runs
from rbc_warp.training.recorder import Recorder
from rbc_warp.training.rollout import Draw
from rbc_warp.training.trainer import RbcTrainer

E, T = 48, 4


def make(kind: str, num_firms: int = 3, trainer: type[RbcTrainer] = FaultyTrainer) -> RbcTrainer:
    settings = {
        "agents": {"num_consumers": 5, "num_firms": num_firms, "frozen_government_action": 0},
        "world": {"maxtime": T, "initial_wages": 22},
        "train": {"batch_size": E, "num_episodes": 5, "precision": "float32", "learner": "autograd"},
        "metadata": {"draws": kind},
    }
    return trainer(load_config(settings), "host", recorder=Recorder())


def played(trainer: RbcTrainer, iteration: int) -> torch.Tensor:
    """Return what firms choose, (T, E, J)."""
    trainer.play(Draw(iteration))
    return trainer.rollout.actions("firm").clone()


def indifferent(kind: str) -> RbcTrainer:
    """A trainer whose firms take every action with the same probability."""
    trainer = make(kind)
    for weights in trainer.models["firm"].parameters():
        weights.data.zero_()
    return trainer


def test_firms_of_equal_probabilities_act_alike_where_they_share_a_number() -> None:
    trainer = indifferent("shared")
    first, second = played(trainer, 7), played(trainer, 8)
    assert (first == first[:, :, :1]).all()
    assert len(first.unique()) > 20  # another number in every environment and period …
    assert (first[0] != first[1]).any() and (first != second).any()  # … and iteration
    assert torch.equal(first, played(trainer, 7))  # the same draw again, as trials need it


def test_a_number_that_is_never_advanced_repeats_a_firms_action_for_ever() -> None:
    trainer = indifferent("forever")
    first = played(trainer, 7)
    assert (first == first[:1]).all() and (first != first[:, :, :1]).any()
    assert torch.equal(first, played(trainer, 8))


@pytest.mark.parametrize("kind", KINDS)
def test_one_firm_draws_as_its_policy_says_and_consumers_as_ever(kind: str) -> None:
    faulty, sound = make(kind, 1), make(kind, 1, RbcTrainer)
    actions = played(faulty, 7)
    played(sound, 7)
    for name in ("consumer", "government"):
        assert torch.equal(faulty.rollout.actions(name)[0], sound.rollout.actions(name)[0])
    allowed = faulty.heads["firm"].allowed.bool()
    p = faulty.models["firm"].probabilities(faulty.rollout.states("firm"), allowed)
    noted = faulty._data("log_probabilities_batch_firm")
    taken = p.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(noted, taken.log(), atol=1e-4) and allowed[actions.long()].all()
    if kind == "shared":
        count = T * E * 40
        drawn = torch.cat([played(faulty, n) for n in range(40)]).flatten().bincount(minlength=p.shape[-1])
        expected = p[0, 0, 0] * count  # nearly the same in all states of an untrained policy
        assert ((drawn - expected).abs() < 6 * expected.sqrt() + 0.02 * count).all()


def test_no_action_of_probability_0_is_drawn() -> None:
    p = torch.tensor([[0.0, 0.5, 0.5, 0.0]]).expand(3, -1)
    assert inverse(p, torch.tensor([[0.0], [0.6], [1.0]])).flatten().tolist() == [1, 2, 2]


def test_a_run_trained_with_it_is_a_normal_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "RbcTrainer", FaultyTrainer)
    run = trained_run(tmp_path, "train.num_episodes=12", "metadata.draws=forever")
    found = Outcome.read(run)
    assert found.activity is not None and found.figures["price"] > 0.0
