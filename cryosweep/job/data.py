"""The particles of a job: read or simulated, and those of them that are chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from cryosweep import config as schemas
from cryosweep.config import JobConfig
from cryosweep.io.maps import Map
from cryosweep.io.particles import Particles, read_particles
from cryosweep.job.files import (
    checked_mask,
    file_state,
    read_relion,
    read_volume,
    stacks_read,
    twin_maps,
    twin_rows,
    volume_like,
)
from cryosweep.job.memory import MEMORY, budget_of, with_images
from cryosweep.job.stages import SIMULATION_VERSION, TWIN_VERSION
from cryosweep.progress import Progress
from cryosweep.reconstruction import HalfMaps
from cryosweep.selection import nested_subset, random_halves, with_halves
from cryosweep.simulate import SimulationSettings, Truth, load_truth, simulate
from cryosweep.study.store import Store, digest_file
from cryosweep.twin import DOMAIN, TwinSettings, load_twin, simulate_twin, twin_model


@dataclass(frozen=True)
class Data:
    """Particles, the truth about them if they are simulated, and the key of both."""

    particles: Particles
    truth: Truth | None
    key: str


def load_data(config: JobConfig, store: Store, device: torch.device, progress: Progress) -> Data:
    """The particles of the group `data`: those of a STAR file, or simulated ones from the store.

    Raises:
        ValueError: they cannot be read, or there are too few.
    """
    if isinstance(config.data, schemas.RelionData):
        particles = read_relion(config.data)
        stacks = "".join(file_state(stack) for stack in particles.stacks)
        # the seed counts here only where the file has no half sets; see `_select` for those drawn anew
        given = "rlnRandomSubset" in particles.table.columns
        chosen = f"{None if given else config.data.half_set_seed} {config.data.ctf_damping}"
        key = f"{digest_file(Path(config.data.star))} {stacks} {chosen}"
        # the same bytes elsewhere are the same data, but the paths in them are others
        place = f"{Path(config.data.star).absolute()} {config.data.image_folder}"
        return _select(_kept(config, key, place, lambda: (particles, None)), config.data)
    if isinstance(config.data, schemas.TwinData):
        return _select(_twin(config, config.data, store, device, progress), config.data)
    assert isinstance(config.data, schemas.SimulatedData)
    settings = _simulation_settings(config.data)

    def make(folder: Path) -> None:
        progress.start(settings.particles, "simulating")
        simulate(settings, folder, device=device, advance=progress.advance)

    folder = store.get("simulation", SIMULATION_VERSION, asdict(settings), [], make)
    data = _kept(
        config, folder.name, str(folder.absolute()),
        lambda: (read_particles(folder / "particles.star"), load_truth(folder)),
    )  # fmt: skip
    return _select(data, config.data)


def _kept(
    config: JobConfig, key: str, place: str, read: Callable[[], tuple[Particles, Truth | None]]
) -> Data:
    """Data that the jobs of this process share, their images read once where memory allows."""

    def make() -> Data:
        particles, truth = read()
        return Data(with_images(particles, config), truth, key)

    return MEMORY.get(("data", key, place), make, budget=budget_of(config))


def moving_domain(config: JobConfig) -> str | None:
    """The domain whose truth a job is held against: that of the mask base, or the one that a twin has."""
    if isinstance(config.mask_base, schemas.DomainBase):
        return config.mask_base.name
    return DOMAIN if isinstance(config.data, schemas.TwinData) else None


def _twin(
    config: JobConfig, chosen: schemas.TwinData, store: Store, device: torch.device, progress: Progress
) -> Data:
    """The twin of a user's particles, from the store."""
    maps = twin_maps(chosen)
    inputs = [digest_file(Path(path)) for path in (chosen.star, *maps, chosen.domain)]
    inputs += stacks_read(chosen).values()
    # files count by what is in them; which of the particles a job takes is settled later
    apart = {"star", "image_folder", "map", "half_a", "half_b", "domain"}
    apart |= {each.name for each in fields(schemas.DataConfig)}
    choices = {name: value for name, value in asdict(chosen).items() if name not in apart}

    def make(folder: Path) -> None:
        particles = twin_rows(chosen, read_relion(chosen))
        halves = [volume_like(path, particles, device) for path in maps]
        half_maps = HalfMaps(halves[0], halves[-1], particles.pixel_size)
        domain = checked_mask(chosen.domain, particles, device)
        settings = _twin_settings(chosen, read_volume(maps[0]))
        progress.start(2 * len(particles), "simulating the twin")
        try:
            model = twin_model(
                particles, half_maps, domain, settings, device=device, advance=progress.advance
            )
        except ValueError as error:
            raise ValueError(f"data=twin: {error}") from error
        simulate_twin(particles, model, settings, folder, device=device, advance=progress.advance)

    folder = store.get("twin", TWIN_VERSION, choices, inputs, make)
    return _kept(config, folder.name, str(folder.absolute()), lambda: load_twin(folder))


def _twin_settings(chosen: schemas.TwinData, map: Map) -> TwinSettings:
    hinge = None if chosen.hinge is None else map.from_centre(_vector(chosen.hinge))
    return TwinSettings(
        rotation_spread=chosen.rotation_spread,
        shift_spread=chosen.shift_spread,
        pose_error_rotation=chosen.pose_error_rotation,
        pose_error_shift=chosen.pose_error_shift,
        detail=chosen.detail.value,  # pyright: ignore[reportArgumentType]
        resolution=chosen.resolution,
        mass_share=chosen.mass_share,
        hinge=hinge,
        snr=chosen.snr,
        seed=chosen.simulation_seed,
    )


def _vector(values: list[float]) -> tuple[float, float, float]:
    x, y, z = values
    return x, y, z


def _select(data: Data, chosen: schemas.DataConfig) -> Data:
    """The group and subset asked for, and the half sets drawn anew where they are not to be kept.

    Half sets that are kept are thinned alike; where they are drawn, the particles are chosen before, so that
    another split is one of the same particles.

    Raises:
        ValueError: there are too few particles.
    """
    particles, truth = data.particles, data.truth
    told: list[str] = []
    drawn = chosen.resplit or "rlnRandomSubset" not in particles.table.columns
    some = chosen.subset is not None or chosen.groups > 1
    if some:
        strata = torch.zeros_like(particles.half_sets) if drawn else particles.half_sets
        try:
            rows = nested_subset(
                strata, chosen.subset, seed=chosen.subset_seed, groups=chosen.groups, group=chosen.group
            )
        except ValueError as error:
            raise ValueError(f"data.subset={chosen.subset}, data.groups={chosen.groups}: {error}") from error
        particles, truth = particles.take(rows), None if truth is None else truth.take(rows)
        told.append(f"subset {chosen.subset} seed {chosen.subset_seed} group {chosen.group}/{chosen.groups}")
    if chosen.resplit or (some and drawn):
        halves = random_halves(len(particles), seed=chosen.half_set_seed)
        note = f"the half sets were drawn anew (data.half_set_seed={chosen.half_set_seed})."
        particles = with_halves(particles, halves, note)
        told.append(f"half sets {chosen.half_set_seed}")
    return Data(particles, truth, " ".join([data.key, *told]))


def _simulation_settings(data: schemas.SimulatedData) -> SimulationSettings:
    return SimulationSettings(
        particles=data.particles,
        box_size=data.box_size,
        pixel_size=data.pixel_size,
        snr=data.snr,
        rotation_spread=asdict(data.rotation_spread),
        shift_spread=asdict(data.shift_spread),
        pose_error_rotation=data.pose_error_rotation,
        pose_error_shift=data.pose_error_shift,
        scale_spread=data.scale_spread,
        defocus_min=data.defocus_min,
        defocus_max=data.defocus_max,
        voltage=data.voltage,
        spherical_aberration=data.spherical_aberration,
        amplitude_contrast=data.amplitude_contrast,
        signal_lowpass=data.signal_lowpass,
        signal=data.signal,
        seed=data.simulation_seed,
        head_mass=data.head_mass,
    )
