"""The non-uniform filter against its formula, on noise, and on maps that are sharp in one place only."""

import math

import numpy as np
import pytest
import torch

from cryosweep.fourier import frequency_radius, multiply_spectrum
from cryosweep.mask import spherical_mask
from cryosweep.regularisation import (
    NonuniformSettings,
    butterworth,
    cross_validation_error,
    nonuniform,
    window_grid,
)
from cryosweep.resolution import fsc

BOX, PIXEL = 24, 3.0


def dense_filter(volume, cutoff, order):
    """Butterworth low-pass by matrices of the discrete transform, float64, no FFT."""
    n = volume.shape[0]
    k = np.fft.fftfreq(n, 1.0 / n)
    forward = np.exp(-2j * np.pi * np.outer(k, np.arange(n)) / n)
    backward = forward.conj().T / n
    spectrum = np.einsum("az,by,cx,zyx->abc", forward, forward, forward, volume, optimize=True)
    radius = np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k**2)
    spectrum *= 1.0 / np.sqrt(1.0 + (radius / (n * PIXEL) * cutoff) ** (2 * order))
    return np.einsum("za,yb,xc,abc->zyx", backward, backward, backward, spectrum, optimize=True).real


def window_matrix(n, points, sigma):
    """Weights (points, n) of a periodic Gaussian in Å about evenly spaced places, each row summing to 1."""
    places = np.arange(points) * (n / points) * PIXEL
    offsets = places[:, None] - np.arange(n) * PIXEL
    weights = sum(np.exp(-0.5 * ((offsets + turn * n * PIXEL) / sigma) ** 2) for turn in range(-6, 7))
    return weights / weights.sum(axis=1, keepdims=True)


def dense_error(a, b, cutoff, points, *, order=8, window=3.0):
    low_a, low_b = dense_filter(a, cutoff, order), dense_filter(b, cutoff, order)
    error = low_a**2 + low_b**2 - 2.0 * b * low_a - 2.0 * a * low_b
    weights = window_matrix(a.shape[0], points, window * cutoff)
    return np.einsum("az,by,cx,zyx->abc", weights, weights, weights, error, optimize=True)


def patchy_halves(generator, box=BOX, noise=1.0):
    """Fine detail on one side of the box, coarse density on the other, and noise of each half."""
    axis = torch.arange(box, dtype=torch.float64) - box // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    envelope = torch.exp(-0.5 * ((x - box / 4) ** 2 + y**2 + z**2) / (box / 9) ** 2)
    fine = torch.cos(2 * math.pi * (x + y) / 3.2) * envelope * 3.0
    coarse = 2.0 * torch.exp(-0.5 * ((x + box / 4) ** 2 + y**2 + z**2) / (box / 8) ** 2)
    true = fine + coarse
    halves = [
        true + noise * torch.randn(true.shape, generator=generator, dtype=torch.float64) for _ in (0, 1)
    ]
    return true, halves


def test_butterworth_at_its_cutoff_and_beyond():
    passed = butterworth(torch.tensor([0.0, 0.1, 0.2], dtype=torch.float64), 10.0, order=8)
    assert passed.tolist() == pytest.approx([1.0, 1.0 / math.sqrt(2.0), 1.0 / math.sqrt(1.0 + 2.0**16)])


@pytest.mark.parametrize("window", [0.75, 3.0])
def test_error_is_that_of_the_formula_on_every_grid(generator, window):
    """Also where map and window are taken on coarser grids, whose places lie between the voxels."""
    _, (a, b) = patchy_halves(generator)
    settings = NonuniformSettings(window=window)
    for cutoff in settings.series(8.0):
        points = window_grid(BOX, pixel_size=PIXEL, narrowest=window * 8.0)
        found = cross_validation_error(
            a, b, pixel_size=PIXEL, cutoff=cutoff, points=points, settings=settings
        ).numpy()
        expected = dense_error(a.numpy(), b.numpy(), cutoff, points, window=window)
        assert found.shape == (points,) * 3
        np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


def test_filter_is_the_blend_of_the_best_cutoffs(generator):
    """The whole filter, by matrices: least error, smoothed index, mixture of the two nearest maps."""
    _, (a, b) = patchy_halves(generator)
    settings = NonuniformSettings(window=1.0, cutoffs=6)
    cutoffs = settings.series(8.0)
    points = window_grid(BOX, pixel_size=PIXEL, narrowest=8.0)
    errors = np.stack([dense_error(a.numpy(), b.numpy(), c, points, window=1.0) for c in cutoffs])
    best = errors.argmin(axis=0).astype(float)
    assert len(np.unique(best)) >= 3
    # the Gaussian of half the narrowest window, as a trigonometric polynomial read at the voxels
    k = np.fft.fftfreq(points, 1.0 / points)
    k[np.abs(k) == points / 2] = np.nan  # the filter leaves the Nyquist planes out
    damped = np.exp(-2.0 * (math.pi * 4.0 * k / (BOX * PIXEL)) ** 2)
    read = np.arange(BOX)[:, None] / BOX - np.arange(points)[None, :] / points
    smooth = np.nansum(damped * np.exp(2j * math.pi * read[..., None] * k), axis=-1).real / points
    index = np.einsum("za,yb,xc,abc->zyx", smooth, smooth, smooth, best, optimize=True)
    index = index.clip(0.0, len(cutoffs) - 1)
    expected = np.zeros_like(index)
    for i, cutoff in enumerate(cutoffs):
        expected += np.clip(1.0 - np.abs(index - i), 0.0, None) * dense_filter(a.numpy(), cutoff, 8)
    found = nonuniform(a, b, pixel_size=PIXEL, finest=8.0, settings=settings)
    np.testing.assert_allclose(found.half_a.numpy(), expected, atol=1e-9)
    ratio = math.log(cutoffs[-1] / cutoffs[0]) / (len(cutoffs) - 1)
    np.testing.assert_allclose(found.cutoff.numpy(), cutoffs[0] * np.exp(index * ratio), rtol=1e-9)
    assert nonuniform(b, a, pixel_size=PIXEL, finest=8.0, settings=settings).half_b.equal(found.half_a)


def test_a_map_sharp_in_one_place_keeps_it_and_loses_noise_elsewhere(generator):
    """Nearer to the truth than any uniform low-pass, and the solvent takes the coarsest cut-off."""
    box = 64
    axis = torch.arange(box, dtype=torch.float64) - box // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    radius = frequency_radius(box, dims=3, dtype=torch.float64, device="cpu")
    noise = torch.randn(3, box, box, box, generator=generator, dtype=torch.float64)
    texture = torch.fft.irfftn(torch.fft.rfftn(noise[0]) * (radius < box * PIXEL / 8.0), s=x.shape)
    texture = texture / texture.std()
    near, far = (torch.exp(-0.5 * ((x - at) ** 2 + y**2 + z**2) / 8.0**2) for at in (14, -14))
    true = 3.0 * (texture * near + far)
    a, b = (true + 2.0 * each for each in noise[1:])
    settings = NonuniformSettings(window=1.5)
    found = nonuniform(a, b, pixel_size=PIXEL, finest=7.0, settings=settings)

    def error(volume):
        return float((volume - true).square().mean())

    uniform = [multiply_spectrum(a, butterworth(radius / (box * PIXEL), cutoff, order=8))
               for cutoff in settings.series(7.0)]  # fmt: skip
    assert error(found.half_a) < 0.8 * min(map(error, uniform))  # seen: 0.67 to 0.71
    assert float(found.cutoff[box // 2, box // 2, box // 2 + 14]) < 8.5
    assert float(found.cutoff[0, 0, 0]) > 39.0


def test_halves_of_pure_noise_gain_nothing():
    """What the halves share in choosing cut-offs makes no agreement where there is none.

    Noise of the spectrum that a loop's half-maps have; 12 pairs, since one pair's FSC scatters.
    """
    box, pixel_size = 48, 4.0
    mask = spherical_mask(box, outer_px=14.0, inner_px=9.0, dtype=torch.float64)
    before, after, power, coarse = [], [], [], []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        a, b = (torch.randn((box,) * 3, generator=generator, dtype=torch.float64) for _ in (0, 1))
        found = nonuniform(a, b, pixel_size=pixel_size, finest=10.0)
        before.append(fsc(a * mask, b * mask)[3:].mean())
        after.append(fsc(found.half_a * mask, found.half_b * mask)[3:].mean())
        power.append(found.half_a.square().mean() / a.square().mean())
        coarse.append((found.cutoff > 30.0).double().mean())
    before, after = torch.stack(before), torch.stack(after)
    spread = (after - before).std() / math.sqrt(len(before))
    assert abs(float((after - before).mean())) < 3.0 * float(spread)
    assert abs(float(after.mean())) < 0.06
    assert float(torch.stack(power).mean()) < 0.03  # white noise below 40 Å holds 0.9 % of the power
    assert float(torch.stack(coarse).mean()) > 0.9


def test_it_costs_no_grid_it_does_not_need(generator):
    """float32 in, float32 out, and impossible cut-offs are refused."""
    _, (a, b) = patchy_halves(generator)
    found = nonuniform(a.float(), b.float(), pixel_size=PIXEL, finest=8.0)
    exact = nonuniform(a, b, pixel_size=PIXEL, finest=8.0)
    assert found.half_a.dtype == torch.float32
    assert float((found.half_a - exact.half_a).abs().max()) < 1e-3
    with pytest.raises(ValueError, match="finest cut-off"):
        nonuniform(a, b, pixel_size=PIXEL, finest=50.0)
    with pytest.raises(ValueError, match="one box"):
        nonuniform(a, b[:12, :12, :12], pixel_size=PIXEL, finest=8.0)
    with pytest.raises(ValueError, match="2 cut-offs"):
        NonuniformSettings(cutoffs=1)
