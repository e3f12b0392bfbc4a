"""What one whole local refinement of the demo's kind costs and how good it is, eagerly and compiled.

    python benchmarks/whole.py --particles 2000 --seeds 0 1 2

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

from cryosweep.fourier import gaussian_filter
from cryosweep.io import read_map, read_particles
from cryosweep.mask import centre_of_mass, soft_mask, threshold_of
from cryosweep.reconstruction import reconstruct_half_maps
from cryosweep.refinement import RefinementSettings, refine
from cryosweep.simulate import (
    SimulationSettings,
    align_frames,
    load_ribosome,
    load_truth,
    pose_errors,
    simulate,
)

CPU = torch.device("cpu")
WIDTH = 336.0  # Å of the box
WARM = 100  # particles of the refinement that warms the compiler
THREADS = {False: 2, True: 1}


@dataclass(frozen=True)
class Outcome:
    """One refinement: seconds, crop, median and 90th percentile of the rotation error in degrees."""

    wall: float
    cpu: float
    preparation_cpu: float
    crop: int
    error_median: float
    error_90: float


def one_refinement(folder: Path, *, compiled: bool, iterations: int, extents: tuple[float, float]) -> Outcome:
    """Refine the head of a simulated folder, in this process."""
    torch.set_num_threads(THREADS[compiled])
    particles, truth = read_particles(folder / "particles.star"), load_truth(folder)
    pixel_size = particles.pixel_size
    start = reconstruct_half_maps(particles, particles.rotations, particles.shifts, device=CPU)
    base = gaussian_filter(read_map(truth.domains["head"].density).data, sigma=4.0, pixel_size=pixel_size)
    mask = soft_mask(
        base, threshold=threshold_of(base, 0.15, unit="fraction"), dilation_radius_px=0.0,
        soft_padding_width_px=10 / pixel_size,
    )  # fmt: skip
    settings = RefinementSettings(
        rotation_extent=extents[0], shift_extent=extents[1], rotation_prior=7.0, shift_prior=3.5,
        max_iterations=iterations, compile=compiled,
    )  # fmt: skip
    fulcrum = load_ribosome().hinges["head"]
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
    true = truth.domains["head"].poses
    origin = centre_of_mass(mask).double() * pixel_size
    frame = align_frames(result.rotations, result.shifts, true.rotations, true.shifts, point=origin)
    error, _ = pose_errors(
        result.rotations, result.shifts, true.rotations, true.shifts, frame=frame, point=origin
    )
    return Outcome(
        wall_end - wall, cpu_end - cpu, prepared - cpu, result.crop_size,
        float(error.median()), float(error.quantile(0.9)),
    )  # fmt: skip


def in_own_process(folder: Path, *, compiled: bool, iterations: int, extents: tuple[float, float]) -> Outcome:
    """The same in a fresh process."""
    request = {
        "folder": str(folder), "compiled": compiled, "iterations": iterations, "extents": extents
    }  # fmt: skip
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
    parser.add_argument("--extents", type=float, nargs=2, default=(20.0, 10.0), metavar=("DEGREES", "Å"))
    parser.add_argument("--only", choices=("eager", "compiled"), help="run only one of the two")
    parser.add_argument("--folder", type=Path, help="keep the simulated particles here and use them again")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        request = json.loads(arguments.child)
        request["folder"] = Path(request["folder"])
        print(json.dumps(asdict(one_refinement(**request))))
        return
    modes = [mode == "compiled" for mode in ("eager", "compiled") if arguments.only in (None, mode)]
    outcomes: dict[bool, list[Outcome]] = {mode: [] for mode in modes}
    with tempfile.TemporaryDirectory() as scratch:
        home = arguments.folder or Path(scratch)
        print(
            f"{'':24s} {'wall s':>8s} {'CPU s':>8s} {'preparing':>10s} {'crop px':>8s} "
            f"{'median °':>9s} {'90 % °':>8s}"
        )
        for seed in arguments.seeds:
            folder = home / f"{arguments.particles}_{arguments.box_size}_{arguments.snr}_{seed}"
            if not (folder / "particles.star").exists():
                settings = SimulationSettings(
                    particles=arguments.particles, box_size=arguments.box_size,
                    pixel_size=WIDTH / arguments.box_size, snr=arguments.snr, seed=seed,
                )  # fmt: skip
                simulate(settings, folder, device=CPU)
            for compiled in modes:
                found = in_own_process(
                    folder, compiled=compiled, iterations=arguments.iterations,
                    extents=tuple(arguments.extents),
                )  # fmt: skip
                outcomes[compiled].append(found)
                label = f"seed {seed}, " + ("compiled, 1 thread" if compiled else "eager, 2 threads")
                print(
                    f"{label:24s} {found.wall:8.2f} {found.cpu:8.2f} {found.preparation_cpu:10.2f} "
                    f"{found.crop:8d} {found.error_median:9.2f} {found.error_90:8.2f}", flush=True
                )  # fmt: skip
    figures: dict[str, object] = {"particles": arguments.particles, "iterations": arguments.iterations}
    if False in outcomes:
        figures["eager_wall_s"] = round(statistics.median(one.wall for one in outcomes[False]), 2)
    if True in outcomes:
        figures["compiled_cpu_s"] = round(statistics.median(one.cpu for one in outcomes[True]), 2)
    figures["runs"] = [{"compiled": mode, **asdict(one)} for mode in modes for one in outcomes[mode]]
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
