"""Fixtures shared by all tests."""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real files that some tests read; it is not part of the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the folder of real test files {SHARED_DATA} is not on this machine")
    return SHARED_DATA


@pytest.fixture
def generator() -> torch.Generator:
    """Seeded randomness for one test."""
    return torch.Generator().manual_seed(20260101)
