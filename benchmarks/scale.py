"""What a per-particle scale is worth: consensus refinements of a rigid ribosome whose contrast differs.

    python benchmarks/scale.py [--particles 600] [--seeds 0 1] [--spreads 0 0.15 0.3 0.5] [--snr 0.1]

Each set of particles is refined without and with a scale (3 iterations from 20 Å, poses off by 3 degrees and
3 Å per axis). Printed: median rotation error, mean FSC of the map with the truth and of the half-maps, both
over all shells under the consensus mask, and how well the scales are found. One thread, 5 CPU s a line.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from cryosweep.consensus import DynamicMask, refine_consensus
from cryosweep.io.particles import read_particles
from cryosweep.reconstruction import reconstruct_half_maps
from cryosweep.refinement import RefinementSettings
from cryosweep.resolution import fsc
from cryosweep.simulate import (
    CARRIER,
    DOMAINS,
    SimulationSettings,
    align_frames,
    load_ribosome,
    load_truth,
    pose_errors,
    simulate,
    truth_in_frame,
)

BOX, PIXEL = 64, 5.25
CPU = torch.device("cpu")


def compare(folder: Path, *, particles: int, seed: int, spread: float, snr: float) -> None:
    """Print a line without and one with the scale."""
    still = dict.fromkeys(CARRIER, 0.0)
    settings = SimulationSettings(
        particles=particles, box_size=BOX, pixel_size=PIXEL, snr=snr, seed=seed, scale_spread=spread,
        rotation_spread=still, shift_spread=still, pose_error_rotation=3.0, pose_error_shift=3.0,
    )  # fmt: skip
    simulate(settings, folder, device=CPU)
    images, truth, complex_ = read_particles(folder / "particles.star"), load_truth(folder), load_ribosome()
    start = reconstruct_half_maps(images, images.rotations, images.shifts, device=CPU)
    poses, point = truth.domains["body"].poses, complex_.domains["body"].centre_of_mass
    for scale in (False, True):
        began = time.process_time()
        found = refine_consensus(
            images, start, mask=DynamicMask(), device=CPU,
            settings=RefinementSettings(
                max_iterations=3, initial_lowpass=20.0, rotation_extent=10.0, shift_extent=8.0, scale=scale
            ),
        )  # fmt: skip
        seconds = time.process_time() - began
        result, maps, mask = found.refinement, found.half_maps, found.mask.double()
        given = result.rotations, result.shifts, poses.rotations, poses.shifts
        frame = align_frames(*given, point=point)
        errors, _ = pose_errors(*given, frame=frame, point=point)
        density = sum(
            truth_in_frame(complex_.domains[name], frame, box_size=BOX, pixel_size=PIXEL) for name in DOMAINS
        )
        both = (maps.half_a + maps.half_b).double()
        areas = [
            float(fsc(first * mask, second * mask)[1 : BOX // 2 - 2].mean())
            for first, second in ((both, density), (maps.half_a.double(), maps.half_b.double()))
        ]
        line = (
            f"seed {seed}, SNR {snr:g}, spread {spread:g}, {'with' if scale else 'without'} scale: rotation "
            f"{float(errors.median()):.2f}°, truth {areas[0]:.4f}, half-maps {areas[1]:.4f}, "
            f"{seconds:.1f} CPU s"
        )
        if result.scale is not None:
            known = torch.ones_like(result.scale) if truth.scale is None else truth.scale / truth.scale.mean()
            error = float((result.scale - known).square().mean().sqrt())
            line += f"; scales: SD {float(result.scale.std()):.3f}, error {error:.3f}"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--particles", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--spreads", type=float, nargs="+", default=[0.0, 0.15, 0.3, 0.5])
    parser.add_argument("--snr", type=float, nargs="+", default=[0.1])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for snr in arguments.snr:
        for spread in arguments.spreads:
            for seed in arguments.seeds:
                with tempfile.TemporaryDirectory() as scratch:
                    compare(Path(scratch), particles=arguments.particles, seed=seed, spread=spread, snr=snr)


if __name__ == "__main__":
    main()
