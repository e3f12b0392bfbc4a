"""The commands that run a single stage on files, for work beside RELION, CryoSPARC and ChimeraX.

A command looks at everything it was given before long work starts, and its files appear when all of them are
written: one that fails leaves nothing behind. An existing file is replaced only when the user says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryosweep.file_commands import (
    anisotropy,
    consensus,
    fsc,
    fulcrum,
    local_resolution,
    mask,
    reconstruct,
    regularise,
    segment,
    sharpen,
    simulate,
    store,
    subtract,
    twin,
    volume,
)

if TYPE_CHECKING:
    from cryosweep.commands import Commands

COMMANDS = (
    consensus, segment, mask, volume, fulcrum, subtract, reconstruct, regularise, fsc, anisotropy, sharpen,
    local_resolution, simulate, twin, store,
)  # fmt: skip


def add_parsers(commands: Commands) -> None:
    """Add a parser for each command; `function` of what it parses runs it and returns the exit status."""
    for command in COMMANDS:
        command.add_parser(commands)
