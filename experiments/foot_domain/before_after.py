"""Draw the foot before and after local refinement and with subtraction: slices, and FSC against the truth.

python experiments/foot_domain/before_after.py SWEEP --out before_after.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import ndimage

from cryosweep.diagnostics import BLUE, GREY, VERMILION
from cryosweep.io import read_map
from cryosweep.study.comparison import load_runs

STAGES = (("start", GREY), ("local", BLUE), ("local, subtraction", VERMILION))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--out", type=Path, default=Path("before_after.png"))
    arguments = parser.parse_args()
    runs = [run for run in load_runs([arguments.sweep]) if run.is_finished]
    figure = Figure(figsize=(11.0, 3.1), layout="constrained")
    *slices, curves = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.5))
    first = {run.swept["subtraction"]: run for run in runs if run.swept.get("data.simulation_seed", 0) == 0}
    files = (
        first["none"].folder / "start_map.mrc", first["none"].folder / "map.mrc",
        first["domain"].folder / "map.mrc",
    )  # fmt: skip
    mask = read_map(first["none"].folder / "scoring_mask.mrc").data.numpy()
    z, y, x = (round(float(c)) for c in ndimage.center_of_mass(mask))
    half = 26
    for place, file, (name, _) in zip(slices, files, STAGES, strict=True):
        volume = read_map(file).data.numpy()
        cut = np.s_[z, max(y - half, 0) : y + half, max(x - half, 0) : x + half]
        top = np.quantile(volume[mask > 0.5], 0.995)
        place.imshow(volume[cut], origin="lower", cmap="gray", vmin=-0.2 * top, vmax=top)
        place.contour(mask[cut], levels=[0.5], colors=VERMILION, linewidths=0.7)
        place.set_title(name, fontsize=9)
        place.set_axis_off()
    for run in runs:
        table = run.fsc()
        refined = STAGES[1 if run.swept["subtraction"] == "none" else 2]
        curves.plot(table["frequency"], table["truth"], color=refined[1], linewidth=0.9)
        curves.plot(table["frequency"], table["start_truth"], color=GREY, linewidth=0.9)
    for name, colour in STAGES:
        curves.plot([], [], color=colour, label=name)
    curves.axhline(0.5, color="black", linewidth=0.5, linestyle=":")
    curves.set(xlabel="spatial frequency (1/Å)", ylabel="FSC with the truth", ylim=(-0.05, 1.02))
    curves.legend(fontsize=7)
    figure.savefig(arguments.out, dpi=72, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main()
