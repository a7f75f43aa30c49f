"""Who gains and loses, fixed against learned taxes, and elasticities: cases whose answer is known."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from economies import make_economy
from scipy import stats
from trainers import trained_run

from rbc_warp.__main__ import main
from rbc_warp.analysis.fiscal import LEARNED, premium
from rbc_warp.analysis.report import taxes
from rbc_warp.analysis.responses import elasticities
from rbc_warp.analysis.welfare import Lives, by_theta, by_utility, gains, unpaired

ECONOMY = make_economy(4, 2, theta=np.array([0.04, 0.03, 0.02, 0.01]), crra=1.0)


def lives(units: float | np.ndarray, hours: float = 0.0, episodes: int = 6) -> Lives:
    """Everyone gets so many units of each good and works so many hours in every period; θ as shown is half of θ."""
    shape = (episodes, 3, 4)
    goods = np.broadcast_to(np.asarray(units, dtype=float), shape)[..., None].repeat(2, axis=-1)
    dims = ("episode", "period", "consumer")
    variables = {"consumption": ((*dims, "good"), goods), "hours": (dims, np.full(shape, hours))}
    shown = (dims, np.broadcast_to(ECONOMY.theta / 2, shape))
    return Lives.of(ECONOMY, xr.Dataset({**variables, "theta": shown}))


def test_a_tenth_more_of_every_good_is_worth_a_tenth():
    each = [np.array([n]) for n in range(4)]
    found = gains(lives(2.0), lives(2.2), ECONOMY.crra, each)
    np.testing.assert_allclose(found.change, 2 * (np.log(3.2) - np.log(3.0)))
    np.testing.assert_allclose([found.equivalent, found.equivalent_low, found.equivalent_high], 10.0)
    assert found.winners == 1.0 and found.losers == 0.0
    back = gains(lives(2.2), lives(2.0), ECONOMY.crra, [np.arange(4)])
    np.testing.assert_allclose(back.equivalent, 100 * (2.0 / 2.2 - 1))
    # Nothing consumed: no change of it is worth anything.
    assert np.isnan(gains(lives(0.0), lives(1.0), ECONOMY.crra, each).equivalent).all()


def test_work_is_felt_at_the_full_theta_by_those_who_mind_it():
    found = gains(lives(2.0), lives(2.0, hours=10.0), ECONOMY.crra, by_theta(ECONOMY))
    np.testing.assert_allclose(found.change, -0.5 * 10.0 * ECONOMY.theta)
    assert found.losers == 1.0 and (np.diff(found.equivalent) > 0).all()


def test_intervals_are_those_of_welch():
    random = np.random.default_rng(0)
    old, new = random.normal(size=(7, 3)), 2.0 * random.normal(size=(12, 3)) + 1.0
    change, low, high = unpaired(old, new)
    found = stats.ttest_ind(new, old, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose([low, high], [found.low, found.high])
    np.testing.assert_allclose(change, (low + high) / 2)
    assert np.isnan(unpaired(old[:1], new)[1]).all()


def test_luck_alone_makes_no_poor_consumer_gain():
    """Ranked and measured by the same episodes, the lowest would gain."""
    random = np.random.default_rng(0)
    draws = [lives(random.exponential(3.0, size=(40, 3, 4)), episodes=40) for _ in range(2)]
    found = by_utility(*draws, ECONOMY.crra)
    assert found is not None and found.winners == found.losers == 0.0
    assert by_utility(draws[0].some(slice(0, 3)), draws[1], ECONOMY.crra) is None


def test_learned_taxes_against_the_best_fixed_ones():
    rows = [("20 % / 20 %", 100.0), ("20 % / 20 %", 104.0), ("40 % / 40 %", 90.0), (LEARNED, 114.0), (LEARNED, 120.6)]
    table = pd.DataFrame(rows, columns=["taxes", "welfare"])
    found = premium(table)
    assert found.best == "20 % / 20 %" and found.percent == pytest.approx(15.0)
    _, low, high = unpaired(1.15 * np.array([[100.0], [104.0]]), np.array([[114.0], [120.6]]))
    assert [found.low, found.high] == pytest.approx([15.0 + low[0] / 1.02, 15.0 + high[0] / 1.02])
    assert np.isnan(premium(table.assign(welfare=-table["welfare"])).percent)
    assert np.isnan(premium(table.head(3)).percent)


def test_a_third_tax_is_drawn_at_its_best(monkeypatch):
    monkeypatch.setattr(taxes, "GOVERNMENT_CHOICE", (*taxes.GOVERNMENT_CHOICE, "consumption_tax"))
    monkeypatch.setattr(taxes, "OTHERS", ["consumption_tax"])
    rates = [(a, b, c) for a in (0.0, 0.2) for b in (0.0, 0.4) for c in (0.0, 0.1)]
    names = [f"income tax {a:g}, corporate tax {b:g}, consumption tax {c:g}" for a, b, c in rates]
    rewards = {name: {"government": float(n)} for n, name in enumerate(names)}
    pairs = taxes.tax_pairs({"rewards": rewards, "gains": dict.fromkeys(names, 0.0)})
    assert pairs["government"].tolist() == [1.0, 3.0, 5.0, 7.0] and list(pairs) == [*taxes.PAIR, "government", "gain"]
    assert len(taxes.surface(pairs, {"government": "Welfare"}).data) == 2
    assert len(taxes.laffer(pairs, {"government": "Welfare"}).data) == 2


class Hyperbolic:
    """Consumers who ask for 100 / p units of a good in expectation, work in proportion to the sum of wages, and choose
    an employer in proportion to its wage."""

    def probabilities(self, states: np.ndarray, allowed: torch.Tensor | None) -> torch.Tensor:
        prices, wages = (states[..., columns] for columns in (ECONOMY.public.prices, ECONOMY.public.wages))
        asked = np.divide(100.0, prices, out=np.ones_like(prices), where=prices > 0)
        heads = []
        for good in range(ECONOMY.num_firms):  # one unit or none
            share = asked[..., good, None]
            heads.append(np.concatenate([1 - share, share, np.zeros((*share.shape[:-1], 9))], axis=-1))
        paid = wages.sum(axis=-1, keepdims=True)
        most = paid / 1000.0
        hours = np.concatenate([1 - most, np.zeros((*most.shape[:-1], 3)), most], axis=-1)
        return torch.as_tensor(np.concatenate([*heads, hours, wages / np.maximum(paid, 1e-9)], axis=-1))


def test_elasticities_of_known_functions():
    states = np.zeros((3, 4, ECONOMY.public.size + 2))
    states[..., ECONOMY.public.prices], states[..., ECONOMY.public.wages] = 500.0, 22.0
    found: dict[str, list] = {}
    for each in elasticities(ECONOMY, Hyperbolic(), states):  # type: ignore[arg-type]
        found.setdefault(each.quantity, []).append((each.low, each.high, each.each))
    demand, labor, hours, together = found.values()
    assert [row[:2] for row in demand] == [(p, p + 500.0) for p in range(0, 2500, 500)]
    for _, _, each in demand[1:]:
        np.testing.assert_allclose(each, [-1.0, -1.0])
    for _, _, each in labor:  # hours ∝ w + 22, share w / (w + 22)
        np.testing.assert_allclose(each, [1.0, 1.0])
    for low, high, each in hours:
        np.testing.assert_allclose(each, (high + low) / (high + low + 44.0))
    for _, _, each in together:
        np.testing.assert_allclose(each, [1.0])


def test_nothing_asked_for_has_no_elasticity():
    class Nothing(Hyperbolic):
        def probabilities(self, states: np.ndarray, allowed: torch.Tensor | None) -> torch.Tensor:
            chances = super().probabilities(states, allowed)
            chances[..., :22] = torch.as_tensor([1.0, *[0.0] * 10] * 2)
            return chances

    states = np.full((1, 4, ECONOMY.public.size + 2), 11.0)
    assert all(np.isnan(each.each).all() for each in elasticities(ECONOMY, Nothing(), states)[:5])  # type: ignore[arg-type]


def test_an_experiment_compares_its_runs(tmp_path: Path):
    """Ten percent more to eat are worth that to those of the first run; fixed taxes stand beside learned ones."""
    small = ["train.num_episodes=3", "train.batch_size=4", "train.save_dense_every=1", "world.maxtime=3"]
    run = trained_run(tmp_path / "runs", *small, "agents.num_consumers=5", "agents.num_firms=2")
    more = Path(shutil.copytree(run.path, run.path.with_name("rollout-9999999999-1")))
    (more / "manifest.json").unlink()
    hparams = more / "hparams.yaml"
    hparams.write_text(hparams.read_text().replace("\nworld:", "\n  frozen_government_action: 7\nworld:", 1))
    file = more / "episode_final_consumer.npz"
    arrays = dict(np.load(file))
    np.savez(file, **{**arrays, "aux_array": arrays["aux_array"] * np.float32(1.1)})
    page = tmp_path / "page.html"
    assert main(["report", str(run.path.parent), "-o", str(page)]) == 0
    text = page.read_text()
    assert 'id="fiscal"' in text and "The best of the fixed taxes are 20 % / 20 %; welfare under learned" in text
    row = text[text.index('id="welfare"') :].split("rollout-9999999999-1</td>", 1)[1].split("</tr>", 1)[0]
    values = [part.split('"', 1)[0] for part in row.split('data-value="')[1:]]
    assert float(values[5]) == pytest.approx(10.0, abs=0.01), values
