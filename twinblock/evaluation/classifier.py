"""A classifier: an encoder with a linear layer behind it, trained as a whole, and its place on the disk."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from twinblock.config.recipes import to_yaml
from twinblock.config.schema import Config
from twinblock.core.errors import InputError, nearest
from twinblock.core.files import new_folder
from twinblock.core.seeding import order
from twinblock.data import take
from twinblock.evaluation.goals import Goal
from twinblock.nn.encoders import Encoder
from twinblock.runs import checkpoint
from twinblock.runs.run import Run
from twinblock.views import Views

FILE = "classifier.safetensors"
MOMENTUM = 0.9


class Classifier(nn.Module):
    """Normalised images in, a score of each class out. The linear layer begins with zeros, so no seed matters to it."""

    def __init__(self, encoder: Encoder, classes: int):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        return self.head(self.encoder(images).to(self.head.weight.dtype))


@dataclass(frozen=True)
class Schedule:
    """How a classifier is trained: steps, images of each, crop and flip, modules that stay as they are, and where.

    `decay`: of all weights. `clip`: the largest norm of a gradient; None: any.
    """

    steps: int
    batch: int
    views: Views
    frozen: tuple[str, ...]
    device: torch.device
    decay: float
    clip: float | None


def need_modules(encoder: Encoder, names: Sequence[str]) -> None:
    """Raises InputError for a name of a module to freeze that the encoder does not have."""
    known = [name for name, _ in encoder.named_modules() if name]
    for name in names:
        if name not in (*known, "encoder"):
            near = nearest(name, known, 3) or known[:5]
            raise InputError(
                f"freeze={name}: this encoder has no such module; it has {', '.join(near)}, ... or encoder"
            )


def fit(encoder: Encoder, goal: Goal, rows: Int[np.ndarray, " n"], lr: float, seed: int, how: Schedule) -> Classifier:
    """Train a copy of an encoder with a linear layer on these rows of a goal's training images.

    SGD with Nesterov momentum, the rate falling by a cosine to 0. Images are drawn without replacement in each pass;
    the batches of a pass differ by one image at most. What is drawn depends on `seed`, the pass and the step alone.
    """
    images, targets = take(goal.images[0], rows), goal.targets[0][rows]
    model = Classifier(copy.deepcopy(encoder).float(), len(goal.names)).to(how.device)
    frozen = _freeze(model, how.frozen)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr, MOMENTUM, weight_decay=how.decay, nesterov=True
    )
    parts = max(1, -(-len(images) // how.batch))  # batches of a pass
    for step in range(how.steps):
        epoch, place = divmod(step, parts)
        some = np.array_split(order(seed, epoch, len(images)), parts)[place]
        where = {"seed": seed, "epoch": epoch, "step": place, "batch": len(some)}
        (view,) = how.views(images.batch(some).to(how.device), aspect=images.aspects(some), **where)
        model.train()
        for module in frozen:
            module.eval()
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + np.cos(np.pi * step / how.steps))
        optimizer.zero_grad()
        goal.loss(model(view), targets[some].to(how.device)).backward()
        if how.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), how.clip)
        optimizer.step()
    return model.eval()


def _freeze(model: Classifier, names: Sequence[str]) -> list[nn.Module]:
    """Modules whose weights and statistics stay."""
    frozen = [model.encoder if name == "encoder" else model.encoder.get_submodule(name) for name in names]
    for module in frozen:
        module.requires_grad_(False)
    return frozen


def save(model: Classifier, config: Config, names: Sequence[str], folder: Path, several: bool = False) -> None:
    """Write a classifier as the folder of a run, with the linear layer beside the encoder.

    `several`: an image may be of several classes, each with a probability of its own.
    """
    with new_folder(folder, replace=True) as partial:
        (partial / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        meta: dict[str, Any] = {"config": to_yaml(config), "classes": len(names), "names": list(names)}
        meta["several"] = several
        checkpoint.write(partial / "encoder.safetensors", model.encoder.state_dict(), meta)
        checkpoint.write(partial / FILE, model.head.state_dict(), meta)


class Head(NamedTuple):
    """The linear layer of a fine-tuned run, the names of its classes, and whether an image may be of several."""

    layer: nn.Linear
    names: list[str]
    several: bool


def head_of(run: Run) -> Head | None:
    """That of a run; None where there is none."""
    file = run.path / FILE
    if not file.is_file():
        return None
    tensors, meta = checkpoint.read(file)
    weight = tensors.get("weight", torch.zeros(0, 0))
    if weight.ndim != 2:
        raise InputError(f"{file} is damaged; fine-tune again")
    head = nn.Linear(weight.shape[1], weight.shape[0])
    checkpoint.fill(head, tensors, file)
    names = meta.get("names")
    if not isinstance(names, list) or len(names) != len(weight):
        names = range(len(weight))
    return Head(head, [str(name) for name in names], meta.get("several") is True)
