"""Draw what the masks of mask_parameters_head, _foot and _arm did: truth, poses and the two scores.

python experiments/mask_parameters/surface.py HEAD_SWEEP FOOT_SWEEP ARM_SWEEP --out surface.png
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from cryosweep.study.comparison import HELD_OUT, ROTATION_ERROR, SCORE, TRUTH_SCORE

DILATION, PADDING = "mask.dilation_radius", "mask.soft_padding_width"
PANELS = (
    (TRUTH_SCORE, "truth FSC area", "{:.3f}", "viridis"),
    (ROTATION_ERROR, "rotation error (°)", "{:.2f}", "viridis_r"),
    (SCORE, "half-map FSC area", "{:.3f}", "viridis"),
    (HELD_OUT, "held-out log-likelihood", "{:.2f}", "viridis"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweeps", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("surface.png"))
    arguments = parser.parse_args()
    rows = len(arguments.sweeps)
    figure = Figure(figsize=(10.5, 2.35 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, len(PANELS), squeeze=False)
    for row, sweep in zip(axes, arguments.sweeps, strict=True):
        runs = pd.read_csv(sweep / "report.csv").query("status == 'FINISHED'")
        domain = sweep.resolve().parent.name.rsplit("_", 1)[-1]
        for place, (key, title, form, colours) in zip(row, PANELS, strict=True):
            grid = runs.pivot_table(index=DILATION, columns=PADDING, values=key, aggfunc="mean")
            spread = runs.pivot_table(index=DILATION, columns=PADDING, values=key, aggfunc="std")
            grid, spread = (each.sort_index().sort_index(axis=1) for each in (grid, spread))
            values = grid.to_numpy()
            place.imshow(values, origin="lower", cmap=colours, aspect="auto")
            low, high = values.min(), values.max()
            for i in range(values.shape[0]):
                for j in range(values.shape[1]):
                    bright = (values[i, j] - low) / (high - low or 1.0) > 0.6
                    dark = bright != colours.endswith("_r")
                    place.text(
                        j, i, f"{form.format(values[i, j])}\n± {form.format(spread.to_numpy()[i, j])}",
                        ha="center", va="center", fontsize=7, color="black" if dark else "white",
                    )  # fmt: skip
            place.set_xticks(range(values.shape[1]), [f"{x:g}" for x in grid.columns])
            place.set_yticks(range(values.shape[0]), [f"{y:g}" for y in grid.index])
            place.set_title(f"{domain}: {title}", fontsize=9)
            if row[0] is axes[-1, 0]:
                place.set_xlabel("soft padding (Å)")
        row[0].set_ylabel("dilation (Å)")
    figure.suptitle("mean ± SD over simulations; yellow is better", fontsize=9)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=80)
    Image.open(drawn).convert("RGB").quantize(48).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
