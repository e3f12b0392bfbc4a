"""One grid of rotations for all particles: it covers SO(3), scores like the likelihood, and finds poses."""

import math

import pytest
import torch

from cryosweep.fourier import half_plane, shift_phase
from cryosweep.geometry import angle_between, random_rotations, rotation_from_vector
from cryosweep.likelihood import log_likelihood_on_grid
from cryosweep.projector import make_reference, slices
from cryosweep.search import (
    ExtentShape,
    Poses,
    SearchSpace,
    plan_search,
    rotation_grid,
    search_poses,
    search_shortfall,
    shares_grid,
)
from cryosweep.shared_grid import best_on_shared_grid
from tests.reference.exact import Blobs

BOX = 32
CPU = torch.device("cpu")


def nearest_degrees(rotations, grid):
    """Angle of each rotation to the nearest of the grid."""
    best = torch.full((len(rotations),), -2.0, dtype=torch.float64)
    for part in grid.reshape(-1, 9).split(4096):
        best = torch.maximum(best, (rotations.reshape(-1, 9) @ part.mT).amax(dim=1))
    return torch.rad2deg(torch.acos((0.5 * (best - 1.0)).clamp(-1.0, 1.0)))


@pytest.mark.parametrize("step", [7.5, 15.0])
def test_the_grid_covers_all_rotations(generator, step):
    """Also near half a turn, where the lattice ends and its other side begins."""
    vectors = rotation_grid(
        math.pi, math.radians(step), shape=ExtentShape.norm, dtype=torch.float64, device=CPU
    )
    grid = rotation_from_vector(vectors)
    axes = torch.nn.functional.normalize(torch.randn(3000, 3, generator=generator).double(), dim=1)
    turned = rotation_from_vector(axes * (math.pi * (1.0 - 0.1 * torch.rand(3000, 1, generator=generator))))
    anywhere = random_rotations(3000, generator, dtype=torch.float64)
    distance = nearest_degrees(torch.cat([anywhere, turned]), grid)
    assert float(distance.max()) <= step
    # no denser than twice the best packing of the 8 pi^2 of SO(3) in the metric of rotation vectors
    best = 8 * math.pi**2 / (4.0 * math.radians(step) ** 3 / (3.0 * math.sqrt(3.0)))
    assert len(grid) < 2.0 * best


def scene(count, *, noise, seed=5):
    generator = torch.Generator().manual_seed(seed)
    centres = 4.0 * torch.randn(50, 3, generator=generator, dtype=torch.float64)
    sigmas = 0.9 + 0.5 * torch.rand(50, generator=generator, dtype=torch.float64)
    volume = Blobs(centres, sigmas, torch.ones(50, dtype=torch.float64)).volume(BOX).float()
    plane = half_plane(BOX, dtype=torch.float32, device="cpu")
    reference = make_reference(volume)
    rotations = random_rotations(count, generator, dtype=torch.float32)
    shifts = 1.5 * torch.randn(count, 2, generator=generator)
    clean = slices(reference, rotations, plane) * shift_phase(plane, shifts)
    level = noise * float(clean.abs().square().mean().sqrt())
    drawn = torch.view_as_complex(torch.randn(*clean.shape, 2, generator=generator)) / math.sqrt(2.0)
    weights = torch.full(clean.shape, 1.0 / level**2)
    return reference, plane, (clean + level * drawn) * weights, weights, rotations, shifts


def space_of(extent_deg, **given):
    defaults = {"shift_extent_px": 5.0, "rotation_prior": None, "shift_prior_px": None}
    return SearchSpace(
        rotation_extent=math.radians(extent_deg), lever_px=torch.zeros(3), **(defaults | given)
    )  # fmt: skip


@pytest.mark.parametrize(("extent", "prior"), [(math.pi, None), (1.5, 0.6)])
def test_scores_are_those_of_the_likelihood(generator, extent, prior):
    reference, plane, images, weights, _, _ = scene(5, noise=1.0)
    plane = plane.up_to(6)
    images, weights = images[:, : len(plane.k)], weights[:, : len(plane.k)]
    step = math.radians(25.0)
    grid = rotation_from_vector(
        rotation_grid(math.pi, step, shape=ExtentShape.norm, dtype=torch.float32, device=CPU)
    )
    anchors = random_rotations(5, generator, dtype=torch.float32)
    base = torch.randn(5, 2, generator=generator)
    shifts = torch.tensor([[0.0, 0.0], [1.5, 0.0], [0.0, -1.5]])
    shift_prior = torch.tensor([0.0, -0.3, -0.2])
    found, moved = best_on_shared_grid(
        reference.up_to(6), plane, images=images, weights=weights, rotations=grid, step=step,
        base_shifts_px=base, grid_shifts_px=shifts, shift_log_prior=shift_prior, anchors=anchors,
        rotation_extent=extent, rotation_prior=prior, keep=3,
    )  # fmt: skip
    for number in range(5):
        score = log_likelihood_on_grid(
            reference.up_to(6), plane, images=images[number, None], weights=weights[number, None],
            rotations=grid[None], base_shifts_px=base[number].expand(1, len(grid), 2), grid_shifts_px=shifts,
        )[0] + shift_prior  # fmt: skip
        best, which = score.max(dim=1)
        angle = angle_between(anchors[number], grid)
        best = torch.where(
            angle > extent, -math.inf, best if prior is None else best - angle**2 / (2 * prior**2)
        )
        expected: list[int] = []
        for row in best.argsort(descending=True).tolist():
            if all(float(angle_between(grid[row], grid[other])) > 1.6 * step for other in expected):
                expected.append(row)
            if len(expected) == 3:
                break
        torch.testing.assert_close(found[number], grid[expected[:3]])
        torch.testing.assert_close(moved[number], base[number] + shifts[which[expected[:3]]])


def test_chunks_change_nothing(monkeypatch):
    reference, plane, images, weights, _, _ = scene(7, noise=1.0)
    given = {
        "images": images, "weights": weights, "step": 0.3, "base_shifts_px": torch.zeros(7, 2),
        "grid_shifts_px": torch.zeros(1, 2), "shift_log_prior": torch.zeros(1),
        "anchors": torch.eye(3).expand(7, 3, 3), "rotation_extent": math.pi, "rotation_prior": None,
        "keep": 4, "rotations": rotation_from_vector(
            rotation_grid(math.pi, 0.3, shape=ExtentShape.norm, dtype=torch.float32, device=CPU)
        ),
    }  # fmt: skip
    whole = best_on_shared_grid(reference, plane, **given)
    monkeypatch.setattr("cryosweep.shared_grid.ROTATIONS_PER_CHUNK", 700)
    monkeypatch.setattr("cryosweep.shared_grid.SCORES_PER_CHUNK", 1500)
    pieces = best_on_shared_grid(reference, plane, **given)
    assert torch.equal(whole[0], pieces[0])
    assert torch.equal(whole[1], pieces[1])


@pytest.mark.parametrize("shape", list(ExtentShape))
def test_poses_are_found_from_nowhere(shape, record_property):
    """All of SO(3), with no pose to begin from: identity and the image centre for every particle."""
    reference, plane, images, weights, rotations, shifts = scene(40, noise=0.5)
    space = space_of(180.0, shape=shape)
    assert shares_grid(space)
    plan = plan_search(
        space,
        coarse_shell=5,
        band_shell=12,
        box_size=BOX,
        mask_radius_px=9.0,
        dtype=torch.float32,
        device=CPU,
    )
    nowhere = Poses(torch.eye(3).repeat(40, 1, 1), torch.zeros(40, 2))
    given = {"images": images, "weights": weights, "anchor": nowhere, "space": space, "plan": plan}
    found = search_poses(reference, plane, current=nowhere, **given)
    error = torch.rad2deg(angle_between(found.poses.rotations, rotations))
    record_property("share found within 5 degrees", float((error < 5.0).float().mean()))
    assert float((error < 5.0).float().mean()) > 0.95
    assert float((found.poses.shifts_px - shifts).norm(dim=1).median()) < 0.3
    assert float(search_shortfall(reference, plane, found=found, **given).max()) < 1.0


def test_wide_extents_short_of_everything_hold(generator):
    reference, plane, images, weights, rotations, _ = scene(40, noise=0.5)
    space = space_of(90.0)
    assert shares_grid(space)
    away = rotation_from_vector(1.4 * torch.nn.functional.normalize(torch.randn(40, 3, generator=generator)))
    anchor = Poses(rotations @ away, torch.zeros(40, 2))
    plan = plan_search(
        space,
        coarse_shell=5,
        band_shell=12,
        box_size=BOX,
        mask_radius_px=9.0,
        dtype=torch.float32,
        device=CPU,
    )
    found = search_poses(
        reference,
        plane,
        images=images,
        weights=weights,
        anchor=anchor,
        current=anchor,
        space=space,
        plan=plan,
    )
    turned = angle_between(found.poses.rotations, anchor.rotations)
    assert float(turned.max()) <= math.radians(90.0) + 1e-3
    error = torch.rad2deg(angle_between(found.poses.rotations, rotations))
    assert float((error < 5.0).float().mean()) > 0.95


def test_narrow_extents_and_long_levers_keep_grids_of_their_own():
    assert not shares_grid(space_of(30.0))
    assert not shares_grid(space_of(90.0, shape=ExtentShape.per_axis))
    wide = space_of(120.0)
    lever = SearchSpace(math.radians(120.0), 5.0, None, None, torch.tensor([8.0, 0.0, 0.0]))
    assert shares_grid(wide)
    assert not shares_grid(lever)
