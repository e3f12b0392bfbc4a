"""Draw each simulation with and without subtraction, joined by a line, for several domains.

python experiments/subtraction/pairs.py HEAD_SWEEP FOOT_SWEEP ARM_SWEEP --out pairs.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from cryosweep.diagnostics import BLUE, GREY, VERMILION
from cryosweep.study.comparison import ROTATION_ERROR, SHIFT_ERROR, TRUTH_SCORE, load_runs

START = {
    TRUTH_SCORE: "start/truth_fsc_area",
    ROTATION_ERROR: "start/rotation_error_median",
    SHIFT_ERROR: "start/shift_error_median",
}
PANELS = (
    (TRUTH_SCORE, "truth FSC area"),
    (ROTATION_ERROR, "rotation error, median (°)"),
    (SHIFT_ERROR, "shift error, median (Å)"),
)
STAGES = (("start", GREY), ("none", BLUE), ("domain", VERMILION))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweeps", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("pairs.png"))
    arguments = parser.parse_args()
    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    axes = figure.subplots(1, len(PANELS))
    for group, sweep in enumerate(arguments.sweeps):
        runs = [run for run in load_runs([sweep]) if run.is_finished]
        table = pd.DataFrame(
            [
                {"subtraction": run.swept["subtraction"], "seed": run.swept.get("data.simulation_seed", 0)}
                | {key: run.summary[key] for key in START}
                | {f"start {key}": run.summary[start] for key, start in START.items()}
                for run in runs
            ]
        )
        for place, (key, title) in zip(axes, PANELS, strict=True):
            for _, pair in table.groupby("seed"):
                ways = pair.set_index("subtraction")
                values = [ways[f"start {key}"].iloc[0], ways.at["none", key], ways.at["domain", key]]
                at = [4 * group + stage for stage in range(3)]
                place.plot(at, values, color=GREY, linewidth=0.8, zorder=1)
                for x, y, (_, colour) in zip(at, values, STAGES, strict=True):
                    place.scatter(x, y, color=colour, s=18, zorder=2)
            place.set_title(title, fontsize=9)
    names = [sweep.resolve().parent.name.rsplit("_", 1)[-1] for sweep in arguments.sweeps]
    for place in axes:
        place.set_xticks([4 * group + 1 for group in range(len(names))], names)
        place.set_ylim(bottom=0.0)
    for text, (_, colour) in zip(("start", "local", "local, subtraction"), STAGES, strict=True):
        axes[0].scatter([], [], color=colour, s=18, label=text)
    axes[0].legend(fontsize=7, loc="lower right")
    figure.savefig(arguments.out, dpi=90)


if __name__ == "__main__":
    main()
