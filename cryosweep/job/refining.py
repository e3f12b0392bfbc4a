"""What a refinement is told by the configuration, and the record of its iterations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd

from cryosweep import config as schemas
from cryosweep.config import JobConfig
from cryosweep.refinement import IterationRecord, RefinementSettings
from cryosweep.regularisation import Regularisation
from cryosweep.search import ExtentShape

_ITERATION_COLUMNS = (
    "iteration", "band", "coarse_band", "resolution", "resolution_corrected", "rotation_change_median",
    "shift_change_median", "moved_median", "at_rotation_extent", "at_shift_extent", "log_posterior",
    "marginalised", "seconds",
)  # fmt: skip


def refinement_settings(config: JobConfig) -> RefinementSettings:
    """Settings of the local refinement, from the groups `search`, `refinement` and `compute`."""
    search, loop = config.search, config.refinement
    return RefinementSettings(
        rotation_extent=search.rotation_extent,
        shift_extent=search.shift_extent,
        extent_shape=ExtentShape(search.extent_shape.value),
        rotation_prior=search.rotation_prior,
        shift_prior=search.shift_prior,
        recentre=search.recentre,
        audit=search.audit,
        seed=config.seed,
        max_iterations=loop.max_iterations,
        initial_lowpass=loop.initial_lowpass,
        max_resolution=loop.max_resolution,
        regularisation=Regularisation(loop.regularisation.value),
        correct_for_mask=loop.band_from is schemas.BandFrom.corrected,
        marginalise=loop.marginalise,
        scale=loop.scale,
        compile=config.compute.compile,
    )


def consensus_settings(chosen: schemas.HomogeneousConsensus, seed: int) -> RefinementSettings:
    """Settings of the refinement of the whole particles, from the group `consensus`."""
    return RefinementSettings(
        rotation_extent=chosen.rotation_extent,
        shift_extent=chosen.shift_extent,
        rotation_prior=chosen.rotation_prior,
        shift_prior=chosen.shift_prior,
        max_iterations=chosen.max_iterations,
        initial_lowpass=chosen.initial_lowpass,
        max_resolution=chosen.max_resolution,
        regularisation=Regularisation.nonuniform if chosen.kind == "nonuniform" else Regularisation.wiener,
        scale=chosen.scale,
        seed=seed,
    )


def iteration_metrics(record: IterationRecord) -> dict[str, float]:
    """Numbers of one iteration by name, as the tracking store calls them."""
    values = asdict(record)
    return {f"iteration/{name}": values[name] for name in _ITERATION_COLUMNS if name != "iteration"}


def iteration_table(records: Sequence[IterationRecord]) -> pd.DataFrame:
    """The columns of `iterations.csv`, one row an iteration."""
    return pd.DataFrame([asdict(record) for record in records])[list(_ITERATION_COLUMNS)]
