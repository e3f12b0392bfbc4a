"""How much of what half-maps agree on under a mask is neighbouring density, seen without knowing the truth.

Half-maps of one domain agree on whatever lies in the mask, its own density or not. So the neighbours, as the
starting half-maps show them, are put where the refined poses of the domain put them, and the agreement is
taken with and without them. What those maps do not show of the neighbours (density that moves, that poses
blur, or that lies in the domain's own region) stays: the share found is the least that there is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cryosweep.ctf import contrast_transfer
from cryosweep.fourier import half_plane, shift_phase
from cryosweep.io.particles import Particles
from cryosweep.projector import insert, make_reference, new_accumulator
from cryosweep.reconstruction import CHUNK_SAMPLES, HalfMaps, finish_sums, unfiltered
from cryosweep.subtraction import Rest, projected, shared_power

# Shells over which a share is averaged: single shells of a small mask hold few independent samples.
SMOOTHED_SHELLS = 3


@dataclass(frozen=True)
class NeighbourPower:
    """Cross-power of two half-maps under a mask, shell by shell; all three are free of noise in the mean.

    Attributes:
        before: (n_shells,) float64, of the half-maps as they are.
        after: (n_shells,) float64, of both without the neighbours: the domain's.
        between: (n_shells,) float64, of one as it is and the other without the neighbours.
    """

    before: Tensor
    after: Tensor
    between: Tensor

    def share(self, first_shell: int, last_shell: int) -> float:
        """The neighbours' share `1 - sum after / sum before` of a band; 0 where the halves share nothing.

        Below 0 where neighbours and domain cancel each other under the mask, or by chance.
        """
        band = slice(first_shell, last_shell + 1)
        before = float(self.before[band].sum())
        return 1.0 - float(self.after[band].sum()) / before if before > 0.0 else 0.0

    @property
    def share_by_shell(self) -> Tensor:
        """(n_shells,) `1 - after / before`, each a mean over three shells, between 0 and 1."""
        before, after = _smoothed(self.before), _smoothed(self.after)
        share = 1.0 - after / before.clamp_min(torch.finfo(torch.float64).tiny)
        return torch.where(before > 0.0, share, 0.0).clamp(0.0, 1.0)

    @property
    def likeness(self) -> Tensor:
        """(n_shells,) FSC of the map with itself without the neighbours, noise aside, from 0 to 1.

        `between / sqrt(before after)`, each a mean over three shells; 1 where nothing is in common.
        """
        before, after, between = (_smoothed(power) for power in (self.before, self.after, self.between))
        scale = (before.clamp_min(0.0) * after.clamp_min(0.0)).sqrt()
        tiny = torch.finfo(torch.float64).tiny
        return torch.where(scale > 0.0, between / scale.clamp_min(tiny), 1.0).clamp(0.0, 1.0)


def _smoothed(power: Tensor) -> Tensor:
    """Mean over `SMOOTHED_SHELLS`, fewer at the ends."""
    kernel = torch.ones(1, 1, SMOOTHED_SHELLS, dtype=power.dtype, device=power.device)
    total, count = (
        torch.nn.functional.conv1d(row[None, None], kernel, padding=SMOOTHED_SHELLS // 2)[0, 0]
        for row in (power, torch.ones_like(power))
    )
    return total / count


def neighbours_at(
    particles: Particles,
    rest: Rest,
    rotations: Tensor,
    shifts: Tensor,
    *,
    device: torch.device,
    max_shell: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> HalfMaps:
    """What the neighbours contribute to the half-maps of a domain.

    `rest` is projected at the poses of `particles`, where it lies in the images, and reconstructed at other
    poses, those of the domain. No image is read: subtraction and reconstruction are linear, so half-maps
    less these are those of the images that `subtraction.subtracted` would give.

    Args:
        particles: n particles at the poses that `rest` was made with.
        rest: map of the neighbours for each half-set.
        rotations: (n, 3, 3) refined.
        shifts: (n, 2) Å, refined.
        device: where to work.
        max_shell: the last shell that is wanted, at least 1; None: all.
        advance: called with the number of particles done since the last call.
    """
    box_size, dtype = particles.box_size, torch.float32
    plane = half_plane(box_size, max_shell=max_shell, dtype=dtype, device=device)
    chunk = max(1, CHUNK_SAMPLES // plane.k.shape[0])
    frequencies = plane.k / (box_size * particles.pixel_size)
    halves: list[Tensor] = []
    for half, volume in enumerate(rest.maps.pair):
        reference = make_reference(volume.to(device, dtype), max_shell=plane.max_shell)
        sums = new_accumulator(box_size, max_shell=plane.max_shell, dtype=dtype, device=device)
        for rows in (particles.half_sets == half).nonzero().squeeze(-1).split(chunk):
            optics = particles.optics[rows].to(dtype=dtype, device=device)
            transfer = contrast_transfer(optics, frequencies)
            shifts_px = (shifts[rows] / particles.pixel_size).to(device, dtype)
            values = projected(particles, reference, rows, plane) * transfer
            values = values * shift_phase(plane, shifts_px).conj()
            insert(sums, values, transfer.square(), rotations[rows].to(device, dtype), plane)
            if advance is not None:
                advance(len(rows))
        halves.append(unfiltered(finish_sums(sums, max_shell=plane.max_shell)))
    return HalfMaps(halves[0], halves[1], particles.pixel_size)


def neighbour_power(half_maps: HalfMaps, neighbours: HalfMaps, mask: Tensor) -> NeighbourPower:
    """Cross-powers under `mask` (d, d, d) of half-maps as they are, and without `neighbours`."""
    a, b = half_maps.pair
    own_a, own_b = a - neighbours.half_a, b - neighbours.half_b
    before, after, ab, ba = (
        shared_power(HalfMaps(one, other, half_maps.pixel_size), mask)
        for one, other in ((a, b), (own_a, own_b), (a, own_b), (own_a, b))
    )
    return NeighbourPower(before, after, 0.5 * (ab + ba))


def promised_fsc(half_map_fsc: Tensor) -> Tensor:
    """(n_shells,) FSC with the truth that an FSC of half-maps promises for their mean: `sqrt(2F / (1 + F))`.

    Rosenthal & Henderson 2003, J Mol Biol 333, 721, eq. 13; 0 where F is below 0.
    """
    positive = half_map_fsc.clamp(0.0, 1.0)
    return torch.sqrt(2.0 * positive / (1.0 + positive))


def expected_truth(half_map_fsc: Tensor, power: NeighbourPower) -> Tensor:
    """(n_shells,) FSC with the domain's truth that is to be expected: `P sqrt(1 - share)`.

    With P what the half-maps promise, for neighbours that have nothing in common with the domain: of the
    D + N that the halves share, D is the domain's, and a map correlates with D by sqrt(D / (D + N)) of what
    it would without N.

    Args:
        half_map_fsc: (n_shells,) under the mask.
        power: under the same mask.
    """
    return promised_fsc(half_map_fsc) * torch.sqrt(1.0 - power.share_by_shell)


def most_of_truth(half_map_fsc: Tensor, power: NeighbourPower) -> Tensor:
    """(n_shells,) the most that a map can correlate with the domain's truth: `P likeness`.

    Domain and neighbours do have something in common, X, below 0 where one fills the gaps of the other. Then
    the halves share D + N + 2X and their mean correlates with the domain by
    `P (D + X) / sqrt(D (D + N + 2X))`: exact where all neighbours are known. What is not known of them counts
    as the domain's, so this is a bound, and a loose one.

    Args:
        half_map_fsc: (n_shells,) under the mask.
        power: under the same mask.
    """
    return promised_fsc(half_map_fsc) * power.likeness
