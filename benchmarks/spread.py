"""What refining anew scatters, beside what one run says of itself: replicates of whole refinements.

    python benchmarks/spread.py STUDY_FOLDER ... [--centre WORDS]

Of studies in which every point has the same replicates: other simulations, `data.simulation_seed=0,1,...`, or
other splits, `seed=0,1,... data.resplit=true`. Those measured stand in benchmarks/results/spread.txt.

Of every setting against the centre (the first of each folder, or --centre), over the replicates: mean
difference and its SD in FSC area (A) and held-out log-likelihood (H); the SD over that of one run's own
interval (A: jackknife, H: over the particles); how often the 95 % interval of one run holds the mean of the
other replicates; and the correlation of the differences of any two settings. Then, from every three of the
replicates, how often intervals hold the mean of the others, by the rules of benchmarks/coverage.py. Threes
overlap, so that is an indication.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
from coverage import RULES, Array
from scipy import stats

from cryosweep.study.comparison import REPLICATE_KEYS, SCORE_SD, Run, load_runs, show
from cryosweep.study.statistics import Difference, jackknife_difference, paired_difference

# What tells runs apart that are the same point.
PLACES = ("study", "output_dir", *REPLICATE_KEYS)


def points_of(folder: Path) -> dict[str, dict[tuple[str, ...], Run]]:
    """Point in words to replicate to run; the point of the first job first."""
    runs = [run for run in load_runs([folder]) if run.is_finished]
    settings = [
        {key: show(value) for key, value in run.settings().items() if key not in PLACES} for run in runs
    ]
    keys = list(dict.fromkeys(key for each in settings for key in each))
    varying = [key for key in keys if len({each.get(key, "–") for each in settings}) > 1]
    points: dict[str, dict[tuple[str, ...], Run]] = {}
    for run, each in zip(runs, settings, strict=True):
        name = ", ".join(f"{key.rsplit('.', 1)[-1]} {each.get(key, '–')}" for key in varying)
        points.setdefault(name, {})[run.data()] = run
    return points


def one_run(run: Run, centre: Run) -> tuple[Difference, Difference]:
    """Differences in A and H with the spread that one run of each tells."""
    a, b = run.scores(), centre.scores()
    if a.left_out is None or b.left_out is None or a.likelihoods is None or b.likelihoods is None:
        raise SystemExit(f"{run.folder}: no jackknife or no held-out likelihood; run with both")
    jackknife = jackknife_difference(a.area, b.area, a.left_out, b.left_out)
    return jackknife, paired_difference(a.likelihoods, b.likelihoods)


def rms(values: Array) -> float:
    return float(np.sqrt(np.square(values).mean()))


def described(name: str, pairs: Mapping[tuple[str, ...], tuple[Difference, Difference]]) -> Array:
    """Print one setting; return (2, n) its differences in A and H."""
    n = len(pairs)
    means = np.array([[each.mean for each in pair] for pair in pairs.values()]).T
    told: list[str] = []
    for k, score in enumerate("AH"):
        each = [pair[k] for pair in pairs.values()]
        # over the particles the SD is that of one particle
        formula = rms(np.array([d.sd / (np.sqrt(d.n) if k else 1.0) for d in each]))
        others = (means[k].sum() - means[k]) / (n - 1)
        held = np.mean([d.low < other < d.high for d, other in zip(each, others, strict=True)])
        sd = means[k].std(ddof=1)
        told.append(f"{score} {means[k].mean():+.3f} SD {sd:.4f}, {sd / formula:.2f} times that of one run, "
                    f"whose interval holds {held:.2f}")  # fmt: skip
    print(f"  {name}: {'; '.join(told)}")
    return means


def beside(name: str, centre: str) -> str:
    """What a point has that the centre has not."""
    return ", ".join(part for part in name.split(", ") if part not in centre.split(", "))


def threes(d: Array) -> dict[str, Array]:
    """Rule to (settings,) share of threes of d (settings, replicates) that hold the mean of the others."""
    n = d.shape[-1]
    held: dict[str, list[Array]] = {rule: [] for rule in RULES}
    for chosen in combinations(range(n), 3):
        rest = np.delete(d, chosen, axis=-1).mean(axis=-1)
        three = d[:, chosen]
        error = np.sqrt(1.0 / 3.0 + 1.0 / (n - 3))
        for rule, spread_of in RULES.items():
            variance, freedom = spread_of(three.var(axis=-1, ddof=1)[None], 2)
            half = stats.t.ppf(0.975, freedom[0]) * np.sqrt(variance[0]) * error
            held[rule].append(np.abs(three.mean(axis=-1) - rest) < half)
    return {rule: np.mean(found, axis=0) for rule, found in held.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--centre", default="", help="words that the name of the centre begins with")
    arguments = parser.parse_args()
    for folder in arguments.folders:
        points = points_of(folder)
        centre = next(name for name in points if name.startswith(arguments.centre))
        base = points.pop(centre)
        common = [key for key in base if all(key in runs for runs in points.values())]
        print(f"{folder.name}, {len(common)} replicates, centre: {centre}")
        areas = np.array([base[key].scores().area for key in common])
        formula = rms(np.array([base[key].summary[SCORE_SD] for key in common]))
        print(
            f"  FSC area of the centre {areas.mean():.3f}, SD {areas.std(ddof=1):.4f}, "
            f"{areas.std(ddof=1) / formula:.2f} times the formula of one run"
        )
        found: Array = np.array([
            described(beside(name, centre), {key: one_run(runs[key], base[key]) for key in common})
            for name, runs in points.items()
        ])  # fmt: skip
        every = [base, *points.values()]
        bars = 1.96 * np.sqrt(2.0) * np.array(
            [max(runs[key].summary[SCORE_SD] for runs in every) for key in common]
        )  # fmt: skip
        apart = np.abs(found[:, 0] - found[:, 0].mean(axis=-1, keepdims=True))
        print(
            f"  the bar of a study of one run a point, {bars.mean():.3f}, is passed by "
            f"{np.mean(apart > bars):.2f} of the deviations of a difference in A from its mean"
        )
        for k, score in enumerate("AH"):
            pairs = np.asarray(np.corrcoef(found[:, k]))[np.triu_indices(len(found), 1)]
            held = threes(found[:, k])
            told = "; ".join(
                f"{rule} {shares.mean():.2f} ({shares.min():.2f} to {shares.max():.2f})"
                for rule, shares in held.items()
            )
            print(
                f"  {score}: correlation of two differences, median {np.median(pairs):.2f} "
                f"({pairs.min():.2f} to {pairs.max():.2f}); threes hold the mean of the others: {told}"
            )


if __name__ == "__main__":
    main()
