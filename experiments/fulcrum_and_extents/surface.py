"""Draw rotation error, truth FSC area and particles at the limit over fulcrum x rotation x shift extent.

python experiments/fulcrum_and_extents/surface.py SWEEP --out surface.png
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from cryosweep.study.comparison import ROTATION_ERROR, TRUTH_SCORE, load_runs

ROTATION, SHIFT = "rotation extent", "shift extent"
PANELS = (
    (TRUTH_SCORE, "truth FSC area", "{:.3f}", "viridis"),
    (ROTATION_ERROR, "rotation error (°)", "{:.2f}", "viridis_r"),
    ("pose/at_shift_extent", "at the shift extent (%)", "{:.0f}", "viridis_r"),
)
FULCRA = ("interface", "mask_centre", "box_centre")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--out", type=Path, default=Path("surface.png"))
    arguments = parser.parse_args()
    runs = pd.DataFrame(
        [
            {
                **run.summary,
                "fulcrum": run.swept["fulcrum"],
                ROTATION: run.rotation_extent,
                SHIFT: run.shift_extent,
            }
            for run in load_runs([arguments.sweep])
            if run.is_finished
        ]
    )
    runs["pose/at_shift_extent"] *= 100.0
    figure = Figure(figsize=(8.4, 7.4), layout="constrained")
    axes = figure.subplots(len(PANELS), len(FULCRA), squeeze=False)
    for row, (key, title, form, colours) in zip(axes, PANELS, strict=True):
        low, high = runs[key].min(), runs[key].max()
        for place, fulcrum in zip(row, FULCRA, strict=True):
            chosen = runs[runs["fulcrum"] == fulcrum]
            grid = chosen.pivot_table(index=ROTATION, columns=SHIFT, values=key, aggfunc="mean")
            grid = grid.sort_index().sort_index(axis=1)
            place.imshow(grid.to_numpy(), origin="lower", cmap=colours, aspect="auto", vmin=low, vmax=high)
            for i, line in enumerate(grid.to_numpy()):
                for j, value in enumerate(line):
                    dark = ((value - low) / (high - low or 1.0) > 0.6) != colours.endswith("_r")
                    place.text(
                        j, i, form.format(value), ha="center", va="center", fontsize=8,
                        color="black" if dark else "white",
                    )  # fmt: skip
            place.set_xticks(range(grid.shape[1]), [f"{x:g}" for x in grid.columns])
            place.set_yticks(range(grid.shape[0]), [f"{y:g}" for y in grid.index])
            place.set_title(f"{fulcrum}: {title}", fontsize=9)
            if row[0] is axes[-1, 0]:
                place.set_xlabel("shift extent (Å)")
        row[0].set_ylabel("rotation extent (°)")
    figure.suptitle("one run a point; one colour scale a row; yellow is better", fontsize=9)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=80)
    Image.open(drawn).convert("RGB").quantize(48).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
