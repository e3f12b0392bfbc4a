"""A consensus refinement as the first stage of jobs: made once, and where the local refinement begins."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cryosweep import app
from cryosweep.geometry import angle_between
from cryosweep.io import read_map, read_particles

DATA = (
    "data.particles=60", "data.box_size=48", "data.pixel_size=7", "data.snr=2", "data.pose_error_rotation=3",
    "refinement.initial_lowpass=30", "refinement.max_iterations=1", "tracking.enabled=false",
    "consensus.initial_lowpass=40", "consensus.max_iterations=2", "consensus.mask_starts=25",
    "compute.device=cpu", "compute.threads=1", "search.audit=0",
)  # fmt: skip
CURVES = ["shell", "frequency", "none", "spherical", "loose", "tight", "randomised", "corrected"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two jobs that agree on a homogeneous consensus, and one with a non-uniform one."""
    folder = tmp_path_factory.mktemp("jobs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        sweep = ["run", "-m", *DATA, "mask.dilation_radius=0,7", "study=pair"]
        assert app.main([*sweep, "consensus=homogeneous", f"output_dir={folder}"]) == 0
        other = ["run", *DATA, "consensus=nonuniform", "study=other", f"output_dir={folder}"]
        assert app.main(other) == 0
    return folder


def jobs(out: Path) -> list[Path]:
    return sorted(path.parent for path in out.glob("pair/sweep_*/[01]/summary.json"))


def test_the_stage_is_made_once(out: Path) -> None:
    assert len(jobs(out)) == 2
    made = [
        json.loads(path.read_text()) for path in (out / "stages").glob("refined_consensus/*/manifest.json")
    ]
    assert sorted(each["parameters"]["kind"] for each in made) == ["homogeneous", "nonuniform"]
    for each in made:
        assert {"half_a.mrc", "half_b.mrc", "mask.mrc", "poses.npz", "particles.star"} <= set(each["files"])


def test_local_refinement_begins_where_the_consensus_ended(out: Path) -> None:
    (stage,) = (
        path.parent
        for path in (out / "stages").glob("refined_consensus/*/manifest.json")
        if json.loads(path.read_text())["parameters"]["kind"] == "homogeneous"
    )
    with np.load(stage / "poses.npz") as poses:
        rotations = torch.from_numpy(poses["rotations"])
    written = read_particles(stage / "particles.star")
    assert float(torch.rad2deg(angle_between(written.rotations, rotations)).max()) < 1e-4
    (given,) = (out / "stages").glob("simulation/*/particles.star")
    assert float(torch.rad2deg(angle_between(read_particles(given).rotations, rotations)).median()) > 0.5
    for job in jobs(out):
        refined = read_particles(job / "particles.star").rotations
        change = torch.rad2deg(angle_between(refined, rotations))
        told = pd.read_csv(job / "poses.csv")["rotation_change"]
        np.testing.assert_allclose(change.numpy(), told, atol=2e-3)
        assert float(change.max()) <= 20.0 + 1e-2


def test_five_curves_and_the_errors_of_the_body_are_recorded(out: Path) -> None:
    for job in (*jobs(out), *(path.parent for path in out.glob("other/run_*/summary.json"))):
        table = pd.read_csv(job / "consensus_fsc.csv")
        assert list(table) == CURVES
        assert len(table) == 25
        summary = json.loads((job / "summary.json").read_text())
        for name in ("none", "spherical", "loose", "tight", "corrected"):
            assert summary[f"consensus/{name}_0143"] > 0
        before, after = (summary[f"consensus/{name}_rotation_error_median"] for name in ("body_file", "body"))
        assert after < 0.7 * before
        assert read_map(job / "start_map.mrc").data.shape == (48, 48, 48)
