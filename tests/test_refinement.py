"""The loop on simulated particles: it recovers known poses, invents nothing, and keeps its halves apart."""

import math
from dataclasses import dataclass, fields, replace

import pytest
import torch

from cryosweep import refinement
from cryosweep.ctf import Optics
from cryosweep.fourier import crop_centre, half_plane, low_pass, shift_phase
from cryosweep.geometry import (
    angle_between,
    mean_rotation,
    random_rotations,
    rotation_from_vector,
    rotation_vector,
)
from cryosweep.io.maps import open_stack_for_writing
from cryosweep.io.particles import new_particles, read_particles, write_particles
from cryosweep.mask import centre_of_mass, spherical_mask
from cryosweep.projector import make_reference, project, slices
from cryosweep.reconstruction import HalfMaps, reconstruct_half_maps
from cryosweep.refinement import Audit, RefinementSettings, Stop, crop_size_for, last_common_shell, refine
from cryosweep.regularisation import Regularisation
from cryosweep.resolution import fsc
from cryosweep.search import (
    ExtentShape,
    Poses,
    SearchSpace,
    Stage,
    plan_search,
    posterior_covariance,
    search_poses,
)
from tests.reference.exact import Blobs

BOX, PIXEL = 48, 4.0
CPU = torch.device("cpu")
DOMAIN_CENTRE = torch.tensor([6.0, -4.0, 5.0], dtype=torch.float64)  # px from the box centre


@dataclass(frozen=True)
class Scene:
    """Particles of a body and a domain that turns about its own place, with the domain's true rotations."""

    particles: object
    start: HalfMaps
    mask: torch.Tensor
    rotations: torch.Tensor
    body: torch.Tensor
    domain: torch.Tensor


def blobs(generator, centre, count, radius):
    offsets = torch.randn(count, 3, generator=generator, dtype=torch.float64) * radius
    sigmas = 0.9 + 0.5 * torch.rand(count, generator=generator, dtype=torch.float64)
    return Blobs(centre + offsets, sigmas, torch.ones(count, dtype=torch.float64))


def make_scene(folder, *, noise, swing_deg=8.0, count=240, seed=3, signal_limit=None, scale_spread=0.0):
    generator = torch.Generator().manual_seed(seed)
    domain = blobs(generator, DOMAIN_CENTRE, 60, 4.5).volume(BOX)
    body = blobs(generator, torch.tensor([-7.0, 6.0, -6.0], dtype=torch.float64), 60, 4.5).volume(BOX)
    if signal_limit is not None:
        domain, body = (low_pass(v, resolution=signal_limit, pixel_size=PIXEL) for v in (domain, body))
    consensus = random_rotations(count, generator, dtype=torch.float64)
    turn = rotation_from_vector(math.radians(swing_deg) * torch.randn(count, 3, generator=generator).double())
    true = consensus @ turn
    # the domain turns about its own centre, which stays where the consensus pose puts it
    moved = ((consensus - true) @ DOMAIN_CENTRE)[:, :2]
    images = project(body, consensus, torch.zeros(count, 2).double()) + project(domain, true, moved)
    if scale_spread > 0:
        images *= 1 + scale_spread * torch.randn(count, 1, 1, generator=generator).double()
    images = images + noise * images.std() * torch.randn(images.shape, generator=generator).double()
    # a CTF that is 1 everywhere: what is tested here is the loop
    flat = dict.fromkeys((field.name for field in fields(Optics) if field.name != "even_zernike"), 0.0)
    flat |= {"voltage": 300.0, "amplitude_contrast": 1.0, "scale": 1.0}
    optics = Optics(**{name: torch.full((count,), value).double() for name, value in flat.items()})
    with open_stack_for_writing(folder / "images.mrcs", count=count, box_size=BOX, pixel_size=PIXEL) as stack:
        stack[:] = images.numpy()
    particles = new_particles(
        folder / "particles.star", stack=folder / "images.mrcs", rotations=consensus,
        shifts=torch.zeros(count, 2), optics=optics, half_sets=torch.arange(count) % 2, pixel_size=PIXEL,
        box_size=BOX,
    )  # fmt: skip
    write_particles(particles, particles.path, rotations=particles.rotations, shifts=particles.shifts)
    particles = read_particles(particles.path)
    start = reconstruct_half_maps(particles, particles.rotations, particles.shifts, device=CPU)
    mask = spherical_mask(
        BOX, outer_px=17.0, inner_px=12.0, centre_px=tuple(DOMAIN_CENTRE.tolist()), dtype=torch.float32,
        device="cpu",
    )  # fmt: skip
    return Scene(particles, start, mask, true, body, domain)


def run(scene, **settings):
    given = {"max_iterations": 3, "initial_lowpass": 20.0, "rotation_extent": 25.0, "shift_extent": 6.0}
    return refine(
        scene.particles, scene.start, scene.mask, fulcrum=DOMAIN_CENTRE * PIXEL,
        settings=RefinementSettings(**(given | settings)), device=CPU,
    )  # fmt: skip


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return make_scene(tmp_path_factory.mktemp("scene"), noise=0.8)


@pytest.fixture(scope="module")
def refined(scene):
    return run(scene, max_iterations=5)


def rotation_errors(scene, rotations):
    """Degrees to the truth after taking out the one turn of the whole frame."""
    frame = mean_rotation(rotations.mT @ scene.rotations)
    return torch.rad2deg(angle_between(rotations @ frame, scene.rotations))


def test_known_poses_are_recovered(scene, refined):
    before = rotation_errors(scene, scene.particles.rotations)
    after = rotation_errors(scene, refined.rotations)
    assert float(before.median()) > 10
    # seen: 12.2 before, 3.4 after; stuck in the first references it would be 5 and more
    assert float(after.median()) < 4.2
    point = DOMAIN_CENTRE * PIXEL
    landed = (refined.rotations @ point)[:, :2] + refined.shifts
    expected = (scene.particles.rotations @ point)[:, :2]
    assert float((landed - expected).norm(dim=1).median()) < 1.5  # Å; a pixel is 4


def test_map_gains_on_the_truth(scene, refined):
    maps = reconstruct_half_maps(scene.particles, refined.rotations, refined.shifts, device=CPU)
    mask = scene.mask.double()
    curves = [
        fsc((each.half_a + each.half_b).double() * mask, scene.domain * mask) for each in (scene.start, maps)
    ]
    gain = float((curves[1] - curves[0])[4:20].mean())
    assert gain > 0.1  # seen: 0.2; one turn of the frame is not even taken out


def test_extents_hold_in_the_frame_of_the_file(scene):
    """Also after the move back to the whole map, in the STAR's own coordinates."""
    result = run(scene, rotation_extent=5.0, shift_extent=2.0, max_iterations=1)
    turned = torch.rad2deg(angle_between(result.rotations, scene.particles.rotations))
    point = DOMAIN_CENTRE * PIXEL
    moved = ((result.rotations - scene.particles.rotations) @ point)[:, :2] + result.shifts
    assert float(turned.max()) <= 5.0 + 1e-3
    assert float(moved.norm(dim=1).max()) <= 2.0 + 1e-3
    assert result.records[0].at_rotation_extent > 0.3


def test_extents_per_axis_hold_in_the_frame_of_the_file(scene):
    """Components along the axes of the map, the same for every particle, and of the image."""
    result = run(
        scene, rotation_extent=5.0, shift_extent=2.0, extent_shape=ExtentShape.per_axis, max_iterations=1
    )
    turned = torch.rad2deg(rotation_vector(scene.particles.rotations.mT @ result.rotations))
    point = DOMAIN_CENTRE * PIXEL
    moved = ((result.rotations - scene.particles.rotations) @ point)[:, :2] + result.shifts
    assert float(turned.abs().max()) <= 5.0 + 1e-3
    assert float(moved.abs().max()) <= 2.0 + 1e-3
    assert float(turned.norm(dim=1).max()) > 6.0
    at_extent = (turned.abs() > 0.95 * 5.0).any(dim=1).float().mean()
    assert result.records[0].at_rotation_extent == pytest.approx(float(at_extent), abs=0.01)
    assert result.records[0].at_rotation_extent > 0.3


def test_audit_changes_no_pose_and_finds_little(scene):
    plain = run(scene, max_iterations=2)
    audited = run(scene, max_iterations=2, audit=0.2)
    assert plain.audit is None
    assert torch.equal(plain.rotations, audited.rotations)
    assert audited.audit.audited == 48
    assert audited.audit.shortfall_share <= 0.05
    assert 0 <= audited.audit.shortfall_mean < 0.2
    assert run(scene, max_iterations=1, audit=1e-3).audit.audited == 8


def test_audit_tells_a_bad_search(scene, monkeypatch):
    """One step from the starting poses leaves much to be found."""
    plan = refinement.plan_search

    def poor(*positional, **named):
        made = plan(*positional, **named)
        return replace(made, stages=(Stage(made.stages[-1].shell, 1, 1),))

    monkeypatch.setattr(refinement, "plan_search", poor)
    audit = run(scene, max_iterations=1, audit=0.1).audit
    assert audit.shortfall_share > 0.5
    assert "search.audit" in str(audit.finding)


@pytest.mark.parametrize(
    ("share", "audited", "said"), [(0.0, 20, False), (0.05, 20, False), (0.10, 20, True), (0.04, 1000, True)]
)
def test_audit_speaks_up_beyond_chance(share, audited, said):
    assert (Audit(audited, share, 0.1).finding is not None) is said


def test_noise_after_is_the_residual_of_the_references(scene, monkeypatch):
    """With a CTF of 1 the residual can be taken sample by sample: image less shifted slice, squared."""
    seen = []
    inspect = refinement._inspect

    def spy(prepared, half_sets, searched, sums, poses, **named):
        seen.append((prepared, searched, poses))
        return inspect(prepared, half_sets, searched, sums, poses, **named)

    monkeypatch.setattr(refinement, "_inspect", spy)
    found = run(scene, max_iterations=1).inspection
    ((prepared, searched, poses),) = seen
    plane = prepared.plane.up_to(searched.plans[0].stages[-1].shell)
    samples = torch.bincount(plane.shell)
    assert found.images.tolist() == [[120], [120]]
    for half in (0, 1):
        rows = (scene.particles.half_sets == half).nonzero().squeeze(-1)
        model = slices(searched.references[half], poses[rows].rotations, plane)
        model = model * shift_phase(plane, poses[rows].shifts_px)
        residual = (prepared.images[rows][:, : plane.k.shape[0]] - model).abs().square().double()
        mean = torch.zeros(len(samples)).double().index_add_(0, plane.shell, residual.mean(dim=0)) / samples
        last = plane.max_shell
        # float32 sums; the references explain between 1 and 40 % here
        torch.testing.assert_close(
            found.noise_after[half, 0, 1 : last + 1], mean[1 : last + 1], rtol=1e-3, atol=0
        )
        assert torch.equal(found.noise_after[half, 0, last + 1 :], found.noise_before[half, 0, last + 1 :])
        assert float((found.noise_after / found.noise_before)[half, 0, 1:8].max()) < 0.99


def test_expected_accuracy_is_in_line_with_the_errors_of_poses(scene, refined):
    """Errors of poses are smaller than what can be told apart at P = 0.01, and not by much."""
    found = refined.inspection
    error = float(rotation_errors(scene, refined.rotations).median())
    assert 0.3 * found.accuracy_rotation < error < 2.0 * found.accuracy_rotation
    assert 0.0 < found.accuracy_shift < 4.0


def test_precision_of_random_views_is_even(refined):
    precision = refined.inspection.precision
    assert precision.shape == (refinement.PRECISION_DIRECTIONS,)
    assert float(precision.mean()) == pytest.approx(1.0, abs=0.05)
    assert float(precision.max() / precision.min()) < 3.0


def test_extents_of_zero_leave_the_poses_and_count_nobody_at_a_limit(scene):
    result = run(scene, rotation_extent=0.0, shift_extent=0.0, max_iterations=1)
    assert float(torch.rad2deg(angle_between(result.rotations, scene.particles.rotations)).max()) < 1e-3
    assert float((result.shifts - scene.particles.shifts).abs().max()) < 1e-3
    assert result.records[0].at_rotation_extent == result.records[0].at_shift_extent == 0.0


def test_loop_fsc_is_bit_equal_with_regularisation_on_or_off(scene):
    """The first iteration sees the same references, so its FSC may not know about any filter."""
    first, *others = (run(scene, max_iterations=1, regularisation=kind) for kind in Regularisation)
    assert len(others) == 2
    for other in others:
        assert torch.equal(first.records[0].gsfsc, other.records[0].gsfsc)
        assert torch.equal(first.records[0].gsfsc_corrected, other.records[0].gsfsc_corrected)


def test_regularisation_decides_the_next_references(scene):
    """From the second iteration on; otherwise the test above would prove nothing."""
    poses = [run(scene, max_iterations=2, regularisation=kind).rotations for kind in Regularisation]
    assert not torch.equal(poses[0], poses[1])
    assert not torch.equal(poses[1], poses[2])
    errors = [float(rotation_errors(scene, rotations).median()) for rotations in poses]
    assert max(errors) < 7.0  # all of them work; seen below


def test_half_sets_share_one_number_a_shell_and_nothing_else(scene, tmp_path, monkeypatch):
    """With the FSC curve held fixed, other images in half-set 1 change no pose of half-set 0, to the bit."""
    curve = torch.linspace(1.0, 0.0, BOX // 2 + 1, dtype=torch.float64)
    monkeypatch.setattr(refinement, "fsc", lambda a, b: curve[: a.shape[-1] // 2 + 1])
    monkeypatch.setattr(refinement, "mask_corrected_fsc", lambda a, b, m: curve[: a.shape[-1] // 2 + 1])
    stack = tmp_path / "images.mrcs"
    images = scene.particles.images(torch.arange(len(scene.particles))).clone()
    other = scene.particles.half_sets == 1
    images[other] = images[other].flip(-1)
    with open_stack_for_writing(stack, count=len(images), box_size=BOX, pixel_size=PIXEL) as out:
        out[:] = images.numpy()
    changed = replace(scene.particles, stacks=(stack,))
    start = reconstruct_half_maps(changed, changed.rotations, changed.shifts, device=CPU)
    assert torch.equal(start.half_a, scene.start.half_a)
    assert not torch.equal(start.half_b, scene.start.half_b)
    first = run(scene, max_iterations=2)
    second = run(replace(scene, particles=changed, start=start), max_iterations=2)
    assert not torch.equal(first.rotations[other], second.rotations[other])
    assert torch.equal(first.rotations[~other], second.rotations[~other])
    assert torch.equal(first.shifts[~other], second.shifts[~other])


def test_cropping_the_images_costs_no_accuracy(scene, refined, monkeypatch):
    monkeypatch.setattr(refinement, "crop_size_for", lambda box_size, **_: box_size)
    whole = run(scene, max_iterations=5)
    assert refined.crop_size < whole.crop_size == BOX
    cropped, full = (float(rotation_errors(scene, r.rotations).median()) for r in (refined, whole))
    assert cropped < full + 0.4  # seen within 0.2 degrees either way


def test_draws_of_the_posterior_make_the_better_map(scene):
    """Maps made as if the best poses were true sharpen their own noise, and align to it."""
    hard, soft = (run(scene, max_iterations=4, marginalise=chosen) for chosen in (False, True))
    assert hard.records[-1].marginalised == 0.0
    assert soft.records[-1].marginalised > 0.9
    errors = [float(rotation_errors(scene, result.rotations).median()) for result in (hard, soft)]
    assert errors[1] < errors[0], errors


def test_the_working_grid_costs_no_accuracy(scene, refined, monkeypatch):
    """As many voxels as the band asks for, or all of the crop: poses of the same accuracy."""

    def whole(domain, band, limit):
        return refinement._Grid(domain.crop_size, limit, domain.mask)

    monkeypatch.setattr(refinement, "_working_grid", whole)
    errors = [
        float(rotation_errors(scene, r.rotations).median()) for r in (refined, run(scene, max_iterations=5))
    ]
    assert abs(errors[0] - errors[1]) < 0.2, errors  # degrees, of 3.4


def test_an_iteration_costs_what_its_band_costs(scene):
    """A fixed band is worked on in as many voxels, whatever the pixel size of the images."""
    domain = refinement._locate_domain(
        scene.mask, DOMAIN_CENTRE * PIXEL, RefinementSettings(max_resolution=24.0), PIXEL
    )
    twice = torch.nn.functional.interpolate(domain.mask[None, None], scale_factor=2)[0, 0]
    finer = replace(domain, crop_size=2 * domain.crop_size, mask=twice)
    for band in (4, 6):
        small = refinement._working_grid(domain, band, 12)
        assert refinement._working_grid(finer, band, 12).size == small.size < domain.crop_size


def test_memory_budget_changes_where_images_lie_and_nothing_else(scene):
    small = refine(
        scene.particles, scene.start, scene.mask, fulcrum=DOMAIN_CENTRE * PIXEL,
        settings=RefinementSettings(max_iterations=1, initial_lowpass=20.0), device=CPU, memory_budget=1e5,
    )  # fmt: skip
    large = refine(
        scene.particles, scene.start, scene.mask, fulcrum=DOMAIN_CENTRE * PIXEL,
        settings=RefinementSettings(max_iterations=1, initial_lowpass=20.0), device=CPU,
    )  # fmt: skip
    assert torch.equal(small.rotations, large.rotations)


def test_no_signal_beyond_the_low_pass_gives_no_fsc_there(tmp_path):
    """Null test: images whose signal ends at the initial low-pass; the loop may not invent any beyond it."""
    scene = make_scene(tmp_path, noise=3.0, signal_limit=24.0)
    result = run(scene, initial_lowpass=24.0, max_iterations=4)
    maps = reconstruct_half_maps(scene.particles, result.rotations, result.shifts, device=CPU)
    curve = fsc(maps.half_a * scene.mask, maps.half_b * scene.mask)
    limit = BOX * PIXEL / 24.0  # shell 8; the filter's edge ends two shells later
    beyond = curve[int(limit) + 4 :]
    assert abs(float(beyond.mean())) < 0.06  # seen: 0.02
    assert result.records[-1].resolution > 17.0


def test_noise_alone_with_its_own_references_stays_noise(tmp_path):
    scene = make_scene(tmp_path, noise=300.0)
    result = run(scene, max_iterations=3)
    maps = reconstruct_half_maps(scene.particles, result.rotations, result.shifts, device=CPU)
    curve = fsc(maps.half_a * scene.mask, maps.half_b * scene.mask)
    assert abs(float(curve[4:].mean())) < 0.1
    assert result.records[-1].resolution > 20.0


def spectrum_groups(scene, folder, *, louder):
    """The scene's particles in two optics groups; the images of the second get noise on top."""
    count = len(scene.particles)
    group = torch.arange(count) // 2 % 2  # both half-sets have both
    images = scene.particles.images(torch.arange(count)).clone()
    generator = torch.Generator().manual_seed(8)
    noise = louder * images.std() * torch.randn(images.shape, generator=generator)
    images += group[:, None, None] * noise
    with open_stack_for_writing(folder / "images.mrcs", count=count, box_size=BOX, pixel_size=PIXEL) as out:
        out[:] = images.numpy()
    return replace(scene.particles, stacks=(folder / "images.mrcs",), optics_group=group)


def prepared_noise(particles, folder):
    prepared = refinement._prepare(
        particles,
        torch.zeros(len(particles), 2).double(),
        BOX,
        BOX // 2 - 1,
        CPU,
        math.inf,
        str(folder),
        None,
    )
    return prepared.noise, prepared.noise_of


def test_each_optics_group_has_its_own_noise_spectrum(scene, tmp_path):
    particles = spectrum_groups(scene, tmp_path, louder=2.0)
    noise, noise_of = prepared_noise(particles, tmp_path)
    assert noise.shape[0] == 4
    assert noise_of.tolist()[:4] == [0, 2, 1, 3]  # half-set first, then group
    high = noise[:, -6:].mean(dim=1)  # shells where there is noise alone
    before = float(scene.particles.images(torch.arange(len(particles))).var())
    # white noise of variance v per pixel has a variance of v n^2 per sample
    added = (high[[1, 3]] - high[[0, 2]]) / BOX**2
    assert added.tolist() == pytest.approx([4.0 * before] * 2, rel=0.05)
    alone, _ = prepared_noise(particles.take((particles.optics_group == 1).nonzero().squeeze(-1)), tmp_path)
    torch.testing.assert_close(noise[[1, 3]], alone[[1, 3]])


def test_few_images_take_the_noise_spectrum_of_their_half_set(scene, tmp_path, monkeypatch, caplog):
    particles = spectrum_groups(scene, tmp_path, louder=2.0)
    pooled, _ = prepared_noise(replace(particles, optics_group=torch.zeros(len(particles)).long()), tmp_path)
    assert not caplog.records
    monkeypatch.setattr(refinement, "LEAST_FOR_NOISE", 61)
    with caplog.at_level("INFO", logger="cryosweep.refinement"):
        noise, _ = prepared_noise(particles, tmp_path)
    torch.testing.assert_close(noise, pooled.repeat_interleave(2, dim=0))
    assert "half-set 1: 2 of 2 optics groups have fewer than 61 images (120 in all)" in caplog.text


def test_a_loud_optics_group_does_not_spoil_the_other(scene, tmp_path):
    """Told apart, loud images weigh less in the map and are less sure of their poses."""
    particles = spectrum_groups(scene, tmp_path, louder=4.0)
    quiet = particles.optics_group == 0
    one = replace(particles, optics_group=torch.zeros_like(particles.optics_group))
    apart, pooled = (run(replace(scene, particles=each), max_iterations=4) for each in (particles, one))
    errors = [float(rotation_errors(scene, r.rotations)[quiet].median()) for r in (apart, pooled)]
    assert errors[0] < 0.9 * errors[1], errors
    assert float(apart.rotation_sd[~quiet].median()) > 2 * float(apart.rotation_sd[quiet].median())


def known_reference(generator, *, noise, count=200):
    """Errors of searched poses (count, 5) and their covariance, with the true map and the true noise."""
    box = 32
    domain = blobs(generator, torch.zeros(3).double(), 40, 4.0).volume(box)
    reference = make_reference(domain)
    plane = half_plane(box, max_shell=12, dtype=torch.float64, device="cpu")
    rotations = random_rotations(count, generator, dtype=torch.float64)
    anchor = Poses(rotations, torch.zeros(count, 2).double())
    turn = rotation_from_vector(0.1 * torch.randn(count, 3, generator=generator, dtype=torch.float64))
    truth = Poses(turn @ rotations, 0.7 * torch.randn(count, 2, generator=generator, dtype=torch.float64))
    clean = slices(reference, truth.rotations, plane) * shift_phase(plane, truth.shifts_px)
    sigma = noise * clean.abs().square().mean().sqrt()
    images = clean + sigma * torch.randn(clean.shape, generator=generator, dtype=torch.complex128)
    weights = torch.ones(images.shape, dtype=torch.float64) / sigma**2
    space = SearchSpace(math.radians(60), 8.0, None, None, torch.tensor([3.0, -2.0, 4.0]).double())
    plan = plan_search(
        space, coarse_shell=5, band_shell=12, box_size=box, mask_radius_px=10.0, dtype=torch.float64,
        device=CPU,
    )  # fmt: skip
    found = search_poses(
        reference, plane, images=images / sigma**2, weights=weights, anchor=anchor, current=anchor,
        space=space, plan=plan,
    )  # fmt: skip
    turned = rotation_vector(truth.rotations @ found.poses.rotations.mT)
    error = torch.cat([turned, truth.shifts_px - found.poses.shifts_px], dim=1)
    return error, posterior_covariance(found.curvature, found.poses, space)


def test_errors_are_as_large_as_the_covariance_says():
    """With the reference and the noise known, errors in units of the covariance are standard normal."""
    error, covariance = known_reference(torch.Generator().manual_seed(4), noise=0.5)
    squared = (error[:, None] @ torch.linalg.inv(covariance) @ error[..., None]).flatten()
    assert 4.3 < float(squared.mean()) < 6.0  # 5 expected, with a standard error of 0.22; seen: 5.4
    assert float((squared > 15.1).double().mean()) < 0.04  # 1 % expected; seen: 2 %
    again, halved = known_reference(torch.Generator().manual_seed(4), noise=0.25)
    ratio = (halved.diagonal(dim1=-2, dim2=-1) / covariance.diagonal(dim1=-2, dim2=-1)).sqrt()
    torch.testing.assert_close(ratio.median(dim=0).values, torch.full((5,), 0.5).double(), rtol=0.03, atol=0)
    assert float(again.square().mean()) < 0.35 * float(error.square().mean())


def test_no_information_leaves_the_spread_of_the_extents():
    space = SearchSpace(math.radians(20), 3.0, None, None, torch.zeros(3).double())
    poses = Poses(torch.eye(3).double().expand(2, 3, 3), torch.zeros(2, 2).double())
    nothing = posterior_covariance(torch.zeros(2, 5, 5).double(), poses, space)
    expected = torch.tensor([math.radians(20) ** 2 / 5] * 3 + [9.0 / 4] * 2).double()
    torch.testing.assert_close(nothing, torch.diag(expected).expand(2, 5, 5))
    held = posterior_covariance(torch.eye(5).double()[None], poses[:1], replace(space, rotation_extent=0.0))
    assert float(held[0, 0, 0]) < 1e-8


def test_precision_of_a_refinement_covers_its_errors_but_for_the_reference(scene, refined):
    """The covariance does not know of the errors of the map itself, so true errors are larger, by some."""
    frame = mean_rotation(refined.rotations.mT @ scene.rotations)
    error = rotation_vector(scene.rotations @ (refined.rotations @ frame).mT)
    precision = torch.linalg.inv(refined.covariance[:, :3, :3])
    squared = (error[:, None] @ precision @ error[..., None]).flatten()
    assert 3.0 < float(squared.median()) * 3 / 2.366 < 9.0  # 3 if the map were the true one; seen: 4.8
    rms = refined.covariance.diagonal(dim1=-2, dim2=-1)[:, :3].mean(dim=1).sqrt()
    torch.testing.assert_close(refined.rotation_sd, torch.rad2deg(rms))
    assert 0.2 < float(refined.shift_sd.median()) < 1.5  # Å


def test_a_hard_mask_runs_the_masked_band_to_nyquist_and_not_the_corrected_one(tmp_path):
    """Signal ends at 24 Å; a hard mask that cuts through density carries it into every shell beyond."""
    scene = make_scene(tmp_path, noise=1.0, signal_limit=24.0, count=160)
    hard = spherical_mask(
        BOX, outer_px=7.01, inner_px=7.0, centre_px=tuple(DOMAIN_CENTRE.tolist()), dtype=torch.float32,
        device="cpu",
    )  # fmt: skip
    masked, corrected = (
        run(
            replace(scene, mask=hard), initial_lowpass=24.0, rotation_extent=15.0, shift_extent=24.0,
            correct_for_mask=chosen, max_iterations=4,
        ).records
        for chosen in (False, True)
    )  # fmt: skip
    reached = int((masked[0].gsfsc > 0).nonzero().max())  # all that the band may grow in one iteration
    assert bool((masked[0].gsfsc[1 : reached + 1] > 0.143).all())
    assert masked[0].resolution_corrected > 14.0  # seen: 15.9
    assert masked[-1].band < 9.0  # Nyquist is 8.0
    assert min(record.band for record in corrected) > 11.9  # seen: 13.3


def test_it_stops_when_settled_and_says_why(scene):
    result = run(scene, max_iterations=10)
    assert result.stop is Stop.SETTLED
    assert len(result.records) < 10
    assert run(scene, max_iterations=1).stop is Stop.ITERATION_LIMIT


def test_last_common_shell_asks_for_two_shells_in_a_row():
    curve = torch.tensor([1.0, 0.9, 0.1, 0.8, 0.5, 0.1, 0.05, 0.3])
    assert last_common_shell(curve) == 4
    assert last_common_shell(torch.tensor([1.0, 0.1, 0.1])) == 0
    assert last_common_shell(torch.ones(9)) == 8


def test_crop_holds_the_domain_three_quarters_as_far_as_the_search_may_put_it():
    reach = {"shift_extent_px": 5.0, "rotation_extent": math.radians(20), "lever_px": 30.0}
    size = crop_size_for(200, radius_px=20.0, **reach)
    swing = 2 * math.sin(math.radians(10)) * 30
    assert 0 <= size - 2 * (20 + 0.75 * math.hypot(5, swing)) < 4
    assert crop_size_for(64, radius_px=40.0, **reach) == 64


def test_mask_centre_lies_where_the_domain_is(scene):
    assert float((centre_of_mass(scene.mask).double() - DOMAIN_CENTRE).norm()) < 0.1
    assert crop_centre(scene.mask, 10, dims=3).shape == (10, 10, 10)
