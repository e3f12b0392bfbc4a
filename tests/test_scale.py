"""Per-particle scale against sums written out in float64, the Cramér-Rao bound, and known contrasts."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cryosweep.ctf import contrast_transfer
from cryosweep.fourier import half_plane, spectrum_of_images
from cryosweep.geometry import random_rotations
from cryosweep.io.particles import read_particles, write_particles
from cryosweep.mask import spherical_mask
from cryosweep.projector import make_reference, slices
from cryosweep.reconstruction import reconstruct_half_maps
from cryosweep.refinement import RefinementSettings, refine
from cryosweep.resolution import fsc
from cryosweep.scale import particle_scale, scale_terms
from cryosweep.simulate import SimulationSettings, load_truth, simulate
from cryosweep.subtraction import Rest, subtracted
from tests.reference.exact import Blobs

BOX = 32
CPU = torch.device("cpu")


def scene(generator, count, *, noise):
    """Reference, poses, Y and W at a noise variance per sample, with scales that differ by a fifth."""
    offsets = 4.0 * torch.randn(30, 3, generator=generator, dtype=torch.float64)
    volume = Blobs(offsets, torch.full((30,), 1.2).double(), torch.ones(30).double()).volume(BOX)
    plane = half_plane(BOX, max_shell=10, dtype=torch.float64, device=CPU)
    reference = make_reference(volume)
    rotations = random_rotations(count, generator, dtype=torch.float64)
    shifts = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    ctf = torch.cos(plane.k.norm(dim=1) * (0.5 + torch.rand(count, 1, generator=generator).double()))
    turn = torch.exp(-2j * math.pi / BOX * (shifts @ plane.k.mT))
    shown = ctf * turn * slices(reference, rotations, plane)
    true = torch.exp(0.2 * torch.randn(count, generator=generator, dtype=torch.float64))
    parts = torch.randn(2, *shown.shape, generator=generator, dtype=torch.float64)
    images = true[:, None] * shown + math.sqrt(noise / 2.0) * torch.complex(*parts)
    given = {"images": ctf * images / noise, "weights": ctf.square() / noise, "rotations": rotations}
    return reference, plane, given | {"shifts_px": shifts}, (true, shown, images)


def test_scale_is_the_ratio_written_out(generator):
    reference, plane, given, (_, shown, images) = scene(generator, 7, noise=50.0)
    cross, energy = scale_terms(reference, plane, **given)
    for row in range(7):
        numerator = sum(
            (p.conjugate() * x).real for p, x in zip(shown[row].tolist(), images[row].tolist(), strict=True)
        )
        denominator = sum(abs(p) ** 2 for p in shown[row].tolist())
        assert float(cross[row] / energy[row]) == pytest.approx(numerator / denominator, rel=1e-10)


def test_errors_reach_the_cramer_rao_bound(generator):
    """Errors in units of their predicted deviation: mean 0, deviation 1, for weak and strong images alike."""
    reference, plane, given, (true, shown, _) = scene(generator, 2000, noise=60.0)
    cross, energy = scale_terms(reference, plane, **given)
    bound = (60.0 / (2.0 * shown.abs().square().sum(dim=1))).sqrt()
    assert 0.02 < float(bound.median()) < 0.3  # neither exact nor hopeless
    error = (cross / energy - true) / bound
    assert float(error.std()) == pytest.approx(1.0, abs=0.05)
    assert abs(float(error.mean())) < 0.07


def test_scales_have_mean_one_in_each_half_and_forget_the_grey_scale(generator):
    cross = 1.0 + torch.rand(40, generator=generator, dtype=torch.float64)
    energy = torch.full((40,), 1e4, dtype=torch.float64)
    half_sets = torch.arange(40) % 2
    scale = particle_scale(cross * energy, energy, half_sets)
    for half in (0, 1):
        rows = half_sets == half
        assert float(scale[rows].mean()) == pytest.approx(1.0)
        expected = cross[rows] / cross[rows].mean()
        assert torch.allclose(scale[rows], expected, rtol=1e-3)  # nothing to shrink at this energy
    # a reference at three times the grey scale, in one half-set alone
    grey = torch.where(half_sets == 0, 3.0, 1.0).double()
    again = particle_scale(cross * energy * grey, energy * grey.square(), half_sets)
    assert torch.allclose(scale, again, rtol=1e-3)


def test_scales_that_do_not_differ_come_out_as_one(generator):
    energy = 5.0 + 10.0 * torch.rand(4000, generator=generator, dtype=torch.float64)
    noise = torch.randn(4000, generator=generator, dtype=torch.float64) / (2.0 * energy).sqrt()
    half_sets = torch.arange(4000) % 2
    same = particle_scale((1.0 + noise) * energy, energy, half_sets)
    assert float(same.std()) < 0.06  # the plain ratio: 0.23
    true = 1.0 + 0.3 * torch.randn(4000, generator=generator, dtype=torch.float64)
    found = particle_scale((true + noise) * energy, energy, half_sets)
    error, plain = (found - true).square().mean().sqrt(), noise.square().mean().sqrt()
    # the best that a Gaussian prior can do: 1 / (1 / 0.3^2 + 1 / v)
    best = (1.0 / (1.0 / 0.09 + 2.0 * energy)).mean().sqrt()
    assert 0.95 * float(best) < float(error) < 1.05 * float(best)
    assert float(error) < 0.9 * float(plain)


def test_range_is_bounded_about_the_median():
    energy = torch.full((9,), 1e6, dtype=torch.float64)
    relative = torch.tensor([1.0] * 7 + [100.0, -3.0], dtype=torch.float64)
    scale = particle_scale(relative * energy, energy, torch.zeros(9, dtype=torch.int64))
    assert float(scale[7] / scale[0]) == pytest.approx(5.0, rel=1e-3)
    assert float(scale[8] / scale[0]) == pytest.approx(0.2, rel=1e-3)
    nothing = particle_scale(-energy, energy, torch.zeros(9, dtype=torch.int64))
    assert nothing.tolist() == [1.0] * 9


# ---- in a refinement ----

STILL = dict.fromkeys(("foot", "head", "arm"), 0.0)


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """A rigid ribosome whose images differ in contrast by a third."""
    folder = tmp_path_factory.mktemp("contrast")
    settings = SimulationSettings(
        particles=160, box_size=48, pixel_size=7.0, snr=0.3, scale_spread=0.35, rotation_spread=STILL,
        shift_spread=STILL, pose_error_rotation=1.0, pose_error_shift=1.0, seed=4,
    )  # fmt: skip
    simulate(settings, folder, device="cpu")
    return folder


def refined(particles, *, scale):
    start = reconstruct_half_maps(particles, particles.rotations, particles.shifts, device=CPU)
    mask = spherical_mask(48, outer_px=24.0, inner_px=20.0, device="cpu", dtype=torch.float32)
    return refine(
        particles, start, mask, fulcrum=torch.zeros(3), device=CPU,
        settings=RefinementSettings(
            max_iterations=2, initial_lowpass=25.0, rotation_extent=4.0, shift_extent=4.0, scale=scale
        ),
    )  # fmt: skip


def test_contrast_is_found_used_and_read_back(still, tmp_path):
    particles = read_particles(still / "particles.star")
    truth = load_truth(still).scale
    assert float(truth.std()) == pytest.approx(0.35, abs=0.07)
    plain = refined(particles, scale=False)
    assert plain.scale is None
    found = refined(particles, scale=True)
    known = truth / truth.mean()
    # seen: 0.15 of 0.37, correlation 0.94; each of 80 images is part of its own reference, which draws to 1
    assert float((found.scale - known).std()) < 0.5 * float(known.std())
    assert float(torch.corrcoef(torch.stack([found.scale, truth]))[0, 1]) > 0.9

    scaled = particles.rescaled(found.scale)
    write_particles(scaled, tmp_path / "out.star", rotations=found.rotations, shifts=found.shifts)
    read = read_particles(tmp_path / "out.star")
    assert torch.allclose(read.optics.scale, found.scale, atol=1e-6)
    assert any("cryosweepScale" in note for note in read.notes)
    assert read.table["rlnCtfScalefactor"].tolist() == particles.table["rlnCtfScalefactor"].tolist()
    assert torch.equal(read.take(torch.tensor([3, 1])).contrast, read.contrast[[3, 1]])
    # a second estimate starts from the first and changes little
    again = refined(read, scale=True)
    assert float((again.scale - 1.0).abs().median()) < 0.03

    from cryosweep.io import read_map
    from cryosweep.simulate import DOMAINS

    density = sum(read_map(still / f"truth_{name}.mrc").data for name in DOMAINS)
    areas = []
    for each, result in ((particles, plain), (scaled, found)):
        maps = reconstruct_half_maps(each, result.rotations, result.shifts, device=CPU)
        curve = fsc(maps.half_a + maps.half_b, density.to(maps.half_a))
        areas.append(float(curve[4:20].mean()))
    assert areas[1] > areas[0]


def test_known_contrast_makes_a_subtraction_exact(still):
    """The projection that is taken out carries each particle's own scale."""
    particles = read_particles(still / "truth_body.star")
    plane = half_plane(48, dtype=torch.float32, device=CPU)
    index = torch.tensor([2, 11])
    volume = torch.zeros(48, 48, 48)
    volume[20:28, 18:30, 22:26] = 1.0
    from cryosweep.reconstruction import HalfMaps

    rest = Rest(HalfMaps(volume, volume, 7.0), torch.ones_like(volume), None)
    lacking = subtracted(particles, rest, device=CPU)
    taken = spectrum_of_images(particles.images(index) - lacking.images(index), plane)
    plain = replace(particles, optics=replace(particles.optics, scale=torch.ones(len(particles)).double()))
    once = subtracted(plain, rest, device=CPU)
    unscaled = spectrum_of_images(plain.images(index) - once.images(index), plane)
    ratio = (taken.abs().sum(dim=1) / unscaled.abs().sum(dim=1)).double()
    assert torch.allclose(ratio, particles.contrast[index], rtol=1e-4)
    frequencies = plane.k / (48 * 7.0)
    transfer = contrast_transfer(particles.optics[index].to(dtype=torch.float32, device=CPU), frequencies)
    assert float(transfer.abs().max()) <= float(particles.contrast[index].max())


def test_scale_that_is_not_positive_is_refused(still, tmp_path):
    particles = read_particles(still / "particles.star")
    write_particles(
        particles.rescaled(torch.full((160,), -1.0).double()), tmp_path / "bad.star",
        rotations=particles.rotations, shifts=particles.shifts,
    )  # fmt: skip
    with pytest.raises(ValueError, match="cryosweepScale must be above 0"):
        read_particles(tmp_path / "bad.star")
    with pytest.raises(ValueError, match="is written from the particles"):
        write_particles(
            particles, tmp_path / "no.star", rotations=particles.rotations, shifts=particles.shifts,
            extra={"cryosweepScale": np.ones(160)},
        )  # fmt: skip
