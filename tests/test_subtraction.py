"""Subtraction: its algebra against the analytic answer, the half-sets apart, and RELION's own program."""

import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
import torch
from torch import Tensor

from cryosweep import app
from cryosweep.ctf import Optics, contrast_transfer
from cryosweep.fourier import half_plane, shift_phase, spectrum_of_images
from cryosweep.geometry import random_rotations, rotation_from_vector
from cryosweep.io import (
    new_particles,
    open_stack_for_writing,
    read_map,
    read_particles,
    write_map,
    write_particles,
)
from cryosweep.io.particles import Particles
from cryosweep.mask import spherical_mask
from cryosweep.projector import project
from cryosweep.reconstruction import HalfMaps, reconstruct_half_maps
from cryosweep.resolution import fsc
from cryosweep.subtraction import (
    Rest,
    Window,
    check_half_maps,
    grey_scale,
    recentred,
    rest_of,
    share_left,
    share_removed,
    subtracted,
    write_subtracted,
)
from tests.reference.exact import Blobs

BOX, PIXEL = 48, 4.0
CPU = torch.device("cpu")
KEPT_CENTRE = (7.0, -4.0, 5.0)  # px from the box centre
REST_CENTRE = (-7.0, 6.0, -6.0)


@dataclass(frozen=True)
class Scene:
    """Particles of two parts at known poses, the noise in them, and both parts as maps and as blobs."""

    particles: Particles
    noise: Tensor
    kept: Tensor
    rest: Tensor
    rest_blobs: Blobs


def blobs(centre: tuple[float, float, float], radius: float, generator: torch.Generator) -> Blobs:
    offsets = radius * torch.randn(40, 3, generator=generator, dtype=torch.float64)
    sigmas = 1.3 + 0.5 * torch.rand(40, generator=generator, dtype=torch.float64)
    return Blobs(torch.tensor(centre).double() + offsets, sigmas, torch.ones(40, dtype=torch.float64))


def transfer_of(particles: Particles) -> Tensor:
    plane = half_plane(BOX, dtype=torch.float64, device=CPU)
    return contrast_transfer(particles.optics, plane.k / (BOX * PIXEL))


def make_scene(folder: Path, *, count: int, noise: float, seed: int = 3) -> Scene:
    generator = torch.Generator().manual_seed(seed)
    kept, rest = (blobs(centre, 2.5, generator) for centre in (KEPT_CENTRE, REST_CENTRE))
    maps = kept.volume(BOX), rest.volume(BOX)
    rotations = random_rotations(count, generator, dtype=torch.float64)
    shifts = 1.5 * PIXEL * torch.randn(count, 2, generator=generator, dtype=torch.float64)
    same = torch.ones(count, dtype=torch.float64)
    defocus = 8e3 + 1e4 * torch.rand(count, generator=generator, dtype=torch.float64)
    optics = Optics(
        defocus_u=defocus + 300, defocus_v=defocus - 300, astigmatism_angle=40 * same, voltage=300 * same,
        spherical_aberration=2.7 * same, amplitude_contrast=0.1 * same, phase_shift=0 * same,
        b_factor=20 * same, scale=0.9 * same,
    )  # fmt: skip
    particles = new_particles(
        folder / "particles.star", stack=folder / "particles.mrcs", rotations=rotations, shifts=shifts,
        optics=optics, half_sets=torch.arange(count) % 2, pixel_size=PIXEL, box_size=BOX,
    )  # fmt: skip
    signal = project(maps[0] + maps[1], rotations, shifts / PIXEL, transfer=transfer_of(particles))
    white = torch.randn(signal.shape, generator=generator, dtype=torch.float64)
    added = noise * signal.std() * white
    with open_stack_for_writing(particles.stacks[0], count=count, box_size=BOX, pixel_size=PIXEL) as stack:
        stack[:] = (signal + added).float().numpy()
    write_particles(particles, particles.path, rotations=rotations, shifts=shifts)
    return Scene(read_particles(particles.path), added, *maps, rest)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("scene"), count=60, noise=1.0)


def everything() -> Tensor:
    return torch.ones(BOX, BOX, BOX)


def twice(volume: Tensor) -> HalfMaps:
    return HalfMaps(volume.float(), volume.float(), PIXEL)


def whole_rest(scene: Scene) -> Rest:
    """The true map of what is to be removed, for both half-sets."""
    return rest_of(twice(scene.rest), everything(), filter="none")


def residual(particles: Particles, scene: Scene) -> Tensor:
    """(n, d, d) what is left in the images of particles besides the kept part and the noise."""
    true = scene.particles
    kept = project(scene.kept, true.rotations, true.shifts / PIXEL, transfer=transfer_of(true))
    return particles.images(torch.arange(len(particles))).double() - kept - scene.noise


def samples(images: Tensor) -> Tensor:
    return spectrum_of_images(images.double(), half_plane(BOX, dtype=torch.float64, device=CPU))


def rms(values: Tensor) -> float:
    return float(values.abs().square().mean().sqrt())


# ---- algebra ----


def test_true_poses_and_map_leave_the_domain_and_the_noise(scene: Scene) -> None:
    """E[image after subtraction] is the kept part under its CTF; nothing else is touched."""
    before = residual(scene.particles, scene)
    after = residual(
        subtracted(scene.particles, whole_rest(scene), device=CPU),
        scene,
    )
    assert rms(before) > 0.3 * rms(scene.noise)
    assert rms(after) < 2e-6 * rms(before)  # seen 6e-7: float32


def test_a_shift_error_leaves_what_the_phase_says(scene: Scene) -> None:
    """Sample by sample: |CTF A(k)| |1 - exp(-2 pi i k.d / n)|."""
    error_px = torch.tensor([0.7, -0.4], dtype=torch.float64)
    wrong = replace(scene.particles, shifts=scene.particles.shifts + error_px * PIXEL)
    rest = whole_rest(scene)
    left = samples(residual(subtracted(wrong, rest, device=CPU), scene)).abs()
    true = scene.particles
    whole = samples(project(scene.rest, true.rotations, true.shifts / PIXEL, transfer=transfer_of(true)))
    plane = half_plane(BOX, dtype=torch.float64, device=CPU)
    expected = whole.abs() * (1 - shift_phase(plane, error_px)).abs()
    assert rms(left - expected) < 1e-5 * rms(whole)
    assert rms(left) > 0.05 * rms(whole)  # else the test would say nothing


def test_a_rotation_error_leaves_what_moved_blobs_say(tmp_path: Path) -> None:
    """Turned Gaussian blobs are Gaussian blobs elsewhere, so the residual has a closed form."""
    scene = make_scene(tmp_path, count=20, noise=0.1, seed=4)
    generator = torch.Generator().manual_seed(8)
    turn = rotation_from_vector(math.radians(3.0) * torch.randn(20, 3, generator=generator).double())
    true = scene.particles
    wrong = replace(true, rotations=turn @ true.rotations)
    rest = whole_rest(scene)
    left = samples(residual(subtracted(wrong, rest, device=CPU), scene))

    def analytic(rotations: Tensor) -> Tensor:
        flat = scene.rest_blobs.project(rotations, true.shifts / PIXEL, BOX)
        return samples(flat) * transfer_of(true)

    whole = analytic(true.rotations)
    expected = whole - analytic(wrong.rotations)
    assert rms(expected) > 0.1 * rms(whole)
    # seen 0.007 of the whole: interpolation in the padded transform of a map that ends 15 px off the centre
    assert rms(left - expected) < 0.02 * rms(whole)
    assert abs(rms(left) / rms(expected) - 1) < 0.02


def test_half_pixel_scale_and_window(scene: Scene) -> None:
    """Scale multiplies the projection; the window multiplies the image, not the projection."""
    index = torch.tensor([5, 2, 11])
    rest = whole_rest(scene)
    stored = scene.particles.images(index)
    once = stored - subtracted(scene.particles, rest, device=CPU).images(index)
    scale = torch.linspace(0.5, 1.5, len(scene.particles))
    scaled = stored - subtracted(scene.particles, rest, device=CPU, scale=scale).images(index)
    torch.testing.assert_close(scaled, once * scale[index, None, None], rtol=1e-4, atol=1e-5)
    window = Window(0.85, 0.99)
    windowed = subtracted(scene.particles, replace(rest, window=window), device=CPU, window=window).images(
        index
    )
    torch.testing.assert_close(windowed, stored * window.disc(BOX) - once, rtol=1e-4, atol=1e-5)
    disc = window.disc(BOX)
    assert float(disc[BOX // 2, BOX // 2]) == 1.0
    assert float(disc[0, 0]) == 0.0
    assert float(disc[BOX // 2, BOX // 2 + 20]) == 1.0  # 0.83 of half the box
    assert 0.0 < float(disc[BOX // 2, BOX // 2 + 22]) < 1.0  # 0.92


def test_order_and_chunks_of_reading_do_not_matter(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = subtracted(scene.particles, whole_rest(scene), device=CPU)
    every = chosen.images(torch.arange(60))
    some = torch.tensor([41, 3, 3, 58, 0])
    torch.testing.assert_close(chosen.images(some), every[some], rtol=0, atol=1e-5)
    torch.testing.assert_close(
        chosen.take(some).images(torch.tensor([0, 3])), every[[41, 58]], rtol=0, atol=1e-5
    )
    monkeypatch.setattr("cryosweep.subtraction.CHUNK_SAMPLES", 1)
    torch.testing.assert_close(chosen.images(torch.arange(60)), every, rtol=0, atol=1e-5)


# ---- half-sets ----


def test_a_half_set_is_never_touched_by_the_other_half_map(scene: Scene) -> None:
    maps = reconstruct_half_maps(
        scene.particles, scene.particles.rotations, scene.particles.shifts, device=CPU
    )
    other = HalfMaps(maps.half_a, torch.flip(maps.half_b, (0,)), PIXEL)
    of_a = (scene.particles.half_sets == 0).nonzero().squeeze(-1)
    of_b = (scene.particles.half_sets == 1).nonzero().squeeze(-1)
    first, second = (
        subtracted(scene.particles, rest_of(each, everything(), filter="none"), device=CPU)
        for each in (maps, other)
    )
    assert torch.equal(first.images(of_a), second.images(of_a))
    assert not torch.equal(first.images(of_b), second.images(of_b))


def test_the_filter_is_the_fsc_and_all_that_the_halves_share(scene: Scene) -> None:
    """White noise on two equal maps: the weight of a shell is S / (S + N), and it leaves least error."""
    generator = torch.Generator().manual_seed(2)
    mask = spherical_mask(BOX, outer_px=20, inner_px=14)
    a, b = (scene.rest.float() + 0.05 * torch.randn(scene.rest.shape, generator=generator) for _ in (0, 1))
    rest = rest_of(HalfMaps(a, b, PIXEL), mask, filter="fsc")
    weights = fsc(a * mask, b * mask).clamp(0, 1)

    def error(power: float) -> float:
        """Of a half-map with its shells weighted by the FSC to some power."""
        spectrum = torch.fft.rfftn(a)
        shell = torch.fft.fftfreq(BOX, 1 / BOX)
        half = torch.fft.rfftfreq(BOX, 1 / BOX)
        radius = (shell[:, None, None] ** 2 + shell[None, :, None] ** 2 + half**2).sqrt().round().long()
        padded = torch.cat([weights, weights.new_zeros(1)]).float() ** power
        padded[-1] = 0.0
        filtered = torch.fft.irfftn(spectrum * padded[radius.clamp_max(BOX // 2 + 1)], s=a.shape) * mask
        if power == 1.0:
            torch.testing.assert_close(filtered, rest.maps.half_a, rtol=0, atol=1e-5)
        return rms(filtered - scene.rest.float() * mask)

    errors = {power: error(power) for power in (0.0, 0.5, 1.0, 2.0)}
    assert errors[1.0] < errors[0.5] < errors[0.0]
    assert errors[1.0] < errors[2.0]


# ---- roles and refusals ----


def test_the_role_of_a_mask_is_said() -> None:
    mask = spherical_mask(BOX, outer_px=9, inner_px=4)
    assert torch.equal(share_removed(mask, "remove"), mask)
    assert torch.equal(share_removed(mask, "keep"), 1.0 - mask)
    with pytest.raises(ValueError, match="leaves nothing to be removed; is its role the other"):
        share_removed(torch.ones(4, 4, 4), "keep")
    with pytest.raises(ValueError, match="leaves nothing to be kept; is its role the other"):
        share_removed(torch.ones(4, 4, 4), "remove")
    with pytest.raises(ValueError, match="from 0 to 1, not 0 to 3"):
        share_removed(3 * mask, "keep")


def test_another_window_or_grid_is_refused(scene: Scene) -> None:
    rest = rest_of(twice(scene.rest), everything(), filter="none", window=Window(0.85, 0.99))
    with pytest.raises(
        ValueError, match=r"under the window 0\.85 to 0\.99, and these images are to be without"
    ):
        subtracted(scene.particles, rest, device=CPU)
    with pytest.raises(ValueError, match=r"0 < inner < outer"):
        Window(1.0, 0.9)
    small = HalfMaps(torch.ones(32, 32, 32), torch.ones(32, 32, 32), PIXEL)
    with pytest.raises(ValueError, match="the mask's box is 48 px, that of the half-maps 32 px"):
        rest_of(small, everything(), filter="none")
    with pytest.raises(ValueError, match="the half-maps' box is 32 px, that of the particles 48 px"):
        subtracted(scene.particles, rest_of(small, torch.ones(32, 32, 32), filter="none"), device=CPU)
    plain = whole_rest(scene)
    with pytest.raises(ValueError, match="60 particles need as many scales"):
        subtracted(scene.particles, plain, device=CPU, scale=torch.ones(3))


# ---- checks by number ----


def test_shadow_and_grey_scale(tmp_path: Path) -> None:
    """At one set of poses subtraction is linear: what is left of the rest is what its map missed."""
    scene = make_scene(tmp_path, count=600, noise=1.0, seed=6)
    true = scene.particles
    before = reconstruct_half_maps(true, true.rotations, true.shifts, device=CPU)
    factor, deviations = grey_scale(true, before, device=CPU)
    assert factor == pytest.approx(1.0, abs=0.05)
    assert deviations > 30.0
    assert check_half_maps(true, before, device=CPU) == ()
    brighter = HalfMaps(1.5 * before.half_a, 1.5 * before.half_b, PIXEL)
    assert grey_scale(true, brighter, device=CPU)[0] == pytest.approx(factor / 1.5, rel=1e-4)
    assert "takes too little or too much" in check_half_maps(true, brighter, device=CPU)[0]
    with pytest.raises(ValueError, match="give unfiltered half-maps of these very particles"):
        check_half_maps(true, HalfMaps(-before.half_a, -before.half_b, PIXEL), device=CPU)
    exchanged = HalfMaps(before.half_b, before.half_a, PIXEL)
    assert grey_scale(true, exchanged, device=CPU)[1] < deviations - 20.0  # what is left of it is signal
    with pytest.raises(ValueError, match="the half-maps are exchanged"):
        check_half_maps(true, exchanged, device=CPU)
    assert check_half_maps(true, twice(scene.kept + scene.rest), device=CPU) == ()  # neither holds noise
    region = spherical_mask(BOX, outer_px=14, inner_px=9, centre_px=REST_CENTRE)
    kept = spherical_mask(BOX, outer_px=14, inner_px=9, centre_px=KEPT_CENTRE)
    for share in (0.0, 0.3, 1.0):
        rest = rest_of(twice(share * scene.rest), everything(), filter="none")
        images = subtracted(true, rest, device=CPU)
        after = reconstruct_half_maps(images, true.rotations, true.shifts, device=CPU)
        assert share_left(before, after, region) == pytest.approx((1 - share) ** 2, abs=0.02)
        assert share_left(before, after, kept) == pytest.approx(1.0, abs=0.02)


# ---- files ----


def test_images_cut_about_a_point_show_the_map_cut_about_it(scene: Scene) -> None:
    """Projection of the moved, smaller map at the new shifts, whatever the pose."""
    true, centre, size = scene.particles, (7, -4, 5), 32
    images = project(scene.kept, true.rotations, true.shifts / PIXEL)
    cut, shifts_px = recentred(images, true.rotations, true.shifts / PIXEL, centre_px=centre, box_size=size)
    assert float(shifts_px.abs().max()) <= 0.5
    moved = torch.roll(scene.kept, (-centre[2], -centre[1], -centre[0]), (0, 1, 2))
    low = (BOX - size) // 2
    expected = project(moved, true.rotations, shifts_px)[:, low : low + size, low : low + size]
    assert rms(cut - expected) < 0.02 * rms(expected)  # seen 0.007, interpolation; one pixel off gives 0.6


@pytest.mark.parametrize("dialect", ["3.1", "old"])
def test_files_hold_the_same_images_in_the_dialect_of_the_input(
    scene: Scene, tmp_path: Path, dialect: str
) -> None:
    given = scene.particles
    if dialect == "old":
        origins = -given.shifts / PIXEL
        table = given.table.drop(columns=["rlnOpticsGroup", "rlnOriginXAngst", "rlnOriginYAngst"]).assign(
            rlnOriginX=origins[:, 0].numpy(), rlnOriginY=origins[:, 1].numpy(), rlnMagnification=10000.0,
            rlnDetectorPixelSize=PIXEL, rlnVoltage=300.0, rlnSphericalAberration=2.7,
            rlnAmplitudeContrast=0.1,
        )  # fmt: skip
        starfile.write(table, given.path.with_name("old.star"))
        given = read_particles(given.path.with_name("old.star"))
    images = subtracted(given, whole_rest(scene), device=CPU)
    star = write_subtracted(images, tmp_path)
    again = read_particles(star)
    torch.testing.assert_close(
        again.images(torch.arange(60)), images.images(torch.arange(60)), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(again.rotations, given.rotations, rtol=0, atol=1e-7)
    torch.testing.assert_close(again.shifts, given.shifts, rtol=0, atol=1e-5)
    assert (again.optics_table is None) == (dialect == "old")
    assert list(again.table["rlnImageOriginalName"]) == list(given.table["rlnImageName"])
    changed = {"rlnImageName", "rlnImageOriginalName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"}
    for column in set(given.table) - changed - {"rlnOriginX", "rlnOriginY"}:
        assert list(again.table[column]) == list(given.table[column]), column

    cut = read_particles(write_subtracted(images, tmp_path, centre_px=(7, -4, 5), box_size=32))
    assert cut.box_size == 32
    assert float(cut.shifts.abs().max()) <= 0.5 * PIXEL + 1e-5
    if cut.optics_table is not None:
        assert set(cut.optics_table["rlnImageSize"]) == {"32"}


# ---- RELION ----


@dataclass(frozen=True)
class Compared:
    """The same subtraction by RELION and here, each half-set with its own half-map."""

    folder: Path
    particles: Particles
    mask: Tensor
    theirs: tuple[Particles, Particles]
    ours: Particles


def subtract_with_relion(relion: Callable[..., str], folder: Path, name: str, *options: object) -> Particles:
    """`relion_particle_subtract` with the half-map `name`, which takes it out of every image."""
    relion(
        "relion_particle_subtract", "--i", f"job_{name}/run_it001_optimiser.star", "--mask", "keep.mrc",
        "--data", "particles.star", "--ignore_class", "--o", f"subtracted_{name}/", *options,
    )  # fmt: skip
    return read_particles(folder / f"subtracted_{name}" / "particles_subtracted.star")


def compare(relion: Callable[..., str], folder: Path, *options: object, noise: float = 1.5) -> Compared:
    scene = make_scene(folder, count=240, noise=noise, seed=5)
    particles = scene.particles
    maps = reconstruct_half_maps(particles, particles.rotations, particles.shifts, device=CPU)
    mask = spherical_mask(BOX, outer_px=14, inner_px=9, centre_px=KEPT_CENTRE)
    write_map(folder / "keep.mrc", mask, pixel_size=PIXEL)
    for name, half in zip("ab", maps.pair, strict=True):
        write_map(folder / f"half_{name}.mrc", half, pixel_size=PIXEL)
        (folder / f"job_{name}").mkdir()
        # the program wants a refinement's files: those of one that moves nothing, whose map is then ours
        relion(
            "relion_refine", "--i", "particles.star", "--ref", f"half_{name}.mrc", "--o", f"job_{name}/run",
            "--ctf", "--iter", 1, "--skip_align", "--particle_diameter", 170, "--K", 1, "--pad", 2,
            "--ini_high", 0, "--dont_check_norm",
        )  # fmt: skip
        write_map(folder / f"job_{name}" / "run_it001_class001.mrc", half, pixel_size=PIXEL)
    a, b = (subtract_with_relion(relion, folder, name, *options) for name in "ab")
    ours = subtracted(particles, rest_of(maps, share_removed(mask, "keep"), filter="none"), device=CPU)
    return Compared(folder, particles, mask, (a, b), ours)


@pytest.mark.relion
def test_images_and_maps_are_those_of_relion_particle_subtract(
    relion: Callable[..., str], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    both = compare(relion, tmp_path)
    every = torch.arange(len(both.particles))
    own = both.particles.half_sets[:, None, None]
    theirs = torch.where(own == 0, *(each.images(every) for each in both.theirs))
    ours, stored = both.ours.images(every), both.particles.images(every)
    plane = half_plane(BOX, dtype=torch.float64, device=CPU)
    correlation: list[float] = []
    power: list[float] = []
    for shell in range(1, plane.max_shell + 1):
        x, y, z = (samples(each)[:, plane.shell == shell] for each in (ours, theirs, stored))
        taken, taken_there = z - x, z - y
        correlation.append(
            float((taken * taken_there.conj()).real.sum() / (taken.norm() * taken_there.norm()))
        )
        power.append(float(x.norm() / y.norm()) ** 2)
    record_property("worst_one_minus_correlation_of_what_was_taken", 1 - min(correlation))
    record_property("residual_power_ratio_per_shell", (min(power), max(power)))
    assert 1 - min(correlation) < 1e-4  # seen 6e-6
    assert max(abs(value - 1) for value in power) < 5e-3  # seen 1.2e-3

    # RELION goes on from our files
    (tmp_path / "ours").mkdir()
    write_subtracted(both.ours, tmp_path / "ours")
    written = read_particles(tmp_path / "ours" / "particles.star")
    theirs_written = replace(
        written,
        stacks=(both.theirs[0].stacks[0], both.theirs[1].stacks[0]),
        stack_of=written.half_sets,
    )
    write_particles(
        theirs_written, tmp_path / "theirs.star", rotations=written.rotations, shifts=written.shifts
    )
    relion("relion_reconstruct", "--i", "theirs.star", "--o", "theirs.mrc", "--ctf")
    command = ["relion_reconstruct", "--i", "particles.star", "--o", "ours.mrc", "--ctf"]
    done = subprocess.run(command, cwd=tmp_path / "ours", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    sphere = spherical_mask(BOX, outer_px=21, inner_px=16)
    of_ours, of_theirs = (
        torch.from_numpy(np.array(mrcfile.read(tmp_path / name))) * sphere
        for name in ("ours/ours.mrc", "theirs.mrc")
    )
    worst = float(fsc(of_ours, of_theirs)[1:20].min())
    record_property("worst_fsc_of_the_reconstructions", worst)
    assert worst > 0.998  # seen 0.9994; without the subtraction 0.5
    halves = [
        reconstruct_half_maps(each, each.rotations, each.shifts, device=CPU)
        for each in (written, read_particles(tmp_path / "theirs.star"))
    ]
    curves = [fsc(*(half * both.mask for half in pair.pair)) for pair in halves]
    assert float((curves[0] - curves[1])[1:20].abs().max()) < 2e-3


@pytest.mark.relion
def test_recentred_images_are_those_of_relion(relion: Callable[..., str], tmp_path: Path) -> None:
    """Same whole pixels rolled, same residual origins, to the rounding of a tie."""
    size = 32
    both = compare(relion, tmp_path, "--recenter_on_mask", "--new_box", size, noise=0.1)
    (tmp_path / "ours").mkdir()
    centre = (7, -4, 5)  # RELION rounds the mask's centre of mass too
    ours = read_particles(write_subtracted(both.ours, tmp_path / "ours", centre_px=centre, box_size=size))
    every = torch.arange(len(both.particles))
    own = both.particles.half_sets
    theirs = torch.where(own[:, None, None] == 0, *(each.images(every) for each in both.theirs))
    shifts = both.theirs[0].shifts
    torch.testing.assert_close(ours.shifts, shifts, rtol=0, atol=1e-4)
    # RELION takes out the projection's mean and its Nyquist shell too, which no map here holds
    apart = ours.images(every) - theirs
    apart = apart - apart.mean(dim=(1, 2), keepdim=True)
    assert rms(apart) < 0.01 * rms(theirs)
    assert ours.box_size == both.theirs[0].box_size == size


# ---- a job ----


def test_a_job_on_images_without_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stays and goes is written; the domain's map is right further than with the rest in the images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)  # what a run leaves in this process is undone
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    small = (
        "data.particles=160", "data.box_size=48", "data.pixel_size=7", "data.snr=2", "search.audit=0",
        "refinement.initial_lowpass=25", "refinement.max_iterations=2", "tracking.enabled=false",
    )  # fmt: skip
    with_rest = [*small, "experiment=head", "hydra.run.dir=plain"]
    without = [*small, "experiment=head_subtracted", "subtraction.dilation_radius=7", "hydra.run.dir=without"]
    for arguments in (with_rest, without):
        assert app.main(["run", *arguments]) == 0
    plain, taken = (json.loads(Path(folder, "summary.json").read_text()) for folder in ("plain", "without"))
    assert not any(name.startswith("subtraction/") for name in plain)
    assert 0.0 <= taken["subtraction/shadow"] < 0.1
    assert 0.0 < taken["subtraction/removed_share"] < 0.5
    assert taken["start/fsc_area_frozen"] == plain["start/fsc_area_frozen"]
    assert taken["truth/fsc_area"] > plain["truth/fsc_area"]
    assert taken["truth/rotation_error_median"] < plain["truth/rotation_error_median"]
    notes = json.loads(Path("without", "run.json").read_text())["notes"]
    dilated = "R4 warning: the subtraction mask is dilated by 7.0 Å"
    assert any(dilated in note for note in notes)
    removed = read_map(tmp_path / "without" / "removed.mrc").data
    scoring = read_map(tmp_path / "without" / "scoring_mask.mrc").data
    assert float(removed[scoring == 1].max()) == 0.0
    assert float(removed.max()) > 0.99
    # the table names the images as they are stored, for a later job to subtract from
    stacks = [read_particles(Path(folder, "particles.star")).stacks[0] for folder in ("plain", "without")]
    assert stacks[0].resolve() == stacks[1].resolve()
