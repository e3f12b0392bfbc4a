"""Masks against brute force, closed forms and properties. Against RELION: test_relion_mask_fsc.py."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cryosweep.mask import (
    centre_of_mass,
    density_outside,
    dilate,
    erode,
    mask_radius_px,
    measured_padding_px,
    minimum_soft_padding,
    soft_edge,
    soft_mask,
    spherical_mask,
    threshold_of,
)


def blob(box_size: int, *, seed: int = 3) -> torch.Tensor:
    """An off-centre, lopsided region: three bars of unlike lengths that meet near a corner, and one stray."""
    region = torch.zeros(box_size, box_size, box_size, dtype=torch.bool)
    region[2:4, 3, 2:7] = True
    region[3, 2:6, 3] = True
    region[3:9, 3, 4] = True
    stray = torch.randint(1, box_size - 1, (3,), generator=torch.Generator().manual_seed(seed)).tolist()
    region[tuple(stray)] = True
    return region


def brute_distance(region: torch.Tensor) -> torch.Tensor:
    """Distance of every voxel to the nearest voxel of `region`, from all pairs."""
    everywhere = torch.nonzero(torch.ones_like(region)).double()
    inside = torch.nonzero(region).double()
    return torch.cdist(everywhere, inside).min(dim=1).values.reshape(region.shape)


regions = st.builds(
    lambda box, seed: blob(box, seed=seed), st.integers(min_value=10, max_value=13), st.integers(0, 10_000)
)
lengths = st.floats(min_value=0.0, max_value=8.0)


@pytest.mark.parametrize("box_size", [11, 12])
@pytest.mark.parametrize("radius", [0.0, 1.0, 1.001, 1.5, 2.0, 3.7])
def test_dilation_keeps_voxels_strictly_nearer_than_the_radius(box_size: int, radius: float) -> None:
    region = blob(box_size)
    expected = region | (brute_distance(region) < radius)
    assert torch.equal(dilate(region, radius), expected)


def test_dilation_of_one_voxel_by_hand() -> None:
    region = torch.zeros(7, 7, 7, dtype=torch.bool)
    region[2, 3, 4] = True
    counts = [int(dilate(region, radius).sum()) for radius in (0, 1, 1.4, math.sqrt(2), 1.5, math.sqrt(3), 2)]
    assert counts == [1, 1, 7, 7, 19, 19, 27]


@pytest.mark.parametrize("box_size", [11, 12])
@pytest.mark.parametrize("width", [0.0, 1.0, 2.5, 6.0, 40.0])
def test_soft_edge_is_a_raised_cosine_of_the_distance(box_size: int, width: float) -> None:
    region = blob(box_size)
    distance = brute_distance(region)
    edge = torch.where(distance < width, 0.5 + 0.5 * torch.cos(math.pi * distance / max(width, 1e-9)), 0.0)
    expected = torch.where(region, 1.0, edge)
    # worst seen 4e-16; measuring from the wrong set or a missing square root errs by 0.1 and more
    torch.testing.assert_close(soft_edge(region, width, dtype=torch.float64), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_soft_mask_measures_its_edge_from_the_dilated_region(dtype: torch.dtype) -> None:
    base = torch.zeros(15, 15, 15, dtype=dtype)
    base[7, 7, 7] = 2.0
    mask = soft_mask(base, threshold=1.0, dilation_radius_px=2.5, soft_padding_width_px=4.0)
    assert mask.dtype == dtype
    # the dilated set ends at x = 9; from it, not from the voxel, x = 10, 11 and 12 lie 1, 2 and 3 px away
    cosines = [0.5 + 0.5 * math.cos(math.pi * distance / 4) for distance in (1, 2, 3)]
    expected = torch.tensor([1.0, 1.0, 1.0, *cosines, 0.0, 0.0], dtype=dtype)
    torch.testing.assert_close(mask[7, 7, 7:], expected, rtol=0, atol=1e-7)


def test_threshold_is_strict_and_base_untouched() -> None:
    base = torch.zeros(8, 8, 8)
    base[2, 3, 4], base[5, 5, 5] = 1.0, 1.5
    before = base.clone()
    mask = soft_mask(base, threshold=1.0, dilation_radius_px=0, soft_padding_width_px=0)
    assert torch.equal(torch.nonzero(mask), torch.tensor([[5, 5, 5]]))
    assert torch.equal(base, before)


def test_nothing_wraps_around_the_box() -> None:
    base = torch.zeros(12, 12, 12)
    base[0, 5, 5] = 1.0
    mask = soft_mask(base, threshold=0.5, dilation_radius_px=2, soft_padding_width_px=3)
    assert float(mask[-4:].max()) == 0.0


@given(regions, lengths, lengths)
@settings(max_examples=40, deadline=None)
def test_dilation_grows_with_its_radius(region: torch.Tensor, first: float, second: float) -> None:
    small, large = sorted((first, second))
    inner, outer = dilate(region, small), dilate(region, large)
    assert not (region & ~inner).any()
    assert not (inner & ~outer).any()
    assert torch.equal(dilate(region, 0.0), dilate(region, 1.0))


@given(regions, lengths, lengths)
@settings(max_examples=40, deadline=None)
def test_soft_edge_lies_between_0_and_1_and_grows_with_its_width(
    region: torch.Tensor, first: float, second: float
) -> None:
    narrow, wide = (soft_edge(region, width, dtype=torch.float64) for width in sorted((first, second)))
    for mask in (narrow, wide):
        assert float(mask.min()) >= 0.0
        assert float(mask.max()) == 1.0
        assert bool((mask[region] == 1.0).all())
    assert bool((wide - narrow >= -1e-12).all())
    assert bool((narrow[~dilate(region, max(first, second))] == 0).all())


@given(regions, st.floats(min_value=0.0, max_value=4.0))
@settings(max_examples=30, deadline=None)
def test_erosion_undoes_no_more_than_dilation_did(region: torch.Tensor, radius: float) -> None:
    assert not (erode(region, radius) & ~region).any()
    assert not (region & ~erode(dilate(region, radius), radius)).any()


@given(regions, st.permutations([0, 1, 2]))
@settings(max_examples=20, deadline=None)
def test_axes_are_alike(region: torch.Tensor, axes: list[int]) -> None:
    turned = soft_edge(dilate(region.permute(*axes), 1.7), 3.3)
    assert torch.equal(turned, soft_edge(dilate(region, 1.7), 3.3).permute(*axes))


def test_erosion_of_a_slab() -> None:
    region = torch.zeros(12, 12, 12, dtype=torch.bool)
    region[3:9] = True
    assert torch.equal(torch.nonzero(erode(region, 2.5)[:, 6, 6]).flatten(), torch.tensor([5, 6]))


@pytest.mark.parametrize(
    ("threshold", "radius", "width", "message"),
    [
        (5.0, 0, 0, r"above the threshold 5 \(its maximum is 1\); lower"),
        (-1.0, 0, 0, r"above the threshold -1 \(its minimum is 0\); raise"),
        (0.5, 99, 0, r"dilated by 99 px the mask fills the whole box"),
        (0.5, -1, 0, r"dilation radius of -1 px"),
        (0.5, 0, -2, r"soft padding width of -2 px"),
        (0.5, math.nan, 0, r"dilation radius of nan px"),
    ],
)
def test_impossible_masks_are_refused(threshold: float, radius: float, width: float, message: str) -> None:
    base = torch.zeros(8, 8, 8)
    base[4, 4, 3] = 1.0
    with pytest.raises(ValueError, match=message):
        soft_mask(base, threshold=threshold, dilation_radius_px=radius, soft_padding_width_px=width)


def test_soft_edge_of_an_empty_or_full_region() -> None:
    empty = torch.zeros(6, 6, 6, dtype=torch.bool)
    assert float(soft_edge(empty, 3.0).max()) == 0.0
    assert float(soft_edge(~empty, 3.0).min()) == 1.0


def test_threshold_units() -> None:
    base = torch.arange(1000.0).reshape(10, 10, 10)
    assert threshold_of(base, 0.02, unit="absolute") == 0.02
    # the 99.9 percentile of 0 ... 999 lies at 0.999 * 999
    assert threshold_of(base, 0.5, unit="fraction") == pytest.approx(0.5 * 0.999 * 999, rel=1e-6)
    with pytest.raises(ValueError, match="must be above 0"):
        threshold_of(base, 0.0, unit="fraction")
    with pytest.raises(ValueError, match="needs positive density"):
        threshold_of(-base, 0.5, unit="fraction")
    with pytest.raises(ValueError, match="unit 'sigma' is not known"):
        threshold_of(base, 0.5, unit="sigma")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("box_size", [24, 25])
def test_spherical_mask_follows_the_radius_about_its_centre(box_size: int) -> None:
    centre = (2.0, -3.0, 1.0)
    mask = spherical_mask(box_size, outer_px=8.0, inner_px=4.0, centre_px=centre, dtype=torch.float64)
    middle = box_size // 2
    along_x = mask[middle + 1, middle - 3, middle + 2 :][:10]  # (z, y, x): starts at the sphere's centre
    cosines = [0.5 + 0.5 * math.cos(math.pi * (radius - 4) / 4) for radius in (5, 6, 7)]
    expected = torch.tensor([1, 1, 1, 1, 1, *cosines, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(along_x, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        centre_of_mass(mask), torch.tensor(centre, dtype=torch.float64), rtol=0, atol=1e-9
    )
    # at a distance of 7 px and more but below 8 the value is at least 0.01 up to 7.74 px
    assert 7.0 <= mask_radius_px(mask, centre) <= 7.75
    hard = spherical_mask(box_size, outer_px=3.0, inner_px=3.0)
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    with pytest.raises(ValueError, match="0 <= inner <= outer"):
        spherical_mask(box_size, outer_px=3.0, inner_px=4.0)


@pytest.mark.parametrize("box_size", [10, 11])
def test_centre_of_mass_and_radius_of_two_voxels(box_size: int) -> None:
    mask = torch.zeros(box_size, box_size, box_size)
    middle = box_size // 2
    mask[middle + 1, middle - 2, middle + 3] = 1.0
    mask[middle + 1, middle - 2, middle - 1] = 0.5
    expected = torch.tensor([(3.0 - 0.5) / 1.5, -2.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(centre_of_mass(mask), expected)
    assert mask_radius_px(mask, torch.tensor([3.0, -2.0, 1.0])) == pytest.approx(4.0)
    assert mask_radius_px(mask, (0.0, 0.0, 0.0)) == pytest.approx(math.sqrt(14))
    with pytest.raises(ValueError, match="no centre of mass"):
        centre_of_mass(torch.zeros(4, 4, 4))
    with pytest.raises(ValueError, match="no radius"):
        mask_radius_px(torch.zeros(4, 4, 4), (0.0, 0.0, 0.0))


def test_minimum_soft_padding_is_in_whole_pixels() -> None:
    assert minimum_soft_padding(3.0, 1.0) == 15.0
    assert minimum_soft_padding(2.8, 1.4) == pytest.approx(10 * 1.4)  # not 11 px through rounding
    assert minimum_soft_padding(4.0, 1.4) == pytest.approx(15 * 1.4)
    with pytest.raises(ValueError, match="above 0"):
        minimum_soft_padding(0.0, 1.4)


@pytest.mark.parametrize("width", [4.0, 7.0, 12.0])
def test_measured_padding_is_that_of_the_recipe(width: float) -> None:
    ball = spherical_mask(64, outer_px=12.0, inner_px=12.0)
    assert measured_padding_px(soft_edge(ball > 0.5, width)) == pytest.approx(width, abs=1.0)


def test_measured_padding_of_a_hard_and_of_an_empty_mask_is_none() -> None:
    assert measured_padding_px(spherical_mask(24, outer_px=6.0, inner_px=6.0)) == 0.0
    assert measured_padding_px(torch.zeros(8, 8, 8)) == 0.0


def test_density_outside_tells_a_mask_that_cuts_from_one_that_does_not() -> None:
    """A ball of one density on a background of another: the mask that ends inside it cuts all of it."""
    volume = 3.0 + 2.0 * spherical_mask(48, outer_px=14.0, inner_px=14.0)
    inside = spherical_mask(48, outer_px=8.0, inner_px=8.0)
    around = spherical_mask(48, outer_px=18.0, inner_px=14.0)
    assert density_outside(volume, around) == pytest.approx(0.0, abs=1e-6)
    assert density_outside(volume, inside) > 0.9
    assert density_outside(volume, torch.ones_like(volume)) == 0.0
