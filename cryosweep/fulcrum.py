"""The fulcrum at the interface: where a domain touches the part that carries it.

A domain that swings on another turns about their contact more nearly than about its own centre. The contact
is the set of voxels near to both, and its unweighted mean is the fulcrum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cryosweep.mask import centre_of_mass, dilate

# Voxels of the contact lie within this distance of both parts. At less than two voxels parts that abut on the
# grid hardly meet. On the ribosome 5 Å and 7 Å give centres within 2 Å of each other.
CONTACT_RADIUS = 7.0
CONTACT_RADIUS_PX = 2.0

# Fewer voxels, or less volume, than this are a touch and no place to turn about.
LEAST_VOXELS = 50
LEAST_VOLUME = 2100.0  # Å^3, 50 voxels of 3.5 Å


@dataclass(frozen=True)
class Contact:
    """Where two parts touch.

    Attributes:
        voxels: their number.
        centre: (3,) float64, mean of the voxels, x, y, z in Å from the box centre; nan without voxels.
        sd: (3,) float64, standard deviation of the voxels along x, y and z, Å: how well the centre is a
            point.
        covariance: (3, 3) float64 of them, Å^2.
    """

    voxels: int
    centre: Tensor
    sd: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class Interface:
    """The contact of a domain with its carrier, and what else it touches.

    Attributes:
        carrier: index of the carrier among the parts.
        contact: with the carrier.
        voxels: of the contact with each part.
        along: standard deviation of the contact on the line from the domain's centre of mass to the contact's
            centre, as a share of the domain's radius of gyration. Small where the contact crosses one end of
            the domain, as a hinge does; large where it runs along the domain: then the place on that line,
            the length of the lever, is not determined by the contact (`rules.contact_along`).
    """

    carrier: int
    contact: Contact
    voxels: tuple[int, ...]
    along: float


def contact_radius(pixel_size: float) -> float:
    """Distance (Å) within which a voxel counts as near: 7 Å, but never less than two voxels."""
    return max(CONTACT_RADIUS, CONTACT_RADIUS_PX * pixel_size)


def contact(domain: Tensor, part: Tensor, *, pixel_size: float, radius: float | None = None) -> Contact:
    """Voxels within `radius` of two parts.

    Args:
        domain: (d, d, d) bool.
        part: (d, d, d) bool.
        pixel_size: Å.
        radius: Å; default `contact_radius`. A voxel at just this distance counts.
    """
    reach = (contact_radius(pixel_size) if radius is None else radius) / pixel_size
    # `dilate` stops short of its radius; distances in px are roots of whole numbers, so that this adds just
    # those equal to it
    reach *= 1.0 + 1e-6
    near = dilate(domain, reach) & dilate(part, reach)
    origin = torch.tensor([size // 2 for size in near.shape], device=near.device)
    places = (torch.nonzero(near) - origin).flip(1).double().cpu() * pixel_size
    if len(places) == 0:
        nowhere = torch.full((3,), torch.nan, dtype=torch.float64)
        return Contact(0, nowhere, nowhere, nowhere.expand(3, 3))
    covariance = torch.cov(places.T, correction=0).reshape(3, 3)
    return Contact(len(places), places.mean(dim=0), covariance.diagonal().sqrt(), covariance)


def interface(
    domain: Tensor,
    parts: Sequence[Tensor],
    *,
    names: Sequence[str],
    pixel_size: float,
    radius: float | None = None,
) -> Interface:
    """The contact of a domain with its carrier, which is the part that it has the largest contact with.

    Args:
        domain: (d, d, d) bool.
        parts: (d, d, d) bool each; the carrier alone, or all that may be it.
        names: of the parts, for messages.
        pixel_size: Å.
        radius: see `contact`.

    Raises:
        ValueError: a part is empty, the contact is too small to be a fulcrum, or it does not lie between the
            centres of mass of domain and carrier.
    """
    for region, name in zip((domain, *parts), ("the domain", *names), strict=True):
        if not bool(region.any()):
            raise ValueError(f"{name} is empty; lower its threshold")
    contacts = [contact(domain, part, pixel_size=pixel_size, radius=radius) for part in parts]
    voxels = tuple(found.voxels for found in contacts)
    carrier = voxels.index(max(voxels))
    found, name = contacts[carrier], names[carrier]
    least = max(LEAST_VOXELS, round(LEAST_VOLUME / pixel_size**3))
    if found.voxels < least:
        raise ValueError(
            f"the domain touches {name} in {found.voxels} voxels only, and a fulcrum needs {least}; "
            f"set a marker where it turns, or give parts in which its base is seen"
        )
    ours, theirs = (centre_of_mass(region) * pixel_size for region in (domain, parts[carrier]))
    axis = (theirs - ours).cpu()
    lever = (found.centre - ours.cpu()).double()
    along = float(torch.dot(found.centre - ours.cpu(), axis) / torch.dot(axis, axis))
    if not 0.0 < along < 1.0:
        raise ValueError(
            f"the contact with {name} does not lie between the centres of mass of the two, as if one "
            f"embraced the other; set a marker where the domain turns, or cut the carrier down to one side"
        )
    line = lever / lever.norm()
    spread = float((line @ found.covariance @ line).sqrt())
    return Interface(carrier, found, voxels, spread / (_radius_of_gyration(domain) * pixel_size))


def _radius_of_gyration(region: Tensor) -> float:
    places = torch.nonzero(region).double()
    return float((places - places.mean(dim=0)).square().sum(dim=1).mean().sqrt())
