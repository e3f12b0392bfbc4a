import dataclasses
import json
import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cryosweep.study.comparison import SCORE, Comparison, compare, load_runs
from cryosweep.study.report import write_report
from tests.synthetic_runs import HEAD_STUDY, Point, write_study

FAILURE = Point(
    {"mask.dilation_radius": 28, "mask.soft_padding_width": 0}, error="</script><b>mask & box</b>", truth=None
)


def needed_program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        reason = f"the program '{name}' is not on PATH: the report cannot be tested in a browser"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


class Browser:
    """A headless chromium, spoken to in plain WebDriver."""

    def __init__(self, port: int, chromium: str) -> None:
        self._root = f"http://127.0.0.1:{port}/session"
        arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000"]
        options = {"binary": chromium, "args": arguments}
        wanted = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        self._root += "/" + self._send("", {"capabilities": wanted})["sessionId"]

    def _send(self, path: str, body: dict[str, Any] | None, method: str = "POST") -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._root + path, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, page: Path) -> None:
        self._send("/url", {"url": page.as_uri()})

    def run(self, script: str) -> Any:
        return self._send("/execute/sync", {"script": script, "args": []})

    def click(self, selector: str) -> None:
        (element,) = self._send("/element", {"using": "css selector", "value": selector}).values()
        self._send(f"/element/{element}/click", {})

    def complaints(self) -> list[str]:
        entries = self._send("/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def close(self) -> None:
        self._send("", None, "DELETE")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium, driver = needed_program("chromium"), needed_program("chromedriver")
    process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = next(
            int(found.group(1))
            for line in process.stdout
            if (found := re.search(r"successfully on port (\d+)", line))
        )
        browser = Browser(port, chromium)
        yield browser
        browser.close()
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path, Path]:
    folder = tmp_path_factory.mktemp("study")
    write_study(folder / "runs", [*HEAD_STUDY, FAILURE])
    comparison = compare(load_runs([folder / "runs"]))
    page, table = write_report(comparison, folder / "results" / "report.html")
    return comparison, page, table


class Links(HTMLParser):
    """What the elements of a page refer to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")
        ]


def test_the_page_holds_all_it_needs(study: tuple[Comparison, Path, Path]) -> None:
    _, page, _ = study
    text = page.read_text(encoding="utf-8")
    links = Links()
    links.feed(text)
    assert links.found
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links.found)
    assert sum(link.startswith("data:") for link in links.found) == 7  # the start and six runs
    assert "default-src 'none'" in text
    assert page.stat().st_size < 12e6


def test_what_users_write_cannot_break_the_page(study: tuple[Comparison, Path, Path]) -> None:
    _, page, _ = study
    text = page.read_text(encoding="utf-8")
    assert "<b>mask" not in text
    assert "&lt;/script&gt;&lt;b&gt;mask &amp; box" in text


def test_every_point_can_be_run_again(study: tuple[Comparison, Path, Path]) -> None:
    text = study[1].read_text(encoding="utf-8")
    for point in HEAD_STUDY:
        assert " ".join(("cryosweep run", *(f"{key}={value}" for key, value in point.swept.items()))) in text


def test_csv_holds_every_run_and_the_start(study: tuple[Comparison, Path, Path]) -> None:
    comparison, _, path = study
    table = pd.read_csv(path, index_col="run")
    assert list(table.index) == [*comparison.table.index, "start"]
    assert table[SCORE].tolist() == pytest.approx([*comparison.table[SCORE], comparison.start[SCORE]])


def test_the_page_draws_offline_without_complaint(
    browser: Browser, study: tuple[Comparison, Path, Path]
) -> None:
    _, page, _ = study
    browser.open(page)
    plots = browser.run("return [...document.querySelectorAll('div[id^=plot-]')].map(d => d.id)")
    assert plots == ["plot-truth", "plot-fsc", "plot-effect0", "plot-effect1", "plot-grid", "plot-poses"]
    drawn = browser.run(
        "const plots = [...document.querySelectorAll('div[id^=plot-]')];"
        "return plots.filter(plot => plot.querySelector('svg.main-svg')).length"
    )
    assert drawn == len(plots)
    assert browser.run("return document.querySelectorAll('#plot-poses .barlayer .trace').length") == 12
    assert browser.run("return [...document.images].every(i => i.complete && i.naturalWidth > 300)")
    fetched = browser.run("return performance.getEntriesByType('resource').map(e => e.name.slice(0, 40))")
    assert [name for name in fetched if not name.startswith("data:")] == []
    assert browser.complaints() == []


def test_a_request_would_be_refused(browser: Browser, study: tuple[Comparison, Path, Path]) -> None:
    browser.open(study[1])
    browser.run(
        "window.refused = []; document.addEventListener('securitypolicyviolation', e => refused.push(1));"
    )
    browser.run("const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i);")
    assert browser.run("return new Promise(done => setTimeout(() => done(refused.length), 200))") == 1
    browser.complaints()


def test_headings_sort_numbers_as_numbers_both_ways(
    browser: Browser, study: tuple[Comparison, Path, Path]
) -> None:
    browser.open(study[1])
    column = (
        "return [...document.querySelector('#runs').tBodies[0].rows].map(r => r.cells[{}].innerText.trim())"
    )
    click = "document.querySelector('#runs').tHead.rows[0].cells[{}].querySelector('button').click()"
    assert browser.run(column.format(0)) == ["1", "2", "3", "4", "5", "6"]
    browser.run(click.format(2))
    assert browser.run(column.format(2)) == ["0", "0", "10", "16", "30", "30"]
    browser.run(click.format(2))
    assert browser.run(column.format(2)) == ["30", "30", "16", "10", "0", "0"]
    heading = "return document.querySelector('#runs').tHead.rows[0].cells[2].getAttribute('aria-sort')"
    assert browser.run(heading) == "descending"


def test_curves_show_by_type_and_run(browser: Browser, study: tuple[Comparison, Path, Path]) -> None:
    browser.open(study[1])
    lines = "return document.querySelectorAll('#plot-fsc .scatterlayer .js-line').length"
    boxes = "return [...document.querySelectorAll('.curve-type')].map(b => b.value)"
    assert browser.run(boxes) == ["frozen", "own_tight", "own_corrected", "truth"]
    shown = """const curves = document.getElementById('plot-fsc').data.filter(t => t.meta && t.meta.type);
        return curves.filter(t => t.visible === true).map(t => t.meta.type)"""
    assert browser.run(shown) == ["frozen"] * 7
    browser.run("document.querySelectorAll('.curve-type')[3].click()")
    assert sorted(browser.run(shown)) == ["frozen"] * 7 + ["truth"] * 7
    assert browser.run(lines) == 14
    # The first legend entry is the start; plotly waits for a second click before it hides the curves.
    browser.click("#plot-fsc .legendtoggle")
    browser.run("return new Promise(done => setTimeout(done, 800))")
    assert len(browser.run(shown)) == 12
    browser.run("document.getElementById('plot-fsc').emit('plotly_legenddoubleclick', {curveNumber: 0})")
    assert browser.run(shown) == ["frozen", "truth"]
    browser.run("document.getElementById('plot-fsc').emit('plotly_legenddoubleclick', {curveNumber: 0})")
    assert len(browser.run(shown)) == 14
    assert browser.complaints() == []


def test_a_study_without_sweep_truth_or_extents_draws_too(browser: Browser, tmp_path: Path) -> None:
    (folder,) = write_study(tmp_path, [dataclasses.replace(HEAD_STUDY[0], swept={}, truth=None)])
    (folder / "config.yaml").write_text("seed: 0\n")
    page, _ = write_report(compare(load_runs([tmp_path])), tmp_path / "report.html")
    browser.open(page)
    plots = browser.run("return [...document.querySelectorAll('div[id^=plot-]')].map(d => d.id)")
    assert plots == ["plot-fsc", "plot-poses"]
    assert browser.complaints() == []
