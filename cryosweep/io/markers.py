"""Points in Chimera and ChimeraX: marker files (.cmm), read and written."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree


def read_marker(path: Path) -> tuple[float, float, float]:
    """Position of the one marker of a .cmm file.

    Args:
        path: marker file as Chimera and ChimeraX save it.

    Returns:
        x, y, z in Å, in the frame of the map the marker was set on.

    Raises:
        ValueError: the file is no marker file, or does not hold exactly one usable marker.
    """
    positions, without_place = _read(path)
    if len(positions) != 1:
        listed = "; ".join(f"({x:g}, {y:g}, {z:g})" for x, y, z in positions[:5])
        raise ValueError(
            f"{path}: exactly one marker is needed, but the file holds {len(positions)} with a position"
            + (f" ({listed}{'; ...' if len(positions) > 5 else ''})" if positions else "")
            + (f" and {without_place} without one (nan)" if without_place else "")
            + "; keep one marker and save the file again."
        )
    return positions[0]


def read_markers(path: Path) -> list[tuple[float, float, float]]:
    """Positions of all markers of a .cmm file, as `read_marker` gives one.

    Raises:
        ValueError: the file is no marker file, or holds no usable marker.
    """
    positions, _ = _read(path)
    if not positions:
        raise ValueError(
            f"{path}: the file holds no marker with a position; set one and save the file again."
        )
    return positions


def _read(path: Path) -> tuple[list[tuple[float, float, float]], int]:
    """Positions, and how many markers have none.

    Links, other attributes, and markers without a place (`x="nan"`) are passed over.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: not a marker file of Chimera or ChimeraX (.cmm): {error}.") from error
    positions: list[tuple[float, float, float]] = []
    without_place = 0
    for marker in root.iter("marker"):
        try:
            x, y, z = (float(marker.attrib[axis]) for axis in "xyz")
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{path}: marker {marker.get('id', '?')} needs numbers x, y and z, but has {marker.attrib}."
            ) from error
        if math.isfinite(x) and math.isfinite(y) and math.isfinite(z):
            positions.append((x, y, z))
        else:
            without_place += 1
    return positions, without_place


def write_marker(path: Path, position: tuple[float, float, float], *, radius: float, note: str = "") -> None:
    """Write a marker file that ChimeraX opens over the map; `read_marker` gives back `position` to the last
    digit.

    Args:
        path: an existing file is replaced.
        position: x, y, z in Å, in the frame of the map.
        radius: Å, of the ball that is shown.
        note: what the viewer shows beside the marker.

    Raises:
        ValueError: a number is not finite, or `radius` is not above 0.
    """
    if not all(map(math.isfinite, position)) or not 0.0 < radius < math.inf:
        raise ValueError(f"{path}: a marker at {position} of radius {radius} cannot be shown.")
    markers = ElementTree.Element("marker_set", {"name": note or "fulcrum"})
    colour = {"r": "0.835", "g": "0.369", "b": "0"}  # the vermilion of the figures' crosses
    place = {axis: repr(float(value)) for axis, value in zip("xyz", position, strict=True)}
    attributes = {"id": "1", **place, **colour, "radius": repr(float(radius)), "note": note}
    ElementTree.SubElement(markers, "marker", attributes)
    ElementTree.indent(markers)
    ElementTree.ElementTree(markers).write(path, encoding="utf-8", xml_declaration=True)
