"""Every test starts from the same random state, on one thread."""

import pytest
import torch

torch.set_num_threads(1)  # here, for fixtures of a module come before those of a test


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
