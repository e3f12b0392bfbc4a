"""Transforms, shells, the half plane and filters against closed forms."""

import math

import pytest
import torch
from torch.testing import assert_close

from cryosweep.fourier import (
    centred_range,
    crop_centre,
    cut_cube,
    even_fft_size,
    fft_centred,
    frequency_radius,
    gaussian_filter,
    half_plane,
    ifft_centred,
    images_of_spectrum,
    low_pass,
    pad_centre,
    resample_cube,
    shell_index,
    shell_sum,
    shift_phase,
    spectrum_of_images,
)


@pytest.mark.parametrize("n", [8, 9])
def test_centred_transform_has_its_origin_in_the_middle(n):
    delta = torch.zeros(n, n, dtype=torch.float64)
    delta[n // 2, n // 2] = 1
    spectrum = fft_centred(delta, dims=2)
    assert_close(spectrum, torch.ones_like(spectrum))
    assert_close(ifft_centred(spectrum, dims=2).real, delta)


@pytest.mark.parametrize(("large", "small"), [(9, 6), (9, 5), (8, 5), (8, 6)])
def test_crop_and_pad_keep_the_origin(large, small):
    array = torch.zeros(large, large, large)
    array[large // 2, large // 2, large // 2] = 1
    cropped = crop_centre(array, small, dims=3)
    assert cropped[small // 2, small // 2, small // 2] == 1
    assert pad_centre(cropped, large, dims=3)[large // 2, large // 2, large // 2] == 1


def test_cut_cube_moves_a_point_to_the_origin_and_fills_with_zeros():
    volume = torch.zeros(12, 12, 12)
    volume[6 + 4, 6 - 3, 6 + 5] = 7  # z, y, x
    cube = cut_cube(volume, (5, -3, 4), 6)
    assert cube[3, 3, 3] == 7
    assert cube.sum() == 7
    assert cut_cube(volume, (40, 0, 0), 6).abs().sum() == 0


@pytest.mark.parametrize("n", [10, 11])
def test_shells_are_rounded_radii_and_sum_over_the_half_transform(n):
    shells = shell_index(n, dims=3, device="cpu")
    assert shells.shape == (n, n, n // 2 + 1)
    assert shells[0, 0, 3] == 3
    assert shells[-2, 1, 2] == 3  # (-2, 1, 2) has length exactly 3
    ones = torch.ones(n, n, n // 2 + 1)
    sums = shell_sum(ones, dims=3)
    assert sums.shape == (n // 2 + 1,)
    assert_close(sums, torch.bincount(shells.reshape(-1))[: n // 2 + 1].double())


@pytest.mark.parametrize("n", [16, 17])
def test_half_plane_holds_each_friedel_pair_once(n):
    plane = half_plane(n, dtype=torch.float64, device="cpu")
    points = {(int(x), int(y)) for x, y in plane.k}
    assert len(points) == plane.k.shape[0]
    assert all((-x, -y) not in points for x, y in points)
    limit = (n - 1) // 2
    inside = sum(
        round(math.hypot(x, y)) <= limit for x in range(-limit, limit + 1) for y in range(-limit, limit + 1)
    )
    assert 2 * len(points) == inside - 1  # all but the origin
    assert bool((plane.shell[1:] >= plane.shell[:-1]).all())
    assert plane.up_to(3).k.shape[0] == plane.count(3) == int((plane.shell <= 3).sum())


@pytest.mark.parametrize("n", [16, 17])
def test_half_plane_round_trip_keeps_a_band_limited_image(n, generator):
    plane = half_plane(n, dtype=torch.float64, device="cpu")
    samples = torch.complex(
        torch.randn(3, plane.k.shape[0], generator=generator, dtype=torch.float64),
        torch.randn(3, plane.k.shape[0], generator=generator, dtype=torch.float64),
    )
    assert_close(spectrum_of_images(images_of_spectrum(samples, plane), plane), samples)


def test_shift_phase_moves_content_towards_positive_x_and_y():
    n = 32
    axis = centred_range(n, dtype=torch.float64, device="cpu")

    def blob(x: float, y: float) -> torch.Tensor:
        image = torch.exp(-((axis[None] - x) ** 2 + (axis[:, None] - y) ** 2) / 8)
        return image - image.mean()

    plane = half_plane(n, dtype=torch.float64, device="cpu")
    shift = torch.tensor([[2.3, -1.6]], dtype=torch.float64)
    moved = images_of_spectrum(spectrum_of_images(blob(1, 2)[None], plane) * shift_phase(plane, shift), plane)
    # what is lost is the blob's power in the corners beyond the last shell
    assert float((moved[0] - blob(3.3, 0.4)).abs().max()) < 2e-5


def test_low_pass_is_one_below_and_zero_beyond(generator):
    n, pixel_size, resolution = 32, 2.0, 8.0  # shell 8
    noise = torch.randn(n, n, n, generator=generator, dtype=torch.float64)
    ratio = torch.fft.rfftn(low_pass(noise, resolution=resolution, pixel_size=pixel_size)) / torch.fft.rfftn(
        noise
    )
    radius = frequency_radius(n, dims=3, dtype=torch.float64, device="cpu")
    assert_close(ratio.real[radius <= 8], torch.ones_like(ratio.real[radius <= 8]))
    assert float(ratio.abs()[radius >= 10].max()) < 1e-12


def test_gaussian_filter_adds_variances():
    n, pixel_size = 32, 3.0
    axis = centred_range(n, dtype=torch.float64, device="cpu")
    squared = axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis**2

    def gaussian(sigma_px: float) -> torch.Tensor:
        return torch.exp(-squared / (2 * sigma_px**2)) / (2 * math.pi * sigma_px**2) ** 1.5

    wide = gaussian_filter(gaussian(2.0), sigma=1.5 * pixel_size, pixel_size=pixel_size)
    assert_close(wide, gaussian(2.5), atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("minimum", "size"), [(61, 64), (60, 60), (7, 8), (97.2, 98), (2, 2), (13, 14), (86, 90)]
)
def test_even_fft_size(minimum, size):
    assert even_fft_size(minimum) == size


@pytest.mark.parametrize(("old", "new"), [(24, 36), (24, 16), (25, 16), (24, 25)])
def test_a_map_keeps_its_values_on_a_finer_or_coarser_grid(generator, old, new):
    """A wave sampled at other points: exact below the Nyquist of the coarser grid."""
    frequency = torch.tensor([3.0, -2.0, 5.0], dtype=torch.float64)  # z, y, x: periods a box

    def wave(size):
        axis = centred_range(size, dtype=torch.float64, device="cpu") / size
        phase = [axis * f for f in frequency]
        total = phase[0][:, None, None] + phase[1][None, :, None] + phase[2][None, None, :]
        return torch.cos(2 * torch.pi * total + 0.3) + 2.0

    assert_close(resample_cube(wave(old), new), wave(new), atol=1e-12, rtol=0)
