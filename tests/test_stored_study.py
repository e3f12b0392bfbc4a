"""A study in its tracking store: rebuilt from there alone, and as MLflow's own pages show it.

Jobs write made-up results, but everything from the command line to the store is the real thing.
"""

import logging
import os
import shutil
import socket
import subprocess
import sys
import time
import types
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from mlflow import MlflowClient

import cryosweep
from cryosweep import app
from cryosweep.composition import conf_folder, question_of
from cryosweep.job.outputs import log_outputs
from cryosweep.study.comparison import Run, compare, load_run, load_runs
from cryosweep.study.recover import together
from cryosweep.study.sweep import read_sweep, record_run
from cryosweep.study.tables import run_table
from cryosweep.tracking import RANKED_VIEW, SWEEPS_VIEW, prepare_store, store_uri
from tests.browser import Browser, headless
from tests.synthetic_runs import Point, write_run

STUDY = "two_machines"
# dilation radius: GSFSC, truth, rotation error
RESULTS = {0: (8.7, 8.8, 2.6), 7: (9.6, 9.6, 3.6), 28: (9.8, 19.8, 9.1)}


def made_up_job(config: Any, folder: Path, tracker: Any, progress: Any) -> dict[str, float]:
    """Results as a real job leaves and logs them; a radius without any fails."""
    radius = int(float(config.mask.dilation_radius))
    if radius not in RESULTS:
        raise ValueError("the mask touches the box")
    gsfsc, truth, error = RESULTS[radius]
    point = Point({}, gsfsc, truth, error, held_out=20.0 - gsfsc, blocks=4)
    made = write_run(folder / ".made", point, name="", job=radius)
    for path in made.iterdir():
        if path.name not in ("run.json", "config.yaml"):
            path.rename(folder / path.name)
    shutil.rmtree(made)
    (folder / "figures").mkdir()
    record_run(folder, stop_reason="no pose moved any more", seconds=60.0, cpu_seconds=58.0, device="cpu")
    summary = pd.read_json(folder / "summary.json", typ="series").to_dict()
    log_outputs(tracker, folder, pd.read_csv(folder / "fsc.csv"))
    return summary


class Stored(NamedTuple):
    uri: str
    folder: Path
    sweeps: tuple[Path, ...]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    """Two sweeps of one study, from two working folders, in one store."""
    folder = tmp_path_factory.mktemp("stored")
    uri = store_uri(None, folder / "store")
    prepare_store(uri, STUDY)
    with pytest.MonkeyPatch.context() as patch:
        job = types.ModuleType("cryosweep.job")
        vars(job).update(
            check_job=lambda config: [], inputs_of=lambda config: {}, run_job=made_up_job,
            wants_common_images=lambda config, swept: False,
        )  # fmt: skip
        patch.setitem(sys.modules, "cryosweep.job", job)
        patch.setattr(cryosweep, "job", job)
        patch.setattr(sys, "argv", sys.argv)
        patch.setattr(logging.getLogger(), "handlers", [])
        patch.setenv("HYDRA_FULL_ERROR", "1")
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        for machine, radii in (("a", "0,7"), ("b", "28,99")):
            (folder / machine).mkdir()
            patch.chdir(folder / machine)
            swept = [f"mask.dilation_radius={radii}", "mask.soft_padding_width=10"]
            app.main(["run", "experiment=demo", f"study={STUDY}", *swept])
        sweeps = tuple(sorted(folder.glob(f"?/cryosweep_out/{STUDY}/sweep_*")))
        yield Stored(uri, folder, sweeps)


def test_a_study_is_rebuilt_from_its_store_alone(
    stored: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run_table(compare(load_runs(stored.sweeps)))
    hidden = [sweep.rename(sweep.with_name(f".{sweep.name}")) for sweep in stored.sweeps]
    monkeypatch.chdir(tmp_path)
    try:
        assert app.main(["compare", STUDY, "--from-mlflow", stored.uri]) == 0
    finally:
        for path, sweep in zip(hidden, stored.sweeps, strict=True):
            path.rename(sweep)
    text = capsys.readouterr().out
    assert f"Study {STUDY}: 3 finished, 1 failed" in text
    assert "dilation_radius 99: the mask touches the box" in text
    report = tmp_path / "cryosweep_out" / STUDY / "recovered"
    assert {path.suffix for path in report.glob("report.*")} == {
        ".html",
        ".csv",
        ".json",
        ".cxc",
        ".txt",
        ".md",
    }
    before.to_csv(tmp_path / "before.csv")
    tables = [pd.read_csv(path, index_col="run") for path in (tmp_path / "before.csv", report / "report.csv")]
    # the same but for where the files lie
    pd.testing.assert_frame_equal(*(table.drop(columns="folder") for table in tables))
    assert len(tables[0]) == 5
    page = (report / "report.html").read_text(encoding="utf-8")
    assert "How do dilation radius and soft padding width of the mask change" in page
    assert (
        f"cryosweep run mask.dilation_radius=0 mask.soft_padding_width=10 experiment=demo study={STUDY}"
        in page
    )


def test_one_sweep_of_a_study_and_what_there_is_not(
    stored: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = read_sweep(stored.sweeps[0])["parent_run_id"]
    page = tmp_path / "one.html"
    assert app.main(["compare", parent, "--from-mlflow", stored.uri, "--output", str(page)]) == 0
    assert f"Study {STUDY}: 2 finished, 0 failed" in capsys.readouterr().out
    assert page.is_file()
    assert app.main(["compare", "nosuch", "--from-mlflow", stored.uri]) == 1
    assert f"neither a study nor the id of a parent run in the tracking store {stored.uri}" in (
        capsys.readouterr().err
    )


def test_the_store_tells_runs_apart_at_a_glance(stored: Stored) -> None:
    client = MlflowClient(stored.uri)
    experiment = client.get_experiment_by_name(STUDY)
    assert experiment is not None
    parent = client.get_run(read_sweep(stored.sweeps[0])["parent_run_id"])
    note = parent.data.tags["mlflow.note.content"]
    assert note.startswith("*How do dilation radius")
    assert "| 1 | 0 | " in note
    assert experiment.tags["mlflow.note.content"].startswith("*How do dilation radius")
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} >= {
        "report.html", "report.csv", "report.json", "report.cxc", "report.txt", "report.md"
    }  # fmt: skip
    jobs = client.search_runs([experiment.experiment_id], "tags.`cryosweep.kind` = 'job'")
    assert {str(run.info.run_name) for run in jobs} == {
        f"dilation_radius={radius}" for radius in (0, 7, 28, 99)
    }
    assert all("run.json" in {file.path for file in client.list_artifacts(run.info.run_id)} for run in jobs)


def test_sweeps_that_varied_other_keys_are_put_side_by_side(tmp_path: Path) -> None:
    runs: list[Run] = []
    for number, (swept, radius, seed, error) in enumerate(
        (
            ({"mask.dilation_radius": 0}, 0, 0, None),
            ({"mask.dilation_radius": 7}, 7, 0, "no memory"),
            ({}, 7, 0, None),  # a sweep of one point, later: it takes the place of the one that failed
            ({"fulcrum.kind": "px"}, 0, 1, None),
            ({"mask.dilation_radius": 0}, 0, 0, None),
        )
    ):
        folder = write_run(tmp_path / str(number), Point(swept, error=error), name="0", job=0)
        (folder / "config.yaml").write_text(
            f"seed: {seed}\nmask: {{dilation_radius: {radius}}}\nfulcrum: {{kind: hinge}}\nsearch: {{}}\n"
        )
        runs.append(load_run(folder))
    found = together(runs)
    assert [run.folder.name for run in found] == ["4", "2", "3"]
    assert [run.name for run in found] == [
        "dilation_radius=0 kind=hinge seed=0", "dilation_radius=7 kind=hinge seed=0",
        "dilation_radius=0 kind=px seed=1",
    ]  # fmt: skip
    assert len(compare(found).runs) == 3


@pytest.fixture(scope="module")
def server(stored: Stored) -> Iterator[str]:
    """The store served as `cryosweep ui` does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "cryosweep", "ui", "--uri", stored.uri, "--port", str(port)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(cryosweep.__file__).parents[1])},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        first, second = process.stdout.readline(), process.stdout.readline()
        assert first.startswith(f"serving {stored.uri} at http://127.0.0.1:{port} ")
        end = time.monotonic() + 60.0
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                assert time.monotonic() < end, "the server did not answer"
                assert process.poll() is None
                time.sleep(0.2)
        yield second.split(": ", 1)[1].strip()
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with headless() as window:
        yield window


def assert_calm(browser: Browser) -> None:
    """No page error; MLflow asks for a user that a store without accounts does not have."""
    assert [text for text in browser.complaints() if "/users/current" not in text] == []


@pytest.mark.slow
def test_mlflow_shows_the_study_as_it_is(browser: Browser, server: str, stored: Stored) -> None:
    root, _, rest = server.partition("/#/")
    assert rest == f"{rest.split('/runs')[0]}/runs?viewStateShareKey={RANKED_VIEW}"
    browser.resize(2600, 1100)
    cells = "[...document.querySelectorAll('[role=gridcell][col-id=\"{}\"]')].map(c => c.innerText.trim())"
    heads = """[...document.querySelectorAll('[role=columnheader][col-id]')]
        .sort((a, b) => a.getBoundingClientRect().x - b.getBoundingClientRect().x)
        .map(h => h.getAttribute('col-id')).filter(id => /^(params|metrics)\\./.test(id))"""

    names = (
        "[...document.querySelectorAll('[role=gridcell][col-id=\"attributes.`Run Name`\"] a')]"
        ".map(a => a.innerText.trim())"
    )
    browser.open(server)
    radii = cells.format("params.`mask.dilation_radius`")
    browser.wait(f"({names}).length === 4", 60.0)
    # ranked by FSC area; the job that failed has none
    assert browser.run(f"return {names}") == [f"dilation_radius={radius}" for radius in (0, 7, 28, 99)]
    assert browser.run(f"return {radii}") == ["0", "7", "28", "99"]
    shown = browser.run(f"return {heads}")
    assert shown[:3] == [
        "params.`mask.dilation_radius`",
        "metrics.`fsc_area/frozen`",
        "metrics.`fsc_area/frozen_sd`",
    ]
    assert "How do dilation radius" in browser.run("return document.body.innerText")
    assert_calm(browser)

    browser.open(server.replace(RANKED_VIEW, SWEEPS_VIEW))
    browser.run("location.reload()")
    browser.wait(f"({names}).filter(name => name.startsWith('sweep_')).length === 2", 60.0)
    assert len(browser.run(f"return {names}")) == 2
    opener = "document.querySelector('[role=gridcell][col-id=\"attributes.`Run Name`\"] button')"
    browser.run(f"{opener}.click()")
    browser.wait(f"({names}).length === 4")
    # the rows lie in the document in no order of theirs
    jobs = sorted(name for name in browser.run(f"return {names}") if not name.startswith("sweep_"))
    assert jobs in ([f"dilation_radius={radius}" for radius in pair] for pair in ((0, 7), (28, 99)))
    assert_calm(browser)

    parent = read_sweep(stored.sweeps[0])["parent_run_id"]
    page = f"{root}/#/{rest.split('/runs')[0]}/runs/{parent}"
    browser.open(page)
    browser.wait("document.body.innerText.includes('First by rank sum of FSC area')", 60.0)
    browser.wait("document.querySelector('td') && document.body.innerText.includes('held out logL')")
    browser.open(f"{page}/artifacts/report.html")
    browser.wait("document.querySelector('iframe') !== null", 60.0)
    assert_calm(browser)


def test_the_question_is_the_comment_of_the_experiment_file(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\n# Which mask\n# is best?\n\n# not this\nseed: 0  # nor this\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    assert question_of("mine", [tmp_path]) == "Which mask is best?"
    assert question_of("demo", [tmp_path, conf_folder()]).startswith("How do dilation radius")
    assert question_of(None, [conf_folder()]) == ""
    assert question_of("nosuch", [conf_folder()]) == ""
