import pytest
import torch

from cryosweep.selection import nested_subset, random_halves


def test_small_subsets_lie_in_larger_ones_and_are_balanced(generator: torch.Generator) -> None:
    half_sets = (torch.rand(1000, generator=generator) < 0.3).long()
    share = float(half_sets.float().mean())
    last: set[int] = set()
    for size in (20, 0.1, 250, 0.5, 1.0, None):
        rows = nested_subset(half_sets, size, seed=3)
        count = 1000 if size is None else size if size > 1 else round(1000 * size)
        assert abs(len(rows) - count) <= 1
        assert abs(float(half_sets[rows].float().sum()) - share * count) <= 1.0
        assert bool((rows.diff() > 0).all())
        assert last < set(rows.tolist()) or len(last) == 1000
        last = set(rows.tolist())
    assert set(nested_subset(half_sets, 100, seed=4).tolist()) != set(
        nested_subset(half_sets, 100, seed=3).tolist()
    )


def test_groups_share_no_particle_and_hold_all() -> None:
    half_sets = torch.arange(101) % 2
    groups = [set(nested_subset(half_sets, None, seed=1, groups=3, group=g).tolist()) for g in range(3)]
    assert set.union(*groups) == set(range(101))
    assert sum(map(len, groups)) == 101
    assert set(nested_subset(half_sets, 0.5, seed=1, groups=3, group=1).tolist()) < groups[1]


def test_too_few_particles_are_refused() -> None:
    half_sets = torch.arange(100) % 2
    with pytest.raises(ValueError, match="200 particles are asked for, but there are 100"):
        nested_subset(half_sets, 200, seed=0)
    with pytest.raises(ValueError, match="leaves a half set empty"):
        nested_subset(half_sets, 0.001, seed=0)


def test_random_halves_are_equal_and_repeatable() -> None:
    halves = random_halves(101, seed=5)
    assert int(halves.sum()) == 50
    assert torch.equal(halves, random_halves(101, seed=5))
    assert not torch.equal(halves, random_halves(101, seed=6))
