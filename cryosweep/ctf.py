"""Contrast transfer function with RELION's constants and signs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from cryosweep.aberrations import even_indices, zernike


@dataclass(frozen=True)
class Optics:
    """What the CTF of each particle needs; all but the last are (n,) tensors of one dtype and device.

    Attributes:
        defocus_u: Å along `astigmatism_angle`, positive is underfocus.
        defocus_v: Å across it.
        astigmatism_angle: degrees from the image's x axis.
        voltage: kV.
        spherical_aberration: mm.
        amplitude_contrast: fraction (Q0).
        phase_shift: degrees.
        b_factor: Å^2; the CTF is multiplied by exp(-b_factor k^2 / 4), so positive damps.
        scale: multiplies the CTF.
        even_zernike: (n, c) coefficients of even aberrations (`cryosweep.aberrations`), or None.
    """

    defocus_u: Tensor
    defocus_v: Tensor
    astigmatism_angle: Tensor
    voltage: Tensor
    spherical_aberration: Tensor
    amplitude_contrast: Tensor
    phase_shift: Tensor
    b_factor: Tensor
    scale: Tensor
    even_zernike: Tensor | None = None

    def __len__(self) -> int:
        return int(self.defocus_u.shape[0])

    def __getitem__(self, index: Tensor | slice) -> Optics:
        return self._each(lambda values: values[index])

    def to(self, *, dtype: torch.dtype, device: torch.device | str) -> Optics:
        """The same optics with another dtype, on another device."""
        return self._each(lambda values: values.to(device=device, dtype=dtype))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Optics:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: old if old is None else change(old) for name, old in values.items()}
        return Optics(**changed)


def electron_wavelength(voltage: Tensor) -> Tensor:
    """Wavelength in Å at `voltage` kV, with RELION's constants (0.0196876153 Å at 300 kV)."""
    volts = voltage * 1e3
    return 12.2643247 / torch.sqrt(volts * (1.0 + volts * 0.978466e-6))


def contrast_transfer(optics: Optics, frequencies: Tensor) -> Tensor:
    """CTF of each particle at each frequency, positive at the origin for white protein.

    `-sin(gamma)` with `gamma = -pi lambda dz k^2 + pi/2 Cs lambda^3 k^4 - asin(Q0) - phase_shift`, to which
    even aberrations add, and
    `dz = (U + V)/2 + (U - V)/2 cos 2(theta - astigmatism_angle)`, as `CTF::getCTF` of RELION 3.1.

    Args:
        optics: n particles.
        frequencies: (k, 2) x and y in 1/Å, in the dtype and on the device of `optics`.

    Returns:
        (n, k).
    """
    k2 = frequencies.square().sum(dim=-1)
    theta = torch.atan2(frequencies[:, 1], frequencies[:, 0])
    wavelength = electron_wavelength(optics.voltage)[:, None]
    angle = torch.deg2rad(optics.astigmatism_angle)[:, None]
    mean = 0.5 * (optics.defocus_u + optics.defocus_v)[:, None]
    half_difference = 0.5 * (optics.defocus_u - optics.defocus_v)[:, None]
    defocus = mean + half_difference * torch.cos(2.0 * (theta - angle))
    aberration = (optics.spherical_aberration * 1e7)[:, None] * wavelength**3
    phase = torch.deg2rad(optics.phase_shift)[:, None] + torch.asin(optics.amplitude_contrast)[:, None]
    gamma = -math.pi * wavelength * defocus * k2 + 0.5 * math.pi * aberration * k2.square() - phase
    if optics.even_zernike is not None:
        gamma = gamma + optics.even_zernike @ zernike(
            frequencies, even_indices(int(optics.even_zernike.shape[1]))
        )
    envelope = optics.scale[:, None] * torch.exp(-0.25 * optics.b_factor[:, None] * k2)
    return -torch.sin(gamma) * envelope
