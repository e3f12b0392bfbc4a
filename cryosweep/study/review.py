"""The rules applied to one job: what they object to in its set-up, and in its result.

`rules` holds the rules, on plain numbers; here those numbers are taken from maps, curves and poses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cryosweep import rules
from cryosweep.accuracy import needed_step, pose_certainty
from cryosweep.anisotropy import ConicalFsc, sampling_compensation
from cryosweep.geometry import moves_about
from cryosweep.io.particles import Particles
from cryosweep.mask import centre_of_mass, threshold_of
from cryosweep.reconstruction import HalfMaps
from cryosweep.refinement import Refinement, RefinementSettings
from cryosweep.resolution import FscCurves, crossing, effective_samples
from cryosweep.rules import Finding
from cryosweep.study.assessment import Score, directional_fsc, rim_share

# Share of the 99.9th percentile above which a map is density, where the share under a mask is counted.
DENSITY_FROM = 0.1


@dataclass(frozen=True)
class MaskOrigin:
    """How an aligning mask was made, as far as it is known.

    Attributes:
        padding: Å, of the soft edge, or None for a finished mask, of which it is measured.
        dilation: Å, or None for a finished mask.
        smoothing: Å, sigma of the Gaussian over its base, or None where the base came as it is.
        region_volume: Å^3 of the region before dilation; of a finished mask all that it encloses.
        base: (d, d, d), the map it was cut from, or None for a finished mask.
    """

    padding: float | None
    dilation: float | None
    smoothing: float | None
    region_volume: float
    base: Tensor | None = None


def review_setup(
    mask: Tensor, start: Tensor, particles: Particles, *, fulcrum: Tensor, settings: RefinementSettings,
    made: MaskOrigin, resolution: float,
) -> tuple[Finding, ...]:  # fmt: skip
    """What is questionable about a job before it runs.

    Args:
        mask: (d, d, d) that aligns.
        start: (d, d, d) mean of the starting half-maps, smoothed: what the edge of a finished mask may cut.
        particles: with their half-sets.
        fulcrum: (3,) Å from the box centre.
        settings: of the refinement.
        made: how the mask was made.
        resolution: Å, that the map has so far.
    """
    pixel_size = particles.pixel_size
    centre = centre_of_mass(mask).double().cpu()
    second = int(particles.half_sets.sum())
    prior = settings.rotation_prior is not None or settings.shift_prior is not None
    under_mask = density_share(start, mask) if settings.scale else 1.0
    return rules.present(
        (
            *rules.check_mask(
                mask, pixel_size=pixel_size, resolution=resolution, soft_padding_width=made.padding,
                density=start if made.base is None else made.base, base=made.base,
                # the finest that may be reached: what is rough for that is rough for anything coarser
                base_resolution=settings.max_resolution or 2.0 * pixel_size,
            ),
            None if made.dilation is None else rules.dilation(made.dilation),
            rules.extent_in_sigma(settings.rotation_extent, settings.rotation_prior, what="rotation"),
            rules.extent_in_sigma(settings.shift_extent, settings.shift_prior, what="shift"),
            rules.recentring_without_prior(
                settings.recentre, rotation=settings.rotation_prior, shift=settings.shift_prior
            ),
            rules.small_domain(rules.protein_mass(made.region_volume), has_prior=prior),
            rules.scale_of_a_domain(settings.scale, masked_share=under_mask),
            rules.half_balance(len(particles) - second, second),
            rules.fulcrum_lever(
                float((centre * pixel_size - fulcrum.double().cpu()).norm()),
                radius=(3.0 * made.region_volume / (4.0 * math.pi)) ** (1.0 / 3.0),
                rotation_extent=settings.rotation_extent, shift_extent=settings.shift_extent,
            ),
        )
    )  # fmt: skip


def density_share(volume: Tensor, mask: Tensor) -> float:
    """Share of a map's density (d, d, d), above a tenth of its 99.9th percentile, that lies under a mask."""
    density = torch.where(volume > threshold_of(volume, DENSITY_FROM, unit="fraction"), volume, 0.0)
    total = float(density.sum())
    return float((density * mask).sum()) / total if total > 0.0 else 1.0


@dataclass(frozen=True)
class Review:
    """What the rules say of a result, with the numbers they were given.

    Attributes:
        findings: worst first.
        metrics: numbers by metric name.
        cones: conical FSC under the mask.
        turns: (n, 3) degrees from the starting poses, about the axes of the map.
        shifts: (n, 2) Å, that the fulcrum's projection moved.
    """

    findings: tuple[Finding, ...]
    metrics: dict[str, float]
    cones: ConicalFsc
    turns: Tensor
    shifts: Tensor


def review_curves(curves: FscCurves, mask: Tensor) -> tuple[Finding, ...]:
    """R7, R8, R9, R22 and R25 of the FSC curves under a mask (d, d, d)."""
    none, tight, corrected, randomised = (
        getattr(curves, name).cpu().numpy() for name in ("none", "tight", "corrected", "randomised")
    )
    reached = {
        name: crossing(getattr(curves, name), 0.143, box_size=curves.box_size, pixel_size=curves.pixel_size)
        for name in ("none", "tight", "corrected")
    }
    samples, first = effective_samples(mask).cpu().numpy(), curves.randomised_from
    return rules.present(
        (
            rules.tight_and_corrected(tight, corrected, randomised_from=first),
            rules.corrected_and_unmasked(tight, corrected, none, randomised_from=first),
            rules.fsc_tail(tight, samples),
            rules.mask_leak(randomised, samples, randomised_from=first),
            rules.unmasked_is_worse(reached["none"], reached["tight"]),
            rules.nyquist_reached(reached["corrected"], nyquist=2.0 * curves.pixel_size),
        )
    )


def review_result(
    scored: Score, half_maps: HalfMaps, mask: Tensor, particles: Particles, result: Refinement, *,
    fulcrum: Tensor, settings: RefinementSettings, made: MaskOrigin,
) -> Review:  # fmt: skip
    """Judge refined half-maps, their curves and poses.

    Args:
        scored: curves of the half-maps.
        half_maps: (d, d, d) unfiltered, at the refined poses.
        mask: (d, d, d) that aligned.
        particles: at their starting poses.
        result: of the refinement.
        fulcrum: (3,) Å from the box centre.
        settings: of the refinement.
        made: how the mask was made.
    """
    own = scored.own
    reached, reached_tight = (
        crossing(curve, 0.143, box_size=own.box_size, pixel_size=own.pixel_size)
        for curve in (own.corrected, own.tight)
    )
    diameter, inspection = 2.0 * result.effective_radius, result.inspection
    step = needed_step(reached, diameter)
    certainty = pose_certainty(result.covariance, rotation_step=step, shift_step=reached / 2.0)
    cones = directional_fsc(half_maps, mask, resolution=reached_tight)
    scf = sampling_compensation(result.rotations[:, 2])
    rim = rim_share(half_maps, mask, resolution=reached)
    turns, shifts = moves_about(
        result.rotations, result.shifts, particles.rotations, particles.shifts, fulcrum.double().cpu()
    )
    turns = torch.rad2deg(turns)
    shape = settings.extent_shape
    moves = (
        ("rotation", "°", turns, settings.rotation_extent), ("shift", " Å", shifts, settings.shift_extent)
    )  # fmt: skip
    findings = rules.present(
        (
            None if made.smoothing is None else rules.base_smoothness(made.smoothing, resolution=reached),
            *review_curves(own, mask),
            # extents about poses that moved on say nothing about the change since the start
            *(
                None if settings.recentre
                else rules.at_limit(shape.size(moved).numpy(), extent, what=what, unit=unit)
                for what, unit, moved, extent in moves
            ),
            rules.angular_accuracy(inspection.accuracy_rotation, resolution=reached, diameter=diameter),
            rules.pose_certainty(certainty.numpy(), step=step),
            rules.precision_spread(inspection.precision.numpy()),
            rules.orientation(cones.cfar, scf),
            rules.rim_share(rim),
            None if result.audit is None else result.audit.finding,
        )
    )  # fmt: skip
    metrics = {
        "accuracy/rotation": inspection.accuracy_rotation,
        "accuracy/shift": inspection.accuracy_shift,
        "accuracy/rotation_needed": step,
        "pose/certainty_mean": float(certainty.mean()),
        "orientation/cfar": cones.cfar,
        "orientation/scf": scf,
        "orientation/precision_ratio": rules.precision_ratio(inspection.precision.numpy()),
        "mask/rim_share": rim,
    }
    return Review(findings, metrics, cones, turns, shifts)
