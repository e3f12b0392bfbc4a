"""The commands that work on files and stores; `run` and `check` are in `app`.

Each command imports what it needs when it runs, so that `cryosweep --help` answers at once.
"""

from __future__ import annotations

import argparse
import os
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
        "compare the jobs of a sweep: table, statistics, report.html",
        "cryosweep compare demo --output demo.html",
    )
    parser.add_argument(
        "sweep", help="sweep folder, id of its parent run, or name of a study (its latest sweep)"
    )
    parser.add_argument(
        "--from-mlflow",
        metavar="URI",
        help="rebuild it from this tracking store alone: all sweeps of a study, or one by its parent run",
    )
    parser.add_argument("--output", type=Path, help="the page (default: report.html in the sweep folder)")
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=OUTPUT_DIR,
        help="where studies are looked for (default: %(default)s)",
    )
    parser.set_defaults(function=compare)


def compare(arguments: argparse.Namespace) -> int:
    """Print the comparison of a sweep, write its page and log both to the parent run."""
    if arguments.from_mlflow is not None:
        return _compare_stored(arguments)
    from cryosweep.study.sweep import PAGE_FILE, log_comparison, resolve_sweep, write_comparison

    folder = resolve_sweep(arguments.sweep, arguments.output_dir)
    page: Path = arguments.output or folder / PAGE_FILE
    say(write_comparison(folder, page))
    say(f"\npage: {page}\ntable: {page.with_suffix('.csv')}")
    log_comparison(folder, page)
    return 0


def _compare_stored(arguments: argparse.Namespace) -> int:
    """Print the comparison of a study that only a tracking store knows, and write its page."""
    from cryosweep.study.comparison import compare
    from cryosweep.study.recover import recover
    from cryosweep.study.report import write_report

    page: Path = arguments.output or arguments.output_dir / arguments.sweep / "recovered" / "report.html"
    runs = recover(arguments.from_mlflow, arguments.sweep, page.parent / f"{page.stem}_runs")
    written = write_report(compare(runs), page)
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
    return subprocess.run(command, env=environment, check=False).returncode
