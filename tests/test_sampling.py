"""Drawing actions: right frequencies, masks, and random numbers that depend on their coordinates only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from warp_drive.utils.data_feed import DataFeed

from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.warpdrive import host, tables
from rbc_warp.warpdrive.host import HostDataManager, HostFunctionManager
from rbc_warp.warpdrive.kernels import DRAW_FROM_PROBABILITIES, DRAW_GREEDY, Heads, RbcSampler

HEADS = {"consumer": [3, 4, 3, 5, 6, 2], "firm": [30], "government": [36]}  # six heads need two blocks of random words
AGENTS = {"consumer": 19, "firm": 3, "government": 1}  # 19: more than the 16 rows that are drawn side by side
FIRST = {"consumer": 0, "firm": 19, "government": 22}  # the number of a type's first agent


@dataclass(frozen=True)
class Drawn:
    """Per type, (E, n, heads) actions, (E, n) log-probabilities and values."""

    actions: dict[str, np.ndarray]
    log_probability: dict[str, np.ndarray]
    value: dict[str, np.ndarray]


def draw(
    inputs: Mapping[str, np.ndarray],
    masks: Mapping[str, np.ndarray] | None = None,
    flags: int = 0,
    period: int = 0,
    **words: int,
) -> Drawn:
    """Draws from logits (E, n, actions+1) with WarpDrive's managers on the host, in period ``period`` of two."""
    num_envs = len(inputs["firm"])
    sizes = {"num_agents": sum(AGENTS.values()), "num_envs": num_envs, "blocks_per_env": 1}
    data, functions = HostDataManager(episode_length=2, **sizes), HostFunctionManager(**sizes)
    functions.initialize_default_functions()
    named = {name.lower(): 0 for name in tables.names("DRAW")} | words | {"flags": flags}
    feed = DataFeed()
    feed.add_data("sizes", np.array([AGENTS["consumer"], AGENTS["firm"], 2], np.int32))
    feed.add_data("draw_words", tables.filled("DRAW", named, np.int64).astype(np.int32))
    heads, logits = {}, {}
    for agent in AGENT_TYPES:
        heads[agent] = Heads(HEADS[agent], "cpu")
        if masks and agent in masks:
            heads[agent].allowed.copy_(torch.from_numpy(masks[agent].astype(np.uint8)))
        given = torch.from_numpy(np.ascontiguousarray(inputs[agent], np.float32))
        logits[agent] = given.flatten(0, 1).clone()
        shape = (num_envs, AGENTS[agent])
        feed.add_data(f"sampled_actions_{agent}", np.full((*shape, len(HEADS[agent])), -7, np.int32))
        feed.add_data(f"sampled_actions_batch_{agent}", np.full((2, *shape, len(HEADS[agent])), -7, np.int32))
        for name in ("log_probabilities", "values"):
            feed.add_data(f"{name}_batch_{agent}", np.full((2, *shape), np.nan, np.float32))
    data.push_data_to_device(feed)
    data._tensors["_timestep_"].fill_(period)
    RbcSampler(functions).sample(data, logits, heads=heads)
    read = data.pull_data_from_device
    drawn = Drawn(
        {agent: read(f"sampled_actions_{agent}") for agent in AGENT_TYPES},
        {agent: read(f"log_probabilities_batch_{agent}")[period] for agent in AGENT_TYPES},
        {agent: read(f"values_batch_{agent}")[period] for agent in AGENT_TYPES},
    )
    for agent in AGENT_TYPES:  # what was drawn stands in its period's slot, and nothing in the other
        batch = read(f"sampled_actions_batch_{agent}")
        np.testing.assert_array_equal(batch[period], drawn.actions[agent])
        assert np.all(batch[1 - period] == -7)
        assert np.all(np.isnan(read(f"values_batch_{agent}")[1 - period]))
    return drawn


def logits(num_envs: int, seed: int = 0, equal_rows: bool = False, spread: float = 1.5) -> dict[str, np.ndarray]:
    """Random logits and values; one and the same row for all agents and environments, or all different."""
    random = np.random.default_rng(seed)
    rows = {}
    for agent in AGENT_TYPES:
        shape = (1, 1) if equal_rows else (num_envs, AGENTS[agent])
        row = random.normal(0.0, spread, (*shape, sum(HEADS[agent]) + 1))
        rows[agent] = np.broadcast_to(row, (num_envs, AGENTS[agent], row.shape[-1])).astype(np.float32)
    return rows


def masks(seed: int = 0) -> dict[str, np.ndarray]:
    """About half of the actions of each head, at least one."""
    random = np.random.default_rng(seed)
    chosen = {}
    for agent, sizes in HEADS.items():
        parts = [random.random(size) < 0.5 for size in sizes]
        for part in parts:
            part[random.integers(len(part))] = True
        chosen[agent] = np.concatenate(parts)
    return chosen


def by_head(row: np.ndarray, agent: str) -> list[np.ndarray]:
    return np.split(row, np.cumsum(HEADS[agent])[:-1], axis=-1)


def log_softmax(row: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """One head, float64, masked entries −inf."""
    row = np.where(allowed, row.astype(np.float64), -np.inf)
    row = row - row.max(axis=-1, keepdims=True)
    return row - np.log(np.exp(row).sum(axis=-1, keepdims=True))


def everything_allowed() -> dict[str, np.ndarray]:
    return {agent: np.ones(sum(sizes), bool) for agent, sizes in HEADS.items()}


def improbable(degrees: int) -> float:
    """A value that chi-square with so many degrees of freedom exceeds about once in a million (Wilson, Hilferty)."""
    spread = 2.0 / (9.0 * degrees)
    return degrees * (1.0 - spread + 4.75 * np.sqrt(spread)) ** 3


def assert_frequencies(counts: np.ndarray, probabilities: np.ndarray, what: str) -> None:
    expected = probabilities * counts.sum()
    possible = expected > 0.0
    assert not counts[~possible].any(), f"{what}: impossible actions were drawn"
    if possible.sum() > 1:
        chi_square = float(((counts - expected)[possible] ** 2 / expected[possible]).sum())
        assert chi_square < improbable(int(possible.sum()) - 1), f"{what}: chi-square {chi_square:.1f}"


# Frequencies


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("flags", [0, DRAW_FROM_PROBABILITIES], ids=["logits", "probabilities"])
def test_frequencies_are_the_probabilities(flags: int, masked: bool) -> None:
    inputs = logits(4096, equal_rows=True)
    allowed = masks() if masked else everything_allowed()
    given = inputs
    if flags == DRAW_FROM_PROBABILITIES:
        given = {agent: np.exp(rows) for agent, rows in inputs.items()}  # weights need not add up to 1
    drawn = draw(given, allowed, flags, seed=11, iteration=3)
    for agent in AGENT_TYPES:
        row = inputs[agent][0, 0, :-1]
        heads = zip(by_head(row, agent), by_head(allowed[agent], agent), strict=True)
        for h, (head, mask) in enumerate(heads):
            counts = np.bincount(drawn.actions[agent][..., h].ravel(), minlength=len(head))
            assert_frequencies(counts, np.exp(log_softmax(head, mask)), f"{agent} head {h}")


@pytest.mark.parametrize("pair", [(0, 1), (0, 4), (3, 5)], ids=str)
def test_heads_are_drawn_independently(pair: tuple[int, int]) -> None:
    inputs = logits(8192, equal_rows=True)
    drawn = draw(inputs, seed=4).actions["consumer"]
    first, second = (by_head(inputs["consumer"][0, 0, :-1], "consumer")[h] for h in pair)
    joint = np.outer(*(np.exp(log_softmax(head, np.ones(len(head), bool))) for head in (first, second)))
    codes = drawn[..., pair[0]] * len(second) + drawn[..., pair[1]]
    assert_frequencies(np.bincount(codes.ravel(), minlength=joint.size), joint.ravel(), f"heads {pair}")


@pytest.mark.parametrize("change", [{"iteration": 1}, {"period": 1}, {"stream": 1}, {"seed": 1}, {"seed": 2**31}])
def test_successive_draws_differ_and_are_independent(change: dict[str, int]) -> None:
    inputs = logits(8192, equal_rows=True)
    first, second = draw(inputs).actions, draw(inputs, **change).actions
    for agent in AGENT_TYPES:
        assert np.any(first[agent] != second[agent]), agent
    head = by_head(inputs["government"][0, 0, :-1], "government")[0][:36]
    p = np.exp(log_softmax(head, np.ones(36, bool)))
    same = int((first["government"] == second["government"]).sum())  # as often as two independent draws agree
    assert_frequencies(np.array([same, 8192 - same]), np.array([(p**2).sum(), 1.0 - (p**2).sum()]), "agreement")


def test_agents_and_environments_draw_differently() -> None:
    inputs = {agent: np.zeros((64, AGENTS[agent], sum(HEADS[agent]) + 1), np.float32) for agent in AGENT_TYPES}
    actions = draw(inputs).actions
    consumers = actions["consumer"].reshape(64 * 19, -1)
    assert len(np.unique(consumers, axis=0)) > 0.7 * len(consumers)
    for n in range(1, 3):
        assert np.any(actions["firm"][:, 0] != actions["firm"][:, n])
    assert len(np.unique(actions["government"])) > 20


# Coordinates


def test_a_draw_depends_on_nothing_but_its_coordinates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "SMALL_WORK", 1)
    torch.set_num_threads(1)
    many = logits(64)
    all_of_them = draw(many, masks(), seed=9, iteration=5, period=1)
    few = draw({agent: rows[:8] for agent, rows in many.items()}, masks(), seed=9, iteration=5, period=1)
    later = draw(
        {agent: rows[40:45] for agent, rows in many.items()},
        masks(),
        seed=9,
        iteration=5,
        period=1,
        first_environment=40,
    )
    torch.set_num_threads(2)
    assert host.threads_for(64 * 23) == 2
    threaded = draw(many, masks(), seed=9, iteration=5, period=1)
    for part in ("actions", "log_probability", "value"):
        for agent in AGENT_TYPES:
            whole = getattr(all_of_them, part)[agent]
            np.testing.assert_array_equal(getattr(few, part)[agent], whole[:8], err_msg=f"{part} {agent}")
            np.testing.assert_array_equal(getattr(later, part)[agent], whole[40:45], err_msg=f"{part} {agent}")
            np.testing.assert_array_equal(getattr(threaded, part)[agent], whole, err_msg=f"{part} {agent}")


def test_draws_repeat_after_as_many_environments_as_are_asked_for() -> None:
    inputs = {agent: np.repeat(rows[:1], 12, axis=0) for agent, rows in logits(1).items()}
    repeated, plain = draw(inputs, first_environment=7, repeat=4), draw(inputs, first_environment=7)
    for agent in AGENT_TYPES:
        blocks = repeated.actions[agent].reshape(3, 4, *repeated.actions[agent].shape[1:])
        np.testing.assert_array_equal(blocks[1:], np.broadcast_to(blocks[0], blocks[1:].shape))
        np.testing.assert_array_equal(blocks[0], plain.actions[agent][:4])


def test_a_draw_does_not_depend_on_the_other_actions_of_its_agent() -> None:
    plain = logits(16)
    changed = {agent: rows.copy() for agent, rows in plain.items()}
    changed["consumer"][..., :3] = 50.0  # the first head's logits
    first, second = draw(plain).actions["consumer"], draw(changed).actions["consumer"]
    np.testing.assert_array_equal(first[..., 1:], second[..., 1:])


# What a draw is, said again in NumPy


def philox(counter: list[np.ndarray | int], key: tuple[int, int]) -> list[np.ndarray]:
    """Philox4x32-10 (Salmon et al. 2011)."""
    word = [np.asarray(c, np.uint64) for c in counter]
    low32 = np.uint64(0xFFFFFFFF)
    for round_ in range(10):
        keys = [np.uint64((k + round_ * weyl) % 2**32) for k, weyl in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True)]
        product0, product1 = np.uint64(0xD2511F53) * word[0], np.uint64(0xCD9E8D57) * word[2]
        word = [
            (product1 >> np.uint64(32)) ^ word[1] ^ keys[0],
            product1 & low32,
            (product0 >> np.uint64(32)) ^ word[3] ^ keys[1],
            product0 & low32,
        ]
    return word


def test_the_statement_of_philox_gives_a_known_answer() -> None:
    answer = philox([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], (0xA4093822, 0x299F31D0))
    assert [f"{int(word):08x}" for word in answer] == ["d16cfe09", "94fdcceb", "5001e420", "24126ea1"]


def uniforms(agent: str, num_envs: int, seed: int, iteration: int, period: int, stream: int) -> np.ndarray:
    """(E, n, heads) float32: one block of four words serves four heads."""
    number = FIRST[agent] + np.arange(AGENTS[agent])[None, :]
    environment = np.arange(num_envs)[:, None]
    shape = (num_envs, AGENTS[agent])
    words: list[np.ndarray] = []
    for block in range((len(HEADS[agent]) + 3) // 4):
        counter = [np.broadcast_to(c, shape) for c in (number, environment, period, stream << 28 | block)]
        words += philox(list(counter), (seed, iteration))
    drawn = np.stack(words[: len(HEADS[agent])], axis=-1)
    return (drawn >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)


def test_draws_from_probabilities_are_the_statement_exactly() -> None:
    weights = {agent: np.exp(rows) for agent, rows in logits(40, seed=3).items()}
    allowed = masks(3)
    drawn = draw(weights, allowed, DRAW_FROM_PROBABILITIES, seed=77, iteration=12, period=1, stream=1)
    for agent in AGENT_TYPES:
        u = uniforms(agent, 40, seed=77, iteration=12, period=1, stream=1)
        heads = zip(by_head(weights[agent][..., :-1], agent), by_head(allowed[agent], agent), strict=True)
        log_probability = np.zeros(u.shape[:2])
        for h, (weight, mask) in enumerate(heads):
            cumulative = np.cumsum(np.where(mask, weight, np.float32(0.0)), axis=-1, dtype=np.float32)
            total = cumulative[..., -1]
            expected = (cumulative <= (u[..., h] * total)[..., None]).sum(axis=-1)
            np.testing.assert_array_equal(drawn.actions[agent][..., h], expected, err_msg=f"{agent} head {h}")
            taken = np.take_along_axis(weight, expected[..., None], axis=-1)[..., 0]
            log_probability += np.log(taken.astype(np.float64) / total)
        np.testing.assert_allclose(drawn.log_probability[agent], log_probability, atol=2e-6 * len(HEADS[agent]))
        np.testing.assert_array_equal(drawn.value[agent], weights[agent][..., -1])


def test_logits_draw_what_their_probabilities_draw() -> None:
    inputs = logits(500)
    from_logits = draw(inputs, masks(), seed=1).actions
    from_weights = draw(
        {a: np.exp(rows) for a, rows in inputs.items()}, masks(), DRAW_FROM_PROBABILITIES, seed=1
    ).actions
    for agent in AGENT_TYPES:  # but for a rare draw at the very edge
        assert (from_logits[agent] != from_weights[agent]).mean() < 1e-4


def test_the_largest_uniform_number_stays_inside() -> None:
    """u < 1 times a total rounds below that total, so that the last allowed action is drawn at most."""
    totals = np.random.default_rng(0).uniform(0.5, 4.0, 100_000).astype(np.float32)
    totals = np.concatenate([totals, np.float32(2.0) ** np.arange(-20, 20)]).astype(np.float32)
    assert np.all(totals * np.float32(1.0 - 2.0**-24) < totals)


# Masks, greed, log-probabilities


def test_masked_actions_are_never_drawn_however_likely() -> None:
    inputs = logits(512)
    allowed = masks(5)
    for agent in AGENT_TYPES:
        inputs[agent] = inputs[agent].copy()
        inputs[agent][..., :-1] += np.where(allowed[agent], -60.0, 60.0)
    drawn = draw(inputs, allowed)
    for agent in AGENT_TYPES:
        for h, mask in enumerate(by_head(allowed[agent], agent)):
            assert mask[drawn.actions[agent][..., h]].all(), f"{agent} head {h}"
        assert np.isfinite(drawn.log_probability[agent]).all()


def test_a_single_allowed_action_is_certain() -> None:
    allowed = {agent: np.zeros(sum(sizes), bool) for agent, sizes in HEADS.items()}
    for agent, sizes in HEADS.items():
        allowed[agent][np.cumsum(sizes) - 1] = True
    drawn = draw(logits(32, spread=30.0), allowed)
    for agent, sizes in HEADS.items():
        assert np.all(drawn.actions[agent] == np.array(sizes) - 1)
        np.testing.assert_array_equal(drawn.log_probability[agent], 0.0)


def test_greedy_draws_take_the_most_likely_allowed_action() -> None:
    inputs, allowed = logits(64), masks(2)
    for agent in AGENT_TYPES:
        inputs[agent] = inputs[agent].copy()
        inputs[agent][0] = 0.0  # ties: the first allowed action
    drawn = draw(inputs, allowed, DRAW_GREEDY)
    for agent in AGENT_TYPES:
        heads = zip(by_head(inputs[agent][..., :-1], agent), by_head(allowed[agent], agent), strict=True)
        for h, (head, mask) in enumerate(heads):
            expected = np.where(mask, head, -np.inf).argmax(axis=-1)
            np.testing.assert_array_equal(drawn.actions[agent][..., h], expected, err_msg=f"{agent} head {h}")


@pytest.mark.parametrize("flags", [0, DRAW_GREEDY], ids=["drawn", "greedy"])
def test_recorded_log_probabilities_and_values_are_those_of_the_draw(flags: int) -> None:
    inputs, allowed = logits(64, spread=3.0), masks(1)
    drawn = draw(inputs, allowed, flags)
    for agent in AGENT_TYPES:
        rows = inputs[agent]
        expected = np.zeros(drawn.log_probability[agent].shape)
        heads = zip(by_head(rows[..., :-1], agent), by_head(allowed[agent], agent), strict=True)
        for h, (head, mask) in enumerate(heads):
            chosen = drawn.actions[agent][..., h : h + 1]
            expected += np.take_along_axis(log_softmax(head, mask), chosen, axis=-1)[..., 0]
        np.testing.assert_allclose(drawn.log_probability[agent], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(drawn.value[agent], rows[..., -1])
