"""Scores on common images: the same poses have the same, whatever was subtracted for the refinement."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cryosweep import app
from cryosweep.composition import make_plan
from cryosweep.config import JobConfig
from cryosweep.job.common import COMMON, OwnScores, common_images, common_scores, wants_common_images
from cryosweep.job.data import load_data
from cryosweep.job.masks import mask_base, scoring_ruler
from cryosweep.job.scores import left_out_areas
from cryosweep.job.starting import starting_maps
from cryosweep.job.subtraction import images_to_refine
from cryosweep.progress import LogProgress
from cryosweep.reconstruction import HalfMaps, half_map_sums, unfiltered
from cryosweep.study.assessment import held_out_log_likelihood, masked_fsc
from cryosweep.study.comparison import HELD_OUT, SCORE, load_runs
from cryosweep.study.store import Store

CPU = torch.device("cpu")
SMALL = (
    "data.particles=80", "data.box_size=48", "data.pixel_size=7.0", "data.snr=0.5", "mask_base.name=arm",
    "refinement.initial_lowpass=20", "scoring.jackknife=2", "compute.device=cpu",
    "scoring.common_images=true",
)  # fmt: skip


def job(*overrides: str) -> JobConfig:
    (made,) = make_plan([*SMALL, *overrides], multirun=False).jobs
    return made


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Data, start, mask base and ruler, and poses that a refinement might have found."""
    config, progress, store = job(), LogProgress(), Store(tmp_path_factory.mktemp("stages"))
    data = load_data(config, store, CPU, progress)
    start = starting_maps(config, data, store, CPU, progress)
    base = mask_base(config, data, start, CPU, store)
    ruler = scoring_ruler(config, base, start.particles, CPU, store)
    assert data.truth is not None
    poses = data.truth.domains["arm"].poses
    result = SimpleNamespace(rotations=poses.rotations, shifts=poses.shifts, scale=None)
    return SimpleNamespace(
        data=data, start=start, base=base, ruler=ruler, store=store, progress=progress, result=result
    )


def scores(scene: Any, *overrides: str) -> tuple[OwnScores, Any]:
    """Scores of the poses on the images that the run refines, and on the common ones."""
    config = job(*overrides)
    where = (scene.data, scene.start, scene.base, scene.store, CPU, scene.progress)
    images, common = images_to_refine(config, *where), common_images(config, *where)
    assert not isinstance(common, str)
    particles, poses = images.particles, (scene.result.rotations, scene.result.shifts)
    sums = half_map_sums(particles, *poses, device=CPU)
    maps = HalfMaps(unfiltered(sums[0]), unfiltered(sums[1]), particles.pixel_size)
    own = OwnScores(
        maps, held_out_log_likelihood(particles, *poses, maps, scene.ruler, device=CPU),
        left_out_areas(config, particles, scene.result, sums, scene.ruler, CPU, scene.progress),
    )  # fmt: skip
    made = common_scores(config, common, images, own, scene.result, scene.ruler, CPU, scene.progress)
    return own, made


def test_of_the_same_poses_they_are_the_same(scene: Any) -> None:
    """The oracle is the run that refined those very images: its own scores."""
    whole_own, whole = scores(scene)
    less_own, less = scores(scene, "subtraction=domain")
    other_own, other = scores(scene, "subtraction=domain", "subtraction.keep_padding_width=28")
    band = slice(scene.ruler.first_shell, scene.ruler.last_shell + 1)
    for own in (whole_own, other_own):
        assert float((own.held_out - less_own.held_out).abs().mean()) > 1e-2
    for found in (whole, less, other):
        assert found.images == less.images
        torch.testing.assert_close(found.held_out, less_own.held_out)
        torch.testing.assert_close(found.left_out, less_own.left_out)
        torch.testing.assert_close(found.curves["common"], masked_fsc(less_own.half_maps, scene.ruler.mask))
        area = found.curves["common"][band].mean()
        assert found.metrics["common/fsc_area/frozen"] == pytest.approx(float(area), rel=1e-5)
        assert found.metrics["common/score/held_out_likelihood"] == pytest.approx(
            float(less_own.held_out.mean())
        )
        assert found.metrics["common/start/fsc_area_frozen"] < found.metrics["common/fsc_area/frozen"]


def test_they_are_what_a_subtraction_takes_by_default() -> None:
    assert job("subtraction=domain").subtraction == COMMON


def test_where_there_are_none_it_says_why(scene: Any) -> None:
    where = (scene.data, scene.start, scene.base, scene.store, CPU, scene.progress)
    assert "is not true" in str(common_images(job("scoring.common_images=null"), *where))
    config = replace(job(), mask_base=make_plan(["mask_base=consensus"], multirun=False).jobs[0].mask_base)
    assert "nothing to subtract" in str(common_images(config, *where))
    files = make_plan(["consensus=files", "consensus.half_a=a.mrc", "consensus.half_b=b.mrc"], multirun=False)
    half = SimpleNamespace(**vars(scene))
    a, b = scene.start.half_maps.pair
    maps = HalfMaps(4.0 * a, 4.0 * b, 7.0)
    half.start = replace(scene.start, half_maps=maps)
    told = common_images(
        replace(job(), consensus=files.jobs[0].consensus), half.data, half.start, half.base, half.store, CPU,
        half.progress,
    )  # fmt: skip
    assert "times what the starting half-maps predict" in str(told)


def test_they_are_made_where_they_may_be_needed() -> None:
    auto, less = job("scoring.common_images=null"), job("scoring.common_images=null", "subtraction=domain")
    assert not wants_common_images(auto, ["mask.dilation_radius"])
    assert wants_common_images(auto, ["seed", "subtraction"])
    assert wants_common_images(auto, ["subtraction.keep_padding_width"])
    assert wants_common_images(less, [])
    assert wants_common_images(job(), [])
    assert not wants_common_images(job("scoring.common_images=false", "subtraction=domain"), ["subtraction"])


def test_a_sweep_over_the_subtraction_is_compared_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By itself: nothing but the sweep says that they are needed."""
    monkeypatch.chdir(tmp_path)
    tiny = [
        *SMALL[1:-1], "data.particles=40", "scoring.jackknife=2", "scoring.neighbours=false", "study=less",
        "refinement.max_iterations=1", "search.audit=0", "tracking.enabled=false", "compute.threads=1",
    ]  # fmt: skip
    assert app.main(["run", "-m", *tiny, "subtraction=none,domain"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "so all are compared on common images" in told
    assert "verdicts across them are in doubt" not in told
    runs = load_runs([tmp_path / "cryosweep_out" / "less"])
    assert [run.common_images is not None for run in runs] == [True, True]
    whole, less = sorted(runs, key=lambda run: run.swept["subtraction"] == "domain")
    # the one that refined the common images has its own scores on them, the other has not
    assert less.summary[f"common/{SCORE}"] == pytest.approx(less.summary[SCORE], rel=1e-6)
    assert whole.summary[f"common/{SCORE}"] != pytest.approx(whole.summary[SCORE], rel=1e-3)
    for run in runs:
        swapped = run.with_common_scores()
        assert swapped.scores().area == run.summary[f"common/{SCORE}"]
        assert swapped.scores().likelihood == pytest.approx(run.summary[f"common/{HELD_OUT}"], abs=1e-3)
        assert swapped.summary["start/fsc_area_frozen"] == run.summary["common/start/fsc_area_frozen"]
        band = swapped.fsc()["frozen"]
        assert band.to_list() == run.fsc()["common"].to_list()
    # a single run that subtracts nothing does without
    assert app.main(["run", *tiny]) == 0
    (alone,) = (tmp_path / "cryosweep_out" / "less").glob("run_*/summary.json")
    assert "common/" not in alone.read_text()
