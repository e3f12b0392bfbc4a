"""Expected accuracy against the curvature of the likelihood, closed forms and RELION's own."""

import math

import pytest
import torch

from cryosweep.accuracy import TOLD_APART, expected_accuracy, needed_step, pose_certainty
from cryosweep.fourier import half_plane
from cryosweep.geometry import random_rotations
from cryosweep.likelihood import log_likelihood_quadratic
from cryosweep.projector import make_reference, slices

SIZE = 32


def lopsided(generator: torch.Generator) -> torch.Tensor:
    ramp = torch.arange(SIZE, dtype=torch.float32) - SIZE // 2
    volume = torch.zeros(SIZE, SIZE, SIZE)
    for x, y, z in (torch.randn(8, 3, generator=generator) * 5.0).tolist():
        squared = (ramp[:, None, None] - z) ** 2 + (ramp[:, None] - y) ** 2 + (ramp - x) ** 2
        volume += torch.exp(-squared / (2 * 1.5**2))
    return volume


def test_accuracy_of_a_strong_signal_is_that_of_the_curvature(generator: torch.Generator) -> None:
    """For small changes the difference is half the curvature times the change squared."""
    reference = make_reference(lopsided(generator))
    plane = half_plane(SIZE, max_shell=10, dtype=torch.float32, device="cpu")
    rotations = random_rotations(60, generator, dtype=torch.float32)
    weights = torch.full((60, plane.k.shape[0]), 2.0)
    model = slices(reference, rotations, plane)
    curvature = log_likelihood_quadratic(
        reference, plane, images=weights * model, weights=weights, rotations=rotations,
        shifts_px=torch.zeros(60, 2),
    ).curvature  # fmt: skip
    axis = torch.randint(3, (60,), generator=torch.Generator().manual_seed(5))
    rows = torch.arange(60)
    about, along = curvature[rows, axis, axis], curvature[rows, 3 + axis % 2, 3 + axis % 2]
    rotation, shift = expected_accuracy(
        reference, plane, weights=weights, rotations=rotations, generator=torch.Generator().manual_seed(5)
    )
    expected = torch.rad2deg((2.0 * TOLD_APART / about).sqrt())
    assert float(expected.max()) < 3.0
    # slices are linear between points of the cube, whose derivative jumps: 4 % at worst for one image
    torch.testing.assert_close(rotation, expected, rtol=0.08, atol=0)
    torch.testing.assert_close(shift, (2.0 * TOLD_APART / along).sqrt(), rtol=0.03, atol=0)


def test_accuracy_falls_with_the_square_root_of_the_signal(generator: torch.Generator) -> None:
    reference = make_reference(lopsided(generator))
    plane = half_plane(SIZE, max_shell=10, dtype=torch.float32, device="cpu")
    rotations = random_rotations(40, generator, dtype=torch.float32)
    found = [
        expected_accuracy(
            reference, plane, weights=torch.full((40, plane.k.shape[0]), strength), rotations=rotations,
            generator=torch.Generator().manual_seed(1),
        )[0].mean()
        for strength in (1.0, 0.25)
    ]  # fmt: skip
    assert float(found[1] / found[0]) == pytest.approx(2.0, rel=0.05)


def test_what_cannot_be_told_apart_gets_the_end_of_the_range(generator: torch.Generator) -> None:
    reference = make_reference(lopsided(generator))
    plane = half_plane(SIZE, max_shell=10, dtype=torch.float32, device="cpu")
    rotations = random_rotations(5, generator, dtype=torch.float32)
    weights = torch.full((5, plane.k.shape[0]), 1e-9)
    rotation, shift = expected_accuracy(
        reference, plane, weights=weights, rotations=rotations, generator=generator
    )
    assert rotation.tolist() == [30.0] * 5
    assert shift.tolist() == pytest.approx([10.0] * 5)


def test_needed_step_is_that_of_relion() -> None:
    assert needed_step(12.0, 150.0) == 360.0 / 40
    assert needed_step(4.0, 150.0) == 360.0 / 118
    with pytest.raises(ValueError, match="above 0"):
        needed_step(0.0, 150.0)


def test_pose_certainty_of_a_gaussian() -> None:
    """One step is two standard deviations wide on each of five axes: erf(1/sqrt 2)^5."""
    covariance = torch.diag(torch.tensor([1.0, 1.0, 1.0, 4.0, 4.0], dtype=torch.float64))[None]
    covariance[:, :3, :3] *= math.radians(2.0) ** 2
    found = pose_certainty(covariance, rotation_step=4.0, shift_step=4.0)
    assert float(found) == pytest.approx(math.erf(1 / math.sqrt(2)) ** 5, rel=1e-9)
    turned = random_rotations(1, torch.Generator().manual_seed(2), dtype=torch.float64)[0]
    covariance[:, :3, :3] = turned @ covariance[:, :3, :3] @ turned.mT
    assert float(pose_certainty(covariance, rotation_step=4.0, shift_step=4.0)) == pytest.approx(
        float(found), rel=1e-9
    )
    assert float(pose_certainty(covariance, rotation_step=1e4, shift_step=1e4)) == pytest.approx(1.0)
