"""The tri-snRNP experiment, on simulated files in the dialect and the layout of EMPIAR-10073.

One table without a name, origins in px up to tens of px, the pixel size as magnification and detector
pixel, image names with a folder that is not there, and a stack for each micrograph in one folder.
"""

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import starfile
import torch

from cryosweep import app
from cryosweep.composition import make_plan
from cryosweep.config import FileSubtraction, FulcrumMarker, SoftMask, parse_length
from cryosweep.geometry import euler_from_rotation
from cryosweep.io import open_stack_for_writing, read_map, read_particles
from cryosweep.io.particles import Particles
from cryosweep.mask import centre_of_mass
from cryosweep.simulate import SimulationSettings, load_ribosome, simulate

CONF = Path(__file__).parents[1] / "experiments" / "tri_snrnp" / "conf"
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
STAR = Path("10073/data/shiny_correctpaths_cleanedcorruptstacks.star")
FOLDER_IN_NAMES = "Particles/Micrographs"
BOX, PIXEL, COUNT, MICROGRAPHS = 48, 7.0, 300, 6
# 5 µm at 35,714 times would be the 1.400011 Å that RELION 3.1 makes of the deposited file; here 6.9999 Å
DETECTOR_UM, MAGNIFICATION = 5.0, 7143.0
FURTHEST_ROLL = 12  # px
REST_PADDING = "16.8A"  # of the mask of what is subtracted, as in the README
# what is too fine for pixels of 7 Å, and the head's hinge in place of the tri-snRNP's
COARSE = (
    "refinement.initial_lowpass=25", "refinement.max_iterations=2", "search.audit=0", "scoring.jackknife=0",
    "tracking.enabled=false", "compute.device=cpu", "compute.threads=1",
)  # fmt: skip


def say(line: str) -> None:
    """The figure beside its test in the log (`pytest -rA`)."""
    print(line)  # noqa: T201


@dataclass(frozen=True)
class Download:
    """A project folder with simulated particles, also as the entry has them, and what each was rolled by."""

    folder: Path
    simulated: Particles
    rolls: torch.Tensor  # (n, 2) px, along x and y


def write_entry(particles: Particles, folder: Path) -> torch.Tensor:
    """The particles in the entry's dialect; images rolled by whole px, which their origins take back."""
    generator = torch.Generator().manual_seed(1)
    rolls = torch.randint(-FURTHEST_ROLL, FURTHEST_ROLL + 1, (len(particles), 2), generator=generator)
    (folder / STAR).parent.mkdir(parents=True)
    rows: list[pd.DataFrame] = []
    angles = euler_from_rotation(particles.rotations)
    origins = -particles.shifts / PIXEL - rolls
    optics = particles.optics
    for number, index in enumerate(torch.arange(len(particles)).chunk(MICROGRAPHS)):
        name = f"mic_{number:04d}_shiny.mrcs"
        images = particles.images(index)
        path = (folder / STAR).parent / name
        with open_stack_for_writing(path, count=len(index), box_size=BOX, pixel_size=PIXEL) as stack:
            for row, (image, (x, y)) in enumerate(zip(images, rolls[index].tolist(), strict=True)):
                stack[row] = image.roll((y, x), dims=(0, 1)).numpy()
        rows.append(
            pd.DataFrame(
                {
                    "rlnMicrographName": f"Micrographs/mic_{number:04d}.mrc",
                    "rlnImageName": [f"{row + 1:06d}@{FOLDER_IN_NAMES}/{name}" for row in range(len(index))],
                    "rlnMagnification": MAGNIFICATION,
                    "rlnDetectorPixelSize": DETECTOR_UM,
                    "rlnVoltage": optics.voltage[index],
                    "rlnDefocusU": optics.defocus_u[index],
                    "rlnDefocusV": optics.defocus_v[index],
                    "rlnDefocusAngle": optics.astigmatism_angle[index],
                    "rlnSphericalAberration": optics.spherical_aberration[index],
                    "rlnAmplitudeContrast": optics.amplitude_contrast[index],
                    "rlnAngleRot": angles[index, 0],
                    "rlnAngleTilt": angles[index, 1],
                    "rlnAnglePsi": angles[index, 2],
                    "rlnOriginX": origins[index, 0],
                    "rlnOriginY": origins[index, 1],
                    "rlnRandomSubset": particles.half_sets[index] + 1,
                }
            )
        )
    starfile.write({"": pd.concat(rows, ignore_index=True)}, folder / STAR)
    return rolls


@pytest.fixture(scope="module")
def download(tmp_path_factory: pytest.TempPathFactory) -> Download:
    folder = tmp_path_factory.mktemp("project")
    settings = SimulationSettings(particles=COUNT, box_size=BOX, pixel_size=PIXEL, snr=1.0, seed=3)
    simulated = read_particles(simulate(settings, folder / "simulated", device="cpu").particles)
    return Download(folder, simulated, write_entry(simulated, folder))


@pytest.fixture
def project(download: Download, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project folder as the working folder; what a run leaves in this process is undone."""
    monkeypatch.chdir(download.folder)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    return download.folder


def cryosweep(*words: str) -> None:
    assert app.main(list(words)) == 0, words


def with_experiment(command: str, name: str, *overrides: str) -> None:
    cryosweep(command, "--config-dir", str(CONF), f"experiment={name}", *COARSE, *overrides)


def summary_of(folder: Path) -> dict[str, float]:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


@pytest.fixture
def consensus(project: Path) -> Path:
    """Steps 2 to 4 of the README, made once: refined poses, mask bases of head and foot and of the rest."""
    made = project / "tri_snrnp"
    if not (made / "foot_rest.mrc").exists():
        made.mkdir(exist_ok=True)
        cryosweep(
            "consensus", str(STAR), "--image-folder", str(STAR.parent), "-o", "tri_snrnp/consensus",
            "--nonuniform", "--iterations", "1", "--initial-lowpass", "25", "--device", "cpu",
        )  # fmt: skip
        for name, value in (("head", "3"), ("foot", "2")):
            cryosweep(
                "segment", "tri_snrnp/consensus/half_a.mrc", "tri_snrnp/consensus/half_b.mrc",
                "--smoothing", "4A", "--steps", "0", "--label", "simulated/domains.mrc",
                "--label-value", value,
                "-o", f"tri_snrnp/{name}_base.mrc", "--rest", f"tri_snrnp/{name}_rest.mrc",
            )  # fmt: skip
        cryosweep(
            "mask", "tri_snrnp/head_rest.mrc", "-o", "tri_snrnp/head_rest_mask.mrc", "--threshold", "0.05",
            "--threshold-unit", "fraction", "--dilation-radius", "0", "--soft-padding-width", REST_PADDING,
        )  # fmt: skip
    return made


def test_the_entry_is_read_as_it_is_laid_out(download: Download) -> None:
    """The same rotations and images, and the rolls in the shifts: pixel origins times the pixel size."""
    entry = read_particles(download.folder / STAR, image_folder=download.folder / STAR.parent)
    origins = entry.table[["rlnOriginX", "rlnOriginY"]].astype(float).abs().to_numpy()
    assert origins.max() > 10
    assert entry.block == ""
    assert entry.optics_table is None
    assert len(entry.stacks) == MICROGRAPHS
    assert entry.box_size == BOX
    assert abs(entry.pixel_size - DETECTOR_UM * 1e4 / MAGNIFICATION) < 1e-9
    expected = download.simulated.shifts + download.rolls * PIXEL
    torch.testing.assert_close(entry.shifts, expected, rtol=3e-5, atol=1e-3)  # 6.9999 is not 7
    torch.testing.assert_close(entry.rotations, download.simulated.rotations, rtol=0, atol=1e-6)
    index = torch.tensor([0, 77, COUNT - 1])
    for image, original, roll in zip(
        entry.images(index), download.simulated.images(index), download.rolls[index].tolist(), strict=True
    ):
        torch.testing.assert_close(image, original.roll((roll[1], roll[0]), dims=(0, 1)), rtol=0, atol=0)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_accepted(name: str, consensus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_experiment("check", name)
    assert "nothing to refuse\n1 job" in capsys.readouterr().out


def test_the_parameters_are_those_of_the_case_study(consensus: Path) -> None:
    """It states px of 1.4 Å."""
    plan = make_plan(["experiment=tri_snrnp_head_subtracted"], multirun=False, config_folders=[CONF])
    (job,) = plan.jobs
    assert isinstance(job.mask, SoftMask)
    assert isinstance(job.subtraction, FileSubtraction)
    assert job.subtraction.role.value == "remove"
    assert isinstance(job.fulcrum, FulcrumMarker)
    assert job.fulcrum.position is not None
    assert (job.mask.threshold, job.mask.threshold_unit.value) == (0.05, "fraction")
    lengths = (
        (job.mask.dilation_radius, 5.0), (job.mask.soft_padding_width, 17.0), (REST_PADDING, 12.0),
    )  # fmt: skip
    for given, px in lengths:
        assert parse_length(given, 1.4) == pytest.approx(px * 1.4, abs=1e-9)
    assert [round(value / 1.4, 1) for value in job.fulcrum.position] == [178.2, 178.6, 180.9]
    assert (job.search.rotation_extent, job.search.shift_extent) == (20.0, 14.0)
    (plain,) = make_plan(["experiment=tri_snrnp_head"], multirun=False, config_folders=[CONF]).jobs
    assert (plain.search.rotation_extent, plain.search.shift_extent) == (20.0, 10.0)
    assert plain.search.extent_shape.value == "per_axis"


def test_reconstruction_only_leaves_the_poses(download: Download, project: Path) -> None:
    """The map of the entry is that of the particles it was made from, whatever the images were rolled by."""
    with_experiment("run", "tri_snrnp_check", "mask.threshold=0.2", "hydra.run.dir=check")
    summary = summary_of(project / "check")
    assert summary["pose/rotation_change_median"] < 1e-5  # degrees; seen 6e-7
    assert summary["pose/shift_change_median"] < 1e-5  # Å
    cryosweep("reconstruct", "simulated/particles.star", "-o", "plain", "--device", "cpu")
    ours, plain = (read_map(project / name).data for name in ("check/half_a.mrc", "plain_half_a.mrc"))
    apart = float((ours - plain).norm() / plain.norm())
    say(f"relative difference of the half maps {apart:.2g}")
    assert apart < 2e-3


def test_the_head_without_the_rest_from_the_download_to_the_sharpened_map(
    download: Download, consensus: Path
) -> None:
    """Better than it began by the truth, with what the case study looks at on the disk."""
    hinge = load_ribosome().hinges["head"] + BOX // 2 * PIXEL
    position = ",".join(f"{float(value):.1f}" for value in hinge)
    with_experiment(
        "run", "tri_snrnp_head_subtracted", f"fulcrum.position=[{position}]", "hydra.run.dir=head_subtracted"
    )
    folder = download.folder / "head_subtracted"
    summary = summary_of(folder)
    for name in ("start_map", "map", "sharpened", "mask", "scoring_mask", "removed"):
        assert read_map(folder / f"{name}.mrc").data.shape == (BOX,) * 3
    for name in ("slices", "fourier_slices", "mask", "gsfsc", "guinier", "noise", "views", "precision",
                 "pose_changes", "pose_moves"):  # fmt: skip
        assert (folder / "figures" / f"{name}.png").stat().st_size > 5000
    # head kept, rest removed
    truth = read_map(download.folder / "simulated" / "truth_head.mrc").data
    removed, mask = (read_map(folder / f"{name}.mrc").data for name in ("removed", "mask"))
    inside = truth > 0.3 * truth.max()
    assert float(mask[inside].mean()) > 0.9  # seen 0.94
    assert float(removed[inside].mean()) < 0.15  # seen 0.08
    apart = (centre_of_mass(mask) - centre_of_mass(removed)).norm() * PIXEL
    assert float(apart) > 50.0  # Å
    # against the truth, row by row of the table that both came from
    true = read_particles(download.folder / "simulated" / "truth_head.star").rotations
    refined, given = (
        read_particles(path, image_folder=download.folder / STAR.parent).rotations
        for path in (folder / "particles.star", download.folder / STAR)
    )
    before, after = (median_error(each, true) for each in (given, refined))
    say(f"median rotation error of the head {before:.1f}° before, {after:.1f}° after")
    assert after < 0.6 * before
    assert summary["fsc_area/frozen"] > summary["start/fsc_area_frozen"]
    table = starfile.read(folder / "particles.star")
    assert isinstance(table, pd.DataFrame)  # one table still, with origins in px
    assert {"rlnOriginX", "rlnMagnification"} <= set(table)
    assert "rlnOriginXAngst" not in table


def median_error(rotations: torch.Tensor, true: torch.Tensor) -> float:
    """Degrees, median, once the one rotation between the two frames is taken out."""
    between = true.transpose(1, 2) @ rotations
    u, _, v = torch.linalg.svd(between.sum(dim=0))
    apart = (true.transpose(1, 2) @ rotations) @ (u @ v).T
    trace = apart.diagonal(dim1=1, dim2=2).sum(dim=1)
    return float(torch.rad2deg(torch.arccos(((trace - 1.0) / 2.0).clamp(-1.0, 1.0))).median())
