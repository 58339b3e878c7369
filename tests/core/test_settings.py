"""A run is not disturbed by what a program set in torch, and leaves no trace in it."""

import os
import threading

import pytest
import torch

from twinblock.core.seeding import seeded
from twinblock.core.settings import fast, own_settings


@pytest.fixture(autouse=True)
def as_before():
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    torch.use_deterministic_algorithms(False)
    torch.set_default_device(None)  # "cpu" would leave a mode that sees every call


def test_settings_of_the_caller_are_put_aside_and_put_back():
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_default_device("meta")
    with torch.autocast("cpu", torch.bfloat16), own_settings():
        x = torch.ones(2, 2, requires_grad=True)
        assert (x.dtype, x.device.type, (x @ x).dtype) == (torch.float32, "cpu", torch.float32)
        assert (x @ x).requires_grad
    assert torch.get_default_dtype() == torch.float64
    assert not torch.is_grad_enabled()
    assert torch.empty(1).device.type == "meta"


def test_what_a_run_sets_ends_with_it(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    limits = torch._dynamo.config
    before = limits.recompile_limit, limits.accumulated_recompile_limit

    @own_settings()
    def run():
        torch.use_deterministic_algorithms(True)
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        fast()
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.benchmark
        limits.recompile_limit = limits.accumulated_recompile_limit = 9999
        raise KeyError

    with pytest.raises(KeyError):
        run()
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.benchmark
    assert (limits.recompile_limit, limits.accumulated_recompile_limit) == before


def test_the_first_of_two_threads_that_ends_does_not_change_the_other():
    torch.set_default_dtype(torch.float64)
    second_is_in, first_has_left = threading.Event(), threading.Event()
    seen = []

    def second():
        with own_settings():
            second_is_in.set()
            first_has_left.wait(60)
            seen.append(torch.empty(1).dtype)

    thread = threading.Thread(target=second)
    with own_settings():
        thread.start()
        second_is_in.wait(60)
    first_has_left.set()
    thread.join()
    assert seen == [torch.float32]
    assert torch.get_default_dtype() == torch.float64


def test_weights_come_from_the_seed_alone_and_one_thread_draws_at_a_time():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with seeded(3):
        expected = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_default_dtype(torch.float64)
    seen, inside = [], threading.Event()

    def draw():
        inside.wait(60)
        with seeded(3):
            seen.append(torch.rand(4))

    thread = threading.Thread(target=draw)
    thread.start()
    with seeded(4):
        inside.set()
        thread.join(0.3)  # it waits
        assert seen == []
        torch.rand(1)
    thread.join()
    assert torch.equal(seen[0], expected)
    assert torch.equal(expected, torch.rand(4, generator=torch.Generator().manual_seed(3), dtype=torch.float32))
