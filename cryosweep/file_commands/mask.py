"""The `mask` command: a soft mask cut from a map."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from cryosweep.commands import add_command, say
from cryosweep.file_commands.shared import (
    Point,
    add_output,
    check_outputs,
    length_of,
    numbers,
    read_volume,
    shown_progress,
)

if TYPE_CHECKING:
    from cryosweep.commands import Commands


def add_parser(commands: Commands) -> None:
    """Add the parser of this command."""
    parser = add_command(
        commands,
        "mask",
        "cut a soft mask from a map: threshold, dilate, pad softly",
        "cryosweep mask map.mrc -o mask.mrc --threshold 0.05 --dilation-radius 5px --soft-padding-width 50A",
    )
    parser.add_argument("map", type=Path, help="map (MRC) that shows the region and little else")
    add_output(parser, "the mask (MRC), on the grid of the map")
    parser.add_argument(
        "--threshold", type=float, required=True, metavar="VALUE", help="voxels above it are inside"
    )
    parser.add_argument(
        "--threshold-unit",
        choices=["absolute", "fraction"],
        default="absolute",
        help="map units, or a fraction of the 99.9th percentile of the map (default: %(default)s)",
    )
    parser.add_argument("--fill-holes", action="store_true", help="add what the region encloses")
    parser.add_argument("--dilation-radius", required=True, metavar="LENGTH", help="Å as 7 or 7A, or 5px")
    parser.add_argument(
        "--soft-padding-width",
        required=True,
        metavar="LENGTH",
        help="of the cosine edge outside the dilated region",
    )
    parser.add_argument(
        "--smoothing",
        default="0",
        metavar="LENGTH",
        help="sigma of a Gaussian applied to the map first (default: none)",
    )
    parser.add_argument(
        "--resolution",
        type=float,
        metavar="Å",
        help="of the map to be masked; the check of the padding assumes it (default: Nyquist)",
    )
    parser.set_defaults(function=mask)


def mask(arguments: argparse.Namespace) -> int:
    """Write a soft mask and say where it lies, how large it is and what is questionable about it.

    Raises:
        ValueError: an input cannot be used, or the output exists.
    """
    from cryosweep.fourier import gaussian_filter
    from cryosweep.io.maps import write_map
    from cryosweep.mask import centre_of_mass, soft_mask, threshold_of
    from cryosweep.rules import check_mask

    output: Path = arguments.output
    check_outputs([output], [arguments.map], overwrite=arguments.overwrite)
    source = read_volume(arguments.map)
    pixel_size, box_size = source.pixel_size, int(source.data.shape[-1])
    dilation = length_of("--dilation-radius", arguments.dilation_radius, pixel_size)
    padding = length_of("--soft-padding-width", arguments.soft_padding_width, pixel_size)
    smoothing = length_of("--smoothing", arguments.smoothing, pixel_size)
    resolution: float = 2.0 * pixel_size if arguments.resolution is None else arguments.resolution
    if not 0.0 < resolution < math.inf:
        raise ValueError(f"--resolution {resolution:g}: must be above 0 Å")
    with shown_progress() as progress:
        progress.start(1, "masking")
        base = source.data
        if smoothing > 0.0:
            base = gaussian_filter(base, sigma=smoothing, pixel_size=pixel_size)
        threshold = threshold_of(base, arguments.threshold, unit=arguments.threshold_unit)
        made = soft_mask(
            base,
            threshold=threshold,
            dilation_radius_px=dilation / pixel_size,
            soft_padding_width_px=padding / pixel_size,
            holes_filled=arguments.fill_holes,
        )
        findings = check_mask(
            made, pixel_size=pixel_size, resolution=resolution, soft_padding_width=padding, base=base
        )
        write_map(output, made, pixel_size=pixel_size, origin=source.origin)
    total = float(made.double().sum())
    half = box_size // 2
    x, y, z = (float(value) + half for value in centre_of_mass(made))
    centre = Point.in_map((x, y, z), source)
    say(f"{output}: {box_size} px of {pixel_size:g} Å, threshold {threshold:.4g}")
    say(f"volume: {total * pixel_size**3:.0f} Å^3, {100.0 * total / made.numel():.2f} % of the box")
    say(f"centre of mass: {numbers(centre.px)} px from the box corner")
    say(f"                {numbers(centre.frame)} Å in the frame of the map")
    assumed = f"{resolution:g} Å" + (" (Nyquist; see --resolution)" if arguments.resolution is None else "")
    say("\n".join(map(str, findings)) or f"nothing to object to at a resolution of {assumed}")
    return 0
