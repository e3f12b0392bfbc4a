"""Central slices through a map's transform, their exact adjoint, and the projections built from them.

A `Reference` holds the transform of a map on a cube that is `pad` times finer than the images' own
frequency grid, divided beforehand by the transform of the interpolation kernel; slices are read from it by
trilinear interpolation. `insert` writes with the same weights, so it is the adjoint of `slices` to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cryosweep.fourier import (
    HalfPlane,
    centred_range,
    crop_centre,
    fft_centred,
    half_plane,
    images_of_spectrum,
    pad_centre,
    shift_phase,
)
from cryosweep.kernels import compiled_insert_sums


@dataclass(frozen=True)
class Reference:
    """A map's transform, ready to be sliced.

    Attributes:
        table: (side^3,) complex, a cube indexed z, y, x with the origin in the middle.
        side: points along an edge, odd.
        pad: points per shell.
        box_size: px of the map and its slices.
    """

    table: Tensor
    side: int
    pad: int
    box_size: int

    def up_to(self, max_shell: int) -> Reference:
        """The part that serves slices up to `max_shell`; small cubes stay in cache."""
        side = cube_side(max_shell, self.pad)
        if side >= self.side:
            return self
        cube = self.table.reshape(self.side, self.side, self.side)
        return Reference(crop_centre(cube, side, dims=3).reshape(-1), side, self.pad, self.box_size)


def interpolation_envelope(box_size: int, pad: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(d, d, d) factor of trilinear interpolation in the transform: product of sinc^2(x / pad d)."""
    position = centred_range(box_size, dtype=dtype, device=device) / (pad * box_size)
    line = torch.sinc(position) ** 2
    return line[:, None, None] * line[None, :, None] * line[None, None, :]


def cube_side(max_shell: int, pad: int) -> int:
    """Points along an edge of a cube that serves slices up to `max_shell` (the corners need one more)."""
    return 2 * (pad * (max_shell + 1)) + 1


def transform_cube(volume: Tensor, *, max_shell: int, pad: int) -> Tensor:
    """(side^3) complex transform of `volume` (d, d, d) on the padded grid, corrected for gridding."""
    n = int(volume.shape[-1])
    envelope = interpolation_envelope(n, pad, dtype=volume.dtype, device=volume.device)
    spectrum = fft_centred(pad_centre(volume / envelope, pad * n, dims=3), dims=3)
    side = cube_side(max_shell, pad)
    if side <= pad * n:
        return crop_centre(spectrum, side, dims=3)
    return pad_centre(spectrum, side, dims=3)


def make_reference(volume: Tensor, *, max_shell: int | None = None, pad: int = 2) -> Reference:
    """`volume` (d, d, d) made ready for slices up to `max_shell` (default: the last shell below Nyquist)."""
    n = int(volume.shape[-1])
    last = (n - 1) // 2 if max_shell is None else min(max_shell, (n - 1) // 2)
    cube = transform_cube(volume, max_shell=last, pad=pad)
    return Reference(cube.reshape(-1), int(cube.shape[0]), pad, n)


def _cells(plane: HalfPlane, rotations: Tensor, *, side: int, pad: int) -> tuple[Tensor, Tensor]:
    """Flat index of the cell (N,) and the position in it (3, N) of every sample, N = b * K."""
    # R^T (kx, ky, 0): two rows of R suffice
    points = torch.einsum("ki,bij->jbk", plane.k, rotations[:, :2, :]).reshape(3, -1)
    points = points * pad + (side // 2)
    cell = points.floor()
    index = ((cell[2] * side + cell[1]) * side + cell[0]).long()
    return index, points - cell


def _corners(reference: Reference, index: Tensor) -> Tensor:
    """(2, 2, 2, 2 N) values at the corners z, y, x of each cell, real and imaginary parts in turn.

    Eight gathers of whole complex numbers, kept interleaved: no other layout that was tried needs fewer
    passes over memory, and sums over samples do not care about the order (docs/performance.md).
    """
    side, table = reference.side, reference.table
    corners = table.new_empty(8, index.shape[0])
    for i, corner in enumerate(corners):
        offset = ((i >> 2) * side + (i >> 1 & 1)) * side + (i & 1)
        torch.index_select(table, 0, index + offset, out=corner)
    return torch.view_as_real(corners).reshape(2, 2, 2, -1)


def slices(reference: Reference, rotations: Tensor, plane: HalfPlane) -> Tensor:
    """Central slices of a map.

    Args:
        reference: the map.
        rotations: (b, 3, 3), in the dtype of the reference.
        plane: K samples.

    Returns:
        (b, K) complex transform of the unshifted projections.
    """
    index, position = _cells(plane, rotations, side=reference.side, pad=reference.pad)
    x, y, z = position.repeat_interleave(2, dim=1)
    corners = _corners(reference, index)
    along_x = torch.lerp(corners[:, :, 0], corners[:, :, 1], x)
    along_y = torch.lerp(along_x[:, 0], along_x[:, 1], y)
    value = torch.lerp(along_y[0], along_y[1], z)
    return torch.view_as_complex(value.reshape(rotations.shape[0], -1, 2))


def nearest_slices(reference: Reference, rotations: Tensor, plane: HalfPlane) -> Tensor:
    """Central slices read at the nearest point of the cube: one gather instead of eight.

    For a map that fills its box to r px from the centre, an error of at most `3^(1/2) pi r / pad n` rad in
    phase, n the box: 2 to 5 % of a slice's power at pad 2.

    Args:
        reference: the map.
        rotations: (b, 3, 3).
        plane: K samples.

    Returns:
        (b, K) complex.
    """
    side = reference.side
    axes = (rotations[:, :2].mT * reference.pad).reshape(-1, 2)
    points = (axes @ plane.k.mT).add_(side // 2).round_().int()
    x, y, z = points.reshape(rotations.shape[0], 3, -1).unbind(dim=1)
    index = (z * side + y) * side + x
    return reference.table.index_select(0, index.reshape(-1)).reshape(index.shape)


def slices_with_gradient(reference: Reference, rotations: Tensor, plane: HalfPlane) -> tuple[Tensor, Tensor]:
    """Central slices and their exact derivative with respect to the sampled point.

    The derivative is that of the trilinear form itself, from the same 8 corners.

    Args:
        reference: the map.
        rotations: (b, 3, 3).
        plane: K samples.

    Returns:
        value (b, K) complex; gradient (b, 3, 2 K) by x, y, z of the map frame, per integer frequency, real
        and imaginary parts in turn.
    """
    index, position = _cells(plane, rotations, side=reference.side, pad=reference.pad)
    x, y, z = position.repeat_interleave(2, dim=1)
    c = _corners(reference, index)
    step_x = c[:, :, 1] - c[:, :, 0]
    value_x = torch.addcmul(c[:, :, 0], x, step_x)
    step_y = value_x[:, 1] - value_x[:, 0]
    value_y = torch.addcmul(value_x[:, 0], y, step_y)
    step_xy = torch.addcmul(step_x[:, 0], y, step_x[:, 1] - step_x[:, 0])
    step_z = value_y[1] - value_y[0]
    value = torch.addcmul(value_y[0], z, step_z)
    batch = rotations.shape[0]
    gradient = torch.stack(
        [
            torch.addcmul(step_xy[0], z, step_xy[1] - step_xy[0]).reshape(batch, -1),
            torch.addcmul(step_y[0], z, step_y[1] - step_y[0]).reshape(batch, -1),
            step_z.reshape(batch, -1),
        ],
        dim=1,
    )
    return torch.view_as_complex(value.reshape(batch, -1, 2)), gradient * reference.pad


@dataclass(frozen=True)
class Accumulator:
    """Sums that `insert` adds to, on a `Reference`'s cube: `numerator` (2, side^3), `weight` (side^3,)."""

    numerator: Tensor
    weight: Tensor
    side: int
    pad: int
    box_size: int


def new_accumulator(
    box_size: int, *, max_shell: int, dtype: torch.dtype, device: torch.device, pad: int = 2
) -> Accumulator:
    """Empty sums for images of `box_size` up to `max_shell`."""
    side = cube_side(max_shell, pad)
    numerator = torch.zeros(2, side**3, dtype=dtype, device=device)
    weight = torch.zeros(side**3, dtype=dtype, device=device)
    return Accumulator(numerator, weight, side, pad, box_size)


def insert(
    sums: Accumulator, values: Tensor, weights: Tensor | None, rotations: Tensor, plane: HalfPlane
) -> None:
    """Add slices to `sums`, in place, each sample to the 8 corners of its cell.

    The adjoint of `slices` where `values` is concerned. Friedel mates are not added here: `fold_friedel`
    does that once at the end.

    Args:
        sums: what is added to.
        values: (b, K) complex.
        weights: (b, K) real, or None to leave `sums.weight` alone.
        rotations: (b, 3, 3).
        plane: K samples.
    """
    side = sums.side
    index, w = _cells(plane, rotations, side=side, pad=sums.pad)
    real, imaginary = values.real.reshape(-1), values.imag.reshape(-1)
    flat = None if weights is None else weights.reshape(-1)
    for z in (0, 1):
        weight_z = w[2] if z else 1 - w[2]
        for y in (0, 1):
            weight_zy = weight_z * (w[1] if y else 1 - w[1])
            for x in (0, 1):
                share = weight_zy * (w[0] if x else 1 - w[0])
                corner = index + (z * side * side + y * side + x)
                sums.numerator[0].scatter_add_(0, corner, real * share)
                sums.numerator[1].scatter_add_(0, corner, imaginary * share)
                if flat is not None:
                    sums.weight.scatter_add_(0, corner, flat * share)


def compiled_insert(
    sums: Accumulator, values: Tensor, weights: Tensor, rotations: Tensor, plane: HalfPlane
) -> None:
    """`insert` by the compiled kernel; equal to rounding."""
    compiled_insert_sums()(
        sums.numerator, sums.weight, torch.view_as_real(values.contiguous()), weights.contiguous(),
        rotations.contiguous(), plane.k, sums.side, sums.pad,
    )  # fmt: skip


def fold_friedel(sums: Accumulator) -> tuple[Tensor, Tensor]:
    """Numerator (complex) and weight, each (side, side, side), with every sample's Friedel mate added."""
    side = sums.side
    numerator = torch.complex(sums.numerator[0], sums.numerator[1]).reshape(side, side, side)
    weight = sums.weight.reshape(side, side, side)
    return numerator + numerator.flip(0, 1, 2).conj(), weight + weight.flip(0, 1, 2)


def volume_of_cube(cube: Tensor, *, box_size: int, pad: int) -> Tensor:
    """(d, d, d) map whose padded transform is `cube` (side^3, Friedel-symmetric), corrected for gridding."""
    size = pad * box_size
    side = int(cube.shape[0])
    spectrum = pad_centre(cube, size, dims=3) if side < size else crop_centre(cube, size, dims=3)
    half = torch.fft.ifftshift(spectrum)[..., : size // 2 + 1]
    padded = torch.fft.fftshift(torch.fft.irfftn(half, s=(size, size, size)))
    envelope = interpolation_envelope(box_size, pad, dtype=padded.dtype, device=padded.device)
    return crop_centre(padded, box_size, dims=3) / envelope


def project(
    volume: Tensor, rotations: Tensor, shifts_px: Tensor, *, transfer: Tensor | None = None, pad: int = 2
) -> Tensor:
    """Projections of a map: plain sums along the beam, rotated, shifted and multiplied by a CTF.

    The mean (k = 0) and the Nyquist row and column of an even box are not rendered: images have zero mean.

    Args:
        volume: (d, d, d).
        rotations: (b, 3, 3).
        shifts_px: (b, 2) x, y: where the map's origin lands.
        transfer: (b, K) on `half_plane(d)`, or None.
        pad: oversampling of the transform.

    Returns:
        (b, d, d).
    """
    plane = half_plane(int(volume.shape[-1]), dtype=volume.dtype, device=volume.device)
    spectrum = slices(make_reference(volume, pad=pad), rotations, plane) * shift_phase(plane, shifts_px)
    if transfer is not None:
        spectrum = spectrum * transfer
    return images_of_spectrum(spectrum, plane)
