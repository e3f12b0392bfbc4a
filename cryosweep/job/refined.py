"""The refinement as a stage: its result is kept, and one that was stopped goes on from its last iteration."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryosweep.io.maps import replacing
from cryosweep.io.particles import Particles
from cryosweep.job.stages import REFINEMENT_VERSION
from cryosweep.reconstruction import HalfMaps
from cryosweep.refinement import (
    Audit,
    Inspection,
    IterationRecord,
    PreparedImages,
    Refinement,
    RefinementSettings,
    RefinementState,
    Stop,
    refine,
)
from cryosweep.study.resume import code_digest
from cryosweep.study.store import Store, digest_values

log = logging.getLogger(__name__)

RESULT = "refinement.pt"
CHECKPOINT = "checkpoint.pt"


def refined(
    particles: Particles, start: HalfMaps, mask: Tensor, *, fulcrum: Tensor, settings: RefinementSettings,
    images_key: str, store: Store, device: torch.device, memory_budget: float,
    advance: Callable[[int], None] | None = None,
    on_iteration: Callable[[IterationRecord], None] | None = None,
    share: Callable[[tuple[int, ...], Callable[[], PreparedImages]], PreparedImages] | None = None,
    again: bool = False,
) -> Refinement:  # fmt: skip
    """The result of `refine`, from the store if it is there: jobs that differ only in later steps share it.

    After each iteration the state goes to `checkpoint.pt` in the folder that the result is made in. Whoever
    asks for the same result after the process was killed goes on from there. The key holds the digest of the
    numerical code, so neither result nor checkpoint of other code is ever taken.

    Args:
        particles: with the images to refine.
        start: half-maps of them.
        mask: (d, d, d).
        fulcrum: (3,) Å from the box centre.
        settings: of the refinement.
        images_key: of particles, images and `start` together.
        store: of the stages.
        device: where to work.
        memory_budget: bytes, as for `refine`.
        advance: as for `refine`.
        on_iteration: called with every record, also with those that were there already.
        share: as for `refine`.
        again: refine even if there is a result or a checkpoint.
    """

    def make(folder: Path) -> None:
        checkpoint = folder / CHECKPOINT
        if again:
            checkpoint.unlink(missing_ok=True)
        state = _read_state(checkpoint)
        if state is not None:
            log.info("refinement: goes on after iteration %d", state.iteration)
            for record in state.records:
                tell(record)
        result = refine(
            particles, start, mask, fulcrum=fulcrum, settings=settings, device=device,
            memory_budget=memory_budget, advance=advance, on_iteration=tell, resume=state,
            on_state=lambda state: _save(checkpoint, asdict(state)), share=share,
        )  # fmt: skip
        _save(folder / RESULT, asdict(result) | {"stop": result.stop.name})
        checkpoint.unlink(missing_ok=True)

    told: list[IterationRecord] = []

    def tell(record: IterationRecord) -> None:
        told.append(record)
        if on_iteration is not None:
            on_iteration(record)

    plain = {name: getattr(value, "value", value) for name, value in asdict(settings).items()}
    parameters = {"settings": plain, "fulcrum": fulcrum.tolist(), "device": device.type}
    inputs = [images_key, digest_values(mask.cpu().numpy()), code_digest()]
    folder = store.get(
        "refinement", REFINEMENT_VERSION, parameters, inputs, make, resumable=True, again=again
    )
    result = _result(_load(folder / RESULT))
    for record in result.records[len(told) :]:
        tell(record)
    return result


def _result(told: dict[str, Any]) -> Refinement:
    parts: dict[str, Any] = {
        "records": tuple(IterationRecord(**record) for record in told["records"]),
        "stop": Stop[told["stop"]],
        "audit": None if told["audit"] is None else Audit(**told["audit"]),
        "inspection": Inspection(**told["inspection"]),
    }
    return Refinement(**{**told, **parts})


def _read_state(path: Path) -> RefinementState | None:
    """What a checkpoint holds; None, and one line, if it cannot be used."""
    if not path.is_file():
        return None
    try:
        told = _load(path)
        told["records"] = tuple(IterationRecord(**record) for record in told["records"])
        return RefinementState(**told)
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
        log.warning("refinement: begins anew, its checkpoint cannot be read: %s", reason)
        return None


def _save(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all."""
    with replacing(path) as temporary:
        torch.save(_on_cpu(content), temporary)


def _load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_on_cpu(each) for each in value]
    return value
