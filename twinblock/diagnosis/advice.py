"""What to change in a run that went wrong, from its own config: the likely cause first."""

import itertools
from collections.abc import Iterator
from typing import Any

from twinblock.config.schema import Config

GENERAL = {
    "healthy": "",
    "not started": "go on until the warm-up has ended; if nothing changes then, raise the learning rate",
    "complete collapse": "add batch norm to projector or predictor, or use LARS",
    "leaving collapse": "let it run; a longer warm-up avoids the detour",
    "dimensional collapse": "lower the learning rate, lengthen the warm-up or add batch norm to the heads",
    "diverging": "lower the learning rate tenfold or lengthen the warm-up",
}
LONGER = "train for longer (train.length)"
GENTLER = (
    "use the starting weights as they are, or change them less: a lower optim.lr, optim.layer_decay=0.7, "
    "encoder.freeze of the first modules"
)
RECONSTRUCTS_THE_MEAN = "reconstructs the mean"
POSTERIOR_COLLAPSE = "posterior collapse"
OF_HEADLINES = {  # where one has something to mend; most are of healthy runs
    RECONSTRUCTS_THE_MEAN: f"all begin so: {LONGER}, or raise optim.lr",
    POSTERIOR_COLLAPSE: f"{LONGER}, or lower learner.weight",
    "too early to tell": f"{LONGER}: at least some hundred steps",
    "too close to tell": "train for longer (train.length), or measure on more test images (twinblock evaluate)",
    "perhaps collapsing": "let it run; the next measurement will show it",
    "not collapsed": LONGER,
    "no better than untrained": LONGER,
    "no better than raw pixels": LONGER,
    "worse than untrained": LONGER,
    "no better than the starting weights": GENTLER,
    "worse than the starting weights": GENTLER,
}

# beyond these, for 256 images a step, no published recipe that we know goes
HIGHEST_LR = {"sgd": 2.0, "lars": 5.0, "adamw": 1e-2}
LOWEST_LR = {"sgd": 1e-3, "lars": 1e-2, "adamw": 1e-6}
HIGHEST_DECAY = {"sgd": 5e-3, "lars": 1e-3, "adamw": 0.5}
USUAL_LR = {"sgd": "0.03 to 0.8", "lars": "0.2 to 2", "adamw": "1e-4 to 1e-3"}
USUAL_DECAY = {"sgd": "1e-4 to 5e-4", "lars": "1e-6 to 1e-4", "adamw": "1e-6 to 0.1"}
TEMPERATURES = 0.03, 1.0  # published ones lie between 0.07 and 1
MOST_HIDDEN = 0.9  # of an image's patches; published results fall beyond
HEAVIEST = 10.0  # weight of a VAE's divergence; published ones of beta-VAEs go up to 250, for large images
FEW_IMAGES = 16  # batch statistics of fewer are mostly noise


def advice(state: str, config: Config | None = None, headline: str = "") -> str:
    """What to change, given a verdict's state; with a config, the likely causes in it, most likely first.

    `headline`: that of a finished run, whose state may be healthy although it has learned nothing.
    """
    if state == "healthy":
        general = OF_HEADLINES.get(headline, GENERAL[state])
        if general != LONGER or config is None:
            return general
        return "; ".join([*itertools.islice(too_fast_or_slow(config), 1), LONGER, *what_helps(config)])
    if headline in (RECONSTRUCTS_THE_MEAN, POSTERIOR_COLLAPSE):
        return "; ".join([*itertools.islice(causes(state, config), 2)] if config else []) or OF_HEADLINES[headline]
    if config is None or state in ("not started", "leaving collapse"):
        return GENERAL[state]
    steps = list(causes(state, config))
    return "; ".join(steps[:2] or [GENERAL[state], *in_general(state, config)])


def in_general(state: str, config: Config) -> Iterator[str]:
    """What keeps other runs from a collapse, of what this one has."""
    if state != "complete collapse":
        return
    if config.target.kind == "ema":
        yield "raise the target's momentum (target.momentum)"
    if is_contrastive(config):
        yield "lower the learning rate or lengthen the warm-up, since there are negatives"


def what_helps(config: Config) -> Iterator[str]:
    """What made runs better in our own measurements (docs/results.md), of what this one does without."""
    if config.labelled:
        return
    if config.learner is None and config.scope.kind != "end_to_end" and config.scope.pool != "l2":
        yield "scope.pool=l2 scope.grid=2"
    if not config.optim.warmup.amount:
        yield "optim.warmup=25%"
    if config.objective is not None and config.objective.kind != "vicreg":
        yield "or take the recipe vicreg with optim.lr=1.0"
    elif config.objective is not None and config.optim.kind == "lars" and config.optim.lr < 1:
        yield "optim.lr=1.0"


def causes(state: str, config: Config) -> Iterator[str]:
    """The settings of a run that are known to lead to a state, each with what to set instead."""
    objective, batch = config.objective, config.data.batch
    yield from too_fast_or_slow(config)
    if objective is None:  # another learner
        mask = getattr(config.learner, "mask", 0.0) if config.learner and config.learner.kind == "mae" else 0.0
        if mask > MOST_HIDDEN:
            yield f"learner.mask={mask:g} leaves too little to tell the rest by: published 0.75"
        weight = getattr(config.learner, "weight", 0.0) if config.learner and config.learner.kind == "vae" else 0.0
        if weight > HEAVIEST:
            yield f"learner.weight={weight:g} asks for an empty code: published 1"
        if "collapse" in state:
            yield "lower the learning rate or lengthen the warm-up"
        return
    if hasattr(objective, "temperature") and is_contrastive(config):
        low, high = TEMPERATURES
        if not low <= objective.temperature <= high:
            yield f"objective.temperature={objective.temperature:g} is unusual: try 0.1 to 0.5"
    if state == "diverging":
        return
    if config.objective_class is not None and not config.objective_class.repels:
        yield from _without_contrast(config)
    if objective.kind == "vicreg" and objective.variance == 0:
        yield "objective.variance=0: nothing holds the embeddings apart; published 25"
    if objective.kind == "vicreg" and objective.covariance == 0 and state == "dimensional collapse":
        yield "objective.covariance=0: nothing holds the dimensions apart; published 1"
    if objective.kind == "lpl" and objective.push == 0:
        yield "objective.push=0: nothing holds the embeddings apart; published 1"
    if objective.kind == "lpl" and objective.decorrelation == 0 and state == "dimensional collapse":
        yield "objective.decorrelation=0: nothing holds the dimensions apart; published 10"
    if objective.kind == "barlow_twins" and objective.lambd == 0:
        yield "objective.lambd=0: nothing holds the dimensions apart; published 0.005"
    if objective.kind == "dino":
        yield from _without_balance(objective)
    if objective.kind == "swav" and objective.epsilon > objective.temperature:
        yield f"objective.epsilon={objective.epsilon:g}: codes are hardly sharper than predictions; published 0.05"
    elif objective.kind == "swav":
        yield f"lower objective.epsilon={objective.epsilon:g}: short runs learned at 0.03 and stayed so at 0.05"
    if config.target.kind == "ema" and config.target.momentum < 0.5 and objective.kind != "supervised":
        yield f"target.momentum={config.target.momentum:g}: the target follows the online network; published 0.99"
    if config.target.kind == "ema" and config.target.momentum == 1:
        yield "target.momentum=1: the target never moves; published 0.99"
    if batch < FEW_IMAGES and config.norms_of_batches():
        yield f"data.batch={batch}: too few images for batch statistics; take at least 64, or norm=group and layer"


def is_contrastive(config: Config) -> bool:
    """Whether the loss seeks a positive among candidates."""
    cls = config.objective_class
    return cls is not None and cls.chance(config.objective, config.data.batch) is not None


def unfit(config: Config, images: int, steps: int) -> Iterator[str]:
    """What does not fit so many images, or so many steps in which a learner trains: said before a run begins."""
    queue, seen = getattr(config.objective, "queue", 0), steps * config.data.batch
    if not isinstance(queue, int):  # of a class of one's own
        return
    if queue > seen:
        yield f"objective.queue={queue} is never filled by the {seen:,} images of this run: lower it, or train longer"
    elif queue > images and is_contrastive(config):
        yield f"objective.queue={queue} holds more than the {images:,} images, so an image meets itself there: lower it"


def too_fast_or_slow(config: Config) -> Iterator[str]:
    """Learning rates and weight decays that no published recipe that we know comes near."""
    optim = config.optim
    if optim.lr > HIGHEST_LR[optim.kind]:
        lars = ", and this looks like LARS's" if optim.kind == "adamw" else ""
        yield f"optim.lr={optim.lr:g} is far above what {optim.kind} takes{lars}: try {USUAL_LR[optim.kind]}"
    if optim.lr < LOWEST_LR[optim.kind]:
        yield f"optim.lr={optim.lr:g} is far below what {optim.kind} needs: try {USUAL_LR[optim.kind]}"
    if optim.weight_decay > HIGHEST_DECAY[optim.kind]:
        usual = USUAL_DECAY[optim.kind]
        yield f"optim.weight_decay={optim.weight_decay:g} shrinks the weights faster than they learn: try {usual}"


def _without_balance(objective: Any) -> Iterator[str]:
    """What holds DINO's targets between one prototype for all and all alike: the centre, and a low temperature."""
    if objective.momentum == 1:
        yield "objective.momentum=1: the centre never moves, so that one prototype can take all; published 0.9"
    if objective.target_temperature >= objective.temperature:
        yield (
            f"objective.target_temperature={objective.target_temperature:g} is not below objective.temperature="
            f"{objective.temperature:g}: nothing sharpens the targets; published 0.04 and 0.1"
        )


def _without_contrast(config: Config) -> Iterator[str]:
    """Regression repels nothing: what keeps BYOL and SimSiam from the constant solution."""
    if config.predictor is None:
        yield "predictor=null: regression without a predictor has nothing against a constant; set predictor.dims"
    elif not has_batch_statistics(config) and config.optim.kind != "lars":
        yield (
            f"neither head has batch norm and optim.kind={config.optim.kind}: set projector.norm=batch, "
            "predictor.norm=batch or optim.kind=lars"
        )
    elif not has_batch_statistics(config) and not config.norms_of_batches():
        yield (
            "no batch statistics anywhere: set projector.norm=batch, or take the recipe byol_gn_ws, which does "
            "without by group norm and weight standardisation"
        )
    elif not has_batch_statistics(config):
        yield "neither head has batch norm: set projector.norm=batch or predictor.norm=batch"


def has_batch_statistics(config: Config) -> bool:
    """Whether a head normalises over the batch."""
    return any(not field.startswith("encoder") for field in config.norms_of_batches())
