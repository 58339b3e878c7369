"""Heads: one function for every projector and predictor."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from twinblock.nn.norms import WSLinear, make_norm, parse_norm


def mlp(
    in_dim: int,
    dims: Sequence[int],
    norm: str = "batch",
    last_norm: str = "none",
    last_affine: bool = True,
    last_bias: bool = False,
) -> nn.Sequential:
    """Linear - norm - ReLU for each hidden width, then Linear (- last_norm); no widths: the identity.

    Maps (n, in_dim) to (n, dims[-1]). Hidden linears have a bias. `last_affine=False` takes weight and bias
    from the last norm, as in SimSiam's projector. `+ws`, as in `group+ws`, standardises the weights of the hidden
    linears; the last stays plain.
    """
    kind, _, standardised = parse_norm(norm)
    layers: list[nn.Module] = []
    widths = [in_dim, *dims]
    for i, (d_in, d_out) in enumerate(pairwise(widths), start=1):
        if i < len(dims):
            layers += [(WSLinear if standardised else nn.Linear)(d_in, d_out)]
            layers += [] if kind == "none" else [make_norm(norm, d_out)]
            layers += [nn.ReLU(inplace=True)]
        else:
            layers += [nn.Linear(d_in, d_out, bias=last_bias)]
            layers += [] if last_norm == "none" else [make_norm(last_norm, d_out, last_affine)]
    return nn.Sequential(*layers)
