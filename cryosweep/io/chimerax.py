"""Scripts that show a segmentation, or the maps of a study, in ChimeraX (.cxc)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cryosweep.io.maps import replacing


def write_regions_script(
    path: Path,
    *,
    labels_file: Path,
    colours: Mapping[int, str],
    map_file: Path | None = None,
    threshold: float = 0.0,
) -> None:
    """Write a script that opens an index map and draws a coloured surface for each of its regions.

    It is meant for a session without other models, because it names them by number. The command `segmentation
    surfaces` is described in the ChimeraX User Guide.

    Args:
        path: an existing file is replaced.
        labels_file: the ids of the regions, as `write_labels` writes them.
        colours: colour (`#rrggbb`) of each region.
        map_file: the map that was segmented, if it is to be shown as a mesh around the regions.
        threshold: map units, of the mesh.
    """
    lines = [
        "# Written by cryosweep. Open it in a session without other models.",
        f"open {_quoted(labels_file)}",
        "volume #1 hide",
    ]
    if map_file is not None:
        lines += [
            f"open {_quoted(map_file)}",
            f"volume #2 style mesh level {threshold:.6g} color #b0b0b0 step 1",
        ]
    lines += [f"segmentation surfaces #1 where {id} color {colour} step 1" for id, colour in colours.items()]
    with replacing(path) as temporary:
        temporary.write_text("\n".join([*lines, "view"]) + "\n", encoding="utf-8")


class ShownMap(NamedTuple):
    """A map of a script: its file, its name in the model panel and its colour (`#rrggbb`)."""

    file: Path
    name: str
    colour: str


def write_maps_script(
    path: Path, maps: Sequence[ShownMap], *, level: float, mask_file: Path | None = None, shown: int = 2
) -> None:
    """Write a script that opens maps in colours of their own, all contoured at one level.

    Files are named relative to the script: ChimeraX runs a command file in its own folder, so script and maps
    may move together. The commands `open`, `volume`, `hide` and `view` are described in the ChimeraX User
    Guide. It is meant for a session without other models.

    Args:
        path: an existing file is replaced.
        maps: on one grid; the first is model #1.
        level: density of all surfaces.
        mask_file: a mask to be shown as a mesh at 0.5, as the last model, hidden at first.
        shown: how many maps are shown at first; the others are switched on in the model panel.
    """
    folder = path.absolute().parent
    lines = [
        "# Written by cryosweep: every map of a study at one contour level.",
        "# Open it in a session without other models; boxes of the model panel show and hide the maps.",
    ]
    for number, each in enumerate(maps, start=1):
        lines += [
            f"open {_relative(each.file, folder)} name {_in_quotes(each.name)}",
            f"volume #{number} style surface step 1 level {level:.6g} color {each.colour}",
        ]
    if mask_file is not None:
        number = len(maps) + 1
        lines += [
            f'open {_relative(mask_file, folder)} name "scoring mask"',
            f"volume #{number} style mesh step 1 level 0.5 color #e69f00",
        ]
    last = len(maps) + (mask_file is not None)
    if last > shown:
        lines.append(f"hide #{shown + 1}-{last} models" if last > shown + 1 else f"hide #{last} models")
    with replacing(path) as temporary:
        temporary.write_text("\n".join([*lines, "view"]) + "\n", encoding="utf-8")


def _relative(path: Path, folder: Path) -> str:
    return _in_quotes(Path(os.path.relpath(path.absolute(), folder)).as_posix())


def _in_quotes(text: str) -> str:
    if '"' in text or "\n" in text:
        raise ValueError(f"{text}: ChimeraX cannot read a name with quotes or line breaks; rename it")
    return f'"{text}"'


def _quoted(path: Path) -> str:
    """The absolute path in quotes: a script may be opened from any folder."""
    return _in_quotes(str(path.absolute()))
