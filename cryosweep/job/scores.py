"""Numbers about the maps and poses of a job, at its start and at its end."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cryosweep.config import JobConfig
from cryosweep.io.particles import Particles
from cryosweep.job.data import Data, moving_domain
from cryosweep.progress import Progress
from cryosweep.reconstruction import FourierSums, HalfMaps
from cryosweep.refinement import Refinement
from cryosweep.resolution import FscCurves, crossing
from cryosweep.simulate import align_frames, pose_errors
from cryosweep.study.assessment import (
    OWN_CURVES,
    Ruler,
    Score,
    TruthScore,
    jackknife_areas,
    score_against_truth,
    start_summary,
)


def crossings(curves: FscCurves) -> dict[str, float]:
    """Resolution (Å) at 0.143 of each curve that claims one."""
    return {
        name: crossing(getattr(curves, name), 0.143, box_size=curves.box_size, pixel_size=curves.pixel_size)
        for name in OWN_CURVES
    }


def consensus_table(curves: FscCurves) -> pd.DataFrame:
    """The five curves and the randomised one, one row a shell."""
    names = ("frequency", *OWN_CURVES[:-1], "randomised", "corrected")
    table = pd.DataFrame({name: getattr(curves, name).cpu().numpy() for name in names})
    table.insert(0, "shell", np.arange(len(table)))
    return table


def consensus_metrics(curves: FscCurves, data: Data, particles: Particles) -> dict[str, float]:
    """Resolution (Å) of the whole at 0.143 under each mask, and the errors of the body's poses if known."""
    found = {f"consensus/{name}_0143": value for name, value in crossings(curves).items()}
    if data.truth is not None:
        body = data.truth.domains["body"]
        point, truth = body.shape.centre_of_mass, body.poses
        for prefix, given in (("body", particles), ("body_file", data.particles)):
            poses = given.rotations, given.shifts, truth.rotations, truth.shifts
            rotation, shift = pose_errors(*poses, frame=align_frames(*poses, point=point), point=point)
            found[f"consensus/{prefix}_rotation_error_median"] = float(rotation.median())
            found[f"consensus/{prefix}_shift_error_median"] = float(shift.median())
    return found


def truth_score(
    config: JobConfig, data: Data, half_maps: HalfMaps, rotations: Tensor, shifts: Tensor, ruler: Ruler
) -> TruthScore | None:
    """Maps and poses against the truth, where there is one for the domain."""
    name = moving_domain(config)
    if data.truth is None or name is None:
        return None
    return score_against_truth(half_maps, rotations, shifts, truth=data.truth.domains[name], ruler=ruler)


def left_out_areas(
    config: JobConfig, particles: Particles, result: Refinement, sums: tuple[FourierSums, FourierSums],
    ruler: Ruler, device: torch.device, progress: Progress,
) -> Tensor | None:  # fmt: skip
    """FSC areas with each block of particles left out of `sums`, where they were asked for."""
    blocks = config.scoring.jackknife
    if blocks == 0:
        return None
    progress.start(len(particles), "leaving particles out")
    return jackknife_areas(
        particles, result.rotations, result.shifts, ruler, blocks=blocks, device=device, whole=sums,
        advance=progress.advance,
    )  # fmt: skip


def summarise(
    scored: Score, start_curve: Tensor, truth: TruthScore | None, start_truth: TruthScore | None,
    result: Refinement, ruler: Ruler, mask: Tensor, particles: Particles,
) -> dict[str, float]:  # fmt: skip
    """The summary of a job: scores, changes of pose, and errors at both ends where the truth is known."""
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
    if particles.contrast is not None:
        summary["scale/sd"] = float(particles.contrast.std())
    if truth is not None and start_truth is not None:
        refined = truth.summary(ruler, box_size=box_size, pixel_size=pixel_size)
        summary |= {f"truth/{name}": value for name, value in refined.items()}
        begun = start_truth.summary(ruler, box_size=box_size, pixel_size=pixel_size)
        for name, value in begun.items():
            poses = name.startswith(("rotation", "shift"))
            summary[f"start/{name}" if poses else f"start/truth_{name}"] = value
    return summary


def _audit_metrics(result: Refinement) -> dict[str, float]:
    """What the exhaustive search of some particles showed, where there was one."""
    if result.audit is None:
        return {}
    return {f"search/{name}": float(value) for name, value in asdict(result.audit).items()}
