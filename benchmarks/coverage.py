"""What intervals and tests promise, and what they hold: false alarms, coverage, power, jackknife.

    python benchmarks/coverage.py [--draws 400] [--seed 0]

Needs no files: the maps are drawn directly, at fixed poses. A data set is 40 noise maps on a 32 px box, each
the mean of a fortieth of the particles; a split deals them into two halves at random. Settings share signal
and noise and differ in blur, as two poses of the same particles do. Shares come with binomial errors.
The last line is one JSON object with the same figures.
"""

from __future__ import annotations

import argparse
import json
import math

import numpy as np
import torch
from torch import Tensor

from cryosweep.fourier import frequency_radius
from cryosweep.resolution import area_sd, crossing, crossing_interval, effective_samples, fsc, fsc_interval
from cryosweep.study.statistics import holm, jackknife_sd, replicates_needed, t_interval

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


def share(hits: np.ndarray) -> tuple[float, float]:
    value = float(hits.mean())
    return value, math.sqrt(max(value * (1.0 - value), 0.25 / hits.size) / hits.size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
        true_crossing = crossing(mean, 0.143, box_size=SIZE, pixel_size=1.0)
        ends = [crossing_interval(curve, mask, 0.143, pixel_size=1.0) for curve in curves]
        crossings = share(np.array([fine <= true_crossing <= coarse for fine, coarse in ends]))
        volume = float(samples[10]) / (200.0 * math.pi)
        ratio = float(sds.mean() / found.std(ddof=1))
        figures[f"one_run_{volume:.3f}"] = (ratio, covered, float(shells), crossings)
        print(
            f"  effective mask {volume:.3f} of the box: SD of the area, formula over observed {ratio:.2f}; "
            f"coverage of the area {covered[0]:.3f} +- {covered[1]:.3f}, of single shells "
            f"{float(shells):.3f}, of the crossing {crossings[0]:.3f}"
        )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
