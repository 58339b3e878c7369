"""The learning rate of every step is in the metrics, as the optimizers had it."""

import pytest
import tiny

from twinblock.config.schema import check
from twinblock.core.errors import InputError

PEAK = 1 / 16  # a rate of 1 for 256 images, of 16


def rates_of(trainer) -> tuple[list, list]:
    """The rates that the metrics hold, and those of the optimizers that moved in a step."""
    used, step = [], trainer.train_step.update

    def update(i, *args):
        step(i, *args)
        used.append((trainer.step, trainer.optimizers[i].param_groups[0]["lr"]))

    trainer.train_step.update = update
    trainer.fit()
    rows = [row for row in trainer.run.metrics() if "loss" in row]
    assert all(len(row["lr"]) == len(row["loss"]) for row in rows)
    return [(row["step"], rate) for row in rows for rate in row["lr"]], used


def test_warm_up_and_cosine_by_hand(tmp_path):
    config = tiny.config("simclr", optim={"lr": 1.0, "warmup": "2steps"})
    written, used = rates_of(tiny.trainer(config, tmp_path / "run"))
    by_hand = [0, PEAK / 2, PEAK, 0.75 * PEAK, 0.25 * PEAK]
    assert written == used == [(step, pytest.approx(rate)) for step, rate in enumerate(by_hand)]


def test_each_learner_has_its_own(tmp_path):
    scope = {"kind": "blockwise", "per_block": {2: {"optim": {"lr": 0.5}}}}
    tree = tiny.config("simclr").model_dump(mode="json") | {"scope": scope}
    written, used = rates_of(tiny.trainer(check(tree), tmp_path / "run"))
    assert written == used
    assert [rate for step, rate in written if step == 0] == [PEAK, PEAK / 2, PEAK, PEAK]


def test_learners_that_overlap_share_one(tmp_path):
    written, used = rates_of(tiny.trainer(tiny.config("simclr", "overlapping"), tmp_path / "run"))
    assert written == used
    assert [rate for step, rate in written if step == 0] == [PEAK]


def test_blocks_in_turn_write_the_rate_of_their_own_turn(tmp_path):
    config = tiny.config("simclr", "sequential", train={"length": "8steps"})
    written, used = rates_of(tiny.trainer(config, tmp_path / "run"))
    assert written == used == [(step, pytest.approx([PEAK, PEAK / 2][step % 2])) for step in range(8)]


def test_milestones_by_hand_and_for_a_block_of_its_own(tmp_path):
    """Ten steps: a share, an epoch of 3 and a step; block 2 has the schedule of its own."""
    config = tiny.config(
        "simclr",
        "simultaneous",
        train={"length": "10steps"},
        optim={"lr": 16.0, "warmup": "2steps", "milestones": ["50%", "1epochs", "8steps"], "factor": 0.5},
    )
    tree = config.model_dump(mode="json")
    tree["scope"]["per_block"] = {2: {"optim": {"milestones": ["9steps"], "factor": 0.1}}}
    trainer = tiny.trainer(check(tree), tmp_path / "run")
    trainer.fit()
    rows = [row["lr"] for row in trainer.run.metrics() if "lr" in row]
    assert [row[0] for row in rows] == [0, 0.5, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125]
    assert [row[1] for row in rows] == pytest.approx([0, 0.5, *[1] * 7, 0.1])


def test_one_schedule_at_a_time():
    with pytest.raises(InputError, match="end is for half a cosine"):
        tiny.config("simclr", optim={"end": 0.1, "milestones": ["50%"]})
