"""A verdict on a run, in words: has it learned, is it learning, or has it collapsed?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from twinblock.config.schema import Config
from twinblock.diagnosis.advice import POSTERIOR_COLLAPSE, RECONSTRUCTS_THE_MEAN, advice
from twinblock.diagnosis.chance import LEARNED, Accuracy, by_accuracy, loss_at_chance
from twinblock.runs.metrics import history_of

ALIKE = 0.99  # mean cosine, within and between images, above which embeddings point one way
FALLEN = 0.5  # part of the first spread: untrained networks may start alike too, but only a collapse goes on
ALONE = 0.01  # spread of a finished run that means collapse however it began, unless it rises; 0.05 is common untrained
RISING = 3.0  # times the lowest spread so far: more than the noise of a collapsed run
LEFT = 0.95  # mean cosine between images below which a collapse lies behind
SHRUNK = 0.2  # part of the first distances below which a cosine above LEFT is a collapse, to a point, not a direction
ONE, SEVERAL = 1.2, 3.0  # prototypes in use: a collapse, and what it can fall from
UNIFORM, SHARPER = 0.999, 0.99  # entropy of the shares: a collapse, and what it can rise from
GONE = 1e-6  # part of the first length below which embeddings are zero
EXPLODED = 1e4  # root mean square of an embedding's entries; up to 10 in healthy runs, 100 in collapsed ones
MEAN = 0.01  # of the pixels' variance between images, that of reconstructions which hardly tell images apart
EMPTY = 0.1  # nats of an image in a code: less than what two kinds of images take, log 2
FEW = 3.0, 0.02  # directions, and share of the possible ones, below which features are poor

# what "learned" needs beside a healthy state
SURE = 2.0  # standard errors
MORE = 0.02  # agreement of views beyond the untrained network's, at least, on the scale from 0 to 1
FEWER = 1 / 3  # part of the untrained network's directions: a rate far too high leaves some, in which views do agree
BEGUN = "untrained", "with the starting weights"  # how a run began, without `encoder.weights` and with
EARLY = 50  # steps; what a few steps do says nothing


# from good to bad
STATES = "healthy", "not started", "leaving collapse", "dimensional collapse", "diverging", "complete collapse"


@dataclass(frozen=True)
class Verdict:
    """What has become of a run: its state, its headline, the numbers behind it, what to change."""

    state: str
    headline: str
    evidence: str
    advice: str = ""


def judge(
    rows: Sequence[Mapping[str, Any]],
    starts: Sequence[int],
    config: Config,
    finished: bool = True,
    accuracy: Accuracy | None = None,
) -> list[Verdict]:
    """The verdict on each Learner of a run, by the rows of its metrics; `worst` of them is that on the run.

    `starts`: the step at which each begins. `accuracy`: of the encoder, which the last Learner ends.
    """
    by_learner = []
    for i, start in enumerate(starts):
        # one loss for each Learner: those that overlap have one together, and those in turn write only their own
        losses = [row["loss"][i] for row in rows if len(row.get("loss", ())) == len(starts)]
        measured = accuracy if i == len(starts) - 1 else None
        history = history_of(rows, i, start)
        by_learner.append(verdict(history, finished, config.of_block(i + 1), losses, measured))
    return by_learner


def verdict(
    history: Sequence[Mapping[str, Any]],
    finished: bool = False,
    config: Config | None = None,
    losses: Sequence[float] = (),
    accuracy: Accuracy | None = None,
) -> Verdict:
    """Judge one Learner by its rows in order of time, the first from before training; `finished`: it ended.

    A row may hold `step`, `loss`, and what `indicators` gives for the outputs of `encoder` and `projector`, or, of the
    embeddings alone, in the row itself. It may hold `agreement`, as `measures.agreement` gives it of the encoder; and
    the first one `untrained`: the agreement and `centred_rank` of the untrained network once its batch norms have seen
    images.

    Collapse is judged by the projector: objectives see its output, and features behind a ReLU are alike even
    untrained. Directions are counted at the encoder: it is what one keeps, and an objective may ask for few.
    A healthy run learns if views agree clearly more than by chance and than in the untrained network, in not many fewer
    directions, a contrastive loss (`losses`, one a step) is clearly below chance, and it never collapsed on the way.
    Of a learner that reconstructs, rows hold `reconstruction` and the true `pixels`: it has to tell images apart there.
    Of one with a code, they hold its `divergence` from noise in nats, at least what the code tells of an image.
    Where `accuracy` says anything of a finished run, it decides instead.
    The advice names what in `config` is the likely cause.
    """
    started = config is not None and config.encoder.weights is not None
    judged = _judge(history, finished, loss_at_chance(losses, config), BEGUN[started])
    judged = _by_reconstruction(judged, history, finished)
    if judged.state == STATES[0] and accuracy is not None and judged.headline != "too early to tell":
        judged = replace(judged, **by_accuracy(judged.headline, judged.evidence, accuracy, config))
    return replace(judged, advice=advice(judged.state, config, judged.headline if finished else ""))


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The worst of those of several Learners, of equals the last; a bad one says which Learner it is of."""
    i = max(range(len(verdicts)), key=lambda i: (STATES.index(verdicts[i].state), i))
    least = verdicts[i]
    if len(verdicts) == 1 or least.state == STATES[0]:
        return least
    return replace(least, evidence=f"Learner {i + 1} of {len(verdicts)}: {least.evidence}")


def outcome(
    rows: Sequence[Mapping[str, Any]], starts: Sequence[int], config: Config, accuracy: Accuracy | None
) -> dict[str, Any]:
    """What `result.json` says of a finished run: the verdict, those on its Learners, and the accuracy behind them."""
    verdicts = judge(rows, starts, config, accuracy=accuracy)
    return {
        **asdict(worst(verdicts)),
        "learners": [asdict(one) for one in verdicts],
        "starts": list(starts),
        "knn": None if accuracy is None else dict(accuracy.top1),
        "accuracy": None if accuracy is None else asdict(accuracy),
    }


def _judge(history: Sequence[Mapping[str, Any]], finished: bool, at_chance: str, begun: str) -> Verdict:
    history = [{"projector": row, **row} if "std" in row else row for row in history]  # indicators alone
    measurements = [row for row in history if "projector" in row or "encoder" in row]
    losses = [row["loss"] for row in history if "loss" in row]
    z = [row["projector" if "projector" in row else "encoder"] for row in measurements]
    h = [row["encoder" if "encoder" in row else "projector"] for row in measurements]
    if diverging := _diverging(losses, [*z[-1:], *h[-1:]]):
        return _verdict("diverging", diverging)
    if not measurements or (len(measurements) == 1 and not finished):
        return _verdict("not started", "nothing measured after the start yet")

    cosine = np.array([min(_positive(row), row["negative_cosine"]) for row in z])
    spread = np.array([row["std"] * row["dimensions"] ** 0.5 for row in z])  # 0: one point; 1: isotropic
    length = np.array([row["feature_norm"] for row in z])
    apart = spread * length
    shrunk = (cosine > LEFT) & (apart < SHRUNK * apart[0])
    gone = length <= GONE * length[0]  # zero has no direction, and its cosines are 0
    alike = ((cosine > ALIKE) | shrunk | gone) & (not MEAN <= _told_apart(measurements[-1]) < math.inf)
    steps_taken = measurements[-1].get("step", EARLY) - measurements[0].get("step", 0)
    early = finished and steps_taken < EARLY
    alone = ALONE if finished and not early and spread[-1] <= RISING * spread[0] else 0.0
    fallen = alike & (shrunk | gone | (spread < max(FALLEN * spread[0], alone)))
    was_collapsed = (fallen[:-1] & fallen[1:]).any()  # one measurement may be a stumble of the first steps
    cosines = _cosines(z[-1])
    rising = spread[-1] > RISING * spread.min() and spread[-1] >= spread[-2]
    if was_collapsed and (rising if alike[-1] else z[-1]["negative_cosine"] > LEFT):
        return _verdict("leaving collapse", cosines)
    if fallen[-1] and (finished or fallen[-2]):
        size = f", distances {apart[-1] / apart[0]:.1g} of the first" if shrunk[-1] else ""
        size = ", all zero" if gone[-1] else size
        return _verdict("complete collapse", f"{cosines}, spread {spread[-1]:.1g} after {spread[0]:.1g} at first{size}")
    if emptied := _emptied(measurements, finished and not early):
        return _verdict("complete collapse", emptied)
    if alike.all():
        return _verdict("not started", f"no further apart than in an untrained network: {cosines}")

    most = min(h[-1]["samples"] - 1, h[-1]["dimensions"])
    few = min(most / 2, max(FEW[0], FEW[1] * most))
    steps = [row.get("step", i) for i, row in enumerate(measurements)]
    late = [row["centred_rank"] for row, step in zip(h, steps, strict=True) if step >= steps[-1] / 2]
    directions = f"{late[-1]:.1f} of {most:.0f} directions in use"
    lasting = finished or (len(late) > 1 and max(late) < FALLEN * h[0]["centred_rank"])
    if max(late) < few and lasting:
        return _verdict("dimensional collapse", f"{directions}, {h[0]['centred_rank']:.1f} at first")
    if len(measurements) == 1:
        return _verdict("healthy", f"{cosines}, {directions}", "not collapsed")
    agreement, doubts = _doubts(measurements, h, begun)
    doubts += [at_chance] if at_chance else []
    evidence = "; ".join([f"{cosines}, {directions}, {agreement}", *doubts])
    headline = "not collapsed" if doubts or was_collapsed else LEARNED if finished else "learning"
    if early:
        headline, evidence = "too early to tell", f"{steps_taken} steps are too few: {evidence}"
    if fallen[-1]:
        headline = "perhaps collapsing"
    if was_collapsed:  # what it had may be lost, which the agreement of views does not show
        evidence = f"recovered from a collapse, so only labels can tell what it kept: {evidence}"
    return _verdict("healthy", evidence, headline)


def _diverging(losses: Sequence[float], last: Sequence[Mapping[str, float]]) -> str:
    """That the loss or the last embeddings are no numbers, or too large ones, in words; empty where they are fine."""
    if losses and not math.isfinite(losses[-1]):
        return f"the loss is {losses[-1]}"
    if any(math.isnan(row["std"]) for row in last):
        return "embeddings hold NaN or infinity"
    size = max((row["feature_norm"] / row["dimensions"] ** 0.5 for row in last), default=0.0)
    return f"the entries of embeddings have grown to {size:.2g}" if size > EXPLODED else ""


def _emptied(measurements: Sequence[Mapping[str, Any]], settled: bool) -> str:
    """That prototypes no longer tell images apart, in words; empty where they do, or there are none.

    Before training they may not either. So it is called where they did, or where a run has settled without.
    """
    rows = [row["prototypes"] for row in measurements if "prototypes" in row]
    if len(rows) < 2:
        return ""
    last = rows[-1:] if settled else rows[-2:]
    used, uncertainty = ([row[name] for row in rows] for name in ("used", "uncertainty"))
    count = f"{rows[-1]['prototypes']:.0f}"
    if max(row["used"] for row in last) < ONE and (settled or max(used) > SEVERAL):
        return f"all images choose the same one of {count} prototypes; {max(used):.1f} were in use before"
    if min(row["uncertainty"] for row in last) > UNIFORM and min(uncertainty) < SHARPER:
        return (
            f"each image has all {count} prototypes alike: entropy {uncertainty[-1]:.4f}, {min(uncertainty):.2f} before"
        )
    return ""


def _by_reconstruction(judged: Verdict, history: Sequence[Mapping[str, Any]], finished: bool) -> Verdict:
    """The verdict on a learner whose decoder gives every image the same, in place of what features say."""
    looks = [row for row in history if "reconstruction" in row]
    judgeable = len(looks) > 1 or (looks and finished)
    if not judgeable or judged.state == "diverging":
        return judged
    state = judged.state if "collapse" in judged.state else "not started"
    if (told := looks[-1].get("divergence", math.inf)) < EMPTY:
        return _verdict(state, f"the code tells {told:.2g} nats of an image; {judged.evidence}", POSTERIOR_COLLAPSE)
    if not (share := _told_apart(looks[-1])) < MEAN:
        return judged
    evidence = f"between images, reconstructions have {share:.1g} of the pixels' variance; {judged.evidence}"
    return _verdict(state, evidence, RECONSTRUCTS_THE_MEAN)


def _told_apart(row: Mapping[str, Any]) -> float:
    """The variance of reconstructions between images as part of the pixels', about what they explain; else infinite."""
    if not {"reconstruction", "pixels"} <= row.keys():
        return math.inf
    found, true = (row[x]["feature_norm"] ** 2 * (1 - row[x]["negative_cosine"]) for x in ("reconstruction", "pixels"))
    return found / max(true, 1e-12)


def _doubts(
    measurements: Sequence[Mapping[str, Any]], h: Sequence[Mapping[str, float]], begun: str
) -> tuple[str, list[str]]:
    """How much views agree, in words, and what speaks against having learned. `begun`: how the run began."""
    untrained = measurements[0].get("untrained") or {}
    now = _agreement(measurements[-1], h[-1])
    # both without and with statistics of batch norms: training has to be better than either
    before = max(_agreement(row, h[0]) for row in (measurements[0], untrained) if row)
    doubts = []
    if now[0] <= max(SURE * now[1], MORE):
        doubts.append("views of an image agree no more than those of different images")
    elif now[0] <= before[0] + max(SURE * math.hypot(now[1], before[1]), MORE):
        doubts.append("that is not clearly more")
    rank = untrained.get("centred_rank", h[0]["centred_rank"])
    if h[-1]["centred_rank"] < FEWER * rank:
        doubts.append(f"{rank:.1f} directions {begun}, far more than now")
    return f"views agree to {_show(*now)} after {_show(*before)} {begun}", doubts


def _show(value: float, error: float) -> str:
    return f"{value:.2f} ± {error:.2f}" if error else f"{value:.2f}"


def _cosines(row: Mapping[str, float]) -> str:
    """In words; one view has no cosine within images."""
    between = f"{row['negative_cosine']:.4f} between"
    if "positive_cosine" not in row:
        return f"cosine {between} images (one view of each: none within images)"
    return f"cosine {row['positive_cosine']:.4f} within images, {between}"


def _positive(row: Mapping[str, float]) -> float:
    """One view alone has no cosine within images, but that is hardly ever below the one between them."""
    return row.get("positive_cosine", row["negative_cosine"])


def _agreement(measurement: Mapping[str, Any], outputs: Mapping[str, float]) -> tuple[float, float]:
    """Of the difference between images, the part that two views of one share: 0 chance, 1 invariance; and its error."""
    if "agreement" in measurement:
        value, error = measurement["agreement"]
        return value, error
    between = outputs["negative_cosine"]
    return (_positive(outputs) - between) / max(1 - between, 1e-12), 0.0


def _verdict(state: str, evidence: str, headline: str | None = None) -> Verdict:
    return Verdict(state, headline or state, evidence)
