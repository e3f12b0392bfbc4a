"""Several sweeps of one study as one comparison, and which of its points are replicated."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from cryosweep.commands import read_point
from cryosweep.study.comparison import ABSENT, HELD_OUT, SCORE, Run, compare
from cryosweep.study.gather import gather
from cryosweep.study.replicates import (
    By,
    Candidate,
    candidates_of,
    choose,
    find_point,
    replicate_overrides,
)
from cryosweep.study.statistics import Scope
from tests.synthetic_runs import Point, write_study

RADIUS, SOFT = "mask.dilation_radius", "mask.soft_padding_width"
BASE = {"data": {"simulation_seed": 0, "resplit": False, "group": 0}, "seed": 0,
        "scoring": {"band_low": 40, "jackknife": 0}}  # fmt: skip


def change(folder: Path, **fields: object) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def configure(folder: Path, values: Mapping[str, object]) -> None:
    """Give a made-up run the configuration that a job would have written."""
    config = yaml.safe_load((folder / "config.yaml").read_text()) | json.loads(json.dumps(BASE))
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        if section:
            config.setdefault(section, {})[name] = value
        elif key not in {"fulcrum", "subtraction"}:  # options of groups are not in the configuration
            config[key] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def write_sweep(
    folder: Path, points: list[Point], *, fixed: Mapping[str, object] | None = None, first: str = ""
) -> Path:
    """A sweep whose runs differ in `points`; `fixed` are overrides that all of them share."""
    for number, (run, point) in enumerate(zip(write_study(folder, points), points, strict=True)):
        values = {**(fixed or {}), **point.swept}
        configure(run, values)
        told = " ".join(f"{key}={value}" for key, value in values.items())
        change(run, fingerprint=f"{sorted({'seed': 0, **values}.items())}{first}", job=number,
               command=f"cryosweep run study=x {told}", choices={"fulcrum": values.get("fulcrum", "hinge")},
               name=f"{folder.name} {number}")  # fmt: skip
    return folder


SCREEN = [
    Point({RADIUS: r}, gsfsc=g, held_out=h) for r, g, h in ((0, 9.0, 5.0), (7, 8.5, 7.0), (28, 9.8, 4.0))
]


def keys(*sweeps: tuple[Path, tuple[str, ...]]) -> dict[Path, tuple[str, ...]]:
    return dict(sweeps)


def test_a_screening_and_its_replicates_are_one_comparison(tmp_path: Path) -> None:
    screen = write_sweep(tmp_path / "a", SCREEN)
    seeds = [Point({RADIUS: r, "seed": s}, gsfsc=g + 0.01 * s, held_out=h, split=s)
             for r, g, h in ((7, 8.5, 7.0), (0, 9.0, 5.0)) for s in (1, 2)]  # fmt: skip
    again = write_sweep(tmp_path / "b", seeds, fixed={"data.resplit": True})
    runs, _ = gather(keys((screen, (RADIUS,)), (again, (RADIUS, "seed"))))
    assert [run.swept for run in runs[:3]] == [
        {RADIUS: r, "seed": 0, "data.resplit": False} for r in (0, 7, 28)
    ]
    comparison = compare(runs)
    replication = comparison.replication
    assert comparison.choices == (RADIUS,)
    assert (replication.keys, replication.n) == (("seed", "data.resplit"), 3)
    assert replication.scope is Scope.THESE_PARTICLES
    assert replication.centre == "dilation_radius 0"
    assert {each.setting: each.area.n for each in replication.standings} == {
        "dilation_radius 7": 3, "dilation_radius 28": 1,
    }  # fmt: skip
    assert any("more replicates than others" in warning for warning in comparison.warnings)
    chosen = compare(runs, centre={RADIUS: "7"})
    assert chosen.replication.centre == "dilation_radius 7"
    for wanted, message in (
        ({RADIUS: "9"}, "no point has that; the points have"),
        ({"seed": "0"}, "3 points"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(runs, centre=wanted)


def test_what_a_replicate_does_to_all_scores_moves_no_point_up_or_down(tmp_path: Path) -> None:
    """Seeds 1 and 2 lower every score; a point that has only seed 0 gains nothing by that."""
    points = [Point({RADIUS: r, "seed": 0}, held_out=1.0) for r in (0, 7, 28)]
    points += [Point({RADIUS: r, "seed": s}, held_out=1.0, split=s) for r in (0, 7) for s in (1, 2)]
    runs, _ = gather(keys((write_sweep(tmp_path / "a", points), (RADIUS, "seed"))))
    areas = {0: 0.60, 7: 0.65, 28: 0.62}

    def scored(run: Run) -> Run:
        value = areas[int(str(run.swept[RADIUS]))] - 0.1 * (run.swept["seed"] != 0)
        return Run(**{**vars(run), "summary": {**run.summary, SCORE: value, HELD_OUT: 20 * value}})

    order = [run.swept[RADIUS] for run in compare([scored(run) for run in runs]).runs]
    assert list(dict.fromkeys(order)) == [7, 28, 0]


def test_equal_runs_are_counted_once_and_a_dash_stands_for_no_key(tmp_path: Path) -> None:
    first = write_sweep(tmp_path / "a", SCREEN[:2])
    more = [Point({"fulcrum": "px", "fulcrum.x": 3}), Point({"fulcrum": "hinge"}, gsfsc=9.5)]
    second = write_sweep(tmp_path / "b", [*more, SCREEN[1]])
    change(second / "002", taken_from=str(first / "001"))
    runs, _ = gather(keys((first, (RADIUS,)), (second, ("fulcrum", "fulcrum.x", RADIUS))))
    assert [run.folder.name for run in runs] == ["000", "001", "000", "001"]
    assert [run.swept["fulcrum"] for run in runs] == ["hinge", "hinge", "px", "hinge"]
    assert [run.swept["fulcrum.x"] for run in runs] == [ABSENT, ABSENT, 3, ABSENT]
    assert len(compare(runs).runs) == 4
    assert "fulcrum.x" not in compare(runs).label(runs[0])
    assert {e.value for e in compare(runs).effects if e.parameter == "fulcrum.x"} == {"3"}
    alone, _ = gather(keys((second, ("fulcrum", "fulcrum.x", RADIUS))))
    assert alone[1].swept == {"fulcrum": "hinge", "fulcrum.x": ABSENT, RADIUS: ABSENT}


def test_overrides_that_differ_between_sweeps_are_keys_of_the_comparison(tmp_path: Path) -> None:
    first = write_sweep(tmp_path / "a", SCREEN, fixed={"refinement.max_iterations": 3})
    second = write_sweep(tmp_path / "b", SCREEN, fixed={"refinement.max_iterations": 5})
    runs, _ = gather(keys((first, (RADIUS,)), (second, (RADIUS,))))
    assert compare(runs).choices == (RADIUS, "refinement.max_iterations")
    assert len(runs) == 6


def test_sweeps_that_share_no_ruler_study_or_code_are_refused(tmp_path: Path) -> None:
    first = write_sweep(tmp_path / "a", SCREEN)
    other = write_sweep(tmp_path / "b", SCREEN, fixed={"scoring.band_low": 60})
    with pytest.raises(ValueError, match=r"scored by different rulers \(scoring\.band_low\)"):
        gather(keys((first, (RADIUS,)), (other, (RADIUS,))))
    code = write_sweep(tmp_path / "c", SCREEN, first="other code")
    with pytest.raises(ValueError, match=r"dilation_radius=0 was computed twice, with other code"):
        gather(keys((first, (RADIUS,)), (code, (RADIUS,))))
    study = write_sweep(tmp_path / "d", SCREEN)
    for folder in study.iterdir():
        change(folder, study="another")
    with pytest.raises(ValueError, match=r"different studies \(head_masks, another\)"):
        gather(keys((first, (RADIUS,)), (study, (RADIUS,))))


def test_only_the_last_rung_is_compared(tmp_path: Path) -> None:
    points = [Point({RADIUS: r, "data.subset": s}) for r, s in ((0, 300), (7, 300), (7, None))]
    search = write_sweep(tmp_path / "a", points)
    # such a search and the replicates of its leader together
    again = write_sweep(tmp_path / "b", [Point({RADIUS: 7, "seed": 1})], fixed={"data.subset": None})
    runs, (note,) = gather(
        keys((search, (RADIUS, "data.subset")), (again, (RADIUS, "seed"))), {search: [300, None]}
    )
    assert [run.swept for run in runs] == [{"seed": 0}, {"seed": 1}]
    assert "the 1 runs on all particles; 2 on fewer" in note


CANDIDATES = (
    Candidate("b", 0.66, 6.0), Candidate("d", 0.65, 5.0), Candidate("a", 0.60, 5.5),
    Candidate("e", 0.70, 1.0), Candidate("c", 0.61, 7.0), Candidate("f", 0.50, 0.5),
)  # fmt: skip


def test_the_rule_picks_the_centre_the_leaders_and_what_a_report_names() -> None:
    assert choose(CANDIDATES, "a", leaders=2) == {
        "a": "the centre",
        "b": "number 1 of the others by rank sum",
        "d": "number 2 of the others by rank sum",
        "e": "first by FSC area alone",
        "c": "first by held-out likelihood alone",
    }
    # a centre that leads takes no leader's place, and a point is there once
    assert list(choose(CANDIDATES, "b", leaders=3, also=["f", "e"])) == ["b", "d", "a", "e", "c", "f"]
    bare = [Candidate(each.name, each.area, None) for each in CANDIDATES]
    assert list(choose(bare, "a", leaders=1)) == ["a", "b", "e"]
    with pytest.raises(ValueError, match="nothing to compare it with"):
        choose(CANDIDATES[:1], "b")


def test_replicates_are_the_points_of_the_screening_with_other_seeds(tmp_path: Path) -> None:
    sweep = write_sweep(
        tmp_path / "a", SCREEN, fixed={"data.particles": 100, "seed": 0, "fulcrum.x": "'a,b'"}
    )
    comparison = compare(gather({sweep: (RADIUS,)})[0])
    runs, candidates = candidates_of(comparison)
    assert [each.name for each in candidates] == [f"dilation_radius {r}" for r in (7, 0, 28)]
    chosen = [runs[find_point(runs, read_point(f"{RADIUS}={r}") or {})] for r in (0, 28)]
    assert replicate_overrides(chosen, [1, 2], By.split) == [
        "study=x", "data.particles=100", "fulcrum.x=a,b", "seed=1,2", "data.resplit=true",
        "hydra.sweeper.params=null", "hydra.sweeper.only_if=null",
        "hydra.sweeper.points=[{mask.dilation_radius:'0'},{mask.dilation_radius:'28'}]",
    ]  # fmt: skip
    assert "data.simulation_seed=3" in replicate_overrides(chosen, [3], By.simulation)
    with pytest.raises(ValueError, match="no point has that"):
        find_point(runs, {RADIUS: "9"})


def test_a_point_is_written_with_commas_and_lists_keep_theirs() -> None:
    assert read_point("a.b=7,fulcrum.px=[1,2,3],c=x") == {"a.b": "7", "fulcrum.px": "[1,2,3]", "c": "x"}
    assert read_point(None) is None
    with pytest.raises(ValueError, match="write KEY=VALUE"):
        read_point("a")
