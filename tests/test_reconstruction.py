"""Half-maps from posed images: scale, symmetry of the operators, filters that never touch a score."""

import pytest
import torch
from torch.testing import assert_close

from cryosweep.fourier import frequency_radius, half_plane, shift_phase, spectrum_of_images
from cryosweep.geometry import random_rotations
from cryosweep.projector import insert, new_accumulator, project
from cryosweep.reconstruction import (
    HalfMaps,
    finish_sums,
    fsc_weighted,
    ssnr_of_fsc,
    unfiltered,
    wiener,
)
from cryosweep.resolution import fsc
from tests.reference.exact import Blobs, random_blobs

BOX = 32


def sums_of(images, rotations, shifts, weights=None):
    plane = half_plane(BOX, dtype=torch.float64, device="cpu")
    spectrum = spectrum_of_images(images, plane) * shift_phase(plane, shifts).conj()
    ones = torch.ones_like(spectrum.real) if weights is None else weights
    sums = new_accumulator(BOX, max_shell=plane.max_shell, dtype=torch.float64, device=torch.device("cpu"))
    insert(sums, spectrum * ones, ones, rotations, plane)
    return finish_sums(sums, max_shell=plane.max_shell)


@pytest.fixture
def projections(generator):
    blobs = random_blobs(generator, radius=6)
    # sharper than elsewhere, so that every shell up to 13 holds signal
    volume = Blobs(blobs.centres, 0.5 * blobs.sigmas, blobs.weights).volume(BOX)
    rotations = random_rotations(600, generator, dtype=torch.float64)
    shifts = torch.randn(600, 2, generator=generator, dtype=torch.float64)
    return volume, project(volume, rotations, shifts), rotations, shifts


def test_reconstruction_returns_the_map_at_its_own_scale(projections):
    volume, images, rotations, shifts = projections
    made = unfiltered(sums_of(images, rotations, shifts))
    curve = fsc(made, volume)
    # the worst shell seen up to there is 0.997, the last; interpolation is all that is left
    assert float(curve[1:14].min()) > 0.993
    low = frequency_radius(BOX, dims=3, dtype=torch.float64, device="cpu")
    ratio = torch.fft.rfftn(made).abs() / torch.fft.rfftn(volume).abs()
    for shell in range(2, 12):
        inside = low.round() == shell
        assert float(ratio[inside].median()) == pytest.approx(1.0, abs=0.04)


def test_halves_of_noise_alone_share_nothing(generator):
    """Noise images of two half-sets at shared poses: no shell may agree."""
    rotations = random_rotations(400, generator, dtype=torch.float64)
    none = torch.zeros(400, 2, dtype=torch.float64)
    halves = [
        unfiltered(
            sums_of(torch.randn(400, BOX, BOX, generator=generator, dtype=torch.float64), rotations, none)
        )
        for _ in (0, 1)
    ]
    curve = fsc(*halves)
    assert abs(float(curve[3:].mean())) < 0.03
    assert float(curve[3:].abs().max()) < 0.25


def test_filters_are_constant_on_a_shell(projections, generator):
    """Wiener filtering changes a map's FSC with anything only where it removes the shell altogether."""
    volume, images, rotations, shifts = projections
    noisy = images + 3 * images.std() * torch.randn(images.shape, generator=generator, dtype=torch.float64)
    sums = sums_of(noisy, rotations, shifts)
    curve = fsc(unfiltered(sums), volume)
    ssnr = ssnr_of_fsc(curve, last_shell=10)[: sums.shell_weight.numel()]
    damped = wiener(sums, ssnr)
    assert float((fsc(damped, volume)[2:9] - curve[2:9]).abs().max()) < 0.05
    power = torch.fft.rfftn(damped).abs()[
        frequency_radius(BOX, dims=3, dtype=torch.float64, device="cpu") > 13
    ]
    # the division by the interpolation's envelope leaks a little; unfiltered it would be 0.1
    assert float(power.max()) < 2e-2 * float(torch.fft.rfftn(damped).abs().max())


def test_ssnr_of_an_fsc():
    assert_close(
        ssnr_of_fsc(torch.tensor([1.0, 0.5, 0.2, -0.1, 0.5]), last_shell=3),
        torch.tensor([999.0, 1.0, 0.25, 0.0, 0.0]), rtol=1e-3, atol=0,
    )  # fmt: skip


def test_fsc_weighting_is_the_expected_correlation_with_truth(generator):
    """sqrt(2F / (1 + F)) of the half-map FSC is the FSC of the mean of both with the truth."""
    shape = (48, 48, 48)
    signal, first, second = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    halves = HalfMaps(signal + first, signal + second, 1.0)
    truth = fsc(halves.half_a + halves.half_b, signal)
    between = fsc(*halves.pair)
    assert_close((2 * between / (1 + between)).sqrt()[6:], truth[6:], atol=0.05, rtol=0)
    weighted = fsc_weighted(halves, torch.full((25,), 0.5, dtype=torch.float64), last_shell=20)
    spectrum, radius = (
        torch.fft.rfftn(weighted),
        frequency_radius(48, dims=3, dtype=torch.float64, device="cpu"),
    )
    mean = torch.fft.rfftn(0.5 * (halves.half_a + halves.half_b))
    inside = radius.round() <= 20
    assert_close(spectrum[inside], mean[inside] * (2 / 3) ** 0.5)
    assert float(spectrum[~inside].abs().max()) < 1e-9
