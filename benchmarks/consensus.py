"""What non-uniform references and a consensus pass are worth: seeds of simulated data, compared in pairs.

    python benchmarks/consensus.py OUT [--seeds 0,1,2,3] [--overrides data.box_size=64 ...]

Sweeps `cryosweep run` over simulation seeds, three starts (the poses as they come, a homogeneous and a
non-uniform consensus of 2 iterations) and two regularisations of the local refinement of the head, and prints
means and standard deviations of paired differences. A job without extents on the body scores each consensus
against the body's truth.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

STARTS = ("reconstruct", "homogeneous", "nonuniform")
REGULARISATIONS = ("wiener", "nonuniform")
HEAD = ("truth/fsc_area", "truth/rotation_error_median", "truth/shift_error_median", "fsc_area/frozen")
BODY = (
    "start/truth_fsc_area", "consensus/body_rotation_error_median", "consensus/body_shift_error_median",
    "start/fsc_area_frozen",
)  # fmt: skip
Summary = dict[str, float]


def sweep(out: Path, study: str, *overrides: str) -> dict[tuple[str, ...], Summary]:
    """Run a sweep; the summary of each job by its swept values, in the order of the command line."""
    command = [sys.executable, "-m", "cryosweep", "run", "-m", *overrides, f"study={study}",
               f"output_dir={out}", "tracking.enabled=false"]  # fmt: skip
    subprocess.run(command, check=True)
    (folder,) = sorted((out / study).glob("sweep_*"))[-1:]
    found: dict[tuple[str, ...], Summary] = {}
    for job in folder.glob("[0-9]*"):
        swept = json.loads((job / "run.json").read_text())["swept"]
        found[tuple(str(value) for value in swept.values())] = json.loads((job / "summary.json").read_text())
    return found


def line(name: str, values: list[float], differences: list[float] | None) -> str:
    """Mean of values, and of paired differences with their standard deviation."""
    text = f"  {name:<38} {statistics.mean(values):9.4f}"
    if differences is None:
        return text
    won = sum(each < 0 for each in differences), sum(each > 0 for each in differences)
    spread = statistics.stdev(differences) if len(differences) > 1 else float("nan")
    return f"{text}   {statistics.mean(differences):+8.4f} ± {spread:.4f}   {won[0]} below, {won[1]} above"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", default="0,1,2,3")
    parser.add_argument("--overrides", nargs="*", default=[])
    given = parser.parse_args()
    seeds = given.seeds.split(",")
    common = (f"data.simulation_seed={given.seeds}", *given.overrides)
    head: dict[tuple[str, str], dict[str, Summary]] = {}
    body: dict[str, dict[str, Summary]] = {}
    for start in STARTS:
        chosen = [f"consensus={start}"] + ["consensus.max_iterations=2"] * (start != "reconstruct")
        regularisations = "refinement.regularisation=" + ",".join(REGULARISATIONS)
        jobs = sweep(given.out, f"head_{start}", "experiment=head", regularisations, *chosen, *common)
        for regularisation in REGULARISATIONS:
            head[start, regularisation] = {
                seed: next(s for key, s in jobs.items() if set(key) == {regularisation, seed})
                for seed in seeds
            }
        held = ("search.rotation_extent=0", "search.shift_extent=0", "search.audit=0",
                "refinement.max_iterations=1", "mask_base.name=body")  # fmt: skip
        jobs = sweep(given.out, f"body_{start}", *held, *chosen, *common)
        body[start] = {seed: next(s for key, s in jobs.items() if seed in key) for seed in seeds}
    print("\nconsensus, scored on the body; differences from `reconstruct`")
    table("reconstruct", BODY, seeds, body)
    print("nonuniform from homogeneous")
    table("homogeneous", BODY, seeds, {name: body[name] for name in STARTS[1:]})
    for start in STARTS:
        print(f"\nhead after local refinement, from {start}; differences from wiener")
        table("wiener", HEAD, seeds, {name: head[start, name] for name in REGULARISATIONS})
    for regularisation in REGULARISATIONS:
        print(f"\nhead after local refinement, {regularisation}; differences from reconstruct")
        table("reconstruct", HEAD, seeds, {start: head[start, regularisation] for start in STARTS})


def table(base: str, metrics: tuple[str, ...], seeds: list[str], runs: dict[str, dict[str, Summary]]) -> None:
    """Print each metric of each kind of run, with paired differences from the kind `base`."""
    for name, by_seed in runs.items():
        print(f" {name}")
        for metric in metrics:
            values = [by_seed[seed][metric] for seed in seeds]
            against = [runs[base][seed][metric] for seed in seeds]
            differences = [a - b for a, b in zip(values, against, strict=True)]
            print(line(metric, values, None if name == base else differences))


if __name__ == "__main__":
    main()
