"""The monitor looks early, confirms what it suspects, and survives a resume."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import twinblock.training.trainer
from twinblock.config.data import Data
from twinblock.core.errors import Collapsed
from twinblock.core.seeding import order
from twinblock.data import load
from twinblock.diagnosis.monitor import Monitor, held_out
from twinblock.runs import checkpoint


def diagnosed(monitor, step):
    """The row for the metrics of a measurement taken now."""
    return monitor.note(step, monitor.measure(step))


def pretend(monitor, spread_at):
    """Embeddings whose spread at each look is chosen, for all blocks or for each; everything else as measured."""
    true = monitor.measure

    def measure(*step):
        rows = true(*step)
        chosen = spread_at(len(monitor.rows))
        for row, spread in zip(rows, chosen if isinstance(chosen, list) else [chosen] * len(rows), strict=True):
            row["projector"] |= {"std": spread, "negative_cosine": 1 - spread**2, "positive_cosine": 1 - spread**2 / 2}
        return rows

    monitor.measure = measure


def test_looks_cost_about_one_percent(tmp_path):
    for batch, steps in ((16, 20_000), (48, 3_000)):
        config = tiny.config("byol", data={"batch": batch}, train={"length": f"{steps}steps"})
        trainer = tiny.trainer(config, tmp_path / str(batch))
        looks = sum(trainer.monitor.due(step) for step in range(steps)) + 1
        assert 0.004 * steps < looks * 2 * len(trainer.monitor.pixels) / (6 * batch) <= 0.01 * steps


def test_the_sample_is_the_same_in_every_version(tmp_path):
    """By hand: the first images in an order of the seed that no epoch has (place -1), in order of their numbers."""
    config = tiny.config("simclr", train={"length": "20000steps", "seed": 5})
    images = tiny.images(200)
    monitor = tiny.trainer(config, tmp_path / "run", images).monitor
    count = len(monitor.pixels)
    assert 64 <= count < 200
    rows = np.sort(order(5, -1, 200)[:count])
    assert np.array_equal(monitor.pixels, images.pixels[rows]) and np.array_equal(monitor.labels, images.labels[rows])


def test_looks_of_a_long_run_and_of_many_processes_are_fewer(tmp_path):
    """Each look judges all those before it: without a bound a million steps would mean 5 000 million rows."""

    def looks(name, steps, **more):
        config = tiny.config("byol", data={"batch": 48}, train={"length": f"{steps}steps"})
        built = tiny.trainer(config, tmp_path / name)
        monitor = Monitor(
            built.learners,
            built.loader.images,
            built.train_step.views,
            built.config,
            built.fabric.device,
            built.plan,
            **more,
        )
        return sum(monitor.due(step) for step in range(steps))

    assert 400 <= looks("long", 1_000_000) <= 510
    one, four = looks("one", 12_000), looks("four", 12_000, world=4)
    assert one / 5 < four < one / 3


@pytest.mark.parametrize(
    ("world", "piece", "interval"),
    [
        ({}, 48, 38),  # 0.009 x 12,000 x 3 passes x 48 images are 324 measurements of 48; less 4 early, 3 others: 317
        ({"world": 1}, 48, 38),
        ({"world": 4}, 12, 163),  # a quarter: 81, less 7
    ],
)
def test_when_and_in_what_pieces_is_counted_by_hand(world, piece, interval, tmp_path):
    config = tiny.config("byol", data={"batch": 48}, train={"length": "12000steps"})
    built = tiny.trainer(config, tmp_path)
    parts = built.learners, built.loader.images, built.train_step.views, built.config, built.fabric.device, built.plan
    monitor = Monitor(*parts, **world)
    assert len(monitor.pixels) == 48
    assert (monitor.piece, monitor.looks.interval, monitor.looks.again) == (piece, interval, 50)
    assert monitor.looks.due_at == {0, 40, 100, 200}  # 1, 2.5 and 5 % of the first 4,000 steps
    first, second = config.views  # BYOL solarises the second alone
    assert [view.solarize for view in monitor.views.specs] == [first.solarize]
    assert first.solarize != second.solarize


def test_a_collapse_in_a_very_short_run_is_confirmed_at_the_next_step(tmp_path):
    assert tiny.trainer(tiny.config("byol", train={"length": "20steps"}), tmp_path).monitor.looks.again == 1


@pytest.mark.parametrize(
    ("scope", "shown"), [("simultaneous", "10 20 30 40"), ("sequential", "20"), ("end_to_end", "10")]
)
def test_the_bar_shows_every_block_in_training(tmp_path, scope, shown):
    monitor = tiny.trainer(tiny.config("simclr", scope, train={"length": "100steps"}), tmp_path).monitor
    assert monitor.words() == ""
    diagnosed(monitor, 30)  # of the sequential plan the second phase
    for k, row in enumerate(monitor.rows[-1]["diagnosis"]):
        assert {"encoder", "projector", "sample_knn"} <= row.keys()
        row["sample_knn"] = 10.0 * (k + 1)
    assert monitor.words().startswith(f"sample kNN {shown} % · ")


@pytest.mark.parametrize("steps", [200, 456, 4000, 100_000])
def test_a_collapse_is_confirmed_within_five_percent_and_200_steps(tmp_path, steps):
    config = tiny.config("byol", data={"batch": 48}, train={"length": f"{steps}steps"})
    monitor = tiny.trainer(config, tmp_path).monitor
    pretend(monitor, lambda looks: 0.2 if looks == 0 else 0.001)
    for step in range(steps):
        if monitor.due(step):
            diagnosed(monitor, step)
        if monitor.collapsed:
            break
    assert step <= min(0.05 * steps, 200)


def test_a_collapse_between_the_first_looks_is_confirmed_at_five_percent(tmp_path):
    config = tiny.config("byol", data={"batch": 48}, train={"length": "2000steps"})
    monitor = tiny.trainer(config, tmp_path).monitor
    pretend(monitor, lambda _: 0.2 if step <= 50 else 0.001)
    for step in (step for step in range(101) if monitor.due(step)):
        diagnosed(monitor, step)
    assert monitor.collapsed


def test_a_resumed_monitor_knows_what_was_seen(tmp_path):
    monitor = tiny.trainer(tiny.config("byol", train={"length": "1000steps"}), tmp_path / "a").monitor
    pretend(monitor, lambda looks: 0.2 if looks == 0 else 0.001)
    rows = [json.loads(json.dumps(diagnosed(monitor, step))) for step in (0, 10, 15)]
    assert monitor.due(30)  # asked for at step 10, before the look at step 15 settled it
    assert not monitor.due(20)  # not counted from the step of the measurement before
    other = tiny.trainer(tiny.config("byol", train={"length": "1000steps"}), tmp_path / "b").monitor
    assert not other.due(30)
    other.recall(rows)
    assert other.due(30)
    assert other.verdicts == monitor.verdicts


def test_a_monitor_of_blocks_asks_for_the_looks_that_it_would_ask_for_after_a_resume(tmp_path):
    """A look at which block 1 is suspect while block 4 has collapsed asks for none, and is not judged again later."""
    config = tiny.config("byol", "simultaneous", train={"length": "1000steps"})
    straight, resumed = (tiny.trainer(config, tmp_path / name).monitor for name in "ab")
    rows, early = [], set(straight.looks.due_at)
    for step, fallen in ((0, ()), (10, (3,)), (20, (3,)), (31, (0, 3)), (35, ()), (37, ())):
        pretend(straight, lambda _, fallen=fallen: [0.001 if i in fallen else 0.2 for i in range(4)])
        rows.append(json.loads(json.dumps(diagnosed(straight, step))))
    resumed.recall(rows)
    assert resumed.looks.due_at == straight.looks.due_at == early | {10 + straight.looks.again}
    assert resumed.verdicts == straight.verdicts


def test_of_several_blocks_the_worst_is_told(tmp_path):
    monitor = tiny.trainer(tiny.config("byol", "simultaneous"), tmp_path).monitor
    states = ("healthy", "complete collapse", "leaving collapse", "healthy")
    monitor.verdicts = [replace(monitor.verdicts[0], state=state) for state in states]
    assert monitor.verdict().state == "complete collapse"


def test_blocks_trained_later_are_judged_from_their_own_start(tmp_path):
    trainer = tiny.trainer(tiny.config("byol", "sequential", train={"length": "400steps"}), tmp_path)
    assert trainer.monitor.starts == [0, 100, 200, 300]
    assert all(trainer.monitor.due(step) for step in (0, 100, 200, 300))
    pretend(trainer.monitor, lambda looks: 0.2 if looks == 0 else 0.001)
    for step in (0, 50, 60):
        diagnosed(trainer.monitor, step)
    assert [v.state for v in trainer.monitor.verdicts] == ["complete collapse", *["not started"] * 3]
    diagnosed(trainer.monitor, 100)
    assert not trainer.monitor.collapsed


def test_images_that_are_looked_at_are_held_out(tmp_path, monkeypatch):
    """Every one is among the test images, and none among those trained on."""
    looked_at = []
    monitor = twinblock.training.trainer.Monitor
    monkeypatch.setattr(
        twinblock.training.trainer, "Monitor", lambda *args: looked_at.append(monitor(*args)) or looked_at[-1]
    )
    small = ["data.batch=64", "train.length=1steps", "encoder.width=8"]
    twinblock.pretrain("demo", out=tmp_path / "run", overrides=small, quiet=True)
    split = {name: {row.tobytes() for row in load("photodigits", split=name).pixels} for name in ("train", "test")}
    sample = {row.numpy().tobytes() for row in looked_at[0].pixels}
    assert len(sample) == 64
    assert sample <= split["test"]
    assert not sample & split["train"]


@pytest.mark.parametrize("broken", [False, True])
def test_without_test_images_those_trained_on_are_looked_at(tmp_path, monkeypatch, broken):
    monkeypatch.setenv("TWINBLOCK_CACHE", str(tmp_path / "cache"))
    for name in ("train/a.png", "train/b.png", *(["test/a.png"] if broken else [])):
        (file := tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        if name.startswith("test"):
            file.write_bytes(b"no image")
        else:
            Image.new("RGB", (32, 32), "red").save(file)
    data = Data(source=str(tmp_path / "photos"))
    images = load(data.source)
    assert held_out(data, images) is images


def test_words_for_the_bar(tmp_path):
    trainer = tiny.trainer(tiny.config("simclr"), tmp_path / "a")
    assert trainer.monitor.words() == ""
    row = diagnosed(trainer.monitor, 0)
    knn = row["diagnosis"][0]["sample_knn"]
    assert trainer.monitor.words() == f"sample kNN {knn:.0f} % · not started"
    assert knn > 50  # the mean colour is the class, and three classes make a third by chance


def test_stop_on_collapse_saves_and_goes_on_when_told(tmp_path):
    train = {"length": "60steps", "on_collapse": "stop"}
    trainer = tiny.trainer(tiny.config("byol", train=train), tmp_path)
    pretend(trainer.monitor, lambda looks: 0.2 if looks == 0 else 0.001)
    with pytest.raises(Collapsed, match=r"stopped at step \d+, state saved: complete collapse: cosine 1\.0") as caught:
        trainer.fit()
    assert "\n" not in str(caught.value)
    assert caught.value.code == 3
    _, meta = checkpoint.read(tmp_path / "checkpoint" / checkpoint.LAST)
    assert meta["step"] == trainer.step < 60
    trainer.run.release()
    again = tiny.trainer(tiny.config("byol", train={**train, "on_collapse": "warn"}), tmp_path)
    again.resume()
    again.fit()
    assert again.step == 60


def test_a_real_run_without_contrast_and_predictor_is_called_collapsed(tmp_path):
    train, head = {"length": "60steps"}, {"norm": "none"}
    objective = {"kind": "regression"}
    config = tiny.config(
        "simclr", precision="fp32", train=train, objective=objective, projector=head, optim={"lr": 1.5}
    )
    trainer = tiny.trainer(config, tmp_path)
    trainer.fit()
    assert trainer.monitor.verdict().state == "complete collapse"
    assert trainer.monitor.verdict().advice.startswith("predictor=null: regression without a predictor")


def test_a_look_takes_its_sample_in_pieces(tmp_path):
    trainer = tiny.trainer(tiny.config("byol", "simultaneous"), tmp_path)
    monitor = trainer.monitor
    whole = monitor.outputs(range(2))
    monitor.piece = 5
    for one, other in zip(whole, monitor.outputs(range(2)), strict=True):
        for name in ("encoder", "projector", "predictor"):
            for a, b in zip(one[name], other[name], strict=True):
                torch.testing.assert_close(a, b)


def test_phases_that_take_less_time_have_fewer_looks(tmp_path):
    looks = {}
    for scope in ("simultaneous", "sequential"):
        config = tiny.config("simclr", scope, train={"length": "20000steps"})
        monitor = tiny.trainer(config, tmp_path / scope).monitor
        looks[scope] = sum(map(monitor.due, range(20_000)))
    # of four blocks, 0, 1, 2 and 3 only pass on, in place of three passes of each: 18 of 48
    assert looks["sequential"] == pytest.approx(looks["simultaneous"] * 18 / 48, rel=0.1)


def test_untrained_is_measured_once_batch_norms_have_seen_images(tmp_path):
    """And nothing is left of it: the statistics are as they were."""
    monitor = tiny.trainer(tiny.config("simclr"), tmp_path).monitor
    before = {name: t.clone() for name, t in monitor.learners[0].state_dict().items()}
    row = diagnosed(monitor, 0)
    for name, tensor in monitor.learners[0].state_dict().items():
        assert torch.equal(tensor, before[name]), name
    (untrained,), (agreement,) = row["untrained"], row["agreement"]
    assert untrained["agreement"] != agreement
    assert "untrained" not in diagnosed(monitor, 3)
    assert "agreement" not in row["diagnosis"][0]


def test_of_blocks_in_turn_each_is_untrained_when_its_turn_comes(tmp_path):
    monitor = tiny.trainer(tiny.config("byol", "sequential", train={"length": "400steps"}), tmp_path).monitor
    for step, block in ((0, 0), (100, 1), (200, 2), (300, 3)):
        row = diagnosed(monitor, step)
        assert [found is not None for found in row["untrained"]] == [i == block for i in range(4)]
    assert "untrained" not in diagnosed(monitor, 350)


def test_each_phase_has_early_looks_of_its_own(tmp_path):
    """At 1, 2.5 and 5 % of every phase, not of the first one alone."""
    monitor = tiny.trainer(tiny.config("byol", "sequential", train={"length": "4000steps"}), tmp_path).monitor
    for start in (0, 1000, 2000, 3000):
        assert {start, start + 10, start + 25, start + 50} <= monitor.looks.due_at
    assert len(monitor.looks.due_at) == 16


def test_test_images_without_labels_are_not_looked_at_in_a_training_with_labels(monkeypatch):
    """Their kNN could not be shown; without labels in the training they do."""
    labelled = tiny.images(80)
    bare = replace(labelled, labels=None)
    monkeypatch.setattr("twinblock.diagnosis.monitor.split_of", lambda *_: bare)
    assert held_out(Data(), labelled) is labelled
    assert held_out(Data(), replace(labelled, labels=None)) is bare
