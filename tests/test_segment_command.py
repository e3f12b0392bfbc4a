"""The `segment` command and `mask_base=regions`: both lead to the base that the library makes."""

import argparse
import contextlib
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
import torch

from cryosweep import composition, file_commands
from cryosweep.file_commands.shared import Point
from cryosweep.fourier import gaussian_filter
from cryosweep.io import Map, read_map, write_map
from cryosweep.job import check_job
from cryosweep.job.files import inputs_read
from cryosweep.job.masks import mask_base
from cryosweep.job.starting import Start
from cryosweep.reconstruction import HalfMaps
from cryosweep.segmentation import (
    Segmentation,
    everything_else,
    labels_of,
    level_of,
    measure,
    segment,
    territory,
    ungroup,
)
from tests.test_io_segger import segger_file

BOX, PIXEL, ORIGIN = 40, 3.0, (-30.0, 12.5, 4.0)
CENTRES = ((12, 14, 20), (26, 15, 18), (19, 29, 22), (27, 30, 21))  # x, y, z
SMALL = (f"data.box_size={BOX}", f"data.pixel_size={PIXEL}", "refinement.initial_lowpass=12")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cryosweep")
    file_commands.add_parsers(parser.add_subparsers(dest="command", required=True))
    return parser


def run(*arguments: object) -> int:
    parsed = parser().parse_args([str(argument) for argument in arguments])
    return int(parsed.function(parsed))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with two noisy half maps of four blobs and their mean."""
    monkeypatch.chdir(tmp_path)
    z, y, x = torch.meshgrid(*[torch.arange(float(BOX))] * 3, indexing="ij")
    blobs = torch.zeros(BOX, BOX, BOX)
    for number, (a, b, c) in enumerate(CENTRES):
        width = 3.6 - 0.4 * number
        blobs += torch.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / (2.0 * width**2))
    generator = torch.Generator().manual_seed(5)
    halves = [blobs + 0.1 * torch.randn(blobs.shape, generator=generator) for _ in range(2)]
    for name, half in zip("ab", halves, strict=True):
        write_map(tmp_path / f"half_{name}.mrc", half, pixel_size=PIXEL, origin=ORIGIN)
    write_map(tmp_path / "map.mrc", 0.5 * (halves[0] + halves[1]), pixel_size=PIXEL, origin=ORIGIN)
    return tmp_path


def by_library(
    *, smoothing: float = 4.0, steps: int = 3, step_px: float = 3.5 / PIXEL
) -> tuple[Segmentation, Map]:
    map = read_map(Path("map.mrc"))
    volume = gaussian_filter(map.data, sigma=smoothing, pixel_size=PIXEL)
    threshold = level_of(volume, 2.0, unit="sd")
    made = segment(volume, threshold=threshold, steps=steps, step_px=step_px)
    return made, Map(volume, PIXEL, map.origin)


def same(path: str, volume: torch.Tensor) -> None:
    made = read_map(Path(path))
    assert torch.equal(made.data, volume)
    assert made.pixel_size == PIXEL
    assert made.origin == pytest.approx(ORIGIN)


def test_regions_are_listed_with_size_and_place(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("segment", "half_a.mrc", "half_b.mrc", "--table", "regions.csv") == 0
    said = capsys.readouterr().out
    made, map = by_library()
    extents = measure(made, made.shown, pixel_size=PIXEL)
    table = pd.read_csv(here / "regions.csv")
    rows = re.findall(r"^ +(\d+) +(\d+) +(\d+) +([\d.]+) +(-?\S+), (-?\S+), (-?\S+) ", said, re.M)
    assert [int(row[0]) for row in rows] == list(table["id"]) == list(made.shown)
    for row, (_, line), extent in zip(rows, table.iterrows(), extents.values(), strict=True):
        x, y, z = extent.centre_px
        assert [float(value) for value in row[1:]] == pytest.approx(
            [extent.voxels, extent.volume, extent.mass_kda, x, y, z], abs=0.51
        )
        assert (line.voxels, line.volume) == (extent.voxels, pytest.approx(extent.volume))
        assert [line.x_px, line.y_px, line.z_px] == pytest.approx([x, y, z], abs=1e-3)
        frame = Point.in_map(extent.centre_px, map).frame
        assert [line.x, line.y, line.z] == pytest.approx(frame, abs=0.01)
    assert sorted(path.name for path in here.iterdir()) == [
        "half_a.mrc",
        "half_b.mrc",
        "map.mrc",
        "regions.csv",
    ]


def test_bases_of_the_chosen_and_of_the_rest(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, map = by_library()
    names = ("-o", "head.mrc", "--rest", "rest.mrc", "--smoothed", "smooth.mrc", "--labels", "labels.mrc")
    more = ("--script", "look.cxc", "--plot", "look.png", "--each", "part")
    assert run("segment", "map.mrc", "--ids", "2,3", *names, *more) == 0
    same("head.mrc", map.data * territory(made, [2, 3]))
    same("rest.mrc", map.data * everything_else(made, [2, 3]))
    same("smooth.mrc", map.data)
    same("labels.mrc", labels_of(made, made.shown).float())
    same("part_2.mrc", map.data * territory(made, [2]))
    assert not (here / "part_1.mrc").exists()
    script = (here / "look.cxc").read_text()
    assert script.count("segmentation surfaces #1 where") == len(made.shown)
    assert f'open "{here}/smooth.mrc"' in script
    assert (here / "look.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert re.findall(r"^\* +(\d+)", said, re.M) == ["2", "3"]
    union = territory(made, [2, 3])
    z, y, x = torch.nonzero(union).double().mean(0).tolist()
    assert f"centre: {x:.2f}, {y:.2f}, {z:.2f} px from the box corner" in said
    assert f"chosen: 2,3; {int(union.sum()) * PIXEL**3:.0f} Å^3" in said


WAYS = (
    ("--ids", "3"),
    ("--largest", "2"),
    ("--point", ",".join(map(str, CENTRES[2]))),
    ("--marker", "picked.cmm"),
    ("--label", "marked.mrc", "--label-value", 4),
)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way[0])
@pytest.mark.parametrize("rest", [False, True])
def test_a_job_comes_to_the_base_that_the_command_writes(
    here: Path, way: tuple[object, ...], rest: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the line that is printed, and by the same way of choosing among the keys of mask_base=regions."""
    places = [[c * PIXEL + o for c, o in zip(centre, ORIGIN, strict=True)] for centre in CENTRES[1:3]]
    markers = "".join(f'<marker id="{n}" x="{x}" y="{y}" z="{z}"/>' for n, (x, y, z) in enumerate(places))
    (here / "picked.cmm").write_text(f"<marker_set>{markers}</marker_set>")
    marked = torch.zeros(BOX, BOX, BOX)
    marked[:, :, 17:] = 4.0
    write_map(here / "marked.mrc", marked, pixel_size=PIXEL, origin=ORIGIN)
    assert run("segment", "half_a.mrc", "half_b.mrc", *way, "-o", "base.mrc", "--rest", "rest.mrc") == 0
    printed = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert printed[:2] == ["cryosweep", "run"]
    expected = read_map(here / ("rest.mrc" if rest else "base.mrc")).data
    assert 0 < int(expected.count_nonzero()) < int(read_map(here / "map.mrc").data.numel())
    flags, values = way[::2], way[1::2]
    keys = [f"mask_base.{str(flag)[2:].replace('-', '_')}={value}"
            for flag, value in zip(flags, values, strict=True)]  # fmt: skip
    keys = [re.sub(r"(ids|point)=(.*)", r"\1=[\2]", key) for key in keys]
    for chosen in (printed[2:-1], ["mask_base=regions", *keys]):
        (config,) = composition.make_plan([*chosen, f"mask_base.rest={rest}", *SMALL], multirun=False).jobs
        assert check_job(config) == []
        halves = [read_map(here / f"half_{name}.mrc").data for name in "ab"]
        particles = argparse.Namespace(pixel_size=PIXEL, box_size=BOX)
        start = Start(particles, HalfMaps(halves[0], halves[1], PIXEL), ORIGIN, pd.DataFrame(), {})
        data = argparse.Namespace(truth=None, particles=particles)
        base = mask_base(config, data, start, torch.device("cpu"))
        torch.testing.assert_close(base, expected, rtol=0, atol=1e-6)


def test_a_map_file_and_a_segger_file_as_sources(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = segger_file(here / "a.seg")  # 6 x 5 x 4 voxels of 2.5 Å, the first at 10, -5, 0 Å
    volume = torch.randn(BOX, BOX, BOX, generator=torch.Generator().manual_seed(2))
    write_map(here / "fine.mrc", volume, pixel_size=2.5, origin=(2.5, -7.5, -5.0))
    assert run("segment", "fine.mrc", "--smoothing", 0, "--segger", file, "--ids", 2, "-o", "base.mrc") == 0
    said = capsys.readouterr().out
    assert "threshold 0.5: 3 regions in 2 groups of" in said
    assert re.search(r"^ +3 +1 .* arm$", said, re.M)
    expected = torch.zeros_like(volume)
    expected[3, 4, 5:7] = volume[3, 4, 5:7]  # z 1 + 2, y 3 + 1, x 2 and 3 + 3
    assert torch.equal(read_map(here / "base.mrc").data, expected)
    keys = shlex.split(said.splitlines()[-1])[2:-1]
    assert "mask_base.path=fine.mrc" in keys
    (config,) = composition.make_plan(
        [*keys, f"data.box_size={BOX}", "data.pixel_size=2.5"], multirun=False
    ).jobs
    particles = argparse.Namespace(pixel_size=2.5, box_size=BOX)
    start = Start(particles, HalfMaps(volume, volume, 2.5), (0.0, 0.0, 0.0), pd.DataFrame(), {})
    data = argparse.Namespace(truth=None, particles=particles)
    assert torch.equal(mask_base(config, data, start, torch.device("cpu")), expected)
    assert {Path(path).name for path in inputs_read(config, _particles(here))} >= {"a.seg", "fine.mrc"}
    config.mask_base.ids = [77]
    with pytest.raises(ValueError, match="mask_base=regions: there is no region 77"):
        mask_base(config, data, start, torch.device("cpu"))
    config.mask_base.path = None
    (fault,) = check_job(config)  # the consensus starts at 0, the file to the left of it
    assert fault.endswith(f"a.seg: regions stick out of the box of {BOX}x{BOX}x{BOX} px")
    config.mask_base.segger = "gone.seg"
    assert check_job(config) == ["gone.seg: there is no such file"]


def _particles(folder: Path) -> argparse.Namespace:
    return argparse.Namespace(path=folder / "map.mrc", stacks=())


def test_moves_change_what_is_shown_and_not_what_a_job_is_told(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, map = by_library()
    big = next(id for id in made.shown if made.regions[id].parts)
    split = ungroup(made, big)
    free = max(split.regions) + 1
    part = made.regions[big].parts[0]
    other = next(id for id in made.shown if id != big)
    moves = ("--ungroup", big, "--group", f"{part},{other}", "--ids", free, "-o", "base.mrc")
    assert run("segment", "map.mrc", *moves) == 0
    same("base.mrc", map.data * (territory(made, [part]) | territory(made, [other])))
    assert f"mask_base.ids=[{part},{other}]" in capsys.readouterr().out


def test_steps_in_angstrom_a_level_in_map_units_and_a_target(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--steps", 2, "--step-size", "4.5A", "--smoothing", "1px", "--target", 2)
    level = ("--threshold", 0.2, "--threshold-unit", "absolute")
    assert run("segment", "map.mrc", *arguments, *level, "--labels", "labels.mrc") == 0
    volume = gaussian_filter(read_map(here / "map.mrc").data, sigma=PIXEL, pixel_size=PIXEL)
    made = segment(volume, threshold=0.2, steps=2, step_px=1.5, target=2)
    same("labels.mrc", labels_of(made, made.shown).float())
    assert "threshold 0.2: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("map.mrc", "-o", "base.mrc"), "--output base.mrc: choose regions with --ids"),
        (("map.mrc", "--rest", "base.mrc"), "--rest base.mrc: choose regions with --ids"),
        (("map.mrc", "--script", "a.cxc"), "it opens the file of --labels"),
        (("map.mrc", "--plot", "a.gif"), "must end in .png"),
        (("map.mrc", "--ids", "head", "-o", "a.mrc"), "--ids head: give whole numbers"),
        (("map.mrc", "--ids", "999", "-o", "a.mrc"), "there is no region 999"),
        (("map.mrc", "--point", "1,2", "-o", "a.mrc"), "--point 1,2: give three numbers"),
        (("map.mrc", "--point", "1,1,1", "-o", "a.mrc"), "lies outside every region"),
        (("map.mrc", "--threshold", "99", "-o", "a.mrc", "--ids", "1"), "lower the threshold"),
        (("map.mrc", "--segger", "map.mrc", "--steps", "2"), "--steps: the regions are those of map.mrc"),
        (("map.mrc", "--segger", "map.mrc"), "map.mrc: not a readable Segger file"),
        (("map.mrc", "half_a.mrc", "half_b.mrc"), "3 maps are given"),
        (("gone.mrc",), "gone.mrc: there is no such file"),
        (("map.mrc", "--labels", "map.mrc", "--overwrite"), "map.mrc is named twice"),
        (("map.mrc", "--labels", "half_a.mrc"), "half_a.mrc exists already"),
        (("map.mrc", "--step-size", "0"), "of a size above 0 px"),
    ],
)
def test_refusals_leave_nothing_behind(here: Path, arguments: tuple[str, ...], match: str) -> None:
    before = {path: path.read_bytes() for path in here.iterdir()}
    with pytest.raises(ValueError, match=re.escape(match)):
        run("segment", *arguments)
    assert {path: path.read_bytes() for path in here.iterdir()} == before


def test_help_fits_a_screen_and_its_example_is_accepted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with contextlib.suppress(SystemExit):
        parser().parse_args(["segment", "--help"])
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 50
    assert max(map(len, text.splitlines())) <= 100
    (example,) = text.split("example:\n")[1].strip().splitlines()
    assert parser().parse_args(shlex.split(example)[1:]).command == "segment"
