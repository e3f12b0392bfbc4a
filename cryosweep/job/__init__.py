"""One job: from a checked configuration to refined poses, maps, curves and figures in a run folder."""

from cryosweep.job.checks import check_job
from cryosweep.job.common import wants_common_images
from cryosweep.job.files import inputs_of
from cryosweep.job.run import run_job
from cryosweep.job.stages import STAGE_VERSIONS

__all__ = ["STAGE_VERSIONS", "check_job", "inputs_of", "run_job", "wants_common_images"]
