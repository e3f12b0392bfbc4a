import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from cryosweep.diagnostics import (
    conical_fsc_figure,
    fourier_slices_figure,
    gsfsc_figure,
    mask_figure,
    noise_figure,
    pose_changes_figure,
    pose_moves_figure,
    precision_figure,
    region_colours,
    regions_figure,
    resolution_ticks,
    scale_figure,
    slices_figure,
    view_histogram,
    views_figure,
)
from tests.synthetic_runs import ball_mask, blob_map

PIXEL_SIZE = 3.5


def drawn(figure: Figure) -> np.ndarray:
    """The figure as pixels, and proof that it draws without a display and leaves pyplot alone."""
    with io.BytesIO() as stream:
        figure.savefig(stream, format="png", dpi=50)
        stream.seek(0)
        pixels = plt.imread(stream)
    assert plt.get_fignums() == []
    return pixels


def texts(figure: Figure) -> str:
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    found += [axes.get_title() for axes in figure.axes]
    for legend in [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]:
        found += [legend.get_title().get_text(), *(text.get_text() for text in legend.get_texts())]
    return "\n".join(found)


@pytest.mark.parametrize("size", [24, 25])
def test_slices_show_each_voxel_at_its_place_in_angstrom(size: int) -> None:
    """An off-centre bright voxel, unlike in x, y and z, would expose a swapped or flipped axis."""
    x, y, z = 4, -3, 7
    volume = np.zeros((size, size, size), dtype=np.float32)
    volume[z + size // 2, y + size // 2, x + size // 2] = 1.0
    fulcrum = (x * PIXEL_SIZE, y * PIXEL_SIZE, z * PIXEL_SIZE)
    figure = slices_figure(volume, pixel_size=PIXEL_SIZE, fulcrum=fulcrum)
    for axes, (across, up) in zip(figure.axes, [(x, y), (x, z), (y, z)], strict=True):
        image = axes.images[0]
        left, right, bottom, top = image.get_extent()
        row, column = np.unravel_index(int(np.argmax(image.get_array())), (size, size))
        assert left + (column + 0.5) * (right - left) / size == pytest.approx(across * PIXEL_SIZE)
        assert bottom + (row + 0.5) * (top - bottom) / size == pytest.approx(up * PIXEL_SIZE)
        for cross in axes.lines:
            assert cross.get_xydata()[0] == pytest.approx((across * PIXEL_SIZE, up * PIXEL_SIZE))


def test_slices_share_one_grey_scale_and_draw_the_mask_twice() -> None:
    figure = slices_figure(
        blob_map(9.0), pixel_size=PIXEL_SIZE, fulcrum=(2.0, 3.0, 8.0), mask=ball_mask(20.0, 12.0), title="map"
    )
    limits = {axes.images[0].get_clim() for axes in figure.axes}
    assert len(limits) == 1
    assert [len(axes.collections) for axes in figure.axes] == [2, 2, 2]
    assert "mask = 0.5" in texts(figure)
    assert "mask = 0.05" in texts(figure)
    assert drawn(figure).std() > 0.05


def test_a_fulcrum_outside_the_box_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fulcrum \(250.0, 0.0, 0.0\) Å lies outside the box.*±56.0 Å"):
        slices_figure(blob_map(9.0), pixel_size=PIXEL_SIZE, fulcrum=(250.0, 0.0, 0.0))


def test_map_and_mask_must_share_a_cube() -> None:
    with pytest.raises(ValueError, match="must be a cube"):
        slices_figure(np.zeros((4, 4, 5), dtype=np.float32), pixel_size=1.0, fulcrum=(0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="share one box"):
        mask_figure(np.ones((8, 8, 8)), blob_map(9.0), PIXEL_SIZE, (0.0, 0.0, 0.0))


def test_mask_figure_cuts_through_the_mask_and_says_where_the_fulcrum_is() -> None:
    figure = mask_figure(ball_mask(20.0, 12.0, (3.5, 7.0, 24.5)), blob_map(9.0), PIXEL_SIZE, (3.5, 7.0, 3.5))
    assert "xy slice at z = 24.5 Å" in texts(figure)
    assert "fulcrum 21 Å below this slice" in texts(figure)
    assert texts(figure).count("fulcrum in this slice") == 2
    assert drawn(figure).std() > 0.05


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="mask is zero everywhere"):
        mask_figure(np.zeros((32, 32, 32)), blob_map(9.0), PIXEL_SIZE, (0.0, 0.0, 0.0))


def test_fourier_slices_are_the_central_slices_of_the_full_transform() -> None:
    volume = blob_map(9.0, seed=3)
    figure = fourier_slices_figure(volume, PIXEL_SIZE)
    full = np.abs(np.fft.fftshift(np.fft.fftn(volume)))
    centre = volume.shape[0] // 2
    for axis, axes in enumerate(figure.axes[:3]):
        # Worst difference seen 2e-6 in log10, from float32 input; a wrong axis differs by more than 1.
        expected = np.log10(np.take(full, centre, axis=axis) / full[centre, centre, centre])
        assert np.abs(np.asarray(axes.images[0].get_array()) - expected).max() < 1e-4
    assert "7 Å" in texts(figure)
    drawn(figure)


def test_fourier_slices_of_a_filtered_map_keep_their_scale_for_what_is_left() -> None:
    """Rounding beyond a low-pass filter lies ten decades down and would take the whole scale of colours."""
    noise = np.random.default_rng(0).standard_normal((32, 32, 32))
    k = np.fft.fftfreq(32)
    radius = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)
    filtered = np.fft.ifftn(np.fft.fftn(noise) * (radius < 0.25)).real
    low = {}
    for name, volume in (("whole", noise), ("filtered", filtered)):
        figure = fourier_slices_figure(volume, PIXEL_SIZE)
        low[name] = figure.axes[0].images[0].get_clim()[0]
        told = "taken off by the map's filter" in figure.axes[-1].get_ylabel()
        assert told == (name == "filtered")
    assert -4.0 < low["whole"] < 0.0
    assert low["filtered"] == -5.0


def test_fourier_slices_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="zero everywhere"):
        fourier_slices_figure(np.zeros((8, 8, 8)), 1.0)


def fsc_figure(**changes: object) -> Figure:
    frequency = np.arange(17) / (32 * PIXEL_SIZE)
    curve = 1.0 / (1.0 + (frequency * 12.0) ** 6)
    names = ("none", "spherical", "loose", "tight", "corrected", "randomised")
    settings = {
        "frequency": frequency,
        "pixel_size": PIXEL_SIZE,
        "crossings": {"none": 13.61, "tight": 9.22, "corrected": 7.0},
        "randomised_from": 7,
    }
    return gsfsc_figure(dict.fromkeys(names, curve), **{**settings, **changes})


def test_gsfsc_figure_names_curves_with_their_resolution() -> None:
    figure = fsc_figure()
    text = texts(figure)
    assert "no mask: 13.61 Å" in text
    assert "corrected for the mask: 7 Å (Nyquist; never below 0.143)" in text
    assert "phases randomised (effect of the mask alone)" in text
    assert "phases randomised beyond 16 Å" in text
    assert "0.143\n0.5" in text
    axes = figure.axes[0]
    assert axes.get_xlim() == pytest.approx((0.0, 1.0 / 7.0))
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert axes.get_xticks() == pytest.approx([1.0 / float(label) for label in labels])
    drawn(figure)


def test_gsfsc_curves_must_fit_the_frequencies() -> None:
    with pytest.raises(ValueError, match=r"FSC curve 'none' has shape \(17,\), frequency \(16,\)"):
        fsc_figure(frequency=np.arange(16) / 112.0)


@given(nyquist=st.floats(1.0, 40.0), spacing=st.floats(0.03, 0.3))
def test_resolution_ticks_rise_keep_apart_and_end_at_nyquist(nyquist: float, spacing: float) -> None:
    ticks = resolution_ticks(nyquist, spacing=spacing)
    frequencies = [frequency for frequency, _ in ticks]
    assert frequencies[-1] == pytest.approx(1.0 / nyquist)
    assert np.all(np.diff([0.0, *frequencies]) >= 0.999 * spacing / nyquist)
    for frequency, label in ticks:
        assert float(label) == pytest.approx(1.0 / frequency, rel=0.006)  # three digits


def test_pose_changes_state_extent_and_share_at_the_limit() -> None:
    rotation = np.array([1.0, 2.0, 3.0, 19.5])
    shift = np.array([0.5, 1.0, 1.5, 2.0])
    figure = pose_changes_figure(
        rotation, shift, rotation_extent=20.0, shift_extent=10.0, at_shift_extent=0.125
    )
    text = texts(figure)
    assert "25.0% of the particles changed by more than 95% of the extent" in text
    assert "12.5% of the particles ended at the limit of the search" in text
    assert "search extent 20°" in text
    assert "search extent 10 Å" in text
    assert "median 2.5°" in text
    drawn(figure)


def test_who_stands_at_the_limit_is_drawn_within_it() -> None:
    """By rounding some lie a hair beyond; who lies beyond it in earnest is shown there."""
    change = np.array([3.0, 20.0 - 1e-9, 20.0, 20.0 + 1e-6, 21.0])
    figure = pose_changes_figure(change, change, rotation_extent=20.0, shift_extent=20.0)
    for axes in figure.axes:
        columns = [(bar.get_x() + bar.get_width(), bar.get_height()) for bar in axes.patches]
        within = sum(count for end, count in columns if end <= 20.0 + 1e-9)
        assert (within, sum(count for _, count in columns)) == (4, 5)
        assert max(count for _, count in columns) == 3


def test_pose_changes_refuse_no_particles_and_a_negative_extent() -> None:
    one = np.array([1.0])
    with pytest.raises(ValueError, match="no particles"):
        pose_changes_figure(np.array([]), one, rotation_extent=20.0, shift_extent=10.0)
    with pytest.raises(ValueError, match=r"extent is -1\.0, must not be negative"):
        pose_changes_figure(one, one, rotation_extent=20.0, shift_extent=-1.0)


def test_pose_changes_of_a_held_pose_are_drawn() -> None:
    still = np.zeros(8)
    figure = pose_changes_figure(still, still, rotation_extent=0.0, shift_extent=0.0, at_shift_extent=0.0)
    assert [axes.get_title() for axes in figure.axes] == ["an extent of 0: nothing was searched"] * 2
    drawn(figure)


def test_pose_moves_state_the_share_at_each_limit() -> None:
    turns = np.tile([1.0, -2.0, 3.0], (8, 1))
    turns[0, 0], turns[1, 0] = 20.0, -19.5
    shifts = np.zeros((8, 2))
    shifts[2, 1] = 10.0
    figure = pose_moves_figure(turns, shifts, rotation_extent=20.0, shift_extent=10.0)
    assert [axes.get_title() for axes in figure.axes] == [
        "25.0% at a limit", "0.0% at a limit", "0.0% at a limit", "0.0% at a limit", "12.5% at a limit",
    ]  # fmt: skip
    assert "37.5% within 5 % of a limit on some axis" in str(figure.get_suptitle())
    for axes, extent in zip(figure.axes, (20.0, 20.0, 20.0, 10.0, 10.0), strict=True):
        assert [line.get_xdata()[0] for line in axes.lines] == [-extent, extent]
        # columns end at the limits
        edges = [column.get_x() for column in axes.patches]
        assert min(abs(edge - extent) for edge in edges) < 1e-9
    drawn(figure)


def test_pose_moves_of_held_poses_are_drawn_and_none_are_refused() -> None:
    still = pose_moves_figure(np.zeros((4, 3)), np.zeros((4, 2)), rotation_extent=0.0, shift_extent=0.0)
    assert {axes.get_title() for axes in still.axes} == {"an extent of 0: not searched"}
    drawn(still)
    with pytest.raises(ValueError, match="no particles"):
        pose_moves_figure(np.zeros((0, 3)), np.zeros((0, 2)), rotation_extent=20.0, shift_extent=10.0)


def test_scale_says_when_it_was_not_refined() -> None:
    constant = scale_figure(np.ones(7))
    assert "was not refined: all 7 particles have 1" in texts(constant)
    drawn(constant)
    spread = scale_figure(np.array([0.8, 1.0, 1.0, 1.2]))
    assert "median 1.000, SD 0.141" in texts(spread)
    drawn(spread)
    with pytest.raises(ValueError, match="no particles"):
        scale_figure(np.array([]))


def test_noise_figure_names_halves_and_groups_and_draws_what_is_explained() -> None:
    frequency = np.arange(1, 17) / 112.0
    before = 1e4 / frequency
    spectra = {
        f"half_set_{half}_group_{group}_{moment}": before * (0.9 if moment == "after" else 1.0)
        for half in (1, 2) for group in (1, 2) for moment in ("before", "after")
    }  # fmt: skip
    figure = noise_figure(spectra, frequency=frequency, pixel_size=PIXEL_SIZE)
    text = texts(figure)
    assert "half-set 2, optics group 1, after" in text
    for line in figure.axes[1].lines[:4]:
        assert line.get_ydata() == pytest.approx(10.0)
    drawn(figure)
    one = {name: values for name, values in spectra.items() if "group_1" in name}
    assert "optics group" not in texts(noise_figure(one, frequency=frequency, pixel_size=PIXEL_SIZE))


def test_view_histogram_has_fields_of_equal_area_named_by_relions_angles() -> None:
    angles = np.random.default_rng(1).normal(size=(20_000, 3))
    even = view_histogram(angles / np.linalg.norm(angles, axis=1, keepdims=True))
    assert even.count.sum() == 20_000
    # 882 fields of 22.7 views each: Poisson
    assert even.count.std() == pytest.approx(np.sqrt(even.count.mean()), rel=0.15)
    tilt, rot = np.radians(50.0), np.radians(-70.0)
    one = np.array([[np.sin(tilt) * np.cos(rot), np.sin(tilt) * np.sin(rot), np.cos(tilt)]])
    rows = view_histogram(one.repeat(400, axis=0)).rows()
    place = int(np.argmax(rows["views"]))
    assert abs(rows["rot"][place] + 70.0) <= 30.0
    assert abs(rows["tilt"][place] - 50.0) <= 30.0
    figure = views_figure(even, scf=0.97)
    assert "SCF* 0.97" in str(figure.get_suptitle())
    drawn(figure)


def test_precision_figure_states_the_ratio_and_shows_opposite_views_alike() -> None:
    directions = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    figure = precision_figure(directions, np.array([2.4, 0.2, 0.4]))
    assert "largest over smallest 12.0 (TOO UNEVEN" in str(figure.get_suptitle())
    values = np.asarray(figure.axes[0].collections[0].get_array()).reshape(90, 180)
    assert values[0, 0] == values[-1, 0] == 2.4  # both poles
    assert values[45, 90] == values[45, 0] == 0.2  # +x in the middle, -x at the rim
    drawn(figure)


def test_conical_fsc_figure_states_cfar() -> None:
    frequency = np.arange(1, 17) / 112.0
    curves = np.stack([1.0 / (1.0 + (frequency * width) ** 6) for width in (8.0, 12.0, 16.0)])
    figure = conical_fsc_figure(curves, frequency=frequency, pixel_size=PIXEL_SIZE, cfar=0.4)
    assert "cFAR 0.40 (0.5 or more is good; UNEVEN)" in texts(figure)
    assert "all 3 cones" in texts(figure)
    drawn(figure)


def test_region_colours_are_many_and_unlike() -> None:
    colours = list(region_colours(range(10, 50)).values())
    assert len(set(colours)) == 40
    levels = np.array([[int(colour[k : k + 2], 16) for k in (1, 3, 5)] for colour in colours])
    # one after the other: neighbours in size are often neighbours in space
    assert np.abs(np.diff(levels, axis=0)).sum(axis=1).min() > 60


def test_regions_are_tinted_in_their_own_voxels_and_numbered() -> None:
    size = 24
    labels = np.zeros((size, size, size), dtype=np.int32)
    labels[8:16, 2:10, 8:16], labels[8:16, 14:20, 8:16] = 7, 3
    volume = (labels > 0).astype(np.float32)
    colours = {7: "#ff0000", 3: "#0000ff"}
    figure = regions_figure(volume, labels, colours=colours, pixel_size=PIXEL_SIZE, title="two")
    tint = np.asarray(figure.axes[2].images[1].get_array())  # y across, z up, through x of both
    assert tint.shape == (size, size, 4)
    np.testing.assert_array_equal(tint[12, 2:10], np.tile([1.0, 0.0, 0.0, 0.65], (8, 1)))
    np.testing.assert_array_equal(tint[12, 14:20, :3], np.tile([0.0, 0.0, 1.0], (6, 1)))
    assert tint[..., 3].sum() == pytest.approx(0.65 * 14 * 8)
    at = {text.get_text(): text.get_position() for text in figure.axes[2].texts}
    assert set(at) == {"7", "3"}
    assert at["7"][0] < 0 < at["3"][0]
    drawn(figure)
    chosen = regions_figure(volume, labels, colours=colours, pixel_size=PIXEL_SIZE, chosen=labels == 3)
    assert "slice at y = 14.0" in texts(chosen)  # voxel 16 of 24 at 3.5 Å, the middle of region 3
    pale = np.asarray(chosen.axes[2].images[1].get_array())
    assert pale[12, 5, 3] == 0.25
    assert pale[12, 16, 3] == 0.65
    with pytest.raises(ValueError, match="zero everywhere"):
        regions_figure(volume, 0 * labels, colours=colours, pixel_size=PIXEL_SIZE)
