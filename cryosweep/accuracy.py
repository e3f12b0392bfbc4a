"""How well poses can be told from images: the accuracy a reference allows, and the certainty a pose has."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cryosweep.fourier import HalfPlane, shift_phase
from cryosweep.geometry import rotation_from_vector
from cryosweep.projector import Reference, slices

# -ln 0.01: two poses are told apart once one is a hundred times as likely as the other.
TOLD_APART = 4.605


def _ladder(*parts: tuple[float, float]) -> tuple[float, ...]:
    """Values from 0 on, in steps that grow: (step, up to)."""
    values = [0.0]
    for step, end in parts:
        while values[-1] < end - 1e-9:
            values.append(values[-1] + step)
    return tuple(values)


# Steps and ends of RELION: degrees, and px.
ANGLES = _ladder((0.05, 0.2), (0.1, 1.0), (0.2, 2.0), (0.5, 5.0), (1.0, 10.0), (2.0, 20.0), (5.0, 30.0))
SHIFTS = _ladder((0.05, 0.2), (0.1, 1.0), (0.2, 2.0), (0.5, 5.0), (1.0, 10.0))


def expected_accuracy(
    reference: Reference, plane: HalfPlane, *, weights: Tensor, rotations: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Rotation (b,) in degrees and shift (b,) in px at which a pose could be told from the one beside it.

    That of RELION (`calculateExpectedAngularErrors`): the first change at which
    `sum CTF^2 |F1 - F2|^2 / sigma^2`, F1 and F2 the slices of the reference before and after it, exceeds
    4.605 (P = 0.01), sigma^2 the variance of a complex sample. As there each image is turned about one axis
    and moved along one, drawn at random, in growing steps that end at 30 degrees and 10 px; unlike there the
    axes are those of the view, not Euler angles, and the value is interpolated within the last step.

    Args:
        reference: map, masked as for the search.
        plane: K samples, of the band.
        weights: (b, K) CTF^2 / sigma^2.
        rotations: (b, 3, 3).
        generator: draws the axes; on the CPU.
    """
    count = len(rotations)
    axis = torch.randint(3, (count,), generator=generator).to(rotations.device)
    axes = torch.eye(3, dtype=rotations.dtype, device=rotations.device)[axis]
    model = slices(reference, rotations, plane)

    def beside(degrees: float) -> Tensor:
        turned = rotation_from_vector(math.radians(degrees) * axes) @ rotations
        return (weights * (slices(reference, turned, plane) - model).abs().square()).sum(dim=1)

    power = weights * model.abs().square()
    along = torch.eye(2, dtype=rotations.dtype, device=rotations.device)[axis % 2]

    def moved(px: float) -> Tensor:
        return (power * (shift_phase(plane, px * along) - 1.0).abs().square()).sum(dim=1)

    return (
        _first_passing(torch.stack([beside(value) for value in ANGLES], dim=1), ANGLES),
        _first_passing(torch.stack([moved(value) for value in SHIFTS], dim=1), SHIFTS),
    )


def _first_passing(differences: Tensor, ladder: tuple[float, ...]) -> Tensor:
    """(b,) where differences (b, len(ladder)) first pass 4.605; the end of the ladder where they never do.

    Between two steps the difference is taken to grow with the square of the change.
    """
    values = torch.tensor(ladder, dtype=differences.dtype, device=differences.device)
    passed = differences > TOLD_APART
    first = torch.where(passed.any(dim=1), passed.long().argmax(dim=1), len(ladder) - 1)
    rows = torch.arange(len(first), device=first.device)
    low, high = values[first - 1].square(), values[first].square()
    before, after = differences[rows, first - 1], differences[rows, first]
    share = ((TOLD_APART - before) / (after - before).clamp_min(1e-30)).clamp(0.0, 1.0)
    return torch.where(passed.any(dim=1), (low + share * (high - low)).sqrt(), values[-1])


def needed_step(resolution: float, diameter: float) -> float:
    """Degrees between views that a domain of `diameter` Å needs for `resolution` Å: 360 / ceil(pi D / d).

    RELION's sampling rule (Crowther et al. 1970, Proc R Soc A 317, 319).

    Raises:
        ValueError: a length that is not positive.
    """
    if resolution <= 0 or diameter <= 0:
        raise ValueError(f"resolution {resolution:g} Å and diameter {diameter:g} Å must both be above 0")
    return 360.0 / math.ceil(math.pi * diameter / resolution)


def pose_certainty(covariance: Tensor, *, rotation_step: float, shift_step: float) -> Tensor:
    """(n,) probability that a pose lies in the cell of a grid about its best value: RELION's Pmax.

    The posterior is the Gaussian of `covariance`, the cell one step wide along the principal axes of rotation
    and shift. With the step that a resolution needs, it is the chance that a pose is good enough for it.

    Args:
        covariance: (n, 5, 5) of rotation (rad) and shift (Å).
        rotation_step: degrees.
        shift_step: Å.
    """
    steps = (math.radians(rotation_step), shift_step)
    certainty = covariance.new_ones(len(covariance))
    for part, step in zip((slice(0, 3), slice(3, 5)), steps, strict=True):
        spread = torch.linalg.eigvalsh(covariance[:, part, part]).clamp_min(0.0).sqrt()
        inside = torch.erf(step / (2.0 * math.sqrt(2.0) * spread.clamp_min(1e-12)))
        certainty = certainty * inside.prod(dim=1)
    return certainty
