"""The `regularise` command: half-maps filtered at each place by the cut-off that it bears."""

from __future__ import annotations

import argparse
import math
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from cryosweep.commands import add_command, say
from cryosweep.file_commands.shared import (
    add_output,
    check_outputs,
    check_same_grid,
    read_mask_file,
    read_volume,
    shown_progress,
)

if TYPE_CHECKING:
    from torch import Tensor

    from cryosweep.commands import Commands

ENDS = ("_half_a.mrc", "_half_b.mrc", "_map.mrc", "_cutoff.mrc")


def add_parser(commands: Commands) -> None:
    """Add the parser of this command."""
    parser = add_command(
        commands,
        "regularise",
        "low-pass half maps at each place where they stop predicting each other (non-uniform)",
        "cryosweep regularise run_half_a.mrc run_half_b.mrc --mask mask.mrc -o run_nu",
    )
    parser.add_argument("half_a", type=Path, help="unfiltered half map (MRC)")
    parser.add_argument("half_b", type=Path, help="the other one")
    add_output(
        parser,
        "PREFIX of PREFIX_half_a.mrc, PREFIX_half_b.mrc, PREFIX_map.mrc (mean) and PREFIX_cutoff.mrc (Å)",
        metavar="PREFIX",
    )
    parser.add_argument(
        "--mask", type=Path, help="mask (MRC) under which the FSC gives the finest cut-off (default: none)"
    )
    parser.add_argument(
        "--finest", type=float, metavar="Å", help="the finest cut-off (default: where the FSC meets 0.143)"
    )
    for flag, kind, value, help in (
        ("--coarsest", float, 40.0, "the coarsest cut-off in Å"),
        ("--cutoffs", int, 10, "number of cut-offs, geometric between the two"),
        ("--order", int, 8, "of the Butterworth filter"),
        ("--window", float, 3.0, "standard deviation of the window, in units of the cut-off"),
    ):
        parser.add_argument(flag, type=kind, default=value, help=f"{help} (default: %(default)s)")
    parser.set_defaults(function=regularise)


def regularise(arguments: argparse.Namespace) -> int:
    """Write the filtered half maps, their mean and the map of cut-offs.

    Raises:
        ValueError: the maps do not belong together, the cut-offs are impossible, or an output exists.
    """
    from cryosweep.io.maps import replacing, write_map
    from cryosweep.regularisation import NonuniformSettings, nonuniform

    prefix: Path = arguments.output
    outputs = [prefix.with_name(prefix.name + end) for end in ENDS]
    inputs = [path for path in (arguments.half_a, arguments.half_b, arguments.mask) if path is not None]
    check_outputs(outputs, inputs, overwrite=arguments.overwrite)
    if arguments.half_a.resolve() == arguments.half_b.resolve():
        raise ValueError(f"{arguments.half_b}: both half maps are this file; give one of each half set")
    settings = NonuniformSettings(arguments.coarsest, arguments.cutoffs, arguments.order, arguments.window)
    a, b = read_volume(arguments.half_a), read_volume(arguments.half_b)
    check_same_grid(arguments.half_b, b, arguments.half_a, a)
    mask: Tensor | None = None
    if arguments.mask is not None:
        chosen = read_mask_file(arguments.mask)
        check_same_grid(arguments.mask, chosen, arguments.half_a, a)
        mask = chosen.data
    finest: float | None = arguments.finest
    if finest is None:
        finest = _resolution(a.data, b.data, mask, a.pixel_size)
    elif not 0.0 < finest < math.inf:
        raise ValueError(f"--finest {finest:g}: must be above 0 Å")
    if finest >= settings.coarsest:
        raise ValueError(
            f"the finest cut-off, {finest:.1f} Å, is no finer than --coarsest {settings.coarsest:g} Å; "
            "give --finest, a larger --coarsest, or a --mask under which the half maps agree further"
        )
    with shown_progress() as progress:
        progress.start(1, "regularising")
        found = nonuniform(a.data, b.data, pixel_size=a.pixel_size, finest=finest, settings=settings)
    volumes = (found.half_a, found.half_b, 0.5 * (found.half_a + found.half_b), found.cutoff)
    with ExitStack() as stack:
        files = [stack.enter_context(replacing(path)) for path in outputs]
        for path, volume in zip(files, volumes, strict=True):
            write_map(path, volume, pixel_size=a.pixel_size, origin=a.origin)
    say(f"{outputs[0]}, {outputs[1]}: for references and for the eye; no FSC may be taken from them")
    say(f"{outputs[2]}: their mean; {outputs[3]}: the cut-off at each voxel, in Å")
    say(f"finest cut-off {max(finest, 2.0 * a.pixel_size):.2f} Å")
    inside = found.cutoff[mask > 0.5] if mask is not None else found.cutoff.flatten()
    where = "inside the mask" if mask is not None else "in the box"
    # the 5th, 50th and 95th percentile by sorting: quantile refuses large boxes
    ordered = inside.sort().values
    low, middle, high = (float(ordered[round(share * (len(ordered) - 1))]) for share in (0.05, 0.5, 0.95))
    say(f"cut-offs {where}: median {middle:.1f} Å, nine tenths from {low:.1f} to {high:.1f} Å")
    return 0


def _resolution(half_a: Tensor, half_b: Tensor, mask: Tensor | None, pixel_size: float) -> float:
    """Å where the FSC of the half-maps, under the mask if there is one, falls below 0.143."""
    from cryosweep.resolution import crossing, fsc

    a, b = (half if mask is None else half * mask for half in (half_a, half_b))
    return crossing(fsc(a, b), 0.143, box_size=int(half_a.shape[-1]), pixel_size=pixel_size)
