import dataclasses
import json
import re
import shlex
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cryosweep.io.maps import read_map
from cryosweep.study import figures
from cryosweep.study.comparison import SCORE, TIED, TRUTH_SCORE, Comparison, compare, load_runs
from cryosweep.study.meshes import MOST_FACES, STEP, surface_figure
from cryosweep.study.pictures import contour_level
from cryosweep.study.report import Written, write_report
from cryosweep.study.tables import PARTED_COLUMN, note
from tests.browser import Browser, headless
from tests.synthetic_runs import HEAD_STUDY, PIXEL_SIZE, Point, write_mrc, write_study

FAILURE = Point(
    {"mask.dilation_radius": 28, "mask.soft_padding_width": 0}, error="</script><b>mask & box</b>", truth=None
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with headless() as window:
        yield window


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Written]:
    folder = tmp_path_factory.mktemp("study")
    write_study(folder / "runs", [*HEAD_STUDY, FAILURE])
    comparison = compare(load_runs([folder / "runs"]))
    return comparison, write_report(comparison, folder / "results" / "report.html")


class Links(HTMLParser):
    """What the elements of a page refer to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")
        ]


def test_the_page_holds_all_it_needs(study: tuple[Comparison, Written]) -> None:
    page = study[1].page
    text = page.read_text(encoding="utf-8")
    links = Links()
    links.feed(text)
    assert links.found
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links.found)
    assert sum(link.startswith("data:") for link in links.found) == 7  # the start and six runs
    assert "default-src 'none'" in text
    assert page.stat().st_size < 8e6


def test_what_users_write_cannot_break_the_page(study: tuple[Comparison, Written]) -> None:
    page = study[1].page
    text = page.read_text(encoding="utf-8")
    assert "<b>mask" not in text
    assert "&lt;/script&gt;&lt;b&gt;mask &amp; box" in text


def test_every_point_can_be_run_again(study: tuple[Comparison, Written]) -> None:
    text = study[1].page.read_text(encoding="utf-8")
    for point in HEAD_STUDY:
        assert " ".join(("cryosweep run", *(f"{key}={value}" for key, value in point.swept.items()))) in text


def test_csv_holds_every_run_and_the_start(study: tuple[Comparison, Written]) -> None:
    comparison, written = study
    table = pd.read_csv(written.table, index_col="run")
    failed = comparison.failed[0].name
    assert list(table.index) == [*comparison.table.index, failed, "start"]
    ends = [*comparison.table[SCORE], np.nan, comparison.start[SCORE]]
    assert table[SCORE].tolist() == pytest.approx(ends, nan_ok=True)
    assert table["status"].tolist() == ["FINISHED"] * 6 + ["FAILED", "start"]
    assert table["rank"].tolist()[:6] == [1, 2, 3, 4, 5, 6]
    for run in comparison.runs:
        # every number of every run comes back as it was, and so does every swept value
        assert table.loc[run.name, list(run.summary)].tolist() == list(run.summary.values())
        assert table.loc[run.name, list(comparison.swept)].tolist() == list(run.swept.values())
        assert shlex.split(str(table.at[run.name, "command"]))[:2] == ["cryosweep", "run"]
        assert str(table.at[run.name, TIED]) == str(bool(comparison.table.at[run.name, TIED]))
    assert table.loc[failed, list(comparison.swept)].tolist() == [28, 0]
    assert table.at[failed, "reason"] == FAILURE.error
    assert table.index[table[PARTED_COLUMN].astype(str) == "True"].tolist() == [
        "dilation_radius=28,soft_padding_width=30"
    ]


def test_the_record_says_to_scripts_what_the_page_says(study: tuple[Comparison, Written]) -> None:
    comparison, written = study
    told = json.loads(written.record.read_text(encoding="utf-8"))
    assert told["question"] == "How wide should the mask be?"
    assert tuple(told["headline"]) == comparison.headline
    assert [run["name"] for run in told["runs"]] == list(comparison.table.index)
    assert told["runs"][0]["metrics"] == comparison.runs[0].summary
    assert told["failed"][0]["reason"] == FAILURE.error
    (area,) = told["truth"]["rankings"]  # no run of this study has a held-out likelihood
    assert (area["score"], area["pick"]) == ("FSC area (A)", comparison.label(comparison.runs[0]))
    best = max(run.summary[TRUTH_SCORE] for run in comparison.runs)
    assert area["regret_area"] == pytest.approx(best - comparison.runs[0].summary[TRUTH_SCORE])
    assert told["truth"]["parted"] == ["dilation_radius=28,soft_padding_width=30"]
    assert told["standings"][0]["area"]["low"] is None  # one run without a jackknife has no interval


def test_the_note_fits_and_counts_what_it_leaves_out(study: tuple[Comparison, Written]) -> None:
    comparison, written = study
    text = written.note.read_text(encoding="utf-8")
    assert text.count("\n| ") == 8  # heads, rule and six runs
    assert text.splitlines()[0] == "*How wide should the mask be?*"
    assert comparison.headline[0] in text
    short = note(comparison, limit=len(text) - 150)
    assert len(short) <= len(text) - 150
    left = re.search(r"(\d) more runs are left out here", short)
    assert left is not None
    assert int(left.group(1)) == 8 - short.count("\n| ")


def test_maps_open_in_chimerax_by_documented_commands(study: tuple[Comparison, Written]) -> None:
    comparison, written = study
    lines = written.maps.read_text(encoding="utf-8").splitlines()
    quoted = r'"[^"]+"'
    # commands open, volume, hide and view as in the ChimeraX User Guide
    known = [
        r"#.*", rf"open {quoted} name {quoted}", r"hide #\d+(-\d+)? models", "view",
        r"volume #\d+ style (surface|mesh) step 1 level [-+.e\d]+ color #[0-9a-fA-F]{6}",
    ]  # fmt: skip
    assert [line for line in lines if not any(re.fullmatch(form, line) for form in known)] == []
    opened = [shlex.split(line)[1] for line in lines if line.startswith("open ")]
    assert not any(Path(name).is_absolute() for name in opened)
    here = [(written.maps.parent / name).resolve() for name in opened]
    folders = [run.folder.resolve() for run in comparison.runs]
    assert here == [
        folders[0] / "map.mrc", folders[0] / "start_map.mrc", *(folder / "map.mrc" for folder in folders[1:]),
        folders[0] / "scoring_mask.mrc",
    ]  # fmt: skip
    surfaces = [line.split() for line in lines if "style surface" in line]
    assert len({words[words.index("level") + 1] for words in surfaces}) == 1
    assert len({words[-1] for words in surfaces}) == 7


def test_the_contour_level_parts_two_densities_whoever_has_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    half = np.arange(32) < 16
    for name, low in (("a", 0.0), ("b", 0.02)):
        volume = np.where(half, low, 1.0)[:, None, None] + 0.05 * rng.standard_normal((32, 32, 32))
        write_mrc(tmp_path / f"{name}.mrc", volume)
    write_mrc(tmp_path / "mask.mrc", np.ones((32, 32, 32)))
    mask = read_map(tmp_path / "mask.mrc")
    paths = [tmp_path / "a.mrc", tmp_path / "b.mrc"]
    level = contour_level(paths, mask)
    assert 0.2 < level < 0.8
    assert contour_level(paths[::-1], mask) == pytest.approx(level)


def test_a_surface_lies_where_the_map_has_its_level_and_stays_small(tmp_path: Path) -> None:
    size, radius, middle = 96, 60.0, (10.0, -14.0, 21.0)  # x, y, z in Å
    ramp = (np.arange(size) - size // 2) * PIXEL_SIZE
    z, y, x = np.meshgrid(ramp, ramp, ramp, indexing="ij")
    distance = np.sqrt((x - middle[0]) ** 2 + (y - middle[1]) ** 2 + (z - middle[2]) ** 2)
    noise = np.random.default_rng(0).standard_normal(distance.shape)
    write_mrc(tmp_path / "ball.mrc", 1.0 / (1.0 + np.exp((distance - radius) / 7.0)))
    write_mrc(tmp_path / "noise.mrc", noise)
    write_mrc(tmp_path / "mask.mrc", (distance < 110.0).astype(np.float32))
    maps = [(name, tmp_path / f"{name}.mrc", "#0072B2") for name in ("ball", "noise")]
    ball, rough = surface_figure(maps, read_map(tmp_path / "mask.mrc"), 0.5).data
    points = np.stack([ball.x, ball.y, ball.z], axis=1) * STEP
    # the cube is about the mask, so the ball is in its middle to a voxel; worst seen 2.6 Å of 60
    assert np.linalg.norm(points, axis=1) == pytest.approx(radius, abs=4.0)
    assert np.abs(points.mean(axis=0)).max() < PIXEL_SIZE
    assert 1000 < len(ball.i) < MOST_FACES
    assert len(rough.i) <= MOST_FACES
    assert np.stack([rough.i, rough.j, rough.k]).max() < len(rough.x)


def test_the_page_draws_offline_without_complaint(
    browser: Browser, study: tuple[Comparison, Written]
) -> None:
    page = study[1].page
    browser.open(page)
    plots = browser.run("return [...document.querySelectorAll('div[id^=plot-]')].map(d => d.id)")
    assert plots == [
        "plot-truth", "plot-fsc", "plot-effect0", "plot-effect1", "plot-grid0", "plot-reach", "plot-poses"
    ]  # fmt: skip
    drawn = browser.run(
        "const plots = [...document.querySelectorAll('div[id^=plot-]')];"
        "return plots.filter(plot => plot.querySelector('svg.main-svg')).length"
    )
    assert drawn == len(plots)
    assert browser.run("return document.querySelectorAll('#plot-poses .barlayer .trace').length") == 12
    assert browser.run("return document.querySelectorAll('#plot-reach .heatmaplayer .hm').length") == 2
    assert browser.run("return [...document.images].every(i => i.complete && i.naturalWidth > 300)")
    fetched = browser.run("return performance.getEntriesByType('resource').map(e => e.name.slice(0, 40))")
    assert [name for name in fetched if not name.startswith("data:")] == []
    assert browser.complaints() == []


def test_a_request_would_be_refused(browser: Browser, study: tuple[Comparison, Written]) -> None:
    browser.open(study[1].page)
    browser.run(
        "window.refused = []; document.addEventListener('securitypolicyviolation', e => refused.push(1));"
    )
    browser.run("const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i);")
    assert browser.run("return new Promise(done => setTimeout(() => done(refused.length), 200))") == 1
    browser.complaints()


def test_headings_sort_numbers_as_numbers_both_ways(
    browser: Browser, study: tuple[Comparison, Written]
) -> None:
    browser.open(study[1].page)
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


def test_curves_show_by_type_and_run(browser: Browser, study: tuple[Comparison, Written]) -> None:
    browser.open(study[1].page)
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
    browser.open(write_report(compare(load_runs([tmp_path])), tmp_path / "report.html").page)
    plots = browser.run("return [...document.querySelectorAll('div[id^=plot-]')].map(d => d.id)")
    assert plots == ["plot-fsc", "plot-poses"]
    assert browser.complaints() == []


def test_surfaces_are_chosen_on_either_side(browser: Browser, study: tuple[Comparison, Written]) -> None:
    browser.open(study[1].page)
    names = browser.run("return [...document.getElementById('choose-left').options].map(o => o.text)")
    assert names == [
        "1 · dilation_radius 0, soft_padding_width 10 (first)",
        "start (consensus)",
        "2 · dilation_radius 0, soft_padding_width 0 (centre, best map by truth)",
        "6 · dilation_radius 28, soft_padding_width 30 (last)",
    ]
    shown = "return ['left', 'right'].map(s => document.getElementById('surface-' + s).data[0].name)"
    assert browser.run(shown) == names[:2]
    browser.wait("document.querySelectorAll('#surfaces ~ .surfaces canvas').length >= 2")
    browser.run(
        "const c = document.getElementById('choose-right'); c.value = 2; c.dispatchEvent(new Event('change'))"
    )
    assert browser.run(shown) == [names[0], names[2]]
    eye = "document.getElementById('surface-{}').layout.scene.camera.eye.x"
    browser.run("Plotly.relayout('surface-left', {'scene.camera': {eye: {x: 0.1, y: 1.2, z: 0.3}}})")
    browser.wait(f"{eye.format('right')} === 0.1")
    # a map chosen later is seen from where the others are
    browser.run(
        "const c = document.getElementById('choose-left'); c.value = 1; c.dispatchEvent(new Event('change'))"
    )
    assert browser.run(f"return {eye.format('left')}") == 0.1
    assert browser.complaints() == []


def test_a_command_is_copied(browser: Browser, study: tuple[Comparison, Written]) -> None:
    browser.open(study[1].page)
    browser.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    command = browser.run("return document.querySelector('button.copy').previousElementSibling.innerText")
    assert command.startswith("cryosweep run mask.dilation_radius=")
    browser.click("button.copy")
    browser.wait("document.querySelector('button.copy').textContent === 'copied'")
    browser.run("document.body.prepend(Object.assign(document.createElement('textarea'), {id: 'paste'}))")
    browser.type("#paste", "\ue009v\ue000")  # Ctrl-V
    assert browser.run("return document.getElementById('paste').value") == command


def test_what_is_within_the_noise_looks_so(browser: Browser, study: tuple[Comparison, Written]) -> None:
    comparison, written = study
    browser.open(written.page)
    text = json.dumps(
        browser.run("return document.getElementById('plot-grid0').data[0].text"), ensure_ascii=False
    )
    near = [
        run for run in comparison.runs
        if abs(run.summary[SCORE] - comparison.replication.centre_area) < comparison.noise
    ]  # fmt: skip
    assert text.count("≈") == len(near) > 1
    band = browser.run(
        "return document.getElementById('plot-effect0').layout.shapes.map(s => [s.type, s.y0, s.y1])"
    )
    centre = comparison.replication.centre_area
    assert [
        "rect",
        pytest.approx(centre - comparison.noise),
        pytest.approx(centre + comparison.noise),
    ] in band
    floor = browser.run(
        "return document.getElementById('plot-fsc').data.filter(t => t.fill === 'toself').length"
    )
    assert floor == 1


@pytest.mark.parametrize("width", [420, 1000])
def test_the_page_fits_narrow_windows(
    browser: Browser, study: tuple[Comparison, Written], width: int
) -> None:
    browser.resize(width, 900)
    try:
        browser.open(study[1].page)
        browser.wait("document.querySelector('#plot-poses svg.main-svg') !== null")
        wide = browser.run(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide <= 0
    finally:
        browser.resize(1400, 1000)
    assert browser.complaints() == []


def test_axes_of_swept_keys_have_the_units_of_the_configuration() -> None:
    """Each key of conf/ that is said to be a length, an angle or the like has that unit in the figures."""
    words = {"degrees": "°", "Å^2": "Å²"}
    line = re.compile(r"^ *(\w+):[^#\n]*# (Å\^2|Å|degrees|kDa|kV|px|mm)(?![\w^/])", re.MULTILINE)
    said = {
        key: words.get(unit, unit)
        for path in sorted((Path(__file__).parents[1] / "conf").rglob("*.yaml"))
        for key, unit in line.findall(path.read_text(encoding="utf-8"))
    }
    assert len(said) > 25
    ambiguous = {"position", "point", "hinge", "marker"}  # never a single number
    told = {key: unit for unit, keys in figures.UNITS.items() for key in keys}
    assert {key: unit for key, unit in said.items() if key not in ambiguous} == told
    assert figures.with_unit("mask.dilation_radius", ["0", "7"]) == "mask.dilation_radius (Å)"
    assert figures.with_unit("mask.dilation_radius", ["0", "7px"]) == "mask.dilation_radius"
    assert figures.with_unit("fulcrum", ["hinge", "px"]) == "fulcrum"
