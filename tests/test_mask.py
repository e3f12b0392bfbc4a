"""Masks against brute force, closed forms and properties. Against RELION: test_relion_mask_fsc.py."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cryosweep import rules
from cryosweep.fourier import frequency_radius, gaussian_filter, low_pass, multiply_spectrum
from cryosweep.mask import (
    centre_of_mass,
    density_on_edge,
    difference,
    dilate,
    edge_width_px,
    erode,
    fill_holes,
    fine_power,
    intersection,
    inverted,
    mask_radius_px,
    minimum_soft_padding,
    power_outside,
    radius_of_share_px,
    soft_edge,
    soft_mask,
    spherical_mask,
    threshold_of,
    union,
)
from cryosweep.simulate import DOMAINS, domain_labels, load_ribosome, render_domain


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


def test_radius_of_a_share_of_a_ball():
    axis = torch.arange(64, dtype=torch.float64) - 32
    distance = (axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis**2).sqrt()
    ball = (distance <= 25.0).float()
    for share in (0.5, 0.9, 0.99):
        expected = 25.0 * share ** (1 / 3)
        assert radius_of_share_px(ball, (0.0, 0.0, 0.0), share) == pytest.approx(expected, abs=0.1)
    assert radius_of_share_px(ball, (0.0, 0.0, 0.0), 1.0) == mask_radius_px(ball, (0.0, 0.0, 0.0))
    soft = ball + 0.02 * ((distance > 25.0) & (distance <= 28.0))
    assert radius_of_share_px(soft, (0.0, 0.0, 0.0), 0.99) < 25.5 < mask_radius_px(soft, (0.0, 0.0, 0.0))


def test_minimum_soft_padding_is_in_whole_pixels() -> None:
    assert minimum_soft_padding(3.0, 1.0) == 15.0
    assert minimum_soft_padding(2.8, 1.4) == pytest.approx(10 * 1.4)  # not 11 px through rounding
    assert minimum_soft_padding(4.0, 1.4) == pytest.approx(15 * 1.4)
    with pytest.raises(ValueError, match="above 0"):
        minimum_soft_padding(0.0, 1.4)


# ---- holes and set logic ----


def flooded(region: torch.Tensor) -> torch.Tensor:
    """Voxels outside `region` that a walk from face to face reaches from beyond the box."""
    size = region.shape[0]
    reached = torch.zeros_like(region)
    todo = [
        place for place in torch.nonzero(~region).tolist() if any(index in (0, size - 1) for index in place)
    ]
    while todo:
        z, y, x = todo.pop()
        if reached[z, y, x]:
            continue
        reached[z, y, x] = True
        for axis in range(3):
            for step in (-1, 1):
                place = [z, y, x]
                place[axis] += step
                if 0 <= place[axis] < size and not region[tuple(place)]:
                    todo.append(place)
    return reached


@given(st.integers(0, 10_000), st.floats(min_value=0.3, max_value=0.8))
@settings(max_examples=25, deadline=None)
def test_holes_are_what_no_path_leads_to(seed: int, share: float) -> None:
    """At these shares a random region has holes of many shapes; at the middle ones channels too."""
    generator = torch.Generator().manual_seed(seed)
    region = torch.rand(9, 9, 9, generator=generator) < share
    assert torch.equal(fill_holes(region), ~flooded(region))


def test_a_wall_of_corners_holds_and_a_channel_does_not() -> None:
    region = torch.zeros(9, 9, 9, dtype=torch.bool)
    region[4, 4, 4] = True
    shell = dilate(region, 2.5) & ~dilate(region, 1.5)
    assert torch.equal(fill_holes(shell), dilate(region, 2.5))
    shell[:5, 4, 4] = False
    assert torch.equal(fill_holes(shell), shell)


def test_a_soft_mask_fills_holes_only_when_told() -> None:
    base = (spherical_mask(24, outer_px=8, inner_px=8) > spherical_mask(24, outer_px=4, inner_px=4)).float()
    made = {"threshold": 0.5, "dilation_radius_px": 2.0, "soft_padding_width_px": 3.0}
    hollow, filled = soft_mask(base, **made), soft_mask(base, **made, holes_filled=True)
    assert hollow[12, 12, 12] < 1.0
    solid = soft_mask(spherical_mask(24, outer_px=8, inner_px=8), **made)
    assert torch.equal(filled, solid)


@given(regions, regions, st.floats(min_value=0.5, max_value=6.0))
@settings(max_examples=25, deadline=None)
def test_set_logic_of_regions_is_that_of_booleans_and_union_that_of_their_soft_masks(
    first: torch.Tensor, second: torch.Tensor, width: float
) -> None:
    size = min(first.shape[0], second.shape[0])
    first, second = first[:size, :size, :size], second[:size, :size, :size].flip(0)
    a, b = first.double(), second.double()
    assert torch.equal(intersection(a, b) > 0.5, first & second)
    assert torch.equal(union(a, b) > 0.5, first | second)
    assert torch.equal(difference(a, b) > 0.5, first & ~second)
    assert torch.equal(inverted(a) > 0.5, ~first)
    soft = [soft_edge(region, width, dtype=torch.float64) for region in (first, second, first | second)]
    torch.testing.assert_close(union(soft[0], soft[1]), soft[2], rtol=0, atol=1e-12)
    # De Morgan, with soft edges too
    torch.testing.assert_close(
        intersection(soft[0], soft[1]), inverted(union(inverted(soft[0]), inverted(soft[1])))
    )


# ---- what a mask does to a map ----


@pytest.mark.parametrize("width", [4.0, 7.0, 8.0, 12.0, 17.0])
def test_the_width_of_an_edge_is_read_off_its_steepest_place(width: float) -> None:
    ball = spherical_mask(64, outer_px=9 + width, inner_px=9)
    assert width - 1.5 < edge_width_px(ball) <= width
    region = blob(12)
    padded = torch.nn.functional.pad(region, [26] * 6)
    assert width - 1.5 < edge_width_px(soft_edge(padded, width)) <= width
    hard = spherical_mask(64, outer_px=12.0, inner_px=12.0)
    assert width - 1.5 < edge_width_px(soft_edge(hard > 0.5, width)) <= width
    assert edge_width_px(ball.round()) == edge_width_px(hard) == edge_width_px(torch.zeros(8, 8, 8)) == 0.0
    assert edge_width_px(torch.full((8, 8, 8), 0.5)) == math.inf


def test_power_of_fine_detail_is_that_of_its_waves() -> None:
    """Two waves of power 9 and 1, and a constant, which counts for nothing."""
    for size in (24, 25):
        x = torch.arange(size, dtype=torch.float64) * (2 * math.pi / size)
        coarse, fine = 3 * torch.cos(4 * x)[:, None, None], torch.cos(6 * x)[:, None] * torch.ones(size)
        volume = 50 + coarse + fine
        for finer_than, share in ((size * 2 / 5, 0.1), (size * 2 / 3, 1.0), (size * 2 / 7, 0.0)):
            assert fine_power(volume, pixel_size=2.0, finer_than=finer_than) == pytest.approx(
                share, abs=1e-12
            )
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(24, 24, 24, generator=generator, dtype=torch.float64)
    kept = low_pass(noise, resolution=16.0, pixel_size=2.0) - noise.mean()
    radius = frequency_radius(24, dims=3, dtype=torch.float64, device="cpu")
    far = multiply_spectrum(noise, (radius <= 3.0).double())
    assert fine_power(noise, pixel_size=2.0, finer_than=1e-6) == 0.0
    assert fine_power(kept, pixel_size=2.0, finer_than=48 / 5.01) == pytest.approx(0.0, abs=1e-12)
    inside = far.var(correction=0) / noise.var(correction=0)  # Parseval
    measured = 1 - fine_power(noise, pixel_size=2.0, finer_than=48 / 3.0)
    assert measured == pytest.approx(float(inside), rel=1e-9)


def test_density_on_the_edge_and_outside_of_a_mask() -> None:
    density = torch.full((48, 48, 48), 2.0)
    inner = spherical_mask(48, outer_px=12, inner_px=8)
    assert density_on_edge(inner, density) == pytest.approx(1.0)
    assert power_outside(inner, density) == pytest.approx(1 - float(inner.double().square().mean()))
    ball = 2.0 * spherical_mask(48, outer_px=8, inner_px=8)
    assert density_on_edge(spherical_mask(48, outer_px=20, inner_px=11), ball) == 0.0
    assert power_outside(spherical_mask(48, outer_px=20, inner_px=11), ball) == 0.0
    # an edge of which half lies in density has 1 / sqrt(2) of its root mean square
    half = density.clone()
    half[:24] = 0.0
    assert density_on_edge(inner, half) == pytest.approx(1.0, rel=0.05)  # so has what is inside
    half[:24][inner[:24] >= 0.99] = 2.0
    assert density_on_edge(inner, half) == pytest.approx(math.sqrt(0.5), rel=0.05)
    assert density_on_edge(torch.ones(8, 8, 8), torch.ones(8, 8, 8)) == 0.0
    assert density_on_edge(inner, torch.zeros(48, 48, 48)) == 0.0
    # a hard edge within a ball of density, and a soft one around it
    inside = spherical_mask(48, outer_px=4, inner_px=4)
    assert density_on_edge(inside, ball) == pytest.approx(1.0)
    assert density_on_edge(spherical_mask(48, outer_px=12, inner_px=8), ball) < 0.05


def test_check_mask_measures_the_edge_and_judges_the_base() -> None:
    def check(mask: torch.Tensor, base: torch.Tensor | None = None, **more: Any) -> tuple[str, ...]:
        found = rules.check_mask(mask, pixel_size=2.0, resolution=6.0, base=base, **more)
        return tuple(map(str, found))

    ball = spherical_mask(64, outer_px=16, inner_px=8)
    wide, narrow = spherical_mask(64, outer_px=25, inner_px=9), spherical_mask(64, outer_px=15, inner_px=9)
    smooth = gaussian_filter(ball, sigma=3.4, pixel_size=2.0)
    assert check(wide) == check(wide, smooth) == ()
    (steep,) = check(narrow)
    assert "as steep as a soft padding of" in steep
    assert steep.startswith("R1 warning")
    assert "at least 30.0 Å (15 px)" in steep
    width = float(steep.split("padding of ")[1].split(" Å")[0])
    assert width == pytest.approx(12.0, rel=0.06)
    (cut,) = check(narrow, torch.ones(64, 64, 64))
    assert "as steep as a soft padding of" in cut
    assert "and cuts through density: on it the map has 100% of its" in cut
    (hard,) = check((narrow > 0.5).float(), torch.ones(64, 64, 64))
    assert hard.startswith("R1 error: the mask has a hard edge and cuts through density")
    # another map than the base may show what the edge cuts
    (shown,) = check(narrow, smooth, density=torch.ones(64, 64, 64))
    assert shown == cut
    noise = torch.randn(64, 64, 64, generator=torch.Generator().manual_seed(3)) * 0.3
    (rough,) = check(wide, ball + noise)
    assert rough.startswith("R6 warning")
    assert "detail finer than 18.0 Å, 3 times the resolution of 6.0 Å" in rough
    assert "Gaussian of 3.4 Å or more" in rough
    # judged at a coarser resolution than it is smooth for
    assert check(wide, smooth, base_resolution=4.0) == ()
    coarser = check(wide, gaussian_filter(ball + noise, sigma=3.4, pixel_size=2.0), base_resolution=18.0)
    assert "detail finer than 54.0 Å" in coarser[0]


def test_a_base_smoothed_as_advised_passes_and_a_raw_one_does_not(record_property) -> None:
    """The whole ribosome and its head, cut out along its territory, at resolutions that a map may reach."""
    structure, zero, pixel_size = load_ribosome(), torch.zeros(3), 3.5
    density = sum(
        render_domain(
            domain.coordinates.float(),
            domain.weights.float(),
            box_size=96,
            pixel_size=pixel_size,
            centre=zero,
        )
        for domain in structure.domains.values()
    )
    assert isinstance(density, torch.Tensor)
    head = domain_labels(structure, box_size=96, pixel_size=pixel_size) == 1 + DOMAINS.index("head")
    wide = spherical_mask(96, outer_px=47, inner_px=1)
    for resolution in (7.0, 9.0, 12.0):
        (raw,) = rules.check_mask(
            wide, pixel_size=pixel_size, resolution=8.0, base=density, base_resolution=resolution
        )
        sigma = float(str(raw).split("Gaussian of ")[1].split(" Å")[0])
        smooth = gaussian_filter(density, sigma=sigma, pixel_size=pixel_size)
        for name, base in (("whole", smooth), ("head", smooth * head)):
            assert (
                rules.check_mask(
                    wide, pixel_size=pixel_size, resolution=8.0, base=base, base_resolution=resolution
                )
                == ()
            )
            share = fine_power(base, pixel_size=pixel_size, finer_than=3 * resolution)
            record_property(f"fine_power_{name}_{resolution:g}", share)
        record_property(
            f"fine_power_raw_{resolution:g}",
            fine_power(density, pixel_size=pixel_size, finer_than=3 * resolution),
        )
