"""How many kernels, copies and waits a step asks of a GPU: they must not grow unseen. See `counting`."""

import pytest
from counting import counts
from processes import apart


@pytest.mark.parametrize(
    ("recipe", "most"),
    [("simclr", 508), ("byol", 750)],
)
def test_a_step_asks_no_more_of_a_gpu_than_it_did(recipe, most):
    """ResNet-18 with two views of 32 px, in float32 and on one process: the third step, from the copy of its pixels to
    the target network's own step.

    Launches are torch's operations below autograd that work on the GPU, where one for a list of tensors is one; views
    of memory are none. Copies go from the host to the GPU: pixels, labels, and the floats and whole numbers of all
    views. Reading the losses, every ten steps, is outside.
    """
    found = apart(counts, recipe, "encoder.kind=resnet18", "encoder.stem=cifar", "encoder.width=8")
    assert sum(found.copies.values()) <= 4, found.copies
    assert not found.waits, found.waits
    assert sum(found.launches.values()) <= most, found.launches.most_common()
