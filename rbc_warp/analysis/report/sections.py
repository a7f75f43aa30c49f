"""The sections of the report: of a run, or of the runs of an experiment, from saved files alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
import yaml
from plotly.io import to_json

from rbc_warp.analysis import picture
from rbc_warp.analysis.fiscal import revenues
from rbc_warp.analysis.gaps import points_of
from rbc_warp.analysis.inequality import gini
from rbc_warp.analysis.national import national_accounts, residuals
from rbc_warp.analysis.relations import FEWEST, relations
from rbc_warp.analysis.report import figures
from rbc_warp.analysis.responses import GOOD, responses
from rbc_warp.analysis.rollouts import load_metrics, load_rollout
from rbc_warp.config import Config, load_config
from rbc_warp.economy import curriculum
from rbc_warp.economy.parameters import Economy
from rbc_warp.economy.reference import Stage
from rbc_warp.equilibrium.request import last_iteration
from rbc_warp.equilibrium.results import PUBLISHED_BARS, Results
from rbc_warp.runs.episodes import read_rollout
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.run import load_policies
from rbc_warp.runs.sweep import varied

CHECKPOINTS = 4
"""Dense rollouts that are shown, spread evenly, the last among them."""
REVENUES = {"revenue": "Revenue", "income_revenue": "from income", "corporate_revenue": "from profits"}
LAST_SHARE = 0.05
"""Share of the logged iterations, the last ones, over which final figures are means."""
PACKAGES = ("rbc-warp", "torch", "numpy", "scipy", "xarray", "pandas", "plotly")


@dataclass
class Section:
    """A heading and what stands below it, in order."""

    key: str
    title: str
    blocks: list[dict[str, Any]] = field(default_factory=list)

    def text(self, text: str) -> None:
        self.blocks.append({"kind": "text", "text": text})

    def figure(self, sentence: str, figure: go.Figure) -> None:
        """A figure, below the sentence that says what to see."""
        self.text(sentence)
        self.blocks.append({"kind": "figure", "json": to_json(figure, validate=False)})

    def table(self, head: list[str], rows: list[list[Any]], sortable: bool = False) -> None:
        self.blocks.append({"kind": "table", "head": head, "rows": rows, "sortable": sortable})

    def missing(self, text: str, command: str) -> None:
        """What is not there, and the command that makes it."""
        self.blocks.append({"kind": "missing", "text": text, "command": command})

    def code(self, text: str) -> None:
        self.blocks.append({"kind": "code", "text": text})


class Source:
    """A run's files, each read once, when it is first asked for."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.config: Config = load_config(run.hparams_path)
        self.economy = Economy.from_config(self.config)

    @cached_property
    def last(self) -> str | None:
        """Label of the last dense rollout."""
        labels = self.run.episode_labels()
        return labels[-1] if labels else None

    @cached_property
    def rollout(self) -> xr.Dataset:
        """The last dense rollout."""
        return load_rollout(self.run.path, self.last)

    @cached_property
    def accounts(self) -> xr.Dataset:
        return national_accounts(self.economy, self.rollout)

    @cached_property
    def results(self) -> Results:
        return Results.read(self.run)

    @cached_property
    def iteration(self) -> int:
        """The iteration of the latest checkpoint."""
        return last_iteration(self.run, self.config)

    @cached_property
    def learning(self) -> list[str]:
        return [name for name, agent in self.economy.agents.items() if not agent.is_frozen]

    @cached_property
    def has_policies(self) -> bool:
        return all(self.run.policy_path(agent, "latest").exists() for agent in self.learning)

    def no_rollout(self, section: Section) -> bool:
        """Say that there is no dense rollout, where there is none."""
        if self.last is None:
            text = "The run holds no dense rollout (episode_….npz) yet; training on to its end writes one:"
            section.missing(text, f"python run_training.py --resume {self.run.path}")
        return self.last is None


def training(source: Source, section: Section) -> None:
    if not source.run.metrics_path.exists():
        text = "There are no metrics of training (metrics.jsonl), as in a run of the public implementation; train one:"
        section.missing(text, "python run_training.py --config configs/rbc.yaml")
        return
    starts = list(picture.phases(source.config))
    section.figure(
        "Rewards, prices, wages, hours, taxes and entropy by iteration. Dotted lines: where firms and the government "
        "begin to learn. See what jumps there, and whether the curves are flat at the end.",
        figures.training(load_metrics(source.run.path), starts),
    )


def economy(source: Source, section: Section) -> None:
    if source.no_rollout(section):
        return
    labels = source.run.episode_labels()
    chosen = np.unique(np.linspace(0, len(labels) - 1, min(CHECKPOINTS, len(labels))).astype(int))
    rollouts = {
        labels[n]: source.rollout if labels[n] == source.last else load_rollout(source.run.path, labels[n])
        for n in chosen
    }
    section.figure(
        f"The {source.economy.num_periods} quarters of an episode at checkpoints (buttons: iterations, 'final' the end "
        "of training). Thin gray lines: firms, means over episodes; blue: the mean over agents and episodes, with the "
        "band that holds 90 % of them. See how prices and wages settle, who is rationed, and where goods and money "
        "pile up.",
        figures.economy(rollouts),
    )


def national(source: Source, section: Section) -> None:
    if source.no_rollout(section):
        return
    accounts, rest = source.accounts, residuals(source.accounts)
    section.figure(
        f"GDP of dense rollout '{source.last}' in three ways, means over episodes: bars are components, the black line "
        "is GDP by production, prices times units made. Each side comes from other saved numbers (hours and capital; "
        "baskets, exports and inventories; wages and firms' budgets). Bars sum to the line, so the difference is zero: "
        f"at most {rest['expenditure']:.0e} by expenditure and {rest['income']:.0e} by income of the terms summed, "
        "the rounding of 32-bit files. Firms turn money into capital that nobody in the economy sells, so it counts as "
        "imported; inventories change at current prices, holding gains stand apart.",
        figures.gdp(accounts),
    )
    mean = accounts[["gdp_production", "gdp_expenditure", "gdp_income"]].mean("episode")
    rows: list[list[Any]] = [[int(period)] for period in mean["period"].values]
    for name in mean:
        for row, value in zip(rows, mean[name].values, strict=True):
            row.append(float(value))
    section.table(["period", "GDP by production", "by expenditure", "by income"], rows)
    section.figure(
        "Labor's share of GDP; the markup α p Y / (w L) of price over the marginal cost of labor, median over firms "
        "and episodes; the Herfindahl index of firms' revenues (1 is a monopoly); the mean hourly wage over the price "
        "level; and gains from holding inventories while prices change. Gaps: nothing was made, sold or paid.",
        figures.indicators(accounts),
    )


def inequality(source: Source, section: Section) -> None:
    if source.no_rollout(section):
        return
    rollout, accounts = source.rollout, source.accounts
    measures = {
        "disposable income": accounts["disposable_income"].sum("period").values,
        "consumption": rollout["consumption"].sum(["good", "period"]).values.astype(float),
        "final wealth": accounts["final_wealth"].values,
        "utility": rollout["consumer_reward"].sum("period").values.astype(float),
    }
    ginis = {name: gini(values) for name, values in measures.items()}
    section.figure(
        "Lorenz curves of what consumers got in an episode, all episodes together. The further below the diagonal, the "
        "more unequal. Debts and negative utilities count as they are: the curve then dips below zero and the "
        "coefficient may exceed 1; neither is defined where the sum is not positive. Utility has no natural zero, so "
        "its coefficient says little by itself.",
        figures.lorenz_curves(measures, ginis),
    )
    rows = [
        [name, ginis[name], *map(float, np.quantile(values, (0.1, 0.5, 0.9))), f"{(values < 0).mean():.1%}"]
        for name, values in measures.items()
    ]
    section.table(["per consumer and episode", "Gini", "10 %", "median", "90 %", "below zero"], with_dashes(rows))
    theta = rollout["theta"].isel(episode=0, period=0).values.astype(float)
    section.figure(
        "The same by disutility of work θ: points are consumers, means over episodes, with the band of 90 % of "
        "episodes. See who works more, and whether that pays.",
        figures.by_theta(theta, {"hours": rollout["hours"].sum("period").values.astype(float), **measures}),
    )


def fiscal(source: Source, section: Section) -> None:
    scan = next((scan for scan in reversed(source.results.scans) if scan["agent"] == "government"), None)
    pairs = None if scan is None else figures.tax_pairs(scan)
    if scan is None or pairs is None or pairs.empty:
        text = "No tax pairs have been tried; this scans them all:"
        section.missing(text, f"python run_best_response.py {source.run.path} --ep-strs latest --scan")
        return
    factor = source.economy.firm_reward_for_government_factor
    section.figure(
        f"What each constant pair of taxes brings at checkpoint {scan['checkpoint']}, consumers and firms playing on "
        f"as they learned: welfare (consumers' rewards plus {factor:g} of the firms'), and mean rewards per agent and "
        "period. Stars: the largest value. A star at the taxes that the government chose means it cannot gain.",
        figures.surface(
            pairs, {"government": "Welfare", "consumer": "Consumer's reward", "firm": "Firm's reward"}
        ),
    )  # fmt: skip
    if source.has_policies and scan["checkpoint"] == "latest":
        stage = Stage(theta_factor=curriculum.theta_factor(source.config, source.iteration))
        allowed = curriculum.allowed_actions(source.config, source.economy, source.iteration)
        policies = load_policies(source.run, source.config)
        table = revenues(source.economy, policies, allowed, stage)
        section.figure(
            "Tax revenue per period under the same pairs, the saved policies played again in 8 episodes: a Laffer "
            "curve would rise and fall with the rate. All revenue goes back to the consumers in equal parts.",
            figures.laffer(
                table,
                REVENUES,
            ),
        )
        section.figure(
            "The same revenue over both rates, as a surface; stars: the largest.",
            figures.surface(table, REVENUES),
        )


def policies(source: Source, section: Section) -> None:
    if source.no_rollout(section):
        return
    if not source.has_policies:
        text = "The run holds no policies labeled 'latest'; training on writes them:"
        section.missing(text, f"python run_training.py --resume {source.run.path}")
        return
    config, model = source.config, source.economy
    for agent in [name for name in model.agents if name not in source.learning]:
        section.text(f"The {agent} plays one given action for the whole run.")
    if not source.learning:
        return
    assert source.last is not None
    episodes = read_rollout(source.run, model, source.last, source.learning)
    section.text(
        "Choices of saved policies, halfway through the checkpoints and at the end, while one number that the agent "
        "sees is varied and all others stay as in states of the middle of the last dense rollout's episodes; curves "
        "are means over 64 of these. Money and inventories reach a network as decimal digits, so its answers to them "
        "are jagged. A flat curve: the choice does not depend on that number. A curve at 1: it is always chosen."
    )
    whose = {"consumer": f"good and firm {GOOD} as an example", "firm": "against its own numbers"}
    saved = set.intersection(*(set(source.run.labels(agent)) for agent in source.learning))
    numbers = sorted(int(label) for label in saved if label.isdecimal())
    for label in [*map(str, numbers[len(numbers) // 2 :][:1]), "latest"]:
        iteration = source.iteration if label == "latest" else int(label)
        allowed = curriculum.allowed_actions(config, model, iteration)
        loaded = load_policies(source.run, config, label)
        for agent in source.learning:
            states = episodes[agent].states[:, model.num_periods // 2]
            curves = responses(model, loaded[agent], agent, states, allowed[agent])
            if curves:
                sentence = f"Checkpoint {label}, {agent}: {whose.get(agent, f'firm {GOOD} as an example')}."
                section.figure(sentence, figures.policy(curves))


def equilibrium(sources: list[Source], section: Section, command: str) -> None:
    points = [point for source in sources if source.results.verdicts for point in points_of(source.run)]
    if points:
        section.figure(
            "The largest gain that a tried deviation of one agent brings, as a share of what its type gained by "
            "learning, with the upper end of its 95 % interval. Below the dashed bar, the checkpoint passes.",
            figures.gaps(points),
        )
        rows = [
            [point.run.path.name, point.seed, point.iteration, "passes" if point.passed else "fails", agent, gap.share,
             gap.high, PUBLISHED_BARS[agent], gap.found]
            for point in points for agent, gap in point.gaps.items()
        ]  # fmt: skip
        head = ["run", "seed", "iteration", "verdict", "type", "gain [%]", "upper end [%]", "bar [%]", "best deviation"]
        section.table(head, with_dashes(rows), sortable=True)
    else:
        section.missing("There is no verdict on an equilibrium; this searches all deviations for one:", command)
    rows = [
        [source.run.path.name, row["checkpoint"], row["agent"], row["gain"], row["low"], row["high"], row["percent"],
         row["learning_percent"], row["how"]]
        for source in sources for row in source.results.exploitability()
    ]  # fmt: skip
    if rows:
        section.text(
            "Exploitability: the largest gain found in any way, per agent and period, with its 95 % interval. 0 would "
            "be a best response; what was not tried may gain more."
        )
        head = [
            "run",
            "checkpoint",
            "type",
            "gain",
            "low",
            "high",
            "of training gain [%]",
            "of own learning [%]",
            "how",
        ]
        section.table(head, with_dashes(rows), sortable=True)


def index(sources: list[Source]) -> tuple[pd.DataFrame, dict[str, list[Any]]]:
    """Return final figures of runs, a row each, and the keys in which they differ."""
    rows = []
    for source in sources:
        verdicts = source.results.verdicts
        row: dict[str, Any] = {"run": source.run.path.name, "seed": source.config.train.base_seed}
        if source.run.metrics_path.exists():
            metrics = load_metrics(source.run.path)
            final = metrics.tail(max(1, round(LAST_SHARE * len(metrics)))).mean()
            for name, value in final.items():
                part, _, figure = name.partition(".")
                if part == "reward":
                    row[f"{figure} reward"] = float(value)
                elif part == "economy":
                    row[figure.replace("_", " ")] = float(value)
        row["verdict"] = ("passes" if verdicts[-1]["passed"] else "fails") if verdicts else "none"
        rows.append(row)
    keys = {key: values for key, values in varied([s.config for s in sources]).items() if key != "train.base_seed"}
    return pd.DataFrame(rows), keys


def experiment(sources: list[Source], section: Section) -> None:
    table, keys = index(sources)
    rewards = [name for name in table if name.endswith(" reward")]
    shown = ["price", "wage", "hours", "income tax", "corporate tax"]
    columns = ["run", "seed", *rewards, *(name for name in shown if name in table), "verdict"]
    rows = [
        [*(str(values[number]) for values in keys.values()), *row]
        for number, row in enumerate(table[columns].itertuples(index=False))
    ]
    section.text(
        f"Every run with the keys in which they differ, means over the last {LAST_SHARE:.0%} of its logged iterations, "
        "and its last verdict. A click on a heading sorts."
    )
    section.table([*keys, *columns], with_dashes(rows), sortable=True)
    lines = relations(table)
    if not lines:
        section.text(f"Relations between final figures need at least {FEWEST} runs with metrics that differ.")
        return
    section.figure(
        "How final figures go together over runs: points are runs, with the least-squares line and its 95 % interval. "
        "Few runs make wide intervals; a relation over seeds or settings is no causal effect.",
        figures.relations(table, lines),
    )
    head = ["y", "x", "slope", "95 % from", "to", "r²", "runs"]
    section.table(head, [[each.y, each.x, each.slope, each.low, each.high, each.r_squared, each.n] for each in lines])


def configuration(sources: list[Source], section: Section) -> None:
    found = []
    for name in PACKAGES:
        try:
            found.append([name, version(name)])
        except PackageNotFoundError:
            found.append([name, "from its folder"])
    section.text("Versions that made this page, and the whole configuration of the (first) run.")
    section.table(["package", "version"], found)
    section.code(yaml.safe_dump(sources[0].config.to_dict(), sort_keys=False, allow_unicode=True))


RUN_SECTIONS: tuple[tuple[str, str, Callable[[Source, Section], None]], ...] = (
    ("training", "Training by phase", training),
    ("economy", "The economy by period", economy),
    ("accounts", "National accounts", national),
    ("inequality", "Inequality", inequality),
    ("fiscal", "Taxes", fiscal),
    ("policies", "Policy functions", policies),
)


def run_sections(source: Source) -> list[Section]:
    """Sections of one run."""
    sections = []
    for key, title, fill in RUN_SECTIONS:
        sections.append(Section(key, title))
        fill(source, sections[-1])
    return sections


def with_dashes(rows: list[list[Any]]) -> list[list[Any]]:
    """With dashes for what is not known."""
    return [["–" if value is None or value != value else value for value in row] for row in rows]
