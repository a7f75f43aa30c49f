"""The kernels on the host: the same economy as the reference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from economies import (
    DATA,
    GOLDEN,
    actions_at,
    assert_recorded,
    check_identities,
    golden,
    make_economy,
    observed_outcome,
    random_actions,
    random_state,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reference import economies

import rbc_warp
from rbc_warp.economy import reference
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.economy.parameters import Economy
from rbc_warp.economy.reference import Outcome, Stage, State
from rbc_warp.errors import ActionError
from rbc_warp.warpdrive import build, host, tables
from rbc_warp.warpdrive.env import RbcEnv
from rbc_warp.warpdrive.kernels import MOST_BLOCK_ROWS, SHARED_BYTES, THREADS, RowBlock, loss_block
from rbc_warp.warpdrive.simulation import make_envs, play, set_stage

FLOAT32 = {"rtol": 2e-6, "money_atol": 2e-3, "goods_atol": 2e-4}
ALL_SIZES = [(100, 10), (17, 4), (1, 1)]
by_size = pytest.mark.parametrize("size", ALL_SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
POISON = {
    "rewards_consumer": np.nan,
    "rewards_firm": np.inf,
    "rewards_government": -np.inf,
    "consumption": np.nan,
    "exports": np.inf,
    "hours": np.nan,
    "employer": -(2**31),
    "spending": np.nan,
}


class Envs:
    """Environments on the host whose state can be set and read between steps."""

    def __init__(self, economy: Economy, num_envs: int, stage: Stage = reference.DEFAULT_STAGE) -> None:
        self.economy = economy
        self.wrapper = make_envs(economy, num_envs, "host")
        self.manager = self.wrapper.cuda_data_manager
        set_stage(self.wrapper, stage)
        self.wrapper.reset_all_envs()

    def array(self, name: str) -> np.ndarray:
        """The memory that the kernels work on, not a copy."""
        return self.manager._tensors[name].numpy()

    @property
    def state(self) -> State:
        public, consumer, firm = (
            self.manager.pull_data_from_device(f"observations_{agent}").astype(np.float64)
            for agent in ("government", "consumer", "firm")
        )
        return State(public[:, 0], consumer, firm)

    @state.setter
    def state(self, state: State) -> None:
        self.array("observations_government")[:, 0] = state.public
        self.array("observations_consumer")[:] = state.consumer
        self.array("observations_firm")[:] = state.firm
        self.array("_timestep_")[:] = state.public[:, self.economy.public.time].astype(np.int32)

    def step(self, actions: dict[str, np.ndarray], poison: bool = False) -> None:
        """One period; ``actions`` of one period, without their time axis."""
        for name, value in POISON.items() if poison else ():
            self.array(name)[:] = value
        for agent in AGENT_TYPES:
            drawn = self.array(f"sampled_actions_{agent}")
            drawn[:] = actions[agent].reshape(drawn.shape)
        self.wrapper.step_all_envs()

    def rewards(self) -> dict[str, np.ndarray]:
        return {agent: self.array(f"rewards_{agent}").astype(np.float64) for agent in AGENT_TYPES}

    @property
    def consumption(self) -> np.ndarray:
        return self.array("consumption").transpose(0, 2, 1).astype(np.float64)


def to_float32(state: State) -> State:
    """The nearest state that the kernels can hold."""
    return State(*(part.astype(np.float32).astype(np.float64) for part in (state.public, state.consumer, state.firm)))


def assert_equal_steps(economy: Economy, state: State, actions: dict[str, np.ndarray], stage: Stage) -> None:
    """The host's step from ``state`` is the reference's, field by field, within the rounding of the sums behind it."""
    state = to_float32(state)
    envs = Envs(economy, len(state.public), stage)
    envs.state = state
    envs.step(actions, poison=True)
    after, outcome = reference.step(economy, state, *(actions[agent] for agent in AGENT_TYPES), stage)
    got = envs.state
    public = economy.public
    money = np.abs(state.firm[..., 0]) + outcome.revenue + outcome.wage_bill + 1.0
    purse = np.abs(state.consumer[..., 0]) + outcome.wage_income + outcome.redistribution[:, None] + 1.0
    spent = (outcome.consumption * state.public[:, None, public.prices]).sum(axis=2)
    charged = stage.firm_multiplier * money / 100.0, stage.consumer_multiplier * purse / economy.consumer_penalty_scale
    felt = np.abs(outcome.consumer_reward) + outcome.consumption.sum(axis=2) + state.consumer[..., 1] * outcome.hours
    boost = economy.boost_firm_reward_factor
    total = felt.sum(axis=1, keepdims=True) + economy.firm_reward_for_government_factor * money.sum(1, keepdims=True)
    stock = state.public[:, public.inventories] + outcome.production + 1.0
    compared = {  # name: (host, reference, size of the numbers that were rounded)
        "prices": (got.public[:, public.prices], after.public[:, public.prices], 0.0),
        "wages": (got.public[:, public.wages], after.public[:, public.wages], 0.0),
        "inventories": (got.public[:, public.inventories], after.public[:, public.inventories], 4.0 * stock),
        "overdemanded": (got.public[:, public.overdemanded], after.public[:, public.overdemanded], 0.0),
        "income tax": (got.public[:, public.income_tax], after.public[:, public.income_tax], 0.0),
        "corporate tax": (got.public[:, public.corporate_tax], after.public[:, public.corporate_tax], 0.0),
        "time": (got.public[:, public.time], after.public[:, public.time], 0.0),
        "consumer budget": (got.consumer[..., 0], after.consumer[..., 0], purse + spent),
        "theta": (got.consumer[..., 1], after.consumer[..., 1], 0.0),
        "firm budget": (got.firm[..., 0], after.firm[..., 0], money),
        "capital": (got.firm[..., 1], after.firm[..., 1], state.firm[..., 1] + money),
        "alpha and one-hot": (got.firm[..., 2:], after.firm[..., 2:], 0.0),
        "consumption": (envs.consumption, outcome.consumption, outcome.demand),
        "exports": (envs.array("exports"), outcome.exports, stock),
        "hours": (envs.array("hours"), outcome.hours, 0.0),
        "employer": (envs.array("employer"), actions["consumer"][..., -1], 0.0),
        "consumer reward": (envs.rewards()["consumer"], outcome.consumer_reward, 4.0 * felt + charged[1]),
        "firm reward": (envs.rewards()["firm"], outcome.firm_reward, money + charged[0] + boost * outcome.revenue),
        "government reward": (envs.rewards()["government"], outcome.government_reward[:, None], 4.0 * total),
        "done": (envs.array("_done_"), after.public[:, public.time] >= economy.num_periods, 0.0),
        "timestep": (envs.array("_timestep_"), after.public[:, public.time], 0.0),
    }
    exact = {"prices", "wages", "income tax", "corporate tax"}  # the grids in float32
    for name, (host_value, expected, size) in compared.items():
        expected = expected.astype(np.float32) if name in exact | {"hours"} else expected
        error = np.abs(host_value - expected)
        allowed = 4e-6 * np.asarray(size)
        worst = np.unravel_index(np.argmax(np.nan_to_num(error - allowed, nan=np.inf)), error.shape)
        where = [int(index) for index in worst]
        assert np.all(error <= allowed), (
            f"{name} at {where}: host {host_value[worst]!r}, reference {expected[worst]!r}, "
            f"allowed {float(np.broadcast_to(allowed, error.shape)[worst]):.3g}"
        )


# The same economy as the reference


@pytest.mark.parametrize("name", GOLDEN)
def test_recorded_trajectories_are_reproduced_on_the_host(name: str) -> None:
    economy, actions, _ = golden(name)
    assert_recorded(name, play(economy, actions, "host"))


def golden_mapping(name: str) -> dict[str, dict[str, Any]]:
    """The configuration of a recorded trajectory, as a user would write it."""
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as file:
        recorded = json.loads(str(file["config"]))
        tables = {key: file[f"{key}_table"].astype(np.float64) for key in ("consumption", "work", "firm", "government")}

    def grid(column: np.ndarray) -> list[float]:
        return [float(f"{value:.6g}") for value in np.unique(column)]

    agents = {
        "num_consumers": recorded["NC"],
        "num_firms": recorded["NF"],
        "consumption_choices": grid(tables["consumption"]),
        "work_choices": grid(tables["work"]),
        "price_choices": grid(tables["firm"][:, 0]),
        "wage_choices": grid(tables["firm"][:, 1]),
        "investment_choices": grid(tables["firm"][:, 2]),
        "income_tax_choices": grid(tables["government"][:, 0]),
        "corporate_tax_choices": grid(tables["government"][:, 1]),
    }
    world = {
        "maxtime": recorded["T"],
        "initial_consumer_endowment": recorded["cb0"],
        "initial_firm_endowment": recorded["fb0"],
        "initial_stocks": recorded["s0"],
        "initial_prices": recorded["p0"],
        "initial_wages": recorded["w0"],
        "interest_rate": recorded["r"],
        "consumer_theta": recorded["theta"] * recorded.get("anneal", 1.0),
        "paretoscaletheta": recorded["pareto"],
        "crra_param": recorded["crra"],
        "production_alpha": "fixed_array" if recorded["alpha"] == "fixed" else recorded["alpha"],
        "initial_capital": recorded["cap"],
        "labor_floor": recorded["lf"],
        "use_importer": int(recorded["imp"]),
        "importer_price": recorded["ip"],
        "importer_quantity": recorded["iq"],
    }
    train = {
        "should_boost_firm_reward": bool(recorded["boost"]),
        "boost_firm_reward_factor": float(recorded["boostf"] or 0.0),
    }
    return {"agents": agents, "world": world, "train": train}


@pytest.mark.parametrize("backend", ["auto", "reference", "host"])
@pytest.mark.parametrize("name", GOLDEN)
def test_simulate_replays_recorded_trajectories_from_a_mapping(name: str, backend: str) -> None:
    if backend == "auto" and rbc_warp.warpdrive.wrapper.missing_for_pycuda() is None:
        pytest.skip("auto means pycuda here")
    _, actions, _ = golden(name)
    mapping = golden_mapping(name)
    result = rbc_warp.simulate(mapping, actions, backend=backend)
    num_envs, periods = actions["firm"].shape[:2]
    for agent in AGENT_TYPES:
        assert set(result[agent]) == {"states", "rewards", "aux_array", "final_states"}
        assert result[agent]["rewards"].shape[:2] == (num_envs, periods)
        assert result[agent]["states"].dtype == (np.float64 if backend == "reference" else np.float32)
    assert_recorded(name, result)
    assert result["government"]["aux_array"].size == 0


STAGES = {"plain": Stage(), "charged": Stage(theta_factor=0.25, consumer_multiplier=0.5, firm_multiplier=2.0)}
RULES: dict[str, dict[str, Any]] = {
    "published": {},
    "closed": {"open_": False},
    "interest and log utility": {"interest_rate": 0.25, "crra": 1.0, "initial_inventory": 3.0},
    "risk averse": {"crra": 2.5, "budget_drip": 37.0, "technology": 0.7},
    "risk neutral": {"crra": 0.0, "importer_price": 1000.0, "importer_quantity": 7.0},
    "boost and floor": {
        "labor_floor": 520.0,
        "boost_firm_reward_factor": 2.5,
        "firm_reward_for_government_factor": 0.0025,
    },
}


@by_size
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("rules", RULES)
def test_a_step_is_the_reference_s(rules: str, stage: str, size: tuple[int, int]) -> None:
    for num_periods in (1, 2):  # the last period, and one before it
        economy = make_economy(*size, num_periods=num_periods, **RULES[rules])
        state = random_state(economy, num_envs=8, seed=5)
        actions = dict(zip(AGENT_TYPES, actions_at(random_actions(economy, 8, 1, seed=6), 0), strict=True))
        assert_equal_steps(economy, state, actions, STAGES[stage])


def test_a_wrong_field_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    economy = make_economy(5, 3)
    actions = dict(zip(AGENT_TYPES, actions_at(random_actions(economy, 4, 1, seed=6), 0), strict=True))
    true_step = reference.step

    def wrong_step(*arguments: Any) -> tuple[State, Outcome]:
        after, outcome = true_step(*arguments)
        after.firm[2, 1, 1] += 5.0
        return after, outcome

    monkeypatch.setattr(reference, "step", wrong_step)
    with pytest.raises(AssertionError, match=r"^capital at \[2, 1\]: host"):
        assert_equal_steps(economy, random_state(economy, 4, seed=5), actions, Stage())


@by_size
@pytest.mark.parametrize("open_", [True, False], ids=["open", "closed"])
def test_identities_hold_in_every_period_on_the_host(size: tuple[int, int], open_: bool) -> None:
    economy = make_economy(*size, open_=open_, num_periods=500, interest_rate=0.001, initial_inventory=3.0)
    envs = Envs(economy, num_envs=20)
    actions = random_actions(economy, num_envs=20, num_periods=500, seed=1)
    after = envs.state
    for t in range(500):
        now = {agent: actions[agent][:, t] for agent in AGENT_TYPES}
        before = after
        envs.step(now)
        after = envs.state
        outcome = observed_outcome(economy, before, now, envs.consumption, envs.array("exports"), after, envs.rewards())
        check_identities(economy, before, outcome, after, **FLOAT32)
        assert after.public[:, economy.public.inventories].min() >= 0.0
    assert np.all(envs.array("_done_") == 1) and np.all(envs.array("_timestep_") == 500)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(economies(), st.integers(0, 2**32 - 1))
def test_any_small_economy_steps_like_the_reference(economy: Economy, seed: int) -> None:
    economy = replace(economy, num_periods=2, consumer_penalty_scale=50.0)
    state = to_float32(random_state(economy, num_envs=3, seed=seed))
    actions = dict(zip(AGENT_TYPES, actions_at(random_actions(economy, 3, 1, seed), 0), strict=True))
    assert_equal_steps(economy, state, actions, Stage(consumer_multiplier=0.3, firm_multiplier=0.7))
    envs = Envs(economy, 3)
    envs.state = state
    envs.step(actions)
    after = envs.state
    outcome = observed_outcome(economy, state, actions, envs.consumption, envs.array("exports"), after, envs.rewards())
    check_identities(economy, state, outcome, after, **FLOAT32)


def test_a_reset_restores_the_start_and_applies_the_stage() -> None:
    economy = make_economy(17, 4, num_periods=3)
    envs = Envs(economy, 6, Stage(theta_factor=0.25))
    start = envs.state
    expected = reference.initial_state(economy, 6, Stage(theta_factor=0.25))
    np.testing.assert_allclose(start.consumer, expected.consumer, rtol=1e-6)
    np.testing.assert_array_equal(start.public, to_float32(expected).public)
    actions = {agent: rows[:, 0] for agent, rows in random_actions(economy, 6, 1, seed=0).items()}
    for _ in range(3):
        envs.step(actions)
    ended = envs.state
    envs.array("_done_")[:] = [1, 0, 1, 0, 0, 1]
    envs.wrapper.reset_only_done_envs()
    now, done = envs.state, [0, 2, 5]
    for part in ("public", "consumer", "firm"):
        np.testing.assert_array_equal(getattr(now, part)[done], getattr(start, part)[done])
        np.testing.assert_array_equal(getattr(now, part)[[1, 3, 4]], getattr(ended, part)[[1, 3, 4]])
    assert envs.array("_timestep_").tolist() == [0, 3, 0, 3, 3, 0] and not envs.array("_done_").any()
    envs.wrapper.reset_all_envs()
    np.testing.assert_array_equal(envs.state.firm, start.firm)


def test_the_number_of_threads_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "SMALL_WORK", 1)
    economy = make_economy(17, 4, interest_rate=0.01)
    actions = random_actions(economy, num_envs=9, num_periods=economy.num_periods, seed=0)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert host.threads_for(9) == threads
        results.append(play(economy, actions, "host"))
    for agent in AGENT_TYPES:
        for key, array in results[0][agent].items():
            np.testing.assert_array_equal(results[1][agent][key], array, err_msg=f"{agent} {key}")


def test_small_work_stays_on_one_thread() -> None:
    torch.set_num_threads(2)
    assert host.threads_for(host.SMALL_WORK - 1) == 1 and host.threads_for(host.SMALL_WORK) == 2


# Faults of the user


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda a: a.pop("firm"), "give exactly consumer, firm, government"),
        (lambda a: a.update(firm=a["firm"][:, :-1]), r"actions\['firm'\] has shape \(2, 9, 4\); .* \(2, 10, 4\)"),
        (lambda a: a.update(consumer=np.zeros(())), r"actions\['consumer'\] has shape \(\)"),
        (lambda a: a.update({k: v[:0] for k, v in a.items()}), "E >= 1"),
        (lambda a: a.update(firm=a["firm"].astype(float)), "is float64; give integer indices"),
        (lambda a: a.update(firm=a["firm"] - 1), "indices outside its grids; allowed: 0 to"),
        (lambda a: a["consumer"].__setitem__((0, 0, 0, -1), 4), r"\['consumer'\] has indices outside .*, 4, 3\]"),
        (lambda a: a["government"].__setitem__((0, 0, 0), 36), r"\['government'\] has indices outside"),
    ],
)
def test_actions_that_do_not_fit_are_refused(spoil: Any, problem: str) -> None:
    economy = make_economy(17, 4)
    actions = random_actions(economy, num_envs=2, num_periods=10, seed=0)
    actions["firm"][0, 0, 0] = 0
    spoil(actions)
    with pytest.raises(ActionError, match=problem):
        rbc_warp.simulate({"agents": {"num_consumers": 17, "num_firms": 4}}, actions, backend="host")


# The layout that Python and the kernels share


def test_arrays_have_the_types_that_the_kernels_declare() -> None:
    envs = Envs(make_economy(3, 2), 2)
    for kind, name in tables._lists()["STEP_ARRAYS"] + tables._lists()["RESET_ARRAYS"]:
        dtype = {"int": np.int32, "float": np.float32}[kind.removeprefix("const ")]
        assert envs.array(name).dtype == dtype, name


def test_a_table_is_filled_by_name_and_completely() -> None:
    given = {"num_firms": 2, "num_periods": 3, "num_consumers": 1}
    assert tables.filled("SIZES", given, np.int32).tolist() == [1, 2, 3]
    for wrong in ({**given, "num_goods": 1}, {"num_firms": 2}):
        with pytest.raises(AssertionError, match="RBC_SIZES: expected"):
            tables.filled("SIZES", wrong, np.int32)


@pytest.mark.parametrize(
    ("before", "after", "table"),
    [
        ("X(prices, J) X(wages, J)", "X(wages, J) X(prices, J)", "PUBLIC"),
        ("X(time, 1)", "X(time, 1) X(sales_tax, 1)", "PUBLIC"),
        ("X(BUDGET) X(CAPITAL)", "X(CAPITAL) X(BUDGET)", "FIRM"),
        ("X(PRICE) X(WAGE)", "X(WAGE) X(PRICE)", "FIRM_CHOICE"),
        ("X(INCOME_TAX) X(CORPORATE_TAX)", "X(INCOME_TAX)", "GOVERNMENT_CHOICE"),
        ("X(consumer) AND X(firm)", "X(firm) AND X(consumer)", "AGENT_TYPES"),
    ],
)
def test_a_layout_changed_on_one_side_is_refused(
    before: str, after: str, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels' states, choices and types are compared with the economy's wherever an environment is made."""
    for header in tables.HEADERS:
        text = (build.SOURCES / header).read_text()
        (tmp_path / header).write_text(text.replace(before, after))
    monkeypatch.setattr(tables, "SOURCES", tmp_path)
    tables._lists.cache_clear()
    try:
        with pytest.raises(AssertionError, match=f"RBC_{table} has"):
            RbcEnv(make_economy(3, 2))
    finally:
        tables._lists.cache_clear()


# Faults of the kernels


def test_long_rows_take_smaller_blocks() -> None:
    numbers = 128 + 126 + 5 * 12 + 5
    assert loss_block(125, 12, 128) == RowBlock(MOST_BLOCK_ROWS, 4 * (32 * numbers + 12))
    for num_actions in (30, 36, 125, 299, 1015, 4999, 20_000):
        block = loss_block(num_actions, 12, num_actions + 1)
        assert block.shared == 4 * (block.rows * ((2 * (num_actions + 1) + 5 * 12 + 5) | 1) + 12)
        assert block.rows == 1 or block.shared <= SHARED_BYTES
        assert block.rows == MOST_BLOCK_ROWS or 2 * block.shared > SHARED_BYTES
    assert all(number % MOST_BLOCK_ROWS == 0 for number in THREADS.values())


def test_the_kernels_have_no_undefined_behavior(tmp_path: Path) -> None:
    """A sanitized build runs the step, the sampler and the loss of odd sizes; it aborts at the first fault."""
    script = tmp_path / "sanitized.py"
    script.write_text(
        "from rbc_warp.warpdrive import build, host\n"
        "built = build.build_host\n"
        "host.build_host = lambda: built(debug=True)\n"
        "from rbc_warp.config import load_config\n"
        "from rbc_warp.training.trainer import RbcTrainer\n"
        "for consumers, firms, precision in [(1, 1, 'float32'), (17, 3, 'bfloat16')]:\n"
        "    settings = {'agents': {'num_consumers': consumers, 'num_firms': firms}, 'world': {'maxtime': 2},\n"
        "                'train': {'batch_size': 3, 'precision': precision}}\n"
        "    trainer = RbcTrainer(load_config(settings), 'host')\n"
        "    trainer.train(0, 1)\n"
        "print('sound')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(rbc_warp.__file__).parents[1])}
    result = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert result.stdout == "sound\n" and "runtime error" not in result.stderr, result.stderr[-2000:]
