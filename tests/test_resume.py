"""A sweep that was killed and typed again ends with the numbers of one that was not."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from cryosweep import app
from cryosweep.study import resume, sweep
from tests.test_app import only, out, record, uri

__all__ = ["out", "uri"]  # fixtures

ROOT = Path(__file__).parents[1]
CONFIG: dict[str, Any] = {
    "study": "a", "seed": 0, "output_dir": "out", "tracking": {"uri": None},
    "compute": {"device": "cpu", "threads": 1, "memory_budget": "4GB"}, "mask": {"threshold": 0.15},
}  # fmt: skip


def test_fingerprint_sees_what_decides_a_number_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = resume.fingerprint(CONFIG, {"a.star": "12"})
    alike = {
        **CONFIG, "study": "b", "output_dir": "elsewhere", "tracking": {"uri": "x"},
        "compute": {"device": "cpu", "threads": 8, "memory_budget": "1GB"},
    }  # fmt: skip
    assert resume.fingerprint(alike, {"a.star": "12"}) == wanted
    assert resume.fingerprint({**CONFIG, "seed": 1}, {"a.star": "12"}) != wanted
    assert resume.fingerprint({**CONFIG, "mask": {"threshold": 0.2}}, {"a.star": "12"}) != wanted
    other = {**CONFIG, "compute": {**CONFIG["compute"], "device": "cuda"}}
    assert resume.fingerprint(other, {"a.star": "12"}) != wanted
    assert resume.fingerprint(CONFIG, {"a.star": "13"}) != wanted
    monkeypatch.setattr(resume, "code_digest", lambda: "other code")
    assert resume.fingerprint(CONFIG, {"a.star": "12"}) != wanted


def test_every_module_named_as_not_numerical_is_there() -> None:
    package = ROOT / "cryosweep"
    for name in resume._NOT_NUMERICAL:
        assert (package / name).exists(), name


def swept(out: Path, study: str) -> list[Path]:
    return sorted((out / study).glob("sweep_*"), key=lambda folder: folder.stat().st_mtime)


def test_a_sweep_typed_again_computes_only_what_is_new(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(seeds: str, name: str, *more: str) -> Path:
        folder = out / "again" / name
        app.main(["run", "-m", f"seed={seeds}", "study=again", f"hydra.sweep.dir={folder}", *more])
        return folder

    first = run("1,2", "sweep_a")
    text = capsys.readouterr().out
    assert "taken over" not in text
    second = run("2,1,3", "sweep_b")
    assert "taken over from earlier sweeps of the study: 2 of 3 jobs" in capsys.readouterr().out
    taken = [record(second / job).get("taken_from") for job in "012"]
    assert taken == [str(first / "1"), str(first / "0"), None]
    known = record(second / "0")
    assert (known["status"], known["swept"], known["job"]) == ("FINISHED", {"seed": 2}, "0")
    assert known["seed"] == 2
    assert (second / "0" / "summary.json").read_text() == (first / "1" / "summary.json").read_text()
    # by force all are computed
    third = run("1,2", "sweep_c", "--force")
    assert [record(third / job).get("taken_from") for job in "01"] == [None, None]
    # a run that lost a file, or one that failed, is no result
    for folder in (first, second, third):
        for path in folder.glob("*/summary.json"):
            path.write_text("{}")
    fourth = run("1,66", "sweep_d")
    assert [record(fourth / job).get("taken_from") for job in "01"] == [None, None]
    fifth = run("66", "sweep_e")
    assert record(fifth / "0")["status"] == "FAILED"
    assert "taken_from" not in record(fifth / "0")
    # and a change of the code puts everything out of use
    monkeypatch.setattr(resume, "code_digest", lambda: "other code")
    sixth = run("1", "sweep_f")
    assert record(sixth / "0").get("taken_from") is None


def test_maps_are_taken_over_whole(tmp_path: Path) -> None:
    source, target = tmp_path / "study" / "a" / "0", tmp_path / "study" / "b" / "3"
    (source / "figures").mkdir(parents=True)
    target.mkdir(parents=True)
    for name in ("map.mrc", "fsc.csv", "figures/slices.png", "metrics.jsonl", "cryosweep.log"):
        (source / name).write_text(name)
    files = resume.inventory(source)
    assert set(files) == {"map.mrc", "fsc.csv", "figures/slices.png"}
    sweep.record_run(source, status="FINISHED", fingerprint="f", files=files, name="old", job="0")
    sweep.record_run(target, name="new", job="3", status="RUNNING")
    assert resume.find_finished(target, "f") == source
    assert resume.find_finished(target, "g") is None
    resume.take_over(source, target)
    assert {name: (target / name).read_text() for name in files} == {name: name for name in files}
    assert not (target / "metrics.jsonl").exists()
    known = record(target)
    assert (known["name"], known["job"], known["taken_from"]) == ("new", "3", str(source))
    # what is written to one later does not reach the other
    (target / "fsc.csv").write_text("changed")
    assert (source / "fsc.csv").read_text() == "fsc.csv"
    (source / "map.mrc").unlink()
    assert resume.find_finished(tmp_path / "study" / "c" / "0", "f") is None


TINY = (
    "study=tiny", "data.particles=40", "data.box_size=48", "data.pixel_size=7.0", "compute.device=cpu",
    "compute.threads=1", "refinement.initial_lowpass=20", "refinement.max_iterations=1",
    "scoring.band_low=60", "tracking.enabled=false", "mask.dilation_radius=0,14,21",
)  # fmt: skip
# of the clock, not of the result
TIMES = {"seconds", "cpu_seconds"}


def started(folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cryosweep", "run", "-m", *TINY]
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def state(path: Path) -> str:
    return str(json.loads(path.read_text())["status"]) if path.is_file() else "absent"


@pytest.mark.slow
def test_killed_in_the_middle_and_typed_again_it_ends_with_the_same_numbers(tmp_path: Path) -> None:
    process = started(tmp_path / "killed")
    (study,) = (tmp_path / "killed" / "cryosweep_out" / "tiny",)
    for _ in range(3000):
        if list(study.glob("sweep_*/1/run.json")) or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = only(study, "sweep_*")
    assert state(killed / "0" / "run.json") == "FINISHED"
    assert state(killed / "1" / "run.json") == "RUNNING"
    time.sleep(1.1)  # folders are named by the second
    assert started(tmp_path / "killed").wait() == 0
    resumed = swept(tmp_path / "killed" / "cryosweep_out", "tiny")[-1]
    assert resumed != killed
    assert record(resumed / "0")["taken_from"] == str(killed / "0")
    assert "taken_from" not in record(resumed / "1")

    assert started(tmp_path / "whole").wait() == 0
    whole = only(tmp_path / "whole" / "cryosweep_out" / "tiny", "sweep_*")
    for job in "012":
        ended, expected = (
            json.loads((folder / job / "summary.json").read_text()) for folder in (resumed, whole)
        )
        assert {k: v for k, v in ended.items() if k not in TIMES} == {
            k: v for k, v in expected.items() if k not in TIMES
        }
        for name in ("poses.csv", "fsc.csv", "half_a.mrc", "half_b.mrc"):
            both = [(folder / job / name).read_bytes() for folder in (resumed, whole)]
            if name.endswith(".mrc"):
                both = [content[1024:] for content in both]  # the header holds the time
            assert both[0] == both[1], (job, name)
    # the images that the star file of a taken-over run names are found from its place
    from cryosweep.io.particles import read_particles

    assert len(read_particles(resumed / "0" / "particles.star")) == 40


LAUNCHED = (
    *TINY[:1], "data.particles=80", *TINY[2:7], "refinement.max_iterations=6", "scoring.band_low=60",
    "scoring.jackknife=0", "mask.dilation_radius=0,7,14",
)  # fmt: skip


def begun(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    """A sweep in a session of its own: all its processes can be killed at once."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    folder.mkdir(exist_ok=True)
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "cryosweep", "run", "-m", *LAUNCHED, *more], cwd=folder, env=environment,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def numbers(sweep_folder: Path) -> dict[str, dict[str, float]]:
    """The summary of each job without times."""
    return {
        path.parent.name: {k: v for k, v in json.loads(path.read_text()).items() if k not in TIMES}
        for path in sorted(sweep_folder.glob("*/summary.json"))
    }


def written_since(earlier: dict[Path, int], out: Path) -> bool:
    """Whether there is a checkpoint that was not there, or is newer than it was."""
    for path in out.glob("stages/refinement/*/checkpoint.pt"):
        with contextlib.suppress(FileNotFoundError):  # its refinement has just ended
            if earlier.get(path) != path.stat().st_mtime_ns:
                return True
    return False


@pytest.mark.slow
def test_killed_twice_under_joblib_it_goes_on_from_its_iterations(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs cryosweep[parallel]")
    killed, out = tmp_path / "killed", tmp_path / "killed" / "cryosweep_out"
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    for least in (0, 1):
        earlier = {path: path.stat().st_mtime_ns for path in out.glob("stages/refinement/*/checkpoint.pt")}
        process = begun(killed, *launcher)
        for _ in range(15000):
            finished = [path for path in out.glob("tiny/*/*/run.json") if state(path) == "FINISHED"]
            if process.poll() is not None or (len(finished) >= least and written_since(earlier, out)):
                break
            time.sleep(0.02)
        assert process.poll() is None, (killed / "log.txt").read_text()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        last = swept(out, "tiny")[-1]
        assert state(last / "sweep.json") == "RUNNING"
        assert any(state(path) == "RUNNING" for path in last.glob("*/run.json"))
        assert list(out.glob("stages/refinement/*/checkpoint.pt"))
        time.sleep(1.1)  # folders are named by the second
    assert begun(killed, *launcher).wait() == 0
    first, second, third = sorted(out.glob("tiny/sweep_*"))
    assert [state(each / "sweep.json") for each in (first, second, third)] == ["KILLED", "KILLED", "FINISHED"]
    assert all(state(path) != "RUNNING" for path in out.glob("tiny/*/*/run.json"))
    for each in (second, third):
        logs = [path.read_text() for path in each.glob("*/cryosweep.log")]
        assert any("goes on after iteration" in text for text in logs)
    assert not list(out.glob("stages/*/*.making.*"))

    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    (experiment,) = [each for each in client.search_experiments() if each.name == "tiny"]
    runs = client.search_runs([experiment.experiment_id])
    parents = [run.info.status for run in runs if run.data.tags["cryosweep.kind"] == "sweep"]
    assert sorted(parents) == ["FINISHED", "KILLED", "KILLED"]
    assert "RUNNING" not in {run.info.status for run in runs}

    assert begun(tmp_path / "whole", "tracking.enabled=false").wait() == 0
    whole = only(tmp_path / "whole" / "cryosweep_out" / "tiny", "sweep_*")
    assert len(numbers(whole)) == 3
    assert numbers(third) == numbers(whole)
    for job in range(3):
        both = [(folder / str(job) / "poses.csv").read_bytes() for folder in (third, whole)]
        assert both[0] == both[1]


def test_only_what_is_gone_is_marked(out: Path, uri: str) -> None:
    assert app.main(["run", "-m", "seed=1,2", "study=gone"]) == 1
    assert app.main(["run", "study=gone"]) == 0
    swept_folder, single = only(out, "gone/sweep_*"), only(out, "gone/run_*")
    book = sweep.read_sweep(swept_folder)

    def as_if_running(*folders: Path) -> None:
        (swept_folder / "sweep.json").write_text(json.dumps({**book, "status": "RUNNING"}))
        for folder in folders:
            sweep.record_run(folder, status="RUNNING")

    jobs = [swept_folder / "0", swept_folder / "1"]
    as_if_running(*jobs, single)
    with sweep.alive(swept_folder), sweep.alive(single):
        assert sweep.settle(out / "gone") == []
        assert sweep.is_alive(single)
    # a job that outlived its sweep says itself how it ends
    with sweep.alive(jobs[1]):
        assert sweep.settle(out / "gone") == [swept_folder, single]
        assert [state(job / "run.json") for job in (*jobs, single)] == ["KILLED", "RUNNING", "KILLED"]
    assert state(swept_folder / "sweep.json") == "KILLED"
    assert sweep.settle(out / "gone") == [jobs[1]]
    assert sweep.settle(out / "gone") == []
    ended = [sweep.read_sweep(swept_folder)["parent_run_id"]]
    ended += [record(folder)["mlflow_run_id"] for folder in (*jobs, single)]
    assert {MlflowClient(uri).get_run(run).info.status for run in ended} == {"KILLED"}
    # a store that is out of reach stops nobody
    as_if_running()
    (swept_folder / "sweep.json").write_text(
        json.dumps({**book, "status": "RUNNING", "tracking_uri": "sqlite:////nosuch/folder/mlflow.db"})
    )
    assert sweep.settle(out / "gone") == [swept_folder]
    assert state(swept_folder / "sweep.json") == "KILLED"


@pytest.mark.parametrize("command", [["compare", "seen"], ["store", "ls"]])
def test_looking_at_a_study_marks_what_is_gone(command: list[str], out: Path) -> None:
    assert app.main(["run", "-m", "seed=1,2", "study=seen", "tracking.enabled=false"]) == 1
    folder = only(out, "seen/sweep_*")
    (folder / "sweep.json").write_text(json.dumps({**sweep.read_sweep(folder), "status": "RUNNING"}))
    (out / "stages").mkdir(exist_ok=True)
    app.main(command)
    assert state(folder / "sweep.json") == "KILLED"
