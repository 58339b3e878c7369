"""`finetune`: torch's own optimizer and schedule by hand, no look at test images, and the same again after a kill."""

import copy
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from tiny import images
from torch import nn
from tuning import pretrained, tuned

import twinblock
from twinblock import cli
from twinblock.core.errors import InputError
from twinblock.core.seeding import order
from twinblock.data import Images, take
from twinblock.evaluation import finetune, published
from twinblock.evaluation.classifier import Classifier, Schedule, fit, head_of
from twinblock.evaluation.goals import OneClass
from twinblock.evaluation.labelled import LabelledSets
from twinblock.evaluation.protocols import PROTOCOLS, Protocol
from twinblock.nn.encoders import build_encoder
from twinblock.views import View, Views, centre

HALF = (0.5,) * 3
CENTRAL = Views([View(crop=None, flip=0, jitter_p=0, gray=0)], 16, HALF, HALF)


def schedule(steps=5, batch=100, frozen=()) -> Schedule:
    return Schedule(steps, batch, CENTRAL, frozen, torch.device("cpu"), 1e-4, 1.0)


def fitted(encoder, lr, how):
    data = images(20)
    return fit(encoder, OneClass(LabelledSets.of(data, data)), np.arange(20), lr, 0, how)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return pretrained(tmp_path_factory.mktemp("home"))


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "default", Protocol(fewest=4, rates=(0.01, 0.1)))


def test_a_frozen_encoder_is_logistic_regression_by_torchs_own_schedule():
    encoder, data = build_encoder("resnet10", "cifar", "batch", 8, 16, 0).eval(), images(20)
    model = fitted(encoder, 0.3, schedule(frozen=("encoder",)))
    with torch.no_grad():
        x = encoder(centre(data.batch(range(20)), 16, HALF, HALF))
    layer = nn.Linear(encoder.width, 3)
    nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    sgd = torch.optim.SGD(layer.parameters(), 0.3, 0.9, weight_decay=1e-4, nesterov=True)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 5)
    for _ in range(5):
        sgd.zero_grad()
        nn.functional.cross_entropy(layer(x), torch.from_numpy(data.labels)).backward()
        nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        sgd.step()
        cosine.step()
    torch.testing.assert_close(model.head.weight, layer.weight, atol=1e-5, rtol=1e-4)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.encoder.state_dict().values(), encoder.state_dict().values(), strict=True)
    )


def test_only_frozen_modules_stay_and_the_given_encoder_is_left_alone():
    encoder = build_encoder("resnet10", "cifar", "batch", 8, 16, 0)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    model = fitted(encoder, 0.1, schedule(frozen=("conv1", "bn1", "layer1")))
    after = model.encoder.state_dict()
    assert all(torch.equal(encoder.state_dict()[name], tensor) for name, tensor in before.items())
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor) == name.startswith(("conv1", "bn1", "layer1")), name


def test_parts_of_the_labels_are_of_each_class_and_lie_within_each_other(run):
    data = images(60)
    goal = finetune._task(run, run.config.data, data, Protocol(), ()).goal
    labels, parts = goal.targets[0].numpy(), {f: goal.part(f, 1) for f in (0.01, 0.5, 1.0)}
    sizes = np.bincount(labels)
    assert np.bincount(labels[parts[0.01]]).tolist() == [1, 1, 1]
    assert np.bincount(labels[parts[0.5]]).tolist() == [max(1, round(n / 2)) for n in sizes.tolist()]
    assert {*parts[0.01]} <= {*parts[0.5]} <= {*parts[1.0]} == {*range(len(labels))}
    assert {*goal.part(0.5, 2)} != {*parts[0.5]}


def test_a_table_and_a_classifier_come_of_it(run, tmp_path, short):
    rows = tuned(run, tmp_path / "out")
    assert [(r["start"], r["labels %"]) for r in rows] == [
        *[("pretrained", 25.0), ("scratch", 25.0), ("pretrained", 100.0), ("scratch", 100.0)]
    ]
    kept = json.loads((tmp_path / "out" / "finetune.json").read_text())
    for row in rows:
        cells = [v for k, v in kept["cells"].items() if k.startswith(f"{row['start']}, {row['labels %'] / 100:g}, ")]
        cells = [v for v in cells if isinstance(v, float)]
        assert row["accuracy %"] == pytest.approx(np.mean(cells)) and row["std"] == pytest.approx(np.std(cells, ddof=1))
    assert kept["rows"] == rows and (tmp_path / "out" / "finetune.csv").is_file()
    # the classifier that was kept is the one that was measured
    made = twinblock.Run.open(tmp_path / "out" / "model")
    head = head_of(made)
    assert head.names == ["red", "green", "blue"] and not head.several
    goal = finetune._task(run, run.config.data, images(60), Protocol(), ()).goal
    scores = head.layer(twinblock.embed(made, goal.images[1]).features)
    assert 100 * float((scores.argmax(1) == goal.targets[1]).double().mean()) == pytest.approx(
        kept["cells"]["pretrained, 1, 0, model"]
    )


def test_the_protocol_of_byol_is_the_published_one():
    """Grill et al. 2020, appendix C.1: crops to the size and flips, cross-entropy, SGD with Nesterov momentum 0.9,
    batches of 1024, no weight decay, no gradient clipping; rates 0.01, 0.02, 0.05, 0.1, 0.005; 30 or 50 epochs; 1 and
    10 %.
    """
    byol = PROTOCOLS["byol"]
    assert {*byol.rates} == {0.01, 0.02, 0.05, 0.1, 0.005} and {*byol.epochs} == {30, 50}
    assert byol.fractions == (0.01, 0.1) and (byol.batch, byol.decay, byol.clip) == (1024, 0.0, None)
    assert len(byol.trials) == 10 and byol.fewest == 1  # of their epochs none is lengthened
    assert byol.crop == (0.08, 1.0)


def test_the_protocol_of_byol_is_what_is_trained(run, tmp_path, monkeypatch):
    """All ten pairs of a rate and epochs are tried, in whole epochs of one batch, and the best one is taken."""
    given = []

    def recorded(encoder, goal, rows, lr, seed, how):
        given.append((lr, how.steps, how.batch, how.decay, how.clip, how.views.specs[0]))
        return fit(encoder, goal, rows, lr, seed, replace(how, steps=1))

    monkeypatch.setattr(finetune, "fit", recorded)
    rows = tuned(run, tmp_path / "out", protocol="byol", fraction=None, epochs=None, seeds=1)
    assert [row["labels %"] for row in rows] == [1.0, 1.0, 10.0, 10.0]
    tried = [one for one in given if one[0] in PROTOCOLS["byol"].rates]
    assert {one[:2] for one in tried} == {(lr, steps) for lr in PROTOCOLS["byol"].rates for steps in (30, 50)}
    assert {one[2:5] for one in tried} == {(1024, 0.0, None)}
    view = tried[0][-1]
    assert (view.crop, view.flip, view.interpolation) == ((0.08, 1.0), 0.5, "bicubic")
    assert (view.jitter_p, view.gray, view.blur, view.solarize) == (0, 0, 0, 0)
    assert {row["rate"] for row in rows} <= {*PROTOCOLS["byol"].rates} and {row["epochs"] for row in rows} <= {30, 50}


def test_weight_decay_and_clipping_are_those_that_are_given():
    """One step of SGD with Nesterov momentum: -lr (1 + 0.9) (gradient + decay x weight), without a norm that is cut."""
    encoder, data = build_encoder("resnet10", "cifar", "batch", 8, 16, 0).eval(), images(20)
    bright = fitted(encoder, 0.1, replace(schedule(steps=1), clip=None, decay=0.5))
    clipped = fitted(encoder, 0.1, replace(schedule(steps=1), clip=1e-6, decay=0.0))
    model = fit_by_hand(encoder, data, decay=0.5)
    torch.testing.assert_close(bright.head.weight, model, atol=1e-6, rtol=1e-4)
    moved = torch.cat(
        [(a - b).flatten() for a, b in zip(clipped.parameters(), fresh(encoder).parameters(), strict=True)]
    )
    assert float(moved.detach().norm()) == pytest.approx(0.1 * 1.9 * 1e-6, rel=1e-2)


def fresh(encoder) -> nn.Module:
    return Classifier(copy.deepcopy(encoder), 3)


def fit_by_hand(encoder, data, decay: float) -> torch.Tensor:
    """The weight of the head after a step; it begins with zeros, of which nothing decays."""
    model = fresh(encoder).train()
    view = centre(data.batch(order(0, 0, 20)), 16, HALF, HALF)
    nn.functional.cross_entropy(model(view), torch.from_numpy(data.labels[order(0, 0, 20)])).backward()
    return -0.1 * 1.9 * (model.head.weight.grad + decay * model.head.weight.detach())


def test_labels_of_test_images_change_nothing_but_the_accuracy(run, tmp_path, short, monkeypatch):
    tuned(run, tmp_path / "a", fraction=1, seeds=1)
    whole = finetune._task

    def shuffled(*given):
        task = whole(*given)
        np.random.default_rng(0).shuffle(task.goal.sets.test_labels)
        return task

    monkeypatch.setattr(finetune, "_task", shuffled)
    tuned(run, tmp_path / "b", fraction=1, seeds=1)
    first, second = (json.loads((tmp_path / x / "finetune.json").read_text()) for x in "ab")
    assert [row["rate"] for row in first["rows"]] == [row["rate"] for row in second["rows"]]
    weights, others = (load_file(tmp_path / x / "model/encoder.safetensors") for x in "ab")
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_killed_comparison_goes_on_to_the_same_end(run, tmp_path, short, monkeypatch):
    expected = tuned(run, tmp_path / "whole")
    trained, count = finetune.fit, 0

    def dies(*given):
        nonlocal count
        count += 1
        if count == 8:
            raise KeyboardInterrupt
        return trained(*given)

    monkeypatch.setattr(finetune, "fit", dies)
    with pytest.raises(KeyboardInterrupt):
        tuned(run, tmp_path / "killed")
    assert json.loads((tmp_path / "killed/finetune.json").read_text())["rows"] is None
    assert not (tmp_path / "killed/finetune.csv").exists()
    assert tuned(run, tmp_path / "killed") == expected
    assert count == 4 * (2 + 2) + 1  # the one that was killed twice, all others once
    before = count
    assert tuned(run, tmp_path / "killed") == expected and count == before
    assert tuned(run, tmp_path / "killed", epochs=2) != [] and count > before  # another protocol: all anew


def test_what_can_be_told_apart_is_learned(run, tmp_path, monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "default", Protocol(rates=(0.03,), fewest=30))
    rows = tuned(run, tmp_path / "out", fraction=1, seeds=1)
    assert all(row["accuracy %"] > 90 for row in rows)


def test_the_classifier_is_exported(run, tmp_path, short):
    pytest.importorskip("timm")
    deep = shutil.copytree(run.path, tmp_path / "run")
    tuned(deep, None, fraction=1, seeds=1)
    out = deep / "finetune" / "model"
    made = twinblock.Run.open(out)
    for line in (lines := twinblock.export(made, "program", out=tmp_path / "program")):
        assert line
    names = {"torch": torch, "images": torch.randn(5, 3, 16, 16)}
    exec("\n".join(lines), names)
    with torch.no_grad():
        expected = head_of(made).layer(made.encoder()(names["images"]))
    torch.testing.assert_close(names["logits"], expected, atol=1e-4, rtol=1e-4)
    said = json.loads((tmp_path / "program" / "preprocessing.json").read_text())
    assert said["classes"] == ["red", "green", "blue"] and said["logits"] == 3


def test_published_weights_are_a_start(tmp_path, short, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = timm.create_model("test_resnet", num_classes=0).eval()
    hub = tmp_path / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    save_file(
        timm.create_model("test_resnet").state_dict() | model.state_dict(), hub / "test_resnet.r160_in1k.safetensors"
    )
    data, tag = images(30), "timm:test_resnet.r160_in1k"
    run, *_ = published.run_of(tag, data)
    encoder, x = published.published(tag, run.config), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), model(x))
    assert run.config.data.mean == timm.get_pretrained_cfg("test_resnet.r160_in1k").mean
    rows = twinblock.finetune(tag, data, fraction=1, seeds=1, epochs=1, out=tmp_path / "out", quiet=True)
    assert [row["start"] for row in rows] == [tag, "scratch"]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"fraction": 0}, "fraction=0: give parts"),
        ({"fraction": [1, 1]}, "different numbers"),
        ({"seeds": 0}, "seeds=0: give a whole number"),
        ({"epochs": 0}, "epochs=0"),
        ({"protocol": "boyl"}, "protocol=boyl: did you mean byol? there are default and byol"),
        ({"freeze": "layr1"}, "freeze=layr1: this encoder has no such module; it has layer1"),
        ({"beside": "runs/b"}, "beside=runs/b: give timm:NAME"),
        ({"data": Images(np.zeros((9, 16, 16, 3), np.uint8))}, "has no labels"),
        ({"data": take(images(60), np.flatnonzero(images(60).labels == 1))}, "one class"),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, how, said):
    with pytest.raises(InputError) as error:
        tuned(run, tmp_path / "out", **how)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_weights_that_cannot_be_had_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"test_resnet.r160_in1k is not on this machine .* put .* there as"):
        twinblock.finetune("timm:test_resnet", images(30), out=tmp_path / "out")


def test_a_run_from_weights_is_compared_with_them_and_scratch_is_drawn(tmp_path, short):
    file = tmp_path / "weights.safetensors"
    small = ["encoder.kind=resnet10", "encoder.width=8", "encoder.stem=standard", "data.batch=16"]
    small += ["train.length=1steps", "projector.dims=[8]"]
    first = twinblock.pretrain("simclr", data=images(32), out=tmp_path / "a", overrides=small, quiet=True)
    save_file(first.encoder().state_dict(), file)
    more = [*small, f"encoder.weights={file}"]
    run = twinblock.pretrain("simclr", data=images(32), out=tmp_path / "b", overrides=more, quiet=True)
    rows = twinblock.finetune(run, images(30), fraction=1, seeds=1, epochs=1, out=tmp_path / "out", quiet=True)
    assert [row["start"] for row in rows] == ["pretrained", "starting weights", "scratch"]
    starts = json.loads((tmp_path / "out" / "finetune.json").read_text())["of"]["starts"]
    assert len({*starts.values()}) == 3


def test_a_folder_of_others_is_not_written_to(run, tmp_path, short):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        tuned(run, tmp_path)


@pytest.mark.parametrize("wrong", ["fraction=[1", "fraction=some", "epochs=x", "seeds=0", "freez=conv1", "data=/none"])
def test_a_wrong_command_is_one_line(run, monkeypatch, capsys, wrong):
    monkeypatch.setattr(sys, "argv", ["twinblock", "finetune", str(run.path), wrong])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1
