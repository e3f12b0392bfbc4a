"""How evenly directions are known: conical FSC, sampling of Fourier space, precision of central slices.

Directions are unit vectors (x, y, z) in the map frame. A central slice is known by its normal, the viewing
direction, which is the third row of a rotation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cryosweep.fourier import HalfPlane, frequency_radius, shell_count
from cryosweep.projector import Reference, slices

CONE_HALF_ANGLE = 20.0
CONES = 256
# Voxels of the transform handled at a time.
_CHUNK = 2**15
# The shell at which sampling is counted (that of the authors' program), if the particles suffice for it.
_SAMPLING_SHELL = 50
_SAMPLING_DIRECTIONS = 5000
# Views that a direction must expect, lest chance alone make the sampling look uneven.
_LEAST_EXPECTED = 25.0


def fibonacci_directions(count: int) -> Tensor:
    """(count, 3) float64 unit vectors spread evenly over the half sphere z > 0.

    What is symmetric about the origin, such as a transform's power, needs only half of the sphere.
    """
    number = torch.arange(count, dtype=torch.float64)
    z = (number + 0.5) / count
    longitude = number * (math.pi * (3.0 - math.sqrt(5.0)))
    radius = torch.sqrt(1.0 - z.square())
    return torch.stack([radius * longitude.cos(), radius * longitude.sin(), z], dim=1)


@dataclass(frozen=True)
class ConicalFsc:
    """FSC within cones about many directions.

    Attributes:
        directions: (m, 3) axes of the cones.
        curves: (m, n_shells) FSC; where a cone holds no sample of a shell, that of the whole shell.
        areas: (m,) sum of each curve over shells before it stays below the threshold.
        pixel_size: Å.
        box_size: px.
    """

    directions: Tensor
    curves: Tensor
    areas: Tensor
    pixel_size: float
    box_size: int

    @property
    def frequency(self) -> Tensor:
        """(n_shells,) float64 frequency of each shell, 1/Å."""
        shells = torch.arange(self.curves.shape[1], dtype=torch.float64)
        return shells / (self.box_size * self.pixel_size)

    @property
    def cfar(self) -> float:
        """Conical FSC area ratio: smallest area over largest; 0 where no cone holds any signal."""
        most = float(self.areas.max())
        return float(self.areas.min()) / most if most > 0.0 else 0.0


def conical_fsc(
    half_a: Tensor,
    half_b: Tensor,
    *,
    pixel_size: float,
    last_shell: int,
    directions: Tensor | None = None,
    half_angle: float = CONE_HALF_ANGLE,
    threshold: float = 0.143,
) -> ConicalFsc:
    """FSC of two maps within double cones about directions of Fourier space.

    The areas run over shells from 1 until a curve stays below `threshold` for two shells in a row, because a
    cone holds few samples and single shells dip by chance. Defaults as in CryoSPARC's orientation diagnostics
    and in SIMPLE's `fsc_area_score`: 256 Fibonacci cones of 20 degrees half angle, 0.143.

    Args:
        half_a: (d, d, d), masked as wanted.
        half_b: (d, d, d).
        pixel_size: Å.
        last_shell: last shell looked at.
        directions: (m, 3) unit vectors, or None for 256 evenly spread ones.
        half_angle: degrees.
        threshold: of the area.

    Raises:
        ValueError: the shapes differ, or `last_shell` is not a shell of the box.
    """
    size = int(half_a.shape[-1])
    if half_a.shape != half_b.shape:
        raise ValueError(f"half maps must share one box: {tuple(half_a.shape)} and {tuple(half_b.shape)}")
    if not 1 <= last_shell < shell_count(size):
        raise ValueError(f"shell {last_shell} is none of a box of {size} px, which has 1 to {size // 2}")
    axes = (fibonacci_directions(CONES) if directions is None else directions).to(half_a.device)
    number, unit, products = _products(half_a, half_b, last_shell)
    shells = last_shell + 1
    sums = torch.zeros(shells, len(axes), 3, dtype=torch.float64, device=half_a.device)
    # a cone of 90 degrees holds what lies across its axis, whatever the rounding
    limit = math.cos(math.radians(half_angle)) - 1e-7
    for rows in torch.arange(number.numel(), device=number.device).split(_CHUNK):
        inside = ((unit[rows] @ axes.float().mT).abs() >= limit).double()
        # samples are sorted by shell, so a chunk holds few shells
        for shell in number[rows].unique().tolist():
            own = number[rows] == shell
            sums[shell] += inside[own].mT @ products[rows[own]]
    whole = torch.zeros(shells, 3, dtype=torch.float64, device=half_a.device)
    whole.index_add_(0, number, products)
    curves = torch.where(sums[..., 1] > 0, _ratio(sums), _ratio(whole)[:, None]).mT
    return ConicalFsc(axes, curves, _areas(curves, threshold), pixel_size, size)


def _products(half_a: Tensor, half_b: Tensor, last_shell: int) -> tuple[Tensor, Tensor, Tensor]:
    """Shell (v,), unit frequency (v, 3) and Re ab*, |a|^2, |b|^2 (v, 3) of samples sorted by shell."""
    size = int(half_a.shape[-1])
    radius = frequency_radius(size, dims=3, dtype=torch.float32, device=half_a.device)
    shell = radius.round().long()
    places = ((shell >= 1) & (shell <= last_shell)).nonzero(as_tuple=True)
    order = shell[places].argsort(stable=True)
    z, y, x = (place[order] for place in places)
    full = torch.fft.fftfreq(size, 1.0 / size, device=half_a.device)
    unit = torch.stack([x.float(), full[y], full[z]], dim=1) / radius[z, y, x][:, None]
    a, b = (torch.fft.rfftn(half)[z, y, x] for half in (half_a, half_b))
    products = torch.stack([(a * b.conj()).real, a.abs().square(), b.abs().square()], dim=1).double()
    return shell[z, y, x], unit, products


def _ratio(sums: Tensor) -> Tensor:
    cross, power_a, power_b = sums.unbind(-1)
    return cross / torch.sqrt(power_a * power_b).clamp_min(torch.finfo(torch.float64).tiny)


def _areas(curves: Tensor, threshold: float) -> Tensor:
    below = curves[:, 1:] < threshold
    ended = below.clone()
    ended[:, :-1] &= below[:, 1:]
    before_end = ended.long().cumsum(dim=1) == 0
    return (curves[:, 1:].clamp_min(0.0) * before_end).sum(dim=1)


def sampling(views: Tensor, *, shell: int) -> Tensor:
    """(m,) number of central slices that pass within half a voxel of each of m evenly spread directions.

    Args:
        views: (n, 3) viewing directions.
        shell: radius in voxels at which half a voxel is measured.
    """
    directions = fibonacci_directions(_SAMPLING_DIRECTIONS).to(views)
    count = views.new_zeros(len(directions))
    for part in views.split(2000):
        count += ((directions @ part.mT).abs() < 0.5 / shell).sum(dim=1)
    return count


def sampling_compensation(views: Tensor) -> float:
    """SCF*: how far an uneven distribution of n viewing directions (n, 3) lowers the SSNR; 1 where even.

    SCF = 1 / (<1/s> <s>), s the sampling over directions of Fourier space (Baldwin & Lyumkis 2020, Prog
    Biophys Mol Biol 150, 160). Directions without a slice would make it 0: SCF* takes the mean over those
    that have one, P of all, and counts the others, Q, as if they had two slices (Baldwin & Lyumkis 2021, Prog
    Biophys Mol Biol 160, 53, and their program): 1 / SCF* = 1 / SCF + (Q / P) <s> / 2.

    Sampling is counted at shell 50 as in that program, with few particles at a lower shell, so that chance
    does not empty directions: a direction expects at least 25 slices.

    Raises:
        ValueError: no views.
    """
    if len(views) == 0:
        raise ValueError("no viewing directions were given")
    shell = max(1, min(_SAMPLING_SHELL, int(len(views) / (2.0 * _LEAST_EXPECTED))))
    count = sampling(views.double(), shell=shell)
    seen = count > 0
    expected, share = float(count.mean()), float(seen.double().mean())
    inverse = float((1.0 / count[seen]).mean()) * expected
    return 1.0 / (inverse + (1.0 - share) / share * expected / 2.0)


def slice_precision(
    weight: Tensor, *, shell_weight: Tensor, pad: int, plane: HalfPlane, directions: Tensor
) -> Tensor:
    """(m,) precision of the central slices across m viewing directions, 1 on average over Fourier space.

    The precision of a coefficient is the sum of CTF^2 / noise variance over the images that hold it. Each
    shell counts relative to its mean, since what differs between shells says nothing about directions. The
    prior's part, equal in all directions, is left out: it would only bring the extremes together.

    Args:
        weight: (side, side, side) sums of CTF^2 / variance on the padded cube of a reconstruction.
        shell_weight: (n_shells,) its mean over each shell.
        pad: points per shell.
        plane: K samples of the slice: the band that matters.
        directions: (m, 3) unit vectors.
    """
    side = int(weight.shape[-1])
    reference = Reference(weight.to(torch.complex64).reshape(-1), side, pad, plane.box_size)
    mean = shell_weight[plane.shell].clamp_min(torch.finfo(torch.float32).tiny)
    turned = rotations_to(directions).to(plane.k)
    found = [
        (slices(reference, part, plane).real / mean).mean(dim=1)
        for part in turned.split(max(1, _CHUNK * 8 // plane.k.shape[0]))
    ]
    return torch.cat(found).double()


def rotations_to(directions: Tensor) -> Tensor:
    """(m, 3, 3) rotations that look along m directions (m, 3): their third rows."""
    other = torch.zeros_like(directions)
    other.scatter_(1, directions.abs().argmin(dim=1, keepdim=True), 1.0)
    across = torch.linalg.cross(other, directions)
    across = across / across.norm(dim=1, keepdim=True)
    return torch.stack([across, torch.linalg.cross(directions, across), directions], dim=1)
