"""The in-silico twin of a data set: simulated particles of known truth, as much like it as can be told.

From the particles of a user come poses, CTF parameters, half sets and optics groups, row by row; from a
consensus map and a mask the density of two rigid parts, the body and a domain that turns about a hinge; from
the images the grey scale of both and the spectrum of the noise. What is assumed is how far the domain moves,
how far the poses are off, and the fine detail of the domain, which its motion has blurred out of the map.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cryosweep.consensus import automatic_mask, consensus_curves
from cryosweep.ctf import contrast_transfer
from cryosweep.fourier import (
    HalfPlane,
    centred_range,
    half_plane,
    ifft_centred,
    images_of_spectrum,
    low_pass,
    shell_count,
    shell_sum,
    shift_phase,
    spectrum_of_images,
)
from cryosweep.fulcrum import contact
from cryosweep.geometry import rotation_from_vector
from cryosweep.io.maps import open_stack_for_writing, read_map, replacing, write_map
from cryosweep.io.particles import Particles, read_particles, write_particles
from cryosweep.mask import centre_of_mass
from cryosweep.projector import Reference, make_reference, slices, transform_cube
from cryosweep.reconstruction import CHUNK_SAMPLES, HalfMaps, weigh_shells
from cryosweep.resolution import crossing
from cryosweep.simulate import DomainTruth, FrameChange, Poses, Truth, noise_power

BODY, DOMAIN = "body", "domain"
NAMES = (BODY, DOMAIN)

Detail = Literal["body", "map"]

# Images that grey scale and noise are measured on; the fewest of an optics group for a spectrum of its own.
MEASURED = 2000
LEAST_FOR_NOISE = 50
# Standard deviations of chance by which images and map must agree at the poses given.
KNOWN = 6.0
# Where the assumed motion leaves less than this of an amplitude, the domain's detail is not that of the map.
SEEN = 0.5
# Pose errors that leave less than this at the map's resolution contradict it.
LEAST_LEFT = 0.1
# Noise is never less than this share of the images' power: a map that explains more has fitted noise.
NOISE_FLOOR = 0.05
MASS_RESOLUTION = 15.0  # Å, mass is counted in the map low-passed here


@dataclass(frozen=True)
class TwinSettings:
    """What is assumed about a data set.

    Attributes:
        rotation_spread: standard deviation in degrees per axis of the domain's turn about its hinge.
        shift_spread: the same in Å of what the hinge itself moves by.
        pose_error_rotation: standard deviation in degrees per axis of the error of the poses given.
        pose_error_shift: the same of their shifts, Å.
        detail: where the motion has blurred the domain, `body`: the map's amplitudes are raised to the power
            that the body has per mass; `map`: the density stays as the map has it.
        resolution: Å up to which there is signal; None: the half maps' corrected FSC at 0.143.
        mass_share: of the domain in the whole, from 0 to 1, as sequences tell; None: by the map's density.
        hinge: (x, y, z) Å from the box centre; None: the middle of the domain's contact with the rest.
        snr: variance of signal over that of noise, whole images; None: grey scale and noise are measured.
        seed: of motion, pose errors and noise.
    """

    rotation_spread: float
    shift_spread: float
    pose_error_rotation: float
    pose_error_shift: float
    detail: Detail = "body"
    resolution: float | None = None
    mass_share: float | None = None
    hinge: tuple[float, float, float] | None = None
    snr: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class MapShape:
    """Density on a grid, which can be turned and moved; a `simulate.Shape`.

    Attributes:
        density: (d, d, d) at rest.
        centre_of_mass: (3,) float64 Å from the box centre.
    """

    density: Tensor
    centre_of_mass: Tensor

    def in_frame(self, frame: FrameChange, *, box_size: int, pixel_size: float) -> Tensor:
        """(d, d, d) the density after `frame`, interpolated in the transform about its own centre of mass."""
        centre = self.centre_of_mass / pixel_size
        volume = _moved(self.density.float(), -centre)
        landing = (frame.rotation @ self.centre_of_mass + frame.shift) / pixel_size
        last = (box_size - 1) // 2
        cube = torch.view_as_real(transform_cube(volume, max_shell=last, pad=2))
        side = cube.shape[0]
        axis = centred_range(box_size, dtype=torch.float32, device=volume.device)
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        k = torch.stack([x, y, z], dim=-1)
        places = (k @ frame.rotation.to(k)) * (2.0 * 2.0 / (side - 1))  # R^T k, pad 2, from -1 to 1
        found = torch.nn.functional.grid_sample(
            cube.movedim(-1, 0)[None], places[None], align_corners=True, padding_mode="zeros"
        )[0]
        spectrum = torch.complex(found[0], found[1]) * (k.norm(dim=-1) < last + 0.5)
        phase = (-2.0 * math.pi / box_size) * (k @ landing.to(k))
        return ifft_centred(spectrum * torch.polar(torch.ones_like(phase), phase), dims=3).real


def _moved(volume: Tensor, by_px: Tensor) -> Tensor:
    """`volume` (d, d, d) moved by (x, y, z) px, periodic."""
    n = int(volume.shape[-1])
    full = torch.fft.fftfreq(n, dtype=torch.float64, device=volume.device)
    half = torch.fft.rfftfreq(n, dtype=torch.float64, device=volume.device)
    x, y, z = by_px.tolist()
    phase = full[:, None, None] * z + full[None, :, None] * y + half * x
    turned = torch.fft.rfftn(volume) * torch.exp(-2j * math.pi * phase).to(volume.dtype.to_complex())
    return torch.fft.irfftn(turned, s=volume.shape)


# ---- what the images hold ----


@dataclass(frozen=True)
class Measured:
    """Grey scale of a map in images, and the images' power.

    Attributes:
        scale: (n_shells,) factor that explains the images best at their poses.
        power: (groups, n_shells) mean |I|^2 of the images of each optics group.
        deviations: standard deviations of chance that images and map agree by.
        images: number measured.
    """

    scale: Tensor
    power: Tensor
    deviations: float
    images: int


def measure(
    particles: Particles,
    maps: HalfMaps,
    *,
    last_shell: int,
    device: torch.device,
    advance: Callable[[int], None] | None = None,
) -> Measured:
    """Regress images on projections of a map at the poses given, shell by shell.

    `a(s) = sum CTF Re conj(I) ph S / sum CTF^2 Re conj(S_a) S_b`, where S is the slice of the half map that
    the image is *not* in: neither sum then holds the noise of a map or an image twice, so both are right in
    the mean at any noise. With one map twice both slices are of it. Sums run over neighbouring shells too.

    Args:
        particles: n particles; up to 2000 of them are read.
        maps: half maps (d, d, d), masked.
        last_shell: the last shell that holds signal; the scale stays as it is there beyond.
        device: where to work.
        advance: called with the number of images done since the last call.
    """
    box = particles.box_size
    plane = half_plane(box, dtype=torch.float32, device=device)
    shells = shell_count(box)
    groups = int(particles.optics_group.max()) + 1
    chosen = torch.arange(0, len(particles), math.ceil(len(particles) / MEASURED))
    references = [make_reference(half.to(device, torch.float32)) for half in maps.pair]
    cross, norm, chance = (torch.zeros(shells, dtype=torch.float64) for _ in range(3))
    power = torch.zeros(groups, shells, dtype=torch.float64)
    for rows in chosen.split(_chunk(plane)):
        images = spectrum_of_images(particles.images(rows).to(device), plane)
        transfer, phase = _optics_of(particles, particles.shifts, rows, plane)
        rotations = particles.rotations[rows].to(device, torch.float32)
        a, b = (slices(reference, rotations, plane) * transfer for reference in references)
        other = torch.where(particles.half_sets[rows].to(device)[:, None] == 0, b, a) * phase
        cross += _by_shell((images.conj() * other).real, plane, shells)
        norm += _by_shell((a.conj() * b).real, plane, shells)
        chance += _by_shell(0.5 * images.abs().square() * other.abs().square(), plane, shells)
        squared = images.abs().square()
        for group in particles.optics_group[rows].unique().tolist():
            power[group] += _by_shell(squared[particles.optics_group[rows] == group], plane, shells)
        if advance is not None:
            advance(len(rows))
    within = slice(1, last_shell + 1)
    deviations = float(cross[within].sum() / chance[within].sum().clamp_min(1e-300).sqrt())
    scale = (_smooth(cross) / _smooth(norm).clamp_min(1e-300)).clamp_min(0.0)
    scale[last_shell + 1 :] = scale[last_shell]
    samples = torch.bincount(plane.shell, minlength=shells).cpu()
    counts = torch.bincount(particles.optics_group[chosen], minlength=groups)
    pooled = _filled(power.sum(dim=0) / (len(chosen) * samples).clamp_min(1))
    each = [
        _filled(power[group] / (counts[group] * samples).clamp_min(1))
        if counts[group] >= LEAST_FOR_NOISE
        else pooled
        for group in range(groups)
    ]
    return Measured(scale, torch.stack(each), deviations, len(chosen))


def _optics_of(particles: Particles, shifts: Tensor, rows: Tensor, plane: HalfPlane) -> tuple[Tensor, Tensor]:
    """(b, K) CTF and phase of the shifts (n, 2) Å of the particles at `rows`."""
    frequencies = plane.k.double() / (plane.box_size * particles.pixel_size)
    optics = particles.optics[rows].to(dtype=torch.float64, device=plane.k.device)
    shifts_px = (shifts[rows] / particles.pixel_size).to(plane.k.device, torch.float32)
    return contrast_transfer(optics, frequencies).float(), shift_phase(plane, shifts_px)


def _chunk(plane: HalfPlane) -> int:
    return max(1, CHUNK_SAMPLES // (2 * plane.k.shape[0]))


def _by_shell(values: Tensor, plane: HalfPlane, shells: int) -> Tensor:
    """(shells,) float64 sums of (b, K) values."""
    total = torch.zeros(shells, dtype=torch.float64, device=values.device)
    return total.index_add_(0, plane.shell, values.double().sum(dim=0)).cpu()


def _smooth(curve: Tensor) -> Tensor:
    """Sums over each shell and its neighbours; shell 0, which no image fills, is left out."""
    inner = torch.nn.functional.pad(curve[1:][None, None], (1, 1))
    summed = torch.nn.functional.conv1d(inner, inner.new_ones(1, 1, 3))[0, 0]
    return torch.cat([summed[:1], summed])


def _filled(curve: Tensor) -> Tensor:
    """A spectrum whose empty shells, at the origin and at Nyquist, take the value of the nearest full one."""
    full = (curve > 0).nonzero().squeeze(-1)
    places = torch.arange(len(curve))
    return curve[full[(places[:, None] - full[None]).abs().argmin(dim=1)]]


# ---- the two parts ----


@dataclass(frozen=True)
class TwinModel:
    """Density of body and domain at rest, at the grey scale of the images.

    Attributes:
        shapes: by name, in the order of `NAMES`.
        labels: (d, d, d) int64 territory, 1 body, 2 domain, 0 solvent.
        hinge: (3,) float64 Å from the box centre.
        resolution: Å, finest that holds signal.
        seen: Å, finer than which the domain's detail is made up; `resolution` where none is.
        mass_share: of the domain in the whole, as given or by integrated density.
        measured: on the images, or None.
    """

    shapes: dict[str, MapShape]
    labels: Tensor
    hinge: Tensor
    resolution: float
    seen: float
    mass_share: float
    measured: Measured | None


def twin_model(
    particles: Particles,
    maps: HalfMaps,
    domain: Tensor,
    settings: TwinSettings,
    *,
    device: torch.device,
    advance: Callable[[int], None] | None = None,
) -> TwinModel:
    """Cut a consensus map in body and domain and give both the amplitudes of the real particle.

    The map is masked round the whole and by `domain`, and low-passed where its signal ends. Each shell is
    multiplied by `a(s)` of `measure`, so it does not matter how the map was filtered or sharpened; by the
    square root of the share that the half maps have in common, so noise adds no power; and divided by
    `exp(-2 pi^2 s^2 sigma^2)` with `sigma^2 = shift^2 + (2/3) rotation^2 <r^2>`, what the pose errors assumed
    have taken. The same formula about the hinge tells from where on the motion assumed blurs the domain
    beyond use (half of the amplitude). There, with `detail=body`, the domain's amplitudes are raised to the
    body's power times the ratio of the masses: far from the origin power goes with the number of atoms
    (Wilson 1942, Nature 150, 152). Phases stay those of the map, so the detail is not that of the molecule,
    only its power.

    Args:
        particles: at the poses that the map was made with; images are read unless `settings.snr` is given.
        maps: half maps (d, d, d), or one map twice.
        domain: (d, d, d) in [0, 1].
        settings: what is assumed.
        device: where to work.
        advance: called with the number of images measured since the last call.

    Raises:
        ValueError: the parts, the images or the assumptions do not belong together.
    """
    box, pixel_size = particles.box_size, particles.pixel_size
    length = box * pixel_size
    is_one = maps.half_a is maps.half_b
    envelope = torch.maximum(automatic_mask(maps), domain.to(maps.half_a))
    shares = {BODY: envelope * (1.0 - domain), DOMAIN: envelope * domain}
    for name, share in shares.items():
        if float(share.max()) <= 0.5:
            raise ValueError(f"the mask of the domain leaves no {name} in the map; does it lie on the map?")
    resolution = settings.resolution
    if resolution is None:
        if is_one:
            raise ValueError("one map does not tell its resolution; give it, or both half maps")
        resolution = crossing(
            consensus_curves(maps, envelope).corrected, 0.143, box_size=box, pixel_size=pixel_size
        )
    last = min(round(length / resolution), (box - 1) // 2)
    resolution = length / last
    frequency = torch.arange(shell_count(box), dtype=torch.float64) / length
    origin = torch.zeros(3, dtype=torch.float64)
    left = _left(frequency, *_pose_error(settings), shares[BODY], origin, pixel_size)
    if float(left[last]) < LEAST_LEFT:
        raise ValueError(
            f"with pose errors of {settings.pose_error_rotation:g}° and {settings.pose_error_shift:g} Å a "
            f"map would keep {float(left[last]):.1e} of its amplitude at the {resolution:.2g} Å that this "
            "one reaches; assume smaller errors"
        )
    hinge = _hinge(settings, shares, pixel_size)

    measured: Measured | None = None
    scale = torch.ones(shell_count(box), dtype=torch.float64)
    if settings.snr is None:
        a, b = (half * envelope for half in maps.pair)
        masked = HalfMaps(a, a if is_one else b, pixel_size)
        measured = measure(particles, masked, last_shell=last, device=device, advance=advance)
        if measured.deviations < KNOWN:
            raise ValueError(
                f"the images do not know the map at the poses given: they agree by {measured.deviations:.1f} "
                "standard deviations of chance; give the map that was made with these poses, of the same hand"
            )
        scale = measured.scale

    mean = 0.5 * (maps.half_a + maps.half_b)
    power: dict[str, Tensor] = {}
    gain: dict[str, Tensor] = {}
    for name, part in shares.items():
        halves = [torch.fft.rfftn(half * part) for half in maps.pair]
        power[name] = _mean_power(0.5 * (halves[0] + halves[1])).clamp_min(1e-300)
        common = shell_sum((halves[0] * halves[1].conj()).real, dims=3).cpu()
        total = shell_sum((0.5 * (halves[0] + halves[1])).abs().square(), dims=3).cpu()
        signal = (_smooth(common) / _smooth(total).clamp_min(1e-300)).clamp(0.0, 1.0)
        gain[name] = scale * signal.sqrt() / left
    share = settings.mass_share or _mass_share(mean, shares, envelope, pixel_size)
    ratio = share / (1.0 - share)
    motion = math.radians(settings.rotation_spread), settings.shift_spread
    kept = _left(frequency, *motion, shares[DOMAIN], hinge, pixel_size)
    seen = min(int((kept >= SEEN).sum()) - 1, last)
    if settings.detail == "body" and seen < last:
        own = gain[DOMAIN] / kept.clamp_min(SEEN)
        as_body = (ratio * power[BODY] * gain[BODY].square() / power[DOMAIN]).sqrt()
        beyond = torch.arange(len(own)) > seen
        gain[DOMAIN] = torch.where(beyond, torch.maximum(own, as_body), own)
    shapes: dict[str, MapShape] = {}
    for name, part in shares.items():
        weights = gain[name].clone()
        weights[last + 1 :] = weights[last]
        density = low_pass(
            weigh_shells(mean * part, weights.to(mean.device)), resolution=resolution, pixel_size=pixel_size
        )
        shapes[name] = MapShape(density.cpu(), centre_of_mass(part).double().cpu() * pixel_size)
    labels = torch.where(domain > 0.5, 2, torch.where(shares[BODY] > 0.5, 1, 0)).cpu()
    made_up = settings.detail == "body" and seen < last
    return TwinModel(
        shapes, labels, hinge, resolution, length / max(seen, 1) if made_up else resolution,
        share, measured,
    )  # fmt: skip


def _pose_error(settings: TwinSettings) -> tuple[float, float]:
    return math.radians(settings.pose_error_rotation), settings.pose_error_shift


def _left(
    frequency: Tensor, rotation: float, shift: float, share: Tensor, point: Tensor, pixel_size: float
) -> Tensor:
    """(n_shells,) share of the amplitude that random turns (rad) about a point and shifts (Å) leave.

    A turn w moves x by w x x; along one axis that has the variance (2/3) rotation^2 |x|^2 in the mean over
    directions.
    """
    weight = share.double().cpu()
    axis = centred_range(int(share.shape[-1]), dtype=torch.float64, device="cpu") * pixel_size
    x, y, z = (axis - float(coordinate) for coordinate in point)
    squared = z.square()[:, None, None] + y.square()[:, None] + x.square()
    variance = shift**2 + 2.0 / 3.0 * rotation**2 * float((weight * squared).sum() / weight.sum())
    return torch.exp(-2.0 * math.pi**2 * variance * frequency.square())


def _hinge(settings: TwinSettings, shares: dict[str, Tensor], pixel_size: float) -> Tensor:
    if settings.hinge is not None:
        return torch.tensor(settings.hinge, dtype=torch.float64)
    found = contact(shares[DOMAIN] > 0.5, shares[BODY] > 0.5, pixel_size=pixel_size)
    if found.voxels == 0:
        raise ValueError("the domain touches nothing, so its hinge must be given (Å, as a marker shows it)")
    return found.centre


def _mean_power(spectrum: Tensor) -> Tensor:
    """(n_shells,) mean |F|^2 of a transform on the rfftn layout."""
    power = spectrum.abs().square()
    return (shell_sum(power, dims=3) / shell_sum(torch.ones_like(power), dims=3)).cpu()


def _mass_share(mean: Tensor, shares: dict[str, Tensor], envelope: Tensor, pixel_size: float) -> float:
    """Share of the domain in the density above that of the solvent, which blur leaves alone."""
    smooth = low_pass(mean, resolution=max(MASS_RESOLUTION, 2.5 * pixel_size), pixel_size=pixel_size)
    outside = smooth[envelope < 0.01]
    solvent = outside.median() if len(outside) else smooth.new_zeros(())
    found = {
        name: float(((smooth - solvent).clamp_min(0.0) * share).double().sum())
        for name, share in shares.items()
    }
    for name, mass in found.items():
        if mass <= 0.0:
            raise ValueError(f"the {name} is not denser than the solvent; is the map's contrast inverted?")
    return found[DOMAIN] / (found[DOMAIN] + found[BODY])


# ---- particles ----


def simulate_twin(
    particles: Particles,
    model: TwinModel,
    settings: TwinSettings,
    folder: Path,
    *,
    device: torch.device,
    advance: Callable[[int], None] | None = None,
    chunk_size: int = 64,
) -> tuple[str, ...]:
    """Simulate the twin of `particles` into a folder, with the truth about it.

    `particles.star` has the rows of the particles as they are, but for the image names: poses, CTF, half
    sets, optics groups. The true poses of the body are those of the rows with the assumed error undone. Noise
    is drawn so that in each shell the images of an optics group have the power of the real ones. Beside it
    stand `truth_body` and `truth_domain` (.star, .mrc), `domains.mrc` (labels) and `twin.json`.

    Args:
        particles: n particles.
        model: of `twin_model`.
        settings: what is assumed; those that the model was made with.
        folder: there already; files of another twin are replaced.
        device: where images are computed; the random numbers do not depend on it.
        advance: called with the number of images done since the last call.
        chunk_size: images computed at once; the result depends on it by rounding only.

    Returns:
        What was measured and assumed, as sentences.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    poses = true_poses(particles, model.hinge, settings, generator)
    count, box, pixel_size = len(particles), particles.box_size, particles.pixel_size
    stack_path = folder / "particles.mrcs"
    with open_stack_for_writing(stack_path, count=count, box_size=box, pixel_size=pixel_size) as stack:
        signal, variance = _write_signal(
            stack, particles, model, poses, device=device, advance=advance, chunk_size=chunk_size
        )
        noise, is_floored = _noise(model, settings, signal, variance, particles)
        _add_noise(stack, noise, particles.optics_group, generator, chunk_size)
    written = replace(
        particles, stacks=(stack_path.absolute(),), stack_of=torch.zeros(count, dtype=torch.int64),
        index_in_stack=torch.arange(count),
    )  # fmt: skip
    write_particles(
        written, folder / "particles.star", rotations=particles.rotations, shifts=particles.shifts
    )
    for name in NAMES:
        given = poses[name]
        path = folder / f"truth_{name}.star"
        write_particles(written, path, rotations=given.rotations, shifts=given.shifts)
        write_map(folder / f"truth_{name}.mrc", model.shapes[name].density, pixel_size=pixel_size)
    write_map(folder / "domains.mrc", model.labels, pixel_size=pixel_size)
    shares = torch.bincount(particles.optics_group, minlength=len(noise)).double() / count
    noise_variance = float((shares * torch.stack([_variance(each, box) for each in noise])).sum())
    notes = _notes(model, settings, variance, noise_variance, is_floored, particles)
    summary: dict[str, Any] = {
        "settings": asdict(settings),
        "resolution": model.resolution,
        "detail_made_up_beyond": model.seen if model.seen > model.resolution else None,
        "signal_variance": variance,
        "noise_variance": noise_variance,
        "snr": variance / noise_variance,
        "mass_share_of_domain": model.mass_share,
        "hinge": model.hinge.tolist(),
        "centre_of_mass": {name: model.shapes[name].centre_of_mass.tolist() for name in NAMES},
        "images_measured": None if model.measured is None else model.measured.images,
        "spectra": {
            "frequency": [shell / (box * pixel_size) for shell in range(shell_count(box))],
            "signal": signal.tolist(),
            "noise": [each.tolist() for each in noise],
        },
        "notes": notes,
    }
    with replacing(folder / "twin.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return notes


def true_poses(
    particles: Particles, hinge: Tensor, settings: TwinSettings, generator: torch.Generator
) -> dict[str, Poses]:
    """Poses of the body, the assumed error taken off those given, and of the domain, which moves on it."""
    count = len(particles)

    def normal(size: int) -> Tensor:
        return torch.randn(count, size, generator=generator, dtype=torch.float64)

    error, shift_error = _pose_error(settings)
    rotation = rotation_from_vector(error * normal(3)) @ particles.rotations
    shift = particles.shifts + shift_error * normal(2)
    turn = rotation_from_vector(math.radians(settings.rotation_spread) * normal(3))
    move = hinge - turn @ hinge + settings.shift_spread * normal(3)
    moved = (rotation @ move[..., None]).squeeze(-1)[:, :2]
    return {BODY: Poses(rotation, shift), DOMAIN: Poses(rotation @ turn, moved + shift)}


def _write_signal(
    stack: np.ndarray[Any, Any],
    particles: Particles,
    model: TwinModel,
    poses: dict[str, Poses],
    *,
    device: torch.device,
    advance: Callable[[int], None] | None,
    chunk_size: int,
) -> tuple[Tensor, float]:
    """Fill the stack with noise-free images; their mean |F|^2 (n_shells,) and their variance."""
    plane = half_plane(particles.box_size, dtype=torch.float32, device=device)
    shells = shell_count(particles.box_size)
    references: dict[str, Reference] = {}
    landings: dict[str, Tensor] = {}
    for name, shape in model.shapes.items():
        # interpolation in the transform errs least about the part's own centre
        centred = _moved(shape.density.float(), -shape.centre_of_mass / particles.pixel_size)
        references[name] = make_reference(centred.to(device))
        seen = poses[name].rotations @ shape.centre_of_mass
        landings[name] = poses[name].shifts + seen[:, :2]
    # one row for each image: sums over chunks would depend on their size
    power = torch.zeros(len(particles), shells, dtype=torch.float64)
    variance = torch.zeros(len(particles), dtype=torch.float64)
    for rows in torch.arange(len(particles)).split(chunk_size):
        spectrum = torch.zeros(len(rows), plane.k.shape[0], dtype=torch.complex64, device=device)
        for name in NAMES:
            transfer, phase = _optics_of(particles, landings[name], rows, plane)
            rotations = poses[name].rotations[rows].float().to(device)
            spectrum += slices(references[name], rotations, plane) * transfer * phase
        squared = spectrum.abs().square().double()
        power[rows] = squared.new_zeros(len(rows), shells).index_add_(1, plane.shell, squared).cpu()
        images = images_of_spectrum(spectrum, plane).cpu()
        variance[rows] = images.double().square().mean(dim=(1, 2))
        stack[int(rows[0]) : int(rows[-1]) + 1] = images.numpy()
        if advance is not None:
            advance(len(rows))
    samples = torch.bincount(plane.shell, minlength=shells).cpu()
    return power.mean(dim=0) / samples.clamp_min(1), float(variance.mean())


def _noise(
    model: TwinModel, settings: TwinSettings, signal: Tensor, variance: float, particles: Particles
) -> tuple[list[Tensor], bool]:
    """Noise power (n_shells,) of each optics group, and whether a shell had to be held at the floor."""
    box, groups = particles.box_size, int(particles.optics_group.max()) + 1
    if model.measured is None:
        assert settings.snr is not None
        shape = noise_power(box, particles.pixel_size)[0]  # along one axis: shells 0 to Nyquist
        level = variance / settings.snr / float(_variance(shape, box))
        return [level * shape] * groups, False
    found = [power - signal for power in model.measured.power]
    for each in found:
        each[0] = each[1]  # the signal has no mean
    floors = [NOISE_FLOOR * power for power in model.measured.power]
    low = any(bool((n < floor)[1:].any()) for n, floor in zip(found, floors, strict=True))
    return [torch.maximum(n, floor) for n, floor in zip(found, floors, strict=True)], low


def _layout(box_size: int) -> tuple[Tensor, Tensor]:
    """Shell of each element of the rfft2 layout, the corners counted to Nyquist, and how often it stands in
    the whole plane."""
    full = torch.fft.fftfreq(box_size, 1.0 / box_size, dtype=torch.float64)
    half = torch.fft.rfftfreq(box_size, 1.0 / box_size, dtype=torch.float64)
    shell = (full[:, None].square() + half.square()).sqrt().round().long().clamp_max(box_size // 2)
    times = torch.full((len(half),), 2.0, dtype=torch.float64)
    times[0] = 1.0
    if box_size % 2 == 0:
        times[-1] = 1.0
    return shell, times.expand(shell.shape)


def _variance(power: Tensor, box_size: int) -> Tensor:
    """Variance per pixel of images with mean |F|^2 `power` (n_shells,)."""
    shell, times = _layout(box_size)
    return (power[shell] * times).sum() / box_size**4


def _add_noise(
    stack: np.ndarray[Any, Any],
    noise: list[Tensor],
    groups: Tensor,
    generator: torch.Generator,
    chunk_size: int,
) -> None:
    count, size = stack.shape[0], stack.shape[-1]
    shell, _ = _layout(size)
    amplitudes = torch.stack([(power[shell] / size**2).sqrt() for power in noise]).float()
    for rows in torch.arange(count).split(chunk_size):
        # one image at a time: torch.randn of two images is not the two drawn one after the other
        white = torch.stack([torch.randn(size, size, generator=generator) for _ in rows])
        drawn = torch.fft.irfft2(torch.fft.rfft2(white) * amplitudes[groups[rows]], s=(size, size))
        stack[int(rows[0]) : int(rows[-1]) + 1] += drawn.numpy()


def _notes(
    model: TwinModel, settings: TwinSettings, variance: float, noise: float, is_floored: bool,
    particles: Particles,
) -> tuple[str, ...]:  # fmt: skip
    groups = len(particles.optics_group.unique())
    told = (
        f"as given, with the noise spectrum of `cryosweep simulate` (SNR {variance / noise:.3g})"
        if model.measured is None
        else f"measured on {model.measured.images} images, {groups} optics group(s): "
        f"SNR {variance / noise:.3g} in the whole box, variance of the signal {variance:.3g}, of the noise "
        f"{noise:.3g}"
    )
    found = [
        f"The twin holds signal up to {model.resolution:.2f} Å, where the map given ends: nothing it says "
        f"about finer detail counts (scoring.band_high={model.resolution:.1f}).",
        f"Grey scale and noise are {told}.",
        f"The domain is {model.mass_share:.1%} of the mass and moves by {settings.rotation_spread:g}° and "
        f"{settings.shift_spread:g} Å (SD per axis, assumed)"
        + (
            f"; finer than {model.seen:.0f} Å its detail is made up, with the body's power per mass."
            if model.seen > model.resolution
            else "."
        ),
    ]
    if is_floored:
        found.append(
            f"In some shells the twin's signal leaves less than {NOISE_FLOOR:.0%} of the images' power for "
            "noise; it was held there: are pose errors or motion assumed too large?"
        )
    return tuple(found)


def spectra_of(folder: Path) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Mean power |F|^2 by shell of the twin in `folder`.

    `frequency` (n_shells,) in 1/Å, `signal` (n_shells,), `noise` (groups, n_shells).
    """
    told = json.loads((folder / "twin.json").read_text(encoding="utf-8"))["spectra"]
    return {name: np.array(values, dtype=np.float64) for name, values in told.items()}


def load_twin(folder: Path) -> tuple[Particles, Truth]:
    """The twin that `simulate_twin` wrote, and the truth about it.

    Raises:
        ValueError: a file is absent or cannot be used.
    """
    told = json.loads((folder / "twin.json").read_text(encoding="utf-8"))
    particles = read_particles(folder / "particles.star")
    domains: dict[str, DomainTruth] = {}
    for name in NAMES:
        known = read_particles(folder / f"truth_{name}.star")
        path = folder / f"truth_{name}.mrc"
        centre = torch.tensor(told["centre_of_mass"][name], dtype=torch.float64)
        shape = MapShape(read_map(path).data, centre)
        domains[name] = DomainTruth(Poses(known.rotations, known.shifts), path, shape)
    labels = read_map(folder / "domains.mrc").data.long()
    hinge = torch.tensor(told["hinge"], dtype=torch.float64)
    truth = Truth(
        domains, labels, particles.box_size, particles.pixel_size, names=NAMES, hinges={DOMAIN: hinge}
    )
    return replace(particles, notes=(*particles.notes, *told["notes"])), truth
