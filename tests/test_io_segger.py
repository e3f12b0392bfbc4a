"""Segger files, real and made here, index maps, and the scripts that show them in ChimeraX."""

from pathlib import Path
from typing import Any

import h5py
import mrcfile
import numpy as np
import pytest
import torch

from cryosweep.io.chimerax import write_regions_script
from cryosweep.io.maps import Map, read_map, write_labels
from cryosweep.io.segger import on_grid_of, read_segger
from cryosweep.segmentation import territory


def segger_file(path: Path, **changes: Any) -> Path:
    """A file laid out as Segger does: three finest regions in a 4 x 5 x 6 box, two of them in group 5."""
    mask = np.zeros((4, 5, 6), dtype=np.uint32)
    mask[1, 1, 1:4], mask[1, 3, 2:4], mask[3, 4, 5] = 1, 2, 3
    content: dict[str, Any] = {
        "mask": mask,
        "region_ids": np.array([1, 2, 3, 5], dtype=np.int32),
        "parent_ids": np.array([5, 5, 0, 0], dtype=np.int32),
        "ref_points": np.array([[2, 1, 1], [3, 3, 1], [5, 4, 3], [2, 2, 1]], dtype=np.float32),
        "smoothing_levels": np.array([0, 0, 0, 2], dtype=np.float32),
        "region_colors": np.ones((4, 4), dtype=np.float32),
    }
    attributes: dict[str, Any] = {
        "format": np.bytes_(b"segger"),
        "format_version": 2,
        "map_level": 0.5,
        "map_size": np.array([6, 5, 4], dtype=np.int32),
        "ijk_to_xyz_transform": np.array(
            [[2.5, 0, 0, 10.0], [0, 2.5, 0, -5.0], [0, 0, 2.5, 0.0]], dtype=np.float32
        ),
    }
    with h5py.File(path, "w") as file:
        for name, value in content.items():
            if changes.get(name, value) is not None:
                file[name] = changes.get(name, value)
        for name, value in attributes.items():
            file.attrs[name] = changes.get(name, value)
        names = file.create_group("Segment name string")
        names["ids"], names["values"] = np.array([3], dtype=np.uint32), np.array([b"arm"])
    return path


def test_tree_names_and_grid_are_read(tmp_path: Path) -> None:
    file = read_segger(segger_file(tmp_path / "a.seg"))
    assert (file.pixel_size, file.origin, file.threshold) == (2.5, (10.0, -5.0, 0.0), 0.5)
    made = file.segmentation
    assert made.shown == (5, 3)
    assert made.regions[5].parts == (1, 2)
    assert [(region.voxels, region.sigma_px) for region in made.regions.values()] == [
        (3, 0.0), (2, 0.0), (1, 0.0), (5, 2.0),
    ]  # fmt: skip
    assert made.regions[3].name == "arm"
    assert made.regions[2].peak == (3, 3, 1)
    assert torch.nonzero(territory(made, [2])).tolist() == [[1, 3, 2], [1, 3, 3]]


def test_regions_come_into_the_box_of_the_map(tmp_path: Path) -> None:
    file = read_segger(segger_file(tmp_path / "a.seg"))
    map = Map(torch.zeros(12, 12, 12), 2.5, (5.0, -7.5, -10.0))
    inside = on_grid_of(file, map)
    assert torch.equal(inside.labels[4:8, 1:6, 2:8], file.segmentation.labels)
    assert inside.regions[2].peak == (5, 4, 5)
    for other, match in (
        (Map(map.data, 2.6, map.origin), "voxels of 2.5 Å, the map of 2.6 Å"),
        (Map(map.data, 2.5, (5.0, -6.5, -10.0)), "not whole voxels"),
        (Map(torch.zeros(6, 6, 6), 2.5, map.origin), "stick out of the box of 6x6x6 px"),
    ):
        with pytest.raises(ValueError, match=match):
            on_grid_of(file, other)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": np.bytes_(b"other")}, "this is 'other' version 2"),
        ({"format_version": 1}, "'segger' version 1"),
        ({"ijk_to_xyz_transform": np.diag([2.5, 2.5, 3.0, 0.0])[:3]}, "isotropic grid"),
        ({"parent_ids": np.array([5, 9, 0, 0])}, "do not form a tree"),
        ({"parent_ids": np.array([5, 5, 0, 5])}, "part of itself"),
        ({"parent_ids": np.array([5, 5, 2, 0])}, "not in the table of the finest"),
        ({"mask": None}, "not a Segger file: it lacks what Segger writes"),
    ],
)
def test_what_is_no_segger_file_is_refused(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match) as refusal:
        read_segger(segger_file(tmp_path / "odd.seg", **changes))
    assert "odd.seg" in str(refusal.value)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.seg").write_text("not HDF5")
    with pytest.raises(ValueError, match=r"text\.seg: not a readable Segger file"):
        read_segger(tmp_path / "text.seg")


def test_real_files(shared_data: Path) -> None:
    whole = read_segger(shared_data / "maps" / "emd_1832.seg")
    assert len(whole.segmentation.regions) == 45
    top = {whole.segmentation.regions[id].name: whole.segmentation.regions[id].voxels
           for id in whole.segmentation.shown}  # fmt: skip
    assert top["GINS + Cdc45"] == 1681
    assert sorted(top.values()) == [619, 646, 800, 917, 1247, 1681]
    map = read_map(shared_data / "maps" / "emd_1832.map.gz")
    assert torch.equal(on_grid_of(whole, map).labels > 0, map.data >= whole.threshold)
    part = read_segger(shared_data / "maps" / "emd_1080_region599.seg")
    assert tuple(part.segmentation.labels.shape) == (30, 27, 26)
    assert part.origin == pytest.approx((8.1, -18.9, -5.4), abs=1e-3)
    assert part.pixel_size == pytest.approx(2.7)
    assert part.segmentation.shown == (42,)
    assert part.segmentation.regions[42].voxels == int(part.segmentation.labels.count_nonzero()) == 3543


# ---- index maps and scripts ----


@pytest.mark.parametrize(("highest", "kind"), [(7, np.int16), (32768, np.uint16), (65535, np.uint16)])
def test_labels_are_written_as_whole_numbers(tmp_path: Path, highest: int, kind: type) -> None:
    labels = torch.zeros(6, 6, 6, dtype=torch.int32)
    labels[1, 2, 3], labels[4, 4, 4] = 1, highest
    write_labels(tmp_path / "labels.mrc", labels, pixel_size=2.5, origin=(1.0, -2.0, 3.0))
    with mrcfile.open(tmp_path / "labels.mrc") as file:
        assert file.data.dtype == kind
    made = read_map(tmp_path / "labels.mrc")
    assert torch.equal(made.data.int(), labels)
    assert (made.pixel_size, made.origin) == (2.5, (1.0, -2.0, 3.0))


def test_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    labels = torch.zeros(6, 6, 6, dtype=torch.int32)
    for value in (-1, 65536):
        labels[0, 0, 0] = value
        with pytest.raises(ValueError, match="do not fit in the 16 bits"):
            write_labels(tmp_path / "labels.mrc", labels, pixel_size=2.5)
    with pytest.raises(ValueError, match="must be a cube"):
        write_labels(tmp_path / "labels.mrc", labels[1:], pixel_size=2.5)
    assert list(tmp_path.iterdir()) == []


def test_script_opens_the_labels_and_colours_each_region(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    colours = {1: "#E69F00", 12: "#56B4E9"}
    write_regions_script(
        Path("look.cxc"), labels_file=Path("my labels.mrc"), colours=colours, map_file=Path("map.mrc"),
        threshold=0.0421,
    )  # fmt: skip
    assert (tmp_path / "look.cxc").read_text().splitlines() == [
        "# Written by cryosweep. Open it in a session without other models.",
        f'open "{tmp_path}/my labels.mrc"',
        "volume #1 hide",
        f'open "{tmp_path}/map.mrc"',
        "volume #2 style mesh level 0.0421 color #b0b0b0 step 1",
        "segmentation surfaces #1 where 1 color #E69F00 step 1",
        "segmentation surfaces #1 where 12 color #56B4E9 step 1",
        "view",
    ]
    write_regions_script(Path("alone.cxc"), labels_file=Path("labels.mrc"), colours=colours)
    assert "#2" not in (tmp_path / "alone.cxc").read_text()
    with pytest.raises(ValueError, match="rename it"):
        write_regions_script(Path("odd.cxc"), labels_file=Path('a"b.mrc'), colours=colours)
