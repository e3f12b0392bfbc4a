"""Where a refinement begins: poses and half-maps of a consensus, given, reconstructed or refined."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cryosweep import config as schemas
from cryosweep.config import JobConfig, parse_memory
from cryosweep.consensus import DynamicMask, automatic_mask, consensus_curves, refine_consensus
from cryosweep.io.maps import read_map, write_map
from cryosweep.io.particles import Particles, write_particles
from cryosweep.job.data import Data
from cryosweep.job.files import checked_mask, read_volume, volume_like
from cryosweep.job.refining import consensus_settings, iteration_table
from cryosweep.job.scores import consensus_metrics, consensus_table
from cryosweep.job.stages import CONSENSUS_VERSION, REFINED_CONSENSUS_VERSION
from cryosweep.progress import Progress
from cryosweep.reconstruction import HalfMaps, reconstruct_half_maps
from cryosweep.study.store import Store, digest_file


@dataclass(frozen=True)
class Start:
    """What the consensus leaves: where the refinement begins.

    Attributes:
        particles: with the poses of the consensus.
        half_maps: at those poses, or files.
        origin: Å coordinates (x, y, z) of their first voxel.
        curves: the five FSC curves under a mask round everything, one row a shell.
        metrics: numbers about the consensus, by name.
    """

    particles: Particles
    half_maps: HalfMaps
    origin: tuple[float, float, float]
    curves: pd.DataFrame
    metrics: dict[str, float]


def starting_maps(
    config: JobConfig, data: Data, store: Store, device: torch.device, progress: Progress
) -> Start:
    """Poses and half-maps of the consensus, its curves, and its errors where the truth is known.

    Raises:
        ValueError: a file of the group `consensus` does not fit the particles.
    """
    particles, chosen = data.particles, config.consensus
    if isinstance(chosen, schemas.ConsensusFiles):
        paths = (chosen.half_a, chosen.half_b)
        a, b = (volume_like(path, particles, device) for path in paths)
        half_maps = HalfMaps(a, b, particles.pixel_size)
        curves = consensus_curves(half_maps, automatic_mask(half_maps), seed=config.seed)
        origin = read_volume(paths[0]).origin
        metrics = consensus_metrics(curves, data, particles)
        return Start(particles, half_maps, origin, consensus_table(curves), metrics)
    if isinstance(chosen, schemas.ModelConsensus):
        assert data.truth is not None
        density = [read_map(domain.density).data for domain in data.truth.domains.values()]
        model = torch.stack(density).sum(dim=0).to(device, torch.float32)
        half_maps = HalfMaps(model, model, particles.pixel_size)
        curves = consensus_curves(half_maps, automatic_mask(half_maps), seed=config.seed)
        metrics = consensus_metrics(curves, data, particles)
        return Start(particles, half_maps, (0.0, 0.0, 0.0), consensus_table(curves), metrics)

    def make(folder: Path) -> None:
        progress.start(len(particles), "reconstructing the starting maps")
        maps = reconstruct_half_maps(
            particles, particles.rotations, particles.shifts, device=device, advance=progress.advance
        )
        _write_consensus(folder, particles, maps, automatic_mask(maps))

    if isinstance(chosen, schemas.HomogeneousConsensus):
        folder = _refined_consensus(config, chosen, data, store, device, progress)
    else:
        folder = store.get("consensus", CONSENSUS_VERSION, {}, [data.key], make)
    a, b, mask = (read_map(folder / f"{name}.mrc").data.to(device) for name in ("half_a", "half_b", "mask"))
    with np.load(folder / "poses.npz") as poses:
        rotations, shifts = (torch.from_numpy(poses[name]) for name in ("rotations", "shifts"))
    particles = replace(particles, rotations=rotations, shifts=shifts)
    half_maps = HalfMaps(a, b, particles.pixel_size)
    curves = consensus_curves(half_maps, mask, seed=config.seed)
    metrics = consensus_metrics(curves, data, particles)
    return Start(particles, half_maps, (0.0, 0.0, 0.0), consensus_table(curves), metrics)


def _write_consensus(folder: Path, particles: Particles, half_maps: HalfMaps, mask: Tensor) -> None:
    """Maps, mask and poses of a consensus; the poses to the last bit, which a STAR file does not hold."""
    for name, volume in (("half_a", half_maps.half_a), ("half_b", half_maps.half_b), ("mask", mask)):
        write_map(folder / f"{name}.mrc", volume.cpu(), pixel_size=half_maps.pixel_size)
    np.savez(folder / "poses.npz", rotations=particles.rotations.numpy(), shifts=particles.shifts.numpy())


def _refined_consensus(
    config: JobConfig, chosen: schemas.HomogeneousConsensus, data: Data, store: Store,
    device: torch.device, progress: Progress,
) -> Path:  # fmt: skip
    """The stage of a refinement of the whole particles; jobs that agree on it share it."""
    files = [path for path in (chosen.start, chosen.mask_path) if path is not None]
    inputs = [data.key, *(digest_file(Path(path)) for path in files)]
    particles = data.particles
    settings = consensus_settings(chosen, config.seed)

    def make(folder: Path) -> None:
        if chosen.start is not None:
            map = volume_like(chosen.start, particles, device)
            start = HalfMaps(map, map, particles.pixel_size)
        else:
            progress.start(len(particles), "reconstructing the first maps of the consensus")
            start = reconstruct_half_maps(
                particles, particles.rotations, particles.shifts, device=device, advance=progress.advance
            )
        progress.start(len(particles) * (2 + settings.max_iterations), "refining the consensus")
        found = refine_consensus(
            particles, start, mask=_consensus_mask(chosen, particles, device), settings=settings,
            device=device, memory_budget=parse_memory(config.compute.memory_budget), advance=progress.advance,
        )  # fmt: skip
        progress.note(
            f"consensus: {len(found.refinement.records)} iterations, {found.refinement.stop.value}; median "
            f"change {float(found.refinement.rotation_change.median()):.1f}°, "
            f"{float(found.refinement.shift_change.median()):.1f} Å"
        )
        _write_consensus(folder, found.particles, found.half_maps, found.mask)
        iteration_table(found.refinement.records).to_csv(folder / "iterations.csv", index=False)
        write_particles(
            particles, folder / "particles.star",
            rotations=found.particles.rotations, shifts=found.particles.shifts,
        )  # fmt: skip

    # files count by what is in them, not by where they lie
    choices = {name: value for name, value in asdict(chosen).items() if name not in ("start", "mask_path")}
    return store.get("refined_consensus", REFINED_CONSENSUS_VERSION, choices, inputs, make)


def _consensus_mask(
    chosen: schemas.HomogeneousConsensus, particles: Particles, device: torch.device
) -> Tensor | DynamicMask | None:
    if chosen.mask is schemas.ConsensusMask.file:
        assert chosen.mask_path is not None
        return checked_mask(chosen.mask_path, particles, device)
    if chosen.mask is schemas.ConsensusMask.sphere:
        return None
    return DynamicMask(chosen.mask_level, chosen.mask_near, chosen.mask_far, chosen.mask_starts)
