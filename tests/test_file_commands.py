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
import starfile
import torch
import yaml

from cryosweep import composition, file_commands
from cryosweep.anisotropy import sampling_compensation
from cryosweep.file_commands import fsc, shared
from cryosweep.fourier import gaussian_filter, high_pass, low_pass
from cryosweep.fulcrum import interface
from cryosweep.geometry import angle_between
from cryosweep.io import read_map, read_marker, read_particles, write_map
from cryosweep.job.fulcrum import fulcrum_point
from cryosweep.job.starting import Start
from cryosweep.mask import (
    centre_of_mass,
    difference,
    dilate,
    erode,
    intersection,
    inverted,
    soft_mask,
    spherical_mask,
    threshold_of,
    union,
)
from cryosweep.reconstruction import HalfMaps, reconstruct_half_maps
from cryosweep.regularisation import NonuniformSettings, nonuniform
from cryosweep.resolution import crossing, five_curves
from cryosweep.resolution import fsc as correlate
from cryosweep.simulate import SimulationSettings, simulate
from cryosweep.study.assessment import directional_fsc
from cryosweep.subtraction import rest_of, subtracted
from cryosweep.volume import Grid, flip_hand, resample, resize_box

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
FIVE_CURVES = ("none", "spherical", "loose", "tight", "randomised", "corrected")
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


def test_holes_of_the_region_are_filled_when_told(here: Path) -> None:
    shell = read_map(here / "map.mrc").data
    shell = torch.where(shell > 0.9, 0.0, shell)
    write_map(here / "shell.mrc", shell, pixel_size=PIXEL)
    for name, option in (("hollow", ()), ("filled", ("--fill-holes",))):
        assert run(*MASK, "shell.mrc", "-o", f"{name}.mrc", *option) == 0
        expected = soft_mask(
            shell, threshold=0.3, dilation_radius_px=1.5, soft_padding_width_px=20.0 / PIXEL,
            holes_filled=name == "filled",
        )  # fmt: skip
        assert torch.equal(read_map(here / f"{name}.mrc").data, expected)
    assert float(read_map(here / "hollow.mrc").data[BOX // 2 + 5, BOX // 2 - 3, BOX // 2 + 6]) < 1.0


# ---- volume ----


def test_operations_are_done_in_the_order_given(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = read_map(here / "map.mrc").data
    steps = (
        "--gaussian",
        "1px",
        "--threshold",
        0.3,
        "--fill-holes",
        "--dilate",
        "1.5px",
        "--pad-softly",
        "20A",
    )
    assert run("volume", "map.mrc", "-o", "made.mrc", *steps) == 0
    base = gaussian_filter(source, sigma=PIXEL, pixel_size=PIXEL)
    expected = soft_mask(
        base, threshold=0.3, dilation_radius_px=1.5, soft_padding_width_px=20.0 / PIXEL, holes_filled=True
    )
    made = read_map(here / "made.mrc")
    assert torch.equal(made.data, expected)
    assert made.origin == pytest.approx(ORIGIN)
    said = capsys.readouterr().out
    assert "made.mrc: 48 px of 7 Å, first voxel at -30.00, 12.50, 4.00 Å\nvalues from 0 to 1\n" in said
    outside = 1 - float((expected.double() * base).square().sum() / base.double().square().sum())
    assert f"{outside:.0%} of the power of the map it was cut from lies outside" in said
    assert f"mask: {float(expected.sum()) * PIXEL**3:.0f} Å^3" in said
    assert "R1 warning: the soft padding is 20.0 Å (2.9 px); at least 70.0 Å" in said
    # smoothing after the threshold is another thing than before it
    assert run("volume", "map.mrc", "-o", "late.mrc", "--threshold", 0.3, "--gaussian", "1px") == 0
    late = gaussian_filter((source > 0.3).float(), sigma=PIXEL, pixel_size=PIXEL)
    assert torch.equal(read_map(here / "late.mrc").data, late)


def test_every_operation_is_that_of_the_library(here: Path) -> None:
    source = read_map(here / "half_a.mrc").data
    write_map(here / "region.mrc", (source > 0.5).float(), pixel_size=PIXEL)
    soft = spherical_mask(BOX, outer_px=12, inner_px=6, centre_px=(2, 2, -3))
    write_map(here / "soft.mrc", soft, pixel_size=PIXEL)
    write_map(here / "grid.mrc", torch.zeros(30, 30, 30), pixel_size=5.0, origin=(20.0, 31.0, 42.0))
    region = source > 0.5
    grid = Grid(BOX, PIXEL, (0.0, 0.0, 0.0))
    ball = read_map(here / "map.mrc").data
    percentile = float(np.quantile(source.numpy(), 0.999))
    cases = {
        ("half_a", "--low-pass", 30): low_pass(source, resolution=30, pixel_size=PIXEL, edge="centred"),
        ("half_a", "--high-pass", 30): high_pass(source, resolution=30, pixel_size=PIXEL),
        ("half_a", "--threshold", -0.1): source > -0.1,
        ("half_a", "--threshold", "30%"): source > 0.3 * percentile,
        ("region", "--erode", "1.5px"): erode(region, 1.5),
        ("region", "--dilate", "14A"): dilate(region, 2.0),
        ("region", "--and", "soft.mrc"): intersection(region.float(), soft),
        ("region", "--or", "soft.mrc"): union(region.float(), soft),
        ("region", "--and-not", "soft.mrc"): difference(region.float(), soft),
        ("soft", "--invert"): inverted(soft),
        ("half_a", "--clamp"): source.clamp(0, 1),
        ("half_a", "--apply-mask", "soft.mrc"): source * soft,
        ("half_a", "--flip-hand"): flip_hand(source),
        ("half_a", "--box", 30): resize_box(source, grid, 30)[0],
        ("half_a", "--pixel-size", 9.1): resample(source, grid, grid.with_pixel_size(9.1)),
        ("map", "--onto", "grid.mrc"): resample(
            ball, Grid(BOX, PIXEL, ORIGIN), Grid(30, 5.0, (20.0, 31.0, 42.0))
        ),
    }  # fmt: skip
    used = {flag for _, flag, *_ in cases} | {"--gaussian", "--fill-holes", "--pad-softly"}
    assert used == set(file_commands.volume.OPERATIONS)
    for (name, *operation), expected in cases.items():
        assert run("volume", f"{name}.mrc", "-o", "made.mrc", "--overwrite", *operation) == 0
        assert torch.equal(read_map(here / "made.mrc").data, expected.float()), operation


def test_density_stays_where_it_is_in_space(here: Path) -> None:
    """The centre of the domain, in Å, through every change of the grid, and lengths in px follow the grid."""

    def centre(name: str) -> list[float]:
        made = read_map(here / name)
        px = centre_of_mass(made.data.clamp_min(0.1) - 0.1) + made.data.shape[-1] // 2
        return (px * made.pixel_size + torch.tensor(made.origin, dtype=torch.float64)).tolist()

    before = centre("map.mrc")
    for step in (("--box", 37), ("--box", 60), ("--pixel-size", 5.3)):
        run("volume", "map.mrc", "-o", "made.mrc", "--overwrite", "--gaussian", "1px", *step)
        assert centre("made.mrc") == pytest.approx(before, abs=0.3)
        run("volume", "map.mrc", "-o", "onto.mrc", "--overwrite", "--gaussian", "1px", "--onto", "made.mrc")
        assert centre("onto.mrc") == pytest.approx(before, abs=0.3)
    steps = ("--pixel-size", 3.5, "--threshold", 0.3, "--dilate", "4px")
    run("volume", "map.mrc", "-o", "made.mrc", "--overwrite", *steps)
    grid = Grid(BOX, PIXEL, ORIGIN)
    finer = resample(read_map(here / "map.mrc").data, grid, grid.with_pixel_size(3.5))
    assert torch.equal(read_map(here / "made.mrc").data, dilate(finer > 0.3, 4.0).float())


def test_what_is_said_of_a_mask_is_measured_on_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(*MASK, "map.mrc", "-o", "mask.mrc")
    capsys.readouterr()
    assert run("volume", "mask.mrc", "-o", "a.mrc", "--box", 40, "--resolution", 20) == 0
    assert "as steep as a soft padding of" in capsys.readouterr().out
    assert run("volume", "map.mrc", "-o", "b.mrc", "--threshold", 0.3, "--resolution", 20) == 0
    said = capsys.readouterr().out
    assert "hard edge" in said
    assert "cuts through density" in said
    assert run("volume", "half_a.mrc", "-o", "c.mrc", "--threshold", 1.0, "--pad-softly", "10px") == 0
    assert "R6 warning: the mask base is not smooth" in capsys.readouterr().out
    assert run("volume", "half_a.mrc", "-o", "d.mrc", "--low-pass", 40) == 0
    assert "mask" not in capsys.readouterr().out
    assert run("volume", "mask.mrc", "-o", "e.mrc", "--pixel-size", 10.0) == 0
    assert "it must lie between 0 and 1" in capsys.readouterr().out


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
        start = Start(particles, half_maps, ORIGIN, pd.DataFrame(), {})
        point = fulcrum_point(config, half_maps.half_a, start, particles)
        torch.testing.assert_close(point, centre, rtol=0, atol=0.005 * PIXEL)


@pytest.fixture
def parts(here: Path) -> Path:
    """A domain, the large part it sits on and a small one that it touches too."""
    places = {
        "domain": (6, (0, 0, 8)),
        "carrier": (10, (0, 0, -8)),
        "arm": (3, (9, 0, 8)),
        "far": (4, (-15, 9, -9)),
    }
    for name, (radius, centre) in places.items():
        ball = spherical_mask(BOX, outer_px=radius, inner_px=radius, centre_px=centre)
        write_map(here / f"{name}.mrc", ball, pixel_size=PIXEL, origin=ORIGIN)
        write_map(here / f"{name}_map.mrc", 3 * ball - 1, pixel_size=PIXEL, origin=ORIGIN)
    return here


def test_the_interface_is_that_of_the_library(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["domain", "arm", "carrier"]
    regions = [read_map(parts / f"{name}.mrc").data > 0.5 for name in names]
    expected = interface(regions[0], regions[1:], names=names[1:], pixel_size=PIXEL)
    assert expected.carrier == 1
    files = [f"{name}.mrc" for name in names]
    assert run("fulcrum", "--interface", *files, "-o", "hinge.cmm", "--plot", "hinge.png") == 0
    said = capsys.readouterr().out
    rows = [[float(x) for x in row] for row in re.findall(r"^(\S+), (\S+), (\S+) (?:px|Å)", said, re.M)]
    centre = expected.contact.centre
    px = centre / PIXEL + BOX // 2
    frame = px * PIXEL + torch.tensor(ORIGIN, dtype=torch.float64)
    assert rows == [pytest.approx(row.tolist(), abs=0.006) for row in (px, frame, centre)]
    assert read_marker(parts / "hinge.cmm") == pytest.approx(frame.tolist(), abs=1e-9)
    assert (parts / "hinge.png").read_bytes().startswith(b"\x89PNG")
    sd = ", ".join(f"{float(value):.2f}" for value in expected.contact.sd)
    assert (
        f"the contact with carrier.mrc: {expected.contact.voxels} voxels within 14 Å of both, of SD {sd}"
        in said
    )
    assert f"with arm.mrc: {expected.voxels[0]} voxels" in said
    # the marker leads back to the point, and maps with a threshold to that of the masks
    assert run("fulcrum", "--marker", "hinge.cmm", "--map", "domain.mrc") == 0
    assert capsys.readouterr().out.splitlines()[:3] == said.splitlines()[:3]
    maps = [f"{name}_map.mrc" for name in names]
    assert run("fulcrum", "--interface", *maps, "--threshold", 0.5) == 0
    assert capsys.readouterr().out.splitlines()[0] == said.splitlines()[0]


def test_an_interface_that_is_in_doubt_is_said(
    parts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("fulcrum", "--interface", "domain.mrc", "carrier.mrc")
    assert run(*command) == 0
    assert "R30" not in capsys.readouterr().out
    monkeypatch.setattr("cryosweep.rules.ALONG", 0.01)
    assert run(*command) == 0
    assert "R30 warning: the contact that gives the fulcrum runs along the domain" in capsys.readouterr().out


def test_what_is_no_interface_is_refused(parts: Path) -> None:
    for command, message in (
        (("domain.mrc", "far.mrc"), r"touches far\.mrc in 0 voxels only.*set a marker"),
        (("domain.mrc",), "give the domain and at least one other part"),
        (("domain_map.mrc", "carrier.mrc"), r"^domain_map\.mrc is a map and no mask .*give --threshold"),
        (("domain.mrc", "carrier.mrc", "-o", "domain.mrc"), "is named twice"),
        (("domain.mrc", "carrier.mrc", "-o", "map.mrc"), "exists already"),
        (("domain.mrc", "carrier.mrc", "--plot", "a.bmp"), r"must end in \.png"),
        (("domain.mrc", "nosuch.mrc"), "there is no such file"),
    ):
        with unchanged(parts), pytest.raises(ValueError, match=message):
            run("fulcrum", "--interface", *command)
    with unchanged(parts), pytest.raises(ValueError, match="--threshold belongs to --interface"):
        run("fulcrum", "--mask", "domain.mrc", "--threshold", 3)


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
    assert list(table) == ["shell", "frequency", *FIVE_CURVES]
    curve = correlate(*expected.pair)
    mask = read_map(here / "run_mask.mrc").data
    tight = correlate(*(half * mask for half in expected.pair))
    np.testing.assert_allclose(table["tight"], tight, atol=1e-6)
    np.testing.assert_allclose(table["none"], curve, atol=1e-6)
    np.testing.assert_allclose(table["frequency"], np.arange(BOX // 2 + 1) / (BOX * PIXEL), atol=1e-6)
    said = capsys.readouterr().out
    at = [crossing(curve, threshold, box_size=BOX, pixel_size=PIXEL) for threshold in (0.143, 0.5)]
    assert re.search(rf"^none +<?{at[0]:.2f} Å +<?{at[1]:.2f} Å$", said, re.M)
    assert "40 particles, 20 and 20 in the half sets" in said


def test_half_maps_under_a_given_mask(
    simulated: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The five curves of `reconstruct --mask` are those that `fsc --mask` gives of its half-maps."""
    write_map(here / "ball.mrc", spherical_mask(BOX, outer_px=20, inner_px=14), pixel_size=PIXEL)
    given = (simulated / "particles.star", "--mask", "ball.mrc")
    assert run("reconstruct", *given, "-o", "masked", "--seed", 3) == 0
    assert not (here / "masked_mask.mrc").exists()
    said = capsys.readouterr().out.splitlines()
    run("fsc", "masked_half_a.mrc", "masked_half_b.mrc", "--mask", "ball.mrc", "-o", "again.csv", "--seed", 3)
    pd.testing.assert_frame_equal(pd.read_csv(here / "again.csv"), pd.read_csv(here / "masked_fsc.csv"))
    told = capsys.readouterr().out.splitlines()
    assert told[:7] == said[-7:]
    assert told[7].startswith("findings: ")


# ---- consensus ----


def test_consensus_leaves_what_goes_on(
    simulated: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--iterations", 1, "--initial-lowpass", 20, "--mask-starts", 40, "--device", "cpu")
    assert run("consensus", simulated / "particles.star", "-o", "c", "--nonuniform", *arguments) == 0
    names = {path.name for path in (here / "c").iterdir()}
    assert names == {
        "half_a.mrc", "half_b.mrc", "map.mrc", "mask.mrc", "particles.star", "fsc.csv", "iterations.csv",
        "fsc.png", "slices.png", "pose_changes.png",
    }  # fmt: skip
    assert "1 iterations" in capsys.readouterr().out
    refined, given = (
        read_particles(here / "c" / "particles.star"),
        read_particles(simulated / "particles.star"),
    )
    assert refined.stacks[0].resolve() == given.stacks[0].resolve()
    assert torch.equal(refined.half_sets, given.half_sets)
    turned = torch.rad2deg(angle_between(refined.rotations, given.rotations))
    assert 0.0 < float(turned.max()) <= 10.0 + 1e-3
    # the half-maps are those of the poses in the STAR file, the curves those of the half-maps
    again = reconstruct_half_maps(refined, refined.rotations, refined.shifts, device=torch.device("cpu"))
    half = read_map(here / "c" / "half_a.mrc").data
    assert float((again.half_a - half).abs().max()) < 1e-3 * float(half.abs().max())
    run("fsc", "c/half_a.mrc", "c/half_b.mrc", "--mask", "c/mask.mrc", "-o", "again.csv")
    pd.testing.assert_frame_equal(pd.read_csv(here / "again.csv"), pd.read_csv(here / "c" / "fsc.csv"))
    assert list(pd.read_csv(here / "c" / "iterations.csv")["iteration"]) == [1]


def test_consensus_from_a_table_without_angles(simulated: Path, here: Path) -> None:
    """All orientations are searched, from a map; without either it says what is needed."""
    table = starfile.read(simulated / "particles.star", always_dict=True)
    drop = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"]
    table["particles"] = table["particles"].drop(columns=drop)
    starfile.write(table, here / "lost.star")
    start = ("consensus", "lost.star", "--image-folder", simulated, "-o", "c", "--iterations", 1,
             "--initial-lowpass", 40, "--map", simulated / "truth_body.mrc")  # fmt: skip
    with unchanged(here), pytest.raises(ValueError, match="give --rotation-extent 180 and a --map"):
        run(*start)
    with unchanged(here), pytest.raises(ValueError, match=r"rlnAngleRot.* are needed and absent"):
        run("reconstruct", "lost.star", "--image-folder", simulated, "-o", "run")
    assert run(*start, "--rotation-extent", 180, "--mask", "sphere") == 0
    assert "rlnAngleRot" in read_particles(here / "c" / "particles.star").table


# ---- regularise ----


def test_regularise_is_the_library(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("regularise", "half_a.mrc", "half_b.mrc", "-o", "nu", "--finest", 12, "--window", 1.5) == 0
    a, b = (read_map(here / f"half_{name}.mrc") for name in "ab")
    settings = NonuniformSettings(window=1.5)
    found = nonuniform(a.data, b.data, pixel_size=a.pixel_size, finest=12.0, settings=settings)
    made = {name: read_map(here / f"nu_{name}.mrc") for name in ("half_a", "half_b", "map", "cutoff")}
    assert torch.equal(made["half_a"].data, found.half_a)
    assert torch.equal(made["half_b"].data, found.half_b)
    assert torch.equal(made["map"].data, 0.5 * (found.half_a + found.half_b))
    assert torch.equal(made["cutoff"].data, found.cutoff)
    assert made["map"].origin == a.origin
    said = capsys.readouterr().out
    assert "no FSC may be taken from them" in said
    assert re.search(r"^cut-offs in the box: median \d+\.\d Å", said, re.M)


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


# ---- subtract ----


def test_subtracted_particles_are_those_of_the_library(
    simulated: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With half maps given or made, and with both masks: the rest map times what is not kept."""
    write_map(
        here / "keep.mrc",
        spherical_mask(BOX, outer_px=9, inner_px=5, centre_px=(-3, 1, -6)),
        pixel_size=PIXEL,
    )
    write_map(here / "rest.mrc", spherical_mask(BOX, outer_px=21, inner_px=16), pixel_size=PIXEL)
    assert run("reconstruct", simulated / "particles.star", "-o", "start") == 0
    masks = ("--keep", "keep.mrc", "--remove", "rest.mrc")
    star = simulated / "particles.star"
    assert run("subtract", star, *masks, "-o", "made") == 0
    assert (
        run("subtract", star, *masks, "-o", "given", "--half-maps", "start_half_a.mrc", "start_half_b.mrc")
        == 0
    )
    keep, rest_mask = (read_map(here / name).data for name in ("keep.mrc", "rest.mrc"))
    halves = HalfMaps(*(read_map(here / f"start_half_{name}.mrc").data for name in "ab"), PIXEL)
    particles = read_particles(star)
    rest = rest_of(halves, rest_mask * (1.0 - keep), filter="fsc")
    expected = subtracted(particles, rest, device=torch.device("cpu")).images(torch.arange(40))
    for folder in ("made", "given"):
        found = read_particles(here / folder / "particles.star")
        torch.testing.assert_close(found.images(torch.arange(40)), expected, rtol=0, atol=1e-4)
        assert torch.equal(read_map(here / folder / "mask.mrc").data, keep)
    said = capsys.readouterr().out
    assert re.search(r"left of it in the map of the subtracted images: \d+\.\d% of the power", said)


def test_a_recentred_subtraction_comes_with_maps_in_its_frame(simulated: Path, here: Path) -> None:
    """Reconstruction, mask, and where viewers show them: all in the box that the images are cut to."""
    centre, size = (-3, 1, -6), 32
    mask = spherical_mask(BOX, outer_px=9, inner_px=5, centre_px=centre)
    write_map(here / "keep.mrc", mask, pixel_size=PIXEL, origin=ORIGIN)
    cut = ("--recentre", "--box-size", size)
    assert run("subtract", simulated / "particles.star", "--keep", "keep.mrc", *cut, "-o", "cut") == 0
    particles = read_particles(here / "cut" / "particles.star")
    assert particles.box_size == size
    maps = reconstruct_half_maps(particles, particles.rotations, particles.shifts, device=torch.device("cpu"))
    made = read_map(here / "cut" / "half_a.mrc")
    inner = read_map(here / "cut" / "mask.mrc")
    # the images are cut after their CTF has spread them, so that the two agree inside the mask alone
    agreement = correlate(maps.half_a * inner.data, made.data * inner.data)
    assert float(agreement[1:9].min()) > 0.9
    expected = spherical_mask(size, outer_px=9, inner_px=5)
    torch.testing.assert_close(inner.data, expected)
    before = torch.tensor([BOX // 2 + x for x in centre]) * PIXEL + torch.tensor(ORIGIN)
    after = torch.tensor([size // 2] * 3) * PIXEL + torch.tensor(inner.origin)
    torch.testing.assert_close(before, after)


def test_half_maps_that_do_not_belong_are_refused(simulated: Path, here: Path) -> None:
    write_map(here / "keep.mrc", spherical_mask(BOX, outer_px=9, inner_px=5), pixel_size=PIXEL)
    star = simulated / "particles.star"
    assert run("reconstruct", star, "-o", "start") == 0
    for name in "ab":
        inverted = -read_map(here / f"start_half_{name}.mrc").data
        write_map(here / f"dark_{name}.mrc", inverted, pixel_size=PIXEL)
    table = star.read_text().replace("_rlnRandomSubset", "_rlnClassNumber")
    (simulated / "no_halves.star").write_text(table)
    halves = ("--half-maps", "start_half_a.mrc", "start_half_b.mrc")
    exchanged = ("--half-maps", "start_half_b.mrc", "start_half_a.mrc")
    twice = ("--half-maps", "start_half_b.mrc", "start_half_b.mrc")
    dark = ("--half-maps", "dark_a.mrc", "dark_b.mrc")
    for arguments, message in (
        ((star, *exchanged, "--keep", "keep.mrc"), "the half-maps are exchanged"),
        ((star, *twice, "--keep", "keep.mrc"), "both half maps are"),
        ((star, *dark, "--keep", "keep.mrc"), "unfiltered half-maps of these"),
        ((simulated / "no_halves.star", *halves, "--keep", "keep.mrc"), "no rlnRandomSubset, so which"),
        ((star, *halves), "say what the mask means: --keep MASK"),
        ((star, *halves, "--remove", "keep.mrc", "--recentre"), "--recentre needs --keep"),
        ((star, *halves, "--keep", "keep.mrc", "--box-size", 64), "must be from 8 px up to the 48 px"),
        ((star, *halves, "--keep", "keep.mrc", "--window", "0.9"), "give two numbers, for example 0.85,0.99"),
    ):  # fmt: skip
        with unchanged(here), pytest.raises(ValueError, match=re.escape(message)):
            run("subtract", *arguments, "-o", "new")
    (simulated / "no_halves.star").unlink()


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
        (("volume", "map.mrc", "-o", "v.mrc"), "^no operation is given"),
        (("volume", "nosuch.mrc", "-o", "v.mrc", "--clamp"), r"^nosuch\.mrc: there is no such file"),
        (("volume", "map.mrc", "-o", "v.mrc", "--and", "nosuch.mrc"), r"^nosuch\.mrc: there is no such"),
        (("volume", "map.mrc", "-o", "v.mrc", "--and", "half_a.mrc"), r"^half_a\.mrc: a mask holds values"),
        (("volume", "map.mrc", "-o", "v.mrc", "--apply-mask", "ball.mrc"), r"^ball\.mrc has 24 px of 2 Å"),
        (("volume", "map.mrc", "-o", "v.mrc", "--box", 24, "--or", "map.mrc"), r"^map\.mrc has 48 px of 7 Å"),
        (("volume", "map.mrc", "-o", "v.mrc", "--dilate", "5q"), "^--dilate: '5q' is not a length"),
        (("volume", "map.mrc", "-o", "v.mrc", "--low-pass", 0), "^--low-pass: a resolution must be above"),
        (("volume", "map.mrc", "-o", "v.mrc", "--low-pass", 5), "^--low-pass 5: lies beyond Nyquist, 14 Å"),
        (("volume", "map.mrc", "-o", "v.mrc", "--threshold", "x"), "^--threshold x: must be a number"),
        (("volume", "map.mrc", "-o", "v.mrc", "--threshold", "nan"), "^--threshold nan: must be a number"),
        (("volume", "map.mrc", "-o", "v.mrc", "--box", 7.5), r"^--box 7\.5: must be a whole number"),
        (("volume", "map.mrc", "-o", "v.mrc", "--pixel-size", -2), "pixel size of -2 Å is not possible"),
        (("volume", "half_a.mrc", "-o", "v.mrc", "--dilate", 5), "^--dilate needs a region of zeros and"),
        (("volume", "half_a.mrc", "-o", "v.mrc", "--invert"), "^--invert needs a mask, but the values are -"),
        (("volume", "map.mrc", "-o", "map.mrc", "--clamp", "--overwrite"), r"^map\.mrc is named twice"),
        (
            ("volume", "map.mrc", "-o", "v.mrc", "--clamp", "--resolution", 0),
            "^--resolution 0: must be above",
        ),
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
        (("fulcrum", "--mask", "zeros.mrc"), r"^zeros\.mrc: the mask is empty, 0 everywhere"),
        (("reconstruct", ".", "-o", "run"), r"^\. is a folder; name the file in it"),
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
        (("regularise", "half_a.mrc", "half_a.mrc", "-o", "nu"), "both half maps are this file"),
        (("regularise", "half_a.mrc", "ball.mrc", "-o", "nu"), r"^ball\.mrc has 24 px of 2 Å"),
        (("regularise", "half_a.mrc", "half_b.mrc", "-o", "nu", "--finest", 60), "no finer than --coarsest"),
        (("regularise", "half_a.mrc", "half_b.mrc", "-o", "nu", "--cutoffs", 1), "2 cut-offs or more"),
        (("consensus", "text.star", "-o", "c"), "one table of particles"),
        (("consensus", "text.star", "-o", "c", "--rotation-extent", 200), "^--rotation-extent 200: must be"),
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
    write_map(here / "zeros.mrc", torch.zeros(24, 24, 24), pixel_size=2.0)
    with unchanged(here), pytest.raises(ValueError, match=message) as refused:
        run(*command)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("output", ["f.csv", "new"])
def test_a_folder_that_cannot_be_written_to_is_refused(
    output: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared.os, "access", lambda *_: False)
    command = (
        (*SIMULATE, "-o", output) if output == "new" else ("fsc", "half_a.mrc", "half_b.mrc", "-o", output)
    )
    with unchanged(here), pytest.raises(ValueError, match="cannot be written to; give another"):
        run(*command)


def test_a_stop_at_the_limit_names_the_option(
    simulated: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    star, few = simulated / "particles.star", ("--iterations", 1, "--mask", "sphere")
    assert run("consensus", star, "-o", "c", *few, "--initial-lowpass", 30) == 0
    assert "raise --iterations" in capsys.readouterr().out


def test_boxes_and_hinges_that_do_not_fit_are_refused(simulated: Path, here: Path) -> None:
    star = simulated / "particles.star"
    odd = ("subtract", star, "--keep", "map.mrc", "--box-size", 31, "-o", "sub")
    far = (
        "twin",
        star,
        "half_a.mrc",
        "half_b.mrc",
        "--domain",
        "map.mrc",
        "--hinge",
        "999,1,1",
        "-o",
        "twin",
    )
    for command, message in (
        (odd, "^--box-size 31: RELION's boxes are even"),
        (far, "^--hinge 999,1,1: lies out"),
    ):
        with unchanged(here), pytest.raises(ValueError, match=message):
            run(*command)


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


@pytest.mark.parametrize(
    "command",
    [
        "mask",
        "volume",
        "fulcrum",
        "reconstruct",
        "consensus",
        "regularise",
        "fsc",
        "anisotropy",
        "simulate",
    ],
)
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
