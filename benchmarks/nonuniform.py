"""Filters of a consensus map against the same map without noise, domain by domain.

    python benchmarks/nonuniform.py [--seeds 0,1] [--particles 1200] [--snr 0.1]

Half-maps of simulated particles at their consensus poses are filtered; the sum is compared with the
reconstruction of the same particles without noise (equal poses, motion and CTF) inside a mask of each domain:
error power after one best scale, and mean FSC from 34 to 7.8 Å.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from cryosweep.fourier import frequency_radius, gaussian_filter, multiply_spectrum
from cryosweep.io import read_particles
from cryosweep.mask import soft_mask, threshold_of
from cryosweep.reconstruction import HalfMaps, reconstruct_half_maps, weigh_shells
from cryosweep.refinement import last_common_shell
from cryosweep.regularisation import NonuniformSettings, butterworth, nonuniform
from cryosweep.resolution import fsc
from cryosweep.simulate import DOMAINS, SimulationSettings, load_truth, simulate

CPU = torch.device("cpu")
NOISELESS = 1e4
FIRST_SHELL, END_SHELL = 10, 44


def half_maps_of(folder: Path, **settings: float) -> HalfMaps:
    """Half-maps of simulated particles at their consensus poses."""
    folder.mkdir()
    simulate(SimulationSettings(**settings), folder, device=CPU)  # pyright: ignore[reportArgumentType]
    particles = read_particles(folder / "particles.star")
    return reconstruct_half_maps(particles, particles.rotations, particles.shifts, device=CPU)


def masks_of(halves: HalfMaps, labels: Tensor) -> dict[str, Tensor]:
    """A soft mask of the whole and of each domain."""
    base = gaussian_filter(0.5 * (halves.half_a + halves.half_b), sigma=4.0, pixel_size=halves.pixel_size)
    territories = {"whole": labels > 0} | {name: labels == 1 + i for i, name in enumerate(DOMAINS)}
    found: dict[str, Tensor] = {}
    for name, territory in territories.items():
        own = base * territory
        threshold = threshold_of(own, 0.15, unit="fraction")
        found[name] = soft_mask(own, threshold=threshold, dilation_radius_px=2, soft_padding_width_px=4)
    return found


def compared(volume: Tensor, clean: Tensor, masks: dict[str, Tensor]) -> str:
    """Error power / mean FSC in each mask."""
    cells: list[str] = []
    for mask in masks.values():
        x, y = volume * mask, clean * mask
        scale = (x * y).sum() / x.square().sum()
        error = float((scale * x - y).square().sum() / y.square().sum())
        cells.append(f"{error:.3f}/{float(fsc(x, y)[FIRST_SHELL:END_SHELL].mean()):.3f}")
    return " ".join(f"{cell:>12}" for cell in cells)


def main() -> None:
    """Simulate, filter, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--particles", type=int, default=1200)
    parser.add_argument("--snr", type=float, default=0.1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for seed in map(int, given.seeds.split(",")):
        with tempfile.TemporaryDirectory() as scratch:
            common = {"particles": given.particles, "seed": seed}
            noisy = half_maps_of(Path(scratch) / "noisy", snr=given.snr, **common)
            exact = half_maps_of(Path(scratch) / "exact", snr=NOISELESS, **common)
            masks = masks_of(noisy, load_truth(Path(scratch) / "noisy").labels)
        clean = exact.half_a + exact.half_b
        box, pixel_size = int(clean.shape[-1]), noisy.pixel_size
        shared = fsc(*(half * masks["whole"] for half in noisy.pair))
        finest = box * pixel_size / last_common_shell(shared)
        frequency = frequency_radius(box, dims=3, dtype=clean.dtype, device="cpu") / (box * pixel_size)
        print(f"{f'seed {seed}, GSFSC {finest:.1f} Å':<24}" + " ".join(f"{name:>12}" for name in masks))
        print(f"{'none':<24}{compared(noisy.half_a + noisy.half_b, clean, masks)}")
        wiener = sum(weigh_shells(half, shared.clamp(0.0, 1.0)) for half in noisy.pair)
        print(f"{'uniform Wiener':<24}{compared(torch.as_tensor(wiener), clean, masks)}")
        for cutoff in (finest, 1.2 * finest, 1.4 * finest):
            transfer = butterworth(frequency, cutoff, order=8)
            volume = multiply_spectrum(noisy.half_a + noisy.half_b, transfer)
            print(f"{f'uniform Butterworth {cutoff:.1f}':<24}{compared(volume, clean, masks)}")
        for window in (0.375, 0.75, 1.5, 3.0, 6.0):
            settings = NonuniformSettings(window=window)
            found = nonuniform(*noisy.pair, pixel_size=pixel_size, finest=finest, settings=settings)
            print(
                f"{f'non-uniform, {window:g} theta':<24}{compared(found.half_a + found.half_b, clean, masks)}"
            )
            if window == settings.__class__().window:
                medians = [float(found.cutoff[mask > 0.9].median()) for mask in masks.values()]
                print(f"{'  median cut-off (Å)':<24}" + " ".join(f"{each:12.1f}" for each in medians))


if __name__ == "__main__":
    main()
