"""kNN on the monitor's sample."""

import math

import pytest
import torch

from twinblock.diagnosis.monitor import leave_one_out


def test_leave_one_out_is_not_its_own_neighbour():
    z = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]])
    assert leave_one_out(z, torch.tensor([0, 0, 1, 1])) == 100
    assert leave_one_out(z, torch.tensor([0, 1, 0, 1])) == 0
    assert leave_one_out(z, torch.tensor([0, 0, -1, -1])) == 100
    assert leave_one_out(z, torch.full((4,), -1)) is None


def test_leave_one_out_by_hand():
    """Five neighbours vote exp(cosine / 0.1): two at 0.9 are more than three at 0.8, and less than five."""
    angles = torch.tensor([0.0, *[0.9] * 2, *[0.8] * 3]).acos()
    angles[0] = 0.0
    z = torch.stack([angles.cos(), angles.sin()], 1)[None]
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    cosines = (angles[:, None] - angles).cos()
    right = 0
    for i in range(6):
        votes = [sum(math.exp(cosines[i, j] / 0.1) for j in range(6) if j != i and labels[j] == c) for c in (0, 1)]
        right += votes[labels[i]] > votes[1 - labels[i]]
    assert leave_one_out(z, labels) == pytest.approx(100 * right / 6)
    assert votes_of_first(cosines) == 0
    assert leave_one_out(3 * z, 5 + 2 * labels) == pytest.approx(100 * right / 6)  # labels may be any numbers
    assert leave_one_out(z * torch.nan, labels) is None


def votes_of_first(cosines: torch.Tensor) -> int:
    """2 exp(9) = 16 206 against 3 exp(8) = 8 943."""
    return int(3 * math.exp(cosines[0, 3] / 0.1) > 2 * math.exp(cosines[0, 1] / 0.1))


def test_five_neighbours_vote():
    """Angles of which no two pairs are equally far apart; with four or six neighbours, other images are right."""
    turns = torch.tensor([0.04, 0.05, 0.1, 0.17, 0.26, 0.36, 0.39, 0.45, 0.5, 0.56], dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 0, 0, 0, 1, 1, 0, 1])

    def right(k: int) -> int:
        count = 0
        for i in range(10):
            near = sorted((j for j in range(10) if j != i), key=lambda j: abs(float(turns[i] - turns[j])))[:k]
            votes = [sum(math.exp(math.cos(turns[i] - turns[j]) / 0.1) for j in near if labels[j] == c) for c in (0, 1)]
            count += votes[labels[i]] > votes[1 - labels[i]]
        return count

    assert len({right(4), right(5), right(6)}) == 3
    found = leave_one_out(torch.stack([turns.cos(), turns.sin()], 1).float()[None], labels)
    assert found == pytest.approx(10 * right(5))
