"""Slices of every map of a study as pictures: one grey scale, one contour level, the mask outlined."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from skimage.filters import threshold_otsu

from cryosweep.diagnostics import MASK_EDGE, MASK_END, ORANGE, SKY_BLUE
from cryosweep.io.maps import Map, read_map

Array = NDArray[np.floating[Any]]


def contour_level(maps: Sequence[Path], mask: Map) -> float:
    """One density for the contours of all maps: Otsu's threshold of their voxels in the mask, pooled.

    It parts the voxels into two classes of least variance within (Otsu 1979, IEEE Trans. SMC 9, 62), so no
    map has a say of its own. It is taken once; a map of little contrast then shows little.

    Args:
        maps: files on the grid of the mask.
        mask: voxels above 0.5 count.
    """
    inside = mask.data.numpy() > MASK_EDGE
    voxels = np.concatenate([read_map(path).data.numpy()[inside] for path in maps])
    # a few voxels far out would leave Otsu's histogram with a handful of bins
    low, high = np.percentile(voxels, [0.1, 99.9])
    return float(threshold_otsu(voxels.clip(low, high)))


def slice_pictures(maps: Sequence[tuple[str, Path]], mask: Map, level: float) -> list[tuple[str, str]]:
    """Label and PNG (data URI) of every map: same slices, same region, same grey scale, same contour level.

    Args:
        maps: label and file of each.
        mask: gives the region, and is outlined at 0.5.
        level: density of the contour line.
    """
    cover = mask.data.numpy()
    centre, window = mask_region(cover)
    outline = _cuts(cover, centre, window)
    images = [(label, _cuts(read_map(path).data.numpy(), centre, window)) for label, path in maps]
    pool = np.concatenate([image.ravel() for _, cuts in images for image in cuts])
    low, high = (float(value) for value in np.percentile(pool, [0.5, 99.8]))
    return [(label, _png(cuts, outline, mask.pixel_size, (low, high), level)) for label, cuts in images]


def mask_region(mask: Array) -> tuple[tuple[int, ...], tuple[slice, ...]]:
    """The mask's centre of mass (z, y, x) and the box around it with a margin of two voxels."""
    centre: list[int] = []
    window: list[slice] = []
    for axis in range(3):
        others = tuple(k for k in range(3) if k != axis)
        profile = mask.sum(axis=others, dtype=np.float64)
        centre.append(round(float(profile @ np.arange(profile.size) / profile.sum())))
        inside = np.flatnonzero(mask.max(axis=others) > MASK_END)
        window.append(slice(max(int(inside[0]) - 2, 0), int(inside[-1]) + 3))
    return tuple(centre), tuple(window)


def _cuts(volume: Array, centre: tuple[int, ...], window: tuple[slice, ...]) -> list[Array]:
    """The xy, xz and yz slices through the centre, cropped."""
    cuts: list[Array] = []
    for axis in range(3):
        place: list[int | slice] = list(window)
        place[axis] = centre[axis]
        cuts.append(volume[tuple(place)])
    return cuts


def _png(
    cuts: Sequence[Array],
    outline: Sequence[Array],
    pixel_size: float,
    greys: tuple[float, float],
    level: float,
) -> str:
    figure = Figure(figsize=(6.0, 2.25), dpi=100)
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.01, top=0.9, wspace=0.03)
    panels = np.asarray(figure.subplots(1, 3))
    for axes, cut, cover, name in zip(panels, cuts, outline, ("xy", "xz", "yz"), strict=True):
        height, width = cut.shape
        extent = (0.0, width * pixel_size, 0.0, height * pixel_size)
        grid: Any = {"origin": "lower", "extent": extent}
        axes.imshow(cut, cmap="gray", vmin=greys[0], vmax=greys[1], interpolation="nearest", **grid)
        if float(cut.min()) < level < float(cut.max()):
            axes.contour(cut, levels=[level], colors=[SKY_BLUE], linewidths=0.7, **grid)
        if float(cover.max()) > MASK_EDGE:
            axes.contour(cover, levels=[MASK_EDGE], colors=[ORANGE], linewidths=1.0, **grid)
        bar, left = _scale_bar(width * pixel_size), 0.05 * extent[1]
        axes.plot([left, left + bar], [0.06 * extent[3]] * 2, color="white", linewidth=2.5)
        axes.text(left, 0.09 * extent[3], f"{bar:g} Å", color="white", fontsize=8)
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    with io.BytesIO() as stream:
        figure.savefig(stream, format="raw")
        width, height = (round(side * figure.dpi) for side in figure.get_size_inches())
        drawn = Image.frombytes("RGBA", (width, height), stream.getvalue()).convert("RGB")
    # greys and two lines need no 16 million colours: a quarter of the bytes
    drawn = drawn.quantize(palette=_palette(), dither=Image.Dither.NONE)
    with io.BytesIO() as stream:
        drawn.save(stream, format="png", optimize=True)
        return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _palette() -> Image.Image:
    """Greys, and the colours of both lines over dark, middle and light ground."""
    colours = [np.repeat(grey, 3) for grey in np.linspace(0.0, 255.0, 96)]
    for line in (ORANGE, SKY_BLUE):
        own = 255.0 * np.array(to_rgb(line))
        colours += [
            own * share + grey * (1.0 - share) for share in (0.4, 0.7, 1.0) for grey in (30, 110, 200)
        ]
    palette = Image.new("P", (1, 1))
    palette.putpalette([round(float(channel)) for colour in colours for channel in colour])
    return palette


def _scale_bar(width: float) -> float:
    """A round length of about a quarter of the picture."""
    return next((length for length in (100.0, 50.0, 20.0, 10.0, 5.0, 2.0) if length <= 0.4 * width), 1.0)
