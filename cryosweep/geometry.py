"""Rotations and moves about a fulcrum.

A rotation is a `(..., 3, 3)` tensor that takes a point of the map frame to the view frame,
`x_view = R @ x_map`, with vectors ordered x, y, z and the beam along z of the view. Angles are radians,
except in the two functions that speak RELION's Euler angles, which are degrees.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rotation_from_euler(angles: Tensor) -> Tensor:
    """Rotation of RELION's Euler angles (rot, tilt, psi).

    Args:
        angles: (..., 3) degrees, intrinsic ZYZ as in `rlnAngleRot`, `rlnAngleTilt`, `rlnAnglePsi`.

    Returns:
        (..., 3, 3) with `x_view = R @ x_map` (the matrix of `Euler_angles2matrix` in RELION 3.1).
    """
    alpha, beta, gamma = torch.deg2rad(angles).unbind(-1)
    ca, sa = alpha.cos(), alpha.sin()
    cb, sb = beta.cos(), beta.sin()
    cg, sg = gamma.cos(), gamma.sin()
    rows = [
        cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb,
        -sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb,
        sb * ca, sb * sa, cb,
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).reshape(*angles.shape[:-1], 3, 3)


def euler_from_rotation(rotation: Tensor) -> Tensor:
    """RELION's (rot, tilt, psi) in degrees of a rotation; the inverse of `rotation_from_euler`.

    At the poles (tilt 0 or 180), where only one combination of rot and psi is defined, psi is 0.

    Args:
        rotation: (..., 3, 3).

    Returns:
        (..., 3) degrees, tilt in [0, 180].
    """
    sin_beta = torch.hypot(rotation[..., 2, 0], rotation[..., 2, 1])
    beta = torch.atan2(sin_beta, rotation[..., 2, 2])
    regular = sin_beta > 8 * torch.finfo(rotation.dtype).eps ** 0.5
    alpha_regular = torch.atan2(rotation[..., 2, 1], rotation[..., 2, 0])
    gamma_regular = torch.atan2(rotation[..., 1, 2], -rotation[..., 0, 2])
    # at a pole, with psi = 0: row 1 is (-sin(rot), cos(rot), 0) whether the beam looks up or down
    alpha_pole = torch.atan2(-rotation[..., 1, 0], rotation[..., 1, 1])
    alpha = torch.where(regular, alpha_regular, alpha_pole)
    gamma = torch.where(regular, gamma_regular, torch.zeros_like(alpha))
    return torch.rad2deg(torch.stack([alpha, beta, gamma], dim=-1))


def rotation_from_vector(vector: Tensor) -> Tensor:
    """Rotation about the axis of `vector` by its length (Rodrigues' formula, exact near zero).

    Args:
        vector: (..., 3) radians.

    Returns:
        (..., 3, 3).
    """
    angle = vector.norm(dim=-1)[..., None, None]
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).reshape(*vector.shape[:-1], 3, 3)
    identity = torch.eye(3, dtype=vector.dtype, device=vector.device)
    # torch.sinc(x) = sin(pi x)/(pi x) is well behaved at 0, and (1 - cos a)/a^2 = sinc^2(a/2pi)/2
    first = torch.sinc(angle / math.pi)
    second = 0.5 * torch.sinc(angle / (2 * math.pi)) ** 2
    return identity + first * cross + second * (cross @ cross)


def rotation_vector(rotation: Tensor) -> Tensor:
    """Axis times angle of a rotation, the inverse of `rotation_from_vector` for angles below pi.

    Goes through the unit quaternion by its largest component, so it is accurate from 0 up to pi.

    Args:
        rotation: (..., 3, 3).

    Returns:
        (..., 3) radians, length in [0, pi].
    """
    r = rotation
    r00, r11, r22 = r[..., 0, 0], r[..., 1, 1], r[..., 2, 2]
    # rows of 4 q_i q, one for each i; the one with the largest diagonal is free of cancellation
    w = torch.stack([1 + r00 + r11 + r22, r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0],
                     r[..., 1, 0] - r[..., 0, 1]], -1)  # fmt: skip
    x = torch.stack([w[..., 1], 1 + r00 - r11 - r22, r[..., 0, 1] + r[..., 1, 0],
                     r[..., 0, 2] + r[..., 2, 0]], -1)  # fmt: skip
    y = torch.stack([w[..., 2], x[..., 2], 1 - r00 + r11 - r22, r[..., 1, 2] + r[..., 2, 1]], -1)
    z = torch.stack([w[..., 3], x[..., 3], y[..., 3], 1 - r00 - r11 + r22], -1)
    candidates = torch.stack([w, x, y, z], dim=-2)
    largest = torch.diagonal(candidates, dim1=-2, dim2=-1).argmax(dim=-1)
    quaternion = candidates.gather(-2, largest[..., None, None].expand(*largest.shape, 1, 4)).squeeze(-2)
    quaternion = quaternion / quaternion.norm(dim=-1, keepdim=True)
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    imaginary = quaternion[..., 1:]
    sine = imaginary.norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sine, quaternion[..., :1])
    scale = torch.where(sine > 1e-12, angle / sine.clamp_min(1e-12), torch.full_like(sine, 2.0))
    return imaginary * scale


def angle_between(first: Tensor, second: Tensor) -> Tensor:
    """Geodesic angle (...) in radians between rotations (..., 3, 3) that broadcast against each other."""
    return rotation_vector(first @ second.mT).norm(dim=-1)


def pivot_shift(rotation_old: Tensor, rotation_new: Tensor, shift: Tensor, fulcrum: Tensor) -> Tensor:
    """Shift that keeps the fulcrum where it is in the image when the rotation changes.

    Args:
        rotation_old: (..., 3, 3).
        rotation_new: (..., 3, 3).
        shift: (..., 2) in-plane shift that goes with `rotation_old`.
        fulcrum: (3,) from the box centre, map frame, in the unit of `shift`.

    Returns:
        (..., 2) in the unit of `shift`.
    """
    return shift + ((rotation_old - rotation_new) @ fulcrum)[..., :2]


def moves_about(
    rotations: Tensor, shifts: Tensor, from_rotations: Tensor, from_shifts: Tensor, fulcrum: Tensor
) -> tuple[Tensor, Tensor]:
    """What search extents limit: turns (n, 3), axes of the map, and shifts (n, 2) that the fulcrum makes.

    A turn is the rotation vector w of `R = R_from exp([w])`, in radians; a shift is the movement of the
    fulcrum's projection.

    Args:
        rotations: (n, 3, 3).
        shifts: (n, 2).
        from_rotations: (n, 3, 3), the anchors.
        from_shifts: (n, 2).
        fulcrum: (3,) from the box centre, map frame, in the unit of the shifts.
    """
    turns = rotation_vector(from_rotations.mT @ rotations)
    swing = ((rotations - from_rotations) @ fulcrum)[..., :2]
    return turns, shifts - from_shifts + swing


def mean_rotation(rotations: Tensor, weights: Tensor | None = None) -> Tensor:
    """Chordal mean of rotations: the rotation nearest to their (weighted) sum, by its SVD.

    Args:
        rotations: (n, 3, 3).
        weights: (n,) or None for equal ones.

    Returns:
        (3, 3).
    """
    total = rotations.mean(dim=0) if weights is None else (weights[:, None, None] * rotations).sum(dim=0)
    u, _, vh = torch.linalg.svd(total)
    sign = torch.det(u @ vh)
    return u @ torch.diag(torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign])) @ vh


def random_rotations(count: int, generator: torch.Generator, *, dtype: torch.dtype) -> Tensor:
    """(count, 3, 3) rotations uniform over SO(3) (normalised Gaussian quaternions, Shoemake 1992)."""
    q = torch.randn(count, 4, generator=generator, dtype=dtype, device=generator.device)
    w, x, y, z = (q / q.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).reshape(count, 3, 3)
