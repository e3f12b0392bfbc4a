"""Segmentation against scikit-image, walks of single voxels, a closed form, and a real file of Segger."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.segmentation import watershed as flood

from cryosweep.fourier import gaussian_filter
from cryosweep.io.maps import read_map
from cryosweep.io.particles import read_particles
from cryosweep.io.segger import read_segger
from cryosweep.reconstruction import reconstruct_half_maps
from cryosweep.segmentation import (
    Segmentation,
    at_sigma,
    everything_else,
    finest,
    group,
    labels_of,
    largest,
    level_of,
    measure,
    mostly_inside,
    placed,
    segment,
    territory,
    touching,
    ungroup,
    watershed,
)
from cryosweep.simulate import DOMAINS, SimulationSettings, simulate


def hills(box_size: int, seed: int, *, kept: float = 0.3) -> tuple[torch.Tensor, float]:
    """A smooth random volume (float64) and the threshold that a share `kept` of its voxels reaches."""
    rough = torch.randn(box_size, box_size, box_size, generator=torch.Generator().manual_seed(seed)).double()
    volume = blurred(rough, 1.2)
    return volume, float(torch.quantile(volume.reshape(-1), 1.0 - kept))


def blurred(volume: torch.Tensor, sigma: float) -> torch.Tensor:
    """A periodic Gaussian from a full complex transform in double precision."""
    frequencies = np.meshgrid(*[np.fft.fftfreq(size) for size in volume.shape], indexing="ij")
    squared = sum(frequency**2 for frequency in frequencies)
    spectrum = np.fft.fftn(volume.double().numpy()) * np.exp(-2.0 * np.pi**2 * sigma**2 * squared)
    return torch.from_numpy(np.fft.ifftn(spectrum).real)


def walk(volume: np.ndarray, voxel: tuple[int, ...]) -> tuple[int, ...]:
    """Where a voxel ends that goes to the highest neighbour, the first of equals, until there is none."""
    while True:
        around = itertools.product(
            *(range(max(x - 1, 0), min(x + 2, size)) for x, size in zip(voxel, volume.shape, strict=True))
        )
        best = min(around, key=lambda other: (-volume[other], other))
        if best == voxel:
            return voxel
        voxel = best


def partition(labels: torch.Tensor | np.ndarray) -> set[frozenset[int]]:
    """The regions of a labelled volume as sets of flat indices, whatever their numbers."""
    flat = np.asarray(labels).reshape(-1)
    return {frozenset(np.flatnonzero(flat == label).tolist()) for label in np.unique(flat) if label}


def shown_partition(made: Segmentation, ids: tuple[int, ...]) -> set[frozenset[int]]:
    return partition(labels_of(made, ids))


# ---- watershed ----


@settings(max_examples=25, deadline=None)
@given(st.integers(8, 22), st.integers(0, 10_000), st.floats(0.02, 0.95))
def test_regions_are_those_of_scikit_image(box_size: int, seed: int, kept: float) -> None:
    """Every voxel: a flood from the maxima through 26 neighbours takes the steepest way, too."""
    volume, threshold = hills(box_size, seed, kept=kept)
    labels = watershed(volume, threshold=threshold).numpy()
    markers = np.zeros(labels.shape, dtype=np.int32)
    for voxel in zip(*np.nonzero(labels), strict=True):
        if walk(volume.numpy(), voxel) == voxel:
            markers[voxel] = labels[voxel]
    expected = flood(-volume.numpy(), markers, mask=labels > 0, connectivity=3)
    np.testing.assert_array_equal(labels, expected)
    assert markers.max() == labels.max()
    np.testing.assert_array_equal(labels > 0, volume.numpy() >= threshold)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_large_random_map_too(dtype: torch.dtype) -> None:
    volume, threshold = hills(64, 5, kept=0.08)
    volume = volume.to(dtype)
    labels = watershed(volume, threshold=threshold).numpy()
    inverse = -volume.numpy()
    highest = np.stack(
        [np.roll(np.pad(inverse, 1, constant_values=np.inf), shift, (0, 1, 2))[1:-1, 1:-1, 1:-1]
         for shift in itertools.product((-1, 0, 1), repeat=3)]
    ).min(axis=0)  # fmt: skip
    markers = np.where((inverse == highest) & (labels > 0), labels, 0)
    np.testing.assert_array_equal(labels, flood(inverse, markers, mask=labels > 0, connectivity=3))


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 9), st.integers(0, 10_000))
def test_of_equal_voxels_the_first_is_the_higher(box_size: int, seed: int) -> None:
    """Whole numbers from 0 to 3: nearly every voxel has equals beside it."""
    draw = torch.Generator().manual_seed(seed)
    volume = torch.randint(0, 4, (box_size, box_size, box_size), generator=draw).float()
    volume[0, 0, 0], volume[-1, -1, -1] = 0.0, 3.0
    labels = watershed(volume, threshold=1.0).numpy()
    ends = np.full(labels.shape, -1)
    for voxel in zip(*np.nonzero(volume.numpy() >= 1.0), strict=True):
        ends[voxel] = np.ravel_multi_index(walk(volume.numpy(), voxel), labels.shape)
    assert partition(labels) == partition(ends + 1)


def test_regions_are_numbered_by_size_then_by_place() -> None:
    line = torch.zeros(9, 9, 9)
    line[1, 1, 1:4] = torch.tensor([1.0, 3.0, 1.0])
    line[4, 4, 4:7] = torch.tensor([1.0, 2.0, 1.0])
    line[7, 7, 1:6] = torch.tensor([1.0, 1.5, 2.0, 1.5, 1.0])
    labels = watershed(line, threshold=1.0)
    assert [int(labels[at]) for at in ((7, 7, 3), (1, 1, 2), (4, 4, 5))] == [1, 2, 3]
    assert int(watershed(line, threshold=1.0001).count_nonzero()) == 5  # at the threshold is inside


def test_impossible_thresholds_are_refused() -> None:
    volume = torch.arange(27.0).reshape(3, 3, 3)
    with pytest.raises(ValueError, match=r"no voxel .* reaches the threshold 27 \(its maximum is 26\)"):
        watershed(volume, threshold=27.0)
    with pytest.raises(ValueError, match=r"every voxel .* reaches the threshold 0 \(its minimum is 0\)"):
        watershed(volume, threshold=0.0)


def test_a_level_is_absolute_or_counts_standard_deviations() -> None:
    volume = torch.randn(12, 12, 12, generator=torch.Generator().manual_seed(1)) * 3.0 + 5.0
    assert level_of(volume, 0.42, unit="absolute") == 0.42
    array = volume.numpy().astype(np.float64)
    assert level_of(volume, 2.5, unit="sd") == pytest.approx(array.mean() + 2.5 * array.std(), rel=1e-12)
    with pytest.raises(ValueError, match="not known"):
        level_of(volume, 1.0, unit="sigma")  # pyright: ignore[reportArgumentType]


# ---- groups ----


@pytest.mark.parametrize(("step_px", "joined_in"), [(1.0, 4), (0.5, 7), (3.0, 2)])
def test_two_gaussians_join_when_their_sum_has_one_maximum(step_px: float, joined_in: int) -> None:
    """Two Gaussians of width s, d apart, have one maximum when d <= 2 sqrt(s^2 + sigma^2).

    Here s = 2 and d = 8 voxels, so from sigma = sqrt(12) = 3.46 voxels on.
    """
    z, y, x = torch.meshgrid(*[torch.arange(48.0, dtype=torch.float64) - 24] * 3, indexing="ij")
    volume = sum(torch.exp(-((x - at) ** 2 + y**2 + z**2) / 8.0) for at in (-4, 4))
    made = segment(volume, threshold=0.05, steps=9, step_px=step_px)
    for step in range(10):
        assert len(at_sigma(made, step * step_px)) == (1 if step >= joined_in else 2)
    both = made.regions[made.shown[0]]
    assert both.sigma_px == joined_in * step_px
    assert both.peak == (24, 24, 24)


@settings(max_examples=15, deadline=None)
@given(st.integers(9, 20), st.integers(0, 10_000), st.sampled_from([0.5, 1.0, 1.7]))
def test_groups_are_those_of_single_walks_in_smoothed_maps(box_size: int, seed: int, step_px: float) -> None:
    volume, threshold = hills(box_size, seed)
    made = segment(volume, threshold=threshold, steps=4, step_px=step_px)
    labels = watershed(volume, threshold=threshold).numpy()
    members = [{label} for label in range(1, labels.max() + 1)]
    places = [
        next(voxel for voxel in zip(*np.nonzero(labels == label), strict=True)
             if walk(volume.numpy(), voxel) == voxel)
        for label in range(1, labels.max() + 1)
    ]  # fmt: skip
    for step in range(5):
        if step:
            smooth = blurred(volume, step * step_px).numpy()
            landed = [walk(smooth, place) for place in places]
            groups = {end: [k for k, other in enumerate(landed) if other == end] for end in landed}
            places = [end if len(ks) > 1 else places[ks[0]] for end, ks in groups.items()]
            members = [set().union(*(members[k] for k in ks)) for ks in groups.values()]
        table = np.zeros(labels.max() + 1, dtype=int)
        for number, group_of in enumerate(members, start=1):
            table[list(group_of)] = number
        assert shown_partition(made, at_sigma(made, step * step_px)) == partition(table[labels])


def test_steps_end_at_the_target_and_none_leave_the_watershed() -> None:
    volume, threshold = hills(24, 8)
    counts = [
        len(at_sigma(segment(volume, threshold=threshold, steps=4, step_px=1.0), step)) for step in range(5)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[4] < counts[2] < counts[0]
    target = counts[2] + 1
    ticks: list[int] = []
    stopped = segment(volume, threshold=threshold, steps=4, step_px=1.0, target=target, advance=ticks.append)
    assert len(stopped.shown) == next(count for count in counts if count <= target)
    assert sum(ticks) == 5
    alone = segment(volume, threshold=threshold, steps=0, step_px=0.0)
    assert torch.equal(alone.labels, watershed(volume, threshold=threshold))
    for wrong in ({"steps": -1}, {"step_px": 0.0}, {"target": 0}, {"step_px": float("inf")}):
        with pytest.raises(ValueError, match="are not possible"):
            segment(volume, threshold=threshold, **{"steps": 2, "step_px": 1.0, **wrong})


@pytest.fixture(scope="module")
def made() -> Segmentation:
    volume, threshold = hills(24, 8)
    return segment(volume, threshold=threshold, steps=3, step_px=1.0)


def test_ids_run_from_the_largest_shown_region_down_the_tree(made: Segmentation) -> None:
    assert sorted(made.regions) == list(range(1, len(made.regions) + 1))
    assert made.shown == tuple(range(1, len(made.shown) + 1))
    sizes = [made.regions[id].voxels for id in made.shown]
    assert sizes == sorted(sizes, reverse=True)
    for id, region in made.regions.items():
        assert region.id == id
        assert region.voxels == int(territory(made, [id]).sum())
        assert all(part > id for part in region.parts)
        assert len(region.parts) != 1
        assert (region.sigma_px == 0.0) == (not region.parts)
        inner = [made.regions[part].voxels for part in region.parts]
        assert inner == sorted(inner, reverse=True)
    again, threshold = hills(24, 8)
    assert segment(again, threshold=threshold, steps=3, step_px=1.0).regions == made.regions


# ---- moves and choices ----


def test_group_and_ungroup_undo_each_other(made: Segmentation) -> None:
    a, b, c = made.shown[:3]
    joined = group(made, [a, c])
    number = max(made.regions) + 1
    assert set(joined.shown) == {*made.shown, number} - {a, c}
    assert torch.equal(territory(joined, [number]), territory(made, [a]) | territory(made, [c]))
    assert ungroup(joined, number).regions == made.regions
    split = ungroup(made, a)
    assert set(split.shown) == {*made.shown, *made.regions[a].parts} - {a}
    assert torch.equal(territory(split, made.regions[a].parts), territory(made, [a]))
    for wrong, match in (
        (lambda: group(made, [a]), "two regions or more"),
        (lambda: group(joined, [a, b]), f"region {a} is part of a group"),
        (lambda: group(made, [a, 9999]), "there is no region 9999"),
        (lambda: ungroup(made, made.regions[a].parts[0]), "is part of a group"),
        (lambda: ungroup(made, next(id for id in made.shown if not made.regions[id].parts)), "finest"),
    ):
        with pytest.raises(ValueError, match=match):
            wrong()


def test_selection_and_the_rest_cover_every_region_once(made: Segmentation) -> None:
    chosen = largest(made, 2)
    inside, outside = territory(made, chosen), everything_else(made, chosen)
    assert not bool((inside & outside).any())
    assert torch.equal(inside | outside, made.labels > 0)
    part = made.regions[1].parts[0]
    assert set(finest(made, [1, part])) == set(finest(made, [1]))
    with pytest.raises(ValueError, match="belongs to both"):
        labels_of(made, [1, part])
    with pytest.raises(ValueError, match=rf"no region 9999; the ids run from 1 to {len(made.regions)}"):
        territory(made, [9999])
    with pytest.raises(ValueError, match="are not to be had"):
        largest(made, len(made.shown) + 1)


def test_a_point_touches_the_region_it_lies_in_or_near(made: Segmentation) -> None:
    for id in made.shown:
        x, y, z = made.regions[finest(made, [id])[0]].peak
        assert touching(made, (x + 0.3, y - 0.3, z)) == id
    alone = torch.zeros(20, 20, 20)
    alone[10, 9, 8] = 1.0
    one = segment(alone, threshold=0.5, steps=0, step_px=1.0)
    assert touching(one, (10.0, 9.0, 10.0)) == 1
    with pytest.raises(
        ValueError, match=r"12.0, 9.0, 10.0 px lies outside every region; the nearest, 1, is 4"
    ):
        touching(one, (12.0, 9.0, 10.0))


def test_a_label_takes_the_regions_that_lie_in_it_by_more_than_half() -> None:
    volume = torch.zeros(12, 12, 12)
    volume[3, 3, 2:6] = torch.tensor([1.0, 2.0, 1.5, 1.0])
    volume[8, 8, 2:5] = torch.tensor([1.0, 2.0, 1.0])
    two = segment(volume, threshold=0.5, steps=0, step_px=1.0)
    half = torch.zeros(12, 12, 12, dtype=torch.bool)
    half[:, :, :4] = True  # 2 of 4 voxels of the one, 2 of 3 of the other
    assert mostly_inside(two, half) == (2,)
    half[:, :, 4] = True
    assert mostly_inside(two, half) == (1, 2)
    with pytest.raises(ValueError, match="no region lies"):
        mostly_inside(two, torch.zeros_like(half))
    with pytest.raises(ValueError, match="one grid"):
        mostly_inside(two, half[:-1])


def test_extents_are_sums_over_voxels(made: Segmentation) -> None:
    found = measure(made, made.shown, pixel_size=2.5)
    labels = labels_of(made, made.shown).numpy()
    for id, extent in found.items():
        z, y, x = np.nonzero(labels == id)
        assert extent.voxels == z.size
        assert extent.volume == pytest.approx(z.size * 2.5**3)
        # a partial specific volume of 0.73 cm^3/g is 0.73e24 / 6.02214e23 Å^3 a dalton
        assert extent.mass_kda == pytest.approx(extent.volume / (0.73e24 / 6.02214e23) / 1000.0, rel=1e-4)
        assert extent.centre_px == pytest.approx((x.mean(), y.mean(), z.mean()))


def test_part_of_a_box_is_placed_in_the_whole(made: Segmentation) -> None:
    inside = placed(made, (40, 41, 42), (5, 6, 7))
    assert torch.equal(inside.labels[7:31, 6:30, 5:29], made.labels)
    assert int(inside.labels.count_nonzero()) == int(made.labels.count_nonzero())
    assert inside.shown == made.shown
    for id, region in made.regions.items():
        x, y, z = inside.regions[id].peak
        assert (x - 5, y - 6, z - 7) == region.peak
    with pytest.raises(ValueError, match="stick out of the box of 24x24x24 px"):
        placed(made, (24, 24, 24), (3, 0, 0))


# ---- the ribosome, and a real file of Segger ----


def test_regions_of_a_consensus_map_are_the_domains(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Dice index of the regions mostly in a domain with the domain, over the voxels that belong to regions.

    The labels are those of the model in its mean pose; the map is blurred by motion, pose errors and noise.
    """
    simulate(
        SimulationSettings(particles=300, box_size=64, pixel_size=5.25, snr=0.5),
        tmp_path, device=torch.device("cpu"),
    )  # fmt: skip
    particles = read_particles(tmp_path / "particles.star")
    halves = reconstruct_half_maps(
        particles, particles.rotations, particles.shifts, device=torch.device("cpu")
    )
    volume = gaussian_filter(0.5 * (halves.half_a + halves.half_b), sigma=4.0, pixel_size=5.25)
    made = segment(volume, threshold=level_of(volume, 2.0, unit="sd"), steps=3, step_px=3.5 / 5.25)
    labels = read_map(tmp_path / "domains.mrc").data.round()
    least = {"body": 0.95, "foot": 0.9, "head": 0.9, "arm": 0.5}
    for number, name in enumerate(DOMAINS, start=1):
        domain = (labels == number) & (made.labels > 0)
        found = territory(made, mostly_inside(made, labels == number))
        dice = 2.0 * int((found & domain).sum()) / int(found.sum() + domain.sum())
        record_property(f"Dice index of the {name}", dice)
        # 0.98, 0.95, 0.97 and 0.85 with 1,500 particles in a box of 96; a wrong axis order gives none
        assert dice > least[name], name


def test_regions_and_groups_of_emd_1832_are_those_of_segger(shared_data: Path) -> None:
    """Every voxel of the 28 finest regions, and the five groups that the file says smoothing made."""
    volume = read_map(shared_data / "maps" / "emd_1832.map.gz")
    file = read_segger(shared_data / "maps" / "emd_1832.seg")
    made = segment(volume.data, threshold=file.threshold, steps=4, step_px=1.0)
    assert [len(at_sigma(made, step)) for step in range(5)] == [28, 22, 14, 6, 2]
    assert shown_partition(made, at_sigma(made, 0.0)) == partition(file.segmentation.labels)
    by_smoothing = [id for id, region in file.segmentation.regions.items() if region.sigma_px > 0]
    assert by_smoothing == [70, 73, 78, 79, 85]
    for id in by_smoothing:
        expected = file.segmentation.regions[id]
        (same,) = (
            region for region in made.regions.values()
            if region.sigma_px == expected.sigma_px and region.peak == expected.peak
        )  # fmt: skip
        assert torch.equal(territory(made, [same.id]), territory(file.segmentation, [id]))
