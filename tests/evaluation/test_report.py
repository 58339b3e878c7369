"""What is said of accuracies: errors, sizes, and a better block; what a run keeps of each source."""

import pytest
import tiny
import torch

import twinblock
from twinblock.core.errors import InputError
from twinblock.evaluation import evaluate as evaluation
from twinblock.evaluation.report import better_block, sizes, standard_error, table
from twinblock.nn.encoders import build_encoder
from twinblock.nn.shallow import encoder_of_block
from twinblock.runs.run import evaluation_file

SMALL = ["encoder.width=8", "encoder.kind=resnet10", "train.length=1steps", "projector.dims=[16,8]", "data.batch=32"]


def test_the_standard_error_is_that_of_a_binomial_share():
    assert standard_error(50, 2500) == pytest.approx(1.0)
    assert standard_error(0, 10) == standard_error(100, 10) == 0
    row = {"features": "encoder", "kNN %": 50.0, "SGD linear %": None, "rank %": 40.0, "width": 8}
    (cells,) = table([row], 2500)
    assert cells == {**row, "kNN %": " 50.0 ± 1.0"}
    assert "fitted to 4,000 images, tested on 2,500;" in sizes({"train": 4000, "test": 2500})


@pytest.mark.parametrize(("last", "hint"), [(46.0, True), (48.0, False), (52.0, False)])
def test_a_better_block_is_said_where_it_is_more_than_chance(last, hint):
    """Of 2 500 test images two errors of a difference are 2.8 points."""
    linear = (30.0, 50.0, last)
    rows = [{"features": "encoder", "linear %": last}]
    rows += [{"features": f"block {k}", "linear %": value} for k, value in enumerate(linear, 1)]
    found = better_block({"rows": rows, "test": 2500})
    assert (found is not None) == hint
    assert found is None or (found.startswith("block 2 is better") and "block=2" in found)
    assert better_block({"rows": rows, "test": 2500, "pooling": True}) is None
    assert better_block({"rows": rows[:1], "test": 2500}) is None


def test_an_encoder_ends_with_a_block():
    encoder = build_encoder("resnet10", "cifar", "batch", 8, 16, seed=0).eval()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        for block in (1, 2, 3, 4):
            shallow = encoder_of_block(encoder, block)
            assert torch.equal(shallow(x), encoder.maps(x)[block - 1].mean((2, 3)))
            assert shallow.width == 8 * 2 ** (block - 1) and not shallow.training
    for block in (0, 5, -1, 1.5, "2", True):
        with pytest.raises(InputError, match="has blocks 1 to 4"):
            encoder_of_block(encoder, block)


def test_each_source_has_a_record_of_its_own_and_nothing_is_measured_twice(tmp_path, monkeypatch):
    tiny.in_place_of_any_source(monkeypatch, 60)
    run = twinblock.pretrain("simclr", out=tmp_path / "a", quiet=True, overrides=SMALL)
    own = twinblock.evaluate(run)
    other = twinblock.evaluate(run, "photos", baselines=False)
    assert (len(own), len(other)) == (3, 1)
    assert run.evaluation["data"] == "photos"
    assert run.evaluation_of(run.config.data.source)["rows"] == own
    assert run.evaluation_of("photos")["rows"] == other
    assert run.evaluation_of("elsewhere") is None
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "knn_scores", lambda *_, **__: pytest.fail("measured again"))
        assert twinblock.evaluate(run) == own
        assert twinblock.evaluate(run, baselines=False) == own[:1]
        assert twinblock.evaluate(run) == own  # the baselines are still known
    counted = []
    real = evaluation.knn_scores
    monkeypatch.setattr(evaluation, "knn_scores", lambda *a, **k: counted.append(1) or real(*a, **k))
    twinblock.evaluate(run, {"size": 24})  # of another size nothing is known
    assert len(counted) == 3
    twinblock.evaluate(run, shots=[2])
    assert len(counted) == 6


def test_a_source_is_known_by_its_place(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    places = "photos", "./photos/", str(tmp_path / "photos")
    assert len({evaluation_file(place) for place in places}) == 1
    assert evaluation_file("a/photos") != evaluation_file("b/photos")
    assert evaluation_file("org/set name\udcff").startswith("evaluations/set_name_-")
