"""The `sharpen` command: B-factor of two half maps from their Guinier plot, and the map sharpened by it."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from cryosweep.commands import add_command, say
from cryosweep.file_commands.shared import (
    add_output,
    add_plot,
    check_outputs,
    check_plot,
    check_same_grid,
    read_half_maps,
    read_mask_file,
    seeded,
    shown_progress,
)

if TYPE_CHECKING:
    from torch import Tensor

    from cryosweep.commands import Commands
    from cryosweep.io.maps import Map


def add_parser(commands: Commands) -> None:
    """Add the parser of this command."""
    parser = add_command(
        commands,
        "sharpen",
        "sharpen a map by the B-factor of its Guinier plot, or by one of your own",
        "cryosweep sharpen run_half_a.mrc run_half_b.mrc --mask mask.mrc -o sharp.mrc --plot guinier.png",
    )
    add_half_maps(parser)
    add_b_factor(parser)
    add_output(parser, "sharpened map (MRC): FSC-weighted, low-passed at its resolution, not masked")
    parser.add_argument(
        "--resolution",
        type=float,
        metavar="Å",
        help="of the low-pass and the end of the fit (default: where the corrected FSC falls below 0.143)",
    )
    parser.add_argument("--csv", type=Path, help="table of the Guinier plot (CSV), one row a shell")
    add_plot(parser, "the Guinier plot")
    parser.set_defaults(function=sharpen)


def add_half_maps(parser: argparse.ArgumentParser) -> None:
    """Add two half maps with their mask, and the seed of the corrected FSC."""
    parser.add_argument("half_a", type=Path, help="unfiltered half map (MRC)")
    parser.add_argument("half_b", type=Path, help="the other one")
    parser.add_argument("--mask", type=Path, required=True, help="mask (MRC) on the grid of the half maps")
    parser.add_argument("--seed", type=int, default=0, help="of the random phases (default: %(default)s)")


def add_b_factor(parser: argparse.ArgumentParser) -> None:
    """Add how the B-factor is found."""
    parser.add_argument(
        "--b-factor",
        type=float,
        metavar="B",
        help="Å^2, negative sharpens (default: four times the slope of the Guinier plot)",
    )
    parser.add_argument(
        "--fit-from",
        type=float,
        default=10.0,
        metavar="Å",
        help="coarse end of the fit (default: %(default)g)",
    )


def check_b_factor(arguments: argparse.Namespace) -> None:
    """Refuse a B-factor or a fit that cannot be.

    Raises:
        ValueError: one is out of range.
    """
    if arguments.b_factor is not None and not abs(arguments.b_factor) <= 5000.0:
        raise ValueError(f"--b-factor {arguments.b_factor:g}: must be from -5000 up to 5000 Å^2")
    if not arguments.fit_from > 0.0:
        raise ValueError(f"--fit-from {arguments.fit_from:g}: must be above 0 Å")


def read_masked_halves(arguments: argparse.Namespace) -> tuple[Map, Map, Map]:
    """Both half maps and their mask.

    Raises:
        ValueError: they do not belong together.
    """
    a, b = read_half_maps(arguments.half_a, arguments.half_b)
    mask = read_mask_file(arguments.mask)
    check_same_grid(arguments.mask, mask, arguments.half_a, a)
    return a, b, mask


def corrected_curve(a: Map, b: Map, mask: Map, seed: int) -> Tensor:
    """(n_shells,) FSC under the mask, corrected for it."""
    from cryosweep.resolution import five_curves

    return five_curves(
        a.data, b.data, mask.data, pixel_size=a.pixel_size, generator=seeded(seed)
    ).corrected  # fmt: skip


def sharpen(arguments: argparse.Namespace) -> int:
    """Write the sharpened map; print the resolution and the B-factor with its error.

    Raises:
        ValueError: the maps do not belong together, a number is out of range, or an output exists.
    """
    from cryosweep.io.maps import replacing, write_map
    from cryosweep.reconstruction import HalfMaps
    from cryosweep.sharpening import sharpen as sharpen_maps
    from cryosweep.study.assessment import guinier_table

    check_b_factor(arguments)
    check_plot(arguments.plot)
    named = (arguments.output, arguments.csv, arguments.plot)
    inputs = [arguments.half_a, arguments.half_b, arguments.mask]
    check_outputs([path for path in named if path is not None], inputs, overwrite=arguments.overwrite)
    a, b, mask = read_masked_halves(arguments)
    nyquist = 2.0 * a.pixel_size
    if arguments.resolution is not None and not arguments.resolution >= nyquist:
        raise ValueError(f"--resolution {arguments.resolution:g}: must be from {nyquist:g} Å (Nyquist) up")
    with shown_progress() as progress:
        progress.start(1, "sharpening")
        found = sharpen_maps(
            HalfMaps(a.data, b.data, a.pixel_size),
            mask.data,
            corrected_curve(a, b, mask, arguments.seed),
            b_factor=arguments.b_factor,
            fit_from=arguments.fit_from,
            resolution=arguments.resolution,
        )
    table = guinier_table(found)
    with ExitStack() as stack:
        write_map(
            stack.enter_context(replacing(arguments.output)), found.volume, pixel_size=a.pixel_size,
            origin=a.origin,
        )  # fmt: skip
        if arguments.csv is not None:
            table.to_csv(stack.enter_context(replacing(arguments.csv)), index=False, float_format="%.6f")
        if arguments.plot is not None:
            from cryosweep.diagnostics import guinier_figure

            figure = guinier_figure(
                {str(name): column.to_numpy() for name, column in table.items()}, pixel_size=a.pixel_size,
                b_factor=found.b_factor, title=found.description,
            )  # fmt: skip
            suffix = arguments.plot.suffix.lower().removeprefix(".")
            figure.savefig(stack.enter_context(replacing(arguments.plot)), dpi=110, format=suffix)
    given = arguments.resolution is not None
    source = "as given" if given else f"corrected FSC under {arguments.mask} at 0.143"
    say(f"resolution {found.resolution:.2f} Å ({source})")
    say(found.description)
    for finding in found.findings:
        say(str(finding))
    say(
        f"{arguments.output}: {a.data.shape[-1]} px of {a.pixel_size:g} Å, FSC-weighted, "
        f"sharpened by {found.b_factor:.0f} Å^2, low-passed at {found.resolution:.2f} Å"
    )
    return 0
