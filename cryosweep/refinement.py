"""Local refinement: one domain under a mask, each particle's pose searched near where it starts.

The images are multiplied by their CTF, cropped round the projected mask centre and kept as samples once per
run; every iteration then searches poses against each half-set's own map and rebuilds both half-maps from
those samples. The band follows the FSC of the unfiltered half-maps under the mask, less what the mask itself
makes of it.

Maps of the loop live on a working grid: the box of the crop, but only as many voxels as the shells that the
next band may reach ask for. So an iteration costs what its band costs, whatever the pixel size of the images.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from cryosweep.accuracy import expected_accuracy
from cryosweep.anisotropy import fibonacci_directions, slice_precision
from cryosweep.ctf import contrast_transfer
from cryosweep.fourier import (
    HalfPlane,
    centred_range,
    crop_centre,
    cut_cube,
    even_fft_size,
    half_plane,
    low_pass,
    resample_cube,
    shift_phase,
    spectrum_of_images,
)
from cryosweep.geometry import angle_between, rotation_from_vector, rotation_vector
from cryosweep.io.particles import Particles
from cryosweep.kernels import can_compile
from cryosweep.likelihood import noise_power
from cryosweep.mask import centre_of_mass, radius_of_share_px
from cryosweep.projector import Reference, insert, make_reference, new_accumulator, slices
from cryosweep.reconstruction import (
    FourierSums,
    HalfMaps,
    finish_sums,
    ssnr_of_fsc,
    unfiltered,
    weigh_shells,
    wiener,
)
from cryosweep.regularisation import NonuniformSettings, Regularisation, nonuniform
from cryosweep.resolution import crossing, fsc, mask_corrected_fsc
from cryosweep.rules import Finding, missed_poses
from cryosweep.scale import particle_scale, scale_terms
from cryosweep.search import (
    MISSED,
    ExtentShape,
    Poses,
    SearchPlan,
    SearchResult,
    SearchSpace,
    informative_shell,
    log_evidence,
    plan_search,
    posterior_covariance,
    posterior_draws,
    residual_shift,
    search_poses,
    search_shortfall,
    turn,
)

log = logging.getLogger(__name__)

FSC_THRESHOLD = 0.143
# The half-maps of an iteration reach this much beyond the band it searched: room for the band to grow.
GROWTH = 1.5
GROWTH_SHELLS = 2
# Shells between those that are used and the Nyquist of the working grid, lest a mask fold one on the other.
GUARD_SHELLS = 4
# A pose this uncertain at the domain's rim, as a share of the band's period, blurs the last shell by 12 %.
# With `marginalise` such images are inserted at this many pairs of draws: one is as good as four.
SHARP = 1.0 / 12.0
PAIRS_OF_DRAWS = 1
# Images that the band of the coarse grid is chosen from.
INFORMED = 32
# The grid search looks at this multiple of the initial low-pass: 19 Å for 12 Å (docs/performance.md).
COARSE_TO_INITIAL = 1.6
PREPARE_CHUNK = 128
# Share of the mask's weight that the crop is made for: what lies beyond is a corner of its soft edge.
HELD = 0.99
# Share of the farthest place allowed that the crop is made for.
REACH = 0.75
# px: in a smaller crop shells are so wide that noise in a single one carries the band far.
LEAST_CROP = 32
# A pose counts as lying at the extent within this share of it.
AT_EXTENT = 0.95
# Settled: half of the particles moved by less than this share of the resolution at the domain's rim.
SETTLED_SHARE = 0.1
# Least number of particles audited.
LEAST_FOR_AUDIT = 8
NONUNIFORM = NonuniformSettings()
# Fewer images of an optics group in a half-set than this give no noise spectrum of their own.
LEAST_FOR_NOISE = 50
# Particles that the expected accuracy is averaged over, and directions that slices are looked at from.
ACCURACY_TRIALS = 100
PRECISION_DIRECTIONS = 500


class Stop(Enum):
    """Why a refinement ended, in words that say what to change."""

    SETTLED = "resolution and poses stopped changing"
    ITERATION_LIMIT = (
        "iteration limit reached while poses or resolution still changed; raise refinement.max_iterations"
    )
    NO_COMMON_SIGNAL = (
        "the half-maps share no signal under the mask; check the mask, the poses and the half-sets"
    )


@dataclass(frozen=True)
class RefinementSettings:
    """What a user may choose about a local refinement.

    Attributes:
        rotation_extent: degrees, limit of the rotation vector away from the anchor (axes of the map).
        shift_extent: Å, limit of the shift beyond what the rotation about the fulcrum explains.
        extent_shape: what the two limit: the norm, or each component.
        rotation_prior: degrees, SD per axis of a Gaussian prior about the anchor, or None.
        shift_prior: Å, SD per axis of a Gaussian prior on that shift, or None.
        recentre: anchor extents and priors on the current poses in every iteration, not on the first ones.
        max_iterations: limit.
        initial_lowpass: Å, low-pass of the first reference and first band.
        max_resolution: Å, finest band ever used for alignment, or None for Nyquist.
        regularisation: of the loop's references: none (a low-pass at the band), by SSNR, or non-uniform.
        audit: share of the particles, at least 8, searched exhaustively in the last iteration; 0: none.
        seed: of the choice of those particles.
        correct_for_mask: take band and SSNR from the FSC less what the mask makes of it (else with it).
        compile: compile the inner loop (`cryosweep.kernels`).
        marginalise: rebuild the maps from draws of the posterior of each particle whose pose is not known
            well enough for its image to be sharp at the band; else, and for all others, from the best pose.
        scale: estimate a scale for each particle (`cryosweep.scale`) after each search.
    """

    rotation_extent: float = 20.0
    shift_extent: float = 10.0
    extent_shape: ExtentShape = ExtentShape.norm
    rotation_prior: float | None = None
    shift_prior: float | None = None
    recentre: bool = False
    max_iterations: int = 5
    initial_lowpass: float = 12.0
    max_resolution: float | None = None
    regularisation: Regularisation = Regularisation.wiener
    correct_for_mask: bool = True
    compile: bool = False
    marginalise: bool = True
    scale: bool = False
    audit: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Audit:
    """How the default search compares with an exhaustive one of some particles, in the last iteration.

    Attributes:
        audited: number of particles.
        shortfall_share: share of them whose log-posterior is more than 1 below the exhaustive search's.
        shortfall_mean: mean difference of the log-posteriors.
    """

    audited: int
    shortfall_share: float
    shortfall_mean: float

    @property
    def finding(self) -> Finding | None:
        """What to say where more particles than tolerable are missed, by more than chance; else None."""
        return missed_poses(self.shortfall_share, self.audited)


@dataclass(frozen=True)
class IterationRecord:
    """What one iteration did.

    Attributes:
        iteration: from 1.
        band: Å, resolution up to which poses were searched.
        resolution: Å, where the half-maps' FSC under the mask falls below 0.143 afterwards.
        resolution_corrected: Å, the same for the FSC less what the mask makes of it.
        coarse_band: Å, resolution of the grid search.
        gsfsc: (n_shells of the working grid,) FSC under the mask, of unfiltered half-maps; shells beyond the
            last that was reconstructed are 0.
        gsfsc_corrected: (n_shells of the working grid,) `mask_corrected_fsc` of them.
        rotation_change_median: degrees, from the starting poses.
        shift_change_median: Å, of the mask centre's projection, from the starting poses.
        moved_median: Å, movement at the domain's rim since the last iteration.
        at_rotation_extent: share of particles within 5 % of the extent.
        at_shift_extent: share of particles within 5 % of the extent.
        log_posterior: mean over particles.
        marginalised: share of particles that were inserted at draws of their posterior.
        seconds: wall time.
    """

    iteration: int
    band: float
    coarse_band: float
    resolution: float
    resolution_corrected: float
    gsfsc: Tensor
    gsfsc_corrected: Tensor
    rotation_change_median: float
    shift_change_median: float
    moved_median: float
    at_rotation_extent: float
    at_shift_extent: float
    log_posterior: float
    marginalised: float
    seconds: float


@dataclass(frozen=True)
class Inspection:
    """What the last references and sums tell beyond the poses, for figures and findings.

    Attributes:
        noise_before: (2, g, n_shells) noise variance of half-sets and optics groups that the search used, in
            the shells of the crop up to the last that images were kept for.
        noise_after: the same less what the references explain at the refined poses. Each half-set is
            explained by its own map, so a little of its noise counts as explained.
        images: (2, g) number of images.
        accuracy_rotation: degrees, mean `expected_accuracy` of a sample of particles in the last band.
        accuracy_shift: Å, the same.
        directions: (m, 3) viewing directions of the half sphere.
        precision: (m,) `slice_precision` of those, up to the last band.
    """

    noise_before: Tensor
    noise_after: Tensor
    images: Tensor
    accuracy_rotation: float
    accuracy_shift: float
    directions: Tensor
    precision: Tensor


@dataclass(frozen=True)
class Refinement:
    """Result of a local refinement.

    Attributes:
        rotations: (n, 3, 3) float64.
        shifts: (n, 2) Å, float64, of the map's origin (box centre).
        rotation_change: (n,) degrees from the starting pose.
        shift_change: (n,) Å, movement of the projected mask centre.
        covariance: (n, 5, 5) float64, Laplace covariance of each pose given the last references: rotation
            about the mask centre (rad; x, y, z of the view) and shift of its projection (Å).
        log_posterior: (n,) at the refined poses, given the last references.
        log_evidence: (n,) float64, the same integrated over rotation (rad) and shift (px).
        records: one for each iteration.
        stop: why it ended.
        crop_size: px of the cropped images it worked on.
        audit: what the search left on the table, if that was asked for.
        inspection: noise, expected accuracy and precision of directions at the end.
        effective_radius: Å, of the ball with the mask's radius of gyration.
        scale: (n,) float64, factor on the scale that the particles came with; None: not estimated.
    """

    rotations: Tensor
    shifts: Tensor
    rotation_change: Tensor
    shift_change: Tensor
    covariance: Tensor
    log_posterior: Tensor
    log_evidence: Tensor
    records: tuple[IterationRecord, ...]
    stop: Stop
    crop_size: int
    audit: Audit | None
    inspection: Inspection
    effective_radius: float
    scale: Tensor | None

    @property
    def rotation_sd(self) -> Tensor:
        """(n,) degrees, posterior standard deviation of the rotation: root mean square over three axes."""
        variances = torch.diagonal(self.covariance, dim1=-2, dim2=-1)
        return torch.rad2deg(variances[:, :3].mean(dim=-1).sqrt())

    @property
    def shift_sd(self) -> Tensor:
        """(n,) Å, the same of the mask centre's projection: root mean square over x and y."""
        variances = torch.diagonal(self.covariance, dim1=-2, dim2=-1)
        return variances[:, 3:].mean(dim=-1).sqrt()


@dataclass(frozen=True)
class RefinementState:
    """Where a refinement stands between two iterations: everything that the next one needs.

    Attributes:
        iteration: the last complete one.
        band: shell, on the crop, up to which the next one searches.
        rotations: (n, 3, 3) float32 poses.
        shifts_px: (n, 2) float32, of the mask centre's projection.
        volumes: (2, m, m, m) the next references of both half-sets, under the mask.
        mask: (crop, crop, crop) mask of the next iterations.
        records: of the iterations so far.
        scale: (n,) float64 of the particles, if they are estimated.
    """

    iteration: int
    band: int
    rotations: Tensor
    shifts_px: Tensor
    volumes: Tensor
    mask: Tensor
    records: tuple[IterationRecord, ...]
    scale: Tensor | None


@dataclass(frozen=True)
class _Domain:
    """Where the mask lies and how it is cropped: px, map frame, relative to the box centre."""

    centre: tuple[int, int, int]
    radius_px: float
    effective_radius_px: float
    lever_px: Tensor
    crop_size: int
    mask: Tensor

    @property
    def centre_vector(self) -> Tensor:
        return torch.tensor(self.centre, dtype=torch.float64)


@dataclass(frozen=True)
class PreparedImages:
    """Cropped, CTF-multiplied images as samples, and the noise of each half-set and optics group.

    Attributes:
        plane: K samples.
        images: (n, K) complex.
        weights: (n, K).
        noise: (m, n_shells) variances.
        noise_of: (n,) row of `noise` for each particle.
    """

    plane: HalfPlane
    images: Tensor
    weights: Tensor
    noise: Tensor
    noise_of: Tensor


@dataclass(frozen=True)
class _Grid:
    """The working grid of an iteration: voxels along an edge, last shell reconstructed, the mask on it."""

    size: int
    last_shell: int
    mask: Tensor


@dataclass(frozen=True)
class _Draws:
    """Poses drawn from the posterior of every particle, and (n,) which particles are inserted at them."""

    wide: Tensor
    poses: list[Poses]


@dataclass(frozen=True)
class _Searched:
    """What the poses of one iteration were searched with: reference and plan of each half-set, anchors."""

    references: list[Reference]
    plans: list[SearchPlan]
    anchor: Poses


def crop_size_for(
    box_size: int, *, radius_px: float, shift_extent_px: float, rotation_extent: float, lever_px: float
) -> int:
    """Even crop that holds a domain three quarters as far out as the search may put it, 32 px to the box.

    `2 (r + 3/4 hypot(shift, 2 sin(rotation / 2) lever))`: within it the likelihood's cross term is exact.
    Farther out, where few particles end, the side of the rim that leaves the crop is not seen. Measured in
    docs/performance.md.

    Args:
        box_size: px.
        radius_px: of the domain.
        shift_extent_px: limit.
        rotation_extent: rad, limit.
        lever_px: distance of the domain's centre from the fulcrum.
    """
    swing = 2.0 * math.sin(min(rotation_extent, math.pi) / 2.0) * lever_px
    reach = math.hypot(shift_extent_px, swing)
    return min(max(even_fft_size(2.0 * (radius_px + REACH * reach)), LEAST_CROP), box_size)


def refine(
    particles: Particles,
    start: HalfMaps,
    mask: Tensor,
    *,
    fulcrum: Tensor,
    settings: RefinementSettings,
    device: torch.device,
    memory_budget: float = math.inf,
    advance: Callable[[int], None] | None = None,
    on_iteration: Callable[[IterationRecord], None] | None = None,
    remask: Callable[[HalfMaps, float], Tensor | None] | None = None,
    resume: RefinementState | None = None,
    on_state: Callable[[RefinementState], None] | None = None,
    share: Callable[[tuple[int, ...], Callable[[], PreparedImages]], PreparedImages] | None = None,
) -> Refinement:
    """Refine the poses of one domain.

    Args:
        particles: n particles with starting poses and half-sets.
        start: half-maps (d, d, d) of those particles; the two halves never meet.
        mask: (d, d, d) in [0, 1].
        fulcrum: (3,) Å from the box centre, map frame.
        settings: extents, priors, schedule.
        device: where to work.
        memory_budget: bytes; prepared images beyond it live in a memory-mapped temporary file.
        advance: called with numbers of particles as they are done: prepared once, searched per iteration.
        on_iteration: called after each iteration.
        remask: called after each iteration with its unfiltered half-maps, on the cropped grid, and the
            resolution (Å) that they reach; what it returns, on that grid, is the mask from then on; None
            keeps the last. Crop and search grids stay those of `mask`.
        resume: go on from here instead of from `start`; all other arguments as they were then. The result is
            that of a refinement which was not interrupted, bit for bit; with scales, to rounding.
        on_state: called after each iteration that another one follows.
        share: returns the prepared images of an earlier refinement of the same particles at the same poses
            with the same key, or has them made by the function it is given.
    """
    pixel_size = particles.pixel_size
    compiled = settings.compile and can_compile(device)
    space_rotation = math.radians(settings.rotation_extent)
    domain = _locate_domain(mask, fulcrum, settings, pixel_size)
    log.info("domain radius %.0f Å, images cropped to %d of %d px", domain.radius_px * pixel_size,
             domain.crop_size, particles.box_size)  # fmt: skip
    n = domain.crop_size
    start_shift_px = particles.shifts / pixel_size + (particles.rotations @ domain.centre_vector)[:, :2]
    with tempfile.TemporaryDirectory(prefix="cryosweep_") as scratch:
        limit = half_plane(n, dtype=torch.float32, device=device).max_shell
        last_shell = _shell_of(settings.max_resolution, n, pixel_size, limit)
        limit = min(limit, last_shell + GROWTH_SHELLS)

        def prepare() -> PreparedImages:
            return _prepare(particles, start_shift_px, n, limit, device, memory_budget, scratch, advance)

        # scales change the prepared images, so these are not for others
        prepared = (
            prepare() if share is None or settings.scale else share((*domain.centre, n, limit), prepare)
        )
        plane = prepared.plane
        space = SearchSpace(
            rotation_extent=space_rotation,
            shift_extent_px=settings.shift_extent / pixel_size,
            rotation_prior=_optional(settings.rotation_prior, math.radians),
            shift_prior_px=_optional(settings.shift_prior, lambda value: value / pixel_size),
            lever_px=domain.lever_px.to(device, torch.float32),
            shape=settings.extent_shape,
        )
        band = _shell_of(settings.initial_lowpass, n, pixel_size, last_shell)
        least_coarse = _shell_of(COARSE_TO_INITIAL * settings.initial_lowpass, n, pixel_size, band)
        begin = Poses(
            particles.rotations.to(device, torch.float32),
            torch.zeros(len(particles), 2, device=device),
        )
        poses, anchor = begin, begin
        curvature = begin.shifts_px.new_zeros(len(particles), 5, 5)
        half_sets = [(particles.half_sets == half).nonzero().squeeze(-1) for half in (0, 1)]
        grid = _working_grid(domain, band, limit)
        volumes = [
            volume * grid.mask
            for volume in _first_volumes(start, mask, settings.initial_lowpass, domain, grid)
        ]
        searched: _Searched | None = None
        sums: tuple[FourierSums, FourierSums] | None = None
        log_posterior = begin.shifts_px.new_zeros(len(particles))
        scale = torch.ones(len(particles), dtype=torch.float64) if settings.scale else None
        records: list[IterationRecord] = []
        stop = Stop.ITERATION_LIMIT
        if resume is not None:
            band, records = resume.band, list(resume.records)
            poses = Poses(resume.rotations.to(device), resume.shifts_px.to(device))
            anchor = poses if settings.recentre else begin
            volumes = list(resume.volumes.to(device).unbind())
            domain = replace(domain, mask=resume.mask.to(device))
            if resume.scale is not None:
                scale = resume.scale
                _multiply(prepared, scale, half_sets)
            if advance is not None:
                advance(len(records) * len(particles))
        for iteration in range(len(records) + 1, settings.max_iterations + 1):
            began = time.monotonic()
            references = [make_reference(volume, max_shell=band) for volume in volumes]
            coarse = [
                _coarse_shell(prepared, half_set, reference, poses, least_coarse, band)
                for half_set, reference in zip(half_sets, references, strict=True)
            ]
            plans = [
                plan_search(
                    space, coarse_shell=shell, band_shell=band, box_size=n,
                    mask_radius_px=domain.effective_radius_px, dtype=torch.float32, device=device,
                    compiled=compiled,
                )
                for shell in coarse
            ]  # fmt: skip
            searched = _Searched(references, plans, anchor)
            new = Poses(poses.rotations.clone(), poses.shifts_px.clone())
            for half, rows in _half_chunks(half_sets):
                result = search_poses(
                    references[half], plane, images=_whiten(prepared, rows, prepared.images),
                    weights=_whiten(prepared, rows, prepared.weights),
                    anchor=anchor[rows], current=poses[rows], space=space, plan=plans[half],
                )  # fmt: skip
                new.rotations[rows], new.shifts_px[rows] = result.poses.rotations, result.poses.shifts_px
                curvature[rows] = result.curvature
                log_posterior[rows] = result.log_posterior
                if advance is not None:
                    advance(len(rows))
            if scale is not None:
                scale = _rescale(prepared, half_sets, references, new, scale, band)
            grid = _working_grid(domain, band, limit)
            draws = _draws(new, curvature, anchor, space, domain, band, settings, seed=iteration)
            sums = _insert_all(prepared, half_sets, new, draws, grid)
            halves = [unfiltered(half) for half in sums]
            gsfsc = _whole_shells(fsc(*(half * grid.mask for half in halves)), grid)
            corrected = _whole_shells(mask_corrected_fsc(*halves, grid.mask), grid)
            record = _record(
                iteration, band=n * pixel_size / band, coarse_band=n * pixel_size / min(coarse),
                gsfsc=gsfsc, corrected=corrected,
                begin=begin, anchor=anchor, last=poses, new=new, space=space, domain=domain,
                pixel_size=pixel_size,
                log_posterior=float(log_posterior.mean()),
                marginalised=0.0 if draws is None else float(draws.wide.float().mean()),
                seconds=time.monotonic() - began,
            )  # fmt: skip
            records.append(record)
            poses = new
            log.info(
                "iteration %d: searched to %.1f Å, half-maps agree to %.1f Å (corrected %.1f Å), "
                "median change %.1f° %.1f Å, at extent %.0f %% / %.0f %%, %.0f s",
                iteration, record.band, record.resolution, record.resolution_corrected,
                record.rotation_change_median, record.shift_change_median,
                100 * record.at_rotation_extent, 100 * record.at_shift_extent, record.seconds,
            )  # fmt: skip
            if on_iteration is not None:
                on_iteration(record)
            steering = corrected if settings.correct_for_mask else gsfsc
            reached = last_common_shell(steering)
            if reached < 1:
                stop = Stop.NO_COMMON_SIGNAL
                break
            if _settled(records, corrected=settings.correct_for_mask):
                stop = Stop.SETTLED
                break
            band = min(max(reached + 1, least_coarse), grid.last_shell, last_shell)
            voxel = n * pixel_size / grid.size
            if remask is not None:
                reached_to = record.resolution_corrected if settings.correct_for_mask else record.resolution
                made = remask(HalfMaps(halves[0], halves[1], voxel), reached_to)
                if made is not None:
                    grid = replace(grid, mask=made)
                    domain = replace(domain, mask=resample_cube(made, n).clamp(0.0, 1.0))
            volumes = [
                volume * grid.mask
                for volume in _next_volumes(
                    sums, steering, band, voxel, regularisation=settings.regularisation
                )
            ]
            if settings.recentre:
                anchor = poses
            if on_state is not None and iteration < settings.max_iterations:
                on_state(
                    RefinementState(
                        iteration, band, poses.rotations, poses.shifts_px, torch.stack(volumes),
                        domain.mask, tuple(records), scale,
                    )
                )  # fmt: skip
        covariance = posterior_covariance(curvature, poses, space)
        audit = None
        if settings.audit > 0 and searched is not None:
            found = SearchResult(poses, log_posterior, curvature)
            audit = _audit(prepared, particles.half_sets, searched, found, space, settings)
        assert searched is not None, "a refinement has at least one iteration"
        assert sums is not None
        inspection = _inspect(
            prepared, half_sets, searched, sums, poses, pixel_size=pixel_size, seed=settings.seed
        )
    evidence = log_evidence(log_posterior, torch.linalg.inv(covariance))
    return _result(
        particles,
        poses,
        covariance,
        log_posterior,
        evidence,
        start_shift_px,
        domain,
        tuple(records),
        stop,
        audit,
        inspection,
        scale,
    )


def last_common_shell(curve: Tensor, threshold: float = FSC_THRESHOLD) -> int:
    """Last shell before the FSC stays below `threshold` for two shells in a row; 0 if it begins below.

    Two, because a mask of few voxels makes single shells dip by chance.
    """
    below = curve[1:] < threshold
    pair = below.clone()
    pair[:-1] &= below[1:]
    first = pair.nonzero()
    return int(curve.numel() - 1) if first.numel() == 0 else int(first[0])


def _optional(value: float | None, convert: Callable[[float], float]) -> float | None:
    return None if value is None else convert(value)


def _shell_of(resolution: float | None, box_size: int, pixel_size: float, limit: int) -> int:
    """Shell of a resolution in Å on a box, at least 2 and at most `limit`."""
    return limit if resolution is None else min(max(round(box_size * pixel_size / resolution), 2), limit)


def _locate_domain(mask: Tensor, fulcrum: Tensor, settings: RefinementSettings, pixel_size: float) -> _Domain:
    """Integer centre, radii and crop of a mask; the mask itself on the cropped grid."""
    exact = centre_of_mass(mask).double().cpu()
    centre = (round(float(exact[0])), round(float(exact[1])), round(float(exact[2])))
    whole = torch.tensor(centre, dtype=torch.float64)
    radius = radius_of_share_px(mask, whole, HELD)
    lever = whole - fulcrum.double().cpu() / pixel_size
    shape = settings.extent_shape
    crop = crop_size_for(
        int(mask.shape[-1]), radius_px=radius,
        shift_extent_px=shape.longest(settings.shift_extent, 2) / pixel_size,
        rotation_extent=math.radians(shape.longest(settings.rotation_extent, 3)),
        lever_px=float(lever.norm()),
    )  # fmt: skip
    return _Domain(
        centre=centre,
        radius_px=radius,
        effective_radius_px=_equivalent_radius(mask, whole),
        lever_px=lever,
        crop_size=crop,
        mask=cut_cube(mask, centre, crop).float(),
    )


def _equivalent_radius(mask: Tensor, centre: Tensor) -> float:
    """Radius (px) of the ball that has the mask's radius of gyration about `centre`."""
    axis = centred_range(int(mask.shape[-1]), dtype=torch.float64, device=mask.device)
    weight = mask.double()
    x, y, z = (float(value) for value in centre)
    squared = (axis - z).square()[:, None, None] + (axis - y).square()[None, :, None] + (axis - x).square()
    return math.sqrt(5.0 / 3.0 * float((weight * squared).sum() / weight.sum()))


def _allocate(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device, budget: float, path: str
) -> Tensor:
    """Storage for prepared images: on the device, or in a memory-mapped file when over the budget."""
    if shape[0] * shape[1] * dtype.itemsize <= budget:
        return torch.empty(shape, dtype=dtype, device=device)
    count = shape[0] * shape[1]
    return torch.from_file(path, shared=True, size=count, dtype=dtype).reshape(shape)


def _prepare(
    particles: Particles, centre_px: Tensor, crop: int, max_shell: int, device: torch.device, budget: float,
    scratch: str, advance: Callable[[int], None] | None,
) -> PreparedImages:  # fmt: skip
    """Move each image's projected mask centre to the origin, multiply by the CTF, crop, keep as samples."""
    box, count = particles.box_size, len(particles)
    plane = half_plane(crop, max_shell=max_shell, dtype=torch.float32, device=device)
    samples = plane.k.shape[0]
    images = _allocate((count, samples), torch.complex64, device, 0.67 * budget, f"{scratch}/images")
    weights = _allocate((count, samples), torch.float32, device, 0.33 * budget, f"{scratch}/weights")
    fx = torch.fft.rfftfreq(box, dtype=torch.float32, device=device)
    fy = torch.fft.fftfreq(box, dtype=torch.float32, device=device)
    grid = torch.stack(torch.broadcast_tensors(fx[None, :], fy[:, None]), dim=-1).reshape(-1, 2)
    groups = int(particles.optics_group.max()) + 1
    noise_of = particles.half_sets * groups + particles.optics_group
    power = torch.zeros(2 * groups, plane.max_shell + 1, dtype=torch.float64, device=device)
    for rows in torch.arange(count).split(PREPARE_CHUNK):
        spectrum = torch.fft.rfft2(torch.fft.ifftshift(particles.images(rows).to(device), dim=(-2, -1)))
        phase = (2.0 * math.pi) * (centre_px[rows].to(device, torch.float32) @ grid.mT)
        spectrum = spectrum * torch.polar(torch.ones_like(phase), phase).reshape(spectrum.shape)
        optics = particles.optics[rows].to(dtype=torch.float32, device=device)
        transfer = contrast_transfer(optics, grid / particles.pixel_size).reshape(spectrum.shape)
        images[rows] = _crop_samples(spectrum * transfer, box, plane)
        # W is even, so its samples are real
        weights[rows] = _crop_samples(transfer.square(), box, plane).real
        plain = _crop_samples(spectrum, box, plane)
        squared = (plain.real.square() + plain.imag.square()).double()
        by_shell = power.new_zeros(len(rows), power.shape[1]).index_add_(1, plane.shell, squared)
        power.index_add_(0, noise_of[rows].to(device), by_shell)
        if advance is not None:
            advance(len(rows))
    noise = _noise(power, torch.bincount(noise_of, minlength=2 * groups), plane)
    return PreparedImages(plane, images, weights, noise, noise_of)


def _crop_samples(spectrum: Tensor, box: int, plane: HalfPlane) -> Tensor:
    """(b, K) samples of images (given as rfft2, origin at pixel 0) after cropping in real space."""
    images = torch.fft.fftshift(torch.fft.irfft2(spectrum, s=(box, box)), dim=(-2, -1))
    return spectrum_of_images(crop_centre(images, plane.box_size, dims=2), plane)


def _noise(power: Tensor, images: Tensor, plane: HalfPlane) -> Tensor:
    """Noise variance (2 g, n_shells) of g optics groups in both half-sets: mean power of the cropped images.

    The signal's share is left in: at the signal-to-noise ratios of single particles it is a few per cent, and
    what of it belongs to other domains is noise to this one. A group of too few images in a half-set takes
    the spectrum of the whole half-set.

    Args:
        power: (2 g, n_shells) summed power, those of half-set 0 first.
        images: (2 g,) number of images summed.
        plane: the samples.
    """
    samples = torch.bincount(plane.shell, minlength=plane.max_shell + 1)
    halves = zip(power.chunk(2), images.to(power.device).chunk(2), strict=True)
    noise = torch.empty_like(power, dtype=torch.float32)
    groups = power.shape[0] // 2
    for half, (sums, counts) in enumerate(halves):
        pooled = noise_power(sums.sum(dim=0), samples * counts.sum())
        for group, count in enumerate(counts.tolist()):
            own = count >= LEAST_FOR_NOISE
            noise[half * groups + group] = noise_power(sums[group], samples * count) if own else pooled
        few = [count for count in counts.tolist() if 0 < count < LEAST_FOR_NOISE]
        if few and int((counts > 0).sum()) > 1:
            log.info(
                "half-set %d: %d of %d optics groups have fewer than %d images (%d in all) and take the "
                "noise spectrum of the whole half-set", half + 1, len(few), int((counts > 0).sum()),
                LEAST_FOR_NOISE, sum(few),
            )  # fmt: skip
    return noise


def _whiten(prepared: PreparedImages, rows: Tensor, samples: Tensor) -> Tensor:
    """Prepared images or weights of some particles, divided by the noise variance.

    The first shell is left out: it carries grey-scale offsets of the crop.
    """
    inverse = _inverse_noise(prepared, rows)
    inverse[:, : prepared.plane.count(1)] = 0.0
    return samples[rows.to(samples.device)].to(inverse.device) * inverse


def _inverse_noise(prepared: PreparedImages, rows: Tensor) -> Tensor:
    """(b, K) inverse noise variance of the samples of some particles."""
    noise = prepared.noise[prepared.noise_of[rows].to(prepared.noise.device)]
    return (1.0 / noise)[:, prepared.plane.shell]


def _rescale(
    prepared: PreparedImages, half_sets: Sequence[Tensor], references: Sequence[Reference], poses: Poses,
    scale: Tensor, band: int,
) -> Tensor:  # fmt: skip
    """Scale of each particle at `poses`; prepared images and weights, which hold `scale`, take it over."""
    plane = prepared.plane.up_to(band)
    samples = plane.k.shape[0]
    cross, energy = torch.zeros(2, len(scale), dtype=torch.float64)
    half_of = torch.zeros(len(scale), dtype=torch.int64)
    for half, rows in _half_chunks(half_sets):
        at = poses[rows]
        terms = scale_terms(
            references[half].up_to(band), plane, images=_whiten(prepared, rows, prepared.images)[:, :samples],
            weights=_whiten(prepared, rows, prepared.weights)[:, :samples],
            rotations=at.rotations, shifts_px=at.shifts_px,
        )  # fmt: skip
        cross[rows], energy[rows] = terms[0].cpu() / scale[rows], terms[1].cpu() / scale[rows].square()
        half_of[rows] = half
    found = particle_scale(cross, energy, half_of)
    _multiply(prepared, found / scale, half_sets)
    return found


def _multiply(prepared: PreparedImages, scale: Tensor, half_sets: Sequence[Tensor]) -> None:
    """Multiply the CTFs in prepared images and weights by (n,) factors, in place."""
    factor = scale.to(prepared.weights)[:, None]
    for _, rows in _half_chunks(half_sets):
        rows = rows.to(factor.device)
        prepared.images[rows] *= factor[rows]
        prepared.weights[rows] *= factor[rows].square()


def _audit(
    prepared: PreparedImages, half_sets: Tensor, searched: _Searched, found: SearchResult,
    space: SearchSpace, settings: RefinementSettings,
) -> Audit:  # fmt: skip
    """Search a random share of the particles exhaustively, with what their poses were `found` with."""
    count = len(half_sets)
    audited = min(max(round(settings.audit * count), LEAST_FOR_AUDIT), count)
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(settings.seed))[:audited]
    shortfalls: list[Tensor] = []
    for half in (0, 1):
        rows = chosen[half_sets[chosen] == half]
        if len(rows) > 0:
            shortfall = search_shortfall(
                searched.references[half], prepared.plane, images=_whiten(prepared, rows, prepared.images),
                weights=_whiten(prepared, rows, prepared.weights), anchor=searched.anchor[rows],
                found=found[rows], space=space, plan=searched.plans[half],
            )  # fmt: skip
            shortfalls.append(shortfall)
    shortfall = torch.cat(shortfalls)
    return Audit(audited, float((shortfall > MISSED).float().mean()), float(shortfall.mean()))


def _inspect(
    prepared: PreparedImages, half_sets: Sequence[Tensor], searched: _Searched,
    sums: tuple[FourierSums, FourierSums], poses: Poses, *, pixel_size: float, seed: int,
) -> Inspection:  # fmt: skip
    """Noise before and after, expected accuracy, precision of directions: one slice a particle."""
    band = searched.plans[0].stages[-1].shell  # that of both half-sets
    plane = prepared.plane.up_to(band)
    samples = plane.k.shape[0]
    explained = prepared.noise.new_zeros(prepared.noise.shape, dtype=torch.float64)
    for half, rows in _half_chunks(half_sets):
        at = poses[rows]
        model = slices(searched.references[half].up_to(band), at.rotations, plane)
        images, weights = (
            stored[rows, :samples].to(model.device) for stored in (prepared.images, prepared.weights)
        )
        cross = 2.0 * (images.conj() * shift_phase(plane, at.shifts_px) * model).real
        gain = (cross - weights * model.abs().square()).double()
        by_shell = gain.new_zeros(len(rows), explained.shape[1]).index_add_(1, plane.shell, gain)
        explained.index_add_(0, prepared.noise_of[rows].to(explained.device), by_shell)
    counts = torch.bincount(prepared.noise_of, minlength=len(explained)).reshape(2, -1)
    before = prepared.noise.double().reshape(2, counts.shape[1], -1)
    after = before - _mean_of_groups(explained, counts, prepared.plane)

    generator = torch.Generator().manual_seed(seed)
    found: list[tuple[Tensor, Tensor]] = []
    for half, own in enumerate(half_sets):
        rows = own[torch.randperm(len(own), generator=generator)[: ACCURACY_TRIALS // 2]]
        whitened = _whiten(prepared, rows, prepared.weights)[:, :samples]
        found.append(
            expected_accuracy(
                searched.references[half].up_to(band), plane, weights=whitened,
                rotations=poses[rows].rotations, generator=generator,
            )
        )  # fmt: skip
    rotation, shift = (torch.cat(parts) for parts in zip(*found, strict=True))
    directions = fibonacci_directions(PRECISION_DIRECTIONS).to(prepared.plane.k)
    both = sums[0] + sums[1]
    precision = slice_precision(
        both.weight, shell_weight=both.shell_weight, pad=both.pad, plane=plane, directions=directions
    )
    return Inspection(
        noise_before=before.cpu(),
        noise_after=after.cpu(),
        images=counts.cpu(),
        accuracy_rotation=float(rotation.mean()),
        accuracy_shift=float(shift.mean()) * pixel_size,
        directions=directions.double().cpu(),
        precision=precision.cpu(),
    )


def _mean_of_groups(sums: Tensor, counts: Tensor, plane: HalfPlane) -> Tensor:
    """(2, g, n_shells) mean of sums (2 g, n_shells) over images and samples, pooled as in `_noise`."""
    samples = torch.bincount(plane.shell, minlength=plane.max_shell + 1).clamp_min(1)
    images = counts.to(sums.device)[..., None]
    grouped = sums.reshape(2, counts.shape[1], -1)
    pooled = grouped.sum(dim=1, keepdim=True) / images.sum(dim=1, keepdim=True).clamp_min(1)
    return torch.where(images >= LEAST_FOR_NOISE, grouped / images.clamp_min(1), pooled) / samples


def _half_chunks(half_sets: Sequence[Tensor], chunk: int = 512) -> Iterator[tuple[int, Tensor]]:
    """(half-set, particle numbers) in pieces."""
    for half, members in enumerate(half_sets):
        for rows in members.split(chunk):
            yield half, rows


def _working_grid(domain: _Domain, band: int, limit: int) -> _Grid:
    """Fewest voxels that hold the shells which half-maps of an iteration at `band` are made of."""
    last = min(math.ceil(GROWTH * band) + GROWTH_SHELLS, limit)
    size = min(even_fft_size(2.0 * (last + 1 + GUARD_SHELLS)), domain.crop_size)
    # a hard edge rings on a coarse grid
    return _Grid(size, last, resample_cube(domain.mask, size).clamp(0.0, 1.0))


def _whole_shells(curve: Tensor, grid: _Grid) -> Tensor:
    """`curve` without what a mask leaks beyond the shells that were reconstructed."""
    shells = torch.arange(curve.numel(), device=curve.device)
    return torch.where(shells <= grid.last_shell, curve, 0.0)


def _coarse_shell(
    prepared: PreparedImages, half_set: Tensor, reference: Reference, poses: Poses, least: int, band: int
) -> int:
    """Band of a half-set's grid search: as fine as its images of this domain need to tell poses apart."""
    rows, plane = half_set[:INFORMED], prepared.plane.up_to(band)
    weights = _whiten(prepared, rows, prepared.weights)[:, : plane.k.shape[0]]
    return informative_shell(
        reference, plane, weights=weights, rotations=poses.rotations[rows], least=min(least, band)
    )


def _draws(
    poses: Poses, curvature: Tensor, anchor: Poses, space: SearchSpace, domain: _Domain, band: int,
    settings: RefinementSettings, *, seed: int,
) -> _Draws | None:  # fmt: skip
    """Which particles are to be inserted at draws of their posterior, and those draws."""
    if not settings.marginalise:
        return None
    covariance = posterior_covariance(curvature, poses, space)
    variances = torch.diagonal(covariance, dim1=-2, dim2=-1)
    rim_px = variances[:, :3].mean(dim=1).sqrt() * domain.effective_radius_px
    uncertain_px = rim_px + variances[:, 3:].mean(dim=1).sqrt()
    wide = uncertain_px > SHARP * domain.crop_size / band
    generator = torch.Generator().manual_seed(settings.seed + (seed << 32))
    return _Draws(
        wide, posterior_draws(poses, covariance, anchor, space, pairs=PAIRS_OF_DRAWS, generator=generator)
    )


def _insertions(poses: Poses, draws: _Draws | None, rows: Tensor) -> Iterator[tuple[Tensor, Poses, float]]:
    """Where the images `rows` are inserted: which of them, at which poses, with which weight."""
    everyone = torch.arange(len(rows))
    if draws is None:
        yield everyone, poses[rows], 1.0
        return
    wide = draws.wide[rows].cpu()
    for kept, places in ((everyone[~wide], [poses]), (everyone[wide], draws.poses)):
        if len(kept) > 0:
            for place in places:
                yield kept, place[rows[kept]], 1.0 / len(places)


def _insert_all(
    prepared: PreparedImages, half_sets: Sequence[Tensor], poses: Poses, draws: _Draws | None, grid: _Grid
) -> tuple[FourierSums, FourierSums]:  # fmt: skip
    """Sums of both half-sets at `poses`, or at draws where there are any, on the working grid."""
    plane = prepared.plane.up_to(grid.last_shell)
    samples, device = plane.k.shape[0], plane.k.device
    sums = [
        new_accumulator(grid.size, max_shell=grid.last_shell, dtype=torch.float32, device=device)
        for _ in (0, 1)
    ]
    for half, rows in _half_chunks(half_sets):
        inverse = _inverse_noise(prepared, rows)[:, :samples]
        values = prepared.images[rows, :samples].to(device) * inverse
        weights = prepared.weights[rows, :samples].to(device) * inverse
        for kept, at, share in _insertions(poses, draws, rows):
            centred = share * values[kept] * shift_phase(plane, at.shifts_px).conj()
            insert(sums[half], centred, share * weights[kept], at.rotations, plane)
    first, second = (finish_sums(half, max_shell=grid.last_shell) for half in sums)
    return first, second


def _first_volumes(
    start: HalfMaps, mask: Tensor, initial_lowpass: float, domain: _Domain, grid: _Grid
) -> list[Tensor]:
    """First references: low-passed, and each shell weighted by what the starting halves share under the mask.

    FSC = SSNR / (1 + SSNR) is the Wiener weight of a half-map. Shells that the blur of a moving domain has
    emptied would otherwise align noise: on the demo's head it is worth two iterations (docs/performance.md).
    """
    shared = fsc(*(half * mask for half in start.pair)).clamp(0.0, 1.0)
    low_passed = start.low_passed(initial_lowpass)
    cut = [cut_cube(weigh_shells(half, shared), domain.centre, domain.crop_size) for half in low_passed.pair]
    # transforms are sums: fewer voxels over the same box must hold the same sum
    return [resample_cube(half, grid.size) * (domain.crop_size / grid.size) ** 3 for half in cut]


def _next_volumes(
    sums: tuple[FourierSums, FourierSums], curve: Tensor, band: int, pixel_size: float, *,
    regularisation: Regularisation,
) -> list[Tensor]:  # fmt: skip
    """References of the next iteration, one for each half-set from its own sums.

    The non-uniform filter takes its map of cut-offs from both halves, as the Wiener filter takes its SSNR.
    """
    if regularisation is Regularisation.wiener:
        ssnr = ssnr_of_fsc(curve, last_shell=band)[: sums[0].shell_weight.numel()]
        return [wiener(half, ssnr.to(half.weight.dtype)) for half in sums]
    resolution = sums[0].box_size * pixel_size / band
    halves = [unfiltered(half) for half in sums]
    if regularisation is Regularisation.nonuniform and resolution < NONUNIFORM.coarsest:
        filtered = nonuniform(*halves, pixel_size=pixel_size, finest=resolution, settings=NONUNIFORM)
        return [filtered.half_a, filtered.half_b]
    return [low_pass(half, resolution=resolution, pixel_size=pixel_size) for half in halves]


def _record(
    iteration: int, *, band: float, coarse_band: float, gsfsc: Tensor, corrected: Tensor, begin: Poses,
    anchor: Poses, last: Poses, new: Poses, space: SearchSpace, domain: _Domain, pixel_size: float,
    log_posterior: float, marginalised: float, seconds: float,
) -> IterationRecord:  # fmt: skip
    """Summary of one iteration."""
    change = torch.rad2deg(angle_between(new.rotations, begin.rotations))
    shift = (new.shifts_px - begin.shifts_px).norm(dim=-1) * pixel_size
    turned = angle_between(new.rotations, last.rotations) * domain.effective_radius_px
    moved = (turned + (new.shifts_px - last.shifts_px).norm(dim=-1)) * pixel_size
    rotation_reach = space.shape.size(turn(new, anchor))
    shift_reach = space.shape.size(residual_shift(new, anchor, space.lever_px))
    size = 2 * (gsfsc.numel() - 1)  # of the working grid, which is even
    # half a turn is no limit: nothing lies beyond it
    rotation_limit = space.rotation_extent if space.rotation_extent < math.pi else 0.0
    masked, less_mask = (
        crossing(curve, FSC_THRESHOLD, box_size=size, pixel_size=domain.crop_size * pixel_size / size)
        for curve in (gsfsc, corrected)
    )
    return IterationRecord(
        iteration=iteration,
        band=band,
        coarse_band=coarse_band,
        resolution=masked,
        resolution_corrected=less_mask,
        gsfsc=gsfsc,
        gsfsc_corrected=corrected,
        rotation_change_median=float(change.median()),
        shift_change_median=float(shift.median()),
        moved_median=float(moved.median()),
        at_rotation_extent=_share_at(rotation_reach, rotation_limit),
        at_shift_extent=_share_at(shift_reach, space.shift_extent_px),
        log_posterior=log_posterior,
        marginalised=marginalised,
        seconds=seconds,
    )


def _share_at(reach: Tensor, extent: float) -> float:
    """Share of particles (n,) at an extent; 0 where an extent of 0 leaves nothing to search."""
    return 0.0 if extent == 0.0 else float((reach > AT_EXTENT * extent).float().mean())


def _settled(records: list[IterationRecord], *, corrected: bool) -> bool:
    """No finer resolution than the iteration before, and poses that hardly moved."""
    if len(records) < 2:
        return False
    before, last = (
        record.resolution_corrected if corrected else record.resolution for record in records[-2:]
    )
    return last >= before and records[-1].moved_median < SETTLED_SHARE * last


def _result(
    particles: Particles, poses: Poses, covariance: Tensor, log_posterior: Tensor, evidence: Tensor,
    start_shift_px: Tensor, domain: _Domain, records: tuple[IterationRecord, ...], stop: Stop,
    audit: Audit | None, inspection: Inspection, scale: Tensor | None,
) -> Refinement:  # fmt: skip
    """Poses back in the frame of the whole map, in float64."""
    # the search works in float32: take over the change of rotation, so that the product stays orthonormal
    change = rotation_vector(poses.rotations.double().cpu() @ particles.rotations.mT)
    rotations = rotation_from_vector(change) @ particles.rotations
    moved = poses.shifts_px.double().cpu()
    unit = torch.tensor([1.0, 1.0, 1.0, particles.pixel_size, particles.pixel_size], dtype=torch.float64)
    shifts_px = moved + start_shift_px - (rotations @ domain.centre_vector)[:, :2]
    return Refinement(
        rotations=rotations,
        shifts=shifts_px * particles.pixel_size,
        rotation_change=torch.rad2deg(change.norm(dim=-1)),
        shift_change=moved.norm(dim=-1) * particles.pixel_size,
        covariance=covariance.cpu() * unit[:, None] * unit,
        log_posterior=log_posterior.cpu(),
        log_evidence=evidence.cpu(),
        records=records,
        stop=stop,
        crop_size=domain.crop_size,
        audit=audit,
        inspection=inspection,
        effective_radius=domain.effective_radius_px * particles.pixel_size,
        scale=scale,
    )
