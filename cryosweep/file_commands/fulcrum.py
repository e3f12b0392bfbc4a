"""The `fulcrum` command: one point in the frames of all programs."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryosweep.commands import add_command, say
from cryosweep.file_commands.shared import (
    PLOT_SUFFIXES,
    Point,
    Vector,
    check_file,
    check_outputs,
    check_plot,
    check_same_grid,
    numbers,
    point_of,
    read_mask_file,
    read_volume,
)

if TYPE_CHECKING:
    from torch import Tensor

    from cryosweep.commands import Commands
    from cryosweep.io.maps import Map

MARKER_RADIUS_PX = 2.0


@dataclass(frozen=True)
class _Found:
    """A point as it was found.

    Attributes:
        px: from the box corner.
        region: (d, d, d) the mask or domain that is drawn around it, or None.
        said: what there is to know about it besides.
    """

    px: Vector
    region: Tensor | None = None
    said: tuple[str, ...] = ()


def add_parser(commands: Commands) -> None:
    """Add the parser of this command."""
    parser = add_command(
        commands,
        "fulcrum",
        "say where a point lies in px and in Å, and how to refine about it",
        "cryosweep fulcrum --interface head.mrc foot.mrc body.mrc -o neck.cmm --plot neck.png",
    )
    parser.usage = (
        "%(prog)s --interface DOMAIN PART ... | --mask MASK | --marker MARKER | --px X,Y,Z\n"
        "                         [--map MAP] [--threshold VALUE] [-o FILE] [--plot FILE] [--overwrite]"
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--interface",
        type=Path,
        nargs="+",
        metavar=("DOMAIN", "PART"),
        help="masks or maps: where the domain touches the part that carries it, the one of all the "
        "parts that it has the largest contact with",
    )
    where.add_argument("--mask", type=Path, help="mask (MRC): its centre of mass")
    where.add_argument("--marker", type=Path, help="marker file of ChimeraX (.cmm) with one marker")
    where.add_argument("--px", metavar="X,Y,Z", help="px from the box corner, as read from a viewer")
    parser.add_argument("--map", type=Path, help="map (MRC) of the point (default: the mask or domain)")
    parser.add_argument(
        "--threshold", type=float, metavar="VALUE", help="of the parts that are maps and not masks"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="marker for ChimeraX (.cmm)")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help=f"slices through it ({', '.join(PLOT_SUFFIXES)})"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what exists already")
    parser.set_defaults(function=fulcrum)


def fulcrum(arguments: argparse.Namespace) -> int:
    """Print a point in px from the box corner, in Å in the frame of the map and in Å from the box centre.

    Raises:
        ValueError: the point cannot be found, lies outside the box, or an output exists.
    """
    from cryosweep.io.maps import replacing
    from cryosweep.io.markers import write_marker

    marker, plot = arguments.output, arguments.plot
    check_plot(plot)
    inputs = [arguments.mask, arguments.marker, arguments.map, *(arguments.interface or ())]
    check_outputs(
        [path for path in (marker, plot) if path is not None],
        [path for path in inputs if path is not None],
        overwrite=arguments.overwrite,
    )
    domain: Path | None = arguments.interface[0] if arguments.interface else arguments.mask
    name: Path | None = arguments.map or domain
    if name is None:
        raise ValueError("--map is needed: a point has no place without the box and the origin of its map")
    map = read_mask_file(name) if name == arguments.mask else read_volume(name)
    found = _found(arguments, name, map)
    point = Point.in_map(found.px, map)
    box_size = int(map.data.shape[-1])
    if not all(0.0 <= value <= box_size - 1 for value in point.px):
        raise ValueError(
            f"the point lies at {numbers(point.px)} px, outside the {box_size} px box of {name}; check its "
            f"unit (a pixel is {map.pixel_size:g} Å) and that it was picked on this map"
        )
    with ExitStack() as stack:
        if marker is not None:
            temporary = stack.enter_context(replacing(marker))
            write_marker(
                temporary,
                point.frame,
                radius=MARKER_RADIUS_PX * map.pixel_size,
                note=f"fulcrum ({name.name})",
            )
        if plot is not None:
            _draw(stack.enter_context(replacing(plot)), plot.suffix.lower(), map, point, found, str(name))
    say(f"{numbers(point.px)} px from the box corner")
    say(f"{numbers(point.frame)} Å in the frame of {name}")
    say(f"{numbers(point.centre)} Å from the box centre")
    for line in found.said:
        say(line)
    position = ",".join(f"{value:.2f}" for value in point.px)
    say(f"\ncryosweep run fulcrum=px 'fulcrum.position=[{position}]' ...")
    return 0


def _found(arguments: argparse.Namespace, name: Path, map: Map) -> _Found:
    """The point that is asked for, on the grid of `map`."""
    from cryosweep.io.markers import read_marker
    from cryosweep.mask import centre_of_mass

    if arguments.interface:
        return _interface(arguments.interface, arguments.threshold, name, map)
    if arguments.threshold is not None:
        raise ValueError("--threshold belongs to --interface; a mask needs none")
    if arguments.mask is not None:
        given = map if name == arguments.mask else read_mask_file(arguments.mask)
        check_same_grid(arguments.mask, given, name, map)
        x, y, z = (float(value) + given.data.shape[-1] // 2 for value in centre_of_mass(given.data))
        return _Found((x, y, z), given.data)
    if arguments.marker is not None:
        check_file(arguments.marker)
        place = zip(read_marker(arguments.marker), map.origin, strict=True)
        x, y, z = ((value - offset) / map.pixel_size for value, offset in place)
        return _Found((x, y, z))
    return _Found(point_of("--px", arguments.px))


def _interface(paths: list[Path], threshold: float | None, name: Path, map: Map) -> _Found:
    from cryosweep import rules
    from cryosweep.fulcrum import contact_radius, interface

    if len(paths) < 2:
        raise ValueError(
            "--interface: give the domain and at least one other part, the carrier or all of them"
        )
    regions: list[Tensor] = []
    for path in paths:
        part = read_volume(path)
        check_same_grid(path, part, name, map)
        regions.append(_region(path, part, threshold))
    names = [str(path) for path in paths[1:]]
    found = interface(regions[0], regions[1:], names=names, pixel_size=map.pixel_size)
    half = int(map.data.shape[-1]) // 2
    x, y, z = (float(value) / map.pixel_size + half for value in found.contact.centre)
    dx, dy, dz = (float(value) for value in found.contact.sd)
    said = (
        f"the contact with {names[found.carrier]}: {found.contact.voxels} voxels within "
        f"{contact_radius(map.pixel_size):g} Å of both, of SD {numbers((dx, dy, dz))} Å along x, y, z",
        *(
            f"with {other}: {voxels} voxels"
            for index, (other, voxels) in enumerate(zip(names, found.voxels, strict=True))
            if index != found.carrier
        ),
        *(str(doubt) for doubt in rules.present((rules.contact_along(found.along),))),
    )
    return _Found((x, y, z), regions[0].to(map.data.dtype), said)


def _region(path: Path, part: Map, threshold: float | None) -> Tensor:
    """Where a mask is above one half, or a map above the threshold."""
    if float(part.data.min()) >= 0.0 and float(part.data.max()) <= 1.0:
        return part.data > 0.5
    if threshold is None:
        raise ValueError(f"{path} is a map and no mask (values from 0 to 1): give --threshold for the maps")
    return part.data > threshold


def _draw(path: Path, suffix: str, map: Map, point: Point, found: _Found, title: str) -> None:
    from cryosweep.diagnostics import slices_figure

    figure = slices_figure(
        map.data.numpy(),
        pixel_size=map.pixel_size,
        fulcrum=point.centre,
        mask=None if found.region is None else found.region.numpy(),
        title=title,
    )
    figure.savefig(path, dpi=110, format=suffix.removeprefix("."))
