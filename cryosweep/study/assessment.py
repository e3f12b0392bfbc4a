"""How good a refinement is: FSC under its own and under the scoring mask, and, where known, against truth.

Every curve is taken from unfiltered half-maps of one full-box reconstruction at the poses in question.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cryosweep.anisotropy import ConicalFsc, conical_fsc
from cryosweep.fourier import cut_cube, even_fft_size, frequency_radius, shell_count
from cryosweep.mask import centre_of_mass, mask_radius_px
from cryosweep.reconstruction import HalfMaps
from cryosweep.resolution import FscCurves, area_sd, band_shells, crossing, five_curves, fsc, fsc_area
from cryosweep.sharpening import Sharpened, guinier_columns
from cryosweep.simulate import (
    Domain,
    DomainTruth,
    FrameChange,
    align_frames,
    pose_errors,
    truth_in_frame,
)

OWN_CURVES = ("none", "spherical", "loose", "tight", "corrected")


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
        frozen = self.frozen.tight
        found["resolution/frozen_0143"] = at(frozen, 0.143)
        found["resolution/frozen_05"] = at(frozen, 0.5)
        found["resolution/frozen_corrected_0143"] = at(self.frozen.corrected, 0.143)
        found["fsc_area/own"] = _area(self.own.tight, ruler)
        found["fsc_area/frozen"] = _area(frozen, ruler)
        found["fsc_area/frozen_corrected"] = _area(self.frozen.corrected, ruler)
        found["fsc_area/frozen_sd"] = area_sd(
            frozen, ruler.mask, first_shell=ruler.first_shell, last_shell=ruler.last_shell
        )
        return found


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
    domain: Domain,
    truth: DomainTruth,
    ruler: Ruler,
) -> TruthScore:
    """Compare half-maps (d, d, d) and the poses (n, 3, 3), (n, 2) Å they were made at with the truth.

    The true density is rendered in the refinement's frame, after the one rigid change of frame that every
    local refinement is free to make.
    """
    poses = truth.poses
    centre = domain.centre_of_mass
    frame = align_frames(rotations, shifts, poses.rotations, poses.shifts, point=centre)
    rotation_error, shift_error = pose_errors(
        rotations, shifts, poses.rotations, poses.shifts, frame=frame, point=centre
    )
    box_size = int(ruler.mask.shape[-1])
    density = truth_in_frame(domain, frame, box_size=box_size, pixel_size=half_maps.pixel_size)
    combined = half_maps.half_a + half_maps.half_b
    curve = fsc(combined * ruler.mask, density.to(combined) * ruler.mask)
    return TruthScore(curve, rotation_error, shift_error, frame)


def curve_table(
    score: Score, start: Tensor, truth: TruthScore | None, start_truth: TruthScore | None
) -> pd.DataFrame:
    """Every curve as a column, one row a shell."""
    columns: dict[str, Tensor] = {
        "frequency": score.own.frequency,
        **{f"own_{name}": getattr(score.own, name) for name in (*OWN_CURVES[:-1], "randomised", "corrected")},
        "frozen": score.frozen.tight,
        "frozen_randomised": score.frozen.randomised,
        "frozen_corrected": score.frozen.corrected,
        "start_frozen": start,
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
