"""Particles: a RELION STAR file (1.x to 5) with the image stacks it names.

Poses and CTF parameters are converted to the project's conventions here and nowhere else. The tables
themselves are kept as text, so that a file written again differs only in what was meant to change.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import pandas as pd
import starfile
import torch
from mrcfile.mrcfile import MrcFile
from mrcfile.utils import data_dtype_from_header
from torch import Tensor

from cryosweep.aberrations import ImageAberrations, with_beam_tilt
from cryosweep.ctf import Optics, electron_wavelength
from cryosweep.geometry import euler_from_rotation, rotation_from_euler
from cryosweep.io.maps import has_map_tag, replacing

CtfDamping = Literal["relion", "absolute", "none"]

_ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
# Å; images with less hold hardly any contrast, so that a smaller number is most likely of another unit.
LEAST_DEFOCUS = 100.0
_DEFOCUS = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
_MICROSCOPE = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
_TILT = ("rlnBeamTiltX", "rlnBeamTiltY")
_ODD, _EVEN = "rlnOddZernike", "rlnEvenZernike"
_MAGNIFICATION = ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")
_ABERRATIONS = (*_TILT, _ODD, _EVEN, *_MAGNIFICATION)
SCALE_COLUMN = "cryosweepScale"
# Largest change of magnification that images are resampled for; real microscopes differ by some per cent.
MOST_MAGNIFICATION = 0.1

_Floats = np.ndarray[Any, np.dtype[np.float64]]
_Integers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Particles:
    """n particles: their table, where their images are, and what the table says in our conventions.

    Attributes:
        path: STAR file.
        table: n rows, every column as the text of the file.
        optics_table: the optics groups as text; None for the one-table files of RELION before 3.1.
        stacks: image stacks.
        stack_of: (n,) int64 index into `stacks`.
        index_in_stack: (n,) int64, from 0.
        rotations: (n, 3, 3) float64, `x_view = R @ x_map`.
        shifts: (n, 2) float64 Å, where the map's origin lands from pixel `n // 2`: minus RELION's origin, in
            images whose magnification is corrected.
        optics: CTF parameters, float64.
        optics_group: (n,) int64 row of `optics_table`; 0 where the file has none.
        half_sets: (n,) int64, 0 for `rlnRandomSubset` 1 and 1 for 2.
        pixel_size: Å.
        box_size: px.
        notes: what was overridden or not used, as sentences for the user.
        block: name of the table's block in the STAR file.
        contrast: (n,) float64, the per-particle scale, which `optics.scale` contains; None: there is none.
        aberrations: what is corrected in the images as they are read; None: nothing.
    """

    path: Path
    table: pd.DataFrame
    optics_table: pd.DataFrame | None
    stacks: tuple[Path, ...]
    stack_of: Tensor
    index_in_stack: Tensor
    rotations: Tensor
    shifts: Tensor
    optics: Optics
    optics_group: Tensor
    half_sets: Tensor
    pixel_size: float
    box_size: int
    notes: tuple[str, ...]
    block: str = "particles"
    contrast: Tensor | None = None
    aberrations: ImageAberrations | None = None

    def __len__(self) -> int:
        return len(self.table)

    def take(self, index: Tensor) -> Particles:
        """The particles at `index` (k,), in that order; the stacks are shared."""
        return replace(
            self,
            table=self.table.iloc[index.numpy()].reset_index(drop=True),
            stack_of=self.stack_of[index],
            index_in_stack=self.index_in_stack[index],
            rotations=self.rotations[index],
            shifts=self.shifts[index],
            optics=self.optics[index],
            optics_group=self.optics_group[index],
            half_sets=self.half_sets[index],
            contrast=None if self.contrast is None else self.contrast[index],
            aberrations=None if self.aberrations is None else self.aberrations[index],
        )

    def rescaled(self, factor: Tensor) -> Self:
        """The particles with their per-particle scale multiplied by `factor` (n,)."""
        contrast = factor if self.contrast is None else self.contrast * factor
        return replace(self, contrast=contrast, optics=replace(self.optics, scale=self.optics.scale * factor))

    def images(self, index: Tensor) -> Tensor:
        """Images at `index` (b,), read from the memory-mapped stacks.

        Returns:
            (b, box, box) float32 in the order of `index`, not normalised, not shifted; as stored, but for
            odd aberrations and an anisotropic magnification, which are corrected.
        """
        images = np.empty((len(index), self.box_size, self.box_size), dtype=np.float32)
        stack_of = self.stack_of[index].numpy()
        rows = self.index_in_stack[index].numpy()
        for number in np.unique(stack_of):
            stack = _open_stack(self.stacks[number])
            places = np.flatnonzero(stack_of == number)
            places = places[np.argsort(rows[places])]  # the disk is read in one direction
            images[places] = stack[rows[places]]
        read = torch.from_numpy(images)
        if self.aberrations is None:
            return read
        return self.aberrations[index].corrected(read, self.pixel_size)

    def with_corrected_images(self) -> Self:
        """The particles once their images are stored as `images` gives them, with nothing left to correct."""
        if self.aberrations is None:
            return self
        neutral = dict.fromkeys(_TILT, "0.000000") | {_ODD: "[0,0,0,0,0,0]"}
        neutral |= {
            label: "1.000000" if label in _MAGNIFICATION[::3] else "0.000000" for label in _MAGNIFICATION
        }
        table, optics_table = self.table, self.optics_table
        if optics_table is None:
            table = table.assign(**{label: text for label, text in neutral.items() if label in table})
        else:
            known = {label: text for label, text in neutral.items() if label in optics_table}
            optics_table = optics_table.assign(**known)
        return replace(self, table=table, optics_table=optics_table, aberrations=None)


@dataclass(frozen=True, eq=False, kw_only=True)
class HeldParticles(Particles):
    """Particles whose images lie in memory.

    Attributes:
        held: (m, box, box) float32.
        row: (n,) image of each particle.
    """

    held: Tensor
    row: Tensor

    def take(self, index: Tensor) -> HeldParticles:
        """The particles at `index` (k,), in that order; the images are shared."""
        taken = super().take(index)
        assert isinstance(taken, HeldParticles)
        return replace(taken, row=self.row[index])

    def images(self, index: Tensor) -> Tensor:
        """Images at `index` (b,): (b, box, box) float32, a copy."""
        return self.held[self.row[index]]


def in_memory(particles: Particles) -> HeldParticles:
    """`particles` with all their images read once, now."""
    own = {field.name: getattr(particles, field.name) for field in fields(Particles)}
    every = torch.arange(len(particles))
    return HeldParticles(**own, held=particles.images(every), row=every)


def read_particles(
    path: Path,
    *,
    image_folder: Path | None = None,
    half_set_seed: int = 0,
    ctf_damping: CtfDamping = "relion",
    poses_needed: bool = True,
    box_size: int | None = None,
) -> Particles:
    """Particles of a RELION STAR file, with or without a table of optics groups.

    Image stacks are looked for from the folder of the STAR file upwards, since RELION's paths start at the
    project folder; with `image_folder`, only there, by the whole path first and then by the file name alone.

    Args:
        path: STAR file.
        image_folder: folder of the image stacks.
        half_set_seed: seeds the split in half sets where the file has no `rlnRandomSubset`.
        ctf_damping: what `rlnCtfBfactor` and `rlnCtfScalefactor` do: "relion" takes them as RELION does, and
            refuses negative B-factors, which would amplify; "absolute" damps by |B| (Warp and M write
            negative values and mean damping); "none" ignores both.
        poses_needed: refuse a table without angles; otherwise all of them are 0, which is noted.
        box_size: px; given, the stacks are not looked for, and the particles have no images to read.

    Raises:
        FileNotFoundError: no such STAR file.
        ValueError: a column is absent or not usable, an image stack is absent, damaged or of another box, the
            half sets are not both present, or the images are of a kind that cannot be refined here.
    """
    block, table, optics_table, notes = _read_tables(path)
    where = f"{path}, block data_{block}"
    has_poses = poses_needed or any(label in table.columns for label in _ANGLES)
    _require(table, ("rlnImageName", *(_ANGLES if has_poses else ()), *_DEFOCUS), where)
    if optics_table is None:
        microscope, group, microscope_where = table, np.arange(len(table)), where
    else:
        microscope, microscope_where = optics_table, f"{path}, block data_optics"
        group = _group_of_each(table, optics_table, path)
    _require(microscope, _MICROSCOPE, microscope_where)
    _refuse_other_images(microscope, group, microscope_where)
    pixel_size = _star_pixel_size(microscope, group, microscope_where, has_optics=optics_table is not None)
    optics, optics_notes = _optics(table, where, microscope, group, microscope_where, ctf_damping)
    # where angles are needed their columns are there
    angles = np.stack([_numbers(table, name, where, default=0.0) for name in _ANGLES], axis=-1)
    if not has_poses:
        notes = (*notes, f"{where}: no angles, so every particle begins at angles of 0.")
    contrast, contrast_notes = _contrast(table, where)
    half_sets, half_set_notes = _half_sets(table, where, half_set_seed)
    aberrations, even, aberration_notes = _aberrations(microscope, group, microscope_where, optics)
    if even is not None:
        optics = replace(optics, even_zernike=even)
    if optics_table is not None:
        aberration_notes = (*aberration_notes, *_aberrations_in_the_wrong_table(table, where))
    shifts = _shifts(table, where, pixel_size)
    if aberrations is not None:
        shifts = _in_corrected_frame(shifts, aberrations)

    names, stack_of, index_in_stack = _image_names(table, where)
    stack_notes: tuple[str, ...] = ()
    has_images = box_size is None
    if box_size is None:
        stacks = _find_stacks(names, np.bincount(stack_of), path, image_folder)
        box_size, stack_notes = _check_stacks(stacks, stack_of, index_in_stack, path, pixel_size)
    else:
        stacks = tuple(map(Path, names))
    _check_star_box_size(microscope, group, microscope_where, box_size, has_images=has_images)
    particles = Particles(
        path=path,
        table=table,
        optics_table=optics_table,
        stacks=stacks,
        stack_of=torch.from_numpy(stack_of),
        index_in_stack=torch.from_numpy(np.maximum(index_in_stack, 0)),
        rotations=rotation_from_euler(torch.from_numpy(angles)),
        shifts=shifts,
        optics=optics,
        optics_group=torch.from_numpy(np.zeros_like(group) if optics_table is None else group),
        half_sets=half_sets,
        pixel_size=pixel_size,
        box_size=box_size,
        notes=(*notes, *optics_notes, *aberration_notes, *contrast_notes, *half_set_notes, *stack_notes),
        block=block,
        aberrations=aberrations,
    )
    return particles if contrast is None else particles.rescaled(contrast)


def read_views(path: Path) -> Tensor:
    """(n, 3) viewing directions of a STAR file, in the map frame; images are not looked for.

    Raises:
        FileNotFoundError: no such STAR file.
        ValueError: the columns of the angles are absent or not usable.
    """
    block, table, _, _ = _read_tables(path)
    where = f"{path}, block data_{block}"
    _require(table, _ANGLES, where)
    angles = np.stack([_numbers(table, name, where) for name in _ANGLES], axis=-1)
    return rotation_from_euler(torch.from_numpy(angles))[:, 2]


def new_particles(
    path: Path,
    *,
    stack: Path,
    rotations: Tensor,
    shifts: Tensor,
    optics: Optics,
    half_sets: Tensor,
    pixel_size: float,
    box_size: int,
) -> Particles:
    """Particles that no file describes yet, with RELION 3.1 tables; `write_particles` writes them.

    Args:
        path: STAR file they are meant for; nothing is written.
        stack: image stack whose image i is particle i.
        rotations: (n, 3, 3).
        shifts: (n, 2) Å.
        optics: n particles of one voltage, spherical aberration and amplitude contrast.
        half_sets: (n,) 0 or 1.
        pixel_size: Å.
        box_size: px.

    Raises:
        ValueError: the particles differ in a value that belongs to the optics group.
    """
    count = len(optics)
    common: dict[str, float] = {}
    for field in ("voltage", "spherical_aberration", "amplitude_contrast"):
        values = getattr(optics, field)
        if bool((values != values[0]).any()):
            raise ValueError(
                f"new particles must have one {field}, not {values.min():g} to {values.max():g}."
            )
        common[field] = float(values[0])
    optics_table = pd.DataFrame(
        {
            "rlnOpticsGroup": ["1"],
            "rlnOpticsGroupName": ["opticsGroup1"],
            "rlnVoltage": [_fixed(common["voltage"])],
            "rlnSphericalAberration": [_fixed(common["spherical_aberration"])],
            "rlnAmplitudeContrast": [_fixed(common["amplitude_contrast"])],
            "rlnImagePixelSize": [_fixed(pixel_size)],
            "rlnImageSize": [str(box_size)],
            "rlnImageDimensionality": ["2"],
        }
    )
    columns = {
        "rlnDefocusU": optics.defocus_u,
        "rlnDefocusV": optics.defocus_v,
        "rlnDefocusAngle": optics.astigmatism_angle,
        "rlnPhaseShift": optics.phase_shift,
        "rlnCtfBfactor": optics.b_factor,
        "rlnCtfScalefactor": optics.scale,
    }
    particles = Particles(
        path=path,
        table=pd.DataFrame(
            {name: [_fixed(value) for value in values.tolist()] for name, values in columns.items()}
            | {"rlnOpticsGroup": ["1"] * count}
        ),
        optics_table=optics_table,
        stacks=(stack.absolute(),),
        stack_of=torch.zeros(count, dtype=torch.int64),
        index_in_stack=torch.arange(count),
        rotations=rotations.to(torch.float64),
        shifts=shifts.to(torch.float64),
        optics=optics.to(dtype=torch.float64, device="cpu"),
        optics_group=torch.zeros(count, dtype=torch.int64),
        half_sets=half_sets.to(torch.int64),
        pixel_size=pixel_size,
        box_size=box_size,
        notes=(),
    )
    return replace(particles, table=_updated_table(particles, path, rotations, shifts))


def write_particles(
    particles: Particles,
    path: Path,
    *,
    rotations: Tensor,
    shifts: Tensor,
    extra: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> None:
    """Write the particles with new poses, in the dialect they were read in.

    Every other column keeps its text. The half sets and the per-particle scale are written, and image names
    start at the folder of the new file, so RELION's programs must be run from there. The file appears whole
    or not at all.

    Args:
        particles: n particles.
        path: STAR file; an existing one is replaced.
        rotations: (n, 3, 3).
        shifts: (n, 2) Å.
        extra: further columns by STAR label, each (n,); a column of that label is replaced.

    Raises:
        ValueError: an extra column has the wrong length or the label of a column written here.
    """
    table = _updated_table(particles, path, rotations, shifts)
    for label, values in (extra or {}).items():
        if label in (*_ANGLES, *_origin_columns(particles.table, particles.optics_table), "rlnImageName",
                     "rlnRandomSubset", SCALE_COLUMN):  # fmt: skip
            raise ValueError(f"{path}: the extra column {label} is written from the particles themselves.")
        if values.shape != (len(particles),):
            raise ValueError(
                f"{path}: extra column {label} has shape {values.shape}, not ({len(particles)},)."
            )
        table[label] = [_shortest(value) for value in values.tolist()]
    blocks: dict[str, Any] = {}
    if particles.optics_table is not None:
        known = {"rlnImageSize": str(particles.box_size), "rlnImageDimensionality": "2"}
        absent = {label: text for label, text in known.items() if label not in particles.optics_table}
        blocks["optics"] = particles.optics_table.assign(**absent)  # RELION stops where these are absent
    blocks[particles.block] = table
    text: str = starfile.to_string(blocks, na_rep="nan")
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


# ---- tables ----


def _read_tables(path: Path) -> tuple[str, pd.DataFrame, pd.DataFrame | None, tuple[str, ...]]:
    """Name and text of the particle table, the optics table if there is one, and notes."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such particle file.")
    try:
        with path.open(encoding="utf-8") as file:
            labels = {line.split()[0][1:] for line in map(str.lstrip, file) if line.startswith("_")}
        # all columns as text: numbers in names (group "0012") and the digits of the file are kept
        blocks = cast(dict[str, Any], starfile.read(path, always_dict=True, parse_as_string=sorted(labels)))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not a STAR file (it is not text); a cryoSPARC .cs file must be converted first, for "
            "instance with csparc2star.py of pyem."
        ) from error
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path}: not a readable STAR file: {error}") from error
    tables = {
        name: block if isinstance(block, pd.DataFrame) else pd.DataFrame([block])
        for name, block in blocks.items()
        if block is not None
    }
    optics_table = tables.pop("optics", None)
    candidates = [name for name, table in tables.items() if "rlnImageName" in table.columns]
    block = "particles" if "particles" in candidates else next(iter(candidates), "")
    if not candidates or (len(candidates) > 1 and block != "particles"):
        listed = ", ".join(f"data_{name}" for name in blocks) or "(none)"
        raise ValueError(
            f"{path}: one table of particles (a block with the column rlnImageName) is needed; found "
            f"{len(candidates)} among the blocks {listed}."
        )
    table = tables.pop(block)
    if len(table) < 2:
        raise ValueError(f"{path}: at least 2 particles are needed for two half sets; found {len(table)}.")
    notes = tuple(
        f"The block data_{name} of {path} is not used, and not copied to new files." for name in tables
    )
    return block, table, optics_table, notes


def _require(table: pd.DataFrame, labels: Sequence[str], where: str) -> None:
    missing = [label for label in labels if label not in table.columns]
    if missing:
        raise ValueError(
            f"{where}: the columns {', '.join(missing)} are needed and absent; "
            "give the STAR file of a refinement with poses and CTF parameters."
        )


def _numbers(
    table: pd.DataFrame,
    label: str,
    where: str,
    *,
    rows: _Integers | None = None,
    default: float | None = None,
) -> _Floats:
    """Finite values of a column, of all rows or of `rows`; `default` where there is no such column."""
    count = len(table) if rows is None else len(rows)
    if default is not None and label not in table.columns:
        return np.full(count, default, dtype=np.float64)
    text = table[label].to_numpy(dtype=object)
    try:
        values: _Floats = text.astype(np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: column {label} must hold numbers: {error}.") from error
    finite = np.isfinite(values if rows is None else values[rows])
    if not finite.all():
        first = int(np.flatnonzero(~finite)[0]) if rows is None else int(rows[np.flatnonzero(~finite)[0]])
        raise ValueError(
            f"{where}: column {label} holds {values[first]} in row {first + 1}"
            + f" ({int((~finite).sum())} particles in all); remove those particles or repair the values."
        )
    return values if rows is None else values[rows]


def _fixed(value: float) -> str:
    return f"{value:.6f}"  # RELION's own format


def _shortest(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)  # STAR knows no True and False


# ---- optics ----


def _group_of_each(table: pd.DataFrame, optics_table: pd.DataFrame, path: Path) -> _Integers:
    """(n,) row of the optics table for each particle."""
    _require(table, ("rlnOpticsGroup",), f"{path}, particle table")
    _require(optics_table, ("rlnOpticsGroup",), f"{path}, block data_optics")
    numbers = _numbers(optics_table, "rlnOpticsGroup", f"{path}, block data_optics").tolist()
    wanted = _numbers(table, "rlnOpticsGroup", f"{path}, particle table").tolist()
    row_of = {number: row for row, number in enumerate(numbers)}
    absent = sorted(set(wanted) - set(row_of))
    if absent or len(row_of) != len(numbers):
        raise ValueError(
            f"{path}: each optics group must stand once in block data_optics, which lists "
            f"{', '.join(f'{number:g}' for number in numbers)}"
            + (f"; particles also name {', '.join(f'{number:g}' for number in absent)}." if absent else ".")
        )
    return np.array([row_of[number] for number in wanted], dtype=np.int64)


def _refuse_other_images(microscope: pd.DataFrame, group: _Integers, where: str) -> None:
    for label, usable, remedy in (
        ("rlnImageDimensionality", 2.0, "only projection images can be refined here, not sub-tomograms"),
        ("rlnCtfDataAreCtfPremultiplied", 0.0, "extract the images without multiplying them by the CTF"),
        ("rlnCtfDataArePhaseFlipped", 0.0, "extract the images without flipping phases"),
    ):
        values = _numbers(microscope, label, where, rows=group, default=usable)
        if (values != usable).any():
            raise ValueError(f"{where}: {label} is {values[values != usable][0]:g}; {remedy}.")


def _star_pixel_size(microscope: pd.DataFrame, group: _Integers, where: str, *, has_optics: bool) -> float:
    if has_optics:
        _require(microscope, ("rlnImagePixelSize",), where)
        sizes = _numbers(microscope, "rlnImagePixelSize", where, rows=group)
    else:
        _require(microscope, ("rlnMagnification", "rlnDetectorPixelSize"), where)
        magnification = _numbers(microscope, "rlnMagnification", where)
        if (magnification <= 0).any():
            raise ValueError(f"{where}: rlnMagnification must be above 0, not {magnification.min():g}.")
        sizes = _numbers(microscope, "rlnDetectorPixelSize", where) * 1e4 / magnification  # µm to Å
    if sizes.min() <= 0:
        raise ValueError(f"{where}: the pixel size must be above 0 Å, not {sizes.min():g}.")
    if sizes.max() > sizes.min() * (1 + 1e-6):
        raise ValueError(
            f"{where}: the particles have pixel sizes from {sizes.min():g} to {sizes.max():g} Å; split the "
            "STAR file by optics group, or rescale the images to one pixel size."
        )
    return float(sizes[0])


def _check_star_box_size(
    microscope: pd.DataFrame, group: _Integers, where: str, box_size: int, *, has_images: bool
) -> None:
    sizes = _numbers(microscope, "rlnImageSize", where, rows=group, default=box_size)
    if (sizes != box_size).any():
        other = sizes[sizes != box_size][0]
        if not has_images:
            raise ValueError(f"{where}: rlnImageSize is {other:g} px, not the {box_size} px of the map.")
        raise ValueError(
            f"{where}: rlnImageSize is {other:g} px, but the images are {box_size} px; the pixel size may be "
            "wrong too. Give the STAR file that belongs to these images, or split it by optics group."
        )


def _optics(
    table: pd.DataFrame,
    where: str,
    microscope: pd.DataFrame,
    group: _Integers,
    microscope_where: str,
    ctf_damping: CtfDamping,
) -> tuple[Optics, tuple[str, ...]]:
    voltage, aberration, contrast = (
        _numbers(microscope, label, microscope_where, rows=group) for label in _MICROSCOPE
    )
    for label, values, low, high in (
        ("rlnVoltage", voltage, 1.0, 10000.0),
        ("rlnAmplitudeContrast", contrast, 0.0, 1.0),
    ):
        outside = values[(values < low) | (values > high)]
        if len(outside):
            raise ValueError(
                f"{microscope_where}: {label} must lie in {low:g} to {high:g}, not {outside[0]:g}."
            )
    b_factor = _numbers(table, "rlnCtfBfactor", where, default=0.0)
    scale = _numbers(table, "rlnCtfScalefactor", where, default=1.0)
    notes: tuple[str, ...] = ()
    if ctf_damping == "relion" and (b_factor < 0).any():
        raise ValueError(
            f"{where}: {int((b_factor < 0).sum())} of {len(table)} particles have a negative rlnCtfBfactor "
            f"(lowest {b_factor.min():g} Å^2), which in RELION amplifies high frequencies; choose "
            "data.ctf_damping=absolute (damp by |B|: Warp and M write negative values) or "
            "data.ctf_damping=none."
        )
    if ctf_damping == "absolute":
        if (b_factor < 0).any():
            notes = (f"{where}: the CTF is damped by |rlnCtfBfactor| (data.ctf_damping=absolute).",)
        b_factor = np.abs(b_factor)
    elif ctf_damping == "none":
        if b_factor.any() or (scale != 1).any():
            notes = (f"{where}: rlnCtfBfactor and rlnCtfScalefactor are ignored (data.ctf_damping=none).",)
        b_factor, scale = np.zeros_like(b_factor), np.ones_like(scale)
    defocus_u, defocus_v, astigmatism_angle = (_numbers(table, label, where) for label in _DEFOCUS)
    typical = float(np.median(np.abs(defocus_u))) if len(defocus_u) else 0.0
    if 0.0 < typical < LEAST_DEFOCUS:
        notes += (
            f"{where}: rlnDefocusU is {typical:g} in the median; it is read as Å, and a defocus of less than "
            f"{LEAST_DEFOCUS:g} Å is unusual (µm times 10000 are Å).",
        )
    phase_shift = _numbers(table, "rlnPhaseShift", where, default=0.0)
    columns = (
        defocus_u,
        defocus_v,
        astigmatism_angle,
        voltage,
        aberration,
        contrast,
        phase_shift,
        b_factor,
        scale,
    )
    return Optics(*(torch.from_numpy(column) for column in columns)), notes


def _aberrations(
    microscope: pd.DataFrame, group: _Integers, where: str, optics: Optics
) -> tuple[ImageAberrations | None, Tensor | None, tuple[str, ...]]:
    """What is corrected in each image, coefficients of the even aberrations (n, c), and a note on both."""
    odd = _coefficients(microscope, _ODD, where, group)
    even = _coefficients(microscope, _EVEN, where, group)
    tilt = torch.from_numpy(
        np.stack([_numbers(microscope, label, where, rows=group, default=0.0) for label in _TILT], axis=-1)
    )
    if any(label in microscope.columns for label in _TILT):
        odd = with_beam_tilt(
            odd, tilt, spherical_aberration=optics.spherical_aberration,
            wavelength=electron_wavelength(optics.voltage),
        )  # fmt: skip
    entries = [
        _numbers(microscope, label, where, rows=group, default=neutral)
        for label, neutral in zip(_MAGNIFICATION, (1.0, 0.0, 0.0, 1.0), strict=True)
    ]
    magnification = torch.from_numpy(np.stack(entries, axis=-1)).reshape(-1, 2, 2)
    change = torch.linalg.matrix_norm(magnification - torch.eye(2, dtype=torch.float64), ord=2)
    if float(change.max()) > MOST_MAGNIFICATION:
        raise ValueError(
            f"{where}: rlnMagMat changes the magnification by {float(change.max()):.0%}, and at most "
            f"{MOST_MAGNIFICATION:.0%} is corrected here; check the columns, or rescale the images."
        )
    applied = {
        "beam tilt and odd aberrations": bool(odd.any()),
        "even aberrations": bool(even.any()),
        "anisotropic magnification": bool(change.any()),
    }
    told = [what for what, there in applied.items() if there]
    notes = (f"{where}: corrected for {', '.join(told)}.",) if told else ()
    images = ImageAberrations(odd, magnification) if odd.any() or change.any() else None
    return images, even if even.any() else None, notes


def _coefficients(table: pd.DataFrame, label: str, where: str, rows: _Integers) -> Tensor:
    """(n, c) vectors of a column of texts like "[1,2,3]", filled up with zeros; (n, 0) where it is absent."""
    if label not in table.columns:
        return torch.zeros(len(rows), 0, dtype=torch.float64)
    try:
        vectors = [
            [float(element) for element in str(text).strip("[] ").split(",") if element.strip()]
            for text in table[label]
        ]
    except ValueError as error:
        raise ValueError(f"{where}: column {label} must hold vectors like [0.1,0,2]: {error}.") from error
    padded = torch.zeros(len(vectors), max(map(len, vectors)), dtype=torch.float64)
    for row, vector in zip(padded, vectors, strict=True):
        row[: len(vector)] = torch.tensor(vector, dtype=torch.float64)
    if not bool(padded.isfinite().all()):
        raise ValueError(f"{where}: column {label} holds a coefficient that is not finite.")
    return padded[torch.from_numpy(rows)]


def _aberrations_in_the_wrong_table(table: pd.DataFrame, where: str) -> tuple[str, ...]:
    """A note on columns of aberrations among the particles, which belong to the optics groups."""
    present = [label for label in _ABERRATIONS if label in table.columns]
    if not present:
        return ()
    return (f"{where}: {', '.join(present)} not used: these columns belong in block data_optics.",)


def _in_corrected_frame(shifts: Tensor, aberrations: ImageAberrations) -> Tensor:
    """(n, 2) shifts in recorded images as shifts in corrected ones: `M^-T t`."""
    return torch.linalg.solve(aberrations.magnification.mT, shifts[..., None]).squeeze(-1)


def _in_recorded_frame(shifts: Tensor, aberrations: ImageAberrations) -> Tensor:
    """The inverse: `M^T t`."""
    return (aberrations.magnification.mT @ shifts[..., None]).squeeze(-1)


# ---- poses and half sets ----


def _origin_columns(table: pd.DataFrame, optics_table: pd.DataFrame | None) -> tuple[str, ...]:
    """Origin columns to write: those there are, or those of the dialect."""
    labels = ("rlnOriginX", "rlnOriginY", "rlnOriginXAngst", "rlnOriginYAngst")
    own = labels[:2] if optics_table is None else labels[2:]
    return tuple(label for label in labels if label in table.columns or label in own)


def _shifts(table: pd.DataFrame, where: str, pixel_size: float) -> Tensor:
    """(n, 2) Å; the unit is told by the name of the column, Å if both are there."""
    in_angstrom = "rlnOriginXAngst" in table.columns or "rlnOriginYAngst" in table.columns
    labels = ("rlnOriginXAngst", "rlnOriginYAngst") if in_angstrom else ("rlnOriginX", "rlnOriginY")
    origins = np.stack([_numbers(table, label, where, default=0.0) for label in labels], axis=-1)
    # 0 - x instead of -x: no negative zeros
    return torch.from_numpy(0.0 - origins * (1.0 if in_angstrom else pixel_size))


def _contrast(table: pd.DataFrame, where: str) -> tuple[Tensor | None, tuple[str, ...]]:
    """(n,) per-particle scale that an earlier refinement wrote, if there is one."""
    if SCALE_COLUMN not in table.columns:
        return None, ()
    scale = _numbers(table, SCALE_COLUMN, where)
    if (scale <= 0).any():
        raise ValueError(
            f"{where}: {SCALE_COLUMN} must be above 0, not {scale.min():g}; remove the column to do "
            "without a scale."
        )
    low, high = scale.min(), scale.max()
    said = f"{where}: the CTF of each particle is multiplied by its {SCALE_COLUMN}, {low:g} to {high:g}."
    return torch.from_numpy(scale), (said,)


def _half_sets(table: pd.DataFrame, where: str, seed: int) -> tuple[Tensor, tuple[str, ...]]:
    count = len(table)
    if "rlnRandomSubset" not in table.columns:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        half_sets = torch.zeros(count, dtype=torch.int64)
        half_sets[order[: count // 2]] = 1
        return half_sets, (
            f"{where}: no rlnRandomSubset, so the particles were split at random (seed {seed}).",
        )
    subset = _numbers(table, "rlnRandomSubset", where)
    found = np.unique(subset)
    if found.tolist() != [1.0, 2.0]:
        raise ValueError(
            f"{where}: rlnRandomSubset must hold both 1 and 2 and nothing else, but holds "
            f"{', '.join(f'{value:g}' for value in found[:5])}; give the STAR file of a gold-standard "
            "refinement with both half sets, or remove the column to have the particles split at random."
        )
    return torch.from_numpy(subset.astype(np.int64) - 1), ()


def _updated_table(particles: Particles, path: Path, rotations: Tensor, shifts: Tensor) -> pd.DataFrame:
    """The table with new poses, the half sets, and image names that start at the folder of `path`."""
    table = particles.table.copy()
    names = [_relative_name(stack, path) for stack in particles.stacks]
    places = zip(particles.index_in_stack.tolist(), particles.stack_of.tolist(), strict=True)
    table["rlnImageName"] = [f"{index + 1:06d}@{names[stack]}" for index, stack in places]
    angles = euler_from_rotation(rotations.detach().to(device="cpu", dtype=torch.float64))
    for label, values in zip(_ANGLES, angles.unbind(-1), strict=True):
        table[label] = [_fixed(value) for value in values.tolist()]
    shifts = shifts.detach().to(device="cpu", dtype=torch.float64)
    if particles.aberrations is not None:
        shifts = _in_recorded_frame(shifts, particles.aberrations)
    origins = 0.0 - shifts
    for label in _origin_columns(particles.table, particles.optics_table):
        values = origins[:, 0 if label.startswith("rlnOriginX") else 1]
        unit = 1.0 if label.endswith("Angst") else particles.pixel_size
        table[label] = [_fixed(value) for value in (values / unit).tolist()]
    table["rlnRandomSubset"] = [str(half_set + 1) for half_set in particles.half_sets.tolist()]
    if particles.contrast is not None:
        table[SCALE_COLUMN] = [_fixed(value) for value in particles.contrast.tolist()]
    return table


def _relative_name(stack: Path, path: Path) -> str:
    # folders are resolved, for ".." after a link leads elsewhere; the stack itself may stay a link
    folder = path.absolute().parent.resolve()
    return Path(os.path.relpath(stack.absolute().parent.resolve() / stack.name, folder)).as_posix()


# ---- image stacks ----


@dataclass(frozen=True)
class _StackHeader:
    count: int
    box_size: int
    pixel_size: float
    has_map_tag: bool
    dtype: np.dtype[Any]
    offset: int


def _image_names(table: pd.DataFrame, where: str) -> tuple[list[str], _Integers, _Integers]:
    """Distinct stack names, and for each particle its stack and its image from 0 (-1: no number given)."""
    number_of: dict[str, int] = {}
    stack_of = np.empty(len(table), dtype=np.int64)
    index_in_stack = np.empty(len(table), dtype=np.int64)
    for row, text in enumerate(table["rlnImageName"].astype(str)):
        image, at, name = text.partition("@")
        if at and not (image.isdecimal() and int(image) >= 1 and name):
            raise ValueError(
                f"{where}: rlnImageName {text!r} in row {row + 1} must be NNNNNN@stack, from 000001."
            )
        stack_of[row] = number_of.setdefault(name if at else text, len(number_of))
        index_in_stack[row] = int(image) - 1 if at else -1
    return list(number_of), stack_of, index_in_stack


def _find_stacks(
    names: list[str], rows: _Integers, path: Path, image_folder: Path | None
) -> tuple[Path, ...]:
    """Paths of the stacks `names`, which `rows[i]` particles need each."""
    star_folder = path.absolute().parent
    stacks: list[Path] = []
    missing: list[int] = []
    by_file_name: dict[Path, str] = {}
    for number, name in enumerate(names):
        stack = Path(name)
        if image_folder is None:
            candidates = [folder / stack for folder in (star_folder, *star_folder.parents)]
        else:
            folder = image_folder.absolute()
            candidates = [folder / stack.relative_to(stack.anchor), folder / stack.name]
        found = next((candidate for candidate in candidates if candidate.is_file()), None)
        if found is None:
            missing.append(number)
            continue
        if image_folder is not None and found != candidates[0]:
            other = by_file_name.setdefault(found, name)
            if other != name:
                raise ValueError(
                    f"{path}: the stacks {other} and {name} would both be read from {found}; set "
                    "data.image_folder to the folder that these paths start from."
                )
        stacks.append(found)
    if missing:
        looked = f"{star_folder} and the folders above it" if image_folder is None else f"{image_folder}"
        raise ValueError(
            f"{path}: image stack {names[missing[0]]} "
            + (f"and {len(missing) - 1} more were" if len(missing) > 1 else "was")
            + f" not found, which {int(rows[missing].sum())} of {int(rows.sum())} rows need; looked in "
            f"{looked}. Set data.image_folder to the folder that the paths in rlnImageName start from, or "
            "that holds the stacks."
        )
    return tuple(stacks)


def _check_stacks(
    stacks: tuple[Path, ...], stack_of: _Integers, index_in_stack: _Integers, path: Path, pixel_size: float
) -> tuple[int, tuple[str, ...]]:
    """Box size of the images, after a look at the header of every stack, and notes."""
    headers = [_read_stack_header(stack) for stack in stacks]
    counts = np.array([header.count for header in headers])[stack_of]
    unnumbered = np.flatnonzero((index_in_stack < 0) & (counts > 1))
    if len(unnumbered):
        row = int(unnumbered[0])
        raise ValueError(
            f"{path}: rlnImageName in row {row + 1} gives no image number (NNNNNN@stack), but "
            f"{stacks[stack_of[row]]} holds {counts[row]} images."
        )
    beyond = np.flatnonzero(index_in_stack >= counts)
    if len(beyond):
        row = int(beyond[0])
        raise ValueError(
            f"{path}: row {row + 1} asks for image {index_in_stack[row] + 1} of {stacks[stack_of[row]]}, "
            f"which holds {counts[row]} ({len(beyond)} such rows); the stack and the STAR file do not belong "
            "together."
        )
    boxes = sorted({header.box_size for header in headers})
    if len(boxes) > 1:
        raise ValueError(
            f"{path}: the images have different boxes ({', '.join(map(str, boxes))} px); split the STAR file "
            "by optics group, or re-extract the images in one box."
        )
    notes: list[str] = []
    without_tag = [stack for stack, header in zip(stacks, headers, strict=True) if not header.has_map_tag]
    if without_tag:
        notes.append(f"{_first_of(without_tag)} lacks the 'MAP ' tag of an MRC file; it was read as one.")
    other_size = [
        (stack, header.pixel_size)
        for stack, header in zip(stacks, headers, strict=True)
        if abs(header.pixel_size - pixel_size) > 1e-3 * pixel_size
    ]
    if other_size:
        stack = _first_of([stack for stack, _ in other_size])
        notes.append(
            f"The header of {stack} says {other_size[0][1]:g} Å per pixel"
            + (" (unset)" if other_size[0][1] in (0.0, 1.0) else "")
            + f"; the {pixel_size:g} Å of the STAR file is used."
        )
    return boxes[0], tuple(notes)


def _first_of(stacks: list[Path]) -> str:
    return str(stacks[0]) + (f" (and of {len(stacks) - 1} others)" if len(stacks) > 1 else "")


def _read_stack_header(stack: Path) -> _StackHeader:
    """Header of an uncompressed MRC stack of square images that is as long as it says."""
    with stack.open("rb") as file:
        if file.read(3) in (b"\x1f\x8b\x08", b"BZh"):
            raise ValueError(f"{stack}: the stack is compressed and cannot be memory-mapped; decompress it.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what `permissive` warns of is checked here, one by one
            with MrcFile(stack, permissive=True, header_only=True) as file:
                header: Any = file.header
        dtype: np.dtype[Any] = data_dtype_from_header(header)
    except ValueError as error:
        raise ValueError(f"{stack}: not a readable MRC stack: {error}.") from error
    nx, ny, nz = int(header.nx), int(header.ny), int(header.nz)
    offset = int(header.nbytes) + int(header.nsymbt)
    if dtype.kind == "c" or nx != ny or min(nx, nz) < 1 or offset < header.nbytes:
        raise ValueError(
            f"{stack}: a stack of square real images is needed, not {nz} of {ny} x {nx} px, {dtype}."
        )
    expected, actual = offset + nz * ny * nx * dtype.itemsize, stack.stat().st_size
    if actual < expected:
        raise ValueError(
            f"{stack}: the stack is truncated: {actual} bytes where its header needs {expected}."
        )
    intervals = int(header.mx)
    pixel_size = float(header.cella.x) / intervals if intervals > 0 else 0.0
    return _StackHeader(nz, nx, pixel_size, has_map_tag(header), dtype, offset)


def _open_stack(stack: Path) -> np.ndarray[Any, Any]:
    return _map_stack(stack, stack.stat().st_mtime_ns)


@lru_cache(maxsize=256)  # below the usual limit on open files
def _map_stack(stack: Path, modified: int) -> np.ndarray[Any, Any]:  # noqa: ARG001 - a new file gets a new map
    header = _read_stack_header(stack)
    shape = (header.count, header.box_size, header.box_size)
    return np.memmap(stack, dtype=header.dtype, mode="r", offset=header.offset, shape=shape)
