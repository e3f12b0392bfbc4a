"""Versions of the results that jobs share in their store, one for each stage."""

from __future__ import annotations

# Raise one when what its stage makes changes: results kept under the old number are then made anew.
SIMULATION_VERSION = 1
TWIN_VERSION = 1
CONSENSUS_VERSION = 3
REFINED_CONSENSUS_VERSION = 3
MASK_BASE_VERSION = 1
MASK_VERSION = 1
SUBTRACTION_VERSION = 1
REFINEMENT_VERSION = 1
STAGE_VERSIONS = {
    "simulation": SIMULATION_VERSION,
    "twin": TWIN_VERSION,
    "consensus": CONSENSUS_VERSION,
    "refined_consensus": REFINED_CONSENSUS_VERSION,
    "mask_base": MASK_BASE_VERSION,
    "mask": MASK_VERSION,
    "subtraction": SUBTRACTION_VERSION,
    "refinement": REFINEMENT_VERSION,
}
