"""What a run is told to change follows from its own config."""

import pytest
import tiny

from twinblock.config.recipes import compose
from twinblock.diagnosis import advice, verdict
from twinblock.diagnosis.advice import unfit

NO_NORM = ["projector.norm=none", "predictor.norm=none"]
CONTRASTIVE = ["simclr", "moco_v2", "moco_v3", "nnclr", "dcl", "sup_con", "pcl"]
SGD = ["optim.kind=sgd", "optim.lr=0.1"]


@pytest.mark.parametrize(
    ("recipe", "overrides", "words"),
    [
        ("byol", [*NO_NORM, *SGD], "neither head has batch norm and optim.kind=sgd"),
        ("byol", ["projector.norm=layer", "predictor.norm=group", *SGD], "neither head has batch norm"),
        ("byol", [*NO_NORM, "encoder.norm=none"], "no batch statistics anywhere"),
        ("byol", ["predictor=null"], "regression without a predictor"),
        ("byol", ["optim.kind=adamw", "optim.lr=2"], "this looks like LARS's"),
        ("byol", ["target.momentum=0"], "target.momentum=0"),
        ("byol", ["target.momentum=1"], "the target never moves"),
        ("byol", ["data.batch=4"], "data.batch=4: too few images for batch statistics"),
        ("simsiam", ["optim.weight_decay=0.1"], "optim.weight_decay=0.1 shrinks"),
        *((name, ["objective.temperature=20"], "objective.temperature=20 is unusual") for name in CONTRASTIVE),
        ("vicreg", ["objective.variance=0"], "objective.variance=0"),
        ("barlow_twins", ["objective.lambd=0"], "objective.lambd=0"),
    ],
)
def test_the_likely_cause_comes_first(recipe, overrides, words):
    assert words in advice("complete collapse", compose(recipe, overrides=overrides)).split("; ")[0]


@pytest.mark.parametrize("norm", ["batch", "sync"])
def test_batch_norm_in_either_head_is_enough(norm):
    for head in ("projector", "predictor"):
        config = compose("byol", overrides=[*NO_NORM, *SGD, f"{head}.norm={norm}"])
        assert "batch norm and optim" not in advice("complete collapse", config)
    last = compose("byol", overrides=[*NO_NORM, *SGD, f"projector.last_norm={norm}"])
    assert "batch norm and optim" not in advice("complete collapse", last)
    unused = compose("byol", overrides=[*NO_NORM, *SGD, "projector.dims=[8]", f"projector.norm={norm}"])
    assert advice("complete collapse", unused).startswith("neither head")


def test_a_config_without_a_known_cause_gets_the_general_advice():
    assert advice("complete collapse", compose("byol")).startswith(advice("complete collapse"))
    assert advice("healthy", compose("byol", overrides=NO_NORM)) == ""
    assert "neither" not in advice("diverging", compose("byol", overrides=[*NO_NORM, *SGD]))


def test_a_verdict_on_a_run_without_norm_says_so():
    config = compose("byol", overrides=[*NO_NORM, *SGD])
    point = {"std": 1e-6, "negative_cosine": 1.0, "positive_cosine": 1.0, "feature_norm": 1.0, "dimensions": 8.0}
    found = verdict([{"projector": {**point, "std": 0.3}}, *[{"projector": point}] * 2], config=config)
    assert (found.state, found.advice) == ("complete collapse", advice("complete collapse", config))


@pytest.mark.parametrize("recipe", ["simclr", "simsiam", "vicreg"])
def test_a_shared_target_is_not_told_to_move_more_slowly(recipe):
    assert "momentum" not in advice("complete collapse", compose(recipe))
    assert "target.momentum" in advice("complete collapse", compose("byol"))


@pytest.mark.parametrize("recipe", ["simclr", "byol", "moco_v2", "simsiam", "barlow_twins", "vicreg", "supervised"])
@pytest.mark.parametrize(
    "headline", ["not collapsed", "no better than untrained", "no better than raw pixels", "worse than untrained"]
)
def test_a_run_that_has_learned_nothing_gets_advice(recipe, headline):
    assert "train for longer" in advice("healthy", compose(recipe), headline)
    assert advice("healthy", None, headline)


def test_what_helped_other_runs_is_advised_where_a_run_goes_without():
    nothing = "no better than untrained"
    assert advice("healthy", compose("simclr"), nothing) == (
        "train for longer (train.length); optim.warmup=25%; or take the recipe vicreg with optim.lr=1.0"
    )
    assert "scope.pool=l2 scope.grid=2" in advice("healthy", compose("blockwise"), nothing)
    assert "optim.lr=1.0" in advice("healthy", compose("vicreg"), nothing)
    warm = compose("simclr", overrides=["optim.warmup=5%"])
    assert "warmup" not in advice("healthy", warm, nothing)
    assert "recipe vicreg" not in advice("healthy", compose("supervised"), nothing)


@pytest.mark.parametrize(("lr", "words"), [(1e-9, "far below what sgd needs"), (96, "far above what sgd takes")])
def test_a_rate_that_cannot_learn_is_the_first_advice(lr, words):
    config = compose("simclr", overrides=[f"optim.lr={lr}"])
    assert words in advice("healthy", config, "not collapsed").split("; ")[0]


def test_what_is_well_gets_no_advice():
    assert advice("healthy", compose("simclr"), "learned") == advice("healthy", compose("simclr")) == ""
    assert "test images" in advice("healthy", compose("simclr"), "too close to tell")
    assert "longer" in advice("healthy", compose("simclr"), "too early to tell")


@pytest.mark.parametrize("recipe", CONTRASTIVE)
def test_a_collapse_in_spite_of_negatives_is_one_of_the_learning_rate(recipe):
    assert "since there are negatives" in advice("complete collapse", compose(recipe))
    assert "since there are negatives" not in advice("complete collapse", compose("byol"))


@pytest.mark.parametrize("recipe", ["moco_v2", "nnclr", "pcl"])
def test_a_queue_is_filled_by_the_run_and_holds_an_image_once(recipe):
    """Random rows that stay to the end repel nothing real; a neighbour that is the image itself is a view of it."""

    def lines(queue, images, steps):
        return list(unfit(compose(recipe, overrides=[f"objective.queue={queue}", "data.batch=64"]), images, steps))

    assert lines(6400, 6400, 100) == []
    assert "objective.queue=6401 is never filled by the 6,400 images of this run" in lines(6401, 9000, 100)[0]
    assert "more than the 6,399 images, so an image meets itself" in lines(6400, 6399, 100)[0]
    assert list(unfit(compose("simclr"), 10, 1)) == []


def test_a_learner_that_trains_for_a_time_fills_its_queue_in_that_time(tmp_path, monkeypatch):
    """Nine steps in four phases: two steps of 16 images fill 32 rows, not 33."""
    said = []
    monkeypatch.setattr(tiny.Reporter, "warn", lambda _, line: said.append(line))
    for queue in (32, 33):
        config = tiny.config("moco_v2", "sequential", objective={"queue": queue}, train={"length": "9steps"})
        tiny.trainer(config, tmp_path / str(queue)).run.release()
    assert len(said) == 1 and "objective.queue=33 is never filled by the 32 images" in said[0]
