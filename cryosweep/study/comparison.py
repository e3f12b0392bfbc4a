"""What the finished runs of a study say together: one table, each parameter's effect, and how sure it is.

Runs are ordered by the FSC area of their unfiltered half maps under the one scoring mask that all of them
share, and where it is known by its rank sum with the held-out log-likelihood. Runs that differ only in a
seed of the data or in its group are replicates of one point: differences from the centre are then paired and
tested. Where a point has one run nobody wins: the leader is a candidate, and the runs that a single run
cannot tell apart from it are named with it.
"""

from __future__ import annotations

import hashlib
import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from cryosweep.io.maps import read_map
from cryosweep.rules import Finding
from cryosweep.study.findings import read_findings
from cryosweep.study.statistics import (
    Kind,
    Scope,
    Scores,
    Standing,
    against_centre,
    rank_sum,
    told_from_first,
)
from cryosweep.study.truth import Ranking, rank_settings, spearman
from cryosweep.tracking import flatten

SCORE = "fsc_area/frozen"
HELD_OUT = "score/held_out_likelihood"
SCORE_SD = "fsc_area/frozen_sd"
GSFSC = "resolution/frozen_0143"
TRUTH_SCORE = "truth/fsc_area"
TRUTH_RESOLUTION = "truth/resolution_05"
ROTATION_ERROR = "truth/rotation_error_median"
SHIFT_ERROR = "truth/shift_error_median"
GAIN = "gain"
TIED = "not_distinguishable_from_first"

# Before the name of a score, and of a column: the same on the images common to all settings of `subtraction`.
COMMON = "common/"
COMMON_COLUMN = "common_"

# Keys by which runs of one point differ that are replicates of it.
REPLICATE_KEYS = ("seed", "data.half_set_seed", "data.resplit", "data.simulation_seed", "data.group")
# Of these, those that bring in other particles.
OTHER_PARTICLE_KEYS = ("simulation_seed", "group")

# What stands in the place of a value where a point does not have the key at all.
ABSENT = "–"

# A map whose true resolution is coarser than its GSFSC by more than this factor is pointed out.
PARTED = 1.25
# Scoring masks of two runs may differ by this share of their volume: cutting a mask from a map that was
# reconstructed twice flips a few voxels.
SAME_MASK = 0.01
# A sentence names at most this many runs; the table marks all of them.
NAMED = 4
# What stands for the parts of `run.json` that a run which did not finish had no time to write.
_UNWRITTEN: Mapping[str, Any] = {
    "stop_reason": "it ended without saying why",
    "seed": "not recorded",
    "swept": {},
    "versions": {},
    "device": "not recorded",
    "inputs": {},
    "notes": [],
    "seconds": math.nan,
    "cpu_seconds": math.nan,
}


class Column(NamedTuple):
    """One measured column: its name in `summary.json`, how it is headed (lines), printed and explained."""

    key: str
    header: str
    decimals: int
    meaning: str
    start_key: str | None = None
    scale: float = 1.0

    @property
    def title(self) -> str:
        """The header on one line."""
        return self.header.replace("\n", " ")

    def show(self, value: float) -> str:
        """A value as printed; empty for NaN."""
        sign = "+" if self.key == GAIN else ""
        return "" if math.isnan(value) else f"{value * self.scale:{sign}.{self.decimals}f}"


COLUMNS = (
    Column(
        SCORE,
        "FSC\narea",
        3,
        "mean half-map FSC over the scoring band, under the scoring mask; higher is better",
        "start/fsc_area_frozen",
    ),
    Column(SCORE_SD, "±\nSD", 3, "spread expected of one run, by formula"),
    Column(GAIN, "gain\nover\nstart", 3, "FSC area minus that of the starting half maps"),
    Column(
        HELD_OUT,
        "held\nout\nlogL",
        2,
        "log-likelihood of an image at its pose under the other half's map, scoring mask, over that of no "
        "map, mean over the particles; higher means better poses",
    ),
    Column(
        GSFSC,
        "FSC\n0.143\nÅ",
        2,
        "resolution where the half-map FSC falls to 0.143, under the scoring mask",
        "start/resolution_frozen_0143",
    ),
    Column("resolution/frozen_05", "FSC\n0.5\nÅ", 2, "the same at 0.5"),
    Column(
        "resolution/own_corrected_0143",
        "own\n0.143\nÅ",
        2,
        "0.143 under the run's own mask, corrected by phase randomisation; do not compare between masks",
    ),
    Column("pose/rotation_change_median", "rotation\nchange\n°", 1, "median since the start"),
    Column("pose/shift_change_median", "shift\nchange\nÅ", 1, "median since the start"),
    Column(
        "pose/at_rotation_extent",
        "rotation\nat limit\n%",
        1,
        "particles that ended on the boundary of the rotation search",
        None,
        100.0,
    ),
    Column(
        "pose/at_shift_extent",
        "shift\nat limit\n%",
        1,
        "particles that ended on the boundary of the shift search",
        None,
        100.0,
    ),
    Column("seconds", "time\ns", 0, "wall time of the job"),
    Column(
        TRUTH_SCORE,
        "truth\nFSC\narea",
        3,
        "mean FSC against the true map, same band and mask",
        "start/truth_fsc_area",
    ),
    Column(
        TRUTH_RESOLUTION,
        "truth\n0.5\nÅ",
        2,
        "resolution where the FSC against the true map falls to 0.5",
        "start/truth_resolution_05",
    ),
    Column(
        ROTATION_ERROR,
        "rotation\nerror\n°",
        2,
        "median difference from the true rotations",
        "start/rotation_error_median",
    ),
    Column(
        "truth/rotation_error_p90",
        "rotation\nerror\np90 °",
        1,
        "90th percentile of it",
        "start/rotation_error_p90",
    ),
    Column(
        SHIFT_ERROR,
        "shift\nerror\nÅ",
        2,
        "median difference from the true shifts",
        "start/shift_error_median",
    ),
)

# What a terminal that is too narrow gives up first; the CSV and the page keep everything.
_EXPENDABLE = (
    "truth/rotation_error_p90",
    "truth/shift_error_median",
    "resolution/frozen_05",
    "seconds",
    "pose/at_shift_extent",
    "pose/shift_change_median",
    "resolution/own_corrected_0143",
    "pose/at_rotation_extent",
    "pose/rotation_change_median",
    TRUTH_SCORE,
    GAIN,
)


@dataclass(frozen=True)
class Run:
    """One run folder, read but for its curves, poses and maps.

    Attributes:
        folder: where it lies.
        name: of the run; unique in a comparison.
        study: of which it is a point.
        job: number or name of the job within the sweep.
        status: FINISHED; or FAILED, KILLED, RUNNING, whose results are not used.
        reason: why a finished run stopped, or the error of one that did not finish.
        seed: of all its randomness.
        swept: configuration key to the value of this point.
        summary: metric name to value; empty unless finished.
        rotation_extent: degrees per axis, as configured; None where the run had no pose search.
        shift_extent: Å per axis, or None.
        versions: program to version.
        device: in words.
        inputs: path to SHA-256.
        notes: what the job told its user.
        seconds: wall time.
        cpu_seconds: processor time.
        command: that runs this point again, as the job recorded it; empty where it did not.
        findings: what the rules object to, worst first.
        question: what the study asks, from the comment of its experiment file; empty where there is none.
        code: digest of the numerical code that the run was made with; empty where it was not recorded.
        extent_shape: what the extents bound, `norm` or `per_axis`; empty where it is not known.
        fingerprint: of everything that decides its results; empty where the job did not record it.
        taken_from: the run folder that its results were taken over from, or empty.
        options: the option chosen of each group; empty where the job did not record it.
        common_images: what tells the images common to all settings of `subtraction`; None without.
        on_common_images: whether scores, here and in the tables, are those on the common images.
    """

    folder: Path
    name: str
    study: str
    job: str
    status: str
    reason: str
    seed: str
    swept: Mapping[str, object]
    summary: Mapping[str, float]
    rotation_extent: float | None
    shift_extent: float | None
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    device: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict[str, str])
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    command: str = ""
    findings: tuple[Finding, ...] = ()
    question: str = ""
    code: str = ""
    extent_shape: str = ""
    fingerprint: str = ""
    taken_from: str = ""
    options: Mapping[str, object] = field(default_factory=dict[str, object])
    common_images: str | None = None
    on_common_images: bool = False

    @property
    def is_finished(self) -> bool:
        """Whether the run ended well and has results."""
        return self.status == "FINISHED"

    def fsc(self) -> pd.DataFrame:
        """FSC curves by shell, read from `fsc.csv`."""
        table = pd.read_csv(self.folder / "fsc.csv")
        if self.on_common_images:
            table["frozen"], table["start_frozen"] = table["common"], table["start_common"]
        return table

    def poses(self) -> pd.DataFrame:
        """Pose changes, one row a particle, read from `poses.csv`."""
        return self._scored("poses.csv", "held_out_likelihood")

    def _scored(self, name: str, column: str) -> pd.DataFrame:
        """A table whose score `column` is that on the common images, where those are compared."""
        table = pd.read_csv(self.folder / name)
        if self.on_common_images:
            table[column] = table[f"{COMMON_COLUMN}{column}"]
        return table

    def scores(self) -> Scores:
        """What statistics ask of a run; what an older run did not write is None."""
        poses, blocks = self.poses(), "jackknife.csv"
        likelihoods = poses.get("held_out_likelihood")
        return Scores(
            self.summary[SCORE],
            self.summary[GSFSC],
            None if likelihoods is None else likelihoods.to_numpy(dtype=float),
            self._scored(blocks, "fsc_area")["fsc_area"].to_numpy(dtype=float)
            if (self.folder / blocks).is_file()
            else None,
        )

    def settings(self) -> dict[str, object]:
        """Every key of the configuration to its value, read from `config.yaml`."""
        return flatten(yaml.safe_load((self.folder / "config.yaml").read_text()) or {})

    def reach(self, what: str) -> NDArray[np.float64] | None:
        """(n,) how far each particle went, in units of the extent that bounds it; None where it is not known.

        Args:
            what: "rotation" or "shift".
        """
        extent = self.rotation_extent if what == "rotation" else self.shift_extent
        names = [f"turn_{axis}" for axis in "xyz"] if what == "rotation" else ["move_x", "move_y"]
        poses = self.poses()
        if not extent or not self.extent_shape or any(name not in poses for name in names):
            return None
        moved = np.abs(poses[names].to_numpy(dtype=np.float64))
        size = np.linalg.norm(moved, axis=1) if self.extent_shape == "norm" else moved.max(axis=1)
        return size / extent

    def with_common_scores(self) -> Run:
        """The same run with the scores of its refined poses on the common images in the place of its own."""
        swapped = {
            name.removeprefix(COMMON): value
            for name, value in self.summary.items()
            if name.startswith(COMMON)
        }
        return replace(self, summary={**self.summary, **swapped}, on_common_images=True)

    def subtraction(self) -> Mapping[str, Any]:
        """The section of the configuration that says what was subtracted."""
        return self.config().get("subtraction", {})

    def config(self) -> dict[str, Any]:
        """The whole configuration, read from `config.yaml`."""
        return yaml.safe_load((self.folder / "config.yaml").read_text()) or {}

    def data(self) -> tuple[str, ...]:
        """What tells the data of one replicate from those of another: other particles, then half sets."""
        config = self.config()
        particles = [str(config.get("data", {}).get(key)) for key in OTHER_PARTICLE_KEYS]
        half_sets = self.poses()["half_set"].to_numpy(dtype=np.int64)
        return (*particles, hashlib.sha256(half_sets.tobytes()).hexdigest())


@dataclass(frozen=True)
class Replication:
    """What replicates there are, and what they say.

    Attributes:
        keys: swept keys by which the runs of one point differ.
        n: most replicates of a point; 1 where there are none.
        scope: for what intervals over them hold.
        centre: the point that all others are compared with, in words: that of the first job, or as chosen.
        centre_area: its FSC area, mean over its replicates.
        standings: every other point beside the centre.
        note: why runs that look like replicates are none, or empty.
    """

    keys: tuple[str, ...]
    n: int
    scope: Scope
    centre: str
    centre_area: float
    standings: tuple[Standing, ...]
    note: str = ""

    @property
    def tested(self) -> int:
        """How many points have replicates in common with the centre; p-values are adjusted for so many."""
        return sum(standing.n > 1 for standing in self.standings)


class Effect(NamedTuple):
    """Marginal effect of one value: the score of all runs that have it.

    `sd`, `low` and `high` describe the spread over the other parameters; `sd` is NaN for a single run.
    """

    parameter: str
    value: str
    score: str
    n: int
    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class TruthAgreement:
    """How the ranking by FSC area fares against the known truth of simulated data.

    Attributes:
        n: runs with known truth.
        spearman_area: rank correlation of FSC area with truth FSC area; NaN where it is not defined.
        spearman_rotation: rank correlation of FSC area with minus the median rotation error.
        sentences: plain statements, the verdict first, then each map whose GSFSC flatters it.
        rankings: each score, and the rank sum that orders the table, beside the truth; over settings, with
            replicates of one averaged. None of a single setting.
        n_settings: how many settings those are.
        parted: names of runs whose map is right to a resolution more than `PARTED` times as coarse as the
            half maps agree to.
    """

    n: int
    spearman_area: float
    spearman_rotation: float
    sentences: tuple[str, ...]
    rankings: tuple[Ranking, ...]
    n_settings: int
    parted: frozenset[str]


@dataclass(frozen=True)
class Comparison:
    """The runs of a study side by side.

    Attributes:
        study: name.
        runs: finished, highest FSC area first.
        failed: the others, in the order given.
        swept: keys whose value differs between runs; all keys where there is only one run.
        fixed: swept keys that have one value throughout.
        table: one row a run in the order of `runs`, indexed by name: swept values, then the keys of `COLUMNS`
            that exist, then whether the run cannot be told from the first.
        start: metrics of the consensus under the same mask, named as in `table`.
        effects: of each value of each swept parameter, on the FSC area and, where known, on the truth's.
        is_full_grid: every combination of the swept values finished, and equally often.
        noise: difference in FSC area that is not resolved (95 %): of a single run on each side, or, where
            points have replicates, the median half width of the paired intervals.
        headline: two or three sentences, the result.
        findings: further sentences: gain over the consensus, effect of each parameter.
        truth: agreement with the truth, for simulated data.
        warnings: what limits the comparison.
        replication: replicates, and every point beside the centre.
    """

    study: str
    runs: tuple[Run, ...]
    failed: tuple[Run, ...]
    swept: tuple[str, ...]
    fixed: Mapping[str, str]
    table: pd.DataFrame
    start: Mapping[str, float]
    effects: tuple[Effect, ...]
    is_full_grid: bool
    noise: float
    headline: tuple[str, ...]
    findings: tuple[str, ...]
    truth: TruthAgreement | None
    warnings: tuple[str, ...]
    replication: Replication

    @property
    def choices(self) -> tuple[str, ...]:
        """Swept keys without those that make replicates."""
        return tuple(key for key in self.swept if key not in self.replication.keys)

    def label(self, run: Run) -> str:
        """The point of a run in words, such as `dilation_radius 7, soft_padding_width 16`."""
        return point_label(run, self.swept)


def load_run(folder: Path) -> Run:
    """Read one run folder; of a run that did not finish, what it had time to write.

    Raises:
        ValueError: it holds no run, or a finished run lacks a file or a metric that the comparison needs.
    """
    record = _read_json(folder, "run.json")
    finished = record.get("status") == "FINISHED"
    record = record if finished else {**_UNWRITTEN, **record}
    try:
        run = Run(
            folder=folder,
            name=str(record["name"]) or f"job {record['job']}",
            study=str(record["study"]),
            job=str(record["job"]),
            status=str(record["status"]),
            reason=str(record["stop_reason"]),
            seed=str(record["seed"]),
            swept=dict(record["swept"]),
            summary=_read_summary(folder) if finished else {},
            rotation_extent=_search_number(folder, "rotation_extent") if finished else None,
            shift_extent=_search_number(folder, "shift_extent") if finished else None,
            versions={str(k): str(v) for k, v in record["versions"].items()},
            device=str(record["device"]),
            inputs={str(k): str(v) for k, v in record["inputs"].items()},
            notes=tuple(str(note) for note in record["notes"]),
            seconds=float(record["seconds"]),
            cpu_seconds=float(record["cpu_seconds"]),
            command=str(record.get("command", "")),
            findings=read_findings(folder) if finished else (),
            question=str(record.get("question", "")),
            code=str(record.get("code", "")),
            extent_shape=str(_search_setting(folder, "extent_shape") or "") if finished else "",
            fingerprint=str(record.get("fingerprint") or ""),
            taken_from=str(record.get("taken_from") or ""),
            options=dict(record.get("choices") or {}),
            common_images=(record.get("common_images") or {}).get("key"),
        )
    except KeyError as missing:
        raise ValueError(
            f"{folder / 'run.json'}: no key {missing}; was it written by another version?"
        ) from missing
    if finished:
        needed = ("fsc.csv", "poses.csv", "map.mrc", "start_map.mrc", "scoring_mask.mrc")
        absent = [name for name in needed if not (folder / name).is_file()]
        if absent:
            raise ValueError(
                f"{folder}: the run is marked FINISHED but lacks {', '.join(absent)}; run it again"
            )
    return run


def load_runs(folders: Iterable[Path]) -> tuple[Run, ...]:
    """Read run folders; a folder that is not itself a run is searched for runs at any depth.

    Raises:
        ValueError: a folder holds no run.
    """
    found: list[Path] = []
    for folder in folders:
        here = folder / "run.json"
        records = [here] if here.is_file() else sorted(folder.rglob("run.json"), key=_job_order)
        if not records:
            raise ValueError(
                f"{folder}: no run.json in it or below it; give the folder of a study or of its runs"
            )
        found.extend(record.parent for record in records)
    return tuple(load_run(folder) for folder in found)


def _job_order(record: Path) -> tuple[Path, int, str]:
    """Sort key by which job 10 follows job 9."""
    folder = record.parent
    return folder.parent, int(folder.name) if folder.name.isdigit() else -1, folder.name


def compare(
    runs: Sequence[Run], *, centre: Mapping[str, str] | None = None, notes: Sequence[str] = ()
) -> Comparison:
    """Compare the runs of a study on one ruler.

    Args:
        runs: finished and others, in the order of their jobs.
        centre: swept keys with the values, in words, of the point that all others are compared with; None
            for that of the first finished run.
        notes: what limits the comparison and cannot be seen from the runs.

    The bar for a difference between two single runs is 1.96 sqrt(2) times the largest SD that the formula for
    one run gives (spread of an FSC over the effective number of samples in the mask). It treats the runs as
    independent, which those on the same particles are not, and leaves out what refining anew changes: of
    whole refinements 0 to 4 % passed it by chance (docs/statistics.md). It is not a paired test.

    Raises:
        ValueError: no run finished, two that did share a name, they were scored under different masks, or
            `centre` is not one of the points.
    """
    runs, told = _on_alike_images(runs)
    finished = sorted((run for run in runs if run.is_finished), key=lambda run: -run.summary[SCORE])
    failed = tuple(run for run in runs if not run.is_finished)
    if not finished:
        reasons = "; ".join(f"{run.name}: {run.reason}" for run in failed) or "none were given"
        raise ValueError(f"no finished run to compare ({reasons})")
    _check_names(finished)
    swept, fixed = _swept_keys([run for run in runs if run.is_finished or run.swept])
    replicate_keys = tuple(key for key in swept if key in REPLICATE_KEYS)
    choices = tuple(key for key in swept if key not in replicate_keys)
    # the map that a mask is cut from belongs to its replicate, and differences are taken within one
    for replicate in _by(finished, replicate_keys).values():
        _check_one_ruler(replicate)
    first = _find_centre([run for run in runs if run.is_finished], choices, centre or {})
    finished = _ordered(finished, choices, replicate_keys, first)
    replication = _replication(finished, choices, replicate_keys, first)
    noise = 1.96 * math.sqrt(2.0) * max(run.summary[SCORE_SD] for run in finished)
    if replication.n > 1:
        noise = _paired_noise(replication, noise)
    tied = _tied(finished, choices, replication, noise)
    table = _table(finished, swept, tied)
    effects = _effects(finished, choices)
    full = _is_full_grid(finished, choices)
    start = _start(finished[0])
    return Comparison(
        study=", ".join(dict.fromkeys(run.study for run in runs)),
        runs=tuple(finished),
        failed=failed,
        swept=swept,
        fixed=fixed,
        table=table,
        start=start,
        effects=effects,
        is_full_grid=full,
        noise=noise,
        headline=(
            _replicated_headline(finished, choices, replication)
            if replication.n > 1
            else _headline(finished, swept, table, noise)
        ),
        findings=(
            *_error_sentence(finished[0]),
            *(_standing_sentences(replication, finished[0], choices) if replication.n > 1 else ()),
            *_gain_sentence(table, start, noise),
            *_effect_sentences(effects, choices, noise),
            *_truth_gain_sentence(finished[0], swept, start),
        ),
        truth=_agreement(finished, swept, choices, start, noise),
        warnings=(
            *notes,
            *told,
            *([replication.note] if replication.note else []),
            *_warnings(finished, failed, _is_complete(finished, choices), full),
        ),
        replication=replication,
    )


def _on_alike_images(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Runs whose scores are taken on the same images, and what is to be said of it.

    Runs that differ in `subtraction` refined different images, and were scored on those. Their scores on the
    common images take the place of their own, where all have them.
    """
    finished = [run for run in runs if run.is_finished]
    if len({(str(run.options.get("subtraction")), str(run.subtraction())) for run in finished}) < 2:
        return list(runs), []
    # each replicate has images of its own
    replicates: dict[tuple[str, ...], set[str | None]] = {}
    for run in finished:
        replicates.setdefault(run.data(), set()).add(run.common_images)
    if any(len(images) > 1 or None in images for images in replicates.values()):
        return list(runs), [
            "The runs differ in subtraction and were not all scored on the same common images "
            "(scoring.common_images), so their scores were taken on different images: FSC area and "
            "likelihood of one kind do not rank against the other's, and verdicts across them are in doubt."
        ]
    told = (
        "The runs differ in subtraction, so all are compared on common images: FSC area, its curve and gain, "
        "resolution and likelihood of each are those of its refined poses on images without the neighbours, "
        "the same for all. Columns of the truth, and those of a run's own mask, are of its own maps."
    )
    return [run.with_common_scores() if run.is_finished else run for run in runs], [told]


def cell(comparison: Comparison, run: Run, column: Column) -> str:
    """One value of the table as printed."""
    value: Any = comparison.table.at[run.name, column.key]
    return column.show(float(value))


def point_label(run: Run, swept: Sequence[str]) -> str:
    """The point of a run in words; the run's name where nothing was swept."""
    if not swept or not run.swept:
        return run.name
    there = [key for key in swept if run.swept.get(key) != ABSENT]
    return ", ".join(f"{short_key(key, swept)} {show(run.swept.get(key))}" for key in there)


def short_key(key: str, keys: Iterable[str]) -> str:
    """The last part of a configuration key, or all of it where another key ends alike."""
    last = key.rsplit(".", 1)[-1]
    return key if any(other != key and other.rsplit(".", 1)[-1] == last for other in keys) else last


def show(value: object) -> str:
    """A swept value as a person would write it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        items: list[object] = list(value)
        return f"({', '.join(show(item) for item in items)})"
    return str(value)


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{folder}: no {name}; give a folder that a cryosweep job wrote")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); was the job killed while writing?") from error


def _read_summary(folder: Path) -> dict[str, float]:
    summary = {str(key): float(value) for key, value in _read_json(folder, "summary.json").items()}
    optional = {GAIN, HELD_OUT, *(column.key for column in COLUMNS if column.key.startswith("truth/"))}
    needed = [column.key for column in COLUMNS if column.key not in optional]
    needed += [column.start_key for column in COLUMNS if column.key in (SCORE, GSFSC) and column.start_key]
    absent = [key for key in needed if key not in summary]
    if absent:
        raise ValueError(f"{folder / 'summary.json'}: no metric {', '.join(absent)}; run the job again")
    if not math.isfinite(summary[SCORE]) or not math.isfinite(summary[SCORE_SD]):
        raise ValueError(
            f"{folder}/summary.json: {SCORE} is {summary[SCORE]} ± {summary[SCORE_SD]}, but must be finite; "
            "run the job again"
        )
    return summary


def _search_number(folder: Path, name: str) -> float | None:
    value = _search_setting(folder, name)
    return None if value is None else float(value)


def _search_setting(folder: Path, name: str) -> Any:
    path = folder / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{folder}: no config.yaml; give a folder that a cryosweep job wrote")
    config = yaml.safe_load(path.read_text()) or {}
    return config.get("search", {}).get(name)


def _check_names(runs: Sequence[Run]) -> None:
    seen: dict[str, Path] = {}
    for run in runs:
        if run.name in seen:
            raise ValueError(
                f"two runs are named '{run.name}': {seen[run.name]} and {run.folder}; compare one of them"
            )
        seen[run.name] = run.folder


def _check_one_ruler(runs: Sequence[Run]) -> None:
    first = read_map(runs[0].folder / "scoring_mask.mrc")
    volume = float(first.data.sum())
    for run in runs[1:]:
        other = read_map(run.folder / "scoring_mask.mrc")
        same_grid = other.data.shape == first.data.shape and math.isclose(
            other.pixel_size, first.pixel_size, rel_tol=1e-4
        )
        if not same_grid or float((other.data - first.data).abs().sum()) > SAME_MASK * volume:
            raise ValueError(
                f"'{runs[0].name}' and '{run.name}' were scored under different masks, so their FSC areas "
                "cannot be compared: compare them apart, or score both again under one mask"
            )


def _swept_keys(runs: Sequence[Run]) -> tuple[tuple[str, ...], dict[str, str]]:
    keys = list(dict.fromkeys(key for run in runs for key in run.swept))
    values = {key: {show(run.swept.get(key)) for run in runs} for key in keys}
    if len(runs) == 1:
        return tuple(keys), {}
    varying = tuple(key for key in keys if len(values[key]) > 1)
    return varying, {key: next(iter(values[key])) for key in keys if key not in varying}


def _by(runs: Iterable[Run], keys: Sequence[str]) -> dict[str, list[Run]]:
    """Runs with equal values of `keys`, by those values in words."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(point_label(run, keys) if keys else "all", []).append(run)
    return found


def _find_centre(finished: Sequence[Run], choices: Sequence[str], wanted: Mapping[str, str]) -> Run:
    """A run of the point that all others are compared with."""
    matching = [
        run
        for run in finished
        if all(show(run.swept.get(key, ABSENT)) == value for key, value in wanted.items())
    ]
    points = list(_by(matching, choices))
    if len(points) == 1 or (points and not wanted):
        return matching[0]
    told = ", ".join(f"{key}={value}" for key, value in wanted.items())
    if points:
        more = ", ".join(key for key in choices if key not in wanted)
        raise ValueError(f"centre {told}: {len(points)} points have that; say which with a value of {more}")
    keys = list(dict.fromkeys(key for run in finished for key in run.swept))
    values = "; ".join(
        f"{key}: {', '.join(value_order(show(run.swept.get(key)) for run in finished))}" for key in keys
    )
    raise ValueError(f"centre {told}: no point has that; the points have {values or 'no swept keys'}")


def paired_means(
    points: Mapping[str, Sequence[Run]], keys: Sequence[str], centre: str, score: str
) -> dict[str, float]:
    """Mean score of each point over its replicates, had all points the replicates of the centre.

    What a replicate does to every score is taken out by the centre's score in the same replicate, so that a
    point with one run can stand beside one with three. With equal replicates these are the plain means.
    """
    by_replicate = {point_label(run, keys) if keys else "": run.summary[score] for run in points[centre]}
    level = float(np.mean(list(by_replicate.values())))
    means: dict[str, float] = {}
    for name, group in points.items():
        shifts = [
            run.summary[score] - by_replicate.get(point_label(run, keys) if keys else "", level)
            for run in group
        ]
        means[name] = level + float(np.mean(shifts))
    return means


def _ordered(runs: Sequence[Run], choices: Sequence[str], keys: Sequence[str], centre: Run) -> list[Run]:
    """Points by rank sum of their mean FSC area and held-out likelihood, the replicates of one together.

    Where some runs have no likelihood, by FSC area alone; equal rank sums by likelihood.
    """
    by_point = _by(runs, choices) if choices else {run.name: [run] for run in runs}
    points = list(by_point.values())
    name = point_label(centre, choices) if choices else centre.name

    def means(score: str) -> np.ndarray:
        if not choices:
            return np.array([run.summary[score] for run in runs])
        return np.array(list(paired_means(by_point, keys, name, score).values()))

    area = means(SCORE)
    if not all(HELD_OUT in run.summary for run in runs):
        order = np.argsort(-area, kind="stable")
    else:
        held_out = means(HELD_OUT)
        order = np.lexsort((-held_out, rank_sum([area.astype(np.float64), held_out.astype(np.float64)])))
    return [run for place in order for run in points[int(place)]]


def _replication(
    runs: Sequence[Run], choices: Sequence[str], keys: tuple[str, ...], first: Run
) -> Replication:
    """Pair the runs of each point with those of the centre, replicate by replicate."""
    replicates = _by(runs, keys)
    note, scope = "", Scope.ONE_RUN
    if len(replicates) > 1:
        data = {name: group[0].data() for name, group in replicates.items()}
        scope = Scope.THESE_PARTICLES
        if len({found[:-1] for found in data.values()}) == len(data):
            scope = Scope.OTHER_PARTICLES
        elif len(set(data.values())) < len(data):
            scope = Scope.ONE_RUN
            note = (
                f"Runs that differ in {', '.join(keys)} have the same particles in the same half sets, so "
                "they are no replicates and are not tested as such; data.resplit=true draws new half sets."
            )
        elif any(run.data() != data[name] for name, group in replicates.items() for run in group):
            note = "The runs of a replicate do not all have the same particles in the same half sets."
    points = _by(runs, choices)
    if scope is Scope.ONE_RUN:
        points = {name: group[:1] for name, group in points.items()}
    settings = {
        name: {
            point_label(run, keys) if keys and scope is not Scope.ONE_RUN else "one": run.scores()
            for run in group
        }
        for name, group in points.items()
    }
    centre = next(name for name, group in _by(runs, choices).items() if first in group)
    standings = against_centre(settings, centre, scope=scope) if choices else ()
    areas = [scores.area for scores in settings[centre].values()]
    most = max(map(len, settings.values()))
    return Replication(keys, most, scope, centre, float(np.mean(areas)), standings, note)


def _paired_noise(replication: Replication, otherwise: float) -> float:
    widths = [0.5 * (each.area.high - each.area.low) for each in replication.standings if each.n > 1]
    return float(np.median(widths)) if widths else otherwise


def _tied(
    runs: Sequence[Run], choices: Sequence[str], replication: Replication, noise: float
) -> dict[str, bool]:
    """Which runs cannot be told from the first: by the bar of one run, or by paired tests of the points."""
    best = runs[0].summary[SCORE]
    if replication.n < 2 or not choices:
        return {run.name: abs(best - run.summary[SCORE]) < noise for run in runs}
    points = _by(runs, choices)
    by_replicate = {
        name: {point_label(run, replication.keys): run.summary[SCORE] for run in group}
        for name, group in points.items()
    }
    told = dict(zip(points, told_from_first(list(by_replicate.values())), strict=True))
    return {run.name: not told[name] for name, group in points.items() for run in group}


def _table(runs: Sequence[Run], swept: Sequence[str], tied: Mapping[str, bool]) -> pd.DataFrame:
    rows: list[dict[str, object]] = []
    for run in runs:
        row: dict[str, object] = {key: show(run.swept.get(key)) for key in swept}
        metrics = {**run.summary, GAIN: run.summary[SCORE] - run.summary["start/fsc_area_frozen"]}
        row |= {column.key: metrics.get(column.key, math.nan) for column in COLUMNS}
        row[TIED] = tied[run.name]
        rows.append(row)
    table = pd.DataFrame(rows, index=pd.Index([run.name for run in runs], name="run"))
    return table.dropna(axis="columns", how="all")


def _start(run: Run) -> dict[str, float]:
    pairs = ((column.key, column.start_key) for column in COLUMNS)
    return {key: run.summary[start] for key, start in pairs if start is not None and start in run.summary}


def value_order(values: Iterable[str]) -> list[str]:
    """Distinct values, numbers first and by size, then words."""

    def rank(value: str) -> tuple[int, float, str]:
        try:
            return (0, float(value), "")
        except ValueError:
            return (1, 0.0, value)

    return sorted(set(values), key=rank)


def _error_sentence(first: Run) -> tuple[str, ...]:
    """That a rule calls the run at the top of the table one not to be used, if it does."""
    codes = list(dict.fromkeys(found.code for found in first.findings if found.level == "error"))
    if not codes:
        return ()
    return (
        f"The first has an error by the rules of the field ({', '.join(codes)}): its score may owe something "
        "to what is objected to. See the findings before using it.",
    )


def _effects(runs: Sequence[Run], swept: Sequence[str]) -> tuple[Effect, ...]:
    effects: list[Effect] = []
    for score in (SCORE, TRUTH_SCORE):
        known = [run for run in runs if score in run.summary]
        for key in swept:
            values = {show(run.swept.get(key)) for run in known} - {ABSENT}
            for value in value_order(values):
                scores = [run.summary[score] for run in known if show(run.swept.get(key)) == value]
                sd = float(np.std(scores, ddof=1)) if len(scores) > 1 else math.nan
                effects.append(
                    Effect(
                        key, value, score, len(scores), float(np.mean(scores)), sd, min(scores), max(scores)
                    )
                )
    return tuple(effects)


def _is_complete(runs: Sequence[Run], swept: Sequence[str]) -> bool:
    """Whether every combination of the swept values finished, however often."""
    points = {tuple(show(run.swept.get(key)) for key in swept) for run in runs}
    return math.prod(len(set(values)) for values in zip(*points, strict=True)) == len(points)


def _is_full_grid(runs: Sequence[Run], swept: Sequence[str]) -> bool:
    points = [tuple(show(run.swept.get(key)) for key in swept) for run in runs]
    combinations = math.prod(len(set(values)) for values in zip(*points, strict=True))
    # replicates repeat a point, all of them equally often
    return combinations == len(set(points)) and len({points.count(point) for point in points}) == 1


def _headline(
    runs: Sequence[Run], swept: Sequence[str], table: pd.DataFrame, noise: float
) -> tuple[str, ...]:
    first = runs[0]
    by = "First by rank sum of FSC area and held-out likelihood" if HELD_OUT in table else "Highest FSC area"
    leader = f"{by}: {point_label(first, swept)} ({first.summary[SCORE]:.3f}, one run)"
    if len(runs) == 1:
        return (f"{leader}; nothing to compare it with.",)
    tied = [point_label(run, swept) for run in runs[1:] if bool(table.loc[run.name, TIED])]
    bar = f"{leader}; differences below {noise:.3f} are within the noise of one run."
    if tied:
        more = f"; and {len(tied) - NAMED} more" if len(tied) > NAMED else ""
        verdict = f"Not distinguishable from it here: {'; '.join(tied[:NAMED])}{more}."
    else:
        verdict = (
            "Every other run differs by more than that, but with one run per point it stays a candidate."
        )
    caution = (
        f"{noise:.3f} is by a formula for single runs that takes them as independent; it is not a paired "
        f"test, and the highest of {len(runs)} owes something to luck. Other half-set seeds would turn a "
        "candidate into a result."
    )
    return bar, verdict, caution


def _replicated_headline(
    runs: Sequence[Run], choices: Sequence[str], replication: Replication
) -> tuple[str, ...]:
    """The leader, and what replicates say of it; nobody is ranked within what they cannot tell apart."""
    points = _by(runs, choices)
    leader = next(iter(points))
    areas = paired_means(points, replication.keys, replication.centre, SCORE)
    known = all(HELD_OUT in run.summary for run in runs)
    by = "by rank sum of FSC area and held-out likelihood" if known else "by FSC area"
    n = len(points[leader])
    runs_of_it = f"{n} replicates" if n > 1 else "one run"
    first = f"First {by}: {leader} (mean FSC area {areas[leader]:.3f}, {runs_of_it})."
    if not choices:
        spread = float(np.std([run.summary[SCORE] for run in runs], ddof=1))
        return (f"One point in {len(runs)} replicates: mean FSC area {areas[leader]:.3f}, SD {spread:.4f}.",)
    said = [standing.verdict.sentence for standing in replication.standings if standing.setting == leader]
    if not said:
        worse = sum(standing.verdict.kind is Kind.WORSE for standing in replication.standings)
        said = [
            f"It is the centre, and {worse} of the {replication.tested} others with replicates are shown to "
            "be worse; what is known of each is below."
        ]
    picks: list[str] = []
    highest = max(areas, key=lambda name: areas[name])
    if known:
        poses = paired_means(points, replication.keys, replication.centre, HELD_OUT)
        best_poses = max(poses, key=lambda name: poses[name])
        if {highest, best_poses} != {leader}:
            picks = [f"FSC area alone would put {highest} first, the likelihood alone {best_poses}."]
    tested = replication.tested
    adjusted = (
        f"p-values are adjusted for {tested} comparisons with {replication.centre}"
        if tested > 1
        else f"there is one comparison, with {replication.centre}"
    )
    scope = (
        f"Intervals (95 %) and tests over the replicates hold for {replication.scope.value}; {adjusted}."
        if tested
        else f"No other point shares two replicates with the centre, {replication.centre}, so none is tested "
        "against it; another centre can be chosen with --centre."
    )
    return first, said[0], *picks, scope


def _standing_sentences(replication: Replication, first: Run, choices: Sequence[str]) -> list[str]:
    """The verdict on every point but the centre and the first (the headline has it), telling ones first."""
    order = list(Kind)
    standings = sorted(replication.standings, key=lambda each: order.index(each.verdict.kind))
    leader = point_label(first, choices)
    return [each.verdict.sentence for each in standings if each.setting != leader]


def _gain_sentence(table: pd.DataFrame, start: Mapping[str, float], noise: float) -> tuple[str, ...]:
    gains = table[GAIN].to_numpy(dtype=float)
    n = len(gains)
    up, down = int((gains >= noise).sum()), int((gains <= -noise).sum())
    lost = f" and {down} lost more than that" if down else ""
    return (
        f"Against the starting map (FSC area {start[SCORE]:.3f} under the same mask), {up} of {n} runs "
        f"gained more than {noise:.3f}{lost}.",
    )


def _effect_sentences(effects: Sequence[Effect], swept: Sequence[str], noise: float) -> tuple[str, ...]:
    sentences: list[str] = []
    for key in swept:
        rows = [effect for effect in effects if effect.parameter == key and effect.score == SCORE]
        if len(rows) < 2:
            continue
        high, low = max(rows, key=lambda row: row.mean), min(rows, key=lambda row: row.mean)
        text = f"{key}: mean FSC area from {low.mean:.3f} at {low.value} to {high.mean:.3f} at {high.value}"
        spreads = [row.sd for row in rows if row.n > 1]
        if spreads:
            text += f"; at one value the other parameters spread it by up to {max(spreads):.3f} (SD)"
        if high.mean - low.mean < noise:
            text += f"; that is within the noise ({noise:.3f})"
        sentences.append(text + ".")
    return tuple(sentences)


def _agreement(
    runs: Sequence[Run],
    swept: Sequence[str],
    choices: Sequence[str],
    start: Mapping[str, float],
    noise: float,
) -> TruthAgreement | None:
    known = [run for run in runs if TRUTH_SCORE in run.summary]
    if not known:
        return None
    scores = [run.summary[SCORE] for run in known]
    by_area = spearman(scores, [run.summary[TRUTH_SCORE] for run in known])
    by_rotation = spearman(scores, [-run.summary[ROTATION_ERROR] for run in known])
    ranks = _rank_sentences(known, swept, by_area, by_rotation, noise)
    sentences = [*ranks, *_order_sentence(known), *_parted_sentences(known, swept, start)]
    sentences += _borne_out_sentence(runs)
    settings = _by(known, choices) if choices else {run.name: [run] for run in known}
    parted = frozenset(run.name for run in known if _is_parted(run))
    return TruthAgreement(
        len(known), by_area, by_rotation, tuple(sentences), _rankings(settings), len(settings), parted
    )


def _rankings(settings: Mapping[str, Sequence[Run]]) -> tuple[Ranking, ...]:
    """FSC area, held-out likelihood and their rank sum beside the truth; settings as the table has them."""
    if len(settings) < 2:
        return ()

    def mean(key: str) -> NDArray[np.float64]:
        means = [np.mean([run.summary[key] for run in group]) for group in settings.values()]
        return np.array(means, dtype=np.float64)

    scores = {"FSC area (A)": mean(SCORE)}
    if all(HELD_OUT in run.summary for group in settings.values() for run in group):
        scores["held-out likelihood (H)"] = mean(HELD_OUT)
        # as the table has them: of equal rank sums the likelier comes first
        scores["rank sum of A and H"] = -np.arange(len(settings), dtype=np.float64)
    return rank_settings(
        list(settings), scores, truth_area=mean(TRUTH_SCORE), rotation_error=mean(ROTATION_ERROR)
    )


def _is_parted(run: Run) -> bool:
    return run.summary[TRUTH_RESOLUTION] > PARTED * run.summary[GSFSC]


def _truth_gain_sentence(run: Run, swept: Sequence[str], start: Mapping[str, float]) -> list[str]:
    """What the first run gained on the start, map and poses, measured against the truth."""
    needed = (TRUTH_RESOLUTION, TRUTH_SCORE, ROTATION_ERROR, SHIFT_ERROR)
    if not all(key in start and key in run.summary for key in needed):
        return []
    resolution, area, rotation, shift = (
        f"{run.summary[key]:.{decimals}f}{unit} (started from {start[key]:.{decimals}f}{unit})"
        for key, decimals, unit in zip(needed, (1, 3, 1, 1), (" Å", "", "°", " Å"), strict=True)
    )
    return [
        f"Against the truth {point_label(run, swept)} is right to {resolution}, FSC area {area}; median "
        f"error of rotation {rotation}, of shift {shift}."
    ]


def _rank_sentences(
    known: Sequence[Run], swept: Sequence[str], by_area: float, by_rotation: float, noise: float
) -> list[str]:
    if math.isnan(by_area) or math.isnan(by_rotation):
        return [
            f"The truth is known, but {len(known)} run(s) are too few, or too alike, to compare rankings."
        ]
    worse = min(by_area, by_rotation)
    verdict = next(
        words
        for bound, words in (
            (0.9, "agrees with"), (0.7, "mostly agrees with"), (0.3, "agrees only partly with"),
            (-1.1, "does not agree with"),
        )
        if worse >= bound
    )  # fmt: skip
    sentences = [
        f"The ranking by FSC area {verdict} the truth: Spearman {by_area:.2f} with the FSC area against the "
        f"true map, {by_rotation:.2f} with minus the median rotation error, {len(known)} runs."
    ]
    pairs = list(combinations([run.summary[SCORE] for run in known], 2))
    close = sum(abs(a - b) < noise for a, b in pairs)
    if close:
        sentences.append(
            f"{close} of the {len(pairs)} pairs differ by less than {noise:.3f}: their order may be luck."
        )
    first = known[0]
    best_map = max(known, key=lambda run: run.summary[TRUTH_SCORE])
    best_poses = min(known, key=lambda run: run.summary[ROTATION_ERROR])
    if best_map is not first:
        sentences.append(
            f"The best map by truth is {point_label(best_map, swept)} (truth FSC area "
            f"{best_map.summary[TRUTH_SCORE]:.3f}; the leader has {first.summary[TRUTH_SCORE]:.3f})."
        )
    if best_poses is not first:
        sentences.append(
            f"The best poses are those of {point_label(best_poses, swept)} (median rotation error "
            f"{best_poses.summary[ROTATION_ERROR]:.2f}°; the leader: {first.summary[ROTATION_ERROR]:.2f}°)."
        )
    if best_map is first and best_poses is first:
        sentences.append("The leader by FSC area also has the best map and the best poses by truth.")
    return sentences


def _order_sentence(known: Sequence[Run]) -> list[str]:
    """How the order of the table, where it is that of the rank sum, fares against the truth."""
    if not all(HELD_OUT in run.summary for run in known):
        return []
    place = [-float(position) for position in range(len(known))]
    by_area = spearman(place, [run.summary[TRUTH_SCORE] for run in known])
    by_rotation = spearman(place, [-run.summary[ROTATION_ERROR] for run in known])
    if math.isnan(by_area) or math.isnan(by_rotation):
        return []
    return [
        f"The order of the table, by rank sum of FSC area and held-out likelihood: Spearman {by_area:.2f} "
        f"with the FSC area against the true map, {by_rotation:.2f} with minus the median rotation error."
    ]


def _parted_sentences(known: Sequence[Run], swept: Sequence[str], start: Mapping[str, float]) -> list[str]:
    cases = [("the starting map", start[GSFSC], start[TRUTH_RESOLUTION])] if TRUTH_RESOLUTION in start else []
    worst = sorted(known, key=lambda run: run.summary[GSFSC] / run.summary[TRUTH_RESOLUTION])
    parted = [run for run in worst if _is_parted(run)]
    cases += [
        (point_label(run, swept), run.summary[GSFSC], run.summary[TRUTH_RESOLUTION]) for run in parted[:NAMED]
    ]
    sentences = [
        f"FSC and truth part at {label}: the half maps agree to {gsfsc:.1f} Å, but the map is right only to "
        f"{truth:.1f} Å."
        for label, gsfsc, truth in cases
        if truth > PARTED * gsfsc
    ]
    if len(parted) > NAMED:
        sentences.append(f"So they do, less strongly, at {len(parted) - NAMED} more runs.")
    return sentences


def _borne_out_sentence(runs: Sequence[Run]) -> list[str]:
    """Which runs of the table may be believed in what their half maps say, by their numbers there."""
    places: dict[bool, list[str]] = {True: [], False: []}
    for place, run in enumerate(runs, start=1):
        if TRUTH_RESOLUTION in run.summary:
            places[not _is_parted(run)].append(str(place))
    if len(places[True]) + len(places[False]) < 2:
        return []
    told = {borne_out: ", ".join(found) or "none" for borne_out, found in places.items()}
    return [
        f"What the half maps say of resolution is borne out (FSC 0.5 against the truth at most {PARTED:g} "
        f"times as coarse) in rows {told[True]} of the table; not in {told[False]}."
    ]


def _warnings(finished: Sequence[Run], failed: Sequence[Run], complete: bool, full: bool) -> tuple[str, ...]:
    warnings: list[str] = []
    if failed:
        warnings.append(
            f"{len(failed)} of {len(failed) + len(finished)} runs did not finish and are left out."
        )
    if complete and not full:
        warnings.append(
            "Some points have more replicates than others; the mean over one value counts every run."
        )
    if not complete:
        warnings.append(
            "Not every combination of the swept values is there, so the mean over one value is partly an "
            "effect of the others."
        )
    # replicates on other particles begin elsewhere, as they should
    alike: dict[tuple[str, ...], list[Run]] = {}
    for run in finished:
        alike.setdefault(run.data(), []).append(run)
    starts = max(
        ([run.summary["start/fsc_area_frozen"] for run in group] for group in alike.values()),
        key=lambda found: max(found) - min(found),
    )
    if max(starts) - min(starts) > 1e-3:
        warnings.append(
            "The runs do not share one starting point (FSC area of the start "
            f"{min(starts):.3f} to {max(starts):.3f}); each gain is over the run's own start."
        )
    inputs = ({tuple(sorted(run.inputs.values())) for run in group} for group in alike.values())
    if any(len(read) > 1 for read in inputs):
        warnings.append("The runs did not read the same input files (checksums differ).")
    return tuple(warnings)


def terminal_table(comparison: Comparison, *, width: int = 120) -> str:
    """The comparison as plain text: result, table, legend, failed runs.

    Columns are left out, and named, where the table would be wider than `width` characters; where that does
    not suffice the swept values move below it.
    """
    swept = comparison.swept
    columns = [column for column in COLUMNS if column.key in comparison.table]
    dropped: list[Column] = []
    lines = _grid(comparison, columns, swept)
    for key in _EXPENDABLE:
        if len(lines[-1]) <= width:
            break
        dropped += [column for column in columns if column.key == key]
        columns = [column for column in columns if column.key != key]
        lines = _grid(comparison, columns, swept)
    if len(lines[-1]) > width:
        points = [f"{rank}: {comparison.label(run)}" for rank, run in enumerate(comparison.runs, start=1)]
        lines = [*_grid(comparison, columns, ()), "", *_wrap(points, width, indent="   ")]
    paragraphs = [
        f"Study {comparison.study}: {len(comparison.runs)} finished, {len(comparison.failed)} failed"
    ]
    paragraphs += comparison.headline
    text = [*_wrap(paragraphs, width), "", *lines, ""]
    text += _wrap(_legend(columns, dropped), width)
    extra = [
        *comparison.findings,
        *(comparison.truth.sentences if comparison.truth else ()),
        *comparison.warnings,
    ]
    text += ["", *_wrap([f"- {sentence}" for sentence in extra], width, indent="  ")]
    if comparison.truth and comparison.truth.rankings:
        text += ["", *_ranking_lines(comparison.truth, width)]
    judged = _finding_lines(comparison)
    if judged:
        text += ["", "Findings (in full in each run's findings.txt):", *_wrap(judged, width, indent="  ")]
    if comparison.failed:
        failures = [f"- {comparison.label(run)}: {run.reason}" for run in comparison.failed]
        text += ["", "Failed runs:", *_wrap(failures, width, indent="  ")]
    return "\n".join(text)


def _ranking_lines(truth: TruthAgreement, width: int) -> list[str]:
    """How well each score ranks the settings as the truth does, as a small table."""
    head = ("", "rank corr. truth area", "rank corr. -rot. error", "regret area", "regret rot. °")
    rows = [
        (each.score, _correlation(each.spearman_area), _correlation(each.spearman_rotation),
         f"{each.regret_area:.3f}", f"{each.regret_rotation:.2f}")
        for each in truth.rankings
    ]  # fmt: skip
    first = max(len(row[0]) for row in rows)
    sizes = [len(title) for title in head[1:]]
    lines = [
        "  ".join([row[0].ljust(first), *(cell.rjust(n) for cell, n in zip(row[1:], sizes, strict=True))])
        for row in (head, *rows)
    ]
    title = (
        f"Scores beside the truth, {truth.n_settings} settings (Spearman; regret: what the first choice of a "
        "score lacks against the first by the truth):"
    )
    return [*_wrap([title], width), *(line.rstrip() for line in lines)]


def _correlation(value: float) -> str:
    return "too few" if math.isnan(value) else f"{value:.2f}"


def _finding_lines(comparison: Comparison) -> list[str]:
    """Codes of the errors and warnings of each run that has any, by its rank."""
    lines: list[str] = []
    for rank, run in enumerate(comparison.runs, start=1):
        codes = {
            word: ", ".join(dict.fromkeys(found.code for found in run.findings if found.level == level))
            for level, word in (("error", "errors"), ("warning", "warnings"))
        }
        parts = [f"{word} {text}" for word, text in codes.items() if text]
        if parts:
            lines.append(f"- #{rank}: {'; '.join(parts)}")
    return lines


def _wrap(paragraphs: Iterable[str], width: int, indent: str = "") -> list[str]:
    return [line for text in paragraphs for line in textwrap.wrap(text, width, subsequent_indent=indent)]


def _legend(columns: Sequence[Column], dropped: Sequence[Column]) -> list[str]:
    size = max(len(column.title) for column in columns)
    lines = [
        "Scoring mask: the one mask under which every run is scored, whatever mask it was refined with.",
        "~ after the rank: cannot be told from #1.",
        *(f"{column.title:<{size}}  {column.meaning}" for column in columns),
    ]
    if dropped:
        lines.append(
            f"Left out to fit: {', '.join(column.title for column in dropped)} (report.csv has all)."
        )
    return lines


def _grid(comparison: Comparison, columns: Sequence[Column], swept: Sequence[str]) -> list[str]:
    """Right-aligned columns under headers of several lines, all equally long; the start is the last."""
    names = [short_key(key, swept).split("_") for key in swept]
    # Long keys are broken at underscores: "dilation_" over "radius".
    heads = [["#"], *([*(f"{part}_" for part in parts[:-1]), parts[-1]] for parts in names)]
    heads += [column.header.split("\n") for column in columns]
    depth = max(len(head) for head in heads)
    body: list[list[str]] = []
    for rank, run in enumerate(comparison.runs, start=1):
        mark = "~" if rank > 1 and bool(comparison.table.at[run.name, TIED]) else " "
        point = [show(run.swept.get(key)) for key in swept]
        body.append([f"{rank}{mark}", *point, *(cell(comparison, run, column) for column in columns)])
    start = [column.show(comparison.start.get(column.key, math.nan)) for column in columns]
    body.append(["start", *([""] * len(swept)), *start])
    header = [[([""] * (depth - len(head)) + head)[level] for head in heads] for level in range(depth)]
    widths = [max(len(line[k]) for line in (*header, *body)) for k in range(len(heads))]

    def draw(line: Sequence[str]) -> str:
        return "  ".join(cell.rjust(size) for cell, size in zip(line, widths, strict=True))

    rule = "-" * len(draw(body[0]))
    return [*(draw(line) for line in header), rule, *(draw(line) for line in body[:-1]), rule, draw(body[-1])]
