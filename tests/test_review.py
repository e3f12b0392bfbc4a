"""What the rules are given of a job: maps, masks and settings turned into their numbers."""

from dataclasses import replace

import pytest
import torch

from cryosweep.mask import spherical_mask
from cryosweep.reconstruction import HalfMaps
from cryosweep.refinement import RefinementSettings
from cryosweep.study.assessment import directional_fsc, rim_share
from cryosweep.study.review import MaskOrigin, density_share, review_setup

SIZE, PIXEL = 48, 4.0


class Few:
    """As much of particles as the set-up is judged by."""

    pixel_size = PIXEL

    def __init__(self, first: int, second: int) -> None:
        self.half_sets = torch.tensor([0] * first + [1] * second)

    def __len__(self) -> int:
        return len(self.half_sets)


MASK = spherical_mask(SIZE, outer_px=20.0, inner_px=6.0)
BALL = spherical_mask(SIZE, outer_px=6.0, inner_px=5.0)
MADE = MaskOrigin(padding=56.0, dilation=7.0, smoothing=4.0, region_volume=3e5)
SETTINGS = RefinementSettings(rotation_extent=10.0, shift_extent=10.0)


def codes(mask: torch.Tensor = MASK, *, halves: tuple[int, int] = (50, 50), resolution: float = 8.0,
          settings: RefinementSettings = SETTINGS, made: MaskOrigin = MADE) -> list[str]:  # fmt: skip
    found = review_setup(
        mask, BALL, Few(*halves), fulcrum=torch.zeros(3, dtype=torch.float64), settings=settings,
        made=made, resolution=resolution,
    )  # fmt: skip
    return [finding.code for finding in found]


def test_a_sound_set_up_brings_no_finding() -> None:
    assert codes() == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"resolution": 16.0}, ["R1"]),
        ({"resolution": 10.0}, ["R2"]),
        ({"made": replace(MADE, dilation=0.0)}, ["R3"]),
        ({"halves": (60, 40)}, ["R17"]),
        ({"settings": replace(SETTINGS, rotation_prior=7.0)}, ["R11"]),
        ({"settings": replace(SETTINGS, recentre=True)}, ["R11"]),
        ({"settings": replace(SETTINGS, rotation_extent=40.0)}, ["R21"]),
        ({"made": replace(MADE, region_volume=1e5)}, ["R12"]),
        ({"mask": 2.0 * MASK}, ["R5"]),
    ],
)
def test_each_fault_brings_its_rule(changes: dict[str, object], expected: list[str]) -> None:
    assert codes(**changes) == expected


def test_scale_of_a_domain_is_warned_of() -> None:
    scaled = replace(SETTINGS, scale=True)
    assert codes(settings=scaled) == []  # the mask holds all of the density
    beside = spherical_mask(SIZE, outer_px=12.0, inner_px=6.0, centre_px=(12.0, 0.0, 0.0))
    assert density_share(BALL, beside) == pytest.approx(0.1, abs=0.1)
    assert "R24" in codes(beside, settings=scaled)
    assert "R24" not in codes(beside)


def test_share_of_density_counts_only_what_is_density() -> None:
    noise = 0.05 * torch.randn(SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    right = (torch.arange(SIZE) >= SIZE // 2).float().expand(SIZE, SIZE, SIZE)
    inside = BALL * right
    expected = float(inside.sum() / BALL.sum())
    assert density_share(BALL + noise * (BALL < 0.1), right) == pytest.approx(expected, abs=0.03)


def test_a_hard_mask_through_density_is_an_error() -> None:
    cut = spherical_mask(SIZE, outer_px=4.0, inner_px=4.0)
    found = review_setup(
        cut, spherical_mask(SIZE, outer_px=10.0, inner_px=9.0), Few(50, 50),
        fulcrum=torch.zeros(3, dtype=torch.float64), settings=SETTINGS, made=replace(MADE, padding=0.0),
        resolution=8.0,
    )  # fmt: skip
    assert [(finding.code, finding.level) for finding in found if finding.level == "error"] == [
        ("R1", "error")
    ]


def test_rim_share_of_an_even_texture_is_that_of_the_squared_mask(generator: torch.Generator) -> None:
    texture = torch.randn(SIZE, SIZE, SIZE, generator=generator)
    squared = MASK.double().square()
    expected = float(squared[(MASK > 0) & (MASK < 0.99)].sum() / squared.sum())
    found = rim_share(HalfMaps(texture, texture, PIXEL), MASK, resolution=10.0)
    # some 5,000 independent values in the mask
    assert found == pytest.approx(expected, rel=0.1)


def test_rim_share_of_a_domain_well_inside_is_small(generator: torch.Generator) -> None:
    texture = torch.randn(SIZE, SIZE, SIZE, generator=generator)
    domain = texture * spherical_mask(SIZE, outer_px=5.0, inner_px=3.0)
    halves = [domain + 0.01 * torch.randn(SIZE, SIZE, SIZE, generator=generator) for _ in range(2)]
    assert rim_share(HalfMaps(*halves, PIXEL), MASK, resolution=10.0) < 0.05


def test_directional_fsc_works_on_a_cube_round_the_mask(generator: torch.Generator) -> None:
    """It holds the mask, and the cones reach 1.25 times as fine as the resolution."""
    small = spherical_mask(SIZE, outer_px=8.0, inner_px=4.0, centre_px=(9.0, -6.0, 4.0))
    shared = torch.randn(SIZE, SIZE, SIZE, generator=generator)
    halves = [shared + 0.5 * torch.randn(SIZE, SIZE, SIZE, generator=generator) for _ in range(2)]
    cones = directional_fsc(HalfMaps(*halves, PIXEL), small, resolution=20.0)
    assert cones.box_size == 18
    assert float(cones.frequency[-1]) == pytest.approx(1 / 16.0, rel=0.15)  # whole shells
    # SNR 4 everywhere: FSC 0.8 in the mean over cones and shells
    assert float(cones.curves[:, 2:].mean()) == pytest.approx(0.8, abs=0.05)
