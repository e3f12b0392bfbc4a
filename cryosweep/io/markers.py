"""A fulcrum picked in Chimera or ChimeraX: marker files (.cmm)."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree


def read_marker(path: Path) -> tuple[float, float, float]:
    """Position of the one marker of a .cmm file.

    Links, other attributes, and markers without a place (`x="nan"`) are passed over.

    Args:
        path: marker file as Chimera and ChimeraX save it.

    Returns:
        x, y, z in Å, in the frame of the map the marker was set on.

    Raises:
        ValueError: the file is no marker file, or does not hold exactly one usable marker.
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
    if len(positions) != 1:
        listed = "; ".join(f"({x:g}, {y:g}, {z:g})" for x, y, z in positions[:5])
        raise ValueError(
            f"{path}: exactly one marker is needed, but the file holds {len(positions)} with a position"
            + (f" ({listed}{'; ...' if len(positions) > 5 else ''})" if positions else "")
            + (f" and {without_place} without one (nan)" if without_place else "")
            + "; keep one marker and save the file again."
        )
    return positions[0]
