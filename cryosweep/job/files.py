"""Files that a configuration names: reading them, their grids, and the digests that tell one from another."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from cryosweep import config as schemas
from cryosweep.config import JobConfig
from cryosweep.io.maps import SAME_PIXEL_SIZE, Map, read_map, read_mask
from cryosweep.io.particles import Particles, read_particles
from cryosweep.selection import nested_subset
from cryosweep.study.store import digest_file


def read_relion(data: schemas.RelionData | schemas.TwinData) -> Particles:
    """All particles of a STAR file, kept while it does not change; without images where a twin needs none.

    Raises:
        ValueError: there is no such file, or it cannot be used.
    """
    path = Path(data.star)
    if path.is_dir():
        raise ValueError(f"data.star={data.star}: a folder; name the STAR file in it, such as run_data.star")
    if not path.is_file():
        raise ValueError(f"data.star={data.star}: there is no such file")
    is_twin = isinstance(data, schemas.TwinData)
    try:
        return _read_star(
            path.absolute(),
            path.stat().st_mtime_ns,
            data.image_folder,
            data.simulation_seed if is_twin else data.half_set_seed,
            data.ctf_damping.value,
            int(read_volume(twin_maps(data)[0]).data.shape[-1]) if _without_images(data) else None,
        )
    except ValueError as error:
        if is_twin and "image stack" in str(error):
            raise ValueError(f"{error} A twin needs no images where data.snr is given.") from error
        raise


def _without_images(data: schemas.DataConfig) -> TypeGuard[schemas.TwinData]:
    return isinstance(data, schemas.TwinData) and data.snr is not None


def twin_rows(data: schemas.TwinData, particles: Particles) -> Particles:
    """Those of a user's particles that the twin is made of.

    Raises:
        ValueError: there are not so many.
    """
    if data.particles is None:
        return particles
    try:
        rows = nested_subset(particles.half_sets, data.particles, seed=data.simulation_seed)
    except ValueError as error:
        raise ValueError(f"data.particles={data.particles}: {error}") from error
    return particles.take(rows)


def twin_maps(data: schemas.TwinData) -> list[str]:
    """The map of a twin, or both half maps."""
    return [path for path in (data.map, data.half_a, data.half_b) if path is not None]


# The jobs of a sweep are checked one after another and mostly read the same table.
@lru_cache(maxsize=2)
def _read_star(
    path: Path, modified: int, image_folder: str | None, seed: int, damping: str, box_size: int | None
) -> Particles:
    del modified
    return read_particles(
        path,
        image_folder=None if image_folder is None else Path(image_folder),
        half_set_seed=seed,
        ctf_damping=damping,  # pyright: ignore[reportArgumentType]
        box_size=box_size,
    )


def read_volume(path: str) -> Map:
    """A map of the configuration.

    Raises:
        ValueError: there is no such map, or it cannot be used.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such map")
    return read_map(Path(path))


def check_grid(volume: Map, path: str, box_size: int, pixel_size: float) -> None:
    """Refuse a map that does not lie on the grid of the particles.

    Raises:
        ValueError: its box or its pixel size is another.
    """
    size = int(volume.data.shape[-1])
    if size != box_size:
        raise ValueError(
            f"{path}: the map's box is {size} px, that of the particles {box_size} px; "
            "bring the map on their grid first (cryosweep volume --onto, or --pixel-size and --box)"
        )
    if abs(volume.pixel_size / pixel_size - 1.0) > SAME_PIXEL_SIZE:
        raise ValueError(
            f"{path}: the map's pixel size is {volume.pixel_size:g} Å, that of the particles "
            f"{pixel_size:g} Å; correct the header or resample the map"
        )


def volume_like(path: str, particles: Particles, device: torch.device) -> Tensor:
    """(d, d, d) a map on the grid of the particles.

    Raises:
        ValueError: there is no such map, or its grid is another.
    """
    volume = read_volume(path)
    check_grid(volume, path, particles.box_size, particles.pixel_size)
    return volume.data.to(device)


def checked_mask(path: str, particles: Particles, device: torch.device) -> Tensor:
    """(d, d, d) a finished mask on the grid of the particles.

    Raises:
        ValueError: there is no such map, its grid is another, or its values are not those of a mask.
    """
    volume_like(path, particles, device)
    return read_mask(Path(path)).data.to(device)


def map_files(config: JobConfig) -> list[str]:
    """Every map that the configuration names."""
    chosen = (config.consensus, config.mask_base, config.mask, config.scoring, config.subtraction)
    names = ("half_a", "half_b", "path", "label", "start", "mask_path")
    found = [getattr(group, name, None) for group in chosen for name in names]
    if isinstance(config.data, schemas.TwinData):
        found += [*twin_maps(config.data), config.data.domain]
    return [*(path for path in found if path is not None), *getattr(config.fulcrum, "parts", ())]


def mask_files(config: JobConfig) -> list[str]:
    """Those of the maps that are finished masks."""
    found = [
        group.path
        for group in (config.mask, config.scoring)
        if isinstance(group, schemas.MaskFile | schemas.ScoringFile)
    ]
    return [*found, config.data.domain] if isinstance(config.data, schemas.TwinData) else found


def _point_files(config: JobConfig) -> list[str]:
    """Files of markers and regions that the configuration names, besides maps."""
    base, fulcrum = config.mask_base, config.fulcrum
    named = [base.segger, base.marker] if isinstance(base, schemas.RegionsBase) else []
    if isinstance(fulcrum, schemas.FulcrumMarker):
        named.append(fulcrum.path)
    return [path for path in named if path is not None]


def inputs_of(config: JobConfig) -> dict[str, str]:
    """Digest of every input file of a job; simulated particles are what the configuration says.

    Raises:
        ValueError: the particles cannot be read.
    """
    found = {path: digest_file(Path(path)) for path in [*map_files(config), *_point_files(config)]}
    if isinstance(config.data, schemas.RelionData | schemas.TwinData):
        found[config.data.star] = digest_file(Path(config.data.star))
        found |= stacks_read(config.data)
    return found


def stacks_read(data: schemas.RelionData | schemas.TwinData) -> dict[str, str]:
    """State of each image stack that is read; a twin of a given SNR reads none."""
    if _without_images(data):
        return {}
    return {str(stack): file_state(stack) for stack in read_relion(data).stacks}


def inputs_read(config: JobConfig, particles: Particles) -> dict[str, str]:
    """What was read, with a digest; stacks are told by size and time because hashing them takes minutes."""
    named = [particles.path, *(Path(path) for path in map_files(config))]
    named += [Path(path) for path in _point_files(config)]
    if isinstance(config.data, schemas.TwinData):
        named.append(Path(config.data.star))
    found = {str(path): digest_file(path) for path in named}
    return found | {str(stack): file_state(stack) for stack in particles.stacks}


def file_state(path: Path) -> str:
    """Size and time of a file too large to be hashed for every job."""
    state = path.stat()
    return f"{state.st_size} bytes, modified {state.st_mtime_ns}"
