"""Resampling, boxes and the hand against closed forms. Against RELION: test_relion_volume.py."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cryosweep.volume import Grid, flip_hand, resample, resize_box


def waves(grid: Grid, period: float, *, shells: int, seed: int = 5) -> torch.Tensor:
    """A sum of 20 plane waves of the box `period` (Å) in shells up to `shells`, at the voxels of `grid`."""
    generator = torch.Generator().manual_seed(seed)
    k = torch.randint(-shells, shells + 1, (20, 3), generator=generator).double()
    phase = 2 * math.pi * torch.rand(20, generator=generator, dtype=torch.float64)
    x, y, z = (
        start + grid.pixel_size * torch.arange(grid.box_size, dtype=torch.float64) for start in grid.origin
    )
    turns = k[:, 0, None, None, None] * x + k[:, 1, None, None, None] * y[:, None]
    turns = (turns + k[:, 2, None, None, None] * z[:, None, None]) / period
    return torch.cos(2 * math.pi * turns + phase[:, None, None, None]).sum(dim=0)


SOURCES = {"even": Grid(24, 2.0, (-7.0, 3.0, 11.0)), "odd": Grid(23, 2.0, (-7.0, 3.0, 11.0))}


@pytest.mark.parametrize("box", SOURCES)
@pytest.mark.parametrize(
    ("box_size", "pixel_size", "start"),
    [
        (16, 3.0, (0.0, 0.0, 0.0)),
        (17, 2.6, (0.4, 0.9, 0.2)),
        (30, 1.1, (5.3, 0.0, 7.7)),
        (9, 2.0, (4.0, 6.0, 2.0)),
    ],
)
def test_a_band_limited_map_is_resampled_exactly(
    box: str, box_size: int, pixel_size: float, start: tuple[float, float, float]
) -> None:
    """Every voxel of the target holds the value of the waves at its place in space, origins honoured."""
    source = SOURCES[box]
    period = source.box_size * source.pixel_size
    x, y, z = (offset + first for offset, first in zip(start, source.origin, strict=True))
    target = Grid(box_size, pixel_size, (x, y, z))
    shells = (
        7  # below both Nyquist limits: 12 (11.5) of the source, 24 x 2 / (2 x 3) = 8 of the coarsest target
    )
    made = resample(waves(source, period, shells=shells), source, target)
    expected = waves(target, period, shells=shells)
    inside = torch.ones_like(expected, dtype=torch.bool)
    for axis, offset in zip((2, 1, 0), start, strict=True):
        place = (offset + pixel_size * torch.arange(box_size)) / source.pixel_size
        beyond = (place > source.box_size - 0.5).nonzero().flatten()
        inside.index_fill_(axis, beyond, False)
    # seen 2e-13; half a voxel wrong is an error of 1
    torch.testing.assert_close(made[inside], expected[inside], rtol=0, atol=1e-10)
    assert float(made[~inside].abs().sum()) == 0.0


def test_detail_finer_than_the_target_is_left_out_and_the_rest_untouched() -> None:
    source = Grid(24, 2.0, (0.0, 0.0, 0.0))
    x = torch.arange(24, dtype=torch.float64)
    coarse, fine = torch.cos(2 * math.pi * 5 * x / 24), torch.cos(2 * math.pi * 9 * x / 24)
    at_nyquist = torch.cos(2 * math.pi * 8 * x / 24)
    target = source.with_pixel_size(3.0)
    made = resample((coarse + fine + at_nyquist).expand(24, 24, 24), source, target)
    there = 1.5 * torch.arange(16, dtype=torch.float64)
    expected = torch.cos(2 * math.pi * 5 * there / 24).expand(16, 16, 16)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)


@given(
    st.sampled_from([10, 11]),
    st.tuples(*[st.integers(-6, 6)] * 3),
    st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None)
def test_whole_voxels_are_moved_as_they_are(size: int, move: tuple[int, int, int], seed: int) -> None:
    """Even a map of white noise, with all it has at Nyquist."""
    noise = torch.randn(size, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x, y, z = move
    made = resample(noise, Grid(size, 1.7, (0, 0, 0)), Grid(size, 1.7, (1.7 * x, 1.7 * y, 1.7 * z)))
    expected = torch.zeros_like(noise)
    for k, j, i in itertools.product(range(size), repeat=3):
        if 0 <= k + z < size and 0 <= j + y < size and 0 <= i + x < size:
            expected[k, j, i] = noise[k + z, j + y, i + x]
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("size", "box_size"), [(24, 16), (24, 31), (23, 16), (23, 32), (12, 12)])
def test_the_box_changes_about_its_centre_and_nothing_moves_in_space(size: int, box_size: int) -> None:
    grid = Grid(size, 1.5, (4.0, -2.0, 9.0))
    volume = torch.randn(size, size, size, generator=torch.Generator().manual_seed(1))
    made, target = resize_box(volume, grid, box_size)
    assert target.box_size == box_size
    assert made[(box_size // 2,) * 3] == volume[(size // 2,) * 3]
    # every voxel in both boxes holds the value of the voxel at the same place in Å
    shared = min(size, box_size) - 1
    for step in (-(shared // 2), 0, shared // 2):
        ours = [int(box_size // 2 + step)] * 3
        place = [start + index * 1.5 for start, index in zip(target.origin, ours, strict=True)]
        theirs = [round((x - start) / 1.5) for x, start in zip(place, grid.origin, strict=True)]
        assert place == pytest.approx([s + i * 1.5 for s, i in zip(grid.origin, theirs, strict=True)])
        assert made[tuple(ours)] == volume[tuple(theirs)]
    if box_size > size:
        assert float(made.double().sum()) == pytest.approx(float(volume.double().sum()))


def test_a_new_pixel_size_keeps_the_centre_in_its_place() -> None:
    grid = Grid(25, 2.0, (1.0, 2.0, 3.0))
    for pixel_size in (1.3, 2.0, 3.1):
        target = grid.with_pixel_size(pixel_size)
        assert target.box_size % 2 == 0
        assert abs(target.box_size * pixel_size - 50.0) <= pixel_size
        for ours, theirs in zip(target.origin, grid.origin, strict=True):
            assert ours + target.box_size // 2 * pixel_size == pytest.approx(theirs + 12 * 2.0)


@pytest.mark.parametrize("size", [10, 11])
def test_the_mirror_image_is_taken_about_the_centre(size: int) -> None:
    volume = torch.randn(size, size, size, generator=torch.Generator().manual_seed(2))
    mirrored = flip_hand(volume)
    centre = size // 2
    for x in range(-(centre - 1), centre):
        assert torch.equal(mirrored[..., centre + x], volume[..., centre - x])
    assert torch.equal(flip_hand(mirrored), volume)


def test_what_cannot_be_resampled_is_refused() -> None:
    grid = Grid(8, 2.0, (0.0, 0.0, 0.0))
    volume = torch.ones(8, 8, 8)
    with pytest.raises(
        ValueError, match=r"do not overlap: .* 0\.00, 0\.00, 0\.00 and 0\.00, 40\.00, 0\.00 Å"
    ):
        resample(volume, grid, Grid(8, 2.0, (0.0, 40.0, 0.0)))
    with pytest.raises(ValueError, match="does not lie on a grid of 9 px"):
        resample(volume, Grid(9, 2.0, (0.0, 0.0, 0.0)), grid)
    with pytest.raises(ValueError, match="pixel size of 0 Å"):
        grid.with_pixel_size(0.0)
    with pytest.raises(ValueError, match="grid of 0 px"):
        resize_box(volume, grid, 0)
