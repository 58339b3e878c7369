"""A network is cut by tracing its forward, which torch does by changing all modules for a while."""

import threading
from collections.abc import Callable

import torch
from torch import nn

from twinblock.nn.rows import _traced

IMAGES = torch.ones(1, 3, 8, 8)


class Held(nn.Module):
    """Its forward, once begun, waits."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)
        self.begun, self.go_on = threading.Event(), threading.Event()

    def forward(self, x):
        self.begun.set()
        assert self.go_on.wait(60)
        return self.layer(x)


def in_thread(run: Callable[[], object], failures: list[BaseException]) -> threading.Thread:
    def guarded():
        try:
            run()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    return thread


def test_a_network_beside_one_that_is_traced_gives_what_it_always_gives():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).eval()
    alone, held, failures = network(IMAGES), Held(), []
    thread = in_thread(lambda: _traced(held, IMAGES), failures)
    assert held.begun.wait(60)
    try:
        beside = network(IMAGES)
    finally:
        held.go_on.set()
        thread.join()
    assert torch.equal(alone, beside) and failures == []


def test_two_that_are_traced_at_once_leave_modules_as_they_were():
    call, getter = nn.Module.__call__, nn.Module.__getattr__
    networks, failures = (Held(), Held()), []
    first = in_thread(lambda: _traced(networks[0], IMAGES), failures)
    assert networks[0].begun.wait(60)
    second = in_thread(lambda: _traced(networks[1], IMAGES), failures)
    networks[1].begun.wait(0.5)  # begins at once where nothing keeps it
    for network in networks:
        network.go_on.set()
    first.join()
    second.join()
    assert failures == []
    assert (nn.Module.__call__, nn.Module.__getattr__) == (call, getter)
