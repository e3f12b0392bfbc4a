"""Higher-order aberrations and anisotropic magnification, with RELION 3.1's definitions.

RELION writes both as polynomials of the spatial frequency q = (x, y) in 1/Å, not scaled to any limit:

    Z = R(|q|) cos(m phi), m >= 0;  R(|q|) sin(|m| phi), m < 0;  R the radial polynomial of Zernike (n, |m|)

Even ones (`rlnEvenZernike`) add to the phase of the CTF. Odd ones (`rlnOddZernike`, and beam tilt, which is
one of them) turn the phase of the image's transform by `exp(i sum c Z)`. The matrix M (`rlnMagMat`) takes a
frequency k of the image as recorded to the true one, q = M k, and everything above is meant at q.

So an image is corrected once, as it is read: its transform is resampled at q and turned back. What comes
after knows neither; a pose's shift is that of the corrected image, `M^-T` times the recorded one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageAberrations:
    """What is corrected in n images as they are read.

    Attributes:
        odd: (n, c) coefficients of the odd polynomials, c may be 0.
        magnification: (n, 2, 2) M.
    """

    odd: Tensor
    magnification: Tensor

    def __getitem__(self, index: Tensor) -> ImageAberrations:
        return ImageAberrations(self.odd[index], self.magnification[index])

    def corrected(self, images: Tensor, pixel_size: float) -> Tensor:
        """Images (n, d, d) as a microscope without these faults would have recorded them."""
        identity = torch.eye(2, dtype=self.magnification.dtype)
        matrices, group_of = self.magnification.unique(dim=0, return_inverse=True)
        images = images.clone()
        for number, matrix in enumerate(matrices):
            if not torch.equal(matrix, identity):
                rows = group_of == number
                images[rows] = remagnified(images[rows], matrix)
        if self.odd.any():
            images = _turned_back(images, self.odd, pixel_size)
        return images


def even_indices(count: int) -> tuple[tuple[int, int], ...]:
    """(m, n) of the first `count` even polynomials: n = 0, 2, 4 ..., m from -n to n by twos."""
    return tuple((2 * (i - k * k - k), 2 * k) for i in range(count) for k in (math.isqrt(i),))


def odd_indices(count: int) -> tuple[tuple[int, int], ...]:
    """(m, n) of the first `count` odd polynomials: n = 1, 3, 5 ..., m from -n to n by twos."""
    found: list[tuple[int, int]] = []
    for i in range(count):
        k = (math.isqrt(1 + 4 * i) - 1) // 2
        n = 2 * k + 1
        found.append((2 * (i - k * k - k) - n, n))
    return tuple(found)


def zernike(frequencies: Tensor, indices: tuple[tuple[int, int], ...]) -> Tensor:
    """(c, ...) polynomials (m, n) at frequencies (..., 2) in 1/Å."""
    radius, angle = frequencies.norm(dim=-1), torch.atan2(frequencies[..., 1], frequencies[..., 0])
    values = frequencies.new_zeros(len(indices), *radius.shape)
    for value, (signed, n) in zip(values, indices, strict=True):
        m = abs(signed)
        for k in range((n - m) // 2 + 1):
            value += (-1) ** k * math.comb(n - k, k) * math.comb(n - 2 * k, (n - m) // 2 - k) * (
                radius ** (n - 2 * k)
            )  # fmt: skip
        value *= torch.cos(m * angle) if signed >= 0 else torch.sin(m * angle)
    return values


def with_beam_tilt(odd: Tensor, tilt: Tensor, *, spherical_aberration: Tensor, wavelength: Tensor) -> Tensor:
    """Coefficients (n, c >= 5) of odd polynomials with a beam tilt put among them.

    Its phase is `-2 pi Cs lambda^2 |q|^2 (q . tilt)`. As in RELION it takes the places of Z(-1, 3) and
    Z(1, 3), whatever stood there, and adds to those of order 1.

    Args:
        odd: (n, c).
        tilt: (n, 2) mrad.
        spherical_aberration: (n,) mm.
        wavelength: (n,) Å.
    """
    coma = -2.0 * math.pi / 3.0 * (spherical_aberration * 1e7 * wavelength.square())[:, None] * tilt * 1e-3
    total = torch.nn.functional.pad(odd, (0, max(0, 5 - odd.shape[1])))
    total[:, [1, 0]] += 2.0 * coma
    total[:, [4, 3]] = coma
    return total


def remagnified(images: Tensor, matrix: Tensor) -> Tensor:
    """Images (b, d, d) whose transform at q is that of the given ones at `M^-1 q`: `det(M) i(M^T x)`.

    Three steps along one axis each, two shears and a scale (the LDU factors of `M^T`), by trigonometric
    interpolation: exact for periodic images without power in the last `|M - 1| d / 2` shells below Nyquist.

    Args:
        images: (b, d, d), origin at pixel `d // 2`.
        matrix: (2, 2) M over x, y.
    """
    (a, b), (c, d) = matrix.double().T.tolist()
    along_x, along_y = a, d - c * b / a
    sheared = _shear(images.mT, c / a).mT
    x, y = (_stretch(int(images.shape[-1]), by).to(images) for by in (along_x, along_y))
    return _shear(y @ sheared @ x.mT, b / a) * (along_x * along_y)


def _shear(images: Tensor, slope: float) -> Tensor:
    """(b, d, d) each row sampled at positions moved by `slope` times the row's distance from the origin."""
    d = int(images.shape[-1])
    row = torch.arange(d, dtype=torch.float64) - d // 2
    frequency = torch.fft.rfftfreq(d, dtype=torch.float64)
    phase = 2.0 * math.pi * slope * row[:, None] * frequency
    turn = torch.polar(torch.ones_like(phase), phase).to(images.dtype.to_complex())
    return torch.fft.irfft(torch.fft.rfft(images) * turn, n=d)


@lru_cache(maxsize=32)
def _stretch(size: int, factor: float) -> Tensor:
    """(d, d) matrix that samples a periodic line at `factor` times each place, float64."""
    place = torch.arange(size, dtype=torch.float64) - size // 2
    frequency = torch.arange(size // 2 + 1, dtype=torch.float64)
    weight = torch.full_like(frequency, 2.0 / size)
    weight[0] = 1.0 / size
    if size % 2 == 0:
        weight[-1] = 1.0 / size
    new, old = (2.0 * math.pi / size * position[:, None] * frequency for position in (factor * place, place))
    return (torch.cos(new) * weight) @ torch.cos(old).mT + (torch.sin(new) * weight) @ torch.sin(old).mT


def _turned_back(images: Tensor, odd: Tensor, pixel_size: float) -> Tensor:
    """Images (n, d, d) with the phases of odd polynomials, coefficients (n, c), taken out."""
    d = int(images.shape[-1])
    groups, group_of = odd.unique(dim=0, return_inverse=True)  # few: they belong to optics groups
    phase = torch.einsum("gc,cyx->gyx", groups, _odd_polynomials(d, pixel_size, int(odd.shape[1])))
    turn = torch.polar(torch.ones_like(phase), -phase).to(images.dtype.to_complex())[group_of]
    # about pixel 0 or d // 2 is all one: a product of transforms is a convolution
    return torch.fft.irfft2(torch.fft.rfft2(images) * turn, s=(d, d))


@lru_cache(maxsize=4)
def _odd_polynomials(box_size: int, pixel_size: float, count: int) -> Tensor:
    """(c, d, d // 2 + 1) odd polynomials on the layout of rfft2, float64; 0 at Nyquist, which has no sign."""
    y = torch.fft.fftfreq(box_size, pixel_size, dtype=torch.float64)[:, None]
    x = torch.fft.rfftfreq(box_size, pixel_size, dtype=torch.float64)[None, :]
    values = zernike(torch.stack(torch.broadcast_tensors(x, y), dim=-1), odd_indices(count))
    if box_size % 2 == 0:
        values[:, box_size // 2, :] = 0.0
        values[:, :, -1] = 0.0
    return values
