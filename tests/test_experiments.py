"""What the pages of the experiments point at exists, and the agreement with the truth is what it says."""

import re
import runpy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cryosweep.composition import conf_folder
from cryosweep.study.comparison import HELD_OUT, ROTATION_ERROR, SCORE, TRUTH_SCORE

FOLDER = Path(__file__).parents[1] / "experiments"
PAGES = sorted(FOLDER.rglob("README.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_links_pictures_scripts_and_experiments_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not target.startswith(("http://", "https://")):
            path = page.parent / target
            assert path.exists(), target
            if path.suffix == ".png":
                assert path.stat().st_size < 60_000
    for script in re.findall(r"python ((?:experiments|benchmarks)/\S+\.py)", text):
        assert (FOLDER.parent / script).is_file(), script
    folders = (conf_folder(), page.parent / "conf")
    known = {path.stem for folder in folders for path in (folder / "experiment").glob("*.yaml")}
    named = set(re.findall(r"\bexperiment=(\w+)", text.replace("$domain", "head")))
    assert named <= known


def agreement(points: dict[str, list[float]]) -> dict[str, float]:
    script: dict[str, Any] = runpy.run_path(str(FOLDER / "agreement.py"))
    return script["agreement"](pd.DataFrame(points))


def test_scores_that_order_as_the_truth_agree_and_lose_nothing() -> None:
    found = agreement(
        {SCORE: [0.5, 0.4, 0.3], HELD_OUT: [9, 8, 7], TRUTH_SCORE: [0.9, 0.8, 0.7], ROTATION_ERROR: [1, 2, 3]}
    )
    assert all(value == pytest.approx(1.0) for name, value in found.items() if "," in name)
    assert found["loss T"] == found["loss °"] == 0.0


def test_a_leader_that_is_not_the_best_costs_what_it_lacks() -> None:
    """A and H put the first point first; by truth the last has the better map, and the better poses by 2°."""
    found = agreement(
        {SCORE: [0.5, 0.4, 0.3], HELD_OUT: [9, 8, 7], TRUTH_SCORE: [0.7, 0.8, 0.9], ROTATION_ERROR: [3, 2, 1]}
    )
    assert found["A,T"] == found["sum,R"] == pytest.approx(-1.0)
    assert found["loss T"] == pytest.approx(0.2)
    assert found["loss °"] == pytest.approx(2.0)
