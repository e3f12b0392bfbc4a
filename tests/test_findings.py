"""Findings on disk, on a terminal, in the comparison and on the page."""

from pathlib import Path

import pytest

from cryosweep.rules import Finding
from cryosweep.study.comparison import compare, load_runs, terminal_table
from cryosweep.study.findings import FINDINGS_FILE, read_findings, tags_of, told, write_findings
from cryosweep.study.report import write_report
from tests.synthetic_runs import write_study

MADE = (
    Finding("R7", "error", "the gap is 0.3", "at most 0.1", "case study", "Soften the mask"),
    Finding("R10", "warning", "12% at 20°", "2%", "case study", "Widen <search>"),
    Finding("R10", "warning", "8% at 10 Å", "2%", "case study", "Widen it"),
    Finding("R22", "info", "12 Å without a mask", "expected", "case study", "Nothing"),
)


def test_findings_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_findings(tmp_path, MADE)
    assert read_findings(tmp_path) == MADE
    text = (tmp_path / "findings.txt").read_text(encoding="utf-8")
    assert text.startswith("findings: 1 error, 2 warnings, 1 remark\n- R7 error: the gap is 0.3;")
    assert told(()) == "findings: none"


def test_a_folder_without_findings_has_none_and_a_damaged_file_is_said(tmp_path: Path) -> None:
    assert read_findings(tmp_path) == ()
    (tmp_path / FINDINGS_FILE).write_text('[{"code": "R7"}]')
    with pytest.raises(ValueError, match="not a list of findings"):
        read_findings(tmp_path)


def test_tags_join_findings_of_one_rule() -> None:
    assert tags_of(MADE) == {
        "finding.R7": "error: the gap is 0.3",
        "finding.R10": "warning: 12% at 20° | warning: 8% at 10 Å",
        "finding.R22": "info: 12 Å without a mask",
    }


def test_the_comparison_lists_findings_run_by_run(tmp_path: Path) -> None:
    folders = write_study(tmp_path / "runs")
    write_findings(folders[1], MADE)
    write_findings(folders[2], MADE[3:])
    comparison = compare(load_runs([tmp_path / "runs"]))
    rank = 1 + [run.folder for run in comparison.runs].index(folders[1])
    lines = terminal_table(comparison).splitlines()
    assert f"- #{rank}: errors R7; warnings R10" in lines
    assert sum(line.startswith("- #") for line in lines) == 1  # remarks alone are not worth a line
    page = write_report(comparison, tmp_path / "report.html").page.read_text(encoding="utf-8")
    assert 'id="findings"' in page
    assert page.count('class="level error"') == 2  # summary and list
    assert "Widen &lt;search&gt;" in page


def test_without_findings_the_page_has_no_such_part(tmp_path: Path) -> None:
    write_study(tmp_path / "runs")
    comparison = compare(load_runs([tmp_path / "runs"]))
    page = write_report(comparison, tmp_path / "report.html").page.read_text(encoding="utf-8")
    assert 'id="findings"' not in page
    assert "Findings" not in terminal_table(comparison)
