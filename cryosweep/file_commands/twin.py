"""The `twin` command: simulated particles of known truth, as like those of a user as can be told."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from cryosweep.commands import add_command, say
from cryosweep.file_commands.shared import (
    add_device,
    add_output,
    add_particles,
    check_particle_grid,
    check_same_grid,
    chosen_device,
    filling,
    numbers,
    point_of,
    read_half_maps,
    read_mask_file,
    read_particle_file,
    read_volume,
    seeded,
    shown_progress,
)

if TYPE_CHECKING:
    from cryosweep.commands import Commands
    from cryosweep.io.maps import Map
    from cryosweep.io.particles import Particles
    from cryosweep.twin import TwinSettings


def add_parser(commands: Commands) -> None:
    """Add the parser of this command."""
    parser = add_command(
        commands,
        "twin",
        "simulate particles like yours, with the truth about them",
        "cryosweep twin run_data.star half1.mrc half2.mrc --domain head.mrc --rotation-spread 5 -o twin",
    )
    add_particles(parser)
    parser.add_argument(
        "maps", type=Path, nargs="+", metavar="MAP",
        help="both half maps of these particles, unfiltered; or one map, with --resolution",
    )  # fmt: skip
    parser.add_argument(
        "--domain",
        type=Path,
        required=True,
        metavar="MASK",
        help="mask of what moves, wide enough for its blur",
    )
    for flag, value, help in (
        ("--rotation-spread", 5.0, "degrees, SD per axis of its turns, assumed"),
        ("--shift-spread", 1.0, "Å, SD per axis of its hinge, assumed"),
        ("--pose-error-rotation", 1.0, "degrees, SD per axis, assumed"),
        ("--pose-error-shift", 1.0, "Å, the same of their shifts"),
    ):
        parser.add_argument(
            flag, type=float, default=value, metavar="N", help=f"{help} (default: %(default)s)"
        )
    parser.add_argument(
        "--hinge", metavar="X,Y,Z", help="Å, as a marker on the map (default: in the contact)"
    )
    parser.add_argument(
        "--resolution", type=float, metavar="N", help="Å, no finer signal (default: FSC of the half maps)"
    )
    parser.add_argument(
        "--mass-share", type=float, metavar="N", help="of the domain, 0 to 1 (default: by density)"
    )
    parser.add_argument(
        "--detail", choices=["body", "map"], default="body",
        help="of the domain where its motion blurs the map: power as of the body, or as is (default: body)",
    )  # fmt: skip
    parser.add_argument("--particles", type=int, metavar="N", help="take so many of the rows (default: all)")
    parser.add_argument("--snr", type=float, metavar="N", help="reads no images (default: measured on them)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: 0)")
    add_output(parser, "folder, new or empty", metavar="FOLDER")
    add_device(parser)
    parser.set_defaults(function=twin)


def twin(arguments: argparse.Namespace) -> int:
    """Write the twin of a data set into a folder: stack, STAR files, truth, and what was measured.

    Raises:
        ValueError: an input cannot be used, inputs do not belong together, or the folder holds something.
    """
    from cryosweep.diagnostics import slices_figure, twin_figure
    from cryosweep.reconstruction import HalfMaps
    from cryosweep.selection import nested_subset
    from cryosweep.twin import simulate_twin, spectra_of, twin_model

    _check_ranges(arguments)
    seeded(arguments.seed)
    device = chosen_device(arguments.device)
    maps = _maps(arguments)
    particles = _particles(arguments, maps[0])
    for path, map in zip(arguments.maps, maps, strict=True):
        check_particle_grid(path, map, particles)
    domain = read_mask_file(arguments.domain)
    check_same_grid(arguments.domain, domain, arguments.maps[0], maps[0])
    if arguments.particles is not None:
        try:
            rows = nested_subset(particles.half_sets, arguments.particles, seed=arguments.seed)
        except ValueError as error:
            raise ValueError(f"--particles {arguments.particles}: {error}") from error
        particles = particles.take(rows)
    settings = _settings(arguments, maps[0])
    data = [map.data.to(device) for map in maps]
    half_maps = HalfMaps(data[0], data[-1], particles.pixel_size)
    with shown_progress() as progress, filling(arguments.output, overwrite=arguments.overwrite) as making:
        progress.start(2 * len(particles), "simulating the twin")
        model = twin_model(
            particles, half_maps, domain.data.to(device), settings, device=device, advance=progress.advance
        )
        notes = simulate_twin(particles, model, settings, making, device=device, advance=progress.advance)
        spectra = twin_figure(
            **spectra_of(making), pixel_size=particles.pixel_size, resolution=model.resolution
        )
        spectra.savefig(making / "spectra.png", dpi=110)
        slices = slices_figure(
            (model.shapes["body"].density + model.shapes["domain"].density).numpy(),
            pixel_size=particles.pixel_size, fulcrum=model.hinge.tolist(),
            mask=(model.labels == 2).float().numpy(),
            title="The twin at rest, through the hinge; outlined is the domain that moves",
        )  # fmt: skip
        slices.savefig(making / "slices.png", dpi=110)
    size = particles.box_size
    say(f"{arguments.output}: {len(particles)} images of {size} px, {particles.pixel_size:g} Å per px")
    for note in notes:
        say(note)
    say("particles.star, particles.mrcs: the rows of your file with simulated images")
    say("truth_body.*, truth_domain.*, domains.mrc: truth; twin.json, spectra.png, slices.png: measured")
    return 0


def _check_ranges(arguments: argparse.Namespace) -> None:
    for flag, value, low, high in (
        ("--rotation-spread", arguments.rotation_spread, 0.0, 180.0),
        ("--shift-spread", arguments.shift_spread, 0.0, math.inf),
        ("--pose-error-rotation", arguments.pose_error_rotation, 0.0, 180.0),
        ("--pose-error-shift", arguments.pose_error_shift, 0.0, math.inf),
        ("--mass-share", arguments.mass_share, 0.001, 0.9),
        ("--particles", arguments.particles, 8, math.inf),
    ):
        if value is not None and not low <= value <= high:
            upper = "" if math.isinf(high) else f" to {high:g}"
            raise ValueError(f"{flag} {value:g}: must be from {low:g}{upper}")
    for flag, value in (("--snr", arguments.snr), ("--resolution", arguments.resolution)):
        if value is not None and not 0.0 < value < math.inf:
            raise ValueError(f"{flag} {value:g}: must be above 0")


def _maps(arguments: argparse.Namespace) -> tuple[Map, ...]:
    paths = arguments.maps
    if len(paths) > 2:
        raise ValueError(f"{len(paths)} maps are given; give both half maps, or one map")
    if len(paths) == 2:
        return read_half_maps(*paths)
    if arguments.resolution is None:
        raise ValueError(
            f"{paths[0]}: one map does not tell its resolution; give --resolution, or both half maps"
        )
    return (read_volume(paths[0]),)


def _particles(arguments: argparse.Namespace, map: Map) -> Particles:
    """The particles; without their images where the SNR is given."""
    box_size = None if arguments.snr is None else int(map.data.shape[-1])
    particles = read_particle_file(arguments, box_size=box_size)
    nyquist = 2.0 * particles.pixel_size
    if arguments.resolution is not None and arguments.resolution < nyquist:
        raise ValueError(f"--resolution {arguments.resolution:g}: lies beyond Nyquist, {nyquist:g} Å")
    return particles


def _settings(arguments: argparse.Namespace, map: Map) -> TwinSettings:
    from cryosweep.twin import TwinSettings

    hinge = None
    if arguments.hinge is not None:
        given = point_of("--hinge", arguments.hinge)
        if any(not 0.0 <= place < map.data.shape[-1] for place in map.to_px(given)):
            raise ValueError(
                f"--hinge {arguments.hinge}: lies outside the map, whose first voxel is at "
                f"{numbers(map.origin)} Å and whose box is {map.data.shape[-1] * map.pixel_size:g} Å wide; "
                "give Å as a marker on the map shows them"
            )
        hinge = map.from_centre(given)
    return TwinSettings(
        rotation_spread=arguments.rotation_spread,
        shift_spread=arguments.shift_spread,
        pose_error_rotation=arguments.pose_error_rotation,
        pose_error_shift=arguments.pose_error_shift,
        detail=arguments.detail,
        resolution=arguments.resolution,
        mass_share=arguments.mass_share,
        hinge=hinge,
        snr=arguments.snr,
        seed=arguments.seed,
    )
