"""The queue of InfoNCE."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from twinblock.config.recipes import compose
from twinblock.core.errors import InputError
from twinblock.methods.objectives import InfoNCE


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", ["a", "b"])
def test_after_step_golden(golden, case):
    names = ("k", "T", "queue", "queue_after", "ptr_before", "ptr_after")
    g = {name: golden[f"infonce_queue/{case}/{name}"] for name in names}
    objective = InfoNCE(*g["queue"].shape, float(g["T"])).double()
    objective.queue.copy_(torch.tensor(g["queue"].T))
    objective.pointer.fill_(int(g["ptr_before"]))
    objective.after_step({1: torch.tensor(g["k"])}, 0, 1)
    np.testing.assert_allclose(objective.queue, g["queue_after"].T, rtol=0, atol=1e-9)
    assert objective.pointer == g["ptr_after"]


@pytest.mark.parametrize("batches", [[3, 3, 3], [5, 2, 7], [16], [4, 23]])
def test_any_batches_fill_the_queue_as_single_keys_do(batches):
    """Of 7 rows: batches that do not divide it, wrap around, fill it exactly, and pass it more than once."""
    whole, single = (InfoNCE(4, 7, 0.1) for _ in range(2))
    keys = draw(sum(batches), 4)
    for batch in keys.split(batches):
        whole.after_step({1: batch}, 0, 1)
    for key in keys.split(1):
        single.after_step({1: key}, 0, 1)
    torch.testing.assert_close(whole.queue, single.queue)
    assert whole.pointer == single.pointer == sum(batches) % 7


def test_the_newest_keys_stay():
    objective, keys = InfoNCE(4, 7, 0.1), draw(12, 4)
    objective.after_step({1: keys}, 0, 1)
    at = [(0 + i) % 7 for i in range(12)][-7:]
    torch.testing.assert_close(objective.queue[at], F.normalize(keys[-7:], dim=1))


def test_the_queue_starts_with_random_unit_rows_of_its_seed():
    queue = InfoNCE(5, 30, 0.1).queue
    torch.testing.assert_close(queue.norm(dim=1), torch.ones(30))
    assert torch.equal(queue, InfoNCE(5, 30, 0.1, seed=0).queue)
    assert not torch.equal(queue, InfoNCE(5, 30, 0.1, seed=1).queue)
    assert (queue @ queue.T).fill_diagonal_(0).abs().max() < 1  # no row twice


def test_the_loss_goes_up_once_its_own_keys_are_in_the_queue():
    objective, z = InfoNCE(16, 8, 0.1), draw(8, 16, seed=1)
    before = objective(z, z)
    assert objective(z, z) == before
    objective.after_step({1: z}, 0, 1)
    # Each query now meets its own key among the negatives: at least log 2.
    assert before < np.log(2) < objective(z, z)


def test_keys_in_bfloat16_keep_the_queue_in_float32():
    objective, keys = InfoNCE(4, 7, 0.1), draw(3, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        objective.after_step({1: keys}, 0, 1)
    assert objective.queue.dtype == torch.float32
    torch.testing.assert_close(objective.queue[:3], F.normalize(keys.float(), dim=1))


def test_the_queue_survives_saving():
    objective = InfoNCE(4, 7, 0.1)
    objective.after_step({1: draw(5, 4)}, 0, 1)
    loaded = InfoNCE(4, 7, 0.1, seed=9)
    loaded.load_state_dict(objective.state_dict())
    for each in (objective, loaded):
        each.after_step({1: draw(5, 4, seed=1)}, 0, 1)
    assert torch.equal(loaded.queue, objective.queue)
    assert torch.equal(loaded.pointer, objective.pointer)


def test_the_margin_of_eqco_counts_the_queue_as_more_negatives():
    """A queue of 5 with alpha 15 is the loss with each negative three times."""
    torch.manual_seed(0)
    z, t = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    small, large = InfoNCE(6, 5, 0.2, negatives=15).double(), InfoNCE(6, 15, 0.2).double()
    large.queue.copy_(small.queue.repeat(3, 1))
    torch.testing.assert_close(small(z, t), large(z, t))
    assert InfoNCE(6, 5, 0.2).margin == 0


@pytest.mark.parametrize("field", ["queue", "negatives"])
def test_a_run_may_have_one_key_and_not_none(field):
    assert getattr(compose("moco_v2", overrides=[f"objective.{field}=1"]).objective, field) == 1
    with pytest.raises(InputError, match=f"objective.{field}: should be greater than or equal to 1"):
        compose("moco_v2", overrides=[f"objective.{field}=0"])
