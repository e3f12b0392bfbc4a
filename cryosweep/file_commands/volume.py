"""The `volume` command: operations on a map or mask, done in the order in which they are given."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryosweep.commands import add_command, say
from cryosweep.file_commands.shared import (
    add_output,
    check_file,
    check_outputs,
    check_same_grid,
    length_of,
    numbers,
    read_mask_file,
    read_volume,
    shown_progress,
)

if TYPE_CHECKING:
    from torch import Tensor

    from cryosweep.commands import Commands
    from cryosweep.io.maps import Map

# Operations by flag: what follows the flag (nothing, if empty) and what it does.
OPERATIONS = {
    "--gaussian": ("LENGTH", "convolve with a Gaussian of this sigma"),
    "--low-pass": ("LENGTH", "take away what is finer; half of the amplitude is left there"),
    "--high-pass": ("LENGTH", "take away what is coarser"),
    "--threshold": ("VALUE", "1 above it, else 0: map units, or 15%% of the 99.9th percentile"),
    "--fill-holes": ("", "add what the region encloses"),
    "--dilate": ("LENGTH", "add what lies nearer than this to the region"),
    "--erode": ("LENGTH", "take away what lies nearer than this to its outside"),
    "--pad-softly": ("LENGTH", "add a cosine edge of this width around the region"),
    "--and": ("MASK", "keep what lies in this mask too"),
    "--or": ("MASK", "add what lies in this mask"),
    "--and-not": ("MASK", "keep what does not lie in this mask"),
    "--invert": ("", "exchange inside and outside"),
    "--clamp": ("", "limit values to 0..1, as after resampling a mask"),
    "--apply-mask": ("MASK", "multiply by this mask"),
    "--onto": ("MAP", "resample onto the grid of this map, origins honoured"),
    "--pixel-size": ("Å", "resample to this pixel size"),
    "--box": ("PX", "cut or pad with zeros about the centre"),
    "--flip-hand": ("", "take the mirror image, x to -x about the centre"),
}
WITH_FILE = tuple(flag for flag, (metavar, _) in OPERATIONS.items() if metavar in ("MASK", "MAP"))
ON_REGION = ("--fill-holes", "--dilate", "--erode", "--pad-softly")
ON_MASK = ("--and", "--or", "--and-not", "--invert")

Change = Callable[["Tensor"], "Tensor"]


@dataclass(frozen=True)
class _Step:
    """One operation, ready to be done: its inputs are read and its lengths are known.

    Attributes:
        flag: as given.
        change: from the voxels before to those after.
        map: the box, pixel size and origin afterwards; its data mean nothing.
    """

    flag: str
    change: Change
    map: Map


class _Append(argparse.Action):
    """Keeps operations in the order of the command line, whatever their flags."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        del parser
        given = values if isinstance(values, str) else ""
        namespace.operations = [*namespace.operations, (option_string, given)]


def add_parser(commands: Commands) -> None:
    """Add the parser of this command."""
    parser = add_command(
        commands,
        "volume",
        "change a map or a mask: filters, masks, grids; operations are done in the order given",
        "cryosweep volume map.mrc -o mask.mrc --gaussian 2A --threshold 0.05 --dilate 5px --pad-softly 17px",
    )
    parser.usage = "%(prog)s MAP -o FILE [--overwrite] [--resolution Å] [operation ...]"
    parser.formatter_class = _Wide
    parser.add_argument("map", metavar="MAP", type=Path, help="map or mask (MRC)")
    add_output(parser, "the result (MRC)")
    parser.add_argument(
        "--resolution", type=float, metavar="Å", help="that a mask is judged at (default: Nyquist)"
    )
    group = parser.add_argument_group("operations; a LENGTH is Å (7, 7A) or voxels (5px)")
    for flag, (metavar, help) in OPERATIONS.items():
        count = None if metavar else 0
        group.add_argument(
            flag, action=_Append, nargs=count, metavar=metavar or None, help=help, dest="operations",
            default=[],
        )  # fmt: skip
    parser.set_defaults(function=volume)


class _Wide(argparse.RawDescriptionHelpFormatter):
    """One line for each operation."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)


def volume(arguments: argparse.Namespace) -> int:
    """Write what the operations make of a map, and say what is questionable if that is a mask.

    Raises:
        ValueError: an input cannot be used, an operation does not suit its input, or the output exists.
    """
    from cryosweep.io.maps import write_map

    output: Path = arguments.output
    operations: list[tuple[str, str]] = arguments.operations
    if not operations:
        raise ValueError("no operation is given; see cryosweep volume --help")
    others = [Path(value) for flag, value in operations if flag in WITH_FILE]
    check_outputs([output], [arguments.map, *others], overwrite=arguments.overwrite)
    resolution: float | None = arguments.resolution
    if resolution is not None and not 0.0 < resolution < math.inf:
        raise ValueError(f"--resolution {resolution:g}: must be above 0 Å")
    for path in others:
        check_file(path)
    source = read_volume(arguments.map)
    steps: list[_Step] = []
    place = source
    for flag, value in operations:
        steps.append(_prepared(flag, value, place, arguments.map))
        place = steps[-1].map
    made, base, is_mask = source.data, None, _lies_in_0_to_1(source.data)
    with shown_progress() as progress:
        progress.start(len(steps), "changing")
        for step in steps:
            _check_suits(step.flag, made)
            if step.flag == "--threshold" and base is None:
                base = made
            elif step.flag in ("--onto", "--pixel-size", "--box", "--flip-hand"):
                base = None if base is None else step.change(base)
            made = step.change(made)
            is_mask = step.flag != "--apply-mask" and (
                is_mask or step.flag in ("--threshold", "--clamp", *ON_REGION, *ON_MASK)
            )
            progress.advance(1)
        write_map(output, made, pixel_size=place.pixel_size, origin=place.origin)
    box_size = int(made.shape[-1])
    say(f"{output}: {box_size} px of {place.pixel_size:g} Å, first voxel at {numbers(place.origin)} Å")
    say(f"values from {float(made.min()):.4g} to {float(made.max()):.4g}")
    if is_mask:
        last, value = operations[-1]
        # what was done after the padding may have changed it, so that it must be measured
        padding = length_of(last, value, place.pixel_size) if last == "--pad-softly" else None
        say(_about_mask(made, base, place.pixel_size, resolution, padding))
    return 0


# ---- operations ----


def _prepared(flag: str, value: str, at: Map, path: Path) -> _Step:
    """The operation `flag value` on a map that lies as `at`; its file is read, its numbers are checked."""
    import torch

    from cryosweep import mask

    if flag in ("--gaussian", "--low-pass", "--high-pass"):
        return _Step(flag, _filter(flag, length_of(flag, value, at.pixel_size), at.pixel_size), at)
    if flag in ("--dilate", "--erode", "--pad-softly"):
        length = length_of(flag, value, at.pixel_size) / at.pixel_size
        shaping: dict[str, Change] = {
            "--dilate": lambda made: mask.dilate(made > 0.5, length).to(made.dtype),
            "--erode": lambda made: mask.erode(made > 0.5, length).to(made.dtype),
            "--pad-softly": lambda made: mask.soft_edge(made > 0.5, length, dtype=made.dtype),
        }
        return _Step(flag, shaping[flag], at)
    if flag in ("--and", "--or", "--and-not", "--apply-mask"):
        other_path = Path(value)
        other = read_mask_file(other_path)
        check_same_grid(other_path, other, path, at)
        combining: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "--and": mask.intersection,
            "--or": mask.union,
            "--and-not": mask.difference,
            "--apply-mask": torch.mul,
        }
        return _Step(flag, lambda made: combining[flag](made, other.data), at)
    if flag in ("--onto", "--pixel-size", "--box"):
        return _regridded(flag, value, at)
    if flag == "--threshold":
        return _Step(flag, _threshold(value), at)
    from cryosweep.volume import flip_hand

    plain: dict[str, Change] = {
        "--fill-holes": lambda made: mask.fill_holes(made > 0.5).to(made.dtype),
        "--invert": mask.inverted,
        "--clamp": lambda made: made.clamp(0.0, 1.0),
        "--flip-hand": flip_hand,
    }
    return _Step(flag, plain[flag], at)


def _filter(flag: str, length: float, pixel_size: float) -> Change:
    from cryosweep.fourier import gaussian_filter, high_pass, low_pass

    if flag == "--gaussian":
        return lambda made: gaussian_filter(made, sigma=length, pixel_size=pixel_size)
    if length == 0.0:
        raise ValueError(f"{flag}: a resolution must be above 0 Å")
    if length < 2.0 * pixel_size:
        raise ValueError(f"{flag} {length:g}: lies beyond Nyquist, {2.0 * pixel_size:g} Å")
    if flag == "--high-pass":
        return lambda made: high_pass(made, resolution=length, pixel_size=pixel_size)
    return lambda made: low_pass(made, resolution=length, pixel_size=pixel_size, edge="centred")


def _threshold(text: str) -> Change:
    from cryosweep.mask import threshold_of

    number = _number("--threshold", text.removesuffix("%"))
    if not text.endswith("%"):
        return lambda made: (made > number).to(made.dtype)
    return lambda made: (made > threshold_of(made, 0.01 * number, unit="fraction")).to(made.dtype)


def _regridded(flag: str, value: str, at: Map) -> _Step:
    from cryosweep.volume import Grid, resample, resize_box

    grid = Grid(int(at.data.shape[-1]), at.pixel_size, at.origin)
    if flag == "--box":
        box_size = _number(flag, value)
        if box_size != int(box_size) or box_size < 2:
            raise ValueError(f"{flag} {value}: must be a whole number of px, 2 or more")
        target = grid.about_centre(box_size=int(box_size), pixel_size=grid.pixel_size)
        return _Step(flag, lambda made: resize_box(made, grid, target.box_size)[0], _lying(at, target))
    if flag == "--pixel-size":
        target = grid.with_pixel_size(_number(flag, value))
    else:
        like = read_volume(Path(value))
        target = Grid(int(like.data.shape[-1]), like.pixel_size, like.origin)
    return _Step(flag, lambda made: resample(made, grid, target), _lying(at, target))


def _lying(at: Map, grid: Any) -> Map:
    """A map without content on a grid."""
    # expanded from one number: no memory is spent on it
    nothing = at.data.new_zeros(1).expand(grid.box_size, grid.box_size, grid.box_size)
    return replace(at, data=nothing, pixel_size=grid.pixel_size, origin=grid.origin)


def _number(flag: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{flag} {text}: must be a number")
    return number


def _check_suits(flag: str, made: Tensor) -> None:
    """Refuse an operation on regions or masks where there is none."""
    if flag in ON_REGION and not bool(((made == 0) | (made == 1)).all()):
        raise ValueError(f"{flag} needs a region of zeros and ones; put --threshold before it")
    if flag in ON_MASK and not _lies_in_0_to_1(made):
        raise ValueError(
            f"{flag} needs a mask, but the values are {float(made.min()):.4g} to {float(made.max()):.4g}; "
            f"put --threshold or --clamp before it"
        )


def _lies_in_0_to_1(made: Tensor) -> bool:
    return float(made.min()) >= 0.0 and float(made.max()) <= 1.0


# ---- what is said about a mask ----


def _about_mask(
    made: Tensor, base: Tensor | None, pixel_size: float, resolution: float | None, padding: float | None
) -> str:
    from cryosweep.mask import power_outside
    from cryosweep.rules import check_mask

    assumed = 2.0 * pixel_size if resolution is None else resolution
    total = float(made.double().sum())
    lines = [f"mask: {total * pixel_size**3:.0f} Å^3, {100.0 * total / made.numel():.2f} % of the box"]
    if base is not None:
        lines[0] += f"; {power_outside(made, base):.0%} of the power of the map it was cut from lies outside"
    findings = check_mask(
        made, pixel_size=pixel_size, resolution=assumed, soft_padding_width=padding, base=base
    )
    at = f"{assumed:g} Å" + (" (Nyquist; see --resolution)" if resolution is None else "")
    said = [str(found) for found in findings] or [f"nothing to object to at a resolution of {at}"]
    return "\n".join([*lines, *said])
