"""The `fulcrum` command: one point in the frames of all programs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cryosweep.commands import add_command, say
from cryosweep.file_commands.shared import (
    Point,
    check_file,
    check_same_grid,
    numbers,
    point_of,
    read_mask_file,
    read_volume,
)

if TYPE_CHECKING:
    from cryosweep.commands import Commands


def add_parser(commands: Commands) -> None:
    """Add the parser of this command."""
    parser = add_command(
        commands,
        "fulcrum",
        "say where a point lies in px and in Å, and how to refine about it",
        "cryosweep fulcrum --marker neck.cmm --map consensus.mrc",
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--mask", type=Path, help="mask (MRC): its centre of mass")
    where.add_argument("--marker", type=Path, help="marker file of ChimeraX (.cmm) with one marker")
    where.add_argument("--px", metavar="X,Y,Z", help="px from the box corner, as read from a viewer")
    parser.add_argument("--map", type=Path, help="map (MRC) that the point belongs to (default: the mask)")
    parser.set_defaults(function=fulcrum)


def fulcrum(arguments: argparse.Namespace) -> int:
    """Print a point in px from the box corner, in Å in the frame of the map and in Å from the box centre.

    Raises:
        ValueError: the point cannot be read, or lies outside the box.
    """
    from cryosweep.io.markers import read_marker
    from cryosweep.mask import centre_of_mass

    masked: Path | None = arguments.mask
    name: Path | None = arguments.map or masked
    if name is None:
        raise ValueError("--map is needed: a point has no place without the box and the origin of its map")
    map = read_mask_file(name) if name == masked else read_volume(name)
    box_size = int(map.data.shape[-1])
    if masked is not None:
        given = map if name == masked else read_mask_file(masked)
        check_same_grid(masked, given, name, map)
        x, y, z = (float(value) + box_size // 2 for value in centre_of_mass(given.data))
    elif arguments.marker is not None:
        check_file(arguments.marker)
        place = zip(read_marker(arguments.marker), map.origin, strict=True)
        x, y, z = ((value - offset) / map.pixel_size for value, offset in place)
    else:
        x, y, z = point_of("--px", arguments.px)
    point = Point.in_map((x, y, z), map)
    if not all(0.0 <= value <= box_size - 1 for value in point.px):
        raise ValueError(
            f"the point lies at {numbers(point.px)} px, outside the {box_size} px box of {name}; check its "
            f"unit (a pixel is {map.pixel_size:g} Å) and that it was picked on this map"
        )
    say(f"{numbers(point.px)} px from the box corner")
    say(f"{numbers(point.frame)} Å in the frame of {name}")
    say(f"{numbers(point.centre)} Å from the box centre")
    position = ",".join(f"{value:.2f}" for value in point.px)
    say(f"\ncryosweep run fulcrum=px 'fulcrum.position=[{position}]' ...")
    return 0
