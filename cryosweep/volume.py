"""Maps on grids: resampling, the size of the box, the hand. What they show stays where it is in space.

A map is a trigonometric polynomial through its voxels, periodic in its box, as everywhere in this package. It
is evaluated exactly, so that a map without detail beyond either Nyquist limit loses nothing but rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cryosweep.fourier import crop_centre, pad_centre

# A coarser grid keeps what lies below this share of its Nyquist frequency; at Nyquist half of a wave is lost.
_BELOW_NYQUIST = 1.0 - 1e-9


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a cubic map lie.

    Attributes:
        box_size: px.
        pixel_size: Å.
        origin: x, y, z in Å of voxel [0, 0, 0].
    """

    box_size: int
    pixel_size: float
    origin: tuple[float, float, float]

    def about_centre(self, *, box_size: int, pixel_size: float) -> Grid:
        """Another grid whose voxel `n // 2` lies where that of this one does.

        Raises:
            ValueError: a size that is not above 0.
        """
        if box_size < 1 or not 0.0 < pixel_size < math.inf:
            raise ValueError(
                f"a grid of {box_size} px of {pixel_size:g} Å is not possible; both must be above 0"
            )
        moved = (self.box_size // 2) * self.pixel_size - (box_size // 2) * pixel_size
        x, y, z = self.origin
        return Grid(box_size, pixel_size, (x + moved, y + moved, z + moved))

    def with_pixel_size(self, pixel_size: float) -> Grid:
        """The grid of another pixel size with the even box that comes nearest to the width of this one.

        Raises:
            ValueError: `pixel_size` is not above 0.
        """
        if not 0.0 < pixel_size < math.inf:
            raise ValueError(f"a pixel size of {pixel_size:g} Å is not possible; it must be above 0")
        box_size = max(2, 2 * round(0.5 * self.box_size * self.pixel_size / pixel_size))
        return self.about_centre(box_size=box_size, pixel_size=pixel_size)


def resample(volume: Tensor, grid: Grid, target: Grid) -> Tensor:
    """A map on another grid: its value at each voxel of `target`, 0 outside its own box.

    Values are kept, as in `relion_image_handler --rescale_angpix`; a projection, which is a sum of voxels,
    changes with the pixel size. A coarser grid gets the map without what lies at or beyond its Nyquist
    frequency along any axis (a cube of the transform is kept, not a sphere). Hard edges ring: threshold a
    region again afterwards.

    Args:
        volume: (d, d, d) on `grid`.
        grid: of `volume`.
        target: any pixel size, box and origin.

    Returns:
        (t, t, t) in the dtype of `volume`.

    Raises:
        ValueError: the boxes do not overlap, or `volume` does not have the box of `grid`.
    """
    if tuple(volume.shape) != (grid.box_size,) * 3:
        raise ValueError(f"a map of shape {tuple(volume.shape)} does not lie on a grid of {grid.box_size} px")
    x, y, z = (_interpolation(grid, target, axis).to(volume) for axis in range(3))
    if not all(bool(matrix.any()) for matrix in (x, y, z)):
        raise ValueError(
            f"the two boxes do not overlap: their first voxels lie at {_rounded(grid.origin)} and "
            f"{_rounded(target.origin)} Å; check the origins in the headers"
        )
    return torch.matmul(y, torch.tensordot(z, volume, dims=1)) @ x.mT


def resize_box(volume: Tensor, grid: Grid, box_size: int) -> tuple[Tensor, Grid]:
    """A map cut, or padded with zeros, to another box about voxel `n // 2`, and its grid.

    Args:
        volume: (d, d, d) on `grid`.
        grid: of `volume`.
        box_size: px.

    Raises:
        ValueError: `box_size` is not above 0.
    """
    target = grid.about_centre(box_size=box_size, pixel_size=grid.pixel_size)
    change = pad_centre if box_size > grid.box_size else crop_centre
    return change(volume, box_size, dims=3).contiguous(), target


def flip_hand(volume: Tensor) -> Tensor:
    """The mirror image of a map (d, d, d): x to -x about voxel `n // 2`.

    As `relion_image_handler --invert_hand`: in an even box the plane x = 0, which has no partner, stays.
    """
    centre = volume.shape[-1] // 2
    source = (2 * centre - torch.arange(volume.shape[-1], device=volume.device)) % volume.shape[-1]
    return volume.index_select(-1, source)


def _interpolation(grid: Grid, target: Grid, axis: int) -> Tensor:
    """(t, d) float64 matrix from the voxels of `grid` along an axis to those of `target`.

    The Dirichlet kernel as a sum of waves, written as a product of cosines and sines at both places. In an
    even box the wave at Nyquist is a cosine.
    """
    size = grid.box_size
    start = (target.origin[axis] - grid.origin[axis]) / grid.pixel_size
    step = target.pixel_size / grid.pixel_size
    place = start + step * torch.arange(target.box_size, dtype=torch.float64)
    wave = torch.arange(size // 2 + 1, dtype=torch.float64)
    weight = torch.full_like(wave, 2.0 / size)
    weight[0] = 1.0 / size
    if size % 2 == 0:
        weight[-1] = 1.0 / size
    if step > 1.0 + 1e-6:
        weight[wave >= 0.5 * size / step * _BELOW_NYQUIST] = 0.0
    there, here = (
        (2.0 * math.pi / size) * wave * x[:, None] for x in (place, torch.arange(size, dtype=torch.float64))
    )
    matrix = (weight * there.cos()) @ here.cos().mT + (weight * there.sin()) @ here.sin().mT
    outside = (place < -0.5) | (place > size - 0.5)
    return torch.where(outside[:, None], 0.0, matrix)


def _rounded(vector: tuple[float, float, float]) -> str:
    return ", ".join(f"{value:.2f}" for value in vector)
