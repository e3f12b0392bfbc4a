"""The images that are refined: whole, or without what lies outside the domain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cryosweep import config as schemas
from cryosweep import rules
from cryosweep.config import JobConfig, parse_length
from cryosweep.fourier import gaussian_filter
from cryosweep.io.maps import read_map, write_map
from cryosweep.io.particles import Particles
from cryosweep.job.data import Data
from cryosweep.job.files import checked_mask
from cryosweep.job.masks import cut_mask
from cryosweep.job.memory import MEMORY, budget_of, with_images
from cryosweep.job.stages import SUBTRACTION_VERSION
from cryosweep.job.starting import Start
from cryosweep.mask import soft_mask, threshold_of
from cryosweep.progress import Progress
from cryosweep.reconstruction import HalfMaps, reconstruct_half_maps
from cryosweep.refinement import Refinement
from cryosweep.study.assessment import Ruler
from cryosweep.study.store import Store, digest_values
from cryosweep.subtraction import Rest, rest_of, share_left, share_removed, subtracted

# conf/subtraction/domain.yaml, whatever a run changes of it: what all runs are measured with
COMMON = schemas.DomainSubtraction(
    keep_padding_width=4, rest_threshold=0.15, dilation_radius=0, soft_padding_width=14, smoothing=4.0,
    filter=schemas.RestFilter.fsc,
)  # fmt: skip


@dataclass(frozen=True)
class Images:
    """What is refined: particles whose images lack the rest, and half-maps of them at the starting poses.

    `shadow` is the share of the removed density that is still in those maps; `key` names all this.
    """

    particles: Particles
    half_maps: HalfMaps
    rest: Rest | None
    shadow: float
    key: str


def images_to_refine(
    config: JobConfig, data: Data, start: Start, base: Tensor | None, store: Store,
    device: torch.device, progress: Progress,
) -> Images:  # fmt: skip
    """The images to refine, as the group `subtraction` says, and half-maps of them to begin with."""
    particles = start.particles
    chosen = config.subtraction
    if isinstance(chosen, schemas.NoSubtraction):
        return Images(particles, start.half_maps, None, 0.0, start.key)
    if isinstance(chosen, schemas.FileSubtraction):
        removed = share_removed(checked_mask(chosen.path, particles, device), chosen.role.value)  # pyright: ignore[reportArgumentType]
        filter = chosen.filter
    else:
        assert isinstance(chosen, schemas.DomainSubtraction)
        removed = outside_of(_kept(config, chosen, base, particles, device), config, chosen, data, start)
        filter = chosen.filter
    rest = rest_of(start.half_maps, removed, filter=filter.value)  # pyright: ignore[reportArgumentType]
    lacking = subtracted(particles, rest, device=device)

    def make(folder: Path) -> None:
        progress.start(len(particles), "subtracting")
        maps = reconstruct_half_maps(
            lacking, particles.rotations, particles.shifts, device=device, advance=progress.advance
        )
        for name, volume in zip(("half_a", "half_b"), maps.pair, strict=True):
            write_map(folder / f"{name}.mrc", volume.cpu(), pixel_size=maps.pixel_size)

    # the images themselves are as large as the stacks: they are made anew as they are read
    inputs = [start.key, digest_values(removed.cpu().numpy())]
    folder = store.get("subtraction", SUBTRACTION_VERSION, {"filter": filter.value}, inputs, make)
    a, b = (read_map(folder / f"{name}.mrc").data.to(device) for name in ("half_a", "half_b"))
    half_maps = HalfMaps(a, b, particles.pixel_size)
    held = MEMORY.get(
        ("subtracted", folder.name, str(device)), lambda: with_images(lacking, config),
        budget=budget_of(config),
    )  # fmt: skip
    return Images(held, half_maps, rest, share_left(start.half_maps, half_maps, removed), folder.name)


def _kept(
    config: JobConfig, chosen: schemas.DomainSubtraction, base: Tensor | None, particles: Particles,
    device: torch.device,
) -> Tensor:  # fmt: skip
    """The region that the scoring mask is cut from, with the subtraction's own edge."""
    scoring = config.scoring
    if isinstance(scoring, schemas.ScoringFile):
        return checked_mask(scoring.path, particles, device)
    assert isinstance(scoring, schemas.SoftScoring)
    assert base is not None
    region = replace(scoring, dilation_radius=0, soft_padding_width=chosen.keep_padding_width)
    return cut_mask(base, region, "subtraction", particles.pixel_size)


def outside_of(
    kept: Tensor, config: JobConfig, chosen: schemas.DomainSubtraction, data: Data, start: Start
) -> Tensor:
    """(d, d, d) share of each voxel that is removed: a soft mask of the starting map, less what is kept.

    Raises:
        ValueError: there is nothing outside of `kept`, or nothing in it.
    """
    pixel_size = data.particles.pixel_size
    base = 0.5 * (start.half_maps.half_a + start.half_maps.half_b)
    if chosen.smoothing > 0:
        base = gaussian_filter(base, sigma=chosen.smoothing, pixel_size=pixel_size)
    threshold = threshold_of(base, chosen.rest_threshold, unit="fraction")
    domain = config.mask_base
    if isinstance(domain, schemas.DomainBase) and data.truth is not None:
        # the blurred rim of the domain itself belongs to no neighbour
        base = base * (~data.truth.territory(domain.name)).to(base)
    try:
        around = soft_mask(
            base, threshold=threshold,
            dilation_radius_px=parse_length(chosen.dilation_radius, pixel_size) / pixel_size,
            soft_padding_width_px=parse_length(chosen.soft_padding_width, pixel_size) / pixel_size,
        )  # fmt: skip
        return share_removed(around * (1.0 - kept), "remove")
    except ValueError as error:
        raise ValueError(f"subtraction: {error}") from error


def subtraction_findings(
    config: JobConfig, particles: Particles, images: Images
) -> tuple[rules.Finding, ...]:
    """What is questionable about a subtraction, before the refinement begins."""
    if images.rest is None:
        return ()
    chosen = config.subtraction
    dilated = (
        parse_length(chosen.dilation_radius, particles.pixel_size)
        if isinstance(chosen, schemas.DomainSubtraction)
        else 0.0
    )
    return rules.present((rules.subtraction_dilation(dilated), rules.subtraction_shadow(1.0, images.shadow)))


def subtraction_metrics(
    images: Images, particles: Particles, half_maps: HalfMaps, result: Refinement,
    ruler: Ruler, device: torch.device, progress: Progress,
) -> dict[str, float]:  # fmt: skip
    """What a subtraction left of the rest, and what of the domain's half-map agreement was the rest's."""
    if images.rest is None:
        return {}
    progress.start(len(particles), "reconstructing without subtraction")
    whole = reconstruct_half_maps(
        particles, result.rotations, result.shifts, device=device, advance=progress.advance
    )
    return {
        "subtraction/shadow": images.shadow,
        "subtraction/removed_share": 1.0
        - share_left(whole, half_maps, ruler.mask, first_shell=ruler.first_shell),
    }
