"""Filters, resampling, the hand and set logic against the programs of RELION 3.1.3."""

from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from torch import Tensor

from cryosweep.fourier import frequency_radius, high_pass, low_pass, multiply_spectrum
from cryosweep.mask import difference, dilate, intersection, inverted, soft_edge, spherical_mask, union
from cryosweep.volume import Grid, flip_hand, resample, resize_box

pytestmark = pytest.mark.relion

BOX_SIZE = 48
PIXEL_SIZE = 3.0
GRID = Grid(BOX_SIZE, PIXEL_SIZE, (0.0, 0.0, 0.0))
Relion = Callable[..., str]
Record = Callable[[str, object], None]


def write(path: Path, volume: Tensor) -> None:
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(volume.numpy().astype(np.float32))
        file.voxel_size = PIXEL_SIZE


def read(path: Path) -> Tensor:
    return torch.from_numpy(np.array(mrcfile.read(path)))


def noise() -> Tensor:
    return torch.randn(BOX_SIZE, BOX_SIZE, BOX_SIZE, generator=torch.Generator().manual_seed(4))


def handled(relion: Relion, folder: Path, volume: Tensor, *options: str | float) -> Tensor:
    """What `relion_image_handler` makes of a map."""
    write(folder / "in.mrc", volume)
    relion("relion_image_handler", "--i", "in.mrc", "--o", "out.mrc", "--angpix", PIXEL_SIZE, *options)
    return read(folder / "out.mrc")


def differ(ours: Tensor, theirs: Tensor, record: Record) -> float:
    """Worst difference of two maps as a share of the standard deviation of RELION's."""
    assert ours.shape == theirs.shape
    worst = float((ours - theirs).abs().max() / theirs.std())
    record("worst_difference", worst)
    return worst


@pytest.mark.parametrize("shell", [5, 7, 16])
def test_filters_are_those_of_relion(
    shell: int, relion: Relion, tmp_path: Path, record_property: Record
) -> None:
    resolution = BOX_SIZE * PIXEL_SIZE / shell
    volume = noise()
    theirs = handled(relion, tmp_path, volume, "--lowpass", resolution)
    ours = low_pass(volume, resolution=resolution, pixel_size=PIXEL_SIZE, edge="centred")
    assert differ(ours, theirs, record_property) < 2e-5  # an edge outside the shell errs by 0.5
    theirs = handled(relion, tmp_path, volume, "--highpass", resolution)
    ours = high_pass(volume, resolution=resolution, pixel_size=PIXEL_SIZE)
    assert differ(ours, theirs, record_property) < 2e-5


@pytest.mark.parametrize(("pixel_size", "box_size"), [(4.5, 32), (2.0, 72), (3.6, 40)])
def test_a_new_pixel_size_is_that_of_relion(
    pixel_size: float, box_size: int, relion: Relion, tmp_path: Path, record_property: Record
) -> None:
    radius = frequency_radius(BOX_SIZE, dims=3, dtype=torch.float32, device="cpu")
    volume = multiply_spectrum(noise(), (radius < 15.0).float())  # below Nyquist of either grid
    theirs = handled(relion, tmp_path, volume, "--rescale_angpix", pixel_size)
    target = GRID.with_pixel_size(pixel_size)
    assert target.box_size == box_size
    assert differ(resample(volume, GRID, target), theirs, record_property) < 2e-5


@pytest.mark.parametrize("box_size", [36, 60])
def test_a_new_box_is_that_of_relion(box_size: int, relion: Relion, tmp_path: Path) -> None:
    volume = noise()
    theirs = handled(relion, tmp_path, volume, "--new_box", box_size)
    ours, _ = resize_box(volume, GRID, box_size)
    inner = ours if box_size < BOX_SIZE else resize_box(ours, GRID.about_centre(
        box_size=box_size, pixel_size=PIXEL_SIZE), BOX_SIZE)[0]  # fmt: skip
    theirs_inner = theirs if box_size < BOX_SIZE else theirs[6:54, 6:54, 6:54]
    assert torch.equal(inner, theirs_inner)


def test_the_mirror_image_is_that_of_relion(relion: Relion, tmp_path: Path) -> None:
    volume = noise()
    assert torch.equal(flip_hand(volume), handled(relion, tmp_path, volume, "--invert_hand"))


@pytest.mark.parametrize("flag", ["--and", "--or", "--and_not"])
def test_set_logic_and_inversion_are_those_of_relion_mask_create(
    flag: str, relion: Relion, tmp_path: Path, record_property: Record
) -> None:
    first = spherical_mask(BOX_SIZE, outer_px=15, inner_px=3, centre_px=(4, -3, 2))
    second = spherical_mask(BOX_SIZE, outer_px=13, inner_px=2, centre_px=(-4, 5, 1))
    for name, volume in (("first", first), ("second", second)):
        write(tmp_path / f"{name}.mrc", volume)
    common = ("--i", "first.mrc", flag, "second.mrc", "--angpix", PIXEL_SIZE, "--ini_threshold", 0.3)
    masks = {}
    for name, options in (("plain", ()), ("inverted", ("--invert",))):
        relion(
            "relion_mask_create", *common, "--extend_inimask", 2, "--width_soft_edge", 5, *options,
            "--o", f"{name}.mrc",
        )  # fmt: skip
        masks[name] = read(tmp_path / f"{name}.mrc")
    combine = {"--and": intersection, "--or": union, "--and_not": difference}[flag]
    region = combine((first > 0.3).float(), (second > 0.3).float()) > 0.5
    ours = soft_edge(dilate(region, 2.0), 5.0)
    assert 0.005 < float(ours.mean()) < 0.5
    assert differ(ours, masks["plain"], record_property) < 1e-5
    assert differ(inverted(ours), masks["inverted"], record_property) < 1e-5
