"""The only code that opens data files: maps, particles, markers, Segger files and ChimeraX scripts."""

from cryosweep.io.maps import Map, box_centre, open_stack_for_writing, read_map, write_map
from cryosweep.io.markers import read_marker, write_marker
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
    "write_marker",
    "write_particles",
]
