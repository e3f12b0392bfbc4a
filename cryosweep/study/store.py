"""Results of stages, kept under the hash of everything they depend on, and made once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
# Of the folder that a resumable result is made in: found again by whoever goes on with it.
KEPT = "making.kept"

# Files whose bytes this process has checked: name, size and time of the last change.
_checked: set[tuple[str, int, int]] = set()


def digest_file(path: Path) -> str:
    """sha256 of the bytes of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_values(*values: np.ndarray[Any, Any]) -> str:
    """sha256 of arrays, their shapes and types."""
    found = hashlib.sha256()
    for value in values:
        found.update(f"{value.dtype} {value.shape}".encode())
        found.update(np.ascontiguousarray(value).data)
    return found.hexdigest()


@dataclass(frozen=True)
class Entry:
    """One result in a store.

    Attributes:
        stage: that made it.
        version: of the stage.
        folder: where it lies; its name is the key.
        size: bytes of its files.
        used: when a job last asked for it, or made it.
    """

    stage: str
    version: int
    folder: Path
    size: int
    used: datetime


class Store:
    """A folder of stage results: `root/<stage>/<key>/` with the files of the stage and `manifest.json`.

    Many processes may use it at once. A result appears whole or not at all, and is held against the sizes
    and digests of its manifest when it is read; bytes are checked once in a process.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(
        self,
        stage: str,
        version: int,
        parameters: Mapping[str, object],
        inputs: Sequence[str],
        make: Callable[[Path], None],
        *,
        resumable: bool = False,
        again: bool = False,
    ) -> Path:
        """The folder of a result; if there is none yet, or it is damaged, `make` fills it.

        While one process makes a result the others that ask for it wait.

        Args:
            stage: name of the stage, also of its folder.
            version: raise it when the stage changes what it makes.
            parameters: everything the result depends on besides `inputs`; numbers, text, lists, mappings.
            inputs: digests of the inputs, for example of `digest_file` or keys of other results.
            make: writes the files of the result into the empty folder it is given.
            resumable: a folder that a `make` before was stopped in is given again, with all that lies in it.
            again: make it even if it is there.

        Raises:
            TypeError: a parameter is not a plain value.
            ValueError: a parameter is not a finite number.
        """
        identity = {
            "stage": stage,
            "version": version,
            "parameters": dict(parameters),
            "inputs": list(inputs),
        }
        canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
        key = hashlib.sha256(canonical.encode()).hexdigest()
        folder = self.root / stage / key
        if not again and _damage(folder) is None:
            log.info("%s: already there (%s)", stage, key[:12])
            os.utime(folder / MANIFEST)  # the time of its last use
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(Path(f"{folder}.lock"), stage):
            wrong = _damage(folder)
            if not again and wrong is None:
                return folder
            if wrong and not again:
                log.warning("%s: the stored result %s is made again: %s", stage, key[:12], wrong)
            # Under the lock nobody else writes here, so what lies about is damaged, or of a killed process.
            kept = folder.with_name(f"{key}.{KEPT}")
            for remnant in [folder, *folder.parent.glob(f"{key}.making.*")]:
                if not (resumable and remnant == kept):
                    shutil.rmtree(remnant, ignore_errors=True)
            began = time.monotonic()
            if resumable:
                kept.mkdir(exist_ok=True)
                made = kept
            else:
                made = Path(tempfile.mkdtemp(prefix=f"{key}.making.", dir=folder.parent))
            try:
                make(made)
                files = {str(path.relative_to(made)): path for path in sorted(_files(made))}
                manifest = {
                    **identity,
                    "key": key,
                    "made": datetime.now(UTC).isoformat(timespec="seconds"),
                    "seconds": round(time.monotonic() - began, 3),
                    "files": list(files),
                    "bytes": {name: path.stat().st_size for name, path in files.items()},
                    "sha256": {name: digest_file(path) for name, path in files.items()},
                }
                (made / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
                made.chmod(0o755)  # mkdtemp keeps others out, who may share the store
                made.replace(folder)
            finally:
                if not resumable or (made.exists() and not _files(made)):
                    shutil.rmtree(made, ignore_errors=True)
            log.info("%s: made in %.1f s (%s)", stage, time.monotonic() - began, key[:12])
        return folder

    def entries(self) -> list[Entry]:
        """Every whole result, by stage, the latest used first."""
        found: list[Entry] = []
        for manifest in self.root.glob(f"*/*/{MANIFEST}"):
            if ".making." in manifest.parent.name:
                continue
            told = json.loads(manifest.read_text(encoding="utf-8"))
            size = sum(path.stat().st_size for path in _files(manifest.parent))
            used = datetime.fromtimestamp(manifest.stat().st_mtime, UTC)
            found.append(Entry(str(told["stage"]), int(told["version"]), manifest.parent, size, used))
        return sorted(found, key=lambda entry: (entry.stage, -entry.used.timestamp()))

    def remnants(self) -> list[Path]:
        """Folders that a killed process left half made: those that nobody is making now."""
        return [path for path in sorted(self.root.glob("*/*.making.*")) if not _is_being_made(path)]

    def remove(self, folder: Path) -> bool:
        """Delete a result or a remnant; False if a process is making that result just now."""
        lock = _lock_of(folder)
        try:
            with lock.acquire(timeout=0):
                shutil.rmtree(folder)
        except Timeout:
            return False
        return True


def _lock_of(folder: Path) -> FileLock:
    """The lock of a result, or of the result that a remnant was to become."""
    return FileLock(folder.with_name(f"{folder.name.split('.making.')[0]}.lock"))


def _is_being_made(folder: Path) -> bool:
    try:
        with _lock_of(folder).acquire(timeout=0):
            return False
    except Timeout:
        return True


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _damage(folder: Path) -> str | None:
    """What is wrong with a result, held against its manifest; None if nothing is, empty if there is none."""
    if not (folder / MANIFEST).is_file():
        return ""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sizes, digests = dict(manifest["bytes"]), dict(manifest["sha256"])
    except (ValueError, KeyError, TypeError):
        return f"its {MANIFEST} cannot be read, or holds no digests"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        state = path.stat()
        if state.st_size != size:
            return f"{name} holds {state.st_size} bytes, not {size}"
        seen = (str(path.absolute()), size, state.st_mtime_ns)
        if seen not in _checked:
            if digest_file(path) != digests[name]:
                return f"{name} has other bytes than were written"
            _checked.add(seen)
    return None


@contextmanager
def _alone(path: Path, stage: str) -> Generator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: another process is making it; waiting", stage)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
