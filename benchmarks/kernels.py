"""Samples per second of the inner loops, against what the machine's memory can give.

    OMP_NUM_THREADS=1 python benchmarks/kernels.py [--box-size 96 --crop 48 --particles 600]

The first loop reads slices with value, gradient and curvature of the log-likelihood; the second writes them.
Bytes and operations of a sample are counted from the formulas (8 corners of 8 bytes read, image and weight 12
bytes; 3 numbers at 8 corners read and written), so the share of the measured copying bandwidth says how far a
loop is from being bound by memory. The search is that of the last of three iterations on simulated particles
of the head, with the whole band of the crop. CPU seconds, best of five. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from cryosweep import kernels, refinement, search
from cryosweep.fourier import half_plane
from cryosweep.geometry import random_rotations
from cryosweep.io.particles import read_particles
from cryosweep.likelihood import compiled_log_likelihood_quadratic, log_likelihood_quadratic
from cryosweep.mask import spherical_mask
from cryosweep.projector import insert, make_reference, new_accumulator, slices
from cryosweep.reconstruction import reconstruct_half_maps
from cryosweep.refinement import RefinementSettings, refine
from cryosweep.simulate import SimulationSettings, load_ribosome, simulate

CPU = torch.device("cpu")
WIDTH = 336.0  # Å of the box
READ_BYTES, READ_FLOPS = 8 * 8 + 12, 330
WRITE_BYTES, WRITE_FLOPS = 8 * 3 * 4 * 2 + 12, 90
QUADRATIC, INSERT = "read, value + gradient + curvature", "write"


def best(action: Callable[[], object], repeats: int = 5) -> float:
    """Least CPU seconds of a call, after one to warm up."""
    action()
    measured: list[float] = []
    for _ in range(repeats):
        began = time.process_time()
        action()
        measured.append(time.process_time() - began)
    return min(measured)


def bandwidth() -> float:
    """Bytes a second that one thread copies, read and written, of arrays beyond the caches."""
    source = torch.zeros(2**26, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * source.numel() / best(lambda: target.copy_(source))


def loops(crop: int) -> dict[str, float]:
    """Million samples per second of each loop at the crop's full band."""
    generator = torch.Generator().manual_seed(0)
    reference = make_reference(torch.randn(crop, crop, crop, generator=generator))
    plane = half_plane(crop, dtype=torch.float32, device=CPU)
    count, images = 2**18 // plane.k.shape[0], 64
    rotations = random_rotations(count, generator, dtype=torch.float32)
    shifts = torch.randn(count, 2, generator=generator)
    owner = torch.randint(images, (count,), generator=generator)
    values = torch.randn(images, plane.k.shape[0], generator=generator, dtype=torch.complex64)
    weights = torch.rand(images, plane.k.shape[0], generator=generator)
    sums = new_accumulator(crop, max_shell=plane.max_shell, dtype=torch.float32, device=CPU)
    at = {"rotations": rotations, "shifts_px": shifts}
    actions: dict[str, Callable[[], object]] = {
        f"{QUADRATIC}, eager": lambda: log_likelihood_quadratic(
            reference, plane, images=values[owner], weights=weights[owner], **at
        ),
        f"{QUADRATIC}, compiled": lambda: compiled_log_likelihood_quadratic(
            reference, plane, images=values, weights=weights, owner=owner, **at
        ),
        f"{INSERT}, eager": lambda: insert(sums, values[owner], weights[owner], rotations, plane),
    }
    return {name: count * plane.k.shape[0] / best(action) / 1e6 for name, action in actions.items()}


def searches(arguments: argparse.Namespace) -> dict[str, float]:
    """Particles per second of a search, eager and compiled, and its cost in projections and insertions."""
    box, crop = arguments.box_size, arguments.crop
    pixel_size = WIDTH / box
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        settings = SimulationSettings(
            particles=arguments.particles, box_size=box, pixel_size=pixel_size, snr=arguments.snr
        )
        simulate(settings, folder, device=CPU)
        particles = read_particles(folder / "particles.star")
        start = reconstruct_half_maps(particles, particles.rotations, particles.shifts, device=CPU)
        centre = load_ribosome().domains["head"].centre_of_mass / pixel_size
        x, y, z = (float(value) for value in centre)
        mask = spherical_mask(
            box,
            outer_px=0.36 * crop,
            inner_px=0.25 * crop,
            centre_px=(x, y, z),
            dtype=torch.float32,
            device=CPU,
        )
        calls: list[dict[str, object]] = []
        places: list[tuple[object, ...]] = []

        def caught(*given: object, **named: object) -> search.SearchResult:
            places.append(given)
            calls.append(named)
            return search.search_poses(*given, **named)  # type: ignore[arg-type]

        refinement.crop_size_for = lambda *_, **__: crop  # type: ignore[assignment]
        refinement.search_poses = caught  # type: ignore[assignment]
        last_common_shell = refinement.last_common_shell
        refinement.last_common_shell = lambda curve: curve.numel()  # the band grows as fast as it may
        refine(
            particles, start, mask, fulcrum=centre * pixel_size, device=CPU,
            settings=RefinementSettings(max_iterations=3, rotation_prior=7.0, shift_prior=3.5),
        )  # fmt: skip
        refinement.search_poses = search.search_poses
        refinement.last_common_shell = last_common_shell
        given, named = places[-1], calls[-1]
        plan = named["plan"]
        count = len(named["current"].shifts_px)  # type: ignore[attr-defined]
        found: dict[str, float] = {"band of the search (shells)": float(plan.stages[-1].shell)}  # type: ignore[attr-defined]
        for label, chosen in (("eager", False), ("compiled", True)):
            named["plan"] = replace(plan, compiled=chosen)  # type: ignore[type-var]
            seconds = best(lambda: search.search_poses(*given, **named))  # type: ignore[arg-type]
            found[f"search, {label}: particles per s"] = count / seconds
    plane = half_plane(box, dtype=torch.float32, device=CPU)
    reference = make_reference(torch.randn(box, box, box))
    rotations = random_rotations(64, torch.Generator().manual_seed(1), dtype=torch.float32)
    sums = new_accumulator(box, max_shell=plane.max_shell, dtype=torch.float32, device=CPU)
    values = slices(reference, rotations, plane)
    one = best(lambda: slices(reference, rotations, plane)) + best(
        lambda: insert(sums, values, values.real, rotations, plane)
    )
    found["search, eager: cost in full-box projections + insertions"] = (
        64 / found["search, eager: particles per s"] / one
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--particles", type=int, default=600)
    parser.add_argument("--box-size", type=int, default=96)
    parser.add_argument("--crop", type=int, default=48)
    parser.add_argument("--snr", type=float, default=0.2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not kernels.can_compile(CPU):
        raise SystemExit("torch.compile does not work here; install a C++ compiler")
    memory = bandwidth()
    print(f"memory: {memory / 1e9:.1f} GB/s copied by one thread")
    print(f"{'':45s} {'M samples/s':>12s} {'bytes':>6s} {'flop':>5s} {'of memory':>10s} {'Gflop/s':>8s}")
    speeds = loops(arguments.crop)
    for name, speed in speeds.items():
        size, flops = (READ_BYTES, READ_FLOPS) if name.startswith(QUADRATIC) else (WRITE_BYTES, WRITE_FLOPS)
        share = speed * 1e6 * size / memory
        print(f"{name:45s} {speed:12.1f} {size:6d} {flops:5d} {share:10.0%} {speed * flops / 1e3:8.1f}")
    found = searches(arguments)
    for name, value in found.items():
        print(f"{name:58s} {value:10.3g}")
    print(
        json.dumps(
            {
                "search_cost": round(found["search, eager: cost in full-box projections + insertions"], 3),
                "search_particles_per_s": round(found["search, compiled: particles per s"], 1),
                "search_particles_per_s_eager": round(found["search, eager: particles per s"], 1),
                "samples_per_s": {name: round(speed * 1e6) for name, speed in speeds.items()},
                "memory_bytes_per_s": round(memory),
            }
        )
    )


if __name__ == "__main__":
    main()
