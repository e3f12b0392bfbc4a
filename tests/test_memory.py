"""What jobs of one process share: told apart by key, bounded; images in it are those of the stacks."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cryosweep.io.particles import in_memory, read_particles
from cryosweep.job.memory import Memory, size_of
from cryosweep.simulate import SimulationSettings, simulate


def test_a_value_is_made_once_and_the_oldest_goes_first() -> None:
    memory, made = Memory(), []

    def get(name: str, count: int = 10) -> Any:
        def make() -> torch.Tensor:
            made.append(name)
            return torch.zeros(count)

        return memory.get(name, make, budget=100.0)

    assert get("a") is get("a")
    assert made == ["a"]
    get("b")
    assert memory.size == 80
    get("a")
    get("c")  # takes the place of b, which nobody asked for since
    get("a")
    assert made == ["a", "b", "c"]
    get("b")
    assert made == ["a", "b", "c", "b"]
    get("large", 26)
    assert memory.size == 80  # it fits nowhere, so nothing had to go
    get("large", 26)
    assert made[-2:] == ["large", "large"]


def test_sizes_are_those_of_what_is_inside() -> None:
    assert size_of({"a": (torch.zeros(3), [torch.zeros(2, dtype=torch.complex64)]), "b": 1.0}) == 28


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("particles")
    simulate(SimulationSettings(12, box_size=32, pixel_size=10.0), path, device=torch.device("cpu"))
    return path


def test_images_in_memory_are_those_of_the_stack(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    particles = read_particles(folder / "particles.star")
    held = in_memory(particles)
    rows = torch.tensor([7, 2, 2, 11])
    expected = particles.images(rows)
    some = torch.tensor([11, 7, 2])
    of_some = particles.take(some).images(torch.tensor([2, 0]))
    monkeypatch.setattr("cryosweep.io.particles._open_stack", pytest.fail)
    assert torch.equal(held.images(rows), expected)
    assert torch.equal(held.take(some).images(torch.tensor([2, 0])), of_some)
    held.images(rows).zero_()  # a copy: whoever subtracts in place spoils nothing
    assert torch.equal(held.images(rows), expected)
