"""Recipes, overrides, and errors in one line."""

import pytest
import yaml

from twinblock.config.compare import differences, leaves
from twinblock.config.explain import ELSEWHERE, WITHOUT_FIELD
from twinblock.config.recipes import compose, recipes
from twinblock.core.errors import InputError


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_recipe_is_a_whole_run_with_few_fields(name):
    """Each name counts once, and a part that is absent has none. What describes the images is no matter of recipes."""
    for overrides in ([], ["scope.kind=blockwise"] if name in ("byol", "simclr", "moco_v2") else []):
        tree = compose(name, overrides=overrides).model_dump(mode="json")
        tree["views"] = tree["views"][:1]  # the second has the same fields
        absent = {"predictor": None, "data.longtail": None}.items()
        fields = [field for field in leaves(tree).items() if field not in absent]
        assert len([name for name, _ in fields if not name.startswith("data.")]) <= 80


HEADERS = ("Source", "Deviations", "Command")


def header_of(name: str) -> dict[str, str]:
    """The comment before a recipe's fields, by the word that begins each part; the first line is under ``."""
    parts, word = {"": ""}, ""
    for line in recipes()[name].read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#")
        if not text.startswith("   ") and ": " in text and parts[""]:
            word, text = text.strip().split(": ", 1)
        parts[word] = f"{parts.get(word, '')} {text.strip()}".strip()
    return parts


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_recipe_says_where_it_comes_from_and_what_differs(name):
    parts = header_of(name)
    assert ": " in parts[""]
    assert all(parts.get(word) for word in HEADERS), f"{name}.yaml does not say its {', '.join(HEADERS)}"
    words = " ".join(parts.values()).lower()
    for claim in ("none known", "no deviations", "deviations: none", "the authors' settings", "identical to"):
        assert claim not in words, f"{name}.yaml claims {claim!r}; say what was compared and what differs"


FROM_CODE_THAT_DECAYS_ALL = (
    "moco_v2",
    "moco_v2_imagenet",
    "moco_v2_stl10",
    "simsiam",
    "sdclr_cifar10_lt",
    "sdclr_imagenet100_lt",
)


@pytest.mark.parametrize("name", FROM_CODE_THAT_DECAYS_ALL)
def test_a_recipe_decays_biases_and_norms_as_its_source_does_or_says_so(name):
    said = "biases and norms do not decay" in header_of(name)["Deviations"].lower()
    assert compose(name).optim.exclude_bias_and_norm == said


@pytest.mark.parametrize("name", ["moco_v2_imagenet", "moco_v2_stl10", "moco_v2", "simsiam"])
def test_a_rate_that_fell_by_epochs_is_said_to_fall_by_steps(name):
    assert "step" in header_of(name)["Deviations"]
    assert "every epoch" in header_of(name)["Deviations"]


def test_published_runs_have_the_values_of_their_code():
    simclr, tail = compose("simclr_imagenet"), compose("sdclr_imagenet100_lt")
    assert simclr.encoder.kind == "timm/resnet50"  # its last norms of residual blocks start at zero
    assert (tail.encoder.norm, tail.projector.norm, tail.projector.last_norm) == ("sync", "sync", "sync")
    assert {view.interpolation for view in tail.views} == {"bicubic"}
    for name, words in (
        ("simclr_imagenet", ("momentum", "bias", "TensorFlow")),
        ("sdclr_cifar10_lt", ("one step ahead",)),
        ("sdclr_cifar100_lt", ("one step ahead",)),
        ("sdclr_imagenet100_lt", ("one step ahead",)),
    ):
        assert all(word in header_of(name)["Deviations"] for word in words), name


def test_overrides_reach_every_depth():
    config = compose("byol", overrides=["data=cifar10", "views.1.solarize=0.5", "data.batch=64", "out=a: b.yaml"])
    assert (config.data.source, config.views[1].solarize, config.data.batch, config.out) == (
        "cifar10",
        0.5,
        64,
        "a: b.yaml",
    )
    assert config.views[1].jitter == config.views[0].jitter  # like: 0


@pytest.mark.parametrize("recipe", ["simclr", "vicreg", "barlow_twins", "moco_v3", "nnclr", "dcl", "sup_con"])
def test_one_image_has_nothing_to_be_compared_with(recipe):
    """Where the other images of the batch are what repels; byol and moco_v2 train with one."""
    norms = ["data.batch=1", "encoder.norm=layer", "projector.norm=layer", "projector.last_norm=none"]
    predictor = ["predictor.norm=layer"] if recipe in ("moco_v3", "nnclr", "byol") else []
    with pytest.raises(InputError, match="compares the images of a batch"):
        compose(recipe, overrides=[*norms, *predictor])
    compose("moco_v2", overrides=norms)


def test_a_predictor_may_end_in_a_norm_like_a_projector():
    config = compose("moco_v3", overrides=["predictor.last_norm=batch", "predictor.last_affine=false"])
    assert config.norms_of_batches()[-1] == "predictor.last_norm=batch"
    norms = ["encoder.norm=none", "projector.norm=none", "projector.last_norm=none", "predictor.norm=none"]
    with pytest.raises(InputError, match=r"data.batch=1 with predictor.last_norm=batch: one sample"):
        compose("moco_v3", overrides=["data.batch=1", "predictor.last_norm=batch", *norms])


def test_another_kind_starts_from_its_own_fields():
    config = compose(
        "simclr", overrides=["objective.temperature=0.07", "objective.queue=99", "objective.kind=info_nce"]
    )
    assert config.objective.model_dump() == {
        "scale": 1.0,
        "kind": "info_nce",
        "temperature": 0.07,
        "queue": 99,
        "negatives": None,
    }


def test_a_word_for_a_part_is_its_kind(tmp_path):
    """On the command line, from Python and in a recipe; other fields may come before or after."""
    whole = compose("simclr", overrides=["scope.kind=blockwise", "scope.plan=sequential", "encoder.kind=resnet50"])
    path = tmp_path / "mine.yaml"
    path.write_text(recipes()["simclr"].read_text().replace("{kind: end_to_end}", "blockwise"))
    plan, words = "scope.plan=sequential", {"scope": "blockwise", "encoder": "resnet50"}
    assert compose("simclr", overrides=[plan, *(f"{part}={word}" for part, word in words.items())]) == whole
    assert compose("simclr", words, [plan]) == whole
    assert compose(path, overrides=[plan, "encoder=resnet50"]) == whole
    assert compose("simclr", overrides=["scope={kind: overlapping}"]).scope.kind == "overlapping"
    with pytest.raises(InputError, match="unknown kind 'blockwse'; did you mean blockwise"):
        compose("simclr", overrides=["scope=blockwse"])


def test_of_two_overrides_of_a_field_the_later_counts():
    field, part = "objective.scale=0.5", "objective={kind: nt_xent, temperature: 0.3, scale: 2.0}"
    assert compose("simclr", overrides=[field, part]).objective.scale == 2.0
    assert compose("simclr", overrides=[part, field]).objective.scale == 0.5
    assert compose("simclr", overrides=[part, field]).objective.temperature == 0.3


def test_fields_merge_and_a_path_is_a_recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(recipes()["simclr"].read_text().replace("seed: 0", "seed: 7"))
    config = compose(path, {"train": {"length": "3steps"}, "data": "somewhere/"})
    assert (config.train.seed, str(config.train.length), config.data.source) == (7, "3steps", "somewhere/")
    assert config.data.batch == 256  # kept


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.batchh=3"], "data.batchh: unknown field; did you mean data.batch?"),
        (["objective.kind=nt_xnt"], "unknown kind 'nt_xnt'; did you mean nt_xent"),
        (["objective.temprature=1"], "objective.temprature: unknown field; did you mean objective.temperature?"),
        (["target.kind=emma"], "did you mean ema"),
        (["views.0.jiter=3"], "views.0.jiter: unknown field; did you mean views.0.jitter?"),
        (["views.3.flip=1"], "views.3"),
        (["optim.lr=-1"], "optim.lr: should be greater than 0 (got -1)"),
        (["optim.lr=.nan"], "optim.lr"),
        (["train.length=100"], "train.length: not a duration: 100; write it as 80steps, 10epochs, 30min or 2h"),
        (["optim.warmup=often"], "optim.warmup: not a duration: 'often'; write it as 80steps, 10epochs or 25%"),
        (["train.keep=120%"], "train.keep: not a duration: '120%'; a share of the run is at most 100%"),
        (["data.batch=1"], "one sample has no batch statistics"),
        (["data.batch=1", "encoder.norm=layer", "projector.norm=layer"], "objective.kind=nt_xent compares the images"),
        (["foo"], "a.b=c"),
        (["train.length=" + "1" * 40 + "steps"], "not a duration"),
        (["train.checkpoint_every=0steps"], "100% is the end alone"),
        (["views.²=1"], "there is no number ²"),
        (["views.0.jitter=[.inf,0,0,0]"], "views.0.jitter.0: should be less than or equal to 1000"),
        (["projector.dims=64"], "projector.dims: should be a list, such as [64] (got 64)"),
        (["objective={kind: info_nce, temperature: 1, queue: 8, negatives: " + "9" * 400 + "}"], "objective.negatives"),
        (["data.a.b=1"], "data.a: unknown field"),
        (["encoder.norm=bach"], "should be 'batch', 'sync'"),
        (["objective=3"], "objective: should be a mapping"),
        (["objective={kind: 3}"], "objective.kind: unknown kind '3'"),
        (["views=[]"], "views:"),
        (["views=[{like: 3}]"], "views.0.like=3"),
        (["data.batch=[1"], "not valid YAML"),
        (
            ["objective.kind=info_nce"],
            "objective.queue: required, but missing; recipes have 4096 (moco_v2), 65536 (",
        ),
        (["target=ema"], "target.momentum: required, but missing; recipes have 0.99 (byol, dino, pcl), 0.999 ("),
        (["objective.kind=mine"], "unknown kind 'mine'"),
        (["scope.kind=blockwise", "scope.grid=2"], "grid is for pool=local"),
        (["objective.kind=supervised", "target.kind=ema", "target.momentum=0.9"], "labels"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(overrides, words):
    with pytest.raises(InputError) as caught:
        compose("simclr", overrides=overrides)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("encoder.pretrained=true", "unknown field; encoder.weights is pretrained, timm:TAG, a .safetensors"),
        ("encoder.weights=timm:", "timm: and then a tag"),
        ("encoder.checkpoint=a.pth", "encoder.checkpoint: unknown field; encoder.weights is pretrained, timm:TAG"),
        ("pretrained=true", "pretrained: unknown field; encoder.weights is pretrained"),
        ("encoder=resnet18.a1_in1k", "name with weights: write encoder=resnet18 encoder.weights=timm:a1_in1k"),
        ("encoder=hf-hub:timm/resnet18.a1_in1k", "write encoder=resnet18 encoder.weights=timm:a1_in1k"),
        ("train.devices=2", "torchrun --nproc-per-node"),
        ("data.num_workers=8", "no worker processes"),
        ("train.resume=true", "the same command with the same out goes on"),
        ("data.batch_size=16", "did you mean data.batch?"),
        ("train.max_epochs=3", "did you mean train.length=10epochs?"),
    ],
)
def test_a_word_of_another_library_gets_what_does_it_here(field, words):
    with pytest.raises(InputError) as caught:
        compose("simclr", overrides=[field])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_fields_that_hints_name_are_there():
    """Each word of another library is led to a field that a run has, or to none."""
    fields = [*leaves(compose("byol").model_dump(mode="json")), "encoder", "out"]
    assert {hint.partition("=")[0] for hint in ELSEWHERE.values()} <= {*fields}
    assert not ELSEWHERE.keys() & WITHOUT_FIELD.keys()


def test_what_another_objective_needs_is_named_with_the_values_of_recipes():
    """A user who takes a part of another method is given that method's own numbers."""
    words = r"temperature: required, but missing; recipes have 0.2 \(blockwise, sdclr, simclr\), 0.3 \("
    with pytest.raises(InputError, match=words):
        compose("byol", overrides=["objective=nt_xent"])
    own = compose("vicreg").objective
    assert compose("simclr", overrides=["objective=vicreg"]).objective == own


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(InputError, match="did you mean byol"):
        compose("bylo")


def test_a_recipe_that_is_no_mapping(tmp_path):
    for text in ("[1, 2]", "3", "", "a: [", "\x00"):
        path = tmp_path / "bad.yaml"
        path.write_text(text)
        with pytest.raises(InputError):
            compose(path, overrides=["data.batch=2"])


def test_configs_differ_by_field_and_auto_agrees_with_what_it_became():
    saved = compose("simclr", overrides=["encoder.kind=resnet18", "train.precision=fp32", "data.size=32"])
    assert differences(saved, compose("simclr")) == []
    clipped = compose("simclr", overrides=["optim.clip=1.0", "data.indices=rows.npy"])
    photos = [compose("simclr", overrides=[f"data={name}"]) for name in ("photos", "./photos/", "photo")]
    assert differences(photos[0], photos[1]) == []
    assert differences(photos[0], photos[2]) == ["data.source: photos there, photo here"]
    assert differences(clipped, compose("simclr")) == [
        "data.indices: rows.npy there, None here",
        "optim.clip: 1.0 there, None here",
    ]
    assert differences(saved, compose("simclr", overrides=["optim.lr=0.5", "encoder.kind=resnet50"])) == [
        "encoder.kind: resnet18 there, resnet50 here",
        "optim.lr: 0.06 there, 0.5 here",
    ]


def test_a_null_that_is_a_choice_agrees_with_nothing_else():
    """A null crop is the central square, and a null width that of the named network."""
    given = compose("simclr", overrides=["views.0.crop=[0.2,1.0]", "encoder.kind=resnet18", "encoder.width=16"])
    square = compose("simclr", overrides=["views.0.crop=null", "encoder.kind=resnet18"])
    fields = [text.split(":")[0] for text in differences(given, square)]
    assert "views.0.crop" in fields and "encoder.width" in fields


FORM = """
data:      {source: photodigits, root: null, batch: 256}
views:
  - {crop: [0.2, 1.0], flip: 0.5, jitter: [0.4, 0.4, 0.2, 0.1], jitter_p: 0.8, gray: 0.2, blur: 0.0, solarize: 0.0}
  - {like: 0, solarize: 0.2}
encoder:   {kind: resnet18, stem: auto, norm: batch}
learner:   null
projector: {dims: [4096, 256], norm: batch, last_norm: none}
predictor: {dims: [4096, 256], norm: batch}
target:    {kind: ema, momentum: 0.99}
objective: {kind: regression}
scope:     {kind: end_to_end}
optim:     {kind: lars, lr: 0.2, weight_decay: 1.5e-6, warmup: 10epochs}
train:     {length: 100epochs, seed: 0, precision: auto, checkpoint_every: 1epochs}
out: runs/byol
"""


def test_the_form_of_a_run_keeps_its_names(tmp_path):
    (tmp_path / "run.yaml").write_text(FORM)
    config = compose(tmp_path / "run.yaml").model_dump(mode="json")
    given = yaml.safe_load(FORM)
    assert list(config) == list(given)
    assert config["views"][1] == {**config["views"][0], "solarize": 0.2}
    given["views"][1] = {**given["views"][0], "solarize": 0.2}
    found = leaves(config)
    assert {name: found[name] for name in leaves(given)} == leaves(given)


def test_a_command_without_a_recipe_says_so():
    with pytest.raises(InputError, match="data=photos/: name a recipe first, such as simclr"):
        compose("data=photos/")
