"""One job: from a checked configuration to refined poses, maps, curves and figures in a run folder."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cryosweep import config as schemas
from cryosweep import diagnostics, rules
from cryosweep.config import JobConfig, parse_length, parse_memory
from cryosweep.consensus import DynamicMask, automatic_mask, consensus_curves, refine_consensus
from cryosweep.fourier import gaussian_filter
from cryosweep.fulcrum import contact_radius, interface
from cryosweep.io.maps import SAME_PIXEL_SIZE, Map, read_map, read_mask, write_map
from cryosweep.io.markers import read_marker, read_markers, write_marker
from cryosweep.io.particles import Particles, read_particles, write_particles
from cryosweep.io.segger import on_grid_of, read_segger
from cryosweep.local_resolution import (
    MIN_WIDTH_PX,
    WIDTH_PER_RESOLUTION,
    filter_locally,
    local_resolution,
)
from cryosweep.mask import centre_of_mass, soft_mask, threshold_of
from cryosweep.progress import Progress
from cryosweep.reconstruction import HalfMaps, fsc_weighted, reconstruct_half_maps
from cryosweep.refinement import (
    IterationRecord,
    Refinement,
    RefinementSettings,
    last_common_shell,
    refine,
)
from cryosweep.regularisation import Regularisation
from cryosweep.resolution import FscCurves, crossing
from cryosweep.search import ExtentShape
from cryosweep.segmentation import (
    Segmentation,
    everything_else,
    largest,
    level_of,
    mostly_inside,
    segment,
    territory,
    touching,
)
from cryosweep.selection import nested_subset, random_halves, with_halves
from cryosweep.sharpening import apply_b_factor, sharpen
from cryosweep.simulate import (
    DOMAINS,
    SimulationSettings,
    Truth,
    align_frames,
    load_ribosome,
    load_truth,
    pose_errors,
    simulate,
)
from cryosweep.study.assessment import (
    OWN_CURVES,
    Ruler,
    Score,
    TruthScore,
    curve_table,
    guinier_table,
    held_out_log_likelihood,
    jackknife_areas,
    make_ruler,
    masked_fsc,
    score,
    score_against_truth,
    start_summary,
)
from cryosweep.study.findings import FINDINGS_FILE, FINDINGS_TEXT, tags_of, write_findings
from cryosweep.study.review import MaskOrigin, Review, review_result, review_setup
from cryosweep.study.store import Store, digest_file
from cryosweep.study.sweep import record_run
from cryosweep.subtraction import Rest, check_half_maps, rest_of, share_left, share_removed, subtracted
from cryosweep.tracking import Tracker

# Raise one when what its stage makes changes: results kept under the old number are then made anew.
SIMULATION_VERSION = 1
CONSENSUS_VERSION = 2
REFINED_CONSENSUS_VERSION = 2
STAGE_VERSIONS = {
    "simulation": SIMULATION_VERSION,
    "consensus": CONSENSUS_VERSION,
    "refined_consensus": REFINED_CONSENSUS_VERSION,
}

# A Gaussian of this share of a resolution leaves a tenth of the amplitude there: smooth enough for a mask.
SMOOTHING_PER_LOWPASS = 1.0 / 3.0

# Files of a run folder, besides maps and tables, that go to the tracking store.
KEPT = ("summary.json", "run.json", FINDINGS_FILE, FINDINGS_TEXT)

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Data:
    """Particles, the truth about them if they are simulated, and the key of both."""

    particles: Particles
    truth: Truth | None
    key: str


@dataclass(frozen=True)
class _Start:
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


@dataclass(frozen=True)
class _Images:
    """What is refined: particles whose images lack the rest, and half-maps of them at the starting poses.

    `shadow` is the share of the removed density that is still in those maps.
    """

    particles: Particles
    half_maps: HalfMaps
    rest: Rest | None
    shadow: float


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
            found += _bands_beyond_nyquist(config, 2.0 * particles.pixel_size)
    for path in _map_files(config):
        volume = _attempt(found, lambda path=path: _read_volume(path))
        if volume is not None and box is not None:
            _attempt(found, lambda volume=volume, path=path, box=box: _check_grid(volume, path, *box))
        if volume is not None and path in _mask_files(config):
            wrong = rules.mask_values(float(volume.data.min()), float(volume.data.max()))
            found += [] if wrong is None else [f"{path}: {wrong}"]
    base = config.mask_base
    if isinstance(base, schemas.RegionsBase):
        if base.marker is not None:
            _attempt(found, lambda path=base.marker: read_markers(_existing(path)))
        if base.segger is not None:
            _attempt(found, lambda path=base.segger: _check_segger(path, config, box))
    window = config.postprocessing.local_resolution_window
    if window is not None and box is not None and window < MIN_WIDTH_PX * box[1]:
        found.append(
            f"postprocessing.local_resolution_window={window:g}: too narrow for an FSC at {box[1]:g} Å per "
            f"px; give {MIN_WIDTH_PX * box[1]:g} Å or more"
        )
    fulcrum = config.fulcrum
    if isinstance(fulcrum, schemas.FulcrumMarker) and fulcrum.path is not None:
        _attempt(found, lambda path=fulcrum.path: read_marker(Path(path)))
    if isinstance(fulcrum, schemas.Interface) and isinstance(config.mask, schemas.MaskFile):
        for path in fulcrum.parts:  # a finished mask gives no threshold to cut maps at
            if Path(path).is_file():
                _attempt(found, lambda path=path: read_mask(Path(path)))
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
    start = _starting_maps(config, data, store, device, progress)
    particles = start.particles
    base = _mask_base(config, data, start, device)
    mask = _aligning_mask(config, base, particles, device)
    ruler = _ruler(config, base, particles, device)
    settings = _settings(config)
    notes = list(particles.notes)
    if isinstance(config.fulcrum, schemas.Interface):
        fulcrum, note = _interface(config, config.fulcrum, data, start, base, mask, device)
        notes.append(note)
    else:
        fulcrum = _fulcrum(config, mask, start, particles)
    _write_fulcrum(folder, fulcrum, start, particles)
    images = _images(config, data, start, base, device, progress)
    if images.rest is not None and isinstance(config.consensus, schemas.ConsensusFiles):
        notes.extend(check_half_maps(particles, start.half_maps, device=device))
    removal = _subtraction_findings(config, particles, images)
    made = _mask_origin(config, base, mask, particles.pixel_size)
    smooth_start = _smoothed_consensus(config, data, start)
    setup = review_setup(
        mask, smooth_start, particles, fulcrum=fulcrum, settings=settings, made=made,
        resolution=config.refinement.initial_lowpass,
    )  # fmt: skip
    notes.extend(map(str, rules.worst_first((*setup, *removal))))
    for note in notes:
        progress.note(note)
    record_run(
        folder, versions=_versions(), device=_device_name(device), notes=notes,
        inputs=_inputs(config, particles),
    )  # fmt: skip

    progress.start(len(particles) * (1 + settings.max_iterations), "refining")
    result = refine(
        images.particles, images.half_maps, mask, fulcrum=fulcrum, settings=settings, device=device,
        memory_budget=parse_memory(config.compute.memory_budget), advance=progress.advance,
        on_iteration=lambda record: tracker.metrics(_iteration_metrics(record), step=record.iteration),
    )  # fmt: skip
    progress.start(len(particles), "reconstructing")
    half_maps = reconstruct_half_maps(
        images.particles, result.rotations, result.shifts, device=device, advance=progress.advance
    )
    progress.start(1, "assessing")
    scored = score(half_maps, mask, ruler)
    held_out = held_out_log_likelihood(
        images.particles, result.rotations, result.shifts, half_maps, ruler, device=device
    )
    left_out = _left_out(config, images.particles, result, ruler, device, progress)
    start_curve = masked_fsc(start.half_maps, ruler.mask)
    truth, start_truth = _truth_scores(config, data, start, half_maps, result, ruler)
    summary = _summary(scored, start_curve, truth, start_truth, result, ruler, mask, particles)
    summary["score/held_out_likelihood"] = float(held_out.mean())
    summary |= start.metrics
    summary |= _subtraction_metrics(images, particles, half_maps, result, ruler, device, progress)
    review = review_result(
        scored, half_maps, mask, particles, result, fulcrum=fulcrum, settings=settings, made=made
    )  # fmt: skip
    # the set-up again, now that the resolution is known
    setup = review_setup(
        mask, smooth_start, particles, fulcrum=fulcrum, settings=settings, made=made,
        resolution=summary["resolution/own_corrected_0143"],
    )  # fmt: skip
    metrics, about_maps = _postprocess(config.postprocessing, folder, half_maps, scored, mask, start)
    findings = rules.worst_first((*setup, *removal, *review.findings, *about_maps))
    notes.extend(map(str, rules.worst_first((*review.findings, *about_maps))))
    summary |= review.metrics | metrics
    summary["seconds"] = time.monotonic() - began
    summary["cpu_seconds"] = time.process_time() - cpu_began

    _write_volumes(folder, half_maps, scored, start, start_curve, mask, ruler, images.rest)
    curves = curve_table(scored, start_curve, truth, start_truth)
    _write_tables(folder, particles, result, review, curves, truth, start_truth, held_out, left_out)
    start.curves.to_csv(folder / "consensus_fsc.csv", index=False, float_format="%.6f")
    _draw(folder, scored, result, mask, fulcrum, settings, particles.pixel_size)
    _draw_statistics(folder, particles, result, review, settings)
    write_findings(folder, findings)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    record_run(
        folder, stop_reason=result.stop.value, notes=notes, seconds=summary["seconds"],
        cpu_seconds=summary["cpu_seconds"],
    )  # fmt: skip
    tracker.tags(tags_of(findings))
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
    chosen = (config.consensus, config.mask_base, config.mask, config.scoring, config.subtraction)
    names = ("half_a", "half_b", "path", "label", "start", "mask_path")
    found = [getattr(group, name, None) for group in chosen for name in names]
    return [*(path for path in found if path is not None), *getattr(config.fulcrum, "parts", ())]


def _mask_files(config: JobConfig) -> list[str]:
    """Those of them that are finished masks."""
    return [
        group.path
        for group in (config.mask, config.scoring)
        if isinstance(group, schemas.MaskFile | schemas.ScoringFile)
    ]


def _bands_beyond_nyquist(config: JobConfig, nyquist: float) -> list[str]:
    """Resolutions finer than the images of a STAR file can show; those of simulated data are told earlier."""
    loop, scoring = config.refinement, config.scoring
    asked = {
        "refinement.initial_lowpass": loop.initial_lowpass, "refinement.max_resolution": loop.max_resolution,
        "scoring.band_low": scoring.band_low, "scoring.band_high": scoring.band_high,
    }  # fmt: skip
    if isinstance(config.consensus, schemas.HomogeneousConsensus):
        asked["consensus.initial_lowpass"] = config.consensus.initial_lowpass
        asked["consensus.max_resolution"] = config.consensus.max_resolution
    found = (
        rules.band_beyond_nyquist(value, nyquist=nyquist, key=key)
        for key, value in asked.items()
        if value is not None
    )
    return [str(each) for each in found if each is not None]


def _read_volume(path: str) -> Map:
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such map")
    return read_map(Path(path))


def _existing(path: str) -> Path:
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such file")
    return Path(path)


def _check_segger(path: str, config: JobConfig, box: tuple[int, float] | None) -> None:
    """Refuse a Segger file whose regions do not lie on the map that they are to cut."""
    file = read_segger(_existing(path))
    named = getattr(config.mask_base, "path", None) or getattr(config.consensus, "half_a", None)
    if named is not None:
        if Path(named).is_file():  # if not, that is said already
            on_grid_of(file, read_map(Path(named)))
    elif box is not None:
        size, pixel_size = box
        on_grid_of(file, Map(torch.zeros(()).expand(size, size, size), pixel_size, (0.0, 0.0, 0.0)))


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
    """Poses and half-maps of the consensus, its curves, and its errors where the truth is known."""
    particles, chosen = data.particles, config.consensus
    if isinstance(chosen, schemas.ConsensusFiles):
        paths = (chosen.half_a, chosen.half_b)
        a, b = (_volume_like(path, particles, device) for path in paths)
        half_maps = HalfMaps(a, b, particles.pixel_size)
        curves = consensus_curves(half_maps, automatic_mask(half_maps), seed=config.seed)
        origin = _read_volume(paths[0]).origin
        metrics = _consensus_metrics(curves, data, particles)
        return _Start(particles, half_maps, origin, _consensus_table(curves), metrics)

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
    metrics = _consensus_metrics(curves, data, particles)
    return _Start(particles, half_maps, (0.0, 0.0, 0.0), _consensus_table(curves), metrics)


def _write_consensus(folder: Path, particles: Particles, half_maps: HalfMaps, mask: Tensor) -> None:
    """Maps, mask and poses of a consensus; the poses to the last bit, which a STAR file does not hold."""
    for name, volume in (("half_a", half_maps.half_a), ("half_b", half_maps.half_b), ("mask", mask)):
        write_map(folder / f"{name}.mrc", volume.cpu(), pixel_size=half_maps.pixel_size)
    np.savez(folder / "poses.npz", rotations=particles.rotations.numpy(), shifts=particles.shifts.numpy())


def _refined_consensus(
    config: JobConfig, chosen: schemas.HomogeneousConsensus, data: _Data, store: Store,
    device: torch.device, progress: Progress,
) -> Path:  # fmt: skip
    """The stage of a refinement of the whole particles; jobs that agree on it share it."""
    files = [path for path in (chosen.start, chosen.mask_path) if path is not None]
    inputs = [data.key, *(digest_file(Path(path)) for path in files)]
    particles = data.particles
    settings = RefinementSettings(
        rotation_extent=chosen.rotation_extent,
        shift_extent=chosen.shift_extent,
        rotation_prior=chosen.rotation_prior,
        shift_prior=chosen.shift_prior,
        max_iterations=chosen.max_iterations,
        initial_lowpass=chosen.initial_lowpass,
        max_resolution=chosen.max_resolution,
        regularisation=Regularisation.nonuniform if chosen.kind == "nonuniform" else Regularisation.wiener,
        seed=config.seed,
    )

    def make(folder: Path) -> None:
        if chosen.start is not None:
            map = _volume_like(chosen.start, particles, device)
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
        records = [asdict(record) for record in found.refinement.records]
        pd.DataFrame(records)[list(_ITERATION_COLUMNS)].to_csv(folder / "iterations.csv", index=False)
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
        return _checked_mask(chosen.mask_path, particles, device)
    if chosen.mask is schemas.ConsensusMask.sphere:
        return None
    return DynamicMask(chosen.mask_level, chosen.mask_near, chosen.mask_far, chosen.mask_starts)


def _consensus_table(curves: FscCurves) -> pd.DataFrame:
    """The five curves and the randomised one, one row a shell."""
    names = ("frequency", *OWN_CURVES[:-1], "randomised", "corrected")
    table = pd.DataFrame({name: getattr(curves, name).cpu().numpy() for name in names})
    table.insert(0, "shell", np.arange(len(table)))
    return table


def _consensus_metrics(curves: FscCurves, data: _Data, particles: Particles) -> dict[str, float]:
    """Resolution (Å) of the whole at 0.143 under each mask, and the errors of the body's poses if known."""
    found = {f"consensus/{name}_0143": value for name, value in _crossings(curves).items()}
    if data.truth is not None:
        point, truth = load_ribosome().domains["body"].centre_of_mass, data.truth.domains["body"].poses
        for prefix, given in (("body", particles), ("body_file", data.particles)):
            poses = given.rotations, given.shifts, truth.rotations, truth.shifts
            rotation, shift = pose_errors(*poses, frame=align_frames(*poses, point=point), point=point)
            found[f"consensus/{prefix}_rotation_error_median"] = float(rotation.median())
            found[f"consensus/{prefix}_shift_error_median"] = float(shift.median())
    return found


# ---- masks and fulcrum ----


def _mask_base(config: JobConfig, data: _Data, start: _Start, device: torch.device) -> Tensor | None:
    """The map that masks are cut from, or None where both masks are files."""
    base = config.mask_base
    if isinstance(config.mask, schemas.MaskFile) and isinstance(config.scoring, schemas.ScoringFile):
        return None
    path = base.path if isinstance(base, schemas.FileBase | schemas.RegionsBase) else None
    if path is not None:
        volume = _smoothed(config, _volume_like(path, data.particles, device), data.particles)
    else:
        volume = _smoothed_consensus(config, data, start)
    if isinstance(base, schemas.DomainBase):
        if data.truth is None:
            raise ValueError("mask_base=domain: only simulated data have labelled domains")
        # only the territory comes from the model, as from a segmentation: the density is that of the data
        volume = volume * (data.truth.labels == 1 + DOMAINS.index(base.name)).to(device)
    if isinstance(base, schemas.RegionsBase):
        origin = start.origin if path is None else _read_volume(path).origin
        volume = volume * _territory(base, Map(volume, data.particles.pixel_size, origin))
    return volume


def _smoothing(config: JobConfig) -> float:
    """Å, sigma of the Gaussian over the mask base."""
    given = config.mask_base.smoothing
    return SMOOTHING_PER_LOWPASS * config.refinement.initial_lowpass if given is None else given


def _smoothed(config: JobConfig, volume: Tensor, particles: Particles) -> Tensor:
    """`volume` as it is smoothed before masks are cut from it."""
    sigma = _smoothing(config)
    return gaussian_filter(volume, sigma=sigma, pixel_size=particles.pixel_size) if sigma > 0 else volume


def _smoothed_consensus(config: JobConfig, data: _Data, start: _Start) -> Tensor:
    return _smoothed(config, 0.5 * (start.half_maps.half_a + start.half_maps.half_b), data.particles)


def _territory(base: schemas.RegionsBase, map: Map) -> Tensor:
    """(d, d, d) bool: the regions of a map that are chosen, or all others.

    Raises:
        ValueError: there are no such regions, or the files do not fit the map.
    """
    try:
        regions = _segmented(base, map)
        ids = _chosen(base, regions, map)
        return everything_else(regions, ids) if base.rest else territory(regions, ids)
    except ValueError as error:
        raise ValueError(f"mask_base=regions: {error}") from error


def _segmented(base: schemas.RegionsBase, map: Map) -> Segmentation:
    if base.segger is not None:
        regions = on_grid_of(read_segger(Path(base.segger)), map)
        return replace(regions, labels=regions.labels.to(map.data.device))
    return segment(
        map.data,
        threshold=level_of(map.data, base.threshold, unit=base.threshold_unit.value),  # pyright: ignore[reportArgumentType]
        steps=base.steps,
        step_px=parse_length(base.step_size, map.pixel_size) / map.pixel_size,
        target=base.target,
    )


def _chosen(base: schemas.RegionsBase, regions: Segmentation, map: Map) -> tuple[int, ...]:
    """Ids of the regions that one of the keys ids, point, marker, largest, label names."""
    if base.ids is not None:
        return tuple(base.ids)
    if base.largest is not None:
        return largest(regions, base.largest)
    if base.label is not None:
        marked = _read_volume(base.label).data.to(map.data.device).round() == base.label_value
        return mostly_inside(regions, marked)
    if base.point is not None:
        return (touching(regions, base.point),)
    assert base.marker is not None
    points = [map.to_px(point) for point in read_markers(Path(base.marker))]
    return tuple(dict.fromkeys(touching(regions, point) for point in points))


def _cut(base: Tensor, made: schemas.SoftMask | schemas.SoftScoring, group: str, pixel_size: float) -> Tensor:
    """A soft mask of `base` as a group of the configuration describes it."""
    try:
        return soft_mask(
            base,
            threshold=threshold_of(base, made.threshold, unit=made.threshold_unit.value),  # pyright: ignore[reportArgumentType]
            dilation_radius_px=parse_length(made.dilation_radius, pixel_size) / pixel_size,
            soft_padding_width_px=parse_length(made.soft_padding_width, pixel_size) / pixel_size,
            holes_filled=isinstance(made, schemas.SoftMask) and made.fill_holes,
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


def _mask_origin(config: JobConfig, base: Tensor | None, mask: Tensor, pixel_size: float) -> MaskOrigin:
    """How the aligning mask was made, as far as the configuration tells."""
    chosen = config.mask
    if not isinstance(chosen, schemas.SoftMask):
        return MaskOrigin(None, None, None, float(mask.double().sum()) * pixel_size**3)
    assert base is not None
    threshold = threshold_of(base, chosen.threshold, unit=chosen.threshold_unit.value)  # pyright: ignore[reportArgumentType]
    # a map from a file may have been smoothed elsewhere
    given = getattr(config.mask_base, "path", None) is not None
    return MaskOrigin(
        padding=parse_length(chosen.soft_padding_width, pixel_size),
        dilation=parse_length(chosen.dilation_radius, pixel_size),
        smoothing=None if given else _smoothing(config),
        region_volume=float((base > threshold).sum()) * pixel_size**3,
        base=base,
    )


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
    outside = rules.fulcrum_in_box(point.tolist(), box_length=particles.box_size * pixel_size)
    if outside is not None:
        raise ValueError(f"{given}: {outside}")
    return point


def _interface(
    config: JobConfig, chosen: schemas.Interface, data: _Data, start: _Start, base: Tensor | None,
    mask: Tensor, device: torch.device,
) -> tuple[Tensor, str]:  # fmt: skip
    """(3,) Å from the box centre where the domain touches its carrier, and how well that is known.

    Domain and parts are cut where the mask is, at the same density, and not dilated.

    Raises:
        ValueError: they do not touch as a hinge does.
    """
    particles = data.particles
    if isinstance(config.mask, schemas.SoftMask):
        assert base is not None
        threshold = threshold_of(base, config.mask.threshold, unit=config.mask.threshold_unit.value)  # pyright: ignore[reportArgumentType]
        domain = base > threshold
    else:
        threshold, domain = 0.5, mask > 0.5
    if chosen.parts:
        names = list(chosen.parts)
        parts = [_part(config, path, threshold, particles, device) for path in names]
    else:
        assert isinstance(config.mask_base, schemas.DomainBase)
        assert data.truth is not None
        names = [name for name in DOMAINS if name != config.mask_base.name]
        dense = _smoothed_consensus(config, data, start) > threshold
        labels = data.truth.labels.to(device)
        parts = [dense & (labels == 1 + DOMAINS.index(name)) for name in names]
    pixel_size = particles.pixel_size
    try:
        found = interface(domain, parts, names=names, pixel_size=pixel_size)
    except ValueError as error:
        raise ValueError(f"fulcrum=interface: {error} (fulcrum=marker)") from error
    x, y, z = (f"{float(value):.1f}" for value in found.contact.sd)
    return found.contact.centre, (
        f"The fulcrum is the contact with {names[found.carrier]}: {found.contact.voxels} voxels within "
        f"{contact_radius(pixel_size):g} Å of both, of SD {x}, {y}, {z} Å along x, y, z."
    )


def _part(
    config: JobConfig, path: str, threshold: float, particles: Particles, device: torch.device
) -> Tensor:
    """Where a mask is above one half, or a map, smoothed as the mask base is, above `threshold`."""
    volume = _volume_like(path, particles, device)
    if float(volume.min()) >= 0.0 and float(volume.max()) <= 1.0:
        return volume > 0.5
    return _smoothed(config, volume, particles) > threshold


def _write_fulcrum(folder: Path, fulcrum: Tensor, start: _Start, particles: Particles) -> None:
    """The fulcrum as a marker over the maps of the run folder."""
    half = particles.box_size // 2 * particles.pixel_size
    x, y, z = (float(value) + half + origin for value, origin in zip(fulcrum, start.origin, strict=True))
    write_marker(folder / "fulcrum.cmm", (x, y, z), radius=2.0 * particles.pixel_size, note="fulcrum")


# ---- subtraction ----


def _images(
    config: JobConfig, data: _Data, start: _Start, base: Tensor | None, device: torch.device,
    progress: Progress,
) -> _Images:  # fmt: skip
    """The images to refine, as the group `subtraction` says, and half-maps of them to begin with."""
    particles = data.particles
    chosen = config.subtraction
    if isinstance(chosen, schemas.NoSubtraction):
        return _Images(particles, start.half_maps, None, 0.0)
    if isinstance(chosen, schemas.FileSubtraction):
        removed = share_removed(_checked_mask(chosen.path, particles, device), chosen.role.value)  # pyright: ignore[reportArgumentType]
        filter = chosen.filter
    else:
        assert isinstance(chosen, schemas.DomainSubtraction)
        kept = _kept(config, chosen, base, particles, device)
        removed = _outside(config, chosen, data, start, kept)
        filter = chosen.filter
    rest = rest_of(start.half_maps, removed, filter=filter.value)  # pyright: ignore[reportArgumentType]
    lacking = subtracted(particles, rest, device=device)
    progress.start(len(particles), "subtracting")
    half_maps = reconstruct_half_maps(
        lacking, particles.rotations, particles.shifts, device=device, advance=progress.advance
    )
    return _Images(lacking, half_maps, rest, share_left(start.half_maps, half_maps, removed))


def _kept(
    config: JobConfig, chosen: schemas.DomainSubtraction, base: Tensor | None, particles: Particles,
    device: torch.device,
) -> Tensor:  # fmt: skip
    """The region that the scoring mask is cut from, with the subtraction's own edge."""
    scoring = config.scoring
    if isinstance(scoring, schemas.ScoringFile):
        return _checked_mask(scoring.path, particles, device)
    assert isinstance(scoring, schemas.SoftScoring)
    assert base is not None
    region = replace(scoring, dilation_radius=0, soft_padding_width=chosen.keep_padding_width)
    return _cut(base, region, "subtraction", particles.pixel_size)


def _outside(
    config: JobConfig, chosen: schemas.DomainSubtraction, data: _Data, start: _Start, kept: Tensor
) -> Tensor:
    """Share of each voxel that is removed: a soft mask of the starting map, less what is kept."""
    pixel_size = data.particles.pixel_size
    base = 0.5 * (start.half_maps.half_a + start.half_maps.half_b)
    if chosen.smoothing > 0:
        base = gaussian_filter(base, sigma=chosen.smoothing, pixel_size=pixel_size)
    threshold = threshold_of(base, chosen.rest_threshold, unit="fraction")
    domain = config.mask_base
    if isinstance(domain, schemas.DomainBase) and data.truth is not None:
        # the blurred rim of the domain itself belongs to no neighbour
        base = base * (data.truth.labels != 1 + DOMAINS.index(domain.name)).to(base)
    try:
        around = soft_mask(
            base, threshold=threshold,
            dilation_radius_px=parse_length(chosen.dilation_radius, pixel_size) / pixel_size,
            soft_padding_width_px=parse_length(chosen.soft_padding_width, pixel_size) / pixel_size,
        )  # fmt: skip
        return share_removed(around * (1.0 - kept), "remove")
    except ValueError as error:
        raise ValueError(f"subtraction: {error}") from error


def _subtraction_findings(
    config: JobConfig, particles: Particles, images: _Images
) -> tuple[rules.Finding, ...]:
    """What is questionable about a subtraction, before the refinement begins."""
    if images.rest is None:
        return ()
    chosen = config.subtraction
    dilated = (
        parse_length(chosen.dilation_radius, particles.pixel_size)
        if isinstance(chosen, schemas.DomainSubtraction)
        else 0.0
    )
    return rules.present((rules.subtraction_dilation(dilated), rules.subtraction_shadow(1.0, images.shadow)))


def _subtraction_metrics(
    images: _Images, particles: Particles, half_maps: HalfMaps, result: Refinement,
    ruler: Ruler, device: torch.device, progress: Progress,
) -> dict[str, float]:  # fmt: skip
    """What a subtraction left of the rest, and what of the domain's half-map agreement was the rest's."""
    if images.rest is None:
        return {}
    progress.start(len(particles), "reconstructing without subtraction")
    whole = reconstruct_half_maps(
        particles, result.rotations, result.shifts, device=device, advance=progress.advance
    )
    return {
        "subtraction/shadow": images.shadow,
        "subtraction/removed_share": 1.0
        - share_left(whole, half_maps, ruler.mask, first_shell=ruler.first_shell),
    }


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
        regularisation=Regularisation(loop.regularisation.value),
        correct_for_mask=loop.band_from is schemas.BandFrom.corrected,
        marginalise=loop.marginalise,
        compile=config.compute.compile,
    )


def _iteration_metrics(record: IterationRecord) -> dict[str, float]:
    values = asdict(record)
    return {f"iteration/{name}": values[name] for name in _ITERATION_COLUMNS if name != "iteration"}


_ITERATION_COLUMNS = (
    "iteration", "band", "coarse_band", "resolution", "resolution_corrected", "rotation_change_median",
    "shift_change_median", "moved_median", "at_rotation_extent", "at_shift_extent", "log_posterior",
    "marginalised", "seconds",
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
    particles = start.particles
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
    ruler: Ruler, rest: Rest | None,
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
    if rest is not None:
        volumes["removed"] = rest.removed
    for name, volume in volumes.items():
        write_map(folder / f"{name}.mrc", volume.cpu(), pixel_size=half_maps.pixel_size, origin=start.origin)


def _postprocess(
    chosen: schemas.PostprocessingConfig, folder: Path, half_maps: HalfMaps, scored: Score, mask: Tensor,
    start: _Start,
) -> tuple[dict[str, float], tuple[rules.Finding, ...]]:  # fmt: skip
    """Write the sharpened map, its Guinier plot and, if chosen, local resolution; metrics and findings."""
    pixel_size = half_maps.pixel_size
    sharpened = sharpen(
        half_maps, mask, scored.own.corrected, b_factor=chosen.b_factor, fit_from=chosen.guinier_from
    )
    table = guinier_table(sharpened)
    table.to_csv(folder / "guinier.csv", index=False, float_format="%.6f")
    volumes = {"sharpened": sharpened.volume}
    figures = {
        "guinier": diagnostics.guinier_figure(
            {str(name): column.to_numpy() for name, column in table.items()}, pixel_size=pixel_size,
            b_factor=sharpened.b_factor, title=sharpened.description,
        )
    }  # fmt: skip
    metrics = {"sharpening/b_factor": sharpened.b_factor}
    if sharpened.fit is not None:
        metrics["sharpening/b_factor_se"] = sharpened.fit.b_factor_se
    findings: list[rules.Finding | None] = [*sharpened.findings]
    if chosen.local_resolution:
        width = chosen.local_resolution_window or max(
            WIDTH_PER_RESOLUTION * sharpened.resolution, MIN_WIDTH_PX * pixel_size
        )
        found = local_resolution(
            *half_maps.pair, mask, pixel_size=pixel_size, window_width=width,
            threshold=chosen.local_resolution_threshold, step=chosen.local_resolution_step,
        )  # fmt: skip
        mean = 0.5 * (half_maps.half_a + half_maps.half_b)
        boosted = apply_b_factor(
            mean, sharpened.b_factor, resolution=float(found.resolution.min()), pixel_size=pixel_size
        )
        volumes["local_resolution"] = found.resolution
        volumes["locally_filtered"] = filter_locally(boosted, found.resolution, pixel_size=pixel_size)
        figures["local_resolution"] = diagnostics.local_resolution_figure(
            found.resolution.cpu().numpy(), volumes["locally_filtered"].cpu().numpy(), mask.cpu().numpy(),
            pixel_size=pixel_size, floor=found.floor,
            title=f"local resolution at FSC {found.threshold:g}, windows of {found.window_width:.0f} Å",
        )  # fmt: skip
        names = ("p05", "median", "p95", "at_floor")
        metrics |= {f"local_resolution/{name}": x for name, x in zip(names, found.shares(mask), strict=True)}
        findings.append(found.finding(mask))
    for name, volume in volumes.items():
        write_map(folder / f"{name}.mrc", volume.cpu(), pixel_size=pixel_size, origin=start.origin)
    (folder / "figures").mkdir(exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / "figures" / f"{name}.png", dpi=110)
    return metrics, rules.present(findings)


def _write_tables(
    folder: Path, particles: Particles, result: Refinement, review: Review, curves: pd.DataFrame,
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
        "log_posterior": result.log_posterior,
        "log_evidence": result.log_evidence,
        "half_set": particles.half_sets,
        "held_out_likelihood": held_out,
        **{f"turn_{axis}": review.turns[:, number] for number, axis in enumerate("xyz")},
        **{f"move_{axis}": review.shifts[:, number] for number, axis in enumerate("xy")},
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
    _save(folder, figures)


def _save(folder: Path, figures: Mapping[str, diagnostics.Figure]) -> None:
    (folder / "figures").mkdir(exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / "figures" / f"{name}.png", dpi=110)


def _draw_statistics(
    folder: Path, particles: Particles, result: Refinement, review: Review, settings: RefinementSettings
) -> None:
    """Noise, views, precision, cones and, where extents are per axis, moves; each with its table."""
    found, cones = result.inspection, review.cones
    frequency = torch.arange(found.noise_before.shape[-1], dtype=torch.float64) / (
        result.crop_size * particles.pixel_size
    )
    spectra = {"frequency": frequency[1:]}
    for half in (0, 1):
        for group, count in enumerate(found.images[half].tolist()):
            if count > 0:
                name = f"half_set_{half + 1}_group_{group + 1}"
                spectra[f"{name}_before"] = found.noise_before[half, group, 1:]
                spectra[f"{name}_after"] = found.noise_after[half, group, 1:]
    views = diagnostics.view_histogram(result.rotations[:, 2].numpy())
    precision = {
        **dict(zip("xyz", found.directions.unbind(dim=1), strict=True)), "precision": found.precision
    }  # fmt: skip
    # cones are cut on a cube round the mask: their shells are its own
    curves = cones.curves[:, 1:].cpu()
    spread = {"frequency": cones.frequency[1:].cpu(), "smallest": curves.amin(dim=0)}
    spread |= {f"p{share}": curves.quantile(share / 100.0, dim=0) for share in (10, 50, 90)}
    spread["largest"] = curves.amax(dim=0)
    tables = {"noise": spectra, "directions": precision, "conical_fsc": spread}
    for name, columns in tables.items():
        table = pd.DataFrame({key: np.asarray(column) for key, column in columns.items()})
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    pd.DataFrame(views.rows()).to_csv(folder / "views.csv", index=False, float_format="%.4f")
    figures = {
        "noise": diagnostics.noise_figure(
            {key: np.asarray(column) for key, column in spectra.items() if key != "frequency"},
            frequency=spectra["frequency"].numpy(), pixel_size=particles.pixel_size,
        ),
        "views": diagnostics.views_figure(views, scf=review.metrics["orientation/scf"]),
        "precision": diagnostics.precision_figure(found.directions.numpy(), found.precision.numpy()),
        "conical_fsc": diagnostics.conical_fsc_figure(
            curves.numpy(), frequency=spread["frequency"].numpy(), pixel_size=particles.pixel_size,
            cfar=cones.cfar,
        ),
    }  # fmt: skip
    if settings.extent_shape is ExtentShape.per_axis:
        figures["pose_moves"] = diagnostics.pose_moves_figure(
            review.turns.numpy(), review.shifts.numpy(), rotation_extent=settings.rotation_extent,
            shift_extent=settings.shift_extent,
        )  # fmt: skip
    _save(folder, figures)


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
        if path.suffix in (".mrc", ".star", ".csv", ".cmm") or path.name in KEPT:
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
        *_region_files(config),
        *([fulcrum.path] if isinstance(fulcrum, schemas.FulcrumMarker) and fulcrum.path else []),
    ]
    found = {path: digest_file(Path(path)) for path in named}
    if isinstance(config.data, schemas.RelionData):
        found[config.data.star] = digest_file(Path(config.data.star))
        found |= {str(stack): _file_state(stack) for stack in _read_relion(config.data).stacks}
    return found


def _region_files(config: JobConfig) -> list[str]:
    """Files that say which regions a mask base is made of, besides maps."""
    base = config.mask_base
    if not isinstance(base, schemas.RegionsBase):
        return []
    return [path for path in (base.segger, base.marker) if path is not None]


def _inputs(config: JobConfig, particles: Particles) -> dict[str, str]:
    """What was read, with a digest; stacks are told by size and time because hashing them takes minutes."""
    named = [particles.path, *(Path(path) for path in _map_files(config))]
    named += [Path(path) for path in _region_files(config)]
    found = {str(path): digest_file(path) for path in named}
    return found | {str(stack): _file_state(stack) for stack in particles.stacks}
