"""Findings: each rule says reproduced, not reproduced and cannot tell where it should; and what the page says first."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from rbc_warp.analysis.audit import Activity
from rbc_warp.analysis.claims import (
    CANNOT_TELL,
    NOT_REPRODUCED,
    REPRODUCED,
    Claim,
    Question,
    above,
    below,
    difference,
    difference_of_shares,
    mean,
    much_more_often,
    share,
)
from rbc_warp.analysis.equivalence import distance, same_conclusions
from rbc_warp.analysis.findings import (
    closed_economy,
    curriculum,
    open_economy,
    questions,
    relations,
    sizes,
    taxes,
    where,
)
from rbc_warp.analysis.gaps import Gap, Point
from rbc_warp.analysis.outcomes import FIGURES, KEYS, Outcome, Shift, Tuned
from rbc_warp.analysis.relations import within_groups
from rbc_warp.analysis.results_page import page_text, write_page
from rbc_warp.equilibrium.game import Estimate
from rbc_warp.runs.folder import RunDir

WORKING, IDLE, SHUT = Activity(400.0, 1040.0, 70.0), Activity(2.0, 1040.0, 70.0), Activity(400.0, 1040.0, 0.001)
BASE = {"agents.num_consumers": 100, "agents.num_firms": 10, "world.use_importer": 1, "train.precision": "auto"}
NOISE = (-1.0, 1.0, 0.5, -0.5, 0.0)


def point(passed: bool = True, high: float = 0.9) -> Point:
    """A full verdict whose firms' upper end is so large, in bars."""
    gaps = {
        "consumer": Gap(1.0, 1.5, True, ""),
        "firm": Gap(5.0 * high, 10.0 * high, passed, ""),
        "government": Gap(None, None, True, "no choice"),
    }
    return Point(RunDir("run", must_exist=False), 0, 99, 1000, "full", passed, gaps)


def run(
    seed: int, activity: Activity = WORKING, passed: bool | None = True, high: float = 0.9, **figures: Any
) -> Outcome:
    """A finished run: settings have a dot in their names, figures do not."""
    settings = {**dict.fromkeys(KEYS), **BASE, **{key: value for key, value in figures.items() if "." in key}}
    values = {**dict.fromkeys(FIGURES, 1.0), "welfare": 3000.0, **{k: v for k, v in figures.items() if "." not in k}}
    points = () if passed is None else (point(passed, high),)
    return Outcome(f"rollout-{seed}", seed, settings, values, activity, points, 99)


def runs(number: int, spread: float = 0.0, settings: dict[str, Any] | None = None, **figures: float) -> list[Outcome]:
    """Runs whose figures scatter by a share of themselves."""
    return [
        run(n, **{name: value * (1.0 + spread * NOISE[n % 5]) for name, value in figures.items()}, **(settings or {}))
        for n in range(number)
    ]


def answer(question: Question, start: str) -> str:
    return the(question, start).answer


def the(question: Question, start: str) -> Claim:
    (found,) = [claim for claim in question.claims if claim.text.startswith(start)]
    return found


# Rules and numbers


@pytest.mark.parametrize(
    ("rule", "interval", "expected"),
    [
        (above(0.0), (1, 3), REPRODUCED),
        (above(0.0), (-3, -1), NOT_REPRODUCED),
        (above(0.0), (-1, 1), CANNOT_TELL),
        (below(0.0), (-3, -1), REPRODUCED),
        (below(0.0), (1, 3), NOT_REPRODUCED),
        (below(0.0), (-1, 1), CANNOT_TELL),
        (much_more_often, (0.1, 0.6), REPRODUCED),
        (much_more_often, (-0.4, 0.4), NOT_REPRODUCED),
        (much_more_often, (-0.1, 0.6), CANNOT_TELL),
    ],
)
def test_rules(rule: Callable[[Estimate], str], interval: Sequence[float], expected: str) -> None:
    assert rule(Estimate(sum(interval) / 2, *interval)) == expected


def test_intervals_are_those_of_the_books() -> None:
    wilson = share([True] * 15 + [False] * 133)  # Newcombe (1998), 15 of 148
    assert wilson and (wilson.low, wilson.high) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    gap = difference_of_shares([True] * 56 + [False] * 14, [True] * 48 + [False] * 32)  # the same, 56/70 and 48/80
    assert gap and (gap.mean, gap.low, gap.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert mean([1.0, 2.0]) is None and share([]) is None and difference([1.0, 2.0], [1.0, 2.0, 3.0]) is None
    assert difference([2.0, 2.0, 2.0], [1.0, 1.0, 1.0]) == Estimate(1.0, 1.0, 1.0)
    x, y = [1.0, 2.0, 3.0, 7.0, 8.0, 9.0], [5.0, 7.0, 9.5, 1.0, 3.0, 4.5]
    names = ["a"] * 3 + ["b"] * 3
    within = within_groups(x, y, names)
    design = np.column_stack([x, [name == "a" for name in names], [name == "b" for name in names]]).astype(float)
    solution, residual, *_ = np.linalg.lstsq(design, np.array(y), rcond=None)
    error = (residual[0] / 3 * np.linalg.inv(design.T @ design)[0, 0]) ** 0.5
    assert within and within.mean == pytest.approx(solution[0])
    assert within.high - within.mean == pytest.approx(stats.t.ppf(0.975, 3) * error)
    assert within_groups([1.0, 1.0], [1.0, 2.0], ["a", "a"]) is None
    one, two = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9], [27.1, 22.0, 20.8, 23.4]
    welch = difference(one, two, 0.9)
    expected = stats.ttest_ind(one, two, equal_var=False).confidence_interval(0.9)
    assert welch and (welch.low, welch.high) == pytest.approx(tuple(expected))


# Questions


def test_without_runs_nothing_can_be_told_and_the_page_says_so(tmp_path: Path) -> None:
    found = questions({})
    assert {claim.answer for question in found for claim in question.claims} == {CANNOT_TELL}
    assert [question.number for question in found] == list(range(1, 9))
    text = page_text(found, {}, {"open": 10, "closed": 5}, {})
    assert "**0 of 15 runs are finished**: open 0 of 10, closed 0 of 5." in text
    assert f"## Cannot tell\n\nToo few runs yet for {sum(len(each.claims) for each in found)} claims" in text
    assert "## Reproduced" not in text


@pytest.mark.parametrize(
    ("ends", "expected"), [((9, 8, 7), REPRODUCED), ((1, 2, 0), NOT_REPRODUCED), ((9, 1, 5), CANNOT_TELL)]
)
def test_the_published_sequence(ends: Sequence[float], expected: str) -> None:
    found = [replace(run(seed), shifts=(Shift("price [money]", 5.0, 6.0, end, "up"),)) for seed, end in enumerate(ends)]
    question = open_economy({"open": found})
    assert answer(question, "When firms learn, price goes up, at its end") == expected
    assert answer(question, "When firms learn, price goes up, in the first sixth") == REPRODUCED


@pytest.mark.parametrize(
    ("seeds", "worst", "expected"),
    [(10, 9.0, REPRODUCED), (9, 9.0, CANNOT_TELL), (10, 11.0, CANNOT_TELL), (3, 14.0, NOT_REPRODUCED)],
)
def test_table_3_is_of_the_worst_of_ten_seeds(seeds: int, worst: float, expected: str) -> None:
    def one(seed: int, gain: float) -> Outcome:
        tuned = Tuned("firm", 99, gain, gain - 2.0, gain + 0.5, 100.0), Tuned("firm", 1560, 20.0, 19.0, 21.0, 100.0)
        return replace(run(seed), tuned=tuned)

    question = open_economy({"open": [one(0, worst), *(one(seed, 1.0) for seed in range(1, seeds))]})
    (found, _) = [each for each in question.claims if each.text.startswith("Table 3: fine-tuned, the firm type")]
    assert found.answer == expected
    assert found.number and found.number.mean == pytest.approx(worst) and found.runs == seeds
    assert (
        seeds < 10
        or answer(question, "Fig. 4: what the firm type gains by fine-tuning shrinks from iteration 1,560")
        == REPRODUCED
    )
    assert (
        answer(question, "Fig. 4: what the consumer type gains by fine-tuning shrinks from iteration 1,560")
        == CANNOT_TELL
    )


def test_unseen_seeds_are_judged_apart() -> None:
    unseen = [run(10 + seed, passed=seed >= 9) for seed in range(10)]
    question = open_economy({"open": runs(10), "unseen": unseen})
    assert (
        answer(question, "No agent alone, nor a type fine-tuned, gains more than the published bars (types")
        == REPRODUCED
    )
    apart = the(question, "No agent alone, nor a type fine-tuned, gains more than the published bars (seeds")
    assert apart.answer == NOT_REPRODUCED and apart.number and apart.number.mean == 0.1
    assert apart.seeds == tuple(range(10, 20))


@pytest.mark.parametrize(("equivalent", "expected"), [(False, REPRODUCED), (True, NOT_REPRODUCED), (None, CANNOT_TELL)])
def test_several_equilibria_by_cross_play(equivalent: bool | None, expected: str) -> None:
    gap = {"mean": 30.0, "low": 15.0, "high": 45.0}
    content = {
        "equivalent": equivalent,
        "sentence": "The 2 runs are …",
        "runs": [{"path": "x/rollout-0"}, {"path": "x/rollout-1"}],
        "mixtures": [{"values": {"government": {"mean": 3000.0}}}],
        "differences": {"government": [gap]},
    }
    found = the(open_economy({"open": [run(0), run(1), run(2)]}, content), "Seeds end in several")
    assert found.answer == expected and found.runs == 2
    assert found.number and found.number.mean == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("activities", "expected"),
    [
        ([IDLE, SHUT, IDLE, IDLE, SHUT], REPRODUCED),
        ([WORKING] * 5, NOT_REPRODUCED),
        ([IDLE, IDLE, WORKING, WORKING, WORKING], CANNOT_TELL),
        ([IDLE, IDLE], CANNOT_TELL),
    ],
)
def test_collapse_of_the_closed_economy(activities: list[Activity], expected: str) -> None:
    closed = [run(seed, activity) for seed, activity in enumerate(activities)]
    assert answer(closed_economy({"closed": closed}), "The closed economy mostly") == expected


@pytest.mark.parametrize(
    ("without", "high", "collapsed", "farther"),
    [
        ([IDLE] * 5, 9.0, REPRODUCED, REPRODUCED),
        ([WORKING] * 5, 0.3, NOT_REPRODUCED, NOT_REPRODUCED),
        ([IDLE, WORKING, WORKING], 1.0, CANNOT_TELL, CANNOT_TELL),
    ],
)
def test_curriculum_against_none(without: list[Activity], high: float, collapsed: str, farther: str) -> None:
    spread = (0.7, 1.4, 1.0, 1.1, 0.8)
    bare = [run(n, activity, high > 1, high * spread[n]) for n, activity in enumerate(without)]
    trained = [run(n, high=0.9 * spread[n % 5]) for n in range(10)]
    question = curriculum({"no_curriculum": bare, "unseen": trained, "closed": trained})
    assert answer(question, "The open economy collapses") == collapsed
    assert answer(question, "With the same samples, the open") == farther
    assert answer(question, "The closed economy collapses") == CANNOT_TELL  # all those without a curriculum are open


def test_distance_is_in_bars_and_bounded() -> None:
    assert distance(point(high=2.0)) == pytest.approx(2.0)
    lost = Point(RunDir("run", must_exist=False), 0, 9, 1, "full", False, {"firm": Gap(None, None, False, "")})
    assert distance(lost) == 100.0


@pytest.mark.parametrize(
    ("learned", "spread", "expected"),
    [(3600.0, 0.002, REPRODUCED), (3000.0, 0.002, NOT_REPRODUCED), (3450.0, 0.2, CANNOT_TELL)],
)
def test_learned_against_fixed_taxes(learned: float, spread: float, expected: str) -> None:
    fixed = [
        run(seed, welfare=welfare * (1.0 + spread * NOISE[seed]), **{"agents.frozen_government_action": action})
        for action, welfare in ((0, 5000.0), (7, 3000.0), (14, 2500.0), (21, 2000.0))
        for seed in range(3)
    ]
    question = taxes({"open": runs(5, spread, welfare=learned), "fixed_taxes": fixed})
    found = the(question, "Learned taxes bring at least 15 % more welfare than the best fixed of 20, 40")
    assert found.answer == expected and found.note.endswith("20 % / 20 %")
    everything = the(question, "Learned taxes bring at least 15 % more welfare than the best fixed, none")
    assert everything.note.endswith("0 % / 0 %") and everything.answer != REPRODUCED


def test_learned_against_fixed_taxes_while_others_stay() -> None:
    def scan(worth: float) -> dict[str, float]:
        both = {f"income tax {rate:g}, corporate tax {rate:g}": worth - rate / 10 for rate in (0.2, 0.4, 0.6, 0.8)}
        return {"income tax 0, corporate tax 0": 1.001, **both}

    question = taxes({"open": [replace(run(n), scan=scan(0.9 + n / 1000)) for n in range(4)]})
    found = the(question, "Learned taxes bring at least 15 % more welfare than the best fixed of 20 to 80 %")
    assert found.answer == NOT_REPRODUCED and found.number
    assert found.number.mean == pytest.approx(100 * (1 / 0.8815 - 1), rel=1e-3)
    everything = answer(question, "Learned taxes bring at least 15 % more welfare than the best fixed of all 36")
    assert everything == NOT_REPRODUCED


def test_relations_over_solutions() -> None:
    exports = [
        run(
            n, price=1000.0 + 100 * n, sales=50.0 - n + 0.1 * noise, wage=10.0 + noise, hours=NOISE[n % 4],
            **{"world.importer_price": 500, "world.importer_quantity": n // 3},
        )
        for n, noise in enumerate(3 * NOISE)
    ]  # fmt: skip
    question = relations({"exports": exports})
    priced = the(question, "Where prices are higher")
    assert priced.answer == REPRODUCED and priced.number and priced.number.mean == pytest.approx(-0.01, abs=1e-4)
    assert "r² 0.9997 [0.9992, 0.9999]" in priced.note and "within a quantity -0.01 [" in priced.note
    assert answer(question, "Where wages are higher") in (CANNOT_TELL, NOT_REPRODUCED)
    assert answer(question, "Taxes and welfare") == CANNOT_TELL  # all the same


FIGURES_OF_A_RUN = {"welfare": 3000.0, "price": 2000.0, "wage": 10.0, "hours": 400.0}


@pytest.mark.parametrize(
    ("number", "spread", "change", "expected"),
    [
        (5, 0.005, 1.0, REPRODUCED),
        (5, 0.005, 1.2, NOT_REPRODUCED),
        (5, 0.2, 1.0, CANNOT_TELL),
        (2, 0.0, 1.0, CANNOT_TELL),
        (0, 0.0, 1.0, CANNOT_TELL),
    ],
)
def test_same_conclusions(number: int, spread: float, change: float, expected: str) -> None:
    base = runs(10, spread, **FIGURES_OF_A_RUN)
    other = runs(number, spread, **{**FIGURES_OF_A_RUN, "wage": 10.0 * change})
    found, tables = same_conclusions("…", base, other, ("open", "other"))
    assert found.answer == expected and len(tables) == (number > 0)
    if change != 1.0:
        assert found.number and found.number.mean == pytest.approx(20.0) and found.note == "different: wage"


def test_conclusions_differ_where_distances_do() -> None:
    base = [run(n) for n in range(10)]
    failing = [run(n, passed=False, high=3.0) for n in range(5)]
    found, (table,) = same_conclusions("…", base, failing, ("open",))
    assert found.answer == NOT_REPRODUCED and found.note == "different: distance" and found.unit == "times, distance"
    assert found.number and found.number.mean == pytest.approx(3.0 / 0.9)
    assert table.rows[-1][1:3] == ("10 of 10", "0 of 5")
    near = [run(n, passed=False, high=1.2) for n in range(5)]
    assert same_conclusions("…", base, near, ("open",))[0].answer == REPRODUCED
    unknown = [run(n, passed=None) for n in range(5)]
    assert same_conclusions("…", base, unknown, ("open",))[0].answer == CANNOT_TELL


def test_sizes_are_compared_per_consumer() -> None:
    few = [run(n, welfare=300.0, **{"agents.num_consumers": 10}) for n in range(3)]
    found = sizes({"unseen": [run(n) for n in range(10)], "consumers": few})
    assert answer(found, "10 consumers") == REPRODUCED and answer(found, "30 consumers") == CANNOT_TELL
    assert where(few, "agents.num_consumers", 10) == few


# The page


def test_seeds_are_told_by_their_stretches() -> None:
    found = sizes({"unseen": [run(n) for n in range(10, 20)], "consumers": [run(n) for n in (0, 1, 3)]})
    some = replace(found.claims[0], seeds=(0, 1, 3, *range(10, 20)), runs=13, number=Estimate(1.0, 0.0, 2.0))
    text = page_text([replace(found, claims=[some])], {}, {}, {}, notes={"consumers": "made elsewhere."})
    assert "| 0–1, 3, 10–19 (13 runs) |" in text and "Runs of `consumers`: made elsewhere.\n" in text


def test_what_did_not_reproduce_is_said_first(tmp_path: Path) -> None:
    closed = [run(seed) for seed in range(5)]
    opened = [run(seed) for seed in range(5)]
    content = {"open": opened, "closed": closed}
    page = tmp_path / "results.md"
    files = write_page(page, questions(content), content, {"open": 5, "closed": 5}, commands=["make results"])
    text = page.read_text()
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings[:3] == ["## Not reproduced", "## Cannot tell", "## Reproduced"]
    first = text.index("The closed economy mostly collapses")
    assert text.index("## Not reproduced") < first < text.index("## Cannot tell")
    assert "0 [0, 0.4345] of seeds" in text and "0–4 (5 runs)" in text and "```text\nmake results" in text
    raw = json.loads((tmp_path / "results.json").read_text())
    assert raw["runs"]["closed"] == {"finished": 5, "wanted": 5}
    assert raw["outcomes"]["closed"][0]["activity"]["has_collapsed"] is False
    assert all(path.exists() for path in files)
    assert "](results/gaps.png)" in text and tmp_path / "results" / "gaps.png" in files
