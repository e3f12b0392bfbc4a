"""A study put together again from its tracking store alone, whatever machines its jobs ran on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryosweep.study.comparison import REPLICATE_KEYS, Run, load_run, show
from cryosweep.study.findings import FINDINGS_FILE
from cryosweep.study.sweep import RUN_FILE, read_json
from cryosweep.tracking import StoredRun, download, run_name, stored_jobs

# What a comparison reads of a run folder.
NEEDED = (
    RUN_FILE, "config.yaml", "summary.json", "fsc.csv", "poses.csv", "jackknife.csv", FINDINGS_FILE,
    "map.mrc", "start_map.mrc", "scoring_mask.mrc",
)  # fmt: skip


def recover(uri: str, wanted: str, into: Path) -> tuple[Run, ...]:
    """Fetch the jobs of a study, or of one sweep by the id of its parent run, as run folders below `into`.

    Returns:
        The runs as `together` makes them.

    Raises:
        TrackingError: the store cannot be used.
        ValueError: it has no such study or sweep, or no jobs of it.
    """
    runs: list[Run] = []
    for job in stored_jobs(uri, wanted):
        folder = into / job.parent_run_id / job.job
        download(uri, job.run_id, NEEDED, folder)
        _mend_record(folder / RUN_FILE, job)
        runs.append(load_run(folder))
    return together(runs)


def together(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Runs of several sweeps as those of one: all have the keys that any sweep varied, and names by them.

    A key that a sweep did not vary has the value of its configuration. A seed that differs between sweeps
    counts as varied. Of a point that several sweeps ran, the latest run that finished counts; one that failed
    is left out where the point finished elsewhere.

    Args:
        runs: oldest first.
    """
    settings = {run.folder: run.settings() for run in runs if (run.folder / "config.yaml").is_file()}
    keys = dict.fromkeys(key for run in runs for key in run.swept)
    for key in REPLICATE_KEYS:
        # the seed of the half sets follows the other seed unless it is varied itself
        if key != "data.half_set_seed" and len({show(each.get(key)) for each in settings.values()}) > 1:
            keys.setdefault(key)
    kept: dict[tuple[str, ...], Run] = {}
    for run in runs:
        known = {**settings.get(run.folder, {}), **run.options, **run.swept}
        swept = {key: known.get(key) for key in keys}
        point = tuple(map(show, swept.values())) if keys else (run.name,)
        if run.is_finished or point not in kept or not kept[point].is_finished:
            kept[point] = replace(run, swept=swept, name=run_name(swept) or run.name)
    return tuple(run for run in kept.values())


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
