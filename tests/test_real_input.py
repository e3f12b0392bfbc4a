"""One command line on foreign input: real tilt images, a sweep over them, a stack that RELION projected."""

import json
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
import torch
from mlflow import MlflowClient
from torch import Tensor

from cryosweep import app
from cryosweep.geometry import angle_between, euler_from_rotation, random_rotations, rotation_from_vector
from cryosweep.io import read_particles, write_map, write_particles
from cryosweep.io.particles import Particles
from cryosweep.mask import centre_of_mass
from cryosweep.simulate import align_frames, load_ribosome, pose_errors, render_domain
from cryosweep.study.findings import read_findings, tags_of
from cryosweep.study.sweep import read_sweep
from cryosweep.tracking import store_uri

VOLUMES = ("half_a", "half_b", "map", "start_map", "sharpened", "mask", "scoring_mask")
FIGURES = (
    "slices", "fourier_slices", "mask", "gsfsc", "pose_changes", "guinier", "noise", "views", "precision",
    "conical_fsc",
)  # fmt: skip
TABLES = (
    "fsc.csv",
    "iterations.csv",
    "poses.csv",
    "guinier.csv",
    "noise.csv",
    "views.csv",
    "directions.csv",
    "conical_fsc.csv",
    "findings.json",
    "findings.txt",
    "particles.star",
    "summary.json",
    "run.json",
    "config.yaml",
)

Record = Callable[[str, object], None]


def say(line: str) -> None:
    """The figure beside its test in the log (`pytest -rA`)."""
    print(line)  # noqa: T201


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder; what a run leaves in this process is undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    # a handler that another test left behind writes to a stream that is closed by now
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    return tmp_path / "cryosweep_out"


def command(star: Path, *overrides: str) -> list[str]:
    """The command line of every test here: particles of RELION, masks cut from their own consensus map."""
    return [
        "run", "data=relion", f"data.star={star}", "mask_base=consensus", "compute.device=cpu",
        "compute.threads=1", *overrides,
    ]  # fmt: skip


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def assert_complete(folder: Path, *, box_size: int, rows: int) -> None:
    """Every file of a finished run is there and can be read."""
    for name in (*TABLES, "metrics.jsonl", "cryosweep.log"):
        assert (folder / name).stat().st_size > 0, name
    for name in VOLUMES:
        volume = mrcfile.read(folder / f"{name}.mrc")
        assert volume.shape == (box_size,) * 3, name
        assert np.isfinite(volume).all(), name
        assert volume.std() > 0, name
    for name in FIGURES:
        assert (folder / "figures" / f"{name}.png").stat().st_size > 5000, name
    curves = pd.read_csv(folder / "fsc.csv")
    assert len(curves) == box_size // 2 + 1
    assert np.isfinite(curves.to_numpy()).all()
    poses = pd.read_csv(folder / "poses.csv")
    assert len(poses) == rows
    assert (poses[["rotation_sd", "shift_sd"]] > 0).all(axis=None)
    labels = read_particles(folder / "particles.star", ctf_damping="none").table.columns
    assert {"cryosweepRotationSd", "cryosweepShiftSdAngst"} <= set(labels)
    assert {"resolution", "resolution_corrected"} <= set(pd.read_csv(folder / "iterations.csv").columns)
    assert {"pose/rotation_sd_median", "pose/shift_sd_median"} <= set(read_json(folder / "summary.json"))
    assert all(math.isfinite(value) for value in read_json(folder / "summary.json").values())
    assert not (folder / "traceback.txt").exists()


# ---- 219 real images of a tilt series ----

ROTATION_EXTENT, SHIFT_EXTENT = 6.0, 5.0
# The STAR file says 1.96 Å, so the box of 64 px is taken as 125 Å wide: 30 Å is its fourth shell.
TILT_SERIES = (
    "data.ctf_damping=absolute", "mask_base.smoothing=8", "mask.threshold=0.5", "scoring.threshold=0.5",
    f"search.rotation_extent={ROTATION_EXTENT}", f"search.shift_extent={SHIFT_EXTENT}",
    "refinement.initial_lowpass=30", "refinement.max_resolution=12", "refinement.max_iterations=2",
)  # fmt: skip


@pytest.fixture
def tilt_series(shared_data: Path) -> Path:
    return shared_data / "particles" / "sta_testing_bin8.star"


def pose_changes(before: Particles, after: Particles, fulcrum: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) degrees, and (n,) Å by which the projected fulcrum (3,) moved: what the extents limit."""
    rotation = torch.rad2deg(angle_between(after.rotations, before.rotations))
    turned = ((after.rotations - before.rotations) @ fulcrum)[:, :2]
    return rotation, (after.shifts - before.shifts + turned).norm(dim=1)


def test_real_tilt_images_run_to_the_end(
    tilt_series: Path, out: Path, capsys: pytest.CaptureFixture[str], record_property: Record
) -> None:
    """Whether the poses are any better is not asked: the file's pixel size is not that of the images."""
    assert app.main(command(tilt_series, "study=tilt", *TILT_SERIES)) == 0
    folder = only(out, "tilt/run_*")
    assert f"FINISHED: {folder}" in capsys.readouterr().out
    assert_complete(folder, box_size=64, rows=219)

    # what was overridden is said on the console, in the log and in the record
    record = read_json(folder / "run.json")
    assert record["status"] == "FINISHED"
    notes, printed = "\n".join(record["notes"]), (folder / "cryosweep.log").read_text(encoding="utf-8")
    for told in (
        "lacks the 'MAP ' tag",
        "says 1 Å per pixel (unset); the 1.96 Å of the STAR file is used",
        "damped by |rlnCtfBfactor| (data.ctf_damping=absolute)",
    ):
        assert told in notes
        assert told in printed
    assert "the mask reaches the box boundary" in notes

    # the stack holds one image more than the table has rows, and every row found its own
    before = read_particles(tilt_series, ctf_damping="absolute")
    after = read_particles(folder / "particles.star", ctf_damping="absolute")
    assert np.fromfile(before.stacks[0], dtype="<i4", count=3).tolist() == [64, 64, 220]
    assert len(after) == 219
    every = torch.arange(219)
    assert torch.equal(after.images(every), before.images(every))
    kept = [
        label
        for label in before.table.columns
        if not label.startswith(("rlnAngle", "rlnOrigin", "rlnImageName"))
    ]
    assert "rlnRandomSubset" in kept
    assert after.table[kept].equals(before.table[kept])

    mask = torch.from_numpy(mrcfile.read(folder / "mask.mrc"))
    rotation, shift = pose_changes(before, after, centre_of_mass(mask).double() * before.pixel_size)
    figures = (float(rotation.max()), float(shift.max()))
    record_property("largest_changes", figures)
    say(
        f"tilt series: largest changes beyond the extents {figures[0] - ROTATION_EXTENT:.1e}° and "
        f"{figures[1] - SHIFT_EXTENT:.1e} Å"
    )
    assert float(rotation.median()) > 0.5  # poses did move
    # excess seen 3e-6, of float32; limits on components instead of the norm let poses go 1.4 times as far
    assert figures[0] < ROTATION_EXTENT * (1 + 1e-4)
    assert figures[1] < SHIFT_EXTENT * (1 + 1e-4)

    client = MlflowClient(store_uri(None, out))
    run = client.get_run(record["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert client.get_experiment(run.info.experiment_id).name == "tilt"
    assert run.data.metrics["fsc_area/frozen"] == read_json(folder / "summary.json")["fsc_area/frozen"]
    findings = read_findings(folder)
    assert {"R1", "R5"} <= {finding.code for finding in findings}
    tags = {key: value for key, value in run.data.tags.items() if key.startswith("finding.")}
    assert tags == tags_of(findings)
    stored = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert stored >= {*TABLES, *(f"{name}.mrc" for name in VOLUMES)}
    figures_stored = {file.path for file in client.list_artifacts(run.info.run_id, "figures")}
    assert figures_stored == {f"figures/{name}.png" for name in FIGURES}


def test_sweep_over_real_tilt_images(
    tilt_series: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ("-m", "study=tilt_sweep", "mask.dilation_radius=0,10")
    assert app.main(command(tilt_series, *sweep, *TILT_SERIES)) == 0
    folder = only(out, "tilt_sweep/sweep_*")
    text = capsys.readouterr().out
    assert "Study tilt_sweep: 2 finished, 0 failed" in text
    assert (folder / "report.txt").read_text(encoding="utf-8") in text
    assert f"FINISHED: 2 of 2 jobs finished: {folder}" in text
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")[:500]
    rows = pd.read_csv(folder / "report.csv")["run"].tolist()
    assert sorted(rows) == ["dilation_radius=0", "dilation_radius=10", "start"]
    book = read_sweep(folder)
    assert book["status"] == "FINISHED"
    assert [job["status"] for job in book["jobs"]] == ["FINISHED", "FINISHED"]
    volumes: list[float] = []
    for number, dilation in enumerate((0, 10)):
        assert_complete(folder / str(number), box_size=64, rows=219)
        assert read_json(folder / str(number) / "run.json")["swept"] == {"mask.dilation_radius": dilation}
        volumes.append(read_json(folder / str(number) / "summary.json")["mask/volume"])
    assert volumes[1] > 1.1 * volumes[0]
    # both were measured with the same ruler
    rulers = [mrcfile.read(folder / number / "scoring_mask.mrc") for number in ("0", "1")]
    assert np.array_equal(*rulers)


# ---- a stack that RELION projected ----

BOX_SIZE, PIXEL_SIZE, COUNT, SNR = 48, 4.5, 300, 0.2


def relion_stack(
    folder: Path, relion: Callable[..., str], generator: torch.Generator
) -> tuple[Particles, Tensor]:
    """Noisy views of the ribosome's head as `relion_project` makes them, and the head's centre (3,) in Å."""
    domain = load_ribosome().domains["head"]
    centre = torch.tensor([22.0, -15.0, 17.0], dtype=torch.float64)
    head = render_domain(
        domain.coordinates, domain.weights,
        box_size=BOX_SIZE, pixel_size=PIXEL_SIZE, centre=domain.centre_of_mass - centre,
    )  # fmt: skip
    write_map(folder / "head.mrc", head, pixel_size=PIXEL_SIZE)

    def uniform(low: float, high: float) -> np.ndarray:
        return (low + (high - low) * torch.rand(COUNT, generator=generator, dtype=torch.float64)).numpy()

    angles = euler_from_rotation(random_rotations(COUNT, generator, dtype=torch.float64)).numpy()
    defocus = uniform(8e3, 2e4)
    table = pd.DataFrame(
        {
            "rlnAngleRot": angles[:, 0],
            "rlnAngleTilt": angles[:, 1],
            "rlnAnglePsi": angles[:, 2],
            "rlnOriginXAngst": uniform(-9, 9),
            "rlnOriginYAngst": uniform(-9, 9),
            "rlnDefocusU": defocus + 200,
            "rlnDefocusV": defocus - 200,
            "rlnDefocusAngle": uniform(0, 180),
            "rlnOpticsGroup": 1,
            "rlnRandomSubset": 1 + np.arange(COUNT) % 2,
            "rlnImageName": [f"{number + 1:06d}@unread.mrcs" for number in range(COUNT)],
        }
    )
    optics = pd.DataFrame(
        {
            "rlnOpticsGroup": [1],
            "rlnOpticsGroupName": ["one"],
            "rlnVoltage": [300.0],
            "rlnSphericalAberration": [2.7],
            "rlnAmplitudeContrast": [0.1],
            "rlnImagePixelSize": [PIXEL_SIZE],
            "rlnImageSize": [BOX_SIZE],
            "rlnImageDimensionality": [2],
        }
    )
    starfile.write({"optics": optics, "particles": table}, folder / "views.star")
    make = ("relion_project", "--i", "head.mrc", "--ang", "views.star", "--angpix", PIXEL_SIZE, "--ctf")
    relion(*make, "--o", "clean")
    signal = float(mrcfile.read(folder / "clean.mrcs").std())
    relion(*make, "--o", "noisy", "--add_noise", "--white_noise", signal / SNR**0.5)
    noise = float((mrcfile.read(folder / "noisy.mrcs") - mrcfile.read(folder / "clean.mrcs")).std())
    assert signal**2 / noise**2 == pytest.approx(SNR, rel=0.05)
    return read_particles(folder / "noisy.star"), centre


@pytest.mark.relion
def test_poses_improve_on_a_stack_that_relion_projected(
    out: Path,
    relion: Callable[..., str],
    tmp_path: Path,
    generator: torch.Generator,
    record_property: Record,
) -> None:
    true, centre = relion_stack(tmp_path, relion, generator)
    turn = torch.deg2rad(4.0 * torch.randn(COUNT, 3, generator=generator, dtype=torch.float64))
    moved = true.shifts + 2.0 * torch.randn(COUNT, 2, generator=generator, dtype=torch.float64)
    write_particles(
        true, tmp_path / "start.star", rotations=rotation_from_vector(turn) @ true.rotations, shifts=moved
    )
    overrides = (
        "study=projected", "tracking.enabled=false", "mask_base.smoothing=6", "mask.threshold=0.3",
        "search.rotation_extent=15", "search.shift_extent=8", "refinement.initial_lowpass=20",
        "refinement.max_iterations=3",
    )  # fmt: skip
    assert app.main(command(tmp_path / "start.star", *overrides)) == 0
    folder = only(out, "projected/run_*")
    assert_complete(folder, box_size=BOX_SIZE, rows=COUNT)

    medians: list[tuple[float, float]] = []
    for path in (tmp_path / "start.star", folder / "particles.star"):
        found = read_particles(path)
        poses = (found.rotations, found.shifts, true.rotations, true.shifts)
        frame = align_frames(*poses, point=centre)
        rotation_error, shift_error = pose_errors(*poses, frame=frame, point=centre)
        medians.append((float(rotation_error.median()), float(shift_error.median())))
    (rotation_before, shift_before), (rotation_after, shift_after) = medians
    record_property("median_errors", medians)
    say(
        f"stack projected by RELION, SNR {SNR}: median error {rotation_before:.2f}° and {shift_before:.2f} Å "
        f"at the start, {rotation_after:.2f}° and {shift_after:.2f} Å refined"
    )
    assert rotation_before > 4.0
    assert shift_before > 2.0
    # seen 0.95° and 0.44 Å, from 6.08° and 3.02 Å; started with the other sign of the origin they end at 7.5°
    # and 6.5 Å, with transposed matrices at 86° and 17 Å
    assert rotation_after < 2.0
    assert shift_after < 1.0
