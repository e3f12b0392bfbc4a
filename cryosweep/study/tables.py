"""A comparison for other programs: a table of everything measured, and a JSON object with the verdicts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import pandas as pd

from cryosweep.study.comparison import (
    COLUMNS,
    GAIN,
    GSFSC,
    HELD_OUT,
    ROTATION_ERROR,
    SCORE,
    SCORE_SD,
    TIED,
    TRUTH_RESOLUTION,
    TRUTH_SCORE,
    Comparison,
    Run,
    cell,
    short_key,
    show,
)

START = "start"
# Columns of the short table in Markdown, and of the tracking store's table of runs.
NOTED = (
    SCORE, SCORE_SD, GAIN, HELD_OUT, GSFSC, "pose/at_rotation_extent", "pose/at_shift_extent", TRUTH_SCORE,
    TRUTH_RESOLUTION, ROTATION_ERROR,
)  # fmt: skip
PARTED_COLUMN = "fsc_and_truth_part"


def run_table(comparison: Comparison) -> pd.DataFrame:
    """One row a run by rank, then those that did not finish, then the start; indexed by the name of the run.

    Columns: rank, status, swept values, what the comparison shows, every other number of `summary.json`, and
    where the run came from. What a row does not have is empty.
    """
    rows: dict[str, dict[str, object]] = {}
    for rank, run in enumerate(comparison.runs, start=1):
        shown = {str(key): value for key, value in comparison.table.loc[run.name].items()}
        row: dict[str, object] = {"rank": rank, "status": run.status, **shown}
        if comparison.truth:
            row[PARTED_COLUMN] = run.name in comparison.truth.parted
        rows[run.name] = {**row, **{key: run.summary[key] for key in sorted(run.summary)}, **_origin(run)}
    for run in comparison.failed:
        swept = {key: show(run.swept[key]) for key in comparison.swept if key in run.swept}
        rows[run.name] = {"status": run.status, **swept, **_origin(run)}
    rows[START] = {"status": START, **comparison.start}
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "run"
    if TIED in table:
        table[TIED] = table[TIED].astype("boolean")
    table["rank"] = table["rank"].astype("Int64")
    return table


def _origin(run: Run) -> dict[str, object]:
    return {
        "study": run.study,
        "job": run.job,
        "seed": run.seed,
        "reason": run.reason,
        "device": run.device,
        "code": run.code,
        "findings": " ".join(dict.fromkeys(found.code for found in run.findings)),
        "folder": str(run.folder),
        "command": run.command,
    }


def record(comparison: Comparison) -> str:
    """The comparison as JSON: verdict, runs, standings and the agreement with the truth; NaN is null."""
    replication = comparison.replication
    told: dict[str, object] = {
        "study": comparison.study,
        "question": question_of(comparison.runs),
        "headline": comparison.headline,
        "findings": comparison.findings,
        "warnings": comparison.warnings,
        "swept": comparison.swept,
        "fixed": comparison.fixed,
        "noise": comparison.noise,
        "is_full_grid": comparison.is_full_grid,
        "start": comparison.start,
        "runs": [_run(comparison, rank, run) for rank, run in enumerate(comparison.runs, start=1)],
        "failed": [
            {"name": run.name, "status": run.status, "reason": run.reason, "swept": run.swept}
            for run in comparison.failed
        ],
        "effects": [effect._asdict() for effect in comparison.effects],
        "centre": replication.centre,
        "replicates": {"keys": replication.keys, "most": replication.n, "scope": replication.scope.value},
        "standings": [
            {
                **{key: value for key, value in asdict(each).items() if key != "verdict"},
                "verdict": each.verdict.kind.value,
                "sentence": each.verdict.sentence,
            }
            for each in replication.standings
        ],
        "truth": None
        if comparison.truth is None
        else {**asdict(comparison.truth), "parted": sorted(comparison.truth.parted)},
    }
    return json.dumps(_plain(told), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _run(comparison: Comparison, rank: int, run: Run) -> dict[str, object]:
    return {
        "rank": rank,
        "name": run.name,
        "label": comparison.label(run),
        "cannot_be_told_from_first": bool(comparison.table.at[run.name, TIED]),
        "swept": run.swept,
        "metrics": run.summary,
        "findings": [asdict(found) for found in run.findings],
        "seed": run.seed,
        "folder": str(run.folder),
        "command": run.command,
        "versions": run.versions,
        "device": run.device,
        "code": run.code,
        "inputs": run.inputs,
        "seconds": run.seconds,
    }


def note(comparison: Comparison, *, limit: int) -> str:
    """The verdict and a short table in Markdown, at most `limit` characters; rows left out are counted."""
    columns = [column for column in COLUMNS if column.key in comparison.table and column.key in NOTED]
    heads = ["#", *(short_key(key, comparison.swept) for key in comparison.swept)]
    heads += [column.title for column in columns]
    rows = [
        [
            str(rank),
            *(show(run.swept.get(key)) for key in comparison.swept),
            *(cell(comparison, run, column) for column in columns),
        ]
        for rank, run in enumerate(comparison.runs, start=1)
    ]
    question = question_of(comparison.runs)
    paragraphs = [*([f"*{question}*"] if question else []), f"**{comparison.headline[0]}**"]
    paragraphs += [*comparison.headline[1:], *comparison.warnings]
    count = f"{len(comparison.runs)} runs finished, {len(comparison.failed)} failed."
    lines = [_row(heads), _row(["---", *["---:"] * (len(heads) - 1)])]
    end = f"\n\n{count} All of it, with curves and maps: `report.html` among the artifacts of this run.\n"
    text = "\n\n".join(paragraphs) + "\n\n" + "\n".join(lines)
    room = limit - len(end) - 40
    for done, row in enumerate(rows):
        line = "\n" + _row(row)
        if len(text) + len(line) > room:
            end = f"\n\n{len(rows) - done} more runs are left out here.{end}"
            break
        text += line
    return text[:room] + end


def _row(fields: Iterable[str]) -> str:
    return "| " + " | ".join(field.replace("|", "\\|") for field in fields) + " |"


def question_of(runs: Iterable[Run]) -> str:
    """What the runs ask; several questions one after the other."""
    return " ".join(dict.fromkeys(run.question for run in runs if run.question))


def _plain(value: Any) -> Any:
    """Mappings, lists, words and finite numbers, of anything made of those; NaN and infinity become None."""
    if isinstance(value, dict) or hasattr(value, "items"):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)
