"""Scripts that show a segmentation in ChimeraX (.cxc)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

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


def _quoted(path: Path) -> str:
    """The absolute path in quotes: a script may be opened from any folder."""
    text = str(path.absolute())
    if '"' in text or "\n" in text:
        raise ValueError(f"{path}: ChimeraX cannot open a name with quotes or line breaks; rename it")
    return f'"{text}"'
