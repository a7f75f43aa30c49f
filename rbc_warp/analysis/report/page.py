"""The report, and a comparison, as one HTML file each: the order of their sections, and the writing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader
from plotly.offline import get_plotlyjs

from rbc_warp.analysis.compare import Comparison
from rbc_warp.analysis.report import (
    accounts,
    comparison,
    configuration,
    economy,
    equilibrium,
    experiment,
    glance,
    inequality,
    policies,
    taxes,
    training,
    welfare,
)
from rbc_warp.analysis.report.glance import Fact
from rbc_warp.analysis.report.parts import Section, Source
from rbc_warp.config.shipped import launcher
from rbc_warp.runs.console import number_text
from rbc_warp.runs.files import write_text
from rbc_warp.runs.folder import RunDir, find_runs

RUN_SECTIONS: tuple[tuple[str, str, Callable[[Source, Section], None]], ...] = (
    ("training", "Training by phase", training.fill),
    ("economy", "The economy by period", economy.fill),
    ("accounts", "National accounts", accounts.fill),
    ("inequality", "Inequality", inequality.fill),
    ("welfare", "Welfare", welfare.fill),
    ("fiscal", "Taxes", taxes.fill),
    ("policies", "Policy functions", policies.fill),
)
"""Key, title and contents of the sections that a run has of its own, in order."""


def write_report(folder: Path, target: Path) -> list[Section]:
    """Write the page of a run, or of the runs in an experiment's folder, and return its sections.

    Raises:
        RunFileError: a file is damaged, or there is no run. ConfigError: so is an hparams.yaml.
    """
    runs = find_runs(folder) if folder.is_dir() and not (folder / "hparams.yaml").exists() else []
    sources = [Source(run) for run in runs or [RunDir(folder)]]
    sections = []
    if runs:
        sections.append(Section("runs", "Runs"))
        experiment.fill(sources, sections[-1])
        sections.append(Section("welfare", "Welfare"))
        welfare.between_runs(sources, sections[-1])
        if taxes.has_fixed(sources):
            sections.append(Section("fiscal", "Fixed taxes, retrained"))
            taxes.retrained(sources, sections[-1], folder)
    else:
        for key, title, fill in RUN_SECTIONS:
            sections.append(Section(key, title))
            fill(sources[0], sections[-1])
    which = f"--experiment-dir {folder}" if runs else str(folder)
    sections.append(Section("equilibrium", "Equilibrium"))
    equilibrium.fill(sources, sections[-1], f"{launcher('best-response')} {which} --ep-strs latest --verdict")
    sections.append(Section("configuration", "Configuration and versions"))
    configuration.fill(sources, sections[-1])

    title = f"{folder.resolve().name}" + (f": {len(runs)} runs" if runs else "")
    facts = glance.facts(sources)
    _write(target, title, glance.sentence(sources[0]), sections, facts, glance.verdict(sources))
    return sections


def write_comparison(found: Comparison, target: Path) -> list[Section]:
    """Write the page of a comparison, and return its sections."""
    subtitle = f"{found.episodes} episodes of each, with common random numbers"
    sections = comparison.sections_of(found)
    _write(target, "Baseline and reform", subtitle, sections)
    return sections


def _write(
    target: Path, title: str, subtitle: str, sections: list[Section], facts: Sequence[Fact] = (), verdict: str = ""
) -> None:
    templates = Environment(loader=PackageLoader("rbc_warp.analysis.report", "."), autoescape=True)
    templates.filters["figure"] = number_text
    page = templates.get_template("template.html").render(
        title=title, subtitle=subtitle, facts=facts, verdict=verdict, sections=sections, plotly_js=get_plotlyjs()
    )
    write_text(target, page)
