"""cryosweep: parameter sweeps of cryo-EM local refinement, compared on one ruler."""

from importlib.metadata import version

__version__ = version("cryosweep")
