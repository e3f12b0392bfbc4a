"""Scripts that show a segmentation in ChimeraX (.cxc)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cryosweep.io.maps import replacing


def write_regions_script(
    path: Path, *, map_file: Path, labels_file: Path, colours: Mapping[int, str], threshold: float
) -> None:
    """Write a script that opens a map and its index map and draws a coloured surface for each region.

    It is meant for a session without other models, because it names the two as #1 and #2. The command
    `segmentation surfaces` is described in the ChimeraX User Guide.

    Args:
        path: an existing file is replaced.
        map_file: the map that was segmented; shown as a mesh at the threshold.
        labels_file: the ids of its regions, as `write_labels` writes them.
        colours: colour (`#rrggbb`) of each region.
        threshold: map units.
    """
    lines = [
        "# Written by cryosweep. Open it in a session without other models.",
        f"open {_quoted(map_file)}",
        f"open {_quoted(labels_file)}",
        f"volume #1 style mesh level {threshold:.6g} color #b0b0b0 step 1",
        "volume #2 hide",
        *(f"segmentation surfaces #2 where {id} color {colour} step 1" for id, colour in colours.items()),
        "view",
    ]
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _quoted(path: Path) -> str:
    """The absolute path in quotes: a script may be opened from any folder."""
    text = str(path.absolute())
    if '"' in text or "\n" in text:
        raise ValueError(f"{path}: ChimeraX cannot open a name with quotes or line breaks; rename it")
    return f'"{text}"'
