"""The map that masks are cut from, the mask that aligns and the ruler that scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from cryosweep import config as schemas
from cryosweep.config import JobConfig, parse_length
from cryosweep.fourier import gaussian_filter
from cryosweep.io.maps import Map, read_map, write_map
from cryosweep.io.markers import read_markers
from cryosweep.io.particles import Particles
from cryosweep.io.segger import on_grid_of, read_segger
from cryosweep.job.data import Data
from cryosweep.job.files import checked_mask, read_volume, volume_like
from cryosweep.job.stages import MASK_BASE_VERSION, MASK_VERSION
from cryosweep.job.starting import Start
from cryosweep.mask import soft_mask, threshold_of
from cryosweep.segmentation import (
    Segmentation,
    everything_else,
    largest,
    level_of,
    mostly_inside,
    segment,
    territory,
    touching,
)
from cryosweep.study.assessment import Ruler, make_ruler
from cryosweep.study.review import MaskOrigin
from cryosweep.study.store import Store, digest_file, digest_values

# A Gaussian of this share of a resolution leaves a tenth of the amplitude there: smooth enough for a mask.
SMOOTHING_PER_LOWPASS = 1.0 / 3.0


def mask_base(
    config: JobConfig, data: Data, start: Start, device: torch.device, store: Store | None = None
) -> Tensor | None:
    """(d, d, d) the map that masks are cut from, or None where both masks are files.

    Regions are kept in `store`: finding them takes long. Smoothing alone costs little more than reading.

    Raises:
        ValueError: the configuration names a domain or regions that there are not.
    """
    base = config.mask_base
    if isinstance(config.mask, schemas.MaskFile) and isinstance(config.scoring, schemas.ScoringFile):
        return None
    path = base.path if isinstance(base, schemas.FileBase | schemas.RegionsBase) else None
    if path is not None:
        volume = smoothed(config, volume_like(path, data.particles, device), data.particles)
    else:
        volume = smoothed_consensus(config, data, start)
    if isinstance(base, schemas.DomainBase):
        if data.truth is None:
            raise ValueError("mask_base=domain: only simulated data have labelled domains")
        # only the territory comes from the model, as from a segmentation: the density is that of the data
        volume = volume * data.truth.territory(base.name).to(device)
    if isinstance(base, schemas.RegionsBase):
        origin = start.origin if path is None else read_volume(path).origin
        map = Map(volume, data.particles.pixel_size, origin)
        plain = asdict(base)
        files = [plain.pop(name) for name in ("path", "segger", "marker", "label")]
        volume = _kept(
            lambda: map.data * _territory(base, map), store, "mask_base", MASK_BASE_VERSION,
            {**plain, "origin": list(origin)},
            [digest_file(Path(file)) for file in files[1:] if file is not None], map,
        )  # fmt: skip
    return volume


def _kept(
    make: Callable[[], Tensor], store: Store | None, stage: str, version: int,
    parameters: Mapping[str, object], files: Sequence[str], source: Map,
) -> Tensor:  # fmt: skip
    """(d, d, d) what `make` makes of `source`, from the store if there is one; float32 is kept to the bit."""
    if store is None:
        return make()

    def write(folder: Path) -> None:
        write_map(folder / f"{stage}.mrc", make().cpu(), pixel_size=source.pixel_size)

    told = {**parameters, "pixel_size": source.pixel_size}
    inputs = [digest_values(source.data.cpu().numpy()), *files]
    folder = store.get(stage, version, told, inputs, write)
    return read_map(folder / f"{stage}.mrc").data.to(source.data)


def _smoothing(config: JobConfig) -> float:
    """Å, sigma of the Gaussian over the mask base."""
    given = config.mask_base.smoothing
    return SMOOTHING_PER_LOWPASS * config.refinement.initial_lowpass if given is None else given


def smoothed(config: JobConfig, volume: Tensor, particles: Particles) -> Tensor:
    """`volume` as it is smoothed before masks are cut from it."""
    sigma = _smoothing(config)
    return gaussian_filter(volume, sigma=sigma, pixel_size=particles.pixel_size) if sigma > 0 else volume


def smoothed_consensus(config: JobConfig, data: Data, start: Start) -> Tensor:
    """(d, d, d) the mean of the starting half-maps, smoothed as the mask base is."""
    return smoothed(config, 0.5 * (start.half_maps.half_a + start.half_maps.half_b), data.particles)


def _territory(base: schemas.RegionsBase, map: Map) -> Tensor:
    """(d, d, d) bool: the regions of a map that are chosen, or all others.

    Raises:
        ValueError: there are no such regions, or the files do not fit the map.
    """
    try:
        regions = _segmented(base, map)
        ids = _chosen(base, regions, map)
        return everything_else(regions, ids) if base.rest else territory(regions, ids)
    except ValueError as error:
        raise ValueError(f"mask_base=regions: {error}") from error


def _segmented(base: schemas.RegionsBase, map: Map) -> Segmentation:
    if base.segger is not None:
        regions = on_grid_of(read_segger(Path(base.segger)), map)
        return replace(regions, labels=regions.labels.to(map.data.device))
    return segment(
        map.data,
        threshold=level_of(map.data, base.threshold, unit=base.threshold_unit.value),  # pyright: ignore[reportArgumentType]
        steps=base.steps,
        step_px=parse_length(base.step_size, map.pixel_size) / map.pixel_size,
        target=base.target,
    )


def _chosen(base: schemas.RegionsBase, regions: Segmentation, map: Map) -> tuple[int, ...]:
    """Ids of the regions that one of the keys ids, point, marker, largest, label names."""
    if base.ids is not None:
        return tuple(base.ids)
    if base.largest is not None:
        return largest(regions, base.largest)
    if base.label is not None:
        marked = read_volume(base.label).data.to(map.data.device).round() == base.label_value
        return mostly_inside(regions, marked)
    if base.point is not None:
        return (touching(regions, base.point),)
    assert base.marker is not None
    points = [map.to_px(point) for point in read_markers(Path(base.marker))]
    return tuple(dict.fromkeys(touching(regions, point) for point in points))


def cut_mask(
    base: Tensor, made: schemas.SoftMask | schemas.SoftScoring, group: str, pixel_size: float,
    store: Store | None = None,
) -> Tensor:  # fmt: skip
    """(d, d, d) a soft mask of `base` as `group` of the configuration describes it.

    Kept in `store`: cutting a mask costs about five times as much as reading it.

    Raises:
        ValueError: no such mask can be cut, under the name of the group.
    """
    try:
        threshold = threshold_of(base, made.threshold, unit=made.threshold_unit.value)  # pyright: ignore[reportArgumentType]
        dilation_radius_px = parse_length(made.dilation_radius, pixel_size) / pixel_size
        soft_padding_width_px = parse_length(made.soft_padding_width, pixel_size) / pixel_size
        holes_filled = isinstance(made, schemas.SoftMask) and made.fill_holes
        return _kept(
            lambda: soft_mask(
                base, threshold=threshold, dilation_radius_px=dilation_radius_px,
                soft_padding_width_px=soft_padding_width_px, holes_filled=holes_filled,
            ),
            store, "mask", MASK_VERSION,
            {
                "threshold": threshold, "dilation_radius_px": dilation_radius_px,
                "soft_padding_width_px": soft_padding_width_px, "holes_filled": holes_filled,
            },
            [], Map(base, pixel_size, (0.0, 0.0, 0.0)),
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{group}: {error}") from error


def aligning_mask(
    config: JobConfig, base: Tensor | None, particles: Particles, device: torch.device,
    store: Store | None = None,
) -> Tensor:  # fmt: skip
    """(d, d, d) the mask that the search aligns under: a file, or cut from the mask base."""
    if isinstance(config.mask, schemas.MaskFile):
        return checked_mask(config.mask.path, particles, device)
    assert isinstance(config.mask, schemas.SoftMask)
    assert base is not None
    return cut_mask(base, config.mask, "mask", particles.pixel_size, store)


def scoring_ruler(
    config: JobConfig, base: Tensor | None, particles: Particles, device: torch.device,
    store: Store | None = None,
) -> Ruler:  # fmt: skip
    """The scoring mask, a file or cut from the mask base, with the band that the FSC area is taken over."""
    scoring = config.scoring
    if isinstance(scoring, schemas.ScoringFile):
        mask = checked_mask(scoring.path, particles, device)
    else:
        assert isinstance(scoring, schemas.SoftScoring)
        assert base is not None
        mask = cut_mask(base, scoring, "scoring", particles.pixel_size, store)
    return make_ruler(
        mask,
        pixel_size=particles.pixel_size,
        band_low=scoring.band_low,
        band_high=scoring.band_high,
        randomisations=scoring.randomisations,
        seed=config.seed,
    )


def mask_origin(config: JobConfig, base: Tensor | None, mask: Tensor, pixel_size: float) -> MaskOrigin:
    """How the aligning mask was made, as far as the configuration tells."""
    chosen = config.mask
    if not isinstance(chosen, schemas.SoftMask):
        return MaskOrigin(None, None, None, float(mask.double().sum()) * pixel_size**3)
    assert base is not None
    threshold = threshold_of(base, chosen.threshold, unit=chosen.threshold_unit.value)  # pyright: ignore[reportArgumentType]
    # a map from a file may have been smoothed elsewhere
    given = getattr(config.mask_base, "path", None) is not None
    return MaskOrigin(
        padding=parse_length(chosen.soft_padding_width, pixel_size),
        dilation=parse_length(chosen.dilation_radius, pixel_size),
        smoothing=None if given else _smoothing(config),
        region_volume=float((base > threshold).sum()) * pixel_size**3,
        base=base,
    )
