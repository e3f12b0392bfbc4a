"""The contact of a domain with its carrier: brute force, closed forms, and the embedded ribosome."""

import math

import pytest
import torch
from torch import Tensor

from cryosweep import rules
from cryosweep.fulcrum import LEAST_VOXELS, contact, contact_radius, interface
from cryosweep.mask import centre_of_mass, spherical_mask
from cryosweep.simulate import DOMAINS, domain_labels, load_ribosome

PIXEL_SIZE = 3.5


def ball(radius: float, centre: tuple[float, float, float], size: int = 48) -> Tensor:
    return spherical_mask(size, outer_px=radius, inner_px=radius, centre_px=centre) > 0.5


def brute(first: Tensor, second: Tensor, radius_px: float) -> Tensor:
    """(k, 3) places x, y, z in px from the box centre of voxels within the radius of both, all pairs."""
    everywhere = torch.nonzero(torch.ones_like(first)).double()
    near = [
        torch.cdist(everywhere, torch.nonzero(region).double()).min(dim=1).values <= radius_px + 1e-9
        for region in (first, second)
    ]
    return (everywhere[near[0] & near[1]] - first.shape[0] // 2).flip(1)


@pytest.mark.parametrize("size", [16, 17])
@pytest.mark.parametrize("radius_px", [1.0, 2.0, math.sqrt(5.0), 2.7])
def test_contact_is_what_lies_near_both(size: int, radius_px: float) -> None:
    first, second = ball(3.2, (-3, 1, 2), size), ball(2.6, (3, -1, 0), size)
    expected = brute(first, second, radius_px)
    found = contact(first, second, pixel_size=1.4, radius=radius_px * 1.4)
    assert found.voxels == len(expected) > 0
    torch.testing.assert_close(found.centre, 1.4 * expected.mean(dim=0))
    torch.testing.assert_close(found.sd, 1.4 * expected.std(dim=0, correction=0))


def test_two_equal_balls_touch_halfway() -> None:
    for axis in range(3):
        place = [0.0, 0.0, 0.0]
        place[axis] = 8.0
        x, y, z = place
        found = interface(
            ball(8, (-x, -y, -z)), [ball(8, (x, y, z))], names=["other"], pixel_size=PIXEL_SIZE
        ).contact
        torch.testing.assert_close(found.centre, torch.zeros(3, dtype=torch.float64))
        # a disc: thin along the axis that joins the two, wide across it
        assert int(found.sd.argmin()) == axis
        across = [float(found.sd[other]) for other in range(3) if other != axis]
        assert min(across) > 2 * float(found.sd[axis])


def test_along_is_that_of_a_formula() -> None:
    """A rod: its contact is thin where it stands on a slab, and long where it leans on a wall."""
    z, y, x = torch.meshgrid(*[torch.arange(64) - 32] * 3, indexing="ij")
    rod = (x.abs() <= 2) & (y.abs() <= 2) & (z >= -12) & (z <= 12)
    slab = (z < -14) & (x.abs() <= 20) & (y.abs() <= 20)
    gyration = PIXEL_SIZE * math.sqrt((25**2 - 1 + 2 * (5**2 - 1)) / 12.0)
    standing = interface(rod, [slab], names=["slab"], pixel_size=PIXEL_SIZE)
    # within 2 voxels of both: z from -14 to -13 alone, as far as z is concerned
    assert standing.contact.sd[2] < PIXEL_SIZE
    torch.testing.assert_close(standing.along, float(standing.contact.sd[2]) / gyration, rtol=1e-6, atol=1e-9)
    # a wall beside its lower two thirds draws the contact along the rod
    wall = (x >= 4) & (x <= 24) & (y.abs() <= 20) & (z <= 4) & (z >= -30)
    leaning = interface(rod, [wall], names=["wall"], pixel_size=PIXEL_SIZE)
    lever = leaning.contact.centre
    line = lever / lever.norm()
    expected = float((line @ leaning.contact.covariance @ line).sqrt()) / gyration
    assert leaning.along == pytest.approx(expected, rel=1e-6)
    assert leaning.along > 3 * standing.along


def test_the_carrier_is_the_part_with_the_largest_contact() -> None:
    domain, small, large = ball(6, (0, 0, 0)), ball(6, (0, 0, 13.0)), ball(10, (16.5, 0, 0))
    parts, names = [small, large], ["small", "large"]
    found = interface(domain, parts, names=names, pixel_size=PIXEL_SIZE)
    assert found.carrier == 1
    assert found.voxels[1] > found.voxels[0] > 0
    alone = interface(domain, [large], names=["large"], pixel_size=PIXEL_SIZE)
    assert torch.equal(alone.contact.centre, found.contact.centre)
    assert 6 < float(found.contact.centre[0]) / PIXEL_SIZE < 7
    assert found.contact.centre[1:].abs().max() < 1e-9


def test_radius_is_7_angstrom_and_never_less_than_two_voxels() -> None:
    assert contact_radius(1.0) == contact_radius(3.5) == 7.0
    assert contact_radius(5.25) == 10.5


@pytest.mark.parametrize(
    ("domain", "part", "pixel_size", "message"),
    [
        (
            ball(6, (-8, 0, 0)),
            ball(6, (8, 0, 0)),
            3.5,
            r"touches it in 0 voxels only, and a fulcrum needs 50",
        ),
        (ball(6, (-7, 0, 0)), ball(6, (7, 0, 0)), 3.5, r"touches it in \d+ voxels only, and a fulcrum needs"),
        (ball(6, (-9, 0, 0)), ball(6, (9, 0, 0)), 1.0, r"in \d+ voxels only, and a fulcrum needs 2100"),
        (ball(6, (0, 0, 0)), ball(18, (0, 0, 0)) & ~ball(7, (0, 0, 0)), 3.5, "as if one embraced"),
        (ball(6, (0, 0, 0)), ball(6, (0, 0, 0)) & ~ball(60, (0, 0, 0)), 3.5, "^it is empty"),
        (ball(6, (0, 0, 0)) & ~ball(60, (0, 0, 0)), ball(6, (0, 0, 0)), 3.5, "^the domain is empty"),
    ],
)
def test_what_is_no_hinge_is_refused(domain: Tensor, part: Tensor, pixel_size: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interface(domain, [part], names=["it"], pixel_size=pixel_size)
    assert LEAST_VOXELS == 50


# ---- the ribosome, whose hinges are known ----


@pytest.mark.parametrize(
    ("name", "carrier", "distance", "from_centre"),
    [("head", "foot", 6.0, 35.0), ("foot", "body", 6.0, 35.0), ("arm", "body", 26.0, 33.0)],
)
def test_the_contact_is_nearer_to_the_hinge_than_the_centre_of_the_domain(
    name: str, carrier: str, distance: float, from_centre: float, record_property
) -> None:
    """The arm touches more than the base of its stalk: better than its own centre, and not its hinge."""
    structure = load_ribosome()
    labels = domain_labels(structure, box_size=96, pixel_size=PIXEL_SIZE, reach=5.0)
    regions = {domain: labels == 1 + DOMAINS.index(domain) for domain in DOMAINS}
    others = [domain for domain in DOMAINS if domain != name]
    found = interface(
        regions[name], [regions[domain] for domain in others], names=others, pixel_size=PIXEL_SIZE
    )
    assert others[found.carrier] == carrier
    hinge = structure.hinges[name]
    away = float(torch.linalg.vector_norm(found.contact.centre - hinge))
    centre = float(torch.linalg.vector_norm(centre_of_mass(regions[name]) * PIXEL_SIZE - hinge))
    record_property("contact_to_hinge", away)
    record_property("along", found.along)
    assert (rules.contact_along(found.along) is not None) == (name == "arm")
    record_property("centre_to_hinge", centre)
    assert away < distance
    assert centre > from_centre
    part = regions[carrier]
    narrower = contact(regions[name], part, pixel_size=PIXEL_SIZE, radius=5.0).centre
    assert float(torch.linalg.vector_norm(narrower - found.contact.centre)) < 2.0
    # with all the rest instead of the carrier
    rest = torch.stack([regions[domain] for domain in others]).any(dim=0)
    all_rest = contact(regions[name], rest, pixel_size=PIXEL_SIZE).centre
    record_property("all_the_rest_to_hinge", float(torch.linalg.vector_norm(all_rest - hinge)))
