"""What a job makes of its refined half maps to be looked at, and what it refuses beforehand."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from cryosweep.app import main
from cryosweep.composition import ConfigFaults, make_plan
from cryosweep.io import read_map
from cryosweep.job import check_job
from cryosweep.reconstruction import HalfMaps
from cryosweep.sharpening import sharpen


def run(folder: Path, *overrides: str) -> tuple[Path, dict[str, float]]:
    """Folder and summary of a small refinement of the head."""
    status = main(
        [
            "run", "data.particles=60", "data.box_size=48", "data.pixel_size=7", "data.snr=2",
            "mask_base.name=head", "refinement.max_iterations=1", "refinement.initial_lowpass=16",
            "search.rotation_extent=2", "search.shift_extent=4", "search.audit=0", "scoring.band_low=60",
            "tracking.enabled=false", f"output_dir={folder}", *overrides,
        ]
    )  # fmt: skip
    assert status == 0
    (made,) = folder.glob("local_refinement/run_*")
    return made, json.loads((made / "summary.json").read_text(encoding="utf-8"))


def test_a_run_leaves_a_sharpened_map_and_if_asked_the_local_resolution(tmp_path: Path) -> None:
    made, summary = run(
        tmp_path, "postprocessing.b_factor=-120", "postprocessing.local_resolution=true",
        "postprocessing.local_resolution_window=60",
    )  # fmt: skip
    assert summary["sharpening/b_factor"] == -120.0
    assert "sharpening/b_factor_se" not in summary
    a, b, mask, sharpened = (
        read_map(made / f"{name}.mrc").data for name in ("half_a", "half_b", "mask", "sharpened")
    )
    curve = torch.from_numpy(pd.read_csv(made / "fsc.csv")["own_corrected"].to_numpy(copy=True))
    expected = sharpen(HalfMaps(a, b, 7.0), mask, curve, b_factor=-120.0).volume
    assert float((sharpened - expected).abs().max()) < 1e-3 * float(expected.abs().max())
    table = pd.read_csv(made / "guinier.csv")
    assert len(table) == 25
    assert table["sharpened"][8] - table["weighted"][8] == pytest.approx(30 * (8 / 336) ** 2, abs=1e-5)
    local = read_map(made / "local_resolution.mrc").data
    assert 14.0 - 1e-3 <= float(local.min()) < float(local.max()) <= 30.0 + 1e-3
    assert 14.0 - 1e-3 <= summary["local_resolution/p05"] <= summary["local_resolution/median"] <= 30.0
    assert read_map(made / "locally_filtered.mrc").data.std() > 0
    assert {"guinier.png", "local_resolution.png"} <= {path.name for path in (made / "figures").iterdir()}


def test_windows_and_numbers_that_cannot_be_are_refused_beforehand() -> None:
    (job,) = make_plan(["postprocessing.local_resolution_window=20"], multirun=False).jobs
    assert any("local_resolution_window=20: too narrow" in fault for fault in check_job(job))
    (job,) = make_plan(["postprocessing.local_resolution_window=2000"], multirun=False).jobs
    assert any(
        "local_resolution_window=2000: wider than the box of 336 Å" in fault for fault in check_job(job)
    )
    with pytest.raises(ConfigFaults) as caught:
        make_plan(
            ["postprocessing.b_factor=9000", "postprocessing.guinier_from=0",
             "postprocessing.local_resolution_threshold=1.5"], multirun=False,
        )  # fmt: skip
    assert len(caught.value.found) == 3
