"""The runs of one sweep, or of several sweeps of one study, as one set that can be compared.

Sweeps of a study may vary different keys. Here every run gets a value for each key that any of them varies:
its own, that of its configuration, or a dash where its point does not have the key.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryosweep.study.comparison import ABSENT, Run, load_runs, show
from cryosweep.tracking import run_name

# Overrides that tell no point from another: where things go and what they run on. The ruler is held apart.
_NO_AXIS = ("study", "output_dir", "tracking", "compute", "scoring")
# The key by which a search gives better points more particles.
SUBSET = "data.subset"
# Of the ruler, what changes how sure a score is and not the score.
_NOT_RULER = ("jackknife", "common_images")


def gather(
    sweeps: Mapping[Path, Sequence[str]], rungs: Mapping[Path, Sequence[object]] | None = None
) -> tuple[tuple[Run, ...], tuple[str, ...]]:
    """The runs of sweeps as one set, those of the first sweep first; equal runs are counted once.

    Args:
        sweeps: sweep folder to the keys that it varies.
        rungs: of sweeps that tried points on few particles first, the values of `data.subset`.

    Returns:
        The runs, and what was left out of them, in sentences.

    Raises:
        ValueError: a folder holds no run, the sweeps are of different studies or scored by different rulers,
            or one point was computed twice with different results.
    """
    found: list[tuple[Run, tuple[str, ...]]] = []
    notes: list[str] = []
    for folder, keys in sweeps.items():
        runs, note = at_last_rung(load_runs([folder]), (rungs or {}).get(folder, ()))
        found += [(run, tuple(keys)) for run in runs]
        notes += [note] if note else []
    studies = list(dict.fromkeys(run.study for run, _ in found))
    if len(studies) > 1:
        raise ValueError(
            f"the sweeps belong to different studies ({', '.join(studies)}); only sweeps of one study can be "
            "compared together"
        )
    kept = _once(found)
    if len(sweeps) == 1:
        axes = list(dict.fromkeys(key for run, _ in kept for key in run.swept))
        full = [_completed(run, {key: run.swept.get(key, ABSENT) for key in axes}) for run, _ in kept]
        return tuple(full), tuple(notes)
    _check_rulers([run for run, _ in kept if run.is_finished])
    told = [key for _, keys in kept for key in keys]
    told += [key for run, _ in kept if run.is_finished for key in _overridden(run)]
    axes = list(dict.fromkeys(told))
    values = {run.folder: _values(run, keys, axes) for run, keys in kept if run.is_finished}
    axes = [key for key in axes if len({show(value[key]) for value in values.values()}) > 1] or axes[:1]
    named: dict[str, Run] = {}
    failed: list[Run] = []
    for run, _ in kept:
        if not run.is_finished:
            failed.append(run)
            continue
        point = {key: values[run.folder][key] for key in axes}
        name = run_name({key: value for key, value in point.items() if value != ABSENT})
        if name in named:
            raise ValueError(
                f"{name} was computed twice, with other code or other input files: {named[name].folder} and "
                f"{run.folder}; compare the sweeps apart, or run the older one again"
            )
        named[name] = replace(run, name=name, swept=point)
    return (*named.values(), *failed), tuple(notes)


def at_last_rung(runs: Sequence[Run], rungs: Sequence[object]) -> tuple[tuple[Run, ...], str]:
    """The runs on the most particles of a search that gives better points more of them, and what is left out.

    Scores on other numbers of particles are not comparable, and a point on fewer was dropped because of them.
    """
    finished = [run for run in runs if run.is_finished]
    for rung in reversed(rungs):
        there = [run for run in finished if show(run.swept.get(SUBSET)) == show(rung)]
        if there:
            count = "all particles" if rung is None else f"{SUBSET}={show(rung)}"
            note = (
                f"Compared are the {len(there)} runs on {count}; {len(finished) - len(there)} on fewer "
                "particles, by which points were dropped, are in trials.csv."
            )
            return (*there, *(run for run in runs if not run.is_finished)), note
    return tuple(runs), ""


def _completed(run: Run, swept: Mapping[str, object]) -> Run:
    # a job that was killed before it wrote its point has none
    return replace(run, swept=swept) if run.swept else run


def _once(found: Sequence[tuple[Run, tuple[str, ...]]]) -> list[tuple[Run, tuple[str, ...]]]:
    """One run of each fingerprint: that which was computed, and of unfinished ones the last."""
    best: dict[str, int] = {}
    for number, (run, _) in enumerate(found):
        key = run.fingerprint or str(run.folder)
        known = found[best[key]][0] if key in best else None
        if known is None or (run.is_finished, not run.taken_from) > (known.is_finished, not known.taken_from):
            best[key] = number
    return [found[number] for number in sorted(best.values())]


def _overridden(run: Run) -> list[str]:
    """The keys that the command of a run sets, but for those that make no point."""
    keys = [word.partition("=")[0].lstrip("+") for word in shlex.split(run.command) if "=" in word]
    return [key for key in keys if key.split(".")[0] not in _NO_AXIS]


def _values(run: Run, own: Sequence[str], axes: Sequence[str]) -> dict[str, object]:
    """The value of a run for each of `axes`; of those in `own`, which its sweep varies, only what it has."""
    config = run.config()
    found: dict[str, object] = {}
    for key in axes:
        if key in run.swept or key in own:
            found[key] = run.swept.get(key, ABSENT)
        elif key in run.options:
            found[key] = run.options[key]
        else:
            found[key] = _configured(config, key, run)
    return found


def _configured(config: Mapping[str, Any], key: str, run: Run) -> object:
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return ABSENT
        node = node[part]
    if isinstance(node, Mapping):
        raise ValueError(
            f"{run.folder}: the run does not record which option of {key} it used, so it cannot be compared "
            "with sweeps that chose another; run its sweep again"
        )
    return node


def _check_rulers(runs: Sequence[Run]) -> None:
    """Refuse runs whose scoring is configured otherwise; whether masks agree the comparison itself sees."""
    scoring = {run.folder: run.config().get("scoring", {}) for run in runs}
    rulers = {
        folder: {key: value for key, value in section.items() if key not in _NOT_RULER}
        for folder, section in scoring.items()
    }
    first = next(iter(rulers), None)
    for folder, ruler in rulers.items():
        if first is not None and ruler != rulers[first]:
            keys = sorted(key for key in {*ruler, *rulers[first]} if ruler.get(key) != rulers[first].get(key))
            raise ValueError(
                f"{first} and {folder} were scored by different rulers (scoring.{', scoring.'.join(keys)}), "
                "so they cannot be compared; compare their sweeps apart"
            )
