"""The `consensus` command: poses of whole particles, and both half-maps at them."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cryosweep.commands import add_command, say
from cryosweep.file_commands import fsc
from cryosweep.file_commands.shared import (
    add_device,
    add_output,
    add_particles,
    check_file,
    check_particle_grid,
    chosen_device,
    filling,
    read_mask_file,
    read_particle_file,
    read_volume,
    shown_progress,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cryosweep.checkpoint import Checkpoint
    from cryosweep.commands import Commands
    from cryosweep.consensus import Consensus, DynamicMask
    from cryosweep.io.maps import Map
    from cryosweep.io.particles import Particles
    from cryosweep.refinement import RefinementSettings

RECORD_COLUMNS = (
    "iteration", "band", "resolution", "resolution_corrected", "rotation_change_median",
    "shift_change_median", "moved_median", "at_rotation_extent", "at_shift_extent", "log_posterior",
    "seconds",
)  # fmt: skip
CURVES = ("none", "spherical", "loose", "tight", "randomised", "corrected")


def add_parser(commands: Commands) -> None:
    """Add the parser of this command."""
    parser = add_command(
        commands,
        "consensus",
        "refine the poses of whole particles, from their poses or from nowhere",
        "cryosweep consensus run_data.star -o consensus --nonuniform --rotation-extent 10",
    )
    add_particles(parser)
    add_output(parser, "folder, new or empty", metavar="FOLDER")
    parser.add_argument(
        "--map", type=Path, metavar="FILE",
        help="map (MRC) to begin with (default: reconstructed from the poses)",
    )  # fmt: skip
    parser.add_argument(
        "--nonuniform", action="store_true", help="filter the references at each place for itself"
    )
    parser.add_argument("--scale", action="store_true", help="estimate a scale for each particle")
    parser.add_argument(
        "--mask", default="dynamic", metavar="MASK",
        help="dynamic (cut from the map), sphere (none) or a file (default: %(default)s)",
    )  # fmt: skip
    for flag, kind, value, help in (
        ("--rotation-extent", float, 10.0, "degrees; 180 searches all orientations"),
        ("--shift-extent", float, 8.0, "Å"),
        ("--iterations", int, 3, "at most"),
        ("--initial-lowpass", float, 20.0, "Å, what the first iteration sees"),
        ("--mask-starts", float, 12.0, "Å, resolution at which a dynamic mask replaces the sphere"),
    ):
        parser.add_argument(
            flag, type=kind, default=value, metavar="N", help=f"{help} (default: %(default)s)"
        )
    parser.add_argument(
        "--mask-cut", type=float, nargs=3, default=(0.2, 6.0, 14.0), metavar=("L", "N", "F"),
        help="1 to N Å from what exceeds L of the maximum, 0 from F (default: 0.2 6 14)",
    )  # fmt: skip
    add_device(parser)
    parser.set_defaults(function=consensus)


def consensus(arguments: argparse.Namespace) -> int:
    """Write refined poses, half maps, mask, curves, the record of the iterations and figures.

    After each iteration its state lies beside the folder, so that the same command goes on after a stop.

    Raises:
        ValueError: an input cannot be used, or the folder holds something.
    """
    from cryosweep.consensus import refine_consensus
    from cryosweep.reconstruction import HalfMaps, reconstruct_half_maps
    from cryosweep.refinement import RefinementSettings
    from cryosweep.regularisation import Regularisation

    folder: Path = arguments.output
    device = chosen_device(arguments.device)
    _check_ranges(arguments)
    settings = RefinementSettings(
        rotation_extent=arguments.rotation_extent,
        shift_extent=arguments.shift_extent,
        max_iterations=arguments.iterations,
        initial_lowpass=arguments.initial_lowpass,
        regularisation=Regularisation.nonuniform if arguments.nonuniform else Regularisation.wiener,
        scale=arguments.scale,
    )
    particles = read_particle_file(arguments, poses_needed=False)
    if "rlnAngleRot" not in particles.table and (arguments.rotation_extent < 180.0 or arguments.map is None):
        raise ValueError(
            f"{arguments.star}: has no angles; give --rotation-extent 180 and a --map to begin with"
        )
    if arguments.initial_lowpass < 2.0 * particles.pixel_size:
        raise ValueError(
            f"--initial-lowpass {arguments.initial_lowpass:g}: lies beyond Nyquist, "
            f"{2.0 * particles.pixel_size:g} Å"
        )
    map = _map_of(arguments.map, particles)
    mask = _mask_of(arguments, particles, device)
    checkpoint = _checkpoint(arguments, particles, settings, device)
    state = checkpoint.read()
    if state is not None:
        say(f"note: goes on after iteration {state.iteration}, which {checkpoint.path} holds")
    with shown_progress() as progress, filling(folder, overwrite=arguments.overwrite) as making:
        if map is not None:
            start = HalfMaps(map.data.to(device), map.data.to(device), particles.pixel_size)
        else:
            progress.start(len(particles), "reconstructing")
            start = reconstruct_half_maps(
                particles, particles.rotations, particles.shifts, device=device, advance=progress.advance
            )
        progress.start(len(particles) * (2 + settings.max_iterations), "refining")
        found = refine_consensus(
            particles, start, mask=mask, settings=settings, device=device, advance=progress.advance,
            resume=state, on_state=checkpoint.write,
        )  # fmt: skip
        progress.start(1, "writing")
        _write(making, particles, found, settings.rotation_extent, settings.shift_extent)
    checkpoint.remove()
    last, result = found.refinement.records[-1], found.refinement
    stop = result.stop.value.replace("refinement.max_iterations", "--iterations")
    say(f"{folder}: {len(result.records)} iterations; {stop}")
    say(
        f"median change of rotation {float(result.rotation_change.median()):.1f}°, of shift "
        f"{float(result.shift_change.median()):.1f} Å; {last.at_rotation_extent:.0%} and "
        f"{last.at_shift_extent:.0%} of the particles at the limit of the search\n"
    )
    curves = {name: getattr(found.curves, name).cpu() for name in CURVES if name != "randomised"}
    say(fsc.crossing_table(curves, particles.box_size, particles.pixel_size))
    return 0


def _checkpoint(
    arguments: argparse.Namespace, particles: Particles, settings: RefinementSettings, device: torch.device
) -> Checkpoint:
    """Where the state of this refinement is kept, and what tells it from that of any other."""
    from cryosweep.checkpoint import CHECKPOINT, Checkpoint
    from cryosweep.job.files import file_state
    from cryosweep.study.resume import code_digest
    from cryosweep.study.store import digest_file

    files = [arguments.star, arguments.map, Path(arguments.mask) if _is_file(arguments.mask) else None]
    told = {
        "settings": str(settings),
        "mask": "file" if _is_file(arguments.mask) else arguments.mask,
        "cut": [*arguments.mask_cut, arguments.mask_starts],
        "damping": arguments.ctf_damping,
        "half sets": hashlib.sha256(particles.half_sets.numpy().tobytes()).hexdigest(),
        "files": [None if path is None else digest_file(path) for path in files],
        "stacks": [file_state(stack) for stack in particles.stacks],
        "code": code_digest(),
        "device": device.type,
    }
    identity = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    folder = arguments.output.resolve()
    return Checkpoint(folder.with_name(f"{folder.name}.{CHECKPOINT}"), identity, "consensus")


def _is_file(mask: str) -> bool:
    return mask not in ("dynamic", "sphere")


def _check_ranges(arguments: argparse.Namespace) -> None:
    for flag, value, low, high in (
        ("--rotation-extent", arguments.rotation_extent, 0.0, 180.0),
        ("--shift-extent", arguments.shift_extent, 0.0, math.inf),
        ("--iterations", arguments.iterations, 1, 100),
        ("--mask-starts", arguments.mask_starts, 0.0, math.inf),
    ):
        if not low <= value <= high:
            upper = "" if math.isinf(high) else f" to {high:g}"
            raise ValueError(f"{flag} {value:g}: must be from {low:g}{upper}")


def _map_of(path: Path | None, particles: Particles) -> Map | None:
    """The map to begin with, on the grid of the particles."""
    if path is None:
        return None
    map = read_volume(path)
    check_particle_grid(path, map, particles)
    return map


def _mask_of(
    arguments: argparse.Namespace, particles: Particles, device: torch.device
) -> Tensor | DynamicMask | None:
    from cryosweep.consensus import DynamicMask

    if arguments.mask == "sphere":
        return None
    if arguments.mask == "dynamic":
        level, near, far = arguments.mask_cut
        return DynamicMask(level, near, far, arguments.mask_starts)
    path = Path(arguments.mask)
    check_file(path)
    mask = read_mask_file(path)
    check_particle_grid(path, mask, particles)
    return mask.data.to(device)


def _write(
    folder: Path, particles: Particles, found: Consensus, rotation_extent: float, shift_extent: float,
) -> None:  # fmt: skip
    """Everything about a consensus into `folder`."""
    from cryosweep.diagnostics import gsfsc_figure, pose_changes_figure, slices_figure
    from cryosweep.io.maps import write_map
    from cryosweep.io.particles import write_particles
    from cryosweep.reconstruction import fsc_weighted
    from cryosweep.refinement import last_common_shell
    from cryosweep.resolution import crossing

    result, curves, pixel_size = found.refinement, found.curves, particles.pixel_size
    a, b = (half.cpu() for half in found.half_maps.pair)
    own = curves.corrected.cpu()
    mean = fsc_weighted(found.half_maps, curves.corrected, last_shell=last_common_shell(own)).cpu()
    for name, volume in (("half_a", a), ("half_b", b), ("map", mean), ("mask", found.mask.cpu())):
        write_map(folder / f"{name}.mrc", volume, pixel_size=pixel_size)
    write_particles(
        found.particles, folder / "particles.star", rotations=result.rotations, shifts=result.shifts,
        extra={
            "cryosweepRotationSd": result.rotation_sd.numpy().round(4),
            "cryosweepShiftSdAngst": result.shift_sd.numpy().round(4),
        },
    )  # fmt: skip
    tables = {name: getattr(curves, name).cpu() for name in CURVES}
    fsc.write_curves(folder / "fsc.csv", tables, particles.box_size, pixel_size)
    records = [asdict(record) for record in result.records]
    fsc.write_rows(folder / "iterations.csv", [{key: row[key] for key in RECORD_COLUMNS} for row in records])
    crossings = {
        name: crossing(curve, 0.143, box_size=particles.box_size, pixel_size=pixel_size)
        for name, curve in tables.items()
        if name != "randomised"
    }
    last = result.records[-1]
    figures = {
        "fsc": gsfsc_figure(
            {name: curve.numpy() for name, curve in tables.items()},
            frequency=curves.frequency.cpu().numpy(), pixel_size=pixel_size, crossings=crossings,
            randomised_from=curves.randomised_from, title="half-map FSC of the consensus",
        ),
        "slices": slices_figure(
            mean.numpy(), pixel_size=pixel_size, fulcrum=[0.0, 0.0, 0.0], mask=found.mask.cpu().numpy(),
            title="consensus",
        ),
        "pose_changes": pose_changes_figure(
            result.rotation_change.numpy(), result.shift_change.numpy(), rotation_extent=rotation_extent,
            shift_extent=shift_extent, at_rotation_extent=last.at_rotation_extent,
            at_shift_extent=last.at_shift_extent,
        ),
    }  # fmt: skip
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=110)
