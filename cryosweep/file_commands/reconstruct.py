"""The `reconstruct` command: half-maps from a STAR file."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from cryosweep.commands import add_command, say
from cryosweep.file_commands import fsc
from cryosweep.file_commands.shared import (
    add_device,
    add_output,
    add_particles,
    check_outputs,
    check_particle_grid,
    chosen_device,
    read_mask_file,
    read_particle_file,
    seeded,
    shown_progress,
)

if TYPE_CHECKING:
    from cryosweep.commands import Commands

CURVES = ("none", "spherical", "loose", "tight", "randomised", "corrected")


def add_parser(commands: Commands) -> None:
    """Add the parser of this command."""
    parser = add_command(
        commands,
        "reconstruct",
        "reconstruct both half maps at the poses of a STAR file, with their five FSC curves",
        "cryosweep reconstruct run_data.star -o recon/run --image-folder Extract/job012",
    )
    add_particles(parser)
    add_output(
        parser,
        "PREFIX of PREFIX_half_a.mrc, PREFIX_half_b.mrc (unfiltered), PREFIX_mask.mrc and PREFIX_fsc.csv",
        metavar="PREFIX",
    )
    parser.add_argument(
        "--mask", type=Path, help="mask (MRC) of the tight curve (default: cut from the map, and written)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random phases (default: %(default)s)")
    add_device(parser)
    parser.set_defaults(function=reconstruct)


def reconstruct(arguments: argparse.Namespace) -> int:
    """Write unfiltered half maps and their FSC curves; print what resolution they reach.

    Raises:
        ValueError: the particles cannot be used, or an output exists.
    """
    from cryosweep.consensus import automatic_mask, consensus_curves
    from cryosweep.io.maps import replacing, write_map
    from cryosweep.reconstruction import HalfMaps, reconstruct_half_maps

    prefix: Path = arguments.output
    ends = ["_half_a.mrc", "_half_b.mrc", "_fsc.csv"] + ["_mask.mrc"] * (arguments.mask is None)
    outputs = [prefix.with_name(prefix.name + end) for end in ends]
    inputs = [path for path in (arguments.star, arguments.mask) if path is not None]
    check_outputs(outputs, inputs, overwrite=arguments.overwrite)
    device = chosen_device(arguments.device)
    seeded(arguments.seed)
    particles = read_particle_file(arguments)
    pixel_size, box_size = particles.pixel_size, particles.box_size
    given = None
    if arguments.mask is not None:
        given = read_mask_file(arguments.mask)
        check_particle_grid(arguments.mask, given, particles)
    with shown_progress() as progress:
        progress.start(len(particles), "reconstructing")
        made = reconstruct_half_maps(
            particles, particles.rotations, particles.shifts, device=device, advance=progress.advance
        )
        progress.start(1, "correlating")
        half_maps = HalfMaps(made.half_a.cpu(), made.half_b.cpu(), pixel_size)
        mask = automatic_mask(half_maps) if given is None else given.data
        found = consensus_curves(half_maps, mask, seed=arguments.seed)
    curves = {name: getattr(found, name) for name in CURVES}
    with ExitStack() as stack:
        files = [stack.enter_context(replacing(path)) for path in outputs]
        for path, half in zip(files, half_maps.pair, strict=False):
            write_map(path, half, pixel_size=pixel_size)
        fsc.write_curves(files[2], curves, box_size, pixel_size)
        if given is None:
            write_map(files[3], mask, pixel_size=pixel_size)
    counts = [int((particles.half_sets == half).sum()) for half in (0, 1)]
    say(f"{outputs[0]}, {outputs[1]}: {box_size} px of {pixel_size:g} Å")
    say(f"{len(particles)} particles, {counts[0]} and {counts[1]} in the half sets; curves in {outputs[2]}")
    if given is None:
        share = float((mask > 0.5).double().mean())
        say(f"{outputs[3]}: the mask of the tight curve, {100 * share:.1f} % of the box")
    shown = {name: curve for name, curve in curves.items() if name != "randomised"}
    say("\n" + fsc.crossing_table(shown, box_size, pixel_size))
    say(fsc.about_randomisation(found))
    return 0
