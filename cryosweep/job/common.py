"""Scores on images that are the same for every setting of `subtraction`, so that those settings compare.

Every run is scored on the images that it refined. Two that differ in what was subtracted from them are so
scored on different images. Here both are scored, at their own refined poses, on images from which the same
has been taken: all but the domain, as `subtraction=domain` takes it when nothing about it is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cryosweep import config as schemas
from cryosweep.config import JobConfig
from cryosweep.job.data import Data
from cryosweep.job.memory import MEMORY, budget_of
from cryosweep.job.scores import left_out_areas
from cryosweep.job.starting import Start
from cryosweep.job.subtraction import COMMON, Images, images_to_refine
from cryosweep.progress import Progress
from cryosweep.reconstruction import HalfMaps, half_map_sums, unfiltered
from cryosweep.refinement import Refinement
from cryosweep.study.assessment import (
    Ruler,
    frozen_summary,
    held_out_log_likelihood,
    masked_fsc,
    start_summary,
)
from cryosweep.study.store import Store, digest_values
from cryosweep.subtraction import USABLE_GREY_SCALE, grey_scale

PREFIX = "common/"


@dataclass(frozen=True)
class CommonScores:
    """What the refined poses of a run are worth on the common images.

    Attributes:
        metrics: by metric name.
        curves: (n_shells,) FSC under the scoring mask by column of `fsc.csv`.
        held_out: (n,) as `held_out_log_likelihood` has it.
        left_out: (blocks,) FSC area with each block of particles left out; None if not asked for.
        images: tells these images from others.
    """

    metrics: dict[str, float]
    curves: dict[str, Tensor]
    held_out: Tensor
    left_out: Tensor | None
    images: str


@dataclass(frozen=True)
class OwnScores:
    """The same parts on the images that were refined: half-maps, likelihoods, areas of blocks."""

    half_maps: HalfMaps
    held_out: Tensor
    left_out: Tensor | None


def wants_common_images(config: JobConfig, swept: Sequence[str]) -> bool:
    """Whether they are asked for or may be needed: something is subtracted, or `swept` has such a key."""
    if config.scoring.common_images is not None:
        return config.scoring.common_images
    varies = any(key == "subtraction" or key.startswith("subtraction.") for key in swept)
    return varies or not isinstance(config.subtraction, schemas.NoSubtraction)


def common_images(
    config: JobConfig, data: Data, start: Start, base: Tensor | None, store: Store, device: torch.device,
    progress: Progress,
) -> Images | str:  # fmt: skip
    """The common images and half-maps of them at the starting poses, or why there are none."""
    if not config.scoring.common_images:
        return "scoring.common_images is not true"
    if isinstance(config.mask_base, schemas.ConsensusBase):
        return "mask_base=consensus is the whole map, so there is nothing to subtract"
    if isinstance(config.consensus, schemas.ConsensusFiles):
        factor, _ = grey_scale(start.particles, start.half_maps, device=device)
        low, high = USABLE_GREY_SCALE
        if not low <= factor <= high:
            return f"the images hold {factor:.2f} times what the starting half-maps predict"
    try:
        return images_to_refine(
            replace(config, subtraction=COMMON), data, start, base, store, device, progress
        )
    except ValueError as error:
        return f"nothing lies outside the domain ({error})"


def common_scores(
    config: JobConfig, common: Images, refined: Images, own: OwnScores, result: Refinement, ruler: Ruler,
    device: torch.device, progress: Progress,
) -> CommonScores:  # fmt: skip
    """Score the refined poses on the common images; where a run refined those, its own scores are theirs."""
    if common.key != refined.key:
        particles = common.particles if result.scale is None else common.particles.rescaled(result.scale)
        progress.start(len(particles), "reconstructing from common images")
        sums = half_map_sums(
            particles, result.rotations, result.shifts, device=device, advance=progress.advance
        )
        half_maps = HalfMaps(unfiltered(sums[0]), unfiltered(sums[1]), particles.pixel_size)
        own = OwnScores(
            half_maps,
            held_out_log_likelihood(
                particles, result.rotations, result.shifts, half_maps, ruler, device=device
            ),
            left_out_areas(config, particles, result, sums, ruler, device, progress),
        )
    curve = masked_fsc(own.half_maps, ruler.mask)
    start = MEMORY.get(
        ("common start", common.key, digest_values(ruler.mask.cpu().numpy())),
        lambda: masked_fsc(common.half_maps, ruler.mask),
        budget=budget_of(config),
    )
    pixel_size = own.half_maps.pixel_size
    found = {
        **frozen_summary(curve, ruler, pixel_size),
        **start_summary(start, ruler, box_size=int(ruler.mask.shape[-1]), pixel_size=pixel_size),
        "score/held_out_likelihood": float(own.held_out.mean()),
    }
    metrics = {f"{PREFIX}{name}": value for name, value in found.items()}
    return CommonScores(
        metrics, {"common": curve, "start_common": start}, own.held_out, own.left_out, common.key
    )
