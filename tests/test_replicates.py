"""Half sets, subsets and groups in real jobs: what the data of a job are, by its configuration."""

from pathlib import Path

import pytest
import torch

from cryosweep.composition import ConfigFaults, make_plan
from cryosweep.io import particles as particle_files
from cryosweep.io.particles import read_particles, write_particles
from cryosweep.job.data import Data, load_data
from cryosweep.job.memory import MEMORY
from cryosweep.progress import make_progress
from cryosweep.study.store import Store

SMALL = ("data.particles=60", "data.box_size=48", "data.pixel_size=7.0", "refinement.initial_lowpass=20")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def loaded(store: Store, *overrides: str) -> Data:
    (config,) = make_plan([*SMALL, *overrides], multirun=False).jobs
    return load_data(config, store, CPU, make_progress(alone=False))


def test_half_sets_change_only_when_asked(store: Store) -> None:
    first, other = loaded(store, "seed=0"), loaded(store, "seed=1")
    assert torch.equal(first.particles.half_sets, other.particles.half_sets)
    assert first.key == other.key
    drawn = [loaded(store, f"seed={seed}", "data.resplit=true") for seed in (0, 1, 0)]
    assert not torch.equal(drawn[0].particles.half_sets, drawn[1].particles.half_sets)
    assert torch.equal(drawn[0].particles.half_sets, drawn[2].particles.half_sets)
    assert int(drawn[1].particles.half_sets.sum()) == 30
    assert drawn[1].particles.notes[-1] == "the half sets were drawn anew (data.half_set_seed=1)."
    # the starting maps of one split are not those of another
    assert len({each.key for each in (first, *drawn)}) == 3


def test_one_process_reads_the_images_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded(store, "seed=0")
    MEMORY.clear()
    opened: list[Path] = []

    def read(path: Path) -> object:
        opened.append(path)
        return open_stack(path)

    open_stack = particle_files._open_stack  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(particle_files, "_open_stack", read)
    every = torch.arange(60)
    first = loaded(store, "seed=0").particles.images(every)
    once = len(opened)
    assert once > 0
    # whatever split or share of them another job takes
    for overrides in (["seed=1", "data.resplit=true"], ["data.groups=2", "data.group=1"]):
        particles = loaded(store, *overrides).particles
        rows = particles.index_in_stack
        assert torch.equal(particles.images(torch.arange(len(particles))), first[rows])
    assert len(opened) == once
    # images beyond the budget stay on the disk
    MEMORY.clear()
    assert torch.equal(loaded(store, "compute.memory_budget=1MB").particles.images(every), first)
    assert MEMORY.size < 500_000


def test_another_split_is_one_of_the_same_subset(store: Store) -> None:
    data = [loaded(store, f"seed={seed}", "data.resplit=true", "data.subset=20") for seed in (0, 1)]
    names = [each.particles.table["rlnImageName"].tolist() for each in data]
    assert names[0] == names[1]
    assert [int(each.particles.half_sets.sum()) for each in data] == [10, 10]
    assert not torch.equal(data[0].particles.half_sets, data[1].particles.half_sets)
    smaller = loaded(store, "data.resplit=true", "data.subset=10").particles
    assert set(smaller.table["rlnImageName"]) < set(names[0])


def test_the_truth_is_that_of_the_particles_taken(store: Store) -> None:
    whole, some = loaded(store), loaded(store, "data.subset=0.3", "data.groups=2", "data.group=1")
    assert whole.truth is not None
    assert some.truth is not None
    names = whole.particles.table["rlnImageName"].tolist()
    rows = torch.tensor([names.index(name) for name in some.particles.table["rlnImageName"]])
    assert len(rows) == pytest.approx(9, abs=1)
    truth = some.truth.domains["head"].poses
    assert torch.equal(truth.rotations, whole.truth.domains["head"].poses.rotations[rows])
    assert torch.equal(some.particles.shifts, whole.particles.shifts[rows])
    with pytest.raises(ValueError, match=r"data\.subset=1000.*there are 60"):
        loaded(store, "data.subset=1000")


def test_a_file_without_half_sets_is_split_by_the_seed_within_its_subset(
    store: Store, tmp_path: Path
) -> None:
    particles = read_particles(next(store.root.glob("simulation/*/particles.star")))
    path = tmp_path / "particles.star"
    write_particles(particles, path, rotations=particles.rotations, shifts=particles.shifts)
    kept = [f"data.star={path}", "data=relion", "mask_base=consensus"]
    fixed = [loaded_file(store, *kept, f"seed={seed}", "data.subset=20") for seed in (0, 1)]
    assert torch.equal(fixed[0].particles.half_sets, fixed[1].particles.half_sets)
    text = path.read_text().splitlines()
    at = next(number for number, line in enumerate(text) if line.startswith("_rlnRandomSubset"))
    column = int(text[at].split("#")[1]) - 1
    lines = [
        " ".join(word for place, word in enumerate(line.split()) if place != column)
        if "@" in line
        else line.split("#")[0]
        for number, line in enumerate(text)
        if number != at
    ]
    path.write_text("\n".join(lines) + "\n")
    drawn = [loaded_file(store, *kept, f"seed={seed}", "data.subset=20") for seed in (0, 1)]
    assert not torch.equal(drawn[0].particles.half_sets, drawn[1].particles.half_sets)
    assert [int(each.particles.half_sets.sum()) for each in drawn] == [10, 10]
    assert (
        drawn[0].particles.table["rlnDefocusU"].tolist() == drawn[1].particles.table["rlnDefocusU"].tolist()
    )


def loaded_file(store: Store, *overrides: str) -> Data:
    (config,) = make_plan(list(overrides), multirun=False).jobs
    return load_data(config, store, CPU, make_progress(alone=False))


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("data.subset=0", "data.subset=0: must be above 0"),
        ("data.subset=10.5", "above 1 it is a whole number of particles"),
        ("data.group=1", "data.group=1: must be from 0 up to 0; raise data.groups"),
        ("scoring.jackknife=1", "one block is all particles"),
    ],
)
def test_values_that_mean_nothing_are_refused(override: str, fault: str) -> None:
    with pytest.raises(ConfigFaults, match=fault):
        make_plan([override], multirun=False)


def test_half_maps_of_the_old_split_cannot_start_a_new_one() -> None:
    overrides = ["consensus=files", "consensus.half_a=a.mrc", "consensus.half_b=b.mrc", "data.resplit=true"]
    with pytest.raises(ConfigFaults, match="consensus=reconstruct"):
        make_plan(overrides, multirun=False)
