"""What intervals and tests promise, and what they hold: false alarms, coverage, power, jackknife.

    python benchmarks/coverage.py [--draws 400] [--seed 0]

Tests and advice are tried on drawn numbers, and so are rules that would borrow the spread of a comparison
from the others of its study or from the jackknife, instead of Student's t on its two or three differences.

Needs no files: the maps are drawn directly, at fixed poses. A data set is 40 noise maps on a 32 px box, each
the mean of a fortieth of the particles; a split deals them into two halves at random. Settings share signal
and noise and differ in blur, as two poses of the same particles do. Shares come with binomial errors.
The last line is one JSON object with the same figures.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.special import digamma, polygamma
from torch import Tensor

from cryosweep.fourier import frequency_radius
from cryosweep.resolution import (
    area_sd,
    crossing,
    crossing_interval,
    effective_samples,
    fsc,
    fsc_interval,
    fsc_sd,
)
from cryosweep.study.statistics import (
    holm,
    jackknife_sd,
    replicates_needed,
    t_interval,
    told_from_first,
)

Array = NDArray[np.float64]
# Of a comparison: variance of one difference, and its degrees of freedom, each (studies, settings).
Spread = tuple[Array, Array]

SIZE, BLOCKS, FIRST, LAST = 32, 40, 3, 13
# FSC areas of the two blurs differ by about 0.02
BLURS = (0.28, 0.275)
REPLICATES = 3


def soft_ball(radius: float, edge: float = 4.0) -> Tensor:
    axis = torch.arange(SIZE) - SIZE // 2
    distance = (axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2).sqrt()
    return 0.5 + 0.5 * torch.cos(math.pi * ((distance - radius) / edge).clamp(0.0, 1.0))


def signals(generator: torch.Generator) -> list[Tensor]:
    radius = frequency_radius(SIZE, dims=3, dtype=torch.float32, device="cpu")
    white = torch.fft.rfftn(torch.randn(SIZE, SIZE, SIZE, generator=generator))
    return [
        torch.fft.irfftn(white * 3.0 * torch.exp(-((radius / (blur * SIZE)) ** 2)), s=(SIZE,) * 3)
        for blur in BLURS
    ]


def area(curve: Tensor) -> float:
    return float(curve[FIRST : LAST + 1].mean())


def share(hits: NDArray[np.bool_] | np.bool_) -> tuple[float, float]:
    value = float(hits.mean())
    return value, math.sqrt(max(value * (1.0 - value), 0.25 / hits.size) / hits.size)


# ---- the spread of a comparison from two or three differences ----


def own(variance: Array, freedom: int) -> Spread:
    """Student's t: each comparison by itself."""
    return variance, np.full(variance.shape, float(freedom))


def towards_the_median(variance: Array, freedom: int) -> Spread:
    """4 degrees of freedom of the median variance of the study."""
    return _weighed(variance, freedom, np.median(variance, axis=-1), np.full(len(variance), 4.0))


def moderated(variance: Array, freedom: int) -> Spread:
    """Moderated t: variances scatter about one prior, whose degrees of freedom the study itself tells.

    Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3, 3, section 6.2: mean and variance of log s^2.
    """
    return _weighed(variance, freedom, *prior_of(variance, freedom))


def prior_of(variance: Array, freedom: int) -> tuple[Array, Array]:
    """(studies,) prior variance and degrees of freedom, infinite where log s^2 scatters as by chance."""
    half = 0.5 * freedom
    e = np.log(variance) - digamma(half) + math.log(half)
    excess = e.var(axis=-1, ddof=1) - polygamma(1, half)
    known = excess > 1e-6
    # where the scatter is that of chance, or less, any number does in the formula that is not taken
    prior = 2.0 * _inverse_trigamma(np.where(known, excess, 1.0))
    centre = np.where(known, np.exp(e.mean(axis=-1) + digamma(0.5 * prior) - np.log(0.5 * prior)),
                      variance.mean(axis=-1))  # fmt: skip
    return centre, np.where(known, prior, np.inf)


def _inverse_trigamma(x: Array) -> Array:
    y = 0.5 + 1.0 / x
    for _ in range(30):
        value = polygamma(1, y)
        y = y + value * (1.0 - value / x) / polygamma(2, y)
    return y


def _weighed(variance: Array, freedom: int, centre: Array, prior: Array) -> Spread:
    weight = np.minimum(prior, 1e8)[:, None]
    return (weight * centre[:, None] + freedom * variance) / (
        weight + freedom
    ), weight + freedom + 0 * variance


RULES: Mapping[str, Callable[[Array, int], Spread]] = {
    "t": own,
    "median": towards_the_median,
    "moderated": moderated,
}


def alike(settings: int) -> Array:
    return np.ones(settings)


def lognormal(settings: int) -> Array:
    """Quantiles of a lognormal distribution whose SD is a factor of 3."""
    return np.exp(math.log(3.0) * stats.norm.ppf((np.arange(settings) + 0.5) / settings))


def one_wide(settings: int) -> Array:
    return np.append(np.ones(settings - 1), 10.0)


# SD of what is a setting's own, SD of the centre, and the share of the former that all have in common.
KINDS = (
    ("alike, quiet centre", alike, 0.1, 0.0),
    ("alike, centre too", alike, 1.0, 0.0),
    ("alike, centre 3 times", alike, 3.0, 0.0),
    ("alike, act together", alike, 0.1, 0.8),
    ("lognormal, factor 3", lognormal, 0.3, 0.0),
    ("one 10 times, quiet centre", one_wide, 0.1, 0.0),
    ("one 10 times, centre as the others", one_wide, 1.0, 0.0),
)


def differences_of(
    rng: np.random.Generator, shape: tuple[int, int, int], own_sd: Array, centre: float, together: float
) -> Array:
    """(studies, settings, replicates) differences from the centre of studies without any difference."""
    studies, settings, replicates = shape
    shared = rng.standard_normal((studies, 1, replicates))
    apart = rng.standard_normal((studies, settings, replicates))
    noise = own_sd[:, None] * (math.sqrt(together) * shared + math.sqrt(1.0 - together) * apart)
    return noise - centre * rng.standard_normal((studies, 1, replicates))


def tested(d: Array, spread: Spread, shift: Array | float) -> Array:
    """Two-sided p of the means of d + shift."""
    t = (d.mean(axis=-1) + shift) / np.sqrt(spread[0] / d.shape[-1])
    return np.asarray(2.0 * stats.t.sf(np.abs(t), spread[1]))


def borrowed_spread(seed: int, studies: int = 4000) -> dict[str, object]:
    """False alarms, coverage of each kind of setting, and power of the rules; print and return them."""
    rng = np.random.default_rng(seed)
    # 20000 settings whose variances come from such a prior: what the moderated t was made for
    variances = 4.0 / rng.chisquare(4.0, 20000)
    d = differences_of(rng, (1, 20000, 3), np.sqrt(variances), 0.0, 0.0)
    spread = moderated(d.var(axis=-1, ddof=1), 2)
    print(
        "spread of a comparison by its own differences (t), by 4 df of the median, by moderated t "
        f"(20000 settings of prior df 4: found {float(spread[1][0, 0]) - 2.0:.1f}, coverage "
        f"{float((tested(d, spread, 0.0) > 0.05).mean()):.3f}); {studies} studies without any difference"
    )
    print(
        "  worst over 2, 4, 8, 15, 24 settings: false alarms after Holm / coverage of the narrowest or "
        "widest; power for 4 SD_d among 8"
    )
    found: dict[str, object] = {}
    for n in (2, 3):
        for name, make, centre, together in KINDS:
            alarms, covered = dict.fromkeys(RULES, 0.0), dict.fromkeys(RULES, 1.0)
            power: dict[str, float] = {}
            for settings in (2, 4, 8, 15, 24):
                own_sd = make(settings)
                d = differences_of(rng, (studies, settings, n), own_sd, centre, together)
                for rule, spread_of in RULES.items():
                    spread = spread_of(d.var(axis=-1, ddof=1), n - 1)
                    p = tested(d, spread, 0.0)
                    alarms[rule] = max(alarms[rule], float((holm(p) < 0.05).any(axis=-1).mean()))
                    covered[rule] = min(covered[rule], *(p[:, [0, -1]] > 0.05).mean(axis=0).tolist())
                    if settings == 8:
                        shift = 4.0 * np.sqrt(own_sd**2 + centre**2)
                        power[rule] = float((holm(tested(d, spread, shift)) < 0.05).mean())
            found[f"spread, n = {n}, {name}"] = {
                rule: (alarms[rule], covered[rule], power[rule]) for rule in RULES
            }
            told = "; ".join(
                f"{rule} {alarms[rule]:.3f} / {covered[rule]:.3f}, power {power[rule]:.2f}" for rule in RULES
            )
            print(f"  n = {n}, {name}: {told}")
    print(
        "  2 degrees of freedom of the jackknife's SD (5 blocks a run), n = 3, 8 settings; true SD over it:"
    )
    for ratio in (0.5, 1.0, 1.5, 2.0, 3.0):
        d = rng.standard_normal((studies, 8, 3))
        jackknife = rng.chisquare(12.0, (studies, 8)) / 12.0 / ratio**2
        spread = ((jackknife + d.var(axis=-1, ddof=1)) / 2.0, np.full((studies, 8), 4.0))
        p = tested(d, spread, 0.0)
        alarms_, covered_ = share((holm(p) < 0.05).any(axis=-1)), share(p > 0.05)
        power_ = float((holm(tested(d, spread, 4.0)) < 0.05).mean())
        found[f"jackknife prior, {ratio:g}"] = (alarms_, covered_, power_)
        print(f"  {ratio:g}: {alarms_[0]:.3f} / {covered_[0]:.3f}, power {power_:.2f}")
    return found


def choosing(seed: int, studies: int = 20000) -> dict[str, object]:
    """What it costs that points were chosen by what is then tested; print and return it."""
    rng = np.random.default_rng(seed)
    found: dict[str, object] = {}
    print(
        f"24 points screened, the first 3 and the centre replicated, tested with all runs, {studies} studies:"
    )
    for spread_name, spread in (
        ("equal SDs", np.ones(24)),
        ("SDs 0.1 to 1", rng.permutation(np.geomspace(0.1, 1, 24))),
    ):
        for n in (2, 3):
            scores = spread[:, None] * rng.standard_normal((studies, 24, n))
            chosen = np.argsort(-scores[:, 1:, 0], axis=-1)[:, :3] + 1
            d = np.take_along_axis(scores, chosen[..., None], axis=1) - scores[:, :1]
            low, high, p, sd = t_interval(d)
            alarms, covered = share((holm(p) < 0.05).any(axis=-1)), share((low < 0.0) & (high > 0.0))
            bias = float(d.mean() / np.sqrt(np.square(sd).mean()))
            found[f"screened, {spread_name}, {n}"] = (alarms, covered, bias)
            print(f"  {spread_name}, n = {n}: false alarms {alarms[0]:.4f} +- {alarms[1]:.4f}, coverage "
                  f"{covered[0]:.3f}, the mean difference {bias:.2f} SD_d too high")  # fmt: skip
    print("points told from the first by mean, studies without any difference, 500 studies, equal SDs:")
    for points, n in ((8, 3), (16, 3), (16, 5)):
        with_it = pairs = 0
        for scores in rng.standard_normal((500, points, n)):
            ranked = scores[np.argsort(-scores.mean(axis=-1))]
            with_it += bool((holm(t_interval(ranked[1:] - ranked[:1])[2]) < 0.05).any())
            pairs += any(told_from_first([{str(k): float(x) for k, x in enumerate(row)} for row in ranked]))
        found[f"told from first, {points}, {n}"] = (with_it / 500, pairs / 500)
        print(f"  {points} points, n = {n}: Holm over the pairs with it {with_it / 500:.3f}, over all pairs "
              f"{pairs / 500:.3f}")  # fmt: skip
    return found


def advice(seed: int, studies: int = 4000) -> dict[str, object]:
    """Power of the replicates advised where several settings are tested; print and return it."""
    rng = np.random.default_rng(seed)
    found: dict[str, object] = {}
    print("power for a difference of 0.01 (SD 0.006) among comparisons, Holm, with the replicates advised:")
    for settings in (2, 8, 15):
        told: list[tuple[int, float]] = []
        for comparisons in (settings, 1):
            n = replicates_needed(0.006, 0.01, comparisons=comparisons)
            d = rng.normal(0.0, 0.006, (studies, settings, n))
            d[:, 0] += 0.01
            told.append((n, float((holm(t_interval(d)[2])[:, 0] < 0.05).mean())))
        # the SD is not known but found from three replicates
        powers: list[float] = []
        for sd in 0.006 * np.sqrt(rng.chisquare(2.0, 400) / 2.0):
            n = replicates_needed(float(sd), 0.01, comparisons=settings)
            p = t_interval(rng.normal(0.01, 0.006, (200, n)))[2]
            powers.append(float((p * settings < 0.05).mean()))
        found[f"advice among {settings}"] = (*told, float(np.mean(powers)))
        print(
            f"  {settings}: n = {told[0][0]}, {told[0][1]:.2f}; n = {told[1][0]} of a test alone, "
            f"{told[1][1]:.2f}; SD found from 3 replicates instead of known {np.mean(powers):.2f}"
        )
    print(
        "difference that is found with probability 0.8, in SD_d, by replicates and comparisons (Bonferroni):"
    )
    print("  replicates " + " ".join(f"{m:>6}" for m in (1, 2, 4, 8, 15, 24)))
    for n in (2, 3, 4, 5, 6, 8):
        row: list[float] = []
        for m in (1, 2, 4, 8, 15, 24):
            critical = float(stats.t.isf(0.025 / m, n - 1))
            normal, scale = rng.standard_normal(200000), np.sqrt(rng.chisquare(n - 1, 200000) / (n - 1))
            row.append(float(np.quantile((critical * scale - normal) / math.sqrt(n), 0.8)))
        found[f"found by {n}"] = row
        print(f"  {n:>10} " + " ".join(f"{value:6.1f}" for value in row))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    draws = arguments.draws
    figures: dict[str, object] = {}

    print("A/A studies, 16 labels of one setting, SD of a difference from 0.001 to 0.01, 10000 studies:")
    for n in (2, 3, 5):
        spread = np.geomspace(0.001, 0.01, 16)[:, None]
        scores = rng.normal(0.0, 0.007, (10000, 1, n)) + spread * rng.standard_normal((10000, 16, n))
        p = t_interval(scores[:, 1:] - scores[:, :1])[2]
        plain, adjusted = share((p < 0.05).any(axis=-1)), share((holm(p) < 0.05).any(axis=-1))
        figures[f"false_alarms_{n}"] = adjusted
        print(f"  n = {n}: some difference 'found' in {plain[0]:.3f} of the studies, after Holm in "
              f"{adjusted[0]:.4f} +- {adjusted[1]:.4f}")  # fmt: skip

    print("power of a paired t-test with the number of replicates advised, 20000 draws:")
    for sd, difference in ((0.006, 0.005), (0.006, 0.01), (0.006, 0.02), (0.2, 0.1), (0.2, 0.25)):
        n = replicates_needed(sd, difference)
        power = share(t_interval(rng.normal(difference, sd, (20000, n)))[2] < 0.05)
        figures[f"power_{sd:g}_{difference:g}"] = (n, *power)
        print(f"  SD {sd:g}, difference {difference:g}: n = {n}, power {power[0]:.3f} +- {power[1]:.3f}")

    figures |= advice(arguments.seed) | choosing(arguments.seed) | borrowed_spread(arguments.seed)

    mask = soft_ball(6.0)
    shapes = signals(generator)
    # (data set, replicate, setting): new splits of one data set; and the first split of each data set
    areas = np.empty((draws, REPLICATES + 8, 2))
    jackknifes = np.empty((draws, 3))
    for d in range(draws):
        noise = math.sqrt(BLOCKS / 2) * torch.randn(BLOCKS, SIZE, SIZE, SIZE, generator=generator)
        for r in range(areas.shape[1]):
            order = torch.randperm(BLOCKS, generator=generator)
            halves = [noise[rows].mean(dim=0) for rows in order.chunk(2)]
            for s, shape in enumerate(shapes):
                areas[d, r, s] = area(fsc(*((shape + half) * mask for half in halves)))
            if r == 0:
                left = np.empty((2, BLOCKS // 2))
                for b in range(BLOCKS // 2):
                    less = []
                    for half, rows in zip(halves, order.chunk(2), strict=True):
                        count = BLOCKS / 2
                        less.append((half * count - noise[rows[b]]) / (count - 1))
                    for s, shape in enumerate(shapes):
                        left[s, b] = area(fsc(*((shape + half) * mask for half in less)))
                jackknifes[d] = (*jackknife_sd(left), jackknife_sd(left[0] - left[1]))
    differences = areas[:, :, 1] - areas[:, :, 0]
    truth = float(differences.mean())
    unpaired = math.sqrt(2) * areas[:, 0].std(axis=0, ddof=1).mean()
    print(f"difference in FSC area of two blurs: {truth:+.4f}; SD of one over data sets "
          f"{differences[:, 0].std(ddof=1):.4f}, unpaired {unpaired:.4f}, "
          f"over splits of one data set {differences.std(axis=1, ddof=1).mean():.4f}")  # fmt: skip
    low, high, _, _ = t_interval(differences[:, :REPLICATES])
    of_set = differences[:, REPLICATES:].mean(axis=1)
    rows = {
        "splits, for this data set": share((low < of_set) & (of_set < high)),
        "splits, for the next data set": share((low < truth) & (truth < high)),
    }
    groups = differences[: draws // REPLICATES * REPLICATES, 0].reshape(-1, REPLICATES)
    low, high, _, _ = t_interval(groups)
    rows["other particles, for the next data set"] = share((low < truth) & (truth < high))
    print(f"coverage of 95 % paired t intervals, n = {REPLICATES}, {draws} data sets:")
    for name, value in rows.items():
        figures[f"coverage, {name}"] = value
        print(f"  {name}: {value[0]:.3f} +- {value[1]:.3f}")

    observed = np.array([*areas[:, 0].std(axis=0, ddof=1), differences[:, 0].std(ddof=1)])
    ratio = jackknifes.mean(axis=0) / observed
    figures["jackknife_over_observed"] = ratio.tolist()
    print(f"jackknife over {BLOCKS // 2} blocks, its SD over that of data sets: FSC area {ratio[0]:.2f}, "
          f"{ratio[1]:.2f}, their difference {ratio[2]:.2f}")  # fmt: skip

    print(f"one run, {draws} draws of noise:")
    for radius in (4.0, 6.0, 9.0):
        mask = soft_ball(radius)
        noise = torch.randn(draws, 2, SIZE, SIZE, SIZE, generator=generator)
        curves = torch.stack([fsc(*((shapes[0] + half) * mask for half in pair)) for pair in noise])
        samples = effective_samples(mask)
        mean = curves.mean(dim=0)
        found = np.array([area(curve) for curve in curves])
        sds = np.array([area_sd(curve, mask, first_shell=FIRST, last_shell=LAST) for curve in curves])
        covered = share(np.abs(found - found.mean()) < 1.96 * sds)
        ends_low, ends_high = fsc_interval(curves, samples)
        shells = ((ends_low < mean) & (mean < ends_high))[:, FIRST : LAST + 1].double().mean()
        wide = fsc_sd(mean, samples)[FIRST : LAST + 1] / curves.std(dim=0)[FIRST : LAST + 1]
        single = float(wide.mean())
        true_crossing = crossing(mean, 0.143, box_size=SIZE, pixel_size=1.0)
        ends = [crossing_interval(curve, mask, 0.143, pixel_size=1.0) for curve in curves]
        crossings = share(np.array([fine <= true_crossing <= coarse for fine, coarse in ends]))
        volume = float(samples[10]) / (200.0 * math.pi)
        ratio = float(sds.mean() / found.std(ddof=1))
        figures[f"one_run_{volume:.3f}"] = (ratio, covered, single, float(shells), crossings)
        print(
            f"  effective mask {volume:.3f} of the box: SD of the area, formula over observed {ratio:.2f}; "
            f"coverage of the area {covered[0]:.3f} +- {covered[1]:.3f}; single shells {single:.2f} and "
            f"{float(shells):.3f}, coverage of the crossing {crossings[0]:.3f}"
        )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
