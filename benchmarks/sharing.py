"""What a sweep saves: CPU seconds of its jobs beside the same jobs, each in a process and a store of its own.

    OMP_NUM_THREADS=1 python benchmarks/sharing.py --particles 300

The sweep varies the mask alone. Counted is everything from the start of a process to its end: imports,
simulation, starting maps, refinement, scores, figures and, for the sweep, its comparison. Nothing is tracked:
setting up an MLflow store for each isolated job would only flatter the sweep. `--launcher-jobs 2` spreads the
sweep over processes, each of which shares with itself. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

BASE = (
    "fulcrum=hinge", "mask_base.name=head", "tracking.enabled=false", "compute.device=cpu",
    "compute.threads=1",
)  # fmt: skip


def cpu_seconds(arguments: list[str], output: Path) -> float:
    """CPU seconds of one `cryosweep run` and all its processes."""
    command = [sys.executable, "-m", "cryosweep", "run", *arguments, f"output_dir={output}"]
    with (output / "log.txt").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{(output / 'log.txt').read_text()}")
    return used.ru_utime + used.ru_stime


def inside_jobs(output: Path) -> float:
    """CPU seconds that the jobs under `output` measured themselves, from first to last line of `run_job`."""
    found = [json.loads(path.read_text()) for path in output.rglob("summary.json")]
    return sum(summary["cpu_seconds"] for summary in found)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--particles", type=int, default=300)
    parser.add_argument("--dilations", default="0,7,28", help="Å")
    parser.add_argument("--paddings", default="0,20", help="Å")
    parser.add_argument("--launcher-jobs", type=int, default=1)
    parser.add_argument("overrides", nargs="*", help="further overrides of every job")
    given = parser.parse_args()
    base = [*BASE, f"data.particles={given.particles}", *given.overrides]
    launcher = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={given.launcher_jobs}"]
    points = list(product(given.dilations.split(","), given.paddings.split(",")))
    with tempfile.TemporaryDirectory() as scratch:
        together = Path(scratch) / "together"
        together.mkdir()
        swept = [f"mask.dilation_radius={given.dilations}", f"mask.soft_padding_width={given.paddings}"]
        sweep = cpu_seconds(["-m", *base, *swept, *(launcher if given.launcher_jobs > 1 else [])], together)
        print(f"sweep of {len(points)} jobs: {sweep:.1f} CPU s", flush=True)
        alone, alone_inside = 0.0, 0.0
        for number, (dilation, padding) in enumerate(points):
            output = Path(scratch) / str(number)
            output.mkdir()
            masks = [f"mask.dilation_radius={dilation}", f"mask.soft_padding_width={padding}"]
            seconds = cpu_seconds([*base, *masks], output)
            print(f"dilation {dilation}, padding {padding}, by itself: {seconds:.1f} CPU s", flush=True)
            alone += seconds
            alone_inside += inside_jobs(output)
        found = {
            "jobs": len(points), "particles": given.particles, "processes": given.launcher_jobs,
            "sweep_cpu_s": round(sweep, 1), "isolated_cpu_s": round(alone, 1),
            "ratio": round(sweep / alone, 3),
            "sweep_inside_jobs_cpu_s": round(inside_jobs(together), 1),
            "isolated_inside_jobs_cpu_s": round(alone_inside, 1),
            "ratio_inside_jobs": round(inside_jobs(together) / alone_inside, 3),
        }  # fmt: skip
    print(
        f"{len(points)} jobs of {given.particles} particles: {sweep:.0f} CPU s as a sweep, {alone:.0f} one "
        f"by one, ratio {sweep / alone:.2f}; inside the jobs {found['ratio_inside_jobs']:.2f}"
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
