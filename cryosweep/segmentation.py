"""Regions of a map: watershed, groups of regions by smoothing, and the choice among them.

The algorithm is that of Segger (Pintilie et al., J. Struct. Biol. 170, 427, 2010): every voxel at or above
a threshold climbs to a local maximum, and the voxels that reach one maximum are a region. Then the map is
smoothed more and more, the maximum of each region climbs on in the smoothed map, and regions whose maxima
land on one voxel become a group. Regions and groups form a tree; the regions of a `Segmentation` that belong
to no group are the ones shown.

Lengths are voxels (`_px`); points are x, y, z in voxels from the middle of voxel [0, 0, 0].
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

DALTON_PER_CUBIC_ANGSTROM = 0.825
"""Of protein: 1 / (0.73 cm^3/g x 0.6022 / 10^-24 cm^3), so 1.212 Å^3 a dalton; nucleic acid is denser."""


@dataclass(frozen=True)
class Region:
    """A region, or a group of regions.

    Attributes:
        id: its number, from 1.
        parts: ids of the regions it was made of; none if it is one of the finest.
        sigma_px: of the Gaussian that joined its parts; 0 for the finest and for groups made by hand.
        peak: voxel (x, y, z) of the maximum that its voxels reach.
        voxels: how many voxels it has.
        name: given by a person, in a file of another program.
    """

    id: int
    parts: tuple[int, ...]
    sigma_px: float
    peak: tuple[int, int, int]
    voxels: int
    name: str = ""


@dataclass(frozen=True)
class Segmentation:
    """A map cut into regions, and the tree of their groups.

    Attributes:
        labels: (d, h, w) int32, the id of the finest region of each voxel; 0 where there is none.
        regions: every region and group by its id.
    """

    labels: Tensor
    regions: Mapping[int, Region]

    @property
    def shown(self) -> tuple[int, ...]:
        """Regions and groups that are part of no other, the largest first."""
        parts = {part for region in self.regions.values() for part in region.parts}
        return _by_size(self, [id for id in self.regions if id not in parts])


@dataclass(frozen=True)
class Extent:
    """How large a region is and where it lies.

    Attributes:
        voxels: how many.
        volume: Å^3.
        mass_kda: of protein that fills the volume; it depends on the threshold as the volume does.
        centre_px: mean x, y, z of its voxels.
    """

    voxels: int
    volume: float
    mass_kda: float
    centre_px: tuple[float, float, float]


def level_of(volume: Tensor, value: float, *, unit: Literal["absolute", "sd"]) -> float:
    """Threshold in map units.

    Args:
        volume: (d, d, d).
        value: the threshold itself (`absolute`), or how many standard deviations of all voxels it lies above
            their mean (`sd`).
        unit: what `value` is.

    Raises:
        ValueError: another unit.
    """
    if unit == "absolute":
        return value
    if unit != "sd":
        raise ValueError(f"threshold unit {unit!r} is not known; use 'absolute' or 'sd'")
    return float(volume.double().mean() + value * volume.double().std(correction=0))


def watershed(volume: Tensor, *, threshold: float) -> Tensor:
    """Regions of voxels that climb to one maximum, each step to the highest of the 26 neighbours.

    Of equal neighbours the one that comes first in the array counts as the higher, so the result does not
    depend on chance; a plateau can fall into several regions, which the first step of grouping joins.

    Args:
        volume: (d, h, w), finite.
        threshold: map units; voxels at or above it belong to regions, as in Segger.

    Returns:
        (d, h, w) int32: 0 below the threshold, 1 for the region with most voxels, and so on; regions of
        equal size in the order of their maxima in the array.

    Raises:
        ValueError: no voxel reaches the threshold, or all do.
    """
    inside = volume >= threshold
    if not bool(inside.any()):
        raise ValueError(
            f"no voxel of the map reaches the threshold {threshold:g} (its maximum is "
            f"{float(volume.max()):g}); lower the threshold"
        )
    if bool(inside.all()):
        raise ValueError(
            f"every voxel of the map reaches the threshold {threshold:g} (its minimum is "
            f"{float(volume.min()):g}); raise the threshold"
        )
    landscape = _Landscape.of(volume)
    voxels = torch.nonzero(inside)
    index = landscape.index(voxels)
    # all of them lie inside: a neighbour that is higher than a voxel at the threshold is above it, too
    reached = torch.searchsorted(index, landscape.uphill(index))
    while not torch.equal(further := reached[reached], reached):
        reached = further
    _, region, sizes = torch.unique(reached, return_inverse=True, return_counts=True)
    order = torch.sort(sizes, descending=True, stable=True).indices
    number = torch.empty_like(order)
    number[order] = torch.arange(1, order.numel() + 1, device=order.device)
    labels = torch.zeros(volume.shape, dtype=torch.int32, device=volume.device)
    labels[inside] = number[region].to(torch.int32)
    return labels


def segment(
    volume: Tensor,
    *,
    threshold: float,
    steps: int,
    step_px: float,
    target: int = 1,
    advance: Callable[[int], None] = lambda _: None,
) -> Segmentation:
    """Watershed regions and their groups by smoothing.

    In step i the volume is convolved with a Gaussian of `i * step_px` (periodic in the box) and regions whose
    maxima climb to the same voxel are joined. A group starts its next climb where it landed, a region that
    was not joined where it was, as in Segger.

    Args:
        volume: (d, d, d).
        threshold: map units; see `watershed`.
        steps: of smoothing; 0 leaves the watershed regions alone.
        step_px: by how much each step widens the Gaussian.
        target: no further step once there are no more regions than this.
        advance: called with 1 after the watershed and after each step that the target leaves.

    Returns:
        The shown regions are numbered from 1, the largest first; then their parts, the largest first; then
        the parts of those.

    Raises:
        ValueError: as `watershed`, or a number that is not possible.
    """
    if steps < 0 or target < 1 or (steps > 0 and not 0 < step_px < math.inf):
        raise ValueError(
            f"{steps} steps of {step_px:g} px down to {target} regions are not possible; "
            "give 0 steps or more, of a size above 0 px, down to 1 region or more"
        )
    labels = watershed(volume, threshold=threshold)
    advance(1)
    sizes = torch.bincount(labels.reshape(-1))[1:].tolist()
    nodes = [
        Region(number, (), 0.0, peak, size)
        for number, (peak, size) in enumerate(zip(_peaks(volume, labels), sizes, strict=True), start=1)
    ]
    shown = list(range(len(nodes)))
    spectrum = torch.fft.rfftn(volume)
    for step in range(1, steps + 1):
        if len(shown) > target:
            smooth = _Landscape.of(_smoothed(spectrum, step * step_px, volume.shape[-1]))
            landed = smooth.climb([nodes[node].peak for node in shown])
            shown = _join(nodes, shown, landed, step * step_px)
        advance(1)
    return _numbered(labels, nodes, shown)


def at_sigma(segmentation: Segmentation, sigma_px: float) -> tuple[int, ...]:
    """The partition that a Gaussian of `sigma_px` made: ids, the largest first; 0 gives the finest."""
    regions = segmentation.regions
    found = [id for id in segmentation.shown if regions[id].sigma_px <= sigma_px]
    todo = [id for id in segmentation.shown if regions[id].sigma_px > sigma_px]
    while todo:
        parts = regions[todo.pop()].parts
        found += [id for id in parts if regions[id].sigma_px <= sigma_px]
        todo += [id for id in parts if regions[id].sigma_px > sigma_px]
    return _by_size(segmentation, found)


# ---- moves in the tree ----


def group(segmentation: Segmentation, ids: Sequence[int]) -> Segmentation:
    """Make one group of shown regions; its id is the next that is free.

    Raises:
        ValueError: fewer than two regions, or one that is not shown.
    """
    parts = tuple(dict.fromkeys(ids))
    _require_shown(segmentation, parts)
    if len(parts) < 2:
        raise ValueError(f"a group needs two regions or more, not {_listed(parts)}")
    chosen = [segmentation.regions[id] for id in parts]
    largest = max(chosen, key=lambda region: region.voxels)
    number = max(segmentation.regions) + 1
    made = Region(number, parts, 0.0, largest.peak, sum(region.voxels for region in chosen))
    return replace(segmentation, regions={**segmentation.regions, number: made})


def ungroup(segmentation: Segmentation, id: int) -> Segmentation:
    """Take a shown group away, so that its parts are shown.

    Raises:
        ValueError: it is not shown, or it is one of the finest regions.
    """
    _require_shown(segmentation, (id,))
    if not segmentation.regions[id].parts:
        raise ValueError(
            f"region {id} is one of the finest and has no parts; lower the step size to split it"
        )
    regions = {other: region for other, region in segmentation.regions.items() if other != id}
    return replace(segmentation, regions=regions)


# ---- the choice of regions ----


def finest(segmentation: Segmentation, ids: Sequence[int]) -> tuple[int, ...]:
    """The finest regions that make up `ids`.

    Raises:
        ValueError: there is no such region.
    """
    _require_known(segmentation, ids)
    found: list[int] = []
    todo = list(ids)
    while todo:
        region = segmentation.regions[todo.pop()]
        todo += region.parts
        if not region.parts:
            found.append(region.id)
    return tuple(sorted(set(found)))


def territory(segmentation: Segmentation, ids: Sequence[int]) -> Tensor:
    """(d, h, w) bool: the voxels of regions and groups.

    Raises:
        ValueError: there is no such region.
    """
    return _lookup(segmentation, dict.fromkeys(finest(segmentation, ids), 1)).bool()


def everything_else(segmentation: Segmentation, ids: Sequence[int]) -> Tensor:
    """(d, h, w) bool: the voxels of all regions but `ids`, as they are wanted to subtract the rest.

    Raises:
        ValueError: there is no such region.
    """
    return (segmentation.labels > 0) & ~territory(segmentation, ids)


def labels_of(segmentation: Segmentation, ids: Sequence[int]) -> Tensor:
    """(d, h, w) int32: which of `ids` each voxel belongs to, 0 for none.

    Raises:
        ValueError: there is no such region, or one of `ids` is part of another.
    """
    owner: dict[int, int] = {}
    for id in ids:
        for part in finest(segmentation, [id]):
            if owner.setdefault(part, id) != id:
                raise ValueError(f"region {part} belongs to both {owner[part]} and {id}; name one of the two")
    return _lookup(segmentation, owner)


def touching(segmentation: Segmentation, point: Sequence[float], *, reach_px: float = 2.0) -> int:
    """The shown region that a point lies in, or whose nearest voxel is not farther away than `reach_px`.

    The reach is for points that were set on a contour surface, which lies between voxels inside and outside.

    Args:
        point: x, y, z in px.

    Raises:
        ValueError: no region lies that near.
    """
    voxels = torch.nonzero(segmentation.labels)
    place = torch.tensor([point[2], point[1], point[0]], dtype=torch.float64, device=voxels.device)
    distance = torch.linalg.vector_norm(voxels.double() - place, dim=1)
    nearest = int(distance.argmin())
    part = int(segmentation.labels[tuple(voxels[nearest].tolist())])
    (found,) = (id for id in segmentation.shown if part in finest(segmentation, [id]))
    if float(distance[nearest]) > reach_px:
        raise ValueError(
            f"the point {', '.join(f'{value:.1f}' for value in point)} px lies outside every region; the "
            f"nearest, {found}, is {float(distance[nearest]):.1f} px away: check the unit, or lower the "
            "threshold"
        )
    return found


def largest(segmentation: Segmentation, count: int) -> tuple[int, ...]:
    """The `count` largest of the shown regions.

    Raises:
        ValueError: there are not that many.
    """
    if not 1 <= count <= len(segmentation.shown):
        raise ValueError(f"{count} regions are not to be had; there are {len(segmentation.shown)}")
    return segmentation.shown[:count]


def mostly_inside(segmentation: Segmentation, marked: Tensor) -> tuple[int, ...]:
    """Shown regions that have more than half of their voxels in a marked part of the box.

    Args:
        marked: (d, h, w) bool.

    Raises:
        ValueError: another shape, or no region lies there.
    """
    if marked.shape != segmentation.labels.shape:
        raise ValueError(
            f"the labelled map has shape {tuple(marked.shape)}, the segmented one "
            f"{tuple(segmentation.labels.shape)}; bring both on one grid first"
        )
    labels = labels_of(segmentation, segmentation.shown)
    counts = torch.bincount(labels[marked], minlength=max(segmentation.regions) + 1).tolist()
    found = [id for id in segmentation.shown if 2 * counts[id] > segmentation.regions[id].voxels]
    if not found:
        raise ValueError("no region lies by more than half in the marked part of the box")
    return tuple(found)


def measure(segmentation: Segmentation, ids: Sequence[int], *, pixel_size: float) -> dict[int, Extent]:
    """Size and place of disjoint regions.

    Args:
        ids: regions of which none is part of another.
        pixel_size: Å.

    Raises:
        ValueError: as `labels_of`.
    """
    labels = labels_of(segmentation, ids)
    voxels = torch.nonzero(labels)
    owner = labels[tuple(voxels.mT)].long()
    total = torch.zeros(max(segmentation.regions) + 1, 3, dtype=torch.float64, device=voxels.device)
    total.index_add_(0, owner, voxels.double())
    found: dict[int, Extent] = {}
    for id in ids:
        count = segmentation.regions[id].voxels
        volume = count * pixel_size**3
        z, y, x = (total[id] / max(count, 1)).tolist()
        found[id] = Extent(count, volume, volume * DALTON_PER_CUBIC_ANGSTROM / 1000.0, (x, y, z))
    return found


def total(extents: Iterable[Extent]) -> Extent:
    """One extent of disjoint regions together.

    Raises:
        ValueError: none are given, or they have no voxels.
    """
    each = list(extents)
    voxels = sum(extent.voxels for extent in each)
    if voxels == 0:
        raise ValueError("regions without voxels have no centre")
    x, y, z = (sum(extent.voxels * extent.centre_px[axis] for extent in each) / voxels for axis in range(3))
    volume = sum(extent.volume for extent in each)
    return Extent(voxels, volume, volume * DALTON_PER_CUBIC_ANGSTROM / 1000.0, (x, y, z))


def placed(segmentation: Segmentation, shape: Sequence[int], first: tuple[int, int, int]) -> Segmentation:
    """A segmentation of part of a box, in the whole of it.

    Args:
        shape: (d, h, w) of the box.
        first: x, y, z of the voxel of the box that voxel [0, 0, 0] of the segmentation lies on.

    Raises:
        ValueError: a region sticks out of the box.
    """
    corner = tuple(reversed(first))
    voxels = torch.nonzero(segmentation.labels)
    moved = voxels + torch.tensor(corner, device=voxels.device)
    if bool((moved < 0).any()) or bool((moved >= torch.tensor(shape, device=voxels.device)).any()):
        raise ValueError(f"regions stick out of the box of {'x'.join(map(str, reversed(shape)))} px")
    labels = torch.zeros(*shape, dtype=torch.int32, device=voxels.device)
    labels[tuple(moved.mT)] = segmentation.labels[tuple(voxels.mT)]
    dx, dy, dz = first
    regions = {
        id: replace(region, peak=(region.peak[0] + dx, region.peak[1] + dy, region.peak[2] + dz))
        for id, region in segmentation.regions.items()
    }
    return Segmentation(labels, regions)


# ---- climbing ----


@dataclass(frozen=True)
class _Landscape:
    """A volume in a rim of minus infinity, flat, so that every voxel has 26 neighbours."""

    heights: Tensor
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, volume: Tensor) -> _Landscape:
        rimmed = torch.nn.functional.pad(volume, (1,) * 6, value=-math.inf)
        depth, height, width = rimmed.shape
        return cls(rimmed.reshape(-1), (depth, height, width))

    def index(self, voxels: Tensor) -> Tensor:
        """(n,) flat index of voxels (n, 3) given as z, y, x of the volume; it keeps their order."""
        _, height, width = self.shape
        z, y, x = (voxels + 1).unbind(-1)
        return (z * height + y) * width + x

    def uphill(self, at: Tensor) -> Tensor:
        """(n,) the highest voxel among each of `at` (n,) and its neighbours; of equals the first."""
        _, height, width = self.shape
        best, top = at, self.heights[at]
        for dz, dy, dx in itertools.product((-1, 0, 1), repeat=3):
            other = at + ((dz * height + dy) * width + dx)
            value = self.heights[other]
            higher = (value > top) | ((value == top) & (other < best))
            best, top = torch.where(higher, other, best), torch.where(higher, value, top)
        return best

    def climb(self, peaks: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        """The maxima (x, y, z) that voxels (x, y, z) climb to."""
        start = torch.tensor(peaks, device=self.heights.device).flip(-1)
        at = self.index(start)
        while not torch.equal(higher := self.uphill(at), at):
            at = higher
        _, height, width = self.shape
        found = torch.stack([at % width, at // width % height, at // (width * height)], dim=-1) - 1
        return [(x, y, z) for x, y, z in found.tolist()]


def _smoothed(spectrum: Tensor, sigma_px: float, box_size: int) -> Tensor:
    """The volume of an `rfftn` spectrum convolved with a Gaussian, axis by axis, as |k| is dearer."""
    full = torch.fft.fftfreq(box_size, dtype=torch.float64, device=spectrum.device)
    damping = torch.exp(-2.0 * (math.pi * sigma_px * full).square()).to(spectrum.real.dtype)
    half = damping[: box_size // 2 + 1]
    damped = spectrum * damping[:, None, None] * damping[:, None] * half
    return torch.fft.irfftn(damped, s=(box_size,) * 3)


def _peaks(volume: Tensor, labels: Tensor) -> list[tuple[int, int, int]]:
    """Voxel (x, y, z) of the maximum of each region, 1 to the last; of equals the first."""
    count = int(labels.max())
    voxels = torch.nonzero(labels)
    owner = labels[tuple(voxels.mT)].long() - 1
    values = volume[tuple(voxels.mT)]
    top = torch.full((count,), -math.inf, dtype=values.dtype, device=values.device)
    top = top.scatter_reduce(0, owner, values, reduce="amax")
    highest = torch.nonzero(values == top[owner]).squeeze(1)
    first = torch.full((count,), voxels.shape[0], dtype=torch.int64, device=values.device)
    first = first.scatter_reduce(0, owner[highest], highest, reduce="amin")
    return [(x, y, z) for z, y, x in voxels[first].tolist()]


def _join(
    nodes: list[Region], shown: Sequence[int], landed: Sequence[tuple[int, int, int]], sigma_px: float
) -> list[int]:
    """Add a group to `nodes` for those of `shown` that landed together; what is shown then."""
    together: dict[tuple[int, int, int], list[int]] = {}
    for node, peak in zip(shown, landed, strict=True):
        together.setdefault(peak, []).append(node)
    left: list[int] = []
    for peak, members in together.items():
        if len(members) == 1:
            left += members
            continue
        left.append(len(nodes))
        voxels = sum(nodes[member].voxels for member in members)
        nodes.append(Region(len(nodes) + 1, tuple(members), sigma_px, peak, voxels))
    return left


def _numbered(labels: Tensor, nodes: Sequence[Region], shown: Sequence[int]) -> Segmentation:
    """The tree with ids from the top down; `parts` of `nodes` are places in `nodes`."""

    def rank(node: int) -> tuple[int, tuple[int, ...]]:
        return -nodes[node].voxels, tuple(reversed(nodes[node].peak))

    generation, order = list(shown), list[int]()
    while generation:
        order += sorted(generation, key=rank)
        generation = [part for node in generation for part in nodes[node].parts]
    id_of = {node: number for number, node in enumerate(order, start=1)}
    regions = {
        id_of[node]: replace(
            nodes[node], id=id_of[node], parts=tuple(sorted(id_of[part] for part in nodes[node].parts))
        )
        for node in order
    }
    finest_ids = torch.tensor([0, *(id_of[node] for node in range(int(labels.max())))], dtype=torch.int32)
    return Segmentation(finest_ids.to(labels.device)[labels.long()], regions)


# ---- ids ----


def _by_size(segmentation: Segmentation, ids: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(ids, key=lambda id: (-segmentation.regions[id].voxels, id)))


def _lookup(segmentation: Segmentation, values: Mapping[int, int]) -> Tensor:
    """(d, h, w) int32 of a value for each of the finest regions, 0 for the others."""
    table = torch.zeros(max(segmentation.regions, default=0) + 1, dtype=torch.int32)
    for id, value in values.items():
        table[id] = value
    return table.to(segmentation.labels.device)[segmentation.labels.long()]


def _listed(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:10])) + (", ..." if len(ids) > 10 else "")


def _require_known(segmentation: Segmentation, ids: Sequence[int]) -> None:
    unknown = [id for id in ids if id not in segmentation.regions]
    if unknown:
        raise ValueError(
            f"there is no region {_listed(unknown)}; the ids run from {min(segmentation.regions)} to "
            f"{max(segmentation.regions)}"
        )


def _require_shown(segmentation: Segmentation, ids: Sequence[int]) -> None:
    _require_known(segmentation, ids)
    hidden = [id for id in ids if id not in segmentation.shown]
    if hidden:
        raise ValueError(f"region {_listed(hidden)} is part of a group; ungroup that first")
