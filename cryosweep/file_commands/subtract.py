"""The `subtract` command: a stack and STAR file of particles with part of the complex taken out."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryosweep.commands import add_command, say
from cryosweep.file_commands.shared import (
    Vector,
    add_device,
    add_output,
    check_file,
    check_particle_grid,
    check_same_grid,
    chosen_device,
    filling,
    read_mask_file,
    read_volume,
    shown_progress,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cryosweep.commands import Commands
    from cryosweep.io.maps import Map
    from cryosweep.io.particles import Particles
    from cryosweep.progress import Progress
    from cryosweep.reconstruction import HalfMaps
    from cryosweep.subtraction import Window

Voxel = tuple[int, int, int]


@dataclass(frozen=True)
class _Frame:
    """The box that is written: its centre in px from the old one, None if it stays, its size, its origin."""

    centre: Voxel | None
    box_size: int
    origin: Vector


def add_parser(commands: Commands) -> None:
    """Add the parser of this command."""
    parser = add_command(
        commands,
        "subtract",
        "take what lies outside a domain out of the images",
        "cryosweep subtract run_data.star --half-maps run_half1_unfil.mrc run_half2_unfil.mrc "
        "--keep head.mrc -o head_only",
    )
    parser.add_argument("star", type=Path, help="particles with poses and CTF parameters (RELION STAR file)")
    parser.add_argument(
        "--half-maps",
        type=Path,
        nargs=2,
        metavar=("A", "B"),
        help="unfiltered half maps of half sets 1 and 2 (default: reconstructed from the particles)",
    )
    parser.add_argument("--keep", type=Path, metavar="MASK", help="mask of the domain, which stays")
    parser.add_argument(
        "--remove",
        type=Path,
        metavar="MASK",
        help="mask of what goes; with --keep only what that leaves of it",
    )
    add_output(parser, "folder of the new stack, STAR file, half maps and masks", metavar="FOLDER")
    parser.add_argument(
        "--filter",
        choices=["fsc", "none"],
        default="fsc",
        help="of the half maps that are taken out: weighted by their FSC, or as they are "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--recentre", action="store_true", help="cut the images about the centre of mass of --keep"
    )
    parser.add_argument("--box-size", type=int, metavar="PX", help="of the new images (default: as before)")
    parser.add_argument(
        "--window",
        metavar="INNER,OUTER",
        help="of the refinement that made the half maps, if it has one (CryoSPARC: 0.85,0.99); the images "
        "are multiplied by it too",
    )
    parser.add_argument("--image-folder", type=Path, metavar="FOLDER", help="as in cryosweep reconstruct")
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
    parser.set_defaults(function=subtract)


def subtract(arguments: argparse.Namespace) -> int:
    """Write subtracted images, their table, the half maps they make, and the masks, all in one frame.

    Raises:
        ValueError: an input cannot be used, inputs do not belong together, or the output exists.
    """
    from cryosweep.fourier import cut_cube
    from cryosweep.io.maps import write_map
    from cryosweep.reconstruction import reconstruct_half_maps
    from cryosweep.subtraction import check_half_maps, rest_of, share_left, subtracted, write_subtracted

    folder: Path = arguments.output
    device = chosen_device(arguments.device)
    window = _window(arguments.window)
    particles = _particles(arguments)
    kept, removed, origin = _masks(arguments, particles)
    frame = _frame(arguments, particles, kept, origin)
    with shown_progress() as progress, filling(folder, overwrite=arguments.overwrite) as making:
        half_maps = _half_maps(arguments, particles, device, progress)
        removed = removed.to(device)
        findings = check_half_maps(particles, half_maps, device=device) if arguments.half_maps else ()
        rest = rest_of(half_maps, removed, filter=arguments.filter, window=window)
        lacking = subtracted(particles, rest, device=device, window=window)
        progress.start(len(particles), "subtracting")
        write_subtracted(
            lacking, making, centre_px=frame.centre, box_size=frame.box_size, advance=progress.advance
        )
        progress.start(len(particles), "reconstructing")
        after = reconstruct_half_maps(
            lacking, particles.rotations, particles.shifts, device=device, advance=progress.advance
        )
        shadow = share_left(half_maps, after, removed)
        volumes = {"half_a": after.half_a, "half_b": after.half_b, "removed": removed}
        if kept is not None:
            volumes["mask"] = kept
        for name, volume in volumes.items():
            cut = cut_cube(volume.cpu(), frame.centre or (0, 0, 0), frame.box_size)
            write_map(making / f"{name}.mrc", cut, pixel_size=particles.pixel_size, origin=frame.origin)
    say(f"{folder}: {len(particles)} images of {frame.box_size} px, {particles.pixel_size:g} Å per px")
    if frame.centre is not None:
        x, y, z = frame.centre
        say(f"the new box centre lies {x}, {y}, {z} px from the old one")
    say(f"removed: {float(removed.double().sum()) * particles.pixel_size**3:.0f} Å^3 of the half maps")
    say(f"left of it in the map of the subtracted images: {shadow:.1%} of the power the half maps share")
    say("particles.star, particles.mrcs: for the next refinement; half_a.mrc, half_b.mrc: the map they make")
    for finding in findings:
        say(f"note: {finding}")
    return 0


def _window(text: str | None) -> Window | None:
    from cryosweep.subtraction import Window

    if text is None:
        return None
    try:
        inner, outer = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"--window {text}: give two numbers, for example 0.85,0.99") from error
    return Window(inner, outer)


def _particles(arguments: argparse.Namespace) -> Particles:
    from cryosweep.io.particles import read_particles

    check_file(arguments.star)
    particles = read_particles(
        arguments.star,
        image_folder=arguments.image_folder,
        half_set_seed=arguments.half_set_seed,
        ctf_damping=arguments.ctf_damping,
    )
    if arguments.half_maps and "rlnRandomSubset" not in particles.table.columns:
        raise ValueError(
            f"{arguments.star}: no rlnRandomSubset, so which of the two half maps an image belongs to is not "
            "known; give the STAR file of the refinement that made them, or leave out --half-maps"
        )
    for note in particles.notes:
        say(f"note: {note}")
    return particles


def _half_maps(
    arguments: argparse.Namespace, particles: Particles, device: torch.device, progress: Progress
) -> HalfMaps:
    from cryosweep.reconstruction import HalfMaps, reconstruct_half_maps

    if arguments.half_maps:
        first, second = arguments.half_maps
        if first.resolve() == second.resolve():
            raise ValueError(f"{second}: both half maps are this file; give one of each half set")
        a, b = (_on_grid(path, read_volume(path), particles).data.to(device) for path in (first, second))
        return HalfMaps(a, b, particles.pixel_size)
    progress.start(len(particles), "reconstructing the half maps")
    return reconstruct_half_maps(
        particles, particles.rotations, particles.shifts, device=device, advance=progress.advance
    )


def _masks(arguments: argparse.Namespace, particles: Particles) -> tuple[Tensor | None, Tensor, Vector]:
    """What is kept, if that was said, the share of each voxel that is removed, and the origin of the box."""
    from cryosweep.subtraction import share_removed

    roles = [(role, path) for role, path in (("keep", arguments.keep), ("remove", arguments.remove)) if path]
    if not roles:
        raise ValueError(
            "say what the mask means: --keep MASK (the domain, as in RELION) or --remove MASK (what goes, as "
            "in CryoSPARC)"
        )
    maps = {role: _on_grid(path, read_mask_file(path), particles) for role, path in roles}
    if len(maps) == 2:
        check_same_grid(arguments.keep, maps["keep"], arguments.remove, maps["remove"])
    removed: Tensor | None = None
    for role, path in roles:
        try:
            share = share_removed(maps[role].data, role)  # pyright: ignore[reportArgumentType]
        except ValueError as error:
            raise ValueError(f"--{role} {path}: {error}") from error
        removed = share if removed is None else share_removed(removed * share, "remove")
    assert removed is not None
    first = maps[roles[0][0]]
    return (maps["keep"].data if "keep" in maps else None), removed, first.origin


def _on_grid(path: Path, map: Map, particles: Particles) -> Map:
    check_particle_grid(path, map, particles)
    return map


def _frame(
    arguments: argparse.Namespace, particles: Particles, kept: Tensor | None, origin: Vector
) -> _Frame:
    """Where the new box lies; its maps keep their place in the frame of the mask."""
    from cryosweep.mask import centre_of_mass

    old = particles.box_size
    size: int = arguments.box_size or old
    if not 8 <= size <= old:
        raise ValueError(
            f"--box-size {arguments.box_size}: must be from 8 px up to the {old} px of the images"
        )
    if arguments.box_size is not None and size % 2:
        raise ValueError(f"--box-size {size}: RELION's boxes are even; give an even number of px")
    if not arguments.recentre:
        move = ((old // 2 - size // 2) * particles.pixel_size,) * 3
        return _Frame(None, size, _moved(origin, move))
    if kept is None:
        raise ValueError("--recentre needs --keep: the images are cut about the centre of mass of that mask")
    x, y, z = (round(float(value)) for value in centre_of_mass(kept))
    first = tuple((value + old // 2 - size // 2) * particles.pixel_size for value in (x, y, z))
    return _Frame((x, y, z), size, _moved(origin, first))


def _moved(origin: Vector, move: tuple[float, ...]) -> Vector:
    x, y, z = (value + step for value, step in zip(origin, move, strict=True))
    return x, y, z
