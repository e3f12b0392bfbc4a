"""A job that does no refinement: it fails, is interrupted or finishes as its configuration says."""

import json
import os

STAGE_VERSIONS = {}


def check_job(config):
    """Refuses one seed, so that a test can see that jobs are asked."""
    return ["seed=13: refused by the job"] if config.seed == 13 else []


def inputs_of(config):
    return {}


def wants_common_images(config, swept):
    return False


def run_job(config, folder, tracker, progress):
    progress.start(2, "stub")
    progress.advance(2)
    if config.seed == 66:
        raise ValueError("the stub was told to fail")
    if config.seed == 99:
        raise KeyboardInterrupt
    tracker.metrics({"resolution": 10.0}, step=1)
    tracker.curve("frozen", [1.0, 0.5, 0.1])
    summary = {
        "fsc_area/frozen": 0.5,
        "start/fsc_area_frozen": 0.25,
        "resolution/frozen_0143": 8.0,
        "start/resolution_frozen_0143": 12.0,
        "pose/rotation_change_median": 3.0,
        "pose/shift_change_median": 2.0,
        "pose/at_rotation_extent": 0.01,
        "pose/at_shift_extent": 0.02,
        "iterations": 2.0,
        "cpu_threads": float(os.environ.get("OMP_NUM_THREADS", "0")),
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return summary
