"""How tight should the frozen scoring mask be? Finished runs, scored again under masks of several tightness.

    cryosweep run experiment=mask_parameters_head        # and foot, arm; and with subtraction=domain
    OMP_NUM_THREADS=1 python benchmarks/scoring_mask.py cryosweep_out/mask_parameters_head [--rows rows.csv]

For the runs of one domain on simulated data. Each is scored on the images as they are and, at the same poses,
on the images without the neighbours (subtraction=domain at the consensus poses). Scores, over the band 34 to
7.4 Å: A, the half-map FSC area, and H, the held-out log-likelihood, both under the scoring mask in question.

Judges, the same for every scoring mask: T, the FSC area of the same maps against the true density, under the
mask of that density alone (true atoms, smoothed by 4 Å, above 0.05 of its 99.9th percentile, 0 / 10 Å): it
depends on no mask base, no blur and no neighbour. And R, minus the median rotation error.

Printed for each scoring mask: Spearman's rank correlation over the points of the study, one run a point, mean
over the simulations (`least`: the worst of one simulation for the rank sum of A and H); and what the point
with the least rank sum loses against the best, in T and in degrees.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from omegaconf import OmegaConf
from scipy.stats import spearmanr
from torch import Tensor

from cryosweep.composition import make_plan
from cryosweep.config import DomainBase, JobConfig, NoSubtraction
from cryosweep.fourier import gaussian_filter
from cryosweep.io import read_map, read_particles
from cryosweep.io.particles import Particles
from cryosweep.job.data import Data, load_data
from cryosweep.job.masks import mask_base
from cryosweep.job.starting import Start, starting_maps
from cryosweep.job.subtraction import images_to_refine
from cryosweep.mask import erode, soft_edge, soft_mask, threshold_of
from cryosweep.progress import LogProgress
from cryosweep.reconstruction import HalfMaps, reconstruct_half_maps
from cryosweep.resolution import fsc, fsc_area
from cryosweep.simulate import FrameChange, align_frames, load_ribosome, pose_errors, truth_in_frame
from cryosweep.study.assessment import Ruler, held_out_log_likelihood, make_ruler, masked_fsc
from cryosweep.study.comparison import load_runs
from cryosweep.study.statistics import rank_sum
from cryosweep.study.store import Store

CPU = torch.device("cpu")
REPLICATE = "data.simulation_seed"
# name: dilation (Å, negative: erosion) and soft padding (Å) of the base above 0.15
MASKS = {
    "-7 / 6": (-7.0, 6.0),
    "0 / 5": (0.0, 5.0),
    "0 / 10": (0.0, 10.0),
    "6 / 16": (6.0, 16.0),
    "14 / 20": (14.0, 20.0),
    "28 / 24": (28.0, 24.0),
}
OWN = "true domain"


@dataclass(frozen=True, eq=False, kw_only=True)
class InMemory(Particles):
    """Particles whose images are held in memory: they are read once for many masks."""

    stack: Tensor

    def images(self, index: Tensor) -> Tensor:
        """Images at `index` (b,)."""
        return self.stack[index].clone()


@dataclass(frozen=True)
class Scene:
    """The data of one simulation: truth, masks to score with, and both sets of images."""

    data: Data
    domain: str
    rulers: dict[str, Ruler]
    images: dict[str, InMemory]


def in_memory(particles: Particles) -> InMemory:
    own = {field.name: getattr(particles, field.name) for field in fields(Particles)}
    return InMemory(**own, stack=particles.images(torch.arange(len(particles))))


def configured(folder: Path) -> JobConfig:
    """The configuration of a run, composed again from its overrides."""
    overrides = [str(line) for line in OmegaConf.load(folder / ".hydra" / "overrides.yaml")]
    (job,) = make_plan(overrides, multirun=False).jobs
    return job


def mask_of(base: Tensor, dilation: float, padding: float, pixel_size: float) -> Tensor:
    threshold = threshold_of(base, 0.15, unit="fraction")
    if dilation < 0:
        return soft_edge(erode(base > threshold, -dilation / pixel_size), padding / pixel_size)
    return soft_mask(
        base, threshold=threshold, dilation_radius_px=dilation / pixel_size,
        soft_padding_width_px=padding / pixel_size,
    )  # fmt: skip


def true_mask(density: Tensor, pixel_size: float) -> Tensor:
    smooth = gaussian_filter(density.float(), sigma=4.0, pixel_size=pixel_size)
    return soft_mask(
        smooth, threshold=threshold_of(smooth, 0.05, unit="fraction"), dilation_radius_px=0.0,
        soft_padding_width_px=10.0 / pixel_size,
    )  # fmt: skip


def make_scene(job: JobConfig, names: Sequence[str]) -> Scene:
    """Everything that the runs of one simulation share."""
    assert isinstance(job.mask_base, DomainBase)
    progress, store = LogProgress(), Store(Path(job.output_dir) / "stages")
    data = load_data(job, store, CPU, progress)
    start: Start = starting_maps(job, data, store, CPU, progress)
    base = mask_base(job, data, start, CPU, store)
    assert base is not None
    taken = make_plan(
        [f"mask_base.name={job.mask_base.name}", "subtraction=domain"], multirun=False
    ).jobs[0].subtraction  # fmt: skip
    lacking = images_to_refine(
        replace(job, subtraction=taken), data, start, base, store, CPU, progress
    ).particles
    box, pixel_size = data.particles.box_size, data.particles.pixel_size
    domain = load_ribosome().domains[job.mask_base.name]
    masks = {name: mask_of(base, *how, pixel_size) for name, how in MASKS.items() if name in names}
    density = truth_in_frame(domain, FrameChange.none(), box_size=box, pixel_size=pixel_size)
    masks[OWN] = true_mask(density, pixel_size)
    rulers = {
        name: make_ruler(mask, pixel_size=pixel_size, band_low=34.0, band_high=None, randomisations=1, seed=0)
        for name, mask in masks.items()
    }
    volume = pixel_size**3 / 1000.0
    print(
        f"# {job.mask_base.name}, simulation {getattr(job.data, 'simulation_seed', '')}: volume (nm^3) of "
        + ", ".join(f"{name}: {float(mask.sum()) * volume:.0f}" for name, mask in masks.items())
    )
    images = {"as they are": in_memory(start.particles), "subtracted": in_memory(lacking)}
    return Scene(data, job.mask_base.name, rulers, images)


def truth_area(scene: Scene, poses: tuple[Tensor, Tensor], half_maps: HalfMaps) -> tuple[float, float, float]:
    """T, and the median errors of rotation (degrees) and shift (Å)."""
    assert scene.data.truth is not None
    true = scene.data.truth.domains[scene.domain].poses
    domain = load_ribosome().domains[scene.domain]
    both = (*poses, true.rotations, true.shifts)
    frame = align_frames(*both, point=domain.centre_of_mass)
    rotation, shift = pose_errors(*both, frame=frame, point=domain.centre_of_mass)
    box, pixel_size = scene.data.particles.box_size, half_maps.pixel_size
    density = truth_in_frame(domain, frame, box_size=box, pixel_size=pixel_size).float()
    mask, ruler = true_mask(density, pixel_size), scene.rulers[OWN]
    curve = fsc((half_maps.half_a + half_maps.half_b) * mask, density * mask)
    area = fsc_area(curve, first_shell=ruler.first_shell, last_shell=ruler.last_shell)
    return area, float(rotation.median()), float(shift.median())


def rescored(folders: Sequence[Path], names: Sequence[str] = tuple(MASKS)) -> pd.DataFrame:
    """One row for each run, set of images and scoring mask."""
    scenes: dict[object, Scene] = {}
    rows: list[dict[str, object]] = []
    for run in load_runs(folders):
        if not run.is_finished:
            continue
        job = configured(run.folder)
        seed = run.swept.get(REPLICATE, 0)
        if seed not in scenes:
            scenes[seed] = make_scene(job, names)
        scene = scenes[seed]
        found = read_particles(run.folder / "particles.star")
        poses = found.rotations, found.shifts
        own = "as they are" if isinstance(job.subtraction, NoSubtraction) else "subtracted"
        point = ", ".join(f"{k.split('.')[-1]} {v}" for k, v in run.swept.items() if k != REPLICATE)
        for name, images in scene.images.items():
            if name == own:
                a, b = (read_map(run.folder / f"half_{half}.mrc").data for half in "ab")
                half_maps = HalfMaps(a, b, found.pixel_size)
            else:
                half_maps = reconstruct_half_maps(images, *poses, device=CPU)
            area, rotation, shift = truth_area(scene, poses, half_maps)
            for mask, ruler in scene.rulers.items():
                curve = masked_fsc(half_maps, ruler.mask)
                likelihood = held_out_log_likelihood(images, *poses, half_maps, ruler, device=CPU)
                rows.append(
                    {
                        "domain": scene.domain,
                        "refined on": own,
                        "scored on": name,
                        "seed": seed,
                        "point": point,
                        "mask": mask,
                        "A": fsc_area(curve, first_shell=ruler.first_shell, last_shell=ruler.last_shell),
                        "H": float(likelihood.mean()),
                        "T": area,
                        "rotation": rotation,
                        "shift": shift,
                    }
                )
    return pd.DataFrame(rows).drop_duplicates(["domain", "refined on", "scored on", "seed", "point", "mask"])


def agreement(runs: pd.DataFrame) -> dict[str, float]:
    """How the scores of the points of one simulation rank, beside T and the poses."""
    a, h, t = (runs[name].to_numpy(dtype=np.float64) for name in "AHT")
    poses = -runs["rotation"].to_numpy(dtype=np.float64)
    ranks = rank_sum([a, h])
    leader = int(np.lexsort((-h, ranks))[0])

    def rho(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.asarray(spearmanr(x, y))[0])

    return {
        "A,T": rho(a, t), "A,R": rho(a, poses), "H,T": rho(h, t), "H,R": rho(h, poses),
        "sum,T": rho(-ranks, t), "sum,R": rho(-ranks, poses),
        "loss T": float(t.max() - t[leader]), "loss °": float(poses.max() - poses[leader]),
    }  # fmt: skip


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One line for each domain, images, and scoring mask: means over the simulations."""
    found: list[dict[str, object]] = []
    keys = ["domain", "refined on", "scored on", "mask"]
    for key, runs in rows.groupby(keys, sort=False):
        each = pd.DataFrame([agreement(one) for _, one in runs.groupby("seed")])
        found.append(
            {
                **dict(zip(keys, key if isinstance(key, tuple) else (key,), strict=True)),
                "points": runs["point"].nunique(),
                "seeds": len(each),
                **each.mean().to_dict(),
                "least": float(each[["sum,T", "sum,R"]].min(axis=None)),
            }
        )
    return pd.DataFrame(found)


def main() -> None:
    parser = argparse.ArgumentParser(description="Score finished runs under masks of several tightness.")
    parser.add_argument("folders", type=Path, nargs="*", help="sweep folders, all of one domain")
    parser.add_argument("--rows", type=Path, help="CSV: written after scoring, read where no folder is given")
    parser.add_argument("--masks", nargs="+", default=list(MASKS), choices=list(MASKS), help="only these")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.folders:
        rows = rescored(arguments.folders, arguments.masks)
        if arguments.rows is not None:
            rows.to_csv(arguments.rows, index=False, float_format="%.5f")
    elif arguments.rows is not None:
        rows = pd.read_csv(arguments.rows)
    else:
        parser.error("give sweep folders, or --rows with a table written before")
    print(summary(rows).to_string(index=False, float_format=lambda x: f"{x:.2f}"))


if __name__ == "__main__":
    main()
