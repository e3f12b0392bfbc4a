"""The scores of one run: the held-out log-likelihood against a plain loop and against known poses."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from cryosweep.ctf import contrast_transfer
from cryosweep.fourier import gaussian_filter, half_plane, shift_phase, spectrum_of_images
from cryosweep.geometry import rotation_from_vector
from cryosweep.io.particles import Particles, read_particles
from cryosweep.mask import soft_mask, threshold_of
from cryosweep.projector import make_reference, slices
from cryosweep.reconstruction import HalfMaps, reconstruct_half_maps
from cryosweep.simulate import DOMAINS, SimulationSettings, Truth, load_truth, simulate
from cryosweep.study.assessment import (
    Ruler,
    held_out_log_likelihood,
    jackknife_areas,
    make_ruler,
    masked_fsc,
)
from cryosweep.study.statistics import jackknife_sd
from tests.test_statistics import Record

CPU = torch.device("cpu")
BOX, PIXEL_SIZE = 48, 7.0


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Particles, Truth, Ruler]:
    folder = tmp_path_factory.mktemp("simulated")
    simulate(
        SimulationSettings(particles=300, box_size=BOX, pixel_size=PIXEL_SIZE, snr=0.2), folder, device=CPU
    )
    truth = load_truth(folder)
    particles = read_particles(folder / "particles.star")
    poses = truth.domains["head"].poses
    start = reconstruct_half_maps(particles, poses.rotations, poses.shifts, device=CPU)
    base = gaussian_filter(start.half_a + start.half_b, sigma=6.0, pixel_size=PIXEL_SIZE)
    base = base * (truth.labels == 1 + DOMAINS.index("head"))
    mask = soft_mask(
        base,
        threshold=threshold_of(base, 0.15, unit="fraction"),
        dilation_radius_px=0,
        soft_padding_width_px=2,
    )
    ruler = make_ruler(mask, pixel_size=PIXEL_SIZE, band_low=60.0, band_high=None, randomisations=1, seed=0)
    return particles, truth, ruler


def with_error(
    particles: Particles, truth: Truth, degrees: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    poses = truth.domains["head"].poses
    wrong = math.radians(degrees) * torch.randn(len(particles), 3, generator=generator, dtype=torch.float64)
    return rotation_from_vector(wrong) @ poses.rotations, poses.shifts


def likelihood(
    simulated: tuple[Particles, Truth, Ruler], poses: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    particles, _, ruler = simulated
    half_maps = reconstruct_half_maps(particles, *poses, device=CPU)
    return held_out_log_likelihood(particles, *poses, half_maps, ruler, device=CPU)


def test_poses_nearer_to_the_truth_are_likelier(
    simulated: tuple[Particles, Truth, Ruler], generator: torch.Generator, record_property: Record
) -> None:
    particles, truth, _ = simulated
    found = {
        degrees: likelihood(simulated, with_error(particles, truth, degrees, generator))
        for degrees in (0.0, 2.0, 4.0, 8.0, 16.0)
    }
    means = [float(value.mean()) for value in found.values()]
    record_property("mean_by_pose_error", means)
    assert means == sorted(means, reverse=True)
    # the same images: a paired difference is far surer than its parts
    for better, worse in zip(list(found.values())[:-1], list(found.values())[1:], strict=True):
        d = better - worse
        assert float(d.mean()) > 4.0 * float(d.std()) / math.sqrt(len(d))


def test_it_is_the_likelihood_of_a_plain_loop(simulated: tuple[Particles, Truth, Ruler]) -> None:
    """Straight from the formula, as a difference of squared residuals with and without the model."""
    particles, truth, ruler = simulated
    poses = truth.domains["head"].poses
    half_maps = reconstruct_half_maps(particles, poses.rotations, poses.shifts, device=CPU)
    found = held_out_log_likelihood(particles, poses.rotations, poses.shifts, half_maps, ruler, device=CPU)
    plane = half_plane(BOX, max_shell=ruler.last_shell, dtype=torch.float64, device="cpu")
    every = torch.arange(len(particles))
    images = spectrum_of_images(particles.images(every).double(), plane)
    transfer = contrast_transfer(
        particles.optics.to(dtype=torch.float64, device="cpu"), plane.k / (BOX * PIXEL_SIZE)
    )
    power = images.abs().square()
    expected = np.zeros(len(particles))
    for half, other in ((0, half_maps.half_b), (1, half_maps.half_a)):
        rows = (particles.half_sets == half).nonzero().squeeze(-1)
        reference = make_reference(other.double() * ruler.mask.double())
        model = slices(reference, poses.rotations[rows], plane) * transfer[rows]
        model = model * shift_phase(plane, poses.shifts[rows] / PIXEL_SIZE)
        for shell in range(ruler.first_shell, ruler.last_shell + 1):
            here = plane.shell == shell
            variance = float(power[:, here].mean())
            seen, made = images[rows][:, here], model[:, here]
            scale = max(0.0, float((seen.conj() * made).real.sum() / made.abs().square().sum()))
            without = seen.abs().square().sum(dim=1)
            residual = (seen - scale * made).abs().square().sum(dim=1)
            expected[rows.numpy()] += ((without - residual) / variance).numpy()
    assert np.allclose(found.numpy(), expected, rtol=2e-3, atol=2e-3)


def test_a_map_of_noise_explains_nothing(
    simulated: tuple[Particles, Truth, Ruler], generator: torch.Generator
) -> None:
    particles, truth, ruler = simulated
    poses = truth.domains["head"].poses
    noise = HalfMaps(*torch.randn(2, BOX, BOX, BOX, generator=generator), PIXEL_SIZE)
    found = held_out_log_likelihood(particles, poses.rotations, poses.shifts, noise, ruler, device=CPU)
    real = likelihood(simulated, (poses.rotations, poses.shifts))
    assert abs(float(found.mean())) < 0.1
    assert float(real.mean()) > 10.0 * abs(float(found.mean()))


def test_the_grey_scale_and_a_filter_of_the_map_do_not_count(
    simulated: tuple[Particles, Truth, Ruler],
) -> None:
    particles, truth, ruler = simulated
    poses = truth.domains["head"].poses
    maps = reconstruct_half_maps(particles, poses.rotations, poses.shifts, device=CPU)
    louder = HalfMaps(3.0 * maps.half_a, 0.2 * maps.half_b, PIXEL_SIZE)
    first, second = (
        held_out_log_likelihood(particles, poses.rotations, poses.shifts, each, ruler, device=CPU)
        for each in (maps, louder)
    )
    assert torch.allclose(first, second, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_jackknife_leaves_one_block_out_and_foretells_the_scatter(
    tmp_path: Path, simulated: tuple[Particles, Truth, Ruler], record_property: Record
) -> None:
    particles, truth, ruler = simulated
    poses = truth.domains["head"].poses
    areas = jackknife_areas(particles, poses.rotations, poses.shifts, ruler, blocks=10, device=CPU)
    rank = torch.zeros(len(particles), dtype=torch.int64)
    for half in (0, 1):
        rank[particles.half_sets == half] = torch.arange(int((particles.half_sets == half).sum()))
    keep = (rank % 10 != 3).nonzero().squeeze(-1)
    direct = reconstruct_half_maps(
        particles.take(keep), poses.rotations[keep], poses.shifts[keep], device=CPU
    )
    curve = masked_fsc(direct, ruler.mask)
    band = curve[ruler.first_shell : ruler.last_shell + 1]
    assert float(areas[3]) == pytest.approx(float(band.mean()), abs=2e-4)

    # other particles at their true poses: what leaving blocks out is to foretell
    observed: list[float] = []
    for seed in range(1, 13):
        folder = tmp_path / str(seed)
        settings = SimulationSettings(particles=300, box_size=BOX, pixel_size=PIXEL_SIZE, snr=0.2, seed=seed)
        simulate(settings, folder, device=CPU)
        others, known = read_particles(folder / "particles.star"), load_truth(folder).domains["head"].poses
        maps = reconstruct_half_maps(others, known.rotations, known.shifts, device=CPU)
        curve = masked_fsc(maps, ruler.mask)
        observed.append(float(curve[ruler.first_shell : ruler.last_shell + 1].mean()))
    ratio = float(jackknife_sd(areas.numpy())) / float(np.std(observed, ddof=1))
    record_property("jackknife_sd_over_observed", ratio)
    assert 0.5 < ratio < 2.0
