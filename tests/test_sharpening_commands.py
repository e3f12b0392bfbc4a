"""`cryosweep sharpen` and `local-resolution`: they write what the library makes and refuse what cannot be."""

import argparse
import re
from pathlib import Path

import pandas as pd
import pytest
import torch

from cryosweep import file_commands
from cryosweep.fourier import frequency_radius, multiply_spectrum
from cryosweep.io import read_map, write_map
from cryosweep.local_resolution import WIDTH_PER_RESOLUTION, filter_locally, local_resolution
from cryosweep.mask import soft_edge, spherical_mask
from cryosweep.reconstruction import HalfMaps
from cryosweep.resolution import five_curves
from cryosweep.sharpening import Sharpened, apply_b_factor, sharpen

BOX, PIXEL, ORIGIN = 48, 1.8, (-30.0, 12.5, 4.0)
HALVES = ("half_a.mrc", "half_b.mrc", "--mask", "mask.mrc")


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser(prog="cryosweep")
    file_commands.add_parsers(parser.add_subparsers(dest="command", required=True))
    parsed = parser.parse_args([str(argument) for argument in arguments])
    return int(parsed.function(parsed))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with two half maps that fall off and their mask."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(5)
    radius = frequency_radius(BOX, dims=3, dtype=torch.float32, device="cpu") / (BOX * PIXEL)
    white = torch.randn((BOX,) * 3, generator=generator)
    signal = multiply_spectrum(white, torch.exp(-30.0 * radius.square()))
    for name in ("a", "b"):
        noisy = signal + 0.5 * torch.randn((BOX,) * 3, generator=generator)
        write_map(tmp_path / f"half_{name}.mrc", noisy, pixel_size=PIXEL, origin=ORIGIN)
    mask = soft_edge(spherical_mask(BOX, outer_px=11, inner_px=11) > 0.5, 7.0)
    write_map(tmp_path / "mask.mrc", mask, pixel_size=PIXEL, origin=ORIGIN)
    return tmp_path


def expected(here: Path, *, b_factor: float | None = None) -> Sharpened:
    a, b, mask = (read_map(here / name).data for name in ("half_a.mrc", "half_b.mrc", "mask.mrc"))
    curves = five_curves(a, b, mask, pixel_size=PIXEL, generator=torch.Generator().manual_seed(0))
    return sharpen(HalfMaps(a, b, PIXEL), mask, curves.corrected, b_factor=b_factor)


def test_sharpen_writes_what_the_library_makes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sharpen", *HALVES, "-o", "sharp.mrc", "--csv", "g.csv", "--plot", "g.png") == 0
    library, written = expected(here), read_map(here / "sharp.mrc")
    assert torch.equal(written.data, library.volume)
    assert written.origin == pytest.approx(ORIGIN)
    assert library.fit is not None
    said = capsys.readouterr().out
    fit = library.fit
    assert f"resolution {library.resolution:.2f} Å" in said
    assert f"B-factor {fit.b_factor:.0f} ± {fit.b_factor_se:.0f} Å^2 (Guinier plot from 9.6" in said
    table = pd.read_csv(here / "g.csv")
    assert table["weighted"].to_numpy() == pytest.approx(library.plot.weighted.numpy(), abs=1e-6, nan_ok=True)
    assert int(table["fitted"].notna().sum()) == fit.last_shell - fit.first_shell + 1
    slope = table["fitted"].diff() / table["inverse_square"].diff()
    assert 4 * slope.median() == pytest.approx(fit.b_factor, rel=1e-3)
    assert (here / "g.png").stat().st_size > 10_000


def test_a_chosen_b_factor_is_applied(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sharpen", *HALVES, "-o", "sharp.mrc", "--b-factor=-75") == 0
    assert torch.equal(read_map(here / "sharp.mrc").data, expected(here, b_factor=-75.0).volume)
    assert "B-factor -75 Å^2, not fitted" in capsys.readouterr().out


def test_a_fit_that_cannot_be_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sharpen", *HALVES, "-o", "sharp.mrc", "--resolution", 9.5) == 0
    said = capsys.readouterr().out
    assert "R28 info: no B-factor was fitted and none applied: 1 shells lie between 10 and 9.50 Å" in said
    assert "sharpened by 0 Å^2" in said


def test_local_resolution_writes_what_the_library_makes(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(
            "local-resolution", *HALVES, "-o", "local.mrc", "--filtered-map", "filtered.mrc", "--plot",
            "l.png",
        )
        == 0
    )  # fmt: skip
    a, b, mask = (read_map(here / name).data for name in ("half_a.mrc", "half_b.mrc", "mask.mrc"))
    library = expected(here)
    width = WIDTH_PER_RESOLUTION * library.resolution
    found = local_resolution(a, b, mask, pixel_size=PIXEL, window_width=width)
    assert torch.equal(read_map(here / "local.mrc").data, found.resolution)
    boosted = apply_b_factor(
        0.5 * (a + b), library.b_factor, resolution=float(found.resolution.min()), pixel_size=PIXEL
    )
    filtered = filter_locally(boosted, found.resolution, pixel_size=PIXEL)
    assert torch.equal(read_map(here / "filtered.mrc").data, filtered)
    said = capsys.readouterr().out
    assert f"{found.windows} windows, {width:.1f} Å wide" in said
    assert f"median {found.shares(mask)[1]:.2f} Å" in said
    assert (here / "l.png").stat().st_size > 10_000
    script = (here / "local.cxc").read_text(encoding="utf-8").splitlines()
    assert script[:2] == ['open "filtered.mrc" id 1', 'open "local.mrc" id 2']
    (line,) = [line for line in script if line.startswith("color sample #1 map #2 palette ")]
    ends = [float(value) for value in re.findall(r"([\d.]+),#", line)]
    assert ends == sorted(ends)
    assert ends[0] >= 2 * PIXEL
    assert ends[-1] <= found.floor + 0.01
    # `key true` of the colouring commands is for the interactive window, says ChimeraX's User Guide
    (key,) = [line for line in script if line.startswith("key ")]
    assert [float(value) for value in re.findall(r"#\w{6}:([\d.]+)", key)] == [round(end, 1) for end in ends]


def test_a_threshold_within_the_noise_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("local-resolution", *HALVES, "-o", "l.mrc", "--threshold", 0.143, "--window", "9px") == 0
    assert "R29 warning: the FSC of noise in one window of 16 Å scatters" in capsys.readouterr().out
    assert 'open "half_a.mrc" id 1' in (here / "l.cxc").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("sharpen", "half_a.mrc", "half_a.mrc", "--mask", "mask.mrc", "-o", "s.mrc"), "both half maps are"),
        (("sharpen", *HALVES, "-o", "mask.mrc"), r"^mask\.mrc is named twice"),
        (("sharpen", *HALVES, "-o", "s.mrc", "--plot", "s.txt"), r"^--plot s\.txt: the name must end"),
        (("sharpen", *HALVES, "-o", "s.mrc", "--b-factor", "1e5"), "^--b-factor 100000: must be from -5000"),
        (("sharpen", *HALVES, "-o", "s.mrc", "--fit-from", 0), "^--fit-from 0: must be above 0 Å"),
        (("sharpen", *HALVES, "-o", "s.mrc", "--resolution", 2), r"^--resolution 2: must be from 3\.6 Å"),
        (("local-resolution", *HALVES, "-o", "l.mrc", "--threshold", 1.5), r"^--threshold 1\.5: must lie"),
        (("local-resolution", *HALVES, "-o", "l.mrc", "--window", "5px"), "too few for an FSC; give 14.4 Å"),
        (("local-resolution", *HALVES, "-o", "l.mrc", "--window", "5q"), "^--window: '5q' is not a length"),
        (
            ("local-resolution", *HALVES, "-o", "l.mrc", "--window", 5000),
            "^--window 5000: wider than the box",
        ),
        (("local-resolution", *HALVES, "-o", "l.mrc", "--step", 0), "^--step 0: must be above 0 Å"),
        (("local-resolution", *HALVES, "-o", "l.cxc"), r"^l\.cxc is named twice"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    command: tuple[object, ...], message: str, here: Path
) -> None:
    before = sorted(here.iterdir())
    with pytest.raises(ValueError, match=message):
        run(*command)
    assert sorted(here.iterdir()) == before
