"""What to change in a run that went wrong, from its own config: the likely cause first."""

from collections.abc import Iterator

from twinblock.config.schema import Config

GENERAL = {
    "healthy": "",
    "not started": "go on until the warm-up has ended; if nothing changes then, raise the learning rate",
    "complete collapse": "add batch norm to projector or predictor, use LARS, raise the target's momentum; "
    "with negatives, lower the learning rate or lengthen the warm-up",
    "leaving collapse": "let it run; a longer warm-up avoids the detour",
    "dimensional collapse": "lower the learning rate, lengthen the warm-up or add batch norm to the heads",
    "diverging": "lower the learning rate tenfold or lengthen the warm-up",
}

# beyond these, for 256 images a step, no published recipe that we know goes
HIGHEST_LR = {"sgd": 2.0, "lars": 5.0, "adamw": 1e-2}
HIGHEST_DECAY = {"sgd": 5e-3, "lars": 1e-3, "adamw": 0.5}
USUAL_LR = {"sgd": "0.03 to 0.8", "lars": "0.2 to 2", "adamw": "1e-4 to 1e-3"}
USUAL_DECAY = {"sgd": "1e-4 to 5e-4", "lars": "1e-6 to 1e-4", "adamw": "1e-6 to 0.1"}
TEMPERATURES = 0.03, 1.0  # published ones lie between 0.07 and 0.5
FEW_IMAGES = 16  # batch statistics of fewer are mostly noise


def advice(state: str, config: Config | None = None) -> str:
    """What to change, given a verdict's state; with a config, the likely causes in it, most likely first."""
    if config is None or state in ("healthy", "not started", "leaving collapse"):
        return GENERAL[state]
    found = list(causes(state, config))
    return "; ".join(found[:2]) if found else GENERAL[state]


def causes(state: str, config: Config) -> Iterator[str]:
    """The settings of a run that are known to lead to a state, each with what to set instead."""
    objective, optim, batch = config.objective, config.optim, config.data.batch
    if optim.lr > HIGHEST_LR[optim.kind]:
        lars = ", and this looks like LARS's" if optim.kind == "adamw" else ""
        yield f"optim.lr={optim.lr:g} is far above what {optim.kind} takes{lars}: try {USUAL_LR[optim.kind]}"
    if optim.weight_decay > HIGHEST_DECAY[optim.kind]:
        usual = USUAL_DECAY[optim.kind]
        yield f"optim.weight_decay={optim.weight_decay:g} shrinks the weights faster than they learn: try {usual}"
    if objective is None:  # a learner of one's own: nothing is known of its loss
        return
    if objective.kind in ("nt_xent", "info_nce"):
        low, high = TEMPERATURES
        if not low <= objective.temperature <= high:
            yield f"objective.temperature={objective.temperature:g} is unusual: try 0.1 to 0.5"
    if state == "diverging":
        return
    if objective.kind == "regression":
        yield from _without_contrast(config)
    if objective.kind == "vicreg" and objective.variance == 0:
        yield "objective.variance=0: nothing holds the embeddings apart; published 25"
    if objective.kind == "vicreg" and objective.covariance == 0 and state == "dimensional collapse":
        yield "objective.covariance=0: nothing holds the dimensions apart; published 1"
    if objective.kind == "barlow_twins" and objective.lambd == 0:
        yield "objective.lambd=0: nothing holds the dimensions apart; published 0.005"
    if config.target.kind == "ema" and config.target.momentum < 0.5 and objective.kind != "supervised":
        yield f"target.momentum={config.target.momentum:g}: the target follows the online network; published 0.99"
    if config.target.kind == "ema" and config.target.momentum == 1:
        yield "target.momentum=1: the target never moves; published 0.99"
    if batch < FEW_IMAGES and config.norms_of_batches():
        yield f"data.batch={batch}: too few images for batch statistics; take at least 64, or norm=group and layer"


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
