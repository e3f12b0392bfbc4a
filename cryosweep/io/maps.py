"""Density maps in MRC/CCP4 files."""

from __future__ import annotations

import gzip
import math
import os
import warnings
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import torch
from torch import Tensor

_LABEL = "Written by cryosweep"


# Pixel sizes of files on one grid may differ by this share: headers are rounded.
SAME_PIXEL_SIZE = 1e-3


@dataclass(frozen=True)
class Map:
    """A cubic map on an isotropic grid.

    Attributes:
        data: (d, d, d) float32, indexed z, y, x.
        pixel_size: Å.
        origin: x, y, z in Å of voxel [0, 0, 0] in the frame that viewers show.
        notes: what was odd about the file, as sentences for the user.
    """

    data: Tensor
    pixel_size: float
    origin: tuple[float, float, float]
    notes: tuple[str, ...] = ()

    def to_px(self, point: tuple[float, float, float]) -> tuple[float, float, float]:
        """A point (x, y, z) of Å in the frame of the map, in px from the middle of voxel [0, 0, 0]."""
        x, y, z = (
            (value - offset) / self.pixel_size for value, offset in zip(point, self.origin, strict=True)
        )
        return x, y, z

    def from_centre(self, point: tuple[float, float, float]) -> tuple[float, float, float]:
        """A point (x, y, z) of Å in the frame of the map, in Å from the centre of its box."""
        half = self.data.shape[-1] // 2
        x, y, z = ((place - half) * self.pixel_size for place in self.to_px(point))
        return x, y, z


def read_map(path: Path) -> Map:
    """Map of an MRC or CCP4 file, plain or compressed with gzip or bzip2.

    The axes are put in the order (z, y, x) whatever the order in the file. The origin is the `origin` record
    where it is not zero, else the start indices times the pixel size, as ChimeraX reads them.

    Args:
        path: integers, float16 or float32.

    Raises:
        ValueError: not an MRC volume, truncated, not cubic, not isotropic, no pixel size, or not finite.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what `permissive` warns of is checked here, one by one
            opened: Any = mrcfile.open(path, permissive=True)
            with opened as file:
                header, data = file.header, file.data
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: not a readable MRC file: {error}.") from error
    if data is None:
        raise ValueError(f"{path}: the file is shorter than its header says, or of an unknown MRC mode.")
    if data.ndim != 3 or len(set(data.shape)) != 1:
        raise ValueError(
            f"{path}: a cubic volume is needed, but the file holds an array of shape {data.shape}; put it on "
            "the grid of the particles' map, for instance in ChimeraX with volume resample #1 onGrid #2."
        )
    if np.iscomplexobj(data):
        raise ValueError(f"{path}: the file holds a complex transform; a map in real space is needed.")
    axes = _axes(header, path)
    pixel_size = _pixel_size(header, path)
    # index 0 of the array runs over sections, 1 over rows, 2 over columns
    array = np.transpose(data, [2 - axes.index(axis) for axis in (3, 2, 1)])
    volume = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    wrong = int((~torch.isfinite(volume)).sum())
    if wrong:
        raise ValueError(
            f"{path}: {wrong} of the {volume.numel()} voxels are not finite (NaN or infinite); make the map "
            "again, or set them to 0."
        )
    starts = (int(header.nxstart), int(header.nystart), int(header.nzstart))
    record = (float(header.origin.x), float(header.origin.y), float(header.origin.z))
    by_start = tuple(starts[axes.index(axis)] * pixel_size for axis in (1, 2, 3))
    x, y, z = record if any(record) else by_start
    notes = (
        () if has_map_tag(header) else (f"{path} lacks the 'MAP ' tag of an MRC file; it was read as one.",)
    )
    return Map(volume, pixel_size, (x, y, z), notes)


def read_mask(path: Path) -> Map:
    """Read a mask.

    Raises:
        ValueError: as `read_map`, or the values do not lie in [0, 1] or are all zero.
    """
    mask = read_map(path)
    low, high = float(mask.data.min()), float(mask.data.max())
    if low == high == 0.0:
        raise ValueError(f"{path}: the mask is empty, 0 everywhere; lower the threshold it was cut at")
    if low < -1e-3 or high > 1.001 or high <= 0.0:
        raise ValueError(
            f"{path}: a mask holds values from 0 to 1, this map {low:g} to {high:g}; "
            "cut a mask from it first (cryosweep mask, or mask_base=file)"
        )
    return replace(mask, data=mask.data.clamp(0.0, 1.0))


def write_map(
    path: Path, volume: Tensor, *, pixel_size: float, origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> None:
    """Write a float32 MRC map; the file appears whole or not at all.

    Args:
        path: an existing file is replaced.
        volume: (d, d, d).
        pixel_size: Å.
        origin: x, y, z in Å of voxel [0, 0, 0].

    Raises:
        ValueError: `volume` is not a cube, or `pixel_size` is not above 0.
    """
    if volume.dim() != 3 or len(set(volume.shape)) != 1:
        raise ValueError(f"{path}: a map must be a cube, not of shape {tuple(volume.shape)}.")
    _check_pixel_size(pixel_size, path)
    with replacing(path) as temporary:
        file: Any = mrcfile.new(temporary, overwrite=True)
        with file:
            file.set_data(volume.detach().to(device="cpu", dtype=torch.float32).numpy())
            file.set_volume()
            file.voxel_size = pixel_size
            file.header.origin = origin
            file.header.label[0] = _LABEL  # instead of the time of writing: equal maps give equal files


def write_labels(
    path: Path, labels: Tensor, *, pixel_size: float, origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> None:
    """Write a map of whole numbers, an index map for ChimeraX; the file appears whole or not at all.

    Args:
        path: an existing file is replaced.
        labels: (d, d, d) integers from 0 to 65535, written as int16 if they fit, else as uint16.
        pixel_size: Å.
        origin: x, y, z in Å of voxel [0, 0, 0].

    Raises:
        ValueError: `labels` is not a cube or out of range, or `pixel_size` is not above 0.
    """
    if labels.dim() != 3 or len(set(labels.shape)) != 1:
        raise ValueError(f"{path}: a map must be a cube, not of shape {tuple(labels.shape)}.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > 65535:
        raise ValueError(f"{path}: labels from {low} to {high} do not fit in the 16 bits of an MRC file.")
    _check_pixel_size(pixel_size, path)
    kind = np.int16 if high <= 32767 else np.uint16
    with replacing(path) as temporary:
        file: Any = mrcfile.new(temporary, overwrite=True)
        with file:
            file.set_data(labels.detach().cpu().numpy().astype(kind))
            file.set_volume()
            file.voxel_size = pixel_size
            file.header.origin = origin
            file.header.label[0] = _LABEL


def box_centre(map: Map) -> tuple[float, float, float]:
    """x, y, z in Å of voxel `n // 2`, in the frame of the file."""
    half = (map.data.shape[0] // 2) * map.pixel_size
    x, y, z = map.origin
    return (x + half, y + half, z + half)


@contextmanager
def open_stack_for_writing(
    path: Path, *, count: int, box_size: int, pixel_size: float, half_precision: bool = False
) -> Generator[np.ndarray[Any, Any]]:
    """A new image stack (.mrcs) to be filled in parts; the file appears when all is written, or not at all.

    Args:
        path: an existing file is replaced.
        count: number of images, at least 1.
        box_size: px.
        pixel_size: Å.
        half_precision: float16 (MRC mode 12) instead of float32.

    Yields:
        (count, box_size, box_size) array mapped onto the file; assign to slices of it.

    Raises:
        ValueError: `count`, `box_size` or `pixel_size` is not above 0.
        OSError: the disk has no room for all of it.
    """
    if count < 1 or box_size < 1:
        raise ValueError(f"{path}: a stack needs images, not {count} of {box_size} px.")
    _check_pixel_size(pixel_size, path)
    mode = 12 if half_precision else 2
    with replacing(path) as temporary:
        file: Any = mrcfile.new_mmap(temporary, (count, box_size, box_size), mrc_mode=mode, overwrite=True)
        with file:
            _claim_disk(temporary)
            file.set_image_stack()
            file.voxel_size = pixel_size
            file.header.label[0] = _LABEL
            yield file.data
            file.reset_header_stats()  # "not determined": to know them would mean reading it all again


def _claim_disk(path: Path) -> None:
    """Take the blocks of a file now: a full disk met while an array is mapped onto it kills the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """A name beside `path` to write to, moved to `path` at the end and removed after an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def has_map_tag(header: Any) -> bool:
    """Whether an mrcfile header carries the `MAP ` tag, which some programs leave out."""
    return bytes(header.map)[:3] == b"MAP"


def _check_pixel_size(pixel_size: float, path: Path) -> None:
    if not (math.isfinite(pixel_size) and pixel_size > 0):
        raise ValueError(f"{path}: pixel_size={pixel_size} must be above 0 Å.")


def _axes(header: Any, path: Path) -> tuple[int, int, int]:
    """Axis (1 x, 2 y, 3 z) that columns, rows and sections run along."""
    axes = (int(header.mapc), int(header.mapr), int(header.maps))
    if axes == (0, 0, 0):  # never set, as in files without a tag
        return (1, 2, 3)
    if sorted(axes) != [1, 2, 3]:
        raise ValueError(f"{path}: the axis order {axes} of the header is not a permutation of 1, 2, 3.")
    return axes


def _pixel_size(header: Any, path: Path) -> float:
    cell = (float(header.cella.x), float(header.cella.y), float(header.cella.z))
    intervals = (int(header.mx), int(header.my), int(header.mz))
    if min(cell) <= 0 or min(intervals) <= 0:
        raise ValueError(
            f"{path}: the header holds no pixel size (cell {cell} Å over {intervals} intervals); "
            "set it, for instance with relion_image_handler --angpix."
        )
    angles = (float(header.cellb.alpha), float(header.cellb.beta), float(header.cellb.gamma))
    sizes = [length / count for length, count in zip(cell, intervals, strict=True)]
    if max(sizes) > 1.001 * min(sizes) or any(angle not in (0.0, 90.0) for angle in angles):
        raise ValueError(
            f"{path}: an isotropic grid is needed, but the voxel is {sizes[0]:g} x {sizes[1]:g} x "
            f"{sizes[2]:g} Å with angles {angles}; resample the map."
        )
    return round(sizes[0], 6)  # the cell is float32, further digits are noise
