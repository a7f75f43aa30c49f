"""The configuration, and the versions that made the page."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import yaml

from rbc_warp.analysis.report.parts import Section, Source

PACKAGES = ("rbc-warp", "torch", "numpy", "scipy", "xarray", "pandas", "plotly")


def fill(sources: list[Source], section: Section) -> None:
    found = []
    for name in PACKAGES:
        try:
            found.append([name, version(name)])
        except PackageNotFoundError:
            found.append([name, "from its folder"])
    section.text("Versions that made this page, and the whole configuration of the (first) run.")
    section.table(["package", "version"], found)
    section.code(yaml.safe_dump(sources[0].config.to_dict(), sort_keys=False, allow_unicode=True))
