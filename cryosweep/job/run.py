"""One job: from a checked configuration to refined poses, maps, curves and figures in a run folder."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

from cryosweep import config as schemas
from cryosweep import rules
from cryosweep.config import JobConfig
from cryosweep.job.common import OwnScores, common_images, common_scores
from cryosweep.job.data import load_data
from cryosweep.job.files import inputs_read
from cryosweep.job.fulcrum import fulcrum_point, interface_point, write_fulcrum
from cryosweep.job.masks import aligning_mask, mask_base, mask_origin, scoring_ruler, smoothed_consensus
from cryosweep.job.memory import MEMORY, budget_of, left_of
from cryosweep.job.neighbours import draw_neighbours, measure_neighbours, neighbours_apart
from cryosweep.job.outputs import draw, draw_statistics, log_outputs, write_tables, write_volumes
from cryosweep.job.postprocessing import postprocess
from cryosweep.job.refined import refined
from cryosweep.job.refining import iteration_metrics, refinement_settings
from cryosweep.job.scores import left_out_areas, summarise, truth_score
from cryosweep.job.starting import starting_maps
from cryosweep.job.subtraction import images_to_refine, subtraction_findings, subtraction_metrics
from cryosweep.progress import Progress
from cryosweep.reconstruction import HalfMaps, half_map_sums, unfiltered
from cryosweep.refinement import PreparedImages
from cryosweep.study.assessment import curve_table, held_out_log_likelihood, masked_fsc, score
from cryosweep.study.findings import tags_of, write_findings
from cryosweep.study.resume import is_forced
from cryosweep.study.review import review_result, review_setup
from cryosweep.study.store import Store, digest_values
from cryosweep.study.sweep import record_run
from cryosweep.subtraction import check_half_maps
from cryosweep.tracking import Tracker


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
    data = load_data(config, store, device, progress)
    start = starting_maps(config, data, store, device, progress)
    particles = start.particles
    base = mask_base(config, data, start, device, store)
    mask = aligning_mask(config, base, particles, device, store)
    ruler = scoring_ruler(config, base, particles, device, store)
    settings = refinement_settings(config)
    notes = list(particles.notes)
    doubts: tuple[rules.Finding, ...] = ()
    if isinstance(config.fulcrum, schemas.Interface):
        fulcrum, note, doubts = interface_point(config, config.fulcrum, data, start, base, mask, device)
        notes.append(note)
    else:
        fulcrum = fulcrum_point(config, mask, start, particles, data.truth)
    write_fulcrum(folder, fulcrum, start, particles)
    images = images_to_refine(config, data, start, base, store, device, progress)
    if images.rest is not None and isinstance(config.consensus, schemas.ConsensusFiles):
        notes.extend(check_half_maps(particles, start.half_maps, device=device))
    given = (*doubts, *subtraction_findings(config, particles, images))
    apart = neighbours_apart(config, data, start, images, base, device)
    common = common_images(config, data, start, base, store, device, progress)
    if isinstance(apart, str):
        notes.append(f"Not measured: the neighbours' share under the masks; {apart}.")
    made = mask_origin(config, base, mask, particles.pixel_size)
    smooth_start = smoothed_consensus(config, data, start)
    setup = review_setup(
        mask, smooth_start, particles, fulcrum=fulcrum, settings=settings, made=made,
        resolution=config.refinement.initial_lowpass,
    )  # fmt: skip
    notes.extend(map(str, rules.worst_first((*setup, *given))))
    for note in notes:
        progress.note(note)
    record_run(
        folder, versions=_versions(), device=_device_name(device), notes=notes,
        inputs=inputs_read(config, particles),
    )  # fmt: skip

    def share(crop: tuple[int, ...], prepare: Callable[[], PreparedImages]) -> PreparedImages:
        """Prepared images of an earlier job of this process, if its crop was the same."""
        key = ("prepared", images.key, str(device), *crop)
        return MEMORY.get(key, prepare, budget=budget_of(config))

    progress.start(len(particles) * (1 + settings.max_iterations), "refining")
    result = refined(
        images.particles, images.half_maps, mask, fulcrum=fulcrum, settings=settings, images_key=images.key,
        store=store, device=device, memory_budget=left_of(config), advance=progress.advance,
        on_iteration=lambda record: tracker.metrics(iteration_metrics(record), step=record.iteration),
        share=share, again=is_forced(),
    )  # fmt: skip
    if result.scale is not None:
        particles = particles.rescaled(result.scale)
        images = replace(images, particles=images.particles.rescaled(result.scale))
    progress.start(len(particles), "reconstructing")
    sums = half_map_sums(
        images.particles, result.rotations, result.shifts, device=device, advance=progress.advance
    )
    half_maps = HalfMaps(unfiltered(sums[0]), unfiltered(sums[1]), particles.pixel_size)
    left_out = left_out_areas(config, images.particles, result, sums, ruler, device, progress)
    del sums
    progress.start(1, "assessing")
    scored = score(half_maps, mask, ruler)
    held_out = held_out_log_likelihood(
        images.particles, result.rotations, result.shifts, half_maps, ruler, device=device
    )
    start_curve = masked_fsc(start.half_maps, ruler.mask)
    truth = truth_score(config, data, half_maps, result.rotations, result.shifts, ruler)
    start_truth = MEMORY.get(
        ("start truth", start.key, str(config.mask_base), digest_values(ruler.mask.cpu().numpy()),
         ruler.first_shell, ruler.last_shell),
        lambda: truth_score(config, data, start.half_maps, particles.rotations, particles.shifts, ruler),
        budget=budget_of(config),
    )  # fmt: skip
    summary = summarise(scored, start_curve, truth, start_truth, result, ruler, mask, particles)
    summary["score/held_out_likelihood"] = float(held_out.mean())
    summary |= start.metrics
    summary |= subtraction_metrics(images, particles, half_maps, result, ruler, device, progress)
    near = None
    if not isinstance(apart, str):
        near = measure_neighbours(images, apart, scored, result, half_maps, mask, ruler, device, progress)
        summary |= near.metrics
    alike = None
    if not isinstance(common, str):
        own = OwnScores(half_maps, held_out, left_out)
        alike = common_scores(config, common, images, own, result, ruler, device, progress)
        summary |= alike.metrics
    review = review_result(
        scored, half_maps, mask, particles, result, fulcrum=fulcrum, settings=settings, made=made
    )  # fmt: skip
    # the set-up again, now that the resolution is known
    setup = review_setup(
        mask, smooth_start, particles, fulcrum=fulcrum, settings=settings, made=made,
        resolution=summary["resolution/own_corrected_0143"],
    )  # fmt: skip
    metrics, about_maps = postprocess(config.postprocessing, folder, half_maps, scored, mask, start)
    result_findings = (*review.findings, *about_maps, *(() if near is None else near.findings))
    findings = rules.worst_first((*setup, *given, *result_findings))
    notes.extend(map(str, rules.worst_first(result_findings)))
    summary |= review.metrics | metrics
    summary["seconds"] = time.monotonic() - began
    summary["cpu_seconds"] = time.process_time() - cpu_began

    write_volumes(folder, half_maps, scored, start, start_curve, mask, ruler, images.rest)
    more = {} if near is None else dict(near.curves)
    likelihoods, areas = {"held_out_likelihood": held_out}, {"fsc_area": left_out}
    if alike is not None:
        more |= alike.curves
        likelihoods["common_held_out_likelihood"] = alike.held_out
        areas["common_fsc_area"] = alike.left_out
    curves = curve_table(scored, start_curve, truth, start_truth, more)
    left = {name: values for name, values in areas.items() if values is not None}
    write_tables(folder, particles, result, review, curves, truth, start_truth, likelihoods, left)
    start.curves.to_csv(folder / "consensus_fsc.csv", index=False, float_format="%.6f")
    draw(folder, scored, result, mask, fulcrum, settings, particles.pixel_size)
    draw_statistics(folder, particles, result, review, settings)
    if near is not None:
        draw_neighbours(folder, curves, particles.pixel_size)
    write_findings(folder, findings)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    record_run(
        folder, stop_reason=result.stop.value, notes=notes, seconds=summary["seconds"],
        cpu_seconds=summary["cpu_seconds"],
        common_images={"key": None, "why": common} if alike is None else {"key": alike.images},
    )  # fmt: skip
    tracker.tags(tags_of(findings))
    log_outputs(tracker, folder, curves)
    return summary


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _versions() -> dict[str, str]:
    packages = ("cryosweep", "torch", "numpy", "mlflow", "hydra-core")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"
