"""Centred Fourier transforms, integer shells, samples of the half plane, cropping and filters.

Arrays are indexed (z, y, x) or (y, x), and the origin is element `n // 2` of each axis in both spaces.
Transforms are unnormalised forwards: `F(k) = sum_x f(x) exp(-2 pi i k.x / n)` with integer k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor


def fft_centred(array: Tensor, *, dims: int) -> Tensor:
    """Transform of the last `dims` axes, origin at `n // 2` on both sides; complex, same shape."""
    axes = tuple(range(-dims, 0))
    return torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(array, dim=axes), dim=axes), dim=axes)


def ifft_centred(spectrum: Tensor, *, dims: int) -> Tensor:
    """Inverse of `fft_centred`; complex, same shape."""
    axes = tuple(range(-dims, 0))
    return torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(spectrum, dim=axes), dim=axes), dim=axes)


def centred_range(size: int, *, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """(size,) coordinates -n//2 ... about element `n // 2`."""
    return torch.arange(size, dtype=dtype, device=device) - size // 2


def crop_centre(array: Tensor, size: int, *, dims: int) -> Tensor:
    """The central `size` elements of the last `dims` axes, keeping the origin at `n // 2`."""
    for axis in range(-dims, 0):
        start = array.shape[axis] // 2 - size // 2
        array = array.narrow(axis, start, size)
    return array


def pad_centre(array: Tensor, size: int, *, dims: int) -> Tensor:
    """`array` in zeros of `size` along the last `dims` axes, keeping the origin at `n // 2`."""
    padded = array.new_zeros(*array.shape[:-dims], *([size] * dims))
    inner = crop_centre(padded, array.shape[-1], dims=dims)
    inner.copy_(array)
    return padded


def cut_cube(volume: Tensor, centre: tuple[int, int, int], size: int) -> Tensor:
    """Cube of `size` voxels whose origin lies `centre` (x, y, z voxels) from the origin of `volume`.

    What lies outside `volume` is zero.
    """
    cube = volume.new_zeros(size, size, size)
    source: list[slice] = []
    target: list[slice] = []
    for axis, offset in zip(range(3), reversed(centre), strict=True):
        first = volume.shape[axis] // 2 + offset - size // 2
        low, high = max(first, 0), min(first + size, volume.shape[axis])
        if low >= high:
            return cube
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    cube[tuple(target)] = volume[tuple(source)]
    return cube


def frequency_radius(box_size: int, *, dims: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """|k| in shells (integer k units) on the layout of `torch.fft.rfftn`: last axis halved, no shift."""
    full = torch.fft.fftfreq(box_size, 1.0 / box_size, dtype=dtype, device=device)
    half = torch.fft.rfftfreq(box_size, 1.0 / box_size, dtype=dtype, device=device)
    squared = half.square()
    for _ in range(dims - 1):
        squared = full.square().reshape(-1, *([1] * squared.dim())) + squared
    return squared.sqrt()


@lru_cache(maxsize=8)
def _shells(box_size: int, dims: int, device: torch.device) -> Tensor:
    radius = frequency_radius(box_size, dims=dims, dtype=torch.float64, device=device)
    return radius.round().to(torch.int64)


def shell_index(box_size: int, *, dims: int, device: torch.device | str) -> Tensor:
    """Integer shell `round(|k|)` of each element of the `rfftn` layout; corners exceed `box_size // 2`.

    The tensor is cached and shared: do not write to it.
    """
    return _shells(box_size, dims, torch.device(device))


def shell_count(box_size: int) -> int:
    """Number of whole shells, 0 to Nyquist."""
    return box_size // 2 + 1


def shell_sum(values: Tensor, *, dims: int) -> Tensor:
    """Sum of real `values` over shells 0 to Nyquist, in float64.

    Every element of the half transform counts once, as RELION does.

    Args:
        values: (..., rfftn layout of the last `dims` axes), of an even or odd box.
        dims: 2 or 3.

    Returns:
        (..., n_shells).
    """
    box_size = int(values.shape[-2])
    shells = shell_index(box_size, dims=dims, device=values.device).reshape(-1).clamp_max(box_size)
    flat = values.reshape(-1, shells.numel()).to(torch.float64)
    total = torch.zeros(flat.shape[0], box_size + 1, dtype=torch.float64, device=values.device)
    total.index_add_(1, shells, flat)
    return total[:, : shell_count(box_size)].reshape(*values.shape[:-dims], shell_count(box_size))


def low_pass(
    volume: Tensor,
    *,
    resolution: float,
    pixel_size: float,
    edge_shells: int = 2,
    edge: Literal["outside", "centred"] = "outside",
) -> Tensor:
    """`volume` without what is finer than `resolution` (Å): a raised-cosine edge of `edge_shells` shells.

    Args:
        volume: (d, d, d).
        resolution: Å.
        pixel_size: Å.
        edge_shells: width of the edge in shells.
        edge: `outside`: all up to the shell of `resolution` is kept in full; `centred`: half of the amplitude
            there, as in `relion_image_handler --lowpass`, which rounds that shell to a whole number.
    """
    transfer = low_pass_transfer(
        volume.shape[-1], resolution=resolution, pixel_size=pixel_size, edge_shells=edge_shells, edge=edge,
        dtype=volume.dtype, device=volume.device,
    )  # fmt: skip
    return multiply_spectrum(volume, transfer)


def high_pass(volume: Tensor, *, resolution: float, pixel_size: float, edge_shells: int = 2) -> Tensor:
    """What a `low_pass` with a centred edge takes away; arguments as there.

    As `relion_image_handler --highpass`, but that this does not round the shell of `resolution`.
    """
    low = low_pass_transfer(
        volume.shape[-1], resolution=resolution, pixel_size=pixel_size, edge_shells=edge_shells,
        edge="centred", dtype=volume.dtype, device=volume.device,
    )  # fmt: skip
    return multiply_spectrum(volume, 1.0 - low)


def low_pass_transfer(
    box_size: int, *, resolution: float, pixel_size: float, edge_shells: int = 2,
    edge: Literal["outside", "centred"] = "outside", dtype: torch.dtype, device: torch.device | str,
) -> Tensor:  # fmt: skip
    """What `low_pass` multiplies the rfftn layout of a volume by: (d, d, d // 2 + 1) in [0, 1]."""
    cutoff = box_size * pixel_size / resolution
    if edge == "centred":
        cutoff -= 0.5 * edge_shells
    radius = frequency_radius(box_size, dims=3, dtype=dtype, device=device)
    position = ((radius - cutoff) / edge_shells).clamp(0.0, 1.0)
    return 0.5 + 0.5 * torch.cos(math.pi * position)


def gaussian_filter(volume: Tensor, *, sigma: float, pixel_size: float) -> Tensor:
    """`volume` (d, d, d) convolved with a Gaussian of standard deviation `sigma` Å (periodic)."""
    box_size = volume.shape[-1]
    radius = frequency_radius(box_size, dims=3, dtype=volume.dtype, device=volume.device)
    frequency = radius / (box_size * pixel_size)
    return multiply_spectrum(volume, torch.exp(-2.0 * (math.pi * sigma * frequency) ** 2))


def multiply_spectrum(volume: Tensor, transfer: Tensor) -> Tensor:
    """`volume` (d, d, d) filtered by a real `transfer` on its rfftn layout."""
    return torch.fft.irfftn(torch.fft.rfftn(volume) * transfer, s=volume.shape)


def resample_cube(volume: Tensor, size: int) -> Tensor:
    """`volume` (d, d, d) on a grid of `size` voxels over the same box, by cropping or padding its transform.

    Grey values are kept, not sums: exact where the volume has no power at and beyond the Nyquist of the
    coarser grid.
    """
    old = int(volume.shape[-1])
    if size == old:
        return volume
    kept = min(old, size)
    kept -= 1 - kept % 2  # odd: all that has both signs of frequency
    spectrum = pad_centre(crop_centre(fft_centred(volume, dims=3), kept, dims=3), size, dims=3)
    return ifft_centred(spectrum, dims=3).real * (size / old) ** 3


def even_fft_size(minimum: float) -> int:
    """Smallest even size of at least `minimum` whose prime factors are 2, 3, 5 and 7."""
    size = max(2, 2 * math.ceil(minimum / 2))
    while True:
        rest = size
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 2


@dataclass(frozen=True)
class HalfPlane:
    """Samples of a real image's transform: each Friedel pair once, sorted by (shell, angle).

    A band limit is a prefix of the list: `plane.count(shell)` samples lie in shells up to `shell`. The
    origin is left out, and so are the Nyquist row and column of an even box, which pair with themselves.

    Attributes:
        box_size: px of the image.
        k: (K, 2) integer frequencies x, y as floats.
        shell: (K,) `round(|k|)`.
        ends: ends[s] is the number of samples in shells <= s, as Python ints.
    """

    box_size: int
    k: Tensor
    shell: Tensor
    ends: tuple[int, ...]

    def count(self, shell: int) -> int:
        """Number of samples in shells 1 to `shell`."""
        return self.ends[min(max(shell, 0), len(self.ends) - 1)]

    @property
    def max_shell(self) -> int:
        """The last shell of the list."""
        return len(self.ends) - 1

    def up_to(self, shell: int) -> HalfPlane:
        """The same list cut after `shell`."""
        shell = min(shell, self.max_shell)
        count = self.count(shell)
        return HalfPlane(self.box_size, self.k[:count], self.shell[:count], self.ends[: shell + 1])

    def to(self, *, dtype: torch.dtype) -> HalfPlane:
        """The same list with `k` in another dtype."""
        return HalfPlane(self.box_size, self.k.to(dtype), self.shell, self.ends)

    def gather(self, spectrum: Tensor) -> Tensor:
        """(..., K) samples of `torch.fft.rfft2` output (..., n, n // 2 + 1)."""
        n = self.box_size
        kx, ky = self.k.long().unbind(-1)
        flat = (ky % n) * (n // 2 + 1) + kx
        return spectrum.flatten(-2)[..., flat]

    def scatter(self, samples: Tensor) -> Tensor:
        """(..., n, n // 2 + 1) spectrum for `torch.fft.irfft2` from (..., K); the rest is zero."""
        n = self.box_size
        kx, ky = self.k.long().unbind(-1)
        width = n // 2 + 1
        spectrum = samples.new_zeros(*samples.shape[:-1], n * width)
        spectrum[..., (ky % n) * width + kx] = samples
        on_axis = kx == 0  # irfft2 reads both members of a pair on the kx = 0 column
        spectrum[..., ((-ky[on_axis]) % n) * width] = samples[..., on_axis].conj()
        return spectrum.reshape(*samples.shape[:-1], n, width)


def half_plane(
    box_size: int, *, max_shell: int | None = None, dtype: torch.dtype, device: torch.device | str
) -> HalfPlane:
    """Samples of the half plane up to `max_shell` (default: the last shell below Nyquist)."""
    limit = (box_size - 1) // 2
    last = limit if max_shell is None else min(max_shell, limit)
    axis = torch.arange(-limit, limit + 1, device=device)
    ky, kx = torch.meshgrid(axis, torch.arange(0, limit + 1, device=device), indexing="ij")
    keep = (kx > 0) | (ky > 0)
    kx, ky = kx[keep], ky[keep]
    shell = torch.sqrt((kx**2 + ky**2).double()).round().long()
    keep = shell <= last
    kx, ky, shell = kx[keep], ky[keep], shell[keep]
    angle = torch.atan2(ky.double(), kx.double())
    order = torch.argsort(shell.double() * 8 + angle)
    shell = shell[order]
    k = torch.stack([kx, ky], dim=-1)[order].to(dtype)
    ends = torch.bincount(shell, minlength=last + 1).cumsum(0)
    return HalfPlane(box_size, k, shell, tuple(int(end) for end in ends))


def shift_phase(plane: HalfPlane, shifts_px: Tensor) -> Tensor:
    """Factor that moves an image's content by `shifts_px`: `exp(-2 pi i k.t / n)`.

    Args:
        plane: K samples.
        shifts_px: (..., 2) x, y in px.

    Returns:
        (..., K) complex.
    """
    phase = (-2.0 * math.pi / plane.box_size) * (shifts_px @ plane.k.mT)
    return torch.polar(torch.ones_like(phase), phase)


def spectrum_of_images(images: Tensor, plane: HalfPlane) -> Tensor:
    """(b, K) samples of the transform of images (b, n, n) whose origin is pixel `n // 2`."""
    return plane.gather(torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1))))


def images_of_spectrum(samples: Tensor, plane: HalfPlane) -> Tensor:
    """(b, n, n) images, origin at pixel `n // 2`, from (b, K) samples; the mean is zero."""
    n = plane.box_size
    return torch.fft.fftshift(torch.fft.irfft2(plane.scatter(samples), s=(n, n)), dim=(-2, -1))
