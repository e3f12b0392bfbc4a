"""The comparison of a study as one HTML page that opens offline, and as CSV.

Everything the page needs lies inside it: the plotly library once, figures as JSON, images as data URIs. Its
content security policy forbids any request, so nothing can leave the file by accident.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray
from plotly import subplots
from plotly.offline import get_plotlyjs

from cryosweep.diagnostics import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    MASK_EDGE,
    MASK_END,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    VERMILION,
    resolution_ticks,
)
from cryosweep.io.maps import Map, read_map
from cryosweep.study.comparison import (
    COLUMNS,
    GSFSC,
    SCORE,
    SCORE_SD,
    TIED,
    TRUTH_RESOLUTION,
    TRUTH_SCORE,
    Comparison,
    Effect,
    Run,
    cell,
    short_key,
    show,
    value_order,
)

Array = NDArray[np.floating[Any]]

# Its annotations refuse arguments that it documents, such as shared_xaxes="columns".
make_subplots: Any = subplots.make_subplots

RUN_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY_BLUE, GREY)
START = "start"
# Images beyond this many would make the page heavier than mail and browsers like.
MOST_IMAGES = 60
LEGEND_ABOVE = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0.0}


class CurveType(NamedTuple):
    """A kind of FSC curve: its column of `fsc.csv`, that of the start, its name, its dash (also in words)."""

    column: str
    start_column: str | None
    name: str
    dash: str
    look: str


CURVE_TYPES = (
    CurveType("frozen", "start_frozen", "half maps, scoring mask", "solid", "solid"),
    CurveType("own_tight", None, "half maps, own mask", "dash", "dashed"),
    CurveType("own_corrected", None, "half maps, own mask, corrected", "dot", "dotted"),
    CurveType("truth", "start_truth", "against the true map", "dashdot", "dash-dotted"),
)


def write_report(comparison: Comparison, path: Path) -> tuple[Path, Path]:
    """Write the page to `path`, and the table beside it with the suffix `.csv`.

    Returns:
        The paths of the page and of the table.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    table_path = path.with_suffix(".csv")
    _table_with_start(comparison).to_csv(table_path)
    template = files("cryosweep.study").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(template).render(_content(comparison))
    path.write_text(page, encoding="utf-8")
    return path, table_path


def _content(comparison: Comparison) -> dict[str, object]:
    """Everything the template names."""
    scoring_mask = read_map(comparison.runs[0].folder / "scoring_mask.mrc")
    colours = _colours(comparison.runs)
    figures = dict(_figures(comparison, scoring_mask, colours))
    return {
        "comparison": comparison,
        "short_key": short_key,
        "plotly": get_plotlyjs(),
        "figures": {name: _safe_json(figure) for name, figure in figures.items()},
        "facts": _facts(comparison, scoring_mask),
        "columns": _visible_columns(comparison),
        "rows": _rows(comparison, colours),
        "start_row": [
            column.show(comparison.start.get(column.key, math.nan)) for column in _visible_columns(comparison)
        ],
        "curve_types": _present_types(comparison.runs[0]),
        "standings": _standings(comparison),
        "effects": [name for name in figures if name.startswith("effect")],
        "slices": _slices(comparison, scoring_mask),
        "judged": [(label, run) for label, run in _ranked(comparison) if run.findings],
        "images_left_out": max(0, len(comparison.runs) - MOST_IMAGES),
        "provenance": [_provenance(run) for run in (*comparison.runs, *comparison.failed)],
        "versions": _versions(comparison),
    }


def _safe_json(figure: go.Figure) -> str:
    # "</script>" inside a string would end the script element that holds it.
    return str(figure.to_json()).replace("</", "<\\/")


def _table_with_start(comparison: Comparison) -> pd.DataFrame:
    start = pd.DataFrame([comparison.start], index=pd.Index([START], name="run"))
    return pd.concat([comparison.table, start])


def _colours(runs: Sequence[Run]) -> dict[str, str]:
    """A colour a run: distinct ones for a few, a ramp by rank for many."""
    if len(runs) <= len(RUN_COLOURS):
        return {run.name: colour for run, colour in zip(runs, RUN_COLOURS, strict=False)}
    ramp = matplotlib.colormaps["viridis"]
    return {run.name: to_hex(ramp(0.9 * k / (len(runs) - 1))) for k, run in enumerate(runs)}


def _visible_columns(comparison: Comparison) -> list[Any]:
    return [column for column in COLUMNS if column.key in comparison.table]


def _rows(comparison: Comparison, colours: dict[str, str]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for rank, run in enumerate(comparison.runs, start=1):
        values = [(show(run.swept.get(key)), show(run.swept.get(key))) for key in comparison.swept]
        for column in _visible_columns(comparison):
            number: Any = comparison.table.at[run.name, column.key]
            values.append((cell(comparison, run, column), "" if math.isnan(number) else f"{number:.9g}"))
        tied = rank > 1 and bool(comparison.table.at[run.name, TIED])
        rows.append({"rank": rank, "tied": tied, "run": run, "colour": colours[run.name], "values": values})
    return rows


def _standings(comparison: Comparison) -> list[dict[str, str]]:
    """Every point beside the centre, as printed."""
    return [
        {
            "setting": each.setting,
            "n": str(each.n),
            "mean": f"{each.mean_area:.3f}",
            "area": each.area.show(3),
            "p": f"{each.area_p:.3f}" if each.n > 1 else "",
            "likelihood": "" if each.likelihood is None else each.likelihood.show(2),
            "verdict": each.verdict.kind.value,
        }
        for each in comparison.replication.standings
    ]


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


def _versions(comparison: Comparison) -> list[tuple[str, str]]:
    names = dict.fromkeys(name for run in comparison.runs for name in run.versions)
    return [
        (name, ", ".join(dict.fromkeys(run.versions.get(name, "not recorded") for run in comparison.runs)))
        for name in names
    ]


def _provenance(run: Run) -> dict[str, str]:
    return {
        "name": run.name,
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


def _present_types(run: Run) -> list[CurveType]:
    columns = set(run.fsc().columns)
    return [kind for kind in CURVE_TYPES if kind.column in columns]


def _figures(comparison: Comparison, mask: Map, colours: dict[str, str]) -> Iterator[tuple[str, go.Figure]]:
    yield "fsc", _fsc_figure(comparison, 2.0 * mask.pixel_size, colours)
    if TRUTH_RESOLUTION in comparison.table:
        yield "truth", _truth_figure(comparison)
    for number, key in enumerate(comparison.choices):
        yield f"effect{number}", _effect_figure(comparison, key)
    if len(comparison.choices) == 2:
        yield "grid", _grid_figure(comparison)
    yield "poses", _pose_figure(comparison, colours)


def _ranked(comparison: Comparison) -> list[tuple[str, Run]]:
    """Runs with a label that leads back to the table by its rank."""
    return [(f"{rank} · {comparison.label(run)}", run) for rank, run in enumerate(comparison.runs, start=1)]


def _style(figure: Any, *, height: int) -> go.Figure:
    figure.update_layout(
        height=height,
        margin={"l": 70, "r": 30, "t": 60, "b": 60},
        paper_bgcolor="white",
        plot_bgcolor="white",
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#222"},
    )
    axis = {"gridcolor": "#e5e5e5", "linecolor": "#888", "zerolinecolor": "#aaa", "ticks": "outside"}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure


def _fsc_figure(comparison: Comparison, nyquist: float, colours: dict[str, str]) -> go.Figure:
    """Every run and curve type as a trace; `meta` tells the page's script which run and type each one is.

    A run's legend entry is a trace of its own without points, so that it stays when a curve type is hidden.
    """
    figure: Any = go.Figure()
    runs: list[tuple[str, Run | None, str]] = [("start (consensus)", None, BLACK)]
    runs += [(label, run, colours[run.name]) for label, run in _ranked(comparison)]
    for label, run, colour in runs:
        table = (run or comparison.runs[0]).fsc()
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="lines",
            name=label,
            line={"color": colour, "width": 3},
            meta={"run": label},
        )
        for kind in CURVE_TYPES:
            column = kind.column if run else kind.start_column
            if column is None or column not in table:
                continue
            frequency = table["frequency"].to_numpy(dtype=float)
            resolution = ["∞" if f == 0.0 else f"{1.0 / f:.2f}" for f in frequency]
            figure.add_scatter(
                x=frequency, y=np.round(table[column].to_numpy(dtype=float), 4), mode="lines",
                showlegend=False,
                line={"color": colour, "width": 1.8, "dash": kind.dash}, customdata=resolution,
                name=label, meta={"run": label, "type": kind.column},
                visible=kind.column == CURVE_TYPES[0].column,
                hovertemplate=f"{label}<br>{kind.name}<br>%{{customdata}} Å: %{{y:.3f}}<extra></extra>",
            )  # fmt: skip
    for level in (0.143, 0.5):
        figure.add_hline(
            y=level, line={"color": GREY, "width": 1, "dash": "dot"}, annotation_text=f"{level:g}",
            annotation_position="top left",
        )  # fmt: skip
    ticks = resolution_ticks(nyquist, spacing=0.05)
    figure.update_xaxes(
        range=[0.0, 1.0 / nyquist], tickvals=[f for f, _ in ticks], ticktext=[text for _, text in ticks],
        title="resolution (Å); the axis is linear in 1/Å and ends at Nyquist",
    )  # fmt: skip
    figure.update_yaxes(range=[-0.1, 1.03], title="Fourier shell correlation")
    _style(figure, height=max(520, 150 + 22 * len(runs)))
    figure.update_layout(
        legend={"title": "click: hide or show; double click: only this"}, hovermode="closest"
    )
    return figure


def _truth_figure(comparison: Comparison) -> go.Figure:
    """Resolution by the half maps and against the truth, run by run."""
    labels = ["start (consensus)", *(label for label, _ in _ranked(comparison))]
    by_halves = [comparison.start[GSFSC], *comparison.table[GSFSC].tolist()]
    start = comparison.start.get(TRUTH_RESOLUTION, math.nan)
    by_truth = [start, *comparison.table[TRUTH_RESOLUTION].tolist()]
    figure: Any = go.Figure()
    for label, a, b in zip(labels, by_halves, by_truth, strict=True):
        figure.add_scatter(
            x=[a, b], y=[label, label], mode="lines", line={"color": "#bbb", "width": 3}, showlegend=False,
            hoverinfo="skip",
        )  # fmt: skip
    hover = "%{y}<br>%{x:.2f} Å<extra></extra>"
    figure.add_scatter(
        x=by_halves, y=labels, mode="markers", name="half maps agree to (FSC 0.143, scoring mask)",
        marker={"color": BLUE, "size": 11}, hovertemplate=hover,
    )  # fmt: skip
    figure.add_scatter(
        x=by_truth, y=labels, mode="markers", name="map is right to (FSC 0.5 against the true map)",
        marker={"color": VERMILION, "size": 11, "symbol": "diamond"}, hovertemplate=hover,
    )  # fmt: skip
    figure.update_xaxes(title="resolution (Å); left is better", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", automargin=True)
    _style(figure, height=170 + 26 * len(labels))
    figure.update_layout(legend=LEGEND_ABOVE)
    return figure


def _scores(comparison: Comparison) -> list[tuple[str, str]]:
    scores = [(SCORE, "FSC area of the half maps")]
    return (
        [*scores, (TRUTH_SCORE, "FSC area against the truth")] if TRUTH_SCORE in comparison.table else scores
    )


def _effect_figure(comparison: Comparison, key: str) -> go.Figure:
    """Every run as a point above its value of one parameter, and the mean of each value."""
    scores = _scores(comparison)
    figure: Any = make_subplots(rows=len(scores), cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for row, (score, title) in enumerate(scores, start=1):
        effects = [e for e in comparison.effects if e.parameter == key and e.score == score]
        _draw_effect(figure, comparison, effects, row)
        figure.update_yaxes(title=title, row=row, col=1)
        if score in comparison.start:
            figure.add_hline(
                y=comparison.start[score], line={"color": BLACK, "width": 1, "dash": "dash"}, row=row, col=1,
                annotation_text="start", annotation_position="bottom right",
            )  # fmt: skip
        if score == SCORE:
            centre = comparison.replication.centre_area
            for side, words in ((-1.0, ""), (1.0, "noise about the centre")):
                figure.add_hline(
                    y=centre + side * comparison.noise, line={"color": GREY, "width": 1, "dash": "dot"},
                    row=row, col=1, annotation_text=words, annotation_position="top right",
                )  # fmt: skip
    order = [e.value for e in comparison.effects if e.parameter == key and e.score == SCORE]
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=order)
    figure.update_xaxes(title=key, row=len(scores), col=1)
    _style(figure, height=110 + 240 * len(scores))
    figure.update_layout(legend=LEGEND_ABOVE)
    return figure


def _draw_effect(figure: Any, comparison: Comparison, effects: Sequence[Effect], row: int) -> None:
    if not effects:
        return
    key, score = effects[0].parameter, effects[0].score
    ranked = _ranked(comparison)
    table = comparison.table
    figure.add_scatter(
        x=[show(run.swept.get(key)) for _, run in ranked], y=table[score], mode="markers", name="one run",
        text=[label for label, _ in ranked], hovertemplate="%{text}<br>%{y:.3f}<extra></extra>",
        error_y={"array": table[SCORE_SD], "thickness": 1, "width": 3} if score == SCORE else None,
        marker={"color": SKY_BLUE, "size": 9, "line": {"color": "white", "width": 1}},
        showlegend=row == 1, row=row, col=1,
    )  # fmt: skip
    figure.add_scatter(
        x=[effect.value for effect in effects], y=[effect.mean for effect in effects], mode="lines+markers",
        name="mean over the other parameters", line={"color": VERMILION, "width": 2},
        marker={"symbol": "diamond", "size": 10}, showlegend=row == 1, row=row, col=1,
        hovertemplate="mean at %{x}: %{y:.3f}<extra></extra>",
    )  # fmt: skip


def _grid_figure(comparison: Comparison) -> go.Figure:
    """Heat map of the scores over exactly two swept parameters; a point that was not run stays empty."""
    across, up = comparison.choices
    scores = _scores(comparison)
    columns = value_order(comparison.table[across])
    rows = value_order(comparison.table[up])
    figure: Any = make_subplots(
        rows=1, cols=len(scores), subplot_titles=[title for _, title in scores], horizontal_spacing=0.16
    )
    for number, (score, _) in enumerate(scores, start=1):
        mean: Any = comparison.table.groupby([up, across])[score].mean()
        grid = np.array([[mean.get((row, column), math.nan) for column in columns] for row in rows])
        text = [["" if math.isnan(value) else f"{value:.3f}" for value in line] for line in grid]
        figure.add_heatmap(
            x=columns, y=rows, z=grid, text=text, texttemplate="%{text}", colorscale="Cividis",
            hoverongaps=False, showscale=False, row=1, col=number,
            hovertemplate=f"{across} %{{x}}<br>{up} %{{y}}<br>%{{z:.3f}}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(type="category", title=across)
    figure.update_yaxes(type="category", title=up)
    return _style(figure, height=170 + 70 * len(rows))


def _pose_figure(comparison: Comparison, colours: dict[str, str]) -> go.Figure:
    """Histograms of the pose changes of every run on common axes, with the search extents."""
    ranked = _ranked(comparison)[:MOST_IMAGES]
    kinds = (
        ("rotation_change", "rotation change (°)", "pose/at_rotation_extent", "°"),
        ("shift_change", "shift change (Å)", "pose/at_shift_extent", " Å"),
    )
    poses = [run.poses() for _, run in ranked]
    extents = [(run.rotation_extent, run.shift_extent) for _, run in ranked]
    titles: list[str] = []
    for label, run in ranked:
        for number, (_, _, share, _) in enumerate(kinds):
            at_limit = f"{run.summary[share]:.1%} at the limit"
            titles.append(f"{label}: {at_limit}" if number == 0 else at_limit)
    height = 60 + 130 * len(ranked)
    figure: Any = make_subplots(
        rows=len(ranked), cols=2, subplot_titles=titles, horizontal_spacing=0.07, shared_xaxes="columns",
        vertical_spacing=min(36.0 / height, 0.9 / max(len(ranked) - 1, 1)),
    )  # fmt: skip
    for col, (column, name, _, unit) in enumerate(kinds, start=1):
        ends = [float(table[column].to_numpy(dtype=float).max()) for table in poses]
        ends += [limit for pair in extents if (limit := pair[col - 1]) is not None]
        edges = np.linspace(0.0, 1.03 * max(ends), 41)
        counts = [np.histogram(table[column].to_numpy(dtype=float), edges)[0] for table in poses]
        shares = [100.0 * count / max(count.sum(), 1) for count in counts]
        top = 1.05 * max(float(share.max()) for share in shares)
        middles = np.round(0.5 * (edges[1:] + edges[:-1]), 3)
        for row, ((_, run), share, pair) in enumerate(zip(ranked, shares, extents, strict=True), start=1):
            figure.add_bar(
                x=middles, y=np.round(share, 3), marker={"color": colours[run.name]},
                width=float(edges[1]) * 0.95, showlegend=False, row=row, col=col,
                hovertemplate=f"%{{x:.1f}}{unit}: %{{y:.1f}} %<extra></extra>",
            )  # fmt: skip
            limit = pair[col - 1]
            if limit is not None:
                figure.add_scatter(
                    x=[limit, limit], y=[0.0, top], mode="lines", showlegend=False, hoverinfo="skip",
                    line={"color": BLACK, "width": 1.5, "dash": "dash"}, row=row, col=col,
                )  # fmt: skip
        figure.update_xaxes(range=[0.0, float(edges[-1])], col=col)
        figure.update_xaxes(title=name, row=len(ranked), col=col)
        figure.update_yaxes(title="%", col=col, range=[0.0, top], nticks=4)
    _style(figure, height=height + 60)
    figure.update_annotations(font={"size": 12})
    return figure


def _slices(comparison: Comparison, scoring_mask: Map) -> list[tuple[str, str]]:
    """Label and PNG (data URI) of the start and of every run: same slices, same region, same grey scale."""
    mask = scoring_mask.data.numpy()
    centre, window = _region(mask)
    maps = [("start (consensus)", comparison.runs[0].folder / "start_map.mrc")]
    maps += [(label, run.folder / "map.mrc") for label, run in _ranked(comparison)[:MOST_IMAGES]]
    outline = _cuts(mask, centre, window)
    images = [(label, _cuts(read_map(path).data.numpy(), centre, window)) for label, path in maps]
    pool = np.concatenate([image.ravel() for _, cuts in images for image in cuts])
    low, high = (float(value) for value in np.percentile(pool, [0.5, 99.8]))
    return [(label, _png(cuts, outline, scoring_mask.pixel_size, low, high)) for label, cuts in images]


def _region(mask: Array) -> tuple[tuple[int, ...], tuple[slice, ...]]:
    """The mask's centre of mass (z, y, x) and the box around it with a margin of two voxels."""
    centre: list[int] = []
    window: list[slice] = []
    for axis in range(3):
        others = tuple(k for k in range(3) if k != axis)
        profile = mask.sum(axis=others, dtype=np.float64)
        centre.append(round(float(profile @ np.arange(profile.size) / profile.sum())))
        inside = np.flatnonzero(mask.max(axis=others) > MASK_END)
        window.append(slice(max(int(inside[0]) - 2, 0), int(inside[-1]) + 3))
    return tuple(centre), tuple(window)


def _cuts(volume: Array, centre: tuple[int, ...], window: tuple[slice, ...]) -> list[Array]:
    """The xy, xz and yz slices through the centre, cropped."""
    cuts: list[Array] = []
    for axis in range(3):
        place: list[int | slice] = list(window)
        place[axis] = centre[axis]
        cuts.append(volume[tuple(place)])
    return cuts


def _png(cuts: Sequence[Array], outline: Sequence[Array], pixel_size: float, low: float, high: float) -> str:
    figure = Figure(figsize=(6.0, 2.25), dpi=100)
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.01, top=0.9, wspace=0.03)
    panels = np.asarray(figure.subplots(1, 3))
    for axes, cut, cover, name in zip(panels, cuts, outline, ("xy", "xz", "yz"), strict=True):
        height, width = cut.shape
        extent = (0.0, width * pixel_size, 0.0, height * pixel_size)
        grid: Any = {"origin": "lower", "extent": extent}
        axes.imshow(cut, cmap="gray", vmin=low, vmax=high, interpolation="nearest", **grid)
        if float(cover.max()) > MASK_EDGE:
            axes.contour(cover, levels=[MASK_EDGE], colors=[ORANGE], linewidths=1.0, **grid)
        bar, left = _scale_bar(width * pixel_size), 0.05 * extent[1]
        axes.plot([left, left + bar], [0.06 * extent[3]] * 2, color="white", linewidth=2.5)
        axes.text(left, 0.09 * extent[3], f"{bar:g} Å", color="white", fontsize=8)
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    with io.BytesIO() as stream:
        figure.savefig(stream, format="png")
        return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _scale_bar(width: float) -> float:
    """A round length of about a quarter of the picture."""
    return next((length for length in (100.0, 50.0, 20.0, 10.0, 5.0, 2.0) if length <= 0.4 * width), 1.0)
