"""Marker files of Chimera and ChimeraX."""

import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryosweep.io import read_marker, write_marker
from cryosweep.io.markers import read_markers


def marker_file(folder: Path, *markers: str) -> Path:
    path = folder / "fulcrum.cmm"
    path.write_text('<marker_set name="fulcrum">\n' + "\n".join(markers) + "\n</marker_set>\n")
    return path


def test_real_form(shared_data):
    assert read_marker(shared_data / "markers" / "fulcrum_example_handmade.cmm") == (249.5, 250.1, 253.3)


@given(position=st.tuples(*[st.floats(-1e4, 1e4)] * 3))
def test_any_position_is_read_back(tmp_path_factory, position):
    x, y, z = position
    path = marker_file(tmp_path_factory.mktemp("m"), f'<marker id="7" z="{z!r}" x="{x!r}" y="{y!r}"/>')
    assert read_marker(path) == position


def test_notes_frames_links_and_markers_without_a_place_are_passed_over(tmp_path):
    path = marker_file(
        tmp_path,
        '<marker id="1" x="nan" y="nan" z="nan" radius="1"/>',
        '<marker id="2" x="1.5" y="-2" z="3e1" note="neck" frame="4" r="1" g="1" b="0" radius="1"/>',
        '<link id1="1" id2="2" r="1" g="1" b="0" radius="0.5"/>',
    )
    assert read_marker(path) == (1.5, -2.0, 30.0)


def test_sets_of_markers_are_searched(tmp_path):
    path = tmp_path / "sets.cmm"
    path.write_text(
        '<marker_sets><marker_set name="a"/><marker_set name="b">'
        '<marker id="1" x="1" y="2" z="3"/></marker_set></marker_sets>'
    )
    assert read_marker(path) == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("markers", "message"),
    [
        ((), "holds 0 with a position;"),
        (('<marker id="1" x="nan" y="0" z="0"/>',), r"holds 0 with a position and 1 without one \(nan\)"),
        (
            ('<marker id="1" x="1" y="2" z="3"/>', '<marker id="2" x="4" y="5" z="6"/>'),
            r"holds 2 with a position \(\(1, 2, 3\); \(4, 5, 6\)\)",
        ),
        (('<marker id="5" x="1" y="2"/>',), "marker 5 needs numbers x, y and z"),
        (('<marker id="5" x="1" y="2" z="three"/>',), "marker 5 needs numbers x, y and z"),
        (("<marker",), "not a marker file"),
    ],
)
def test_refusals_say_what_is_there(tmp_path, markers, message):
    with pytest.raises(ValueError, match=message) as refusal:
        read_marker(marker_file(tmp_path, *markers))
    assert "fulcrum.cmm" in str(refusal.value)


@given(position=st.tuples(*[st.floats(-1e6, 1e6)] * 3), note=st.text("ab <>&'\"åÅ", max_size=12))
def test_what_is_written_is_read_back_to_the_last_digit(tmp_path_factory, position, note):
    path = tmp_path_factory.mktemp("m") / "fulcrum.cmm"
    write_marker(path, position, radius=4.0, note=note)
    assert read_marker(path) == position
    (marker,) = ElementTree.parse(path).getroot()
    assert marker.get("note") == note


def test_a_written_marker_has_what_chimerax_asks_for(tmp_path):
    """A set with markers of id, place, colour and radius: the form of a saved file."""
    path = tmp_path / "fulcrum.cmm"
    write_marker(path, (1.5, -2.0, 30.0), radius=3.5, note="neck")
    root = ElementTree.parse(path).getroot()
    assert root.tag == "marker_set"
    (marker,) = root
    assert marker.tag == "marker"
    assert {"id", "x", "y", "z", "r", "g", "b", "radius"} <= set(marker.attrib)
    assert all(0 <= float(marker.attrib[colour]) <= 1 for colour in "rgb")


@pytest.mark.parametrize(("position", "radius"), [((1.0, math.nan, 0.0), 3.0), ((1.0, 2.0, 0.0), 0.0)])
def test_a_marker_without_a_place_is_not_written(tmp_path, position, radius):
    with pytest.raises(ValueError, match="cannot be shown"):
        write_marker(tmp_path / "fulcrum.cmm", position, radius=radius)
    assert not list(tmp_path.iterdir())


def test_all_markers_of_a_file(tmp_path):
    several = (
        '<marker id="1" x="1" y="2" z="3"/>',
        '<marker id="2" x="nan" y="0" z="0"/>',
        '<marker id="3" x="4" y="5" z="6"/>',
    )
    assert read_markers(marker_file(tmp_path, *several)) == [(1.0, 2.0, 3.0), (4.0, 5.0, 6.0)]
    with pytest.raises(ValueError, match=r"fulcrum\.cmm: the file holds no marker with a position"):
        read_markers(marker_file(tmp_path, several[1]))
