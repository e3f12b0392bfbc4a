"""Simulated particles against closed forms, and scores against poses whose errors are known."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cryosweep.ctf import contrast_transfer
from cryosweep.fourier import half_plane, shell_sum, spectrum_of_images
from cryosweep.geometry import (
    angle_between,
    mean_rotation,
    random_rotations,
    rotation_from_vector,
    rotation_vector,
)
from cryosweep.io import Particles, read_map, read_particles
from cryosweep.projector import project
from cryosweep.simulate import (
    CARRIER,
    DOMAINS,
    ENCLOSING_CENTRE,
    ENCLOSING_RADIUS,
    FrameChange,
    SimulationSettings,
    Structure,
    Truth,
    align_frames,
    domain_labels,
    load_ribosome,
    load_truth,
    noise_power,
    pose_errors,
    render_domain,
    simulate,
    truth_in_frame,
)

BOX, PIXEL = 48, 7.0
SETTINGS = SimulationSettings(particles=201, box_size=BOX, pixel_size=PIXEL, snr=0.1, seed=3)


@pytest.fixture(scope="module")
def structure() -> Structure:
    return load_ribosome()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simulated") / "not" / "there"
    simulate(SETTINGS, path, device="cpu")
    return path


@pytest.fixture(scope="module")
def particles(folder: Path) -> Particles:
    return read_particles(folder / "particles.star")


@pytest.fixture(scope="module")
def truth(folder: Path) -> Truth:
    return load_truth(folder)


def gaussian_transform(frequency: Tensor) -> Tensor:
    """Transform of one pseudo-atom of unit weight, by the formula."""
    b = 2 * (math.pi * frequency) ** 2
    return torch.exp(-b * 2.4**2) - 0.5 * torch.exp(-b * 8.0**2)


# ---- the complex ----


def test_domains_are_those_of_the_table(structure: Structure) -> None:
    counts = {name: len(domain.weights) for name, domain in structure.domains.items()}
    masses = {name: round(domain.mass_da / 1e3, 1) for name, domain in structure.domains.items()}
    assert counts == {"body": 6117, "foot": 2301, "head": 1587, "arm": 262}
    assert masses == {"body": 1280.8, "foot": 474.1, "head": 279.1, "arm": 44.5}
    assert tuple(structure.domains) == DOMAINS
    centres = {"body": (-22.9, 133.3, 169.8), "foot": (-9.9, 72.2, 90.5), "head": (-87.3, 104.5, 62.7),
               "arm": (-57.5, 199.3, 102.1)}  # fmt: skip
    for name, centre in centres.items():
        found = structure.domains[name].centre_of_mass + torch.tensor(ENCLOSING_CENTRE, dtype=torch.float64)
        assert found.tolist() == pytest.approx(centre, abs=0.06)


def test_origin_is_the_centre_of_the_smallest_sphere(structure: Structure) -> None:
    atoms = torch.cat([domain.coordinates for domain in structure.domains.values()])
    distance = atoms.norm(dim=1)
    assert float(distance.max()) == pytest.approx(ENCLOSING_RADIUS, abs=0.05)
    # smallest: wherever the centre moves to, an atom on the sphere is farther from it
    touching = atoms[distance > ENCLOSING_RADIUS - 0.1]
    directions = torch.nn.functional.normalize(
        torch.randn(500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), dim=1
    )
    moved = (touching[None] - 3.0 * directions[:, None]).norm(dim=-1).amax(dim=1)
    assert float(moved.min()) > float(distance.max())


def test_hinges_lie_where_the_strands_cross(structure: Structure) -> None:
    expected = {"head": (-12.3, -25.2, -51.8), "arm": (28.9, 62.0, -5.2), "foot": (27.2, -22.6, -2.6)}
    assert set(structure.hinges) == set(CARRIER)
    for name, hinge in expected.items():
        assert structure.hinges[name].tolist() == pytest.approx(hinge, abs=0.1)


# ---- density ----


@pytest.mark.parametrize(("box_size", "pixel_size"), [(48, 3.5), (47, 3.5), (40, 1.5), (33, 7.0)])
def test_rendered_atoms_have_the_transform_of_the_formula(box_size: int, pixel_size: float) -> None:
    """Worst error seen 1.0e-6 of the weight, from the window's cut at 4.5 sigma; swapped axes err by 1.4."""
    span = box_size * pixel_size
    coordinates = torch.tensor([[0.21, -0.13, 0.08], [-0.1, 0.17, -0.2]], dtype=torch.float64) * span
    weights = torch.tensor([1.0, 2.93], dtype=torch.float64)
    centre = torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)
    volume = render_domain(coordinates, weights, box_size=box_size, pixel_size=pixel_size, centre=centre)
    spectrum = torch.fft.fftn(torch.fft.ifftshift(volume))
    k = torch.fft.fftfreq(box_size, 1 / box_size, dtype=torch.float64)
    kz, ky, kx = torch.meshgrid(k, k, k, indexing="ij")
    phase = torch.stack([kx, ky, kz], dim=-1) @ (coordinates - centre).mT / span  # (d, d, d, 2)
    expected = (torch.exp(-2j * math.pi * phase) @ weights.to(torch.complex128)) * gaussian_transform(
        torch.sqrt(kx**2 + ky**2 + kz**2) / span
    )
    below_nyquist = (torch.stack([kx, ky, kz]).abs() < box_size / 2).all(dim=0)
    assert float((spectrum - expected).abs()[below_nyquist].max()) < 3e-6 * float(weights.sum())
    assert float(volume.sum()) == pytest.approx(0.5 * float(weights.sum()), rel=1e-4)


def test_images_are_exact_sums_of_gaussians(structure: Structure, tmp_path: Path) -> None:
    """Images as written, poses and CTF as read back, against the closed form.

    Error power over signal power 6.7e-4 here, most of it next to Nyquist, and 2.3e-4 at 96 px of 3.5 Å; an
    error of 1 degree in the poses gives 3e-2, one of half a pixel 0.4.
    """
    settings = dataclasses.replace(SETTINGS, particles=3, snr=1e9)
    data = simulate(settings, tmp_path, device="cpu")
    particles = read_particles(data.particles)
    truth = load_truth(tmp_path)
    plane = half_plane(BOX, dtype=torch.float64, device="cpu")
    frequencies = plane.k / (BOX * PIXEL)
    expected = torch.zeros(3, len(plane.k), dtype=torch.complex128)
    for name, domain in structure.domains.items():
        poses = truth.domains[name].poses
        seen = (domain.coordinates @ poses.rotations.mT)[..., :2] + poses.shifts[:, None]  # (3, m, 2)
        for image in range(3):
            phase = 2 * math.pi * (frequencies @ seen[image].mT)  # (K, m)
            expected[image] += torch.complex(phase.cos() @ domain.weights, -phase.sin() @ domain.weights)
    expected *= gaussian_transform(frequencies.norm(dim=1)) * contrast_transfer(particles.optics, frequencies)
    found = spectrum_of_images(particles.images(torch.arange(3)).double(), plane)
    error = float((found - expected).abs().square().sum() / expected.abs().square().sum())
    assert error < 1e-3


def test_labels_are_the_nearest_domain(structure: Structure) -> None:
    labels = domain_labels(structure, box_size=BOX, pixel_size=PIXEL, reach=15.0)
    atoms = torch.cat([domain.coordinates for domain in structure.domains.values()])
    owner = torch.cat(
        [torch.full((len(structure.domains[n].weights),), i + 1) for i, n in enumerate(DOMAINS)]
    )
    index = torch.randint(0, BOX, (400, 3), generator=torch.Generator().manual_seed(4))  # z, y, x
    distance, nearest = torch.cdist((index.flip(1) - BOX // 2).double() * PIXEL, atoms).min(dim=1)
    expected = torch.where(distance < 15.0, owner[nearest], 0)
    assert torch.equal(labels[index[:, 0], index[:, 1], index[:, 2]], expected)
    assert set(labels.unique().tolist()) == {0, 1, 2, 3, 4}


# ---- particles ----


def test_truth_explains_the_images(particles: Particles, truth: Truth, folder: Path) -> None:
    """Densities and poses of the truth files, reprojected, are the signal; the rest is the noise asked for.

    The densities lie off the centre here, so interpolation errs more (2e-3 of the signal, 2e-4 of the noise).
    """
    index = torch.arange(len(particles))
    plane = half_plane(BOX, dtype=torch.float32, device="cpu")
    frequencies = plane.k.double() / (BOX * PIXEL)
    transfer = contrast_transfer(particles.optics, frequencies).float()
    signal = torch.zeros(len(particles), BOX, BOX)
    for domain in truth.domains.values():
        signal += project(
            read_map(domain.density).data,
            domain.poses.rotations.float(),
            (domain.poses.shifts / PIXEL).float(),
            transfer=transfer,
        )
    images = particles.images(index)
    slope = float((signal * images).sum() / signal.square().sum())
    assert slope == pytest.approx(1.0, abs=0.02)  # three standard errors
    noise = images - signal
    snr = float(signal.square().mean() / noise.var())
    assert snr == pytest.approx(SETTINGS.snr, rel=0.02)
    summary = json.loads((folder / "simulation.json").read_text())
    assert float(signal.square().mean()) == pytest.approx(summary["signal_variance"], rel=5e-3)
    assert float(noise.var()) == pytest.approx(summary["noise_variance"], rel=0.02)
    # one scale for all images: their noise variances differ by chance only
    assert float(noise.var(dim=(1, 2)).std() / noise.var()) < 0.06

    spectrum = torch.fft.rfft2(noise.double()).abs().square().mean(dim=0)
    shells = shell_sum(spectrum, dims=2) / shell_sum(torch.ones_like(spectrum), dims=2)
    expected = shell_sum(noise_power(BOX, PIXEL), dims=2) / shell_sum(torch.ones_like(spectrum), dims=2)
    ratio = shells / (expected * summary["noise_variance"] * BOX**2)
    assert float((ratio[1:] - 1).abs().max()) < 0.15  # few samples in the first shells
    assert float((ratio[5:] - 1).abs().max()) < 0.05
    assert float(shells[1:4].mean() / shells[-6:].mean()) == pytest.approx(3.0, rel=0.12)


@pytest.mark.parametrize(("box_size", "pixel_size"), [(96, 3.5), (47, 7.0)])
def test_noise_power_is_normalised_and_three_times_higher_at_low_frequency(
    box_size: int, pixel_size: float
) -> None:
    power = noise_power(box_size, pixel_size)
    mirrored = power[:, 1 : (box_size + 1) // 2]
    assert float(power.sum() + mirrored.sum()) == pytest.approx(box_size**2)
    assert float(power[0, 1] / power[0, -1]) == pytest.approx(3.0, abs=0.05)
    half = round(box_size * pixel_size / 50)
    assert float(power[0, half] / power[0, -1]) == pytest.approx(2.0, abs=0.2)


def test_hinge_motion_has_the_spread_asked_for(truth: Truth, structure: Structure) -> None:
    for name, carrier in CARRIER.items():
        poses, carried_by = truth.domains[name].poses, truth.domains[carrier].poses
        turn = torch.rad2deg(rotation_vector(carried_by.rotations.mT @ poses.rotations))
        # 603 values: the standard error of a standard deviation is 3 %
        assert float(turn.std()) == pytest.approx(SETTINGS.rotation_spread[name], rel=0.12)
        assert float(turn.mean(dim=0).norm()) < 0.25 * SETTINGS.rotation_spread[name]
        hinge = structure.hinges[name]
        landing = (poses.rotations @ hinge)[:, :2] + poses.shifts
        resting = (carried_by.rotations @ hinge)[:, :2] + carried_by.shifts
        assert float((landing - resting).std()) == pytest.approx(SETTINGS.shift_spread[name], rel=0.15)


def test_particle_table_holds_body_poses_with_error(particles: Particles, truth: Truth) -> None:
    body = truth.domains["body"].poses
    error = torch.rad2deg(rotation_vector(particles.rotations @ body.rotations.mT))
    assert float(error.std()) == pytest.approx(SETTINGS.pose_error_rotation, rel=0.12)
    assert float((particles.shifts - body.shifts).std()) == pytest.approx(SETTINGS.pose_error_shift, rel=0.15)
    assert float(body.shifts.abs().max()) <= 0.5 * PIXEL
    # views are uniform on the sphere
    assert float(body.rotations[:, 2].mean(dim=0).abs().max()) < 4 / math.sqrt(3 * len(particles))
    defocus = 0.5 * (particles.optics.defocus_u + particles.optics.defocus_v)
    assert SETTINGS.defocus_min <= float(defocus.min()) < 1e4
    assert 2.1e4 < float(defocus.max()) <= SETTINGS.defocus_max


def test_half_sets_are_balanced(particles: Particles) -> None:
    sizes = torch.bincount(particles.half_sets).tolist()
    assert sorted(sizes) == [100, 101]
    assert "rlnRandomSubset" in particles.table
    assert particles.notes == ()


def test_equal_settings_give_equal_files(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, particles=21)
    done: list[int] = []
    simulate(settings, tmp_path / "a", device="cpu", advance=done.append)
    simulate(settings, tmp_path / "b", device="cpu", chunk_size=8)
    simulate(dataclasses.replace(settings, seed=4), tmp_path / "c", device="cpu", chunk_size=1)
    assert sum(done) == 21
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    truths = [f"truth_{name}.{suffix}" for name in DOMAINS for suffix in ("mrc", "star")]
    assert names == sorted(["domains.mrc", "particles.mrcs", "particles.star", "simulation.json", *truths])
    assert {name for name in names if differ(tmp_path / "a" / name, tmp_path / "b" / name)} == set()
    at_rest = {"domains.mrc", *(name for name in truths if name.endswith("mrc"))}
    other_seed = {name for name in names if differ(tmp_path / "a" / name, tmp_path / "c" / name)}
    assert other_seed == set(names) - at_rest


def differ(first: Path, second: Path) -> bool:
    """Whether two files differ, but for comment lines of STAR files, which hold the time of writing."""
    contents = [path.read_bytes() for path in (first, second)]
    if first.suffix == ".star":
        contents = [re.sub(rb"^#.*\n", b"", content) for content in contents]
    return contents[0] != contents[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"particles": 1}, "particles=1 must be at least 2"),
        ({"box_size": 40}, r"box_size=40 px of 7\.0 Å is 280 Å wide.*at least 46"),
        ({"pixel_size": 0.0}, r"pixel_size=0\.0 must lie between 0 and 10 Å"),
        ({"snr": 0.0}, r"snr=0\.0 must be above 0"),
        ({"snr": math.nan}, "snr=nan must be above 0"),
        ({"rotation_spread": {"head": 7.0}}, "rotation_spread must name foot, head, arm, not head"),
        (
            {"shift_spread": {"foot": 0.0, "head": -1.0, "arm": 0.0}},
            r"shift_spread\.head=-1\.0 must be 0 or more",
        ),
        ({"pose_error_rotation": -1.0}, r"pose_error_rotation=-1\.0 degrees"),
        ({"pose_error_shift": math.inf}, "pose_error_shift=inf Å"),
        ({"defocus_min": 3e4}, r"defocus_min=30000\.0 Å must lie between 0 and defocus_max=23000\.0 Å"),
        ({"voltage": 3e5}, r"voltage=300000\.0 kV"),
        ({"spherical_aberration": -2.7}, r"spherical_aberration=-2\.7 mm"),
        ({"amplitude_contrast": 10.0}, r"amplitude_contrast=10\.0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_settings_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SETTINGS, **change)


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(ValueError, match=r"particles=0.*snr=-1"):
        SimulationSettings(particles=0, snr=-1)


def test_absent_truth_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"domains\.mrc, truth_body\.star.*not found"):
        load_truth(tmp_path)


# ---- scores ----


def refined_poses(rotations: Tensor, shifts: Tensor, frame: FrameChange) -> tuple[Tensor, Tensor]:
    """Poses of a map moved as a whole by `frame`: x_view = R x + t with x = G^T (x_refined - g)."""
    turned = rotations @ frame.rotation.mT
    return turned, shifts - (turned @ frame.shift)[:, :2]


@pytest.fixture
def frame() -> FrameChange:
    vector = torch.deg2rad(torch.tensor([2.0, -3.0, 1.5], dtype=torch.float64))
    return FrameChange(rotation_from_vector(vector), torch.tensor([3.0, -2.0, 5.0], dtype=torch.float64))


def test_change_of_frame_is_no_error(truth: Truth, structure: Structure, frame: FrameChange) -> None:
    poses = truth.domains["head"].poses
    point = structure.domains["head"].centre_of_mass
    rotations, shifts = refined_poses(poses.rotations, poses.shifts, frame)
    found = align_frames(rotations, shifts, poses.rotations, poses.shifts, point=point)
    torch.testing.assert_close(found.rotation, frame.rotation, atol=1e-9, rtol=0)
    torch.testing.assert_close(found.shift, frame.shift, atol=1e-7, rtol=0)
    rotation_error, shift_error = pose_errors(
        rotations, shifts, poses.rotations, poses.shifts, frame=found, point=point
    )
    assert float(rotation_error.max()) < 1e-5
    assert float(shift_error.max()) < 1e-6
    # without it they would be errors
    rotation_error, shift_error = pose_errors(
        rotations, shifts, poses.rotations, poses.shifts, frame=FrameChange.none(), point=point
    )
    assert float(rotation_error.median()) > 3.0
    assert float(shift_error.median()) > 2.0


def test_errors_are_those_made(structure: Structure, frame: FrameChange, generator: torch.Generator) -> None:
    """A third of the particles stray widely, and to one side; the frame is hardly drawn along."""
    count = 900
    true_rotations = random_rotations(count, generator, dtype=torch.float64)
    true_shifts = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    point = structure.domains["head"].centre_of_mass
    errors = torch.deg2rad(2.0 * torch.randn(count, 3, generator=generator, dtype=torch.float64))
    errors[:300] = torch.deg2rad(20.0 * torch.randn(300, 3, generator=generator, dtype=torch.float64) + 15.0)
    unturned, shifts = refined_poses(true_rotations, true_shifts, frame)
    rotations = rotation_from_vector(errors) @ unturned
    rotations[:300] = unturned[:300] @ rotation_from_vector(errors[:300])  # to one side in the map frame
    # turned about the centre of mass, and shifted by a known amount
    seen_at = frame.rotation @ point + frame.shift
    made = 0.8 * torch.randn(count, 2, generator=generator, dtype=torch.float64)
    made[:300] *= 15
    shifts = shifts + ((unturned - rotations) @ seen_at)[:, :2] + made
    found = align_frames(rotations, shifts, true_rotations, true_shifts, point=point)
    assert float(torch.rad2deg(angle_between(found.rotation, frame.rotation))) < 0.6
    plain_mean = mean_rotation(rotations.mT @ true_rotations)
    assert float(torch.rad2deg(angle_between(plain_mean, frame.rotation))) > 5.0
    offset = (found.rotation - frame.rotation) @ point + found.shift - frame.shift
    assert float(offset.norm()) < 0.4
    rotation_error, shift_error = pose_errors(
        rotations, shifts, true_rotations, true_shifts, frame=found, point=point
    )
    usual = slice(300, None)
    turned_by = torch.rad2deg(errors[usual].norm(dim=1))
    assert float((rotation_error[usual] - turned_by).abs().max()) < 0.6
    assert float((shift_error[usual] - made[usual].norm(dim=1)).abs().max()) < 0.4


def test_true_map_moves_with_the_frame(structure: Structure, frame: FrameChange, truth: Truth) -> None:
    """Projected at refined poses, the map in the refined frame shows what the true map shows at true poses.

    Error power over signal power 7e-4, that of two interpolations; 0.53 with the inverse change of frame.
    """
    head = structure.domains["head"]
    poses = truth.domains["head"].poses
    rotations, shifts = refined_poses(poses.rotations[:8], poses.shifts[:8], frame)

    def show(volume: Tensor, rotations: Tensor, shifts: Tensor) -> Tensor:
        return project(volume, rotations, shifts / PIXEL)

    at_rest = truth_in_frame(head, FrameChange.none(), box_size=BOX, pixel_size=PIXEL)
    expected = show(at_rest, poses.rotations[:8], poses.shifts[:8])
    moved = truth_in_frame(head, frame, box_size=BOX, pixel_size=PIXEL)
    error = (show(moved, rotations, shifts) - expected).square().sum() / expected.square().sum()
    assert float(error) < 1.5e-3
    inverse = FrameChange(frame.rotation.mT, -frame.rotation.mT @ frame.shift)
    wrong = truth_in_frame(head, inverse, box_size=BOX, pixel_size=PIXEL)
    error = (show(wrong, rotations, shifts) - expected).square().sum() / expected.square().sum()
    assert float(error) > 0.5


def test_density_on_disk_is_the_domain_at_rest(structure: Structure, truth: Truth) -> None:
    assert (truth.box_size, truth.pixel_size) == (BOX, PIXEL)
    axis = (torch.arange(BOX) - BOX // 2) * PIXEL
    for name, domain in truth.domains.items():
        density = read_map(domain.density).data.double()
        marginals = [density.sum(dim=axes) for axes in ((0, 1), (0, 2), (1, 2))]  # along x, y, z
        centre = [float((marginal @ axis.double()) / density.sum()) for marginal in marginals]
        # what rings from the cut at Nyquist moves the first moment a little
        assert centre == pytest.approx(structure.domains[name].centre_of_mass.tolist(), abs=1.0)
        power = density.square()
        inside = truth.labels == DOMAINS.index(name) + 1
        assert float(power[inside].sum() / power.sum()) > 0.8
