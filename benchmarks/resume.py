"""A study that is killed twice on the way and typed again, beside one that is not, and beside isolated jobs.

    OMP_NUM_THREADS=1 python benchmarks/resume.py                                      # 24 points x 3, hours
    OMP_NUM_THREADS=1 python benchmarks/resume.py --points 4 --replicates 2 --particles 300

Points are masks of the demo's head, replicates other splits in half-sets (`seed=0,1 data.resplit=true`), run
by joblib. The study is killed with SIGKILL, all its processes at once, each time that another third of its
jobs is finished and one more has a checkpoint. Printed: the largest difference of any number of any summary,
but for times, between the two studies; CPU seconds of all processes, those that were killed included; and
what the jobs would cost one by one, each in a process and a store of its own: measured on a few of them,
spread over the points, and multiplied. Those are not tracked, which the study is: an MLflow store for each
would only flatter the study. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

TIMES = {"seconds", "cpu_seconds"}
PADDINGS = [0, 7, 14, 21]
PR_SET_CHILD_SUBREAPER = 36


def masks(points: int) -> tuple[list[int], list[int]]:
    """Dilation radii and padding widths in Å whose products are the points."""
    paddings = PADDINGS[: math.gcd(points, len(PADDINGS))] if points > 4 else [14]
    return [4 * number for number in range(points // len(paddings))], paddings


def started(arguments: list[str], output: Path) -> subprocess.Popen[bytes]:
    """One `cryosweep run` in a session of its own, so that all of it can be killed at once."""
    output.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "cryosweep", "run", *arguments, f"output_dir={output}"]
    with (output / "log.txt").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def reap(process: subprocess.Popen[bytes]) -> float:
    """CPU seconds of a process and all that it started, once all of them have ended."""
    total = 0.0
    while True:
        try:
            pid, status, used = os.wait4(-1, 0)
        except ChildProcessError:
            return total
        total += used.ru_utime + used.ru_stime
        if pid == process.pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            # what it leaves behind (semaphore trackers) ends by itself


def finished(output: Path) -> int:
    """Points of the study that are finished in any of its sweeps."""
    records = [json.loads(path.read_text()) for path in output.glob("resume/sweep_*/*/run.json")]
    return len({str(each["swept"]) for each in records if each["status"] == "FINISHED"})


def summaries(output: Path) -> dict[str, dict[str, float]]:
    """The summary of every job of the latest sweep, by its point."""
    last = max(output.glob("resume/sweep_*"), key=lambda path: path.stat().st_mtime)
    found: dict[str, dict[str, float]] = {}
    for path in last.glob("*/summary.json"):
        record = json.loads((path.parent / "run.json").read_text())
        found[str(record["swept"])] = json.loads(path.read_text())
    return found


def largest_difference(first: dict[str, dict[str, float]], second: dict[str, dict[str, float]]) -> float:
    """Over all points and numbers but times; infinite if a point or a number is missing on one side."""
    if first.keys() != second.keys():
        return math.inf
    largest = 0.0
    for point, summary in first.items():
        if summary.keys() != second[point].keys():
            return math.inf
        for name in summary.keys() - TIMES:
            a, b = summary[name], second[point][name]
            alike = a == b or (math.isnan(a) and math.isnan(b))
            largest = max(largest, 0.0 if alike else abs(a - b))
    return largest


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=24)
    parser.add_argument("--replicates", type=int, default=3)
    parser.add_argument("--particles", type=int, default=1200)
    parser.add_argument("--launcher-jobs", type=int, default=2)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--isolated", type=int, default=3, help="jobs that are run one by one")
    parser.add_argument("--output", type=Path, help="a folder to keep (default: a temporary one)")
    parser.add_argument("overrides", nargs="*", help="further overrides of every job")
    given = parser.parse_args()
    # killed processes leave their workers to this one, which can then count them
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    dilations, paddings = masks(given.points)
    base = [
        "study=resume", "fulcrum=hinge", "mask_base.name=head", f"data.particles={given.particles}",
        "data.resplit=true", "compute.device=cpu", "compute.threads=1", *given.overrides,
    ]  # fmt: skip
    seeds = list(range(given.replicates))
    swept = [
        "-m", *base, f"mask.dilation_radius={','.join(map(str, dilations))}",
        f"mask.soft_padding_width={','.join(map(str, paddings))}", f"seed={','.join(map(str, seeds))}",
        "hydra/launcher=joblib", f"hydra.launcher.n_jobs={given.launcher_jobs}",
    ]  # fmt: skip
    jobs = list(product(dilations, paddings, seeds))
    if len(jobs) <= given.kills:
        sys.exit(f"{len(jobs)} jobs cannot be interrupted {given.kills} times in different places")
    with tempfile.TemporaryDirectory() as scratch:
        root = given.output or Path(scratch)
        root.mkdir(exist_ok=True)
        killed, killed_cpu = root / "killed", 0.0
        for number in range(1, given.kills + 1):
            process = started(swept, killed)
            goal = max(1, number * len(jobs) // (given.kills + 1))
            while process.poll() is None and not (
                finished(killed) >= goal and list(killed.glob("stages/refinement/*/checkpoint.pt"))
            ):
                time.sleep(0.1)
            if process.poll() is not None:
                sys.exit(f"the study ended before it was killed; see {killed / 'log.txt'}")
            os.killpg(process.pid, signal.SIGKILL)
            for pid in set(descendants(os.getpid())):
                os.kill(pid, signal.SIGKILL)
            killed_cpu += reap(process)
            print(f"killed with {finished(killed)} of {len(jobs)} jobs finished", flush=True)
            time.sleep(1.1)  # folders are named by the second
        process = started(swept, killed)
        killed_cpu += reap(process)
        logs = [path.read_text() for path in killed.glob("resume/*/*/cryosweep.log")]
        whole = root / "whole"
        process = started(swept, whole)
        whole_cpu = reap(process)
        difference = largest_difference(summaries(killed), summaries(whole))
        states = [
            json.loads(path.read_text())["status"] for path in sorted(killed.glob("resume/*/sweep.json"))
        ]
        complete = len(summaries(killed)) == len(summaries(whole)) == len(jobs)
        resumed = sum("goes on after iteration" in text for text in logs)
        alone: list[float] = []
        every = max(1, len(jobs) // max(given.isolated, 1))
        for number, (dilation, padding, seed) in enumerate(jobs[::every][: given.isolated]):
            point = [f"mask.dilation_radius={dilation}", f"mask.soft_padding_width={padding}", f"seed={seed}"]
            process = started([*base, *point, "tracking.enabled=false"], root / f"alone_{number}")
            alone.append(reap(process))
            print(f"isolated job {' '.join(point)}: {alone[-1]:.1f} CPU s", flush=True)
    isolated = len(jobs) * sum(alone) / len(alone) if alone else math.nan
    print(
        f"{len(jobs)} jobs, killed {given.kills} times: {'complete' if complete else 'NOT COMPLETE'}, sweeps "
        f"{', '.join(states)}; {resumed} refinements went on from a checkpoint\n"
        f"largest difference of any number of a summary but times: {difference:g}\n"
        f"CPU s: {whole_cpu:.0f} uninterrupted, {killed_cpu:.0f} killed and resumed, {isolated:.0f} for "
        f"isolated jobs (mean of {len(alone)} measured, times {len(jobs)})\n"
        f"ratio to isolated jobs: {whole_cpu / isolated:.2f}; killed and resumed {killed_cpu / isolated:.2f}"
    )
    print(
        json.dumps(
            {
                "jobs": len(jobs), "particles": given.particles, "kills": given.kills, "complete": complete,
                "largest_difference": difference, "sweeps": states, "resumed_refinements": resumed,
                "uninterrupted_cpu_s": round(whole_cpu, 1), "killed_cpu_s": round(killed_cpu, 1),
                "isolated_cpu_s": round(isolated, 1), "isolated_measured": len(alone),
                "ratio": round(whole_cpu / isolated, 3), "ratio_killed": round(killed_cpu / isolated, 3),
            }
        )
    )  # fmt: skip
    if not complete or difference > 0.0:
        sys.exit(1)


def descendants(root: int) -> list[int]:
    """Processes under `root`, from /proc; workers that joblib put into sessions of their own included."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            after = path.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has just ended
            continue
        parents[int(path.parent.name)] = int(after[1])
    found: list[int] = []
    level = {root}
    while level:
        level = {pid for pid, parent in parents.items() if parent in level}
        found += level
    return found


if __name__ == "__main__":
    main()
