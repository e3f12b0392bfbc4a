"""Rotations against hand-made matrices, RELION's definition and each other."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from cryosweep.geometry import (
    angle_between,
    euler_from_rotation,
    mean_rotation,
    moves_about,
    pivot_shift,
    random_rotations,
    rotation_from_euler,
    rotation_from_vector,
    rotation_vector,
)

angles = st.floats(-180, 180, allow_nan=False)


def axis_rotation(axis: int, degrees: float) -> torch.Tensor:
    """RELION builds its matrix from frame rotations: rows are the new axes."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rows = {2: [[c, s, 0], [-s, c, 0], [0, 0, 1]], 1: [[c, 0, -s], [0, 1, 0], [s, 0, c]]}[axis]
    return torch.tensor(rows, dtype=torch.float64)


@given(angles, angles, angles)
@settings(max_examples=50, deadline=None)
def test_euler_matrix_is_the_product_of_frame_rotations(rot, tilt, psi):
    expected = axis_rotation(2, psi) @ axis_rotation(1, tilt) @ axis_rotation(2, rot)
    actual = rotation_from_euler(torch.tensor([rot, tilt, psi], dtype=torch.float64))
    assert_close(actual, expected, atol=1e-14, rtol=0)


@given(angles, st.sampled_from([0.0, 1e-5, 0.01, 37.0, 90.0, 179.99, 180.0]), angles)
@settings(max_examples=80, deadline=None)
def test_euler_angles_of_a_rotation_give_it_back_even_at_the_poles(rot, tilt, psi):
    rotation = rotation_from_euler(torch.tensor([rot, tilt, psi], dtype=torch.float64))
    again = rotation_from_euler(euler_from_rotation(rotation))
    # within 1.2e-7 rad of a pole rot + psi is all that is kept
    assert_close(again, rotation, atol=3e-7, rtol=0)


@given(
    st.lists(st.floats(-1, 1), min_size=3, max_size=3), st.sampled_from([0.0, 1e-9, 1e-4, 1.0, 3.0, 3.14159])
)
@settings(max_examples=80, deadline=None)
def test_rotation_vector_inverts_the_exponential(direction, angle):
    axis = torch.tensor(direction, dtype=torch.float64)
    if float(axis.norm()) < 1e-3:
        axis = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    vector = axis / axis.norm() * angle
    assert_close(rotation_vector(rotation_from_vector(vector)), vector, atol=1e-9, rtol=1e-9)


def test_exponential_turns_the_way_a_right_hand_does():
    turned = rotation_from_vector(torch.tensor([0.0, 0.0, math.pi / 2])) @ torch.tensor([1.0, 0.0, 0.0])
    assert_close(turned, torch.tensor([0.0, 1.0, 0.0]), atol=1e-6, rtol=0)


def test_angle_between_is_the_angle_applied(generator):
    rotations = random_rotations(20, generator, dtype=torch.float64)
    vectors = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    vectors = vectors / vectors.norm(dim=-1, keepdim=True) * torch.linspace(0, 3.1, 20)[:, None].double()
    turned = rotation_from_vector(vectors) @ rotations
    assert_close(angle_between(turned, rotations), vectors.norm(dim=-1), atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pivot_shift_keeps_the_fulcrum_still_in_the_image(dtype, generator):
    old, new = random_rotations(8, generator, dtype=dtype), random_rotations(8, generator, dtype=dtype)
    shift = torch.randn(8, 2, generator=generator, dtype=dtype)
    fulcrum = torch.tensor([30.0, -12.0, 55.0], dtype=dtype)
    moved = pivot_shift(old, new, shift, fulcrum)
    # worst seen: 1.5e-5 in float32, 2e-14 in float64, at 64 units from the centre
    tolerance = 5e-5 if dtype == torch.float32 else 1e-12
    assert_close((new @ fulcrum)[:, :2] + moved, (old @ fulcrum)[:, :2] + shift, atol=tolerance, rtol=0)


def test_mean_rotation_is_the_centre_of_a_symmetric_spread(generator):
    centre = random_rotations(1, generator, dtype=torch.float64)[0]
    vectors = torch.randn(50, 3, generator=generator, dtype=torch.float64) * 0.2
    spread = rotation_from_vector(torch.cat([vectors, -vectors])) @ centre
    assert float(angle_between(mean_rotation(spread), centre)) < 1e-12


def test_random_rotations_are_uniform(generator):
    rotations = random_rotations(20_000, generator, dtype=torch.float64)
    assert_close(torch.det(rotations), torch.ones(20_000, dtype=torch.float64))
    # each entry of a uniform rotation has mean 0 and variance 1/3
    assert float(rotations.mean(0).abs().max()) < 0.02
    assert float((rotations.square().mean(0) - 1 / 3).abs().max()) < 0.01


def test_moves_about_a_fulcrum_undo_what_was_done(generator: torch.Generator) -> None:
    """Turned about a fulcrum and then shifted: the turn and the shift come back."""
    old = random_rotations(20, generator, dtype=torch.float64)
    turns = 0.3 * torch.randn(20, 3, generator=generator, dtype=torch.float64)
    moved = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    shifts = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    fulcrum = torch.tensor([4.0, -7.0, 2.0], dtype=torch.float64)
    new = old @ rotation_from_vector(turns)
    after = pivot_shift(old, new, shifts, fulcrum) + moved
    found_turns, found_shifts = moves_about(new, after, old, shifts, fulcrum)
    torch.testing.assert_close(found_turns, turns, rtol=0, atol=1e-12)
    torch.testing.assert_close(found_shifts, moved, rtol=0, atol=1e-12)
