"""Fixtures shared by all tests."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real files that some tests read; it is not part of the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the folder of real test files {SHARED_DATA} is not on this machine")
    return SHARED_DATA


@pytest.fixture
def generator() -> torch.Generator:
    """Seeded randomness for one test."""
    return torch.Generator().manual_seed(20260101)


@pytest.fixture
def relion(tmp_path: Path) -> Callable[..., str]:
    """Runs a RELION program in `tmp_path` and returns what it printed; a failure shows that text.

    `relion("relion_mask_create", "--i", "base.mrc", ...)`. Without the program the test is skipped, but under
    CI, where the comparison with RELION is part of the promise, it fails.
    """

    def run(program: str, *arguments: str | float) -> str:
        if shutil.which(program) is None:
            reason = f"{program} is not on PATH: install RELION 3.1 (Debian package `relion`)"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
        command = [program, *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
        output = done.stdout + done.stderr
        assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{output}"
        return output

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that tests recorded, so that a log of a green run holds the measurements too."""
    passed = terminalreporter.getreports("passed")
    figures = [
        (report.nodeid, name, value)
        for report in passed
        if report.when == "call"
        for name, value in report.user_properties
    ]
    if not figures:
        return
    terminalreporter.section("figures measured by the tests")
    for node, name, value in figures:
        shown = f"{value:.4g}" if isinstance(value, float) else value
        terminalreporter.write_line(f"{node.split('/')[-1]}: {name} = {shown}")
