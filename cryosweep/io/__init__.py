"""The only code that opens data files: maps (MRC), particles (STAR and stacks) and markers (.cmm)."""

from cryosweep.io.maps import Map, box_centre, open_stack_for_writing, read_map, write_map
from cryosweep.io.markers import read_marker
from cryosweep.io.particles import (
    CtfDamping,
    Particles,
    new_particles,
    read_particles,
    read_views,
    write_particles,
)

__all__ = [
    "CtfDamping",
    "Map",
    "Particles",
    "box_centre",
    "new_particles",
    "open_stack_for_writing",
    "read_map",
    "read_marker",
    "read_particles",
    "read_views",
    "write_map",
    "write_particles",
]
