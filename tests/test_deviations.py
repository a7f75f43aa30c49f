"""Deviations of single agents played side by side, the search among them, and the verdict."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import xarray as xr
from test_best_response import TINY, changed, launch, make_game, run_dir, trained  # noqa: F401 (fixtures)

import run_best_response
import run_training
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.equilibrium import exact, request
from rbc_warp.equilibrium.deviations import (
    Deviation,
    constant_deviations,
    one_step_deviations,
    search,
    values_of,
)
from rbc_warp.equilibrium.game import FREE, SELECTION_STREAM, Estimate, Forced, Game, of_deviator
from rbc_warp.equilibrium.request import Request, prepare
from rbc_warp.equilibrium.verdict import Candidate, Effort, judge
from rbc_warp.runs.folder import RunDir

SOME = Effort("some", {"constant": 4, "one-step": 2}, 16, 16)


@pytest.fixture(scope="module")
def game() -> Game:
    return make_game(changed(TINY, batch_size=8))


def deviations_of_everybody(game: Game) -> list[Deviation]:
    who = [("consumer", 1), ("firm", 0), ("government", None), ("firm", None)]
    return [one for agent, index in who for one in constant_deviations(game, agent, index)[:3]]


@pytest.mark.parametrize("episodes", [2, 3, 8, 20])
def test_side_by_side_is_one_after_the_other(game: Game, episodes: int) -> None:
    """Whatever share of the batch a deviation gets, it meets the episodes that it meets alone."""
    tried = deviations_of_everybody(game)
    found = values_of(game, tried, episodes, SELECTION_STREAM)
    for deviation, values in zip(tried, found, strict=True):
        agents = None if deviation.index is None else [deviation.index]
        alone = Game(game.trainer, game.policies, game.iteration, episodes=episodes)
        rewards = alone.evaluate(Forced(deviation.agent, agents, deviation.actions[None]), stream=SELECTION_STREAM)
        np.testing.assert_array_equal(values, of_deviator(rewards, deviation.agent, deviation.index)[:episodes])


def test_one_step_deviations_are_every_action_in_every_period(game: Game) -> None:
    firm = one_step_deviations(game, "firm", 1)
    assert len(firm) == 4 * 3 and {int((one.actions != FREE).any(axis=1).sum()) for one in firm} == {1}
    # Hours at an employer (2 x 2) and units of a good (2 x 2), each in 3 periods; all else stays the policy's.
    consumer = one_step_deviations(game, "consumer", 0)
    assert len(consumer) == (4 + 4) * 3
    assert sorted({int((one.actions != FREE).sum()) for one in consumer}) == [1, 2]


@pytest.mark.parametrize(("agent", "index"), [("firm", 0), ("firm", 1), ("government", None), ("consumer", 0)])
def test_a_search_finds_the_best_of_its_class_and_no_more_than_the_best_plan(agent: str, index: int | None) -> None:
    game = make_game(changed(TINY, batch_size=24), greedy=True)
    best = exact.best_plan(game, agent, index, max_plans=5000)
    for searcher in (constant_deviations, one_step_deviations):
        tried = searcher(game, agent, index)
        (found,) = search(game, tried, 1, 1).found
        assert found.before == pytest.approx(best.before, rel=1e-6)
        assert found.gain.mean <= best.gain + 1e-5 * abs(best.reward)
        assert found.gain.mean == pytest.approx(values_of(game, tried, 1).max() - found.before, rel=1e-9)


def test_a_verdict_covers_every_agent_and_keeps_the_largest(game: Game) -> None:
    untrained = {agent: copy.deepcopy(policy) for agent, policy in game.policies.items()}
    verdict = judge(game, untrained, AGENT_TYPES, "0", SOME, quiet=True)
    count = {agent: kind.count for agent, kind in game.economy.agents.items()}
    assert verdict.num_agents == sum(count.values()) == 5
    assert verdict.num_deviations == 2 * (4 + 24) + 2 * (4 + 12) + (6 + 18)
    assert not verdict.passed  # nothing was learned: no gain, however small, is a small part of it
    assert all(found.of_training_gain is None and not found.passed for found in verdict.largest.values())

    # Each figure is the deviation's own, on episodes that did not choose it.
    for agent, found in verdict.largest.items():
        searcher, name = found.how.split(", ", 1)
        index = None if " " not in found.who else int(found.who.split()[1])
        tried = {"constant": constant_deviations, "one-step": one_step_deviations}[searcher](game, agent, index)
        (deviation,) = [one for one in tried if one.name == name]
        alone = Game(game.trainer, game.policies, game.iteration, episodes=SOME.scoring)
        agents = None if index is None else [index]
        rewards = alone.evaluate(Forced(agent, agents, deviation.actions[None]))
        gain = of_deviator(rewards, agent, index) - of_deviator(alone.baseline(), agent, index)
        assert found.gain == pytest.approx(gain.mean(), rel=1e-9) and found.low < found.gain < found.high


def test_a_verdict_keeps_every_agent_and_every_action(game: Game) -> None:
    verdict = judge(game, None, AGENT_TYPES, "0", SOME, quiet=True)
    for agent, kind in game.economy.agents.items():
        alone, largest = verdict.agents[agent], verdict.largest[agent]
        assert [one.index for one in alone] == ([None] if kind.count == 1 else list(range(kind.count)))
        most = max(alone, key=lambda one: one.high)
        assert (most.gain, most.low, most.high, most.how) == (largest.gain, largest.low, largest.high, largest.how)

        # Each figure is what the deviation brings alone, on the draws that chose the finalists.
        table = xr.Dataset.from_dict(verdict.screening[agent])
        for searcher, tried in (("constant", constant_deviations), ("one-step", one_step_deviations)):
            episodes = SOME.screening[searcher]
            own = Game(game.trainer, game.policies, game.iteration, episodes=episodes)
            before = own.baseline(SELECTION_STREAM)
            gains: dict[str, list[float]] = {}
            for deviation in [each for one in alone for each in tried(game, agent, one.index)]:
                agents = None if deviation.index is None else [deviation.index]
                after = own.evaluate(Forced(agent, agents, deviation.actions[None]), stream=SELECTION_STREAM)
                gain = of_deviator(after, agent, deviation.index) - of_deviator(before, agent, deviation.index)
                gains.setdefault(deviation.name, []).append(float(gain[:episodes].mean()))
            for name, values in gains.items():
                action, _, period = name.partition(" in period ")
                cell = table.sel(action=action, way=f"period {period}" if period else "constant")
                assert float(cell["mean"]) == pytest.approx(np.mean(values), rel=1e-3, abs=1e-9 * abs(largest.gain))
                assert float(cell["largest"]) == pytest.approx(max(values), rel=1e-3, abs=1e-9 * abs(largest.gain))
        goods = table["largest"].sel(way="constant").isnull()
        assert int(goods.sum()) == (4 if agent == "consumer" else 0)


def test_a_verdict_passes_small_gains_and_not_large_or_uncertain_ones(game: Game) -> None:
    """The government plays its best constant action; of what it gained by that the bar is 1 %."""
    scores = values_of(game, constant_deviations(game, "government", None), 16)
    worst, best = (
        constant_deviations(game, "government", None)[int(k)] for k in (np.argsort(scores.mean(axis=1))[[0, -1]])
    )

    def always(deviation: Deviation):
        policy = copy.deepcopy(game.policies["government"])
        policy.flat.data.zero_()
        policy.layers(policy.flat.data).bias3[int(deviation.actions[0, 0])] = 50.0
        return policy

    better = Game(game.trainer, {**game.policies, "government": always(best)}, 0)
    untrained = {**game.policies, "government": always(worst)}
    plain = judge(better, untrained, ["government"], "1", Effort("constant", {"constant": 16}, 16, 16), quiet=True)
    assert plain.passed and plain.largest["government"].of_training_gain == pytest.approx(0.0, abs=1e-6)
    learned = float((better.values(16)["government"]).mean())
    for gain, passes in (
        (Estimate(0.0, -0.0001 * learned, 0.0001 * learned), True),
        (Estimate(0.0, -learned, learned), False),
        (Estimate(learned, learned, learned), False),
    ):
        more = {"government": [Candidate(gain, 64, "government", "elsewhere")]}
        verdict = judge(
            better, untrained, ["government"], "1", Effort("constant", {"constant": 16}, 16, 16), more, True
        )
        assert verdict.passed == passes and (passes or "may gain more" in verdict.sentence())
    assert not judge(better, None, ["government"], "1", Effort("constant", {"constant": 16}, 16, 16), quiet=True).passed


def test_a_long_training_ends_with_a_quick_test(tmp_path, capsys, monkeypatch) -> None:
    arguments = ["--config", "configs/smoke.yaml", "--set", "train.num_episodes=2", "--quiet", "--experiment-dir"]
    for longest, told in ((10**9, False), (100, True)):
        monkeypatch.setattr(request, "LONG_RUN", longest)
        folder = tmp_path / str(longest)
        assert run_training.main([*arguments, str(folder)]) == 0
        assert ("equilibrium, a quick test: " in capsys.readouterr().out) == told
        (run,) = folder.iterdir()
        content = json.loads((run / "best_response.json").read_text()) if told else None
        assert (run / "best_response.json").exists() == told
        assert content is None or content["verdict"]["effort"] == "quick"


@pytest.mark.parametrize(
    ("more", "effort"),
    [
        ((), "quick"),
        (("--verdict", "none"), None),
        (("--verdict",), "full"),
        (("--agent-type", "firm"), None),
        (("--greedy",), None),
        (("--deviator", "individual"), None),
    ],
)
def test_a_verdict_comes_where_all_types_are_measured_as_they_play(run_dir, more, effort) -> None:  # noqa: F811
    plan = prepare(Request(run_dir, labels=("latest",), **asked(*more)))[0]
    assert (plan.effort and plan.effort.name) == effort
    early = prepare(Request(run_dir, labels=("2",), **asked(*more)))[0]
    assert (early.effort is None) == (effort != "full")  # at other checkpoints where it is asked for


def asked(*more: str) -> dict:
    options = run_best_response.parse(["RUN", *more])
    individual = options.deviator == "individual"
    return {
        "agent_type": options.agent_type, "individual": individual, "greedy": options.greedy, "verdict": options.verdict
    }  # fmt: skip


def test_an_interval_at_another_level_is_that_of_the_values() -> None:
    values = np.random.default_rng(0).normal(size=40)
    plain, wide = Estimate.of(values), Estimate.of(values, 0.999)
    again = plain.at(0.999, 0.95, 40)
    assert (again.mean, again.low, again.high) == pytest.approx((wide.mean, wide.low, wide.high))


def test_company_takes_every_deviation_once_and_agents_do_different_things(game: Game) -> None:
    tried = [one for index in range(2) for one in one_step_deviations(game, "consumer", index)]
    alone, together = values_of(game, tried, 3), values_of(game, tried, 3, company=2)
    assert together.shape == alone.shape and not np.array_equal(alone, together)
    only = [one for one in tried if one.index == 0]
    np.testing.assert_array_equal(values_of(game, only, 3, company=2), alone[: len(only)])  # nobody to go with


def test_the_launcher_gives_a_verdict(run_dir, capsys) -> None:  # noqa: F811
    assert launch(run_dir, 1, "--ep-strs", "latest", "--verdict") == 0
    said = capsys.readouterr().out
    content = json.loads((run_dir / "best_response.json").read_text())
    verdict = content["verdict"]
    assert list(content)[0] == "verdict" and verdict["checkpoint"] == "latest" and verdict["num_agents"] == 5
    assert set(verdict["largest"]) == set(AGENT_TYPES)
    assert f"of any of {verdict['num_agents']} agents" in said and "look at: " in said

    assert launch(run_dir, 1, "--ep-strs", "2", "--agent-type", "firm") == 0
    assert json.loads((run_dir / "best_response.json").read_text())["verdict"] == verdict
    run = RunDir(run_dir)
    status = run.read_status()
    run.write_status(status.status, status.iteration + 3)  # as if it had trained on
    assert launch(run_dir, 1, "--ep-strs", "4", "--agent-type", "firm") == 0
    assert "verdict" not in json.loads((run_dir / "best_response.json").read_text())
