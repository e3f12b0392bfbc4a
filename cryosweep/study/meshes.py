"""Coarse isosurfaces of a few maps of a study, small enough to travel inside a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from numpy.typing import NDArray
from skimage.measure import marching_cubes

from cryosweep.fourier import cut_cube, even_fft_size, resample_cube
from cryosweep.io.maps import Map, read_map
from cryosweep.study.pictures import mask_region

# Voxels along an edge of the coarsest grid worth looking at and of the finest that a page carries.
LEAST_GRID, MOST_GRID = 24, 48
# Triangles of one surface: 12 bytes each, and half as many vertices of 6.
MOST_FACES = 24_000
# Vertices are stored in steps of this many Å, which keeps them in two bytes for boxes up to 3,000 Å.
STEP = 0.1


def surface_figure(maps: Sequence[tuple[str, Path, str]], mask: Map, level: float) -> go.Figure:
    """A surface for each map, all at one density level, in one frame about the scoring mask.

    Each map is multiplied by the mask, cut out as a cube about it and, where that has more than `MOST_GRID`
    voxels along an edge, resampled to that many in Fourier space, which smooths it. A surface of more than
    `MOST_FACES` triangles is taken from a coarser grid again, so the page stays small whatever the map.

    Args:
        maps: label, file and colour of each.
        mask: scoring mask, on the grid of the maps.
        level: density, the same for all.
    """
    centre, window = mask_region(mask.data.numpy())
    half = mask.data.shape[-1] // 2
    z, y, x = (int(place) - half for place in centre)
    reach = max(
        max(place - side.start, side.stop - place) for place, side in zip(centre, window, strict=True)
    )
    size = min(even_fft_size(2.0 * reach + 2.0), int(mask.data.shape[-1]))
    if size == mask.data.shape[-1]:
        x = y = z = 0
    figure: Any = go.Figure()
    for label, path, colour in maps:
        cube = cut_cube(read_map(path).data * mask.data, (x, y, z), size)
        vertices, faces = _surface(cube.numpy(), level, mask.pixel_size)
        i, j, k = faces.T
        figure.add_trace(
            go.Mesh3d(
                x=vertices[:, 2],
                y=vertices[:, 1],
                z=vertices[:, 0],
                i=i,
                j=j,
                k=k,
                name=label,
                color=colour,
                hoverinfo="skip",
                lighting={"ambient": 0.45, "diffuse": 0.8, "specular": 0.15},
                lightposition={"x": 2000, "y": 3000, "z": 4000},
            )
        )
    edge = 0.5 * size * mask.pixel_size / STEP
    axis = {"visible": False, "range": [-edge, edge]}
    figure.update_layout(
        height=430, margin={"l": 0, "r": 0, "t": 0, "b": 0}, paper_bgcolor="white", showlegend=False,
        scene={"xaxis": axis, "yaxis": axis, "zaxis": axis, "aspectmode": "cube",
               "camera": {"eye": {"x": 0.75, "y": 0.75, "z": 0.5}}},
    )  # fmt: skip
    return figure


def _surface(
    cube: NDArray[np.float32], level: float, pixel_size: float
) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
    """Vertices (n, 3) in z, y, x from the middle of the cube, in steps of `STEP` Å, and triangles (m, 3)."""
    full = cube.shape[-1]
    grid = min(full, MOST_GRID)
    while True:
        coarse = resample_cube(torch.from_numpy(cube), grid).numpy()
        if not float(coarse.min()) < level < float(coarse.max()):
            return np.zeros((0, 3), np.int16), np.zeros((0, 3), np.uint16)
        vertices, faces, _, _ = marching_cubes(np.ascontiguousarray(coarse), level)
        if len(faces) <= MOST_FACES or grid <= LEAST_GRID:
            break
        grid = max(LEAST_GRID, 2 * (grid * 2 // 5))
    steps = (vertices - grid // 2) * (full / grid) * pixel_size / STEP
    return np.round(steps).astype(np.int16), faces.astype(np.uint16)
