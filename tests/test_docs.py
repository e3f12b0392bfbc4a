"""What the documentation points at exists: tests, commands, pictures and pages."""

import argparse
import ast
import re
from functools import cache
from pathlib import Path

import pytest

from cryosweep import commands, file_commands

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
NAMED = re.compile(r"(test_\w+\.py)::(test_\w+)")


@cache
def names_in(file: str) -> set[str]:
    path = ROOT / "tests" / file
    if not path.is_file():
        return set()
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_named_exists(page: Path) -> None:
    named = NAMED.findall(page.read_text(encoding="utf-8"))
    missing = [f"{file}::{name}" for file, name in named if name not in names_in(file)]
    assert not missing


def test_every_convention_has_its_proof() -> None:
    """Each row of each table of the page names a test."""
    page = (ROOT / "docs" / "conventions.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    claims = [row for row in rows if not row.startswith("| ---") and not row.rstrip().endswith("| proof |")]
    assert len(claims) >= 60
    assert [claim for claim in claims if not NAMED.search(claim.split("|")[-2])] == []


def test_every_command_has_its_section() -> None:
    parser = argparse.ArgumentParser()
    known = parser.add_subparsers()
    commands.add_parsers(known)
    file_commands.add_parsers(known)
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## cryosweep (\S+)$", page, re.MULTILINE)
    assert sorted(sections) == sorted({"run", "check", *known.choices})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there_and_small(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not target.startswith(("http://", "https://")):
            path = page.parent / target
            assert path.exists(), target
            if path.suffix == ".png":
                assert path.stat().st_size < 60_000
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|usr)/", text), "a path of one machine"
