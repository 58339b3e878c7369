"""`finetune` with several classes an image: average precision, in all and of each class."""

import csv
import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from tiny import images
from tuning import pretrained, tuned

import twinblock
from twinblock.core.errors import InputError
from twinblock.data import Images
from twinblock.evaluation import finetune
from twinblock.evaluation.classifier import head_of
from twinblock.evaluation.protocols import PROTOCOLS, Protocol


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return pretrained(tmp_path_factory.mktemp("home"))


def tagged(count: int = 60) -> Images:
    """Images in which red and green are bright or not, and blue never says anything of them."""
    rng = np.random.Generator(np.random.PCG64(1))
    matrix = rng.integers(0, 2, (count, 3)).astype(np.int8)
    pixels = rng.integers(0, 120, (count, 16, 16, 3), dtype=np.uint8)
    pixels[:, :, :, :2] += 100 * matrix[:, None, None, :2].astype(np.uint8)
    return Images(pixels, indicators=matrix, classes=("red", "green", "chance"), name="tags")


def test_images_of_several_classes_are_measured_by_average_precision(run, tmp_path, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "default", Protocol(fewest=30, rates=(0.03,)))
    rows = tuned(run, tmp_path / "out", tagged(), seeds=2)
    assert [list(row) for row in rows] == [
        ["start", "labels %", "images", "mAP %", "std", "rate", "epochs", "chosen on"]
    ] * 4
    kept = json.loads((tmp_path / "out" / "finetune.json").read_text())
    last = [kept["cells"]["pretrained, 1, 0, model"], kept["cells"]["pretrained, 1, 1"]]
    assert rows[2]["mAP %"] == pytest.approx(np.mean(last)) and rows[2]["std"] == pytest.approx(
        np.std(np.mean(last, 1), ddof=1)
    )
    with open(tmp_path / "out" / "finetune-classes.csv") as file:
        of = {(row["start"], float(row["labels %"]), row["class"]): row for row in csv.DictReader(file)}
    assert len(of) == 4 * 3
    assert all(float(of["pretrained", 100, name]["AP %"]) > 90 for name in ("red", "green"))
    goal = finetune._task(run, run.config.data, tagged(), Protocol(), ()).goal
    truth = goal.targets[1].numpy()
    for i, name in enumerate(goal.names):
        row = of["pretrained", 100, name]
        assert float(row["AP %"]) == pytest.approx(np.mean([cell[i] for cell in last]))
        assert float(row["std"]) == pytest.approx(np.std([cell[i] for cell in last], ddof=1))
        assert float(row["chance %"]) == pytest.approx(100 * truth[:, i].mean())
        assert int(row["images"]) == (goal.targets[0][:, i] == 1).sum()
    # the classifier that was kept is the one that was measured, by scikit-learn
    made = twinblock.Run.open(tmp_path / "out" / "model")
    head = head_of(made)
    assert head.several and head.names == ["red", "green", "chance"]
    scores = head.layer(twinblock.embed(made, goal.images[1]).features).detach().numpy()
    assert [100 * average_precision_score(truth[:, i], scores[:, i]) for i in range(3)] == pytest.approx(last[0])


def test_a_source_of_several_classes_needs_some_that_tell_images_apart(run, tmp_path):
    for matrix in (np.ones((60, 2), np.int8), np.zeros((60, 2), np.int8)):
        with pytest.raises(InputError, match="no class has images that are of it"):
            tuned(run, tmp_path / "out", Images(images(60).pixels, indicators=matrix))
    with pytest.raises(InputError, match="several classes an image, which finetune measures; freeze=encoder"):
        twinblock.evaluate(run, tagged())
