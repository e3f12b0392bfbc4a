import json
import math
import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cryosweep import tracking
from cryosweep.tracking import (
    JsonLinesTracker,
    MLflowTracker,
    Tracker,
    TrackerGroup,
    TrackingError,
    flatten,
    ordered_params,
    prepare_store,
    run_name,
    store_uri,
)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for the module: making its schema takes seconds."""
    return store_uri(None, tmp_path_factory.mktemp("tracking"))


def tell_everything(tracker: Tracker, folder: Path) -> None:
    (folder / "note.txt").write_text("note")
    (folder / "figures").mkdir()
    (folder / "figures" / "one.txt").write_text("one")
    tracker.start({"mask.dilation_radius": 7, "prior": None}, {"kind": "job"})
    tracker.metrics({"resolution": 12.0, "undefined": math.nan}, step=1)
    tracker.metrics({"resolution": 9.5}, step=2)
    tracker.curve("frozen", [1.0, 0.8, 0.1])
    tracker.table("fsc", {"shell": [0, 1], "frozen": [1.0, math.nan]})
    tracker.tags({"finding.R7": "warning: " + "x" * 6000})
    tracker.artifact(folder / "note.txt")
    tracker.artifact(folder / "figures")
    tracker.finish("FINISHED")


def test_json_lines_hold_everything(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    tell_everything(JsonLinesTracker(path), tmp_path)
    events = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert [event["event"] for event in events] == [
        "start",
        "metrics",
        "metrics",
        "curve",
        "table",
        "tags",
        "artifact",
        "artifact",
        "finish",
    ]
    assert events[0]["params"] == {"mask.dilation_radius": 7, "prior": None}
    assert events[1]["values"] == {"resolution": 12.0, "undefined": None}
    assert events[2]["step"] == 2
    assert events[3]["values"] == [1.0, 0.8, 0.1]
    assert events[4]["columns"] == {"shell": [0, 1], "frozen": [1.0, None]}


def test_a_run_in_the_store(uri: str, tmp_path: Path) -> None:
    experiment = prepare_store(uri, "run")
    tracker = MLflowTracker(uri, experiment, "dilation_radius=7", parent_run_id="abc")
    tell_everything(tracker, tmp_path)
    client = MlflowClient(uri)
    assert tracker.run_id is not None
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "dilation_radius=7"
    assert run.data.params == {"mask.dilation_radius": "7", "prior": "null"}
    assert run.data.tags["mlflow.parentRunId"] == "abc"
    assert run.data.tags["finding.R7"].startswith("warning: xxx")
    assert "undefined" not in run.data.metrics
    history = client.get_metric_history(tracker.run_id, "resolution")
    assert [(point.step, point.value) for point in history] == [(1, 12.0), (2, 9.5)]
    curve = client.get_metric_history(tracker.run_id, "fsc/frozen")
    assert [(point.step, point.value) for point in curve] == [(0, 1.0), (1, 0.8), (2, 0.1)]
    assert {file.path for file in client.list_artifacts(tracker.run_id)} == {
        "fsc.json",
        "note.txt",
        "figures",
    }
    assert run.info.artifact_uri.startswith(tracking.sqlite_file(uri).parent.as_uri())


def test_numbers_wait_for_a_batch(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = MLflowTracker(uri, prepare_store(uri, "batches"), "batch")
    tracker.start({f"key{n}": n for n in range(150)}, {})
    client = MlflowClient(uri)
    assert tracker.run_id is not None
    assert len(client.get_run(tracker.run_id).data.params) == 150
    monkeypatch.setattr(tracking, "METRICS_PER_BATCH", 4)
    monkeypatch.setattr(tracking, "SECONDS_BEFORE_SENDING", 1e9)
    tracker.metrics({"a": 1.0, "b": 2.0, "c": 3.0})
    assert client.get_run(tracker.run_id).data.metrics == {}
    tracker.metrics({"d": 4.0, "e": 5.0})
    assert len(client.get_run(tracker.run_id).data.metrics) == 5
    tracker.metrics({"f": 6.0})
    tracker.finish("KILLED")
    run = client.get_run(tracker.run_id)
    assert run.data.metrics["f"] == 6.0
    assert run.info.status == "KILLED"


def test_the_environment_cannot_divert_a_run(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    first, second = (MLflowTracker(uri, prepare_store(uri, "diverted"), name) for name in ("one", "two"))
    for tracker in (first, second):
        tracker.start({}, {})
        tracker.finish("FINISHED")
    assert len({first.run_id, second.run_id, "0" * 32}) == 3


def test_the_store_is_ready_for_many_writers(uri: str) -> None:
    first = prepare_store(uri, "writers")
    assert prepare_store(uri, "writers") == first
    file = tracking.sqlite_file(uri)
    assert file is not None
    with sqlite3.connect(file) as connection:
        mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    connection.close()
    assert mode == ("wal" if tracking._is_local(file) else "delete")


@pytest.mark.parametrize(("kind", "local"), [("ext4", True), ("nfs4", False), ("fuse.sshfs", False)])
def test_a_network_disk_is_known(
    kind: str, local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = f"rootfs / ext4 rw 0 0\nserver:/x {tmp_path.resolve()} {kind} rw 0 0\n"
    real = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda path, **k: mounts if path == Path("/proc/mounts") else real(path, **k)
    )
    assert tracking._is_local(tmp_path / "mlflow.db") is local


def test_a_store_out_of_reach_is_one_line(uri: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for store in (f"sqlite:///{tmp_path}/file/mlflow.db", f"sqlite:///{tmp_path}/file", "nosuch://store"):
        with pytest.raises(TrackingError, match=r"^tracking\.uri=.*tracking\.enabled=false$"):
            prepare_store(store, "study")
    client = MlflowClient(uri)
    client.delete_experiment(prepare_store(uri, "deleted"))
    with pytest.raises(TrackingError, match="'deleted' was deleted"):
        prepare_store(uri, "deleted")


def test_a_group_tells_everyone(tmp_path: Path) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    tell_everything(TrackerGroup([*map(JsonLinesTracker, paths)]), tmp_path)
    first, second = (
        [{k: v for k, v in json.loads(line).items() if k != "time"} for line in path.read_text().splitlines()]
        for path in paths
    )
    assert first == second
    assert len(first) == 9


@pytest.mark.parametrize(
    ("swept", "name"),
    [
        (
            {"mask.dilation_radius": 7, "mask.soft_padding_width": "5px"},
            "dilation_radius=7 soft_padding_width=5px",
        ),
        ({"mask.threshold": 0.1, "other.threshold": 0.2}, "mask.threshold=0.1 other.threshold=0.2"),
        ({"fulcrum": "px"}, "fulcrum=px"),
        ({}, ""),
    ],
)
def test_run_names_are_short_and_unambiguous(swept: dict[str, object], name: str) -> None:
    assert run_name(swept) == name


def test_params_are_flat_with_the_swept_first() -> None:
    config = {"study": "s", "mask": {"threshold": 0.1, "unit": {"name": "px"}}}
    assert flatten(config) == {"study": "s", "mask.threshold": 0.1, "mask.unit.name": "px"}
    assert list(ordered_params(config, {"mask.threshold": 0.1})) == [
        "mask.threshold",
        "study",
        "mask.unit.name",
    ]


def test_store_uri(tmp_path: Path) -> None:
    assert store_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert store_uri("http://server:5000", tmp_path) == "http://server:5000"
