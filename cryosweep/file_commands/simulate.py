"""The `simulate` command: particles of the embedded ribosome with known truth."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cryosweep.commands import add_command, say
from cryosweep.file_commands.shared import add_device, add_output, chosen_device, filling, shown_progress

if TYPE_CHECKING:
    from cryosweep.commands import Commands


def add_parser(commands: Commands) -> None:
    """Add the parser of this command."""
    parser = add_command(
        commands,
        "simulate",
        "simulate particles of a ribosome whose head, foot and arm move, with the truth about them",
        "cryosweep simulate -o ribosome --particles 1200 --snr 0.1",
    )
    add_output(parser, "folder, new or empty", metavar="FOLDER")
    for flag, kind, value, help in (
        ("--particles", int, 1200, "number of images"),
        ("--box-size", int, 96, "px, even"),
        ("--pixel-size", float, 3.5, "Å per px"),
        ("--snr", float, 0.1, "variance of the signal over variance of the noise"),
        ("--scale-spread", float, 0.0, "standard deviation of the particles' own contrast"),
        ("--seed", int, 0, "of motion, poses, defocus and noise"),
    ):
        parser.add_argument(flag, type=kind, default=value, help=f"{help} (default: %(default)s)")
    parser.add_argument(
        "--head-mass", type=float, metavar="KDA", help="of the head that there are, nearest to its centre"
    )
    add_device(parser)
    parser.set_defaults(function=simulate)


def simulate(arguments: argparse.Namespace) -> int:
    """Write simulated particles and the truth about them into a folder.

    Raises:
        ValueError: a setting is impossible, or the folder holds something.
    """
    from cryosweep.simulate import SimulationSettings
    from cryosweep.simulate import simulate as simulate_particles

    folder: Path = arguments.output
    if arguments.box_size % 2:
        raise ValueError(
            f"--box-size {arguments.box_size}: RELION's boxes are even; give an even number of px"
        )
    settings = SimulationSettings(
        particles=arguments.particles,
        box_size=arguments.box_size,
        pixel_size=arguments.pixel_size,
        snr=arguments.snr,
        scale_spread=arguments.scale_spread,
        seed=arguments.seed,
        head_mass=arguments.head_mass,
    )
    device = chosen_device(arguments.device)
    with shown_progress() as progress, filling(folder, overwrite=arguments.overwrite) as making:
        progress.start(settings.particles, "simulating")
        data = simulate_particles(settings, making, device=device, advance=progress.advance)
    say(f"{folder}: {settings.particles} images of {settings.box_size} px, {settings.pixel_size:g} Å per px")
    say(f"variance of the signal {data.signal_variance:.4g}, of the noise {data.noise_variance:.4g}")
    say(
        "particles.star, particles.mrcs: what a consensus refinement leaves, the poses of the body with error"
    )
    say("truth_*.star, truth_*.mrc, domains.mrc, simulation.json: true poses, densities and settings")
    return 0
