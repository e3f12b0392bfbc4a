"""What finished null sweeps invented, as one table: see experiments/null/README.md for the sweeps.

    python benchmarks/null.py SWEEP_FOLDER ...

Of each run: the mean FSC over the scoring band, which holds no signal, under its own mask, the same
corrected for the mask by random phases, and under the scoring mask; the SD that chance alone gives the first,
by formula; and the resolutions that the run would claim at 0.143.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from cryosweep.io import read_map
from cryosweep.resolution import area_sd, band_shells

SWEPT = {
    "dilation": ("mask", "dilation_radius"), "padding": ("mask", "soft_padding_width"),
    "marginalise": ("refinement", "marginalise"), "regularisation": ("refinement", "regularisation"),
    "band_from": ("refinement", "band_from"),
}  # fmt: skip


def row_of(run: Path) -> dict[str, Any]:
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    curves = pd.read_csv(run / "fsc.csv")
    scoring, data = config["scoring"], config["data"]
    high = scoring["band_high"] or 2.0 * data["pixel_size"] / 0.95
    first, last = band_shells(
        scoring["band_low"], high, box_size=data["box_size"], pixel_size=data["pixel_size"]
    )
    band = curves.iloc[first : last + 1]
    own = torch.from_numpy(curves["own_tight"].to_numpy(copy=True))
    mask = read_map(run / "mask.mrc").data
    return {
        "study": config["study"], "domain": config["mask_base"]["name"],
        **{name: config[group][key] for name, (group, key) in SWEPT.items()},
        "own": band["own_tight"].mean(), "sd": area_sd(own, mask, first_shell=first, last_shell=last),
        "corrected": band["own_corrected"].mean(), "frozen": band["frozen"].mean(),
        "own Å": summary["resolution/own_tight_0143"],
        "corrected Å": summary["resolution/own_corrected_0143"],
        "frozen Å": summary["resolution/frozen_0143"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweeps", type=Path, nargs="+")
    arguments = parser.parse_args()
    for sweep in arguments.sweeps:
        runs = sorted((path.parent for path in sweep.glob("*/summary.json")), key=lambda path: int(path.name))
        table = pd.DataFrame([row_of(run) for run in runs])
        same = [name for name in table.columns[:7] if table[name].nunique() == 1]
        print(", ".join(f"{name} {table[name].iloc[0]}" for name in same))
        print(table.drop(columns=same).round(3).to_string(index=False), flush=True)
        print()


if __name__ == "__main__":
    main()
