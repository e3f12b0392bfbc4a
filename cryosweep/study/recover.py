"""A study put together again from its tracking store alone, whatever machines its jobs ran on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryosweep.study.findings import FINDINGS_FILE
from cryosweep.study.sweep import RUN_FILE, read_json
from cryosweep.tracking import StoredRun, download, stored_jobs

# What a comparison reads of a run folder.
NEEDED = (
    RUN_FILE, "config.yaml", "summary.json", "fsc.csv", "poses.csv", "jackknife.csv", FINDINGS_FILE,
    "map.mrc", "start_map.mrc", "scoring_mask.mrc",
)  # fmt: skip


def recover(uri: str, wanted: str, into: Path) -> list[Path]:
    """Fetch the jobs of a study, or of one sweep by the id of its parent run, as run folders below `into`.

    Of a point that several sweeps ran, the latest run that finished counts; a run that failed is left out
    where the point finished elsewhere.

    Returns:
        The run folders, oldest first.

    Raises:
        TrackingError: the store cannot be used.
        ValueError: it has no such study or sweep, or no jobs of it.
    """
    folders: list[Path] = []
    for job in _latest(stored_jobs(uri, wanted)):
        folder = into / job.parent_run_id / job.job
        download(uri, job.run_id, NEEDED, folder)
        _mend_record(folder / RUN_FILE, job)
        folders.append(folder)
    return folders


def _latest(jobs: Sequence[StoredRun]) -> list[StoredRun]:
    kept: dict[str, StoredRun] = {}
    for job in jobs:
        if job.status == "FINISHED" or job.name not in kept or kept[job.name].status != "FINISHED":
            kept[job.name] = job
    return sorted(kept.values(), key=lambda job: job.started)


def _mend_record(path: Path, job: StoredRun) -> None:
    """Make the record say how the run ended by the store, which also knows of jobs that were killed."""
    record: dict[str, Any] = {"name": job.name, "study": job.study, "job": job.job}
    if path.is_file():
        record |= read_json(path)
    if record.get("status") != job.status:
        record["status"] = job.status
        if job.status != "FINISHED":
            record["stop_reason"] = record.get("stop_reason") or "the store says no more"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
