"""Heads: golden vectors of untitled-ai's MLP, and the shape of what `mlp` builds."""

import numpy as np
import pytest
import torch
from torch import nn

from twinblock.core.distributed import SyncBatchNorm
from twinblock.core.errors import InputError
from twinblock.nn.heads import mlp
from twinblock.nn.norms import WSLinear


@pytest.mark.parametrize("weight_standardised", [False, True])
@pytest.mark.parametrize(
    ("norm", "case"), [("none", "none"), ("batch", "bn"), ("sync", "bn"), ("layer", "ln"), ("group", "gn")]
)
def test_mlp_golden(golden, norm, case, weight_standardised):
    case = f"mlp/{case}_ws" if weight_standardised else f"mlp/{case}"
    w = {name: torch.tensor(golden[f"mlp/{name}"]) for name in ("W1", "b1", "W2", "b2", "x", "upstream")}
    hidden, in_dim = w["W1"].shape
    head = mlp(in_dim, [hidden, len(w["W2"])], norm + "+ws" * weight_standardised, last_bias=True)
    head.double()
    parameters = {"W1": head[0].weight, "b1": head[0].bias, "W2": head[-1].weight, "b2": head[-1].bias}
    if norm != "none":
        parameters |= {"norm_weight": head[1].weight, "norm_bias": head[1].bias}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.tensor(golden[f"mlp/{name}"]))

    x = w["x"].requires_grad_()
    out = head(x)
    out.backward(w["upstream"])

    results = {"out": out.detach(), "g_x": x.grad} | {f"g_{n}": p.grad for n, p in parameters.items()}
    if norm in ("batch", "sync"):
        results |= {"running_mean": head[1].running_mean, "running_var": head[1].running_var}
    for name, actual in results.items():
        expected = golden[f"{case}/{name}"]
        tolerance = 1e-9 * np.abs(expected).max()
        if name == "g_b1" and norm in ("batch", "sync"):
            tolerance = 1e-12  # mathematically zero: batch norm removes the bias before it
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance, err_msg=name)


def types(head):
    return [type(layer) for layer in head]


def test_no_widths_are_the_identity():
    x = torch.randn(3, 7)
    assert mlp(7, [])(x) is x


def test_one_width_is_a_plain_linear():
    head = mlp(7, [5])
    assert types(head) == [nn.Linear]
    assert head[0].bias is None


def test_a_projector_of_three_layers_with_a_last_norm():
    head = mlp(7, [6, 5, 4], norm="batch", last_norm="layer")
    hidden = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert types(head) == [*hidden, *hidden, nn.Linear, nn.LayerNorm]
    assert [layer.bias is not None for layer in head if isinstance(layer, nn.Linear)] == [True, True, False]
    assert head(torch.randn(8, 7)).shape == (8, 4)


def test_the_last_norm_without_weight_and_bias():
    head = mlp(7, [6, 5], last_norm="sync", last_affine=False)
    assert types(head)[-1] is SyncBatchNorm
    assert not list(head[-1].parameters())
    assert list(head[1].parameters())


def test_weight_standardisation_spares_the_last_linear():
    head = mlp(7, [6, 5], norm="none+ws")
    assert types(head) == [WSLinear, nn.ReLU, nn.Linear]


def test_a_width_that_the_groups_do_not_divide_is_refused():
    with pytest.raises(InputError, match="width of 100"):
        mlp(7, [100, 5], norm="group")
