"""Where the numbers of a run go: JSON lines in the run folder always, an MLflow store besides."""

from __future__ import annotations

import base64
import getpass
import json
import logging
import math
import os
import sqlite3
import time
import zlib
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from filelock import FileLock

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]
Cell = float | int | str

# Limits of one `log_batch` (MLflow 3.17.2), and how long a number may wait before it is sent.
METRICS_PER_BATCH = 1000
PARAMS_PER_BATCH = 100
TAG_LENGTH = 5000
SECONDS_BEFORE_SENDING = 5.0

# Where MLflow keeps a note in Markdown, and the saved views of an experiment; keys and names of ours.
NOTE = "mlflow.note.content"
VIEW_TAG = "mlflow.sharedViewState."
RANKED_VIEW, SWEEPS_VIEW = "cryosweep-jobs", "cryosweep-sweeps"
VIEW_NAMES = {RANKED_VIEW: "jobs, highest FSC area first", SWEEPS_VIEW: "sweeps and their jobs"}

# On these a write-ahead log breaks: its index is shared memory, which other machines do not see.
NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "fuse", "9p")


class TrackingError(RuntimeError):
    """The tracking store cannot be used."""


class Tracker(Protocol):
    """What a run tells while it works. `start` comes first and `finish` last, once each."""

    def start(self, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """Open the record of the run; `params` in the order they are shown."""
        ...

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None:
        """Numbers that belong to one step, for example one iteration."""
        ...

    def curve(self, name: str, values: Sequence[float]) -> None:
        """A metric with one value a shell, step = shell index: `fsc/<name>`."""
        ...

    def table(self, name: str, columns: Mapping[str, Sequence[Cell]]) -> None:
        """Columns of equal length, kept as one table."""
        ...

    def tags(self, values: Mapping[str, str]) -> None:
        """Words that belong to the whole run, by name."""
        ...

    def artifact(self, path: Path, *, folder: str = "") -> None:
        """A file or folder worth keeping with the run."""
        ...

    def finish(self, status: Status) -> None:
        """Close the record."""
        ...


class JsonLinesTracker:
    """One JSON object a line, written at once; a number that is not finite is null."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """Begin a new file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("")
        plain = {key: _plain(value) for key, value in params.items()}
        self._write(event="start", params=plain, tags=dict(tags))

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None:
        """One line for all values."""
        self._write(event="metrics", step=step, values={key: _finite(value) for key, value in values.items()})

    def curve(self, name: str, values: Sequence[float]) -> None:
        """One line for the curve."""
        self._write(event="curve", name=f"fsc/{name}", values=[_finite(value) for value in values])

    def table(self, name: str, columns: Mapping[str, Sequence[Cell]]) -> None:
        """One line for the table."""
        plain = {
            key: [value if isinstance(value, str) else _finite(value) for value in column]
            for key, column in columns.items()
        }
        self._write(event="table", name=name, columns=plain)

    def tags(self, values: Mapping[str, str]) -> None:
        """One line for all of them."""
        self._write(event="tags", values=dict(values))

    def artifact(self, path: Path, *, folder: str = "") -> None:
        """Only the name: the file lies in the run folder already."""
        self._write(event="artifact", path=str(path), folder=folder)

    def finish(self, status: Status) -> None:
        """The last line."""
        self._write(event="finish", status=status)

    def _write(self, **fields: object) -> None:
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class TrackerGroup:
    """Tells everything to several trackers, in order."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = tuple(trackers)

    def start(self, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """Start each."""
        for tracker in self.trackers:
            tracker.start(params, tags)

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None:
        """Tell each."""
        for tracker in self.trackers:
            tracker.metrics(values, step=step)

    def curve(self, name: str, values: Sequence[float]) -> None:
        """Tell each."""
        for tracker in self.trackers:
            tracker.curve(name, values)

    def table(self, name: str, columns: Mapping[str, Sequence[Cell]]) -> None:
        """Tell each."""
        for tracker in self.trackers:
            tracker.table(name, columns)

    def tags(self, values: Mapping[str, str]) -> None:
        """Tell each."""
        for tracker in self.trackers:
            tracker.tags(values)

    def artifact(self, path: Path, *, folder: str = "") -> None:
        """Tell each."""
        for tracker in self.trackers:
            tracker.artifact(path, folder=folder)

    def finish(self, status: Status) -> None:
        """Finish each."""
        for tracker in self.trackers:
            tracker.finish(status)


class MLflowTracker:
    """A run of an MLflow store; numbers wait up to `SECONDS_BEFORE_SENDING` and go in batches.

    It speaks through the client only, so neither MLflow's global run nor MLFLOW_RUN_ID of the environment can
    divert it.

    Args:
        uri: the tracking store, made ready by `prepare_store` before.
        experiment_id: the experiment of the study.
        run_name: shown in the table of runs.
        parent_run_id: the run of the sweep that this one belongs to.
        run_id: a run that exists already, to add to or to finish; `start` is then not called.
    """

    def __init__(
        self,
        uri: str,
        experiment_id: str,
        run_name: str,
        *,
        parent_run_id: str | None = None,
        run_id: str | None = None,
    ) -> None:
        self.uri = uri
        self.experiment_id = experiment_id
        self.run_name = run_name
        self.parent_run_id = parent_run_id
        self.run_id = run_id
        self._waiting: list[Metric] = []
        self._sent = time.monotonic()
        self._open: MlflowClient | None = None

    def start(self, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """Create the run.

        Raises:
            TrackingError: the store cannot be written.
        """
        from mlflow.entities import Param

        all_tags = {"mlflow.user": _user(), "mlflow.source.name": "cryosweep", **tags}
        if self.parent_run_id is not None:
            all_tags["mlflow.parentRunId"] = self.parent_run_id
        with _store_errors(self.uri):
            run = self._client().create_run(self.experiment_id, run_name=self.run_name, tags=all_tags)
            self.run_id = str(run.info.run_id)
            entities = [Param(key, "null" if value is None else str(value)) for key, value in params.items()]
            for first in range(0, len(entities), PARAMS_PER_BATCH):
                self._client().log_batch(self._id(), params=entities[first : first + PARAMS_PER_BATCH])

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None:
        """Keep, and send if it is time. MLflow has no null and clips infinity, so only finite numbers go."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [
            Metric(key, float(value), now, step) for key, value in values.items() if math.isfinite(value)
        ]
        if len(self._waiting) >= METRICS_PER_BATCH or time.monotonic() - self._sent >= SECONDS_BEFORE_SENDING:
            self._send()

    def curve(self, name: str, values: Sequence[float]) -> None:
        """One metric with a step a shell."""
        for shell, value in enumerate(values):
            self.metrics({f"fsc/{name}": value}, step=shell)

    def table(self, name: str, columns: Mapping[str, Sequence[Cell]]) -> None:
        """A table that MLflow shows beside the tables of other runs."""
        data = {key: list(column) for key, column in columns.items()}
        self._client().log_table(self._id(), data, f"{name}.json")

    def tags(self, values: Mapping[str, str]) -> None:
        """Tags of the run, cut at the length MLflow takes."""
        from mlflow.entities import RunTag

        entities = [RunTag(key, value[:TAG_LENGTH]) for key, value in values.items()]
        self._client().log_batch(self._id(), tags=entities)

    def artifact(self, path: Path, *, folder: str = "") -> None:
        """Copy a file or folder to the artifacts of the run."""
        self._send()
        if path.is_dir():
            self._client().log_artifacts(self._id(), str(path), folder or path.name)
        else:
            self._client().log_artifact(self._id(), str(path), folder or None)

    def describe(self, markdown: str) -> None:
        """Make the text the note of this run and of its experiment."""
        self.tags({NOTE: markdown})
        self._client().set_experiment_tag(self.experiment_id, NOTE, markdown[:TAG_LENGTH])

    def save_views(self, *, swept: Sequence[str], metrics: Sequence[str]) -> None:
        """Give the experiment two saved views of its runs with these columns, the swept ones first.

        One shows the jobs alone, highest in the first metric on top; one the sweeps with their jobs below
        them, which MLflow draws only in the order of time.
        """
        columns = [*(f"params.`{key}`" for key in swept), *(f"metrics.`{key}`" for key in metrics)]
        states = {
            RANKED_VIEW: _view_state(columns, "tags.`cryosweep.kind` = 'job'", f"metrics.`{metrics[0]}`"),
            SWEEPS_VIEW: _view_state(columns, "", "attributes.start_time"),
        }
        now = int(time.time() * 1000)
        for (key, name), state in zip(VIEW_NAMES.items(), states.values(), strict=True):
            view = {"name": name, "createdAt": now, "updatedAt": now, "state": state}
            self._client().set_experiment_tag(self.experiment_id, VIEW_TAG + key, json.dumps(view))

    def finish(self, status: Status) -> None:
        """Send what waits and end the run."""
        self._send()
        self._client().set_terminated(self._id(), status=status)

    def _send(self) -> None:
        for first in range(0, len(self._waiting), METRICS_PER_BATCH):
            self._client().log_batch(self._id(), metrics=self._waiting[first : first + METRICS_PER_BATCH])
        self._waiting = []
        self._sent = time.monotonic()

    def _client(self) -> MlflowClient:
        if self._open is None:
            self._open = open_client(self.uri)
        return self._open

    def _id(self) -> str:
        assert self.run_id is not None, "the run was not started"
        return self.run_id


def _view_state(columns: Sequence[str], search: str, order: str) -> str:
    """State of MLflow's page of runs as its own "save view" writes it: JSON, deflated, in base64."""
    state = {
        "searchFilter": search, "orderByKey": order, "orderByAsc": False, "startTime": "ALL",
        "lifecycleFilter": "Active", "datasetsFilter": [], "modelVersionFilter": "All Runs",
        "selectedColumns": list(columns), "columnOrder": list(columns),
        "columnWidths": {column: 30 + 8 * len(column.split("`")[1]) for column in columns},
        "runsExpanded": {}, "runsPinned": [], "runsHidden": [], "runsHiddenMode": "SHOW_ALL",
        "viewMaximized": False, "runListHidden": False, "isAccordionReordered": False,
        "useGroupedValuesInCharts": True, "hideEmptyCharts": True, "groupBy": None, "groupsExpanded": {},
    }  # fmt: skip
    packed = zlib.compress(json.dumps(state).encode())
    return "deflate;" + base64.b64encode(packed).decode("ascii")


@dataclass(frozen=True)
class StoredRun:
    """A run of a store, as far as its own record goes.

    Attributes:
        run_id: in the store.
        name: as shown in the table of runs.
        study: name of its experiment.
        status: FINISHED, FAILED, KILLED or RUNNING.
        parent_run_id: the sweep it belongs to; empty for a single run or for a sweep itself.
        job: the name of its run folder.
        started: milliseconds since 1970.
    """

    run_id: str
    name: str
    study: str
    status: str
    parent_run_id: str
    job: str
    started: int


def stored_jobs(uri: str, wanted: str) -> tuple[StoredRun, ...]:
    """The jobs of a study, in all of its sweeps, or of one sweep, by the id of its parent run; oldest first.

    Raises:
        TrackingError: the store cannot be used.
        ValueError: it knows neither such a study nor such a sweep, or that has no jobs.
    """
    from mlflow.exceptions import MlflowException

    file = sqlite_file(uri)
    if file is not None and not file.is_file():  # opening it would make an empty one
        raise ValueError(f"{uri}: there is no file {file}; give the tracking store that the jobs wrote to")
    with _store_errors(uri):
        client = open_client(uri)
        found = client.get_experiment_by_name(wanted)
        parent = ""
        if found is None:
            try:
                parent = wanted
                found = client.get_experiment(client.get_run(wanted).info.experiment_id)
            except MlflowException:
                known = ", ".join(sorted(each.name for each in client.search_experiments())) or "none"
                raise ValueError(
                    f"{wanted}: neither a study nor the id of a parent run in the tracking store {uri} "
                    f"(studies there: {known})"
                ) from None
        chosen = "tags.`cryosweep.kind` = 'job'"
        if parent:
            chosen += f" and tags.`mlflow.parentRunId` = '{parent}'"
        runs: list[StoredRun] = []
        token: str | None = None
        while True:
            page = client.search_runs([found.experiment_id], chosen, page_token=token)
            runs += [_stored(run, found.name) for run in page]
            token = page.token
            if not token:
                break
    jobs = sorted((run for run in runs if run.parent_run_id), key=lambda run: run.started)
    if not jobs:
        raise ValueError(f"{wanted}: no job of a sweep in the tracking store {uri}")
    return tuple(jobs)


def _stored(run: Run, study: str) -> StoredRun:
    tags = run.data.tags
    return StoredRun(
        str(run.info.run_id), str(run.info.run_name), study, str(run.info.status),
        tags.get("mlflow.parentRunId", ""), Path(tags.get("cryosweep.folder", run.info.run_id)).name,
        int(run.info.start_time or 0),
    )  # fmt: skip


def download(uri: str, run_id: str, names: Collection[str], folder: Path) -> None:
    """Fetch those of the artifacts `names` that a run has; a file that is there with the same size is kept.

    Raises:
        TrackingError: the store, or its artifacts, cannot be reached.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _store_errors(uri):
        client = open_client(uri)
        for file in client.list_artifacts(run_id):
            here = folder / file.path
            same = here.suffix == ".mrc" and here.is_file() and here.stat().st_size == file.file_size
            if file.path in names and not same:
                client.download_artifacts(run_id, file.path, str(folder))


def views(uri: str) -> dict[str, str]:
    """Of each study that has saved views: its name, and where in MLflow's pages its ranked jobs are."""
    with _store_errors(uri):
        return {
            each.name: f"#/experiments/{each.experiment_id}/runs?viewStateShareKey={RANKED_VIEW}"
            for each in open_client(uri).search_experiments()
            if VIEW_TAG + RANKED_VIEW in each.tags
        }


def store_uri(uri: str | None, output_dir: Path) -> str:
    """The tracking store: `uri`, or if that is None the sqlite file `mlflow.db` in `output_dir`."""
    return uri or f"sqlite:///{output_dir.absolute() / 'mlflow.db'}"


def prepare_store(uri: str, study: str) -> str:
    """Make the store ready for many writers and return the id of the experiment named `study`.

    Processes that meet a fresh sqlite file at the same time spoil its schema, so it is made here, under a
    lock, before any job starts. On a local disk it is switched to write-ahead logging, under which the jobs
    of a sweep do not wait for each other's writes.

    Raises:
        TrackingError: the store cannot be reached or written, or the experiment was deleted there.
    """
    file = sqlite_file(uri)
    if file is None:
        with _store_errors(uri):
            return _experiment(uri, study, artifacts=None)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"), _store_errors(uri):
            experiment = _experiment(uri, study, artifacts=file.parent / "mlartifacts")
            if _is_local(file):
                with sqlite3.connect(file) as connection:
                    connection.execute("PRAGMA journal_mode=WAL")
                connection.close()
            return experiment
    except OSError as error:
        raise TrackingError(_cannot_use(uri, error)) from error


def _experiment(uri: str, study: str, *, artifacts: Path | None) -> str:
    """Id of the experiment, made if it is new; without `artifacts` the server decides where those go."""
    from mlflow.exceptions import MlflowException

    client = open_client(uri)
    found = client.get_experiment_by_name(study)
    if found is None:
        location = None if artifacts is None else (artifacts.absolute() / study).as_uri()
        try:
            return str(client.create_experiment(study, artifact_location=location))
        except MlflowException:
            # Another process may have made it in between; if it did not, the first error stands.
            found = client.get_experiment_by_name(study)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"the experiment {study!r} was deleted in the tracking store {uri}; "
            f"restore it there or choose another name with study=..."
        )
    return str(found.experiment_id)


def open_client(uri: str) -> MlflowClient:
    """A client of the store that neither reports to MLflow's makers nor retries for minutes."""
    # The first keeps MLflow from reporting usage to its makers; the second from retrying for minutes when a
    # server cannot be reached; the third from drawing a bar for each file. All leave a user's choice alone.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


@contextmanager
def _store_errors(uri: str) -> Generator[None]:
    """Turn what MLflow raises when a store is out of reach into one line that says what to do."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
        raise TrackingError(_cannot_use(uri, error)) from error


def _cannot_use(uri: str, error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if "Max retries exceeded" in reason:  # the libraries below nest their messages
        reason = "the server does not answer"
    return (
        f"tracking.uri={uri}: the tracking store cannot be used: {reason}; "
        f"mend it, give another, or set tracking.enabled=false"
    )


def sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite store; None for any other store."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _is_local(path: Path) -> bool:
    """Whether `path` is known to lie on a disk of this machine."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return False
    resolved = path.resolve()
    deepest, kind = -1, ""
    for line in mounts.read_text(encoding="utf-8").splitlines():
        _, point, file_system, *_ = line.split(" ")
        folder = Path(point.replace("\\040", " "))
        # A later mount on the same folder hides the earlier one.
        if resolved.is_relative_to(folder) and len(folder.parts) >= deepest:
            deepest, kind = len(folder.parts), file_system
    return kind != "" and not kind.startswith(NETWORK_FILE_SYSTEMS)


def flatten(config: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def ordered_params(config: Mapping[str, object], swept: Mapping[str, object]) -> dict[str, object]:
    """Parameters of a run: what is swept first, then the whole configuration."""
    return {**swept, **flatten(config)}


def run_name(swept: Mapping[str, object]) -> str:
    """Short name of a job: `dilation_radius=7 soft_padding_width=16`; keys cut short where that is unique."""
    last = [key.rsplit(".", 1)[-1] for key in swept]
    names = [short if last.count(short) == 1 else key for key, short in zip(swept, last, strict=True)]
    return " ".join(f"{name}={value}" for name, value in zip(names, swept.values(), strict=True))


def _plain(value: object) -> object:
    return value if isinstance(value, str | int | float | bool | list) or value is None else str(value)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        return "unknown"
