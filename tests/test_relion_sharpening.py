"""B-factor, sharpened map and local resolution against `relion_postprocess` of RELION 3.1.3; boxes of 64."""

from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
import torch
from torch import Tensor

from cryosweep.fourier import frequency_radius, multiply_spectrum, pad_centre
from cryosweep.io import write_map
from cryosweep.local_resolution import local_resolution, soft_window, windowed_fsc
from cryosweep.mask import soft_edge, spherical_mask
from cryosweep.reconstruction import HalfMaps
from cryosweep.resolution import crossing, relion_resolution
from cryosweep.sharpening import GuinierPlot, fit_guinier, guinier_plot, radial_amplitude, sharpen

pytestmark = pytest.mark.relion

BOX, PIXEL, TRUE_B = 64, 1.5, 150.0


def read(path: Path) -> Tensor:
    return torch.from_numpy(np.array(mrcfile.read(path)))


def say(line: str) -> None:
    """The figure beside its test in the log (`pytest -rA`)."""
    print(line)  # noqa: T201


def faded(b_factor: float, pixel_size: float, generator: torch.Generator) -> Tensor:
    radius = frequency_radius(BOX, dims=3, dtype=torch.float32, device="cpu") / (BOX * pixel_size)
    white = torch.randn((BOX,) * 3, generator=generator)
    return multiply_spectrum(white, torch.exp(-0.25 * b_factor * radius.square()))


class Halves:
    """Halves of a known fall-off in a noisy box, their mask, and what `relion_postprocess` makes of them."""

    def __init__(self, relion: Callable[..., str], folder: Path) -> None:
        self._relion, self._folder = relion, folder
        generator = torch.Generator().manual_seed(7)
        ball = spherical_mask(BOX, outer_px=16, inner_px=16, centre_px=(4, -2, 1)) > 0.5
        self.mask = soft_edge(ball, 6.0)
        signal = soft_edge(ball, 3.0) * faded(TRUE_B, PIXEL, generator)
        a, b = (signal + 0.5 * torch.randn((BOX,) * 3, generator=generator) for _ in range(2))
        self.maps = HalfMaps(a, b, PIXEL)
        for name, volume in (("a", a), ("b", b), ("mask", self.mask)):
            write_map(folder / f"{name}.mrc", volume, pixel_size=PIXEL)

    def run(self, *options: str | float) -> tuple[dict[str, object], Tensor, Tensor]:
        """General block, Guinier table (n_shells, columns) and corrected FSC."""
        self._relion(
            "relion_postprocess", "--i", "a.mrc", "--i2", "b.mrc", "--mask", "mask.mrc", "--angpix", PIXEL,
            "--o", "./post", "--random_seed", 1, *options,
        )  # fmt: skip
        blocks = starfile.read(self._folder / "post.star", always_dict=True)
        curve = blocks["fsc"]["rlnFourierShellCorrelationCorrected"].to_numpy(dtype=np.float64, copy=True)
        guinier = blocks["guinier"].to_numpy(dtype=np.float64, copy=True)
        return dict(blocks["general"]), torch.from_numpy(guinier), torch.from_numpy(curve)


@pytest.fixture
def halves(relion: Callable[..., str], tmp_path: Path) -> Halves:
    return Halves(relion, tmp_path)


def test_guinier_plot_and_b_factor_are_those_of_relion_postprocess(
    halves: Halves, record_property: Callable[[str, object], None]
) -> None:
    general, table, curve = halves.run("--auto_bfac")
    a, b = halves.maps.pair
    raw = radial_amplitude(0.5 * (a + b)).log()
    assert float((raw - table[:, 1]).abs().max()) < 1e-5
    plot = guinier_plot(halves.maps, halves.mask, curve)
    weighted = plot.weighted - plot.raw + raw
    # from the first shell without correlation on RELION has no weighted amplitudes
    known = torch.arange(curve.numel()) < int((curve < 1e-4).int().argmax())
    assert 20 < int(known.sum()) < curve.numel()
    assert float((weighted - table[:, 2])[known].abs().max()) < 1e-4

    # RELION fits with equal weights, from 10 Å to Nyquist, amplitudes of the whole box
    theirs = float(str(general["rlnBfactorUsedForSharpening"]))
    whole_box = GuinierPlot(plot.inverse_square, raw, torch.where(known, weighted, torch.nan), plot.variance)
    ours = fit_guinier(whole_box, low_resolution=10.0, high_resolution=2 * PIXEL, equal_weights=True)
    record_property("b_factor_relion", theirs)
    record_property("b_factor_its_way", ours.b_factor)
    assert ours.b_factor == pytest.approx(theirs, rel=1e-4)
    assert ours.intercept == pytest.approx(float(str(general["rlnFittedInterceptGuinierPlot"])), rel=1e-4)

    # where the box is noisy, only amplitudes under the mask give the B-factor that is there
    found = sharpen(halves.maps, halves.mask, curve).fit
    assert found is not None
    record_property("b_factor_ours", found.b_factor)
    record_property("b_factor_ours_error", found.b_factor_se)
    say(f"B true {-TRUE_B:g}, RELION {theirs:.1f}, ours {found.b_factor:.1f} +- {found.b_factor_se:.1f} Å^2")
    assert abs(found.b_factor + TRUE_B) < 3 * found.b_factor_se
    assert theirs > -0.8 * TRUE_B


@pytest.mark.parametrize("mode", ["auto", "adhoc"])
def test_sharpened_map_is_that_of_relion_postprocess(
    mode: str, halves: Halves, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    options: tuple[str | float, ...] = ("--auto_bfac",) if mode == "auto" else ("--adhoc_bfac", -150)
    general, _, curve = halves.run(*options, "--low_pass", -1)
    resolution = relion_resolution(curve, box_size=BOX, pixel_size=PIXEL)
    assert resolution == pytest.approx(float(str(general["rlnFinalResolution"])), abs=1e-5)
    # RELION's edge of two shells lies astride the shell of the resolution, ours beyond it: one shell apart
    cut = round(BOX * PIXEL / resolution)
    one_before = BOX * PIXEL / (cut - 1)
    b_factor = float(str(general["rlnBfactorUsedForSharpening"]))
    ours = sharpen(halves.maps, halves.mask, curve, b_factor=b_factor, resolution=one_before).volume
    theirs = read(tmp_path / "post.mrc")
    correlation = float(torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1])
    ratio = radial_amplitude(ours)[: cut + 1] / radial_amplitude(theirs)[: cut + 1]
    record_property("correlation", correlation)
    record_property("worst_amplitude_ratio", float((ratio - 1).abs().max()))
    say(f"sharpened by {b_factor:.0f} Å^2: correlation with RELION {correlation:.6f}")
    assert correlation > 0.9999
    assert float((ratio - 1).abs().max()) < 1e-3


def test_local_resolution_is_that_of_relion_postprocess(
    relion: Callable[..., str], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    pixel_size, sampling = 2.5, 25.0
    generator = torch.Generator().manual_seed(1)
    below = torch.sigmoid(-(torch.arange(BOX) - BOX // 2).float() / 3)[:, None, None]
    # 0.5 at 8 Å and at 14 Å
    signal = 3.0 * (
        below * faded(300.0, pixel_size, generator) + (1 - below) * faded(900.0, pixel_size, generator)
    )
    a, b = (signal + torch.randn((BOX,) * 3, generator=generator) for _ in range(2))
    for name, volume in (("a", a), ("b", b)):
        write_map(tmp_path / f"{name}.mrc", volume, pixel_size=pixel_size)
    relion(
        "relion_postprocess", "--i", "a.mrc", "--i2", "b.mrc", "--angpix", pixel_size, "--o", "./local",
        "--locres", "--locres_sampling", sampling, "--locres_minres", 25, "--random_seed", 1,
    )  # fmt: skip

    # Every window: the curve of RELION, which transforms the whole box, to all the digits it writes. It names
    # windows by z, y, x and puts them at x, y, z, and it writes lines into the table that are not STAR.
    text = (tmp_path / "local_locres_fscs.star").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "curves.star").write_text("".join(line for line in text if not line.startswith(" kk=")))
    blocks = starfile.read(tmp_path / "curves.star", always_dict=True)
    centres = torch.tensor([[int(part) for part in name.split("_")[:0:-1]] for name in blocks]) + BOX // 2
    theirs = torch.stack(
        [
            torch.from_numpy(block["rlnFourierShellCorrelationMaskedMaps"].to_numpy(np.float64, copy=True))
            for block in blocks.values()
        ]
    )
    window = soft_window(2 * sampling, pixel_size=pixel_size)
    ours = windowed_fsc(a, b, centres, pad_centre(window, BOX, dims=3))
    worst = float((ours - theirs)[:, 1:].abs().max())
    record_property("windows", len(blocks))
    record_property("worst_curve_difference", worst)
    say(f"FSC in {len(blocks)} windows: worst difference to RELION {worst:.1e}")
    assert len(blocks) > 50
    assert worst < 2e-5

    # in the cube of its own, which is half the box, the crossing is that of the whole box but for its shells
    small = windowed_fsc(a, b, centres, window)
    for threshold in (0.143, 0.5):
        in_box = [crossing(c, threshold, box_size=BOX, pixel_size=pixel_size) for c in theirs]
        in_cube = [crossing(c, threshold, box_size=window.shape[-1], pixel_size=pixel_size) for c in small]
        both = np.array([in_cube, in_box])
        # coarser ones ended in shells of a few coefficients
        told = both[:, (both < 25.0).all(axis=0)]
        assert told.shape[1] > 60
        assert bool((told > 2.1 * pixel_size).all())
        ratio = float(np.median(told[0] / told[1]))
        record_property(f"median_ratio_{threshold:g}", ratio)
        assert 0.95 < ratio < 1.05

    # The maps. RELION reports the shell before the crossing, averages windows and takes off a random draw.
    map_of_theirs = read(tmp_path / "local_locres.mrc")
    found = local_resolution(
        a, b, torch.ones_like(a), pixel_size=pixel_size, window_width=2 * sampling, threshold=0.143,
        step=sampling,
    ).resolution  # fmt: skip
    inner = spherical_mask(BOX, outer_px=20, inner_px=20) > 0.5
    assert bool((map_of_theirs[inner] > 0).all())
    difference = (found - map_of_theirs)[inner]
    ratio = float((found / map_of_theirs)[inner].median())
    same = float(torch.corrcoef(torch.stack([1 / found[inner], 1 / map_of_theirs[inner]]))[0, 1])
    record_property("median_difference_of_maps", float(difference.median()))
    record_property("median_ratio_of_maps", ratio)
    record_property("correlation_of_maps", same)
    say(f"local resolution: median difference {float(difference.median()):.2f} Å, correlation {same:.2f}")
    assert 0.85 < ratio < 1.05
    assert same > 0.8
