"""The comparison of a study as one HTML page that opens offline, and as files for other programs.

Everything the page needs lies inside it: the plotly library once, figures as JSON, images as data URIs. Its
content security policy forbids any request, so nothing can leave the file by accident.
"""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from cryosweep.io.chimerax import ShownMap, write_maps_script
from cryosweep.io.maps import Map, read_map
from cryosweep.study.comparison import (
    COLUMNS,
    GSFSC,
    TIED,
    TRUTH_RESOLUTION,
    TRUTH_SCORE,
    Column,
    Comparison,
    Run,
    cell,
    point_label,
    short_key,
    show,
    terminal_table,
    value_order,
)
from cryosweep.study.figures import (
    MOST_PAIRS,
    MOST_RUNS,
    START_LABEL,
    colours_of,
    figures,
    present_types,
    ranked,
)
from cryosweep.study.meshes import surface_figure
from cryosweep.study.pictures import contour_level, slice_pictures
from cryosweep.study.tables import note, question_of, record, run_table
from cryosweep.tracking import TAG_LENGTH

# What belongs to where a run went, not to what was asked.
_PLACES = ("study", "output_dir", "tracking.", "compute.")
# Of what lies beside the page: table, record for scripts, maps in ChimeraX, text, Markdown.
SUFFIXES = (".csv", ".json", ".cxc", ".txt", ".md")
START_GREY = "#9a9a9a"


class Written(NamedTuple):
    """Files of a report: page, table, record for scripts, maps in ChimeraX, text and Markdown."""

    page: Path
    table: Path
    record: Path
    maps: Path
    text: Path
    note: Path


class Density(NamedTuple):
    """What all pictures of maps share: the scoring mask, and one level for every contour."""

    mask: Map
    level: float


def write_report(comparison: Comparison, path: Path) -> Written:
    """Write the page to `path`, and beside it the other files, named alike: see `SUFFIXES`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = Written(path, *(path.with_suffix(suffix) for suffix in SUFFIXES))
    written.text.write_text(terminal_table(comparison) + "\n", encoding="utf-8")
    written.note.write_text(note(comparison, limit=TAG_LENGTH), encoding="utf-8")
    run_table(comparison).to_csv(written.table)
    written.record.write_text(record(comparison), encoding="utf-8")
    first = comparison.runs[0].folder
    mask = read_map(first / "scoring_mask.mrc")
    maps = [first / "start_map.mrc", *(run.folder / "map.mrc" for run in comparison.runs)]
    density = Density(mask, contour_level(maps, mask))
    colours = colours_of(comparison.runs)
    shown = [ShownMap(run.folder / "map.mrc", label, colours[run.name]) for label, run in ranked(comparison)]
    shown.insert(1, ShownMap(first / "start_map.mrc", START_LABEL, START_GREY))
    write_maps_script(written.maps, shown, level=density.level, mask_file=first / "scoring_mask.mrc")
    here = files("cryosweep.study")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(here.joinpath("report.html.j2").read_text(encoding="utf-8"))
    code = {name: here.joinpath(f"report.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    path.write_text(template.render(**_content(comparison, density, colours), **code), encoding="utf-8")
    return written


def _content(comparison: Comparison, density: Density, colours: dict[str, str]) -> dict[str, object]:
    """Everything the template names."""
    drawn = dict(figures(comparison, density.mask, colours))
    surfaces: Any = _surfaces(comparison, density, colours)
    return {
        "comparison": comparison,
        "short_key": short_key,
        "plotly": get_plotlyjs(),
        "figures": {name: _safe_json(figure) for name, figure in drawn.items()},
        "surfaces": _safe_json(surfaces),
        "surface_names": [str(trace.name) for trace in surfaces.data],
        "question": question_of(comparison.runs),
        "facts": _facts(comparison, density.mask),
        "frozen": _frozen(comparison),
        "columns": _visible_columns(comparison),
        "rows": _rows(comparison, colours),
        "start_row": [
            column.show(comparison.start.get(column.key, math.nan)) for column in _visible_columns(comparison)
        ],
        "curve_types": present_types(comparison.runs[0]),
        "standings": _standings(comparison),
        "rankings": _rankings(comparison),
        "effects": [name for name in drawn if name.startswith("effect")],
        "grids": [name for name in drawn if name.startswith("grid")],
        "pairs_left_out": max(0, math.comb(len(comparison.choices), 2) - MOST_PAIRS),
        "slices": _slices(comparison, density),
        "level": f"{density.level:.4g}",
        "judged": [(label, run) for label, run in ranked(comparison) if run.findings],
        "images_left_out": max(0, len(comparison.runs) - MOST_RUNS),
        "provenance": [_provenance(comparison, run) for run in (*comparison.runs, *comparison.failed)],
        "versions": _versions(comparison),
    }


def _safe_json(figure: go.Figure) -> str:
    # "</script>" inside a string would end the script element that holds it.
    return str(figure.to_json()).replace("</", "<\\/")


def _visible_columns(comparison: Comparison) -> list[Column]:
    return [column for column in COLUMNS if column.key in comparison.table]


def _rows(comparison: Comparison, colours: dict[str, str]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for rank, run in enumerate(comparison.runs, start=1):
        parted = comparison.truth is not None and run.name in comparison.truth.parted
        swept = [show(run.swept.get(key)) for key in comparison.swept]
        values = [(value, value, "", False) for value in swept]
        for column in _visible_columns(comparison):
            number: Any = comparison.table.at[run.name, column.key]
            shown = "" if math.isnan(number) else f"{number:.9g}"
            flag = parted and column.key == TRUTH_RESOLUTION
            values.append((cell(comparison, run, column), shown, _interval(run, column), flag))
        tied = rank > 1 and bool(comparison.table.at[run.name, TIED])
        rows.append({"rank": rank, "tied": tied, "run": run, "colour": colours[run.name], "values": values})
    return rows


def _interval(run: Run, column: Column) -> str:
    """The 95 % interval of the resolution, fine to coarse, where the run has one; else nothing."""
    ends = [run.summary.get(f"{GSFSC}_{end}", math.nan) for end in ("fine", "coarse")]
    if column.key != GSFSC or not all(map(math.isfinite, ends)):
        return ""
    return "–".join(f"{end:.1f}" for end in ends)


def _standings(comparison: Comparison) -> list[list[tuple[str, str]]]:
    """Every point beside the centre, each field as printed and as sorted by."""
    rows: list[list[tuple[str, str]]] = []
    for each in comparison.replication.standings:
        p = f"{each.area_p:.3f}" if each.n > 1 else ""
        likelihood = ("", "") if each.likelihood is None else (
            each.likelihood.show(2), f"{each.likelihood.mean:.9g}"
        )  # fmt: skip
        rows.append(
            [
                (each.setting, each.setting), (str(each.n), str(each.n)),
                (f"{each.mean_area:.3f}", f"{each.mean_area:.9g}"),
                (each.area.show(3), f"{each.area.mean:.9g}"), (p, p), likelihood,
                (each.verdict.kind.value, each.verdict.kind.value),
            ]
        )  # fmt: skip
    return rows


def _rankings(comparison: Comparison) -> list[list[str]]:
    """Each score beside the truth, as printed."""
    if comparison.truth is None:
        return []

    def said(value: float) -> str:
        return "too few" if math.isnan(value) else f"{value:.2f}"

    return [
        [each.score, said(each.spearman_area), said(each.spearman_rotation), each.pick,
         f"{each.regret_area:.3f}", f"{each.regret_rotation:.2f}°"]
        for each in comparison.truth.rankings
    ]  # fmt: skip


def _facts(comparison: Comparison, scoring_mask: Map) -> list[tuple[str, str]]:
    everyone = (*comparison.runs, *(run for run in comparison.failed if run.swept))
    facts = [
        (key, ", ".join(value_order(show(run.swept.get(key)) for run in everyone)))
        for key in comparison.swept
    ]
    facts += [(f"{key} (not varied)", value) for key, value in comparison.fixed.items()]
    first = comparison.runs[0]
    size = scoring_mask.data.shape[-1]
    volume = float(scoring_mask.data.sum()) * scoring_mask.pixel_size**3
    facts += [
        ("runs", f"{len(comparison.runs)} finished, {len(comparison.failed)} failed"),
        ("particles", f"{len(first.poses()):,}"),
        ("map", f"box {size} px, {scoring_mask.pixel_size:.4g} Å/px"),
        ("scoring mask", f"one for all runs, encloses {volume:,.0f} Å³"),
        ("input files", ", ".join(first.inputs) or "none recorded"),
    ]
    return facts


def _frozen(comparison: Comparison) -> list[tuple[str, str]]:
    """Every setting that all finished runs share."""
    settings = [run.settings() for run in comparison.runs]
    return [
        (key, show(value))
        for key, value in settings[0].items()
        if not key.startswith(_PLACES) and all(key in each and each[key] == value for each in settings)
    ]


def _versions(comparison: Comparison) -> list[tuple[str, str]]:
    names = dict.fromkeys(name for run in comparison.runs for name in run.versions)
    told = [
        (name, ", ".join(dict.fromkeys(run.versions.get(name, "not recorded") for run in comparison.runs)))
        for name in names
    ]
    codes = dict.fromkeys(run.code[:16] or "not recorded" for run in comparison.runs)
    devices = dict.fromkeys(run.device or "not recorded" for run in comparison.runs)
    return [*told, ("numerical code (SHA-256)", ", ".join(codes)), ("device", ", ".join(devices))]


def _provenance(comparison: Comparison, run: Run) -> dict[str, str]:
    return {
        "name": comparison.label(run),
        "status": run.status,
        "reason": run.reason,
        "seed": run.seed,
        "device": run.device,
        "time": _time(run),
        "notes": " ".join(run.notes),
        "folder": str(run.folder),
        "command": run.command,
    }


def _time(run: Run) -> str:
    if math.isnan(run.seconds):
        return "time not recorded"
    return f"{run.seconds:.0f} s ({run.cpu_seconds:.0f} s of processor)"


def _slices(comparison: Comparison, density: Density) -> list[tuple[str, str]]:
    """Label and picture of the start and of every run."""
    maps = [(START_LABEL, comparison.runs[0].folder / "start_map.mrc")]
    maps += [(label, run.folder / "map.mrc") for label, run in ranked(comparison)[:MOST_RUNS]]
    return slice_pictures(maps, density.mask, density.level)


def _surfaces(comparison: Comparison, density: Density, colours: dict[str, str]) -> go.Figure:
    """Surfaces of the first, the start, the centre, the last and, where it is known, the best by truth."""
    runs = comparison.runs
    wanted: dict[str, list[str]] = {runs[0].name: ["first"]}
    centre = next(
        run for run in runs if point_label(run, comparison.choices) == comparison.replication.centre
    ) if comparison.choices else runs[0]  # fmt: skip
    roles = [(centre, "centre"), (runs[-1], "last")]
    if TRUTH_SCORE in comparison.table:
        known = [run for run in runs if TRUTH_SCORE in run.summary]
        roles.insert(1, (max(known, key=lambda run: run.summary[TRUTH_SCORE]), "best map by truth"))
    for run, role in roles:
        wanted.setdefault(run.name, []).append(role)
    labels = {run.name: (label, run) for label, run in ranked(comparison)}
    maps = [
        (f"{labels[name][0]} ({', '.join(said)})", labels[name][1].folder / "map.mrc", colours[name])
        for name, said in wanted.items()
    ]
    maps.insert(1, (START_LABEL, runs[0].folder / "start_map.mrc", START_GREY))
    return surface_figure(maps, density.mask, density.level)
