"""On which images do scores see what a subtraction is worth? Paired differences, with less without.

    for domain in head foot arm; do cryosweep run experiment=subtraction_$domain data.particles=400 \\
        data.box_size=48 data.pixel_size=7.0 data.snr=0.2 refinement.initial_lowpass=20; done
    OMP_NUM_THREADS=1 python benchmarks/scoring_mask.py SWEEP_OF_THE_ARM --masks "0 / 10" --rows arm.csv
    python benchmarks/common_images.py arm.csv head.csv foot.csv

Each run is scored at its own refined poses: on the images that it refined (own); both on the images as they
are; and both on images without everything but the domain (subtracted), the common images of `cryosweep
compare`. A, H and T as in benchmarks/scoring_mask.py, A and H under the scoring mask 0 / 10 Å, and the median
errors of the poses. Mean over the simulations of subtraction=domain less none, and its paired 95 % interval.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from cryosweep.study.statistics import paired_difference

AS_THEY_ARE, SUBTRACTED = "as they are", "subtracted"
# what the run without and the run with subtraction are scored on
IMAGES = {
    "own": (AS_THEY_ARE, SUBTRACTED),
    AS_THEY_ARE: (AS_THEY_ARE, AS_THEY_ARE),
    SUBTRACTED: (SUBTRACTED, SUBTRACTED),
}


def differences(rows: pd.DataFrame) -> pd.DataFrame:
    """One line for each domain and set of images."""
    found: list[dict[str, object]] = []
    rows = rows[rows["mask"] == "0 / 10"]
    for domain, of_it in rows.groupby("domain", sort=False):
        for images, (without, with_it) in IMAGES.items():
            line: dict[str, object] = {"domain": domain, "images": images, "n": of_it["seed"].nunique()}
            for score in ("A", "H", "T", "rotation", "shift"):
                by = of_it.pivot_table(index="seed", columns=["refined on", "scored on"], values=score)
                less = paired_difference(
                    by[SUBTRACTED, with_it].to_numpy(), by[AS_THEY_ARE, without].to_numpy()
                )
                line[score] = f"{less.mean:+.3f} [{less.low:+.3f}, {less.high:+.3f}]"
            found.append(line)
    return pd.DataFrame(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=Path, nargs="+", help="tables that benchmarks/scoring_mask.py wrote")
    table = pd.concat([pd.read_csv(path) for path in parser.parse_args().rows])
    print(differences(table).to_string(index=False))


if __name__ == "__main__":
    main()
