"""Masks: a region of the mask base above a threshold, dilated, with a soft edge.

Lengths here are voxels (`_px`), except where a pixel size is given. A region is a boolean volume; a mask is a
real one in [0, 1]. Nothing wraps around the box: voxels outside it do not exist.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from cryosweep.fourier import centred_range, frequency_radius

# Below this a mask no longer matters to the map it multiplies; it sets the reach of a mask, not its volume.
NEGLIGIBLE = 0.01


def threshold_of(base: Tensor, value: float, *, unit: Literal["absolute", "fraction"]) -> float:
    """Threshold in map units.

    Args:
        base: (d, d, d) mask base.
        value: the threshold itself (`absolute`), or its ratio to the 99.9 percentile of all voxels of `base`
            (`fraction`). The percentile stands in for the maximum, which one noisy voxel can set.
        unit: what `value` is.

    Raises:
        ValueError: a fraction of 0 or less, a percentile that is not positive, or another unit.
    """
    if unit == "absolute":
        return value
    if unit != "fraction":
        raise ValueError(f"threshold unit {unit!r} is not known; use 'absolute' or 'fraction'")
    if value <= 0:
        raise ValueError(f"a threshold of {value:g} as a fraction must be above 0; 0.1 to 0.5 is usual")
    # numpy's, because torch.quantile refuses more than 16 million voxels
    percentile = float(np.quantile(base.detach().cpu().numpy(), 0.999))
    if percentile <= 0:
        raise ValueError(
            f"a threshold as a fraction needs positive density, but the 99.9 percentile of the mask base is "
            f"{percentile:g}; give an absolute threshold or another mask base"
        )
    return value * percentile


def soft_mask(
    base: Tensor,
    *,
    threshold: float,
    dilation_radius_px: float,
    soft_padding_width_px: float,
    holes_filled: bool = False,
) -> Tensor:
    """Mask that keeps the region of `base` above `threshold`, dilated, with a soft edge.

    The recipe of `relion_mask_create` (`--ini_threshold`, `--extend_inimask`, `--width_soft_edge`), except
    that voxels equal to the threshold are outside here and inside there.

    Args:
        base: (d, d, d) mask base on the grid of the map that the mask will multiply.
        threshold: map units; voxels strictly above it are inside.
        dilation_radius_px: >= 0; see `dilate`.
        soft_padding_width_px: >= 0; the edge lies outside the dilated region. See `minimum_soft_padding`.
        holes_filled: whether holes of the region are filled before it is dilated; see `fill_holes`.

    Returns:
        (d, d, d) in [0, 1], exactly 1 in the dilated region; dtype and device of `base`.

    Raises:
        ValueError: nothing lies above `threshold`, the region fills the whole box, or a length is negative.
    """
    region = base > threshold
    if not bool(region.any()):
        raise ValueError(
            f"no voxel of the mask base lies above the threshold {threshold:g} (its maximum is "
            f"{float(base.max()):g}); lower the threshold"
        )
    if bool(region.all()):
        raise ValueError(
            f"every voxel of the mask base lies above the threshold {threshold:g} (its minimum is "
            f"{float(base.min()):g}); raise the threshold"
        )
    if holes_filled:
        region = fill_holes(region)
    region = dilate(region, dilation_radius_px)
    if bool(region.all()):
        raise ValueError(
            f"dilated by {dilation_radius_px:g} px the mask fills the whole box; reduce the dilation radius "
            f"or raise the threshold {threshold:g}"
        )
    return soft_edge(region, soft_padding_width_px, dtype=base.dtype)


def dilate(region: Tensor, radius_px: float) -> Tensor:
    """Voxels at a Euclidean distance strictly below `radius_px` from `region`, and `region` itself.

    Strictly, as in RELION: the nearest voxel is 1 px away, so radii from 0 to 1 px change nothing.

    Args:
        region: (d, d, d) bool.
        radius_px: >= 0.

    Returns:
        (d, d, d) bool.

    Raises:
        ValueError: `radius_px` is negative.
    """
    _require_length("dilation radius", radius_px)
    return region | (_distance_within(region, radius_px) < radius_px)


def erode(region: Tensor, radius_px: float) -> Tensor:
    """Voxels of `region` at a distance of `radius_px` or more from everything outside it.

    What lies beyond the box does not count as outside. Same arguments and errors as `dilate`.
    """
    return ~dilate(~region, radius_px)


def fill_holes(region: Tensor) -> Tensor:
    """`region` (d, d, d) bool, and every voxel outside it from which no path leads out of the box.

    A path steps from face to face, so that a wall of voxels that touch at their corners holds. A channel to
    the outside is not closed: dilate, fill and erode where it should be.
    """
    filled = ndimage.binary_fill_holes(region.cpu().numpy())
    return torch.from_numpy(np.asarray(filled)).to(region.device)


def intersection(first: Tensor, second: Tensor) -> Tensor:
    """Mask of what lies in both masks: the smaller value of the two."""
    return torch.minimum(first, second)


def union(first: Tensor, second: Tensor) -> Tensor:
    """Mask of what lies in either mask: the larger value of the two.

    Where both have soft edges of one width it is the soft mask of the two regions together, voxel for voxel;
    a sum would bulge where the edges meet.
    """
    return torch.maximum(first, second)


def difference(first: Tensor, second: Tensor) -> Tensor:
    """Mask of what lies in the first mask and not in the second."""
    return torch.minimum(first, 1.0 - second)


def inverted(mask: Tensor) -> Tensor:
    """Mask of what lies outside `mask`."""
    return 1.0 - mask


def soft_edge(region: Tensor, width_px: float, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Mask that is 1 in `region` and falls to 0 along a raised cosine around it.

    At distance r from the region the value is `1/2 + 1/2 cos(pi r / width)`, and 0 from `width_px` on.

    Args:
        region: (d, d, d) bool.
        width_px: >= 0; up to 1 px it is a hard edge.
        dtype: of the result.

    Returns:
        (d, d, d) in [0, 1].

    Raises:
        ValueError: `width_px` is negative.
    """
    _require_length("soft padding width", width_px)
    if width_px == 0:
        return region.to(dtype)
    return _raised_cosine(_distance_within(region, width_px) / width_px).to(dtype)


def near_far_mask(
    region: Tensor, *, near_px: float, far_px: float, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Mask that is 1 up to `near_px` from a region and falls to 0 at `far_px` along a raised cosine.

    Both distances count from the region itself, as CryoSPARC's near and far parameters do; `soft_mask` counts
    its edge from the dilated region instead.

    Args:
        region: (d, d, d) bool.
        near_px: >= 0.
        far_px: above `near_px`.
        dtype: of the result.

    Returns:
        (d, d, d) in [0, 1].

    Raises:
        ValueError: not 0 <= `near_px` < `far_px`.
    """
    if not 0 <= near_px < far_px:
        raise ValueError(f"a mask needs 0 <= near < far, not {near_px:g} and {far_px:g} px")
    distance = _distance_within(region, far_px)
    return _raised_cosine((distance - near_px) / (far_px - near_px)).to(dtype)


def spherical_mask(
    box_size: int,
    *,
    outer_px: float,
    inner_px: float,
    centre_px: tuple[float, float, float] = (0.0, 0.0, 0.0),
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Sphere that is 1 up to `inner_px` and falls to 0 at `outer_px` along a raised cosine.

    Args:
        box_size: px.
        outer_px: radius from which on the mask is 0.
        inner_px: radius up to which it is 1; equal to `outer_px` it is a hard edge.
        centre_px: (x, y, z) from the box centre.
        dtype: of the result.
        device: of the result.

    Returns:
        (d, d, d) in [0, 1].

    Raises:
        ValueError: not 0 <= `inner_px` <= `outer_px`.
    """
    if not 0 <= inner_px <= outer_px:
        raise ValueError(
            f"a soft sphere needs 0 <= inner <= outer radius, not {inner_px:g} and {outer_px:g} px"
        )
    axis = centred_range(box_size, dtype=torch.float64, device=device)
    x, y, z = (axis - offset for offset in centre_px)
    radius = torch.sqrt(z[:, None, None].square() + y[:, None].square() + x.square())
    if inner_px == outer_px:
        return (radius < outer_px).to(dtype)
    return _raised_cosine((radius - inner_px) / (outer_px - inner_px)).to(dtype)


def centre_of_mass(mask: Tensor) -> Tensor:
    """(3,) float64 centre of mass of a mask (d, d, d): x, y, z in px from the box centre.

    Raises:
        ValueError: the mask has no mass.
    """
    weight = mask.to(torch.float64)
    total = weight.sum()
    if not float(total) > 0:
        raise ValueError("an empty mask has no centre of mass; lower its threshold")
    moments: list[Tensor] = []
    for axis in (2, 1, 0):
        others = tuple(other for other in range(3) if other != axis)
        position = centred_range(mask.shape[axis], dtype=torch.float64, device=mask.device)
        moments.append((weight.sum(dim=others) * position).sum() / total)
    return torch.stack(moments)


def mask_radius_px(mask: Tensor, centre_px: Tensor | tuple[float, float, float]) -> float:
    """Distance (px) from a point to the farthest voxel where the mask exceeds 0.01.

    Args:
        mask: (d, d, d).
        centre_px: (3,) x, y, z in px from the box centre.

    Raises:
        ValueError: the mask exceeds 0.01 nowhere.
    """
    distance, _ = _distances_px(mask, centre_px)
    return float(distance.max())


def radius_of_share_px(mask: Tensor, centre_px: Tensor | tuple[float, float, float], share: float) -> float:
    """Distance (px) from a point within which a share of the mask's weight lies.

    Args:
        mask: (d, d, d).
        centre_px: (3,) x, y, z in px from the box centre.
        share: in (0, 1].

    Raises:
        ValueError: the mask exceeds 0.01 nowhere.
    """
    distance, weight = _distances_px(mask, centre_px)
    order = distance.argsort()
    held = weight[order].cumsum(0)
    place = int(torch.searchsorted(held, share * held[-1]))
    return float(distance[order[min(place, len(order) - 1)]])


def minimum_soft_padding(resolution: float, pixel_size: float) -> float:
    """Advised least soft padding width in Å: 5 x the resolution, rounded up to whole pixels.

    The rule of the CryoSPARC guide to local refinement. A narrower edge lets the mask itself correlate the
    half maps, so that their FSC reads too well.

    Args:
        resolution: Å, of the map to be masked.
        pixel_size: Å.

    Raises:
        ValueError: a length that is not positive.
    """
    if resolution <= 0 or pixel_size <= 0:
        raise ValueError(f"resolution {resolution:g} Å and pixel size {pixel_size:g} Å must both be above 0")
    # less a millionth of a pixel, lest 5 * 2.8 / 1.4 become 11
    return math.ceil(5.0 * resolution / pixel_size - 1e-6) * pixel_size


def edge_width_px(mask: Tensor) -> float:
    """Width (px) of the raised cosine as steep as a mask is at its steepest; 0 if hard, inf without an edge.

    A raised cosine of width w falls by pi / (2 w) a voxel in its middle. The slope is taken from differences
    of neighbouring voxels along the three axes; steps of the distance to a region of voxels make it up to 1.5
    voxels too narrow.

    Args:
        mask: (d, d, d).
    """
    if bool(((mask == 0) | (mask == 1)).all()):
        return 0.0
    steepest = float(_slope(mask).max())
    return 0.5 * math.pi / steepest if steepest > 0.0 else math.inf


def density_on_edge(mask: Tensor, density: Tensor) -> float:
    """Root mean square of a density on the edge of a mask, as a ratio to that where the mask is 1.

    The edge counts by the square of its slope, as it does in the gradient of the masked density. 0 if the
    mask has no edge or nothing is inside.

    Args:
        mask: (d, d, d).
        density: (d, d, d).
    """
    weight = _slope(mask).double().square()
    power = density.double().square()
    inside = mask >= 1.0 - NEGLIGIBLE
    core = float(power[inside].mean()) if bool(inside.any()) else 0.0
    if core == 0.0 or not float(weight.sum()) > 0.0:
        return 0.0
    return math.sqrt(float((weight * power).sum() / weight.sum()) / core)


def power_outside(mask: Tensor, density: Tensor) -> float:
    """Share of the power of a density (d, d, d), its sum of squares, that a mask (d, d, d) takes away."""
    power = density.double().square()
    total = float(power.sum())
    return 0.0 if total == 0.0 else 1.0 - float((mask.double().square() * power).sum()) / total


def fine_power(volume: Tensor, *, pixel_size: float, finer_than: float) -> float:
    """Share of the power of a map, its mean apart, in detail finer than `finer_than` (Å).

    Args:
        volume: (d, d, d).
        pixel_size: Å.
        finer_than: Å.
    """
    box_size = volume.shape[-1]
    power = torch.fft.rfftn(volume).abs().double().square()
    # each Friedel pair is in the half transform once, but for the planes that hold both of its members
    power[..., 1 : (box_size + 1) // 2] *= 2.0
    power[0, 0, 0] = 0.0
    total = float(power.sum())
    if total == 0.0:
        return 0.0
    radius = frequency_radius(box_size, dims=3, dtype=torch.float64, device=volume.device)
    return float(power[radius > box_size * pixel_size / finer_than].sum()) / total


def _slope(mask: Tensor) -> Tensor:
    """(d, d, d) length of the difference to the next voxel along each axis; 0 along an axis at its end."""
    squared = torch.zeros_like(mask)
    for axis in range(3):
        size = mask.shape[axis] - 1
        squared.narrow(axis, 0, size).add_(mask.diff(dim=axis).square())
    return squared.sqrt()


def _distances_px(mask: Tensor, centre_px: Tensor | tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    """Distance (px) from a point to each voxel where the mask exceeds 0.01, and the mask there (float64)."""
    voxels = torch.nonzero(mask > NEGLIGIBLE)
    if voxels.numel() == 0:
        raise ValueError("an empty mask has no radius; lower its threshold")
    origin = torch.tensor([size // 2 for size in mask.shape], dtype=torch.float64, device=mask.device)
    centre = torch.as_tensor(centre_px, dtype=torch.float64, device=mask.device)
    distance = torch.linalg.vector_norm(voxels - origin - centre.flip(0), dim=1)
    return distance, mask[voxels.unbind(1)].double()


def _require_length(name: str, length_px: float) -> None:
    if not length_px >= 0:
        raise ValueError(f"a {name} of {length_px:g} px is not possible; give 0 or more")


def _raised_cosine(position: Tensor) -> Tensor:
    """1 up to position 0, 0 from position 1 on."""
    return 0.5 + 0.5 * torch.cos(math.pi * position.clamp(0.0, 1.0))


def _distance_within(region: Tensor, reach_px: float) -> Tensor:
    """(d, d, d) float64 distance (px) to the nearest voxel of `region`; inf where surely above `reach_px`.

    Only the bounding box of the region, grown by the reach, is transformed: the exact transform of a whole
    box is what would make masks slow.
    """
    inside = region.cpu().numpy()
    distance = np.full(inside.shape, np.inf)
    if inside.any():
        margin = math.ceil(reach_px) + 1
        near: list[slice] = []
        for axis in range(inside.ndim):
            others = tuple(other for other in range(inside.ndim) if other != axis)
            occupied = np.flatnonzero(inside.any(axis=others))
            near.append(slice(max(int(occupied[0]) - margin, 0), int(occupied[-1]) + margin + 1))
        distance[tuple(near)] = ndimage.distance_transform_edt(~inside[tuple(near)])
    return torch.from_numpy(distance).to(region.device)
