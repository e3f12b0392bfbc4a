"""How the cost of a local refinement grows with particles and box, and its peak memory with particles.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py --particles 500 1000 2000 4000 --memory-particles 2000 8000

Simulates the embedded ribosome (box of 336 Å) and refines its head for two iterations under a mask made from
the true density, so that every run crops alike. Each refinement runs in a process of its own, one after the
other. CPU seconds are those of `refine` alone, preparation of the images included.

* particles: `particles_exponent` is the fitted power of their number; a line through the same figures gives
  what a refinement costs whatever their number (transforms, references, curves) and what each adds.
* box: the same complex at half the pixel size, poses searched to the same resolution in both, the images
  cropped to the same length in Å. `box_ratio` compares whole refinements, `box_ratio_per_particle` what each
  further particle adds.
* memory: the kernel's own high-water mark (VmHWM). It counts pages of memory-mapped files, which the kernel
  may drop at will, so the peak of anonymous memory alone is given besides. With a small memory budget the
  prepared images live in such a file.

The last line is one JSON object: `particles_exponent`, `box_ratio`, `memory_ratio` and the figures besides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cryosweep.fourier import gaussian_filter
from cryosweep.io import read_map, read_particles
from cryosweep.mask import soft_mask, threshold_of
from cryosweep.reconstruction import reconstruct_half_maps
from cryosweep.refinement import RefinementSettings, refine
from cryosweep.simulate import SimulationSettings, load_ribosome, load_truth, simulate

CPU = torch.device("cpu")
WIDTH = 336.0  # Å of the box
ITERATIONS = 2
BAND = 12.0  # Å: both boxes search to it
FIRST_SNR, FIRST_BOX = 0.2, 64
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Cost:
    """One refinement: CPU seconds, of them preparation; px of the crop; peak memory in MiB."""

    seconds: float
    preparation: float
    crop: int
    peak: float
    peak_anonymous: float


def memory_now(field: str) -> float:
    """MiB of a field of this process's status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"/proc/self/status has no {field}; memory is measured on Linux only.")


def watch_anonymous(stop: threading.Event, peak: list[float]) -> None:
    """Keep the largest anonymous memory seen, looking every 10 ms."""
    while not stop.wait(0.01):
        peak[0] = max(peak[0], memory_now("RssAnon"))


def one_refinement(folder: Path, *, particles: int, memory_budget: float, watched: bool) -> Cost:
    """Refine the head of the first particles of a simulated folder, in this process."""
    torch.set_num_threads(1)
    everything, truth = read_particles(folder / "particles.star"), load_truth(folder)
    chosen = everything.take(torch.arange(particles))
    pixel_size = chosen.pixel_size
    start = reconstruct_half_maps(chosen, chosen.rotations, chosen.shifts, device=CPU)
    base = gaussian_filter(read_map(truth.domains["head"].density).data, sigma=4.0, pixel_size=pixel_size)
    mask = soft_mask(
        base, threshold=threshold_of(base, 0.15, unit="fraction"), dilation_radius_px=7 / pixel_size,
        soft_padding_width_px=16 / pixel_size,
    )  # fmt: skip
    settings = RefinementSettings(max_iterations=ITERATIONS, max_resolution=BAND)
    done, prepared = 0, 0.0

    def advance(count: int) -> None:
        nonlocal done, prepared
        done += count
        if done == particles:
            prepared = time.process_time()

    peak = [0.0]
    stop = threading.Event()
    watcher = threading.Thread(target=watch_anonymous, args=(stop, peak))
    if watched:
        watcher.start()
    began = time.process_time()
    result = refine(
        chosen, start, mask, fulcrum=load_ribosome().hinges["head"], settings=settings, device=CPU,
        memory_budget=memory_budget, advance=advance,
    )  # fmt: skip
    seconds = time.process_time() - began
    if watched:
        stop.set()
        watcher.join()
    return Cost(seconds, prepared - began, result.crop_size, memory_now("VmHWM"), peak[0])


def in_own_process(folder: Path, *, particles: int, memory_budget: float, watched: bool = False) -> Cost:
    """The same in a fresh process."""
    request = {
        "folder": str(folder), "particles": particles, "memory_budget": memory_budget, "watched": watched
    }  # fmt: skip
    command = [sys.executable, __file__, "--child", json.dumps(request)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def simulated(folder: Path, *, particles: int, box_size: int, seed: int) -> Path:
    """Simulate into a folder of its own; noise per unit area is the same whatever the pixel size."""
    settings = SimulationSettings(
        particles=particles, box_size=box_size, pixel_size=WIDTH / box_size,
        snr=FIRST_SNR * (FIRST_BOX / box_size) ** 2, seed=seed,
    )  # fmt: skip
    simulate(settings, folder, device=CPU)
    return folder


def line(label: str, cost: Cost, particles: int) -> None:
    """A row of the table."""
    rate = ITERATIONS * particles / (cost.seconds - cost.preparation)
    anonymous = f"{cost.peak_anonymous:10.0f}" if cost.peak_anonymous else ""
    print(
        f"{label:30s} {cost.seconds:8.2f} {cost.preparation:8.2f} {rate:12.0f} {cost.crop:8d} "
        f"{cost.peak:10.0f} {anonymous}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example: OMP_NUM_THREADS=1 python benchmarks/scaling.py --particles 500 1000 2000",
    )
    parser.add_argument("--particles", type=int, nargs="+", default=[500, 1000, 2000])
    parser.add_argument("--box-sizes", type=int, nargs=2, default=[64, 128], help="px, both of 336 Å")
    parser.add_argument("--box-particles", type=int, nargs=2, default=[250, 500])
    parser.add_argument("--memory-particles", type=int, nargs=2, default=[1000, 4000])
    parser.add_argument("--memory-budget", type=float, default=16.0, help="MiB, in the memory measurement")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        request = json.loads(arguments.child)
        cost = one_refinement(Path(request.pop("folder")), **request)
        print(json.dumps(vars(cost)))
        return

    figures: dict[str, list[float]] = {}
    unlimited = 2.0**60
    print(
        f"{'':30s} {'CPU s':>8s} {'prepare':>8s} {'part.-it./s':>12s} {'crop px':>8s} {'MiB':>10s} "
        f"{'anonymous':>10s}"
    )
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            most = max(*arguments.particles, *arguments.memory_particles, *arguments.box_particles)
            small, large = arguments.box_sizes
            folder = simulated(Path(scratch) / "particles", particles=most, box_size=small, seed=seed)
            costs: list[float] = []
            for count in arguments.particles:
                cost = in_own_process(folder, particles=count, memory_budget=unlimited)
                line(f"seed {seed}: {count} particles", cost, count)
                costs.append(cost.seconds)
            slope = np.polyfit(np.log(arguments.particles), np.log(costs), 1)[0]
            each, fixed = np.polyfit(arguments.particles, costs, 1)
            figures.setdefault("particles_exponent", []).append(float(slope))
            figures.setdefault("fixed_seconds", []).append(float(fixed))
            figures.setdefault("seconds_per_1000", []).append(1000 * float(each))

            few, many = arguments.box_particles
            boxes = [folder, simulated(Path(scratch) / "large", particles=many, box_size=large, seed=seed)]
            whole: list[float] = []
            added: list[float] = []
            for size, place in zip(arguments.box_sizes, boxes, strict=True):
                pair = [in_own_process(place, particles=n, memory_budget=unlimited) for n in (few, many)]
                for n, cost in zip((few, many), pair, strict=True):
                    line(f"seed {seed}: box {size}, {n} particles", cost, n)
                whole.append(pair[1].seconds)
                added.append(pair[1].seconds - pair[0].seconds)
            figures.setdefault("box_ratio", []).append(whole[1] / whole[0])
            figures.setdefault("box_ratio_per_particle", []).append(added[1] / added[0])

            by_count: list[Cost] = []
            for count in arguments.memory_particles:
                budget = arguments.memory_budget * MEBIBYTE
                cost = in_own_process(folder, particles=count, memory_budget=budget, watched=True)
                line(f"seed {seed}: {count} within {arguments.memory_budget:g} MiB", cost, count)
                by_count.append(cost)
            less, more = by_count
            figures.setdefault("memory_ratio", []).append(more.peak / less.peak)
            figures.setdefault("memory_ratio_anonymous", []).append(more.peak_anonymous / less.peak_anonymous)

    for name, values in figures.items():
        print(f"{name:30s} median {statistics.median(values):7.3f}, {min(values):.3f} to {max(values):.3f}")
    print(json.dumps({name: round(statistics.median(values), 4) for name, values in figures.items()}))


if __name__ == "__main__":
    main()
