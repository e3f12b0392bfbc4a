"""Particles: STAR files of every dialect, and the stacks they name."""

import gzip
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cryosweep.ctf import Optics
from cryosweep.geometry import euler_from_rotation, random_rotations, rotation_from_euler
from cryosweep.io import (
    Particles,
    new_particles,
    open_stack_for_writing,
    read_particles,
    read_views,
    write_particles,
)

Columns = dict[str, list[str]]

OPTICS: Columns = {
    "rlnOpticsGroup": ["1", "2"],
    "rlnOpticsGroupName": ["first", "second"],
    "rlnVoltage": ["300.0", "200.0"],
    "rlnSphericalAberration": ["2.7", "1.4"],
    "rlnAmplitudeContrast": ["0.1", "0.07"],
    "rlnImagePixelSize": ["2.5", "2.5"],
    "rlnImageSize": ["6", "6"],
    "rlnImageDimensionality": ["2", "2"],
}
POSES: Columns = {
    "rlnImageName": [f"{number:06d}@Extract/job007/a.mrcs" for number in (1, 3, 2, 4)],
    "rlnAngleRot": ["10.5", "-20.0", "170", "0"],
    "rlnAngleTilt": ["30", "60.25", "90", "120"],
    "rlnAnglePsi": ["-5", "15", "25", "-160"],
    "rlnDefocusU": ["12000", "13000", "14000", "15000"],
    "rlnDefocusV": ["11000", "12500", "13900", "15000"],
    "rlnDefocusAngle": ["45", "10", "-20", "0"],
    "rlnGroupName": ["0012", "1e5", "None", "group_1"],  # text that must not become a number
    "rlnRandomSubset": ["1", "2", "2", "1"],
}
RELION31: Columns = POSES | {
    "rlnOpticsGroup": ["1", "2", "1", "2"],
    "rlnOriginXAngst": ["1.25", "-2.5", "0", "10"],
    "rlnOriginYAngst": ["0.5", "0", "-7.5", "5"],
}
RELION30: Columns = POSES | {
    "rlnVoltage": ["300", "200", "300", "200"],
    "rlnSphericalAberration": ["2.7", "1.4", "2.7", "1.4"],
    "rlnAmplitudeContrast": ["0.1", "0.07", "0.1", "0.07"],
    "rlnMagnification": ["20000"] * 4,
    "rlnDetectorPixelSize": ["5"] * 4,
    "rlnOriginX": ["0.5", "-1", "0", "4"],
    "rlnOriginY": ["0.2", "0", "-3", "2"],
}


def without(columns: Columns, *labels: str) -> Columns:
    return {label: values for label, values in columns.items() if label not in labels}


def write_star(path: Path, **blocks: Columns) -> Path:
    lines: list[str] = []
    for name, columns in blocks.items():
        lines += ["", "# version 30001", "", f"data_{name.removeprefix('unnamed')}", "", "loop_"]
        lines += [f"_{label} #{number}" for number, label in enumerate(columns, 1)]
        lines += ["\t".join(row) + " " for row in zip(*columns.values(), strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, ""]))
    return path


def write_stack(path: Path, *, count: int = 4, box_size: int = 6, pixel_size: float = 2.5) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(count).normal(size=(count, box_size, box_size)).astype(np.float32)
    with open_stack_for_writing(path, count=count, box_size=box_size, pixel_size=pixel_size) as stack:
        stack[:] = images
    return images


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A RELION project folder with one stack of four images."""
    write_stack(tmp_path / "Extract" / "job007" / "a.mrcs")
    return tmp_path


def relion31(project: Path, optics: Columns = OPTICS, **changes: list[str]) -> Path:
    return write_star(
        project / "Refine3D" / "job010" / "run_data.star", optics=optics, particles=RELION31 | changes
    )


def assert_same(first: Particles, second: Particles) -> None:
    """Equal to the six decimals of the files: half of the last one, for three angles, is 2.6e-8."""
    assert len(first) == len(second)
    torch.testing.assert_close(first.rotations, second.rotations, rtol=0, atol=3e-8)
    torch.testing.assert_close(first.shifts, second.shifts, rtol=0, atol=2e-6)
    assert torch.equal(first.half_sets, second.half_sets)
    if (first.optics_table is None) == (second.optics_table is None):
        assert torch.equal(first.optics_group, second.optics_group)
    assert first.pixel_size == second.pixel_size
    assert first.box_size == second.box_size
    every = torch.arange(len(first))
    assert torch.equal(first.images(every), second.images(every))
    for field, value in vars(first.optics).items():
        if field != "even_zernike" or value is not None:
            assert torch.equal(value, getattr(second.optics, field)), field
    assert (first.optics.even_zernike is None) == (second.optics.even_zernike is None)
    assert (first.aberrations is None) == (second.aberrations is None)


# ---- what a table means ----


def test_relion31_table(project):
    particles = read_particles(relion31(project))
    assert particles.pixel_size == 2.5
    assert particles.box_size == 6
    assert particles.block == "particles"
    assert particles.shifts.tolist() == [[-1.25, -0.5], [2.5, 0.0], [0.0, 7.5], [-10.0, -5.0]]
    assert particles.optics_group.tolist() == [0, 1, 0, 1]
    assert particles.half_sets.tolist() == [0, 1, 1, 0]
    assert particles.index_in_stack.tolist() == [0, 2, 1, 3]
    assert particles.optics.voltage.tolist() == [300.0, 200.0, 300.0, 200.0]
    assert particles.optics.spherical_aberration.tolist() == [2.7, 1.4, 2.7, 1.4]
    assert particles.optics.amplitude_contrast.tolist() == [0.1, 0.07, 0.1, 0.07]
    assert particles.optics.defocus_u.tolist() == [12000.0, 13000.0, 14000.0, 15000.0]
    assert particles.optics.defocus_v.tolist() == [11000.0, 12500.0, 13900.0, 15000.0]
    assert particles.optics.astigmatism_angle.tolist() == [45.0, 10.0, -20.0, 0.0]
    assert particles.optics.phase_shift.tolist() == [0.0] * 4  # absent columns
    assert particles.optics.b_factor.tolist() == [0.0] * 4
    assert particles.optics.scale.tolist() == [1.0] * 4
    angles = torch.tensor(
        [[10.5, 30, -5], [-20, 60.25, 15], [170, 90, 25], [0, 120, -160]], dtype=torch.float64
    )
    assert torch.equal(particles.rotations, rotation_from_euler(angles))
    assert particles.notes == ()


@pytest.mark.parametrize("block", ["unnamed", "images", "particles", "model_class_1"])
def test_tables_before_relion31_mean_the_same(project, block):
    old = read_particles(write_star(project / "old.star", **{block: RELION30}))
    assert old.optics_table is None
    assert old.optics_group.tolist() == [0] * 4
    assert old.block == block.removeprefix("unnamed")
    assert_same(old, read_particles(relion31(project)))


def test_blocks_in_any_order_with_comments_and_spare_blocks(project):
    reference = read_particles(relion31(project))
    path = write_star(project / "b.star", particles=RELION31, optics=OPTICS, general={"rlnSomething": ["1"]})
    path.write_text(path.read_text().replace("_rlnVoltage #3", "_rlnVoltage #3 [kV, of the gun]"))
    particles = read_particles(path)
    assert_same(particles, reference)
    assert len(particles.notes) == 1
    assert "data_general" in particles.notes[0]


def test_a_group_that_no_particle_uses_may_differ(project):
    optics = {label: [*values, values[0]] for label, values in OPTICS.items()} | {
        "rlnOpticsGroup": ["1", "2", "3"],
        "rlnImagePixelSize": ["2.5", "2.5", "1.1"],
        "rlnImageSize": ["6", "6", "nan"],
    }
    assert_same(read_particles(relion31(project, optics)), read_particles(relion31(project)))


def test_origins_may_be_absent(project):
    columns = without(RELION31, "rlnOriginXAngst", "rlnOriginYAngst")
    path = write_star(project / "a.star", optics=OPTICS, particles=columns)
    particles = read_particles(path)
    assert not particles.shifts.any()
    write_particles(particles, path, rotations=particles.rotations, shifts=torch.full((4, 2), 1.5))
    assert (read_particles(path).shifts == 1.5).all()


def test_the_column_tells_the_unit_of_the_origin(project):
    """Pixels beside an optics table, as hand-made files have them."""
    columns = without(RELION31, "rlnOriginXAngst", "rlnOriginYAngst")
    columns |= {label: RELION30[label] for label in ("rlnOriginX", "rlnOriginY")}
    path = write_star(project / "a.star", optics=OPTICS, particles=columns)
    particles = read_particles(path)
    assert_same(particles, read_particles(relion31(project)))
    write_particles(particles, path, rotations=particles.rotations, shifts=particles.shifts)
    assert_same(read_particles(path), particles)


@pytest.mark.parametrize(
    ("damping", "b_factor", "scale"),
    [("absolute", [50.0, 0.0, 20.0, 0.0], [0.9, 1.0, 1.0, 0.5]), ("none", [0.0] * 4, [1.0] * 4)],
)
def test_negative_b_factors_need_a_choice(project, damping, b_factor, scale):
    path = relion31(
        project,
        rlnCtfBfactor=["-50", "0", "20", "0"],
        rlnCtfScalefactor=["0.9", "1", "1", "0.5"],
        rlnPhaseShift=["90", "0", "0", "0"],
    )
    with pytest.raises(ValueError, match=r"1 of 4.*-50.*data\.ctf_damping=absolute.*data\.ctf_damping=none"):
        read_particles(path)
    particles = read_particles(path, ctf_damping=damping)
    assert particles.optics.b_factor.tolist() == b_factor
    assert particles.optics.scale.tolist() == scale
    assert particles.optics.phase_shift[0] == 90.0
    assert f"data.ctf_damping={damping}" in particles.notes[0]


def test_positive_b_factors_damp(project):
    particles = read_particles(relion31(project, rlnCtfBfactor=["50", "0", "20", "0"]))
    assert particles.optics.b_factor.tolist() == [50.0, 0.0, 20.0, 0.0]
    assert particles.notes == ()


def test_a_defocus_in_another_unit_is_said(project):
    assert not any("rlnDefocusU" in note for note in read_particles(relion31(project)).notes)
    particles = read_particles(relion31(project, rlnDefocusU=["1.2", "1.3", "1.4", "1.5"]))
    (note,) = [note for note in particles.notes if "rlnDefocusU" in note]
    assert "is 1.35 in the median; it is read as Å" in note


def test_aberrations_are_read_and_said(project):
    neutral = OPTICS | {
        "rlnBeamTiltX": ["0", "0.0"],
        "rlnOddZernike": ["[0,0,0]", "[]"],
        "rlnEvenZernike": ["[0,0,0]", "[]"],
        "rlnMagMat00": ["1", "1.0"],
        "rlnMagMat01": ["0", "0"],
    }
    plain = read_particles(relion31(project, neutral))
    assert plain.notes == ()
    assert plain.aberrations is None
    assert plain.optics.even_zernike is None
    optics = neutral | {
        "rlnOddZernike": ["[0,0,0]", "[0,1.5,0]"],
        "rlnEvenZernike": ["[0,2,0,7]", "[]"],
        "rlnMagMat01": ["0", "0.01"],
    }
    particles = read_particles(relion31(project, optics))
    (note,) = particles.notes
    assert note.endswith(
        "corrected for beam tilt and odd aberrations, even aberrations, anisotropic magnification."
    )
    # of the two groups the particles take turns
    assert particles.optics.even_zernike[:2].tolist() == [[0, 2, 0, 7], [0, 0, 0, 0]]
    assert particles.aberrations.odd[:2].tolist() == [[0] * 5, [0, 1.5, 0, 0, 0]]
    assert particles.aberrations.magnification[1].tolist() == [[1, 0.01], [0, 1]]
    taken = particles.take(torch.tensor([1]))
    assert taken.aberrations.odd.tolist() == [[0, 1.5, 0, 0, 0]]
    assert taken.optics.even_zernike.tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("rlnMagMat00", ["1", "odd"], "column rlnMagMat00 must hold numbers"),
        ("rlnMagMat11", ["1", "1.5"], "changes the magnification by 50%"),
        ("rlnOddZernike", ["[0,0]", "[0;1]"], "rlnOddZernike must hold vectors"),
        ("rlnEvenZernike", ["[0,nan]", "[0]"], "rlnEvenZernike holds a coefficient that is not finite"),
    ],
)
def test_unusable_aberrations_are_refused(project, column, values, said):
    with pytest.raises(ValueError, match=said):
        read_particles(relion31(project, OPTICS | {column: values}))


def test_aberrations_among_the_particles_are_not_used(project):
    table = RELION31 | {"rlnBeamTiltX": ["0.5"] * 4}
    particles = read_particles(write_star(project / "tilt.star", optics=OPTICS, particles=table))
    assert particles.aberrations is None
    assert any("rlnBeamTiltX not used" in note for note in particles.notes)
    # before 3.1 there is one table only
    old = read_particles(write_star(project / "old.star", images=RELION30 | {"rlnBeamTiltX": ["0.5"] * 4}))
    assert bool(old.aberrations.odd.any())


# ---- half sets ----


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(2, 9))
def test_seeded_split_is_balanced_and_repeatable(tmp_path_factory, seed, count):
    folder = tmp_path_factory.mktemp("split")
    write_stack(folder / "a.mrcs", count=count)
    columns = {label: [values[0]] * count for label, values in without(RELION31, "rlnRandomSubset").items()}
    columns["rlnImageName"] = [f"{number + 1}@a.mrcs" for number in range(count)]
    path = write_star(folder / "a.star", optics=OPTICS, particles=columns)
    particles = read_particles(path, half_set_seed=seed)
    assert int(particles.half_sets.sum()) == count // 2
    assert torch.equal(particles.half_sets, read_particles(path, half_set_seed=seed).half_sets)
    assert f"seed {seed}" in particles.notes[0]
    write_particles(particles, path, rotations=particles.rotations, shifts=particles.shifts)
    again = read_particles(path, half_set_seed=seed + 1)  # the split was written, so the seed plays no part
    assert torch.equal(again.half_sets, particles.half_sets)
    assert again.notes == ()


def test_another_seed_gives_another_split(project):
    path = write_star(project / "a.star", optics=OPTICS, particles=without(RELION31, "rlnRandomSubset"))
    splits = {tuple(read_particles(path, half_set_seed=seed).half_sets.tolist()) for seed in range(20)}
    assert len(splits) > 3  # of 6


@pytest.mark.parametrize(
    "subset", [["1"] * 4, ["2"] * 4, ["1", "2", "3", "1"], ["0", "1", "2", "1"], ["1.5"] * 4]
)
def test_unusable_half_sets_are_refused(project, subset):
    with pytest.raises(ValueError, match="rlnRandomSubset must hold both 1 and 2"):
        read_particles(relion31(project, rlnRandomSubset=subset))


# ---- images ----


def test_images_come_in_the_order_asked_for(project):
    first = mrcfile.read(project / "Extract" / "job007" / "a.mrcs")
    second = write_stack(project / "Extract" / "job007" / "b.mrcs", count=7)
    names = [
        f"{image}@Extract/job007/{stack}.mrcs" for image, stack in ((7, "b"), (1, "a"), (2, "b"), (4, "a"))
    ]
    particles = read_particles(relion31(project, rlnImageName=names))
    expected = np.stack([second[6], first[0], second[1], first[3]])
    for index in ([0, 1, 2, 3], [3, 0, 2], [1, 1, 0], []):
        images = particles.images(torch.tensor(index, dtype=torch.int64))
        assert images.dtype == torch.float32
        assert np.array_equal(images.numpy(), expected[index])
    taken = particles.take(torch.tensor([2, 0]))
    assert len(taken) == 2
    assert np.array_equal(taken.images(torch.arange(2)).numpy(), expected[[2, 0]])
    assert taken.table["rlnDefocusU"].tolist() == ["14000", "12000"]
    assert taken.optics.defocus_u.tolist() == [14000.0, 12000.0]
    assert taken.half_sets.tolist() == [1, 0]
    images[:] = 0.0  # the caller's own


def test_a_replaced_stack_is_read_anew(project):
    path = relion31(project)
    write_stack(project / "Extract" / "job007" / "a.mrcs", count=5)
    before = read_particles(path).images(torch.arange(4))
    images = write_stack(project / "Extract" / "job007" / "a.mrcs", count=6)
    after = read_particles(path).images(torch.arange(4))
    assert not torch.equal(before, after)
    assert np.array_equal(after.numpy(), images[[0, 2, 1, 3]])


@pytest.mark.parametrize("dtype", ["float16", "int16", "int8", "uint16", ">f4"])
def test_number_types_of_stacks(project, dtype):
    path = project / "Extract" / "job007" / "a.mrcs"
    values = np.arange(4 * 36, dtype=dtype).reshape(4, 6, 6)
    values[0, 0, 0] = 120
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(values)
        file.voxel_size = 2.5
    images = read_particles(relion31(project)).images(torch.arange(4))
    assert np.array_equal(images.numpy(), values[[0, 2, 1, 3]].astype(np.float32))


def test_name_without_a_number_is_the_only_image_of_its_file(project):
    folder = project / "Extract" / "job007"
    single = write_stack(folder / "single.mrc", count=1)
    names = [*RELION31["rlnImageName"][:3], "Extract/job007/single.mrc"]
    particles = read_particles(relion31(project, rlnImageName=names))
    assert np.array_equal(particles.images(torch.tensor([3])).numpy(), single)
    with pytest.raises(ValueError, match=r"row 4 gives no image number.*holds 4 images"):
        read_particles(relion31(project, rlnImageName=[*names[:3], "Extract/job007/a.mrcs"]))


@pytest.mark.parametrize("name", ["000000@a.mrcs", "x@a.mrcs", "-1@a.mrcs", "3@", "@a.mrcs"])
def test_malformed_image_names_are_refused(project, name):
    with pytest.raises(ValueError, match=r"in row 3 must be NNNNNN@stack"):
        read_particles(relion31(project, rlnImageName=["1@a.mrcs", "2@a.mrcs", name, "3@a.mrcs"]))


def test_row_beyond_the_stack_is_refused(project):
    names = [*RELION31["rlnImageName"][:3], "000005@Extract/job007/a.mrcs"]
    with pytest.raises(
        ValueError, match=r"row 4 asks for image 5 of .*a\.mrcs, which holds 4 \(1 such rows\)"
    ):
        read_particles(relion31(project, rlnImageName=names))


def test_stacks_are_found_from_project_star_folder_or_image_folder(project, tmp_path_factory):
    by_project = read_particles(relion31(project))
    (project / "Refine3D" / "job010" / "Extract" / "job007").mkdir(parents=True)
    near = project / "Refine3D" / "job010" / "Extract" / "job007" / "a.mrcs"
    write_stack(near, count=5)
    assert by_project.stacks == (project / "Extract" / "job007" / "a.mrcs",)
    assert read_particles(relion31(project)).stacks == (near,)  # the folder of the STAR file goes first

    elsewhere = tmp_path_factory.mktemp("elsewhere")
    flat, full = elsewhere / "a.mrcs", elsewhere / "Extract" / "job007" / "a.mrcs"
    with pytest.raises(ValueError, match=f"not found, which 4 of 4 rows need; looked in {elsewhere}"):
        read_particles(relion31(project), image_folder=elsewhere)  # no way back to other folders
    write_stack(flat)
    assert read_particles(relion31(project), image_folder=elsewhere).stacks == (flat,)
    write_stack(full)
    assert read_particles(relion31(project), image_folder=elsewhere).stacks == (full,)


def test_absolute_image_names(project, tmp_path_factory):
    stack = project / "Extract" / "job007" / "a.mrcs"
    path = relion31(project, rlnImageName=[f"{number}@{stack}" for number in (1, 2, 3, 4)])
    assert read_particles(path).stacks == (stack,)
    copy = tmp_path_factory.mktemp("copy")
    write_stack(copy / "a.mrcs")
    assert read_particles(path, image_folder=copy).stacks == (copy / "a.mrcs",)


def test_file_names_that_meet_in_one_folder_are_refused(project, tmp_path_factory):
    flat = tmp_path_factory.mktemp("flat")
    write_stack(flat / "a.mrcs")
    path = relion31(project, rlnImageName=["1@x/a.mrcs", "2@y/a.mrcs", "3@x/a.mrcs", "4@y/a.mrcs"])
    with pytest.raises(ValueError, match=r"x/a\.mrcs and y/a\.mrcs would both be read.*data\.image_folder"):
        read_particles(path, image_folder=flat)


def test_missing_stacks_are_counted(project):
    names = ["1@gone.mrcs", "1@Extract/job007/a.mrcs", "2@gone.mrcs", "1@also_gone.mrcs"]
    path = relion31(project, rlnImageName=names)
    with pytest.raises(ValueError, match="gone") as refusal:
        read_particles(path)
    message = str(refusal.value)
    assert f"{path}: image stack gone.mrcs and 1 more were not found, which 3 of 4 rows need" in message
    assert str(path.parent) in message
    assert "data.image_folder" in message


def compress(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes()))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def write_array(values: np.ndarray):
    def change(path: Path) -> None:
        with mrcfile.new(path, overwrite=True) as file:
            file.set_data(values)

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (compress, "compressed"),
        (truncate, "truncated: 1599 bytes where its header needs 1600"),
        (lambda path: path.write_bytes(b"short"), "not a readable MRC stack"),
        (lambda path: path.write_bytes(bytes(2048)), "stack of square real images is needed"),
        (lambda path: path.write_bytes(bytes(12) + b"\x63\0\0\0" + bytes(2048)), "not a readable MRC stack"),
        (
            write_array(np.zeros((4, 6, 5), np.float32)),
            "stack of square real images is needed, not 4 of 6 x 5 px",
        ),
        (write_array(np.zeros((4, 6, 6), np.complex64)), "stack of square real images"),
    ],
)
def test_damaged_stacks_are_refused(project, damage, message):
    damage(project / "Extract" / "job007" / "a.mrcs")
    with pytest.raises(ValueError, match=message) as refusal:
        read_particles(relion31(project))
    assert "a.mrcs" in str(refusal.value)


@pytest.mark.parametrize(("header", "word"), [(1.0, r"1 Å per pixel \(unset\)"), (2.6, "2.6 Å per pixel;")])
def test_pixel_size_of_the_header_does_not_count(project, header, word):
    write_stack(project / "Extract" / "job007" / "a.mrcs", pixel_size=header)
    particles = read_particles(relion31(project))
    assert particles.pixel_size == 2.5
    with pytest.raises(AssertionError, match=word):
        raise AssertionError(particles.notes)


# ---- refusals ----


@pytest.mark.parametrize("label", ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnDefocusU", "rlnDefocusV",
                                   "rlnDefocusAngle", "rlnOpticsGroup"])  # fmt: skip
def test_absent_columns_are_named(project, label):
    path = write_star(project / "a.star", optics=OPTICS, particles=without(RELION31, label))
    with pytest.raises(ValueError, match=rf"a\.star.*{label} are needed and absent"):
        read_particles(path)


@pytest.mark.parametrize("label", ["rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"])
def test_absent_microscope_columns_are_named(project, label):
    path = write_star(project / "a.star", optics=without(OPTICS, label), particles=RELION31)
    with pytest.raises(ValueError, match=f"block data_optics: the columns {label}"):
        read_particles(path)
    path = write_star(project / "a.star", images=without(RELION30, label))
    with pytest.raises(ValueError, match=f"block data_images: the columns {label}"):
        read_particles(path)


def test_pixel_size_columns_are_named(project):
    path = write_star(project / "a.star", optics=without(OPTICS, "rlnImagePixelSize"), particles=RELION31)
    with pytest.raises(ValueError, match="rlnImagePixelSize are needed"):
        read_particles(path)
    columns = without(RELION30, "rlnMagnification", "rlnDetectorPixelSize")
    with pytest.raises(ValueError, match="rlnMagnification, rlnDetectorPixelSize are needed"):
        read_particles(write_star(project / "b.star", images=columns))


@pytest.mark.parametrize(
    "label",
    [
        "rlnAngleTilt",
        "rlnOriginXAngst",
        "rlnDefocusV",
        "rlnCtfBfactor",
        "rlnCtfScalefactor",
        "rlnPhaseShift",
        "rlnRandomSubset",
        "rlnOpticsGroup",
    ],
)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "<NA>"])
def test_values_that_are_not_finite_are_located(project, label, value):
    with pytest.raises(
        ValueError, match=rf"column {label} holds -?(nan|inf) in row 2 \(2 particles in all\)"
    ):
        read_particles(relion31(project, **{label: ["1", value, "2", value]}))


def test_words_in_number_columns_are_refused(project):
    with pytest.raises(ValueError, match="column rlnAngleRot must hold numbers"):
        read_particles(relion31(project, rlnAngleRot=["1", "2", "three", "4"]))


@pytest.mark.parametrize(
    ("optics", "message"),
    [
        ({"rlnImagePixelSize": ["2.5", "2.6"]}, "pixel sizes from 2.5 to 2.6 Å; split the STAR file"),
        ({"rlnImagePixelSize": ["0", "0"]}, "pixel size must be above 0"),
        ({"rlnImageSize": ["6", "8"]}, "rlnImageSize is 8 px, but the images are 6 px"),
        ({"rlnImageDimensionality": ["2", "3"]}, "rlnImageDimensionality is 3; only projection images"),
        ({"rlnCtfDataAreCtfPremultiplied": ["1", "0"]}, "rlnCtfDataAreCtfPremultiplied is 1; extract"),
        ({"rlnCtfDataArePhaseFlipped": ["0", "1"]}, "rlnCtfDataArePhaseFlipped is 1; extract"),
        ({"rlnVoltage": ["300", "0"]}, "rlnVoltage must lie in 1 to 10000, not 0"),
        ({"rlnAmplitudeContrast": ["0.1", "10"]}, "rlnAmplitudeContrast must lie in 0 to 1, not 10"),
        ({"rlnSphericalAberration": ["nan", "2.7"]}, "rlnSphericalAberration holds nan in row 1"),
        ({"rlnOpticsGroup": ["1", "3"]}, "lists 1, 3; particles also name 2"),
        ({"rlnOpticsGroup": ["1", "1"]}, "must stand once"),
    ],
)
def test_unusable_optics_groups_are_refused(project, optics, message):
    with pytest.raises(ValueError, match=message):
        read_particles(relion31(project, OPTICS | optics))


def test_unusable_magnifications_are_refused(project):
    path = write_star(project / "a.star", images=RELION30 | {"rlnMagnification": ["20000", "0", "1", "1"]})
    with pytest.raises(ValueError, match="rlnMagnification must be above 0, not 0"):
        read_particles(path)
    path = write_star(
        project / "a.star", images=RELION30 | {"rlnMagnification": ["20000", "20000", "1e4", "1e4"]}
    )
    with pytest.raises(ValueError, match=r"pixel sizes from 2\.5 to 5 Å"):
        read_particles(path)


def test_stacks_of_two_boxes_are_refused(project):
    write_stack(project / "Extract" / "job007" / "b.mrcs", box_size=8)
    names = [*RELION31["rlnImageName"][:3], "1@Extract/job007/b.mrcs"]
    with pytest.raises(ValueError, match=r"different boxes \(6, 8 px\); split the STAR file"):
        read_particles(relion31(project, rlnImageName=names))


def test_files_that_are_no_particle_tables(project, shared_data):
    with pytest.raises(FileNotFoundError, match=r"nothing\.star: no such particle file"):
        read_particles(project / "nothing.star")
    (project / "text.star").write_text("not a STAR file\n")
    with pytest.raises(ValueError, match=r"found 0 among the blocks \(none\)"):
        read_particles(project / "text.star")
    (project / "bad.star").write_text("data_\nloop_\n_rlnImageName #1\n_rlnAngleRot #2\n1@a 2\n1@a 2 3\n")
    with pytest.raises(ValueError, match=r"bad\.star: not a readable STAR file"):
        read_particles(project / "bad.star")
    with pytest.raises(ValueError, match="found 0 among the blocks data_optics, data_micrographs"):
        read_particles(
            write_star(project / "m.star", optics=OPTICS, micrographs={"rlnMicrographName": ["a", "b"]})
        )
    with pytest.raises(ValueError, match="found 2 among the blocks data_a, data_b"):
        read_particles(write_star(project / "two.star", a=RELION30, b=RELION30))
    with pytest.raises(ValueError, match="at least 2 particles are needed for two half sets; found 1"):
        read_particles(shared_data / "particles" / "sample_relion_one_image.star")
    with pytest.raises(ValueError, match="found 0 among the blocks"):
        read_particles(shared_data / "fsc" / "postprocess.star")
    for name in ("cryosparc_J2_particles_exported.cs", "4k_dataset.cs"):
        with pytest.raises(ValueError, match=r"a cryoSPARC \.cs file must be converted"):
            read_particles(shared_data / "particles" / name)


# ---- writing ----


@pytest.mark.parametrize("dialect", ["old", "new"])
def test_written_table_differs_only_in_what_is_meant(project, generator, dialect):
    if dialect == "old":
        path = write_star(
            project / "run_data.star", model_class_1=RELION30 | {"rlnOdd": ["[1,2]", '"a b"', "é", "x"]}
        )
    else:
        path = relion31(project, OPTICS | {"rlnOddZernike": ["[0.0680480107376,-1.8e-5,0]", "[]"]})
    particles = read_particles(path)
    rotations = random_rotations(4, generator, dtype=torch.float64)
    shifts = 20 * torch.randn(4, 2, generator=generator, dtype=torch.float64)
    target = project / "runs" / "deep" / "particles.star"
    target.parent.mkdir(parents=True)
    write_particles(
        particles,
        target,
        rotations=rotations,
        shifts=shifts,
        extra={
            "cryosweepChange": np.array([0.1, 1e-7, np.nan, 3.0]),
            "cryosweepMoved": np.array([True, False] * 2),
        },
    )
    again = read_particles(target)
    torch.testing.assert_close(again.rotations, rotations, rtol=0, atol=3e-8)
    torch.testing.assert_close(again.shifts, shifts, rtol=0, atol=2e-6)
    assert torch.equal(again.images(torch.arange(4)), particles.images(torch.arange(4)))
    assert again.block == particles.block
    assert again.table["rlnImageName"][1] == "000003@../../Extract/job007/a.mrcs"
    assert again.table["cryosweepChange"].tolist()[:2] == ["0.1", "1e-07"]
    assert again.table["cryosweepMoved"].tolist() == ["1", "0", "1", "0"]
    changed = {"rlnImageName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"} | {
        label for label in particles.table if label.startswith("rlnOrigin")
    }
    for label in set(particles.table) - changed:
        assert again.table[label].tolist() == particles.table[label].tolist(), label
    assert list(again.table)[: len(list(particles.table))] == list(particles.table)
    assert (again.optics_table is None) == (dialect == "old")
    if particles.optics_table is not None and again.optics_table is not None:
        assert again.optics_table.equals(particles.optics_table)
    assert sorted(entry.name for entry in target.parent.iterdir()) == ["particles.star"]


def test_old_files_keep_origins_in_pixels(project):
    particles = read_particles(write_star(project / "old.star", images=RELION30))
    write_particles(
        particles, project / "new.star", rotations=particles.rotations, shifts=torch.full((4, 2), 5.0)
    )
    (table,) = starfile.read(project / "new.star", always_dict=True).values()
    assert (table["rlnOriginX"] == -2.0).all()
    assert "rlnOriginXAngst" not in table


def test_poles_of_the_euler_sphere_survive(project):
    path = relion31(project, rlnAngleTilt=["0", "180", "0.000001", "179.999999"])
    particles = read_particles(path)
    write_particles(particles, path, rotations=particles.rotations, shifts=particles.shifts)
    again = read_particles(path)
    # within 1.2e-7 of a pole the tilt is rounded to it
    torch.testing.assert_close(again.rotations, particles.rotations, rtol=0, atol=1.5e-7)


def test_wrong_extra_columns_and_failed_writes_leave_the_old_file(project):
    path = relion31(project)
    particles = read_particles(path)
    before = path.read_bytes()
    for extra, message in (
        ({"a": np.zeros(3)}, r"extra column a has shape \(3,\), not \(4,\)"),
        ({"rlnAnglePsi": np.zeros(4)}, "rlnAnglePsi is written from the particles themselves"),
        ({"rlnRandomSubset": np.ones(4)}, "rlnRandomSubset is written from the particles"),
        ({"rlnOriginXAngst": np.ones(4)}, "rlnOriginXAngst is written from the particles"),
    ):
        with pytest.raises(ValueError, match=message):
            write_particles(
                particles, path, rotations=particles.rotations, shifts=particles.shifts, extra=extra
            )
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_stacks_behind_links_and_in_folders_with_spaces(project, tmp_path_factory):
    """A link to a folder must not mislead the '..' of the new names."""
    store = tmp_path_factory.mktemp("big disk")
    write_stack(store / "real" / "a.mrcs")
    (project / "linked").symlink_to(store / "real")
    particles = read_particles(
        relion31(project, rlnImageName=[f"{number}@linked/a.mrcs" for number in (1, 2, 3, 4)])
    )
    other = tmp_path_factory.mktemp("runs")
    (project / "runs").symlink_to(other)
    target = project / "runs" / "particles.star"
    write_particles(particles, target, rotations=particles.rotations, shifts=particles.shifts)
    assert_same(read_particles(target), particles)
    assert_same(read_particles(other / "particles.star"), particles)


def test_a_selection_is_written(project):
    particles = read_particles(relion31(project)).take(torch.tensor([3, 1, 0]))
    assert particles.optics_group.tolist() == [1, 1, 0]
    target = project / "selection.star"
    write_particles(particles, target, rotations=particles.rotations, shifts=particles.shifts)
    assert_same(read_particles(target), particles)


def simulated(folder: Path, generator: torch.Generator, count: int = 8) -> Particles:
    write_stack(folder / "images.mrcs", count=count, box_size=32)
    ones = torch.ones(count, dtype=torch.float64)
    defocus = 12000 + 1000 * torch.arange(count, dtype=torch.float64)
    optics = Optics(
        defocus, defocus - 300, 30 * ones, 300 * ones, 2.7 * ones, 0.1 * ones, 0 * ones, 0 * ones, ones
    )
    return new_particles(
        folder / "particles.star",
        stack=folder / "images.mrcs",
        rotations=random_rotations(count, generator, dtype=torch.float64),
        shifts=3 * torch.randn(count, 2, generator=generator, dtype=torch.float64),
        optics=optics,
        half_sets=torch.arange(count) % 2,
        pixel_size=2.5,
        box_size=32,
    )


def test_new_particles_are_as_if_read(tmp_path, generator):
    particles = simulated(tmp_path, generator)
    path = particles.path
    assert not path.exists()
    write_particles(particles, path, rotations=particles.rotations, shifts=particles.shifts)
    again = read_particles(path)
    assert_same(again, particles)
    assert again.notes == ()
    assert again.table.equals(particles.table)


def test_new_particles_are_of_one_microscope(tmp_path, generator):
    particles = simulated(tmp_path, generator)
    mixed = vars(particles.optics) | {"voltage": torch.arange(8) + 200.0}
    with pytest.raises(ValueError, match="one voltage, not 200 to 207"):
        new_particles(
            particles.path,
            stack=particles.stacks[0],
            rotations=particles.rotations,
            shifts=particles.shifts,
            optics=Optics(**mixed),
            half_sets=particles.half_sets,
            pixel_size=2.5,
            box_size=32,
        )


@pytest.mark.relion
def test_relion_reads_new_particles(tmp_path, generator, relion):
    particles = simulated(tmp_path, generator)
    write_particles(particles, particles.path, rotations=particles.rotations, shifts=particles.shifts)
    relion("relion_reconstruct", "--i", "particles.star", "--o", "map.mrc", "--ctf", "--maxres", 10)
    with mrcfile.open(tmp_path / "map.mrc") as file:
        assert file.data.shape == (32, 32, 32)
        assert float(file.data.std()) > 0
        assert float(file.voxel_size.x) == 2.5


@pytest.mark.relion
def test_relion_keeps_columns_of_other_programs(tmp_path, generator, relion):
    particles = simulated(tmp_path, generator)
    spread = np.linspace(0.5, 4.0, len(particles))
    write_particles(
        particles, particles.path, rotations=particles.rotations, shifts=particles.shifts,
        extra={"cryosweepRotationSd": spread},
    )  # fmt: skip
    relion("relion_reconstruct", "--i", "particles.star", "--o", "map.mrc", "--ctf", "--maxres", 10)
    relion("relion_star_handler", "--i", "particles.star", "--o", "again.star", "--select", "rlnDefocusU")
    again = read_particles(tmp_path / "again.star")
    assert [float(text) for text in again.table["cryosweepRotationSd"]] == spread.tolist()


# ---- real files ----


def copy_star(source: Path, folder: Path, *changes: tuple[str, str]) -> Path:
    text = source.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / source.name
    path.write_text(text)
    return path


def test_sample_of_relion30(shared_data):
    path = shared_data / "particles" / "sample_particles_relion30.star"
    particles = read_particles(path)
    table = starfile.read(path)
    assert len(particles) == 17
    assert particles.block == "model_class_1"
    assert particles.pixel_size == pytest.approx(1.338, abs=1e-6)
    assert particles.box_size == 200
    assert particles.optics.voltage.tolist() == [300.0] * 8 + [200.0] * 9
    expected = -1.338 * table[["rlnOriginX", "rlnOriginY"]].to_numpy()
    np.testing.assert_allclose(particles.shifts.numpy(), expected, atol=1e-6)
    angles = euler_from_rotation(particles.rotations).numpy()
    np.testing.assert_allclose(angles[:, 1], table["rlnAngleTilt"].abs(), atol=1e-9)
    assert (particles.half_sets.numpy() + 1 == table["rlnRandomSubset"]).all()
    stack = mrcfile.read(shared_data / "particles" / "sample.mrcs")
    assert np.array_equal(particles.images(torch.tensor([16, 0, 3])).numpy(), stack[[16, 0, 3]])
    (note,) = particles.notes
    assert "says 0 Å per pixel (unset); the 1.338 Å of the STAR file is used" in note


def test_hand_made_sample_of_relion31(shared_data):
    """Two optics groups, a comment in the header, tabs; its origins are pixels under the name of Å."""
    particles = read_particles(shared_data / "particles" / "sample_particles_relion31.star")
    old = read_particles(shared_data / "particles" / "sample_particles_relion30.star")
    assert particles.pixel_size == 1.4
    assert torch.equal(particles.optics.voltage, old.optics.voltage)
    assert torch.equal(particles.optics.defocus_u, old.optics.defocus_u)
    assert torch.equal(particles.rotations[0], old.rotations[0])
    same = slice(0, 14)  # its row 15 repeats row 14
    torch.testing.assert_close(particles.shifts[same] * old.pixel_size, old.shifts[same], rtol=0, atol=1e-6)
    assert particles.optics_table is not None
    assert particles.optics_table["rlnMtfFileName"].tolist() == ["mtf_k2_200kV.star"] * 2


@pytest.mark.parametrize("name", ["relion31.star", "relion31.v2.star"])
def test_relion31_with_either_block_first(shared_data, tmp_path, name):
    """Cs 0.01 mm is kept, the header's 1 Å and missing tag are overruled and said."""
    source = shared_data / "particles" / name
    with pytest.raises(
        ValueError, match="rlnRandomSubset must hold both 1 and 2 and nothing else, but holds 1;"
    ):
        read_particles(source, image_folder=source.parent)
    path = copy_star(source, tmp_path, ("_rlnRandomSubset", "_rlnWasRandomSubset"))
    with pytest.raises(ValueError, match=r"relion31\.mrcs was not found, which 5 of 5 rows"):
        read_particles(path)
    particles = read_particles(path, image_folder=source.parent, half_set_seed=3)
    assert len(particles) == 5
    assert particles.pixel_size == 2.806
    assert particles.box_size == 256
    assert particles.optics.spherical_aberration.tolist() == [0.01] * 5
    assert particles.optics.b_factor.tolist() == [0.0] * 5
    assert sorted(particles.half_sets.tolist()) == [0, 0, 0, 1, 1]
    split, tag, size = particles.notes
    assert "split at random (seed 3)" in split
    assert "lacks the 'MAP ' tag" in tag
    assert "says 1 Å per pixel (unset); the 2.806 Å of the STAR file is used" in size
    write_particles(particles, tmp_path / "new.star", rotations=particles.rotations, shifts=particles.shifts)
    assert_same(read_particles(tmp_path / "new.star"), particles)


def test_relion5(shared_data, tmp_path):
    source = shared_data / "particles" / "relion5.star"
    path = copy_star(source, tmp_path)
    with pytest.raises(
        ValueError, match=r"toy_images_a\.mrcs and 1 more were not found, which 17 of 17 rows"
    ):
        read_particles(path)
    for name in ("toy_images_a.mrcs", "toy_images_b.mrcs"):
        with open_stack_for_writing(
            tmp_path / name, count=11, box_size=448, pixel_size=0.89, half_precision=True
        ) as stack:
            stack[:, 0, 0] = np.arange(11)
    particles = read_particles(path)
    assert len(particles) == 17
    assert particles.pixel_size == 0.89
    assert particles.optics.voltage.tolist() == [100.0] * 17
    recorded = replace(particles, aberrations=None).images(torch.tensor([10, 4]))
    assert recorded[:, 0, 0].tolist() == [10.0, 4.0]
    (note,) = particles.notes
    assert "odd aberrations, even aberrations, anisotropic magnification" in note
    assert particles.aberrations is not None
    assert particles.aberrations.magnification[0, 0].tolist() == [1.001833, -7.04404e-4]
    target = tmp_path / "new.star"
    write_particles(particles, target, rotations=particles.rotations, shifts=particles.shifts)
    again = read_particles(target)
    assert_same(again, particles)
    assert particles.optics_table is not None
    assert particles.optics_table["rlnOddZernike"][0] in source.read_text()
    assert particles.optics_table["rlnOddZernike"][0] in target.read_text()
    assert particles.optics_table["rlnEvenZernike"][0] in target.read_text()


def test_tilt_series_of_relion1(shared_data, tmp_path):
    """An unnamed block, no MAP tag, one image more than rows, and negative B-factors."""
    source = shared_data / "particles" / "sta_testing_bin8.star"
    with pytest.raises(ValueError, match=r"219 of 219 .*negative rlnCtfBfactor.*data\.ctf_damping=absolute"):
        read_particles(source)
    particles = read_particles(source, ctf_damping="absolute")
    assert len(particles) == 219
    assert particles.block == ""
    assert particles.pixel_size == 1.96
    assert particles.box_size == 64
    assert not particles.shifts.any()
    assert particles.optics.b_factor[:4].tolist() == [13.0, 26.0, 39.0, 52.0]
    assert particles.optics.scale[:3].tolist() == [1.0, 0.9986, 0.9986]
    assert len(particles.notes) == 3
    target = tmp_path / "new.star"
    write_particles(particles, target, rotations=particles.rotations, shifts=particles.shifts)
    again = read_particles(target, ctf_damping="absolute")
    assert_same(again, particles)
    assert again.table["rlnMagnification"].tolist() == ["10000"] * 219
    assert again.table["rlnDetectorPixelSize"].tolist() == ["1.96000"] * 219  # the very text


def test_priors_of_a_local_refinement_are_kept(shared_data, tmp_path):
    source = shared_data / "particles" / "isecc_subparticle_relion31.star"
    row = source.read_text().rstrip().splitlines()[-1]
    second = row.replace("000001@", "000002@")
    path = copy_star(source, tmp_path, (row, f"{row}\n{second}"), ("_rlnRandomSubset", "_rlnFormerSubset"))
    folder = tmp_path / "images"
    folder.mkdir()
    name = Path(starfile.read(path)["particles"]["rlnImageName"][0].partition("@")[2]).name
    with open_stack_for_writing(folder / name, count=2, box_size=300, pixel_size=1.1):
        pass
    particles = read_particles(path, image_folder=folder)
    assert particles.optics.spherical_aberration.tolist() == [0.0, 0.0]
    target = tmp_path / "new.star"
    write_particles(particles, target, rotations=particles.rotations, shifts=particles.shifts)
    again = read_particles(target)
    assert_same(again, particles)
    for label in ("rlnAngleRotPrior", "rlnAngleTiltPrior", "rlnOriginXPriorAngst", "rlnOriginYPriorAngst"):
        assert again.table[label].tolist() == particles.table[label].tolist()


@pytest.mark.parametrize("name", ["sample_particles_relion30.star", "sample_particles_relion31.star"])
def test_round_trip_of_real_files(shared_data, tmp_path, name):
    particles = read_particles(shared_data / "particles" / name)
    target = tmp_path / name
    write_particles(particles, target, rotations=particles.rotations, shifts=particles.shifts)
    assert_same(read_particles(target), particles)


@pytest.mark.relion
def test_relion_makes_the_same_map_of_an_old_file_and_its_copy(shared_data, tmp_path, relion):
    """Same poses, CTF and pixel size in RELION's eyes: the maps are equal (largest difference seen: 0)."""
    source = shared_data / "particles" / "sample_particles_relion30.star"
    particles = read_particles(source)
    write_particles(particles, tmp_path / "copy.star", rotations=particles.rotations, shifts=particles.shifts)
    copy_star(source, tmp_path)
    (tmp_path / "sample.mrcs").symlink_to(source.parent / "sample.mrcs")
    maps: list[np.ndarray] = []
    for name in (source.name, "copy.star"):
        relion("relion_reconstruct", "--i", name, "--o", f"{name}.mrc", "--ctf", "--maxres", 20, "--pad", 1)
        maps.append(mrcfile.read(tmp_path / f"{name}.mrc"))
    np.testing.assert_allclose(maps[0], maps[1], atol=1e-6)
    assert maps[0].std() > 0.01


def test_views_are_the_third_rows_of_the_rotations(project):
    path = relion31(project)
    torch.testing.assert_close(read_views(path), read_particles(path).rotations[:, 2])
