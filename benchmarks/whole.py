"""What one whole local refinement of the demo's kind costs and how good it is, eagerly and compiled.

    python benchmarks/whole.py --particles 2000 --seeds 0 1 2
    python benchmarks/whole.py --only compiled --crop 80 60 --domain arm --snr 0.4 --no-prior

Simulates the embedded ribosome (box 96 px of 3.5 Å, SNR 0.2) and refines its head for five iterations with a
prior about the start, fulcrum at the neck, under a tight mask made from the true density. Each refinement
runs in a process of its own, one after the other: eagerly on two threads, and compiled on one, where the
compiler has been warmed by a short refinement before. Seconds are those of `refine` alone, preparation of the
images included. What is compared: wall seconds of the first, CPU seconds of the second.

The last line is one JSON object: `eager_wall_s`, `compiled_cpu_s` (medians over the seeds) and the figures
besides.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from cryosweep import refinement
from cryosweep.fourier import gaussian_filter
from cryosweep.io import read_map, read_particles
from cryosweep.mask import centre_of_mass, soft_mask, threshold_of
from cryosweep.reconstruction import reconstruct_half_maps
from cryosweep.refinement import RefinementSettings, refine
from cryosweep.resolution import band_shells, fsc, fsc_area
from cryosweep.simulate import (
    DOMAINS,
    SimulationSettings,
    align_frames,
    load_ribosome,
    load_truth,
    pose_errors,
    simulate,
    truth_in_frame,
)

CPU = torch.device("cpu")
WIDTH = 336.0  # Å of the box
LOWEST, FINEST = 40.0, 8.0  # Å: band of the mean FSC with the truth
WARM = 100  # particles of the refinement that warms the compiler
THREADS = {False: 2, True: 1}


@dataclass(frozen=True)
class Outcome:
    """One refinement: seconds, px of the crop, rotation error in degrees, mean FSC with the truth."""

    wall: float
    cpu: float
    preparation_cpu: float
    crop: int
    error_median: float
    error_90: float
    truth_fsc: float


@dataclass(frozen=True)
class Case:
    """What to refine and how; `crop` in px, or None for the program's own."""

    domain: str
    iterations: int
    prior: bool
    dilation: float
    padding: float
    crop: int | None


def one_refinement(folder: Path, case: Case, *, compiled: bool) -> Outcome:
    """Refine a domain of a simulated folder, in this process."""
    torch.set_num_threads(THREADS[compiled])
    particles, truth = read_particles(folder / "particles.star"), load_truth(folder)
    pixel_size = particles.pixel_size
    start = reconstruct_half_maps(particles, particles.rotations, particles.shifts, device=CPU)
    density = read_map(truth.domains[case.domain].density).data
    base = gaussian_filter(density, sigma=4.0, pixel_size=pixel_size)
    threshold = threshold_of(base, 0.15, unit="fraction")
    mask, evaluation_mask = (
        soft_mask(
            base, threshold=threshold, dilation_radius_px=dilation / pixel_size,
            soft_padding_width_px=padding / pixel_size,
        )
        for dilation, padding in ((case.dilation, case.padding), (0.0, 10.0))
    )  # fmt: skip
    settings = RefinementSettings(
        rotation_prior=7.0 if case.prior else None, shift_prior=3.5 if case.prior else None,
        max_iterations=case.iterations, compile=compiled,
    )  # fmt: skip
    fulcrum = load_ribosome().hinges[case.domain]
    if case.crop is not None:
        refinement.crop_size_for = lambda *_, **__: case.crop
    if compiled:
        few = particles.take(torch.arange(WARM))
        refine(few, start, mask, fulcrum=fulcrum, settings=settings, device=CPU)
    done, prepared = 0, 0.0

    def advance(count: int) -> None:
        nonlocal done, prepared
        done += count
        if done == len(particles):
            prepared = time.process_time()

    wall, cpu = time.monotonic(), time.process_time()
    result = refine(
        particles, start, mask, fulcrum=fulcrum, settings=settings, device=CPU, advance=advance
    )  # fmt: skip
    wall_end, cpu_end = time.monotonic(), time.process_time()
    true = truth.domains[case.domain].poses
    origin = centre_of_mass(mask).double() * pixel_size
    frame = align_frames(result.rotations, result.shifts, true.rotations, true.shifts, point=origin)
    error, _ = pose_errors(
        result.rotations, result.shifts, true.rotations, true.shifts, frame=frame, point=origin
    )
    maps = reconstruct_half_maps(particles, result.rotations, result.shifts, device=CPU)
    moved = truth_in_frame(
        truth.domains[case.domain].shape, frame, box_size=particles.box_size, pixel_size=pixel_size
    ).float()
    curve = fsc((maps.half_a + maps.half_b) * evaluation_mask, moved * evaluation_mask)
    first, last = band_shells(LOWEST, FINEST, box_size=particles.box_size, pixel_size=pixel_size)
    return Outcome(
        wall_end - wall, cpu_end - cpu, prepared - cpu, result.crop_size,
        float(error.median()), float(error.quantile(0.9)),
        fsc_area(curve, first_shell=first, last_shell=last),
    )  # fmt: skip


def in_own_process(folder: Path, case: Case, *, compiled: bool) -> Outcome:
    """The same in a fresh process."""
    request = {"folder": str(folder), "case": asdict(case), "compiled": compiled}
    command = [sys.executable, __file__, "--child", json.dumps(request)]
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS[compiled])}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return Outcome(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--particles", type=int, default=2000)
    parser.add_argument("--box-size", type=int, default=96)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--snr", type=float, default=0.2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--domain", choices=DOMAINS, default="head")
    parser.add_argument("--mask", type=float, nargs=2, default=(0.0, 10.0), metavar=("DILATION", "PADDING"))
    parser.add_argument("--no-prior", action="store_true")
    parser.add_argument("--crop", type=int, nargs="+", help="px, in place of the program's own")
    parser.add_argument("--only", choices=("eager", "compiled"), help="run only one of the two")
    parser.add_argument("--folder", type=Path, help="keep the simulated particles here and use them again")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        request = json.loads(arguments.child)
        found = one_refinement(Path(request["folder"]), Case(**request["case"]), compiled=request["compiled"])
        print(json.dumps(asdict(found)))
        return
    modes = [mode == "compiled" for mode in ("eager", "compiled") if arguments.only in (None, mode)]
    outcomes: dict[bool, list[Outcome]] = {mode: [] for mode in modes}
    with tempfile.TemporaryDirectory() as scratch:
        home = arguments.folder or Path(scratch)
        print(
            f"{'':24s} {'wall s':>8s} {'CPU s':>8s} {'preparing':>10s} {'crop px':>8s} "
            f"{'median °':>9s} {'90 % °':>8s} {'truth FSC':>10s}"
        )
        for seed in arguments.seeds:
            folder = home / f"{arguments.particles}_{arguments.box_size}_{arguments.snr}_{seed}"
            if not (folder / "particles.star").exists():
                settings = SimulationSettings(
                    particles=arguments.particles, box_size=arguments.box_size,
                    pixel_size=WIDTH / arguments.box_size, snr=arguments.snr, seed=seed,
                )  # fmt: skip
                simulate(settings, folder, device=CPU)
            for compiled, crop in itertools.product(modes, arguments.crop or [None]):
                case = Case(
                    arguments.domain, arguments.iterations, not arguments.no_prior, *arguments.mask, crop
                )
                found = in_own_process(folder, case, compiled=compiled)
                outcomes[compiled].append(found)
                label = f"seed {seed}, " + ("compiled, 1 thread" if compiled else "eager, 2 threads")
                print(
                    f"{label:24s} {found.wall:8.2f} {found.cpu:8.2f} {found.preparation_cpu:10.2f} "
                    f"{found.crop:8d} {found.error_median:9.2f} {found.error_90:8.2f} "
                    f"{found.truth_fsc:10.4f}",
                    flush=True,
                )
    figures: dict[str, object] = {"particles": arguments.particles, "iterations": arguments.iterations}
    if False in outcomes:
        figures["eager_wall_s"] = round(statistics.median(one.wall for one in outcomes[False]), 2)
    if True in outcomes:
        figures["compiled_cpu_s"] = round(statistics.median(one.cpu for one in outcomes[True]), 2)
    figures["runs"] = [{"compiled": mode, **asdict(one)} for mode in modes for one in outcomes[mode]]
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
