"""How good a refinement is: FSC under its own and under the scoring mask, and, where known, against truth.

Every curve is taken from unfiltered half-maps of one full-box reconstruction at the poses in question. Beside
the curves stands the held-out log-likelihood, which judges poses: each image against the other half's map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cryosweep.anisotropy import ConicalFsc, conical_fsc
from cryosweep.ctf import contrast_transfer
from cryosweep.fourier import (
    cut_cube,
    even_fft_size,
    frequency_radius,
    half_plane,
    shell_count,
    shift_phase,
    spectrum_of_images,
)
from cryosweep.io.particles import Particles
from cryosweep.likelihood import noise_power
from cryosweep.mask import centre_of_mass, mask_radius_px
from cryosweep.projector import make_reference, slices
from cryosweep.reconstruction import CHUNK_SAMPLES, FourierSums, HalfMaps, half_map_sums, unfiltered
from cryosweep.resolution import (
    FscCurves,
    area_sd,
    band_shells,
    crossing,
    crossing_interval,
    five_curves,
    fsc,
    fsc_area,
)
from cryosweep.sharpening import Sharpened, guinier_columns
from cryosweep.simulate import (
    DomainTruth,
    FrameChange,
    align_frames,
    pose_errors,
)

OWN_CURVES = ("none", "spherical", "loose", "tight", "corrected")
# Fewer images of an optics group than this give no noise spectrum of their own.
LEAST_FOR_NOISE = 50


@dataclass(frozen=True)
class Ruler:
    """What every job of a sweep is measured with.

    Attributes:
        mask: (d, d, d) the frozen scoring mask.
        first_shell: of the FSC area's band.
        last_shell: of the FSC area's band.
        randomisations: phase randomisations averaged for a corrected curve.
        seed: of the random phases.
    """

    mask: Tensor
    first_shell: int
    last_shell: int
    randomisations: int
    seed: int


def make_ruler(
    mask: Tensor,
    *,
    pixel_size: float,
    band_low: float,
    band_high: float | None,
    randomisations: int,
    seed: int,
) -> Ruler:
    """A ruler whose band runs from `band_low` to `band_high` Å (default: 0.95 of Nyquist).

    Raises:
        ValueError: the band does not fit the box.
    """
    nyquist = 2.0 * pixel_size
    high = nyquist / 0.95 if band_high is None else band_high
    first, last = band_shells(band_low, high, box_size=int(mask.shape[-1]), pixel_size=pixel_size)
    return Ruler(mask, first, last, randomisations, seed)


@dataclass(frozen=True)
class Score:
    """Curves of one pair of half-maps: under a mask of its own, and under the ruler's."""

    own: FscCurves
    frozen: FscCurves

    def summary(self, ruler: Ruler) -> dict[str, float]:
        """Crossings in Å and FSC areas, by metric name."""
        at = partial(crossing, box_size=self.own.box_size, pixel_size=self.own.pixel_size)
        found: dict[str, float] = {}
        for name in OWN_CURVES:
            curve = getattr(self.own, name)
            found[f"resolution/own_{name}_0143"] = at(curve, 0.143)
            found[f"resolution/own_{name}_05"] = at(curve, 0.5)
        found["resolution/frozen_corrected_0143"] = at(self.frozen.corrected, 0.143)
        found["fsc_area/own"] = _area(self.own.tight, ruler)
        found["fsc_area/frozen_corrected"] = _area(self.frozen.corrected, ruler)
        return found | frozen_summary(self.frozen.tight, ruler, self.own.pixel_size)


def frozen_summary(curve: Tensor, ruler: Ruler, pixel_size: float) -> dict[str, float]:
    """What is ranked on, and how sure it is, of an FSC curve (n_shells,) under the ruler's mask.

    Crossings in Å with their intervals, the FSC area and its SD, by metric name.
    """
    at = partial(crossing, curve, box_size=int(ruler.mask.shape[-1]), pixel_size=pixel_size)
    fine, coarse = crossing_interval(curve, ruler.mask, 0.143, pixel_size=pixel_size)
    return {
        "resolution/frozen_0143": at(0.143),
        "resolution/frozen_05": at(0.5),
        "fsc_area/frozen": _area(curve, ruler),
        "fsc_area/frozen_sd": area_sd(
            curve, ruler.mask, first_shell=ruler.first_shell, last_shell=ruler.last_shell
        ),
        "resolution/frozen_0143_fine": fine,
        "resolution/frozen_0143_coarse": coarse,
    }


def score(half_maps: HalfMaps, mask: Tensor, ruler: Ruler) -> Score:
    """Score half-maps (d, d, d) under `mask` and under the ruler's."""
    curves: list[FscCurves] = []
    for each in (mask, ruler.mask):
        generator = torch.Generator(device=each.device).manual_seed(ruler.seed)
        curves.append(
            five_curves(
                *half_maps.pair,
                each,
                pixel_size=half_maps.pixel_size,
                generator=generator,
                randomisations=ruler.randomisations,
            )
        )
    return Score(*curves)


def start_summary(start: Tensor, ruler: Ruler, *, box_size: int, pixel_size: float) -> dict[str, float]:
    """Metrics of the curve (n_shells,) that the starting half-maps have under the ruler's mask."""
    return {
        "start/resolution_frozen_0143": crossing(start, 0.143, box_size=box_size, pixel_size=pixel_size),
        "start/fsc_area_frozen": _area(start, ruler),
    }


def masked_fsc(half_maps: HalfMaps, mask: Tensor) -> Tensor:
    """(n_shells,) FSC of half-maps under a mask."""
    return fsc(*(half * mask for half in half_maps.pair))


def directional_fsc(half_maps: HalfMaps, mask: Tensor, *, resolution: float) -> ConicalFsc:
    """Conical FSC of half-maps under a mask, on a cube round it, up to 1.25 times as fine as `resolution` Å.

    The cube is that of the mask (at most the box): what lies outside is zero anyway.
    """
    centre = (0, 0, 0)
    size = box = int(mask.shape[-1])
    exact = centre_of_mass(mask)
    x, y, z = (round(float(value)) for value in exact)
    around = even_fft_size(2.0 * mask_radius_px(mask, exact) + 2.0)
    if around < box:
        size, centre = around, (x, y, z)
    cubes = [cut_cube(half * mask, centre, size) for half in half_maps.pair]
    finest = round(1.25 * size * half_maps.pixel_size / resolution)
    return conical_fsc(
        cubes[0], cubes[1], pixel_size=half_maps.pixel_size,
        last_shell=min(max(finest, 2), shell_count(size) - 1),
    )  # fmt: skip


# The soft edge, and the band above the resolution, in which a rim is looked for.
_INSIDE = 0.99
_RIM_BAND = 2.5


def rim_share(half_maps: HalfMaps, mask: Tensor, *, resolution: float) -> float:
    """Share of what half-maps have in common under a mask that lies in its soft edge (0 < m < 0.99).

    `sum a b m^2` over the edge over that of the whole mask, both halves band-passed from 2.5 times
    `resolution` Å to it; 0 where nothing is in common.
    """
    size = int(mask.shape[-1])
    radius = frequency_radius(size, dims=3, dtype=mask.dtype, device=mask.device)
    last = size * half_maps.pixel_size / resolution
    band = (radius >= last / _RIM_BAND) & (radius <= last)
    a, b = (torch.fft.irfftn(torch.fft.rfftn(half) * band, s=mask.shape) for half in half_maps.pair)
    common = (a * b).double() * mask.double().square()
    total = float(common.sum())
    return float(common[(mask > 0) & (mask < _INSIDE)].sum()) / total if total > 0.0 else 0.0


def _area(curve: Tensor, ruler: Ruler) -> float:
    return fsc_area(curve, first_shell=ruler.first_shell, last_shell=ruler.last_shell)


def held_out_log_likelihood(
    particles: Particles,
    rotations: Tensor,
    shifts: Tensor,
    half_maps: HalfMaps,
    ruler: Ruler,
    *,
    device: torch.device,
    advance: Callable[[int], None] | None = None,
) -> Tensor:
    """How much better the *other* half's map explains each image at its pose than no map does.

    With S the slice of the other half's map under the ruler's mask and sigma^2 the noise variance of a shell,

        log L = sum_shell [2 a Re sum conj(CTF I) ph S - a^2 sum CTF^2 |S|^2] / sigma^2

    over the ruler's band (Scheres 2012, eq. 4, less what no pose changes). The image was not in the map, so
    noise that a pose has fitted does not count for it. One factor a a shell, that which suits all images of
    the half best, takes the place of a filter: the maps are unfiltered, and noise in their empty shells would
    count as wrong density. The noise variance is the mean power of the images, which no run changes.

    Args:
        particles: n particles.
        rotations: (n, 3, 3) the poses that the half-maps were made at.
        shifts: (n, 2) Å.
        half_maps: unfiltered, of those particles.
        ruler: mask and band.
        device: where to work.
        advance: called with the number of particles done since the last call.

    Returns:
        (n,) float64; larger is better.
    """
    box, pixel_size = particles.box_size, particles.pixel_size
    plane = half_plane(box, max_shell=ruler.last_shell, dtype=torch.float32, device=device)
    shells = plane.max_shell + 1
    chunk = max(1, CHUNK_SAMPLES // plane.k.shape[0])
    frequencies = plane.k / (box * pixel_size)
    # per particle and shell: cross term, norm of the model, power of the image
    terms = torch.zeros(3, len(particles), shells, dtype=torch.float64)
    for half, other in ((0, half_maps.half_b), (1, half_maps.half_a)):
        reference = make_reference(other.float() * ruler.mask.float(), max_shell=plane.max_shell)
        for rows in (particles.half_sets == half).nonzero().squeeze(-1).split(chunk):
            optics = particles.optics[rows].to(dtype=torch.float32, device=device)
            transfer = contrast_transfer(optics, frequencies)
            images = spectrum_of_images(particles.images(rows).to(device), plane)
            phase = shift_phase(plane, (shifts[rows] / pixel_size).to(device, torch.float32))
            model = slices(reference, rotations[rows].to(device, torch.float32), plane) * transfer * phase
            found = ((images.conj() * model).real, model.abs().square(), images.abs().square())
            for into, samples in zip(terms, found, strict=True):
                by_shell = torch.zeros(len(rows), shells, dtype=torch.float64, device=device)
                into[rows] = by_shell.index_add_(1, plane.shell, samples.double()).cpu()
            if advance is not None:
                advance(len(rows))
    samples = torch.bincount(plane.shell, minlength=shells).cpu()
    noise = _noise_of_each(terms[2], samples, particles.optics_group)
    cross, norm = terms[0] / noise, terms[1] / noise
    gain = torch.zeros(len(particles), dtype=torch.float64)
    band = slice(ruler.first_shell, ruler.last_shell + 1)
    for half in (0, 1):
        rows = particles.half_sets == half
        scale = (cross[rows].sum(dim=0) / norm[rows].sum(dim=0).clamp_min(1e-30)).clamp_min(0.0)
        gain[rows] = (2.0 * scale * cross[rows] - scale.square() * norm[rows])[:, band].sum(dim=1)
    return gain


def _noise_of_each(power: Tensor, samples: Tensor, group: Tensor) -> Tensor:
    """(n, n_shells) noise variance for each particle: that of its optics group, or of all if it is small."""
    pooled = noise_power(power.sum(dim=0), samples * len(power))
    noise = pooled.expand_as(power).clone()
    for number in group.unique().tolist():
        rows = group == number
        count = int(rows.sum())
        if count >= LEAST_FOR_NOISE:
            noise[rows] = noise_power(power[rows].sum(dim=0), samples * count)
    return noise


def jackknife_areas(
    particles: Particles,
    rotations: Tensor,
    shifts: Tensor,
    ruler: Ruler,
    *,
    blocks: int,
    device: torch.device,
    whole: tuple[FourierSums, FourierSums] | None = None,
    advance: Callable[[int], None] | None = None,
) -> Tensor:
    """(blocks,) FSC area under the ruler's mask with each block of particles left out, at fixed poses.

    The particles of each half set are dealt into blocks in their order, so runs on the same particles and
    half sets leave out the same ones and their differences can be paired.

    Args:
        particles: n particles.
        rotations: (n, 3, 3).
        shifts: (n, 2) Å.
        ruler: mask and band.
        blocks: 2 to the number of particles in the smaller half set.
        device: where to work.
        whole: `half_map_sums` of all particles at these poses, where they are there already.
        advance: called with the number of particles done since the last call; without `whole` each counts
            twice.

    Raises:
        ValueError: there are too few particles for so many blocks.
    """
    smaller = int(torch.bincount(particles.half_sets, minlength=2).min())
    if not 2 <= blocks <= smaller:
        raise ValueError(
            f"{blocks} blocks cannot be left out of half sets of {smaller} particles; give 2 or more, "
            "and no more than there are particles"
        )
    if whole is None:
        whole = half_map_sums(particles, rotations, shifts, device=device, advance=advance)
    block_of = torch.empty(len(particles), dtype=torch.int64)
    for half in (0, 1):
        rows = particles.half_sets == half
        block_of[rows] = torch.arange(int(rows.sum())) % blocks
    areas: list[float] = []
    for block in range(blocks):
        rows = (block_of == block).nonzero().squeeze(-1)
        part = half_map_sums(
            particles.take(rows), rotations[rows], shifts[rows], device=device, advance=advance
        )
        halves = [unfiltered(all - left) for all, left in zip(whole, part, strict=True)]
        areas.append(
            _area(masked_fsc(HalfMaps(halves[0], halves[1], particles.pixel_size), ruler.mask), ruler)
        )
    return torch.tensor(areas, dtype=torch.float64)


@dataclass(frozen=True)
class TruthScore:
    """A map and its poses against the truth of one simulated domain.

    Attributes:
        curve: (n_shells,) FSC of the combined map with the true density under the ruler's mask.
        rotation_error: (n,) degrees.
        shift_error: (n,) Å, of the domain's projected centre of mass.
        frame: rigid change of frame that was taken out.
    """

    curve: Tensor
    rotation_error: Tensor
    shift_error: Tensor
    frame: FrameChange

    def summary(self, ruler: Ruler, *, box_size: int, pixel_size: float) -> dict[str, float]:
        """Metrics by name, without the prefix that says whose they are."""
        return {
            "resolution_05": crossing(self.curve, 0.5, box_size=box_size, pixel_size=pixel_size),
            "fsc_area": _area(self.curve, ruler),
            "rotation_error_median": float(self.rotation_error.median()),
            "rotation_error_p90": float(self.rotation_error.quantile(0.9)),
            "shift_error_median": float(self.shift_error.median()),
        }


def score_against_truth(
    half_maps: HalfMaps,
    rotations: Tensor,
    shifts: Tensor,
    *,
    truth: DomainTruth,
    ruler: Ruler,
) -> TruthScore:
    """Compare half-maps (d, d, d) and the poses (n, 3, 3), (n, 2) Å they were made at with the truth.

    The true density is rendered in the refinement's frame, after the one rigid change of frame that every
    local refinement is free to make.
    """
    poses = truth.poses
    centre = truth.shape.centre_of_mass
    frame = align_frames(rotations, shifts, poses.rotations, poses.shifts, point=centre)
    rotation_error, shift_error = pose_errors(
        rotations, shifts, poses.rotations, poses.shifts, frame=frame, point=centre
    )
    box_size = int(ruler.mask.shape[-1])
    density = truth.shape.in_frame(frame, box_size=box_size, pixel_size=half_maps.pixel_size)
    combined = half_maps.half_a + half_maps.half_b
    curve = fsc(combined * ruler.mask, density.to(combined) * ruler.mask)
    return TruthScore(curve, rotation_error, shift_error, frame)


def curve_table(
    score: Score,
    start: Tensor,
    truth: TruthScore | None,
    start_truth: TruthScore | None,
    more: Mapping[str, Tensor],
) -> pd.DataFrame:
    """Every curve as a column, one row a shell; `more` are those of what was measured besides."""
    columns: dict[str, Tensor] = {
        "frequency": score.own.frequency,
        **{f"own_{name}": getattr(score.own, name) for name in (*OWN_CURVES[:-1], "randomised", "corrected")},
        "frozen": score.frozen.tight,
        "frozen_randomised": score.frozen.randomised,
        "frozen_corrected": score.frozen.corrected,
        "start_frozen": start,
        **more,
    }
    if truth is not None and start_truth is not None:
        columns |= {"truth": truth.curve, "start_truth": start_truth.curve}
    table = pd.DataFrame({name: curve.cpu().numpy() for name, curve in columns.items()})
    table.insert(0, "shell", np.arange(len(table)))
    return table


def guinier_table(sharpened: Sharpened) -> pd.DataFrame:
    """Table of a Guinier plot, one row a shell: 1/d^2 (1/Å^2) and ln amplitudes."""
    table = pd.DataFrame({name: column.cpu().numpy() for name, column in guinier_columns(sharpened).items()})
    table.insert(0, "shell", table.index.to_numpy())
    return table
