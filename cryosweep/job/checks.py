"""What would stop a job, told before any of its work begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from cryosweep import config as schemas
from cryosweep import rules
from cryosweep.config import JobConfig
from cryosweep.io.maps import Map, read_map, read_mask
from cryosweep.io.markers import read_marker, read_markers
from cryosweep.io.segger import on_grid_of, read_segger
from cryosweep.job.files import check_grid, map_files, mask_files, read_relion, read_volume, twin_rows
from cryosweep.local_resolution import MIN_WIDTH_PX

Result = TypeVar("Result")


def check_job(config: JobConfig) -> list[str]:
    """What about the files of a job would stop it, one sentence each; reads headers and tables only."""
    found: list[str] = []
    if config.compute.device.startswith("cuda") and not torch.cuda.is_available():
        found.append(
            f"compute.device={config.compute.device}: no CUDA device is visible; "
            "use compute.device=cpu or auto"
        )
    box: tuple[int, float] | None = None
    if isinstance(config.data, schemas.SimulatedData):
        box = config.data.box_size, config.data.pixel_size
    elif isinstance(config.data, schemas.RelionData | schemas.TwinData):
        particles = _attempt(found, lambda data=config.data: read_relion(data))
        if particles is not None:
            if isinstance(config.data, schemas.TwinData):
                _attempt(found, lambda data=config.data, all=particles: twin_rows(data, all))
            box = particles.box_size, particles.pixel_size
            found += _bands_beyond_nyquist(config, 2.0 * particles.pixel_size)
    for path in map_files(config):
        volume = _attempt(found, lambda path=path: read_volume(path))
        if volume is not None and box is not None:
            _attempt(found, lambda volume=volume, path=path, box=box: check_grid(volume, path, *box))
        if volume is not None and path in mask_files(config):
            wrong = rules.mask_values(float(volume.data.min()), float(volume.data.max()))
            found += [] if wrong is None else [f"{path}: {wrong}"]
    base = config.mask_base
    if isinstance(base, schemas.FileBase):  # smoothing lowers its maximum at most
        found += _thresholds_above(config, base.path)
    if isinstance(base, schemas.RegionsBase):
        if base.marker is not None:
            _attempt(found, lambda path=base.marker: read_markers(_existing(path)))
        if base.segger is not None:
            _attempt(found, lambda path=base.segger: _check_segger(path, config, box))
    window = config.postprocessing.local_resolution_window
    if window is not None and box is not None and window < MIN_WIDTH_PX * box[1]:
        found.append(
            f"postprocessing.local_resolution_window={window:g}: too narrow for an FSC at {box[1]:g} Å per "
            f"px; give {MIN_WIDTH_PX * box[1]:g} Å or more"
        )
    if window is not None and box is not None and window > box[0] * box[1]:
        found.append(
            f"postprocessing.local_resolution_window={window:g}: wider than the box of {box[0] * box[1]:g} Å"
        )
    fulcrum = config.fulcrum
    if isinstance(fulcrum, schemas.FulcrumMarker):
        _attempt(found, lambda: _check_marker(fulcrum, config, box))
    if isinstance(fulcrum, schemas.FulcrumPx) and box is not None:
        outside = [value for value in fulcrum.position if not 0.0 <= value <= box[0] - 1]
        if outside and not isinstance(config.data, schemas.SimulatedData):  # said of those earlier
            found.append(
                f"fulcrum.position={list(fulcrum.position)} px: lies outside the {box[0]} px box; a px is "
                f"{box[1]:g} Å"
            )
    if isinstance(fulcrum, schemas.Interface) and isinstance(config.mask, schemas.MaskFile):
        for path in fulcrum.parts:  # a finished mask gives no threshold to cut maps at
            if Path(path).is_file():
                _attempt(found, lambda path=path: read_mask(Path(path)))
    return found


def _attempt(found: list[str], action: Callable[[], Result]) -> Result | None:
    """The result of `action`; a fault of the user's files goes to `found` instead."""
    try:
        return action()
    except (ValueError, OSError) as error:
        found.append(str(error))
        return None


def _bands_beyond_nyquist(config: JobConfig, nyquist: float) -> list[str]:
    """Resolutions finer than the images of a STAR file can show; those of simulated data are told earlier."""
    loop, scoring = config.refinement, config.scoring
    asked = {
        "refinement.initial_lowpass": loop.initial_lowpass, "refinement.max_resolution": loop.max_resolution,
        "scoring.band_low": scoring.band_low, "scoring.band_high": scoring.band_high,
    }  # fmt: skip
    if isinstance(config.consensus, schemas.HomogeneousConsensus):
        asked["consensus.initial_lowpass"] = config.consensus.initial_lowpass
        asked["consensus.max_resolution"] = config.consensus.max_resolution
    if isinstance(config.data, schemas.TwinData):
        asked["data.resolution"] = config.data.resolution
    found = (
        rules.band_beyond_nyquist(value, nyquist=nyquist, key=key)
        for key, value in asked.items()
        if value is not None
    )
    return [str(each) for each in found if each is not None]


def _check_marker(fulcrum: schemas.FulcrumMarker, config: JobConfig, box: tuple[int, float] | None) -> None:
    """Refuse a marker that lies outside the box of the particles, in the frame of the starting half maps."""
    position = fulcrum.position if fulcrum.path is None else read_marker(_existing(fulcrum.path))
    consensus, origin = config.consensus, (0.0, 0.0, 0.0)
    if position is None or box is None:
        return
    if isinstance(consensus, schemas.ConsensusFiles):
        if not Path(consensus.half_a).is_file():  # said already
            return
        origin = read_map(Path(consensus.half_a)).origin
    half = box[0] // 2 * box[1]
    point = [place - start - half for place, start in zip(position, origin, strict=True)]
    outside = rules.fulcrum_in_box(point, box_length=box[0] * box[1])
    if outside is not None:
        given = fulcrum.path or f"fulcrum.position={list(position)}"
        raise ValueError(f"{given}: {outside}")


def _thresholds_above(config: JobConfig, path: str) -> list[str]:
    """Thresholds in map units that no voxel of the mask base exceeds."""
    asked = {
        f"{name}.threshold": group.threshold
        for name, group in (("mask", config.mask), ("scoring", config.scoring))
        if isinstance(group, schemas.SoftMask | schemas.SoftScoring)
        and group.threshold_unit is schemas.ThresholdUnit.absolute
    }
    try:
        highest = float(read_volume(path).data.max()) if asked else 0.0
    except (ValueError, OSError):  # said already
        return []
    return [
        f"{key}={value:g}: no voxel of {path} lies above it (its maximum is {highest:g}); lower the threshold"
        for key, value in asked.items()
        if value >= highest
    ]


def _existing(path: str) -> Path:
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such file")
    return Path(path)


def _check_segger(path: str, config: JobConfig, box: tuple[int, float] | None) -> None:
    """Refuse a Segger file whose regions do not lie on the map that they are to cut."""
    file = read_segger(_existing(path))
    named = getattr(config.mask_base, "path", None) or getattr(config.consensus, "half_a", None)
    if named is not None:
        if Path(named).is_file():  # if not, that is said already
            on_grid_of(file, read_map(Path(named)))
    elif box is not None:
        size, pixel_size = box
        on_grid_of(file, Map(torch.zeros(()).expand(size, size, size), pixel_size, (0.0, 0.0, 0.0)))
