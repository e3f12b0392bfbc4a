"""Simulated particles of a flexible complex with every pose known, and scores against that truth.

The complex is the 70S ribosome in four rigid domains: a body, a foot on the body, a head on the foot and an
arm on the body. Each domain turns about its hinge by a random amount in every particle. The particle table
holds what a consensus refinement would find: the poses of the body, to within a pose error.

Coordinates are Å about the centre of the complex, which is the map's origin (voxel `n // 2`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from scipy.spatial import KDTree
from torch import Tensor

from cryosweep.ctf import Optics, contrast_transfer
from cryosweep.fourier import (
    HalfPlane,
    centred_range,
    frequency_radius,
    half_plane,
    images_of_spectrum,
    low_pass,
    shift_phase,
)
from cryosweep.geometry import (
    angle_between,
    mean_rotation,
    random_rotations,
    rotation_from_vector,
)
from cryosweep.io import (
    new_particles,
    open_stack_for_writing,
    read_map,
    read_particles,
    write_map,
    write_particles,
)
from cryosweep.io.maps import replacing
from cryosweep.projector import make_reference, slices

DOMAINS = ("body", "foot", "head", "arm")
CARRIER = {"foot": "body", "head": "foot", "arm": "body"}  # a carrier comes before what rides on it

ENCLOSING_CENTRE = (-32.59, 120.14, 122.24)  # of the smallest sphere round the complex, in the PDB frame
ENCLOSING_RADIUS = 144.0
MINIMUM_WIDTH = 320.0  # Å: the sphere, and room for the domains to swing

RESIDUE_MASS = 111.0  # Da, nominal mass of a residue, the unit of density
ATOM_SIGMA = 2.4  # Å: B = 8 pi^2 sigma^2 = 455 Å^2
SOLVENT_SIGMA = 8.0  # Å
SOLVENT_WEIGHT = 0.5
WINDOW = 4.5  # standard deviations: 1e-5 of a Gaussian lies beyond
FINEST_STEP = 1.75  # Å: on this grid what folds back below Nyquist of the final grid is below 1e-8

NOISE_LOW_FREQUENCY_POWER = 3.0  # times the power at high frequency
NOISE_CORNER = 50.0  # Å
SCALE_STREAM = 0x5CA1E  # sets the seed of the scales apart from that of all else
ASTIGMATISM = 100.0  # Å, standard deviation of half the difference of the two defoci

SPECTRA_LIMIT = 512 * 2**20  # bytes of half-plane samples held at once
ROBUST_ITERATIONS = 30

SMALLEST_HEAD, LARGEST_HEAD = 5.0, 279.0  # kDa: some thirty residues, and all of it


@dataclass(frozen=True)
class Domain:
    """A rigid part of the complex.

    Attributes:
        name: one of `DOMAINS`.
        coordinates: (m, 3) float64 Å, x, y, z about the centre of the complex.
        weights: (m,) float64, mass of each pseudo-atom in residues of 111 Da.
        mass_da: Da.
    """

    name: str
    coordinates: Tensor
    weights: Tensor
    mass_da: float

    @property
    def centre_of_mass(self) -> Tensor:
        """(3,) Å."""
        return (self.weights @ self.coordinates) / self.weights.sum()

    def in_frame(self, frame: FrameChange, *, box_size: int, pixel_size: float) -> Tensor:
        """(d, d, d) its density after `frame`."""
        return truth_in_frame(self, frame, box_size=box_size, pixel_size=pixel_size)


@dataclass(frozen=True)
class Structure:
    """The complex at rest.

    Attributes:
        domains: by name, in the order of `DOMAINS`.
        hinges: (3,) Å by the domain that turns about it: the neck for the head, the base for the arm, and
            for the foot, which has no such point, the centroid of its contact with the body.
    """

    domains: Mapping[str, Domain]
    hinges: Mapping[str, Tensor]


@dataclass(frozen=True)
class SimulationSettings:
    """What is simulated.

    Attributes:
        particles: number of images, at least 2.
        box_size: px.
        pixel_size: Å.
        snr: variance of the signal over variance of the noise, whole images of all particles.
        rotation_spread: standard deviation in degrees per axis of the hinge rotation of foot, head and arm.
        shift_spread: standard deviation in Å per axis of what the hinge itself moves by.
        pose_error_rotation: standard deviation in degrees per axis of the error of the consensus poses.
        pose_error_shift: the same of their shifts, Å.
        scale_spread: standard deviation of the scale of each particle's signal, log-normal with mean 1.
        defocus_min: Å, positive is underfocus; the defoci are uniform between the two.
        defocus_max: Å.
        voltage: kV.
        spherical_aberration: mm.
        amplitude_contrast: fraction.
        signal_lowpass: Å, where the signal ends, or None: a null test of what is claimed beyond it.
        signal: False leaves the noise alone, at the variance that the signal would have called for.
        seed: equal settings give equal files.
        head_mass: kDa of the head that there are (`core_of`), the rest is left out; None: all of it.
    """

    particles: int
    box_size: int = 96
    pixel_size: float = 3.5
    snr: float = 0.1
    rotation_spread: Mapping[str, float] = field(
        default_factory=lambda: {"foot": 2.5, "head": 7.0, "arm": 6.5}
    )
    shift_spread: Mapping[str, float] = field(default_factory=lambda: {"foot": 0.5, "head": 1.0, "arm": 1.0})
    pose_error_rotation: float = 1.0
    pose_error_shift: float = 1.4
    scale_spread: float = 0.0
    defocus_min: float = 8000.0
    defocus_max: float = 23000.0
    voltage: float = 300.0
    spherical_aberration: float = 2.7
    amplitude_contrast: float = 0.1
    signal_lowpass: float | None = None
    signal: bool = True
    seed: int = 0
    head_mass: float | None = None

    def __post_init__(self) -> None:
        faults = [*self._range_faults(), *self._spread_faults()]
        if faults:
            raise ValueError("simulation: " + "; ".join(faults) + ".")

    def _range_faults(self) -> list[str]:
        checks = [
            (self.particles >= 2, f"particles={self.particles} must be at least 2, one for each half set"),
            (0 < self.pixel_size <= 10, f"pixel_size={self.pixel_size} must lie between 0 and 10 Å"),
            (0 < self.snr < math.inf, f"snr={self.snr} must be above 0"),
            (
                0 <= self.pose_error_rotation < math.inf,
                f"pose_error_rotation={self.pose_error_rotation} degrees must be 0 or more",
            ),
            (
                0 <= self.pose_error_shift < math.inf,
                f"pose_error_shift={self.pose_error_shift} Å must be 0 or more",
            ),
            (0 <= self.scale_spread <= 1, f"scale_spread={self.scale_spread} must lie between 0 and 1"),
            (
                0 < self.defocus_min <= self.defocus_max < math.inf,
                f"defocus_min={self.defocus_min} Å must lie between 0 and defocus_max={self.defocus_max} Å",
            ),
            (10 <= self.voltage <= 1000, f"voltage={self.voltage} kV must lie between 10 and 1000"),
            (
                0 <= self.spherical_aberration < math.inf,
                f"spherical_aberration={self.spherical_aberration} mm must be 0 or more",
            ),
            (
                0 <= self.amplitude_contrast < 1,
                f"amplitude_contrast={self.amplitude_contrast} must lie in [0, 1)",
            ),
            (
                self.signal_lowpass is None or self.signal_lowpass >= 2 * self.pixel_size,
                f"signal_lowpass={self.signal_lowpass} Å must be 2 x pixel_size or more",
            ),
            (0 <= self.seed < 2**63, f"seed={self.seed} must be 0 or more, below 2^63"),
            (
                self.head_mass is None or SMALLEST_HEAD <= self.head_mass <= LARGEST_HEAD,
                f"head_mass={self.head_mass} kDa must lie between {SMALLEST_HEAD:g} and {LARGEST_HEAD:g}, "
                "the whole head, or be left out",
            ),
        ]
        faults = [message for holds, message in checks if not holds]
        if self.box_size * self.pixel_size < MINIMUM_WIDTH:
            width = self.box_size * self.pixel_size
            needed = math.ceil(MINIMUM_WIDTH / self.pixel_size) if self.pixel_size > 0 else 0
            faults.append(
                f"box_size={self.box_size} px of {self.pixel_size} Å is {width:g} Å wide, and the moving "
                f"ribosome needs {MINIMUM_WIDTH:g} Å: box_size must be at least {needed}"
            )
        return faults

    def _spread_faults(self) -> list[str]:
        faults: list[str] = []
        for name, spread in (("rotation_spread", self.rotation_spread), ("shift_spread", self.shift_spread)):
            if set(spread) != set(CARRIER):
                faults.append(f"{name} must name {', '.join(CARRIER)}, not {', '.join(spread) or 'nothing'}")
            faults.extend(
                f"{name}.{domain}={value} must be 0 or more"
                for domain, value in spread.items()
                if not 0 <= value < math.inf
            )
        return faults


@dataclass(frozen=True)
class Poses:
    """Poses of n particles, `x_view = R @ x_map + shift`: rotations (n, 3, 3), shifts (n, 2) Å, float64."""

    rotations: Tensor
    shifts: Tensor


@dataclass(frozen=True)
class SimulatedData:
    """What `simulate` wrote.

    Attributes:
        folder: holds the files below; `load_truth` reads it.
        particles: STAR file with consensus poses.
        signal_variance: of the noise-free images.
        noise_variance: of the noise added to them, expected.
    """

    folder: Path
    particles: Path
    signal_variance: float
    noise_variance: float


class Shape(Protocol):
    """The density of a rigid part, of atoms or of voxels, which can be put anywhere."""

    @property
    def centre_of_mass(self) -> Tensor:
        """(3,) float64 Å from the box centre."""
        ...

    def in_frame(self, frame: FrameChange, *, box_size: int, pixel_size: float) -> Tensor:
        """(d, d, d) the density after `frame`."""
        ...


@dataclass(frozen=True)
class DomainTruth:
    """One domain's true poses, its density (a map file) at rest in the map frame, and what makes it."""

    poses: Poses
    density: Path
    shape: Shape


@dataclass(frozen=True)
class Truth:
    """What is known about simulated particles, row by row of their STAR file.

    Attributes:
        domains: by name.
        labels: (d, d, d) int64 territory of each domain, 1 + its place in `names`; 0 is solvent.
        box_size: px.
        pixel_size: Å.
        scale: (n,) float64 of each particle's signal, or None where all are 1.
        names: of the domains, in the order of their labels.
        hinges: (3,) Å from the box centre by the domain that turns about it.
    """

    domains: Mapping[str, DomainTruth]
    labels: Tensor
    box_size: int
    pixel_size: float
    scale: Tensor | None = None
    names: tuple[str, ...] = DOMAINS
    hinges: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def territory(self, name: str) -> Tensor:
        """(d, d, d) bool: where the domain `name` is at rest."""
        return self.labels == 1 + self.names.index(name)

    def take(self, index: Tensor) -> Truth:
        """The truth about the particles at `index` (k,), in that order."""
        domains = {
            name: replace(truth, poses=Poses(truth.poses.rotations[index], truth.poses.shifts[index]))
            for name, truth in self.domains.items()
        }
        return replace(self, domains=domains, scale=None if self.scale is None else self.scale[index])


@dataclass(frozen=True)
class FrameChange:
    """Rigid move from the true map frame into that of a refinement: `x_refined = rotation @ x + shift`.

    Attributes:
        rotation: (3, 3) float64.
        shift: (3,) float64 Å.
    """

    rotation: Tensor
    shift: Tensor

    @classmethod
    def none(cls) -> FrameChange:
        """The two frames are one."""
        return cls(torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))


# ---- the complex ----


def load_ribosome(head_mass: float | None = None) -> Structure:
    """The 70S ribosome of PDB 4V5A as four rigid domains, without its ligands (tRNA, mRNA, RRF).

    Args:
        head_mass: kDa of the head that are kept (`core_of`); None: all of it. Hinges do not depend on it.
    """
    with as_file(files("cryosweep") / "data" / "ribosome70s_4v5a_ca.csv.gz") as path:
        table = pd.read_csv(path, keep_default_na=False)
    coordinates = torch.tensor(table[["x", "y", "z"]].to_numpy(), dtype=torch.float64)
    coordinates = coordinates - torch.tensor(ENCLOSING_CENTRE, dtype=torch.float64)
    masses = torch.tensor(table["mass_da"].to_numpy(), dtype=torch.float64)
    domains: dict[str, Domain] = {}
    for name in DOMAINS:
        rows = torch.tensor((table["domain"] == name).to_numpy())
        mass = masses[rows]
        domains[name] = Domain(name, coordinates[rows], mass / RESIDUE_MASS, float(mass.sum()))

    def strand_mean(chain: str, nucleotides: list[int]) -> Tensor:
        rows = (table["chain"] == chain) & table["resseq"].isin(nucleotides)
        return coordinates[torch.tensor(rows.to_numpy())].mean(dim=0)

    hinges = {
        "foot": _contact_centre(domains["foot"].coordinates, domains["body"].coordinates, reach=14.0),
        "head": strand_mean("AA", [920, 921, 1396, 1397]),  # where both strands of the 16S RNA enter the head
        "arm": strand_mean("BA", [2092, 2093, 2198, 2199]),  # the same of the 23S RNA and the L1 stalk
    }
    if head_mass is not None:
        domains["head"] = core_of(domains["head"], 1000.0 * head_mass)
    return Structure(domains, hinges)


def core_of(domain: Domain, mass_da: float) -> Domain:
    """The pseudo-atoms nearest to a domain's centre of mass, as many as weigh at most `mass_da`.

    A ball of them, near enough, so that a smaller domain is as compact as a larger one, lies in it and has
    the same centre: mass is all that changes.
    """
    nearest = (domain.coordinates - domain.centre_of_mass).norm(dim=1).argsort(stable=True)
    mass = RESIDUE_MASS * domain.weights[nearest].cumsum(dim=0)
    kept = nearest[mass <= mass_da].sort().values
    weights = domain.weights[kept]
    return Domain(domain.name, domain.coordinates[kept], weights, RESIDUE_MASS * float(weights.sum()))


def _contact_centre(first: Tensor, second: Tensor, *, reach: float) -> Tensor:
    """Centroid of the points of either set that lie within `reach` of the other set."""
    touching: list[Tensor] = []
    for points, others in ((first, second), (second, first)):
        distance, _ = KDTree(others.numpy()).query(points.numpy())
        touching.append(points[torch.from_numpy(distance <= reach)])
    return torch.cat(touching).mean(dim=0)


def render_domain(
    coordinates: Tensor, weights: Tensor, *, box_size: int, pixel_size: float, centre: Tensor
) -> Tensor:
    """Density of pseudo-atoms: a Gaussian each, less half a wider one for the solvent it displaces.

    A voxel holds the density times the voxel's volume, so that a projection is the plain sum along z and the
    whole map sums to half the sum of the weights. Rendered on a finer grid and cropped in Fourier space, so
    nothing is aliased; the Nyquist planes of an even box are empty. What leaves the box comes in again
    opposite.

    Args:
        coordinates: (m, 3) Å, x, y, z.
        weights: (m,).
        box_size: px.
        pixel_size: Å.
        centre: (3,) Å, the point that lies on voxel `n // 2`.

    Returns:
        (d, d, d) in the dtype of `coordinates`.
    """
    finer = max(1, math.ceil(pixel_size / FINEST_STEP - 1e-6))
    size, step = finer * box_size, pixel_size / finer
    position = (coordinates - centre) / step + size // 2
    nearest = position.round()
    reach = math.ceil(WINDOW * ATOM_SIGMA / step)
    offsets = torch.arange(-reach, reach + 1, device=coordinates.device)
    distance = (offsets - (position - nearest)[..., None]) * step  # (m, 3, w)
    line = torch.exp(-0.5 * (distance / ATOM_SIGMA) ** 2) * (step / (ATOM_SIGMA * math.sqrt(2 * math.pi)))
    index = (nearest.long()[..., None] + offsets) % size  # (m, 3, w)
    volume = coordinates.new_zeros(size**3)
    for some in torch.arange(len(weights), device=coordinates.device).split(512):
        x, y, z = line[some].unbind(1)
        ix, iy, iz = index[some].unbind(1)
        values = (weights[some, None] * z)[:, :, None, None] * y[:, None, :, None] * x[:, None, None, :]
        voxels = (iz[:, :, None, None] * size + iy[:, None, :, None]) * size + ix[:, None, None, :]
        volume.index_add_(0, voxels.reshape(-1), values.reshape(-1))
    spectrum = torch.fft.rfftn(torch.fft.ifftshift(volume.reshape(size, size, size)))
    spectrum = _crop_half_transform(spectrum, box_size)
    radius = frequency_radius(box_size, dims=3, dtype=volume.dtype, device=volume.device)
    frequency = radius / (box_size * pixel_size)
    blur = 2.0 * math.pi**2 * (SOLVENT_SIGMA**2 - ATOM_SIGMA**2)
    spectrum = spectrum * (1.0 - SOLVENT_WEIGHT * torch.exp(-blur * frequency**2))
    return torch.fft.fftshift(torch.fft.irfftn(spectrum, s=(box_size,) * 3))


def _crop_half_transform(spectrum: Tensor, box_size: int) -> Tensor:
    """The frequencies below Nyquist of a box of `box_size`, between two rfftn layouts."""
    last = (box_size - 1) // 2
    kept = torch.arange(-last, last + 1, device=spectrum.device)
    half = box_size // 2 + 1
    cropped = spectrum.new_zeros(box_size, box_size, half)
    to = kept % box_size
    source = kept % spectrum.shape[0]
    inner = spectrum[source][:, source][:, :, : last + 1]
    cropped[to[:, None], to[None, :], : last + 1] = inner
    return cropped


def domain_labels(structure: Structure, *, box_size: int, pixel_size: float, reach: float = 15.0) -> Tensor:
    """Territory of each domain: the voxels nearest to one of its pseudo-atoms.

    Args:
        structure: at rest.
        box_size: px.
        pixel_size: Å.
        reach: Å, farthest distance from a pseudo-atom.

    Returns:
        (d, d, d) int64, 1 + the domain's place in `DOMAINS`, 0 where nothing is within `reach`.
    """
    atoms = torch.cat([structure.domains[name].coordinates for name in DOMAINS])
    counts = torch.tensor([len(structure.domains[name].weights) for name in DOMAINS])
    labels = torch.cat([torch.arange(1, len(DOMAINS) + 1).repeat_interleave(counts), torch.zeros(1).long()])
    axis = centred_range(box_size, dtype=torch.float64, device="cpu") * pixel_size
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    voxels = torch.stack([x, y, z], dim=-1).reshape(-1, 3)
    _, nearest = KDTree(atoms.numpy()).query(
        voxels.numpy(), distance_upper_bound=reach
    )  # misses get len(atoms)
    return labels[torch.from_numpy(np.asarray(nearest, dtype=np.int64))].reshape(box_size, box_size, box_size)


# ---- particles ----


def simulate(
    settings: SimulationSettings,
    folder: Path,
    *,
    device: torch.device | str,
    advance: Callable[[int], None] | None = None,
    chunk_size: int = 64,
) -> SimulatedData:
    """Simulate particles and write them, with the truth about them, into a folder.

    `particles.star` and `particles.mrcs` are what a consensus refinement leaves behind. The truth is in
    `truth_<domain>.star` (the same table with the domain's true poses, and the scales where they differ),
    `truth_<domain>.mrc` (its noise-free density at rest), `domains.mrc` (labels) and
    `simulation.json` (settings and measured values).

    Args:
        settings: what to simulate.
        folder: made if absent; files of an earlier simulation are replaced.
        device: where images are computed; the random numbers do not depend on it.
        advance: called with the number of images done since the last call.
        chunk_size: images computed at once; the result does not depend on it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(settings.seed)
    structure = load_ribosome(settings.head_mass)
    poses = _true_poses(structure, settings, generator)
    consensus = _with_error(poses["body"], settings, generator)
    optics = _random_optics(settings, generator)
    scale = _random_scale(settings)
    shown = optics if scale is None else replace(optics, scale=optics.scale * scale)
    half_sets = torch.randperm(settings.particles, generator=generator) % 2
    stack_path = folder / "particles.mrcs"
    with open_stack_for_writing(
        stack_path, count=settings.particles, box_size=settings.box_size, pixel_size=settings.pixel_size
    ) as stack:
        signal_variance = _write_signal(
            stack, structure, poses, shown, settings, torch.device(device), chunk_size, advance
        )
        noise_variance = signal_variance / settings.snr
        _add_noise(stack, noise_variance, settings.pixel_size, generator, chunk_size)
    particles = new_particles(
        folder / "particles.star",
        stack=stack_path,
        rotations=consensus.rotations,
        shifts=consensus.shifts,
        optics=optics,
        half_sets=half_sets,
        pixel_size=settings.pixel_size,
        box_size=settings.box_size,
    )
    write_particles(particles, particles.path, rotations=consensus.rotations, shifts=consensus.shifts)
    known = particles if scale is None else particles.rescaled(scale)
    for name in DOMAINS:
        path = folder / f"truth_{name}.star"
        write_particles(known, path, rotations=poses[name].rotations, shifts=poses[name].shifts)
    _write_maps(structure, settings, folder)
    _write_summary(structure, settings, folder, signal_variance, noise_variance)
    return SimulatedData(folder, particles.path, signal_variance, noise_variance)


def _true_poses(
    structure: Structure, settings: SimulationSettings, generator: torch.Generator
) -> dict[str, Poses]:
    """Poses of every domain: the body's, after the motion of the domain and its carrier in the map frame."""
    count = settings.particles
    rotation = random_rotations(count, generator, dtype=torch.float64)
    # images are cut at whole pixels, so the body lies up to half a pixel off the centre
    shift = (_uniform((count, 2), generator) - 0.5) * settings.pixel_size
    turns = {"body": torch.eye(3, dtype=torch.float64).expand(count, 3, 3)}
    moves = {"body": torch.zeros(count, 3, dtype=torch.float64)}
    for name, carrier in CARRIER.items():
        angle = math.radians(settings.rotation_spread[name])
        turn = rotation_from_vector(angle * _normal((count, 3), generator))
        hinge = structure.hinges[name]
        move = hinge - turn @ hinge + settings.shift_spread[name] * _normal((count, 3), generator)
        turns[name] = turns[carrier] @ turn
        moves[name] = _apply(turns[carrier], move) + moves[carrier]
    return {
        name: Poses(rotation @ turns[name], _apply(rotation, moves[name])[:, :2] + shift) for name in DOMAINS
    }


def _with_error(poses: Poses, settings: SimulationSettings, generator: torch.Generator) -> Poses:
    count = settings.particles
    turn = math.radians(settings.pose_error_rotation) * _normal((count, 3), generator)
    shift = settings.pose_error_shift * _normal((count, 2), generator)
    return Poses(rotation_from_vector(turn) @ poses.rotations, poses.shifts + shift)


def _random_optics(settings: SimulationSettings, generator: torch.Generator) -> Optics:
    count = settings.particles
    spread = settings.defocus_max - settings.defocus_min
    defocus = settings.defocus_min + spread * _uniform((count,), generator)
    half_difference = ASTIGMATISM * _normal((count,), generator).abs()
    angle = 180.0 * _uniform((count,), generator)

    def same(value: float) -> Tensor:
        return torch.full((count,), value, dtype=torch.float64)

    return Optics(
        defocus_u=defocus + half_difference,
        defocus_v=defocus - half_difference,
        astigmatism_angle=angle,
        voltage=same(settings.voltage),
        spherical_aberration=same(settings.spherical_aberration),
        amplitude_contrast=same(settings.amplitude_contrast),
        phase_shift=same(0.0),
        b_factor=same(0.0),
        scale=same(1.0),
    )


def _random_scale(settings: SimulationSettings) -> Tensor | None:
    """(n,) scales of a generator of their own, so that they change nothing else; None if all are 1."""
    if settings.scale_spread == 0.0:
        return None
    generator = torch.Generator().manual_seed(settings.seed ^ SCALE_STREAM)
    variance = math.log1p(settings.scale_spread**2)
    normal = _normal((settings.particles,), generator)
    return torch.exp(math.sqrt(variance) * normal - 0.5 * variance)


def _write_signal(
    stack: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    structure: Structure,
    poses: Mapping[str, Poses],
    optics: Optics,
    settings: SimulationSettings,
    device: torch.device,
    chunk_size: int,
    advance: Callable[[int], None] | None,
) -> float:
    """Fill the stack with noise-free images; returns their variance (they have zero mean)."""
    plane = half_plane(settings.box_size, dtype=torch.float32, device=device)
    frequencies = plane.k.double() / (settings.box_size * settings.pixel_size)
    power = torch.zeros(settings.particles, dtype=torch.float64)
    held = max(1, SPECTRA_LIMIT // (8 * len(plane.k)))
    for group in torch.arange(settings.particles).split(held):
        spectra = _domain_spectra(structure, poses, group, plane, settings, chunk_size)
        for places in torch.arange(len(group)).split(chunk_size):
            index = group[places]
            transfer = contrast_transfer(optics[index].to(dtype=torch.float64, device=device), frequencies)
            images = images_of_spectrum(spectra[places.to(device)] * transfer.float(), plane).cpu()
            power[index] = images.double().square().mean(dim=(1, 2))
            stack[int(index[0]) : int(index[-1]) + 1] = images.numpy() if settings.signal else 0.0
            if advance is not None:
                advance(len(index))
    return float(power.mean())


def _domain_spectra(
    structure: Structure,
    poses: Mapping[str, Poses],
    group: Tensor,
    plane: HalfPlane,
    settings: SimulationSettings,
    chunk_size: int,
) -> Tensor:
    """(g, K) transforms of the complex in the particles of `group`, before the CTF.

    Each domain is rendered about its own centre of mass, where interpolation in its transform errs least.
    """
    device = plane.k.device
    spectra = torch.zeros(len(group), len(plane.k), dtype=torch.complex64, device=device)
    for name in DOMAINS:
        domain = structure.domains[name]
        centre = domain.centre_of_mass
        volume = render_domain(
            domain.coordinates,
            domain.weights,
            box_size=settings.box_size,
            pixel_size=settings.pixel_size,
            centre=centre,
        )
        reference = make_reference(_limited(volume, settings).float().to(device))
        landing = poses[name].shifts + (poses[name].rotations @ centre)[:, :2]
        for places in torch.arange(len(group)).split(chunk_size):
            index = group[places]
            rotations = poses[name].rotations[index].float().to(device)
            shifts_px = (landing[index] / settings.pixel_size).float().to(device)
            spectra[places.to(device)] += slices(reference, rotations, plane) * shift_phase(plane, shifts_px)
    return spectra


def _limited(volume: Tensor, settings: SimulationSettings) -> Tensor:
    """`volume` up to where the signal ends."""
    if settings.signal_lowpass is None:
        return volume
    return low_pass(volume, resolution=settings.signal_lowpass, pixel_size=settings.pixel_size)


def noise_power(box_size: int, pixel_size: float) -> Tensor:
    """Power of the noise at each frequency: white, and three times as much below 1/50 Å.

    Args:
        box_size: px.
        pixel_size: Å.

    Returns:
        (d, d // 2 + 1) float64 on the layout of `torch.fft.rfft2`, with mean 1 over the whole plane.
    """
    full = torch.fft.fftfreq(box_size, pixel_size, dtype=torch.float64)
    squared = full[:, None] ** 2 + full[None, :] ** 2
    power = 1.0 + (NOISE_LOW_FREQUENCY_POWER - 1.0) / (1.0 + (squared * NOISE_CORNER**2) ** 2)
    return (power / power.mean())[:, : box_size // 2 + 1]


def _add_noise(
    stack: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    variance: float,
    pixel_size: float,
    generator: torch.Generator,
    chunk_size: int,
) -> None:
    """Add noise of one variance to all images of the stack."""
    count, size = stack.shape[0], stack.shape[-1]
    amplitude = (variance * noise_power(size, pixel_size)).sqrt().float()
    for first in range(0, count, chunk_size):
        last = min(first + chunk_size, count)
        # one image at a time: torch.randn of two images is not the two drawn one after the other
        white = torch.stack([torch.randn(size, size, generator=generator) for _ in range(first, last)])
        noise = torch.fft.irfft2(torch.fft.rfft2(white) * amplitude, s=(size, size))
        stack[first:last] += noise.numpy()


def _write_maps(structure: Structure, settings: SimulationSettings, folder: Path) -> None:
    for name in DOMAINS:
        volume = truth_in_frame(
            structure.domains[name],
            FrameChange.none(),
            box_size=settings.box_size,
            pixel_size=settings.pixel_size,
        )
        volume = _limited(volume, settings)
        write_map(folder / f"truth_{name}.mrc", volume, pixel_size=settings.pixel_size)
    labels = domain_labels(structure, box_size=settings.box_size, pixel_size=settings.pixel_size)
    write_map(folder / "domains.mrc", labels, pixel_size=settings.pixel_size)


def _write_summary(
    structure: Structure,
    settings: SimulationSettings,
    folder: Path,
    signal_variance: float,
    noise_variance: float,
) -> None:
    summary = {
        "settings": asdict(settings),
        "signal_variance": signal_variance,
        "noise_variance": noise_variance,
        "structure": "PDB 4V5A, 70S ribosome, positions in Å from the box centre",
        "domains": {
            name: {
                "label": 1 + place,
                "mass_da": structure.domains[name].mass_da,
                "centre_of_mass": structure.domains[name].centre_of_mass.tolist(),
                "carrier": CARRIER.get(name),
                "hinge": structure.hinges[name].tolist() if name in structure.hinges else None,
            }
            for place, name in enumerate(DOMAINS)
        },
    }
    with replacing(folder / "simulation.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def load_truth(folder: Path) -> Truth:
    """The truth that `simulate` wrote into `folder`.

    Raises:
        ValueError: a file of the truth is absent.
    """
    expected = [folder / "domains.mrc"]
    expected += [folder / f"truth_{name}.{suffix}" for name in DOMAINS for suffix in ("star", "mrc")]
    expected.append(folder / "simulation.json")
    missing = [path.name for path in expected if not path.is_file()]
    if missing:
        raise ValueError(
            f"{folder}: {', '.join(missing)} not found; give the folder as the simulation wrote it."
        )
    settings = json.loads((folder / "simulation.json").read_text(encoding="utf-8"))["settings"]
    structure = load_ribosome(settings["head_mass"])
    domains: dict[str, DomainTruth] = {}
    scale: Tensor | None = None
    for name in DOMAINS:
        particles = read_particles(folder / f"truth_{name}.star")
        poses = Poses(particles.rotations, particles.shifts)
        domains[name] = DomainTruth(poses, folder / f"truth_{name}.mrc", structure.domains[name])
        scale = particles.contrast
    labels = read_map(folder / "domains.mrc")
    return Truth(
        domains, labels.data.long(), labels.data.shape[0], labels.pixel_size, scale, hinges=structure.hinges
    )


# ---- scores against the truth ----


def align_frames(
    rotations: Tensor, shifts: Tensor, true_rotations: Tensor, true_shifts: Tensor, *, point: Tensor
) -> FrameChange:
    """Rigid change of frame between true and refined poses.

    A local refinement is free to turn and move its map as a whole, and its poses the other way; that is no
    error and is taken out before poses or maps are compared. With `x_refined = G x + g` a perfect refinement
    has `R G = R_true` and `t + P R g = t_true` (P: the first two rows). G is the weighted chordal mean of
    `R^T R_true`; g follows from where `point` lands. Both are found by iterated reweighting with Cauchy's
    weights, 1 / (1 + (e/m)^2) for a residual e and its median m, so stray particles count little.

    Args:
        rotations: (n, 3, 3) refined.
        shifts: (n, 2) Å, refined.
        true_rotations: (n, 3, 3).
        true_shifts: (n, 2) Å.
        point: (3,) Å in the true map frame, the centre of mass of what was refined: there errors of rotation
            and shift depend on each other least.
    """
    rotations, shifts = rotations.double(), shifts.double()
    true_rotations, true_shifts, point = true_rotations.double(), true_shifts.double(), point.double()
    relative = rotations.mT @ true_rotations
    rotation = mean_rotation(relative)
    for _ in range(ROBUST_ITERATIONS):
        rotation = mean_rotation(relative, _cauchy_weights(angle_between(rotation, relative)))
    rows = rotations[:, :2]  # (n, 2, 3)
    target = (true_rotations @ point)[:, :2] + true_shifts - shifts  # (n, 2) = rows @ (G point + g)
    weights = torch.ones(len(shifts), dtype=torch.float64, device=shifts.device)
    landing = point
    for _ in range(ROBUST_ITERATIONS):
        normal = torch.einsum("n,nai,naj->ij", weights, rows, rows)
        side = torch.einsum("n,nai,na->i", weights, rows, target)
        landing = torch.linalg.pinv(normal, hermitian=True) @ side  # one view leaves the depth open: none
        weights = _cauchy_weights((rows @ landing - target).norm(dim=-1))
    return FrameChange(rotation, landing - rotation @ point)


def _cauchy_weights(residual: Tensor) -> Tensor:
    return 1.0 / (1.0 + (residual / residual.median().clamp_min(1e-9)) ** 2)


def pose_errors(
    rotations: Tensor,
    shifts: Tensor,
    true_rotations: Tensor,
    true_shifts: Tensor,
    *,
    frame: FrameChange,
    point: Tensor,
) -> tuple[Tensor, Tensor]:
    """Errors of refined poses, the change of frame taken out.

    Args:
        rotations: (n, 3, 3) refined.
        shifts: (n, 2) Å, refined.
        true_rotations: (n, 3, 3).
        true_shifts: (n, 2) Å.
        frame: from `align_frames`.
        point: (3,) Å in the true map frame, the domain's centre of mass.

    Returns:
        rotation_error: (n,) degrees.
        shift_error: (n,) Å in the image, between where the refined and the true pose put `point`.
    """
    rotations, true_rotations, point = rotations.double(), true_rotations.double(), point.double()
    rotation_error = torch.rad2deg(angle_between(rotations @ frame.rotation, true_rotations.double()))
    landing = (rotations @ (frame.rotation @ point + frame.shift))[:, :2] + shifts.double()
    true_landing = (true_rotations @ point)[:, :2] + true_shifts.double()
    return rotation_error, (landing - true_landing).norm(dim=-1)


def truth_in_frame(domain: Domain, frame: FrameChange, *, box_size: int, pixel_size: float) -> Tensor:
    """True density of a domain where a refinement should have put it.

    Rendered from the moved pseudo-atoms, so no map is interpolated.

    Args:
        domain: at rest.
        frame: from `align_frames`.
        box_size: px.
        pixel_size: Å.

    Returns:
        (d, d, d) float64.
    """
    moved = domain.coordinates @ frame.rotation.mT + frame.shift
    return render_domain(
        moved,
        domain.weights,
        box_size=box_size,
        pixel_size=pixel_size,
        centre=torch.zeros(3, dtype=torch.float64),
    )


def _apply(rotations: Tensor, points: Tensor) -> Tensor:
    """(n, 3) points, each turned by its own rotation."""
    return (rotations @ points[..., None]).squeeze(-1)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)
