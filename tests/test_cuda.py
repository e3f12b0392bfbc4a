"""The same code on a CUDA device gives what it gives on the CPU."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from cryosweep.fourier import half_plane
from cryosweep.geometry import angle_between, random_rotations
from cryosweep.likelihood import log_likelihood_quadratic
from cryosweep.projector import make_reference
from cryosweep.reconstruction import HalfMaps
from cryosweep.refinement import RefinementSettings, refine
from cryosweep.segmentation import measure, segment, territory, touching
from tests.reference.exact import random_blobs
from tests.test_refinement import DOMAIN_CENTRE, PIXEL, make_scene

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def test_likelihood_and_its_derivatives_are_those_of_the_cpu(generator):
    volume = random_blobs(generator, radius=6).volume(24).float()
    rotations = random_rotations(16, generator, dtype=torch.float32)
    shifts = torch.randn(16, 2, generator=generator)
    samples = half_plane(24, dtype=torch.float32, device="cpu").k.shape[0]
    images = torch.randn(16, samples, generator=generator, dtype=torch.complex64)
    weights = torch.rand(16, samples, generator=generator)
    found = []
    for device in ("cpu", "cuda"):
        plane = half_plane(24, dtype=torch.float32, device=device)
        quadratic = log_likelihood_quadratic(
            make_reference(volume.to(device)),
            plane,
            images=images.to(device),
            weights=weights.to(device),
            rotations=rotations.to(device),
            shifts_px=shifts.to(device),
        )
        found.append(quadratic)
    for name in ("value", "gradient", "curvature"):
        on_cpu, on_cuda = (getattr(each, name) for each in found)
        assert_close(on_cuda.cpu(), on_cpu, rtol=1e-3, atol=1e-3 * float(on_cpu.abs().max()))


def test_refinement_ends_where_it_does_on_the_cpu(tmp_path):
    scene = make_scene(tmp_path, noise=0.5)
    rotations = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        start = HalfMaps(*(half.to(device) for half in scene.start.pair), scene.start.pixel_size)
        moved = replace(scene, start=start, mask=scene.mask.to(device))
        settings = RefinementSettings(max_iterations=2, initial_lowpass=20.0, rotation_extent=25.0)
        result = refine(
            moved.particles, moved.start, moved.mask, fulcrum=DOMAIN_CENTRE * PIXEL, settings=settings,
            device=device,
        )  # fmt: skip
        rotations.append(result.rotations.cpu())
    difference = torch.rad2deg(angle_between(*rotations))
    # sums run in another order, so single particles may prefer another optimum; the bulk may not
    assert float(difference.median()) < 0.2


def test_regions_are_those_of_the_cpu(generator):
    volume = random_blobs(generator, radius=12).volume(48).float()
    on_cpu, on_cuda = (
        segment(volume.to(device), threshold=0.2 * float(volume.max()), steps=2, step_px=1.0)
        for device in ("cpu", "cuda")
    )
    assert on_cuda.labels.is_cuda
    assert torch.equal(on_cuda.labels.cpu(), on_cpu.labels)
    assert on_cuda.regions == on_cpu.regions
    peak = on_cpu.regions[1].peak
    assert touching(on_cuda, peak) == touching(on_cpu, peak) == 1
    assert torch.equal(territory(on_cuda, [1]).cpu(), territory(on_cpu, [1]))
    assert measure(on_cuda, [1], pixel_size=2.0) == measure(on_cpu, [1], pixel_size=2.0)
