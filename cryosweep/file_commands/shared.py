"""What the commands on files share: their arguments, their reading of maps, their checks of outputs."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cryosweep.commands import say

if TYPE_CHECKING:
    import torch

    from cryosweep.io.maps import Map
    from cryosweep.io.particles import Particles
    from cryosweep.progress import Progress

Vector = tuple[float, float, float]

# Headers are rounded: maps on one grid may differ by this share in pixel size and by this many px in origin.
SAME_PIXEL_SIZE = 1e-3
SAME_ORIGIN_PX = 0.5

PLOT_SUFFIXES = (".png", ".pdf", ".svg")


@dataclass(frozen=True)
class Point:
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
    def in_map(cls, px: Vector, map: Map) -> Point:
        """The point at `px` from the corner of `map`."""
        half, size = int(map.data.shape[-1]) // 2, map.pixel_size
        x, y, z = (value * size + offset for value, offset in zip(px, map.origin, strict=True))
        dx, dy, dz = ((value - half) * size for value in px)
        return cls(px, (x, y, z), (dx, dy, dz))


def add_output(parser: argparse.ArgumentParser, help: str, *, metavar: str = "FILE") -> None:
    """Add the output and the permission to replace it."""
    parser.add_argument("-o", "--output", type=Path, required=True, metavar=metavar, help=help)
    parser.add_argument("--overwrite", action="store_true", help="replace what exists already")


def add_particles(parser: argparse.ArgumentParser) -> None:
    """Add a STAR file and how it is to be read."""
    parser.add_argument("star", type=Path, help="particles with poses and CTF parameters (RELION STAR file)")
    parser.add_argument(
        "--image-folder",
        type=Path,
        metavar="DIR",
        help="of the image stacks (default: looked for from the STAR file upwards)",
    )
    parser.add_argument(
        "--ctf-damping",
        choices=["relion", "absolute", "none"],
        default="relion",
        metavar="HOW",
        help="B-factors, scales in the CTF: relion, absolute or none (default: %(default)s)",
    )
    parser.add_argument(
        "--half-set-seed",
        type=int,
        default=0,
        metavar="N",
        help="of the split where the file has no rlnRandomSubset (default: %(default)s)",
    )


def read_particle_file(
    arguments: argparse.Namespace, *, poses_needed: bool = True, box_size: int | None = None
) -> Particles:
    """The particles that the arguments of `add_particles` name, with what is odd about them said.

    With `box_size` (px) their images are not looked for.

    Raises:
        ValueError: they cannot be used, in terms of the options of the command.
    """
    from cryosweep.io.particles import read_particles

    check_file(arguments.star)
    try:
        particles = read_particles(
            arguments.star,
            image_folder=arguments.image_folder,
            half_set_seed=arguments.half_set_seed,
            ctf_damping=arguments.ctf_damping,
            poses_needed=poses_needed,
            box_size=box_size,
        )
    except ValueError as error:
        raise ValueError(_as_flags(str(error))) from error
    for note in particles.notes:
        say(f"note: {_as_flags(note)}")
    return particles


def _as_flags(text: str) -> str:
    """What readers say about configuration keys, in terms of options."""
    return text.replace("data.ctf_damping=", "--ctf-damping ").replace("data.image_folder", "--image-folder")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the choice of a device."""
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="auto takes a CUDA device if one is visible (default: %(default)s)",
    )


def chosen_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device of a name.

    Raises:
        ValueError: CUDA is asked for and not there.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no CUDA device is visible; use cpu or auto")
    return (
        torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else torch.device(name)
    )


def seeded(seed: int) -> torch.Generator:
    """Randomness of a seed given by the user.

    Raises:
        ValueError: the seed is out of range.
    """
    import torch

    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed {seed}: must be 0 or more, below 2^63")
    return torch.Generator().manual_seed(seed)


@contextmanager
def shown_progress() -> Generator[Progress]:
    """Bar or log lines, put away at the end."""
    from cryosweep.progress import make_progress

    progress = make_progress(alone=True)
    try:
        yield progress
    finally:
        progress.finish()


def length_of(flag: str, text: str, pixel_size: float) -> float:
    """Å of a length given to `flag`."""
    from cryosweep.config import parse_length

    try:
        return parse_length(text, pixel_size)
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from error


def numbers(vector: Vector) -> str:
    """A point, for people."""
    return ", ".join(f"{value:.2f}" for value in vector)


def point_of(flag: str, text: str) -> Vector:
    """The point x,y,z given to `flag`.

    Raises:
        ValueError: it is not three numbers.
    """
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"{flag} {text}: give three numbers, for example 44.5,40.8,33.2") from error
    return x, y, z


def check_file(path: Path) -> None:
    """Refuse a path without a file.

    Raises:
        ValueError: there is none.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name the file in it")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")


def read_volume(path: Path) -> Map:
    """A map, with what is odd about it said."""
    from cryosweep.io.maps import read_map

    check_file(path)
    map = read_map(path)
    for note in map.notes:
        say(f"note: {note}")
    return map


def read_half_maps(path_a: Path, path_b: Path) -> tuple[Map, Map]:
    """Two half maps, refused if they are one file or of different boxes."""
    if path_a.resolve() == path_b.resolve():
        raise ValueError(f"{path_b}: both half maps are this file; give one of each half set")
    a, b = read_volume(path_a), read_volume(path_b)
    check_same_grid(path_b, b, path_a, a)
    return a, b


def read_mask_file(path: Path) -> Map:
    """A mask, refused unless it lies in [0, 1]."""
    from cryosweep.io.maps import read_mask

    check_file(path)
    return read_mask(path)


def check_same_grid(path: Path, map: Map, other_path: Path, other: Map) -> None:
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
            f"note: by their headers the first voxel of {path} lies at {numbers(map.origin)} Å and that of "
            f"{other_path} at {numbers(other.origin)} Å; the two were taken to lie voxel on voxel"
        )


def add_plot(parser: argparse.ArgumentParser, of: str) -> None:
    """Add a figure."""
    parser.add_argument("--plot", type=Path, help=f"figure of {of} ({', '.join(PLOT_SUFFIXES)})")


def check_plot(path: Path | None) -> None:
    """Refuse a name for a figure that says no format of figures.

    Raises:
        ValueError: it ends in none of `PLOT_SUFFIXES`.
    """
    if path is not None and path.suffix.lower() not in PLOT_SUFFIXES:
        raise ValueError(f"--plot {path}: the name must end in {', '.join(PLOT_SUFFIXES)}")


def check_particle_grid(path: Path, map: Map, particles: Particles) -> None:
    """Refuse a map that does not lie on the grid of the particles."""
    size = int(map.data.shape[-1])
    if size != particles.box_size or abs(map.pixel_size / particles.pixel_size - 1.0) > SAME_PIXEL_SIZE:
        raise ValueError(
            f"{path}: has {size} px of {map.pixel_size:g} Å, the particles {particles.box_size} px of "
            f"{particles.pixel_size:g} Å; bring the map on their grid first"
        )


def check_outputs(outputs: Sequence[Path], inputs: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse names that cannot be written to, that hold something, or that are read."""
    for number, path in enumerate(outputs):
        if not path.parent.is_dir():
            raise ValueError(f"{path}: the folder {path.parent} does not exist; make it first")
        if not os.access(path.parent, os.W_OK):
            raise ValueError(f"{path}: the folder {path.parent} cannot be written to; give another")
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give the name of a file")
        if path.resolve() in {other.resolve() for other in (*inputs, *outputs[:number])}:
            raise ValueError(f"{path} is named twice; give each output a name of its own")
        if path.exists() and not overwrite:
            raise ValueError(f"{path} exists already; give another name, or --overwrite to replace it")


@contextmanager
def filling(folder: Path, *, overwrite: bool) -> Generator[Path]:
    """A folder to write into, whose files move to `folder` at the end, or vanish after an error.

    Raises:
        ValueError: `folder` cannot be made or holds something.
    """
    if not folder.parent.is_dir():
        raise ValueError(f"{folder}: the folder {folder.parent} does not exist; make it first")
    if not os.access(folder.parent, os.W_OK):
        raise ValueError(f"{folder}: the folder {folder.parent} cannot be written to; give another")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give the name of a folder")
    is_new = not folder.exists()
    if not is_new and any(folder.iterdir()) and not overwrite:
        raise ValueError(f"{folder} is not empty; give another folder, or --overwrite to replace files in it")
    folder.mkdir(exist_ok=True)
    # beside the folder and as deep, so that paths relative to it stay right when its files move in
    beside = folder.resolve()
    making = Path(tempfile.mkdtemp(prefix=f".making_{beside.name}_", dir=beside.parent))
    try:
        yield making
        for path in making.iterdir():
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(making, ignore_errors=True)
        if is_new and not any(folder.iterdir()):
            folder.rmdir()
