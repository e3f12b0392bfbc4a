"""The fused kernel against the eager routine and its float64 twin, uncompiled and compiled."""

import pytest
import torch
from torch.testing import assert_close

from cryosweep import kernels
from cryosweep.fourier import half_plane
from cryosweep.geometry import random_rotations
from cryosweep.likelihood import (
    compiled_log_likelihood_on_grid,
    compiled_log_likelihood_quadratic,
    log_likelihood_on_grid,
    log_likelihood_quadratic,
)
from cryosweep.projector import make_reference
from tests.reference.exact import random_blobs

BOX = 24
CPU = torch.device("cpu")


@pytest.fixture
def case(generator):
    """Poses of some images, in float64; samples beyond the band are there to be left alone."""
    reference = make_reference(random_blobs(generator, radius=6).volume(BOX))
    whole = half_plane(BOX, dtype=torch.float64, device=CPU)
    images = torch.randn(5, whole.k.shape[0], generator=generator, dtype=torch.complex128)
    weights = torch.rand(5, whole.k.shape[0], generator=generator, dtype=torch.float64)
    owner = torch.tensor([4, 0, 0, 2, 3, 1, 4])
    rotations = random_rotations(7, generator, dtype=torch.float64)
    shifts = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    return reference, whole.up_to(8), images, weights, owner, rotations, shifts


def eager(case):
    reference, plane, images, weights, owner, rotations, shifts = case
    count = plane.k.shape[0]
    return log_likelihood_quadratic(
        reference, plane, images=images[owner, :count], weights=weights[owner, :count], rotations=rotations,
        shifts_px=shifts,
    )  # fmt: skip


def single(case):
    reference, plane, images, weights, owner, rotations, shifts = case
    reference = make_reference_like(reference)
    return (
        reference, plane.to(dtype=torch.float32), images.to(torch.complex64), weights.float(), owner,
        rotations.float(), shifts.float(),
    )  # fmt: skip


def make_reference_like(reference):
    return type(reference)(
        reference.table.to(torch.complex64), reference.side, reference.pad, reference.box_size
    )


def test_sums_are_value_gradient_and_curvature(case):
    reference, plane, images, weights, owner, rotations, shifts = case
    sums = kernels.quadratic_sums(
        torch.view_as_real(reference.table), plane.k, torch.view_as_real(images), weights, owner, rotations,
        shifts, reference.side, reference.pad, BOX,
    )  # fmt: skip
    expected = eager(case)
    assert_close(sums[:, 0], expected.value, rtol=1e-12, atol=1e-9)
    assert_close(sums[:, 1:6], expected.gradient, rtol=1e-10, atol=1e-9)
    rows, columns = torch.tensor(kernels.PAIRS).unbind(1)
    assert_close(sums[:, 6:], expected.curvature[:, rows, columns], rtol=1e-10, atol=1e-9)


@pytest.mark.slow
def test_compiled_is_eager_to_rounding(case):
    """Two bands, so that sizes really are free; float32 against the float64 twin."""
    assert kernels.can_compile(CPU), "no C++ compiler for torch.compile"
    for band in (8, 5):
        given = (case[0], case[1].up_to(band), *case[2:])
        expected = eager(given)
        reference, plane, images, weights, owner, rotations, shifts = single(given)
        found = compiled_log_likelihood_quadratic(
            reference, plane, images=images, weights=weights, owner=owner, rotations=rotations,
            shifts_px=shifts,
        )  # fmt: skip
        for name in ("value", "gradient", "curvature"):
            exact = getattr(expected, name)
            error = (getattr(found, name).double() - exact).abs().max() / exact.abs().max()
            assert float(error) < 1e-5, (band, name)


@pytest.mark.slow
def test_the_compiled_grid_is_the_eager_one_to_rounding(case, generator):
    assert kernels.can_compile(CPU), "no C++ compiler for torch.compile"
    reference, plane, images, weights, _, _, _ = case
    grid = random_rotations(5 * 4, generator, dtype=torch.float64).reshape(5, 4, 3, 3)
    base = torch.randn(5, 4, 2, generator=generator, dtype=torch.float64)
    shifts = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    count = plane.k.shape[0]
    expected = log_likelihood_on_grid(
        reference, plane, images=images[:, :count], weights=weights[:, :count], rotations=grid,
        base_shifts_px=base, grid_shifts_px=shifts,
    )  # fmt: skip
    reference, plane, images, weights, *_ = single(case)
    found = compiled_log_likelihood_on_grid(
        reference, plane, images=images, weights=weights, rotations=grid.float(),
        base_shifts_px=base.float(), grid_shifts_px=shifts.float(),
    )  # fmt: skip
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def test_a_missing_compiler_is_said_and_survived(monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("no g++ here\nand more")

    kernels._compiles.cache_clear()
    monkeypatch.setattr(kernels, "compiled_quadratic_sums", lambda: broken)
    with caplog.at_level("WARNING", logger="cryosweep.kernels"):
        assert not kernels.can_compile(CPU)
    assert "no g++ here" in caplog.text
    kernels._compiles.cache_clear()
