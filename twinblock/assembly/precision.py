"""Mixed precision: the number type that a run computes with, and whether a processor is fast at it."""

from typing import Any

import torch
from torch import Tensor, nn

from twinblock.assembly.build import Objects, encoder_of
from twinblock.config.schema import Config

TINY = 16  # the largest images that five halvings bring to a single pixel


def precision_of(config: Config, device: torch.device, objects: Objects | None = None) -> str:
    """The precision of a config that is resolved else: `auto` is never one in which its encoder's gradients fail.

    `objects`: the Python objects that it names as parts.
    """
    chosen, shape = precision(config.train.precision, device), config.image_shape
    asked = config.train.precision == "auto" and chosen == "bf16" and device.type == "cpu"
    if asked and shape[1] <= TINY and strides_over_a_pixel(encoder_of(config, objects), shape):
        return "fp32"
    return chosen


@torch.no_grad()
def strides_over_a_pixel(encoder: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Whether a convolution strides over a map of one pixel: torch 2.14 on a CPU leaves the weight gradient of such a
    one unwritten in bfloat16. The encoder is in evaluation mode afterwards."""
    strided = []

    def look(conv: Any, inputs: tuple[Tensor, ...]) -> None:
        strided.append(max(conv.stride) > 1 and inputs[0].shape[-2:] == (1, 1))

    hooks = [m.register_forward_pre_hook(look) for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    encoder.eval()(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return any(strided)


def precision(wanted: str, device: torch.device) -> str:
    """`auto` is bfloat16 where the processor is fast at matrices of it, float32 elsewhere."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and fast_at_bf16() else "fp32"


def fast_at_bf16() -> bool:
    """Whether this processor computes faster in bfloat16.

    Intel's have units for it (AMX), which virtual machines may hide. By AVX-512 alone they take 1.5 times as long as in
    float32, and AMD's half as long.
    """
    name = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", "")  # torch 2.11 may lack it
    by_avx512 = torch.cpu._is_avx512_bf16_supported() and "Intel" not in name
    return by_avx512 or torch.cpu._is_amx_tile_supported()


def autocast_of(config: Config) -> torch.dtype | None:
    """The type that a run trains with beside float32."""
    return torch.bfloat16 if config.train.precision == "bf16" else None


def autocast_here(config: Config, device: torch.device) -> torch.dtype | None:
    """The same to look at a trained run with: only where this processor is fast at it."""
    return autocast_of(config) if precision("auto", device) == "bf16" else None
