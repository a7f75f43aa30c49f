"""The report: accounts that close, inequality by hand, and a page that is one file and says what is missing."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import xarray as xr
from economies import make_economy, random_actions
from scipy import stats
from trainers import trained_run

from rbc_warp.__main__ import main
from rbc_warp.analysis.inequality import gini, lorenz
from rbc_warp.analysis.national import national_accounts, residuals
from rbc_warp.analysis.relations import regress
from rbc_warp.analysis.report.drawing import arrange, cell, grid
from rbc_warp.analysis.rollouts import VARIABLES, load_rollout, variables
from rbc_warp.config import load_config
from rbc_warp.economy import reference
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.economy.parameters import Economy
from rbc_warp.equilibrium.best_response import quick_verdict
from rbc_warp.equilibrium.results import Results, without_details
from rbc_warp.errors import RunFileError
from rbc_warp.runs.episodes import Episode
from rbc_warp.runs.folder import RunDir

QUICK = ["train.num_episodes=12", "train.batch_size=4", "train.save_dense_every=10", "world.maxtime=3"]
SMALL = ["agents.num_consumers=5", "agents.num_firms=2", "world.initial_stocks=20"]
SECTIONS = (
    "training",
    "economy",
    "accounts",
    "inequality",
    "welfare",
    "fiscal",
    "policies",
    "equilibrium",
    "configuration",
)


def rollout_of(economy: Economy, seed: int) -> xr.Dataset:
    """A rollout of random actions, played by the reference."""
    actions = random_actions(economy, 3, economy.num_periods, seed)
    played = reference.rollout(economy, actions)
    episodes = {
        agent: Episode(found["states"], actions[agent], found["rewards"], np.empty(0), found["aux_array"])
        for agent, found in played.items()
    }
    values = variables(economy, {agent: episodes[agent] for agent in AGENT_TYPES})
    return xr.Dataset(
        {name: (dims, values[name]) for name, (dims, _, _) in VARIABLES.items()},
        coords={
            "episode": np.arange(3),
            "period": np.arange(economy.num_periods),
            "firm": np.arange(economy.num_firms),
        },
    )


@pytest.mark.parametrize(
    ("seed", "changes"),
    [
        (0, {}),
        (1, {"open_": False, "interest_rate": 0.1}),
        (2, {"interest_rate": 0.05, "initial_inventory": 30.0}),
        (3, {"boost_firm_reward_factor": 1.0, "initial_firm_budget": -500.0, "budget_drip": 5.0}),
    ],
)
def test_gdp_is_the_same_by_production_expenditure_and_income(seed, changes) -> None:
    economy = make_economy(8, 3, **{"initial_inventory": 20.0, **changes})
    rollout = rollout_of(economy, seed)
    accounts = national_accounts(economy, rollout)
    worth = (rollout["prices"] * rollout["production"]).sum("firm")
    for side in ("production", "expenditure", "income"):
        np.testing.assert_allclose(accounts[f"gdp_{side}"], worth, rtol=1e-9, atol=1e-6)
    assert float(worth.max()) > 0 and float(abs(accounts["inventory_change"]).max()) > 0
    assert max(residuals(accounts).values()) < 1e-12
    # What consumers can spend explains their budgets: the same flows, seen from the other side.
    budget = rollout["consumer_budget"].values
    spent = (rollout["consumption"].values * rollout["prices"].values[:, :, None]).sum(axis=3)
    after = budget[:, :-1] + (accounts["disposable_income"].values - spent)[:, :-1]
    after += economy.interest_rate * np.maximum(after, 0.0)
    np.testing.assert_allclose(budget[:, 1:], after, rtol=1e-9, atol=1e-6)
    for broken in ("consumption", "firm_budget", "wage_income", "production"):
        wrong = rollout.copy(deep=True)
        wrong[broken][:, 1] *= 1.01
        assert max(residuals(national_accounts(economy, wrong)).values()) > 1e-9, broken


@pytest.mark.parametrize("open_", [1, 0])
def test_gdp_closes_in_the_files_of_a_trained_run(tmp_path: Path, open_: int) -> None:
    run = trained_run(tmp_path, *QUICK, *SMALL, f"world.use_importer={open_}")
    for label in run.episode_labels():
        rollout = load_rollout(run.path, label)
        accounts = national_accounts(Economy.from_config(load_config(run.hparams_path)), rollout)
        assert float(accounts["gdp_production"].max()) > 0 and (float(rollout["exports"].max()) > 0) == bool(open_)
        assert max(residuals(accounts).values()) < 1e-6


def test_shares_and_concentration_by_hand() -> None:
    economy = make_economy(8, 4)
    accounts = national_accounts(economy, rollout_of(economy, 5))
    known = accounts["concentration"].values
    known = known[np.isfinite(known)]
    assert known.size and (known >= 0.25 - 1e-12).all() and (known <= 1.0 + 1e-12).all()
    paid = accounts["labor_share"] * accounts["gdp_production"]
    np.testing.assert_allclose(paid, accounts["compensation"].where(accounts["gdp_production"] != 0))


def test_gini_and_lorenz_by_hand() -> None:
    people, share = lorenz(np.array([3.0, 1.0, 0.0, 4.0]))
    np.testing.assert_allclose(people, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(share, [0, 0, 1 / 8, 4 / 8, 1])
    assert gini(np.array([3.0, 1.0, 0.0, 4.0])) == pytest.approx(0.4375)  # Σ|x−y| / (2 n² mean) = 28 / 64
    assert gini(np.full(7, 2.5)) == pytest.approx(0.0)
    assert gini(np.array([0.0] * 9 + [1.0])) == pytest.approx(0.9)
    assert gini(np.array([-1.0, 0.0, 2.0])) == pytest.approx(2.0)  # in debt: above 1
    assert np.isnan(gini(np.array([-2.0, 1.0]))) and np.isnan(gini(np.zeros(3)))


def test_a_regression_and_its_interval() -> None:
    x = np.array([1.0, 2.0, 3.0, 5.0])
    table = pd.DataFrame({"x": x, "y": 2 * x + [0.1, -0.1, 0.2, 0.0], "same": 1.0})
    line = regress(table, "x", "y")
    fit = stats.linregress(table["x"], table["y"])
    assert (
        line is not None and line.slope == pytest.approx(fit.slope) and line.r_squared == pytest.approx(fit.rvalue**2)
    )
    # The interval at x = 0 is that of the intercept.
    _, half = line.predict(np.array([0.0]))
    assert half[0] == pytest.approx(stats.t.ppf(0.975, 2) * fit.intercept_stderr)
    assert regress(table, "x", "same") is None and regress(table.head(2), "x", "y") is None


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return trained_run(tmp_path_factory.mktemp("experiment"), *QUICK, *SMALL)


@pytest.fixture
def run(trained: RunDir, tmp_path: Path) -> RunDir:
    """A copy, to change files of."""
    return RunDir(shutil.copytree(trained.path, tmp_path / "experiment" / trained.path.name))


def scan_taxes(run: RunDir) -> None:
    """Add a scan of all tax pairs, as ``run_best_response.py --scan`` does."""
    economy = Economy.from_config(load_config(run.hparams_path))
    names = [f"income tax {a:g}, corporate tax {b:g}" for a, b in economy.government_choices]
    rewards = {name: {"consumer": 1.0, "firm": 2.0, "government": float(n)} for n, name in enumerate(names)}
    results = Results.read(run)
    gains = dict.fromkeys(names, 0.0)
    place = {"checkpoint": "latest", "iteration": 11, "agent": "government", "index": None, "greedy": False}
    low, high = dict.fromkeys(names, -1.0), dict.fromkeys(names, 1.0)
    low[names[0]] = 0.5
    results.add_scan({**place, "gains": gains | {names[0]: 0.6}, "low": low, "high": high, "rewards": rewards})
    results.write(run)


class Outline(HTMLParser):
    """What a page refers to, its sections, and the JSON of its figures."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.sections: list[str] = []
        self.figures: list[dict] = []
        self._in_figure = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.references += [given[name] or "" for name in ("src", "href") if name in given]
        self.references += [tag] * (tag in ("link", "img", "iframe", "base"))
        self.sections += [given.get("id") or ""] * (tag == "section")
        self._in_figure = given.get("type") == "application/json"

    def handle_data(self, data: str) -> None:
        if self._in_figure:
            self.figures.append(json.loads(data))
            self._in_figure = False


def report(folder: Path, target: Path) -> str:
    assert main(["report", str(folder), "-o", str(target)]) == 0
    return target.read_text()


def missing(page: str) -> list[str]:
    return re.findall(r'class="missing">(.*?)</p>', page, re.DOTALL)


def test_the_page_of_a_run_is_one_file_and_says_what_is_missing(run: RunDir, tmp_path: Path) -> None:
    page = report(run.path, tmp_path / "page.html")
    outline = Outline(page)
    assert tuple(outline.sections) == SECTIONS
    assert outline.references == [f"#{name}" for name in SECTIONS] and page.count("* plotly.js v") == 1
    absent = missing(page)
    assert len(absent) == 2 and "--scan" in absent[0] and "--verdict" in absent[1]
    scan_taxes(run)
    complete = Outline(report(run.path, tmp_path / "page.html"))
    assert len(complete.figures) == len(outline.figures) + 3

    # A run of the public implementation has no metrics; one that was stopped early has no rollout.
    run.metrics_path.unlink()
    run.status_path.unlink()
    assert len(missing(report(run.path, tmp_path / "page.html"))) == 2
    for path in run.path.glob("episode_*"):
        path.unlink()
    page = report(run.path, tmp_path / "page.html")
    assert tuple(Outline(page).sections) == SECTIONS and len(missing(page)) == 7


def test_a_verdict_is_drawn_agent_by_agent_and_action_by_action(run: RunDir, tmp_path: Path) -> None:
    config = load_config(run.hparams_path)
    quick_verdict(run, "host", quiet=True)
    scan_taxes(run)
    page = report(run.path, tmp_path / "page.html")
    kept = json.loads(run.best_response_path.read_text())["verdict"]
    figures = Outline(page).figures
    heats = [trace for figure in figures for trace in figure["wide"]["data"] if trace["type"] == "heatmap"]
    for agent, table in kept["screening"].items():
        (heat,) = [one for one in heats if tuple(one["y"]) == tuple(table["coords"]["action"]["data"])]
        assert list(heat["x"]) == ["constant", *(f"period {t}" for t in range(config.world.maxtime))]
        count = len(kept["agents"][agent])
        (drawn,) = [figure for figure in figures if heat in figure["wide"]["data"]]
        assert len(drawn["wide"]["layout"].get("updatemenus", [])) == (1 if count > 1 else 0)
    assert f"under {len(Economy.from_config(config).government_choices) - 1} of the" in page
    assert "[+0.5, +1]" in page

    # Where nobody had a choice there is nothing to draw; files of earlier versions have neither.
    results = Results.read(run)
    results.verdicts[-1] |= {"agents": {}, "screening": {}}
    results.write(run)
    assert len(Outline(report(run.path, tmp_path / "page.html")).figures) < len(figures)
    results = Results.read(run)
    results.verdicts = [without_details(verdict) for verdict in results.verdicts]
    for end in ("low", "high"):
        del results.scans[0][end]
    results.write(run)
    page = report(run.path, tmp_path / "page.html")
    assert len(Outline(page).figures) < len(figures) and "cannot be told from that under" not in page
    assert any("makes it anew" in text for text in missing(page))


@pytest.mark.parametrize(
    "where", [("verdict", "screening", "consumer", "data_vars", "mean", "data"), ("scans", 0, "low")]
)
def test_details_of_another_shape_are_damage(run: RunDir, tmp_path: Path, where: tuple) -> None:
    quick_verdict(run, "host", quiet=True)
    scan_taxes(run)
    content = json.loads(run.best_response_path.read_text())
    part = content
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = type(part[where[-1]])()
    run.write_best_response(content)
    with pytest.raises(RunFileError, match=r"best_response\.json"):
        Results.read(run)


def test_an_experiment_is_a_sortable_table_with_regressions(run: RunDir, tmp_path: Path) -> None:
    for number in range(1, 4):
        copy = shutil.copytree(run.path, run.path.with_name(f"rollout-{number}-1"))
        (copy / "manifest.json").unlink()
        hparams = copy / "hparams.yaml"
        hparams.write_text(hparams.read_text().replace("base_seed:", f"base_seed: {number} #", 1))
        lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            line["economy"]["price"] += number**2
        (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        hparams.write_text(hparams.read_text().replace("\n  lr: ", f"\n  lr: {number}.0e-3 #", 1))
    page = report(run.path.parent, tmp_path / "page.html")
    assert Outline(page).sections == ["runs", "welfare", "equilibrium", "configuration"]
    assert "train.lr" in page and 'class="sortable"' in page and "rollout-3-1" in page


@pytest.mark.parametrize("name", ["episode_final_firm.npz", "metrics.jsonl", "best_response.json", "hparams.yaml"])
def test_a_damaged_file_is_one_message(run: RunDir, tmp_path: Path, capsys, name: str) -> None:
    (run.path / name).write_bytes(b"{nonsense\n")
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run.path), "-o", str(tmp_path / "page.html")])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and name in error and "Traceback" not in error
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--png", "hparams.yaml"], "hparams.yaml: is a file; give --png a folder"),
        (["--png", "hparams.yaml/png"], "hparams.yaml/png: cannot be written: Not a directory"),
        (["--png", "png", "-o", "page.svg"], "give an --output that ends in .html"),
        (["--png", "png"], "BROWSER_PATH=/nowhere/chromium cannot be run; install it (apt-get install chromium"),
    ],
)
def test_what_keeps_figures_from_files_is_told_before_the_page_is_made(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys, words: list[str], says: str
) -> None:
    monkeypatch.chdir(run.path)
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/chromium")
    with pytest.raises(SystemExit) as ended:
        main(["report", ".", *words])
    assert ended.value.code == 2 and says in capsys.readouterr().err and not Path("report.html").exists()


def test_panels_flow_on_a_narrow_page_and_keep_their_titles_and_bars() -> None:
    figure = grid([f"Panel {n} [unit]" for n in range(5)], columns=4)
    for number in range(5):
        figure.add_trace(go.Heatmap(z=[[number, 1]]), **cell(number, 4))
    for drawn, columns in ((arrange(figure), 4), (arrange(figure, narrow=True), 2)):
        height = drawn.layout.height - drawn.layout.margin.t - drawn.layout.margin.b
        for number, trace in enumerate(drawn.data):
            x, y, title = drawn.layout[f"xaxis{number + 1}"], drawn.layout[f"yaxis{number + 1}"], trace.colorbar
            note = drawn.layout.annotations[number]
            assert (note.x, note.y) == (x.domain[0], y.domain[1]) and note.text.startswith(f"Panel {number}")
            assert x.domain[1] < title.x < 1.0 and title.y == y.domain[1]
            if number >= columns:
                above = drawn.layout[f"yaxis{number + 1 - columns}"].domain[0]
                assert (above - y.domain[1]) * height > 40
