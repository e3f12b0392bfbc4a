"""Zernike polynomials written out, and corrections against images of analytic blobs seen without them."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from cryosweep.aberrations import (
    ImageAberrations,
    even_indices,
    odd_indices,
    remagnified,
    with_beam_tilt,
    zernike,
)
from cryosweep.fourier import half_plane, spectrum_of_images
from cryosweep.geometry import angle_between, random_rotations
from cryosweep.io.maps import open_stack_for_writing
from cryosweep.io.particles import new_particles, read_particles, write_particles
from cryosweep.subtraction import write_subtracted
from tests.test_ctf import optics as one_optics

BOX, PIXEL = 32, 2.5
MATRIX = torch.tensor([[1.02, 0.012], [0.004, 0.985]], dtype=torch.float64)


def spots(positions, sigma, *, box=BOX):
    """Gaussians at positions (m, 2) px from the centre, summed, and the points they are drawn at."""
    axis = torch.arange(box, dtype=torch.float64) - box // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    at = torch.stack([x, y], dim=-1)
    return torch.exp(-(at[None] - positions[:, None, None]).square().sum(-1) / (2 * sigma**2)).sum(0), at


def test_order_and_values_of_the_polynomials():
    assert odd_indices(12) == (
        (-1, 1), (1, 1), (-3, 3), (-1, 3), (1, 3), (3, 3), (-5, 5), (-3, 5), (-1, 5), (1, 5), (3, 5), (5, 5),
    )  # fmt: skip
    assert even_indices(9) == (
        (0, 0), (-2, 2), (0, 2), (2, 2), (-4, 4), (-2, 4), (0, 4), (2, 4), (4, 4),
    )  # fmt: skip
    q = torch.tensor([[0.3, -0.2], [0.0, 0.0], [-0.1, 0.4]], dtype=torch.float64)
    x, y = q.unbind(-1)
    r2 = x**2 + y**2
    odd = zernike(q, odd_indices(6))
    written = (y, x, 3 * x**2 * y - y**3, (3 * r2 - 2) * y, (3 * r2 - 2) * x, x**3 - 3 * x * y**2)
    assert_close(odd, torch.stack(written))
    even = zernike(q, even_indices(9))
    written = (
        torch.ones(3).double(), 2 * x * y, 2 * r2 - 1, x**2 - y**2, 4 * (x**3 * y - x * y**3),
        (4 * r2 - 3) * 2 * x * y, 6 * r2**2 - 6 * r2 + 1, (4 * r2 - 3) * (x**2 - y**2),
        x**4 - 6 * x**2 * y**2 + y**4,
    )  # fmt: skip
    assert_close(even, torch.stack(written))


def test_beam_tilt_is_coma():
    q = 0.3 * torch.randn(20, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tilt = torch.tensor([[0.4, -0.7]], dtype=torch.float64)
    given = torch.tensor([[1.0, 2.0, 3.0, 40.0, 50.0, 6.0]], dtype=torch.float64)
    cs, wavelength = torch.tensor([2.7]).double(), torch.tensor([0.02]).double()
    coefficients = with_beam_tilt(given, tilt, spherical_aberration=cs, wavelength=wavelength)
    found = (coefficients @ zernike(q, odd_indices(6)))[0]
    coma = -2 * math.pi * 2.7e7 * 0.02**2 * 1e-3 * q.square().sum(-1) * (q @ tilt[0])
    kept = torch.tensor([1.0, 2.0, 3.0, 0.0, 0.0, 6.0]).double() @ zernike(q, odd_indices(6))
    assert_close(found, coma + kept)


def test_magnification_is_that_of_the_formula(generator):
    """Spots at p drawn where the recorded image has them: the corrected image has them at M^-T p."""
    positions = 6.0 * torch.randn(5, 2, generator=generator, dtype=torch.float64)
    recorded, at = spots(positions, 1.6)
    corrected = remagnified(recorded[None], MATRIX)[0]
    places = at @ MATRIX  # M^T x
    expected = torch.det(MATRIX) * torch.exp(
        -(places[None] - positions[:, None, None]).square().sum(-1) / (2 * 1.6**2)
    ).sum(0)
    assert float((corrected - expected).norm() / expected.norm()) < 1e-4  # seen: 2e-6, tails and Nyquist
    # its transform at q is that of the recorded image at M^-1 q
    plane = half_plane(BOX, max_shell=12, dtype=torch.float64, device=torch.device("cpu"))
    turn = torch.exp(-2j * math.pi / BOX * (at.reshape(-1, 2) @ (plane.k @ torch.linalg.inv(MATRIX).mT).mT))
    exact = recorded.reshape(-1).to(turn) @ turn
    found = spectrum_of_images(corrected[None], plane)[0]
    assert float((found - exact).norm() / exact.norm()) < 1e-4


def test_odd_phases_are_taken_out(generator):
    plane = half_plane(BOX, dtype=torch.float64, device=torch.device("cpu"))
    images = torch.randn(3, BOX, BOX, generator=generator, dtype=torch.float64)
    odd = torch.tensor(
        [[0.3, -1.0, 20.0, 5.0, -8.0, 30.0], [0.0] * 6, [9.0] + [0.0] * 5], dtype=torch.float64
    )
    aberrations = ImageAberrations(odd, torch.eye(2).double().expand(3, 2, 2))
    corrected = aberrations.corrected(images, PIXEL)
    phase = odd @ zernike(plane.k / (BOX * PIXEL), odd_indices(6))
    expected = spectrum_of_images(images, plane) * torch.exp(-1j * phase)
    assert_close(spectrum_of_images(corrected, plane), expected)
    assert_close(corrected[1], images[1])
    # order 1 is a shift: 2 pi y t / d
    moved = aberrations[torch.tensor([2])].corrected(images[2:], PIXEL)[0]
    assert not torch.allclose(moved, images[2])


@pytest.fixture
def written(tmp_path, generator):
    """A STAR file with beam tilt and a magnification matrix, and the images it names."""
    count = 4
    images = torch.randn(count, BOX, BOX, generator=generator)
    with open_stack_for_writing(tmp_path / "a.mrcs", count=count, box_size=BOX, pixel_size=PIXEL) as stack:
        stack[:] = images.numpy()
    particles = new_particles(
        tmp_path / "a.star", stack=tmp_path / "a.mrcs",
        shifts=3.0 * torch.randn(count, 2, generator=generator, dtype=torch.float64),
        rotations=random_rotations(count, generator, dtype=torch.float64),
        optics=one_optics()[torch.zeros(count, dtype=torch.int64)], half_sets=torch.arange(count) % 2,
        pixel_size=PIXEL, box_size=BOX,
    )  # fmt: skip
    assert particles.optics_table is not None
    names = ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")
    columns = {name: str(value) for name, value in zip(names, MATRIX.reshape(-1).tolist(), strict=True)}
    table = particles.optics_table.assign(rlnBeamTiltX="0.3", rlnBeamTiltY="-0.2", **columns)
    particles = replace(particles, optics_table=table)
    write_particles(particles, particles.path, rotations=particles.rotations, shifts=particles.shifts)
    return particles, images


def test_shifts_are_those_of_corrected_images_and_written_as_recorded(written, tmp_path):
    raw, images = written
    particles = read_particles(raw.path)
    assert_close(particles.shifts, raw.shifts @ torch.linalg.inv(MATRIX), atol=1e-5, rtol=0)
    index = torch.tensor([2, 0])
    assert_close(particles.images(index), particles.aberrations[index].corrected(images[index], PIXEL))
    write_particles(particles, tmp_path / "b.star", rotations=particles.rotations, shifts=particles.shifts)
    again = read_particles(tmp_path / "b.star")
    assert_close(again.shifts, particles.shifts, atol=3e-6, rtol=0)
    origins = again.table[["rlnOriginXAngst", "rlnOriginYAngst"]].to_numpy(dtype=float)
    assert_close(torch.from_numpy(-origins), raw.shifts, atol=3e-6, rtol=0)


def test_a_subtracted_stack_is_corrected_and_says_so(written, tmp_path):
    particles = read_particles(written[0].path)
    (tmp_path / "out").mkdir()
    read = read_particles(write_subtracted(particles, tmp_path / "out"))
    assert read.aberrations is None
    everyone = torch.arange(len(particles))
    assert_close(read.images(everyone), particles.images(everyone))
    assert_close(read.shifts, particles.shifts, atol=3e-6, rtol=0)
    assert float(angle_between(read.rotations, particles.rotations).max()) < 1e-6
