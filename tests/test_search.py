"""Pose search: known poses, extents, priors, the fulcrum as a change of coordinates."""

import math

import pytest
import torch
from torch.testing import assert_close

from cryosweep.fourier import half_plane, shift_phase
from cryosweep.geometry import angle_between, random_rotations, rotation_from_vector, rotation_vector
from cryosweep.likelihood import log_likelihood_quadratic
from cryosweep.projector import make_reference, slices
from cryosweep.search import (
    CONVERGED,
    ExtentShape,
    Poses,
    SearchResult,
    SearchSpace,
    confine,
    informative_shell,
    log_evidence,
    log_prior,
    plan_search,
    posterior_draws,
    prior_quadratic,
    residual_shift,
    rotation_grid,
    search_poses,
    search_shortfall,
    shift_grid,
    turn,
)
from tests.reference.exact import random_blobs

BOX = 32


def space(
    rotation=20.0,
    shift=3.0,
    rotation_prior=None,
    shift_prior=None,
    lever=(0.0, 0.0, 0.0),
    dtype=torch.float64,
    shape=ExtentShape.norm,
):
    return SearchSpace(
        math.radians(rotation), shift, None if rotation_prior is None else math.radians(rotation_prior),
        shift_prior, torch.tensor(lever, dtype=dtype), shape,
    )  # fmt: skip


@pytest.fixture
def scene(generator):
    """Noisy images of an object whose poses lie up to 15 degrees and 2 px from where the search starts."""
    count = 24
    reference = make_reference(random_blobs(generator, radius=9).volume(BOX))
    plane = half_plane(BOX, max_shell=12, dtype=torch.float64, device="cpu")
    anchor = Poses(random_rotations(count, generator, dtype=torch.float64), torch.zeros(count, 2).double())
    turn = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    turn = (
        turn / turn.norm(dim=1, keepdim=True) * math.radians(15) * torch.rand(count, 1, generator=generator)
    )
    shifts = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 2.8 - 1.4
    truth = Poses(rotation_from_vector(turn) @ anchor.rotations, shifts)
    weights = torch.full((count, plane.k.shape[0]), 1.0, dtype=torch.float64)
    images = slices(reference, truth.rotations, plane) * shift_phase(plane, truth.shifts_px)
    noise = 0.2 * torch.randn(images.shape, generator=generator, dtype=torch.complex128)
    return reference, plane, anchor, truth, images + noise, weights


def plan_of(where):
    return plan_search(
        where, coarse_shell=4, band_shell=12, box_size=BOX, mask_radius_px=9.0,
        dtype=torch.float64, device=torch.device("cpu"),
    )  # fmt: skip


def run(scene, where, current=None):
    reference, plane, anchor, _, images, weights = scene
    plan = plan_of(where)
    return search_poses(
        reference, plane, images=images, weights=weights, anchor=anchor,
        current=anchor if current is None else current, space=where, plan=plan,
    )  # fmt: skip


def test_known_poses_are_recovered(scene):
    truth = scene[3]
    result = run(scene, space())
    error = torch.rad2deg(angle_between(result.poses.rotations, truth.rotations))
    shift_error = (result.poses.shifts_px - truth.shifts_px).norm(dim=1)
    start = torch.rad2deg(angle_between(scene[2].rotations, truth.rotations))
    assert float(start.median()) > 5
    # the posterior's own width here is 0.5 degrees; the worst seen 1.6
    assert float(error.median()) < 1.0
    assert float(error.max()) < 3.0
    assert float(shift_error.max()) < 0.3


def test_curvature_predicts_the_error(scene):
    """Errors measured in units of the posterior's own width are standard normal: mean square 5 for 5 axes."""
    truth = scene[3]
    result = run(scene, space())
    rotation = rotation_vector(result.poses.rotations @ truth.rotations.mT)
    error = torch.cat([rotation, result.poses.shifts_px - truth.shifts_px], dim=1)
    square = torch.einsum("ni,nij,nj->n", error, result.curvature, error)
    # unit weights stand for noise of power 1 per sample; it is 0.2^2 here
    assert 2.5 < float(square.mean()) / 0.2**2 < 10.0


def test_extents_hold_for_every_particle(scene):
    narrow = space(rotation=4.0, shift=0.7, lever=(0.0, 6.0, 3.0))
    result = run(scene, narrow)
    reach = torch.rad2deg(angle_between(result.poses.rotations, scene[2].rotations))
    left = residual_shift(result.poses, scene[2], narrow.lever_px).norm(dim=1)
    assert float(reach.max()) <= 4.0 + 1e-4
    assert float(left.max()) <= 0.7 + 1e-6
    assert float((reach > 3.9).double().mean()) > 0.3  # the truth lies outside, so the wall is in use


def test_extents_per_axis_hold_for_every_particle(scene):
    """Each component of the rotation vector (axes of the map) and of the shift; corners are in use."""
    narrow = space(rotation=4.0, shift=0.7, lever=(0.0, 6.0, 3.0), shape=ExtentShape.per_axis)
    result = run(scene, narrow)
    anchor = scene[2]
    vector = torch.rad2deg(rotation_vector(anchor.rotations.mT @ result.poses.rotations))
    left = residual_shift(result.poses, anchor, narrow.lever_px)
    assert float(vector.abs().max()) <= 4.0 + 1e-4
    assert float(left.abs().max()) <= 0.7 + 1e-6
    assert float(vector.norm(dim=1).max()) > 4.2
    assert float(left.norm(dim=1).max()) > 0.75
    assert float((vector.abs() > 3.9).any(dim=1).double().mean()) > 0.3


def test_confined_poses_are_the_nearest_within_the_extents(generator):
    anchor = Poses(random_rotations(50, generator, dtype=torch.float64), torch.zeros(50, 2).double())
    vector = 0.3 * torch.randn(50, 3, generator=generator, dtype=torch.float64)
    shifts = 3 * torch.randn(50, 2, generator=generator, dtype=torch.float64)
    poses = Poses(anchor.rotations @ rotation_from_vector(vector), shifts)
    ball = confine(poses, anchor, space(rotation=10.0, shift=2.0))
    length = vector.norm(dim=1, keepdim=True)
    assert_close(turn(ball, anchor), vector * (math.radians(10) / length).clamp_max(1.0))
    assert_close(ball.shifts_px, shifts * (2.0 / shifts.norm(dim=1, keepdim=True)).clamp_max(1.0))
    cube = confine(poses, anchor, space(rotation=10.0, shift=2.0, shape=ExtentShape.per_axis))
    assert_close(turn(cube, anchor), vector.clamp(-math.radians(10), math.radians(10)))
    assert_close(cube.shifts_px, shifts.clamp(-2.0, 2.0))


def test_shape_says_how_far_an_extent_reaches(generator):
    """The longest vector and the spread of a uniform one, by drawing them."""
    for shape, radius in ((ExtentShape.norm, 1.0), (ExtentShape.per_axis, math.sqrt(3.0))):
        drawn = 2 * torch.rand(100_000, 3, generator=generator, dtype=torch.float64) - 1
        drawn = 2 * drawn[shape.size(drawn) <= 1.0]
        assert shape.longest(2.0, 3) == pytest.approx(2 * radius)
        assert 0.9 * 2 * radius < float(drawn.norm(dim=1).max()) <= 2 * radius
        assert float(drawn.std()) == pytest.approx(shape.spread(2.0, 3), rel=0.01)


def test_extents_of_zero_hold_the_pose(scene):
    """Each extent alone: nothing turns, or nothing shifts beyond what turning about the fulcrum explains."""
    anchor = scene[2]
    still = run(scene, space(rotation=0.0))
    assert float(torch.rad2deg(angle_between(still.poses.rotations, anchor.rotations)).max()) < 1e-6
    lever = torch.tensor([0.0, 6.0, 3.0], dtype=torch.float64)
    pivoted = run(scene, space(shift=0.0, lever=lever.tolist()))
    assert float(residual_shift(pivoted.poses, anchor, lever).norm(dim=1).max()) < 1e-9
    assert float(pivoted.poses.shifts_px.norm(dim=1).max()) > 0.1


@pytest.mark.parametrize("rotation", [0.0, 1.0, 5.0])
def test_extents_smaller_than_the_grid_step_can_be_searched_and_audited(scene, rotation):
    """The grid holds one rotation or a few, fewer than the audit keeps starts."""
    reference, plane, anchor, _, images, weights = scene
    narrow = space(rotation=rotation, shift=0.5)
    found = run(scene, narrow)
    plan = plan_search(
        narrow, coarse_shell=4, band_shell=12, box_size=BOX, mask_radius_px=9.0, dtype=torch.float64,
        device=torch.device("cpu"),
    )  # fmt: skip
    shortfall = search_shortfall(
        reference, plane, images=images, weights=weights, anchor=anchor, found=found, space=narrow, plan=plan
    )
    assert shortfall.shape == (len(images),)
    assert bool((shortfall >= 0).all())
    reach = torch.rad2deg(angle_between(found.poses.rotations, anchor.rotations))
    assert float(reach.max()) <= rotation + 1e-4


def test_fulcrum_is_a_change_of_coordinates_alone(scene):
    """With extents that hold everything and no prior, the fulcrum changes no pose."""
    reference, plane, anchor, truth, images, weights = scene
    power = 0.2**2  # of the noise: whether a start has converged is judged in units of log-likelihood
    scene = reference, plane, anchor, truth, images / power, weights / power
    near = run(scene, space(rotation=30.0, shift=8.0))
    far = run(scene, space(rotation=30.0, shift=8.0, lever=(2.0, -5.0, 4.0)))
    difference = torch.rad2deg(angle_between(near.poses.rotations, far.poses.rotations))
    # both stop within a fraction of the posterior's width (0.6 degrees) of one optimum
    assert float(difference.median()) < 0.05
    assert float(difference.max()) < 0.3
    assert_close(near.poses.shifts_px, far.poses.shifts_px, atol=0.02, rtol=0)
    assert_close(near.log_posterior, far.log_posterior, atol=3 * CONVERGED, rtol=0)


def test_fulcrum_decides_when_the_shift_extent_is_tight(generator):
    """A swing about a point 10 px away takes 2.6 px of shift at 15 degrees, none if that is the fulcrum."""
    lever = torch.tensor([0.0, 0.0, 10.0], dtype=torch.float64)
    anchor = Poses(torch.eye(3).double()[None], torch.zeros(1, 2).double())
    turned = rotation_from_vector(torch.tensor([[math.radians(15), 0, 0]], dtype=torch.float64))
    swung = Poses(turned, ((turned - torch.eye(3)) @ lever)[:, :2])
    assert float(residual_shift(swung, anchor, lever).norm()) < 1e-12
    assert float(residual_shift(swung, anchor, 0 * lever).norm()) == pytest.approx(2.588, abs=1e-3)
    kept = confine(swung, anchor, space(shift=1.0, lever=lever.tolist()))
    cut = confine(swung, anchor, space(shift=1.0))
    assert_close(kept.shifts_px, swung.shifts_px)
    assert float((cut.shifts_px).norm()) == pytest.approx(1.0)


def test_prior_draws_poses_to_the_anchor(scene):
    free = run(scene, space())
    held = run(scene, space(rotation_prior=0.2, shift_prior=0.05))
    assert float(angle_between(held.poses.rotations, scene[2].rotations).median()) < 0.3 * float(
        angle_between(free.poses.rotations, scene[2].rotations).median()
    )


def test_prior_gradient_and_curvature_by_finite_differences(generator):
    where = space(rotation_prior=8.0, shift_prior=1.5, lever=(4.0, -7.0, 3.0))
    anchor = Poses(
        random_rotations(5, generator, dtype=torch.float64), torch.randn(5, 2, generator=generator).double()
    )
    turn = 0.2 * torch.randn(5, 3, generator=generator, dtype=torch.float64)
    poses = Poses(
        rotation_from_vector(turn) @ anchor.rotations, torch.randn(5, 2, generator=generator).double()
    )
    at = prior_quadratic(poses, anchor, where)
    for axis in range(5):
        step = torch.zeros(5, dtype=torch.float64)
        step[axis] = 1e-6

        def moved(sign: int, step: torch.Tensor = step) -> Poses:
            turned = rotation_from_vector(sign * step[:3]) @ poses.rotations
            return Poses(turned, poses.shifts_px + sign * step[3:])

        numeric = (log_prior(moved(1), anchor, where) - log_prior(moved(-1), anchor, where)) / 2e-6
        assert_close(at.gradient[:, axis], numeric, rtol=1e-6, atol=1e-6)
    assert float(torch.linalg.eigvalsh(at.curvature).min()) > 0


def test_bad_current_pose_does_no_harm(scene):
    """The grid finds the pose again when the last one is at the far wall."""
    _, _, anchor, truth, _, _ = scene
    away = rotation_from_vector(torch.tensor([0.0, math.radians(19), 0.0], dtype=torch.float64))
    lost = Poses(away @ anchor.rotations, anchor.shifts_px)
    result = run(scene, space(), current=lost)
    assert float(torch.rad2deg(angle_between(result.poses.rotations, truth.rotations)).max()) < 3.0


def test_shortfall_is_what_a_better_search_gains(scene):
    """None where the default search found the best pose; all of it where it is held to the start."""
    reference, plane, anchor, _, images, weights = scene
    where = space()
    found = run(scene, where)
    held = run(scene, space(rotation=0.0, shift=0.0))
    shortfalls = [
        search_shortfall(
            reference, plane, images=images, weights=weights, anchor=anchor, found=result, space=where,
            plan=plan_of(where),
        )
        for result in (found, held)
    ]  # fmt: skip
    assert float((shortfalls[0] > 1).double().mean()) < 0.05
    assert float(shortfalls[0].min()) >= 0
    gained = found.log_posterior - held.log_posterior
    assert float(gained.median()) > 10
    assert_close(shortfalls[1], gained, atol=1.0, rtol=0)
    some = torch.tensor([3, 1])
    assert isinstance(found[some], SearchResult)
    assert torch.equal(found[some].log_posterior, found.log_posterior[some])


def test_grids_hold_the_origin_and_stay_inside():
    vectors = rotation_grid(
        math.radians(20), math.radians(9), shape=ExtentShape.norm, dtype=torch.float64,
        device=torch.device("cpu"),
    )  # fmt: skip
    lengths = vectors.norm(dim=1)
    assert float(lengths.min()) == 0
    assert float(lengths.max()) <= math.radians(20) + 1e-9
    assert vectors.shape[0] == 59
    neighbours = (vectors[:, None] - vectors[None]).norm(dim=-1) + 10 * torch.eye(59).double()
    assert_close(neighbours.min(dim=1).values, torch.full((59,), math.radians(9)).double())
    shifts = shift_grid(
        10 / 3.5, 4.8 / 3.5, shape=ExtentShape.norm, dtype=torch.float64, device=torch.device("cpu")
    )
    assert float(shifts.norm(dim=1).max()) <= 10 / 3.5 + 1e-9


def test_grids_per_axis_fill_the_corners():
    cpu = torch.device("cpu")
    vectors = rotation_grid(
        math.radians(20), math.radians(9), shape=ExtentShape.per_axis, dtype=torch.float64, device=cpu
    )
    assert float(vectors.norm(dim=1).min()) == 0
    assert math.radians(15) < float(vectors.abs().max()) <= math.radians(20) + 1e-9
    assert float(vectors.norm(dim=1).max()) > math.radians(26)
    shifts = shift_grid(2.0, 1.0, shape=ExtentShape.per_axis, dtype=torch.float64, device=cpu)
    assert shifts.shape == (25, 2)
    # beyond half a turn a rotation has a shorter vector
    whole = rotation_grid(math.pi, 0.8, shape=ExtentShape.per_axis, dtype=torch.float64, device=cpu)
    assert float(whole.norm(dim=1).max()) <= math.pi + 1e-9


@pytest.mark.parametrize(
    ("field", "value"), [("rotation", -1.0), ("rotation", 200.0), ("shift", -1.0), ("shift_prior", 0.0)]
)
def test_impossible_spaces_are_refused(field, value):
    with pytest.raises(ValueError, match="must"):
        space(**{field: value})


def test_evidence_is_the_integral_of_the_posterior(generator):
    """Against brute force on a lattice of 11^5 points, for a posterior as narrow as the lattice can hold."""
    reference = make_reference(random_blobs(generator, radius=9).volume(BOX))
    plane = half_plane(BOX, max_shell=8, dtype=torch.float64, device="cpu")
    anchor = Poses(random_rotations(1, generator, dtype=torch.float64), torch.zeros(1, 2).double())
    weights = torch.full((1, plane.k.shape[0]), 4.0, dtype=torch.float64)
    noise = 0.5 * torch.randn(1, plane.k.shape[0], generator=generator, dtype=torch.complex128)
    images = 4.0 * (slices(reference, anchor.rotations, plane) + noise)
    where = space(rotation=20.0, shift=3.0)
    plan = plan_search(
        where, coarse_shell=4, band_shell=8, box_size=BOX, mask_radius_px=9.0, dtype=torch.float64,
        device=torch.device("cpu"),
    )  # fmt: skip
    found = search_poses(
        reference,
        plane,
        images=images,
        weights=weights,
        anchor=anchor,
        current=anchor,
        space=where,
        plan=plan,
    )
    # the lattice in units of the posterior's own axes: 11 points from -4 to 4 standard deviations
    root = torch.linalg.inv(torch.linalg.cholesky(found.curvature[0]).mT)
    line = torch.linspace(-4, 4, 11, dtype=torch.float64)
    points = torch.cartesian_prod(*[line] * 5) @ root.mT
    rotations = rotation_from_vector(points[:, :3]) @ found.poses.rotations
    shifts = found.poses.shifts_px + points[:, 3:]
    total = torch.cat(
        [
            log_likelihood_quadratic(
                reference, plane, images=images.expand(len(rows), -1), weights=weights.expand(len(rows), -1),
                rotations=rotations[rows], shifts_px=shifts[rows],
            ).value
            for rows in torch.arange(len(points)).split(8192)
        ]
    )  # fmt: skip
    cell = float(torch.linalg.det(root)) * float(line[1] - line[0]) ** 5
    brute = float(torch.logsumexp(total, 0)) + math.log(cell)
    laplace = float(log_evidence(found.log_posterior, found.curvature))
    assert laplace == pytest.approx(brute, abs=0.3)  # of some 10 nats of volume
    assert abs(laplace - float(found.log_posterior)) > 5


def test_draws_have_the_mean_and_the_blur_of_the_posterior(generator):
    """Averaged over draws a ramp of a shift is damped as the transform of its Gaussian says."""
    count = 4000
    poses = Poses(
        torch.eye(3).double().expand(count, 3, 3), torch.tensor([[0.4, -0.2]]).double().expand(count, 2)
    )
    sd = torch.tensor([0.02, 0.03, 0.01, 0.8, 0.5], dtype=torch.float64)
    covariance = torch.diag(sd.square()).expand(count, 5, 5)
    drawn = posterior_draws(
        poses, covariance, poses, space(rotation=60.0, shift=20.0), pairs=1, generator=generator
    )
    assert len(drawn) == 2
    shifts = torch.stack([draw.shifts_px for draw in drawn])
    assert_close(shifts.mean(dim=0), poses.shifts_px, atol=1e-12, rtol=0)
    plane = half_plane(BOX, max_shell=6, dtype=torch.float64, device="cpu")
    mean = shift_phase(plane, shifts - poses.shifts_px).mean(dim=(0, 1))
    damping = torch.exp(-0.5 * (2 * math.pi / BOX) ** 2 * (plane.k.square() @ sd[3:].square()))
    assert_close(mean.real, damping, atol=0.03, rtol=0)
    turned = rotation_vector(torch.stack([draw.rotations for draw in drawn]))
    assert_close(turned.std(dim=(0, 1)), sd[:3], rtol=0.05, atol=0)
    narrow = space(rotation=1.0, shift=0.3)
    held = posterior_draws(poses, covariance, poses, narrow, pairs=1, generator=generator)[0]
    assert float(torch.rad2deg(rotation_vector(held.rotations).norm(dim=1)).max()) <= 1.0 + 1e-9
    assert float((held.shifts_px - poses.shifts_px).norm(dim=1).max()) <= 0.3 + 1e-9


def test_weak_images_are_searched_to_a_finer_band(scene):
    reference, plane, anchor, _, _, weights = scene
    bands = [
        informative_shell(reference, plane, weights=weights * strength, rotations=anchor.rotations, least=4)
        for strength in (1e3, 1e-9)
    ]
    assert bands == [4, 5]


def test_a_grid_is_searched_peak_by_peak(scene):
    """Points next to a better one are no starts of their own."""
    plan = plan_of(space())
    steps = torch.cdist(plan.vectors, plan.vectors)
    near = steps[torch.arange(len(steps))[:, None], plan.neighbours]
    nearest = steps[steps > 1e-9].min()
    assert float(near.max()) < 1.3 * float(nearest)
    inner = plan.vectors.norm(dim=1).argmin()
    assert len(set(plan.neighbours[inner].tolist())) == 15  # itself, 8 at one step, 6 at 1.155
