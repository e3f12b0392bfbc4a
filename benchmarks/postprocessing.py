"""CPU seconds of sharpening and local resolution beside `relion_postprocess`, on one thread.

`python benchmarks/postprocessing.py [--box-size 96]`: two noisy halves of a random density in a box of 336 Å.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from cryosweep.fourier import frequency_radius, multiply_spectrum
from cryosweep.io import write_map
from cryosweep.local_resolution import filter_locally, local_resolution
from cryosweep.mask import spherical_mask
from cryosweep.reconstruction import HalfMaps
from cryosweep.resolution import five_curves
from cryosweep.sharpening import sharpen

BOX_LENGTH = 336.0
Result = TypeVar("Result")


def timed(name: str, action: Callable[[], Result]) -> Result:
    began = time.process_time()
    result = action()
    print(f"{name:<58} {time.process_time() - began:8.2f} CPU s")
    return result


def relion(name: str, folder: Path, pixel_size: float, *options: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    command = ["relion_postprocess", "--i", "a.mrc", "--i2", "b.mrc", "--angpix", str(pixel_size)]
    done = subprocess.run(
        [*command, "--o", "./out", *options], cwd=folder, check=True, capture_output=True, text=True
    )
    spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    said = [line.strip() for line in done.stdout.splitlines() if "sampling points" in line]
    print(f"{name:<58} {spent:8.2f} CPU s  {' '.join(said)}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--box-size", type=int, default=96)
    parser.add_argument("--sampling", type=float, default=25.0, help="Å between windows, half their width")
    arguments = parser.parse_args()
    box, pixel_size, sampling = arguments.box_size, BOX_LENGTH / arguments.box_size, arguments.sampling
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    radius = frequency_radius(box, dims=3, dtype=torch.float32, device="cpu") / BOX_LENGTH
    mask = spherical_mask(box, outer_px=0.38 * box, inner_px=0.3 * box)
    signal = mask * multiply_spectrum(
        torch.randn((box,) * 3, generator=generator), torch.exp(-100.0 * radius.square())
    )
    a, b = (signal + 0.5 * torch.randn((box,) * 3, generator=generator) for _ in range(2))
    print(f"box of {box} px of {pixel_size:g} Å")
    curves = timed("five curves", lambda: five_curves(a, b, mask, pixel_size=pixel_size, generator=generator))
    timed(
        "Guinier fit and sharpened map", lambda: sharpen(HalfMaps(a, b, pixel_size), mask, curves.corrected)
    )
    for step in (sampling, 0.4 * sampling):
        found = timed(
            f"local resolution, windows of {2 * sampling:g} Å, {step:g} Å apart",
            lambda step=step: local_resolution(
                a, b, mask, pixel_size=pixel_size, window_width=2 * sampling, step=step
            ),
        )
        print(f"  {found.windows} windows")
    timed("locally filtered map", lambda: filter_locally(a, found.resolution, pixel_size=pixel_size))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, volume in (("a", a), ("b", b), ("mask", mask)):
            write_map(folder / f"{file}.mrc", volume, pixel_size=pixel_size)
        relion("relion_postprocess --auto_bfac", folder, pixel_size, "--mask", "mask.mrc", "--auto_bfac")
        relion(
            f"relion_postprocess --locres --locres_sampling {sampling:g}", folder, pixel_size, "--locres",
            "--locres_sampling", str(sampling),
        )  # fmt: skip


if __name__ == "__main__":
    main()
