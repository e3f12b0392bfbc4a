"""Local pose search: inside extents about a stored pose, seen from a fulcrum, with optional priors.

The search runs in the frame of the mask: an image's shift is where the *mask centre* lands (px, relative to
the crop centre). A hypothesis is

    R = R_c exp([omega]x),      s = t - t_c - P (R - R_c) d,      d = mask centre - fulcrum

with (R_c, t_c) the anchor, P the projection on x, y. omega and s are bounded by the extents and may carry
Gaussian priors; s is the shift left once the rotation about the fulcrum is accounted for, which is all that
the fulcrum does: the likelihood knows nothing of it.

A coarse grid at a low band finds starts; a damped second-order (Levenberg-Marquardt) search over all five
degrees of freedom refines them through rising bands. On the way it drops the starts that cannot win any more
and those that run into the same optimum, and each particle stops when it has converged.

Images of single particles are mostly noise, so the residual never gets small and the Gauss-Newton curvature
alone converges slowly. What it lacks is learnt from the gradients on the way (structured symmetric-rank-one
update: Dennis, Gay & Welsch 1981, ACM TOMS 7, 348), which halves the number of steps at no cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum, auto

import torch
from torch import Tensor

from cryosweep.fourier import HalfPlane
from cryosweep.geometry import angle_between, rotation_from_vector, rotation_vector
from cryosweep.likelihood import (
    Quadratic,
    compiled_log_likelihood_on_grid,
    compiled_log_likelihood_quadratic,
    log_likelihood_on_grid,
    log_likelihood_quadratic,
)
from cryosweep.projector import Reference, slices
from cryosweep.shared_grid import best_on_shared_grid

# Samples worked on at a time: large enough to amortise a call, small enough to stay in cache.
SAMPLES_PER_CHUNK = 2**19
FIRST_DAMPING = 1e-2
LONGEST_STEP_RAD = 0.35
LONGEST_STEP_PX = 4.0
# A start is left alone once its next step promises to gain less log-posterior than this.
CONVERGED = 0.01
# An update of the curvature that hangs on a difference of gradients this small (as the cosine between it and
# the step, in units of the posterior's width) would be made of rounding.
LEAST_COSINE = 1e-3
# Two starts whose images differ at the rim by less than this share of the band's period share an optimum.
SAME_OPTIMUM = 0.25
# Signal energy (mean of `sum W |S|^2`) at which a grid can tell the right pose from the best of some hundred
# wrong ones: they reach sqrt(2 E) sqrt(2 ln N) by chance, the right one E, so E must exceed 4 ln N. For
# weaker images the grid is searched to a finer band, up to this multiple of the usual one: its cost goes with
# the seventh power of the band.
ENOUGH_ENERGY = 20.0
FINEST_GRID = 1.25
# Poses that far below the best of an exhaustive search count as missed.
MISSED = 1.0
AUDIT_STEP_RAD = math.radians(6.0)
# From this rotation extent on the grid is shared: about a tenth of all orientations lie within it, which is
# what a slice for each particle costs more than a slice for all.
SHARED_FROM_RAD = math.radians(70.0)
# An extent of zero (rad, px) that can still be divided by.
_NO_EXTENT = 1e-4


class ExtentShape(StrEnum):
    """What an extent limits of a rotation vector (axes of the map) or a shift (axes of the image)."""

    norm = auto()
    per_axis = auto()

    def size(self, vector: Tensor) -> Tensor:
        """(...,) what is compared to the extent, of vectors (..., k)."""
        return vector.norm(dim=-1) if self is ExtentShape.norm else vector.abs().amax(dim=-1)

    def bounded(self, vector: Tensor, extent: float) -> Tensor:
        """The nearest vectors (..., k) within the extent; those that are get back unchanged."""
        if self is ExtentShape.per_axis:
            return vector.clamp(-extent, extent)
        length = vector.norm(dim=-1, keepdim=True)
        return torch.where(length > extent, vector * (extent / length.clamp_min(1e-12)), vector)

    def longest(self, extent: float, axes: int) -> float:
        """Norm of the longest vector of `axes` components within the extent."""
        return extent if self is ExtentShape.norm else extent * math.sqrt(axes)

    def spread(self, extent: float, axes: int) -> float:
        """Standard deviation of each of `axes` components of a vector uniform within the extent."""
        return extent / math.sqrt(axes + 2.0 if self is ExtentShape.norm else 3.0)


@dataclass(frozen=True)
class SearchSpace:
    """Where poses may lie.

    Attributes:
        rotation_extent: rad, limit of the rotation vector away from the anchor.
        shift_extent_px: limit of the residual shift.
        rotation_prior: rad, standard deviation per axis of a Gaussian prior about the anchor, or None.
        shift_prior_px: the same for each component of the residual shift, or None.
        lever_px: (3,) mask centre minus fulcrum, map frame.
        shape: what the two extents limit, the norm or each component.
    """

    rotation_extent: float
    shift_extent_px: float
    rotation_prior: float | None
    shift_prior_px: float | None
    lever_px: Tensor
    shape: ExtentShape = ExtentShape.norm

    def __post_init__(self) -> None:
        if not 0 <= self.rotation_extent <= math.pi:
            raise ValueError(
                "the rotation extent must lie in [0, 180] degrees, "
                f"not {math.degrees(self.rotation_extent):g}"
            )
        if not self.shift_extent_px >= 0:
            raise ValueError(f"the shift extent must be 0 or more, not {self.shift_extent_px:g} px")
        for name in ("rotation_prior", "shift_prior_px"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive or None, not {value}")


@dataclass(frozen=True)
class Stage:
    """One step of the band pyramid: the best `starts`, polished at shells up to `shell`.

    A start takes at most `iterations` steps; fewer where it has converged. Starts that come in more than
    `margin` in log-posterior below the particle's best are not taken on.
    """

    shell: int
    starts: int
    iterations: int
    margin: float = math.inf


@dataclass(frozen=True)
class SearchPlan:
    """The coarse grid and the pyramid above it.

    Attributes:
        coarse_shell: band of the grid search.
        vectors: (r, 3) rotation vectors of the grid.
        neighbours: (r, m) which of them lie next to each.
        shifts_px: (s, 2) residual shifts of the grid.
        stages: from the coarsest band to the finest.
        mask_radius_px: of the domain, which turns angles into movements.
        compiled: whether grid and steps go by the compiled kernels (`cryosweep.kernels`; float32).
        shared: (r, 3, 3) rotations of a grid that all particles share, used in place of `vectors`, or None.
        shared_step: rad, distance of neighbours in it.
    """

    coarse_shell: int
    vectors: Tensor
    neighbours: Tensor
    shifts_px: Tensor
    stages: tuple[Stage, ...]
    mask_radius_px: float
    compiled: bool
    shared: Tensor | None = None
    shared_step: float = 0.0


@dataclass(frozen=True)
class Poses:
    """Poses in the frame of the mask: rotations (n, 3, 3) and shifts_px (n, 2)."""

    rotations: Tensor
    shifts_px: Tensor

    def __getitem__(self, index: Tensor | slice) -> Poses:
        return Poses(self.rotations[index], self.shifts_px[index])


@dataclass(frozen=True)
class SearchResult:
    """Best pose of each particle, its log-posterior and the curvature there (n, 5, 5), prior included."""

    poses: Poses
    log_posterior: Tensor
    curvature: Tensor

    def __getitem__(self, index: Tensor) -> SearchResult:
        return SearchResult(self.poses[index], self.log_posterior[index], self.curvature[index])


def rotation_grid(
    extent: float, step: float, *, shape: ExtentShape, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(r, 3) rotation vectors on a body-centred cubic lattice within `extent` (rad).

    `step` is the distance of nearest neighbours; the origin is always a point. Vectors beyond half a turn,
    which name rotations a second time, are left out.
    """
    edge = 2.0 * step / math.sqrt(3.0)
    reach = math.ceil(extent / edge) + 1
    axis = torch.arange(-reach, reach + 1, dtype=torch.float64)
    corner = torch.cartesian_prod(axis, axis, axis)
    points = torch.cat([corner, corner + 0.5]) * edge
    slack = 1 + 1e-9
    inside = (shape.size(points) <= extent * slack) & (points.norm(dim=1) <= math.pi * slack)
    return points[inside].to(dtype=dtype, device=device)


def shift_grid(
    extent_px: float, step_px: float, *, shape: ExtentShape, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(s, 2) shifts on a square lattice within `extent_px`; the origin is always a point."""
    reach = math.floor(extent_px / step_px * (1 + 1e-9))
    axis = torch.arange(-reach, reach + 1, dtype=torch.float64) * step_px
    points = torch.cartesian_prod(axis, axis)
    return points[shape.size(points) <= extent_px * (1 + 1e-9)].to(dtype=dtype, device=device)


def plan_search(
    space: SearchSpace,
    *,
    coarse_shell: int,
    band_shell: int,
    box_size: int,
    mask_radius_px: float,
    dtype: torch.dtype,
    device: torch.device,
    compiled: bool = False,
) -> SearchPlan:
    """A grid whose steps keep the coarse band in phase, and a pyramid up to `band_shell`.

    At resolution d a rotation by d / 2r moves the rim of a domain of radius r by half a period's half, and
    shifts are stepped by d / 4. The low bands only sort the starts, so few steps are taken there; the last
    band is where poses must converge. Particles whose best pose is clear go on with one start, the others
    with up to two (docs/performance.md).
    """
    period_px = box_size / coarse_shell
    rotation_step = min(max(period_px / (2.0 * mask_radius_px), math.radians(3.0)), math.radians(15.0))
    shifts = shift_grid(space.shift_extent_px, period_px / 4.0, shape=space.shape, dtype=dtype, device=device)
    middle = round(math.sqrt(coarse_shell * band_shell))
    if shares_grid(space):
        vectors = rotation_grid(math.pi, rotation_step, shape=ExtentShape.norm, dtype=dtype, device=device)
        # among all orientations the coarse band decides less: more starts, and apart from each other
        stages = (Stage(coarse_shell, 16, 2), Stage(middle, 6, 3), Stage(band_shell, 2, 10))
        none = torch.zeros(len(vectors), 1, dtype=torch.long, device=device)
        return SearchPlan(
            coarse_shell, vectors, none, shifts, stages, mask_radius_px, compiled,
            rotation_from_vector(vectors), rotation_step,
        )  # fmt: skip
    vectors = rotation_grid(
        space.rotation_extent, rotation_step, shape=space.shape, dtype=dtype, device=device
    )
    stages = (
        Stage(coarse_shell, starts=5, iterations=1),
        Stage(middle, starts=3, iterations=2, margin=4.0),
        Stage(band_shell, starts=2, iterations=10, margin=1.0),
    )
    return SearchPlan(coarse_shell, vectors, _neighbours(vectors), shifts, stages, mask_radius_px, compiled)


def informative_shell(
    reference: Reference, plane: HalfPlane, *, weights: Tensor, rotations: Tensor, least: int
) -> int:
    """The lowest band, from `least` to 1.25 times that, in which an average image tells its pose from chance.

    Args:
        reference: map of the domain.
        plane: K samples, up to the finest band allowed.
        weights: (b, K) W of a few images.
        rotations: (b, 3, 3) near their poses.
        least: shell.
    """
    model = slices(reference, rotations, plane)
    energy = (weights * (model.real.square() + model.imag.square())).mean(dim=0).double()
    by_shell = energy.new_zeros(plane.max_shell + 1).index_add_(0, plane.shell, energy).cumsum(0)
    enough = (by_shell >= ENOUGH_ENERGY).nonzero()
    first = plane.max_shell if enough.numel() == 0 else int(enough[0])
    return min(max(first, least), round(FINEST_GRID * least), plane.max_shell)


def shares_grid(space: SearchSpace) -> bool:
    """Whether extents are so wide that one grid over all orientations serves every particle best.

    Not where a lever would move each rotation's shifts by more than the grid ignores, and not for wide
    extents per axis, whose corners no angle tells.
    """
    wide = space.rotation_extent >= SHARED_FROM_RAD
    by_angle = space.shape is ExtentShape.norm or space.rotation_extent >= math.pi
    return wide and by_angle and float(space.lever_px.norm()) <= 1.0


def turn(poses: Poses, anchor: Poses) -> Tensor:
    """(..., 3) rotation vector omega of poses away from their anchors, in the axes of the map."""
    return rotation_vector(anchor.rotations.mT @ poses.rotations)


def residual_shift(poses: Poses, anchor: Poses, lever_px: Tensor) -> Tensor:
    """(..., 2) shift of a pose against its anchor that rotation about the fulcrum does not explain."""
    swing = ((poses.rotations - anchor.rotations) @ lever_px)[..., :2]
    return poses.shifts_px - anchor.shifts_px - swing


def confine(poses: Poses, anchor: Poses, space: SearchSpace) -> Poses:
    """`poses` with rotation vector and residual shift brought back to the nearest within the extents."""
    vector = turn(poses, anchor)
    outside = space.shape.size(vector) > space.rotation_extent
    turned = anchor.rotations @ rotation_from_vector(space.shape.bounded(vector, space.rotation_extent))
    rotations = torch.where(outside[..., None, None], turned, poses.rotations)
    left = residual_shift(Poses(rotations, poses.shifts_px), anchor, space.lever_px)
    excess = left - space.shape.bounded(left, space.shift_extent_px)
    return Poses(rotations, poses.shifts_px - excess)


def log_prior(poses: Poses, anchor: Poses, space: SearchSpace) -> Tensor:
    """(...,) Gaussian log-prior of poses about their anchors; zero where no prior is set."""
    total = poses.shifts_px.new_zeros(poses.shifts_px.shape[:-1])
    if space.rotation_prior is not None:
        total = total - turn(poses, anchor).square().sum(-1) / (2 * space.rotation_prior**2)
    if space.shift_prior_px is not None:
        left = residual_shift(poses, anchor, space.lever_px)
        total = total - left.square().sum(-1) / (2 * space.shift_prior_px**2)
    return total


def prior_quadratic(poses: Poses, anchor: Poses, space: SearchSpace) -> Quadratic:
    """The log-prior (b,) with gradient (b, 5) and curvature (b, 5, 5) in the coordinates of `Quadratic`."""
    b = poses.shifts_px.shape[0]
    gradient = poses.shifts_px.new_zeros(b, 5)
    curvature = poses.shifts_px.new_zeros(b, 5, 5)
    if space.rotation_prior is not None:
        precision = 1.0 / space.rotation_prior**2
        # omega is an eigenvector of the inverse left Jacobian, so d|omega|^2/2 / d delta = omega exactly
        gradient[:, :3] -= precision * rotation_vector(poses.rotations @ anchor.rotations.mT)
        curvature[:, range(3), range(3)] += precision
    if space.shift_prior_px is not None:
        precision = 1.0 / space.shift_prior_px**2
        left = residual_shift(poses, anchor, space.lever_px)
        arm = poses.rotations @ space.lever_px
        jacobian = gradient.new_zeros(b, 2, 5)
        jacobian[:, 0, 1], jacobian[:, 0, 2] = -arm[:, 2], arm[:, 1]
        jacobian[:, 1, 0], jacobian[:, 1, 2] = arm[:, 2], -arm[:, 0]
        jacobian[:, 0, 3] = jacobian[:, 1, 4] = 1.0
        gradient -= precision * (left[:, None] @ jacobian).squeeze(1)
        curvature += precision * jacobian.mT @ jacobian
    return Quadratic(log_prior(poses, anchor, space), gradient, curvature)


def search_poses(
    reference: Reference,
    plane: HalfPlane,
    *,
    images: Tensor,
    weights: Tensor,
    anchor: Poses,
    current: Poses,
    space: SearchSpace,
    plan: SearchPlan,
) -> SearchResult:
    """Best pose of every image within the search space.

    Args:
        reference: map of this half-set, its mask centre at the origin.
        plane: K samples, at least up to the last stage's band.
        images: (n, K) complex, Y of `cryosweep.likelihood`.
        weights: (n, K), W.
        anchor: centres of the extents and priors.
        current: poses to start from besides the grid.
        space: extents, priors, lever.
        plan: grid and pyramid.
    """
    first = plan.stages[0]
    starts, scores = _coarse_starts(
        reference.up_to(plan.coarse_shell), plane.up_to(plan.coarse_shell), images=images, weights=weights,
        anchor=anchor, space=space, plan=plan, keep=first.starts - 1,
    )  # fmt: skip
    rotations = torch.cat([current.rotations[:, None], starts.rotations], dim=1)
    shifts = torch.cat([current.shifts_px[:, None], starts.shifts_px], dim=1)
    # (n, h): what each start has reached, and whether it is still in the running
    reached = SearchResult(
        Poses(rotations, shifts), shifts.new_full(shifts.shape[:2], -math.inf),
        shifts.new_zeros(*shifts.shape[:2], 5, 5),
    )  # fmt: skip
    running = torch.ones_like(reached.log_posterior, dtype=torch.bool)
    running[:, 1:] = scores > scores[:, :1] - first.margin
    for number, stage in enumerate(plan.stages):
        if number > 0:
            before = plan.stages[number - 1].shell
            running = _contenders(reached, stage, reach_px=SAME_OPTIMUM * plane.box_size / before,
                                  radius_px=plan.mask_radius_px)  # fmt: skip
        _polish(
            reference.up_to(stage.shell), plane.up_to(stage.shell), images=images, weights=weights,
            anchor=anchor, reached=reached, running=running, space=space, iterations=stage.iterations,
            compiled=plan.compiled,
        )  # fmt: skip
    rows = torch.arange(len(images), device=images.device)
    best = reached.log_posterior.argmax(dim=1)
    return SearchResult(
        Poses(rotations[rows, best], shifts[rows, best]), reached.log_posterior[rows, best],
        reached.curvature[rows, best],
    )  # fmt: skip


def _contenders(reached: SearchResult, stage: Stage, *, reach_px: float, radius_px: float) -> Tensor:
    """(n, h) which starts go on: the best few within the margin, one for each optimum."""
    value = reached.log_posterior
    kept = value.topk(min(stage.starts, value.shape[1]), dim=1)
    good = kept.values >= kept.values[:, :1] - stage.margin
    running = torch.zeros_like(value, dtype=torch.bool).scatter_(1, kept.indices, good)
    best = kept.indices[:, :1]
    row = torch.arange(len(value), device=value.device)[:, None]
    poses = reached.poses
    turned = angle_between(poses.rotations, poses.rotations[row, best]) * radius_px
    apart = turned + (poses.shifts_px - poses.shifts_px[row, best]).norm(dim=-1)
    running &= apart > reach_px
    return running.scatter_(1, best, torch.ones_like(best, dtype=torch.bool))


def search_shortfall(
    reference: Reference, plane: HalfPlane, *, images: Tensor, weights: Tensor, anchor: Poses,
    found: SearchResult, space: SearchSpace, plan: SearchPlan,
) -> Tensor:  # fmt: skip
    """(n,) log-posterior by which an exhaustive search does better than what `plan` has found; 0 at least.

    Exhaustive: eight starts (32 where the grid is shared) from a grid of 6 degrees and from the pose found,
    all of them kept to the last band and polished there for ten steps. The other arguments are those of
    `search_poses`.
    """
    last = plan.stages[-1].shell
    vectors = rotation_grid(
        space.rotation_extent, AUDIT_STEP_RAD, shape=space.shape, dtype=plan.vectors.dtype,
        device=plan.vectors.device,
    )  # fmt: skip
    stages = (Stage(plan.coarse_shell, 8, 4), Stage(last, 8, 10))
    shared = None
    if plan.shared is not None:
        vectors = rotation_grid(
            math.pi, AUDIT_STEP_RAD, shape=ExtentShape.norm, dtype=vectors.dtype, device=vectors.device
        )
        stages = (Stage(plan.coarse_shell, 32, 4), Stage(last, 32, 10))
        shared = rotation_from_vector(vectors)
    exhaustive = replace(
        plan, vectors=vectors, neighbours=_neighbours(vectors) if shared is None else plan.neighbours,
        stages=stages, shared=shared, shared_step=AUDIT_STEP_RAD,
    )  # fmt: skip
    best = search_poses(
        reference, plane, images=images, weights=weights, anchor=anchor, current=found.poses, space=space,
        plan=exhaustive,
    )  # fmt: skip
    return (best.log_posterior - found.log_posterior).clamp_min(0.0)


def _coarse_starts(
    reference: Reference, plane: HalfPlane, *, images: Tensor, weights: Tensor, anchor: Poses,
    space: SearchSpace, plan: SearchPlan, keep: int,
) -> tuple[Poses, Tensor]:  # fmt: skip
    """The `keep` highest peaks (n, keep, ...) of the grid, each with its best shift, and their scores.

    A peak is a rotation that none of its neighbours on the grid surpasses; where there are fewer than asked
    for, scores are minus infinity.
    """
    count, samples = images.shape[0], plane.k.shape[0]
    if plan.shared is not None:
        shift_prior = plan.shifts_px.new_zeros(len(plan.shifts_px))
        if space.shift_prior_px is not None:
            shift_prior = -plan.shifts_px.square().sum(-1) / (2 * space.shift_prior_px**2)
        found = best_on_shared_grid(
            reference, plane, images=images[:, :samples], weights=weights[:, :samples],
            rotations=plan.shared, step=plan.shared_step, base_shifts_px=anchor.shifts_px,
            grid_shifts_px=plan.shifts_px, shift_log_prior=shift_prior, anchors=anchor.rotations,
            rotation_extent=space.rotation_extent, rotation_prior=space.rotation_prior, keep=keep,
        )  # fmt: skip
        rotations, shifts = found
        return Poses(rotations, shifts), torch.zeros_like(shifts[..., 0])
    grid = rotation_from_vector(plan.vectors)
    keep = min(keep, grid.shape[0])
    rotations = images.new_empty(count, keep, 3, 3, dtype=plane.k.dtype)
    shifts = images.new_empty(count, keep, 2, dtype=plane.k.dtype)
    scores = images.new_empty(count, keep, dtype=plane.k.dtype)
    prior = _grid_prior(space, plan)
    chunk = max(1, SAMPLES_PER_CHUNK // (samples * grid.shape[0]))
    for first in range(0, count, chunk):
        rows = slice(first, first + chunk)
        trial = anchor.rotations[rows, None] @ grid
        swing = ((trial - anchor.rotations[rows, None]) @ space.lever_px)[..., :2]
        base = anchor.shifts_px[rows, None] + swing
        given = {"rotations": trial, "base_shifts_px": base, "grid_shifts_px": plan.shifts_px}
        score = prior + (
            compiled_log_likelihood_on_grid(
                reference, plane, images=images[rows], weights=weights[rows], **given
            )
            if plan.compiled
            else log_likelihood_on_grid(
                reference, plane, images=images[rows, :samples], weights=weights[rows, :samples], **given
            )
        )  # fmt: skip
        best_score, best_shift = score.max(dim=-1)
        surpassed = best_score[:, plan.neighbours].amax(dim=-1) > best_score
        kept = best_score.masked_fill(surpassed, -math.inf).topk(keep, dim=1)
        row = torch.arange(best_score.shape[0], device=best_score.device)[:, None]
        rotations[rows] = trial[row, kept.indices]
        shifts[rows] = base[row, kept.indices] + plan.shifts_px[best_shift[row, kept.indices]]
        scores[rows] = kept.values
    return Poses(rotations, shifts), scores


def _neighbours(vectors: Tensor) -> Tensor:
    """(r, m) numbers of the lattice points next to each of (r, 3); short lists repeat the point itself."""
    if len(vectors) == 1:
        return torch.zeros(1, 1, dtype=torch.long, device=vectors.device)
    apart = torch.cdist(vectors, vectors)
    # a body-centred cubic lattice has 8 neighbours at one step and 6 at 1.155
    near = apart.topk(min(15, len(vectors)), dim=1, largest=False)
    step = near.values[:, 1].min()
    own = torch.arange(len(vectors), device=vectors.device)[:, None]
    return torch.where(near.values < 1.3 * step, near.indices, own)


def _grid_prior(space: SearchSpace, plan: SearchPlan) -> Tensor:
    """(r, s) log-prior on the grid, the same for every particle."""
    prior = plan.vectors.new_zeros(plan.vectors.shape[0], plan.shifts_px.shape[0])
    if space.rotation_prior is not None:
        prior = prior - (plan.vectors.square().sum(-1) / (2 * space.rotation_prior**2))[:, None]
    if space.shift_prior_px is not None:
        prior = prior - plan.shifts_px.square().sum(-1) / (2 * space.shift_prior_px**2)
    return prior


def _polish(
    reference: Reference, plane: HalfPlane, *, images: Tensor, weights: Tensor, anchor: Poses,
    reached: SearchResult, running: Tensor, space: SearchSpace, iterations: int, compiled: bool,
) -> None:  # fmt: skip
    """Levenberg-Marquardt from the `running` starts (n, h), whose rows of `reached` are replaced.

    The others keep their poses, but what they had reached no longer counts: it belongs to a lower band.
    """
    samples = plane.k.shape[0]
    owners, numbers = running.nonzero(as_tuple=True)
    reached.log_posterior.fill_(-math.inf)
    chunk = max(1, SAMPLES_PER_CHUNK // samples)
    for owner, number in zip(owners.split(chunk), numbers.split(chunk), strict=True):
        part = levenberg_marquardt(
            reference, plane, images=images, weights=weights, owner=owner,
            anchor=anchor[owner], space=space, iterations=iterations, compiled=compiled,
            start=Poses(reached.poses.rotations[owner, number], reached.poses.shifts_px[owner, number]),
        )  # fmt: skip
        reached.poses.rotations[owner, number] = part.poses.rotations
        reached.poses.shifts_px[owner, number] = part.poses.shifts_px
        reached.log_posterior[owner, number] = part.log_posterior
        reached.curvature[owner, number] = part.curvature


def levenberg_marquardt(
    reference: Reference, plane: HalfPlane, *, images: Tensor, weights: Tensor, owner: Tensor,
    anchor: Poses, start: Poses, space: SearchSpace, iterations: int, compiled: bool = False,
) -> SearchResult:  # fmt: skip
    """Maximise the log-posterior from b starts, inside the extents.

    Value, gradient and Gauss-Newton curvature come from one pass at the trial pose; what that curvature lacks
    is learnt from the change of the gradient over each step. A rejected step raises that start's
    damping and reuses the old ones. A trial outside the extents is projected back before it is judged, so
    every pose that is ever accepted is feasible. A start takes no more steps once the next one promises less
    than `CONVERGED`.

    Args:
        reference: map to slice.
        plane: K samples.
        images: (n, K') complex, Y, K' >= K.
        weights: (n, K'), W.
        owner: (b,) the image that each start belongs to.
        anchor: b poses.
        start: b poses.
        space: extents, priors, lever.
        iterations: most trial steps.
        compiled: use the compiled kernel.
    """
    samples = plane.k.shape[0]

    def evaluate(poses: Poses, rows: Tensor) -> Quadratic:
        at = {"rotations": poses.rotations, "shifts_px": poses.shifts_px}
        likelihood = (
            compiled_log_likelihood_quadratic(
                reference, plane, images=images, weights=weights, owner=owner[rows], **at
            )
            if compiled
            else log_likelihood_quadratic(
                reference, plane, images=images[:, :samples][owner[rows]],
                weights=weights[:, :samples][owner[rows]], **at,
            )
        )  # fmt: skip
        prior = prior_quadratic(poses, anchor[rows], space)
        return Quadratic(
            likelihood.value + prior.value,
            likelihood.gradient + prior.gradient,
            likelihood.curvature + prior.curvature,
        )

    active = torch.arange(owner.shape[0], device=owner.device)
    poses = confine(start, anchor, space)
    state = evaluate(poses, active)
    damping = torch.full_like(state.value, FIRST_DAMPING)
    missing = torch.zeros_like(state.curvature)
    for _ in range(iterations):
        step = _damped_step(state[active], missing[active], damping[active])
        promising = 0.5 * (step * state.gradient[active]).sum(dim=-1) > CONVERGED
        active, step = active[promising], step[promising]
        if active.numel() == 0:
            break
        turned = rotation_from_vector(step[:, :3]) @ poses.rotations[active]
        trial = confine(Poses(turned, poses.shifts_px[active] + step[:, 3:]), anchor[active], space)
        new = evaluate(trial, active)
        missing[active] = _learn_curvature(
            missing[active], new, state.gradient[active], _taken(trial, poses[active])
        )
        gain = new.value - state.value[active]
        better = gain > 0
        accepted = active[better]
        poses.rotations[accepted] = trial.rotations[better]
        poses.shifts_px[accepted] = trial.shifts_px[better]
        state.value[accepted] = new.value[better]
        state.gradient[accepted] = new.gradient[better]
        state.curvature[accepted] = new.curvature[better]
        damping[active] *= torch.where(better, 0.2, 8.0)
    return SearchResult(poses, state.value, state.curvature)


def posterior_covariance(curvature: Tensor, poses: Poses, space: SearchSpace) -> Tensor:
    """Laplace covariance (n, 5, 5) of best poses, in the coordinates of `Quadratic`, float64.

    The inverse of the curvature, to which the extents are added as Gaussians as wide as a uniform pose in
    them: where the image and the priors say
    nothing, the covariance is that of not knowing. It holds for the given reference, noise of the reference
    and other optima not counted.

    Args:
        curvature: (n, 5, 5) at `poses`, priors included.
        poses: n.
        space: extents and lever.
    """
    allowed = replace(
        space,
        rotation_prior=space.shape.spread(max(space.rotation_extent, _NO_EXTENT), 3),
        shift_prior_px=space.shape.spread(max(space.shift_extent_px, _NO_EXTENT), 2),
    )
    total = (curvature + prior_quadratic(poses, poses, allowed).curvature).double()
    scale = torch.diagonal(total, dim1=-2, dim2=-1).rsqrt()
    scaled = torch.linalg.inv(total * scale[:, :, None] * scale[:, None, :])
    return scaled * scale[:, :, None] * scale[:, None, :]


def log_evidence(log_posterior: Tensor, curvature: Tensor) -> Tensor:
    """(n,) log of the posterior integrated over rotation (rad) and shift (px), by Laplace's method, float64.

    `log p + 5/2 log 2 pi - 1/2 log det C`: exact for a Gaussian, and without the volume of the prior, which
    is the same for all particles of a job.

    Args:
        log_posterior: (n,) at the best poses.
        curvature: (n, 5, 5) there.
    """
    total = curvature.double()
    return log_posterior.double() + 2.5 * math.log(2.0 * math.pi) - 0.5 * torch.logdet(total)


def posterior_draws(
    poses: Poses, covariance: Tensor, anchor: Poses, space: SearchSpace, *, pairs: int,
    generator: torch.Generator,
) -> list[Poses]:  # fmt: skip
    """`2 pairs` draws of each of n poses from its Laplace posterior, in pairs on either side of it.

    Pairs, so that their mean is the pose itself whatever the draws. What falls outside the extents is
    brought back.

    Args:
        poses: n best poses.
        covariance: (n, 5, 5) of `posterior_covariance`.
        anchor: n.
        space: extents and lever.
        pairs: of draws.
        generator: on the CPU, so that a seed gives the same draws on any device.
    """
    root = torch.linalg.cholesky(covariance)
    draws: list[Poses] = []
    for _ in range(pairs):
        normal = torch.randn(len(root), 5, 1, generator=generator, dtype=root.dtype).to(root.device)
        step = (root @ normal).squeeze(-1).to(poses.shifts_px.dtype)
        for side in (step, -step):
            turned = rotation_from_vector(side[:, :3]) @ poses.rotations
            draws.append(confine(Poses(turned, poses.shifts_px + side[:, 3:]), anchor, space))
    return draws


def _taken(trial: Poses, begin: Poses) -> Tensor:
    """(b, 5) the step from `begin` to `trial`, in the coordinates of `Quadratic`."""
    turned = rotation_vector(trial.rotations @ begin.rotations.mT)
    return torch.cat([turned, trial.shifts_px - begin.shifts_px], dim=1)


def _learn_curvature(missing: Tensor, new: Quadratic, old_gradient: Tensor, step: Tensor) -> Tensor:
    """(b, 5, 5) `missing`, changed so that the whole curvature explains the last change of the gradient.

    Symmetric rank-one update with the secant condition `(C + M) step = old gradient - new gradient`, C the
    Gauss-Newton curvature at the new pose (Dennis, Gay & Welsch 1981). Left out where it is badly determined.
    """
    total = new.curvature + missing
    residual = old_gradient - new.gradient - (total @ step[..., None]).squeeze(-1)
    overlap = (residual * step).sum(dim=-1)
    width = torch.diagonal(new.curvature, dim1=-2, dim2=-1).clamp_min(1e-20).sqrt()
    scale = (residual / width).norm(dim=-1) * (step * width).norm(dim=-1)
    sound = (overlap.abs() > LEAST_COSINE * scale) & (scale > 0)
    safe = torch.where(sound, overlap, 1.0)[:, None, None]
    update = residual[:, :, None] * residual[:, None, :] / safe
    return missing + torch.where(sound[:, None, None], update, 0.0)


def _damped_step(state: Quadratic, missing: Tensor, damping: Tensor) -> Tensor:
    """(b, 5) step of the damped quadratic model, cut to the longest allowed rotation and shift.

    Where the Gauss-Newton curvature plus what was learnt is not positive definite, the first stands alone.
    """
    diagonal = torch.diagonal(state.curvature, dim1=-2, dim2=-1)
    # a direction without curvature (an empty reference) must not make the system singular
    floor = 1e-6 * diagonal.amax(dim=-1, keepdim=True).clamp_min(1e-20)
    damped = state.curvature + torch.diag_embed(damping[:, None] * diagonal + floor)
    convex = torch.linalg.cholesky_ex(damped + missing).info == 0
    damped = damped + torch.where(convex[:, None, None], missing, 0.0)
    step = torch.linalg.solve(damped, state.gradient)
    rotation = step[:, :3].norm(dim=-1) / LONGEST_STEP_RAD
    shift = step[:, 3:].norm(dim=-1) / LONGEST_STEP_PX
    return step / torch.maximum(rotation, shift).clamp_min(1.0)[:, None]
