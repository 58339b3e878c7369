"""Mixed precision: the number type that a run computes with, and whether a processor is fast at it."""

import torch

from twinblock.config import Config

# torch 2.14 on a CPU leaves the bfloat16 weight gradient of a strided convolution over a single pixel unwritten,
# which a network of five strides meets in images of less than this side
LEAST_SIDE = 16


def precision(wanted: str, device: torch.device, size: int = LEAST_SIDE) -> str:
    """`auto` is bfloat16 where the processor multiplies matrices of it, float32 elsewhere and for tiny images."""
    if wanted != "auto":
        return wanted
    if size < LEAST_SIDE and device.type == "cpu":
        return "fp32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if device.type == "cpu" and fast else "fp32"


def autocast_of(config: Config) -> torch.dtype | None:
    """The type that a run trains with beside float32."""
    return torch.bfloat16 if config.train.precision == "bf16" else None


def autocast_here(config: Config, device: torch.device) -> torch.dtype | None:
    """The same to look at a trained run with: only where this processor is fast at it."""
    return autocast_of(config) if precision("auto", device) == "bf16" else None
