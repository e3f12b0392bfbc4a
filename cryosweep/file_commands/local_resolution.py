"""The `local-resolution` command: resolution at each place of a map, and the map filtered by it."""

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
    length_of,
    shown_progress,
)
from cryosweep.file_commands.sharpen import (
    add_b_factor,
    add_half_maps,
    check_b_factor,
    corrected_curve,
    read_masked_halves,
)

if TYPE_CHECKING:
    from torch import Tensor

    from cryosweep.commands import Commands


def add_parser(commands: Commands) -> None:
    """Add the parser of this command."""
    parser = add_command(
        commands,
        "local-resolution",
        "local resolution of two half maps in a window that travels through the mask",
        "cryosweep local-resolution half_a.mrc half_b.mrc --mask mask.mrc -o local.mrc --plot local.png",
    )
    add_half_maps(parser)
    add_output(parser, "map of the resolution in Å (MRC); FILE.cxc beside it colours a surface in ChimeraX")
    parser.add_argument(
        "--window",
        metavar="LENGTH",
        help="full width of the soft window at half maximum, Å or px (default: 7 times the resolution)",
    )
    parser.add_argument(
        "--step", metavar="LENGTH", help="between windows, Å or px (default: 0.2 of the window)"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="of the FSC in a window (default: %(default)g)"
    )
    parser.add_argument(
        "--filtered-map",
        type=Path,
        metavar="FILE",
        help="map sharpened and low-passed at each place by its own resolution (MRC)",
    )
    add_b_factor(parser)
    add_plot(parser, "coloured slices and the distribution")
    parser.set_defaults(function=local_resolution)


def local_resolution(arguments: argparse.Namespace) -> int:
    """Write the map of the local resolution and a script that shows it; print its distribution in the mask.

    Raises:
        ValueError: the maps do not belong together, a number is out of range, or an output exists.
    """
    from cryosweep.diagnostics import local_resolution_figure, resolution_range
    from cryosweep.io.maps import replacing, write_map
    from cryosweep.local_resolution import WIDTH_PER_RESOLUTION, filter_locally
    from cryosweep.local_resolution import local_resolution as resolve
    from cryosweep.reconstruction import HalfMaps
    from cryosweep.sharpening import apply_b_factor, sharpen

    check_b_factor(arguments)
    check_plot(arguments.plot)
    if not 0.0 < arguments.threshold < 1.0:
        raise ValueError(f"--threshold {arguments.threshold:g}: must lie between 0 and 1")
    output: Path = arguments.output
    script = output.with_suffix(".cxc")
    named = (output, script, arguments.filtered_map, arguments.plot)
    inputs = [arguments.half_a, arguments.half_b, arguments.mask]
    check_outputs([path for path in named if path is not None], inputs, overwrite=arguments.overwrite)
    a, b, mask = read_masked_halves(arguments)
    pixel_size = a.pixel_size
    width, step = (
        None if text is None else length_of(flag, text, pixel_size)
        for flag, text in (("--window", arguments.window), ("--step", arguments.step))
    )
    if step == 0.0:
        raise ValueError("--step 0: must be above 0 Å")
    if width is not None and width > a.data.shape[-1] * pixel_size:
        box = a.data.shape[-1] * pixel_size
        raise ValueError(f"--window {arguments.window}: wider than the box of {box:g} Å; give less")
    half_maps = HalfMaps(a.data, b.data, pixel_size)
    with shown_progress() as progress:
        progress.start(1, "correlating in windows")
        sharpened = sharpen(
            half_maps, mask.data, corrected_curve(a, b, mask, arguments.seed), b_factor=arguments.b_factor,
            fit_from=arguments.fit_from,
        )  # fmt: skip
        found = resolve(
            a.data, b.data, mask.data, pixel_size=pixel_size, threshold=arguments.threshold, step=step,
            window_width=WIDTH_PER_RESOLUTION * sharpened.resolution if width is None else width,
        )  # fmt: skip
        finest, middle, coarsest, at_floor = found.shares(mask.data)
        filtered = filter_locally(
            apply_b_factor(
                0.5 * (a.data + b.data), sharpened.b_factor, resolution=float(found.resolution.min()),
                pixel_size=pixel_size,
            ),
            found.resolution,
            pixel_size=pixel_size,
        )  # fmt: skip
    shown = arguments.half_a if arguments.filtered_map is None else arguments.filtered_map
    inside = found.resolution[mask.data > 0.5].numpy()
    level = _level((a.data if arguments.filtered_map is None else filtered) * mask.data)
    with ExitStack() as stack:
        volumes = [(output, found.resolution)]
        if arguments.filtered_map is not None:
            volumes.append((arguments.filtered_map, filtered))
        for path, volume in volumes:
            write_map(stack.enter_context(replacing(path)), volume, pixel_size=pixel_size, origin=a.origin)
        stack.enter_context(replacing(script)).write_text(
            chimerax_script(shown, output, level=level, ends=resolution_range(inside)), encoding="utf-8"
        )
        if arguments.plot is not None:
            figure = local_resolution_figure(
                found.resolution.numpy(), filtered.numpy(), mask.data.numpy(), pixel_size=pixel_size,
                floor=found.floor,
                title=f"local resolution at FSC {found.threshold:g}, windows of {found.window_width:.0f} Å",
            )  # fmt: skip
            suffix = arguments.plot.suffix.lower().removeprefix(".")
            figure.savefig(stack.enter_context(replacing(arguments.plot)), dpi=100, format=suffix)
    say(
        f"{found.windows} windows, {found.window_width:.1f} Å wide and {found.step_px * pixel_size:.1f} Å "
        f"apart; FSC at {found.threshold:g}"
    )
    say(
        f"in the mask: median {middle:.2f} Å, 5 % finer than {finest:.2f} Å, 5 % coarser than "
        f"{coarsest:.2f} Å"
    )
    say(f"{100 * at_floor:.1f} % of it at the floor of {found.floor:.1f} Å, which means this or worse")
    say(
        f"the FSC of noise in one window scatters by {found.noise_at(middle):.2f} at {middle:.2f} Å; "
        f"the whole mask reads {sharpened.resolution:.2f} Å at 0.143"
    )
    finding = found.finding(mask.data)
    if finding is not None:
        say(str(finding))
    if arguments.filtered_map is not None:
        say(f"{arguments.filtered_map}: {sharpened.description}")
        for each in sharpened.findings:
            say(str(each))
    say(f"{output}; to see it: chimerax {script}")
    return 0


def _level(masked: Tensor) -> float:
    """A level that shows the molecule: a third of the 99th percentile of what the mask keeps."""
    import numpy as np

    inside = masked[masked != 0].numpy()
    return float(np.percentile(inside, 99.0)) / 3.0 if inside.size else 0.0


def chimerax_script(shown: Path, resolution: Path, *, level: float, ends: tuple[float, float]) -> str:
    """Commands for ChimeraX: the surface of one map, coloured by another from blue (fine) to vermilion."""
    import os

    from cryosweep.diagnostics import BLUE, VERMILION

    low, high = ends
    near, there = (os.path.relpath(path, resolution.parent) for path in (shown, resolution))
    colours = {low: BLUE, 0.5 * (low + high): "#F2F2F2", high: VERMILION}
    palette = ":".join(f"{value:.2f},{colour}" for value, colour in colours.items())
    key = " ".join(f"{colour}:{value:.1f}" for value, colour in colours.items())
    return (
        f'open "{near}" id 1\n'
        f'open "{there}" id 2\n'
        f"volume #1 style surface step 1 level {level:.6g}\n"
        f"hide #2 models\n"
        f"color sample #1 map #2 palette {palette}\n"
        f"key {key} numericLabelSpacing proportional\n"
        f'2dlabels text "local resolution (Å)" xpos 0.7 ypos 0.14 size 18\n'
        f"view\n"
    )
