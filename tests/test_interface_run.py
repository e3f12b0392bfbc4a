"""What a job makes of fulcrum=interface and mask.fill_holes, and the marker that every run leaves."""

import argparse
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cryosweep import app, composition
from cryosweep.config import JobConfig
from cryosweep.fulcrum import contact
from cryosweep.io import read_map, read_marker, write_map
from cryosweep.job import check_job, checks
from cryosweep.job.data import Data
from cryosweep.job.fulcrum import interface_point
from cryosweep.job.masks import aligning_mask, mask_base, mask_origin
from cryosweep.job.refining import refinement_settings
from cryosweep.job.starting import Start
from cryosweep.mask import soft_mask, spherical_mask
from cryosweep.reconstruction import HalfMaps
from cryosweep.rules import Finding
from cryosweep.simulate import DOMAINS, Truth, domain_labels, load_ribosome
from cryosweep.study.review import review_setup

BOX, PIXEL, ORIGIN = 64, 5.25, (-30.0, 12.5, 4.0)
SMALL = (f"data.box_size={BOX}", f"data.pixel_size={PIXEL}", "refinement.initial_lowpass=20")
PARTICLES = argparse.Namespace(pixel_size=PIXEL, box_size=BOX)


def plan(*overrides: str) -> JobConfig:
    (config,) = composition.make_plan([*SMALL, *overrides], multirun=False).jobs
    return config


def ball(radius: float, centre: tuple[float, float, float]) -> torch.Tensor:
    return spherical_mask(BOX, outer_px=radius, inner_px=radius, centre_px=centre)


def judged(
    config: JobConfig, consensus: torch.Tensor, mask: torch.Tensor, truth: Truth | None = None
) -> tuple[torch.Tensor, str, tuple[Finding, ...]]:
    """The fulcrum of a job whose half maps are both `consensus`, its note and what is doubtful about it."""
    data = Data(PARTICLES, truth, "")
    start = Start(PARTICLES, HalfMaps(consensus, consensus, PIXEL), ORIGIN, pd.DataFrame(), {})
    base = mask_base(config, data, start, torch.device("cpu"))
    return interface_point(config, config.fulcrum, data, start, base, mask, torch.device("cpu"))


def found(
    config: JobConfig, consensus: torch.Tensor, mask: torch.Tensor, truth: Truth | None = None
) -> tuple[torch.Tensor, str]:
    """Point and note of `judged`."""
    return judged(config, consensus, mask, truth)[:2]


def test_labelled_domains_are_cut_from_the_consensus_and_lead_to_the_hinge() -> None:
    """The head on the foot, in noise-free density: the carrier of the model, and a place near its hinge."""
    structure = load_ribosome()
    labels = domain_labels(structure, box_size=BOX, pixel_size=PIXEL)
    density = (domain_labels(structure, box_size=BOX, pixel_size=PIXEL, reach=5.0) > 0).float()
    truth = Truth({}, labels, BOX, PIXEL)
    config = plan("fulcrum=interface", "mask_base.name=head", "mask_base.smoothing=0", "mask.threshold=0.5")
    point, note = found(config, density, density, truth)
    head, foot = ((density > 0.5) & (labels == 1 + DOMAINS.index(name)) for name in ("head", "foot"))
    expected = contact(head, foot, pixel_size=PIXEL)
    torch.testing.assert_close(point, expected.centre)
    sd = ", ".join(f"{float(value):.1f}" for value in expected.sd)
    assert note == (
        f"The fulcrum is the contact with foot: {expected.voxels} voxels within 10.5 Å of both, of SD {sd} Å "
        "along x, y, z."
    )
    assert float((point - structure.hinges["head"]).norm()) < 9.0


@pytest.mark.parametrize(("name", "codes"), [("head", []), ("foot", []), ("arm", ["R30"])])
def test_a_contact_along_the_domain_is_a_finding_of_the_job(name: str, codes: list[str]) -> None:
    structure = load_ribosome()
    labels = domain_labels(structure, box_size=BOX, pixel_size=PIXEL)
    density = (domain_labels(structure, box_size=BOX, pixel_size=PIXEL, reach=5.0) > 0).float()
    config = plan(
        "fulcrum=interface", f"mask_base.name={name}", "mask_base.smoothing=0", "mask.threshold=0.5"
    )  # fmt: skip
    point, _, doubts = judged(config, density, density, Truth({}, labels, BOX, PIXEL))
    assert [each.code for each in doubts] == codes
    assert (float((point - structure.hinges[name]).norm()) > 15.0) == bool(codes)


def test_parts_of_files_are_masks_or_maps_cut_where_the_mask_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    domain, carrier, small = ball(8, (0, 0, 10)), ball(12, (0, 0, -10)), ball(4, (12, 0, 10))
    for name, volume in (("domain", domain), ("carrier", carrier), ("small", small)):
        write_map(tmp_path / f"{name}.mrc", volume, pixel_size=PIXEL)
        write_map(tmp_path / f"{name}_map.mrc", 5 * volume - 1, pixel_size=PIXEL)
    expected = contact(domain > 0.5, carrier > 0.5, pixel_size=PIXEL).centre
    zero = torch.zeros(BOX, BOX, BOX)
    for kind in ("", "_map"):
        config = plan(
            "fulcrum=interface", f"fulcrum.parts=[small{kind}.mrc,carrier{kind}.mrc]", "mask_base=file",
            "mask_base.path=domain_map.mrc", "mask_base.smoothing=0", "mask.threshold_unit=absolute",
            "mask.threshold=1",
        )  # fmt: skip
        point, note = found(config, zero, zero)
        torch.testing.assert_close(point, expected)
        assert f"contact with carrier{kind}.mrc" in note
    config = plan(
        "fulcrum=interface", "fulcrum.parts=[carrier.mrc]", "mask=file", "mask.path=domain.mrc",
        "mask_base=consensus",
    )  # fmt: skip
    point, _ = found(config, zero, domain)
    torch.testing.assert_close(point, expected)
    assert check_job(config) == []
    far = plan(
        "fulcrum=interface", "fulcrum.parts=[small_map.mrc]", "mask=file", "mask.path=domain.mrc",
        "mask_base=consensus",
    )  # fmt: skip
    (fault,) = check_job(far)
    assert "small_map.mrc: a mask holds values from 0 to 1" in fault
    write_map(tmp_path / "far.mrc", ball(4, (-20, 0, 20)), pixel_size=PIXEL)
    config = plan(
        "fulcrum=interface", "fulcrum.parts=[far.mrc]", "mask=file", "mask.path=domain.mrc",
        "mask_base=consensus",
    )  # fmt: skip
    with pytest.raises(
        ValueError, match=r"^fulcrum=interface: the domain touches far\.mrc in 0 .*=marker\)$"
    ):
        found(config, zero, domain)
    (fault,) = check_job(plan("fulcrum=interface", "fulcrum.parts=[nosuch.mrc]"))
    assert fault == "nosuch.mrc: there is no such map"


def test_holes_are_filled_where_the_configuration_says_so() -> None:
    shell = ball(14, (0, 0, 0)) - ball(6, (0, 0, 0))
    start = Start(PARTICLES, HalfMaps(shell, shell, PIXEL), ORIGIN, pd.DataFrame(), {})
    options = (
        "mask_base=consensus",
        "mask_base.smoothing=0",
        "mask.threshold_unit=absolute",
        "mask.threshold=0.5",
    )
    for value in ("false", "true"):
        config = plan(*options, f"mask.fill_holes={value}")
        base = mask_base(config, Data(PARTICLES, None, ""), start, torch.device("cpu"))
        made = aligning_mask(config, base, PARTICLES, torch.device("cpu"))
        expected = soft_mask(
            shell, threshold=0.5, dilation_radius_px=7 / PIXEL, soft_padding_width_px=16 / PIXEL,
            holes_filled=value == "true",
        )  # fmt: skip
        assert torch.equal(made, expected)
        assert bool(made[BOX // 2, BOX // 2, BOX // 2] == 1.0) is (value == "true")


class Few(argparse.Namespace):
    """What a review of a set-up reads of particles."""

    pixel_size = PIXEL
    half_sets = torch.arange(100) % 2

    def __len__(self) -> int:
        return len(self.half_sets)


def about_mask(config: JobConfig, mask: torch.Tensor, base: torch.Tensor | None) -> list[str]:
    """What the rules of masks say of a job's aligning mask, before it runs."""
    findings = review_setup(
        mask, torch.zeros_like(mask), Few(), fulcrum=torch.zeros(3, dtype=torch.float64),
        settings=refinement_settings(config), made=mask_origin(config, base, mask, PIXEL),
        resolution=config.refinement.initial_lowpass,
    )  # fmt: skip
    return [str(finding) for finding in findings if finding.code in ("R1", "R2", "R5", "R6")]


def test_findings_about_the_mask_name_a_rough_base_and_a_steep_file() -> None:
    noise = torch.randn(BOX, BOX, BOX, generator=torch.Generator().manual_seed(1))
    wide = spherical_mask(BOX, outer_px=31, inner_px=3)
    notes = about_mask(plan("mask_base=consensus"), wide, ball(14, (0, 0, 0)) + noise)
    assert any("mask base is not smooth" in note and "resolution of 10.5 Å" in note for note in notes)
    steep = about_mask(
        plan("mask=file", "mask.path=a.mrc"), spherical_mask(BOX, outer_px=18, inner_px=14), None
    )
    assert ["as steep as a soft padding of" in note for note in steep] == [True]


@pytest.mark.slow
def test_a_run_about_an_interface_leaves_its_marker_and_says_how_well_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    status = app.main(
        ["run", *SMALL, "data.particles=60", "data.snr=2", "fulcrum=interface", "mask_base.name=head",
         "refinement.max_iterations=1", "search.audit=0", "tracking.enabled=false", "compute.threads=1",
         "compute.device=cpu"]
    )  # fmt: skip
    assert status == 0
    (folder,) = (tmp_path / "cryosweep_out").glob("*/run_*")
    notes = json.loads((folder / "run.json").read_text(encoding="utf-8"))["notes"]
    assert [note for note in notes if note.startswith("The fulcrum is the contact with foot: ")]
    map = read_map(folder / "map.mrc")
    half = BOX // 2 * PIXEL
    point = np.array(read_marker(folder / "fulcrum.cmm")) - half - np.array(map.origin)
    assert np.linalg.norm(point - load_ribosome().hinges["head"].numpy()) < 15.0


def test_what_no_run_could_use_is_told_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a user's particles: the folder of a job, a point outside, a threshold above the map, no marker."""
    monkeypatch.chdir(tmp_path)
    write_map(tmp_path / "domain.mrc", ball(8, (0, 0, 10)), pixel_size=PIXEL)
    monkeypatch.setattr(checks, "read_relion", lambda _: PARTICLES)
    user = ("data=relion", "data.star=run_data.star", "mask_base=file", "mask_base.path=domain.mrc")

    def faults(*overrides: str) -> list[str]:
        (config,) = composition.make_plan([*user, *overrides], multirun=False).jobs
        return check_job(config)

    high = ("mask.threshold_unit=absolute", "mask.threshold=1")
    assert faults() == []
    assert faults("mask.threshold_unit=absolute", "mask.threshold=0.99", "mask_base.smoothing=5") == []
    assert faults(*high) == [
        "mask.threshold=1: no voxel of domain.mrc lies above it (its maximum is 1); lower the threshold"
    ]
    assert faults("fulcrum=px", "fulcrum.position=[0,31.5,63]") == []
    (fault,) = faults("fulcrum=px", "fulcrum.position=[99,2,3]")
    assert fault.startswith("fulcrum.position=[99.0, 2.0, 3.0] px: lies outside the 64 px box")
    assert faults("fulcrum=marker", "fulcrum.path=nosuch.cmm") == ["nosuch.cmm: there is no such file"]
    assert faults("fulcrum=marker", "fulcrum.position=[0,100,335]") == []
    (fault,) = faults("fulcrum=marker", "fulcrum.position=[400,100,100]")
    assert "the fulcrum (232.0, -68.0, -68.0) Å from the box centre lies outside the box" in fault
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (fault,) = faults("data.star=.")
    assert fault == "data.star=.: a folder; name the STAR file in it, such as run_data.star"
