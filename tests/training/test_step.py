"""One step: the learning rates that it sets, clipping, whose turn it is, and the views that it trains on."""

import pytest
import tiny
import torch

from twinblock.config.schema import check
from twinblock.optim import warmup_cosine
from twinblock.views import Views


def made(tmp_path, method="simclr", scope="end_to_end", **fields):
    trainer = tiny.trainer(tiny.config(method, scope, **fields), tmp_path)
    return trainer.train_step, list(trainer.loader.batches(0, trainer.plan.total)), trainer


def rates(step) -> list[float]:
    return [group["lr"] for optimizer in step.optimizers for group in optimizer.param_groups]


def test_the_rate_of_each_step_is_that_of_the_schedule_for_its_batch(tmp_path):
    """By hand: 16 of 256 images are a sixteenth of the rate; two steps of rise, then half a cosine down to a tenth."""
    step, batches, _ = made(
        tmp_path, optim={"lr": 1.6, "warmup": "2steps", "end": 0.1}, train={"length": "6steps"}
    )  # fmt: skip
    seen = []
    for k, samples in enumerate(batches):
        step(k, samples)
        seen.append(rates(step)[0])
    half = (2**0.5 / 2 + 1) / 2  # of the cosine at a quarter of its way
    assert seen == pytest.approx([0, 0.05, 0.1, 0.01 + 0.09 * half, 0.055, 0.01 + 0.09 * (1 - half)])


def test_biases_have_a_rate_of_their_own(tmp_path):
    optim = {"kind": "lars", "lr": 0.2, "lr_bias": 0.0048, "warmup": "0steps"}
    step, batches, _ = made(tmp_path, "barlow_twins", optim=optim)
    step(0, batches[0])
    assert rates(step) == pytest.approx([0.2 / 16, 0.0048 / 16])


def test_a_gradient_is_no_longer_than_the_clip(tmp_path):
    """Plain SGD at rate 1 moves the weights by the clipped gradient."""
    optim = {"kind": "sgd", "lr": 16.0, "momentum": 0.0, "weight_decay": 0.0, "clip": 1e-3, "warmup": "0steps"}
    step, batches, trainer = made(tmp_path, optim=optim)
    before = [p.detach().clone() for p in trainer.learners[0].parameters()]
    step(0, batches[0])
    moved = [p.detach() - b for p, b in zip(trainer.learners[0].parameters(), before, strict=True)]
    assert float(torch.stack([m.square().sum() for m in moved]).sum().sqrt()) == pytest.approx(1e-3, rel=1e-3)
    assert all(p.grad is None for p in trainer.learners[0].parameters())


def test_the_warm_up_is_at_most_the_training(tmp_path):
    step, *_ = made(tmp_path / "a", optim={"warmup": "3steps"}, train={"length": "5steps"})
    assert (step.warmup(0, 5), step.warmup(0, 2), step.only_warms_up()) == (3, 2, False)
    step, *_ = made(tmp_path / "b", optim={"warmup": "2epochs"}, train={"length": "5steps"})
    assert (step.warmup(0, 5), step.only_warms_up()) == (5, True)  # two epochs are six steps


def test_blocks_in_turn(tmp_path):
    """One that had its turn stays as it is, in evaluation mode, and its optimizer holds nothing any more."""
    step, batches, trainer = made(tmp_path, scope="sequential", train={"length": "8steps"})
    assert [phase.steps for phase in trainer.plan.phases] == [2, 2, 2, 2]
    ended = None
    for k, samples in enumerate(batches):
        losses = step(k, samples)
        assert losses.shape == (1,) and not losses.requires_grad
        turn = k // 2
        modes = [learner.training for learner in trainer.learners]
        assert not any(modes[:turn]) and modes[turn]
        held = [len(optimizer.state) > 0 for optimizer in step.optimizers]
        assert held == [i == turn for i in range(4)]
        if k == 1:
            ended = {name: t.clone() for name, t in trainer.learners[0].state_dict().items()}
    assert ended is not None
    assert all(torch.equal(t, ended[name]) for name, t in trainer.learners[0].state_dict().items())


def test_the_schedule_of_a_block_is_that_of_its_own_turn(tmp_path):
    optim = {"lr": 16.0, "warmup": "0steps", "end": 0.0}
    step, batches, _ = made(tmp_path, scope="sequential", train={"length": "8steps"}, optim=optim)
    for k, samples in enumerate(batches):
        step(k, samples)
        assert rates(step)[2 * (k // 2)] == pytest.approx(warmup_cosine(k % 2, 2, 0, 1.0))


def test_views_and_draws_are_those_of_the_step(tmp_path):
    """A step has its number in the epoch for the views, and in the run for all that Learners draw."""
    step, batches, trainer = made(tmp_path, train={"length": "5steps"})
    assert step.epoch_steps == 3
    signal, batch = step.signal_of(4, batches[4])
    assert (batch.key, batch.offset) == ((trainer.config.train.seed, 4), 0)
    assert torch.equal(batch.labels, batches[4].labels) and torch.equal(batch.index, batches[4].index)
    make: Views = step.views
    expected = make(batches[4].pixels, seed=trainer.config.train.seed, epoch=1, step=1, batch=16)
    assert all(torch.equal(signal.online[i], view.double()) for i, view in enumerate(expected))
    step.offset = 16
    assert step.config.data.batch == 16  # a second process would have positions of its own
    with pytest.raises(AssertionError, match="positions 16 to 32"):
        step.signal_of(4, batches[4])


def test_squashed_images_are_cropped_by_their_own_aspect(tmp_path):
    from dataclasses import replace

    step, batches, _ = made(tmp_path)
    wide = replace(batches[0], aspect=torch.full((16,), 4.0))
    views = [step.signal_of(0, samples)[0].online[0] for samples in (batches[0], wide)]
    assert not torch.equal(*views)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("fp64", torch.float64)])
def test_modules_and_views_are_of_the_precision(tmp_path, precision, dtype):
    step, batches, trainer = made(tmp_path, precision=precision)
    assert {p.dtype for p in trainer.learners[0].parameters()} == {dtype}
    assert step.signal_of(0, batches[0])[0].online[1].dtype == dtype


def test_budgets_and_warm_up_may_be_in_epochs_and_shares(tmp_path):
    """Three steps an epoch; two fifths of five steps are two."""
    tree = tiny.config("simclr", "sequential", train={"length": "15steps"}).model_dump(mode="json")
    tree["scope"]["budgets"] = ["1epochs", "2epochs", "1epochs", "3steps"]
    step = tiny.trainer(check(tree), tmp_path / "a").train_step
    assert [phase.steps for phase in step.plan.phases] == [3, 6, 3, 3]
    step, *_ = made(tmp_path / "b", optim={"warmup": "40%"}, train={"length": "5steps"})
    assert step.warmup(0, 5) == 2


def test_the_queue_holds_the_targets_of_the_step(tmp_path):
    step, batches, trainer = made(tmp_path, "moco_v2")
    queues = []
    for k in range(2):
        queues += [b.clone() for b in trainer.learners[0].objective.buffers() if b.ndim == 2]
        step(k, batches[k])
    axis = queues[0].shape.index(40)
    assert int((queues[0] != queues[1]).any(1 - axis).sum()) == 16


def moves(trainer, step, batches, steps: int) -> list[list[bool]]:
    """Of each step: whether each matrix of the projector moved; a bias before a batch norm has no gradient."""
    weights, rows = [p for p in trainer.learners[0].network.projector.parameters() if p.dim() > 1], []
    for k in range(steps):
        before = [p.detach().clone() for p in weights]
        step(k, batches[k])
        rows.append([not torch.equal(p, b) for p, b in zip(weights, before, strict=True)])
    return rows


def test_prototypes_stay_as_drawn_for_a_time(tmp_path):
    """Weight decay and momentum leave them alone, too."""
    step, batches, trainer = made(tmp_path, "dino", optim={"lr": 0.1, "weight_decay": 0.1})
    *others, prototypes = zip(*moves(trainer, step, batches, 4), strict=True)
    assert prototypes == (False, False, True, True) and all(map(all, others))


def test_the_weight_decay_follows_half_a_cosine(tmp_path):
    """By hand, of five steps from 0 to 1; biases and norms have none."""
    optim = {"weight_decay": 0.0, "weight_decay_end": 1.0, "lr": 1e-4, "warmup": "0steps"}
    step, batches, _ = made(tmp_path, optim=optim, train={"length": "4steps"})
    seen = []
    for k, samples in enumerate(batches):
        step(k, samples)
        seen.append([group["weight_decay"] for group in step.optimizers[0].param_groups])
    half = 2**0.5 / 2
    assert [row[0] for row in seen] == pytest.approx([0, (1 - half) / 2, 0.5, (1 + half) / 2])
    assert [row[1] for row in seen] == [0] * 4


def test_each_gradient_is_no_longer_than_its_clip(tmp_path):
    """Plain SGD at rate 1 moves each weight by its clipped gradient; small gradients stay."""
    optim = {"kind": "sgd", "lr": 16.0, "momentum": 0.0, "weight_decay": 0.0, "warmup": "0steps"}
    sizes = {}
    for name, clip in (("free", None), ("clipped", 1e-2)):
        step, batches, trainer = made(tmp_path / name, optim={**optim, "clip_each": clip})
        before = [p.detach().clone() for p in trainer.learners[0].parameters()]
        step(0, batches[0])
        after = trainer.learners[0].parameters()
        sizes[name] = torch.stack([(p.detach() - b).norm() for p, b in zip(after, before, strict=True)])
    assert sizes["free"].min() < 1e-2 < sizes["free"].max()
    torch.testing.assert_close(sizes["clipped"], sizes["free"].clamp(max=1e-2), rtol=1e-4, atol=0)
