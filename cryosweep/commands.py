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
    from cryosweep.study.sweep import PAGE_FILE, log_comparison, resolve_sweep, settle, write_comparison

    folder = resolve_sweep(arguments.sweep, arguments.output_dir)
    settle(folder.parent)
    page: Path = arguments.output or folder / PAGE_FILE
    say(write_comparison(folder, page))
    say(f"\npage: {page}\ntable: {page.with_suffix('.csv')}")
    log_comparison(folder, page)
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
    from cryosweep.tracking import sqlite_file, store_uri

    uri = store_uri(arguments.uri or os.environ.get("MLFLOW_TRACKING_URI"), arguments.output_dir)
    file = sqlite_file(uri)
    if uri.startswith(("http://", "https://")):
        raise ValueError(f"{uri} is a server already; open it in the browser")
    if file is not None and not file.is_file():
        raise ValueError(
            f"{file} does not exist; start a run first, or name another store with --output-dir or --uri"
        )
    say(f"serving {uri} at http://127.0.0.1:{arguments.port} (Ctrl-C ends it)")
    # Without its job runners the server is three processes instead of ten.
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(arguments.port), "--workers", "1"]
    return subprocess.run(command, env=environment, check=False).returncode
