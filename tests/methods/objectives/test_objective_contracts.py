"""What every objective promises, checked over all of them."""

import copy

import pytest
import torch

import twinblock.methods.objectives
from twinblock.methods.objectives import (
    DCL,
    DINO,
    LPL,
    BarlowTwins,
    Hinge,
    InBatchNCE,
    InfoNCE,
    NearestNeighbour,
    NTXent,
    ProtoNCE,
    Regression,
    SupCon,
    Supervised,
    SwAV,
    VICReg,
)

OBJECTIVES = {
    "BarlowTwins": lambda: BarlowTwins(0.01),
    "DCL": lambda: DCL(0.2),
    "DINO": lambda: DINO(dim=6),
    "Hinge": lambda: Hinge(),
    "InBatchNCE": lambda: InBatchNCE(0.2),
    "InfoNCE": lambda: InfoNCE(dim=6, queue=20, temperature=0.1),
    "LPL": lambda: LPL(),
    "NearestNeighbour": lambda: NearestNeighbour(dim=6, queue=20, temperature=0.1),
    "NTXent": lambda: NTXent(0.2),
    "ProtoNCE": lambda: clustered(ProtoNCE(dim=6, queue=20, temperature=0.1, clusters=(9, 14), images=30)),
    "Regression": lambda: Regression(),
    "SupCon": lambda: SupCon(0.2),
    "Supervised": lambda: Supervised(),
    "SwAV": lambda: SwAV(dim=6, prototypes=5, queue=4),
    "VICReg": lambda: VICReg(),
}


def clustered(objective):
    """With the prototypes of an epoch."""
    objective.begin_epoch(lambda: torch.randn(30, 6, generator=torch.Generator().manual_seed(2)), 0, 1)
    return objective


of_two_embeddings = pytest.mark.parametrize("name", sorted(OBJECTIVES.keys() - {"Supervised"}))
of_all = pytest.mark.parametrize("name", sorted(OBJECTIVES))


def make_inputs(name, dtype=torch.float32, n=8, d=6):
    z, t = torch.randn(2, n, d, generator=torch.Generator().manual_seed(0)).to(dtype)
    return (z, torch.arange(n) % d) if name == "Supervised" else (z, t)


def test_the_list_is_complete():
    assert sorted(OBJECTIVES) == sorted(twinblock.methods.objectives.__all__)


@of_all
def test_prototypes_are_the_only_parameters_and_every_buffer_is_saved(name):
    objective = OBJECTIVES[name]()
    parameters = dict(objective.named_parameters())
    assert [*parameters] == (["prototypes.weight"] if name == "SwAV" else [])
    assert dict(objective.named_buffers()).keys() | parameters.keys() == objective.state_dict().keys()


@of_all
def test_forward_is_pure_and_deterministic(name):
    objective, inputs = OBJECTIVES[name](), make_inputs(name)
    before, copies = copy.deepcopy(objective.state_dict()), [x.clone() for x in inputs]
    first, second = objective(*inputs), objective(*inputs)
    assert first == second
    assert all(torch.equal(x, y) for x, y in zip(inputs, copies, strict=True))
    assert all(torch.equal(value, before[key]) for key, value in objective.state_dict().items())


@of_all
def test_the_global_random_state_is_left_alone(name):
    before = torch.get_rng_state()
    OBJECTIVES[name]()(*make_inputs(name))
    assert torch.equal(torch.get_rng_state(), before)


@of_all
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_raised_to_float32(name, dtype):
    objective, inputs = OBJECTIVES[name](), make_inputs(name, dtype)
    loss = objective(*inputs)
    assert loss.dtype == torch.float32
    assert loss == objective(*(x.float() if x.is_floating_point() else x for x in inputs))


@of_all
def test_float64_stays(name):
    assert OBJECTIVES[name]()(*make_inputs(name, torch.float64)).dtype == torch.float64


@of_all
def test_autocast_changes_neither_value_nor_gradient(name):
    objective, (z, t) = OBJECTIVES[name](), make_inputs(name)
    plain, autocast = z.clone().requires_grad_(), z.clone().requires_grad_()
    expected = objective(plain, t)
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(autocast, t)
    assert loss.dtype == torch.float32
    assert loss == expected
    loss.backward()
    expected.backward()
    assert torch.equal(autocast.grad, plain.grad)


@of_all
def test_the_order_of_samples_does_not_count(name):
    objective, (z, t) = OBJECTIVES[name](), make_inputs(name, torch.float64)
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(objective(z[order], t[order]), objective(z, t), rtol=1e-12, atol=0)


@of_two_embeddings
def test_symmetric_is_declared_truly(name):
    objective = OBJECTIVES[name]()
    leaves = [x.requires_grad_() for x in make_inputs(name, torch.float64)]
    there, back = (
        [loss, *torch.autograd.grad(loss, leaves, materialize_grads=True)]
        for loss in (objective(*leaves), objective(*leaves[::-1]))
    )
    equal = [torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(there, back, strict=True)]
    assert all(equal) == objective.symmetric


@of_two_embeddings
def test_detaches_target_is_declared_truly(name):
    objective, (z, t) = OBJECTIVES[name](), make_inputs(name)
    t.requires_grad_()
    objective(z.requires_grad_(), t).backward()
    assert (t.grad is None) == objective.detaches_target


@of_all
def test_separable_is_declared_truly(name):
    objective, (z, t) = OBJECTIVES[name](), make_inputs(name, torch.float64)
    whole = objective(z, t)
    halves = sum(objective(a, b) for a, b in zip(z.chunk(2), t.chunk(2), strict=True)) / 2
    assert torch.allclose(halves, whole, rtol=1e-12, atol=0) == objective.separable


@of_two_embeddings
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_collapsed_batch_has_a_finite_loss_and_gradient(name, value):
    z = torch.full((8, 6), value, requires_grad=True)
    loss = OBJECTIVES[name]()(z, torch.full((8, 6), value))
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()


@of_all
def test_facts_that_no_formula_shows(name):
    """Of two views and a small one: which pairs are compared, and what the target is."""
    objective, pairs = OBJECTIVES[name](), [(0, 1), (1, 0), (2, 0), (2, 1)]
    expected = {"InfoNCE": [(0, 1)], "ProtoNCE": [(0, 1)], "Supervised": [(0, None), (1, None), (2, None)]}.get(
        name, pairs
    )
    assert sorted(objective.pairs([32, 32, 16])) == expected
    assert objective.labelled == (name == "Supervised")
    assert objective.needs_labels == (name == "SupCon")
    assert objective.repels == (name != "Regression")
    if objective.labelled:
        assert (objective.symmetric, objective.detaches_target) == (False, True)
