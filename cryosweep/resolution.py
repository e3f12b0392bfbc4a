"""Fourier shell correlation: the five curves of two half maps, the resolution they give, their intervals.

A curve is a `(n_shells,)` float64 tensor for shells 0 to Nyquist, shell `round(|k|)`; every element of the
half transform counts once, as in RELION. Shell s of a box of n pixels of p Å lies at `s / (n p)` 1/Å. Shell 0
holds one real number, so an FSC is 1 or -1 there and means nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import ndimage
from torch import Tensor

from cryosweep.fourier import centred_range, frequency_radius, shell_count, shell_sum

# RELION leaves the masked curve as it is in the first two randomised shells, where the boundary between true
# and random phases shows.
_UNCORRECTED_SHELLS = 2


def fsc(volume_a: Tensor, volume_b: Tensor) -> Tensor:
    """Fourier shell correlation of two volumes (multiply both by a mask first for a masked one).

    Transforms run in the dtype of the volumes, sums in float64: float32 instead of float64
    volumes change a curve by less than 1e-6.

    Args:
        volume_a: (d, d, d) real.
        volume_b: (d, d, d) real.

    Returns:
        (n_shells,) float64 in [-1, 1]; 0 in shells where a volume has no power.

    Raises:
        ValueError: the volumes differ in shape.
    """
    _require_same_shape(volume_a, volume_b)
    return fsc_of_spectra(torch.fft.rfftn(volume_a), torch.fft.rfftn(volume_b))


def fsc_of_spectra(spectrum_a: Tensor, spectrum_b: Tensor) -> Tensor:
    """(..., n_shells) float64 FSC of two batches (..., d, d, d // 2 + 1) of `torch.fft.rfftn` transforms."""
    cross = shell_sum((spectrum_a * spectrum_b.conj()).real, dims=3)
    power_a = shell_sum(spectrum_a.abs().square(), dims=3)
    power_b = shell_sum(spectrum_b.abs().square(), dims=3)
    scale = torch.sqrt(power_a * power_b)
    return torch.where(scale > 0, cross / scale.clamp_min(torch.finfo(torch.float64).tiny), 0.0)


@dataclass(frozen=True)
class FscCurves:
    """FSC of two half maps under several masks; every curve is (n_shells,) float64.

    Attributes:
        pixel_size: Å.
        box_size: px.
        none: without a mask.
        spherical: under a soft sphere that touches the box.
        loose: under a generous mask, 25 to 40 Å round the tight one.
        tight: under the mask itself.
        randomised: under the mask itself, with random phases from shell `randomised_from`; mean over draws.
        corrected: `tight` less what the mask alone explains.
        randomised_from: first shell with random phases.
    """

    pixel_size: float
    box_size: int
    none: Tensor
    spherical: Tensor
    loose: Tensor
    tight: Tensor
    randomised: Tensor
    corrected: Tensor
    randomised_from: int

    @property
    def frequency(self) -> Tensor:
        """(n_shells,) float64 frequency of each shell, 1/Å."""
        shells = torch.arange(self.none.numel(), dtype=torch.float64, device=self.none.device)
        return shells / (self.box_size * self.pixel_size)


def five_curves(
    half_a: Tensor,
    half_b: Tensor,
    mask: Tensor,
    *,
    pixel_size: float,
    generator: torch.Generator,
    randomisations: int = 3,
    randomise_below: float = 0.8,
) -> FscCurves:
    """FSC of two half maps: unmasked, under a sphere, a loose and the tight mask, and corrected for the last.

    The sphere is 1 up to 0.85 of half the box and 0 at half the box; the loose mask is 1 up to 25 Å from the
    region where `mask` exceeds 0.5 and 0 from 40 Å on (raised cosines). For the correction (Chen et al. 2013,
    Ultramicroscopy 135, 24) the phases of each half map are made random beyond a shell, the tight mask is
    applied, and `corrected_fsc` takes off what the two still have in common. As in RELION that shell is the
    first, from 1, where the unmasked curve is below `randomise_below`.

    The correction sees only what the mask makes of shells that keep their phases. If the unmasked curve is
    low from shell 1 on (a small particle in a noisy box), none does, and `corrected` is hardly stricter than
    `tight`: `randomised_from` tells, and 0.143 for `randomise_below` (CryoSPARC's choice) then tests more. If
    the curve never falls below, only the last shell is random, and `corrected` equals `tight` throughout.

    Args:
        half_a: (d, d, d) unfiltered half map.
        half_b: (d, d, d) unfiltered half map.
        mask: (d, d, d) the tight mask.
        pixel_size: Å.
        generator: of the random phases.
        randomisations: number of draws that are averaged.
        randomise_below: value of the unmasked curve.

    Raises:
        ValueError: shapes differ, or `randomisations` is below 1.
    """
    _require_same_shape(half_a, half_b)
    _require_same_shape(half_a, mask)
    if randomisations < 1:
        raise ValueError(f"randomisations={randomisations} is not possible; give 1 or more")
    box_size = half_a.shape[-1]
    halves = (half_a, half_b)
    spectra = (torch.fft.rfftn(half_a), torch.fft.rfftn(half_b))

    none = fsc_of_spectra(*spectra)
    tight = fsc(*(half * mask for half in halves))
    first = min(first_shell_below(none, randomise_below), none.numel() - 1)
    randomised = torch.zeros_like(tight)
    for _ in range(randomisations):
        drawn = (randomise_phases(spectrum, first, generator=generator) for spectrum in spectra)
        randomised += fsc(*(half * mask for half in drawn)) / randomisations
    sphere, loose = _sphere(mask), _loose(mask, pixel_size)
    return FscCurves(
        pixel_size=pixel_size,
        box_size=box_size,
        none=none,
        spherical=fsc(*(half * sphere for half in halves)),
        loose=fsc(*(half * loose for half in halves)),
        tight=tight,
        randomised=randomised,
        corrected=corrected_fsc(tight, randomised, randomised_from=first),
        randomised_from=first,
    )


def corrected_fsc(tight: Tensor, randomised: Tensor, *, randomised_from: int) -> Tensor:
    """Masked FSC less what the mask alone explains: `(tight - randomised) / (1 - randomised)`.

    Chen et al. 2013, Ultramicroscopy 135, 24. Up to one shell past `randomised_from` it equals `tight`; where
    the randomised maps agree perfectly, so that nothing can be said, it is 0.

    Args:
        tight: (n_shells,) FSC under the mask.
        randomised: (n_shells,) the same with random phases from shell `randomised_from`.
        randomised_from: shell.
    """
    room = 1.0 - randomised
    says_something = room > 1e-6
    corrected = torch.where(says_something, (tight - randomised) / room.clamp_min(1e-6), 0.0)
    untouched = torch.arange(tight.numel(), device=tight.device) < randomised_from + _UNCORRECTED_SHELLS
    return torch.where(untouched, tight, corrected)


def mask_corrected_fsc(half_a: Tensor, half_b: Tensor, mask: Tensor) -> Tensor:
    """FSC under a mask, each shell less what the mask carries into it from shells at least two below.

    `(tight - leaked) / (1 - leaked)` as in `corrected_fsc`, where `leaked` is the cross power, in that shell,
    of the masked halves low-passed two shells (or, for odd shells, three) before it, over the power of the
    masked halves. It is what remains in the mean over many draws if phases are random from there on, since
    random phases leave no cross power. So nothing scatters, and no shell has to be named from which phases
    are random: on a crop round one domain the unmasked curve, which would name it, falls too early under
    noise and too late where the crop itself cuts through density.

    Args:
        half_a: (d, d, d) unfiltered half map.
        half_b: (d, d, d) unfiltered half map.
        mask: (d, d, d).

    Returns:
        (n_shells,) float64.

    Raises:
        ValueError: the shapes differ.
    """
    _require_same_shape(half_a, half_b)
    _require_same_shape(half_a, mask)
    plain = [torch.fft.rfftn(half) for half in (half_a, half_b)]
    masked = [torch.fft.rfftn(half * mask) for half in (half_a, half_b)]
    power_a, power_b = (shell_sum(each.abs().square(), dims=3) for each in masked)
    scale = torch.sqrt(power_a * power_b).clamp_min(torch.finfo(torch.float64).tiny)
    radius = frequency_radius(half_a.shape[-1], dims=3, dtype=mask.dtype, device=mask.device)
    leaked = torch.zeros_like(scale)
    # two shells share a low-pass, which costs four transforms
    for first in range(2, scale.numel() - _UNCORRECTED_SHELLS, 2):
        kept = [torch.fft.irfftn(torch.where(radius < first, each, 0.0), s=mask.shape) for each in plain]
        low_a, low_b = (torch.fft.rfftn(each * mask) for each in kept)
        shells = slice(first + _UNCORRECTED_SHELLS, first + _UNCORRECTED_SHELLS + 2)
        leaked[shells] = (shell_sum((low_a * low_b.conj()).real, dims=3) / scale)[shells]
    return corrected_fsc(fsc_of_spectra(masked[0], masked[1]), leaked, randomised_from=2)


def randomise_phases(spectrum: Tensor, first_shell: int, *, generator: torch.Generator) -> Tensor:
    """Volume (d, d, d) with the amplitudes of `spectrum` and random phases where `|k| >= first_shell`.

    `|k|` is not rounded here, as in RELION. The factors are the phases of the transform of real white noise:
    uniform, and Friedel symmetric on the planes that hold both members of a pair (x frequency 0 and Nyquist).

    Args:
        spectrum: (d, d, d // 2 + 1) from `torch.fft.rfftn`.
        first_shell: at least 1.
        generator: on any device.
    """
    box_size = spectrum.shape[0]
    real = spectrum.real
    noise = torch.randn((box_size,) * 3, generator=generator, dtype=real.dtype, device=generator.device).to(
        spectrum.device
    )
    radius = frequency_radius(box_size, dims=3, dtype=real.dtype, device=spectrum.device)
    turned = torch.where(radius >= first_shell, spectrum * torch.sgn(torch.fft.rfftn(noise)), spectrum)
    return torch.fft.irfftn(turned, s=noise.shape)


def first_shell_below(curve: Tensor, threshold: float) -> int:
    """First shell, from 1, whose value is below `threshold`; the number of shells if none is."""
    below = torch.nonzero(curve[1:] < threshold)
    return int(below[0]) + 1 if below.numel() else curve.numel()


def crossing(curve: Tensor, threshold: float, *, box_size: int, pixel_size: float) -> float:
    """Resolution (Å) at which a curve first falls below `threshold`, interpolated between shells.

    Linear in frequency, between the first shell (from 1) below the threshold and the one before. A curve that
    never falls below gives the last shell (Nyquist, for an even box); one that is below in shell 1 gives the
    box length, the coarsest that a box can tell.

    Args:
        curve: (n_shells,) of a box of `box_size`.
        threshold: 0.143 or 0.5 as a rule.
        box_size: px.
        pixel_size: Å.

    Raises:
        ValueError: the curve is not that of such a box.
    """
    length = _length_of(curve, box_size=box_size, pixel_size=pixel_size)
    shell = first_shell_below(curve, threshold)
    if shell == curve.numel():
        return length / (curve.numel() - 1)
    if shell == 1:
        return length
    above, below = float(curve[shell - 1]), float(curve[shell])
    return length / (shell - 1 + (above - threshold) / (above - below))


def relion_resolution(curve: Tensor, threshold: float = 0.143, *, box_size: int, pixel_size: float) -> float:
    """Resolution (Å) as `relion_postprocess` reports it: the last shell before the curve first falls below.

    No interpolation, so it moves in whole shells: for comparison with RELION, not for ranking. Ends of the
    range and errors as in `crossing` (RELION says 999 where this gives the box length).
    """
    length = _length_of(curve, box_size=box_size, pixel_size=pixel_size)
    return length / max(first_shell_below(curve, threshold) - 1, 1)


def band_shells(
    low_resolution: float, high_resolution: float, *, box_size: int, pixel_size: float
) -> tuple[int, int]:
    """First and last shell of a band given in Å, each rounded to the nearest shell.

    Raises:
        ValueError: the band is upside down or holds no shell, or reaches below shell 1 or beyond Nyquist.
    """
    length = box_size * pixel_size
    last_possible = shell_count(box_size) - 1
    allowed = f"a box of {box_size} px of {pixel_size:g} Å allows {length:g} to {length / last_possible:g} Å"
    if not low_resolution >= high_resolution > 0:
        raise ValueError(
            f"the band {low_resolution:g} to {high_resolution:g} Å must go from coarse to fine; {allowed}"
        )
    first, last = round(length / low_resolution), round(length / high_resolution)
    if first < 1 or last > last_possible:
        raise ValueError(f"the band {low_resolution:g} to {high_resolution:g} Å is out of reach: {allowed}")
    return first, last


def fsc_area(curve: Tensor, *, first_shell: int, last_shell: int) -> float:
    """FSC area: mean of a curve over shells `first_shell` to `last_shell`, both included.

    Raises:
        ValueError: not 0 <= first <= last < n_shells.
    """
    return float(_band(curve, first_shell, last_shell).mean())


def effective_samples(mask: Tensor) -> Tensor:
    """Number of independent Fourier coefficients per shell of a pair of maps under `mask`.

    `N_eff(s) = 2 pi s^2 V_eff / L^3` with `V_eff = (sum m^2)^2 / sum m^4`, L the box length: half of the
    `4 pi s^2` coefficients of shell s, thinned by the share of the box that the mask leaves. For intervals of
    the FSC area; single shells are correlated with their neighbours and scatter less than it says.

    Args:
        mask: (d, d, d) on the whole box that the FSC was computed in.

    Returns:
        (n_shells,) float64, at least 1.

    Raises:
        ValueError: the mask is zero everywhere.
    """
    squared = mask.to(torch.float64).square()
    fourth = float(squared.square().sum())
    if fourth == 0:
        raise ValueError("an empty mask leaves no Fourier coefficients; lower its threshold")
    share = float(squared.sum()) ** 2 / fourth / mask.numel()
    shells = torch.arange(shell_count(mask.shape[-1]), dtype=torch.float64, device=mask.device)
    return (2.0 * math.pi * share * shells.square()).clamp_min(1.0)


def fsc_sd(curve: Tensor, samples: Tensor) -> Tensor:
    """(n_shells,) standard deviation of an FSC: `(1 - F^2) / sqrt(2 N_eff)`.

    Args:
        curve: (n_shells,).
        samples: (n_shells,) from `effective_samples`.
    """
    return (1.0 - curve.square()) / torch.sqrt(2.0 * samples)


def fsc_interval(curve: Tensor, samples: Tensor, *, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """Interval of an FSC within one run, each (n_shells,): `tanh(atanh F -+ z / sqrt(2 N_eff))`.

    Fisher's z of a correlation (Fisher 1921, Metron 1, 3) of `2 N_eff` real numbers, `N_eff` complex ones.
    Coefficients of neighbouring shells are correlated under a mask, so a single shell scatters 1.7 to 2.2
    times less than this says (docs/statistics.md); it is the safe side.

    Args:
        curve: (n_shells,).
        samples: (n_shells,) from `effective_samples`.
        level: of the interval.
    """
    half = math.sqrt(2.0) * torch.erfinv(torch.tensor(level, dtype=torch.float64)) / torch.sqrt(2.0 * samples)
    centre = torch.atanh(curve.double().clamp(-1.0 + 1e-12, 1.0 - 1e-12))
    return torch.tanh(centre - half), torch.tanh(centre + half)


def crossing_interval(
    curve: Tensor, mask: Tensor, threshold: float, *, pixel_size: float, level: float = 0.95
) -> tuple[float, float]:
    """Resolutions (Å), fine and coarse, at which the two ends of `fsc_interval` cross `threshold`.

    Wider than the scatter over replicates: a bar below which two crossings cannot be told apart.

    Args:
        curve: (n_shells,) FSC under `mask`.
        mask: (d, d, d) on the box of the curve.
        threshold: as in `crossing`.
        pixel_size: Å.
        level: of the interval.
    """
    box_size = int(mask.shape[-1])
    ends = fsc_interval(curve, effective_samples(mask), level=level)
    coarse, fine = (crossing(end, threshold, box_size=box_size, pixel_size=pixel_size) for end in ends)
    return fine, coarse


def area_sd(curve: Tensor, mask: Tensor, *, first_shell: int, last_shell: int) -> float:
    """Standard deviation of `fsc_area` within one run: `sqrt(sum SD^2) / n`, shells taken as independent.

    It is not that of a paired difference between two runs, which share their particles.

    Args:
        curve: (n_shells,) FSC under `mask`.
        mask: (d, d, d) on the box of the curve.
        first_shell: as in `fsc_area`.
        last_shell: as in `fsc_area`.

    Raises:
        ValueError: mask and curve are of different boxes, the mask is empty, or the shells are out of range.
    """
    if shell_count(mask.shape[-1]) != curve.numel():
        raise ValueError(
            f"a curve of {curve.numel()} shells does not belong to a mask of {mask.shape[-1]} px; give both "
            f"on the same box"
        )
    spread = _band(fsc_sd(curve, effective_samples(mask)), first_shell, last_shell)
    return float(spread.square().sum().sqrt()) / spread.numel()


def _sphere(like: Tensor) -> Tensor:
    box_size = like.shape[-1]
    squared = centred_range(box_size, dtype=torch.float64, device=like.device).square()
    radius = torch.sqrt(squared[:, None, None] + squared[:, None] + squared)
    return _fade(radius, inner=0.85 * (box_size / 2), outer=box_size / 2).to(like.dtype)


def _loose(mask: Tensor, pixel_size: float) -> Tensor:
    outside = (mask <= 0.5).cpu().numpy()
    if outside.all():
        raise ValueError(
            "the mask exceeds 0.5 nowhere, so it has no region to work with; lower its threshold"
        )
    distance = torch.from_numpy(ndimage.distance_transform_edt(outside)).to(mask.device)
    return _fade(distance * pixel_size, inner=25.0, outer=40.0).to(mask.dtype)


def _fade(distance: Tensor, *, inner: float, outer: float) -> Tensor:
    """1 up to `inner`, a raised cosine to 0 at `outer`."""
    position = ((distance - inner) / (outer - inner)).clamp(0.0, 1.0)
    return 0.5 + 0.5 * torch.cos(math.pi * position)


def _band(curve: Tensor, first_shell: int, last_shell: int) -> Tensor:
    if not 0 <= first_shell <= last_shell < curve.numel():
        raise ValueError(
            f"shells {first_shell} to {last_shell} are not a band of a curve that has shells 0 to "
            f"{curve.numel() - 1}"
        )
    return curve[first_shell : last_shell + 1]


def _length_of(curve: Tensor, *, box_size: int, pixel_size: float) -> float:
    if curve.numel() != shell_count(box_size):
        raise ValueError(
            f"a curve of {curve.numel()} shells is not that of a box of {box_size} px, which has "
            f"{shell_count(box_size)}"
        )
    return box_size * pixel_size


def _require_same_shape(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(
            f"maps and mask must share one box: {tuple(first.shape)} and {tuple(second.shape)} differ; crop, "
            f"pad or resample one of them"
        )
