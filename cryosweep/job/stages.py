"""Versions of the results that jobs share in their store, one for each stage."""

from __future__ import annotations

# Raise one when what its stage makes changes: results kept under the old number are then made anew.
SIMULATION_VERSION = 1
TWIN_VERSION = 1
CONSENSUS_VERSION = 2
REFINED_CONSENSUS_VERSION = 2
STAGE_VERSIONS = {
    "simulation": SIMULATION_VERSION,
    "twin": TWIN_VERSION,
    "consensus": CONSENSUS_VERSION,
    "refined_consensus": REFINED_CONSENSUS_VERSION,
}
