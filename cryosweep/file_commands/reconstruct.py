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
    check_file,
    check_outputs,
    chosen_device,
    shown_progress,
)

if TYPE_CHECKING:
    from cryosweep.commands import Commands


def add_parser(commands: Commands) -> None:
    """Add the parser of this command."""
    parser = add_command(
        commands,
        "reconstruct",
        "reconstruct both half maps at the poses of a STAR file",
        "cryosweep reconstruct run_data.star -o recon/run --image-folder Extract/job012",
    )
    parser.add_argument("star", type=Path, help="particles with poses and CTF parameters (RELION STAR file)")
    add_output(
        parser,
        "PREFIX of PREFIX_half_a.mrc, PREFIX_half_b.mrc (unfiltered) and PREFIX_fsc.csv",
        metavar="PREFIX",
    )
    parser.add_argument(
        "--image-folder",
        type=Path,
        metavar="FOLDER",
        help="folder of the image stacks (default: looked for from the STAR file upwards)",
    )
    parser.add_argument(
        "--ctf-damping",
        choices=["relion", "absolute", "none"],
        default="relion",
        help="what B-factor and scale columns do to the CTF (default: %(default)s)",
    )
    parser.add_argument(
        "--half-set-seed",
        type=int,
        default=0,
        metavar="N",
        help="of the split where the file has no rlnRandomSubset (default: %(default)s)",
    )
    add_device(parser)
    parser.set_defaults(function=reconstruct)


def reconstruct(arguments: argparse.Namespace) -> int:
    """Write unfiltered half maps and their FSC; print what resolution they reach.

    Raises:
        ValueError: the particles cannot be used, or an output exists.
    """
    from cryosweep.io.maps import replacing, write_map
    from cryosweep.io.particles import read_particles
    from cryosweep.reconstruction import reconstruct_half_maps

    prefix: Path = arguments.output
    outputs = [prefix.with_name(prefix.name + end) for end in ("_half_a.mrc", "_half_b.mrc", "_fsc.csv")]
    check_outputs(outputs, [arguments.star], overwrite=arguments.overwrite)
    device = chosen_device(arguments.device)
    check_file(arguments.star)
    try:
        particles = read_particles(
            arguments.star,
            image_folder=arguments.image_folder,
            half_set_seed=arguments.half_set_seed,
            ctf_damping=arguments.ctf_damping,
        )
    except ValueError as error:
        raise ValueError(_as_flags(str(error))) from error
    for note in particles.notes:
        say(f"note: {_as_flags(note)}")
    with shown_progress() as progress:
        progress.start(len(particles), "reconstructing")
        half_maps = reconstruct_half_maps(
            particles, particles.rotations, particles.shifts, device=device, advance=progress.advance
        )
    a, b = (half.cpu() for half in half_maps.pair)
    curves = fsc.curves_without_mask(a, b)
    with ExitStack() as stack:
        files = [stack.enter_context(replacing(path)) for path in outputs]
        for path, half in zip(files, (a, b), strict=False):
            write_map(path, half, pixel_size=particles.pixel_size)
        fsc.write_curves(files[2], curves, particles.box_size, particles.pixel_size)
    counts = [int((particles.half_sets == half).sum()) for half in (0, 1)]
    say(f"{outputs[0]}, {outputs[1]}: {particles.box_size} px of {particles.pixel_size:g} Å")
    say(f"{len(particles)} particles, {counts[0]} and {counts[1]} in the half sets; curves in {outputs[2]}\n")
    say(fsc.crossing_table(curves, particles.box_size, particles.pixel_size))
    return 0


def _as_flags(text: str) -> str:
    """What readers say about configuration keys, in terms of the options of `reconstruct`."""
    return text.replace("data.ctf_damping=", "--ctf-damping ").replace("data.image_folder", "--image-folder")
