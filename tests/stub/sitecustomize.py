"""Puts a quick `cryosweep.job` in the place of the real one, wherever this folder is on the path.

Jobs of a sweep run in processes of their own, which a monkeypatch does not reach.
"""

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("cryosweep.job", Path(__file__).with_name("stub_job.py"))
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
sys.modules["cryosweep.job"] = _module
