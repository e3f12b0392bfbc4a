"""The `fsc` command: FSC curves of two half-maps, as numbers and as a figure."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
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
    from cryosweep.resolution import FscCurves

THRESHOLDS = (0.143, 0.5)


def add_parser(commands: Commands) -> None:
    """Add the parser of this command."""
    parser = add_command(
        commands,
        "fsc",
        "Fourier shell correlation of two half maps: five curves under a mask, two without",
        "cryosweep fsc run_half_a.mrc run_half_b.mrc --mask mask.mrc -o fsc.csv --plot fsc.png",
    )
    parser.add_argument("half_a", type=Path, help="unfiltered half map (MRC)")
    parser.add_argument("half_b", type=Path, help="the other one")
    parser.add_argument("--mask", type=Path, help="mask (MRC) on the grid of the half maps")
    add_output(parser, "table of the curves (CSV), one row a shell")
    add_plot(parser, "the curves")
    parser.add_argument("--seed", type=int, default=0, help="of the random phases (default: %(default)s)")
    parser.set_defaults(function=fsc)


def fsc(arguments: argparse.Namespace) -> int:
    """Write the FSC curves of two half maps and print where each falls below 0.143 and 0.5.

    Raises:
        ValueError: the maps do not belong together, or an output exists.
    """
    from cryosweep.io.maps import replacing
    from cryosweep.resolution import five_curves
    from cryosweep.study.findings import told
    from cryosweep.study.review import review_curves

    plot: Path | None = arguments.plot
    check_plot(plot)
    outputs = [path for path in (arguments.output, plot) if path is not None]
    inputs = [path for path in (arguments.half_a, arguments.half_b, arguments.mask) if path is not None]
    check_outputs(outputs, inputs, overwrite=arguments.overwrite)
    a, b = read_half_maps(arguments.half_a, arguments.half_b)
    box_size, pixel_size = int(a.data.shape[-1]), a.pixel_size
    found: FscCurves | None = None
    chosen: Map | None = None
    with shown_progress() as progress:
        progress.start(1, "correlating")
        if arguments.mask is None:
            curves = curves_without_mask(a.data, b.data)
        else:
            chosen = read_mask_file(arguments.mask)
            check_same_grid(arguments.mask, chosen, arguments.half_a, a)
            generator = seeded(arguments.seed)
            found = five_curves(a.data, b.data, chosen.data, pixel_size=pixel_size, generator=generator)
            names = ("none", "spherical", "loose", "tight", "randomised", "corrected")
            curves = {name: getattr(found, name) for name in names}
    with ExitStack() as stack:
        files = [stack.enter_context(replacing(path)) for path in outputs]
        write_curves(files[0], curves, box_size, pixel_size)
        if plot is not None:
            _draw_curves(files[1], plot.suffix.lower(), curves, found, box_size, pixel_size)
    say(
        crossing_table(
            {name: curve for name, curve in curves.items() if name != "randomised"}, box_size, pixel_size
        )
    )
    if found is not None and chosen is not None:
        say(about_randomisation(found))
        say(told(review_curves(found, chosen.data)))
    return 0


def curves_without_mask(half_a: Tensor, half_b: Tensor) -> dict[str, Tensor]:
    """Curves of two half-maps (d, d, d) that need no mask file: unmasked and in a soft sphere."""
    from cryosweep.mask import spherical_mask
    from cryosweep.resolution import fsc as correlate

    radius = half_a.shape[-1] / 2.0
    sphere = spherical_mask(half_a.shape[-1], outer_px=radius, inner_px=0.85 * radius)
    return {"none": correlate(half_a, half_b), "spherical": correlate(half_a * sphere, half_b * sphere)}


def about_randomisation(curves: FscCurves) -> str:
    """From which shell on phases were random, and what that means for the corrected curve."""
    first, last = curves.randomised_from, curves.none.numel() - 1
    said = f"phases random from shell {first} ({curves.box_size * curves.pixel_size / first:.2f} Å)"
    if first == 1:
        return f"{said}: no shell keeps its phases, so corrected is hardly stricter than tight"
    if first == last:
        return f"{said}: the unmasked curve stays above 0.8 up to there, so corrected equals tight"
    return said


def crossing_table(curves: Mapping[str, Tensor], box_size: int, pixel_size: float) -> str:
    """Resolution of each curve at each threshold: `<` if it never falls below, `>` if it starts below."""
    from cryosweep.resolution import crossing, first_shell_below

    rows = [f"{'mask':<10}" + "".join(f"{f'at {threshold:g}':>12}" for threshold in THRESHOLDS)]
    for name, curve in curves.items():
        cells: list[str] = []
        for threshold in THRESHOLDS:
            shell = first_shell_below(curve, threshold)
            sign = "<" if shell == curve.numel() else ">" if shell == 1 else ""
            cells.append(
                f"{sign}{crossing(curve, threshold, box_size=box_size, pixel_size=pixel_size):.2f} Å"
            )
        rows.append(f"{name:<10}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(rows)


def write_curves(path: Path, curves: Mapping[str, Tensor], box_size: int, pixel_size: float) -> None:
    """Write curves (n_shells,) by name as CSV, one row a shell."""
    import pandas as pd

    table = pd.DataFrame({name: curve.numpy() for name, curve in curves.items()})
    table.insert(0, "frequency", table.index.to_numpy() / (box_size * pixel_size))
    table.insert(0, "shell", table.index.to_numpy())
    table.to_csv(path, index=False, float_format="%.6f")


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows that share their keys as CSV."""
    import pandas as pd

    pd.DataFrame(list(rows)).to_csv(path, index=False)


def _draw_curves(
    path: Path,
    suffix: str,
    curves: Mapping[str, Tensor],
    found: FscCurves | None,
    box_size: int,
    pixel_size: float,
) -> None:
    import numpy as np

    from cryosweep.diagnostics import gsfsc_figure
    from cryosweep.resolution import crossing

    count = next(iter(curves.values())).numel()
    figure = gsfsc_figure(
        {name: curve.numpy() for name, curve in curves.items()},
        frequency=np.arange(count) / (box_size * pixel_size),
        pixel_size=pixel_size,
        crossings={
            name: crossing(curve, 0.143, box_size=box_size, pixel_size=pixel_size)
            for name, curve in curves.items()
            if name != "randomised"
        },
        randomised_from=None if found is None else found.randomised_from,
        title="FSC of the half maps",
    )
    figure.savefig(path, dpi=110, format=suffix.removeprefix("."))
