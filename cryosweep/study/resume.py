"""Points of a sweep that are finished already: told by what they depend on, and taken over whole.

A run is what its configuration, the numerical code and its input files make it. Their digest, the
fingerprint, stands in `run.json`; a later sweep of the study that asks for a point with the same one takes
the files of the run that has them all instead of computing them again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cryosweep.study.sweep import RUN_FILE, read_json, record_run

# Told to the jobs of a sweep through `hydra.job.env_set` when every point is to be computed anew.
FORCE = "CRYOSWEEP_FORCE"

# What changes no number of a run: where it goes, what it runs on.
_INDIFFERENT = ("study", "output_dir", "tracking")
_INDIFFERENT_COMPUTE = ("threads", "memory_budget")
# Modules and folders of modules that only present, start or compare runs; all others count as numerical.
_NOT_NUMERICAL = (
    "__main__.py", "app.py", "commands.py", "composition.py", "diagnostics.py", "file_commands",
    "progress.py", "tracking.py", "study/comparison.py", "study/figures.py", "study/gather.py",
    "study/meshes.py", "study/pictures.py", "study/points.py", "study/proposals.py", "study/recover.py",
    "study/replicates.py", "study/report.py", "study/resume.py", "study/statistics.py", "study/store.py",
    "study/sweep.py", "study/tables.py", "study/truth.py",
)  # fmt: skip
# What belongs to the job and not to the result: they stay those of the run that takes over.
_OWN_FILES = (RUN_FILE, "config.yaml", "cryosweep.log", "metrics.jsonl")
_OWN_FIELDS = (
    "name", "study", "job", "status", "swept", "choices", "command", "question", "mlflow_run_id",
    "tracking_uri",
)  # fmt: skip


@cache
def code_digest() -> str:
    """sha256 over the numerical modules and data of this package, and the versions of what they stand on."""
    package = Path(__file__).resolve().parents[1]
    found = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        name = path.relative_to(package).as_posix()
        counts = path.suffix == ".py" or name.startswith("data/")
        if path.is_file() and counts and not name.startswith(_NOT_NUMERICAL):
            found.update(f"{name}\0".encode() + path.read_bytes())
    for library in ("torch", "numpy", "scipy"):
        found.update(f"{library} {version(library)}".encode())
    return found.hexdigest()


def fingerprint(config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """sha256 of everything that decides what a run finds.

    Args:
        config: the resolved configuration as plain values.
        inputs: digest of each input file.
    """
    kept: dict[str, Any] = {key: value for key, value in config.items() if key not in _INDIFFERENT}
    kept["compute"] = {
        key: value for key, value in kept.get("compute", {}).items() if key not in _INDIFFERENT_COMPUTE
    }
    told = {"config": kept, "code": code_digest(), "inputs": dict(inputs)}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def inventory(folder: Path) -> dict[str, int]:
    """Files of a finished run by name, with their sizes; without those that belong to the job itself."""
    return {
        name: path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not (name := path.relative_to(folder).as_posix()).startswith(".")
        and name not in _OWN_FILES
    }


def find_finished(folder: Path, wanted: str) -> Path | None:
    """The latest finished run of another sweep of the study with the fingerprint `wanted` and all its files.

    Only sweeps beside the one that `folder`, a run folder, belongs to are looked at: from there the image
    names in `particles.star` lead to the same places.
    """
    records = folder.parent.parent.glob(f"*/*/{RUN_FILE}")
    for path in sorted(records, key=lambda path: path.stat().st_mtime, reverse=True):
        if path.parent == folder or path.parent.parent == folder.parent:
            continue
        try:
            record = read_json(path)
        except ValueError:  # a process was killed while it wrote; that run is not finished
            continue
        if record.get("fingerprint") == wanted and record.get("status") == "FINISHED" and record.get("files"):
            sizes: dict[str, int] = record["files"]
            if all(_size(path.parent / name) == size for name, size in sizes.items()):
                return path.parent
    return None


def take_over(finished: Path, folder: Path) -> None:
    """Give the run folder `folder` the results of a finished run and say so in its `run.json`.

    Maps are hard links where the disk allows it; neither folder needs the other afterwards.
    """
    record = read_json(finished / RUN_FILE)
    for name in record["files"]:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not (target.suffix == ".mrc" and _linked(finished / name, target)):
            shutil.copy2(finished / name, target)
    kept = {key: value for key, value in record.items() if key not in _OWN_FIELDS}
    record_run(folder, **{"taken_from": str(finished), **kept})


def is_forced() -> bool:
    """Whether this job was told to compute its point anew."""
    return os.environ.get(FORCE) == "1"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _linked(source: Path, target: Path) -> bool:
    """Whether a hard link could be made."""
    try:
        target.hardlink_to(source)
    except OSError:  # another disk, or one without links
        return False
    return True
