"""What a job leaves in its run folder: volumes, tables and figures, and their way to the tracking store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cryosweep import diagnostics
from cryosweep.io.maps import read_map, write_map
from cryosweep.io.particles import Particles, write_particles
from cryosweep.job.refining import iteration_table
from cryosweep.job.scores import crossings
from cryosweep.job.starting import Start
from cryosweep.reconstruction import HalfMaps, fsc_weighted
from cryosweep.refinement import Refinement, RefinementSettings, last_common_shell
from cryosweep.search import ExtentShape
from cryosweep.study.assessment import OWN_CURVES, Ruler, Score, TruthScore
from cryosweep.study.findings import FINDINGS_FILE, FINDINGS_TEXT
from cryosweep.study.review import Review
from cryosweep.subtraction import Rest
from cryosweep.tracking import Tracker

# Files of a run folder, besides maps and tables, that go to the tracking store.
KEPT = ("summary.json", "run.json", FINDINGS_FILE, FINDINGS_TEXT)


def write_volumes(
    folder: Path, half_maps: HalfMaps, scored: Score, start: Start, start_curve: Tensor, mask: Tensor,
    ruler: Ruler, rest: Rest | None,
) -> None:  # fmt: skip
    """Half-maps, their means, both masks and, with a subtraction, what it removed, over one origin."""
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


def write_tables(
    folder: Path, particles: Particles, result: Refinement, review: Review, curves: pd.DataFrame,
    truth: TruthScore | None, start_truth: TruthScore | None, held_out: Mapping[str, Tensor],
    left_out: Mapping[str, Tensor],
) -> None:  # fmt: skip
    """Curves, iterations, poses as a table and as a STAR file and, where asked for, areas of blocks.

    `held_out` are columns of `poses.csv`, `left_out` those of `jackknife.csv`.
    """
    if left_out:
        blocks = pd.DataFrame({name: areas.numpy() for name, areas in left_out.items()})
        blocks.insert(0, "block", blocks.index.to_numpy())
        blocks.to_csv(folder / "jackknife.csv", index=False, float_format="%.7f")
    curves.to_csv(folder / "fsc.csv", index=False, float_format="%.6f")
    iteration_table(result.records).to_csv(folder / "iterations.csv", index=False)
    columns: dict[str, Tensor] = {
        "rotation_change": result.rotation_change,
        "shift_change": result.shift_change,
        "rotation_sd": result.rotation_sd,
        "shift_sd": result.shift_sd,
        "log_posterior": result.log_posterior,
        "log_evidence": result.log_evidence,
        "half_set": particles.half_sets,
        **held_out,
        **{f"turn_{axis}": review.turns[:, number] for number, axis in enumerate("xyz")},
        **{f"move_{axis}": review.shifts[:, number] for number, axis in enumerate("xy")},
    }
    if particles.contrast is not None:
        columns["scale"] = particles.contrast
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


def draw(
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
        "mask": diagnostics.mask_figure(soft, volume, pixel_size, point),
        "gsfsc": diagnostics.gsfsc_figure(
            summary,
            frequency=own.frequency.cpu().numpy(),
            pixel_size=pixel_size,
            crossings=crossings(own),
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
    if volume.any():  # halves that share nothing leave a weighted mean of nothing
        figures["fourier_slices"] = diagnostics.fourier_slices_figure(volume, pixel_size)
    save_figures(folder, figures)


def draw_statistics(
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
    save_figures(folder, figures)


def save_figures(folder: Path, figures: Mapping[str, diagnostics.Figure]) -> None:
    """Write each figure as `figures/NAME.png` of the run folder."""
    (folder / "figures").mkdir(exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / "figures" / f"{name}.png", dpi=110)


def log_outputs(tracker: Tracker, folder: Path, curves: pd.DataFrame) -> None:
    """Hand the run folder to the tracker: curves as numbers, files as they are."""
    tracker.table("fsc", {str(name): column.tolist() for name, column in curves.items()})
    for name in curves.columns.drop(["shell", "frequency"]):
        tracker.curve(str(name), curves[name].tolist())
    for path in sorted(folder.iterdir()):
        if path.suffix in (".mrc", ".star", ".csv", ".cmm") or path.name in KEPT:
            tracker.artifact(path)
    for path in sorted((folder / "figures").iterdir()):
        tracker.artifact(path, folder="figures")
