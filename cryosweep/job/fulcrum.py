"""The point that rotations are about, as the configuration gives it or where domains touch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cryosweep import config as schemas
from cryosweep import rules
from cryosweep.config import JobConfig
from cryosweep.fulcrum import contact_radius, interface
from cryosweep.io.markers import read_marker, write_marker
from cryosweep.io.particles import Particles
from cryosweep.job.data import Data, moving_domain
from cryosweep.job.files import volume_like
from cryosweep.job.masks import smoothed, smoothed_consensus
from cryosweep.job.starting import Start
from cryosweep.mask import centre_of_mass, threshold_of
from cryosweep.simulate import Truth


def fulcrum_point(
    config: JobConfig, mask: Tensor, start: Start, particles: Particles, truth: Truth | None = None
) -> Tensor:
    """(3,) Å from the box centre.

    Raises:
        ValueError: it lies outside the box.
    """
    chosen = config.fulcrum
    pixel_size, half = particles.pixel_size, particles.box_size // 2
    if isinstance(chosen, schemas.MaskCentre):
        return centre_of_mass(mask).double().cpu() * pixel_size
    if isinstance(chosen, schemas.BoxCentre):
        return torch.zeros(3, dtype=torch.float64)
    if isinstance(chosen, schemas.DomainHinge):
        name = moving_domain(config)
        assert truth is not None
        assert name is not None
        return truth.hinges[name]
    if isinstance(chosen, schemas.FulcrumPx):
        given = f"fulcrum.position={list(chosen.position)} px"
        point = (torch.tensor(chosen.position, dtype=torch.float64) - half) * pixel_size
    else:
        assert isinstance(chosen, schemas.FulcrumMarker)
        position = read_marker(Path(chosen.path)) if chosen.path is not None else chosen.position
        assert position is not None
        given = f"the fulcrum marker at {tuple(round(x, 2) for x in position)} Å"
        origin = torch.tensor(start.origin, dtype=torch.float64)
        point = torch.tensor(position, dtype=torch.float64) - origin - half * pixel_size
    outside = rules.fulcrum_in_box(point.tolist(), box_length=particles.box_size * pixel_size)
    if outside is not None:
        raise ValueError(f"{given}: {outside}")
    return point


def interface_point(
    config: JobConfig, chosen: schemas.Interface, data: Data, start: Start, base: Tensor | None,
    mask: Tensor, device: torch.device,
) -> tuple[Tensor, str, tuple[rules.Finding, ...]]:  # fmt: skip
    """(3,) Å from the box centre where the domain touches its carrier, how well that is known, and doubts.

    Domain and parts are cut where the mask is, at the same density, and not dilated.

    Raises:
        ValueError: they do not touch as a hinge does.
    """
    particles = data.particles
    if isinstance(config.mask, schemas.SoftMask):
        assert base is not None
        threshold = threshold_of(base, config.mask.threshold, unit=config.mask.threshold_unit.value)  # pyright: ignore[reportArgumentType]
        domain = base > threshold
    else:
        threshold, domain = 0.5, mask > 0.5
    if chosen.parts:
        names = list(chosen.parts)
        parts = [_part(config, path, threshold, particles, device) for path in names]
    else:
        assert isinstance(config.mask_base, schemas.DomainBase)
        assert data.truth is not None
        names = [name for name in data.truth.names if name != config.mask_base.name]
        dense = smoothed_consensus(config, data, start) > threshold
        parts = [dense & data.truth.territory(name).to(device) for name in names]
    pixel_size = particles.pixel_size
    try:
        found = interface(domain, parts, names=names, pixel_size=pixel_size)
    except ValueError as error:
        raise ValueError(f"fulcrum=interface: {error} (fulcrum=marker)") from error
    x, y, z = (f"{float(value):.1f}" for value in found.contact.sd)
    return (
        found.contact.centre,
        (
            f"The fulcrum is the contact with {names[found.carrier]}: {found.contact.voxels} voxels within "
            f"{contact_radius(pixel_size):g} Å of both, of SD {x}, {y}, {z} Å along x, y, z."
        ),
        rules.present((rules.contact_along(found.along),)),
    )


def _part(
    config: JobConfig, path: str, threshold: float, particles: Particles, device: torch.device
) -> Tensor:
    """Where a mask is above one half, or a map, smoothed as the mask base is, above `threshold`."""
    volume = volume_like(path, particles, device)
    if float(volume.min()) >= 0.0 and float(volume.max()) <= 1.0:
        return volume > 0.5
    return smoothed(config, volume, particles) > threshold


def write_fulcrum(folder: Path, fulcrum: Tensor, start: Start, particles: Particles) -> None:
    """The fulcrum as a marker over the maps of the run folder."""
    half = particles.box_size // 2 * particles.pixel_size
    x, y, z = (float(value) + half + origin for value, origin in zip(fulcrum, start.origin, strict=True))
    write_marker(folder / "fulcrum.cmm", (x, y, z), radius=2.0 * particles.pixel_size, note="fulcrum")
