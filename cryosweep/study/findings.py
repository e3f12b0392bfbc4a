"""Findings of a run on disk, on a terminal and in the tracking store."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from cryosweep.rules import LEVELS, Finding

FINDINGS_FILE, FINDINGS_TEXT = "findings.json", "findings.txt"
TAG = "finding."


def write_findings(folder: Path, findings: Sequence[Finding]) -> None:
    """`findings.json` for programs and `findings.txt` for people."""
    plain = [asdict(finding) for finding in findings]
    (folder / FINDINGS_FILE).write_text(
        json.dumps(plain, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (folder / FINDINGS_TEXT).write_text(told(findings) + "\n", encoding="utf-8")


def read_findings(folder: Path) -> tuple[Finding, ...]:
    """Findings of a run folder; none if it has no such file, as those of earlier versions.

    Raises:
        ValueError: the file is not one that `write_findings` wrote.
    """
    path = folder / FINDINGS_FILE
    if not path.is_file():
        return ()
    try:
        return tuple(Finding(**record) for record in json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a list of findings ({error}); run the job again") from error


def told(findings: Sequence[Finding]) -> str:
    """Findings as lines for a terminal, with how many there are of each level."""
    if not findings:
        return "findings: none"
    count = Counter(finding.level for finding in findings)
    words = {"error": ("error", "errors"), "warning": ("warning", "warnings"), "info": ("remark", "remarks")}
    summary = ", ".join(
        f"{count[level]} {words[level][count[level] > 1]}" for level in LEVELS if count[level]
    )
    return "\n".join([f"findings: {summary}", *(f"- {finding}" for finding in findings)])


def tags_of(findings: Sequence[Finding]) -> dict[str, str]:
    """Tags of a tracked run: `finding.R7` to its level and what was seen."""
    tags: dict[str, str] = {}
    for finding in findings:
        name, text = f"{TAG}{finding.code}", f"{finding.level}: {finding.seen}"
        tags[name] = f"{tags[name]} | {text}" if name in tags else text
    return tags
