"""The twin of a data set: held against simulations whose truth is known, and against closed forms."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from cryosweep import app
from cryosweep.ctf import Optics, contrast_transfer
from cryosweep.fourier import (
    half_plane,
    images_of_spectrum,
    multiply_spectrum,
    shell_sum,
    spectrum_of_images,
)
from cryosweep.geometry import angle_between, random_rotations, rotation_from_vector, rotation_vector
from cryosweep.io import (
    Particles,
    new_particles,
    open_stack_for_writing,
    read_map,
    read_particles,
    write_map,
    write_particles,
)
from cryosweep.mask import soft_edge, spherical_mask
from cryosweep.reconstruction import HalfMaps, reconstruct_half_maps
from cryosweep.simulate import DOMAINS, FrameChange, SimulationSettings, load_ribosome, noise_power, simulate
from cryosweep.twin import (
    BODY,
    DOMAIN,
    MapShape,
    TwinSettings,
    load_twin,
    measure,
    simulate_twin,
    spectra_of,
    true_poses,
    twin_model,
)
from tests.reference.exact import Blobs

CPU = torch.device("cpu")
BOX, PIXEL = 48, 7.0
AT_REST = {"foot": 0.0, "head": 0.0, "arm": 0.0}
TRUE = SimulationSettings(
    particles=300, box_size=BOX, pixel_size=PIXEL, snr=0.1, rotation_spread=AT_REST, shift_spread=AT_REST,
    pose_error_rotation=0.0, pose_error_shift=0.0, seed=5,
)  # fmt: skip
# Nothing assumed: the twin of data at rest, with perfect poses, is to be those data again.
EXACT = TwinSettings(
    rotation_spread=0.0, shift_spread=0.0, pose_error_rotation=0.0, pose_error_shift=0.0, detail="map",
    resolution=14.3,
)  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    simulate(TRUE, folder, device="cpu")
    return folder


@pytest.fixture(scope="module")
def particles(original: Path) -> Particles:
    return read_particles(original / "particles.star")


@pytest.fixture(scope="module")
def whole(original: Path) -> Tensor:
    return torch.stack([read_map(original / f"truth_{name}.mrc").data for name in DOMAINS]).sum(dim=0)


@pytest.fixture(scope="module")
def head(original: Path) -> Tensor:
    labels = read_map(original / "domains.mrc").data
    return soft_edge(labels == 1 + DOMAINS.index("head"), 1.5)


def band_power(volume: Tensor, first: int, last: int) -> float:
    """Power of a map in shells `first` to `last`."""
    return float(shell_sum(torch.fft.rfftn(volume).abs().square(), dims=3)[first : last + 1].sum())


def true_noise(original: Path) -> Tensor:
    """Mean |F|^2 of the simulation's noise by shell."""
    variance = json.loads((original / "simulation.json").read_text())["noise_variance"]
    return variance * noise_power(BOX, PIXEL)[0] * BOX**2


def test_the_twin_of_a_simulation_has_its_signal_and_noise(
    original: Path, particles: Particles, whole: Tensor, head: Tensor, tmp_path: Path,
) -> None:  # fmt: skip
    """SNR and noise of the twin against those simulated; the map is given sharpened and on another scale."""
    k = torch.fft.fftfreq(BOX, PIXEL, dtype=torch.float64)
    squared = k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[: BOX // 2 + 1] ** 2
    sharpened = 7.0 * multiply_spectrum(whole, torch.exp(250.0 / 4.0 * squared).float())
    maps = HalfMaps(sharpened, sharpened, PIXEL)
    model = twin_model(particles, maps, head, EXACT, device=CPU)
    assert model.measured is not None
    assert model.measured.deviations > 100
    simulate_twin(particles, model, EXACT, tmp_path, device=CPU)
    told = json.loads((tmp_path / "twin.json").read_text())
    assert told["snr"] == pytest.approx(0.1, rel=0.1)
    noise = torch.from_numpy(spectra_of(tmp_path)["noise"])[0] / true_noise(original)
    assert float((noise[1:] - 1.0).abs().max()) < 0.1
    # the density of both parts comes back to the scale of the images, up to the resolution given
    found = model.shapes[BODY].density + model.shapes[DOMAIN].density
    assert float(band_power(found - whole, 1, 23) / band_power(whole, 1, 23)) < 0.02
    # and the images have the power of the real ones
    twin, _ = load_twin(tmp_path)
    rows, plane = torch.arange(300), half_plane(BOX, dtype=torch.float32, device="cpu")
    ours, theirs = (
        torch.zeros(25, dtype=torch.float64).index_add_(
            0, plane.shell, spectrum_of_images(each.images(rows), plane).abs().square().double().mean(dim=0)
        )[1:24]
        for each in (twin, particles)
    )
    assert float((ours / theirs - 1.0).abs().max()) < 0.05


def test_rows_of_the_twin_are_those_of_the_particles(
    original: Path, particles: Particles, whole: Tensor, head: Tensor, tmp_path: Path
) -> None:
    """CTF, optics groups and half sets to the letter, poses to the last digit; the parts share the hinge."""
    settings = replace(EXACT, rotation_spread=7.0, shift_spread=0.0, pose_error_rotation=1.0)
    rows = torch.arange(0, 300, 5)
    model = twin_model(particles, HalfMaps(whole, whole, PIXEL), head, settings, device=CPU)
    simulate_twin(particles.take(rows), model, settings, tmp_path, device=CPU)
    twin, truth = load_twin(tmp_path)
    expected = particles.table.iloc[rows.numpy()].reset_index(drop=True).drop(columns="rlnImageName")
    pd.testing.assert_frame_equal(twin.table.drop(columns="rlnImageName"), expected)
    assert particles.optics_table is not None
    assert twin.optics_table is not None
    pd.testing.assert_frame_equal(twin.optics_table, particles.optics_table)
    assert twin.box_size == BOX
    body, domain = (truth.domains[name].poses for name in (BODY, DOMAIN))
    error = torch.rad2deg(angle_between(body.rotations, twin.rotations))
    assert float(error.square().mean().sqrt()) == pytest.approx(3**0.5, rel=0.2)
    hinge = truth.hinges[DOMAIN]
    seen = [(poses.rotations @ hinge)[:, :2] + poses.shifts for poses in (body, domain)]
    assert float((seen[0] - seen[1]).abs().max()) < 1e-4  # the file holds 6 decimals
    assert truth.territory(DOMAIN).sum() == (head > 0.5).sum()
    assert truth.take(torch.arange(3)).domains[DOMAIN].poses.shifts.shape == (3, 2)
    assert any("The twin holds signal up to 14.61 Å" in note for note in twin.notes)


def test_equal_seeds_give_equal_files(
    particles: Particles, whole: Tensor, head: Tensor, tmp_path: Path
) -> None:
    some = particles.take(torch.arange(0, 300, 20))
    maps = HalfMaps(whole, whole, PIXEL)
    stacks: dict[str, Path] = {}
    for name, seed, chunk in (
        ("a", 1, 64),
        ("again", 1, 64),
        ("chunked", 1, 7),
        ("c", 2, 64),
    ):
        settings = replace(EXACT, snr=0.1, rotation_spread=5.0, seed=seed)
        (tmp_path / name).mkdir()
        model = twin_model(some, maps, head, settings, device=CPU)
        simulate_twin(some, model, settings, tmp_path / name, device=CPU, chunk_size=chunk)
        stacks[name] = tmp_path / name / "particles.mrcs"
    assert stacks["a"].read_bytes() == stacks["again"].read_bytes()
    a, other, chunked = (
        read_particles(stacks[name].with_name("particles.star")).images(torch.arange(15))
        for name in ("a", "c", "chunked")
    )
    torch.testing.assert_close(a, chunked, rtol=0.0, atol=1e-4 * float(a.std()))
    assert float((a - other).std()) > float(a.std())


def test_grey_scale_from_noisy_half_maps_is_not_biased(particles: Particles) -> None:
    """Half maps as noisy as the images make them: the scale is 1 where they hold signal.

    Against its own half map an image agrees with its own noise, and the scale comes out high.
    """
    maps = reconstruct_half_maps(particles, particles.rotations, particles.shifts, device=CPU)
    ball = spherical_mask(BOX, outer_px=23.0, inner_px=20.0, device="cpu")
    a, b = (half * ball for half in maps.pair)
    found = measure(particles, HalfMaps(a, b, PIXEL), last_shell=22, device=CPU)
    assert float(found.scale[1:23].mean()) == pytest.approx(1.0, abs=0.08)
    assert float((found.scale[1:23] - 1.0).abs().max()) < 0.2
    assert found.images == 300
    exchanged = measure(particles, HalfMaps(b, a, PIXEL), last_shell=22, device=CPU)
    assert float(exchanged.scale[18:23].mean()) > 1.1


def test_each_optics_group_has_its_own_noise(original: Path, particles: Particles, tmp_path: Path) -> None:
    """White noise of variance 5 on top of every other image, which is its own optics group."""
    group = torch.arange(300) % 2
    assert particles.optics_table is not None
    with open_stack_for_writing(tmp_path / "p.mrcs", count=300, box_size=BOX, pixel_size=PIXEL) as stack:
        generator = torch.Generator().manual_seed(0)
        more = torch.randn(300, BOX, BOX, generator=generator) * (5.0 * group[:, None, None]).sqrt()
        stack[:] = (particles.images(torch.arange(300)) + more).numpy()
    optics = pd.concat([particles.optics_table, particles.optics_table.assign(rlnOpticsGroup="2")])
    table = particles.table.assign(rlnOpticsGroup=[str(1 + number) for number in group.tolist()])
    two = replace(
        particles, optics_table=optics, table=table, optics_group=group, stacks=(tmp_path / "p.mrcs",)
    )
    write_particles(two, tmp_path / "p.star", rotations=two.rotations, shifts=two.shifts)
    read = read_particles(tmp_path / "p.star")
    blank = torch.zeros(BOX, BOX, BOX)
    blank[24, 24, 24] = 1e-6
    power = measure(read, HalfMaps(blank, blank, PIXEL), last_shell=20, device=CPU).power
    assert power.shape == (2, 25)
    added = (power[1] - power[0])[1:24] / BOX**2
    assert float(added.mean()) == pytest.approx(5.0, rel=0.05)


# ---- closed forms ----

BLOBS = {
    BODY: Blobs(
        torch.tensor([[0.0, -6.0, 1.0], [4.0, -8.0, -2.0], [-3.0, -5.0, 4.0]], dtype=torch.float64),
        torch.full((3,), 2.0, dtype=torch.float64), torch.tensor([3.0, 2.0, 2.0], dtype=torch.float64),
    ),
    DOMAIN: Blobs(
        torch.tensor([[1.0, 9.0, -1.0], [-3.0, 8.0, 2.0]], dtype=torch.float64),
        torch.full((2,), 2.0, dtype=torch.float64), torch.tensor([2.0, 2.5], dtype=torch.float64),
    ),
}  # fmt: skip
BLOB_BOX, BLOB_PIXEL = 48, 4.0


def blob_particles(folder: Path, generator: torch.Generator, count: int = 12) -> Particles:
    def same(value: float) -> Tensor:
        return torch.full((count,), value, dtype=torch.float64)

    optics = Optics(
        same(9000.0) + 500.0 * torch.arange(count), same(8800.0), same(30.0), same(200.0), same(2.0),
        same(0.08), same(0.0), same(0.0), same(1.0),
    )  # fmt: skip
    made = new_particles(
        folder / "blobs.star", stack=folder / "not_there.mrcs",
        rotations=random_rotations(count, generator, dtype=torch.float64),
        shifts=4.0 * torch.randn(count, 2, generator=generator, dtype=torch.float64), optics=optics,
        half_sets=torch.arange(count) % 2, pixel_size=BLOB_PIXEL, box_size=BLOB_BOX,
    )  # fmt: skip
    write_particles(made, made.path, rotations=made.rotations, shifts=made.shifts)
    return read_particles(made.path, box_size=BLOB_BOX)  # its stack does not exist


def test_true_poses_explain_the_images_in_closed_form(tmp_path: Path, generator: torch.Generator) -> None:
    """Gaussian blobs projected at the poses of the truth files, under the CTF of the table.

    Error power over signal power 1e-3, mostly of the interpolation in the transform.
    """
    particles = blob_particles(tmp_path, generator)
    volume = sum(blobs.volume(BLOB_BOX) for blobs in BLOBS.values())
    assert isinstance(volume, Tensor)
    domain = spherical_mask(BLOB_BOX, outer_px=8.5, inner_px=7.5, centre_px=(-1.0, 8.5, 0.5), device="cpu")
    settings = TwinSettings(
        rotation_spread=10.0, shift_spread=2.0, pose_error_rotation=2.0, pose_error_shift=1.0, detail="map",
        resolution=20.0, hinge=(0.0, 4.0, 0.0), snr=1e9,
    )  # fmt: skip
    maps = HalfMaps(volume.float(), volume.float(), BLOB_PIXEL)
    model = twin_model(particles, maps, domain, settings, device=CPU)
    # the map as it is: what pose errors would have taken from a measured one is not put back
    model = replace(
        model,
        shapes={
            BODY: MapShape((volume * (1.0 - domain)).float(), model.shapes[BODY].centre_of_mass),
            DOMAIN: MapShape((volume * domain).float(), model.shapes[DOMAIN].centre_of_mass),
        },
    )
    simulate_twin(particles, model, settings, tmp_path, device=CPU)
    twin, truth = load_twin(tmp_path)
    images = twin.images(torch.arange(len(twin))).double()
    plane = half_plane(BLOB_BOX, dtype=torch.float64, device="cpu")
    transfer = contrast_transfer(twin.optics, plane.k / (BLOB_BOX * BLOB_PIXEL))

    def expected(turned: float) -> Tensor:
        off = rotation_from_vector(torch.tensor([0.0, np.radians(turned), 0.0], dtype=torch.float64))
        total = torch.zeros_like(images)
        for name, blobs in BLOBS.items():
            poses = truth.domains[name].poses
            total += blobs.project(off @ poses.rotations, poses.shifts / BLOB_PIXEL, BLOB_BOX)
        return images_of_spectrum(spectrum_of_images(total, plane) * transfer, plane)

    power = images.square().sum()
    assert float((images - expected(0.0)).square().sum() / power) < 4e-3
    assert float((images - expected(6.0)).square().sum() / power) > 2e-2


def test_density_moves_as_its_blobs_do(generator: torch.Generator) -> None:
    """Turned by 20 degrees about a point off the centre and moved by 5 Å; error power over power 1e-4."""
    blobs = BLOBS[DOMAIN]
    rotation = rotation_from_vector(np.radians(20.0) * torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64))
    shift = torch.tensor([5.0, -3.0, 2.0], dtype=torch.float64)
    moved = Blobs(blobs.centres @ rotation.mT + shift / BLOB_PIXEL, blobs.sigmas, blobs.weights)
    shape = MapShape(blobs.volume(BLOB_BOX), torch.tensor([-1.0, 8.5, 0.5], dtype=torch.float64) * BLOB_PIXEL)
    found = shape.in_frame(FrameChange(rotation, shift), box_size=BLOB_BOX, pixel_size=BLOB_PIXEL)
    expected = moved.volume(BLOB_BOX)
    assert float((found - expected).square().sum() / expected.square().sum()) < 1e-3
    same = shape.in_frame(FrameChange.none(), box_size=BLOB_BOX, pixel_size=BLOB_PIXEL)
    assert float((same - shape.density).square().sum() / expected.square().sum()) < 1e-3


def test_the_motion_assumed_is_the_motion_made(generator: torch.Generator, tmp_path: Path) -> None:
    particles = blob_particles(tmp_path, generator, count=2000)
    settings = TwinSettings(6.0, 1.5, 2.0, 1.2)
    poses = true_poses(particles, torch.tensor([10.0, 0.0, 5.0], dtype=torch.float64), settings, generator)
    turn = torch.rad2deg(rotation_vector(poses[BODY].rotations.mT @ poses[DOMAIN].rotations))
    assert turn.std(dim=0).tolist() == pytest.approx([6.0] * 3, rel=0.06)
    off = torch.rad2deg(rotation_vector(poses[BODY].rotations @ particles.rotations.mT))
    assert off.std(dim=0).tolist() == pytest.approx([2.0] * 3, rel=0.06)
    assert (poses[BODY].shifts - particles.shifts).std(dim=0).tolist() == pytest.approx([1.2] * 2, rel=0.06)


def test_a_blurred_domain_gets_back_the_power_of_its_mass(original: Path, particles: Particles) -> None:
    """The head blurred as a swing of 10 degrees would: its power at 17 to 20 Å comes back within a factor 2.

    As the map has it, about a tenth of the power is left there.
    """
    structure = load_ribosome()
    hinge = structure.hinges["head"]
    body = torch.stack(
        [read_map(original / f"truth_{name}.mrc").data for name in DOMAINS if name != "head"]
    ).sum(dim=0)
    at_rest = read_map(original / "truth_head.mrc").data
    shape = MapShape(at_rest, structure.domains["head"].centre_of_mass)
    generator = torch.Generator().manual_seed(2)
    turns = rotation_from_vector(np.radians(10.0) * torch.randn(30, 3, generator=generator).double())
    blurred = torch.stack(
        [
            shape.in_frame(FrameChange(turn, hinge - turn @ hinge), box_size=BOX, pixel_size=PIXEL)
            for turn in turns
        ]
    ).mean(dim=0)
    volume = body + blurred
    mask = soft_edge((blurred > 0.15 * blurred.max()) & (body < 0.05 * body.max()), 1.5)
    share = structure.domains["head"].mass_da / sum(d.mass_da for d in structure.domains.values())

    settings = replace(EXACT, rotation_spread=10.0, hinge=tuple(hinge.tolist()), snr=0.1, mass_share=share)
    found: dict[str, float] = {}
    for detail in ("map", "body"):
        model = twin_model(
            particles, HalfMaps(volume, volume, PIXEL), mask, replace(settings, detail=detail), device=CPU
        )
        found[detail] = band_power(model.shapes[DOMAIN].density, 17, 19) / band_power(at_rest, 17, 19)
    assert found["map"] < 0.15
    assert 0.5 < found["body"] < 2.0
    assert model.seen > 30.0


# ---- through the program ----


@pytest.fixture(scope="module")
def files(original: Path, whole: Tensor, head: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's files: particles, map, mask of the head, and a mask of another box."""
    folder = tmp_path_factory.mktemp("files")
    write_map(folder / "map.mrc", whole, pixel_size=PIXEL)
    write_map(folder / "head.mrc", head, pixel_size=PIXEL)
    write_map(folder / "small.mrc", head[8:40, 8:40, 8:40], pixel_size=PIXEL)
    return folder


def job(original: Path, files: Path) -> list[str]:
    return [
        "data=twin", f"data.star={original / 'particles.star'}", f"data.map={files / 'map.mrc'}",
        f"data.domain={files / 'head.mrc'}", "data.resolution=15", "data.particles=60", "data.snr=2",
        "refinement.initial_lowpass=30", "refinement.max_iterations=1", "scoring.band_high=16",
        "scoring.randomisations=1", "scoring.jackknife=0", "tracking.enabled=false", "compute.device=cpu",
        "compute.threads=1", "search.audit=0",
    ]  # fmt: skip


def test_jobs_on_the_twin_are_scored_against_its_truth(
    original: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One twin for two jobs, with a labelled base and with a file; both meet the truth of the domain."""
    monkeypatch.chdir(tmp_path)
    given = ["run", *job(original, files), f"output_dir={tmp_path}"]
    assert app.main([*given, "mask_base.name=domain", "fulcrum=hinge", "study=labelled"]) == 0
    base = ["mask_base=file", f"mask_base.path={files / 'head.mrc'}", "mask.threshold=0.5"]
    assert app.main([*given, *base, "subtraction=domain", "study=file"]) == 0
    assert len(list((tmp_path / "stages" / "twin").glob("*/manifest.json"))) == 1
    for study in ("labelled", "file"):
        (told,) = tmp_path.glob(f"{study}/run_*/summary.json")
        summary = json.loads(told.read_text())
        # at SNR 2 the turns of 5 degrees are found, mostly
        assert summary["start/rotation_error_median"] > 6.0
        assert summary["truth/rotation_error_median"] < 0.75 * summary["start/rotation_error_median"]
        assert summary["truth/fsc_area"] > 0.6
        log = (told.parent / "run.json").read_text()
        assert "The twin holds signal up to" in log


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.domain=SMALL"], "small.mrc: the map's box is 32 px, that of the particles 48 px"),
        (["data.domain=MAP"], "map.mrc: R5 error: the mask has values from"),
        (["data.image_folder=/nowhere", "data.snr=null"], "A twin needs no images where data.snr is given."),
        (["data.resolution=9"], "data.resolution=9"),
        (["data.map=/nowhere/a.mrc"], "/nowhere/a.mrc: there is no such map"),
        (["data.particles=3000"], None),
    ],
)
def test_check_refuses_before_any_work(
    original: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], overrides: list[str], message: str | None,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    named = {"SMALL": str(files / "small.mrc"), "MAP": str(files / "map.mrc")}
    changed = [
        "=".join([key, named.get(value, value)]) for key, value in (each.split("=") for each in overrides)
    ]
    given = [
        each for each in job(original, files) if each.split("=")[0] not in {c.split("=")[0] for c in changed}
    ]
    status = app.main(["check", *given, *changed, "mask_base.name=domain"])
    shown = capsys.readouterr()
    if message is None:
        assert status == 2
        assert "there are 300" in shown.err + shown.out
        return
    assert status == 2
    assert message in shown.err + shown.out


def test_the_command_writes_files_for_other_programs(
    original: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An old STAR file, one table with origins in px: its dialect, its columns and its poses come back."""
    particles = read_particles(original / "particles.star")
    assert particles.optics_table is not None
    table = particles.table.drop(columns=["rlnOpticsGroup", "rlnOriginXAngst", "rlnOriginYAngst"]).assign(
        rlnVoltage="300", rlnSphericalAberration="2.7", rlnAmplitudeContrast="0.1",
        rlnMagnification="10000", rlnDetectorPixelSize="7", rlnOriginX="1.5", rlnOriginY="-0.25",
        rlnMicrographName=[f"m{row % 7:03d}.mrc" for row in range(len(particles))],
    )  # fmt: skip
    old = replace(particles, table=table, optics_table=None, block="")
    star = original / "old.star"
    shifts = torch.tensor([[-1.5, 0.25]], dtype=torch.float64).expand(len(particles), 2) * PIXEL
    write_particles(old, star, rotations=particles.rotations, shifts=shifts)
    before = read_particles(star)
    out = tmp_path / "twin"
    arguments = ["twin", star, files / "map.mrc", "--domain", files / "head.mrc", "--resolution", 15,
                 "--snr", 0.2, "--hinge", "120,100,110", "-o", out]  # fmt: skip
    assert app.main([str(each) for each in arguments]) == 0
    assert "SNR 0.2" in capsys.readouterr().out
    after = read_particles(out / "particles.star")
    assert after.optics_table is None
    pd.testing.assert_frame_equal(
        after.table.drop(columns="rlnImageName"), before.table.drop(columns="rlnImageName")
    )
    told = json.loads((out / "twin.json").read_text())
    assert told["snr"] == pytest.approx(0.2, rel=1e-6)
    assert told["hinge"] == pytest.approx([120 - 168, 100 - 168, 110 - 168])
    images = after.images(torch.arange(300)).double()
    assert float(images.var()) == pytest.approx(told["signal_variance"] + told["noise_variance"], rel=0.03)
    for name in ("spectra.png", "slices.png", "truth_domain.star", "truth_body.mrc", "domains.mrc"):
        assert (out / name).is_file()


# ---- what is refused ----


def test_inputs_that_do_not_belong_together_are_refused(
    particles: Particles, whole: Tensor, head: Tensor
) -> None:
    one = HalfMaps(whole, whole, PIXEL)
    with pytest.raises(ValueError, match="one map does not tell its resolution"):
        twin_model(particles, one, head, replace(EXACT, resolution=None), device=CPU)
    with pytest.raises(ValueError, match="leaves no domain"):
        twin_model(particles, one, 0.0 * head, EXACT, device=CPU)
    with pytest.raises(ValueError, match="assume smaller errors"):
        twin_model(particles, one, head, replace(EXACT, pose_error_shift=10.0), device=CPU)
    inverted = HalfMaps(-whole, -whole, PIXEL)
    with pytest.raises(ValueError, match="the images do not know the map at the poses given"):
        twin_model(particles, inverted, head, EXACT, device=CPU)
