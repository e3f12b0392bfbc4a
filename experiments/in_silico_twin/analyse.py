"""Compare sweeps on a simulation whose truth was kept back with the same sweeps on its twin.

`python analyse.py DOMAIN ...` in the folder of `run.sh`; writes `twin_predicts.csv` and `twin_predicts.png`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from scipy.stats import spearmanr

from cryosweep.io import read_map, read_particles
from cryosweep.reconstruction import HalfMaps
from cryosweep.simulate import load_truth
from cryosweep.study.assessment import Ruler, make_ruler, score_against_truth

BAND = (34.0, 11.0)
PARTED = 1.25  # as in the report: the map is right to no more than this times what its half maps say
KEYS = ("mask.dilation_radius", "mask.soft_padding_width")
USER = Path("user")


def latest(study: str) -> Path:
    return sorted(Path("cryosweep_out", study).glob("sweep_*"))[-1]


def ruler_of(job: Path) -> Ruler:
    mask = read_map(job / "scoring_mask.mrc")
    return make_ruler(
        mask.data, pixel_size=mask.pixel_size, band_low=BAND[0], band_high=BAND[1], randomisations=1, seed=0
    )


def known_truth(job: Path, domain: str) -> dict[str, float]:
    """Scores of a run on the original against the truth that it was not told."""
    halves = [read_map(job / f"half_{half}.mrc") for half in "ab"]
    particles, ruler = read_particles(job / "particles.star"), ruler_of(job)
    score = score_against_truth(
        HalfMaps(halves[0].data, halves[1].data, halves[0].pixel_size),
        particles.rotations,
        particles.shifts,
        truth=load_truth(USER).domains[domain],
        ruler=ruler,
    )
    return score.summary(ruler, box_size=particles.box_size, pixel_size=particles.pixel_size)


def row(job: Path, domain: str, *, is_twin: bool) -> dict[str, object]:
    summary = json.loads((job / "summary.json").read_text(encoding="utf-8"))
    swept = json.loads((job / "run.json").read_text(encoding="utf-8"))["swept"]
    truth = (
        {name.removeprefix("truth/"): value for name, value in summary.items() if name.startswith("truth/")}
        if is_twin
        else known_truth(job, domain)
    )
    says, right = summary["resolution/frozen_0143"], truth["resolution_05"]
    return {
        "domain": domain,
        "dilation / padding": " / ".join(str(swept[key]) for key in KEYS),
        "of": "twin" if is_twin else "original",
        "area": summary["fsc_area/frozen"],
        "truth_area": truth["fsc_area"],
        "inflation": predicted_area(job, ruler_of(job)) - truth["fsc_area"],
        "half_maps": says,
        "right_to": right,
        "rotation_error": truth["rotation_error_median"],
        "borne_out": right <= PARTED * says,
    }


def predicted_area(job: Path, ruler: Ruler) -> float:
    """P: the area that the truth FSC would have if the half maps shared signal of the domain alone.

    A full map correlates with the truth by sqrt(2 F / (1 + F)) where its half maps agree by F (Rosenthal and
    Henderson 2003, J Mol Biol 333, 721).
    """
    agreed = pd.read_csv(job / "fsc.csv")["frozen"].to_numpy()[ruler.first_shell : ruler.last_shell + 1]
    agreed = agreed.clip(0.0, 1.0)
    return float(((2.0 * agreed / (1.0 + agreed)) ** 0.5).mean())


def main(domains: list[str]) -> None:
    rows: list[dict[str, object]] = []
    for domain in domains:
        for of in ("original", "twin"):
            jobs = [path.parent for path in sorted(latest(f"{of}_{domain}").glob("*/summary.json"))]
            rows += [row(job, domain, is_twin=of == "twin") for job in jobs]
    table = pd.DataFrame(rows)
    table.to_csv("twin_predicts.csv", index=False, float_format="%.3f")
    wide = table.pivot(index=["domain", "dilation / padding"], columns="of")
    shown = ["half_maps", "right_to", "rotation_error", "area", "truth_area", "inflation", "borne_out"]
    with pd.option_context("display.width", 200, "display.max_columns", None):
        print(wide[shown].round(3).to_string())
    for domain in domains:
        part = wide.loc[domain]
        for name in ("truth_area", "area", "right_to", "rotation_error", "inflation"):
            rank = spearmanr(part[name]["original"], part[name]["twin"]).statistic
            off = (part[name]["twin"] - part[name]["original"]).mean()
            print(
                f"{domain}: {name}: Spearman of original and twin {rank:.2f}, twin is {off:+.3f} on average"
            )
        for of in ("original", "twin"):
            rank = spearmanr(part["area"][of], part["truth_area"][of]).statistic
            print(f"{domain}: on the {of} the half maps rank as the truth does by {rank:.2f}")
        same = (part["borne_out"]["original"] == part["borne_out"]["twin"]).sum()
        print(f"{domain}: {same} of {len(part)} verdicts 'borne out' or not are the same")
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 5.0), layout="constrained")
    for axis, name, label in (
        (axes[0], "truth_area", "FSC area against the truth"),
        (axes[1], "rotation_error", "median rotation error (°)"),
    ):
        for domain, colour, marker in zip(domains, ("#0072B2", "#D55E00"), "os", strict=False):
            part = wide.loc[domain]
            x, y = part[name]["twin"], part[name]["original"]
            axis.scatter(x, y, color=colour, marker=marker, s=45, label=domain, zorder=3)
            for point, at_x, at_y in zip(part.index, x, y, strict=True):
                axis.annotate(point, (at_x, at_y), xytext=(5, 4), textcoords="offset points", fontsize=8)
        both = [*axis.get_xlim(), *axis.get_ylim()]
        ends = [min(both), max(both)]
        axis.plot(ends, ends, color="#7F7F7F", linestyle=":", label="twin = original")
        axis.set_xlabel(f"on the twin: {label}")
        axis.set_ylabel(f"on the original: {label}")
        axis.legend(fontsize=9)
    figure.suptitle("What the twin foretells; each point is one mask (dilation / padding in Å)")
    figure.savefig("twin_predicts.png", dpi=72)


if __name__ == "__main__":
    main(sys.argv[1:])
