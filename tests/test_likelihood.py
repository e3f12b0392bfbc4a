"""The likelihood against its definition, its derivatives against finite differences."""

import math

import pytest
import torch
from torch.testing import assert_close

from cryosweep.fourier import half_plane, shift_phase
from cryosweep.geometry import random_rotations, rotation_from_vector
from cryosweep.likelihood import log_likelihood_on_grid, log_likelihood_quadratic, noise_power
from cryosweep.projector import make_reference, nearest_slices, slices
from tests.reference.exact import log_likelihood, random_blobs

BOX = 24


@pytest.fixture
def case(generator):
    reference = make_reference(random_blobs(generator, radius=6).volume(BOX), pad=4)
    plane = half_plane(BOX, max_shell=9, dtype=torch.float64, device="cpu")
    rotations = random_rotations(4, generator, dtype=torch.float64)
    shifts = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    transfer = torch.randn(4, plane.k.shape[0], generator=generator, dtype=torch.float64)
    noise = 1 + torch.rand(plane.k.shape[0], generator=generator, dtype=torch.float64)
    truth = rotation_from_vector(torch.tensor([0.05, -0.03, 0.04], dtype=torch.float64)) @ rotations
    images = transfer * slices(reference, truth, plane) * shift_phase(plane, shifts + 0.3)
    images = images + torch.randn(images.shape, generator=generator, dtype=torch.complex128)
    return reference, plane, rotations, shifts, transfer, noise, images


def test_value_is_the_log_likelihood_written_out(case):
    reference, plane, rotations, shifts, transfer, noise, images = case
    quadratic = log_likelihood_quadratic(
        reference, plane, images=images * transfer / noise, weights=transfer**2 / noise,
        rotations=rotations, shifts_px=shifts,
    )  # fmt: skip
    model = slices(reference, rotations, plane) * shift_phase(plane, shifts)
    for i in range(4):
        expected = log_likelihood(images[i], model[i], transfer[i], noise)
        assert_close(quadratic.value[i], expected, rtol=1e-10, atol=1e-8)


def test_grid_holds_the_log_likelihood_of_the_nearest_points(case):
    """Slices of nearest points only rank starts; their own error is tested with the projector."""
    reference, plane, rotations, shifts, transfer, noise, images = case
    images, weights = images * transfer / noise, transfer**2 / noise
    grid_shifts = torch.tensor([[0.0, 0.0], [1.5, -0.5], [-2.0, 3.0]], dtype=torch.float64)
    turns = rotation_from_vector(torch.tensor([[0.0, 0, 0], [0.1, 0.2, -0.1]], dtype=torch.float64))
    trial = turns @ rotations[:, None]
    base = shifts[:, None] + torch.tensor([[0.0, 0.0], [0.4, -0.7]], dtype=torch.float64)
    grid = log_likelihood_on_grid(
        reference, plane, images=images, weights=weights, rotations=trial, base_shifts_px=base,
        grid_shifts_px=grid_shifts,
    )  # fmt: skip
    for r in range(2):
        for s in range(3):
            model = nearest_slices(reference, trial[:, r], plane)
            moved = model * shift_phase(plane, base[:, r] + grid_shifts[s])
            expected = 2 * (images.conj() * moved).real.sum(-1) - (weights * model.abs().square()).sum(-1)
            assert_close(grid[:, r, s], expected, rtol=1e-10, atol=1e-8)


def test_gradient_by_finite_differences(case):
    reference, plane, rotations, shifts, transfer, noise, images = case
    images, weights = images * transfer / noise, transfer**2 / noise

    def value(step: torch.Tensor) -> torch.Tensor:
        return log_likelihood_quadratic(
            reference, plane, images=images, weights=weights,
            rotations=rotation_from_vector(step[:3]) @ rotations, shifts_px=shifts + step[3:],
        ).value  # fmt: skip

    gradient = log_likelihood_quadratic(
        reference, plane, images=images, weights=weights, rotations=rotations, shifts_px=shifts
    ).gradient
    for axis in range(5):
        step = torch.zeros(5, dtype=torch.float64)
        step[axis] = 1e-6
        numeric = (value(step) - value(-step)) / 2e-6
        # the trilinear form is kinked, so agreement is to a few per mille, not to rounding
        assert_close(gradient[:, axis], numeric, rtol=5e-3, atol=5e-3 * float(numeric.abs().max()))


def test_curvature_is_the_gauss_newton_hessian(case):
    """At a noise-free optimum minus the Hessian is the Gauss-Newton matrix: second differences tell."""
    reference, plane, rotations, shifts, transfer, noise, _ = case
    weights = transfer**2 / noise
    images = weights * slices(reference, rotations, plane) * shift_phase(plane, shifts)
    at = log_likelihood_quadratic(
        reference, plane, images=images, weights=weights, rotations=rotations, shifts_px=shifts
    )
    assert float(at.gradient.abs().max()) < 1e-6 * float(at.curvature.abs().max())
    for axis, size in ((0, 0.01), (1, 0.01), (2, 0.01), (3, 0.05), (4, 0.05)):
        step = torch.zeros(5, dtype=torch.float64)
        step[axis] = size
        sides = [
            log_likelihood_quadratic(
                reference, plane, images=images, weights=weights,
                rotations=rotation_from_vector(sign * step[:3]) @ rotations,
                shifts_px=shifts + sign * step[3:],
            ).value
            for sign in (1, -1)
        ]  # fmt: skip
        second = (sides[0] + sides[1] - 2 * at.value) / size**2
        # single poses see the kinks of the trilinear form (11 % at worst); the mean over poses does not
        assert_close(-second, at.curvature[:, axis, axis], rtol=0.2, atol=0)
        assert_close(-second.mean(), at.curvature[:, axis, axis].mean(), rtol=0.08, atol=0)


def test_noise_power_is_never_zero():
    power = torch.tensor([0.0, 0.0, 8.0, 4.0, 0.0])
    count = torch.tensor([1, 0, 2, 2, 2])
    assert_close(noise_power(power, count), torch.tensor([4.0, 4.0, 4.0, 2.0, 2.0]))
    with pytest.raises(ValueError, match="every Fourier shell is zero"):
        noise_power(torch.zeros(3), torch.ones(3))


def test_noise_variance_of_white_images_is_found(generator):
    sigma, n = 3.0, 32
    images = sigma * torch.randn(200, n, n, generator=generator, dtype=torch.float64)
    plane = half_plane(n, dtype=torch.float64, device="cpu")
    spectrum = plane.gather(torch.fft.rfft2(images))
    total = torch.zeros(plane.max_shell + 1, dtype=torch.float64).index_add_(
        0, plane.shell, spectrum.abs().square().sum(0)
    )
    noise = noise_power(total, 200 * torch.bincount(plane.shell, minlength=plane.max_shell + 1))
    assert_close(noise[3:], torch.full_like(noise[3:], (sigma * n) ** 2), rtol=0.1, atol=0)
    assert math.isclose(float(noise[5:].mean()), (sigma * n) ** 2, rel_tol=0.01)
