"""One agent deviates from a saved run: Gymnasium's own test, equal draws, clear errors, and a gap that SB3 finds."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from test_best_response import make_game
from test_power import SOLO
from trainers import trained_run

import rbc_warp
from rbc_warp.config import load_config
from rbc_warp.economy.parameters import Economy
from rbc_warp.equilibrium.enumeration import GameTree
from rbc_warp.equilibrium.game import Estimate
from rbc_warp.errors import ActionError, ConfigError, RunFileError, UserError
from rbc_warp.interfaces.deviator import Deviators
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.run import load_policies, prepare_run
from rbc_warp.training.policy import make_policies

ROOT = Path(__file__).parents[1]
COMMAND = "run `make setup-extras` or `pip install -r requirements-extras.txt`"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two consumers, three firms, three periods; checkpoints 0, 1 and latest."""
    small = ["agents.num_consumers=2", "agents.num_firms=3", "world.maxtime=3", "world.initial_stocks=20"]
    more = ["train.num_episodes=2", "train.batch_size=4", "train.save_model_every=1", "agents.firm_noponzi_eta=0.1"]
    more += [
        f"agents.{name}.anneal_on=false"
        for name in ("firm_anneal_prices", "firm_anneal_wages", "government_anneal_taxes")
    ]
    return trained_run(tmp_path_factory.mktemp("experiment"), *small, *more).path


@pytest.mark.parametrize("agent", ["consumer_1", "firm_2", "government_0"])
@pytest.mark.parametrize("encoded", [False, True])
def test_gymnasiums_own_test_passes(run: Path, agent: str, encoded: bool) -> None:
    env = rbc_warp.deviator_env(run, agent, encoded=encoded)
    check_env(env)
    _, info = env.reset(seed=1)
    env.action_space.sample(mask=info["action_mask"])


def played(env: rbc_warp.interfaces.deviator.DeviatorEnv, seed: int, own: object = None) -> list:
    """What an episode shows and pays, with fixed actions or the saved ones."""
    seen, _ = env.reset(seed=seed)
    history, ended = [seen], False
    while not ended:
        seen, reward, ended, cut, _ = env.step(env.saved_actions() if own is None else own)
        assert not cut
        history += [seen, reward]
    return history


def test_the_seed_alone_draws(run: Path) -> None:
    env, again = (rbc_warp.deviator_env(run, "firm_1") for _ in range(2))
    first = played(env, 5)
    assert len(first) == 1 + 2 * 3
    assert all(np.array_equal(a, b) for a, b in zip(first, played(again, 5), strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, played(env, 6), strict=True))


def test_it_is_the_same_economy_and_others_draw_as_before(run: Path) -> None:
    """The others' first actions do not depend on the deviator's, and what all do brings what it brings elsewhere."""
    deviators = Deviators(run, "firm_1", num_envs=6)
    drawn = []
    for own in (0, 7):
        deviators.reset(3)
        before = {name: actions.clone() for name, actions in deviators.vector.actions.items()}
        assert torch.equal(deviators.saved_actions(), before["firm"][:, 1])
        _, rewards, ended = deviators.step(torch.full((6,), own))
        drawn.append(before)
        vector = rbc_warp.vector_env(load_config(run / "hparams.yaml"), num_envs=6, iteration=1)
        vector.reset()
        before["firm"][:, 1] = own
        _, expected, *_ = vector.step(before)
        assert torch.equal(rewards, expected["firm"][:, 1]) and not ended
        assert torch.equal(deviators.observe(), vector.states("firm")[:, 1])
        before["firm"][:, 1] = -1
    for name in drawn[0]:
        assert torch.equal(drawn[0][name], drawn[1][name])


def test_all_draw_from_the_saved_policies_at_their_stage(run: Path) -> None:
    deviators = Deviators(run, "consumer_0", num_envs=4096)
    deviators.reset(0)
    policies = load_policies(RunDir(run), load_config(run / "hparams.yaml"))
    for name, policy in policies.items():
        chances = policy.probabilities(deviators.vector.states(name)[0], deviators.vector.allowed[name])
        actions, first = deviators.vector.actions[name], 0
        for head, size in enumerate(policy.head_sizes):
            share = torch.stack([(actions[..., head] == k).float().mean(dim=0) for k in range(size)], dim=-1)
            expected = chances[:, first : first + size]
            assert ((share - expected).abs() <= 5 * (expected * (1 - expected) / 4096).sqrt() + 1e-6).all()
            first += size


def test_a_stage_allows_what_the_curriculum_allows(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs" / "rbc.yaml", ["agents.frozen_government_action=3"])
    run = RunDir.create(tmp_path)
    prepare_run(run, config)
    for name, policy in make_policies(config, Economy.from_config(config)).items():
        if name != "government":
            run.save_policy(name, 0, policy.state_dict())
    deviators = Deviators(run.path, "firm_9", episode=0, num_envs=2)
    deviators.reset(0)
    allowed = int(deviators.allowed.nonzero())
    assert (deviators.vector.actions["firm"] == allowed).all() and (deviators.vector.actions["government"] == 3).all()
    with pytest.raises(ActionError, match=rf"firm_9: actions\[0, 0\] is 29; allowed: \[{allowed}\]"):
        deviators.step([29, 29])
    env = rbc_warp.deviator_env(run.path, "firm_9", episode=0)
    check_env(env)
    assert env.action_space.sample() == allowed and allowed in env.action_space and allowed + 1 not in env.action_space
    with pytest.raises(ConfigError, match="government_0.*frozen"):
        rbc_warp.deviator_env(run.path, "government_0", episode=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"agent": "firm_3"}, "agent 'firm_3'.*consumer_0 to consumer_1, firm_0 to firm_2, government_0"),
        ({"agent": "firm_-1"}, "agent 'firm_-1'"),
        ({"agent": "firm"}, "agent 'firm'"),
        ({"agent": "bank_0"}, "agent 'bank_0'"),
        ({"agent": 4}, "agent 4"),
        ({"episode": "lates"}, "episode 'lates'.*iteration or 'latest'"),
        ({"episode": -1}, "episode -1"),
        ({"episode": 7}, "_policy_7.pt.*saved .* checkpoints: 0, 1, latest"),
        ({"run": "/nowhere"}, "/nowhere: is not a folder"),
        ({"backend": "tpu"}, "tpu"),
    ],
)
def test_bad_arguments_are_named(run: Path, arguments: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        rbc_warp.deviator_env(**({"run": run, "agent": "firm_0"} | arguments))


def test_a_missing_policy_is_named(run: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    (copied / "saved_models" / "consumer_policy_latest.pt").unlink()
    with pytest.raises(RunFileError, match="consumer_policy_latest.pt"):
        rbc_warp.deviator_env(copied, "firm_0")


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (30, r"firm_0: actions\[0, 0\] is 30; allowed: 0 to 29"),
        (-1, "is -1"),
        (2**40, "is 1099511627776"),
        (np.nan, "float64; give integer"),
        (True, "bool; give integer"),
        ([0, 0], r"shape \(1, 2\)"),
        ("x", "no array of numbers"),
        (None, "no array of numbers"),
    ],
)
def test_bad_actions_are_named_and_nothing_is_played(run: Path, action: object, words: str) -> None:
    env = rbc_warp.deviator_env(run, "firm_0")
    with pytest.raises(ActionError, match="not begun"):
        env.step(0)
    first = played(env, 2)
    with pytest.raises(ActionError, match="has ended"):
        env.step(0)
    env.reset(seed=2)
    with pytest.raises(ActionError, match=words):
        env.step(action)
    seen, reward, *_ = env.step(env.saved_actions())
    assert np.array_equal(seen, first[1]) and reward == first[2]


def example() -> ModuleType:
    pytest.importorskip("stable_baselines3", reason=f"Stable-Baselines3 is not installed: {COMMAND}")
    path = ROOT / "examples" / "independent_searcher.py"
    spec = importlib.util.spec_from_file_location("independent_searcher", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_an_independent_searcher_finds_the_gap_of_a_damaged_policy(tmp_path: Path) -> None:
    """The firm's network is pushed toward one action; how much it could gain is known exactly."""
    searcher = example()
    game = make_game(load_config(SOLO))
    run = RunDir.create(tmp_path)
    prepare_run(run, game.trainer.settings)
    weights = game.policies["firm"].state_dict()
    weights["fc3.bias"][0] += 4.0  # the lower price, no wage
    game.policies["firm"].load_state_dict(weights)
    for name, policy in game.policies.items():
        run.save_policy(name, "0", policy.state_dict())
    tree = GameTree(game)
    chances = tree.probabilities(game)
    value, gap = tree.values(chances)[1], tree.best_response(1, chances) - tree.values(chances)[1]
    found = searcher.search(str(run.path), "firm_0", 20_000, "0", num_envs=64)
    assert found[1] == pytest.approx(value, abs=0.1 * gap)
    assert 0.5 * gap < found[0].low and found[0].low < gap, f"of {gap}: {found[0]}"
    assert isinstance(found[0], Estimate) and searcher.ours(str(run.path), "firm_0", 0) == "not measured"
