"""The report, and a comparison, as one HTML file each."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader
from plotly.offline import get_plotlyjs

from rbc_warp.analysis.compare import Comparison
from rbc_warp.analysis.report.figures import changes
from rbc_warp.analysis.report.sections import (
    Section,
    Source,
    configuration,
    equilibrium,
    experiment,
    run_sections,
    with_dashes,
)
from rbc_warp.runs.console import number_text
from rbc_warp.runs.files import write_text
from rbc_warp.runs.folder import RunDir, find_runs


def write_report(folder: Path, target: Path) -> None:
    """Write the page of a run, or of the runs in an experiment's folder.

    Raises:
        RunFileError: a file is damaged, or there is no run. ConfigError: so is an hparams.yaml.
    """
    runs = find_runs(folder) if folder.is_dir() and not (folder / "hparams.yaml").exists() else []
    sources = [Source(run) for run in runs or [RunDir(folder)]]

    whole = Section("equilibrium", "Equilibrium"), Section("configuration", "Configuration and versions")
    if runs:
        command = f"python run_best_response.py --experiment-dir {folder} --ep-strs latest --verdict"
        sections = [Section("runs", "Runs")]
        experiment(sources, sections[0])
    else:
        command = f"python run_best_response.py {folder} --ep-strs latest --verdict"
        sections = run_sections(sources[0])
    equilibrium(sources, whole[0], command)
    configuration(sources, whole[1])

    agents = sources[0].config.agents
    subtitle = f"{agents.num_consumers} consumers, {agents.num_firms} firms, one government"
    title = f"{folder.resolve().name}" + (f": {len(runs)} runs" if runs else "")
    _write(target, title, subtitle, [*sections, *whole])


def write_comparison(found: Comparison, target: Path) -> None:
    """Write the page of a comparison."""
    section = Section("comparison", "Baseline and reform")
    section.text(f"Base: {found.base}. Reform: {found.reform}. Means over periods, and paired changes, 95 %.")
    rows = [[d.figure, d.unit, d.base, d.reform, d.change.mean, d.change.low, d.change.high] for d in found.differences]
    section.table(["figure", "unit", "base", "reform", "change", "low", "high"], rows)
    consumers = Section("consumers", "Who gains and who loses")
    consumers.figure(
        f"{found.winners:.0%} of the consumers gain and {found.losers:.0%} lose; bars above 0 are groups that gain. "
        "The table says what permanent change of consumption is worth the change to them.",
        changes(found.groups),
    )
    rows = [
        [f"{g.first}–{g.last}", g.theta, g.change.mean, g.change.low, g.change.high, g.equivalent, 100 * g.winners,
         100 * g.losers]
        for g in found.groups
    ]  # fmt: skip
    head = ["consumers", "θ", "change", "low", "high", "in consumption [%]", "gain [%]", "lose [%]"]
    consumers.table(head, with_dashes(rows))
    subtitle = f"{found.episodes} episodes of each, with common random numbers"
    _write(target, "Baseline and reform", subtitle, [section, consumers])


def _write(target: Path, title: str, subtitle: str, sections: list[Section]) -> None:
    templates = Environment(loader=PackageLoader("rbc_warp.analysis.report", "."), autoescape=True)
    templates.filters["figure"] = number_text
    page = templates.get_template("template.html").render(
        title=title, subtitle=subtitle, sections=sections, plotly_js=get_plotlyjs()
    )
    write_text(target, page)
