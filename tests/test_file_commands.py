"""The commands on files: what they write is what the library makes, and what they refuse leaves nothing."""

import argparse
import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from cryosweep import composition, file_commands, job
from cryosweep.anisotropy import sampling_compensation
from cryosweep.file_commands import fsc
from cryosweep.fourier import gaussian_filter
from cryosweep.io import read_map, read_particles, write_map
from cryosweep.mask import centre_of_mass, soft_mask, spherical_mask, threshold_of
from cryosweep.reconstruction import HalfMaps, reconstruct_half_maps
from cryosweep.resolution import crossing, five_curves
from cryosweep.resolution import fsc as correlate
from cryosweep.simulate import SimulationSettings, simulate
from cryosweep.study.assessment import directional_fsc

BOX, PIXEL, ORIGIN = 48, 7.0, (-30.0, 12.5, 4.0)
SIMULATE = (
    "simulate",
    "--particles",
    40,
    "--box-size",
    BOX,
    "--pixel-size",
    PIXEL,
    "--snr",
    2.0,
    "--seed",
    3,
)
MASK = ("mask", "--threshold", 0.3, "--dilation-radius", "1.5px", "--soft-padding-width", "20A")
CONF = Path(__file__).parents[1] / "conf"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cryosweep")
    file_commands.add_parsers(parser.add_subparsers(dest="command", required=True))
    return parser


def run(*arguments: object) -> int:
    parsed = parser().parse_args([str(argument) for argument in arguments])
    return int(parsed.function(parsed))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files") / "ribosome"
    assert run(*SIMULATE, "-o", folder) == 0
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with a map of a domain off the centre and two half maps of it."""
    monkeypatch.chdir(tmp_path)
    domain = spherical_mask(BOX, outer_px=9, inner_px=4, centre_px=(6, -3, 5))
    write_map(tmp_path / "map.mrc", domain, pixel_size=PIXEL, origin=ORIGIN)
    generator = torch.Generator().manual_seed(5)
    for name in ("a", "b"):
        noisy = domain + 0.3 * torch.randn(domain.shape, generator=generator)
        write_map(tmp_path / f"half_{name}.mrc", noisy, pixel_size=PIXEL)
    return tmp_path


@contextlib.contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Every file below `folder` is as it was, and there is none besides."""

    def state() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before, entries = state(), sorted(folder.rglob("*"))
    yield
    assert sorted(folder.rglob("*")) == entries
    assert state() == before


# ---- mask ----


def test_the_mask_is_that_of_the_library(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*MASK, "map.mrc", "-o", "mask.mrc", "--threshold-unit", "fraction", "--smoothing", "1px") == 0
    base = gaussian_filter(read_map(here / "map.mrc").data, sigma=PIXEL, pixel_size=PIXEL)
    expected = soft_mask(
        base,
        threshold=threshold_of(base, 0.3, unit="fraction"),
        dilation_radius_px=1.5,
        soft_padding_width_px=20.0 / PIXEL,
    )
    made = read_map(here / "mask.mrc")
    assert torch.equal(made.data, expected)
    assert made.origin == pytest.approx(ORIGIN)
    said = capsys.readouterr().out
    volume, share = re.search(r"volume: (\d+) Å\^3, ([\d.]+) % of the box", said).groups()
    assert float(volume) == pytest.approx(float(expected.sum()) * PIXEL**3, abs=1)
    assert float(share) == pytest.approx(100 * float(expected.mean()), abs=0.005)
    corner, frame = re.findall(r"(-?[\d.]+), (-?[\d.]+), (-?[\d.]+) (?:px|Å)", said)
    centre = centre_of_mass(expected) + BOX // 2
    assert [float(x) for x in corner] == pytest.approx(centre.tolist(), abs=0.006)
    in_frame = centre * PIXEL + torch.tensor(ORIGIN, dtype=torch.float64)
    assert [float(x) for x in frame] == pytest.approx(in_frame.tolist(), abs=0.006)


def test_a_mask_is_judged_at_the_resolution_given(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*MASK, "map.mrc", "-o", "mask.mrc", "--resolution", 20) == 0
    assert "padding is 20.0 Å (2.9 px); at least 105.0 Å (15 px), which is 5 times the resolution" in (
        capsys.readouterr().out
    )
    wide = ("--threshold", 0.9, "--dilation-radius", 0, "--soft-padding-width", "12.1px")
    assert run("mask", "map.mrc", "-o", "wide.mrc", *wide) == 0
    assert (
        "nothing to object to at a resolution of 14 Å (Nyquist; see --resolution)" in capsys.readouterr().out
    )


# ---- fulcrum ----


def test_a_point_is_one_in_three_frames(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """However it is given; and the line that is printed leads a job to the same point."""
    px = torch.tensor([30.0, 21.0, 29.0], dtype=torch.float64)  # the centre of the domain in map.mrc
    frame = px * PIXEL + torch.tensor(ORIGIN, dtype=torch.float64)
    x, y, z = frame.tolist()
    (here / "point.cmm").write_text(f'<marker_set><marker id="1" x="{x}" y="{y}" z="{z}"/></marker_set>')
    ways = (("--px", "30,21,29", "--map"), ("--marker", "point.cmm", "--map"), ("--mask",))
    for way in ways:
        assert run("fulcrum", *way, "map.mrc") == 0
        said = capsys.readouterr().out
        rows = [[float(x) for x in row] for row in re.findall(r"^(\S+), (\S+), (\S+) (?:px|Å)", said, re.M)]
        centre = (px - BOX // 2) * PIXEL
        assert rows == [pytest.approx(row.tolist(), abs=0.006) for row in (px, frame, centre)]
        command = shlex.split(said.splitlines()[-1])
        assert command[:2] == ["cryosweep", "run"]
        assert command[-1] == "..."
        simulated = [f"data.box_size={BOX}", f"data.pixel_size={PIXEL}", "refinement.initial_lowpass=20"]
        (config,) = composition.make_plan([*command[2:-1], *simulated], multirun=False).jobs
        half_maps = HalfMaps(*(torch.zeros(2, BOX, BOX, BOX).unbind()), PIXEL)
        particles = argparse.Namespace(pixel_size=PIXEL, box_size=BOX)
        point = job._fulcrum(config, half_maps.half_a, job._Start(half_maps, ORIGIN), particles)
        torch.testing.assert_close(point, centre, rtol=0, atol=0.005 * PIXEL)


def test_odd_boxes_have_their_centre_on_a_voxel(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_map(here / "odd.mrc", torch.zeros(21, 21, 21), pixel_size=2.0)
    assert run("fulcrum", "--px", "10,10,10.5", "--map", "odd.mrc") == 0
    said = capsys.readouterr().out
    assert "20.00, 20.00, 21.00 Å in the frame of odd.mrc\n0.00, 0.00, 1.00 Å from the box centre" in said


def test_headers_that_disagree_are_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fulcrum", "--mask", "map.mrc", "--map", "half_a.mrc") == 0
    said = capsys.readouterr().out
    assert "first voxel of map.mrc lies at -30.00, 12.50, 4.00 Å and that of half_a.mrc at 0.00" in said
    assert "210.00, 147.00, 203.00 Å in the frame of half_a.mrc" in said


# ---- reconstruct ----


def test_half_maps_are_those_of_the_library(
    simulated: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("reconstruct", simulated / "particles.star", "-o", "run", "--device", "cpu") == 0
    particles = read_particles(simulated / "particles.star")
    expected = reconstruct_half_maps(
        particles, particles.rotations, particles.shifts, device=torch.device("cpu")
    )
    for name, half in zip("ab", expected.pair, strict=True):
        made = read_map(here / f"run_half_{name}.mrc")
        assert torch.equal(made.data, half)
        assert made.pixel_size == PIXEL
    table = pd.read_csv(here / "run_fsc.csv")
    assert list(table) == ["shell", "frequency", "none", "spherical"]
    curve = correlate(*expected.pair)
    np.testing.assert_allclose(table["none"], curve, atol=1e-6)
    np.testing.assert_allclose(table["frequency"], np.arange(BOX // 2 + 1) / (BOX * PIXEL), atol=1e-6)
    said = capsys.readouterr().out
    at = [crossing(curve, threshold, box_size=BOX, pixel_size=PIXEL) for threshold in (0.143, 0.5)]
    assert re.search(rf"^none +<?{at[0]:.2f} Å +<?{at[1]:.2f} Å$", said, re.M)
    assert "40 particles, 20 and 20 in the half sets" in said


def test_options_of_the_particle_file_are_handed_on(
    simulated: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (simulated / "particles.star").read_text()
    damped = re.sub(r"(0\.000000)(\s+1\.000000\s+1\s)", r"-80.000000\2", text, count=1)
    assert damped != text
    (here / "damped.star").write_text(damped.replace("particles.mrcs", "elsewhere/particles.mrcs"))
    given = ("reconstruct", "damped.star", "-o", "run", "--half-set-seed", 9, "--image-folder", simulated)
    with (
        unchanged(here),
        pytest.raises(ValueError, match=r"choose --ctf-damping absolute .* or --ctf-damping none\.$"),
    ):
        run(*given)
    with unchanged(here), pytest.raises(ValueError, match=r"not found.*Set --image-folder to the folder"):
        run("reconstruct", "damped.star", "-o", "run", "--ctf-damping", "none")
    assert run(*given, "--ctf-damping", "absolute") == 0
    assert "(--ctf-damping absolute)" in capsys.readouterr().out


# ---- fsc ----


def test_five_curves_under_a_mask(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(*MASK, "map.mrc", "-o", "mask.mrc")
    capsys.readouterr()
    arguments = ("fsc", "half_a.mrc", "half_b.mrc", "--mask", "mask.mrc")
    assert run(*arguments, "-o", "fsc.csv", "--plot", "fsc.png", "--seed", 4) == 0
    a, b, mask = (read_map(here / f"{name}.mrc").data for name in ("half_a", "half_b", "mask"))
    generator = torch.Generator().manual_seed(4)
    expected = five_curves(a, b, mask, pixel_size=PIXEL, generator=generator)
    table = pd.read_csv(here / "fsc.csv")
    curves = ["none", "spherical", "loose", "tight", "randomised", "corrected"]
    assert list(table) == ["shell", "frequency", *curves]
    for name in curves:
        np.testing.assert_allclose(table[name], getattr(expected, name), atol=1e-6)
    assert (here / "fsc.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert f"phases random from shell {expected.randomised_from} (" in said
    corrected = crossing(expected.corrected, 0.143, box_size=BOX, pixel_size=PIXEL)
    assert re.search(rf"^corrected +{corrected:.2f} Å", said, re.M)
    assert "randomised " not in said


def test_cones_are_those_of_the_library_and_views_are_judged(
    here: Path, simulated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*MASK, "map.mrc", "-o", "mask.mrc")
    capsys.readouterr()
    arguments = ("anisotropy", "half_a.mrc", "half_b.mrc", "--mask", "mask.mrc", "-o", "cones.csv")
    star = simulated / "particles.star"
    assert run(*arguments, "--plot", "cones.png", "--star", star) == 0
    a, b, mask = (read_map(here / f"{name}.mrc").data for name in ("half_a", "half_b", "mask"))
    reached = crossing(correlate(a * mask, b * mask), 0.143, box_size=BOX, pixel_size=PIXEL)
    cones = directional_fsc(HalfMaps(a, b, PIXEL), mask, resolution=reached)
    table = pd.read_csv(here / "cones.csv")
    assert table["area"].to_numpy() == pytest.approx(cones.areas.numpy(), abs=1e-5)
    assert table["shell_3"].to_numpy() == pytest.approx(cones.curves[:, 3].numpy(), abs=1e-5)
    assert (here / "cones.png").stat().st_size > 1000
    views = read_particles(star).rotations[:, 2]
    printed = capsys.readouterr().out
    assert f"cFAR {cones.cfar:.2f} over 256 cones" in printed
    assert f"SCF* {sampling_compensation(views):.2f} of {len(views)} views" in printed
    assert run(*arguments, "--overwrite") == 0
    assert "SCF*" not in capsys.readouterr().out


def test_two_curves_without_a_mask(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fsc", "half_a.mrc", "half_b.mrc", "-o", "fsc.csv", "--plot", "fsc.svg") == 0
    assert list(pd.read_csv(here / "fsc.csv")) == ["shell", "frequency", "none", "spherical"]
    assert "<svg" in (here / "fsc.svg").read_text()
    assert "phases" not in capsys.readouterr().out


def test_ends_of_the_range_are_marked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`<`: never below the threshold; `>`: below it from the start. A correction without worth is said."""
    generator = torch.Generator().manual_seed(6)
    for name in "cd":
        noise = torch.randn(24, 24, 24, generator=generator)
        write_map(here / f"{name}.mrc", noise, pixel_size=2.0)
    write_map(here / "c2.mrc", read_map(here / "c.mrc").data, pixel_size=2.0)
    write_map(here / "ball.mrc", spherical_mask(24, outer_px=10, inner_px=4), pixel_size=2.0)
    run("fsc", "c.mrc", "c2.mrc", "-o", "same.csv", "--mask", "ball.mrc")
    said = capsys.readouterr().out
    assert re.search(r"^none +<4\.00 Å +<4\.00 Å$", said, re.M)
    assert "phases random from shell 12 (4.00 Å): the unmasked curve stays above 0.8" in said
    run("fsc", "c.mrc", "d.mrc", "-o", "unlike.csv", "--mask", "ball.mrc")
    said = capsys.readouterr().out
    assert re.search(r"^none +>48\.00 Å +>48\.00 Å$", said, re.M)
    assert "no shell keeps its phases, so corrected is hardly stricter than tight" in said


# ---- simulate ----


def test_simulated_particles_are_those_of_the_library(simulated: Path, tmp_path: Path) -> None:
    settings = SimulationSettings(particles=40, box_size=BOX, pixel_size=PIXEL, snr=2.0, seed=3)
    simulate(settings, tmp_path, device="cpu")
    assert sorted(path.name for path in simulated.iterdir()) == sorted(
        path.name for path in tmp_path.iterdir()
    )
    for name in ("particles.mrcs", "domains.mrc", "truth_head.mrc", "simulation.json"):
        assert (simulated / name).read_bytes() == (tmp_path / name).read_bytes()
    ours, theirs = (read_particles(folder / "truth_head.star") for folder in (simulated, tmp_path))
    assert torch.equal(ours.rotations, theirs.rotations)
    assert ours.stacks == (simulated / "particles.mrcs",)


def test_defaults_are_those_of_the_configuration() -> None:
    given = parser().parse_args(["simulate", "-o", "x"])
    conf = yaml.safe_load((CONF / "data" / "ribosome.yaml").read_text(encoding="utf-8"))
    for key in ("particles", "box_size", "pixel_size", "snr"):
        assert getattr(given, key) == conf[key]
    assert given.seed == conf["simulation_seed"]
    given = parser().parse_args(["reconstruct", "x", "-o", "x"])
    conf = yaml.safe_load((CONF / "data" / "relion.yaml").read_text(encoding="utf-8"))
    for key in ("image_folder", "ctf_damping"):
        assert getattr(given, key) == conf[key]
    conf = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))
    assert given.half_set_seed == conf["seed"]


def test_an_interrupted_simulation_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(settings: SimulationSettings, folder: Path, **_: object) -> None:
        (folder / "particles.mrcs").write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr("cryosweep.simulate.simulate", interrupt)
    (here / "kept").mkdir()
    (here / "kept" / "particles.mrcs").write_bytes(b"older")
    with unchanged(here):
        for arguments in (["-o", "new"], ["-o", "kept", "--overwrite"]):
            with pytest.raises(KeyboardInterrupt):
                run(*SIMULATE, *arguments)


# ---- refusals ----


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ((*MASK, "map.mrc", "-o", "half_a.mrc"), r"^half_a\.mrc exists already; .*--overwrite"),
        ((*MASK, "map.mrc", "-o", "map.mrc", "--overwrite"), r"^map\.mrc is named twice"),
        ((*MASK, "map.mrc", "-o", "no/mask.mrc"), r"^no/mask\.mrc: the folder no does not exist"),
        ((*MASK, "nosuch.mrc", "-o", "mask.mrc"), r"^nosuch\.mrc: there is no such file$"),
        ((*MASK, "text.star", "-o", "mask.mrc"), r"^text\.star: not a readable MRC file"),
        (
            (*MASK, "map.mrc", "-o", "mask.mrc", "--dilation-radius", "5q"),
            "^--dilation-radius: '5q' is not a",
        ),
        ((*MASK, "map.mrc", "-o", "mask.mrc", "--smoothing=-1"), "^--smoothing: '-1' is negative"),
        ((*MASK, "map.mrc", "-o", "mask.mrc", "--resolution", 0), "^--resolution 0: must be above 0 Å"),
        ((*MASK, "map.mrc", "-o", "mask.mrc", "--threshold", 7), "lies above the threshold 7 .*lower the"),
        (("fulcrum", "--px", "1,2,3"), "^--map is needed"),
        (("fulcrum", "--px", "1,2", "--map", "map.mrc"), "^--px 1,2: give three numbers"),
        (("fulcrum", "--px", "nan,2,3", "--map", "map.mrc"), "outside the 48 px box"),
        (
            ("fulcrum", "--px", "90,2,3", "--map", "map.mrc"),
            r"lies at 90\.00, 2\.00, 3\.00 px, outside the 48",
        ),
        (("fulcrum", "--mask", "half_a.mrc"), r"^half_a\.mrc: a mask holds values from 0 to 1"),
        (
            ("fulcrum", "--mask", "ball.mrc", "--map", "map.mrc"),
            r"^ball\.mrc has 24 px of 2 Å, map\.mrc has 48",
        ),
        (("fulcrum", "--marker", "nosuch.cmm", "--map", "map.mrc"), r"^nosuch\.cmm: there is no such file"),
        (("reconstruct", "nosuch.star", "-o", "run"), r"^nosuch\.star: there is no such file"),
        (("reconstruct", "text.star", "-o", "run"), "one table of particles"),
        (("reconstruct", "text.star", "-o", "half_a/run"), "the folder half_a does not exist"),
        (("fsc", "half_a.mrc", "half_a.mrc", "-o", "f.csv"), "both half maps are this file"),
        (
            ("fsc", "half_a.mrc", "ball.mrc", "-o", "f.csv"),
            r"^ball\.mrc has 24 px of 2 Å, half_a\.mrc has 48 px",
        ),
        (("fsc", "half_a.mrc", "half_b.mrc", "-o", "f.csv", "--mask", "half_a.mrc"), "a mask holds values"),
        (("fsc", "half_a.mrc", "half_b.mrc", "-o", "f.csv", "--plot", "f.csv"), r"must end in \.png"),
        (("fsc", "half_a.mrc", "half_b.mrc", "-o", "f.svg", "--plot", "f.svg"), "named twice"),
        (
            ("fsc", "half_a.mrc", "half_b.mrc", "-o", "f.csv", "--mask", "map.mrc", "--seed", -1),
            "^--seed -1: must",
        ),
        ((*SIMULATE, "-o", "."), r"^\. is not empty; .*--overwrite"),
        ((*SIMULATE, "-o", "map.mrc"), r"^map\.mrc is a file"),
        ((*SIMULATE, "-o", "no/new"), "the folder no does not exist"),
        ((*SIMULATE, "-o", "new", "--box-size", 47), "^--box-size 47: RELION's boxes are even"),
        ((*SIMULATE, "-o", "new", "--box-size", 20), "the moving ribosome needs 320 Å"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_nothing(
    command: tuple[object, ...], message: str, here: Path
) -> None:
    (here / "text.star").write_text("data_none\n\n_rlnSomething 1\n")
    write_map(here / "ball.mrc", spherical_mask(24, outer_px=10, inner_px=4), pixel_size=2.0)
    with unchanged(here), pytest.raises(ValueError, match=message) as refused:
        run(*command)
    assert "\n" not in str(refused.value)


def test_what_exists_is_replaced_when_asked(here: Path, simulated: Path) -> None:
    for name in ("mask.mrc", "fsc.csv", "run_half_a.mrc", "run_half_b.mrc", "run_fsc.csv"):
        (here / name).write_bytes(b"older")
    run(*MASK, "map.mrc", "-o", "mask.mrc", "--overwrite")
    run("fsc", "half_a.mrc", "half_b.mrc", "-o", "fsc.csv", "--overwrite")
    run("reconstruct", simulated / "particles.star", "-o", "run", "--overwrite")
    (here / "ribosome").mkdir()
    (here / "ribosome" / "notes.txt").write_text("mine")
    run(*SIMULATE, "-o", "ribosome", "--overwrite")
    assert b"older" not in [path.read_bytes() for path in here.iterdir() if path.is_file()]
    assert (here / "ribosome" / "notes.txt").read_text() == "mine"
    assert mrcfile.validate(here / "ribosome" / "particles.mrcs")


def test_a_failed_write_leaves_none_of_the_files(
    here: Path, simulated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fsc, "write_curves", full)
    with unchanged(here), pytest.raises(OSError, match="No space left"):
        run("reconstruct", simulated / "particles.star", "-o", "run")


@pytest.mark.parametrize("command", ["mask", "fulcrum", "reconstruct", "fsc", "anisotropy", "simulate"])
def test_help_fits_a_screen_and_its_example_is_accepted(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with contextlib.suppress(SystemExit):
        parser().parse_args([command, "--help"])
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 35
    assert max(map(len, text.splitlines())) <= 100
    (example,) = text.split("example:\n")[1].strip().splitlines()
    assert parser().parse_args(shlex.split(example)[1:]).command == command
