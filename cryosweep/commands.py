"""The commands that work on files and stores; `run` and `check` are in `app`.

Each command imports what it needs when it runs, so that `cryosweep --help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # pyright: ignore[reportPrivateUsage]

OUTPUT_DIR = Path("cryosweep_out")


def say(text: str) -> None:
    """The answer of a command, on standard output; what happens on the way goes to the log."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def add_parsers(commands: Commands) -> None:
    """Add a parser for each command; `function` of what it parses runs it and returns the exit status."""
    _add_compare(commands)
    _add_replicate(commands)
    _add_ui(commands)


def add_command(commands: Commands, name: str, help: str, example: str) -> argparse.ArgumentParser:
    """A parser with the one line of help and the one example that every command has."""
    return commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_compare(commands: Commands) -> None:
    parser = add_command(
        commands,
        "compare",
        "compare jobs of sweeps: table, statistics, report.html",
        "cryosweep compare demo --output demo.html\n"
        "  cryosweep compare demo --all --centre mask.dilation_radius=7,mask.soft_padding_width=20",
    )
    parser.add_argument(
        "sweep",
        nargs="+",
        help="sweep folder, id of its parent run, or name of a study (its latest sweep); several are "
        "compared together, equal jobs counted once",
    )
    parser.add_argument("--all", action="store_true", help="all sweeps of the named study together")
    parser.add_argument(
        "--alone", action="store_true", help="replicates without the sweep that they were chosen from"
    )
    parser.add_argument(
        "--centre",
        metavar="KEY=VALUE,...",
        help="the point that all others are compared with (default: that of the first job)",
    )
    parser.add_argument(
        "--output", type=Path, help="the page (default: report.html in the last sweep folder)"
    )
    parser.add_argument(
        "--from-mlflow",
        metavar="URI",
        help="rebuild it from this tracking store alone: all sweeps of a study, or one by its parent run",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=OUTPUT_DIR,
        help="where studies are looked for (default: %(default)s)",
    )
    parser.set_defaults(function=compare)


def _add_replicate(commands: Commands) -> None:
    """Its function is in `app`, which starts jobs."""
    parser = add_command(
        commands,
        "replicate",
        "run the leading points of a sweep with other seeds",
        "cryosweep replicate demo --leaders 3 --seeds 1,2 hydra/launcher=joblib hydra.launcher.n_jobs=2",
    )
    parser.add_argument(
        "sweep",
        help="finished sweep: its folder, id of its parent run, or name of a study (its latest sweep)",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        help="of Hydra, such as hydra/launcher=joblib, or compute.device=cuda",
    )
    parser.add_argument(
        "--centre", metavar="KEY=VALUE,...", help="the centre (default: the point of the first job)"
    )
    parser.add_argument(
        "--leaders",
        type=int,
        default=3,
        help="how many of the best others by rank sum (default: %(default)s)",
    )
    parser.add_argument(
        "--also", metavar="KEY=VALUE,...", action="append", default=[],
        help="a further point that a claim will name; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--seeds",
        type=read_seeds,
        default=[1, 2],
        metavar="SEED,...",
        help="one replicate each (default: 1,2)",
    )
    parser.add_argument(
        "--by", choices=["split", "simulation"], default="split",
        help="other splits into half sets (for these particles), or other simulated particles (for particles "
        "of this kind) (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--check", action="store_true", help="say what would be run, and run nothing")
    parser.add_argument("--force", action="store_true", help="compute points that are finished already")
    parser.add_argument(
        "--config-dir", type=Path, action="append", default=[], help="that the sweep was started with"
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=OUTPUT_DIR,
        help="where studies are looked for (default: %(default)s)",
    )


def read_point(text: str | None) -> dict[str, str] | None:
    """`KEY=VALUE,KEY=VALUE` as keys and values in words; None for None.

    Raises:
        ValueError: a part has no `=`.
    """
    if text is None:
        return None
    # a comma parts two keys where a key follows it: lists have commas of their own
    parts = re.split(r",(?=[\w./]+=)", text)
    if any("=" not in part for part in parts):
        raise ValueError(f"{text}: write KEY=VALUE,KEY=VALUE for a point")
    return {key.strip(): value.strip() for key, _, value in (part.partition("=") for part in parts)}


def read_seeds(text: str) -> list[int]:
    """`1,2` as numbers, for argparse.

    Raises:
        ArgumentTypeError: a part is no whole number.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: write whole numbers, such as 1,2") from None


def compare(arguments: argparse.Namespace) -> int:
    """Print the comparison of a sweep, write its page and log both to the parent run.

    Raises:
        ValueError: a name leads to no sweep, or the sweeps cannot be compared.
    """
    from cryosweep.study.sweep import (
        PAGE_FILE,
        log_comparison,
        resolve_sweep,
        settle,
        sweeps_of,
        write_comparison,
    )

    if arguments.from_mlflow is not None:
        return _compare_stored(arguments)
    centre = read_point(arguments.centre)
    if arguments.alone and (arguments.all or len(arguments.sweep) > 1):
        raise ValueError("--alone takes one sweep, and not --all")
    if arguments.all and len(arguments.sweep) > 1:
        raise ValueError(f"--all takes the name of one study, not {len(arguments.sweep)} names")
    if arguments.all:
        folders = sweeps_of(arguments.sweep[0], arguments.output_dir)
    else:
        folders = [resolve_sweep(name, arguments.output_dir) for name in arguments.sweep]
    for study in {each.parent for each in folders}:
        settle(study)
    together = arguments.all or arguments.alone or len(folders) > 1
    folder, earlier = folders[-1], folders[:-1] if together else None
    page: Path = arguments.output or folder / PAGE_FILE
    say(write_comparison(folder, page, earlier=earlier, centre=centre))
    say(f"\npage: {page}\ntable: {page.with_suffix('.csv')}")
    log_comparison(folder, page)
    return 0


def _compare_stored(arguments: argparse.Namespace) -> int:
    """Print the comparison of a study that only a tracking store knows, and write its page.

    Raises:
        ValueError: more than one study is named, or what is meant for sweep folders.
    """
    from cryosweep.study.comparison import compare
    from cryosweep.study.recover import recover
    from cryosweep.study.report import write_report

    if len(arguments.sweep) > 1 or arguments.all or arguments.alone:
        raise ValueError("--from-mlflow takes one study or one parent run, without --all and --alone")
    (study,) = arguments.sweep
    page: Path = arguments.output or arguments.output_dir / study / "recovered" / "report.html"
    runs = recover(arguments.from_mlflow, study, page.parent / f"{page.stem}_runs")
    written = write_report(compare(runs, centre=read_point(arguments.centre)), page)
    say(written.text.read_text(encoding="utf-8"))
    say(f"page: {written.page}\ntable: {written.table}")
    return 0


def _add_ui(commands: Commands) -> None:
    parser = add_command(
        commands,
        "ui",
        "show the tracking store in the browser, served to this machine only",
        "cryosweep ui --port 5001",
    )
    parser.add_argument(
        "--uri", help="the store (default: MLFLOW_TRACKING_URI, or mlflow.db in the output folder)"
    )
    parser.add_argument(
        "--output-dir", type=Path, default=OUTPUT_DIR, help="the output folder (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=5000, help="port on localhost (default: %(default)s)")
    parser.set_defaults(function=ui)


def ui(arguments: argparse.Namespace) -> int:
    """Serve the store on localhost until Ctrl-C.

    Raises:
        ValueError: there is no store yet, or it is a server already.
    """
    from cryosweep.tracking import sqlite_file, store_uri, views

    uri = store_uri(arguments.uri or os.environ.get("MLFLOW_TRACKING_URI"), arguments.output_dir)
    file = sqlite_file(uri)
    if uri.startswith(("http://", "https://")):
        raise ValueError(f"{uri} is a server already; open it in the browser")
    if file is not None and not file.is_file():
        raise ValueError(
            f"{file} does not exist; start a run first, or name another store with --output-dir or --uri"
        )
    address = f"http://127.0.0.1:{arguments.port}"
    say(f"serving {uri} at {address} (Ctrl-C ends it)")
    for study, place in views(uri).items():
        say(f"  jobs of {study}: {address}/{place}")
    # Without its job runners the server is three processes instead of ten.
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(arguments.port), "--workers", "1"]
    server = subprocess.Popen(command, env=environment)

    def terminate(*_: object) -> None:
        server.terminate()

    before = signal.signal(signal.SIGTERM, terminate)  # else `kill` would leave the server behind
    try:
        return server.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
