"""Segmentations of Segger, the segmentation tool of Chimera and ChimeraX (.seg, HDF5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from cryosweep.io.maps import SAME_PIXEL_SIZE, Map
from cryosweep.segmentation import Region, Segmentation, placed

# Origins are float32 Å in both files; voxels of one grid may seem to lie apart by this many px.
SAME_VOXEL_PX = 0.05


@dataclass(frozen=True)
class SeggerFile:
    """A segmentation and the grid it lies on.

    Attributes:
        path: where it was read from.
        segmentation: ids, groups and names as in the file; the box need not be a cube.
        pixel_size: Å.
        origin: x, y, z in Å of voxel [0, 0, 0] in the frame that viewers show.
        threshold: map units that voxels of regions reach.
    """

    path: Path
    segmentation: Segmentation
    pixel_size: float
    origin: tuple[float, float, float]
    threshold: float


def read_segger(path: Path) -> SeggerFile:
    """Read a Segger file of format version 2.

    Raises:
        ValueError: not such a file, its grid is not isotropic, or its tree makes no sense.
    """
    try:
        with h5py.File(path) as file:
            return _read(file, path)
    except OSError as error:
        raise ValueError(f"{path}: not a readable Segger file (HDF5): {error}.") from error
    except KeyError as error:
        raise ValueError(f"{path}: not a Segger file: it lacks what Segger writes: {error}.") from error


def on_grid_of(file: SeggerFile, map: Map) -> Segmentation:
    """The regions of a file in the box of a map, of which they may fill a part.

    Raises:
        ValueError: the two have different voxels, or regions stick out of the box.
    """
    if abs(file.pixel_size / map.pixel_size - 1.0) > SAME_PIXEL_SIZE:
        raise ValueError(
            f"{file.path}: the segmentation has voxels of {file.pixel_size:g} Å, the map of "
            f"{map.pixel_size:g} Å; segment the map itself"
        )
    apart = [(a - b) / map.pixel_size for a, b in zip(file.origin, map.origin, strict=True)]
    x, y, z = (round(value) for value in apart)
    if max(abs(value - whole) for value, whole in zip(apart, (x, y, z), strict=True)) > SAME_VOXEL_PX:
        raise ValueError(
            f"{file.path}: the first voxel of the segmentation lies "
            f"{', '.join(f'{value:.2f}' for value in apart)} px from that of the map, not whole voxels; "
            "their origins do not belong together"
        )
    depth, height, width = map.data.shape
    try:
        return placed(file.segmentation, (depth, height, width), (x, y, z))
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error


def _read(file: h5py.File, path: Path) -> SeggerFile:
    attributes = file.attrs
    kind, version = _text(attributes["format"]), int(attributes["format_version"])  # pyright: ignore[reportArgumentType]
    if kind != "segger" or version != 2:
        raise ValueError(f"{path}: a Segger file of version 2 is needed, this is {kind!r} version {version}.")
    transform = np.asarray(attributes["ijk_to_xyz_transform"], dtype=np.float64)
    pixel_size = round(float(transform[0, 0]), 5)
    if pixel_size <= 0 or not np.allclose(transform[:, :3], pixel_size * np.eye(3), atol=SAME_PIXEL_SIZE):
        raise ValueError(
            f"{path}: an isotropic grid along x, y, z is needed, but voxels step by "
            f"{transform[:, :3].round(4).tolist()} Å."
        )
    labels = _array(file, "mask")
    ids, parents = _array(file, "region_ids").tolist(), _array(file, "parent_ids").tolist()
    peaks, sigmas = _array(file, "ref_points").tolist(), _array(file, "smoothing_levels").tolist()
    if labels.ndim != 3 or len(set(ids)) != len(ids) or not set(parents) <= {0, *ids}:
        raise ValueError(f"{path}: the regions do not form a tree; save it from Segger again.")
    parts: dict[int, list[int]] = {id: [] for id in ids}
    for id, parent in zip(ids, parents, strict=True):
        if parent:
            parts[parent].append(id)
    counts = np.bincount(labels.reshape(-1))
    known = {id for id in ids if not parts[id]}
    if not set(np.flatnonzero(counts).tolist()) <= {0, *known}:
        raise ValueError(f"{path}: voxels belong to regions that are not in the table of the finest ones.")

    def size(id: int, seen: frozenset[int] = frozenset()) -> int:
        if id in seen:
            raise ValueError(f"{path}: region {id} is part of itself.")
        own = int(counts[id]) if id < counts.size else 0
        return own if not parts[id] else sum(size(part, seen | {id}) for part in parts[id])

    names = _names(file)
    regions = {
        id: Region(id, tuple(parts[id]), sigma, _voxel(peak), size(id), names.get(id, ""))
        for id, peak, sigma in zip(ids, peaks, sigmas, strict=True)
    }
    x, y, z = (round(float(value), 4) for value in transform[:, 3])
    segmentation = Segmentation(torch.from_numpy(labels.astype(np.int32)), regions)
    return SeggerFile(path, segmentation, pixel_size, (x, y, z), float(attributes["map_level"]))  # pyright: ignore[reportArgumentType]


def _array(file: h5py.File, name: str) -> np.ndarray[Any, Any]:
    return np.asarray(file[name])


def _voxel(point: list[float]) -> tuple[int, int, int]:
    x, y, z = (round(value) for value in point)
    return x, y, z


def _names(file: h5py.File) -> dict[int, str]:
    """What people called regions; Segger keeps it as an attribute of its own."""
    kept = file.get("Segment name string")
    if not isinstance(kept, h5py.Group):
        return {}
    return {int(id): _text(name) for id, name in zip(kept["ids"], kept["values"], strict=True)}  # pyright: ignore[reportArgumentType]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
