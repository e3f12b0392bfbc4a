"""The `anisotropy` command: whether half-maps and views are even in all directions."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from cryosweep.commands import add_command, say
from cryosweep.file_commands.shared import (
    add_output,
    check_file,
    check_outputs,
    check_same_grid,
    read_mask_file,
    read_volume,
    shown_progress,
)

if TYPE_CHECKING:
    from cryosweep.commands import Commands

PLOT_SUFFIXES = (".png", ".pdf", ".svg")


def add_parser(commands: Commands) -> None:
    """Add the parser of this command."""
    parser = add_command(
        commands,
        "anisotropy",
        "FSC within cones of two half maps (cFAR), and evenness of the views (SCF*)",
        "cryosweep anisotropy half_a.mrc half_b.mrc --mask mask.mrc --star data.star -o cones.csv",
    )
    parser.add_argument("half_a", type=Path, help="unfiltered half map (MRC)")
    parser.add_argument("half_b", type=Path, help="the other one")
    parser.add_argument("--mask", type=Path, required=True, help="mask (MRC) on the grid of the half maps")
    parser.add_argument("--star", type=Path, help="STAR file with the poses, for SCF*")
    add_output(parser, "table of the cones (CSV): axis and area of each, and its FSC by shell")
    parser.add_argument("--plot", type=Path, help=f"figure of the cones ({', '.join(PLOT_SUFFIXES)})")
    parser.set_defaults(function=anisotropy)


def anisotropy(arguments: argparse.Namespace) -> int:
    """Write the FSC within cones and print cFAR, SCF* and what the rule on them says.

    Raises:
        ValueError: the maps do not belong together, or an output exists.
    """
    import pandas as pd

    from cryosweep.anisotropy import sampling_compensation
    from cryosweep.diagnostics import conical_fsc_figure
    from cryosweep.io.maps import replacing
    from cryosweep.io.particles import read_views
    from cryosweep.reconstruction import HalfMaps
    from cryosweep.resolution import crossing, fsc
    from cryosweep.rules import orientation
    from cryosweep.study.assessment import directional_fsc

    plot: Path | None = arguments.plot
    if plot is not None and plot.suffix.lower() not in PLOT_SUFFIXES:
        raise ValueError(f"--plot {plot}: the name must end in {', '.join(PLOT_SUFFIXES)}")
    outputs = [path for path in (arguments.output, plot) if path is not None]
    inputs = [path for path in (arguments.half_a, arguments.half_b, arguments.mask) if path is not None]
    check_outputs(outputs, inputs, overwrite=arguments.overwrite)
    a, b = read_volume(arguments.half_a), read_volume(arguments.half_b)
    check_same_grid(arguments.half_b, b, arguments.half_a, a)
    mask = read_mask_file(arguments.mask)
    check_same_grid(arguments.mask, mask, arguments.half_a, a)
    if arguments.star is not None:
        check_file(arguments.star)
    views = None if arguments.star is None else read_views(arguments.star)
    with shown_progress() as progress:
        progress.start(1, "correlating within cones")
        curve = fsc(a.data * mask.data, b.data * mask.data)
        reached = crossing(curve, 0.143, box_size=int(a.data.shape[-1]), pixel_size=a.pixel_size)
        cones = directional_fsc(HalfMaps(a.data, b.data, a.pixel_size), mask.data, resolution=reached)
    table = pd.DataFrame(
        {
            **dict(zip("xyz", cones.directions.unbind(dim=1), strict=True)), "area": cones.areas,
            **{f"shell_{shell}": cones.curves[:, shell] for shell in range(1, cones.curves.shape[1])},
        }
    )  # fmt: skip
    with ExitStack() as stack:
        files = [stack.enter_context(replacing(path)) for path in outputs]
        table.to_csv(files[0], index=False, float_format="%.6f")
        if plot is not None:
            figure = conical_fsc_figure(
                cones.curves[:, 1:].numpy(), frequency=cones.frequency[1:].numpy(),
                pixel_size=a.pixel_size, cfar=cones.cfar,
            )  # fmt: skip
            figure.savefig(files[1], dpi=110, format=plot.suffix.lower().removeprefix("."))
    worst = cones.directions[int(cones.areas.argmin())].tolist()
    finest = max(reached / 1.25, 2.0 * a.pixel_size)
    say(f"cFAR {cones.cfar:.2f} over {len(cones.areas)} cones, to {finest:.2f} Å")
    say(f"least signal along ({', '.join(f'{value:.2f}' for value in worst)})")
    scf = None if views is None else sampling_compensation(views)
    if views is not None:
        say(f"SCF* {scf:.2f} of {len(views)} views")
    finding = orientation(cones.cfar, scf)
    say("nothing to object to" if finding is None else str(finding))
    return 0
