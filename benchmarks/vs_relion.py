"""Local refinement of the head beside RELION's, on the same subtracted images from the same start.

    OMP_NUM_THREADS=1 python benchmarks/vs_relion.py --particles 1000 --snr 0.2 --seeds 0 1 2

Simulates the embedded ribosome; the body, foot and arm are subtracted, and the images re-centred on the head
and cropped, by RELION's own programs. Both refinements then get that one stack, the same poses, half-sets,
mask and starting map. Poses are scored after the one rigid change of frame a local refinement is free to
make; both maps are made by cryosweep's reconstruction from each program's poses, under one evaluation mask.

RELION's CPU seconds are those of its two working ranks: the leading rank only waits, busily, and is left
out. The last line is one JSON object. Needs RELION 3.1 and mpirun.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import mrcfile
import torch
from torch import Tensor

from cryosweep.fourier import cut_cube, gaussian_filter
from cryosweep.io import read_particles, write_map
from cryosweep.io.particles import Particles
from cryosweep.mask import centre_of_mass, mask_radius_px, soft_mask, threshold_of
from cryosweep.reconstruction import HalfMaps, reconstruct_half_maps
from cryosweep.refinement import RefinementSettings, refine
from cryosweep.resolution import band_shells, fsc, fsc_area
from cryosweep.simulate import (
    DOMAINS,
    Domain,
    FrameChange,
    Poses,
    SimulationSettings,
    align_frames,
    load_ribosome,
    load_truth,
    pose_errors,
    simulate,
    truth_in_frame,
)

CPU = torch.device("cpu")
WIDTH = 336.0  # Å of the whole box
CROPPED = 0.75  # of the box: the head, and room for it to move
LOWEST = 40.0  # Å, where the band of the FSC with the truth begins
# each rank leaves its own CPU seconds behind: `times` of its shell, second line: children, user and system
COUNTED = '"$@"; code=$?; times > "$CPU_LOG.$OMPI_COMM_WORLD_RANK"; exit $code'
PROGRAMS = ("relion_refine_mpi", "relion_particle_subtract_mpi", "mpirun")
SUBTRACTED = "subtracted/particles_subtracted.star"
STRAY_DEGREES, STRAY_ANGSTROM = 20.0, 10.0


@dataclass(frozen=True)
class Task:
    """What both programs are given: subtracted particles, and map, mask and truth in their frame."""

    folder: Path
    particles: Particles
    start: HalfMaps
    mask: Tensor
    fulcrum: Tensor
    domain: Domain
    truth: Poses
    evaluation_mask: Tensor


@dataclass(frozen=True)
class Outcome:
    """Poses that a program found, what it cost, and how it was called."""

    rotations: Tensor
    shifts: Tensor
    cpu_seconds: float
    command: str


@dataclass(frozen=True)
class Row:
    """A line of the table: degrees, Å, particles gone astray, mean FSC with the truth, CPU seconds."""

    rotation: float
    rotation_p90: float
    shift: float
    strays: int
    truth_fsc: float
    cpu_seconds: float


def run_ranks(command: list[str], folder: Path, log: str) -> tuple[str, float]:
    """Run an MPI program on three ranks in `folder`: its command line and the CPU s of two workers."""
    launcher = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CPU_LOG": f"{log}.cpu"}
    with (folder / f"{log}.log").open("w") as output:
        done = subprocess.run(
            [*launcher, "sh", "-c", COUNTED, "rank", *command],
            cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    if done.returncode != 0:
        tail = "\n".join((folder / f"{log}.log").read_text().splitlines()[-15:])
        raise SystemExit(f"{shlex.join(command)}\nended with {done.returncode}:\n{tail}")
    seconds = sum(rank_seconds(folder / f"{log}.cpu.{rank}") for rank in (1, 2))
    return shlex.join([*launcher, *command]), seconds


def rank_seconds(path: Path) -> float:
    """User and system seconds of what a rank's shell ran."""
    children = path.read_text().splitlines()[1]
    return sum(
        60 * float(minutes) + float(rest) for minutes, rest in re.findall(r"(\d+)m([\d.]+)s", children)
    )


def prepare(folder: Path, settings: SimulationSettings) -> Task:
    """Simulate, subtract everything but the head with RELION, re-centre on the head and crop."""
    box, pixel_size = settings.box_size, settings.pixel_size
    simulated = simulate(settings, folder, device=CPU)
    with mrcfile.mmap(folder / "particles.mrcs", mode="r+") as stack:
        stack.data[:] *= simulated.noise_variance**-0.5  # RELION wants noise of unit variance
    whole, truth = read_particles(simulated.particles), load_truth(folder)
    consensus = reconstruct_half_maps(whole, whole.rotations, whole.shifts, device=CPU)
    mean = 0.5 * (consensus.half_a + consensus.half_b)
    base = gaussian_filter(mean, sigma=4.0, pixel_size=pixel_size)
    mask = mask_of(base * (truth.labels == 1 + DOMAINS.index("head")), pixel_size, padding=16.0)
    write_map(folder / "consensus.mrc", mean, pixel_size=pixel_size)
    write_map(folder / "mask.mrc", mask, pixel_size=pixel_size)
    # one iteration without alignment: only to have the model files that subtraction starts from
    (folder / "consensus").mkdir()
    run_ranks(
        ["relion_refine_mpi", "--i", "particles.star", "--ref", "consensus.mrc", "--o", "consensus/run",
         "--auto_refine", "--split_random_halves", "--auto_iter_max", "1", "--skip_align", "--ctf", "--pad",
         "2", "--ini_high", "12", "--particle_diameter", f"{0.95 * WIDTH:g}", "--flatten_solvent",
         "--zero_mask", "--healpix_order", "4", "--sigma_ang", "3"],
        folder, "consensus_refine",
    )  # fmt: skip
    found = [round(float(value)) for value in centre_of_mass(mask)]
    centre = (found[0], found[1], found[2])
    cropped = 2 * round(CROPPED * box / 2)
    run_ranks(
        ["relion_particle_subtract_mpi", "--i", "consensus/run_it001_optimiser.star", "--mask", "mask.mrc",
         "--o", "subtracted", "--center_x", str(centre[0]), "--center_y", str(centre[1]),
         "--center_z", str(centre[2]), "--new_box", str(cropped)],
        folder, "subtract",
    )  # fmt: skip
    particles = in_order(
        read_particles(folder / SUBTRACTED, image_folder=folder), "rlnImageOriginalName", whole
    )
    shift_of_frame = torch.tensor(centre, dtype=torch.float64) * pixel_size
    # the image was rolled by the difference between where the head's centre landed and where it lands now
    rolled = (whole.rotations @ shift_of_frame)[:, :2] + whole.shifts - particles.shifts
    head = truth.domains["head"].poses
    true_shifts = (head.rotations @ shift_of_frame)[:, :2] + head.shifts - rolled
    structure = load_ribosome()
    domain = structure.domains["head"]
    domain = replace(domain, coordinates=domain.coordinates - shift_of_frame)
    density = truth_in_frame(domain, FrameChange.none(), box_size=cropped, pixel_size=pixel_size)
    return Task(
        folder=folder,
        particles=particles,
        start=reconstruct_half_maps(particles, particles.rotations, particles.shifts, device=CPU),
        mask=cut_cube(mask, centre, cropped),
        fulcrum=structure.hinges["head"] - shift_of_frame,
        domain=domain,
        truth=Poses(head.rotations, true_shifts),
        evaluation_mask=mask_of(
            gaussian_filter(density.float(), sigma=4.0, pixel_size=pixel_size), pixel_size, padding=24.0
        ),
    )


def mask_of(base: Tensor, pixel_size: float, *, padding: float) -> Tensor:
    """Mask 7 Å beyond 15 % of the peak, with a soft edge of `padding` Å."""
    return soft_mask(
        base, threshold=threshold_of(base, 0.15, unit="fraction"), dilation_radius_px=7 / pixel_size,
        soft_padding_width_px=padding / pixel_size,
    )  # fmt: skip


def in_order(particles: Particles, column: str, like: Particles) -> Particles:
    """`particles` in the order in which `like` names their images; `column` holds those names here."""
    place = {name: row for row, name in enumerate(particles.table[column])}
    return particles.take(torch.tensor([place[name] for name in like.table["rlnImageName"]]))


def relion(task: Task, arguments: argparse.Namespace) -> Outcome:
    """RELION's local auto-refinement of the two half-sets."""
    folder, pixel_size = task.folder, task.particles.pixel_size
    reference = 0.5 * (task.start.half_a + task.start.half_b) * task.mask
    write_map(folder / "start.mrc", reference, pixel_size=pixel_size)
    write_map(folder / "head_mask.mrc", task.mask, pixel_size=pixel_size)
    radius = mask_radius_px(task.mask, centre_of_mass(task.mask)) * pixel_size
    diameter = min(2 * radius + 20.0, 0.98 * task.particles.box_size * pixel_size)
    (folder / "refined").mkdir(exist_ok=True)
    command, seconds = run_ranks(
        ["relion_refine_mpi", "--i", SUBTRACTED, "--ref", "start.mrc", "--o", "refined/run",
         "--auto_refine", "--split_random_halves", "--auto_iter_max", str(arguments.iterations), "--ctf",
         "--pad", "2", "--ini_high", f"{arguments.initial_lowpass:g}", "--solvent_mask", "head_mask.mrc",
         "--flatten_solvent", "--zero_mask", "--solvent_correct_fsc", "--particle_diameter",
         f"{diameter:.0f}", "--healpix_order", "4", "--auto_local_healpix_order", "4",
         "--sigma_ang", f"{arguments.relion_sigma:g}",
         "--offset_range", "3", "--offset_step", "1", "--oversampling", "1"],
        folder, "refine",
    )  # fmt: skip
    last = sorted((folder / "refined").glob("run_it*_data.star"))[-1]
    refined = in_order(read_particles(last, image_folder=folder), "rlnImageName", task.particles)
    return Outcome(refined.rotations, refined.shifts, seconds, command)


def cryosweep(task: Task, arguments: argparse.Namespace, *, prior: bool) -> Outcome:
    """Our refinement, with or without the prior about the starting pose; compiled before the clock starts."""
    settings = RefinementSettings(
        max_iterations=arguments.iterations,
        initial_lowpass=arguments.initial_lowpass,
        rotation_prior=arguments.rotation_prior if prior else None,
        shift_prior=arguments.shift_prior if prior else None,
        compile=arguments.compile,
    )
    if arguments.compile:
        refine(
            task.particles.take(torch.arange(64)), task.start, task.mask, fulcrum=task.fulcrum,
            settings=replace(settings, max_iterations=1), device=CPU,
        )  # fmt: skip
    began = time.process_time()
    result = refine(
        task.particles, task.start, task.mask, fulcrum=task.fulcrum, settings=settings, device=CPU
    )
    seconds = time.process_time() - began
    return Outcome(result.rotations, result.shifts, seconds, f"refine(particles, start, mask, {settings})")


def score(task: Task, rotations: Tensor, shifts: Tensor, cpu_seconds: float = 0.0) -> Row:
    """Errors and map of a set of poses, all maps by one reconstruction from the same images."""
    truth, point = task.truth, task.domain.centre_of_mass
    frame = align_frames(rotations, shifts, truth.rotations, truth.shifts, point=point)
    turned, moved = pose_errors(rotations, shifts, truth.rotations, truth.shifts, frame=frame, point=point)
    maps = reconstruct_half_maps(task.particles, rotations, shifts, device=CPU)
    box, pixel_size = task.particles.box_size, task.particles.pixel_size
    density = truth_in_frame(task.domain, frame, box_size=box, pixel_size=pixel_size).float()
    curve = fsc((maps.half_a + maps.half_b) * task.evaluation_mask, density * task.evaluation_mask)
    first, last = band_shells(LOWEST, 2 * pixel_size / 0.95, box_size=box, pixel_size=pixel_size)
    return Row(
        rotation=float(turned.median()),
        rotation_p90=float(turned.quantile(0.9)),
        shift=float(moved.median()),
        strays=int(((turned > STRAY_DEGREES) | (moved > STRAY_ANGSTROM)).sum()),
        truth_fsc=fsc_area(curve, first_shell=first, last_shell=last),
        cpu_seconds=cpu_seconds,
    )


def one_seed(seed: int, arguments: argparse.Namespace) -> dict[str, Row]:
    """All rows of the table for one simulated set."""
    settings = SimulationSettings(
        particles=arguments.particles, box_size=arguments.box_size, pixel_size=WIDTH / arguments.box_size,
        snr=arguments.snr, seed=seed,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        task = prepare(Path(scratch), settings)
        outcomes = {
            "RELION": relion(task, arguments),
            "cryosweep": cryosweep(task, arguments, prior=True),
            "cryosweep, no prior": cryosweep(task, arguments, prior=False),
        }
        print(f"seed {seed}: {len(task.particles)} particles, box {task.particles.box_size} after cropping")
        for name, outcome in outcomes.items():
            print(f"  {name}: {outcome.command}")
        rows = {"start": score(task, task.particles.rotations, task.particles.shifts)}
        for name, outcome in outcomes.items():
            rows[name] = score(task, outcome.rotations, outcome.shifts, outcome.cpu_seconds)
        rows["true poses"] = score(task, task.truth.rotations, task.truth.shifts)
    print(
        f"  {'':22s} {'rot. med':>9s} {'p90':>7s} {'shift med':>9s} {'strays':>7s} {'FSC':>7s} {'CPU s':>8s}"
    )
    for name, row in rows.items():
        print(
            f"  {name:22s} {row.rotation:8.2f}° {row.rotation_p90:6.2f}° {row.shift:7.2f} Å {row.strays:7d} "
            f"{row.truth_fsc:7.3f} {row.cpu_seconds:8.1f}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example: OMP_NUM_THREADS=1 python benchmarks/vs_relion.py --particles 1000 --seeds 0 1 2",
    )
    parser.add_argument("--particles", type=int, default=1000)
    parser.add_argument("--box-size", type=int, default=64, help="px of the whole box of 336 Å")
    parser.add_argument("--snr", type=float, default=0.2)
    parser.add_argument("--iterations", type=int, default=5, help="limit for both programs")
    parser.add_argument("--initial-lowpass", type=float, default=12.0, help="Å, for both")
    parser.add_argument("--relion-sigma", type=float, default=7.0, help="degrees, RELION's --sigma_ang")
    parser.add_argument("--rotation-prior", type=float, default=7.0, help="degrees, ours")
    parser.add_argument("--shift-prior", type=float, default=3.5, help="Å, ours")
    parser.add_argument("--compile", action="store_true", help="compile our inner loops")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise SystemExit(f"{', '.join(missing)} not found; install RELION 3.1 and Open MPI.")
    torch.set_num_threads(1)

    runs = [one_seed(seed, arguments) for seed in arguments.seeds]
    figures: dict[str, float] = {"seeds": len(runs)}
    for ours, suffix in (("cryosweep", ""), ("cryosweep, no prior", "_no_prior")):
        compared = {
            "cpu_ratio": [run["RELION"].cpu_seconds / run[ours].cpu_seconds for run in runs],
            "pose_error_ratio": [run[ours].rotation / run["RELION"].rotation for run in runs],
            "truth_fsc_difference": [run[ours].truth_fsc - run["RELION"].truth_fsc for run in runs],
            "strays": [run[ours].strays for run in runs],
        }
        for name, values in compared.items():
            median = statistics.median(values)
            print(f"{ours + ': ' + name:44s} median {median:8.3f}, {min(values):.3f} to {max(values):.3f}")
            figures[name + suffix] = round(median, 4)
    figures["strays_relion"] = statistics.median(run["RELION"].strays for run in runs)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
