"""How well scores that need no truth rank settings as the truth of simulated data does: plain numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """One score held against the truth.

    Attributes:
        score: name of the score.
        spearman_area: rank correlation with the FSC area against the true map; NaN where it is not defined.
        spearman_rotation: rank correlation with minus the median rotation error.
        pick: the setting that the score puts first.
        regret_area: how much truth FSC area its pick lacks against the best of all settings; 0 is perfect.
        regret_rotation: by how many degrees the median rotation error of its pick exceeds the least.
    """

    score: str
    spearman_area: float
    spearman_rotation: float
    pick: str
    regret_area: float
    regret_rotation: float


def rank_settings(
    settings: Sequence[str], scores: Mapping[str, Array], *, truth_area: Array, rotation_error: Array
) -> tuple[Ranking, ...]:
    """Hold each score, higher is better, against the truth.

    Args:
        settings: m names.
        scores: (m,) values of each score; of equal highest values the first setting counts as the pick.
        truth_area: (m,) FSC area against the true map.
        rotation_error: (m,) degrees.
    """
    found: list[Ranking] = []
    for name, values in scores.items():
        pick = int(np.argmax(values))
        found.append(
            Ranking(
                name,
                spearman(values, truth_area),
                spearman(values, -rotation_error),
                settings[pick],
                float(truth_area.max() - truth_area[pick]),
                float(rotation_error[pick] - rotation_error.min()),
            )
        )
    return tuple(found)


def spearman(a: Sequence[float] | Array, b: Sequence[float] | Array) -> float:
    """Rank correlation; NaN of fewer than three values, or where one side has no two different ones."""
    if len(a) < 3 or len(set(a)) < 2 or len(set(b)) < 2:
        return math.nan
    return float(np.asarray(spearmanr(a, b))[0])
