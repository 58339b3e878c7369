"""The first blocks of an encoder as an encoder of their own."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from twinblock.core.errors import InputError
from twinblock.nn.encoders import Encoder
from twinblock.nn.pooling import average


class Shallow(nn.Module):
    """The first `count` blocks of an encoder: normalised images in, averaged features of the last of them out."""

    def __init__(self, encoder: Encoder, count: int):
        super().__init__()
        self.blocks = nn.Sequential(*encoder.as_blocks()[:count])
        self.width, self.prefix = encoder.widths[count - 1], encoder.prefix

    def last_map(self, images: Float[Tensor, "n c h w"]) -> Tensor:
        """What the last block gives, before it is averaged."""
        return self.blocks(images)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        x = self.last_map(images)
        return average(x.to(torch.promote_types(x.dtype, torch.float32)), self.prefix)


def encoder_of_block(encoder: Encoder, block: object) -> Shallow:
    """An encoder that ends with this block, from 1 on; it shares its weights.

    Raises InputError where there is no such block.
    """
    blocks = len(encoder.widths)
    if isinstance(block, bool) or not isinstance(block, int) or not 1 <= block <= blocks:
        raise InputError(f"block={block}: this encoder has blocks 1 to {blocks}")
    return Shallow(encoder, block).train(encoder.training)
