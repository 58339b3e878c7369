"""Fixtures shared by all tests."""

import socket
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


@pytest.fixture
def free_port() -> int:
    """For the processes of a run to meet at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
