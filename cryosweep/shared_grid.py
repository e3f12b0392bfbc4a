"""Pose search on one grid of rotations that all particles share, for extents up to all of SO(3).

A grid about each particle's own pose needs slices of its own for each particle. A grid in the frame of the
map needs each slice once for many particles, and its scores are two matrix products: with `S` the slices of r
rotations, `Y` and `W` the images and weights of n particles, and `ph(t)` the phase of s shifts

    score(n, r) = max_s 2 Re sum_k conj(Y ph(-t_s)) S  -  sum_k W |S|^2

so `4 n r s K` multiplications and r gathered slices, in place of n r of them. Rotations and particles are
taken in pieces: memory does not grow with either.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cryosweep.fourier import HalfPlane, shift_phase
from cryosweep.projector import Reference, nearest_slices

# Rotations sliced, and scores held, at a time.
ROTATIONS_PER_CHUNK = 2048
SCORES_PER_CHUNK = 2**23
# Candidates ranked for each start that is wanted: the neighbours of a good rotation are good as well.
CANDIDATES_PER_START = 10
# Of rotations nearer to each other than this many grid steps only the best is kept.
APART = 1.6


def best_on_shared_grid(
    reference: Reference,
    plane: HalfPlane,
    *,
    images: Tensor,
    weights: Tensor,
    rotations: Tensor,
    step: float,
    base_shifts_px: Tensor,
    grid_shifts_px: Tensor,
    shift_log_prior: Tensor,
    anchors: Tensor,
    rotation_extent: float,
    rotation_prior: float | None,
    keep: int,
) -> tuple[Tensor, Tensor]:
    """The best rotations of a shared grid that are apart from each other, each with its best shift.

    Args:
        reference: map to slice.
        plane: K samples.
        images: (n, K) complex, Y of `cryosweep.likelihood`.
        weights: (n, K), W.
        rotations: (r, 3, 3) the grid.
        step: rad, distance of its neighbours.
        base_shifts_px: (n, 2).
        grid_shifts_px: (s, 2), about the base shifts.
        shift_log_prior: (s,).
        anchors: (n, 3, 3), centres of extent and prior.
        rotation_extent: rad; a rotation farther from its anchor is no candidate.
        rotation_prior: rad, SD per axis of a Gaussian about the anchor, or None.
        keep: rotations wanted, at most r.

    Returns:
        rotations (n, keep, 3, 3), best first, and shifts_px (n, keep, 2). Where fewer than `keep` lie apart
        and within the extent, the last ones are near others, or the anchor itself.
    """
    keep = min(keep, rotations.shape[0])
    candidates = min(keep * CANDIDATES_PER_START, rotations.shape[0])
    per_chunk = max(1, SCORES_PER_CHUNK // (ROTATIONS_PER_CHUNK * grid_shifts_px.shape[0]))
    found_rotations = anchors.new_empty(images.shape[0], keep, 3, 3)
    found_shifts = anchors.new_empty(images.shape[0], keep, 2)
    for first in range(0, images.shape[0], per_chunk):
        rows = slice(first, first + per_chunk)
        score, grid, shift = _rank(
            reference, plane, images=images[rows], weights=weights[rows], rotations=rotations,
            base_shifts_px=base_shifts_px[rows], grid_shifts_px=grid_shifts_px,
            shift_log_prior=shift_log_prior, anchors=anchors[rows], rotation_extent=rotation_extent,
            rotation_prior=rotation_prior, candidates=candidates,
        )  # fmt: skip
        chosen = _apart(rotations[grid], score, APART * step).topk(keep, dim=1).indices
        row = torch.arange(chosen.shape[0], device=chosen.device)[:, None]
        allowed = score[row, chosen].isfinite()
        found_rotations[rows] = torch.where(
            allowed[..., None, None], rotations[grid[row, chosen]], anchors[rows, None]
        )
        moved = grid_shifts_px[shift[row, chosen]] * allowed[..., None]
        found_shifts[rows] = base_shifts_px[rows, None] + moved
    return found_rotations, found_shifts


def _rank(
    reference: Reference, plane: HalfPlane, *, images: Tensor, weights: Tensor, rotations: Tensor,
    base_shifts_px: Tensor, grid_shifts_px: Tensor, shift_log_prior: Tensor, anchors: Tensor,
    rotation_extent: float, rotation_prior: float | None, candidates: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The best candidates of n particles, best first: score, grid row and shift row, each (n, candidates)."""
    count, shifts = images.shape[0], grid_shifts_px.shape[0]
    places = base_shifts_px[:, None] + grid_shifts_px
    moved = images[:, None] * shift_phase(plane, places).conj()
    left = torch.view_as_real(moved).reshape(count * shifts, -1)
    best = left.new_full((count, 0), 0.0)
    where = torch.empty(count, 0, dtype=torch.long, device=images.device)
    which = where
    for begin in range(0, rotations.shape[0], ROTATIONS_PER_CHUNK):
        some = rotations[begin : begin + ROTATIONS_PER_CHUNK]
        model = nearest_slices(reference, some, plane)
        cross = (left @ torch.view_as_real(model).reshape(len(some), -1).mT).reshape(count, shifts, -1)
        score, shift = (2.0 * cross + shift_log_prior[:, None]).max(dim=1)
        score = score - weights @ (model.real.square() + model.imag.square()).mT
        score = score + _about_anchor(anchors, some, rotation_extent, rotation_prior)
        number = torch.arange(begin, begin + len(some), device=images.device).expand(count, -1)
        score, where_all, which_all = (
            torch.cat(pair, dim=1) for pair in ((best, score), (where, number), (which, shift))
        )
        best, kept = score.topk(min(candidates, score.shape[1]), dim=1)
        where, which = where_all.gather(1, kept), which_all.gather(1, kept)
    return best, where, which


def _about_anchor(anchors: Tensor, rotations: Tensor, extent: float, prior: float | None) -> Tensor:
    """(n, r) log-prior of rotations about each anchor: Gaussian in the angle, minus infinity beyond it."""
    # trace(A^T R) = 1 + 2 cos(angle)
    trace = anchors.reshape(-1, 9) @ rotations.reshape(-1, 9).mT
    angle = torch.acos((0.5 * (trace - 1.0)).clamp(-1.0, 1.0))
    log_prior = torch.zeros_like(angle) if prior is None else -0.5 * (angle / prior).square()
    # acos is rough near half a turn, where nothing is to be left out
    return torch.where(angle > extent + 1e-3, -torch.inf, log_prior)


def _apart(rotations: Tensor, score: Tensor, distance: float) -> Tensor:
    """Scores (n, c), falling, without those of rotations (n, c, 3, 3) near a better one that is kept."""
    flat = rotations.flatten(-2)
    cosine = 0.5 * (flat @ flat.mT - 1.0)
    near = cosine > torch.cos(torch.tensor(distance, dtype=cosine.dtype, device=cosine.device))
    kept = torch.ones_like(score, dtype=torch.bool)
    for number in range(score.shape[1] - 1):
        later = near[:, number, number + 1 :] & kept[:, number, None]
        kept[:, number + 1 :] &= ~later
    # what is dropped stays behind all that is kept, in its own order
    return torch.where(kept, score, score - score.new_tensor(1e12))
