"""The diagnosis that is always on: a fixed sample of images, measured now and then, for about 1 % of the time."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from twinblock.assembly.plan import Plan
from twinblock.config.data import Data
from twinblock.config.schema import Config
from twinblock.core.errors import InputError
from twinblock.core.seeding import order
from twinblock.data import Images
from twinblock.data.training import split_of
from twinblock.diagnosis.looks import SAMPLE, Looks, begun
from twinblock.diagnosis.measures import agreement, indicators, shares
from twinblock.diagnosis.verdict import Verdict, verdict, worst
from twinblock.methods.learner import parts_of, shares_of
from twinblock.nn.modes import calibrated
from twinblock.runs.metrics import BESIDE, history_of
from twinblock.views import Views

NEIGHBOURS, TEMPERATURE = 5, 0.1  # of the sample, which has few images a class


def held_out(data: Data, images: Images) -> Images:
    """Images to measure on: a source's test images where it has them, with labels if `images` have; else `images`."""
    try:
        test = split_of(data, "test")
    except InputError:  # a test split that cannot be read is no reason not to train
        return images
    if test is None or len(test) < SAMPLE[0] or (images.labels is not None and test.labels is None):
        return images
    return test


class Monitor:
    """Looks at what each Learner gives for two views of the same images, in evaluation mode, and changes nothing.

    When it looks is for `looks` to say. `rows` holds what was seen, `verdicts` one for each Learner.
    """

    def __init__(
        self,
        learners: Sequence[Any],
        images: Images,
        views: Views,
        config: Config,
        device: torch.device,
        plan: Plan,
        world: int = 1,
    ):
        self.config, self.device, self.plan = config, device, plan
        self.learners = [part for whole in learners for part in parts_of(whole)]
        self.wholes = [i for i, whole in enumerate(learners) for _ in parts_of(whole)]  # what the plan counts
        first = views.specs[0].model_copy(update={"count": 1})
        self.views = Views([first], views.size, views.mean, views.std, views.value_range)
        batch = config.data.batch
        # images at a time: a measurement takes no more memory than a step
        self.piece = min(max(1, batch // world), config.train.micro_batch or batch)
        self.images, self.looks = len(images), Looks(plan, config, len(images), len(learners), world)
        index = np.sort(order(config.train.seed, -1, len(images))[: self.looks.count])
        self.pixels = images.batch(index)
        self.labels = None if images.labels is None else torch.from_numpy(images.labels[index])
        self.aspect = images.aspects(index)
        self.starts = [next(start for start, phase in begun(plan) if i in phase.trained) for i in self.wholes]
        self.rows: list[dict[str, Any]] = []
        self.verdicts: list[Verdict] = [verdict([])] * len(self.learners)

    def due(self, step: int) -> bool:
        return self.looks.due(step)

    def note(self, step: int, measures: list[dict[str, Any]]) -> dict[str, Any]:
        """Judge by what was measured as well, and give the row for the metrics."""
        judged = [{name: value for name, value in row.items() if name not in BESIDE} for row in measures]
        row = {"step": step, "diagnosis": judged}
        for name in BESIDE:
            if any(name in measured for measured in measures):
                row[name] = [measured.get(name) for measured in measures]
        self.recall([row])
        return row

    def recall(self, rows: Iterable[dict[str, Any]]) -> None:
        """Judge by these rows as well, one after the other, be they of this process or of one before it."""
        for row in rows:
            self.rows.append(row)
            self._judge()

    def _judge(self) -> None:
        histories = {i: history_of(self.rows, i, self.starts[i]) for i in self.trained()}
        for i, history in histories.items():
            self.verdicts[i] = verdict(history, config=self.config)
        # judged once each, so that what is asked for follows from the rows: a resumed run looks when another would
        suspect = (len(h) > 1 and verdict(h, finished=True).state == "complete collapse" for h in histories.values())
        if not self.collapsed and any(suspect):
            self.looks.due_at.add(self.rows[-1]["step"] + self.looks.again)

    @property
    def collapsed(self) -> bool:
        """Whether the Learner that was trained last, or any of those trained together, has collapsed completely."""
        return any(self.verdicts[i].state == "complete collapse" for i in self.trained())

    def trained(self) -> tuple[int, ...]:
        step = self.rows[-1]["step"] if self.rows else 0
        trained = self.plan.at(min(step, self.plan.total - 1))[0].trained
        return tuple(i for i, whole in enumerate(self.wholes) if whole in trained)

    def verdict(self) -> Verdict:
        """The worst of the Learners in training; of equals the last."""
        return worst([self.verdicts[i] for i in self.trained()])

    def words(self) -> str:
        """For the progress bar: kNN on the sample (no test accuracy) of each Learner in training, and the verdict."""
        if not self.rows:
            return ""
        accuracies = [self.rows[-1]["diagnosis"][i].get("sample_knn") for i in self.trained()]
        knn = " ".join(f"{value:.0f}" for value in accuracies if value is not None)
        return (f"sample kNN {knn} % · " if knn else "") + self.verdict().headline

    @torch.no_grad()
    def measure(self, step: int | None = None) -> list[dict[str, Any]]:
        """For each Learner: `indicators` of its outputs, or the mean of what is a number for each image; and
        leave-one-out kNN on the sample where it has labels.

        And its `agreement` with the error; of one whose training begins at this step also what it is `untrained`.
        """
        measures = []
        for learner, outputs in zip(self.learners, self.outputs(range(2)), strict=True):
            row: dict[str, Any] = {name: _measured(views) for name, views in outputs.items()}
            shared = shares_of(learner, outputs["projector"][0]) if "projector" in outputs else None
            row |= {} if shared is None else {"prototypes": shares(shared)}
            knn = None if self.labels is None else leave_one_out(torch.stack(outputs["encoder"]), self.labels)
            row |= {} if knn is None else {"sample_knn": knn}
            measures.append({**row, "agreement": agreement(*outputs["encoder"])})
        for i, untrained in self.untrained(step).items():
            measures[i]["untrained"] = untrained
        return measures

    def untrained(self, step: int | None) -> dict[int, dict[str, Any]]:
        """Of each Learner that begins at this step, what its weights show once batch norms have seen images.

        Statistics of batch norms move without any learning, and move what is measured. So this is what training is
        compared with.
        """
        begins = [i for i, start in enumerate(self.starts) if start == step]
        if not begins:
            return {}
        with calibrated(nn.ModuleList(self.learners[i] for i in begins), lambda: self.outputs(range(2))):
            outputs = self.outputs(range(2))
        views = {i: outputs[i]["encoder"] for i in begins}
        return {
            i: {"agreement": agreement(*z), "centred_rank": indicators(z[0])["centred_rank"]} for i, z in views.items()
        }

    def outputs(self, views: Sequence[int], count: int | None = None) -> list[dict[str, list[Tensor]]]:
        """By view, what each Learner says there is to diagnose."""
        pixels = self.pixels[:count].to(self.device)
        aspect = None if self.aspect is None else self.aspect[:count]
        outputs_of: list[dict[str, list[Tensor]]] = [defaultdict(list) for _ in self.learners]
        for seed in views:
            (images,) = self.views(pixels, seed=seed, epoch=0, step=0, batch=len(pixels), aspect=aspect)
            images = images.double() if self.config.train.precision == "fp64" else images
            pieces = [self._outputs_of(piece) for piece in images.split(self.piece)]
            for learner, parts in zip(outputs_of, zip(*pieces, strict=True), strict=True):
                for name in parts[0]:
                    learner[name].append(torch.cat([part[name] for part in parts]))
        return outputs_of

    def _outputs_of(self, x: Tensor) -> list[dict[str, Tensor]]:
        """For each Learner, of some images."""
        by_learner = []
        for learner in self.learners:
            outputs, x = learner.outputs(x)
            by_learner.append(outputs)
        return by_learner


def _measured(views: Sequence[Tensor]) -> Any:
    return indicators(*views) if views[0].ndim > 1 else float(torch.stack([*views]).double().mean())


def leave_one_out(views: Float[Tensor, "v n d"], labels: Int[Tensor, " n"]) -> float | None:
    """Weighted kNN accuracy in percent of each image by all others; None where fewer than two have a label.

    An image is the mean of its normalised views.
    """
    labelled = labels >= 0
    z = normalize(normalize(views.cpu(), dim=2).mean(0)[labelled])
    labels = labels[labelled].unique(return_inverse=True)[1]  # numbers of classes may be any
    if len(labels) < 2 or not z.isfinite().all():
        return None
    cosine, nearest = (z @ z.T).fill_diagonal_(-2).topk(min(NEIGHBOURS, len(z) - 1))
    votes = torch.zeros(len(z), int(labels.max()) + 1)
    votes.scatter_add_(1, labels[nearest], (cosine / TEMPERATURE).exp())
    return 100 * float((votes.argmax(1) == labels).float().mean())
