"""A run measured on images of another size than it trained on."""

import pytest
import tiny
import torch

import twinblock
from twinblock.core.errors import InputError
from twinblock.evaluation import evaluate as evaluation
from twinblock.evaluation import features, knn_scores, pixels
from twinblock.evaluation.exemplars import exemplars
from twinblock.nn.encoders import MEAN, STD

SMALL = ["encoder.width=8", "encoder.kind=resnet10", "train.length=1steps", "projector.dims=[16,8]", "data.batch=32"]
SMALL += ["train.precision=fp32"]


@pytest.fixture
def source(monkeypatch):
    return tiny.in_place_of_any_source(monkeypatch, 60)


def test_every_row_is_of_images_of_that_size(tmp_path, source):
    run = twinblock.pretrain("simclr", out=tmp_path / "a", quiet=True, overrides=SMALL)
    assert run.config.data.size == 16
    labels = torch.from_numpy(source.labels)

    def by_hand(size: int) -> float:
        rows = features(run.encoder(), source, size=size, mean=MEAN, std=STD)
        return 100 * float((knn_scores(rows, labels, rows, 3).argmax(1) == labels).float().mean())

    assert by_hand(24) != by_hand(16)  # so that the test can tell
    for size, expected in ((24, by_hand(24)), (None, by_hand(16))):
        rows = {row["features"]: row for row in twinblock.evaluate(run, {"size": size}, blocks=True, published=True)}
        seen = size or 16
        assert rows["encoder"]["kNN %"] == rows["block 4"]["kNN %"] == pytest.approx(expected)
        assert rows["raw pixels"]["width"] == seen * seen * 3
        assert run.evaluation is not None and run.evaluation["size"] == seen
    assert run.config.data.size == 16


def test_the_pixels_of_large_images_are_shrunk(source):
    """A linear probe of all pixels at 96 px would take a matrix of 27 648 x 27 648."""
    for size, side in ((16, 16), (96, 32)):
        config = tiny.trainer_config("simclr", "end_to_end", data={"size": size})
        seen = evaluation.FeatureExtractor(config, (source, source), torch.device("cpu"), lambda _: None).pixels()
        assert all(torch.equal(rows, pixels(source, side)) for rows in seen)


def test_what_pruning_moves_is_seen_at_that_size(tmp_path, source):
    tail = [*SMALL, "data.longtail.imbalance=4"]
    run = twinblock.pretrain("sdclr_demo", out=tmp_path / "a", quiet=True, overrides=tail)
    found = [(exemplars(run, {"size": size}), (run.path / "exemplars.csv").read_text()) for size in (16, 24)]
    assert found[0][1] != found[1][1]


def test_a_local_tap_takes_its_windows_from_the_map_it_sees(tmp_path, source):
    local = ["scope.kind=blockwise", "scope.pool=local", "scope.grid=2"]
    run = twinblock.pretrain("simclr", out=tmp_path / "a", quiet=True, overrides=[*SMALL, *local])
    at = [twinblock.evaluate(run, {"size": size}, baselines=False, pooling=True) for size in (16, 32)]
    assert [row["width"] for row in at[0]] == [row["width"] for row in at[1]]


def test_a_diagnosis_is_of_images_as_the_training_saw_them(tmp_path, source):
    run = twinblock.pretrain("simclr", out=tmp_path / "a", quiet=True, overrides=SMALL)
    with pytest.raises(InputError, match=r"data.size=24: a diagnosis sees images as the training did"):
        twinblock.diagnose(run, {"size": 24})
