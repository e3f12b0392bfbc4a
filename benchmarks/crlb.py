"""Pose errors of the search with the true reference, against the Cramér-Rao bound.

    OMP_NUM_THREADS=1 python benchmarks/crlb.py --particles 400 --domains head foot arm --snr 0.1 0.2 0.4

Each image holds one domain of the simulated ribosome (all others perfectly subtracted), its CTF and the noise
of a whole-complex image at the given SNR. The reference is the domain's own density, the noise spectrum is
known, and the default search starts from the consensus pose with extents wide enough for the motion. Fisher
information is the curvature of the log-likelihood at the true pose; its inverse, with rotation and shift both
unknown, bounds the covariance of an unbiased estimate.

`efficiency` is the median rotation error over 0.89 times the rms bound (the median of the norm of an
isotropic 3-d normal is 0.89 of its rms): 1.00 is an efficient estimator. `against draws` divides by the
median of errors drawn from each particle's own bound instead, which an anisotropic bound, or one that varies
between particles, does not distort. With `--prior` the search has Gaussian priors as wide as the motion truly
is, as it would in a refinement of a domain this small; drawn errors are then those of the bound that counts
the prior's information too (van Trees 1968), which no estimator beats on average. `own` is the same ratio for
a whole refinement of those images (five iterations from the maps that the consensus poses give; one rigid
change of frame is taken out), whose references are its own. Two shares say what a shortfall is due to:
`missed`, particles whose search ended more than 1 in log-likelihood below the optimum next to the true pose
(the search failed), and `likelier`, particles where it ended more than 1 above that (noise made another pose
better: no search can help, a prior may). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cryosweep.ctf import Optics, contrast_transfer
from cryosweep.fourier import HalfPlane, gaussian_filter, half_plane, images_of_spectrum, shift_phase
from cryosweep.geometry import angle_between
from cryosweep.io import read_particles
from cryosweep.io.maps import open_stack_for_writing
from cryosweep.io.particles import new_particles, write_particles
from cryosweep.likelihood import log_likelihood_quadratic
from cryosweep.mask import centre_of_mass, mask_radius_px, soft_mask, threshold_of
from cryosweep.projector import Reference, make_reference, slices
from cryosweep.reconstruction import reconstruct_half_maps
from cryosweep.refinement import RefinementSettings, refine
from cryosweep.search import (
    Poses,
    SearchResult,
    SearchSpace,
    Stage,
    informative_shell,
    plan_search,
    prior_quadratic,
    residual_shift,
    search_poses,
    turn,
)
from cryosweep.simulate import (
    DOMAINS,
    SimulationSettings,
    Truth,
    align_frames,
    load_ribosome,
    load_truth,
    noise_power,
    pose_errors,
    render_domain,
    simulate,
)

CPU = torch.device("cpu")
WIDTH = 336.0  # Å of the box
COARSE = 19.0  # Å, least band of the grid search, as in a refinement from 12 Å
INFORMED = 32  # images that the band of the grid is chosen from
MEDIAN_OVER_RMS = 0.888  # of the norm of an isotropic 3-d normal


@dataclass(frozen=True)
class Images:
    """Images of one domain, noise-free, as samples, with CTF and poses (shift of the domain's centre)."""

    plane: HalfPlane
    reference: Reference
    signal: Tensor
    transfer: Tensor
    truth: Poses
    start: Poses
    lever_px: Tensor
    radius_px: float
    density: Tensor
    optics: Optics


@dataclass(frozen=True)
class Measured:
    """Degrees and Å: bound (rms), medians of the search, of a start at the truth, and of drawn errors."""

    bound: float
    shift_bound: float
    error: float
    error_p90: float
    shift_error: float
    from_truth: float
    drawn: float
    missed: float
    likelier: float
    own_error: float

    @property
    def own_efficiency(self) -> float:
        """The same of a refinement with its own references."""
        return self.own_error / (MEDIAN_OVER_RMS * self.bound)

    @property
    def efficiency(self) -> float:
        """Median error over what the median of the bound's own errors would be, were it isotropic."""
        return self.error / (MEDIAN_OVER_RMS * self.bound)


def domain_images(name: str, folder: Path, settings: SimulationSettings, truth: Truth) -> Images:
    """Samples of every particle's image of one domain, centred on where its consensus pose puts it."""
    box, pixel_size = settings.box_size, settings.pixel_size
    structure = load_ribosome()
    domain = structure.domains[name]
    centre = domain.centre_of_mass
    volume = render_domain(
        domain.coordinates, domain.weights, box_size=box, pixel_size=pixel_size, centre=centre
    )
    plane = half_plane(box, dtype=torch.float32, device=CPU)
    reference = make_reference(volume.float())
    particles = read_particles(folder / "particles.star")
    poses = truth.domains[name].poses

    def landing(rotations: Tensor, shifts: Tensor) -> Tensor:
        return (shifts + (rotations @ centre)[:, :2]) / pixel_size

    start = landing(particles.rotations, particles.shifts)
    true_poses = Poses(poses.rotations.float(), (landing(poses.rotations, poses.shifts) - start).float())
    transfer = contrast_transfer(particles.optics, plane.k.double() / (box * pixel_size)).float()
    chunks = torch.arange(len(particles)).split(64)
    model = torch.cat([slices(reference, true_poses.rotations[rows], plane) for rows in chunks])
    hinge = structure.hinges.get(name, centre)
    region = (volume > 0.1 * volume.max()).float()
    return Images(
        plane=plane,
        reference=reference,
        signal=model * transfer * shift_phase(plane, true_poses.shifts_px),
        transfer=transfer,
        truth=true_poses,
        start=Poses(particles.rotations.float(), torch.zeros(len(particles), 2)),
        lever_px=((centre - hinge) / pixel_size).float(),
        radius_px=mask_radius_px(region, centre_of_mass(region)),
        density=volume.float(),
        optics=particles.optics,
    )


def own_reference(images: Images, samples: Tensor, settings: SimulationSettings, space: SearchSpace) -> float:
    """Median rotation error (degrees) of a refinement of the images from their consensus poses."""
    pixel_size, box, count = settings.pixel_size, settings.box_size, len(samples)
    with tempfile.TemporaryDirectory() as scratch:
        stack = Path(scratch) / "images.mrcs"
        with open_stack_for_writing(stack, count=count, box_size=box, pixel_size=pixel_size) as out:
            out[:] = images_of_spectrum(samples, images.plane).numpy()
        particles = new_particles(
            Path(scratch) / "particles.star", stack=stack, rotations=images.start.rotations.double(),
            shifts=torch.zeros(count, 2), optics=images.optics, half_sets=torch.arange(count) % 2,
            pixel_size=pixel_size, box_size=box,
        )  # fmt: skip
        write_particles(particles, particles.path, rotations=particles.rotations, shifts=particles.shifts)
        particles = read_particles(particles.path)
        start = reconstruct_half_maps(particles, particles.rotations, particles.shifts, device=CPU)
        smooth = gaussian_filter(images.density, sigma=4.0, pixel_size=pixel_size)
        mask = soft_mask(
            smooth, threshold=threshold_of(smooth, 0.15, unit="fraction"), dilation_radius_px=7 / pixel_size,
            soft_padding_width_px=16 / pixel_size,
        )  # fmt: skip
        result = refine(
            particles, start, mask, fulcrum=-images.lever_px.double() * pixel_size, device=CPU,
            settings=RefinementSettings(
                rotation_extent=math.degrees(space.rotation_extent),
                shift_extent=space.shift_extent_px * pixel_size,
                rotation_prior=None if space.rotation_prior is None else math.degrees(space.rotation_prior),
                shift_prior=None if space.shift_prior_px is None else space.shift_prior_px * pixel_size,
                max_iterations=5,
            ),
        )  # fmt: skip
    truth = images.truth.rotations.double(), images.truth.shifts_px.double() * pixel_size
    origin = torch.zeros(3, dtype=torch.float64)
    frame = align_frames(result.rotations, result.shifts, *truth, point=origin)
    turned, _ = pose_errors(result.rotations, result.shifts, *truth, frame=frame, point=origin)
    return float(turned.median())


def measure(
    images: Images, noise: Tensor, settings: SimulationSettings, arguments: argparse.Namespace
) -> Measured:
    """Search all images under noise of the given variance per sample (K,)."""
    plane, pixel_size = images.plane, settings.pixel_size
    generator = torch.Generator().manual_seed(settings.seed + 1)
    # a sample of circular complex noise of variance v: v / 2 in each part
    drawn = torch.randn(*images.signal.shape, 2, generator=generator) * (noise / 2).sqrt()[:, None]
    noisy = images.signal + torch.view_as_complex(drawn)
    samples = noisy * images.transfer / noise
    weights = images.transfer.square() / noise
    space = SearchSpace(
        rotation_extent=math.radians(arguments.rotation_extent),
        shift_extent_px=arguments.shift_extent / pixel_size,
        rotation_prior=None,
        shift_prior_px=None,
        lever_px=images.lever_px,
    )
    if arguments.prior:
        space = replace(
            space,
            rotation_prior=float(turn(images.truth, images.start).square().mean().sqrt()),
            shift_prior_px=float(
                residual_shift(images.truth, images.start, images.lever_px).square().mean().sqrt()
            ),
        )
    coarse = informative_shell(
        images.reference, plane, weights=weights[:INFORMED], rotations=images.start.rotations[:INFORMED],
        least=round(plane.box_size * pixel_size / COARSE),
    )  # fmt: skip
    print(f"grid searched to {plane.box_size * pixel_size / coarse:.1f} Å", file=sys.stderr)
    plan = plan_search(
        space, coarse_shell=coarse, band_shell=plane.max_shell,
        box_size=plane.box_size, mask_radius_px=images.radius_px, dtype=torch.float32, device=CPU,
    )  # fmt: skip
    local = replace(plan, stages=(Stage(plane.max_shell, starts=1, iterations=10),))  # the given start alone
    chunks = torch.arange(len(samples)).split(64)
    bounds: list[Tensor] = []
    with_prior: list[Tensor] = []
    found: list[SearchResult] = []
    near: list[SearchResult] = []
    for rows in chunks:
        given = {"images": samples[rows], "weights": weights[rows]}
        truth = images.truth[rows]
        curvature = log_likelihood_quadratic(
            images.reference, plane, rotations=truth.rotations, shifts_px=truth.shifts_px, **given
        ).curvature.double()
        bounds.append(torch.linalg.inv(curvature))
        anchor = images.start[rows]
        prior = prior_quadratic(truth, anchor, space).curvature.double()
        with_prior.append(torch.linalg.inv(curvature + prior))
        found.append(
            search_poses(
                images.reference, plane, anchor=anchor, current=anchor, space=space, plan=plan, **given
            )
        )
        near.append(
            search_poses(
                images.reference, plane, anchor=anchor, current=truth, space=space, plan=local, **given
            )
        )

    def turned(parts: list[SearchResult]) -> Tensor:
        rotations = torch.cat([part.poses.rotations for part in parts])
        return torch.rad2deg(angle_between(rotations, images.truth.rotations))

    bound = torch.cat(bounds)
    error = turned(found)
    moved = (torch.cat([part.poses.shifts_px for part in found]) - images.truth.shifts_px).norm(dim=1)
    draws = torch.linalg.cholesky(torch.cat(with_prior)[:, :3, :3]) @ torch.randn(
        len(bound), 3, 64, generator=generator, dtype=torch.float64
    )
    gain = torch.cat([a.log_posterior - b.log_posterior for a, b in zip(found, near, strict=True)])
    trace = torch.diagonal(bound, dim1=-2, dim2=-1)
    return Measured(
        bound=math.degrees(float(trace[:, :3].sum(1).mean().sqrt())),
        shift_bound=pixel_size * float(trace[:, 3:].sum(1).mean().sqrt()),
        error=float(error.median()),
        error_p90=float(error.quantile(0.9)),
        shift_error=pixel_size * float(moved.median()),
        from_truth=float(turned(near).median()),
        drawn=math.degrees(float(draws.norm(dim=1).median())),
        missed=float((gain < -1.0).float().mean()),
        likelier=float((gain > 1.0).float().mean()),
        own_error=own_reference(images, noisy, settings, space) if arguments.own else math.nan,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example: OMP_NUM_THREADS=1 python benchmarks/crlb.py --particles 400 --seeds 0 1 2",
    )
    parser.add_argument("--particles", type=int, default=400)
    parser.add_argument("--box-size", type=int, default=64, help="px of the box of 336 Å")
    parser.add_argument("--domains", nargs="+", choices=DOMAINS, default=["head", "foot", "arm"])
    parser.add_argument("--snr", type=float, nargs="+", default=[0.1, 0.2, 0.4])
    parser.add_argument("--rotation-extent", type=float, default=30.0, help="degrees")
    parser.add_argument("--shift-extent", type=float, default=15.0, help="Å")
    parser.add_argument("--prior", action="store_true", help="priors as wide as the motion truly is")
    parser.add_argument("--own", action="store_true", help="refine too, with references of its own")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    measured: dict[tuple[str, float], list[Measured]] = {}
    for seed in arguments.seeds:
        settings = SimulationSettings(
            particles=arguments.particles, box_size=arguments.box_size,
            pixel_size=WIDTH / arguments.box_size, snr=1.0, seed=seed,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            simulated = simulate(settings, folder, device=CPU)
            truth = load_truth(folder)
            box = settings.box_size
            spectrum = noise_power(box, settings.pixel_size)
            plane = half_plane(box, dtype=torch.float32, device=CPU)
            x, y = (plane.k[:, axis].long() for axis in (0, 1))
            # samples of an unnormalised transform: n^2 times the variance of a pixel
            unit = (box**2 * simulated.signal_variance * spectrum[y % box, x]).float()
            for domain in arguments.domains:
                images = domain_images(domain, folder, settings, truth)
                for snr in arguments.snr:
                    one = measure(images, unit / snr, settings, arguments)
                    measured.setdefault((domain, snr), []).append(one)

    print(
        f"{arguments.particles} particles x {len(arguments.seeds)} seed(s), box {arguments.box_size} px of "
        f"{WIDTH / arguments.box_size:g} Å, extents {arguments.rotation_extent:g}° and "
        f"{arguments.shift_extent:g} Å, {'priors as wide as the motion' if arguments.prior else 'no prior'}"
    )
    header = (
        "domain", "SNR", "bound rms", "error med", "p90", "from truth", "shift bound", "shift med",
        "missed", "likelier", "against draws", "own (range)", "efficiency (range)",
    )  # fmt: skip
    print(" ".join(f"{name:>11s}" for name in header))
    efficiency: dict[str, dict[str, float]] = {}
    against_draws: dict[str, dict[str, float]] = {}
    own: dict[str, dict[str, float]] = {}
    for (domain, snr), runs in measured.items():

        def middle(name: str, runs: list[Measured] = runs) -> float:
            return statistics.median(getattr(run, name) for run in runs)

        ratios = [run.efficiency for run in runs]
        owned = [run.own_efficiency for run in runs]
        own.setdefault(domain, {})[f"{snr:g}"] = round(statistics.median(owned), 4)
        drawn = statistics.median(run.error / run.drawn for run in runs)
        print(
            f"{domain:>11s} {snr:11g} {middle('bound'):10.2f}° {middle('error'):10.2f}° "
            f"{middle('error_p90'):10.2f}° {middle('from_truth'):10.2f}° {middle('shift_bound'):9.2f} Å "
            f"{middle('shift_error'):9.2f} Å {middle('missed'):11.3f} {middle('likelier'):11.3f} "
            f"{drawn:13.3f} {statistics.median(owned):8.3f} ({min(owned):.3f} to {max(owned):.3f}) "
            f"{statistics.median(ratios):8.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        )
        efficiency.setdefault(domain, {})[f"{snr:g}"] = round(statistics.median(ratios), 4)
        against_draws.setdefault(domain, {})[f"{snr:g}"] = round(drawn, 4)
    found = {"efficiency": efficiency, "efficiency_against_draws": against_draws}
    print(json.dumps(found | ({"efficiency_own": own} if arguments.own else {})))


if __name__ == "__main__":
    main()
