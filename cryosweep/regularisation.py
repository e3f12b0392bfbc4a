"""Non-uniform regularisation: each place of a map low-passed where its two halves stop predicting each other.

Punjani, Zhang & Fleet 2020 (Nature Methods 17, 1214) choose the cut-off of a low-pass at every voxel by
cross-validation: the one whose filtered half-map is nearest to the *other* half-map in a window about the
voxel. With `h` a Butterworth low-pass of cut-off `theta` and `G` a Gaussian window,

    E(x, theta) = G * [ (h m1)^2 + (h m2)^2 - 2 m2 (h m1) - 2 m1 (h m2) ]

is the sum of both squared differences less `m1^2 + m2^2`, which no filter changes. That part must go, because
the window grows with `theta`: with it a wide window wins for seeing less density. Without it dense places
lean to fine cut-offs, which is right: the half-maps that judge are noisier than the map that they make
(docs/consensus.md has other forms measured).

The halves meet in one choice, a smooth map of cut-offs, and in nothing else. Filtered halves serve as
references; no reported FSC ever sees them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum, auto

import torch
from torch import Tensor

from cryosweep.fourier import even_fft_size, frequency_radius

# Beyond this multiple of the cut-off frequency a Butterworth of order 8 passes less than 7e-4: a filtered map
# fits on a grid whose Nyquist frequency lies there.
_REACH = 2.5
# Steps of half the standard deviation sample a Gaussian window to 3e-9.
_STEP_PER_SIGMA = 0.5


class Regularisation(StrEnum):
    """How half-maps are filtered before they serve as references."""

    none = auto()
    wiener = auto()
    nonuniform = auto()


@dataclass(frozen=True)
class NonuniformSettings:
    """Choices of the non-uniform filter.

    Attributes:
        coarsest: Å, the coarsest cut-off that a place may get.
        cutoffs: number of cut-offs, geometric from the finest to the coarsest.
        order: of the Butterworth filter.
        window: standard deviation of the window, in units of the cut-off it judges.
    """

    coarsest: float = 40.0
    cutoffs: int = 10
    order: int = 8
    window: float = 3.0

    def __post_init__(self) -> None:
        if not (self.coarsest > 0 and self.cutoffs >= 2 and self.order >= 1 and self.window > 0):
            raise ValueError(
                "a non-uniform filter needs a coarsest cut-off above 0 Å, 2 cut-offs or more, an order of 1 "
                f"or more and a window above 0, not {self.coarsest:g}, {self.cutoffs}, {self.order} and "
                f"{self.window:g}"
            )

    def series(self, finest: float) -> tuple[float, ...]:
        """The cut-offs in Å, finest first.

        Raises:
            ValueError: `finest` is not finer than `coarsest`.
        """
        if not 0 < finest < self.coarsest:
            raise ValueError(
                f"the finest cut-off of a non-uniform filter must lie between 0 and the coarsest, "
                f"{self.coarsest:g} Å, not at {finest:g} Å"
            )
        ratio = self.coarsest / finest
        return tuple(finest * ratio ** (i / (self.cutoffs - 1)) for i in range(self.cutoffs))


@dataclass(frozen=True)
class Nonuniform:
    """Two half-maps filtered alike, and how.

    Attributes:
        half_a: (d, d, d).
        half_b: (d, d, d).
        cutoff: (d, d, d) Å, the cut-off at every voxel.
    """

    half_a: Tensor
    half_b: Tensor
    cutoff: Tensor


def nonuniform(
    half_a: Tensor,
    half_b: Tensor,
    *,
    pixel_size: float,
    finest: float,
    settings: NonuniformSettings | None = None,
) -> Nonuniform:
    """Filter two half-maps by the cut-off that each place bears, found by cross-validation.

    The best cut-off is held as a running minimum on a grid as coarse as the narrowest window allows, smoothed
    by that window's half, and the two filtered maps nearest to it are mixed linearly. Voxels outside the box
    do not exist for RELION's masks, but here the box is periodic.

    Args:
        half_a: (d, d, d) unfiltered.
        half_b: (d, d, d) of the other particles.
        pixel_size: Å.
        finest: Å, the finest cut-off, as a rule where the FSC falls below 0.143; never beyond Nyquist.
        settings: None for the defaults.

    Raises:
        ValueError: the shapes differ, or the cut-offs are impossible.
    """
    if half_a.shape != half_b.shape:
        raise ValueError(f"half-maps of one box are needed, not {half_a.shape} and {half_b.shape}")
    settings = settings or NonuniformSettings()
    cutoffs = settings.series(max(finest, 2.0 * pixel_size))
    box_size = int(half_a.shape[-1])
    spectra = torch.fft.rfftn(half_a), torch.fft.rfftn(half_b)
    coarse = window_grid(box_size, pixel_size=pixel_size, narrowest=settings.window * cutoffs[0])
    least = torch.full((coarse,) * 3, math.inf, dtype=half_a.dtype, device=half_a.device)
    index = torch.zeros_like(least)
    for i, cutoff in enumerate(cutoffs):
        error = _windowed_error(spectra, box_size, pixel_size, cutoff, coarse, settings)
        better = error < least
        least = torch.where(better, error, least)
        index = torch.where(better, float(i), index)
    smoothing = _STEP_PER_SIGMA * settings.window * cutoffs[0]
    index = _resample(
        _smooth(torch.fft.rfftn(index), coarse, box_size * pixel_size, smoothing), coarse, box_size
    )
    index = index.clamp(0.0, settings.cutoffs - 1.0)
    mixed = torch.zeros_like(half_a), torch.zeros_like(half_b)
    radius = frequency_radius(box_size, dims=3, dtype=half_a.dtype, device=half_a.device)
    for i, cutoff in enumerate(cutoffs):
        weight = (1.0 - (index - i).abs()).clamp_min(0.0)
        if not bool(weight.any()):
            continue
        transfer = butterworth(radius / (box_size * pixel_size), cutoff, order=settings.order)
        for total, spectrum in zip(mixed, spectra, strict=True):
            total += weight * torch.fft.irfftn(spectrum * transfer, s=half_a.shape)
    ratio = math.log(cutoffs[-1] / cutoffs[0]) / (settings.cutoffs - 1)
    return Nonuniform(mixed[0], mixed[1], cutoffs[0] * torch.exp(index * ratio))


def butterworth(frequency: Tensor, cutoff: float, *, order: int) -> Tensor:
    """Transfer `1 / sqrt(1 + (f theta)^(2 order))` at frequencies (1/Å): 0.71 at the cut-off `theta` (Å)."""
    return torch.rsqrt(1.0 + (frequency * cutoff) ** (2 * order))


def window_grid(box_size: int, *, pixel_size: float, narrowest: float) -> int:
    """Points along an edge of the grid on which errors under a window of `narrowest` Å (SD) are compared."""
    return min(box_size, even_fft_size(box_size * pixel_size / (_STEP_PER_SIGMA * narrowest)))


def cross_validation_error(
    half_a: Tensor,
    half_b: Tensor,
    *,
    pixel_size: float,
    cutoff: float,
    points: int,
    settings: NonuniformSettings | None = None,
) -> Tensor:
    """E of the module's formula at one cut-off (Å), on `points`^3 places evenly spaced from voxel 0.

    Args:
        half_a: (d, d, d).
        half_b: (d, d, d).
        pixel_size: Å.
        cutoff: Å.
        points: from `window_grid`, at most d.
        settings: order and window; None for the defaults.

    Returns:
        (points, points, points), the mean under the window, in map units squared.
    """
    spectra = torch.fft.rfftn(half_a), torch.fft.rfftn(half_b)
    box_size = int(half_a.shape[-1])
    return _windowed_error(spectra, box_size, pixel_size, cutoff, points, settings or NonuniformSettings())


def _windowed_error(
    spectra: tuple[Tensor, Tensor], box_size: int, pixel_size: float, cutoff: float, points: int,
    settings: NonuniformSettings,
) -> Tensor:  # fmt: skip
    """E at one cut-off, on the coarsest grid that holds the filtered maps; see `cross_validation_error`."""
    length = box_size * pixel_size
    size = min(box_size, max(points, even_fft_size(2.0 * _REACH * length / cutoff)))
    first, second = (_cropped(spectrum, box_size, size) for spectrum in spectra)
    radius = frequency_radius(size, dims=3, dtype=first.real.dtype, device=first.device)
    transfer = butterworth(radius / length, cutoff, order=settings.order)
    shape = (size, size, size)
    low_a, low_b = (torch.fft.irfftn(each * transfer, s=shape) for each in (first, second))
    plain_a, plain_b = (torch.fft.irfftn(each, s=shape) for each in (first, second))
    error = low_a * (low_a - 2.0 * plain_b) + low_b * (low_b - 2.0 * plain_a)
    smooth = _smooth(torch.fft.rfftn(error), size, length, settings.window * cutoff)
    return _resample(smooth, size, points)


def _smooth(spectrum: Tensor, size: int, length: float, sigma: float) -> Tensor:
    """A spectrum (rfftn layout of `size`) times the transform of a Gaussian window of `sigma` Å."""
    radius = frequency_radius(size, dims=3, dtype=spectrum.real.dtype, device=spectrum.device)
    return spectrum * torch.exp(-2.0 * (math.pi * sigma / length * radius) ** 2)


def _cropped(spectrum: Tensor, box_size: int, size: int) -> Tensor:
    """Spectrum (rfftn layout) of the same periodic function on `size` points: values, not sums, are kept."""
    if size == box_size:
        return spectrum
    last = (min(size, box_size) - 1) // 2
    kept = torch.arange(-last, last + 1, device=spectrum.device)
    cropped = spectrum.new_zeros(size, size, size // 2 + 1)
    source, target = kept % box_size, kept % size
    inner = spectrum[source[:, None], source[None, :], : last + 1]
    cropped[target[:, None], target[None, :], : last + 1] = inner
    return cropped * (size / box_size) ** 3


def _resample(spectrum: Tensor, size: int, points: int) -> Tensor:
    """A band-limited periodic function, given by its spectrum on `size` points, at `points`^3 places."""
    return torch.fft.irfftn(_cropped(spectrum, size, points), s=(points, points, points))
