"""Which points a sweep has: what is expanded, what is refused, and what the jobs are told."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from cryosweep import app
from cryosweep.composition import ConfigFaults, make_plan
from cryosweep.study import sweep
from cryosweep.study.points import AxisFault, expand, read_axes
from tests.test_app import out, record, uri

__all__ = ["out", "uri"]  # fixtures

PAIRS = "hydra.sweeper.points=[{mask.dilation_radius:0,mask.soft_padding_width:10},{mask.dilation_radius:7}]"
DOMAIN_ONLY = "hydra.sweeper.only_if={subtraction.dilation_radius:{subtraction:domain}}"


def points(*lines: str, **sweeper: Any) -> list[set[str]]:
    return [set(point) for point in expand(read_axes(sweeper, lines)).points]


def test_a_grid_is_the_product_and_the_command_line_replaces_the_file() -> None:
    assert points("a=1,2", "b=3", "c=5,6") == [
        {f"a={a}", "b=3", f"c={c}"} for a, c in product((1, 2), (5, 6))
    ]
    assert points("a=9", params={"a": "1,2", "b": "3,4"}) == [{"a=9", "b=3"}, {"a=9", "b=4"}]


def test_listed_points_are_crossed_with_the_grid() -> None:
    listed = [{"a": 1, "b": None}, {"a": 2, "b": True}, {"c": "'x y'"}]
    made = expand(read_axes({"points": listed}, ["seed=0,1"]))
    assert [set(point) for point in made.points] == [
        {*point, f"seed={seed}"}
        for point, seed in product([("a=1", "b=null"), ("a=2", "b=true"), ("c='x y'",)], (0, 1))
    ]
    assert str(made) == "3 listed points of a, b, c x seed (2 values)"
    assert made.swept == {"a": 2, "b": 2, "c": 1, "seed": 2}


def test_an_axis_is_there_only_where_its_condition_holds() -> None:
    made = expand(read_axes({"only_if": {"s.r": {"s": "domain"}}}, ["s=none,domain", "s.r=0,7,14", "m=1,2"]))
    assert [set(point) for point in made.points] == [
        *({"s=none", f"m={m}"} for m in (1, 2)),
        *({"s=domain", f"s.r={r}", f"m={m}"} for r, m in product((0, 7, 14), (1, 2))),
    ]
    assert str(made) == "s (2 values) x s.r (3 values, only where s=domain) x m (2 values)"
    assert made.repeats == 0


def test_conditions_may_follow_from_one_another_in_any_order() -> None:
    only_if = {"c": {"b": [1, 2]}, "b": {"a": "x"}, "f.*": {"f": "p"}}
    made = points("c=8,9", "b=1,3", "a=x,y", "f=p,q", "f.z=5,6", only_if=only_if)
    alone = [
        {"a=x", "b=1", "c=8"}, {"a=x", "b=1", "c=9"}, {"a=x", "b=3"}, {"a=y"},
    ]  # fmt: skip
    fulcrum = [{"f=p", "f.z=5"}, {"f=p", "f.z=6"}, {"f=q"}]
    assert len(made) == len(alone) * len(fulcrum)
    assert all(left | right in made for left, right in product(alone, fulcrum))


@pytest.mark.parametrize(
    ("lines", "sweeper", "message"),
    [
        (["a=1"], {"points": [{"a": 2}]}, "a is in hydra.sweeper.points and in the grid"),
        ([], {"points": [{"a": "1,2"}]}, "a=1,2: a listed point has one value for each key"),
        ([], {"points": [{"a": "]"}]}, "a=] cannot be read"),
        ([], {"points": ["a=1"]}, "'a=1' is no point; write"),
        (["a=1,2"], {"only_if": {"b": {"a": 1}}}, "b is neither swept nor given a value"),
        (["a=1,2"], {"only_if": {"a": {"b": 1}}}, "depends on b, which is neither swept nor given a value"),
        (["a=1,2", "b=3"], {"only_if": {"a": {"b": 4}}}, "a is in no point, because b=4 never holds"),
        (["a=1", "b=3"], {"only_if": {"a": {"b": 3}, "b": {"a": 1}}}, "in a circle"),
        (["a=1"], {"only_if": {"a": "b"}}, "is no condition; write"),
        (["a=interval(0,2)"], {}, "search it with hydra/sweeper=optuna"),
    ],
)
def test_axes_that_cannot_be_are_refused_in_one_line(
    lines: list[str], sweeper: dict[str, Any], message: str
) -> None:
    with pytest.raises(AxisFault) as caught:
        expand(read_axes(sweeper, lines))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_check_expands_what_would_run_and_refuses_what_would_not() -> None:
    made = make_plan(
        ["subtraction=none,domain", "subtraction.dilation_radius=0,7", DOMAIN_ONLY], multirun=True
    )
    assert [type(job.subtraction).__name__ for job in made.jobs] == [
        "NoSubtraction", "DomainSubtraction", "DomainSubtraction",
    ]  # fmt: skip
    listed = make_plan([PAIRS, "seed=0,1"], multirun=True)
    assert [(job.mask.dilation_radius, job.seed) for job in listed.jobs] == [  # pyright: ignore
        (0, 0), (0, 1), (7, 0), (7, 1),
    ]  # fmt: skip
    with pytest.raises(ConfigFaults, match=r"a listed point has one value"):
        make_plan(["hydra.sweeper.points=[{mask.threshold:'0.1,0.2'}]"], multirun=True)
    with pytest.raises(ConfigFaults, match=r"mask\.threshold=2: must be above 0 up to 1"):
        make_plan(["hydra.sweeper.points=[{mask.threshold:2}]"], multirun=True)
    with pytest.raises(ConfigFaults, match="names a point twice"):
        make_plan(["hydra.sweeper.points=[{seed:2},{seed:2}]"], multirun=True)
    # without the condition the same axis is refused where it does not exist
    with pytest.raises(ConfigFaults, match=r"subtraction=domain has it.*only_if"):
        make_plan(["subtraction=none,domain", "subtraction.dilation_radius=0,7"], multirun=True)


def test_a_launcher_with_processes_of_its_own_runs_listed_points(out: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs cryosweep[parallel]")
    folder = out / "points" / "joblib"
    app.main(
        ["run", "-m", PAIRS, "study=points", "tracking.enabled=false", f"hydra.sweep.dir={folder}",
         "hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]
    )  # fmt: skip
    book = sweep.read_sweep(folder)
    assert (book["status"], book["jobs_expected"], len(book["jobs"])) == ("FINISHED", 2, 2)
    # a key that a point does not have is not told by its default either
    assert [record(folder / job)["swept"] for job in "01"] == [
        {"mask.dilation_radius": 0, "mask.soft_padding_width": 10},
        {"mask.dilation_radius": 7},
    ]


def test_a_value_added_computes_only_what_is_new_and_its_cost_is_said_before(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["-m", "study=grown", "tracking.enabled=false", "subtraction=none,domain", DOMAIN_ONLY, "seed=0,1"]

    def run(name: str, radii: str) -> list[str | None]:
        folder = out / "grown" / name
        app.main(["run", *told, f"subtraction.dilation_radius={radii}", f"hydra.sweep.dir={folder}"])
        return [record(job).get("taken_from") for job in sweep.job_folders(folder)]

    assert run("a", "0") == [None] * 4
    # a key with one value may have a condition too, and is then an axis, since not all points have it
    assert record(out / "grown" / "a" / "2")["swept"]["subtraction.dilation_radius"] == 0
    assert "subtraction.dilation_radius" not in record(out / "grown" / "a" / "0")["swept"]
    assert record(out / "grown" / "a" / "0")["choices"]["fulcrum"] == "mask_centre"
    capsys.readouterr()
    assert app.main(["check", *told, "subtraction.dilation_radius=0,7"]) == 0
    text = capsys.readouterr().out
    assert (
        "6 jobs: subtraction (2 values) x seed (2 values) x subtraction.dilation_radius (2 values, " in text
    )
    assert "; 3 points in 2 replicates" in text
    assert "4 finished already and taken over, 2 to compute" in text
    taken = run("b", "7,0")
    assert [path and Path(path).name for path in taken] == ["0", "1", None, "2", None, "3"]
    assert [record(out / "grown" / "b" / job)["swept"] for job in "02"] == [
        {"subtraction": "none", "seed": 0},
        {"subtraction": "domain", "subtraction.dilation_radius": 7, "seed": 0},
    ]


def test_a_sweep_that_has_not_ended_or_is_not_there_is_not_replicated(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["replicate", "nosuch"]) == 1
    assert "neither a sweep folder, nor the id of a parent run, nor a study" in capsys.readouterr().err
    folder = out / "open" / "sweep_a"
    folder.mkdir(parents=True)
    (folder / sweep.SWEEP_FILE).write_text('{"status": "RUNNING", "study": "open"}')
    assert app.main(["replicate", "open"]) == 1
    assert "the sweep has not ended" in capsys.readouterr().err
    assert app.main(["compare", "open", "open", "--all"]) == 1
    assert "--all takes the name of one study" in capsys.readouterr().err
    assert app.main(["compare", "open", "--all", "--alone"]) == 1
    assert "--alone takes one sweep" in capsys.readouterr().err
    assert app.main(["compare", "nosuch", "--all"]) == 1
    assert "holds no sweep with jobs" in capsys.readouterr().err
