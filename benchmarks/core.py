"""Particles per CPU-second of projection, insertion, search and a whole iteration; what the search misses.

    python benchmarks/core.py [--particles 400] [--box-size 96] [--domain head]

Simulates the embedded ribosome, so it needs no files. One thread unless OMP_NUM_THREADS says otherwise; CPU
time, median of three after one warm-up. The last line is one JSON object with the same figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cryosweep import refinement, search
from cryosweep.fourier import gaussian_filter, half_plane
from cryosweep.io.particles import read_particles
from cryosweep.mask import centre_of_mass, soft_mask, threshold_of
from cryosweep.projector import insert, make_reference, new_accumulator, slices
from cryosweep.reconstruction import reconstruct_half_maps
from cryosweep.refinement import RefinementSettings, refine
from cryosweep.search import MISSED, search_poses, search_shortfall
from cryosweep.simulate import DOMAINS, SimulationSettings, load_truth, simulate

CPU = torch.device("cpu")


def cpu_seconds(action: Callable[[], object], repeats: int = 3) -> float:
    action()
    measured: list[float] = []
    for _ in range(repeats):
        began = time.process_time()
        action()
        measured.append(time.process_time() - began)
    return statistics.median(measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--particles", type=int, default=400)
    parser.add_argument("--box-size", type=int, default=96)
    parser.add_argument("--domain", choices=DOMAINS, default="head")
    arguments = parser.parse_args()
    count, box = arguments.particles, arguments.box_size
    pixel_size = 336.0 / box
    figures: dict[str, float] = {}

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        settings = SimulationSettings(particles=count, box_size=box, pixel_size=pixel_size)
        figures["simulate"] = count / cpu_seconds(lambda: simulate(settings, folder, device=CPU), 1)
        particles, truth = read_particles(folder / "particles.star"), load_truth(folder)

        # a whole box, full band: what one projection and one insertion cost
        plane = half_plane(box, dtype=torch.float32, device=CPU)
        reference = make_reference(torch.randn(box, box, box))
        rotations = particles.rotations.float()
        some = slice(0, min(count, 200))
        figures["project"] = len(rotations[some]) / cpu_seconds(
            lambda: slices(reference, rotations[some], plane)
        )
        sums = new_accumulator(box, max_shell=plane.max_shell, dtype=torch.float32, device=CPU)
        values = slices(reference, rotations[some], plane)
        weights = torch.ones_like(values.real)
        figures["insert"] = len(rotations[some]) / cpu_seconds(
            lambda: insert(sums, values, weights, rotations[some], plane)
        )
        figures["reconstruct"] = count / cpu_seconds(
            lambda: reconstruct_half_maps(particles, particles.rotations, particles.shifts, device=CPU), 1
        )

        start = reconstruct_half_maps(particles, particles.rotations, particles.shifts, device=CPU)
        base = gaussian_filter(start.half_a + start.half_b, sigma=4.0, pixel_size=pixel_size)
        base = base * (truth.labels == 1 + DOMAINS.index(arguments.domain))
        mask = soft_mask(
            base, threshold=threshold_of(base, 0.15, unit="fraction"), dilation_radius_px=7 / pixel_size,
            soft_padding_width_px=16 / pixel_size,
        )  # fmt: skip
        fulcrum = centre_of_mass(mask).double() * pixel_size

        # the calls that one refinement makes, caught to be repeated
        calls: list[dict[str, object]] = []

        def caught(*positional: object, **named: object) -> search.SearchResult:
            calls.append({"positional": positional, **named})
            return search_poses(*positional, **named)  # type: ignore[arg-type]

        refinement.search_poses = caught  # type: ignore[assignment]
        loop = RefinementSettings(max_iterations=2)
        began = time.process_time()
        result = refine(particles, start, mask, fulcrum=fulcrum, settings=loop, device=CPU)
        figures["iteration, with preparation"] = 2 * count / (time.process_time() - began)
        refinement.search_poses = search_poses
        print(f"crop {result.crop_size} px, {count} particles, {torch.get_num_threads()} thread(s)")

        last = calls[-1]
        positional = last.pop("positional")
        searched = len(last["current"].shifts_px)  # type: ignore[attr-defined]
        figures["search"] = searched / cpu_seconds(lambda: search_poses(*positional, **last))  # type: ignore[misc,arg-type]

        # what the default search leaves on the table
        default = search_poses(*positional, **last)  # type: ignore[misc,arg-type]
        last.pop("current")
        shortfall = search_shortfall(*positional, **last, found=default)  # type: ignore[misc,arg-type]
        figures["share more than 1 below exhaustive"] = float((shortfall > MISSED).float().mean())

    figures["search cost in projections + insertions"] = (1 / figures["search"]) / (
        1 / figures["project"] + 1 / figures["insert"]
    )
    for name, value in figures.items():
        unit = "" if name.startswith(("share", "search cost")) else "particles per CPU-second"
        print(f"{name:42s} {value:10.3g} {unit}")
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
