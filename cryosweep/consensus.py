"""Consensus: the poses of the whole complex, before any part of it is looked at by itself.

The loop is that of the local refinement with a mask round everything, extents up to all orientations, and a
mask that may follow the map. What it leaves, refined poses and half-maps at them, is where local refinements
begin.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cryosweep.fourier import low_pass
from cryosweep.io.particles import Particles
from cryosweep.mask import centre_of_mass, near_far_mask, spherical_mask
from cryosweep.reconstruction import HalfMaps, reconstruct_half_maps
from cryosweep.refinement import (
    IterationRecord,
    Refinement,
    RefinementSettings,
    RefinementState,
    last_common_shell,
    refine,
)
from cryosweep.resolution import FscCurves, five_curves, fsc

# The soft sphere that stands for no mask: from here, as shares of half the box, to the box.
SPHERE_INNER = 0.85


@dataclass(frozen=True)
class DynamicMask:
    """A mask that is cut from the map in every iteration.

    Attributes:
        level: share of the map's maximum; what lies above it is the region.
        near: Å, the mask is 1 up to this distance from the region.
        far: Å, from this distance on it is 0; a raised cosine lies between.
        starts: Å, there is no mask but the soft sphere until the map reaches this resolution.
    """

    level: float = 0.2
    near: float = 6.0
    far: float = 14.0
    starts: float = 12.0

    def __post_init__(self) -> None:
        if not (0.0 < self.level < 1.0 and 0.0 <= self.near < self.far):
            raise ValueError(
                f"a dynamic mask needs a level between 0 and 1 and 0 <= near < far, not level "
                f"{self.level:g}, near {self.near:g} Å, far {self.far:g} Å"
            )


@dataclass(frozen=True)
class Consensus:
    """Result of a consensus refinement.

    Attributes:
        particles: with the refined poses as their own.
        half_maps: unfiltered, full box, at those poses.
        mask: (d, d, d) the last one.
        curves: five FSC curves under `mask`.
        refinement: the record of the loop.
    """

    particles: Particles
    half_maps: HalfMaps
    mask: Tensor
    curves: FscCurves
    refinement: Refinement


def whole_box_sphere(box_size: int, *, device: torch.device | str) -> Tensor:
    """(d, d, d) soft sphere that touches the box."""
    half = box_size / 2.0
    return spherical_mask(box_size, outer_px=half, inner_px=SPHERE_INNER * half, device=device)


def dynamic_mask(half_maps: HalfMaps, *, resolution: float, settings: DynamicMask) -> Tensor:
    """Mask (d, d, d) round what exceeds `level` of the maximum of the two halves' mean at `resolution` Å."""
    mean = 0.5 * (half_maps.half_a + half_maps.half_b)
    limit = max(resolution, 2.0 * half_maps.pixel_size)
    volume = low_pass(mean, resolution=limit, pixel_size=half_maps.pixel_size)
    return near_far_mask(
        volume > settings.level * float(volume.max()),
        near_px=settings.near / half_maps.pixel_size,
        far_px=settings.far / half_maps.pixel_size,
        dtype=volume.dtype,
    )


def automatic_mask(half_maps: HalfMaps, settings: DynamicMask | None = None) -> Tensor:
    """Dynamic mask (d, d, d) of half-maps at the resolution that they reach inside the soft sphere.

    Where that is coarser than the mask `starts` at, the soft sphere itself.
    """
    settings = settings or DynamicMask()
    box_size = int(half_maps.half_a.shape[-1])
    sphere = whole_box_sphere(box_size, device=half_maps.half_a.device).to(half_maps.half_a)
    shell = last_common_shell(fsc(*(half * sphere for half in half_maps.pair)))
    resolution = box_size * half_maps.pixel_size / max(shell, 1)
    if resolution > settings.starts:
        return sphere
    return dynamic_mask(half_maps, resolution=resolution, settings=settings)


def consensus_curves(half_maps: HalfMaps, mask: Tensor, *, seed: int = 0) -> FscCurves:
    """The five FSC curves of unfiltered half-maps under `mask` (d, d, d)."""
    generator = torch.Generator(device=mask.device).manual_seed(seed)
    return five_curves(*half_maps.pair, mask, pixel_size=half_maps.pixel_size, generator=generator)


def refine_consensus(
    particles: Particles,
    start: HalfMaps,
    *,
    mask: Tensor | DynamicMask | None,
    settings: RefinementSettings,
    device: torch.device,
    memory_budget: float = math.inf,
    advance: Callable[[int], None] | None = None,
    on_iteration: Callable[[IterationRecord], None] | None = None,
    resume: RefinementState | None = None,
    on_state: Callable[[RefinementState], None] | None = None,
) -> Consensus:
    """Refine the poses of whole particles and reconstruct both half-maps at them.

    Rotations turn about the centre of the mask, so that extents of shift and rotation do not mix.

    Args:
        particles: n particles; their poses are where extents and priors have their centres.
        start: half-maps (d, d, d) to begin with; one map twice where there are none yet: then
            `initial_lowpass` bounds what the half-sets have in common.
        mask: static (d, d, d), one that follows the map, or None for a soft sphere.
        settings: extents, priors, schedule, regularisation.
        device: where to work.
        memory_budget: bytes, as for `refine`.
        advance: called with numbers of particles: prepared once, searched per iteration, reconstructed twice.
        on_iteration: called after each iteration.
        resume: go on from here, as for `refine`; `start` then only has to be there.
        on_state: called after each iteration that another one follows.
    """
    first = mask if isinstance(mask, Tensor) else whole_box_sphere(particles.box_size, device=device)
    # whole voxels, as the refinement takes its own centre: rotations then move no shift
    fulcrum = centre_of_mass(first).round().double().cpu() * particles.pixel_size

    def follow(half_maps: HalfMaps, resolution: float) -> Tensor | None:
        assert isinstance(mask, DynamicMask)
        if resolution > mask.starts:
            return None
        return dynamic_mask(half_maps, resolution=resolution, settings=mask).float()

    result = refine(
        particles, start, first, fulcrum=fulcrum, settings=settings, device=device,
        memory_budget=memory_budget, advance=advance, on_iteration=on_iteration,
        remask=follow if isinstance(mask, DynamicMask) else None, resume=resume, on_state=on_state,
    )  # fmt: skip
    if result.scale is not None:
        particles = particles.rescaled(result.scale)
    half_maps = reconstruct_half_maps(
        particles, result.rotations, result.shifts, device=device, advance=advance
    )
    last = automatic_mask(half_maps, mask) if isinstance(mask, DynamicMask) else first
    return Consensus(
        particles=replace(particles, rotations=result.rotations, shifts=result.shifts),
        half_maps=half_maps,
        mask=last,
        curves=consensus_curves(half_maps, last, seed=settings.seed),
        refinement=result,
    )
