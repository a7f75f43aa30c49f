"""Baseline against reform."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from plotly.offline import get_plotlyjs
from test_best_response import run_dir, trained  # noqa: F401 (fixtures)

from rbc_warp.__main__ import main
from rbc_warp.analysis.compare import compare
from rbc_warp.config import load_config
from rbc_warp.economy.reference import utility
from rbc_warp.economy.welfare import consumption_equivalent
from rbc_warp.runs.folder import RunDir


@pytest.mark.parametrize("crra", [0.0, 0.1, 1.0, 3.0])
@pytest.mark.parametrize("rise", [-0.4, 0.0, 0.25, 2.0])
def test_a_consumption_equivalent_is_the_rise_that_brings_the_gain(crra: float, rise: float) -> None:
    units = np.random.default_rng(0).uniform(0.0, 5.0, (6, 4, 3))
    gain = float((utility((1 + rise) * units, crra) - utility(units, crra)).sum(axis=-1).mean())
    assert consumption_equivalent(units, gain, crra) == pytest.approx(100 * rise, abs=1e-6)


def test_what_no_consumption_is_worth_is_not_known() -> None:
    units = np.ones((2, 2, 2))
    assert consumption_equivalent(units, -10.0, 0.1) is None  # more than all of it
    assert consumption_equivalent(0.0 * units, 0.1, 0.1) is None  # a share of nothing


def test_a_run_differs_from_itself_in_nothing(run_dir: Path) -> None:  # noqa: F811
    found = compare(RunDir(run_dir), RunDir(run_dir), episodes=6, backend="host")
    assert all(each.change.low == each.change.mean == each.change.high == 0.0 for each in found.differences)
    assert found.winners == found.losers == 0.0 and all(group.equivalent == 0.0 for group in found.groups)


def test_taxes_of_the_reform_are_those_that_are_given(run_dir: Path, tmp_path: Path, capsys) -> None:  # noqa: F811
    choices = load_config(run_dir / "hparams.yaml").agents
    income, corporate = choices.income_tax_choices[-1], choices.corporate_tax_choices[0]
    page, figures = tmp_path / "page.html", tmp_path / "figures.json"
    words = [str(run_dir), "--taxes", str(income), str(corporate), "--episodes", "8", "--backend", "host"]
    assert main(["compare", *words, "-o", str(page), "--json", str(figures)]) == 0
    said = capsys.readouterr().out
    found = json.loads(figures.read_text())
    by_name = {each["figure"]: each for each in found["differences"]}
    assert by_name["income tax"]["reform"] == pytest.approx(income)
    assert by_name["corporate tax"]["reform"] == pytest.approx(corporate)
    for each in found["differences"]:
        change = each["change"]
        assert change["mean"] == pytest.approx(each["reform"] - each["base"], abs=1e-6 * max(1.0, abs(each["base"])))
        assert change["low"] <= change["mean"] <= change["high"] and each["figure"] in said
    html = page.read_text().replace(get_plotlyjs(), "")
    assert "Baseline and reform" in html and not re.search(r"(src|href)=.https?:", html)

    # Groups cover every consumer once, in order.
    members = [n for group in found["groups"] for n in range(group["first"], group["last"] + 1)]
    assert members == list(range(load_config(run_dir / "hparams.yaml").agents.num_consumers))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--taxes", "0.123", "0"], "no such pair among agents.income_tax_choices"),
        (["--taxes", "0", "0", "--episodes", "1"], "an interval needs 2 or more"),
        ([], "name a REFORM, or give --taxes"),
        (["--taxes", "0", "0", "-o", "page.png"], "ends in .html"),
    ],
)
def test_bad_calls_get_one_message(run_dir: Path, words: list[str], says: str, capsys) -> None:  # noqa: F811
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(run_dir), *words])
    assert ended.value.code == 2 and says in capsys.readouterr().err


def test_runs_of_other_sizes_are_refused(run_dir: Path, tmp_path: Path) -> None:  # noqa: F811
    other = RunDir.create(tmp_path)
    config = load_config(run_dir / "hparams.yaml")
    other.write_hparams(load_config(config, ["world.maxtime=5"]).to_dict())
    with pytest.raises(ValueError, match=r"world\.maxtime is \d+ and 5"):
        compare(RunDir(run_dir), other, backend="host")
