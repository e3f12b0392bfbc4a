"""Points that Optuna proposes in batches, on more and more particles, in a study that can be stopped.

Optuna proposes, and keeps the study in a journal; jobs are run by whatever launcher Hydra has. A batch goes
through the rungs: all its points on few particles, the best share of them on more, and so on (successive
halving, Jamieson & Talwalkar 2016, AISTATS 51, 240). What a rung drops is told as pruned.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from filelock import FileLock, Timeout
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from cryosweep.study.points import (
    Axes,
    AxisFault,
    Expansion,
    conditions_in_order,
    holds,
    last_of_each,
    override_parser,
    read_axes,
    without_absent,
    written,
)

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

JOURNAL = "optuna.journal"
TRIALS_FILE = "trials.csv"
# Scores that a study may look for; of all, more is better.
OBJECTIVES = (
    "fsc_area/frozen", "score/held_out_likelihood", "common/fsc_area/frozen",
    "common/score/held_out_likelihood",
)  # fmt: skip
SAMPLERS = ("tpe", "gp", "random")
SUBSET = "data.subset"

Results = Sequence[Mapping[str, float] | None]
Runner = Callable[[list[list[str]]], Results]


@dataclass(frozen=True)
class Settings:
    """How points are proposed; `conf/hydra/sweeper/optuna.yaml` explains each key."""

    n_trials: int
    batch: int
    objective: str
    sampler: str
    seed: int
    rungs: tuple[float | None, ...]
    keep: float

    def promoted(self, n: int) -> int:
        """How many of n points go on to the next rung."""
        return max(1, int(self.keep * n))

    def jobs(self) -> int:
        """How many jobs a whole study has, if none fails."""
        n, total = self.batch, self.batch
        for _ in self.rungs[1:]:
            n = self.promoted(n)
            total += n
        return total * (self.n_trials // self.batch)

    def words(self) -> str:
        """The same for the user, before anything starts."""
        text = f"up to {self.jobs()} jobs: {self.n_trials} points proposed {self.batch} at a time"
        if len(self.rungs) > 1:
            steps = ", ".join("all" if rung is None else f"{rung:g}" for rung in self.rungs)
            text += f", each batch on {steps} particles, the best {self.keep:g} of it going on each time"
        return text


@dataclass(frozen=True)
class Axis:
    """One axis: choices without an order, or numbers from `low` to `high`."""

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    integer: bool = False
    log: bool = False

    def probes(self) -> tuple[str, ...]:
        """Values that show whether all values are allowed: every choice, or both ends."""
        return self.choices or (self.text(self.low), self.text(self.high))

    def text(self, value: float) -> str:
        """A number as it is given to a job: six digits are finer than any of them needs."""
        return str(int(value)) if self.integer else f"{value:.6g}"

    def value(self, given: object) -> object:
        """A listed value as Optuna holds it.

        Raises:
            AxisFault: it does not lie on the axis.
        """
        text = written(given)
        if self.choices:
            if text in self.choices:
                return text
            raise AxisFault(f"hydra.sweeper.points: {self.key}={text} is none of {', '.join(self.choices)}")
        if not isinstance(given, int | float) or not self.low <= given <= self.high:
            raise AxisFault(
                f"hydra.sweeper.points: {self.key}={text} is no number from {self.low:g} to {self.high:g}"
            )
        return int(given) if self.integer else float(given)

    def suggest(self, trial: optuna.Trial) -> str:
        """The value of a trial, as an override."""
        if self.choices:
            return f"{self.key}={trial.suggest_categorical(self.key, self.choices)}"
        if self.integer:
            step = int(self.step or 1)
            value: float = trial.suggest_int(self.key, int(self.low), int(self.high), step=step, log=self.log)
        else:
            value = trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)
        return f"{self.key}={self.text(value)}"


@dataclass(frozen=True)
class Space:
    """What is proposed.

    Attributes:
        fixed: key to override, the same for all points.
        axes: key to axis, each after those that its condition asks for.
        conditions: of keys that only some points have.
        first: values of points to begin with.
    """

    fixed: Mapping[str, str]
    axes: Mapping[str, Axis]
    conditions: Mapping[str, Mapping[str, tuple[object, ...]]]
    first: tuple[Mapping[str, object], ...]


def proposes(sweeper: Mapping[str, object]) -> bool:
    """Whether this sweeper is that of this module."""
    return str(sweeper.get("_target_")).endswith(".OptunaSweeper")


def read_settings(sweeper: Mapping[str, Any]) -> Settings:
    """The settings of `hydra.sweeper`.

    Raises:
        AxisFault: Optuna is not installed, or a value is not allowed.
    """
    if find_spec("optuna") is None:
        raise AxisFault(
            "hydra/sweeper=optuna: Optuna is not installed; install it with: pip install 'cryosweep[optuna]'"
        )
    rungs: list[Any] = list(sweeper.get("rungs") or [])
    made = Settings(
        n_trials=sweeper["n_trials"], batch=sweeper["batch"], objective=sweeper["objective"],
        sampler=sweeper["sampler"], seed=sweeper["seed"], rungs=tuple(rungs), keep=sweeper["keep"],
    )  # fmt: skip
    sizes = [math.inf if rung is None else rung for rung in rungs]
    for key, allowed, wanted in (
        ("batch", _whole(made.batch) and made.batch > 0, "must be a whole number above 0"),
        (
            "n_trials",
            _whole(made.n_trials) and _whole(made.batch) and made.batch > 0 < made.n_trials
            and made.n_trials % made.batch == 0,
            f"must be a multiple of hydra.sweeper.batch={made.batch}",
        ),
        ("seed", _whole(made.seed) and made.seed >= 0, "must be a whole number from 0"),
        ("objective", made.objective in OBJECTIVES, f"must be one of {', '.join(OBJECTIVES)}"),
        ("sampler", made.sampler in SAMPLERS, f"must be one of {', '.join(SAMPLERS)}"),
        ("keep", isinstance(made.keep, float) and 0.0 < made.keep < 1.0, "must lie between 0 and 1"),
        ("rungs", all(a < b for a, b in pairwise(sizes)), "must grow; null comes last"),
    ):  # fmt: skip
        if not allowed:
            raise AxisFault(f"hydra.sweeper.{key}={written(sweeper[key])}: {wanted}")
    return made


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def read_space(axes: Axes, settings: Settings) -> Space:
    """What is proposed, and what stays.

    Raises:
        AxisFault: an axis, a condition or a listed point cannot be.
        HydraException: an override cannot be parsed.
    """
    fixed: dict[str, str] = {}
    found: dict[str, Axis] = {}
    for override in last_of_each(axes):
        if override.is_sweep_override():
            found[override.key_or_group] = _read_axis(override)
        else:
            fixed[override.key_or_group] = override.input_line or ""
    if not found:
        raise AxisFault("hydra/sweeper=optuna: nothing is swept; give an axis such as key=interval(0,28)")
    if settings.rungs and SUBSET in {*fixed, *found}:
        raise AxisFault(f"{SUBSET}: hydra.sweeper.rungs sets it; take it out of one of them")
    conditions = conditions_in_order(axes, [*fixed, *found])
    order = [key for key in found if key not in conditions] + [key for key in conditions if key in found]
    for point in axes.points:
        unknown = sorted(set(point) - set(found))
        if unknown:
            raise AxisFault(f"hydra.sweeper.points: {unknown[0]} is none of the axes ({', '.join(found)})")
    if len(axes.points) > settings.n_trials:
        raise AxisFault(f"hydra.sweeper.points: more than hydra.sweeper.n_trials={settings.n_trials}")
    first = tuple({key: found[key].value(value) for key, value in point.items()} for point in axes.points)
    return Space(fixed, {key: found[key] for key in order}, conditions, first)


def _read_axis(override: Override) -> Axis:
    key, value = override.get_key_element(), override.value()
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        if low is None or high is None or not low < high:
            raise AxisFault(f"{override.input_line}: the interval must rise")
        is_log = "log" in value.tags
        if is_log and low <= 0:
            raise AxisFault(f"{override.input_line}: on a logarithmic axis all values must be above 0")
        whole = isinstance(low, int) and isinstance(high, int)
        return Axis(key, low=low, high=high, integer=whole, log=is_log)
    if isinstance(value, RangeSweep):
        start, stop, step = value.start or 0, value.stop, value.step
        if stop is None or step <= 0 or start >= stop:
            raise AxisFault(f"{override.input_line}: the range must rise")
        # as in Python, the end is no value
        last = start + step * (math.ceil((stop - start) / step - 1e-9) - 1)
        whole = all(isinstance(part, int) for part in (start, step))
        return Axis(key, low=start, high=last, step=step, integer=whole)
    if isinstance(value, ChoiceSweep):
        return Axis(key, choices=tuple(override.sweep_string_iterator()))
    raise AxisFault(f"{override.input_line}: write values, range(...) or interval(...)")


def expand_space(axes: Axes, settings: Settings) -> Expansion:
    """Points that show whether the space is allowed: each choice and each end, with the first of the rest.

    Raises:
        AxisFault: the space cannot be.
    """
    space = read_space(axes, settings)
    start = {key: axis.probes()[0] for key, axis in space.axes.items()}
    points: list[tuple[str, ...]] = []
    for key, axis in space.axes.items():
        for text in axis.probes():
            values = {**start, **_needed(key, space), key: text}
            lines = {**space.fixed, **{name: f"{space.axes[name].key}={values[name]}" for name in values}}
            kept = without_absent(tuple(lines.items()), space.conditions)
            points.append(tuple(line for _, line in kept))
    if settings.rungs:
        points += [(*points[0], f"{SUBSET}={written(rung)}") for rung in settings.rungs]
    swept = {key: len(axis.choices) for key, axis in space.axes.items()}
    words = " x ".join(
        f"{key} ({len(axis.choices)} values)" if axis.choices else f"{key} ({axis.low:g} to {axis.high:g})"
        for key, axis in space.axes.items()
    )
    return Expansion(
        {**swept, **({SUBSET: len(settings.rungs)} if settings.rungs else {})},
        tuple(dict.fromkeys(points)),
        words,
    )


def _needed(key: str, space: Space) -> dict[str, str]:
    """Values of other axes that let `key` be there."""
    found: dict[str, str] = {}
    for asked, values in space.conditions.get(key, {}).items():
        if asked in space.axes:
            found |= {**_needed(asked, space), asked: written(values[0])}
    return found


def study_name(space: Space, settings: Settings) -> str:
    """Of the study in the journal: a digest of all but the number of its trials."""
    told = {"fixed": dict(space.fixed), "axes": {key: str(axis) for key, axis in space.axes.items()},
            "conditions": str(space.conditions), "first": str(space.first),
            "settings": str({**vars(settings), "n_trials": None})}  # fmt: skip
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def claim(folder: Path, space: Space, settings: Settings) -> FileLock:
    """The lock of a study whose journal lies in `folder`, which one process at a time may hold.

    Two that propose at once would each tell the other's points. The operating system frees the lock of a
    process that was killed.

    Raises:
        ValueError: another process drives the study.
    """
    name = study_name(space, settings)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f".{JOURNAL}.{name}.alive")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"Optuna study {name} in {folder / JOURNAL}: another process is driving it; let it end, or give "
            "another study=..."
        ) from None
    return lock


def optimise(space: Space, settings: Settings, journal: Path, run: Runner) -> optuna.Study:
    """Propose, run and tell until the study has its trials.

    A study of the same space, settings and fixed overrides goes on where it was. Trials that were told are
    asked of `run` again, which finds them finished, so that the sweep holds all of them; they are not told
    anew, and must have the score that they had.

    Args:
        space: what is proposed.
        settings: how.
        journal: file of Optuna's journal, made if it is not there.
        run: takes the overrides of jobs and returns the summary of each, None for one that failed.

    Raises:
        ValueError: a trial that was told now has another score, or another process works on the study.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    name = study_name(space, settings)
    journal.parent.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=name,
        storage=JournalStorage(JournalFileBackend(str(journal))),
        direction="maximize",
        load_if_exists=True,
    )
    known = len(study.trials)
    if known:
        log.info("Optuna study %s in %s goes on: %d points were proposed before", name, journal, known)
    for point in space.first[known:]:
        study.enqueue_trial(dict(point))
    results: dict[tuple[str, ...], Mapping[str, float] | None] = {}

    def run_new(jobs: list[list[str]]) -> Results:
        # the same point may be proposed twice
        new = [list(job) for job in dict.fromkeys(tuple(job) for job in jobs) if job not in results]
        if new:
            results.update(zip([tuple(job) for job in new], run(new), strict=True))
        return [results[tuple(job)] for job in jobs]

    for first in range(0, settings.n_trials, settings.batch):
        trials = {number: _trial(study, number, settings) for number in range(first, first + settings.batch)}
        _run_batch(study, space, settings, trials, run_new)
    return study


def _trial(study: optuna.Study, number: int, settings: Settings) -> optuna.Trial | None:
    """The trial of this number: asked for before, or now; None if it is finished.

    What it proposes follows from the seed, its number and what was told before its batch, so that a study
    that was stopped proposes what it would have proposed.
    """
    import optuna

    seed = (settings.seed * 1_000_003 + number) % 2**31
    samplers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, constant_liar=True),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
    }
    study.sampler = samplers[settings.sampler]()
    frozen = study.get_trials(deepcopy=False)
    if number < len(frozen) and frozen[number].state.is_finished():
        return None
    if number < len(frozen) and frozen[number].state == optuna.trial.TrialState.RUNNING:
        return optuna.Trial(study, frozen[number]._trial_id)  # pyright: ignore[reportPrivateUsage]
    trial = study.ask()
    if trial.number != number:
        raise ValueError(
            f"Optuna study {study.study_name}: another process proposed point {number}; let it end, or give "
            "another study=..."
        )
    return trial


def _run_batch(
    study: optuna.Study,
    space: Space,
    settings: Settings,
    trials: Mapping[int, optuna.Trial | None],
    run: Runner,
) -> None:
    lines = {number: _propose(study, number, trial, space) for number, trial in trials.items()}
    alive = list(trials)
    rungs = [f"{SUBSET}={written(rung)}" for rung in settings.rungs] or [""]
    for step, rung in enumerate(rungs):
        jobs = [[*lines[number], *([rung] if rung else [])] for number in alive]
        scores: dict[int, float] = {}
        for number, summary in zip(alive, run(jobs), strict=True):
            score = math.nan if summary is None else summary.get(settings.objective, math.nan)
            if math.isfinite(score):
                scores[number] = score
                _report(study, number, trials[number], step, score)
            else:
                _tell(study, number, None, failed=True)
        ranked = sorted(scores, key=lambda number: (-scores[number], number))
        last = step == len(rungs) - 1
        going = ranked if last else ranked[: settings.promoted(len(alive))]
        for number in ranked:
            if last:
                _tell(study, number, scores[number])
            elif number not in going:
                _tell(study, number, None)
        alive = sorted(going)
        if not alive:
            return


def _propose(study: optuna.Study, number: int, trial: optuna.Trial | None, space: Space) -> list[str]:
    """The overrides of a point; values that were proposed before are kept."""
    params = study.get_trials(deepcopy=False)[number].params
    present = dict(space.fixed)
    parser = override_parser()
    for key, axis in space.axes.items():
        if key in space.conditions and not holds(space.conditions[key], present, parser):
            continue
        if trial is None:
            value: Any = params[axis.key]
            present[key] = f"{axis.key}={value if axis.choices else axis.text(value)}"
        else:
            present[key] = axis.suggest(trial)
    kept = without_absent(tuple(present.items()), space.conditions)
    return [text for _, text in kept]


def _report(study: optuna.Study, number: int, trial: optuna.Trial | None, step: int, score: float) -> None:
    """Report the score of a rung, or see that it is the one that was reported."""
    frozen = study.get_trials(deepcopy=False)[number]
    known = frozen.intermediate_values.get(step)
    if known is not None and known != score:
        raise ValueError(
            f"Optuna study {study.study_name}: point {number} had a score of {known:.6g} and now has "
            f"{score:.6g}, so code or input files have changed; give another study=... or remove {JOURNAL}"
        )
    if known is None and trial is not None:
        trial.report(score, step)


def _tell(study: optuna.Study, number: int, score: float | None, *, failed: bool = False) -> None:
    from optuna.trial import TrialState

    if study.get_trials(deepcopy=False)[number].state.is_finished():
        return
    if failed:
        study.tell(number, state=TrialState.FAIL)
    elif score is None:
        study.tell(number, state=TrialState.PRUNED)
    else:
        study.tell(number, score)


def write_trials(study: optuna.Study, folder: Path) -> None:
    """`trials.csv`: every point proposed, its state and its score on each rung."""
    study.trials_dataframe().to_csv(folder / TRIALS_FILE, index=False)


def read_search(sweeper: Mapping[str, object], overrides: Sequence[str]) -> tuple[Axes, Settings]:
    """Axes and settings of a sweeper whose points are proposed.

    Raises:
        AxisFault: Optuna is not installed, or something is not as it must be.
    """
    return read_axes(sweeper, overrides), read_settings(cast("Mapping[str, Any]", sweeper))
