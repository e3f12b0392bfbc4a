"""How sure a difference between two settings is: paired replicates, their intervals, tests and verdicts.

Pure numbers: scores go in as arrays, with replicates along the last axis, and nothing here knows of runs or
files. What the procedures promise is measured in `docs/statistics.md`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

LEVEL = 0.95
POWER = 0.8
# A difference in FSC area below this changes nothing that a user would do.
MATTERS = 0.01
# Nobody runs more replicates than this for one comparison.
MOST_REPLICATES = 1000


class Scope(Enum):
    """For what an interval over replicates holds, by what differed between the replicates."""

    THESE_PARTICLES = "these particles; other splits into half sets"
    OTHER_PARTICLES = "other particles of this kind"
    ONE_RUN = "one run; blocks of its particles left out in turn, at fixed poses"


class Kind(Enum):
    """What may be said of a setting beside the centre."""

    BETTER = "better"
    WORSE = "worse"
    SMALL = "detectable, too small to matter"
    EQUAL = "equal"
    OPEN = "not distinguishable"
    DISAGREE = "map and poses disagree"
    CANDIDATE = "candidate, one run"


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, setting minus centre, with its interval and test.

    Attributes:
        n: pairs; 1 where the spread comes from a jackknife of one run each.
        mean: of the differences.
        sd: standard deviation of one difference.
        low: lower end of the interval.
        high: upper end.
        p: two-sided p-value of a mean of 0, not adjusted.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float
    p: float

    def show(self, decimals: int) -> str:
        """`+0.035 [+0.030, +0.040]`."""
        return (
            f"{self.mean:+.{decimals}f} [{self.low:+.{decimals}f}, {self.high:+.{decimals}f}]"
            if math.isfinite(self.low)
            else f"{self.mean:+.{decimals}f}"
        )


@dataclass(frozen=True)
class Verdict:
    """What is said of one setting, and of what kind that is."""

    kind: Kind
    sentence: str


def paired_difference(values: Array, centre: Array, *, level: float = LEVEL) -> Difference:
    """Paired t interval and test of `values - centre` (n,), where entry i of both shares its replicate.

    A replicate is the same particles in the same half sets, so what these do to a score falls out of the
    difference. With one pair there is no spread: the interval is NaN and p is 1.

    Raises:
        ValueError: the arrays differ in length, are empty, or hold what is not finite.
    """
    if values.shape != centre.shape or values.ndim != 1 or not values.size:
        raise ValueError(
            f"paired values must be two rows of equal length, not {values.shape}, {centre.shape}"
        )
    if not (np.isfinite(values).all() and np.isfinite(centre).all()):
        raise ValueError("paired values must be finite; a score that is not cannot be compared")
    d = values - centre
    mean = float(d.mean())
    if d.size == 1:
        return Difference(1, mean, math.nan, math.nan, math.nan, 1.0)
    low, high, p, sd = (float(x) for x in t_interval(d, level=level))
    return Difference(int(d.size), mean, sd, low, high, p)


def t_interval(d: Array, *, level: float = LEVEL) -> tuple[Array, Array, Array, Array]:
    """Student's t for the mean of `d` (..., n), n at least 2: `mean -+ t_(n-1) SD / sqrt(n)`.

    Returns:
        Lower end, upper end, two-sided p of a mean of 0 and SD, each (...). Differences without any spread
        give an interval without width, and p 0, or 1 where they are 0.
    """
    n = d.shape[-1]
    mean, sd = d.mean(axis=-1), d.std(axis=-1, ddof=1)
    return (*_student(mean, sd / math.sqrt(n), n - 1, level), sd)


def _student(mean: Array, error: Array, freedom: int, level: float) -> tuple[Array, Array, Array]:
    half = float(stats.t.ppf(0.5 + 0.5 * level, freedom)) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(mean == 0.0, 0.0, np.abs(mean) / error)
    return mean - half, mean + half, np.asarray(2.0 * stats.t.sf(t, freedom))


def jackknife_sd(left_out: Array) -> Array:
    """(...) standard deviation of an estimate from its values (..., g) with each of g blocks left out.

    `sqrt((g - 1) / g sum (x_b - mean)^2)` (Efron & Stein 1981, Ann. Statist. 9, 586).
    """
    g = left_out.shape[-1]
    return np.sqrt((g - 1) / g * np.square(left_out - left_out.mean(axis=-1, keepdims=True)).sum(axis=-1))


def jackknife_difference(
    value: float, centre: float, left_out: Array, centre_left_out: Array, *, level: float = LEVEL
) -> Difference:
    """Difference of one run from another, its spread from the same g blocks of particles left out of both.

    At fixed poses: what refining other particles would change is not in it.

    Args:
        value: score of the run.
        centre: score of the other.
        left_out: (g,) scores of the run with each block left out.
        centre_left_out: (g,) those of the other.
        level: of the interval, t with g - 1 degrees of freedom.
    """
    mean = value - centre
    sd = float(jackknife_sd(left_out - centre_left_out))
    ends = _student(np.asarray(mean), np.asarray(sd), left_out.shape[-1] - 1, level)
    low, high, p = (float(x) for x in ends)
    return Difference(1, mean, sd, low, high, p)


def holm(p: Array) -> Array:
    """(..., m) p-values adjusted for m comparisons together: below 0.05, no false alarm in 95 % of studies.

    Step-down (Holm 1979, Scand. J. Statist. 6, 65); holds for comparisons with one shared centre too, since
    it asks for no independence.
    """
    m = p.shape[-1]
    order = np.argsort(p, axis=-1)
    ranked = np.take_along_axis(p, order, axis=-1) * np.arange(m, 0, -1)
    stepped = np.minimum(np.maximum.accumulate(ranked, axis=-1), 1.0)
    adjusted = np.empty_like(stepped)
    np.put_along_axis(adjusted, order, stepped, axis=-1)
    return adjusted


def replicates_needed(
    sd: float, difference: float, *, comparisons: int = 1, level: float = LEVEL, power: float = POWER
) -> int:
    """Least number of pairs with which a paired t-test finds `difference` with probability `power`.

    By the noncentral t distribution with noncentrality `sqrt(n) difference / SD`, at Bonferroni's level for
    so many comparisons; Holm finds it at least as often. `MOST_REPLICATES` where fewer do not suffice.

    Args:
        sd: standard deviation of one paired difference.
        difference: to be found.
        comparisons: that are tested together.
        level: at which no false alarm is to be raised in all of them.
        power: probability of finding it.

    Raises:
        ValueError: `sd` or `difference` is not positive, or `comparisons` is below 1.
    """
    if not (sd > 0.0 and difference > 0.0):
        raise ValueError(f"SD {sd:g} and difference {difference:g} must be above 0")
    if comparisons < 1:
        raise ValueError(f"{comparisons} comparisons; there must be 1 or more")
    n = np.arange(2, MOST_REPLICATES)
    needed = stats.t.isf(0.5 * (1.0 - level) / comparisons, n - 1)
    # far out the distribution function underflows to NaN; there the power is 1
    shift = np.minimum(np.sqrt(n) * difference / sd, 1e4)
    reached = np.nan_to_num(np.asarray(stats.nct.sf(needed, n - 1, shift)), nan=1.0)
    enough = np.flatnonzero(reached >= power)
    return int(n[enough[0]]) if enough.size else MOST_REPLICATES


def judge(
    name: str,
    centre: str,
    area: Difference,
    area_p: float,
    *,
    scope: Scope,
    comparisons: int = 1,
    likelihood: Difference | None = None,
    likelihood_p: float = 1.0,
    resolution: Difference | None = None,
) -> Verdict:
    """Put the differences of one setting from the centre in words; nobody wins on chance, or on one run.

    Args:
        name: the setting.
        centre: the setting it is compared with.
        area: difference in FSC area; higher is better.
        area_p: its p-value, adjusted for all comparisons of the study.
        scope: for what the intervals hold.
        comparisons: how many settings are tested together, for the replicates that are advised.
        likelihood: difference in held-out log-likelihood per particle, where known; higher is better.
        likelihood_p: its p-value, adjusted.
        resolution: difference of the 0.143 crossing in Å, told beside a verdict; lower is better.
    """
    alpha = 1.0 - LEVEL
    poses = "" if likelihood is None else f", held-out log-likelihood {likelihood.show(2)} per particle"
    found = f"{area.show(3)} in FSC area{poses}"
    if scope is Scope.ONE_RUN or area.n < 2:
        fixed = "; the spread of one run leaves out what refining anew changes" if area.sd > 0.0 else ""
        return Verdict(Kind.CANDIDATE, f"{name}: candidate, one run: {found} against {centre}{fixed}.")
    basis = f"n = {area.n} paired replicates; {scope.value}"
    map_differs = area_p < alpha
    poses_differ = likelihood is not None and likelihood_p < alpha
    if likelihood is not None and map_differs and poses_differ and area.mean * likelihood.mean < 0.0:
        return Verdict(
            Kind.DISAGREE,
            f"{name} against {centre}: map and poses disagree: {found} ({basis}). The higher FSC may be that "
            "of a tighter mask; trust the likelihood for poses.",
        )
    if map_differs and abs(area.mean) >= MATTERS:
        kind = Kind.BETTER if area.mean > 0.0 else Kind.WORSE
        # without any spread the curves never cross within the box, or at one shell
        spread = resolution is not None and resolution.sd > 0.0
        crossing = f", {resolution.show(2)} Å at 0.143" if resolution is not None and spread else ""
        sentence = f"{name} is {kind.value} than {centre}: {found}{crossing} ({basis})."
        if kind is Kind.BETTER and likelihood is not None and not poses_differ:
            sentence += " The likelihood does not show better poses."
        return Verdict(kind, sentence)
    if map_differs:
        return Verdict(
            Kind.SMALL,
            f"{name} against {centre}: a difference is detectable, too small to matter: {found} ({basis}).",
        )
    if max(abs(area.low), abs(area.high)) <= MATTERS:
        words = f"{name} and {centre} are equal within {MATTERS:g} in FSC area: {found} ({basis})"
        return Verdict(Kind.EQUAL, words + (_better_poses(likelihood) if poses_differ else "."))
    needed = replicates_needed(area.sd, MATTERS, comparisons=comparisons)
    count = f"{needed}" if needed < MOST_REPLICATES else f"more than {MOST_REPLICATES}"
    among = f" among {comparisons} comparisons" if comparisons > 1 else ""
    advice = f"{count} replicates would settle a difference of {MATTERS:g}{among} at the spread found"
    if needed <= area.n:
        advice = f"so many find a difference of {MATTERS:g}{among} four times in five at the spread found"
    # the interval is that of one comparison alone, the verdict one of many
    alone = f", p = {area_p:.2g} after Holm's correction" if area.low > 0.0 or area.high < 0.0 else ""
    found = f"{area.show(3)} in FSC area{alone}{poses}"
    return Verdict(
        Kind.OPEN,
        f"{name} and {centre} are not distinguishable in FSC area with {area.n} replicates: {found} "
        f"({basis}); {advice}" + (_better_poses(likelihood) if poses_differ else "."),
    )


def _better_poses(likelihood: Difference | None) -> str:
    assert likelihood is not None
    return f"; by the likelihood its poses are {'better' if likelihood.mean > 0.0 else 'worse'}."


# ---- a study: all settings against the centre ----


@dataclass(frozen=True)
class Scores:
    """What one run scored.

    Attributes:
        area: FSC area of its half maps under the frozen mask.
        resolution: Å, 0.143 crossing under that mask.
        likelihoods: (n,) held-out log-likelihood of each particle, or None.
        left_out: (g,) FSC area with each of g blocks of particles left out, or None.
    """

    area: float
    resolution: float
    likelihoods: Array | None = None
    left_out: Array | None = None

    @property
    def likelihood(self) -> float:
        """Mean over the particles; NaN if not known."""
        return math.nan if self.likelihoods is None else float(self.likelihoods.mean())


@dataclass(frozen=True)
class Standing:
    """One setting beside the centre.

    Attributes:
        setting: in words.
        n: pairs of runs.
        mean_area: FSC area, mean over all its runs.
        area: difference in FSC area from the centre.
        area_p: its p-value by Holm over all settings compared with replicates.
        likelihood: difference in held-out log-likelihood per particle, where known.
        likelihood_p: its p-value by Holm.
        verdict: in words.
    """

    setting: str
    n: int
    mean_area: float
    area: Difference
    area_p: float
    likelihood: Difference | None
    likelihood_p: float
    verdict: Verdict


def against_centre(
    settings: Mapping[str, Mapping[str, Scores]], centre: str, *, scope: Scope
) -> tuple[Standing, ...]:
    """Every other setting against the centre, run by run of one replicate.

    Where both have at least two replicates in common the differences are tested by a paired t-test, adjusted
    by Holm over the settings, FSC area and likelihood each for itself. With one in common the interval of
    the FSC area is that of a jackknife, and that of the likelihood comes from the particles.

    Args:
        settings: setting to replicate to its scores.
        centre: one of the settings.
        scope: for what replicates stand.
    """
    base = settings[centre]
    found: list[tuple[str, Difference, Difference | None, Difference | None]] = []
    for name, runs in settings.items():
        common = [key for key in runs if key in base]
        if name == centre or not common:
            continue
        pairs = [(runs[key], base[key]) for key in common]
        area = _pairs([(a.area, b.area) for a, b in pairs])
        resolution = _pairs([(a.resolution, b.resolution) for a, b in pairs])
        likelihood = None
        if all(a.likelihoods is not None and b.likelihoods is not None for a, b in pairs):
            likelihood = _pairs([(a.likelihood, b.likelihood) for a, b in pairs])
        if len(pairs) == 1:
            area = _one_run_area(*pairs[0]) or area
            likelihood = _one_run_likelihood(*pairs[0]) or likelihood
        found.append((name, area, likelihood, resolution))
    replicated = [row for row in found if row[1].n > 1]
    area_p = dict(
        zip((row[0] for row in replicated), holm(np.array([row[1].p for row in replicated])), strict=True)
    )
    told = [(row[0], row[2]) for row in replicated if row[2] is not None]
    likelihood_p = dict(
        zip((name for name, _ in told), holm(np.array([each.p for _, each in told])), strict=True)
    )
    return tuple(
        Standing(
            name, area.n, float(np.mean([run.area for run in settings[name].values()])),
            area, float(area_p.get(name, 1.0)), likelihood, float(likelihood_p.get(name, 1.0)),
            judge(
                name, centre, area, float(area_p.get(name, 1.0)),
                scope=scope if area.n > 1 else Scope.ONE_RUN, comparisons=max(1, len(replicated)),
                likelihood=likelihood,
                likelihood_p=float(likelihood_p.get(name, 1.0)), resolution=resolution,
            ),
        )
        for name, area, likelihood, resolution in found
    )  # fmt: skip


def told_from_first(points: Sequence[Mapping[str, float]]) -> tuple[bool, ...]:
    """Which points differ from the first by more than chance, where the first was picked by what is tested.

    A paired t-test of every two points with at least two replicates in common, adjusted by Holm for all of
    these pairs: whichever point comes first, no point is told from it wrongly in 95 % of studies. Adjusted
    for the pairs with the first alone, one would be in up to 14 % of studies without any difference
    (docs/statistics.md).

    Args:
        points: replicate to score of each point, the first first.
    """
    p: dict[tuple[int, int], float] = {}
    for a, b in combinations(range(len(points)), 2):
        common = [key for key in points[a] if key in points[b]]
        if len(common) > 1:
            values = [np.array([points[k][key] for key in common]) for k in (a, b)]
            p[a, b] = paired_difference(values[0], values[1]).p
    adjusted = dict(zip(p, holm(np.array(list(p.values()))), strict=True))
    return tuple(adjusted.get((0, k), 1.0) < 1.0 - LEVEL for k in range(len(points)))


def rank_sum(scores: Sequence[Array]) -> Array:
    """(m,) sum of the ranks of m settings in each of several scores (m,), higher better, 1 the best."""
    return np.sum([stats.rankdata(-score) for score in scores], axis=0)


def _pairs(values: Sequence[tuple[float, float]]) -> Difference:
    return paired_difference(np.array([a for a, _ in values]), np.array([b for _, b in values]))


def _one_run_area(run: Scores, centre: Scores) -> Difference | None:
    """By jackknife, where both runs left out the same number of blocks."""
    if run.left_out is None or centre.left_out is None or run.left_out.shape != centre.left_out.shape:
        return None
    return jackknife_difference(run.area, centre.area, run.left_out, centre.left_out)


def _one_run_likelihood(run: Scores, centre: Scores) -> Difference | None:
    """From the differences particle by particle, at fixed maps, where both runs have the same number."""
    if run.likelihoods is None or centre.likelihoods is None:
        return None
    if run.likelihoods.shape != centre.likelihoods.shape or run.likelihoods.size < 2:
        return None
    over_particles = paired_difference(run.likelihoods, centre.likelihoods)
    return replace(over_particles, n=1)
