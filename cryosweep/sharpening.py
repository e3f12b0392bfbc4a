"""The Guinier plot of two half maps, the B-factor it gives, and the map sharpened by it.

The mean amplitude of a map falls off as `exp(-B_map s^2 / 4)` with the frequency s (1/Å), so that its
logarithm against `s^2 = 1/d^2` is a line of slope `-B_map / 4` beyond about 10 Å (Rosenthal & Henderson 2003,
J. Mol. Biol. 333, 721). A `b_factor` here is what a map is multiplied by, `exp(-b_factor s^2 / 4)`: four
times the slope, so a negative one sharpens and undoes a fall-off of the opposite sign. Nothing is divided by
the transfer function of a detector; its fall-off is part of the B-factor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cryosweep import rules
from cryosweep.fourier import frequency_radius, low_pass_transfer, multiply_spectrum, shell_count, shell_sum
from cryosweep.reconstruction import HalfMaps, fsc_weighted
from cryosweep.resolution import crossing, effective_samples, fsc_sd
from cryosweep.rules import Finding

# Coarser than this the amplitudes tell the shape of the particle, not its order.
FIT_FROM = 10.0
MIN_SHELLS = 4

_SMOOTHED_SHELLS = 7
# (standard deviation / mean)^2 of the amplitude of a random coefficient, which is Rayleigh distributed.
_AMPLITUDE_VARIANCE = 4.0 / math.pi - 1.0


@dataclass(frozen=True)
class GuinierPlot:
    """Mean amplitudes, by shell, of the mean of two half maps under a mask; all are (n_shells,) float64.

    Attributes:
        inverse_square: 1/d^2, 1/Å^2.
        raw: ln of the mean amplitude.
        weighted: the same times `C_ref = sqrt(2 FSC / (1 + FSC))`, which leaves the amplitude of the signal;
            nan where the FSC is not positive.
        variance: of `weighted`, by chance.
    """

    inverse_square: Tensor
    raw: Tensor
    weighted: Tensor
    variance: Tensor


@dataclass(frozen=True)
class GuinierFit:
    """A straight line through a part of a Guinier plot.

    Attributes:
        b_factor: Å^2, four times the slope; negative for a map that falls off.
        b_factor_se: Å^2, standard error.
        intercept: ln amplitude at s = 0.
        r_squared: share of the (weighted) variance that the line explains.
        first_shell: of the fit.
        last_shell: of the fit.
    """

    b_factor: float
    b_factor_se: float
    intercept: float
    r_squared: float
    first_shell: int
    last_shell: int


@dataclass(frozen=True)
class Sharpened:
    """A sharpened map and what it was sharpened by.

    Attributes:
        volume: (d, d, d), not masked.
        b_factor: Å^2, as applied.
        resolution: Å, of the low-pass.
        plot: of the half maps under the mask.
        fit: the line that gave `b_factor`; None if it was chosen, or if no line could be fitted.
        findings: what is questionable about it.
    """

    volume: Tensor
    b_factor: float
    resolution: float
    plot: GuinierPlot
    fit: GuinierFit | None
    findings: tuple[Finding, ...]

    @property
    def description(self) -> str:
        """The B-factor, where it comes from and how well it is known, on one line."""
        if self.fit is None:
            return f"B-factor {self.b_factor:.0f} Å^2, not fitted"
        shells = (self.fit.first_shell, self.fit.last_shell)
        coarse, fine = (float(self.plot.inverse_square[shell].rsqrt()) for shell in shells)
        return (
            f"B-factor {self.b_factor:.0f} ± {self.fit.b_factor_se:.0f} Å^2 (Guinier plot from {coarse:.2f} "
            f"to {fine:.2f} Å, {shells[1] - shells[0] + 1} shells, R^2 {self.fit.r_squared:.2f})"
        )


def guinier_plot(half_maps: HalfMaps, mask: Tensor, fsc: Tensor) -> GuinierPlot:
    """Guinier plot of the mean of two half maps under a mask.

    The amplitudes are those under the mask that the FSC was taken under: times C_ref they are the amplitudes
    of the signal. (RELION weights the amplitudes of the whole box, solvent noise included, by the FSC under
    the mask; a noisy solvent then hides part of the fall-off.)

    Args:
        half_maps: (d, d, d) each, unfiltered.
        mask: (d, d, d).
        fsc: (n_shells,) of the two under the mask.

    Raises:
        ValueError: the curve is not that of such a box, or the mask is empty.
    """
    box_size = int(mask.shape[-1])
    if fsc.numel() != shell_count(box_size):
        raise ValueError(f"a curve of {fsc.numel()} shells is not that of a box of {box_size} px")
    mean = 0.5 * (half_maps.half_a + half_maps.half_b)
    shells = torch.arange(fsc.numel(), dtype=torch.float64, device=mask.device)
    raw = radial_amplitude(mean * mask).log()
    correlated = torch.where(fsc > 0, fsc, math.nan)
    # From neighbours too: weights from a shell alone would favour those whose FSC came out high by chance.
    smooth = torch.nn.functional.avg_pool1d(
        fsc[None], _SMOOTHED_SHELLS, stride=1, padding=_SMOOTHED_SHELLS // 2, count_include_pad=False
    )[0].clamp_min(1e-3)
    samples = effective_samples(mask)
    # ln C_ref changes by 1 / (2 F (1 + F)) with F
    of_weight = (0.5 * fsc_sd(smooth, samples) / (smooth * (1.0 + smooth))).square()
    return GuinierPlot(
        inverse_square=(shells / (box_size * half_maps.pixel_size)).square(),
        raw=raw,
        weighted=raw + 0.5 * torch.log(2.0 * correlated / (1.0 + correlated)),
        variance=_AMPLITUDE_VARIANCE / samples + of_weight,
    )


def radial_amplitude(volume: Tensor) -> Tensor:
    """(n_shells,) float64 mean modulus of the Fourier coefficients of a volume, over its number of voxels.

    As `relion_postprocess` plots them: each element of the half transform counts once.
    """
    amplitude = torch.fft.rfftn(volume).abs()
    return shell_sum(amplitude, dims=3) / shell_sum(torch.ones_like(amplitude), dims=3) / volume.numel()


def fit_guinier(
    plot: GuinierPlot, *, low_resolution: float, high_resolution: float, equal_weights: bool = False
) -> GuinierFit:
    """Line through the weighted amplitudes between two resolutions (Å), both included.

    Shells weigh by the inverse of their variance by chance. The standard error is what that variance makes of
    the slope, or, if the shells scatter about the line by more than chance, what their scatter makes of it.

    Args:
        plot: of a pair of half maps.
        low_resolution: Å, the coarse end.
        high_resolution: Å, the fine end.
        equal_weights: every shell weighs the same, as in RELION; the error is then that of the scatter alone.

    Raises:
        ValueError: fewer than `MIN_SHELLS` shells with a positive FSC lie between the two.
    """
    resolution = plot.inverse_square.rsqrt()
    # a rounding error must not take the shell that a resolution names out of the fit
    inside = (resolution <= low_resolution * (1 + 1e-9)) & (resolution >= high_resolution * (1 - 1e-9))
    chosen = torch.nonzero(inside & plot.weighted.isfinite()).squeeze(-1)
    if chosen.numel() < MIN_SHELLS:
        raise ValueError(
            f"{chosen.numel()} shells lie between {low_resolution:g} and {high_resolution:.2f} Å, and a "
            f"B-factor needs {MIN_SHELLS}"
        )
    x, y = plot.inverse_square[chosen], plot.weighted[chosen]
    weight = torch.ones_like(y) if equal_weights else 1.0 / plot.variance[chosen]
    x_mean, y_mean = (float((weight * each).sum() / weight.sum()) for each in (x, y))
    scale = float((weight * (x - x_mean).square()).sum())
    slope = float((weight * (x - x_mean) * y).sum()) / scale
    residual = float((weight * (y - y_mean - slope * (x - x_mean)).square()).sum())
    scatter = residual / (chosen.numel() - 2)
    return GuinierFit(
        b_factor=4.0 * slope,
        b_factor_se=4.0 * math.sqrt((scatter if equal_weights else max(scatter, 1.0)) / scale),
        intercept=y_mean - slope * x_mean,
        r_squared=1.0 - residual / float((weight * (y - y_mean).square()).sum()),
        first_shell=int(chosen[0]),
        last_shell=int(chosen[-1]),
    )


def guinier_columns(sharpened: Sharpened) -> dict[str, Tensor]:
    """Columns (n_shells,) of a table of a Guinier plot: 1/d^2 and ln amplitudes, nan where there are none."""
    plot, fit = sharpened.plot, sharpened.fit
    fitted = torch.full_like(plot.raw, math.nan)
    if fit is not None:
        chosen = slice(fit.first_shell, fit.last_shell + 1)
        fitted[chosen] = fit.intercept + 0.25 * fit.b_factor * plot.inverse_square[chosen]
    return {
        "inverse_square": plot.inverse_square,
        "raw": plot.raw,
        "weighted": plot.weighted,
        "weighted_sd": plot.variance.sqrt(),
        "fitted": fitted,
        "sharpened": plot.weighted - 0.25 * sharpened.b_factor * plot.inverse_square,
    }


def apply_b_factor(volume: Tensor, b_factor: float, *, resolution: float, pixel_size: float) -> Tensor:
    """`volume` (d, d, d) times `exp(-b_factor s^2 / 4)` in Fourier space, low-passed at `resolution` Å."""
    box_size = int(volume.shape[-1])
    cut = low_pass_transfer(
        box_size, resolution=resolution, pixel_size=pixel_size, dtype=volume.dtype, device=volume.device
    )
    radius = frequency_radius(box_size, dims=3, dtype=volume.dtype, device=volume.device)
    frequency = radius / (box_size * pixel_size)
    # the exponential of what is cut may be beyond any number
    exponent = torch.where(cut > 0, -0.25 * b_factor * frequency.square(), 0.0)
    return multiply_spectrum(volume, cut * exponent.exp())


def sharpen(
    half_maps: HalfMaps,
    mask: Tensor,
    fsc: Tensor,
    *,
    b_factor: float | None = None,
    fit_from: float = FIT_FROM,
    resolution: float | None = None,
) -> Sharpened:
    """Mean of two half maps, FSC-weighted, multiplied by `exp(-B s^2 / 4)` and low-passed at its resolution.

    Without `b_factor` it is that of the Guinier plot from `fit_from` to the resolution. If the half maps do
    not reach far enough beyond `fit_from`, there is no line to fit and the map stays as the FSC weighs it:
    coarser than 10 Å the amplitudes tell the shape of the particle, and their slope is no B-factor.

    Args:
        half_maps: (d, d, d) each, unfiltered.
        mask: (d, d, d), the one of the FSC.
        fsc: (n_shells,) of the two, corrected for the mask as a rule.
        b_factor: Å^2, negative sharpens.
        fit_from: Å, the coarse end of the fit.
        resolution: Å, of the low-pass and the fine end of the fit; where `fsc` falls below 0.143 by default.

    Raises:
        ValueError: the curve is not that of such a box, or the mask is empty.
    """
    pixel_size = half_maps.pixel_size
    if resolution is None:
        resolution = crossing(fsc, 0.143, box_size=int(mask.shape[-1]), pixel_size=pixel_size)
    plot = guinier_plot(half_maps, mask, fsc)
    fit: GuinierFit | None = None
    finding: Finding | None = None
    if b_factor is None:
        try:
            fit = fit_guinier(plot, low_resolution=fit_from, high_resolution=resolution)
        except ValueError as error:
            finding = rules.no_b_factor(str(error))
        else:
            finding = rules.b_factor(fit.b_factor, fit.b_factor_se)
    applied = b_factor if b_factor is not None else 0.0 if fit is None else fit.b_factor
    weighted = fsc_weighted(half_maps, fsc, last_shell=fsc.numel() - 1)
    volume = apply_b_factor(weighted, applied, resolution=resolution, pixel_size=pixel_size)
    return Sharpened(volume, applied, resolution, plot, fit, rules.present((finding,)))
