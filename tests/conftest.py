"""Fixtures shared by all tests."""

from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden():
    """Numbers that the published implementations produced: `golden["ntxent/a/z1"]` and so on."""
    with np.load(Path(__file__).parent / "golden" / "golden.npz", allow_pickle=False) as file:
        return dict(file)
