"""The book of a sweep: its points, its one parent run, what became of each job, and its comparison.

A sweep folder holds `sweep.json` and one run folder a job; each run folder holds `run.json`. Both are written
from the start and say RUNNING until the end is known, so a killed sweep can be told from a finished one.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from cryosweep.study import proposals
from cryosweep.study.points import expand, lists_points, read_axes
from cryosweep.tracking import MLflowTracker, Status, TrackingError, prepare_store, store_uri

if TYPE_CHECKING:
    from cryosweep.study.comparison import Comparison

log = logging.getLogger(__name__)

SWEEP_FILE = "sweep.json"
RUN_FILE = "run.json"
TABLE_FILE = "report.txt"
PAGE_FILE = "report.html"
# Held by the process that works on a sweep, or on a job, until its end, whatever that is.
LOCK_FILE = ".alive"

# What a job is told by the process that started the sweep, through `hydra.job.env_set`: the one way that
# works under every launcher, because jobs compose their configuration anew from the overrides.
PARENT_RUN = "CRYOSWEEP_PARENT_RUN"
EXPERIMENT = "CRYOSWEEP_EXPERIMENT_ID"
SWEPT_KEYS = "CRYOSWEEP_SWEPT"

# The locks of the sweeps that this process has opened: of the folder, and of the Optuna study if it has one.
_held: dict[Path, list[FileLock]] = {}


class SweepCallback(Callback):
    """Opens the sweep before any job and closes it after the last; Hydra calls it in the starting process."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the tracking store, the parent run and `sweep.json`, and tell the jobs.

        Hydra would turn an exception raised here into a warning and start the jobs as orphans; SystemExit it
        lets pass.
        """
        del kwargs
        try:
            _open_sweep(config)
        except (OSError, ValueError, TrackingError, HydraException) as error:
            raise SystemExit(f"cryosweep run: the sweep was not started: {error}") from error

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Close the sweep; if this fails Hydra only warns, and the app, which checks, closes it again.

        Hydra 1.4 calls this after a sweep that could not be opened too.
        """
        del kwargs
        folder = Path(config.hydra.sweep.dir).absolute()
        if (folder / SWEEP_FILE).is_file():
            close_sweep(folder)


def _open_sweep(config: DictConfig) -> None:
    folder = Path(config.hydra.sweep.dir).absolute()
    sweeper: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
    listing = lists_points(sweeper)
    overrides = list(config.hydra.overrides.task)
    driven: FileLock | None = None
    if proposals.proposes(sweeper):
        axes, settings = proposals.read_search(sweeper, overrides)
        expansion = proposals.expand_space(axes, settings)
        driven = proposals.claim(folder.parent, proposals.read_space(axes, settings), settings)
    else:
        expansion = expand(read_axes(sweeper, overrides), intervals=not listing)
    book: dict[str, object] = {
        "study": str(config.study),
        "status": "RUNNING",
        "started": _now(),
        "swept": list(expansion.swept),
        "with_sweeps": sweeper.get("with_sweeps") or [],
        "centre": sweeper.get("centre") or {},
        "rungs": sweeper.get("rungs") or [],
        "jobs_expected": len(expansion.points) if listing else None,
        "tracking_uri": None,
        "experiment_id": None,
        "parent_run_id": None,
        "jobs": [],
    }
    folder.mkdir(parents=True, exist_ok=True)
    settle(folder.parent)
    alive_lock = FileLock(folder / LOCK_FILE)
    alive_lock.acquire()
    _held[folder] = [alive_lock, *([] if driven is None else [driven])]
    environment = {SWEPT_KEYS: " ".join(expansion.swept)}
    if config.tracking.enabled:
        uri = store_uri(config.tracking.uri, Path(config.output_dir))
        parent = MLflowTracker(uri, prepare_store(uri, str(config.study)), folder.name)
        tags = {"cryosweep.kind": "sweep", "cryosweep.folder": str(folder)}
        parent.start({"swept": str(expansion)}, tags)
        book |= {"tracking_uri": uri, "experiment_id": parent.experiment_id, "parent_run_id": parent.run_id}
        environment |= {PARENT_RUN: str(parent.run_id), EXPERIMENT: parent.experiment_id}
    _write_json(folder / SWEEP_FILE, book)
    told = [f"++hydra.job.env_set.{name}={quoted(value)}" for name, value in environment.items()]
    # Hydra 1.4 hands its configuration to callbacks read-only.
    with read_write(config.hydra.overrides), read_write(config.hydra.overrides.hydra):
        config.hydra.overrides.hydra += told


def close_sweep(folder: Path, *, interrupted: bool = False) -> dict[str, Any]:
    """Write down what became of the jobs, compare those that finished, and end the parent run.

    A job that still says RUNNING had no time to say otherwise and is marked KILLED.

    Args:
        folder: the sweep folder.
        interrupted: the user stopped the sweep.

    Returns:
        What `sweep.json` now holds.
    """
    book = _end(folder, interrupted=interrupted)
    try:
        write_comparison(folder)
        log_comparison(folder, folder / PAGE_FILE)
        book["comparison_error"] = None
    except ValueError as error:
        book["comparison_error"] = str(error)
    _write_json(folder / SWEEP_FILE, book)
    for lock in _held.pop(folder.absolute(), ()):
        lock.release()
    return book


def _end(folder: Path, *, interrupted: bool, spared: Sequence[Path] = ()) -> dict[str, Any]:
    """Mark the jobs that did not end, but for those `spared`, and the sweep; end their tracked runs."""
    book = read_sweep(folder)
    for job in job_folders(folder):
        if job not in spared and read_json(job / RUN_FILE)["status"] == "RUNNING":
            _mark_killed(job)
    records = [(job, read_json(job / RUN_FILE)) for job in job_folders(folder)]
    book["jobs"] = [
        {
            "job": record["job"],
            "name": record["name"],
            "folder": job.name,
            "taken_from": record.get("taken_from"),
            "status": record["status"],
            "error": None if record["status"] == "FINISHED" else record["stop_reason"],
        }
        for job, record in records
    ]
    states = [record["status"] for _, record in records]
    finished = states.count("FINISHED")
    expected = book["jobs_expected"] or len(records)
    status: Status = "FINISHED" if 0 < finished == expected else "FAILED"
    if interrupted or "KILLED" in states:
        status = "KILLED"
    # Written before the comparison as well: if that breaks, the state of the jobs is known all the same.
    book |= {"status": status, "ended": _now()}
    book["comparison_error"] = f"it broke off; `cryosweep compare {folder}` shows why"
    _write_json(folder / SWEEP_FILE, book)
    if book["parent_run_id"] is not None:
        parent = _parent(book)
        parent.metrics({"jobs": expected, "jobs_finished": finished})
        parent.finish(status)
    return book


def _mark_killed(job: Path) -> None:
    """Say in a run folder, and in its tracked run, that the process did not come to its end."""
    record = read_json(job / RUN_FILE)
    record_run(job, status="KILLED", stop_reason="the job was stopped from outside")
    if record.get("mlflow_run_id"):
        MLflowTracker(str(record["tracking_uri"]), "", "", run_id=str(record["mlflow_run_id"])).finish(
            "KILLED"
        )


@contextmanager
def alive(folder: Path) -> Generator[None]:
    """While this lasts other processes, also of other machines, can see that `folder` is being worked on."""
    with FileLock(folder / LOCK_FILE):
        yield


def is_alive(folder: Path) -> bool:
    """Whether a process holds the lock of a sweep or run folder; a killed one holds none."""
    if not (folder / LOCK_FILE).exists():
        return False
    try:
        with FileLock(folder / LOCK_FILE, timeout=0):
            return False
    except Timeout:
        return True


def settle(study: Path) -> list[Path]:
    """Mark sweeps and runs of a study KILLED that say RUNNING and whose process is gone.

    A job may outlive the process that started its sweep; it is left to say itself how it ended.

    Returns:
        The folders that were marked.
    """
    marked: list[Path] = []
    single = [path.parent for path in study.glob(f"*/{RUN_FILE}")]
    for folder in sorted(path.parent for path in study.glob(f"*/{SWEEP_FILE}")):
        if is_alive(folder):
            continue
        jobs = job_folders(folder)
        single += jobs  # those that outlived their sweep and were killed later
        if _says_running(folder / SWEEP_FILE):
            marked.append(folder)
            _settled(folder, partial(_end, folder, interrupted=True, spared=list(filter(is_alive, jobs))))
    for job in sorted(single):
        if _says_running(job / RUN_FILE) and not is_alive(job):
            marked.append(job)
            _settled(job, partial(_mark_killed, job))
    return marked


def _says_running(path: Path) -> bool:
    try:
        return read_json(path).get("status") == "RUNNING"
    except ValueError:  # its process was killed while it wrote; nothing is known about it
        return False


def _settled(folder: Path, mark: Callable[[], object]) -> None:
    """Mark a folder whose process is gone; what its tracking store says must not stop the work at hand."""
    try:
        mark()
        log.info("%s: its process is gone; marked KILLED", folder)
    except Exception as error:
        log.warning("%s: its process is gone, and its tracked runs could not be ended: %s", folder, error)


def write_comparison(
    folder: Path,
    page: Path | None = None,
    *,
    earlier: Sequence[Path] | None = None,
    centre: Mapping[str, str] | None = None,
) -> str:
    """Compare the runs of a sweep: the table, and the page, and what lies beside it (`page`, or in `folder`).

    Args:
        folder: the sweep folder.
        page: the page to write.
        earlier: sweeps of the study that are compared together with it, first the one whose first job is the
            centre; None for those that the sweep was started with.
        centre: swept keys and values, in words, of another centre; None for that of the sweep's settings.

    Raises:
        ValueError: no run finished, or the runs cannot be compared.
    """
    from cryosweep.study.report import write_report

    written = write_report(comparison_of(folder, earlier=earlier, centre=centre), page or folder / PAGE_FILE)
    return written.text.read_text(encoding="utf-8").removesuffix("\n")


def comparison_of(
    folder: Path, *, earlier: Sequence[Path] | None = None, centre: Mapping[str, str] | None = None
) -> Comparison:
    """What the runs of a sweep and of earlier ones say; arguments and errors as for `write_comparison`."""
    from cryosweep.study.comparison import compare, show
    from cryosweep.study.gather import gather

    book = read_sweep(folder)
    before = [Path(name) for name in book.get("with_sweeps") or []] if earlier is None else earlier
    if centre is None:
        centre = {key: show(value) for key, value in (book.get("centre") or {}).items()}
    folders = dict.fromkeys(path.absolute() for path in (*before, folder))
    books = {path: read_sweep(path) for path in folders}
    runs, notes = gather(
        {path: each["swept"] for path, each in books.items()},
        {path: each.get("rungs") or [] for path, each in books.items()},
    )
    return compare(runs, centre=centre, notes=notes)


def log_comparison(folder: Path, page: Path) -> None:
    """Add the files that `write_comparison` wrote to the parent run; nothing if the sweep was not tracked.

    The Markdown becomes the note of the parent run and of the study, and the study gets views of its runs
    that show what was swept first.
    """
    from cryosweep.study.comparison import GAIN
    from cryosweep.study.report import SUFFIXES
    from cryosweep.study.tables import NOTED

    book = read_sweep(folder)
    if book["parent_run_id"] is None:
        return
    parent = _parent(book)
    beside = (page.with_suffix(suffix) for suffix in SUFFIXES)
    trials = folder / proposals.TRIALS_FILE
    for path in (page, trials, *beside):
        if path.is_file():
            parent.artifact(path)
    note = page.with_suffix(".md")
    if note.is_file():
        parent.describe(note.read_text(encoding="utf-8"))
        parent.save_views(swept=book["swept"], metrics=[key for key in NOTED if key != GAIN])


def _parent(book: Mapping[str, Any]) -> MLflowTracker:
    return MLflowTracker(book["tracking_uri"], book["experiment_id"], "", run_id=book["parent_run_id"])


def resolve_sweep(name: str, output_dir: Path) -> Path:
    """The sweep folder that `name` means: that folder, the id of a parent run, or a study (its latest sweep).

    Raises:
        ValueError: there is no such sweep.
    """
    if (Path(name) / SWEEP_FILE).is_file():
        return Path(name)
    books = sorted(output_dir.glob(f"*/*/{SWEEP_FILE}"), key=lambda path: path.stat().st_mtime)
    by_run = [path for path in books if read_json(path).get("parent_run_id") == name]
    by_study = [path for path in books if path.parent.parent.name == name]
    if by_run or by_study:
        return (by_run or by_study)[-1].parent
    studies = ", ".join(sorted({path.parent.parent.name for path in books})) or "none"
    raise ValueError(
        f"{name}: neither a sweep folder, nor the id of a parent run, nor a study with a sweep in "
        f"{output_dir} (studies there: {studies}); give a folder with {SWEEP_FILE}, or --output-dir"
    )


def sweeps_of(study: str, output_dir: Path) -> list[Path]:
    """The folders of all sweeps of a study that have jobs, oldest first.

    Raises:
        ValueError: there is none.
    """
    books = sorted((output_dir / study).glob(f"*/{SWEEP_FILE}"), key=lambda path: path.stat().st_mtime)
    found = [path.parent for path in books if job_folders(path.parent)]
    if not found:
        raise ValueError(
            f"{output_dir / study}: holds no sweep with jobs; give the name of a study, or --output-dir"
        )
    return sorted(found, key=lambda path: str(read_sweep(path).get("started", "")))


def read_sweep(folder: Path) -> dict[str, Any]:
    """What `sweep.json` says.

    Raises:
        ValueError: there is none, or it is not complete.
    """
    return read_json(folder / SWEEP_FILE)


def job_folders(folder: Path) -> list[Path]:
    """The run folders of a sweep, in the order of its jobs."""
    found = [path.parent for path in folder.glob(f"*/{RUN_FILE}")]
    return sorted(found, key=lambda path: (int(path.name) if path.name.isdigit() else math.inf, path.name))


def record_run(folder: Path, **fields: object) -> None:
    """Add to, or change, what `run.json` of a run folder says."""
    path = folder / RUN_FILE
    known = read_json(path) if path.is_file() else {}
    _write_json(path, {**known, **fields})


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: the file is not there or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not complete JSON ({error}); it was not written to its end") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def quoted(value: str) -> str:
    """`value` as text in Hydra's grammar of overrides, whatever characters it holds."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
