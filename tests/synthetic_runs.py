"""Run folders made up from formulas, in the layout that a job writes; for tests of comparison and report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd

BOX = 32
PIXEL_SIZE = 3.5
FIRST_SHELL, LAST_SHELL = 3, 14
SHELLS = np.arange(BOX // 2 + 1)
FREQUENCY = SHELLS / (BOX * PIXEL_SIZE)
START_GSFSC, START_TRUTH = 11.4, 31.5


@dataclass(frozen=True)
class Point:
    """What one made-up job found."""

    swept: Mapping[str, object]
    gsfsc: float = 9.0
    truth: float | None = 9.2
    rotation_error: float = 3.0
    seconds: float = 60.0
    error: str | None = None
    scoring_radius: float = 34.0
    held_out: float | None = None
    split: int = 0
    blocks: int = 0


# The six mask points measured on the ribosome head: the widest mask looks fine by GSFSC and is wrong.
HEAD_STUDY = (
    Point({"mask.dilation_radius": 0, "mask.soft_padding_width": 0}, 8.71, 8.81, 2.62, 21.0),
    Point({"mask.dilation_radius": 0, "mask.soft_padding_width": 10}, 8.70, 8.98, 2.72, 21.0),
    Point({"mask.dilation_radius": 7, "mask.soft_padding_width": 0}, 9.63, 9.58, 3.61, 21.0),
    Point({"mask.dilation_radius": 7, "mask.soft_padding_width": 16}, 9.71, 9.74, 4.35, 29.0),
    Point({"mask.dilation_radius": 7, "mask.soft_padding_width": 30}, 9.73, 10.41, 5.29, 40.0),
    Point({"mask.dilation_radius": 28, "mask.soft_padding_width": 30}, 9.84, 19.8, 9.07, 56.0),
)


def falling_curve(resolution: float, level: float) -> np.ndarray:
    """(n_shells,) a curve that is 1 at the origin and `level` at `resolution` Å."""
    return 1.0 / (1.0 + (1.0 / level - 1.0) * (FREQUENCY * resolution) ** 6)


def area(curve: np.ndarray) -> float:
    """Mean over the scoring band."""
    return float(curve[FIRST_SHELL : LAST_SHELL + 1].mean())


def _falls_below(curve: np.ndarray, level: float) -> float:
    below = np.flatnonzero(curve < level)
    return float(1.0 / FREQUENCY[below[0]]) if below.size else 2.0 * PIXEL_SIZE


def _coordinates() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ramp = (np.arange(BOX) - BOX // 2) * PIXEL_SIZE
    z, y, x = np.meshgrid(ramp, ramp, ramp, indexing="ij")
    return x, y, z


def blob_map(resolution: float, *, noise: float = 0.02, seed: int = 0) -> np.ndarray:
    """(32, 32, 32) an asymmetric particle whose off-centre domain is blurred as the resolution gets worse."""
    x, y, z = _coordinates()
    blobs = [
        (-10.0, -8.0, -18.0, 14.0),
        (8.0, 4.0, -8.0, 12.0),
        (-4.0, 10.0, -22.0, 9.0),
        (14.0, -12.0, -20.0, 8.0),
    ]
    domain = [(4.0, 6.0, 22.0, 9.0), (16.0, -4.0, 26.0, 6.0), (-10.0, 0.0, 30.0, 6.0), (6.0, 16.0, 32.0, 5.0)]
    volume = np.zeros((BOX, BOX, BOX))
    for cx, cy, cz, width in blobs:
        volume += np.exp(-((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) / (2.0 * (0.6 * width) ** 2))
    for cx, cy, cz, width in domain:
        variance = (0.6 * width) ** 2 + (0.35 * resolution) ** 2
        peak = ((0.6 * width) ** 2 / variance) ** 1.5
        volume += peak * np.exp(-((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) / (2.0 * variance))
    return (volume + noise * np.random.default_rng(seed).standard_normal(volume.shape)).astype(np.float32)


def ball_mask(radius: float, soft: float, centre: Sequence[float] = (3.0, 3.0, 26.0)) -> np.ndarray:
    """(32, 32, 32) a soft sphere about the domain; lengths in Å."""
    x, y, z = _coordinates()
    distance = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2)
    if soft == 0.0:
        return (distance <= radius).astype(np.float32)
    edge = np.clip((distance - radius) / soft, 0.0, 1.0)
    return (0.5 + 0.5 * np.cos(np.pi * edge)).astype(np.float32)


def write_mrc(path: Path, volume: np.ndarray) -> None:
    """A map file with its pixel size set."""
    with mrcfile.new(path, data=volume.astype(np.float32)) as handle:
        handle.voxel_size = PIXEL_SIZE


def write_run(folder: Path, point: Point, *, name: str, job: int, study: str = "head_masks") -> Path:
    """Write one run folder, finished or failed."""
    folder.mkdir(parents=True)
    swept = dict(point.swept)
    (folder / "config.yaml").write_text(
        "search:\n  rotation_extent: 20.0\n  shift_extent: 10.0\n  extent_shape: per_axis\nseed: 0\n"
        f"data:\n  simulation_seed: {swept.get('data.simulation_seed', 0)}\n  group: 0\n"
    )
    record = {
        "name": name,
        "study": study,
        "job": job,
        "seed": 0,
        "swept": swept,
        "status": "FINISHED" if point.error is None else "FAILED",
        "stop_reason": point.error or "iteration limit reached while poses were still moving",
        "versions": {"cryosweep": "0.1.0", "torch": "2.13.0", "python": "3.11"},
        "device": "cpu",
        "inputs": {"data/particles.star": "ab" * 32},
        "notes": [],
        "seconds": point.seconds,
        "question": "How wide should the mask be?",
        "code": "c0de" * 16,
        "command": "cryosweep run " + " ".join(f"{key}={value}" for key, value in swept.items()),
        "cpu_seconds": point.seconds * 0.97,
    }
    (folder / "run.json").write_text(json.dumps(record))
    if point.error is not None:
        return folder
    rng = np.random.default_rng(job)
    curves = _curves(point, rng)
    frame = pd.DataFrame({"shell": SHELLS, "frequency": FREQUENCY, **curves})
    frame.to_csv(folder / "fsc.csv", index=False)
    poses = _poses(point, rng)
    poses.to_csv(folder / "poses.csv", index=False)
    summary = _summary(point, curves, poses)
    if point.held_out is not None:
        summary["score/held_out_likelihood"] = point.held_out
    (folder / "summary.json").write_text(json.dumps(summary))
    if point.blocks:
        areas = summary["fsc_area/frozen"] + 0.002 * rng.standard_normal(point.blocks)
        blocks = pd.DataFrame({"block": range(point.blocks), "fsc_area": areas})
        blocks.to_csv(folder / "jackknife.csv", index=False)
    columns = "iteration,resolution,rotation_change_median,shift_change_median,at_rotation_extent,"
    (folder / "iterations.csv").write_text(
        columns + "at_shift_extent,log_likelihood,seconds\n1,12.0,5.0,2.0,0.1,0.1,-1e6,20.0\n"
    )
    (folder / "particles.star").write_text("data_\n\nloop_\n_rlnImageName\n")
    for half in "ab":
        write_mrc(folder / f"half_{half}.mrc", blob_map(point.gsfsc, noise=0.1, seed=10 * job + ord(half)))
    write_mrc(folder / "map.mrc", blob_map(point.truth or point.gsfsc, seed=job))
    write_mrc(folder / "start_map.mrc", blob_map(START_TRUTH, seed=99))
    write_mrc(folder / "mask.mrc", ball_mask(26.0, 10.0))
    write_mrc(folder / "scoring_mask.mrc", ball_mask(point.scoring_radius, 14.0))
    return folder


def _curves(point: Point, rng: np.random.Generator) -> dict[str, np.ndarray]:
    wobble = 0.01 * rng.standard_normal(SHELLS.size)
    frozen = np.clip(falling_curve(point.gsfsc, 0.143) + wobble, -0.1, 1.0)
    own = falling_curve(point.gsfsc * 0.95, 0.143)
    curves = {
        "own_none": falling_curve(point.gsfsc * 1.4, 0.143),
        "own_spherical": falling_curve(point.gsfsc * 1.3, 0.143),
        "own_loose": falling_curve(point.gsfsc * 1.1, 0.143),
        "own_tight": own,
        "own_randomised": 0.5 * falling_curve(point.gsfsc * 1.5, 0.143),
        "own_corrected": falling_curve(point.gsfsc * 0.98, 0.143),
        "frozen": frozen,
        "frozen_randomised": 0.3 * falling_curve(point.gsfsc * 1.5, 0.143),
        "frozen_corrected": frozen - 0.005,
        "start_frozen": falling_curve(START_GSFSC, 0.143),
    }
    if point.truth is not None:
        curves |= {"truth": falling_curve(point.truth, 0.5), "start_truth": falling_curve(START_TRUTH, 0.5)}
    return curves


def _poses(point: Point, rng: np.random.Generator, n: int = 400) -> pd.DataFrame:
    rotation = rng.normal(0.0, 7.0, (n, 3)).clip(-20, 20)
    shift = rng.normal(0.0, 3.0, (n, 2)).clip(-10, 10)
    table = {
        "rotation_change": np.linalg.norm(rotation, axis=1),
        "shift_change": np.linalg.norm(shift, axis=1),
        **{f"turn_{axis}": rotation[:, k] for k, axis in enumerate("xyz")},
        **{f"move_{axis}": shift[:, k] for k, axis in enumerate("xy")},
        "half_set": np.random.default_rng(point.split).permutation(np.arange(n) % 2),
    }
    if point.held_out is not None:
        # the same images in every run: what a particle says is mostly its own
        own = np.random.default_rng(7).normal(0.0, 5.0, n)
        wobble = rng.normal(0.0, 0.5, n)
        table["held_out_likelihood"] = point.held_out + own - own.mean() + wobble - wobble.mean()
    if point.truth is not None:
        table |= {
            "rotation_error": rng.rayleigh(point.rotation_error / 1.177, n),
            "shift_error": rng.rayleigh(1.0, n),
            "start_rotation_error": rng.rayleigh(11.5 / 1.177, n),
            "start_shift_error": rng.rayleigh(5.6, n),
        }
    return pd.DataFrame(table)


def _summary(point: Point, curves: Mapping[str, np.ndarray], poses: pd.DataFrame) -> dict[str, float]:
    summary: dict[str, float] = {}
    for curve in ("none", "spherical", "loose", "tight", "corrected"):
        summary[f"resolution/own_{curve}_0143"] = _falls_below(curves[f"own_{curve}"], 0.143)
        summary[f"resolution/own_{curve}_05"] = _falls_below(curves[f"own_{curve}"], 0.5)
    summary |= {
        "resolution/frozen_0143": point.gsfsc,
        "resolution/frozen_05": point.gsfsc * 1.2,
        "resolution/frozen_corrected_0143": point.gsfsc * 1.01,
        "fsc_area/own": area(curves["own_tight"]),
        "fsc_area/frozen": area(curves["frozen"]),
        "fsc_area/frozen_corrected": area(curves["frozen_corrected"]),
        "fsc_area/frozen_sd": 0.0072,
        "pose/rotation_change_median": float(poses["rotation_change"].median()),
        "pose/shift_change_median": float(poses["shift_change"].median()),
        "pose/at_rotation_extent": float((poses["rotation_change"] >= 19.0).mean()),
        "pose/at_shift_extent": float((poses["shift_change"] >= 9.5).mean()),
        "mask/volume": 6.1e5,
        "iterations": 3.0,
        "seconds": point.seconds,
        "cpu_seconds": point.seconds * 0.97,
        "start/resolution_frozen_0143": START_GSFSC,
        "start/fsc_area_frozen": area(curves["start_frozen"]),
    }
    if point.truth is not None:
        summary |= {
            "truth/resolution_05": point.truth,
            "truth/fsc_area": area(curves["truth"]),
            "truth/rotation_error_median": point.rotation_error,
            "truth/rotation_error_p90": 2.3 * point.rotation_error,
            "truth/shift_error_median": 1.2,
            "start/truth_resolution_05": START_TRUTH,
            "start/truth_fsc_area": area(curves["start_truth"]),
            "start/rotation_error_median": 11.5,
            "start/rotation_error_p90": 18.6,
            "start/shift_error_median": 6.6,
        }
    return summary


def write_study(
    folder: Path, points: Sequence[Point] = HEAD_STUDY, *, study: str = "head_masks"
) -> list[Path]:
    """Write one run folder per point, named after its swept values."""
    paths: list[Path] = []
    for job, point in enumerate(points):
        name = ",".join(f"{key.rsplit('.')[-1]}={value}" for key, value in point.swept.items()) or f"run{job}"
        paths.append(write_run(folder / f"{job:03d}", point, name=name, job=job, study=study))
    return paths
