"""The inner loops of a search as single functions of plain arrays, for `torch.compile` to fuse.

Reading slices, on a grid of rotations and with their derivatives, takes most of the time. Run eagerly, each
operation passes over memory by itself; `cryosweep.likelihood` does what can be done about that. Compiled, a
sample is read, used and summed in registers: on a CPU the compiler makes one loop of each function, on a GPU
one Triton kernel.

Compiling takes half a minute the first time and pays for long jobs only, so it is the caller's choice.
Everything that changes from call to call is an argument with a symbolic size, so that one compilation serves
all bands and boxes. Writing slices stays eager: compiled, its additions are atomic, and slower.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

log = logging.getLogger(__name__)

# Row and column of the entries of a symmetric 5 x 5 matrix, in the order of `quadratic_sums`.
PAIRS = tuple((a, b) for a in range(5) for b in range(a, 5))


def quadratic_sums(
    table: Tensor, k: Tensor, images: Tensor, weights: Tensor, owner: Tensor, rotations: Tensor,
    shifts_px: Tensor, side: int, pad: int, box_size: int,
) -> Tensor:  # fmt: skip
    """Log-likelihood at b poses with gradient and curvature; formulas in `cryosweep.likelihood`.

    Args:
        table: (side^3, 2) transform of the map, real and imaginary parts.
        k: (K, 2) integer frequencies.
        images: (n, K' , 2) Y, K' >= K, contiguous.
        weights: (n, K') W, contiguous.
        owner: (b,) image of each pose.
        rotations: (b, 3, 3).
        shifts_px: (b, 2).
        side: points along an edge of the cube.
        pad: points of the cube per shell.
        box_size: px.

    Returns:
        (b, 21): the value, 5 of the gradient, 15 of the upper half of the curvature by rows.
    """
    kx, ky = k[:, 0], k[:, 1]
    r = [[rotations[:, i, j, None] for j in range(3)] for i in range(3)]
    half = side // 2
    x, y, z = (pad * (r[0][axis] * kx + r[1][axis] * ky) + half for axis in range(3))
    cell_x, cell_y, cell_z = x.floor(), y.floor(), z.floor()
    index = (cell_z.int() * side + cell_y.int()) * side + cell_x.int()
    x, y, z = x - cell_x, y - cell_y, z - cell_z

    def interpolate(part: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Value and derivative, in the frame of the view, of the trilinear form."""
        low, high = index, index + side * side
        v000, v001, v010, v011 = (part[low + step] for step in (0, 1, side, side + 1))
        v100, v101, v110, v111 = (part[high + step] for step in (0, 1, side, side + 1))
        d00, d01, d10, d11 = v001 - v000, v011 - v010, v101 - v100, v111 - v110
        a00, a01, a10, a11 = v000 + x * d00, v010 + x * d01, v100 + x * d10, v110 + x * d11
        d0, d1 = a01 - a00, a11 - a10
        b0, b1 = a00 + y * d0, a10 + y * d1
        along_x0, along_x1 = d00 + y * (d01 - d00), d10 + y * (d11 - d10)
        gradient = (along_x0 + z * (along_x1 - along_x0), d0 + z * (d1 - d0), b1 - b0)
        turned = [pad * (row[0] * gradient[0] + row[1] * gradient[1] + row[2] * gradient[2]) for row in r]
        return b0 + z * (b1 - b0), turned

    real, slope_real = interpolate(table[:, 0])
    imaginary, slope_imaginary = interpolate(table[:, 1])
    ramp = (2.0 * math.pi / box_size) * (shifts_px[:, 0, None] * kx + shifts_px[:, 1, None] * ky)
    cosine, sine = torch.cos(ramp), torch.sin(ramp)
    place = owner[:, None] * weights.shape[1] + torch.arange(k.shape[0], device=k.device)
    weight = weights.view(-1)[place]
    image_real, image_imaginary = (images.view(-1, 2)[:, part][place] for part in (0, 1))
    centred_real = image_real * cosine - image_imaginary * sine
    centred_imaginary = image_real * sine + image_imaginary * cosine
    left_real = centred_real - weight * real
    left_imaginary = centred_imaginary - weight * imaginary

    wave = 2.0 * math.pi / box_size
    jacobian = [
        (-slope_real[2] * ky, -slope_imaginary[2] * ky),
        (slope_real[2] * kx, slope_imaginary[2] * kx),
        (slope_real[0] * ky - slope_real[1] * kx, slope_imaginary[0] * ky - slope_imaginary[1] * kx),
        (wave * imaginary * kx, -wave * real * kx),
        (wave * imaginary * ky, -wave * real * ky),
    ]
    sums = [(real * (centred_real + left_real) + imaginary * (centred_imaginary + left_imaginary)).sum(1)]
    sums += [2.0 * (a * left_real + b * left_imaginary).sum(1) for a, b in jacobian]
    for first, second in PAIRS:
        (a, b), (c, d) = jacobian[first], jacobian[second]
        sums.append(2.0 * (weight * (a * c + b * d)).sum(1))
    return torch.stack(sums, dim=1)


def grid_products(
    table: Tensor, k: Tensor, images: Tensor, weights: Tensor, rotations: Tensor, shifts_px: Tensor,
    side: int, pad: int, box_size: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What the log-likelihood of b images on a grid of r rotations is made of, slices read at nearest points.

    Args:
        table: (side^3, 2) transform of the map, real and imaginary parts.
        k: (K, 2) integer frequencies.
        images: (b, K', 2) Y, K' >= K, contiguous.
        weights: (b, K') W, contiguous.
        rotations: (b, r, 3, 3).
        shifts_px: (b, r, 2).
        side: points along an edge of the cube.
        pad: points of the cube per shell.
        box_size: px.

    Returns:
        cross (b, r, K, 2): `conj(Y) S ph`; norm (b, r): `sum W |S|^2`.
    """
    kx, ky = k[:, 0], k[:, 1]
    half = side // 2
    x, y, z = (
        (pad * (rotations[:, :, 0, axis, None] * kx + rotations[:, :, 1, axis, None] * ky)).round().int()
        + half
        for axis in range(3)
    )
    index = (z * side + y) * side + x
    real, imaginary = table[:, 0][index], table[:, 1][index]
    row = torch.arange(rotations.shape[0], device=k.device)[:, None, None] * weights.shape[1]
    place = row + torch.arange(k.shape[0], device=k.device)
    weight = weights.view(-1)[place]
    image_real, image_imaginary = (images.view(-1, 2)[:, part][place] for part in (0, 1))
    ramp = (2.0 * math.pi / box_size) * (shifts_px[..., 0, None] * kx + shifts_px[..., 1, None] * ky)
    cosine, sine = torch.cos(ramp), torch.sin(ramp)
    turned_real = image_real * cosine - image_imaginary * sine
    turned_imaginary = image_real * sine + image_imaginary * cosine
    cross = torch.stack(
        [
            turned_real * real + turned_imaginary * imaginary,
            turned_real * imaginary - turned_imaginary * real,
        ],
        dim=-1,
    )
    return cross, (weight * (real.square() + imaginary.square())).sum(-1)


@cache
def compiled_grid_products() -> Callable[..., tuple[Tensor, Tensor]]:
    """`grid_products`, compiled for any sizes."""
    return torch.compile(grid_products, dynamic=True)


@cache
def compiled_quadratic_sums() -> Callable[..., Tensor]:
    """`quadratic_sums`, compiled for any sizes."""
    return torch.compile(quadratic_sums, dynamic=True)


def can_compile(device: torch.device) -> bool:
    """Whether both functions compile here and give what they give eagerly; if not, the log says why.

    A compiler that is missing, or one that a PyTorch release does not know, shows only when it is used.
    """
    try:
        return _compiles(device)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        log.warning(
            "compute.compile: the inner loops cannot be compiled here (%s); they run uncompiled, about half "
            "as fast", reason[0],
        )  # fmt: skip
        return False


@cache
def _compiles(device: torch.device) -> bool:
    side, pad, box_size = 9, 1, 6
    seeded = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=seeded).to(device)

    k = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], device=device)
    rotations = torch.linalg.qr(drawn(2, 3, 3)).Q
    read = (drawn(side**3, 2), k, drawn(3, 4, 2), drawn(3, 4).abs(), torch.tensor([2, 0], device=device))
    pose = (rotations, drawn(2, 2))
    expected = quadratic_sums(*read, *pose, side, pad, box_size)
    found = compiled_quadratic_sums()(*read, *pose, side, pad, box_size)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    grid = (torch.linalg.qr(drawn(3, 2, 3, 3)).Q, drawn(3, 2, 2))
    table, k, images, weights, _ = read
    on_grid = (table, k, images, weights, *grid, side, pad, box_size)
    torch.testing.assert_close(
        compiled_grid_products()(*on_grid), grid_products(*on_grid), rtol=1e-4, atol=1e-4
    )
    return True
