"""The interactive figures of a comparison: plotly figures from its numbers.

Every figure of a score shows what chance alone does to it: a grey band, or white fields of a heat map.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import plotly.graph_objects as go
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from plotly import subplots

from cryosweep.diagnostics import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    VERMILION,
    resolution_ticks,
)
from cryosweep.io.maps import Map
from cryosweep.resolution import effective_samples
from cryosweep.study.comparison import (
    GSFSC,
    SCORE,
    SCORE_SD,
    TRUTH_RESOLUTION,
    TRUTH_SCORE,
    Comparison,
    Effect,
    Run,
    point_label,
    show,
    value_order,
)

Array = NDArray[np.floating[Any]]

# Units of the keys that a sweep may vary, by the last part of their name; conf/ says the same of each.
UNITS = {
    "Å": frozenset({
        "dilation_radius", "soft_padding_width", "keep_padding_width", "smoothing", "step_size",
        "shift_extent", "shift_prior", "shift_spread", "pose_error_shift", "initial_lowpass",
        "max_resolution", "signal_lowpass",
        "band_low", "band_high", "guinier_from", "local_resolution_window", "local_resolution_step",
        "mask_starts", "mask_near", "mask_far", "defocus_min", "defocus_max", "pixel_size", "resolution",
    }),
    "°": frozenset({"rotation_extent", "rotation_prior", "rotation_spread", "pose_error_rotation"}),
    "Å²": frozenset({"b_factor"}),
    "kDa": frozenset({"head_mass"}),
    "px": frozenset({"box_size"}),
    "kV": frozenset({"voltage"}),
    "mm": frozenset({"spherical_aberration"}),
}  # fmt: skip

# Its annotations refuse arguments that it documents, such as shared_xaxes="columns".
make_subplots: Any = subplots.make_subplots

RUN_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY_BLUE, GREY)
START_LABEL = "start (consensus)"
# Runs beyond this many would make the page heavier than mail and browsers like.
MOST_RUNS = 60
# Pairs of parameters of which a heat map is drawn.
MOST_PAIRS = 6
REACH_BINS = 20
LEGEND_ABOVE = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0.0}
NOISE_FILL = "rgba(120, 120, 120, 0.16)"


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


def present_types(run: Run) -> list[CurveType]:
    """The kinds of curves that a run has."""
    columns = set(run.fsc().columns)
    return [kind for kind in CURVE_TYPES if kind.column in columns]


def colours_of(runs: Sequence[Run]) -> dict[str, str]:
    """A colour a run: distinct ones for a few, a ramp by rank for many."""
    if len(runs) <= len(RUN_COLOURS):
        return {run.name: colour for run, colour in zip(runs, RUN_COLOURS, strict=False)}
    ramp = matplotlib.colormaps["viridis"]
    return {run.name: to_hex(ramp(0.9 * k / (len(runs) - 1))) for k, run in enumerate(runs)}


def ranked(comparison: Comparison) -> list[tuple[str, Run]]:
    """Runs with a label that leads back to the table by its rank."""
    return [(f"{rank} · {comparison.label(run)}", run) for rank, run in enumerate(comparison.runs, start=1)]


def figures(comparison: Comparison, mask: Map, colours: dict[str, str]) -> Iterator[tuple[str, go.Figure]]:
    """Every figure that the comparison has the numbers for, by its name on the page.

    Args:
        comparison: of finished runs.
        mask: the scoring mask.
        colours: of each run, by name.
    """
    yield "fsc", _fsc_figure(comparison, mask, colours)
    if TRUTH_RESOLUTION in comparison.table:
        yield "truth", _truth_figure(comparison)
    for number, key in enumerate(comparison.choices):
        yield f"effect{number}", _effect_figure(comparison, key)
    for number, pair in enumerate(list(combinations(comparison.choices, 2))[:MOST_PAIRS]):
        yield f"grid{number}", _grid_figure(comparison, *pair)
    if (reach := _reach_figure(comparison)) is not None:
        yield "reach", reach
    yield "poses", _pose_figure(comparison, colours)


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


def _fsc_figure(comparison: Comparison, mask: Map, colours: dict[str, str]) -> go.Figure:
    """Every run and curve type as a trace; `meta` tells the page's script which run and type each one is.

    A run's legend entry is a trace of its own without points, so that it stays when a curve type is hidden.
    """
    nyquist = 2.0 * mask.pixel_size
    figure: Any = go.Figure()
    runs: list[tuple[str, Run | None, str]] = [(START_LABEL, None, BLACK)]
    runs += [(label, run, colours[run.name]) for label, run in ranked(comparison)]
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
    _draw_noise_floor(figure, mask)
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
    figure.update_yaxes(range=[-0.15, 1.03], title="Fourier shell correlation")
    _style(figure, height=max(520, 150 + 22 * len(runs)))
    figure.update_layout(
        legend={"title": "click: hide or show; double click: only this"}, hovermode="closest"
    )
    return figure


def _draw_noise_floor(figure: Any, mask: Map) -> None:
    """Where 95 % of the shells of two maps lie that have nothing in common: ±1.96 / sqrt(2 N_eff)."""
    floor = 1.96 / np.sqrt(2.0 * effective_samples(mask.data).cpu().numpy())
    frequency = np.arange(floor.size) / (mask.data.shape[-1] * mask.pixel_size)
    figure.add_scatter(
        x=np.concatenate([frequency, frequency[::-1]]), y=np.concatenate([floor, -floor[::-1]]).clip(-1, 1),
        mode="none", fill="toself", fillcolor=NOISE_FILL, hoverinfo="skip", showlegend=True,
        name="noise floor (95 %), scoring mask",
    )  # fmt: skip


def _truth_figure(comparison: Comparison) -> go.Figure:
    """Resolution by the half maps and against the truth, run by run, and beside it by how much they part."""
    labels = [START_LABEL, *(label for label, _ in ranked(comparison))]
    by_halves = np.array([comparison.start[GSFSC], *comparison.table[GSFSC]])
    start = comparison.start.get(TRUTH_RESOLUTION, math.nan)
    by_truth = np.array([start, *comparison.table[TRUTH_RESOLUTION]])
    figure: Any = make_subplots(
        rows=1, cols=2, shared_yaxes=True, column_widths=[0.68, 0.32], horizontal_spacing=0.03
    )
    for label, a, b in zip(labels, by_halves, by_truth, strict=True):
        figure.add_scatter(
            x=[a, b], y=[label, label], mode="lines", line={"color": "#bbb", "width": 3}, showlegend=False,
            hoverinfo="skip", row=1, col=1,
        )  # fmt: skip
    hover = "%{y}<br>%{x:.2f} Å<extra></extra>"
    figure.add_scatter(
        x=by_halves, y=labels, mode="markers", name="half maps agree to (FSC 0.143, scoring mask)",
        marker={"color": BLUE, "size": 11}, hovertemplate=hover, row=1, col=1,
    )  # fmt: skip
    figure.add_scatter(
        x=by_truth, y=labels, mode="markers", name="map is right to (FSC 0.5 against the true map)",
        marker={"color": VERMILION, "size": 11, "symbol": "diamond"}, hovertemplate=hover, row=1, col=1,
    )  # fmt: skip
    parted = comparison.truth.parted if comparison.truth else frozenset[str]()
    flagged = [False, *(run.name in parted for run in comparison.runs)]
    gap = by_truth - by_halves
    figure.add_bar(
        x=gap, y=labels, orientation="h", showlegend=False, row=1, col=2, width=0.6,
        marker={"color": [VERMILION if flag else "#bbb" for flag in flagged]},
        text=["they part" if flag else "" for flag in flagged], textposition="auto",
        hovertemplate="%{y}<br>coarser by %{x:.2f} Å<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title="resolution (Å); left is better", rangemode="tozero", row=1, col=1)
    figure.update_xaxes(title="the truth is coarser by (Å)", row=1, col=2)
    figure.update_yaxes(autorange="reversed", automargin=True)
    _style(figure, height=170 + 26 * len(labels))
    figure.update_layout(legend=LEGEND_ABOVE)
    return figure


def _scores(comparison: Comparison) -> list[tuple[str, str]]:
    scores = [(SCORE, "FSC area of the half maps")]
    return (
        [*scores, (TRUTH_SCORE, "FSC area against the truth")] if TRUTH_SCORE in comparison.table else scores
    )


def with_unit(key: str, values: Sequence[str]) -> str:
    """A swept key as the title of an axis; its unit is left out where values carry their own (`5px`)."""
    unit = next((unit for unit, names in UNITS.items() if key.rpartition(".")[2] in names), "")
    carries = any(re.fullmatch(r"[\d.]+ *[A-Za-zÅ]+", value) for value in values)
    return key if carries or not unit else f"{key} ({unit})"


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
            figure.add_hrect(
                y0=centre - comparison.noise, y1=centre + comparison.noise, fillcolor=NOISE_FILL,
                line_width=0, layer="below", row=row, col=1, annotation_text="noise about the centre",
                annotation_position="top right",
            )  # fmt: skip
    order = [e.value for e in comparison.effects if e.parameter == key and e.score == SCORE]
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=order)
    figure.update_xaxes(title=with_unit(key, order), row=len(scores), col=1)
    _style(figure, height=110 + 240 * len(scores))
    figure.update_layout(legend=LEGEND_ABOVE)
    return figure


def _draw_effect(figure: Any, comparison: Comparison, effects: Sequence[Effect], row: int) -> None:
    if not effects:
        return
    key, score = effects[0].parameter, effects[0].score
    runs = ranked(comparison)
    table = comparison.table
    figure.add_scatter(
        x=[show(run.swept.get(key)) for _, run in runs], y=table[score], mode="markers", name="one run",
        text=[label for label, _ in runs], hovertemplate="%{text}<br>%{y:.3f}<extra></extra>",
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


def _grid_figure(comparison: Comparison, across: str, up: str) -> go.Figure:
    """Heat map of two swept parameters: the score in figures, its difference from the centre as the colour.

    Means over the other parameters and the replicates; a point that was not run stays empty.
    """
    scores = _scores(comparison)
    columns = value_order(comparison.table[across])
    rows = value_order(comparison.table[up])
    centres = [
        run
        for run in comparison.runs
        if point_label(run, comparison.choices) == comparison.replication.centre
    ]
    grids: list[tuple[str, str, Array, float]] = []
    for score, title in scores:
        mean: Any = comparison.table.groupby([up, across])[score].mean()
        grid = np.array([[mean.get((row, column), math.nan) for column in columns] for row in rows])
        at_centre = float(np.mean([run.summary[score] for run in centres]))
        grids.append((score, f"{title}<br>{_interaction(grid)}", grid, at_centre))
    gap = 0.2
    width = (1.0 - gap * (len(scores) - 1)) / len(scores)
    figure: Any = make_subplots(
        rows=1, cols=len(scores), subplot_titles=[title for _, title, _, _ in grids], horizontal_spacing=gap
    )
    for number, (score, _, grid, at_centre) in enumerate(grids, start=1):
        noise = comparison.noise if score == SCORE else 0.0
        difference = grid - at_centre
        text = [
            [_field(value, change, noise) for value, change in zip(*pair, strict=True)]
            for pair in zip(grid, difference, strict=True)
        ]
        widest = max(float(np.nanmax(np.abs(difference))), 1.5 * noise, 1e-6)
        figure.add_heatmap(
            x=columns, y=rows, z=difference, text=text, texttemplate="%{text}", hoverongaps=False,
            zmin=-widest, zmax=widest, colorscale=_noise_scale(noise / widest), row=1, col=number,
            colorbar={
                "thickness": 12, "x": number * width + (number - 1) * gap + 0.01, "title": "from<br>centre"
            },
            hovertemplate=f"{across} %{{x}}<br>{up} %{{y}}<br>%{{z:+.3f}} from the centre<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(type="category", title=with_unit(across, columns))
    figure.update_yaxes(type="category", title=with_unit(up, rows))
    _style(figure, height=210 + 70 * len(rows))
    figure.update_layout(margin={"t": 80})
    figure.update_annotations(font={"size": 13})
    return figure


def _field(value: float, change: float, noise: float) -> str:
    """A score as written in its field; ≈ where it is within the noise of the centre."""
    if math.isnan(value):
        return ""
    return f"{value:.3f}<br>≈" if abs(change) < noise else f"{value:.3f}"


def _noise_scale(share: float) -> list[tuple[float, str]]:
    """Worse orange, better blue, and white within the noise, which is `share` of the range on either side."""
    low, high = 0.5 - 0.5 * share, 0.5 + 0.5 * share
    pale = ("#fbe3d3", "#d6e8f4") if share > 0.0 else ("#ffffff", "#ffffff")
    return [
        (0.0, VERMILION),
        (low, pale[0]),
        (low, "#ffffff"),
        (high, "#ffffff"),
        (high, pale[1]),
        (1.0, BLUE),
    ]


def _interaction(grid: Array) -> str:
    """How far a full grid is from a sum of a row effect and a column effect, in words."""
    if not np.isfinite(grid).all() or min(grid.shape) < 2:
        return "interaction: the grid is not full"
    additive = grid.mean(axis=0) + grid.mean(axis=1, keepdims=True) - grid.mean()
    return f"largest interaction {np.abs(grid - additive).max():.3f}"


def _reach_figure(comparison: Comparison) -> go.Figure | None:
    """How far particles went in units of their extents, a row a run; None where no run tells."""
    runs = ranked(comparison)[:MOST_RUNS]
    edges = np.linspace(0.0, 1.0, REACH_BINS + 1)
    found: dict[str, list[tuple[str, Array]]] = {}
    for what in ("rotation", "shift"):
        reaches = ((label, run.reach(what)) for label, run in runs)
        found[what] = [
            (label, 100.0 * np.histogram(reach.clip(0.0, 1.0), edges)[0] / max(reach.size, 1))
            for label, reach in reaches
            if reach is not None
        ]
    kinds = [what for what, rows in found.items() if rows]
    if not kinds:
        return None
    figure: Any = make_subplots(
        rows=1, cols=len(kinds), shared_yaxes=True, horizontal_spacing=0.04,
        subplot_titles=[f"{what} / {what} extent" for what in kinds],
    )  # fmt: skip
    top = max(float(shares.max()) for what in kinds for _, shares in found[what])
    for col, what in enumerate(kinds, start=1):
        shares = np.round(np.array([row for _, row in found[what]]), 2)
        figure.add_heatmap(
            x=0.5 * (edges[1:] + edges[:-1]), y=[label for label, _ in found[what]], z=shares,
            colorscale="Blues", zmin=0.0, zmax=top, showscale=col == len(kinds), row=1, col=col, ygap=2,
            colorbar={"title": {"text": "% of<br>particles"}, "thickness": 12},
            hovertemplate="%{y}<br>reach %{x:.2f} of the extent: %{z:.1f} %<extra></extra>",
        )  # fmt: skip
        figure.add_vline(x=0.95, line={"color": VERMILION, "width": 1.5, "dash": "dash"}, row=1, col=col)
        figure.update_xaxes(range=[0.0, 1.0], title="share of the extent", row=1, col=col)
    figure.update_yaxes(autorange="reversed", automargin=True, type="category")
    return _style(figure, height=170 + 26 * len(runs))


def _pose_figure(comparison: Comparison, colours: dict[str, str]) -> go.Figure:
    """Histograms of the pose changes of every run on common axes, with the search extents."""
    runs = ranked(comparison)[:MOST_RUNS]
    kinds = (
        ("rotation_change", "rotation change (°)", "pose/at_rotation_extent", "°"),
        ("shift_change", "shift change (Å)", "pose/at_shift_extent", " Å"),
    )
    poses = [run.poses() for _, run in runs]
    extents = [(run.rotation_extent, run.shift_extent) for _, run in runs]
    titles: list[str] = []
    for label, run in runs:
        for number, (_, _, share, _) in enumerate(kinds):
            at_limit = f"{run.summary[share]:.1%} at the limit"
            titles.append(f"{label}: {at_limit}" if number == 0 else at_limit)
    height = 60 + 130 * len(runs)
    figure: Any = make_subplots(
        rows=len(runs), cols=2, subplot_titles=titles, horizontal_spacing=0.07, shared_xaxes="columns",
        vertical_spacing=min(36.0 / height, 0.9 / max(len(runs) - 1, 1)),
    )  # fmt: skip
    for col, (column, name, _, unit) in enumerate(kinds, start=1):
        ends = [float(table[column].to_numpy(dtype=float).max()) for table in poses]
        ends += [limit for pair in extents if (limit := pair[col - 1]) is not None]
        edges = np.linspace(0.0, 1.03 * max(ends), 41)
        counts = [np.histogram(table[column].to_numpy(dtype=float), edges)[0] for table in poses]
        shares = [100.0 * count / max(count.sum(), 1) for count in counts]
        top = 1.05 * max(float(share.max()) for share in shares)
        middles = np.round(0.5 * (edges[1:] + edges[:-1]), 3)
        for row, ((_, run), share, pair) in enumerate(zip(runs, shares, extents, strict=True), start=1):
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
        figure.update_xaxes(title=name, row=len(runs), col=col)
        figure.update_yaxes(title="%", col=col, range=[0.0, top], nticks=4)
    _style(figure, height=height + 60)
    figure.update_annotations(font={"size": 12})
    return figure
