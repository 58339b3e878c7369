"""What torch sets for a whole process: no run is disturbed by it, and none leaves a trace in it."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
LIMITS = ("recompile_limit", "accumulated_recompile_limit")  # of torch.compile

_lock = threading.Lock()
_users = 0  # runs and evaluations at this moment, in all threads
_before: dict[str, Any] = {}  # the settings of the process before the first of them


@contextmanager
def own_settings() -> Iterator[None]:
    """Float32 on the CPU by default, gradients on, no autocast. Also a decorator of functions.

    Afterwards these are as they were, and so are what is set meanwhile: deterministic algorithms, cuBLAS's workspace,
    what `fast` sets, and the limits of torch.compile. Threads share those: the first that enters remembers them, the
    last that leaves puts them back.
    """
    with ExitStack() as own:
        _enter()
        own.callback(_leave)
        # these are of one thread:
        own.enter_context(torch.inference_mode(False))
        own.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                own.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            own.enter_context(torch.device("cpu"))
        yield


def fast() -> None:
    """What makes a GPU faster and its last bits depend on the moment; for a run that need not be repeated to the bit.

    Matrix products of float32 in TF32, as convolutions have by torch's own default, and of several algorithms of a
    convolution the one that is fastest here, once all have been tried.
    """
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True


def _enter() -> None:
    global _users
    with _lock:
        if _users == 0:
            _before.update(
                dtype=torch.get_default_dtype(),
                deterministic=torch.are_deterministic_algorithms_enabled(),
                warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
                workspace=os.environ.get(WORKSPACE),
                limits=_limits(),
                matmul=torch.get_float32_matmul_precision(),
                benchmark=torch.backends.cudnn.benchmark,
            )
            torch.set_default_dtype(torch.float32)
        _users += 1


def _leave() -> None:
    global _users
    with _lock:
        _users -= 1
        if _users:
            return
        torch.set_default_dtype(_before["dtype"])
        torch.use_deterministic_algorithms(_before["deterministic"], warn_only=_before["warn_only"])
        torch.set_float32_matmul_precision(_before["matmul"])
        torch.backends.cudnn.benchmark = _before["benchmark"]
        if _before["workspace"] is None:
            os.environ.pop(WORKSPACE, None)
        for name, value in _before["limits"].items():
            setattr(torch._dynamo.config, name, value)


def _limits() -> dict[str, int]:
    """Of torch.compile, where something has imported it: that takes a second."""
    if "torch._dynamo" not in sys.modules:
        return {}
    return {name: getattr(torch._dynamo.config, name) for name in LIMITS}
