"""Fixtures shared by all tests."""

import socket
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


def settings() -> dict[str, object]:
    """What torch sets for a whole process: one test must not change it for the next."""
    return {
        "dtype": torch.get_default_dtype(),
        "modes": len(torch.overrides._get_current_function_mode_stack()),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "matmul": torch.get_float32_matmul_precision(),
        "benchmark": torch.backends.cudnn.benchmark,
    }


@pytest.fixture(autouse=True)
def as_found():
    """A test leaves torch as it found it. The first of all, so that it looks last."""
    before = settings()
    yield
    assert settings() == before


@pytest.fixture(scope="session")
def golden():
    """Numbers that published implementations produced: `golden["ntxent/a/z1"]` and so on."""
    numbers = {}
    for path in (Path(__file__).parent / "golden").glob("*.npz"):
        with np.load(path, allow_pickle=False) as file:
            numbers |= dict(file)
    return numbers


@pytest.fixture
def free_port() -> int:
    """For the processes of a run to meet at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
