"""Closed forms and brute-force sums in float64, to judge the fast routines by."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cryosweep.fourier import centred_range


@dataclass(frozen=True)
class Blobs:
    """Gaussian blobs: an object whose projections and transform are known in closed form.

    centres (m, 3) x, y, z px from the box centre; sigmas (m,) px; weights (m,) integrals.
    """

    centres: Tensor
    sigmas: Tensor
    weights: Tensor

    def volume(self, box_size: int) -> Tensor:
        axis = centred_range(box_size, dtype=torch.float64, device="cpu")
        total = torch.zeros(box_size, box_size, box_size, dtype=torch.float64)
        for centre, sigma, weight in zip(self.centres, self.sigmas, self.weights, strict=True):
            line = [torch.exp(-((axis - c) ** 2) / (2 * sigma**2)) for c in centre]
            norm = weight / (2 * math.pi * sigma**2) ** 1.5
            total += norm * line[2][:, None, None] * line[1][None, :, None] * line[0][None, None, :]
        return total

    def project(self, rotations: Tensor, shifts_px: Tensor, box_size: int) -> Tensor:
        axis = centred_range(box_size, dtype=torch.float64, device="cpu")
        at = (self.centres @ rotations.mT)[..., :2] + shifts_px[:, None]
        variance = (2 * self.sigmas**2)[None, :, None]
        x = torch.exp(-((axis - at[..., 0, None]) ** 2) / variance)
        y = torch.exp(-((axis - at[..., 1, None]) ** 2) / variance)
        return torch.einsum("m,bmy,bmx->byx", self.weights / (2 * math.pi * self.sigmas**2), y, x)


def random_blobs(generator: torch.Generator, *, count: int = 40, radius: float = 12.0) -> Blobs:
    """Asymmetric, off-centre object: blobs with SD 1.5-2.5 px about a point 4 px from the box centre."""
    offset = torch.tensor([3.0, -2.0, 2.0], dtype=torch.float64)
    centres = torch.randn(count, 3, generator=generator, dtype=torch.float64) * radius / 2.5 + offset
    sigmas = 1.5 + torch.rand(count, generator=generator, dtype=torch.float64)
    weights = 0.5 + torch.rand(count, generator=generator, dtype=torch.float64)
    return Blobs(centres, sigmas, weights)


def exact_slice(volume: Tensor, rotation: Tensor, k: Tensor) -> Tensor:
    """(K,) transform of `volume` (d, d, d) at R^T (kx, ky, 0), by the sum over all voxels."""
    n = volume.shape[-1]
    axis = centred_range(n, dtype=torch.float64, device="cpu")
    points = k.double() @ rotation[:2].double()
    wave = [torch.exp(-2j * math.pi / n * points[:, i, None] * axis) for i in range(3)]
    by_x = torch.einsum("zyx,kx->kzy", volume.to(torch.complex128), wave[0])
    return torch.einsum("kzy,ky,kz->k", by_x, wave[1], wave[2])


def log_likelihood(image: Tensor, model: Tensor, transfer: Tensor, noise: Tensor) -> Tensor:
    """-sum |I - CTF S|^2 / sigma^2 plus the part without S, written out sample by sample."""
    return (image.abs() ** 2 / noise).sum() - ((image - transfer * model).abs() ** 2 / noise).sum()
