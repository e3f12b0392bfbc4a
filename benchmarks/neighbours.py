"""Thresholds of rule R26: what of the half-maps' agreement is the neighbours', against the truth.

    OMP_NUM_THREADS=1 python benchmarks/neighbours.py FOLDER [--seeds 0 1] [--subtraction]

Refines head, foot and arm of the simulated ribosome (800 particles of 96 px, three iterations) under a
tight, a narrow, a usual and a wide mask, at SNR 0.2 and 0.1, with several seeds of the simulation. Of each
run, under its own mask and under the scoring mask:

* inflation: P - T, mean over the scoring band; P is the FSC with the truth that the half-maps promise,
  sqrt(2F / (1 + F)), T the one that the map has;
* share: of the cross-power, that of the neighbours (metrics neighbours/share_own, neighbours/share_frozen);
* rim: share of the cross-power in the soft edge (metric mask/rim_share);
* expected: P sqrt(1 - share), and at most: P times likeness, shell by shell, against T.

Thresholds are chosen on the first seed and judged on the others, which they have not seen. Runs and what was
read of them stay in FOLDER, so a second call only judges. `--subtraction` adds runs on subtracted images.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata, spearmanr

from cryosweep.composition import make_plan
from cryosweep.config import JobConfig
from cryosweep.io import read_map, read_particles
from cryosweep.job.data import load_data
from cryosweep.job.masks import aligning_mask, mask_base, scoring_ruler
from cryosweep.job.neighbours import neighbours_apart
from cryosweep.job.starting import starting_maps
from cryosweep.job.subtraction import images_to_refine
from cryosweep.neighbours import neighbour_power, neighbours_at, promised_fsc
from cryosweep.progress import LogProgress, Progress
from cryosweep.reconstruction import HalfMaps
from cryosweep.simulate import load_ribosome
from cryosweep.study.assessment import masked_fsc, rim_share, score_against_truth
from cryosweep.study.store import Store

CPU = torch.device("cpu")
MASKS = {  # threshold, dilation and padding in Å
    "tight": (0.35, 0, 6), "narrow": (0.15, 3, 8), "base": (0.15, 6, 16), "wide": (0.15, 14, 20),
}  # fmt: skip
BAD, HOPELESS = 0.10, 0.25  # inflation


def overrides(folder: Path, domain: str, mask: str, snr: float, seed: int, subtraction: str) -> list[str]:
    threshold, dilation, padding = MASKS[mask]
    return [
        f"experiment={domain}", "data.particles=800", f"data.snr={snr}", f"data.simulation_seed={seed}",
        f"mask.threshold={threshold}", f"mask.dilation_radius={dilation}",
        f"mask.soft_padding_width={padding}", f"subtraction={subtraction}", "refinement.max_iterations=3",
        "search.audit=0", "scoring.jackknife=0", "scoring.randomisations=1", "tracking.enabled=false",
        f"output_dir={folder}/out",
    ]  # fmt: skip


def read_run(run: Path, config: JobConfig, progress: Progress) -> dict[str, Any]:
    """Curves of a finished run under both masks, as lists, and its rim shares."""
    data_store = Store(Path(config.output_dir) / "stages")
    data = load_data(config, data_store, CPU, progress)
    start = starting_maps(config, data, data_store, CPU, progress)
    base = mask_base(config, data, start, CPU)
    images = images_to_refine(config, data, start, base, CPU, progress)
    ruler = scoring_ruler(config, base, start.particles, CPU)
    rest = neighbours_apart(config, data, start, images, base, CPU)
    assert not isinstance(rest, str)
    refined = read_particles(run / "particles.star")
    pixel_size = refined.pixel_size
    a, b = (read_map(run / f"half_{half}.mrc").data for half in "ab")
    maps = HalfMaps(a, b, pixel_size)
    there = neighbours_at(images.particles, rest, refined.rotations, refined.shifts, device=CPU)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    name = config.mask_base.name  # pyright: ignore[reportAttributeAccessIssue]
    assert data.truth is not None
    domain, truth = load_ribosome().domains[name], data.truth.domains[name]
    found: dict[str, Any] = {
        "first": ruler.first_shell, "last": ruler.last_shell, "box": refined.box_size, "pixel": pixel_size,
        "rotation_error": summary["truth/rotation_error_median"],
    }  # fmt: skip
    own = aligning_mask(config, base, start.particles, CPU)
    for which, mask in (("own", own), ("frozen", ruler.mask)):
        power = neighbour_power(maps, there, mask)
        known = score_against_truth(
            maps, refined.rotations, refined.shifts, domain=domain, truth=truth,
            ruler=replace(ruler, mask=mask),
        )  # fmt: skip
        curves = {
            "half_maps": masked_fsc(maps, mask), "truth": known.curve, "before": power.before,
            "after": power.after, "likeness": power.likeness,
        }  # fmt: skip
        found[which] = {name: curve.tolist() for name, curve in curves.items()}
    reached = summary["resolution/own_corrected_0143"]
    found["rim_own"] = rim_share(maps, own, resolution=reached)
    found["rim_frozen"] = rim_share(maps, ruler.mask, resolution=reached)
    return found


def row_of(read: dict[str, Any], which: str) -> dict[str, float]:
    curves = {name: torch.tensor(values) for name, values in read[which].items()}
    band = slice(int(read["first"]), int(read["last"]) + 1)
    promised, truth = promised_fsc(curves["half_maps"]), curves["truth"]
    before, after = curves["before"], curves["after"]
    share = 1.0 - float(after[band].sum() / before[band].sum())
    window = torch.ones(1, 1, 3, dtype=before.dtype)
    smooth = [torch.nn.functional.conv1d(x[None, None], window, padding=1)[0, 0] for x in (before, after)]
    by_shell = (1.0 - smooth[1] / smooth[0].clamp_min(1e-30)).clamp(0.0, 1.0)
    expected = promised * torch.sqrt(1.0 - by_shell)
    mean = {
        "promised": promised, "truth": truth, "expected": expected, "at_most": promised * curves["likeness"],
    }  # fmt: skip
    values = {name: float(curve[band].mean()) for name, curve in mean.items()}
    return values | {
        "inflation": values["promised"] - values["truth"], "share": share,
        "rim": float(read[f"rim_{which}"]),
        "rotation_error": float(read["rotation_error"]),
    }  # fmt: skip


def auc(values: np.ndarray, bad: np.ndarray) -> float:
    """Probability that a bad case has the larger value (Mann-Whitney)."""
    if bad.all() or not bad.any():
        return float("nan")
    ranks = rankdata(values)
    n = int(bad.sum())
    return float((ranks[bad].sum() - n * (n + 1) / 2) / (n * (len(bad) - n)))


def chosen(values: np.ndarray, bad: np.ndarray) -> float:
    """Threshold of the highest accuracy, in the middle of the gap; the lowest such one."""
    ordered = np.unique(values)
    middles = np.concatenate([[ordered[0] - 0.01], 0.5 * (ordered[1:] + ordered[:-1])])
    right = [float(((values > middle) == bad).mean()) for middle in middles]
    return float(middles[int(np.argmax(right))])


def judged(table: pd.DataFrame, name: str, limit: float, threshold: float) -> str:
    values, bad = table[name].to_numpy(), (table["inflation"] > limit).to_numpy()
    called = values > threshold
    return (
        f"accuracy {float((called == bad).mean()):.2f}, AUC {auc(values, bad):.2f}, "
        f"missed {int((bad & ~called).sum())} of {int(bad.sum())}, "
        f"false {int((called & ~bad).sum())} of {int((~bad).sum())}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--domains", nargs="+", default=["arm", "head", "foot"])
    parser.add_argument("--snrs", nargs="+", type=float, default=[0.2, 0.1])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--subtraction", action="store_true", help="also refine subtracted images, base mask")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder: Path = arguments.folder.resolve()
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for snr in arguments.snrs:
            for domain in arguments.domains:
                kinds = [(mask, "none") for mask in MASKS]
                for mask, subtraction in kinds + [("base", "domain")] * arguments.subtraction:
                    name = ".".join(map(str, (domain, mask, f"{snr:g}", seed, subtraction)))
                    run, given = folder / name, overrides(folder, domain, mask, snr, seed, subtraction)
                    if not (run / "summary.json").is_file():
                        command = [sys.executable, "-m", "cryosweep", "run", *given, f"hydra.run.dir={run}"]
                        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                    kept = run / "neighbours.json"
                    if not kept.is_file():
                        (config,) = make_plan(given, multirun=False).jobs
                        read_json = json.dumps(read_run(run, config, LogProgress()))
                        kept.write_text(read_json, encoding="utf-8")
                    read = json.loads(kept.read_text(encoding="utf-8"))
                    for which in ("own", "frozen"):
                        key: dict[str, Any] = {
                            "domain": domain,
                            "mask": mask,
                            "under": which,
                            "snr": snr,
                            "seed": seed,
                        }
                        rows.append(key | {"images": subtraction} | row_of(read, which))
    table = pd.DataFrame(rows)
    table.to_csv(folder / "neighbours.csv", index=False, float_format="%.4f")
    whole = table[table["images"] == "none"]
    numbers = ["inflation", "share", "rim", "promised", "truth", "expected", "at_most", "rotation_error"]
    print("means over seeds and SNR, images as they are:")
    print(whole.groupby(["under", "domain", "mask"], sort=False)[numbers].mean().round(3).to_string())
    if arguments.subtraction:
        print("subtracted images, base mask:")
        less = table[table["images"] != "none"]
        print(less.groupby(["under", "domain"], sort=False)[numbers].mean().round(3).to_string())
    if len(arguments.seeds) < 2:
        return
    first, others = (whole[whole["seed"].isin(seeds)] for seeds in (arguments.seeds[:1], arguments.seeds[1:]))
    for under in ("own", "frozen"):
        print(f"under the {'aligning' if under == 'own' else 'scoring'} mask:")
        seen, held = (part[part["under"] == under] for part in (first, others))
        for observable in ("share", "rim"):
            rank = [float(spearmanr(part[observable], part["inflation"])[0]) for part in (seen, held)]
            print(f"  {observable}: Spearman with the inflation {rank[0]:.2f}, held back {rank[1]:.2f}")
            for limit in (BAD, HOPELESS):
                at = chosen(seen[observable].to_numpy(), (seen["inflation"] > limit).to_numpy())
                told = (judged(part, observable, limit, at) for part in (seen, held))
                print(f"    inflation > {limit:g}: threshold {at:.3f}; {'; held back: '.join(told)}")
        for name in ("expected", "at_most"):
            error, found = held[name] - held["truth"], held["promised"] - held[name]
            print(
                f"  {name.replace('_', ' ')}, held back: {error.mean():+.3f} from T in the mean (promised: "
                f"{held['inflation'].mean():+.3f}), below T by more than 0.02 in {(error < -0.02).sum()} of "
                f"{len(held)}; sees {found.sum() / held['inflation'].sum():.2f} of the inflation"
            )


if __name__ == "__main__":
    main()
