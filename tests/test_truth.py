"""How well scores rank settings as the truth does: against counts over pairs by hand."""

import math

import numpy as np
import pytest

from cryosweep.study.truth import rank_settings, spearman


def test_spearman_is_one_minus_six_sum_of_squares() -> None:
    # ranks 1 2 3 4 5 against 2 1 4 3 5: sum of squares 4, so 1 - 6 * 4 / (5 * 24)
    assert spearman([1.0, 2.0, 3.0, 4.0, 5.0], [20.0, 10.0, 40.0, 30.0, 50.0]) == pytest.approx(0.8)
    assert math.isnan(spearman([1.0, 2.0], [1.0, 2.0]))
    assert math.isnan(spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))


def test_regret_is_what_the_pick_lacks() -> None:
    area = np.array([0.80, 0.84, 0.50, 0.30])
    error = np.array([2.0, 2.5, 6.0, 9.0])
    scores = {"good": np.array([3.0, 4.0, 2.0, 1.0]), "led astray": np.array([1.0, 2.0, 3.0, 4.0])}
    good, astray = rank_settings(
        ["tight", "soft", "wide", "widest"], scores, truth_area=area, rotation_error=error
    )
    assert (good.score, good.pick, good.spearman_area) == ("good", "soft", pytest.approx(1.0))
    assert good.spearman_rotation == pytest.approx(0.8)
    assert (good.regret_area, good.regret_rotation) == (0.0, pytest.approx(0.5))
    assert astray.pick == "widest"
    assert astray.regret_area == pytest.approx(0.54)
    assert astray.regret_rotation == pytest.approx(7.0)
    assert astray.spearman_area == pytest.approx(-0.8)


def test_of_equal_scores_the_first_setting_is_the_pick() -> None:
    (ranking,) = rank_settings(
        ["a", "b"], {"s": np.array([1.0, 1.0])}, truth_area=np.array([0.1, 0.2]),
        rotation_error=np.array([1.0, 1.0]),
    )  # fmt: skip
    assert ranking.pick == "a"
    assert ranking.regret_area == pytest.approx(0.1)
