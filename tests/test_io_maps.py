"""Maps and image stacks in MRC files."""

import gzip
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cryosweep.io import box_centre, open_stack_for_writing, read_map, write_map


def random_volume(size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, size, size, generator=torch.Generator().manual_seed(seed))


def header_field(path: Path, offset: int, value: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(value)


def test_emd_3197_starts_left_of_the_origin(shared_data):
    path = shared_data / "maps" / "EMD-3197.map"
    map = read_map(path)
    assert map.data.shape == (20, 20, 20)
    assert map.data.dtype == torch.float32
    assert map.pixel_size == 11.4
    assert map.origin == pytest.approx((-22.8, 0.0, 0.0))  # nxstart -2
    assert box_centre(map) == pytest.approx((91.2, 114.0, 114.0))
    assert np.array_equal(map.data.numpy(), mrcfile.read(path))
    assert map.notes == ()


def test_emd_1832_compressed_and_centred(shared_data):
    map = read_map(shared_data / "maps" / "emd_1832.map.gz")
    assert map.data.shape == (64, 64, 64)
    assert map.pixel_size == 5.7
    assert map.origin == pytest.approx((-182.4,) * 3)
    assert box_centre(map) == (0.0, 0.0, 0.0)
    assert int((map.data >= 0.42).sum()) == 5910  # the voxels of its segmentation at the depositors' level


@settings(max_examples=20, deadline=None)
@given(
    size=st.integers(2, 9),
    pixel_size=st.floats(0.3, 20.0),
    origin=st.tuples(*[st.floats(-1000.0, 1000.0)] * 3),
)
def test_round_trip(tmp_path_factory, size, pixel_size, origin):
    path = tmp_path_factory.mktemp("map") / "map.mrc"
    volume = random_volume(size)
    write_map(path, volume, pixel_size=pixel_size, origin=origin)
    map = read_map(path)
    assert torch.equal(map.data, volume)
    assert map.pixel_size == pytest.approx(pixel_size, rel=2e-6)  # the header is float32
    assert map.origin == pytest.approx(origin, rel=1e-6, abs=1e-6)
    assert box_centre(map) == pytest.approx([x + size // 2 * pixel_size for x in origin], rel=1e-5, abs=1e-3)


def test_written_file_is_a_valid_volume_equal_for_equal_maps(tmp_path):
    for name in ("a.mrc", "b.mrc"):
        write_map(tmp_path / name, random_volume(5).double().requires_grad_(), pixel_size=2.5)
    assert mrcfile.validate(tmp_path / "a.mrc")
    with mrcfile.open(tmp_path / "a.mrc") as file:
        assert file.is_volume()
    assert (tmp_path / "a.mrc").read_bytes() == (tmp_path / "b.mrc").read_bytes()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.mrc", "b.mrc"]


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "map.mrc"
    write_map(path, random_volume(4), pixel_size=2.0)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="nowhere"):
        write_map(path, random_volume(4, seed=1), pixel_size=2.0, origin="nowhere")  # after the data
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("volume", [torch.zeros(4, 4), torch.zeros(4, 4, 5)])
def test_only_cubes_are_written(tmp_path, volume):
    with pytest.raises(ValueError, match="must be a cube"):
        write_map(tmp_path / "map.mrc", volume, pixel_size=1.0)
    with pytest.raises(ValueError, match=r"pixel_size=0\.0 must be above 0"):
        write_map(tmp_path / "map.mrc", torch.zeros(4, 4, 4), pixel_size=0.0)


@pytest.mark.parametrize("axes", [(1, 2, 3), (3, 2, 1), (2, 1, 3), (2, 3, 1), (3, 1, 2), (1, 3, 2)])
def test_axis_order_and_start(tmp_path, axes):
    """Columns, rows and sections may run along any axes; start indices follow them."""
    path = tmp_path / "map.mrc"
    volume = random_volume(4).numpy()
    stored = np.transpose(volume, [3 - axis for axis in reversed(axes)])  # axis 1 (x) is index 2 of (z, y, x)
    start = {1: -3, 2: 5, 3: 7}
    with mrcfile.new(path) as file:
        file.set_data(np.ascontiguousarray(stored))
        file.set_volume()
        file.voxel_size = 2.0
        file.header.mapc, file.header.mapr, file.header.maps = axes
        file.header.nxstart, file.header.nystart, file.header.nzstart = (start[axis] for axis in axes)
    map = read_map(path)
    assert np.array_equal(map.data.numpy(), volume)
    assert map.origin == (-6.0, 10.0, 14.0)


def test_origin_record_goes_before_start_indices(tmp_path):
    path = tmp_path / "map.mrc"
    write_map(path, random_volume(4), pixel_size=2.0, origin=(0.0, 0.0, 8.0))
    with mrcfile.open(path, mode="r+") as file:
        file.header.nxstart = 3
    assert read_map(path).origin == (0.0, 0.0, 8.0)


@pytest.mark.parametrize("dtype", ["float16", "int16", "int8", "uint16"])
def test_other_number_types(tmp_path, dtype):
    path = tmp_path / "map.mrc"
    values = np.arange(27, dtype=dtype).reshape(3, 3, 3)
    with mrcfile.new(path) as file:
        file.set_data(values)
        file.set_volume()
        file.voxel_size = 1.5
    assert np.array_equal(read_map(path).data.numpy(), values.astype(np.float32))


def test_missing_map_tag_and_unset_axes_are_read_with_a_note(tmp_path):
    path = tmp_path / "map.mrc"
    volume = random_volume(4)
    write_map(path, volume, pixel_size=2.0)
    header_field(path, 208, bytes(8))  # tag and machine stamp
    header_field(path, 64, bytes(12))  # mapc, mapr, maps
    map = read_map(path)
    assert torch.equal(map.data, volume)
    assert len(map.notes) == 1
    assert "lacks the 'MAP ' tag" in map.notes[0]


def set_header(**fields):
    def change(path: Path) -> None:
        with mrcfile.open(path, mode="r+") as file:
            for name, value in fields.items():
                setattr(file.header, name, value)

    return change


def set_nan(path: Path) -> None:
    header_field(path, 1024, np.float32("nan").tobytes())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def truncate_compressed(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes())[:-40])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "shorter than its header says"),
        (truncate_compressed, "not a readable MRC file"),
        (lambda path: path.write_bytes(b"short"), "not a readable MRC file"),
        (set_nan, "not finite"),
        (set_header(cella=(8.0, 8.0, 9.0)), "isotropic grid is needed, but the voxel is 2 x 2 x 2.25"),
        (set_header(cellb=(90.0, 90.0, 120.0)), "isotropic grid is needed"),
        (set_header(cella=(0.0, 0.0, 0.0)), "holds no pixel size"),
        (set_header(mx=0), "holds no pixel size"),
        (set_header(mapc=3), "axis order"),
        (lambda path: header_field(path, 12, b"\x63\0\0\0"), "unknown MRC mode"),
    ],
)
def test_damaged_maps_are_refused(tmp_path, damage, message):
    path = tmp_path / "map.mrc"
    write_map(path, random_volume(4), pixel_size=2.0)
    damage(path)
    with pytest.raises(ValueError, match=message) as refusal:
        read_map(path)
    assert "map.mrc" in str(refusal.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((3, 4, 4), np.float32), r"cubic volume is needed.*\(3, 4, 4\)"),
        (np.zeros((4, 4), np.float32), "cubic volume is needed"),
        (np.zeros((4, 4, 4), np.complex64), "complex transform"),
    ],
)
def test_other_arrays_are_refused(tmp_path, values, message):
    path = tmp_path / "map.mrc"
    with mrcfile.new(path) as file:
        file.set_data(values)
        file.voxel_size = 1.0
    with pytest.raises(ValueError, match=message):
        read_map(path)


@pytest.mark.parametrize("half_precision", [False, True])
def test_stack_written_in_parts(tmp_path, half_precision):
    path = tmp_path / "images.mrcs"
    images = np.random.default_rng(0).normal(size=(5, 6, 6)).astype(np.float32)
    with open_stack_for_writing(
        path, count=5, box_size=6, pixel_size=2.5, half_precision=half_precision
    ) as stack:
        stack[:2] = images[:2]
        stack[2:] = images[2:]
        assert not path.exists()
    assert mrcfile.validate(path)
    with mrcfile.open(path) as file:
        assert file.is_image_stack()
        assert file.data.dtype == (np.float16 if half_precision else np.float32)
        assert np.array_equal(file.data, images.astype(file.data.dtype))
        assert float(file.voxel_size.x) == 2.5
    assert list(tmp_path.iterdir()) == [path]


def test_a_stack_has_its_disk_before_it_is_filled(tmp_path):
    """A page that finds no room is a bus error, which no program can report."""
    with open_stack_for_writing(tmp_path / "images.mrcs", count=64, box_size=64, pixel_size=2.5) as stack:
        (made,) = tmp_path.iterdir()
        state = made.stat()
        assert 512 * state.st_blocks >= state.st_size > stack.nbytes


def test_interrupted_stack_leaves_nothing(tmp_path):
    def interrupted():
        with open_stack_for_writing(tmp_path / "images.mrcs", count=5, box_size=6, pixel_size=2.5) as stack:
            stack[0] = 1.0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"count": 0}, {"box_size": 0}, {"pixel_size": float("nan")}])
def test_stack_sizes_are_checked(tmp_path, wrong):
    sizes = {"count": 5, "box_size": 6, "pixel_size": 2.5} | wrong
    with pytest.raises(ValueError), open_stack_for_writing(tmp_path / "images.mrcs", **sizes):
        pass


@pytest.mark.relion
def test_relion_reads_what_is_written(tmp_path, relion):
    volume = random_volume(16)
    write_map(tmp_path / "map.mrc", volume, pixel_size=2.5)
    relion("relion_image_handler", "--i", "map.mrc", "--o", "copy.mrc", "--multiply_constant", 2)
    copy = read_map(tmp_path / "copy.mrc")
    assert copy.pixel_size == 2.5
    torch.testing.assert_close(copy.data, 2 * volume)
