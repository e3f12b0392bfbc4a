"""Which particles take part, and in which half set: seeded, nested and balanced."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cryosweep.io.particles import Particles


def nested_subset(
    half_sets: Tensor, size: float | None, *, seed: int, groups: int = 1, group: int = 0
) -> Tensor:
    """Rows (k,), ascending, of a random subset with the same share of each half set.

    The particles of each half set are put in one random order per seed, dealt into `groups` disjoint groups,
    and the first ones of the group are taken: a smaller subset of equal seed and group lies in a larger one.

    Args:
        half_sets: (n,) numbers of the half sets; equal ones for one stratum.
        size: up to 1 a share of the group, above 1 a number of particles, None for the whole group.
        seed: of the order.
        groups: number of disjoint groups.
        group: which of them, from 0.

    Raises:
        ValueError: the group holds fewer particles than asked for, or a half set would be left empty.
    """
    generator = torch.Generator().manual_seed(seed)
    dealt: list[Tensor] = []
    for half in half_sets.unique():
        members = (half_sets == half).nonzero().squeeze(-1)
        dealt.append(members[torch.randperm(len(members), generator=generator)][group::groups])
    there = sum(map(len, dealt))
    share = 1.0 if size is None else size if size <= 1.0 else size / max(there, 1)
    if share > 1.0:
        raise ValueError(f"{size:g} particles are asked for, but there are {there}")
    taken = [members[: round(share * len(members))] for members in dealt]
    if min(map(len, taken)) == 0:
        raise ValueError(f"{share:.3g} of {there} particles leaves a half set empty; take more")
    return torch.cat(taken).sort().values


def random_halves(count: int, *, seed: int) -> Tensor:
    """(n,) a seeded split in halves, 0 and 1, as equal as can be; that of files without half sets."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    half_sets = torch.zeros(count, dtype=torch.int64)
    half_sets[order[: count // 2]] = 1
    return half_sets


def with_halves(particles: Particles, half_sets: Tensor, note: str) -> Particles:
    """The particles in other half sets (n,), and the note that says so."""
    return replace(particles, half_sets=half_sets, notes=(*particles.notes, note))
