"""Consensus refinement: dynamic masks at known distances, body poses that improve, poses from nothing."""

import math
from dataclasses import replace

import pytest
import torch

from cryosweep.consensus import (
    DynamicMask,
    automatic_mask,
    consensus_curves,
    dynamic_mask,
    refine_consensus,
    whole_box_sphere,
)
from cryosweep.fourier import low_pass
from cryosweep.io.particles import read_particles
from cryosweep.mask import near_far_mask
from cryosweep.reconstruction import HalfMaps, reconstruct_half_maps
from cryosweep.refinement import RefinementSettings
from cryosweep.regularisation import Regularisation
from cryosweep.simulate import (
    SimulationSettings,
    align_frames,
    load_ribosome,
    load_truth,
    pose_errors,
    simulate,
)

CPU = torch.device("cpu")


def test_near_and_far_at_known_distances():
    region = torch.zeros(33, 33, 33, dtype=torch.bool)
    region[16, 16, 16] = True
    mask = near_far_mask(region, near_px=3.0, far_px=7.0, dtype=torch.float64)
    along = mask[16, 16, 16:].tolist()
    assert along[:4] == [1.0] * 4
    assert along[4:7] == pytest.approx([0.5 + 0.5 * math.cos(math.pi * step / 4.0) for step in (1, 2, 3)])
    assert along[7:] == pytest.approx([0.0] * 10)
    assert float(mask[16, 16 + 3, 16 + 4]) == pytest.approx(0.5)  # a distance of 5
    with pytest.raises(ValueError, match="near < far"):
        near_far_mask(region, near_px=7.0, far_px=7.0)


def test_dynamic_mask_counts_in_angstrom_from_the_level():
    """A ball of density: 1 to 6 Å outside the level surface, half at 10 Å, 0 from 14 Å on."""
    box, pixel_size, sigma = 64, 2.0, 14.0
    axis = (torch.arange(box, dtype=torch.float64) - box // 2) * pixel_size
    radius = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    ball = torch.exp(-0.5 * (radius / sigma) ** 2)
    made = dynamic_mask(HalfMaps(ball, ball, pixel_size), resolution=8.0, settings=DynamicMask())
    surface = sigma * math.sqrt(-2.0 * math.log(0.2))  # 25.1 Å
    assert float(made[radius < surface + 6.0 - pixel_size].min()) == 1.0
    assert float(made[radius > surface + 14.0].max()) == 0.0
    half = made[(radius - surface - 10.0).abs() < 0.3]
    assert float(half.mean()) == pytest.approx(0.5, abs=0.15)
    with pytest.raises(ValueError, match="near < far"):
        DynamicMask(near=14.0, far=6.0)


def test_a_map_that_has_not_come_far_keeps_the_sphere(generator):
    noise = [torch.randn(32, 32, 32, generator=generator) for _ in (0, 1)]
    assert torch.equal(automatic_mask(HalfMaps(*noise, 4.0)), whole_box_sphere(32, device="cpu"))


@pytest.fixture(scope="module")
def ribosome(tmp_path_factory):
    """400 particles of box 64, whose poses are off by 3 degrees and 4 Å per axis."""
    folder = tmp_path_factory.mktemp("ribosome")
    settings = SimulationSettings(
        400, box_size=64, pixel_size=5.25, snr=0.3, pose_error_rotation=3.0, pose_error_shift=4.0, seed=2
    )
    simulate(settings, folder, device=CPU)
    return read_particles(folder / "particles.star"), load_truth(folder).domains["body"].poses


def body_errors(particles, truth):
    point = load_ribosome().domains["body"].centre_of_mass
    given = particles.rotations, particles.shifts, truth.rotations, truth.shifts
    errors = pose_errors(*given, frame=align_frames(*given, point=point), point=point)
    return [float(error.median()) for error in errors]


@pytest.mark.parametrize("regularisation", [Regularisation.wiener, Regularisation.nonuniform])
def test_body_poses_improve(ribosome, regularisation, record_property):
    particles, truth = ribosome
    start = reconstruct_half_maps(particles, particles.rotations, particles.shifts, device=CPU)
    counted: list[int] = []
    found = refine_consensus(
        particles, start, mask=DynamicMask(starts=16.0), device=CPU, advance=counted.append,
        settings=RefinementSettings(
            rotation_extent=12.0, shift_extent=16.0, initial_lowpass=24.0, max_iterations=3,
            regularisation=regularisation,
        ),
    )  # fmt: skip
    before, after = body_errors(particles, truth), body_errors(found.particles, truth)
    record_property("body rotation error before, after (degrees)", f"{before[0]:.2f}, {after[0]:.2f}")
    record_property("body shift error before, after (Å)", f"{before[1]:.2f}, {after[1]:.2f}")
    assert before[0] > 4.0
    assert after[0] < 0.5 * before[0]
    assert after[1] < 0.5 * before[1]
    assert torch.equal(found.particles.half_sets, particles.half_sets)
    assert sum(counted) == len(particles) * (2 + len(found.refinement.records))
    # the half-maps are those of the poses, and the mask follows them
    again = reconstruct_half_maps(particles, found.particles.rotations, found.particles.shifts, device=CPU)
    assert torch.equal(again.half_a, found.half_maps.half_a)
    assert 0.02 < float(found.mask.mean()) < 0.3
    assert float(found.curves.tight[8]) > float(consensus_curves(start, found.mask).tight[8])


def test_reported_curves_know_nothing_of_the_regularisation(ribosome):
    """At equal poses the five curves are equal to the bit, whatever filtered the references."""
    particles, _ = ribosome
    start = reconstruct_half_maps(particles, particles.rotations, particles.shifts, device=CPU)
    found = [
        refine_consensus(
            particles, start, mask=None, device=CPU,
            settings=RefinementSettings(
                rotation_extent=0.0, shift_extent=0.0, initial_lowpass=24.0, max_iterations=2,
                regularisation=regularisation,
            ),
        )
        for regularisation in Regularisation
    ]  # fmt: skip
    posteriors = {each.refinement.records[-1].log_posterior for each in found}
    assert len(posteriors) == 3  # the references did differ
    for other in found[1:]:
        assert torch.equal(found[0].particles.rotations, other.particles.rotations)
        for name in ("none", "spherical", "loose", "tight", "randomised", "corrected"):
            assert torch.equal(getattr(found[0].curves, name), getattr(other.curves, name))


def test_poses_are_found_without_any(tmp_path, record_property):
    """All of SO(3), from the identity, with a blurred map of the complex as the only help."""
    settings = SimulationSettings(
        200, box_size=64, pixel_size=5.25, snr=1.0, pose_error_rotation=0.0, pose_error_shift=4.0, seed=4
    )
    simulate(settings, tmp_path, device=CPU)
    particles = read_particles(tmp_path / "particles.star")
    truth = load_truth(tmp_path).domains["body"].poses
    whole = reconstruct_half_maps(particles, truth.rotations, truth.shifts, device=CPU)
    map = low_pass(whole.half_a + whole.half_b, resolution=40.0, pixel_size=5.25)
    count = len(particles)
    lost = replace(particles, rotations=torch.eye(3).double().repeat(count, 1, 1),
                   shifts=torch.zeros(count, 2).double())  # fmt: skip
    found = refine_consensus(
        lost, HalfMaps(0.5 * map, 0.5 * map, 5.25), mask=None, device=CPU,
        settings=RefinementSettings(
            rotation_extent=180.0, shift_extent=20.0, initial_lowpass=30.0, max_iterations=3
        ),
    )  # fmt: skip
    point = load_ribosome().domains["body"].centre_of_mass
    given = found.particles.rotations, found.particles.shifts, truth.rotations, truth.shifts
    rotation, shift = pose_errors(*given, frame=align_frames(*given, point=point), point=point)
    assert found.refinement.records[-1].at_rotation_extent == 0.0
    record_property("share within 5 degrees", float((rotation < 5.0).double().mean()))
    record_property("median rotation error (degrees)", float(rotation.median()))
    assert float((rotation < 5.0).double().mean()) > 0.9
    assert float(rotation.median()) < 2.0
    assert float(shift.median()) < 3.0
