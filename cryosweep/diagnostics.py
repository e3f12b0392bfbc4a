"""Figures from numbers, for one run: slices, masks, curves, noise, directions and pose changes.

Every function takes arrays and gives a `matplotlib.figure.Figure` that belongs to nobody else: no global
pyplot state is touched, so figures may be drawn in any thread or process and saved with `figure.savefig`.
The numbers behind each figure are stored beside it as CSV or MRC by whoever calls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, hsv_to_rgb, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from cryosweep.rules import AT_LIMIT, LEAST_CFAR, LEAST_SCF, PRECISION_RATIO, precision_ratio

Array = NDArray[np.floating[Any]]

# Colours of Okabe and Ito (2008), which remain distinct under the common colour-vision deficiencies.
BLACK = "#000000"
ORANGE = "#E69F00"
SKY_BLUE = "#56B4E9"
GREEN = "#009E73"
YELLOW = "#F0E442"
BLUE = "#0072B2"
VERMILION = "#D55E00"
PURPLE = "#CC79A7"
GREY = "#7F7F7F"

MASK_EDGE = 0.5
MASK_END = 0.05
NEAR_EXTENT = 0.95
FOURIER_DECADES = -5.0  # log10 of the faintest amplitude drawn, of the strongest
LABELLED_PX = 20


class CurveStyle(NamedTuple):
    """How one kind of FSC curve is named and drawn everywhere."""

    label: str
    colour: str
    dash: str


CURVE_STYLES: Mapping[str, CurveStyle] = {
    "none": CurveStyle("no mask", GREY, "-"),
    "spherical": CurveStyle("spherical mask", SKY_BLUE, "-"),
    "loose": CurveStyle("loose mask", GREEN, "-"),
    "tight": CurveStyle("tight: the mask itself", BLUE, "-"),
    "corrected": CurveStyle("corrected for the mask", BLACK, "-"),
    "randomised": CurveStyle("phases randomised (effect of the mask alone)", VERMILION, "--"),
}

_RESOLUTION_TICKS = (
    *(
        200.0,
        100.0,
        60.0,
        40.0,
        30.0,
        25.0,
        20.0,
        17.0,
        15.0,
        13.0,
        12.0,
        11.0,
        10.0,
        9.0,
        8.0,
        7.0,
        6.0,
        5.5,
    ),
    *(
        5.0,
        4.5,
        4.0,
        3.7,
        3.5,
        3.2,
        3.0,
        2.8,
        2.6,
        2.4,
        2.2,
        2.0,
        1.9,
        1.8,
        1.7,
        1.6,
        1.5,
        1.4,
        1.3,
        1.2,
        1.1,
        1.0,
    ),
    *(0.9, 0.8, 0.7, 0.6, 0.5),
)


def resolution_ticks(nyquist: float, *, spacing: float = 0.07) -> tuple[tuple[float, str], ...]:
    """Round resolutions for an axis that is linear in 1/Å and ends at Nyquist.

    Args:
        nyquist: Å; the finest resolution, which always gets a tick.
        spacing: smallest distance between ticks as a fraction of the axis.

    Returns:
        Pairs of frequency (1/Å) and label (Å), coarse to fine.
    """
    end = 1.0 / nyquist
    ticks: list[tuple[float, str]] = []
    for resolution in _RESOLUTION_TICKS:
        frequency = 1.0 / resolution
        previous = ticks[-1][0] if ticks else 0.0
        if frequency - previous >= spacing * end and end - frequency >= spacing * end:
            ticks.append((frequency, f"{resolution:g}"))
    return (*ticks, (end, f"{nyquist:.3g}"))


class _Plane(NamedTuple):
    """One orthogonal slice: the array axis it cuts, and the names of the axes across and up."""

    axis: int
    across: str
    up: str


_PLANES = (_Plane(0, "x", "y"), _Plane(1, "x", "z"), _Plane(2, "y", "z"))
_XYZ = "xyz"


def slices_figure(
    volume: Array,
    *,
    pixel_size: float,
    fulcrum: Sequence[float],
    mask: Array | None = None,
    title: str = "",
) -> Figure:
    """Three orthogonal slices of a map through the fulcrum, on one grey scale.

    Args:
        volume: (d, d, d) indexed z, y, x.
        pixel_size: Å.
        fulcrum: (x, y, z) in Å from the box centre.
        mask: (d, d, d) in [0, 1]; drawn as an outline at 0.5 and, dashed, at 0.05 where its soft edge ends.
        title: heading of the figure.

    Raises:
        ValueError: the fulcrum lies outside the box, or the shapes do not fit.
    """
    _check_volume(volume, mask)
    index = _voxel_of(fulcrum, volume.shape[0], pixel_size)
    cuts = [_cut(volume, plane, index) for plane in _PLANES]
    low, high = _grey_range(cuts)
    figure, axes = _three_panels(title)
    for panel, plane, cut in zip(axes, _PLANES, cuts, strict=True):
        _show(panel, cut, pixel_size, low, high)
        _name_axes(panel, plane, _position_of(index, volume.shape[0], pixel_size))
        if mask is not None:
            _outline(panel, _cut(mask, plane, index), pixel_size)
        _cross(panel, plane, fulcrum)
    _legend_below(figure, _mask_keys(mask is not None))
    return figure


def mask_figure(mask: Array, volume: Array, pixel_size: float, fulcrum: Sequence[float]) -> Figure:
    """Three orthogonal slices of a mask laid over a map, through the mask's centre of mass.

    The cross marks the fulcrum as seen along each axis; each panel says how far it lies from the slice shown,
    because a fulcrum at a hinge is often outside the mask.

    Args:
        mask: (d, d, d) in [0, 1], indexed z, y, x.
        volume: (d, d, d) the map under it.
        pixel_size: Å.
        fulcrum: (x, y, z) in Å from the box centre.

    Raises:
        ValueError: the fulcrum lies outside the box, the mask is empty, or the shapes do not fit.
    """
    _check_volume(volume, mask)
    _voxel_of(fulcrum, volume.shape[0], pixel_size)
    index = _mask_centre(mask)
    position = _position_of(index, volume.shape[0], pixel_size)
    cuts = [_cut(volume, plane, index) for plane in _PLANES]
    low, high = _grey_range(cuts)
    enclosed = float(mask.sum()) * pixel_size**3
    figure, axes = _three_panels(
        f"Mask over the map, slices through the mask's centre of mass (it encloses {enclosed:,.0f} Å³)"
    )
    for panel, plane, cut in zip(axes, _PLANES, cuts, strict=True):
        _show(panel, cut, pixel_size, low, high)
        _name_axes(panel, plane, position)
        cover = _cut(mask, plane, index)
        tint = np.zeros((*cover.shape, 4))
        tint[..., :3] = np.array([0xE6, 0x9F, 0x00]) / 255.0
        tint[..., 3] = 0.35 * cover
        panel.imshow(
            tint, origin="lower", extent=_extent(cover.shape[0], pixel_size), interpolation="nearest"
        )
        _outline(panel, cover, pixel_size)
        _cross(panel, plane, fulcrum)
        normal = 2 - plane.axis
        away = fulcrum[normal] - position[normal]
        side = "above" if away > 0 else "below"
        where = f"{abs(away):.0f} Å {side} this slice" if abs(away) > 0.5 * pixel_size else "in this slice"
        panel.text(
            0.02, 0.02, f"fulcrum {where}",
            transform=panel.transAxes, color="white", fontsize=8,
            bbox={"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 2},
        )  # fmt: skip
    _legend_below(figure, _mask_keys(True))
    return figure


def region_colours(ids: Sequence[int]) -> dict[int, str]:
    """A colour (`#rrggbb`) for each region, in order: those of this module, then hues far apart."""
    chosen = (ORANGE, SKY_BLUE, GREEN, VERMILION, PURPLE, YELLOW, BLUE)
    found: dict[int, str] = {}
    for number, id in enumerate(ids):
        hue = 0.618034 * number % 1.0
        saturation, value = (0.75, 0.55)[number // 2 % 2], (0.95, 0.75)[number % 2]
        found[id] = (
            chosen[number] if number < len(chosen) else to_hex(hsv_to_rgb((hue, saturation, value)).tolist())
        )
    return found


def regions_figure(
    volume: Array,
    labels: NDArray[np.integer[Any]],
    *,
    colours: Mapping[int, str],
    pixel_size: float,
    chosen: NDArray[np.bool_] | None = None,
    title: str = "",
) -> Figure:
    """Three orthogonal slices of a map with its regions in colour, numbered where they are large enough.

    The slices go through the centre of mass of what is chosen, or of all regions.

    Args:
        volume: (d, d, d) indexed z, y, x.
        labels: (d, d, d) the id of the region of each voxel, 0 for none.
        colours: `#rrggbb` of each id.
        pixel_size: Å.
        chosen: (d, d, d); the rest is shown pale.
        title: heading of the figure.

    Raises:
        ValueError: there are no regions, or the shapes do not fit.
    """
    inside = (labels > 0) if chosen is None else chosen
    _check_volume(volume, inside.astype(np.float32))
    index = _mask_centre(inside.astype(np.float32))
    cuts = [_cut(volume, plane, index) for plane in _PLANES]
    low, high = _grey_range(cuts)
    table = np.zeros((int(labels.max()) + 1, 4))
    for id, colour in colours.items():
        table[id] = (*to_rgb(colour), 1.0)
    figure, axes = _three_panels(title)
    for panel, plane, cut in zip(axes, _PLANES, cuts, strict=True):
        _show(panel, cut, pixel_size, low, high)
        _name_axes(panel, plane, _position_of(index, volume.shape[0], pixel_size))
        of_region = np.take(labels, index[plane.axis], axis=plane.axis)
        tint = table[of_region]
        tint[..., 3] *= np.where(np.take(inside, index[plane.axis], axis=plane.axis), 0.65, 0.25)
        extent = _extent(cut.shape[0], pixel_size)
        panel.imshow(tint, origin="lower", extent=extent, interpolation="nearest")
        for id, count in zip(*np.unique(of_region[of_region > 0], return_counts=True), strict=True):
            if count >= LABELLED_PX:
                up, across = np.nonzero(of_region == id)
                nearest = np.hypot(up - up.mean(), across - across.mean()).argmin()
                panel.text(
                    float(extent[0] + (across[nearest] + 0.5) * pixel_size),
                    float(extent[2] + (up[nearest] + 0.5) * pixel_size),
                    str(id), ha="center", va="center", fontsize=9, color="white",
                    path_effects=[withStroke(linewidth=2.0, foreground="black")],
                )  # fmt: skip
    return figure


def fourier_slices_figure(volume: Array, pixel_size: float) -> Figure:
    """Three central slices of a map's Fourier amplitude (log scale) with rings at round resolutions.

    A slice is taken as the transform of the projection along its normal (central-slice theorem), which needs
    no three-dimensional transform. Even, round falling-off is good; dark wedges or streaks mean directions
    that few particles covered.

    Args:
        volume: (d, d, d) indexed z, y, x.
        pixel_size: Å.

    Raises:
        ValueError: the map is not cubic, or is zero everywhere.
    """
    _check_volume(volume, None)
    size = volume.shape[0]
    amplitudes = [
        np.abs(np.fft.fftshift(np.fft.fft2(volume.sum(axis=plane.axis, dtype=np.float64))))
        for plane in _PLANES
    ]
    peak = max(float(amplitude.max()) for amplitude in amplitudes)
    if peak == 0.0:
        raise ValueError("the map is zero everywhere: its Fourier amplitudes cannot be drawn on a log scale")
    logs = [np.log10(np.maximum(amplitude / peak, 1e-12)) for amplitude in amplitudes]
    # what a low-pass filter has taken off is rounding: it is dark, and no part of the scale
    faintest = float(np.percentile(np.stack(logs), 2.0))
    low = max(faintest, FOURIER_DECADES)
    cut = "" if low == faintest else "\n(dark: taken off by the map's filter)"
    nyquist = 0.5 / pixel_size
    step = 1.0 / (size * pixel_size)
    start = -(size // 2) * step - 0.5 * step
    extent = (start, start + size * step, start, start + size * step)
    rings = resolution_ticks(2.0 * pixel_size, spacing=0.2)
    figure, axes = _three_panels("Fourier amplitude of the map, central slices")
    image = None
    for panel, plane, log_amplitude in zip(axes, _PLANES, logs, strict=True):
        image = panel.imshow(
            log_amplitude,
            origin="lower",
            extent=extent,
            cmap="cividis",
            vmin=low,
            vmax=0.0,
            interpolation="nearest",
        )
        for frequency, label in rings:
            panel.add_patch(
                Circle((0.0, 0.0), frequency, fill=False, color="white", linewidth=0.7, alpha=0.8)
            )
            panel.text(
                frequency * np.sqrt(0.5), frequency * np.sqrt(0.5), f"{label} Å", color="white", fontsize=8,
                ha="center", va="center", bbox={"facecolor": "black", "alpha": 0.5, "linewidth": 0, "pad": 1},
            )  # fmt: skip
        panel.set_xlim(-nyquist, nyquist)
        panel.set_ylim(-nyquist, nyquist)
        panel.set_title(f"k{plane.across}, k{plane.up} plane", fontsize=10)
        panel.set_xlabel(f"k{plane.across} (1/Å)")
        panel.set_ylabel(f"k{plane.up} (1/Å)")
    assert image is not None
    bar = figure.colorbar(image, ax=axes, shrink=0.75, pad=0.01, aspect=30)
    bar.set_label("log10 amplitude, relative to the strongest" + cut)
    return figure


def gsfsc_figure(
    curves: Mapping[str, Array],
    *,
    frequency: Array,
    pixel_size: float,
    crossings: Mapping[str, float],
    randomised_from: int | None = None,
    title: str = "",
) -> Figure:
    """Fourier shell correlation of the two half maps under several masks.

    Args:
        curves: name to (n_shells,); names of `CURVE_STYLES` get their usual colour and label.
        frequency: (n_shells,) in 1/Å.
        pixel_size: Å.
        crossings: name to the resolution in Å where that curve falls below 0.143 (Nyquist: never does).
        randomised_from: the shell from which phases were randomised; drawn as a vertical line.
        title: heading of the figure.

    Raises:
        ValueError: a curve has another length than `frequency`.
    """
    nyquist = 2.0 * pixel_size
    figure = Figure(figsize=(8.6, 6.2), layout="constrained")
    axes = figure.subplots()
    spare = iter((PURPLE, ORANGE, YELLOW))
    for name, curve in curves.items():
        if curve.shape != frequency.shape:
            raise ValueError(
                f"FSC curve '{name}' has shape {curve.shape}, frequency {frequency.shape}: give one per shell"
            )
        style = CURVE_STYLES.get(name) or CurveStyle(name.replace("_", " "), next(spare, GREY), "-")
        label = style.label
        if name in crossings:
            label += f": {_crossing_text(crossings[name], nyquist)}"
        width = 2.4 if name == "corrected" else 1.6
        axes.plot(frequency, curve, color=style.colour, linestyle=style.dash, linewidth=width, label=label)
    for level in (0.143, 0.5):
        axes.axhline(level, color=GREY, linewidth=0.8, linestyle=":")
        axes.text(1.005, level, f"{level:g}", transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.axhline(0.0, color=GREY, linewidth=0.6)
    if randomised_from is not None:
        start = float(frequency[randomised_from])
        axes.axvline(
            start,
            color=VERMILION,
            linewidth=1.0,
            linestyle=":",
            label=f"phases randomised beyond {1.0 / start:.3g} Å",
        )
    _resolution_axis(axes, nyquist)
    axes.set_ylim(-0.1, 1.03)
    axes.set_ylabel("Fourier shell correlation of the half maps")
    axes.set_title(title or "Gold-standard FSC", fontsize=11)
    figure.legend(
        title="mask, and resolution at FSC = 0.143",
        loc="outside lower center",
        ncols=2,
        fontsize=9,
        title_fontsize=9,
    )
    return figure


@dataclass(frozen=True)
class NeighbourCurves:
    """FSC with the truth under one mask, as half-maps tell it; each (n_shells,).

    Attributes:
        promised: what the half-maps promise.
        expected: what is left of it without the neighbours' share.
        at_most: the most that can be left.
        truth: where it is known, else None.
    """

    promised: Array
    expected: Array
    at_most: Array
    truth: Array | None


def neighbours_figure(
    panels: Mapping[str, NeighbourCurves], *, frequency: Array, pixel_size: float
) -> Figure:
    """How well half-maps agree, and how much of that can be the domain's.

    Good: the curves lie on each other. Wrong: what is expected parts from what is promised; what lies between
    is agreement on density that is not the domain's.

    Args:
        panels: heading, such as the mask, to its curves; if one knows the truth, the last.
        frequency: (n_shells,) in 1/Å.
        pixel_size: Å.
    """
    figure = Figure(figsize=(8.6, 4.4), layout="constrained")
    rows = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, curves) in zip(rows, panels.items(), strict=True):
        axes.fill_between(frequency, curves.expected, curves.promised, color=ORANGE, alpha=0.3, linewidth=0,
                          label="the neighbours'")  # fmt: skip
        axes.plot(frequency, curves.promised, color=BLUE, linewidth=1.6, label="promised by the half-maps")
        axes.plot(frequency, curves.at_most, color=SKY_BLUE, linewidth=1.2, label="at most")
        axes.plot(frequency, curves.expected, color=VERMILION, linewidth=2.2, label="expected of the domain")
        if curves.truth is not None:
            axes.plot(frequency, curves.truth, color=BLACK, linewidth=1.4, linestyle="--", label="truth")
        axes.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        _resolution_axis(axes, 2.0 * pixel_size, spacing=0.14)
        axes.set_xlabel("resolution (Å)")
        axes.set_ylim(0.0, 1.03)
        axes.set_title(title, fontsize=11)
    rows[0].set_ylabel("FSC of the map with the truth")
    figure.legend(*rows[-1].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=9)
    return figure


def pose_changes_figure(
    rotation_change: Array,
    shift_change: Array,
    *,
    rotation_extent: float,
    shift_extent: float,
    at_rotation_extent: float | None = None,
    at_shift_extent: float | None = None,
) -> Figure:
    """How far refinement moved each particle from its starting pose, against the search extents.

    A pile-up at a line means that the search was too narrow for those particles. The shift extent bounds what
    is left after the rotation about the fulcrum has moved the particle, so total shifts may lie beyond it.

    Args:
        rotation_change: (n,) total angle in degrees.
        shift_change: (n,) length in Å.
        rotation_extent: degrees, largest angle searched.
        shift_extent: Å, largest shift searched.
        at_rotation_extent: share of particles at the limit as the search counted it; without it, the share
            whose change exceeds 95 % of the extent is stated.
        at_shift_extent: the same for shifts.

    Raises:
        ValueError: no particles, or an extent that is not positive.
    """
    figure = Figure(figsize=(10.0, 3.9), layout="constrained")
    panels: NDArray[Any] = np.asarray(figure.subplots(1, 2))
    _change_panel(panels[0], rotation_change, rotation_extent, "rotation change", "°", at_rotation_extent)
    _change_panel(panels[1], shift_change, shift_extent, "shift change", " Å", at_shift_extent)
    figure.suptitle(f"Pose changes of {len(rotation_change):,} particles since the start", fontsize=11)
    return figure


def pose_moves_figure(turns: Array, shifts: Array, *, rotation_extent: float, shift_extent: float) -> Figure:
    """What extents per axis limit: each component of the turns and shifts, between its two limits.

    A smooth hump well inside the lines is good; columns that stand at a line are particles that the search
    would not let go farther.

    Args:
        turns: (n, 3) degrees, rotation vectors from the starting poses, about x, y, z of the map.
        shifts: (n, 2) Å, movement of the fulcrum's projection along x, y of the image.
        rotation_extent: degrees.
        shift_extent: Å.

    Raises:
        ValueError: no particles.
    """
    if len(turns) == 0:
        raise ValueError("pose moves: no particles to draw")
    figure = Figure(figsize=(14.0, 3.6), layout="constrained")
    panels: NDArray[Any] = np.asarray(figure.subplots(1, 5))
    components = [(f"turn about {axis}", turns[:, k], rotation_extent, "°") for k, axis in enumerate("xyz")]
    components += [(f"shift along {axis}", shifts[:, k], shift_extent, " Å") for k, axis in enumerate("xy")]
    for axes, (name, values, extent, unit) in zip(panels, components, strict=True):
        # columns end at the limits, so that one that stands there is seen
        width = extent / 20.0 if extent > 0.0 else 0.005
        end = width * max(22, math.ceil(float(np.abs(values).max()) / width))
        bins = np.linspace(-end, end, 1 + round(2.0 * end / width)).tolist()
        # who stands at a limit may lie beyond it by rounding: into the last column within
        held = np.clip(values, -extent, extent * (1.0 - 1e-9))
        values = np.where(np.abs(values) <= 1.001 * extent, held, values)
        axes.hist(values, bins=bins, color=SKY_BLUE, edgecolor="white", linewidth=0.4)
        for limit in (-extent, extent):
            axes.axvline(limit, color=VERMILION, linewidth=1.8)
        share = float(np.mean(np.abs(values) > NEAR_EXTENT * extent)) if extent > 0.0 else 0.0
        text = f"{share:.1%} at a limit" if extent > 0.0 else "an extent of 0: not searched"
        axes.set_title(text, fontsize=10, color=VERMILION if share > AT_LIMIT else BLACK)
        axes.set_xlabel(f"{name} ({'degrees' if unit == '°' else unit.strip()})")
    panels[0].set_ylabel("particles")
    outside = np.maximum(
        np.abs(turns).max(axis=1) / max(rotation_extent, 1e-9) if rotation_extent > 0.0 else 0.0,
        np.abs(shifts).max(axis=1) / max(shift_extent, 1e-9) if shift_extent > 0.0 else 0.0,
    )
    share = float(np.mean(np.asarray(outside) > NEAR_EXTENT))
    figure.suptitle(
        f"Moves of {len(turns):,} particles against the extents per axis (red): {share:.1%} within 5 % of a "
        f"limit on some axis; up to {AT_LIMIT:.0%} is good", fontsize=11,
    )  # fmt: skip
    return figure


def scale_figure(scales: Array) -> Figure:
    """Per-particle scale: the contrast of each image against the map's.

    One narrow hump about 1 is good; a second hump is ice or junk of another contrast. Where no scale was
    refined all particles stand at 1, and the figure says so.

    Args:
        scales: (n,).

    Raises:
        ValueError: no particles.
    """
    if scales.size == 0:
        raise ValueError("scale: no particles to draw")
    figure = Figure(figsize=(6.4, 3.9), layout="constrained")
    axes = figure.subplots()
    spread, median = float(scales.std()), float(np.median(scales))
    end = max(0.1, 1.1 * float(np.abs(scales - 1.0).max()))
    axes.hist(scales, bins=np.linspace(1.0 - end, 1.0 + end, 62).tolist(), color=SKY_BLUE, edgecolor="white",
              linewidth=0.4)  # fmt: skip
    axes.axvline(1.0, color=BLACK, linewidth=1.0, linestyle=":")
    axes.set_xlabel("scale of a particle (contrast against the map)")
    axes.set_ylabel("particles")
    constant = spread < 1e-6
    axes.set_title(
        f"per-particle scale was not refined: all {scales.size:,} particles have {median:.3g}" if constant
        else f"per-particle scale of {scales.size:,} particles: median {median:.3f}, SD {spread:.3f}",
        fontsize=10,
    )  # fmt: skip
    return figure


def noise_figure(spectra: Mapping[str, Array], *, frequency: Array, pixel_size: float) -> Figure:
    """Noise variance by frequency, of each half-set and optics group, before and after the refinement.

    Good: high on the left, falling, flat or gently rising to the right, halves on top of each other, and the
    dashed curve (after) a little below the solid one where the map explains signal. A half or a group apart
    from the others has another grey scale, normalisation or dose; spikes are artefacts of images.

    Args:
        spectra: names such as `half_set_1_group_2_before` (or `_after`) to (n_shells,) variances.
        frequency: (n_shells,) in 1/Å, without the origin.
        pixel_size: Å.
    """
    figure = Figure(figsize=(8.6, 6.0), layout="constrained")
    above, below = np.asarray(figure.subplots(2, 1, sharex=True, height_ratios=[3, 1]))
    groups = sorted({name.split("_group_")[1].split("_")[0] for name in spectra}, key=int)
    for name, values in spectra.items():
        half, group, moment = name.split("_")[2], name.split("_group_")[1].split("_")[0], name.split("_")[-1]
        label = f"half-set {half}" + (f", optics group {group}" if len(groups) > 1 else "") + f", {moment}"
        faint = 1.0 if len(groups) == 1 else 0.35 + 0.65 * (groups.index(group) + 1) / len(groups)
        style: dict[str, Any] = {
            "color": BLUE if half == "1" else VERMILION, "linestyle": "-" if moment == "before" else "--",
            "linewidth": 1.6, "alpha": faint, "label": label,
        }  # fmt: skip
        above.plot(frequency, values, **style)
        if moment == "after":
            explained = 1.0 - values / spectra[name.removesuffix("after") + "before"]
            below.plot(frequency, 100.0 * explained, **{**style, "linestyle": "-"})
    above.set_yscale("log")
    above.set_ylabel("noise variance of a Fourier sample")
    above.set_title("Noise model: what the search took as noise (before), and less what the map explains "
                    "(after)", fontsize=11)  # fmt: skip
    below.axhline(0.0, color=GREY, linewidth=0.6)
    below.set_ylabel("explained (%)")
    _resolution_axis(below, 2.0 * pixel_size)
    above.grid(axis="x", color="#E5E5E5", linewidth=0.6)
    figure.legend(*above.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def twin_figure(
    frequency: Array, signal: Array, noise: Array, *, pixel_size: float, resolution: float
) -> Figure:
    """Mean power of a twin's images by shell: signal, noise of each optics group, and their sum.

    Args:
        frequency: (n_shells,) 1/Å.
        signal: (n_shells,) mean |F|^2 of the noise-free images.
        noise: (groups, n_shells).
        pixel_size: Å.
        resolution: Å, finer than which there is no signal.
    """
    figure = Figure(figsize=(7.0, 4.8), layout="constrained")
    axes = figure.add_subplot()
    inner = slice(1, None)
    for number, each in enumerate(noise):
        of = f", optics group {number + 1}" if len(noise) > 1 else ""
        label = f"noise that is added{of}"
        axes.plot(frequency[inner], each[inner], color=ORANGE, linewidth=1.6, label=label)
    axes.plot(
        frequency[inner], (noise.mean(axis=0) + signal)[inner], color=BLACK, linewidth=1.6,
        label="images: signal and noise, as in the real ones",
    )  # fmt: skip
    seen = signal > 1e-4 * noise.mean()
    shown = np.where(seen, signal, np.nan)
    axes.plot(
        frequency[inner], shown[inner], color=BLUE, linewidth=2.0, label="signal of both parts, with CTF"
    )
    axes.axvline(
        1.0 / resolution, color=VERMILION, linestyle="--", label=f"no signal beyond {resolution:.1f} Å"
    )
    axes.set_yscale("log")
    _resolution_axis(axes, 2.0 * pixel_size)
    axes.set_ylabel("mean power of a Fourier sample")
    axes.set_title("What the twin's images are made of", fontsize=11)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    return figure


@dataclass(frozen=True)
class ViewHistogram:
    """How often views of equal solid angle occur.

    Attributes:
        longitude: (m + 1,) edges in degrees, `rlnAngleRot`.
        latitude: (l + 1,) edges in degrees, 90 less `rlnAngleTilt`.
        count: (l, m) views.
    """

    longitude: Array
    latitude: Array
    count: NDArray[np.floating[Any]]

    @property
    def relative(self) -> Array:
        """(l, m) counts over what an even distribution gives."""
        return self.count / max(float(self.count.mean()), 1e-12)

    def rows(self) -> dict[str, Array]:
        """Columns of a table, one row a field: its centre in degrees, count and relative count."""
        latitude, longitude = np.meshgrid(_middle(self.latitude), _middle(self.longitude), indexing="ij")
        columns = {"rot": longitude, "tilt": 90.0 - latitude, "views": self.count, "relative": self.relative}
        return {name: values.ravel() for name, values in columns.items()}


def view_histogram(views: Array) -> ViewHistogram:
    """Histogram of viewing directions (n, 3) in fields of equal area, about 20 views in each if even."""
    rings = int(np.clip(round(math.sqrt(len(views) / 40.0)), 4, 24))
    latitude = np.degrees(np.arcsin(np.linspace(-1.0, 1.0, rings + 1)))
    longitude = np.linspace(-180.0, 180.0, 2 * rings + 1)
    count, _, _ = np.histogram2d(
        np.degrees(np.arcsin(np.clip(views[:, 2], -1.0, 1.0))),
        np.degrees(np.arctan2(views[:, 1], views[:, 0])), bins=(latitude, longitude),
    )  # fmt: skip
    return ViewHistogram(longitude, latitude, count)


def views_figure(histogram: ViewHistogram, *, scf: float) -> Figure:
    """How often each viewing direction occurs, on an equal-area map of the sphere.

    Good: about one colour everywhere. A few bright fields with dark regions elsewhere are preferred views;
    they matter where a whole great circle stays dark, which is what SCF* measures.

    Args:
        histogram: of the views.
        scf: SCF*, stated in the heading.
    """
    figure, axes = _globe()
    relative = histogram.relative
    longitude, latitude = _fine_grid()
    # fields are wide: drawn by their corners they would leave the rim of the map white
    row = np.searchsorted(histogram.latitude, _middle(latitude)) - 1
    column = np.searchsorted(histogram.longitude, _middle(longitude)) - 1
    image = axes.pcolormesh(
        np.radians(longitude), np.radians(latitude), relative[np.ix_(row, column)], cmap="viridis", vmin=0.0,
        vmax=max(2.0, float(relative.max())),
    )  # fmt: skip
    bar = figure.colorbar(image, ax=axes, shrink=0.7, pad=0.03)
    bar.set_label("views, as a multiple of an even distribution")
    empty = float(np.mean(histogram.count == 0))
    figure.suptitle(
        f"Viewing directions of {int(histogram.count.sum()):,} particles: {empty:.0%} of the fields are "
        f"empty, the fullest holds {float(relative.max()):.1f} times its share;\nSCF* {scf:.2f} "
        f"({LEAST_SCF:g} or more is good)", fontsize=10,
    )  # fmt: skip
    return figure


def precision_figure(directions: Array, precision: Array) -> Figure:
    """How precisely the map is known seen from each direction, on an equal-area map of the sphere.

    Good: one colour, largest over smallest below 10. Opposite directions see the same slice.

    Args:
        directions: (m, 3) unit vectors of a half sphere.
        precision: (m,) relative to the mean.
    """
    longitude, latitude = _fine_grid()
    centres = np.radians(np.meshgrid(_middle(longitude), _middle(latitude)))
    across = np.cos(centres[1])
    points = np.stack([across * np.cos(centres[0]), across * np.sin(centres[0]), np.sin(centres[1])], axis=-1)
    nearest = np.abs(points @ directions.T).argmax(axis=-1)
    figure, axes = _globe()
    image = axes.pcolormesh(np.radians(longitude), np.radians(latitude), precision[nearest], cmap="viridis",
                            vmin=0.0, vmax=max(2.0, float(precision.max())))  # fmt: skip
    bar = figure.colorbar(image, ax=axes, shrink=0.7, pad=0.03)
    bar.set_label("precision of the slice, 1 on average")
    ratio = precision_ratio(precision)
    verdict = "within an order of magnitude" if ratio <= PRECISION_RATIO else "TOO UNEVEN: directions lack"
    figure.suptitle(
        f"Posterior precision by viewing direction: {float(precision.min()):.2f} to "
        f"{float(precision.max()):.2f} of the mean,\nlargest over smallest {ratio:.1f} ({verdict})",
        fontsize=10,
    )  # fmt: skip
    return figure


def conical_fsc_figure(curves: Array, *, frequency: Array, pixel_size: float, cfar: float) -> Figure:
    """FSC within cones about many directions: their spread, and the worst and best.

    Good: a narrow band. A wide one that only opens where the curves fall is a map whose resolution depends on
    the direction.

    Args:
        curves: (m, n_shells).
        frequency: (n_shells,) in 1/Å.
        pixel_size: Å.
        cfar: smallest area under a curve over the largest, stated in the heading.
    """
    figure = Figure(figsize=(8.6, 5.2), layout="constrained")
    axes = figure.subplots()
    low, tenth, middle, ninetieth, high = np.percentile(curves, [0, 10, 50, 90, 100], axis=0)
    axes.fill_between(frequency, low, high, color=SKY_BLUE, alpha=0.35, linewidth=0,
                      label=f"all {len(curves)} cones")  # fmt: skip
    axes.fill_between(frequency, tenth, ninetieth, color=BLUE, alpha=0.35, linewidth=0,
                      label="the middle 80 %")  # fmt: skip
    axes.plot(frequency, middle, color=BLACK, linewidth=1.6, label="median")
    axes.axhline(0.143, color=GREY, linewidth=0.8, linestyle=":")
    axes.axhline(0.0, color=GREY, linewidth=0.6)
    _resolution_axis(axes, 2.0 * pixel_size)
    axes.set_ylim(-0.3, 1.03)
    axes.set_ylabel("Fourier shell correlation within a cone")
    verdict = "even" if cfar >= LEAST_CFAR else "UNEVEN"
    axes.set_title(
        f"FSC by direction, under the aligning mask: cFAR {cfar:.2f} ({LEAST_CFAR:g} or more is good; "
        f"{verdict})", fontsize=11,
    )  # fmt: skip
    axes.legend(fontsize=9)
    return figure


def _fine_grid() -> tuple[Array, Array]:
    """Edges of longitude and latitude in degrees, fine enough to look smooth."""
    return np.linspace(-180.0, 180.0, 181), np.linspace(-90.0, 90.0, 91)


def _middle(edges: Array) -> Array:
    return 0.5 * (edges[1:] + edges[:-1])


def _globe() -> tuple[Figure, Axes]:
    """An empty equal-area (Mollweide) map of directions, named by RELION's angles."""
    figure = Figure(figsize=(9.0, 4.6), layout="constrained")
    axes = figure.add_subplot(projection="mollweide")
    axes.grid(color="white", alpha=0.4, linewidth=0.5)
    tilts = (30, 60, 90, 120, 150)
    axes.set_yticks([math.radians(90 - tilt) for tilt in tilts], [f"{tilt}°" for tilt in tilts], fontsize=8)
    turns = (-120, -60, 0, 60, 120)
    axes.set_xticks([math.radians(turn) for turn in turns], [f"{turn}°" for turn in turns], fontsize=8,
                    color="white")  # fmt: skip
    axes.set_xlabel("rot, across (rlnAngleRot); tilt, up and down (rlnAngleTilt, 0° at the top)", fontsize=9)
    return figure, axes


def guinier_figure(columns: Mapping[str, Array], *, pixel_size: float, b_factor: float, title: str) -> Figure:
    """Guinier plot: ln amplitude of a map against 1/d^2, with the line that gave its B-factor.

    Args:
        columns: (n_shells,) each: `inverse_square` (1/Å^2), `raw`, `weighted`, `weighted_sd`, `fitted` (nan
            outside the fit) and `sharpened`.
        pixel_size: Å.
        b_factor: Å^2, as applied.
        title: heading of the figure.
    """
    figure = Figure(figsize=(8.6, 5.4), layout="constrained")
    axes = figure.subplots()
    square = columns["inverse_square"]
    shown = slice(1, None)
    for name, colour, label in (
        ("raw", GREY, "mean of the half maps under the mask"),
        ("sharpened", GREEN, f"FSC-weighted, sharpened by {b_factor:.0f} Å²"),
    ):
        axes.plot(square[shown], columns[name][shown], color=colour, linewidth=1.4, label=label)
    weighted, spread = columns["weighted"][shown], columns["weighted_sd"][shown]
    axes.errorbar(
        square[shown], weighted, yerr=spread, color=BLUE, linewidth=1.4, elinewidth=0.8, marker=".",
        label="FSC-weighted, with its scatter by chance",
    )  # fmt: skip
    fitted = columns["fitted"]
    if np.isfinite(fitted).any():
        axes.plot(square, fitted, color=VERMILION, linewidth=2.6, label="fitted line", zorder=5)
    end = 1.0 / (2.0 * pixel_size) ** 2
    resolutions = [value for value in _RESOLUTION_TICKS if end / 400.0 < value**-2 <= end]
    ticks: list[float] = []
    for value in resolutions:
        if not ticks or value**-2 - ticks[-1] ** -2 > 0.06 * end:
            ticks.append(value)
    axes.set_xlim(0.0, end)
    axes.set_xticks([value**-2 for value in ticks], [f"{value:g}" for value in ticks])
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)
    seen = np.concatenate([columns["raw"][shown], weighted[np.isfinite(weighted)]])
    margin = 0.06 * float(seen.max() - seen.min())
    axes.set_ylim(float(seen.min()) - margin, float(seen.max()) + margin)
    axes.set_xlabel("resolution d (Å); the axis is linear in 1/d² and ends at Nyquist")
    axes.set_ylabel("ln of the mean amplitude")
    axes.set_title(title, fontsize=11)
    axes.legend(fontsize=9, loc="upper right")
    return figure


def local_resolution_figure(
    resolution: Array, volume: Array, mask: Array, *, pixel_size: float, floor: float, title: str
) -> Figure:
    """Slices of a map through the centre of its mask, coloured by local resolution, and its distribution.

    The first and the last bar hold what lies beyond them too.

    Args:
        resolution: (d, d, d) Å.
        volume: (d, d, d) the map whose density gives the brightness.
        mask: (d, d, d) in [0, 1]; what it exceeds 0.5 in is drawn and counted.
        pixel_size: Å.
        floor: Å, the coarsest value told.
        title: heading of the figure.

    Raises:
        ValueError: the mask exceeds 0.5 nowhere, or the shapes do not fit.
    """
    _check_volume(volume, mask)
    kept = (mask > MASK_EDGE).astype(np.float64)
    if not kept.any():
        raise ValueError("the mask exceeds 0.5 nowhere: there is no local resolution to draw")
    values = resolution[kept > 0.0]
    low, high = resolution_range(values)
    index = _mask_centre(mask)
    position = _position_of(index, volume.shape[0], pixel_size)
    colours = LinearSegmentedColormap.from_list("resolution", [BLUE, "#F2F2F2", VERMILION])
    dark, bright = _grey_range([_cut(volume, plane, index) for plane in _PLANES])
    figure = Figure(figsize=(13.5, 3.9), layout="constrained")
    panels: NDArray[Any] = np.asarray(figure.subplots(1, 4))
    for panel, plane in zip(panels[:3], _PLANES, strict=True):
        cut = _cut(resolution, plane, index)
        picture = colours(np.clip((cut - low) / (high - low), 0.0, 1.0))
        light = 0.3 + 0.7 * np.clip((_cut(volume, plane, index) - dark) / (bright - dark), 0.0, 1.0)
        picture[..., :3] *= (light * _cut(kept, plane, index))[..., None]
        panel.imshow(
            picture, origin="lower", extent=_extent(cut.shape[0], pixel_size), interpolation="nearest"
        )
        _name_axes(panel, plane, position)
    bins = np.linspace(low, high, 31)
    counts, _ = np.histogram(np.clip(values, low, high), bins)
    middles = 0.5 * (bins[1:] + bins[:-1])
    panels[3].bar(
        middles, counts / values.size, width=bins[1] - bins[0],
        color=colours((middles - low) / (high - low)), edgecolor=GREY, linewidth=0.4,
    )  # fmt: skip
    panels[3].set_xlabel("local resolution (Å)")
    panels[3].set_ylabel("share of the mask")
    at_floor = float(np.mean(values > 0.999 * floor))
    panels[3].set_title(
        f"median {float(np.median(values)):.1f} Å, {at_floor:.1%} at the floor ({floor:.0f} Å)", fontsize=9
    )
    figure.suptitle(title, fontsize=11)
    return figure


def resolution_range(values: Array) -> tuple[float, float]:
    """Resolutions (Å) at the ends of the colours: 2nd and 98th percentile, at least 0.5 Å apart."""
    low, high = (float(value) for value in np.percentile(values, [2.0, 98.0]))
    middle = 0.5 * (low + high)
    return min(low, middle - 0.25), max(high, middle + 0.25)


def _change_panel(
    axes: Axes, change: Array, extent: float, name: str, unit: str, at_limit: float | None
) -> None:
    if change.size == 0:
        raise ValueError(f"{name}: no particles to draw")
    if extent < 0.0:
        raise ValueError(f"{name}: the search extent is {extent}, must not be negative")
    # an extent of 0 holds the pose: what is left is rounding or a swing, drawn on an axis of ordinary width
    end = 1.05 * max(extent, float(change.max()), 0.1)
    # a column ends at the limit and takes who stands there, so that nobody seems to lie beyond it by rounding
    width = extent / 40.0 if extent > 0.0 else end / 40.0
    bins = (width * np.arange(math.ceil(end / width) + 1)).tolist()
    held = np.where(np.abs(change - extent) <= 1e-3 * extent, extent * (1.0 - 1e-9), change)
    axes.hist(held, bins=bins, color=SKY_BLUE, edgecolor="white", linewidth=0.4)
    axes.axvline(extent, color=VERMILION, linewidth=1.8, label=f"search extent {extent:g}{unit}")
    median = float(np.median(change))
    axes.axvline(median, color=BLACK, linewidth=1.2, linestyle="--", label=f"median {median:.1f}{unit}")
    if extent == 0.0:
        text = "an extent of 0: nothing was searched"
    elif at_limit is None:
        share = float(np.mean(change > NEAR_EXTENT * extent))
        text = f"{share:.1%} of the particles changed by more than {NEAR_EXTENT:.0%} of the extent"
    else:
        text = f"{at_limit:.1%} of the particles ended at the limit of the search"
    axes.set_title(text, fontsize=10)
    axes.set_xlim(0.0, end)
    axes.set_xlabel(f"{name} ({'degrees' if unit == '°' else unit.strip()})")
    axes.set_ylabel("particles")
    axes.legend(fontsize=8, loc="best")


def _resolution_axis(axes: Axes, nyquist: float, *, spacing: float = 0.07) -> None:
    ticks = resolution_ticks(nyquist, spacing=spacing)
    axes.set_xlim(0.0, 1.0 / nyquist)
    axes.set_xticks([frequency for frequency, _ in ticks], [label for _, label in ticks])
    axes.set_xlabel("resolution (Å); the axis is linear in 1/Å and ends at Nyquist")
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)


def _crossing_text(resolution: float, nyquist: float) -> str:
    if resolution <= nyquist * 1.0001:
        return f"{nyquist:.3g} Å (Nyquist; never below 0.143)"
    return f"{resolution:.2f} Å"


def _check_volume(volume: Array, mask: Array | None) -> None:
    if volume.ndim != 3 or len(set(volume.shape)) != 1:
        raise ValueError(f"the map has shape {volume.shape}, must be a cube (d, d, d)")
    if mask is not None and mask.shape != volume.shape:
        raise ValueError(f"the mask has shape {mask.shape}, the map {volume.shape}: they must share one box")


def _voxel_of(point: Sequence[float], size: int, pixel_size: float) -> tuple[int, int, int]:
    """Array index (z, y, x) of the voxel nearest to a point (x, y, z) in Å from the box centre."""
    x, y, z = (round(value / pixel_size) + size // 2 for value in point)
    if not all(0 <= value < size for value in (x, y, z)):
        half = 0.5 * size * pixel_size
        raise ValueError(
            f"the fulcrum {tuple(round(float(v), 1) for v in point)} Å lies outside the box, which reaches "
            f"±{half:.1f} Å from its centre: give (x, y, z) in Å from the box centre"
        )
    return z, y, x


def _position_of(index: tuple[int, int, int], size: int, pixel_size: float) -> tuple[float, float, float]:
    """(x, y, z) in Å from the box centre of an array index (z, y, x)."""
    z, y, x = ((value - size // 2) * pixel_size for value in index)
    return x, y, z


def _mask_centre(mask: Array) -> tuple[int, int, int]:
    total = float(mask.sum(dtype=np.float64))
    if total <= 0.0:
        raise ValueError("the mask is zero everywhere: it has no centre to cut through")
    ramp = np.arange(mask.shape[0])
    z, y, x = (
        round(float(mask.sum(axis=tuple(k for k in range(3) if k != axis), dtype=np.float64) @ ramp) / total)
        for axis in range(3)
    )
    return z, y, x


def _cut(volume: Array, plane: _Plane, index: tuple[int, int, int]) -> Array:
    # What remains of (z, y, x) after one axis is taken out is (up, across) for each of the three planes.
    return np.take(volume, index[plane.axis], axis=plane.axis)


def _grey_range(cuts: Sequence[Array]) -> tuple[float, float]:
    low, high = np.percentile(np.stack(cuts), [0.5, 99.8])
    return float(low), float(high) if high > low else float(low) + 1.0


def _extent(size: int, pixel_size: float) -> tuple[float, float, float, float]:
    start = (-(size // 2) - 0.5) * pixel_size
    return (start, start + size * pixel_size, start, start + size * pixel_size)


def _three_panels(title: str) -> tuple[Figure, tuple[Axes, ...]]:
    figure = Figure(figsize=(12.0, 4.8), layout="constrained")
    figure.suptitle(title, fontsize=12)
    return figure, tuple(np.asarray(figure.subplots(1, 3)).tolist())


def _show(axes: Axes, cut: Array, pixel_size: float, low: float, high: float) -> None:
    axes.imshow(
        cut, origin="lower", extent=_extent(cut.shape[0], pixel_size), cmap="gray", vmin=low, vmax=high,
        interpolation="nearest",
    )  # fmt: skip


def _name_axes(axes: Axes, plane: _Plane, position: Sequence[float]) -> None:
    normal = _XYZ[2 - plane.axis]
    axes.set_title(
        f"{plane.across}{plane.up} slice at {normal} = {position[2 - plane.axis]:.1f} Å", fontsize=10
    )
    axes.set_xlabel(f"{plane.across} (Å from the box centre)")
    axes.set_ylabel(f"{plane.up} (Å)")


def _outline(axes: Axes, cover: Array, pixel_size: float) -> None:
    grid = (np.arange(cover.shape[0]) - cover.shape[0] // 2) * pixel_size
    peak = float(cover.max())
    if peak > MASK_EDGE:
        axes.contour(grid, grid, cover, levels=[MASK_EDGE], colors=[ORANGE], linewidths=1.6)
    if peak > MASK_END:
        axes.contour(
            grid, grid, cover, levels=[MASK_END], colors=[ORANGE], linewidths=1.0, linestyles="dashed"
        )


def _cross(axes: Axes, plane: _Plane, fulcrum: Sequence[float]) -> None:
    across, up = fulcrum[_XYZ.index(plane.across)], fulcrum[_XYZ.index(plane.up)]
    # A white rim keeps the cross visible on both dark and bright density.
    axes.plot([across], [up], marker="+", markersize=17, markeredgewidth=4.0, color="white", linestyle="none")
    axes.plot(
        [across], [up], marker="+", markersize=15, markeredgewidth=2.0, color=VERMILION, linestyle="none"
    )


def _mask_keys(with_mask: bool) -> list[Line2D]:
    keys = [
        Line2D(
            [],
            [],
            marker="+",
            markersize=12,
            markeredgewidth=2.0,
            color=VERMILION,
            linestyle="none",
            label="fulcrum",
        )
    ]
    if with_mask:
        keys.append(Line2D([], [], color=ORANGE, linewidth=1.6, label=f"mask = {MASK_EDGE:g}"))
        keys.append(
            Line2D(
                [],
                [],
                color=ORANGE,
                linewidth=1.0,
                linestyle="--",
                label=f"mask = {MASK_END:g}, end of the soft edge",
            )
        )
    return keys


def _legend_below(figure: Figure, keys: list[Line2D]) -> None:
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), fontsize=9, frameon=False)
