"""The state of a refinement in a file: replaced after each iteration, read by whoever goes on with it."""

from __future__ import annotations

import logging
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryosweep.io.maps import replacing
from cryosweep.refinement import IterationRecord, RefinementState

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class Checkpoint:
    """Where a refinement keeps its state.

    Attributes:
        path: of the file.
        identity: tells what the state depends on besides the place of the file; a state of anything else is
            not taken.
        name: of the refinement, for messages.
    """

    path: Path
    identity: str = ""
    name: str = "refinement"

    def read(self) -> RefinementState | None:
        """The state to go on from; None, and one line where there is a file, if it cannot be used."""
        if not self.path.is_file():
            return None
        try:
            told = load(self.path)
            identity = told.pop("identity")
            told["records"] = tuple(IterationRecord(**record) for record in told["records"])
            state = RefinementState(**told)
        except (
            OSError,
            RuntimeError,
            ValueError,
            TypeError,
            KeyError,
            EOFError,
            pickle.UnpicklingError,
        ) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning("%s: begins anew, its checkpoint cannot be read: %s", self.name, reason)
            return None
        if identity != self.identity:
            log.warning("%s: begins anew, %s is of other inputs, settings or code", self.name, self.path.name)
            return None
        log.info("%s: goes on after iteration %d", self.name, state.iteration)
        return state

    def write(self, state: RefinementState) -> None:
        """Put `state` in the place of the one before."""
        save(self.path, {**asdict(state), "identity": self.identity})

    def remove(self) -> None:
        """Delete the file, if there is one."""
        self.path.unlink(missing_ok=True)


def save(path: Path, content: dict[str, Any]) -> None:
    """Plain values and tensors into a file, whole or not at all."""
    with replacing(path) as temporary:
        torch.save(_on_cpu(content), temporary)


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote, tensors on the CPU."""
    return torch.load(path, map_location="cpu", weights_only=True)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_on_cpu(each) for each in value]
    return value
