"""The report's page in a real browser: every figure is drawn, nothing is asked of the network, and clicks work."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from choreographer.browsers.chromium import Chromium
from PIL import Image
from test_report import QUICK, SMALL, report, scan_taxes
from trainers import trained_run

from rbc_warp.__main__ import main
from rbc_warp.runs.folder import RunDir

playwright = pytest.importorskip("playwright.sync_api")
BROWSER = Chromium.find_browser(skip_local=False)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium"),
]

# Of every figure: the panels that hold a trace, and those in which something was really drawn, a path of some length,
# a point, a bar or a heat map's image. Blank: traces that are to be seen, in which Plotly finds nothing to draw.
DRAWN = """() => [...document.querySelectorAll(".figure")].map(div => {
  const shown = div._fullData.filter(trace => trace.visible === true);
  const panels = new Set(shown.map(trace => trace.xaxis + trace.yaxis));
  const seen = element => { const box = element.getBoundingClientRect(); return box.width + box.height > 1; };
  const marks = ".scatterlayer .js-line, .scatterlayer .point, .barlayer .point path, .heatmaplayer image";
  return {container: div.querySelectorAll(".plot-container").length, traces: shown.length, panels: [...panels],
    blank: div._fullData.filter((trace, n) => (div.data[n].visible ?? true) && trace.visible !== true).length,
    empty: [...panels].filter(name => ![...div.querySelectorAll(`.subplot.${name} :is(${marks})`)].some(seen))};
})"""
DATA = """() => [...document.querySelectorAll("#economy .figure")].map(div =>
  [...div.querySelectorAll(".scatterlayer .js-line")].map(path => path.getAttribute("d")))"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    found = trained_run(tmp_path_factory.mktemp("experiment"), *QUICK, *SMALL)
    scan_taxes(found)
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


def opened(browser: Any, path: Path, width: int) -> tuple[Any, list[str]]:
    """Open a page; what goes wrong, and every request, is listed."""
    page, told = browser.new_page(viewport={"width": width, "height": 900}), []
    page.on("console", lambda message: told.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: told.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_function("[...document.querySelectorAll('.figure')].every(div => div._fullData)")
    return page, told


@pytest.mark.parametrize("width", [1300, 390])
def test_every_figure_is_drawn_and_nothing_else_is_asked_for(
    run: RunDir, browser: Any, tmp_path: Path, width: int
) -> None:
    path = tmp_path / "page.html"
    count = report(run.path, path).count('<div class="figure">')
    page, told = opened(browser, path, width)
    figures = page.evaluate(DRAWN)
    assert len(figures) == count >= 12
    for number, figure in enumerate(figures):
        assert figure["container"] == 1 and figure["traces"] and not figure["empty"] and not figure["blank"], (
            f"figure {number}: {figure}"
        )
    assert page.evaluate("document.documentElement.scrollWidth") == width, "scrolls sideways"
    before = page.evaluate(DATA)
    page.locator("#economy .updatemenu-button").first.click()
    after = page.evaluate(DATA)
    assert len(before[0]) == len(after[0]) and before != after
    assert told == [path.as_uri()]


def test_a_click_on_a_heading_sorts(run: RunDir, browser: Any, tmp_path: Path) -> None:
    for number in (9, 10, 8):
        copy = shutil.copytree(run.path, tmp_path / f"rollout-{number}-1")
        (copy / "manifest.json").unlink()
        hparams = copy / "hparams.yaml"
        hparams.write_text(hparams.read_text().replace("base_seed:", f"base_seed: {number} #", 1))
    path = tmp_path / "page.html"
    report(tmp_path, path)
    page, told = opened(browser, path, 390)
    head, cells = page.locator("#runs th", has_text="seed"), page.locator("#runs table.sortable td:nth-child(2)")
    for _ in range(2):
        head.click()
        assert cells.all_text_contents() in (["8", "9", "10"], ["10", "9", "8"])
    assert cells.all_text_contents() == ["10", "9", "8"] and head.get_attribute("aria-sort") == "descending"
    assert page.evaluate("document.documentElement.scrollWidth") == 390 and told == [path.as_uri()]


def test_every_figure_becomes_a_file(run: RunDir, tmp_path: Path) -> None:
    path, folder = tmp_path / "page.html", tmp_path / "png"
    assert main(["report", str(run.path), "-o", str(path), "--png", str(folder)]) == 0
    files = sorted(folder.iterdir())
    assert len(files) == path.read_text().count('<div class="figure">')
    assert {"accounts-1.png", "accounts-2.png", "economy-1.png"} <= {file.name for file in files}
    for file in files:
        with Image.open(file) as image:
            assert image.width == 2200 and len(image.convert("L").getcolors(256)) > 20, file.name
