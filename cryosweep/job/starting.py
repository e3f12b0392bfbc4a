"""Where a refinement begins: poses and half-maps of a consensus, given, reconstructed or refined."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cryosweep import config as schemas
from cryosweep.checkpoint import CHECKPOINT, Checkpoint
from cryosweep.config import JobConfig, parse_memory
from cryosweep.consensus import DynamicMask, automatic_mask, consensus_curves, refine_consensus
from cryosweep.io.maps import read_map, write_map
from cryosweep.io.particles import Particles, write_particles
from cryosweep.job.data import Data
from cryosweep.job.files import checked_mask, read_volume, volume_like
from cryosweep.job.memory import MEMORY, budget_of
from cryosweep.job.refining import consensus_settings, iteration_table
from cryosweep.job.scores import consensus_metrics, consensus_table
from cryosweep.job.stages import CONSENSUS_VERSION, REFINED_CONSENSUS_VERSION
from cryosweep.progress import Progress
from cryosweep.reconstruction import HalfMaps, reconstruct_half_maps
from cryosweep.study.resume import code_digest
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
        key: tells poses, images and half-maps from others.
    """

    particles: Particles
    half_maps: HalfMaps
    origin: tuple[float, float, float]
    curves: pd.DataFrame
    metrics: dict[str, float]
    key: str = ""


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
        key = " ".join([data.key, *(digest_file(Path(path)) for path in paths)])
        return Start(particles, half_maps, origin, consensus_table(curves), metrics, key)
    if isinstance(chosen, schemas.ModelConsensus):
        assert data.truth is not None
        density = [read_map(domain.density).data for domain in data.truth.domains.values()]
        model = torch.stack(density).sum(dim=0).to(device, torch.float32)
        half_maps = HalfMaps(model, model, particles.pixel_size)
        curves = consensus_curves(half_maps, automatic_mask(half_maps), seed=config.seed)
        metrics = consensus_metrics(curves, data, particles)
        no_origin = (0.0, 0.0, 0.0)
        return Start(
            particles, half_maps, no_origin, consensus_table(curves), metrics, f"{data.key} model"
        )  # fmt: skip

    def make(folder: Path) -> None:
        progress.start(len(particles), "reconstructing the starting maps")
        maps = reconstruct_half_maps(
            particles, particles.rotations, particles.shifts, device=device, advance=progress.advance
        )
        _write_consensus(folder, particles, maps, automatic_mask(maps), None)

    if isinstance(chosen, schemas.HomogeneousConsensus):
        folder = _refined_consensus(config, chosen, data, store, device, progress)
    else:
        folder = store.get("consensus", CONSENSUS_VERSION, {}, [data.key], make)

    # the curves hold randomised phases, which the seed draws
    rotations, shifts, scale, half_maps, curves, metrics = MEMORY.get(
        ("start", folder.name, data.key, config.seed, str(device)),
        lambda: _read_consensus(folder, config, data, device),
        budget=budget_of(config),
    )
    particles = replace(particles, rotations=rotations, shifts=shifts)
    if scale is not None:
        particles = particles.rescaled(scale)
    return Start(particles, half_maps, (0.0, 0.0, 0.0), curves, dict(metrics), folder.name)


def _read_consensus(
    folder: Path, config: JobConfig, data: Data, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None, HalfMaps, pd.DataFrame, dict[str, float]]:
    """What a stage of the consensus left: poses, scales and half-maps; their curves and metrics."""
    a, b, mask = (read_map(folder / f"{name}.mrc").data.to(device) for name in ("half_a", "half_b", "mask"))
    with np.load(folder / "poses.npz") as poses:
        rotations, shifts = (torch.from_numpy(poses[name]) for name in ("rotations", "shifts"))
        scale = torch.from_numpy(poses["scale"]) if "scale" in poses else None
    half_maps = HalfMaps(a, b, data.particles.pixel_size)
    curves = consensus_curves(half_maps, mask, seed=config.seed)
    metrics = consensus_metrics(curves, data, replace(data.particles, rotations=rotations, shifts=shifts))
    return rotations, shifts, scale, half_maps, consensus_table(curves), metrics


def _write_consensus(
    folder: Path, particles: Particles, half_maps: HalfMaps, mask: Tensor, scale: Tensor | None
) -> None:
    """Maps, mask, poses and scale of a consensus; poses to the last bit, which a STAR file does not hold."""
    for name, volume in (("half_a", half_maps.half_a), ("half_b", half_maps.half_b), ("mask", mask)):
        write_map(folder / f"{name}.mrc", volume.cpu(), pixel_size=half_maps.pixel_size)
    held: dict[str, Any] = {"rotations": particles.rotations.numpy(), "shifts": particles.shifts.numpy()}
    if scale is not None:
        held["scale"] = scale.numpy()
    np.savez(folder / "poses.npz", **held)


def _refined_consensus(
    config: JobConfig, chosen: schemas.HomogeneousConsensus, data: Data, store: Store,
    device: torch.device, progress: Progress,
) -> Path:  # fmt: skip
    """The stage of a refinement of the whole particles; jobs that agree on it share it.

    Stopped, it goes on after its last iteration, as `job.refined` does; code and device are not in the key of
    the stage, so the checkpoint names them.
    """
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
        checkpoint = Checkpoint(folder / CHECKPOINT, f"{code_digest()} {device.type}", "consensus")
        progress.start(len(particles) * (2 + settings.max_iterations), "refining the consensus")
        found = refine_consensus(
            particles, start, mask=_consensus_mask(chosen, particles, device), settings=settings,
            device=device, memory_budget=parse_memory(config.compute.memory_budget), advance=progress.advance,
            resume=checkpoint.read(), on_state=checkpoint.write,
        )  # fmt: skip
        progress.note(
            f"consensus: {len(found.refinement.records)} iterations, {found.refinement.stop.value}; median "
            f"change {float(found.refinement.rotation_change.median()):.1f}°, "
            f"{float(found.refinement.shift_change.median()):.1f} Å"
        )
        _write_consensus(folder, found.particles, found.half_maps, found.mask, found.refinement.scale)
        iteration_table(found.refinement.records).to_csv(folder / "iterations.csv", index=False)
        write_particles(
            found.particles, folder / "particles.star",
            rotations=found.particles.rotations, shifts=found.particles.shifts,
        )  # fmt: skip
        checkpoint.remove()

    # files count by what is in them, not by where they lie
    choices = {name: value for name, value in asdict(chosen).items() if name not in ("start", "mask_path")}
    choices["seed"] = config.seed  # draws poses from their posterior
    return store.get(
        "refined_consensus", REFINED_CONSENSUS_VERSION, choices, inputs, make, resumable=True
    )  # fmt: skip


def _consensus_mask(
    chosen: schemas.HomogeneousConsensus, particles: Particles, device: torch.device
) -> Tensor | DynamicMask | None:
    if chosen.mask is schemas.ConsensusMask.file:
        assert chosen.mask_path is not None
        return checked_mask(chosen.mask_path, particles, device)
    if chosen.mask is schemas.ConsensusMask.sphere:
        return None
    return DynamicMask(chosen.mask_level, chosen.mask_near, chosen.mask_far, chosen.mask_starts)
