"""Guinier fits against fall-offs that are known, sharpening against the formula."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from cryosweep.fourier import frequency_radius, low_pass, multiply_spectrum, shell_index
from cryosweep.mask import soft_edge, spherical_mask
from cryosweep.reconstruction import HalfMaps, fsc_weighted
from cryosweep.resolution import fsc
from cryosweep.sharpening import (
    GuinierPlot,
    apply_b_factor,
    fit_guinier,
    guinier_plot,
    radial_amplitude,
    sharpen,
)

BOX, PIXEL = 48, 1.8
TRUE_B = 120.0


def frequency() -> Tensor:
    """1/Å on the layout of `rfftn`."""
    return frequency_radius(BOX, dims=3, dtype=torch.float32, device="cpu") / (BOX * PIXEL)


def ball() -> Tensor:
    return soft_edge(spherical_mask(BOX, outer_px=11, inner_px=11, centre_px=(2, -1, 1)) > 0.5, 7.0)


def faded(generator: torch.Generator, *, noise: float) -> HalfMaps:
    """Two noisy copies of random density whose amplitudes fall off as exp(-TRUE_B s^2 / 4)."""
    white = torch.randn((BOX,) * 3, generator=generator)
    signal = multiply_spectrum(white, torch.exp(-0.25 * TRUE_B * frequency().square()))
    a, b = (signal + noise * torch.randn((BOX,) * 3, generator=generator) for _ in range(2))
    return HalfMaps(a, b, PIXEL)


def line(slope: float, intercept: float, shells: int = 25) -> GuinierPlot:
    square = (torch.arange(shells, dtype=torch.float64) / (BOX * PIXEL)).square()
    values = intercept + slope * square
    return GuinierPlot(square, values, values, torch.full_like(values, 0.01))


@pytest.mark.parametrize("equal_weights", [True, False])
def test_a_straight_line_gives_its_slope_times_four(equal_weights: bool) -> None:
    found = fit_guinier(
        line(-37.5, 2.0), low_resolution=10.0, high_resolution=4.0, equal_weights=equal_weights
    )
    assert found.b_factor == pytest.approx(-150.0, rel=1e-9)
    assert found.intercept == pytest.approx(2.0)
    assert found.r_squared == pytest.approx(1.0)
    assert (found.first_shell, found.last_shell) == (9, 21)  # 9.6 and 4.11 Å


def test_the_fit_is_that_of_numpy_polyfit(generator: torch.Generator) -> None:
    plot = line(-20.0, 1.0)
    noisy = plot.weighted + 0.3 * torch.randn(25, generator=generator, dtype=torch.float64)
    variance = 0.01 + 0.1 * torch.rand(25, generator=generator, dtype=torch.float64)
    plot = GuinierPlot(plot.inverse_square, plot.raw, noisy, variance)
    for equal in (True, False):
        found = fit_guinier(plot, low_resolution=10.0, high_resolution=3.7, equal_weights=equal)
        chosen = slice(found.first_shell, found.last_shell + 1)
        x, y = plot.inverse_square[chosen].numpy(), noisy[chosen].numpy()
        weights = np.ones_like(y) if equal else variance[chosen].rsqrt().numpy()
        (slope, intercept), covariance = np.polyfit(x, y, 1, w=weights, cov=True)
        assert found.b_factor == pytest.approx(4 * slope)
        assert found.intercept == pytest.approx(intercept)
        # the scatter is above chance here, so that both errors are those of the scatter
        assert found.b_factor_se == pytest.approx(4 * math.sqrt(covariance[0, 0]))


def test_the_known_b_factor_is_found_within_its_error(
    record_property: Callable[[str, object], None],
) -> None:
    """Of 60 seeds, two standard errors hold the true B in at least 90 %, one in about two thirds.

    Seen over 120 seeds: 91 % and 62 %; the mean is 2 to 3 Å^2 short of 120, since the mask carries amplitude
    from where there is much to where there is little, and the fit ends where this very FSC says.
    """
    mask = ball()
    pulls: list[float] = []
    errors: list[float] = []
    for seed in range(60):
        halves = faded(torch.Generator().manual_seed(seed), noise=0.5)
        curve = fsc(halves.half_a * mask, halves.half_b * mask)
        found = sharpen(halves, mask, curve).fit
        assert found is not None
        pulls.append((found.b_factor + TRUE_B) / found.b_factor_se)
        errors.append(found.b_factor_se)
    pull, error = np.array(pulls), float(np.median(errors))
    within_one, within_two = (float(np.mean(np.abs(pull) < limit)) for limit in (1.0, 2.0))
    record_property("within_one_error", within_one)
    record_property("within_two_errors", within_two)
    record_property("mean_pull", float(pull.mean()))
    record_property("median_error", error)
    assert within_two >= 0.9
    assert 0.5 <= within_one <= 0.85
    assert abs(float(pull.mean())) < 0.8
    assert error < 0.1 * TRUE_B


def test_noise_outside_the_mask_does_not_hide_the_fall_off(generator: torch.Generator) -> None:
    mask = ball()
    white = torch.randn((BOX,) * 3, generator=generator)
    signal = mask * multiply_spectrum(white, torch.exp(-0.25 * TRUE_B * frequency().square()))
    a, b = (signal + 0.35 * torch.randn((BOX,) * 3, generator=generator) for _ in range(2))
    halves, curve = HalfMaps(a, b, PIXEL), fsc(a * mask, b * mask)
    under_mask = sharpen(halves, mask, curve).fit
    assert under_mask is not None
    assert under_mask.b_factor == pytest.approx(-TRUE_B, abs=3 * under_mask.b_factor_se)
    # what RELION fits: amplitudes of the whole box, weighted by the FSC under the mask
    plot = guinier_plot(halves, mask, curve)
    raw = radial_amplitude(0.5 * (a + b)).log()
    whole_box = GuinierPlot(plot.inverse_square, raw, plot.weighted - plot.raw + raw, plot.variance)
    found = fit_guinier(whole_box, low_resolution=10.0, high_resolution=4.5)
    assert found.b_factor > -0.75 * TRUE_B


def test_weights_leave_the_amplitude_of_the_signal() -> None:
    """Without a mask and with the expected FSC, the weighted amplitudes are those of the signal alone."""
    ones = torch.ones((BOX,) * 3)
    ratios: list[Tensor] = []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        signal, noise_a, noise_b = (torch.randn((BOX,) * 3, generator=generator) for _ in range(3))
        halves = HalfMaps(signal + noise_a, signal + noise_b, PIXEL)
        curve = torch.full((BOX // 2 + 1,), 0.5, dtype=torch.float64)  # S / (S + N), S = N
        plot = guinier_plot(halves, ones, curve)
        ratios.append(plot.weighted.exp() / radial_amplitude(signal))
    assert torch.stack(ratios).mean(dim=0)[5:] == pytest.approx(1.0, abs=0.02)


def test_the_variance_of_a_shell_is_that_over_seeds(record_property: Callable[[str, object], None]) -> None:
    mask = ball()
    plots: list[GuinierPlot] = []
    for seed in range(60):
        halves = faded(torch.Generator().manual_seed(seed), noise=0.5)
        plots.append(guinier_plot(halves, mask, fsc(halves.half_a * mask, halves.half_b * mask)))
    shells = slice(9, 20)  # FSC 0.98 to 0.2
    seen = torch.stack([plot.weighted[shells] for plot in plots]).var(dim=0)
    told = torch.stack([plot.variance[shells] for plot in plots]).mean(dim=0)
    ratio = (seen / told).sqrt()
    record_property("spread_over_told", float(ratio.mean()))
    assert 0.7 < float(ratio.mean()) < 1.3
    assert bool(((ratio > 0.5) & (ratio < 1.8)).all())


def test_sharpening_is_its_formula(generator: torch.Generator) -> None:
    halves, mask = faded(generator, noise=0.3), ball()
    curve = fsc(halves.half_a * mask, halves.half_b * mask)
    found = sharpen(halves, mask, curve, b_factor=-90.0, resolution=5.0)
    positive = curve.clamp_min(0.0)
    weight = torch.cat([torch.sqrt(2 * positive / (1 + positive)), torch.zeros(1, dtype=torch.float64)])
    shells = shell_index(BOX, dims=3, device="cpu").clamp_max(BOX // 2 + 1)
    spectrum = torch.fft.rfftn(0.5 * (halves.half_a + halves.half_b).double())
    spectrum = spectrum * weight[shells] * torch.exp(22.5 * frequency().double().square())
    expected = low_pass(torch.fft.irfftn(spectrum, s=(BOX,) * 3), resolution=5.0, pixel_size=PIXEL)
    assert (found.b_factor, found.fit, found.findings, found.resolution) == (-90.0, None, (), 5.0)
    assert float((found.volume - expected).abs().max()) < 2e-5 * float(expected.abs().max())


def test_a_b_factor_and_its_negative_cancel(generator: torch.Generator) -> None:
    volume = low_pass(torch.randn((BOX,) * 3, generator=generator), resolution=8.0, pixel_size=PIXEL)
    there = apply_b_factor(volume, -200.0, resolution=5.0, pixel_size=PIXEL)
    back = apply_b_factor(there, 200.0, resolution=5.0, pixel_size=PIXEL)
    assert float(there.std()) > 1.5 * float(volume.std())
    assert float((back - volume).abs().max()) < 1e-5 * float(volume.abs().max())


def test_what_is_cut_cannot_overflow(generator: torch.Generator) -> None:
    volume = torch.randn((BOX,) * 3, generator=generator)
    assert bool(apply_b_factor(volume, -6000.0, resolution=12.0, pixel_size=PIXEL).isfinite().all())


def test_coarse_half_maps_get_no_b_factor(generator: torch.Generator) -> None:
    halves, mask = faded(generator, noise=3.0), ball()
    curve = fsc(halves.half_a * mask, halves.half_b * mask)
    found = sharpen(halves, mask, curve)
    assert (found.b_factor, found.fit) == (0.0, None)
    assert found.resolution > 8.0
    assert len(found.findings) == 1
    assert "R28 info: no B-factor was fitted and none applied" in str(found.findings[0])
    unsharpened = low_pass(
        fsc_weighted(halves, curve, last_shell=BOX // 2), resolution=found.resolution, pixel_size=PIXEL
    )
    assert float((found.volume - unsharpened).abs().max()) < 1e-5 * float(unsharpened.abs().max())
    # a coarser beginning makes room for a line, if the user wants it
    assert sharpen(halves, mask, curve, fit_from=40.0, resolution=9.0).fit is not None


def test_amplitudes_that_do_not_fall_off_are_said(generator: torch.Generator) -> None:
    white, ones = torch.randn((BOX,) * 3, generator=generator), torch.ones((BOX,) * 3)
    a, b = (white + 0.3 * torch.randn((BOX,) * 3, generator=generator) for _ in range(2))
    found = sharpen(HalfMaps(a, b, PIXEL), ones, fsc(a, b))
    assert found.fit is not None
    assert abs(found.fit.b_factor) < 4 * found.fit.b_factor_se
    assert any("not clearly below 0" in str(finding) for finding in found.findings)


def test_a_curve_of_another_box_is_refused(generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match="not that of a box of 48 px"):
        guinier_plot(faded(generator, noise=0.5), ball(), torch.ones(20, dtype=torch.float64))
