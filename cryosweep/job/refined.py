"""The refinement as a stage: its result is kept, and one that was stopped goes on from its last iteration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryosweep.checkpoint import CHECKPOINT, Checkpoint, load, save
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
    Stop,
    refine,
)
from cryosweep.study.resume import code_digest
from cryosweep.study.store import Store, digest_values

RESULT = "refinement.pt"


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
        # the key of the result stands for everything that the state depends on
        checkpoint = Checkpoint(folder / CHECKPOINT)
        if again:
            checkpoint.remove()
        state = checkpoint.read()
        for record in () if state is None else state.records:
            tell(record)
        result = refine(
            particles, start, mask, fulcrum=fulcrum, settings=settings, device=device,
            memory_budget=memory_budget, advance=advance, on_iteration=tell, resume=state,
            on_state=checkpoint.write, share=share,
        )  # fmt: skip
        save(folder / RESULT, asdict(result) | {"stop": result.stop.name})
        checkpoint.remove()

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
    result = _result(load(folder / RESULT))
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
