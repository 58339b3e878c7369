"""Before an epoch an objective may look at all images: who is asked, when, and what it is shown."""

import pytest
import tiny
import torch

from twinblock.core.errors import InputError
from twinblock.evaluation.features import seen_by
from twinblock.methods.learner import parts_of
from twinblock.views import centre


def asked(method, scope, tmp_path, monkeypatch, length="7steps"):
    """At which steps which objective was shown which embeddings; an epoch has three steps."""
    trainer = tiny.trainer(tiny.config(method, scope, train={"length": length}), tmp_path / scope)
    parts = [part for learner in trainer.learners for part in parts_of(learner)]
    found = []
    for i, part in enumerate(parts):
        kept = part.objective.begin_epoch

        def note(embed, step, total, i=i, kept=kept):
            found.append((i, trainer.step, (step, total), embed()))
            return kept(embed, step, total)

        monkeypatch.setattr(part.objective, "begin_epoch", note)
    trainer.fit()
    return trainer, parts, found


def test_every_epoch_begins_with_all_images(tmp_path, monkeypatch):
    _, _, found = asked("pcl", "end_to_end", tmp_path, monkeypatch)
    assert [row[:3] for row in found] == [(0, 0, (0, 7)), (0, 3, (3, 7)), (0, 6, (6, 7))]
    assert all(embeddings.shape == (48, 8) for *_, embeddings in found)


def test_of_a_plan_those_that_train_are_asked_and_each_at_its_first_step(tmp_path, monkeypatch):
    """Nine steps in four phases: 3, 2, 2 and 2 steps."""
    _, _, found = asked("pcl", "sequential", tmp_path, monkeypatch, "9steps")
    phases = {(i, step - when[0]) for i, step, when, _ in found}
    assert [i for i, _ in sorted(phases)] == [0, 1, 2, 3]
    for i, start in phases:
        steps = [step for j, step, *_ in found if j == i]
        total = next(when[1] for j, _, when, _ in found if j == i)
        assert steps == [start, *range((start // 3 + 1) * 3, start + total, 3)]


@pytest.mark.parametrize("scope", ["end_to_end", "simultaneous", "overlapping"])
def test_what_is_shown_are_the_embeddings_of_the_target_network(scope, tmp_path, monkeypatch):
    """Of the central view, in evaluation mode, by hand; nothing of the network is changed by it."""
    config = tiny.config("pcl", scope, train={"length": "3steps"})
    trainer = tiny.trainer(config, tmp_path / scope)
    trainer.fit()
    before = tiny.state(trainer)
    parts = [part for learner in trainer.learners for part in parts_of(learner)]
    shown = []
    for part in parts:
        monkeypatch.setattr(part.objective, "begin_epoch", lambda embed, *_: shown.append(embed()) or "")
    trainer.train_step.begin_epoch(0, trainer.loader.images)
    after = tiny.state(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before)
    seen = {k: v for k, v in seen_by(trainer.config, torch.device("cpu")).items() if k not in ("device", "autocast")}
    x = centre(trainer.loader.images.batch(range(48)), **seen).double()
    for part, embeddings in zip(parts, shown, strict=True):
        network, maps = part.target.average.eval(), []
        with torch.no_grad():
            for block in network.blocks:
                maps.append(block(maps[-1] if maps else x))
            expected = network.projector(network.pooling(maps[-1]))
        torch.testing.assert_close(embeddings, expected.float())
        x = maps[0]


def test_other_objectives_are_not_asked(tmp_path, monkeypatch):
    import twinblock.training.epoch

    monkeypatch.setattr(twinblock.training.epoch, "features", None)
    for method in ("moco_v2", "supervised"):
        tiny.trainer(tiny.config(method, train={"length": "4steps"}), tmp_path / method).fit()


def test_what_an_objective_says_is_said_once(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(tiny.Reporter, "warn", lambda _, line: said.append(line))
    trainer = tiny.trainer(tiny.config("pcl", train={"length": "4steps"}), tmp_path)
    for learner in trainer.learners:
        monkeypatch.setattr(learner.objective, "begin_epoch", lambda *_: "one cluster")
    trainer.fit()
    assert said.count("one cluster") == 1


def test_images_that_cannot_be_read_any_more_are_one_line(tmp_path):
    trainer = tiny.trainer(tiny.config("pcl"), tmp_path)

    def broken(*_):
        raise OSError(5, "Input/output error")

    object.__setattr__(trainer.loader.images, "batch", broken)
    with pytest.raises(InputError, match=r"cannot read the images of step 0 \(Input/output error\)"):
        trainer.begin_epoch()


def test_more_clusters_than_images_are_refused_in_one_line(tmp_path):
    config = tiny.config("pcl", objective={"clusters": [6, 49]})
    with pytest.raises(InputError, match=r"objective.clusters=\[6, 49\]: there are 48 images") as caught:
        tiny.trainer(config, tmp_path)
    assert "\n" not in str(caught.value)
