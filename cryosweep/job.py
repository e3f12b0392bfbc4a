"""One job: from a checked configuration to refined poses, maps, curves and figures in a run folder."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cryosweep import config as schemas
from cryosweep import diagnostics
from cryosweep.config import JobConfig, parse_length, parse_memory
from cryosweep.fourier import gaussian_filter
from cryosweep.io.maps import SAME_PIXEL_SIZE, Map, read_map, read_mask, write_map
from cryosweep.io.markers import read_marker
from cryosweep.io.particles import Particles, read_particles, write_particles
from cryosweep.mask import centre_of_mass, check_mask, soft_mask, threshold_of
from cryosweep.progress import Progress
from cryosweep.reconstruction import HalfMaps, fsc_weighted, reconstruct_half_maps
from cryosweep.refinement import (
    IterationRecord,
    Refinement,
    RefinementSettings,
    last_common_shell,
    refine,
)
from cryosweep.resolution import FscCurves, crossing
from cryosweep.search import ExtentShape
from cryosweep.selection import nested_subset, random_halves, with_halves
from cryosweep.simulate import DOMAINS, SimulationSettings, Truth, load_ribosome, load_truth, simulate
from cryosweep.study.assessment import (
    OWN_CURVES,
    Ruler,
    Score,
    TruthScore,
    curve_table,
    held_out_log_likelihood,
    jackknife_areas,
    make_ruler,
    masked_fsc,
    score,
    score_against_truth,
    start_summary,
)
from cryosweep.study.store import Store, digest_file
from cryosweep.study.sweep import record_run
from cryosweep.tracking import Tracker

# Raise one when what its stage makes changes: results kept under the old number are then made anew.
SIMULATION_VERSION = 1
CONSENSUS_VERSION = 1
STAGE_VERSIONS = {"simulation": SIMULATION_VERSION, "consensus": CONSENSUS_VERSION}

# A Gaussian of this share of a resolution leaves a tenth of the amplitude there: smooth enough for a mask.
SMOOTHING_PER_LOWPASS = 1.0 / 3.0

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Data:
    """Particles, the truth about them if they are simulated, and the key of both."""

    particles: Particles
    truth: Truth | None
    key: str


@dataclass(frozen=True)
class _Start:
    """Half-maps to begin with and the Å coordinates (x, y, z) of their first voxel."""

    half_maps: HalfMaps
    origin: tuple[float, float, float]


def check_job(config: JobConfig) -> list[str]:
    """What about the files of a job would stop it, one sentence each; reads headers and tables only."""
    found: list[str] = []
    if config.compute.device.startswith("cuda") and not torch.cuda.is_available():
        found.append(
            f"compute.device={config.compute.device}: no CUDA device is visible; "
            "use compute.device=cpu or auto"
        )
    box: tuple[int, float] | None = None
    if isinstance(config.data, schemas.SimulatedData):
        box = config.data.box_size, config.data.pixel_size
    elif isinstance(config.data, schemas.RelionData):
        particles = _attempt(found, lambda data=config.data: _read_relion(data))
        if particles is not None:
            box = particles.box_size, particles.pixel_size
            limit = 2.0 * particles.pixel_size
            if config.refinement.initial_lowpass < limit:
                found.append(
                    f"refinement.initial_lowpass={config.refinement.initial_lowpass:g}: lies beyond Nyquist "
                    f"({limit:g} Å at the pixel size of {config.data.star}); give a coarser resolution"
                )
    for path in _map_files(config):
        volume = _attempt(found, lambda path=path: _read_volume(path))
        if volume is not None and box is not None:
            _attempt(found, lambda volume=volume, path=path, box=box: _check_grid(volume, path, *box))
    fulcrum = config.fulcrum
    if isinstance(fulcrum, schemas.FulcrumMarker) and fulcrum.path is not None:
        _attempt(found, lambda path=fulcrum.path: read_marker(Path(path)))
    return found


def run_job(config: JobConfig, folder: Path, tracker: Tracker, progress: Progress) -> dict[str, float]:
    """Run one local refinement and write everything about it into `folder`.

    Returns:
        The summary: one number for each metric.

    Raises:
        ValueError: an input cannot be used, in words for the user.
    """
    began, cpu_began = time.monotonic(), time.process_time()
    torch.set_num_threads(config.compute.threads)
    device = _device(config.compute.device)
    store = Store(Path(config.output_dir) / "stages")
    data = _load_data(config, store, device, progress)
    particles = data.particles
    start = _starting_maps(config, data, store, device, progress)
    base = _mask_base(config, data, start, device)
    mask = _aligning_mask(config, base, particles, device)
    ruler = _ruler(config, base, particles, device)
    fulcrum = _fulcrum(config, mask, start, particles)
    notes = [*particles.notes, *_mask_notes(config, mask, particles)]
    for note in notes:
        progress.note(note)
    record_run(
        folder, versions=_versions(), device=_device_name(device), notes=notes,
        inputs=_inputs(config, particles),
    )  # fmt: skip

    settings = _settings(config)
    progress.start(len(particles) * (1 + settings.max_iterations), "refining")
    result = refine(
        particles, start.half_maps, mask, fulcrum=fulcrum, settings=settings, device=device,
        memory_budget=parse_memory(config.compute.memory_budget), advance=progress.advance,
        on_iteration=lambda record: tracker.metrics(_iteration_metrics(record), step=record.iteration),
    )  # fmt: skip
    if result.audit is not None and result.audit.finding is not None:
        notes.append(result.audit.finding)
        progress.note(result.audit.finding)
    progress.start(len(particles), "reconstructing")
    half_maps = reconstruct_half_maps(
        particles, result.rotations, result.shifts, device=device, advance=progress.advance
    )
    progress.start(1, "assessing")
    scored = score(half_maps, mask, ruler)
    held_out = held_out_log_likelihood(
        particles, result.rotations, result.shifts, half_maps, ruler, device=device
    )
    left_out = _left_out(config, particles, result, ruler, device, progress)
    start_curve = masked_fsc(start.half_maps, ruler.mask)
    truth, start_truth = _truth_scores(config, data, start, half_maps, result, ruler)
    summary = _summary(scored, start_curve, truth, start_truth, result, ruler, mask, particles)
    summary["score/held_out_likelihood"] = float(held_out.mean())
    summary["seconds"] = time.monotonic() - began
    summary["cpu_seconds"] = time.process_time() - cpu_began

    _write_volumes(folder, half_maps, scored, start, start_curve, mask, ruler)
    curves = curve_table(scored, start_curve, truth, start_truth)
    _write_tables(folder, particles, result, curves, truth, start_truth, held_out, left_out)
    _draw(folder, scored, result, mask, fulcrum, settings, particles.pixel_size)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    record_run(
        folder, stop_reason=result.stop.value, notes=notes, seconds=summary["seconds"],
        cpu_seconds=summary["cpu_seconds"],
    )  # fmt: skip
    _log(tracker, folder, curves)
    return summary


# ---- inputs ----


def _attempt(found: list[str], action: Callable[[], Result]) -> Result | None:
    """The result of `action`; a fault of the user's files goes to `found` instead."""
    try:
        return action()
    except (ValueError, OSError) as error:
        found.append(str(error))
        return None


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _read_relion(data: schemas.RelionData) -> Particles:
    path = Path(data.star)
    if not path.is_file():
        raise ValueError(f"data.star={data.star}: there is no such file")
    return _read_star(
        path.absolute(),
        path.stat().st_mtime_ns,
        data.image_folder,
        data.half_set_seed,
        data.ctf_damping.value,
    )


# The jobs of a sweep are checked one after another and mostly read the same table.
@lru_cache(maxsize=2)
def _read_star(path: Path, modified: int, image_folder: str | None, seed: int, damping: str) -> Particles:
    del modified
    folder = None if image_folder is None else Path(image_folder)
    return read_particles(path, image_folder=folder, half_set_seed=seed, ctf_damping=damping)  # pyright: ignore[reportArgumentType]


def _load_data(config: JobConfig, store: Store, device: torch.device, progress: Progress) -> _Data:
    if isinstance(config.data, schemas.RelionData):
        particles = _read_relion(config.data)
        stacks = "".join(_file_state(stack) for stack in particles.stacks)
        chosen = f"{config.data.half_set_seed} {config.data.ctf_damping}"
        key = f"{digest_file(Path(config.data.star))} {stacks} {chosen}"
        return _select(_Data(particles, None, key), config.data)
    assert isinstance(config.data, schemas.SimulatedData)
    settings = _simulation_settings(config.data)

    def make(folder: Path) -> None:
        progress.start(settings.particles, "simulating")
        simulate(settings, folder, device=device, advance=progress.advance)

    folder = store.get("simulation", SIMULATION_VERSION, asdict(settings), [], make)
    data = _Data(read_particles(folder / "particles.star"), load_truth(folder), folder.name)
    return _select(data, config.data)


def _select(data: _Data, chosen: schemas.DataConfig) -> _Data:
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
    return _Data(particles, truth, " ".join([data.key, *told]))


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
        defocus_min=data.defocus_min,
        defocus_max=data.defocus_max,
        voltage=data.voltage,
        spherical_aberration=data.spherical_aberration,
        amplitude_contrast=data.amplitude_contrast,
        seed=data.simulation_seed,
    )


def _file_state(path: Path) -> str:
    """Size and time of a file too large to be hashed for every job."""
    state = path.stat()
    return f"{state.st_size} bytes, modified {state.st_mtime_ns}"


def _map_files(config: JobConfig) -> list[str]:
    """Every map that the configuration names."""
    chosen = (config.consensus, config.mask_base, config.mask, config.scoring)
    names = ("half_a", "half_b", "path")
    return [getattr(group, name) for group in chosen for name in names if hasattr(group, name)]


def _read_volume(path: str) -> Map:
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such map")
    return read_map(Path(path))


def _check_grid(volume: Map, path: str, box_size: int, pixel_size: float) -> None:
    """Refuse a map that does not lie on the grid of the particles."""
    size = int(volume.data.shape[-1])
    if size != box_size:
        raise ValueError(
            f"{path}: the map's box is {size} px, that of the particles {box_size} px; resample the map first"
        )
    if abs(volume.pixel_size / pixel_size - 1.0) > SAME_PIXEL_SIZE:
        raise ValueError(
            f"{path}: the map's pixel size is {volume.pixel_size:g} Å, that of the particles "
            f"{pixel_size:g} Å; correct the header or resample the map"
        )


def _volume_like(path: str, particles: Particles, device: torch.device) -> Tensor:
    volume = _read_volume(path)
    _check_grid(volume, path, particles.box_size, particles.pixel_size)
    return volume.data.to(device)


def _starting_maps(
    config: JobConfig, data: _Data, store: Store, device: torch.device, progress: Progress
) -> _Start:
    particles = data.particles
    if isinstance(config.consensus, schemas.ConsensusFiles):
        paths = (config.consensus.half_a, config.consensus.half_b)
        halves = [_volume_like(path, particles, device) for path in paths]
        return _Start(HalfMaps(halves[0], halves[1], particles.pixel_size), _read_volume(paths[0]).origin)

    def make(folder: Path) -> None:
        progress.start(len(particles), "reconstructing the starting maps")
        maps = reconstruct_half_maps(
            particles, particles.rotations, particles.shifts, device=device, advance=progress.advance
        )
        for name, half in zip(("half_a", "half_b"), maps.pair, strict=True):
            write_map(folder / f"{name}.mrc", half.cpu(), pixel_size=particles.pixel_size)

    folder = store.get("consensus", CONSENSUS_VERSION, {}, [data.key], make)
    a, b = (read_map(folder / f"{name}.mrc").data.to(device) for name in ("half_a", "half_b"))
    return _Start(HalfMaps(a, b, particles.pixel_size), (0.0, 0.0, 0.0))


# ---- masks and fulcrum ----


def _mask_base(config: JobConfig, data: _Data, start: _Start, device: torch.device) -> Tensor | None:
    """The map that masks are cut from, or None where both masks are files."""
    base = config.mask_base
    if isinstance(config.mask, schemas.MaskFile) and isinstance(config.scoring, schemas.ScoringFile):
        return None
    if isinstance(base, schemas.FileBase):
        volume = _volume_like(base.path, data.particles, device)
    else:
        volume = 0.5 * (start.half_maps.half_a + start.half_maps.half_b)
    smoothing = base.smoothing
    if smoothing is None:
        smoothing = SMOOTHING_PER_LOWPASS * config.refinement.initial_lowpass
    if smoothing > 0:
        volume = gaussian_filter(volume, sigma=smoothing, pixel_size=data.particles.pixel_size)
    if isinstance(base, schemas.DomainBase):
        if data.truth is None:
            raise ValueError("mask_base=domain: only simulated data have labelled domains")
        # only the territory comes from the model, as from a segmentation: the density is that of the data
        volume = volume * (data.truth.labels == 1 + DOMAINS.index(base.name)).to(device)
    return volume


def _cut(base: Tensor, made: schemas.SoftMask | schemas.SoftScoring, group: str, pixel_size: float) -> Tensor:
    """A soft mask of `base` as a group of the configuration describes it."""
    try:
        return soft_mask(
            base,
            threshold=threshold_of(base, made.threshold, unit=made.threshold_unit.value),  # pyright: ignore[reportArgumentType]
            dilation_radius_px=parse_length(made.dilation_radius, pixel_size) / pixel_size,
            soft_padding_width_px=parse_length(made.soft_padding_width, pixel_size) / pixel_size,
        )
    except ValueError as error:
        raise ValueError(f"{group}: {error}") from error


def _aligning_mask(
    config: JobConfig, base: Tensor | None, particles: Particles, device: torch.device
) -> Tensor:
    if isinstance(config.mask, schemas.MaskFile):
        return _checked_mask(config.mask.path, particles, device)
    assert isinstance(config.mask, schemas.SoftMask)
    assert base is not None
    return _cut(base, config.mask, "mask", particles.pixel_size)


def _ruler(config: JobConfig, base: Tensor | None, particles: Particles, device: torch.device) -> Ruler:
    scoring = config.scoring
    if isinstance(scoring, schemas.ScoringFile):
        mask = _checked_mask(scoring.path, particles, device)
    else:
        assert isinstance(scoring, schemas.SoftScoring)
        assert base is not None
        mask = _cut(base, scoring, "scoring", particles.pixel_size)
    return make_ruler(
        mask,
        pixel_size=particles.pixel_size,
        band_low=scoring.band_low,
        band_high=scoring.band_high,
        randomisations=scoring.randomisations,
        seed=config.seed,
    )


def _checked_mask(path: str, particles: Particles, device: torch.device) -> Tensor:
    _volume_like(path, particles, device)
    return read_mask(Path(path)).data.to(device)


def _mask_notes(config: JobConfig, mask: Tensor, particles: Particles) -> tuple[str, ...]:
    if not isinstance(config.mask, schemas.SoftMask):
        return ()
    return check_mask(
        mask, pixel_size=particles.pixel_size, resolution=config.refinement.initial_lowpass,
        soft_padding_width=parse_length(config.mask.soft_padding_width, particles.pixel_size),
    )  # fmt: skip


def _fulcrum(config: JobConfig, mask: Tensor, start: _Start, particles: Particles) -> Tensor:
    """(3,) Å from the box centre.

    Raises:
        ValueError: it lies outside the box.
    """
    chosen = config.fulcrum
    pixel_size, half = particles.pixel_size, particles.box_size // 2
    if isinstance(chosen, schemas.MaskCentre):
        return centre_of_mass(mask).double().cpu() * pixel_size
    if isinstance(chosen, schemas.BoxCentre):
        return torch.zeros(3, dtype=torch.float64)
    if isinstance(chosen, schemas.DomainHinge):
        assert isinstance(config.mask_base, schemas.DomainBase)
        return load_ribosome().hinges[config.mask_base.name]
    if isinstance(chosen, schemas.FulcrumPx):
        given = f"fulcrum.position={list(chosen.position)} px"
        point = (torch.tensor(chosen.position, dtype=torch.float64) - half) * pixel_size
    else:
        assert isinstance(chosen, schemas.FulcrumMarker)
        position = read_marker(Path(chosen.path)) if chosen.path is not None else chosen.position
        assert position is not None
        given = f"the fulcrum marker at {tuple(round(x, 2) for x in position)} Å"
        origin = torch.tensor(start.origin, dtype=torch.float64)
        point = torch.tensor(position, dtype=torch.float64) - origin - half * pixel_size
    reach = particles.box_size * pixel_size / 2.0
    if bool((point.abs() > reach).any()):
        raise ValueError(
            f"{given} lies outside the box of {particles.box_size} px ({2 * reach:g} Å); "
            "check the unit (px or Å) and the origin of the map it was read from"
        )
    return point


# ---- refinement and scores ----


def _settings(config: JobConfig) -> RefinementSettings:
    search, loop = config.search, config.refinement
    return RefinementSettings(
        rotation_extent=search.rotation_extent,
        shift_extent=search.shift_extent,
        extent_shape=ExtentShape(search.extent_shape.value),
        rotation_prior=search.rotation_prior,
        shift_prior=search.shift_prior,
        recentre=search.recentre,
        audit=search.audit,
        seed=config.seed,
        max_iterations=loop.max_iterations,
        initial_lowpass=loop.initial_lowpass,
        max_resolution=loop.max_resolution,
        regularise=loop.regularisation is schemas.Regularisation.wiener,
        correct_for_mask=loop.band_from is schemas.BandFrom.corrected,
    )


def _iteration_metrics(record: IterationRecord) -> dict[str, float]:
    values = asdict(record)
    return {f"iteration/{name}": values[name] for name in _ITERATION_COLUMNS if name != "iteration"}


_ITERATION_COLUMNS = (
    "iteration", "band", "resolution", "resolution_corrected", "rotation_change_median",
    "shift_change_median", "moved_median", "at_rotation_extent", "at_shift_extent", "log_posterior",
    "seconds",
)  # fmt: skip


def _audit_metrics(result: Refinement) -> dict[str, float]:
    """What the exhaustive search of some particles showed, where there was one."""
    if result.audit is None:
        return {}
    return {f"search/{name}": float(value) for name, value in asdict(result.audit).items()}


def _truth_scores(
    config: JobConfig, data: _Data, start: _Start, half_maps: HalfMaps, result: Refinement, ruler: Ruler
) -> tuple[TruthScore | None, TruthScore | None]:
    """Refined and starting maps and poses against the truth, where there is one for the domain."""
    if data.truth is None or not isinstance(config.mask_base, schemas.DomainBase):
        return None, None
    name = config.mask_base.name
    domain, truth = load_ribosome().domains[name], data.truth.domains[name]
    particles = data.particles
    return (
        score_against_truth(
            half_maps, result.rotations, result.shifts, domain=domain, truth=truth, ruler=ruler
        ),
        score_against_truth(
            start.half_maps, particles.rotations, particles.shifts, domain=domain, truth=truth, ruler=ruler
        ),
    )


def _left_out(
    config: JobConfig, particles: Particles, result: Refinement, ruler: Ruler, device: torch.device,
    progress: Progress,
) -> Tensor | None:  # fmt: skip
    """FSC areas with each block of particles left out, where they were asked for."""
    blocks = config.scoring.jackknife
    if blocks == 0:
        return None
    progress.start(2 * len(particles), "leaving particles out")
    return jackknife_areas(
        particles, result.rotations, result.shifts, ruler, blocks=blocks, device=device,
        advance=progress.advance,
    )  # fmt: skip


def _summary(
    scored: Score, start_curve: Tensor, truth: TruthScore | None, start_truth: TruthScore | None,
    result: Refinement, ruler: Ruler, mask: Tensor, particles: Particles,
) -> dict[str, float]:  # fmt: skip
    pixel_size = particles.pixel_size
    box_size = particles.box_size
    last = result.records[-1]
    summary = scored.summary(ruler)
    summary |= start_summary(start_curve, ruler, box_size=box_size, pixel_size=pixel_size)
    summary |= {
        "pose/rotation_change_median": float(result.rotation_change.median()),
        "pose/shift_change_median": float(result.shift_change.median()),
        "pose/rotation_sd_median": float(result.rotation_sd.median()),
        "pose/shift_sd_median": float(result.shift_sd.median()),
        "pose/at_rotation_extent": last.at_rotation_extent,
        "pose/at_shift_extent": last.at_shift_extent,
        **_audit_metrics(result),
        "mask/volume": float(mask.double().sum()) * pixel_size**3,
        "iterations": float(len(result.records)),
    }
    if truth is not None and start_truth is not None:
        refined = truth.summary(ruler, box_size=box_size, pixel_size=pixel_size)
        summary |= {f"truth/{name}": value for name, value in refined.items()}
        begun = start_truth.summary(ruler, box_size=box_size, pixel_size=pixel_size)
        for name, value in begun.items():
            poses = name.startswith(("rotation", "shift"))
            summary[f"start/{name}" if poses else f"start/truth_{name}"] = value
    return summary


# ---- the run folder ----


def _write_volumes(
    folder: Path, half_maps: HalfMaps, scored: Score, start: _Start, start_curve: Tensor, mask: Tensor,
    ruler: Ruler,
) -> None:  # fmt: skip
    own = scored.own.corrected
    volumes = {
        "half_a": half_maps.half_a,
        "half_b": half_maps.half_b,
        "map": fsc_weighted(half_maps, own, last_shell=last_common_shell(own)),
        "start_map": fsc_weighted(start.half_maps, start_curve, last_shell=last_common_shell(start_curve)),
        "mask": mask,
        "scoring_mask": ruler.mask,
    }
    for name, volume in volumes.items():
        write_map(folder / f"{name}.mrc", volume.cpu(), pixel_size=half_maps.pixel_size, origin=start.origin)


def _write_tables(
    folder: Path, particles: Particles, result: Refinement, curves: pd.DataFrame,
    truth: TruthScore | None, start_truth: TruthScore | None, held_out: Tensor, left_out: Tensor | None,
) -> None:  # fmt: skip
    if left_out is not None:
        blocks = pd.DataFrame({"block": range(len(left_out)), "fsc_area": left_out.numpy()})
        blocks.to_csv(folder / "jackknife.csv", index=False, float_format="%.7f")
    curves.to_csv(folder / "fsc.csv", index=False, float_format="%.6f")
    records = [asdict(record) for record in result.records]
    pd.DataFrame(records)[list(_ITERATION_COLUMNS)].to_csv(folder / "iterations.csv", index=False)
    columns: dict[str, Tensor] = {
        "rotation_change": result.rotation_change,
        "shift_change": result.shift_change,
        "rotation_sd": result.rotation_sd,
        "shift_sd": result.shift_sd,
        "half_set": particles.half_sets,
        "held_out_likelihood": held_out,
    }
    for prefix, known in (("", truth), ("start_", start_truth)):
        if known is not None:
            columns[f"{prefix}rotation_error"] = known.rotation_error
            columns[f"{prefix}shift_error"] = known.shift_error
    poses = pd.DataFrame({name: np.asarray(column.cpu()) for name, column in columns.items()})
    poses.to_csv(folder / "poses.csv", index=False, float_format="%.4f")
    precision = {"cryosweepRotationSd": result.rotation_sd, "cryosweepShiftSdAngst": result.shift_sd}
    write_particles(
        particles, folder / "particles.star", rotations=result.rotations, shifts=result.shifts,
        extra={label: values.numpy().round(4) for label, values in precision.items()},
    )  # fmt: skip


def _draw(
    folder: Path, scored: Score, result: Refinement, mask: Tensor, fulcrum: Tensor,
    settings: RefinementSettings, pixel_size: float,
) -> None:  # fmt: skip
    """Figures from what was written: each has its numbers beside it."""
    volume = read_map(folder / "map.mrc").data.numpy()
    soft, point = mask.cpu().numpy(), [float(x) for x in fulcrum]
    own, last = scored.own, result.records[-1]
    summary = {name: getattr(own, name).cpu().numpy() for name in (*OWN_CURVES, "randomised")}
    figures = {
        "slices": diagnostics.slices_figure(
            volume, pixel_size=pixel_size, fulcrum=point, mask=soft, title="refined map"
        ),
        "fourier_slices": diagnostics.fourier_slices_figure(volume, pixel_size),
        "mask": diagnostics.mask_figure(soft, volume, pixel_size, point),
        "gsfsc": diagnostics.gsfsc_figure(
            summary,
            frequency=own.frequency.cpu().numpy(),
            pixel_size=pixel_size,
            crossings=_crossings(own),
            randomised_from=own.randomised_from,
            title="half-map FSC under the aligning mask",
        ),
        "pose_changes": diagnostics.pose_changes_figure(
            result.rotation_change.cpu().numpy(),
            result.shift_change.cpu().numpy(),
            rotation_extent=settings.rotation_extent,
            shift_extent=settings.shift_extent,
            at_rotation_extent=last.at_rotation_extent,
            at_shift_extent=last.at_shift_extent,
        ),
    }
    (folder / "figures").mkdir(exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / "figures" / f"{name}.png", dpi=110)


def _crossings(curves: FscCurves) -> dict[str, float]:
    """Resolution (Å) at 0.143 of each curve that claims one."""
    return {
        name: crossing(getattr(curves, name), 0.143, box_size=curves.box_size, pixel_size=curves.pixel_size)
        for name in OWN_CURVES
    }


def _log(tracker: Tracker, folder: Path, curves: pd.DataFrame) -> None:
    """Hand the run folder to the tracker: curves as numbers, files as they are."""
    tracker.table("fsc", {str(name): column.tolist() for name, column in curves.items()})
    for name in curves.columns.drop(["shell", "frequency"]):
        tracker.curve(str(name), curves[name].tolist())
    for path in sorted(folder.iterdir()):
        if path.suffix in (".mrc", ".star", ".csv") or path.name in ("summary.json", "run.json"):
            tracker.artifact(path)
    for path in sorted((folder / "figures").iterdir()):
        tracker.artifact(path, folder="figures")


def _versions() -> dict[str, str]:
    packages = ("cryosweep", "torch", "numpy", "mlflow", "hydra-core")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def inputs_of(config: JobConfig) -> dict[str, str]:
    """Digest of every input file of a job; simulated particles are what the configuration says.

    Raises:
        ValueError: the particles cannot be read.
    """
    fulcrum = config.fulcrum
    named = [
        *_map_files(config),
        *([fulcrum.path] if isinstance(fulcrum, schemas.FulcrumMarker) and fulcrum.path else []),
    ]
    found = {path: digest_file(Path(path)) for path in named}
    if isinstance(config.data, schemas.RelionData):
        found[config.data.star] = digest_file(Path(config.data.star))
        found |= {str(stack): _file_state(stack) for stack in _read_relion(config.data).stacks}
    return found


def _inputs(config: JobConfig, particles: Particles) -> dict[str, str]:
    """What was read, with a digest; stacks are told by size and time because hashing them takes minutes."""
    named = [particles.path, *(Path(path) for path in _map_files(config))]
    found = {str(path): digest_file(path) for path in named}
    return found | {str(stack): _file_state(stack) for stack in particles.stacks}
