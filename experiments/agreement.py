"""How the order of a sweep fares against the truth: rank correlations and regret, simulation by simulation.

    python experiments/agreement.py cryosweep_out/STUDY/SWEEP [...]

Reads the report.csv of sweeps over simulated data. A: half-map FSC area; H: held-out log-likelihood; sum: the
order of the table, by rank sum of both. T: FSC area against the truth; R: minus the median rotation error.
Each line holds Spearman's correlation over the points, one run a point, and what the leader of the table
loses against the best in T and in degrees. `mean of n` ranks the points by their means over the simulations.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from cryosweep.study.comparison import HELD_OUT, REPLICATE_KEYS, ROTATION_ERROR, SCORE, TRUTH_SCORE
from cryosweep.study.statistics import rank_sum


def read_sweep(folder: Path) -> tuple[pd.DataFrame, list[str], list[str]]:
    """The runs of a sweep, the keys that were swept, and those of them that make replicates."""
    table = pd.read_csv(folder / "report.csv").query("status == 'FINISHED'")
    columns = list(table.columns)
    keys = columns[columns.index("status") + 1 : columns.index(SCORE)]
    replicates = [key for key in keys if key in REPLICATE_KEYS]
    return table, [key for key in keys if key not in replicates], replicates


def agreement(points: pd.DataFrame) -> dict[str, float]:
    """Correlations of the scores of some points with the truth, and the regret of their leader."""
    a, h, t = (points[key].to_numpy(dtype=float) for key in (SCORE, HELD_OUT, TRUTH_SCORE))
    poses = -points[ROTATION_ERROR].to_numpy(dtype=float)
    ranks = rank_sum([a, h])
    leader = int(np.lexsort((-h, ranks))[0])
    found = {
        f"{name},{judge}": float(np.asarray(spearmanr(score, truth))[0])
        for name, score in (("A", a), ("H", h), ("sum", -ranks))
        for judge, truth in (("T", t), ("R", poses))
    }
    return {**found, "loss T": t.max() - t[leader], "loss °": poses.max() - poses[leader]}


def main() -> None:
    for name in sys.argv[1:]:
        runs, choices, replicates = read_sweep(Path(name))
        lines: dict[str, dict[str, float]] = {}
        if replicates:
            for value, points in runs.groupby(replicates[0]):
                lines[f"{replicates[0].split('.')[-1]} {float(str(value)):g}"] = agreement(points)
            means = runs.groupby(choices)[[SCORE, HELD_OUT, TRUTH_SCORE, ROTATION_ERROR]].mean()
            lines[f"mean of {len(lines)}"] = agreement(means)
        else:
            lines["one run a point"] = agreement(runs)
        print(f"{name}: {runs.groupby(choices).ngroups} points over {', '.join(choices)}")
        print(pd.DataFrame(lines).T.to_string(float_format=lambda x: f"{x:.3f}"), "\n")


if __name__ == "__main__":
    main()
