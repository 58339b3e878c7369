"""Pruning-identified exemplars: the images whose features move most when the smallest weights are pruned."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from twinblock.assembly.views import views_of
from twinblock.config.data import Data
from twinblock.config.schema import Config
from twinblock.core.device import best_device
from twinblock.core.errors import InputError
from twinblock.core.files import need_writable, replacing, write_table
from twinblock.core.pictures import as_png, colours, literal, optional_picture
from twinblock.core.seeding import order
from twinblock.core.settings import own_settings
from twinblock.data import Images, columns_of, take
from twinblock.data.training import chosen, training, whole
from twinblock.data.values import seen_as
from twinblock.evaluation.features import at_once, at_size, features, pixels, seen_by
from twinblock.evaluation.groups import thirds
from twinblock.methods.learner import Network, parts_of
from twinblock.methods.stacks import Stack
from twinblock.methods.targets.pruned import Pruned
from twinblock.nn.encoders import Encoder
from twinblock.nn.modes import evaluating
from twinblock.nn.pooling import Noise, Pooling
from twinblock.runs import checkpoint
from twinblock.runs.run import Run
from twinblock.runs.state import restored
from twinblock.views import ValueRange

RATIO = 0.9  # where neither the run nor the caller names one: SDCLR's on CIFAR
NEIGHBOURS, BANK = 10, 20_000
TOP = 0.05  # share of the images that lift looks at
SHOWN, COLUMNS, TILE = 64, 8, 64  # images in either half of the picture and in a row, and their largest side in pixels
SCORES = ("moved", "loss", "neighbours")


class PrunedEncoder(nn.Module):
    """An encoder as pruned targets see images, (n, 3, s, s) to (n, d): each target runs its own of the networks."""

    def __init__(self, encoder: Encoder, networks: Sequence[nn.Module], targets: Sequence[nn.Module]):
        super().__init__()
        self.encoder, self.networks, self.targets = encoder, nn.ModuleList(networks), nn.ModuleList(targets)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for network, target in zip(self.networks, self.targets, strict=True):
            ((x,),) = target(network, [Stack(x, [(0,)])], False)
        return self.encoder.pooled(x)


@own_settings()
def exemplars(
    run: Run | str | Path, data: Any = None, ratio: float | None = None, *, encoder: nn.Module | None = None
) -> list[dict[str, Any]]:
    """Rank images, the run's own or those of `data`, by the cosine distance of dense and pruned features.

    `data`: another source, or images, as `pretrain` takes them. `encoder`: the module that the run was made with.
    `ratio`: the share of the smallest weights to mask, 0.9 by default; the statistics of batch norms are then measured
    anew. Without `ratio`, a run with the pruned target uses its own pruned network. Writes exemplars.csv (and .parquet
    if pyarrow is installed), exemplars.png (images that move most above those that move least) and exemplars.json into
    the run. If classes are of unequal size, returns how well this score and two simple ones find the rare third: AUROC
    (chance: 0.5) and lift in the top 5 % (chance: 1). Hooker et al. 2019, What Do Compressed Deep Neural Networks
    Forget?
    """
    run = Run.open(run, encoder=encoder)
    config = run.config
    other = data is not None and (not isinstance(data, Mapping) or "source" in data)  # else the run's own images
    source, held = chosen(whole(config.data) if other else config.data, data, run.objects.get("data"))
    if ratio is not None and not 0 <= ratio < 1:
        raise InputError(f"ratio={ratio}: the share of weights to prune is at least 0 and less than 1")
    need_writable(run.path)
    images = training(source, held)
    seen = seen_as(config, source, images).data.model_copy(update={"size": source.size})
    device = best_device()
    scores = measure(run, images, ratio, seen, device)
    ranking = np.argsort(-scores["moved"], kind="stable")
    _write_tables(run, images, scores, ranking)
    with optional_picture(run.path / "exemplars.png"):
        title = f"{run.path}: pruning-identified exemplars of {source.source_name}"
        run.write("exemplars.png", _picture(images, ranking, title, seen.seen["value_range"]))
    findings = _judge(scores, images.labels)
    run.write_json(
        "exemplars.json", {"data": source.source_name, "images": len(images), "ratio": ratio, "scores": findings}
    )
    return findings


def measure(
    run: Run, images: Images, ratio: float | None, data: Data, device: torch.device
) -> dict[str, Float[np.ndarray, " n"]]:
    """For each image: how far pruning moves it, how far its two views lie apart, how far its neighbours are.

    All are cosine distances of the encoder's features of images as `data` has them seen; the last is the mean over the
    10 nearest other images.
    """
    encoder = run.encoder()
    config = at_size(run.config, encoder, data.size)
    config = config.model_copy(update={"data": data.model_copy(update={"size": config.data.size})})
    how = seen_by(config, device)
    dense = features(encoder.to(device), images, **how)
    pruned = _trained(run) if ratio is None else None
    if pruned is None:
        of_run = config.target.ratio if config.target.kind == "pruned" else RATIO
        pruned = _made(encoder, of_run if ratio is None else ratio).to(device)
        _calibrate(pruned, images, how)
    moved = 1 - cosine_similarity(dense, features(pruned.to(device), images, **how))
    apart = _views_apart(encoder, images, config, device)
    scores = {"moved": moved, "loss": apart, "neighbours": _distance_to_neighbours(dense, config.train.seed)}
    if not all(x.isfinite().all() for x in scores.values()):
        raise InputError(f"the features of {run.path} hold NaN or infinity: has the encoder diverged?")
    return {name: x.double().numpy() for name, x in scores.items()}


def _trained(run: Run) -> PrunedEncoder | None:
    """The run's own pruned network; None where it has none, or, of pairs that overlap, two of each block."""
    if run.config.target.kind != "pruned" or run.config.scope.kind == "overlapping":
        return None
    file, held = checkpoint.newest(run.checkpoints)
    encoder, learners = restored(run.config, file, *held, run.objects)
    parts = [part for learner in learners for part in parts_of(learner)]
    return PrunedEncoder(encoder, [part.network for part in parts], [part.target for part in parts])


def _made(encoder: Encoder, ratio: float) -> PrunedEncoder:
    """An encoder whose smallest weights, of all blocks together, are masked."""
    pooling = Pooling(encoder.width, prefix=encoder.prefix)
    network = Network([nn.Sequential(*encoder.as_blocks())], pooling, nn.Identity(), Noise(0.0))
    return PrunedEncoder(encoder, [network], [Pruned(network, ratio)])


@torch.no_grad()
def _calibrate(pruned: PrunedEncoder, images: Images, how: Mapping[str, Any]) -> None:
    """Set the statistics of its batch norms to those that its own activations have on these images."""
    batch_norm = nn.modules.batchnorm._BatchNorm
    for norm in pruned.targets.modules():
        if isinstance(norm, batch_norm):
            norm.reset_running_stats()
    # the tensors are those of the target, the modules that read mode and momentum those of the network
    norms = [m for m in pruned.networks.modules() if isinstance(m, batch_norm)]
    for norm in norms:
        norm.momentum = None  # the plain mean over batches

    class Training(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for norm in norms:
                norm.train()
            return pruned(x)

    if norms:
        features(Training(), images, **how)
    pruned.eval()


def _views_apart(encoder: Encoder, images: Images, config: Config, device: torch.device) -> Tensor:
    """1 - cos of the features of two random views, as the loss of most objectives has it."""
    assert config.data.size is not None
    views = views_of(config, config.views if len(config.views) == 2 else config.views * 2)
    distances, together = [], at_once(config.data.size)
    for step, index in enumerate(np.array_split(np.arange(len(images)), -(-len(images) // together))):
        where = {"seed": config.train.seed, "epoch": 0, "step": step, "batch": len(index)}
        pair = views(images.batch(index).to(device), aspect=images.aspects(index), **where)
        with torch.no_grad(), evaluating(encoder):
            distances.append(1 - cosine_similarity(*(encoder(view).float().cpu() for view in pair)))
    return torch.cat(distances)


def _distance_to_neighbours(rows: Float[Tensor, "n d"], seed: int) -> Float[Tensor, " n"]:
    unit = normalize(rows)
    banked = torch.as_tensor(order(seed, -4, len(rows))[:BANK])
    bank, k = unit[banked].T, min(NEIGHBOURS, len(banked) - 1)
    distances = []
    for index in torch.arange(len(rows)).split(1000):
        near = (unit[index] @ bank).masked_fill_(index[:, None] == banked, -torch.inf)  # no image is its own neighbour
        distances.append(1 - near.topk(k).values.mean(1))
    return torch.cat(distances)


def _judge(scores: Mapping[str, np.ndarray], labels: Int[np.ndarray, " n"] | None) -> list[dict[str, Any]]:
    """AUROC and lift of each score for the images of the rare third of the classes; none where there is no tail."""
    if labels is None or (labels < 0).any():
        return []
    sizes = np.bincount(labels)
    sizes, present = sizes[sizes > 0], np.flatnonzero(sizes)
    group = thirds(sizes)
    if len(sizes) < 3 or sizes.max() < 2 * sizes.min():
        return []
    rare = np.isin(labels, present[group == 2])
    return [{"score": name, "AUROC": auroc(scores[name], rare), "lift": lift(scores[name], rare)} for name in SCORES]


def auroc(score: Float[np.ndarray, " n"], positive: np.ndarray) -> float:
    """Chance that a positive has a higher score than a negative; ties count half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, score))


def lift(score: Float[np.ndarray, " n"], positive: np.ndarray, top: float = TOP) -> float:
    """Share of positives in the top part of the scores over their share in all."""
    first = np.argsort(-score, kind="stable")[: max(1, round(top * len(score)))]
    return float(positive[first].mean() / positive.mean())


def _write_tables(run: Run, images: Images, scores: Mapping[str, np.ndarray], ranking: np.ndarray) -> None:
    columns = columns_of(images, ranking) | {name: scores[name][ranking] for name in SCORES}
    kinds = ("csv", "parquet") if find_spec("pyarrow") else ("csv",)  # it comes with `pip install twinblock[hf]`
    for kind in kinds:
        with replacing(run.path / f"exemplars.{kind}") as file:
            write_table(file, kind, columns)


def _picture(images: Images, ranking: np.ndarray, title: str, value_range: ValueRange) -> bytes:
    """A PNG of two grids of 8 x 8 images: those that move most, and below them those that move least."""
    from matplotlib.figure import Figure

    shown = min(SHOWN, len(ranking))
    side = min(TILE, max(images.pixels.shape[1:3]))
    halves = {"move most when weights are pruned": ranking, "move least": ranking[::-1]}
    drawing = Figure(figsize=(7, 15), layout="constrained")
    drawing.suptitle(literal(title))
    for axes, (words, ranked) in zip(drawing.subplots(2, 1), halves.items(), strict=True):
        flat = pixels(take(images, ranked[:shown]), side, value_range=value_range)
        axes.imshow(_grid(flat.view(len(flat), -1, side, side)), interpolation="nearest")
        axes.set_title(f"the {shown} of {len(ranking):,} images that {words}", fontsize="medium", loc="left")
        axes.set_axis_off()
    return as_png(drawing)


def _grid(images: Float[Tensor, "n c s s"]) -> np.ndarray:
    """Tiles, eight in a row, on white."""
    tiles, side = colours(images), images.shape[2]
    step = side + max(1, side // 16)
    canvas = np.ones((-(-len(tiles) // COLUMNS) * step, COLUMNS * step, 3), np.float32)
    for i, tile in enumerate(tiles):
        top, left = i // COLUMNS * step, i % COLUMNS * step
        canvas[top : top + side, left : left + side] = tile
    return canvas
