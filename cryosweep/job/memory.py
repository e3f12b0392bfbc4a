"""What the jobs of one process share: read or made once, kept while the memory budget allows.

Jobs of a sweep run one after another in few processes and mostly begin alike: the same particles, the same
starting maps, often the same crop of the same images. Keys are those of the stages, so what is kept is told
apart by content, not by name.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, cast

import pandas as pd
import torch
from torch import Tensor

from cryosweep.config import JobConfig, parse_memory
from cryosweep.io.particles import Particles, in_memory

Kept = TypeVar("Kept")

# Of compute.memory_budget; the refinement has what is left.
SHARE = 0.5
# Bytes of a cell of a table of text, about.
CELL = 64


class Memory:
    """Values by key; the least recently asked for go first when they are together too large."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, tuple[object, int]] = OrderedDict()

    @property
    def size(self) -> int:
        """Bytes of all that is kept."""
        return sum(size for _, size in self._kept.values())

    def get(self, key: Hashable, make: Callable[[], Kept], *, budget: float) -> Kept:
        """The value under `key`, made if there is none; one larger than `budget` bytes is not kept.

        Nobody may write into what is returned: the next job gets the same.
        """
        if key in self._kept:
            self._kept.move_to_end(key)
            return cast(Kept, self._kept[key][0])
        made = make()
        size = size_of(made)
        if size <= budget:
            while self._kept and self.size + size > budget:
                self._kept.popitem(last=False)
            self._kept[key] = made, size
        return made

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()


MEMORY = Memory()


def budget_of(config: JobConfig) -> float:
    """Bytes that `MEMORY` may hold."""
    return SHARE * parse_memory(config.compute.memory_budget)


def left_of(config: JobConfig) -> float:
    """Bytes that are left of the budget for the work of one job."""
    return max(parse_memory(config.compute.memory_budget) - MEMORY.size, budget_of(config))


def with_images(particles: Particles, config: JobConfig) -> Particles:
    """`particles` with their images in memory, if all of them take no more than half of what may be kept."""
    size = len(particles) * particles.box_size**2 * torch.float32.itemsize
    return in_memory(particles) if size <= 0.5 * budget_of(config) else particles


def size_of(value: Any) -> int:
    """Bytes of the tensors and tables in a value, a dataclass or a collection of them."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, pd.DataFrame):
        return value.size * CELL
    if is_dataclass(value):
        return sum(size_of(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, dict):
        return sum(map(size_of, cast(dict[Any, Any], value).values()))
    if isinstance(value, tuple | list):
        return sum(map(size_of, cast(tuple[Any, ...], value)))
    return 0
