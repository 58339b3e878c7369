import numpy as np
import pytest
import torch

from twinblock.core.errors import InputError
from twinblock.evaluation import knn, knn_scores


@pytest.fixture
def case(golden):
    names = ("bank", "bank_labels", "queries")
    return [*(torch.from_numpy(golden[f"knn/{name}"]) for name in names), int(golden["knn/num_classes"])]


@pytest.mark.parametrize("group", ["k20", "k200"])
def test_golden(golden, case, group):
    scores = knn_scores(*case, k=int(golden[f"knn/{group}/k"]), temperature=float(golden["knn/T"]))
    np.testing.assert_allclose(
        scores, golden[f"knn/{group}/scores"], rtol=0, atol=1e-9 * golden[f"knn/{group}/scores"].max()
    )
    predicted = scores.argmax(1).numpy()
    np.testing.assert_array_equal(predicted, golden[f"knn/{group}/pred"])
    assert (predicted == golden["knn/query_labels"]).mean() == golden[f"knn/{group}/top1_acc"]


def test_two_voters_by_hand():
    bank = torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])
    scores = knn_scores(bank, torch.tensor([2, 0, 1]), torch.tensor([[3.0, 4.0]]), classes=3, k=2, temperature=0.5)
    torch.testing.assert_close(scores, torch.tensor([[0.8, -9, 0.6]]).div(0.5).exp().double() * torch.tensor([1, 0, 1]))


def test_the_length_of_a_row_does_not_matter(case):
    bank, labels, queries, classes = case
    lengths = torch.linspace(0.1, 9, len(bank)).double()[:, None]
    torch.testing.assert_close(knn_scores(bank * lengths, labels, 7 * queries, classes), knn_scores(*case))


def test_k_larger_than_the_bank_means_all(case):
    torch.testing.assert_close(knn_scores(*case, k=10_000), knn_scores(*case, k=len(case[0])))


def test_chunks_do_not_change_the_scores(case, monkeypatch):
    whole = knn_scores(*case, k=20)
    for chunk in (1, 7 * len(case[0])):
        monkeypatch.setattr(knn, "CHUNK", chunk)
        torch.testing.assert_close(knn_scores(*case, k=20), whole)


def test_no_more_similarities_are_held_than_a_chunk_or_those_of_one_query(case, monkeypatch):
    held, topk = [], torch.Tensor.topk
    monkeypatch.setattr(torch.Tensor, "topk", lambda x, *a, **how: held.append(x.numel()) or topk(x, *a, **how))
    for chunk, most in ((7 * len(case[0]), 7), (1, 1)):
        held.clear()
        monkeypatch.setattr(knn, "CHUNK", chunk)
        knn_scores(*case, k=20)
        assert max(held) == most * len(case[0])


def test_a_low_temperature_stays_finite(case):
    bank, labels, queries, classes = case
    assert knn_scores(bank.float(), labels, queries.float(), classes, temperature=0.005).isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_that_are_not_finite_are_refused(case, value):
    for broken in (0, 2):
        args = list(case)
        args[broken] = args[broken].clone()
        args[broken][3, 1] = value
        with pytest.raises(InputError, match=f"1 of {len(args[broken])} .* NaN or infinity"):
            knn_scores(*args)


@pytest.mark.parametrize("wrong", [[0, 3], [-1, 0]])
def test_labels_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match="labels from 0 to 2"):
        knn_scores(torch.eye(2), torch.tensor(wrong), torch.eye(2), classes=3)


def test_an_empty_bank_is_refused():
    with pytest.raises(InputError, match="needs training features"):
        knn_scores(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), torch.eye(2), classes=3)


def test_200_voters_at_a_temperature_of_a_tenth_unless_it_is_said():
    """As Wu et al. and MoCo's demo."""
    g = torch.Generator().manual_seed(0)
    bank, labels = torch.randn(300, 4, generator=g), torch.arange(300) % 3
    scores = knn_scores(bank, labels, bank[:5], 3)
    assert torch.equal(scores, knn_scores(bank, labels, bank[:5], 3, k=200, temperature=0.1))
    for k, temperature in ((201, 0.1), (200, 0.15)):
        assert not torch.equal(scores, knn_scores(bank, labels, bank[:5], 3, k=k, temperature=temperature))
    assert scores.dtype == torch.float64
