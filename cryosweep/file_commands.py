"""The commands that run a single stage on files, for work beside RELION, CryoSPARC and ChimeraX.

A command looks at everything it was given before long work starts, and its files appear when all of them are
written: one that fails leaves nothing behind. An existing file is replaced only when the user says so.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cryosweep.commands import add_command, say

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cryosweep.commands import Commands
    from cryosweep.io.maps import Map
    from cryosweep.progress import Progress
    from cryosweep.resolution import FscCurves

Vector = tuple[float, float, float]

THRESHOLDS = (0.143, 0.5)
PLOT_SUFFIXES = (".png", ".pdf", ".svg")
# Headers are rounded: maps on one grid may differ by this share in pixel size and by this many px in origin.
SAME_PIXEL_SIZE = 1e-3
SAME_ORIGIN_PX = 0.5


def add_parsers(commands: Commands) -> None:
    """Add a parser for each command; `function` of what it parses runs it and returns the exit status."""
    _add_mask(commands)
    _add_fulcrum(commands)
    _add_reconstruct(commands)
    _add_fsc(commands)
    _add_simulate(commands)


# ---- mask ----


def _add_mask(commands: Commands) -> None:
    parser = add_command(
        commands,
        "mask",
        "cut a soft mask from a map: threshold, dilate, pad softly",
        "cryosweep mask map.mrc -o mask.mrc --threshold 0.05 --dilation-radius 5px --soft-padding-width 50A",
    )
    parser.add_argument("map", type=Path, help="map (MRC) that shows the region and little else")
    _add_output(parser, "the mask (MRC), on the grid of the map")
    parser.add_argument(
        "--threshold", type=float, required=True, metavar="VALUE", help="voxels above it are inside"
    )
    parser.add_argument(
        "--threshold-unit",
        choices=["absolute", "fraction"],
        default="absolute",
        help="map units, or a fraction of the 99.9th percentile of the map (default: %(default)s)",
    )
    parser.add_argument("--dilation-radius", required=True, metavar="LENGTH", help="Å as 7 or 7A, or 5px")
    parser.add_argument(
        "--soft-padding-width",
        required=True,
        metavar="LENGTH",
        help="of the cosine edge outside the dilated region",
    )
    parser.add_argument(
        "--smoothing",
        default="0",
        metavar="LENGTH",
        help="sigma of a Gaussian applied to the map first (default: none)",
    )
    parser.add_argument(
        "--resolution",
        type=float,
        metavar="Å",
        help="of the map to be masked; the check of the padding assumes it (default: Nyquist)",
    )
    parser.set_defaults(function=mask)


def mask(arguments: argparse.Namespace) -> int:
    """Write a soft mask and say where it lies, how large it is and what is questionable about it.

    Raises:
        ValueError: an input cannot be used, or the output exists.
    """
    from cryosweep.fourier import gaussian_filter
    from cryosweep.io.maps import write_map
    from cryosweep.mask import centre_of_mass, check_mask, soft_mask, threshold_of

    output: Path = arguments.output
    _check_outputs([output], [arguments.map], overwrite=arguments.overwrite)
    source = _read(arguments.map)
    pixel_size, box_size = source.pixel_size, int(source.data.shape[-1])
    dilation = _length("--dilation-radius", arguments.dilation_radius, pixel_size)
    padding = _length("--soft-padding-width", arguments.soft_padding_width, pixel_size)
    smoothing = _length("--smoothing", arguments.smoothing, pixel_size)
    resolution: float = 2.0 * pixel_size if arguments.resolution is None else arguments.resolution
    if not 0.0 < resolution < math.inf:
        raise ValueError(f"--resolution {resolution:g}: must be above 0 Å")
    with _progress() as progress:
        progress.start(1, "masking")
        base = source.data
        if smoothing > 0.0:
            base = gaussian_filter(base, sigma=smoothing, pixel_size=pixel_size)
        threshold = threshold_of(base, arguments.threshold, unit=arguments.threshold_unit)
        made = soft_mask(
            base,
            threshold=threshold,
            dilation_radius_px=dilation / pixel_size,
            soft_padding_width_px=padding / pixel_size,
        )
        findings = check_mask(made, pixel_size=pixel_size, resolution=resolution, soft_padding_width=padding)
        write_map(output, made, pixel_size=pixel_size, origin=source.origin)
    total = float(made.double().sum())
    half = box_size // 2
    x, y, z = (float(value) + half for value in centre_of_mass(made))
    centre = _Point.in_map((x, y, z), source)
    say(f"{output}: {box_size} px of {pixel_size:g} Å, threshold {threshold:.4g}")
    say(f"volume: {total * pixel_size**3:.0f} Å^3, {100.0 * total / made.numel():.2f} % of the box")
    say(f"centre of mass: {_numbers(centre.px)} px from the box corner")
    say(f"                {_numbers(centre.frame)} Å in the frame of the map")
    assumed = f"{resolution:g} Å" + (" (Nyquist; see --resolution)" if arguments.resolution is None else "")
    say("\n".join(findings) or f"nothing to object to at a resolution of {assumed}")
    return 0


# ---- fulcrum ----


@dataclass(frozen=True)
class _Point:
    """One point in the three frames that programs use, each x, y, z.

    Attributes:
        px: from the box corner, the middle of voxel [0, 0, 0].
        frame: Å in the frame of the map, its origin honoured.
        centre: Å from the box centre, voxel `n // 2`.
    """

    px: Vector
    frame: Vector
    centre: Vector

    @classmethod
    def in_map(cls, px: Vector, map: Map) -> _Point:
        """The point at `px` from the corner of `map`."""
        half, size = int(map.data.shape[-1]) // 2, map.pixel_size
        x, y, z = (value * size + offset for value, offset in zip(px, map.origin, strict=True))
        dx, dy, dz = ((value - half) * size for value in px)
        return cls(px, (x, y, z), (dx, dy, dz))


def _add_fulcrum(commands: Commands) -> None:
    parser = add_command(
        commands,
        "fulcrum",
        "say where a point lies in px and in Å, and how to refine about it",
        "cryosweep fulcrum --marker neck.cmm --map consensus.mrc",
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--mask", type=Path, help="mask (MRC): its centre of mass")
    where.add_argument("--marker", type=Path, help="marker file of ChimeraX (.cmm) with one marker")
    where.add_argument("--px", metavar="X,Y,Z", help="px from the box corner, as read from a viewer")
    parser.add_argument("--map", type=Path, help="map (MRC) that the point belongs to (default: the mask)")
    parser.set_defaults(function=fulcrum)


def fulcrum(arguments: argparse.Namespace) -> int:
    """Print a point in px from the box corner, in Å in the frame of the map and in Å from the box centre.

    Raises:
        ValueError: the point cannot be read, or lies outside the box.
    """
    from cryosweep.io.markers import read_marker
    from cryosweep.mask import centre_of_mass

    masked: Path | None = arguments.mask
    name: Path | None = arguments.map or masked
    if name is None:
        raise ValueError("--map is needed: a point has no place without the box and the origin of its map")
    map = _read_mask(name) if name == masked else _read(name)
    box_size = int(map.data.shape[-1])
    if masked is not None:
        given = map if name == masked else _read_mask(masked)
        _check_same_grid(masked, given, name, map)
        x, y, z = (float(value) + box_size // 2 for value in centre_of_mass(given.data))
    elif arguments.marker is not None:
        _check_file(arguments.marker)
        place = zip(read_marker(arguments.marker), map.origin, strict=True)
        x, y, z = ((value - offset) / map.pixel_size for value, offset in place)
    else:
        x, y, z = _three_numbers(arguments.px)
    point = _Point.in_map((x, y, z), map)
    if not all(0.0 <= value <= box_size - 1 for value in point.px):
        raise ValueError(
            f"the point lies at {_numbers(point.px)} px, outside the {box_size} px box of {name}; check its "
            f"unit (a pixel is {map.pixel_size:g} Å) and that it was picked on this map"
        )
    say(f"{_numbers(point.px)} px from the box corner")
    say(f"{_numbers(point.frame)} Å in the frame of {name}")
    say(f"{_numbers(point.centre)} Å from the box centre")
    position = ",".join(f"{value:.2f}" for value in point.px)
    say(f"\ncryosweep run fulcrum=px 'fulcrum.position=[{position}]' ...")
    return 0


def _three_numbers(text: str) -> Vector:
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"--px {text}: give three numbers, for example 44.5,40.8,33.2") from error
    return x, y, z


# ---- reconstruct ----


def _add_reconstruct(commands: Commands) -> None:
    parser = add_command(
        commands,
        "reconstruct",
        "reconstruct both half maps at the poses of a STAR file",
        "cryosweep reconstruct run_data.star -o recon/run --image-folder Extract/job012",
    )
    parser.add_argument("star", type=Path, help="particles with poses and CTF parameters (RELION STAR file)")
    _add_output(
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
    _add_device(parser)
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
    _check_outputs(outputs, [arguments.star], overwrite=arguments.overwrite)
    device = _device(arguments.device)
    _check_file(arguments.star)
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
    with _progress() as progress:
        progress.start(len(particles), "reconstructing")
        half_maps = reconstruct_half_maps(
            particles, particles.rotations, particles.shifts, device=device, advance=progress.advance
        )
    a, b = (half.cpu() for half in half_maps.pair)
    curves = _curves_without_mask(a, b)
    with ExitStack() as stack:
        files = [stack.enter_context(replacing(path)) for path in outputs]
        for path, half in zip(files, (a, b), strict=False):
            write_map(path, half, pixel_size=particles.pixel_size)
        _write_curves(files[2], curves, particles.box_size, particles.pixel_size)
    counts = [int((particles.half_sets == half).sum()) for half in (0, 1)]
    say(f"{outputs[0]}, {outputs[1]}: {particles.box_size} px of {particles.pixel_size:g} Å")
    say(f"{len(particles)} particles, {counts[0]} and {counts[1]} in the half sets; curves in {outputs[2]}\n")
    say(_crossing_table(curves, particles.box_size, particles.pixel_size))
    return 0


def _as_flags(text: str) -> str:
    """What readers say about configuration keys, in terms of the options of `reconstruct`."""
    return text.replace("data.ctf_damping=", "--ctf-damping ").replace("data.image_folder", "--image-folder")


# ---- fsc ----


def _add_fsc(commands: Commands) -> None:
    parser = add_command(
        commands,
        "fsc",
        "Fourier shell correlation of two half maps: five curves under a mask, two without",
        "cryosweep fsc run_half_a.mrc run_half_b.mrc --mask mask.mrc -o fsc.csv --plot fsc.png",
    )
    parser.add_argument("half_a", type=Path, help="unfiltered half map (MRC)")
    parser.add_argument("half_b", type=Path, help="the other one")
    parser.add_argument("--mask", type=Path, help="mask (MRC) on the grid of the half maps")
    _add_output(parser, "table of the curves (CSV), one row a shell")
    parser.add_argument("--plot", type=Path, help=f"figure of the curves ({', '.join(PLOT_SUFFIXES)})")
    parser.add_argument("--seed", type=int, default=0, help="of the random phases (default: %(default)s)")
    parser.set_defaults(function=fsc)


def fsc(arguments: argparse.Namespace) -> int:
    """Write the FSC curves of two half maps and print where each falls below 0.143 and 0.5.

    Raises:
        ValueError: the maps do not belong together, or an output exists.
    """
    from cryosweep.io.maps import replacing
    from cryosweep.resolution import five_curves

    plot: Path | None = arguments.plot
    if plot is not None and plot.suffix.lower() not in PLOT_SUFFIXES:
        raise ValueError(f"--plot {plot}: the name must end in {', '.join(PLOT_SUFFIXES)}")
    outputs = [path for path in (arguments.output, plot) if path is not None]
    inputs = [path for path in (arguments.half_a, arguments.half_b, arguments.mask) if path is not None]
    _check_outputs(outputs, inputs, overwrite=arguments.overwrite)
    if arguments.half_a.resolve() == arguments.half_b.resolve():
        raise ValueError(f"{arguments.half_b}: both half maps are this file; give one of each half set")
    a, b = _read(arguments.half_a), _read(arguments.half_b)
    _check_same_grid(arguments.half_b, b, arguments.half_a, a)
    box_size, pixel_size = int(a.data.shape[-1]), a.pixel_size
    found: FscCurves | None = None
    with _progress() as progress:
        progress.start(1, "correlating")
        if arguments.mask is None:
            curves = _curves_without_mask(a.data, b.data)
        else:
            chosen = _read_mask(arguments.mask)
            _check_same_grid(arguments.mask, chosen, arguments.half_a, a)
            generator = _generator(arguments.seed)
            found = five_curves(a.data, b.data, chosen.data, pixel_size=pixel_size, generator=generator)
            names = ("none", "spherical", "loose", "tight", "randomised", "corrected")
            curves = {name: getattr(found, name) for name in names}
    with ExitStack() as stack:
        files = [stack.enter_context(replacing(path)) for path in outputs]
        _write_curves(files[0], curves, box_size, pixel_size)
        if plot is not None:
            _draw_curves(files[1], plot.suffix.lower(), curves, found, box_size, pixel_size)
    say(
        _crossing_table(
            {name: curve for name, curve in curves.items() if name != "randomised"}, box_size, pixel_size
        )
    )
    if found is not None:
        say(_about_randomisation(found))
    return 0


def _curves_without_mask(half_a: Tensor, half_b: Tensor) -> dict[str, Tensor]:
    from cryosweep.mask import spherical_mask
    from cryosweep.resolution import fsc as correlate

    radius = half_a.shape[-1] / 2.0
    sphere = spherical_mask(half_a.shape[-1], outer_px=radius, inner_px=0.85 * radius)
    return {"none": correlate(half_a, half_b), "spherical": correlate(half_a * sphere, half_b * sphere)}


def _about_randomisation(curves: FscCurves) -> str:
    first, last = curves.randomised_from, curves.none.numel() - 1
    said = f"phases random from shell {first} ({curves.box_size * curves.pixel_size / first:.2f} Å)"
    if first == 1:
        return f"{said}: no shell keeps its phases, so corrected is hardly stricter than tight"
    if first == last:
        return f"{said}: the unmasked curve stays above 0.8 up to there, so corrected equals tight"
    return said


def _crossing_table(curves: Mapping[str, Tensor], box_size: int, pixel_size: float) -> str:
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


def _write_curves(path: Path, curves: Mapping[str, Tensor], box_size: int, pixel_size: float) -> None:
    import pandas as pd

    table = pd.DataFrame({name: curve.numpy() for name, curve in curves.items()})
    table.insert(0, "frequency", table.index.to_numpy() / (box_size * pixel_size))
    table.insert(0, "shell", table.index.to_numpy())
    table.to_csv(path, index=False, float_format="%.6f")


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


# ---- simulate ----


def _add_simulate(commands: Commands) -> None:
    parser = add_command(
        commands,
        "simulate",
        "simulate particles of a ribosome whose head, foot and arm move, with the truth about them",
        "cryosweep simulate -o ribosome --particles 1200 --snr 0.1",
    )
    _add_output(parser, "folder, new or empty", metavar="FOLDER")
    for flag, kind, value, help in (
        ("--particles", int, 1200, "number of images"),
        ("--box-size", int, 96, "px, even"),
        ("--pixel-size", float, 3.5, "Å per px"),
        ("--snr", float, 0.1, "variance of the signal over variance of the noise"),
        ("--seed", int, 0, "of motion, poses, defocus and noise"),
    ):
        parser.add_argument(flag, type=kind, default=value, help=f"{help} (default: %(default)s)")
    _add_device(parser)
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
        seed=arguments.seed,
    )
    device = _device(arguments.device)
    with _progress() as progress, _filling(folder, overwrite=arguments.overwrite) as making:
        progress.start(settings.particles, "simulating")
        data = simulate_particles(settings, making, device=device, advance=progress.advance)
    say(f"{folder}: {settings.particles} images of {settings.box_size} px, {settings.pixel_size:g} Å per px")
    say(f"variance of the signal {data.signal_variance:.4g}, of the noise {data.noise_variance:.4g}")
    say(
        "particles.star, particles.mrcs: what a consensus refinement leaves, the poses of the body with error"
    )
    say("truth_*.star, truth_*.mrc, domains.mrc, simulation.json: true poses, densities and settings")
    return 0


@contextmanager
def _filling(folder: Path, *, overwrite: bool) -> Generator[Path]:
    """A folder to write into, whose files move to `folder` at the end, or vanish after an error.

    Raises:
        ValueError: `folder` cannot be made or holds something.
    """
    if not folder.parent.is_dir():
        raise ValueError(f"{folder}: the folder {folder.parent} does not exist; make it first")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give the name of a folder")
    is_new = not folder.exists()
    if not is_new and any(folder.iterdir()) and not overwrite:
        raise ValueError(f"{folder} is not empty; give another folder, or --overwrite to replace files in it")
    folder.mkdir(exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=".making_", dir=folder))
    try:
        yield making
        for path in making.iterdir():
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(making, ignore_errors=True)
        if is_new and not any(folder.iterdir()):
            folder.rmdir()


# ---- shared by the commands ----


def _add_output(parser: argparse.ArgumentParser, help: str, *, metavar: str = "FILE") -> None:
    parser.add_argument("-o", "--output", type=Path, required=True, metavar=metavar, help=help)
    parser.add_argument("--overwrite", action="store_true", help="replace what exists already")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="auto takes a CUDA device if one is visible (default: %(default)s)",
    )


def _device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no CUDA device is visible; use cpu or auto")
    return (
        torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else torch.device(name)
    )


def _generator(seed: int) -> torch.Generator:
    import torch

    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed {seed}: must be 0 or more, below 2^63")
    return torch.Generator().manual_seed(seed)


@contextmanager
def _progress() -> Generator[Progress]:
    """Bar or log lines, put away at the end."""
    from cryosweep.progress import make_progress

    progress = make_progress(alone=True)
    try:
        yield progress
    finally:
        progress.finish()


def _length(flag: str, text: str, pixel_size: float) -> float:
    """Å of a length given to `flag`."""
    from cryosweep.config import parse_length

    try:
        return parse_length(text, pixel_size)
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from error


def _numbers(vector: Vector) -> str:
    return ", ".join(f"{value:.2f}" for value in vector)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")


def _read(path: Path) -> Map:
    """A map, with what is odd about it said."""
    from cryosweep.io.maps import read_map

    _check_file(path)
    map = read_map(path)
    for note in map.notes:
        say(f"note: {note}")
    return map


def _read_mask(path: Path) -> Map:
    from cryosweep.io.maps import read_mask

    _check_file(path)
    return read_mask(path)


def _check_same_grid(path: Path, map: Map, other_path: Path, other: Map) -> None:
    """Refuse two maps of different boxes; say where their origins differ, which headers often get wrong."""
    size, other_size = int(map.data.shape[-1]), int(other.data.shape[-1])
    if size != other_size or abs(map.pixel_size / other.pixel_size - 1.0) > SAME_PIXEL_SIZE:
        raise ValueError(
            f"{path} has {size} px of {map.pixel_size:g} Å, {other_path} has {other_size} px of "
            f"{other.pixel_size:g} Å; bring both on one grid first"
        )
    apart = max(abs(a - b) for a, b in zip(map.origin, other.origin, strict=True))
    if apart > SAME_ORIGIN_PX * map.pixel_size:
        say(
            f"note: by their headers the first voxel of {path} lies at {_numbers(map.origin)} Å and that of "
            f"{other_path} at {_numbers(other.origin)} Å; the two were taken to lie voxel on voxel"
        )


def _check_outputs(outputs: Sequence[Path], inputs: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse names that cannot be written to, that hold something, or that are read."""
    for number, path in enumerate(outputs):
        if not path.parent.is_dir():
            raise ValueError(f"{path}: the folder {path.parent} does not exist; make it first")
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give the name of a file")
        if path.resolve() in {other.resolve() for other in (*inputs, *outputs[:number])}:
            raise ValueError(f"{path} is named twice; give each output a name of its own")
        if path.exists() and not overwrite:
            raise ValueError(f"{path} exists already; give another name, or --overwrite to replace it")
