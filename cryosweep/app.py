"""The command line: compose, validate, run, track."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cryosweep import __version__, commands, file_commands
from cryosweep.commands import say

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cryosweep.composition import Plan
    from cryosweep.config import JobConfig
    from cryosweep.tracking import Status, Tracker

log = logging.getLogger(__name__)

TRACEBACK = "CRYOSWEEP_TRACEBACK"

# Exit states besides 0: jobs failed or a command could not do its work; the command line was refused; Ctrl-C.
FAILED, REFUSED, INTERRUPTED = 1, 2, 130

RUN_EXAMPLES = """examples:
  cryosweep run experiment=demo
  cryosweep run -m mask.dilation_radius=0,7,14 fulcrum=mask_centre,box_centre
  cryosweep run data=relion data.star=run_data.star mask_base=consensus study=first_look"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `cryosweep`; returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parsed, extra = _parser().parse_known_args(given)
    unknown = [word for word in extra if word.startswith("-") or "overrides" not in parsed]
    if unknown:
        sys.stderr.write(f"cryosweep: unknown argument {unknown[0]}; see cryosweep {parsed.command} --help\n")
        return REFUSED
    if "overrides" in parsed:
        parsed.overrides += extra  # argparse stops collecting them at the first option in between
    try:
        return int(parsed.function(parsed))
    except KeyboardInterrupt:
        sys.stderr.write("cryosweep: interrupted\n")
        return INTERRUPTED
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if os.environ.get(TRACEBACK) == "1":
            raise
        sys.stderr.write(f"cryosweep {parsed.command}: {_one_line(error)}\n")
        return REFUSED if type(error).__name__ == "ConfigFaults" else FAILED


def _one_line(error: BaseException) -> str:
    """What an error says to someone who does not know which library raised it."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "there is not enough memory; take smaller boxes or fewer particles, or a larger machine"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{error.filename or 'the disk of the output'}: no space left; free some or write elsewhere"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cryosweep",
        description="Parameter sweeps of cryo-EM local refinement, compared on one ruler.",
        epilog="example:\n  cryosweep run experiment=demo\n\n`cryosweep COMMAND --help` explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cryosweep {__version__}")
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help, function in (
        ("run", "run one job, or with -m a sweep of jobs", run),
        ("check", "say what would be refused and what would be run, and run nothing", check),
    ):
        command = parsers.add_parser(name, help=help, add_help=False)
        command.add_argument("overrides", nargs="*", default=[])
        command.add_argument("-h", "--help", nargs="?", const="", default=None)
        command.add_argument("-m", "--multirun", action="store_true")
        command.add_argument("--config-dir", type=Path, action="append", default=[])
        command.add_argument("--cfg", choices=["job"])
        if name == "run":
            command.add_argument("--force", action="store_true")
        command.set_defaults(function=function)
    commands.add_parsers(parsers)
    parsers.choices["replicate"].set_defaults(function=replicate)
    file_commands.add_parsers(parsers)
    return parser


def _help(parsed: argparse.Namespace) -> int:
    """The help of `run` and `check`: the groups, or the commented files of one group."""
    from cryosweep.composition import conf_folder, describe_groups, describe_options

    roots = [conf_folder(), *parsed.config_dir]
    if parsed.help:
        say(describe_options(parsed.help, roots))
        return 0
    what = {"run": "Run one job, or with -m one job for each point of a sweep."}.get(
        parsed.command, "Say what `cryosweep run` would refuse and what it would run; nothing is started."
    )
    force = "compute points of a sweep that an earlier sweep of the study has finished already"
    force = f"  --force          {force}\n" if parsed.command == "run" else ""
    say(f"""usage: cryosweep {parsed.command} [-m] [--config-dir DIR] [GROUP=OPTION | KEY=VALUE ...]

{what}

{RUN_EXAMPLES.replace("cryosweep run", f"cryosweep {parsed.command}")}

options:
  -m               sweep: every combination of values such as mask.threshold=0.1,0.2 is a job
  --config-dir DIR more options of groups, in a folder laid out like conf/
{force}  --cfg job        print the configuration (of the first job) and stop
  --help GROUP     the options of one group with every key, its unit and its value

groups, their options (* is taken if none is named) and keys, written GROUP.KEY=VALUE:
{describe_groups(roots)}
  {"(top)":<11} study seed output_dir""")
    return 0


def _plan(parsed: argparse.Namespace) -> Plan:
    """Everything checked that can be checked before work starts.

    Raises:
        ConfigFaults: with all that was found, ready to print.
    """
    from cryosweep import job
    from cryosweep.composition import ConfigFaults, conf_folder, make_plan
    from cryosweep.study.sweep import RUN_FILE, SWEEP_FILE

    log.info("configuration files: %s", conf_folder())
    try:
        plan = make_plan(parsed.overrides, multirun=parsed.multirun, config_folders=parsed.config_dir)
        found = [fault for config in plan.jobs for fault in job.check_job(config)]
        if any((plan.folder / name).exists() for name in (RUN_FILE, SWEEP_FILE)):
            key = "hydra.sweep.dir" if plan.multirun else "hydra.run.dir"
            found.append(f"{key}={plan.folder}: holds results already; give another folder")
        there = next(each for each in (plan.folder, *plan.folder.parents) if each.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            found.append(f"output_dir: {plan.folder} cannot be made, because {there} cannot be written to")
        if found:
            raise ConfigFaults(found)
        return plan
    except ConfigFaults as faults:
        count = "1 fault" if len(faults.found) == 1 else f"{len(faults.found)} faults"
        lines = "\n".join(f"  - {fault}" for fault in faults.found)
        raise ConfigFaults([f"{count} in the configuration, nothing was started:\n{lines}"]) from faults


def check(parsed: argparse.Namespace) -> int:
    """Print what would be refused, or what would be run."""
    if parsed.help is not None:
        return _help(parsed)
    plan = _plan(parsed)
    if parsed.cfg:
        return _print_config(plan)
    say(f"nothing to refuse\n{_cost(plan, force=False)}\nresults would go to {plan.folder}")
    return 0


def _cost(plan: Plan, *, force: bool) -> str:
    """How many points, replicates and jobs there are, and how many of them are finished already."""
    if plan.search:
        return plan.search
    from cryosweep.study.comparison import REPLICATE_KEYS

    kept = {
        tuple(each for each in point if each.partition("=")[0].lstrip("+") not in REPLICATE_KEYS)
        for point in plan.expansion.points
    }
    n, done = len(plan.jobs), 0 if force else _count_finished(plan)
    text = f"{n} job{'s' * (n > 1)}: {plan.expansion}"
    if len(kept) < n:
        text += f"; {len(kept)} point{'s' * (len(kept) > 1)} in {n / len(kept):g} replicates"
    if done:
        text += f"\n{done} finished already and taken over, {n - done} to compute"
    return text


def _count_finished(plan: Plan) -> int:
    """How many jobs of a sweep an earlier sweep of the study has finished."""
    from omegaconf import OmegaConf

    from cryosweep import job
    from cryosweep.study import resume
    from cryosweep.study.sweep import RUN_FILE

    if not plan.multirun or not any(plan.folder.parent.glob(f"*/*/{RUN_FILE}")):
        return 0
    # Files are named by text: jobs with the same text in their configuration read the same files.
    inputs: dict[tuple[str, ...], dict[str, str]] = {}
    done = 0
    for config in plan.jobs:
        # as a job of the sweep settles it
        config.scoring.common_images = job.wants_common_images(config, list(plan.expansion.swept))
        plain = _plain(OmegaConf.structured(config))
        named = tuple(_texts(plain))
        if named not in inputs:
            inputs[named] = job.inputs_of(config)
        done += resume.find_finished(plan.folder / "0", resume.fingerprint(plain, inputs[named])) is not None
    return done


def _texts(node: object) -> list[str]:
    """All text in plain values, in order."""
    if isinstance(node, dict):
        return [text for value in cast("dict[str, object]", node).values() for text in _texts(value)]
    if isinstance(node, list):
        return [text for value in cast("list[object]", node) for text in _texts(value)]
    return [node] if isinstance(node, str) else []


def _print_config(plan: Plan) -> int:
    from omegaconf import OmegaConf

    say(OmegaConf.to_yaml(OmegaConf.structured(plan.jobs[0])).rstrip())
    return 0


def run(parsed: argparse.Namespace) -> int:
    """Run the jobs through Hydra; the state of each is in its `run.json`, that of a sweep in `sweep.json`."""
    if parsed.help is not None:
        return _help(parsed)
    plan = _plan(parsed)
    if parsed.cfg:
        return _print_config(plan)
    return _start(plan, force=parsed.force)


def _start(plan: Plan, *, force: bool) -> int:
    """Say what a checked plan costs and run it through Hydra; returns the exit status."""
    import hydra

    from cryosweep.composition import DEFAULTS, conf_folder
    from cryosweep.study.resume import FORCE

    if plan.multirun:
        log.info("%s", _cost(plan, force=force))
    # Hydra reads the command line itself, and would turn exceptions into its own messages and exit status.
    told = [f"++hydra.job.env_set.{FORCE}='1'"] if force else []
    sys.argv = ["cryosweep", *plan.arguments, *told, *(["--multirun"] if plan.multirun else [])]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # `kill` and a cancelled Slurm job end like Ctrl-C: what was running is marked, what is done is kept.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    start = hydra.main(config_path=str(conf_folder()), config_name="config", **DEFAULTS)(run_one)
    if not plan.multirun:
        start()
        return _conclude_run(plan.folder)
    try:
        start()
    except BaseException as end:
        # Also when a launcher gives up: what the jobs finished is worth its comparison.
        _conclude_sweep(plan.folder, interrupted=isinstance(end, KeyboardInterrupt))
        raise
    return _conclude_sweep(plan.folder, interrupted=False)


def replicate(parsed: argparse.Namespace) -> int:
    """Run chosen points of a finished sweep again with other seeds, and compare all of it together.

    Raises:
        ValueError: the sweep still runs, cannot be compared, or lacks a point that was named.
    """
    from cryosweep.study import replicates
    from cryosweep.study.comparison import show
    from cryosweep.study.sweep import comparison_of, quoted, read_sweep, resolve_sweep

    folder = resolve_sweep(parsed.sweep, parsed.output_dir).absolute()
    book = read_sweep(folder)
    if book["status"] == "RUNNING":
        raise ValueError(f"{folder}: the sweep has not ended; wait for it, or type its command again")
    comparison = comparison_of(folder, centre=commands.read_point(parsed.centre))
    runs, candidates = replicates.candidates_of(comparison)
    also = [replicates.find_point(runs, commands.read_point(text) or {}) for text in parsed.also]
    chosen = replicates.choose(candidates, comparison.replication.centre, leaders=parsed.leaders, also=also)
    by = replicates.By[parsed.by]
    say(f"{len(chosen)} of {len(runs)} points, again with seeds {', '.join(map(str, parsed.seeds))}:")
    say("\n".join(f"  {name}: {reason}" for name, reason in chosen.items()))
    say(f"replicates by {by.value}")
    centre = runs[comparison.replication.centre]
    told = {key: centre.swept[key] for key in comparison.choices if key in centre.swept}
    before = [str(path) for path in [*(book.get("with_sweeps") or []), folder]]
    name = f"sweep_{datetime.now():%Y%m%d_%H%M%S}"
    parsed.overrides = [
        *replicates.replicate_overrides([runs[each] for each in chosen], parsed.seeds, by),
        f"hydra.sweeper.with_sweeps=[{','.join(map(quoted, before))}]",
        "hydra.sweeper.centre={"
        + ",".join(f"{key}:{quoted(show(value))}" for key, value in told.items())
        + "}",
        f"hydra.sweep.dir={quoted(str(folder.parent / name))}",
        *parsed.overrides,
    ]
    parsed.multirun = True
    plan = _plan(parsed)
    if parsed.check:
        say(f"nothing to refuse\n{_cost(plan, force=parsed.force)}\nresults would go to {plan.folder}")
        return 0
    return _start(plan, force=parsed.force)


def _conclude_run(folder: Path) -> int:
    from cryosweep.study.findings import read_findings, told
    from cryosweep.study.sweep import RUN_FILE, read_json

    record = read_json(folder / RUN_FILE)
    finished = record["status"] == "FINISHED"
    if finished and (folder / "summary.json").is_file():
        say(_headline(read_json(folder / "summary.json"), str(record["stop_reason"])))
        say(told(read_findings(folder)))
    say(f"{record['status']}: {folder}")
    return 0 if finished else FAILED


def _headline(summary: Mapping[str, float], stop_reason: str) -> str:
    """What one run reached, in three or four lines."""
    lines = [
        f"stopped after {summary['iterations']:.0f} iterations: {stop_reason}",
        f"under the scoring mask the half-maps agree to {summary['resolution/frozen_0143']:.2f} Å (started "
        f"from {summary['start/resolution_frozen_0143']:.2f} Å), FSC area "
        f"{summary['fsc_area/frozen']:.3f} (from {summary['start/fsc_area_frozen']:.3f})",
        f"median change of rotation {summary['pose/rotation_change_median']:.1f}°, of shift "
        f"{summary['pose/shift_change_median']:.1f} Å; {summary['pose/at_rotation_extent']:.0%} and "
        f"{summary['pose/at_shift_extent']:.0%} of the particles at the limit of the search",
    ]
    if "truth/resolution_05" in summary:
        lines.append(
            f"against the truth: right to {summary['truth/resolution_05']:.2f} Å (from "
            f"{summary['start/truth_resolution_05']:.2f} Å), median rotation error "
            f"{summary['truth/rotation_error_median']:.2f}° "
            f"(from {summary['start/rotation_error_median']:.2f}°)"
        )
    return "\n".join(lines)


def _conclude_sweep(folder: Path, *, interrupted: bool) -> int:
    """Print the comparison and what failed; close the sweep if it was left open."""
    from cryosweep.study.sweep import PAGE_FILE, SWEEP_FILE, TABLE_FILE, close_sweep, read_sweep

    if not (folder / SWEEP_FILE).is_file():
        say(f"FAILED: the sweep was not opened, so there is nothing to compare: {folder}")
        return FAILED
    book = read_sweep(folder)
    if book["status"] == "RUNNING":
        book = close_sweep(folder, interrupted=interrupted)
    jobs: list[dict[str, Any]] = book["jobs"]
    if (folder / TABLE_FILE).is_file():
        say((folder / TABLE_FILE).read_text(encoding="utf-8"))
    if book["comparison_error"]:
        say(f"no comparison: {book['comparison_error']}")
    taken = [job for job in jobs if job["taken_from"]]
    if taken:
        say(f"taken over from earlier sweeps of the study: {len(taken)} of {len(jobs)} jobs (--force: none)")
    failed = [job for job in jobs if job["status"] != "FINISHED"]
    for job in failed:
        say(f"{job['status']}: job {job['job']} ({job['name']}): {job['error']}")
    expected = book["jobs_expected"] or len(jobs)
    if (folder / PAGE_FILE).is_file():
        say(f"report: {folder / PAGE_FILE}")
    if book["tracking_uri"]:
        say(f"MLflow store: {book['tracking_uri']}, parent run {book['parent_run_id']}")
    say(f"{book['status']}: {len(jobs) - len(failed)} of {expected} jobs finished: {folder}")
    return 0 if book["status"] == "FINISHED" and not book["comparison_error"] else FAILED


def run_one(composed: DictConfig) -> dict[str, float] | None:
    """One job, called by Hydra in whatever process the launcher chose.

    A job that fails says so in its record, in its tracked run and in `traceback.txt`, and returns None: the
    other points of the sweep go on.
    """
    from hydra.core.hydra_config import HydraConfig

    from cryosweep.study.sweep import alive

    folder = Path(HydraConfig.get().runtime.output_dir)
    with alive(folder):
        return _run_in(folder, composed)


def _run_in(folder: Path, composed: DictConfig) -> dict[str, float] | None:
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from cryosweep import job
    from cryosweep.composition import question_of
    from cryosweep.study import resume
    from cryosweep.study.sweep import RUN_FILE, SWEPT_KEYS, record_run
    from cryosweep.tracking import run_name

    hydra_config = HydraConfig.get()
    in_sweep = str(hydra_config.mode).endswith("MULTIRUN")
    number = hydra_config.job.num if in_sweep else None
    choices = {group: option for group, option in hydra_config.runtime.choices.items() if "/" not in group}
    swept = _swept_values(composed, choices, hydra_config.overrides.task)
    config: JobConfig = OmegaConf.to_object(composed)  # pyright: ignore[reportAssignmentType]
    # settled here, where the sweep is known: a point finished without such scores has another fingerprint
    keys = os.environ.get(SWEPT_KEYS, "").split() if in_sweep else []
    config.scoring.common_images = job.wants_common_images(config, keys)
    composed.scoring.common_images = config.scoring.common_images
    OmegaConf.save(composed, folder / "config.yaml", resolve=True)
    record_run(
        folder,
        name=run_name(swept) or folder.name,
        study=config.study,
        job=folder.name,
        status="RUNNING",
        stop_reason="",
        seed=config.seed,
        swept=swept,
        choices=choices,
        versions={"cryosweep": __version__},
        device="",
        inputs={},
        notes=[],
        command=shlex.join(["cryosweep", "run", *hydra_config.overrides.task]),
        question=question_of(
            hydra_config.runtime.choices.get("experiment"),
            [Path(source.path) for source in hydra_config.runtime.config_sources if source.schema == "file"],
        ),
        code=resume.code_digest(),
    )
    tracker: Tracker | None = None
    try:
        wanted = resume.fingerprint(_plain(composed), job.inputs_of(config))
        record_run(folder, fingerprint=wanted)
        tracker = _start_tracker(config, folder, swept, in_sweep=in_sweep)
        tracker.artifact(folder / "config.yaml")
        tracker.artifact(folder / RUN_FILE)  # again at the end; so a job that is killed is known too
        found = resume.find_finished(folder, wanted) if in_sweep and not resume.is_forced() else None
        if found is None:
            summary = _work(config, folder, tracker, number=number, launcher=hydra_config.launcher._target_)
        else:
            log.info("finished already, taken over from %s", found)
            summary = _take_over(found, folder, tracker)
        tracker.metrics(summary)
        record_run(folder, status="FINISHED", files=resume.inventory(folder))
        tracker.artifact(folder / RUN_FILE)
        tracker.finish("FINISHED")
        return summary
    except Exception as error:
        log.error("failed: %s", _one_line(error), exc_info=os.environ.get(TRACEBACK) == "1")
        _fail(tracker, folder, "FAILED", error)
        return None
    except BaseException as interruption:
        _fail(tracker, folder, "KILLED", interruption)
        raise


def _work(
    config: JobConfig, folder: Path, tracker: Tracker, *, number: int | None, launcher: str
) -> dict[str, float]:
    from tqdm.contrib.logging import logging_redirect_tqdm

    from cryosweep import job
    from cryosweep.progress import make_progress

    _spread_over_devices(config, number)
    progress = make_progress(alone=number is None or launcher.endswith("BasicLauncher"))
    with logging_redirect_tqdm():
        try:
            return job.run_job(config, folder, tracker, progress)
        finally:
            progress.finish()


def _take_over(finished: Path, folder: Path, tracker: Tracker) -> dict[str, float]:
    """The results of a finished run, in the run folder and, but for maps no comparison shows, tracked."""
    from cryosweep.study import resume
    from cryosweep.study.recover import NEEDED
    from cryosweep.study.sweep import read_json

    resume.take_over(finished, folder)
    for name in resume.inventory(folder):
        if name in NEEDED or not name.endswith(".mrc"):
            parent = Path(name).parent.as_posix()
            tracker.artifact(folder / name, folder="" if parent == "." else parent)
    return read_json(folder / "summary.json")


def _plain(composed: DictConfig) -> dict[str, Any]:
    """The resolved configuration as plain values."""
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    return plain


def _spread_over_devices(config: JobConfig, number: int | None) -> None:
    """With several GPUs give each job of a sweep one of them in turn: launchers do not."""
    import torch

    count = torch.cuda.device_count()
    if number is not None and count > 1 and config.compute.device in ("auto", "cuda"):
        config.compute.device = f"cuda:{number % count}"


def _start_tracker(
    config: JobConfig, folder: Path, swept: Mapping[str, object], *, in_sweep: bool
) -> Tracker:
    """JSON lines in the run folder, and unless it is switched off a run in the MLflow store.

    Raises:
        TrackingError: the store cannot be used, or this job of a sweep has no parent run to belong to.
    """
    from omegaconf import OmegaConf

    from cryosweep.study.sweep import EXPERIMENT, PARENT_RUN, record_run
    from cryosweep.tracking import (
        JsonLinesTracker,
        MLflowTracker,
        TrackerGroup,
        TrackingError,
        ordered_params,
        prepare_store,
        run_name,
        store_uri,
    )

    trackers: list[Tracker] = [JsonLinesTracker(folder / "metrics.jsonl")]
    if config.tracking.enabled:
        uri = store_uri(config.tracking.uri, Path(config.output_dir))
        parent = os.environ.get(PARENT_RUN) if in_sweep else None
        experiment = os.environ.get(EXPERIMENT) if in_sweep else None
        if in_sweep and (parent is None or experiment is None):
            raise TrackingError(
                f"{PARENT_RUN} is not set: this job belongs to a sweep whose parent run was not made; "
                "start the sweep again, or set tracking.enabled=false"
            )
        trackers.append(
            MLflowTracker(
                uri,
                prepare_store(uri, config.study) if experiment is None else experiment,
                run_name(swept) or folder.name,
                parent_run_id=parent,
            )
        )
    plain: dict[str, object] = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)  # pyright: ignore[reportAssignmentType]
    tags = {"cryosweep.kind": "job", "cryosweep.folder": str(folder.absolute())}
    for tracker in trackers:
        tracker.start(ordered_params(plain, swept), tags)
        if isinstance(tracker, MLflowTracker):
            # From now on the process that started the sweep can end this run if the job is killed.
            record_run(folder, mlflow_run_id=tracker.run_id, tracking_uri=tracker.uri)
    return TrackerGroup(trackers)


def _swept_values(
    composed: DictConfig, choices: Mapping[str, str], overrides: Sequence[str]
) -> dict[str, object]:
    """The values that this job has of what the sweep varies: keys, or options of groups.

    A key that only some points have is missing where this job has none, even if it has a default value.
    """
    from omegaconf import OmegaConf

    from cryosweep.study.sweep import SWEPT_KEYS

    given = {override.partition("=")[0].lstrip("+") for override in overrides}
    keys = [key for key in os.environ.get(SWEPT_KEYS, "").split() if key in given]
    return {key: choices[key] if key in choices else OmegaConf.select(composed, key) for key in keys}


def _fail(tracker: Tracker | None, folder: Path, status: Status, error: BaseException) -> None:
    """Record why a job ended; what goes wrong on the way must not hide that."""
    from cryosweep.study.sweep import RUN_FILE, record_run

    trace = folder / "traceback.txt"
    try:
        trace.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        record_run(folder, status=status, stop_reason=_reason(error))
    except OSError as second:  # a full disk; without its lock the job counts as killed
        log.error("%s could not be told that the job ended: %s", folder / RUN_FILE, second)
    if tracker is not None:
        try:
            tracker.artifact(trace)
            tracker.artifact(folder / RUN_FILE)
            tracker.finish(status)
        except Exception as second:
            log.error("the tracking store could not be told that the job ended: %s", second)


def _reason(error: BaseException) -> str:
    """One line; the kind of error only where its message was not written for users."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted (Ctrl-C or a signal to stop)"
    message = (_one_line(error).splitlines() or [""])[0]
    if isinstance(error, ValueError | OSError | RuntimeError | MemoryError) and message:
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
