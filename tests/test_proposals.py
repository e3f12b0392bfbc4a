"""Points proposed by Optuna: the space, the rungs, and a study that is stopped and goes on."""

import csv
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from cryosweep import app
from cryosweep.composition import ConfigFaults, make_plan
from cryosweep.study import proposals, sweep
from cryosweep.study.points import AxisFault, read_axes
from tests.test_app import out, record, uri

__all__ = ["out", "uri"]  # fixtures

pytest.importorskip("optuna", reason="needs cryosweep[optuna]")

DEFAULTS: dict[str, Any] = {
    "n_trials": 6, "batch": 3, "objective": "fsc_area/frozen", "sampler": "tpe", "seed": 0, "rungs": [],
    "keep": 0.34,
}  # fmt: skip
LINES = ("a=interval(0,1)", "b=x,y", "c=range(0,10,2)", "d=5", "e=tag(log,int(interval(1,100)))")
E_ONLY = {"e": {"b": "y"}}


def study_of(journal: Path, run: Callable[[list[list[str]]], list[Any]], *lines: str, **changes: Any) -> Any:
    sweeper = {**DEFAULTS, **changes}
    settings = proposals.read_settings(sweeper)
    space = proposals.read_space(read_axes(sweeper, lines or LINES), settings)
    return proposals.optimise(space, settings, journal, run)


class Jobs:
    """Stands for the launcher: scores a job by the distance of `a` from 0.7, biased on few particles."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.run: list[list[str]] = []
        self.stop_after = stop_after

    def __call__(self, jobs: list[list[str]]) -> list[dict[str, float] | None]:
        if self.stop_after is not None and len(self.run) >= self.stop_after:
            raise KeyboardInterrupt
        self.run += jobs
        return [self.score(dict(line.split("=") for line in job)) for job in jobs]

    def score(self, point: dict[str, str]) -> dict[str, float] | None:
        bias = {"300": 0.1, "600": 0.05}.get(point.get("data.subset", ""), 0.0)
        if point.get("seed") == "66":
            return None
        return {"fsc_area/frozen": 1.0 - (float(point["a"]) - 0.7) ** 2 - bias}


def test_points_lie_in_the_space_and_have_the_keys_that_their_conditions_allow(tmp_path: Path) -> None:
    jobs = Jobs()
    study_of(tmp_path / "j", jobs, only_if=E_ONLY, n_trials=12)
    assert len(jobs.run) == 12
    points = [dict(line.split("=") for line in job) for job in jobs.run]
    for point in points:
        assert 0.0 <= float(point["a"]) <= 1.0
        assert point["c"] in {"0", "2", "4", "6", "8"}
        assert point["d"] == "5"
        assert ("e" in point) == (point["b"] == "y")
        if "e" in point:
            assert 1 <= int(point["e"]) <= 100
    assert {point["b"] for point in points} == {"x", "y"}


def test_each_rung_keeps_the_best_and_the_others_are_pruned(tmp_path: Path) -> None:
    jobs = Jobs()
    study = study_of(tmp_path / "j", jobs, batch=6, n_trials=6, rungs=[300, 600, None], keep=0.5)
    subsets = [job[-1] for job in jobs.run]
    assert subsets == ["data.subset=300"] * 6 + ["data.subset=600"] * 3 + ["data.subset=null"]
    assert len(jobs.run) == proposals.read_settings(
        {**DEFAULTS, "batch": 6, "rungs": [300, 600, None], "keep": 0.5}
    ).jobs()  # fmt: skip
    distance = {tuple(job[:-1]): abs(float(job[1].removeprefix("a=")) - 0.7) for job in jobs.run[:6]}
    best = sorted(distance, key=lambda point: distance[point])
    assert {tuple(job[:-1]) for job in jobs.run[6:9]} == set(best[:3])
    assert tuple(jobs.run[9][:-1]) == best[0]
    states = [trial.state.name for trial in study.trials]
    assert (states.count("PRUNED"), states.count("COMPLETE")) == (5, 1)
    assert sorted(len(trial.intermediate_values) for trial in study.trials) == [1, 1, 1, 2, 2, 3]


@pytest.mark.parametrize(("sampler", "stop_after"), [("tpe", 1), ("tpe", 8), ("tpe", 9), ("gp", 8)])
def test_a_study_that_was_stopped_proposes_what_it_would_have(
    tmp_path: Path, sampler: str, stop_after: int
) -> None:
    told = {"rungs": [300, None], "n_trials": 12, "batch": 6, "sampler": sampler, "only_if": E_ONLY}
    whole = Jobs()
    expected = study_of(tmp_path / "whole", whole, **told)
    with pytest.raises(KeyboardInterrupt):
        study_of(tmp_path / "j", Jobs(stop_after=stop_after), **told)
    again = Jobs()
    study = study_of(tmp_path / "j", again, **told)
    assert again.run == whole.run
    assert [(t.params, t.state, t.values) for t in study.trials] == [
        (t.params, t.state, t.values) for t in expected.trials
    ]
    # and when it is asked for more, what there was stays
    more = Jobs()
    study = study_of(tmp_path / "j", more, **{**told, "n_trials": 18})
    assert more.run[: len(whole.run)] == whole.run
    assert len(study.trials) == 18


def test_a_trial_that_was_told_must_have_its_score_again(tmp_path: Path) -> None:
    study_of(tmp_path / "j", Jobs())
    changed = Jobs()
    changed.score = lambda point: {"fsc_area/frozen": 0.5}  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"code or input files have changed; give another study="):
        study_of(tmp_path / "j", changed)


def test_a_job_that_failed_is_told_and_the_study_goes_on(tmp_path: Path) -> None:
    study = study_of(tmp_path / "j", Jobs(), "a=interval(0,1)", "seed=66")
    assert {trial.state.name for trial in study.trials} == {"FAIL"}
    study = study_of(tmp_path / "k", Jobs(), "a=interval(0,1)", "seed=1,66", n_trials=9)
    assert {trial.state.name for trial in study.trials} == {"FAIL", "COMPLETE"}


def test_listed_points_come_first_and_a_search_finds_better_ones(tmp_path: Path) -> None:
    jobs = Jobs()
    study = study_of(
        tmp_path / "j", jobs, "a=interval(0,1)", points=[{"a": 0.1}, {"a": 0.2}], n_trials=24, batch=3
    )
    assert jobs.run[:2] == [["a=0.1"], ["a=0.2"]]
    assert study.best_value > 0.99


@pytest.mark.parametrize(
    ("lines", "changes", "message"),
    [
        (["a=1"], {}, "nothing is swept"),
        (["a=interval(1,0)"], {}, "the interval must rise"),
        (["a=tag(log,interval(0,1))"], {}, "must be above 0"),
        (["a=range(5,0,-1)"], {}, "the range must rise"),
        (["a=1,2"], {"batch": 4}, "n_trials=6: must be a multiple of hydra.sweeper.batch=4"),
        (["a=1,2"], {"objective": "fsc"}, "objective=fsc: must be one of fsc_area/frozen, score/held"),
        (["a=1,2"], {"sampler": "x"}, "sampler=x: must be one of tpe, gp, random"),
        (["a=1,2"], {"keep": 1.5}, "keep=1.5: must lie between 0 and 1"),
        (["a=1,2"], {"rungs": [None, 3]}, "must grow; null comes last"),
        (["a=1,2", "data.subset=5"], {"rungs": [3, None]}, "rungs sets it"),
        (["a=1,2"], {"points": [{"a": 3}]}, "a=3 is none of 1, 2"),
        (["a=interval(0,1)"], {"points": [{"a": 3}]}, "a=3 is no number from 0 to 1"),
        (["a=1,2"], {"points": [{"b": 3}]}, "b is none of the axes (a)"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(
    lines: list[str], changes: dict[str, Any], message: str
) -> None:
    sweeper = {**DEFAULTS, **changes}
    with pytest.raises(AxisFault) as caught:
        proposals.read_space(read_axes(sweeper, lines), proposals.read_settings(sweeper))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_check_tries_every_choice_and_both_ends() -> None:
    search = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=9", "hydra.sweeper.batch=9"]
    made = make_plan(
        [
            *search,
            "mask.threshold=interval(0.1,0.3)",
            "fulcrum=mask_centre,hinge",
            "hydra.sweeper.rungs=[300,null]",
        ],
        multirun=True,
    )
    assert made.search == (
        "up to 12 jobs: 9 points proposed 9 at a time, each batch on 300, all particles, the best 0.34 of it "
        "going on each time: mask.threshold (0.1 to 0.3) x fulcrum (2 values)"
    )
    assert sorted({job.mask.threshold for job in made.jobs}) == [0.1, 0.3]  # pyright: ignore
    with pytest.raises(ConfigFaults, match=r"mask\.threshold=2: must be above 0 up to 1"):
        make_plan([*search, "mask.threshold=interval(0.1,2)"], multirun=True)
    with pytest.raises(ConfigFaults, match=r"data\.subset=-3"):
        make_plan([*search, "seed=1,2", "hydra.sweeper.rungs=[-3,null]"], multirun=True)


def test_without_optuna_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "find_spec", lambda name: None)
    with pytest.raises(ConfigFaults, match=re.escape("pip install 'cryosweep[optuna]'")) as caught:
        make_plan(["hydra/sweeper=optuna", "seed=1,2"], multirun=True)
    assert len(caught.value.found) == 1
    assert importlib.util.find_spec("optuna") is not None


def test_a_search_is_a_sweep_like_any_other(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [
        "run", "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.batch=4",
        "hydra.sweeper.rungs=[300,null]", "mask.threshold=interval(0.1,0.3)", "study=search",
    ]  # fmt: skip
    app.main([*arguments, f"hydra.sweep.dir={out / 'search' / 'one'}"])
    book = sweep.read_sweep(out / "search" / "one")
    assert (book["status"], book["rungs"], len(book["jobs"])) == ("FINISHED", [300, None], 5)
    assert book["parent_run_id"] is not None
    assert record(out / "search" / "one" / "4")["swept"].keys() == {"mask.threshold", "data.subset"}
    with (out / "search" / "one" / proposals.TRIALS_FILE).open() as file:
        assert [row["state"] for row in csv.DictReader(file)].count("COMPLETE") == 1
    assert (out / "search" / proposals.JOURNAL).is_file()
    # typed again nothing is computed, and all is there
    app.main([*arguments, f"hydra.sweep.dir={out / 'search' / 'two'}"])
    taken = [record(job).get("taken_from") for job in sweep.job_folders(out / "search" / "two")]
    assert len(taken) == 5
    assert all(taken)
    assert json.loads((out / "search" / "two" / "sweep.json").read_text())["status"] == "FINISHED"


def test_a_study_is_driven_by_one_process(tmp_path: Path) -> None:
    """Another process holds it until it ends, be it by a kill; other settings are another study."""
    settings = proposals.read_settings(DEFAULTS)
    space = proposals.read_space(read_axes(DEFAULTS, LINES), settings)
    code = (
        "import sys; from pathlib import Path; from tests import test_proposals as t; p = t.proposals;"
        "s = p.read_settings(t.DEFAULTS); space = p.read_space(t.read_axes(t.DEFAULTS, t.LINES), s);"
        f"held = p.claim(Path({str(tmp_path)!r}), space, s); print('held', flush=True); sys.stdin.read()"
    )
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(
            ValueError, match=r"another process is driving it; let it end, or give"
        ) as refused:
            proposals.claim(tmp_path, space, settings)
        assert "\n" not in str(refused.value)
        # more trials of the same study are the same study, another seed is not
        more = proposals.read_settings(DEFAULTS | {"n_trials": 12})
        assert proposals.study_name(space, more) == proposals.study_name(space, settings)
        proposals.claim(tmp_path, space, proposals.read_settings(DEFAULTS | {"seed": 1})).release()
        other.kill()
    proposals.claim(tmp_path, space, settings).release()


def test_a_second_search_of_the_same_study_is_refused_before_it_starts(out: Path) -> None:
    line = "mask.threshold=interval(0.1,0.2)"
    arguments = [
        "run", "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=1", "hydra.sweeper.batch=1",
        "study=twice", line,
    ]  # fmt: skip
    app.main([*arguments, f"hydra.sweep.dir={out / 'twice' / 'one'}"])
    (lock,) = (out / "twice").glob(".*.alive")
    with FileLock(lock):
        with pytest.raises(SystemExit, match=r"the sweep was not started: Optuna study .* is driving it"):
            app.main([*arguments, f"hydra.sweep.dir={out / 'twice' / 'two'}"])
        assert not (out / "twice" / "two").exists()
    # it was let go at the end, and is held by whoever comes next
    app.main([*arguments, f"hydra.sweep.dir={out / 'twice' / 'three'}"])
    assert sweep.read_sweep(out / "twice" / "three")["status"] == "FINISHED"
