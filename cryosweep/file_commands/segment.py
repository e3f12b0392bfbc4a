"""The `segment` command: regions of a map, their groups, and mask bases of the chosen ones."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cryosweep.commands import add_command, say
from cryosweep.file_commands.shared import (
    PLOT_SUFFIXES,
    Point,
    Vector,
    check_file,
    check_outputs,
    check_same_grid,
    length_of,
    numbers,
    point_of,
    read_volume,
    shown_progress,
)

if TYPE_CHECKING:
    from torch import Tensor

    from cryosweep.commands import Commands
    from cryosweep.io.maps import Map
    from cryosweep.segmentation import Extent, Segmentation

# What holds where nothing is given; None in the parser tells it from what was given beside --segger.
THRESHOLD, THRESHOLD_UNIT, STEPS, STEP_SIZE, TARGET = 2.0, "sd", 3, "3.5A", 1
ROWS_SHOWN = 40


def add_parser(commands: Commands) -> None:
    """Add the parser of this command."""
    parser = add_command(
        commands,
        "segment",
        "cut a map into regions as Segger does, list them, and write mask bases of those chosen",
        "cryosweep segment half_a.mrc half_b.mrc --ids 3 -o head.mrc --rest rest.mrc",
    )
    parser.usage = "%(prog)s [options] MAP | HALF_A HALF_B"  # in full it would fill a screen
    parser.add_argument("maps", type=Path, nargs="+", help="map (MRC), or two half maps: their mean")
    parser.add_argument(
        "--smoothing", default="4A", metavar="LENGTH", help="sigma of a Gaussian first (default: %(default)s)"
    )
    regions = parser.add_argument_group("regions")
    regions.add_argument("--segger", type=Path, metavar="FILE", help="take those of a Segger file (.seg)")
    for flag, kind, help in (
        ("--threshold", float, f"voxels at or above it belong to regions (default: {THRESHOLD:g})"),
        ("--steps", int, f"smoothing steps that group regions (default: {STEPS})"),
        ("--target", int, f"no more steps once so few are left (default: {TARGET})"),
    ):
        regions.add_argument(flag, type=kind, metavar="N", help=help)
    regions.add_argument(
        "--threshold-unit",
        choices=["sd", "absolute"],
        help=f"standard deviations above the mean, or map units (default: {THRESHOLD_UNIT})",
    )
    regions.add_argument(
        "--step-size", metavar="LENGTH", help=f"how much wider each Gaussian is (default: {STEP_SIZE})"
    )
    for flag, metavar, help in (
        ("--ungroup", "ID", "show the parts of a group instead; may be repeated, in order with --group"),
        ("--group", "ID,ID", "show regions as one group, with the next free id"),
    ):
        regions.add_argument(
            flag, dest="moves", action="append", metavar=metavar, help=help,
            type=lambda text, flag=flag: (flag, text),
        )  # fmt: skip
    choice = parser.add_argument_group("choice, one of").add_mutually_exclusive_group()
    choice.add_argument("--ids", metavar="ID,ID", help="regions or groups")
    choice.add_argument("--point", metavar="X,Y,Z", help="px from the box corner: the region it lies in")
    choice.add_argument("--marker", type=Path, metavar="FILE", help="markers (.cmm): the regions they lie in")
    choice.add_argument("--largest", type=int, metavar="N", help="so many of the largest")
    choice.add_argument(
        "--label", type=Path, metavar="FILE", help="regions mostly where this map has a value"
    )
    parser.add_argument(
        "--label-value", type=int, default=1, metavar="N", help="that value (default: %(default)s)"
    )
    outputs = parser.add_argument_group("outputs, all on the grid of the map")
    for flag, help in (
        ("--rest", "mask base of everything else, for subtraction (MRC)"),
        ("--smoothed", "the map that was segmented (MRC)"),
        ("--labels", "id of the region of each voxel (MRC)"),
        ("--script", "for ChimeraX: opens and colours --labels (.cxc)"),
        ("--plot", f"slices coloured by region ({', '.join(PLOT_SUFFIXES)})"),
        ("--table", "every region that is shown (CSV)"),
    ):
        outputs.add_argument(flag, type=Path, metavar="FILE", help=help)
    outputs.add_argument("-o", "--output", type=Path, metavar="FILE", help="mask base of the chosen (MRC)")
    outputs.add_argument("--each", type=Path, metavar="PREFIX", help="a base for each, PREFIX_<id>.mrc")
    outputs.add_argument("--overwrite", action="store_true", help="replace what exists already")
    parser.set_defaults(function=segment)


@dataclass(frozen=True)
class _Found:
    """A segmentation, how it came about, and the words of a configuration that lead to it again."""

    segmentation: Segmentation
    threshold: float
    said: str
    keys: str


@dataclass(frozen=True)
class _Row:
    """A line of the table."""

    id: int
    parts: tuple[int, ...]
    extent: Extent
    centre: Point
    name: str


def segment(arguments: argparse.Namespace) -> int:
    """List the regions of a map; write bases of the chosen ones, labels, a script, a figure and a table.

    Raises:
        ValueError: an input cannot be used, no region is chosen where one is needed, or an output exists.
    """
    from cryosweep.fourier import gaussian_filter
    from cryosweep.io.maps import Map
    from cryosweep.segmentation import finest, measure, total

    _check_names(arguments)
    source = _mean_of(arguments.maps)
    smoothing = length_of("--smoothing", arguments.smoothing, source.pixel_size)
    with shown_progress() as progress:
        progress.start(1 + (STEPS if arguments.steps is None else max(arguments.steps, 0)), "segmenting")
        volume = source.data
        if smoothing > 0.0:
            volume = gaussian_filter(volume, sigma=smoothing, pixel_size=source.pixel_size)
        map = Map(volume, source.pixel_size, source.origin)
        if arguments.segger is not None:
            found = _read_segger(arguments.segger, map)
        else:
            found = _segmented(arguments, map, progress.advance)
    original = found.segmentation
    segmentation = _moved(original, arguments.moves or [])
    chosen = _chosen(arguments, segmentation, map)
    extents = measure(segmentation, segmentation.shown, pixel_size=map.pixel_size)
    rows = _rows(segmentation, extents, map)
    _write(arguments, segmentation, chosen, map, rows, found.threshold)
    say(found.said)
    say(_table(rows, chosen or ()))
    if chosen is not None:
        whole = total(measure(segmentation, finest(segmentation, chosen), pixel_size=map.pixel_size).values())
        centre = Point.in_map(whole.centre_px, map)
        say(f"chosen: {_listed(chosen)}; {whole.volume:.0f} Å^3, {whole.mass_kda:.0f} kDa if it is protein")
        say(f"centre: {numbers(centre.px)} px from the box corner")
        say(f"        {numbers(centre.frame)} Å in the frame of the map")
        named = shlex.quote(f"mask_base.path={arguments.maps[0]}") + " "
        path = named if len(arguments.maps) == 1 else ""
        ids = _listed(_before_moves(original, segmentation, chosen))
        say(
            f"\ncryosweep run mask_base=regions {path}mask_base.smoothing={smoothing:g} {found.keys} "
            f"'mask_base.ids=[{ids}]' ..."
        )
    return 0


def _check_names(arguments: argparse.Namespace) -> None:
    """Refuse options that contradict each other, and names that cannot be read or written."""
    if len(arguments.maps) > 2:
        raise ValueError(f"{len(arguments.maps)} maps are given; give one, or the two half maps of one")
    for path in (*arguments.maps, arguments.segger, arguments.marker, arguments.label):
        if path is not None:
            check_file(path)
    if arguments.segger is not None:
        made_here = ("threshold", "threshold_unit", "steps", "step_size", "target")
        given = [name for name in made_here if getattr(arguments, name) is not None]
        if given:
            flags = ", ".join("--" + name.replace("_", "-") for name in given)
            raise ValueError(
                f"{flags}: the regions are those of {arguments.segger}; leave it out or --segger"
            )
    ways = (arguments.ids, arguments.point, arguments.marker, arguments.largest, arguments.label)
    if all(way is None for way in ways):
        for flag, path in (("--output", arguments.output), ("--rest", arguments.rest)):
            if path is not None:
                raise ValueError(
                    f"{flag} {path}: choose regions with --ids, --point, --marker, --largest or --label"
                )
    if arguments.script is not None and arguments.labels is None:
        raise ValueError(f"--script {arguments.script}: it opens the file of --labels; give that, too")
    plot: Path | None = arguments.plot
    if plot is not None and plot.suffix.lower() not in PLOT_SUFFIXES:
        raise ValueError(f"--plot {plot}: the name must end in {', '.join(PLOT_SUFFIXES)}")
    inputs = [*arguments.maps, arguments.segger, arguments.marker, arguments.label]
    names = ("output", "rest", "smoothed", "labels", "script", "plot", "table")
    outputs = [getattr(arguments, name) for name in names]
    check_outputs(
        [path for path in outputs if path is not None],
        [path for path in inputs if path is not None],
        overwrite=arguments.overwrite,
    )


def _mean_of(paths: Sequence[Path]) -> Map:
    """The map, or the mean of two half maps."""
    first = read_volume(paths[0])
    if len(paths) == 1:
        return first
    second = read_volume(paths[1])
    check_same_grid(paths[1], second, paths[0], first)
    return replace(first, data=0.5 * (first.data + second.data))


def _segmented(arguments: argparse.Namespace, map: Map, advance: Callable[[int], None]) -> _Found:
    from cryosweep.segmentation import at_sigma, level_of
    from cryosweep.segmentation import segment as cut

    value = THRESHOLD if arguments.threshold is None else arguments.threshold
    unit = arguments.threshold_unit or THRESHOLD_UNIT
    steps = STEPS if arguments.steps is None else arguments.steps
    size = STEP_SIZE if arguments.step_size is None else arguments.step_size
    target = TARGET if arguments.target is None else arguments.target
    step_px = length_of("--step-size", size, map.pixel_size) / map.pixel_size
    threshold = level_of(map.data, value, unit=unit)
    made = cut(map.data, threshold=threshold, steps=steps, step_px=step_px, target=target, advance=advance)
    counts = [len(at_sigma(made, step * step_px)) for step in range(steps + 1)]
    joined = f"; groups after each step of {size}: {_listed(counts[1:])}" if steps else ""
    return _Found(
        made,
        threshold,
        f"threshold {threshold:.4g}: {counts[0]} regions{joined}",
        f"mask_base.threshold={value:g} mask_base.threshold_unit={unit} mask_base.steps={steps} "
        f"mask_base.step_size={size} mask_base.target={target}",
    )


def _read_segger(path: Path, map: Map) -> _Found:
    from cryosweep.io.segger import on_grid_of, read_segger

    file = read_segger(path)
    segmentation = on_grid_of(file, map)
    count = sum(not region.parts for region in segmentation.regions.values())
    said = f"threshold {file.threshold:.4g}: {count} regions in {len(segmentation.shown)} groups of {path}"
    return _Found(segmentation, file.threshold, said, shlex.quote(f"mask_base.segger={path}"))


def _moved(segmentation: Segmentation, moves: Sequence[tuple[str, str]]) -> Segmentation:
    """The tree after the moves, one by one."""
    from cryosweep.segmentation import group, ungroup

    for flag, text in moves:
        ids = _ids(flag, text)
        if flag == "--group":
            segmentation = group(segmentation, ids)
        else:
            for id in ids:
                segmentation = ungroup(segmentation, id)
    return segmentation


def _chosen(arguments: argparse.Namespace, segmentation: Segmentation, map: Map) -> tuple[int, ...] | None:
    """Ids of the regions that were asked for; None if nothing was."""
    from cryosweep.io.markers import read_markers
    from cryosweep.segmentation import finest, largest, mostly_inside, touching

    if arguments.ids is not None:
        ids = _ids("--ids", arguments.ids)
        finest(segmentation, ids)  # refuses what does not exist
        return ids
    if arguments.largest is not None:
        return largest(segmentation, arguments.largest)
    if arguments.label is not None:
        marked = read_volume(arguments.label)
        check_same_grid(arguments.label, marked, arguments.maps[0], map)
        return mostly_inside(segmentation, marked.data.round() == arguments.label_value)
    points: list[Vector] = []
    if arguments.point is not None:
        points = [point_of("--point", arguments.point)]
    elif arguments.marker is not None:
        points = [map.to_px(point) for point in read_markers(arguments.marker)]
    return tuple(dict.fromkeys(touching(segmentation, point) for point in points)) or None


def _write(
    arguments: argparse.Namespace,
    segmentation: Segmentation,
    chosen: tuple[int, ...] | None,
    map: Map,
    rows: Sequence[_Row],
    threshold: float,
) -> None:
    """Write what was asked for, all of it or nothing."""
    from cryosweep.diagnostics import region_colours, regions_figure
    from cryosweep.io.chimerax import write_regions_script
    from cryosweep.io.maps import replacing, write_labels, write_map
    from cryosweep.segmentation import labels_of

    shown = segmentation.shown
    labels, colours = labels_of(segmentation, shown), region_colours(shown)
    maps = _maps_to_write(arguments, segmentation, chosen, map)
    check_outputs(list(maps), arguments.maps, overwrite=arguments.overwrite)
    with ExitStack() as stack:

        def file(path: Path) -> Path:
            return stack.enter_context(replacing(path))

        for path, territory in maps.items():
            write_map(file(path), map.data * territory, pixel_size=map.pixel_size, origin=map.origin)
        if arguments.labels is not None:
            write_labels(file(arguments.labels), labels, pixel_size=map.pixel_size, origin=map.origin)
        if arguments.script is not None and arguments.labels is not None:
            write_regions_script(
                file(arguments.script), labels_file=arguments.labels, colours=colours,
                map_file=arguments.smoothed, threshold=threshold,
            )  # fmt: skip
        if arguments.plot is not None:
            figure = regions_figure(
                map.data.numpy(), labels.numpy(), colours=colours, pixel_size=map.pixel_size,
                chosen=None if chosen is None else labels_of(segmentation, chosen).numpy() > 0,
                title=f"{len(shown)} regions of {' and '.join(path.name for path in arguments.maps)}",
            )  # fmt: skip
            kind = arguments.plot.suffix.removeprefix(".").lower()
            figure.savefig(file(arguments.plot), dpi=80, format=kind)
        if arguments.table is not None:
            _write_table(file(arguments.table), rows)


def _maps_to_write(
    arguments: argparse.Namespace, segmentation: Segmentation, chosen: tuple[int, ...] | None, map: Map
) -> dict[Path, Tensor]:
    """The part of the map (bool) that each file is to hold."""
    import torch

    from cryosweep.segmentation import everything_else, territory

    found: dict[Path, Tensor] = {}
    if arguments.smoothed is not None:
        found[arguments.smoothed] = torch.ones_like(map.data, dtype=torch.bool)
    if arguments.output is not None and chosen is not None:
        found[arguments.output] = territory(segmentation, chosen)
    if arguments.rest is not None and chosen is not None:
        found[arguments.rest] = everything_else(segmentation, chosen)
    if arguments.each is not None:
        prefix: Path = arguments.each
        for id in chosen or segmentation.shown:
            found[prefix.with_name(f"{prefix.name}_{id}.mrc")] = territory(segmentation, [id])
    return found


def _rows(segmentation: Segmentation, extents: Mapping[int, Extent], map: Map) -> list[_Row]:
    rows: list[_Row] = []
    for id, extent in extents.items():
        region = segmentation.regions[id]
        place = Point.in_map(extent.centre_px, map)
        rows.append(_Row(id, region.parts, extent, place, region.name))
    return rows


def _table(rows: Sequence[_Row], chosen: Sequence[int]) -> str:
    """The largest regions, for people; `*` marks what was chosen."""
    lines = [
        f"{'':>15}{'volume':>11}{'mass':>8}   {'centre':<21}   centre",
        f"    id   voxels{'Å^3':>11}{'kDa':>8}   {'px':<21}   {'Å in the frame of the map':<25}   parts",
    ]
    for row in rows[:ROWS_SHOWN]:
        mark = "*" if row.id in chosen else " "
        extent = row.extent
        lines.append(
            f"{mark}{row.id:>5}{extent.voxels:>9}{extent.volume:>11.0f}{extent.mass_kda:>8.1f}   "
            f"{numbers(row.centre.px):<21}   {numbers(row.centre.frame):<25}   {_parts(row)}".rstrip()
        )
    if len(rows) > ROWS_SHOWN:
        lines.append(
            f"and {len(rows) - ROWS_SHOWN} smaller ones (--table lists all); fewer: a higher threshold, more "
            "smoothing, more steps"
        )
    return "\n".join(lines)


def _parts(row: _Row) -> str:
    listed = _listed(row.parts[:6]) + ("..." if len(row.parts) > 6 else "")
    return f"{listed}  {row.name}".strip()


def _write_table(path: Path, rows: Sequence[_Row]) -> None:
    import pandas as pd

    table = pd.DataFrame(
        {
            "id": row.id,
            "parts": " ".join(map(str, row.parts)),
            "name": row.name,
            "voxels": row.extent.voxels,
            "volume": row.extent.volume,
            "mass_kda": row.extent.mass_kda,
            **{f"{axis}_px": value for axis, value in zip("xyz", row.centre.px, strict=True)},
            **dict(zip("xyz", row.centre.frame, strict=True)),
        }
        for row in rows
    )
    table.to_csv(path, index=False, float_format="%.3f")


def _before_moves(original: Segmentation, moved: Segmentation, ids: Sequence[int]) -> list[int]:
    """Ids that the tree had before the moves: groups made by hand fall into their parts."""
    found: list[int] = []
    todo = list(ids)
    while todo:
        id = todo.pop(0)
        if id in original.regions:
            found.append(id)
        else:
            todo += moved.regions[id].parts
    return found


def _ids(flag: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"{flag} {text}: give whole numbers, for example 1,4") from error


def _listed(ids: Sequence[int]) -> str:
    return ",".join(map(str, ids))
