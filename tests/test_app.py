"""The command line, with a stub in place of the job: what is refused, what is tracked, how it ends."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from cryosweep import __version__, app
from cryosweep.study import sweep
from cryosweep.tracking import prepare_store, store_uri

STUB = Path(__file__).parent / "stub"
HEAVY = ("torch", "mlflow", "hydra", "pandas", "matplotlib", "plotly", "scipy")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for the module: making its schema takes seconds."""
    uri = store_uri(None, tmp_path_factory.mktemp("store"))
    prepare_store(uri, "warm")
    return uri


@pytest.fixture
def out(tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, the stub in this process and in those of a launcher, the shared store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    # A handler that another test left behind writes to a stream that is closed by now.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setenv("PYTHONPATH", str(STUB))
    monkeypatch.syspath_prepend(str(STUB))
    import stub_job

    import cryosweep

    monkeypatch.setitem(sys.modules, "cryosweep.job", stub_job)
    monkeypatch.setattr(cryosweep, "job", stub_job, raising=False)
    return tmp_path / "cryosweep_out"


def children(uri: str, study: str) -> tuple[Run | None, dict[str, Run]]:
    """The parent run of a study, if it has one, and its other runs by name."""
    client = MlflowClient(uri)
    found = client.search_runs([prepare_store(uri, study)])
    parents = [run for run in found if run.data.tags["cryosweep.kind"] == "sweep"]
    assert len(parents) <= 1
    jobs = {str(run.info.run_name): run for run in found if run.data.tags["cryosweep.kind"] == "job"}
    parent = parents[0] if parents else None
    for run in jobs.values():
        assert run.data.tags.get("mlflow.parentRunId") == (parent.info.run_id if parent else None)
    return parent, jobs


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize("command", [[], ["run"], ["check"], ["compare"], ["replicate"], ["ui"]])
def test_help_fits_a_screen_and_shows_an_example(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):
        app.main([*command, "--help"])
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 50
    assert max(map(len, text.splitlines())) <= 110
    assert f"cryosweep {command[0] if command else 'run'} " in text.split("example")[1]


def test_help_of_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["run", "--help", "fulcrum"]) == 0
    assert "--- fulcrum=marker" in capsys.readouterr().out
    assert app.main(["run", "--help", "fulcrun"]) == 1
    assert "did you mean fulcrum?" in capsys.readouterr().err


def test_help_is_quick() -> None:
    """Heavy libraries cost seconds to import; `--help` and `--version` need none of them."""
    code = (
        "import sys\nfrom cryosweep.app import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"sys.exit(' '.join(name for name in {HEAVY} if name in sys.modules))"
    )
    for flag in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", code, flag], capture_output=True, text=True, check=False)
        assert done.stderr.strip() == ""
        assert "cryosweep" in done.stdout


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cryosweep", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"cryosweep {__version__}\n"
    script = Path(sys.executable).with_name("cryosweep")
    if script.exists():
        done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout == f"cryosweep {__version__}\n"


@pytest.mark.parametrize("arguments", [["run", "--nosuch"], ["ui", "y"], ["check", "-m", "-x"]])
def test_an_unknown_argument_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(arguments) == 2
    assert f"unknown argument {arguments[-1]}" in capsys.readouterr().err


def test_check_says_what_would_be_run(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["check", "experiment=demo"]) == 0
    text = capsys.readouterr().out
    assert "6 jobs: mask.dilation_radius (3 values) x mask.soft_padding_width (2 values)" in text
    assert str(out / "demo") in text
    assert app.main(["check", "seed=3", "-m", "mask.threshold=0.1,0.2"]) == 0
    assert "2 jobs" in capsys.readouterr().out
    assert not out.exists()


@pytest.mark.parametrize("command", ["run", "check"])
def test_faults_are_refused_together(
    command: str, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty = [command, "mask.treshold=0.2", "search.shift_extent=-1"]
    assert app.main(faulty) == 2
    text = capsys.readouterr().err
    assert "2 faults in the configuration, nothing was started" in text
    assert "did you mean mask.threshold?" in text
    assert "search.shift_extent=-1" in text
    assert "Traceback" not in text
    assert app.main([command, "seed=13"]) == 2
    assert "seed=13: refused by the job" in capsys.readouterr().err
    assert not out.exists()
    monkeypatch.setenv("CRYOSWEEP_TRACEBACK", "1")
    with pytest.raises(ValueError, match="2 faults"):
        app.main(faulty)


def test_a_full_memory_and_a_file_are_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, told in (
        (MemoryError(), "there is not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"), "not enough memory"),
        (OSError(28, "No space left on device"), "the disk of the output: no space left; free some"),
        (PermissionError(13, "Permission denied", "/there"), "cryosweep check: /there: Permission denied\n"),
    ):

        def fail(_: object, error: Exception = error) -> int:
            raise error

        monkeypatch.setattr(app, "check", fail)
        assert app.main(["check"]) == 1
        text = capsys.readouterr().err
        assert told in text
        assert text.count("\n") == 1


def test_a_job_on_a_full_disk_ends_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even the reason may find room; the sweep goes on, and the job counts as killed."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cryosweep.study.sweep.record_run", full)
    app._fail(None, tmp_path, "FAILED", MemoryError())  # pyright: ignore[reportPrivateUsage]
    assert "could not be told that the job ended: [Errno 28]" in caplog.text
    assert app._reason(MemoryError()).startswith("there is not enough memory")  # pyright: ignore[reportPrivateUsage]


def test_results_that_cannot_be_written_are_refused(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app.os, "access", lambda *_: False)
    assert app.main(["check"]) == 2
    assert "cannot be written to" in capsys.readouterr().err
    assert not out.exists()


def test_the_configuration_can_be_printed(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["run", "--cfg", "job", "mask.dilation_radius=5px"]) == 0
    assert "  dilation_radius: 5px" in capsys.readouterr().out
    assert not out.exists()


def test_one_job(
    out: Path, uri: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    assert app.main(["run", "study=one_job"]) == 0
    folder = only(out, "one_job/run_*")
    assert f"FINISHED: {folder}" in capsys.readouterr().out
    known = record(folder)
    assert known["status"] == "FINISHED"
    assert known["swept"] == {}
    assert (folder / "config.yaml").is_file()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines][-1] == "finish"
    parent, jobs = children(uri, "one_job")
    assert parent is None
    (run,) = jobs.values()
    assert run.info.run_id == known["mlflow_run_id"]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["fsc_area/frozen"] == 0.5
    assert run.data.params["mask.dilation_radius"] == "7"


def test_one_job_that_fails(out: Path, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["run", "study=one_failure", "seed=66"]) == 1
    folder = only(out, "one_failure/run_*")
    assert record(folder)["status"] == "FAILED"
    assert record(folder)["stop_reason"] == "the stub was told to fail"
    assert "Traceback" not in capsys.readouterr().err
    assert "stub_job.py" in (folder / "traceback.txt").read_text()
    _, jobs = children(uri, "one_failure")
    (run,) = jobs.values()
    assert run.info.status == "FAILED"
    assert "traceback.txt" in {file.path for file in MlflowClient(uri).list_artifacts(run.info.run_id)}


@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]])
def test_a_sweep_has_one_parent_and_outlives_a_failing_job(
    launcher: list[str], out: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if launcher:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs cryosweep[parallel]")
    study = "sweep_joblib" if launcher else "sweep_basic"
    arguments = ["run", "-m", "seed=1,66,2", f"study={study}", *launcher]
    assert app.main(arguments) == 1
    folder = only(out, f"{study}/sweep_*")
    book = sweep.read_sweep(folder)
    assert book["status"] == "FAILED"
    assert book["jobs_expected"] == 3
    assert [(job["name"], job["status"]) for job in book["jobs"]] == [
        ("seed=1", "FINISHED"),
        ("seed=66", "FAILED"),
        ("seed=2", "FINISHED"),
    ]
    assert book["jobs"][1]["error"] == "the stub was told to fail"
    assert record(folder / "2")["swept"] == {"seed": 2}
    text = capsys.readouterr().out
    assert "FAILED: job 1 (seed=66): the stub was told to fail" in text
    assert "2 of 3 jobs finished" in text
    assert "no comparison: " in text  # the stub leaves no maps to compare
    parent, jobs = children(uri, study)
    assert parent is not None
    assert parent.info.run_id == book["parent_run_id"]
    assert parent.info.status == "FAILED"
    assert parent.data.metrics == {"jobs": 3.0, "jobs_finished": 2.0}
    assert {name: run.info.status for name, run in jobs.items()} == {
        "seed=1": "FINISHED",
        "seed=66": "FAILED",
        "seed=2": "FINISHED",
    }


def stub_comparison(folder: Path, page: Path | None = None, **_: object) -> str:
    page = page or folder / sweep.PAGE_FILE
    page.write_text("<html>")
    page.with_suffix(".csv").write_text("run\n")
    page.with_suffix(".txt").write_text("the table\n")
    return "the table"


def test_a_sweep_ends_with_its_comparison_and_can_be_compared_again(
    out: Path, uri: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "write_comparison", stub_comparison)
    assert app.main(["run", "-m", "fulcrum=mask_centre,box_centre", "study=compared"]) == 0
    folder = only(out, "compared/sweep_*")
    assert "the table" in capsys.readouterr().out
    parent, jobs = children(uri, "compared")
    assert parent is not None
    assert parent.info.status == "FINISHED"
    assert set(jobs) == {"fulcrum=mask_centre", "fulcrum=box_centre"}
    assert jobs["fulcrum=box_centre"].data.params["fulcrum"] == "box_centre"
    kept = {file.path for file in MlflowClient(uri).list_artifacts(parent.info.run_id)}
    assert kept == {"report.html", "report.csv", "report.txt"}
    for name in ("compared", str(folder), parent.info.run_id):
        assert app.main(["compare", name]) == 0
        assert "the table" in capsys.readouterr().out
    assert app.main(["compare", "compared", "--output", "again.html"]) == 0
    kept = {file.path for file in MlflowClient(uri).list_artifacts(parent.info.run_id)}
    assert "again.html" in kept
    assert app.main(["compare", "nosuch"]) == 1
    assert "(studies there: compared)" in capsys.readouterr().err
    assert app.main(["run", "-m", "seed=1,2", f"hydra.sweep.dir={folder}"]) == 2
    assert "holds results already" in capsys.readouterr().err


def test_a_comparison_that_breaks_leaves_the_jobs_known(
    out: Path, uri: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(folder: Path, page: Path | None = None) -> str:
        raise KeyError("a column")

    monkeypatch.setattr(sweep, "write_comparison", break_off)
    with pytest.warns(UserWarning, match="on_multirun_end raised KeyError"):
        assert app.main(["run", "-m", "seed=1,2", "study=broken"]) == 1
    assert "no comparison: it broke off; `cryosweep compare" in capsys.readouterr().out
    parent, _ = children(uri, "broken")
    assert parent is not None
    assert parent.info.status == "FINISHED"


def test_ctrl_c_ends_the_sweep_and_says_so(out: Path, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["run", "-m", "seed=1,99,2", "study=stopped"]) == 130
    book = sweep.read_sweep(only(out, "stopped/sweep_*"))
    assert book["status"] == "KILLED"
    assert [job["status"] for job in book["jobs"]] == ["FINISHED", "KILLED"]
    assert book["jobs"][1]["error"] == "interrupted (Ctrl-C or a signal to stop)"
    parent, jobs = children(uri, "stopped")
    assert parent is not None
    assert parent.info.status == "KILLED"
    assert jobs["seed=99"].info.status == "KILLED"
    assert "1 of 3 jobs finished" in capsys.readouterr().out


def test_a_job_that_was_killed_is_marked(out: Path, uri: str) -> None:
    assert app.main(["run", "-m", "seed=1,2", "study=killed"]) == 1
    folder = only(out, "killed/sweep_*")
    sweep.record_run(folder / "1", status="RUNNING")
    assert sweep.close_sweep(folder)["status"] == "KILLED"
    assert record(folder / "1")["status"] == "KILLED"
    _, jobs = children(uri, "killed")
    assert jobs["seed=2"].info.status == "KILLED"


def test_a_job_without_its_parent_refuses_to_start(
    out: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["run", "-m", "seed=1,2", "study=orphans", "~hydra.callbacks.sweep"]) == 1
    assert "the sweep was not opened" in capsys.readouterr().out
    for job in ("0", "1"):
        known = record(only(out, "orphans/sweep_*") / job)
        assert known["status"] == "FAILED"
        assert "CRYOSWEEP_PARENT_RUN is not set" in known["stop_reason"]
    assert children(uri, "orphans") == (None, {})


def test_a_store_that_cannot_be_used_stops_the_sweep(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    uri = f"tracking.uri=sqlite:///{tmp_path}/file/mlflow.db"
    with pytest.raises(SystemExit, match=r"the sweep was not started: tracking\.uri="):
        app.main(["run", "-m", "seed=1,2", uri])
    assert not list(out.rglob("run.json"))
    assert app.main(["run", uri]) == 1
    assert "tracking.enabled=false" in record(only(out, "*/run_*"))["stop_reason"]


def test_without_tracking_only_the_folders_remain(out: Path, uri: str) -> None:
    assert app.main(["run", "-m", "seed=1,2", "study=untracked", "tracking.enabled=false"]) == 1
    book = sweep.read_sweep(only(out, "untracked/sweep_*"))
    assert book["parent_run_id"] is None
    assert [job["status"] for job in book["jobs"]] == ["FINISHED", "FINISHED"]
    assert children(uri, "untracked") == (None, {})


def test_the_ui_serves_this_machine_only(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert app.main(["ui"]) == 1
    assert "does not exist; start a run first" in capsys.readouterr().err
    assert app.main(["ui", "--uri", "http://server:5000"]) == 1
    assert "is a server already" in capsys.readouterr().err
    started: list[tuple[list[str], dict[str, str]]] = []

    ended: list[bool] = []

    class Server:
        def __init__(self, command: list[str], *, env: dict[str, str]) -> None:
            started.append((command, env))

        def wait(self) -> int:
            os.kill(os.getpid(), signal.SIGTERM)
            return 0

        def terminate(self) -> None:
            ended.append(True)

    monkeypatch.setattr(subprocess, "Popen", Server)
    out.mkdir()
    (out / "mlflow.db").touch()
    assert app.main(["ui", "--port", "5001"]) == 0
    assert ended == [True]  # `kill` of the command ends the server too
    ((command, env),) = started
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--workers") + 1] == "1"
    assert command[command.index("--backend-store-uri") + 1] == f"sqlite:///{out}/mlflow.db"
    assert env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_a_book_cut_short_is_said(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text('{"study": ')
    with pytest.raises(ValueError, match="is not complete JSON"):
        sweep.read_sweep(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        sweep.read_sweep(tmp_path / "nosuch")


def test_a_store_that_is_not_there_is_named_and_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["compare", "--from-mlflow", f"sqlite:///{tmp_path}/none.db", "demo"]) == 1
    assert "there is no file" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_seeds_that_are_no_numbers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        app.main(["replicate", "demo", "--seeds", "a"])
    assert "a: write whole numbers, such as 1,2" in capsys.readouterr().err
