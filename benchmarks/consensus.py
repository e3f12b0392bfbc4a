"""What non-uniform references and a consensus pass are worth: simulated data, several seeds, paired.

    OMP_NUM_THREADS=1 python benchmarks/consensus.py --seeds 0,1,2 --particles 600 --snr 0.1

For each seed: three starts (the poses as they come; a homogeneous and a non-uniform consensus of 2 iterations
under a dynamic mask), each scored on the body, and from each a local refinement of the head with Wiener and
with non-uniform references. Printed are means over seeds, and means and standard deviations of paired
differences. Truth FSC areas are from 34 Å to 0.95 of Nyquist under one mask for each domain and seed, cut
from the start as `scoring=soft` cuts it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cryosweep.consensus import DynamicMask, refine_consensus
from cryosweep.fourier import gaussian_filter
from cryosweep.io import read_particles
from cryosweep.io.particles import Particles
from cryosweep.mask import centre_of_mass, soft_mask, threshold_of
from cryosweep.reconstruction import HalfMaps, reconstruct_half_maps
from cryosweep.refinement import RefinementSettings, refine
from cryosweep.regularisation import Regularisation
from cryosweep.simulate import DOMAINS, SimulationSettings, Truth, load_ribosome, load_truth, simulate
from cryosweep.study.assessment import make_ruler, masked_fsc, score_against_truth

CPU = torch.device("cpu")
KINDS = (Regularisation.wiener, Regularisation.nonuniform)
METRICS = ("truth FSC area", "GSFSC area", "rotation error (°)", "shift error (Å)")
Numbers = dict[str, float]


def domain_mask(halves: HalfMaps, truth: Truth, name: str, dilation: float, padding: float) -> Tensor:
    """Soft mask of a domain's territory in the starting map, as `mask_base=domain` makes it."""
    base = gaussian_filter(0.5 * (halves.half_a + halves.half_b), sigma=4.0, pixel_size=halves.pixel_size)
    base = base * (truth.labels == 1 + DOMAINS.index(name))
    return soft_mask(
        base, threshold=threshold_of(base, 0.15, unit="fraction"),
        dilation_radius_px=dilation / halves.pixel_size, soft_padding_width_px=padding / halves.pixel_size,
    )  # fmt: skip


def measured(
    particles: Particles, rotations: Tensor, shifts: Tensor, truth: Truth, name: str, mask: Tensor
) -> Numbers:
    """Areas and median errors of one domain at some poses."""
    maps = reconstruct_half_maps(particles, rotations, shifts, device=CPU)
    ruler = make_ruler(
        mask, pixel_size=particles.pixel_size, band_low=34.0, band_high=None, randomisations=1, seed=0
    )
    found = score_against_truth(
        maps, rotations, shifts, domain=load_ribosome().domains[name], truth=truth.domains[name], ruler=ruler
    )
    band = slice(ruler.first_shell, ruler.last_shell + 1)
    values = (
        found.curve[band].mean(), masked_fsc(maps, mask)[band].mean(),
        found.rotation_error.median(), found.shift_error.median(),
    )  # fmt: skip
    return dict(zip(METRICS, map(float, values), strict=True))


def run_seed(
    settings: SimulationSettings, lowpass: float, *, head_only: bool
) -> tuple[dict[str, Numbers], dict[str, Numbers]]:
    """Numbers of the body for each start, and of the head for each start and regularisation.

    With `head_only` there is one start, the poses as they come, and all three regularisations.
    """
    body: dict[str, Numbers] = {}
    head: dict[str, Numbers] = {}
    with tempfile.TemporaryDirectory() as scratch:
        simulate(settings, Path(scratch), device=CPU)
        particles, truth = read_particles(Path(scratch) / "particles.star"), load_truth(Path(scratch))
        given = reconstruct_half_maps(particles, particles.rotations, particles.shifts, device=CPU)
        ruler = {name: domain_mask(given, truth, name, 0.0, 10.0) for name in ("body", "head")}
        starts = {"reconstruct": (particles, given)}
        for kind, name in () if head_only else zip(KINDS, ("homogeneous", "nonuniform"), strict=True):
            found = refine_consensus(
                particles, given, mask=DynamicMask(), device=CPU,
                settings=RefinementSettings(
                    rotation_extent=10.0, shift_extent=8.0, initial_lowpass=20.0, max_iterations=2,
                    regularisation=kind,
                ),
            )  # fmt: skip
            starts[name] = found.particles, found.half_maps
        for start, (posed, halves) in starts.items():
            body[start] = measured(posed, posed.rotations, posed.shifts, truth, "body", ruler["body"])
            head[start] = measured(posed, posed.rotations, posed.shifts, truth, "head", ruler["head"])
            mask = domain_mask(halves, truth, "head", 7.0, 16.0)
            fulcrum = centre_of_mass(mask).cpu() * posed.pixel_size
            for kind in Regularisation if head_only else KINDS:
                result = refine(
                    posed, halves, mask, fulcrum=fulcrum, device=CPU,
                    settings=RefinementSettings(initial_lowpass=lowpass, regularisation=kind),
                )  # fmt: skip
                head[f"{start}, {kind.value}"] = measured(
                    posed, result.rotations, result.shifts, truth, "head", ruler["head"]
                )
    return body, head


def table(title: str, base: str, others: tuple[str, ...], runs: list[Mapping[str, Numbers]]) -> None:
    """Means of `base` and of each other kind, and paired differences from `base`."""
    print(f"\n{title}")
    for kind in (base, *others):
        for metric in METRICS:
            values = [run[kind][metric] for run in runs]
            line = f"  {kind:<26} {metric:<20} {statistics.mean(values):7.3f}"
            differences = [run[kind][metric] - run[base][metric] for run in runs]
            if kind != base and len(runs) > 1:
                spread, more = statistics.stdev(differences), sum(each > 0 for each in differences)
                line += (
                    f"   {statistics.mean(differences):+.3f} ± {spread:.3f}, higher in {more} of {len(runs)}"
                )
            print(line)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--particles", type=int, default=600)
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--box-size", type=int, default=64)
    parser.add_argument("--pixel-size", type=float, default=5.0)
    parser.add_argument("--lowpass", type=float, default=15.0, help="of the local refinement, Å")
    parser.add_argument("--head-only", action="store_true", help="no consensus, but `none` as well")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    bodies: list[Mapping[str, Numbers]] = []
    heads: list[Mapping[str, Numbers]] = []
    for seed in map(int, given.seeds.split(",")):
        settings = SimulationSettings(
            given.particles, box_size=given.box_size, pixel_size=given.pixel_size, snr=given.snr, seed=seed
        )
        body, head = run_seed(settings, given.lowpass, head_only=given.head_only)
        bodies.append(body)
        heads.append(head)
        print(f"seed {seed}: {time.process_time() - began:.0f} CPU s so far", flush=True)
    if given.head_only:
        others = tuple(f"reconstruct, {kind}" for kind in ("none", "nonuniform"))
        table("head refined from reconstruct", "reconstruct, wiener", others, heads)
        return
    table("body in the consensus", "reconstruct", ("homogeneous", "nonuniform"), bodies)
    table("body, non-uniform against homogeneous", "homogeneous", ("nonuniform",), bodies)
    table("head in the consensus", "reconstruct", ("homogeneous", "nonuniform"), heads)
    for start in ("reconstruct", "homogeneous", "nonuniform"):
        table(f"head refined from {start}", f"{start}, wiener", (f"{start}, nonuniform",), heads)
    for kind in KINDS:
        others = tuple(f"{start}, {kind.value}" for start in ("homogeneous", "nonuniform"))
        table(f"head refined with {kind.value}, by start", f"reconstruct, {kind.value}", others, heads)


if __name__ == "__main__":
    main()
