"""The `store` command: what the stages of all studies keep, and getting rid of what nobody asks for."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from cryosweep.commands import OUTPUT_DIR, add_command, say

if TYPE_CHECKING:
    from cryosweep.commands import Commands
    from cryosweep.study.store import Entry


def add_parser(commands: Commands) -> None:
    """Add the parser of this command."""
    parser = add_command(
        commands,
        "store",
        "list the results that jobs share (ls), or delete what is out of use (gc)",
        "cryosweep store gc --unused-for 30 --dry-run",
    )
    parser.add_argument(
        "action",
        choices=["ls", "gc"],
        help="gc deletes what killed jobs left half made, checkpoints too, and results of changed stages",
    )
    parser.add_argument(
        "--unused-for",
        type=float,
        metavar="DAYS",
        help="gc: also results that no job asked for in so many days; jobs make them again when needed",
    )
    parser.add_argument("--dry-run", action="store_true", help="gc: only say what would be deleted")
    parser.add_argument(
        "--output-dir", type=Path, default=OUTPUT_DIR, help="the output folder (default: %(default)s)"
    )
    parser.set_defaults(function=store)


def store(arguments: argparse.Namespace) -> int:
    """List or clean the store.

    Raises:
        ValueError: there is no store, or a number of days is negative.
    """
    from cryosweep.job import STAGE_VERSIONS
    from cryosweep.study.store import Store
    from cryosweep.study.sweep import settle

    root: Path = arguments.output_dir / "stages"
    if not root.is_dir():
        raise ValueError(f"{root}: there is no store of stages; give --output-dir")
    if arguments.unused_for is not None and arguments.unused_for < 0:
        raise ValueError(f"--unused-for {arguments.unused_for:g}: must be 0 days or more")
    for study in sorted(path for path in arguments.output_dir.iterdir() if path.is_dir()):
        settle(study)
    kept = Store(root)
    entries = kept.entries()
    now = datetime.now(UTC)
    if arguments.action == "ls":
        for entry in entries:
            old = " (the stage changed since)" if _is_outdated(entry, STAGE_VERSIONS) else ""
            say(f"{_line(entry, now)}{old}")
        remnants = kept.remnants()
        left = f"; {len(remnants)} half made and left by killed jobs" if remnants else ""
        say(f"{len(entries)} results, {_size(sum(entry.size for entry in entries))} in {root}{left}")
        return 0
    limit = None if arguments.unused_for is None else now - timedelta(days=arguments.unused_for)
    doomed = [
        entry
        for entry in entries
        if _is_outdated(entry, STAGE_VERSIONS) or (limit is not None and entry.used <= limit)
    ]
    remnants = kept.remnants()
    gone = 0
    for folder, words in [(path, f"half made: {path.name}") for path in remnants] + [
        (entry.folder, _line(entry, now)) for entry in doomed
    ]:
        if arguments.dry_run or kept.remove(folder):
            say(words)
            gone += 1
        else:
            say(f"kept, a job is making it: {folder}")
    freed = _size(sum(entry.size for entry in doomed))
    say(f"{'would delete' if arguments.dry_run else 'deleted'} {gone} folders, {freed} of results")
    if any(entry.stage == "simulation" for entry in doomed) and not arguments.dry_run:
        say(
            "particles.star of runs on a deleted simulation names images that are gone until it is made again"
        )
    return 0


def _is_outdated(entry: Entry, versions: dict[str, int]) -> bool:
    return entry.version != versions.get(entry.stage, entry.version)


def _line(entry: Entry, now: datetime) -> str:
    days = (now - entry.used).days
    used = "today" if days == 0 else "yesterday" if days == 1 else f"{days} days ago"
    return f"{entry.stage:<12} {entry.folder.name[:12]}  {_size(entry.size):>9}  used {used}"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
