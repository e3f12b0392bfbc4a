"""Slices and insertion here beside those of torch-projectors: the same numbers, and images per CPU-second.

    python benchmarks/projectors.py [--images 200] [--box-size 96]

torch-projectors makes and takes whole images in the layout of `torch.fft.rfft2`; samples are gathered from
them and scattered into them. One thread; CPU time, median of three after one warm-up. Its wheels do not load
with current PyTorch, so it has to be built, which takes a C++ compiler and four minutes:

    pip install pybind11
    pip install --no-build-isolation --no-binary torch-projectors torch-projectors
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch_projectors  # pyright: ignore[reportMissingImports]
from torch import Tensor

from cryosweep.fourier import HalfPlane, frequency_radius, half_plane
from cryosweep.geometry import random_rotations
from cryosweep.projector import (
    Reference,
    fold_friedel,
    insert,
    make_reference,
    new_accumulator,
    slices,
    slices_with_gradient,
)
from cryosweep.simulate import load_ribosome, render_domain


def on_image(plane: HalfPlane, size: int) -> HalfPlane:
    """The same samples as places of an image of another size: k counts in integers on either."""
    return HalfPlane(size, plane.k, plane.shell, plane.ends)


def half_cube(reference: Reference) -> Tensor:
    """(1, B, B, B / 2 + 1) FFTW layout of a reference's centred cube (side B + 1)."""
    size, middle = reference.side - 1, reference.side // 2
    full = (torch.fft.fftfreq(size) * size).round().long() + middle
    half = torch.arange(size // 2 + 1) + middle
    cube = reference.table.reshape(reference.side, reference.side, reference.side)
    return cube[full][:, full][:, :, half][None].contiguous()


def project(cube: Tensor, rotations: Tensor, plane: HalfPlane, pad: int) -> Tensor:
    """(b, n, n / 2 + 1) whole images by torch-projectors, whose rotations are the transposed ones."""
    size = 2 * plane.max_shell + 2
    return torch_projectors.project_3d_to_2d_forw(
        cube, rotations.mT[None].contiguous(), output_shape=(size, size), oversampling=float(pad),
        fourier_radius_cutoff=plane.max_shell + 0.5,
    )[0]  # fmt: skip


def back_project(
    values: Tensor, weights: Tensor, rotations: Tensor, plane: HalfPlane, pad: int
) -> tuple[Tensor, Tensor]:
    """Sums of values and of weights (1, B, B, B / 2 + 1) by torch-projectors, Friedel mates included."""
    small = on_image(plane, 2 * plane.max_shell + 2)
    return torch_projectors.backproject_2d_to_3d_forw(
        small.scatter(values)[None], rotations.mT[None].contiguous(),
        weights=small.scatter(weights.to(values.dtype)).real[None].contiguous(), oversampling=float(pad),
        fourier_radius_cutoff=plane.max_shell + 0.5,
    )  # fmt: skip


def images_per_second(action: Callable[[], object], count: int) -> float:
    action()
    measured: list[float] = []
    for _ in range(3):
        began = time.process_time()
        action()
        measured.append(time.process_time() - began)
    return count / statistics.median(measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--box-size", type=int, default=96)
    arguments = parser.parse_args()
    count, box = arguments.images, arguments.box_size
    head = load_ribosome().domains["head"]
    volume = render_domain(
        head.coordinates, head.weights, box_size=box, pixel_size=336.0 / box, centre=head.centre_of_mass
    )
    generator = torch.Generator().manual_seed(0)
    rotations = random_rotations(count, generator, dtype=torch.float64)

    def compare(dtype: torch.dtype, last: int | None) -> None:
        reference = make_reference(volume.to(dtype), max_shell=last)
        plane = half_plane(box, max_shell=last, dtype=dtype, device="cpu")
        turned, cube = rotations.to(dtype), half_cube(reference)
        ours = slices(reference, turned, plane)
        small = on_image(plane, 2 * plane.max_shell + 2)
        theirs = small.gather(project(cube, turned, plane, reference.pad))
        print(f"{dtype}, {plane.max_shell} shells, {plane.k.shape[0]} samples an image")
        print(f"  slices: relative difference {float((ours - theirs).norm() / ours.norm()):.1e}")
        weights = torch.rand(ours.shape, generator=generator).to(dtype)
        sums = new_accumulator(box, max_shell=plane.max_shell, dtype=dtype, device=torch.device("cpu"))
        insert(sums, ours, weights, turned, plane)
        data, _ = back_project(ours, weights, turned, plane, reference.pad)
        numerator, _ = fold_friedel(sums)
        own = half_cube(replace(reference, table=numerator.reshape(-1)))[0]
        inside = plane.max_shell * reference.pad - 1  # at the rim their cube holds no corners of cells
        within = frequency_radius(reference.side - 1, dims=3, dtype=dtype, device="cpu") < inside
        error = (own - data[0]).abs() * within
        print(f"  insertion: relative difference {float(error.norm() / (own * within).norm()):.1e}")
        if dtype is torch.float32:
            for name, action in (
                ("slices here", lambda: slices(reference, turned, plane)),
                ("theirs, whole images", lambda: project(cube, turned, plane, reference.pad)),
                ("theirs, gathered", lambda: small.gather(project(cube, turned, plane, reference.pad))),
                ("insertion here", lambda: insert(sums, ours, weights, turned, plane)),
                ("theirs", lambda: back_project(ours, weights, turned, plane, reference.pad)),
                ("slices with gradient here", lambda: slices_with_gradient(reference, turned, plane)),
            ):
                print(f"  {name}: {images_per_second(action, count):.0f} images per CPU-second")

    torch.set_num_threads(1)
    for dtype, last in ((torch.float64, None), (torch.float32, None), (torch.float32, box // 4)):
        compare(dtype, last)


if __name__ == "__main__":
    main()
