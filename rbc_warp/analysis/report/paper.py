"""Figures of the report as PNG files, drawn by one browser that has no window."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rbc_warp.analysis.report.drawing import WIDE, for_paper
from rbc_warp.analysis.report.parts import Section
from rbc_warp.errors import RunFileError, UserError
from rbc_warp.runs.files import writing

SCALE = 2
"""Pixels of the file per pixel of the page."""


def check_png(folder: Path) -> None:
    """Check that figures can be drawn, and written into this folder.

    Raises:
        RunFileError: it cannot be a folder or be written to. UserError: there is no browser.
    """
    if folder.exists() and not folder.is_dir():
        raise RunFileError(folder, "is a file", "give --png a folder, which may be new")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    from choreographer.browsers.chromium import Chromium

    found = os.environ.get("BROWSER_PATH") or Chromium.find_browser(skip_local=False)
    if not found or not os.access(found, os.X_OK):
        problem = f"BROWSER_PATH={found} cannot be run" if found else "there is none here"
        remedy = "install it (apt-get install chromium, or plotly_get_chrome), or set BROWSER_PATH to the one to use"
        raise UserError(f"--png: Chromium or Chrome draws the figures; {problem}; {remedy}")


def write_png(sections: Sequence[Section], folder: Path) -> list[Path]:
    """Write every figure of the sections as ``<section>-<number>.png``, numbered in each section from 1."""
    import kaleido

    jobs: list[dict[str, Any]] = []
    for section in sections:
        for number, figure in enumerate(section.figures, start=1):
            drawn = for_paper(figure)
            size = {"width": drawn.layout.width or WIDE, "height": drawn.layout.height, "scale": SCALE}
            jobs.append({"fig": drawn, "path": folder / f"{section.key}-{number}.png", "opts": size})
    # Without MathJax, which would be asked of the network; plotly.js is the one that plotly brings.
    with writing(folder):
        kaleido.write_fig_from_object_sync(jobs, kopts={"mathjax": False}, cancel_on_error=True)
    return [job["path"] for job in jobs]
