"""Particle subtraction: what lies outside one domain is projected from a half-map and taken out of images.

    image - scale CTF(k) exp(-2 pi i k.t) slice_R(rest of the particle's own half-map)

Each image meets the half-map of its own half-set alone. What remains is the domain and all the noise, what
the half-map did not hold of the rest (density that moves, or that poses blur), and the half-map's own noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cryosweep.ctf import contrast_transfer
from cryosweep.fourier import (
    HalfPlane,
    centred_range,
    half_plane,
    images_of_spectrum,
    shell_sum,
    shift_phase,
    spectrum_of_images,
)
from cryosweep.io.maps import open_stack_for_writing
from cryosweep.io.particles import Particles, write_particles
from cryosweep.projector import Reference, make_reference, slices
from cryosweep.reconstruction import CHUNK_SAMPLES, HalfMaps, weigh_shells
from cryosweep.resolution import first_shell_below, fsc

MaskRole = Literal["keep", "remove"]
RestFilter = Literal["fsc", "none"]

WRITE_CHUNK = 128
# A mask that removes, or keeps, less than this share of the box is taken for a mistake.
LEAST_SHARE = 1e-6
# The grey scale of half-maps and images is compared where the half-maps are mostly signal.
GREY_SCALE_FSC = 0.5
GREY_SCALE_PARTICLES = 500
USABLE_GREY_SCALE = (0.5, 2.0)
TOLERABLE_GREY_SCALE = 0.1
# Standard deviations by which half-maps correlate better with the other half-set's noise, if exchanged.
EXCHANGED = 6.0


@dataclass(frozen=True)
class Window:
    """Soft disc that a refinement multiplies its images with.

    Attributes:
        inner: 1 up to here, as a fraction of half the box.
        outer: 0 from here on, along a raised cosine.
    """

    inner: float
    outer: float

    def __post_init__(self) -> None:
        if not 0.0 < self.inner < self.outer:
            raise ValueError(
                f"a window needs 0 < inner < outer, in fractions of half the box, not {self.inner:g} and "
                f"{self.outer:g}; CryoSPARC's is 0.85 and 0.99"
            )

    def disc(self, box_size: int) -> Tensor:
        """(d, d) its values on an image."""
        axis = centred_range(box_size, dtype=torch.float32, device="cpu") / (0.5 * box_size)
        radius = torch.sqrt(axis[:, None].square() + axis.square())
        position = ((radius - self.inner) / (self.outer - self.inner)).clamp(0.0, 1.0)
        return 0.5 + 0.5 * torch.cos(math.pi * position)


@dataclass(frozen=True)
class Rest:
    """What is taken out of the images: a map for each half-set.

    Attributes:
        maps: half-maps, filtered and multiplied by `removed`.
        removed: (d, d, d) in [0, 1], the share of each voxel that is removed.
        window: of the images that the half-maps were made from, or None.
    """

    maps: HalfMaps
    removed: Tensor
    window: Window | None


def share_removed(mask: Tensor, role: MaskRole) -> Tensor:
    """(d, d, d) share of each voxel that is removed, from a mask of what to keep or of what to remove.

    Programs differ in what the mask of a subtraction means: RELION's marks what to keep, CryoSPARC's what to
    remove. So the role is always said.

    Raises:
        ValueError: values outside [0, 1], or nothing would be removed, or nothing kept.
    """
    low, high = float(mask.min()), float(mask.max())
    if low < 0.0 or high > 1.0:
        raise ValueError(f"a mask holds values from 0 to 1, not {low:g} to {high:g}")
    removed = mask if role == "remove" else 1.0 - mask
    share = float(removed.double().mean())
    if not LEAST_SHARE < share < 1.0 - LEAST_SHARE:
        what = "removed" if share < 0.5 else "kept"
        raise ValueError(f"a mask of what to {role} that leaves nothing to be {what}; is its role the other?")
    return removed


def rest_of(
    half_maps: HalfMaps, removed: Tensor, *, filter: RestFilter, window: Window | None = None
) -> Rest:
    """The part of each half-map that is to be removed.

    With the filter "fsc" each shell is weighted by the half-maps' FSC under `removed`, which is the Wiener
    weight SSNR / (1 + SSNR) of a half-map: it leaves least of missed signal and injected noise together
    (measured in docs/subtraction.md). That curve is all that the half-sets share.

    Args:
        half_maps: unfiltered, at the grey scale of the images.
        removed: (d, d, d) in [0, 1].
        filter: "fsc", or "none" for the half-maps as they are.
        window: of the images that the half-maps were made from.

    Raises:
        ValueError: the boxes differ.
    """
    if removed.shape != half_maps.half_a.shape:
        raise ValueError(
            f"the mask's box is {removed.shape[-1]} px, that of the half-maps "
            f"{half_maps.half_a.shape[-1]} px; resample the mask first"
        )
    a, b = half_maps.pair
    if filter == "fsc":
        weights = fsc(a * removed, b * removed).clamp(0.0, 1.0)
        a, b = weigh_shells(a, weights), weigh_shells(b, weights)
    return Rest(HalfMaps(a * removed, b * removed, half_maps.pixel_size), removed, window)


@dataclass(frozen=True, eq=False, kw_only=True)
class SubtractedParticles(Particles):
    """Particles whose images come with the rest taken out, at the poses of `source`; nothing is written.

    Table, stacks and poses are those of the particles themselves.

    Attributes:
        source: the particles with their images as stored.
        references: the rest of each half-set.
        plane: K samples, on the device where the work is done.
        scale: (n,) float64 factor of each particle's projection.
        window: the images are multiplied with it before the subtraction; None: they are not.
    """

    source: Particles
    references: tuple[Reference, Reference]
    plane: HalfPlane
    scale: Tensor
    window: Window | None

    def take(self, index: Tensor) -> SubtractedParticles:
        """The particles at `index` (k,), in that order."""
        taken = super().take(index)
        assert isinstance(taken, SubtractedParticles)
        return replace(taken, source=self.source.take(index), scale=self.scale[index])

    def images(self, index: Tensor) -> Tensor:
        """Images at `index` (b,) without the rest: (b, box, box) float32 on the CPU.

        The mean, and what lies beyond Nyquist in the corners of the transform, stay as stored.
        """
        images = self.source.images(index)
        if self.window is not None:
            images = images * self.window.disc(self.box_size)
        for half, reference in enumerate(self.references):
            places = (self.half_sets[index] == half).nonzero().squeeze(-1)
            for some in places.split(_chunk(self.plane)):
                if len(some) == 0:  # an empty tensor splits into one empty part
                    continue
                rows = index[some]
                signal = projected(self.source, reference, rows, self.plane)
                signal = signal * self.scale[rows, None].to(signal.real)
                images[some] -= images_of_spectrum(signal, self.plane).cpu()
        return images


def subtracted(
    particles: Particles,
    rest: Rest,
    *,
    device: torch.device,
    scale: Tensor | None = None,
    window: Window | None = None,
) -> SubtractedParticles:
    """`particles` with `rest` taken out of their images as these are read.

    Args:
        particles: n particles at the poses that the half-maps were made with.
        rest: of those half-maps, in the order of the half-sets.
        device: where projections are computed.
        scale: (n,) contrast of each particle; None: 1.
        window: that the images are multiplied with, as the refinement that takes them does.

    Raises:
        ValueError: the half-maps come from images under another window, or lie on another grid.
    """
    if window != rest.window:
        raise ValueError(
            f"the half-maps come from images {_under(rest.window)}, and these images are to be "
            f"{_under(window)}: the grey scale towards the edge would not match; use one window for both"
        )
    box_size = int(rest.removed.shape[-1])
    if box_size != particles.box_size:
        raise ValueError(
            f"the half-maps' box is {box_size} px, that of the particles {particles.box_size} px; "
            "resample the half-maps first"
        )
    if scale is not None and scale.shape != (len(particles),):
        raise ValueError(f"{len(particles)} particles need as many scales, not {tuple(scale.shape)}")
    a, b = (make_reference(half.to(device, torch.float32)) for half in rest.maps.pair)
    own = {field.name: getattr(particles, field.name) for field in fields(Particles)}
    return SubtractedParticles(
        **own,
        source=particles,
        references=(a, b),
        plane=half_plane(box_size, dtype=torch.float32, device=device),
        scale=torch.ones(len(particles), dtype=torch.float64) if scale is None else scale.double().cpu(),
        window=window,
    )


def projected(particles: Particles, reference: Reference, index: Tensor, plane: HalfPlane) -> Tensor:
    """(b, K) transform of a map as the particles at `index` (b,) show it: posed, shifted, under their CTF."""
    device, dtype = plane.k.device, plane.k.dtype
    frequencies = plane.k / (plane.box_size * particles.pixel_size)
    transfer = contrast_transfer(particles.optics[index].to(dtype=dtype, device=device), frequencies)
    shifts_px = (particles.shifts[index] / particles.pixel_size).to(device, dtype)
    rotations = particles.rotations[index].to(device, dtype)
    return slices(reference, rotations, plane) * transfer * shift_phase(plane, shifts_px)


def _under(window: Window | None) -> str:
    if window is None:
        return "without a window"
    return f"under the window {window.inner:g} to {window.outer:g}"


def _chunk(plane: HalfPlane) -> int:
    return max(1, CHUNK_SAMPLES // plane.k.shape[0])


# ---- checks by number ----


def shared_power(half_maps: HalfMaps, mask: Tensor) -> Tensor:
    """(n_shells,) cross-power of two half-maps under a mask: what they share, free of noise in the mean."""
    a, b = (torch.fft.rfftn(half * mask) for half in half_maps.pair)
    return shell_sum((a * b.conj()).real, dims=3)


def share_left(before: HalfMaps, after: HalfMaps, mask: Tensor, *, first_shell: int = 1) -> float:
    """Power that half-maps share under `mask` after a subtraction, over what they shared before.

    From `first_shell` to the last one before the halves' FSC first fell below 0.143. Cross-power of two
    halves holds no noise in the mean. Under the mask of what was removed, with maps at the poses of the
    subtraction, it is the shadow: subtraction and reconstruction are linear, so it shows whether half-maps,
    poses, CTF and grey scale belong together, and not what the map of the rest never held.

    Args:
        before: half-maps of the images as stored.
        after: half-maps of the same images at the same poses, the rest taken out.
        mask: (d, d, d).
        first_shell: at least 1.
    """
    reach = first_shell_below(fsc(*(half * mask for half in before.pair)), 0.143)
    old, new = (
        float(shared_power(maps, mask)[first_shell : max(reach, first_shell + 1)].sum())
        for maps in (before, after)
    )
    return new / old


def grey_scale(particles: Particles, half_maps: HalfMaps, *, device: torch.device) -> tuple[float, float]:
    """How half-maps explain images at their poses, each those of its own half-set; of up to 500 particles.

    Returns:
        The factor to explain them best by, in least squares, over the shells where the half-maps' FSC exceeds
        0.5: 1 if both have one grey scale. And how many standard deviations of chance the two correlate by
        in the shells beyond: a half-map holds the noise of the images it was made from.
    """
    plane = half_plane(particles.box_size, dtype=torch.float32, device=device)
    reach = max(first_shell_below(fsc(*half_maps.pair), GREY_SCALE_FSC) - 1, 1)
    within = plane.count(reach)
    chosen = torch.arange(0, len(particles), max(1, len(particles) // GREY_SCALE_PARTICLES))
    samples = plane.k.shape[0]
    cross, power, chance = (torch.zeros(samples, dtype=torch.float64, device=device) for _ in range(3))
    for half, volume in enumerate(half_maps.pair):
        reference = make_reference(volume.to(device, torch.float32))
        for rows in chosen[particles.half_sets[chosen] == half].split(_chunk(plane)):
            predicted = projected(particles, reference, rows, plane)
            images = spectrum_of_images(particles.images(rows).to(device), plane)
            squared = predicted.abs().square()
            cross += (images * predicted.conj()).real.double().sum(dim=0)
            power += squared.double().sum(dim=0)
            chance += (0.5 * images.abs().square() * squared).double().sum(dim=0)
    tiny = torch.finfo(torch.float64).tiny
    factor = cross[:within].sum() / power[:within].sum().clamp_min(tiny)
    deviations = cross[within:].sum() / chance[within:].sum().clamp_min(tiny).sqrt()
    return float(factor), float(deviations)


def check_half_maps(particles: Particles, half_maps: HalfMaps, *, device: torch.device) -> tuple[str, ...]:
    """What to say about half-maps that come from elsewhere: nothing if their grey scale is within 10 %.

    Raises:
        ValueError: the grey scale is off by more than a factor of two or of the other sign, or the two are
            exchanged: each holds the noise of the other half-set's images.
    """
    factor, own = grey_scale(particles, half_maps, device=device)
    exchanged = HalfMaps(half_maps.half_b, half_maps.half_a, half_maps.pixel_size)
    _, other = grey_scale(particles, exchanged, device=device)
    low, high = USABLE_GREY_SCALE
    said = f"the images hold {factor:.2f} times what the half-maps at their poses predict"
    if not low <= factor <= high:
        raise ValueError(
            f"{said}; give unfiltered half-maps of these very particles, contrast and window (cryosweep "
            "reconstruct makes them)"
        )
    if other > own + EXCHANGED:
        raise ValueError(
            "the half-maps are exchanged: each holds the noise of the other half-set's images, which a "
            "subtraction would carry from one half-set into the other; give them in the other order "
            "(half-set 1 first)"
        )
    if abs(factor - 1.0) <= TOLERABLE_GREY_SCALE:
        return ()
    return (f"{said}, so the subtraction takes too little or too much; half-maps filtered or rescaled?",)


# ---- files ----


def recentred(
    images: Tensor, rotations: Tensor, shifts_px: Tensor, *, centre_px: tuple[int, int, int], box_size: int
) -> tuple[Tensor, Tensor]:
    """Images cut about the projection of a point, and their shifts in the map frame that begins there.

    Images move by whole pixels, so nothing is interpolated, and what leaves one edge of the old box comes in
    again at the other, as in RELION; the rest of the move, half a pixel at most, stays in the shift.

    Args:
        images: (b, n, n).
        rotations: (b, 3, 3).
        shifts_px: (b, 2) x, y px.
        centre_px: x, y, z px of the new box centre, from the old one.
        box_size: px of the new images, at most n.

    Returns:
        (b, box_size, box_size) images; (b, 2) px shifts.
    """
    n = int(images.shape[-1])
    landing = shifts_px + (rotations @ torch.tensor(centre_px).to(rotations))[:, :2]
    whole = landing.round()
    places = centred_range(box_size, dtype=torch.int64, device=images.device) + n // 2
    x, y = ((places + move[:, None].long()) % n for move in whole.to(images.device).unbind(-1))
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return images[batch, y[:, :, None], x[:, None, :]], landing - whole


def write_subtracted(
    particles: Particles,
    folder: Path,
    *,
    centre_px: tuple[int, int, int] | None = None,
    box_size: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> Path:
    """Write images and table of `particles`, in the dialect they were read in, for other programs to go on.

    `particles.mrcs` and `particles.star` appear in `folder`. The images are free of odd aberrations and of
    anisotropic magnification, and their table says so. Poses stay as they are; with `centre_px` the
    origins are those of the new frame. The column `rlnImageOriginalName` keeps the old image names.

    Args:
        particles: n, mostly from `subtracted`; their images are read once, in chunks.
        folder: there already.
        centre_px: x, y, z px from the box centre, the point to cut the images about; None: not moved.
        box_size: px of the new images; None: as they are.
        advance: called with the number of images done since the last call.

    Returns:
        The STAR file.
    """
    size = particles.box_size if box_size is None else box_size
    stack, star = folder / "particles.mrcs", folder / "particles.star"
    shifts_px = particles.shifts / particles.pixel_size
    moved = centre_px is not None
    with open_stack_for_writing(
        stack, count=len(particles), box_size=size, pixel_size=particles.pixel_size
    ) as out:
        for rows in torch.arange(len(particles)).split(WRITE_CHUNK):
            images = particles.images(rows)
            if moved or size != particles.box_size:
                centre = centre_px if centre_px is not None else (0, 0, 0)
                places = shifts_px[rows] if moved else torch.zeros_like(shifts_px[rows])
                images, left = recentred(
                    images, particles.rotations[rows], places, centre_px=centre, box_size=size
                )
                if moved:
                    shifts_px[rows] = left
            out[int(rows[0]) : int(rows[-1]) + 1] = images.numpy()
            if advance is not None:
                advance(len(rows))
    optics_table = particles.optics_table
    if optics_table is not None and "rlnImageSize" in optics_table:
        optics_table = optics_table.assign(rlnImageSize=str(size))
    written = replace(
        replace(particles, optics_table=optics_table).with_corrected_images(),
        stacks=(stack,),
        stack_of=torch.zeros(len(particles), dtype=torch.int64),
        index_in_stack=torch.arange(len(particles)),
        box_size=size,
    )
    write_particles(
        written, star, rotations=particles.rotations, shifts=shifts_px * particles.pixel_size,
        extra={"rlnImageOriginalName": np.asarray(particles.table["rlnImageName"].astype(str))},
    )  # fmt: skip
    return star
