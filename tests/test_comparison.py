import dataclasses
import json
import math
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest

from cryosweep.rules import Finding
from cryosweep.study.comparison import (
    COLUMNS,
    GAIN,
    GSFSC,
    HELD_OUT,
    ROTATION_ERROR,
    SCORE,
    SCORE_SD,
    TIED,
    TRUTH_SCORE,
    Run,
    compare,
    load_run,
    load_runs,
    point_label,
    terminal_table,
)
from cryosweep.study.statistics import Kind, Scope, holm
from tests.synthetic_runs import HEAD_STUDY, Point, ball_mask, write_mrc, write_study

FAILURE = Point({"mask.dilation_radius": 28, "mask.soft_padding_width": 0}, error="the mask touches the box")


@pytest.fixture(scope="module")
def head_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("head")
    write_study(folder, [*HEAD_STUDY, FAILURE])
    return folder


def variant(run: Run, name: str, swept: dict[str, object], **metrics: float) -> Run:
    """A run like `run` at another point; its files stay those of `run`."""
    named = {key.replace("__", "/"): value for key, value in metrics.items()}
    return dataclasses.replace(run, name=name, swept=swept, summary={**run.summary, **named})


def scored(run: Run, scores: dict[tuple[object, ...], float], keys: tuple[str, ...]) -> list[Run]:
    return [
        variant(run, str(point), dict(zip(keys, point, strict=True)), fsc_area__frozen=score)
        for point, score in scores.items()
    ]


def test_load_runs_finds_runs_below_a_study_folder(head_folder: Path) -> None:
    runs = load_runs([head_folder])
    assert [run.job for run in runs] == [str(k) for k in range(7)]
    assert [run.is_finished for run in runs] == [True] * 6 + [False]
    assert runs[0].swept == {"mask.dilation_radius": 0, "mask.soft_padding_width": 0}
    assert (runs[0].rotation_extent, runs[0].shift_extent) == (20.0, 10.0)
    assert list(runs[0].fsc().columns[:2]) == ["shell", "frequency"]
    assert load_run(head_folder / "003") == load_runs([head_folder / "003"])[0]


def test_table_puts_swept_parameters_first_and_the_highest_area_on_top(head_folder: Path) -> None:
    comparison = compare(load_runs([head_folder]))
    table = comparison.table
    assert list(table.columns[:3]) == ["mask.dilation_radius", "mask.soft_padding_width", SCORE]
    assert list(table.columns[2:-1]) == [column.key for column in COLUMNS if column.key != HELD_OUT]
    assert table[SCORE].is_monotonic_decreasing
    assert [run.name for run in comparison.runs] == list(table.index)
    start = comparison.runs[0].summary["start/fsc_area_frozen"]
    assert comparison.start[SCORE] == start
    assert np.allclose(table[GAIN], table[SCORE] - start)
    assert [run.reason for run in comparison.failed] == ["the mask touches the box"]
    assert any("1 of 7 runs did not finish" in warning for warning in comparison.warnings)


def test_runs_within_the_noise_of_one_run_are_not_told_apart(head_folder: Path) -> None:
    run = load_run(head_folder / "000")
    sd = run.summary[SCORE_SD]
    bar = 1.96 * math.sqrt(2.0) * sd
    values = {(1,): 0.7, (2,): 0.7 - 0.9 * bar, (3,): 0.7 - 1.1 * bar}
    comparison = compare(scored(run, values, ("mask.dilation_radius",)))
    assert comparison.noise == pytest.approx(bar)
    assert comparison.table[TIED].tolist() == [True, True, False]
    assert comparison.headline[0].startswith("Highest FSC area: dilation_radius 1 (0.700, one run)")
    assert comparison.headline[1] == "Not distinguishable from it here: dilation_radius 2."


def test_a_clear_lead_stays_a_candidate_and_nobody_wins(head_folder: Path) -> None:
    comparison = compare(
        scored(load_run(head_folder / "000"), {(1,): 0.7, (2,): 0.4}, ("mask.dilation_radius",))
    )
    assert "stays a candidate" in comparison.headline[1]
    text = terminal_table(comparison).lower()
    assert "not a paired test" in text
    for boast in ("winner", "best setting", "significant", "optimal"):
        assert boast not in text


def test_marginal_means_of_an_additive_grid_are_its_effects(head_folder: Path) -> None:
    rows, columns = {0: 0.5, 7: 0.6, 28: 0.4}, {"soft": 0.0, "hard": 0.05}
    scores = {(a, b): rows[a] + columns[b] for a in rows for b in columns}
    runs = scored(load_run(head_folder / "000"), scores, ("mask.dilation_radius", "mask.edge"))
    comparison = compare(runs)
    assert comparison.is_full_grid
    effects = {(e.parameter, e.value): e for e in comparison.effects if e.score == SCORE}
    for value, base in rows.items():
        effect = effects["mask.dilation_radius", str(value)]
        assert (effect.n, effect.low, effect.high) == (2, base, base + 0.05)
        assert effect.mean == pytest.approx(base + 0.025)
        assert effect.sd == pytest.approx(0.05 / math.sqrt(2.0))
    assert effects["mask.edge", "hard"].mean - effects["mask.edge", "soft"].mean == pytest.approx(0.05)
    values = [
        e.value for e in comparison.effects if e.parameter == "mask.dilation_radius" and e.score == SCORE
    ]
    assert values == ["0", "7", "28"]  # by size, not by spelling
    assert "mask.dilation_radius: mean FSC area from 0.425 at 28 to 0.625 at 7" in comparison.findings[1]


def test_an_incomplete_grid_is_pointed_out(head_folder: Path) -> None:
    comparison = compare(load_runs([head_folder]))
    assert not comparison.is_full_grid
    assert any("Not every combination" in warning for warning in comparison.warnings)


def test_parameters_with_one_value_are_not_columns(head_folder: Path) -> None:
    run = load_run(head_folder / "000")
    points = {(k, "ball"): 0.5 + 0.01 * k for k in range(3)}
    comparison = compare(scored(run, points, ("mask.dilation_radius", "mask_base")))
    assert comparison.swept == ("mask.dilation_radius",)
    assert comparison.fixed == {"mask_base": "ball"}


@pytest.mark.parametrize(
    ("order", "words", "rho"), [(1, "agrees with", 1.0), (-1, "does not agree with", -1.0)]
)
def test_agreement_with_the_truth_is_the_rank_correlation(
    head_folder: Path, order: int, words: str, rho: float
) -> None:
    run = load_run(head_folder / "000")
    truths = np.linspace(0.3, 0.8, 6)[::order]
    runs = [
        variant(run, str(k), {"mask.dilation_radius": k}, fsc_area__frozen=0.3 + 0.1 * k, truth__fsc_area=t,
                truth__rotation_error_median=10.0 * (1.0 - t))
        for k, t in enumerate(truths)
    ]  # fmt: skip
    truth = compare(runs).truth
    assert truth is not None
    assert (truth.spearman_area, truth.spearman_rotation) == pytest.approx((rho, rho))
    assert f"The ranking by FSC area {words} the truth" in truth.sentences[0]
    best = [sentence for sentence in truth.sentences if "best map" in sentence]
    assert best == (
        ["The leader by FSC area also has the best map and the best poses by truth."]
        if order == 1
        else ["The best map by truth is dilation_radius 0 (truth FSC area 0.800; the leader has 0.300)."]
    )


def test_where_fsc_and_truth_part_both_numbers_are_given(head_folder: Path) -> None:
    truth = compare(load_runs([head_folder])).truth
    assert truth is not None
    parted = [sentence for sentence in truth.sentences if sentence.startswith("FSC and truth part")]
    assert parted == [
        "FSC and truth part at the starting map: the half maps agree to 11.4 Å, but the map is right only "
        "to 31.5 Å.",
        "FSC and truth part at dilation_radius 28, soft_padding_width 30: the half maps agree to 9.8 Å, "
        "but the map is right only to 19.8 Å.",
    ]


def test_every_score_is_held_against_the_truth_and_the_terminal_says_so(tmp_path: Path) -> None:
    # the likelihood has the order of the truth, the FSC area puts the second first
    points = [dataclasses.replace(point, held_out=-point.rotation_error) for point in HEAD_STUDY]
    write_study(tmp_path, points)
    comparison = compare(load_runs([tmp_path]))
    truth = comparison.truth
    assert truth is not None
    area, likelihood, both = truth.rankings
    assert likelihood.spearman_rotation == pytest.approx(1.0)
    assert (likelihood.regret_area, likelihood.regret_rotation) == (0.0, 0.0)
    assert area.pick == "dilation_radius 0, soft_padding_width 10"
    assert area.regret_rotation == pytest.approx(0.1)
    assert both.pick == comparison.label(comparison.runs[0])
    assert truth.n_settings == 6
    assert truth.parted == {"dilation_radius=28,soft_padding_width=30"}
    lines = terminal_table(comparison).splitlines()
    row = next(line.split() for line in lines if line.startswith("held-out likelihood (H)"))
    assert row[-2:] == ["0.000", "0.00"]


def test_reach_is_in_units_of_the_extent(tmp_path: Path) -> None:
    (folder,) = write_study(tmp_path, HEAD_STUDY[:1])
    run = load_run(folder)
    poses = run.poses()
    reach = run.reach("rotation")
    assert reach is not None
    assert reach == pytest.approx(poses[["turn_x", "turn_y", "turn_z"]].abs().max(axis=1) / 20.0)
    round_one = dataclasses.replace(run, extent_shape="norm").reach("shift")
    assert round_one is not None
    assert round_one == pytest.approx(np.hypot(poses["move_x"], poses["move_y"]) / 10.0)
    assert dataclasses.replace(run, extent_shape="").reach("shift") is None


def test_two_runs_are_too_few_to_rank_against_the_truth(head_folder: Path) -> None:
    truth = compare(load_runs([head_folder / "000", head_folder / "005"])).truth
    assert truth is not None
    assert math.isnan(truth.spearman_area)
    assert "too few" in truth.sentences[0]


def test_without_truth_there_is_none_of_it(tmp_path: Path) -> None:
    write_study(tmp_path, [dataclasses.replace(point, truth=None) for point in HEAD_STUDY[:2]])
    comparison = compare(load_runs([tmp_path]))
    assert comparison.truth is None
    assert TRUTH_SCORE not in comparison.table
    assert ROTATION_ERROR not in comparison.table
    assert "truth" not in terminal_table(comparison)


def test_runs_scored_under_different_masks_are_refused(tmp_path: Path) -> None:
    write_study(tmp_path, [HEAD_STUDY[0], dataclasses.replace(HEAD_STUDY[1], scoring_radius=30.0)])
    with pytest.raises(ValueError, match="scored under different masks"):
        compare(load_runs([tmp_path]))


def test_a_scoring_mask_may_differ_by_a_voxel(tmp_path: Path) -> None:
    first, _ = write_study(tmp_path, HEAD_STUDY[:2])
    mask = ball_mask(34.0, 14.0)
    mask[0, 0, 0] = 1.0
    (first / "scoring_mask.mrc").unlink()
    write_mrc(first / "scoring_mask.mrc", mask)
    assert len(compare(load_runs([tmp_path])).runs) == 2


def test_unlike_starts_and_inputs_are_pointed_out(head_folder: Path) -> None:
    run = load_run(head_folder / "000")
    other = variant(run, "b", {"mask.dilation_radius": 9}, start__fsc_area_frozen=0.3)
    warnings = compare([run, dataclasses.replace(other, inputs={"x": "cd"})]).warnings
    assert any("do not share one starting point" in warning for warning in warnings)
    assert any("checksums differ" in warning for warning in warnings)


def subtracted_or_not(folder: Path, *, images: tuple[str | None, str | None] = ("s", "s")) -> list[Run]:
    """Two replicates each, without and with subtraction; scores on common images differ from their own."""
    points = [
        Point({"subtraction": option, "seed": seed}, split=seed, held_out=9.0, blocks=5)
        for option in ("none", "domain")
        for seed in (0, 1)
    ]
    runs = load_runs([write_study(folder, points)[0].parent])
    found: list[Run] = []
    for run in runs:
        option = str(run.swept["subtraction"])
        better = 0.05 if option == "domain" else 0.0
        seed = 0.001 * float(str(run.swept["seed"])) * (1.0 + better)
        for name, columns in {
            "fsc.csv": {"common": 0.5, "start_common": 0.25},
            "poses.csv": {"common_held_out_likelihood": 3.0 + 20.0 * better + seed},
            "jackknife.csv": {"common_fsc_area": np.linspace(0.41, 0.43, 5) + better},
        }.items():
            table = pd.read_csv(run.folder / name)
            table.assign(**columns).to_csv(run.folder / name, index=False)
        summary = {
            **run.summary,
            **{
                SCORE: 0.7 - 2.0 * better,
                f"common/{SCORE}": 0.42 + better + seed,
                f"common/{SCORE_SD}": 0.01,
                f"common/{GSFSC}": 11.0,
                "common/resolution/frozen_05": 14.0,
                f"common/{HELD_OUT}": 3.0 + 20.0 * better + seed,
                "common/start/fsc_area_frozen": 0.3,
                "common/start/resolution_frozen_0143": 13.0,
            },
        }
        key = images[option == "domain"]
        found.append(
            dataclasses.replace(
                run, summary=summary, options={"subtraction": option},
                common_images=None if key is None else f"{key} {run.swept['seed']}",
            )
        )  # fmt: skip
    return found


def test_runs_that_differ_in_subtraction_are_compared_on_common_images(tmp_path: Path) -> None:
    runs = subtracted_or_not(tmp_path)
    found = compare(runs)
    assert sum("all are compared on common images" in warning for warning in found.warnings) == 1
    # on its own images the one without subtraction has the higher area
    assert runs[0].summary[SCORE] > runs[-1].summary[SCORE]
    assert [run.swept["subtraction"] for run in found.runs] == ["domain", "domain", "none", "none"]
    first = found.runs[0]
    assert first.summary[SCORE] == pytest.approx(0.47, abs=0.002)
    assert found.table.at[first.name, GAIN] == pytest.approx(0.17, abs=0.002)
    assert found.table.at[first.name, HELD_OUT] == pytest.approx(4.0, abs=0.002)
    assert first.fsc()["frozen"].eq(0.5).all()
    assert first.fsc()["start_frozen"].eq(0.25).all()
    (standing,) = found.replication.standings
    assert standing.verdict.kind is Kind.BETTER
    assert standing.area.mean == pytest.approx(0.05, abs=1e-3)
    assert standing.likelihood is not None
    assert standing.likelihood.mean == pytest.approx(1.0, abs=1e-3)
    # of one run each the blocks of the common images are taken
    (alone,) = compare([runs[0], runs[2]]).replication.standings
    assert alone.area.mean == pytest.approx(0.05, abs=1e-3)
    assert alone.area.sd == pytest.approx(0.0, abs=1e-6)


def test_settings_of_a_subtraction_count_as_different_images(tmp_path: Path) -> None:
    runs = subtracted_or_not(tmp_path)[2:]
    assert not compare(runs).runs[0].on_common_images
    with (runs[0].folder / "config.yaml").open("a") as config:
        config.write("subtraction: {kind: domain, keep_padding_width: 8}\n")
    assert all(run.on_common_images for run in compare(runs).runs)


@pytest.mark.parametrize("images", [("s", None), ("s", "t")])
def test_scores_on_other_images_are_called_in_doubt(
    tmp_path: Path, images: tuple[str | None, str | None]
) -> None:
    found = compare(subtracted_or_not(tmp_path, images=images))
    assert any("not all scored on the same common images" in warning for warning in found.warnings)
    assert not any(run.on_common_images for run in found.runs)


def test_values_of_any_kind_are_shown_as_written(head_folder: Path) -> None:
    run = load_run(head_folder / "000")
    swept = {"fulcrum.px": [1.0, 2, 3.5], "search.prior": None, "mask.hard": True, "mask.px": 0.1}
    run = dataclasses.replace(run, swept=swept)
    assert point_label(run, tuple(swept)) == "fulcrum.px (1, 2, 3.5), prior none, hard true, mask.px 0.1"
    assert point_label(run, ()) == run.name


@pytest.mark.parametrize("n_swept", [0, 1, 3, 9])
def test_terminal_table_fits_120_columns_and_hides_nothing_silently(head_folder: Path, n_swept: int) -> None:
    run = load_run(head_folder / "000")
    keys = [f"refinement.quite_a_long_parameter_name_{k}" for k in range(n_swept)]
    runs = [variant(run, f"run{k}", dict.fromkeys(keys, 1000 + k)) for k in range(4)]
    text = terminal_table(compare(runs))
    assert max(len(line) for line in text.splitlines()) <= 120
    for k in range(4 if n_swept else 0):
        assert str(1000 + k) in text
    left_out = [line for line in text.splitlines() if line.startswith("Left out to fit")]
    assert left_out if n_swept else True


def test_terminal_table_explains_every_column_it_shows(head_folder: Path) -> None:
    text = terminal_table(compare(load_runs([head_folder])))
    for line in ("FSC area ", "± SD ", "gain over start ", "truth 0.5 Å ", "rotation error ° "):
        assert any(part.startswith(line) for part in text.splitlines()), line
    assert "start" in text
    assert "~" in text
    assert "Failed runs:\n- dilation_radius 28, soft_padding_width 0: the mask touches the box" in text


def test_one_run_alone_is_described_not_compared(head_folder: Path) -> None:
    comparison = compare([load_run(head_folder / "002")])
    area = comparison.runs[0].summary[SCORE]
    assert comparison.headline == (
        f"Highest FSC area: dilation_radius 7, soft_padding_width 0 ({area:.3f}, one run); "
        "nothing to compare it with.",
    )
    assert terminal_table(comparison)


def broken(folder: Path, name: str, **changes: object) -> None:
    path = folder / name
    record = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in record.items() if value != "gone"}))


def test_faults_of_a_run_folder_are_named(tmp_path: Path) -> None:
    one, two, three, four, five, six = write_study(tmp_path / "study")
    with pytest.raises(ValueError, match=r"no run\.json in it or below it"):
        load_runs([tmp_path / "empty"])
    with pytest.raises(ValueError, match=r"no run\.json; give a folder"):
        load_run(tmp_path)
    (one / "run.json").write_text('{"name": ')
    with pytest.raises(ValueError, match=r"run\.json: not valid JSON"):
        load_run(one)
    (two / "map.mrc").unlink()
    with pytest.raises(ValueError, match=r"marked FINISHED but lacks map\.mrc"):
        load_run(two)
    broken(three, "summary.json", **{SCORE: "gone"})
    with pytest.raises(ValueError, match=f"no metric {SCORE}"):
        load_run(three)
    broken(four, "summary.json", **{SCORE: math.nan})
    with pytest.raises(ValueError, match="must be finite"):
        load_run(four)
    broken(five, "run.json", seed="gone")
    with pytest.raises(ValueError, match=r"run\.json: no key 'seed'"):
        load_run(five)
    (six / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"no config\.yaml"):
        load_run(six)


def test_a_run_that_was_killed_early_is_listed(tmp_path: Path, head_folder: Path) -> None:
    early = {"name": "", "study": "head_masks", "job": 7, "status": "KILLED"}
    (tmp_path / "run.json").write_text(json.dumps(early))
    comparison = compare([*load_runs([head_folder]), load_run(tmp_path)])
    assert [run.name for run in comparison.failed][1:] == ["job 7"]
    assert "- job 7: it ended without saying why" in terminal_table(comparison)
    assert comparison.swept == ("mask.dilation_radius", "mask.soft_padding_width")
    alike = [variant(run, run.name, {**run.swept, "mask_base": "ball"}) for run in comparison.runs]
    assert compare([*alike, load_run(tmp_path)]).fixed == {"mask_base": "ball"}


def test_jobs_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for job in (10, 9, 2):
        (tmp_path / str(job)).mkdir()
        record = {"name": f"n{job}", "study": "s", "job": job, "status": "FAILED"}
        (tmp_path / str(job) / "run.json").write_text(json.dumps(record))
    assert [run.job for run in load_runs([tmp_path])] == ["2", "9", "10"]


def test_nothing_finished_and_equal_names_are_refused(tmp_path: Path, head_folder: Path) -> None:
    write_study(tmp_path, [FAILURE])
    with pytest.raises(ValueError, match=r"no finished run to compare .*the mask touches the box"):
        compare(load_runs([tmp_path]))
    run = load_run(head_folder / "000")
    with pytest.raises(ValueError, match="two runs are named"):
        compare([run, run])


def test_a_run_that_failed_once_may_finish_later(head_folder: Path) -> None:
    run = load_run(head_folder / "000")
    failed = dataclasses.replace(run, status="FAILED", reason="out of memory", summary={})
    comparison = compare([failed, run])
    assert len(comparison.runs) == len(comparison.failed) == 1


def test_table_keeps_full_precision(head_folder: Path) -> None:
    comparison = compare(load_runs([head_folder]))
    assert isinstance(comparison.table, pd.DataFrame)
    for run in comparison.runs:
        assert comparison.table.at[run.name, SCORE] == run.summary[SCORE]


def test_a_first_run_that_a_rule_calls_an_error_is_said_beside_the_verdict(head_folder: Path) -> None:
    runs = load_runs([head_folder])
    first = compare(runs).runs[0]

    def with_finding(level: Literal["error", "warning"], name: str) -> str:
        found = Finding("R1", level, "a hard edge", "more is advised", "the guide", "Soften it")
        return compare(
            [dataclasses.replace(run, findings=(found,)) if run.name == name else run for run in runs]
        ).findings[0]

    assert with_finding("error", first.name).startswith("The first has an error by the rules")
    assert "(R1)" in with_finding("error", first.name)
    others = next(run.name for run in runs if run.name != first.name)
    for level, name in (("warning", first.name), ("error", others)):
        assert "error by the rules" not in with_finding(level, name)


def test_the_gain_on_the_truth_is_stated_with_its_units(head_folder: Path) -> None:
    comparison = compare(load_runs([head_folder]))
    last = comparison.findings[-1]
    assert last.startswith("Against the truth ")
    assert "started from 31.5 Å" in last
    assert "median error of rotation" in last


# ---- replicates ----

KEYS = ("mask.dilation_radius", "seed")


def replicated(
    folder: Path,
    areas: dict[int, list[float]],
    likelihoods: dict[int, list[float]],
    *,
    key: str = "seed",
    new_split: bool = True,
) -> list[Run]:
    """Settings in paired replicates, with given scores."""
    points = [
        Point(
            {"mask.dilation_radius": value, key: seed},
            held_out=likelihoods[value][seed],
            split=seed if new_split else 0,
        )
        for value in areas
        for seed in range(len(areas[value]))
    ]
    write_study(folder, points)
    return [
        variant(
            run,
            run.name,
            dict(run.swept),
            fsc_area__frozen=areas[int(str(run.swept[KEYS[0]]))][int(str(run.swept[key]))],
        )
        for run in load_runs([folder])
    ]


AREAS = {
    0: [0.600, 0.610, 0.590],
    7: [0.641, 0.649, 0.632],
    14: [0.603, 0.611, 0.594],
    28: [0.560, 0.640, 0.600],
}
LIKELIHOODS = {0: [5.0, 5.1, 4.9], 7: [7.0, 7.2, 6.9], 14: [5.0, 5.1, 4.9], 28: [4.0, 4.1, 4.2]}


def test_replicates_are_paired_and_not_a_swept_choice(tmp_path: Path) -> None:
    comparison = compare(replicated(tmp_path, AREAS, LIKELIHOODS))
    assert comparison.swept == KEYS
    assert comparison.choices == ("mask.dilation_radius",)
    assert {effect.parameter for effect in comparison.effects} == {"mask.dilation_radius"}
    assert [effect.n for effect in comparison.effects if effect.score == SCORE] == [3, 3, 3, 3]
    assert comparison.is_full_grid
    replication = comparison.replication
    assert (replication.keys, replication.n, replication.scope) == (("seed",), 3, Scope.THESE_PARTICLES)
    assert replication.centre == "dilation_radius 0"
    assert replication.centre_area == pytest.approx(0.6)
    by_name = {each.setting: each for each in replication.standings}
    better = by_name["dilation_radius 7"]
    d = np.array(AREAS[7]) - np.array(AREAS[0])
    assert better.area.mean == pytest.approx(d.mean())
    half = 4.302653 * d.std(ddof=1) / math.sqrt(3)
    assert better.area.high == pytest.approx(d.mean() + half, abs=1e-6)
    assert better.verdict.kind is Kind.BETTER
    assert (
        by_name["dilation_radius 14"].verdict.kind is Kind.SMALL
        or by_name["dilation_radius 14"].verdict.kind is Kind.EQUAL
    )
    assert by_name["dilation_radius 28"].verdict.kind is Kind.OPEN
    p = [each.area.p for each in replication.standings]
    assert [each.area_p for each in replication.standings] == pytest.approx(list(holm(np.array(p))))
    # the point with both scores highest leads, with all of its replicates
    assert [run.swept["mask.dilation_radius"] for run in comparison.runs[:3]] == [7, 7, 7]
    assert comparison.headline[0].startswith(
        "First by rank sum of FSC area and held-out likelihood: dilation_radius 7"
    )
    assert "is better than dilation_radius 0" in comparison.headline[1]
    assert "these particles; other splits into half sets" in comparison.headline[-1]
    assert "not distinguishable" in terminal_table(comparison)
    tied = {
        run.swept["mask.dilation_radius"]: bool(comparison.table.at[run.name, TIED])
        for run in comparison.runs
    }
    assert tied == {7: True, 0: False, 14: False, 28: True}


def test_p_values_are_adjusted_for_the_points_that_have_replicates(tmp_path: Path) -> None:
    screened = {**AREAS, 35: [0.55], 42: [0.5]}
    comparison = compare(replicated(tmp_path, screened, {**LIKELIHOODS, 35: [3.0], 42: [2.0]}))
    assert len(comparison.replication.standings) == 5
    assert comparison.replication.tested == 3
    assert "adjusted for 3 comparisons with dilation_radius 0" in comparison.headline[-1]
    open_ = next(each for each in comparison.replication.standings if each.verdict.kind is Kind.OPEN)
    assert "among 3 comparisons" in open_.verdict.sentence
    untested = compare(comparison.runs, centre={"mask.dilation_radius": "35"})
    assert untested.replication.tested == 0
    assert "none is tested against it" in untested.headline[-1]


def test_other_noise_speaks_for_other_particles_and_may_have_other_masks(tmp_path: Path) -> None:
    runs = replicated(tmp_path, AREAS, LIKELIHOODS, key="data.simulation_seed")
    mask = ball_mask(30.0, 14.0)
    for run in runs:
        if run.swept["data.simulation_seed"] == 1:
            (run.folder / "scoring_mask.mrc").unlink()
            write_mrc(run.folder / "scoring_mask.mrc", mask)
    assert compare(runs).replication.scope is Scope.OTHER_PARTICLES
    with pytest.raises(ValueError, match="scored under different masks"):
        compare(
            [run for run in runs if run.swept["data.simulation_seed"] == 1]
            + [variant(runs[0], "other", {"mask.dilation_radius": 99, "data.simulation_seed": 1})]
        )


def test_seeds_of_one_split_are_no_replicates(tmp_path: Path) -> None:
    comparison = compare(replicated(tmp_path, AREAS, LIKELIHOODS, new_split=False))
    replication = comparison.replication
    assert (replication.n, replication.scope) == (1, Scope.ONE_RUN)
    assert all(each.verdict.kind is Kind.CANDIDATE for each in replication.standings)
    assert any("they are no replicates" in warning for warning in comparison.warnings)


def test_map_and_poses_that_disagree_are_named(tmp_path: Path) -> None:
    worse_poses = {**LIKELIHOODS, 7: [3.0, 3.2, 2.9]}
    comparison = compare(replicated(tmp_path, AREAS, worse_poses))
    by_name = {each.setting: each.verdict for each in comparison.replication.standings}
    assert by_name["dilation_radius 7"].kind is Kind.DISAGREE
    assert any("map and poses disagree" in sentence for sentence in comparison.findings)


def test_one_run_has_the_interval_of_a_jackknife_and_stays_a_candidate(tmp_path: Path) -> None:
    write_study(
        tmp_path,
        [Point({"mask.dilation_radius": k}, gsfsc=9.0 + k, held_out=5.0 - k, blocks=8) for k in range(3)],
    )
    comparison = compare(load_runs([tmp_path]))
    first, second = comparison.replication.standings
    assert first.verdict.kind is second.verdict.kind is Kind.CANDIDATE
    assert 0.0 < first.area.sd < 0.02
    assert first.area.high - first.area.low == pytest.approx(2 * 2.364624 * first.area.sd, rel=1e-5)
    assert first.likelihood is not None
    assert first.likelihood.mean == pytest.approx(-1.0)
    assert first.likelihood.low < -1.0 < first.likelihood.high < 0.0
    assert comparison.headline[0].startswith("First by rank sum")
    assert (
        "stays a candidate" in " ".join(comparison.headline)
        or "Not distinguishable" in comparison.headline[1]
    )


def test_the_table_follows_the_rank_sum_of_map_and_poses(tmp_path: Path) -> None:
    areas = {0: [0.70], 7: [0.69], 14: [0.60]}
    likelihoods = {0: [2.0], 7: [9.0], 14: [5.0]}
    comparison = compare(replicated(tmp_path, areas, likelihoods))
    assert [run.swept["mask.dilation_radius"] for run in comparison.runs] == [7, 0, 14]
