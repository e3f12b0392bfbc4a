"""Directional measures against closed forms and plain loops."""

import math

import pytest
import torch

from cryosweep.anisotropy import (
    conical_fsc,
    fibonacci_directions,
    rotations_to,
    sampling_compensation,
    slice_precision,
)
from cryosweep.fourier import half_plane
from cryosweep.geometry import random_rotations
from cryosweep.projector import cube_side, insert, new_accumulator
from cryosweep.reconstruction import finish_sums
from cryosweep.resolution import fsc


def test_fibonacci_directions_are_unit_vectors_spread_evenly() -> None:
    directions = fibonacci_directions(2000)
    assert torch.allclose(directions.norm(dim=1), torch.ones(2000, dtype=torch.float64))
    second = directions.mT @ directions / 2000
    # even on the sphere: the second moment is a third of the identity (worst seen 3e-4)
    torch.testing.assert_close(second, torch.eye(3, dtype=torch.float64) / 3, rtol=0, atol=2e-3)


@pytest.mark.parametrize("size", [15, 16])
def test_conical_fsc_against_a_plain_loop(size: int, generator: torch.Generator) -> None:
    a, b = (torch.randn(size, size, size, generator=generator) for _ in range(2))
    b = b + a
    directions = fibonacci_directions(7)
    found = conical_fsc(a, b, pixel_size=2.0, last_shell=6, directions=directions, half_angle=40.0)
    fa, fb = torch.fft.rfftn(a.double()), torch.fft.rfftn(b.double())
    whole = fsc(a, b)
    for cone, axis in enumerate(directions):
        sums = torch.zeros(7, 3, dtype=torch.float64)
        for z in range(size):
            for y in range(size):
                for x in range(size // 2 + 1):
                    k = torch.tensor([x, y - size * (y > size / 2), z - size * (z > size / 2)]).double()
                    shell = round(float(k.norm()))
                    if not 1 <= shell <= 6:
                        continue
                    if abs(float(k @ axis)) / float(k.norm()) >= math.cos(math.radians(40.0)):
                        p, q = fa[z, y, x], fb[z, y, x]
                        sums[shell] += torch.stack([(p * q.conj()).real, p.abs() ** 2, q.abs() ** 2])
        expected = sums[:, 0] / (sums[:, 1] * sums[:, 2]).sqrt()
        expected = torch.where(sums[:, 1] > 0, expected, whole[:7])
        torch.testing.assert_close(found.curves[cone, 1:], expected[1:], rtol=0, atol=1e-5)


def test_a_cone_of_ninety_degrees_is_the_whole_shell(generator: torch.Generator) -> None:
    a = torch.randn(20, 20, 20, generator=generator)
    b = a + torch.randn(20, 20, 20, generator=generator)
    found = conical_fsc(
        a, b, pixel_size=2.0, last_shell=9, directions=fibonacci_directions(3), half_angle=90.0
    )
    torch.testing.assert_close(found.curves[1, 1:], fsc(a, b)[1:10], rtol=0, atol=1e-6)
    assert found.cfar == pytest.approx(1.0)


def test_cfar_tells_an_anisotropic_map_from_an_even_one(generator: torch.Generator) -> None:
    """Signal falls off with frequency, along z three times as fast: the area along z is a third."""
    size = 48
    axis = torch.fft.fftfreq(size, 1.0 / size)
    half = torch.fft.rfftfreq(size, 1.0 / size)
    signal = torch.fft.rfftn(torch.randn(size, size, size, generator=generator))
    noise = [torch.randn(size, size, size, generator=generator) for _ in range(2)]
    ratios: list[float] = []
    for stretch in (1.0, 3.0):
        squared = (stretch * axis[:, None, None]).square() + axis[:, None].square() + half.square()
        volume = torch.fft.irfftn(signal * 6.0 * torch.exp(-squared / 100.0), s=(size,) * 3)
        ratios.append(conical_fsc(volume + noise[0], volume + noise[1], pixel_size=2.0, last_shell=23).cfar)
    assert ratios[0] > 0.8
    assert 0.25 < ratios[1] < 0.45


def test_conical_fsc_refuses_other_boxes_and_shells() -> None:
    a = torch.zeros(8, 8, 8)
    with pytest.raises(ValueError, match="share one box"):
        conical_fsc(a, torch.zeros(9, 9, 9), pixel_size=2.0, last_shell=2)
    with pytest.raises(ValueError, match="shell 5 is none of a box of 8 px"):
        conical_fsc(a, a, pixel_size=2.0, last_shell=5)


def test_noise_alone_has_no_area_ratio_to_speak_of() -> None:
    empty = torch.zeros(12, 12, 12)
    assert conical_fsc(empty, empty, pixel_size=2.0, last_shell=4).cfar == 0.0


def test_sampling_compensation_of_even_views_is_one(generator: torch.Generator) -> None:
    assert sampling_compensation(fibonacci_directions(20_000)) == pytest.approx(1.0, abs=0.01)
    # views at random: chance costs about one part in the 100 slices that a direction expects
    views = random_rotations(10_000, generator, dtype=torch.float64)[:, 2]
    assert sampling_compensation(views) == pytest.approx(1.0, abs=0.02)


def test_sampling_compensation_of_side_views_is_eight_over_pi_squared() -> None:
    """Views round the equator sample as 1 / sin(theta), of which <s><1/s> = pi/2 x pi/4."""
    angle = torch.arange(20_000, dtype=torch.float64) * (math.pi / 20_000)
    views = torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], dim=1)
    assert sampling_compensation(views) == pytest.approx(8.0 / math.pi**2, abs=0.01)


def test_sampling_compensation_of_one_view_counts_what_is_missing() -> None:
    """n equal views at shell 50: s = n in a band of share 0.01, nothing elsewhere."""
    n = 10_000
    views = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64).expand(n, 3)
    expected = 1.0 / (0.01 + 0.99 * n / 2.0)
    assert sampling_compensation(views) == pytest.approx(expected, rel=0.02)
    with pytest.raises(ValueError, match="no viewing directions"):
        sampling_compensation(torch.zeros(0, 3))


def test_rotations_look_along_their_directions() -> None:
    directions = torch.cat([fibonacci_directions(50), -fibonacci_directions(3), torch.eye(3).double()])
    rotations = rotations_to(directions)
    torch.testing.assert_close(rotations[:, 2], directions)
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).double().expand(len(directions), 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(len(directions)).double())


def test_slice_precision_of_a_formula() -> None:
    """Weight 1 + 2 kz^2/k^2 has mean 5/3 on a shell and 1 + (1 - nz^2) on the slice across n."""
    pad, last = 2, 10
    side = cube_side(last, pad)
    axis = (torch.arange(side, dtype=torch.float64) - side // 2).float()
    squared = axis[:, None, None].square() + axis[:, None].square() + axis.square()
    weight = 1.0 + 2.0 * axis[:, None, None].square() / squared.clamp_min(1e-9)
    plane = half_plane(24, max_shell=last, dtype=torch.float32, device="cpu")
    directions = fibonacci_directions(40)
    found = slice_precision(
        weight.expand(side, side, side), shell_weight=torch.full((last + 1,), 5.0 / 3.0), pad=pad,
        plane=plane, directions=directions,
    )  # fmt: skip
    expected = (2.0 - directions[:, 2].square()) / (5.0 / 3.0)
    # trilinear interpolation round the origin costs up to 0.5 %
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0)


def test_directions_that_were_seen_are_known_best(generator: torch.Generator) -> None:
    """Views along z only: the slice across z is full, and one seen from the side holds a line of it."""
    plane = half_plane(24, dtype=torch.float32, device="cpu")
    sums = new_accumulator(24, max_shell=plane.max_shell, dtype=torch.float32, device=torch.device("cpu"))
    rotations = rotations_to(torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64).expand(20, 3)).float()
    ones = torch.ones(20, plane.k.shape[0])
    insert(sums, ones.to(torch.complex64), ones, rotations, plane)
    finished = finish_sums(sums, max_shell=plane.max_shell)
    top, side = slice_precision(
        finished.weight, shell_weight=finished.shell_weight, pad=finished.pad, plane=plane.up_to(8),
        directions=torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]),
    ).tolist()  # fmt: skip
    assert top > 5.0 * side
